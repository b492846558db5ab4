//! The server driver with a real machine, a log and rows in memory, and a peer that plays the balancer.

use crate::{
    driver::{NodeError, StorageMode},
    entropy::Entropy,
    log::{Log, LogError},
    net::{Network, TokioNetwork},
    node::{NodeParts, ServerNode, ServerParts},
    peer::{Counters, Identity, Inbound, PeerParts, PeerSettings, Peers, memory::Memory},
    rows::{RowStore, StoreError},
    secret::Secret,
    telemetry::{Measured, Telemetry},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use twinshard_core::{
    command::{OnConflict, Operation, RequestId, Verdict},
    config::Configuration,
    id::{BalancerId, ClusterId, Epoch, Incarnation, MapVersion, NodeId, OwnerNumber, Position, ReplicaId, ServerId, SessionId, ShardId},
    map::{Address, ClusterMap, ReplicaRecord, ReplicaStage, ServerGoal, ServerRecord, ShardRecord},
    message::{Execute, ExecuteResult, Install, LeadStage, Message, Tag, ToBalancer, ToServer},
    planted::Planted,
    request::{RequestError, ServerReply, ServerRequest},
    schema::{Column, ColumnType, Schema},
    server::{ServerConfig, ServerSettings},
    storage::{LogBatch, Recovered, RowPage, RowQuery, StoreAnswer, StoreCommand},
    value::{Key, Row, StoredRow, Value},
};

const CLUSTER: ClusterId = ClusterId(77);
const SECRET: Secret = Secret::new([5; 32]);
const SERVER: ServerId = ServerId(1);
const REPLICA: ReplicaId = ReplicaId(1);
const BALANCER: NodeId = NodeId::Balancer(BalancerId(1));

/// What the stores did, and what they shall do.
#[derive(Clone, Default)]
struct Script {
    persists: Arc<AtomicUsize>,
    records: Arc<AtomicUsize>,
    log_fails: Arc<AtomicBool>,
    rows_fail: Arc<AtomicBool>,
    closed: Arc<AtomicUsize>,
}

struct TestLog(Script);

impl Log for TestLog {
    fn persist(&mut self, batches: &[LogBatch]) -> Result<(), LogError> {
        if self.0.log_fails.load(Ordering::SeqCst) {
            return Err(LogError::Io(io::ErrorKind::StorageFull.into()));
        }
        self.0.persists.fetch_add(1, Ordering::SeqCst);
        self.0.records.fetch_add(batches.iter().map(Vec::len).sum(), Ordering::SeqCst);
        Ok(())
    }
}

impl Drop for TestLog {
    fn drop(&mut self) {
        self.0.closed.fetch_add(1, Ordering::SeqCst);
    }
}

/// As much of a row store as one replica that leads alone asks for.
#[derive(Default)]
struct TestRows {
    script: Script,
    views: BTreeMap<ReplicaId, BTreeMap<Key, StoredRow>>,
}

impl RowStore for TestRows {
    fn execute(&mut self, replica: ReplicaId, command: StoreCommand) -> Result<StoreAnswer, StoreError> {
        if self.script.rows_fail.load(Ordering::SeqCst) {
            return Err(StoreError::Failed("no more".to_owned()));
        }
        let view = self.views.entry(replica).or_default();
        Ok(match command {
            StoreCommand::Flush(batch) => {
                for (key, row) in batch.rows {
                    match row {
                        Some(row) => view.insert(key, row),
                        None => view.remove(&key),
                    };
                }
                StoreAnswer::Flushed { durable: batch.applied }
            }
            StoreCommand::Read(RowQuery::Range { range, limit, .. }) => {
                let mut rows: Vec<StoredRow> = view.range(range.low..=range.high).map(|(_, row)| row.clone()).collect();
                let more = rows.len() > limit as usize;
                rows.truncate(limit as usize);
                StoreAnswer::Rows(RowPage { rows, more })
            }
            StoreCommand::Read(RowQuery::Keys(keys)) => {
                StoreAnswer::Rows(RowPage { rows: keys.iter().filter_map(|key| view.get(key).cloned()).collect(), more: false })
            }
            StoreCommand::Create | StoreCommand::Destroy | StoreCommand::CloseSnapshot(_) => StoreAnswer::Done,
            StoreCommand::OpenSnapshot(_)
            | StoreCommand::ReadSnapshot { .. }
            | StoreCommand::ReadPinned { .. }
            | StoreCommand::Stage { .. }
            | StoreCommand::SwapStage { .. } => StoreAnswer::Unavailable,
        })
    }
}

impl Drop for TestRows {
    fn drop(&mut self) {
        self.script.closed.fetch_add(1, Ordering::SeqCst);
    }
}

/// A server, and a peer that plays the balancer.
struct World<N: Network> {
    script: Script,
    server: ServerNode,
    balancer: Peers<N>,
    inbound: mpsc::Receiver<Inbound>,
    /// What came in a frame and was not looked at yet.
    heard: VecDeque<Message>,
    map: Arc<ClusterMap>,
    // Held open: the balancer's transport watches them.
    _book: watch::Sender<Option<(MapVersion, Arc<ClusterMap>)>>,
}

impl<N: Network> World<N> {
    async fn start(network: N, storage: StorageMode) -> Self {
        let script = Script::default();
        let node = NodeParts {
            network: network.clone(),
            secret: SECRET,
            entropy: Entropy::from_seed(1),
            storage,
            peers: PeerSettings::default(),
            notes: None,
        };
        let config = ServerConfig {
            server: SERVER,
            owner: OwnerNumber(1),
            incarnation: Incarnation(1),
            settings: ServerSettings::default(),
            planted: Planted::NONE,
        };
        let parts = ServerParts {
            node,
            cluster: CLUSTER,
            peer_address: "127.0.0.1:0".to_owned(),
            config,
            recovered: Recovered::default(),
            log: TestLog(script.clone()),
            rows: TestRows { script: script.clone(), views: BTreeMap::new() },
        };
        let server = ServerNode::start(parts).await.expect("starts");
        let map = Arc::new(map(server.peer_address()));
        let (book, newest) = watch::channel(Some((MapVersion(1), Arc::clone(&map))));
        let parts = PeerParts {
            network,
            settings: PeerSettings::default(),
            secret: SECRET,
            entropy: Entropy::from_seed(2),
            identity: watch::channel(Some(Identity { cluster: CLUSTER, node: BALANCER })).1,
            book: newest,
            counters: Arc::new(Counters::default()),
        };
        let (balancer, inbound) = Peers::start(parts, None);
        Self { script, server, balancer, inbound, heard: VecDeque::new(), map, _book: book }
    }

    fn tell(&mut self, message: ToServer) {
        self.balancer.send(NodeId::Server(SERVER), Message::ToServer(message));
    }

    /// The next message for which `take` gives something.
    async fn hear<T>(&mut self, mut take: impl FnMut(ToBalancer) -> Option<T>) -> T {
        let heard = async {
            loop {
                while let Some(message) = self.heard.pop_front() {
                    if let Message::ToBalancer(message) = message
                        && let Some(taken) = take(message)
                    {
                        return taken;
                    }
                }
                let inbound = self.inbound.recv().await.expect("open");
                assert_eq!(inbound.from, NodeId::Server(SERVER));
                self.heard.extend(inbound.messages);
            }
        };
        timeout(Duration::from_secs(20), heard).await.expect("in time")
    }

    /// Creates the replica and makes it lead alone.
    async fn lead(&mut self) {
        let map = Arc::clone(&self.map);
        self.tell(ToServer::Map { version: MapVersion(1), map });
        self.tell(ToServer::Create { version: MapVersion(1), incarnation: Incarnation(1), replica: REPLICA, shard: ShardId(1) });
        self.hear(|message| matches!(message, ToBalancer::Created { replica: REPLICA }).then_some(())).await;
        self.tell(ToServer::Install(Install {
            config: config(),
            servers: BTreeMap::from([(REPLICA, SERVER)]),
            source: REPLICA,
            source_server: SERVER,
            source_last: Position::ZERO,
        }));
        self.hear(|message| matches!(message, ToBalancer::Progress { stage: LeadStage::Installed, .. }).then_some(())).await;
        self.tell(ToServer::Activate { replica: REPLICA, epoch: Epoch(1) });
        self.hear(|message| matches!(message, ToBalancer::Progress { stage: LeadStage::Active, .. }).then_some(())).await;
    }

    fn write(&mut self, number: u64) {
        let row = Row { key: Key(i64::try_from(number).expect("small")), values: vec![Value::Text("x".into())] };
        self.tell(ToServer::Execute(Execute {
            tag: Tag { life: Incarnation(0), number },
            replica: REPLICA,
            epoch: Epoch(1),
            request: Some(RequestId { session: SessionId(1), number, lowest: 1 }),
            idempotency: None,
            operations: Arc::new(vec![Operation::Insert { row, on_conflict: OnConflict::Replace }]),
        }));
    }
}

fn config() -> Configuration {
    Configuration { epoch: Epoch(1), primary: REPLICA, members: vec![REPLICA], write_quorum: 1 }
}

fn map(peer: &str) -> ClusterMap {
    let mut map = ClusterMap { cluster: CLUSTER, ..ClusterMap::default() };
    let column = |name: &str, dtype| Column { name: name.into(), dtype };
    map.schema = Schema::new(vec![column("id", ColumnType::Number), column("name", ColumnType::String)]).ok();
    let address = Some(Address { http: "nowhere:1".into(), peer: peer.into() });
    map.servers
        .insert(SERVER, ServerRecord { name: "S1".into(), number: 1, goal: ServerGoal::Run, address, incarnation: Some(Incarnation(1)) });
    map.shards.insert(
        ShardId(1),
        ShardRecord {
            name: "sh1".into(),
            low: Key(0),
            size: 10_000,
            current: None,
            pending: Some(config()),
            placement: BTreeSet::from([SERVER]),
            wanted_primary: None,
        },
    );
    map.replicas.insert(REPLICA, ReplicaRecord { shard: ShardId(1), server: SERVER, stage: ReplicaStage::Minted });
    map.counters.replica = REPLICA;
    map.counters.epoch = Epoch(1);
    map.counters.server = SERVER;
    map.counters.session = SessionId(1);
    map.sessions.insert(SessionId(1), BalancerId(1));
    map
}

/// The machine leads, takes a burst of writes, and answers each once it is durable. Gives how many fsyncs the burst took.
async fn burst<N: Network>(world: &mut World<N>, writes: u64) -> usize {
    let before = world.script.persists.load(Ordering::SeqCst);
    for number in 1..=writes {
        world.write(number);
    }
    let mut answered = BTreeSet::new();
    while answered.len() < usize::try_from(writes).expect("small") {
        let (tag, result) = world
            .hear(|message| match message {
                ToBalancer::Executed { tag, result } => Some((tag, result)),
                _ => None,
            })
            .await;
        let ExecuteResult::Done(outcome) = result else { panic!("{result:?}") };
        assert_eq!(outcome.verdict, Verdict::Applied { written_count: 1, skipped_count: 0 });
        assert!(answered.insert(tag.number), "answered twice: {tag:?}");
    }
    assert!(world.script.records.load(Ordering::SeqCst) > 0);
    world.script.persists.load(Ordering::SeqCst) - before
}

/// How often that work failed, once it was done at all.
fn errors(telemetry: &Telemetry, work: &str) -> Option<u64> {
    let name = format!("twinshard_storage_errors_total{{work=\"{work}\"}} ");
    telemetry.text(Measured::default()).lines().find_map(|line| line.strip_prefix(&name)?.parse().ok())
}

fn simulated() -> StorageMode {
    StorageMode::Inline(Arc::new(|_| Duration::from_millis(4)))
}

#[tokio::test(start_paused = true)]
async fn writes_that_come_together_share_an_fsync() {
    let mut world = World::start(Memory::default(), simulated()).await;
    world.lead().await;
    let persists = burst(&mut world, 500).await;
    assert!((1..=6).contains(&persists), "{persists} fsyncs for 500 writes that came in a few frames");

    let handle = world.server.handle();
    assert_eq!(handle.map().map(|(version, _)| version), Some(MapVersion(1)), "the transport's map is the handle's");
    let read = ServerRequest::Log { shard: "sh1".into(), from: twinshard_core::id::LogIndex(1), limit: 1_000 };
    match handle.ask(read, Duration::from_secs(5)).await {
        ServerReply::Log { entries, last } => {
            assert_eq!(last.0, 501, "the barrier and the writes");
            assert_eq!(entries.len(), 501);
        }
        other => panic!("{other:?}"),
    }
    world.server.stop().stop();
    world.server.join().await.expect("ends well");
    assert_eq!(world.script.closed.load(Ordering::SeqCst), 2, "log and rows are closed");
    assert_eq!(handle.ask(ServerRequest::Shards, Duration::from_secs(1)).await, ServerReply::Failed(RequestError::Overloaded));
}

#[tokio::test]
async fn the_same_runs_on_threads_over_real_sockets() {
    let mut world = World::start(TokioNetwork, StorageMode::Threads).await;
    world.lead().await;
    burst(&mut world, 2_000).await;
    let stop = world.server.stop();
    stop.stop();
    world.server.join().await.expect("ends well");
    assert!(*stop.watch().borrow());
    assert_eq!(world.script.closed.load(Ordering::SeqCst), 2, "log and rows are closed");
}

#[tokio::test(start_paused = true)]
async fn a_log_that_fails_stops_the_node_with_the_reason() {
    let mut world = World::start(Memory::default(), simulated()).await;
    world.lead().await;
    world.script.log_fails.store(true, Ordering::SeqCst);
    let telemetry = world.server.handle().telemetry().clone();
    assert_eq!(errors(&telemetry, "persist"), Some(0));
    world.write(1);
    let mut stopped = world.server.stop().watch();
    timeout(Duration::from_secs(20), stopped.wait_for(|stopped| *stopped)).await.expect("in time").expect("watched");
    let ended = world.server.join().await;
    assert!(matches!(ended, Err(NodeError::Log(LogError::Io(_)))), "{ended:?}");
    assert_eq!(errors(&telemetry, "persist"), Some(1));
    assert_eq!(world.script.closed.load(Ordering::SeqCst), 2, "log and rows are closed");
    assert!(world.inbound.try_recv().is_err(), "nothing was acknowledged");
}

#[tokio::test]
async fn a_row_store_that_fails_stops_the_node_with_the_reason() {
    let mut world = World::start(TokioNetwork, StorageMode::Threads).await;
    world.script.rows_fail.store(true, Ordering::SeqCst);
    let telemetry = world.server.handle().telemetry().clone();
    assert!(errors(&telemetry, "rows-write").is_none_or(|count| count == 0));
    let map = Arc::clone(&world.map);
    world.tell(ToServer::Map { version: MapVersion(1), map });
    world.tell(ToServer::Create { version: MapVersion(1), incarnation: Incarnation(1), replica: REPLICA, shard: ShardId(1) });
    let ended = timeout(Duration::from_secs(20), world.server.join()).await.expect("in time");
    assert!(matches!(ended, Err(NodeError::Rows(StoreError::Failed(_)))), "{ended:?}");
    // Its thread may have been given more before the node knew of the first.
    assert!(errors(&telemetry, "rows-write").is_some_and(|count| count >= 1));
}

#[tokio::test]
async fn a_taken_port_is_told_at_once() {
    let first = World::start(TokioNetwork, StorageMode::Threads).await;
    let parts = ServerParts {
        node: NodeParts {
            network: TokioNetwork,
            secret: SECRET,
            entropy: Entropy::from_seed(1),
            storage: StorageMode::Threads,
            peers: PeerSettings::default(),
            notes: None,
        },
        cluster: CLUSTER,
        peer_address: first.server.peer_address().to_owned(),
        config: ServerConfig {
            server: SERVER,
            owner: OwnerNumber(1),
            incarnation: Incarnation(1),
            settings: ServerSettings::default(),
            planted: Planted::NONE,
        },
        recovered: Recovered::default(),
        log: TestLog(Script::default()),
        rows: TestRows::default(),
    };
    let refused = ServerNode::start(parts).await;
    assert!(matches!(refused, Err(NodeError::Listen { .. })), "{refused:?}");
}

/// The same script in simulated time, with everything that was answered and when.
async fn trace() -> Vec<(Duration, ToBalancer)> {
    let began = tokio::time::Instant::now();
    let mut world = World::start(Memory::default(), simulated()).await;
    world.lead().await;
    let mut told = Vec::new();
    for number in 1..=200 {
        world.write(number);
        if number % 10 == 0 {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }
    while told.len() < 200 {
        let answer = world.hear(|message| matches!(message, ToBalancer::Executed { .. }).then_some(message)).await;
        told.push((began.elapsed(), answer));
    }
    told
}

#[test]
fn two_runs_in_simulated_time_are_the_same() {
    let run = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true).build().expect("a runtime").block_on(trace())
    };
    assert_eq!(run(), run());
}
