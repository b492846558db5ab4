//! Why the configurations of the map were proposed, as far as this balancer proposed them. Lost with it; decides nothing.

use crate::{
    config::Configuration,
    id::{Epoch, ShardId},
    map::{ClusterMap, ShardRecord},
    reason::Reason,
};
use std::collections::BTreeMap;

/// By shard and epoch. A compare-and-set may be done although nobody said so, and of another balancer it may carry the same epoch (R10):
/// so what was meant is kept with its configuration until a newer one is in its place.
#[derive(Clone, Debug, Default)]
pub(super) struct Reasons {
    shards: BTreeMap<ShardId, BTreeMap<Epoch, (Configuration, Reason)>>,
}

impl Reasons {
    /// This map is about to be stored, with proposals for these reasons.
    pub(super) fn remember(&mut self, map: &ClusterMap, reasons: &BTreeMap<ShardId, Reason>) {
        for (shard, reason) in reasons {
            if let Some(pending) = map.shards.get(shard).and_then(|record| record.pending.as_ref()) {
                self.shards.entry(*shard).or_default().insert(pending.epoch, (pending.clone(), *reason));
            }
        }
    }

    /// Follows a map that was read back: what is neither active nor proposed, and no longer can be, is forgotten.
    pub(super) fn follow(&mut self, map: &ClusterMap) {
        self.shards.retain(|shard, _| map.shards.contains_key(shard));
        for (shard, known) in &mut self.shards {
            let Some(ShardRecord { current, pending, .. }) = map.shards.get(shard) else { continue };
            let epoch_of = |config: &Option<Configuration>| config.as_ref().map(|config| config.epoch);
            let (current, newest) = (epoch_of(current), epoch_of(pending).max(epoch_of(current)));
            known.retain(|epoch, _| Some(*epoch) == current || Some(*epoch) >= newest);
        }
    }

    /// Why the configuration was proposed; `None` if another balancer did it, or this one in an earlier life.
    pub(super) fn of(&self, shard: ShardId, config: &Configuration) -> Option<Reason> {
        let (meant, reason) = self.shards.get(&shard)?.get(&config.epoch)?;
        (meant == config).then_some(*reason)
    }
}
