//! What operators are told and what becomes of their cluster, compared with the register: an answer says what a map shows that stood there
//! since it was asked; a planned change gives up no copy before there are as many where they are wanted; a shard is given up only where an
//! operator accepted that, and only for members that are known to be gone. Changes nothing in the run.

use super::{coverage::Sometimes, world::World};
use std::{collections::BTreeMap, sync::Arc};
use twinshard_core::{
    config::Configuration,
    id::{ReplicaId, SchemaId, ServerId, ShardId},
    map::{ClusterMap, ReplicaStage, ServerGoal, ShardRecord},
    message::Execute,
    request::{Reply, Request},
    time::{Duration, Instant},
};

/// What is remembered for the checks.
#[derive(Clone, Debug, Default)]
pub(super) struct Operators {
    /// Every map that stood in the register, and since when.
    maps: Vec<(Instant, Arc<ClusterMap>)>,
    /// By balancer and server: the newest beat that came, and when. An older one that comes late tells nothing.
    beats: BTreeMap<(usize, ServerId), (u64, Instant)>,
    /// By balancer: when its process was started.
    starts: BTreeMap<usize, Instant>,
    /// By shard: the schema it was made with.
    schemas: BTreeMap<ShardId, SchemaId>,
}

impl Operators {
    /// A beat of the server reached the balancer.
    pub(super) fn beat(&mut self, balancer: usize, server: ServerId, number: u64, now: Instant) {
        let newest = self.beats.entry((balancer, server)).or_insert((number, now));
        if newest.0 <= number {
            *newest = (number, now);
        }
    }

    /// A balancer's process is started: it knows nothing of before.
    pub(super) fn balancer_starts(&mut self, balancer: usize, now: Instant) {
        self.starts.insert(balancer, now);
        self.beats.retain(|(place, _), _| *place != balancer);
    }

    /// A map stands in the register from now on.
    pub(super) fn stands(&mut self, map: &Arc<ClusterMap>, now: Instant) {
        self.maps.push((now, Arc::clone(map)));
        for shard in map.shards.keys() {
            self.schemas.entry(*shard).or_insert(map.counters.schema);
        }
    }

    /// Whether a map that stood in the register since then fits.
    fn any_since(&self, since: Instant, fits: impl Fn(&ClusterMap) -> bool) -> bool {
        let from = self.maps.partition_point(|(at, _)| *at < since).saturating_sub(1);
        self.maps[from.min(self.maps.len())..].iter().any(|(_, map)| fits(map))
    }
}

/// The shards that are in another's place, under its name.
pub(super) fn given_up(old: &ClusterMap, new: &ClusterMap) -> Vec<(ShardId, ShardId)> {
    let is_same = new.schema.is_some() && new.counters.schema == old.counters.schema;
    let gone = old.shards.iter().filter(|(id, _)| is_same && !new.shards.contains_key(id));
    gone.filter_map(|(id, record)| Some((*id, new.shard_named(&record.name)?))).collect()
}

fn has_member(map: &ClusterMap, record: &ShardRecord, server: &str) -> bool {
    let Some(current) = &record.current else { return false };
    let named =
        |id: &ReplicaId| map.server_of(*id).and_then(|server| map.servers.get(&server)).is_some_and(|record| &*record.name == server);
    current.members.iter().any(named)
}

fn shard<'a>(map: &'a ClusterMap, name: &str) -> Option<&'a ShardRecord> {
    map.shards.values().find(|record| &*record.name == name)
}

/// Whether the map shows what the answer says.
fn shows(map: &ClusterMap, request: &Request, reply: &Reply) -> bool {
    let serves = |name: &str| shard(map, name).is_some_and(|record| record.current.is_some());
    match (request, reply) {
        (Request::Init { schema, shards, .. }, Reply::Initialised) => {
            map.schema.as_ref() == Some(schema) && shards.iter().all(|shard| serves(&shard.name))
        }
        (Request::Add { new_shards, .. }, Reply::Added { servers, .. }) => {
            let is_whole = |name: &str| {
                map.server_named(name)
                    .filter(|id| map.servers[id].goal == ServerGoal::Run)
                    .is_some_and(|id| map.shards.values().all(|record| !record.placement.contains(&id) || has_member(map, record, name)))
            };
            servers.iter().all(|name| is_whole(name)) && new_shards.iter().all(|shard| serves(&shard.name))
        }
        (Request::Remove { .. }, Reply::Removed { servers, .. }) => servers.iter().all(|name| map.server_named(name).is_none()),
        (Request::Move { from, .. }, Reply::Relocated { moves }) => moves
            .iter()
            .all(|(name, to)| shard(map, name).is_some_and(|record| has_member(map, record, to) && !has_member(map, record, from))),
        (Request::Drain { server }, Reply::Relocated { moves }) => {
            map.shards.values().all(|record| !has_member(map, record, server))
                && moves.iter().all(|(name, to)| shard(map, name).is_some_and(|record| has_member(map, record, to)))
        }
        (Request::Primary { shard: name, .. }, Reply::Primary { server: Some(server), epoch }) => {
            let current = shard(map, name).and_then(|record| record.current.as_ref()).filter(|current| current.epoch == *epoch);
            let leads = current.and_then(|current| map.server_of(current.primary)).and_then(|id| map.servers.get(&id));
            leads.is_some_and(|record| record.name == *server)
        }
        (Request::Status { .. }, Reply::Status(status)) => *status.map == *map,
        _ => true,
    }
}

impl World {
    /// A balancer answers an operator.
    pub(super) fn check_answer(&mut self, asked: Instant, request: &Request, reply: &Reply) {
        // What is told of the map as it is known may be older than the question, but not an invention.
        let since =
            if matches!(reply, Reply::Status(_)) || matches!(request, Request::Primary { change: false, .. }) { Instant(0) } else { asked };
        let is_told = matches!(
            reply,
            Reply::Initialised
                | Reply::Added { .. }
                | Reply::Removed { .. }
                | Reply::Relocated { .. }
                | Reply::Primary { .. }
                | Reply::Status(_)
        );
        if is_told && !self.operators.any_since(since, |map| shows(map, request, reply)) {
            let text = format!("{request:?} is answered {reply:?}, which no map shows since {asked}");
            let text: String = text.chars().take(2_000).collect();
            self.checks.fail("answer", || text);
        }
    }

    /// A balancer wants to write the register: what it proposes and gives up follows from what it can know.
    pub(super) fn check_intention(&mut self, balancer: usize, new: &ClusterMap) {
        let Some(old) = self.balancers[balancer].machine.as_ref().and_then(|machine| machine.map()).map(|(_, map)| Arc::clone(map)) else {
            return;
        };
        for (shard, _) in given_up(&old, new) {
            self.check_given_up(balancer, &old, shard);
        }
        for (id, record) in &new.shards {
            let before = old.shards.get(id);
            if let (Some(config), Some(current)) = (&record.pending, before.and_then(|before| before.current.as_ref()))
                && before.is_some_and(|before| before.pending.is_none())
            {
                self.check_copies(balancer, new, record, current, config);
            }
        }
    }

    /// A balancer sends a write to a replica: its rows were checked against the schema of the shard.
    pub(super) fn check_schema(&mut self, balancer: usize, execute: &Execute) {
        let token = self.balancers[balancer].machine.as_ref().and_then(|machine| machine.request_of(execute.tag));
        let checked = token.and_then(|token| self.clients.checked_against(token));
        let shard = self.register.map.replicas.get(&execute.replica).map(|replica| replica.shard);
        let schema = shard.and_then(|shard| self.operators.schemas.get(&shard)).copied();
        if let (Some(checked), Some(schema)) = (checked, schema)
            && checked != schema
        {
            self.checks.fail("schema", || format!("{execute:?} was checked against {checked} and goes to a shard of {schema}"));
        }
    }

    /// For how long the balancer has not heard the server, as far as it can know.
    fn silence(&self, balancer: usize, server: ServerId) -> Duration {
        let heard = self.operators.beats.get(&(balancer, server)).map_or(Instant(0), |(_, heard)| *heard);
        let started = self.operators.starts.get(&balancer).copied().unwrap_or_default();
        self.now.since(heard.max(started))
    }

    /// Only what an operator accepted, and only where too few members are left that are not known to be gone.
    fn check_given_up(&mut self, balancer: usize, old: &ClusterMap, shard: ShardId) {
        self.checks.coverage.hit(Sometimes::GivenUp);
        if !old.accepted_loss.contains(&shard) {
            return self.checks.fail("loss", || format!("{shard} is given up, and nobody accepted that"));
        }
        let Some(current) = old.shards.get(&shard).and_then(|record| record.current.clone()) else {
            return self.checks.fail("loss", || format!("{shard} is given up, and had no configuration"));
        };
        let patience = self.plan.topology.balancer.replace_after;
        let there = |member: &&ReplicaId| {
            let server = old.server_of(**member);
            !self.checks.is_damaged(**member) && server.is_some_and(|server| self.silence(balancer, server).0 < patience.0)
        };
        let there: Vec<ReplicaId> = current.members.iter().filter(there).copied().collect();
        if there.len() >= current.seal_quorum() {
            self.checks.fail("loss", || format!("{shard} is given up with {current}, of which {there:?} are not known to be gone"));
        }
    }

    /// A member that answers leaves only when as many as there were, or as are wanted, are members where they are wanted.
    fn check_copies(&mut self, balancer: usize, map: &ClusterMap, record: &ShardRecord, current: &Configuration, config: &Configuration) {
        // Under a fault a balancer may not see what the world does: judged is what is planned while nothing is wrong.
        if self.is_disturbed() {
            return;
        }
        let suspect_after = self.plan.topology.balancer.suspect_after;
        let placed = |id: &ReplicaId| map.server_of(*id).is_some_and(|server| record.placement.contains(&server));
        let is_well = |id: &ReplicaId| {
            let is_ready = map.replicas.get(id).is_some_and(|replica| replica.stage == ReplicaStage::Ready);
            is_ready
                && !self.checks.is_damaged(*id)
                && map
                    .server_of(*id)
                    .and_then(|server| self.operators.beats.get(&(balancer, server)))
                    .is_some_and(|(_, heard)| self.now.since(*heard).0 < suspect_after.0 / 2)
        };
        let gone: Vec<ReplicaId> = current.members.iter().copied().filter(|id| !config.has(*id) && !placed(id) && is_well(id)).collect();
        let left = config.members.iter().filter(|id| placed(id)).count();
        if !gone.is_empty() && left < record.placement.len().min(current.members.len()) {
            let placement = record.placement.clone();
            self.checks.fail("copies", || format!("{config} follows {current} without {gone:?}, which answer; wanted are {placement:?}"));
        }
    }
}
