//! Whatever the servers do, every request is answered once and by its deadline, and identities are kept as R23 and R25 want them.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<u16>, bool),
    Read(u16, u16, u32),
    Pick,
    Answer(usize, u8),
    Drop(usize),
    Time(u64),
    Reconfigure(u64, u64),
    Health(u64, u8),
    Session,
    Abandon(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let key = || prop_oneof![0..100_u16, 200..400_u16];
    prop_oneof![
        6 => (prop::collection::vec(key(), 1..4), any::<bool>()).prop_map(|(keys, keyed)| Step::Write(keys, keyed)),
        4 => (key(), key(), 1..5_u32).prop_map(|(low, high, limit)| Step::Read(low, high, limit)),
        1 => Just(Step::Pick),
        16 => (any::<usize>(), any::<u8>()).prop_map(|(which, how)| Step::Answer(which, how)),
        3 => any::<usize>().prop_map(Step::Drop),
        4 => (0..600_u64).prop_map(Step::Time),
        1 => (1..4_u64, 1..4_u64).prop_map(|(shard, server)| Step::Reconfigure(shard, server)),
        2 => (1..4_u64, any::<u8>()).prop_map(|(server, health)| Step::Health(server, health)),
        2 => Just(Step::Session),
        1 => any::<usize>().prop_map(Step::Abandon),
    ]
}

/// What must hold of every command that is sent, whenever.
#[derive(Default)]
struct Seen {
    /// By shard and identity, the operations: never two under one.
    commands: BTreeMap<(u64, SessionId, u64), Arc<Vec<Operation>>>,
    /// By shard and session, the highest lowest sent.
    lowest: BTreeMap<(u64, SessionId), u64>,
    refused: BTreeSet<(u64, SessionId)>,
    tags: BTreeSet<u64>,
}

impl Seen {
    fn look(&mut self, execute: &Execute) {
        let shard = execute.replica.0 / 10;
        let request = execute.request.unwrap();
        let known = self.commands.entry((shard, request.session, request.number)).or_insert_with(|| Arc::clone(&execute.operations));
        assert_eq!(*known, execute.operations, "{request} names two commands");
        let lowest = self.lowest.entry((shard, request.session)).or_default();
        assert!(request.number >= *lowest, "{request} is sent although the lowest was {lowest}");
        *lowest = request.lowest.max(*lowest);
        assert!(self.tags.insert(execute.tag.number), "{:?} twice", execute.tag);
    }
}

struct Chaos {
    world: World,
    open: BTreeMap<u64, Instant>,
    waiting: Vec<(ServerId, ToServer)>,
    seen: Seen,
    session: u64,
    epoch: u64,
}

impl Chaos {
    fn settle(&mut self) {
        for (to, message) in self.world.sent.drain(..) {
            if let ToServer::Execute(execute) = &message {
                let request = execute.request.unwrap();
                let key = (execute.replica.0 / 10, request.session);
                let is_new = !self.seen.commands.contains_key(&(key.0, key.1, request.number));
                assert!(!is_new || !self.seen.refused.contains(&key), "a new number of a session that was refused");
                self.seen.look(execute);
            }
            self.waiting.push((to, message));
        }
        for (token, reply) in self.world.replies.drain(..) {
            let deadline = self.open.remove(&token.0).unwrap_or_else(|| panic!("{token} is answered twice: {reply:?}"));
            assert!(self.world.now <= deadline, "{token} is answered after its deadline");
            if let Reply::Rows(rows) = &reply {
                assert!(rows.rows.windows(2).all(|pair| pair[0].row.key < pair[1].row.key));
                assert!(rows.next.is_none_or(|next| rows.rows.iter().all(|row| row.row.key < next)));
            }
        }
    }

    fn answer(&mut self, which: usize, how: u8) {
        if self.waiting.is_empty() {
            return;
        }
        let place = which % self.waiting.len();
        // Now and then an answer comes twice, or the copy is answered again later.
        let (from, message) = if how & 0xc0 == 0 { self.waiting[place].clone() } else { self.waiting.swap_remove(place) };
        match message {
            ToServer::Execute(execute) => {
                let request = execute.request.unwrap();
                let result = match how % 8 {
                    0 => not_primary(execute.epoch.0 + u64::from(how % 3)),
                    1 => ExecuteResult::Busy,
                    2 => {
                        let key = (execute.replica.0 / 10, request.session);
                        // Only an answer that is still waited for tells the router.
                        if self.world.router.tags.contains_key(&execute.tag.number) {
                            self.seen.refused.insert(key);
                        }
                        ExecuteResult::SessionGone
                    }
                    3 => failed(Verdict::Missing(vec![Key(1)])),
                    _ => done(u64::from(how)),
                };
                self.world.executed(from, execute.tag, result);
            }
            ToServer::Read(read) => match how % 4 {
                0 => self.world.refuse(from, read.tag, ReadRefusal::Behind),
                1 => self.world.page(from, read.tag, &[read.range.low.0], read.range.low < read.range.high && how & 4 == 0),
                _ => self.world.page(from, read.tag, &[read.range.low.0], false),
            },
            ToServer::Home { tag } => self.world.answer(from, ToBalancer::Home { tag }),
            other => panic!("{other:?}"),
        }
    }

    fn play(&mut self, step: Step, place: u64) {
        let token = place + 1;
        let deadline = self.world.now + Duration::from_millis(10_000);
        match step {
            Step::Write(keys, keyed) => {
                self.open.insert(token, deadline);
                // Values tell the commands apart.
                let value = crate::value::Value::Integer(place.cast_signed());
                let operation = |key: &u16| Operation::Update { key: Key(i64::from(*key)), set: vec![(0, value.clone())] };
                let operations = keys.iter().map(operation).collect();
                let idempotency = if keyed { key(&format!("k{place}")) } else { None };
                self.world.ask(token, Request::Write { operations, on_conflict: None, idempotency });
            }
            Step::Read(low, high, limit) => {
                self.open.insert(token, deadline);
                self.world.read(token, i64::from(low), i64::from(high), limit);
            }
            Step::Pick => {
                self.open.insert(token, deadline);
                self.world.ask(token, Request::PickServer { request_id: 100_000 + place });
            }
            Step::Answer(which, how) => self.answer(which, how),
            Step::Drop(which) => {
                if !self.waiting.is_empty() {
                    let place = which % self.waiting.len();
                    self.waiting.swap_remove(place);
                }
            }
            Step::Time(span) => {
                let end = self.world.now + Duration::from_millis(span);
                self.pass_to(end);
            }
            Step::Reconfigure(shard, server) => {
                self.epoch += 1;
                self.world.reconfigure(ShardId(shard), self.epoch, ServerId(server));
            }
            Step::Health(server, health) => {
                let healths = [Health::Up, Health::Suspect, Health::Down, Health::Starting, Health::Leaving];
                self.world.health(ServerId(server), healths[usize::from(health) % healths.len()]);
            }
            Step::Session => {
                if self.world.router.wants_session() {
                    self.session += 1;
                    let session = SessionId(self.session);
                    self.world.with(|router, now, out| router.set_session(now, session, out));
                }
            }
            Step::Abandon(which) => {
                if let Some(token) = self.open.keys().copied().nth(which % self.open.len().max(1)) {
                    self.open.remove(&token);
                    self.world.with(|router, _, _| router.abandoned(Token(token)));
                }
            }
        }
        self.settle();
    }

    fn pass_to(&mut self, end: Instant) {
        while let Some(at) = self.world.router.next_deadline().filter(|at| *at <= end) {
            self.world.now = self.world.now.max(at);
            self.world.with(Router::tick);
            self.settle();
        }
        self.world.now = end;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn every_request_is_answered_once_in_time_and_identities_are_kept(steps in prop::collection::vec(step(), 1..120)) {
        let world = World::with_config(&BalancerConfig { requests_max: 20, ..BalancerConfig::default() });
        let mut chaos = Chaos { world, open: BTreeMap::new(), waiting: Vec::new(), seen: Seen::default(), session: SESSION.0, epoch: 1 };
        for (place, step) in (0..).zip(steps) {
            chaos.play(step, place);
        }
        let end = chaos.world.now + Duration::from_millis(10_000);
        chaos.pass_to(end);
        prop_assert!(chaos.open.is_empty(), "never answered: {:?}", chaos.open);
        prop_assert_eq!(chaos.world.router.next_deadline(), None);
        prop_assert!(chaos.world.router.tags.is_empty() && chaos.world.router.load_counts.is_empty());
        prop_assert!(chaos.world.router.sessions.waited_for().is_empty());
    }
}
