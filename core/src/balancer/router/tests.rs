//! Stories of the router, told through its seam: requests and answers in, messages and replies out.

use super::*;
use crate::{
    balancer::Policy,
    command::{Idempotency, OnConflict, Operation, Outcome, RequestId, Verdict},
    config::Configuration,
    id::{LogIndex, Position},
    map::{ReplicaRecord, ReplicaStage, ServerGoal, ServerRecord, ShardRecord},
    message::{Execute, ExecuteResult, Freshness, Read, ReadRefusal, ReadResult},
    request::{Applied, Consistency, Rows, Written},
    schema::{Column, ColumnType, Schema},
    value::{Key, KeyRange, Row, StoredRow},
};
use std::collections::VecDeque;

mod chaos;
mod pages;
mod reads;
mod writes;

const S1: ServerId = ServerId(1);
const S2: ServerId = ServerId(2);
const S3: ServerId = ServerId(3);
const SH1: ShardId = ShardId(1);
const SH2: ShardId = ShardId(2);
const SESSION: SessionId = SessionId(7);

fn ms(ms: u64) -> Instant {
    Instant(ms * 1_000_000)
}

/// Three servers, each with a replica of every shard: shard 1 spans keys 0 to 99, shard 2 keys 200 to 299, shard 3 keys 300 to 399. Replica
/// 12 is of shard 1 on server 2. Epoch 1, led by server 1.
fn cluster() -> ClusterMap {
    let mut map = ClusterMap {
        schema: Some(Schema::new(vec![Column { name: "id".into(), dtype: ColumnType::Number }]).unwrap()),
        ..ClusterMap::default()
    };
    for server in 1..=3 {
        let record = ServerRecord {
            name: format!("Server{server}").into(),
            number: server,
            goal: ServerGoal::Run,
            address: None,
            incarnation: None,
        };
        map.servers.insert(ServerId(server), record);
    }
    for (shard, low) in [(1, 0), (2, 200), (3, 300)] {
        let members: Vec<_> = (1..=3).map(|server| ReplicaId(shard * 10 + server)).collect();
        for (replica, server) in members.iter().zip(1..) {
            let record = ReplicaRecord { shard: ShardId(shard), server: ServerId(server), stage: ReplicaStage::Ready };
            map.replicas.insert(*replica, record);
        }
        let current = Configuration { epoch: Epoch(1), primary: members[0], members, write_quorum: 2 };
        let record = ShardRecord {
            name: format!("sh{shard}").into(),
            low: Key(low),
            size: 100,
            current: Some(current),
            pending: None,
            placement: map.servers.keys().copied().collect(),
            wanted_primary: None,
        };
        map.shards.insert(ShardId(shard), record);
    }
    map
}

/// A router with whatever it wants done.
struct World {
    router: Router,
    now: Instant,
    version: u64,
    map: ClusterMap,
    sent: VecDeque<(ServerId, ToServer)>,
    replies: Vec<(Token, Reply)>,
    notes: Vec<Note>,
}

impl World {
    /// Before the router knows anything.
    fn blank(config: &BalancerConfig) -> Self {
        Self {
            router: Router::new(config),
            now: ms(1_000),
            version: 0,
            map: cluster(),
            sent: VecDeque::new(),
            replies: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// With the map and a session.
    fn new() -> Self {
        Self::with_config(&BalancerConfig::default())
    }

    fn with_config(config: &BalancerConfig) -> Self {
        let mut world = Self::blank(config);
        world.publish();
        world.with(|router, now, out| router.set_session(now, SESSION, out));
        world
    }

    fn with(&mut self, work: impl FnOnce(&mut Router, Instant, &mut Vec<BalancerEffect>)) {
        let mut out = Vec::new();
        work(&mut self.router, self.now, &mut out);
        self.router.check();
        for effect in out {
            match effect {
                BalancerEffect::Send { to, message: Message::ToServer(message) } => self.sent.push_back((to, message)),
                BalancerEffect::Reply { token, reply } => self.replies.push((token, reply)),
                BalancerEffect::Note(note) => self.notes.push(note),
                other => panic!("{other:?}"),
            }
        }
    }

    fn publish(&mut self) {
        self.version += 1;
        let (version, map) = (MapVersion(self.version), Arc::new(self.map.clone()));
        self.with(|router, now, out| router.set_map(now, version, &map, out));
    }

    /// The shard is led by this server in a new epoch.
    fn reconfigure(&mut self, shard: ShardId, epoch: u64, primary: ServerId) {
        let config = self.map.shards.get_mut(&shard).unwrap().current.as_mut().unwrap();
        config.epoch = Epoch(epoch);
        config.primary = ReplicaId(shard.0 * 10 + primary.0);
        self.publish();
    }

    fn health(&mut self, server: ServerId, health: Health) {
        self.with(|router, now, out| router.set_health(now, server, health, out));
    }

    fn ask(&mut self, token: u64, request: Request) {
        let deadline = self.now + Duration::from_millis(10_000);
        self.with(|router, now, out| router.request(now, Token(token), request, deadline, out));
    }

    fn write(&mut self, token: u64, keys: &[i64]) {
        self.write_keyed(token, keys, None);
    }

    fn write_keyed(&mut self, token: u64, keys: &[i64], idempotency: Option<Idempotency>) {
        let operations = keys.iter().map(|key| put(*key)).collect();
        self.ask(token, Request::Write { operations, on_conflict: None, idempotency });
    }

    fn read(&mut self, token: u64, low: i64, high: i64, limit: u32) {
        let range = KeyRange { low: Key(low), high: Key(high) };
        self.ask(token, Request::Read { range, limit, consistency: Consistency::Linearizable });
    }

    fn answer(&mut self, from: ServerId, answer: ToBalancer) {
        self.with(|router, now, out| router.message(now, from, answer, out));
    }

    fn executed(&mut self, from: ServerId, tag: Tag, result: ExecuteResult) {
        self.answer(from, ToBalancer::Executed { tag, result });
    }

    fn page(&mut self, from: ServerId, tag: Tag, keys: &[i64], more: bool) {
        let rows = keys.iter().map(|key| row(*key)).collect();
        let result = ReadResult::Rows { rows, more, at: position(40), read_index: None, lag: 3, pin: None };
        self.answer(from, ToBalancer::ReadDone { tag, result });
    }

    fn refuse(&mut self, from: ServerId, tag: Tag, reason: ReadRefusal) {
        self.answer(from, ToBalancer::ReadDone { tag, result: ReadResult::Refused { epoch: Epoch(1), reason } });
    }

    /// Lets time pass, ticking whenever the router wants it.
    fn pass(&mut self, span_ms: u64) {
        let end = self.now + Duration::from_millis(span_ms);
        while let Some(at) = self.router.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.with(Router::tick);
        }
        self.now = end;
    }

    /// The only command that was sent since the last look, and to whom.
    fn command(&mut self) -> (ServerId, Execute) {
        let all = self.commands();
        assert_eq!(all.len(), 1, "{all:?}");
        all[0].clone()
    }

    fn commands(&mut self) -> Vec<(ServerId, Execute)> {
        let take = |(to, message)| match message {
            ToServer::Execute(execute) => (to, execute),
            other => panic!("{other:?}"),
        };
        self.sent.drain(..).map(take).collect()
    }

    fn reads(&mut self) -> Vec<(ServerId, Read)> {
        let take = |(to, message)| match message {
            ToServer::Read(read) => (to, read),
            other => panic!("{other:?}"),
        };
        self.sent.drain(..).map(take).collect()
    }

    /// The only read that was sent since the last look, and to whom.
    fn one_read(&mut self) -> (ServerId, Read) {
        let all = self.reads();
        assert_eq!(all.len(), 1, "{all:?}");
        all[0].clone()
    }

    /// The only reply since the last look.
    fn reply(&mut self) -> Reply {
        assert_eq!(self.replies.len(), 1, "{:?}", self.replies);
        self.replies.remove(0).1
    }

    fn error(&mut self) -> RequestError {
        match self.reply() {
            Reply::Failed(error) => error,
            other => panic!("{other:?}"),
        }
    }

    fn rows(&mut self) -> Rows {
        match self.reply() {
            Reply::Rows(rows) => *rows,
            other => panic!("{other:?}"),
        }
    }

    fn is_quiet(&self) -> bool {
        self.sent.is_empty() && self.replies.is_empty()
    }
}

fn position(index: u64) -> Position {
    Position { epoch: Epoch(1), index: LogIndex(index) }
}

fn put(key: i64) -> Operation {
    Operation::Insert { row: Row { key: Key(key), values: Vec::new() }, on_conflict: OnConflict::Skip }
}

fn row(key: i64) -> StoredRow {
    StoredRow { version: position(1), row: Row { key: Key(key), values: Vec::new() } }
}

fn done(index: u64) -> ExecuteResult {
    ExecuteResult::Done(Outcome { verdict: Verdict::Applied { written_count: 1, skipped_count: 0 }, position: position(index) })
}

fn failed(verdict: Verdict) -> ExecuteResult {
    ExecuteResult::Done(Outcome { verdict, position: position(1) })
}

fn not_primary(epoch: u64) -> ExecuteResult {
    ExecuteResult::NotPrimary { epoch: Epoch(epoch), lame: false }
}

fn id(session: SessionId, number: u64, lowest: u64) -> Option<RequestId> {
    Some(RequestId { session, number, lowest })
}

fn key(text: &str) -> Option<Idempotency> {
    Some(Idempotency { key: text.into(), body_hash: 1 })
}

fn keys(rows: &[StoredRow]) -> Vec<i64> {
    rows.iter().map(|row| row.row.key.0).collect()
}
