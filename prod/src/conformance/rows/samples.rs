//! Rows, sessions and keys of every kind, and how a page and a piece of a snapshot are judged.

use super::{View, execute};
use crate::{
    conformance::{Random, ensure},
    rows::RowStore,
};
use std::collections::BTreeMap;
use twinshard_core::{
    command::{Outcome, Verdict},
    id::{Epoch, LogIndex, Position, ReplicaId, SessionId},
    schema::{Column, ColumnType, Schema},
    storage::{IdempotencyState, RowQuery, SessionState, SnapshotChunk, SnapshotCursor, StoreAnswer, StoreCommand},
    value::{Finite, Key, Row, StoredRow, TEXT_BYTES_MAX, Value},
};

/// Idempotency keys that a store must tell apart.
pub(super) const IDEMPOTENCY_KEYS: [&str; 8] = ["key", "KEY", "key ", " key", "k\u{e9}y", "ke\u{301}y", "k%_\\'\"`;--", ""];
/// Session ids, the extreme ones too.
pub(super) const SESSIONS: [u64; 5] = [1, 2, 3, 1 << 40, u64::MAX];
/// Numbers that a store must keep to the bit.
const DECIMALS: [f64; 9] = [0.0, 0.1, -1.5, 1e22, 1.0 / 3.0, f64::MAX, f64::MIN, f64::MIN_POSITIVE, 5e-324];
const INTEGERS: [i64; 7] = [0, 1, -1, i64::MIN, i64::MAX, 1 << 53, (1 << 53) + 1];
/// Texts that a store must tell apart and keep to the byte.
const TEXTS: [&str; 12] = [
    "",
    " ",
    "a",
    "A",
    "a ",
    "0",
    "1.0",
    "true",
    "it's \"quoted\" \\ `so` %_;--",
    "\0nul\0",
    "\u{1f980} \u{10ffff}\r\n\t",
    "e\u{301}\u{e9}",
];

/// The columns that the suite's rows fit: the key, and one of each type, text twice. Some have names that a store may want for itself.
#[must_use]
#[allow(clippy::missing_panics_doc, clippy::expect_used, reason = "the columns are written here")]
pub fn schema() -> Schema {
    let columns = [
        ("id", ColumnType::Number),
        ("DB_ROW_ID", ColumnType::Number),
        ("text", ColumnType::String),
        ("db_trx_id", ColumnType::Float),
        ("Db_Roll_Ptr", ColumnType::Boolean),
        ("FTS_DOC_ID", ColumnType::String),
    ];
    let columns = columns.map(|(name, dtype)| Column { name: name.into(), dtype });
    Schema::new(columns.to_vec()).expect("the columns are allowed")
}

pub(super) const fn position(epoch: u64, index: u64) -> Position {
    Position { epoch: Epoch(epoch), index: LogIndex(index) }
}

pub(super) fn row(key: i64, version: Position) -> StoredRow {
    let values = vec![Value::Integer(key), text(&format!("row {key}")), decimal(0.5), Value::Boolean(key % 2 == 0), text("")];
    StoredRow { version, row: Row { key: Key(key), values } }
}

pub(super) fn wide_row(key: i64, bytes: usize, version: Position) -> StoredRow {
    let mut row = row(key, version);
    row.row.values[4] = text(&"x".repeat(bytes));
    row
}

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

fn decimal(value: f64) -> Value {
    Finite::new(value).map_or(Value::Integer(0), Value::Decimal)
}

/// A row for every value that the suite knows, in key order, from the least key to the greatest.
pub(super) fn every_value(version: Position) -> Vec<StoredRow> {
    let decimals = DECIMALS.iter().map(|value| decimal(*value));
    let numbers: Vec<Value> = INTEGERS.iter().map(|value| Value::Integer(*value)).chain(decimals).collect();
    let mut texts: Vec<Value> = TEXTS.iter().map(|value| text(value)).chain(numbers.clone()).collect();
    texts.push(text(&"x".repeat(TEXT_BYTES_MAX)));
    texts.push(text(&"\u{1f980}".repeat(TEXT_BYTES_MAX / 4)));
    let last = texts.len() - 1;
    let cycle = |among: &[Value], place: usize| among[place % among.len()].clone();
    let key = |place: usize| match place {
        0 => i64::MIN,
        _ if place == last => i64::MAX,
        _ => i64::try_from(place).unwrap_or(0) - 5,
    };
    let row = |place: usize| {
        let values = vec![
            cycle(&numbers, place),
            texts[place].clone(),
            cycle(&numbers, place + 3),
            Value::Boolean(place.is_multiple_of(2)),
            cycle(&texts, place + 1),
        ];
        StoredRow { version, row: Row { key: Key(key(place)), values } }
    };
    (0..texts.len()).map(row).collect()
}

fn verdicts() -> [Verdict; 4] {
    [
        Verdict::Applied { written_count: u32::MAX, skipped_count: 3 },
        Verdict::Conflict(vec![Key(i64::MIN), Key(0), Key(i64::MAX)]),
        Verdict::Missing((0..100).map(Key).collect()),
        Verdict::KeyReused,
    ]
}

pub(super) fn sessions(at: Position) -> BTreeMap<SessionId, SessionState> {
    SESSIONS.iter().zip(0..).map(|(id, count)| (SessionId(*id), session(count, at))).collect()
}

fn session(outcome_count: usize, position: Position) -> SessionState {
    let outcomes = verdicts().into_iter().cycle().take(outcome_count).map(|verdict| Outcome { verdict, position });
    SessionState { lowest: 7, last_used: position.index, outcomes: (7..).zip(outcomes).collect() }
}

pub(super) fn idempotency(at: Position) -> BTreeMap<Box<str>, IdempotencyState> {
    let mut keys: Vec<String> = IDEMPOTENCY_KEYS.iter().map(|&key| key.to_owned()).collect();
    keys.push("y".repeat(255));
    let outcomes = verdicts().into_iter().cycle().map(|verdict| Outcome { verdict, position: at });
    let states = outcomes.map(|outcome| IdempotencyState { body_hash: u128::MAX - 1, outcome });
    keys.into_iter().map(String::into_boxed_str).zip(states).collect()
}

/// A row with this key and values that fit the schema.
pub(super) fn random_row(random: &mut Random, key: Key, version: Position) -> StoredRow {
    let number = |random: &mut Random| {
        if random.percent(50) {
            Value::Integer(random.pick(&INTEGERS).copied().unwrap_or(0))
        } else {
            decimal(random.pick(&DECIMALS).copied().unwrap_or(0.0))
        }
    };
    let words = |random: &mut Random| match random.below(10) {
        0 => text(&"wide ".repeat(random.size(TEXT_BYTES_MAX / 5))),
        1 => Value::Integer(9),
        _ => text(random.pick(&TEXTS).copied().unwrap_or("")),
    };
    let values = vec![number(random), words(random), number(random), Value::Boolean(random.percent(50)), words(random)];
    StoredRow { version, row: Row { key, values } }
}

pub(super) fn random_session(random: &mut Random, at: Position) -> SessionState {
    session(random.size(5), at)
}

/// Judges a page of the rows that a replica has, which are given in key order.
pub(super) fn check_page(store: &mut impl RowStore, replica: ReplicaId, all: &[StoredRow], query: &RowQuery) -> Result<(), String> {
    let page = match execute(store, replica, StoreCommand::Read(query.clone()))? {
        StoreAnswer::Rows(page) => page,
        other => return Err(format!("{other:?} in the place of rows")),
    };
    let (range, limit, bytes_max) = match query {
        RowQuery::Keys(keys) => {
            let expected: Vec<&StoredRow> = all.iter().filter(|row| keys.contains(&row.row.key)).collect();
            ensure!(page.rows.iter().collect::<Vec<_>>() == expected, "{query:?} found {:?}", page.rows);
            return Ok(());
        }
        RowQuery::Range { range, limit, bytes_max } => (*range, *limit as usize, *bytes_max as usize),
    };
    let there: Vec<&StoredRow> = all.iter().filter(|row| range.contains(row.row.key)).collect();
    let count = page.rows.len();
    ensure!(count <= there.len(), "{query:?} found more rows than there are");
    let wrong = page.rows.iter().zip(&there).find(|(found, expected)| found != *expected);
    ensure!(wrong.is_none(), "{query:?} found a wrong row: {wrong:?}");
    ensure!(count <= limit, "{query:?} found {count} rows");
    ensure!(page.more || count == there.len(), "{query:?} left out rows and does not say so");
    ensure!(there.is_empty() || count > 0, "{query:?} found nothing of {} rows", there.len());
    // About: within twice. What a row takes in memory is about what it takes anywhere.
    let texts =
        |row: &StoredRow| row.row.values.iter().map(|value| if let Value::Text(text) = value { text.len() } else { 0 }).sum::<usize>();
    let before_last: usize = page.rows.iter().rev().skip(1).map(texts).sum();
    ensure!(before_last <= bytes_max.saturating_mul(2), "{query:?} found {before_last} bytes before the last row");
    let bytes: usize = page.rows.iter().map(|row| row.row.size_bytes()).sum();
    ensure!(!page.more || count == limit || bytes.saturating_mul(2) >= bytes_max, "{query:?} ended after {count} rows for no reason");
    Ok(())
}

/// Adds a piece of a snapshot to what came before it, and judges its order.
pub(super) fn add_chunk(view: &mut View, chunk: &SnapshotChunk, cursor: Option<&SnapshotCursor>) -> Result<(), String> {
    ensure!(cursor.is_none() || chunk.sessions.is_empty(), "sessions in a piece that is not the first");
    ensure!(view.rows.is_empty() || chunk.idempotency.is_empty(), "idempotency keys after rows");
    let same = cursor.is_none() || view.state.session_floor == chunk.session_floor;
    ensure!(same, "the session floor differs between pieces");
    view.state.session_floor = chunk.session_floor;
    view.state.sessions.extend(chunk.sessions.iter().cloned());
    for (key, state) in &chunk.idempotency {
        ensure!(view.state.idempotency.insert(key.clone(), state.clone()).is_none(), "idempotency key '{key}' came twice");
    }
    for row in &chunk.rows {
        let key = row.row.key;
        ensure!(view.rows.last_key_value().is_none_or(|(last, _)| *last < key), "row {key} came twice or out of order");
        view.rows.insert(key, row.clone());
    }
    Ok(())
}
