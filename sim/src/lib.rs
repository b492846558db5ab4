//! Sim.
#[cfg(feature="turmoil")]
pub mod turmoil;
