//! The explorer: the machines of the core on a discrete-event queue, in one thread, without async. Every run is a function of its
//! plan. Knows no tokio, no turmoil, no production code.

pub mod coverage;
pub mod exhaustive;
pub mod invariants;
pub mod log;
pub mod model;
pub mod net;
pub mod queue;
pub mod register;
pub mod rows;
pub mod world;

mod clients;
mod liveness;
mod operators;

use crate::plan::Plan;
use std::sync::Arc;
use world::{RunResult, World};

/// Plays a plan to its end.
#[must_use]
pub fn run(plan: &Plan) -> RunResult {
    World::new(Arc::new(plan.clone()), false).run()
}

/// Plays a plan to its end and keeps the trace as text.
#[must_use]
pub fn run_with_text(plan: &Plan) -> RunResult {
    World::new(Arc::new(plan.clone()), true).run()
}
