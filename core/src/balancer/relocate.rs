//! Moves of replicas that an operator asks for: pure changes of where the map wants them. The planner does the rest: the new replica learns
//! while the old one serves, and the old one goes when the new one is a member.

use super::{
    admin::{Goal, invalid, primary_server, quoted, refused},
    loss::{self, Denied},
    observed::Observed,
};
use crate::{
    config::MEMBERS_MAX,
    id::{ServerId, ShardId},
    map::{ClusterMap, ServerGoal, ShardRecord},
    planted::{Bug, Planted},
    request::{Reply, RequestError},
    time::Instant,
};
use std::collections::BTreeSet;

/// A replica of the shard goes to that server.
pub(crate) type Moves = Vec<(ShardId, ServerId)>;

/// The server that runs under that name.
fn server_named(map: &ClusterMap, name: &str) -> Result<ServerId, RequestError> {
    let Some(id) = map.server_named(name) else { return Err(invalid(format!("Server {} does not exist", quoted(name)))) };
    match map.servers.get(&id) {
        Some(record) if record.goal == ServerGoal::Run => Ok(id),
        Some(_) | None => Err(refused(format!("Server {} is being removed", quoted(name)))),
    }
}

fn name_of(map: &ClusterMap, server: ServerId) -> String {
    quoted(map.servers.get(&server).map_or("?", |record| &record.name))
}

/// Changes where the map wants one replica.
fn relocate(map: &mut ClusterMap, shard: ShardId, from: ServerId, to: ServerId, observed: &Observed, now: Instant) -> Result<(), Denied> {
    let Some(record) = map.shards.get(&shard) else { return Err(refused("The shard is gone").into()) };
    let name = quoted(&record.name);
    // A copy needs somebody to copy from, and a change somebody to seal.
    if let Some(current) = &record.current {
        let words = format!("Shard {name} cannot be moved: too few of its replicas answer");
        loss::seal(map, current, observed, now).or_denied(refused(words))?;
    }
    if record.placement.len() >= MEMBERS_MAX {
        return Err(refused(format!("Shard {name} has {MEMBERS_MAX} replicas: there is no room for one more while it moves")).into());
    }
    if let Some(record) = map.shards.get_mut(&shard) {
        record.placement.remove(&from);
        record.placement.insert(to);
        if record.wanted_primary == Some(from) {
            record.wanted_primary = None;
        }
    }
    Ok(())
}

/// The map with a replica of the shard on another server.
pub(crate) fn move_replica(
    map: &ClusterMap,
    (shard, from, to): (&str, &str, &str),
    observed: &Observed,
    now: Instant,
) -> Result<(ClusterMap, Goal), Denied> {
    let Some(id) = map.shard_named(shard) else { return Err(RequestError::NoSuchShard(shard.into()).into()) };
    let Some(from_id) = map.server_named(from) else { return Err(invalid(format!("Server {} does not exist", quoted(from))).into()) };
    let to_id = server_named(map, to)?;
    if from_id == to_id {
        return Err(invalid("'from' and 'to' are the same server").into());
    }
    let goal = Goal::Relocated { from: from_id, moves: vec![(id, to_id)], is_whole: false };
    let Some(record) = map.shards.get(&id) else { return Err(RequestError::NoSuchShard(shard.into()).into()) };
    match (record.placement.contains(&from_id), record.placement.contains(&to_id)) {
        // Wished already: it is waited for.
        (false, true) => return Ok((map.clone(), goal)),
        (false, false) => return Err(refused(format!("Server {} holds no replica of {}", quoted(from), quoted(shard))).into()),
        (true, true) => return Err(refused(format!("Server {} holds a replica of {} already", quoted(to), quoted(shard))).into()),
        (true, false) => {}
    }
    if !observed.is_alive(to_id, now) {
        let error = refused(format!("Server {} does not answer", quoted(to)));
        return Err(if observed.is_down(to_id, now) { Denied::Now(error) } else { Denied::Later(error) });
    }
    let mut next = map.clone();
    relocate(&mut next, id, from_id, to_id, observed, now)?;
    // Who names it wants it to hold something again.
    next.drained.remove(&to_id);
    Ok((next, goal))
}

/// The map with all replicas of a server on others, each on the one that holds least. It stays, and holds nothing until an operator moves
/// a replica to it.
pub(crate) fn drain(
    map: &ClusterMap,
    server: &str,
    observed: &Observed,
    now: Instant,
    planted: Planted,
) -> Result<(ClusterMap, Goal), Denied> {
    let from = server_named(map, server)?;
    let mut next = map.clone();
    next.drained.insert(from);
    let mut moves = Vec::new();
    let mut held: Vec<ShardId> = map.shards.iter().filter(|(_, record)| record.placement.contains(&from)).map(|(id, _)| *id).collect();
    let is_whole = !planted.has(Bug::DrainLeavesOne);
    if !is_whole {
        held.pop();
    }
    for shard in held {
        let load = |server: ServerId| next.shards.values().filter(|record| record.placement.contains(&server)).count();
        let placement = next.shards.get(&shard).map(|record| record.placement.clone()).unwrap_or_default();
        let free = || {
            next.servers
                .iter()
                .filter(|(id, record)| record.goal == ServerGoal::Run && !next.drained.contains(id) && !placement.contains(id))
                .map(|(id, _)| *id)
        };
        let Some(to) = free().filter(|id| observed.is_alive(*id, now)).min_by_key(|id| (load(*id), *id)) else {
            let name = map.shards.get(&shard).map_or_else(String::new, |record| quoted(&record.name));
            let words = format!("Shard {name} has nowhere to go: every other server that answers holds it already, or was drained");
            let waits = free().any(|id| !observed.is_down(id, now));
            return Err(if waits { Denied::Later(refused(words)) } else { Denied::Now(refused(words)) });
        };
        relocate(&mut next, shard, from, to, observed, now)?;
        moves.push((shard, to));
    }
    Ok((next, Goal::Relocated { from, moves, is_whole }))
}

/// Whether the map wants those moves.
pub(crate) fn stands(map: &ClusterMap, from: ServerId, moves: &Moves) -> bool {
    let is_wanted = |(shard, to): &(ShardId, ServerId)| {
        map.shards.get(shard).is_some_and(|record| record.placement.contains(to) && !record.placement.contains(&from))
    };
    map.servers.contains_key(&from) && !moves.is_empty() && moves.iter().all(is_wanted)
}

/// The answer, once every replica serves where it went, and none is left where it was; of the whole server, if that was asked, as what was
/// moved before may still be on its way.
pub(crate) fn reached(
    map: &ClusterMap,
    observed: &Observed,
    (from, moves, is_whole): (ServerId, &Moves, bool),
    now: Instant,
) -> Option<Reply> {
    let members = |record: &ShardRecord| -> BTreeSet<ServerId> {
        record.current.iter().flat_map(|current| &current.members).filter_map(|member| map.server_of(*member)).collect()
    };
    let is_there = |(shard, to): &(ShardId, ServerId)| {
        map.shards.get(shard).is_some_and(|record| {
            let members = members(record);
            members.contains(to) && !members.contains(&from) && primary_server(map, observed, *shard, now).is_some()
        })
    };
    if is_whole && map.shards.values().any(|record| members(record).contains(&from)) {
        return None;
    }
    moves.iter().all(is_there).then(|| said(map, moves))
}

/// The answer.
pub(crate) fn said(map: &ClusterMap, moves: &Moves) -> Reply {
    let name = |(shard, to): &(ShardId, ServerId)| {
        let server = map.servers.get(to).map(|record| record.name.clone())?;
        Some((map.shards.get(shard)?.name.clone(), server))
    };
    Reply::Relocated { moves: moves.iter().filter_map(name).collect() }
}

/// Why those moves are never done any more: another request wants those replicas elsewhere, or none.
pub(crate) fn overtaken(map: &ClusterMap, from: ServerId, moves: &Moves, is_whole: bool) -> Option<RequestError> {
    let placed = |record: &ShardRecord, server: ServerId| record.placement.contains(&server);
    if is_whole && map.shards.values().any(|record| placed(record, from)) {
        return Some(refused("Another request placed a replica on the server again"));
    }
    moves.iter().find_map(|(shard, to)| match map.shards.get(shard) {
        None => Some(refused("The shard was removed before it was moved")),
        Some(record) if !placed(record, *to) || placed(record, from) => Some(refused(format!(
            "Another request took the replica of {} elsewhere, or removed the server that was to have it",
            quoted(&record.name)
        ))),
        Some(_) => None,
    })
}

/// Why a replica that is to go has not gone, for people: the server's name.
pub(crate) fn leaving(map: &ClusterMap, shard: ShardId) -> Vec<String> {
    let Some(record) = map.shards.get(&shard) else { return Vec::new() };
    let members = record.current.iter().flat_map(|current| &current.members).filter_map(|member| map.server_of(*member));
    members.filter(|server| !record.placement.contains(server)).map(|server| name_of(map, server)).collect()
}
