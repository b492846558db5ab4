//! The simulated worlds of Twinshard. The explorer runs the core's machines alone, many seeds a second; it builds without the
//! production crate. Never touches a clock, a socket or a disk.

pub mod faults;
pub mod keyed;
pub mod plan;
pub mod trace;

pub mod explorer;
pub mod staging;
pub mod swarm;

pub mod exhaust;
pub mod minimize;
pub mod panics;
pub mod search;

#[cfg(feature = "turmoil")]
pub mod turmoil;
