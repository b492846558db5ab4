//! A disk, a register and a provisioner in memory: as much as a whole cluster in one process asks for.

use super::{NodeParts, ServerNode, ServerParts};
use crate::{
    log::{Log, LogError},
    net::Network,
    provision::Provisioner,
    register::{Register, RegisterError},
    rows::{RowStore, StoreError},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};
use twinshard_core::{
    command::Entry,
    id::{ClusterId, Epoch, LogIndex, MapVersion, OwnerNumber, Position, ReplicaId, ServerId},
    map::{Address, ClusterMap},
    planted::Planted,
    server::{ServerConfig, ServerSettings},
    storage::{
        FlushBatch, LogBatch, LogRecord, LostReason, Recovered, RecoveredReplica, RowPage, RowQuery, StoreAnswer, StoreCommand, ViewState,
    },
    value::{Key, StoredRow},
};

/// What a server keeps over restarts.
#[derive(Clone, Default)]
pub(super) struct Disk(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    owner: u64,
    records: Vec<LogRecord>,
    views: BTreeMap<ReplicaId, View>,
    persists: usize,
}

#[derive(Default)]
struct View {
    rows: BTreeMap<Key, StoredRow>,
    state: ViewState,
}

impl View {
    fn flush(&mut self, batch: FlushBatch) {
        if batch.applied <= self.state.applied {
            return;
        }
        set(&mut self.rows, batch.rows);
        set(&mut self.state.sessions, batch.sessions);
        set(&mut self.state.idempotency, batch.idempotency);
        self.state.session_floor = batch.session_floor;
        self.state.applied = batch.applied;
    }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, changes: BTreeMap<K, Option<V>>) {
    for (key, change) in changes {
        match change {
            Some(value) => map.insert(key, value),
            None => map.remove(&key),
        };
    }
}

impl Disk {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().expect("nothing panics holding it")
    }

    /// How many fsyncs there were.
    pub(super) fn persists(&self) -> usize {
        self.kept().persists
    }

    /// Everything is gone.
    pub(super) fn wipe(&self) {
        let mut kept = self.kept();
        kept.records.clear();
        kept.views.clear();
    }

    fn open(&self) -> (OwnerNumber, Recovered) {
        let mut kept = self.kept();
        kept.owner += 1;
        let mut recovered = Recovered::default();
        for record in &kept.records {
            replay(record, &mut recovered);
        }
        for (id, replica) in &mut recovered.replicas {
            replica.view = kept.views.get(id).map(|view| view.state.clone()).ok_or(LostReason::RowsMissing);
        }
        (OwnerNumber(kept.owner), recovered)
    }
}

fn replay(record: &LogRecord, recovered: &mut Recovered) {
    let mut change = |id: &ReplicaId, change: &dyn Fn(&mut RecoveredReplica)| {
        change(recovered.replicas.get_mut(id).expect("created before"));
    };
    match record {
        LogRecord::Create { replica, shard } => {
            let empty = RecoveredReplica {
                shard: *shard,
                promised: Epoch(0),
                commit: LogIndex(0),
                base: Position::ZERO,
                entries: Vec::new(),
                view: Err(LostReason::RowsMissing),
            };
            assert!(recovered.replicas.insert(*replica, empty).is_none(), "{replica} was created twice");
        }
        LogRecord::Promise { replica, epoch } => change(replica, &|it| it.promised = *epoch),
        LogRecord::Truncate { replica, after } => change(replica, &|it| it.entries.retain(|entry| entry.position.index <= *after)),
        LogRecord::Append { replica, entries } => change(replica, &|it| {
            let last = it.entries.last().map_or(it.base.index, |last| last.position.index);
            assert_eq!(entries.first().map(|entry: &Arc<Entry>| entry.position.index), Some(last.next()), "a gap in the log of {replica}");
            it.entries.extend(entries.iter().cloned());
        }),
        LogRecord::Commit { replica, index } => change(replica, &|it| it.commit = *index),
        LogRecord::Reset { replica, base, .. } => change(replica, &|it| (it.base, it.entries) = (*base, Vec::new())),
        LogRecord::Compact { replica, base } => change(replica, &|it| {
            it.base = *base;
            it.entries.retain(|entry| entry.position.index > base.index);
        }),
        LogRecord::Remove { replica } => drop(recovered.replicas.remove(replica)),
        LogRecord::Map { version, map } => recovered.map = Some((*version, Arc::clone(map))),
    }
}

/// The log and the rows of a disk.
struct Opened(Disk);

impl Log for Opened {
    fn persist(&mut self, batches: &[LogBatch]) -> Result<(), LogError> {
        let mut kept = self.0.kept();
        kept.persists += 1;
        kept.records.extend(batches.iter().flatten().cloned());
        Ok(())
    }
}

impl RowStore for Opened {
    fn execute(&mut self, replica: ReplicaId, command: StoreCommand) -> Result<StoreAnswer, StoreError> {
        let mut kept = self.0.kept();
        let view = match command {
            StoreCommand::Create => {
                kept.views.insert(replica, View::default());
                return Ok(StoreAnswer::Done);
            }
            StoreCommand::Destroy => {
                kept.views.remove(&replica);
                return Ok(StoreAnswer::Done);
            }
            _ => kept.views.get_mut(&replica),
        };
        let Some(view) = view else { return Ok(StoreAnswer::Lost(LostReason::RowsMissing)) };
        Ok(match command {
            StoreCommand::Flush(batch) => {
                view.flush(*batch);
                StoreAnswer::Flushed { durable: view.state.applied }
            }
            StoreCommand::Read(RowQuery::Range { range, limit, .. }) if range.low <= range.high => {
                let mut rows: Vec<StoredRow> = view.rows.range(range.low..=range.high).map(|(_, row)| row.clone()).collect();
                let more = rows.len() > limit as usize;
                rows.truncate(limit as usize);
                StoreAnswer::Rows(RowPage { rows, more })
            }
            StoreCommand::Read(RowQuery::Range { .. }) => StoreAnswer::Rows(RowPage::default()),
            StoreCommand::Read(RowQuery::Keys(keys)) => {
                StoreAnswer::Rows(RowPage { rows: keys.iter().filter_map(|key| view.rows.get(key).cloned()).collect(), more: false })
            }
            StoreCommand::Create | StoreCommand::Destroy | StoreCommand::CloseSnapshot(_) => StoreAnswer::Done,
            // These tests write less than the log keeps, so that nobody needs a snapshot.
            StoreCommand::OpenSnapshot(_)
            | StoreCommand::ReadSnapshot { .. }
            | StoreCommand::Stage { .. }
            | StoreCommand::SwapStage { .. } => StoreAnswer::Unavailable,
        })
    }
}

/// A register that keeps its map as long as anybody holds it.
#[derive(Clone)]
pub(super) struct MemoryRegister(Arc<Mutex<(MapVersion, Arc<ClusterMap>)>>);

impl MemoryRegister {
    pub(super) fn new(cluster: ClusterId) -> Self {
        Self(Arc::new(Mutex::new((MapVersion(0), Arc::new(ClusterMap { cluster, ..ClusterMap::default() })))))
    }
}

impl Register for MemoryRegister {
    fn read(&mut self) -> Result<(MapVersion, Arc<ClusterMap>), RegisterError> {
        Ok(self.0.lock().expect("nothing panics holding it").clone())
    }

    fn compare_and_set(&mut self, expected: MapVersion, map: &ClusterMap) -> Result<bool, RegisterError> {
        let mut kept = self.0.lock().expect("nothing panics holding it");
        let same = kept.0 == expected;
        if same {
            *kept = (expected.next(), Arc::new(map.clone()));
        }
        Ok(same)
    }
}

/// Each with its disk; some run.
type Servers = BTreeMap<ServerId, (Disk, Option<ServerNode>)>;

/// Runs servers in this process.
#[derive(Clone)]
pub(super) struct InProcess<N> {
    node: NodeParts<N>,
    cluster: ClusterId,
    servers: Arc<Mutex<Servers>>,
}

impl<N: Network> InProcess<N> {
    pub(super) fn new(node: NodeParts<N>, cluster: ClusterId) -> Self {
        Self { node, cluster, servers: Arc::default() }
    }

    fn servers(&self) -> MutexGuard<'_, Servers> {
        self.servers.lock().expect("nothing panics holding it")
    }

    /// The disk of a server, new if it never had one.
    pub(super) fn disk(&self, server: ServerId) -> Disk {
        self.servers().entry(server).or_default().0.clone()
    }

    /// Stops a server behind the cluster's back.
    pub(super) async fn kill(&self, server: ServerId) {
        let node = self.servers().get_mut(&server).and_then(|(_, node)| node.take());
        let node = node.expect("it runs");
        node.stop().stop();
        node.join().await.expect("ends well");
    }

    /// Stops all that still run.
    pub(super) async fn close(&self) {
        let running: Vec<ServerId> = self.servers().iter().filter(|(_, (_, node))| node.is_some()).map(|(server, _)| *server).collect();
        for server in running {
            self.kill(server).await;
        }
    }
}

impl<N: Network> Provisioner for InProcess<N> {
    async fn start(&self, server: ServerId, _name: &str, number: u64, replace: bool) -> Result<Address, String> {
        let address = |node: &ServerNode| Address { http: format!("nowhere:{number}").into(), peer: node.peer_address().into() };
        let running = self.servers().get(&server).and_then(|(_, node)| node.as_ref().map(address));
        match running {
            Some(address) if !replace => return Ok(address),
            Some(_) => self.kill(server).await,
            None => {}
        }
        let disk = self.disk(server);
        let (owner, recovered) = disk.open();
        let parts = ServerParts {
            node: self.node.clone(),
            cluster: self.cluster,
            peer_address: "127.0.0.1:0".to_owned(),
            config: ServerConfig { server, owner, settings: ServerSettings::default(), planted: Planted::NONE },
            recovered,
            log: Opened(disk.clone()),
            rows: Opened(disk),
        };
        let node = ServerNode::start(parts).await.map_err(|error| error.to_string())?;
        let started = address(&node);
        self.servers().entry(server).or_default().1 = Some(node);
        Ok(started)
    }

    async fn stop(&self, server: ServerId, _name: &str) -> Result<(), String> {
        if self.servers().get(&server).is_some_and(|(_, node)| node.is_some()) {
            self.kill(server).await;
        }
        Ok(())
    }
}
