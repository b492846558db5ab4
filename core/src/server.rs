//! The server machine: creates, routes to and removes the replicas of one server, and answers balancers and its own HTTP.

use crate::{
    effect::{ServerEffect, ServerInput},
    id::{OwnerNumber, ServerId},
    planted::Planted,
    storage::Recovered,
    time::Instant,
};

/// What a server machine is told when it starts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerConfig {
    /// Which server.
    pub server: ServerId,
    /// The number that opening the store gave: greater than at every opening before.
    pub owner: OwnerNumber,
    /// Limits and times.
    pub settings: ServerSettings,
    /// For the simulator.
    pub planted: Planted,
}

/// Limits and times of a server. The simulator makes them small.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerSettings {
    /// The most sessions a shard remembers (DESIGN 4).
    pub sessions_max: usize,
    /// The most idempotency keys a shard remembers (DESIGN 4).
    pub idempotency_max: usize,
    /// The most entries one append message carries.
    pub append_entries_max: usize,
    /// The most bytes one append message carries, roughly.
    pub append_bytes_max: usize,
    /// How many entries the log keeps behind what is flushed, for followers that are behind.
    pub log_keep_count: usize,
    /// About the most bytes that the log of one replica keeps in memory behind what is flushed.
    pub log_keep_bytes: usize,
    /// About how many bytes of a snapshot one message carries.
    pub chunk_bytes: u32,
    /// Flush to the row store when so many applied entries wait.
    pub flush_entries: usize,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            sessions_max: 1_024,
            idempotency_max: 100_000,
            append_entries_max: 512,
            append_bytes_max: 1 << 20,
            log_keep_count: 16_384,
            log_keep_bytes: 16 << 20,
            chunk_bytes: 256 << 10,
            flush_entries: 1_024,
        }
    }
}

/// The server machine.
#[derive(Clone, Debug)]
pub struct ServerMachine {
    config: ServerConfig,
}

impl ServerMachine {
    /// A server that has just opened its log and store.
    #[must_use]
    pub fn open(config: ServerConfig, recovered: Recovered, now: Instant) -> Self {
        let _ = (recovered, now);
        Self { config }
    }

    /// Which server it is.
    #[must_use]
    pub const fn id(&self) -> ServerId {
        self.config.server
    }

    /// Takes one input. Runs to the end, never fails, never blocks.
    pub fn step(&mut self, now: Instant, input: ServerInput, out: &mut Vec<ServerEffect>) {
        let _ = (now, input, out);
    }

    /// When to call [`Self::step`] with [`ServerInput::Tick`] if nothing else happens before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        None
    }
}
