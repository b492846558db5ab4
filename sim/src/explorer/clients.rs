//! The clients: they ask balancers at the planned times, come again under their key where the plan says so, give up at the end, and
//! compare every answer with the committed logs. Never asks anything that is not planned, but for the probes after healing.

mod pages;

use super::{
    coverage::Sometimes,
    model::Effect,
    world::{Event, World},
};
use crate::{
    faults::Place,
    keyed::{Keyed, Purpose, fold},
    plan::{Action, Level, Plan, PlannedOperation},
};
use pages::Pages;
use std::collections::{BTreeMap, BTreeSet};
use twinshard_core::{
    command::{Command, Idempotency, Operation, Verdict},
    effect::{BalancerInput, ServerInput},
    id::{LogIndex, Position, SchemaId, ServerId, ShardId, Token},
    map::ClusterMap,
    request::{Applied, Consistency, Reply, Request, RequestError, Rows, ServerReply, ServerRequest, Written},
    time::{Duration, Instant},
    value::{Key, KeyRange, Value},
};
use twinshard_scenarios::{
    history::{History, Kind, OperationId, Recorder, VALUE_COLUMN},
    scenario,
    workload::ClosedLoop,
};

/// How long past its own deadline an answer of a balancer may still be on its way.
const GRACE: Duration = Duration::from_millis(60);
/// Probes have numbers from here on.
pub(super) const PROBES_FROM: u32 = 1_000_000;
/// /init is this operation.
pub(super) const INIT: u32 = u32::MAX;

/// What has become of an operation.
#[derive(Clone, Debug)]
struct Running {
    planned: PlannedOperation,
    attempt: u32,
    record: Option<OperationId>,
    /// What it asks, once it has begun.
    request: Option<Request>,
    asked: Option<Asked>,
    retried: u32,
    finished: bool,
    /// The last answer, if it was one.
    pub(super) succeeded: bool,
    /// Some attempt ended without telling.
    ambiguous: bool,
    /// The last answer said that nothing was applied.
    denied: bool,
    /// Of a read: how far it has come.
    pages: Option<Pages>,
    /// How many pages it asked for.
    page_count: u64,
    /// It asks nobody for the moment: its client is busy with a page.
    pausing: bool,
    /// When this attempt ends.
    deadline: Instant,
}

#[derive(Clone, Debug)]
struct Asked {
    balancer: usize,
    incarnation: u64,
    deadline: Instant,
    /// The schema that the balancer's HTTP checks a write against: that of the map it has published.
    schema: Option<SchemaId>,
    /// What had been seen or acknowledged of each shard when the operation began.
    floor: BTreeMap<ShardId, LogIndex>,
}

/// All clients of a run.
#[derive(Clone, Debug)]
pub(super) struct Clients {
    operations: Vec<Running>,
    /// By shard: the highest index that any client was told of by a write or a linearizable read.
    observed: BTreeMap<ShardId, LogIndex>,
    recorder: Recorder,
    /// The cluster was torn down, and with it what the history tells of.
    history_ended: bool,
    pub(super) closed: Option<ClosedLoop>,
    /// By client: how many operations of a closed loop it has begun.
    begun: BTreeMap<u32, u64>,
    pub(super) told: BTreeMap<u32, Told>,
    /// How many answers were compared.
    pub(super) answers: u64,
    shards: BTreeMap<ShardId, (Box<str>, KeyRange)>,
}

impl Clients {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut operations = vec![Running::new(PlannedOperation {
            id: INIT,
            at: Instant(20_000_000),
            client: u32::MAX,
            balancer: 0,
            timeout: Duration::from_millis(120_000),
            retries: u32::MAX,
            action: Action::Status,
        })];
        operations.extend(plan.operations.iter().cloned().map(Running::new));
        Self {
            operations,
            observed: BTreeMap::new(),
            recorder: Recorder::default(),
            history_ended: false,
            closed: None,
            begun: BTreeMap::new(),
            told: BTreeMap::new(),
            answers: 0,
            shards: BTreeMap::new(),
        }
    }

    /// The places of the operations with the times at which they begin.
    pub(super) fn begin_times(&self) -> Vec<(usize, Instant)> {
        self.operations.iter().enumerate().map(|(place, running)| (place, running.planned.at)).collect()
    }

    /// Takes up the shards of a map.
    pub(super) fn learn(&mut self, map: &ClusterMap) {
        if map.shards.keys().any(|id| !self.shards.contains_key(id)) {
            self.recorder.learn(map);
            self.shards.extend(map.shards.iter().map(|(id, shard)| (*id, (shard.name.clone(), shard.range()))));
        }
    }

    /// The cluster was torn down: what clients see from here on is of none, or of another, which owes nothing to this one. What is under
    /// way has no known end.
    pub(super) fn end_history(&mut self) {
        self.history_ended = true;
        self.operations.iter_mut().for_each(|running| running.record = None);
    }

    /// Takes up an operation in the history, or that it comes again.
    fn record(&mut self, place: usize, now: Instant, request: &Request) -> Result<(), String> {
        if self.history_ended {
            return Ok(());
        }
        let running = &mut self.operations[place];
        match running.record {
            None => running.record = Some(self.recorder.begin(running.planned.client, now.0, request.clone())),
            Some(record) => self.recorder.retry(record).map_err(|error| error.to_string())?,
        }
        Ok(())
    }

    pub(super) fn into_history(self) -> History {
        self.recorder.into_history()
    }

    /// Whether /init is done.
    pub(super) fn is_set_up(&self) -> bool {
        self.operations.first().is_some_and(|init| init.finished)
    }

    /// Operations that have no end yet.
    pub(super) fn open_count(&self) -> usize {
        self.operations.iter().filter(|running| !running.finished).count()
    }

    /// The schema that the request was checked against.
    pub(super) fn checked_against(&self, token: Token) -> Option<SchemaId> {
        self.operations.get(of_token(token).0)?.asked.as_ref()?.schema
    }

    /// Adds a probe and returns its place.
    pub(super) fn add(&mut self, planned: PlannedOperation) -> usize {
        self.operations.push(Running::new(planned));
        self.operations.len() - 1
    }

    /// Whether an operation is over, and well.
    pub(super) fn outcome(&self, place: usize) -> (bool, bool) {
        let running = &self.operations[place];
        (running.finished, running.succeeded)
    }

    /// The shards that have that key, the newest first: those of a cluster that was torn down had it, too.
    fn shards_at(&self, key: Key) -> impl Iterator<Item = ShardId> {
        self.shards.iter().rev().filter(move |(_, (_, range))| range.contains(key)).map(|(id, _)| *id)
    }
}

impl Running {
    const fn new(planned: PlannedOperation) -> Self {
        Self {
            planned,
            attempt: 0,
            record: None,
            request: None,
            asked: None,
            retried: 0,
            finished: false,
            succeeded: false,
            ambiguous: false,
            denied: false,
            pages: None,
            page_count: 0,
            pausing: false,
            deadline: Instant(0),
        }
    }
}

impl Running {
    /// Whether the client tries once more. Clients of scenarios do so only if they do not know the outcome.
    const fn may_come_again(&self, ambiguous: bool) -> bool {
        self.retried < self.planned.retries && (ambiguous || !matches!(self.planned.action, Action::Raw(_)))
    }
}

/// What the operator was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// When it was asked.
    pub asked: Instant,
    /// When it was answered.
    pub answered: Option<Instant>,
    /// `done`, or the error in words.
    pub answer: String,
}

/// The next operation of a client in a closed loop.
pub(super) fn closed_operation(closed: &ClosedLoop, client: u32, nth: u64, at: Instant) -> PlannedOperation {
    let id = closed.workload.closed_loop_id(client, nth);
    PlannedOperation {
        id: id as u32,
        at,
        client,
        balancer: client as usize,
        timeout: closed.timeout,
        retries: closed.retries,
        action: Action::Raw(closed.workload.request(id, at.since(closed.from).as_millis())),
    }
}

/// The key under which an operation comes again.
fn idempotency(planned: &PlannedOperation) -> Option<Idempotency> {
    (planned.retries > 0).then(|| Idempotency { key: format!("op{}", planned.id).into(), body_hash: u128::from(planned.id) + 1 })
}

fn request(plan: &Plan, planned: &PlannedOperation) -> Option<Request> {
    if planned.id == INIT {
        return Some(Request::Init {
            server_count: Some(plan.topology.servers.len() as u64),
            schema: scenario::schema(),
            shards: plan.topology.shards.clone(),
            servers: Some(plan.topology.servers.clone()),
            on_conflict: None,
            by_name: false,
        });
    }
    Some(match &planned.action {
        Action::Write { operations, on_conflict } => {
            Request::Write { operations: operations.clone(), on_conflict: *on_conflict, idempotency: idempotency(planned) }
        }
        Action::Read { range, limit, level } => Request::Read {
            range: *range,
            limit: *limit,
            consistency: match level {
                Level::Linearizable => Consistency::Linearizable,
                Level::Session => Consistency::Session(BTreeMap::new()),
                Level::Stale => Consistency::Stale,
            },
        },
        Action::ReadServer { server, shard } => {
            let (range, shard) = (KeyRange::ALL, Some(shard.clone()));
            Request::ReadServer { server: server.clone(), shard, range, limit: plan.topology.pages.rows, wanted: u32::MAX, pinned: None }
        }
        Action::WriteAtServer { .. } | Action::ReadAtServer { .. } => return None,
        Action::AddServer { name, shards, new_shards } => Request::Add {
            server_count: 1,
            new_shards: new_shards.clone(),
            servers: vec![twinshard_core::request::NewServer { name: name.clone(), shards: shards.clone() }],
            strict: true,
        },
        Action::RemoveServer { name } => {
            Request::Remove { server_count: 1, servers: vec![name.clone()], accept_data_loss: false, capped: false }
        }
        Action::MovePrimary { shard } => Request::Primary { shard: shard.clone(), change: true },
        Action::Status => Request::Status { fresh: false },
        Action::Raw(request) => request.clone(),
    })
}

fn token(operation: usize, attempt: u32) -> Token {
    Token(operation as u64 * 16 + u64::from(attempt))
}

fn of_token(token: Token) -> (usize, u32) {
    (usize::try_from(token.0 / 16).unwrap_or(usize::MAX), u32::try_from(token.0 % 16).unwrap_or(0))
}

fn draw(keyed: Keyed, planned: &PlannedOperation, attempt: u32, what: u64) -> crate::keyed::Draw {
    keyed.draw(Purpose::Client, [fold(u64::from(planned.id), what), u64::from(attempt)])
}

impl World {
    pub(super) fn client_sends(&mut self, place: usize, attempt: u32) {
        let running = &self.clients.operations[place];
        if running.finished || running.attempt != attempt {
            return;
        }
        let planned = running.planned.clone();
        if let Action::WriteAtServer { server, shard, operations } = &planned.action {
            return self.client_sends_to_server((place, attempt), &planned, ServerId(*server), shard, operations);
        }
        if let Action::ReadAtServer { .. } = &planned.action {
            return self.client_reads_at_server((place, attempt), &planned);
        }
        let request = match &running.request {
            Some(request) => request.clone(),
            None => {
                let Some(request) = request(&self.plan, &planned) else { return };
                self.clients.recorder.with_session(planned.client, request)
            }
        };
        // A client that comes again turns to the next balancer.
        let balancer = (planned.balancer + attempt as usize) % self.balancers.len().max(1);
        let floor = running.asked.as_ref().map_or_else(|| self.clients.observed.clone(), |asked| asked.floor.clone());
        let deadline = self.now + planned.timeout;
        let incarnation = self.balancer_incarnation(balancer);
        let published = self.balancers[balancer].machine.as_ref().and_then(|machine| machine.map());
        let schema = published.filter(|(_, map)| map.schema.is_some()).map(|(_, map)| map.counters.schema);
        let running = &mut self.clients.operations[place];
        running.asked = Some(Asked { balancer, incarnation, deadline, schema, floor });
        running.request = Some(request.clone());
        let page_rows = self.plan.topology.pages.rows;
        running.pages = Pages::of(&request, page_rows);
        (running.deadline, running.pausing) = (deadline, false);
        let asked = running.pages.as_ref().map_or_else(|| request.clone(), |pages| pages.request(page_rows));
        if let Err(text) = self.clients.record(place, self.now, &request) {
            self.checks.fail("history", || text);
        }
        let from = Place::Clients;
        if self.is_cut(from, Place::Balancer(balancer)) {
            // Nobody hears it: the client waits for its deadline.
            return self.after(Duration(planned.timeout.0 + GRACE.0), Event::ClientGivesUp { operation: place, attempt });
        }
        if self.balancers[balancer].machine.is_none() {
            // Refused at once: nothing was sent.
            return self.client_comes_again(place, attempt, false);
        }
        self.after(Duration(planned.timeout.0 + GRACE.0), Event::ClientGivesUp { operation: place, attempt });
        let local = self.balancer_local(balancer, deadline);
        self.step_balancer(balancer, BalancerInput::Request { token: token(place, attempt), request: asked, deadline: local });
    }

    fn client_sends_to_server(
        &mut self,
        (place, attempt): (usize, u32),
        planned: &PlannedOperation,
        server: ServerId,
        shard: &str,
        operations: &[Operation],
    ) {
        if !self.register.map.servers.contains_key(&server) {
            // It was removed: whoever asks it asks nobody.
            return self.client_gives_in(place);
        }
        let deadline = self.now + planned.timeout;
        let Some(local) = self.server_local(server, deadline) else {
            return self.client_comes_again(place, attempt, false);
        };
        let request = ServerRequest::Write { shard: shard.into(), operations: operations.to_vec(), idempotency: idempotency(planned) };
        // To the history it is a write like any other.
        let recorded = Request::Write { operations: operations.to_vec(), on_conflict: None, idempotency: idempotency(planned) };
        if let Err(text) = self.clients.record(place, self.now, &recorded) {
            self.checks.fail("history", || text);
        }
        self.clients.operations[place].request = Some(recorded);
        self.after(Duration(planned.timeout.0 + GRACE.0), Event::ClientGivesUp { operation: place, attempt });
        self.step_server(server, ServerInput::Request { token: token(place, attempt), request, deadline: local });
    }

    /// A server answers a client of its own.
    pub(super) fn server_replied(&mut self, token: Token, reply: ServerReply) {
        let (place, attempt) = of_token(token);
        let key = self.clients.operations.get(place).and_then(|running| match &running.planned.action {
            Action::WriteAtServer { operations, .. } => operations.first().map(Operation::key),
            Action::Write { .. }
            | Action::Read { .. }
            | Action::ReadServer { .. }
            | Action::ReadAtServer { .. }
            | Action::AddServer { .. }
            | Action::RemoveServer { .. }
            | Action::MovePrimary { .. }
            | Action::Status
            | Action::Raw(_) => None,
        });
        let is_read = |running: &&Running| matches!(running.planned.action, Action::ReadAtServer { .. });
        if let Some(running) = self.clients.operations.get(place).filter(is_read) {
            let reply = self.page_at_server(running, reply);
            return self.after(Duration(100_000), Event::ClientReply { operation: place, attempt, reply });
        }
        let reply = match reply {
            ServerReply::Written { outcome, .. } => match (outcome.verdict, key.and_then(|key| self.shard_of(key, outcome.position))) {
                (Verdict::Applied { written_count, skipped_count }, Some(shard)) => Reply::Written(Written {
                    written_count: u64::from(written_count),
                    skipped_count: u64::from(skipped_count),
                    seen: BTreeMap::from([(shard, outcome.position)]),
                }),
                (Verdict::Conflict(keys), _) => Reply::Failed(RequestError::Exists(keys)),
                (Verdict::Missing(keys), _) => Reply::Failed(RequestError::Missing(keys)),
                (Verdict::KeyReused, _) => Reply::Failed(RequestError::KeyReused),
                (Verdict::Applied { .. }, None) => return self.checks.fail("reply", || format!("{token} writes to no shard")),
            },
            ServerReply::Failed(error) => Reply::Failed(error),
            other @ (ServerReply::Rows { .. }
            | ServerReply::ReadEnded
            | ServerReply::Log { .. }
            | ServerReply::Shards { .. }
            | ServerReply::Status { .. }) => {
                return self.checks.fail("reply", || format!("a write at a server is answered {other:?}"));
            }
        };
        self.after(Duration(100_000), Event::ClientReply { operation: place, attempt, reply });
    }

    /// A balancer answers: the answer is on its way.
    pub(super) fn balancer_replied(&mut self, balancer: usize, token: Token, reply: Reply) {
        let (place, attempt) = of_token(token);
        let Some(running) = self.clients.operations.get(place) else {
            return self.checks.fail("reply", || format!("balancer {balancer} answers {token}, which nobody asked"));
        };
        let planned = &running.planned;
        if let Some(asked) = running.asked.as_ref().filter(|_| running.attempt == attempt && !running.finished) {
            let late = self.now.since(asked.deadline);
            let since = self.balancers[balancer].running_since;
            if late.0 > GRACE.0 && since < asked.deadline {
                let text = format!("{planned} is answered {late} after its deadline");
                return self.checks.fail("deadline", || text);
            }
        }
        let delay = draw(self.keyed, planned, attempt, 1).between(50_000, 800_000);
        if let (Some(request), Some(asked)) = (running.request.clone(), running.asked.as_ref())
            && running.attempt == attempt
        {
            let asked = Instant(asked.deadline.0.saturating_sub(running.planned.timeout.0));
            self.check_answer(asked, &request, &reply);
        }
        self.after(Duration(delay), Event::ClientReply { operation: place, attempt, reply });
    }

    pub(super) fn client_reply(&mut self, place: usize, attempt: u32, reply: &Reply) {
        let running = &self.clients.operations[place];
        if running.finished || running.attempt != attempt {
            return;
        }
        self.trace.event(self.now, 7, place as u64, u64::from(attempt));
        self.trace.say(self.now, || format!("op{} is told {reply:?}", self.clients.operations[place].planned.id));
        let Some(reply) = &self.take_page(place, attempt, reply) else { return };
        self.check_reply(place, reply);
        if let Reply::Failed(error) = reply
            && error.retryable()
            && self.clients.operations[place].may_come_again(error.applied() != Applied::No)
        {
            return self.client_comes_again(place, attempt, error.applied() != Applied::No);
        }
        let now = self.now.0;
        let running = &mut self.clients.operations[place];
        running.finished = true;
        running.succeeded = !matches!(reply, Reply::Failed(_));
        match reply {
            Reply::Failed(error) if error.applied() == Applied::No => running.denied = true,
            Reply::Failed(_) => running.ambiguous = true,
            Reply::Added { .. } | Reply::Removed { .. } | Reply::Primary { .. } => self.checks.coverage.hit(Sometimes::AdminDone),
            Reply::Relocated { moves } if moves.is_empty() => {}
            Reply::Relocated { .. } => self.checks.coverage.hit(Sometimes::Relocated),
            Reply::Initialised
            | Reply::Status(_)
            | Reply::Rows(_)
            | Reply::ServerRows { .. }
            | Reply::ReadEnded
            | Reply::Written(_)
            | Reply::Explained(_)
            | Reply::Server { .. } => {}
        }
        self.checks.coverage.hit(Sometimes::ClientsAnswered);
        if matches!(reply, Reply::Failed(RequestError::OutcomeUnknown)) {
            self.checks.coverage.hit(Sometimes::ClientsUnknown);
        }
        if let Some(record) = running.record
            && let Err(error) = self.clients.recorder.finish(record, now, reply)
        {
            self.checks.fail("history", || error.to_string());
        }
        self.tell(
            place,
            Some(self.now),
            &match reply {
                Reply::Failed(error) => error.to_string(),
                _ => "done".to_owned(),
            },
        );
        self.client_thinks(place);
    }

    /// Keeps what the operator of a scenario was told.
    fn tell(&mut self, place: usize, answered: Option<Instant>, answer: &str) {
        let planned = &self.clients.operations[place].planned;
        if self.plan.staged && matches!(&planned.action, Action::Raw(request) if Kind::of(request) == Kind::Admin) {
            let told = Told { asked: planned.at, answered, answer: answer.to_owned() };
            self.clients.told.insert(planned.id, told);
        }
    }

    /// In a closed loop the end of an operation begins the next.
    fn client_thinks(&mut self, place: usize) {
        let client = self.clients.operations[place].planned.client;
        let Some(closed) = self.clients.closed.as_ref().filter(|closed| client < closed.clients) else { return };
        let at = self.now + closed.think;
        if at >= closed.until {
            return;
        }
        let nth = self.clients.begun.entry(client).or_insert(0);
        *nth += 1;
        let planned = closed_operation(closed, client, *nth, at);
        let next = self.clients.add(planned);
        self.at(at, Event::ClientSends { operation: next, attempt: 0 });
    }

    /// The deadline and more have passed: nobody waits any longer.
    pub(super) fn client_gives_up(&mut self, place: usize, attempt: u32) {
        let running = &self.clients.operations[place];
        if running.finished || running.attempt != attempt {
            return;
        }
        if let Some(asked) = running.asked.clone() {
            let same_life = self.balancer_incarnation(asked.balancer) == asked.incarnation;
            let disturbed = self.balancers[asked.balancer].running_since > self.now_minus_timeout(place);
            if same_life && self.is_running(asked.balancer) {
                if !disturbed && !self.clients.operations[place].pausing {
                    let text = format!("{} is not answered by its deadline", self.clients.operations[place].planned);
                    return self.checks.fail("deadline", || text);
                }
                self.step_balancer(asked.balancer, BalancerInput::Abandoned { token: token(place, attempt) });
            }
        }
        self.client_comes_again(place, attempt, true);
    }

    fn now_minus_timeout(&self, place: usize) -> Instant {
        Instant(self.now.0.saturating_sub(self.clients.operations[place].planned.timeout.0 + GRACE.0))
    }

    /// The process that was asked died: the connection breaks.
    pub(super) fn clients_lose_balancer(&mut self, balancer: usize) {
        for place in 0..self.clients.operations.len() {
            let running = &self.clients.operations[place];
            if !running.finished && running.asked.as_ref().is_some_and(|asked| asked.balancer == balancer) {
                let attempt = running.attempt;
                self.client_comes_again(place, attempt, true);
            }
        }
    }

    /// An attempt came to nothing: the next one, or the end.
    fn client_comes_again(&mut self, place: usize, attempt: u32, ambiguous: bool) {
        let keyed = self.keyed;
        let running = &mut self.clients.operations[place];
        running.ambiguous |= ambiguous;
        if running.may_come_again(ambiguous) {
            running.retried += 1;
            // The tokens of /init may repeat after many attempts; each is answered or given up long before.
            running.attempt = (attempt + 1) % 16;
            let delay = draw(keyed, &running.planned, attempt, 2).between(5_000_000, 120_000_000);
            let next = running.attempt;
            self.checks.coverage.hit(Sometimes::ClientsRetried);
            self.after(Duration(delay), Event::ClientSends { operation: place, attempt: next });
        } else {
            self.client_gives_in(place);
        }
    }

    /// The client wants nothing any more.
    fn client_gives_in(&mut self, place: usize) {
        let running = &mut self.clients.operations[place];
        running.finished = true;
        if let Some(record) = running.record
            && let Err(error) = self.clients.recorder.give_up(record)
        {
            self.checks.fail("history", || error.to_string());
        }
        self.tell(place, None, "no answer");
        self.client_thinks(place);
    }

    fn check_reply(&mut self, place: usize, reply: &Reply) {
        self.clients.answers += 1;
        match reply {
            Reply::Written(written) => self.check_written(place, written),
            Reply::Rows(rows) => self.check_rows(place, rows),
            Reply::ServerRows { .. }
            | Reply::ReadEnded
            | Reply::Initialised
            | Reply::Status(_)
            | Reply::Added { .. }
            | Reply::Removed { .. }
            | Reply::Primary { .. }
            | Reply::Relocated { .. }
            | Reply::Explained(_)
            | Reply::Server { .. }
            | Reply::Failed(_) => {}
        }
    }

    /// An acknowledged write stands in the log where the answer says, with these operations and these counts.
    fn check_written(&mut self, place: usize, written: &Written) {
        let planned = self.clients.operations[place].planned.clone();
        let Some(Request::Write { operations, .. }) = self.clients.operations[place].request.clone() else {
            return self.checks.fail("reply", || format!("{planned} is answered {written:?}"));
        };
        let mut parts: BTreeMap<ShardId, Vec<&Operation>> = BTreeMap::new();
        for operation in &operations {
            match self.clients.shards_at(operation.key()).find(|shard| written.seen.contains_key(shard)) {
                Some(shard) => parts.entry(shard).or_default().push(operation),
                None => return self.checks.fail("reply", || format!("{planned} is acknowledged, no shard has {}", operation.key())),
            }
        }
        if !parts.keys().eq(written.seen.keys()) {
            return self.checks.fail("reply", || format!("{planned} is answered {written:?}"));
        }
        let (mut written_count, mut skipped_count) = (0, 0);
        for (shard, position) in &written.seen {
            let model = self.checks.shard(*shard).map(|shard| &shard.model);
            let entry = model.and_then(|model| model.entry(position.index));
            let effect = model.and_then(|model| model.effect(position.index));
            let (Some(entry), Some(Effect::Executed(outcome))) = (entry, effect) else {
                let text = format!("{planned} is acknowledged at {position} of {shard}, where {entry:?} did {effect:?}");
                return self.checks.fail("I5", || text);
            };
            let same = entry.position == *position
                && matches!(&entry.command, Command::Operations(stood) if same_operations(stood, parts.get(shard).map_or(&[][..], |part| part)));
            let Verdict::Applied { written_count: wrote, skipped_count: skipped } = outcome.verdict else {
                let text = format!("{planned} is acknowledged at {position} of {shard}: {outcome:?}");
                return self.checks.fail("I4", || text);
            };
            if !same {
                let text = format!("{planned} is acknowledged at {position} of {shard}, where {entry:?} stands");
                return self.checks.fail("I4", || text);
            }
            written_count += u64::from(wrote);
            skipped_count += u64::from(skipped);
        }
        if (written_count, skipped_count) != (written.written_count, written.skipped_count) {
            return self.checks.fail("reply", || format!("{planned}: {written:?}, expected {written_count} and {skipped_count}"));
        }
        for (shard, position) in &written.seen {
            self.told(*shard, position.index);
        }
    }

    /// A page is the state of each shard at the index that the answer names, and that index is late enough (I6).
    fn check_rows(&mut self, place: usize, rows: &Rows) {
        let running = &self.clients.operations[place];
        let planned = running.planned.clone();
        let (Some(Request::Read { range, limit, consistency }), Some(asked)) = (&running.request.clone(), running.asked.clone()) else {
            return self.checks.fail("reply", || format!("{planned} is answered {rows:?}"));
        };
        for (shard, index) in &rows.seen {
            let floor = match consistency {
                Consistency::Linearizable => asked.floor.get(shard),
                Consistency::Session(token) => token.get(shard),
                Consistency::Stale => None,
            };
            if floor.is_some_and(|floor| index < floor) {
                return self.checks.fail("I6", || format!("{planned} read {shard} at {index}; {floor:?} was acknowledged or seen before"));
            }
        }
        // The end of what the page speaks for.
        let speaks_to = rows.next.map_or(range.high, |next| Key(next.0.saturating_sub(1)));
        let speaks_for = KeyRange { low: range.low, high: speaks_to };
        let mut expected = Vec::new();
        let mut by_key: Vec<_> = self.clients.shards.iter().map(|(id, (_, keys))| (keys.low, *id, *keys)).collect();
        by_key.sort_unstable();
        for (_, shard, keys) in by_key {
            let part = keys.intersection(&speaks_for);
            if part.is_empty() {
                continue;
            }
            let (Some(index), Some(known)) = (rows.seen.get(&shard), self.checks.shard(shard)) else {
                // A shard that was added after the read began need not be in it, nor one that is gone.
                if self.register.map.shards.contains_key(&shard)
                    && self.checks.shard(shard).is_some_and(|known| known.acked.0 > 0 && asked.floor.contains_key(&shard))
                {
                    return self.checks.fail("I6", || format!("{planned} left {shard} out: {rows:?}"));
                }
                continue;
            };
            if *index > known.model.last() {
                return self.checks.fail("I6", || format!("{planned} read {shard} at {index}, which is not committed"));
            }
            expected.extend(known.model.rows(part, *index).cloned());
        }
        if rows.rows != expected || rows.rows.len() > *limit as usize {
            return self.checks.fail("I6", || format!("{planned} is answered {rows:?}, expected {expected:?}"));
        }
        if *consistency == Consistency::Linearizable {
            rows.seen.iter().for_each(|(shard, index)| self.told(*shard, *index));
        }
    }

    /// The shard with that key in which a command stands at that position.
    fn shard_of(&self, key: Key, position: Position) -> Option<ShardId> {
        let shard = self.checks.shard_of_epoch(position.epoch)?;
        self.clients.shards_at(key).find(|at| *at == shard)
    }

    fn told(&mut self, shard: ShardId, index: LogIndex) {
        let observed = self.clients.observed.entry(shard).or_default();
        *observed = (*observed).max(index);
    }

    /// At the end: nothing was executed twice, nothing that was denied was executed.
    pub(super) fn check_executions(&mut self) {
        let mut executed: BTreeMap<(ShardId, i64), u32> = BTreeMap::new();
        for (shard, known) in self.checks.shards() {
            for (entry, effect) in known.model.iter() {
                let Effect::Executed(outcome) = effect else { continue };
                let (Command::Operations(operations), Verdict::Applied { .. }) = (&entry.command, &outcome.verdict) else { continue };
                for value in operations.iter().filter_map(written_value) {
                    *executed.entry((shard, value)).or_default() += 1;
                }
            }
        }
        if let Some(((shard, value), count)) = executed.iter().find(|(_, count)| **count > 1) {
            let (shard, value, count) = (*shard, *value, *count);
            return self.checks.fail("I4", || format!("value {value} was written {count} times in {shard}"));
        }
        let denied: BTreeSet<i64> = self
            .clients
            .operations
            .iter()
            .filter(|running| running.finished && running.denied && !running.ambiguous)
            .filter_map(|running| match &running.request {
                Some(Request::Write { operations, .. }) => Some(operations.iter().filter_map(written_value)),
                Some(_) | None => None,
            })
            .flatten()
            .collect();
        if let Some((shard, value)) = executed.keys().find(|(_, value)| denied.contains(value)).copied() {
            self.checks.fail("R25", || format!("value {value} was denied and written in {shard}"));
        }
    }
}

/// The unique value that an operation writes.
fn written_value(operation: &Operation) -> Option<i64> {
    let value = match operation {
        Operation::Insert { row, .. } => row.values.get(usize::from(VALUE_COLUMN)),
        Operation::Update { set, .. } => set.iter().find(|(place, _)| *place == VALUE_COLUMN).map(|(_, value)| value),
        Operation::Delete { .. } => None,
    };
    match value {
        Some(Value::Integer(value)) => Some(*value),
        Some(Value::Decimal(_) | Value::Boolean(_) | Value::Text(_)) | None => None,
    }
}

fn same_operations(stood: &[Operation], asked: &[&Operation]) -> bool {
    stood.len() == asked.len()
        && stood.iter().zip(asked).all(|(one, other)| match (one, other) {
            // The mode is the request's or the cluster's.
            (Operation::Insert { row, .. }, Operation::Insert { row: asked, .. }) => row == asked,
            (one, other) => one == *other,
        })
}
