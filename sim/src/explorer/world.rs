//! The world of the explorer: real machines, simulated everything else, one event queue, one thread, no clock. Carries effects out
//! and feeds answers back; never decides for a machine.

use super::{
    clients::Clients,
    coverage::{Coverage, Sometimes},
    exhaustive::Script,
    invariants::{Checks, Servers, Violation},
    liveness::Liveness,
    log::SimLog,
    model::Memory,
    net::{Net, Subject},
    queue::Queue,
    register::{Ask, SimRegister},
    rows::{SimRows, Terms},
};
use crate::{
    faults::{Fault, Loss, Place},
    keyed::{Draw, Keyed, Purpose},
    plan::Plan,
    trace::{Trace, TraceHash},
};
use core::fmt::Write as _;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};
use twinshard_core::{
    balancer::{BalancerConfig, BalancerMachine},
    effect::{BalancerEffect, BalancerInput, Note, ProvisionAnswer, ProvisionCommand, RegisterAnswer, ServerEffect, ServerInput},
    id::{BalancerId, ClusterId, MapVersion, NodeId, OwnerNumber, ReplicaId, ServerId, Token},
    map::{Address, ClusterMap, Settings},
    message::Message,
    request::Reply,
    server::{ServerConfig, ServerMachine},
    storage::{LogBatch, LostReason, Recovered, RecoveredReplica, StoreCommand, ViewState},
    time::{Duration, Instant},
};

/// More events than any run needs: a machine that asks to be woken for ever ends here.
const EVENTS_MAX: u64 = 3_000_000;

/// One server: its process, if it runs, and its disk.
#[derive(Clone, Debug, Default)]
pub(super) struct ServerNode {
    machine: Option<ServerMachine>,
    process: Process,
    owner: OwnerNumber,
    /// The provisioner was asked to have it run.
    wanted: bool,
    pub(super) log: SimLog,
    pub(super) rows: SimRows,
    busy: BTreeMap<ReplicaId, Instant>,
    store_count: u64,
    backlog: VecDeque<ServerInput>,
}

/// One balancer, over all its restarts.
#[derive(Clone, Debug, Default)]
pub(super) struct BalancerNode {
    pub(super) machine: Option<BalancerMachine>,
    process: Process,
    backlog: VecDeque<BalancerInput>,
    register_count: u64,
    provision_count: u64,
    /// When it last began to run, after a start or a pause: before that it cannot be blamed for being late.
    pub(super) running_since: Instant,
}

/// What every process has.
#[derive(Clone, Copy, Debug, Default)]
struct Process {
    incarnation: u64,
    /// The world's time when the process's clock showed its origin. Clocks of processes have nothing in common.
    origin: Instant,
    offset: u64,
    paused: bool,
    timer: Option<Instant>,
}

impl Process {
    fn local(&self, now: Instant) -> Instant {
        Instant(now.since(self.origin).0 + self.offset)
    }

    fn world(&self, local: Instant) -> Instant {
        Instant(local.0.saturating_sub(self.offset).saturating_add(self.origin.0))
    }

    fn start(&mut self, now: Instant, draw: &mut Draw) {
        *self = Self { incarnation: self.incarnation + 1, origin: now, offset: draw.below(1 << 40), paused: false, timer: None };
    }
}

#[derive(Clone, Debug)]
pub(super) enum Event {
    ToServer { to: ServerId, from: NodeId, message: Message },
    ToBalancer { to: BalancerId, from: ServerId, message: Message },
    ServerTick { server: ServerId, at: Instant },
    BalancerTick { place: usize, at: Instant },
    SyncDone { server: ServerId, incarnation: u64 },
    StoreDone { server: ServerId, incarnation: u64, replica: ReplicaId, token: Token, command: StoreCommand },
    RegisterEffect { place: usize, incarnation: u64, token: Token, ask: Ask, answer: Option<Duration>, touched: bool },
    BalancerAnswer { place: usize, incarnation: u64, input: BalancerInput },
    ProvisionEffect { place: usize, incarnation: u64, token: Token, command: ProvisionCommand },
    StartBalancer { place: usize },
    WindowOpens(usize),
    WindowCloses(usize),
    ClientSends { operation: usize, attempt: u32 },
    ClientReply { operation: usize, attempt: u32, reply: Reply },
    ClientGivesUp { operation: usize, attempt: u32 },
    CrashBriefly { server: ServerId, length: Duration },
    Restart { server: ServerId },
    Heal,
    Look,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct RunResult {
    /// What was broken, if anything.
    pub violation: Option<Violation>,
    /// When the run ended.
    pub ended_at: Instant,
    /// The trace's hash.
    pub hash: TraceHash,
    /// How many steps the machines made.
    pub events: u64,
    /// What happened how often.
    pub coverage: Coverage,
    /// The trace as text, if it was asked for.
    pub text: Vec<String>,
    /// How long the cluster took to come back after everything was healed.
    pub healed_after: Option<Duration>,
    /// Everything that clients saw.
    pub history: twinshard_scenarios::history::History,
}

/// A cluster and everything around it.
#[derive(Clone, Debug)]
pub struct World {
    pub(super) plan: Arc<Plan>,
    pub(super) keyed: Keyed,
    pub(super) now: Instant,
    queue: Queue<Event>,
    pub(super) servers: Servers,
    pub(super) balancers: Vec<BalancerNode>,
    balancer_ids: BTreeMap<BalancerId, usize>,
    pub(super) register: SimRegister,
    net: Net,
    open_faults: BTreeSet<usize>,
    pub(super) clients: Clients,
    pub(super) checks: Checks,
    pub(super) liveness: Liveness,
    pub(super) trace: Trace,
    pub(super) script: Option<Script>,
    pub(super) done: bool,
    server_out: Vec<ServerEffect>,
    balancer_out: Vec<BalancerEffect>,
}

impl World {
    /// A world in which nothing has happened yet.
    #[must_use]
    pub fn new(plan: Arc<Plan>, with_text: bool) -> Self {
        let keyed = Keyed::new(plan.seed);
        let settings = &plan.topology.settings;
        let memory = Memory { sessions_max: settings.sessions_max, idempotency_max: settings.idempotency_max };
        let map = ClusterMap {
            cluster: ClusterId(u128::from(plan.seed) + 1),
            settings: Settings { write_quorum: plan.topology.write_quorum, ..Settings::default() },
            ..ClusterMap::default()
        };
        let mut world = Self {
            keyed,
            now: Instant(0),
            queue: Queue::default(),
            servers: BTreeMap::new(),
            balancers: vec![BalancerNode::default(); plan.topology.balancer_count],
            balancer_ids: BTreeMap::new(),
            register: SimRegister { version: MapVersion(0), map: Arc::new(map) },
            net: Net::new(keyed),
            open_faults: BTreeSet::new(),
            clients: Clients::new(&plan),
            checks: Checks::new(memory),
            liveness: Liveness::default(),
            trace: Trace::new(with_text),
            script: None,
            done: false,
            server_out: Vec::new(),
            balancer_out: Vec::new(),
            plan,
        };
        world.plan_start();
        world
    }

    /// A world that has been played, on a plain network, until its cluster is set up: where the exhaustive search begins.
    #[must_use]
    pub fn set_up(plan: Arc<Plan>, until: Instant) -> Self {
        let _quiet = crate::panics::Watch::begin();
        Self::new(plan, false).play_plainly(until)
    }

    /// The same, with a trace as text.
    #[must_use]
    pub fn set_up_with_text(plan: Arc<Plan>, until: Instant) -> Self {
        Self::new(plan, true).play_plainly(until)
    }

    fn play_plainly(mut self, until: Instant) -> Self {
        self.net.plain = true;
        self.guarded(until);
        if !self.clients.is_set_up() {
            self.checks.fail("liveness", || format!("the cluster is not set up at {until}"));
        }
        self
    }

    /// The first violation so far.
    #[must_use]
    pub const fn violation(&self) -> Option<&Violation> {
        self.checks.violation()
    }

    /// Plays on to the end with deviations, and says where there could have been more.
    #[must_use]
    pub fn run_script(mut self, script: Script) -> (RunResult, Script) {
        self.script = Some(script);
        self.guarded(Instant(u64::MAX));
        let script = self.script.take().unwrap_or_default();
        (self.finish(), script)
    }

    fn plan_start(&mut self) {
        for place in 0..self.balancers.len() {
            self.at(Instant(1_000_000 + 7_000_000 * place as u64), Event::StartBalancer { place });
        }
        let plan = Arc::clone(&self.plan);
        for (place, window) in plan.faults.iter().enumerate() {
            self.at(window.start, Event::WindowOpens(place));
            self.at(window.end().min(plan.heal_at), Event::WindowCloses(place));
        }
        for (place, operation) in self.clients.begin_times() {
            self.at(operation, Event::ClientSends { operation: place, attempt: 0 });
        }
        self.at(plan.heal_at, Event::Heal);
    }

    /// Plays to the end. A panic of a machine is a violation.
    #[must_use]
    pub fn run(mut self) -> RunResult {
        self.guarded(Instant(u64::MAX));
        self.finish()
    }

    fn guarded(&mut self, until: Instant) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.play(until)));
        if outcome.is_err() {
            let text = crate::panics::take().unwrap_or_else(|| "a machine panicked".to_owned());
            self.checks.fail("panic", || text);
        }
    }

    /// Plays until this instant, or until the run is over.
    pub(super) fn play(&mut self, until: Instant) {
        while !self.done && self.checks.violation().is_none() {
            if self.now >= until {
                return;
            }
            let Some((at, event)) = self.queue.take() else {
                return self.checks.fail("liveness", || "nothing is left to happen".to_owned());
            };
            debug_assert!(at >= self.now);
            self.now = at;
            self.happen(event);
            if self.trace.events() > EVENTS_MAX {
                self.checks.fail("liveness", || format!("{EVENTS_MAX} steps and no end"));
            }
        }
    }

    pub(super) fn finish(mut self) -> RunResult {
        let violation = self.checks.violation().cloned();
        if let Some(violation) = &violation {
            self.trace.say(self.now, || format!("VIOLATION {violation}"));
        }
        RunResult {
            violation,
            ended_at: self.now,
            hash: self.trace.hash(),
            events: self.trace.events(),
            coverage: self.checks.coverage,
            text: self.trace.text().to_vec(),
            healed_after: self.liveness.healed_after,
            history: self.clients.into_history(),
        }
    }

    pub(super) fn at(&mut self, at: Instant, event: Event) {
        self.queue.plan(at, event);
    }

    pub(super) fn after(&mut self, delay: Duration, event: Event) {
        self.queue.plan(self.now + delay, event);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::ToServer { to, from, message } => self.step_server(to, ServerInput::Message { from, message }),
            Event::ToBalancer { to, from, message } => {
                if let Some(place) = self.balancer_ids.get(&to).copied()
                    && self.balancers[place].machine.as_ref().and_then(BalancerMachine::id) == Some(to)
                {
                    self.step_balancer(place, BalancerInput::Message { from, message });
                }
            }
            Event::ServerTick { server, at } => {
                if let Some(node) = self.servers.get_mut(&server)
                    && node.process.timer == Some(at)
                    && !node.process.paused
                {
                    node.process.timer = None;
                    self.step_server(server, ServerInput::Tick);
                }
            }
            Event::BalancerTick { place, at } => {
                let node = &mut self.balancers[place];
                if node.process.timer == Some(at) && !node.process.paused {
                    node.process.timer = None;
                    self.step_balancer(place, BalancerInput::Tick);
                }
            }
            Event::SyncDone { server, incarnation } => self.sync_done(server, incarnation),
            Event::StoreDone { server, incarnation, replica, token, command } => {
                self.store_done(server, incarnation, replica, token, command);
            }
            Event::RegisterEffect { place, incarnation, token, ask, answer, touched } => {
                self.register_effect(place, incarnation, token, ask, answer, touched);
            }
            Event::BalancerAnswer { place, incarnation, input } => {
                if self.balancers[place].process.incarnation == incarnation {
                    self.step_balancer(place, input);
                }
            }
            Event::ProvisionEffect { place, incarnation, token, command } => self.provision_effect(place, incarnation, token, command),
            Event::StartBalancer { place } => self.start_balancer(place),
            Event::WindowOpens(place) => self.window_opens(place),
            Event::WindowCloses(place) => self.window_closes(place),
            Event::ClientSends { operation, attempt } => self.client_sends(operation, attempt),
            Event::ClientReply { operation, attempt, reply } => self.client_reply(operation, attempt, &reply),
            Event::ClientGivesUp { operation, attempt } => self.client_gives_up(operation, attempt),
            Event::CrashBriefly { server, length } => {
                self.crash_server(server);
                self.after(length, Event::Restart { server });
            }
            Event::Restart { server } => self.restart_server(server),
            Event::Heal => self.heal(),
            Event::Look => self.look(),
        }
    }

    // ---- servers

    pub(super) fn step_server(&mut self, id: ServerId, input: ServerInput) {
        let Some(node) = self.servers.get_mut(&id) else { return };
        let Some(machine) = node.machine.as_mut() else { return };
        if node.process.paused {
            node.backlog.push_back(input);
            return;
        }
        let (what, detail) = server_input_code(&input);
        self.trace.event(self.now, Place::Server(id).code(), what, detail);
        self.trace.say(self.now, || format!("{id} <- {}", short(&input)));
        let mut out = core::mem::take(&mut self.server_out);
        machine.step(node.process.local(self.now), input, &mut out);
        // Writes first: what a step sends may speak of what it writes.
        for effect in &mut out {
            self.trace.say(self.now, || format!("    {id} -> {}", short(&effect)));
            if let ServerEffect::Persist { token, batch } = effect {
                let batch = core::mem::take(batch);
                self.write_log(id, *token, batch);
            }
        }
        for effect in out.drain(..) {
            self.server_effect(id, effect);
        }
        self.server_out = out;
        if let Some(machine) = self.servers.get(&id).and_then(|node| node.machine.as_ref()) {
            self.checks.on_step(&self.servers, machine);
        }
        self.rearm_server(id);
    }

    fn rearm_server(&mut self, server: ServerId) {
        let Some(node) = self.servers.get_mut(&server) else { return };
        let Some(deadline) = node.machine.as_ref().and_then(ServerMachine::next_deadline) else { return };
        let due = node.process.world(deadline).max(self.now);
        if node.process.timer.is_none_or(|timer| due < timer) {
            let late = self.keyed.draw(Purpose::Timer, [server.0, due.0]).below(150_000);
            let at = due + Duration(late + 1);
            if node.process.timer.is_none_or(|timer| at < timer) {
                node.process.timer = Some(at);
                self.queue.plan(at, Event::ServerTick { server, at });
            }
        }
    }

    fn server_effect(&mut self, id: ServerId, effect: ServerEffect) {
        match effect {
            ServerEffect::Send { to, message } => {
                self.checks.on_say(&self.servers, id, to, &message);
                self.carry_from_server(id, to, message);
            }
            ServerEffect::Persist { .. } => {}
            ServerEffect::Store { token, replica, command } => {
                self.checks.on_store(&self.servers, replica, &command);
                let weather = self.plan.topology.storage;
                let now = self.now;
                let Some(node) = self.servers.get_mut(&id) else { return };
                node.store_count += 1;
                let mut draw = self.keyed.draw(Purpose::Rows, [id.0, replica.0, node.store_count]);
                let start = node.busy.get(&replica).copied().unwrap_or(now).max(now);
                let at = start + Duration(draw.between(5_000, weather.rows_max.0));
                node.busy.insert(replica, at);
                let incarnation = node.process.incarnation;
                self.at(at, Event::StoreDone { server: id, incarnation, replica, token, command });
            }
            ServerEffect::Reply { token, reply } => self.server_replied(token, reply),
            ServerEffect::Note(note) => self.note(&note),
        }
    }

    fn write_log(&mut self, id: ServerId, token: Token, batch: LogBatch) {
        let Some(node) = self.servers.get_mut(&id) else { return };
        let checks = &mut self.checks;
        match node.log.write(token, batch, |before, record| checks.on_record(id, before, record)) {
            Err(text) => self.checks.fail("log", || format!("{id} writes {text}")),
            Ok(sync) => {
                let batch = self.servers.get(&id).map_or(&[][..], |node| node.log.last_written());
                self.checks.on_written(&self.servers, batch);
                if sync {
                    self.start_sync(id);
                }
            }
        }
    }

    fn note(&mut self, note: &Note) {
        match note {
            Note::Controlling => self.checks.coverage.hit(Sometimes::Controlling),
            Note::Suspected { .. }
            | Note::Recovered { .. }
            | Note::Respawning { .. }
            | Note::Started { .. }
            | Note::ProvisionFailed { .. }
            | Note::Proposed { .. }
            | Note::Activated { .. }
            | Note::Lost { .. }
            | Note::Dropped { .. } => {}
        }
    }

    fn start_sync(&mut self, server: ServerId) {
        let slow = self.open().filter_map(|fault| match fault {
            Fault::SlowDisk { server: slow, sync_max } if *slow == server => Some(sync_max.0),
            Fault::SlowDisk { .. }
            | Fault::Weather { .. }
            | Fault::Cut { .. }
            | Fault::Crash { .. }
            | Fault::PowerLoss
            | Fault::DiskLoss { .. }
            | Fault::Rot { .. }
            | Fault::Pause { .. }
            | Fault::StoreDown { .. }
            | Fault::Register { .. }
            | Fault::ProvisionFails => None,
        });
        let longest = slow.max().unwrap_or(self.plan.topology.storage.sync_max.0);
        let Some(node) = self.servers.get_mut(&server) else { return };
        node.log.start_sync();
        let latency = self.keyed.draw(Purpose::Sync, [server.0, node.log.syncs]).between(50_000, longest.max(50_000));
        let incarnation = node.process.incarnation;
        self.after(Duration(latency), Event::SyncDone { server, incarnation });
    }

    fn sync_done(&mut self, server: ServerId, incarnation: u64) {
        if self.script.is_some() && self.scripted_sync(server) {
            return;
        }
        let Some(node) = self.servers.get_mut(&server) else { return };
        if node.process.incarnation != incarnation || node.machine.is_none() {
            return;
        }
        let mut done = Vec::new();
        let checks = &mut self.checks;
        if let Err(text) = node.log.finish_sync(|before, record| checks.on_durable(before, record), &mut done) {
            self.checks.fail("log", || format!("{server} syncs {text}"));
        }
        if node.log.has_unsynced() {
            self.start_sync(server);
        }
        for token in done {
            self.step_server(server, ServerInput::Persisted { token });
        }
    }

    fn store_done(&mut self, server: ServerId, incarnation: u64, replica: ReplicaId, token: Token, command: StoreCommand) {
        let down = self.open().any(|fault| matches!(fault, Fault::StoreDown { server: down } if *down == server));
        let weather = self.plan.topology.storage;
        let Some(node) = self.servers.get_mut(&server) else { return };
        if node.process.incarnation != incarnation || node.machine.is_none() {
            return;
        }
        let durable = self.keyed.draw(Purpose::Rows, [server.0, replica.0, token.0, node.owner.0]).chance(weather.flush_durable_ppm);
        let looked_at = match &command {
            StoreCommand::Flush(_) => Some(false),
            StoreCommand::Stage { last: true, .. } => Some(true),
            StoreCommand::Create
            | StoreCommand::Destroy
            | StoreCommand::Read(_)
            | StoreCommand::OpenSnapshot(_)
            | StoreCommand::ReadSnapshot { .. }
            | StoreCommand::CloseSnapshot(_)
            | StoreCommand::Stage { last: false, .. }
            | StoreCommand::SwapStage { .. } => None,
        };
        let answer = node.rows.execute(replica, command, Terms { durable, down });
        if let Some(staged) = looked_at {
            self.checks.on_view(node, replica, staged);
        }
        self.step_server(server, ServerInput::Stored { token, answer });
    }

    fn carry_from_server(&mut self, from: ServerId, to: NodeId, message: Message) {
        let here = Place::Server(from);
        match to {
            NodeId::Server(to) => {
                let event = |message| Event::ToServer { to, from: NodeId::Server(from), message };
                self.carry(here, Place::Server(to), message, event);
            }
            NodeId::Balancer(to) => {
                if let Some(place) = self.balancer_ids.get(&to).copied() {
                    self.carry(here, Place::Balancer(place), message, |message| Event::ToBalancer { to, from, message });
                }
            }
        }
    }

    fn carry(&mut self, from: Place, to: Place, message: Message, event: impl Fn(Message) -> Event) {
        let subject = Subject::of(&message);
        let plan = Arc::clone(&self.plan);
        let open = self.open_faults.iter().map(|place| &plan.faults[*place].fault);
        let mut fate = self.net.fate(from, to, subject, open);
        if self.script.is_some() {
            fate = self.scripted_message(from, to, subject, fate);
        }
        self.checks.coverage.hit(Sometimes::Messages);
        match (fate.first, fate.second) {
            (None, None) => self.checks.coverage.hit(Sometimes::MessagesLost),
            (Some(delay), None) | (None, Some(delay)) => self.after(delay, event(message)),
            (Some(first), Some(second)) => {
                self.checks.coverage.hit(Sometimes::MessagesTwice);
                self.after(first, event(message.clone()));
                self.after(second, event(message));
            }
        }
    }

    fn open(&self) -> impl Iterator<Item = &Fault> {
        self.open_faults.iter().map(|place| &self.plan.faults[*place].fault)
    }

    // ---- processes of servers

    fn crash_server(&mut self, id: ServerId) {
        let key = [id.0, self.servers.get(&id).map_or(0, |node| node.process.incarnation)];
        let Some(node) = self.servers.get_mut(&id) else { return };
        if node.machine.take().is_none() {
            return;
        }
        self.trace.say(self.now, || format!("{id} dies"));
        let mut draw = self.keyed.draw(Purpose::Crash, key);
        node.process.incarnation += 1;
        node.process.paused = false;
        node.process.timer = None;
        node.backlog.clear();
        node.busy.clear();
        let records = node.log.crash(&mut draw);
        let flushes = node.rows.crash(&mut draw);
        self.checks.on_crash(id, &node.log.durable);
        self.checks.coverage.hit(Sometimes::Crashes);
        self.checks.coverage.add(Sometimes::RecordsLost, records);
        self.checks.coverage.add(Sometimes::FlushesLost, flushes);
    }

    fn start_server(&mut self, id: ServerId) {
        let planted = self.plan.planted;
        let node = self.servers.entry(id).or_default();
        if node.machine.is_some() {
            return;
        }
        let mut draw = self.keyed.draw(Purpose::Process, [id.0, node.process.incarnation]);
        node.process.start(self.now, &mut draw);
        node.owner = node.owner.next();
        let recovered = recover(node);
        self.trace.say(self.now, || format!("{id} starts as {} with {}", node.owner, short(&recovered)));
        let config = ServerConfig { server: id, owner: node.owner, settings: self.plan.topology.settings.clone(), planted };
        node.machine = Some(ServerMachine::open(config, recovered, node.process.local(self.now)));
        self.checks.coverage.hit(Sometimes::Spawned);
        self.step_server(id, ServerInput::Tick);
    }

    fn lose_disk(&mut self, id: ServerId, loss: Loss) {
        self.crash_server(id);
        let Some(node) = self.servers.get_mut(&id) else { return };
        self.checks.on_loss(&node.log.durable);
        self.checks.coverage.hit(Sometimes::DisksLost);
        match loss {
            Loss::Disk => {
                node.log.lose();
                node.rows.lose();
            }
            Loss::Log => node.log.lose(),
            Loss::Rows => node.rows.lose(),
        }
    }

    // ---- balancers

    pub(super) fn step_balancer(&mut self, place: usize, input: BalancerInput) {
        let node = &mut self.balancers[place];
        let Some(machine) = node.machine.as_mut() else { return };
        if node.process.paused {
            node.backlog.push_back(input);
            return;
        }
        let (what, detail) = balancer_input_code(&input);
        self.trace.event(self.now, Place::Balancer(place).code(), what, detail);
        self.trace.say(self.now, || format!("balancer {place} <- {}", short(&input)));
        let mut out = core::mem::take(&mut self.balancer_out);
        machine.step(node.process.local(self.now), input, &mut out);
        if let Some(id) = machine.id() {
            self.balancer_ids.entry(id).or_insert(place);
        }
        for effect in out.drain(..) {
            self.trace.say(self.now, || format!("    balancer {place} -> {}", short(&effect)));
            self.balancer_effect(place, effect);
        }
        self.balancer_out = out;
        self.rearm_balancer(place);
    }

    fn rearm_balancer(&mut self, place: usize) {
        let node = &mut self.balancers[place];
        let Some(deadline) = node.machine.as_ref().and_then(BalancerMachine::next_deadline) else { return };
        let due = node.process.world(deadline).max(self.now);
        if node.process.timer.is_none_or(|timer| due < timer) {
            let late = self.keyed.draw(Purpose::Timer, [1_000_000 + place as u64, due.0]).below(150_000);
            let at = due + Duration(late + 1);
            if node.process.timer.is_none_or(|timer| at < timer) {
                node.process.timer = Some(at);
                self.queue.plan(at, Event::BalancerTick { place, at });
            }
        }
    }

    fn balancer_effect(&mut self, place: usize, effect: BalancerEffect) {
        match effect {
            BalancerEffect::Send { to, message } => {
                let Some(id) = self.balancers[place].machine.as_ref().and_then(BalancerMachine::id) else {
                    return self.checks.fail("R10", || format!("balancer {place} sends before its id is minted"));
                };
                let from = NodeId::Balancer(id);
                self.checks.on_ask(from, &message);
                self.carry(Place::Balancer(place), Place::Server(to), message, |message| Event::ToServer { to, from, message });
            }
            BalancerEffect::Reply { token, reply } => self.balancer_replied(place, token, reply),
            BalancerEffect::RegisterRead { token } => self.ask_register(place, token, Ask::Read),
            BalancerEffect::RegisterCas { token, expected, map } => self.ask_register(place, token, Ask::Cas { expected, map }),
            BalancerEffect::Provision { token, command } => {
                let node = &mut self.balancers[place];
                node.provision_count += 1;
                let mut draw = self.keyed.draw(Purpose::Provision, [place as u64, node.provision_count]);
                let delay = Duration(draw.between(500_000, self.plan.topology.storage.start_max.0));
                let incarnation = node.process.incarnation;
                self.after(delay, Event::ProvisionEffect { place, incarnation, token, command });
            }
            BalancerEffect::Publish { version, map } => {
                if version > self.register.version {
                    self.checks.fail("R10", || format!("balancer {place} publishes {version}, which is not written yet"));
                }
                self.clients.learn(&map);
            }
            BalancerEffect::Note(note) => self.note(&note),
        }
    }

    fn ask_register(&mut self, place: usize, token: Token, ask: Ask) {
        let node = &mut self.balancers[place];
        node.register_count += 1;
        let incarnation = node.process.incarnation;
        let count = node.register_count;
        let fate = SimRegister::fate(self.keyed, Place::Balancer(place), count, self.open());
        if let Some(delay) = fate.effect {
            self.after(delay, Event::RegisterEffect { place, incarnation, token, ask, answer: fate.answer, touched: fate.touched });
        }
        if let Some(delay) = fate.unavailable {
            self.checks.coverage.hit(Sometimes::RegisterUnavailable);
            let input = BalancerInput::Register { token, answer: RegisterAnswer::Unavailable };
            self.after(delay, Event::BalancerAnswer { place, incarnation, input });
        }
    }

    fn register_effect(&mut self, place: usize, incarnation: u64, token: Token, ask: Ask, answer: Option<Duration>, touched: bool) {
        if touched {
            self.register.execute(Ask::Touch);
        }
        let before = Arc::clone(&self.register.map);
        let reads = matches!(ask, Ask::Read);
        let result = self.register.execute(ask);
        match &result {
            RegisterAnswer::Swapped => {
                let writer = (place as u64) << 32 | incarnation;
                let after = Arc::clone(&self.register.map);
                self.trace.say(self.now, || format!("register is {} by balancer {place}", self.register.version));
                self.checks.on_cas(&self.servers, writer, &before, &after);
            }
            RegisterAnswer::Conflict => self.checks.coverage.hit(Sometimes::RegisterConflicts),
            RegisterAnswer::Read { .. } | RegisterAnswer::Unavailable => debug_assert!(reads),
        }
        if let Some(delay) = answer {
            let input = BalancerInput::Register { token, answer: result };
            self.after(delay, Event::BalancerAnswer { place, incarnation, input });
        }
    }

    fn provision_effect(&mut self, place: usize, incarnation: u64, token: Token, command: ProvisionCommand) {
        let fails = self.open().any(|fault| matches!(fault, Fault::ProvisionFails));
        let answer = match command {
            _ if fails => ProvisionAnswer::Failed { reason: "the provisioner fails".into() },
            ProvisionCommand::Start { server, replace, .. } => {
                if replace {
                    self.crash_server(server);
                }
                self.servers.entry(server).or_default().wanted = true;
                self.start_server(server);
                let host = server.to_string();
                ProvisionAnswer::Started { address: Address { http: format!("{host}:5000").into(), peer: format!("{host}:6000").into() } }
            }
            ProvisionCommand::Stop { server, .. } => {
                self.crash_server(server);
                if let Some(node) = self.servers.get_mut(&server) {
                    node.wanted = false;
                }
                ProvisionAnswer::Stopped
            }
        };
        let input = BalancerInput::Provisioned { token, answer };
        self.after(Duration(300_000), Event::BalancerAnswer { place, incarnation, input });
    }

    fn start_balancer(&mut self, place: usize) {
        let node = &mut self.balancers[place];
        if node.machine.is_some() {
            return;
        }
        let mut draw = self.keyed.draw(Purpose::Process, [1_000_000 + place as u64, node.process.incarnation]);
        node.process.start(self.now, &mut draw);
        node.running_since = self.now;
        let config = BalancerConfig { seed: draw.word(), planted: self.plan.planted, ..self.plan.topology.balancer.clone() };
        node.machine = Some(BalancerMachine::new(config, node.process.local(self.now)));
        self.trace.say(self.now, || format!("balancer {place} starts"));
        self.step_balancer(place, BalancerInput::Tick);
    }

    fn crash_balancer(&mut self, place: usize) {
        let node = &mut self.balancers[place];
        if node.machine.take().is_none() {
            return;
        }
        node.process.incarnation += 1;
        node.process.paused = false;
        node.process.timer = None;
        node.backlog.clear();
        self.trace.say(self.now, || format!("balancer {place} dies"));
        self.checks.coverage.hit(Sometimes::Crashes);
        self.clients_lose_balancer(place);
    }

    // ---- faults

    fn window_opens(&mut self, place: usize) {
        if self.now >= self.plan.heal_at {
            return;
        }
        self.open_faults.insert(place);
        let fault = self.plan.faults[place].fault;
        self.trace.say(self.now, || format!("fault: {fault}"));
        match fault {
            Fault::Crash { place: Place::Server(id) } => self.crash_server(id),
            Fault::Crash { place: Place::Balancer(place) } if place < self.balancers.len() => self.crash_balancer(place),
            Fault::PowerLoss => {
                let ids: Vec<_> = self.servers.keys().copied().collect();
                ids.into_iter().for_each(|id| self.crash_server(id));
                (0..self.balancers.len()).for_each(|place| self.crash_balancer(place));
            }
            Fault::DiskLoss { server, loss } => self.lose_disk(server, loss),
            Fault::Rot { server, pick } => {
                if let Some(replica) = self.servers.get_mut(&server).and_then(|node| node.rows.rot(pick)) {
                    self.checks.on_rot(replica);
                }
            }
            Fault::Pause { place } => {
                self.checks.coverage.hit(Sometimes::Pauses);
                self.set_paused(place, true);
            }
            Fault::Cut { .. } => self.checks.coverage.hit(Sometimes::Cuts),
            Fault::Crash { .. }
            | Fault::Weather { .. }
            | Fault::SlowDisk { .. }
            | Fault::StoreDown { .. }
            | Fault::Register { .. }
            | Fault::ProvisionFails => {}
        }
    }

    fn window_closes(&mut self, place: usize) {
        if !self.open_faults.remove(&place) {
            return;
        }
        let fault = self.plan.faults[place].fault;
        self.trace.say(self.now, || format!("over: {fault}"));
        match fault {
            Fault::Crash { place: Place::Server(id) } | Fault::DiskLoss { server: id, .. } => self.restart_server(id),
            Fault::Crash { place: Place::Balancer(place) } if place < self.balancers.len() => self.start_balancer(place),
            Fault::PowerLoss => self.start_everything(),
            Fault::Pause { place } => self.set_paused(place, false),
            Fault::Crash { .. }
            | Fault::Weather { .. }
            | Fault::Cut { .. }
            | Fault::Rot { .. }
            | Fault::SlowDisk { .. }
            | Fault::StoreDown { .. }
            | Fault::Register { .. }
            | Fault::ProvisionFails => {}
        }
    }

    fn restart_server(&mut self, id: ServerId) {
        if self.servers.get(&id).is_some_and(|node| node.wanted) {
            self.start_server(id);
        }
    }

    pub(super) fn start_everything(&mut self) {
        let ids: Vec<_> = self.servers.keys().copied().collect();
        ids.into_iter().for_each(|id| self.restart_server(id));
        (0..self.balancers.len()).for_each(|place| self.start_balancer(place));
    }

    fn set_paused(&mut self, place: Place, paused: bool) {
        match place {
            Place::Server(id) => {
                let Some(node) = self.servers.get_mut(&id).filter(|node| node.machine.is_some() && node.process.paused != paused) else {
                    return;
                };
                node.process.paused = paused;
                if !paused {
                    node.process.timer = None;
                    // What is drained must not meet a pause again: one window at a time.
                    for input in core::mem::take(&mut node.backlog) {
                        self.step_server(id, input);
                    }
                    self.step_server(id, ServerInput::Tick);
                }
            }
            Place::Balancer(place) => {
                let now = self.now;
                let node = &mut self.balancers[place];
                if node.machine.is_none() || node.process.paused == paused {
                    return;
                }
                node.process.paused = paused;
                if !paused {
                    node.process.timer = None;
                    node.running_since = now;
                    for input in core::mem::take(&mut node.backlog) {
                        self.step_balancer(place, input);
                    }
                    self.step_balancer(place, BalancerInput::Tick);
                }
            }
            Place::Others => {}
        }
    }

    /// Every fault is over; whatever is down is started.
    fn heal(&mut self) {
        for place in self.open_faults.clone() {
            self.window_closes(place);
        }
        self.start_everything();
        if let Some(script) = &mut self.script {
            script.closed = true;
        }
        self.trace.say(self.now, || "healed".to_owned());
        self.look();
    }

    pub(super) fn is_running(&self, place: usize) -> bool {
        let node = &self.balancers[place];
        node.machine.is_some() && !node.process.paused
    }

    pub(super) fn balancer_local(&self, place: usize, at: Instant) -> Instant {
        self.balancers[place].process.local(at)
    }

    pub(super) fn server_local(&self, server: ServerId, at: Instant) -> Option<Instant> {
        self.servers.get(&server).filter(|node| node.machine.is_some()).map(|node| node.process.local(at))
    }

    pub(super) fn balancer_incarnation(&self, place: usize) -> u64 {
        self.balancers[place].process.incarnation
    }
}

impl ServerNode {
    pub(super) const fn is_up(&self) -> bool {
        self.machine.is_some() && !self.process.paused
    }
}

/// What a server finds on its disk.
fn recover(node: &mut ServerNode) -> Recovered {
    let mut replicas = BTreeMap::new();
    for (id, log) in &node.log.durable.replicas {
        let view: Result<ViewState, LostReason> = node.rows.open(*id, log.base, log.reset);
        let entries = log.entries.iter().cloned().collect();
        let replica = RecoveredReplica { shard: log.shard, promised: log.promised, commit: log.commit, base: log.base, entries, view };
        replicas.insert(*id, replica);
    }
    Recovered { replicas, map: node.log.durable.map.clone() }
}

/// The debug form, cut: maps and snapshots are long.
fn short(value: &impl core::fmt::Debug) -> String {
    const LENGTH_MAX: usize = 400;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write!(text, "{value:?}");
    if text.len() > LENGTH_MAX {
        let cut = (0..=LENGTH_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(cut);
        text.push_str("...");
    }
    text
}

fn server_input_code(input: &ServerInput) -> (u64, u64) {
    match input {
        ServerInput::Message { message, .. } => message_code(message),
        ServerInput::Persisted { token } => (101, token.0),
        ServerInput::Stored { token, .. } => (102, token.0),
        ServerInput::Request { token, .. } => (103, token.0),
        ServerInput::Tick => (104, 0),
    }
}

fn balancer_input_code(input: &BalancerInput) -> (u64, u64) {
    match input {
        BalancerInput::Message { message, .. } => message_code(message),
        BalancerInput::Request { token, .. } => (111, token.0),
        BalancerInput::Abandoned { token } => (112, token.0),
        BalancerInput::Register { token, .. } => (113, token.0),
        BalancerInput::Provisioned { token, .. } => (114, token.0),
        BalancerInput::Tick => (115, 0),
    }
}

fn message_code(message: &Message) -> (u64, u64) {
    let subject = Subject::of(message);
    (u64::from(subject.kind), subject.id)
}
