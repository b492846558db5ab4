//! The row store: the view of each replica's log (DESIGN 7). May lose its unflushed tail, never tears, never serves what does not verify.

pub mod memory;
#[cfg(feature = "mysql")]
pub mod mysql;
pub mod redb;
mod sealed;

use crate::handle::MapWatch;
use thiserror::Error;
use twinshard_core::{
    id::{Position, ReplicaId, StageId},
    storage::{LostReason, RowQuery, StoreAnswer, StoreCommand, ViewState},
};

/// A row store that is open and owned.
pub trait RowStore: Send + 'static {
    /// Does the work and blocks until it is done. What is wrong with one replica is an answer ([`StoreAnswer::Lost`],
    /// [`StoreAnswer::Unavailable`]), not an error.
    ///
    /// # Errors
    /// What makes the whole store unusable: the process must stop.
    fn execute(&mut self, replica: ReplicaId, command: StoreCommand) -> Result<StoreAnswer, StoreError>;

    /// Does reads that do not wait for each other, in whatever order, and blocks until all are done: an answer for each, as of
    /// [`Self::execute`].
    fn read_all(&mut self, reads: Vec<(ReplicaId, RowQuery)>) -> Vec<Result<StoreAnswer, StoreError>> {
        reads.into_iter().map(|(replica, query)| self.execute(replica, StoreCommand::Read(query))).collect()
    }

    /// Where it learns what the cluster's rows look like. A store that keeps rows as they are given need not know.
    fn follow(&mut self, map: MapWatch) {
        drop(map);
    }
}

/// What opening a server asks of its row store, before the machine runs.
pub trait RecoverRows: RowStore {
    /// The replicas that have a view.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn replicas(&mut self) -> Result<Vec<ReplicaId>, StoreError>;

    /// The part of a view that the machine keeps in memory.
    ///
    /// # Errors
    /// If the store cannot be read at all; what is wrong with the replica is the inner error.
    fn view(&mut self, replica: ReplicaId) -> Result<Result<ViewState, LostReason>, StoreError>;

    /// Makes the swap of a stage good that a durable `Reset` record demands. Nothing changes if the view is there already.
    ///
    /// # Errors
    /// If the store cannot be written at all; what is wrong with the replica is the inner error.
    fn complete_reset(&mut self, replica: ReplicaId, stage: StageId, base: Position) -> Result<Result<(), LostReason>, StoreError>;
}

impl<R: RowStore + ?Sized> RowStore for Box<R> {
    fn execute(&mut self, replica: ReplicaId, command: StoreCommand) -> Result<StoreAnswer, StoreError> {
        (**self).execute(replica, command)
    }

    fn read_all(&mut self, reads: Vec<(ReplicaId, RowQuery)>) -> Vec<Result<StoreAnswer, StoreError>> {
        (**self).read_all(reads)
    }

    fn follow(&mut self, map: MapWatch) {
        (**self).follow(map);
    }
}

impl<R: RecoverRows + ?Sized> RecoverRows for Box<R> {
    fn replicas(&mut self) -> Result<Vec<ReplicaId>, StoreError> {
        (**self).replicas()
    }

    fn view(&mut self, replica: ReplicaId) -> Result<Result<ViewState, LostReason>, StoreError> {
        (**self).view(replica)
    }

    fn complete_reset(&mut self, replica: ReplicaId, stage: StageId, base: Position) -> Result<Result<(), LostReason>, StoreError> {
        (**self).complete_reset(replica, stage, base)
    }
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
