//! What a log must hold: the sum of the records that were made durable, and what a write that was not answered may have added.

use super::*;
use crate::log::file::ReplicaLog;
use std::collections::{BTreeMap, BTreeSet};
use twinshard_core::{
    command::{Command, Entry, Operation},
    id::{Incarnation, LogIndex, MapVersion, Position, StageId},
    map::ClusterMap,
    storage::Lives,
    value::Key,
};

/// The sums that the log may hold, the likeliest last. More than one only while a write was not answered.
#[derive(Debug)]
pub(super) struct Model {
    sums: Vec<LogState>,
    last_replica: ReplicaId,
    /// The highest of what must grow, so that nothing comes twice with another meaning.
    last: u64,
}

impl Default for Model {
    fn default() -> Self {
        Self { sums: vec![LogState::default()], last_replica: ReplicaId(60), last: 0 }
    }
}

impl Model {
    fn sum(&self) -> LogState {
        self.sums.last().cloned().unwrap_or_default()
    }

    /// Some batches that a machine could want, each following those before it.
    pub(super) fn batches(&mut self, random: &mut Random) -> Vec<LogBatch> {
        let mut sum = self.sum();
        (0..1 + random.below(3))
            .map(|_| {
                let mut batch = LogBatch::new();
                for _ in 0..random.below(4) {
                    let record = self.record(&sum, random);
                    add(&mut sum, &record);
                    batch.push(record);
                }
                batch
            })
            .collect()
    }

    fn record(&mut self, sum: &LogState, random: &mut Random) -> LogRecord {
        self.last += 1;
        let there: Vec<ReplicaId> = sum.replicas.keys().copied().collect();
        let known = random.pick(&there).and_then(|id| Some((*id, sum.replicas.get(id)?)));
        let Some((replica, log)) = known.filter(|_| there.len() > 2 && !random.percent(2)) else {
            self.last_replica = self.last_replica.next();
            return LogRecord::Create { replica: self.last_replica, shard: ShardId(self.last) };
        };
        let last = log.entries.last().map_or(log.base, |entry| entry.position);
        let place = random.size(log.entries.len() + 1);
        match random.below(100) {
            0..10 => LogRecord::Promise { replica, epoch: Epoch(log.promised.0 + 1 + random.below(2)) },
            10..20 => LogRecord::Truncate { replica, after: LogIndex(log.base.index.0 + place as u64) },
            20..28 => {
                let base = log.entries[..place].last().map_or(log.base, |entry| entry.position);
                LogRecord::Compact { replica, base }
            }
            28..34 => LogRecord::Commit { replica, index: last.index },
            34..37 => {
                let base = Position { epoch: Epoch(last.epoch.0 + 1), index: LogIndex(last.index.0 + random.below(9)) };
                LogRecord::Reset { replica, base, stage: StageId(self.last) }
            }
            37..40 => LogRecord::Remove { replica },
            40..43 => {
                let seen = (0..1 + random.below(3)).map(|_| Incarnation(random.word())).collect();
                LogRecord::Lives(Lives { seen, lost: BTreeSet::from([replica]) })
            }
            43..47 => {
                let mut map = ClusterMap { cluster: IDENTITY.cluster, ..ClusterMap::default() };
                map.controller.beat = self.last;
                LogRecord::Map { version: MapVersion(self.last), map: Arc::new(map) }
            }
            _ => {
                let epoch = Epoch(last.epoch.0 + u64::from(random.percent(10)));
                let entries = (1..=1 + random.below(3)).map(|step| {
                    let deletes = (0..random.below(20)).map(|_| Operation::Delete { key: Key(random.word().cast_signed()) });
                    let command = Command::Operations(deletes.collect());
                    let position = Position { epoch, index: LogIndex(last.index.0 + step) };
                    Arc::new(Entry { position, request: None, idempotency: None, command })
                });
                LogRecord::Append { replica, entries: entries.collect() }
            }
        }
    }

    /// The batches were given to the log: they are in it, or, without an answer, some from the first on.
    pub(super) fn wrote(&mut self, batches: &[LogBatch], answered: bool) {
        let mut sum = self.sum();
        for batch in batches {
            batch.iter().for_each(|record| add(&mut sum, record));
            self.sums.push(sum.clone());
        }
        if answered {
            self.sums = vec![sum];
        }
    }

    /// The log was opened and holds this.
    pub(super) fn accept(&mut self, found: LogState) -> Result<(), String> {
        if !self.sums.contains(&found) {
            let near = self.sum();
            let differs = near.replicas.iter().find(|(id, log)| found.replicas.get(id) != Some(log));
            return Err(format!(
                "what it holds was never durable, or was and is missing: of {} replicas it has {}, flaws {} {:x}; it differs at {differs:?}, \
                 where it has {:?}",
                near.replicas.len(),
                found.replicas.len(),
                found.damaged,
                found.damaged_marks,
                differs.and_then(|(id, _)| found.replicas.get(id)),
            ));
        }
        self.sums = vec![found];
        Ok(())
    }

    /// The log was opened after some of it rotted: every replica is as it was, or damaged, or not there. How many are lost, and how many
    /// are not.
    pub(super) fn accept_damage(&mut self, found: LogState) -> Result<(usize, usize), String> {
        let expected = self.sum();
        for (id, log) in &found.replicas {
            let known = expected.replicas.get(id);
            // One whose removal rotted comes back, damaged.
            ensure!(log.damaged || known == Some(log), "{id} rotted unnoticed: it was {known:?} and is {log:?}");
        }
        if let Some((version, map)) = &found.map {
            let newest = expected.map.as_ref().map_or(MapVersion(0), |(version, _)| *version);
            ensure!(*version <= newest && map.controller.beat == version.0, "a map rotted unnoticed");
        }
        let intact = expected.replicas.keys().filter(|id| found.replicas.get(id).is_some_and(|log| !log.damaged)).count();
        let damaged = expected.replicas.len() - intact;
        self.sums = vec![found];
        Ok((damaged, intact))
    }

    /// Records that remove the damaged replicas, as the machine does once they are replaced.
    pub(super) fn remove_damaged(&mut self) -> LogBatch {
        let sum = self.sum();
        let damaged = sum.replicas.iter().filter(|(_, log)| log.damaged);
        let batch: LogBatch = damaged.map(|(replica, _)| LogRecord::Remove { replica: *replica }).collect();
        self.wrote(std::slice::from_ref(&batch), true);
        batch
    }
}

fn add(sum: &mut LogState, record: &LogRecord) {
    let change = |replicas: &mut BTreeMap<ReplicaId, ReplicaLog>, id: &ReplicaId, change: &dyn Fn(&mut ReplicaLog)| {
        if let Some(log) = replicas.get_mut(id) {
            change(log);
        }
    };
    let replicas = &mut sum.replicas;
    match record {
        LogRecord::Create { replica, shard } => {
            let (promised, commit, base) = (Epoch(0), LogIndex(0), Position::ZERO);
            let log = ReplicaLog { shard: *shard, promised, commit, base, entries: Vec::new(), reset: None, damaged: false };
            replicas.insert(*replica, log);
        }
        LogRecord::Promise { replica, epoch } => change(replicas, replica, &|log| log.promised = *epoch),
        LogRecord::Truncate { replica, after } => change(replicas, replica, &|log| log.entries.retain(|it| it.position.index <= *after)),
        LogRecord::Append { replica, entries } => change(replicas, replica, &|log| log.entries.extend(entries.iter().cloned())),
        LogRecord::Commit { replica, index } => change(replicas, replica, &|log| log.commit = log.commit.max(*index)),
        LogRecord::Reset { replica, base, stage } => change(replicas, replica, &|log| {
            log.entries.clear();
            log.base = *base;
            log.commit = log.commit.max(base.index);
            log.reset = Some((*stage, *base));
        }),
        LogRecord::Compact { replica, base } => change(replicas, replica, &|log| {
            log.entries.retain(|it| it.position.index > base.index);
            log.base = *base;
        }),
        LogRecord::Remove { replica } => {
            replicas.remove(replica);
        }
        LogRecord::Lives(lives) => sum.lives.clone_from(lives),
        LogRecord::Map { version, map } => sum.map = Some((*version, Arc::clone(map))),
    }
}
