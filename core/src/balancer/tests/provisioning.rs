//! What is asked of the provisioner: servers that do not answer are looked at, then replaced, with a patience that grows.

use super::world::*;
use crate::{balancer::*, map::ServerGoal};

fn deafen(world: &mut World, server: ServerId) {
    world.servers.get_mut(&server).unwrap().deaf = true;
}

/// The time between the commands, in ms, the first one counted from `since`.
fn gaps(since: Instant, commands: &[(u64, String)]) -> Vec<u64> {
    let mut last = since.since(Instant(0)).as_millis();
    commands.iter().map(|(at, _)| at - std::mem::replace(&mut last, *at)).collect()
}

#[test]
fn suspected_server_is_looked_at_once_and_replaced_when_it_was_silent_for_too_long() {
    let mut world = World::serving(1);
    deafen(&mut world, S2);
    let since = world.now;
    world.run(450);
    assert!(world.provisions(A).is_empty());
    world.run(2_400);
    assert_eq!(world.provisioned(A), ["start s2"], "it may run: that does no harm");
    assert_eq!(world.notes(A).iter().filter(|note| matches!(note, Note::Started { .. })).count(), 0, "it runs where it ran");
    world.run(1_000);
    assert_eq!(world.provisioned(A), ["start s2", "replace s2"]);
    let gaps = gaps(since, &world.provisions(A));
    assert!((500..=800).contains(&gaps[0]) && (3_000..=3_300).contains(&(gaps[0] + gaps[1])), "{gaps:?}");
    assert!(world.notes(A).contains(&Note::Respawning { server: S2 }));
    assert!(world.notes(A).contains(&Note::Restarted { server: S2 }) && world.notes(A).contains(&Note::Recovered { server: S2 }));
    assert_eq!(world.map.servers[&S2].address, Some(address(S2, world.servers[&S2].owner)));
    // The next suspicion is looked at again.
    world.forget();
    deafen(&mut world, S2);
    world.run(1_000);
    assert_eq!(world.provisioned(A), ["start s2"]);
}

#[test]
fn look_at_a_server_whose_process_is_gone_starts_it() {
    let mut world = World::serving(1);
    world.kill(S2);
    world.run(1_500);
    assert_eq!(world.provisioned(A), ["start s2"]);
    assert!(world.servers[&S2].runs && world.notes(A).contains(&Note::Recovered { server: S2 }));
    assert_eq!(world.members(), [S1, S2, S3], "it never lost its place");
}

#[test]
fn look_that_failed_is_tried_again() {
    let mut world = World::serving(1);
    world.failing.insert(S2);
    world.kill(S2);
    world.run(1_000);
    assert!(!world.provisions(A).is_empty() && !world.servers[&S2].runs);
    world.failing.clear();
    world.run(1_000);
    assert!(world.servers[&S2].runs && world.provisions(A).iter().all(|(_, command)| command == "start s2"), "{:?}", world.provisions(A));
}

#[test]
fn slow_answer_costs_nothing() {
    let mut world = World::serving(1);
    for _ in 0..20 {
        deafen(&mut world, S2);
        world.run(400);
        world.servers.get_mut(&S2).unwrap().deaf = false;
        world.run(300);
    }
    assert!(world.provisions(A).is_empty());
}

#[test]
fn patience_with_a_server_that_is_started_and_never_heard_doubles_up_to_five_times() {
    let mut world = World::serving(1);
    world.mute.insert(S2);
    deafen(&mut world, S2);
    let since = world.now;
    world.run(500_000);
    let replaced: Vec<(u64, String)> = world.provisions(A).into_iter().filter(|(_, command)| command == "replace s2").collect();
    let gaps = gaps(since, &replaced);
    let expected = [3, 6, 12, 24, 48, 96, 96, 96, 96];
    assert_eq!(gaps.len(), expected.len(), "{gaps:?}");
    for (gap, expected) in gaps.iter().zip(expected) {
        assert!((expected * 1_000..=expected * 1_000 + 300).contains(gap), "{gaps:?}");
    }
    assert_eq!(world.provisioned(A).iter().filter(|command| *command == "start s2").count(), 1, "one look in all that time");
    // Heard again, it is as good as any.
    world.servers.get_mut(&S2).unwrap().deaf = false;
    world.mute.clear();
    world.run(1_000);
    world.forget();
    deafen(&mut world, S2);
    world.run(3_400);
    assert_eq!(world.provisioned(A), ["start s2", "replace s2"]);
}

#[test]
fn failed_starts_back_off() {
    let mut world = World::serving(1);
    world.failing.insert(S2);
    world.kill(S2);
    world.run(3_500);
    world.forget();
    let since = world.now;
    world.run(60_000);
    let commands = world.provisions(A);
    assert!((20..=45).contains(&commands.len()), "{} times in a minute", commands.len());
    let gaps = gaps(since, &commands);
    assert!(gaps.iter().skip(3).all(|gap| (1_500..=3_300).contains(gap)), "{gaps:?}");
    let failed = world.notes(A).iter().filter(|note| matches!(note, Note::ProvisionFailed { server: S2, .. })).count();
    assert_eq!(failed, commands.len());
    // It works again, and the next failure is retried as soon as the first.
    world.failing.clear();
    world.run(3_500);
    assert!(world.servers[&S2].runs);
    world.failing.insert(S2);
    world.kill(S2);
    world.forget();
    world.run(4_000);
    let times: Vec<u64> = world.provisions(A).into_iter().map(|(at, _)| at).collect();
    assert!(times.len() >= 3 && times[1] - times[0] <= 300, "{times:?}");
}

#[test]
fn server_that_another_balancer_removed_is_not_started_by_a_stale_controller() {
    let mut world = World::serving(1);
    let token = world.ask(A, Request::Add { server_count: 1, new_shards: vec![], servers: vec![], strict: true });
    world.run(1_000);
    assert_eq!(world.replies(token).len(), 1);
    let extra = ServerId(4);
    // The controller does not reach the register while another balancer has the server removed and stopped.
    world.forget();
    world.down = true;
    world.edit(|map| {
        map.servers.remove(&extra).unwrap();
    });
    world.kill(extra);
    world.run(10_000);
    assert!(world.provisions(A).is_empty(), "it does not know whether the server is wanted");
    world.down = false;
    world.run(10_000);
    assert!(world.provisions(A).is_empty());
    // While it is wanted, all the same delay is all that happens.
    world.down = true;
    world.kill(S3);
    world.run(10_000);
    assert!(world.provisions(A).is_empty());
    world.down = false;
    world.run(3_500);
    assert_eq!(world.provisioned(A), ["replace s3"]);
}

#[test]
fn server_without_an_address_is_started_and_the_map_knows_where() {
    let mut world = World::new(1);
    world.run(200);
    world.failing.insert(S2);
    world.ask(A, init_request(2));
    world.run(1_000);
    assert_eq!(world.map.servers[&S1].address, Some(address(S1, world.servers[&S1].owner)));
    assert_eq!(world.map.servers[&S2].address, None);
    let beats = world.sent(A, |message| matches!(message, ToServer::Heartbeat { .. }));
    assert!(!beats.is_empty() && beats.iter().all(|(to, _)| *to == S1), "where should it be sent");
    world.failing.clear();
    world.run(3_500);
    assert!(world.map.servers[&S2].address.is_some());
    assert_eq!(world.members(), [S1, S2]);
}

#[test]
fn address_is_written_again_if_the_compare_and_set_that_carried_it_failed() {
    for fate in [Fate::DoneUnheard, Fate::NotDone, Fate::Conflict] {
        let mut world = World::serving(1);
        world.doom(|before, after| before.servers != after.servers, fate);
        world.kill(S2);
        world.run(5_000);
        assert!(world.was_doomed());
        assert_eq!(world.map.servers[&S2].address, Some(address(S2, world.servers[&S2].owner)), "{fate:?}");
        assert_eq!(world.provisioned(A), ["start s2"], "{fate:?}");
    }
}

#[test]
fn leaving_server_is_stopped_once_and_only_when_it_is_empty() {
    let mut world = World::serving(1);
    world.edit(|map| map.servers.get_mut(&S3).unwrap().goal = ServerGoal::Leave);
    world.run(5_000);
    // The shard is still placed on it.
    assert!(world.provisions(A).is_empty() && world.servers[&S3].runs);
    world.edit(|map| {
        map.shards.get_mut(&SH1).unwrap().placement.remove(&S3);
    });
    world.run(5_000);
    assert_eq!(world.provisioned(A), ["stop s3"]);
    assert!(!world.map.servers.contains_key(&S3) && world.servers[&S3].replicas.is_empty());
    assert_eq!(world.members(), [S1, S2]);
}

#[test]
fn leaving_server_that_died_is_started_while_what_it_holds_is_needed() {
    let mut world = World::serving(1);
    world.edit(|map| map.servers.get_mut(&S3).unwrap().goal = ServerGoal::Leave);
    world.run(500);
    world.kill(S3);
    world.run(3_400);
    assert_eq!(world.provisioned(A), ["replace s3"], "it may be sealed, or be a source");
    assert!(world.servers[&S3].runs);
}
