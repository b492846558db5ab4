//! A row store that may be out of reach, as a database is: the real one behind it answers, or nothing does. What a database does and does
//! not: a commit that was under way when it went may be done although its answer is lost.

use super::world::Shared;
use twinshard::rows::{RowStore, StoreError};
use twinshard_core::{
    id::{ReplicaId, ServerId},
    storage::{StoreAnswer, StoreCommand},
};

/// A row store with the faults of the run.
pub(super) struct SimRows<R> {
    inner: R,
    shared: Shared,
    server: ServerId,
    was_down: bool,
}

impl<R> SimRows<R> {
    pub(super) const fn new(inner: R, shared: Shared, server: ServerId) -> Self {
        Self { inner, shared, server, was_down: false }
    }
}

impl<R: RowStore> RowStore for SimRows<R> {
    fn execute(&mut self, replica: ReplicaId, command: StoreCommand) -> Result<StoreAnswer, StoreError> {
        let is_down = self.shared.state().is_store_down(self.server);
        let was_down = std::mem::replace(&mut self.was_down, is_down);
        if is_down && !was_down && matches!(command, StoreCommand::Flush(_)) {
            // The commit whose answer is lost.
            return match self.inner.execute(replica, command)? {
                lost @ StoreAnswer::Lost(_) => Ok(lost),
                _ => Ok(StoreAnswer::Unavailable),
            };
        }
        if is_down { Ok(StoreAnswer::Unavailable) } else { self.inner.execute(replica, command) }
    }
}
