//! What a balancer tells of the cluster, and what it warns of (R20).

use super::{admin, drive::Drives, observed::Observed};
use crate::{
    id::{MapVersion, ReplicaId, ServerId, ShardId},
    map::{ClusterMap, ReplicaStage, ShardRecord},
    request::{ServerStatus, ShardStatus, Status, Tolerance},
    time::{Duration, Instant},
};
use std::{collections::BTreeMap, sync::Arc};

/// The state of the cluster as it was seen last.
pub(crate) fn status(
    version: MapVersion,
    map: &Arc<ClusterMap>,
    observed: &Observed,
    drives: &Drives,
    requests: &BTreeMap<ServerId, u64>,
    replace_after: Duration,
    now: Instant,
) -> Status {
    let servers = map
        .servers
        .keys()
        .map(|id| {
            let seen = observed.servers.get(id);
            let status = ServerStatus {
                health: observed.health(map, *id, replace_after, now),
                silence: seen.and_then(|seen| seen.heard).map(|heard| now.since(heard)),
                replicas: seen.map(|seen| seen.replicas.values().cloned().collect()).unwrap_or_default(),
                respawn_count: seen.map_or(0, |seen| seen.respawn_count),
                request_count: requests.get(id).copied().unwrap_or(0),
            };
            (*id, status)
        })
        .collect();
    let shards = map.shards.iter().map(|(id, record)| (*id, shard(map, *id, record, observed, drives, now))).collect();
    Status { version, map: Arc::clone(map), servers, shards, warnings: Vec::new() }
}

fn shard(map: &ClusterMap, id: ShardId, record: &ShardRecord, observed: &Observed, drives: &Drives, now: Instant) -> ShardStatus {
    let primary = admin::primary_server(map, observed, id, now);
    let replicas = map
        .replicas
        .iter()
        .filter(|(_, replica)| replica.shard == id)
        .map(|(id, replica)| (*id, (replica.stage, replica.server)))
        .collect();
    let mut warnings: Vec<Box<str>> = Vec::new();
    let mut tolerance = Tolerance::default();
    if let Some(current) = &record.current {
        let alive = current.members.iter().filter(|member| observed.is_usable(map, **member, now)).count();
        let spare = |needed: usize| u32::try_from(alive.saturating_sub(needed)).unwrap_or(u32::MAX);
        tolerance = Tolerance {
            write: spare(current.write_quorum as usize),
            // A read round needs as many confirmations as a write needs acknowledgements.
            read: spare(current.write_quorum as usize),
            seal: spare(current.seal_quorum()),
        };
        let unreached = observed.unreached(map, current.primary, current.epoch, now).len();
        if unreached > 0 {
            warnings.push(format!("its primary does not reach {unreached} of {} members", current.members.len()).into());
        }
        let away = |member: &&ReplicaId| observed.status(map, **member, now).is_some_and(|status| status.store_away);
        for member in current.members.iter().filter(away) {
            let name =
                map.server_of(*member).and_then(|server| map.servers.get(&server)).map(|record| record.name.clone()).unwrap_or_default();
            warnings.push(format!("the row store of {name} does not answer").into());
        }
        if alive < current.seal_quorum() {
            warnings.push(
                format!(
                    "{alive} of {} members answer; {} are needed to go on: bring servers back",
                    current.members.len(),
                    current.seal_quorum()
                )
                .into(),
            );
        } else if alive < current.write_quorum as usize {
            warnings.push(format!("{alive} of {} members answer: no writes until it is reconfigured", current.members.len()).into());
        } else if tolerance.write == 0 && current.members.len() > 1 {
            warnings.push("any failure stops writing until it is reconfigured".into());
        }
        if current.members.len() == 1 {
            warnings.push("one replica: its loss is the loss of the data".into());
        }
        if current.members.len() < record.placement.len() {
            let ready = record.placement.len() - current.members.len();
            warnings.push(format!("{ready} of {} replicas are being brought up", record.placement.len()).into());
        }
    } else {
        let ready = map.replicas.values().filter(|replica| replica.shard == id && replica.stage == ReplicaStage::Ready).count();
        warnings.push(format!("being created: {ready} of {} replicas are ready", record.placement.len()).into());
    }
    if record.pending.is_some() {
        warnings.push("being reconfigured".into());
        if drives.waits_for_source(id) {
            warnings.push("waits for the replica with the newest log to serve it".into());
        }
    } else if primary.is_none() && record.current.is_some() {
        warnings.push("no primary".into());
    }
    ShardStatus { primary, current: record.current.clone(), pending: record.pending.clone(), replicas, tolerance, warnings }
}
