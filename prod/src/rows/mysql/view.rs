//! One view or stage: a database with the tables of a replica. Reads verify what they read; writes are part of the transaction that is open.

use super::layout::{Place, ROWS};
use crate::{
    mysql::{
        connection::{Link, Statement, Trouble, statement},
        quoted,
    },
    rows::sealed::{self, decode, encode, place},
};
use serde::Serialize;
use sqlx::Row as _;
use std::collections::BTreeMap;
use twinshard_core::{
    id::{Epoch, LogIndex, Position, ReplicaId, SessionId},
    schema::Schema,
    storage::{FlushBatch, LostReason, RowPage, RowQuery, SnapshotChunk, SnapshotCursor, ViewState},
    value::{Key, KeyRange, StoredRow},
};

const SESSIONS: &str = "sessions";
const KEYS: &str = "idempotency";
const APPLIED: &str = "applied";
/// How many rows the first statement of a page asks for; each further one four times as many, but about as many as there is room for: what
/// is not taken of them comes all the same.
const PAGE_ROWS_MIN: usize = 8;
/// How many they become. A guess.
const PAGE_ROWS_MAX: usize = 4_096;
/// How many idempotency keys a statement asks for.
const PAGE_KEYS: usize = 32;
/// The most rows of one statement; a power of [`STEP`]. A guess: they take longer than the way to the server and back.
const RUN_MAX: usize = 256;
/// The lengths of statements are powers of this: few different ones, so that they stay prepared. To prepare a statement for one use costs
/// 40 ms, as sqlx leaves Nagle's algorithm on and closing a statement has no answer.
const STEP: usize = 4;

/// How far a view has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Applied {
    pub(super) position: Position,
    pub(super) session_floor: SessionId,
    /// Whether all pieces of a stage are there.
    pub(super) whole: bool,
}

impl Applied {
    pub(super) const EMPTY: Self = Self { position: Position::ZERO, session_floor: SessionId(0), whole: true };

    fn sum(self, replica: ReplicaId) -> u32 {
        sealed::sum(&place(replica, APPLIED.as_bytes()), &(self.position, self.session_floor, self.whole))
    }
}

const DAMAGED: Trouble = Trouble::Lost(LostReason::RowsDamaged);
const MISSING: Trouble = Trouble::Lost(LostReason::RowsMissing);

pub(super) async fn create_tables(link: &mut Link, place: &Place) -> Result<(), Trouble> {
    const OPTIONS: &str = "ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin";
    let (sessions, keys, applied) = (place.table(SESSIONS), place.table(KEYS), place.table(APPLIED));
    link.raw(place.create_rows()).await?;
    link.raw(format!("CREATE TABLE {sessions} (id BIGINT UNSIGNED NOT NULL PRIMARY KEY, state LONGBLOB NOT NULL) {OPTIONS}")).await?;
    // Bytes: no collation tells all keys apart, on both servers.
    link.raw(format!("CREATE TABLE {keys} (id VARBINARY(1024) NOT NULL PRIMARY KEY, state LONGBLOB NOT NULL) {OPTIONS}")).await?;
    link.raw(format!(
        "CREATE TABLE {applied} (one TINYINT NOT NULL PRIMARY KEY, epoch BIGINT UNSIGNED NOT NULL, log_index BIGINT UNSIGNED NOT NULL, \
         session_floor BIGINT UNSIGNED NOT NULL, whole BOOLEAN NOT NULL, layout LONGBLOB NOT NULL, sum INT UNSIGNED NOT NULL) {OPTIONS}"
    ))
    .await?;
    Ok(())
}

/// Writes the first position of a new database.
pub(super) async fn begin(link: &mut Link, at: &Place, replica: ReplicaId, applied: Applied) -> Result<(), Trouble> {
    let insert = format!(
        "INSERT INTO {} (one, epoch, log_index, session_floor, whole, layout, sum) VALUES (1, ?, ?, ?, ?, ?, ?)",
        at.table(APPLIED)
    );
    let layout = encode(&place(replica, b"layout"), at.schema());
    let Position { epoch, index } = applied.position;
    let insert = statement(insert).bind(epoch.0).bind(index.0).bind(applied.session_floor.0).bind(applied.whole);
    link.change(insert.bind(layout).bind(applied.sum(replica))).await?;
    Ok(())
}

/// The database as it was made.
pub(super) async fn open(link: &mut Link, database: &str, replica: ReplicaId) -> Result<Place, Trouble> {
    let applied = format!("{}.{}", quoted(database), quoted(APPLIED));
    let row = link.row(statement(format!("SELECT layout FROM {applied} WHERE one = 1"))).await?.ok_or(MISSING)?;
    let layout: Vec<u8> = row.try_get_unchecked(0)?;
    let schema: Schema = decode(&place(replica, b"layout"), &layout).ok_or(DAMAGED)?;
    Ok(Place::new(database.to_owned(), schema))
}

/// `locked` until the transaction ends.
pub(super) async fn applied(link: &mut Link, at: &Place, replica: ReplicaId, locked: bool) -> Result<Applied, Trouble> {
    let lock = if locked { " FOR UPDATE" } else { "" };
    let select = format!("SELECT epoch, log_index, session_floor, whole, sum FROM {} WHERE one = 1{lock}", at.table(APPLIED));
    let row = link.row(statement(select)).await?.ok_or(MISSING)?;
    let found = Applied {
        position: Position { epoch: Epoch(row.try_get_unchecked(0)?), index: LogIndex(row.try_get_unchecked(1)?) },
        session_floor: SessionId(row.try_get_unchecked(2)?),
        whole: row.try_get_unchecked(3)?,
    };
    let sum: u32 = row.try_get_unchecked(4)?;
    if sum == found.sum(replica) { Ok(found) } else { Err(DAMAGED) }
}

pub(super) async fn set_applied(link: &mut Link, at: &Place, replica: ReplicaId, applied: Applied) -> Result<(), Trouble> {
    let update = format!("UPDATE {} SET epoch = ?, log_index = ?, session_floor = ?, whole = ?, sum = ? WHERE one = 1", at.table(APPLIED));
    let Position { epoch, index } = applied.position;
    let update = statement(update).bind(epoch.0).bind(index.0).bind(applied.session_floor.0).bind(applied.whole);
    link.change(update.bind(applied.sum(replica))).await?;
    Ok(())
}

/// Runs of items of which one statement takes as many as the counts and bytes allow, at least one. Few different lengths.
fn runs<T>(items: &[T], count_max: usize, bytes_max: usize, bytes: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let mut runs = Vec::new();
    let mut rest = items;
    while !rest.is_empty() {
        let (mut fits, mut sum) = (0, 0);
        for item in rest.iter().take(count_max.min(RUN_MAX)) {
            sum += bytes(item);
            if sum > bytes_max {
                break;
            }
            fits += 1;
        }
        let mut length = RUN_MAX;
        while length > fits.max(1) {
            length /= STEP;
        }
        let (run, after) = rest.split_at(length);
        runs.push(run);
        rest = after;
    }
    runs
}

/// The places of a list of ids, in groups of few different lengths: what is left over repeats the last.
fn groups<T: Copy>(ids: &[T]) -> Vec<Vec<T>> {
    let group = |ids: &[T]| {
        let mut length = 1;
        while length < ids.len() {
            length *= STEP;
        }
        let mut group = ids.to_vec();
        if let Some(last) = ids.last() {
            group.resize(length, *last);
        }
        group
    };
    ids.chunks(RUN_MAX).map(group).collect()
}

pub(super) async fn put_rows(link: &mut Link, at: &Place, replica: ReplicaId, rows: &[&StoredRow]) -> Result<(), Trouble> {
    for run in runs(rows, at.rows_max(), link.statement_bytes_max, |row| at.row_bytes(row)) {
        let mut upsert = statement(at.upsert(run.len()));
        for row in run {
            upsert = at.bind(upsert, replica, row);
        }
        link.change(upsert).await?;
    }
    Ok(())
}

/// Writes states by their ids; the bytes of an id are also its place.
async fn put<I, T>(link: &mut Link, table: String, replica: ReplicaId, states: &[(I, &T)]) -> Result<(), Trouble>
where
    I: Id,
    T: Serialize,
{
    let states: Vec<(&I, Vec<u8>)> = states.iter().map(|(id, state)| (id, encode(&id.place(replica), state))).collect();
    for run in runs(&states, RUN_MAX, link.statement_bytes_max, |(_, state)| state.len() + 1_100) {
        let values = vec!["(?, ?)"; run.len()].join(", ");
        let upsert = format!("INSERT INTO {table} (id, state) VALUES {values} ON DUPLICATE KEY UPDATE state = VALUES(state)");
        let mut upsert = statement(upsert);
        for (id, state) in run {
            upsert = id.bind(upsert).bind(state.clone());
        }
        link.change(upsert).await?;
    }
    Ok(())
}

async fn remove<I: Id + Copy>(link: &mut Link, table: String, column: &str, ids: &[I]) -> Result<(), Trouble> {
    for group in groups(ids) {
        let list = vec!["?"; group.len()].join(", ");
        let mut delete = statement(format!("DELETE FROM {table} WHERE {column} IN ({list})"));
        for id in group {
            delete = id.bind(delete);
        }
        link.change(delete).await?;
    }
    Ok(())
}

/// What a table is keyed by.
trait Id {
    fn bind(&self, statement: Statement) -> Statement;

    fn place(&self, replica: ReplicaId) -> Vec<u8>;
}

impl Id for SessionId {
    fn bind(&self, statement: Statement) -> Statement {
        statement.bind(self.0)
    }

    fn place(&self, replica: ReplicaId) -> Vec<u8> {
        place(replica, &self.0.to_le_bytes())
    }
}

impl Id for &str {
    fn bind(&self, statement: Statement) -> Statement {
        statement.bind(self.as_bytes().to_vec())
    }

    fn place(&self, replica: ReplicaId) -> Vec<u8> {
        place(replica, self.as_bytes())
    }
}

impl Id for Key {
    fn bind(&self, statement: Statement) -> Statement {
        statement.bind(self.0)
    }

    fn place(&self, replica: ReplicaId) -> Vec<u8> {
        sealed::row_place(replica, *self)
    }
}

/// What is put, and what goes.
fn split<K, V>(changes: &BTreeMap<K, Option<V>>) -> (Vec<(&K, &V)>, Vec<&K>) {
    let put = changes.iter().filter_map(|(key, value)| value.as_ref().map(|value| (key, value))).collect();
    let gone = changes.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| key).collect();
    (put, gone)
}

/// Applies a batch, all but its position.
pub(super) async fn apply(link: &mut Link, at: &Place, replica: ReplicaId, batch: &FlushBatch) -> Result<(), Trouble> {
    let (rows, gone) = split(&batch.rows);
    let rows: Vec<&StoredRow> = rows.into_iter().map(|(_, row)| row).collect();
    put_rows(link, at, replica, &rows).await?;
    let gone: Vec<Key> = gone.into_iter().copied().collect();
    remove(link, at.table(ROWS), &at.key(), &gone).await?;
    let (sessions, gone) = split(&batch.sessions);
    let sessions: Vec<_> = sessions.into_iter().map(|(id, session)| (*id, session)).collect();
    put(link, at.table(SESSIONS), replica, &sessions).await?;
    let gone: Vec<SessionId> = gone.into_iter().copied().collect();
    remove(link, at.table(SESSIONS), "id", &gone).await?;
    let (keys, gone) = split(&batch.idempotency);
    let keys: Vec<_> = keys.into_iter().map(|(key, state)| (&**key, state)).collect();
    put(link, at.table(KEYS), replica, &keys).await?;
    let gone: Vec<&str> = gone.into_iter().map(|key| &**key).collect();
    remove(link, at.table(KEYS), "id", &gone).await
}

/// Adds a piece of a snapshot.
pub(super) async fn add(link: &mut Link, at: &Place, replica: ReplicaId, chunk: &SnapshotChunk) -> Result<(), Trouble> {
    let rows: Vec<&StoredRow> = chunk.rows.iter().collect();
    put_rows(link, at, replica, &rows).await?;
    let sessions: Vec<_> = chunk.sessions.iter().map(|(id, session)| (*id, session)).collect();
    put(link, at.table(SESSIONS), replica, &sessions).await?;
    let keys: Vec<_> = chunk.idempotency.iter().map(|(key, state)| (&**key, state)).collect();
    put(link, at.table(KEYS), replica, &keys).await
}

/// The part of it that the machine keeps in memory. Also finds out whether every table is there.
pub(super) async fn state(link: &mut Link, at: &Place, replica: ReplicaId) -> Result<ViewState, Trouble> {
    let Applied { position, session_floor, .. } = applied(link, at, replica, false).await?;
    let mut state = ViewState { session_floor, applied: position, ..ViewState::default() };
    for row in link.rows(statement(format!("SELECT id, state FROM {}", at.table(SESSIONS)))).await? {
        let id = SessionId(row.try_get_unchecked(0)?);
        let bytes: Vec<u8> = row.try_get_unchecked(1)?;
        state.sessions.insert(id, decode(&id.place(replica), &bytes).ok_or(DAMAGED)?);
    }
    for row in link.rows(statement(format!("SELECT id, state FROM {}", at.table(KEYS)))).await? {
        let (key, known, _) = idempotency(replica, &row)?;
        state.idempotency.insert(key, known);
    }
    link.row(statement(format!("{} LIMIT 0", at.select()))).await?;
    Ok(state)
}

type Remembered = (Box<str>, twinshard_core::storage::IdempotencyState, usize);

fn idempotency(replica: ReplicaId, row: &sqlx::mysql::MySqlRow) -> Result<Remembered, Trouble> {
    let (key, bytes): (Vec<u8>, Vec<u8>) = (row.try_get_unchecked(0)?, row.try_get_unchecked(1)?);
    let key = String::from_utf8(key).map_err(|_| DAMAGED)?;
    let state = decode(&(&*key).place(replica), &bytes).ok_or(DAMAGED)?;
    let size = key.len() + bytes.len();
    Ok((key.into(), state, size))
}

pub(super) async fn read(link: &mut Link, at: &Place, replica: ReplicaId, query: &RowQuery) -> Result<RowPage, Trouble> {
    match query {
        RowQuery::Keys(keys) => {
            let mut page = RowPage::default();
            for group in groups(keys) {
                let list = vec!["?"; group.len()].join(", ");
                let select = format!("{} WHERE {key} IN ({list}) ORDER BY {key}", at.select(), key = at.key());
                let mut select = statement(select);
                for key in group {
                    select = select.bind(key.0);
                }
                for row in link.rows(select).await? {
                    page.rows.push(at.row(replica, &row)?);
                }
            }
            Ok(page)
        }
        RowQuery::Range { range, limit, bytes_max } => page(link, at, replica, *range, *limit as usize, *bytes_max as usize).await,
    }
}

async fn page(
    link: &mut Link,
    at: &Place,
    replica: ReplicaId,
    range: KeyRange,
    limit: usize,
    bytes_max: usize,
) -> Result<RowPage, Trouble> {
    let mut page = RowPage::default();
    let (mut low, mut ask, mut bytes, mut largest) = (range.low, PAGE_ROWS_MIN, 0, 1);
    let select = format!("{} WHERE {key} BETWEEN ? AND ? ORDER BY {key} LIMIT ?", at.select(), key = at.key());
    while low <= range.high {
        // One more than there may be tells whether there are more.
        let count = ask.min(limit.saturating_sub(page.rows.len()).saturating_add(1));
        let asked = statement(select.clone()).bind(low.0).bind(range.high.0).bind(count as u64);
        let found = link.each(asked, |row| {
            page.more = page.rows.len() >= limit || (bytes >= bytes_max && !page.rows.is_empty());
            if !page.more {
                let row = at.row(replica, row)?;
                largest = largest.max(row.row.size_bytes());
                bytes += row.row.size_bytes();
                page.rows.push(row);
            }
            Ok(!page.more)
        });
        let found = found.await?;
        match page.rows.last() {
            Some(last) if !page.more && found == count && last.row.key < range.high => low = Key(last.row.key.0 + 1),
            _ => break,
        }
        ask = (ask * 4).min(PAGE_ROWS_MAX).min(bytes_max.saturating_sub(bytes) / largest + 1);
    }
    Ok(page)
}

/// Sessions and idempotency keys first, then rows.
pub(super) async fn chunk(
    link: &mut Link,
    at: &Place,
    replica: ReplicaId,
    cursor: Option<SnapshotCursor>,
    bytes_max: usize,
) -> Result<SnapshotChunk, Trouble> {
    let Applied { session_floor, .. } = applied(link, at, replica, false).await?;
    let mut chunk = SnapshotChunk { session_floor, ..SnapshotChunk::default() };
    let mut bytes = 0;
    let (after, from) = match cursor {
        None => {
            for row in link.rows(statement(format!("SELECT id, state FROM {} ORDER BY id", at.table(SESSIONS)))).await? {
                let id = SessionId(row.try_get_unchecked(0)?);
                let state: Vec<u8> = row.try_get_unchecked(1)?;
                bytes += state.len();
                chunk.sessions.push((id, decode(&id.place(replica), &state).ok_or(DAMAGED)?));
            }
            (Some(None), Key(i64::MIN))
        }
        Some(SnapshotCursor::AfterIdempotency(key)) => (Some(Some(key)), Key(i64::MIN)),
        Some(SnapshotCursor::FromKey(key)) => (None, key),
    };
    if let Some(mut after) = after {
        loop {
            let keys = at.table(KEYS);
            let found = match &after {
                None => link.rows(statement(format!("SELECT id, state FROM {keys} ORDER BY id LIMIT {PAGE_KEYS}"))).await?,
                Some(after) => {
                    let select = format!("SELECT id, state FROM {keys} WHERE id > ? ORDER BY id LIMIT {PAGE_KEYS}");
                    link.rows((&**after).bind(statement(select))).await?
                }
            };
            for row in &found {
                if bytes >= bytes_max
                    && let Some((last, _)) = chunk.idempotency.last()
                {
                    chunk.next = Some(SnapshotCursor::AfterIdempotency(last.clone()));
                    return Ok(chunk);
                }
                let (key, state, size) = idempotency(replica, row)?;
                bytes += size;
                chunk.idempotency.push((key, state));
            }
            if found.len() < PAGE_KEYS {
                break;
            }
            after = chunk.idempotency.last().map(|(key, _)| key.clone());
        }
    }
    let all = KeyRange { low: from, high: Key(i64::MAX) };
    let page = page(link, at, replica, all, usize::MAX, bytes_max.saturating_sub(bytes)).await?;
    if let (true, Some(last)) = (page.more, page.rows.last()) {
        chunk.next = Some(SnapshotCursor::FromKey(Key(last.row.key.0.saturating_add(1))));
    }
    chunk.rows = page.rows;
    Ok(chunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_have_few_lengths_and_leave_nothing_out() {
        let items: Vec<usize> = (0..1_399).collect();
        for (count_max, bytes_max) in [(usize::MAX, usize::MAX), (350, usize::MAX), (3, usize::MAX), (usize::MAX, 20_000), (usize::MAX, 0)]
        {
            let runs = runs(&items, count_max, bytes_max, |item| *item);
            assert_eq!(runs.concat(), items);
            for run in runs {
                assert!([1, 4, 16, 64, 256].contains(&run.len()) && run.len() <= count_max, "{}", run.len());
                assert!(run.len() == 1 || run.iter().sum::<usize>() <= bytes_max);
            }
        }
        assert!(runs(&[0; 0], 9, 9, |_| 0).is_empty());
    }

    #[test]
    fn groups_have_few_lengths_and_name_each_id() {
        for count in [0, 1, 2, 5, 64, 65, 256, 257, 600] {
            let ids: Vec<usize> = (0..count).collect();
            let mut named = groups(&ids).concat();
            named.dedup();
            assert_eq!(named, ids);
            assert!(groups(&ids).iter().all(|group| [1, 4, 16, 64, 256].contains(&group.len())));
        }
    }
}
