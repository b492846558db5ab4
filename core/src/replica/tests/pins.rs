//! Reads of several pages: one state on all of them, and bounds on how many and how long.

use super::world::{World, small_settings};
use crate::{
    id::{Epoch, LogIndex},
    message::{Freshness, Pin, ReadRefusal, ReadResult, Tag, ToServer},
    planted::Planted,
    server::ServerSettings,
    time::Duration,
};

const LINEARIZABLE: Freshness = Freshness::Linearizable(Epoch(1));

/// Keys, whether there are more, the index, and what is pinned.
fn page(world: &World, tag: Tag) -> (Vec<i64>, bool, LogIndex, Option<Pin>) {
    match world.read_result(tag) {
        Some(ReadResult::Rows { rows, more, at, pin, .. }) => (rows.iter().map(|row| row.row.key.0).collect(), more, at.index, pin),
        other => panic!("{tag:?}: {other:?}"),
    }
}

fn refusal(world: &World, tag: Tag) -> Option<ReadRefusal> {
    match world.read_result(tag)? {
        ReadResult::Refused { reason, .. } => Some(reason),
        ReadResult::Rows { .. } => None,
    }
}

fn with(settings: ServerSettings) -> World {
    let mut world = World::with(3, settings, Planted::NONE).formed(3);
    world.write_all(1, 1, 1..=6);
    world
}

#[test]
fn further_pages_are_of_the_state_of_the_first() {
    for (flush_entries, id) in [(1, 1), (1, 2), (1_000, 1), (1_000, 3)] {
        let mut world = with(ServerSettings { flush_entries, ..small_settings() });
        world.run(50);
        let tag = world.read_page(id, LINEARIZABLE, 2);
        world.run(50);
        let (keys, more, at, pin) = page(&world, tag);
        assert_eq!((keys, more), (vec![1, 2], true));
        let pin = pin.expect("the rest is wanted");
        // What is written from here on is not of this read, wherever it is kept.
        world.write_all(1, 1, [7, 8, 3]);
        world.run(2_000);
        let tag = world.read_on(pin, 3, 3);
        world.run(50);
        assert_eq!(page(&world, tag), (vec![3, 4, 5], true, at, None));
        // Asked twice: what was lost on the way comes again.
        for _ in 0..2 {
            let tag = world.read_on(pin, 6, 3);
            world.run(50);
            assert_eq!(page(&world, tag), (vec![6], false, at, None));
        }
        assert_eq!(world.view(id).pin_count(), 1);
        world.order(super::world::home(pin.replica), ToServer::Unpin(pin));
        assert_eq!(world.view(id).pin_count(), 0);
        let tag = world.read_on(pin, 6, 3);
        assert_eq!(refusal(&world, tag), Some(ReadRefusal::PinGone));
    }
}

#[test]
fn a_page_that_is_all_pins_nothing() {
    let mut world = with(small_settings());
    let tag = world.read_page(1, LINEARIZABLE, 6);
    world.run(50);
    assert!(matches!(page(&world, tag), (keys, false, _, None) if keys.len() == 6));
    let tag = world.read(1, LINEARIZABLE);
    world.run(50);
    assert!(matches!(page(&world, tag), (_, false, _, None)));
    assert_eq!(world.view(1).pin_count(), 0);
}

#[test]
fn a_state_that_nobody_reads_on_in_is_let_go_and_one_that_is_read_too_long_as_well() {
    let settings =
        ServerSettings { pin_idle_max: Duration::from_millis(500), pin_life_max: Duration::from_millis(2_000), ..small_settings() };
    let mut world = with(settings.clone());
    let tag = world.read_page(1, LINEARIZABLE, 1);
    world.run(50);
    let pin = page(&world, tag).3.expect("pinned");
    world.run(600);
    assert_eq!(world.view(1).pin_count(), 0);
    let late = world.read_on(pin, 2, 1);
    assert_eq!(refusal(&world, late), Some(ReadRefusal::PinGone));
    let mut world = with(settings);
    let tag = world.read_page(1, LINEARIZABLE, 1);
    world.run(50);
    let pin = page(&world, tag).3.expect("pinned");
    for _ in 0..4 {
        world.run(400);
        let tag = world.read_on(pin, 2, 1);
        world.run(20);
        assert!(matches!(page(&world, tag), (keys, true, ..) if keys == [2]), "it is read on");
    }
    world.run(400);
    assert_eq!(world.view(1).pin_count(), 0);
}

#[test]
fn more_than_may_be_held_is_busy() {
    let mut world = with(ServerSettings { pins_max: 1, ..small_settings() });
    let first = world.read_page(1, LINEARIZABLE, 1);
    let second = world.read_page(1, LINEARIZABLE, 1);
    world.run(50);
    assert!(page(&world, first).3.is_some());
    assert_eq!(refusal(&world, second), Some(ReadRefusal::Busy));
    // What is not flushed is not kept twice beyond the bound: it is flushed, and then there is nothing to keep.
    let mut world = with(ServerSettings { pin_bytes_max: 0, flush_entries: 1_000, ..small_settings() });
    let early = world.read_page(1, LINEARIZABLE, 1);
    world.run(50);
    assert_eq!(refusal(&world, early), Some(ReadRefusal::Busy));
    let again = world.read_page(1, LINEARIZABLE, 1);
    world.run(50);
    assert!(page(&world, again).3.is_some(), "flushed at once");
}

#[test]
fn a_store_that_lost_its_snapshot_ends_the_read() {
    let mut world = with(small_settings());
    world.run(2_000);
    let tag = world.read_page(1, LINEARIZABLE, 1);
    world.run(50);
    let pin = page(&world, tag).3.expect("pinned");
    assert_eq!(world.disk(1).rows.get_mut(&pin.replica).expect("it has rows").break_snapshots(), 1);
    let tag = world.read_on(pin, 2, 1);
    world.run(50);
    assert_eq!((refusal(&world, tag), world.view(1).pin_count()), (Some(ReadRefusal::PinGone), 0));
    // Of another life of the server nothing is left.
    let tag = world.read_page(1, LINEARIZABLE, 1);
    world.run(50);
    let pin = page(&world, tag).3.expect("pinned");
    world.restart(1);
    let tag = world.read_on(pin, 2, 1);
    world.run(50);
    assert_eq!(refusal(&world, tag), Some(ReadRefusal::PinGone));
}
