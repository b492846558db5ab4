//! The simulated shared log of one server: what was written, what is durable, and what a crash leaves of the difference. Applies
//! `LogRecord`s as `core/storage.rs` words them and refuses what contradicts them; never decides what to keep.

use crate::keyed::Draw;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};
use twinshard_core::{
    command::Entry,
    id::{Epoch, LogIndex, MapVersion, Position, ReplicaId, ShardId, StageId, Token},
    map::ClusterMap,
    storage::{Lives, LogBatch, LogRecord},
};

/// The sum of the records of one replica.
#[derive(Clone, Debug, Default)]
pub struct ReplicaLog {
    /// Its shard.
    pub shard: ShardId,
    /// The highest epoch promised.
    pub promised: Epoch,
    /// The commit hint.
    pub commit: LogIndex,
    /// What it was compacted or reset to.
    pub base: Position,
    /// The entries after the base.
    pub entries: VecDeque<Arc<Entry>>,
    /// The last reset: the stage that holds its rows.
    pub reset: Option<(StageId, Position)>,
}

impl ReplicaLog {
    /// The end of the log.
    #[must_use]
    pub fn last(&self) -> Position {
        self.entries.back().map_or(self.base, |entry| entry.position)
    }

    /// The entry with this index, unless it is compacted or not there.
    #[must_use]
    pub fn entry(&self, index: LogIndex) -> Option<&Arc<Entry>> {
        let place = index.0.checked_sub(self.base.index.0 + 1)?;
        self.entries.get(usize::try_from(place).ok()?)
    }

    /// Whether it holds this entry, or did before it was compacted.
    #[must_use]
    pub fn holds(&self, position: Position) -> bool {
        position.index <= self.base.index || self.entry(position.index).is_some_and(|entry| entry.position == position)
    }

    fn apply(&mut self, record: &LogRecord) -> Result<(), String> {
        match record {
            LogRecord::Promise { epoch, .. } => {
                if *epoch <= self.promised {
                    return Err(format!("promise of {epoch} after {}", self.promised));
                }
                self.promised = *epoch;
            }
            LogRecord::Truncate { after, .. } => {
                if *after < self.base.index || *after < self.commit {
                    return Err(format!("truncation to {after} below base {} or commit {}", self.base, self.commit));
                }
                let keep = usize::try_from(after.0 - self.base.index.0).unwrap_or(usize::MAX);
                self.entries.truncate(keep);
            }
            LogRecord::Append { entries, .. } => {
                if entries.is_empty() {
                    return Err("an append without entries".to_owned());
                }
                for entry in entries {
                    let last = self.last();
                    if entry.position.index != last.index.next() || entry.position.epoch < last.epoch {
                        return Err(format!("append of {} after {last}", entry.position));
                    }
                    self.entries.push_back(Arc::clone(entry));
                }
            }
            LogRecord::Commit { index, .. } => {
                if *index < self.commit || *index > self.last().index {
                    return Err(format!("commit {index} after {}, log ends at {}", self.commit, self.last()));
                }
                self.commit = *index;
            }
            LogRecord::Reset { base, stage, .. } => {
                self.entries.clear();
                self.base = *base;
                self.commit = self.commit.max(base.index);
                self.reset = Some((*stage, *base));
            }
            LogRecord::Compact { base, .. } => {
                if *base <= self.base || !self.holds(*base) {
                    return Err(format!("compaction to {base}, log is {} to {}", self.base, self.last()));
                }
                let gone = usize::try_from(base.index.0 - self.base.index.0).unwrap_or(usize::MAX);
                self.entries.drain(..gone);
                self.base = *base;
            }
            LogRecord::Create { .. } | LogRecord::Remove { .. } | LogRecord::Lives(_) | LogRecord::Map { .. } => {}
        }
        Ok(())
    }
}

/// The sum of all records of a server.
#[derive(Clone, Debug, Default)]
pub struct LogState {
    /// Replicas with a `Create` and without a `Remove`.
    pub replicas: BTreeMap<ReplicaId, ReplicaLog>,
    /// Replicas that had a record once: `Create` must be the first.
    pub seen: BTreeMap<ReplicaId, ShardId>,
    /// The lives of the server that it has seen.
    pub lives: Lives,
    /// The newest map.
    pub map: Option<(MapVersion, Arc<ClusterMap>)>,
}

impl LogState {
    /// Adds a record.
    ///
    /// # Errors
    /// If it contradicts the ones before; the text says how.
    pub fn apply(&mut self, record: &LogRecord) -> Result<(), String> {
        let replica = match record {
            LogRecord::Lives(lives) => {
                self.lives.clone_from(lives);
                return Ok(());
            }
            LogRecord::Map { version, map } => {
                self.map = Some((*version, Arc::clone(map)));
                return Ok(());
            }
            LogRecord::Create { replica, shard } => {
                if self.seen.insert(*replica, *shard).is_some() {
                    return Err(format!("{replica} is created again"));
                }
                self.replicas.insert(*replica, ReplicaLog { shard: *shard, ..ReplicaLog::default() });
                return Ok(());
            }
            LogRecord::Remove { replica } => {
                self.replicas.remove(replica);
                return Ok(());
            }
            LogRecord::Promise { replica, .. }
            | LogRecord::Truncate { replica, .. }
            | LogRecord::Append { replica, .. }
            | LogRecord::Commit { replica, .. }
            | LogRecord::Reset { replica, .. }
            | LogRecord::Compact { replica, .. } => *replica,
        };
        let log = self.replicas.get_mut(&replica).ok_or_else(|| format!("a record of {replica}, which is not here"))?;
        log.apply(record).map_err(|text| format!("{replica}: {text}"))
    }
}

/// The log of one server, process and disk.
#[derive(Clone, Debug, Default)]
pub struct SimLog {
    /// What the disk holds.
    pub durable: LogState,
    /// What the process wrote, durable or not.
    pub written: LogState,
    unsynced: VecDeque<(Token, LogBatch)>,
    syncing: usize,
    /// How many fsyncs there were: their keys.
    pub syncs: u64,
}

impl SimLog {
    /// Takes a batch. Returns whether an fsync is to be started. `each` sees every record and the log as it is before it.
    ///
    /// # Errors
    /// If a record contradicts the ones before.
    pub fn write(&mut self, token: Token, batch: LogBatch, mut each: impl FnMut(&LogState, &LogRecord)) -> Result<bool, String> {
        if batch.is_empty() {
            return Err("an empty batch".to_owned());
        }
        for record in &batch {
            each(&self.written, record);
            self.written.apply(record)?;
        }
        self.unsynced.push_back((token, batch));
        Ok(self.syncing == 0)
    }

    /// The batch that was written last.
    #[must_use]
    pub fn last_written(&self) -> &[LogRecord] {
        self.unsynced.back().map_or(&[], |(_, batch)| batch)
    }

    /// Starts an fsync of all that was written.
    pub fn start_sync(&mut self) {
        self.syncing = self.unsynced.len();
        self.syncs += 1;
    }

    /// Whether an fsync is under way.
    #[must_use]
    pub const fn is_syncing(&self) -> bool {
        self.syncing > 0
    }

    /// The fsync is done: hands out the batches that are durable now, in order, each already applied to [`Self::durable`].
    ///
    /// # Errors
    /// Never if `write` accepted the batches.
    pub fn finish_sync(&mut self, mut each: impl FnMut(&LogState, &LogRecord), done: &mut Vec<Token>) -> Result<(), String> {
        for _ in 0..core::mem::take(&mut self.syncing) {
            if let Some((token, batch)) = self.unsynced.pop_front() {
                for record in &batch {
                    each(&self.durable, record);
                    self.durable.apply(record)?;
                }
                done.push(token);
            }
        }
        Ok(())
    }

    /// Whether something waits for an fsync.
    #[must_use]
    pub fn has_unsynced(&self) -> bool {
        !self.unsynced.is_empty()
    }

    /// The process dies: any prefix of the unsynced records survives, drawn. Returns how many records were lost. `each` sees
    /// every record that became durable like that, and the disk as it is before it.
    pub fn crash(&mut self, draw: &mut Draw, mut each: impl FnMut(&LogState, &LogRecord)) -> u64 {
        let count: usize = self.unsynced.iter().map(|(_, batch)| batch.len()).sum();
        let keep = draw.below(count as u64 + 1);
        for record in self.unsynced.iter().flat_map(|(_, batch)| batch).take(usize::try_from(keep).unwrap_or(0)) {
            each(&self.durable, record);
            // A prefix of what `write` accepted cannot contradict.
            if let Err(text) = self.durable.apply(record) {
                debug_assert!(false, "{text}");
            }
        }
        self.unsynced.clear();
        self.syncing = 0;
        self.written = self.durable.clone();
        count as u64 - keep
    }

    /// Another state takes the place of what the disk holds. Nobody writes meanwhile.
    pub fn put_back(&mut self, durable: LogState) {
        self.written = durable.clone();
        self.durable = durable;
    }

    /// The disk is gone.
    pub fn lose(&mut self) {
        let syncs = self.syncs;
        *self = Self { syncs, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyed::{Keyed, Purpose};
    use twinshard_core::command::Command;

    fn entry(epoch: u64, index: u64) -> Arc<Entry> {
        let position = Position { epoch: Epoch(epoch), index: LogIndex(index) };
        Arc::new(Entry { position, request: None, idempotency: None, command: Command::Operations(Vec::new()) })
    }

    const R: ReplicaId = ReplicaId(1);

    fn filled() -> SimLog {
        let mut log = SimLog::default();
        let batch = vec![
            LogRecord::Create { replica: R, shard: ShardId(1) },
            LogRecord::Promise { replica: R, epoch: Epoch(1) },
            LogRecord::Append { replica: R, entries: vec![entry(1, 1), entry(1, 2), entry(1, 3)] },
        ];
        assert_eq!(log.write(Token(1), batch, |_, _| ()), Ok(true));
        log
    }

    #[test]
    fn nothing_is_durable_before_its_sync_and_all_of_it_after() {
        let mut log = filled();
        log.start_sync();
        assert_eq!(log.write(Token(2), vec![LogRecord::Truncate { replica: R, after: LogIndex(1) }], |_, _| ()), Ok(false));
        assert!(log.durable.replicas.is_empty());
        let mut done = Vec::new();
        log.finish_sync(|_, _| (), &mut done).expect("accepted before");
        assert_eq!(done, [Token(1)]);
        assert_eq!(log.durable.replicas[&R].last().index, LogIndex(3));
        assert_eq!(log.written.replicas[&R].last().index, LogIndex(1));
        assert!(log.has_unsynced());
    }

    #[test]
    fn a_crash_leaves_any_prefix() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..64 {
            let mut log = filled();
            log.crash(&mut Keyed::new(seed).draw(Purpose::Crash, [0]), |_, _| ());
            seen.insert(log.durable.replicas.get(&R).map(|log| (log.promised, log.last().index)));
        }
        let expected = [None, Some((0, 0)), Some((1, 0)), Some((1, 3))];
        assert_eq!(seen, expected.map(|end| end.map(|(epoch, index)| (Epoch(epoch), LogIndex(index)))).into());
    }

    #[test]
    fn records_that_contradict_are_refused() {
        for bad in [
            LogRecord::Create { replica: R, shard: ShardId(1) },
            LogRecord::Promise { replica: R, epoch: Epoch(1) },
            LogRecord::Append { replica: R, entries: vec![entry(1, 5)] },
            LogRecord::Append { replica: R, entries: vec![entry(0, 4)] },
            LogRecord::Commit { replica: R, index: LogIndex(4) },
            LogRecord::Compact { replica: R, base: Position { epoch: Epoch(2), index: LogIndex(2) } },
            LogRecord::Commit { replica: ReplicaId(2), index: LogIndex(1) },
        ] {
            assert!(filled().write(Token(2), vec![bad.clone()], |_, _| ()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn compacting_and_resetting_move_the_base() {
        let mut log = filled();
        let base = Position { epoch: Epoch(1), index: LogIndex(2) };
        log.write(Token(2), vec![LogRecord::Compact { replica: R, base }], |_, _| ()).expect("legal");
        assert_eq!(log.written.replicas[&R].entry(LogIndex(3)).map(|entry| entry.position.index), Some(LogIndex(3)));
        assert!(log.written.replicas[&R].entry(LogIndex(2)).is_none());
        let base = Position { epoch: Epoch(4), index: LogIndex(9) };
        log.write(Token(3), vec![LogRecord::Reset { replica: R, base, stage: StageId(1) }], |_, _| ()).expect("legal");
        assert_eq!(log.written.replicas[&R].last(), base);
    }
}
