//! Each planted bug of replicas and servers changes what it is meant to change, and nothing of the kind happens without it.

use super::{
    at,
    world::{World, config, replica, small_settings},
};
use crate::{
    id::{Epoch, Incarnation, LogIndex, Position, SessionId},
    message::{Freshness, LeadStage, ReplicaBody, ToBalancer},
    planted::{Bug, Planted},
    storage::LogRecord,
};

/// The story ends badly with the bug and well without it.
fn check(bug: Bug, ends_badly: fn(Planted) -> bool) {
    assert!(!ends_badly(Planted::NONE), "{}: without the bug", bug.name());
    assert!(ends_badly(Planted::with(bug)), "{}: with the bug", bug.name());
}

fn serving(planted: Planted) -> World {
    World::with(3, crate::server::ServerSettings::default(), planted).formed(3)
}

#[test]
fn acknowledges_before_durable() {
    check(Bug::AcknowledgesBeforeDurable, |planted| {
        let mut world = serving(planted);
        world.hold_disk(2);
        world.hold_disk(3);
        let tag = world.write(1, 1, 1);
        world.run(100);
        world.acknowledged(tag)
    });
}

#[test]
fn commits_old_epoch_by_counting() {
    check(Bug::CommitsOldEpochByCounting, |planted| {
        let mut world = serving(planted);
        world.lose("appended");
        world.write(1, 1, 1);
        world.run(1);
        world.crash(1);
        world.heal();
        world.seal(2, 2);
        world.seal(3, 2);
        world.run(1);
        // r3 has the old entry and the barrier only in memory, not on disk, as far as r2 knows nothing of the barrier.
        world.install(&config(2, 2, &[1, 2, 3], 2), 2, at(1, 2));
        world.hold_disk(2);
        world.run(100);
        world.view(2).watermarks().commit >= LogIndex(2)
    });
}

#[test]
fn reads_without_round() {
    check(Bug::ReadsWithoutRound, |planted| {
        let mut world = serving(planted);
        world.cut(1);
        let tag = world.read(1, Freshness::Linearizable(Epoch(1)));
        world.run(10);
        world.keys(tag).is_some()
    });
}

#[test]
fn later_reads_share_round() {
    check(Bug::LaterReadsShareRound, |planted| {
        let mut world = serving(planted);
        world.lose("round-confirmed");
        world.read(1, Freshness::Linearizable(Epoch(1)));
        let later = world.read(1, Freshness::Linearizable(Epoch(1)));
        world.say(2, 1, 1, ReplicaBody::RoundConfirmed { round: 1 });
        world.keys(later).is_some()
    });
}

#[test]
fn restarted_primary_goes_on() {
    check(Bug::RestartedPrimaryGoesOn, |planted| {
        let mut world = serving(planted);
        world.write_all(1, 1, [1]);
        world.map(1, 5, crate::server::tests::ready(3));
        world.run(300);
        world.restart(1);
        world.run(500);
        world.activate(1, 1);
        let tag = world.write(1, 1, 2);
        world.run(500);
        world.acknowledged(tag)
    });
}

#[test]
fn counts_learners() {
    check(Bug::CountsLearners, |planted| {
        let mut world = World::with(4, crate::server::ServerSettings::default(), planted).formed(3);
        world.learn(1, 1, &[4]);
        world.run(200);
        world.cut(2);
        world.cut(3);
        let tag = world.write(1, 1, 1);
        world.run(500);
        world.acknowledged(tag)
    });
}

#[test]
fn serves_unactivated() {
    check(Bug::ServesUnactivated, |planted| {
        let mut world = World::with(3, crate::server::ServerSettings::default(), planted);
        world.install(&config(1, 1, &[1, 2, 3], 2), 1, Position::ZERO);
        world.run(100);
        let tag = world.write(1, 1, 1);
        world.run(100);
        world.acknowledged(tag)
    });
}

#[test]
fn snapshot_in_two_persists() {
    check(Bug::SnapshotInTwoPersists, |planted| {
        let mut world = World::with(3, small_settings(), planted).formed(3);
        world.write_all(1, 1, [1, 2]);
        world.lose("snapshot-part");
        world.lose("append");
        // Entries that r2 acknowledged and does not know to be committed.
        world.heal();
        world.lose("snapshot-part");
        world.cut(3);
        let tag = world.write(1, 1, 3);
        world.settle();
        assert!(world.acknowledged(tag));
        world.say(1, 2, 1, ReplicaBody::NeedSnapshot { base: at(1, 3) });
        world.seal(2, 2);
        world.run(10);
        world.promise(2, 2) < Some(at(1, 4))
    });
}

#[test]
fn commits_unverified() {
    check(Bug::CommitsUnverified, |planted| {
        let mut world = serving(planted);
        world.lose("append");
        world.write(1, 1, 1);
        world.run(1);
        world.say(3, 1, 9, ReplicaBody::Append { previous: at(1, 1), entries: Vec::new(), commit: LogIndex(2) });
        world.view(1).watermarks().commit == LogIndex(2)
    });
}

#[test]
fn promises_before_writes() {
    check(Bug::PromisesBeforeWrites, |planted| {
        let mut world = serving(planted);
        world.hold_disk(2);
        world.seal(2, 2);
        world.run(10);
        world.promise(2, 2).is_some()
    });
}

#[test]
fn installs_twice() {
    check(Bug::InstallsTwice, |planted| {
        let mut world = serving(planted);
        for id in [1, 2, 3] {
            world.seal(id, 2);
        }
        world.run(1);
        world.install(&config(2, 2, &[1, 2, 3], 2), 3, at(1, 1));
        world.run(1);
        world.heard.clear();
        world.install(&config(2, 2, &[1, 2, 3], 2), 1, at(1, 1));
        world.run(1);
        world.heard.iter().any(|message| matches!(message.body, ReplicaBody::FetchLog { .. }))
    });
}

#[test]
fn installs_on_write_quorum() {
    check(Bug::InstallsOnWriteQuorum, |planted| {
        let mut world = World::with(3, crate::server::ServerSettings::default(), planted);
        world.cut(3);
        world.install(&config(1, 1, &[1, 2, 3], 1), 1, Position::ZERO);
        world.run(500);
        world.status(1).lead == Some(LeadStage::Installed)
    });
}

#[test]
fn creates_again() {
    check(Bug::CreatesAgain, |planted| {
        let mut world = serving(planted);
        world.wipe(3);
        world.start(3);
        let message = crate::message::ToServer::Create {
            version: crate::id::MapVersion(1),
            incarnation: Incarnation(1),
            replica: replica(3),
            shard: super::world::SHARD,
        };
        world.inbox.clear();
        world.order(super::world::home(replica(3)), message);
        world.run(10);
        world.inbox.iter().any(|(_, message)| *message == ToBalancer::Created { replica: replica(3) })
    });
}

#[test]
fn keeps_id_after_losing_disk() {
    check(Bug::KeepsIdAfterLosingDisk, |planted| {
        let mut world = serving(planted);
        world.wipe(3);
        world.start(3);
        world.map(3, 5, crate::server::tests::ready(3));
        world.run(10);
        world.status(3).lost.is_none() && world.disk(3).log.iter().any(|record| matches!(record, LogRecord::Create { .. }))
    });
}

#[test]
fn snapshot_without_sessions() {
    check(Bug::SnapshotWithoutSessions, |planted| {
        let mut world = World::with(4, small_settings(), planted).formed(3);
        world.write_all(1, 1, 0..40);
        world.learn(1, 1, &[4]);
        world.run(1_000);
        let sessions = &world.disk(4).rows[&replica(4)].state.sessions;
        !sessions.get(&SessionId(1)).is_some_and(|session| session.outcomes.contains_key(&1))
    });
}
