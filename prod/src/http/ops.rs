//! What operators and their tools ask of any node: is it alive, is it ready, what has it counted, what has it seen and done.

use super::{Answer, allow, bytes_response, error::ApiError, json_response};
use crate::{
    handle::{Failing, Handle},
    shown,
    telemetry::{Event, Measured, Telemetry, kind},
};
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{Method, StatusCode, header},
    response::IntoResponse,
    routing::any,
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc};
use tokio::time::Instant;
use twinshard_core::{
    config::Configuration,
    effect::Note,
    id::{ReplicaId, ServerId, ShardId},
    map::ClusterMap,
    reason::Reason,
};

/// The type of the OpenMetrics text format, which Prometheus takes.
pub(super) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What every node answers in the same way.
pub(super) struct Ops<Q, A> {
    handle: Handle<Q, A>,
    document: Arc<Value>,
}

impl<Q, A> Clone for Ops<Q, A> {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone(), document: Arc::clone(&self.document) }
    }
}

/// Its router.
pub(super) fn router<Q, A>(handle: Handle<Q, A>, document: Value) -> Router
where
    Q: Send + 'static,
    A: Failing + Send + 'static,
{
    Router::new()
        .route("/healthz", any(alive::<Q, A>))
        .route("/events", any(events::<Q, A>))
        .route("/openapi.json", any(openapi::<Q, A>))
        .with_state(Ops { handle, document: Arc::new(document) })
}

/// /healthz: whether the node's own task runs.
async fn alive<Q, A: Failing>(State(ops): State<Ops<Q, A>>, request: Request) -> Answer {
    allow(&request, &[Method::GET])?;
    if ops.handle.load().0 {
        return Ok(json_response(StatusCode::OK, &json!({ "message": "alive", "status": "success" })));
    }
    Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "stopped", "The node has stopped"))
}

/// The answer to /readyz: whether the node can do now what it is there for, or why not.
pub(super) fn ready<Q, A: Failing>(handle: &Handle<Q, A>, trouble: Option<String>) -> Answer {
    let trouble = if handle.telemetry().stops() {
        Some("The node is told to stop".to_owned())
    } else if !handle.load().0 {
        Some("The node has stopped".to_owned())
    } else if handle.map().is_none() {
        Some("The node has not read the cluster map yet".to_owned())
    } else {
        trouble
    };
    match trouble {
        None => Ok(json_response(StatusCode::OK, &json!({ "message": "ready", "status": "success" }))),
        Some(words) => Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", words)),
    }
}

/// /openapi.json.
async fn openapi<Q, A>(State(ops): State<Ops<Q, A>>, request: Request) -> Answer {
    allow(&request, &[Method::GET])?;
    Ok(json_response(StatusCode::OK, &ops.document))
}

/// /metrics.
pub(super) fn metrics(telemetry: &Telemetry, now: Measured) -> Answer {
    Ok(([(header::CONTENT_TYPE, OPEN_METRICS)], Body::from(telemetry.text(now))).into_response())
}

/// /events?after=NUMBER: the notes with higher numbers, oldest first. With &machine=true also as the machines have them, with the map.
async fn events<Q, A: Failing>(State(ops): State<Ops<Q, A>>, request: Request) -> Answer {
    allow(&request, &[Method::GET])?;
    let (telemetry, map) = (ops.handle.telemetry(), ops.handle.map().map(|(_, map)| map));
    let (map, uri) = (map.as_deref(), request.uri());
    let after = uri.query().unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("after="));
    let after = match after {
        None => 0,
        Some(number) => number.parse().map_err(|_| ApiError::invalid("'after' is the number of an event"))?,
    };
    let now = Instant::now();
    // All of them, since what a configuration changed is told by the one before it.
    let noted = telemetry.events_after(0);
    let events = described(&noted, &map.cloned().unwrap_or_default(), now);
    let last = events.last().map_or(0, |(number, _)| *number);
    let mut events: Vec<(u64, Value)> = events.into_iter().filter(|(number, _)| *number > after).collect();
    let for_machines = uri.query().unwrap_or_default().split('&').any(|pair| pair == "machine=true");
    let failed = |error: serde_json::Error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string());
    if for_machines {
        for ((_, value), event) in events.iter_mut().zip(noted.iter().filter(|event| event.number > after)) {
            value["note"] = serde_json::to_value(&event.note).map_err(failed)?;
        }
    }
    let events = events.into_iter().map(|(_, event)| event).collect();
    let answer = Events { events, last, status: "success", map: map.filter(|_| for_machines) };
    Ok(bytes_response(StatusCode::OK, serde_json::to_vec(&answer).map_err(failed)?.into(), "application/json"))
}

/// The answer to /events.
#[derive(Serialize)]
struct Events<'a> {
    events: Vec<Value>,
    last: u64,
    status: &'static str,
    /// Not as a value, which has no numbers as large as a cluster's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    map: Option<&'a ClusterMap>,
}

/// Events for people and tools, with the names that the map has for what they speak of.
fn described(events: &[Event], map: &ClusterMap, now: Instant) -> Vec<(u64, Value)> {
    // Servers that were removed had a name, too.
    let removed = events.iter().filter_map(|event| match &event.note {
        Note::Removed { server, name } => Some((*server, &**name)),
        _ => None,
    });
    let kept = map.servers.iter().map(|(server, record)| (*server, &*record.name));
    let names: BTreeMap<ServerId, &str> = removed.chain(kept).collect();
    // And replicas that are gone had a server.
    let gone = events.iter().filter_map(|event| match &event.note {
        Note::Minted { replica, server, .. } | Note::Retired { replica, server, .. } => Some((*replica, *server)),
        _ => None,
    });
    let homes: BTreeMap<ReplicaId, ServerId> = gone.chain(map.replicas.iter().map(|(id, record)| (*id, record.server))).collect();
    let mut led: BTreeMap<ShardId, Configuration> = BTreeMap::new();
    let mut described = Vec::new();
    for event in events {
        let (text, facts) = describe(&event.note, map, (&names, &homes), &led);
        let mut value = json!({
            "number": event.number,
            "ago_ms": u64::try_from(now.saturating_duration_since(event.at).as_millis()).unwrap_or(u64::MAX),
            "kind": kind(&event.note),
            "text": shown::line(&text),
        });
        for (name, fact) in facts {
            value[name] = fact;
        }
        described.push((event.number, value));
        if let Note::Activated { shard, config } = &event.note {
            led.insert(*shard, config.clone());
        }
    }
    described
}

type Facts = Vec<(&'static str, Value)>;

fn describe(
    note: &Note,
    map: &ClusterMap,
    (names, homes): (&BTreeMap<ServerId, &str>, &BTreeMap<ReplicaId, ServerId>),
    led: &BTreeMap<ShardId, Configuration>,
) -> (String, Facts) {
    let name = |server: ServerId| names.get(&server).map_or_else(|| server.to_string(), ToString::to_string);
    let shard_name = |shard: ShardId| map.shards.get(&shard).map_or_else(|| shard.to_string(), |record| record.name.to_string());
    let of_server = |server: ServerId, words: &str| (format!("{} {words}", name(server)), vec![("server", json!(name(server)))]);
    let home = |replica: ReplicaId| homes.get(&replica).map_or_else(|| replica.to_string(), |server| name(*server));
    match note {
        Note::Suspected { server } => of_server(*server, "does not answer"),
        Note::DiskWentBack { server } => {
            of_server(*server, "has an older disk than before: its replicas are lost and made anew from others")
        }
        Note::Recovered { server } => of_server(*server, "answers again"),
        Note::Respawning { server } => of_server(*server, "is taken for dead and started again"),
        Note::Restarted { server } => of_server(*server, "runs anew"),
        Note::Started { server } => of_server(*server, "was started"),
        Note::ProvisionFailed { server, reason } => {
            let (text, mut facts) = of_server(*server, "could not be started or stopped");
            facts.push(("reason", json!(reason)));
            (format!("{text}: {reason}"), facts)
        }
        Note::Stopped { server } => of_server(*server, "was stopped for good"),
        Note::Removed { server, .. } => of_server(*server, "has left the cluster"),
        Note::Minted { shard, server, .. } => {
            let facts = vec![("shard", json!(shard_name(*shard))), ("server", json!(name(*server)))];
            (format!("{} is to hold a new replica of {}", name(*server), shard_name(*shard)), facts)
        }
        Note::Retired { shard, server, lost, .. } => {
            let why = lost.map_or_else(|| "not wanted there any more".to_owned(), |reason| format!("lost there: {reason:?}"));
            let facts = vec![("shard", json!(shard_name(*shard))), ("server", json!(name(*server))), ("reason", json!(why))];
            (format!("the replica of {} on {} is given up: it is {why}", shard_name(*shard), name(*server)), facts)
        }
        Note::GivenUp { anew, replicas, .. } => {
            let shard = shard_name(*anew);
            let facts = vec![("shard", json!(shard)), ("replicas", json!(replicas.iter().map(|id| id.0).collect::<Vec<_>>()))];
            let text = format!(
                "{shard} begins anew, empty: too few of its replicas were left, and an operator had accepted that what was acknowledged is \
                 lost; their servers keep what they have of them"
            );
            (text, facts)
        }
        Note::Proposed { shard, config, reason } => {
            let (text, facts) = configuration("is proposed", config, &shard_name(*shard), led.get(shard), &home);
            told_why(text, facts, *reason)
        }
        Note::Activated { shard, config } => configuration("is active", config, &shard_name(*shard), None, &home),
        Note::Lost { replica, reason } => {
            let shard = map.replicas.get(replica).and_then(|record| map.shards.get(&record.shard));
            let shard = shard.map_or_else(String::new, |record| format!(" of {}", record.name));
            let text = format!("the replica{shard} on {} is lost: {reason:?}", home(*replica));
            (text, vec![("replica", json!(replica.0)), ("reason", json!(format!("{reason:?}")))])
        }
        Note::RegisterWentBack { told, found } => {
            let text = format!("the metadata register went back from {told} to {found}: this balancer changes nothing any more");
            (text, vec![("told", json!(told.0)), ("found", json!(found.0))])
        }
        Note::Leads { replica, shard, epoch } => {
            let facts = vec![("shard", json!(shard_name(*shard))), ("epoch", json!(epoch.0)), ("primary", json!(home(*replica)))];
            (format!("{}: {} leads epoch {}", shard_name(*shard), home(*replica), epoch.0), facts)
        }
        Note::Granted { request } => (format!("an operator asked for {request}: it is wanted now"), vec![("request", json!(request))]),
        Note::Refused { request, reason } => {
            let facts = vec![("request", json!(request)), ("reason", json!(reason))];
            (format!("an operator asked for {request}: refused, as {reason}"), facts)
        }
        Note::Controlling { from: None } => ("this balancer controls the cluster: no other did".to_owned(), vec![]),
        Note::Controlling { from: Some(from) } => (
            format!("this balancer controls the cluster: {from}, which did, gave no sign of life"),
            vec![("from", json!(from.to_string()))],
        ),
        Note::Ceded { to } => {
            let to = to.map_or_else(|| "none".to_owned(), |to| to.to_string());
            (format!("this balancer does not control the cluster any more: {to} does"), vec![("to", json!(to))])
        }
        Note::Dropped { reason } => (format!("a message was dropped: {reason}"), vec![("reason", json!(reason))]),
    }
}

/// What is told of a configuration, by what it changes where the one before is known.
fn configuration(
    what: &str,
    config: &Configuration,
    shard: &str,
    before: Option<&Configuration>,
    home: &dyn Fn(ReplicaId) -> String,
) -> (String, Facts) {
    let members: Vec<String> = config.members.iter().map(|member| home(*member)).collect();
    let mut text = format!("{shard}: epoch {} {what}: {} leads", config.epoch.0, home(config.primary));
    if let Some(before) = before {
        if before.primary != config.primary {
            text.push_str(&format!(" in place of {}", home(before.primary)));
        }
        for (word, one, other) in [("without", before, config), ("with", config, before)] {
            let changed: Vec<String> = one.members.iter().filter(|member| !other.has(**member)).map(|member| home(*member)).collect();
            if !changed.is_empty() {
                text.push_str(&format!(", {word} {}", changed.join(" and ")));
            }
        }
    } else {
        text.push_str(&format!(", members {}, {} of them have to have a write", members.join(", "), config.write_quorum));
    }
    let facts = vec![
        ("shard", json!(shard)),
        ("epoch", json!(config.epoch.0)),
        ("primary", json!(home(config.primary))),
        ("members", json!(members)),
        ("write_quorum", json!(config.write_quorum)),
    ];
    (text, facts)
}

/// Why it was proposed, and why its primary, where this balancer did it.
fn told_why(mut text: String, mut facts: Facts, reason: Option<Reason>) -> (String, Facts) {
    if let Some(Reason { cause, choice }) = reason {
        text.push_str(&format!("; because {cause}; its primary because {choice}"));
        facts.extend([("why", json!(cause.to_string())), ("why_primary", json!(choice.to_string()))]);
    }
    (text, facts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, time::Duration};
    use twinshard_core::{
        id::{BalancerId, Epoch},
        map::{ReplicaRecord, ReplicaStage, ServerGoal, ServerRecord, ShardRecord},
        reason::{Cause, Choice},
        storage::LostReason,
        value::Key,
    };

    #[tokio::test(start_paused = true)]
    async fn events_are_told_with_names_and_with_what_changed() {
        let mut map = ClusterMap::default();
        for number in 1..=4 {
            let server = ServerId(number);
            map.servers.insert(
                server,
                ServerRecord { name: format!("Server{number}").into(), number, goal: ServerGoal::Run, address: None, incarnation: None },
            );
            let replica = ReplicaRecord { shard: ShardId(1), server, stage: ReplicaStage::Ready };
            map.replicas.insert(ReplicaId(number), replica);
        }
        map.shards.insert(
            ShardId(1),
            ShardRecord {
                name: "sh1".into(),
                low: Key(0),
                size: 1,
                current: None,
                pending: None,
                placement: BTreeSet::new(),
                wanted_primary: None,
            },
        );
        // It was given up since.
        map.replicas.remove(&ReplicaId(3));
        let telemetry = Telemetry::default();
        let config = |epoch, primary, members: &[u64]| Configuration {
            epoch: Epoch(epoch),
            primary: ReplicaId(primary),
            members: members.iter().copied().map(ReplicaId).collect(),
            write_quorum: 2,
        };
        telemetry.noted(&Note::Activated { shard: ShardId(1), config: config(1, 1, &[1, 2, 3]) });
        telemetry.noted(&Note::Suspected { server: ServerId(1) });
        let reason = Some(Reason { cause: Cause::PrimarySilent, choice: Choice::NewestLog });
        telemetry.noted(&Note::Proposed { shard: ShardId(1), config: config(2, 2, &[2, 3, 4]), reason });
        telemetry.noted(&Note::Proposed { shard: ShardId(1), config: config(3, 1, &[1, 2, 3]), reason: None });
        telemetry.noted(&Note::Suspected { server: ServerId(9) });
        telemetry.noted(&Note::Suspected { server: ServerId(8) });
        telemetry.noted(&Note::Removed { server: ServerId(8), name: "Gone".into() });
        let replica = Note::Retired { replica: ReplicaId(3), shard: ShardId(1), server: ServerId(3), lost: Some(LostReason::RowsMissing) };
        telemetry.noted(&replica);
        telemetry.noted(&Note::Refused { request: "/drain of Server9".into(), reason: "Server 'Server9' does not exist".into() });
        telemetry.noted(&Note::Controlling { from: Some(BalancerId(3)) });
        tokio::time::advance(Duration::from_millis(1_500)).await;
        let described = described(&telemetry.events_after(0), &map, Instant::now());
        let texts: Vec<&str> = described.iter().map(|(_, event)| event["text"].as_str().expect("a text")).collect();
        assert_eq!(
            texts,
            [
                "sh1: epoch 1 is active: Server1 leads, members Server1, Server2, Server3, 2 of them have to have a write",
                "Server1 does not answer",
                "sh1: epoch 2 is proposed: Server2 leads in place of Server1, without Server1, with Server4; because the primary does not \
                 answer; its primary because it has the newest log of those that can lead",
                "sh1: epoch 3 is proposed: Server1 leads",
                "s9 does not answer",
                "Gone does not answer",
                "Gone has left the cluster",
                "the replica of sh1 on Server3 is given up: it is lost there: RowsMissing",
                "an operator asked for /drain of Server9: refused, as Server 'Server9' does not exist",
                "this balancer controls the cluster: b3, which did, gave no sign of life",
            ]
        );
        assert_eq!(described[1].1["ago_ms"], json!(1_500));
        assert_eq!(described[2].1["members"], json!(["Server2", "Server3", "Server4"]));
        assert_eq!(described[2].1["why"], "the primary does not answer");
    }
}
