//! What clients ask of a cluster and what they are answered, as plain values. HTTP and JSON stay outside.

use crate::{
    command::{Idempotency, OnConflict, Operation},
    config::Configuration,
    id::{Epoch, LogIndex, MapVersion, Position, ReplicaId, ServerId, ShardId},
    map::{ClusterMap, ReplicaStage},
    message::{Pin, ReplicaStatus},
    schema::Schema,
    time::Duration,
    value::{Key, KeyRange, StoredRow},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};
use thiserror::Error;

/// What a read must have seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Consistency {
    /// Every write that was acknowledged before the read began, by any client.
    #[default]
    Linearizable,
    /// At least what this client has seen: the log index by shard that its token names.
    Session(BTreeMap<ShardId, LogIndex>),
    /// Whatever the replica has applied.
    Stale,
}

/// A shard to be made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NewShard {
    /// Its name.
    pub name: Box<str>,
    /// Its first key.
    pub low: i64,
    /// How many keys it spans. Checked by the machine: at least 1.
    pub size: i64,
}

/// A server to be added.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NewServer {
    /// Its name, or a template such as `Server[5]` for a free generated one.
    pub name: Box<str>,
    /// The names of the shards it shall hold.
    pub shards: Vec<Box<str>>,
}

/// A request to a balancer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Request {
    /// Sets the cluster up.
    Init {
        /// `N` of the request, if it was given.
        server_count: Option<u64>,
        /// The columns.
        schema: Schema,
        /// The shards.
        shards: Vec<NewShard>,
        /// Who holds what; `None`, or a server without shards where others have none either, lets the balancer place three replicas.
        servers: Option<Vec<NewServer>>,
        /// The default for writes.
        on_conflict: Option<OnConflict>,
        /// Shards are told apart by name, not by key: their ranges may overlap (a standalone server's /config).
        by_name: bool,
    },
    /// The state of the cluster.
    Status {
        /// By a map read from the register after this came; otherwise by the one at hand, which may be of a moment ago.
        fresh: bool,
    },
    /// Adds servers and shards.
    Add {
        /// `n`.
        server_count: u64,
        /// The new shards.
        new_shards: Vec<NewShard>,
        /// The new servers; more are generated where `strict` is off.
        servers: Vec<NewServer>,
        /// Stage 2 and later: `n` must equal the number of servers given, if any is given.
        strict: bool,
    },
    /// Removes servers.
    Remove {
        /// `n`.
        server_count: u64,
        /// Names that must go; the balancer chooses the rest.
        servers: Vec<Box<str>>,
        /// Whether the last replica of a shard may go.
        accept_data_loss: bool,
        /// Stage 1: `n` is capped at the number of servers.
        capped: bool,
    },
    /// Rows of a range, one page: all that is wanted of this read.
    Read {
        /// The keys. The caller has checked `low <= high`.
        range: KeyRange,
        /// The most rows of the page, at least 1.
        limit: u32,
        /// What must have been seen.
        consistency: Consistency,
    },
    /// A page of a read of several. What is read of one shard is of one index on all of them: the answer to one page names what is pinned
    /// for the next.
    ReadPage {
        /// The keys that are left.
        range: KeyRange,
        /// The most rows of the page, at least 1.
        limit: u32,
        /// The most rows wanted of all pages that are left, at least 1.
        wanted: u32,
        /// What must have been seen.
        consistency: Consistency,
        /// What the page before pinned, if it did.
        pinned: Option<Pinned>,
    },
    /// Nobody reads on in what is pinned there.
    EndRead(Pinned),
    /// What one replica of a server holds, one page, as it is.
    ReadServer {
        /// The server's name.
        server: Box<str>,
        /// The shard's name; `None` asks only which shards it holds.
        shard: Option<Box<str>>,
        /// The keys.
        range: KeyRange,
        /// The most rows.
        limit: u32,
        /// The most rows wanted of all pages that are left; 0 if this is the only one.
        wanted: u32,
        /// What the page before pinned, if it did.
        pinned: Option<Pinned>,
    },
    /// Operations on rows, atomic per shard, in order. A write, an update or a deletion.
    Write {
        /// The operations. `on_conflict` is the request's or the cluster's, resolved by [`Request::Write::on_conflict`].
        operations: Vec<Operation>,
        /// Overrides the cluster's default for inserts.
        on_conflict: Option<OnConflict>,
        /// The client's key.
        idempotency: Option<Idempotency>,
    },
    /// Who leads a shard; `change` moves the primary to another up-to-date replica first.
    Primary {
        /// The shard's name.
        shard: Box<str>,
        /// Whether to move it.
        change: bool,
    },
    /// Moves a replica of a shard from one server to another.
    Move {
        /// The shard's name.
        shard: Box<str>,
        /// The name of the server that has it.
        from: Box<str>,
        /// The name of the server that is to have it.
        to: Box<str>,
    },
    /// Moves all replicas of a server to others.
    Drain {
        /// The server's name.
        server: Box<str>,
    },
    /// Why a shard stands as it does, and where a read of it goes.
    Explain(Subject),
    /// Picks a server on the ring by a random request id (/home).
    PickServer {
        /// Six digits.
        request_id: u64,
    },
}

/// The most characters of a request that a note repeats. A guess: a line or two.
const WORDS_MAX: usize = 240;

/// The beginning of a text, for notes: what a client sends may be of any length.
pub(crate) fn shortened(text: &str) -> Box<str> {
    match text.char_indices().nth(WORDS_MAX) {
        Some((end, _)) => format!("{}..", &text[..end]).into(),
        None => text.into(),
    }
}

impl Request {
    /// What an operator asks to be changed, in words for people; `None` of what changes nothing of the cluster.
    #[must_use]
    pub fn change(&self) -> Option<Box<str>> {
        let list = |names: Vec<&str>| if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
        let words = match self {
            Self::Init { shards, .. } => format!("/init{}", list(shards.iter().map(|shard| &*shard.name).collect())),
            Self::Add { server_count, new_shards, servers, .. } => {
                let names = servers.iter().map(|server| &*server.name).chain(new_shards.iter().map(|shard| &*shard.name));
                format!("/add of {server_count} servers{}", list(names.collect()))
            }
            Self::Remove { server_count, servers, accept_data_loss, .. } => {
                let loss = if *accept_data_loss { ", accepting loss of data" } else { "" };
                format!("/rm of {server_count} servers{}{loss}", list(servers.iter().map(|name| &**name).collect()))
            }
            Self::Primary { shard, change: true } => format!("/primary_elect of {shard}"),
            Self::Move { shard, from, to } => format!("/move of {shard} from {from} to {to}"),
            Self::Drain { server } => format!("/drain of {server}"),
            Self::Status { .. }
            | Self::Read { .. }
            | Self::ReadPage { .. }
            | Self::EndRead(_)
            | Self::ReadServer { .. }
            | Self::Write { .. }
            | Self::Primary { change: false, .. }
            | Self::Explain(_)
            | Self::PickServer { .. } => return None,
        };
        Some(shortened(&words))
    }
}

/// What is to be explained.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Subject {
    /// The shard that holds this key.
    Key(Key),
    /// The shard of this name.
    Shard(Box<str>),
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Reply {
    /// To `Init`.
    Initialised,
    /// To `Status`.
    Status(Box<Status>),
    /// To `Add`.
    Added {
        /// Servers now.
        server_count: u64,
        /// The names of the new ones, in the order asked.
        servers: Vec<Box<str>>,
    },
    /// To `Remove`.
    Removed {
        /// Servers that remain.
        server_count: u64,
        /// The names of those that went.
        servers: Vec<Box<str>>,
    },
    /// To `Read`.
    Rows(Box<Rows>),
    /// To `ReadServer`.
    ServerRows {
        /// The names of the shards it holds, in order.
        shards: Vec<Box<str>>,
        /// The page asked for, empty without a shard.
        rows: Vec<StoredRow>,
        /// Where to go on.
        next: Option<Key>,
        /// What is pinned for that.
        pinned: Option<Pinned>,
        /// The position that was read at; `None` without a shard.
        at: Option<Position>,
    },
    /// To `EndRead`.
    ReadEnded,
    /// To `Write`.
    Written(Written),
    /// To `Primary`.
    Primary {
        /// The server that leads; `None` while there is none.
        server: Option<Box<str>>,
        /// The epoch of the configuration.
        epoch: Epoch,
    },
    /// To `Move` and `Drain`.
    Relocated {
        /// The names of the shards, and of the servers where a replica of each serves now.
        moves: Vec<(Box<str>, Box<str>)>,
    },
    /// To `Explain`.
    Explained(Box<Explanation>),
    /// To `PickServer`.
    Server {
        /// Which.
        id: ServerId,
        /// Its name.
        name: Box<str>,
        /// Its number.
        number: u64,
    },
    /// It did not work.
    Failed(RequestError),
}

/// Where the rest of a shard's rows is to be had as of the position that its first page was read at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pinned {
    /// Which shard.
    pub shard: ShardId,
    /// The server of the replica.
    pub server: ServerId,
    /// What it holds.
    pub pin: Pin,
    /// The position.
    pub at: Position,
}

/// A page of rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rows {
    /// The names of the shards whose range meets the request's, in key order.
    pub shards_queried: Vec<Box<str>>,
    /// The rows, in key order.
    pub rows: Vec<StoredRow>,
    /// The first key of the next page; `None` at the end.
    pub next: Option<Key>,
    /// What was seen of each shard read: the session token's content.
    pub seen: BTreeMap<ShardId, LogIndex>,
    /// For `Stale`: by how many entries each shard's replica was behind the commit index it knew.
    pub lag: BTreeMap<ShardId, u64>,
    /// What is pinned for the next page, where that goes on in a shard.
    pub pinned: Option<Pinned>,
}

/// What a write did.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Written {
    /// Rows put, changed or removed.
    pub written_count: u64,
    /// Inserts that left the row that was there.
    pub skipped_count: u64,
    /// The position at which each shard's part was applied: the version of its rows, and the session token's content.
    pub seen: BTreeMap<ShardId, Position>,
}

/// How much of a request took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Applied {
    /// Nothing.
    No,
    /// All of it.
    Yes,
    /// Some shards yes, some no.
    Partial,
    /// Nobody knows: it may take effect, at most once, or have.
    Unknown,
}

/// Which kind of answer an error is; HTTP maps it to a status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The request is wrong (400).
    Invalid,
    /// Something it names is not there (404).
    NotFound,
    /// It conflicts with what is there (409).
    Conflict,
    /// A key was used with another body (422).
    Mismatch,
    /// Too much at once, nothing was applied (503, Retry-After).
    Overloaded,
    /// Cannot be served now, nothing was applied (503, Retry-After).
    Unavailable,
    /// The deadline came first (504).
    Timeout,
}

/// What one shard's part of a write came to, where the parts differ.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardPart {
    /// Whether it took effect.
    pub applied: Applied,
    /// Why not, if not.
    pub error: Option<Box<RequestError>>,
    /// Where it was applied, if it was: what the client has seen of that shard, for its session token.
    pub seen: Option<(ShardId, Position)>,
}

/// Everything a client may be told when its request was well formed but did not work. Display is the message without `<Error>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Error)]
pub enum RequestError {
    /// Before /init.
    #[error("The cluster is not configured yet")]
    NotInitialised,
    /// A second /init.
    #[error("The cluster is configured already")]
    AlreadyInitialised,
    /// A request of /init, /add or /rm that is wrong in itself. The text says what.
    #[error("{0}")]
    Invalid(Box<str>),
    /// A request of /add or /rm that conflicts with the cluster as it is. The text says what.
    #[error("{0}")]
    Refused(Box<str>),
    /// n of /add above the servers given.
    #[error("Number of new servers (n) is greater than newly added instances")]
    TooFewServers,
    /// Names of stage 1's /add above n.
    #[error("Length of hostname list is more than newly added instances")]
    TooManyHostnames,
    /// Names of stage 1's /rm above n.
    #[error("Length of hostname list is more than removable instances")]
    TooManyHostnamesToRemove,
    /// Names of /rm above n.
    #[error("Length of server list is more than removable instances")]
    TooManyServersToRemove,
    /// /read/{server} of a server that is not there.
    #[error("Requested server does not exist")]
    NoSuchServer,
    /// A shard name that is not there.
    #[error("Shard '{0}' does not exist")]
    NoSuchShard(Box<str>),
    /// A key that no shard spans; nothing was applied in any shard.
    #[error("Key {0} is outside every shard's range")]
    OutOfRange(Key),
    /// Keys that exist, where the request wanted an error.
    #[error("Keys exist already: {}", list(.0))]
    Exists(Vec<Key>),
    /// Rows that are not there.
    #[error("No row with key {}", list(.0))]
    Missing(Vec<Key>),
    /// An Idempotency-Key with another body.
    #[error("This Idempotency-Key was used with another body")]
    KeyReused,
    /// A queue is full.
    #[error("Too many requests at once")]
    Overloaded,
    /// The shard has no replica that could serve, or none that may, and the deadline came.
    #[error("Shard '{0}' has no replica that can serve this now")]
    ShardUnavailable(Box<str>),
    /// What was pinned for the rest of a read is gone: nothing of another moment is given in its place.
    #[error("The rest of shard '{0}' as of the beginning of this read is gone: it was read too slowly, or its server stopped. Read again")]
    ReadCut(Box<str>),
    /// A session token that names what never was.
    #[error("The session token says that entry {1} of shard '{0}' was seen, which has none such: it is of another cluster, or was made up")]
    TokenBeyond(Box<str>, LogIndex),
    /// No server is up.
    #[error("No server is available")]
    NoServer,
    /// The cluster was torn down and set up anew while a write waited.
    #[error("The cluster was set up anew while the write waited: it was checked against another schema")]
    SchemaChanged,
    /// The deadline came; a write may have taken effect or still may.
    #[error("The deadline passed before the outcome was known")]
    OutcomeUnknown,
    /// The deadline came before the cluster reached what was asked; asked again, it goes on.
    #[error("The deadline passed before the change was complete; it goes on: ask again")]
    StillChanging,
    /// The metadata register cannot be reached.
    #[error("The metadata register does not answer")]
    RegisterUnavailable,
    /// The parts of a write fared differently. Shard name -> part.
    #[error("Not every shard's part was applied")]
    Parts(BTreeMap<Box<str>, ShardPart>),
    /// A read or a write at a balancer that takes none.
    #[error("This balancer only controls the cluster; ask one that routes")]
    OnlyControls,
    /// The server is told to be told apart by a cluster: the balancer configures it (409).
    #[error("This server belongs to a cluster; the balancer configures it")]
    ClusterOwned,
}

fn list(keys: &[Key]) -> String {
    let mut text = String::new();
    for (place, key) in keys.iter().enumerate() {
        if place > 0 {
            text.push_str(", ");
        }
        text.push_str(&key.to_string());
    }
    text
}

impl RequestError {
    /// Which kind of answer it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(_)
            | Self::TooFewServers
            | Self::TooManyHostnames
            | Self::TooManyHostnamesToRemove
            | Self::TooManyServersToRemove
            | Self::NoSuchServer
            | Self::NoSuchShard(_)
            | Self::NotInitialised
            | Self::TokenBeyond(..)
            | Self::OutOfRange(_) => ErrorKind::Invalid,
            Self::AlreadyInitialised
            | Self::Refused(_)
            | Self::Exists(_)
            | Self::ClusterOwned
            | Self::OnlyControls
            | Self::SchemaChanged => ErrorKind::Conflict,
            Self::Missing(_) => ErrorKind::NotFound,
            Self::KeyReused => ErrorKind::Mismatch,
            Self::Overloaded => ErrorKind::Overloaded,
            Self::ShardUnavailable(_) | Self::ReadCut(_) | Self::NoServer | Self::RegisterUnavailable => ErrorKind::Unavailable,
            Self::OutcomeUnknown | Self::StillChanging => ErrorKind::Timeout,
            Self::Parts(parts) => {
                parts.values().filter_map(|part| part.error.as_ref().map(|error| error.kind())).max().unwrap_or(ErrorKind::Conflict)
            }
        }
    }

    /// The stable code of the error, kebab-case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotInitialised => "not-initialised",
            Self::AlreadyInitialised => "already-initialised",
            Self::Invalid(_) => "invalid-request",
            Self::Refused(_) => "refused",
            Self::TooFewServers => "too-few-servers",
            Self::TooManyHostnames | Self::TooManyHostnamesToRemove => "too-many-hostnames",
            Self::TooManyServersToRemove => "too-many-servers",
            Self::NoSuchServer => "no-such-server",
            Self::NoSuchShard(_) => "no-such-shard",
            Self::OutOfRange(_) => "key-out-of-range",
            Self::Exists(_) => "key-exists",
            Self::Missing(_) => "no-such-row",
            Self::KeyReused => "idempotency-key-reused",
            Self::Overloaded => "overloaded",
            Self::ShardUnavailable(_) => "shard-unavailable",
            Self::ReadCut(_) => "read-cut",
            Self::TokenBeyond(..) => "session-token-beyond",
            Self::NoServer => "no-server",
            Self::OutcomeUnknown => "outcome-unknown",
            Self::StillChanging => "still-changing",
            Self::RegisterUnavailable => "register-unavailable",
            Self::Parts(_) => "parts-differ",
            Self::ClusterOwned => "cluster-owned",
            Self::OnlyControls => "only-controls",
            Self::SchemaChanged => "schema-changed",
        }
    }

    /// How much of the request took effect.
    #[must_use]
    pub fn applied(&self) -> Applied {
        match self {
            Self::OutcomeUnknown => Applied::Unknown,
            Self::StillChanging => Applied::Partial,
            Self::Parts(parts) => {
                let mut all = parts.values().map(|part| part.applied);
                let first = all.next().unwrap_or(Applied::No);
                if all.all(|applied| applied == first) { first } else { Applied::Partial }
            }
            Self::NotInitialised
            | Self::AlreadyInitialised
            | Self::Invalid(_)
            | Self::Refused(_)
            | Self::TooFewServers
            | Self::TooManyHostnames
            | Self::TooManyHostnamesToRemove
            | Self::TooManyServersToRemove
            | Self::NoSuchServer
            | Self::NoSuchShard(_)
            | Self::OutOfRange(_)
            | Self::Exists(_)
            | Self::Missing(_)
            | Self::KeyReused
            | Self::Overloaded
            | Self::ShardUnavailable(_)
            | Self::ReadCut(_)
            | Self::TokenBeyond(..)
            | Self::NoServer
            | Self::RegisterUnavailable
            | Self::ClusterOwned
            | Self::OnlyControls
            | Self::SchemaChanged => Applied::No,
        }
    }

    /// What the client has seen in spite of the error: the parts that were applied.
    pub fn seen(&self) -> impl Iterator<Item = (ShardId, Position)> {
        let parts = if let Self::Parts(parts) = self { Some(parts) } else { None };
        parts.into_iter().flat_map(BTreeMap::values).filter_map(|part| part.seen)
    }

    /// Whether the same request may work later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        matches!(self.kind(), ErrorKind::Overloaded | ErrorKind::Unavailable | ErrorKind::Timeout)
    }
}

/// How a server looks to the balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Health {
    /// Not yet heard of since it was asked to start.
    Starting,
    /// It answers.
    Up,
    /// Heartbeats are missing, not yet long enough to replace it.
    Suspect,
    /// It is being respawned.
    Down,
    /// It is being emptied.
    Leaving,
}

/// What the balancer knows of one server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServerStatus {
    /// How it looks.
    pub health: Health,
    /// How long ago it was last heard of.
    pub silence: Option<Duration>,
    /// The replicas it reported last.
    pub replicas: Vec<ReplicaStatus>,
    /// How often this balancer saw it run anew.
    pub respawn_count: u64,
    /// How many reads and parts of writes this balancer has sent it.
    pub request_count: u64,
}

/// How many failures a shard stands (R20).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tolerance {
    /// More members may fail before writing stops until reconfigured.
    pub write: u32,
    /// Before linearizable reading stops.
    pub read: u32,
    /// Before it cannot be reconfigured without a human.
    pub seal: u32,
}

/// What the balancer knows of one shard.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardStatus {
    /// The server of the primary that serves; `None` while none does.
    pub primary: Option<ServerId>,
    /// The active configuration.
    pub current: Option<Configuration>,
    /// The proposed one.
    pub pending: Option<Configuration>,
    /// Replicas of the map: stage, server, and the last status if it was reported.
    pub replicas: BTreeMap<ReplicaId, (ReplicaStage, ServerId)>,
    /// How many failures it stands from here, members that are down counted.
    pub tolerance: Tolerance,
    /// What a human should know, in words.
    pub warnings: Vec<Box<str>>,
}

/// The state of the cluster as one balancer sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Status {
    /// The version of the map below.
    pub version: MapVersion,
    /// The map.
    pub map: Arc<ClusterMap>,
    /// By server.
    pub servers: BTreeMap<ServerId, ServerStatus>,
    /// By shard.
    pub shards: BTreeMap<ShardId, ShardStatus>,
    /// What a human should know of the whole, in words.
    pub warnings: Vec<Box<str>>,
}

/// A replica as [`Explanation`] has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaExplained {
    /// Which.
    pub replica: ReplicaId,
    /// The name of its server.
    pub server: Box<str>,
    /// How the server looks.
    pub health: Health,
    /// How many requests of this balancer it has not answered yet.
    pub load_count: u32,
    /// Whether it is a member of the active configuration.
    pub is_member: bool,
}

/// Why a shard stands as it does, as one balancer sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Explanation {
    /// Its name.
    pub shard: Box<str>,
    /// Its keys.
    pub range: KeyRange,
    /// The active configuration.
    pub current: Option<Configuration>,
    /// The proposed one.
    pub pending: Option<Configuration>,
    /// The name of the primary's server, while one serves.
    pub primary: Option<Box<str>>,
    /// Why that one, or why none, in words.
    pub why_primary: Vec<Box<str>>,
    /// What it waits for, in words; empty if for nothing.
    pub waits_for: Vec<Box<str>>,
    /// Its replicas.
    pub replicas: Vec<ReplicaExplained>,
    /// The name of the server that a read at its key (or at the first of the shard) is sent to now, and why, in words.
    pub read: Option<(Box<str>, Box<str>)>,
}

/// A request to a server itself, for people and tools.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ServerRequest {
    /// Rows that its replica of a shard holds.
    Read {
        /// The shard's name.
        shard: Box<str>,
        /// The keys.
        range: KeyRange,
        /// The most rows.
        limit: u32,
        /// What must have been seen.
        consistency: Consistency,
        /// The most rows wanted of all pages that are left; 0 if this is the only one.
        wanted: u32,
        /// What the page before pinned, if it did.
        pinned: Option<Pinned>,
    },
    /// Nobody reads on in what is pinned there.
    EndRead(Pinned),
    /// Operations on rows of a shard, through the replicated log, forwarded to the primary where this server is not.
    Write {
        /// The shard's name.
        shard: Box<str>,
        /// The operations, their `on_conflict` resolved.
        operations: Vec<Operation>,
        /// The client's key.
        idempotency: Option<Idempotency>,
    },
    /// A piece of the log of its replica, from `from` on.
    Log {
        /// The shard's name.
        shard: Box<str>,
        /// The first index wanted.
        from: LogIndex,
        /// The most entries.
        limit: u32,
    },
    /// The names of the shards it holds, and the map it knows.
    Shards,
    /// What its replicas say of themselves.
    Status,
}

/// The answer to a [`ServerRequest`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ServerReply {
    /// To `Read`.
    Rows {
        /// The rows, in key order.
        rows: Vec<StoredRow>,
        /// Where to go on.
        next: Option<Key>,
        /// What is pinned for that.
        pinned: Option<Pinned>,
        /// The index that was read at.
        at: LogIndex,
    },
    /// To `EndRead`.
    ReadEnded,
    /// To `Write`.
    Written {
        /// What came of it.
        outcome: crate::command::Outcome,
        /// Rows written to the shard's log so far, as far as this server knows: its last applied index.
        applied: LogIndex,
    },
    /// To `Log`.
    Log {
        /// Entries; the first may be later than asked for if the log was compacted.
        entries: Vec<Arc<crate::command::Entry>>,
        /// The index of the last entry of the log: how many entries there ever were.
        last: LogIndex,
    },
    /// To `Shards`.
    Shards {
        /// Their names, in order.
        names: Vec<Box<str>>,
        /// The newest map the server has seen.
        map: Option<Arc<ClusterMap>>,
    },
    /// To `Status`.
    Status {
        /// Of every replica, the lost ones included.
        replicas: Vec<ReplicaStatus>,
        /// Requests of its own HTTP under way.
        request_count: u64,
        /// Batches of the log and pieces of work of the row store that are not answered.
        outstanding_count: u64,
        /// The newest map the server has seen.
        map: Option<Arc<ClusterMap>>,
    },
    /// It did not work.
    Failed(RequestError),
}
