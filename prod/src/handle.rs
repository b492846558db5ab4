//! How routers reach the machine that a driver runs: ask and await the reply. Never decides anything.

use crate::{request_id::RequestId, telemetry::Telemetry};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use twinshard_core::{
    id::MapVersion,
    map::ClusterMap,
    request::{Reply, Request, RequestError, ServerReply, ServerRequest},
};

/// How many requests may wait for the driver to take them; one more is answered `Overloaded` at once.
pub const ASKS_MAX: usize = 4_096;
/// How long after a request's own deadline a handle still waits for the machine's answer before it answers itself.
const GRACE: Duration = Duration::from_millis(500);

/// A request on its way to the driver.
#[derive(Debug)]
pub struct Ask<Q, A> {
    /// What is asked.
    pub request: Q,
    /// When the client gives up.
    pub deadline: Instant,
    /// Where the answer goes. Closed when the client is gone.
    pub reply: oneshot::Sender<A>,
    /// By what name the client's request is logged.
    pub id: Option<RequestId>,
}

/// The newest map and its version; `None` before the first was read.
pub type MapWatch = watch::Receiver<Option<(MapVersion, Arc<ClusterMap>)>>;

/// The answer of a machine, which may be that it did not work.
pub trait Failing {
    /// It did not work.
    fn failed(error: RequestError) -> Self;
}

impl Failing for Reply {
    fn failed(error: RequestError) -> Self {
        Self::Failed(error)
    }
}

impl Failing for ServerReply {
    fn failed(error: RequestError) -> Self {
        Self::Failed(error)
    }
}

/// Asks the driver of a node.
#[derive(Debug)]
pub struct Handle<Q, A> {
    asks: mpsc::Sender<Ask<Q, A>>,
    map: MapWatch,
    telemetry: Telemetry,
}

/// Asks a balancer's driver.
pub type BalancerHandle = Handle<Request, Reply>;
/// Asks a server's driver.
pub type ServerHandle = Handle<ServerRequest, ServerReply>;

impl<Q, A> Clone for Handle<Q, A> {
    fn clone(&self) -> Self {
        Self { asks: self.asks.clone(), map: self.map.clone(), telemetry: self.telemetry.clone() }
    }
}

impl<Q, A: Failing> Handle<Q, A> {
    /// A handle and the end that the driver takes asks from.
    #[must_use]
    pub fn new(map: MapWatch, telemetry: Telemetry) -> (Self, mpsc::Receiver<Ask<Q, A>>) {
        let (asks, taken) = mpsc::channel(ASKS_MAX);
        (Self { asks, map, telemetry }, taken)
    }

    /// Asks and waits, at the longest `timeout` and a moment. Dropping the future tells the machine that nobody waits.
    pub async fn ask(&self, request: Q, timeout: Duration) -> A {
        let deadline = Instant::now() + timeout;
        let (reply, answer) = oneshot::channel();
        if self.asks.try_send(Ask { request, deadline, reply, id: RequestId::current() }).is_err() {
            return A::failed(RequestError::Overloaded);
        }
        match tokio::time::timeout_at(deadline + GRACE, answer).await {
            Ok(Ok(answer)) => answer,
            // The driver stopped, or did not answer in time: what it had taken may have been carried out.
            Ok(Err(_)) | Err(_) => A::failed(RequestError::OutcomeUnknown),
        }
    }

    /// Says something that nobody waits for. Lost if the driver has too much to do.
    pub fn tell(&self, request: Q) {
        let (reply, _) = oneshot::channel();
        let _ = self.asks.try_send(Ask { request, deadline: Instant::now() + GRACE, reply, id: None });
    }

    /// What the node tells people.
    #[must_use]
    pub const fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Whether its driver takes requests, and how many wait for it.
    #[must_use]
    pub fn load(&self) -> (bool, usize) {
        (!self.asks.is_closed(), self.asks.max_capacity() - self.asks.capacity())
    }

    /// The newest map that the node has seen.
    #[must_use]
    pub fn map(&self) -> Option<(MapVersion, Arc<ClusterMap>)> {
        self.map.borrow().clone()
    }

    /// Waits until the node has seen a map. A balancer has by then minted its id in the register; before that, requests are answered that
    /// the register is not available. `false` if it stops before.
    pub async fn ready(&self) -> bool {
        self.map.clone().wait_for(Option::is_some).await.is_ok()
    }
}
