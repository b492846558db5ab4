//! The balancer machine: routes requests, watches servers, and as controller moves the cluster towards what the map wants. Never trusts its
//! own intention: it acts on maps that it has read back (R10).
//!
//! ```text
//!   requests ──► router ──────────────────────────► servers ──► router ──► replies
//!   requests ──► admin ──► next map ──► register (compare-and-set) ──► map read back
//!   beats    ──► observed ──► plan ──┘                                  │
//!                                 drive (create, seal, install, ...) ◄──┘
//! ```

mod admin;
mod drive;
mod explain;
mod loss;
mod observed;
mod parked;
mod plan;
mod policy;
mod provisions;
mod reasons;
mod relocate;
mod removal;
pub mod ring;
mod router;
mod routes;
mod sessions;
mod status;
mod told;
mod wishes;

use crate::{
    effect::{BalancerEffect, BalancerInput, Note, RegisterAnswer},
    id::{BalancerId, MapVersion, ReplicaId, SchemaId, ServerId, SessionId, Token},
    map::{ClusterMap, ReplicaStage},
    message::{Message, Tag, ToBalancer, ToServer},
    planted::{Bug, Planted},
    request::{Health, Reply, Request, RequestError},
    time::{Duration, Instant},
};
use admin::Goal;
use drive::Drives;
use observed::{Beat, Life, Observed, Seen};
use parked::Parked;
use provisions::Provision;
use reasons::Reasons;
use router::Router;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};
use told::Told;
use wishes::Admin;

/// How often the controller raises its beat in the map. A third of the default of [`BalancerConfig::controller_after`].
const BEAT_EVERY: Duration = Duration::from_millis(1_000);
/// How often a balancer that does not control reads the map. Half of [`BEAT_EVERY`].
const POLL_EVERY: Duration = Duration::from_millis(500);
/// The first wait after the register or the provisioner failed, doubled up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// See [`RETRY_FIRST`].
const RETRY_MAX: Duration = Duration::from_millis(3_000);
/// The most administrative requests that wait; one more is answered Overloaded.
const ADMIN_MAX: usize = 1_000;
/// How many sessions the map lists: those of the newest balancers. Refusal never depends on it (R24).
const SESSIONS_LISTED: usize = 64;

/// How a replica is picked for a read (DESIGN 6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Policy {
    /// The 512-slot ring of API.md.
    Classic,
    /// Consistent hashing with bounded loads.
    #[default]
    Ring,
    /// The less loaded of two chosen at random.
    LeastLoaded,
}

/// What a balancer does of the two things there are to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// It routes requests, and controls when it is its turn.
    #[default]
    Both,
    /// It never controls.
    Router,
    /// It takes no reads and writes.
    Controller,
}

/// What a balancer machine is told when it starts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BalancerConfig {
    /// What it does. At least one balancer of a cluster has to control, one to route.
    pub role: Role,
    /// How replicas are picked.
    pub policy: Policy,
    /// Seeds what has to be spread; decides nothing that safety depends on.
    pub seed: u64,
    /// How often servers are asked whether they are there (100 ms).
    pub heartbeat_every: Duration,
    /// Silence after which a server is suspected (500 ms).
    pub suspect_after: Duration,
    /// Silence after which it is taken for dead and respawned (3 s).
    pub replace_after: Duration,
    /// Silence of the controller's beat after which another balancer takes over (3 s). Zero where there is never another: then a balancer
    /// that is started again goes on at once.
    pub controller_after: Duration,
    /// The most client requests in flight; one more is answered Overloaded.
    pub requests_max: usize,
    /// For the simulator.
    pub planted: Planted,
}

impl Default for BalancerConfig {
    fn default() -> Self {
        Self {
            role: Role::Both,
            policy: Policy::Ring,
            seed: 0,
            heartbeat_every: Duration::from_millis(100),
            suspect_after: Duration::from_millis(500),
            replace_after: Duration::from_millis(3_000),
            controller_after: Duration::from_millis(3_000),
            requests_max: 10_000,
            planted: Planted::NONE,
        }
    }
}

/// A well-spread function of two numbers (splitmix64's finisher; Steele, Lea, Flood 2014). For what has to be spread, not for secrets.
pub(crate) const fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.wrapping_add(b.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What the register is doing for this balancer.
#[derive(Clone, Debug)]
enum Register {
    Idle,
    Reading { token: Token, operation: u64 },
    Swapping { token: Token, operation: u64, swap: Swap },
}

/// A compare-and-set under way, and what it means if it is done.
#[derive(Clone, Debug)]
struct Swap {
    expected: MapVersion,
    map: Arc<ClusterMap>,
    identity: Option<(BalancerId, SessionId)>,
    /// Administrative requests that it carries, with what to wait for.
    goals: Vec<(Token, Goal)>,
}

/// The balancer machine.
#[derive(Clone, Debug)]
pub struct BalancerMachine {
    config: BalancerConfig,
    id: Option<BalancerId>,
    known: Option<(MapVersion, Arc<ClusterMap>)>,
    /// The version that last changed more than the controller's beat: servers need no newer one.
    content_version: MapVersion,
    register: Register,
    /// How many operations on the register this balancer has begun.
    operations_begun: u64,
    /// The newest operation that showed the map that is known, or an older one.
    confirmed: u64,
    /// What is known may be old, or a compare-and-set's reply was lost: read before anything else.
    must_read: bool,
    /// It was just read: a compare-and-set has its turn, however many want it read again.
    is_fresh: bool,
    register_failures: u32,
    register_not_before: Instant,
    next_poll: Instant,
    next_beat: Instant,
    /// The controller's hint as seen last, and since when it stands.
    hint_since: Instant,
    controlling: bool,
    observed: Observed,
    told: Told,
    drives: Drives,
    reasons: Reasons,
    provisions: BTreeMap<ServerId, Provision>,
    admins: VecDeque<Admin>,
    router: Router,
    parked: Parked,
    /// When it made its last step: a long gap is a pause of its own.
    stepped: Instant,
    next_heartbeat: Instant,
    heartbeat: u64,
    last_token: u64,
    /// Something happened that may change what the map should be. The data path alone does not.
    dirty: bool,
}

impl BalancerMachine {
    /// A balancer that has just started. Its first `Tick` reads the register and mints its id and session there.
    #[must_use]
    pub fn new(config: BalancerConfig, now: Instant) -> Self {
        Self {
            id: None,
            known: None,
            content_version: MapVersion(0),
            register: Register::Idle,
            operations_begun: 0,
            confirmed: 0,
            must_read: true,
            is_fresh: false,
            register_failures: 0,
            register_not_before: now,
            next_poll: now,
            next_beat: now,
            hint_since: now,
            controlling: false,
            observed: Observed::new(config.suspect_after, config.replace_after),
            told: Told::default(),
            drives: Drives::new(config.planted),
            reasons: Reasons::default(),
            provisions: BTreeMap::new(),
            admins: VecDeque::new(),
            router: Router::new(&config),
            parked: Parked::default(),
            stepped: now,
            next_heartbeat: now,
            heartbeat: 0,
            last_token: 0,
            dirty: true,
            config,
        }
    }

    /// Its id, once minted. It sends nothing before.
    #[must_use]
    pub const fn id(&self) -> Option<BalancerId> {
        self.id
    }

    /// The client's request that an exchange with a server is a part of. For logs.
    #[must_use]
    pub fn request_of(&self, tag: Tag) -> Option<Token> {
        self.router.request_of(tag)
    }

    /// Whether it believes that it controls.
    #[must_use]
    pub const fn is_controlling(&self) -> bool {
        self.controlling
    }

    /// The newest map that it has read back.
    #[must_use]
    pub const fn map(&self) -> Option<&(MapVersion, Arc<ClusterMap>)> {
        self.known.as_ref()
    }

    /// Takes one input. Runs to the end, never fails, never blocks.
    pub fn step(&mut self, now: Instant, input: BalancerInput, out: &mut Vec<BalancerEffect>) {
        // A tick comes with every heartbeat.
        let paused = now.since(self.stepped) > Duration(self.config.heartbeat_every.0 + self.config.suspect_after.0 / 2);
        self.stepped = now;
        if paused {
            self.observed.resume(now);
        }
        match input {
            BalancerInput::Message { from, message } => match message {
                Message::ToBalancer(message) => self.message(now, from, message, out),
                Message::ToServer(_) | Message::Replica(_) => {
                    out.push(BalancerEffect::Note(Note::Dropped { reason: "not for a balancer".into() }));
                }
            },
            BalancerInput::Request { token, request, deadline } => self.request(now, token, request, deadline, out),
            BalancerInput::Abandoned { token } => {
                self.router.abandoned(token);
                self.parked.abandoned(token);
                // What an administrative request wants is in the map, or is not yet wanted and now by nobody.
                self.admins.retain(|admin| admin.token != token);
            }
            BalancerInput::Register { token, answer } => self.register_answered(now, token, answer, out),
            BalancerInput::Provisioned { token, answer } => self.provisioned(now, token, answer, out),
            BalancerInput::Tick => {
                self.router.tick(now, out);
                for late in self.parked.take_late(now) {
                    out.push(BalancerEffect::Reply { token: late.token, reply: Reply::Failed(RequestError::RegisterUnavailable) });
                }
                if now >= self.next_heartbeat {
                    self.next_heartbeat = now + self.config.heartbeat_every;
                    self.dirty = true;
                    self.beat(now, out);
                }
            }
        }
        self.settle(now, out);
    }

    /// When to call [`Self::step`] with [`BalancerInput::Tick`] if nothing else happens before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let admin = self.admins.iter().map(|admin| admin.deadline).min();
        [Some(self.next_heartbeat), admin, self.router.next_deadline(), self.parked.next_deadline()].into_iter().flatten().min()
    }

    fn token(&mut self) -> Token {
        self.last_token += 1;
        Token(self.last_token)
    }

    fn request(&mut self, now: Instant, token: Token, request: Request, deadline: Instant, out: &mut Vec<BalancerEffect>) {
        match request {
            Request::EndRead(pinned) => {
                self.router.end_read(pinned, out);
                out.push(BalancerEffect::Reply { token, reply: Reply::ReadEnded });
            }
            Request::Read { .. }
            | Request::ReadPage { .. }
            | Request::ReadServer { .. }
            | Request::Write { .. }
            | Request::PickServer { .. } => {
                if self.config.role == Role::Controller {
                    out.push(BalancerEffect::Reply { token, reply: Reply::Failed(RequestError::OnlyControls) });
                } else if self.router.knows(&request) {
                    self.router.request(now, token, request, deadline, out);
                } else if self.parked.count() >= self.config.requests_max {
                    out.push(BalancerEffect::Reply { token, reply: Reply::Failed(RequestError::Overloaded) });
                } else {
                    let schema = self.schema();
                    self.parked.push(token, request, deadline, schema);
                }
            }
            Request::Init { .. }
            | Request::Status { .. }
            | Request::Add { .. }
            | Request::Remove { .. }
            | Request::Move { .. }
            | Request::Drain { .. }
            | Request::Explain(_)
            | Request::Primary { .. } => {
                if self.admins.len() >= ADMIN_MAX {
                    out.push(BalancerEffect::Reply { token, reply: Reply::Failed(RequestError::Overloaded) });
                } else {
                    self.dirty = true;
                    self.must_read |= self.wants_newer(&request);
                    let operation = self.operations_begun;
                    self.admins.push_back(Admin { token, request, deadline, operation, goal: None, tried: None, doubt: None });
                }
            }
        }
    }

    fn message(&mut self, now: Instant, from: ServerId, message: ToBalancer, out: &mut Vec<BalancerEffect>) {
        let Some((version, map)) = self.known.clone() else { return };
        self.dirty |= !matches!(message, ToBalancer::Executed { .. } | ToBalancer::ReadDone { .. } | ToBalancer::Home { .. });
        match message {
            ToBalancer::Beat { beat, incarnation, follows, map_version, replicas } => {
                let leads: Vec<_> = replicas
                    .iter()
                    .filter_map(|status| Some((status.replica, status.shard, status.promised, status.lead?, status.lead_progress)))
                    .collect();
                let beat = Beat { beat, incarnation, follows, map_version, replicas };
                let Some(life) = self.observed.heard(now, from, beat, self.operations_begun) else { return };
                // What is newer than the map at hand was read by another, or the register went back.
                self.must_read |= self.told.hear(map_version, self.operations_begun) && map_version > version;
                if life != Life::Same {
                    if life == Life::Another {
                        self.runs_anew(from, out);
                    }
                    // Nothing is created for it before the map was read since (R17).
                    self.must_read |= self.controlling;
                }
                for (replica, shard, epoch, lead, progress) in leads {
                    if lead == crate::message::LeadStage::Installing {
                        self.drives.moves(&map, replica, epoch, progress, now);
                    }
                    self.drives.progress(&map, replica, epoch, lead, now);
                    let active = lead == crate::message::LeadStage::Active;
                    self.router.set_leader_hint(now, shard, replica, epoch, active, out);
                }
                self.judge(now, from, &map, out);
                if map_version < self.content_version {
                    out.push(BalancerEffect::Send { to: from, message: Message::ToServer(ToServer::Map { version, map }) });
                }
            }
            ToBalancer::Created { replica } => {
                self.drives.created.insert(replica);
            }
            ToBalancer::Retired { replica } => {
                self.drives.retired.insert(replica);
            }
            ToBalancer::Promised { replica, epoch, last } => {
                self.drives.promised(&map, replica, epoch, last);
                self.say_of(now, &map, replica, out);
            }
            ToBalancer::Progress { replica, epoch, stage } => {
                self.drives.progress(&map, replica, epoch, stage, now);
                self.observed.led(from, replica, epoch, stage);
            }
            message @ (ToBalancer::Executed { .. } | ToBalancer::ReadDone { .. } | ToBalancer::Home { .. }) => {
                self.router.message(now, from, message, out);
            }
        }
    }

    /// Another process answers for the server than before.
    fn runs_anew(&mut self, server: ServerId, out: &mut Vec<BalancerEffect>) {
        if let Some(seen) = self.observed.servers.get_mut(&server) {
            seen.respawn_count += 1;
        }
        if self.controlling {
            out.push(BalancerEffect::Note(Note::Restarted { server }));
        }
    }

    /// Heartbeats, and everything that is said again.
    fn beat(&mut self, now: Instant, out: &mut Vec<BalancerEffect>) {
        let Some((_, map)) = self.known.clone() else { return };
        if self.id.is_none() {
            return;
        }
        self.heartbeat += 1;
        for (id, record) in &map.servers {
            if record.address.is_some() {
                let message = Message::ToServer(ToServer::Heartbeat { beat: self.heartbeat });
                out.push(BalancerEffect::Send { to: *id, message });
            }
            self.judge(now, *id, &map, out);
        }
        self.say(now, out);
        if self.controlling {
            self.provision(now, &map, out);
        }
    }

    /// Judges how a server looks, and tells who wants to know.
    fn judge(&mut self, now: Instant, server: ServerId, map: &ClusterMap, out: &mut Vec<BalancerEffect>) {
        let health = self.observed.health(map, server, self.config.replace_after, now);
        let Some(seen) = self.observed.servers.get_mut(&server) else { return };
        let before = std::mem::replace(&mut seen.health, health);
        if before == health {
            return;
        }
        self.router.set_health(now, server, health, out);
        match (before, health) {
            (Health::Up, Health::Suspect | Health::Down) => out.push(BalancerEffect::Note(Note::Suspected { server })),
            (Health::Suspect | Health::Down, Health::Up) => out.push(BalancerEffect::Note(Note::Recovered { server })),
            (_, Health::Starting | Health::Up | Health::Suspect | Health::Down | Health::Leaving) => {}
        }
    }

    fn say(&mut self, now: Instant, out: &mut Vec<BalancerEffect>) {
        if !self.controlling || self.id.is_none() {
            return;
        }
        let Some((version, map)) = self.known.clone() else { return };
        let mut messages = Vec::new();
        self.drives.say(version, &map, &self.observed, now, &mut messages);
        send(messages, out);
    }

    fn say_of(&mut self, now: Instant, map: &ClusterMap, replica: ReplicaId, out: &mut Vec<BalancerEffect>) {
        if self.controlling && self.id.is_some() {
            let mut messages = Vec::new();
            self.drives.say_of(map, replica, &self.observed, now, &mut messages);
            send(messages, out);
        }
    }

    fn register_answered(&mut self, now: Instant, token: Token, answer: RegisterAnswer, out: &mut Vec<BalancerEffect>) {
        self.dirty = true;
        match (std::mem::replace(&mut self.register, Register::Idle), answer) {
            (Register::Reading { token: asked, operation }, RegisterAnswer::Read { version, map }) if asked == token => {
                self.register_failures = 0;
                self.must_read = false;
                self.is_fresh = true;
                self.next_poll = now + POLL_EVERY;
                self.look_back(operation, version, out);
                self.learn(now, version, map, out);
                self.confirm(now, operation, out);
                self.release(now, out);
            }
            (Register::Swapping { token: asked, operation, swap }, RegisterAnswer::Swapped) if asked == token => {
                self.register_failures = 0;
                self.swapped(now, swap, out);
                self.confirm(now, operation, out);
            }
            (Register::Swapping { token: asked, .. }, RegisterAnswer::Conflict) if asked == token => self.must_read = true,
            (Register::Swapping { token: asked, operation, swap }, RegisterAnswer::Unavailable) if asked == token => {
                // R10: it may have failed, may land later, or another's may carry the same epoch: only reading tells.
                self.must_read = true;
                self.register_failed(now);
                if self.config.planted.has(Bug::ActsOnIntention) {
                    self.must_read = false;
                    self.swapped(now, swap, out);
                    self.confirm(now, operation, out);
                } else {
                    self.set_tried(swap.goals, &swap.map);
                }
            }
            (Register::Reading { token: asked, .. }, _) if asked == token => self.register_failed(now),
            // Not the answer to what is asked.
            (register, _) => self.register = register,
        }
    }

    /// That read of the register showed that version. If a server had seen a newer one when it began, nothing is changed any more.
    fn look_back(&mut self, operation: u64, held: MapVersion, out: &mut Vec<BalancerEffect>) {
        if !self.told.shown(operation, held) {
            return;
        }
        self.controlling = false;
        if let Some((told, found)) = self.told.went_back() {
            if self.known.as_ref().is_none_or(|(known, _)| *known < told) {
                // Its own session may be another's too.
                self.router.end_session();
            }
            out.push(BalancerEffect::Note(Note::RegisterWentBack { told, found }));
        }
    }

    /// The map that is known is what that operation showed, or newer: whoever waited for one begun after something may act on it.
    fn confirm(&mut self, now: Instant, operation: u64, out: &mut Vec<BalancerEffect>) {
        self.confirmed = self.confirmed.max(operation);
        self.observed.confirm(operation);
        self.say(now, out);
    }

    /// The register was read: whoever waited for that is routed, or waits on until this balancer has its id.
    fn release(&mut self, now: Instant, out: &mut Vec<BalancerEffect>) {
        if self.id.is_some() {
            let schema = self.schema();
            for waiting in self.parked.read_done() {
                // The shards of another schema take no rows that were checked against an earlier one.
                let is_checked = waiting.schema.is_none() || waiting.schema == schema || !matches!(waiting.request, Request::Write { .. });
                if !is_checked && !self.config.planted.has(Bug::RoutesUnchecked) {
                    out.push(BalancerEffect::Reply { token: waiting.token, reply: Reply::Failed(RequestError::SchemaChanged) });
                    continue;
                }
                self.router.request(now, waiting.token, waiting.request, waiting.deadline, out);
            }
        }
    }

    /// The schema of the map that is known, if there is one.
    fn schema(&self) -> Option<SchemaId> {
        self.known.as_ref().filter(|(_, map)| map.schema.is_some()).map(|(_, map)| map.counters.schema)
    }

    fn register_failed(&mut self, now: Instant) {
        let salt = mix(self.config.seed, u64::from(self.register_failures));
        self.register_not_before = now + backoff(self.register_failures, salt);
        self.register_failures = self.register_failures.saturating_add(1);
    }

    /// The compare-and-set was done: its bytes are the register's.
    fn swapped(&mut self, now: Instant, swap: Swap, out: &mut Vec<BalancerEffect>) {
        let Swap { expected, map, identity, goals } = swap;
        if let Some((balancer, session)) = identity {
            self.id = Some(balancer);
            self.router.set_session(now, session, out);
        }
        self.set_goals(goals, out);
        self.learn(now, expected.next(), map, out);
    }

    /// A map that was read back.
    fn learn(&mut self, now: Instant, version: MapVersion, map: Arc<ClusterMap>, out: &mut Vec<BalancerEffect>) {
        let before = self.known.take();
        if let Some((known, old)) = &before
            && *known >= version
        {
            self.known = Some((*known, Arc::clone(old)));
            return;
        }
        let old = before.map(|(_, map)| map);
        if old.as_ref().is_none_or(|old| old.controller != map.controller) {
            self.hint_since = now;
        }
        let same_content = old.as_ref().is_some_and(|old| {
            let mut same = ClusterMap::clone(old);
            same.controller = map.controller;
            same == *map
        });
        if !same_content {
            self.content_version = version;
        }
        let was_controlling = self.controlling;
        self.controlling = self.id.is_some() && map.controller.holder == self.id && self.told.went_back().is_none();
        if self.controlling && !was_controlling {
            // Another may have started since what this one saw stopped.
            self.observed.unfence();
            let from = old.as_ref().and_then(|old| old.controller.holder);
            out.push(BalancerEffect::Note(Note::Controlling { from }));
        } else if was_controlling && !self.controlling {
            out.push(BalancerEffect::Note(Note::Ceded { to: map.controller.holder }));
        }
        self.observed.servers.retain(|id, _| map.servers.contains_key(id));
        for (id, record) in &map.servers {
            let seen = self.observed.servers.entry(*id).or_insert_with(|| Seen::new(now));
            if old.as_ref().and_then(|old| old.servers.get(id)).is_some_and(|old| old.address != record.address) {
                // It runs elsewhere now, and has from now on to answer.
                seen.expected = now;
            }
        }
        self.provisions.retain(|id, _| map.servers.contains_key(id));
        for (id, provision) in &mut self.provisions {
            if provision.address.is_some() && map.servers.get(id).is_some_and(|record| record.address == provision.address) {
                provision.address = None;
            }
        }
        if let Some(old) = &old {
            self.note_changes(now, old, &map, out);
        }
        if self.controlling {
            // Whoever was recorded waits for this map before it takes part (R26).
            for (id, record) in &map.servers {
                let is_new = old.as_ref().and_then(|old| old.servers.get(id)).is_none_or(|old| old.incarnation != record.incarnation);
                if is_new && record.incarnation.is_some() {
                    let message = ToServer::Map { version, map: Arc::clone(&map) };
                    out.push(BalancerEffect::Send { to: *id, message: Message::ToServer(message) });
                }
            }
        }
        self.reasons.follow(&map);
        self.drives.follow(&map, now);
        if self.id.is_some() {
            // Before it has an id it sends nothing.
            self.router.set_map(now, version, &map, out);
        }
        out.push(BalancerEffect::Publish { version, map: Arc::clone(&map) });
        self.known = Some((version, map));
    }

    /// Answers who waits, and brings the register to what is wanted.
    fn settle(&mut self, now: Instant, out: &mut Vec<BalancerEffect>) {
        if !self.admins.is_empty() {
            self.answer(now, out);
        }
        if self.router.take_refresh() || (!self.parked.is_empty() && self.id.is_some()) {
            self.must_read = true;
        }
        if !self.dirty && !self.must_read && !self.router.wants_session() {
            return;
        }
        if !matches!(self.register, Register::Idle) || now < self.register_not_before {
            return;
        }
        if std::mem::take(&mut self.is_fresh)
            && let Some((version, map)) = self.known.clone()
        {
            self.dirty = false;
            self.swap(now, version, &map, out);
            if !matches!(self.register, Register::Idle) || (!self.must_read && !self.dirty) {
                return;
            }
        }
        let poll = !self.controlling && now >= self.next_poll;
        match self.known.clone() {
            Some((version, map)) if !self.must_read && !poll => {
                self.dirty = false;
                self.swap(now, version, &map, out);
            }
            Some(_) | None => {
                let token = self.token();
                self.operations_begun += 1;
                self.register = Register::Reading { token, operation: self.operations_begun };
                self.parked.read_begins();
                out.push(BalancerEffect::RegisterRead { token });
            }
        }
    }

    /// One compare-and-set with every transition that is ready. None on a register that went back.
    fn swap(&mut self, now: Instant, version: MapVersion, map: &Arc<ClusterMap>, out: &mut Vec<BalancerEffect>) {
        if self.told.went_back().is_some() {
            return;
        }
        let mut next = ClusterMap::clone(map);
        let identity = self.mint(&mut next);
        let (mut next, goals) = self.wish_all(next, now, out);
        self.hold(&mut next, now);
        if self.controlling {
            for (id, provision) in &self.provisions {
                if let (Some(address), Some(record)) = (&provision.address, next.servers.get_mut(id)) {
                    record.address = Some(address.clone());
                }
            }
            let (observed, drives, accepted_loss) = (&self.observed, &self.drives, &map.accepted_loss);
            let facts = plan::Facts { now, observed, drives, accepted_loss, seed: self.config.seed };
            let (planned, reasons) = plan::next_map(&next, &facts);
            self.reasons.remember(&planned, &reasons);
            next = planned;
        }
        if next == **map {
            // Nothing to store: what was asked is wanted already.
            return self.set_goals(goals, out);
        }
        let token = self.token();
        self.operations_begun += 1;
        let map = Arc::new(next);
        let swap = Swap { expected: version, map: Arc::clone(&map), identity, goals };
        self.register = Register::Swapping { token, operation: self.operations_begun, swap };
        out.push(BalancerEffect::RegisterCas { token, expected: version, map });
    }

    /// Mints this balancer's id at its start, and a session then and after every refusal (R23).
    fn mint(&self, map: &mut ClusterMap) -> Option<(BalancerId, SessionId)> {
        if self.id.is_some() && !self.router.wants_session() {
            return None;
        }
        let balancer = match self.id {
            Some(id) => id,
            None => {
                map.counters.balancer = map.counters.balancer.next();
                map.counters.balancer
            }
        };
        let old = map.sessions.last_key_value().map(|(session, _)| *session);
        let session = match old {
            Some(old) if self.config.planted.has(Bug::ReusesSession) => old,
            Some(_) | None => {
                map.counters.session = map.counters.session.next();
                map.counters.session
            }
        };
        map.sessions.insert(session, balancer);
        while map.sessions.len() > SESSIONS_LISTED {
            map.sessions.pop_first();
        }
        Some((balancer, session))
    }

    /// Tells what became of servers, replicas and configurations between two maps.
    fn note_changes(&self, now: Instant, old: &ClusterMap, new: &ClusterMap, out: &mut Vec<BalancerEffect>) {
        let mut note = |note| out.push(BalancerEffect::Note(note));
        for (id, record) in &new.replicas {
            let (replica, shard, server) = (*id, record.shard, record.server);
            let before = old.replicas.get(id);
            if record.stage == ReplicaStage::Retired && before.is_some_and(|before| before.stage != ReplicaStage::Retired) {
                let lost = self.observed.status(old, replica, now).and_then(|status| status.lost);
                note(Note::Retired { replica, shard, server, lost });
            } else if before.is_none() && new.shards.get(&shard).is_some_and(|record| record.current.is_some()) {
                note(Note::Minted { replica, shard, server });
            }
        }
        for (shard, anew) in loss::given_up(old, new) {
            let replicas = old.replicas.iter().filter(|(_, record)| record.shard == shard).map(|(id, _)| *id).collect();
            note(Note::GivenUp { shard, anew, replicas });
        }
        for (shard, record) in &new.shards {
            let old = old.shards.get(shard);
            if let Some(config) = &record.pending
                && old.is_none_or(|old| old.pending.as_ref() != Some(config))
            {
                let reason = self.reasons.of(*shard, config);
                note(Note::Proposed { shard: *shard, config: config.clone(), reason });
            }
            if let Some(config) = &record.current
                && old.is_none_or(|old| old.current.as_ref() != Some(config))
            {
                note(Note::Activated { shard: *shard, config: config.clone() });
            }
        }
        for (server, record) in old.servers.iter().filter(|(server, _)| !new.servers.contains_key(server)) {
            note(Note::Removed { server: *server, name: record.name.clone() });
        }
    }

    /// Takes the controller's role if nobody has it or its beat stands still, and beats while it has it.
    fn hold(&mut self, map: &mut ClusterMap, now: Instant) {
        let Some(id) = self.id else { return };
        if self.config.role == Role::Router {
            return;
        }
        if map.controller.holder == Some(id) {
            if now >= self.next_beat {
                self.next_beat = now + BEAT_EVERY;
                map.controller.beat += 1;
            }
        } else if map.controller.holder.is_none() || now.since(self.hint_since) >= self.config.controller_after {
            map.controller.holder = Some(id);
            map.controller.beat += 1;
            self.next_beat = now + BEAT_EVERY;
        }
    }
}

fn send(messages: Vec<drive::Outgoing>, out: &mut Vec<BalancerEffect>) {
    out.extend(messages.into_iter().map(|(to, message)| BalancerEffect::Send { to, message: Message::ToServer(message) }));
}

/// Doubles from [`RETRY_FIRST`] to [`RETRY_MAX`], spread by a salt.
fn backoff(failures: u32, salt: u64) -> Duration {
    let base = RETRY_FIRST.times(1 << failures.min(8)).0.min(RETRY_MAX.0);
    Duration(base / 2 + mix(salt, u64::from(failures)) % (base / 2 + 1))
}

#[cfg(test)]
mod tests;
