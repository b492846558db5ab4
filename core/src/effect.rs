//! The inputs and effects of the server and balancer machines: everything that passes between the core and a driver.
//!
//! A machine's `step` pushes effects into a buffer that the caller owns; the driver carries them out in order of emission per target
//! (sends per receiver, persists, store commands per replica) and feeds each answer back under the effect's token.

use crate::{
    id::{BalancerId, Epoch, MapVersion, NodeId, ReplicaId, ServerId, ShardId, Token},
    map::{Address, ClusterMap},
    message::Message,
    reason::Reason,
    request::{Reply, Request, ServerReply, ServerRequest},
    storage::{LogBatch, LostReason, StoreAnswer, StoreCommand},
    time::Instant,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What happens to a server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ServerInput {
    /// A message came.
    Message {
        /// From whom, as the handshake proved.
        from: NodeId,
        /// What.
        message: Message,
    },
    /// The batch of [`ServerEffect::Persist`] is durable, and so are all before it.
    Persisted {
        /// Of which.
        token: Token,
    },
    /// The answer to a [`ServerEffect::Store`].
    Stored {
        /// Of which.
        token: Token,
        /// What came of it.
        answer: StoreAnswer,
    },
    /// A request came over the server's own HTTP.
    Request {
        /// Names it; the reply carries it.
        token: Token,
        /// What.
        request: ServerRequest,
        /// When the client gives up.
        deadline: Instant,
    },
    /// The time of `next_deadline` has come. May come late, early or for nothing.
    Tick,
}

/// What a server wants done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ServerEffect {
    /// Send a message; it may be lost.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        message: Message,
    },
    /// Make records durable in the shared log, in order of emission; answered with `Persisted`. The driver may join several batches
    /// under one fsync. An error of the log stops the process (R9).
    Persist {
        /// The answer carries it.
        token: Token,
        /// The records, at least one.
        batch: LogBatch,
    },
    /// Work for the row store; answered with `Stored`.
    Store {
        /// The answer carries it.
        token: Token,
        /// On which replica.
        replica: ReplicaId,
        /// What.
        command: StoreCommand,
    },
    /// Answer a request of the server's own HTTP.
    Reply {
        /// Of which.
        token: Token,
        /// What.
        reply: ServerReply,
    },
    /// For people: something happened that a log, a metric or a timeline should tell. Changes nothing.
    Note(Note),
}

/// What happens to a balancer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum BalancerInput {
    /// A message came.
    Message {
        /// From which server, as the handshake proved.
        from: ServerId,
        /// What.
        message: Message,
    },
    /// A client asks.
    Request {
        /// Names it; the reply carries it.
        token: Token,
        /// What.
        request: Request,
        /// When the client gives up: it is answered by then.
        deadline: Instant,
    },
    /// The client is gone: nobody waits for the reply. What was sent goes on.
    Abandoned {
        /// Which request.
        token: Token,
    },
    /// The answer to a register effect.
    Register {
        /// Of which.
        token: Token,
        /// What came of it.
        answer: RegisterAnswer,
    },
    /// The answer to a [`BalancerEffect::Provision`].
    Provisioned {
        /// Of which.
        token: Token,
        /// What came of it.
        answer: ProvisionAnswer,
    },
    /// The time of `next_deadline` has come. May come late, early or for nothing.
    Tick,
}

/// What a balancer wants done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum BalancerEffect {
    /// Send a message; it may be lost.
    Send {
        /// To which server.
        to: ServerId,
        /// What.
        message: Message,
    },
    /// Answer a client.
    Reply {
        /// Of which request.
        token: Token,
        /// What.
        reply: Reply,
    },
    /// Read the register.
    RegisterRead {
        /// The answer carries it.
        token: Token,
    },
    /// Replace the register's map if its version is still `expected`; the new version is `expected + 1`.
    RegisterCas {
        /// The answer carries it.
        token: Token,
        /// The version it must have.
        expected: MapVersion,
        /// The new map.
        map: Arc<ClusterMap>,
    },
    /// Work for the provisioner.
    Provision {
        /// The answer carries it.
        token: Token,
        /// What.
        command: ProvisionCommand,
    },
    /// The newest map this balancer has read back: for the routers (schema) and the transport (addresses).
    Publish {
        /// Its version.
        version: MapVersion,
        /// The map.
        map: Arc<ClusterMap>,
    },
    /// For people. Changes nothing.
    Note(Note),
}

/// What the register answered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RegisterAnswer {
    /// To a read: what is in it.
    Read {
        /// The version.
        version: MapVersion,
        /// The map.
        map: Arc<ClusterMap>,
    },
    /// To a compare-and-set: it was done.
    Swapped,
    /// To a compare-and-set: the version was another; nothing was changed.
    Conflict,
    /// No answer. A compare-and-set may have been done, or be done later: read before anything else (DESIGN 3, R10).
    Unavailable,
}

/// Work for the provisioner. Idempotent: asked twice, it is done once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ProvisionCommand {
    /// See that exactly one process of this server runs, on its own data, and say where. `replace` first stops one that may still
    /// run (it was found dead or deaf); without it a running one is adopted.
    Start {
        /// Which.
        server: ServerId,
        /// Its name.
        name: Box<str>,
        /// Its number for /home.
        number: u64,
        /// Whether to stop what runs first.
        replace: bool,
    },
    /// See that no process of this server runs. Its data stays.
    Stop {
        /// Which.
        server: ServerId,
        /// Its name.
        name: Box<str>,
    },
}

/// What came of a [`ProvisionCommand`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ProvisionAnswer {
    /// It runs there.
    Started {
        /// Where.
        address: Address,
    },
    /// It does not run.
    Stopped,
    /// It did not work; asked again with back-off. The text is for people.
    Failed {
        /// Why.
        reason: Box<str>,
    },
}

/// Something worth telling people, with the instant of the step as its time. Changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Note {
    /// A server is suspected.
    Suspected {
        /// Which.
        server: ServerId,
    },
    /// A server finds its disk older than the one that the register knows: its replicas are lost.
    DiskWentBack {
        /// Which.
        server: ServerId,
    },
    /// A suspected server answers again.
    Recovered {
        /// Which.
        server: ServerId,
    },
    /// A server is taken for dead and respawned.
    Respawning {
        /// Which.
        server: ServerId,
    },
    /// Another process than before answers for a server: it was respawned.
    Restarted {
        /// Which.
        server: ServerId,
    },
    /// A server runs (again).
    Started {
        /// Which.
        server: ServerId,
    },
    /// The provisioner failed.
    ProvisionFailed {
        /// Which server.
        server: ServerId,
        /// Why.
        reason: Box<str>,
    },
    /// A server's process was stopped for good.
    Stopped {
        /// Which.
        server: ServerId,
    },
    /// A server has left the cluster: it holds nothing and its process is stopped.
    Removed {
        /// Which.
        server: ServerId,
        /// Its name, which the map does not have any more.
        name: Box<str>,
    },
    /// A replica is wanted where the shard had none, or in place of one that is lost.
    Minted {
        /// Which.
        replica: ReplicaId,
        /// Of which shard.
        shard: ShardId,
        /// Where.
        server: ServerId,
    },
    /// A replica is given up: it is lost, or wanted there no longer.
    Retired {
        /// Which.
        replica: ReplicaId,
        /// Of which shard.
        shard: ShardId,
        /// Where.
        server: ServerId,
        /// Why it is lost, if it is.
        lost: Option<LostReason>,
    },
    /// An operator accepted that what was acknowledged in a shard is lost, and it was: it begins anew, empty.
    GivenUp {
        /// Which.
        shard: ShardId,
        /// The one in its place.
        anew: ShardId,
        /// The replicas it had. Their servers keep what they have of them.
        replicas: Vec<ReplicaId>,
    },
    /// A configuration was proposed.
    Proposed {
        /// Of which shard.
        shard: ShardId,
        /// What.
        config: crate::config::Configuration,
        /// Why; `None` if another balancer proposed it, or this one in an earlier life.
        reason: Option<Reason>,
    },
    /// A configuration is active in the map.
    Activated {
        /// Of which shard.
        shard: ShardId,
        /// What.
        config: crate::config::Configuration,
    },
    /// A replica is lost.
    Lost {
        /// Which.
        replica: ReplicaId,
        /// Why.
        reason: LostReason,
    },
    /// A primary serves: it was told that the map has its epoch.
    Leads {
        /// Which.
        replica: ReplicaId,
        /// Of which shard.
        shard: ShardId,
        /// In which epoch.
        epoch: Epoch,
    },
    /// The map wants what an operator asked for.
    Granted {
        /// What was asked, in words.
        request: Box<str>,
    },
    /// What an operator asked for was refused.
    Refused {
        /// What was asked, in words.
        request: Box<str>,
        /// Why, in words.
        reason: Box<str>,
    },
    /// A balancer took the controller's role.
    Controlling {
        /// Whose beat stood still; `None` if nobody had the role.
        from: Option<BalancerId>,
    },
    /// This balancer does not control any more.
    Ceded {
        /// Who does.
        to: Option<BalancerId>,
    },
    /// The register holds an older map than a server has seen: the balancer changes nothing any more.
    RegisterWentBack {
        /// What the server had seen.
        told: MapVersion,
        /// What the register held after that.
        found: MapVersion,
    },
    /// A message was dropped, and why.
    Dropped {
        /// A short name of the reason.
        reason: Box<str>,
    },
}
