//! A small world for balancer machines: an in-memory register whose answers can be lost or held back, a provisioner, and servers that carry
//! out at once what they are told. Whatever a balancer says as controller is checked against the map that it has read back (R10).

use super::super::*;
use crate::{
    effect::{ProvisionAnswer, ProvisionCommand},
    id::{Epoch, Incarnation, LogIndex, OwnerNumber, Position, ReplicaId, ShardId},
    map::{Address, ReplicaStage, ServerGoal},
    message::{LeadStage, ReplicaStatus},
    request::{NewServer, NewShard},
    schema::{Column, ColumnType, Schema},
};
use std::collections::BTreeSet;

pub(super) const S1: ServerId = ServerId(1);
pub(super) const S2: ServerId = ServerId(2);
pub(super) const S3: ServerId = ServerId(3);
pub(super) const SH1: ShardId = ShardId(1);

/// The first balancer.
pub(super) const A: usize = 0;
/// The second.
pub(super) const B: usize = 1;

/// What becomes of a compare-and-set that is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Done, and the answer is lost.
    DoneUnheard,
    /// Not done, and the answer is lost.
    NotDone,
    /// The answer is lost; it is done when [`World::land`] says so, if it can be.
    Late,
    /// Not done: another was faster.
    Conflict,
}

/// Picks a compare-and-set by the maps before and after it.
pub(super) type Picks = fn(&ClusterMap, &ClusterMap) -> bool;

/// One balancer.
pub(super) struct Node {
    pub(super) machine: BalancerMachine,
    /// It does not run, or is not scheduled: neither time nor answers reach it.
    pub(super) stands: bool,
    /// Answers of the register wait in `held`.
    pub(super) holds: bool,
    /// It reaches no server, and none reaches it.
    pub(super) cut: bool,
    held: VecDeque<(Token, RegisterAnswer)>,
    swaps: BTreeMap<Token, (MapVersion, Arc<ClusterMap>)>,
    /// What it was told is in the register.
    known: Option<(MapVersion, Arc<ClusterMap>)>,
    pub(super) log: Vec<(Instant, BalancerEffect)>,
}

/// One server.
#[derive(Default)]
pub(super) struct Server {
    pub(super) runs: bool,
    /// It runs and nothing comes of it.
    pub(super) deaf: bool,
    pub(super) owner: OwnerNumber,
    pub(super) map_version: MapVersion,
    /// The life that the newest map shows as recorded: its disk has seen all of them.
    pub(super) recorded: Option<Incarnation>,
    pub(super) replicas: BTreeMap<ReplicaId, ReplicaStatus>,
}

/// More steps than any input leads to before time has to pass: answers come at once here, so whoever asks again at every answer never ends.
const STEPS_AT_ONCE_MAX: u32 = 100_000;

pub(super) struct World {
    pub(super) now: Instant,
    pub(super) version: MapVersion,
    pub(super) map: Arc<ClusterMap>,
    /// The register does not answer.
    pub(super) down: bool,
    fate: Option<(Picks, Fate)>,
    late: Option<(MapVersion, Arc<ClusterMap>)>,
    pub(super) nodes: Vec<Node>,
    pub(super) servers: BTreeMap<ServerId, Server>,
    /// The provisioner fails for these.
    pub(super) failing: BTreeSet<ServerId>,
    /// These are started and not heard of.
    pub(super) mute: BTreeSet<ServerId>,
    /// These can be stopped and not started.
    pub(super) broken: BTreeSet<ServerId>,
    /// It answers, and makes nothing of what it is told to create, install or lead.
    pub(super) stuck: Option<ServerId>,
    inbox: VecDeque<(usize, BalancerInput)>,
    tokens: u64,
}

pub(super) fn address(server: ServerId, owner: OwnerNumber) -> Address {
    Address { http: format!("{server}:80{}", owner.0).into(), peer: format!("{server}:70{}", owner.0).into() }
}

pub(super) fn init_request(server_count: u64) -> Request {
    Request::Init {
        server_count: Some(server_count),
        schema: Schema::new(vec![Column { name: "Stud_id".into(), dtype: ColumnType::Number }]).unwrap(),
        shards: vec![NewShard { name: "sh1".into(), low: 0, size: 100 }],
        servers: None,
        on_conflict: None,
        by_name: false,
    }
}

/// Adds a server that holds shard 1.
pub(super) fn add_request(name: &str) -> Request {
    let servers = vec![NewServer { name: name.into(), shards: vec!["sh1".into()] }];
    Request::Add { server_count: 1, new_shards: vec![], servers, strict: true }
}

pub(super) fn remove_request(name: &str) -> Request {
    Request::Remove { server_count: 1, servers: vec![name.into()], accept_data_loss: false, capped: false }
}

impl World {
    /// An empty register and so many balancers that have not yet made a step.
    pub(super) fn new(balancer_count: usize) -> Self {
        let mut world = Self {
            now: Instant(0) + Duration::from_millis(1_000),
            version: MapVersion(0),
            map: Arc::default(),
            down: false,
            fate: None,
            late: None,
            nodes: vec![],
            servers: BTreeMap::new(),
            failing: BTreeSet::new(),
            mute: BTreeSet::new(),
            broken: BTreeSet::new(),
            stuck: None,
            inbox: VecDeque::new(),
            tokens: 0,
        };
        for _ in 0..balancer_count {
            world.start(BalancerConfig::default());
        }
        world
    }

    /// Three servers with a replica of shard 1 each, which serves. The first balancer controls.
    pub(super) fn serving(balancer_count: usize) -> Self {
        let mut world = Self::new(balancer_count);
        world.run(200);
        let token = world.ask(A, init_request(3));
        world.run(2_000);
        assert_eq!(world.replies(token), [Reply::Initialised]);
        assert!(world.nodes[A].machine.is_controlling());
        world.forget();
        world
    }

    /// Starts one more balancer.
    pub(super) fn start(&mut self, config: BalancerConfig) -> usize {
        let seed = self.nodes.len() as u64;
        let machine = BalancerMachine::new(BalancerConfig { seed, ..config }, self.now);
        let (held, swaps, log) = (VecDeque::new(), BTreeMap::new(), vec![]);
        self.nodes.push(Node { machine, stands: false, holds: false, cut: false, held, swaps, known: None, log });
        self.nodes.len() - 1
    }

    /// Forgets what was logged so far.
    pub(super) fn forget(&mut self) {
        for node in &mut self.nodes {
            node.log.clear();
        }
    }

    /// Another balancer changed the register.
    pub(super) fn edit(&mut self, change: impl FnOnce(&mut ClusterMap)) {
        change(Arc::make_mut(&mut self.map));
        self.version = self.version.next();
    }

    /// The next compare-and-set that `picks` picks meets this fate.
    pub(super) fn doom(&mut self, picks: Picks, fate: Fate) {
        self.fate = Some((picks, fate));
    }

    /// Whether a compare-and-set met its fate.
    pub(super) const fn was_doomed(&self) -> bool {
        self.fate.is_none()
    }

    /// What was late is done now, if nothing else was meanwhile.
    pub(super) fn land(&mut self) -> bool {
        let (expected, map) = self.late.take().unwrap();
        expected == self.version && {
            (self.version, self.map) = (expected.next(), map);
            true
        }
    }

    /// Asks, with two minutes to answer.
    pub(super) fn ask(&mut self, node: usize, request: Request) -> Token {
        self.ask_for(node, request, 120_000)
    }

    pub(super) fn ask_for(&mut self, node: usize, request: Request, ms: u64) -> Token {
        self.tokens += 1;
        let token = Token(1_000_000 + self.tokens);
        let deadline = self.now + Duration::from_millis(ms);
        self.step(node, BalancerInput::Request { token, request, deadline });
        token
    }

    pub(super) fn step(&mut self, node: usize, input: BalancerInput) {
        self.inbox.push_back((node, input));
        let mut left = STEPS_AT_ONCE_MAX;
        while let Some((node, input)) = self.inbox.pop_front() {
            left -= 1;
            assert!(left > 0, "balancer {node} goes on for ever while no time passes; the last it took is {input:?}");
            if self.nodes[node].stands {
                continue;
            }
            if let BalancerInput::Register { token, answer } = &input {
                self.told(node, *token, answer);
            }
            let mut out = vec![];
            self.nodes[node].machine.step(self.now, input, &mut out);
            for effect in out {
                self.nodes[node].log.push((self.now, effect.clone()));
                self.carry_out(node, effect);
            }
        }
    }

    /// A message of a server that nobody asked for.
    pub(super) fn tell(&mut self, node: usize, from: ServerId, message: ToBalancer) {
        self.step(node, BalancerInput::Message { from, message: Message::ToBalancer(message) });
    }

    /// Lets time pass; balancers are stepped when they want to be.
    pub(super) fn run(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        loop {
            for node in 0..self.nodes.len() {
                if !self.nodes[node].stands && self.nodes[node].machine.next_deadline().is_some_and(|due| due <= self.now) {
                    self.step(node, BalancerInput::Tick);
                }
            }
            if self.now == end {
                return;
            }
            let due = self.nodes.iter().filter(|node| !node.stands).filter_map(|node| node.machine.next_deadline()).min();
            self.now = due.unwrap_or(end).clamp(self.now + Duration::from_millis(1), end);
        }
    }

    /// The register's answers that were held back come now, and later ones at once.
    pub(super) fn release(&mut self, node: usize) {
        self.nodes[node].holds = false;
        while self.release_one(node) {}
    }

    /// The oldest answer that was held back comes.
    pub(super) fn release_one(&mut self, node: usize) -> bool {
        let Some((token, answer)) = self.nodes[node].held.pop_front() else { return false };
        self.step(node, BalancerInput::Register { token, answer });
        true
    }

    /// A process of the server is killed; its disk stays.
    pub(super) fn kill(&mut self, server: ServerId) {
        self.servers.get_mut(&server).unwrap().runs = false;
    }

    fn carry_out(&mut self, node: usize, effect: BalancerEffect) {
        match effect {
            BalancerEffect::RegisterRead { token } => {
                let answer = if self.down {
                    RegisterAnswer::Unavailable
                } else {
                    RegisterAnswer::Read { version: self.version, map: Arc::clone(&self.map) }
                };
                self.answer(node, token, answer);
            }
            BalancerEffect::RegisterCas { token, expected, map } => {
                self.nodes[node].swaps.insert(token, (expected.next(), Arc::clone(&map)));
                let answer = self.swap(expected, map);
                self.answer(node, token, answer);
            }
            BalancerEffect::Send { to, message } => {
                let Message::ToServer(message) = message else { panic!("not for a server: {message:?}") };
                self.check(node, to, &message);
                self.serve(node, to, message);
            }
            BalancerEffect::Provision { token, command } => {
                assert!(self.is_holder(node), "{command:?} of a balancer that does not control");
                let answer = self.provision(command);
                self.inbox.push_back((node, BalancerInput::Provisioned { token, answer }));
            }
            BalancerEffect::Reply { .. } | BalancerEffect::Publish { .. } | BalancerEffect::Note(_) => {}
        }
    }

    fn answer(&mut self, node: usize, token: Token, answer: RegisterAnswer) {
        if self.nodes[node].holds {
            self.nodes[node].held.push_back((token, answer));
        } else {
            self.inbox.push_back((node, BalancerInput::Register { token, answer }));
        }
    }

    fn swap(&mut self, expected: MapVersion, map: Arc<ClusterMap>) -> RegisterAnswer {
        if self.down {
            return RegisterAnswer::Unavailable;
        }
        let fate = self.fate.take_if(|(picks, _)| picks(&self.map, &map)).map(|(_, fate)| fate);
        match fate {
            Some(Fate::NotDone) => return RegisterAnswer::Unavailable,
            Some(Fate::Conflict) => return RegisterAnswer::Conflict,
            Some(Fate::Late) => {
                self.late = Some((expected, map));
                return RegisterAnswer::Unavailable;
            }
            Some(Fate::DoneUnheard) | None => {}
        }
        if expected != self.version {
            return RegisterAnswer::Conflict;
        }
        (self.version, self.map) = (expected.next(), map);
        if fate.is_some() { RegisterAnswer::Unavailable } else { RegisterAnswer::Swapped }
    }

    /// Keeps what the balancer has read back by now.
    fn told(&mut self, node: usize, token: Token, answer: &RegisterAnswer) {
        let node = &mut self.nodes[node];
        let swap = node.swaps.remove(&token);
        let told = match answer {
            RegisterAnswer::Read { version, map } => Some((*version, Arc::clone(map))),
            RegisterAnswer::Swapped => swap,
            RegisterAnswer::Conflict | RegisterAnswer::Unavailable => None,
        };
        if let Some(told) = told
            && node.known.as_ref().is_none_or(|known| known.0 < told.0)
        {
            node.known = Some(told);
        }
    }

    /// Whether the map that it has read back says that this balancer controls.
    fn is_holder(&self, node: usize) -> bool {
        let node = &self.nodes[node];
        let holder = node.known.as_ref().and_then(|(_, map)| map.controller.holder);
        holder.is_some() && holder == node.machine.id()
    }

    /// R10: what is said follows from the map that was read back.
    fn check(&self, node: usize, to: ServerId, message: &ToServer) {
        assert!(self.nodes[node].machine.id().is_some(), "{message:?} before it has an id");
        let (version, map) = self.nodes[node].known.clone().unwrap();
        let shard_of = |replica: &ReplicaId| map.replicas.get(replica).and_then(|record| map.shards.get(&record.shard));
        let pending = |replica| shard_of(replica).and_then(|shard| shard.pending.clone());
        let current = |replica| shard_of(replica).and_then(|shard| shard.current.clone());
        let stage = |replica| map.replicas.get(replica).map(|record| record.stage);
        let follows = match message {
            ToServer::Heartbeat { .. }
            | ToServer::Execute(_)
            | ToServer::Read(_)
            | ToServer::ReadOn(_)
            | ToServer::Unpin(_)
            | ToServer::Home { .. } => return,
            ToServer::Map { version: said, map: sent } => return assert!(*said <= version && (*said < version || *sent == map)),
            ToServer::Create { version: said, incarnation, replica, .. } => {
                *said == version && stage(replica) == Some(ReplicaStage::Minted) && incarnation.0 == self.servers[&to].owner.0
            }
            ToServer::Retire { replica } => {
                stage(replica) == Some(ReplicaStage::Retired) && !current(replica).is_some_and(|c| c.has(*replica))
            }
            ToServer::Seal { replica, epoch } => pending(replica).is_some_and(|config| config.epoch == *epoch),
            ToServer::Install(install) => pending(&install.config.primary).as_ref() == Some(&install.config),
            ToServer::Activate { replica, epoch } | ToServer::Learn { replica, epoch, .. } => {
                current(replica).is_some_and(|config| config.epoch == *epoch && config.primary == *replica)
            }
        };
        assert!(follows, "R10: {message:?} does not follow from {version}");
        assert!(self.is_holder(node), "{message:?} of a balancer that does not control");
    }

    fn provision(&mut self, command: ProvisionCommand) -> ProvisionAnswer {
        let (ProvisionCommand::Start { server, .. } | ProvisionCommand::Stop { server, .. }) = &command;
        let id = *server;
        if self.failing.contains(&id) || (self.broken.contains(&id) && matches!(command, ProvisionCommand::Start { .. })) {
            return ProvisionAnswer::Failed { reason: "no".into() };
        }
        let mute = self.mute.contains(&id);
        let server = self.servers.entry(id).or_default();
        match command {
            ProvisionCommand::Start { replace, .. } => {
                if replace || !server.runs {
                    server.owner = server.owner.next();
                    (server.runs, server.deaf) = (true, mute);
                    for status in server.replicas.values_mut().filter(|status| status.lead.is_some()) {
                        status.lead = Some(LeadStage::Lame);
                    }
                }
                ProvisionAnswer::Started { address: address(id, server.owner) }
            }
            ProvisionCommand::Stop { .. } => {
                server.runs = false;
                ProvisionAnswer::Stopped
            }
        }
    }

    fn serve(&mut self, node: usize, to: ServerId, message: ToServer) {
        let is_work = matches!(message, ToServer::Create { .. } | ToServer::Install(_) | ToServer::Activate { .. });
        if self.nodes[node].cut || (is_work && self.stuck == Some(to)) {
            return;
        }
        let Some(server) = self.servers.get_mut(&to).filter(|server| server.runs && !server.deaf) else { return };
        let answer = match message {
            ToServer::Heartbeat { beat } => {
                let replicas = server.replicas.values().cloned().collect();
                {
                    let incarnation = Incarnation(server.owner.0);
                    ToBalancer::Beat { beat, incarnation, follows: server.recorded, map_version: server.map_version, replicas }
                }
            }
            ToServer::Map { version, map } => {
                if version > server.map_version {
                    server.map_version = version;
                    server.recorded = map.servers.get(&to).and_then(|record| record.incarnation);
                }
                return;
            }
            ToServer::Create { replica, shard, .. } => {
                server.replicas.entry(replica).or_insert_with(|| created(replica, shard));
                ToBalancer::Created { replica }
            }
            ToServer::Retire { replica } => {
                server.replicas.remove(&replica);
                ToBalancer::Retired { replica }
            }
            ToServer::Seal { replica, epoch } => {
                let Some(status) = server.replicas.get_mut(&replica) else { return };
                if status.promised < epoch {
                    (status.promised, status.lead) = (epoch, None);
                }
                ToBalancer::Promised { replica, epoch: status.promised, last: status.last }
            }
            ToServer::Install(install) => {
                let (epoch, primary) = (install.config.epoch, install.config.primary);
                for (member, server) in install.servers {
                    let status = self.servers.get_mut(&server).and_then(|server| server.replicas.get_mut(&member));
                    let Some(status) = status.filter(|status| status.promised <= epoch) else { continue };
                    let lead = (member == primary).then_some(LeadStage::Installed);
                    (status.promised, status.lead) = (epoch, lead);
                    status.last = Position { epoch, index: LogIndex(1) };
                }
                ToBalancer::Progress { replica: primary, epoch, stage: LeadStage::Installed }
            }
            ToServer::Activate { replica, epoch } => {
                let Some(status) = server.replicas.get_mut(&replica).filter(|status| status.promised == epoch) else { return };
                let may_lead = matches!(status.lead, Some(LeadStage::Installed | LeadStage::Active));
                let stage = if may_lead { LeadStage::Active } else { LeadStage::Lame };
                status.lead = Some(stage);
                ToBalancer::Progress { replica, epoch, stage }
            }
            ToServer::Learn { replica, learners, .. } => {
                let Some(status) = server.replicas.get_mut(&replica) else { return };
                status.learners = learners.into_iter().map(|(learner, _)| (learner, status.last.index, true)).collect();
                return;
            }
            ToServer::Execute(_) | ToServer::Read(_) | ToServer::ReadOn(_) | ToServer::Unpin(_) | ToServer::Home { .. } => return,
        };
        self.inbox.push_back((node, BalancerInput::Message { from: to, message: Message::ToBalancer(answer) }));
    }

    /// The answers to a request so far. More than one is one too many.
    pub(super) fn replies(&self, token: Token) -> Vec<Reply> {
        let effects = self.nodes.iter().flat_map(|node| &node.log);
        let replies = effects.filter_map(|(_, effect)| match effect {
            BalancerEffect::Reply { token: of, reply } if *of == token => Some(reply.clone()),
            _ => None,
        });
        replies.collect()
    }

    /// What the balancer asked of the provisioner, as `(ms, "start s1")`, since [`Self::forget`].
    pub(super) fn provisions(&self, node: usize) -> Vec<(u64, String)> {
        let commands = self.nodes[node].log.iter().filter_map(|(at, effect)| match effect {
            BalancerEffect::Provision { command: ProvisionCommand::Start { server, replace, .. }, .. } => {
                Some((at, format!("{} {server}", if *replace { "replace" } else { "start" })))
            }
            BalancerEffect::Provision { command: ProvisionCommand::Stop { server, .. }, .. } => Some((at, format!("stop {server}"))),
            _ => None,
        });
        commands.map(|(at, command)| (at.since(Instant(0)).as_millis(), command)).collect()
    }

    /// The same without the times.
    pub(super) fn provisioned(&self, node: usize) -> Vec<String> {
        self.provisions(node).into_iter().map(|(_, command)| command).collect()
    }

    /// What the balancer sent to servers that `picks` picks, since [`Self::forget`].
    pub(super) fn sent(&self, node: usize, picks: fn(&ToServer) -> bool) -> Vec<(ServerId, ToServer)> {
        let sent = self.nodes[node].log.iter().filter_map(|(_, effect)| match effect {
            BalancerEffect::Send { to, message: Message::ToServer(message) } if picks(message) => Some((*to, message.clone())),
            _ => None,
        });
        sent.collect()
    }

    pub(super) fn notes(&self, node: usize) -> Vec<Note> {
        let notes = self.nodes[node].log.iter().filter_map(|(_, effect)| match effect {
            BalancerEffect::Note(note) => Some(note.clone()),
            _ => None,
        });
        notes.collect()
    }

    /// What the balancer asked of the register, `r` or `c`, in order.
    pub(super) fn operations(&self, node: usize) -> String {
        let operations = self.nodes[node].log.iter().filter_map(|(_, effect)| match effect {
            BalancerEffect::RegisterRead { .. } => Some('r'),
            BalancerEffect::RegisterCas { .. } => Some('c'),
            _ => None,
        });
        operations.collect()
    }

    /// The servers that shall run, by name.
    pub(super) fn running(&self) -> Vec<&str> {
        self.map.servers.values().filter(|record| record.goal == ServerGoal::Run).map(|record| &*record.name).collect()
    }

    /// The members of shard 1, by server.
    pub(super) fn members(&self) -> Vec<ServerId> {
        let current = self.map.shards[&SH1].current.as_ref().unwrap();
        current.members.iter().filter_map(|member| self.map.server_of(*member)).collect()
    }
}

fn created(replica: ReplicaId, shard: ShardId) -> ReplicaStatus {
    ReplicaStatus {
        replica,
        shard,
        lost: None,
        promised: Epoch(0),
        lead: None,
        lead_progress: 0,
        store_away: false,
        last: Position::ZERO,
        commit: LogIndex(0),
        applied: LogIndex(0),
        flushed: LogIndex(0),
        learners: vec![],
        unreached: vec![],
    }
}
