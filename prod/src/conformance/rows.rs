//! What every row store must do. [`check`] runs all of it: the scripted claims first, then random work with crashes against a model.

#[cfg(test)]
mod planted;
mod random;
mod samples;
#[cfg(test)]
mod tests;

pub use random::random_work;
pub use samples::schema;

use super::{Random, ensure};
use crate::{
    log::file::Identity,
    rows::{RecoverRows, RowStore, StoreError},
};
use samples::{position, row};
use std::collections::BTreeMap;
use twinshard_core::{
    id::{ClusterId, OwnerNumber, Position, ReplicaId, ServerId, SessionId, SnapshotId, StageId},
    storage::{FlushBatch, LostReason, RowQuery, SnapshotChunk, StoreAnswer, StoreCommand, ViewState},
    value::{Key, KeyRange, StoredRow},
};

/// A place where a store of one kind is kept, and what can befall it. Rows fit [`schema`].
pub trait Venue {
    /// The store.
    type Store: RecoverRows;

    /// Opens the store, or makes an empty one.
    ///
    /// # Errors
    /// What the store says.
    fn open(&mut self, identity: Identity, owner: OwnerNumber) -> Result<Self::Store, StoreError>;

    /// Whether the place lets a second store open while an older one still lives. If not, opening it is an error.
    fn is_shared(&self) -> bool;

    /// The process that had the store open dies; its handles are dropped already. If the place can lose what was not made durable, it does.
    fn crash(&mut self, random: &mut Random);

    /// The store's process dies in the middle of what it does after about so many steps of its own: from then on everything is an error
    /// until [`Self::crash`]. `false` if that cannot be played here.
    fn fail_after(&mut self, operation_count: u64) -> bool {
        let _ = operation_count;
        false
    }

    /// From now on there is room for so many more bytes; `None` is without bound. `false` if that cannot be played here.
    fn set_room(&mut self, bytes: Option<u64>) -> bool {
        let _ = bytes;
        false
    }

    /// Everything is gone. The store is not open.
    fn lose(&mut self);

    /// Keeps a copy of what the store has of a replica, for [`Self::go_back`]. `false` if that cannot be played here.
    fn copy(&mut self, replica: ReplicaId) -> bool {
        let _ = replica;
        false
    }

    /// What the store has of the replica is again what was copied, under the store that is open.
    fn go_back(&mut self, replica: ReplicaId) {
        let _ = replica;
    }

    /// Damages what the store keeps of a replica, so that the rest stays whole. The store is not open. `false` if that cannot be played here.
    fn damage(&mut self, replica: ReplicaId, part: Part) -> bool {
        let _ = (replica, part);
        false
    }
}

/// What of a replica is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The value of the row with this key.
    Row(Key),
    /// The values of these two rows change places, each as it was written.
    Swapped(Key, Key),
    /// The state of the session.
    Session(SessionId),
    /// The state of the idempotency key.
    Idempotency(&'static str),
    /// The applied position.
    Applied,
}

/// Whose store the suite opens.
pub const IDENTITY: Identity = Identity { cluster: ClusterId(7), server: ServerId(3) };
const FIRST: ReplicaId = ReplicaId(1);
const SECOND: ReplicaId = ReplicaId(2);
const EVERYTHING: RowQuery = RowQuery::Range { range: KeyRange::ALL, limit: u32::MAX, bytes_max: u32::MAX };

/// What a replica's view amounts to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct View {
    rows: BTreeMap<Key, StoredRow>,
    state: ViewState,
}

/// The whole suite. `fresh` makes an empty place.
///
/// # Errors
/// The claim that does not hold, in words.
pub fn check<V: Venue>(mut fresh: impl FnMut() -> V) -> Result<(), String> {
    every_value_comes_back(&mut fresh())?;
    pages_are_bounded_and_complete(&mut fresh())?;
    a_batch_at_or_below_the_applied_position_changes_nothing(&mut fresh())?;
    a_snapshot_stays_as_it_was(&mut fresh())?;
    half_a_stage_is_nothing(&mut fresh())?;
    a_stage_becomes_the_view_once(&mut fresh())?;
    what_is_destroyed_or_missing_is_lost(&mut fresh())?;
    a_store_of_another_is_refused(&mut fresh())?;
    who_opens_last_owns_the_store(&mut fresh())?;
    damage_is_told_and_never_served(&mut fresh)?;
    a_view_that_went_back_is_lost(&mut fresh())?;
    for seed in 0..8 {
        random_work(&mut fresh(), seed, 120).map_err(|words| format!("seed {seed}: {words}"))?;
    }
    Ok(())
}

fn words(error: StoreError) -> String {
    error.to_string()
}

fn reopened<V: Venue>(venue: &mut V, store: V::Store, owner: u64) -> Result<V::Store, String> {
    drop(store);
    venue.crash(&mut Random::new(owner));
    venue.open(IDENTITY, OwnerNumber(owner)).map_err(words)
}

fn execute(store: &mut impl RowStore, replica: ReplicaId, command: StoreCommand) -> Result<StoreAnswer, String> {
    store.execute(replica, command).map_err(words)
}

fn done(store: &mut impl RowStore, replica: ReplicaId, command: StoreCommand) -> Result<(), String> {
    let answer = execute(store, replica, command)?;
    ensure!(answer == StoreAnswer::Done, "{answer:?} in the place of Done");
    Ok(())
}

fn batch(applied: Position, rows: impl IntoIterator<Item = StoredRow>) -> FlushBatch {
    FlushBatch {
        rows: rows.into_iter().map(|row| (row.row.key, Some(row))).collect(),
        sessions: BTreeMap::new(),
        idempotency: BTreeMap::new(),
        session_floor: SessionId(0),
        applied,
    }
}

fn flush(store: &mut impl RowStore, replica: ReplicaId, batch: FlushBatch) -> Result<Position, String> {
    match execute(store, replica, StoreCommand::Flush(Box::new(batch)))? {
        StoreAnswer::Flushed { durable } => Ok(durable),
        other => Err(format!("{other:?} in the place of Flushed")),
    }
}

/// A view with these keys at the position, in a new replica.
fn create(store: &mut impl RowStore, replica: ReplicaId, keys: &[i64], applied: Position) -> Result<(), String> {
    done(store, replica, StoreCommand::Create)?;
    flush(store, replica, batch(applied, keys.iter().map(|key| row(*key, applied)))).map(|_| ())
}

fn rows(store: &mut impl RowStore, replica: ReplicaId, query: RowQuery) -> Result<Vec<StoredRow>, String> {
    match execute(store, replica, StoreCommand::Read(query))? {
        StoreAnswer::Rows(page) => Ok(page.rows),
        other => Err(format!("{other:?} in the place of rows")),
    }
}

fn keys(store: &mut impl RowStore, replica: ReplicaId) -> Result<Vec<i64>, String> {
    Ok(rows(store, replica, EVERYTHING)?.iter().map(|row| row.row.key.0).collect())
}

fn state(store: &mut impl RecoverRows, replica: ReplicaId) -> Result<ViewState, String> {
    store.view(replica).map_err(words)?.map_err(|reason| format!("{replica} is lost: {reason:?}"))
}

/// All that the store has of a replica, by small pages.
fn view(store: &mut impl RecoverRows, replica: ReplicaId) -> Result<View, String> {
    let mut view = View { rows: BTreeMap::new(), state: state(store, replica)? };
    let mut low = Key(i64::MIN);
    loop {
        let range = KeyRange { low, high: Key(i64::MAX) };
        let query = RowQuery::Range { range, limit: 7, bytes_max: u32::MAX };
        let StoreAnswer::Rows(page) = execute(store, replica, StoreCommand::Read(query))? else {
            return Err(format!("{replica} does not read"));
        };
        let last = page.rows.last().map(|row| row.row.key);
        for row in page.rows {
            let key = row.row.key;
            ensure!(key >= low, "{key} came again or out of order");
            ensure!(view.rows.insert(key, row).is_none(), "{key} came twice");
        }
        match (page.more, last) {
            (true, Some(Key(last))) if last < i64::MAX => low = Key(last + 1),
            (true, None) => return Err("an empty page says that there is more".to_owned()),
            _ => return Ok(view),
        }
    }
}

fn every_value_comes_back<V: Venue>(venue: &mut V) -> Result<(), String> {
    let mut store = venue.open(IDENTITY, OwnerNumber(1)).map_err(words)?;
    let at = position(1, 1);
    let all = samples::every_value(at);
    done(&mut store, FIRST, StoreCommand::Create)?;
    done(&mut store, SECOND, StoreCommand::Create)?;
    let mut first = batch(at, all.clone());
    first.sessions = samples::sessions(at).into_iter().map(|(id, session)| (id, Some(session))).collect();
    first.idempotency = samples::idempotency(at).into_iter().map(|(key, state)| (key, Some(state))).collect();
    first.session_floor = SessionId(u64::MAX - 9);
    flush(&mut store, FIRST, first.clone())?;
    for round in 2..4 {
        let found = view(&mut store, FIRST)?;
        let rows = all.iter().map(|row| (row.row.key, row.clone())).collect();
        let sessions = samples::sessions(at);
        let expected = ViewState { sessions, idempotency: samples::idempotency(at), session_floor: first.session_floor, applied: at };
        for (row, expected) in found.rows.values().zip(&all) {
            ensure!(row == expected, "{expected:?} came back as {row:?}");
        }
        ensure!(found.state == expected, "{expected:?} came back as {:?}", found.state);
        ensure!(found == View { rows, state: expected }, "rows are missing");
        ensure!(view(&mut store, SECOND)? == View::default(), "one replica's view shows in another");
        for row in &all {
            let one = rows_of(&mut store, row.row.key)?;
            ensure!(one == [row.clone()], "{} is read as {one:?}", row.row.key);
        }
        store = reopened(venue, store, round)?;
    }
    let mut nothing = batch(position(1, 2), []);
    nothing.rows = all.iter().map(|row| (row.row.key, None)).collect();
    nothing.sessions = first.sessions.keys().map(|id| (*id, None)).collect();
    nothing.idempotency = first.idempotency.keys().map(|key| (key.clone(), None)).collect();
    flush(&mut store, FIRST, nothing)?;
    let found = view(&mut store, FIRST)?;
    let state = ViewState { applied: position(1, 2), ..ViewState::default() };
    ensure!(found == View { rows: BTreeMap::new(), state }, "what was removed is still there: {found:?}");
    Ok(())
}

/// A batch on an older copy of the view would leave a hole that verifies.
fn a_view_that_went_back_is_lost<V: Venue>(venue: &mut V) -> Result<(), String> {
    let mut store = venue.open(IDENTITY, OwnerNumber(1)).map_err(words)?;
    create(&mut store, FIRST, &[1], position(1, 1))?;
    create(&mut store, SECOND, &[1], position(1, 1))?;
    if !venue.copy(FIRST) {
        return Ok(());
    }
    flush(&mut store, FIRST, batch(position(1, 2), [row(2, position(1, 2))]))?;
    venue.go_back(FIRST);
    for index in [2, 3, 4] {
        let at = position(1, index);
        let answer = execute(&mut store, FIRST, StoreCommand::Flush(Box::new(batch(at, [row(3, at)]))))?;
        ensure!(answer == StoreAnswer::Lost(LostReason::RowsBehind), "{answer:?} of a view without what was flushed to it");
    }
    flush(&mut store, SECOND, batch(position(1, 2), [row(2, position(1, 2))]))?;
    // It begins anew as any other that is lost.
    done(&mut store, FIRST, StoreCommand::Destroy)?;
    create(&mut store, FIRST, &[7], position(1, 1))?;
    ensure!(keys(&mut store, FIRST)? == [7], "made anew it has other rows");
    Ok(())
}

fn rows_of(store: &mut impl RowStore, key: Key) -> Result<Vec<StoredRow>, String> {
    rows(store, FIRST, RowQuery::Range { range: KeyRange::one(key), limit: 2, bytes_max: u32::MAX })
}

fn pages_are_bounded_and_complete<V: Venue>(venue: &mut V) -> Result<(), String> {
    let mut store = venue.open(IDENTITY, OwnerNumber(1)).map_err(words)?;
    let all = [i64::MIN, -9, -1, 0, 1, 7, 8, i64::MAX];
    create(&mut store, FIRST, &all, position(1, 1))?;
    create(&mut store, SECOND, &[2, 3], position(1, 1))?;
    for low in [i64::MIN, i64::MIN + 1, -9, 0, 2, 8, 9, i64::MAX] {
        for high in [i64::MIN, -10, -1, 0, 7, i64::MAX - 1, i64::MAX] {
            for limit in [1, 3, 8, u32::MAX] {
                let range = KeyRange { low: Key(low), high: Key(high) };
                let query = RowQuery::Range { range, limit, bytes_max: u32::MAX };
                samples::check_page(&mut store, FIRST, &all.map(|key| row(key, position(1, 1))), &query)?;
            }
        }
    }
    let wide: Vec<StoredRow> = (10..30).map(|key| samples::wide_row(key, 3_000, position(1, 2))).collect();
    flush(&mut store, SECOND, batch(position(1, 2), wide.clone()))?;
    for bytes_max in [0, 1, 2_000, 10_000, 50_000, u32::MAX] {
        let range = KeyRange { low: Key(10), high: Key(29) };
        samples::check_page(&mut store, SECOND, &wide, &RowQuery::Range { range, limit: u32::MAX, bytes_max })?;
    }
    let some = RowQuery::Keys(vec![Key(i64::MIN), Key(-2), Key(7), Key(i64::MAX)]);
    let found: Vec<i64> = rows(&mut store, FIRST, some)?.iter().map(|row| row.row.key.0).collect();
    ensure!(found == [i64::MIN, 7, i64::MAX], "asked by key, {found:?} came");
    ensure!(rows(&mut store, FIRST, RowQuery::Keys(Vec::new()))?.is_empty(), "asked for no key, rows came");
    Ok(())
}

fn a_batch_at_or_below_the_applied_position_changes_nothing<V: Venue>(venue: &mut V) -> Result<(), String> {
    let mut store = venue.open(IDENTITY, OwnerNumber(1)).map_err(words)?;
    create(&mut store, FIRST, &[1, 2], position(2, 5))?;
    let before = view(&mut store, FIRST)?;
    // Positions are ordered by epoch first.
    for applied in [position(2, 5), position(2, 4), position(1, 9)] {
        let mut old = batch(applied, [row(1, applied), row(3, applied)]);
        old.rows.insert(Key(2), None);
        old.session_floor = SessionId(8);
        old.sessions = samples::sessions(applied).into_iter().map(|(id, session)| (id, Some(session))).collect();
        let durable = flush(&mut store, FIRST, old)?;
        ensure!(durable <= position(2, 5), "durable up to {durable}, which was never written");
        ensure!(view(&mut store, FIRST)? == before, "a batch of {applied} changed a view of {}", position(2, 5));
    }
    flush(&mut store, FIRST, batch(position(3, 2), [row(3, position(3, 2))]))?;
    ensure!(keys(&mut store, FIRST)? == [1, 2, 3], "a batch of a higher epoch was not applied");
    Ok(())
}

fn read_snapshot(store: &mut impl RowStore, snapshot: SnapshotId, bytes_max: u32) -> Result<(View, usize), String> {
    let mut view = View::default();
    let mut cursor = None;
    for count in 1..10_000 {
        let chunk = match execute(store, FIRST, StoreCommand::ReadSnapshot { snapshot, cursor: cursor.clone(), bytes_max })? {
            StoreAnswer::Chunk(chunk) => chunk,
            other => return Err(format!("{other:?} in the place of a piece of a snapshot")),
        };
        samples::add_chunk(&mut view, &chunk, cursor.as_ref())?;
        cursor = chunk.next;
        if cursor.is_none() {
            return Ok((view, count));
        }
    }
    Err("a snapshot does not end".to_owned())
}

/// All rows of a snapshot, by pages of so many.
fn read_pinned(store: &mut impl RowStore, snapshot: SnapshotId, limit: u32) -> Result<Vec<StoredRow>, String> {
    let mut range = KeyRange { low: Key(i64::MIN), high: Key(i64::MAX) };
    let mut rows: Vec<StoredRow> = Vec::new();
    for _ in 0..10_000 {
        let query = RowQuery::Range { range, limit, bytes_max: u32::MAX };
        let page = match execute(store, FIRST, StoreCommand::ReadPinned { snapshot, query })? {
            StoreAnswer::Rows(page) => page,
            other => return Err(format!("{other:?} in the place of rows of a snapshot")),
        };
        ensure!(page.rows.len() <= limit as usize, "{} rows in a page of {limit}", page.rows.len());
        let last = page.rows.last().map(|row| row.row.key);
        rows.extend(page.rows);
        match last {
            Some(Key(last)) if page.more && last < i64::MAX => range.low = Key(last + 1),
            _ => return Ok(rows),
        }
    }
    Err("the pages of a snapshot do not end".to_owned())
}

fn a_snapshot_stays_as_it_was<V: Venue>(venue: &mut V) -> Result<(), String> {
    let mut store = venue.open(IDENTITY, OwnerNumber(1)).map_err(words)?;
    done(&mut store, FIRST, StoreCommand::Create)?;
    let at = position(1, 1);
    let mut first = batch(at, samples::every_value(at));
    first.sessions = samples::sessions(at).into_iter().map(|(id, session)| (id, Some(session))).collect();
    first.idempotency = samples::idempotency(at).into_iter().map(|(key, state)| (key, Some(state))).collect();
    first.session_floor = SessionId(2);
    flush(&mut store, FIRST, first)?;
    let before = view(&mut store, FIRST)?;
    let opened = execute(&mut store, FIRST, StoreCommand::OpenSnapshot(SnapshotId(1)))?;
    ensure!(opened == StoreAnswer::SnapshotOpened { position: at }, "{opened:?} of a view at {at}");
    let mut change = batch(position(1, 2), [row(5, position(1, 2)), row(i64::MAX, position(1, 2))]);
    change.rows.insert(Key(i64::MIN), None);
    change.sessions.insert(SessionId(1), None);
    change.session_floor = SessionId(4);
    flush(&mut store, FIRST, change)?;
    for bytes_max in [1, 300, 20_000, u32::MAX] {
        let (mut found, pieces) = read_snapshot(&mut store, SnapshotId(1), bytes_max)?;
        found.state.applied = at;
        ensure!(found == before, "a snapshot in pieces of {bytes_max} bytes is not what was there when it was opened");
        ensure!(bytes_max > 1 || pieces >= before.rows.len(), "{pieces} pieces of one byte");
    }
    for limit in [1, 2, u32::MAX] {
        let found = read_pinned(&mut store, SnapshotId(1), limit)?;
        ensure!(found.iter().eq(before.rows.values()), "pages of {limit} rows of a snapshot are not what was there when it was opened");
    }
    let keys: Vec<Key> = before.rows.keys().copied().collect();
    let query = RowQuery::Keys(keys);
    match execute(&mut store, FIRST, StoreCommand::ReadPinned { snapshot: SnapshotId(1), query: query.clone() })? {
        StoreAnswer::Rows(page) => ensure!(page.rows.iter().eq(before.rows.values()), "the rows of a snapshot by their keys are others"),
        other => return Err(format!("{other:?} in the place of rows of a snapshot")),
    }
    let wrong = execute(&mut store, FIRST, StoreCommand::ReadPinned { snapshot: SnapshotId(2), query })?;
    ensure!(wrong == StoreAnswer::Unavailable, "{wrong:?} of rows of a snapshot that is not open");
    let wrong = execute(&mut store, FIRST, StoreCommand::ReadSnapshot { snapshot: SnapshotId(2), cursor: None, bytes_max: 9 })?;
    ensure!(wrong == StoreAnswer::Unavailable, "{wrong:?} of a snapshot that is not open");
    done(&mut store, FIRST, StoreCommand::CloseSnapshot(SnapshotId(1)))?;
    done(&mut store, FIRST, StoreCommand::CloseSnapshot(SnapshotId(1)))?;
    let closed = execute(&mut store, FIRST, StoreCommand::ReadSnapshot { snapshot: SnapshotId(1), cursor: None, bytes_max: 9 })?;
    ensure!(closed == StoreAnswer::Unavailable, "{closed:?} of a snapshot that is closed");
    execute(&mut store, FIRST, StoreCommand::OpenSnapshot(SnapshotId(3)))?;
    done(&mut store, FIRST, StoreCommand::Destroy)?;
    let gone = execute(&mut store, FIRST, StoreCommand::ReadSnapshot { snapshot: SnapshotId(3), cursor: None, bytes_max: 9 })?;
    ensure!(matches!(gone, StoreAnswer::Unavailable | StoreAnswer::Lost(_)), "{gone:?} of a snapshot of a replica that was destroyed");
    Ok(())
}

fn piece(keys: &[i64], at: Position) -> Box<SnapshotChunk> {
    Box::new(SnapshotChunk {
        rows: keys.iter().map(|key| row(*key, at)).collect(),
        session_floor: SessionId(6),
        ..SnapshotChunk::default()
    })
}

fn half_a_stage_is_nothing<V: Venue>(venue: &mut V) -> Result<(), String> {
    let mut store = venue.open(IDENTITY, OwnerNumber(1)).map_err(words)?;
    create(&mut store, FIRST, &[1, 2], position(1, 3))?;
    let at = position(2, 9);
    let begin = |stage, last| StoreCommand::Stage { stage: StageId(stage), position: at, chunk: piece(&[4, 5], at), last };
    done(&mut store, FIRST, begin(1, false))?;
    for round in 2..4 {
        ensure!(keys(&mut store, FIRST)? == [1, 2], "a stage shows before it is swapped in");
        let reset = store.complete_reset(FIRST, StageId(1), at).map_err(words)?;
        ensure!(reset.is_err(), "half a stage was swapped in");
        let swapped = execute(&mut store, FIRST, StoreCommand::SwapStage { stage: StageId(1), position: at })?;
        ensure!(matches!(swapped, StoreAnswer::Lost(_)), "{swapped:?} of half a stage");
        store = reopened(venue, store, round)?;
    }
    // Beginning another drops the one before, whole or not.
    done(&mut store, FIRST, begin(2, true))?;
    done(&mut store, FIRST, begin(3, false))?;
    let swapped = execute(&mut store, FIRST, StoreCommand::SwapStage { stage: StageId(2), position: at })?;
    ensure!(matches!(swapped, StoreAnswer::Lost(_)), "{swapped:?} of a stage that another followed");
    ensure!(keys(&mut store, FIRST)? == [1, 2], "the view is not what it was");
    Ok(())
}

fn a_stage_becomes_the_view_once<V: Venue>(venue: &mut V) -> Result<(), String> {
    let mut store = venue.open(IDENTITY, OwnerNumber(1)).map_err(words)?;
    create(&mut store, FIRST, &[1, 2], position(1, 3))?;
    create(&mut store, SECOND, &[1], position(1, 1))?;
    let at = position(2, 9);
    let stage = StageId(5);
    let add = |keys: &[i64], last| StoreCommand::Stage { stage, position: at, chunk: piece(keys, at), last };
    // What an older stage held must not shine through.
    done(&mut store, FIRST, StoreCommand::Stage { stage: StageId(4), position: at, chunk: piece(&[77], at), last: false })?;
    done(&mut store, FIRST, add(&[i64::MIN, -3], false))?;
    done(&mut store, FIRST, add(&[2, 8], false))?;
    done(&mut store, FIRST, add(&[i64::MAX], true))?;
    // A crash between the stage and the swap: the reset record is durable by then, and opening completes it.
    store = reopened(venue, store, 2)?;
    store.complete_reset(FIRST, stage, at).map_err(words)?.map_err(|reason| format!("a whole stage is lost: {reason:?}"))?;
    ensure!(keys(&mut store, FIRST)? == [i64::MIN, -3, 2, 8, i64::MAX], "the view is not what was staged");
    let found = state(&mut store, FIRST)?;
    ensure!(found.applied == at && found.session_floor == SessionId(6), "{found:?} after a snapshot of {at}");
    flush(&mut store, FIRST, batch(position(2, 10), [row(9, position(2, 10))]))?;
    for round in 3..5 {
        store.complete_reset(FIRST, stage, at).map_err(words)?.map_err(|reason| format!("done again, it is lost: {reason:?}"))?;
        let swapped = execute(&mut store, FIRST, StoreCommand::SwapStage { stage, position: at })?;
        let StoreAnswer::Swapped(swapped) = swapped else { return Err(format!("{swapped:?} of a swap that was done before")) };
        ensure!(swapped.applied == position(2, 10), "a swap that was done before took the view back to {}", swapped.applied);
        ensure!(keys(&mut store, FIRST)?.contains(&9), "a swap that was done before undid what came after it");
        ensure!(keys(&mut store, SECOND)? == [1], "one replica's snapshot changed another");
        store = reopened(venue, store, round)?;
    }
    Ok(())
}

fn what_is_destroyed_or_missing_is_lost<V: Venue>(venue: &mut V) -> Result<(), String> {
    let is_missing = |store: &mut V::Store, replica| -> Result<(), String> {
        let missing = StoreAnswer::Lost(LostReason::RowsMissing);
        ensure!(store.view(replica).map_err(words)? == Err(LostReason::RowsMissing), "{replica} has a view");
        for command in [
            StoreCommand::Read(EVERYTHING),
            StoreCommand::Flush(Box::new(batch(position(9, 9), [row(1, position(9, 9))]))),
            StoreCommand::OpenSnapshot(SnapshotId(1)),
        ] {
            let name = format!("{command:?}");
            let answer = execute(store, replica, command)?;
            ensure!(answer == missing, "{answer:?} of a replica that is not there, to {name}");
        }
        Ok(())
    };
    let mut store = venue.open(IDENTITY, OwnerNumber(1)).map_err(words)?;
    create(&mut store, FIRST, &[1], position(1, 1))?;
    create(&mut store, SECOND, &[2], position(1, 1))?;
    is_missing(&mut store, ReplicaId(3))?;
    let staged = StoreCommand::Stage { stage: StageId(1), position: position(2, 2), chunk: piece(&[9], position(2, 2)), last: true };
    done(&mut store, FIRST, staged)?;
    done(&mut store, FIRST, StoreCommand::Destroy)?;
    done(&mut store, FIRST, StoreCommand::Destroy)?;
    for round in 2..4 {
        is_missing(&mut store, FIRST)?;
        let reset = store.complete_reset(FIRST, StageId(1), position(2, 2)).map_err(words)?;
        ensure!(reset.is_err(), "the stage of a replica that was destroyed is still there");
        ensure!(store.replicas().map_err(words)? == [SECOND], "the store lists {:?}", store.replicas());
        ensure!(keys(&mut store, SECOND)? == [2], "destroying one replica changed another");
        store = reopened(venue, store, round)?;
    }
    drop(store);
    venue.lose();
    let mut store = venue.open(IDENTITY, OwnerNumber(9)).map_err(words)?;
    is_missing(&mut store, SECOND)?;
    ensure!(store.replicas().map_err(words)?.is_empty(), "a store that was lost has replicas");
    Ok(())
}

fn a_store_of_another_is_refused<V: Venue>(venue: &mut V) -> Result<(), String> {
    let mut store = venue.open(IDENTITY, OwnerNumber(1)).map_err(words)?;
    create(&mut store, FIRST, &[1], position(1, 1))?;
    drop(store);
    for other in [Identity { cluster: ClusterId(8), ..IDENTITY }, Identity { server: ServerId(4), ..IDENTITY }] {
        match venue.open(other, OwnerNumber(2)) {
            Err(StoreError::Failed(reason)) => ensure!(reason.contains("belongs to"), "'{reason}' does not say whose store it is"),
            Err(StoreError::TakenOver) => return Err("a foreign store is no takeover".to_owned()),
            // A place that keeps each server's store apart has none to refuse.
            Ok(mut store) => ensure!(store.replicas().map_err(words)?.is_empty(), "another's store was opened"),
        }
    }
    let mut store = venue.open(IDENTITY, OwnerNumber(3)).map_err(words)?;
    ensure!(keys(&mut store, FIRST)? == [1], "a refused opening changed the store");
    Ok(())
}

fn who_opens_last_owns_the_store<V: Venue>(venue: &mut V) -> Result<(), String> {
    let mut old = venue.open(IDENTITY, OwnerNumber(5)).map_err(words)?;
    create(&mut old, FIRST, &[1], position(1, 1))?;
    let staged = StoreCommand::Stage { stage: StageId(1), position: position(2, 2), chunk: piece(&[9], position(2, 2)), last: true };
    done(&mut old, FIRST, staged.clone())?;
    if !venue.is_shared() {
        ensure!(venue.open(IDENTITY, OwnerNumber(6)).is_err(), "two have the store open at once");
        return Ok(());
    }
    let mut new = venue.open(IDENTITY, OwnerNumber(6)).map_err(words)?;
    for command in [
        StoreCommand::Create,
        StoreCommand::Destroy,
        StoreCommand::Flush(Box::new(batch(position(3, 3), [row(2, position(3, 3))]))),
        staged,
        StoreCommand::SwapStage { stage: StageId(1), position: position(2, 2) },
    ] {
        let name = format!("{command:?}");
        let answer = old.execute(FIRST, command);
        ensure!(matches!(answer, Err(StoreError::TakenOver)), "{answer:?} of a store that another has opened since, to {name}");
    }
    let reset = old.complete_reset(FIRST, StageId(1), position(2, 2));
    ensure!(matches!(reset, Err(StoreError::TakenOver)), "{reset:?} of a store that another has opened since");
    drop(old);
    ensure!(keys(&mut new, FIRST)? == [1], "a store that was taken over was changed");
    flush(&mut new, FIRST, batch(position(1, 2), [row(2, position(1, 2))]))?;
    ensure!(keys(&mut new, FIRST)? == [1, 2], "the new owner cannot write");
    Ok(())
}

fn damage_is_told_and_never_served<V: Venue>(fresh: &mut impl FnMut() -> V) -> Result<(), String> {
    let at = position(1, 1);
    let key = samples::IDEMPOTENCY_KEYS[0];
    for part in [
        Part::Row(Key(2)),
        Part::Row(Key(i64::MAX)),
        Part::Swapped(Key(1), Key(2)),
        Part::Session(SessionId(1)),
        Part::Idempotency(key),
        Part::Applied,
    ] {
        let mut venue = fresh();
        let mut store = venue.open(IDENTITY, OwnerNumber(1)).map_err(words)?;
        for replica in [FIRST, SECOND] {
            done(&mut store, replica, StoreCommand::Create)?;
            let mut whole = batch(at, [1, 2, 3, i64::MAX].map(|key| row(key, at)));
            whole.sessions = samples::sessions(at).into_iter().map(|(id, session)| (id, Some(session))).collect();
            whole.idempotency = samples::idempotency(at).into_iter().map(|(key, state)| (key, Some(state))).collect();
            flush(&mut store, replica, whole)?;
        }
        let intact = view(&mut store, SECOND)?;
        drop(store);
        if !venue.damage(FIRST, part) {
            return Ok(());
        }
        let mut store = venue.open(IDENTITY, OwnerNumber(2)).map_err(words)?;
        let lost = StoreAnswer::Lost(LostReason::RowsDamaged);
        match part {
            Part::Row(key) | Part::Swapped(_, key) => {
                for query in [EVERYTHING, RowQuery::Keys(vec![key])] {
                    let answer = execute(&mut store, FIRST, StoreCommand::Read(query))?;
                    ensure!(answer == lost, "{part:?} is damaged and read as {answer:?}");
                }
                execute(&mut store, FIRST, StoreCommand::OpenSnapshot(SnapshotId(1)))?;
                let copied = read_snapshot(&mut store, SnapshotId(1), u32::MAX);
                ensure!(copied.as_ref().is_err_and(|words| words.contains("RowsDamaged")), "{part:?} is damaged and copied: {copied:?}");
            }
            Part::Session(_) | Part::Idempotency(_) | Part::Applied => {
                let found = store.view(FIRST).map_err(words)?;
                ensure!(found == Err(LostReason::RowsDamaged), "{part:?} is damaged and opened as {found:?}");
            }
        }
        ensure!(view(&mut store, SECOND)? == intact, "damage to one replica shows in another");
        done(&mut store, FIRST, StoreCommand::Destroy)?;
        create(&mut store, ReplicaId(3), &[1], at)?;
    }
    Ok(())
}
