//! What keeps a web page from using the API of a machine that a browser runs on (DESIGN 8), and bounds what is under way.

use super::{
    HttpSettings,
    access::{self, Access},
    error::ApiError,
    leftover,
    rate::RateLimiter,
};
use crate::{
    request_id::{self, RequestIds},
    telemetry::Telemetry,
};
use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Semaphore, time::Instant};

/// Which names a request may call this node by. A web page that a browser runs can have any name of its own made to mean this node's
/// address (DNS rebinding), and then is of the same origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hosts {
    /// localhost, 127.0.0.1 and [::1]: for a node that listens there.
    #[default]
    Loopback,
    /// Addresses, and names without a dot, which no page can have: for a node of a network of its own.
    NoDomains,
    /// All: for a node that asks for tokens, which no page knows.
    Any,
}

/// Where a request comes from, if its connection has an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client(pub(super) Option<IpAddr>);

/// What the guard needs.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    hosts: Hosts,
    names: Arc<[String]>,
    access: Access,
    telemetry: Telemetry,
    ids: RequestIds,
    places: Arc<Semaphore>,
    rate: Option<Arc<RateLimiter>>,
    read_timeout: Duration,
}

impl Guard {
    pub(super) fn new(settings: &HttpSettings, telemetry: Telemetry) -> Self {
        Self {
            hosts: settings.hosts,
            names: settings.names.as_slice().into(),
            access: settings.access.clone(),
            telemetry,
            ids: RequestIds::new(settings.life),
            places: Arc::new(Semaphore::new(settings.requests_max)),
            rate: settings.rate_max.map(|rate_max| Arc::new(RateLimiter::new(rate_max))),
            read_timeout: settings.read_timeout,
        }
    }

    fn check(&self, request: &Request) -> Result<(), ApiError> {
        let (method, path, headers) = (request.method(), request.uri().path(), request.headers());
        check(headers, self.hosts, &self.names)?;
        if let Some(rate) = self.rate.as_ref().filter(|_| access::needed(method, path).is_some()) {
            let client = request.extensions().get().and_then(|Client(address)| *address);
            rate.admit(client, Instant::now()).map_err(|_| ApiError::too_fast())?;
        }
        self.access.check(method, path, headers)
    }
}

/// Refuses foreign pages and requests beyond the bound. Reads to its end what a handler left unread of a body, so that its answer is met.
pub(super) async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    // The route, since paths can be anything.
    let path = request.extensions().get::<MatchedPath>().map_or_else(|| "other".to_owned(), |path| path.as_str().to_owned());
    let method = known(request.method());
    let id = guard.ids.name(request.headers());
    let (request, leftover) = leftover::watch(request);
    let mut response = match (guard.check(&request), guard.places.try_acquire()) {
        (Err(error), _) => {
            drop(request);
            error.into_response()
        }
        (Ok(()), Err(_)) => {
            drop(request);
            ApiError::overloaded().into_response()
        }
        (Ok(()), Ok(_place)) => id.clone().scope(next.run(request)).await,
    };
    leftover.drain(guard.read_timeout).await;
    let (status, took) = (response.status().as_u16(), began.elapsed());
    tracing::debug!(target: request_id::TARGET, request = %id, method, path, status, ?took, "answered");
    if let Some(id) = id.header() {
        response.headers_mut().insert(request_id::HEADER, id);
    }
    guard.telemetry.answered(method, &path, status, took);
    response
}

/// A method can be any word: for the counters there are only so many.
fn known(method: &Method) -> &'static str {
    ["GET", "POST", "PUT", "DELETE", "HEAD"].into_iter().find(|known| method.as_str() == *known).unwrap_or("other")
}

fn check(headers: &HeaderMap, hosts: Hosts, names: &[String]) -> Result<(), ApiError> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text(header::HOST).unwrap_or_default();
    let bare = host_name(host).trim_start_matches('[').trim_end_matches(']');
    if !hosts.allow(host_name(host)) && !names.iter().any(|name| name.eq_ignore_ascii_case(bare)) {
        let words = format!("Host '{host}' is not this machine; use localhost or its address");
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

impl Hosts {
    fn allow(self, name: &str) -> bool {
        let is_loopback = || ["localhost", "127.0.0.1", "[::1]"].iter().any(|own| own.eq_ignore_ascii_case(name));
        match self {
            Self::Loopback => is_loopback(),
            Self::NoDomains => {
                let is_address = name.parse::<Ipv4Addr>().is_ok() || (name.starts_with('[') && name.ends_with(']'));
                is_address || (!name.is_empty() && !name.contains('.'))
            }
            Self::Any => true,
        }
    }
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
        check(&headers, Hosts::Loopback, &["db.example".to_owned(), "fe80::1".to_owned()]).is_err()
    }

    #[test]
    fn foreign_pages_and_rebound_names_are_refused() {
        let certified = ["db.example", "DB.example:5000", "[fe80::1]:5000"];
        for host in ["localhost", "LocalHost:5000", "127.0.0.1:5000", "[::1]", "[::1]:5000"].into_iter().chain(certified) {
            assert!(!refused(&[("host", host)]), "{host}");
        }
        for host in ["evil.example", "evil.example:5000", "127.0.0.1.evil.example", "db.example.evil.example", "0.0.0.0:5000", ""] {
            assert!(refused(&[("host", host)]), "{host}");
        }
        assert!(!refused(&[("host", "localhost:5000"), ("origin", "http://localhost:5000")]));
        assert!(refused(&[("host", "localhost:5000"), ("origin", "http://evil.example")]));
        assert!(refused(&[("host", "localhost:5000"), ("origin", "null")]));
        assert!(refused(&[("host", "localhost:5000"), ("sec-fetch-site", "cross-site")]));
        assert!(!refused(&[("host", "localhost:5000"), ("sec-fetch-site", "same-origin")]));
    }

    #[test]
    fn names_with_a_dot_are_refused_where_addresses_are_known() {
        for host in ["localhost", "Server0", "balancer", "127.0.0.1", "10.1.2.3", "[fe80::1]"] {
            assert!(Hosts::NoDomains.allow(host), "{host}");
        }
        for host in ["evil.example", "10.1.2.3.evil.example", "evil.", ""] {
            assert!(!Hosts::NoDomains.allow(host), "{host}");
            assert!(Hosts::Any.allow(host), "{host}");
        }
    }
}
