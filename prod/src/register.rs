//! The metadata register: one versioned document with read and compare-and-set, linearizable and durable (DESIGN 3).

pub mod redb;

use std::sync::Arc;
use thiserror::Error;
use twinshard_core::{id::MapVersion, map::ClusterMap};

/// A register that is open.
pub trait Register: Send + 'static {
    /// What is in it. Blocks.
    ///
    /// # Errors
    /// It cannot be reached or read.
    fn read(&mut self) -> Result<(MapVersion, Arc<ClusterMap>), RegisterError>;

    /// Replaces the map, durably, if the version is `expected`; the new version is `expected + 1`. `false` if it was another. Blocks.
    ///
    /// # Errors
    /// No answer: it may have been done or be done later.
    fn compare_and_set(&mut self, expected: MapVersion, map: &ClusterMap) -> Result<bool, RegisterError>;
}

/// Why the register does not answer.
#[derive(Debug, Error)]
pub enum RegisterError {
    /// The storage under it failed.
    #[error("the metadata register failed: {0}")]
    Failed(String),
    /// What it holds does not verify.
    #[error("the metadata register is damaged: {0}")]
    Damaged(String),
}
