//! A whole cluster in one process: a balancer and the servers it asks for, the real machines, drivers and transport; in simulated time
//! over a network in memory, and on threads over real sockets.

use super::{
    stores::{InProcess, MemoryRegister},
    *,
};
use crate::{net::TokioNetwork, peer::memory::Memory};
use std::{collections::BTreeMap, sync::Mutex, time::Duration};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout},
};
use twinshard_core::{
    command::{OnConflict, Operation},
    effect::Note,
    id::ServerId,
    request::{Consistency, Health, NewServer, NewShard, Reply, Request, Status},
    schema::{Column, ColumnType, Schema},
    value::{Key, KeyRange, Row, Value},
};

const CLUSTER: ClusterId = ClusterId(99);
/// The deadline of a client (API.md).
const WITHIN: Duration = Duration::from_secs(10);

struct Cluster<N: Network> {
    balancer: BalancerNode,
    servers: InProcess<N>,
    register: MemoryRegister,
    node: NodeParts<N>,
    notes: mpsc::Receiver<Note>,
}

impl<N: Network> Cluster<N> {
    async fn start(network: N, storage: StorageMode) -> Self {
        let (sink, notes) = mpsc::channel(10_000);
        let sink: NoteSink = Arc::new(move |_, _, note| sink.try_send(note.clone()).expect("room for every note"));
        let node = NodeParts {
            network,
            secret: Secret::new([3; 32]),
            entropy: Entropy::from_seed(11),
            storage,
            peers: PeerSettings::default(),
            notes: Some(sink),
        };
        let register = MemoryRegister::new(CLUSTER);
        let servers = InProcess::new(node.clone(), CLUSTER);
        let balancer = balancer(&node, &register, &servers).await;
        Self { balancer, servers, register, node, notes }
    }

    async fn ask(&self, request: Request) -> Reply {
        self.balancer.handle().ask(request, WITHIN).await
    }

    /// Two shards of 1,000 keys on three servers.
    async fn init(&self) {
        let column = |name: &str, dtype| Column { name: name.into(), dtype };
        let schema = Schema::new(vec![column("id", ColumnType::Number), column("name", ColumnType::String)]).expect("a schema");
        let shard = |name: &str, low| NewShard { name: name.into(), low, size: 1_000 };
        let server = |number| NewServer { name: format!("Server{number}").into(), shards: vec!["sh1".into(), "sh2".into()] };
        let init = Request::Init {
            server_count: Some(3),
            schema,
            shards: vec![shard("sh1", 0), shard("sh2", 1_000)],
            servers: Some((0..3).map(server).collect()),
            on_conflict: None,
            by_name: false,
        };
        let reply = self.balancer.handle().ask(init, Duration::from_secs(60)).await;
        assert_eq!(reply, Reply::Initialised);
    }

    /// Writes these keys at once, each by a client of its own, and gives the longest that one waited.
    async fn write(&self, keys: impl Iterator<Item = i64>, text: &str) -> Duration {
        let began = Instant::now();
        let mut clients = JoinSet::new();
        for key in keys {
            let handle = self.balancer.handle();
            let row = Row { key: Key(key), values: vec![Value::Text(text.into())] };
            let operations = vec![Operation::Insert { row, on_conflict: OnConflict::Replace }];
            clients
                .spawn(async move { (key, handle.ask(Request::Write { operations, on_conflict: None, idempotency: None }, WITHIN).await) });
        }
        while let Some(written) = clients.join_next().await {
            let (key, reply) = written.expect("no panic");
            match reply {
                Reply::Written(written) => assert_eq!(written.written_count, 1, "key {key}"),
                other => panic!("key {key}: {other:?}"),
            }
        }
        began.elapsed()
    }

    /// All rows, page by page.
    async fn read(&self) -> BTreeMap<i64, String> {
        let mut found = BTreeMap::new();
        let mut low = Key(i64::MIN);
        loop {
            let range = KeyRange { low, high: Key(i64::MAX) };
            match self.ask(Request::Read { range, limit: 100, consistency: Consistency::Linearizable }).await {
                Reply::Rows(page) => {
                    for stored in page.rows {
                        let Some(Value::Text(text)) = stored.row.values.first() else { panic!("{stored:?}") };
                        assert!(found.insert(stored.row.key.0, text.to_string()).is_none(), "{} came twice", stored.row.key);
                    }
                    match page.next {
                        Some(next) => low = next,
                        None => return found,
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    async fn status(&self) -> Status {
        match self.ask(Request::Status { fresh: false }).await {
            Reply::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// The server that leads the shard.
    async fn primary(&self, shard: &str) -> ServerId {
        let status = self.status().await;
        let id = status.map.shard_named(shard).expect("there");
        status.shards[&id].primary.expect("it is led")
    }

    /// Stops a server behind the cluster's back; what was noted before is forgotten.
    async fn kill(&mut self, server: ServerId) {
        while self.notes.try_recv().is_ok() {}
        self.servers.kill(server).await;
    }

    /// Waits until every shard has three members that answer and nothing is on its way.
    async fn whole(&self) {
        let whole = async {
            loop {
                let status = self.status().await;
                let healthy = status.servers.values().all(|server| server.health == Health::Up);
                let settled = status.shards.values().all(|shard| {
                    let members = shard.current.as_ref().map_or(0, |config| config.members.len());
                    shard.pending.is_none() && members == 3 && shard.tolerance.write == 1
                });
                if healthy && settled {
                    return;
                }
                // The status is a question, not a subscription.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(30), whole).await.expect("whole in time");
    }

    /// Waits for a note.
    async fn hear(&mut self, wanted: impl Fn(&Note) -> bool) {
        let heard = async {
            while let Some(note) = self.notes.recv().await {
                if wanted(&note) {
                    return;
                }
            }
        };
        timeout(Duration::from_secs(30), heard).await.expect("in time");
    }

    async fn close(self) {
        self.balancer.stop().stop();
        self.balancer.join().await.expect("ends well");
        self.servers.close().await;
    }
}

async fn balancer<N: Network>(node: &NodeParts<N>, register: &MemoryRegister, servers: &InProcess<N>) -> BalancerNode {
    // Less patient than in production: the tests on real time are to be short.
    let replace_after = twinshard_core::time::Duration::from_millis(1_000);
    let config = BalancerConfig { seed: 5, replace_after, ..BalancerConfig::default() };
    let parts = BalancerParts { node: node.clone(), config, register: register.clone(), provisioner: servers.clone() };
    BalancerNode::start(parts).await.expect("starts")
}

fn simulated() -> StorageMode {
    StorageMode::Inline(Arc::new(|_| Duration::from_micros(700)))
}

fn rows(keys: impl Iterator<Item = i64>, text: &str) -> BTreeMap<i64, String> {
    keys.map(|key| (key, text.to_owned())).collect()
}

/// Init, write, read; the primary of a shard goes and comes back; write and read again.
async fn story<N: Network>(network: N, storage: StorageMode) {
    let mut cluster = Cluster::start(network, storage).await;
    cluster.init().await;
    cluster.write((0..2_000).step_by(10), "first").await;
    assert_eq!(cluster.read().await, rows((0..2_000).step_by(10), "first"));

    let primary = cluster.primary("sh1").await;
    cluster.kill(primary).await;
    let waited = cluster.write((0..2_000).step_by(20), "second").await;
    assert!(waited < Duration::from_secs(5), "writes waited {waited:?}");
    let mut expected = rows((0..2_000).step_by(10), "first");
    expected.extend(rows((0..2_000).step_by(20), "second"));
    assert_eq!(cluster.read().await, expected);

    // It comes back with its log; then another may go, and it is needed for the quorum.
    cluster.hear(|note| *note == Note::Started { server: primary }).await;
    cluster.whole().await;
    let next = cluster.primary("sh1").await;
    assert_ne!(next, primary);
    cluster.kill(next).await;
    cluster.write((0..2_000).step_by(50), "third").await;
    expected.extend(rows((0..2_000).step_by(50), "third"));
    assert_eq!(cluster.read().await, expected);
    cluster.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_cluster_in_simulated_time_survives_the_loss_of_a_primary() {
    story(Memory::default(), simulated()).await;
}

#[tokio::test]
async fn a_cluster_on_threads_and_sockets_survives_the_loss_of_a_primary() {
    story(TokioNetwork, StorageMode::Threads).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_balancer_finds_the_cluster_and_every_row() {
    let mut cluster = Cluster::start(Memory::default(), simulated()).await;
    cluster.init().await;
    cluster.write(0..100, "first").await;
    cluster.balancer.stop().stop();
    let next = balancer(&cluster.node, &cluster.register, &cluster.servers).await;
    std::mem::replace(&mut cluster.balancer, next).join().await.expect("ends well");
    assert!(cluster.balancer.handle().ready().await);
    cluster.write(50..150, "second").await;
    let mut expected = rows(0..100, "first");
    expected.extend(rows(50..150, "second"));
    assert_eq!(cluster.read().await, expected);
    cluster.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_lost_its_disk_is_filled_again() {
    let mut cluster = Cluster::start(Memory::default(), simulated()).await;
    cluster.init().await;
    cluster.write(0..200, "first").await;
    let primary = cluster.primary("sh1").await;
    cluster.kill(primary).await;
    cluster.servers.disk(primary).wipe();
    cluster.hear(|note| *note == Note::Started { server: primary }).await;
    cluster.whole().await;
    let next = cluster.primary("sh1").await;
    cluster.kill(next).await;
    cluster.write(100..300, "second").await;
    let mut expected = rows(0..200, "first");
    expected.extend(rows(100..300, "second"));
    assert_eq!(cluster.read().await, expected);
    cluster.close().await;
}

/// What clients were told and when, and how often each disk was synced.
async fn trace() -> (Vec<(Duration, String)>, Vec<usize>) {
    let began = Instant::now();
    let told = Mutex::new(Vec::new());
    let note = |what: String| told.lock().expect("lock").push((began.elapsed(), what));
    let cluster = Cluster::start(Memory::default(), simulated()).await;
    cluster.init().await;
    note("initialised".to_owned());
    let waited = cluster.write(0..300, "first").await;
    note(format!("written in {waited:?}"));
    let primary = cluster.primary("sh1").await;
    cluster.servers.kill(primary).await;
    let waited = cluster.write(0..300, "second").await;
    note(format!("written again in {waited:?} after the loss of {primary}"));
    note(format!("{:?}", cluster.read().await));
    let persists = (1..=3).map(|server| cluster.servers.disk(ServerId(server)).persists()).collect();
    cluster.close().await;
    (told.into_inner().expect("lock"), persists)
}

#[test]
fn two_runs_of_a_cluster_in_simulated_time_are_the_same() {
    let run = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true).build().expect("a runtime").block_on(trace())
    };
    let (first, second) = (run(), run());
    assert_eq!(first, second);
    assert!(first.1.iter().all(|persists| *persists > 0));
}
