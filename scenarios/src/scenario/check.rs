//! Whether a scenario makes sense: what TOML and types alone do not say.

use super::{AdminKind, FaultKind, Scenario, ShardSpec, Target};
use std::collections::{BTreeMap, BTreeSet};
use twinshard_core::schema::is_name;

/// The most operations a scenario may ask for, so that a slip of a digit does not fill the memory.
const OPERATIONS_MAX: u64 = 1_000_000;
/// The most milliseconds that any time in a scenario may be: a day.
const TIME_MS_MAX: u64 = 86_400_000;

type Problem = (String, String);

fn require(holds: bool, key: impl Into<String>, problem: impl Into<String>) -> Result<(), Problem> {
    if holds { Ok(()) } else { Err((key.into(), problem.into())) }
}

/// Checks everything, and names the first key that is wrong.
pub(super) fn check(scenario: &Scenario) -> Result<(), Problem> {
    require(is_name(&scenario.name), "name", "is not a name: use letters, digits, '_', '.', '-', at most 63")?;
    require(!scenario.story.trim().is_empty(), "story", "is empty: say what happens and why it matters")?;
    topology(scenario)?;
    workload(scenario)?;
    // Names that come into being: shards and servers of the start, and those that are added.
    let mut servers: BTreeSet<String> = scenario.server_names().collect();
    let mut shards: BTreeMap<&str, &ShardSpec> = scenario.topology.shards.iter().map(|shard| (shard.name.as_str(), shard)).collect();
    for (place, step) in scenario.admin.iter().enumerate() {
        let key = |field: &str| format!("admin[{place}].{field}");
        require(step.at_ms <= TIME_MS_MAX, key("at_ms"), "is more than a day")?;
        match &step.kind {
            AdminKind::Add { servers: new, shards: new_shards } => {
                for shard in new_shards {
                    shard_is_sound(shard, &shards).map_err(|problem| (key("shards"), problem))?;
                    shards.insert(&shard.name, shard);
                }
                for server in new {
                    require(is_name(&server.name), key("servers"), format!("'{}' is not a server's name", server.name))?;
                    require(servers.insert(server.name.clone()), key("servers"), format!("'{}' exists", server.name))?;
                    for shard in &server.shards {
                        require(shards.contains_key(shard.as_str()), key("servers"), format!("there is no shard '{shard}'"))?;
                    }
                }
            }
            AdminKind::Remove { servers: gone } => {
                for server in gone {
                    require(servers.contains(server), key("servers"), format!("there is no server '{server}'"))?;
                }
            }
            AdminKind::MovePrimary { shard } => {
                require(shards.contains_key(shard.as_str()), key("shard"), format!("there is no shard '{shard}'"))?;
            }
            AdminKind::Move { shard, from, to } => {
                require(shards.contains_key(shard.as_str()), key("shard"), format!("there is no shard '{shard}'"))?;
                for (field, server) in [("from", from), ("to", to)] {
                    require(servers.contains(server), key(field), format!("there is no server '{server}'"))?;
                }
            }
            AdminKind::Drain { server } => {
                require(servers.contains(server), key("server"), format!("there is no server '{server}'"))?;
            }
        }
    }
    for (place, fault) in scenario.faults.iter().enumerate() {
        let key = |field: &str| format!("faults[{place}].{field}");
        require(fault.at_ms <= TIME_MS_MAX, key("at_ms"), "is more than a day")?;
        require(fault.for_ms <= TIME_MS_MAX, key("for_ms"), "is more than a day")?;
        let known = |field: &str, target: &Target| match target {
            Target::Server(name) => require(servers.contains(name), key(field), format!("there is no server '{name}'")),
            Target::Balancer(number) => {
                require(*number < scenario.topology.balancers, key(field), format!("there is no balancer {number}"))
            }
            Target::PrimaryOf(shard) | Target::BackupOf(shard) | Target::BackupsOf(shard) => {
                require(shards.contains_key(shard.as_str()), key(field), format!("there is no shard '{shard}'"))
            }
            Target::Controller | Target::Servers | Target::Balancers | Target::Clients => Ok(()),
        };
        let lasts = || require(fault.for_ms > 0, key("for_ms"), "is missing: how long does it last?");
        let process = |target: &Target| require(*target != Target::Clients, key("target"), "clients are no processes of the cluster");
        let is_server = |target: &Target| !matches!(target, Target::Balancer(_) | Target::Controller | Target::Balancers);
        match &fault.kind {
            FaultKind::Crash { target } => {
                known("target", target)?;
                process(target)?;
            }
            FaultKind::LoseDisk { target } => {
                known("target", target)?;
                process(target)?;
                require(is_server(target), key("target"), "a balancer has no disk to lose")?;
            }
            FaultKind::DatabaseDown { target } => {
                known("target", target)?;
                process(target)?;
                require(is_server(target), key("target"), "a balancer has no rows in a database")?;
                lasts()?;
            }
            FaultKind::Pause { target } | FaultKind::SlowDisk { target, .. } => {
                known("target", target)?;
                process(target)?;
                lasts()?;
            }
            FaultKind::Partition { between, and, .. } => {
                require(!between.is_empty(), key("between"), "names nobody")?;
                require(!and.is_empty(), key("and"), "names nobody")?;
                between.iter().try_for_each(|target| known("between", target))?;
                and.iter().try_for_each(|target| known("and", target))?;
                lasts()?;
            }
            FaultKind::Isolate { target } => {
                known("target", target)?;
                lasts()?;
            }
            FaultKind::PowerLoss {} => {}
            FaultKind::RegisterDown {} => lasts()?,
            FaultKind::ProvisionFails { target, times } => {
                if let Some(target) = target {
                    known("target", target)?;
                    process(target)?;
                }
                require(*times > 0, key("times"), "is 0: nothing would fail")?;
            }
            FaultKind::Network { loss_per_mille, duplicate_per_mille, delay_ms } => {
                lasts()?;
                require(*loss_per_mille <= 1_000, key("loss_per_mille"), "is more than 1000")?;
                require(*duplicate_per_mille <= 1_000, key("duplicate_per_mille"), "is more than 1000")?;
                require(loss_per_mille + duplicate_per_mille > 0 || *delay_ms > 0, key("kind"), "neither loses, doubles nor delays")?;
            }
        }
    }
    Ok(())
}

fn topology(scenario: &Scenario) -> Result<(), Problem> {
    let topology = &scenario.topology;
    require((1..=64).contains(&topology.servers), "topology.servers", "must be 1 to 64")?;
    require((1..=8).contains(&topology.balancers), "topology.balancers", "must be 1 to 8")?;
    require(topology.replicas >= 1, "topology.replicas", "must be at least 1")?;
    require(topology.replicas <= topology.servers, "topology.replicas", "is more than there are servers")?;
    require(!topology.shards.is_empty(), "topology.shards", "is empty")?;
    let names: BTreeSet<String> = scenario.server_names().collect();
    let mut before = BTreeMap::new();
    for (place, shard) in topology.shards.iter().enumerate() {
        let key = || format!("topology.shards[{place}]");
        shard_is_sound(shard, &before).map_err(|problem| (key(), problem))?;
        before.insert(&shard.name, shard);
        let holders = scenario.servers_of(place);
        require(!holders.is_empty(), key(), "no server holds it")?;
        for holder in &holders {
            require(names.contains(holder), key(), format!("there is no server '{holder}'"))?;
        }
        let distinct: BTreeSet<&String> = holders.iter().collect();
        require(distinct.len() == holders.len(), key(), "a server stands twice")?;
        if let Some(quorum) = topology.write_quorum {
            let fits = (1..=holders.len()).contains(&(quorum as usize));
            require(fits, "topology.write_quorum", format!("does not fit the {} replicas of '{}'", holders.len(), shard.name))?;
        }
    }
    Ok(())
}

fn shard_is_sound<'a>(shard: &ShardSpec, before: &BTreeMap<impl Ord + AsRef<str> + 'a, &ShardSpec>) -> Result<(), String> {
    if !is_name(&shard.name) {
        return Err(format!("'{}' is not a shard's name", shard.name));
    }
    if shard.low < 0 || shard.size < 1 || shard.low.checked_add(shard.size).is_none() {
        return Err(format!("'{}': low must be at least 0 and size at least 1", shard.name));
    }
    for other in before.values() {
        if other.name == shard.name {
            return Err(format!("'{}' stands twice", shard.name));
        }
        if shard.low < other.low + other.size && other.low < shard.low + shard.size {
            return Err(format!("'{}' overlaps '{}'", shard.name, other.name));
        }
    }
    Ok(())
}

fn workload(scenario: &Scenario) -> Result<(), Problem> {
    let workload = &scenario.workload;
    let key = |field: &str| format!("workload.{field}");
    require((1..=10_000).contains(&workload.clients), key("clients"), "must be 1 to 10000")?;
    require((1..=TIME_MS_MAX).contains(&workload.duration_ms), key("duration_ms"), "must be 1 to a day")?;
    require((1..=TIME_MS_MAX).contains(&workload.deadline_ms), key("deadline_ms"), "must be 1 to a day")?;
    match (workload.rate_per_s, workload.think_ms) {
        (Some(rate), None) => {
            require((1..=1_000_000).contains(&rate), key("rate_per_s"), "must be 1 to 1000000")?;
            let count = rate.saturating_mul(workload.duration_ms) / 1_000;
            require(count <= OPERATIONS_MAX, key("rate_per_s"), format!("makes {count} operations, more than {OPERATIONS_MAX}"))?;
        }
        (None, Some(think)) => require(think <= TIME_MS_MAX, key("think_ms"), "is more than a day")?,
        (Some(_), Some(_)) | (None, None) => {
            return Err((key("rate_per_s"), "give either rate_per_s (open loop) or think_ms (closed loop)".to_owned()));
        }
    }
    require(workload.keys_per_shard >= 1, key("keys_per_shard"), "must be at least 1")?;
    for shard in &scenario.topology.shards {
        let fits = i64::from(workload.keys_per_shard) <= shard.size;
        require(fits, key("keys_per_shard"), format!("is more than the {} keys of '{}'", shard.size, shard.name))?;
    }
    require((1..=1_000).contains(&workload.rows_per_batch), key("rows_per_batch"), "must be 1 to 1000")?;
    require((1..=100_000).contains(&workload.range_width), key("range_width"), "must be 1 to 100000")?;
    require(workload.retries_max == 0 || workload.idempotency_keys, key("retries_max"), "needs idempotency_keys = true")?;
    require(workload.mix.weights().iter().any(|weight| *weight > 0), key("mix"), "is empty: nothing would be done")?;
    require(workload.mix.weights().iter().all(|weight| *weight <= 1_000_000), key("mix"), "a weight is more than 1000000")
}
