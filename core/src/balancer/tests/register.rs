//! The register that loses answers, is away or is changed by others: what a balancer says follows from what it has read back (R10, R17).

use super::world::*;
use crate::{
    balancer::*,
    id::{Incarnation, OwnerNumber},
    map::ReplicaStage,
    message::ToBalancer,
    request::Consistency,
    value::KeyRange,
};

fn creates(message: &ToServer) -> bool {
    matches!(message, ToServer::Create { .. })
}

/// A cluster that serves, in whose map shard 1 has one more replica that is only minted, on server 3. The controller has not read it yet,
/// and its register's answers are held back.
fn minted() -> World {
    let mut world = World::serving(1);
    world.run(500);
    world.edit(|map| {
        let id = map.counters.replica.next();
        map.counters.replica = id;
        let record = map.replicas.values_mut().find(|record| record.server == S3).unwrap();
        let minted = *record;
        record.stage = ReplicaStage::Retired;
        map.replicas.insert(id, crate::map::ReplicaRecord { stage: ReplicaStage::Minted, ..minted });
    });
    world.servers.get_mut(&S3).unwrap().replicas.clear();
    world
}

#[test]
fn replica_is_created_only_on_a_map_read_after_the_owner_was_first_heard() {
    // R17. A new balancer hears of the owners only once it has its id: what it has read by then does not count.
    let mut world = minted();
    world.nodes[A].stands = true;
    let node = world.start(BalancerConfig { controller_after: Duration::ZERO, ..BalancerConfig::default() });
    world.nodes[node].holds = true;
    world.run(100);
    world.release_one(node);
    world.release_one(node);
    world.release_one(node);
    assert!(world.nodes[node].machine.is_controlling());
    // It controls, has read that the replica is minted and hears of everybody.
    world.run(2_000);
    assert!(world.sent(node, |message| matches!(message, ToServer::Heartbeat { .. })).len() > 10);
    assert!(world.sent(node, creates).is_empty());
    // A read is under way. It began when the first server was heard of, before the one that matters.
    world.release_one(node);
    world.run(1_500);
    assert!(world.sent(node, creates).is_empty());
    world.release_one(node);
    assert!(!world.sent(node, creates).is_empty());
}

#[test]
fn replica_is_not_created_for_another_owner_before_the_map_is_read_again() {
    let mut world = minted();
    world.nodes[A].stands = true;
    let node = world.start(BalancerConfig { controller_after: Duration::ZERO, ..BalancerConfig::default() });
    // The server does not take the order yet: it is said again.
    let lose = |world: &mut World| world.servers.get_mut(&S3).unwrap().replicas.clear();
    world.run(1_500);
    assert!(!world.sent(node, creates).is_empty());
    lose(&mut world);
    world.edit(|map| {
        let id = map.counters.replica.next();
        map.counters.replica = id;
        for record in map.replicas.values_mut().filter(|record| record.server == S3) {
            record.stage = ReplicaStage::Retired;
        }
        map.replicas.insert(id, crate::map::ReplicaRecord { shard: SH1, server: S3, stage: ReplicaStage::Minted });
    });
    world.nodes[node].holds = true;
    // Somebody asks for something, so that a read is under way when the server shows up with another owner.
    world.ask(node, add_request("Extra"));
    assert!(world.operations(node).ends_with('r'));
    world.forget();
    world.servers.get_mut(&S3).unwrap().owner = OwnerNumber(50);
    world.run(100);
    assert!(world.notes(node).contains(&Note::Restarted { server: S3 }));
    world.release_one(node);
    world.run(300);
    assert_eq!(world.sent(node, creates), [], "that read began before");
    // The next one did not.
    world.release(node);
    world.run(100);
    let lives: Vec<Incarnation> = world
        .sent(node, creates)
        .iter()
        .filter_map(|(to, message)| match message {
            ToServer::Create { incarnation, .. } if *to == S3 => Some(*incarnation),
            _ => None,
        })
        .collect();
    assert!(!lives.is_empty() && lives.iter().all(|life| *life == Incarnation(50)), "{lives:?}");
}

/// Whether the compare-and-set proposes something.
fn proposes(before: &ClusterMap, after: &ClusterMap) -> bool {
    before.counters.epoch != after.counters.epoch
}

/// Whether it activates something.
fn activates(before: &ClusterMap, after: &ClusterMap) -> bool {
    before.shards.iter().any(|(id, record)| after.shards.get(id).is_some_and(|after| after.current != record.current))
}

/// A failover whose proposal or activation meets the fate. `World` checks every word (R10).
fn failover(planted: Planted, picks: Picks, fate: Fate) {
    let mut world = World::serving(1);
    world.nodes[A].stands = true;
    world.start(BalancerConfig { controller_after: Duration::ZERO, planted, ..BalancerConfig::default() });
    world.run(1_000);
    world.doom(picks, fate);
    world.servers.get_mut(&S1).unwrap().deaf = true;
    world.mute.insert(S1);
    world.run(1_000);
    world.forget();
    if fate == Fate::Late {
        // Whether it can still be done is for the register to say.
        world.land();
    }
    world.run(5_000);
    assert!(world.was_doomed());
    assert_eq!(world.members(), [S2, S3], "{fate:?}");
    let current = world.map.shards[&SH1].current.clone().unwrap();
    let server = world.map.server_of(current.primary).unwrap();
    let leader = &world.servers[&server].replicas[&current.primary];
    assert_eq!((leader.promised, leader.lead), (current.epoch, Some(crate::message::LeadStage::Active)));
}

#[test]
fn nothing_is_said_of_a_compare_and_set_whose_answer_was_lost_before_it_is_read_back() {
    for fate in [Fate::DoneUnheard, Fate::NotDone, Fate::Late, Fate::Conflict] {
        failover(Planted::NONE, proposes, fate);
        failover(Planted::NONE, activates, fate);
    }
}

#[cfg(feature = "planted")]
#[test]
#[should_panic(expected = "R10")]
fn controller_that_acts_on_its_intention_is_caught() {
    failover(Planted::with(Bug::ActsOnIntention), proposes, Fate::NotDone);
}

#[test]
fn lost_answer_and_conflict_are_followed_by_a_read() {
    for fate in [Fate::DoneUnheard, Fate::NotDone, Fate::Conflict] {
        let mut world = World::serving(1);
        world.forget();
        world.doom(|_, _| true, fate);
        world.run(3_000);
        assert!(world.was_doomed());
        assert!(world.operations(A).starts_with("crc"), "{fate:?}: {}", world.operations(A));
    }
}

#[test]
fn register_that_is_away_is_asked_ever_less_often_and_found_again() {
    let mut world = World::serving(1);
    world.forget();
    world.down = true;
    world.run(60_000);
    let asked = world.operations(A).len();
    assert!((15..60).contains(&asked), "asked {asked} times in a minute");
    assert!(world.provisions(A).is_empty() && world.notes(A).is_empty());
    let warnings = |world: &mut World| {
        let asked = world.ask(A, Request::Status { fresh: false });
        let [Reply::Status(status)] = &world.replies(asked)[..] else { panic!() };
        status.warnings.len()
    };
    assert_eq!(warnings(&mut world), 1, "people are told");
    let before = world.version;
    world.down = false;
    world.run(3_200);
    assert_eq!(warnings(&mut world), 0);
    assert!(world.version > before, "it beats again");
    // And is as quick as ever at the next time.
    world.forget();
    world.down = true;
    world.run(1_500);
    assert!(world.operations(A).len() >= 3, "{}", world.operations(A));
}

#[test]
fn answer_to_something_else_is_ignored() {
    let mut world = World::serving(1);
    world.nodes[A].holds = true;
    world.run(2_000);
    world.forget();
    let stale = Arc::new(ClusterMap::default());
    for answer in [RegisterAnswer::Swapped, RegisterAnswer::Conflict, RegisterAnswer::Read { version: MapVersion(9_999), map: stale }] {
        world.step(A, BalancerInput::Register { token: Token(9_999_999), answer });
        world.run(200);
        assert_eq!(world.operations(A), "", "it still waits for the other answer");
    }
    assert_eq!(world.nodes[A].machine.map().unwrap().1.servers.len(), 3);
    world.release(A);
    world.run(2_000);
    assert!(world.operations(A).contains('c'));
}

#[test]
fn balancer_that_does_not_control_follows_the_map() {
    let mut world = World::serving(2);
    world.edit(|map| map.settings.write_quorum = Some(3));
    world.run(700);
    assert_eq!(world.nodes[B].machine.map().unwrap().1.settings.write_quorum, Some(3));
    // It tells servers of it, but does nothing about it.
    world.tell(
        B,
        S1,
        ToBalancer::Beat { beat: 1_000_000, incarnation: Incarnation(1), follows: None, map_version: MapVersion(1), replicas: vec![] },
    );
    let told = world.sent(B, |message| matches!(message, ToServer::Map { .. }));
    assert!(told.iter().any(|(to, _)| *to == S1));
}

#[test]
fn requests_that_want_the_register_read_do_not_keep_it_from_being_written() {
    // As clients do that read a range with a gap in it: one more has always come since the last read began.
    let mut world = World::serving(1);
    world.nodes[A].holds = true;
    world.kill(S1);
    let led = world.map.shards[&SH1].current.clone().unwrap();
    let read = Request::Read { range: KeyRange::ALL, limit: 1, consistency: Consistency::Linearizable };
    for _ in 0..3_000 {
        world.ask(A, read.clone());
        world.run(1);
        world.release_one(A);
    }
    assert_ne!(world.map.shards[&SH1].current.clone().unwrap().primary, led.primary);
}

fn went_back(world: &World, node: usize) -> Vec<Note> {
    world.notes(node).into_iter().filter(|note| matches!(note, Note::RegisterWentBack { .. })).collect()
}

/// The map changes so many times, and the servers are told.
fn change(world: &mut World, count: u32) {
    for quorum in 1..=count {
        world.edit(|map| map.settings.write_quorum = Some(quorum));
        world.run(1_500);
    }
}

#[test]
fn register_that_went_back_is_changed_no_more() {
    let mut world = World::serving(1);
    let old = (world.version, Arc::clone(&world.map));
    change(&mut world, 9);
    let told = world.servers.values().map(|server| server.map_version).max().unwrap();
    // The database is restored from an older copy, and another balancer takes over.
    world.nodes[A].stands = true;
    (world.version, world.map) = old.clone();
    let node = world.start(BalancerConfig { controller_after: Duration::ZERO, ..BalancerConfig::default() });
    world.run(500);
    let found = match went_back(&world, node)[..] {
        [Note::RegisterWentBack { told: from, found }] => {
            assert_eq!(from, told);
            found
        }
        ref notes => panic!("{notes:?}"),
    };
    assert!(found < told && !world.nodes[node].machine.is_controlling());
    let (version, map) = (world.version, Arc::clone(&world.map));
    world.forget();
    // What would make a controller act.
    world.kill(S1);
    let asked = world.ask(node, add_request("Extra"));
    let write = Request::Write {
        operations: vec![crate::command::Operation::Delete { key: crate::value::Key(1) }],
        on_conflict: None,
        idempotency: None,
    };
    world.ask(node, write);
    world.run(20_000);
    assert_eq!((world.version, &world.map), (version, &map));
    assert!(!world.operations(node).contains('c') && world.operations(node).len() < 60, "{}", world.operations(node));
    assert!(world.provisions(node).is_empty() && went_back(&world, node).is_empty() && world.replies(asked).is_empty());
    assert_eq!(world.sent(node, |message| matches!(message, ToServer::Execute(_))), [], "its session may be another's");
    let status = world.ask(node, Request::Status { fresh: false });
    let [Reply::Status(status)] = &world.replies(status)[..] else { panic!() };
    assert!(status.warnings[0].contains(&format!("went back from {told} to {found}")), "{:?}", status.warnings);
}

fn delete_request() -> Request {
    let operations = vec![crate::command::Operation::Delete { key: crate::value::Key(1) }];
    Request::Write { operations, on_conflict: None, idempotency: None }
}

#[test]
#[expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "a step that never returns can only be told from outside")]
fn balancer_whose_register_went_back_with_a_write_in_flight_goes_on_running() {
    let (done, is_done) = std::sync::mpsc::channel();
    // On a thread of its own: a step that does not return fails the test, and does not hang it.
    std::thread::spawn(move || {
        let mut world = World::serving(1);
        let old = (world.version, Arc::clone(&world.map));
        change(&mut world, 9);
        world.nodes[A].stands = true;
        (world.version, world.map) = old;
        // Nothing is heard of servers before a write is in flight.
        world.servers.values_mut().for_each(|server| server.deaf = true);
        let node = world.start(BalancerConfig { controller_after: Duration::ZERO, ..BalancerConfig::default() });
        world.run(50);
        let first = world.ask_for(node, delete_request(), 5_000);
        assert_eq!(world.sent(node, |message| matches!(message, ToServer::Execute(_))).len(), 1, "or nothing is in flight");
        world.servers.values_mut().for_each(|server| server.deaf = false);
        world.run(500);
        assert_eq!(went_back(&world, node).len(), 1);
        let second = world.ask_for(node, delete_request(), 5_000);
        // The first reaches its deadline: whoever waits in line for its number would be let out.
        world.run(6_000);
        let _ = done.send((world.replies(first), world.replies(second)));
    });
    let (first, second) = is_done.recv_timeout(std::time::Duration::from_secs(20)).expect("a step of the machine does not return");
    assert_eq!(first, [Reply::Failed(RequestError::OutcomeUnknown)]);
    assert!(matches!(second[..], [Reply::Failed(RequestError::ShardUnavailable(_))]), "{second:?}");
}

#[test]
fn register_that_went_back_under_its_controller_is_found_by_reading_it_again() {
    // Otherwise it reads nothing: each of its compare-and-sets finds the version that it knows.
    let mut world = World::serving(1);
    let mine = world.nodes[A].machine.map().unwrap().0;
    let later = MapVersion(mine.0 + 90);
    world.forget();
    world.nodes[A].holds = true;
    world.run(1_500);
    assert!(world.operations(A).ends_with('c'));
    world.tell(
        A,
        S1,
        ToBalancer::Beat { beat: 1_000_000, incarnation: Incarnation(1), follows: None, map_version: later, replicas: vec![] },
    );
    world.release_one(A);
    assert_eq!(went_back(&world, A), [], "it was under way when the server spoke");
    world.release(A);
    world.run(100);
    assert_eq!(went_back(&world, A).len(), 1);
    assert!(!world.nodes[A].machine.is_controlling());
}

#[test]
fn answers_that_are_lost_or_late_do_not_look_like_a_register_that_went_back() {
    for fate in [Fate::DoneUnheard, Fate::NotDone, Fate::Late, Fate::Conflict] {
        let mut world = World::serving(2);
        world.doom(|_, _| true, fate);
        change(&mut world, 3);
        if fate == Fate::Late {
            world.land();
        }
        change(&mut world, 3);
        assert!(world.was_doomed());
        assert_eq!((went_back(&world, A), went_back(&world, B)), (vec![], vec![]), "{fate:?}");
    }
    // A read began, and its answer comes after servers have told of newer maps.
    let mut world = World::serving(2);
    world.nodes[B].holds = true;
    world.run(600);
    assert!(world.operations(B).ends_with('r'));
    change(&mut world, 3);
    let behind = world.nodes[B].machine.map().unwrap().0;
    assert!(world.servers[&S1].map_version > behind);
    world.release_one(B);
    assert_eq!(went_back(&world, B), []);
    world.release(B);
    world.run(1_000);
    assert!(world.nodes[B].machine.map().unwrap().0 > behind);
    assert_eq!(went_back(&world, B), []);
}

/// Asks the second balancer for what the first has just set up, after its last read of the register began.
fn asked_of_the_other(request: Request) -> (World, Token) {
    let mut world = World::new(2);
    world.run(200);
    world.nodes[B].holds = true;
    // Its next poll begins here, and its answer shows the register as it is before.
    world.run(600);
    let initialised = world.ask(A, init_request(3));
    world.run(2_000);
    assert_eq!(world.replies(initialised), [Reply::Initialised]);
    let token = world.ask(B, request);
    assert!(world.release_one(B));
    (world, token)
}

#[test]
fn what_the_map_at_hand_does_not_know_is_refused_only_by_one_read_since() {
    let range = KeyRange::ALL;
    let requests = [
        Request::Status { fresh: true },
        Request::Primary { shard: "sh1".into(), change: false },
        Request::ReadServer { server: "Server0".into(), shard: None, range, limit: 1, wanted: 0, pinned: None },
        Request::Write {
            operations: vec![crate::command::Operation::Delete { key: crate::value::Key(1) }],
            on_conflict: None,
            idempotency: None,
        },
        Request::Read { range: KeyRange { high: range.low, ..range }, limit: 1, consistency: Consistency::Linearizable },
    ];
    for request in requests {
        let (mut world, token) = asked_of_the_other(request.clone());
        assert_eq!(world.replies(token), [], "{request:?} was answered by a map read before it came");
        world.release(B);
        let replies = world.replies(token);
        let refused =
            |reply: &Reply| matches!(reply, Reply::Failed(_)) || matches!(reply, Reply::Status(status) if status.map.schema.is_none());
        assert!(!replies.iter().any(refused), "{request:?} was answered {replies:?}");
    }
    let (world, token) = asked_of_the_other(Request::Status { fresh: false });
    assert!(
        matches!(&world.replies(token)[..], [Reply::Status(status)] if status.map.schema.is_none()),
        "how things stand is told at once"
    );
}

#[test]
fn write_that_was_parked_is_not_sent_to_shards_of_another_schema() {
    let mut world = World::serving(2);
    world.run(1_000);
    // The second balancer's next read of the register begins, and its answer is held.
    world.nodes[B].holds = true;
    world.run(600);
    let before = world.nodes[B].machine.map().unwrap().1.schema.clone();
    let servers = ["Server0", "Server1", "Server2"].map(Box::from).to_vec();
    let down = world.ask(A, Request::Remove { server_count: 3, servers, accept_data_loss: false, capped: false });
    world.run(3_000);
    assert!(matches!(&world.replies(down)[..], [Reply::Removed { server_count: 0, .. }]));
    // The row was checked against the schema that it knows. Its key is in no shard that it knows.
    let row = crate::value::Row { key: crate::value::Key(150), values: vec![] };
    let operations = vec![crate::command::Operation::Insert { row, on_conflict: crate::command::OnConflict::Replace }];
    let write = world.ask(B, Request::Write { operations, on_conflict: None, idempotency: None });
    let Request::Init { mut shards, .. } = init_request(3) else { unreachable!() };
    shards[0].size = 1_000;
    let column = |name: &str, dtype| crate::schema::Column { name: name.into(), dtype };
    let columns = vec![column("Other_id", crate::schema::ColumnType::Number), column("Other_name", crate::schema::ColumnType::String)];
    let schema = crate::schema::Schema::new(columns).unwrap();
    let init = Request::Init { server_count: Some(3), schema, shards, servers: None, on_conflict: None, by_name: false };
    let again = world.ask(A, init);
    world.run(3_000);
    assert_eq!(world.replies(again), [Reply::Initialised]);
    assert_eq!(world.nodes[B].machine.map().unwrap().1.schema, before, "or it was told meanwhile");
    world.forget();
    world.release(B);
    world.run(1_000);
    assert_eq!(world.sent(B, |message| matches!(message, ToServer::Execute(_))), []);
    assert_eq!(world.replies(write), [Reply::Failed(RequestError::SchemaChanged)]);
}
