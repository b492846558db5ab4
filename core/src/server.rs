//! The server machine: creates, routes to and removes the replicas of one server, and answers balancers and its own HTTP. Never decides
//! where replicas are or who leads: it does what messages that come from the register say, and keeps the newest map it has seen.
//!
//! Invariants: a replica id is opened here at most once as empty (R17); a replica without its log or rows is lost, never empty; what a
//! replica said after a write is sent after that write is durable (the replicas see to that, the machine keeps the order of writes).

mod inspect;
mod lifecycle;
mod lives;
mod requests;

#[cfg(test)]
pub(crate) mod tests;

pub use inspect::ReplicaView;

use crate::{
    effect::{Note, ServerEffect, ServerInput},
    id::{Epoch, Incarnation, MapVersion, NodeId, OwnerNumber, ReplicaId, ServerId, Token},
    map::ClusterMap,
    message::{Execute, ExecuteResult, Message, Read, ReadRefusal, ReadResult, ReplicaBody, ReplicaMessage, ToBalancer, ToServer},
    planted::Planted,
    replica::{Replica, ReplicaContext, ReplicaEffect, StorePurpose},
    storage::{LogBatch, LogRecord, Recovered, StoreAnswer, StoreCommand},
    time::{Duration, Instant},
};
use lifecycle::{Creating, Removing};
use lives::Standing;
use requests::OwnRequests;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

/// What a server machine is told when it starts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerConfig {
    /// Which server.
    pub server: ServerId,
    /// The number that opening the store gave: greater than at every opening before.
    pub owner: OwnerNumber,
    /// The mark of this life, drawn at random (R26).
    pub incarnation: Incarnation,
    /// Limits and times.
    pub settings: ServerSettings,
    /// For the simulator.
    pub planted: Planted,
}

/// Limits and times of a server. The simulator makes them small.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerSettings {
    /// The most sessions a shard remembers (DESIGN 4).
    pub sessions_max: usize,
    /// The most idempotency keys a shard remembers (DESIGN 4).
    pub idempotency_max: usize,
    /// The most entries one append message carries.
    pub append_entries_max: usize,
    /// The most bytes one append message carries, roughly.
    pub append_bytes_max: usize,
    /// The most appends under way to one follower. A guess: enough to fill a round trip of a few milliseconds.
    pub appends_in_flight_max: usize,
    /// How many entries the log keeps behind what is flushed, for followers that are behind.
    pub log_keep_count: usize,
    /// About the most bytes that the log of one replica keeps in memory behind what is flushed.
    pub log_keep_bytes: usize,
    /// About the most bytes of log that one replica holds in memory at all: beyond, its primary is busy. A guess.
    pub log_bytes_max: usize,
    /// About how many bytes of a snapshot one message carries.
    pub chunk_bytes: u32,
    /// About how many bytes of rows one answer to a read carries.
    pub read_bytes_max: u32,
    /// Flush to the row store when so many applied entries wait.
    pub flush_entries: usize,
    /// The most commands of one replica that wait for their result; one more is answered busy.
    pub executes_max: usize,
    /// The most reads of one replica under way; one more is answered busy.
    pub reads_max: usize,
    /// The most requests of the server's own HTTP under way; one more is answered overloaded.
    pub requests_max: usize,
    /// The most learners of one shard at once.
    pub learners_max: usize,
    /// The most snapshots that one replica lends at once.
    pub snapshots_max: usize,
    /// A learner no more than so many entries behind may become a member.
    pub learner_close_count: u64,
    /// The most reads of several pages that one replica keeps a state for at once; one more is answered busy. A guess: they are long, and each
    /// is a snapshot of the row store (a connection, where that is a database).
    pub pins_max: usize,
    /// About the most bytes that those states keep of what is not in the row store yet.
    pub pin_bytes_max: usize,
    /// When a state that nobody reads on in is let go: how slow a client may be at one page.
    pub pin_idle_max: Duration,
    /// When it is let go in any case: what a store keeps for its sake grows with every write.
    pub pin_life_max: Duration,
    /// How often an idle follower is sent an empty append.
    pub heartbeat_every: Duration,
    /// When a message between replicas that was not answered is sent again; doubled up to eight times.
    pub resend_after: Duration,
    /// How long a new commit index waits for entries to travel with.
    pub commit_spread_after: Duration,
    /// When a read that does not get ahead is given up.
    pub read_timeout: Duration,
    /// When a new primary gives its source up that sends nothing.
    pub fetch_timeout: Duration,
    /// When a snapshot that nobody asks about is closed.
    pub snapshot_idle_max: Duration,
    /// How long a new map waits for a batch to be written with.
    pub map_persist_after: Duration,
    /// When a request of the server's own HTTP is tried again.
    pub request_retry_after: Duration,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            sessions_max: 1_024,
            idempotency_max: 100_000,
            append_entries_max: 512,
            append_bytes_max: 1 << 20,
            appends_in_flight_max: 32,
            log_keep_count: 16_384,
            log_keep_bytes: 16 << 20,
            log_bytes_max: 256 << 20,
            chunk_bytes: 256 << 10,
            read_bytes_max: 1 << 20,
            flush_entries: 1_024,
            executes_max: 4_096,
            reads_max: 4_096,
            requests_max: 1_024,
            learners_max: 16,
            snapshots_max: 4,
            learner_close_count: 64,
            pins_max: 8,
            pin_bytes_max: 32 << 20,
            pin_idle_max: Duration::from_millis(15_000),
            pin_life_max: Duration::from_millis(300_000),
            heartbeat_every: Duration::from_millis(100),
            resend_after: Duration::from_millis(100),
            commit_spread_after: Duration::from_millis(2),
            read_timeout: Duration::from_millis(1_000),
            fetch_timeout: Duration::from_millis(2_000),
            snapshot_idle_max: Duration::from_millis(10_000),
            map_persist_after: Duration::from_millis(200),
            request_retry_after: Duration::from_millis(200),
        }
    }
}

/// What a batch of the step will have made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Written {
    /// A replica's own batch of that number.
    Replica(ReplicaId, u64),
    /// The record that a replica exists.
    Created(ReplicaId),
    /// The record that it does not any more.
    Removed(ReplicaId),
    /// The record of the lives of that number.
    Lives(u64),
}

/// Who waits for an answer of the row store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum StoreOwner {
    /// A replica.
    Replica(ReplicaId, StorePurpose),
    /// A creation.
    Creation(ReplicaId),
    /// A removal.
    Removal(ReplicaId),
    /// Nobody: what an interrupted creation left is cleared before the next one.
    Nobody,
}

/// The server machine.
#[derive(Clone, Debug)]
pub struct ServerMachine {
    config: ServerConfig,
    context: ReplicaContext,
    now: Instant,
    /// Whether the first step has been made: what opening found is carried on with then.
    started: bool,
    standing: Standing,

    replicas: BTreeMap<ReplicaId, Replica>,
    creating: BTreeMap<ReplicaId, Creating>,
    removing: BTreeMap<ReplicaId, Removing>,
    /// Ids that were removed, or refused to be here, in this life (R17).
    removed: BTreeSet<ReplicaId>,
    /// Replicas that are lost because the map has them here and the log does not.
    missing: BTreeSet<ReplicaId>,

    map: Option<(MapVersion, Arc<ClusterMap>)>,
    /// When the newest map is written at the latest; `None` if it is.
    map_due: Option<Instant>,
    /// Where replicas live. They never move, so every source is right.
    directory: BTreeMap<ReplicaId, ServerId>,

    next_token: Token,
    /// Batches under way, in order.
    writes: VecDeque<(Token, Vec<Written>)>,
    stores: BTreeMap<Token, StoreOwner>,

    own: OwnRequests,
    /// Messages between replicas of this very server, for the next step.
    local: VecDeque<ReplicaMessage>,

    touched: BTreeSet<ReplicaId>,
    deadlines: BTreeSet<(Instant, ReplicaId)>,
    deadline_of: BTreeMap<ReplicaId, Instant>,
    batch: LogBatch,
    written: Vec<Written>,
}

impl ServerMachine {
    /// A server that has just opened its log and store. Its first step, a `Tick` that is due at once, carries on with what was found.
    #[must_use]
    pub fn open(config: ServerConfig, recovered: Recovered, now: Instant) -> Self {
        let context = ReplicaContext {
            settings: Arc::new(config.settings.clone()),
            owner: config.owner,
            incarnation: config.incarnation,
            planted: config.planted,
        };
        let replicas: BTreeMap<_, _> =
            recovered.replicas.into_iter().map(|(id, replica)| (id, Replica::recover(id, context.clone(), replica))).collect();
        let touched = replicas.keys().copied().collect();
        let mut machine = Self {
            config,
            context,
            now,
            started: false,
            standing: Standing::new(recovered.lives),
            replicas,
            creating: BTreeMap::new(),
            removing: BTreeMap::new(),
            removed: BTreeSet::new(),
            missing: BTreeSet::new(),
            map: recovered.map,
            map_due: None,
            directory: BTreeMap::new(),
            next_token: Token(0),
            writes: VecDeque::new(),
            stores: BTreeMap::new(),
            own: OwnRequests::default(),
            local: VecDeque::new(),
            touched,
            deadlines: BTreeSet::new(),
            deadline_of: BTreeMap::new(),
            batch: Vec::new(),
            written: Vec::new(),
        };
        machine.learn_directory();
        machine
    }

    /// Which server it is.
    #[must_use]
    pub const fn id(&self) -> ServerId {
        self.config.server
    }

    /// Takes one input. Runs to the end, never fails, never blocks.
    ///
    /// # Panics
    /// If an invariant is broken, or time goes backwards.
    pub fn step(&mut self, now: Instant, input: ServerInput, out: &mut Vec<ServerEffect>) {
        assert!(now >= self.now, "{}: time went back from {} to {now}", self.id(), self.now);
        self.now = now;
        if !self.started {
            self.started = true;
            self.find_missing(out);
        }
        for message in std::mem::take(&mut self.local) {
            self.on_replica_message(message, out);
        }
        match input {
            ServerInput::Message { from, message } => self.on_message(from, message, out),
            ServerInput::Persisted { token } => self.on_persisted(token, out),
            ServerInput::Stored { token, answer } => self.on_stored(token, answer, out),
            ServerInput::Request { token, request, deadline } => self.on_request(token, request, deadline, out),
            ServerInput::Tick => self.on_tick(out),
        }
        self.finish(out);
    }

    /// When to call [`Self::step`] with [`ServerInput::Tick`] if nothing else happens before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        if !self.started || !self.local.is_empty() {
            return Some(self.now);
        }
        let replicas = self.deadlines.first().map(|(due, _)| *due);
        [replicas, self.map_due, self.own.next_deadline(), self.removals_deadline()].into_iter().flatten().min()
    }

    fn on_message(&mut self, from: NodeId, message: Message, out: &mut Vec<ServerEffect>) {
        match (message, from) {
            (Message::ToServer(message), from) => self.on_order(from, message, out),
            (Message::Replica(message), NodeId::Server(server)) => {
                self.directory.insert(message.from, server);
                self.on_replica_message(message, out);
            }
            (Message::ToBalancer(ToBalancer::Executed { tag, result }), NodeId::Server(_)) => self.on_own_executed(tag, result, out),
            (Message::ToBalancer(_), _) | (Message::Replica(_), NodeId::Balancer(_)) => {
                out.push(ServerEffect::Note(Note::Dropped { reason: "a message that is not for a server".into() }));
            }
        }
    }

    fn on_replica_message(&mut self, message: ReplicaMessage, out: &mut Vec<ServerEffect>) {
        if !self.takes_part() {
            return;
        }
        let (from, to, epoch) = (message.from, message.to, message.epoch);
        match self.replicas.get_mut(&to) {
            Some(replica) if replica.lost_reason().is_none() => {
                replica.message(self.now, message);
                self.touched.insert(to);
            }
            // Whoever waits for its log learns at once that there is none.
            Some(_) | None => match message.body {
                ReplicaBody::FetchLog { .. } | ReplicaBody::FetchSnapshot { .. } => {
                    let body = ReplicaBody::FetchRefused;
                    self.send_replica(ReplicaMessage { from: to, to: from, epoch, body }, out);
                }
                ReplicaBody::Append { .. }
                | ReplicaBody::Appended { .. }
                | ReplicaBody::Mismatch { .. }
                | ReplicaBody::Refused
                | ReplicaBody::NeedSnapshot { .. }
                | ReplicaBody::Round { .. }
                | ReplicaBody::RoundConfirmed { .. }
                | ReplicaBody::ReadIndex { .. }
                | ReplicaBody::ReadIndexIs { .. }
                | ReplicaBody::LogPart { .. }
                | ReplicaBody::LogGap { .. }
                | ReplicaBody::FetchRefused
                | ReplicaBody::SnapshotPart { .. } => {}
            },
        }
    }

    fn on_order(&mut self, from: NodeId, message: ToServer, out: &mut Vec<ServerEffect>) {
        let now = self.now;
        match message {
            ToServer::Heartbeat { beat } => self.on_heartbeat(from, beat, out),
            ToServer::Map { version, map } => self.on_map(version, map, out),
            ToServer::Home { tag } => self.answer(from, ToBalancer::Home { tag }, out),
            ToServer::Execute(Execute { tag, .. }) if !self.takes_part() => {
                self.answer(from, ToBalancer::Executed { tag, result: ExecuteResult::Busy }, out);
            }
            ToServer::Read(Read { tag, .. }) if !self.takes_part() => {
                let result = ReadResult::Refused { epoch: Epoch(0), reason: ReadRefusal::Busy };
                self.answer(from, ToBalancer::ReadDone { tag, result }, out);
            }
            // They come again.
            _ if !self.takes_part() => {}
            ToServer::Create { version, incarnation, replica, shard } => self.on_create(from, version, incarnation, replica, shard, out),
            ToServer::Retire { replica } => self.on_retire(from, replica, out),
            ToServer::Seal { replica, epoch } => {
                if let Some(sealed) = self.touch(replica) {
                    sealed.seal(now, from, epoch);
                }
            }
            ToServer::Install(install) => {
                let primary = install.config.primary;
                self.directory.extend(install.servers.iter().map(|(replica, server)| (*replica, *server)));
                self.directory.insert(install.source, install.source_server);
                if let Some(replica) = self.touch(primary) {
                    replica.install(now, from, install);
                }
            }
            ToServer::Activate { replica, epoch } => {
                if let Some(replica) = self.touch(replica) {
                    replica.activate(from, epoch);
                }
            }
            ToServer::Learn { replica, epoch, learners } => {
                self.directory.extend(learners.iter().copied());
                let learners = learners.into_iter().map(|(learner, _)| learner).collect();
                if let Some(replica) = self.touch(replica) {
                    replica.learn(now, epoch, &learners);
                }
            }
            ToServer::Execute(execute) => {
                let tag = execute.tag;
                if let Some(replica) = self.touch(execute.replica) {
                    replica.execute(now, from, execute);
                } else {
                    let result = ExecuteResult::NotPrimary { epoch: Epoch(0), lame: false };
                    self.answer(from, ToBalancer::Executed { tag, result }, out);
                }
            }
            ToServer::Read(read) => {
                let tag = read.tag;
                if let Some(replica) = self.touch(read.replica) {
                    replica.read(now, from, read);
                } else {
                    let result = ReadResult::Refused { epoch: Epoch(0), reason: ReadRefusal::NoSuchReplica };
                    self.answer(from, ToBalancer::ReadDone { tag, result }, out);
                }
            }
            ToServer::ReadOn(read) => {
                let tag = read.tag;
                if let Some(replica) = self.touch(read.pin.replica) {
                    replica.read_on(now, from, read);
                } else {
                    let result = ReadResult::Refused { epoch: Epoch(0), reason: ReadRefusal::PinGone };
                    self.answer(from, ToBalancer::ReadDone { tag, result }, out);
                }
            }
            ToServer::Unpin(pin) => {
                if let Some(replica) = self.touch(pin.replica) {
                    replica.unpin(pin);
                }
            }
        }
    }

    fn answer_heartbeat(&mut self, from: NodeId, beat: u64, out: &mut Vec<ServerEffect>) {
        let now = self.now;
        let map_version = self.map.as_ref().map_or(MapVersion(0), |(version, _)| *version);
        let replicas = self.replicas.values().map(|replica| replica.status(now)).collect();
        let (incarnation, follows) = (self.config.incarnation, self.follows());
        self.answer(from, ToBalancer::Beat { beat, incarnation, follows, map_version, replicas }, out);
    }

    fn on_persisted(&mut self, token: Token, out: &mut Vec<ServerEffect>) {
        // Durable means: and everything before it.
        while self.writes.front().is_some_and(|(write, _)| *write <= token) {
            let Some((_, written)) = self.writes.pop_front() else { break };
            for written in written {
                match written {
                    Written::Replica(id, number) => {
                        let now = self.now;
                        if let Some(replica) = self.touch(id) {
                            replica.persisted(now, number);
                        }
                    }
                    Written::Created(id) => self.on_creation_logged(id, out),
                    Written::Removed(id) => self.on_removal_logged(id, out),
                    Written::Lives(number) => self.on_lives_logged(number, out),
                }
            }
        }
    }

    fn on_stored(&mut self, token: Token, answer: StoreAnswer, out: &mut Vec<ServerEffect>) {
        match self.stores.remove(&token) {
            Some(StoreOwner::Replica(id, purpose)) => {
                let now = self.now;
                if let Some(replica) = self.touch(id) {
                    replica.stored(now, purpose, answer);
                }
            }
            Some(StoreOwner::Creation(id)) => self.on_creation_stored(id, &answer),
            Some(StoreOwner::Removal(id)) => self.on_removal_stored(id, &answer, out),
            Some(StoreOwner::Nobody) | None => {}
        }
    }

    fn on_tick(&mut self, out: &mut Vec<ServerEffect>) {
        let now = self.now;
        let due: Vec<_> = self.deadlines.iter().take_while(|(due, _)| *due <= now).map(|(_, id)| *id).collect();
        for id in due {
            if let Some(replica) = self.touch(id) {
                replica.tick(now);
            }
        }
        self.retry_removals(out);
        self.tick_requests(out);
    }

    /// The replica, to be finished at the end of the step.
    fn touch(&mut self, id: ReplicaId) -> Option<&mut Replica> {
        let replica = self.replicas.get_mut(&id)?;
        self.touched.insert(id);
        Some(replica)
    }

    /// Ends the step: finishes the replicas it touched, carries their effects out, and hands all records over as one batch.
    fn finish(&mut self, out: &mut Vec<ServerEffect>) {
        while let Some(id) = self.touched.pop_first() {
            let Some(replica) = self.replicas.get_mut(&id) else { continue };
            replica.finish(self.now);
            let (effects, batch) = replica.drain();
            let deadline = replica.next_deadline();
            self.set_deadline(id, deadline);
            if let Some((number, records)) = batch {
                self.batch.extend(records);
                self.written.push(Written::Replica(id, number));
            }
            for effect in effects {
                match effect {
                    ReplicaEffect::Send(message) => self.send_replica(message, out),
                    ReplicaEffect::Tell { to, message } => self.answer(to, message, out),
                    ReplicaEffect::Store { purpose, command } => self.store(id, StoreOwner::Replica(id, purpose), command, out),
                    ReplicaEffect::Note(note) => out.push(ServerEffect::Note(note)),
                }
            }
        }
        self.write_map();
        if !self.batch.is_empty() {
            let token = self.mint_token();
            self.writes.push_back((token, std::mem::take(&mut self.written)));
            out.push(ServerEffect::Persist { token, batch: std::mem::take(&mut self.batch) });
        }
    }

    /// The newest map goes along with the next batch, or by itself when it is due.
    fn write_map(&mut self) {
        let due = self.map_due.is_some_and(|due| !self.batch.is_empty() || due <= self.now);
        if let Some((version, map)) = self.map.as_ref().filter(|_| due) {
            self.batch.push(LogRecord::Map { version: *version, map: Arc::clone(map) });
            self.map_due = None;
        }
    }

    fn set_deadline(&mut self, id: ReplicaId, deadline: Option<Instant>) {
        let before = match deadline {
            Some(deadline) => self.deadline_of.insert(id, deadline),
            None => self.deadline_of.remove(&id),
        };
        if let Some(before) = before {
            self.deadlines.remove(&(before, id));
        }
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, id));
        }
    }

    fn mint_token(&mut self) -> Token {
        self.next_token = self.next_token.next();
        self.next_token
    }

    fn store(&mut self, replica: ReplicaId, owner: StoreOwner, command: StoreCommand, out: &mut Vec<ServerEffect>) {
        let token = self.mint_token();
        self.stores.insert(token, owner);
        out.push(ServerEffect::Store { token, replica, command });
    }

    fn send_replica(&mut self, message: ReplicaMessage, out: &mut Vec<ServerEffect>) {
        match self.directory.get(&message.to) {
            Some(server) if *server == self.id() => self.local.push_back(message),
            Some(server) => out.push(ServerEffect::Send { to: NodeId::Server(*server), message: Message::Replica(message) }),
            // Lost like any other message: who sent it sends again, and by then the map may have come.
            None => out.push(ServerEffect::Note(Note::Dropped { reason: "a message to a replica whose server is not known".into() })),
        }
    }

    /// Answers whoever asked: a balancer, another server, or the own HTTP.
    fn answer(&mut self, to: NodeId, message: ToBalancer, out: &mut Vec<ServerEffect>) {
        if to == NodeId::Server(self.id()) {
            match message {
                ToBalancer::Executed { tag, result } => self.on_own_executed(tag, result, out),
                ToBalancer::ReadDone { tag, result } => self.on_own_read(tag, result, out),
                ToBalancer::Beat { .. }
                | ToBalancer::Created { .. }
                | ToBalancer::Retired { .. }
                | ToBalancer::Promised { .. }
                | ToBalancer::Progress { .. }
                | ToBalancer::Home { .. } => {}
            }
        } else {
            out.push(ServerEffect::Send { to, message: Message::ToBalancer(message) });
        }
    }
}
