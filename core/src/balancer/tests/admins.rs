//! Administrative requests: judged only on a map read after they came, done once however answers are lost, answered once.

use super::world::*;
use crate::{
    balancer::*,
    map::ServerGoal,
    request::{Reply, RequestError},
};

/// Whether the compare-and-set carries an /init, an /add or a /rm.
fn wishes(before: &ClusterMap, after: &ClusterMap) -> bool {
    let leaving = |map: &ClusterMap| map.servers.values().filter(|record| record.goal == ServerGoal::Leave).count();
    before.schema != after.schema || before.counters.server != after.counters.server || leaving(before) < leaving(after)
}

/// A request, and what has come of it at the end if it was done once.
type Case = (fn() -> World, fn() -> Request, Reply, &'static [&'static str], u64);

fn cases() -> [Case; 4] {
    let fresh = || {
        let mut world = World::new(1);
        world.run(200);
        world
    };
    let generated = || Request::Add { server_count: 2, new_shards: vec![], servers: vec![], strict: true };
    let servers = |names: &[&str]| names.iter().map(|name| Box::from(*name)).collect();
    [
        (fresh, || init_request(3), Reply::Initialised, &["Server0", "Server1", "Server2"], 3),
        (
            || World::serving(1),
            || add_request("Extra"),
            Reply::Added { server_count: 4, servers: servers(&["Extra"]) },
            &["Server0", "Server1", "Server2", "Extra"],
            4,
        ),
        (
            || World::serving(1),
            generated,
            Reply::Added { server_count: 5, servers: servers(&["Server3", "Server4"]) },
            &["Server0", "Server1", "Server2", "Server3", "Server4"],
            5,
        ),
        (
            || World::serving(1),
            || remove_request("Server1"),
            Reply::Removed { server_count: 2, servers: servers(&["Server1"]) },
            &["Server0", "Server2"],
            3,
        ),
    ]
}

#[test]
fn wish_whose_answer_was_lost_is_done_once_and_answered_once() {
    for (world, request, expected, running, servers_minted) in cases() {
        for fate in [Fate::DoneUnheard, Fate::NotDone, Fate::Conflict] {
            let mut world = world();
            world.doom(wishes, fate);
            let token = world.ask(A, request());
            world.run(8_000);
            assert!(world.was_doomed());
            assert_eq!(world.replies(token), std::slice::from_ref(&expected), "{fate:?}");
            assert_eq!(world.running(), running, "{fate:?}");
            assert_eq!(world.map.counters.server, ServerId(servers_minted), "{fate:?}: nobody was added twice");
        }
    }
}

#[test]
fn wish_that_lands_late_is_done_once_and_answered_once() {
    for (world, request, expected, running, servers_minted) in cases() {
        // It lands before the register is read again, or when it was read and the wish is about to be done again.
        for lands_after_read in [false, true] {
            let mut world = world();
            world.doom(wishes, Fate::Late);
            let token = world.ask(A, request());
            world.run(1);
            assert!(world.was_doomed());
            world.nodes[A].holds = true;
            if lands_after_read {
                world.forget();
                while !world.operations(A).ends_with('r') {
                    world.run(10);
                }
            }
            assert!(world.land(), "nothing else was done meanwhile");
            world.release(A);
            world.run(8_000);
            assert_eq!(world.replies(token), std::slice::from_ref(&expected), "after the read: {lands_after_read}");
            assert_eq!(world.running(), running);
            assert_eq!(world.map.counters.server, ServerId(servers_minted));
        }
    }
}

#[test]
fn stale_balancer_does_not_refuse_wrongly() {
    // The second one has not read of the schema yet. Where its poll is under way, what that brings is old too.
    let mut stale = [false, true].map(|polls| {
        let mut world = World::new(2);
        world.run(300);
        if polls {
            world.nodes[B].holds = true;
            world.run(600);
        }
        let init = world.ask(A, init_request(3));
        world.run(if polls { 2_000 } else { 1 });
        assert!(world.map.schema.is_some());
        assert!(world.nodes[B].machine.map().unwrap().1.schema.is_none(), "or it is not stale");
        (world, init)
    });
    for (world, init) in &mut stale {
        let added = world.ask(B, add_request("Extra"));
        let again = world.ask(B, other_init());
        world.release(B);
        world.run(5_000);
        assert_eq!(world.replies(*init), [Reply::Initialised]);
        assert_eq!(world.replies(added), [Reply::Added { server_count: 4, servers: vec!["Extra".into()] }]);
        assert_eq!(world.replies(again), [Reply::Failed(RequestError::AlreadyInitialised)]);
    }
}

fn other_init() -> Request {
    let Request::Init { schema, mut shards, .. } = init_request(3) else { unreachable!() };
    shards[0].name = "other".into();
    Request::Init { server_count: None, schema, shards, servers: None, on_conflict: None, by_name: false }
}

#[test]
fn stale_balancer_does_not_grant_what_was_granted_already() {
    // Both are asked to add a server of the same name while neither knows of the other's.
    let mut world = World::serving(2);
    let first = world.ask(A, add_request("Extra"));
    let second = world.ask(B, add_request("Extra"));
    world.run(5_000);
    let done = Reply::Added { server_count: 4, servers: vec!["Extra".into()] };
    assert_eq!(world.replies(first), std::slice::from_ref(&done));
    // The same /add while the first is under way waits with it.
    assert_eq!(world.replies(second), [done]);
    let third = world.ask(B, add_request("Extra"));
    world.run(1_000);
    let refused = RequestError::Refused("Server 'Extra' exists already".into());
    assert_eq!(world.replies(third), [Reply::Failed(refused)], "now it is no longer under way");
    assert_eq!(world.map.counters.server, ServerId(4));
}

#[test]
fn refusal_is_answered_at_once_and_changes_nothing() {
    let mut world = World::serving(1);
    world.run(100);
    let before = world.map.servers.clone();
    let cases = [
        (init_request(3), RequestError::AlreadyInitialised),
        (add_request("Server1"), RequestError::Refused("Server 'Server1' exists already".into())),
        (remove_request("Nobody"), RequestError::Invalid("Server 'Nobody' does not exist".into())),
        (Request::Primary { shard: "sh9".into(), change: true }, RequestError::NoSuchShard("sh9".into())),
        (Request::Primary { shard: "sh9".into(), change: false }, RequestError::NoSuchShard("sh9".into())),
    ];
    for (request, expected) in cases {
        let token = world.ask(A, request);
        assert_eq!(world.replies(token), [Reply::Failed(expected)]);
    }
    assert_eq!(world.map.servers, before);
}

#[test]
fn refusal_and_wish_that_come_together_both_get_their_answer() {
    let mut world = World::serving(1);
    world.nodes[A].holds = true;
    let added = world.ask(A, add_request("Extra"));
    let twice = world.ask(A, add_request("Extra"));
    let refused = world.ask(A, add_request("Server1"));
    let removed = world.ask(A, remove_request("Server2"));
    world.release(A);
    world.run(5_000);
    assert!(matches!(&world.replies(added)[..], [Reply::Added { .. }]));
    assert!(matches!(&world.replies(twice)[..], [Reply::Added { .. }]));
    assert!(matches!(&world.replies(refused)[..], [Reply::Failed(RequestError::Refused(_))]));
    assert!(matches!(&world.replies(removed)[..], [Reply::Removed { .. }]));
    assert_eq!(world.running(), ["Server0", "Server1", "Extra"]);
}

#[test]
fn deadline_says_whether_the_change_goes_on() {
    let mut world = World::serving(1);
    world.down = true;
    let unheard = world.ask_for(A, add_request("Extra"), 2_000);
    world.run(1_999);
    assert_eq!(world.replies(unheard), []);
    world.run(1);
    assert_eq!(world.replies(unheard), [Reply::Failed(RequestError::RegisterUnavailable)]);
    world.down = false;
    world.failing.insert(ServerId(4));
    let slow = world.ask_for(A, add_request("Slow"), 4_000);
    world.run(4_000);
    assert_eq!(world.replies(slow), [Reply::Failed(RequestError::StillChanging)]);
    assert_eq!(world.running(), ["Server0", "Server1", "Server2", "Slow"]);
    // Asked again, it goes on.
    let again = world.ask(A, add_request("Slow"));
    world.failing.clear();
    world.run(6_000);
    assert_eq!(world.replies(again), [Reply::Added { server_count: 4, servers: vec!["Slow".into()] }]);
}

#[test]
fn deadline_of_a_change_that_may_have_been_made_says_that_it_is_unknown() {
    // The answer of its compare-and-set was lost, and so is the register, done or not.
    for fate in [Fate::DoneUnheard, Fate::NotDone] {
        let mut world = World::serving(1);
        world.doom(wishes, fate);
        let token = world.ask_for(A, add_request("Extra"), 2_000);
        world.run(10);
        assert!(world.was_doomed());
        world.down = true;
        world.run(1_990);
        assert_eq!(world.replies(token), [Reply::Failed(RequestError::OutcomeUnknown)], "{fate:?}");
    }
    // Or its compare-and-set is on its way.
    let mut world = World::serving(1);
    world.nodes[A].holds = true;
    let token = world.ask_for(A, add_request("Extra"), 2_000);
    while !world.operations(A).ends_with('c') {
        assert!(world.release_one(A), "{}", world.operations(A));
    }
    world.run(2_000);
    assert_eq!(world.replies(token), [Reply::Failed(RequestError::OutcomeUnknown)]);
}

#[test]
fn administrative_requests_are_bounded_and_forgotten_with_their_client() {
    let mut world = World::serving(1);
    world.down = true;
    world.run(500);
    let waiting: Vec<Token> = (0..ADMIN_MAX).map(|_| world.ask(A, add_request("Extra"))).collect();
    let late = world.ask(A, add_request("Extra"));
    assert_eq!(world.replies(late), [Reply::Failed(RequestError::Overloaded)]);
    for token in &waiting {
        world.step(A, BalancerInput::Abandoned { token: *token });
    }
    world.down = false;
    world.run(5_000);
    assert!(waiting.iter().all(|token| world.replies(*token).is_empty()));
    assert_eq!(world.running(), ["Server0", "Server1", "Server2"], "nobody wants it any more");
}

fn move_request(from: &str, to: &str) -> Request {
    Request::Move { shard: "sh1".into(), from: from.into(), to: to.into() }
}

/// A request, what takes back what it wants while it is under way, and a part of what it is told.
type Overtaken = (fn() -> Request, &'static str, fn() -> Request, &'static str);

#[test]
fn request_whose_object_another_one_removes_ends_at_once() {
    let all = || {
        let servers = ["Server0", "Server1", "Server2", "Free", "Spare"].map(Box::from).to_vec();
        Request::Remove { server_count: 5, servers, accept_data_loss: false, capped: false }
    };
    let cases: [Overtaken; 5] = [
        (|| add_request("Extra"), "Extra", || remove_request("Extra"), "Server 'Extra' was removed"),
        (|| move_request("Server0", "Free"), "Free", || remove_request("Free"), "elsewhere"),
        (|| move_request("Server0", "Free"), "Free", || move_request("Free", "Spare"), "elsewhere"),
        (|| Request::Drain { server: "Server0".into() }, "Free", || remove_request("Free"), "elsewhere"),
        (|| Request::Drain { server: "Server0".into() }, "Free", all, "removed"),
    ];
    for (request, stuck, other, words) in cases {
        let mut world = World::serving(1);
        for name in ["Free", "Spare"] {
            let free = Request::Add {
                server_count: 1,
                new_shards: vec![],
                servers: vec![crate::request::NewServer { name: name.into(), shards: vec![] }],
                strict: true,
            };
            world.ask(A, free);
            world.run(1_000);
        }
        // What it wants does not come to be: the server that is to have it makes nothing of what it is told.
        world.stuck = world.map.server_named(stuck).or(Some(ServerId(6)));
        let token = world.ask(A, request());
        world.run(500);
        assert_eq!(world.replies(token), [], "{:?} is done already", request());
        world.ask(A, other());
        world.run(500);
        let replies = world.replies(token);
        let [Reply::Failed(RequestError::Refused(told))] = &replies[..] else { panic!("{:?} and {:?}: {replies:?}", request(), other()) };
        assert!(told.contains(words), "{told}");
    }
}

#[test]
fn init_of_a_cluster_that_is_torn_down_ends_at_once() {
    let mut world = World::new(1);
    world.run(200);
    world.stuck = Some(ServerId(1));
    let init = world.ask(A, init_request(3));
    world.run(1_000);
    assert_eq!(world.replies(init), []);
    let servers = ["Server0", "Server1", "Server2"].map(Box::from).to_vec();
    world.ask(A, Request::Remove { server_count: 3, servers, accept_data_loss: false, capped: false });
    world.run(500);
    assert!(matches!(&world.replies(init)[..], [Reply::Failed(RequestError::Refused(words))] if words.contains("torn down")));
}
