//! What the router needs of the cluster map, indexed: key to shard, shard to the replicas of its active configuration. Derived from one
//! map, never changed.

use crate::{
    id::{Epoch, MapVersion, ReplicaId, ServerId, ShardId},
    map::{ClusterMap, ReplicaStage},
    value::{Key, KeyRange},
};
use std::{collections::BTreeMap, sync::Arc};

/// A replica and where it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    pub(crate) replica: ReplicaId,
    pub(crate) server: ServerId,
}

/// How a shard is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Serving {
    /// The epoch of the active configuration.
    pub(crate) epoch: Epoch,
    /// Who leads it.
    pub(crate) primary: Target,
    /// All members, the primary among them.
    pub(crate) members: Vec<Target>,
}

/// One shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShardRoute {
    pub(crate) name: Box<str>,
    pub(crate) range: KeyRange,
    /// `None` while no configuration is active.
    pub(crate) serving: Option<Serving>,
}

/// An indexed map.
#[derive(Clone, Debug)]
pub(crate) struct Routes {
    version: MapVersion,
    map: Arc<ClusterMap>,
    by_low: BTreeMap<Key, ShardId>,
    shards: BTreeMap<ShardId, ShardRoute>,
}

impl Routes {
    pub(crate) fn new(version: MapVersion, map: &Arc<ClusterMap>) -> Self {
        let target = |replica: ReplicaId| map.server_of(replica).map(|server| Target { replica, server });
        let shards: BTreeMap<_, _> = map
            .shards
            .iter()
            .map(|(id, record)| {
                let serving = record.current.as_ref().and_then(|config| {
                    let members = config.members.iter().copied().filter_map(target).collect();
                    Some(Serving { epoch: config.epoch, primary: target(config.primary)?, members })
                });
                (*id, ShardRoute { name: record.name.clone(), range: record.range(), serving })
            })
            .collect();
        let by_low = shards.iter().map(|(id, route)| (route.range.low, *id)).collect();
        Self { version, map: Arc::clone(map), by_low, shards }
    }

    pub(crate) const fn version(&self) -> MapVersion {
        self.version
    }

    pub(crate) fn map(&self) -> &ClusterMap {
        &self.map
    }

    pub(crate) fn shard(&self, id: ShardId) -> Option<&ShardRoute> {
        self.shards.get(&id)
    }

    pub(crate) fn serving(&self, id: ShardId) -> Option<&Serving> {
        self.shards.get(&id)?.serving.as_ref()
    }

    pub(crate) fn epoch(&self, id: ShardId) -> Option<Epoch> {
        self.serving(id).map(|serving| serving.epoch)
    }

    /// The name of a shard, for people; of one that is gone, its id.
    pub(crate) fn name(&self, id: ShardId) -> Box<str> {
        self.shards.get(&id).map_or_else(|| id.to_string().into(), |route| route.name.clone())
    }

    /// The shard that spans the key.
    pub(crate) fn shard_at(&self, key: Key) -> Option<ShardId> {
        let (_, id) = self.by_low.range(..=key).next_back()?;
        self.shards.get(id).filter(|route| route.range.contains(key)).map(|_| *id)
    }

    /// Whether shards span every key of the range.
    pub(crate) fn covers(&self, range: KeyRange) -> bool {
        let mut next = range.low;
        for (_, keys) in self.meeting(range) {
            if keys.low != next {
                return false;
            }
            if keys.high >= range.high {
                return true;
            }
            next = Key(keys.high.0 + 1);
        }
        range.is_empty()
    }

    /// The shards that meet the range, in key order, with the keys in both.
    pub(crate) fn meeting(&self, range: KeyRange) -> impl Iterator<Item = (ShardId, KeyRange)> {
        // The one that begins before the range may reach into it; ranges do not overlap.
        let before = self.by_low.range(..range.low).next_back();
        let within = self.by_low.range(range.low..=range.high.max(range.low));
        before.into_iter().chain(within).filter_map(move |(_, id)| {
            let keys = self.shards.get(id)?.range.intersection(&range);
            (!keys.is_empty()).then_some((*id, keys))
        })
    }

    /// What a server holds, in key order: of each shard one replica, the member of the active configuration where there are two.
    pub(crate) fn held_by(&self, server: ServerId) -> Vec<(ShardId, Target)> {
        let mut held: BTreeMap<(Key, ShardId), Target> = BTreeMap::new();
        for (replica, record) in &self.map.replicas {
            let Some(route) = self.shards.get(&record.shard) else { continue };
            if record.server != server || record.stage != ReplicaStage::Ready {
                continue;
            }
            let is_member = route.serving.as_ref().is_some_and(|serving| serving.members.iter().any(|member| member.replica == *replica));
            let target = Target { replica: *replica, server };
            let place = held.entry((route.range.low, record.shard)).or_insert(target);
            if is_member {
                *place = target;
            }
        }
        held.into_iter().map(|((_, shard), target)| (shard, target)).collect()
    }
}
