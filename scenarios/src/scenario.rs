//! A scenario: which cluster, which load, which faults, what to expect. Parsed from TOML, checked, plain data. Never runs anything.
//!
//! Times are milliseconds from the start of the load, when the cluster is set up and serves. Faults are windows: take one away and all
//! else stays as it was.

mod check;
mod target;

pub use target::Target;

use serde::Deserialize;
use std::path::{Path, PathBuf};
use thiserror::Error;
use twinshard_core::{
    request::{NewServer, NewShard, Request},
    schema::{Column, ColumnType, Schema, SchemaError},
};

/// Why a scenario is not one. Display names the file and the key.
#[derive(Debug, Error)]
pub enum ScenarioError {
    /// The file cannot be read.
    #[error("{}: {error}", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is not TOML, or a key is unknown, missing or of the wrong type.
    #[error("{file}: {error}")]
    Parse {
        /// Its name.
        file: String,
        /// What and where.
        error: Box<toml::de::Error>,
    },
    /// It reads well but makes no sense.
    #[error("{file}: {key}: {problem}")]
    Invalid {
        /// Its name.
        file: String,
        /// The key, such as `faults[1].target`.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// A scenario.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name: that of its file without `.toml`.
    pub name: String,
    /// What happens and why it matters, in a few sentences for people.
    pub story: String,
    /// The cluster.
    pub topology: Topology,
    /// What clients do.
    pub workload: WorkloadSpec,
    /// What goes wrong, in any order.
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// What the operator does, in any order.
    #[serde(default)]
    pub admin: Vec<AdminStep>,
    /// What must come true, besides that no check finds a violation.
    #[serde(default)]
    pub expect: Expectations,
}

/// The cluster at the start.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// How many servers: `Server0`, `Server1`, ...
    pub servers: u32,
    /// How many balancers.
    #[serde(default = "one")]
    pub balancers: u32,
    /// How many replicas a shard has that does not name its servers.
    #[serde(default = "three")]
    pub replicas: u32,
    /// The write quorum; a majority if left out. Stands in the map that the world creates the register with.
    pub write_quorum: Option<u32>,
    /// The shards.
    pub shards: Vec<ShardSpec>,
    /// Limits of the nodes, smaller than those of a deployment, so that a short run meets them.
    #[serde(default)]
    pub limits: Limits,
}

/// Limits of the nodes; what is left out is as in a deployment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// The most rows of a page of an answer.
    pub page_rows: Option<u32>,
    /// About the most bytes of rows of one answer of a replica.
    pub read_bytes_max: Option<u32>,
    /// About how many bytes of a snapshot one message carries.
    pub chunk_bytes: Option<u32>,
    /// How many entries a log keeps behind what is flushed.
    pub log_keep_count: Option<u32>,
    /// Flush when so many applied entries wait.
    pub flush_entries: Option<u32>,
    /// The most reads of several pages that a replica keeps a state for at once.
    pub pins_max: Option<u32>,
}

/// A shard.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardSpec {
    /// Its name.
    pub name: String,
    /// Its first key.
    pub low: i64,
    /// How many keys it spans.
    pub size: i64,
    /// The servers that hold a replica; spread in turn if left out.
    pub servers: Option<Vec<String>>,
}

/// How keys are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyChoice {
    /// Each with the same chance.
    #[default]
    Uniform,
    /// The n-th with a chance of 1/n of the first's.
    Zipf,
    /// One after the other, around and around.
    Sequential,
}

/// What clients do.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadSpec {
    /// How many clients.
    pub clients: u32,
    /// For how long operations begin.
    pub duration_ms: u64,
    /// Open loop: operations a second over all clients, at times fixed beforehand.
    pub rate_per_s: Option<u64>,
    /// Closed loop: how long a client thinks after each answer.
    pub think_ms: Option<u64>,
    /// How many keys of each shard are used, from its first.
    #[serde(default = "hundred")]
    pub keys_per_shard: u32,
    /// How a key is chosen.
    #[serde(default)]
    pub key_choice: KeyChoice,
    /// How many rows a batch has.
    #[serde(default = "four")]
    pub rows_per_batch: u32,
    /// How many keys a range read spans.
    #[serde(default = "ten")]
    pub range_width: u32,
    /// When a client gives up.
    #[serde(default = "ten_seconds")]
    pub deadline_ms: u64,
    /// Writes carry an `Idempotency-Key`.
    #[serde(default)]
    pub idempotency_keys: bool,
    /// How often a client tries again after an unknown outcome. Needs `idempotency_keys`.
    #[serde(default)]
    pub retries_max: u32,
    /// How long after an added shard was asked for its keys are used.
    #[serde(default = "two_seconds")]
    pub new_shard_after_ms: u64,
    /// What they do how often.
    pub mix: Mix,
}

/// The weights of the kinds of operations. Those left out are 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mix {
    /// Puts one row.
    pub write: u32,
    /// Puts one row if the key is free, else wants an error.
    pub insert: u32,
    /// Puts one row if the key is free, else leaves what is there.
    pub skip: u32,
    /// Puts several rows, over one or more shards.
    pub batch: u32,
    /// Several operations of all kinds.
    pub mixed_batch: u32,
    /// Changes one row.
    pub update: u32,
    /// Removes one row.
    pub delete: u32,
    /// Reads one key.
    pub read: u32,
    /// Reads a range.
    pub range_read: u32,
    /// Reads one key or a range, at least as new as what the client has seen.
    pub session_read: u32,
    /// Reads one key or a range, however old.
    pub stale_read: u32,
}

impl Mix {
    /// The weights in the order of the fields.
    #[must_use]
    pub const fn weights(&self) -> [u32; 11] {
        [
            self.write,
            self.insert,
            self.skip,
            self.batch,
            self.mixed_batch,
            self.update,
            self.delete,
            self.read,
            self.range_read,
            self.session_read,
            self.stale_read,
        ]
    }
}

/// Something that goes wrong for a while. Unknown fields are refused by its kind, which sees all that are left.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Fault {
    /// When it begins.
    pub at_ms: u64,
    /// How long it lasts. What 0 means stands with the kind.
    #[serde(default)]
    pub for_ms: u64,
    /// What it is.
    #[serde(flatten)]
    pub kind: FaultKind,
}

/// Which way a partition cuts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Nothing passes.
    #[default]
    Both,
    /// What `between` sends to `and` is lost; the way back is open.
    OneWay,
}

/// What can go wrong.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum FaultKind {
    /// The process dies; what it had not synced is gone. It can be started again after `for_ms`: a balancer is, at that moment, by its
    /// supervisor; a server when a balancer asks for it.
    Crash {
        /// Who.
        target: Target,
    },
    /// The process dies and all that its disk held is gone; otherwise as `crash`. Servers only.
    LoseDisk {
        /// Who.
        target: Target,
    },
    /// Everything dies at once: servers, balancers; what was not synced is gone. After `for_ms` balancers are started.
    PowerLoss {},
    /// The process stands still for `for_ms`, then goes on as if nothing had been.
    Pause {
        /// Who.
        target: Target,
    },
    /// Messages between the two sides are lost for `for_ms`.
    Partition {
        /// One side.
        between: Vec<Target>,
        /// The other side.
        and: Vec<Target>,
        /// Which way.
        #[serde(default)]
        direction: Direction,
    },
    /// Messages between this one and all other nodes are lost for `for_ms`.
    Isolate {
        /// Who.
        target: Target,
    },
    /// The metadata register does not answer for `for_ms`.
    RegisterDown {},
    /// The database with the rows of a server does not answer for `for_ms`; the server itself lives.
    DatabaseDown {
        /// Whose.
        target: Target,
    },
    /// The next `times` starts of a server that begin within `for_ms` (0: from here on) fail.
    ProvisionFails {
        /// Whose; any server if left out.
        target: Option<Target>,
        /// How many.
        times: u32,
    },
    /// Messages between nodes fare badly for `for_ms`.
    Network {
        /// How many of a thousand are lost.
        #[serde(default)]
        loss_per_mille: u32,
        /// How many of a thousand come twice.
        #[serde(default)]
        duplicate_per_mille: u32,
        /// Up to how much later they come, so that they overtake each other.
        #[serde(default)]
        delay_ms: u64,
    },
    /// Every sync of this one's disk takes so long for `for_ms`.
    SlowDisk {
        /// Who.
        target: Target,
        /// How long.
        sync_ms: u64,
    },
}

impl FaultKind {
    /// Its name in files and reports.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Crash { .. } => "crash",
            Self::LoseDisk { .. } => "lose-disk",
            Self::PowerLoss {} => "power-loss",
            Self::Pause { .. } => "pause",
            Self::Partition { .. } => "partition",
            Self::Isolate { .. } => "isolate",
            Self::RegisterDown {} => "register-down",
            Self::DatabaseDown { .. } => "database-down",
            Self::ProvisionFails { .. } => "provision-fails",
            Self::Network { .. } => "network",
            Self::SlowDisk { .. } => "slow-disk",
        }
    }

    /// Whether a server or balancer process ends.
    #[must_use]
    pub const fn kills(&self) -> bool {
        matches!(self, Self::Crash { .. } | Self::LoseDisk { .. } | Self::PowerLoss {})
    }
}

/// Something that the operator asks for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct AdminStep {
    /// When.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub kind: AdminKind,
}

/// A server to be added.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerSpec {
    /// Its name.
    pub name: String,
    /// The shards it shall hold.
    pub shards: Vec<String>,
}

/// What an operator can ask for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AdminKind {
    /// `/add`.
    Add {
        /// New servers.
        servers: Vec<ServerSpec>,
        /// New shards.
        #[serde(default)]
        shards: Vec<ShardSpec>,
    },
    /// `/rm`.
    Remove {
        /// Which.
        servers: Vec<String>,
    },
    /// `/primary_elect` with a change.
    MovePrimary {
        /// Of which shard.
        shard: String,
    },
    /// `/move`.
    Move {
        /// A replica of which shard.
        shard: String,
        /// The server that holds it.
        from: String,
        /// The server that shall.
        to: String,
    },
    /// `/drain`.
    Drain {
        /// Which server shall hold nothing.
        server: String,
    },
}

/// What must come true. Each is checked if it is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expectations {
    /// After every fault began, each shard acknowledges a write that was sent after it within this time.
    pub writes_again_within_ms: Option<u64>,
    /// No shard is without an acknowledged write for longer.
    pub longest_outage_ms: Option<u64>,
    /// So many operations worked.
    pub operations_min: Option<u64>,
    /// So many operations a second worked, over the time of the load.
    pub rate_min_per_s: Option<u64>,
    /// At most so many writes have an unknown outcome.
    pub unknown_max: Option<u64>,
    /// At most so many operations failed without effect. Conflicts and missing rows do not count.
    pub failed_max: Option<u64>,
    /// A shard got a new configuration so many times, the first not counted.
    pub failovers_min: Option<u64>,
    /// And at most so many times: a fault that must not be noticed.
    pub failovers_max: Option<u64>,
    /// Servers were respawned so many times.
    pub respawns_min: Option<u64>,
    /// Starts of servers failed so many times.
    pub provision_failures_min: Option<u64>,
    /// So many replicas were lost and noticed.
    pub lost_replicas_min: Option<u64>,
    /// In the end every shard's configuration has so many members.
    pub members_min: Option<u64>,
    /// 99 of 100 operations that worked took no longer.
    pub p99_max_ms: Option<u64>,
}

const fn one() -> u32 {
    1
}
const fn three() -> u32 {
    3
}
const fn four() -> u32 {
    4
}
const fn ten() -> u32 {
    10
}
const fn hundred() -> u32 {
    100
}
const fn two_seconds() -> u64 {
    2_000
}
const fn ten_seconds() -> u64 {
    10_000
}

impl Scenario {
    /// Parses and checks. `file` is for messages.
    ///
    /// # Errors
    /// See [`ScenarioError`].
    pub fn parse(file: &str, text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self =
            toml::from_str(text).map_err(|error| ScenarioError::Parse { file: file.to_owned(), error: Box::new(error) })?;
        check::check(&scenario).map_err(|(key, problem)| ScenarioError::Invalid { file: file.to_owned(), key, problem })?;
        Ok(scenario)
    }

    /// Reads a file, which has to be named as its scenario.
    ///
    /// # Errors
    /// See [`ScenarioError`].
    pub fn load(path: &Path) -> Result<Self, ScenarioError> {
        let text = std::fs::read_to_string(path).map_err(|error| ScenarioError::Read { file: path.to_owned(), error })?;
        let file = path.display().to_string();
        let scenario = Self::parse(&file, &text)?;
        if path.file_stem().is_none_or(|stem| stem != scenario.name.as_str()) {
            return Err(ScenarioError::Invalid { file, key: "name".to_owned(), problem: "is not the name of the file".to_owned() });
        }
        Ok(scenario)
    }

    /// Reads every `*.toml` of a folder, by name.
    ///
    /// # Errors
    /// The first that is wrong; see [`ScenarioError`].
    pub fn load_all(folder: &Path) -> Result<Vec<Self>, ScenarioError> {
        let unreadable = |error| ScenarioError::Read { file: folder.to_owned(), error };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if path.extension().is_some_and(|extension| extension == "toml") && path.file_name().is_none_or(|name| name != "Cargo.toml") {
                files.push(path);
            }
        }
        files.sort();
        files.iter().map(|path| Self::load(path)).collect()
    }

    /// Checks a scenario that was made by a program.
    ///
    /// # Errors
    /// The key and what is wrong with it.
    pub fn check(&self) -> Result<(), (String, String)> {
        check::check(self)
    }

    /// The names of the servers at the start.
    pub fn server_names(&self) -> impl Iterator<Item = String> {
        (0..self.topology.servers).map(|number| format!("Server{number}"))
    }

    /// The servers that hold a shard of the start, by its place.
    #[must_use]
    pub fn servers_of(&self, shard_place: usize) -> Vec<String> {
        let topology = &self.topology;
        match &topology.shards[shard_place].servers {
            Some(servers) => servers.clone(),
            None => (0..topology.replicas.min(topology.servers) as usize)
                .map(|nth| format!("Server{}", (shard_place + nth) % topology.servers as usize))
                .collect(),
        }
    }

    /// The request that sets the cluster up.
    #[must_use]
    pub fn init(&self) -> Request {
        let mut servers: Vec<NewServer> =
            self.server_names().map(|name| NewServer { name: name.into_boxed_str(), shards: Vec::new() }).collect();
        for (place, shard) in self.topology.shards.iter().enumerate() {
            let holders = self.servers_of(place);
            for server in &mut servers {
                if holders.iter().any(|holder| **holder == *server.name) {
                    server.shards.push(shard.name.as_str().into());
                }
            }
        }
        Request::Init {
            server_count: Some(u64::from(self.topology.servers)),
            schema: schema(),
            shards: self.topology.shards.iter().map(ShardSpec::new_shard).collect(),
            servers: Some(servers),
            on_conflict: None,
            by_name: false,
        }
    }

    /// When the load ends and the last fault is over.
    #[must_use]
    pub fn end_ms(&self) -> u64 {
        let faults = self.faults.iter().map(|fault| fault.at_ms + fault.for_ms);
        let admin = self.admin.iter().map(|step| step.at_ms);
        faults.chain(admin).fold(self.workload.duration_ms, u64::max)
    }
}

impl ShardSpec {
    fn new_shard(&self) -> NewShard {
        NewShard { name: self.name.as_str().into(), low: self.low, size: self.size }
    }
}

impl AdminKind {
    /// The request.
    #[must_use]
    pub fn request(&self) -> Request {
        match self {
            Self::Add { servers, shards } => Request::Add {
                server_count: servers.len() as u64,
                new_shards: shards.iter().map(ShardSpec::new_shard).collect(),
                servers: servers
                    .iter()
                    .map(|server| NewServer {
                        name: server.name.as_str().into(),
                        shards: server.shards.iter().map(|shard| shard.as_str().into()).collect(),
                    })
                    .collect(),
                strict: true,
            },
            Self::Remove { servers } => Request::Remove {
                server_count: servers.len() as u64,
                servers: servers.iter().map(|name| name.as_str().into()).collect(),
                accept_data_loss: false,
                capped: false,
            },
            Self::MovePrimary { shard } => Request::Primary { shard: shard.as_str().into(), change: true },
            Self::Move { shard, from, to } => {
                Request::Move { shard: shard.as_str().into(), from: from.as_str().into(), to: to.as_str().into() }
            }
            Self::Drain { server } => Request::Drain { server: server.as_str().into() },
        }
    }
}

/// The schema of every scenario: the course's, with a number to hold the unique value.
///
/// # Panics
/// Never: the columns are fine.
#[must_use]
pub fn schema() -> Schema {
    let column = |name: &str, dtype| Column { name: name.into(), dtype };
    let columns =
        vec![column("Stud_id", ColumnType::Number), column("Stud_name", ColumnType::String), column("Stud_marks", ColumnType::Number)];
    let schema: Result<Schema, SchemaError> = Schema::new(columns);
    schema.expect("three good columns")
}

#[cfg(test)]
mod tests;
