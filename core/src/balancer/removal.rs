//! /rm: which servers leave, and where what they hold goes. A pure change of what the map wants. Where an operator accepted that data is
//! lost, the map says so of the shards, and who controls judges whether it comes to that ([`super::loss`]).

use super::{
    admin::{Goal, invalid, quoted, refused},
    loss::{self, Denied},
    observed::Observed,
    plan,
};
use crate::{
    id::{ServerId, ShardId},
    map::{ClusterMap, ServerGoal},
    request::RequestError,
    time::Instant,
};
use std::collections::BTreeSet;

/// A request of /rm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remove<'a> {
    pub(crate) server_count: u64,
    pub(crate) servers: &'a [Box<str>],
    pub(crate) accept_data_loss: bool,
    pub(crate) capped: bool,
}

/// The map with servers on their way out, and what to wait for.
pub(crate) fn remove(map: &ClusterMap, request: &Remove<'_>, observed: &Observed, now: Instant) -> Result<(ClusterMap, Goal), Denied> {
    let Remove { servers: names, accept_data_loss, capped, .. } = *request;
    let run: Vec<ServerId> = map.servers.iter().filter(|(_, record)| record.goal == ServerGoal::Run).map(|(id, _)| *id).collect();
    let count = if capped { request.server_count.min(run.len() as u64) } else { request.server_count };
    if names.len() as u64 > request.server_count {
        let error = if capped { RequestError::TooManyHostnamesToRemove } else { RequestError::TooManyServersToRemove };
        return Err(error.into());
    }
    let mut leaving: Vec<ServerId> = Vec::new();
    for name in names {
        let Some(id) = map.server_named(name) else {
            return Err(invalid(format!("Server {} does not exist", quoted(name))).into());
        };
        if leaving.contains(&id) {
            return Err(invalid(format!("Server {} stands twice", quoted(name))).into());
        }
        leaving.push(id);
    }
    let are_all_named = run.iter().all(|id| leaving.contains(id));
    let on_their_way = leaving.iter().filter(|id| !run.contains(id)).count() as u64;
    if count > run.len() as u64 + on_their_way {
        return Err(invalid(format!("There are only {} servers to remove", run.len())).into());
    }
    // The rest: those whose going costs least, which lead and hold least.
    let cost = |id: &ServerId| {
        let held = map.shards.values().filter(|record| record.placement.contains(id)).count();
        let led = map
            .shards
            .values()
            .filter(|record| record.current.as_ref().and_then(|current| map.server_of(current.primary)) == Some(*id))
            .count();
        (held, led, std::cmp::Reverse(*id))
    };
    let mut rest: Vec<ServerId> = run.iter().copied().filter(|id| !leaving.contains(id)).collect();
    rest.sort_by_key(cost);
    leaving.extend(rest.into_iter().take(usize::try_from(count).unwrap_or(usize::MAX).saturating_sub(leaving.len())));
    // In the order in which they came.
    leaving.sort_unstable();
    let leaving_names: Vec<Box<str>> = leaving.iter().filter_map(|id| map.servers.get(id)).map(|record| record.name.clone()).collect();

    let mut next = map.clone();
    for id in &leaving {
        if let Some(record) = next.servers.get_mut(id) {
            record.goal = ServerGoal::Leave;
        }
    }
    if run.iter().all(|id| leaving.contains(id)) {
        // Data goes with the last server only where each was named, or its loss was accepted.
        if let Some(shard) = map.shards.values().next().filter(|_| !are_all_named && !accept_data_loss) {
            let words = format!("Shard {} would lose its last replica: name all servers to tear the cluster down", quoted(&shard.name));
            return Err(refused(words).into());
        }
        // A teardown: nothing is left to hold anything. What is on disk stays there.
        next.shards.clear();
        next.replicas.clear();
        next.accepted_loss.clear();
        next.schema = None;
        return Ok((next, Goal::Removed { servers: leaving, names: leaving_names }));
    }
    let staying: Vec<ServerId> = run.iter().copied().filter(|id| !leaving.contains(id)).collect();
    let shards: Vec<ShardId> = next.shards.keys().copied().collect();
    for shard in shards {
        let Some(record) = next.shards.get(&shard) else { continue };
        if accept_data_loss && leaving.iter().any(|server| record.placement.contains(server) || plan::has_part(map, shard, *server)) {
            // Nothing is judged here: who controls does that, when it knows.
            next.accepted_loss.insert(shard);
        }
        if record.placement.iter().all(|server| !leaving.contains(server)) {
            continue;
        }
        let (name, current) = (record.name.clone(), record.current.clone());
        let mut placement: BTreeSet<ServerId> = record.placement.iter().copied().filter(|server| !leaving.contains(server)).collect();
        // The last replica, or the write quorum, is first brought up elsewhere. A quorum that the settings fix must be kept; another one
        // shrinks with the members where there is no room.
        let fixed = next.settings.write_quorum.map_or(1, |quorum| quorum as usize).min(record.placement.len());
        let quorum = current.as_ref().map_or(1, |current| current.write_quorum as usize);
        while placement.len() < fixed.max(quorum) {
            let load = |server: ServerId| next.shards.values().filter(|record| record.placement.contains(&server)).count();
            let free = staying.iter().copied().filter(|server| !placement.contains(server) && !map.drained.contains(server));
            match free.min_by_key(|server| (load(*server), *server)) {
                Some(server) => placement.insert(server),
                None if placement.len() >= fixed || (accept_data_loss && !placement.is_empty()) => break,
                None => {
                    return Err(refused(format!("Shard {} would lose its last replica or its write quorum", quoted(&name))).into());
                }
            };
        }
        // A copy needs somebody to copy from, and a change somebody to seal.
        if let Some(current) = current.as_ref().filter(|current| !accept_data_loss || loss::serves(map, current, observed, now)) {
            let words = if accept_data_loss {
                format!(
                    "Shard {} cannot be moved, as too few of its replicas answer; it serves as it is, so nothing is given up",
                    quoted(&name)
                )
            } else {
                format!("Shard {} cannot be moved: too few of its replicas answer", quoted(&name))
            };
            loss::seal(map, current, observed, now).or_denied(refused(words))?;
        }
        if let Some(record) = next.shards.get_mut(&shard) {
            record.placement = placement;
        }
    }
    Ok((next, Goal::Removed { servers: leaving, names: leaving_names }))
}
