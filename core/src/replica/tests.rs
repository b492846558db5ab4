//! Stories of one shard, told to whole servers: each names what the protocol promises.

pub(crate) mod world;

use super::*;
use crate::message::{Freshness, LeadStage, ReadResult};
use world::{World, config};

fn at(epoch: u64, index: u64) -> Position {
    Position { epoch: Epoch(epoch), index: LogIndex(index) }
}

#[test]
fn a_shard_replicates_and_answers() {
    let mut world = World::serving(3);
    world.write_all(1, 1, [10, 20, 30]);
    for id in 1..=3 {
        assert_eq!(world.read_now(id, 1), [10, 20, 30], "r{id}");
        assert_eq!(world.positions(id), [at(1, 1), at(1, 2), at(1, 3), at(1, 4)], "r{id}");
    }
}
