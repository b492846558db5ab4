use super::*;
use crate::{command::Idempotency, id::Epoch, storage::SessionState, value::Value};
use proptest::prelude::*;

const LIMITS: ViewLimits = ViewLimits { sessions_max: 2, idempotency_max: 3, flush_entries: 4 };

/// A row store that answers when it is told to, in order, and whose flushes become durable when it is told to.
#[derive(Clone, Debug, Default)]
struct Store {
    rows: BTreeMap<Key, StoredRow>,
    state: ViewState,
    durable: Option<Box<Store>>,
    waiting: VecDeque<(u64, StoreCommand)>,
}

impl Store {
    fn take(&mut self, effects: &mut Vec<ViewEffect>) -> Vec<ViewEffect> {
        let mut rest = Vec::new();
        for effect in effects.drain(..) {
            match effect {
                ViewEffect::Store { request, command } => self.waiting.push_back((request, command)),
                other => rest.push(other),
            }
        }
        rest
    }

    fn answer(&mut self, sync: bool) -> Option<(u64, StoreAnswer)> {
        let (request, command) = self.waiting.pop_front()?;
        let answer = match command {
            StoreCommand::Read(RowQuery::Keys(keys)) => {
                StoreAnswer::Rows(RowPage { rows: keys.iter().filter_map(|key| self.rows.get(key).cloned()).collect(), more: false })
            }
            StoreCommand::Read(RowQuery::Range { range, limit, .. }) => {
                let mut rows: Vec<_> = self.rows.range(range.low..=range.high).map(|(_, row)| row.clone()).collect();
                let more = rows.len() > limit as usize;
                rows.truncate(limit as usize);
                StoreAnswer::Rows(RowPage { rows, more })
            }
            StoreCommand::Flush(batch) => {
                assert!(batch.applied > self.state.applied);
                for (key, row) in batch.rows {
                    match row {
                        Some(row) => self.rows.insert(key, row),
                        None => self.rows.remove(&key),
                    };
                }
                for (id, session) in batch.sessions {
                    match session {
                        Some(session) => self.state.sessions.insert(id, session),
                        None => self.state.sessions.remove(&id),
                    };
                }
                for (key, state) in batch.idempotency {
                    match state {
                        Some(state) => self.state.idempotency.insert(key, state),
                        None => self.state.idempotency.remove(&key),
                    };
                }
                self.state.session_floor = batch.session_floor;
                self.state.applied = batch.applied;
                if sync {
                    self.durable = None;
                    self.durable = Some(Box::new(Self { waiting: VecDeque::new(), ..self.clone() }));
                }
                StoreAnswer::Flushed { durable: self.durable.as_ref().map_or(Position::ZERO, |durable| durable.state.applied) }
            }
            other => panic!("a view asks no {other:?}"),
        };
        Some((request, answer))
    }

    fn crash(self) -> Self {
        self.durable.map_or_else(Self::default, |durable| Self { durable: Some(durable.clone()), ..*durable })
    }
}

/// What the view must amount to: everything applied at once, nothing forgotten but by the rules.
#[derive(Clone, Debug, Default)]
struct Model {
    rows: BTreeMap<Key, StoredRow>,
    memory: Memory,
}

impl Model {
    fn apply(&mut self, entry: &Entry) -> AppliedResult {
        // A view without a store: everything in its overlay.
        let mut view = View::new(ViewState::default(), LIMITS, Planted::NONE);
        view.memory = self.memory.clone();
        for (key, row) in &self.rows {
            view.overlay.insert(*key, Overlaid { writer: LogIndex(0), row: Some(row.clone()) });
        }
        let (rows, changes, result) = view.evaluate(entry);
        for (key, row) in rows {
            match row {
                Some(row) => self.rows.insert(key, row),
                None => self.rows.remove(&key),
            };
        }
        for change in &changes {
            self.memory.change(change, LIMITS.sessions_max, LIMITS.idempotency_max);
        }
        result
    }
}

fn row(key: i64, value: i64) -> Row {
    Row { key: Key(key), values: vec![Value::Integer(value)] }
}

fn insert(key: i64, value: i64, on_conflict: OnConflict) -> Operation {
    Operation::Insert { row: row(key, value), on_conflict }
}

fn request(session: u64, number: u64, lowest: u64) -> Option<RequestId> {
    Some(RequestId { session: SessionId(session), number, lowest })
}

fn entry(index: u64, request: Option<RequestId>, operations: Vec<Operation>) -> Arc<Entry> {
    let position = Position { epoch: Epoch(1), index: LogIndex(index) };
    Arc::new(Entry { position, request, idempotency: None, command: Command::Operations(operations) })
}

fn keyed(index: u64, key: &str, body_hash: u128, operations: Vec<Operation>) -> Arc<Entry> {
    let mut entry = Entry::clone(&entry(index, None, operations));
    entry.idempotency = Some(Idempotency { key: key.into(), body_hash });
    Arc::new(entry)
}

/// Applies entries with a store that answers at once; the results.
fn results(view: &mut View, store: &mut Store, entries: &[Arc<Entry>]) -> Vec<AppliedResult> {
    let mut results = Vec::new();
    for entry in entries {
        view.queue(Arc::clone(entry));
        settle(view, store, Instant(0), &mut results, &mut Vec::new());
    }
    results
}

fn settle(
    view: &mut View,
    store: &mut Store,
    now: Instant,
    results: &mut Vec<AppliedResult>,
    reads: &mut Vec<(u64, Vec<StoredRow>, bool, Position)>,
) {
    let mut effects = Vec::new();
    loop {
        view.advance(now, LogIndex(u64::MAX), &mut effects);
        take(store.take(&mut effects), results, reads);
        let Some((request, answer)) = store.answer(true) else { return };
        view.stored(now, request, answer, &mut effects);
        take(store.take(&mut effects), results, reads);
    }
}

fn take(effects: Vec<ViewEffect>, results: &mut Vec<AppliedResult>, reads: &mut Vec<(u64, Vec<StoredRow>, bool, Position)>) {
    for effect in effects {
        match effect {
            ViewEffect::Applied { result, .. } => results.push(result),
            ViewEffect::ReadDone { id, rows, more, at } => reads.push((id, rows, more, at)),
            other @ (ViewEffect::Store { .. } | ViewEffect::Lost(_)) => panic!("{other:?}"),
        }
    }
}

fn verdict(result: &AppliedResult) -> &Verdict {
    match result {
        AppliedResult::Done(outcome) => &outcome.verdict,
        other => panic!("{other:?}"),
    }
}

fn applied(written_count: u32, skipped_count: u32) -> Verdict {
    Verdict::Applied { written_count, skipped_count }
}

fn fresh() -> (View, Store) {
    (View::new(ViewState::default(), LIMITS, Planted::NONE), Store::default())
}

#[test]
fn commands_are_all_or_nothing_and_see_their_own_rows() {
    let (mut view, mut store) = fresh();
    let update = |key, value| Operation::Update { key: Key(key), set: vec![(0, Value::Integer(value))] };
    let results = results(
        &mut view,
        &mut store,
        &[
            entry(1, None, vec![insert(1, 10, OnConflict::Error), update(1, 11), insert(1, 12, OnConflict::Skip)]),
            entry(2, None, vec![insert(2, 20, OnConflict::Replace), insert(1, 13, OnConflict::Error)]),
            entry(3, None, vec![update(2, 21)]),
            entry(4, None, vec![Operation::Delete { key: Key(1) }, insert(1, 14, OnConflict::Error)]),
            entry(5, None, vec![Operation::Delete { key: Key(9) }]),
        ],
    );
    let verdicts: Vec<_> = results.iter().map(verdict).cloned().collect();
    assert_eq!(
        verdicts,
        [applied(2, 1), Verdict::Conflict(vec![Key(1)]), Verdict::Missing(vec![Key(2)]), applied(2, 0), Verdict::Missing(vec![Key(9)]),]
    );
}

#[test]
fn retry_gets_the_first_outcome_and_changes_nothing() {
    let insert_error = || vec![insert(1, 10, OnConflict::Error)];
    for (planted, second) in [(Planted::NONE, applied(1, 0)), retried_twice()] {
        let (mut view, mut store) = (View::new(ViewState::default(), LIMITS, planted), Store::default());
        let results =
            results(&mut view, &mut store, &[entry(1, request(1, 1, 1), insert_error()), entry(2, request(1, 1, 1), insert_error())]);
        assert_eq!((verdict(&results[0]), verdict(&results[1])), (&applied(1, 0), &second));
    }
}

#[cfg(feature = "planted")]
fn retried_twice() -> (Planted, Verdict) {
    (Planted::with(Bug::AppliesRetryTwice), Verdict::Conflict(vec![Key(1)]))
}

#[cfg(not(feature = "planted"))]
fn retried_twice() -> (Planted, Verdict) {
    (Planted::NONE, applied(1, 0))
}

#[test]
fn numbers_below_the_lowest_are_refused() {
    let (mut view, mut store) = fresh();
    let put = || vec![insert(1, 10, OnConflict::Replace)];
    let results = results(
        &mut view,
        &mut store,
        &[entry(1, request(1, 1, 1), put()), entry(2, request(1, 3, 3), put()), entry(3, request(1, 1, 1), put())],
    );
    assert_eq!(results[2], AppliedResult::SessionGone);
}

#[test]
fn evicted_session_is_refused_and_never_taken_for_a_new_one() {
    let (mut view, mut store) = fresh();
    let put = || vec![insert(1, 10, OnConflict::Replace)];
    let results = results(
        &mut view,
        &mut store,
        &[
            entry(1, request(5, 1, 1), put()),
            entry(2, request(3, 1, 1), put()),
            entry(3, request(5, 2, 1), put()),
            // Two are remembered: session 3 was used least recently and goes, and 3 becomes the floor.
            entry(4, request(7, 1, 1), put()),
            entry(5, request(3, 2, 1), put()),
            entry(6, request(2, 1, 1), put()),
            entry(7, request(5, 3, 1), put()),
        ],
    );
    let gone: Vec<_> = results.iter().map(|result| *result == AppliedResult::SessionGone).collect();
    assert_eq!(gone, [false, false, false, false, true, true, false]);
    assert_eq!(view.session_floor(), SessionId(3));
}

#[test]
fn idempotency_key_returns_the_first_outcome_or_refuses_another_body() {
    let (mut view, mut store) = fresh();
    let put = |value| vec![insert(1, value, OnConflict::Error)];
    let results = results(
        &mut view,
        &mut store,
        &[
            keyed(1, "a", 1, put(1)),
            keyed(2, "a", 1, put(1)),
            keyed(3, "a", 2, put(2)),
            keyed(4, "b", 1, vec![insert(2, 1, OnConflict::Error)]),
            keyed(5, "c", 1, vec![insert(3, 1, OnConflict::Error)]),
            // Three keys are remembered: "a" goes.
            keyed(6, "d", 1, vec![insert(4, 1, OnConflict::Error)]),
            keyed(7, "a", 1, put(1)),
        ],
    );
    let verdicts: Vec<_> = results.iter().map(verdict).cloned().collect();
    assert_eq!(verdicts[..3], [applied(1, 0), applied(1, 0), Verdict::KeyReused]);
    assert_eq!(verdicts[6], Verdict::Conflict(vec![Key(1)]));
}

#[test]
fn flush_waits_for_the_log_and_survives_a_store_that_is_down() {
    let (mut view, mut store) = fresh();
    let mut effects = Vec::new();
    for index in 1..=5 {
        view.queue(entry(index, request(index, 1, 1), vec![insert(1, 10, OnConflict::Replace)]));
    }
    view.advance(Instant(0), LogIndex(0), &mut effects);
    assert!(!effects.iter().any(|effect| matches!(effect, ViewEffect::Store { .. })), "R8");
    view.advance(Instant(0), LogIndex(4), &mut effects);
    store.take(&mut effects);
    let (asked, first) = store.waiting.pop_front().unwrap();
    view.stored(Instant(0), asked, StoreAnswer::Unavailable, &mut effects);
    view.advance(view.next_deadline().unwrap(), LogIndex(5), &mut effects);
    store.take(&mut effects);
    let (_, second) = store.waiting.pop_front().unwrap();
    assert_eq!(first, second);
    assert!(matches!(first, StoreCommand::Flush(batch) if batch.applied.index == LogIndex(4) && batch.session_floor == SessionId(2)));
}

#[test]
fn a_store_is_away_once_it_has_answered_nothing_for_a_second() {
    let (mut view, mut store) = fresh();
    let mut effects = Vec::new();
    for index in 1..=5 {
        view.queue(entry(index, request(index, 1, 1), vec![insert(1, 10, OnConflict::Replace)]));
    }
    let mut now = Instant(0);
    for round in 0..6 {
        view.advance(now, LogIndex(5), &mut effects);
        store.take(&mut effects);
        let (asked, _) = store.waiting.pop_front().unwrap();
        assert_eq!(view.is_store_away(now), round == 5, "at {now}");
        view.stored(
            now,
            asked,
            if round == 5 {
                StoreAnswer::Flushed { durable: Position { epoch: Epoch(1), index: LogIndex(5) } }
            } else {
                StoreAnswer::Unavailable
            },
            &mut effects,
        );
        now = now + Duration::from_millis(200);
    }
    assert!(!view.is_store_away(now), "it answers again");
}

const AFTER: fn(Instant, u64) -> Instant = |instant, ms| instant + Duration::from_millis(ms);

/// The command that the view gives now, and its name.
fn asked(view: &mut View, now: Instant) -> Option<(u64, StoreCommand)> {
    let mut effects = Vec::new();
    view.advance(now, LogIndex(u64::MAX), &mut effects);
    match &effects[..] {
        [] => None,
        [ViewEffect::Store { request, command }] => Some((*request, command.clone())),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_store_that_hangs_is_away_before_it_is_given_up() {
    let (mut view, _) = fresh();
    view.read(1, KeyRange::ALL, 1, 1);
    let begun = AFTER(Instant(0), 10_000);
    let (read, _) = asked(&mut view, begun).unwrap();
    assert!(!view.is_store_away(AFTER(begun, 2_999)) && view.is_store_away(AFTER(begun, 3_000)));
    // Whoever asks it gives up. It stays away while it is asked again, and until it answers.
    let given_up = AFTER(begun, 10_000);
    view.stored(given_up, read, StoreAnswer::Unavailable, &mut Vec::new());
    assert!(view.is_store_away(given_up));
    let retry = view.next_deadline().unwrap();
    let (again, _) = asked(&mut view, retry).unwrap();
    assert!(view.is_store_away(retry));
    view.stored(AFTER(retry, 9_000), again, StoreAnswer::Rows(RowPage::default()), &mut Vec::new());
    assert!(!view.is_store_away(AFTER(retry, 9_000)));
}

#[test]
fn a_store_that_is_asked_nothing_is_asked_whether_it_is_there() {
    let (mut view, _) = fresh();
    assert_eq!(asked(&mut view, Instant(0)), None);
    let due = view.next_deadline().unwrap();
    assert_eq!(asked(&mut view, AFTER(due, 0)).map(|(_, command)| command), Some(StoreCommand::Read(RowQuery::Keys(vec![Key(0)]))));
    // It is asked one thing at a time, and again until it answers.
    assert_eq!((asked(&mut view, AFTER(due, 60_000)), view.next_deadline()), (None, None));
    let mut request = 1;
    for _ in 0..10 {
        view.stored(due, request, StoreAnswer::Unavailable, &mut Vec::new());
        let retry = view.next_deadline().unwrap();
        (request, _) = asked(&mut view, retry).unwrap();
    }
    assert!(view.is_store_away(AFTER(due, 1_000)));
    view.stored(due, request, StoreAnswer::Rows(RowPage::default()), &mut Vec::new());
    assert!(!view.is_store_away(AFTER(due, 60_000)));
    // Whoever is asked for other things need not be asked for this.
    let mut now = due;
    for id in 2..20 {
        now = AFTER(now, 4_000);
        view.read(id, KeyRange::ALL, 1, 1);
        let (request, command) = asked(&mut view, now).unwrap();
        assert!(matches!(command, StoreCommand::Read(RowQuery::Range { .. })));
        view.stored(now, request, StoreAnswer::Rows(RowPage::default()), &mut Vec::new());
    }
}

#[derive(Clone, Debug)]
enum Step {
    Entry(u8, u64, u64, Vec<(u8, i64)>),
    Answer(bool),
    Unavailable,
    Read(i64, i64, u32),
    Time,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..4_u8, 1..5_u64, 0..3_u64, prop::collection::vec((0..5_u8, 0..6_i64), 1..4)).prop_map(|(kind, session, back, rows)| Step::Entry(kind, session, back, rows)),
        8 => any::<bool>().prop_map(Step::Answer),
        1 => Just(Step::Unavailable),
        4 => (0..6_i64, 0..6_i64, 1..4_u32).prop_map(|(low, high, limit)| Step::Read(low, high, limit)),
        2 => Just(Step::Time),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(1), ..ProptestConfig::default() })]

    /// However late the store answers and however often it loses its tail, every entry has the result of an eager model, and every
    /// read is the model's state at the position it names.
    #[test]
    fn view_is_the_log_applied(steps in steps()) {
        let (mut view, mut store) = fresh();
        let (mut model, mut states, mut log, mut expected) = (Model::default(), vec![Model::default()], Vec::new(), vec![AppliedResult::Nothing]);
        let mut numbers: BTreeMap<u64, u64> = BTreeMap::new();
        let (mut now, mut asked) = (Instant(0), BTreeMap::new());
        for (place, step) in steps.into_iter().enumerate() {
            let mut effects = Vec::new();
            match step {
                Step::Entry(kind, session, back, rows) => {
                    let index = log.len() as u64 + 1;
                    let operations = rows.iter().map(|(what, key)| match what {
                        0 => Operation::Delete { key: Key(*key) },
                        1 => Operation::Update { key: Key(*key), set: vec![(0, Value::Integer(index.cast_signed()))] },
                        2 => insert(*key, index.cast_signed(), OnConflict::Error),
                        3 => insert(*key, index.cast_signed(), OnConflict::Skip),
                        _ => insert(*key, index.cast_signed(), OnConflict::Replace),
                    }).collect();
                    let new = match kind {
                        0 => keyed(index, ["a", "b", "c", "d"][usize::try_from(session).unwrap() - 1], u128::from(back), operations),
                        1 => entry(index, None, operations),
                        _ => {
                            let number = numbers.entry(session).or_insert(1);
                            *number += 1;
                            entry(index, request(session, (*number).saturating_sub(back).max(1), number.saturating_sub(2).max(1)), operations)
                        }
                    };
                    expected.push(model.apply(&new));
                    states.push(model.clone());
                    log.push(Arc::clone(&new));
                    view.queue(new);
                }
                Step::Answer(sync) => if let Some((request, answer)) = store.answer(sync) {
                    view.stored(now, request, answer, &mut effects);
                },
                Step::Unavailable => if let Some((request, _)) = store.waiting.pop_front() {
                    view.stored(now, request, StoreAnswer::Unavailable, &mut effects);
                },
                Step::Read(low, high, limit) => {
                    asked.insert(place as u64, (low, high, limit));
                    view.read(place as u64, KeyRange { low: Key(low), high: Key(high.max(low)) }, limit, 1_000);
                }
                Step::Time => now = now + Duration::from_millis(300),
                Step::Crash => {
                    store = store.crash();
                    asked.clear();
                    view = View::new(store.state.clone(), LIMITS, Planted::NONE);
                    prop_assert_eq!(&view.memory, &states[usize::try_from(store.state.applied.index.0).unwrap()].memory);
                    for entry in &log[usize::try_from(store.state.applied.index.0).unwrap()..] {
                        view.queue(Arc::clone(entry));
                    }
                }
            }
            view.advance(now, LogIndex(u64::MAX), &mut effects);
            let mut at = view.applied().index.0;
            let results: Vec<_> = effects.iter().filter(|effect| matches!(effect, ViewEffect::Applied { .. })).collect();
            at -= results.len() as u64;
            for effect in store.take(&mut effects) {
                match effect {
                    ViewEffect::Applied { position, result, .. } => {
                        at += 1;
                        prop_assert_eq!(position.index.0, at);
                        prop_assert_eq!(&result, &expected[usize::try_from(at).unwrap()]);
                    }
                    ViewEffect::ReadDone { id, rows, more, at } => {
                        let (low, high, limit) = asked.remove(&id).unwrap();
                        let state = &states[usize::try_from(at.index.0).unwrap()];
                        let end = if more { rows.last().unwrap().row.key } else { Key(high.max(low)) };
                        let right: Vec<_> = state.rows.range(Key(low)..=end).map(|(_, row)| row.clone()).collect();
                        prop_assert!(rows.len() <= limit as usize);
                        prop_assert_eq!(rows, right);
                    }
                    other => prop_assert!(false, "{:?}", other),
                }
            }
        }
        // In the end everything is applied and answered.
        let (mut rest, mut reads) = (Vec::new(), Vec::new());
        // Twice: what is applied the first time is flushed the second.
        for _ in 0..2 {
            now = now + Duration::from_millis(5_000);
            settle(&mut view, &mut store, now, &mut rest, &mut reads);
        }
        prop_assert_eq!(view.applied().index.0, log.len() as u64);
        prop_assert_eq!(reads.len(), asked.len());
        prop_assert_eq!(&store.rows, &model.rows);
        let stored: BTreeMap<SessionId, SessionState> = store.state.sessions;
        prop_assert_eq!(stored, model.memory.to_state(Position::ZERO).sessions);
    }
}
