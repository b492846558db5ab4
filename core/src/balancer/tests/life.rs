//! A balancer's own life: its id, its session, the controller's role, its pauses.

use super::world::*;
use crate::{balancer::*, id::Incarnation, map::ControllerHint, message::ToBalancer};

#[test]
fn cluster_lives_through_init_add_move_remove_and_teardown() {
    let mut world = World::serving(1);
    assert_eq!(world.members(), [S1, S2, S3]);
    let added = world.ask(A, add_request("Extra"));
    world.run(3_000);
    assert_eq!(world.replies(added), [Reply::Added { server_count: 4, servers: vec!["Extra".into()] }]);
    assert_eq!(world.members(), [S1, S2, S3, ServerId(4)]);
    let led = world.ask(A, Request::Primary { shard: "sh1".into(), change: false });
    let moved = world.ask(A, Request::Primary { shard: "sh1".into(), change: true });
    world.run(3_000);
    let leads = |token| match &world.replies(token)[..] {
        [Reply::Primary { server: Some(server), epoch }] => (server.clone(), *epoch),
        other => panic!("{other:?}"),
    };
    assert!(leads(led).0 != leads(moved).0 && leads(led).1 < leads(moved).1);
    let removed = world.ask(A, remove_request("Server0"));
    world.run(3_000);
    assert_eq!(world.replies(removed), [Reply::Removed { server_count: 3, servers: vec!["Server0".into()] }]);
    assert_eq!(world.members(), [S2, S3, ServerId(4)]);
    assert!(!world.servers[&S1].runs && world.servers[&S1].replicas.is_empty());
    let servers = ["Server1", "Server2", "Extra"].map(Box::from).to_vec();
    let down = world.ask(A, Request::Remove { server_count: 3, servers, accept_data_loss: false, capped: false });
    world.run(3_000);
    assert!(matches!(&world.replies(down)[..], [Reply::Removed { server_count: 0, .. }]));
    assert!(world.map.servers.is_empty() && world.map.shards.is_empty());
    let again = world.ask(A, init_request(2));
    world.run(3_000);
    assert_eq!(world.replies(again), [Reply::Initialised]);
    assert_eq!(world.running(), ["Server0", "Server1"]);
}

#[test]
fn it_mints_its_id_and_session_first_and_sends_nothing_before() {
    let mut world = World::serving(1);
    world.nodes[A].stands = true;
    let minted = world.map.counters;
    let node = world.start(BalancerConfig::default());
    world.nodes[node].holds = true;
    // Not a word, neither while the register is read nor while it is written. `World::check` asserts it too.
    for operations in ["r", "rc"] {
        world.run(5_000);
        assert_eq!(world.operations(node), operations);
        assert!(world.sent(node, |_| true).is_empty() && world.provisions(node).is_empty());
        assert_eq!(world.nodes[node].machine.id(), None);
        world.release_one(node);
    }
    assert_eq!(world.nodes[node].machine.id(), Some(minted.balancer.next()));
    assert_eq!(world.map.sessions.last_key_value(), Some((&minted.session.next(), &minted.balancer.next())));
    world.release(node);
    world.run(100);
    assert_eq!(world.sent(node, |message| matches!(message, ToServer::Heartbeat { .. })).len(), 3);
}

#[test]
fn id_of_a_compare_and_set_whose_answer_was_lost_is_never_used() {
    // R10: it may be another's by now.
    for (fate, expected) in [(Fate::DoneUnheard, 2), (Fate::NotDone, 1), (Fate::Conflict, 1)] {
        let mut world = World::new(1);
        world.doom(|_, _| true, fate);
        world.run(5_000);
        assert!(world.was_doomed());
        assert_eq!(world.nodes[A].machine.id(), Some(BalancerId(expected)), "{fate:?}");
        assert_eq!(world.map.counters.session, SessionId(expected), "{fate:?}");
        assert!(world.nodes[A].machine.is_controlling());
    }
}

#[test]
fn sessions_listed_are_bounded_to_those_of_the_newest_balancers() {
    let mut world = World::new(1);
    world.edit(|map| {
        map.sessions = (1..=64).map(|id| (SessionId(id), BalancerId(id))).collect();
        (map.counters.session, map.counters.balancer) = (SessionId(64), BalancerId(64));
    });
    world.run(1_000);
    assert_eq!(world.map.sessions.len(), SESSIONS_LISTED);
    assert_eq!(world.map.sessions.first_key_value(), Some((&SessionId(2), &BalancerId(2))));
    assert_eq!(world.map.sessions.last_key_value(), Some((&SessionId(65), &BalancerId(65))));
}

#[test]
fn controller_whose_beat_goes_on_keeps_its_role() {
    let mut world = World::serving(3);
    world.run(60_000);
    let holder = world.nodes[A].machine.id();
    assert_eq!(world.map.controller.holder, holder);
    assert!(world.map.controller.beat >= 55, "{}", world.map.controller.beat);
    assert!(!world.nodes[B].machine.is_controlling() && !world.nodes[2].machine.is_controlling());
}

#[test]
fn controller_whose_beat_stands_still_is_succeeded_after_3_s() {
    let mut world = World::serving(2);
    let before = world.map.controller.beat;
    while world.map.controller.beat == before {
        world.run(10);
    }
    world.nodes[A].stands = true;
    world.run(2_900);
    assert!(!world.nodes[B].machine.is_controlling());
    // It may have read the last beat up to half a second late, and the same again when it finds that there is no newer one.
    world.run(1_200);
    assert!(world.nodes[B].machine.is_controlling());
    assert_eq!(world.notes(B).iter().filter(|note| matches!(note, Note::Controlling { .. })).count(), 1);
    // The first one wakes up and finds that it is no longer the controller; `World` checks that it says nothing as one.
    world.nodes[A].stands = false;
    world.run(10_000);
    assert_eq!(world.map.controller.holder, world.nodes[B].machine.id());
    assert!(!world.nodes[A].machine.is_controlling() && world.nodes[B].machine.is_controlling());
}

#[test]
fn where_there_is_never_another_control_is_taken_at_once() {
    let mut world = World::serving(1);
    for (controller_after, controls) in [(Duration::from_millis(3_000), false), (Duration::ZERO, true)] {
        world.nodes[A].stands = true;
        let before = world.map.controller;
        let node = world.start(BalancerConfig { controller_after, ..BalancerConfig::default() });
        world.run(100);
        assert_eq!(world.nodes[node].machine.is_controlling(), controls);
        assert_eq!(world.operations(node).matches('c').count(), 1 + usize::from(controls), "its id, then the role");
        let expected = ControllerHint { holder: world.nodes[node].machine.id(), beat: before.beat + 1 };
        assert_eq!(world.map.controller, if controls { expected } else { before });
        world.nodes[node].stands = true;
    }
}

#[test]
fn router_never_controls_and_a_controller_takes_no_reads_and_writes() {
    let mut world = World::serving(1);
    let router = world.start(BalancerConfig { role: Role::Router, ..BalancerConfig::default() });
    let controller = world.start(BalancerConfig { role: Role::Controller, ..BalancerConfig::default() });
    world.nodes[A].stands = true;
    world.run(10_000);
    assert!(!world.nodes[router].machine.is_controlling() && world.nodes[controller].machine.is_controlling());
    let picked = [router, controller].map(|node| world.ask(node, Request::PickServer { request_id: 1 }));
    let status = world.ask(controller, Request::Status { fresh: false });
    world.run(100);
    assert!(world.replies(picked[0]).iter().all(|reply| *reply != Reply::Failed(RequestError::OnlyControls)));
    assert_eq!(world.replies(picked[1]), [Reply::Failed(RequestError::OnlyControls)]);
    assert!(matches!(&world.replies(status)[..], [Reply::Status(_)]));
    // Alone, a router leaves things as they are.
    world.nodes[controller].stands = true;
    world.kill(S2);
    world.forget();
    world.run(20_000);
    assert!(world.provisions(router).is_empty() && !world.nodes[router].machine.is_controlling());
}

#[test]
fn only_the_holder_of_the_role_provisions_and_says() {
    let mut world = World::new(3);
    world.run(200);
    assert!(world.nodes[A].machine.is_controlling());
    // Whoever is asked: `World` asserts that the words and the provisioning are the holder's.
    let token = world.ask(2, init_request(3));
    world.run(3_000);
    assert_eq!(world.replies(token), [Reply::Initialised]);
    assert_eq!(world.provisioned(A), ["start s1", "start s2", "start s3"]);
    for other in [B, 2] {
        assert!(world.provisions(other).is_empty());
        let acts = |message: &ToServer| !matches!(message, ToServer::Heartbeat { .. } | ToServer::Map { .. });
        assert!(world.sent(other, acts).is_empty());
        assert!(!world.sent(A, acts).is_empty());
    }
}

#[test]
fn own_pause_makes_nobody_suspect() {
    let mut world = World::serving(1);
    world.run(1_000);
    world.forget();
    world.nodes[A].stands = true;
    world.run(5_000);
    world.nodes[A].stands = false;
    world.run(2_000);
    let suspected = |world: &World| world.notes(A).iter().filter(|note| matches!(note, Note::Suspected { .. })).count();
    assert_eq!((suspected(&world), world.provisions(A).len()), (0, 0));
    assert_eq!(world.map.shards[&SH1].current.as_ref().map(|current| current.epoch), Some(world.map.counters.epoch), "nobody was moved");
    // Who died meanwhile is found out, from then on.
    world.nodes[A].stands = true;
    world.run(5_000);
    world.servers.get_mut(&S2).unwrap().deaf = true;
    world.nodes[A].stands = false;
    world.run(400);
    assert_eq!(suspected(&world), 0);
    world.run(200);
    assert_eq!(suspected(&world), 1);
}

#[test]
fn beat_that_is_older_than_the_last_is_ignored() {
    let mut world = World::serving(1);
    let asked = world.ask(A, Request::Status { fresh: false });
    let [Reply::Status(before)] = &world.replies(asked)[..] else { panic!() };
    let owner = world.servers[&S2].owner;
    let old = |owner: u64| ToBalancer::Beat {
        beat: 1,
        incarnation: Incarnation(owner),
        follows: None,
        map_version: MapVersion(0),
        replicas: vec![],
    };
    world.forget();
    world.tell(A, S2, old(owner.0));
    world.tell(A, S2, old(99));
    world.tell(A, ServerId(9), old(owner.0));
    let asked = world.ask(A, Request::Status { fresh: false });
    let [Reply::Status(after)] = &world.replies(asked)[..] else { panic!() };
    assert_eq!(before.servers[&S2].replicas, after.servers[&S2].replicas);
    assert_eq!((after.servers.len(), after.servers[&S2].respawn_count), (3, before.servers[&S2].respawn_count));
    assert!(world.sent(A, |message| matches!(message, ToServer::Map { .. })).is_empty());
    // The newest counts, and shows that the server runs anew.
    world.tell(
        A,
        S2,
        ToBalancer::Beat { beat: 1_000_000, incarnation: Incarnation(99), follows: None, map_version: MapVersion(0), replicas: vec![] },
    );
    let asked = world.ask(A, Request::Status { fresh: false });
    let [Reply::Status(after)] = &world.replies(asked)[..] else { panic!() };
    assert!(after.servers[&S2].replicas.is_empty());
    assert_eq!(after.servers[&S2].respawn_count, before.servers[&S2].respawn_count + 1);
    assert!(world.notes(A).contains(&Note::Restarted { server: S2 }));
    assert_eq!(world.sent(A, |message| matches!(message, ToServer::Map { .. })).len(), 1, "it has none");
}

#[test]
fn servers_need_no_newer_map_for_the_controllers_beat_alone() {
    let mut world = World::serving(1);
    world.run(1_000);
    world.forget();
    let before = world.version;
    world.run(10_000);
    assert!(world.version > before, "it beats");
    assert!(world.sent(A, |message| matches!(message, ToServer::Map { .. })).is_empty());
    world.edit(|map| map.settings.write_quorum = Some(2));
    world.run(2_000);
    assert_eq!(world.sent(A, |message| matches!(message, ToServer::Map { .. })).len(), 3);
}
