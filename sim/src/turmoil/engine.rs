//! Plays a scenario in the turmoil world: the loop that steps the simulation, kills and starts hosts between steps, opens and closes fault
//! windows. What this world cannot do is refused, never left out.

use super::{
    flaw::Flaw,
    world::{self, Ask, Command, Shared, balancer_host, server_host},
};
use crate::{
    faults::{Fault, Place, RegisterFault, Window, is_cut},
    keyed::Purpose,
    panics,
    staging::{self, LOAD_FROM, Staged},
    trace::TraceHash,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};
use thiserror::Error;
use tokio::sync::oneshot;
use turmoil::{Builder, Sim};
use twinshard::story::{Clients, Ended, Script};
use twinshard_core::{balancer::BalancerConfig, id::ServerId, map::Address, time};
use twinshard_scenarios::{
    history::History,
    report::{FaultEvent, RunResult, WorldCheck},
    scenario::Scenario,
};

/// The host of all clients.
const CLIENTS: &str = "clients";
/// One step of the simulation.
const TICK: Duration = Duration::from_millis(1);
/// The latency of a message.
const LATENCY: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(4)];
/// How long the end may take besides healing: reading everything back, comparing replicas.
const END_WITHIN: Duration = Duration::from_millis(60_000);

/// Why a scenario cannot be played here.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the turmoil world cannot play {0}; the explorer can")]
pub struct Unsupported(String);

/// A run and the hash of its trace.
#[derive(Clone, Debug)]
pub struct Played {
    /// What a report judges.
    pub run: RunResult,
    /// The same for the same seed, on any machine.
    pub hash: TraceHash,
}

/// Plays a scenario under a seed.
///
/// # Errors
/// It has a fault that turmoil cannot do.
pub fn play(scenario: &Scenario, seed: u64, reproduce: String) -> Result<Played, Unsupported> {
    play_with(scenario, seed, reproduce, None)
}

/// The same in a world that may have a flaw, which the run should notice. A panic ends the process (see [`panics::Watch::ending`]).
///
/// # Errors
/// It has a fault that turmoil cannot do.
pub fn play_with(scenario: &Scenario, seed: u64, reproduce: String, flaw: Option<Flaw>) -> Result<Played, Unsupported> {
    let staged = staging::stage(scenario);
    staged.faults.iter().try_for_each(|window| supported(&window.fault))?;
    let balancer_count = staged.topology.balancer_count.max(1);
    let shared = Shared::new(seed, balancer_count, &staged.topology, flaw).map_err(|error| Unsupported(error.to_string()))?;
    let _ending = panics::Watch::ending(reproduce.clone());
    let mut engine = Engine::new(&staged, shared.clone(), seed);
    let ended = engine.run(&staged, Script::new(scenario, seed, LOAD_FROM));
    let Engine { sim, struck, .. } = engine;
    let ended_ns = u64::try_from(sim.elapsed().as_nanos()).unwrap_or(u64::MAX);
    drop(sim);
    let mut state = shared.state();
    let mut faults: Vec<FaultEvent> = Vec::new();
    for (window, at, places) in struck {
        let place = staged.origins[window];
        let names = places.iter().map(|place| match place {
            Place::Server(id) => state.record.names.server(*id),
            other => other.to_string(),
        });
        match faults.iter_mut().find(|event| event.place == place) {
            Some(event) => event.struck.extend(names),
            None => faults.push(FaultEvent { place, at_ns: at, struck: names.collect() }),
        }
    }
    faults.iter_mut().for_each(|event| event.struck.dedup());
    let (ended, fatal) = match ended {
        Ok(ended) => (ended, Vec::new()),
        Err(text) => (Ended::default(), vec![text]),
    };
    let hash = state.trace.hash();
    let answers = state.trace.events();
    let world_checks = vec![
        check("the simulation", "events", answers, fatal),
        check("answers", "answers", state.record.answer_count, core::mem::take(&mut state.record.breaches)),
        check("coming back after the last fault", "shards", ended.shards, ended.failures),
        check("replicas equal", "replicas", ended.compared, ended.unequal),
    ];
    let history: History = core::mem::take(&mut state.record.recorder).into_history();
    let run = RunResult {
        scenario: scenario.clone(),
        engine: "turmoil".to_owned(),
        seed,
        load_from_ns: LOAD_FROM.0,
        ended_ns,
        history,
        names: state.record.names.clone(),
        notes: core::mem::take(&mut state.notes),
        faults,
        admin: state.record.told.values().cloned().collect(),
        world_checks,
        reproduce,
    };
    Ok(Played { run, hash })
}

fn check(name: &str, what: &str, count: u64, failures: Vec<String>) -> WorldCheck {
    WorldCheck { name: name.to_owned(), what: what.to_owned(), count, failures }
}

fn supported(fault: &Fault) -> Result<(), Unsupported> {
    match fault {
        Fault::Cut { .. }
        | Fault::Down { .. }
        | Fault::SlowDisk { .. }
        | Fault::StartsFail { .. }
        | Fault::Weather { .. }
        | Fault::Pause { .. }
        | Fault::StoreDown { .. }
        | Fault::Register { fault: RegisterFault::Unavailable | RegisterFault::LostReply, .. } => Ok(()),
        Fault::Crash { .. }
        | Fault::Split { .. }
        | Fault::PowerLoss
        | Fault::DiskLoss { .. }
        | Fault::DiskBack { .. }
        | Fault::Rot { .. }
        | Fault::Register { fault: RegisterFault::Late | RegisterFault::Touched, .. }
        | Fault::ProvisionFails => Err(Unsupported(fault.to_string())),
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The loop around the simulation.
struct Engine {
    sim: Sim<'static>,
    shared: Shared,
    /// Every host that exists, by name.
    hosts: BTreeMap<String, Place>,
    open: BTreeMap<usize, Vec<Fault>>,
    /// Links that do not work, by direction.
    cut: BTreeSet<(String, String)>,
    /// Commands of the provisioner, by when they are carried out.
    due: BTreeMap<(u64, u64), Command>,
    commands: u64,
    failed_starts: BTreeMap<usize, u32>,
    struck: Vec<(usize, u64, Vec<Place>)>,
    shard_names: Vec<Box<str>>,
    start_max: u64,
}

impl Engine {
    fn new(staged: &Staged, shared: Shared, seed: u64) -> Self {
        let mut builder = Builder::new();
        builder
            .epoch(SystemTime::UNIX_EPOCH)
            .rng_seed(seed)
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(100_000))
            .min_message_latency(LATENCY[0])
            .max_message_latency(LATENCY[1])
            .tcp_capacity(4_096)
            .ephemeral_ports(1_024..=65_535);
        let mut sim = builder.build();
        let mut hosts = BTreeMap::new();
        let balancer_count = staged.topology.balancer_count.max(1);
        for place in 0..balancer_count {
            let shared = shared.clone();
            // One balancer holds the register alone, as in production.
            let mut config = BalancerConfig::default();
            if balancer_count == 1 {
                config.controller_after = time::Duration::ZERO;
            }
            sim.host(balancer_host(place), move || shared.clone().run_balancer(place, config.clone()));
            hosts.insert(balancer_host(place), Place::Balancer(place));
        }
        Self {
            sim,
            shared,
            hosts,
            open: BTreeMap::new(),
            cut: BTreeSet::new(),
            due: BTreeMap::new(),
            commands: 0,
            failed_starts: BTreeMap::new(),
            struck: Vec::new(),
            shard_names: staged.topology.shards.iter().map(|shard| shard.name.clone()).collect(),
            start_max: staged.topology.storage.start_max.0.max(1_000_001),
        }
    }

    fn now(&self) -> u64 {
        nanos(self.sim.elapsed())
    }

    /// Steps to the end. The error is what broke the simulation itself: a deadline.
    fn run(&mut self, staged: &Staged, script: Script) -> Result<Ended, String> {
        let (done, mut ended) = oneshot::channel();
        let healed = Arc::new(AtomicBool::new(false));
        let world = world::Clients::new(self.shared.clone(), staged.topology.balancer_count.max(1));
        let story = Clients::new(world).story(script, Arc::clone(&healed));
        self.sim.client(CLIENTS, async move {
            let ended = story.await;
            let _ = done.send(ended);
            Ok(())
        });
        self.hosts.insert(CLIENTS.to_owned(), Place::Clients);
        let mut edges: BTreeMap<(u64, usize, bool), ()> = BTreeMap::new();
        for (place, Window { start, length, .. }) in staged.faults.iter().enumerate() {
            edges.insert((start.0, place, true), ());
            edges.insert((start.0 + length.0.max(1), place, false), ());
        }
        let last = staged.heal_at.0 + staged.heal_within.0 + nanos(END_WITHIN);
        loop {
            self.sim.step().map_err(|error| error.to_string())?;
            if let Ok(ended) = ended.try_recv() {
                return Ok(ended);
            }
            let now = self.now();
            if now > last {
                return Err("the clients did not come to an end".to_owned());
            }
            while let Some(((at, place, opens), ())) = edges.first_key_value().map(|(edge, ())| (*edge, ())) {
                if at > now {
                    break;
                }
                edges.pop_first();
                if opens { self.window_opens(staged, place) } else { self.window_closes(place) }
            }
            if now >= staged.heal_at.0 && !healed.swap(true, Ordering::SeqCst) {
                edges.clear();
                for place in self.open.keys().copied().collect::<Vec<_>>() {
                    self.window_closes(place);
                }
            }
            self.provision(now);
        }
    }

    // ---- faults

    fn window_opens(&mut self, staged: &Staged, window: usize) {
        let faults = self.resolve(staged.faults[window].fault);
        self.struck.push((window, self.now(), faults.iter().flat_map(Fault::places).collect()));
        self.shared.trace_at(self.now(), 4, &format!("{faults:?}"));
        self.open.insert(window, faults.clone());
        for fault in faults {
            match fault {
                Fault::Down { place: Place::Server(server), loses_disk } => {
                    self.kill_server(server);
                    if loses_disk && let Some(server) = self.shared.state().servers.get(&server) {
                        server.disk.lose();
                    }
                }
                Fault::Down { place: Place::Balancer(place), .. } => self.kill_balancer(place),
                Fault::SlowDisk { place: Place::Server(server), sync_max } => {
                    self.shared.state().slow.insert(server, Duration::from_nanos(sync_max.0));
                }
                Fault::Pause { place } => self.pause(place, staged.faults[window].end().0),
                _ => {}
            }
        }
        self.tell_open();
        self.relink();
    }

    fn window_closes(&mut self, place: usize) {
        let Some(faults) = self.open.remove(&place) else { return };
        for fault in faults {
            match fault {
                Fault::Down { place: Place::Balancer(place), .. } => self.start_balancer(place),
                Fault::SlowDisk { place: Place::Server(server), .. } => {
                    self.shared.state().slow.remove(&server);
                }
                Fault::Pause { place } => {
                    self.shared.state().paused.remove(&place);
                }
                _ => {}
            }
        }
        self.tell_open();
        self.relink();
    }

    /// What hosts ask themselves: the weather, rows and registers that do not answer.
    fn tell_open(&self) {
        self.shared.state().open = self.open.values().flatten().copied().collect();
    }

    /// A process stands still until the window closes or somebody kills it; what is started in its place goes on.
    fn pause(&self, place: Place, until: u64) {
        let mut state = self.shared.state();
        let runs = match place {
            Place::Server(server) => state.servers.get(&server).is_some_and(|server| server.running),
            Place::Balancer(place) => state.balancers.get(place).is_some_and(|balancer| balancer.running),
            _ => false,
        };
        if runs {
            state.paused.insert(place, until);
        }
    }

    /// The fault with nodes in the place of roles: one for each node that has the role now.
    fn resolve(&self, fault: Fault) -> Vec<Fault> {
        let nodes = |place: Place| self.nodes(place);
        match fault {
            Fault::Cut { a, b, way } => {
                nodes(a).into_iter().flat_map(|a| nodes(b).into_iter().map(move |b| Fault::Cut { a, b, way })).collect()
            }
            Fault::Down { place, loses_disk } => nodes(place).into_iter().map(|place| Fault::Down { place, loses_disk }).collect(),
            Fault::SlowDisk { place, sync_max } => nodes(place).into_iter().map(|place| Fault::SlowDisk { place, sync_max }).collect(),
            Fault::Pause { place } => nodes(place).into_iter().map(|place| Fault::Pause { place }).collect(),
            Fault::StoreDown { place } => nodes(place).into_iter().map(|place| Fault::StoreDown { place }).collect(),
            Fault::StartsFail { place: Place::Servers, .. } => vec![fault],
            Fault::StartsFail { place, times } => nodes(place).into_iter().map(|place| Fault::StartsFail { place, times }).collect(),
            other => vec![other],
        }
    }

    fn shard_name(&self, shard: usize) -> Option<&str> {
        self.shard_names.get(shard).map(|name| &**name)
    }

    fn nodes(&self, place: Place) -> Vec<Place> {
        let state = self.shared.state();
        let map = &state.map;
        match place {
            Place::Server(_) | Place::Balancer(_) | Place::Others | Place::Clients => vec![place],
            Place::PrimaryOf(shard) => staging::holders(map, self.shard_name(shard), true),
            Place::BackupOf(shard) => staging::holders(map, self.shard_name(shard), false).into_iter().take(1).collect(),
            Place::BackupsOf(shard) => staging::holders(map, self.shard_name(shard), false),
            Place::Controller => {
                let holder = map.controller.holder.and_then(|holder| state.balancer_ids.get(&holder).copied());
                holder.map(Place::Balancer).into_iter().collect()
            }
            Place::Servers => state.servers.iter().filter(|(_, server)| server.wanted).map(|(id, _)| Place::Server(*id)).collect(),
            Place::Balancers => (0..state.balancers.len()).map(Place::Balancer).collect(),
        }
    }

    /// Brings the links to what the open windows say.
    fn relink(&mut self) {
        let cuts: Vec<(Place, Place, crate::faults::Way)> = self
            .open
            .values()
            .flatten()
            .filter_map(|fault| if let Fault::Cut { a, b, way } = fault { Some((*a, *b, *way)) } else { None })
            .collect();
        let mut wanted = BTreeSet::new();
        for (from, from_place) in &self.hosts {
            for (to, to_place) in &self.hosts {
                if from != to && cuts.iter().any(|(a, b, way)| is_cut(*a, *b, *way, *from_place, *to_place)) {
                    wanted.insert((from.clone(), to.clone()));
                }
            }
        }
        for (from, to) in wanted.difference(&self.cut) {
            self.sim.partition_oneway(from.as_str(), to.as_str());
        }
        for (from, to) in self.cut.difference(&wanted) {
            self.sim.repair_oneway(from.as_str(), to.as_str());
        }
        self.cut = wanted;
    }

    /// Power is lost: nothing more is heard of the host, not even that its connections end; what was not synced is torn or gone.
    fn power_off(&mut self, host: &str, disk: &twinshard::disk::memory::MemoryDisk, key: [u64; 2]) {
        let others: Vec<String> = self.hosts.keys().filter(|other| *other != host).cloned().collect();
        for other in &others {
            self.sim.partition(host, other.as_str());
        }
        let mut draw = self.shared.state().keyed.draw(Purpose::Crash, key);
        // Before the software ends: what it does while it is dropped never was.
        disk.crash(|| draw.word());
        self.sim.crash(host);
        for other in &others {
            self.sim.repair(host, other.as_str());
        }
        self.cut.retain(|(from, to)| from != host && to != host);
        self.relink();
    }

    fn kill_server(&mut self, server: ServerId) {
        let known = self.shared.state().servers.get(&server).filter(|place| place.running).map(|place| (place.disk.clone(), place.starts));
        let Some((disk, starts)) = known else { return };
        self.power_off(&server_host(server), &disk, [1_000 + server.0, starts]);
        let mut state = self.shared.state();
        state.paused.remove(&Place::Server(server));
        if let Some(place) = state.servers.get_mut(&server) {
            place.running = false;
        }
    }

    fn kill_balancer(&mut self, place: usize) {
        let known = self.shared.state().balancers.get(place).filter(|balancer| balancer.running).map(|balancer| balancer.disk.clone());
        let Some(disk) = known else { return };
        let now = self.now();
        self.power_off(&balancer_host(place), &disk, [1 + place as u64, now]);
        let mut state = self.shared.state();
        state.paused.remove(&Place::Balancer(place));
        state.balancers[place].running = false;
    }

    fn start_balancer(&mut self, place: usize) {
        if self.shared.state().balancers.get(place).is_some_and(|balancer| !balancer.running) {
            self.sim.bounce(balancer_host(place));
        }
    }

    // ---- the provisioner

    fn provision(&mut self, now: u64) {
        loop {
            let Some(command) = self.shared.state().commands.pop_front() else { break };
            self.commands += 1;
            let mut draw = self.shared.state().keyed.draw(Purpose::Provision, [self.commands]);
            let delay = draw.between(1_000_000, self.start_max);
            self.due.insert((now + delay, self.commands), command);
        }
        while let Some(entry) = self.due.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let Command { server, ask, done } = entry.remove();
            self.shared.trace_at(now, 5, &format!("{server} {ask:?}"));
            // A balancer that is gone wants no answer.
            let _ = done.send(self.carry_out(server, &ask));
        }
    }

    fn carry_out(&mut self, server: ServerId, ask: &Ask) -> Result<Address, String> {
        match ask {
            Ask::Start { replace } => {
                let running = self.shared.state().servers.get(&server).is_some_and(|place| place.running);
                if running && !*replace {
                    return Ok(Shared::address(server));
                }
                if self.start_fails(server) {
                    return Err("the provisioner fails".to_owned());
                }
                self.kill_server(server);
                self.start_server(server);
                Ok(Shared::address(server))
            }
            Ask::Stop => {
                self.kill_server(server);
                if let Some(place) = self.shared.state().servers.get_mut(&server) {
                    place.wanted = false;
                }
                Ok(Shared::address(server))
            }
        }
    }

    fn start_server(&mut self, server: ServerId) {
        let host = server_host(server);
        let has_host = {
            let mut state = self.shared.state();
            let place = state.servers.entry(server).or_default();
            place.wanted = true;
            place.running = true;
            std::mem::replace(&mut place.has_host, true)
        };
        if has_host {
            self.sim.bounce(host);
        } else {
            let shared = self.shared.clone();
            self.sim.host(host.as_str(), move || shared.clone().run_server(server));
            self.hosts.insert(host, Place::Server(server));
            self.relink();
        }
    }

    fn start_fails(&mut self, server: ServerId) -> bool {
        let mut fails = false;
        for (window, faults) in &self.open {
            for fault in faults {
                match fault {
                    Fault::Down { place, .. } => fails |= *place == Place::Server(server),
                    Fault::StartsFail { place, times } if *place == Place::Servers || *place == Place::Server(server) => {
                        let count = self.failed_starts.entry(*window).or_default();
                        if *count < *times {
                            *count += 1;
                            fails = true;
                        }
                    }
                    _ => {}
                }
            }
        }
        fails
    }
}
