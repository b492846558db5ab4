//! The row store in memory, for tests: it keeps everything as long as anybody holds its medium, and loses nothing at a crash. Never damaged.

use super::{RecoverRows, RowStore, StoreError};
use crate::log::file::Identity;
use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use twinshard_core::{
    id::{OwnerNumber, Position, ReplicaId, SnapshotId, StageId},
    storage::{FlushBatch, LostReason, RowPage, RowQuery, SnapshotChunk, SnapshotCursor, StoreAnswer, StoreCommand, ViewState},
    value::{Key, KeyRange, StoredRow},
};

/// Where a store of this kind is kept over its openings. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Medium(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    identity: Option<Identity>,
    owner: OwnerNumber,
    views: BTreeMap<ReplicaId, View>,
    stages: BTreeMap<ReplicaId, Stage>,
}

#[derive(Clone, Debug, Default)]
struct View {
    rows: BTreeMap<Key, StoredRow>,
    state: ViewState,
}

#[derive(Debug)]
struct Stage {
    id: StageId,
    whole: bool,
    view: View,
}

impl Medium {
    /// Loses everything, as a disk that was replaced.
    pub fn lose(&self) {
        *self.kept() = Kept::default();
    }

    /// What it has of a replica is what the other has.
    pub fn copy(&self, other: &Self, replica: ReplicaId) {
        let view = other.kept().views.get(&replica).cloned();
        self.kept().views.extend(view.map(|view| (replica, view)));
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A row store in memory.
#[derive(Debug)]
pub struct MemoryRows {
    medium: Medium,
    owner: OwnerNumber,
    snapshots: BTreeMap<(ReplicaId, SnapshotId), View>,
    /// How far each view was flushed.
    reached: BTreeMap<ReplicaId, Position>,
}

impl MemoryRows {
    /// Opens the store, or makes an empty one, and takes ownership for `owner`.
    ///
    /// # Errors
    /// If the store is another cluster's or server's.
    pub fn open(medium: &Medium, identity: Identity, owner: OwnerNumber) -> Result<Self, StoreError> {
        {
            let mut kept = medium.kept();
            if *kept.identity.get_or_insert(identity) != identity {
                return Err(StoreError::Failed("the store belongs to another cluster or server".to_owned()));
            }
            kept.owner = owner;
        }
        Ok(Self { medium: medium.clone(), owner, snapshots: BTreeMap::new(), reached: BTreeMap::new() })
    }

    /// What is kept, if it is still ours.
    fn ours(&self) -> Result<MutexGuard<'_, Kept>, StoreError> {
        let kept = self.medium.kept();
        if kept.owner == self.owner { Ok(kept) } else { Err(StoreError::TakenOver) }
    }
}

impl RowStore for MemoryRows {
    fn execute(&mut self, replica: ReplicaId, command: StoreCommand) -> Result<StoreAnswer, StoreError> {
        const MISSING: StoreAnswer = StoreAnswer::Lost(LostReason::RowsMissing);
        Ok(match command {
            StoreCommand::Create => {
                self.ours()?.views.insert(replica, View::default());
                self.reached.remove(&replica);
                StoreAnswer::Done
            }
            StoreCommand::Destroy => {
                self.snapshots.retain(|(id, _), _| *id != replica);
                let mut kept = self.ours()?;
                kept.views.remove(&replica);
                kept.stages.remove(&replica);
                StoreAnswer::Done
            }
            StoreCommand::Flush(batch) => {
                let reached = self.reached.get(&replica).copied().unwrap_or_default();
                let durable = match self.ours()?.views.get_mut(&replica) {
                    None => return Ok(MISSING),
                    Some(view) if view.state.applied < reached => return Ok(StoreAnswer::Lost(LostReason::RowsBehind)),
                    Some(view) => {
                        view.flush(*batch);
                        view.state.applied
                    }
                };
                self.reached.insert(replica, durable);
                StoreAnswer::Flushed { durable }
            }
            StoreCommand::Read(query) => {
                self.ours()?.views.get(&replica).map_or(MISSING, |view| StoreAnswer::Rows(read(&view.rows, &query)))
            }
            StoreCommand::OpenSnapshot(snapshot) => {
                let view = self.ours()?.views.get(&replica).cloned();
                view.map_or(MISSING, |view| {
                    let position = view.state.applied;
                    self.snapshots.insert((replica, snapshot), view);
                    StoreAnswer::SnapshotOpened { position }
                })
            }
            StoreCommand::ReadSnapshot { snapshot, cursor, bytes_max } => self
                .snapshots
                .get(&(replica, snapshot))
                .map_or(StoreAnswer::Unavailable, |view| StoreAnswer::Chunk(Box::new(chunk(view, cursor, bytes_max as usize)))),
            StoreCommand::ReadPinned { snapshot, query } => self
                .snapshots
                .get(&(replica, snapshot))
                .map_or(StoreAnswer::Unavailable, |view| StoreAnswer::Rows(read(&view.rows, &query))),
            StoreCommand::CloseSnapshot(snapshot) => {
                self.snapshots.remove(&(replica, snapshot));
                StoreAnswer::Done
            }
            StoreCommand::Stage { stage, position, chunk, last } => {
                let mut kept = self.ours()?;
                if kept.stages.get(&replica).is_none_or(|known| known.id != stage) {
                    kept.stages.insert(replica, Stage { id: stage, whole: false, view: View::default() });
                }
                if let Some(known) = kept.stages.get_mut(&replica) {
                    known.whole = last;
                    known.view.rows.extend(chunk.rows.into_iter().map(|row| (row.row.key, row)));
                    known.view.state.sessions.extend(chunk.sessions);
                    known.view.state.idempotency.extend(chunk.idempotency);
                    known.view.state.session_floor = chunk.session_floor;
                    known.view.state.applied = position;
                }
                StoreAnswer::Done
            }
            StoreCommand::SwapStage { stage, position } => {
                let swapped = match self.complete_reset(replica, stage, position)? {
                    Ok(()) => self.view(replica)?,
                    Err(reason) => Err(reason),
                };
                swapped.map_or_else(StoreAnswer::Lost, |view| StoreAnswer::Swapped(Box::new(view)))
            }
        })
    }
}

impl RecoverRows for MemoryRows {
    fn replicas(&mut self) -> Result<Vec<ReplicaId>, StoreError> {
        Ok(self.ours()?.views.keys().copied().collect())
    }

    fn view(&mut self, replica: ReplicaId) -> Result<Result<ViewState, LostReason>, StoreError> {
        Ok(self.ours()?.views.get(&replica).map(|view| view.state.clone()).ok_or(LostReason::RowsMissing))
    }

    fn complete_reset(&mut self, replica: ReplicaId, stage: StageId, base: Position) -> Result<Result<(), LostReason>, StoreError> {
        self.reached.remove(&replica);
        Ok(self.ours()?.swap(replica, stage, base))
    }
}

impl Kept {
    fn swap(&mut self, replica: ReplicaId, stage: StageId, position: Position) -> Result<(), LostReason> {
        let matches = |staged: &Stage| staged.id == stage && staged.whole && staged.view.state.applied == position;
        if self.stages.get(&replica).is_some_and(matches) {
            if let Some(staged) = self.stages.remove(&replica) {
                self.views.insert(replica, staged.view);
            }
            return Ok(());
        }
        // Done before, or never whole.
        let done = self.views.get(&replica).is_some_and(|view| view.state.applied >= position);
        if done { Ok(()) } else { Err(LostReason::RowsBehind) }
    }
}

impl View {
    fn flush(&mut self, batch: FlushBatch) {
        if batch.applied <= self.state.applied {
            return;
        }
        set(&mut self.rows, batch.rows);
        set(&mut self.state.sessions, batch.sessions);
        set(&mut self.state.idempotency, batch.idempotency);
        self.state.session_floor = batch.session_floor;
        self.state.applied = batch.applied;
    }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, changes: BTreeMap<K, Option<V>>) {
    for (key, change) in changes {
        match change {
            Some(value) => map.insert(key, value),
            None => map.remove(&key),
        };
    }
}

fn read(rows: &BTreeMap<Key, StoredRow>, query: &RowQuery) -> RowPage {
    match query {
        RowQuery::Keys(keys) => RowPage { rows: keys.iter().filter_map(|key| rows.get(key).cloned()).collect(), more: false },
        RowQuery::Range { range, limit, bytes_max } => page(rows, *range, *limit as usize, *bytes_max as usize),
    }
}

fn page(rows: &BTreeMap<Key, StoredRow>, range: KeyRange, limit: usize, bytes_max: usize) -> RowPage {
    let mut page = RowPage::default();
    if range.is_empty() {
        return page;
    }
    let mut bytes = 0;
    for row in rows.range(range.low..=range.high).map(|(_, row)| row) {
        if page.rows.len() >= limit || (bytes >= bytes_max && !page.rows.is_empty()) {
            page.more = true;
            break;
        }
        bytes += row.row.size_bytes();
        page.rows.push(row.clone());
    }
    page
}

/// Sessions and idempotency keys first, then rows.
fn chunk(view: &View, cursor: Option<SnapshotCursor>, bytes_max: usize) -> SnapshotChunk {
    let mut chunk = SnapshotChunk { session_floor: view.state.session_floor, ..SnapshotChunk::default() };
    let mut bytes = 0;
    if cursor.is_none() {
        chunk.sessions = view.state.sessions.iter().map(|(id, session)| (*id, session.clone())).collect();
    }
    let from = match cursor {
        Some(SnapshotCursor::FromKey(key)) => key,
        None | Some(SnapshotCursor::AfterIdempotency(_)) => {
            let after = match cursor {
                Some(SnapshotCursor::AfterIdempotency(key)) => Bound::Excluded(key),
                None | Some(SnapshotCursor::FromKey(_)) => Bound::Unbounded,
            };
            for (key, state) in view.state.idempotency.range((after, Bound::Unbounded)) {
                if bytes >= bytes_max
                    && let Some((last, _)) = chunk.idempotency.last()
                {
                    chunk.next = Some(SnapshotCursor::AfterIdempotency(last.clone()));
                    return chunk;
                }
                bytes += key.len() + 64;
                chunk.idempotency.push((key.clone(), state.clone()));
            }
            Key(i64::MIN)
        }
    };
    let all = KeyRange { low: from, high: Key(i64::MAX) };
    let page = page(&view.rows, all, usize::MAX, bytes_max.saturating_sub(bytes));
    if page.more {
        chunk.next = view
            .rows
            .range((page.rows.last().map_or(Bound::Included(from), |last| Bound::Excluded(last.row.key)), Bound::Unbounded))
            .next()
            .map(|(key, _)| SnapshotCursor::FromKey(*key));
    }
    chunk.rows = page.rows;
    chunk
}
