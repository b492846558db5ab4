//! A run as data: topology, operations at absolute times, fault windows. Taking a part away leaves the rest as it was, which is what
//! shrinking lives on. Knows nothing of the world that plays it.

use crate::faults::Window;
use core::fmt;
use twinshard_core::{
    balancer::{BalancerConfig, Policy},
    command::{OnConflict, Operation},
    planted::Planted,
    request::{NewServer, NewShard, Request},
    server::ServerSettings,
    time::{Duration, Instant},
    value::{Key, KeyRange, Row, Value},
};

/// Everything that a run depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    /// The seed of all keyed draws.
    pub seed: u64,
    /// Who is there.
    pub topology: Topology,
    /// What clients do, by growing time.
    pub operations: Vec<PlannedOperation>,
    /// What goes wrong, by growing start.
    pub faults: Vec<Window>,
    /// When every fault is over and everything is started again: from here on the cluster must come back.
    pub heal_at: Instant,
    /// How long it may take for that.
    pub heal_within: Duration,
    /// The bug planted in the machines and in the world's storage.
    pub planted: Planted,
    /// It comes from a scenario: what machines tell people is kept for a report, and at the end it is for balancers to start servers.
    pub staged: bool,
}

impl Plan {
    /// Operations plus fault windows: the size of a shrunk run (DESIGN 9).
    #[must_use]
    pub fn size(&self) -> usize {
        self.operations.len() + self.faults.len()
    }
}

/// Who is there, and the limits they live with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Topology {
    /// The shards of /init.
    pub shards: Vec<NewShard>,
    /// The servers of /init, with the shards they hold.
    pub servers: Vec<NewServer>,
    /// How many balancers run.
    pub balancer_count: usize,
    /// The write quorum of every shard; `None` is the majority.
    pub write_quorum: Option<u32>,
    /// The limits of the servers.
    pub settings: ServerSettings,
    /// The times of the balancers; `seed` and `planted` are set for each.
    pub balancer: BalancerConfig,
    /// How storage behaves when nothing is wrong.
    pub storage: StorageWeather,
    /// How clients read.
    pub pages: Pages,
}

/// How clients read ranges: page by page, as a balancer's HTTP does for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pages {
    /// The most rows of a page.
    pub rows: u32,
    /// The longest that a client takes over a page, now and then.
    pub pause_max: Duration,
}

impl Default for Pages {
    fn default() -> Self {
        Self { rows: 2_048, pause_max: Duration::ZERO }
    }
}

/// How storage behaves when nothing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StorageWeather {
    /// The longest fsync.
    pub sync_max: Duration,
    /// The longest work of a row store.
    pub rows_max: Duration,
    /// How many flushes in a million are durable when they are answered.
    pub flush_durable_ppm: u32,
    /// The longest start of a server process.
    pub start_max: Duration,
}

impl Default for StorageWeather {
    fn default() -> Self {
        Self {
            sync_max: Duration::from_millis(1),
            rows_max: Duration::from_micros(300),
            flush_durable_ppm: 500_000,
            start_max: Duration::from_millis(30),
        }
    }
}

impl Default for Topology {
    fn default() -> Self {
        Self {
            shards: Vec::new(),
            servers: Vec::new(),
            balancer_count: 1,
            write_quorum: None,
            settings: ServerSettings::default(),
            balancer: BalancerConfig { policy: Policy::Ring, ..BalancerConfig::default() },
            storage: StorageWeather::default(),
            pages: Pages::default(),
        }
    }
}

/// One operation of a client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PlannedOperation {
    /// Stays the same when others are taken away.
    pub id: u32,
    /// When it begins.
    pub at: Instant,
    /// Which client: its `session` reads see what it has seen.
    pub client: u32,
    /// The balancer it asks first.
    pub balancer: usize,
    /// How long it waits for each answer.
    pub timeout: Duration,
    /// How often it comes again, under an idempotency key, when the outcome is not known or the cluster could not serve.
    pub retries: u32,
    /// What it asks.
    pub action: Action,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A write, an update or a deletion, or several.
    Write {
        /// What to do. Values are unique over the run, see [`unique_value`].
        operations: Vec<Operation>,
        /// Overrides the cluster's default.
        on_conflict: Option<OnConflict>,
    },
    /// A read of a range, page by page.
    Read {
        /// The keys.
        range: KeyRange,
        /// The most rows.
        limit: u32,
        /// How fresh.
        level: Level,
    },
    /// What one replica of a server holds of a shard.
    ReadServer {
        /// The server's name.
        server: Box<str>,
        /// The shard's name.
        shard: Box<str>,
    },
    /// A read at a server's own HTTP, page by page.
    ReadAtServer {
        /// Which server, by its place.
        server: u64,
        /// The shard's name.
        shard: Box<str>,
        /// The keys.
        range: KeyRange,
        /// How fresh.
        level: Level,
    },
    /// A write at a server's own HTTP.
    WriteAtServer {
        /// Which server, by its place.
        server: u64,
        /// The shard's name.
        shard: Box<str>,
        /// What to do.
        operations: Vec<Operation>,
    },
    /// Adds a server that holds these shards.
    AddServer {
        /// Its name.
        name: Box<str>,
        /// The shards it holds.
        shards: Vec<Box<str>>,
        /// Shards that are new.
        new_shards: Vec<NewShard>,
    },
    /// Removes a server.
    RemoveServer {
        /// Its name.
        name: Box<str>,
    },
    /// Moves a primary.
    MovePrimary {
        /// The shard's name.
        shard: Box<str>,
    },
    /// The state of the cluster.
    Status,
    /// Anything else, as it is.
    Raw(Request),
}

/// How fresh a read is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// See `Consistency`.
    Linearizable,
    /// By the client's own token.
    Session,
    /// Whatever is there.
    Stale,
}

/// The value that the `part`-th operation of an operation writes: nothing else ever writes it.
#[must_use]
pub fn unique_value(operation: u32, part: usize) -> Value {
    Value::Integer(i64::from(operation) * 64 + part as i64 + 1)
}

/// A row whose second column holds the operation's unique value; the first is one that updates leave alone.
#[must_use]
pub fn unique_row(operation: u32, part: usize, key: Key) -> Row {
    Row { key, values: vec![Value::Integer(i64::from(operation)), unique_value(operation, part)] }
}

impl fmt::Display for PlannedOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} op{} client {} at balancer {}: {}", self.at, self.id, self.client, self.balancer, self.action)?;
        if self.retries > 0 { write!(f, ", comes again up to {} times", self.retries) } else { Ok(()) }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { operations, on_conflict } => {
                f.write_str("write")?;
                operations.iter().try_for_each(|operation| write_operation(f, operation))?;
                on_conflict.map_or(Ok(()), |mode| write!(f, ", on conflict {mode:?}"))
            }
            Self::Read { range, limit, level } => write!(f, "read {}..={} limit {limit} {level:?}", range.low, range.high),
            Self::ReadServer { server, shard } => write!(f, "read {shard} as {server} holds it"),
            Self::ReadAtServer { server, shard, range, level } => {
                write!(f, "read {}..={} of {shard} {level:?} at server {server}", range.low, range.high)
            }
            Self::WriteAtServer { server, shard, operations } => {
                write!(f, "write at server {server} to {shard}")?;
                operations.iter().try_for_each(|operation| write_operation(f, operation))
            }
            Self::AddServer { name, shards, new_shards } => {
                write!(f, "add server {name} for {}", shards.join(" "))?;
                new_shards.iter().try_for_each(|shard| write!(f, ", new shard {}", shard.name))
            }
            Self::RemoveServer { name } => write!(f, "remove server {name}"),
            Self::MovePrimary { shard } => write!(f, "move the primary of {shard}"),
            Self::Status => f.write_str("status"),
            Self::Raw(request) => write!(f, "{request:?}"),
        }
    }
}

fn write_operation(f: &mut fmt::Formatter<'_>, operation: &Operation) -> fmt::Result {
    match operation {
        Operation::Insert { row, .. } => write!(f, " put {}", row.key),
        Operation::Update { key, .. } => write!(f, " change {key}"),
        Operation::Delete { key } => write!(f, " delete {key}"),
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let topology = &self.topology;
        writeln!(
            f,
            "seed {}: {} servers, {} balancers, quorum {}, heals at {}",
            self.seed,
            topology.servers.len(),
            topology.balancer_count,
            topology.write_quorum.map_or_else(|| "majority".to_owned(), |w| w.to_string()),
            self.heal_at,
        )?;
        for server in &topology.servers {
            writeln!(f, "  {} holds {}", server.name, server.shards.join(" "))?;
        }
        self.operations.iter().try_for_each(|operation| writeln!(f, "  {operation}"))?;
        self.faults.iter().try_for_each(|window| writeln!(f, "  {window}"))
    }
}
