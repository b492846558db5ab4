//! A disk, a register and a provisioner in memory: as much as a whole cluster in one process asks for.

use super::{NodeParts, ServerNode, ServerParts};
use crate::{
    log::{Log, LogError, file::Identity},
    net::Network,
    provision::Provisioner,
    register::{Register, RegisterError},
    rows::{
        RecoverRows,
        memory::{Medium, MemoryRows},
    },
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};
use twinshard_core::{
    command::Entry,
    id::{ClusterId, Epoch, Incarnation, LogIndex, MapVersion, OwnerNumber, Position, ReplicaId, ServerId},
    map::{Address, ClusterMap},
    planted::Planted,
    server::{ServerConfig, ServerSettings},
    storage::{LogBatch, LogRecord, LostReason, Recovered, RecoveredReplica},
};

/// What a server keeps over restarts.
#[derive(Clone, Default)]
pub(super) struct Disk(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    owner: u64,
    records: Vec<LogRecord>,
    rows: Medium,
    persists: usize,
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
        kept.rows.lose();
    }

    fn open(&self, identity: Identity) -> (OwnerNumber, MemoryRows, Recovered) {
        let mut kept = self.kept();
        kept.owner += 1;
        let mut recovered = Recovered::default();
        for record in &kept.records {
            replay(record, &mut recovered);
        }
        let owner = OwnerNumber(kept.owner);
        let mut rows = MemoryRows::open(&kept.rows, identity, owner).expect("it is ours");
        for (id, replica) in &mut recovered.replicas {
            replica.view = rows.view(*id).expect("it is ours");
        }
        (owner, rows, recovered)
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
        LogRecord::Lives(lives) => recovered.lives = lives.clone(),
        LogRecord::Map { version, map } => recovered.map = Some((*version, Arc::clone(map))),
    }
}

/// The log of a disk.
struct Opened(Disk);

impl Log for Opened {
    fn persist(&mut self, batches: &[LogBatch]) -> Result<(), LogError> {
        let mut kept = self.0.kept();
        kept.persists += 1;
        kept.records.extend(batches.iter().flatten().cloned());
        Ok(())
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
        let (owner, rows, recovered) = disk.open(Identity { cluster: self.cluster, server });
        let parts = ServerParts {
            node: self.node.clone(),
            cluster: self.cluster,
            peer_address: "127.0.0.1:0".to_owned(),
            config: ServerConfig {
                server,
                owner,
                incarnation: Incarnation(self.node.entropy.below(u64::MAX) + 1),
                settings: ServerSettings::default(),
                planted: Planted::NONE,
            },
            recovered,
            log: Opened(disk),
            rows,
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
