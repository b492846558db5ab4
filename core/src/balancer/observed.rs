//! What one balancer has seen of the servers: who answers, and what their replicas say. Only ever a hint; safety never depends on it.

use crate::{
    id::{Epoch, Incarnation, MapVersion, ReplicaId, ServerId},
    map::{ClusterMap, ReplicaStage, ServerGoal},
    message::{LeadStage, ReplicaStatus},
    request::Health,
    time::{Duration, Instant},
};
use std::collections::BTreeMap;

/// The most doublings of the patience with a server that was started and does not answer.
const DOUBLINGS_MAX: u32 = 5;
/// After so many starts of which nothing was heard a server is taken for dead while it is started once more.
const STARTS_IN_VAIN: u32 = 2;

/// What was seen of one server.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// When it was heard of last.
    pub(crate) heard: Option<Instant>,
    /// Since when this balancer knows of it.
    known: Instant,
    /// Since when it is expected to answer: silence counts from here at the earliest.
    pub(crate) expected: Instant,
    /// The last heartbeat that it answered: what it said before is older.
    beat: u64,
    /// Which life of it was heard of last.
    pub(crate) incarnation: Option<Incarnation>,
    /// The life that its disk has seen and its newest map shows as recorded.
    pub(crate) follows: Option<Incarnation>,
    /// How many operations on the register had begun when that life was first heard of.
    incarnation_at: u64,
    /// Whether the map that is known was shown by an operation begun after that (R17).
    incarnation_read: bool,
    /// The newest map that it has.
    pub(crate) map_version: MapVersion,
    /// What its replicas said last.
    pub(crate) replicas: BTreeMap<ReplicaId, ReplicaStatus>,
    /// How it looked when health was judged last.
    pub(crate) health: Health,
    /// How often this balancer saw it run anew.
    pub(crate) respawn_count: u64,
    /// How often it was started and then not heard of.
    pub(crate) unheard_starts: u32,
    /// Its process was stopped or replaced since it was heard of last: what ran then runs no more.
    pub(crate) is_fenced: bool,
}

/// What a beat told of the server itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// The one that is known.
    Same,
    /// The first that is heard of.
    First,
    /// Another: the server runs anew.
    Another,
}

impl Seen {
    /// A server that is expected to answer from now on.
    pub(crate) const fn new(now: Instant) -> Self {
        Self {
            heard: None,
            known: now,
            expected: now,
            beat: 0,
            incarnation: None,
            follows: None,
            incarnation_at: 0,
            incarnation_read: false,
            map_version: MapVersion(0),
            replicas: BTreeMap::new(),
            health: Health::Starting,
            respawn_count: 0,
            unheard_starts: 0,
            is_fenced: false,
        }
    }
}

/// A beat as it came.
#[derive(Debug)]
pub(crate) struct Beat {
    pub(crate) beat: u64,
    pub(crate) incarnation: Incarnation,
    pub(crate) follows: Option<Incarnation>,
    pub(crate) map_version: MapVersion,
    pub(crate) replicas: Vec<ReplicaStatus>,
}

/// What was seen of all servers, judged by how long they were silent.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    /// By server of the map.
    pub(crate) servers: BTreeMap<ServerId, Seen>,
    suspect_after: Duration,
    replace_after: Duration,
    /// When this balancer woke from a pause: what it did not hear before is its own fault.
    resumed: Instant,
}

impl Observed {
    /// Nothing seen yet.
    pub(crate) const fn new(suspect_after: Duration, replace_after: Duration) -> Self {
        Self { servers: BTreeMap::new(), suspect_after, replace_after, resumed: Instant(0) }
    }

    /// This balancer did not run for a while. All silence begins anew.
    pub(crate) const fn resume(&mut self, now: Instant) {
        self.resumed = now;
    }

    /// Takes a beat; `None` if it is older than what is known, or of a server that is not.
    pub(crate) fn heard(&mut self, now: Instant, from: ServerId, beat: Beat, operations_begun: u64) -> Option<Life> {
        let seen = self.servers.get_mut(&from).filter(|seen| seen.beat <= beat.beat)?;
        seen.heard = Some(now);
        seen.beat = beat.beat;
        seen.unheard_starts = 0;
        seen.follows = beat.follows;
        seen.is_fenced = false;
        seen.map_version = beat.map_version;
        seen.replicas = beat.replicas.into_iter().map(|status| (status.replica, status)).collect();
        let life = match seen.incarnation {
            Some(known) if known == beat.incarnation => Life::Same,
            Some(_) => Life::Another,
            None => Life::First,
        };
        if life != Life::Same {
            seen.incarnation = Some(beat.incarnation);
            seen.incarnation_at = operations_begun;
            seen.incarnation_read = false;
        }
        Some(life)
    }

    /// The map that is known was shown by that operation on the register.
    pub(crate) fn confirm(&mut self, operation: u64) {
        for seen in self.servers.values_mut() {
            seen.incarnation_read |= seen.incarnation_at < operation;
        }
    }

    /// Which life of the server answers, if the map was read since that was first heard (R17): an older map may have a replica as minted that
    /// was created long ago, on a disk that is lost.
    pub(crate) fn incarnation(&self, server: ServerId) -> Option<Incarnation> {
        self.servers.get(&server).filter(|seen| seen.incarnation_read)?.incarnation
    }

    /// Whether the server answers.
    pub(crate) fn is_alive(&self, server: ServerId, now: Instant) -> bool {
        self.servers
            .get(&server)
            .is_some_and(|seen| seen.heard.is_some_and(|heard| heard >= seen.expected) && self.silence_of(seen, now) < self.suspect_after)
    }

    fn silence_of(&self, seen: &Seen, now: Instant) -> Duration {
        now.since(seen.heard.unwrap_or(seen.expected).max(seen.expected).max(self.resumed))
    }

    /// For how long the server has been silent although it was expected to answer; for ever if it is not known. What it takes to start one.
    pub(crate) fn silence(&self, server: ServerId, now: Instant) -> Duration {
        self.servers.get(&server).map_or(Duration(u64::MAX), |seen| self.silence_of(seen, now))
    }

    /// The silence after which a server is taken for dead. One that was started and not heard of may need longer to open its stores.
    pub(crate) fn patience(&self, server: ServerId) -> Duration {
        let unheard = self.servers.get(&server).map_or(0, |seen| seen.unheard_starts);
        self.replace_after.times(1 << unheard.min(DOUBLINGS_MAX))
    }

    /// Whether the server is to be started anew: it was silent for longer than it may.
    pub(crate) fn is_overdue(&self, server: ServerId, now: Instant) -> bool {
        self.silence(server, now) > self.patience(server)
    }

    /// Whether the server is taken for dead. One that was started twice in vain is, until it is heard, though each start is waited for.
    pub(crate) fn is_down(&self, server: ServerId, now: Instant) -> bool {
        self.is_overdue(server, now) || self.servers.get(&server).is_some_and(|seen| seen.unheard_starts >= STARTS_IN_VAIN)
    }

    /// Nothing is known any more of what runs: another may have controlled meanwhile.
    pub(crate) fn unfence(&mut self) {
        self.servers.values_mut().for_each(|seen| seen.is_fenced = false);
    }

    /// Whether the server is taken for dead and does not run, as far as the provisioner can tell. Only who controls ever knows that.
    pub(crate) fn is_gone(&self, server: ServerId, now: Instant) -> bool {
        self.is_down(server, now) && self.servers.get(&server).is_none_or(|seen| seen.is_fenced)
    }

    /// For how long nothing was heard of the server, even if it is just being started: its clients wait all the same.
    pub(crate) fn quiet(&self, server: ServerId, now: Instant) -> Duration {
        self.servers.get(&server).map_or(Duration(u64::MAX), |seen| now.since(seen.heard.unwrap_or(seen.known).max(self.resumed)))
    }

    /// What the replica said last, if its server answers.
    pub(crate) fn status(&self, map: &ClusterMap, replica: ReplicaId, now: Instant) -> Option<&ReplicaStatus> {
        let server = map.server_of(replica)?;
        if self.is_alive(server, now) { self.servers.get(&server)?.replicas.get(&replica) } else { None }
    }

    /// Whether the life of the server that answers is the one that the register knows (R26): no other one takes part in anything.
    pub(crate) fn is_recorded(&self, map: &ClusterMap, server: ServerId) -> bool {
        let seen = self.servers.get(&server).and_then(|seen| seen.incarnation);
        seen.is_some() && map.servers.get(&server).is_some_and(|record| record.incarnation == seen)
    }

    /// Whether the replica can take part: ready, on a server that answers, is recorded and is not leaving by force, and not lost.
    pub(crate) fn is_usable(&self, map: &ClusterMap, replica: ReplicaId, now: Instant) -> bool {
        map.replicas.get(&replica).is_some_and(|record| record.stage == ReplicaStage::Ready && self.is_recorded(map, record.server))
            && self.status(map, replica, now).is_some_and(|status| status.lost.is_none())
    }

    /// A replica said how far it is in leading an epoch. That is newer than its last beat, by which a configuration that has just become
    /// active would look unled and be replaced at once, again and again.
    pub(crate) fn led(&mut self, server: ServerId, replica: ReplicaId, epoch: Epoch, stage: LeadStage) {
        let status = self.servers.get_mut(&server).and_then(|seen| seen.replicas.get_mut(&replica));
        if let Some(status) = status.filter(|status| status.promised <= epoch) {
            if status.promised < epoch {
                status.unreached.clear();
            }
            status.promised = epoch;
            status.lead = Some(stage);
        }
    }

    /// How far the replica is in leading that epoch, as it said last.
    pub(crate) fn lead(&self, map: &ClusterMap, replica: ReplicaId, epoch: Epoch, now: Instant) -> Option<LeadStage> {
        self.status(map, replica, now).filter(|status| status.promised == epoch && status.lost.is_none()).and_then(|status| status.lead)
    }

    /// The members that the replica does not reach as the primary of that epoch, as it said last.
    pub(crate) fn unreached(&self, map: &ClusterMap, replica: ReplicaId, epoch: Epoch, now: Instant) -> &[ReplicaId] {
        self.status(map, replica, now).filter(|status| status.promised == epoch).map_or(&[], |status| &status.unreached)
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
        } else if self.silence_of(seen, now) < replace_after && seen.health != Health::Down {
            Health::Suspect
        } else {
            Health::Down
        }
    }
}
