//! Reads of several pages: where they go on, and where they are cut.

use super::*;
use crate::{
    message::{Pin, ReadOn},
    request::Pinned,
};

/// A page of a read of shards 1 and 2, with more wanted than a page has.
fn ask(world: &mut World, token: u64, low: i64, pinned: Option<Pinned>) {
    let range = KeyRange { low: Key(low), high: Key(299) };
    let consistency = Consistency::Linearizable;
    world.ask(token, Request::ReadPage { range, limit: 2, wanted: 9, consistency, pinned });
}

fn answer(world: &mut World, from: ServerId, tag: Tag, keys: &[i64], more: bool, (index, pin): (u64, Option<Pin>)) {
    let rows = keys.iter().map(|key| row(*key)).collect();
    let result = ReadResult::Rows { rows, more, at: position(index), read_index: None, lag: 0, pin };
    world.answer(from, ToBalancer::ReadDone { tag, result });
}

fn read_on(world: &mut World) -> (ServerId, ReadOn) {
    match world.sent.drain(..).collect::<Vec<_>>().as_slice() {
        [(to, ToServer::ReadOn(read))] => (*to, read.clone()),
        other => panic!("{other:?}"),
    }
}

/// A read whose first page is there, and what is pinned for the rest of shard 1.
fn begun() -> (World, Pinned) {
    let mut world = World::new();
    ask(&mut world, 1, 0, None);
    let reads = world.reads();
    assert_eq!(reads.iter().map(|(_, read)| read.wanted).collect::<Vec<_>>(), [9, 0], "only the first shard of a page is pinned");
    let (to, read) = &reads[0];
    let pin = Pin { replica: read.replica, number: 7 };
    answer(&mut world, *to, read.tag, &[1, 2], true, (40, Some(pin)));
    let rows = world.rows();
    assert_eq!((keys(&rows.rows), rows.next, rows.seen.len()), (vec![1, 2], Some(Key(3)), 1));
    world.sent.clear();
    (world, rows.pinned.expect("more is wanted"))
}

#[test]
fn a_read_goes_on_at_the_replica_that_pinned_it_and_only_there() {
    let (mut world, pinned) = begun();
    ask(&mut world, 2, 3, Some(pinned));
    let (to, read) = read_on(&mut world);
    assert_eq!((to, read.pin, read.range.low, read.range.high), (pinned.server, pinned.pin, Key(3), Key(99)));
    // Silence: the same one is asked again, and whichever answer comes first is taken.
    world.pass(300);
    assert_eq!(read_on(&mut world).0, pinned.server);
    answer(&mut world, to, read.tag, &[3, 4], true, (40, None));
    let rows = world.rows();
    assert_eq!((keys(&rows.rows), rows.pinned), (vec![3, 4], Some(pinned)));
    // The last page of the shard: it is let go, and the next shard follows. What does not fit of that begins the next page.
    ask(&mut world, 3, 5, Some(pinned));
    let (to, read) = read_on(&mut world);
    answer(&mut world, to, read.tag, &[5], false, (40, None));
    let sent: Vec<_> = world.sent.drain(..).collect();
    assert!(sent.contains(&(pinned.server, ToServer::Unpin(pinned.pin))), "{sent:?}");
    let Some((to, ToServer::Read(read))) = sent.iter().find(|(_, message)| matches!(message, ToServer::Read(_))) else {
        panic!("{sent:?}")
    };
    assert_eq!(read.wanted, 0);
    answer(&mut world, *to, read.tag, &[200, 201], true, (12, None));
    let rows = world.rows();
    assert_eq!((keys(&rows.rows), rows.next, rows.pinned), (vec![5], Some(Key(200)), None));
    assert_eq!(rows.seen.len(), 1, "nothing of the second shard was given out: {rows:?}");
}

#[test]
fn a_read_whose_state_is_gone_is_cut() {
    let cut = RequestError::ReadCut("sh1".into());
    let (mut world, pinned) = begun();
    ask(&mut world, 2, 3, Some(pinned));
    let (to, read) = read_on(&mut world);
    world.refuse(to, read.tag, ReadRefusal::PinGone);
    assert_eq!(world.error(), cut);
    // A page of another position is no page of this read.
    let (mut world, pinned) = begun();
    ask(&mut world, 2, 3, Some(pinned));
    let (to, read) = read_on(&mut world);
    answer(&mut world, to, read.tag, &[3], false, (41, None));
    assert_eq!(world.error(), cut);
    let (mut world, pinned) = begun();
    ask(&mut world, 2, 3, Some(pinned));
    world.with(|router, now, out| router.set_health(now, pinned.server, Health::Down, out));
    assert_eq!(world.error(), cut);
}

#[test]
fn a_first_page_that_leaves_more_and_pins_nothing_is_not_taken() {
    let mut world = World::new();
    ask(&mut world, 1, 0, None);
    let (to, read) = world.reads().remove(0);
    answer(&mut world, to, read.tag, &[1, 2], true, (40, None));
    assert!(world.replies.is_empty());
    let (other, _) = world.one_read();
    assert_ne!(other, to);
}

#[test]
fn what_comes_too_late_is_let_go() {
    let (mut world, pinned) = begun();
    // The copy of the answer that was taken changes nothing, that of another replica is of no use.
    let late = Tag { life: Incarnation(0), number: 1 };
    answer(&mut world, pinned.server, late, &[1, 2], true, (40, Some(pinned.pin)));
    assert!(world.sent.is_empty(), "{:?}", world.sent);
    let other = Pin { replica: pinned.pin.replica, number: 8 };
    answer(&mut world, pinned.server, late, &[1, 2], true, (40, Some(other)));
    assert_eq!(world.sent.pop_front(), Some((pinned.server, ToServer::Unpin(other))));
    world.with(|router, _, out| router.end_read(pinned, out));
    assert_eq!(world.sent.pop_front(), Some((pinned.server, ToServer::Unpin(pinned.pin))));
    world.with(|router, _, out| router.end_read(pinned, out));
    assert!(world.sent.is_empty());
}

#[test]
fn only_what_must_be_seen_needs_a_map_of_later() {
    let world = World::new();
    let knows = |consistency| world.router.knows(&Request::Read { range: KeyRange::ALL, limit: 1, consistency });
    let token = |shard| Consistency::Session(BTreeMap::from([(ShardId(shard), LogIndex(3))]));
    assert!(!knows(Consistency::Linearizable), "another balancer may have added a shard, and written to it");
    assert!(knows(Consistency::Stale) && knows(token(1)) && knows(Consistency::Session(BTreeMap::new())));
    assert!(!knows(token(99)), "the client has seen a shard that the map does not have");
}

#[test]
fn a_token_of_what_never_was_is_refused_in_words() {
    let mut world = World::new();
    let consistency = Consistency::Session(BTreeMap::from([(SH1, LogIndex(1 << 63))]));
    world.ask(1, Request::Read { range: KeyRange::one(Key(3)), limit: 1, consistency });
    let (to, read) = world.one_read();
    world.refuse(to, read.tag, ReadRefusal::NeverWas);
    assert_eq!(world.error(), RequestError::TokenBeyond("sh1".into(), LogIndex(1 << 63)));
}
