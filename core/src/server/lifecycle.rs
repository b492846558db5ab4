//! Which replicas a server has: the map it keeps, creation in two steps (R17), removal, and what is found missing. Never opens an id as
//! empty twice.

use super::{ServerMachine, StoreOwner, Written};
use crate::{
    effect::ServerEffect,
    id::{Incarnation, MapVersion, NodeId, ReplicaId, ShardId},
    map::{ClusterMap, ReplicaStage},
    message::ToBalancer,
    planted::Bug,
    replica::Replica,
    storage::{LogRecord, LostReason, StoreAnswer, StoreCommand},
    time::Instant,
};
use std::{collections::BTreeSet, sync::Arc};

/// The most ids remembered as removed. Beyond, the lowest go: the map has forgotten them long before. A guess.
const REMOVED_MAX: usize = 4_096;

/// A replica on its way to be: first its rows, then the record in the log, then it is.
#[derive(Clone, Debug)]
pub(super) struct Creating {
    shard: ShardId,
    asked: BTreeSet<NodeId>,
}

/// A replica on its way out.
#[derive(Clone, Debug)]
pub(super) struct Removing {
    asked: BTreeSet<NodeId>,
    logged: bool,
    stored: bool,
    /// When the row store is asked again that could not answer.
    retry_at: Option<Instant>,
}

impl ServerMachine {
    pub(super) fn on_map(&mut self, version: MapVersion, map: Arc<ClusterMap>, out: &mut Vec<ServerEffect>) {
        if self.map.as_ref().is_some_and(|(newest, _)| version <= *newest) {
            return;
        }
        self.map = Some((version, map));
        self.map_due.get_or_insert(self.now + self.context.settings.map_persist_after);
        self.learn_directory();
        self.judge_life(out);
        self.find_missing(out);
        self.hear_current();
    }

    pub(super) fn learn_directory(&mut self) {
        if let Some((_, map)) = &self.map {
            let newer = |id: &ReplicaId| *id > map.counters.replica;
            self.directory.retain(|id, _| newer(id));
            self.directory.extend(map.replicas.iter().map(|(id, record)| (*id, record.server)));
        }
    }

    /// What a map shows as active, a primary of an older epoch has heard of (R5). A replica that the map does not have any more is over too:
    /// its shard was given up, or the cluster torn down. It stays on the disk, and serves nobody.
    fn hear_current(&mut self) {
        let Some((_, map)) = &self.map else { return };
        let map = Arc::clone(map);
        let now = self.now;
        for (id, replica) in &mut self.replicas {
            let is_over = *id <= map.counters.replica && !map.replicas.contains_key(id);
            let current = map.shards.get(&replica.shard()).and_then(|shard| shard.current.as_ref());
            let epoch = if is_over { Some(map.counters.epoch) } else { current.map(|config| config.epoch) };
            if let Some(epoch) = epoch.filter(|epoch| *epoch > replica.heard()) {
                replica.current_is(now, epoch);
                self.touched.insert(*id);
            }
        }
    }

    /// A replica that the map has as ready on this server, of which the log knows nothing, is lost (DESIGN 3).
    pub(super) fn find_missing(&mut self, out: &mut Vec<ServerEffect>) {
        let Some((_, map)) = &self.map else { return };
        let map = Arc::clone(map);
        // What the map has forgotten is nobody's loss any more.
        let gone: Vec<_> = self.missing.iter().filter(|id| !map.replicas.contains_key(id)).copied().collect();
        for id in gone {
            self.missing.remove(&id);
            self.forget(id);
        }
        for (id, record) in &map.replicas {
            let here = self.replicas.contains_key(id)
                || self.creating.contains_key(id)
                || self.removing.contains_key(id)
                || self.removed.contains(id);
            if record.server != self.id() || record.stage != ReplicaStage::Ready || here {
                continue;
            }
            if self.config.planted.has(Bug::KeepsIdAfterLosingDisk) {
                self.begin_creation(*id, record.shard, None, out);
                continue;
            }
            self.missing.insert(*id);
            self.replicas.insert(*id, Replica::lost(*id, record.shard, self.context.clone(), LostReason::LogMissing));
            self.touched.insert(*id);
        }
    }

    // ---- creation -----------------------------------------------------------------------------------------------------------

    pub(super) fn on_create(
        &mut self,
        from: NodeId,
        version: MapVersion,
        incarnation: Incarnation,
        replica: ReplicaId,
        shard: ShardId,
        out: &mut Vec<ServerEffect>,
    ) {
        let creates_again = self.config.planted.has(Bug::CreatesAgain);
        if creates_again && self.replicas.get(&replica).is_some_and(|known| known.lost_reason().is_some()) {
            self.forget(replica);
        }
        if let Some(known) = self.replicas.get(&replica) {
            if known.lost_reason().is_none() {
                self.answer(from, ToBalancer::Created { replica }, out);
            }
            return;
        }
        if let Some(creating) = self.creating.get_mut(&replica) {
            creating.asked.insert(from);
            return;
        }
        if self.removing.contains_key(&replica) {
            return;
        }
        if self.may_create(version, incarnation, replica, shard) || creates_again {
            self.begin_creation(replica, shard, Some(from), out);
        }
    }

    /// R17: only on the word of a register read, by the life of the server that it was meant for, and never an id that was here or that a newer map shows
    /// as ready or not at all.
    fn may_create(&self, version: MapVersion, incarnation: Incarnation, replica: ReplicaId, shard: ShardId) -> bool {
        let minted = |map: &ClusterMap| {
            map.replicas
                .get(&replica)
                .is_some_and(|record| record.stage == ReplicaStage::Minted && record.server == self.id() && record.shard == shard)
        };
        incarnation == self.config.incarnation
            && !self.removed.contains(&replica)
            && self.map.as_ref().is_none_or(|(newest, map)| *newest < version || minted(map))
    }

    fn begin_creation(&mut self, replica: ReplicaId, shard: ShardId, from: Option<NodeId>, out: &mut Vec<ServerEffect>) {
        self.creating.insert(replica, Creating { shard, asked: from.into_iter().collect() });
        // A creation that was cut short may have left rows without a record in the log.
        self.store(replica, StoreOwner::Nobody, StoreCommand::Destroy, out);
        self.store(replica, StoreOwner::Creation(replica), StoreCommand::Create, out);
    }

    pub(super) fn on_creation_stored(&mut self, replica: ReplicaId, answer: &StoreAnswer) {
        let Some(creating) = self.creating.get(&replica) else { return };
        if *answer == StoreAnswer::Done {
            self.batch.push(LogRecord::Create { replica, shard: creating.shard });
            self.written.push(Written::Created(replica));
        } else {
            // Asked again by the controller.
            self.creating.remove(&replica);
        }
    }

    pub(super) fn on_creation_logged(&mut self, id: ReplicaId, out: &mut Vec<ServerEffect>) {
        let Some(Creating { shard, asked }) = self.creating.remove(&id) else { return };
        self.replicas.insert(id, Replica::create(id, shard, self.context.clone()));
        self.touched.insert(id);
        for to in asked {
            self.answer(to, ToBalancer::Created { replica: id }, out);
        }
    }

    // ---- removal ------------------------------------------------------------------------------------------------------------

    pub(super) fn on_retire(&mut self, from: NodeId, id: ReplicaId, out: &mut Vec<ServerEffect>) {
        if let Some(removing) = self.removing.get_mut(&id) {
            removing.asked.insert(from);
            return;
        }
        // R17: a creation that comes late must not bring it back.
        self.remember_removed(id);
        self.missing.remove(&id);
        let was_here = self.replicas.contains_key(&id) | self.creating.remove(&id).is_some();
        self.forget(id);
        if !was_here {
            self.answer(from, ToBalancer::Retired { replica: id }, out);
            return;
        }
        self.batch.push(LogRecord::Remove { replica: id });
        self.written.push(Written::Removed(id));
        self.removing.insert(id, Removing { asked: BTreeSet::from([from]), logged: false, stored: false, retry_at: None });
        self.store(id, StoreOwner::Removal(id), StoreCommand::Destroy, out);
    }

    fn remember_removed(&mut self, id: ReplicaId) {
        self.removed.insert(id);
        while self.removed.len() > REMOVED_MAX {
            self.removed.pop_first();
        }
    }

    fn forget(&mut self, id: ReplicaId) {
        self.replicas.remove(&id);
        self.touched.remove(&id);
        self.set_deadline(id, None);
    }

    pub(super) fn on_removal_logged(&mut self, id: ReplicaId, out: &mut Vec<ServerEffect>) {
        if let Some(removing) = self.removing.get_mut(&id) {
            removing.logged = true;
        }
        self.end_removal(id, out);
    }

    pub(super) fn on_removal_stored(&mut self, id: ReplicaId, answer: &StoreAnswer, out: &mut Vec<ServerEffect>) {
        let retry_at = self.now + self.context.settings.resend_after;
        if let Some(removing) = self.removing.get_mut(&id) {
            if *answer == StoreAnswer::Unavailable {
                removing.retry_at = Some(retry_at);
            } else {
                removing.stored = true;
            }
        }
        self.end_removal(id, out);
    }

    fn end_removal(&mut self, id: ReplicaId, out: &mut Vec<ServerEffect>) {
        if self.removing.get(&id).is_some_and(|removing| removing.logged && removing.stored)
            && let Some(removing) = self.removing.remove(&id)
        {
            for to in removing.asked {
                self.answer(to, ToBalancer::Retired { replica: id }, out);
            }
        }
    }

    pub(super) fn retry_removals(&mut self, out: &mut Vec<ServerEffect>) {
        let now = self.now;
        let due: Vec<_> =
            self.removing.iter().filter(|(_, removing)| removing.retry_at.is_some_and(|at| at <= now)).map(|(id, _)| *id).collect();
        for id in due {
            if let Some(removing) = self.removing.get_mut(&id) {
                removing.retry_at = None;
            }
            self.store(id, StoreOwner::Removal(id), StoreCommand::Destroy, out);
        }
    }

    pub(super) fn removals_deadline(&self) -> Option<Instant> {
        self.removing.values().filter_map(|removing| removing.retry_at).min()
    }
}
