//! Provisioners: what starts and stops servers for the controller.

use std::future::Future;
use twinshard_core::{id::ServerId, map::Address};

/// Starts and stops servers. Idempotent; see `twinshard_core::effect::ProvisionCommand`.
pub trait Provisioner: Send + Sync + 'static {
    /// Sees that exactly one process of this server runs and says where.
    fn start(&self, server: ServerId, name: &str, number: u64, replace: bool) -> impl Future<Output = Result<Address, String>> + Send;

    /// Sees that no process of this server runs.
    fn stop(&self, server: ServerId, name: &str) -> impl Future<Output = Result<(), String>> + Send;
}
