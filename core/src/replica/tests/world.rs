//! A tiny world for stories: servers, a network that delivers in order, disks that keep what was synced. Deterministic, one thread.

use crate::{
    command::{Entry, OnConflict, Operation, RequestId},
    config::Configuration,
    effect::{Note, ServerEffect, ServerInput},
    id::{
        BalancerId, Epoch, Incarnation, LogIndex, MapVersion, NodeId, OwnerNumber, Position, ReplicaId, ServerId, SessionId, ShardId,
        SnapshotId, StageId, Token,
    },
    map::ClusterMap,
    message::{
        Execute, ExecuteResult, Freshness, Install, LeadStage, Message, Pin, Read, ReadOn, ReadResult, ReplicaBody, ReplicaMessage,
        ReplicaStatus, Tag, ToBalancer, ToServer,
    },
    planted::Planted,
    request::{ServerReply, ServerRequest},
    server::{ReplicaView, ServerConfig, ServerMachine, ServerSettings},
    storage::{
        FlushBatch, LogBatch, LogRecord, LostReason, Recovered, RecoveredReplica, RowPage, RowQuery, SnapshotChunk, SnapshotCursor,
        StoreAnswer, StoreCommand, ViewState,
    },
    time::{Duration, Instant},
    value::{Key, KeyRange, Row, StoredRow, Value},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

mod store;

pub(crate) const SHARD: ShardId = ShardId(1);
pub(crate) const BALANCER: NodeId = NodeId::Balancer(BalancerId(1));

/// The rows of one replica as its store holds them, durable at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    pub(crate) state: ViewState,
    pub(crate) rows: BTreeMap<Key, StoredRow>,
    stage: Option<(StageId, Position, ViewState, BTreeMap<Key, StoredRow>)>,
    snapshots: BTreeMap<SnapshotId, (ViewState, BTreeMap<Key, StoredRow>)>,
    /// Snapshots that were open and cannot be read any more: what held them is gone.
    gone: BTreeSet<SnapshotId>,
}

/// What survives a crash.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) log: Vec<LogRecord>,
    pub(crate) rows: BTreeMap<ReplicaId, Rows>,
}

struct Node {
    machine: Option<ServerMachine>,
    disk: Disk,
    /// Batches that are not yet synced.
    unsynced: VecDeque<(Token, LogBatch)>,
    held: bool,
    owner: OwnerNumber,
    /// Answers of the row store that have not come yet, where they come late.
    late: VecDeque<(Token, StoreAnswer)>,
}

/// See the module.
pub(crate) struct World {
    pub(crate) now: Instant,
    nodes: BTreeMap<ServerId, Node>,
    mail: VecDeque<(NodeId, NodeId, Message)>,
    /// What came to the balancer, oldest first.
    pub(crate) inbox: Vec<(ServerId, ToBalancer)>,
    pub(crate) replies: Vec<(Token, ServerReply)>,
    pub(crate) notes: Vec<Note>,
    cut: BTreeSet<ServerId>,
    /// Bodies that the network loses, by a name of theirs.
    lose: BTreeSet<&'static str>,
    /// Every message between replicas that was delivered.
    pub(crate) heard: Vec<ReplicaMessage>,
    pub(crate) settings: ServerSettings,
    pub(crate) planted: Planted,
    next_tag: u64,
    /// The committed log, as the first replica that knew each entry to be committed had it.
    pub(crate) committed: BTreeMap<LogIndex, Arc<Entry>>,
    checked: BTreeMap<ReplicaId, LogIndex>,
    /// Whether answers of row stores wait for [`World::answer_one`].
    pub(crate) late_answers: bool,
    /// The lowest command number of the session that may be retried.
    pub(crate) next_number: u64,
}

pub(crate) fn body_name(body: &ReplicaBody) -> &'static str {
    match body {
        ReplicaBody::Append { .. } => "append",
        ReplicaBody::Appended { .. } => "appended",
        ReplicaBody::Mismatch { .. } => "mismatch",
        ReplicaBody::Refused => "refused",
        ReplicaBody::NeedSnapshot { .. } => "need-snapshot",
        ReplicaBody::Round { .. } => "round",
        ReplicaBody::RoundConfirmed { .. } => "round-confirmed",
        ReplicaBody::ReadIndex { .. } => "read-index",
        ReplicaBody::ReadIndexIs { .. } => "read-index-is",
        ReplicaBody::FetchLog { .. } => "fetch-log",
        ReplicaBody::LogPart { .. } => "log-part",
        ReplicaBody::LogGap { .. } => "log-gap",
        ReplicaBody::FetchRefused => "fetch-refused",
        ReplicaBody::FetchSnapshot { .. } => "fetch-snapshot",
        ReplicaBody::SnapshotPart { .. } => "snapshot-part",
    }
}

pub(crate) fn server(id: u64) -> ServerId {
    ServerId(id)
}

pub(crate) fn replica(id: u64) -> ReplicaId {
    ReplicaId(id)
}

/// Replica `rN` lives on server `s(N % 10)`.
pub(crate) fn home(id: ReplicaId) -> ServerId {
    ServerId(id.0 % 10)
}

pub(crate) fn config(epoch: u64, primary: u64, members: &[u64], write_quorum: u32) -> Configuration {
    Configuration {
        epoch: Epoch(epoch),
        primary: replica(primary),
        members: members.iter().copied().map(ReplicaId).collect(),
        write_quorum,
    }
}

pub(crate) fn small_settings() -> ServerSettings {
    ServerSettings { append_entries_max: 4, log_keep_count: 4, flush_entries: 2, chunk_bytes: 100, ..ServerSettings::default() }
}

impl World {
    /// Servers `s1..` with an empty replica each, `r1..`.
    pub(crate) fn new(count: u64) -> Self {
        Self::with(count, ServerSettings::default(), Planted::NONE)
    }

    pub(crate) fn with(count: u64, settings: ServerSettings, planted: Planted) -> Self {
        let mut world = Self {
            now: Instant(0),
            nodes: BTreeMap::new(),
            mail: VecDeque::new(),
            inbox: Vec::new(),
            replies: Vec::new(),
            notes: Vec::new(),
            cut: BTreeSet::new(),
            lose: BTreeSet::new(),
            heard: Vec::new(),
            settings,
            planted,
            next_tag: 0,
            committed: BTreeMap::new(),
            checked: BTreeMap::new(),
            late_answers: false,
            next_number: 0,
        };
        for id in 1..=count {
            let node = Node {
                machine: None,
                disk: Disk::default(),
                unsynced: VecDeque::new(),
                held: false,
                owner: OwnerNumber(0),
                late: VecDeque::new(),
            };
            world.nodes.insert(server(id), node);
            world.start(id);
            world.create(id);
        }
        world.run(1);
        world
    }

    /// A shard of `count` members with a majority quorum that serves in epoch 1 under r1.
    pub(crate) fn serving(count: u64) -> Self {
        Self::new(count).formed(count)
    }

    pub(crate) fn formed(mut self, count: u64) -> Self {
        let members: Vec<u64> = (1..=count).collect();
        let quorum = crate::config::majority(members.len());
        self.install(&config(1, 1, &members, quorum), 1, Position::ZERO);
        self.run(10);
        self.activate(1, 1);
        self.run(10);
        assert_eq!(self.status(1).lead, Some(LeadStage::Active), "the shard serves");
        self
    }

    pub(crate) fn create(&mut self, id: u64) {
        let incarnation = Incarnation(self.nodes[&home(replica(id))].owner.0);
        let message = ToServer::Create { version: MapVersion(1), incarnation, replica: replica(id), shard: SHARD };
        self.order(home(replica(id)), message);
    }

    pub(crate) fn incarnation(&self, id: u64) -> Incarnation {
        Incarnation(self.nodes[&server(id)].owner.0)
    }

    // ---- servers ------------------------------------------------------------------------------------------------------------

    pub(crate) fn start(&mut self, id: u64) {
        let node = self.nodes.get_mut(&server(id)).expect("a server");
        node.owner = node.owner.next();
        for rows in node.disk.rows.values_mut() {
            rows.snapshots.clear();
        }
        let recovered = recover(&mut node.disk);
        let config = ServerConfig {
            server: server(id),
            owner: node.owner,
            incarnation: Incarnation(node.owner.0),
            settings: self.settings.clone(),
            planted: self.planted,
        };
        let mut machine = ServerMachine::open(config, recovered, self.now);
        machine.take_part();
        node.machine = Some(machine);
        self.input(server(id), ServerInput::Tick);
    }

    /// Power loss: what was not synced is gone.
    pub(crate) fn crash(&mut self, id: u64) {
        let node = self.nodes.get_mut(&server(id)).expect("a server");
        node.machine = None;
        node.unsynced.clear();
        node.late.clear();
        node.held = false;
    }

    pub(crate) fn restart(&mut self, id: u64) {
        self.crash(id);
        self.start(id);
    }

    pub(crate) fn wipe(&mut self, id: u64) {
        self.crash(id);
        self.nodes.get_mut(&server(id)).expect("a server").disk = Disk::default();
    }

    /// Nothing that is written from now on is synced.
    pub(crate) fn hold_disk(&mut self, id: u64) {
        self.nodes.get_mut(&server(id)).expect("a server").held = true;
    }

    pub(crate) fn release_disk(&mut self, id: u64) {
        self.nodes.get_mut(&server(id)).expect("a server").held = false;
    }

    /// What is written so far reaches the disk, and the server does not come to know.
    pub(crate) fn sync_unnoticed(&mut self, id: u64) {
        let node = self.nodes.get_mut(&server(id)).expect("a server");
        for (_, batch) in std::mem::take(&mut node.unsynced) {
            node.disk.log.extend(batch);
        }
    }

    /// The server hears no other server and none hears it. Balancers still reach it.
    pub(crate) fn cut(&mut self, id: u64) {
        self.cut.insert(server(id));
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
        self.lose.clear();
    }

    /// The network loses all messages of that name.
    pub(crate) fn lose(&mut self, name: &'static str) {
        self.lose.insert(name);
    }

    pub(crate) fn disk(&mut self, id: u64) -> &mut Disk {
        &mut self.nodes.get_mut(&server(id)).expect("a server").disk
    }

    pub(crate) fn machine(&self, id: u64) -> &ServerMachine {
        self.nodes[&server(id)].machine.as_ref().expect("a server that runs")
    }

    pub(crate) fn view(&self, id: u64) -> ReplicaView<'_> {
        self.machine(home(replica(id)).0).replica(replica(id)).expect("a replica")
    }

    pub(crate) fn status(&mut self, id: u64) -> ReplicaStatus {
        let at = home(replica(id));
        self.inbox.retain(|(_, message)| !matches!(message, ToBalancer::Beat { .. }));
        self.order(at, ToServer::Heartbeat { beat: 0 });
        let beat = self.inbox.iter().rev().find_map(|(from, message)| match message {
            ToBalancer::Beat { replicas, .. } if *from == at => Some(replicas.clone()),
            _ => None,
        });
        beat.expect("a beat").into_iter().find(|status| status.replica == replica(id)).expect("a replica")
    }

    pub(crate) fn positions(&self, id: u64) -> Vec<Position> {
        self.view(id).entries().map(|entry| entry.position).collect()
    }

    // ---- orders -------------------------------------------------------------------------------------------------------------

    /// A message of the balancer, delivered now.
    pub(crate) fn order(&mut self, to: ServerId, message: ToServer) {
        self.input(to, ServerInput::Message { from: BALANCER, message: Message::ToServer(message) });
    }

    /// A message of a replica, delivered now.
    pub(crate) fn say(&mut self, from: u64, to: u64, epoch: u64, body: ReplicaBody) {
        let message = ReplicaMessage { from: replica(from), to: replica(to), epoch: Epoch(epoch), body };
        let from = NodeId::Server(home(replica(from)));
        self.input(home(replica(to)), ServerInput::Message { from, message: Message::Replica(message) });
    }

    pub(crate) fn install(&mut self, config: &Configuration, source: u64, source_last: Position) {
        let primary = config.primary;
        let servers = config.members.iter().map(|member| (*member, home(*member))).collect();
        let source = replica(source);
        let install = Install { config: config.clone(), servers, source, source_server: home(source), source_last };
        self.order(home(primary), ToServer::Install(install));
    }

    pub(crate) fn activate(&mut self, primary: u64, epoch: u64) {
        self.order(home(replica(primary)), ToServer::Activate { replica: replica(primary), epoch: Epoch(epoch) });
    }

    pub(crate) fn seal(&mut self, id: u64, epoch: u64) {
        self.order(home(replica(id)), ToServer::Seal { replica: replica(id), epoch: Epoch(epoch) });
    }

    /// The promise of that replica for that epoch, if it came.
    pub(crate) fn promise(&self, id: u64, epoch: u64) -> Option<Position> {
        self.inbox.iter().rev().find_map(|(_, message)| match message {
            ToBalancer::Promised { replica: by, epoch: of, last } if *by == replica(id) && *of == Epoch(epoch) => Some(*last),
            _ => None,
        })
    }

    /// The last progress that came of that primary.
    pub(crate) fn progress(&self, id: u64, epoch: u64) -> Option<LeadStage> {
        self.inbox.iter().rev().find_map(|(_, message)| match message {
            ToBalancer::Progress { replica: by, epoch: of, stage } if *by == replica(id) && *of == Epoch(epoch) => Some(*stage),
            _ => None,
        })
    }

    pub(crate) fn learn(&mut self, primary: u64, epoch: u64, learners: &[u64]) {
        let learners = learners.iter().map(|id| (replica(*id), home(replica(*id)))).collect();
        self.order(home(replica(primary)), ToServer::Learn { replica: replica(primary), epoch: Epoch(epoch), learners });
    }

    /// Seals all given, installs with the best of them as the source, activates.
    pub(crate) fn reconfigure(&mut self, sealed: &[u64], config: &Configuration) {
        for id in sealed {
            self.seal(*id, config.epoch.0);
        }
        self.run(10);
        let (source_last, source) =
            sealed.iter().filter_map(|id| self.promise(*id, config.epoch.0).map(|last| (last, *id))).max().expect("a promise");
        let source = if self.promise(config.primary.0, config.epoch.0) == Some(source_last) { config.primary.0 } else { source };
        self.install(config, source, source_last);
        self.run(500);
        assert_eq!(self.progress(config.primary.0, config.epoch.0), Some(LeadStage::Installed));
        self.activate(config.primary.0, config.epoch.0);
        self.run(20);
    }

    pub(crate) fn map(&mut self, to: u64, version: u64, map: ClusterMap) {
        self.order(server(to), ToServer::Map { version: MapVersion(version), map: Arc::new(map) });
    }

    /// Sends a write of one row; the tag asks for its result.
    pub(crate) fn write(&mut self, primary: u64, epoch: u64, key: i64) -> Tag {
        self.next_number += 1;
        let request = RequestId { session: SessionId(1), number: self.next_number, lowest: 1 };
        self.write_as(primary, epoch, key, request)
    }

    pub(crate) fn write_as(&mut self, primary: u64, epoch: u64, key: i64, request: RequestId) -> Tag {
        let tag = self.tag();
        let row = Row { key: Key(key), values: vec![Value::Integer(i64::try_from(tag.number).expect("small"))] };
        let operations = Arc::new(vec![Operation::Insert { row, on_conflict: OnConflict::Replace }]);
        let execute =
            Execute { tag, replica: replica(primary), epoch: Epoch(epoch), request: Some(request), idempotency: None, operations };
        self.order(home(replica(primary)), ToServer::Execute(execute));
        tag
    }

    pub(crate) fn result(&self, tag: Tag) -> Option<ExecuteResult> {
        self.inbox.iter().find_map(|(_, message)| match message {
            ToBalancer::Executed { tag: of, result } if *of == tag => Some(result.clone()),
            _ => None,
        })
    }

    /// Whether the write was applied and said so.
    pub(crate) fn acknowledged(&self, tag: Tag) -> bool {
        matches!(self.result(tag), Some(ExecuteResult::Done(_)))
    }

    /// Writes the keys one after the other and sees each acknowledged.
    pub(crate) fn write_all(&mut self, primary: u64, epoch: u64, keys: impl IntoIterator<Item = i64>) {
        for key in keys {
            let tag = self.write(primary, epoch, key);
            self.run(5);
            assert!(self.acknowledged(tag), "key {key}: {:?}", self.result(tag));
        }
    }

    pub(crate) fn read(&mut self, id: u64, freshness: Freshness) -> Tag {
        let tag = self.tag();
        let read = Read { tag, replica: replica(id), range: KeyRange::ALL, limit: 1_000, wanted: 0, freshness };
        self.order(home(replica(id)), ToServer::Read(read));
        tag
    }

    /// The first page of a read of all rows.
    pub(crate) fn read_page(&mut self, id: u64, freshness: Freshness, limit: u32) -> Tag {
        let tag = self.tag();
        let read = Read { tag, replica: replica(id), range: KeyRange::ALL, limit, wanted: u32::MAX, freshness };
        self.order(home(replica(id)), ToServer::Read(read));
        tag
    }

    /// A further page of it.
    pub(crate) fn read_on(&mut self, pin: Pin, from: i64, limit: u32) -> Tag {
        let tag = self.tag();
        let range = KeyRange { low: Key(from), ..KeyRange::ALL };
        self.order(home(pin.replica), ToServer::ReadOn(ReadOn { tag, pin, range, limit }));
        tag
    }

    pub(crate) fn read_result(&self, tag: Tag) -> Option<ReadResult> {
        self.inbox.iter().find_map(|(_, message)| match message {
            ToBalancer::ReadDone { tag: of, result } if *of == tag => Some(result.clone()),
            _ => None,
        })
    }

    /// The keys that a read answered, or `None` while it did not, or did not with rows.
    pub(crate) fn keys(&self, tag: Tag) -> Option<Vec<i64>> {
        match self.read_result(tag)? {
            ReadResult::Rows { rows, .. } => Some(rows.iter().map(|row| row.row.key.0).collect()),
            ReadResult::Refused { .. } => None,
        }
    }

    pub(crate) fn read_now(&mut self, id: u64, epoch: u64) -> Vec<i64> {
        let tag = self.read(id, Freshness::Linearizable(Epoch(epoch)));
        self.run(50);
        self.keys(tag).unwrap_or_else(|| panic!("r{id}: {:?}", self.read_result(tag)))
    }

    pub(crate) fn request(&mut self, to: u64, request: ServerRequest, timeout_ms: u64) -> Token {
        let token = Token(1_000_000 + self.tag().number);
        let deadline = self.now + Duration::from_millis(timeout_ms);
        self.input(server(to), ServerInput::Request { token, request, deadline });
        token
    }

    pub(crate) fn reply(&self, token: Token) -> Option<&ServerReply> {
        self.replies.iter().find(|(of, _)| *of == token).map(|(_, reply)| reply)
    }

    fn tag(&mut self) -> Tag {
        self.next_tag += 1;
        Tag { life: Incarnation(0), number: self.next_tag }
    }

    // ---- running ------------------------------------------------------------------------------------------------------------

    /// Delivers and syncs everything that is under way, without letting time pass.
    pub(crate) fn settle(&mut self) {
        for _ in 0..100_000 {
            if let Some((from, to, message)) = self.mail.pop_front() {
                self.deliver(from, to, message);
                continue;
            }
            let ready = self.nodes.iter_mut().find(|(_, node)| !node.held && !node.unsynced.is_empty());
            let Some((id, node)) = ready else { return };
            let Some((token, batch)) = node.unsynced.pop_front() else { return };
            node.disk.log.extend(batch);
            let id = *id;
            self.input(id, ServerInput::Persisted { token });
        }
        panic!("the world does not settle");
    }

    /// Lets so many milliseconds pass.
    pub(crate) fn run(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        loop {
            self.settle();
            let next = self.nodes.iter().filter_map(|(id, node)| Some((node.machine.as_ref()?.next_deadline()?, *id))).min();
            match next {
                Some((due, id)) if due <= end => {
                    self.now = self.now.max(due);
                    self.input(id, ServerInput::Tick);
                }
                Some(_) | None => break,
            }
        }
        self.now = end;
    }

    // ---- chaos --------------------------------------------------------------------------------------------------------------

    /// How many messages are under way.
    pub(crate) fn mail_count(&self) -> usize {
        self.mail.len()
    }

    /// Delivers one of the messages under way, drops it, or delivers a copy.
    pub(crate) fn deliver_one(&mut self, place: usize, drop: bool, copy: bool) {
        let Some((from, to, message)) = self.mail.remove(place) else { return };
        if copy {
            self.mail.push_back((from, to, message.clone()));
        }
        if !drop {
            self.deliver(from, to, message);
        }
    }

    /// Syncs the oldest batch of a server.
    pub(crate) fn sync_one(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&server(id)) else { return };
        if node.machine.is_none() {
            return;
        }
        let Some((token, batch)) = node.unsynced.pop_front() else { return };
        node.disk.log.extend(batch);
        self.input(server(id), ServerInput::Persisted { token });
    }

    /// Gives a server the oldest answer of its row store.
    pub(crate) fn answer_one(&mut self, id: u64) {
        let Some((token, answer)) = self.nodes.get_mut(&server(id)).and_then(|node| node.late.pop_front()) else { return };
        self.input(server(id), ServerInput::Stored { token, answer });
    }

    /// Power loss: so many records of what was not synced are on the disk all the same.
    pub(crate) fn crash_torn(&mut self, id: u64, records: usize) {
        let Some(node) = self.nodes.get_mut(&server(id)) else { return };
        let kept: Vec<_> = std::mem::take(&mut node.unsynced).into_iter().flat_map(|(_, batch)| batch).take(records).collect();
        node.disk.log.extend(kept);
        self.crash(id);
    }

    pub(crate) fn runs(&self, id: u64) -> bool {
        self.nodes.get(&server(id)).is_some_and(|node| node.machine.is_some())
    }

    /// Ticks a server whose deadline has come.
    pub(crate) fn tick_due(&mut self, id: u64) {
        let due = self.nodes.get(&server(id)).and_then(|node| node.machine.as_ref()?.next_deadline());
        if due.is_some_and(|due| due <= self.now) {
            self.input(server(id), ServerInput::Tick);
        }
    }

    fn deliver(&mut self, from: NodeId, to: NodeId, message: Message) {
        let server = match to {
            NodeId::Server(server) => server,
            NodeId::Balancer(_) => {
                if let (NodeId::Server(from), Message::ToBalancer(message)) = (from, message) {
                    self.inbox.push((from, message));
                }
                return;
            }
        };
        let from_cut = matches!(from, NodeId::Server(from) if self.cut.contains(&from));
        if from_cut || self.cut.contains(&server) {
            return;
        }
        if let Message::Replica(message) = &message {
            if self.lose.contains(body_name(&message.body)) {
                return;
            }
            self.heard.push(message.clone());
        }
        self.input(server, ServerInput::Message { from, message });
    }

    fn input(&mut self, to: ServerId, input: ServerInput) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&to) else { return };
        let Some(machine) = &mut node.machine else { return };
        let mut out = Vec::new();
        machine.step(now, input, &mut out);
        // I2 and I4: what two replicas take for committed is the same.
        for view in machine.replicas().filter(|view| view.lost().is_none()) {
            let commit = view.watermarks().commit;
            let mut index = self.checked.get(&view.id()).copied().unwrap_or_default().min(commit).max(view.log().base().index).next();
            while index <= commit {
                let entry = view.log().get(index).expect("in the log");
                let known = self.committed.entry(index).or_insert_with(|| Arc::clone(entry));
                assert_eq!(known, entry, "I4: {} at {index}", view.id());
                index = index.next();
            }
            self.checked.insert(view.id(), commit);
        }
        let mut answers = Vec::new();
        for effect in out {
            match effect {
                ServerEffect::Send { to: NodeId::Balancer(_), message: Message::ToBalancer(message) } => self.inbox.push((to, message)),
                ServerEffect::Send { to: receiver, message } => self.mail.push_back((NodeId::Server(to), receiver, message)),
                ServerEffect::Persist { token, batch } => {
                    assert!(!batch.is_empty(), "an empty batch");
                    node.unsynced.push_back((token, batch));
                }
                ServerEffect::Store { token, replica, command } => answers.push((token, node.disk.execute(replica, command))),
                ServerEffect::Reply { token, reply } => self.replies.push((token, reply)),
                ServerEffect::Note(note) => self.notes.push(note),
            }
        }
        if self.late_answers {
            if let Some(node) = self.nodes.get_mut(&to) {
                node.late.extend(answers);
            }
            return;
        }
        for (token, answer) in answers {
            self.input(to, ServerInput::Stored { token, answer });
        }
    }
}

/// Reads the log back, as the storage contract says.
fn recover(disk: &mut Disk) -> Recovered {
    let mut recovered = Recovered::default();
    for record in &disk.log {
        match record {
            LogRecord::Create { replica, shard } => {
                let new = RecoveredReplica {
                    shard: *shard,
                    promised: Epoch(0),
                    commit: LogIndex(0),
                    base: Position::ZERO,
                    entries: Vec::new(),
                    view: Err(LostReason::RowsMissing),
                };
                assert!(recovered.replicas.insert(*replica, new).is_none(), "R17: {replica} was created twice");
            }
            LogRecord::Remove { replica } => {
                recovered.replicas.remove(replica);
            }
            LogRecord::Lives(lives) => recovered.lives = lives.clone(),
            LogRecord::Map { version, map } => recovered.map = Some((*version, Arc::clone(map))),
            LogRecord::Promise { replica, epoch } => {
                let state = recovered.replicas.get_mut(replica).expect("a replica");
                assert!(*epoch > state.promised, "promises grow");
                state.promised = *epoch;
            }
            LogRecord::Truncate { replica, after } => {
                let state = recovered.replicas.get_mut(replica).expect("a replica");
                assert!(*after >= state.commit, "a committed entry is dropped");
                state.entries.retain(|entry| entry.position.index <= *after);
            }
            LogRecord::Append { replica, entries } => {
                let state = recovered.replicas.get_mut(replica).expect("a replica");
                for entry in entries {
                    let last = state.entries.last().map_or(state.base.index, |entry| entry.position.index);
                    assert_eq!(entry.position.index, last.next(), "an append follows");
                    state.entries.push(Arc::clone(entry));
                }
            }
            LogRecord::Commit { replica, index } => {
                let state = recovered.replicas.get_mut(replica).expect("a replica");
                assert!(*index > state.commit, "commit grows");
                state.commit = *index;
            }
            LogRecord::Reset { replica, base, stage } => {
                let state = recovered.replicas.get_mut(replica).expect("a replica");
                (state.base, state.entries) = (*base, Vec::new());
                if let Some(rows) = disk.rows.get_mut(replica)
                    && rows.state.applied.index < base.index
                {
                    rows.swap(*stage, *base);
                }
            }
            LogRecord::Compact { replica, base } => {
                let state = recovered.replicas.get_mut(replica).expect("a replica");
                state.base = *base;
                state.entries.retain(|entry| entry.position.index > base.index);
            }
        }
    }
    for (id, state) in &mut recovered.replicas {
        if let Some(rows) = disk.rows.get(id) {
            state.view = if rows.state.applied.index < state.base.index { Err(LostReason::RowsBehind) } else { Ok(rows.state.clone()) };
        }
    }
    recovered
}
