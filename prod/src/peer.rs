//! The peer transport: messages between nodes over long-lived framed TCP streams (DESIGN 8). Never waits for a peer, never retries a
//! message: what finds no room or no connection is dropped and counted, which the protocol tolerates.
//!
//! A balancer dials servers, and they answer it on the connection it opened: a balancer has no address. Between servers each side dials
//! a stream of its own for what it sends. Whoever has something to send and no connection dials, with capped and jittered back-off.
//! A stream on which something was sent and nothing heard for a while is given up: a lost segment may have wedged it.
//!
//! ```text
//!   send ──► queue ──► link: dial ─ handshake ─ write │ read ──► inbox of the driver
//!                      accepted:    handshake ─ read │ write ◄── queue (balancers only)
//! ```

mod accept;
mod connection;
mod frame;
mod handshake;
mod link;
mod queue;

pub use handshake::{HandshakeError, PROTOCOL_VERSION};

use crate::{driver::NodeError, entropy::Entropy, handle::MapWatch, net::Network, secret::Secret};
use queue::Queue;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use twinshard_core::{
    id::{ClusterId, MapVersion, NodeId, ServerId},
    message::Message,
};

/// How many frames wait for the driver before reading from the network pauses.
const INBOX_FRAMES: usize = 128;

/// Limits and times of the transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSettings {
    /// The longest frame, in bytes. A longer one ends the connection before anything is allocated. 64 MiB: twice the largest request.
    pub frame_bytes_max: usize,
    /// About how many bytes of messages are put into one frame (1 MiB).
    pub batch_bytes: usize,
    /// The most messages that wait for one peer (16,384).
    pub queue_messages_max: usize,
    /// About the most bytes of messages that wait for one peer (64 MiB).
    pub queue_bytes_max: usize,
    /// How long connecting may take (1 s).
    pub connect_within: Duration,
    /// How long the handshake may take (2 s).
    pub handshake_within: Duration,
    /// How often a peer is asked for a sign of life while something is sent to it (500 ms).
    pub ping_every: Duration,
    /// How long it may be silent after that, or take nothing of what is written, before the connection is given up (2 s).
    pub silent_max: Duration,
    /// After how long an accepted connection that says nothing at all is closed (60 s).
    pub idle_max: Duration,
    /// The first pause after a failed dial (20 ms); it doubles.
    pub back_off_min: Duration,
    /// The longest pause (500 ms).
    pub back_off_max: Duration,
    /// The most connections that have not finished their handshake; one more pushes out the oldest (64).
    pub strangers_max: usize,
    /// The most accepted connections, one a peer (4,096).
    pub accepted_max: usize,
}

impl Default for PeerSettings {
    fn default() -> Self {
        Self {
            frame_bytes_max: 64 << 20,
            batch_bytes: 1 << 20,
            queue_messages_max: 16_384,
            queue_bytes_max: 64 << 20,
            connect_within: Duration::from_secs(1),
            handshake_within: Duration::from_secs(2),
            ping_every: Duration::from_millis(500),
            silent_max: Duration::from_secs(2),
            idle_max: Duration::from_secs(60),
            back_off_min: Duration::from_millis(20),
            back_off_max: Duration::from_millis(500),
            strangers_max: 64,
            accepted_max: 4_096,
        }
    }
}

/// Who a node says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Of which cluster.
    pub cluster: ClusterId,
    /// Which node.
    pub node: NodeId,
}

/// Messages of one frame.
#[derive(Debug)]
pub(crate) struct Inbound {
    /// Who sent them, as the handshake proved.
    pub(crate) from: NodeId,
    /// In the order sent.
    pub(crate) messages: Vec<Message>,
}

/// What happened on the transport since the node's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCounts {
    /// Messages written to a connection.
    pub sent: u64,
    /// Messages read from one.
    pub received: u64,
    /// Messages dropped: no room, no connection, no address.
    pub dropped: u64,
    /// Connections that this node opened.
    pub dialed: u64,
    /// Connections that it accepted, handshake included.
    pub accepted: u64,
    /// Connections that it did not accept: garbage, another cluster or version, a wrong secret.
    pub refused: u64,
    /// Connections that were given up because the peer was silent.
    pub silent: u64,
    /// Frames that could not be read.
    pub damaged: u64,
    /// Messages that wait to be written, now.
    pub waiting: u64,
}

/// The live counters behind [`PeerCounts`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
    dropped: AtomicU64,
    dialed: AtomicU64,
    accepted: AtomicU64,
    refused: AtomicU64,
    silent: AtomicU64,
    damaged: AtomicU64,
    waiting: AtomicU64,
}

impl Counters {
    pub(crate) fn counts(&self) -> PeerCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PeerCounts {
            sent: read(&self.sent),
            received: read(&self.received),
            dropped: read(&self.dropped),
            dialed: read(&self.dialed),
            accepted: read(&self.accepted),
            refused: read(&self.refused),
            silent: read(&self.silent),
            damaged: read(&self.damaged),
            waiting: read(&self.waiting),
        }
    }
}

fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

/// What all connections of a node share.
pub(crate) struct Shared {
    settings: PeerSettings,
    secret: Secret,
    entropy: Entropy,
    /// Who we are; `None` until a balancer knows.
    identity: watch::Receiver<Option<Identity>>,
    /// Where the servers are.
    book: MapWatch,
    inbox: mpsc::Sender<Inbound>,
    counters: Arc<Counters>,
    /// What is to be written to peers on connections they opened.
    accepted: Mutex<BTreeMap<NodeId, Arc<Queue>>>,
}

impl Shared {
    fn accepted(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<Queue>>> {
        // Nothing panics while it holds the lock, and a map of queues is whole after every operation.
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a transport is made of.
pub(crate) struct PeerParts<N> {
    pub(crate) network: N,
    pub(crate) settings: PeerSettings,
    pub(crate) secret: Secret,
    pub(crate) entropy: Entropy,
    pub(crate) identity: watch::Receiver<Option<Identity>>,
    pub(crate) book: MapWatch,
    pub(crate) counters: Arc<Counters>,
}

/// Sends to peers. Owned by the driver, and owns every task of the transport.
pub(crate) struct Peers<N> {
    network: N,
    shared: Arc<Shared>,
    links: BTreeMap<ServerId, Arc<Queue>>,
    /// The version of the map that `links` was last compared with.
    pruned: Option<MapVersion>,
    tasks: JoinSet<()>,
}

impl<N: Network> Peers<N> {
    /// A transport that dials, and accepts if it is given a listener.
    pub(crate) fn start(parts: PeerParts<N>, listener: Option<N::Listener>) -> (Self, mpsc::Receiver<Inbound>) {
        let (inbox, inbound) = mpsc::channel(INBOX_FRAMES);
        let PeerParts { network, settings, secret, entropy, identity, book, counters } = parts;
        let accepted = Mutex::new(BTreeMap::new());
        let shared = Arc::new(Shared { settings, secret, entropy, identity, book, inbox, counters, accepted });
        let mut tasks = JoinSet::new();
        if let Some(listener) = listener {
            tasks.spawn(accept::run::<N>(Arc::clone(&shared), listener));
        }
        (Self { network, shared, links: BTreeMap::new(), pruned: None, tasks }, inbound)
    }

    /// Puts a message into the peer's queue, or drops and counts it if there is no room, or no way to that peer. Never waits.
    pub(crate) fn send(&mut self, to: NodeId, message: Message) {
        self.prune();
        let taken = match to {
            NodeId::Balancer(_) => self.shared.accepted().get(&to).is_some_and(|queue| queue.push(message)),
            NodeId::Server(server) if self.is_self(to) => {
                tracing::warn!(%server, "a message to oneself");
                self.shared.inbox.try_send(Inbound { from: to, messages: vec![message] }).is_ok()
            }
            NodeId::Server(server) => self.link(server).push(message),
        };
        if !taken {
            count(&self.shared.counters.dropped, 1);
        }
    }

    fn is_self(&self, node: NodeId) -> bool {
        self.shared.identity.borrow().is_some_and(|identity| identity.node == node)
    }

    fn link(&mut self, server: ServerId) -> &Queue {
        let Self { network, shared, links, tasks, .. } = self;
        links.entry(server).or_insert_with(|| {
            let queue = Arc::new(Queue::new(&shared.settings, &shared.counters));
            tasks.spawn(link::run(Arc::clone(shared), network.clone(), server, Arc::clone(&queue)));
            queue
        })
    }

    /// Closes the links to servers that have left the map, whenever there is a new map.
    fn prune(&mut self) {
        let book = self.shared.book.borrow();
        let Some((version, map)) = book.as_ref() else { return };
        if self.pruned == Some(*version) {
            return;
        }
        self.pruned = Some(*version);
        self.links.retain(|server, queue| {
            let stays = map.servers.contains_key(server);
            if !stays {
                queue.close();
            }
            stays
        });
    }

    /// Takes leave of the tasks that have ended.
    ///
    /// # Errors
    /// One of them failed: the node cannot know any more what it hears and says.
    pub(crate) fn check(&mut self) -> Result<(), NodeError> {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "the peer transport failed");
                return Err(NodeError::Ended("peer transport"));
            }
        }
        Ok(())
    }

    /// Closes every connection and waits for all tasks.
    pub(crate) async fn close(mut self) {
        self.tasks.shutdown().await;
    }
}

#[cfg(test)]
pub(crate) mod memory;
#[cfg(test)]
mod tests;
