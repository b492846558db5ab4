//! What keeps a web page from using the API of a machine that a browser runs on (DESIGN 8), and bounds what is under way.

use super::{HttpSettings, error::ApiError, leftover};
use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// What the guard needs.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    loopback_hosts_only: bool,
    places: Arc<Semaphore>,
    read_timeout: Duration,
}

impl Guard {
    pub(super) fn new(settings: &HttpSettings) -> Self {
        Self {
            loopback_hosts_only: settings.loopback_hosts_only,
            places: Arc::new(Semaphore::new(settings.requests_max)),
            read_timeout: settings.read_timeout,
        }
    }
}

/// Refuses foreign pages and requests beyond the bound. Reads to its end what a handler left unread of a body, so that its answer is met.
pub(super) async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let (request, leftover) = leftover::watch(request);
    let response = match (check(request.headers(), guard.loopback_hosts_only), guard.places.try_acquire()) {
        (Err(error), _) => {
            drop(request);
            error.into_response()
        }
        (Ok(()), Err(_)) => {
            drop(request);
            ApiError::overloaded().into_response()
        }
        (Ok(()), Ok(_place)) => next.run(request).await,
    };
    leftover.drain(guard.read_timeout).await;
    response
}

fn check(headers: &HeaderMap, loopback_hosts_only: bool) -> Result<(), ApiError> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text(header::HOST).unwrap_or_default();
    if loopback_hosts_only && !["localhost", "127.0.0.1", "[::1]"].iter().any(|own| own.eq_ignore_ascii_case(host_name(host))) {
        let words = format!("Host '{host}' is not this machine; use localhost or 127.0.0.1");
        return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden-host", words));
    }
    let foreign = text(header::ORIGIN).is_some_and(|origin| {
        origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")).is_none_or(|origin| !origin.eq_ignore_ascii_case(host))
    });
    let cross_site = headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site");
    if foreign || cross_site {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden-origin", "Requests of foreign web pages are refused"));
    }
    Ok(())
}

/// Without the port.
fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(headers: &[(&'static str, &str)]) -> bool {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        check(&headers, true).is_err()
    }

    #[test]
    fn foreign_pages_and_rebound_names_are_refused() {
        for host in ["localhost", "LocalHost:5000", "127.0.0.1:5000", "[::1]", "[::1]:5000"] {
            assert!(!refused(&[("host", host)]), "{host}");
        }
        for host in ["evil.example", "evil.example:5000", "127.0.0.1.evil.example", "0.0.0.0:5000", ""] {
            assert!(refused(&[("host", host)]), "{host}");
        }
        assert!(!refused(&[("host", "localhost:5000"), ("origin", "http://localhost:5000")]));
        assert!(refused(&[("host", "localhost:5000"), ("origin", "http://evil.example")]));
        assert!(refused(&[("host", "localhost:5000"), ("origin", "null")]));
        assert!(refused(&[("host", "localhost:5000"), ("sec-fetch-site", "cross-site")]));
        assert!(!refused(&[("host", "localhost:5000"), ("sec-fetch-site", "same-origin")]));
    }
}
