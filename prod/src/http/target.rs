//! What a request is for, before a router sees it: repeated slashes of its path and one at the end do not matter, and HEAD is GET without
//! the body of the answer.

use axum::{
    Router,
    extract::Request,
    http::{Method, Uri, uri::PathAndQuery},
};
use std::borrow::Cow;
use tower::ServiceExt;

/// A request that came as HEAD.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head;

/// The router with these ways to say the same.
pub(super) fn lenient(router: Router) -> Router {
    Router::new().fallback_service(router.map_request(settle))
}

fn settle(mut request: Request) -> Request {
    if let Some(uri) = plain(request.uri()) {
        *request.uri_mut() = uri;
    }
    if request.method() == Method::HEAD {
        *request.method_mut() = Method::GET;
        request.extensions_mut().insert(Head);
    }
    request
}

/// The same with a plain path, if it has another.
fn plain(uri: &Uri) -> Option<Uri> {
    let Cow::Owned(path) = plain_path(uri.path()) else { return None };
    let path_and_query = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(path_and_query).ok()?);
    Uri::from_parts(parts).ok()
}

fn plain_path(path: &str) -> Cow<'_, str> {
    if path.len() < 2 || !(path.contains("//") || path.ends_with('/')) {
        return path.into();
    }
    let mut plain = String::with_capacity(path.len());
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        plain.push('/');
        plain.push_str(segment);
    }
    if plain.is_empty() { "/".to_owned().into() } else { plain.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_that_say_nothing_do_not_matter() {
        for (path, expected) in [
            ("/init", "/init"),
            ("//init", "/init"),
            ("/init/", "/init"),
            ("///read//Server0///", "/read/Server0"),
            ("/events//?after=3//", "/events?after=3//"),
            ("/", "/"),
            ("//", "/"),
            ("http://localhost:5000//init/", "http://localhost:5000/init"),
            ("*", "*"),
        ] {
            let uri: Uri = path.parse().expect("a target");
            assert_eq!(plain(&uri).unwrap_or(uri).to_string(), expected, "{path}");
        }
    }
}
