//! What a request has to be before a handler sees it: one that says for whom it is, whose page may ask, who has the token, and for whom there
//! is a place. Probes are asked for less, and they and operators have places of their own.

use super::{
    HttpSettings,
    access::{self, Access},
    connection::Phase,
    error::ApiError,
    leftover,
    origin::{self, Page},
    rate::RateLimiter,
    target,
};
use crate::{
    request_id::{self, RequestIds},
    shown,
    telemetry::Telemetry,
};
use axum::{
    body::{Body, Bytes},
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, Version, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http_body::{Frame, SizeHint};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// The most requests of probes and operators under way. A guess.
const OPERATORS_MAX: usize = 64;
/// What every answer says: it is for who asked and for now, and what it is.
pub(super) const ALWAYS: [(&str, &str); 3] =
    [("cache-control", "no-store"), ("x-content-type-options", "nosniff"), ("cross-origin-resource-policy", "same-origin")];
/// Headers that may stand once: of two a proxy may have gone by the other.
const ONCE: [HeaderName; 7] = [
    header::HOST,
    header::AUTHORIZATION,
    header::ORIGIN,
    header::CONTENT_ENCODING,
    HeaderName::from_static("sec-fetch-site"),
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("twinshard-session"),
];

/// Which names a request may call this node by, besides its addresses. A web page that a browser runs can have any name of its own made to
/// mean this node's address (DNS rebinding), and then is of the same origin; an address it cannot have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hosts {
    /// localhost: for a node that listens on loopback.
    #[default]
    Loopback,
    /// Names without a dot, which no page can have: for a node of a network of its own.
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
    origins: Arc<[String]>,
    telemetry: Telemetry,
    ids: RequestIds,
    places: Arc<Semaphore>,
    places_of_operators: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    rate: Option<Arc<RateLimiter>>,
}

impl Guard {
    pub(super) fn new(settings: &HttpSettings, telemetry: Telemetry) -> Self {
        Self {
            hosts: settings.hosts,
            names: settings.names.as_slice().into(),
            access: settings.access.clone(),
            origins: settings.allow_origins.as_slice().into(),
            telemetry,
            ids: RequestIds::new(settings.life),
            places: Arc::new(Semaphore::new(settings.requests_max)),
            places_of_operators: Arc::new(Semaphore::new(OPERATORS_MAX)),
            streams: Arc::new(Semaphore::new(settings.streams_max)),
            rate: settings.rate_max.map(|rate_max| Arc::new(RateLimiter::new(rate_max))),
        }
    }

    /// The page that a request comes from, and its answer if no handler has to be asked.
    fn check(&self, request: &Request) -> Result<(Page, Option<Response>), ApiError> {
        let (method, path, headers) = (request.method(), request.uri().path(), request.headers());
        check_form(request)?;
        if access::is_probe(path) {
            return Ok((Page::Own, None));
        }
        let host = check_host(request, self.hosts, &self.names)?;
        let page = origin::check(headers, method, host, &self.origins)?;
        if let Some(response) = origin::preflight(headers, method, &page) {
            return Ok((page, Some(response)));
        }
        if let Some(rate) = self.rate.as_ref().filter(|_| access::needed(method, path).is_some()) {
            let client = request.extensions().get().and_then(|Client(address)| *address);
            rate.admit(client, Instant::now()).map_err(|_| ApiError::too_fast())?;
        }
        self.access.check(method, path, headers)?;
        Ok((page, None))
    }

    /// A place among those under way; probes need none.
    fn place(&self, path: &str, phase: Option<&Phase>) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        if access::is_probe(path) {
            return Ok(None);
        }
        let is_of_operators = access::is_of_operators(path);
        if !is_of_operators && phase.is_some_and(Phase::has_no_place) {
            return Err(ApiError::overloaded());
        }
        let places = if is_of_operators { &self.places_of_operators } else { &self.places };
        Arc::clone(places).try_acquire_owned().map(Some).map_err(|_| ApiError::overloaded())
    }

    /// The answer with its place, for as long as it is being sent; and with another, if it is sent page by page.
    fn hold(&self, response: Response, place: Option<OwnedSemaphorePermit>) -> Response {
        let is_whole = http_body::Body::size_hint(response.body()).exact().is_some();
        let stream = if is_whole { None } else { Some(Arc::clone(&self.streams).try_acquire_owned()) };
        match stream.transpose() {
            Ok(stream) => response.map(|body| Body::new(Held { body, _places: [place, stream] })),
            Err(_) => ApiError::overloaded().into_response(),
        }
    }
}

/// Refuses what is not to be served, and requests beyond the bound. No answer waits for the rest of a body that its handler left unread.
pub(super) async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    // The route, since paths can be anything.
    let path = request.extensions().get::<MatchedPath>().map_or_else(|| "other".to_owned(), |path| path.as_str().to_owned());
    let is_head = request.extensions().get::<target::Head>().is_some();
    let method = if is_head { "HEAD" } else { known(request.method()) };
    let id = guard.ids.name(request.headers());
    let phase = request.extensions().get::<Arc<Phase>>().cloned();
    let (request, leftover) = leftover::watch(request);
    let (page, answered) = match guard.check(&request) {
        Ok((page, answered)) => (page, answered.map(Ok)),
        Err(error) => (Page::Own, Some(Err(error))),
    };
    let mut response = match answered {
        Some(answered) => {
            drop(request);
            answered.unwrap_or_else(IntoResponse::into_response)
        }
        None => match guard.place(request.uri().path(), phase.as_deref()) {
            Err(error) => {
                drop(request);
                error.into_response()
            }
            Ok(place) => guard.hold(id.clone().scope(next.run(request)).await, place),
        },
    };
    let whole = leftover.drain().await;
    if let Some(phase) = phase {
        if !whole {
            phase.linger();
        }
        // A spare connection is for the next who asks.
        if !whole || phase.is_spare() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
    if is_head {
        let length = http_body::Body::size_hint(response.body()).exact();
        *response.body_mut() = Body::empty();
        if let Some(length) = length {
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
    }
    let (status, took) = (response.status().as_u16(), began.elapsed());
    tracing::debug!(target: request_id::TARGET, request = %id, method, path, status, ?took, "answered");
    let headers = response.headers_mut();
    if let Some(id) = id.header() {
        headers.insert(request_id::HEADER, id);
    }
    for (name, value) in ALWAYS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    origin::tell(&page, !guard.origins.is_empty(), headers);
    guard.telemetry.answered(method, &path, status, took);
    response
}

/// An answer that keeps its places until it is sent or given up.
struct Held {
    body: Body,
    _places: [Option<OwnedSemaphorePermit>; 2],
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A method can be any word: for the counters there are only so many.
fn known(method: &Method) -> &'static str {
    ["GET", "POST", "PUT", "DELETE", "HEAD"].into_iter().find(|known| method.as_str() == *known).unwrap_or("other")
}

/// Refuses what two programs could read in two ways.
fn check_form(request: &Request) -> Result<(), ApiError> {
    let headers = request.headers();
    let bad = |words: &str| Err(ApiError::new(StatusCode::BAD_REQUEST, "bad-header", words));
    for name in &ONCE {
        if headers.get_all(name).iter().nth(1).is_some() {
            return bad(&format!("The header {name} stands twice"));
        }
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        let words = "The Transfer-Encoding is not understood: only chunked is";
        return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, "unsupported-encoding", words));
    }
    let named = headers.get(header::HOST).map(HeaderValue::as_bytes);
    match (request.uri().authority(), named) {
        (Some(authority), Some(host)) if !authority.as_str().as_bytes().eq_ignore_ascii_case(host) => {
            bad("The request is for one host by its first line and for another by its Host")
        }
        _ => Ok(()),
    }
}

/// For whom the request is, if that is this node.
fn check_host<'a>(request: &'a Request, hosts: Hosts, names: &[String]) -> Result<&'a str, ApiError> {
    let named = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or("?"));
    let named = named.or_else(|| request.uri().authority().map(http::uri::Authority::as_str));
    if named.is_none() && request.version() >= Version::HTTP_11 {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "bad-header", "A request of HTTP/1.1 needs a Host"));
    }
    let host = named.unwrap_or_default();
    let bare = host_name(host).trim_start_matches('[').trim_end_matches(']');
    if hosts.allow(host_name(host)) || names.iter().any(|name| name.eq_ignore_ascii_case(bare)) {
        return Ok(host);
    }
    let words = format!("Host '{}' is not this machine; use localhost or its address", shown::echo(host));
    Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden-host", words))
}

impl Hosts {
    fn allow(self, name: &str) -> bool {
        let in_brackets = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        let is_address = name.parse::<Ipv4Addr>().is_ok() || in_brackets.is_some_and(|name| name.parse::<Ipv6Addr>().is_ok());
        is_address
            || match self {
                Self::Loopback => name.eq_ignore_ascii_case("localhost"),
                Self::NoDomains => !name.is_empty() && !name.contains(['.', '[', ']', ':']),
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

    fn status(version: Version, target: &str, headers: &[(&str, &str)]) -> u16 {
        let request = Request::builder().method("POST").version(version).uri(target);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(Body::empty()).unwrap();
        let names = ["db.example".to_owned(), "fe80::1".to_owned()];
        match check_form(&request).and_then(|()| check_host(&request, Hosts::Loopback, &names)) {
            Ok(_) => 200,
            Err(error) => error.status().as_u16(),
        }
    }

    #[test]
    fn addresses_are_hosts_and_names_that_a_page_could_have_are_not() {
        let addresses = ["127.0.0.1:5000", "0.0.0.0:5000", "10.1.2.3", "[::1]", "[::1]:5000", "[::]:5000", "[fe80::1]:5000"];
        let names = ["localhost", "LocalHost:5000", "db.example", "DB.example:5000"];
        for host in addresses.into_iter().chain(names) {
            assert_eq!(status(Version::HTTP_11, "/init", &[("host", host)]), 200, "{host}");
        }
        let rebound =
            ["evil.example", "evil.example:5000", "127.0.0.1.evil.example", "db.example.evil.example", "[evil]", "127.1", "", "::1"];
        for host in rebound {
            assert_eq!(status(Version::HTTP_11, "/init", &[("host", host)]), 403, "{host}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        const LOCAL: (&str, &str) = ("host", "localhost");
        for (version, target, headers, expected) in [
            (Version::HTTP_11, "/init", &[][..], 400),
            (Version::HTTP_10, "/init", &[], 403),
            (Version::HTTP_11, "/init", &[LOCAL, ("host", "evil.example")], 400),
            (Version::HTTP_11, "/init", &[LOCAL, LOCAL], 400),
            (Version::HTTP_11, "/init", &[LOCAL, ("authorization", "Bearer a"), ("authorization", "Bearer b")], 400),
            (Version::HTTP_11, "/init", &[LOCAL, ("idempotency-key", "a"), ("idempotency-key", "b")], 400),
            (Version::HTTP_11, "/init", &[LOCAL, ("transfer-encoding", "gzip, chunked")], 501),
            (Version::HTTP_11, "/init", &[LOCAL, ("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")], 501),
            (Version::HTTP_11, "/init", &[LOCAL, ("transfer-encoding", "Chunked")], 200),
            (Version::HTTP_11, "http://evil.example/init", &[LOCAL], 400),
            (Version::HTTP_11, "http://evil.example/init", &[("host", "evil.example")], 403),
            (Version::HTTP_11, "http://localhost:5000/init", &[("host", "LOCALHOST:5000")], 200),
            (Version::HTTP_10, "http://evil.example/init", &[], 403),
        ] {
            assert_eq!(status(version, target, headers), expected, "{target} {headers:?}");
        }
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
