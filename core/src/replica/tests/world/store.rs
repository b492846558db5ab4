//! The row stores of the world's disks: in memory, as they were asked to be.

use super::*;

impl Disk {
    pub(super) fn execute(&mut self, replica: ReplicaId, command: StoreCommand) -> StoreAnswer {
        match command {
            StoreCommand::Create => {
                assert!(!self.rows.contains_key(&replica), "{replica} exists");
                self.rows.insert(replica, Rows::default());
                return StoreAnswer::Done;
            }
            StoreCommand::Destroy => {
                self.rows.remove(&replica);
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
        self.rows.get_mut(&replica).map_or(StoreAnswer::Lost(LostReason::RowsMissing), |rows| rows.execute(command))
    }
}

impl Rows {
    /// Every open snapshot is gone. How many.
    pub(crate) fn break_snapshots(&mut self) -> usize {
        self.gone.extend(self.snapshots.keys());
        self.snapshots.len()
    }

    fn execute(&mut self, command: StoreCommand) -> StoreAnswer {
        match command {
            StoreCommand::Create | StoreCommand::Destroy => unreachable!("done by the disk"),
            StoreCommand::Flush(batch) => {
                self.flush(*batch);
                StoreAnswer::Flushed { durable: self.state.applied }
            }
            StoreCommand::Read(query) => StoreAnswer::Rows(read(&self.rows, &query)),
            StoreCommand::ReadPinned { snapshot, .. } if self.gone.contains(&snapshot) => StoreAnswer::Unavailable,
            StoreCommand::ReadPinned { snapshot, query } => match self.snapshots.get(&snapshot) {
                Some((_, rows)) => StoreAnswer::Rows(read(rows, &query)),
                None => panic!("{snapshot} is not open"),
            },
            StoreCommand::OpenSnapshot(id) => {
                self.snapshots.insert(id, (self.state.clone(), self.rows.clone()));
                StoreAnswer::SnapshotOpened { position: self.state.applied }
            }
            StoreCommand::ReadSnapshot { snapshot, .. } if self.gone.contains(&snapshot) => StoreAnswer::Unavailable,
            StoreCommand::ReadSnapshot { snapshot, cursor, .. } => {
                let Some((state, rows)) = self.snapshots.get(&snapshot) else { panic!("{snapshot} is not open") };
                // Three rows a piece, and the sessions with the first.
                let from = match &cursor {
                    None => Key(i64::MIN),
                    Some(SnapshotCursor::FromKey(key)) => *key,
                    Some(SnapshotCursor::AfterIdempotency(_)) => unreachable!("the first piece has them all"),
                };
                let piece: Vec<_> = rows.range(from..).take(3).map(|(_, row)| row.clone()).collect();
                let next = rows.range(from..).nth(3).map(|(key, _)| SnapshotCursor::FromKey(*key));
                let first = cursor.is_none();
                let sessions = if first { state.sessions.clone().into_iter().collect() } else { Vec::new() };
                let idempotency = if first { state.idempotency.clone().into_iter().collect() } else { Vec::new() };
                let chunk = SnapshotChunk { rows: piece, sessions, idempotency, session_floor: state.session_floor, next };
                StoreAnswer::Chunk(Box::new(chunk))
            }
            StoreCommand::CloseSnapshot(id) => {
                self.snapshots.remove(&id);
                StoreAnswer::Done
            }
            StoreCommand::Stage { stage, position, chunk, last: _ } => {
                if self.stage.as_ref().is_none_or(|(known, ..)| *known != stage) {
                    self.stage = Some((stage, position, ViewState { applied: position, ..ViewState::default() }, BTreeMap::new()));
                }
                if let Some((_, _, state, rows)) = &mut self.stage {
                    state.sessions.extend(chunk.sessions);
                    state.idempotency.extend(chunk.idempotency);
                    state.session_floor = chunk.session_floor;
                    rows.extend(chunk.rows.into_iter().map(|row| (row.row.key, row)));
                }
                StoreAnswer::Done
            }
            StoreCommand::SwapStage { stage, position } => {
                self.swap(stage, position);
                StoreAnswer::Swapped(Box::new(self.state.clone()))
            }
        }
    }

    pub(super) fn swap(&mut self, stage: StageId, position: Position) {
        if self.state.applied == position {
            return;
        }
        let staged = self.stage.take().expect("a stage");
        assert_eq!((staged.0, staged.1), (stage, position), "the stage that the log names");
        (self.state, self.rows) = (staged.2, staged.3);
    }

    fn flush(&mut self, batch: FlushBatch) {
        if batch.applied.index <= self.state.applied.index {
            return;
        }
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
        for (key, memory) in batch.idempotency {
            match memory {
                Some(memory) => self.state.idempotency.insert(key, memory),
                None => self.state.idempotency.remove(&key),
            };
        }
        self.state.session_floor = batch.session_floor;
        self.state.applied = batch.applied;
    }
}

fn read(rows: &BTreeMap<Key, StoredRow>, query: &RowQuery) -> RowPage {
    match query {
        RowQuery::Range { range, .. } if range.is_empty() => RowPage::default(),
        RowQuery::Range { range, limit, .. } => {
            let mut found: Vec<_> = rows.range(range.low..=range.high).map(|(_, row)| row.clone()).collect();
            let more = found.len() > *limit as usize;
            found.truncate(*limit as usize);
            RowPage { rows: found, more }
        }
        RowQuery::Keys(keys) => RowPage { rows: keys.iter().filter_map(|key| rows.get(key).cloned()).collect(), more: false },
    }
}
