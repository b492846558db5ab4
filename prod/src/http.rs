//! HTTP/JSON for clients, people and tools (API.md): routers over the handles, and the loop that serves them on any network. Decides nothing
//! about data; every answer is JSON, also every refusal.

pub mod access;
pub mod balancer;
mod bodies;
mod connection;
pub mod error;
mod fields;
mod guard;
mod held;
mod json;
mod leftover;
mod numbers;
mod openapi;
mod ops;
mod origin;
mod rate;
mod serve;
pub mod server;
mod stream;
mod target;

use crate::shown;
use access::Access;
use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::{Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
pub use bodies::{BODIES_BYTES_MAX, Bodies};
use error::ApiError;
pub use guard::Hosts;
pub use origin::check_origin;
use serde_json::Value;
pub use serve::{SPARE_MAX, serve};
use std::{num::NonZeroU32, time::Duration};
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
    /// How long a connection may be without a request. Longer than proxies and clients keep theirs, so that they are who closes it.
    pub idle_timeout: Duration,
    /// Rows of one page of a large answer.
    pub page_rows: u32,
    /// How long a node that is told to stop says so before it does.
    pub stop_grace: Duration,
    /// The most connections of clients at once. Probes and operators are answered on some more, other requests there are refused.
    pub connections_max: usize,
    /// The most of them from one client's address, but for those of this machine.
    pub address_connections_max: usize,
    /// The most requests of clients under way, with answers that are still being sent; one more is answered 503 at once. Probes and
    /// operators have places of their own.
    pub requests_max: usize,
    /// The most answers that are sent page by page at once; one more is answered 503 at once.
    pub streams_max: usize,
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
    /// The web pages that may ask, by their origins.
    pub allow_origins: Vec<String>,
    /// Whether answers say when they were made, by the wall clock, which simulated time has not.
    pub dates: bool,
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
            idle_timeout: Duration::from_secs(75),
            page_rows: 2_048,
            stop_grace: Duration::from_millis(250),
            connections_max: 4_096,
            address_connections_max: 2_048,
            requests_max: 4_096,
            streams_max: 256,
            rate_max: None,
            on_conflict: OnConflict::Replace,
            life: 0,
            hosts: Hosts::Loopback,
            names: Vec::new(),
            access: Access::Open,
            allow_origins: Vec::new(),
            dates: false,
        }
    }
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
    /// Reads a request with these fields, beside which a row's key may stand.
    async fn read(request: Request, settings: &HttpSettings, fields: fields::Fields, key: Option<&str>) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        if let Some(coding) = parts.headers.get(header::CONTENT_ENCODING).filter(|coding| *coding != "identity") {
            let words = format!("Content-Encoding '{}' is not understood", shown::echo(&String::from_utf8_lossy(coding.as_bytes())));
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-encoding", words));
        }
        let (body, mut room) = bodies::read(body, settings).await?;
        let json = if json::without_mark(&body).iter().all(u8::is_ascii_whitespace) {
            Value::Object(serde_json::Map::new())
        } else {
            let (json, value_count) = json::parse(&body)?;
            room.add_values(&settings.bodies, value_count)?;
            json
        };
        let Value::Object(named) = &json else {
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "bad-json", "The body must be a JSON object"));
        };
        fields::check(named, fields, key)?;
        let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
        Ok(Self { method, path, parts, body, json, _room: room })
    }

    /// Gives back the memory of rows that were read; their room stays taken for what they became.
    fn forget_rows(&mut self) {
        if let Some(rows) = self.json.get_mut("data") {
            *rows = Value::Null;
        }
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

/// Refuses a method that the path does not have. HEAD is there where GET is, and came as GET.
fn allow(request: &Request, methods: &[Method]) -> Result<(), ApiError> {
    if methods.contains(request.method()) {
        return Ok(());
    }
    let mut list: Vec<&str> = methods.iter().map(Method::as_str).collect();
    let use_one = list.join(" or ");
    if let Some(get) = list.iter().position(|method| *method == "GET") {
        list.insert(get + 1, "HEAD");
    }
    let asked = if request.extensions().get::<target::Head>().is_some() { "HEAD" } else { request.method().as_str() };
    let (asked, path) = (shown::echo(asked), shown::echo(request.uri().path()));
    let words = format!("{asked} is not a method of {path}; use {use_one}");
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
