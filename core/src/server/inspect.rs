//! What can be seen of a server machine from outside: for the checks of the simulator and for metrics. Never changes anything.

use super::ServerMachine;
use crate::{
    command::Entry,
    config::Configuration,
    id::{Epoch, LogIndex, MapVersion, ReplicaId, ShardId},
    log::Log,
    map::ClusterMap,
    message::LeadStage,
    replica::Replica,
    storage::LostReason,
    watermark::Watermarks,
};
use std::sync::Arc;

/// One replica as it stands.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaView<'a> {
    replica: &'a Replica,
}

impl<'a> ReplicaView<'a> {
    /// Which.
    #[must_use]
    pub const fn id(&self) -> ReplicaId {
        self.replica.id()
    }

    /// Of which shard.
    #[must_use]
    pub const fn shard(&self) -> ShardId {
        self.replica.shard()
    }

    /// Why it is lost, if it is: then nothing else of it means anything.
    #[must_use]
    pub const fn lost(&self) -> Option<LostReason> {
        self.replica.lost_reason()
    }

    /// The highest epoch it has promised, durable or on its way.
    #[must_use]
    pub const fn promised(&self) -> Epoch {
        self.replica.promised()
    }

    /// How far it leads the epoch it has promised: [`LeadStage::Lame`] if it may not.
    #[must_use]
    pub fn lead(&self) -> Option<LeadStage> {
        self.replica.lead_stage(self.replica.promised())
    }

    /// The configuration it leads, if it does.
    #[must_use]
    pub fn configuration(&self) -> Option<&'a Configuration> {
        self.replica.configuration()
    }

    /// Its log in memory; what of it is durable, the watermarks say.
    #[must_use]
    pub const fn log(&self) -> &'a Log {
        self.replica.log()
    }

    /// The entries of its log after the base.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &'a Arc<Entry>> + ExactSizeIterator {
        self.replica.log().entries()
    }

    /// How far it has come.
    #[must_use]
    pub fn watermarks(&self) -> Watermarks {
        self.replica.watermarks()
    }

    /// The index up to which its log is known to agree with the primary's of the epoch it has promised (R2).
    #[must_use]
    pub const fn verified(&self) -> LogIndex {
        self.replica.verified()
    }

    /// The reads it has taken on and not answered.
    #[must_use]
    pub fn read_count(&self) -> usize {
        self.replica.read_count()
    }

    /// How many states it holds for reads of several pages.
    #[must_use]
    pub fn pin_count(&self) -> usize {
        self.replica.pin_count()
    }
}

impl ServerMachine {
    /// Its replicas, the lost ones included, by id.
    pub fn replicas(&self) -> impl Iterator<Item = ReplicaView<'_>> {
        self.replicas.values().map(|replica| ReplicaView { replica })
    }

    /// One of its replicas.
    #[must_use]
    pub fn replica(&self, id: ReplicaId) -> Option<ReplicaView<'_>> {
        self.replicas.get(&id).map(|replica| ReplicaView { replica })
    }

    /// The newest map it has seen.
    #[must_use]
    pub fn map(&self) -> Option<(MapVersion, &Arc<ClusterMap>)> {
        self.map.as_ref().map(|(version, map)| (*version, map))
    }

    /// How many batches and pieces of work it waits for: zero once everything is answered.
    #[must_use]
    pub fn outstanding_count(&self) -> usize {
        self.writes.len() + self.stores.len()
    }
}
