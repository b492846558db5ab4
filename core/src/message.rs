//! What nodes say to each other: one-way messages over a network that may lose, duplicate, delay and reorder them (DESIGN 8). A
//! message is plain data; a bad one is dropped and counted, never trusted.

use crate::{
    command::{Entry, Idempotency, Operation, Outcome, RequestId},
    config::Configuration,
    id::{Epoch, Incarnation, LogIndex, MapVersion, Position, ReplicaId, ServerId, ShardId, SnapshotId},
    map::ClusterMap,
    storage::{LostReason, SnapshotChunk, SnapshotCursor},
    value::{KeyRange, StoredRow},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// Names a request of a node to another; the answer carries it back. Unique within the asking node's life (a server mixes the mark
/// of its life in, a balancer has a new id at every start), so that an answer from before a restart meets nothing (R22).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tag {
    /// A server's life; 0 for a balancer.
    pub life: Incarnation,
    /// Counts up.
    pub number: u64,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Message {
    /// Balancer to server.
    ToServer(ToServer),
    /// Server to balancer.
    ToBalancer(ToBalancer),
    /// Replica to replica, between servers.
    Replica(ReplicaMessage),
}

/// From a balancer to a server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ToServer {
    /// Are you there? Answered with [`ToBalancer::Beat`].
    Heartbeat {
        /// Counts up; the answer carries it back.
        beat: u64,
    },
    /// A map read back from the register. The server keeps the newest.
    Map {
        /// Its version.
        version: MapVersion,
        /// The map.
        map: Arc<ClusterMap>,
    },
    /// Create this replica, empty, if it never existed here and `version` of the map, which has it as Minted, was written by the
    /// register (R17). `incarnation` is the life of the server that reported: a server opened since then ignores the message.
    Create {
        /// The map version that was read back.
        version: MapVersion,
        /// The life that answered then.
        incarnation: Incarnation,
        /// The new replica.
        replica: ReplicaId,
        /// Its shard.
        shard: ShardId,
    },
    /// Remove this replica: a map read back shows that no configuration has it and none is pending with it (R18).
    Retire {
        /// Which.
        replica: ReplicaId,
    },
    /// Step 2: promise this epoch and report. Answered with [`ToBalancer::Promised`] once durable (R3).
    Seal {
        /// A member of the current configuration; for the first configuration of a shard, its primary.
        replica: ReplicaId,
        /// The epoch of the pending configuration.
        epoch: Epoch,
    },
    /// Steps 3 and 4: lead this configuration with the log of `source`. Repeated; answered with the primary's progress (R13).
    Install(Install),
    /// Step 5: the map, read back, has this epoch as current. Repeated until the primary reports that it is active.
    Activate {
        /// The primary.
        replica: ReplicaId,
        /// The epoch.
        epoch: Epoch,
    },
    /// Bring these replicas up to date while the configuration serves. Repeated; the list replaces the one before.
    Learn {
        /// The primary.
        replica: ReplicaId,
        /// The epoch of its configuration.
        epoch: Epoch,
        /// The learners and their servers.
        learners: Vec<(ReplicaId, ServerId)>,
    },
    /// Append this command to the log and answer when it is applied.
    Execute(Execute),
    /// Read rows.
    Read(Read),
    /// Read on in what a `Read` pinned. Answered with [`ToBalancer::ReadDone`].
    ReadOn(ReadOn),
    /// Nobody reads on in what is pinned there.
    Unpin(Pin),
    /// Who are you? (/home) Answered with [`ToBalancer::Home`].
    Home {
        /// The answer carries it back.
        tag: Tag,
    },
}

/// See [`ToServer::Install`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Install {
    /// The configuration, as the map read back has it pending. Its primary is the addressee.
    pub config: Configuration,
    /// Where each member lives.
    pub servers: BTreeMap<ReplicaId, ServerId>,
    /// The replica with the best log of a full set of promises (R12); the primary itself if its own is as good, and for the first
    /// configuration of a shard, before which nothing was committed.
    pub source: ReplicaId,
    /// Where the source lives.
    pub source_server: ServerId,
    /// The end of the source's log as it promised: (last epoch, last index).
    pub source_last: Position,
}

/// See [`ToServer::Execute`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Execute {
    /// The answer carries it back. Not the identity of the command: a retry has a new one.
    pub tag: Tag,
    /// The replica believed to lead.
    pub replica: ReplicaId,
    /// The epoch it is believed to lead in.
    pub epoch: Epoch,
    /// Exactly-once identity; `None` only together with an idempotency key (a write made at a server).
    pub request: Option<RequestId>,
    /// The client's key.
    pub idempotency: Option<Idempotency>,
    /// What to do.
    pub operations: Arc<Vec<Operation>>,
}

/// How fresh a read of one replica must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Freshness {
    /// By a read round of the primary of this epoch.
    Linearizable(Epoch),
    /// At least this index applied.
    AtLeast(LogIndex),
    /// Whatever is applied.
    Any,
}

/// See [`ToServer::Read`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Read {
    /// The answer carries it back.
    pub tag: Tag,
    /// The replica asked.
    pub replica: ReplicaId,
    /// The keys.
    pub range: KeyRange,
    /// The most rows, at least 1.
    pub limit: u32,
    /// The most rows wanted of the range in all. A page that ends before pins the state it is of, so that [`ToServer::ReadOn`] can give
    /// the rest of the very same state. 0: the page is all that is wanted.
    pub wanted: u32,
    /// How fresh.
    pub freshness: Freshness,
}

/// The state of a shard at one position, which a replica holds for whoever reads on in it. The number is unique over restarts of its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pin {
    /// Who holds it.
    pub replica: ReplicaId,
    /// Which.
    pub number: u64,
}

/// See [`ToServer::ReadOn`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReadOn {
    /// The answer carries it back.
    pub tag: Tag,
    /// What was pinned.
    pub pin: Pin,
    /// The keys: a part of the range that was asked for first, up to its end.
    pub range: KeyRange,
    /// The most rows, at least 1.
    pub limit: u32,
}

/// From a server to a balancer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ToBalancer {
    /// Answers a heartbeat.
    Beat {
        /// Of which.
        beat: u64,
        /// Which life of the server answers: another one at every opening, so a restart shows. Its disk holds this mark.
        incarnation: Incarnation,
        /// The life that the newest map the server has shows as recorded, if its disk has seen that one (R26).
        follows: Option<Incarnation>,
        /// The newest map the server has.
        map_version: MapVersion,
        /// Its replicas, by id.
        replicas: Vec<ReplicaStatus>,
    },
    /// The replica exists, durably (also if it did before this `Create`).
    Created {
        /// Which.
        replica: ReplicaId,
    },
    /// The replica is not here, durably (also if it never was).
    Retired {
        /// Which.
        replica: ReplicaId,
    },
    /// A durable promise with the end of the log as of it (R3).
    Promised {
        /// By which replica.
        replica: ReplicaId,
        /// What it promised: the epoch asked for, or, as a refusal, a higher one.
        epoch: Epoch,
        /// The end of its log: (last epoch, last index).
        last: Position,
    },
    /// How far the primary is with a configuration.
    Progress {
        /// The primary.
        replica: ReplicaId,
        /// The epoch asked about.
        epoch: Epoch,
        /// How far.
        stage: LeadStage,
    },
    /// Answers [`ToServer::Execute`].
    Executed {
        /// Of which.
        tag: Tag,
        /// What came of it.
        result: ExecuteResult,
    },
    /// Answers [`ToServer::Read`].
    ReadDone {
        /// Of which.
        tag: Tag,
        /// What came of it.
        result: ReadResult,
    },
    /// Answers [`ToServer::Home`].
    Home {
        /// Of which.
        tag: Tag,
    },
}

/// How far a replica is in leading an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LeadStage {
    /// Fetching the log or bringing members to it.
    Installing,
    /// The source did not serve its log: gather a full set of promises without it (R12).
    SourceFailed,
    /// The barrier is durable on the install quorum (R14); waiting for the map.
    Installed,
    /// Told that the map has it; commits and answers.
    Active,
    /// It may not lead this epoch: restarted, stepped down, or promised a higher one (R15).
    Lame,
}

/// What a replica says of itself in every beat.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Which.
    pub replica: ReplicaId,
    /// Of which shard.
    pub shard: ShardId,
    /// Set if it is lost: nothing else below means anything then.
    pub lost: Option<LostReason>,
    /// The highest epoch promised.
    pub promised: Epoch,
    /// How far it leads `promised`; `None` if it does not.
    pub lead: Option<LeadStage>,
    /// How much it has done of what `lead` is about, in no unit: while it changes, `lead` is not stuck.
    pub lead_progress: u64,
    /// The end of its log.
    pub last: Position,
    /// What it knows to be committed.
    pub commit: LogIndex,
    /// What it has applied.
    pub applied: LogIndex,
    /// What its row store holds.
    pub flushed: LogIndex,
    /// Whether its row store has not answered for a while: it evaluates nothing and reads nothing meanwhile.
    pub store_away: bool,
    /// An active primary's learners: how far each has the log durably, and whether it is close enough to become a member.
    pub learners: Vec<(ReplicaId, LogIndex, bool)>,
    /// The members that a leading replica has sent to and not heard of for a while: it may be cut off from them while the balancer is not.
    pub unreached: Vec<ReplicaId>,
}

/// What came of an `Execute`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ExecuteResult {
    /// It was applied, now or before.
    Done(Outcome),
    /// Not appended by this message: the replica does not lead that epoch. Try the one that does (same request id).
    NotPrimary {
        /// The highest epoch it knows of.
        epoch: Epoch,
        /// Whether it is lame in the epoch asked.
        lame: bool,
    },
    /// Refused by replicated state: the session is gone or the number below its lowest (R24). An earlier copy may stand in the log (R25).
    SessionGone,
    /// Not appended: too much in flight.
    Busy,
}

/// What came of a `Read`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ReadResult {
    /// The rows, as of `at`.
    Rows {
        /// In key order.
        rows: Vec<StoredRow>,
        /// Whether a bound ended the page.
        more: bool,
        /// The applied position the rows are the state of.
        at: Position,
        /// The index that the primary's round gave, for a linearizable read: what had to be seen. The checker wants it.
        read_index: Option<LogIndex>,
        /// By how many entries the replica was behind the commit index it knew.
        lag: u64,
        /// What the replica pinned for the rest of the rows; never in answer to a [`ReadOn`].
        pin: Option<Pin>,
    },
    /// It cannot serve this read; try another replica.
    Refused {
        /// The highest epoch it knows of.
        epoch: Epoch,
        /// Why.
        reason: ReadRefusal,
    },
}

/// Why a replica does not serve a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ReadRefusal {
    /// It is not here.
    NoSuchReplica,
    /// It is lost.
    Lost,
    /// It is in another epoch than the read.
    WrongEpoch,
    /// The primary did not give a read index in time, or cannot.
    NoReadIndex,
    /// It has not applied enough yet and will not soon.
    Behind,
    /// Its queue is full, or as much is pinned as may be.
    Busy,
    /// It does not hold that pin (any more).
    PinGone,
    /// The primary has committed less than the read must have seen: nobody can have seen that.
    NeverWas,
}

/// From one replica to another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaMessage {
    /// The sender.
    pub from: ReplicaId,
    /// The addressee.
    pub to: ReplicaId,
    /// The sender's epoch: what it leads in, for a primary; what it has promised, for an answer.
    pub epoch: Epoch,
    /// What it says.
    pub body: ReplicaBody,
}

/// See [`ReplicaMessage`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ReplicaBody {
    /// Primary to member or learner: entries after `previous`. Empty as a probe and to spread the commit index.
    Append {
        /// The position before the first entry.
        previous: Position,
        /// Entries, contiguous.
        entries: Vec<Arc<Entry>>,
        /// What the primary knows to be committed.
        commit: LogIndex,
    },
    /// The log agrees with the primary's up to `matched`, durably.
    Appended {
        /// The last index known to agree, durable.
        matched: LogIndex,
    },
    /// `previous` is not in the log: go back to `hint` or before.
    Mismatch {
        /// A position that may agree; the end of the follower's log or the last below `previous` of another epoch.
        hint: Position,
    },
    /// Refused: the sender has promised `epoch` of the envelope, which is higher.
    Refused,
    /// The log before `base` is compacted: fetch a snapshot.
    NeedSnapshot {
        /// The primary's base.
        base: Position,
    },
    /// Primary to member: has nobody made you promise a higher epoch? (R21)
    Round {
        /// Counts up within the epoch.
        round: u64,
    },
    /// No.
    RoundConfirmed {
        /// Of which round.
        round: u64,
    },
    /// Replica to primary: which index must a read have applied that arrived at me now?
    ReadIndex {
        /// The read (or batch of reads), unique over restarts (R22).
        tag: Tag,
    },
    /// The answer, `None` if the primary cannot say.
    ReadIndexIs {
        /// Of which.
        tag: Tag,
        /// The commit index when a round began that began after the question came.
        index: Option<LogIndex>,
    },
    /// New primary to source, or anyone to a source: entries after `after`, as of a log whose end is `last` (R3: answered from what is
    /// durable).
    FetchLog {
        /// A position that the asker has.
        after: Position,
        /// The end that the source promised.
        last: Position,
    },
    /// Entries after `previous`, which both have.
    LogPart {
        /// The position before the first entry.
        previous: Position,
        /// Entries, contiguous, bounded.
        entries: Vec<Arc<Entry>>,
        /// The source's commit index.
        commit: LogIndex,
    },
    /// The source does not have `after`: try `hint`.
    LogGap {
        /// A position that may agree, or the base (then a snapshot is needed if the asker has not that).
        hint: Position,
        /// The source's base.
        base: Position,
    },
    /// The source cannot serve (not that log any more, lost).
    FetchRefused,
    /// A piece of a snapshot, please.
    FetchSnapshot {
        /// `None` opens one.
        snapshot: Option<SnapshotId>,
        /// Where to go on.
        cursor: Option<SnapshotCursor>,
    },
    /// A piece of a snapshot.
    SnapshotPart {
        /// Which.
        snapshot: SnapshotId,
        /// Its position.
        position: Position,
        /// The cursor that was asked for.
        cursor: Option<SnapshotCursor>,
        /// The piece.
        chunk: Box<SnapshotChunk>,
    },
}
