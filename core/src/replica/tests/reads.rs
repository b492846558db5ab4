//! Reads: I6, R21, R22.

use super::{
    at,
    world::{World, config},
};
use crate::{
    id::{Epoch, Incarnation, LogIndex, Position},
    message::{Freshness, ReadRefusal, ReadResult, ReplicaBody, Tag},
};

fn refusal(world: &World, tag: Tag) -> Option<ReadRefusal> {
    match world.read_result(tag)? {
        ReadResult::Refused { reason, .. } => Some(reason),
        ReadResult::Rows { .. } => None,
    }
}

#[test]
fn a_read_waits_until_its_index_is_applied() {
    let mut world = World::serving(3);
    world.cut(2);
    world.write_all(1, 1, [1, 2]);
    world.heal();
    world.lose("append");
    let tag = world.read(2, Freshness::Linearizable(Epoch(1)));
    world.run(100);
    assert_eq!(world.read_result(tag), None, "r2 knows the index and lacks the entries");
    world.heal();
    world.run(500);
    assert_eq!(world.keys(tag), Some(vec![1, 2]));
    assert!(matches!(world.read_result(tag), Some(ReadResult::Rows { read_index: Some(LogIndex(3)), .. })));
}

#[test]
fn a_read_that_cannot_be_served_says_so_in_bounded_time() {
    let mut world = World::serving(3);
    world.cut(2);
    let cut_off = world.read(2, Freshness::Linearizable(Epoch(1)));
    let ahead = world.read(3, Freshness::AtLeast(LogIndex(99)));
    world.run(1_100);
    assert_eq!(refusal(&world, cut_off), Some(ReadRefusal::NoReadIndex));
    assert_eq!(refusal(&world, ahead), Some(ReadRefusal::NeverWas), "the primary has not committed so much");
}

#[test]
fn a_primary_that_is_cut_off_gives_no_index() {
    let mut world = World::serving(3);
    world.cut(1);
    let tag = world.read(1, Freshness::Linearizable(Epoch(1)));
    world.run(1_100);
    assert_eq!(refusal(&world, tag), Some(ReadRefusal::NoReadIndex));
}

#[test]
fn a_replaced_primary_serves_no_stale_read() {
    let mut world = World::serving(3);
    world.write_all(1, 1, [1]);
    world.cut(1);
    world.reconfigure(&[2, 3], &config(2, 2, &[2, 3], 2));
    world.write_all(2, 2, [2]);
    world.heal();
    let tag = world.read(1, Freshness::Linearizable(Epoch(1)));
    world.run(1_100);
    assert_eq!(world.keys(tag), None, "a round meets a promise of epoch 2");
}

#[test]
fn a_round_serves_only_reads_that_came_before_its_first_message() {
    let mut world = World::serving(3);
    world.heard.clear();
    world.lose("round-confirmed");
    let first = world.read(1, Freshness::Linearizable(Epoch(1)));
    let second = world.read(1, Freshness::Linearizable(Epoch(1)));
    world.run(10);
    // The confirmation of the first round serves the first read alone.
    world.say(2, 1, 1, ReplicaBody::RoundConfirmed { round: 1 });
    assert!(world.keys(first).is_some());
    assert_eq!(world.read_result(second), None, "R21");
    // A second copy of it is of another round.
    world.say(2, 1, 1, ReplicaBody::RoundConfirmed { round: 1 });
    assert_eq!(world.read_result(second), None, "R6");
    world.say(3, 1, 1, ReplicaBody::RoundConfirmed { round: 2 });
    assert!(world.keys(second).is_some());
}

#[test]
fn a_learner_or_stranger_confirms_no_round() {
    let mut world = World::new(4).formed(3);
    world.learn(1, 1, &[4]);
    world.run(200);
    world.lose("round-confirmed");
    let tag = world.read(1, Freshness::Linearizable(Epoch(1)));
    world.say(4, 1, 1, ReplicaBody::RoundConfirmed { round: 1 });
    world.say(9, 1, 1, ReplicaBody::RoundConfirmed { round: 1 });
    assert_eq!(world.read_result(tag), None, "R21: w members");
}

#[test]
fn an_unactivated_primary_gives_no_index() {
    let mut world = World::serving(3);
    for id in [1, 2, 3] {
        world.seal(id, 2);
    }
    world.run(1);
    world.install(&config(2, 2, &[1, 2, 3], 2), 2, at(1, 1));
    world.run(50);
    let there = world.read(2, Freshness::Linearizable(Epoch(2)));
    let here = world.read(3, Freshness::Linearizable(Epoch(2)));
    world.run(50);
    assert_eq!(refusal(&world, there), Some(ReadRefusal::NoReadIndex));
    assert_eq!(refusal(&world, here), Some(ReadRefusal::NoReadIndex));
}

#[test]
fn a_read_of_another_epoch_is_refused() {
    let mut world = World::serving(3);
    for (id, epoch) in [(1, 2), (2, 2), (2, 0)] {
        let tag = world.read(id, Freshness::Linearizable(Epoch(epoch)));
        assert_eq!(refusal(&world, tag), Some(ReadRefusal::WrongEpoch));
    }
}

#[test]
fn an_answer_from_before_a_restart_meets_no_later_read() {
    let mut world = World::serving(3);
    world.lose("read-index");
    world.read(2, Freshness::Linearizable(Epoch(1)));
    world.restart(2);
    world.run(200);
    let tag = world.read(2, Freshness::Linearizable(Epoch(1)));
    let old = Tag { life: Incarnation(1), number: 1 };
    world.say(1, 2, 1, ReplicaBody::ReadIndexIs { tag: old, index: Some(LogIndex(1)) });
    assert_eq!(world.read_result(tag), None, "R22");
    let new = Tag { life: Incarnation(2), number: 1 };
    world.say(1, 2, 1, ReplicaBody::ReadIndexIs { tag: new, index: Some(LogIndex(1)) });
    assert!(world.keys(tag).is_some());
}

#[test]
fn reads_that_came_while_a_question_is_under_way_wait_for_the_next() {
    let mut world = World::serving(3);
    world.lose("read-index-is");
    world.heard.clear();
    let tags: Vec<_> = (0..5).map(|_| world.read(2, Freshness::Linearizable(Epoch(1)))).collect();
    world.run(50);
    let asked = world.heard.iter().filter(|message| matches!(message.body, ReplicaBody::ReadIndex { .. })).count();
    assert_eq!(asked, 1, "one question at a time");
    world.heal();
    world.run(500);
    assert!(tags.iter().all(|tag| world.keys(*tag).is_some()));
    let asked = world.heard.iter().filter(|message| matches!(message.body, ReplicaBody::ReadIndex { .. })).count();
    assert!(asked <= 4, "the first, again, and one for the other four: {asked}");
}

#[test]
fn weaker_reads_ask_nobody() {
    let mut world = World::serving(3);
    world.write_all(1, 1, [1]);
    world.cut(2);
    let any = world.read(2, Freshness::Any);
    let seen = world.read(2, Freshness::AtLeast(LogIndex(2)));
    assert_eq!((world.keys(any), world.keys(seen)), (Some(vec![1]), Some(vec![1])));
}

#[test]
fn reads_during_a_change_of_epoch_are_told_at_once() {
    let mut world = World::serving(3);
    world.lose("read-index");
    let tag = world.read(2, Freshness::Linearizable(Epoch(1)));
    world.seal(2, 2);
    assert_eq!(refusal(&world, tag), Some(ReadRefusal::WrongEpoch));
    assert_eq!(world.view(2).read_count(), 0);
    assert_ne!(world.view(2).log().last(), Position::ZERO);
}
