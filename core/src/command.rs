//! What a shard's log holds: commands, their identities, their results. Evaluated only when applied (R7), never before.

use crate::{
    config::Configuration,
    id::{Position, SessionId},
    value::{Key, Row, Value},
};
use core::fmt;
use serde::{Deserialize, Serialize};

/// The most operations one command may hold (API.md: rows of one request).
pub const OPERATIONS_MAX: usize = 100_000;
/// The longest `Idempotency-Key`, in bytes. A guess; Stripe allows 255.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// What an insert does when the key is already there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum OnConflict {
    /// The new row takes the place of the old.
    #[default]
    Replace,
    /// The whole command is refused.
    Error,
    /// The old row stays; the rest of the command goes on.
    Skip,
}

/// One operation on one row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Operation {
    /// Puts a row.
    Insert {
        /// The row.
        row: Row,
        /// What to do when the key is there, also from an earlier operation of the same command.
        on_conflict: OnConflict,
    },
    /// Sets some columns of a row that must be there.
    Update {
        /// Its key.
        key: Key,
        /// Place in [`Row::values`] and new value, places growing.
        set: Vec<(u16, Value)>,
    },
    /// Removes a row that must be there.
    Delete {
        /// Its key.
        key: Key,
    },
}

impl Operation {
    /// The key it touches.
    #[must_use]
    pub const fn key(&self) -> Key {
        match self {
            Self::Insert { row, .. } => row.key,
            Self::Update { key, .. } | Self::Delete { key } => *key,
        }
    }

    /// Whether its effect or result depends on the row that is there before it.
    #[must_use]
    pub const fn needs_old_row(&self) -> bool {
        match self {
            Self::Insert { on_conflict, .. } => !matches!(on_conflict, OnConflict::Replace),
            Self::Update { .. } | Self::Delete { .. } => true,
        }
    }
}

/// What an entry does when it is applied. All-or-nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Command {
    /// The first entry of an epoch; carries its configuration (R19). Changes no row.
    Barrier(Configuration),
    /// Operations on rows, in order. If one fails, none happens.
    Operations(Vec<Operation>),
    /// Forgets a session, as replicated state (R24).
    CloseSession(SessionId),
}

/// Names one command of one session for ever, so that it is executed at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// The balancer's session.
    pub session: SessionId,
    /// Its number in that session and shard, from 1.
    pub number: u64,
    /// The lowest number of that session and shard that may still be retried. Results below are forgotten, commands below refused.
    pub lowest: u64,
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.session, self.number)
    }
}

/// A client's `Idempotency-Key` with a hash of the body it came with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Idempotency {
    /// The key, at most [`IDEMPOTENCY_KEY_BYTES_MAX`] bytes.
    pub key: Box<str>,
    /// A collision-resistant hash of method, path and body, made outside the core.
    pub body_hash: u128,
}

/// One entry of a shard's log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Entry {
    /// Its place.
    pub position: Position,
    /// Who asked, for exactly-once. `None` for a barrier.
    pub request: Option<RequestId>,
    /// The client's own key, if it gave one.
    pub idempotency: Option<Idempotency>,
    /// What it does.
    pub command: Command,
}

impl Entry {
    /// About how much memory the entry takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let command = match &self.command {
            Command::Barrier(config) => 64 + 8 * config.members.len(),
            Command::CloseSession(_) => 8,
            Command::Operations(operations) => operations
                .iter()
                .map(|operation| match operation {
                    Operation::Insert { row, .. } => row.size_bytes() + 8,
                    Operation::Update { set, .. } => 40 + set.iter().map(|(_, value)| value.size_bytes() + 8).sum::<usize>(),
                    Operation::Delete { .. } => 16,
                })
                .sum(),
        };
        96 + command + self.idempotency.as_ref().map_or(0, |idempotency| idempotency.key.len() + 32)
    }
}

/// What came of a command when it was applied.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// It happened: so many rows were written or removed, so many inserts skipped.
    Applied {
        /// Rows put, changed or removed.
        written_count: u32,
        /// Inserts that left the row that was there.
        skipped_count: u32,
    },
    /// Nothing happened: these keys exist already (at most the first 100).
    Conflict(Vec<Key>),
    /// Nothing happened: these keys do not exist (at most the first 100).
    Missing(Vec<Key>),
    /// Nothing happened: the `Idempotency-Key` was used before with another body.
    KeyReused,
}

/// The remembered answer to a command.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Outcome {
    /// What came of it.
    pub verdict: Verdict,
    /// The position of the entry that was applied: the version of the rows it wrote. A retry gets that of the first.
    pub position: Position,
}
