//! The topologies of the course: the default cluster and those of its analysis runs (API.md).

use clap::ValueEnum;
use serde_json::{Value, json};

/// The keys of one shard.
const SHARD_SIZE: usize = 4_096;

/// A run of the course's analysis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Run {
    /// 6 servers, 4 shards, 3 replicas.
    A1,
    /// 7 servers, 4 shards, 7 replicas.
    A2,
    /// 10 servers, 6 shards, 8 replicas.
    A3,
}

impl Run {
    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::A1 => "a1",
            Self::A2 => "a2",
            Self::A3 => "a3",
        }
    }
}

/// The body of /init for a run.
#[must_use]
pub fn init(run: Run) -> Value {
    match run {
        // The placement that the course gives.
        Run::A1 => body(4, &[&[1, 2], &[3, 4], &[1, 3], &[4, 2], &[1, 4], &[3, 2]]),
        Run::A2 => body(4, &[[1, 2, 3, 4].as_slice(); 7]),
        // Eight of ten hold each shard: every server leaves out one or two, spread evenly.
        Run::A3 => {
            let held: Vec<Vec<usize>> =
                (0..10).map(|server| (0..6).filter(|shard| (server + 10 - shard) % 10 >= 2).map(|shard| shard + 1).collect()).collect();
            body(6, &held.iter().map(Vec::as_slice).collect::<Vec<_>>())
        }
    }
}

/// The body of /init for the course's default cluster: three servers, three shards, two replicas each.
#[must_use]
pub fn default_cluster() -> Value {
    body(3, &[&[1, 2], &[2, 3], &[1, 3]])
}

fn body(shard_count: usize, held: &[&[usize]]) -> Value {
    let shards: Vec<_> = (0..shard_count)
        .map(|place| json!({ "Stud_id_low": place * SHARD_SIZE, "Shard_id": format!("sh{}", place + 1), "Shard_size": SHARD_SIZE }))
        .collect();
    let servers: serde_json::Map<String, Value> = held
        .iter()
        .enumerate()
        .map(|(server, shards)| (format!("Server{server}"), shards.iter().map(|shard| format!("sh{shard}")).collect()))
        .collect();
    json!({
        "N": held.len(),
        "schema": { "columns": ["Stud_id", "Stud_name", "Stud_marks"], "dtypes": ["Number", "String", "Number"] },
        "shards": shards,
        "servers": servers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica_counts(body: &Value) -> Vec<usize> {
        let holds = |shard: &Value| {
            let name = &shard["Shard_id"];
            body["servers"].as_object().unwrap().values().filter(|held| held.as_array().unwrap().contains(name)).count()
        };
        body["shards"].as_array().unwrap().iter().map(holds).collect()
    }

    #[test]
    fn runs_have_the_replicas_that_the_course_gives() {
        assert_eq!(replica_counts(&init(Run::A1)), [3; 4]);
        assert_eq!(replica_counts(&init(Run::A2)), [7; 4]);
        assert_eq!(replica_counts(&init(Run::A3)), [8; 6]);
        assert_eq!(replica_counts(&default_cluster()), [2; 3]);
    }
}
