//! Random work on some replicas, with clean reopenings, crashes between two commands and crashes within one, against a model of what may
//! be there. What a store answered is there after a crash, except flushes above what it said is durable; what it did not answer is there
//! whole or not at all.

use super::{IDENTITY, Venue, View, done, ensure, execute, samples, state, view, words};
use crate::{
    conformance::Random,
    rows::{RecoverRows, RowStore, StoreError},
};
use std::collections::BTreeMap;
use twinshard_core::{
    id::{OwnerNumber, Position, ReplicaId, SessionId, SnapshotId, StageId},
    storage::{FlushBatch, LostReason, RowQuery, SnapshotChunk, SnapshotCursor, StoreAnswer, StoreCommand},
    value::{Key, KeyRange, StoredRow},
};

/// The most replicas at a time.
const REPLICAS_MAX: usize = 3;
/// The keys in use.
const KEYS: [i64; 14] = [i64::MIN, i64::MIN + 1, -70_000, -2, -1, 0, 1, 2, 3, 4, 255, 70_000, i64::MAX - 1, i64::MAX];

/// One replica as the model sees it.
#[derive(Debug, Default)]
struct Replica {
    /// What a crash may leave, the present one last. `None` is a replica that is not there.
    versions: Vec<Option<View>>,
    stage: Option<Stage>,
    /// The last stage that became the view: opening the store demands it again.
    reset: Option<(StageId, Position)>,
}

/// A stage of which every piece so far was answered.
#[derive(Clone, Debug)]
struct Stage {
    id: StageId,
    view: View,
    left: Vec<SnapshotChunk>,
}

/// A snapshot that is being read.
#[derive(Debug)]
struct Reading {
    snapshot: SnapshotId,
    expected: View,
    found: View,
    cursor: Option<SnapshotCursor>,
}

/// A command, and what it makes of the model once it is done.
struct Step {
    replica: ReplicaId,
    command: StoreCommand,
    /// The view after it; `None` if it leaves the view as it is.
    after: Option<Option<View>>,
}

struct Run<'a, V: Venue> {
    venue: &'a mut V,
    random: Random,
    /// `None` only while it is reopened.
    store: Option<V::Store>,
    owner: OwnerNumber,
    last_replica: ReplicaId,
    last_snapshot: SnapshotId,
    last_stage: StageId,
    replicas: BTreeMap<ReplicaId, Replica>,
    readings: BTreeMap<ReplicaId, Reading>,
}

/// So many steps of random work.
///
/// # Errors
/// What the store did that it must not, in words.
pub fn random_work<V: Venue>(venue: &mut V, seed: u64, steps: usize) -> Result<(), String> {
    let owner = OwnerNumber(1);
    let store = Some(venue.open(IDENTITY, owner).map_err(words)?);
    let mut run = Run {
        venue,
        random: Random::new(seed),
        store,
        owner,
        last_replica: ReplicaId(0),
        last_snapshot: SnapshotId(0),
        last_stage: StageId(0),
        replicas: BTreeMap::new(),
        readings: BTreeMap::new(),
    };
    for step in 0..steps {
        run.step().map_err(|words| format!("step {step}: {words}"))?;
    }
    run.reopen(false)?;
    run.compare()
}

impl<V: Venue> Run<'_, V> {
    fn store(&mut self) -> Result<&mut V::Store, String> {
        self.store.as_mut().ok_or_else(|| "the store is not open".to_owned())
    }

    fn step(&mut self) -> Result<(), String> {
        match self.random.below(100) {
            0..4 => return self.reopen(false),
            4..8 => return self.reopen(true),
            8..12 => return self.compare(),
            12..30 => return self.read(),
            30..40 => return self.read_snapshot(),
            _ => {}
        }
        let Some(step) = self.next_change() else { return Ok(()) };
        let room = self.random.below(200_000);
        if self.random.percent(5) && self.venue.set_room(Some(room)) {
            return self.on_a_full_disk(step);
        }
        // A crash that comes within the command, or soon after it.
        let count = self.random.below(25);
        let broken = self.random.percent(12) && self.venue.fail_after(count);
        let answer = self.store()?.execute(step.replica, step.command.clone());
        match answer {
            Ok(answer) => self.answered(step, &answer)?,
            Err(StoreError::Failed(_)) if broken => {
                self.interrupted(step);
                return self.reopen(true);
            }
            Err(error) => return Err(format!("{error} on {:?}", step.command)),
        }
        if broken { self.reopen(true) } else { Ok(()) }
    }

    /// A change for which there may be no room. A store that fails then may not open again before there is room, and has lost nothing.
    fn on_a_full_disk(&mut self, step: Step) -> Result<(), String> {
        match self.store()?.execute(step.replica, step.command.clone()) {
            Ok(answer) => self.answered(step, &answer)?,
            Err(StoreError::Failed(_)) => self.interrupted(step),
            Err(error) => return Err(format!("{error} on {:?}", step.command)),
        }
        self.store = None;
        if self.random.percent(50) {
            self.venue.crash(&mut self.random);
        }
        self.owner = self.owner.next();
        let opened = self.venue.open(IDENTITY, self.owner);
        ensure!(matches!(opened, Ok(_) | Err(StoreError::Failed(_))), "on a full disk it does not open: {:?}", opened.err());
        drop(opened);
        self.venue.set_room(None);
        self.reopen(false)
    }

    /// A replica that is there.
    fn some_replica(&mut self) -> Option<ReplicaId> {
        let there: Vec<ReplicaId> = self.replicas.iter().filter(|(_, it)| it.present().is_some()).map(|(id, _)| *id).collect();
        self.random.pick(&there).copied()
    }

    fn next_change(&mut self) -> Option<Step> {
        let there = self.replicas.values().filter(|it| it.present().is_some()).count();
        let replica = match self.some_replica() {
            Some(replica) if there == REPLICAS_MAX || self.random.percent(93) => replica,
            _ => {
                self.last_replica = self.last_replica.next();
                self.replicas.insert(self.last_replica, Replica { versions: vec![None], ..Replica::default() });
                return Some(Step { replica: self.last_replica, command: StoreCommand::Create, after: Some(Some(View::default())) });
            }
        };
        let known = self.replicas.get(&replica)?;
        let present = known.present()?.clone();
        let begun = known.stage.clone();
        match self.random.below(100) {
            0..5 => Some(Step { replica, command: StoreCommand::Destroy, after: Some(None) }),
            5..40 => {
                let stage = match begun {
                    Some(stage) if self.random.percent(95) && stage.view.state.applied > present.state.applied => stage,
                    _ => self.new_stage(present.state.applied),
                };
                let at = stage.view.state.applied;
                let Some(chunk) = stage.left.first() else {
                    let command = StoreCommand::SwapStage { stage: stage.id, position: at };
                    return Some(Step { replica, command, after: Some(Some(stage.view)) });
                };
                let last = stage.left.len() == 1;
                let command = StoreCommand::Stage { stage: stage.id, position: at, chunk: Box::new(chunk.clone()), last };
                self.replicas.get_mut(&replica)?.stage = Some(stage);
                Some(Step { replica, command, after: None })
            }
            _ => {
                let batch = self.new_batch(&present);
                let mut after = present;
                if batch.applied > after.state.applied {
                    apply(&mut after, &batch);
                }
                Some(Step { replica, command: StoreCommand::Flush(Box::new(batch)), after: Some(Some(after)) })
            }
        }
    }

    fn new_position(&mut self, after: Position) -> Position {
        let epoch = after.epoch.0.max(1) + u64::from(self.random.percent(10));
        samples::position(epoch, after.index.0 + 1 + self.random.below(3))
    }

    fn new_batch(&mut self, present: &View) -> FlushBatch {
        let mut applied = self.new_position(present.state.applied);
        if self.random.percent(6) {
            applied = samples::position(present.state.applied.epoch.0, present.state.applied.index.0.saturating_sub(self.random.below(2)));
        }
        let mut batch = super::batch(applied, []);
        for _ in 0..self.random.below(9) {
            let key = Key(self.random.pick(&KEYS).copied().unwrap_or(0));
            let row = self.random.percent(75).then(|| samples::random_row(&mut self.random, key, applied));
            batch.rows.insert(key, row);
        }
        for _ in 0..self.random.below(3) {
            let id = SessionId(self.random.pick(&samples::SESSIONS).copied().unwrap_or(1));
            let session = self.random.percent(75).then(|| samples::random_session(&mut self.random, applied));
            batch.sessions.insert(id, session);
        }
        for (key, state) in samples::idempotency(applied) {
            if self.random.percent(12) {
                batch.idempotency.insert(key, self.random.percent(75).then_some(state));
            }
        }
        batch.session_floor = SessionId(present.state.session_floor.0 + self.random.below(2));
        batch
    }

    fn new_stage(&mut self, after: Position) -> Stage {
        self.last_stage = self.last_stage.next();
        let applied = self.new_position(after);
        let mut view = View::default();
        for _ in 0..self.random.below(4) {
            let batch = self.new_batch(&view);
            apply(&mut view, &batch);
        }
        view.state.applied = applied;
        Stage { id: self.last_stage, left: self.pieces(&view), view }
    }

    /// The view as pieces of random sizes, at least one.
    fn pieces(&mut self, view: &View) -> Vec<SnapshotChunk> {
        let empty = SnapshotChunk { session_floor: view.state.session_floor, ..SnapshotChunk::default() };
        let mut pieces = Vec::new();
        let mut piece = empty.clone();
        piece.sessions = view.state.sessions.iter().map(|(id, session)| (*id, session.clone())).collect();
        for (key, state) in &view.state.idempotency {
            if self.random.percent(20) {
                pieces.push(std::mem::replace(&mut piece, empty.clone()));
            }
            piece.idempotency.push((key.clone(), state.clone()));
        }
        for row in view.rows.values() {
            if self.random.percent(20) {
                pieces.push(std::mem::replace(&mut piece, empty.clone()));
            }
            piece.rows.push(row.clone());
        }
        pieces.push(piece);
        pieces
    }

    fn answered(&mut self, step: Step, answer: &StoreAnswer) -> Result<(), String> {
        let Step { replica, command, after } = step;
        let Some(known) = self.replicas.get_mut(&replica) else { return Ok(()) };
        let mut durable = None;
        match (&command, answer) {
            (StoreCommand::Flush(_), StoreAnswer::Flushed { durable: found }) => durable = Some(*found),
            (StoreCommand::Stage { .. }, StoreAnswer::Done) => {
                if let Some(stage) = &mut known.stage {
                    stage.left.remove(0);
                }
            }
            (StoreCommand::SwapStage { stage, position }, StoreAnswer::Swapped(found)) => {
                let expected = after.iter().flatten().next().map(|view| &view.state);
                ensure!(expected == Some(&**found), "a swap answered {found:?} in the place of {expected:?}");
                known.reset = Some((*stage, *position));
                known.stage = None;
            }
            (StoreCommand::Destroy, StoreAnswer::Done) => {
                known.stage = None;
                known.reset = None;
                self.readings.remove(&replica);
            }
            (StoreCommand::Create, StoreAnswer::Done) => {}
            _ => return Err(format!("{answer:?} to {command:?}")),
        }
        let Some(after) = after else { return Ok(()) };
        let Some(durable) = durable else {
            known.versions = vec![after];
            return Ok(());
        };
        let applied = |view: &Option<View>| view.as_ref().map(|view| view.state.applied);
        ensure!(Some(durable) <= applied(&after), "durable up to {durable}, which was never written");
        known.versions.push(after);
        let kept = known.versions.iter().rposition(|view| applied(view) <= Some(durable)).unwrap_or(0);
        known.versions.drain(..kept);
        Ok(())
    }

    /// The command was not answered: it was done whole, or not at all.
    fn interrupted(&mut self, step: Step) {
        let Some(known) = self.replicas.get_mut(&step.replica) else { return };
        match step.command {
            StoreCommand::Stage { .. } => known.stage = None,
            // Its record in the log is durable by then: opening completes it.
            StoreCommand::SwapStage { stage, position } => known.reset = Some((stage, position)),
            _ => {}
        }
        if let Some(after) = step.after {
            known.versions.push(after);
        }
    }

    fn reopen(&mut self, crash: bool) -> Result<(), String> {
        self.store = None;
        self.readings.clear();
        if crash {
            self.venue.crash(&mut self.random);
        }
        self.owner = self.owner.next();
        let mut store = self.venue.open(IDENTITY, self.owner).map_err(words)?;
        for (id, known) in &mut self.replicas {
            // A stage of which something is missing is begun anew, under another id.
            known.stage = known.stage.take().filter(|stage| stage.left.is_empty());
            if let Some((stage, base)) = known.reset {
                let reset = store.complete_reset(*id, stage, base).map_err(words)?;
                let may_be_gone = known.versions.iter().any(Option::is_none);
                ensure!(reset.is_ok() || may_be_gone, "{id}: the stage that was swapped in is lost: {reset:?}");
                known.versions.retain(|view| view.as_ref().is_none_or(|view| view.state.applied >= base));
            }
            let found = match store.view(*id).map_err(words)? {
                Ok(_) => Some(view(&mut store, *id)?),
                Err(LostReason::RowsMissing) => None,
                Err(reason) => return Err(format!("{id} is lost after a crash: {reason:?}")),
            };
            if !known.versions.contains(&found) {
                let expected: Vec<String> = known.versions.iter().map(|view| brief(view.as_ref())).collect();
                return Err(format!("{id}: opened anew, it has {}; it must have {}", brief(found.as_ref()), expected.join(" or ")));
            }
            if found.is_none() {
                (known.stage, known.reset) = (None, None);
            }
            known.versions = vec![found];
        }
        let expected: Vec<ReplicaId> = self.replicas.iter().filter(|(_, it)| it.present().is_some()).map(|(id, _)| *id).collect();
        let mut listed = store.replicas().map_err(words)?;
        listed.sort_unstable();
        ensure!(listed == expected, "it lists {listed:?}, there are {expected:?}");
        self.store = Some(store);
        Ok(())
    }

    /// Everything of every replica, now.
    fn compare(&mut self) -> Result<(), String> {
        let Some(store) = self.store.as_mut() else { return Ok(()) };
        for (id, known) in &self.replicas {
            if let Some(expected) = known.present() {
                let found = view(store, *id)?;
                ensure!(found == *expected, "{id} has {}; it must have {}", brief(Some(&found)), brief(Some(expected)));
            } else {
                ensure!(state(store, *id).is_err(), "{id} is not there and has a view");
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), String> {
        let Some(replica) = self.some_replica() else { return Ok(()) };
        let rows: Vec<StoredRow> = match self.replicas.get(&replica).and_then(Replica::present) {
            Some(view) => view.rows.values().cloned().collect(),
            None => return Ok(()),
        };
        let mut key = || Key(self.random.pick(&KEYS).copied().unwrap_or(0));
        let (low, high) = (key(), key());
        let query = if self.random.percent(70) {
            let limit = u32::try_from(1 + self.random.below(6)).unwrap_or(1);
            let bytes_max = [0, 400, 70_000, u32::MAX][self.random.size(4)];
            RowQuery::Range { range: KeyRange { low, high }, limit, bytes_max }
        } else if low < high {
            RowQuery::Keys(vec![low, high])
        } else {
            RowQuery::Keys(vec![low])
        };
        samples::check_page(self.store()?, replica, &rows, &query)
    }

    fn read_snapshot(&mut self) -> Result<(), String> {
        let Some(replica) = self.some_replica() else { return Ok(()) };
        let Some(present) = self.replicas.get(&replica).and_then(Replica::present).cloned() else { return Ok(()) };
        let bytes_max = [1, 500, 80_000][self.random.size(3)];
        let Some(mut reading) = self.readings.remove(&replica) else {
            self.last_snapshot = self.last_snapshot.next();
            let snapshot = self.last_snapshot;
            let opened = execute(self.store()?, replica, StoreCommand::OpenSnapshot(snapshot))?;
            let expected = StoreAnswer::SnapshotOpened { position: present.state.applied };
            ensure!(opened == expected, "{opened:?} in the place of {expected:?}");
            self.readings.insert(replica, Reading { snapshot, expected: present, found: View::default(), cursor: None });
            return Ok(());
        };
        let snapshot = reading.snapshot;
        let command = StoreCommand::ReadSnapshot { snapshot, cursor: reading.cursor.clone(), bytes_max };
        let chunk = match execute(self.store()?, replica, command)? {
            StoreAnswer::Chunk(chunk) => chunk,
            other => return Err(format!("{other:?} in the place of a piece of a snapshot")),
        };
        samples::add_chunk(&mut reading.found, &chunk, reading.cursor.as_ref())?;
        reading.cursor = chunk.next;
        if reading.cursor.is_some() {
            self.readings.insert(replica, reading);
            return Ok(());
        }
        reading.found.state.applied = reading.expected.state.applied;
        ensure!(reading.found == reading.expected, "{replica}: a snapshot is not what was there when it was opened");
        done(self.store()?, replica, StoreCommand::CloseSnapshot(snapshot))
    }
}

impl Replica {
    fn present(&self) -> Option<&View> {
        self.versions.last().and_then(Option::as_ref)
    }
}

fn apply(view: &mut View, batch: &FlushBatch) {
    fn set<K: Ord + Clone, T: Clone>(map: &mut BTreeMap<K, T>, changes: &BTreeMap<K, Option<T>>) {
        for (key, change) in changes {
            match change {
                Some(value) => map.insert(key.clone(), value.clone()),
                None => map.remove(key),
            };
        }
    }
    set(&mut view.rows, &batch.rows);
    set(&mut view.state.sessions, &batch.sessions);
    set(&mut view.state.idempotency, &batch.idempotency);
    view.state.session_floor = batch.session_floor;
    view.state.applied = batch.applied;
}

/// A view in a few words.
fn brief(view: Option<&View>) -> String {
    let Some(view) = view else { return "no view".to_owned() };
    let rows: Vec<String> = view.rows.iter().map(|(key, row)| format!("{key} of {}", row.version)).collect();
    let (sessions, keys) = (view.state.sessions.len(), view.state.idempotency.len());
    let floor = view.state.session_floor;
    format!("a view at {} of rows [{}], {sessions} sessions, {keys} idempotency keys, floor {floor}", view.state.applied, rows.join(", "))
}
