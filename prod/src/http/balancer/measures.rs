//! The cluster as a balancer sees it: in numbers for /metrics, and whether it can be asked anything, for /readyz.

use crate::telemetry::{Measured, OfReplica, OfServer, OfShard};
use twinshard_core::{
    id::ServerId,
    request::{Health, Status},
};

/// Adds what the status says.
pub(super) fn measure(status: &Status, now: &mut Measured) {
    let map = &status.map;
    now.set("map_version", "The version of the cluster map that this node knows", status.version.0);
    let name = |server: ServerId| map.servers.get(&server).map_or_else(|| server.to_string(), |record| record.name.to_string());
    let up = status.servers.iter().map(|(id, seen)| (OfServer { server: name(*id) }, u64::from(seen.health == Health::Up)));
    now.set_each("server_up", "1 if the server answers this balancer", up);
    let respawns = status.servers.iter().map(|(id, seen)| (OfServer { server: name(*id) }, seen.respawn_count));
    now.set_each("server_respawns", "How often the server was seen to run anew", respawns);

    let of_shard = |values: &dyn Fn(&twinshard_core::map::ShardRecord) -> Option<u64>| {
        let shards = map.shards.values();
        shards.filter_map(|record| Some((OfShard { shard: record.name.to_string() }, values(record)?))).collect::<Vec<_>>()
    };
    let epochs = of_shard(&|record| record.current.as_ref().map(|current| current.epoch.0));
    now.set_each("shard_epoch", "The epoch of the shard's active configuration", epochs);
    let members = of_shard(&|record| record.current.as_ref().map(|current| current.members.len() as u64));
    now.set_each("shard_members", "The members of the shard's active configuration", members);
    let pending = of_shard(&|record| Some(u64::from(record.pending.is_some())));
    now.set_each("shard_pending", "1 while a new configuration of the shard is on its way", pending);
    let led = status.shards.iter().filter_map(|(id, seen)| {
        let record = map.shards.get(id)?;
        Some((OfShard { shard: record.name.to_string() }, u64::from(seen.primary.is_some())))
    });
    now.set_each("shard_served", "1 if a primary serves the shard", led);

    let mut replicas = Vec::new();
    for (server, seen) in &status.servers {
        for replica in &seen.replicas {
            let Some(shard) = map.shards.get(&replica.shard) else { continue };
            replicas.push((OfReplica { shard: shard.name.to_string(), server: name(*server), replica: replica.replica.0 }, replica));
        }
    }
    now.replicas(&replicas);
}

/// Why no shard can be read or written through this balancer, if so: it hears of too few members of each.
pub(super) fn trouble(status: &Status) -> Option<String> {
    let map = &status.map;
    let is_up = |server: ServerId| status.servers.get(&server).is_some_and(|seen| matches!(seen.health, Health::Up | Health::Suspect));
    let reaches = |record: &twinshard_core::map::ShardRecord| {
        record.current.as_ref().is_some_and(|current| {
            let reached = current.members.iter().filter(|member| map.server_of(**member).is_some_and(is_up)).count();
            reached >= current.write_quorum as usize
        })
    };
    // Those that are being created have nothing to reach.
    let mut shards = map.shards.values().filter(|record| record.current.is_some()).peekable();
    shards.peek()?;
    let away: Vec<&str> =
        status.servers.iter().filter(|(id, _)| !is_up(**id)).filter_map(|(id, _)| Some(&*map.servers.get(id)?.name)).collect();
    let words = || format!("This balancer reaches a quorum of no shard; servers that do not answer: {}", away.join(", "));
    shards.all(|record| !reaches(record)).then(words)
}
