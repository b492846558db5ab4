//! The view of one replica: rows, sessions and idempotency keys, computed from committed entries in order (R7). Memory holds what is
//! applied but not yet flushed, the row store the rest, so a read sees every applied entry at once and memory stays bounded. Never
//! evaluates what is not committed, never flushes what is not durable in the log (R8).
//!
//! ```text
//!   durable in the store <= visible in the store <= applied <= queued
//!   deltas:   (visible, applied]          one per entry, folded into the next flush
//!   overlay:  (oldest read's visible, applied]   newest value by key, wins over the store
//! ```
//!
//! A store read is answered late. What it returns is at least as new as what was visible when it was issued, and every key that was
//! written after that is kept in the overlay until the answer is there; so overlay over answer is the state at the applied position.

use super::session::{Change, Memory, Recall};
use crate::{
    command::{Command, Entry, OnConflict, Operation, Outcome, RequestId, Verdict},
    id::{LogIndex, Position, SessionId},
    planted::{Bug, Planted},
    storage::{FlushBatch, IdempotencyState, LostReason, RowPage, RowQuery, StoreAnswer, StoreCommand, ViewState},
    time::{Duration, Instant},
    value::{Key, KeyRange, Row, StoredRow},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

/// An applied entry is flushed after this time at the latest. A guess: long enough for large batches.
const FLUSH_AFTER: Duration = Duration::from_millis(1_000);
/// How long a store that is unavailable is left alone. A guess.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// How long a store that cannot answer is only waited for. A guess: a database that is started again takes less.
const STORE_AWAY_AFTER: Duration = Duration::from_millis(1_000);
/// How long a store that was asked and says nothing is only waited for. A guess: far more than the largest flush takes.
const STORE_HANGS_AFTER: Duration = Duration::from_millis(3_000);
/// A store that was asked nothing for so long is asked whether it is there. A guess: nobody misses it meanwhile.
const PROBE_AFTER: Duration = Duration::from_millis(5_000);
/// The most keys of one load of old rows.
const LOAD_KEYS_MAX: usize = 8_192;
/// About what a key that is overlaid takes besides its row.
const OVERLAID_BYTES: usize = 64;
/// The most keys that a verdict names.
const VERDICT_KEYS_MAX: usize = 100;

/// What bounds a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewLimits {
    /// The most sessions remembered.
    pub sessions_max: usize,
    /// The most idempotency keys remembered.
    pub idempotency_max: usize,
    /// Flush when so many applied entries wait.
    pub flush_entries: usize,
}

/// What came of applying one entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AppliedResult {
    /// The command's outcome, now or remembered.
    Done(Outcome),
    /// Refused by replicated state (R24).
    SessionGone,
    /// The entry was none of a client.
    Nothing,
}

/// What a view wants done or tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ViewEffect {
    /// Work for the row store; the answer comes back under `request`.
    Store {
        /// Names it.
        request: u64,
        /// What.
        command: StoreCommand,
    },
    /// An entry was applied. One per queued entry, in order.
    Applied {
        /// Which.
        position: Position,
        /// Whose.
        request: Option<RequestId>,
        /// What came of it.
        result: AppliedResult,
    },
    /// A read is answered.
    ReadDone {
        /// Which.
        id: u64,
        /// The rows, in key order.
        rows: Vec<StoredRow>,
        /// Whether a bound ended the page.
        more: bool,
        /// The applied position they are the state of.
        at: Position,
    },
    /// The store says that the replica is lost. Told once; the view does nothing more.
    Lost(LostReason),
}

#[derive(Clone, Debug)]
struct Delta {
    position: Position,
    applied_at: Instant,
    rows: Vec<(Key, Option<StoredRow>)>,
    changes: Vec<Change>,
}

#[derive(Clone, Debug)]
struct Overlaid {
    writer: LogIndex,
    row: Option<StoredRow>,
}

#[derive(Clone, Debug)]
struct PendingRead {
    id: u64,
    range: KeyRange,
    limit: u32,
    bytes_max: u32,
}

#[derive(Clone, Debug)]
enum Asked {
    Load,
    Read(PendingRead),
    Flush(Flush),
    /// Whether it is there.
    Probe,
}

/// A flush under way, or to be tried again.
#[derive(Clone, Debug)]
struct Flush {
    applied: Position,
    /// How many deltas it folds.
    count: usize,
    sessions: BTreeSet<SessionId>,
    keys: BTreeSet<Box<str>>,
}

#[derive(Clone, Debug)]
struct Outstanding {
    asked: Asked,
    /// What was visible in the store when it was asked.
    visible: LogIndex,
    at: Instant,
}

/// The view of one replica.
#[derive(Clone, Debug)]
pub struct View {
    limits: ViewLimits,
    planted: Planted,
    queue: VecDeque<Arc<Entry>>,
    queued: LogIndex,
    applied: Position,
    /// What a store read that is issued now will see at least.
    visible: LogIndex,
    durable: Position,
    memory: Memory,
    /// The memory as of the last flush that was built.
    flushed_memory: Memory,
    overlay: BTreeMap<Key, Overlaid>,
    deltas: VecDeque<Delta>,
    /// Keys written by entries that are visible in the store, until no outstanding read may miss them.
    retained: VecDeque<(LogIndex, Vec<Key>)>,
    /// Old rows for entries in the queue, as the store has them; `None` if it has none.
    loaded: BTreeMap<Key, Option<StoredRow>>,
    loading: BTreeSet<Key>,
    reads: VecDeque<PendingRead>,
    outstanding: BTreeMap<u64, Outstanding>,
    /// Somebody waits for the next flush.
    hurried: bool,
    /// A flush that the store could not take.
    unflushed: Option<Flush>,
    last_request: u64,
    retry_at: Option<Instant>,
    /// When the store was asked what it first answered nothing to, or that it cannot, since it last answered.
    away_since: Option<Instant>,
    /// When it was asked last.
    asked_at: Option<Instant>,
    lost: bool,
}

impl View {
    /// A view as it was read back.
    #[must_use]
    pub fn new(state: ViewState, limits: ViewLimits, planted: Planted) -> Self {
        let applied = state.applied;
        let memory = Memory::new(state);
        Self {
            limits,
            planted,
            queue: VecDeque::new(),
            queued: applied.index,
            applied,
            visible: applied.index,
            durable: applied,
            flushed_memory: memory.clone(),
            memory,
            overlay: BTreeMap::new(),
            deltas: VecDeque::new(),
            retained: VecDeque::new(),
            loaded: BTreeMap::new(),
            loading: BTreeSet::new(),
            reads: VecDeque::new(),
            outstanding: BTreeMap::new(),
            hurried: false,
            unflushed: None,
            last_request: 0,
            retry_at: None,
            away_since: None,
            asked_at: None,
            lost: false,
        }
    }

    /// The last entry that was evaluated.
    #[must_use]
    pub const fn applied(&self) -> Position {
        self.applied
    }

    /// What is durable in the row store.
    #[must_use]
    pub const fn flushed(&self) -> Position {
        self.durable
    }

    /// The last entry that was queued.
    #[must_use]
    pub const fn queued_through(&self) -> LogIndex {
        self.queued
    }

    /// What a store read or snapshot that is asked for now will have at least.
    #[must_use]
    pub const fn visible(&self) -> LogIndex {
        self.visible
    }

    /// What of the range is newer than the store shows for certain, with its size, if it is at most so many bytes.
    #[must_use]
    pub fn overlaid(&self, range: KeyRange, bytes_max: usize) -> Option<(BTreeMap<Key, Option<StoredRow>>, usize)> {
        let mut bytes = 0;
        let mut rows = BTreeMap::new();
        for (key, Overlaid { row, .. }) in self.overlay.range(range.low..=range.high.max(range.low)) {
            bytes += OVERLAID_BYTES + row.as_ref().map_or(0, |stored| stored.row.size_bytes());
            if bytes > bytes_max {
                return None;
            }
            rows.insert(*key, row.clone());
        }
        Some((rows, bytes))
    }

    /// Flushes what it can without waiting for more.
    pub const fn flush_soon(&mut self) {
        self.hurried = true;
    }

    /// How many sessions are remembered.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.memory.session_count()
    }

    /// The highest session ever evicted or closed (R24).
    #[must_use]
    pub const fn session_floor(&self) -> SessionId {
        self.memory.floor()
    }

    /// Takes the next committed entry.
    ///
    /// # Panics
    /// If it does not follow the last one (I4).
    pub fn queue(&mut self, entry: Arc<Entry>) {
        assert_eq!(entry.position.index, self.queued.next(), "I4: entries are applied in order, each once");
        self.queued = entry.position.index;
        self.queue.push_back(entry);
    }

    /// Asks for a page of rows; answered by [`ViewEffect::ReadDone`] as of what is applied at that moment. [`Self::advance`] issues it.
    pub fn read(&mut self, id: u64, range: KeyRange, limit: u32, bytes_max: u32) {
        self.reads.push_back(PendingRead { id, range, limit: limit.max(1), bytes_max });
    }

    /// Whether the store has been asked and has not answered for a while.
    #[must_use]
    pub fn is_store_away(&self, now: Instant) -> bool {
        let oldest = self.outstanding.first_key_value().map(|(_, outstanding)| outstanding.at);
        self.away_since.is_some_and(|since| now.since(since) >= STORE_AWAY_AFTER)
            || oldest.is_some_and(|since| now.since(since) >= STORE_HANGS_AFTER)
    }

    /// Applies what can be applied, issues loads, reads and flushes. `durable_log` is how far the replica's own log is durable.
    pub fn advance(&mut self, now: Instant, durable_log: LogIndex, out: &mut Vec<ViewEffect>) {
        if self.lost {
            return;
        }
        self.apply(now, out);
        if self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.retry_at = None;
        self.load(now, out);
        while let Some(read) = self.reads.pop_front() {
            self.issue_read(now, read, out);
        }
        self.flush(now, durable_log, out);
        if self.outstanding.is_empty() && (self.away_since.is_some() || now >= *self.asked_at.get_or_insert(now) + PROBE_AFTER) {
            self.ask(now, Asked::Probe, StoreCommand::Read(RowQuery::Keys(vec![Key(0)])), out);
        }
    }

    /// Takes an answer of the row store. Answers to what was asked before a [`Self::reset`] are ignored.
    pub fn stored(&mut self, now: Instant, request: u64, answer: StoreAnswer, out: &mut Vec<ViewEffect>) {
        let Some(Outstanding { asked, at, .. }) = self.outstanding.remove(&request) else { return };
        if matches!(answer, StoreAnswer::Rows(_) | StoreAnswer::Flushed { .. }) {
            self.away_since = None;
        }
        match (asked, answer) {
            (Asked::Load, StoreAnswer::Rows(page)) => self.loaded(page),
            (Asked::Read(read), StoreAnswer::Rows(page)) => self.answer(read, page, out),
            (Asked::Probe, StoreAnswer::Rows(_)) => {}
            (Asked::Flush(Flush { applied, count, .. }), StoreAnswer::Flushed { durable }) => {
                self.visible = self.visible.max(applied.index);
                self.durable = self.durable.max(durable);
                for delta in self.deltas.drain(..count) {
                    self.retained.push_back((delta.position.index, delta.rows.into_iter().map(|(key, _)| key).collect()));
                }
            }
            (_, StoreAnswer::Lost(reason)) => {
                if !self.lost {
                    self.lost = true;
                    out.push(ViewEffect::Lost(reason));
                }
            }
            // Unavailable; anything else is not an answer to what was asked and is treated as none.
            (asked, _) => {
                self.retry_at = Some(now + RETRY_AFTER);
                self.away_since.get_or_insert(at);
                match asked {
                    Asked::Load => self.loading.clear(),
                    Asked::Read(read) => self.reads.push_front(read),
                    Asked::Flush(flush) => self.unflushed = Some(flush),
                    Asked::Probe => {}
                }
            }
        }
        self.prune();
    }

    /// Takes the state of a snapshot that was swapped in. Reads that wait are asked again.
    pub fn reset(&mut self, mut state: ViewState) {
        if self.planted.has(Bug::SnapshotWithoutSessions) {
            state.sessions.clear();
        }
        let mut fresh = Self::new(state, self.limits, self.planted);
        fresh.last_request = self.last_request;
        fresh.lost = self.lost;
        for outstanding in std::mem::take(&mut self.outstanding).into_values() {
            if let Asked::Read(read) = outstanding.asked {
                fresh.reads.push_back(read);
            }
        }
        fresh.reads.append(&mut self.reads);
        *self = fresh;
    }

    /// When [`Self::advance`] has something to do by time alone.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.lost {
            return None;
        }
        let flush = if self.is_flushing() { None } else { self.deltas.front().map(|delta| delta.applied_at + FLUSH_AFTER) };
        let probe = if self.outstanding.is_empty() { self.asked_at.map(|at| at + PROBE_AFTER) } else { None };
        match (self.retry_at, flush) {
            (Some(retry), _) => Some(retry),
            (None, flush) => flush.into_iter().chain(probe).min(),
        }
    }

    fn ask(&mut self, now: Instant, asked: Asked, command: StoreCommand, out: &mut Vec<ViewEffect>) {
        self.last_request += 1;
        self.asked_at = Some(now);
        self.outstanding.insert(self.last_request, Outstanding { asked, visible: self.visible, at: now });
        out.push(ViewEffect::Store { request: self.last_request, command });
    }

    fn apply(&mut self, now: Instant, out: &mut Vec<ViewEffect>) {
        while let Some(entry) = self.queue.front().cloned() {
            if !self.is_ready(&entry) {
                return;
            }
            self.queue.pop_front();
            let (rows, changes, result) = self.evaluate(&entry);
            for (key, row) in &rows {
                // Whatever was loaded of this key is older than this.
                self.loaded.remove(key);
                self.overlay.insert(*key, Overlaid { writer: entry.position.index, row: row.clone() });
            }
            for change in &changes {
                self.memory.change(change, self.limits.sessions_max, self.limits.idempotency_max);
            }
            self.applied = entry.position;
            self.deltas.push_back(Delta { position: entry.position, applied_at: now, rows, changes });
            out.push(ViewEffect::Applied { position: entry.position, request: entry.request, result });
        }
        self.loaded.clear();
    }

    /// The keys whose old rows the entry needs, were it applied.
    fn needs(entry: &Entry, mut need: impl FnMut(Key)) {
        if let Command::Operations(operations) = &entry.command {
            let mut written = BTreeSet::new();
            for operation in operations {
                if operation.needs_old_row() {
                    if !written.contains(&operation.key()) {
                        need(operation.key());
                    }
                } else {
                    written.insert(operation.key());
                }
            }
        }
    }

    fn is_ready(&self, entry: &Entry) -> bool {
        let mut ready = true;
        Self::needs(entry, |key| ready &= self.overlay.contains_key(&key) || self.loaded.contains_key(&key));
        ready
    }

    fn load(&mut self, now: Instant, out: &mut Vec<ViewEffect>) {
        if self.queue.is_empty() || !self.loading.is_empty() {
            return;
        }
        let mut wanted = BTreeSet::new();
        for entry in &self.queue {
            Self::needs(entry, |key| {
                if !self.overlay.contains_key(&key) && !self.loaded.contains_key(&key) {
                    wanted.insert(key);
                }
            });
            // Whole entries, so that the first can always be applied.
            if wanted.len() >= LOAD_KEYS_MAX {
                break;
            }
        }
        if !wanted.is_empty() {
            let keys = wanted.iter().copied().collect();
            self.loading = wanted;
            self.ask(now, Asked::Load, StoreCommand::Read(RowQuery::Keys(keys)), out);
        }
    }

    fn loaded(&mut self, page: RowPage) {
        let mut found: BTreeMap<Key, StoredRow> = page.rows.into_iter().map(|stored| (stored.row.key, stored)).collect();
        for key in std::mem::take(&mut self.loading) {
            // What was written since is in the overlay, and newer.
            if !self.overlay.contains_key(&key) {
                self.loaded.insert(key, found.remove(&key));
            }
        }
    }

    fn old_row(&self, key: Key) -> Option<&Row> {
        match self.overlay.get(&key) {
            Some(overlaid) => overlaid.row.as_ref(),
            None => self.loaded.get(&key).and_then(Option::as_ref),
        }
        .map(|stored| &stored.row)
    }

    #[expect(clippy::type_complexity, reason = "used once, named by its parts")]
    fn evaluate(&self, entry: &Entry) -> (Vec<(Key, Option<StoredRow>)>, Vec<Change>, AppliedResult) {
        let operations = match &entry.command {
            Command::Barrier(_) => return (Vec::new(), Vec::new(), AppliedResult::Nothing),
            Command::CloseSession(session) => return (Vec::new(), vec![Change::Closed(*session)], AppliedResult::Nothing),
            Command::Operations(operations) => operations,
        };
        let index = entry.position.index;
        let (rows, outcome) = match self.memory.recall(entry.request.as_ref(), entry.idempotency.as_ref(), self.planted) {
            Recall::Gone => return (Vec::new(), Vec::new(), AppliedResult::SessionGone),
            Recall::Known(outcome) => {
                // The session remembers it too, if it was the key that did; in any case the entry counts as a use.
                let changes = entry.request.map(|request| {
                    if self.memory.has(&request) {
                        Change::Touched { request, index }
                    } else {
                        Change::Answered { request, index, outcome: outcome.clone() }
                    }
                });
                return (Vec::new(), changes.into_iter().collect(), AppliedResult::Done(outcome));
            }
            Recall::New => {
                let (rows, verdict) = self.execute(entry.position, operations);
                (rows, Outcome { verdict, position: entry.position })
            }
        };
        let mut changes = Vec::new();
        if let Some(request) = entry.request {
            changes.push(Change::Answered { request, index, outcome: outcome.clone() });
        }
        if let Some(idempotency) = &entry.idempotency {
            let state = IdempotencyState { body_hash: idempotency.body_hash, outcome: outcome.clone() };
            changes.push(Change::Keyed { key: idempotency.key.clone(), state });
        }
        (rows, changes, AppliedResult::Done(outcome))
    }

    fn execute(&self, version: Position, operations: &[Operation]) -> (Vec<(Key, Option<StoredRow>)>, Verdict) {
        let mut changed: BTreeMap<Key, Option<Row>> = BTreeMap::new();
        let (mut existing, mut missing) = (BTreeSet::new(), BTreeSet::new());
        let (mut written_count, mut skipped_count) = (0_u32, 0_u32);
        for operation in operations {
            let key = operation.key();
            let old = match changed.get(&key) {
                Some(row) => row.as_ref(),
                None => self.old_row(key),
            };
            let new = match operation {
                Operation::Insert { row, on_conflict } => match (on_conflict, old) {
                    (OnConflict::Replace, _) | (OnConflict::Error | OnConflict::Skip, None) => Some(row.clone()),
                    (OnConflict::Error, Some(_)) => {
                        existing.insert(key);
                        continue;
                    }
                    (OnConflict::Skip, Some(_)) => {
                        skipped_count += 1;
                        continue;
                    }
                },
                Operation::Update { set, .. } => {
                    let Some(old) = old else {
                        missing.insert(key);
                        continue;
                    };
                    let mut row = old.clone();
                    for (place, value) in set {
                        if let Some(column) = row.values.get_mut(usize::from(*place)) {
                            *column = value.clone();
                        }
                    }
                    Some(row)
                }
                Operation::Delete { .. } => {
                    if old.is_none() {
                        missing.insert(key);
                        continue;
                    }
                    None
                }
            };
            changed.insert(key, new);
            written_count += 1;
        }
        let first = |keys: BTreeSet<Key>| keys.into_iter().take(VERDICT_KEYS_MAX).collect();
        if !existing.is_empty() {
            return (Vec::new(), Verdict::Conflict(first(existing)));
        }
        if !missing.is_empty() {
            return (Vec::new(), Verdict::Missing(first(missing)));
        }
        let rows = changed.into_iter().map(|(key, row)| (key, row.map(|row| StoredRow { version, row }))).collect();
        (rows, Verdict::Applied { written_count, skipped_count })
    }

    fn issue_read(&mut self, now: Instant, read: PendingRead, out: &mut Vec<ViewEffect>) {
        // Deletions hide rows of the store's page, so ask for as many more.
        let hidden =
            self.overlay.range(read.range.low..=read.range.high.max(read.range.low)).filter(|(_, overlaid)| overlaid.row.is_none()).count();
        let limit = read.limit.saturating_add(u32::try_from(hidden).unwrap_or(u32::MAX));
        let query = RowQuery::Range { range: read.range, limit, bytes_max: read.bytes_max };
        self.ask(now, Asked::Read(read), StoreCommand::Read(query), out);
    }

    /// Lays the overlay over the store's page: the state at the applied position, up to where the page speaks.
    fn answer(&mut self, mut read: PendingRead, page: RowPage, out: &mut Vec<ViewEffect>) {
        let end = match page.rows.last() {
            Some(last) if page.more => last.row.key,
            Some(_) | None => read.range.high,
        };
        let mut merged: BTreeMap<Key, StoredRow> = page.rows.into_iter().map(|stored| (stored.row.key, stored)).collect();
        if read.range.low <= end {
            for (key, overlaid) in self.overlay.range(read.range.low..=end) {
                match &overlaid.row {
                    Some(row) => merged.insert(*key, row.clone()),
                    None => merged.remove(key),
                };
            }
        }
        if merged.is_empty() && page.more {
            // Everything in the page was deleted since. Ask for more of the same range: the page must be the state at one position.
            read.bytes_max = read.bytes_max.saturating_mul(2);
            self.reads.push_front(read);
            return;
        }
        let limit = read.limit as usize;
        let more = page.more || merged.len() > limit;
        let rows = merged.into_values().take(limit).collect();
        out.push(ViewEffect::ReadDone { id: read.id, rows, more, at: self.applied });
    }

    fn is_flushing(&self) -> bool {
        self.outstanding.values().any(|outstanding| matches!(outstanding.asked, Asked::Flush(_)))
    }

    fn flush(&mut self, now: Instant, durable_log: LogIndex, out: &mut Vec<ViewEffect>) {
        if self.is_flushing() {
            return;
        }
        let Some(flush) = self.unflushed.take().or_else(|| self.next_flush(now, durable_log)) else { return };
        let rows = self.deltas.iter().take(flush.count).flat_map(|delta| delta.rows.iter().cloned()).collect();
        let batch = FlushBatch {
            rows,
            sessions: flush.sessions.iter().map(|id| (*id, self.flushed_memory.session(*id).cloned())).collect(),
            idempotency: flush.keys.iter().map(|key| (key.clone(), self.flushed_memory.key(key).cloned())).collect(),
            session_floor: self.flushed_memory.floor(),
            applied: flush.applied,
        };
        self.ask(now, Asked::Flush(flush), StoreCommand::Flush(Box::new(batch)), out);
    }

    /// What is due, with the copy of the memory brought to its end.
    fn next_flush(&mut self, now: Instant, durable_log: LogIndex) -> Option<Flush> {
        let due = std::mem::take(&mut self.hurried)
            || self.deltas.len() >= self.limits.flush_entries.max(1)
            || self.deltas.front().is_some_and(|delta| delta.applied_at + FLUSH_AFTER <= now);
        if !due {
            return None;
        }
        let count = self.deltas.iter().take_while(|delta| delta.position.index <= durable_log).count(); // R8
        let applied = self.deltas.get(count.checked_sub(1)?)?.position;
        let (mut sessions, mut keys) = (BTreeSet::new(), BTreeSet::new());
        for change in self.deltas.iter().take(count).flat_map(|delta| &delta.changes) {
            let touched = self.flushed_memory.change(change, self.limits.sessions_max, self.limits.idempotency_max);
            sessions.extend(touched.sessions);
            keys.extend(touched.keys);
        }
        Some(Flush { applied, count, sessions, keys })
    }

    /// Forgets overlaid rows that the store has and that no outstanding read may have missed.
    fn prune(&mut self) {
        let bound = self.outstanding.values().map(|outstanding| outstanding.visible).min().unwrap_or(self.visible).min(self.visible);
        while let Some((index, _)) = self.retained.front()
            && *index <= bound
        {
            let Some((index, keys)) = self.retained.pop_front() else { break };
            for key in keys {
                if self.overlay.get(&key).is_some_and(|overlaid| overlaid.writer == index) {
                    self.overlay.remove(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
