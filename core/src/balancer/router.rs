//! The balancer's data path: routes reads and writes to replicas, tries again until their deadline, and answers each exactly once. Never
//! trusts its copy of the map (replicas refuse a wrong epoch), never says that a write failed when that is not known (R25).
//!
//! ```text
//!   request ── legs, one per shard ── copies, one message each ── answers by tag
//!
//!   leg of a write:  waits for a number ─► sent ─► answered | refused for good | given up at the deadline
//!                      (session, window)    └─◄── again: no answer, NotPrimary, Busy, a new configuration
//!   leg of a read:   sent to one replica ─► page | another replica: refused, no answer, suspected
//! ```
//!
//! Invariants, with a request between its arrival and its reply:
//! 1. A part of a write has one number from its first copy to its end; another only after the session was refused, and only under an
//!    idempotency key.
//! 2. A number is closed only when its part is answered or given up; until then the lowest does not pass it (R25).
//! 3. A copy in `tags` is in the open copies of its leg, and is counted in the load of its server; and the reverse.
//! 4. Every request has a timer at its deadline.

use super::{
    BalancerConfig,
    policy::{Candidate, Picker, back_off, mix},
    routes::Routes,
    sessions::Sessions,
};
use crate::{
    effect::{BalancerEffect, Note},
    id::{Epoch, Incarnation, MapVersion, ReplicaId, ServerId, SessionId, ShardId, Token},
    map::ClusterMap,
    message::{Message, Pin, Tag, ToBalancer, ToServer},
    planted::{Bug, Planted},
    request::{Consistency, Health, Reply, Request, RequestError},
    time::{Duration, Instant},
    value::{Key, KeyRange},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

mod pick;
mod read;
mod write;

/// A read without an answer goes to another replica after this. A guess: two heartbeats.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// The longest that becomes by doubling.
const READ_AGAIN_MAX: Duration = Duration::from_millis(800);
/// A write without an answer is sent again after this. A guess: a slow fsync is shorter.
const WRITE_AGAIN_AFTER: Duration = Duration::from_millis(300);
/// The longest that becomes by doubling.
const WRITE_AGAIN_MAX: Duration = Duration::from_millis(2_000);
/// Every replica refused, or the primary is not yet or no longer one: tried again after this. A guess: about two round trips.
const REFUSED_AGAIN_AFTER: Duration = Duration::from_millis(20);
/// The longest that becomes by doubling.
const REFUSED_AGAIN_MAX: Duration = Duration::from_millis(400);

/// The register is read for the router's sake at most this often. Whoever is refused comes again and says so again. A guess.
const REFRESH_EVERY: Duration = Duration::from_millis(50);
/// See [`Router::rank`].
const DOWN_RANK: u8 = 3;

/// Something that is due at an instant. At one instant deadlines come first: what is over is not sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Deadline(Token),
    Again(Token, usize),
}

/// A message that was sent and not answered.
#[derive(Clone, Copy, Debug)]
struct Copy {
    token: Token,
    leg: usize,
    server: ServerId,
}

/// One of the things a request waits for.
#[derive(Clone, Debug, Default)]
struct Leg {
    /// Copies sent and not answered.
    open: BTreeSet<u64>,
    again_at: Option<Instant>,
    /// How often it was tried since something last changed.
    attempt: u32,
    /// Servers tried in this turn.
    tried: BTreeSet<ServerId>,
}

#[derive(Clone, Debug)]
struct Pending {
    deadline: Instant,
    legs: Vec<Leg>,
    job: Job,
}

#[derive(Clone, Debug)]
enum Job {
    Write(write::Write),
    Read(read::Scatter),
    ReadServer(read::AtServer),
    Pick(pick::Pick),
}

/// Why a leg is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// It is new, or what it waits for has changed.
    Changed,
    /// A copy was refused.
    Refused,
    /// Its time has come.
    Due,
}

/// The data path of one balancer. The shell hands over what concerns it and carries the effects out.
#[derive(Clone, Debug)]
pub(crate) struct Router {
    requests_max: usize,
    planted: Planted,
    seed: u64,
    now: Instant,
    picker: Picker,
    routes: Option<Routes>,
    /// The map, before the first session.
    held: Option<(MapVersion, Arc<ClusterMap>)>,
    sessions: Sessions,
    health: BTreeMap<ServerId, Health>,
    /// Who said last that it serves as primary.
    leaders: BTreeMap<ShardId, (ReplicaId, Epoch)>,
    requests: BTreeMap<Token, Pending>,
    tags: BTreeMap<u64, Copy>,
    last_tag: u64,
    load_counts: BTreeMap<ServerId, u32>,
    timers: BTreeSet<(Instant, Timer)>,
    /// Shards whose line may move although nothing came in since.
    freed: BTreeSet<ShardId>,
    /// What replicas hold for reads that go on.
    pins: BTreeMap<Pin, ServerId>,
    refresh: bool,
    refresh_not_before: Instant,
    /// Messages ever sent, by server.
    request_counts: BTreeMap<ServerId, u64>,
}

impl Router {
    /// A router that knows nothing yet.
    #[must_use]
    pub(crate) fn new(config: &BalancerConfig) -> Self {
        Self {
            requests_max: config.requests_max,
            planted: config.planted,
            seed: config.seed,
            now: Instant::default(),
            picker: Picker::new(config.policy, config.seed),
            routes: None,
            held: None,
            sessions: Sessions::default(),
            health: BTreeMap::new(),
            leaders: BTreeMap::new(),
            requests: BTreeMap::new(),
            tags: BTreeMap::new(),
            last_tag: 0,
            load_counts: BTreeMap::new(),
            timers: BTreeSet::new(),
            freed: BTreeSet::new(),
            pins: BTreeMap::new(),
            refresh: false,
            refresh_not_before: Instant::default(),
            request_counts: BTreeMap::new(),
        }
    }

    /// Takes the newest map that was read back. What waits for a shard that changed is routed again at once. Before the first session it
    /// is kept aside: the balancer's own id is minted with that session, and it sends nothing before (R10).
    pub(crate) fn set_map(&mut self, now: Instant, version: MapVersion, map: &Arc<ClusterMap>, out: &mut Vec<BalancerEffect>) {
        self.now = self.now.max(now);
        if self.sessions.is_blank() {
            self.held = Some((version, Arc::clone(map)));
            return;
        }
        if self.routes.as_ref().is_some_and(|routes| version <= routes.version()) {
            return;
        }
        let new = Routes::new(version, map);
        let old = self.routes.take();
        let is_changed =
            |shard: ShardId| old.as_ref().and_then(|old| old.serving(shard)) != new.serving(shard) || new.shard(shard).is_none();
        let changed: Vec<(Token, usize)> = self.legs_of(|_, shard| shard.is_some_and(is_changed));
        self.picker.set_servers(map.servers.keys().copied());
        self.health.retain(|server, _| map.servers.contains_key(server));
        self.leaders.retain(|shard, _| map.shards.contains_key(shard));
        self.request_counts.retain(|server, _| map.servers.contains_key(server));
        self.routes = Some(new);
        self.again(&changed, true, out);
    }

    /// Takes a session that was minted for this balancer and read back (R10, R23).
    pub(crate) fn set_session(&mut self, now: Instant, session: SessionId, out: &mut Vec<BalancerEffect>) {
        self.now = self.now.max(now);
        self.sessions.set(session);
        if let Some((version, map)) = self.held.take() {
            self.set_map(now, version, &map, out);
        }
        for shard in self.sessions.waited_for() {
            self.move_line(shard, out);
        }
    }

    /// No number of the session is given out any more: writes wait for another.
    pub(crate) const fn end_session(&mut self) {
        self.sessions.end();
    }

    /// Whether the shell shall mint a new session: there is none yet, or a replica refused the last (R23).
    #[must_use]
    pub(crate) fn wants_session(&self) -> bool {
        self.sessions.is_wanted()
    }

    /// Whether the shell shall read the register, asked once: a replica knows of a higher epoch than the map, or does not answer.
    #[must_use]
    pub(crate) fn take_refresh(&mut self) -> bool {
        let is_due = self.refresh && self.now >= self.refresh_not_before;
        self.refresh = false;
        if is_due {
            self.refresh_not_before = self.now + REFRESH_EVERY;
        }
        is_due
    }

    /// How a server looks now. Reads under way at one that became suspect go to another at once.
    pub(crate) fn set_health(&mut self, now: Instant, server: ServerId, health: Health, out: &mut Vec<BalancerEffect>) {
        self.now = self.now.max(now);
        if self.health.insert(server, health) == Some(health) {
            return;
        }
        let changed: Vec<_> = match health {
            Health::Suspect | Health::Down => {
                let at: BTreeSet<(Token, usize)> =
                    self.tags.values().filter(|copy| copy.server == server).map(|copy| (copy.token, copy.leg)).collect();
                // A write may be sent to its primary only: to try it again would help nobody.
                at.into_iter().filter(|(token, _)| !self.requests.get(token).is_some_and(|pending| pending.is_write())).collect()
            }
            // Whoever waits for it to come back.
            Health::Starting | Health::Up | Health::Leaving => self.legs_of(|leg, _| leg.open.is_empty()),
        };
        self.again(&changed, false, out);
    }

    /// What a replica said in a beat: that it leads an epoch, and whether it serves as its primary.
    pub(crate) fn set_leader_hint(
        &mut self,
        now: Instant,
        shard: ShardId,
        replica: ReplicaId,
        epoch: Epoch,
        active: bool,
        out: &mut Vec<BalancerEffect>,
    ) {
        self.now = self.now.max(now);
        if !active {
            if self.leaders.get(&shard) == Some(&(replica, epoch)) {
                self.leaders.remove(&shard);
            }
            return;
        }
        let Some(serving) = self.routes.as_ref().and_then(|routes| routes.serving(shard)) else { return };
        if epoch > serving.epoch {
            self.refresh = true;
        } else if epoch == serving.epoch && self.leaders.insert(shard, (replica, epoch)) != Some((replica, epoch)) {
            // It was not active before: whom it refused may come again.
            let refused = self.legs_of(|leg, of| of == Some(shard) && leg.open.is_empty());
            self.again(&refused, true, out);
        }
    }

    /// Takes a Read, ReadServer, Write or PickServer; it is answered by its deadline.
    ///
    /// # Panics
    /// On any other request, and if the token is in use.
    pub(crate) fn request(&mut self, now: Instant, token: Token, request: Request, deadline: Instant, out: &mut Vec<BalancerEffect>) {
        self.now = self.now.max(now);
        assert!(!self.requests.contains_key(&token), "{token} names two requests");
        let job = self.prepare(request).and_then(|job| {
            let is_full = self.requests.len() >= self.requests_max;
            if is_full && !job.is_done() { Err(RequestError::Overloaded) } else { Ok(job) }
        });
        match job {
            Ok(job) => {
                let legs = vec![Leg::default(); job.leg_count()];
                let count = legs.len();
                self.timers.insert((deadline, Timer::Deadline(token)));
                let pending = Pending { deadline, legs, job };
                if deadline <= self.now {
                    self.give_up(token, pending, out);
                } else {
                    self.with(token, pending, out, |router, pending, out| {
                        for leg in 0..count {
                            router.look(token, pending, leg, Cause::Changed, out);
                        }
                    });
                }
            }
            Err(error) => out.push(BalancerEffect::Reply { token, reply: Reply::Failed(error) }),
        }
    }

    /// Whether the map at hand speaks for all that the request names. If not, another balancer may have added the shard or server.
    pub(crate) fn knows(&self, request: &Request) -> bool {
        let Some(routes) = self.routes.as_ref().filter(|routes| routes.map().schema.is_some()) else { return false };
        match request {
            Request::Read { range, consistency, .. } => Self::knows_range(routes, *range, consistency),
            // The first page has found out which shards there are.
            Request::ReadPage { pinned: Some(_), .. } | Request::EndRead(_) => true,
            Request::ReadPage { range, consistency, pinned: None, .. } => Self::knows_range(routes, *range, consistency),
            Request::Write { operations, .. } => operations.iter().all(|operation| routes.shard_at(operation.key()).is_some()),
            Request::ReadServer { server, .. } => routes.map().server_named(server).is_some(),
            Request::Init { .. }
            | Request::Status { .. }
            | Request::Add { .. }
            | Request::Remove { .. }
            | Request::Move { .. }
            | Request::Drain { .. }
            | Request::Explain(_)
            | Request::Primary { .. }
            | Request::PickServer { .. } => true,
        }
    }

    /// Whether the map at hand is new enough for a read of the range. Another balancer may have added a shard in it, written to it, and
    /// answered: a read that is to see all that was acknowledged needs a map that is read later. One that is to see what its client has seen
    /// needs that only for shards that the client names; one that may be stale takes the map as it takes the rows.
    fn knows_range(routes: &Routes, range: KeyRange, consistency: &Consistency) -> bool {
        match consistency {
            Consistency::Linearizable => routes.covers(range),
            Consistency::Session(seen) => routes.covers(range) || seen.keys().all(|shard| routes.shard(*shard).is_some()),
            Consistency::Stale => true,
        }
    }

    /// Nobody waits for the answer any more. What was sent goes on at the replicas; nothing is sent again.
    pub(crate) fn abandoned(&mut self, token: Token) {
        if let Some(pending) = self.requests.remove(&token) {
            self.end(token, pending);
        }
    }

    /// Takes an answer. Messages that are none of the router's are ignored.
    pub(crate) fn message(&mut self, now: Instant, from: ServerId, message: ToBalancer, out: &mut Vec<BalancerEffect>) {
        self.now = self.now.max(now);
        match message {
            ToBalancer::Executed { tag, result } => self.on_executed(from, tag, result, out),
            ToBalancer::ReadDone { tag, result } => self.on_read_done(from, tag, result, out),
            ToBalancer::Home { tag } => self.on_home(from, tag, out),
            ToBalancer::Beat { .. }
            | ToBalancer::Created { .. }
            | ToBalancer::Retired { .. }
            | ToBalancer::Promised { .. }
            | ToBalancer::Progress { .. } => {}
        }
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, now: Instant, out: &mut Vec<BalancerEffect>) {
        self.now = self.now.max(now);
        self.move_freed(out);
        while let Some((at, timer)) = self.timers.first().copied() {
            if at > self.now {
                break;
            }
            self.timers.pop_first();
            match timer {
                Timer::Deadline(token) => {
                    if let Some(pending) = self.requests.remove(&token) {
                        self.give_up(token, pending, out);
                    }
                }
                Timer::Again(token, leg) => {
                    let Some(mut pending) = self.requests.remove(&token) else { continue };
                    pending.legs[leg].again_at = None;
                    self.with(token, pending, out, |router, pending, out| router.look(token, pending, leg, Cause::Due, out));
                }
            }
        }
    }

    /// When [`Self::tick`] has something to do.
    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        if self.freed.is_empty() { self.timers.first().map(|(at, _)| *at) } else { Some(self.now) }
    }

    /// How many messages were sent to each server so far, second copies included.
    #[must_use]
    pub(crate) const fn request_counts(&self) -> &BTreeMap<ServerId, u64> {
        &self.request_counts
    }

    /// Where a read of the shard from this key on is sent now, by its name, and why. Draws nothing, so that it changes nothing.
    pub(crate) fn explain_read(&self, shard: ShardId, key: Key) -> Option<(Box<str>, Box<str>)> {
        let routes = self.routes.as_ref()?;
        let servers: Vec<ServerId> = routes.serving(shard)?.members.iter().map(|member| member.server).collect();
        let mut picker = self.picker.clone();
        let request_id = picker.request_id();
        let candidates = self.candidates(&servers, &BTreeSet::new());
        let chosen = picker.pick(read::place_of(shard, key), request_id, &candidates)?;
        let left_out = servers.len() - candidates.len();
        let mut why = picker.describe(candidates.len());
        if left_out > 0 {
            why.push_str(&format!("; {left_out} of {} look worse and are not asked", servers.len()));
        }
        Some((routes.map().servers.get(&chosen)?.name.clone(), why.into()))
    }

    /// How many messages to the server are not answered yet.
    pub(crate) fn load_count(&self, server: ServerId) -> u32 {
        self.load_counts.get(&server).copied().unwrap_or(0)
    }

    // ---- requests ---------------------------------------------------------------------------------------------------------------

    /// Checks the request against the map and says what there is to do. Nothing is sent yet.
    fn prepare(&mut self, request: Request) -> Result<Job, RequestError> {
        let Some(routes) = &self.routes else { return Err(RequestError::RegisterUnavailable) };
        match request {
            Request::Read { range, limit, consistency } => {
                let _ = routes.map().schema.as_ref().ok_or(RequestError::NotInitialised)?;
                Ok(Job::Read(read::Scatter::new(routes, range, (limit, 0), consistency, None)))
            }
            Request::ReadPage { range, limit, wanted, consistency, pinned } => {
                let _ = routes.map().schema.as_ref().ok_or(RequestError::NotInitialised)?;
                let pinned = pinned.filter(|_| !self.planted.has(Bug::ContinuesElsewhere));
                Ok(Job::Read(read::Scatter::new(routes, range, (limit, wanted), consistency, pinned)))
            }
            Request::ReadServer { server, shard, range, limit, wanted, pinned } => {
                Ok(Job::ReadServer(read::AtServer::new(routes, (&server, shard.as_deref()), range, (limit, wanted), pinned)?))
            }
            Request::Write { operations, on_conflict, idempotency } => {
                let write = write::Write::new(routes, operations, on_conflict, idempotency)?;
                if write.shards().any(|shard| !self.sessions.has_room(shard)) {
                    return Err(RequestError::Overloaded);
                }
                Ok(Job::Write(write))
            }
            Request::PickServer { request_id } => Ok(Job::Pick(pick::Pick::new(routes, request_id)?)),
            Request::Init { .. }
            | Request::EndRead(_)
            | Request::Status { .. }
            | Request::Add { .. }
            | Request::Remove { .. }
            | Request::Move { .. }
            | Request::Drain { .. }
            | Request::Explain(_)
            | Request::Primary { .. } => {
                panic!("not a request of the data path: {request:?}")
            }
        }
    }

    /// Works on a request, then answers it if it is done.
    fn with(
        &mut self,
        token: Token,
        mut pending: Pending,
        out: &mut Vec<BalancerEffect>,
        work: impl FnOnce(&mut Self, &mut Pending, &mut Vec<BalancerEffect>),
    ) {
        work(self, &mut pending, out);
        let reply = match &mut pending.job {
            Job::Write(write) => write.reply(),
            Job::Read(_) => self.gather(token, &mut pending, out),
            Job::ReadServer(read) => read.reply(),
            Job::Pick(pick) => pick.reply(),
        };
        match reply {
            Some(reply) => {
                self.end(token, pending);
                out.push(BalancerEffect::Reply { token, reply });
            }
            None => {
                self.requests.insert(token, pending);
            }
        }
        self.move_freed(out);
    }

    /// Numbers were closed: whoever waits for one of those shards may go on.
    fn move_freed(&mut self, out: &mut Vec<BalancerEffect>) {
        while let Some(shard) = self.freed.pop_first() {
            self.move_line(shard, out);
        }
    }

    /// The deadline has come.
    fn give_up(&mut self, token: Token, mut pending: Pending, out: &mut Vec<BalancerEffect>) {
        let name = |shard: ShardId| self.routes.as_ref().map_or_else(|| shard.to_string().into(), |routes| routes.name(shard));
        let reply = match &mut pending.job {
            Job::Write(write) => write.give_up(name),
            Job::Read(scatter) => Reply::Failed(RequestError::ShardUnavailable(name(scatter.waits_for()))),
            Job::ReadServer(read) => Reply::Failed(RequestError::ShardUnavailable(name(read.shard()))),
            Job::Pick(_) => Reply::Failed(RequestError::NoServer),
        };
        self.end(token, pending);
        out.push(BalancerEffect::Reply { token, reply });
        self.move_freed(out);
    }

    /// Forgets a request: its copies, timers and numbers, and its places in line.
    fn end(&mut self, token: Token, mut pending: Pending) {
        self.timers.remove(&(pending.deadline, Timer::Deadline(token)));
        for (place, leg) in pending.legs.iter_mut().enumerate() {
            self.rest(token, place, leg);
        }
        if let Job::Write(write) = &mut pending.job {
            for part in write.parts_mut() {
                self.release(part);
            }
        }
    }

    /// The legs of requests that fit and still wait for something, with the shard they are about.
    fn legs_of(&self, fits: impl Fn(&Leg, Option<ShardId>) -> bool) -> Vec<(Token, usize)> {
        let mut found = Vec::new();
        for (token, pending) in &self.requests {
            for (place, leg) in pending.legs.iter().enumerate() {
                if !pending.job.is_leg_done(place) && fits(leg, pending.job.shard_of(place)) {
                    found.push((*token, place));
                }
            }
        }
        found
    }

    /// Looks at legs again because something changed; `fresh` also forgets how often they were tried.
    fn again(&mut self, legs: &[(Token, usize)], fresh: bool, out: &mut Vec<BalancerEffect>) {
        for (token, place) in legs {
            let Some(mut pending) = self.requests.remove(token) else { continue };
            if let Some(leg) = pending.legs.get_mut(*place)
                && fresh
            {
                leg.attempt = 0;
                leg.tried.clear();
            }
            self.with(*token, pending, out, |router, pending, out| router.look(*token, pending, *place, Cause::Changed, out));
        }
    }

    fn look(&mut self, token: Token, pending: &mut Pending, place: usize, cause: Cause, out: &mut Vec<BalancerEffect>) {
        if pending.job.is_leg_done(place) {
            return;
        }
        if cause == Cause::Due {
            let leg = &pending.legs[place];
            // Whoever does not answer may have been replaced.
            self.refresh |= !leg.open.is_empty();
        }
        match &pending.job {
            Job::Write(_) => self.send_part(token, pending, place, cause, out),
            Job::Read(_) => self.send_read(token, pending, place, cause, out),
            Job::ReadServer(_) => self.send_server_read(token, pending, cause, out),
            Job::Pick(_) => self.send_home(token, pending, cause, out),
        }
    }

    // ---- copies and timers ------------------------------------------------------------------------------------------------------

    /// Sends one more copy of a leg, which may take until `again_at`.
    fn send(
        &mut self,
        (token, place): (Token, usize),
        leg: &mut Leg,
        server: ServerId,
        message: impl FnOnce(Tag) -> ToServer,
        out: &mut Vec<BalancerEffect>,
    ) {
        self.last_tag += 1;
        let number = self.last_tag;
        self.tags.insert(number, Copy { token, leg: place, server });
        leg.open.insert(number);
        leg.tried.insert(server);
        *self.load_counts.entry(server).or_default() += 1;
        *self.request_counts.entry(server).or_default() += 1;
        let tag = Tag { life: Incarnation(0), number };
        out.push(BalancerEffect::Send { to: server, message: Message::ToServer(message(tag)) });
    }

    /// The request that an exchange is a part of.
    pub(crate) fn request_of(&self, tag: Tag) -> Option<Token> {
        self.tags.get(&tag.number).map(|copy| copy.token)
    }

    /// The request that an answer is for, taken out, and the leg. Only the server that was asked can answer, and once.
    fn answered(&mut self, from: ServerId, tag: Tag) -> Option<(Token, Pending, usize)> {
        let copy = *self.tags.get(&tag.number)?;
        if copy.server != from || tag.life != Incarnation(0) {
            return None;
        }
        self.forget_copy(tag.number);
        let mut pending = self.requests.remove(&copy.token)?;
        pending.legs[copy.leg].open.remove(&tag.number);
        Some((copy.token, pending, copy.leg))
    }

    fn forget_copy(&mut self, number: u64) {
        let Some(copy) = self.tags.remove(&number) else { return };
        if let Some(count) = self.load_counts.get_mut(&copy.server) {
            *count -= 1;
            if *count == 0 {
                self.load_counts.remove(&copy.server);
            }
        }
    }

    /// The leg has nothing more to wait for.
    fn rest(&mut self, token: Token, place: usize, leg: &mut Leg) {
        for number in std::mem::take(&mut leg.open) {
            self.forget_copy(number);
        }
        if let Some(at) = leg.again_at.take() {
            self.timers.remove(&(at, Timer::Again(token, place)));
        }
    }

    /// Sets when the leg is looked at again: doubled from `base` to `max` by its attempts, spread by key.
    fn come_again(&mut self, (token, place): (Token, usize), leg: &mut Leg, base: Duration, max: Duration) {
        if let Some(at) = leg.again_at.take() {
            self.timers.remove(&(at, Timer::Again(token, place)));
        }
        let key = mix(&[self.seed, token.0, place as u64, u64::from(leg.attempt)]);
        let at = back_off(self.now, base, leg.attempt, max, key);
        leg.again_at = Some(at);
        self.timers.insert((at, Timer::Again(token, place)));
    }

    // ---- picking ----------------------------------------------------------------------------------------------------------------

    /// How little a server is to be asked: the lower the better.
    fn rank(&self, server: ServerId) -> u8 {
        match self.health.get(&server) {
            Some(Health::Up | Health::Leaving) => 0,
            Some(Health::Starting) | None => 1,
            Some(Health::Suspect) => 2,
            Some(Health::Down) => DOWN_RANK,
        }
    }

    /// The best of these servers that was not tried in this turn: of those that look best, the policy's choice.
    fn choose(&mut self, servers: &[ServerId], tried: &BTreeSet<ServerId>, hash: u64, request_id: u64) -> Option<ServerId> {
        let candidates = self.candidates(servers, tried);
        self.picker.pick(hash, request_id, &candidates)
    }

    /// Those of the servers that were not tried and look best. Servers that are down only if all are.
    fn candidates(&self, servers: &[ServerId], tried: &BTreeSet<ServerId>) -> Vec<Candidate> {
        let worst = if servers.iter().any(|server| self.rank(*server) < DOWN_RANK) { DOWN_RANK - 1 } else { DOWN_RANK };
        let untried = || servers.iter().copied().filter(|server| !tried.contains(server) && self.rank(*server) <= worst);
        let Some(best) = untried().map(|server| self.rank(server)).min() else { return Vec::new() };
        let number = |server: ServerId| {
            self.routes.as_ref().and_then(|routes| routes.map().servers.get(&server)).map_or(server.0, |record| record.number)
        };
        untried()
            .filter(|server| self.rank(*server) == best)
            .map(|server| Candidate { server, number: number(server), load_count: self.load_count(server) })
            .collect()
    }

    /// A message that cannot be right is dropped and told, not trusted.
    fn drop_message(reason: &str, out: &mut Vec<BalancerEffect>) {
        out.push(BalancerEffect::Note(Note::Dropped { reason: reason.into() }));
    }

    /// Invariants 3 and 4.
    #[cfg(test)]
    fn check(&self) {
        let open: BTreeSet<u64> =
            self.requests.values().flat_map(|pending| &pending.legs).flat_map(|leg| leg.open.iter().copied()).collect();
        assert!(open.iter().eq(self.tags.keys()), "open copies {open:?} are not the tags {:?}", self.tags);
        let mut load_counts: BTreeMap<ServerId, u32> = BTreeMap::new();
        for copy in self.tags.values() {
            *load_counts.entry(copy.server).or_default() += 1;
        }
        assert_eq!(load_counts, self.load_counts);
        for (token, pending) in &self.requests {
            assert!(self.timers.contains(&(pending.deadline, Timer::Deadline(*token))), "{token} has no deadline");
        }
    }
}

impl Pending {
    const fn is_write(&self) -> bool {
        matches!(self.job, Job::Write(_))
    }
}

impl Job {
    fn leg_count(&self) -> usize {
        match self {
            Self::Write(write) => write.part_count(),
            // Legs of a scatter are added as it goes on.
            Self::Read(_) => 0,
            Self::ReadServer(read) => usize::from(!read.is_done()),
            Self::Pick(_) => 1,
        }
    }

    /// Whether it is done without being sent anywhere.
    fn is_done(&self) -> bool {
        match self {
            Self::Write(write) => write.part_count() == 0,
            Self::ReadServer(read) => read.is_done(),
            Self::Read(_) | Self::Pick(_) => false,
        }
    }

    fn is_leg_done(&self, place: usize) -> bool {
        match self {
            Self::Write(write) => write.is_part_done(place),
            Self::Read(scatter) => scatter.is_leg_done(place),
            Self::ReadServer(read) => read.is_done(),
            Self::Pick(pick) => pick.is_done(),
        }
    }

    fn shard_of(&self, place: usize) -> Option<ShardId> {
        match self {
            Self::Write(write) => write.shard_of(place),
            Self::Read(scatter) => scatter.shard_of(place),
            Self::ReadServer(read) => Some(read.shard()),
            Self::Pick(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
