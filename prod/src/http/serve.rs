//! Serves a router on any network. Clients have so many connections; when they have taken all, some more are there for probes and
//! operators, who would otherwise be shut out by whoever holds the others.

use super::{
    HttpSettings,
    connection::{Connection, Phase},
    guard,
};
use crate::net::Network;
use axum::{Router, body::Body, extract::Request, response::Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout},
};
use tower::ServiceExt;

/// How long connections may take to finish what they serve once the node stops. A guess.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// The most bytes of a head, and of what is read or written of a body at once: hyper's longest path, 64 KiB, and headers beside it. A guess.
pub(super) const HEAD_BYTES_MAX: usize = 80 << 10;
/// How long to wait after an accept failed, for example for want of file descriptors. A guess.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How often it is told at most that accepts fail. A guess.
const ACCEPT_TOLD_EVERY: Duration = Duration::from_secs(10);
/// The connections for probes and operators. When they are taken, too, the oldest that is not being answered goes: a probe sends its request
/// at once. A guess.
pub const SPARE_MAX: usize = 32;
/// How long each of them may take to send its request, however many come after it. A guess: longer than a probe takes.
const SPARE_AGE_MIN: Duration = Duration::from_millis(50);
/// The most bytes that are read only to be dropped, after an answer that did not wait for the end of its request. A guess: eight bodies of
/// the largest allowed.
const LINGER_BYTES_MAX: u64 = 256 << 20;

/// Serves a router until `stopped` becomes true; then lets what is being answered finish, for a moment.
pub async fn serve<N: Network>(mut listener: N::Listener, router: Router, settings: HttpSettings, mut stopped: watch::Receiver<bool>) {
    let places = Places::new(&settings);
    let mut spare = Spare::default();
    let mut connections = JoinSet::new();
    let mut told_at = None;
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopped.wait_for(|stop| *stop) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = N::accept(&mut listener) => accepted,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                if told_at.is_none_or(|told_at: Instant| told_at.elapsed() >= ACCEPT_TOLD_EVERY) {
                    tracing::warn!(%error, "could not accept connections; tries again all the time");
                    told_at = Some(Instant::now());
                }
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let client = N::peer(&stream);
        let place = places.take(client);
        let phase = Phase::new((place.is_none()).then(|| places.clone()));
        if place.is_none() && !spare.make_room().await {
            continue;
        }
        let is_spare = place.is_none();
        let serving = one(stream, client, router.clone(), settings.clone(), Arc::clone(&phase), stopped.clone(), place);
        let handle = connections.spawn(serving);
        if is_spare {
            spare.add(phase, handle);
        }
    }
    let _ = timeout(DRAIN_TIMEOUT, async { while connections.join_next().await.is_some() {} }).await;
}

/// Serves one connection to its end.
async fn one<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    client: Option<IpAddr>,
    router: Router,
    settings: HttpSettings,
    phase: Arc<Phase>,
    mut stopped: watch::Receiver<bool>,
    place: Option<Place>,
) {
    let on_wire = Connection::new(stream, Arc::clone(&phase), settings.read_timeout, settings.idle_timeout);
    let of_service = Arc::clone(&phase);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let serving = Phase::begin(&of_service);
        let mut request: Request = request.map(Body::new);
        request.extensions_mut().insert(guard::Client(client));
        request.extensions_mut().insert(Arc::clone(&of_service));
        let answer = router.clone().oneshot(request);
        async move {
            let answered: Result<Response, Infallible> = answer.await;
            drop(serving);
            answered
        }
    });
    let mut connection = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(HEAD_BYTES_MAX)
        .auto_date_header(settings.dates)
        .serve_connection(TokioIo::new(on_wire), service);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = ending(&mut stopped) => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    let mut stream = connection.into_parts().io.into_inner();
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
        if let Err(error) = stream.explain(&error).await {
            tracing::debug!(%error, "nobody was told why");
        }
    }
    // A server that closes while its client still sends has its answer thrown away by the network (RFC 9112, section 9.6).
    if phase.lingers() {
        let mut rest = stream.into_inner().take(LINGER_BYTES_MAX);
        let mut nowhere = tokio::io::sink();
        tokio::select! {
            _ = timeout(settings.read_timeout, tokio::io::copy(&mut rest, &mut nowhere)) => {}
            () = ending(&mut stopped) => {}
        }
    }
    drop(place);
}

/// Ends when `stopped` becomes true, or its sender is gone.
async fn ending(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// The connections that clients may have, in all and each address.
#[derive(Clone, Debug)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    by_address: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
    of_address_max: usize,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _place: OwnedSemaphorePermit,
    client: Option<IpAddr>,
    by_address: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
}

impl Places {
    fn new(settings: &HttpSettings) -> Self {
        let of_address_max = settings.address_connections_max;
        Self { all: Arc::new(Semaphore::new(settings.connections_max)), by_address: Arc::default(), of_address_max }
    }

    fn take(&self, client: Option<IpAddr>) -> Option<Place> {
        // Who is on this machine needs no network to shut others out.
        let client = client.filter(|address| !address.is_loopback());
        let place = Arc::clone(&self.all).try_acquire_owned().ok()?;
        if let Some(address) = client {
            let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
            let count = by_address.entry(address).or_default();
            if *count >= self.of_address_max {
                return None;
            }
            *count += 1;
        }
        Some(Place { _place: place, client, by_address: Arc::clone(&self.by_address) })
    }

    /// Whether a request on a spare connection may be answered as any other.
    pub(super) fn are_free(&self) -> bool {
        self.all.available_permits() > 0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(address) = self.client else { return };
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&address);
            }
        }
    }
}

/// The connections beyond those, the oldest first, and since when each is there.
#[derive(Debug, Default)]
struct Spare(VecDeque<(Instant, Arc<Phase>, AbortHandle)>);

impl Spare {
    /// Whether there is room for one more; the oldest that is not being answered goes for it, once it had its time. Who comes meanwhile waits
    /// to be accepted.
    async fn make_room(&mut self) -> bool {
        loop {
            self.0.retain(|(_, _, handle)| !handle.is_finished());
            if self.0.len() < SPARE_MAX {
                return true;
            }
            let Some(oldest) = self.0.iter().position(|(_, phase, _)| !phase.is_serving()) else { return false };
            let age = self.0.get(oldest).map_or(SPARE_AGE_MIN, |(since, ..)| since.elapsed());
            if let Some(young) = SPARE_AGE_MIN.checked_sub(age).filter(|young| !young.is_zero()) {
                sleep(young).await;
            } else if let Some((_, _, handle)) = self.0.remove(oldest) {
                handle.abort();
            }
        }
    }

    fn add(&mut self, phase: Arc<Phase>, handle: AbortHandle) {
        self.0.push_back((Instant::now(), phase, handle));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_all_places_unless_it_is_of_this_machine() {
        let settings = HttpSettings { connections_max: 4, address_connections_max: 2, ..HttpSettings::default() };
        let places = Places::new(&settings);
        let [one, other, own] = ["10.0.0.1", "10.0.0.2", "127.0.0.1"].map(|address| address.parse().ok());
        let taken = [places.take(one), places.take(one)];
        assert!(taken.iter().all(Option::is_some) && places.take(one).is_none());
        let others = [places.take(other), places.take(own)];
        assert!(others.iter().all(Option::is_some) && places.take(own).is_none(), "there are four in all");
        drop(taken);
        assert!(places.take(one).is_some() && places.are_free());
        drop(others);
        assert!(places.by_address.lock().unwrap().is_empty(), "nothing is left of who is gone");
        let own = [places.take(own), places.take(own), places.take(own), places.take(own)];
        assert!(own.iter().all(Option::is_some) && !places.are_free());
    }
}
