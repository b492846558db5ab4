//! What is told of what the controller saw, decided and did.

use super::world::*;
use crate::{
    balancer::*,
    id::ShardId,
    reason::{Cause, Choice, Reason},
    request::{Reply, Subject},
    storage::LostReason,
};

const S4: ServerId = ServerId(4);

/// Those that are no part of every change.
fn told(world: &World, node: usize, picks: fn(&Note) -> bool) -> Vec<Note> {
    world.notes(node).into_iter().filter(picks).collect()
}

#[test]
fn requests_of_operators_are_told_once_with_the_reason_of_a_refusal() {
    let is_one = |note: &Note| matches!(note, Note::Granted { .. } | Note::Refused { .. });
    for fate in [None, Some(Fate::DoneUnheard), Some(Fate::NotDone), Some(Fate::Conflict)] {
        let mut world = World::serving(1);
        world.forget();
        if let Some(fate) = fate {
            world.doom(|before, after| before.servers.len() < after.servers.len(), fate);
        }
        world.ask(A, add_request("Extra"));
        world.run(8_000);
        world.ask(A, add_request("Extra"));
        world.ask(A, Request::Status { fresh: true });
        world.run(1_000);
        let (granted, refused) = ("/add of 1 servers (Extra)", "Server 'Extra' exists already");
        let expected = [Note::Granted { request: granted.into() }, Note::Refused { request: granted.into(), reason: refused.into() }];
        assert_eq!(told(&world, A, is_one), expected, "{fate:?}");
    }
    // However long what was sent is.
    let mut world = World::serving(1);
    world.ask(A, Request::Drain { server: "é".repeat(100_000).into() });
    world.run(1_000);
    let [.., Note::Refused { request, reason }] = &told(&world, A, is_one)[..] else { panic!("{:?}", world.notes(A)) };
    assert!(request.starts_with("/drain of éé") && request.len() < 600 && reason.len() < 600, "{request} {reason}");
}

#[test]
fn server_that_goes_is_told_of_until_it_is_forgotten() {
    let mut world = World::serving(1);
    world.forget();
    world.ask(A, remove_request("Server1"));
    world.run(8_000);
    let is_one = |note: &Note| matches!(note, Note::Stopped { .. } | Note::Removed { .. } | Note::Retired { .. });
    let told = told(&world, A, is_one);
    let [Note::Retired { server: S2, lost: None, .. }, rest @ ..] = &told[..] else { panic!("{told:?}") };
    assert_eq!(rest, [Note::Stopped { server: S2 }, Note::Removed { server: S2, name: "Server1".into() }]);
}

#[test]
fn lost_replica_is_told_with_what_takes_its_place() {
    let mut world = World::serving(1);
    world.forget();
    let lost = *world.map.replicas.iter().find(|(_, record)| record.server == S2).map(|(id, _)| id).unwrap();
    let server = world.servers.get_mut(&S2).unwrap();
    server.replicas.get_mut(&lost).unwrap().lost = Some(LostReason::RowsDamaged);
    world.run(4_000);
    let is_one = |note: &Note| matches!(note, Note::Retired { .. } | Note::Minted { .. });
    let shard = ShardId(1);
    let expected = [
        Note::Retired { replica: lost, shard, server: S2, lost: Some(LostReason::RowsDamaged) },
        Note::Minted { replica: world.map.counters.replica, shard, server: S2 },
    ];
    assert_eq!(told(&world, A, is_one), expected);
}

#[test]
fn control_is_told_when_it_is_taken_over_and_when_it_is_lost() {
    let mut world = World::serving(2);
    let ids: Vec<_> = [A, B].map(|node| world.nodes[node].machine.id()).into();
    world.nodes[A].stands = true;
    world.run(5_000);
    world.nodes[A].stands = false;
    world.run(2_000);
    let is_one = |note: &Note| matches!(note, Note::Controlling { .. } | Note::Ceded { .. });
    assert_eq!(told(&world, A, is_one), [Note::Ceded { to: ids[B] }]);
    assert_eq!(told(&world, B, is_one), [Note::Controlling { from: ids[A] }]);
}

#[test]
fn proposals_are_told_with_their_reason_by_who_made_them_however_answers_are_lost() {
    let proposed = |world: &World, node| {
        let notes = world.notes(node).into_iter();
        notes.filter_map(|note| if let Note::Proposed { reason, .. } = note { Some(reason) } else { None }).collect::<Vec<_>>()
    };
    let silent = Some(Reason { cause: Cause::PrimarySilent, choice: Choice::LeadsLeast });
    for fate in [None, Some(Fate::DoneUnheard), Some(Fate::NotDone), Some(Fate::Conflict)] {
        let mut world = World::serving(2);
        world.forget();
        if let Some(fate) = fate {
            world.doom(|before, after| before.counters.epoch < after.counters.epoch, fate);
        }
        let current = world.map.shards[&ShardId(1)].current.clone().unwrap();
        let primary = world.map.server_of(current.primary).unwrap();
        world.kill(primary);
        world.failing.insert(primary);
        world.run(2_500);
        assert_eq!(proposed(&world, A).first(), Some(&silent), "{fate:?}");
        assert_eq!(proposed(&world, B).into_iter().flatten().next(), None, "{fate:?}");
        // So does an explanation.
        for (node, words) in [(A, "proposed as the primary does not answer"), (B, "it does not know why")] {
            let token = world.ask(node, Request::Explain(Subject::Shard("sh1".into())));
            world.run(50);
            let [Reply::Explained(explanation)] = &world.replies(token)[..] else { panic!("{:?}", world.replies(token)) };
            assert!(explanation.why_primary.iter().any(|why| why.contains(words)), "{words}: {:?}", explanation.why_primary);
        }
    }
}

#[test]
fn server_that_was_never_heard_of_is_said_to_be() {
    let mut world = World::serving(1);
    world.failing.insert(S4);
    world.ask(
        A,
        Request::Add {
            server_count: 1,
            new_shards: vec![],
            servers: vec![crate::request::NewServer { name: "Extra".into(), shards: vec!["sh1".into()] }],
            strict: true,
        },
    );
    world.run(2_000);
    let token = world.ask(A, Request::Explain(Subject::Shard("sh1".into())));
    world.run(50);
    let [Reply::Explained(explanation)] = &world.replies(token)[..] else { panic!("{:?}", world.replies(token)) };
    assert_eq!(&*explanation.waits_for[0], "Extra to answer: it was never heard of by this balancer");
}
