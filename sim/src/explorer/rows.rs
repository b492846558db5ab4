//! The simulated row store of one server: per replica a visible view and a durable one that lags behind it. May lose whole flushes
//! at a crash, never tears one; never serves what is damaged.

use crate::keyed::Draw;
use std::collections::{BTreeMap, VecDeque};
use twinshard_core::{
    id::{Position, ReplicaId, SessionId, SnapshotId, StageId},
    storage::{
        FlushBatch, IdempotencyState, LostReason, RowPage, RowQuery, SessionState, SnapshotChunk, SnapshotCursor, StoreAnswer,
        StoreCommand, ViewState,
    },
    value::{Key, StoredRow},
};

/// A whole view at one position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The rows.
    pub rows: BTreeMap<Key, StoredRow>,
    /// Sessions, idempotency keys, floor and position.
    pub state: ViewState,
}

impl View {
    fn flush(&mut self, batch: &FlushBatch) {
        if batch.applied.index <= self.state.applied.index {
            return;
        }
        put_all(&mut self.rows, &batch.rows);
        put_all(&mut self.state.sessions, &batch.sessions);
        put_all(&mut self.state.idempotency, &batch.idempotency);
        self.state.session_floor = batch.session_floor;
        self.state.applied = batch.applied;
    }
}

fn put_all<K: Ord + Clone, V: Clone>(map: &mut BTreeMap<K, V>, changes: &BTreeMap<K, Option<V>>) {
    for (key, change) in changes {
        match change {
            Some(value) => {
                map.insert(key.clone(), value.clone());
            }
            None => {
                map.remove(key);
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Stage {
    id: StageId,
    view: View,
    complete: bool,
}

/// What the store holds of one replica.
#[derive(Clone, Debug, Default)]
pub struct ReplicaRows {
    /// What reads see.
    pub view: View,
    durable: View,
    /// Flushes that are visible and not durable, in order.
    tail: VecDeque<FlushBatch>,
    snapshots: BTreeMap<SnapshotId, View>,
    stage: Option<Stage>,
    /// The stage that became the view last.
    swapped: Option<StageId>,
    damaged: bool,
}

impl ReplicaRows {
    fn make_durable(&mut self) {
        while let Some(batch) = self.tail.pop_front() {
            self.durable.flush(&batch);
        }
    }

    /// The position that survives a crash.
    #[must_use]
    pub const fn durable_position(&self) -> Position {
        self.durable.state.applied
    }

    /// The stage that is complete, with its view.
    #[must_use]
    pub fn staged(&self) -> Option<(StageId, &View)> {
        self.stage.as_ref().filter(|stage| stage.complete).map(|stage| (stage.id, &stage.view))
    }

    fn swap(&mut self, id: StageId) -> Result<(), LostReason> {
        if self.swapped == Some(id) {
            return Ok(());
        }
        match self.stage.take() {
            Some(stage) if stage.id == id && stage.complete => {
                self.view = stage.view;
                self.durable = self.view.clone();
                self.tail.clear();
                self.swapped = Some(id);
                Ok(())
            }
            other => {
                self.stage = other;
                Err(LostReason::RowsMissing)
            }
        }
    }
}

/// The row store of one server.
#[derive(Clone, Debug, Default)]
pub struct SimRows {
    replicas: BTreeMap<ReplicaId, ReplicaRows>,
}

/// How one piece of work goes.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Whether what it writes is durable when it is answered.
    pub durable: bool,
    /// Whether the store answers `Unavailable` and does nothing.
    pub down: bool,
}

impl SimRows {
    /// What it holds of a replica.
    #[must_use]
    pub fn replica(&self, replica: ReplicaId) -> Option<&ReplicaRows> {
        self.replicas.get(&replica)
    }

    /// The replicas it holds.
    pub fn ids(&self) -> impl Iterator<Item = ReplicaId> {
        self.replicas.keys().copied()
    }

    /// Does one piece of work.
    pub fn execute(&mut self, replica: ReplicaId, command: StoreCommand, terms: Terms) -> StoreAnswer {
        if terms.down {
            return StoreAnswer::Unavailable;
        }
        match command {
            StoreCommand::Create => {
                self.replicas.insert(replica, ReplicaRows::default());
                return StoreAnswer::Done;
            }
            StoreCommand::Destroy => {
                self.replicas.remove(&replica);
                return StoreAnswer::Done;
            }
            StoreCommand::Flush(_)
            | StoreCommand::Read(_)
            | StoreCommand::OpenSnapshot(_)
            | StoreCommand::ReadSnapshot { .. }
            | StoreCommand::ReadPinned { .. }
            | StoreCommand::CloseSnapshot(_)
            | StoreCommand::Stage { .. }
            | StoreCommand::SwapStage { .. } => {}
        }
        let Some(rows) = self.replicas.get_mut(&replica) else {
            return StoreAnswer::Lost(LostReason::RowsMissing);
        };
        if rows.damaged {
            return StoreAnswer::Lost(LostReason::RowsDamaged);
        }
        match command {
            StoreCommand::Create | StoreCommand::Destroy => StoreAnswer::Done,
            StoreCommand::Flush(batch) => {
                rows.view.flush(&batch);
                rows.tail.push_back(*batch);
                if terms.durable {
                    rows.make_durable();
                }
                StoreAnswer::Flushed { durable: rows.durable.state.applied }
            }
            StoreCommand::Read(query) => StoreAnswer::Rows(read(&rows.view.rows, &query)),
            StoreCommand::OpenSnapshot(id) => {
                rows.snapshots.insert(id, rows.view.clone());
                StoreAnswer::SnapshotOpened { position: rows.view.state.applied }
            }
            StoreCommand::ReadSnapshot { snapshot, cursor, bytes_max } => match rows.snapshots.get(&snapshot) {
                Some(view) => StoreAnswer::Chunk(Box::new(piece(view, cursor.as_ref(), bytes_max))),
                // A snapshot lives as long as the process; the machine opened it in this life or never.
                None => StoreAnswer::Unavailable,
            },
            StoreCommand::ReadPinned { snapshot, query } => match rows.snapshots.get(&snapshot) {
                Some(view) => StoreAnswer::Rows(read(&view.rows, &query)),
                None => StoreAnswer::Unavailable,
            },
            StoreCommand::CloseSnapshot(id) => {
                rows.snapshots.remove(&id);
                StoreAnswer::Done
            }
            StoreCommand::Stage { stage, position, chunk, last } => {
                if rows.stage.as_ref().is_none_or(|open| open.id != stage) {
                    rows.stage = Some(Stage { id: stage, ..Stage::default() });
                }
                if let Some(open) = &mut rows.stage {
                    open.view.state.applied = position;
                    open.view.state.session_floor = chunk.session_floor;
                    open.view.rows.extend(chunk.rows.into_iter().map(|row| (row.row.key, row)));
                    open.view.state.sessions.extend(chunk.sessions);
                    open.view.state.idempotency.extend(chunk.idempotency);
                    open.complete = last;
                }
                StoreAnswer::Done
            }
            StoreCommand::SwapStage { stage, .. } => match rows.swap(stage) {
                Ok(()) => StoreAnswer::Swapped(Box::new(rows.view.state.clone())),
                Err(reason) => StoreAnswer::Lost(reason),
            },
        }
    }

    /// The process dies: of each replica's flushes that were not durable any prefix survives, drawn; stages that were not complete
    /// and open snapshots are gone. Returns how many flushes were lost.
    pub fn crash(&mut self, draw: &mut Draw) -> u64 {
        let mut lost = 0;
        for rows in self.replicas.values_mut() {
            let keep = draw.below(rows.tail.len() as u64 + 1);
            lost += rows.tail.len() as u64 - keep;
            rows.tail.truncate(usize::try_from(keep).unwrap_or(0));
            rows.make_durable();
            rows.view = rows.durable.clone();
            rows.snapshots.clear();
            if rows.stage.as_ref().is_some_and(|stage| !stage.complete) {
                rows.stage = None;
            }
        }
        lost
    }

    /// The disk is gone.
    pub fn lose(&mut self) {
        self.replicas.clear();
    }

    /// What is stored of one of the replicas goes bad. Returns of which.
    pub fn rot(&mut self, pick: u64) -> Option<ReplicaId> {
        let count = self.replicas.len() as u64;
        let place = usize::try_from(pick.checked_rem(count)?).ok()?;
        let (id, rows) = self.replicas.iter_mut().nth(place)?;
        rows.damaged = true;
        Some(*id)
    }

    /// Opens the view of a replica whose log has this base and this last reset: swaps a stage in that the log already stands on.
    ///
    /// # Errors
    /// If the replica is lost.
    pub fn open(&mut self, replica: ReplicaId, base: Position, reset: Option<(StageId, Position)>) -> Result<ViewState, LostReason> {
        let rows = self.replicas.get_mut(&replica).ok_or(LostReason::RowsMissing)?;
        if rows.damaged {
            return Err(LostReason::RowsDamaged);
        }
        if let Some((stage, position)) = reset
            && rows.swapped != Some(stage)
            && rows.view.state.applied.index < position.index
        {
            rows.swap(stage)?;
        }
        if rows.view.state.applied.index < base.index {
            return Err(LostReason::RowsBehind);
        }
        Ok(rows.view.state.clone())
    }
}

fn read(rows: &BTreeMap<Key, StoredRow>, query: &RowQuery) -> RowPage {
    match query {
        RowQuery::Keys(keys) => {
            let mut sorted = keys.clone();
            sorted.sort_unstable();
            sorted.dedup();
            RowPage { rows: sorted.iter().filter_map(|key| rows.get(key).cloned()).collect(), more: false }
        }
        RowQuery::Range { range, limit, bytes_max } => {
            let mut page = RowPage::default();
            let mut bytes = 0;
            if range.is_empty() {
                return page;
            }
            for (_, row) in rows.range(range.low..=range.high) {
                if page.rows.len() >= *limit as usize || (bytes >= *bytes_max as usize && !page.rows.is_empty()) {
                    page.more = true;
                    break;
                }
                bytes += row.row.size_bytes();
                page.rows.push(row.clone());
            }
            page
        }
    }
}

fn piece(view: &View, cursor: Option<&SnapshotCursor>, bytes_max: u32) -> SnapshotChunk {
    let mut chunk = SnapshotChunk { session_floor: view.state.session_floor, ..SnapshotChunk::default() };
    let mut bytes = 0;
    let mut from_key = Key(i64::MIN);
    let full = |bytes: usize| bytes >= bytes_max as usize;
    if cursor.is_none() {
        let sessions: Vec<(SessionId, SessionState)> = view.state.sessions.iter().map(|(id, state)| (*id, state.clone())).collect();
        bytes += sessions.len() * 64;
        chunk.sessions = sessions;
    }
    if let Some(SnapshotCursor::FromKey(key)) = cursor {
        from_key = *key;
    } else {
        let after: Option<&str> = match cursor {
            Some(SnapshotCursor::AfterIdempotency(key)) => Some(key),
            Some(SnapshotCursor::FromKey(_)) | None => None,
        };
        for (key, state) in &view.state.idempotency {
            if after.is_some_and(|after| **key <= *after) {
                continue;
            }
            if full(bytes) {
                chunk.next = Some(match chunk.idempotency.last() {
                    Some((last, _)) => SnapshotCursor::AfterIdempotency(last.clone()),
                    // The sessions alone filled the piece: the keys begin with the next one.
                    None => SnapshotCursor::AfterIdempotency(after.unwrap_or_default().into()),
                });
                return chunk;
            }
            bytes += key.len() + 64;
            let entry: (Box<str>, IdempotencyState) = (key.clone(), state.clone());
            chunk.idempotency.push(entry);
        }
    }
    for (key, row) in view.rows.range(from_key..) {
        if full(bytes) && !(chunk.rows.is_empty() && from_key == *key) {
            chunk.next = Some(SnapshotCursor::FromKey(*key));
            return chunk;
        }
        bytes += row.row.size_bytes();
        chunk.rows.push(row.clone());
    }
    chunk
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyed::{Keyed, Purpose};
    use twinshard_core::{
        id::{Epoch, LogIndex},
        value::{KeyRange, Row},
    };

    const R: ReplicaId = ReplicaId(3);
    const KEPT: Terms = Terms { durable: true, down: false };
    const LOOSE: Terms = Terms { durable: false, down: false };

    fn at(index: u64) -> Position {
        Position { epoch: Epoch(1), index: LogIndex(index) }
    }

    fn batch(index: u64, keys: core::ops::Range<i64>) -> StoreCommand {
        let rows = keys.map(|key| (Key(key), Some(StoredRow { version: at(index), row: Row { key: Key(key), values: Vec::new() } })));
        StoreCommand::Flush(Box::new(FlushBatch {
            rows: rows.collect(),
            sessions: BTreeMap::from([(SessionId(index), Some(SessionState::default()))]),
            idempotency: BTreeMap::new(),
            session_floor: SessionId(0),
            applied: at(index),
        }))
    }

    #[test]
    fn a_crash_loses_whole_flushes_from_the_tail() {
        let mut ends = std::collections::BTreeSet::new();
        for seed in 0..32 {
            let mut rows = SimRows::default();
            rows.execute(R, StoreCommand::Create, KEPT);
            assert_eq!(rows.execute(R, batch(1, 0..3), KEPT), StoreAnswer::Flushed { durable: at(1) });
            assert_eq!(rows.execute(R, batch(2, 3..6), LOOSE), StoreAnswer::Flushed { durable: at(1) });
            rows.crash(&mut Keyed::new(seed).draw(Purpose::Crash, [1]));
            let view = &rows.replica(R).expect("created").view;
            ends.insert((view.state.applied.index.0, view.rows.len()));
        }
        assert_eq!(ends, [(1, 3), (2, 6)].into());
    }

    #[test]
    fn a_snapshot_stays_as_it_was_and_comes_whole_in_small_pieces() {
        for bytes_max in [1, 40, 100, 10_000] {
            let mut rows = SimRows::default();
            rows.execute(R, StoreCommand::Create, KEPT);
            rows.execute(R, batch(1, 0..7), LOOSE);
            rows.execute(R, StoreCommand::OpenSnapshot(SnapshotId(1)), KEPT);
            rows.execute(R, batch(2, 0..20), LOOSE);
            let other = ReplicaId(4);
            rows.execute(other, StoreCommand::Create, KEPT);
            let mut cursor = None;
            loop {
                let command = StoreCommand::ReadSnapshot { snapshot: SnapshotId(1), cursor: cursor.take(), bytes_max };
                let StoreAnswer::Chunk(chunk) = rows.execute(R, command, KEPT) else { panic!("no chunk") };
                cursor.clone_from(&chunk.next);
                let last = cursor.is_none();
                rows.execute(other, StoreCommand::Stage { stage: StageId(1), position: at(1), chunk, last }, KEPT);
                if last {
                    break;
                }
            }
            let swap = StoreCommand::SwapStage { stage: StageId(1), position: at(1) };
            assert!(matches!(rows.execute(other, swap, KEPT), StoreAnswer::Swapped(_)));
            let copy = &rows.replica(other).expect("created").view;
            assert_eq!((copy.rows.len(), copy.state.applied, copy.state.sessions.len()), (7, at(1), 1));
        }
    }

    #[test]
    fn opening_swaps_a_stage_in_that_the_log_stands_on_and_refuses_what_is_behind() {
        let mut rows = SimRows::default();
        rows.execute(R, StoreCommand::Create, KEPT);
        assert_eq!(rows.open(R, at(4), None), Err(LostReason::RowsBehind));
        let chunk = Box::new(SnapshotChunk::default());
        rows.execute(R, StoreCommand::Stage { stage: StageId(9), position: at(4), chunk, last: true }, KEPT);
        rows.crash(&mut Keyed::new(1).draw(Purpose::Crash, [1]));
        assert_eq!(rows.open(R, at(4), Some((StageId(9), at(4)))).map(|state| state.applied), Ok(at(4)));
        assert_eq!(rows.open(ReplicaId(8), at(0), None), Err(LostReason::RowsMissing));
        assert_eq!(rows.rot(5), Some(R));
        assert_eq!(rows.open(R, at(4), None), Err(LostReason::RowsDamaged));
    }

    #[test]
    fn a_page_says_whether_there_is_more() {
        let mut rows = SimRows::default();
        rows.execute(R, StoreCommand::Create, KEPT);
        rows.execute(R, batch(1, 0..5), KEPT);
        for (limit, bytes_max, count, more) in [(5, 1_000, 5, false), (4, 1_000, 4, true), (9, 1, 1, true)] {
            let query = RowQuery::Range { range: KeyRange::ALL, limit, bytes_max };
            let StoreAnswer::Rows(page) = rows.execute(R, StoreCommand::Read(query), KEPT) else { panic!("no rows") };
            assert_eq!((page.rows.len(), page.more), (count, more));
        }
    }
}
