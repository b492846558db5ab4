//! What one balancer has seen of the servers: who answers, and what their replicas say. Only ever a hint; safety never depends on it.

use crate::{
    id::{Epoch, MapVersion, OwnerNumber, ReplicaId, ServerId},
    map::{ClusterMap, ReplicaStage, ServerGoal},
    message::{LeadStage, ReplicaStatus},
    request::Health,
    time::{Duration, Instant},
};
use std::collections::BTreeMap;

/// What was seen of one server.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// When it was heard of last.
    pub(crate) heard: Option<Instant>,
    /// Since when it is expected to answer: silence counts from here at the earliest.
    pub(crate) expected: Instant,
    /// Who owned its store when it was heard of last.
    pub(crate) owner: OwnerNumber,
    /// The newest map that it has.
    pub(crate) map_version: MapVersion,
    /// What its replicas said last.
    pub(crate) replicas: BTreeMap<ReplicaId, ReplicaStatus>,
    /// How it looked when health was judged last.
    pub(crate) health: Health,
    /// How often this balancer had it respawned.
    pub(crate) respawn_count: u64,
}

impl Seen {
    /// A server that is expected to answer from now on.
    pub(crate) const fn new(now: Instant) -> Self {
        Self {
            heard: None,
            expected: now,
            owner: OwnerNumber(0),
            map_version: MapVersion(0),
            replicas: BTreeMap::new(),
            health: Health::Starting,
            respawn_count: 0,
        }
    }

    /// For how long it has been silent although it was expected to answer.
    pub(crate) fn silence(&self, now: Instant) -> Duration {
        now.since(self.heard.unwrap_or(self.expected).max(self.expected))
    }
}

/// What was seen of all servers, judged by how long they were silent.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    /// By server of the map.
    pub(crate) servers: BTreeMap<ServerId, Seen>,
    suspect_after: Duration,
}

impl Observed {
    /// Nothing seen yet.
    pub(crate) const fn new(suspect_after: Duration) -> Self {
        Self { servers: BTreeMap::new(), suspect_after }
    }

    /// Whether the server answers.
    pub(crate) fn is_alive(&self, server: ServerId, now: Instant) -> bool {
        self.servers.get(&server).is_some_and(|seen| seen.heard.is_some() && seen.silence(now) < self.suspect_after)
    }

    /// For how long the server has been silent; for ever if it is not known.
    pub(crate) fn silence(&self, server: ServerId, now: Instant) -> Duration {
        self.servers.get(&server).map_or(Duration(u64::MAX), |seen| seen.silence(now))
    }

    /// What the replica said last, if its server answers.
    pub(crate) fn status(&self, map: &ClusterMap, replica: ReplicaId, now: Instant) -> Option<&ReplicaStatus> {
        let server = map.server_of(replica)?;
        if self.is_alive(server, now) { self.servers.get(&server)?.replicas.get(&replica) } else { None }
    }

    /// Whether the replica can take part: ready, on a server that answers and is not leaving by force, and not lost.
    pub(crate) fn is_usable(&self, map: &ClusterMap, replica: ReplicaId, now: Instant) -> bool {
        map.replicas.get(&replica).is_some_and(|record| record.stage == ReplicaStage::Ready)
            && self.status(map, replica, now).is_some_and(|status| status.lost.is_none())
    }

    /// A replica said how far it is in leading an epoch. That is newer than its last beat, by which a configuration that has just become
    /// active would look unled and be replaced at once, again and again.
    pub(crate) fn led(&mut self, server: ServerId, replica: ReplicaId, epoch: Epoch, stage: LeadStage) {
        let status = self.servers.get_mut(&server).and_then(|seen| seen.replicas.get_mut(&replica));
        if let Some(status) = status.filter(|status| status.promised <= epoch) {
            status.promised = epoch;
            status.lead = Some(stage);
        }
    }

    /// How far the replica is in leading that epoch, as it said last.
    pub(crate) fn lead(&self, map: &ClusterMap, replica: ReplicaId, epoch: Epoch, now: Instant) -> Option<LeadStage> {
        self.status(map, replica, now).filter(|status| status.promised == epoch && status.lost.is_none()).and_then(|status| status.lead)
    }

    /// How the server looks.
    pub(crate) fn health(&self, map: &ClusterMap, server: ServerId, replace_after: Duration, now: Instant) -> Health {
        let Some(record) = map.servers.get(&server) else { return Health::Down };
        if record.goal == ServerGoal::Leave {
            return Health::Leaving;
        }
        let Some(seen) = self.servers.get(&server) else { return Health::Starting };
        if self.is_alive(server, now) {
            Health::Up
        } else if seen.heard.is_none() && seen.respawn_count == 0 {
            Health::Starting
        } else if seen.silence(now) < replace_after && seen.health != Health::Down {
            Health::Suspect
        } else {
            Health::Down
        }
    }
}
