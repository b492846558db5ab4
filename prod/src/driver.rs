//! The driver: the only async part around the machines (DESIGN 2). Feeds a machine with what happens and carries out what it wants.
//! Never decides anything, and runs the same in production and in simulated time: no clock but tokio's, no unordered map, no entropy.
//!
//! One task owns one machine. It takes what is ready from every source, up to a bound, steps the machine through it, and then carries
//! out all effects at once, so that what came together goes out together: one fsync and one frame for many.
//!
//! ```text
//!   peers  ── frames ──►┌─────────┐── sends ────► queue per peer
//!   handle ── asks ────►│ machine │── replies ──► oneshots
//!   timer  ── ticks ───►│  step   │── persists ─► log worker ──┐
//!   workers ─ answers ─►└─────────┘── commands ─► rows worker ─┤
//!      ▲                                                       │
//!      └───────────────────────────────────────────────────────┘
//! ```

mod balancer;
mod pending;
mod server;
mod worker;

pub(crate) use balancer::{BalancerDriver, BalancerEnds};
pub(crate) use server::{ServerDriver, ServerEnds};
pub use worker::{Latency, StorageMode, StorageWork};

use crate::{log::LogError, rows::StoreError, telemetry::Telemetry};
use std::{fmt, io, sync::Arc, time::Duration};
use thiserror::Error;
use tokio::time::Instant;
use twinshard_core::{effect::Note, id::NodeId, reason::Reason, time};

/// How many inputs are taken from one source before effects are carried out. Bounds the time between two looks at the others.
const INPUTS_MAX: usize = 256;
/// The shortest time between two ticks: the resolution of tokio's timer. Keeps a deadline that does not move from turning into a spin.
const TICK_MIN: Duration = Duration::from_millis(1);

/// Hears the notes of a machine with the time on tokio's clock. Must not block. `None` is a balancer that has no id yet.
pub type NoteSink = Arc<dyn Fn(Instant, Option<NodeId>, &Note) + Send + Sync>;

/// Why a node stopped by itself.
#[derive(Debug, Error)]
pub enum NodeError {
    /// Its peer port could not be opened.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The log failed: nothing is known of what is durable (R9).
    #[error(transparent)]
    Log(#[from] LogError),
    /// The row store failed.
    #[error(transparent)]
    Rows(#[from] StoreError),
    /// A part of the node ended that never should: it panicked. Where says which.
    #[error("the {0} ended unexpectedly")]
    Ended(&'static str),
    /// The system refused a thread.
    #[error("cannot start the thread of the {part}: {source}")]
    Thread {
        /// Of which part.
        part: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Tokio's time as the machines see it: nanoseconds since the node's start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    /// Starts now.
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now() }
    }

    pub(crate) fn now(self) -> time::Instant {
        self.at(Instant::now())
    }

    /// Saturates at the origin, and after 584 years.
    pub(crate) fn at(self, instant: Instant) -> time::Instant {
        time::Instant(u64::try_from(instant.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX))
    }

    /// When to wake for a machine's deadline; `None` if it is further away than tokio can tell.
    pub(crate) fn wake(self, deadline: time::Instant) -> Option<Instant> {
        self.origin.checked_add(Duration::from_nanos(deadline.0))
    }
}

/// What tells people about the notes of one node.
#[derive(Clone)]
pub(crate) struct Notes {
    sink: Option<NoteSink>,
    telemetry: Telemetry,
}

impl Notes {
    pub(crate) const fn new(sink: Option<NoteSink>, telemetry: Telemetry) -> Self {
        Self { sink, telemetry }
    }

    /// Where the node's stores say how long they worked.
    pub(crate) const fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    pub(crate) fn tell(&self, node: Option<NodeId>, note: &Note) {
        let name = Named(node);
        match note {
            Note::Dropped { reason } => tracing::debug!(node = %name, %reason, "message dropped"),
            Note::Suspected { server } => tracing::warn!(node = %name, %server, "server suspected"),
            Note::DiskWentBack { server } => tracing::error!(
                node = %name,
                %server,
                "the disk of this server is older than the one that the register knows: its replicas are lost, and are made anew from others"
            ),
            Note::Recovered { server } => tracing::info!(node = %name, %server, "server answers again"),
            Note::Respawning { server } => tracing::warn!(node = %name, %server, "server taken for dead: respawning"),
            Note::Restarted { server } => tracing::info!(node = %name, %server, "server runs anew"),
            Note::Started { server } => tracing::info!(node = %name, %server, "server runs"),
            Note::ProvisionFailed { server, reason } => tracing::warn!(node = %name, %server, %reason, "provisioner failed"),
            Note::Stopped { server } => tracing::info!(node = %name, %server, "server stopped"),
            Note::Removed { server, name: removed } => tracing::info!(node = %name, %server, name = %removed, "server removed"),
            Note::Minted { replica, shard, server } => tracing::info!(node = %name, %replica, %shard, %server, "replica wanted"),
            Note::Retired { replica, shard, server, lost } => {
                tracing::warn!(node = %name, %replica, %shard, %server, ?lost, "replica given up");
            }
            Note::GivenUp { shard, anew, replicas } => {
                tracing::error!(node = %name, %shard, %anew, ?replicas, "shard given up: what was acknowledged in it is lost, as was accepted");
            }
            Note::Proposed { shard, config, reason: Some(Reason { cause, choice }) } => {
                tracing::info!(node = %name, %shard, %config, %cause, %choice, "configuration proposed");
            }
            Note::Proposed { shard, config, reason: None } => tracing::info!(node = %name, %shard, %config, "configuration proposed"),
            Note::Activated { shard, config } => tracing::info!(node = %name, %shard, %config, "configuration active"),
            Note::Lost { replica, reason } => tracing::error!(node = %name, %replica, ?reason, "replica lost"),
            Note::RegisterWentBack { told, found } => {
                tracing::error!(node = %name, %told, %found, "the metadata register went back: nothing is changed until it is recovered");
            }
            Note::Leads { replica, shard, epoch } => tracing::info!(node = %name, %replica, %shard, %epoch, "primary serves"),
            Note::Granted { request } => tracing::info!(node = %name, %request, "change granted"),
            Note::Refused { request, reason } => tracing::warn!(node = %name, %request, %reason, "change refused"),
            Note::Controlling { from } => {
                tracing::info!(node = %name, from = from.map(tracing::field::display), "controls the cluster");
            }
            Note::Ceded { to } => {
                tracing::warn!(node = %name, to = to.map(tracing::field::display), "does not control the cluster any more")
            }
        }
        self.telemetry.noted(note);
        if let Some(sink) = &self.sink {
            sink(Instant::now(), node, note);
        }
    }
}

struct Named(Option<NodeId>);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(node) => node.fmt(f),
            None => f.write_str("balancer"),
        }
    }
}

#[cfg(test)]
mod tests;
