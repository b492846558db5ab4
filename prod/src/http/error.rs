//! Every refusal as JSON: `message`, `status`, `code`, `applied`, `retryable`, `hint` (API.md).

use crate::shown;
use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};
use twinshard_core::{
    request::{Applied, ErrorKind, RequestError},
    value::Key,
};

/// An answer that says no.
#[derive(Clone, Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    /// With its `<Error>`.
    message: String,
    applied: Applied,
    retryable: bool,
    shards: Option<Box<Value>>,
    /// What to do, where the code alone does not say.
    hint: Option<&'static str>,
    /// The methods that the path has, for a 405 (RFC 9110, section 15.5.6).
    allow: Option<Box<str>>,
}

impl ApiError {
    /// A refusal that applied nothing and that the same request will meet again.
    #[must_use]
    pub fn new(status: StatusCode, code: &'static str, words: impl AsRef<str>) -> Self {
        let message = format!("<Error> {}", shown::message(words.as_ref()));
        Self { status, code, message, applied: Applied::No, retryable: false, shards: None, hint: None, allow: None }
    }

    /// Whether it has this code.
    pub(super) fn is(&self, code: &str) -> bool {
        self.code == code
    }

    /// 400.
    #[must_use]
    pub fn invalid(words: impl AsRef<str>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid-request", words)
    }

    /// With another hint than that of its code.
    pub(super) fn hinted(self, hint: &'static str) -> Self {
        Self { hint: Some(hint), ..self }
    }

    /// 400 with the words as they are.
    #[must_use]
    pub fn verbatim(code: &'static str, words: &str) -> Self {
        Self { message: shown::message(words).into_owned(), ..Self::new(StatusCode::BAD_REQUEST, code, "") }
    }

    /// 405.
    #[must_use]
    pub fn method_not_allowed(words: impl AsRef<str>, allow: String) -> Self {
        Self { allow: Some(allow.into()), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", words) }
    }

    /// 401 (RFC 9110, section 15.5.2).
    #[must_use]
    pub fn unauthorized(words: impl AsRef<str>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", words)
    }

    /// 413.
    #[must_use]
    pub fn body_too_large(bytes_max: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", format!("The body is larger than the {bytes_max} bytes allowed"))
    }

    /// 413: it would never fit, however few others there are.
    pub(super) fn body_beyond_memory(bytes_max: usize) -> Self {
        let words = format!("The body and its values take more than the {bytes_max} bytes of memory for all bodies");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", words)
    }

    /// 404 of /update and /del: no shard has such a row.
    #[must_use]
    pub fn outside_every_range(key: Key) -> Self {
        let words = format!("No row with key {key}: it is outside every shard's range");
        Self::new(StatusCode::NOT_FOUND, "no-such-row", words)
    }

    /// 503: nothing was applied, ask again.
    #[must_use]
    pub fn overloaded() -> Self {
        RequestError::Overloaded.into()
    }

    /// 429 (RFC 6585): nothing was applied, ask again.
    pub(super) fn too_fast() -> Self {
        let words = "Too many requests from this address";
        Self { retryable: true, ..Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", words) }
    }

    /// Its status code.
    pub(super) const fn status(&self) -> StatusCode {
        self.status
    }

    /// What the client reads.
    pub(super) fn body(&self) -> Value {
        let mut body = json!({
            "message": self.message,
            "status": "failure",
            "code": self.code,
            "applied": applied_name(self.applied),
            "retryable": self.retryable,
            "hint": self.hint.unwrap_or_else(|| self.hint_of_code()),
        });
        if let Some(shards) = &self.shards {
            body["shards"] = Value::clone(shards);
        }
        body
    }

    fn hint_of_code(&self) -> &'static str {
        match self.code {
            "not-initialised" => "POST /init first",
            "already-initialised" => "GET /status shows the cluster; remove all servers with /rm to set it up anew",
            "refused" => "GET /status shows the cluster as it is, which does not allow this; nothing was changed",
            "key-out-of-range" => "GET /status lists the shards and their ranges; POST /add adds one",
            "key-exists" => "use PUT /update, or on_conflict replace or skip",
            "no-such-row" => "POST /write adds it",
            "idempotency-key-reused" => "use a new Idempotency-Key for a new request",
            "overloaded" | "too-many-requests" => "wait as Retry-After says, then ask again",
            "shard-unavailable" | "no-server" | "register-unavailable" => "GET /status shows what is down; ask again",
            "read-cut" => "ask again, and read each page within some seconds; nothing was changed",
            "session-token-beyond" => "begin a new session: ask without a Twinshard-Session header; nothing was changed",
            "outcome-unknown" => "it may have been applied or still may, at most once: read, or repeat it with the same Idempotency-Key",
            "still-changing" => "ask the same again to wait for the end",
            "parts-differ" => "`shards` says what became of each shard's part; repeat the parts that were not applied",
            "cluster-owned" => "POST /init or /add at the balancer",
            "method-not-allowed" => "see the message for the methods of this path",
            "no-such-endpoint" => "check the path; nothing was changed",
            "no-such-shard" | "no-such-server" => "GET /status at the balancer lists the servers and their shards",
            "internal" => "this is a fault of the program: see its messages",
            "body-too-large" | "too-many-rows" | "too-many-values" => "send it in several requests",
            "path-too-long" | "headers-too-large" | "bad-http" => "send a plain request of HTTP/1.1; nothing was changed",
            "unauthorized" => "the operator has the tokens, in files for their owner only; nothing was changed",
            "forbidden" => "ask with the token that the message names; nothing was changed",
            "slow-headers" | "slow-body" => "send the request at once; nothing was changed",
            "forbidden-host" => "web pages may not use this API by a name of theirs: ask by an address or localhost",
            "forbidden-origin" => "a page is let in by --allow-origin at the start of the node",
            "not-ready" | "stopped" => "ask another node, or again later",
            "unsupported-encoding" => "send the body as it is, without a Content-Encoding; nothing was changed",
            "unknown-field" => "correct the field's name, or leave it out; nothing was changed",
            _ => "correct the request; nothing was changed",
        }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let status = match error.kind() {
            ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::Mismatch => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorKind::Overloaded | ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
        };
        let shards = match &error {
            RequestError::Parts(parts) => {
                let parts: Map<String, Value> = parts
                    .iter()
                    .map(|(name, part)| {
                        let mut value = json!({ "applied": applied_name(part.applied) });
                        if let Some(error) = &part.error {
                            value["message"] = json!(shown::message(&format!("<Error> {error}")));
                            value["code"] = json!(error.code());
                        }
                        (name.to_string(), value)
                    })
                    .collect();
                Some(Box::new(Value::Object(parts)))
            }
            _ => None,
        };
        Self {
            status,
            code: error.code(),
            message: shown::message(&format!("<Error> {error}")).into_owned(),
            applied: error.applied(),
            retryable: error.retryable(),
            shards,
            hint: None,
            allow: None,
        }
    }
}

fn applied_name(applied: Applied) -> &'static str {
    match applied {
        Applied::No => "no",
        Applied::Yes => "yes",
        Applied::Partial => "partial",
        Applied::Unknown => "unknown",
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = super::json_response(self.status, &self.body());
        if [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS].contains(&self.status) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(allow) = self.allow.and_then(|allow| HeaderValue::from_str(&allow).ok()) {
            response.headers_mut().insert(header::ALLOW, allow);
        }
        response
    }
}
