//! Learners and snapshots: R1, R8, lost replicas.

use super::{
    at,
    world::{World, config, small_settings},
};
use crate::{
    id::{LogIndex, Position},
    message::{Freshness, LeadStage, ReplicaBody},
    planted::Planted,
    storage::{LogRecord, LostReason},
};

fn small(count: u64) -> World {
    World::with(count, small_settings(), Planted::NONE)
}

#[test]
fn a_learner_is_brought_up_by_the_log_and_never_counts() {
    let mut world = World::new(4).formed(3);
    world.write_all(1, 1, [1, 2, 3]);
    world.learn(1, 1, &[4]);
    world.run(300);
    assert_eq!(world.status(1).learners, [(crate::id::ReplicaId(4), LogIndex(4), true)]);
    world.cut(2);
    world.cut(3);
    let tag = world.write(1, 1, 4);
    world.run(1_000);
    assert_eq!(world.view(4).watermarks().last, LogIndex(5));
    assert!(!world.acknowledged(tag), "a learner's acknowledgement counts for nothing");
}

#[test]
fn a_learner_is_brought_up_by_a_snapshot_and_the_log_after_it() {
    let mut world = small(4).formed(3);
    world.write_all(1, 1, 0..40);
    assert!(world.view(1).log().base().index > LogIndex(20));
    world.learn(1, 1, &[4]);
    world.run(1_000);
    assert!(world.heard.iter().any(|message| matches!(message.body, ReplicaBody::SnapshotPart { .. })));
    assert_eq!(world.status(1).learners, [(crate::id::ReplicaId(4), LogIndex(41), true)]);
    world.write_all(1, 1, [40]);
    let tag = world.read(4, Freshness::Any);
    world.run(10);
    assert_eq!(world.keys(tag).map(|keys| keys.len()), Some(41));
    world.restart(4);
    world.run(300);
    let tag = world.read(4, Freshness::AtLeast(LogIndex(42)));
    world.run(10);
    assert_eq!(world.keys(tag).map(|keys| keys.len()), Some(41), "after a restart too");
}

#[test]
fn a_snapshot_that_cannot_be_read_any_more_is_begun_anew() {
    let mut world = small(4).formed(3);
    world.write_all(1, 1, 0..40);
    world.lose("snapshot-part");
    world.learn(1, 1, &[4]);
    world.run(200);
    let broken: usize = world.disk(1).rows.values_mut().map(|rows| rows.break_snapshots()).sum();
    assert_eq!(broken, 1);
    world.heal();
    world.run(5_000);
    assert_eq!(world.status(1).learners, [(crate::id::ReplicaId(4), LogIndex(41), true)]);
}

#[test]
fn a_snapshot_takes_the_logs_place_in_one_record() {
    let mut world = small(4).formed(3);
    world.write_all(1, 1, 0..40);
    world.learn(1, 1, &[4]);
    world.run(1_000);
    let log = &world.disk(4).log;
    assert_eq!(log.iter().filter(|record| matches!(record, LogRecord::Reset { .. })).count(), 1);
    assert!(!log.iter().any(|record| matches!(record, LogRecord::Truncate { .. })), "R1");
}

#[test]
fn a_crash_between_reset_and_swap_is_made_good_at_opening() {
    let mut world = small(4).formed(3);
    world.write_all(1, 1, 0..40);
    // r4 promises epoch 1, then its disk stands still with the reset under way.
    world.say(1, 4, 1, ReplicaBody::Append { previous: at(1, 30), entries: Vec::new(), commit: LogIndex(0) });
    world.run(1);
    world.hold_disk(4);
    world.learn(1, 1, &[4]);
    world.run(1_000);
    world.sync_unnoticed(4);
    world.crash(4);
    assert_eq!(world.disk(4).rows.values().map(|rows| rows.rows.len()).sum::<usize>(), 0, "not swapped");
    assert!(world.disk(4).log.iter().any(|record| matches!(record, LogRecord::Reset { .. })));
    world.start(4);
    world.run(1_000);
    assert_eq!(world.view(4).lost(), None);
    assert_eq!(world.view(4).watermarks().last, LogIndex(41));
}

#[test]
fn a_member_that_was_away_too_long_takes_a_snapshot() {
    let mut world = small(3).formed(3);
    world.write_all(1, 1, 0..3);
    world.cut(3);
    world.write_all(1, 1, 3..60);
    world.heal();
    world.run(1_500);
    assert_eq!(world.read_now(3, 1).len(), 60);
    world.crash(2);
    world.write_all(1, 1, [60]);
}

#[test]
fn a_need_for_a_snapshot_that_comes_late_keeps_the_log() {
    let mut world = World::serving(3);
    world.write_all(1, 1, [1, 2, 3]);
    world.say(1, 2, 1, ReplicaBody::NeedSnapshot { base: at(1, 2) });
    world.run(500);
    assert_eq!(world.positions(2), [at(1, 1), at(1, 2), at(1, 3), at(1, 4)], "R1");
}

#[test]
fn a_new_primary_takes_the_sources_snapshot_and_its_log() {
    let mut world = small(4).formed(3);
    world.write_all(1, 1, 0..40);
    world.crash(1);
    world.reconfigure(&[2, 3], &config(2, 4, &[2, 3, 4], 2));
    assert_eq!(world.read_now(4, 2).len(), 40);
    let resets = world.disk(4).log.iter().filter(|record| matches!(record, LogRecord::Reset { .. })).count();
    assert_eq!(resets, 1);
    world.write_all(4, 2, [40]);
}

#[test]
fn a_gap_told_late_does_not_take_the_staged_snapshot_away() {
    let mut world = small(4).formed(3);
    world.write_all(1, 1, 0..40);
    world.crash(1);
    [2, 3].into_iter().for_each(|id| world.seal(id, 2));
    world.run(10);
    let last = world.promise(2, 2).unwrap();
    // The snapshot is staged whole; what follows it does not come.
    world.lose("log-part");
    world.install(&config(2, 4, &[2, 3, 4], 2), 2, last);
    world.run(1_000);
    let begun = |world: &World| {
        world.heard.iter().filter(|message| matches!(message.body, ReplicaBody::FetchSnapshot { snapshot: None, .. })).count()
    };
    let before = begun(&world);
    assert!(before > 0);
    let base = world.view(2).log().base();
    world.say(2, 4, 2, ReplicaBody::LogGap { hint: base, base });
    world.run(10);
    assert_eq!(begun(&world), before, "the answer to what was asked before the snapshot");
    // The source has dropped what follows the snapshot: that one is of no use any more, and what comes late of it is not adopted.
    world.say(2, 4, 2, ReplicaBody::LogGap { hint: last, base: last });
    world.run(10);
    assert!(begun(&world) > before);
    world.heal();
    world.run(3_000);
    assert_eq!(world.view(4).lost(), None);
    world.activate(4, 2);
    world.run(100);
    assert_eq!(world.read_now(4, 2).len(), 40);
}

#[test]
fn pieces_lost_on_the_way_are_asked_for_again() {
    let mut world = small(4).formed(3);
    world.write_all(1, 1, 0..40);
    world.lose("snapshot-part");
    world.learn(1, 1, &[4]);
    world.run(1_000);
    world.heal();
    world.run(3_000);
    assert_eq!(world.view(4).watermarks().last, LogIndex(41));
}

#[test]
fn a_lender_that_restarts_is_asked_anew() {
    let mut world = small(4).formed(3);
    world.write_all(1, 1, 0..40);
    world.lose("snapshot-part");
    world.learn(1, 1, &[4]);
    world.run(100);
    world.restart(1);
    world.heal();
    world.reconfigure(&[2, 3], &config(2, 2, &[2, 3], 2));
    world.learn(2, 2, &[4]);
    world.run(2_000);
    assert_eq!(world.view(4).watermarks().last, world.view(2).watermarks().last);
    assert_eq!(world.status(2).lead, Some(LeadStage::Active));
}

#[test]
fn a_replica_without_rows_is_lost_and_says_nothing_else() {
    let mut world = World::serving(3);
    world.write_all(1, 1, [1]);
    world.crash(3);
    world.disk(3).rows.clear();
    world.start(3);
    assert_eq!(world.status(3).lost, Some(LostReason::RowsMissing));
    world.seal(3, 2);
    world.run(10);
    assert_eq!(world.promise(3, 2), None, "it has no word to give");
    let tag = world.read(3, Freshness::Any);
    assert_eq!(world.keys(tag), None);
    world.write_all(1, 1, [2]);
}

#[test]
fn rows_ahead_of_the_log_make_a_replica_lost() {
    let mut world = small(3).formed(3);
    world.write_all(1, 1, 0..10);
    world.crash(3);
    world.disk(3).log.retain(|record| matches!(record, LogRecord::Create { .. }));
    world.start(3);
    assert_eq!(world.status(3).lost, Some(LostReason::LogDamaged));
    assert_eq!(world.view(3).log().base(), Position::ZERO);
}
