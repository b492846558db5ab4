//! HTTP/JSON for clients, people and tools (API.md): routers over the handles, and the loop that serves them on any network. Decides nothing
//! about data; every answer is JSON, also every refusal.

pub mod access;
pub mod balancer;
mod bodies;
pub mod error;
mod guard;
mod json;
mod leftover;
mod malformed;
mod openapi;
mod ops;
mod rate;
pub mod server;
mod stream;

use crate::net::Network;
use access::Access;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    http::{Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
pub use bodies::{BODIES_BYTES_MAX, Bodies};
use error::ApiError;
pub use guard::Hosts;
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde_json::Value;
use std::{num::NonZeroU32, sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::ServiceExt;
use twinshard_core::command::OnConflict;

/// What bounds HTTP.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// The most bytes of a request's body (API.md: 32 MiB).
    pub body_bytes_max: usize,
    /// The room for the bodies of all requests under way, as they came and as JSON; one that does not fit is answered 503 at once.
    pub bodies: Bodies,
    /// The most rows of one write (API.md: 100,000).
    pub rows_max: usize,
    /// The deadline of a request (API.md: 10 s).
    pub request_timeout: Duration,
    /// The deadline of /init, /add and /rm (API.md: 120 s).
    pub admin_timeout: Duration,
    /// How long a client may take to send its headers, and then its body; and how long it may read nothing of its answer.
    pub read_timeout: Duration,
    /// Rows of one page of a large answer.
    pub page_rows: u32,
    /// The most connections at once; more wait to be accepted.
    pub connections_max: usize,
    /// The most requests under way; one more is answered 503 at once.
    pub requests_max: usize,
    /// The most requests a second of one client's address, if there is a bound; one more is answered 429 at once.
    pub rate_max: Option<NonZeroU32>,
    /// What writes do with a key that exists, where neither the request nor /init says.
    pub on_conflict: OnConflict,
    /// Tells the names that requests are given in this life of the node from those of others.
    pub life: u64,
    /// Which Host a request may name (DESIGN 8).
    pub hosts: Hosts,
    /// And these: names and addresses that the node is certified for.
    pub names: Vec<String>,
    /// Who is let in.
    pub access: Access,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            body_bytes_max: 32 << 20,
            bodies: Bodies::new(BODIES_BYTES_MAX),
            rows_max: 100_000,
            request_timeout: Duration::from_secs(10),
            admin_timeout: Duration::from_secs(120),
            read_timeout: Duration::from_secs(30),
            page_rows: 2_048,
            connections_max: 4_096,
            requests_max: 4_096,
            rate_max: None,
            on_conflict: OnConflict::Replace,
            life: 0,
            hosts: Hosts::Loopback,
            names: Vec::new(),
            access: Access::Open,
        }
    }
}

/// How long connections may take to finish what they serve once the node stops. A guess.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// The most bytes of a head, and of what is read or written of a body at once: hyper's longest path, 64 KiB, and headers beside it. A guess.
const HEAD_BYTES_MAX: usize = 80 << 10;
/// How long to wait after an accept failed, for example for want of file descriptors. A guess.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves a router until `stopped` becomes true; then lets what is being answered finish, for a moment.
pub async fn serve<N: Network>(mut listener: N::Listener, router: Router, settings: HttpSettings, mut stopped: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(settings.connections_max));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            // Never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (place, N::accept(&mut listener).await)
        };
        let (place, accepted) = tokio::select! {
            biased;
            _ = stopped.wait_for(|stop| *stop) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = accepted => accepted,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let client = guard::Client(N::peer(&stream));
        let service = router.clone().map_request(move |mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(client);
            request
        });
        let service = TowerToHyperService::new(service);
        let mut stopped = stopped.clone();
        let read_timeout = settings.read_timeout;
        connections.spawn(async move {
            let mut connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(read_timeout)
                .max_buf_size(HEAD_BYTES_MAX)
                // The date is the wall clock, which no answer needs and simulated time has not.
                .auto_date_header(false)
                .serve_connection(TokioIo::new(malformed::Spoken::new(stream, read_timeout)), service);
            let ended = tokio::select! {
                ended = &mut connection => ended,
                () = ending(&mut stopped) => {
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                    (&mut connection).await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended");
                if let Err(error) = connection.into_parts().io.into_inner().explain(&error).await {
                    tracing::debug!(%error, "nobody was told why");
                }
            }
            drop(place);
        });
    }
    let _ = timeout(DRAIN_TIMEOUT, async { while connections.join_next().await.is_some() {} }).await;
}

/// Ends when `stopped` becomes true, or its sender is gone.
async fn ending(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

type Answer = Result<Response, ApiError>;

/// A request whose body was read and is JSON; an absent body is an empty object.
struct Call {
    method: Method,
    path: String,
    parts: Parts,
    body: Bytes,
    json: Value,
    /// What both take.
    _room: bodies::Room,
}

impl Call {
    async fn read(request: Request, settings: &HttpSettings) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let (body, mut room) = bodies::read(body, settings).await?;
        let json = if body.iter().all(u8::is_ascii_whitespace) {
            Value::Object(serde_json::Map::new())
        } else {
            let (json, value_count) = json::parse(&body)?;
            room.add_values(&settings.bodies, value_count)?;
            json
        };
        if !json.is_object() {
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "bad-json", "The body must be a JSON object"));
        }
        let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
        Ok(Self { method, path, parts, body, json, _room: room })
    }

    fn header(&self, name: &str) -> Result<Option<&str>, ApiError> {
        match self.parts.headers.get(name) {
            None => Ok(None),
            Some(value) => value
                .to_str()
                .map(Some)
                .map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "bad-header", format!("The header {name} is not plain text"))),
        }
    }
}

/// Refuses a method that the path does not have.
fn allow(request: &Request, methods: &[Method]) -> Result<(), ApiError> {
    if methods.contains(request.method()) {
        return Ok(());
    }
    let list: Vec<&str> = methods.iter().map(Method::as_str).collect();
    let words = format!("{} is not a method of {}; use {}", request.method(), request.uri().path(), list.join(" or "));
    Err(ApiError::method_not_allowed(words, list.join(", ")))
}

fn json_response(status: StatusCode, body: &Value) -> Response {
    bytes_response(status, Bytes::from(body.to_string()), "application/json")
}

fn bytes_response(status: StatusCode, body: Bytes, content_type: &'static str) -> Response {
    (status, [(header::CONTENT_TYPE, content_type)], Body::from(body)).into_response()
}

#[cfg(test)]
mod tests;
