//! The history of a run: what every client asked, when, and what it was answered, cut into one call per shard. Never judges; that is
//! the checkers' part.
//!
//! A world calls [`Recorder::begin`] when a client sends, [`Recorder::finish`] when the answer is there, and takes the [`History`] at
//! the end. What is still open then has an unknown outcome. Every value that is written is unique in the run, so that a value tells
//! who wrote it; a deletion gets a value of its own, which no read ever returns.

mod record;
#[cfg(test)]
mod tests;

pub use record::{RecordError, Recorder};

use core::fmt;
use std::collections::BTreeMap;
use twinshard_core::{
    id::{LogIndex, Position, ShardId},
    map::ClusterMap,
    request::{Consistency, Request},
    value::{Key, KeyRange, Row, Value},
};

/// The place in [`Row::values`] of the column that holds the unique value of a row.
pub const VALUE_COLUMN: u16 = 1;
/// The value of a row that is not there.
pub const ABSENT: u64 = 0;
/// Values of deletions start here; those that clients write stay below.
pub const TOMBSTONE_MIN: u64 = 1 << 62;
/// Stands for a row whose unique column holds nothing that a client could have written.
pub const NOT_A_VALUE: u64 = u64::MAX;

/// The unique value of a row that a client saw.
#[must_use]
pub fn value_of(row: &Row) -> u64 {
    match row.values.get(usize::from(VALUE_COLUMN)) {
        Some(Value::Integer(value)) => match u64::try_from(*value) {
            Ok(value) if value != ABSENT && value < TOMBSTONE_MIN => value,
            Ok(_) | Err(_) => NOT_A_VALUE,
        },
        Some(Value::Decimal(_) | Value::Boolean(_) | Value::Text(_)) | None => NOT_A_VALUE,
    }
}

/// What the name column of a row that is inserted with this value holds. Updates leave it alone, so that a row that was put together
/// from two shows.
#[must_use]
pub fn name_for(value: u64) -> Box<str> {
    format!("n{value}").into_boxed_str()
}

/// The value that [`name_for`] made the row's name column from; `None` in workloads that put something else there.
#[must_use]
pub fn born_of(row: &Row) -> Option<u64> {
    match row.values.first() {
        Some(Value::Text(name)) => name.strip_prefix('n')?.parse().ok(),
        Some(Value::Integer(_) | Value::Decimal(_) | Value::Boolean(_)) | None => None,
    }
}

/// Names one request of one client. All its attempts and all its parts carry it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(pub u64);

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// What a command does to one key, with the unique value it leaves there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// Puts a row, whether there was one or not.
    Put(u64),
    /// Puts a row where none was.
    PutNew(u64),
    /// Puts a row if none was there; which of the two happened is not known.
    PutIfAbsent(u64),
    /// Changes a row that was there.
    UpdateSet(u64),
    /// Removes a row that was there.
    Delete(u64),
    /// Left the row that was there.
    Keep,
}

impl Effect {
    /// The value that the key has afterwards, if the effect happened and set one.
    #[must_use]
    pub const fn value(self) -> Option<u64> {
        match self {
            Self::Put(value) | Self::PutNew(value) | Self::PutIfAbsent(value) | Self::UpdateSet(value) | Self::Delete(value) => Some(value),
            Self::Keep => None,
        }
    }
}

/// What became of a command in one shard.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CommandOutcome {
    /// It happened, and the client was told so.
    Acknowledged {
        /// The version it gave its rows, if the answer said so.
        position: Option<Position>,
    },
    /// It did not and will not happen.
    NotApplied,
    /// It did not happen because of the rows that were there: a read of whether its keys exist.
    Refused {
        /// Keys that were there.
        existing: Vec<Key>,
        /// Keys that were not.
        missing: Vec<Key>,
    },
    /// It may have happened, or happen later, at most once.
    Unknown,
}

/// What a read had to have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Every write acknowledged before.
    Linearizable,
    /// At least this index of the shard.
    Session(LogIndex),
    /// Any prefix.
    Stale,
}

/// A row that a read returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeenRow {
    /// Its key.
    pub key: Key,
    /// Its unique value.
    pub value: u64,
    /// Its version, if the answer said so.
    pub version: Option<Position>,
    /// The value of the insertion that the row's name column tells of ([`born_of`]).
    pub born: Option<u64>,
}

/// What one call did in its shard.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Operations on rows, all or nothing.
    Command {
        /// Key and effect, in order. A key may stand more than once; its last effect stays.
        effects: Vec<(Key, Effect)>,
        /// What became of it.
        outcome: CommandOutcome,
    },
    /// A read that was answered. A failed one tells nothing and is not recorded.
    Read {
        /// The keys that the answer speaks for: up to the end of the page. Those without a row were absent.
        range: KeyRange,
        /// The rows, in key order.
        rows: Vec<SeenRow>,
        /// The index it is the state of, if the answer said so.
        at: Option<LogIndex>,
        /// What it had to have seen.
        level: Level,
    },
}

/// What one client did to one shard, and when. Times are nanoseconds of the run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Call {
    /// The client's request it belongs to. Commands of one operation and shard are one command (retries).
    pub operation: OperationId,
    /// Who asked.
    pub client: u32,
    /// When it was sent.
    pub called: u64,
    /// When the answer was there; `None` if none was or it did not tell the outcome.
    pub returned: Option<u64>,
    /// The shard.
    pub shard: ShardId,
    /// What was done.
    pub action: Action,
}

/// The kinds of requests that a report tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Inserts of one row.
    Write,
    /// Several operations at once.
    Batch,
    /// A change of one row.
    Update,
    /// A removal of one row.
    Delete,
    /// A linearizable read of one key.
    PointRead,
    /// A linearizable read of a range.
    RangeRead,
    /// A session read of any width.
    SessionRead,
    /// A stale read of any width.
    StaleRead,
    /// Anything that is not about rows.
    Admin,
}

impl Kind {
    /// Every kind, in the order of reports.
    pub const ALL: [Self; 9] = [
        Self::Write,
        Self::Batch,
        Self::Update,
        Self::Delete,
        Self::PointRead,
        Self::RangeRead,
        Self::SessionRead,
        Self::StaleRead,
        Self::Admin,
    ];

    /// The kind of a request.
    #[must_use]
    pub fn of(request: &Request) -> Self {
        use twinshard_core::command::Operation;
        match request {
            Request::Write { operations, .. } => match operations.as_slice() {
                [Operation::Insert { .. }] => Self::Write,
                [Operation::Update { .. }] => Self::Update,
                [Operation::Delete { .. }] => Self::Delete,
                _ => Self::Batch,
            },
            Request::Read { range, consistency, .. } => match consistency {
                Consistency::Linearizable if range.low == range.high => Self::PointRead,
                Consistency::Linearizable => Self::RangeRead,
                Consistency::Session(_) => Self::SessionRead,
                Consistency::Stale => Self::StaleRead,
            },
            Request::Init { .. }
            | Request::Status { .. }
            | Request::Add { .. }
            | Request::Remove { .. }
            | Request::ReadPage { .. }
            | Request::EndRead(_)
            | Request::ReadServer { .. }
            | Request::Primary { .. }
            | Request::Move { .. }
            | Request::Drain { .. }
            | Request::Explain(_)
            | Request::PickServer { .. } => Self::Admin,
        }
    }

    /// Whether requests of this kind change rows.
    #[must_use]
    pub const fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::Batch | Self::Update | Self::Delete)
    }

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Batch => "batch",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::PointRead => "read",
            Self::RangeRead => "range read",
            Self::SessionRead => "session read",
            Self::StaleRead => "stale read",
            Self::Admin => "admin",
        }
    }
}

/// What a client was told, in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Told {
    /// It worked.
    Done,
    /// The rows that were there forbade it (409, 404).
    Refused,
    /// It failed and changed nothing (400, 422, 503).
    Failed,
    /// Some shards' parts happened, others certainly not.
    Partial,
    /// Nobody knows (504, or no answer at all).
    Unknown,
}

/// One request of a client as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Asked {
    /// Which.
    pub operation: OperationId,
    /// Who asked.
    pub client: u32,
    /// What kind.
    pub kind: Kind,
    /// When it was sent.
    pub called: u64,
    /// When the answer was there, if one was.
    pub answered: Option<u64>,
    /// What the answer was.
    pub told: Told,
}

/// Everything that the clients of a run saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Calls, one per request and shard, in the order in which they ended.
    pub calls: Vec<Call>,
    /// Requests as a whole, in the order in which they began.
    pub asked: Vec<Asked>,
}

/// Which shard spans which keys, as far as a history needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    shards: BTreeMap<ShardId, (Box<str>, KeyRange)>,
}

impl Layout {
    /// Adds the shards of a map. Shards are never forgotten and never change their range.
    pub fn learn(&mut self, map: &ClusterMap) {
        for (id, record) in &map.shards {
            if !self.shards.contains_key(id) {
                self.add(*id, &record.name, record.range());
            }
        }
    }

    /// Adds a shard.
    pub fn add(&mut self, id: ShardId, name: &str, range: KeyRange) {
        self.shards.insert(id, (name.into(), range));
    }

    /// The shard that spans the key.
    #[must_use]
    pub fn shard_of(&self, key: Key) -> Option<ShardId> {
        self.shards.iter().find(|(_, (_, range))| range.contains(key)).map(|(id, _)| *id)
    }

    /// The name of a shard.
    #[must_use]
    pub fn name(&self, shard: ShardId) -> Option<&str> {
        self.shards.get(&shard).map(|(name, _)| &**name)
    }

    /// Every shard with its name and keys.
    pub fn iter(&self) -> impl Iterator<Item = (ShardId, &str, KeyRange)> {
        self.shards.iter().map(|(id, (name, range))| (*id, &**name, *range))
    }
}
