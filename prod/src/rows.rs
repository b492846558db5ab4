//! The row store: the view of each replica's log (DESIGN 7). May lose its unflushed tail, never tears, never serves what does not verify.

pub mod redb;

use thiserror::Error;
use twinshard_core::{
    id::ReplicaId,
    storage::{StoreAnswer, StoreCommand},
};

/// A row store that is open and owned.
pub trait RowStore: Send + 'static {
    /// Does the work and blocks until it is done. What is wrong with one replica is an answer ([`StoreAnswer::Lost`],
    /// [`StoreAnswer::Unavailable`]), not an error.
    ///
    /// # Errors
    /// What makes the whole store unusable: the process must stop.
    fn execute(&mut self, replica: ReplicaId, command: StoreCommand) -> Result<StoreAnswer, StoreError>;
}

/// Why the store cannot go on.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Somebody opened this store after us; it is theirs.
    #[error("another process has taken over this store")]
    TakenOver,
    /// The storage under it failed.
    #[error("the row store failed: {0}")]
    Failed(String),
}
