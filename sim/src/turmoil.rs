//! The turmoil world: the production driver, its HTTP and its storage over a simulated network and simulated disks, one step a millisecond.
//! Never plays what turmoil cannot do: it says so.

#[cfg(not(tokio_unstable))]
compile_error!(
    "the turmoil world needs `--cfg tokio_unstable` (.cargo/config.toml has it, a RUSTFLAGS variable replaces it): without it \
     `select!` is random and a panic in a spawned task passes unnoticed"
);

pub mod engine;
pub mod flaw;
pub mod net;
mod rows;
pub mod swarm;
mod world;
