//! The configuration of a shard: who its members are, who leads, how many make a write durable.

use crate::id::{Epoch, ReplicaId};
use core::fmt;
use serde::{Deserialize, Serialize};

/// The most members of a configuration. Appends fan out from one primary, so more would only slow it. A guess; A-3 uses 8.
pub const MEMBERS_MAX: usize = 32;

/// One configuration of a shard. Plain data: whether it is active is for the map to say.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Configuration {
    /// Minted for this proposal alone.
    pub epoch: Epoch,
    /// The member that leads.
    pub primary: ReplicaId,
    /// All members, the primary among them, in growing order, each once.
    pub members: Vec<ReplicaId>,
    /// How many members must hold an entry durably before it is committed: `1 <= write_quorum <= members.len()`.
    pub write_quorum: u32,
}

/// The smallest majority of `member_count` members, the default write quorum.
#[must_use]
pub const fn majority(member_count: usize) -> u32 {
    (member_count / 2 + 1) as u32
}

impl Configuration {
    /// Whether the replica is a member.
    #[must_use]
    pub fn has(&self, replica: ReplicaId) -> bool {
        self.members.binary_search(&replica).is_ok()
    }

    /// How many promises seal it: `n - w + 1`, which meets every write quorum (DESIGN 4, step 2; FPaxos).
    #[must_use]
    pub fn seal_quorum(&self) -> usize {
        self.members.len() - self.write_quorum as usize + 1
    }

    /// On how many members the barrier must be durable before it is installed: `max(w, n - w + 1)` (R14).
    #[must_use]
    pub fn install_quorum(&self) -> usize {
        self.seal_quorum().max(self.write_quorum as usize)
    }

    /// Whether it is well formed.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.members.windows(2).all(|pair| pair[0] < pair[1])
            && self.members.len() <= MEMBERS_MAX
            && self.has(self.primary)
            && (1..=self.members.len()).contains(&(self.write_quorum as usize))
    }
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.epoch)?;
        for (place, member) in self.members.iter().enumerate() {
            let lead = if *member == self.primary { "*" } else { "" };
            write!(f, "{}{member}{lead}", if place == 0 { "" } else { " " })?;
        }
        write!(f, "]w{}", self.write_quorum)
    }
}
