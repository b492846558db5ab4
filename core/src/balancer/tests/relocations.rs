//! Replicas that an operator moves, and what is told of why things stand as they do.

use super::world::*;
use crate::{
    balancer::*,
    request::{Reply, RequestError, Subject},
    value::Key,
};

const S4: ServerId = ServerId(4);

fn move_request(from: &str, to: &str) -> Request {
    Request::Move { shard: "sh1".into(), from: from.into(), to: to.into() }
}

fn drain_request(server: &str) -> Request {
    Request::Drain { server: server.into() }
}

fn relocated(to: &[&str]) -> Reply {
    Reply::Relocated { moves: to.iter().map(|to| ("sh1".into(), Box::from(*to))).collect() }
}

/// Three servers with a replica of shard 1, and a fourth, `Server3`, with none.
fn with_a_free_server(balancer_count: usize) -> World {
    let mut world = World::serving(balancer_count);
    let token = world.ask(A, Request::Add { server_count: 1, new_shards: vec![], servers: vec![], strict: true });
    world.run(2_000);
    assert_eq!(world.replies(token).len(), 1);
    world.forget();
    world
}

fn refusal(world: &mut World, request: Request) -> Option<RequestError> {
    let before = world.members();
    let token = world.ask(A, request);
    world.run(1_000);
    assert_eq!(world.members(), before, "nothing moves");
    match &world.replies(token)[..] {
        [Reply::Failed(error)] => Some(error.clone()),
        _ => None,
    }
}

#[test]
fn replica_moves_and_the_shard_serves_from_where_it_went() {
    for from in ["Server0", "Server1", "Server2"] {
        let mut world = with_a_free_server(1);
        let token = world.ask(A, move_request(from, "Server3"));
        world.run(4_000);
        assert_eq!(world.replies(token), [relocated(&["Server3"])], "{from}");
        let leaver = world.map.server_named(from).unwrap();
        assert!(world.members().contains(&S4) && !world.members().contains(&leaver) && world.members().len() == 3, "{from}");
        // Asked again it is done.
        let token = world.ask(A, move_request(from, "Server3"));
        world.run(300);
        assert_eq!(world.replies(token), [relocated(&["Server3"])], "{from}");
        assert!(world.map.servers.contains_key(&leaver), "the server stays");
    }
}

#[test]
fn move_is_answered_only_when_the_new_replica_serves() {
    let mut world = with_a_free_server(1);
    world.servers.get_mut(&S4).unwrap().deaf = true;
    let token = world.ask(A, move_request("Server1", "Server3"));
    world.run(150);
    assert_eq!(world.replies(token), [], "it cannot be there yet");
    let again = world.ask(A, drain_request("Server1"));
    world.run(150);
    assert_eq!(world.replies(again), [], "a drain waits for what was moved before it");
    world.servers.get_mut(&S4).unwrap().deaf = false;
    world.run(6_000);
    assert_eq!((world.replies(token), world.replies(again)), (vec![relocated(&["Server3"])], vec![relocated(&[])]));
}

#[test]
fn replica_that_moves_stays_as_long_as_where_it_goes_is_silent() {
    let mut world = with_a_free_server(1);
    world.servers.get_mut(&S4).unwrap().deaf = true;
    let token = world.ask(A, move_request("Server1", "Server3"));
    // Longer than it takes to suspect it, not long enough for its successor.
    for _ in 0..20 {
        world.run(100);
        assert_eq!(world.members().len(), 3, "{:?}", world.members());
    }
    assert_eq!(world.replies(token), []);
    world.servers.get_mut(&S4).unwrap().deaf = false;
    world.run(6_000);
    assert_eq!(world.replies(token), [relocated(&["Server3"])]);
}

#[test]
fn drained_server_stays_and_holds_nothing() {
    let mut world = with_a_free_server(1);
    let token = world.ask(A, drain_request("Server0"));
    world.run(4_000);
    assert_eq!(world.replies(token), [relocated(&["Server3"])]);
    assert!(!world.members().contains(&S1) && world.members().len() == 3);
    assert!(world.running().contains(&"Server0"));
    let token = world.ask(A, drain_request("Server0"));
    world.run(300);
    assert_eq!(world.replies(token), [relocated(&[])]);
    // A dead one is drained as well: that is when it is wanted.
    let mut world = with_a_free_server(1);
    world.kill(S2);
    world.failing.insert(S2);
    world.run(700);
    let token = world.ask(A, drain_request("Server1"));
    world.run(6_000);
    assert_eq!(world.replies(token), [relocated(&["Server3"])]);
    assert!(!world.members().contains(&S2));
}

/// The servers that shard `name` is placed on, as the map wants it.
fn placed(world: &World, name: &str) -> Vec<Box<str>> {
    let record = &world.map.shards[&world.map.shard_named(name).unwrap()];
    record.placement.iter().map(|server| world.map.servers[server].name.clone()).collect()
}

#[test]
fn drained_server_takes_nothing_until_a_replica_is_moved_to_it() {
    let mut world = with_a_free_server(1);
    let drained = world.ask(A, drain_request("Server0"));
    world.run(4_000);
    assert_eq!(world.replies(drained), [relocated(&["Server3"])]);
    assert_eq!(world.map.drained.iter().collect::<Vec<_>>(), [&S1]);
    // Not what the next one that is drained holds: there is no other.
    let refused = refusal(&mut world, drain_request("Server1")).unwrap();
    assert_eq!(refused.to_string(), "Shard 'sh1' has nowhere to go: every other server that answers holds it already, or was drained");
    assert!(!world.map.drained.contains(&S2), "what is refused marks nothing");
    // Not a new shard.
    let new = crate::request::NewShard { name: "sh2".into(), low: 1_000, size: 10 };
    let added = world.ask(A, Request::Add { server_count: 0, new_shards: vec![new], servers: vec![], strict: true });
    world.run(4_000);
    assert_eq!(world.replies(added).len(), 1);
    assert_eq!(placed(&world, "sh2"), ["Server1", "Server2", "Server3"].map(Box::from));
    // Nor what a removed one held: the quorum of two needs no third, that of three has nowhere to go.
    world.edit(|map| map.settings.write_quorum = Some(3));
    world.run(200);
    let refused = refusal(&mut world, remove_request("Server1")).unwrap();
    assert!(refused.to_string().contains("write quorum"), "{refused}");
    world.edit(|map| map.settings.write_quorum = None);
    world.run(200);
    // An operator names it.
    let moved = world.ask(A, move_request("Server3", "Server0"));
    world.run(4_000);
    assert_eq!(world.replies(moved), [relocated(&["Server0"])]);
    assert!(world.map.drained.is_empty());
    // One that leaves is forgotten with its mark.
    let drained = world.ask(A, drain_request("Server0"));
    world.run(4_000);
    assert_eq!((world.replies(drained), world.map.drained.len()), (vec![relocated(&["Server3"])], 1));
    world.ask(A, remove_request("Server0"));
    world.run(8_000);
    assert!(world.map.server_named("Server0").is_none() && world.map.drained.is_empty());
}

#[test]
fn init_places_nothing_on_a_drained_server_that_it_does_not_name() {
    let mut world = World::new(1);
    world.run(200);
    world.ask(A, Request::Add { server_count: 4, new_shards: vec![], servers: vec![], strict: true });
    world.run(1_000);
    world.ask(A, drain_request("Server1"));
    world.run(500);
    let Request::Init { schema, shards, .. } = init_request(3) else { panic!("an /init") };
    world.ask(A, Request::Init { server_count: Some(4), schema, shards, servers: None, on_conflict: None, by_name: false });
    world.run(4_000);
    assert_eq!(placed(&world, "sh1"), ["Server0", "Server2", "Server3"].map(Box::from));
    assert_eq!(world.map.drained.iter().collect::<Vec<_>>(), [&S2]);
}

#[test]
fn moves_that_cannot_be_are_refused_and_nothing_moves() {
    let mut world = with_a_free_server(1);
    for (request, words) in [
        (move_request("Server0", "Server1"), "Server 'Server1' holds a replica of 'sh1' already"),
        (move_request("Server3", "Server9"), "Server 'Server9' does not exist"),
        (move_request("Server9", "Server3"), "Server 'Server9' does not exist"),
        (move_request("Server0", "Server0"), "'from' and 'to' are the same server"),
        (drain_request("Server9"), "Server 'Server9' does not exist"),
        (Request::Move { shard: "sh9".into(), from: "Server0".into(), to: "Server3".into() }, "Shard 'sh9' does not exist"),
    ] {
        assert_eq!(refusal(&mut world, request.clone()).map(|error| error.to_string()).as_deref(), Some(words), "{request:?}");
    }
    // Nobody who is not there takes a replica, and none goes where each server has one.
    world.kill(S4);
    world.failing.insert(S4);
    world.run(4_000);
    let refused = refusal(&mut world, move_request("Server0", "Server3")).unwrap();
    assert_eq!(refused.to_string(), "Server 'Server3' does not answer");
    let refused = refusal(&mut world, drain_request("Server0")).unwrap();
    assert!(refused.to_string().contains("nowhere to go"), "{refused}");
    // Without a quorum to seal nothing can be moved.
    let mut world = with_a_free_server(1);
    for server in [S1, S2] {
        world.kill(server);
        world.failing.insert(server);
    }
    world.run(4_000);
    let refused = refusal(&mut world, move_request("Server0", "Server3")).unwrap();
    assert!(refused.to_string().contains("too few of its replicas answer"), "{refused}");
}

fn explained(world: &mut World, subject: Subject) -> crate::request::Explanation {
    let token = world.ask(A, Request::Explain(subject));
    world.run(50);
    match &world.replies(token)[..] {
        [Reply::Explained(explanation)] => (**explanation).clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_and_what_it_waits_for_is_explained() {
    let mut world = World::serving(1);
    let fine = explained(&mut world, Subject::Key(Key(7)));
    assert_eq!((&*fine.shard, fine.waits_for.len(), fine.replicas.len()), ("sh1", 0, 3), "{fine:?}");
    let (server, why) = fine.read.clone().unwrap();
    assert!(server.starts_with("Server") && why.starts_with("ring"), "{why}");
    assert!(fine.why_primary[0].contains("leads epoch"), "{:?}", fine.why_primary);
    // The same key is read at the same server, and looking changes nothing.
    assert_eq!(explained(&mut world, Subject::Key(Key(7))).read, fine.read);
    assert_eq!(explained(&mut world, Subject::Shard("sh1".into())).current, fine.current);

    for server in [S1, S2] {
        world.kill(server);
        world.failing.insert(server);
    }
    world.run(1_000);
    let waiting = explained(&mut world, Subject::Shard("sh1".into()));
    let words = waiting.waits_for.join("\n");
    assert!(words.contains("Server0 to answer") && words.contains("nothing can be changed"), "{words}");
    assert_eq!(waiting.read.as_ref().map(|(server, _)| &**server), Some("Server2"), "the one that answers");

    let token = world.ask(A, Request::Explain(Subject::Key(Key(100))));
    world.run(1_000);
    assert_eq!(world.replies(token), [Reply::Failed(RequestError::OutOfRange(Key(100)))]);
    let token = world.ask(A, Request::Explain(Subject::Shard("sh2".into())));
    world.run(1_000);
    assert_eq!(world.replies(token), [Reply::Failed(RequestError::NoSuchShard("sh2".into()))]);
}
