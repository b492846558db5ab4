use super::*;

const LATE_MS: u64 = 260;

#[test]
fn page_comes_in_key_order_whatever_the_order_of_answers() {
    let mut world = World::new();
    world.read(1, 50, 1_000, 100);
    let reads = world.reads();
    let ranges: Vec<_> = reads.iter().map(|(_, read)| (read.range.low.0, read.range.high.0)).collect();
    assert_eq!(ranges, [(50, 99), (200, 299), (300, 399)]);
    assert!(reads.iter().all(|(_, read)| read.freshness == Freshness::Linearizable(Epoch(1)) && read.limit == 100));
    for (place, keys) in [(2, vec![300]), (0, vec![51, 60]), (1, vec![])] {
        assert!(world.replies.is_empty());
        let (to, read) = &reads[place];
        world.page(*to, read.tag, &keys, false);
    }
    let rows = world.rows();
    assert_eq!(keys(&rows.rows), [51, 60, 300]);
    assert_eq!(rows.shards_queried, ["sh1".into(), "sh2".into(), "sh3".into()]);
    assert_eq!(rows.next, None);
    assert_eq!(rows.seen.len(), 3);
    assert_eq!(rows.seen[&SH1], LogIndex(40));
    assert!(rows.lag.is_empty());
    assert_eq!(world.router.next_deadline(), None);
}

/// (answers of the shards, more flags, expected keys, expected next)
#[test]
fn page_ends_where_a_bound_says_and_names_the_first_key_it_does_not_cover() {
    type Case = (u32, [(&'static [i64], bool); 3], &'static [i64], Option<i64>);
    let cases: [Case; 7] = [
        // The limit falls into a shard's rows.
        (3, [(&[1, 2], false), (&[200, 201], false), (&[300], false)], &[1, 2, 200], Some(201)),
        // It falls on the end of a shard's rows: the next shard begins at 200, nothing is between.
        (2, [(&[1, 2], false), (&[200], false), (&[300], false)], &[1, 2], Some(200)),
        // It falls on the end of all.
        (4, [(&[1, 2], false), (&[200], false), (&[300], false)], &[1, 2, 200, 300], None),
        // A replica's own bound ended its page.
        (9, [(&[1, 2], true), (&[200], false), (&[300], false)], &[1, 2], Some(3)),
        // At the very last key that is asked for: that was all.
        (9, [(&[1], false), (&[], false), (&[300, 350], true)], &[1, 300, 350], None),
        // At the last key of a shard: go on right after it.
        (9, [(&[1, 99], true), (&[200], false), (&[300], false)], &[1, 99], Some(100)),
        (9, [(&[], false), (&[], false), (&[], false)], &[], None),
    ];
    for (limit, pages, expected, next) in cases {
        let mut world = World::new();
        world.read(1, 0, 350, limit);
        for ((to, read), (keys, more)) in world.reads().into_iter().zip(pages) {
            world.page(to, read.tag, &keys[..keys.len().min(limit as usize)], more || keys.len() > limit as usize);
        }
        let rows = world.rows();
        assert_eq!(keys(&rows.rows), expected, "limit {limit}");
        assert_eq!(rows.next, next.map(Key), "limit {limit}, {expected:?}");
    }
}

#[test]
fn range_outside_every_shard_is_empty() {
    let mut world = World::new();
    for (low, high) in [(100, 199), (-5, -1), (400, i64::MAX)] {
        world.read(1, low, high, 10);
        assert_eq!(world.rows(), Rows::default());
    }
    assert!(world.is_quiet());
}

#[test]
fn consistency_becomes_freshness() {
    let seen = BTreeMap::from([(SH1, LogIndex(17))]);
    for (consistency, low, freshness) in [
        (Consistency::Linearizable, 0, Freshness::Linearizable(Epoch(1))),
        (Consistency::Session(seen.clone()), 0, Freshness::AtLeast(LogIndex(17))),
        (Consistency::Session(seen), 200, Freshness::AtLeast(LogIndex(0))),
        (Consistency::Stale, 0, Freshness::Any),
    ] {
        let mut world = World::new();
        let is_stale = consistency == Consistency::Stale;
        world.ask(1, Request::Read { range: KeyRange::one(Key(low)), limit: 1, consistency });
        let (to, read) = world.one_read();
        assert_eq!(read.freshness, freshness);
        world.page(to, read.tag, &[low], false);
        assert_eq!(world.rows().lag.len(), usize::from(is_stale));
    }
}

#[test]
fn refused_read_goes_to_each_other_replica_at_once_then_waits() {
    let mut world = World::new();
    world.read(1, 5, 5, 1);
    let mut asked = BTreeSet::new();
    for _ in 0..3 {
        let (to, read) = world.one_read();
        assert_eq!(read.replica, ReplicaId(10 + to.0));
        asked.insert(to);
        world.refuse(to, read.tag, ReadRefusal::NoReadIndex);
    }
    assert_eq!(asked, BTreeSet::from([S1, S2, S3]));
    assert!(world.is_quiet(), "all refused: not at once again");
    world.pass(60);
    let (to, read) = world.one_read();
    world.page(to, read.tag, &[5], false);
    assert_eq!(keys(&world.rows().rows), [5]);
}

#[test]
fn silent_replica_is_passed_over_and_may_still_answer() {
    let mut world = World::new();
    world.read(1, 5, 5, 1);
    let (first_to, first) = world.one_read();
    world.pass(LATE_MS);
    let (second_to, second) = world.one_read();
    assert_ne!(first_to, second_to);
    assert!(world.router.take_refresh(), "who is silent may have been replaced");
    // A refusal while another copy is out changes nothing.
    world.refuse(second_to, second.tag, ReadRefusal::Busy);
    assert!(world.is_quiet());
    world.page(first_to, first.tag, &[5], false);
    assert_eq!(keys(&world.rows().rows), [5]);
    assert!(world.router.tags.is_empty() && world.router.load_counts.is_empty());
}

#[test]
fn suspected_server_loses_its_reads_at_once_and_gets_none() {
    let mut world = World::new();
    for server in [S1, S2, S3] {
        world.health(server, Health::Up);
    }
    world.read(1, 5, 5, 1);
    let (first, _) = world.one_read();
    world.health(first, Health::Suspect);
    let (second, read) = world.one_read();
    assert_ne!(first, second);
    world.page(second, read.tag, &[], false);
    world.rows();
    for token in 2..30 {
        world.read(token, i64::try_from(token).unwrap(), 99, 1);
        assert!(world.reads().iter().all(|(to, _)| *to != first));
    }
}

#[test]
fn server_that_is_down_is_asked_only_if_all_are() {
    let mut world = World::new();
    world.health(S1, Health::Down);
    world.health(S2, Health::Down);
    world.read(1, 5, 5, 1);
    for _ in 0..20 {
        world.pass(200);
        assert!(world.reads().iter().all(|(to, _)| *to == S3));
    }
    world.health(S3, Health::Down);
    world.sent.clear();
    world.pass(3_400);
    let asked: BTreeSet<_> = world.reads().into_iter().map(|(to, _)| to).collect();
    assert!(asked.len() > 1, "{asked:?}");
}

#[test]
fn new_configuration_takes_the_read_over_with_its_epoch() {
    let mut world = World::new();
    world.read(1, 0, 250, 10);
    let old = world.reads();
    world.page(old[0].0, old[0].1.tag, &[1], false);
    world.reconfigure(SH1, 2, S2);
    assert!(world.is_quiet(), "that part is answered already");
    world.reconfigure(SH2, 3, S2);
    let (to, read) = world.one_read();
    assert_eq!((read.freshness, read.range.low), (Freshness::Linearizable(Epoch(3)), Key(200)));
    world.page(to, read.tag, &[200], false);
    assert_eq!(keys(&world.rows().rows), [1, 200]);
}

#[test]
fn read_without_a_configuration_waits_for_one_until_its_deadline() {
    let mut world = World::new();
    let config = world.map.shards.get_mut(&SH1).unwrap().current.take();
    world.publish();
    world.read(1, 5, 5, 1);
    assert!(world.is_quiet());
    world.map.shards.get_mut(&SH1).unwrap().current = config;
    world.publish();
    assert_eq!(world.reads().len(), 1);
    world.pass(10_000);
    assert_eq!(world.error(), RequestError::ShardUnavailable("sh1".into()));
    assert_eq!(world.router.next_deadline(), None);
}

#[test]
fn rows_that_were_not_asked_for_are_not_trusted() {
    for (rows, more) in [(vec![4], false), (vec![6], false), (vec![5, 5], false), (vec![], true)] {
        let mut world = World::new();
        world.read(1, 5, 5, 10);
        let (to, read) = world.one_read();
        world.page(to, read.tag, &rows, more);
        assert_eq!(world.notes.len(), 1);
        assert!(world.replies.is_empty());
        assert_ne!(world.one_read().0, to);
    }
}

#[test]
fn wide_read_asks_a_few_shards_at_once_and_all_in_the_end() {
    let mut world = World::new();
    let shard = world.map.shards[&ShardId(3)].clone();
    for extra in 4..=40_u64 {
        let record = ShardRecord { name: format!("sh{extra}").into(), low: Key(extra.cast_signed() * 100), ..shard.clone() };
        world.map.shards.insert(ShardId(extra), record);
    }
    world.publish();
    world.read(1, 0, i64::MAX, 1_000);
    let mut answered = 0;
    loop {
        let reads = world.reads();
        if reads.is_empty() {
            break;
        }
        assert!(reads.len() <= 8);
        for (to, read) in reads {
            answered += 1;
            world.page(to, read.tag, &[read.range.low.0], false);
        }
    }
    assert_eq!(answered, 40);
    let rows = world.rows();
    assert_eq!(rows.rows.len(), 40);
    assert!(rows.rows.windows(2).all(|pair| pair[0].row.key < pair[1].row.key));
}

#[test]
fn reads_spread_over_the_replicas_with_every_policy() {
    for policy in [Policy::Classic, Policy::Ring, Policy::LeastLoaded] {
        let mut world = World::with_config(&BalancerConfig { policy, ..BalancerConfig::default() });
        let mut counts: BTreeMap<ServerId, u32> = BTreeMap::new();
        for token in 0..300 {
            world.read(token, i64::try_from(token % 100).unwrap(), 99, 1);
            let (to, read) = world.one_read();
            *counts.entry(to).or_default() += 1;
            world.page(to, read.tag, &[], false);
        }
        // The classic ring gives one of three servers up to 2.8 times the mean (API.md).
        let least = if policy == Policy::Classic { 1 } else { 50 };
        assert!(counts.len() == 3 && counts.values().all(|count| *count >= least), "{policy:?}: {counts:?}");
        assert_eq!(world.router.request_counts().values().sum::<u64>(), 300);
    }
}

#[test]
fn one_server_is_read_as_it_is() {
    let mut world = World::new();
    let ask = |server: &str, shard: Option<&str>| Request::ReadServer {
        server: server.into(),
        shard: shard.map(Into::into),
        range: KeyRange::ALL,
        limit: 2,
        wanted: 0,
        pinned: None,
    };
    world.ask(1, ask("Server9", None));
    assert_eq!(world.error(), RequestError::NoSuchServer);
    world.ask(1, ask("Server2", Some("sh9")));
    assert_eq!(world.error(), RequestError::NoSuchShard("sh9".into()));
    world.map.replicas.get_mut(&ReplicaId(32)).unwrap().stage = ReplicaStage::Retired;
    world.publish();
    world.ask(1, ask("Server2", None));
    let names = vec!["sh1".into(), "sh2".into()];
    assert_eq!(world.reply(), Reply::ServerRows { shards: names.clone(), rows: Vec::new(), next: None, pinned: None, at: None });
    world.ask(1, ask("Server2", Some("sh2")));
    let (to, read) = world.one_read();
    assert!(matches!(read.freshness, Freshness::Linearizable(_)), "{read:?}");
    assert_eq!((to, read.replica), (S2, ReplicaId(22)));
    // Silence: what it has will do.
    world.pass(LATE_MS);
    let (to, read) = world.one_read();
    assert_eq!((to, read.freshness), (S2, Freshness::Any));
    world.page(S2, read.tag, &[200, 202], true);
    let (rows, next, at) = (vec![row(200), row(202)], Some(Key(203)), Some(position(40)));
    assert_eq!(world.reply(), Reply::ServerRows { shards: names, rows, next, pinned: None, at });
    world.ask(1, ask("Server2", Some("sh2")));
    let (_, read) = world.one_read();
    world.refuse(S2, read.tag, ReadRefusal::Lost);
    assert_eq!(world.error(), RequestError::ShardUnavailable("sh2".into()));
}

#[test]
fn home_is_answered_by_the_server_picked_or_by_another_in_time() {
    let mut world = World::new();
    world.ask(1, Request::PickServer { request_id: 123_456 });
    let (first, ToServer::Home { .. }) = world.sent.pop_front().unwrap() else { panic!() };
    world.pass(LATE_MS);
    let (second, ToServer::Home { tag }) = world.sent.pop_front().unwrap() else { panic!() };
    assert_ne!(first, second);
    world.answer(second, ToBalancer::Home { tag });
    assert_eq!(world.reply(), Reply::Server { id: second, name: format!("Server{}", second.0).into(), number: second.0 });

    // Only servers that are up, if any is.
    world.health(S3, Health::Up);
    for request_id in 100_000..100_050 {
        world.ask(1, Request::PickServer { request_id });
        let (to, _) = world.sent.pop_front().unwrap();
        assert_eq!(to, S3);
        world.with(|router, _, _| router.abandoned(Token(1)));
    }
    world.ask(1, Request::PickServer { request_id: 100_000 });
    world.pass(10_000);
    assert_eq!(world.error(), RequestError::NoServer);

    world.map = ClusterMap::default();
    world.publish();
    world.ask(1, Request::PickServer { request_id: 100_000 });
    assert_eq!(world.error(), RequestError::NoServer);
    world.read(2, 0, 5, 1);
    assert_eq!(world.error(), RequestError::NotInitialised);
}
