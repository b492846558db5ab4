//! Starts whole nodes from their parts: a server or a balancer, each a driver with its transport. Used by the program, by a standalone
//! server (both in one process) and by the simulated world. HTTP is served elsewhere, over the handles.

pub use crate::driver::{NodeError, NoteSink, StorageMode};

use crate::{
    driver::{BalancerDriver, BalancerEnds, Clock, Notes, ServerDriver, ServerEnds},
    entropy::Entropy,
    handle::{BalancerHandle, MapWatch, ServerHandle},
    log::Log,
    net::Network,
    peer::{Counters, Identity, PeerCounts, PeerParts, PeerSettings, Peers},
    provision::Provisioner,
    register::Register,
    rows::RowStore,
    secret::Secret,
    telemetry::Telemetry,
};
use std::sync::Arc;
use tokio::{
    sync::watch,
    task::{JoinError, JoinHandle},
};
use twinshard_core::{
    balancer::{BalancerConfig, BalancerMachine},
    id::{ClusterId, NodeId},
    server::{ServerConfig, ServerMachine},
    storage::Recovered,
};

/// What every node needs.
#[derive(Clone)]
pub struct NodeParts<N> {
    /// The network.
    pub network: N,
    /// What the cluster's nodes share.
    pub secret: Secret,
    /// For nonces and jitter.
    pub entropy: Entropy,
    /// How stores are run.
    pub storage: StorageMode,
    /// Limits and times of the transport.
    pub peers: PeerSettings,
    /// Hears what happens, besides the trace.
    pub notes: Option<NoteSink>,
}

/// What a server is made of.
pub struct ServerParts<N, L, R> {
    /// What every node needs.
    pub node: NodeParts<N>,
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// `host:port` to listen on for peers.
    pub peer_address: String,
    /// The machine's configuration.
    pub config: ServerConfig,
    /// What opening the log and the rows found.
    pub recovered: Recovered,
    /// The log.
    pub log: L,
    /// The rows.
    pub rows: R,
}

/// What a balancer is made of.
pub struct BalancerParts<N, G, P> {
    /// What every node needs.
    pub node: NodeParts<N>,
    /// The machine's configuration.
    pub config: BalancerConfig,
    /// The metadata register.
    pub register: G,
    /// What starts and stops servers.
    pub provisioner: P,
}

/// A server that runs. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct ServerNode {
    handle: ServerHandle,
    peer_address: String,
    running: Running,
}

/// A balancer that runs. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct BalancerNode {
    handle: BalancerHandle,
    running: Running,
}

/// A driver's task, and what stops it.
#[derive(Debug)]
struct Running {
    stop: Stop,
    task: JoinHandle<Result<(), NodeError>>,
    counters: Arc<Counters>,
}

/// Stops a node, and tells whether it is being stopped. Clones stop the same node.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Stop {
    fn new() -> (Self, watch::Receiver<bool>) {
        let (stop, stopped) = watch::channel(false);
        (Self(Arc::new(stop)), stopped)
    }

    /// Asks the node to close everything and end.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }

    /// Becomes true when the node is asked to end or has ended by itself: what depends on it, such as its HTTP, ends then, too.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.0.subscribe()
    }
}

impl Running {
    fn start(stop: Stop, counters: Arc<Counters>, driver: impl Future<Output = Result<(), NodeError>> + Send + 'static) -> Self {
        let ending = stop.clone();
        let task = tokio::spawn(async move {
            let ended = driver.await;
            if let Err(error) = &ended {
                tracing::error!(%error, "node stopped");
            }
            ending.stop();
            ended
        });
        Self { stop, task, counters }
    }

    async fn join(mut self) -> Result<(), NodeError> {
        let joined = (&mut self.task).await;
        self.stop.stop();
        joined.unwrap_or_else(|error: JoinError| {
            tracing::error!(%error, "the driver failed");
            Err(NodeError::Ended("driver"))
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

impl ServerNode {
    /// Listens for peers and starts the machine.
    ///
    /// # Errors
    /// The peer address is taken or not ours, or the system refuses a thread.
    pub async fn start<N, L, R>(parts: ServerParts<N, L, R>) -> Result<Self, NodeError>
    where
        N: Network,
        L: Log,
        R: RowStore,
    {
        let ServerParts { node, cluster, peer_address, config, recovered, log, mut rows } = parts;
        let failed = |source| NodeError::Listen { address: peer_address.clone(), source };
        let listener = node.network.listen(&peer_address).await.map_err(failed)?;
        let local_address = N::local_address(&listener).map_err(failed)?;

        let clock = Clock::start();
        let (stop, stopped) = Stop::new();
        let (publish, map) = watch::channel(recovered.map.clone());
        rows.follow(map.clone());
        // The identity of a server never changes: its sender is not needed.
        let (_, identity) = watch::channel(Some(Identity { cluster, node: NodeId::Server(config.server) }));
        let telemetry = Telemetry::default();
        let counters = Arc::clone(telemetry.peers());
        let (peers, inbound) = start_peers(&node, identity, map.clone(), &counters, Some(listener));
        let (handle, asks) = ServerHandle::new(map, telemetry.clone());
        let machine = ServerMachine::open(config, recovered, clock.now());
        let notes = Notes::new(node.notes, telemetry);
        let ends = ServerEnds { machine, cluster, clock, peers, inbound, asks, map: publish, notes, stop: stopped };
        let driver = ServerDriver::new(ends, &node.storage, log, rows)?;
        Ok(Self { handle, peer_address: local_address, running: Running::start(stop, counters, driver.run()) })
    }

    /// Asks the machine.
    #[must_use]
    pub fn handle(&self) -> ServerHandle {
        self.handle.clone()
    }

    /// Where peers reach it: the address that was bound, its port filled in.
    #[must_use]
    pub fn peer_address(&self) -> &str {
        &self.peer_address
    }

    /// Stops it.
    #[must_use]
    pub fn stop(&self) -> Stop {
        self.running.stop.clone()
    }

    /// What happened on its transport.
    #[must_use]
    pub fn peer_counts(&self) -> PeerCounts {
        self.running.counters.counts()
    }

    /// Waits until it has ended and its stores are closed.
    ///
    /// # Errors
    /// Why it ended, if it was not asked to.
    pub async fn join(self) -> Result<(), NodeError> {
        drop(self.handle);
        self.running.join().await
    }
}

impl BalancerNode {
    /// Starts the machine. It listens for nobody.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub async fn start<N, G, P>(parts: BalancerParts<N, G, P>) -> Result<Self, NodeError>
    where
        N: Network,
        G: Register,
        P: Provisioner,
    {
        let BalancerParts { node, config, register, provisioner } = parts;
        let clock = Clock::start();
        let (stop, stopped) = Stop::new();
        let (publish, map) = watch::channel(None);
        let (introduce, identity) = watch::channel(None);
        let telemetry = Telemetry::default();
        let counters = Arc::clone(telemetry.peers());
        let (peers, inbound) = start_peers(&node, identity, map.clone(), &counters, None);
        let (handle, asks) = BalancerHandle::new(map, telemetry.clone());
        let machine = BalancerMachine::new(config, clock.now());
        let notes = Notes::new(node.notes, telemetry);
        let ends =
            BalancerEnds { machine, clock, peers, inbound, asks, provisioner, map: publish, identity: introduce, notes, stop: stopped };
        let driver = BalancerDriver::new(ends, &node.storage, register)?;
        Ok(Self { handle, running: Running::start(stop, counters, driver.run()) })
    }

    /// Asks the machine.
    #[must_use]
    pub fn handle(&self) -> BalancerHandle {
        self.handle.clone()
    }

    /// Stops it.
    #[must_use]
    pub fn stop(&self) -> Stop {
        self.running.stop.clone()
    }

    /// What happened on its transport.
    #[must_use]
    pub fn peer_counts(&self) -> PeerCounts {
        self.running.counters.counts()
    }

    /// Waits until it has ended and its register is closed.
    ///
    /// # Errors
    /// Why it ended, if it was not asked to.
    pub async fn join(self) -> Result<(), NodeError> {
        drop(self.handle);
        self.running.join().await
    }
}

fn start_peers<N: Network>(
    node: &NodeParts<N>,
    identity: watch::Receiver<Option<Identity>>,
    book: MapWatch,
    counters: &Arc<Counters>,
    listener: Option<N::Listener>,
) -> (Peers<N>, tokio::sync::mpsc::Receiver<crate::peer::Inbound>) {
    let parts = PeerParts {
        network: node.network.clone(),
        settings: node.peers.clone(),
        secret: node.secret.clone(),
        entropy: node.entropy.clone(),
        identity,
        book,
        counters: Arc::clone(counters),
    };
    Peers::start(parts, listener)
}

#[cfg(test)]
mod stores;
#[cfg(test)]
mod tests;
