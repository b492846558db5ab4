//! The listening side: takes connections, bounded, and believes nobody before the handshake.

use super::{Shared, connection, count, handshake, handshake::HandshakeError, queue::Queue};
use crate::net::Network;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{sleep, timeout},
};
use twinshard_core::id::NodeId;

/// The pause after the system could not give a connection: it has run out of something that only time brings back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections that have not said who they are, by age.
#[derive(Default)]
struct Strangers(Mutex<BTreeMap<u64, Arc<Notify>>>);

impl Strangers {
    fn map(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a new one; the oldest goes if there are too many. So a flood of garbage only has to be outrun, not outlasted.
    fn enter(&self, number: u64, most: usize) -> Arc<Notify> {
        let mut map = self.map();
        if map.len() >= most
            && let Some((_, oldest)) = map.pop_first()
        {
            oldest.notify_one();
        }
        let out = Arc::new(Notify::new());
        map.insert(number, Arc::clone(&out));
        out
    }

    fn leave(&self, number: u64) {
        self.map().remove(&number);
    }
}

/// Runs until it is dropped.
pub(super) async fn run<N: Network>(shared: Arc<Shared>, mut listener: N::Listener) {
    let strangers = Arc::new(Strangers::default());
    let mut connections = JoinSet::new();
    let mut number = 0;
    loop {
        tokio::select! {
            biased;
            accepted = N::accept(&mut listener) => match accepted {
                Ok(stream) => {
                    number += 1;
                    let out = strangers.enter(number, shared.settings.strangers_max.max(1));
                    connections.spawn(serve(Arc::clone(&shared), stream, number, Arc::clone(&strangers), out));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a peer connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => if let Err(error) = ended {
                // It panicked. The driver hears of it from this task.
                tracing::error!(%error, "a peer connection failed");
                std::panic::resume_unwind(error.into_panic());
            },
        }
    }
}

async fn serve<S>(shared: Arc<Shared>, mut stream: S, number: u64, strangers: Arc<Strangers>, out: Arc<Notify>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin,
{
    let shaken = tokio::select! {
        biased;
        () = out.notified() => Err(HandshakeError::TooMany),
        shaken = shake(&shared, &mut stream) => shaken,
    };
    strangers.leave(number);
    let entered = shaken.and_then(|peer| enter(&shared, peer).map(|queue| (peer, queue)));
    match entered {
        Ok((peer, queue)) => {
            count(&shared.counters.accepted, 1);
            tracing::debug!(%peer, "connection accepted");
            connection::run(&shared, stream, peer, &queue, true).await;
            leave(&shared, peer, &queue);
        }
        Err(error) => {
            count(&shared.counters.refused, 1);
            if error.is_suspicious() {
                tracing::warn!(%error, "peer connection refused");
            } else if error.is_stranger() {
                tracing::info!(%error, "peer connection refused");
            } else {
                tracing::debug!(%error, "peer connection refused");
            }
        }
    }
}

async fn shake<S>(shared: &Shared, stream: &mut S) -> Result<NodeId, HandshakeError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    // Who listens has known who it is from the start.
    let me = *shared.identity.borrow();
    let me = me.ok_or(HandshakeError::Node)?;
    let shaken = handshake::answer(stream, me, &shared.secret, shared.entropy.bytes());
    timeout(shared.settings.handshake_within, shaken).await.map_err(|_| HandshakeError::TooSlow)?
}

/// Takes the place of an older connection of the same peer, which ends.
fn enter(shared: &Shared, peer: NodeId) -> Result<Arc<Queue>, HandshakeError> {
    let queue = Arc::new(Queue::new(&shared.settings, &shared.counters));
    let mut accepted = shared.accepted();
    if accepted.len() >= shared.settings.accepted_max && !accepted.contains_key(&peer) {
        return Err(HandshakeError::TooMany);
    }
    if let Some(older) = accepted.insert(peer, Arc::clone(&queue)) {
        older.close();
    }
    Ok(queue)
}

/// Unless a newer one has taken its place.
fn leave(shared: &Shared, peer: NodeId, queue: &Arc<Queue>) {
    let mut accepted = shared.accepted();
    if accepted.get(&peer).is_some_and(|current| Arc::ptr_eq(current, queue)) {
        accepted.remove(&peer);
    }
}
