//! A server's own endpoints, for people and tools (API.md).

use super::{
    Answer, Call, HttpSettings, allow,
    balancer::{READY_TIMEOUT, idempotency, inserts, section_head, sections_tail},
    bytes_response,
    error::ApiError,
    fields,
    guard::{Guard, guard},
    held::Held,
    json, json_response, openapi, ops,
    stream::{self, Format, Got, Page, Section, Want},
    target,
};
use crate::{
    handle::{BalancerHandle, ServerHandle},
    shown,
    telemetry::{Measured, OfReplica},
};
use axum::{
    Router,
    body::Bytes,
    extract::{Request, State},
    http::{Method, StatusCode},
    middleware,
    response::{IntoResponse, Response},
    routing::any,
};
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;
use twinshard_core::{
    command::{Command, Entry, OnConflict, Operation, Verdict},
    id::LogIndex,
    map::ClusterMap,
    message::ReplicaStatus,
    request::{Consistency, NewServer, NewShard, Reply, RequestError, ServerReply, ServerRequest},
    schema::Schema,
    value::{Key, KeyRange},
};

/// Entries of one piece of the log.
const LOG_ENTRIES: u32 = 1_024;

/// How long /copy waits for the newest before it gives what there is. A guess: some read rounds.
const FRESH_TIMEOUT: Duration = Duration::from_millis(500);

/// Who a server is to people.
#[derive(Clone, Debug)]
pub struct ServerIdentity {
    /// Its name.
    pub name: String,
    /// Its number for /home.
    pub number: u64,
    /// The balancer in its own process, if it is a server on its own: /config sets that one up.
    pub standalone: Option<BalancerHandle>,
}

/// What a replica of this server holds for an answer.
type Pinning = Held<ServerRequest, ServerReply>;

#[derive(Clone)]
struct App {
    handle: ServerHandle,
    identity: Arc<ServerIdentity>,
    settings: Arc<HttpSettings>,
}

/// The router of a server.
pub fn router(handle: ServerHandle, identity: ServerIdentity, settings: HttpSettings) -> Router {
    let guarded = Guard::new(&settings, handle.telemetry().clone());
    let common = ops::router(handle.clone(), openapi::document("A server of Twinshard", openapi::SERVER));
    let app = App { handle, identity: Arc::new(identity), settings: Arc::new(settings) };
    let routes = Router::new()
        .route("/heartbeat", any(heartbeat))
        .route("/home", any(home))
        .route("/copy", any(copy))
        .route("/read", any(read))
        .route("/write", any(write))
        .route("/update", any(update))
        .route("/del", any(delete))
        .route("/config", any(config))
        .route("/get_wal", any(log))
        .route("/get_wal_count", any(log_count))
        .route("/metrics", any(metrics))
        .route("/readyz", any(ready))
        .fallback(unknown)
        .with_state(app)
        .merge(common)
        .layer(middleware::from_fn_with_state(guarded, guard));
    target::lenient(routes)
}

impl App {
    async fn ask(&self, request: ServerRequest) -> Result<ServerReply, ApiError> {
        match self.handle.ask(request, self.settings.request_timeout).await {
            ServerReply::Failed(error) => Err(error.into()),
            reply => Ok(reply),
        }
    }

    /// Reads a request of rows: the key stands beside its fields.
    async fn call_of_rows(&self, request: Request, fields: fields::Fields) -> Result<Call, ApiError> {
        let map = self.handle.map().map(|(_, map)| map);
        let key = map.as_ref().and_then(|map| map.schema.as_ref()).map(Schema::key_name);
        Call::read(request, &self.settings, fields, key).await
    }

    fn map(&self) -> Result<Arc<ClusterMap>, ApiError> {
        self.handle.map().map(|(_, map)| map).ok_or_else(|| RequestError::NotInitialised.into())
    }

    fn schema(&self) -> Result<Arc<Schema>, ApiError> {
        self.map()?.schema.clone().map(Arc::new).ok_or_else(|| RequestError::NotInitialised.into())
    }

    /// Refuses a shard that is not on this server: to wait for it would help nobody.
    async fn holds(&self, shard: &str) -> Result<(), ApiError> {
        let map = self.map()?;
        let Some(record) = map.shard_named(shard).and_then(|id| map.shards.get(&id)) else {
            return Err(RequestError::NoSuchShard(shard.into()).into());
        };
        if map.server_named(&self.identity.name).is_some_and(|server| record.placement.contains(&server)) {
            return Ok(());
        }
        // One that is on its way out still has it.
        match self.ask(ServerRequest::Shards).await? {
            ServerReply::Shards { names, .. } if names.iter().any(|name| **name == *shard) => Ok(()),
            ServerReply::Shards { .. } => {
                let words = format!("Shard '{shard}' is not on this server");
                Err(ApiError::new(StatusCode::BAD_REQUEST, "shard-not-here", words))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// What this server holds: as new as any read where it can be had soon, else as it is. A server on its own has nobody else to ask, and
    /// after a start no news before its shards serve.
    async fn held_page(&self, shard: &str, range: KeyRange, is_behind: &AtomicBool, held: &Pinning) -> Result<Page, ApiError> {
        // A further page is of the moment of the first, however new that was.
        if held.get().is_none() && !is_behind.load(Ordering::Relaxed) {
            let request = self.page_request(shard, range, Consistency::Linearizable, held);
            let timeout = if self.identity.standalone.is_some() { self.settings.request_timeout } else { FRESH_TIMEOUT };
            if let ServerReply::Rows { rows, next, pinned, .. } = self.handle.ask(request, timeout).await {
                held.set(pinned);
                return Ok(Page { rows, next });
            }
            is_behind.store(true, Ordering::Relaxed);
        }
        Ok(self.page(shard, range, Consistency::Stale, held).await?.0)
    }

    fn page_request(&self, shard: &str, range: KeyRange, consistency: Consistency, held: &Pinning) -> ServerRequest {
        let (limit, pinned) = (self.settings.page_rows, held.get());
        ServerRequest::Read { shard: shard.into(), range, limit, consistency, wanted: u32::MAX, pinned }
    }

    /// A page, and the index that it is of.
    async fn page(&self, shard: &str, range: KeyRange, consistency: Consistency, held: &Pinning) -> Result<(Page, LogIndex), ApiError> {
        match self.ask(self.page_request(shard, range, consistency, held)).await? {
            ServerReply::Rows { rows, next, pinned, at } => {
                held.set(pinned);
                Ok((Page { rows, next }, at))
            }
            other => Err(unexpected(&other)),
        }
    }

    fn pinning(&self) -> Arc<Pinning> {
        Arc::new(Held::new(self.handle.clone(), ServerRequest::EndRead))
    }
}

fn unexpected(reply: &ServerReply) -> ApiError {
    tracing::error!(?reply, "the machine's answer is of another kind than the request");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The answer is of another kind than the request")
}

async fn unknown(request: Request) -> Response {
    let words = format!("'{}' endpoint does not exist", shown::echo(request.uri().path()));
    ApiError::new(StatusCode::NOT_FOUND, "no-such-endpoint", words).into_response()
}

async fn metrics(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::GET])?;
    let mut now = Measured::default();
    now.set("requests_waiting", "Requests that wait for the machine of this node", app.handle.load().1 as u64);
    if let Some((version, _)) = app.handle.map() {
        now.set("map_version", "The version of the cluster map that this node knows", version.0);
    }
    // What its machine has is left out where that does not answer: the counters are there all the same.
    if let Ok(ServerReply::Status { replicas, request_count, outstanding_count, map }) = app.ask(ServerRequest::Status).await {
        now.set("requests_open", "Requests of this server's own HTTP that its machine works on", request_count);
        now.set("storage_open", "Batches of the log and pieces of work of the row store that are not answered", outstanding_count);
        let shard = |id| map.as_ref().and_then(|map| map.shards.get(&id)).map_or_else(|| id.to_string(), |record| record.name.to_string());
        let of =
            |status: &ReplicaStatus| OfReplica { shard: shard(status.shard), server: app.identity.name.clone(), replica: status.replica.0 };
        let replicas: Vec<_> = replicas.iter().map(|status| (of(status), status)).collect();
        now.replicas(&replicas);
    }
    ops::metrics(app.handle.telemetry(), now)
}

/// How long the log may take over what it is given before this server is not ready. A guess: more than a slow disk takes.
const LOG_PATIENCE: Duration = Duration::from_secs(5);

async fn ready(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::GET])?;
    let trouble = match app.handle.telemetry().log_trouble(LOG_PATIENCE) {
        Some(words) => Some(format!("This server promises nothing: {words}")),
        None => match app.handle.ask(ServerRequest::Status, READY_TIMEOUT).await {
            ServerReply::Failed(error) => Some(format!("This server does not answer: {error}")),
            _ => None,
        },
    };
    ops::ready(&app.handle, trouble)
}

async fn heartbeat(request: Request) -> Answer {
    allow(&request, &[Method::GET])?;
    Ok(bytes_response(StatusCode::OK, Bytes::new(), "text/plain"))
}

async fn home(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::GET])?;
    let message = format!("Hello from Server: {}", app.identity.number);
    Ok(json_response(StatusCode::OK, &json!({ "message": message, "status": "successful" })))
}

fn shard_name(call: &Call) -> Result<Box<str>, ApiError> {
    Ok(json::text(json::field(&call.json, "shard")?, "shard")?.into())
}

async fn copy(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::GET])?;
    let call = Call::read(request, &app.settings, fields::COPY, None).await?;
    let shards = json::texts(json::field(&call.json, "shards")?, "shards")?;
    let format = Format { schema: app.schema()?, versions: false, lines: false };
    for shard in &shards {
        app.holds(shard).await?;
    }
    if let Some(shard) = shards.iter().find(|shard| shards.iter().filter(|other| other == shard).count() > 1) {
        return Err(ApiError::invalid(format!("Shard '{shard}' stands twice")));
    }
    let deadline = Instant::now() + app.settings.request_timeout;
    loop {
        match copied(&app, &format, &shards).await {
            // What was pinned is gone, and nothing was given out.
            Err(error) if error.is("read-cut") && Instant::now() < deadline => {}
            done => return done,
        }
    }
}

/// One attempt: of each shard the state of one moment.
async fn copied(app: &App, format: &Format, shards: &[Box<str>]) -> Answer {
    let (format, shards, count, app) = (format.clone(), shards.to_vec(), shards.len(), app.clone());
    let (is_behind, held) = (Arc::new(AtomicBool::new(false)), app.pinning());
    let fetch = move |want: Want| {
        let (section, from) = match want {
            Want::Section(section) => (section, KeyRange::ALL.low),
            Want::Page { section, from, .. } => (section, from),
        };
        let begins = matches!(want, Want::Section(_));
        let (app, name, is_behind, held) = (app.clone(), shards[section].clone(), Arc::clone(&is_behind), Arc::clone(&held));
        async move {
            let page = app.held_page(&name, KeyRange { low: from, high: KeyRange::ALL.high }, &is_behind, &held).await?;
            Ok(if begins { Got::Section(Section { head: section_head(&name, section), first: page }) } else { Got::Page(page) })
        }
    };
    stream::answer(format, count, None, fetch, move |_| sections_tail(count)).await
}

async fn read(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::GET, Method::POST])?;
    let call = app.call_of_rows(request, fields::SERVER_READ).await?;
    let shard = shard_name(&call)?;
    let schema = app.schema()?;
    let name = schema.key_name().to_owned();
    let range = json::range(json::field(&call.json, &name)?, &name)?;
    let session = call.header("twinshard-session")?.map(json::session_token).transpose()?.unwrap_or_default();
    let consistency = json::consistency(&call.json, &session)?;
    app.holds(&shard).await?;
    let format = Format { schema, versions: json::flag(&call.json, "versions")?, lines: false };
    let deadline = Instant::now() + app.settings.request_timeout;
    loop {
        match rows_of(&app, &format, &shard, range, &consistency).await {
            // What was pinned is gone, and nothing was given out.
            Err(error) if error.is("read-cut") && Instant::now() < deadline => {}
            done => return done,
        }
    }
}

/// One attempt: the state of one moment.
async fn rows_of(app: &App, format: &Format, shard: &str, range: KeyRange, consistency: &Consistency) -> Answer {
    let (app, shard, consistency, held) = (app.clone(), Box::<str>::from(shard), consistency.clone(), app.pinning());
    let (at, index) = (Arc::new(AtomicU64::new(0)), format.versions);
    let read_at = Arc::clone(&at);
    let fetch = move |want: Want| {
        let from = match want {
            Want::Section(_) => None,
            Want::Page { from, .. } => Some(from),
        };
        let (app, shard, consistency) = (app.clone(), shard.clone(), consistency.clone());
        let (held, read_at) = (Arc::clone(&held), Arc::clone(&read_at));
        async move {
            let range = KeyRange { low: from.unwrap_or(range.low), high: range.high };
            let (page, at) = app.page(&shard, range, consistency, &held).await?;
            read_at.store(at.0, Ordering::Relaxed);
            Ok(if from.is_none() { Got::Section(Section { head: b"{\"data\":[".to_vec(), first: page }) } else { Got::Page(page) })
        }
    };
    let tail = move |_| match index {
        true => format!("],\"index\":{},\"status\":\"success\"}}", at.load(Ordering::Relaxed)).into_bytes(),
        false => b"],\"status\":\"success\"}".to_vec(),
    };
    stream::answer(format.clone(), 1, None, fetch, tail).await
}

/// Applies operations through the replicated log; the last applied index of the shard.
async fn execute(app: &App, call: &Call, operations: Vec<Operation>) -> Result<LogIndex, ApiError> {
    let shard = shard_name(call)?;
    let is_of_one_row = operations.iter().all(|operation| !matches!(operation, Operation::Insert { .. }));
    let request = ServerRequest::Write { shard: shard.clone(), operations, idempotency: idempotency(call)? };
    let reply = match app.handle.ask(request, app.settings.request_timeout).await {
        // Here the shard was named: the key may well be in another.
        ServerReply::Failed(RequestError::OutOfRange(key)) => {
            if is_of_one_row {
                return Err(ApiError::new(StatusCode::NOT_FOUND, "no-such-row", format!("No row with key {key} in shard '{shard}'")));
            }
            let words = format!("Key {key} is outside the range of shard '{shard}'");
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "key-out-of-range", words));
        }
        ServerReply::Failed(error) => return Err(error.into()),
        reply => reply,
    };
    match reply {
        ServerReply::Written { outcome, applied } => match outcome.verdict {
            Verdict::Applied { .. } => Ok(applied),
            Verdict::Conflict(keys) => Err(RequestError::Exists(keys).into()),
            Verdict::Missing(keys) => Err(RequestError::Missing(keys).into()),
            Verdict::KeyReused => Err(RequestError::KeyReused.into()),
        },
        other => Err(unexpected(&other)),
    }
}

async fn write(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::POST])?;
    let mut call = app.call_of_rows(request, fields::SERVER_WRITE).await?;
    let schema = app.schema()?;
    let rows = json::rows(&schema, &call.json, app.settings.rows_max)?;
    call.forget_rows();
    let count = rows.len() as u64;
    let on_conflict = json::on_conflict(&call.json)?.unwrap_or(app.map()?.settings.on_conflict);
    // Rows written so far: as the client counts, if it does. What is no count is ignored, as other fields are that the contract does not know.
    let given = json::optional_count(&call.json, "curr_idx").ok().flatten();
    let applied = execute(&app, &call, inserts(rows, Some(on_conflict))).await?;
    let current = match given {
        Some(current) => current.saturating_add(count),
        None => rows_written(&app, &call).await.unwrap_or(applied.0),
    };
    Ok(json_response(StatusCode::OK, &json!({ "message": "Data entries added", "current_idx": current, "status": "success" })))
}

async fn update(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::PUT])?;
    let call = app.call_of_rows(request, fields::SERVER_UPDATE).await?;
    let schema = app.schema()?;
    let name = schema.key_name();
    let key = json::key(json::field(&call.json, name)?, name)?;
    let set = json::changes(&schema, key, json::field(&call.json, "data")?)?;
    execute(&app, &call, vec![Operation::Update { key, set }]).await?;
    Ok(json_response(StatusCode::OK, &json!({ "message": format!("Data entry for {name}:{key} updated"), "status": "success" })))
}

async fn delete(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::DELETE, Method::POST])?;
    let call = app.call_of_rows(request, fields::SERVER_DELETE).await?;
    let schema = app.schema()?;
    let name = schema.key_name();
    let key = json::key(json::field(&call.json, name)?, name)?;
    execute(&app, &call, vec![Operation::Delete { key }]).await?;
    Ok(json_response(StatusCode::OK, &json!({ "message": format!("Data entry with {name}:{key} removed"), "status": "success" })))
}

async fn config(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::POST])?;
    let call = Call::read(request, &app.settings, fields::CONFIG, None).await?;
    let Some(balancer) = &app.identity.standalone else { return Err(RequestError::ClusterOwned.into()) };
    let schema = json::schema(json::field(&call.json, "schema")?)?;
    let names = json::texts(json::field(&call.json, "shards")?, "shards")?;
    // A server on its own is told shards by name; each spans every key there is.
    let shards = names.iter().map(|name| NewShard { name: name.clone(), low: 0, size: i64::MAX }).collect();
    let server = NewServer { name: app.identity.name.as_str().into(), shards: names.clone() };
    let request = twinshard_core::request::Request::Init {
        server_count: Some(1),
        schema,
        shards,
        servers: Some(vec![server]),
        on_conflict: None,
        by_name: true,
    };
    match balancer.ask(request, app.settings.admin_timeout).await {
        Reply::Initialised => {
            let list: Vec<String> = names.iter().map(|shard| format!("{}:{shard}", app.identity.name)).collect();
            let message = format!("{} configured", list.join(", "));
            Ok(json_response(StatusCode::OK, &json!({ "message": message, "status": "success" })))
        }
        Reply::Failed(error) => Err(error.into()),
        _ => Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The answer is of another kind than the request")),
    }
}

/// A piece of the log of this server's replica of a shard, and the index of its last entry.
async fn piece(app: &App, shard: &str, from: LogIndex) -> Result<(Vec<Arc<Entry>>, LogIndex), ApiError> {
    match app.ask(ServerRequest::Log { shard: shard.into(), from, limit: LOG_ENTRIES }).await? {
        ServerReply::Log { entries, last } => Ok((entries, last)),
        other => Err(unexpected(&other)),
    }
}

/// Where the next piece begins, after one that ends so.
fn next_piece(end: Option<LogIndex>, last: LogIndex) -> Option<LogIndex> {
    end.filter(|end| *end < last).map(LogIndex::next)
}

/// Rows written to the shard so far, by the log; an entry that was compacted away counts as one.
async fn rows_written(app: &App, call: &Call) -> Result<u64, ApiError> {
    let shard = shard_name(call)?;
    app.holds(&shard).await?;
    let (mut rows, mut compacted) = (0, None);
    let mut from = Some(LogIndex(1));
    while let Some(begin) = from {
        let (entries, last) = piece(app, &shard, begin).await?;
        for entry in &entries {
            compacted.get_or_insert(entry.position.index.0.saturating_sub(1));
            if let Command::Operations(operations) = &entry.command {
                rows += operations.iter().filter(|operation| matches!(operation, Operation::Insert { .. })).count() as u64;
            }
        }
        from = next_piece(entries.last().map(|entry| entry.position.index), last);
    }
    Ok(rows + compacted.unwrap_or(0))
}

/// How far an answer with the log has come.
struct LogSoFar {
    /// Fetched, and still to be written.
    entries: VecDeque<Arc<Entry>>,
    /// Where to go on after these.
    from: Option<LogIndex>,
    /// Nothing was written yet.
    first: bool,
}

async fn log(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::GET])?;
    let call = Call::read(request, &app.settings, fields::LOG, None).await?;
    let schema = app.schema()?;
    let shard = shard_name(&call)?;
    app.holds(&shard).await?;
    let begin = LogSoFar { entries: VecDeque::new(), from: Some(LogIndex(1)), first: true };
    stream::send("application/json", begin, move |mut so_far, _, mut out| {
        let (app, schema, shard) = (app.clone(), Arc::clone(&schema), shard.clone());
        async move {
            if so_far.entries.is_empty()
                && let Some(from) = so_far.from
            {
                let (entries, last) = piece(&app, &shard, from).await?;
                so_far.from = next_piece(entries.last().map(|entry| entry.position.index), last);
                so_far.entries = entries.into();
            }
            // Entries can be large: not all that were fetched are written at once.
            while out.len() < stream::WHOLE_BYTES_MAX
                && let Some(entry) = so_far.entries.pop_front()
            {
                out.extend_from_slice(if std::mem::take(&mut so_far.first) { b"{\"data\":[" } else { b"," });
                let position = entry.position;
                out.extend_from_slice(format!("{{\"epoch\":{},\"index\":{},\"command\":", position.epoch.0, position.index.0).as_bytes());
                out.extend_from_slice(command_json(&schema, &entry.command).to_string().as_bytes());
                out.push(b'}');
            }
            if !so_far.entries.is_empty() || so_far.from.is_some() {
                return Ok((out, Some(so_far)));
            }
            out.extend_from_slice(if so_far.first { b"{\"data\":[],\"status\":\"success\"}" } else { b"],\"status\":\"success\"}" });
            Ok((out, None))
        }
    })
    .await
}

async fn log_count(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::GET])?;
    let call = Call::read(request, &app.settings, fields::LOG, None).await?;
    let shard = shard_name(&call)?;
    app.holds(&shard).await?;
    let request = ServerRequest::Log { shard, from: LogIndex(u64::MAX), limit: 1 };
    match app.ask(request).await? {
        ServerReply::Log { last, .. } => Ok(json_response(StatusCode::OK, &json!({ "count": last.0, "status": "success" }))),
        other => Err(unexpected(&other)),
    }
}

/// A command as people read it.
fn command_json(schema: &Schema, command: &Command) -> Value {
    let value = |value: &twinshard_core::value::Value| {
        let mut out = Vec::new();
        json::write_value(value, &mut out);
        serde_json::from_slice(&out).unwrap_or(Value::Null)
    };
    let name = schema.key_name();
    let with_key = |key: Key| json!({ name: key.0 });
    match command {
        Command::Barrier(config) => json!({ "barrier": config.to_string() }),
        Command::CloseSession(session) => json!({ "close_session": session.0 }),
        Command::Operations(operations) => operations
            .iter()
            .map(|operation| match operation {
                Operation::Insert { row, on_conflict } => {
                    let mut fields = with_key(row.key);
                    for (column, given) in schema.value_columns().iter().zip(&row.values) {
                        fields[&*column.name] = value(given);
                    }
                    let on_conflict = match on_conflict {
                        OnConflict::Replace => "replace",
                        OnConflict::Error => "error",
                        OnConflict::Skip => "skip",
                    };
                    json!({ "write": fields, "on_conflict": on_conflict })
                }
                Operation::Update { key, set } => {
                    let mut fields = with_key(*key);
                    for (place, given) in set {
                        if let Some(column) = schema.value_columns().get(usize::from(*place)) {
                            fields[&*column.name] = value(given);
                        }
                    }
                    json!({ "update": fields })
                }
                Operation::Delete { key } => json!({ "delete": with_key(*key) }),
            })
            .collect(),
    }
}
