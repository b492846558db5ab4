//! The production world of Twinshard: the driver that runs the core's machines, and everything real around it. The simulated turmoil
//! world runs the same driver and routers over other ends.

#![warn(clippy::unwrap_used, clippy::expect_used)]

#[cfg(feature = "cli")]
pub mod cli;

pub mod handle;
pub mod http;
pub mod node;

#[cfg(feature = "docker")]
pub mod docker;
pub mod driver;
pub mod peer;

mod aside;
pub mod cgroup;
pub mod entropy;
pub mod net;
pub mod secret;
#[cfg(feature = "tls")]
pub mod tls;

pub mod disk;
pub mod log;
#[cfg(feature = "mysql")]
pub mod mysql;
pub mod provision;
pub mod register;
pub mod request_id;
pub mod rows;
pub mod shown;
pub mod store;
#[cfg(feature = "story")]
pub mod story;
pub mod supervised;
pub mod telemetry;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
