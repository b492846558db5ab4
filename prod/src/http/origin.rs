//! Web pages: one of another origin may use this API only if the operator has let it in, by its origin. Who is no browser says nothing of
//! where it comes from, and is not asked.

use super::error::ApiError;
use crate::shown;
use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::Response,
};

/// The headers that a page may send, and those of answers that it may read.
const ASKED: &str = "Authorization, Content-Type, Idempotency-Key, Twinshard-Session, X-Request-Id";
const TOLD: &str = "Twinshard-Session, X-Request-Id, Retry-After, Allow";
/// How long a browser may remember that it may ask, in seconds.
const REMEMBERED: &str = "600";

/// Whether this is an origin as browsers write it: `https://name` or `http://name:port`.
///
/// # Errors
/// What it has to be.
pub fn check_origin(text: &str) -> Result<String, String> {
    let text = text.to_ascii_lowercase();
    let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).unwrap_or_default();
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    if host.is_empty() || !host.bytes().all(is_host) {
        return Err("an origin is http://HOST:PORT or https://HOST, without a path".to_owned());
    }
    Ok(text)
}

/// What a request says of the page that it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// None, or one of this node's own.
    Own,
    /// One that was let in.
    LetIn(HeaderValue),
}

/// Refuses pages that are not let in.
///
/// # Errors
/// 403 with words that name the setting.
pub(super) fn check(headers: &HeaderMap, method: &Method, host: &str, allowed: &[String]) -> Result<Page, ApiError> {
    let refused = |words: String| Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden-origin", words));
    if let Some(value) = headers.get(header::ORIGIN) {
        let origin = value.to_str().unwrap_or("?");
        let of_host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        if of_host.is_some_and(|origin| origin.eq_ignore_ascii_case(host)) {
            return Ok(Page::Own);
        }
        if allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin)) {
            return Ok(Page::LetIn(value.clone()));
        }
        let origin = shown::echo(origin);
        return refused(format!("Requests of pages of {origin} are refused; --allow-origin {origin} lets them in"));
    }
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    let only_reads = matches!(*method, Method::GET | Method::OPTIONS);
    if site == Some(b"cross-site") || (site == Some(b"same-site") && !only_reads) {
        return refused("Requests of foreign web pages are refused; --allow-origin ORIGIN lets those of an origin in".to_owned());
    }
    Ok(Page::Own)
}

/// The answer to a browser that asks whether a page may ask (the Fetch standard's CORS preflight).
pub(super) fn preflight(headers: &HeaderMap, method: &Method, page: &Page) -> Option<Response> {
    let asks = *method == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    if !asks || *page == Page::Own {
        return None;
    }
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    let answers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, POST, PUT, DELETE"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, ASKED),
        (header::ACCESS_CONTROL_MAX_AGE, REMEMBERED),
    ];
    for (name, value) in answers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    // A browser asks so before a page of the network reaches into this machine.
    if headers.contains_key("access-control-request-private-network") {
        let name = HeaderName::from_static("access-control-allow-private-network");
        response.headers_mut().insert(name, HeaderValue::from_static("true"));
    }
    Some(response)
}

/// Lets the page read the answer.
pub(super) fn tell(page: &Page, some_are_let_in: bool, headers: &mut HeaderMap) {
    if some_are_let_in {
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
    }
    if let Page::LetIn(origin) = page {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(TOLD));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(method: Method, headers: &[(&'static str, &str)]) -> Result<Page, String> {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let allowed = ["https://app.example".to_owned(), "http://localhost:8000".to_owned()];
        check(&headers, &method, "localhost:5000", &allowed)
            .map_err(|error| error.body()["message"].as_str().unwrap_or_default().to_owned())
    }

    #[test]
    fn foreign_pages_are_refused_unless_they_were_let_in() {
        let own = Ok(Page::Own);
        let let_in = |origin| Ok(Page::LetIn(HeaderValue::from_static(origin)));
        let evil = "<Error> Requests of pages of http://evil.example are refused; --allow-origin http://evil.example lets them in";
        for (method, headers, expected) in [
            (Method::POST, &[][..], own.clone()),
            (Method::POST, &[("origin", "http://localhost:5000")], own.clone()),
            (Method::POST, &[("origin", "https://LOCALHOST:5000")], own.clone()),
            (Method::POST, &[("origin", "http://localhost:8000")], let_in("http://localhost:8000")),
            (Method::POST, &[("origin", "https://app.example"), ("sec-fetch-site", "cross-site")], let_in("https://app.example")),
            (Method::GET, &[("origin", "http://evil.example")], Err(evil.to_owned())),
            (Method::POST, &[("sec-fetch-site", "same-origin")], own.clone()),
            (Method::GET, &[("sec-fetch-site", "none")], own.clone()),
            (Method::GET, &[("sec-fetch-site", "same-site")], own),
        ] {
            assert_eq!(checked(method, headers), expected, "{headers:?}");
        }
        for (method, headers) in [
            (Method::GET, ("origin", "null")),
            (Method::GET, ("origin", "http://app.example")),
            (Method::GET, ("sec-fetch-site", "cross-site")),
            (Method::POST, ("sec-fetch-site", "same-site")),
            (Method::DELETE, ("sec-fetch-site", "same-site")),
        ] {
            assert!(checked(method, &[headers]).is_err_and(|words| words.contains("--allow-origin")), "{headers:?}");
        }
    }

    #[test]
    fn origins_are_as_browsers_write_them() {
        assert_eq!(check_origin("HTTPS://App.example").as_deref(), Ok("https://app.example"));
        assert!(check_origin("http://[::1]:8000").is_ok());
        for bad in ["*", "null", "app.example", "https://", "https://app.example/", "https://a b", "ftp://x"] {
            assert!(check_origin(bad).is_err(), "{bad}");
        }
    }
}
