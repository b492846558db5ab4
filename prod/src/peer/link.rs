//! A link to one server: dials when there is something to send, and dials anew when the connection ends or the server moves.

use super::{Identity, Shared, connection, count, handshake, handshake::HandshakeError, queue::Queue};
use crate::{handle::MapWatch, net::Network};
use std::{io, sync::Arc, time::Duration};
use thiserror::Error;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use twinshard_core::id::{NodeId, ServerId};

/// Why a dial failed.
#[derive(Debug, Error)]
enum DialError {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("connecting took too long")]
    TooSlow,
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
}

/// Runs until the queue is closed.
pub(super) async fn run<N: Network>(shared: Arc<Shared>, network: N, server: ServerId, queue: Arc<Queue>) {
    let mut book = shared.book.clone();
    let mut identity = shared.identity.clone();
    let mut failures = 0;
    while queue.ready().await {
        let known = (*identity.borrow_and_update(), address(&mut book, server));
        let (Some(me), Some(address)) = known else {
            // Nowhere to send it, or nobody to send it as. Waits for either to change, or for more to drop.
            count(&shared.counters.dropped, queue.clear());
            tokio::select! {
                biased;
                () = changed(&mut identity) => {}
                () = changed(&mut book) => {}
                open = queue.ready() => if !open { return },
            }
            continue;
        };
        let dialed = tokio::select! {
            biased;
            () = moved(&mut book, server, &address) => { failures = 0; continue }
            dialed = dial(&shared, &network, me, server, &address) => dialed,
        };
        match dialed {
            Ok(stream) => {
                count(&shared.counters.dialed, 1);
                tracing::debug!(peer = %server, %address, "connected");
                let since = Instant::now();
                let heard = tokio::select! {
                    biased;
                    () = moved(&mut book, server, &address) => { failures = 0; continue }
                    () = renamed(&mut identity, me) => continue,
                    (_, heard) = connection::run(&shared, stream, NodeId::Server(server), &queue, false) => heard,
                };
                // A connection that soon ended counts as a failure: the peer may close each one on purpose, or a twin of ours push it out.
                let lasted = heard && since.elapsed() >= shared.settings.back_off_max;
                failures = if lasted { 0 } else { failures + 1 };
            }
            Err(error) => {
                failures += 1;
                // What waited for this attempt is old by the time of the next.
                count(&shared.counters.dropped, queue.clear());
                match &error {
                    DialError::Handshake(refused) if refused.is_suspicious() => {
                        tracing::warn!(peer = %server, %address, %error, "cannot connect")
                    }
                    DialError::Connect(_) | DialError::TooSlow | DialError::Handshake(_) => {
                        tracing::debug!(peer = %server, %address, %error, "cannot connect");
                    }
                }
            }
        }
        if failures > 0 {
            let pause = pause(&shared, failures);
            tokio::select! {
                biased;
                () = moved(&mut book, server, &address) => failures = 0,
                () = sleep(pause) => {}
            }
        }
    }
}

async fn dial<N: Network>(shared: &Shared, network: &N, me: Identity, server: ServerId, address: &str) -> Result<N::Stream, DialError> {
    let settings = &shared.settings;
    let connected = timeout(settings.connect_within, network.connect(address)).await.map_err(|_| DialError::TooSlow)?;
    let mut stream = connected.map_err(DialError::Connect)?;
    let shaken = handshake::dial(&mut stream, me, NodeId::Server(server), &shared.secret, shared.entropy.bytes());
    timeout(settings.handshake_within, shaken).await.map_err(|_| HandshakeError::TooSlow)??;
    Ok(stream)
}

/// Doubles with every failure up to the cap; then anything from half of that to all of it, so that many links do not dial in step.
fn pause(shared: &Shared, failures: u32) -> Duration {
    let settings = &shared.settings;
    let doubled = settings.back_off_min.saturating_mul(1 << (failures - 1).min(16)).min(settings.back_off_max);
    let half = doubled / 2;
    half + Duration::from_micros(shared.entropy.below(u64::try_from(half.as_micros()).unwrap_or(u64::MAX).saturating_add(1)))
}

fn address(book: &mut MapWatch, server: ServerId) -> Option<Box<str>> {
    let book = book.borrow_and_update();
    let (_, map) = book.as_ref()?;
    Some(map.servers.get(&server)?.address.as_ref()?.peer.clone())
}

/// Waits until the server has another address, or none.
async fn moved(book: &mut MapWatch, server: ServerId, from: &str) {
    while address(book, server).as_deref() == Some(from) {
        changed(book).await;
    }
}

/// Waits until we are somebody else.
async fn renamed(identity: &mut watch::Receiver<Option<Identity>>, from: Identity) {
    while *identity.borrow_and_update() == Some(from) {
        changed(identity).await;
    }
}

/// Waits for a change; for ever if there can be none.
async fn changed<T>(watched: &mut watch::Receiver<T>) {
    if watched.changed().await.is_err() {
        std::future::pending().await
    }
}
