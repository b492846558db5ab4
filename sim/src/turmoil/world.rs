//! What the hosts of the turmoil world have in common, and what runs on each: production's nodes, routers, log and row store over the
//! simulated network and simulated disks. The engine's loop starts and kills hosts; nothing here reads a clock, draws by chance, or iterates
//! anything unordered.

use super::{
    flaw::Flaw,
    net::{Fate, TurmoilNetwork},
    rows::SimRows,
};
use crate::{
    faults::{Fault, Place, RegisterFault},
    keyed::{Keyed, Purpose, fold},
    plan::Topology,
    trace::Trace,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::oneshot;
use twinshard::{
    disk::memory::MemoryDisk,
    driver::{Latency, NoteSink, StorageMode, StorageWork},
    entropy::Entropy,
    http::{self, Hosts, HttpSettings, server::ServerIdentity},
    log::file::Identity,
    net::Network,
    node::{BalancerNode, BalancerParts, NodeParts, ServerNode, ServerParts},
    peer::PeerSettings,
    provision::Provisioner,
    register::{Register, RegisterError, redb::RedbRegister},
    secret::Secret,
    store,
    story::{Record, World, exchange::Answer},
};
use twinshard_core::{
    balancer::BalancerConfig,
    effect::Note,
    id::{BalancerId, ClusterId, Incarnation, MapVersion, NodeId, OwnerNumber, ServerId},
    map::{Address, ClusterMap},
    planted::Planted,
    server::{ServerConfig, ServerSettings},
    time::Instant,
};

/// The cluster of every run.
const CLUSTER: ClusterId = ClusterId(0x7457_494e);
/// Where HTTP is served, on every host.
const HTTP_PORT: u16 = 5_000;
/// Where servers listen for peers.
pub(super) const PEER_PORT: u16 = 6_000;
/// The longest fsync of a disk that is not slow.
const SYNC_MAX: Duration = Duration::from_micros(1_500);
/// The longest other work of a store.
const WORK_MAX: Duration = Duration::from_micros(400);

/// The name of a server's host.
pub(super) fn server_host(server: ServerId) -> String {
    format!("server{}", server.0)
}

/// The name of a balancer's host.
pub(super) fn balancer_host(place: usize) -> String {
    format!("balancer{place}")
}

/// Where a balancer serves HTTP.
pub(super) fn balancer_address(place: usize) -> String {
    format!("{}:{HTTP_PORT}", balancer_host(place))
}

/// A server as the provisioner knows it.
#[derive(Debug, Default)]
pub(super) struct ServerPlace {
    pub(super) disk: MemoryDisk,
    name: String,
    number: u64,
    /// How often it was started.
    pub(super) starts: u64,
    pub(super) running: bool,
    /// Whether its host exists: hosts are never removed.
    pub(super) has_host: bool,
    /// It shall run: it was started and not stopped for good.
    pub(super) wanted: bool,
}

/// A balancer, over all its lives.
#[derive(Debug, Default)]
pub(super) struct BalancerPlace {
    /// Holds the register where there is one balancer.
    pub(super) disk: MemoryDisk,
    starts: u64,
    pub(super) running: bool,
}

/// Work for the provisioner, on its way to the engine's loop.
#[derive(Debug)]
pub(super) enum Ask {
    Start { replace: bool },
    Stop,
}

/// See [`Ask`].
#[derive(Debug)]
pub(super) struct Command {
    pub(super) server: ServerId,
    pub(super) ask: Ask,
    pub(super) done: oneshot::Sender<Result<Address, String>>,
}

/// What all hosts and the engine's loop see.
pub(super) struct State {
    pub(super) keyed: Keyed,
    seed: u64,
    pub(super) servers: BTreeMap<ServerId, ServerPlace>,
    pub(super) balancers: Vec<BalancerPlace>,
    /// The register of several balancers: a service of its own that never fails by itself.
    register: Option<Arc<Mutex<RedbRegister>>>,
    initial: ClusterMap,
    pub(super) commands: VecDeque<Command>,
    /// The faults that are open, with nodes in the place of roles.
    pub(super) open: Vec<Fault>,
    /// The processes that stand still, and until when at most.
    pub(super) paused: BTreeMap<Place, u64>,
    /// How many connections between nodes there were.
    pub(super) connections: u64,
    /// How often the register was asked.
    register_asked: u64,
    /// The longest fsync of slow disks.
    pub(super) slow: BTreeMap<ServerId, Duration>,
    /// The newest map that stands in the register.
    pub(super) map: Arc<ClusterMap>,
    pub(super) balancer_ids: BTreeMap<BalancerId, usize>,
    pub(super) record: Record,
    pub(super) notes: Vec<(u64, Note)>,
    pub(super) trace: Trace,
    flaw: Option<Flaw>,
    /// Of servers, and how many rows a page has.
    limits: (ServerSettings, u32),
}

impl State {
    /// Whose host has that name; `None` of clients.
    pub(super) fn place_of_host(&self, host: &str) -> Option<Place> {
        let server = self.servers.keys().find(|server| server_host(**server) == host).copied().map(Place::Server);
        server.or_else(|| (0..self.balancers.len()).find(|place| balancer_host(*place) == host).map(Place::Balancer))
    }

    /// What becomes of a frame: the sum of all weather that its ends are in.
    pub(super) fn fate(&self, from: Place, to: Option<Place>, key: [u64; 2]) -> Fate {
        let mut fate = Fate { copies: 1, late: Duration::ZERO };
        for (part, fault) in (0..).zip(&self.open) {
            let Fault::Weather { place, loss_ppm, duplicate_ppm, straggler_ppm, straggler_max } = fault else { continue };
            if *place != Place::Others && *place != from && Some(*place) != to {
                continue;
            }
            let mut draw = self.keyed.draw(Purpose::Message, key).split(part);
            if draw.chance(*loss_ppm) {
                fate.copies = 0;
            }
            if draw.chance(*duplicate_ppm) {
                fate.copies *= 2;
            }
            if draw.chance(*straggler_ppm) {
                fate.late += Duration::from_nanos(draw.below(straggler_max.0.max(1)));
            }
        }
        fate.copies = fate.copies.min(2);
        fate
    }

    /// Whether the rows of a server do not answer.
    pub(super) fn is_store_down(&self, server: ServerId) -> bool {
        self.open.contains(&Fault::StoreDown { place: Place::Server(server) })
    }

    /// What the register does wrong now towards a balancer.
    fn register_fault(&mut self, balancer: usize) -> Option<RegisterFault> {
        self.register_asked += 1;
        let key = [self.register_asked, balancer as u64];
        (0..).zip(&self.open).find_map(|(part, open)| match open {
            Fault::Register { place, fault, ppm } if *place == Place::Others || *place == Place::Balancer(balancer) => {
                self.keyed.draw(Purpose::Register, key).split(part).chance(*ppm).then_some(*fault)
            }
            _ => None,
        })
    }
}

/// [`State`] behind a lock. Everything runs on one thread: it is never waited for.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<State>>);

/// The time of the run, inside a host.
pub(super) fn now() -> u64 {
    turmoil::sim_elapsed().map_or(0, |elapsed| u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
}

impl Shared {
    pub(super) fn new(seed: u64, balancer_count: usize, topology: &Topology, flaw: Option<Flaw>) -> Result<Self, RegisterError> {
        let mut initial = ClusterMap { cluster: CLUSTER, ..ClusterMap::default() };
        initial.settings.write_quorum = topology.write_quorum;
        let register = if balancer_count > 1 {
            let disk = MemoryDisk::new();
            Some(Arc::new(Mutex::new(RedbRegister::open_on(&disk, &initial)?)))
        } else {
            None
        };
        let state = State {
            keyed: Keyed::new(seed),
            seed,
            servers: BTreeMap::new(),
            balancers: (0..balancer_count).map(|_| BalancerPlace::default()).collect(),
            register,
            map: Arc::new(initial.clone()),
            initial,
            commands: VecDeque::new(),
            open: Vec::new(),
            paused: BTreeMap::new(),
            connections: 0,
            register_asked: 0,
            slow: BTreeMap::new(),
            balancer_ids: BTreeMap::new(),
            record: Record::default(),
            notes: Vec::new(),
            trace: Trace::new(false),
            flaw,
            limits: (topology.settings.clone(), topology.pages.rows),
        };
        Ok(Self(Arc::new(Mutex::new(state))))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to the trace what happens on a host.
    pub(super) fn trace(&self, what: u64, text: &str) {
        self.trace_at(now(), what, text);
    }

    /// The same from outside of the hosts.
    pub(super) fn trace_at(&self, at: u64, what: u64, text: &str) {
        let detail = text.bytes().fold(0, |hash, byte| fold(hash, u64::from(byte)));
        self.state().trace.event(Instant(at), what, text.len() as u64, detail);
    }

    fn latency(&self, here: Place, start: u64, server: Option<ServerId>) -> Latency {
        let host = here.code();
        let shared = self.clone();
        let count = Arc::new(Mutex::new(0_u64));
        Arc::new(move |work| {
            let number = {
                let mut count = count.lock().unwrap_or_else(PoisonError::into_inner);
                *count += 1;
                *count
            };
            let state = shared.state();
            let most = match work {
                StorageWork::Persist { .. } => server.and_then(|server| state.slow.get(&server).copied()).unwrap_or(SYNC_MAX),
                StorageWork::RowsRead | StorageWork::RowsWrite | StorageWork::RegisterRead | StorageWork::RegisterSwap => WORK_MAX,
            };
            let most = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
            // Half of it passes before the work is done: nobody who stands still asks for anything.
            let stands = state.paused.get(&here).map_or(0, |until| 2 * until.saturating_sub(now()));
            Duration::from_nanos(stands + state.keyed.draw(Purpose::Sync, [host, start, number]).below(most))
        })
    }

    fn node(&self, start: u64, here: Place) -> NodeParts<TurmoilNetwork> {
        let host = here.code();
        let server = if let Place::Server(server) = here { Some(server) } else { None };
        let balancer = if let Place::Balancer(place) = here { Some(place) } else { None };
        let shared = self.clone();
        let sink: NoteSink = Arc::new(move |_, node, note| {
            if matches!(note, Note::Dropped { .. }) {
                return;
            }
            let at = now();
            let text = format!("{node:?} {note:?}");
            shared.trace(2, &text);
            let mut state = shared.state();
            if let (Some(NodeId::Balancer(id)), Some(place)) = (node, balancer) {
                state.balancer_ids.insert(id, place);
            }
            state.notes.push((at, note.clone()));
        });
        let seed = self.state().seed;
        NodeParts {
            network: TurmoilNetwork::new(self.clone(), here),
            secret: Secret::new([7; 32]),
            entropy: Entropy::from_seed(fold(fold(seed, host), start)),
            storage: StorageMode::Inline(self.latency(here, start, server)),
            peers: PeerSettings::default(),
            notes: Some(sink),
        }
    }

    /// What runs on a server's host.
    pub(super) async fn run_server(self, server: ServerId) -> turmoil::Result {
        if let Err(error) = self.serve_server(server).await {
            self.trace(3, &format!("{server} ends: {error}"));
        }
        if let Some(place) = self.state().servers.get_mut(&server) {
            place.running = false;
        }
        Ok(())
    }

    async fn serve_server(&self, server: ServerId) -> turmoil::Result {
        let (disk, start, name, number, flaw, (settings, page_rows)) = {
            let mut state = self.state();
            let (flaw, limits) = (state.flaw, state.limits.clone());
            let place = state.servers.entry(server).or_default();
            place.starts += 1;
            (place.disk.clone(), place.starts, place.name.clone(), place.number, flaw, limits)
        };
        let disk = Flaw::disk(flaw, disk);
        Flaw::server_starts(flaw);
        let node = self.node(start, Place::Server(server));
        let network = node.network.clone();
        let first_owner = OwnerNumber(node.entropy.below(1 << 48) + 1);
        let identity = Identity { cluster: CLUSTER, server };
        let store::Opened { log, rows, recovered, owner } = store::open(&disk, identity, first_owner)?;
        let config =
            ServerConfig { server, owner, incarnation: Incarnation(node.entropy.below(u64::MAX) + 1), settings, planted: Planted::NONE };
        let peer_address = format!("{}:{PEER_PORT}", server_host(server));
        let rows = SimRows::new(rows, self.clone(), server);
        let parts = ServerParts { node, cluster: CLUSTER, peer_address, config, recovered, log, rows };
        let running = ServerNode::start(parts).await?;
        let listener = network.listen(&format!("{}:{HTTP_PORT}", server_host(server))).await?;
        let settings = HttpSettings { hosts: Hosts::Any, page_rows, ..HttpSettings::default() };
        let router = http::server::router(running.handle(), ServerIdentity { name, number, standalone: None }, settings.clone());
        http::serve::<TurmoilNetwork>(listener, router, settings, running.stop().watch()).await;
        running.join().await?;
        Ok(())
    }

    /// What runs on a balancer's host.
    pub(super) async fn run_balancer(self, place: usize, config: BalancerConfig) -> turmoil::Result {
        if let Err(error) = self.serve_balancer(place, config).await {
            self.trace(3, &format!("balancer {place} ends: {error}"));
        }
        self.state().balancers[place].running = false;
        Ok(())
    }

    async fn serve_balancer(&self, place: usize, config: BalancerConfig) -> turmoil::Result {
        let (start, register) = {
            let mut state = self.state();
            state.balancers[place].starts += 1;
            state.balancers[place].running = true;
            let register = match &state.register {
                Some(register) => Store::Shared(Arc::clone(register)),
                None => Store::Own(RedbRegister::open_on(&state.balancers[place].disk, &state.initial)?),
            };
            (state.balancers[place].starts, register)
        };
        let node = self.node(start, Place::Balancer(place));
        let network = node.network.clone();
        let config = BalancerConfig { seed: node.entropy.below(u64::MAX), ..config };
        let register = SimRegister { store: register, shared: self.clone(), balancer: place };
        let provisioner = SimProvisioner(self.clone(), network.clone());
        let balancer = BalancerNode::start(BalancerParts { node, config, register, provisioner }).await?;
        if balancer.handle().ready().await {
            let listener = network.listen(&balancer_address(place)).await?;
            let (flaw, page_rows) = {
                let state = self.state();
                (state.flaw, state.limits.1)
            };
            let settings = HttpSettings { hosts: Hosts::Any, page_rows, ..HttpSettings::default() };
            let router = Flaw::router(flaw, http::balancer::router(balancer.handle(), settings.clone()));
            http::serve::<TurmoilNetwork>(listener, router, settings, balancer.stop().watch()).await;
        }
        balancer.join().await?;
        Ok(())
    }

    fn learn(&self, map: &ClusterMap) {
        let mut state = self.state();
        state.record.names.learn(map);
        state.record.recorder.learn(map);
        state.map = Arc::new(map.clone());
    }

    /// The address of a server, whether it runs or not.
    pub(super) fn address(server: ServerId) -> Address {
        let host = server_host(server);
        Address { http: format!("{host}:{HTTP_PORT}").into(), peer: format!("{host}:{PEER_PORT}").into() }
    }
}

/// What clients on a host of the simulation see.
#[derive(Clone)]
pub(super) struct Clients {
    shared: Shared,
    network: TurmoilNetwork,
    balancer_count: usize,
}

impl Clients {
    pub(super) fn new(shared: Shared, balancer_count: usize) -> Self {
        Self { network: TurmoilNetwork::new(shared.clone(), Place::Clients), shared, balancer_count }
    }
}

impl World for Clients {
    type Network = TurmoilNetwork;

    fn network(&self) -> &TurmoilNetwork {
        &self.network
    }

    fn now_ns(&self) -> u64 {
        now()
    }

    fn balancer(&self, number: usize) -> String {
        balancer_address(number % self.balancer_count)
    }

    fn heard(&self, answer: &Answer) {
        self.shared.trace(1, &format!("{answer:?}"));
    }

    fn with<T>(&self, work: impl FnOnce(&mut Record) -> T) -> T {
        work(&mut self.shared.state().record)
    }

    fn map(&self) -> Arc<ClusterMap> {
        Arc::clone(&self.shared.state().map)
    }
}

enum Store {
    Own(RedbRegister),
    Shared(Arc<Mutex<RedbRegister>>),
}

/// The real register with the faults of the run. What it takes up, names and history learn before anyone is answered.
struct SimRegister {
    store: Store,
    shared: Shared,
    balancer: usize,
}

impl SimRegister {
    fn with<T>(&mut self, work: impl FnOnce(&mut RedbRegister) -> Result<T, RegisterError>) -> Result<T, RegisterError> {
        match &mut self.store {
            Store::Own(register) => work(register),
            Store::Shared(register) => work(&mut register.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

impl Register for SimRegister {
    fn read(&mut self) -> Result<(MapVersion, Arc<ClusterMap>), RegisterError> {
        let fault = self.shared.state().register_fault(self.balancer);
        let read = self.with(RedbRegister::read);
        match fault {
            // A read that is late or whose reply is lost is no answer.
            Some(RegisterFault::Unavailable | RegisterFault::LostReply | RegisterFault::Late) => Err(silent()),
            Some(RegisterFault::Touched) | None => read,
        }
    }

    fn compare_and_set(&mut self, expected: MapVersion, map: &ClusterMap) -> Result<bool, RegisterError> {
        let fault = self.shared.state().register_fault(self.balancer);
        if fault == Some(RegisterFault::Unavailable) {
            return Err(silent());
        }
        let done = self.with(|register| register.compare_and_set(expected, map))?;
        if done {
            self.shared.learn(map);
        }
        if fault == Some(RegisterFault::LostReply) { Err(silent()) } else { Ok(done) }
    }
}

fn silent() -> RegisterError {
    RegisterError::Failed("it does not answer".to_owned())
}

/// Hands the work to the engine's loop: hosts are started and killed between steps only.
struct SimProvisioner(Shared, TurmoilNetwork);

impl SimProvisioner {
    async fn ask(&self, server: ServerId, ask: Ask) -> Result<Address, String> {
        self.1.goes_on().await;
        let (done, answer) = oneshot::channel();
        self.0.state().commands.push_back(Command { server, ask, done });
        answer.await.unwrap_or_else(|_| Err("the provisioner is gone".to_owned()))
    }
}

impl Provisioner for SimProvisioner {
    async fn start(&self, server: ServerId, name: &str, number: u64, replace: bool) -> Result<Address, String> {
        {
            let mut state = self.0.state();
            let place = state.servers.entry(server).or_default();
            name.clone_into(&mut place.name);
            place.number = number;
        }
        self.ask(server, Ask::Start { replace }).await
    }

    async fn stop(&self, server: ServerId, _name: &str) -> Result<(), String> {
        self.ask(server, Ask::Stop).await.map(drop)
    }
}
