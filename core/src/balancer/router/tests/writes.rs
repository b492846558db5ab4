use super::*;

#[test]
fn retry_keeps_the_identity_and_takes_a_new_tag() {
    let mut world = World::new();
    world.write(1, &[5]);
    let (to, first) = world.command();
    assert_eq!((to, first.replica, first.epoch, first.request), (S1, ReplicaId(11), Epoch(1), id(SESSION, 1, 1)));
    world.pass(400);
    let (to, second) = world.command();
    assert_eq!((to, second.request), (S1, first.request));
    assert_ne!(first.tag, second.tag);
    assert_eq!(first.operations, second.operations);
    // The answer to either copy is the answer.
    world.executed(S1, first.tag, done(4));
    let Reply::Written(Written { written_count: 1, skipped_count: 0, seen }) = world.reply() else { panic!() };
    assert_eq!(seen, BTreeMap::from([(SH1, position(4))]));
    world.executed(S1, second.tag, done(4));
    world.pass(20_000);
    assert!(world.is_quiet(), "answered once, and not sent again");
}

#[test]
fn inserts_do_what_the_request_says_or_else_the_cluster() {
    for (request, cluster, expected) in [
        (None, OnConflict::Replace, OnConflict::Replace),
        (None, OnConflict::Error, OnConflict::Error),
        (Some(OnConflict::Skip), OnConflict::Error, OnConflict::Skip),
    ] {
        let mut world = World::new();
        world.map.settings.on_conflict = cluster;
        world.publish();
        world.ask(1, Request::Write { operations: vec![put(5)], on_conflict: request, idempotency: None });
        let (_, execute) = world.command();
        assert!(matches!(execute.operations[0], Operation::Insert { on_conflict, .. } if on_conflict == expected));
    }
}

#[test]
fn key_outside_every_range_and_nothing_is_sent() {
    let mut world = World::new();
    for (keys, outside) in [(vec![5, 150, 200], 150), (vec![5, -1], -1), (vec![400], 400), (vec![5, i64::MAX], i64::MAX)] {
        world.write(1, &keys);
        assert_eq!(world.error(), RequestError::OutOfRange(Key(outside)));
        assert!(world.is_quiet());
    }
}

#[test]
fn batch_is_split_by_shard_in_order_and_numbered_per_shard() {
    let mut world = World::new();
    world.write(1, &[201, 5, 200, 4]);
    let parts = world.commands();
    let keys_of = |execute: &Execute| execute.operations.iter().map(|operation| operation.key().0).collect::<Vec<_>>();
    assert_eq!(keys_of(&parts[0].1), [5, 4]);
    assert_eq!(keys_of(&parts[1].1), [201, 200]);
    assert_eq!((parts[0].1.request, parts[1].1.request), (id(SESSION, 1, 1), id(SESSION, 1, 1)));
    world.executed(S1, parts[1].1.tag, done(9));
    assert!(world.is_quiet(), "one part is not all");
    world.executed(S1, parts[0].1.tag, done(3));
    let Reply::Written(written) = world.reply() else { panic!() };
    assert_eq!(written, Written { written_count: 2, skipped_count: 0, seen: BTreeMap::from([(SH1, position(3)), (SH2, position(9))]) });
}

#[test]
fn parts_that_differ_are_told_apart_and_equal_errors_are_one() {
    let part = |applied, error: Option<RequestError>| {
        let seen = (applied == Applied::Yes).then_some((SH1, position(1)));
        crate::request::ShardPart { applied, error: error.map(Box::new), seen }
    };
    let missing = |keys: &[i64]| Verdict::Missing(keys.iter().copied().map(Key).collect());
    let cases = [
        (done(1), failed(missing(&[200])), {
            let other = part(Applied::No, Some(RequestError::Missing(vec![Key(200)])));
            RequestError::Parts(BTreeMap::from([("sh1".into(), part(Applied::Yes, None)), ("sh2".into(), other)]))
        }),
        (failed(missing(&[9])), failed(missing(&[201, 200])), RequestError::Missing(vec![Key(9), Key(200), Key(201)])),
        (failed(Verdict::KeyReused), failed(Verdict::KeyReused), RequestError::KeyReused),
        (failed(Verdict::Conflict(vec![Key(3)])), failed(Verdict::KeyReused), {
            let one = part(Applied::No, Some(RequestError::Exists(vec![Key(3)])));
            RequestError::Parts(BTreeMap::from([("sh1".into(), one), ("sh2".into(), part(Applied::No, Some(RequestError::KeyReused)))]))
        }),
    ];
    for (first, second, expected) in cases {
        let mut world = World::new();
        world.write(1, &[5, 200]);
        let parts = world.commands();
        world.executed(S1, parts[0].1.tag, first);
        world.executed(S1, parts[1].1.tag, second);
        assert_eq!(world.error(), expected);
    }
}

#[test]
fn lowest_rises_only_past_answered_and_given_up_numbers() {
    let mut world = World::new();
    for (token, number) in [(1, 1), (2, 2), (3, 3)] {
        world.write(token, &[5]);
        assert_eq!(world.command().1.request, id(SESSION, number, 1));
        world.pass(1);
    }
    // 2 is answered: 1 still holds the lowest down.
    let tag = Tag { life: Incarnation(0), number: 2 };
    world.executed(S1, tag, done(2));
    world.replies.clear();
    world.write(4, &[5]);
    assert_eq!(world.command().1.request, id(SESSION, 4, 1));
    // 1 is given up at its deadline; 3 and 4 are open.
    world.pass(9_998);
    assert_eq!(world.error(), RequestError::OutcomeUnknown);
    world.sent.clear();
    world.write(5, &[5]);
    assert_eq!(world.command().1.request, id(SESSION, 5, 3));
}

#[test]
fn deadline_says_what_is_known() {
    // Never sent: there is no configuration, the session was refused, or the primary is down. Nothing was applied.
    let mut world = World::new();
    world.write(1, &[5]);
    let (_, sent) = world.command();
    world.executed(S1, sent.tag, ExecuteResult::SessionGone);
    world.replies.clear();
    world.write(2, &[5]);
    world.pass(10_000);
    assert_eq!(world.error(), RequestError::ShardUnavailable("sh1".into()));

    let mut world = World::new();
    world.health(S1, Health::Down);
    world.write(1, &[5]);
    world.map.shards.get_mut(&SH2).unwrap().current = None;
    world.publish();
    world.write(2, &[200]);
    world.pass(10_000);
    assert!(world.sent.is_empty());
    let names: Vec<_> = world.replies.drain(..).map(|(_, reply)| reply).collect();
    let unavailable = |name: &str| Reply::Failed(RequestError::ShardUnavailable(name.into()));
    assert_eq!(names, [unavailable("sh1"), unavailable("sh2")]);

    // Sent, and never answered or only refused: a copy may still arrive (R25).
    for refused in [false, true] {
        let mut world = World::new();
        world.write(1, &[5]);
        for _ in 0..100 {
            world.pass(100);
            for (_, execute) in world.commands() {
                if refused {
                    world.executed(S1, execute.tag, not_primary(1));
                }
            }
        }
        assert_eq!(world.error(), RequestError::OutcomeUnknown);
        assert_eq!(world.router.next_deadline(), None);
    }
}

#[test]
fn past_deadline_is_answered_at_once() {
    let mut world = World::new();
    let request = Request::Write { operations: vec![put(5)], on_conflict: None, idempotency: None };
    world.with(|router, now, out| router.request(now, Token(1), request, now, out));
    assert_eq!(world.error(), RequestError::ShardUnavailable("sh1".into()));
    assert!(world.is_quiet());
}

#[test]
fn new_configuration_is_tried_at_once_under_the_same_identity() {
    let mut world = World::new();
    world.write(1, &[5]);
    let (_, first) = world.command();
    world.reconfigure(SH1, 2, S3);
    let (to, second) = world.command();
    assert_eq!((to, second.replica, second.epoch, second.request), (S3, ReplicaId(13), Epoch(2), first.request));
    // A map that does not change the shard sends nothing.
    world.reconfigure(SH2, 2, S2);
    assert!(world.is_quiet());
    // What the old primary refuses late does not matter, what it answers does.
    world.executed(S1, first.tag, not_primary(2));
    assert!(world.is_quiet());
    world.executed(S3, second.tag, done(8));
    assert!(matches!(world.reply(), Reply::Written(_)));
}

#[test]
fn primary_that_was_down_is_sent_to_when_it_is_back() {
    let mut world = World::new();
    world.health(S1, Health::Down);
    world.write(1, &[5]);
    assert!(world.is_quiet());
    world.health(S1, Health::Up);
    assert_eq!(world.command().0, S1);
}

#[test]
fn refused_as_not_primary_comes_again_soon_or_when_the_primary_says_that_it_serves() {
    let mut world = World::new();
    world.write(1, &[5]);
    let (_, first) = world.command();
    world.executed(S1, first.tag, not_primary(1));
    assert!(!world.router.take_refresh(), "the map knows that epoch");
    world.pass(30);
    let (_, second) = world.command();
    assert_eq!(second.request, first.request);
    world.executed(S1, second.tag, not_primary(1));
    world.with(|router, now, out| router.set_leader_hint(now, SH1, ReplicaId(11), Epoch(1), true, out));
    assert_eq!(world.command().1.request, first.request);
    // It is no news the second time.
    world.with(|router, now, out| router.set_leader_hint(now, SH1, ReplicaId(11), Epoch(1), true, out));
    assert!(world.is_quiet());
}

#[test]
fn higher_epoch_asks_for_the_map_again_but_not_all_the_time() {
    let mut world = World::new();
    world.write(1, &[5]);
    let (_, first) = world.command();
    world.executed(S1, first.tag, not_primary(2));
    assert!(world.router.take_refresh());
    assert!(!world.router.take_refresh(), "asked once");
    world.with(|router, now, out| router.set_leader_hint(now, SH1, ReplicaId(12), Epoch(2), true, out));
    assert!(!world.router.take_refresh(), "too soon after the last");
    world.pass(60);
    world.with(|router, now, out| router.set_leader_hint(now, SH1, ReplicaId(12), Epoch(2), true, out));
    assert!(world.router.take_refresh());
    // Silence asks for it too: who does not answer may have been replaced.
    world.pass(2_000);
    assert!(world.router.take_refresh());
}

#[test]
fn busy_primary_is_tried_again_later() {
    let mut world = World::new();
    world.write(1, &[5]);
    let (_, first) = world.command();
    world.executed(S1, first.tag, ExecuteResult::Busy);
    assert!(world.is_quiet());
    world.pass(100);
    assert_eq!(world.command().1.request, first.request);
}

#[test]
fn refused_session_makes_the_outcome_unknown_and_a_new_session_wanted() {
    let mut world = World::new();
    world.write(1, &[5]);
    let (_, first) = world.command();
    assert!(!world.router.wants_session());
    world.executed(S1, first.tag, ExecuteResult::SessionGone);
    assert_eq!(world.error(), RequestError::OutcomeUnknown);
    assert!(world.router.wants_session());
    // The next write of that shard waits for the new session, those of other shards do not.
    world.write(2, &[5]);
    assert!(world.is_quiet());
    world.write(3, &[200]);
    assert_eq!(world.command().1.request, id(SESSION, 1, 1));
    world.with(|router, now, out| router.set_session(now, SessionId(9), out));
    assert!(!world.router.wants_session());
    assert_eq!(world.command().1.request, id(SessionId(9), 1, 1));
}

#[test]
fn under_an_idempotency_key_a_refused_command_goes_on_in_the_new_session() {
    let mut world = World::new();
    world.write_keyed(1, &[5], key("a"));
    let (_, first) = world.command();
    world.pass(400);
    let (_, second) = world.command();
    world.executed(S1, first.tag, ExecuteResult::SessionGone);
    assert!(world.is_quiet());
    // The other copy of the old identity decides nothing any more.
    world.executed(S1, second.tag, ExecuteResult::SessionGone);
    assert!(world.is_quiet());
    world.with(|router, now, out| router.set_session(now, SessionId(9), out));
    let (_, third) = world.command();
    assert_eq!((third.request, &third.idempotency), (id(SessionId(9), 1, 1), &key("a")));
    world.executed(S1, third.tag, done(3));
    assert!(matches!(world.reply(), Reply::Written(_)));
}

#[test]
fn at_most_a_window_of_numbers_is_open_and_the_rest_waits_in_line() {
    let mut world = World::new();
    let window = crate::balancer::sessions::WINDOW_MAX;
    for token in 1..=window + 2 {
        world.write(token, &[5]);
    }
    let sent = world.commands();
    assert_eq!(sent.len() as u64, window);
    // The second is answered: the first still holds the window.
    world.executed(S1, sent[1].1.tag, done(1));
    assert!(world.sent.is_empty());
    world.executed(S1, sent[0].1.tag, done(2));
    let sent: Vec<_> = world.commands().into_iter().map(|(_, execute)| execute.request).collect();
    assert_eq!(sent, [id(SESSION, window + 1, 3), id(SESSION, window + 2, 3)], "first come, first served");
}

#[test]
fn abandoned_write_frees_its_number() {
    let mut world = World::new();
    let window = crate::balancer::sessions::WINDOW_MAX;
    for token in 1..=window + 1 {
        world.write(token, &[5]);
    }
    world.sent.clear();
    world.with(|router, _, _| router.abandoned(Token(1)));
    assert!(world.is_quiet());
    assert_eq!(world.router.next_deadline(), Some(world.now), "whoever waits goes on at the next tick");
    world.pass(0);
    assert_eq!(world.command().1.request, id(SESSION, window + 1, 2));
}

#[test]
fn more_than_the_bound_is_overloaded_at_once() {
    let mut world = World::with_config(&BalancerConfig { requests_max: 2, ..BalancerConfig::default() });
    for token in 1..=3 {
        world.write(token, &[5]);
    }
    assert_eq!(world.error(), RequestError::Overloaded);
    assert_eq!(world.router.requests.len(), 2);
}

#[test]
fn nothing_is_sent_before_the_first_session() {
    let mut world = World::blank(&BalancerConfig::default());
    world.publish();
    world.read(1, 5, 5, 1);
    assert_eq!(world.error(), RequestError::RegisterUnavailable);
    assert!(world.is_quiet() && world.router.wants_session());
    world.with(|router, now, out| router.set_session(now, SESSION, out));
    world.read(2, 5, 5, 1);
    assert_eq!(world.reads().len(), 1);
}

#[test]
fn shard_that_left_the_map_ends_its_writes() {
    let mut world = World::new();
    world.write(1, &[5]);
    world.health(S1, Health::Down);
    world.write(2, &[6]);
    world.map = ClusterMap::default();
    world.publish();
    let replies: Vec<_> = world.replies.drain(..).map(|(_, reply)| reply).collect();
    assert_eq!(replies, [Reply::Failed(RequestError::OutcomeUnknown), Reply::Failed(RequestError::ShardUnavailable("sh1".into()))]);
    world.write(3, &[5]);
    assert_eq!(world.error(), RequestError::NotInitialised);
}

#[test]
fn answers_count_once_from_whom_was_asked_and_to_the_question() {
    let mut world = World::new();
    world.write(1, &[5]);
    let (_, sent) = world.command();
    world.executed(S2, sent.tag, done(1));
    world.executed(S1, Tag { life: Incarnation(3), number: sent.tag.number }, done(1));
    world.executed(S1, Tag { life: Incarnation(0), number: 99 }, done(1));
    world.page(S1, sent.tag, &[5], false);
    world.answer(S1, ToBalancer::Home { tag: sent.tag });
    assert!(world.is_quiet());
    assert_eq!(world.notes.len(), 2, "two were answers to another question");
    world.executed(S1, sent.tag, done(1));
    assert!(matches!(world.reply(), Reply::Written(_)));
}
