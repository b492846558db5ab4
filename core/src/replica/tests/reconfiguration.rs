//! Reconfiguration: R3, R11 to R15.

use super::{
    at,
    world::{World, config, home, replica},
};
use crate::{
    command::Command,
    id::{Epoch, LogIndex, Position},
    message::{ExecuteResult, Freshness, Install, LeadStage, ReplicaBody, ToServer},
};

#[test]
fn an_installed_primary_commits_and_answers_nothing_before_it_is_activated() {
    let mut world = World::new(3);
    world.install(&config(1, 1, &[1, 2, 3], 2), 1, Position::ZERO);
    world.run(1_000);
    assert_eq!(world.progress(1, 1), Some(LeadStage::Installed), "told without being asked again");
    assert_eq!(world.view(1).watermarks().commit, LogIndex(0));
    let tag = world.write(1, 1, 1);
    assert_eq!(world.result(tag), Some(ExecuteResult::NotPrimary { epoch: Epoch(1), lame: false }));
    world.activate(1, 2);
    assert_eq!(world.status(1).lead, Some(LeadStage::Installed), "only its own epoch activates it");
    world.activate(1, 1);
    assert_eq!(world.progress(1, 1), Some(LeadStage::Active));
    assert_eq!(world.view(1).watermarks().commit, LogIndex(1));
}

#[test]
fn the_barrier_carries_its_configuration() {
    let world = World::serving(3);
    let first = world.view(2).entries().next().map(|entry| entry.command.clone());
    assert_eq!(first, Some(Command::Barrier(config(1, 1, &[1, 2, 3], 2))), "R19");
}

#[test]
fn installed_means_that_the_configuration_can_be_sealed_again() {
    let mut world = World::new(5);
    world.cut(4);
    world.cut(5);
    // w = 2 of 5: four members must hold the barrier, or a seal quorum of four could miss it.
    world.install(&config(1, 1, &[1, 2, 3, 4, 5], 2), 1, Position::ZERO);
    world.run(1_000);
    assert_eq!(world.status(1).lead, Some(LeadStage::Installing), "R14: three have it");
    world.heal();
    world.cut(5);
    world.run(1_000);
    assert_eq!(world.status(1).lead, Some(LeadStage::Installed));
}

#[test]
fn a_promise_is_answered_once_it_and_all_before_it_is_durable() {
    let mut world = World::serving(3);
    world.hold_disk(2);
    world.write(1, 1, 10);
    world.settle();
    world.seal(2, 5);
    world.run(1_000);
    assert_eq!(world.promise(2, 5), None, "R3");
    world.release_disk(2);
    world.run(1);
    assert_eq!(world.promise(2, 5), Some(at(1, 2)), "R3: with what was written before it");
}

#[test]
fn a_lower_seal_is_answered_with_the_higher_promise() {
    let mut world = World::serving(3);
    world.seal(2, 5);
    world.run(1);
    world.seal(2, 4);
    assert_eq!(world.promise(2, 4), None);
    assert_eq!(world.promise(2, 5), Some(at(1, 1)));
}

#[test]
fn a_sealed_member_takes_no_append_of_the_old_epoch() {
    let mut world = World::serving(3);
    world.seal(2, 2);
    world.seal(3, 2);
    world.run(1);
    let tag = world.write(1, 1, 10);
    world.run(1_000);
    assert!(!world.acknowledged(tag));
    assert_eq!(world.status(1).lead, Some(LeadStage::Lame), "R5, R15: it heard of epoch 2");
}

#[test]
fn the_new_primary_fetches_the_log_of_the_source_whole() {
    let mut world = World::serving(3);
    // r3 has what r2 has not; r1 is gone.
    world.cut(2);
    world.write_all(1, 1, [1, 2, 3, 4, 5, 6]);
    world.crash(1);
    world.heal();
    world.reconfigure(&[2, 3], &config(2, 2, &[2, 3], 2));
    assert!(world.heard.iter().any(|message| matches!(message.body, ReplicaBody::FetchLog { .. })), "r2 is not its own source");
    assert_eq!(world.read_now(2, 2), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn the_new_primary_drops_its_own_suffix_for_the_sources() {
    let mut world = World::serving(3);
    world.write_all(1, 1, [1]);
    // r1 alone has two more, then r2 and r3 go on without it, then r1 shall lead.
    world.lose("append");
    world.write(1, 1, 2);
    world.write(1, 1, 3);
    world.run(1);
    world.heal();
    world.cut(1);
    world.reconfigure(&[2, 3], &config(2, 2, &[2, 3], 2));
    world.write_all(2, 2, [4]);
    world.heal();
    world.seal(2, 3);
    world.seal(3, 3);
    world.seal(1, 3);
    world.run(1);
    world.install(&config(3, 1, &[1, 2, 3], 2), 3, at(2, 4));
    world.run(300);
    world.activate(1, 3);
    assert_eq!(world.positions(1), [at(1, 1), at(1, 2), at(2, 3), at(2, 4), at(3, 5)]);
    assert_eq!(world.read_now(1, 3), [1, 4]);
}

#[test]
fn a_new_primary_that_never_was_a_member_fetches_everything() {
    let mut world = World::new(4).formed(3);
    world.write_all(1, 1, [1, 2, 3]);
    world.reconfigure(&[2, 3], &config(2, 4, &[2, 3, 4], 2));
    assert_eq!(world.read_now(4, 2), [1, 2, 3]);
    world.write_all(4, 2, [4]);
    assert_eq!(world.read_now(3, 2), [1, 2, 3, 4]);
}

#[test]
fn a_second_install_changes_neither_source_nor_log() {
    let mut world = World::serving(3);
    for id in [1, 2, 3] {
        world.seal(id, 2);
    }
    world.run(1);
    world.lose("log-part");
    world.install(&config(2, 2, &[1, 2, 3], 2), 3, at(1, 1));
    world.install(&config(2, 2, &[1, 2, 3], 2), 2, at(1, 1));
    world.run(10);
    assert_eq!(world.progress(2, 2), Some(LeadStage::Installing), "R13: it still waits for r3");
    world.heal();
    world.run(200);
    assert_eq!(world.progress(2, 2), Some(LeadStage::Installed));
    world.install(&config(2, 2, &[1, 2, 3], 2), 2, at(1, 1));
    assert_eq!(world.positions(2), [at(1, 1), at(2, 2)]);
}

#[test]
fn a_source_that_cannot_serve_is_reported_and_not_replaced() {
    let mut world = World::serving(3);
    for id in [2, 3] {
        world.seal(id, 2);
    }
    world.run(1);
    world.crash(3);
    world.install(&config(2, 2, &[1, 2, 3], 2), 3, at(1, 1));
    world.run(2_500);
    assert_eq!(world.progress(2, 2), Some(LeadStage::SourceFailed), "R12");
    world.install(&config(2, 2, &[1, 2, 3], 2), 2, at(1, 1));
    assert_eq!(world.progress(2, 2), Some(LeadStage::SourceFailed), "R13");
}

#[test]
fn a_source_that_answers_without_serving_is_reported() {
    let mut world = World::serving(3);
    for id in [2, 3] {
        world.seal(id, 2);
    }
    world.run(1);
    world.lose("log-part");
    world.install(&config(2, 2, &[1, 2, 3], 2), 3, at(1, 1));
    for _ in 0..25 {
        // Late pieces of something else, again and again.
        world.say(3, 2, 2, ReplicaBody::LogPart { previous: at(1, 7), entries: vec![], commit: LogIndex(1) });
        world.say(3, 2, 2, ReplicaBody::LogGap { hint: at(1, 1), base: Position::ZERO });
        world.run(100);
    }
    assert_eq!(world.progress(2, 2), Some(LeadStage::SourceFailed), "R12");
}

#[test]
fn a_source_whose_disk_is_gone_refuses_at_once() {
    let mut world = World::serving(3);
    for id in [2, 3] {
        world.seal(id, 2);
    }
    world.run(1);
    world.wipe(3);
    world.start(3);
    world.install(&config(2, 2, &[1, 2, 3], 2), 3, at(1, 1));
    world.run(10);
    assert_eq!(world.progress(2, 2), Some(LeadStage::SourceFailed));
}

#[test]
fn a_source_answers_only_with_what_is_durable() {
    let mut world = World::serving(3);
    world.seal(2, 2);
    world.seal(3, 2);
    world.run(1);
    world.install(&config(2, 2, &[2, 3], 2), 3, at(1, 9));
    world.run(10);
    assert_eq!(world.progress(2, 2), Some(LeadStage::SourceFailed), "r3 does not have what it is said to have promised");
}

#[test]
fn a_restarted_primary_is_lame_in_its_epoch_and_may_lead_the_next() {
    let mut world = World::serving(3);
    world.write_all(1, 1, [1]);
    world.restart(1);
    world.run(10);
    assert_eq!(world.status(1).lead, Some(LeadStage::Lame), "R15");
    let tag = world.write(1, 1, 2);
    assert_eq!(world.result(tag), Some(ExecuteResult::NotPrimary { epoch: Epoch(1), lame: true }));
    world.install(&config(1, 1, &[1, 2, 3], 2), 1, Position::ZERO);
    assert_eq!(world.progress(1, 1), Some(LeadStage::Lame));
    world.activate(1, 1);
    assert_eq!(world.progress(1, 1), Some(LeadStage::Lame));
    world.reconfigure(&[1, 2, 3], &config(2, 1, &[1, 2, 3], 2));
    world.write_all(1, 2, [2]);
    assert_eq!(world.read_now(3, 2), [1, 2]);
}

#[test]
fn a_replica_restarted_after_its_promise_does_not_lead_that_epoch() {
    let mut world = World::serving(3);
    for id in [1, 2, 3] {
        world.seal(id, 2);
    }
    world.run(1);
    world.restart(2);
    world.install(&config(2, 2, &[1, 2, 3], 2), 2, at(1, 1));
    assert_eq!(world.progress(2, 2), Some(LeadStage::Lame));
}

#[test]
fn a_newer_proposal_replaces_an_unfinished_one() {
    let mut world = World::serving(3);
    for id in [1, 2, 3] {
        world.seal(id, 2);
    }
    world.run(1);
    world.lose("append");
    world.install(&config(2, 2, &[1, 2, 3], 2), 2, at(1, 1));
    world.run(10);
    assert_eq!(world.positions(2), [at(1, 1), at(2, 2)]);
    world.heal();
    world.cut(2);
    world.reconfigure(&[1, 3], &config(3, 3, &[1, 2, 3], 2));
    world.heal();
    world.write_all(3, 3, [7]);
    world.run(500);
    assert_eq!(world.positions(2), [at(1, 1), at(3, 2), at(3, 3)], "the barrier of an epoch that never was is truncated");
    world.activate(2, 2);
    assert_eq!(world.progress(2, 2), Some(LeadStage::Lame));
}

#[test]
fn an_install_that_is_not_for_the_replica_changes_nothing() {
    let mut world = World::serving(3);
    let broken = Install {
        config: config(2, 2, &[1, 3], 2),
        servers: std::collections::BTreeMap::new(),
        source: replica(2),
        source_server: home(replica(2)),
        source_last: at(1, 1),
    };
    world.order(home(replica(2)), ToServer::Install(broken));
    assert_eq!(world.view(2).promised(), Epoch(1));
    world.write_all(1, 1, [1]);
}

#[test]
fn a_member_that_comes_back_after_the_change_learns_of_it_by_an_append() {
    let mut world = World::serving(3);
    world.crash(3);
    world.reconfigure(&[1, 2], &config(2, 2, &[1, 2, 3], 2));
    world.write_all(2, 2, [1]);
    world.start(3);
    world.run(1_000);
    let tag = world.read(3, Freshness::Linearizable(Epoch(2)));
    world.run(50);
    assert_eq!(world.keys(tag), Some(vec![1]));
}

#[test]
fn a_primary_sends_nothing_of_an_epoch_before_its_promise_is_durable() {
    let mut world = World::new(3);
    world.hold_disk(1);
    world.install(&config(1, 1, &[1, 2, 3], 2), 1, Position::ZERO);
    world.run(1_000);
    assert_eq!(world.view(2).log().last(), Position::ZERO, "a restart would forget that it began the epoch, and begin it again");
    world.release_disk(1);
    world.run(1);
    assert_eq!(world.view(2).log().last(), at(1, 1));
}
