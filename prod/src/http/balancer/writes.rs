//! /write, /update and /del.

use super::{
    Answer, App, key_field,
    session::{seen_with, session, with_headers, write_position},
    unexpected,
};
use crate::http::{Call, allow, error::ApiError, fields, json, json_response};
use axum::{
    extract::{Request, State},
    http::{Method, StatusCode},
    response::IntoResponse,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use twinshard_core::{
    command::{IDEMPOTENCY_KEY_BYTES_MAX, Idempotency, OnConflict, Operation},
    request::{Applied, ErrorKind, Reply, RequestError, Written},
    value::Row,
};

/// The client's own key, with a hash of what it asks.
pub(in crate::http) fn idempotency(call: &Call) -> Result<Option<Idempotency>, ApiError> {
    let Some(key) = call.header("idempotency-key")? else { return Ok(None) };
    if key.is_empty() || key.len() > IDEMPOTENCY_KEY_BYTES_MAX || key.starts_with('~') {
        let words = format!("The Idempotency-Key must have 1 to {IDEMPOTENCY_KEY_BYTES_MAX} characters and not begin with '~'");
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "bad-header", words));
    }
    let mut hash = Sha256::new();
    for part in [call.method.as_str().as_bytes(), b"\0", call.path.as_bytes(), b"\0", &call.body] {
        hash.update(part);
    }
    let hash = hash.finalize();
    let mut body_hash = [0; 16];
    body_hash.copy_from_slice(&hash[..16]);
    Ok(Some(Idempotency { key: key.into(), body_hash: u128::from_le_bytes(body_hash) }))
}

/// Inserts of rows; what they do on conflict is filled in by the machine where the request does not say.
pub(in crate::http) fn inserts(rows: Vec<Row>, on_conflict: Option<OnConflict>) -> Vec<Operation> {
    let on_conflict = on_conflict.unwrap_or_default();
    rows.into_iter().map(|row| Operation::Insert { row, on_conflict }).collect()
}

/// Whether a request that met this error was sent to no shard.
fn reached_no_shard(error: &RequestError) -> bool {
    let refused = matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Overloaded | ErrorKind::Unavailable);
    refused && error.applied() == Applied::No
}

async fn execute(
    app: &App,
    call: &Call,
    operations: Vec<Operation>,
    on_conflict: Option<OnConflict>,
    message: impl FnOnce(&Written) -> String,
) -> Answer {
    // Before anything is applied: a header that cannot be read refuses the request whole.
    let (idempotency, session) = (idempotency(call)?, session(call)?);
    let is_of_one_row = operations.iter().all(|operation| !matches!(operation, Operation::Insert { .. }));
    let mut claim = idempotency.as_ref().map(|idempotency| app.keys.claim(idempotency)).transpose()?;
    let request = twinshard_core::request::Request::Write { operations, on_conflict, idempotency };
    let (response, seen) = match app.handle.ask(request, app.settings.request_timeout).await {
        Reply::Written(written) => {
            let mut body = json!({ "message": message(&written), "status": "success" });
            if written.skipped_count > 0 {
                body["skipped"] = json!(written.skipped_count);
            }
            (json_response(StatusCode::OK, &body), written.seen)
        }
        // Also of a write that failed in part the client has seen the rest.
        Reply::Failed(error) => {
            if let Some(claim) = claim.as_mut().filter(|_| reached_no_shard(&error)) {
                claim.forget();
            }
            let seen = error.seen().collect();
            if let (RequestError::OutOfRange(key), true) = (&error, is_of_one_row) {
                // The newest map there was when it was asked has no such shard, so there is no such row.
                return Err(ApiError::outside_every_range(*key));
            }
            (ApiError::from(error).into_response(), seen)
        }
        other => return Err(unexpected(&other)),
    };
    let position = write_position(&seen);
    let seen = seen_with(session, None, seen.into_iter().map(|(shard, position)| (shard, position.index)));
    Ok(with_headers(response, &seen, &position))
}

/// One row is changed: a key that no shard spans has no row (API.md: /update and /del of a missing row).
async fn execute_on_one(app: &App, call: &Call, operation: Operation, message: String) -> Answer {
    execute(app, call, vec![operation], None, |_| message).await
}

pub(super) async fn write(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::POST])?;
    let mut call = app.call_of_rows(request, fields::WRITE).await?;
    let schema = app.schema().await?;
    let rows = json::rows(&schema, &call.json, app.settings.rows_max)?;
    call.forget_rows();
    let on_conflict = json::on_conflict(&call.json)?;
    let count = rows.len() as u64;
    let operations = inserts(rows, on_conflict);
    // What was skipped was not added.
    let message = |written: &Written| format!("{} Data entries added", count.saturating_sub(written.skipped_count));
    execute(&app, &call, operations, on_conflict, message).await
}

pub(super) async fn update(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::PUT])?;
    let call = app.call_of_rows(request, fields::UPDATE).await?;
    let schema = app.schema().await?;
    let (value, name) = key_field(&call, &schema)?;
    let key = json::key(value, &name)?;
    let set = json::changes(&schema, key, json::field(&call.json, "data")?)?;
    let message = format!("Data entry for {name}: {key} updated");
    execute_on_one(&app, &call, Operation::Update { key, set }, message).await
}

pub(super) async fn delete(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::DELETE, Method::POST])?;
    let call = app.call_of_rows(request, fields::DELETE).await?;
    let schema = app.schema().await?;
    let (value, name) = key_field(&call, &schema)?;
    let key = json::key(value, &name)?;
    let message = format!("Data entry with {name}:{key} removed from all replicas");
    execute_on_one(&app, &call, Operation::Delete { key }, message).await
}
