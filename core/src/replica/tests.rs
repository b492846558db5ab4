//! Stories of one shard, told to whole servers: each names what the protocol promises.

mod catch_up;
mod chaos;
mod pins;
#[cfg(feature = "planted")]
mod planted;
mod reads;
mod reconfiguration;
mod replication;
pub(crate) mod world;

use crate::id::{Epoch, LogIndex, Position};

fn at(epoch: u64, index: u64) -> Position {
    Position { epoch: Epoch(epoch), index: LogIndex(index) }
}
