//! Log and acknowledgement: I2, I5, R1 to R5.

use super::{
    at,
    world::{SHARD, World, config, replica, small_settings},
};
use crate::{
    id::{Epoch, Incarnation, LogIndex, Position},
    message::{ExecuteResult, LeadStage, ReplicaBody, Tag},
    planted::Planted,
    server::ServerSettings,
};

#[test]
fn a_shard_replicates_and_answers() {
    let mut world = World::serving(3);
    world.write_all(1, 1, [10, 20, 30]);
    for id in 1..=3 {
        assert_eq!(world.read_now(id, 1), [10, 20, 30], "r{id}");
        assert_eq!(world.positions(id), [at(1, 1), at(1, 2), at(1, 3), at(1, 4)], "r{id}");
        assert_eq!(world.view(id).shard(), SHARD);
    }
}

#[test]
fn nothing_is_acknowledged_before_a_write_quorum_has_it_durably() {
    let mut world = World::serving(3);
    world.hold_disk(2);
    world.hold_disk(3);
    let tag = world.write(1, 1, 10);
    world.run(1_000);
    assert_eq!(world.result(tag), None, "only the primary's disk has it");
    world.release_disk(3);
    world.run(10);
    assert!(world.acknowledged(tag));
}

#[test]
fn the_primary_counts_itself_only_once_its_own_disk_has_it() {
    let mut world = World::serving(3);
    world.cut(3);
    world.hold_disk(1);
    let tag = world.write(1, 1, 10);
    world.run(1_000);
    assert_eq!(world.view(2).watermarks().durable, LogIndex(2), "the append went out while the own write was under way");
    assert_eq!(world.result(tag), None);
    world.release_disk(1);
    world.run(1);
    assert!(world.acknowledged(tag));
}

#[test]
fn a_commit_reaches_the_others_within_milliseconds_of_silence() {
    let mut world = World::serving(3);
    world.write_all(1, 1, [10]);
    for id in 1..=3 {
        assert_eq!(world.view(id).watermarks().applied, LogIndex(2), "r{id}");
    }
}

#[test]
fn lost_appends_are_sent_again() {
    let mut world = World::serving(3);
    world.lose("append");
    let tag = world.write(1, 1, 10);
    world.run(1_000);
    assert!(!world.acknowledged(tag));
    world.heal();
    world.run(1_000);
    assert!(world.acknowledged(tag));
}

#[test]
fn appends_follow_each_other_without_waiting() {
    let mut world = World::serving(3);
    world.hold_disk(2);
    world.hold_disk(3);
    for key in 0..10 {
        world.write(1, 1, key);
    }
    world.run(1);
    assert_eq!(world.view(2).watermarks().last, LogIndex(11), "all arrived before the first was acknowledged");
}

#[test]
fn an_append_of_a_lower_epoch_is_refused() {
    let mut world = World::serving(3);
    world.seal(2, 7);
    world.run(1);
    world.heard.clear();
    world.say(1, 2, 6, ReplicaBody::Append { previous: at(1, 1), entries: Vec::new(), commit: LogIndex(1) });
    world.run(1);
    assert!(world.heard.iter().any(|message| message.body == ReplicaBody::Refused && message.epoch == Epoch(7)));
}

#[test]
fn a_primary_that_hears_of_a_higher_epoch_stops_and_says_lame() {
    let mut world = World::serving(3);
    world.say(2, 1, 5, ReplicaBody::Refused);
    let tag = world.write(1, 1, 10);
    assert_eq!(world.result(tag), Some(ExecuteResult::NotPrimary { epoch: Epoch(5), lame: true }));
    assert_eq!(world.status(1).lead, Some(LeadStage::Lame));
}

#[test]
fn what_waits_when_a_primary_steps_down_is_not_answered() {
    let mut world = World::serving(3);
    world.lose("append");
    let tag = world.write(1, 1, 10);
    world.say(2, 1, 5, ReplicaBody::Refused);
    world.heal();
    world.run(1_000);
    assert_eq!(world.result(tag), None);
}

#[test]
fn a_divergent_suffix_is_truncated_and_what_is_committed_stays() {
    let mut world = World::serving(3);
    world.write_all(1, 1, [1]);
    // r1 keeps two entries that nobody else gets.
    world.lose("append");
    world.write(1, 1, 2);
    world.write(1, 1, 3);
    world.run(1);
    world.cut(1);
    world.lose("nothing");
    world.heal();
    world.cut(1);
    world.reconfigure(&[2, 3], &config(2, 2, &[1, 2, 3], 2));
    world.write_all(2, 2, [4, 5]);
    world.heal();
    world.run(1_000);
    assert_eq!(world.positions(1), [at(1, 1), at(1, 2), at(2, 3), at(2, 4), at(2, 5)]);
    assert_eq!(world.read_now(1, 2), [1, 4, 5]);
}

#[test]
fn a_restarted_follower_replays_to_its_stored_commit_and_no_further() {
    let mut world = World::serving(3);
    world.write_all(1, 1, [1, 2, 3]);
    let stored = world.view(2).watermarks();
    assert_eq!(stored.commit, LogIndex(4));
    world.cut(2);
    world.restart(2);
    world.run(100);
    let marks = world.view(2).watermarks();
    assert!(marks.commit < LogIndex(4), "R2: the hint trails: {marks:?}");
    assert_eq!(marks.applied, marks.commit);
    assert_eq!(world.view(2).verified(), LogIndex(0), "R2: nothing is verified after a restart");
    world.heal();
    world.run(300);
    assert_eq!(world.view(2).watermarks().applied, LogIndex(4));
}

#[test]
fn a_commit_index_is_used_only_up_to_what_was_verified_in_the_epoch() {
    let mut world = World::serving(3);
    world.lose("append");
    world.write(1, 1, 2);
    world.run(1);
    // A primary of epoch 9 that agrees with r1 only up to the barrier knows much more to be committed.
    world.say(3, 1, 9, ReplicaBody::Append { previous: at(1, 1), entries: Vec::new(), commit: LogIndex(50) });
    assert_eq!(world.view(1).watermarks().commit, LogIndex(1), "R2");
}

#[test]
fn an_append_of_a_higher_epoch_raises_the_promise_in_the_same_batch() {
    let mut world = World::serving(3);
    world.hold_disk(3);
    world.say(2, 3, 9, ReplicaBody::Append { previous: at(1, 1), entries: Vec::new(), commit: LogIndex(1) });
    world.crash(3);
    world.restart(3);
    assert_eq!(world.view(3).promised(), Epoch(1), "nothing was synced");
    world.say(2, 3, 9, ReplicaBody::Append { previous: at(1, 1), entries: Vec::new(), commit: LogIndex(1) });
    world.run(1);
    world.restart(3);
    assert_eq!(world.view(3).promised(), Epoch(9), "R4");
}

#[test]
fn a_full_primary_says_busy() {
    let settings = ServerSettings { executes_max: 3, ..ServerSettings::default() };
    let mut world = World::with(3, settings, Planted::NONE).formed(3);
    world.cut(2);
    world.cut(3);
    let tags: Vec<_> = (0..4).map(|key| world.write(1, 1, key)).collect();
    assert_eq!(tags.iter().map(|tag| world.result(*tag)).collect::<Vec<_>>(), [None, None, None, Some(ExecuteResult::Busy)]);
}

#[test]
fn a_quorum_of_one_and_a_quorum_of_all_both_serve() {
    for quorum in [1, 3] {
        let mut world = World::new(3);
        world.install(&config(1, 1, &[1, 2, 3], quorum), 1, Position::ZERO);
        world.run(10);
        world.activate(1, 1);
        world.write_all(1, 1, [1]);
        assert_eq!(world.read_now(1, 1), [1], "w {quorum}");
        world.cut(3);
        let tag = world.write(1, 1, 2);
        world.run(100);
        assert_eq!(world.acknowledged(tag), quorum == 1, "w {quorum}");
    }
}

#[test]
fn the_log_is_compacted_behind_what_is_flushed() {
    let mut world = World::with(3, small_settings(), Planted::NONE).formed(3);
    world.write_all(1, 1, 0..30);
    let marks = world.view(1).watermarks();
    assert!(marks.base > LogIndex(15) && marks.base <= marks.flushed, "{marks:?}");
    world.restart(2);
    world.run(300);
    assert_eq!(world.read_now(2, 1).len(), 30);
}

#[test]
fn an_old_epochs_entry_is_committed_only_under_one_of_the_own() {
    let mut world = World::serving(3);
    world.lose("appended");
    let tag = world.write(1, 1, 1);
    world.run(1);
    assert!(!world.acknowledged(tag), "r2 and r3 have it, r1 does not know");
    world.crash(1);
    world.heal();
    for id in [2, 3] {
        world.seal(id, 2);
    }
    world.run(1);
    world.install(&config(2, 2, &[2, 3], 2), 2, at(1, 2));
    world.run(100);
    assert_eq!(world.progress(2, 2), Some(LeadStage::Installed));
    assert_eq!(
        world.view(2).watermarks().commit,
        LogIndex(1),
        "nothing of epoch 1 is committed by counting, nothing at all before activation"
    );
    world.activate(2, 2);
    assert_eq!(world.view(2).watermarks().commit, LogIndex(3));
    assert_eq!(world.view(2).configuration().map(|config| config.primary), Some(replica(2)));
}

#[test]
fn a_log_that_is_full_is_compacted_though_nothing_is_written_any_more() {
    let settings = ServerSettings { log_bytes_max: 2_000, log_keep_bytes: 1_000, ..ServerSettings::default() };
    let mut world = World::with(3, settings, Planted::NONE).formed(3);
    let tags: Vec<_> = (0..100).map(|key| world.write(1, 1, key)).collect();
    world.run(10);
    assert!(tags.iter().any(|tag| world.result(*tag) == Some(ExecuteResult::Busy)), "nothing has reached the rows yet");
    world.run(5_000);
    let tag = world.write(1, 1, 100);
    world.run(10);
    assert!(world.acknowledged(tag), "{:?}", world.result(tag));
}

#[test]
fn a_member_that_asks_and_does_not_hear_is_said_to_be_unreached() {
    // Cut one way: what it sends arrives, nothing comes to it.
    let mut world = World::serving(3);
    world.cut(3);
    for number in 0..20 {
        world.say(3, 1, 1, ReplicaBody::ReadIndex { tag: Tag { life: Incarnation(9), number } });
        world.run(100);
    }
    assert_eq!(world.status(1).unreached, [replica(3)]);
    world.heal();
    world.run(1_000);
    assert_eq!(world.status(1).unreached, []);
}
