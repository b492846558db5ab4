//! Data loss that an operator accepted: granted only for what is known to be gone, by who controls; and what nobody knows yet is neither
//! refused nor given up.

use super::world::*;
use crate::{balancer::*, id::ShardId, map::ServerGoal, request::Reply};

fn remove(names: &[&str], accept_data_loss: bool) -> Request {
    let servers: Vec<Box<str>> = names.iter().map(|name| Box::from(*name)).collect();
    Request::Remove { server_count: servers.len() as u64, servers, accept_data_loss, capped: false }
}

fn removed(server_count: u64, names: &[&str]) -> Reply {
    Reply::Removed { server_count, servers: names.iter().map(|name| Box::from(*name)).collect() }
}

/// What the servers hold.
fn held(world: &World) -> Vec<(ServerId, Vec<ReplicaId>)> {
    world.servers.iter().map(|(id, server)| (*id, server.replicas.keys().copied().collect())).collect()
}

/// The replicas that the balancer had servers destroy.
fn retired(world: &World, node: usize) -> Vec<ReplicaId> {
    let mut retired: Vec<ReplicaId> = world
        .sent(node, |message| matches!(message, ToServer::Retire { .. }))
        .into_iter()
        .filter_map(|(_, message)| if let ToServer::Retire { replica } = message { Some(replica) } else { None })
        .collect();
    retired.sort_unstable();
    retired.dedup();
    retired
}

const R1: ReplicaId = ReplicaId(1);
const R2: ReplicaId = ReplicaId(2);
const R3: ReplicaId = ReplicaId(3);

#[test]
fn starting_balancer_gives_nothing_up() {
    for accept_data_loss in [true, false] {
        let mut world = World::serving(1);
        world.nodes[A].stands = true;
        world.forget();
        let node = world.start(BalancerConfig { controller_after: Duration::ZERO, ..BalancerConfig::default() });
        let token = world.ask(node, remove(&["Server2"], accept_data_loss));
        world.run(10_000);
        assert_eq!(world.replies(token), [removed(2, &["Server2"])], "and nothing is refused for what is not known yet");
        assert_eq!(held(&world), [(S1, vec![R1]), (S2, vec![R2]), (S3, vec![])]);
        assert_eq!((retired(&world, node), world.map.accepted_loss.len()), (vec![R3], 0));
    }
}

#[test]
fn balancer_that_is_cut_off_and_controls_nothing_gives_nothing_up() {
    let mut world = World::serving(2);
    world.run(1_000);
    world.nodes[B].cut = true;
    world.run(600);
    world.forget();
    let token = world.ask(B, remove(&["Server2"], true));
    world.run(20_000);
    world.nodes[B].cut = false;
    world.run(1_000);
    assert_eq!(world.replies(token), [removed(2, &["Server2"])]);
    assert_eq!(held(&world), [(S1, vec![R1]), (S2, vec![R2]), (S3, vec![])]);
    assert_eq!(retired(&world, A), [R3]);
}

#[test]
fn servers_that_are_silent_for_a_moment_are_not_given_up() {
    let mut world = World::serving(1);
    world.run(1_000);
    for server in [S2, S3] {
        world.servers.get_mut(&server).unwrap().deaf = true;
    }
    world.run(600);
    let token = world.ask(A, remove(&["Server2"], true));
    world.run(2_000);
    assert_eq!(world.replies(token), []);
    for server in [S2, S3] {
        world.servers.get_mut(&server).unwrap().deaf = false;
    }
    world.run(5_000);
    assert_eq!(world.replies(token), [removed(2, &["Server2"])]);
    assert_eq!(held(&world), [(S1, vec![R1]), (S2, vec![R2]), (S3, vec![])]);
}

#[test]
fn what_is_gone_is_given_up_once_all_that_answer_promised_and_is_kept_aside() {
    // Started in vain, or never started again and seen to be stopped.
    for starts in [true, false] {
        let mut world = World::serving(1);
        world.run(1_000);
        let killed = world.now;
        for server in [S2, S3] {
            world.kill(server);
            if starts { &mut world.mute } else { &mut world.broken }.insert(server);
        }
        // The primary is left alone, and says so.
        world.servers.get_mut(&S1).unwrap().replicas.get_mut(&R1).unwrap().unreached = vec![R2, R3];
        world.run(2_000);
        world.forget();
        let token = world.ask(A, remove(&["Server1", "Server2"], true));
        let asked = world.now;
        while world.map.shards.contains_key(&SH1) {
            let pending = world.map.shards[&SH1].pending.as_ref().map(|config| config.epoch);
            world.run(10);
            assert!(world.now.since(asked) < Duration::from_millis(60_000), "{:?}", world.map);
            if !world.map.shards.contains_key(&SH1) {
                // Who answers had promised that it is over before the map said so.
                assert_eq!(world.servers[&S1].replicas[&R1].promised, pending.unwrap());
            }
        }
        assert!(world.now.since(killed) > Duration::from_millis(3_000), "that is a glance");
        world.run(10_000);
        assert_eq!(world.replies(token), [removed(1, &["Server1", "Server2"])], "starts: {starts}");
        assert_eq!(retired(&world, A), [], "copies are kept aside");
        assert!(world.servers[&S1].replicas.contains_key(&R1));
        let (id, shard) = world.map.shards.first_key_value().unwrap();
        assert!((*id, &*shard.name, shard.low) == (ShardId(2), "sh1", crate::value::Key(0)), "{id} {shard:?}");
        assert_eq!(shard.current.as_ref().unwrap().members, [ReplicaId(4)]);
        let told: Vec<Note> = world.notes(A).into_iter().filter(|note| matches!(note, Note::GivenUp { .. })).collect();
        assert_eq!(told, [Note::GivenUp { shard: SH1, anew: ShardId(2), replicas: vec![R1, R2, R3] }]);
    }
}

#[test]
fn what_comes_back_in_time_is_not_given_up() {
    let mut world = World::serving(1);
    world.run(1_000);
    for server in [S2, S3] {
        world.kill(server);
        world.mute.insert(server);
    }
    let token = world.ask(A, remove(&["Server2"], true));
    world.run(5_000);
    world.mute.clear();
    world.servers.get_mut(&S2).unwrap().deaf = false;
    world.run(30_000);
    assert_eq!(world.replies(token), [removed(2, &["Server2"])]);
    assert_eq!(held(&world)[..2], [(S1, vec![R1]), (S2, vec![R2])]);
}

#[test]
fn without_the_word_of_the_operator_nothing_is_given_up_and_the_refusal_comes_when_it_is_known() {
    let mut world = World::serving(1);
    world.run(1_000);
    for server in [S2, S3] {
        world.kill(server);
        world.mute.insert(server);
    }
    world.run(600);
    let token = world.ask(A, remove(&["Server2"], false));
    world.run(1_000);
    assert_eq!(world.replies(token), [], "nobody knows yet");
    world.run(60_000);
    let refused = RequestError::Refused("Shard 'sh1' cannot be moved: too few of its replicas answer".into());
    assert_eq!(world.replies(token), [Reply::Failed(refused)]);
    assert!(world.map.shards.contains_key(&SH1) && world.map.servers.values().all(|record| record.goal == ServerGoal::Run));
}

#[test]
fn shard_that_serves_is_not_given_up() {
    // A write quorum of one: nothing can be changed without all three, and the primary serves on.
    let mut world = World::new(1);
    Arc::make_mut(&mut world.map).settings.write_quorum = Some(1);
    world.run(200);
    let init = world.ask(A, init_request(3));
    world.run(2_000);
    assert_eq!(world.replies(init), [Reply::Initialised]);
    let primary = world.map.shards[&SH1].current.as_ref().unwrap().primary;
    let other = [S1, S2, S3].into_iter().find(|server| world.map.server_of(primary) != Some(*server)).unwrap();
    world.kill(other);
    world.mute.insert(other);
    let name = world.map.servers[&other].name.clone();
    world.run(600);
    let token = world.ask(A, remove(&[&*name], true));
    world.run(60_000);
    assert!(matches!(&world.replies(token)[..], [Reply::Failed(RequestError::Refused(words))] if words.contains("it serves as it is")));
    assert!(world.map.shards.contains_key(&SH1));
}
