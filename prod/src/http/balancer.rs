//! The balancer's endpoints (API.md).

mod keys;
mod measures;
mod operators;
mod reads;
mod session;
mod writes;

pub(super) use writes::{idempotency, inserts};

use super::{
    Answer, Call, HttpSettings, allow, bytes_response,
    error::ApiError,
    fields,
    guard::{Guard, guard},
    json, json_response, openapi, ops, target,
};
use crate::handle::BalancerHandle;
use crate::shown;
use crate::telemetry::Measured;
use axum::{
    Router,
    body::Bytes,
    extract::{Request, State},
    http::{Method, StatusCode},
    middleware,
    response::{IntoResponse, Response},
    routing::any,
};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;
use twinshard_core::{
    config::Configuration,
    id::ShardId,
    map::{ClusterMap, ReplicaStage, ServerGoal},
    message::LeadStage,
    request::{NewServer, Reply, RequestError, Status},
    schema::Schema,
    value::Key,
};

#[derive(Clone)]
struct App {
    handle: BalancerHandle,
    settings: Arc<HttpSettings>,
    keys: keys::Keys,
    started: Instant,
}

/// The router of a balancer.
pub fn router(handle: BalancerHandle, settings: HttpSettings) -> Router {
    let guarded = Guard::new(&settings, handle.telemetry().clone());
    let common = ops::router(handle.clone(), openapi::document("A balancer of Twinshard", openapi::BALANCER));
    let app = App { handle, settings: Arc::new(settings), keys: keys::Keys::default(), started: Instant::now() };
    let routes = Router::new()
        .route("/init", any(init))
        .route("/status", any(status))
        .route("/add", any(add))
        .route("/rm", any(remove))
        .route("/rep", any(replicas))
        .route("/read", any(reads::read))
        .route("/read/{server}", any(reads::read_server))
        .route("/write", any(writes::write))
        .route("/update", any(writes::update))
        .route("/del", any(writes::delete))
        .route("/primary_elect", any(primary))
        .route("/primary-elect", any(primary))
        .route("/move", any(operators::move_replica))
        .route("/drain", any(operators::drain))
        .route("/explain", any(operators::explain))
        .route("/home", any(home))
        .route("/heartbeat", any(heartbeat))
        .route("/metrics", any(metrics))
        .route("/readyz", any(ready))
        .fallback(unknown)
        .with_state(app)
        .merge(common)
        .layer(middleware::from_fn_with_state(guarded, guard));
    target::lenient(routes)
}

impl App {
    async fn ask(&self, request: twinshard_core::request::Request, timeout: Duration) -> Result<Reply, ApiError> {
        match self.handle.ask(request, timeout).await {
            Reply::Failed(error) => Err(error.into()),
            reply => Ok(reply),
        }
    }

    /// Reads a request whose fields have no row's key beside them.
    async fn call(&self, request: Request, fields: fields::Fields) -> Result<Call, ApiError> {
        Call::read(request, &self.settings, fields, None).await
    }

    /// Reads a request of rows: the key stands beside its fields.
    async fn call_of_rows(&self, request: Request, fields: fields::Fields) -> Result<Call, ApiError> {
        let map = self.handle.map().map(|(_, map)| map);
        let key = map.as_ref().and_then(|map| map.schema.as_ref()).map(Schema::key_name);
        Call::read(request, &self.settings, fields, key).await
    }

    fn map(&self) -> Result<Arc<ClusterMap>, ApiError> {
        self.handle.map().map(|(_, map)| map).ok_or_else(|| RequestError::RegisterUnavailable.into())
    }

    /// A map that says how the cluster is configured. That it is not, only one read from now on says: another balancer may just have.
    async fn configured_map(&self) -> Result<Arc<ClusterMap>, ApiError> {
        let map = self.map()?;
        if map.schema.is_some() {
            return Ok(map);
        }
        match self.ask(twinshard_core::request::Request::Status { fresh: true }, self.settings.request_timeout).await? {
            Reply::Status(status) => Ok(status.map),
            other => Err(unexpected(&other)),
        }
    }

    async fn schema(&self) -> Result<Arc<Schema>, ApiError> {
        let map = self.configured_map().await?;
        map.schema.clone().map(Arc::new).ok_or_else(|| RequestError::NotInitialised.into())
    }
}

/// Not what was asked for: the machine answers each request in kind.
fn unexpected(reply: &Reply) -> ApiError {
    tracing::error!(?reply, "the machine's answer is of another kind than the request");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The answer is of another kind than the request")
}

async fn unknown(request: Request) -> Response {
    let path = shown::echo(request.uri().path());
    if request.method() == Method::GET {
        let words = format!("<Error> '{path}' endpoint does not exist in server replicas");
        return ApiError::verbatim("no-such-endpoint", &words).into_response();
    }
    ApiError::new(StatusCode::NOT_FOUND, "no-such-endpoint", format!("'{path}' endpoint does not exist")).into_response()
}

async fn init(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::POST])?;
    let call = app.call(request, fields::INIT).await?;
    let schema = json::schema(json::field(&call.json, "schema")?)?;
    let shards = json::shards(json::field(&call.json, "shards")?, schema.key_name())?;
    let servers = match call.json.get("servers") {
        None | Some(Value::Null) => None,
        Some(servers) => Some(json::servers(servers)?),
    };
    let server_count = json::optional_count(&call.json, "N")?;
    let given = servers.as_ref().map_or(0, Vec::len) as u64;
    if let Some(count) = server_count.filter(|count| given > 0 && *count != given) {
        let refused = ApiError::invalid(format!("N is {count} but {given} servers are given"));
        return Err(refused.hinted("leave N out, or let it be the number of servers; nothing was changed"));
    }
    let on_conflict = Some(json::on_conflict(&call.json)?.unwrap_or(app.settings.on_conflict));
    let request = twinshard_core::request::Request::Init { server_count, schema, shards, servers, on_conflict, by_name: false };
    match app.ask(request, app.settings.admin_timeout).await? {
        Reply::Initialised => Ok(json_response(StatusCode::OK, &json!({ "message": "Configured Database", "status": "success" }))),
        other => Err(unexpected(&other)),
    }
}

async fn metrics(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::GET])?;
    let mut now = Measured::default();
    now.set("requests_waiting", "Requests that wait for the machine of this node", app.handle.load().1 as u64);
    // What the cluster looks like is left out where it is not known: the counters are there all the same.
    if let Ok(Reply::Status(status)) =
        app.ask(twinshard_core::request::Request::Status { fresh: false }, app.settings.request_timeout).await
    {
        measures::measure(&status, &mut now);
    }
    ops::metrics(app.handle.telemetry(), now)
}

/// How long the machine of a node may take to say how it is. A guess: less than what asks for readiness waits.
pub(super) const READY_TIMEOUT: Duration = Duration::from_secs(1);

async fn ready(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::GET])?;
    let trouble = match app.handle.ask(twinshard_core::request::Request::Status { fresh: false }, READY_TIMEOUT).await {
        Reply::Status(status) => measures::trouble(&status),
        Reply::Failed(RequestError::NotInitialised) => None,
        Reply::Failed(error) => Some(format!("This balancer does not answer: {error}")),
        other => return Err(unexpected(&other)),
    };
    ops::ready(&app.handle, trouble)
}

async fn status(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::GET])?;
    match app.ask(twinshard_core::request::Request::Status { fresh: false }, app.settings.request_timeout).await? {
        Reply::Status(status) => Ok(json_response(StatusCode::OK, &status_json(&status))),
        other => Err(unexpected(&other)),
    }
}

fn status_json(status: &Status) -> Value {
    let map = &status.map;
    let name_of = |server| map.servers.get(&server).map(|record| record.name.to_string());
    let mut servers: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (id, record) in map.servers.iter().filter(|(_, record)| record.goal == ServerGoal::Run) {
        let held = map.shards.values().filter(|shard| shard.placement.contains(id)).map(|shard| &*shard.name);
        servers.insert(record.name.to_string(), held.collect());
    }
    let key_low = map.schema.as_ref().map(|schema| format!("{}_low", schema.key_name()));
    let mut shards: Vec<(Key, Value)> = Vec::new();
    for (id, record) in &map.shards {
        let seen = status.shards.get(id);
        let mut shard = json!({
            "Stud_id_low": record.low.0,
            "Shard_id": record.name,
            "Shard_size": record.size,
            "primary_server": seen.and_then(|seen| seen.primary).and_then(name_of),
            "epoch": record.current.as_ref().map(|current| current.epoch.0),
            "write_quorum": record.current.as_ref().map(|current| current.write_quorum),
            "members": record.current.iter().flat_map(|current| &current.members)
                .filter_map(|member| map.server_of(*member)).filter_map(name_of).collect::<Vec<_>>(),
            "pending_epoch": record.pending.as_ref().map(|pending| pending.epoch.0),
        });
        if let Some(key_low) = &key_low {
            shard[key_low] = json!(record.low.0);
        }
        if let Some(seen) = seen {
            let tolerance = seen.tolerance;
            shard["tolerance"] = json!({ "write": tolerance.write, "read": tolerance.read, "seal": tolerance.seal });
            shard["warnings"] = json!(seen.warnings);
            shard["replicas"] = Value::Array(replicas_json(status, *id));
        }
        shards.push((record.low, shard));
    }
    shards.sort_by_key(|(low, _)| *low);
    let health: Map<String, Value> = status
        .servers
        .iter()
        .filter_map(|(id, seen)| {
            let record = map.servers.get(id)?;
            let address = record.address.as_ref();
            let value = json!({
                "id": id.0,
                "number": record.number,
                "state": operators::health_word(seen.health),
                "drained": map.drained.contains(id),
                "silence_ms": seen.silence.map(twinshard_core::time::Duration::as_millis),
                "respawns": seen.respawn_count,
                "requests": seen.request_count,
                "http": address.map(|address| &address.http),
                "peer": address.map(|address| &address.peer),
            });
            Some((record.name.to_string(), value))
        })
        .collect();
    let schema = map.schema.as_ref().map(|schema| {
        let columns: Vec<&str> = schema.columns().iter().map(|column| &*column.name).collect();
        let dtypes: Vec<String> = schema.columns().iter().map(|column| column.dtype.to_string()).collect();
        json!({ "columns": columns, "dtypes": dtypes })
    });
    json!({
        "N": servers.len(),
        "schema": schema,
        "shards": shards.into_iter().map(|(_, shard)| shard).collect::<Vec<_>>(),
        "servers": servers,
        "health": health,
        "cluster": map.cluster.to_string(),
        "version": status.version.0,
        "warnings": status.warnings,
    })
}

fn replicas_json(status: &Status, shard: ShardId) -> Vec<Value> {
    let map = &status.map;
    let Some(seen) = status.shards.get(&shard) else { return Vec::new() };
    let reported = |replica| status.servers.values().flat_map(|server| &server.replicas).find(|status| status.replica == replica);
    let newest = seen.replicas.keys().filter_map(|replica| reported(*replica)).map(|status| status.commit).max().unwrap_or_default();
    seen.replicas
        .iter()
        .map(|(replica, (stage, server))| {
            let member = seen.current.as_ref().is_some_and(|current| current.has(*replica));
            let mut value = json!({
                "replica": replica.0,
                "server": map.servers.get(server).map(|record| &record.name),
                "stage": match stage {
                    ReplicaStage::Minted => "minted",
                    ReplicaStage::Ready => "ready",
                    ReplicaStage::Retired => "retired",
                },
            });
            if let Some(status) = reported(*replica) {
                let is_led_by = |config: &Option<Configuration>| config.as_ref().is_some_and(|config| config.primary == *replica);
                let role = match (status.lost.is_some(), status.lead, member) {
                    (true, ..) => "lost",
                    (_, Some(LeadStage::Active), _) if is_led_by(&seen.current) => "primary",
                    // A backup that was restarted is lame, too, but nobody asks it to lead.
                    (_, Some(LeadStage::Lame), true) if is_led_by(&seen.current) || is_led_by(&seen.pending) => "lame",
                    (_, Some(LeadStage::Installing | LeadStage::Installed | LeadStage::SourceFailed), _) => "installing",
                    (_, _, true) => "backup",
                    (_, _, false) => "learner",
                };
                value["role"] = json!(role);
                value["commit"] = json!(status.commit.0);
                value["applied"] = json!(status.applied.0);
                value["lag"] = json!(newest.0.saturating_sub(status.applied.0));
            }
            value
        })
        .collect()
}

/// `Server12` as the course writes it.
fn spaced(name: &str, separator: char) -> String {
    match name.strip_prefix("Server") {
        Some(number) if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) => format!("Server{separator}{number}"),
        _ => name.to_owned(),
    }
}

fn running(map: &ClusterMap) -> Vec<String> {
    map.servers.values().filter(|record| record.goal == ServerGoal::Run).map(|record| spaced(&record.name, ' ')).collect()
}

fn replicas_answer(map: &ClusterMap) -> Response {
    let names = running(map);
    let body = json!({ "message": { "N": names.len(), "replicas": names }, "status": "successful" });
    json_response(StatusCode::OK, &body)
}

async fn replicas(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::GET])?;
    Ok(replicas_answer(&*app.map()?))
}

async fn add(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::POST])?;
    let call = app.call(request, fields::ADD).await?;
    let server_count = json::count(&call.json, "n")?;
    let hostnames = call.json.get("hostnames").filter(|names| !names.is_null());
    let stage_one = hostnames.is_some();
    let servers = match (hostnames, call.json.get("servers").filter(|servers| !servers.is_null())) {
        (Some(names), _) => {
            let names = json::texts(names, "hostnames")?;
            names.into_iter().map(|name| NewServer { name, shards: Vec::new() }).collect()
        }
        (None, Some(servers)) => json::servers(servers)?,
        (None, None) => Vec::new(),
    };
    let new_shards = match call.json.get("new_shards") {
        None | Some(Value::Null) => Vec::new(),
        Some(shards) => {
            let map = app.configured_map().await?;
            let schema = map.schema.as_ref().ok_or(RequestError::NotInitialised)?;
            json::shards(shards, schema.key_name())?
        }
    };
    let bare = servers.is_empty() && new_shards.is_empty();
    let shard_names: Vec<String> = new_shards.iter().map(|shard| shard.name.to_string()).collect();
    let request = twinshard_core::request::Request::Add { server_count, new_shards, servers, strict: !stage_one };
    match app.ask(request, app.settings.admin_timeout).await? {
        Reply::Added { .. } if stage_one || (bare && app.map()?.schema.is_none()) => Ok(replicas_answer(&*app.map()?)),
        Reply::Added { server_count, servers } => {
            // Where no server was added, the shards are what was.
            let names: Vec<String> = if servers.is_empty() { shard_names } else { servers.iter().map(|name| spaced(name, ':')).collect() };
            let list = match names.split_last() {
                Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
                Some((last, _)) => last.clone(),
                None => "nothing".to_owned(),
            };
            let body = json!({ "N": server_count, "message": format!("Add {list}"), "status": "successful" });
            Ok(json_response(StatusCode::OK, &body))
        }
        other => Err(unexpected(&other)),
    }
}

async fn remove(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::DELETE, Method::POST])?;
    let call = app.call(request, fields::REMOVE).await?;
    let server_count = json::count(&call.json, "n")?;
    let accept_data_loss = json::flag(&call.json, "accept_data_loss")?;
    let hostnames = call.json.get("hostnames").filter(|names| !names.is_null());
    let map = app.configured_map().await?;
    let capped = hostnames.is_some() || (map.schema.is_none() && call.json.get("servers").is_none());
    let mut servers = match hostnames.or_else(|| call.json.get("servers").filter(|servers| !servers.is_null())) {
        Some(names) => json::texts(names, if capped { "hostnames" } else { "servers" })?,
        None => Vec::new(),
    };
    if capped {
        // As /rep writes them.
        for name in &mut servers {
            if map.server_named(name).is_none()
                && let Some(number) = name.strip_prefix("Server ")
            {
                *name = format!("Server{number}").into();
            }
        }
    }
    let request = twinshard_core::request::Request::Remove { server_count, servers, accept_data_loss, capped };
    match app.ask(request, app.settings.admin_timeout).await? {
        Reply::Removed { .. } if capped => Ok(replicas_answer(&*app.map()?)),
        Reply::Removed { server_count, servers } => {
            let body = json!({ "message": { "N": server_count, "servers": servers }, "status": "successful" });
            Ok(json_response(StatusCode::OK, &body))
        }
        other => Err(unexpected(&other)),
    }
}

/// What stands in `call` of the key, and its name in the schema.
fn key_field<'a>(call: &'a Call, schema: &Schema) -> Result<(&'a Value, String), ApiError> {
    let name = schema.key_name();
    json::field(&call.json, name).map(|value| (value, name.to_owned()))
}

/// What stands before the rows of a shard in an answer of several.
pub(super) fn section_head(name: &str, section: usize) -> Vec<u8> {
    let mut head = if section == 0 { b"{".to_vec() } else { b"],".to_vec() };
    json::write_text(name, &mut head);
    head.extend_from_slice(b":[");
    head
}

/// What stands after the last.
pub(super) fn sections_tail(count: usize) -> Vec<u8> {
    if count == 0 { b"{\"status\":\"success\"}".to_vec() } else { b"],\"status\":\"success\"}".to_vec() }
}

async fn primary(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::GET, Method::POST, Method::PUT])?;
    let call = app.call(request, fields::PRIMARY).await?;
    let named = ["shard", "Shard_id", "shard_id"].iter().find_map(|name| call.json.get(name));
    let query = call.parts.uri.query().unwrap_or_default();
    let queried = query.split('&').find_map(|pair| pair.strip_prefix("shard="));
    let shard: Box<str> = match (named, queried) {
        (Some(name), _) => json::text(name, "shard")?.into(),
        (None, Some(name)) => name.into(),
        (None, None) => return Err(ApiError::invalid("'shard' is missing")),
    };
    let change = call.method != Method::GET;
    let request = twinshard_core::request::Request::Primary { shard: shard.clone(), change };
    match app.ask(request, app.settings.request_timeout).await? {
        Reply::Primary { server, epoch } => {
            let body = json!({
                "primary_server": server,
                "primary-elect": server,
                "server_id": server,
                "shard": shard,
                "epoch": epoch.0,
                "message": "Primary server elected",
                "status": "successful",
            });
            Ok(json_response(StatusCode::OK, &body))
        }
        other => Err(unexpected(&other)),
    }
}

/// A server chosen on the ring, by its number.
async fn some_server(app: &App) -> Result<u64, ApiError> {
    // Six digits, spread by the time since the start: which server answers is no secret and decides nothing.
    let nanoseconds = app.started.elapsed().as_nanos();
    let request_id = 100_000 + u64::try_from(nanoseconds / 100 % 900_000).unwrap_or(0);
    match app.ask(twinshard_core::request::Request::PickServer { request_id }, app.settings.request_timeout).await? {
        Reply::Server { number, .. } => Ok(number),
        other => Err(unexpected(&other)),
    }
}

async fn home(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::GET])?;
    let message = format!("Hello from Server: {}", some_server(&app).await?);
    Ok(json_response(StatusCode::OK, &json!({ "message": message, "status": "successful" })))
}

/// A server's own /heartbeat: that one answers.
async fn heartbeat(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::GET])?;
    some_server(&app).await?;
    Ok(bytes_response(StatusCode::OK, Bytes::new(), "text/plain"))
}
