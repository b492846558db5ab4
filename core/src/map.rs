//! The cluster map: all metadata as one document, kept in the metadata register. Plain data; its transitions are pure functions
//! of the balancer's controller, carried by compare-and-set.

use crate::{
    command::OnConflict,
    config::Configuration,
    id::{BalancerId, ClusterId, Epoch, Incarnation, ReplicaId, SchemaId, ServerId, SessionId, ShardId},
    schema::Schema,
    value::{Key, KeyRange},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The most servers of a cluster, the leaving ones included. The map travels whole, so it must stay small. A guess.
pub const SERVERS_MAX: usize = 1_000;
/// The most shards of a cluster. A guess.
pub const SHARDS_MAX: usize = 10_000;

/// Where a server is reached. Both are `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Address {
    /// For people and tools.
    pub http: Box<str>,
    /// For nodes.
    pub peer: Box<str>,
}

/// What the map wants of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ServerGoal {
    /// It shall run.
    Run,
    /// It shall be emptied, then stopped, then forgotten.
    Leave,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServerRecord {
    /// Unique in the cluster, `[A-Za-z0-9_.-]{1,63}`.
    pub name: Box<str>,
    /// The number that /home answers: the trailing digits of its name where free, else the next free number (API.md).
    pub number: u64,
    /// What is wanted of it.
    pub goal: ServerGoal,
    /// Where it was reached last; `None` before it first ran.
    pub address: Option<Address>,
    /// The newest life of it that the register knows. A server takes part in nothing before it reads its own here: then no later life of
    /// its disk was ever recorded (R26).
    pub incarnation: Option<Incarnation>,
}

/// A shard.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardRecord {
    /// Unique in the cluster, `[A-Za-z0-9_.-]{1,63}`.
    pub name: Box<str>,
    /// Its first key.
    pub low: Key,
    /// How many keys it spans, at least 1.
    pub size: u64,
    /// The configuration that is active; `None` until the first one is.
    pub current: Option<Configuration>,
    /// The configuration that is proposed. Its epoch is higher than current's.
    pub pending: Option<Configuration>,
    /// The servers that shall hold a replica.
    pub placement: BTreeSet<ServerId>,
    /// The server that an operator asked to lead (a move of the primary), until it does or cannot.
    pub wanted_primary: Option<ServerId>,
}

impl ShardRecord {
    /// The keys it spans.
    #[must_use]
    pub fn range(&self) -> KeyRange {
        let span = i64::try_from(self.size.saturating_sub(1)).unwrap_or(i64::MAX);
        KeyRange { low: self.low, high: Key(self.low.0.saturating_add(span)) }
    }
}

/// How far a replica's life has come (R17).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ReplicaStage {
    /// Its id is minted; it may be created on its server. Not yet in any configuration.
    Minted,
    /// Its server has it, durably. Never created again under this id; may be a learner or a member.
    Ready,
    /// It is lost or no longer wanted. It leaves the map once no configuration has it and its server no longer holds it.
    Retired,
}

/// A replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaRecord {
    /// Of which shard.
    pub shard: ShardId,
    /// On which server.
    pub server: ServerId,
    /// How far it has come.
    pub stage: ReplicaStage,
}

/// Who runs the controller. Only a hint: two that believe it do no harm (DESIGN 3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ControllerHint {
    /// The balancer; `None` before the first.
    pub holder: Option<BalancerId>,
    /// Raised by the holder now and then. Who sees it stand still takes over.
    pub beat: u64,
}

/// What holds for the whole cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Settings {
    /// What a write does with a key that exists, where the request does not say.
    pub on_conflict: OnConflict,
    /// The write quorum of every shard; `None` is the majority of its members.
    pub write_quorum: Option<u32>,
}

/// The counters that mint ids. Each holds the last id given out; minting is the compare-and-set that stores the raised counter (R10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Counters {
    /// The last server id.
    pub server: ServerId,
    /// The last schema: how often there was an /init.
    pub schema: SchemaId,
    /// The last shard id.
    pub shard: ShardId,
    /// The last replica id.
    pub replica: ReplicaId,
    /// The last epoch, over all shards.
    pub epoch: Epoch,
    /// The last session.
    pub session: SessionId,
    /// The last balancer.
    pub balancer: BalancerId,
}

/// All metadata of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterMap {
    /// Which cluster.
    pub cluster: ClusterId,
    /// The columns; `None` before /init.
    pub schema: Option<Schema>,
    /// What holds for all of it.
    pub settings: Settings,
    /// The servers.
    pub servers: BTreeMap<ServerId, ServerRecord>,
    /// The shards.
    pub shards: BTreeMap<ShardId, ShardRecord>,
    /// The replicas, in every stage.
    pub replicas: BTreeMap<ReplicaId, ReplicaRecord>,
    /// The sessions that live, with their balancers.
    pub sessions: BTreeMap<SessionId, BalancerId>,
    /// Who controls.
    pub controller: ControllerHint,
    /// What was minted last.
    pub counters: Counters,
    /// The servers that an operator drained: the balancer places nothing there by itself.
    pub drained: BTreeSet<ServerId>,
    /// The shards of which an operator accepted that what was acknowledged is lost, if too many of their replicas are gone for good.
    pub accepted_loss: BTreeSet<ShardId>,
}

impl ClusterMap {
    /// The server of that name.
    #[must_use]
    pub fn server_named(&self, name: &str) -> Option<ServerId> {
        self.servers.iter().find(|(_, record)| &*record.name == name).map(|(id, _)| *id)
    }

    /// The shard of that name.
    #[must_use]
    pub fn shard_named(&self, name: &str) -> Option<ShardId> {
        self.shards.iter().find(|(_, record)| &*record.name == name).map(|(id, _)| *id)
    }

    /// The server that holds the replica, as far as the map knows.
    #[must_use]
    pub fn server_of(&self, replica: ReplicaId) -> Option<ServerId> {
        self.replicas.get(&replica).map(|record| record.server)
    }
}
