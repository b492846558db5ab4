//! Stories of whole servers: creation and removal (R17, R18), the map, what is lost, their own HTTP.

use crate::{
    command::{Idempotency, OnConflict, Operation, Verdict},
    id::{Incarnation, LogIndex, MapVersion, Position, ReplicaId},
    map::{ClusterMap, ReplicaRecord, ReplicaStage, ServerGoal, ServerRecord, ShardRecord},
    message::{LeadStage, ToBalancer, ToServer},
    planted::Planted,
    replica::tests::world::{SHARD, World, config, home, replica, server},
    request::{Consistency, RequestError, ServerReply, ServerRequest},
    schema::{Column, ColumnType, Schema},
    server::ServerSettings,
    storage::{LogRecord, LostReason},
    value::{Key, KeyRange, Row},
};
use std::collections::{BTreeMap, BTreeSet};

/// A map with one shard of 1,000 keys, whose replicas are in the given stages.
fn map(stages: &[(u64, ReplicaStage)]) -> ClusterMap {
    let members: Vec<u64> = stages.iter().map(|(id, _)| *id).collect();
    let server = |name: &str| ServerRecord { name: name.into(), number: 0, goal: ServerGoal::Run, address: None, incarnation: None };
    let record = ShardRecord {
        name: "sh1".into(),
        low: Key(0),
        size: 1_000,
        current: Some(config(1, 1, &members, crate::config::majority(members.len()))),
        pending: None,
        placement: BTreeSet::new(),
        wanted_primary: None,
    };
    let schema = Schema::new(vec![Column { name: "id".into(), dtype: ColumnType::Number }]).expect("a schema");
    let mut map = ClusterMap { schema: Some(schema), shards: BTreeMap::from([(SHARD, record)]), ..ClusterMap::default() };
    map.counters.replica = ReplicaId(100);
    for (id, stage) in stages {
        let at = home(replica(*id));
        map.servers.insert(at, server(&at.to_string()));
        map.replicas.insert(replica(*id), ReplicaRecord { shard: SHARD, server: at, stage: *stage });
    }
    map
}

pub(crate) fn ready(count: u64) -> ClusterMap {
    map(&(1..=count).map(|id| (id, ReplicaStage::Ready)).collect::<Vec<_>>())
}

fn create(world: &mut World, id: u64, version: u64, incarnation: Incarnation) {
    world.inbox.clear();
    let message = ToServer::Create { version: MapVersion(version), incarnation, replica: replica(id), shard: SHARD };
    world.order(home(replica(id)), message);
    world.run(10);
}

fn created(world: &World, id: u64) -> bool {
    world.inbox.iter().any(|(_, message)| *message == ToBalancer::Created { replica: replica(id) })
}

fn retire(world: &mut World, id: u64) {
    world.order(home(replica(id)), ToServer::Retire { replica: replica(id) });
    world.run(10);
}

#[test]
fn a_replica_is_created_once_and_says_so_again() {
    let mut world = World::new(1);
    let incarnation = world.incarnation(1);
    create(&mut world, 11, 1, incarnation);
    assert!(created(&world, 11));
    create(&mut world, 11, 1, incarnation);
    assert!(created(&world, 11));
    let count =
        world.disk(1).log.iter().filter(|record| matches!(record, LogRecord::Create { replica: of, .. } if *of == replica(11))).count();
    assert_eq!(count, 1);
}

#[test]
fn created_is_said_once_it_is_durable() {
    let mut world = World::new(1);
    let incarnation = world.incarnation(1);
    world.hold_disk(1);
    create(&mut world, 11, 1, incarnation);
    assert!(!created(&world, 11));
    assert!(world.machine(1).replica(replica(11)).is_none());
    world.release_disk(1);
    world.run(1);
    assert!(created(&world, 11));
}

#[test]
fn a_creation_that_was_cut_short_is_done_again_from_the_start() {
    let mut world = World::new(1);
    let incarnation = world.incarnation(1);
    world.hold_disk(1);
    create(&mut world, 11, 1, incarnation);
    world.restart(1);
    assert!(world.machine(1).replica(replica(11)).is_none());
    let incarnation = world.incarnation(1);
    create(&mut world, 11, 1, incarnation);
    assert!(created(&world, 11));
}

#[test]
fn a_create_for_an_earlier_life_is_ignored() {
    let mut world = World::new(1);
    let before = world.incarnation(1);
    world.restart(1);
    create(&mut world, 11, 1, before);
    assert!(!created(&world, 11), "R17");
}

#[test]
fn an_id_that_was_removed_is_not_created_again() {
    let mut world = World::new(1);
    let incarnation = world.incarnation(1);
    retire(&mut world, 1);
    assert!(world.inbox.iter().any(|(_, message)| *message == ToBalancer::Retired { replica: replica(1) }));
    create(&mut world, 1, 9, incarnation);
    assert!(!created(&world, 1), "R17");
    // Nor one that was retired before it came.
    retire(&mut world, 11);
    create(&mut world, 11, 9, incarnation);
    assert!(!created(&world, 11), "R17");
}

#[test]
fn a_create_older_than_a_map_that_has_the_id_ready_or_not_at_all_is_ignored() {
    let mut world = World::new(1);
    let incarnation = world.incarnation(1);
    world.map(1, 5, map(&[(1, ReplicaStage::Ready), (21, ReplicaStage::Minted)]));
    create(&mut world, 11, 4, incarnation);
    assert!(!created(&world, 11), "the map does not have it any more");
    create(&mut world, 21, 4, incarnation);
    assert!(created(&world, 21), "the map still has it as minted");
    world.map(1, 6, map(&[(1, ReplicaStage::Ready), (21, ReplicaStage::Ready), (31, ReplicaStage::Retired)]));
    create(&mut world, 31, 4, incarnation);
    assert!(!created(&world, 31));
    create(&mut world, 41, 7, incarnation);
    assert!(created(&world, 41), "a newer register read than the map held here");
}

#[test]
fn a_removed_replica_stays_away_after_a_restart() {
    let mut world = World::serving(3);
    retire(&mut world, 3);
    world.restart(3);
    assert_eq!(world.machine(3).replicas().count(), 0);
    assert_eq!(world.disk(3).rows.len(), 0);
    retire(&mut world, 3);
    assert!(world.inbox.iter().any(|(from, message)| *from == server(3) && *message == ToBalancer::Retired { replica: replica(3) }));
}

#[test]
fn a_ready_replica_whose_disk_is_gone_is_lost_and_never_empty() {
    let mut world = World::serving(3);
    world.write_all(1, 1, [1]);
    world.map(3, 5, ready(3));
    world.wipe(3);
    world.start(3);
    world.run(1_000);
    assert!(world.machine(3).replica(replica(3)).is_none(), "it does not know yet");
    world.map(3, 5, ready(3));
    assert_eq!(world.status(3).lost, Some(LostReason::LogMissing));
    world.run(1_000);
    assert_eq!(world.status(3).lost, Some(LostReason::LogMissing));
    let incarnation = world.incarnation(3);
    create(&mut world, 3, 5, incarnation);
    assert!(!created(&world, 3));
    retire(&mut world, 3);
    assert!(world.inbox.iter().any(|(_, message)| *message == ToBalancer::Retired { replica: replica(3) }));
    assert_eq!(world.machine(3).replicas().count(), 0);
}

#[test]
fn the_newest_map_survives_a_restart() {
    let mut world = World::new(1);
    world.map(1, 7, ready(1));
    world.map(1, 6, map(&[]));
    world.run(300);
    world.restart(1);
    assert_eq!(world.machine(1).map().map(|(version, map)| (version, map.replicas.len())), Some((MapVersion(7), 1)));
}

#[test]
fn a_map_that_has_a_higher_epoch_as_current_ends_a_primary() {
    let mut world = World::serving(3);
    let mut newer = ready(3);
    newer.shards.get_mut(&SHARD).expect("the shard").current = Some(config(4, 2, &[1, 2, 3], 2));
    world.map(1, 9, newer);
    assert_eq!(world.status(1).lead, Some(LeadStage::Lame), "R5");
}

#[test]
fn a_beat_tells_life_map_and_replicas() {
    let mut world = World::serving(3);
    world.write_all(1, 1, [1]);
    world.map(1, 3, ready(3));
    world.inbox.clear();
    world.order(server(1), ToServer::Heartbeat { beat: 8 });
    let Some((_, ToBalancer::Beat { beat, incarnation, map_version, replicas, .. })) = world.inbox.first() else { panic!("no beat") };
    assert_eq!((*beat, *incarnation, *map_version, replicas.len()), (8, world.incarnation(1), MapVersion(3), 1));
    assert_eq!((replicas[0].commit, replicas[0].applied, replicas[0].lead), (LogIndex(2), LogIndex(2), Some(LeadStage::Active)));
}

// ---- the server's own HTTP ------------------------------------------------------------------------------------------------------

fn configured() -> World {
    let mut world = World::serving(3);
    for id in 1..=3 {
        world.map(id, 2, ready(3));
    }
    world
}

fn write(key: i64) -> ServerRequest {
    let row = Row { key: Key(key), values: Vec::new() };
    let operations = vec![Operation::Insert { row, on_conflict: OnConflict::Replace }];
    ServerRequest::Write { shard: "sh1".into(), operations, idempotency: None }
}

fn read(consistency: Consistency) -> ServerRequest {
    ServerRequest::Read { shard: "sh1".into(), range: KeyRange::ALL, limit: 100, consistency, wanted: 0, pinned: None }
}

#[test]
fn a_write_at_any_server_goes_through_the_log() {
    let mut world = configured();
    for at in 1..=3_u64 {
        let token = world.request(at, write(at.cast_signed()), 1_000);
        world.run(20);
        let Some(ServerReply::Written { outcome, applied }) = world.reply(token) else { panic!("s{at}: {:?}", world.reply(token)) };
        assert!(matches!(outcome.verdict, Verdict::Applied { written_count: 1, .. }));
        assert!(*applied >= outcome.position.index);
    }
    let token = world.request(2, read(Consistency::Linearizable), 1_000);
    world.run(20);
    let Some(ServerReply::Rows { rows, next: None, .. }) = world.reply(token) else { panic!("{:?}", world.reply(token)) };
    assert_eq!(rows.iter().map(|row| row.row.key.0).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn a_write_whose_answer_is_lost_is_unknown_and_a_refused_one_is_not() {
    let mut world = configured();
    world.cut(1);
    let token = world.request(2, write(1), 1_000);
    world.run(1_100);
    assert_eq!(world.reply(token), Some(&ServerReply::Failed(RequestError::OutcomeUnknown)));
    world.heal();
    world.restart(1);
    let (at_home, forwarded) = (world.request(1, write(2), 1_000), world.request(2, write(3), 1_000));
    world.run(1_100);
    assert_eq!(world.reply(at_home), Some(&ServerReply::Failed(RequestError::ShardUnavailable("sh1".into()))), "r1 is lame and says so");
    // r1 says so to s2, too. But the network may have doubled what s2 sent, so s2 cannot know (R25).
    assert_eq!(world.reply(forwarded), Some(&ServerReply::Failed(RequestError::OutcomeUnknown)));
}

#[test]
fn a_write_waits_for_the_new_primary_within_its_deadline() {
    let mut world = configured();
    world.crash(1);
    let token = world.request(3, write(1), 5_000);
    world.run(100);
    world.reconfigure(&[2, 3], &config(2, 2, &[2, 3], 2));
    let mut newer = ready(3);
    newer.shards.get_mut(&SHARD).expect("the shard").current = Some(config(2, 2, &[2, 3], 2));
    world.map(3, 3, newer);
    world.run(500);
    assert!(matches!(world.reply(token), Some(ServerReply::Written { .. })), "{:?}", world.reply(token));
}

#[test]
fn writes_that_wait_for_a_primary_are_different_commands() {
    let mut world = configured();
    let mut without = ready(3);
    without.shards.get_mut(&SHARD).expect("the shard").current = None;
    world.map(2, 3, without);
    let tokens = [world.request(2, write(1), 1_000), world.request(2, write(2), 1_000)];
    world.run(10);
    world.map(2, 4, ready(3));
    world.run(900);
    let index = |token| match world.reply(token) {
        Some(ServerReply::Written { outcome, .. }) => outcome.position.index,
        other => panic!("{other:?}"),
    };
    assert_ne!(index(tokens[0]), index(tokens[1]));
}

#[test]
fn requests_that_are_wrong_are_told_why() {
    let mut world = World::new(1);
    let token = world.request(1, write(1), 1_000);
    assert_eq!(world.reply(token), Some(&ServerReply::Failed(RequestError::NotInitialised)));
    world.map(1, 2, ready(1));
    let token = world.request(1, write(1_000), 1_000);
    assert_eq!(world.reply(token), Some(&ServerReply::Failed(RequestError::OutOfRange(Key(1_000)))));
    let other = ServerRequest::Log { shard: "other".into(), from: LogIndex(1), limit: 1 };
    let token = world.request(1, other, 1_000);
    assert_eq!(world.reply(token), Some(&ServerReply::Failed(RequestError::NoSuchShard("other".into()))));
}

#[test]
fn the_log_of_a_replica_can_be_read() {
    let mut world = configured();
    world.write_all(1, 1, [1, 2]);
    let token = world.request(2, ServerRequest::Log { shard: "sh1".into(), from: LogIndex(2), limit: 1 }, 1_000);
    let Some(ServerReply::Log { entries, last }) = world.reply(token) else { panic!("{:?}", world.reply(token)) };
    assert_eq!((entries.len(), entries[0].position.index, *last), (1, LogIndex(2), LogIndex(3)));
    let token = world.request(2, ServerRequest::Shards, 1_000);
    assert!(matches!(world.reply(token), Some(ServerReply::Shards { names, map: Some(_) }) if **names == ["sh1".into()]));
}

#[test]
fn weaker_reads_at_a_server_that_is_cut_off_still_answer() {
    let mut world = configured();
    world.write_all(1, 1, [1]);
    world.cut(3);
    let stale = world.request(3, read(Consistency::Stale), 1_000);
    let seen = world.request(3, read(Consistency::Session(BTreeMap::from([(SHARD, LogIndex(2))]))), 1_000);
    let linearizable = world.request(3, read(Consistency::Linearizable), 1_500);
    world.run(2_000);
    assert!(matches!(world.reply(stale), Some(ServerReply::Rows { .. })));
    assert!(matches!(world.reply(seen), Some(ServerReply::Rows { .. })));
    assert_eq!(world.reply(linearizable), Some(&ServerReply::Failed(RequestError::ShardUnavailable("sh1".into()))));
}

#[test]
fn requests_beyond_the_bound_are_refused_at_once() {
    let mut world = World::with(3, ServerSettings { requests_max: 1, ..ServerSettings::default() }, Planted::NONE).formed(3);
    world.map(2, 2, ready(3));
    world.cut(2);
    let first = world.request(2, write(1), 1_000);
    let second = world.request(2, write(2), 1_000);
    assert_eq!(world.reply(second), Some(&ServerReply::Failed(RequestError::Overloaded)));
    assert_eq!(world.reply(first), None);
}

#[test]
fn a_clients_own_key_is_kept() {
    let mut world = configured();
    let ServerRequest::Write { shard, operations, .. } = write(1) else { unreachable!("a write") };
    let key = Idempotency { key: "mine".into(), body_hash: 7 };
    world.request(2, ServerRequest::Write { shard, operations, idempotency: Some(key.clone()) }, 1_000);
    world.run(20);
    assert!(world.view(3).entries().any(|entry| entry.idempotency.as_ref() == Some(&key)));
    assert_ne!(world.view(3).log().last(), Position::ZERO);
}
