//! After the last fault: everything is healed, and the cluster has to come back in bounded time. Every shard serves a write and a
//! read, replicas converge, what was asked of the servers is done. Never widens the bound to make a run pass.

use super::{
    clients::PROBES_FROM,
    coverage::Sometimes,
    log::ReplicaLog,
    world::{Event, World},
};
use crate::plan::{Action, Level, PlannedOperation, unique_row};
use std::{collections::BTreeMap, sync::Arc};
use twinshard_core::{
    command::{OnConflict, Operation},
    id::{ReplicaId, ShardId},
    map::{ReplicaStage, ServerGoal, ShardRecord},
    time::Duration,
    value::KeyRange,
};

/// How often the world is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a probe waits for its answer.
const PROBE_TIMEOUT: Duration = Duration::from_millis(2_000);

/// How far the cluster has come back.
#[derive(Clone, Debug, Default)]
pub(super) struct Liveness {
    /// By shard: the probe that is out, a write first, then a read.
    probes: BTreeMap<ShardId, Probe>,
    probe_count: u32,
    /// How long it took.
    pub(super) healed_after: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
enum Probe {
    Write(usize),
    Read(usize),
    Done,
}

impl Liveness {
    /// Shards that took a write and answered a read.
    pub(super) fn shard_count(&self) -> u64 {
        self.probes.values().filter(|probe| matches!(probe, Probe::Done)).count() as u64
    }
}

impl World {
    /// Looks whether the cluster is back; ends the run when it is, fails it when it had time enough.
    pub(super) fn look(&mut self) {
        let missing = self.missing();
        if self.checks.violation().is_some() {
            return;
        }
        let since = self.now.since(self.plan.heal_at);
        match missing {
            None => {
                self.liveness.healed_after = Some(since);
                self.check_executions();
                self.check_views();
                self.done = true;
            }
            Some(text) if since > self.plan.heal_within => {
                self.checks.fail("liveness", || format!("{since} after everything was healed: {text}"));
            }
            Some(_) => self.after(LOOK_EVERY, Event::Look),
        }
    }

    /// What is missing, in words.
    fn missing(&mut self) -> Option<String> {
        let map = Arc::clone(&self.register.map);
        if map.schema.is_none() && map.counters.shard.0 > 0 {
            // Every server was removed: that is a teardown, and nothing is left to come back.
            return None;
        }
        if map.schema.is_none() {
            return Some("the cluster is not initialised".to_owned());
        }
        let beyond: Vec<ShardId> = map.shards.iter().filter(|(_, shard)| self.beyond_repair(shard)).map(|(id, _)| *id).collect();
        for (id, shard) in map.shards.iter().filter(|(id, _)| !beyond.contains(id)) {
            if let Some(text) = self.unsettled(*id, shard) {
                return Some(text);
            }
        }
        // Whoever wants something of a shard beyond repair waits in vain.
        if beyond.is_empty() && self.clients.open_count() > self.open_probes() {
            return Some("clients still wait".to_owned());
        }
        for (id, shard) in map.shards.iter().filter(|(id, _)| !beyond.contains(id)) {
            if let Some(text) = self.probe(*id, shard) {
                return Some(text);
            }
        }
        for (id, shard) in map.shards.iter().filter(|(id, _)| !beyond.contains(id)) {
            if let Some(text) = self.apart(*id, shard) {
                return Some(text);
            }
        }
        let leaving = map.servers.values().find(|server| server.goal == ServerGoal::Leave);
        if let Some(server) = leaving
            && beyond.is_empty()
        {
            return Some(format!("{} has not left", server.name));
        }
        self.checks.coverage.add(Sometimes::BeyondRepair, beyond.len() as u64);
        None
    }

    /// Too many members of the current configuration are lost: no seal quorum is left, and a human has to decide.
    fn beyond_repair(&self, shard: &ShardRecord) -> bool {
        shard.current.as_ref().is_some_and(|config| {
            let left = config.members.iter().filter(|member| !self.checks.is_damaged(**member)).count();
            left < config.seal_quorum()
        })
    }

    fn unsettled(&self, id: ShardId, shard: &ShardRecord) -> Option<String> {
        let Some(current) = &shard.current else {
            return Some(format!("{id} never had a configuration, pending is {:?}", shard.pending));
        };
        if let Some(pending) = &shard.pending {
            return Some(format!("{id} has {current} and pending {pending}"));
        }
        let map = &self.register.map;
        for server in &shard.placement {
            let member = current.members.iter().any(|member| map.server_of(*member) == Some(*server));
            if !member {
                return Some(format!("{id} has {current} and no member at {server}"));
            }
        }
        for member in &current.members {
            let record = map.replicas.get(member);
            if record.is_none_or(|record| record.stage != ReplicaStage::Ready || !shard.placement.contains(&record.server)) {
                return Some(format!("{id} has {current}, of which {member} is {record:?}, placed at {:?}", shard.placement));
            }
        }
        None
    }

    fn open_probes(&self) -> usize {
        let is_open = |probe: &&Probe| match probe {
            Probe::Write(place) | Probe::Read(place) => !self.clients.outcome(*place).0,
            Probe::Done => false,
        };
        self.liveness.probes.values().filter(is_open).count()
    }

    fn probe(&mut self, id: ShardId, shard: &ShardRecord) -> Option<String> {
        let next = match self.liveness.probes.get(&id).copied() {
            None => Probe::Write(self.send_probe(shard, true)),
            Some(Probe::Done) => return None,
            Some(probe @ (Probe::Write(place) | Probe::Read(place))) => {
                let writes = matches!(probe, Probe::Write(_));
                match self.clients.outcome(place) {
                    (false, _) => probe,
                    (true, true) if writes => Probe::Read(self.send_probe(shard, false)),
                    (true, true) => Probe::Done,
                    (true, false) if writes => Probe::Write(self.send_probe(shard, true)),
                    (true, false) => Probe::Read(self.send_probe(shard, false)),
                }
            }
        };
        self.liveness.probes.insert(id, next);
        match next {
            Probe::Write(_) => Some(format!("{id} has not taken a write")),
            Probe::Read(_) => Some(format!("{id} has not answered a read")),
            Probe::Done => None,
        }
    }

    fn send_probe(&mut self, shard: &ShardRecord, writes: bool) -> usize {
        let number = self.liveness.probe_count;
        self.liveness.probe_count += 1;
        let id = PROBES_FROM + number;
        let action = if writes {
            let row = unique_row(id, 0, shard.low);
            Action::Write { operations: vec![Operation::Insert { row, on_conflict: OnConflict::Replace }], on_conflict: None }
        } else {
            Action::Read { range: KeyRange { low: shard.low, high: shard.range().high }, limit: 1_000, level: Level::Linearizable }
        };
        let balancer = number as usize % self.balancers.len().max(1);
        let planned = PlannedOperation { id, at: self.now, client: u32::MAX, balancer, timeout: PROBE_TIMEOUT, retries: 0, action };
        let place = self.clients.add(planned);
        self.at(self.now, Event::ClientSends { operation: place, attempt: 0 });
        place
    }

    /// Members whose logs do not end alike, or whose rows cannot catch up.
    fn apart(&self, id: ShardId, shard: &ShardRecord) -> Option<String> {
        let current = shard.current.as_ref()?;
        let ends: Vec<_> =
            current.members.iter().map(|member| (*member, self.log_of(*member).map(|log| (log.last(), log.commit)))).collect();
        let first = ends.first()?.1.map(|(last, _)| last);
        if first.is_none() || ends.iter().any(|(_, end)| end.map(|(last, _)| last) != first) {
            return Some(format!("{id} has {current} and its logs end at {ends:?}"));
        }
        let committed = self.checks.shard(id).map(|shard| shard.model.last_position());
        if committed != first {
            return Some(format!("{id} has logs that end at {first:?}, of which {committed:?} is committed"));
        }
        None
    }

    fn log_of(&self, replica: ReplicaId) -> Option<&ReplicaLog> {
        let node = self.servers.get(&self.checks.home(replica)?)?;
        if node.is_up() { node.log.durable.replicas.get(&replica) } else { None }
    }

    /// Every view that a row store holds is what the committed log amounts to at its position.
    fn check_views(&mut self) {
        for node in self.servers.values() {
            for replica in node.rows.ids().collect::<Vec<_>>() {
                self.checks.on_view(node, replica, false);
            }
        }
    }
}
