//! What clients do in a scenario, from /init to the last comparison, over HTTP on any network: the same in the turmoil world and against a
//! live cluster.

mod clients;
pub mod exchange;
pub mod spelling;
pub mod wire;

pub use clients::{Clients, Ended, HEAL_WITHIN, Script, Step};

use crate::net::Network;
use exchange::Answer;
use http::HeaderValue;
use std::{collections::BTreeMap, sync::Arc};
use twinshard_core::map::ClusterMap;
use twinshard_scenarios::{history::Recorder, report::AdminEvent, timeline::Names};

/// Where a story takes place.
pub trait World: Clone + Send + Sync + 'static {
    /// The network that clients ask over.
    type Network: Network;

    /// See [`Self::Network`].
    fn network(&self) -> &Self::Network;

    /// Nanoseconds of the run.
    fn now_ns(&self) -> u64;

    /// Where a balancer serves clients, `host:port`; there are as many as it takes, the same again and again.
    fn balancer(&self, number: usize) -> String;

    /// What clients show of themselves.
    fn authorization(&self) -> Option<&HeaderValue> {
        None
    }

    /// An answer came.
    fn heard(&self, answer: &Answer);

    /// Works on what is written down. Never waits.
    fn with<T>(&self, work: impl FnOnce(&mut Record) -> T) -> T;

    /// The newest map that is known.
    fn map(&self) -> Arc<ClusterMap>;
}

/// What clients write down.
#[derive(Debug, Default)]
pub struct Record {
    /// Of operations.
    pub recorder: Recorder,
    /// Of what is asked for and answers.
    pub names: Names,
    /// Of the operator's requests, by their place in the scenario.
    pub told: BTreeMap<usize, AdminEvent>,
    /// How many answers clients got.
    pub answer_count: u64,
    /// What no cluster may do, in words.
    pub breaches: Vec<String>,
}
