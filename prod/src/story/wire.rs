//! The client's side of API.md: requests as HTTP, and HTTP answers as the replies they stand for. Written from the contract, not from the
//! router that it meets: where they differ, the run says so.

use http::Method;
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;
use twinshard_core::{
    command::{OnConflict, Operation},
    id::{Epoch, LogIndex, Position, ShardId},
    request::{Applied, Consistency, NewServer, NewShard, Reply, Request, RequestError, Rows, ShardPart, Written},
    schema::{ColumnType, Schema},
    value::{Finite, Key, Row, StoredRow, Value},
};

/// The header of a session token.
pub const SESSION: &str = "twinshard-session";
/// The header that carries the position of an answer.
pub const POSITION: &str = "twinshard-position";

/// A request on the wire.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The method.
    pub method: Method,
    /// The path.
    pub path: String,
    /// The body; null for none.
    pub body: Json,
    /// The `Idempotency-Key`.
    pub key: Option<Box<str>>,
    /// The session token.
    pub session: Option<String>,
}

/// What an answer tells of positions, in its headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The session token.
    pub session: Option<String>,
    /// The position of the answer itself: of each shard that it read or wrote.
    pub position: Option<String>,
}

/// The answer off the wire.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// What it says.
    pub reply: Reply,
    /// The session token that came with it: what the client has seen.
    pub seen: BTreeMap<ShardId, LogIndex>,
}

/// The nearest request that HTTP can say: it has no batches of operations of several kinds, so the first one stands for such a batch.
#[must_use]
pub fn sayable(request: Request) -> Request {
    match request {
        Request::Write { mut operations, on_conflict, idempotency } => {
            let inserts = operations.iter().all(|operation| matches!(operation, Operation::Insert { .. }));
            if !inserts {
                operations.truncate(1);
            }
            Request::Write { operations, on_conflict, idempotency }
        }
        other => other,
    }
}

/// The request as HTTP. `None` for one that [`sayable`] would change, or that clients do not send.
#[must_use]
pub fn call(schema: &Schema, request: &Request) -> Option<Call> {
    let plain = |method: Method, path: &str, body: Json| Call { method, path: path.to_owned(), body, key: None, session: None };
    Some(match request {
        Request::Init { server_count, schema, shards, servers, on_conflict, by_name: false } => {
            let columns: Vec<&str> = schema.columns().iter().map(|column| &*column.name).collect();
            let dtypes: Vec<String> = schema.columns().iter().map(|column| column.dtype.to_string()).collect();
            let mut body = json!({ "schema": { "columns": columns, "dtypes": dtypes }, "shards": shards_json(shards, schema) });
            if let Some(count) = server_count {
                body["N"] = json!(count);
            }
            if let Some(servers) = servers {
                body["servers"] = servers_json(servers);
            }
            if let Some(on_conflict) = on_conflict {
                body["on_conflict"] = json!(on_conflict_name(*on_conflict));
            }
            plain(Method::POST, "/init", body)
        }
        Request::Status { .. } => plain(Method::GET, "/status", Json::Null),
        Request::Add { server_count, new_shards, servers, strict: true } => {
            let body = json!({ "n": server_count, "new_shards": shards_json(new_shards, schema), "servers": servers_json(servers) });
            plain(Method::POST, "/add", body)
        }
        Request::Remove { server_count, servers, accept_data_loss, capped: false } => {
            let body = json!({ "n": server_count, "servers": servers, "accept_data_loss": accept_data_loss });
            plain(Method::DELETE, "/rm", body)
        }
        Request::Primary { shard, change } => {
            let method = if *change { Method::POST } else { Method::GET };
            plain(method, "/primary_elect", json!({ "shard": shard }))
        }
        Request::Move { shard, from, to } => plain(Method::POST, "/move", json!({ "shard": shard, "from": from, "to": to })),
        Request::Drain { server } => plain(Method::POST, "/drain", json!({ "server": server })),
        Request::Read { range, limit, consistency } => {
            let mut body = json!({ "limit": limit, "versions": true });
            body[schema.key_name()] = json!({ "low": range.low.0, "high": range.high.0 });
            let (name, session) = match consistency {
                Consistency::Linearizable => ("linearizable", None),
                Consistency::Session(seen) => ("session", Some(token(seen))),
                Consistency::Stale => ("stale", None),
            };
            body["consistency"] = json!(name);
            Call { session, ..plain(Method::POST, "/read", body) }
        }
        Request::Write { operations, on_conflict, idempotency } => {
            let key = idempotency.as_ref().map(|idempotency| idempotency.key.clone());
            Call { key, ..write(schema, operations, *on_conflict)? }
        }
        Request::Init { by_name: true, .. }
        | Request::Add { strict: false, .. }
        | Request::Remove { capped: true, .. }
        | Request::ReadPage { .. }
        | Request::EndRead(_)
        | Request::ReadServer { .. }
        | Request::Explain(_)
        | Request::PickServer { .. } => return None,
    })
}

fn write(schema: &Schema, operations: &[Operation], on_conflict: Option<OnConflict>) -> Option<Call> {
    let plain = |method: Method, path: &str, body: Json| Call { method, path: path.to_owned(), body, key: None, session: None };
    Some(match operations {
        [Operation::Update { key, set }] => {
            let columns = schema.value_columns();
            let data: Map<String, Json> = set
                .iter()
                .filter_map(|(place, value)| Some((columns.get(usize::from(*place))?.name.to_string(), value_json(value))))
                .collect();
            let mut body = json!({ "data": data });
            body[schema.key_name()] = json!(key.0);
            plain(Method::PUT, "/update", body)
        }
        [Operation::Delete { key }] => {
            let mut body = json!({});
            body[schema.key_name()] = json!(key.0);
            plain(Method::DELETE, "/del", body)
        }
        inserts => {
            let rows: Option<Vec<Json>> = inserts
                .iter()
                .map(|operation| match operation {
                    Operation::Insert { row, .. } => Some(row_json(schema, row)),
                    Operation::Update { .. } | Operation::Delete { .. } => None,
                })
                .collect();
            let mut body = json!({ "data": rows? });
            if let Some(on_conflict) = on_conflict {
                body["on_conflict"] = json!(on_conflict_name(on_conflict));
            }
            plain(Method::POST, "/write", body)
        }
    })
}

fn shards_json(shards: &[NewShard], schema: &Schema) -> Json {
    let key_low = format!("{}_low", schema.key_name());
    shards
        .iter()
        .map(|shard| {
            let mut value = json!({ "Shard_id": shard.name, "Shard_size": shard.size });
            value[&key_low] = json!(shard.low);
            value
        })
        .collect()
}

fn servers_json(servers: &[NewServer]) -> Json {
    Json::Object(servers.iter().map(|server| (server.name.to_string(), json!(server.shards))).collect())
}

const fn on_conflict_name(on_conflict: OnConflict) -> &'static str {
    match on_conflict {
        OnConflict::Replace => "replace",
        OnConflict::Error => "error",
        OnConflict::Skip => "skip",
    }
}

fn row_json(schema: &Schema, row: &Row) -> Json {
    let mut fields = Map::new();
    fields.insert(schema.key_name().to_owned(), json!(row.key.0));
    for (column, value) in schema.value_columns().iter().zip(&row.values) {
        fields.insert(column.name.to_string(), value_json(value));
    }
    Json::Object(fields)
}

fn value_json(value: &Value) -> Json {
    match value {
        Value::Integer(value) => json!(value),
        Value::Decimal(value) => json!(value.as_f64()),
        Value::Boolean(value) => json!(value),
        Value::Text(value) => json!(value),
    }
}

fn token(seen: &BTreeMap<ShardId, LogIndex>) -> String {
    let pairs: Vec<String> = seen.iter().map(|(shard, index)| format!("{}:{}", shard.0, index.0)).collect();
    pairs.join(",")
}

fn read_token(text: &str) -> Option<BTreeMap<ShardId, LogIndex>> {
    let pair = |pair: &str| {
        let (shard, index) = pair.split_once(':')?;
        Some((ShardId(shard.parse().ok()?), LogIndex(index.parse().ok()?)))
    };
    text.split(',').filter(|part| !part.is_empty()).map(pair).collect()
}

fn read_positions(text: &str) -> Option<BTreeMap<ShardId, Position>> {
    let pair = |pair: &str| {
        let (shard, at) = pair.split_once(':')?;
        let (epoch, index) = at.split_once('.')?;
        let at = Position { epoch: Epoch(epoch.parse().ok()?), index: LogIndex(index.parse().ok()?) };
        Some((ShardId(shard.parse().ok()?), at))
    };
    text.split(',').filter(|part| !part.is_empty()).map(pair).collect()
}

/// What the answer to a request says.
///
/// # Errors
/// It is not one that API.md has for this request; the text says why.
pub fn answered(schema: &Schema, request: &Request, status: u16, told: &Told, body: &[u8]) -> Result<Answered, String> {
    let json: Json = serde_json::from_slice(body).map_err(|error| format!("{status} without JSON: {error}"))?;
    // A long answer ends with what its headers could not know yet.
    let of_end = |name: &str| json.get(name).and_then(Json::as_str).map(str::to_owned);
    let told = match request {
        Request::Read { .. } => Told {
            session: of_end("session").or_else(|| told.session.clone()),
            position: of_end("position").or_else(|| told.position.clone()),
        },
        _ => told.clone(),
    };
    let seen = match told.session.as_deref().map(read_token) {
        Some(Some(seen)) => seen,
        Some(None) => return Err(format!("a session token that is none: {:?}", told.session)),
        None => BTreeMap::new(),
    };
    let reply = if status == 200 {
        success(schema, request, told.position.as_deref(), &json).ok_or_else(|| format!("200 to {request:?}: {}", short(&json)))?
    } else {
        Reply::Failed(error(request, status, &json).ok_or_else(|| format!("{status} to {request:?}: {}", short(&json)))?)
    };
    Ok(Answered { reply, seen })
}

fn short(json: &Json) -> String {
    let mut text = json.to_string();
    if let Some((end, _)) = text.char_indices().nth(400) {
        text.truncate(end);
    }
    text
}

fn success(schema: &Schema, request: &Request, position: Option<&str>, json: &Json) -> Option<Reply> {
    let names = |value: &Json| -> Option<Vec<Box<str>>> { value.as_array()?.iter().map(|name| Some(name.as_str()?.into())).collect() };
    Some(match request {
        Request::Init { .. } => Reply::Initialised,
        Request::Write { operations, .. } => {
            let skipped_count = json.get("skipped").map_or(Some(0), Json::as_u64)?;
            let written_count = (operations.len() as u64).checked_sub(skipped_count)?;
            Reply::Written(Written { written_count, skipped_count, seen: read_positions(position?)? })
        }
        Request::Read { range, .. } => {
            let shards_queried = names(json.get("shards_queried")?)?;
            let rows: Option<Vec<StoredRow>> = json.get("data")?.as_array()?.iter().map(|row| stored_row(schema, row)).collect();
            let next = match json.get("next_cursor") {
                None | Some(Json::Null) => None,
                Some(cursor) => Some(Key(cursor.as_str()?.parse().ok()?)),
            };
            if next.is_some_and(|next| !range.contains(next)) {
                return None;
            }
            // What was read, not what the client's session has come to: that a read saw as much as its token says is for the checks.
            let seen = read_token(position?)?;
            Reply::Rows(Box::new(Rows { shards_queried, rows: rows?, next, seen, ..Rows::default() }))
        }
        Request::Add { servers, .. } => {
            let server_count = json.get("N")?.as_u64()?;
            Reply::Added { server_count, servers: servers.iter().map(|server| server.name.clone()).collect() }
        }
        Request::Remove { .. } => {
            let message = json.get("message")?;
            Reply::Removed { server_count: message.get("N")?.as_u64()?, servers: names(message.get("servers")?)? }
        }
        Request::Primary { .. } => {
            let server = json.get("primary_server")?.as_str().map(Into::into);
            Reply::Primary { server, epoch: Epoch(json.get("epoch")?.as_u64()?) }
        }
        Request::Move { shard, to, .. } => {
            json.get("message")?.as_str()?;
            Reply::Relocated { moves: vec![(shard.clone(), to.clone())] }
        }
        Request::Drain { .. } => {
            let moved = |json: &Json| Some((json.get("shard")?.as_str()?.into(), json.get("to")?.as_str()?.into()));
            Reply::Relocated { moves: json.get("moves")?.as_array()?.iter().map(moved).collect::<Option<_>>()? }
        }
        Request::Status { .. }
        | Request::ReadPage { .. }
        | Request::EndRead(_)
        | Request::ReadServer { .. }
        | Request::Explain(_)
        | Request::PickServer { .. } => return None,
    })
}

fn stored_row(schema: &Schema, json: &Json) -> Option<StoredRow> {
    let key = Key(json.get(schema.key_name())?.as_i64()?);
    let values: Option<Vec<Value>> = schema.value_columns().iter().map(|column| value(column.dtype, json.get(&*column.name)?)).collect();
    let (epoch, index) = json.get("$version")?.as_str()?.split_once('.')?;
    let version = Position { epoch: Epoch(epoch.parse().ok()?), index: LogIndex(index.parse().ok()?) };
    Some(StoredRow { version, row: Row { key, values: values? } })
}

fn value(dtype: ColumnType, json: &Json) -> Option<Value> {
    let value = match json {
        Json::Bool(value) => Value::Boolean(*value),
        Json::String(text) => Value::Text(text.as_str().into()),
        Json::Number(number) => match number.as_i64() {
            Some(integer) => Value::Integer(integer),
            None => Value::Decimal(Finite::new(number.as_f64()?)?),
        },
        Json::Null | Json::Array(_) | Json::Object(_) => return None,
    };
    dtype.admits(&value).then_some(value)
}

fn error(request: &Request, status: u16, json: &Json) -> Option<RequestError> {
    if json.get("status")?.as_str()? != "failure" || !json.get("message")?.as_str()?.starts_with("<Error>") {
        return None;
    }
    let error = match json.get("code")?.as_str()? {
        "parts-differ" => RequestError::Parts(parts(request, json.get("shards")?)?),
        code => plain_error(request, code, json.get("message")?.as_str()?)?,
    };
    let applied = match json.get("applied")?.as_str()? {
        "no" => Applied::No,
        "yes" => Applied::Yes,
        "partial" => Applied::Partial,
        "unknown" => Applied::Unknown,
        _ => return None,
    };
    let as_it_should = status_of(&error) == status && error.applied() == applied && json.get("retryable")?.as_bool()? == error.retryable();
    as_it_should.then_some(error)
}

fn status_of(error: &RequestError) -> u16 {
    use twinshard_core::request::ErrorKind;
    match error.kind() {
        ErrorKind::Invalid => 400,
        ErrorKind::NotFound => 404,
        ErrorKind::Conflict => 409,
        ErrorKind::Mismatch => 422,
        ErrorKind::Overloaded | ErrorKind::Unavailable => 503,
        ErrorKind::Timeout => 504,
    }
}

fn parts(request: &Request, json: &Json) -> Option<BTreeMap<Box<str>, ShardPart>> {
    json.as_object()?
        .iter()
        .map(|(name, part)| {
            let applied = match part.get("applied")?.as_str()? {
                "no" => Applied::No,
                "yes" => Applied::Yes,
                "unknown" => Applied::Unknown,
                _ => return None,
            };
            let error = match (part.get("code"), part.get("message")) {
                (Some(code), Some(message)) => Some(Box::new(plain_error(request, code.as_str()?, message.as_str()?)?)),
                (None, None) => None,
                _ => return None,
            };
            Some((name.as_str().into(), ShardPart { applied, error, seen: None }))
        })
        .collect()
}

/// The keys that a message lists at its end: among those that were asked for.
fn keys(request: &Request, message: &str) -> Vec<Key> {
    let Request::Write { operations, .. } = request else { return Vec::new() };
    let listed: Vec<Key> =
        message.split(|c: char| !c.is_ascii_digit() && c != '-').filter_map(|number| number.parse().ok()).map(Key).collect();
    operations.iter().map(Operation::key).filter(|key| listed.contains(key)).collect()
}

fn plain_error(request: &Request, code: &str, message: &str) -> Option<RequestError> {
    let words = message.strip_prefix("<Error> ").unwrap_or(message);
    Some(match code {
        "not-initialised" => RequestError::NotInitialised,
        "already-initialised" => RequestError::AlreadyInitialised,
        "invalid-request" => RequestError::Invalid(words.into()),
        "refused" => RequestError::Refused(words.into()),
        "too-few-servers" => RequestError::TooFewServers,
        "too-many-servers" => RequestError::TooManyServersToRemove,
        "no-such-server" => RequestError::NoSuchServer,
        "no-such-shard" => RequestError::NoSuchShard(words.into()),
        "key-out-of-range" => RequestError::OutOfRange(keys(request, message).first().copied()?),
        "key-exists" => RequestError::Exists(keys(request, message)),
        "no-such-row" => RequestError::Missing(keys(request, message)),
        "idempotency-key-reused" => RequestError::KeyReused,
        "overloaded" => RequestError::Overloaded,
        "shard-unavailable" => RequestError::ShardUnavailable(words.into()),
        "read-cut" => RequestError::ReadCut(words.into()),
        "session-token-beyond" => RequestError::TokenBeyond(words.into(), LogIndex(0)),
        "no-server" => RequestError::NoServer,
        "outcome-unknown" => RequestError::OutcomeUnknown,
        "still-changing" => RequestError::StillChanging,
        "register-unavailable" => RequestError::RegisterUnavailable,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
