use super::*;
use std::collections::BTreeMap;
use twinshard_core::{
    command::{OnConflict, Operation},
    id::Epoch,
    request::{Applied, Reply, RequestError, Rows, ShardPart, Written},
    value::StoredRow,
};

fn two_shards() -> Recorder {
    let mut layout = Layout::default();
    layout.add(ShardId(1), "sh1", KeyRange { low: Key(0), high: Key(9) });
    layout.add(ShardId(2), "sh2", KeyRange { low: Key(10), high: Key(19) });
    Recorder::new(layout)
}

fn row(key: i64, value: i64) -> Row {
    Row { key: Key(key), values: vec![Value::Text("x".into()), Value::Integer(value)] }
}

fn write(keys: &[(i64, i64)], on_conflict: OnConflict) -> Request {
    let operations = keys.iter().map(|(key, value)| Operation::Insert { row: row(*key, *value), on_conflict }).collect();
    Request::Write { operations, on_conflict: Some(on_conflict), idempotency: None }
}

fn position(index: u64) -> Position {
    Position { epoch: Epoch(1), index: LogIndex(index) }
}

fn outcomes(history: &History) -> Vec<(ShardId, CommandOutcome)> {
    let outcome = |call: &Call| match &call.action {
        Action::Command { outcome, .. } => (call.shard, outcome.clone()),
        Action::Read { .. } => panic!("a read"),
    };
    history.calls.iter().map(outcome).collect()
}

#[test]
fn a_write_over_two_shards_is_one_call_in_each() {
    let mut recorder = two_shards();
    let operation = recorder.begin(3, 5, write(&[(1, 100), (12, 101)], OnConflict::Replace));
    let seen = BTreeMap::from([(ShardId(1), position(7)), (ShardId(2), position(8))]);
    recorder.finish(operation, 9, &Reply::Written(Written { written_count: 2, skipped_count: 0, seen })).expect("a good answer");
    let history = recorder.into_history();
    assert_eq!(
        outcomes(&history),
        [
            (ShardId(1), CommandOutcome::Acknowledged { position: Some(position(7)) }),
            (ShardId(2), CommandOutcome::Acknowledged { position: Some(position(8)) })
        ]
    );
    assert_eq!(history.asked[0].kind, Kind::Batch);
    assert_eq!((history.asked[0].told, history.asked[0].answered), (Told::Done, Some(9)));
    assert_eq!((history.calls[1].called, history.calls[1].returned), (5, Some(9)));
}

#[test]
fn parts_that_differ_are_told_apart() {
    let mut recorder = two_shards();
    let operation = recorder.begin(0, 0, write(&[(1, 100), (12, 101)], OnConflict::Error));
    let parts = BTreeMap::from([
        ("sh1".into(), ShardPart { applied: Applied::No, error: Some(Box::new(RequestError::Exists(vec![Key(1)]))), seen: None }),
        ("sh2".into(), ShardPart { applied: Applied::Unknown, error: None, seen: None }),
    ]);
    recorder.finish(operation, 9, &Reply::Failed(RequestError::Parts(parts))).expect("a good answer");
    let history = recorder.into_history();
    assert_eq!(
        outcomes(&history),
        [(ShardId(1), CommandOutcome::Refused { existing: vec![Key(1)], missing: vec![] }), (ShardId(2), CommandOutcome::Unknown)]
    );
    assert_eq!(history.calls[1].returned, None);
    assert_eq!(history.asked[0].told, Told::Unknown);
}

#[test]
fn session_has_seen_the_parts_that_were_applied() {
    let mut recorder = two_shards();
    let operation = recorder.begin(0, 0, write(&[(1, 100), (12, 101)], OnConflict::Replace));
    let position = Position { epoch: Epoch(1), index: LogIndex(15) };
    let parts = BTreeMap::from([
        ("sh1".into(), ShardPart { applied: Applied::Yes, error: None, seen: Some((ShardId(1), position)) }),
        ("sh2".into(), ShardPart { applied: Applied::Unknown, error: Some(Box::new(RequestError::OutcomeUnknown)), seen: None }),
    ]);
    recorder.finish(operation, 9, &Reply::Failed(RequestError::Parts(parts))).expect("a good answer");
    assert_eq!(recorder.session(0), BTreeMap::from([(ShardId(1), LogIndex(15))]));
    let history = recorder.into_history();
    assert_eq!(outcomes(&history)[0], (ShardId(1), CommandOutcome::Acknowledged { position: Some(position) }));
}

#[test]
fn what_a_client_is_told_is_summed_up() {
    let refused = || Some(Box::new(RequestError::Missing(vec![Key(1)])));
    let busy = || Some(Box::new(RequestError::Overloaded));
    let told = |one: (Applied, _), other: (Applied, _)| {
        let mut recorder = two_shards();
        let operation = recorder.begin(0, 0, write(&[(1, 100), (12, 101)], OnConflict::Replace));
        let part = |(applied, error)| ShardPart { applied, error, seen: None };
        let parts = BTreeMap::from([("sh1".into(), part(one)), ("sh2".into(), part(other))]);
        recorder.finish(operation, 9, &Reply::Failed(RequestError::Parts(parts))).expect("a good answer");
        recorder.into_history().asked[0].told
    };
    assert_eq!(told((Applied::Yes, None), (Applied::No, refused())), Told::Partial);
    assert_eq!(told((Applied::Yes, None), (Applied::Unknown, None)), Told::Unknown);
    assert_eq!(told((Applied::No, refused()), (Applied::No, refused())), Told::Refused);
    assert_eq!(told((Applied::No, refused()), (Applied::No, busy())), Told::Failed);
}

#[test]
fn what_never_ends_or_was_tried_before_is_unknown() {
    let mut recorder = two_shards();
    let first = recorder.begin(0, 0, write(&[(1, 100)], OnConflict::Replace));
    let second = recorder.begin(0, 0, write(&[(2, 101)], OnConflict::Replace));
    recorder.retry(second).expect("open");
    recorder.finish(second, 9, &Reply::Failed(RequestError::Overloaded)).expect("a good answer");
    assert_eq!(recorder.finish(second, 9, &Reply::Initialised), Err(RecordError::NotOpen(second)));
    assert_eq!(recorder.open_count(), 1);
    let history = recorder.into_history();
    assert_eq!(outcomes(&history), [(ShardId(1), CommandOutcome::Unknown), (ShardId(1), CommandOutcome::Unknown)]);
    assert_eq!(history.calls[1].operation, first);
    assert_eq!(history.asked[1].told, Told::Unknown);
}

fn read(low: i64, high: i64) -> Request {
    Request::Read { range: KeyRange { low: Key(low), high: Key(high) }, limit: 3, consistency: Consistency::Linearizable }
}

fn stored(key: i64, value: i64, index: u64) -> StoredRow {
    StoredRow { version: position(index), row: row(key, value) }
}

#[test]
fn a_page_speaks_for_its_keys_alone() {
    let mut recorder = two_shards();
    let operation = recorder.begin(0, 0, read(5, 19));
    let rows = Rows {
        rows: vec![stored(6, 100, 3), stored(11, 101, 4)],
        next: Some(Key(15)),
        seen: BTreeMap::from([(ShardId(1), LogIndex(5)), (ShardId(2), LogIndex(6))]),
        ..Rows::default()
    };
    recorder.finish(operation, 9, &Reply::Rows(Box::new(rows))).expect("a good answer");
    let history = recorder.into_history();
    let seen = |key, value, index| SeenRow { key: Key(key), value, version: Some(position(index)), born: None };
    assert_eq!(
        history.calls[0].action,
        Action::Read {
            range: KeyRange { low: Key(5), high: Key(9) },
            rows: vec![seen(6, 100, 3)],
            at: Some(LogIndex(5)),
            level: Level::Linearizable
        }
    );
    assert_eq!(
        history.calls[1].action,
        Action::Read {
            range: KeyRange { low: Key(10), high: Key(14) },
            rows: vec![seen(11, 101, 4)],
            at: Some(LogIndex(6)),
            level: Level::Linearizable
        }
    );
}

#[test]
fn rows_out_of_range_or_order_are_refused() {
    for rows in [vec![stored(20, 1, 1)], vec![stored(7, 1, 1), stored(6, 2, 1)], vec![stored(6, 1, 1), stored(6, 1, 1)]] {
        let mut recorder = two_shards();
        let operation = recorder.begin(0, 0, read(5, 19));
        let key = rows[rows.len() - 1].row.key;
        let reply = Reply::Rows(Box::new(Rows { rows, ..Rows::default() }));
        assert_eq!(recorder.finish(operation, 9, &reply), Err(RecordError::StrayRow { operation, key }));
    }
}

#[test]
fn counts_that_do_not_add_up_are_refused() {
    let mut recorder = two_shards();
    let operation = recorder.begin(0, 0, write(&[(1, 100), (2, 101)], OnConflict::Replace));
    let reply = Reply::Written(Written { written_count: 1, skipped_count: 0, seen: BTreeMap::new() });
    assert_eq!(recorder.finish(operation, 9, &reply), Err(RecordError::WrongCount { operation, asked: 2, written: 1, skipped: 0 }));
}
