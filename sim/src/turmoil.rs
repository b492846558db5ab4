//! The turmoil world.

pub mod net;
