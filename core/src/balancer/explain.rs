//! Why a shard stands as it does: what the planner goes by, in words for people. Decides nothing.

use super::{admin, drive::Drives, observed::Observed, reasons::Reasons, relocate};
use crate::{
    config::Configuration,
    id::{ReplicaId, ServerId, ShardId},
    map::{ClusterMap, ReplicaStage, ShardRecord},
    message::LeadStage,
    reason::Reason,
    request::{Explanation, ReplicaExplained},
    time::{Duration, Instant},
};

/// What is explained from, besides the map.
pub(crate) struct Seen<'a> {
    pub(crate) observed: &'a Observed,
    pub(crate) drives: &'a Drives,
    pub(crate) reasons: &'a Reasons,
    pub(crate) replace_after: Duration,
    pub(crate) now: Instant,
}

impl Seen<'_> {
    fn name(&self, map: &ClusterMap, replica: ReplicaId) -> Box<str> {
        server_name(map, map.server_of(replica))
    }

    /// When a server that does not answer was heard of last, in words.
    fn heard(&self, server: ServerId) -> String {
        match self.observed.servers.get(&server).and_then(|seen| seen.heard) {
            Some(heard) => format!("was heard of {} ms ago", self.now.since(heard).as_millis()),
            None => "was never heard of by this balancer".to_owned(),
        }
    }

    /// What is known of the server of a replica, in words.
    fn looks(&self, map: &ClusterMap, replica: ReplicaId) -> String {
        let Some(server) = map.server_of(replica) else { return "its server is gone".to_owned() };
        match self.observed.status(map, replica, self.now) {
            None => format!("its server {}", self.heard(server)),
            Some(status) if status.lost.is_some() => "it is lost".to_owned(),
            Some(status) => format!("it answers, and its log ends at {}", status.last),
        }
    }
}

fn server_name(map: &ClusterMap, server: Option<ServerId>) -> Box<str> {
    server.and_then(|server| map.servers.get(&server)).map_or_else(|| "?".into(), |record| record.name.clone())
}

/// The explanation, but for where a read goes: the router knows that, and how many requests each server has not answered.
pub(crate) fn explain(map: &ClusterMap, shard: ShardId, seen: &Seen<'_>, load_count: impl Fn(ServerId) -> u32) -> Option<Explanation> {
    let record = map.shards.get(&shard)?;
    let primary = admin::primary_server(map, seen.observed, shard, seen.now);
    let replicas = map.replicas.iter().filter(|(_, replica)| replica.shard == shard && replica.stage != ReplicaStage::Retired);
    let replicas = replicas.map(|(id, replica)| ReplicaExplained {
        replica: *id,
        server: server_name(map, Some(replica.server)),
        health: seen.observed.health(map, replica.server, seen.replace_after, seen.now),
        load_count: load_count(replica.server),
        is_member: record.current.as_ref().is_some_and(|current| current.has(*id)),
    });
    Some(Explanation {
        shard: record.name.clone(),
        range: record.range(),
        current: record.current.clone(),
        pending: record.pending.clone(),
        primary: primary.map(|server| server_name(map, Some(server))),
        why_primary: why_primary(map, shard, record, primary.is_some(), seen).into_iter().map(Into::into).collect(),
        waits_for: waits_for(map, shard, record, seen).into_iter().map(Into::into).collect(),
        replicas: replicas.collect(),
        read: None,
    })
}

fn why_primary(map: &ClusterMap, shard: ShardId, record: &ShardRecord, serves: bool, seen: &Seen<'_>) -> Vec<String> {
    let Some(current) = &record.current else { return vec!["it has never served: its first configuration is not active yet".to_owned()] };
    let (epoch, name) = (current.epoch, seen.name(map, current.primary));
    let mut why = Vec::new();
    if serves {
        why.push(format!(
            "{name} leads epoch {}, and stays as long as it answers and reaches {} of {} members",
            epoch.0,
            current.write_quorum,
            current.members.len()
        ));
    } else {
        why.push(format!("{name} is the primary of epoch {} and does not serve: {}", epoch.0, seen.looks(map, current.primary)));
        match seen.observed.lead(map, current.primary, epoch, seen.now) {
            Some(LeadStage::Lame) => why.push(format!("{name} was restarted: it may not lead an epoch that it had promised before")),
            Some(LeadStage::Installing | LeadStage::Installed) => why.push(format!("{name} has not been told yet that it is active")),
            Some(LeadStage::SourceFailed) => why.push(format!("{name} could not fetch the log that it is to begin with")),
            Some(LeadStage::Active) | None => {}
        }
    }
    why.push(match seen.reasons.of(shard, current) {
        Some(Reason { cause, choice }) => format!("epoch {} was proposed as {cause}, with {name} to lead it as {choice}", epoch.0),
        None => format!("epoch {} was proposed by another balancer, or in an earlier life of this one: it does not know why", epoch.0),
    });
    if let Some(wanted) = record.wanted_primary {
        why.push(format!("an operator asked for {} to lead", server_name(map, Some(wanted))));
    }
    let unreached = seen.observed.unreached(map, current.primary, epoch, seen.now);
    if !unreached.is_empty() {
        let names: Vec<Box<str>> = unreached.iter().map(|id| seen.name(map, *id)).collect();
        why.push(format!("{name} does not reach {}", names.join(", ")));
    }
    if seen.observed.status(map, current.primary, seen.now).is_some_and(|status| status.store_away) {
        why.push(format!("the row store of {name} does not answer: another leads as soon as one can"));
    }
    why
}

fn waits_for(map: &ClusterMap, shard: ShardId, record: &ShardRecord, seen: &Seen<'_>) -> Vec<String> {
    let mut waits = Vec::new();
    for server in &record.placement {
        let name = server_name(map, Some(*server));
        let replica = map
            .replicas
            .iter()
            .find(|(_, replica)| replica.shard == shard && replica.server == *server && replica.stage != ReplicaStage::Retired);
        if !seen.observed.is_alive(*server, seen.now) {
            waits.push(format!("{name} to answer: it {}", seen.heard(*server)));
        } else if replica.is_none_or(|(_, replica)| replica.stage == ReplicaStage::Minted) {
            waits.push(format!("{name} to create its replica"));
        }
    }
    if let Some(current) = &record.current {
        waits.extend(learners(map, current, seen));
        let usable = current.members.iter().filter(|member| seen.observed.is_usable(map, **member, seen.now)).count();
        if usable < current.seal_quorum() {
            waits.push(format!(
                "{} of its {} members to answer: without {} of them nothing can be changed, as the others may lack what was acknowledged",
                current.seal_quorum() - usable,
                current.members.len(),
                current.seal_quorum()
            ));
        }
        for name in relocate::leaving(map, shard) {
            waits.push(format!("the replicas where it is to be: then the one of {name} goes"));
        }
    }
    if let Some(pending) = &record.pending {
        waits.extend(proposal(map, shard, record, pending, seen));
    }
    waits
}

/// Replicas that are not members yet.
fn learners(map: &ClusterMap, current: &Configuration, seen: &Seen<'_>) -> Vec<String> {
    let Some(status) = seen.observed.status(map, current.primary, seen.now) else { return Vec::new() };
    let behind = status.learners.iter().filter(|(_, _, caught_up)| !caught_up);
    behind
        .map(|(id, index, _)| {
            let left = status.last.index.0.saturating_sub(index.0);
            format!("the replica of {} to catch up: {left} entries behind", seen.name(map, *id))
        })
        .collect()
}

/// The proposed configuration.
fn proposal(map: &ClusterMap, shard: ShardId, record: &ShardRecord, pending: &Configuration, seen: &Seen<'_>) -> Vec<String> {
    let epoch = pending.epoch;
    let name = seen.name(map, pending.primary);
    let why = seen.reasons.of(shard, pending).map_or_else(String::new, |reason| format!("; it was proposed as {}", reason.cause));
    let mut waits = vec![format!("epoch {} to be active, led by {name}{why}", epoch.0)];
    if let Some(current) = &record.current {
        let silent: Vec<Box<str>> = current
            .members
            .iter()
            .filter(|member| seen.observed.status(map, **member, seen.now).is_none_or(|status| status.promised < epoch))
            .map(|member| seen.name(map, *member))
            .collect();
        let promised = current.members.len() - silent.len();
        if promised < current.seal_quorum() {
            waits.push(format!("{} more promises of its members; {} gave none", current.seal_quorum() - promised, silent.join(", ")));
        }
    }
    match seen.observed.lead(map, pending.primary, epoch, seen.now) {
        None => waits.push(format!("{name} to begin: {}", seen.looks(map, pending.primary))),
        Some(LeadStage::Installing) if seen.drives.waits_for_source(shard) => {
            waits.push("the replica with the newest log to serve it".to_owned());
        }
        Some(LeadStage::Installing) => {
            waits.push(format!("{} of {} members to have the log of {name}", pending.install_quorum(), pending.members.len()));
        }
        Some(LeadStage::Installed) => waits.push("the register to take it".to_owned()),
        Some(LeadStage::Active) => {}
        Some(LeadStage::Lame | LeadStage::SourceFailed) => waits.push("another proposal: this one cannot be finished".to_owned()),
    }
    waits
}
