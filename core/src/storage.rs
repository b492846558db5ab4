//! What the machines ask of storage: the server's shared log and its row store, as plain data (DESIGN 4 and 7). Never a file, never
//! an encoding.
//!
//! The log is the truth, rows are a view of it. The log is one per server and holds the records of all its replicas in one order;
//! a batch is durable whole or, after power loss, cut somewhere at its tail. Rows are flushed lazily, each flush in one transaction
//! with the position it brings the replica to; after a crash the machine applies the rest again from the log.

use crate::{
    command::{Entry, Outcome},
    id::{Epoch, Incarnation, LogIndex, MapVersion, Position, ReplicaId, SessionId, ShardId, SnapshotId, StageId},
    map::ClusterMap,
    value::{Key, KeyRange, StoredRow},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// One record of the shared log. What it means for the replica's log is given as a rule; [`RecoveredReplica`] is the sum of all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LogRecord {
    /// The replica exists from here on, with an empty log and promise 0. Its id never had a record before.
    Create {
        /// The new replica.
        replica: ReplicaId,
        /// Its shard.
        shard: ShardId,
    },
    /// It promised the epoch: nothing of a lower one is accepted any more. Epochs of one replica grow.
    Promise {
        /// The replica.
        replica: ReplicaId,
        /// What it promised.
        epoch: Epoch,
    },
    /// Entries with an index above `after` are dropped.
    Truncate {
        /// The replica.
        replica: ReplicaId,
        /// The last index that stays.
        after: LogIndex,
    },
    /// Entries are added; the first follows the last that is there, each the one before it.
    Append {
        /// The replica.
        replica: ReplicaId,
        /// At least one.
        entries: Vec<Arc<Entry>>,
    },
    /// A hint: everything up to the index is known to be committed. Indexes grow. A replica without it loses nothing.
    Commit {
        /// The replica.
        replica: ReplicaId,
        /// The commit index.
        index: LogIndex,
    },
    /// The log becomes empty with `base` as its base, and the staged snapshot becomes the rows (R1): once this is durable, opening
    /// the store swaps the stage in if it is not yet.
    Reset {
        /// The replica.
        replica: ReplicaId,
        /// The position of the snapshot.
        base: Position,
        /// The stage that holds it, durable before this record is.
        stage: StageId,
    },
    /// Entries up to and with `base` are no longer needed; `base` is the new base. Only up to what is flushed to the rows.
    Compact {
        /// The replica.
        replica: ReplicaId,
        /// The last position that goes.
        base: Position,
    },
    /// The replica is gone for good: its records mean nothing from here on.
    Remove {
        /// The replica.
        replica: ReplicaId,
    },
    /// The lives of the server that its disk has seen. Replaces the one before.
    Lives(Lives),
    /// The newest cluster map the server has seen. Replaces the one before.
    Map {
        /// Its version.
        version: MapVersion,
        /// The map.
        map: Arc<ClusterMap>,
    },
}

impl LogRecord {
    /// Whose record it is; `None` of the map.
    #[must_use]
    pub const fn replica(&self) -> Option<ReplicaId> {
        match self {
            Self::Create { replica, .. }
            | Self::Promise { replica, .. }
            | Self::Truncate { replica, .. }
            | Self::Append { replica, .. }
            | Self::Commit { replica, .. }
            | Self::Reset { replica, .. }
            | Self::Compact { replica, .. }
            | Self::Remove { replica } => Some(*replica),
            Self::Map { .. } | Self::Lives(_) => None,
        }
    }
}

/// What a disk knows of the lives of its server (R26).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lives {
    /// The lives since the last one that the register is known to have recorded, that one included; the newest last.
    pub seen: Vec<Incarnation>,
    /// Replicas that are lost because the disk was found to be older than the register, until they are removed.
    pub lost: BTreeSet<ReplicaId>,
}

/// Records to be made durable together, in order.
pub type LogBatch = Vec<LogRecord>;

/// The replicated memory of one session in one shard (DESIGN 4, "Exactly once"). A command whose number is below `lowest` is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionState {
    /// Results below it are forgotten.
    pub lowest: u64,
    /// The index of the last entry of this session: the session with the lowest goes first when there are too many.
    pub last_used: LogIndex,
    /// The results from `lowest` on that were given so far.
    pub outcomes: BTreeMap<u64, Outcome>,
}

/// The replicated memory of one `Idempotency-Key` in one shard.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IdempotencyState {
    /// The hash of the body it came with first.
    pub body_hash: u128,
    /// What came of it. `outcome.position.index` is also its age: the lowest goes first.
    pub outcome: Outcome,
}

/// A change of the view of one replica, applied in one transaction: rows, sessions, keys, and the position all of that amounts to.
/// `None` removes. Applying a batch whose `applied` is not above the store's changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FlushBatch {
    /// Rows by key.
    pub rows: BTreeMap<Key, Option<StoredRow>>,
    /// Sessions.
    pub sessions: BTreeMap<SessionId, Option<SessionState>>,
    /// Idempotency keys.
    pub idempotency: BTreeMap<Box<str>, Option<IdempotencyState>>,
    /// The highest session ever evicted (R24).
    pub session_floor: SessionId,
    /// The position of the last entry that the batch holds: the new applied index of the store.
    pub applied: Position,
}

/// The part of a replica's view that the machine keeps in memory, as read back when the store is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ViewState {
    /// Sessions.
    pub sessions: BTreeMap<SessionId, SessionState>,
    /// Idempotency keys.
    pub idempotency: BTreeMap<Box<str>, IdempotencyState>,
    /// The highest session ever evicted (R24).
    pub session_floor: SessionId,
    /// The store's applied position.
    pub applied: Position,
}

/// Which rows to read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RowQuery {
    /// Rows of a range in key order, at most `limit` of them and about `bytes_max` bytes (at least one row).
    Range {
        /// The keys.
        range: KeyRange,
        /// The most rows, at least 1.
        limit: u32,
        /// About the most bytes.
        bytes_max: u32,
    },
    /// The rows with these keys; keys that are not there are left out of the answer.
    Keys(Vec<Key>),
}

/// Rows in key order.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RowPage {
    /// The rows.
    pub rows: Vec<StoredRow>,
    /// Whether a bound ended the page, so that the range may hold more after its last row.
    pub more: bool,
}

/// One piece of a snapshot. Pieces are fetched by cursor, in order; the last has `next: None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SnapshotChunk {
    /// Rows, in key order over all pieces.
    pub rows: Vec<StoredRow>,
    /// Sessions. All of them are in the first piece.
    pub sessions: Vec<(SessionId, SessionState)>,
    /// Idempotency keys. In the first pieces, in key order.
    pub idempotency: Vec<(Box<str>, IdempotencyState)>,
    /// The session floor, in every piece.
    pub session_floor: SessionId,
    /// Where the next piece begins; `None` after the last.
    pub next: Option<SnapshotCursor>,
}

/// Where in a snapshot the next piece begins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SnapshotCursor {
    /// After this idempotency key.
    AfterIdempotency(Box<str>),
    /// At the first row whose key is at least this.
    FromKey(Key),
}

/// What reading back the log found of one replica. `base.index < first entry <= .. <= last entry`, without gaps.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecoveredReplica {
    /// Its shard.
    pub shard: ShardId,
    /// The highest epoch promised.
    pub promised: Epoch,
    /// The commit hint.
    pub commit: LogIndex,
    /// What the log was compacted or reset to.
    pub base: Position,
    /// The entries after the base.
    pub entries: Vec<Arc<Entry>>,
    /// The view, or why the replica is lost: its store is missing, foreign, damaged, or behind the log's base.
    pub view: Result<ViewState, LostReason>,
}

/// Why a replica is lost: never opened as empty under its old id (DESIGN 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LostReason {
    /// The log has no record of it although the rows or the map do.
    LogMissing,
    /// A record of its log that was synced does not verify (R9).
    LogDamaged,
    /// The row store does not have it.
    RowsMissing,
    /// Something that the row store holds of it does not verify.
    RowsDamaged,
    /// The row store is behind the base of the log.
    RowsBehind,
    /// The store belongs to another cluster, server or replica.
    Foreign,
    /// The server's disk is older than one that the register knows: what the replica promised and acknowledged since is forgotten (R26).
    DiskWentBack,
}

/// What a server finds when it opens its log and store.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Recovered {
    /// The replicas with a `Create` and without a `Remove` record.
    pub replicas: BTreeMap<ReplicaId, RecoveredReplica>,
    /// The newest map seen.
    pub map: Option<(MapVersion, Arc<ClusterMap>)>,
    /// The lives of the server so far.
    pub lives: Lives,
}

/// Work for the row store. Work on one replica is done in the order given; each item is answered by one [`StoreAnswer`] under its token.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum StoreCommand {
    /// Makes an empty view for a new replica, durably.
    Create,
    /// Removes the view, the stages and the open snapshots of a replica. Removing what is not there is fine.
    Destroy,
    /// Applies a batch in one transaction. May be lost whole at power loss until a later `Flush` or the close is durable; never torn.
    Flush(Box<FlushBatch>),
    /// Reads rows as of the last flush that was answered or later.
    Read(RowQuery),
    /// Opens a snapshot: a view that stays as it is now. At most one per learner, and a few for reads; the machine closes it.
    OpenSnapshot(SnapshotId),
    /// Reads a piece of about `bytes_max` bytes, from the start without a cursor.
    ReadSnapshot {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// Where to go on.
        cursor: Option<SnapshotCursor>,
        /// About the most bytes.
        bytes_max: u32,
    },
    /// Reads rows as of a snapshot. [`StoreAnswer::Unavailable`] if it is not open (any more).
    ReadPinned {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// Which rows.
        query: RowQuery,
    },
    /// Closes a snapshot. Closing what is not open is fine.
    CloseSnapshot(SnapshotId),
    /// Adds a piece to a stage, beginning it with its first piece. `last` makes the whole stage durable before it is answered.
    Stage {
        /// Which stage. Another stage of the replica that was begun before is dropped.
        stage: StageId,
        /// The position of the snapshot.
        position: Position,
        /// The piece.
        chunk: Box<SnapshotChunk>,
        /// Whether it was the last.
        last: bool,
    },
    /// The stage becomes the view, in one transaction. Only after the `Reset` record is durable. Doing it again changes nothing.
    SwapStage {
        /// Which stage.
        stage: StageId,
        /// The position of the snapshot.
        position: Position,
    },
}

/// What came of a [`StoreCommand`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum StoreAnswer {
    /// Done: of `Create`, `Destroy`, `CloseSnapshot` and `Stage`.
    Done,
    /// The view is durable up to this position: of `Flush` (what the log no longer needs for recovery).
    Flushed {
        /// The durable applied position.
        durable: Position,
    },
    /// The rows: of `Read` and `ReadPinned`.
    Rows(RowPage),
    /// The snapshot is open, at this position: of `OpenSnapshot`.
    SnapshotOpened {
        /// The position it amounts to.
        position: Position,
    },
    /// A piece: of `ReadSnapshot`.
    Chunk(Box<SnapshotChunk>),
    /// The new view: of `SwapStage`.
    Swapped(Box<ViewState>),
    /// The replica is lost.
    Lost(LostReason),
    /// The store cannot answer now (a database that is down); nothing was changed. Asked again later.
    Unavailable,
}
