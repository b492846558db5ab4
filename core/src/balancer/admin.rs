//! /init, /add, /rm and the move of a primary: pure changes of what the map wants, with the refusals of API.md. Whether the wish has come
//! true is for [`Goal`] to say.

use super::{
    loss::Denied,
    observed::Observed,
    relocate::{self, Moves},
};
use crate::{
    command::OnConflict,
    id::{SchemaId, ServerId, ShardId},
    map::{ClusterMap, SERVERS_MAX, SHARDS_MAX, ServerGoal, ServerRecord, ShardRecord},
    message::LeadStage,
    request::{NewServer, NewShard, Reply, RequestError},
    schema::{Schema, is_name},
    time::Instant,
    value::Key,
};
use std::collections::{BTreeMap, BTreeSet};

/// How many replicas a shard gets where the request does not place it (API.md).
const DEFAULT_REPLICAS: usize = 3;
/// How many servers there are where the request does not say.
const DEFAULT_SERVERS: u64 = 3;

/// What has to be seen before an administrative request is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Every shard has an active configuration with an active primary, of that schema.
    Initialised { schema: SchemaId },
    /// These servers run, and are members of all they shall hold; these shards serve.
    Added { servers: Vec<ServerId>, names: Vec<Box<str>>, shards: Vec<ShardId> },
    /// These servers are forgotten.
    Removed { servers: Vec<ServerId>, names: Vec<Box<str>> },
    /// Another server than `from` leads the shard.
    Moved { shard: ShardId, from: Option<ServerId> },
    /// These replicas serve where they went, and no longer at `from`, nor does any other if `is_whole`.
    Relocated { from: ServerId, moves: Moves, is_whole: bool },
}

impl Goal {
    /// Whether the map has what the wished one had for this: the wish was granted, even if nobody said so.
    pub(crate) fn stands(&self, wished: &ClusterMap, map: &ClusterMap) -> bool {
        let name_of = |map: &ClusterMap, id: &ServerId| map.servers.get(id).map(|record| record.name.clone());
        let same_shard = |id: &ShardId| {
            let of = |map: &ClusterMap| map.shards.get(id).map(|record| (record.name.clone(), record.low, record.size));
            of(map).is_some() && of(map) == of(wished)
        };
        match self {
            Self::Initialised { schema } => {
                map.counters.schema == *schema
                    && map.schema == wished.schema
                    && wished.shards.keys().all(same_shard)
                    && wished.servers.keys().all(|id| name_of(map, id) == name_of(wished, id))
            }
            Self::Added { servers, names, shards } => {
                servers.iter().zip(names).all(|(id, name)| name_of(map, id).as_ref() == Some(name)) && shards.iter().all(same_shard)
            }
            Self::Removed { servers, .. } => {
                servers.iter().all(|id| map.servers.get(id).is_none_or(|record| record.goal == ServerGoal::Leave))
            }
            // Wishing it again does no harm.
            Self::Moved { .. } => false,
            Self::Relocated { from, moves, .. } => relocate::stands(map, *from, moves),
        }
    }

    /// A planted bug: the answer, as if the goal was reached.
    pub(crate) fn hoped(&self, map: &ClusterMap) -> Option<Reply> {
        let server_count = map.servers.values().filter(|record| record.goal == ServerGoal::Run).count() as u64;
        match self {
            Self::Added { names, .. } => Some(Reply::Added { server_count, servers: names.clone() }),
            Self::Removed { names, .. } => Some(Reply::Removed { server_count, servers: names.clone() }),
            Self::Relocated { moves, .. } => Some(relocate::said(map, moves)),
            Self::Initialised { .. } | Self::Moved { .. } => None,
        }
    }

    /// Why the goal is never reached any more: another request took back what this one wanted. Asked only after [`Self::reached`].
    pub(crate) fn overtaken(&self, map: &ClusterMap) -> Option<RequestError> {
        let is_leaving = |id: &ServerId| map.servers.get(id).is_none_or(|record| record.goal == ServerGoal::Leave);
        let words = match self {
            Self::Initialised { schema } if map.schema.is_none() || map.counters.schema != *schema => {
                "The cluster was torn down before it was set up".to_owned()
            }
            Self::Added { servers, names, .. } if servers.iter().any(is_leaving) => {
                let name = servers.iter().zip(names).find(|(id, _)| is_leaving(id)).map_or_else(String::new, |(_, name)| quoted(name));
                format!("Server {name} was removed before it served")
            }
            Self::Added { shards, .. } if shards.iter().any(|shard| !map.shards.contains_key(shard)) => {
                "A shard was removed before it served".to_owned()
            }
            Self::Moved { shard, from } => match map.shards.get(shard) {
                None => "The shard was removed before another server led it".to_owned(),
                Some(record) if record.wanted_primary.is_none() && record.pending.is_none() => {
                    let leads = record.current.as_ref().and_then(|current| map.server_of(current.primary));
                    if leads.is_none() || leads != *from {
                        return None;
                    }
                    "The server that was to lead was removed, or does not answer".to_owned()
                }
                Some(_) => return None,
            },
            Self::Relocated { from, moves, is_whole } => return relocate::overtaken(map, *from, moves, *is_whole),
            Self::Initialised { .. } | Self::Added { .. } | Self::Removed { .. } => return None,
        };
        Some(refused(words))
    }

    /// The answer, once the goal is reached.
    pub(crate) fn reached(&self, map: &ClusterMap, observed: &Observed, now: Instant) -> Option<Reply> {
        let server_count = map.servers.values().filter(|record| record.goal == ServerGoal::Run).count() as u64;
        match self {
            Self::Initialised { schema } => {
                let served = map.shards.keys().all(|shard| primary_server(map, observed, *shard, now).is_some());
                (map.schema.is_some() && map.counters.schema == *schema && served).then_some(Reply::Initialised)
            }
            Self::Added { servers, names, shards } => {
                let is_wanted = |server: &ServerId| map.servers.get(server).is_some_and(|record| record.goal == ServerGoal::Run);
                let run = servers.iter().all(|server| is_wanted(server) && observed.is_alive(*server, now));
                let held = map.shards.values().all(|record| {
                    let members: BTreeSet<ServerId> =
                        record.current.iter().flat_map(|current| &current.members).filter_map(|member| map.server_of(*member)).collect();
                    servers.iter().all(|server| !record.placement.contains(server) || members.contains(server))
                });
                let served = shards.iter().all(|shard| primary_server(map, observed, *shard, now).is_some());
                (run && held && served).then(|| Reply::Added { server_count, servers: names.clone() })
            }
            Self::Removed { servers, names } => servers
                .iter()
                .all(|server| !map.servers.contains_key(server))
                .then(|| Reply::Removed { server_count, servers: names.clone() }),
            Self::Moved { shard, from } => {
                let server = primary_server(map, observed, *shard, now)?;
                let record = map.shards.get(shard)?;
                let settled = record.wanted_primary.is_none() && Some(server) != *from;
                settled.then(|| primary_reply(map, *shard, Some(server)))
            }
            Self::Relocated { from, moves, is_whole } => relocate::reached(map, observed, (*from, moves, *is_whole), now),
        }
    }
}

/// The server whose replica leads the shard's current configuration and knows it.
pub(crate) fn primary_server(map: &ClusterMap, observed: &Observed, shard: ShardId, now: Instant) -> Option<ServerId> {
    let current = map.shards.get(&shard)?.current.as_ref()?;
    let active = observed.lead(map, current.primary, current.epoch, now) == Some(LeadStage::Active);
    active.then(|| map.server_of(current.primary))?
}

/// Who leads.
pub(crate) fn primary_reply(map: &ClusterMap, shard: ShardId, server: Option<ServerId>) -> Reply {
    let epoch = map.shards.get(&shard).and_then(|record| record.current.as_ref()).map(|current| current.epoch).unwrap_or_default();
    Reply::Primary { server: server.and_then(|server| map.servers.get(&server)).map(|record| record.name.clone()), epoch }
}

pub(super) fn invalid(words: impl Into<Box<str>>) -> RequestError {
    RequestError::Invalid(words.into())
}

pub(super) fn refused(words: impl Into<Box<str>>) -> RequestError {
    RequestError::Refused(words.into())
}

pub(super) fn quoted(name: &str) -> String {
    format!("'{name}'")
}

fn check_name(kind: &str, name: &str) -> Result<(), RequestError> {
    if is_name(name) {
        Ok(())
    } else {
        Err(invalid(format!("{} is not a {kind} name: use 1 to 63 letters, digits, '_', '.' and '-'", quoted(name))))
    }
}

/// The name of a shard stands beside `status` in the answers that list rows by shard.
fn check_shard_name(name: &str) -> Result<(), RequestError> {
    if name == "status" { Err(invalid("'status' cannot be a shard's name: answers use it")) } else { check_name("shard", name) }
}

/// The number of a server: its name's trailing digits where free, else the next free number (API.md).
fn number_for(map: &ClusterMap, name: &str) -> u64 {
    let taken: BTreeSet<u64> = map.servers.values().map(|record| record.number).collect();
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let wish = name[name.len() - digits..].parse::<u64>().ok().filter(|number| !taken.contains(number));
    wish.unwrap_or_else(|| (0..).find(|number| !taken.contains(number)).unwrap_or(u64::MAX))
}

fn add_server(map: &mut ClusterMap, name: &str) -> ServerId {
    let id = map.counters.server.next();
    map.counters.server = id;
    let number = number_for(map, name);
    map.servers.insert(id, ServerRecord { name: name.into(), number, goal: ServerGoal::Run, address: None, incarnation: None });
    id
}

fn generated_name(map: &ClusterMap, taken: &BTreeSet<Box<str>>) -> Box<str> {
    (0_u64..)
        .map(|number| format!("Server{number}").into_boxed_str())
        .find(|name| map.server_named(name).is_none() && !taken.contains(name))
        .unwrap_or_default()
}

/// Checks new shards by themselves and against each other.
fn check_shards(shards: &[NewShard], by_name: bool) -> Result<(), RequestError> {
    let mut names = BTreeSet::new();
    let mut ranges: Vec<(i64, i64, &str)> = Vec::new();
    for NewShard { name, low, size } in shards {
        check_shard_name(name)?;
        if !names.insert(name) {
            return Err(invalid(format!("Shard {} stands twice", quoted(name))));
        }
        if *size <= 0 {
            return Err(invalid(format!("Shard {} has size {size}; it must be at least 1", quoted(name))));
        }
        if *low < 0 {
            return Err(invalid(format!("Shard {} begins at {low}; it must be at least 0", quoted(name))));
        }
        let Some(high) = low.checked_add(size - 1) else {
            return Err(invalid(format!("Shard {} ends beyond the largest key", quoted(name))));
        };
        ranges.push((*low, high, name));
    }
    ranges.sort_unstable();
    match ranges.windows(2).find(|pair| pair[0].1 >= pair[1].0) {
        Some(pair) if !by_name => Err(invalid(format!("Shards {} and {} overlap", quoted(pair[0].2), quoted(pair[1].2)))),
        Some(_) | None => Ok(()),
    }
}

/// A server holds one replica of a shard at most.
fn check_held_once(server: &NewServer) -> Result<(), RequestError> {
    let mut held = BTreeSet::new();
    match server.shards.iter().find(|shard| !held.insert(*shard)) {
        Some(shard) => Err(invalid(format!("Server {} names the shard {} twice", quoted(&server.name), quoted(shard)))),
        None => Ok(()),
    }
}

fn add_shard(map: &mut ClusterMap, shard: &NewShard) -> ShardId {
    let id = map.counters.shard.next();
    map.counters.shard = id;
    map.shards.insert(
        id,
        ShardRecord {
            name: shard.name.clone(),
            low: Key(shard.low),
            size: shard.size.unsigned_abs(),
            current: None,
            pending: None,
            placement: BTreeSet::new(),
            wanted_primary: None,
        },
    );
    id
}

/// Places the shards that nobody holds on the servers that hold least.
fn place(map: &mut ClusterMap, shards: &[ShardId], servers: &[ServerId]) {
    for shard in shards {
        for _ in 0..DEFAULT_REPLICAS.min(servers.len()) {
            let load = |server: ServerId| map.shards.values().filter(|record| record.placement.contains(&server)).count();
            let free =
                servers.iter().copied().filter(|server| !map.shards.get(shard).is_some_and(|record| record.placement.contains(server)));
            let Some(server) = free.min_by_key(|server| (load(*server), *server)) else { break };
            if let Some(record) = map.shards.get_mut(shard) {
                record.placement.insert(server);
            }
        }
    }
}

/// A request of /init.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Init<'a> {
    pub(crate) server_count: Option<u64>,
    pub(crate) schema: &'a Schema,
    pub(crate) shards: &'a [NewShard],
    pub(crate) servers: Option<&'a [NewServer]>,
    pub(crate) on_conflict: Option<OnConflict>,
    pub(crate) by_name: bool,
}

/// The map with the cluster set up, and what to wait for.
pub(crate) fn init(map: &ClusterMap, request: &Init<'_>) -> Result<(ClusterMap, Goal), RequestError> {
    let given = request.servers.unwrap_or_default();
    if let (Some(count), Some(servers)) = (request.server_count, request.servers)
        && !servers.is_empty()
        && count != servers.len() as u64
    {
        return Err(invalid(format!("N is {count} but {} servers are given", servers.len())));
    }
    if request.shards.is_empty() {
        return Err(invalid("At least one shard is needed"));
    }
    if request.shards.len() > SHARDS_MAX
        || given.len() > SERVERS_MAX
        || request.server_count.is_some_and(|count| count > SERVERS_MAX as u64)
    {
        return Err(invalid(format!("More than {SHARDS_MAX} shards or {SERVERS_MAX} servers")));
    }
    check_shards(request.shards, request.by_name)?;
    let shard_names: BTreeSet<&str> = request.shards.iter().map(|shard| &*shard.name).collect();
    let mut names = BTreeSet::new();
    for server in given {
        check_name("server", &server.name)?;
        if !names.insert(&*server.name) {
            return Err(invalid(format!("Server {} stands twice", quoted(&server.name))));
        }
        check_held_once(server)?;
        for shard in &server.shards {
            if !shard_names.contains(&**shard) {
                return Err(invalid(format!("Server {} names the unknown shard {}", quoted(&server.name), quoted(shard))));
            }
        }
    }
    let places_itself = given.is_empty() || given.iter().any(|server| server.shards.is_empty());
    if !places_itself {
        let held: BTreeSet<&str> = given.iter().flat_map(|server| server.shards.iter().map(|shard| &**shard)).collect();
        if let Some(shard) = shard_names.iter().find(|shard| !held.contains(**shard)) {
            return Err(invalid(format!("Shard {} is held by no server", quoted(shard))));
        }
    }
    if map.schema.is_some() {
        // The same /init again, while the first is under way, waits with it (API.md: resumable).
        return if is_same(map, request) {
            Ok((map.clone(), Goal::Initialised { schema: map.counters.schema }))
        } else {
            Err(RequestError::AlreadyInitialised)
        };
    }
    if map.servers.values().any(|record| record.goal == ServerGoal::Leave && names.contains(&*record.name)) {
        return Err(refused("A server of that name is still being removed; ask again in a moment"));
    }

    let mut next = map.clone();
    next.schema = Some(request.schema.clone());
    next.counters.schema = next.counters.schema.next();
    // Not what a cluster had that was torn down before.
    next.settings.on_conflict = request.on_conflict.unwrap_or_default();
    let mut shards = BTreeMap::new();
    for shard in request.shards {
        shards.insert(&*shard.name, add_shard(&mut next, shard));
    }
    // Servers that run already are taken up if they are named; where none is named, all are, up to the number asked for.
    let mut chosen: Vec<ServerId> = Vec::new();
    let mut free: Vec<ServerId> = Vec::new();
    if given.is_empty() {
        let running: Vec<ServerId> = next.servers.iter().filter(|(_, record)| record.goal == ServerGoal::Run).map(|(id, _)| *id).collect();
        let default = if running.is_empty() { DEFAULT_SERVERS } else { running.len() as u64 };
        let count = usize::try_from(request.server_count.unwrap_or(default)).unwrap_or(usize::MAX);
        if count == 0 {
            return Err(invalid("At least one server is needed"));
        }
        chosen.extend(running.into_iter().take(count));
        while chosen.len() < count {
            let name = generated_name(&next, &BTreeSet::new());
            chosen.push(add_server(&mut next, &name));
        }
        free.extend(chosen.iter().copied().filter(|id| !map.drained.contains(id)));
    } else {
        for server in given {
            let id = next.server_named(&server.name).unwrap_or_else(|| add_server(&mut next, &server.name));
            chosen.push(id);
            if server.shards.is_empty() {
                free.push(id);
            }
            for name in &server.shards {
                if let Some(record) = shards.get(&**name).and_then(|shard| next.shards.get_mut(shard)) {
                    record.placement.insert(id);
                }
            }
        }
    }
    let unplaced: Vec<ShardId> = next.shards.iter().filter(|(_, record)| record.placement.is_empty()).map(|(id, _)| *id).collect();
    place(&mut next, &unplaced, if free.is_empty() { &chosen } else { &free });
    next.drained.retain(|id| !next.shards.values().any(|record| record.placement.contains(id)));
    for (id, record) in &mut next.servers {
        if !chosen.contains(id) {
            record.goal = ServerGoal::Leave;
        }
    }
    let goal = Goal::Initialised { schema: next.counters.schema };
    Ok((next, goal))
}

/// Whether the map is what this /init made, and still on its way.
fn is_same(map: &ClusterMap, request: &Init<'_>) -> bool {
    let on_its_way = map.shards.values().any(|record| record.current.is_none());
    let same_shards = map.shards.len() == request.shards.len()
        && request.shards.iter().all(|shard| {
            let record = map.shard_named(&shard.name).and_then(|id| map.shards.get(&id));
            record.is_some_and(|record| record.low.0 == shard.low && record.size == shard.size.unsigned_abs())
        });
    let same_servers = request.servers.unwrap_or_default().iter().all(|server| map.server_named(&server.name).is_some());
    on_its_way && same_shards && same_servers && map.schema.as_ref() == Some(request.schema)
}

/// The map with servers and shards added, and what to wait for.
pub(crate) fn add(
    map: &ClusterMap,
    server_count: u64,
    new_shards: &[NewShard],
    servers: &[NewServer],
    strict: bool,
) -> Result<(ClusterMap, Goal), RequestError> {
    let given = servers.len() as u64;
    if strict && !servers.is_empty() {
        if server_count > given {
            return Err(RequestError::TooFewServers);
        }
        if server_count < given {
            return Err(invalid(format!("Number of new servers (n) is {server_count} but {given} are given")));
        }
    } else if given > server_count {
        return Err(RequestError::TooManyHostnames);
    }
    if map.servers.len() as u64 + server_count > SERVERS_MAX as u64 || map.shards.len() + new_shards.len() > SHARDS_MAX {
        return Err(invalid(format!("More than {SHARDS_MAX} shards or {SERVERS_MAX} servers")));
    }
    if map.schema.is_none() && !new_shards.is_empty() {
        return Err(RequestError::NotInitialised);
    }
    check_shards(new_shards, false)?;
    let mut names: BTreeSet<Box<str>> = BTreeSet::new();
    for server in servers {
        if is_template(&server.name) {
            continue;
        }
        check_name("server", &server.name)?;
        if !names.insert(server.name.clone()) {
            return Err(invalid(format!("Server {} stands twice", quoted(&server.name))));
        }
    }
    for server in servers {
        check_held_once(server)?;
        for shard in &server.shards {
            if map.shard_named(shard).is_none() && !new_shards.iter().any(|new| new.name == *shard) {
                return Err(invalid(format!("Server {} names the unknown shard {}", quoted(&server.name), quoted(shard))));
            }
        }
    }
    if let Some(goal) = same_add(map, new_shards, servers) {
        return Ok((map.clone(), goal));
    }
    for name in &names {
        if map.server_named(name).is_some() {
            return Err(refused(format!("Server {} exists already", quoted(name))));
        }
    }
    for shard in new_shards {
        if map.shard_named(&shard.name).is_some() {
            return Err(refused(format!("Shard {} exists already", quoted(&shard.name))));
        }
        let high = Key(shard.low.saturating_add(shard.size - 1));
        if let Some(other) = map.shards.values().find(|record| record.range().low <= high && Key(shard.low) <= record.range().high) {
            return Err(refused(format!("Shard {} overlaps {}", quoted(&shard.name), quoted(&other.name))));
        }
    }

    let mut next = map.clone();
    let shards: Vec<ShardId> = new_shards.iter().map(|shard| add_shard(&mut next, shard)).collect();
    let (mut ids, mut given_names) = (Vec::new(), Vec::new());
    for server in servers {
        let name = if is_template(&server.name) { generated_name(&next, &names) } else { server.name.clone() };
        let id = add_server(&mut next, &name);
        for shard in &server.shards {
            if let Some(record) = next.shard_named(shard).and_then(|shard| next.shards.get_mut(&shard)) {
                record.placement.insert(id);
            }
        }
        ids.push(id);
        given_names.push(name);
    }
    while (ids.len() as u64) < server_count {
        let name = generated_name(&next, &names);
        ids.push(add_server(&mut next, &name));
        given_names.push(name);
    }
    let unplaced: Vec<ShardId> =
        shards.iter().copied().filter(|shard| next.shards.get(shard).is_some_and(|record| record.placement.is_empty())).collect();
    let runs = |(id, record): &(&ServerId, &ServerRecord)| record.goal == ServerGoal::Run && !map.drained.contains(id);
    let run: Vec<ServerId> = next.servers.iter().filter(runs).map(|(id, _)| *id).collect();
    if !unplaced.is_empty() && run.is_empty() {
        return Err(invalid("There is no server to hold the new shards, or all were drained"));
    }
    place(&mut next, &unplaced, &run);
    Ok((next, Goal::Added { servers: ids, names: given_names, shards }))
}

/// `Server[5]`: asks for a free generated name.
fn is_template(name: &str) -> bool {
    name.strip_suffix(']').and_then(|name| name.split_once('[')).is_some_and(|(stem, hint)| {
        let is_plain = |part: &str| part.is_empty() || is_name(part);
        is_plain(stem) && is_plain(hint)
    })
}

/// The same /add again, while the first is under way: every name is there, as asked, and something is not yet done.
fn same_add(map: &ClusterMap, new_shards: &[NewShard], servers: &[NewServer]) -> Option<Goal> {
    if servers.is_empty() || servers.iter().any(|server| is_template(&server.name)) {
        return None;
    }
    let mut ids = Vec::new();
    for server in servers {
        let id = map.server_named(&server.name)?;
        let asked: BTreeSet<ShardId> = server.shards.iter().filter_map(|shard| map.shard_named(shard)).collect();
        let placed: BTreeSet<ShardId> =
            map.shards.iter().filter(|(_, record)| record.placement.contains(&id)).map(|(shard, _)| *shard).collect();
        if asked.len() != server.shards.len() || asked != placed {
            return None;
        }
        ids.push(id);
    }
    let shards: Option<Vec<ShardId>> = new_shards.iter().map(|shard| map.shard_named(&shard.name)).collect();
    let on_its_way = ids.iter().any(|id| {
        map.servers.get(id).is_some_and(|record| record.address.is_none())
            || map.shards.values().any(|record| {
                record.placement.contains(id)
                    && !record
                        .current
                        .as_ref()
                        .is_some_and(|current| current.members.iter().any(|member| map.server_of(*member) == Some(*id)))
            })
    });
    on_its_way.then_some(Goal::Added { servers: ids, names: servers.iter().map(|server| server.name.clone()).collect(), shards: shards? })
}

/// The map with the wish that another server leads the shard.
pub(crate) fn move_primary(map: &ClusterMap, shard: ShardId, observed: &Observed, now: Instant) -> Result<(ClusterMap, Goal), Denied> {
    let Some(record) = map.shards.get(&shard) else { return Err(refused("The shard is gone").into()) };
    let from = record.current.as_ref().and_then(|current| map.server_of(current.primary));
    let leads = |server: ServerId| {
        let led =
            map.shards.values().filter(|record| record.current.as_ref().and_then(|current| map.server_of(current.primary)) == Some(server));
        led.count()
    };
    let candidates = record.current.iter().flat_map(|current| &current.members).filter(|member| observed.is_usable(map, **member, now));
    let to = candidates
        .filter_map(|member| map.server_of(*member))
        .filter(|server| Some(*server) != from && record.placement.contains(server))
        .min_by_key(|server| (leads(*server), *server));
    let Some(to) = to else {
        let error = refused(format!("Shard {} has no other up-to-date replica", quoted(&record.name)));
        // One that was not heard of yet may be one.
        let others = record.current.iter().flat_map(|current| &current.members).filter_map(|member| map.server_of(*member));
        let waits = others
            .filter(|server| Some(*server) != from && record.placement.contains(server))
            .any(|server| !observed.is_alive(server, now) && !observed.is_down(server, now));
        return Err(if waits { Denied::Later(error) } else { Denied::Now(error) });
    };
    let mut next = map.clone();
    if let Some(record) = next.shards.get_mut(&shard) {
        record.wanted_primary = Some(to);
    }
    Ok((next, Goal::Moved { shard, from }))
}

#[cfg(test)]
mod tests;
