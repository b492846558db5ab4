//! The identifiers of everything that has one. Never reused, never guessed: all but [`ReadId`] and [`Token`] are minted by the
//! metadata register.

use core::fmt;
use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl $name {
            /// The identifier after this one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }
    };
}

id!(
    /// A server. Minted by the register; a server that is respawned keeps it.
    ServerId,
    "s"
);
id!(
    /// A shard. Minted by the register; the name that users give it stands in its record.
    ShardId,
    "sh"
);
id!(
    /// One replica of a shard on a server. Minted each time a replica is created, never reused (DESIGN 3).
    ReplicaId,
    "r"
);
id!(
    /// A schema. Minted by each /init: after a teardown the same columns are another schema.
    SchemaId,
    "c"
);
id!(
    /// A balancer process. Minted by the register at every start.
    BalancerId,
    "b"
);
id!(
    /// The epoch of a configuration. Minted by the register, so that each is proposed once.
    Epoch,
    "e"
);
id!(
    /// The index of an entry in a shard's log, from 1. `@0` stands before the first entry.
    LogIndex,
    "@"
);
id!(
    /// An exactly-once session. Minted by the register at every start of a balancer and after every refusal (R23).
    SessionId,
    "q"
);
id!(
    /// How often a server's store has been opened. Whoever opens it last owns it (DESIGN 3).
    OwnerNumber,
    "o"
);
id!(
    /// One life of a server over its disk: a mark drawn at random when the server opens its log. Unlike an owner number it does not come
    /// again when an older copy of the disk is put back.
    Incarnation,
    "i"
);
id!(
    /// The version of the cluster map, 0 before the first write, raised by one by every compare-and-set.
    MapVersion,
    "v"
);
id!(
    /// Names one outstanding effect of one machine; the answering input carries it. Unique within the life of a machine.
    Token,
    "t"
);
id!(
    /// A snapshot that a row store holds open for reading.
    SnapshotId,
    "snap"
);
id!(
    /// A snapshot that a row store collects aside until it is swapped in. Unique within a replica, over restarts too.
    StageId,
    "stage"
);

/// The identity of a cluster: 128 random bits drawn once, when the register is created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// One end of a peer connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NodeId {
    /// A server.
    Server(ServerId),
    /// A balancer.
    Balancer(BalancerId),
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(id) => id.fmt(f),
            Self::Balancer(id) => id.fmt(f),
        }
    }
}

/// The place of an entry in a shard's log, ordered by epoch, then index. Also the version of a row: the position of the entry that
/// wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The epoch in which the entry was first appended.
    pub epoch: Epoch,
    /// Its index.
    pub index: LogIndex,
}

impl Position {
    /// Before the first entry.
    pub const ZERO: Self = Self { epoch: Epoch(0), index: LogIndex(0) };
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.epoch, self.index)
    }
}
