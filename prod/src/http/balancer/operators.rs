//! What operators ask: /move, /drain and /explain.

use super::{App, unexpected};
use crate::http::{Answer, Call, allow, error::ApiError, fields, json, json_response};
use axum::{
    extract::{Request, State},
    http::{Method, StatusCode},
};
use serde_json::{Value, json};
use twinshard_core::{
    config::Configuration,
    request::{Explanation, Health, Reply, Subject},
    value::Key,
};

fn name(call: &Call, field: &str) -> Result<Box<str>, ApiError> {
    Ok(json::text(json::field(&call.json, field)?, field)?.into())
}

/// POST /move.
pub(super) async fn move_replica(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::POST])?;
    let call = app.call(request, fields::MOVE).await?;
    let (shard, from, to) = (name(&call, "shard")?, name(&call, "from")?, name(&call, "to")?);
    let message = format!("{to} holds a replica of {shard}, and {from} holds none");
    match app.ask(twinshard_core::request::Request::Move { shard, from, to }, app.settings.admin_timeout).await? {
        Reply::Relocated { .. } => Ok(json_response(StatusCode::OK, &json!({ "message": message, "status": "successful" }))),
        other => Err(unexpected(&other)),
    }
}

/// POST /drain.
pub(super) async fn drain(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::POST])?;
    let call = app.call(request, fields::DRAIN).await?;
    let server = name(&call, "server")?;
    let message = format!("{server} holds no replica any more");
    match app.ask(twinshard_core::request::Request::Drain { server }, app.settings.admin_timeout).await? {
        Reply::Relocated { moves } => {
            let moves: Vec<Value> = moves.iter().map(|(shard, to)| json!({ "shard": shard, "to": to })).collect();
            Ok(json_response(StatusCode::OK, &json!({ "message": message, "moves": moves, "status": "successful" })))
        }
        other => Err(unexpected(&other)),
    }
}

/// GET /explain?key=2255 or ?shard=sh1; both may stand in a body, too.
pub(super) async fn explain(State(app): State<App>, request: Request) -> Answer {
    allow(&request, &[Method::GET, Method::POST])?;
    let call = app.call(request, fields::EXPLAIN).await?;
    let query = call.parts.uri.query().unwrap_or_default();
    let given = |field: &str| {
        let queried = query.split('&').filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == field);
        queried.map(|(_, value)| json!(value)).or_else(|| call.json.get(field).cloned())
    };
    let subject = match (given("key"), given("shard")) {
        (Some(key), None) => Subject::Key(json::key(&key, "key")?),
        (None, Some(shard)) => Subject::Shard(json::text(&shard, "shard")?.into()),
        (Some(_), Some(_)) | (None, None) => return Err(ApiError::invalid("give 'key' or 'shard', as in /explain?key=2255")),
    };
    let key = if let Subject::Key(key) = subject { Some(key) } else { None };
    match app.ask(twinshard_core::request::Request::Explain(subject), app.settings.request_timeout).await? {
        Reply::Explained(explanation) => Ok(json_response(StatusCode::OK, &explained(&explanation, key))),
        other => Err(unexpected(&other)),
    }
}

fn explained(explanation: &Explanation, key: Option<Key>) -> Value {
    let server = |replica| explanation.replicas.iter().find(|found| found.replica == replica).map(|found| &found.server);
    let configuration = |config: &Configuration| {
        json!({
            "epoch": config.epoch.0,
            "primary": server(config.primary),
            "members": config.members.iter().map(|member| server(*member)).collect::<Vec<_>>(),
            "write_quorum": config.write_quorum,
        })
    };
    let replicas = explanation.replicas.iter().map(|found| {
        let health = health_word(found.health);
        json!({ "server": found.server, "state": health, "in_flight": found.load_count, "is_member": found.is_member })
    });
    json!({
        "key": key.map(|key| key.0),
        "shard": explanation.shard,
        "low": explanation.range.low.0,
        "high": explanation.range.high.0,
        "epoch": explanation.current.as_ref().map(|current| current.epoch.0),
        "primary_server": explanation.primary,
        "why_primary": explanation.why_primary,
        "waits_for": explanation.waits_for,
        "read": explanation.read.as_ref().map(|(server, why)| json!({ "server": server, "why": why })),
        "replicas": replicas.collect::<Vec<_>>(),
        "current": explanation.current.as_ref().map(configuration),
        "pending": explanation.pending.as_ref().map(configuration),
        "status": "success",
    })
}

/// How a server looks, as answers say it.
pub(super) const fn health_word(health: Health) -> &'static str {
    match health {
        Health::Starting => "starting",
        Health::Up => "up",
        Health::Suspect => "suspect",
        Health::Down => "down",
        Health::Leaving => "leaving",
    }
}
