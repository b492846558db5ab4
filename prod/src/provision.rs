//! Provisioners: what starts and stops servers for the controller.

#[cfg(feature = "docker")]
pub mod docker;
pub mod process;

use std::future::Future;
use twinshard_core::{id::ServerId, map::Address};

/// Starts and stops servers. Idempotent; see `twinshard_core::effect::ProvisionCommand`.
pub trait Provisioner: Send + Sync + 'static {
    /// Sees that exactly one process of this server runs and says where.
    fn start(&self, server: ServerId, name: &str, number: u64, replace: bool) -> impl Future<Output = Result<Address, String>> + Send;

    /// Sees that no process of this server runs.
    fn stop(&self, server: ServerId, name: &str) -> impl Future<Output = Result<(), String>> + Send;
}

impl<P: Provisioner> Provisioner for std::sync::Arc<P> {
    async fn start(&self, server: ServerId, name: &str, number: u64, replace: bool) -> Result<Address, String> {
        P::start(self, server, name, number, replace).await
    }

    async fn stop(&self, server: ServerId, name: &str) -> Result<(), String> {
        P::stop(self, server, name).await
    }
}
