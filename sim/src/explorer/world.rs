//! The world of the explorer: real machines, simulated everything else, one event queue, one thread, no clock. Carries effects out
//! and feeds answers back; never decides for a machine.

use super::{
    clients::{Clients, Told, closed_operation},
    coverage::Coverage,
    exhaustive::Script,
    invariants::{Checks, Servers, Violation},
    liveness::Liveness,
    log::SimLog,
    model::Memory,
    net::{Net, Subject},
    operators::Operators,
    queue::Queue,
    register::{Ask, SimRegister},
    rows::SimRows,
};
use crate::{
    faults::{Fault, Place},
    keyed::{Draw, Keyed},
    plan::Plan,
    trace::{Trace, TraceHash},
};
use core::fmt::Write as _;
use std::{
    collections::{BTreeMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};
use twinshard_core::{
    balancer::BalancerMachine,
    effect::{BalancerEffect, BalancerInput, Note, ProvisionCommand, ServerEffect, ServerInput},
    id::{BalancerId, ClusterId, MapVersion, NodeId, OwnerNumber, ReplicaId, ServerId, Token},
    map::{ClusterMap, Settings},
    message::{Message, ToBalancer},
    request::Reply,
    server::ServerMachine,
    storage::StoreCommand,
    time::{Duration, Instant},
};
use twinshard_scenarios::{timeline::Names, workload::ClosedLoop};

mod balancers;
mod servers;
mod trouble;

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
    /// What somebody copied of the disk, to put it back later.
    copy: Option<servers::DiskCopy>,
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
    ToServer {
        to: ServerId,
        from: NodeId,
        message: Message,
    },
    ToBalancer {
        to: BalancerId,
        from: ServerId,
        message: Message,
    },
    ServerTick {
        server: ServerId,
        at: Instant,
    },
    BalancerTick {
        place: usize,
        at: Instant,
    },
    SyncDone {
        server: ServerId,
        incarnation: u64,
    },
    StoreDone {
        server: ServerId,
        incarnation: u64,
        replica: ReplicaId,
        token: Token,
        command: StoreCommand,
    },
    RegisterEffect {
        place: usize,
        incarnation: u64,
        token: Token,
        ask: Ask,
        answer: Option<Duration>,
        touched: bool,
    },
    BalancerAnswer {
        place: usize,
        incarnation: u64,
        input: BalancerInput,
    },
    ProvisionEffect {
        place: usize,
        incarnation: u64,
        token: Token,
        command: ProvisionCommand,
    },
    StartBalancer {
        place: usize,
    },
    WindowOpens(usize),
    WindowCloses(usize),
    ClientSends {
        operation: usize,
        attempt: u32,
    },
    ClientReply {
        operation: usize,
        attempt: u32,
        reply: Reply,
    },
    /// It asks for the next page of what it reads.
    ClientReadsOn {
        operation: usize,
        attempt: u32,
    },
    ClientGivesUp {
        operation: usize,
        attempt: u32,
    },
    CrashBriefly {
        server: ServerId,
        length: Duration,
    },
    Restart {
        server: ServerId,
    },
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
    /// What the machines told people, if the plan keeps it: when, which node ([`Place::code`]), what.
    pub notes: Vec<(Instant, u64, Note)>,
    /// If the plan is staged: when each window opened, and whom it struck.
    pub struck: Vec<(usize, Instant, Vec<Place>)>,
    /// If the plan is staged: the names of what the maps had.
    pub names: Names,
    /// If the plan is staged: what the operator was told, by operation.
    pub told: BTreeMap<u32, Told>,
    /// How many answers were compared with the committed logs.
    pub answers: u64,
    /// How many shards took a write and answered a read after healing.
    pub shards: u64,
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
    /// By window: its fault, with nodes in the place of roles.
    open_faults: BTreeMap<usize, Vec<Fault>>,
    /// By window: starts that it has made fail.
    failed_starts: BTreeMap<usize, u32>,
    /// When each window opened, and whom it struck.
    struck: Vec<(usize, Instant, Vec<Place>)>,
    names: Names,
    /// What the machines told people, with the place in [`Place::code`] that told it.
    notes: Vec<(Instant, u64, Note)>,
    pub(super) clients: Clients,
    pub(super) checks: Checks,
    pub(super) liveness: Liveness,
    pub(super) operators: Operators,
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
            open_faults: BTreeMap::new(),
            failed_starts: BTreeMap::new(),
            struck: Vec::new(),
            names: Names::default(),
            notes: Vec::new(),
            clients: Clients::new(&plan),
            checks: Checks::new(memory),
            liveness: Liveness::default(),
            operators: Operators::default(),
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

    /// With clients that ask again when they were answered.
    #[must_use]
    pub fn with_closed_loop(mut self, closed: Option<ClosedLoop>) -> Self {
        if let Some(closed) = closed {
            for client in 0..closed.clients {
                let place = self.clients.add(closed_operation(&closed, client, 0, closed.from));
                self.at(closed.from, Event::ClientSends { operation: place, attempt: 0 });
            }
            self.clients.closed = Some(closed);
        }
        self
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
            answers: self.clients.answers,
            shards: self.liveness.shard_count(),
            told: core::mem::take(&mut self.clients.told),
            struck: self.struck,
            names: self.names,
            notes: self.notes,
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
                    if let Message::ToBalancer(ToBalancer::Beat { beat, .. }) = &message
                        && self.is_running(place)
                    {
                        self.operators.beat(place, from, *beat, self.now);
                    }
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
            Event::ClientReadsOn { operation, attempt } => self.client_reads_on(operation, attempt),
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

    /// Every fault is over; whatever is down is started.
    fn heal(&mut self) {
        for place in self.open_faults.keys().copied().collect::<Vec<_>>() {
            self.window_closes(place);
        }
        if self.plan.staged {
            (0..self.balancers.len()).for_each(|place| self.start_balancer(place));
        } else {
            self.start_everything();
        }
        if let Some(script) = &mut self.script {
            script.closed = true;
        }
        self.trace.say(self.now, || "healed".to_owned());
        self.look();
    }

    pub(super) fn is_disturbed(&self) -> bool {
        !self.open_faults.is_empty()
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

fn message_code(message: &Message) -> (u64, u64) {
    let subject = Subject::of(message);
    (u64::from(subject.kind), subject.id)
}
