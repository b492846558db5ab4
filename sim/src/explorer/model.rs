//! What the committed log of one shard amounts to, worked out a second time and without the machines: rows at every index, the
//! outcome of every entry, sessions and idempotency keys. The checks compare the machines with it. Knows nothing of replication.

use crate::{explorer::rows::View, trace::StableHasher};
use core::hash::{Hash, Hasher};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use twinshard_core::{
    command::{Command, Entry, OnConflict, Operation, Outcome, Verdict},
    id::{LogIndex, Position, SessionId},
    storage::{IdempotencyState, SessionState, ViewState},
    value::{Key, KeyRange, Row, StoredRow},
};

/// The most keys that a verdict names (`command::Verdict`).
const KEYS_NAMED_MAX: usize = 100;

/// What an entry did when it was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing on rows: a barrier, a closed session.
    None,
    /// It was executed.
    Executed(Outcome),
    /// It had been executed before; the outcome of then.
    Repeated(Outcome),
    /// It was refused by the state of the sessions.
    Refused,
}

impl Effect {
    /// What its client may be told.
    #[must_use]
    pub const fn outcome(&self) -> Option<&Outcome> {
        match self {
            Self::Executed(outcome) | Self::Repeated(outcome) => Some(outcome),
            Self::None | Self::Refused => None,
        }
    }
}

/// What is remembered at most.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Sessions.
    pub sessions_max: usize,
    /// Idempotency keys.
    pub idempotency_max: usize,
}

/// The committed log of one shard and what it amounts to.
#[derive(Clone, Debug)]
pub struct ShardModel {
    memory: Memory,
    entries: Vec<Arc<Entry>>,
    effects: Vec<Effect>,
    /// The hash of sessions, keys and floor after each entry.
    state_hashes: Vec<u64>,
    versions: BTreeMap<Key, Vec<(LogIndex, Option<StoredRow>)>>,
    sessions: BTreeMap<SessionId, SessionState>,
    idempotency: BTreeMap<Box<str>, IdempotencyState>,
    floor: SessionId,
    /// How many sessions were evicted.
    pub evicted_count: u64,
}

impl ShardModel {
    /// An empty log.
    #[must_use]
    pub fn new(memory: Memory) -> Self {
        Self {
            memory,
            entries: Vec::new(),
            effects: Vec::new(),
            state_hashes: Vec::new(),
            versions: BTreeMap::new(),
            sessions: BTreeMap::new(),
            idempotency: BTreeMap::new(),
            floor: SessionId(0),
            evicted_count: 0,
        }
    }

    /// The index of the last committed entry.
    #[must_use]
    pub fn last(&self) -> LogIndex {
        LogIndex(self.entries.len() as u64)
    }

    /// The position of the last committed entry.
    #[must_use]
    pub fn last_position(&self) -> Position {
        self.entries.last().map_or(Position::ZERO, |entry| entry.position)
    }

    /// The committed entry with this index.
    #[must_use]
    pub fn entry(&self, index: LogIndex) -> Option<&Arc<Entry>> {
        self.entries.get(place(index)?)
    }

    /// Whether this is the position of a committed entry, or the beginning.
    #[must_use]
    pub fn has(&self, position: Position) -> bool {
        position == Position::ZERO || self.entry(position.index).is_some_and(|entry| entry.position == position)
    }

    /// What the entry with this index did.
    #[must_use]
    pub fn effect(&self, index: LogIndex) -> Option<&Effect> {
        self.effects.get(place(index)?)
    }

    /// All committed entries with what they did.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<Entry>, &Effect)> {
        self.entries.iter().zip(&self.effects)
    }

    /// The row with this key after this index.
    #[must_use]
    pub fn row(&self, key: Key, index: LogIndex) -> Option<&StoredRow> {
        let versions = self.versions.get(&key)?;
        let after = versions.partition_point(|(at, _)| *at <= index);
        versions.get(after.checked_sub(1)?)?.1.as_ref()
    }

    /// The rows of a range after this index, in key order.
    pub fn rows(&self, range: KeyRange, index: LogIndex) -> impl Iterator<Item = &StoredRow> {
        let keys = (!range.is_empty()).then(|| self.versions.range(range.low..=range.high));
        keys.into_iter().flatten().filter_map(move |(key, _)| self.row(*key, index))
    }

    /// Keys whose row was touched by an entry after `after`, up to `to`.
    pub fn touched(&self, after: LogIndex, to: LogIndex) -> impl Iterator<Item = Key> {
        let entries = self.entries.get(place_after(after)..place_after(to)).unwrap_or_default();
        entries.iter().flat_map(|entry| match &entry.command {
            Command::Operations(operations) => operations.iter().map(Operation::key).collect(),
            Command::Barrier(_) | Command::CloseSession(_) => Vec::new(),
        })
    }

    /// Whether the view of a replica is what the log amounts to at its position; the text says what is not.
    ///
    /// # Errors
    /// With the difference.
    pub fn compare(&self, view: &View) -> Result<(), String> {
        let at = view.state.applied;
        if !self.has(at) {
            return Err(format!("{at} is not a committed position"));
        }
        if !self.rows(KeyRange::ALL, at.index).eq(view.rows.values()) {
            let expected: Vec<_> = self.rows(KeyRange::ALL, at.index).collect();
            return Err(format!("rows at {at}: {:?}, expected {expected:?}", view.rows.values().collect::<Vec<_>>()));
        }
        self.compare_state(&view.state)
    }

    /// Whether sessions, keys and floor are what the log amounts to at their position.
    ///
    /// # Errors
    /// With the difference.
    pub fn compare_state(&self, state: &ViewState) -> Result<(), String> {
        let index = state.applied.index;
        let expected = place(index).and_then(|place| self.state_hashes.get(place)).copied();
        if index.0 > 0 && expected != Some(hash_state(&state.sessions, &state.idempotency, state.session_floor)) {
            let now = if index == self.last() {
                format!(", expected {:?} {:?} {}", self.sessions, self.idempotency, self.floor)
            } else {
                String::new()
            };
            return Err(format!(
                "memory at {}: {:?} {:?} floor {}{now}",
                state.applied, state.sessions, state.idempotency, state.session_floor
            ));
        }
        Ok(())
    }

    /// Adds a committed entry and works out what it does.
    pub fn commit(&mut self, entry: &Arc<Entry>) -> &Effect {
        debug_assert_eq!(entry.position.index, self.last().next());
        let effect = self.apply(entry);
        self.entries.push(Arc::clone(entry));
        self.effects.push(effect);
        self.state_hashes.push(hash_state(&self.sessions, &self.idempotency, self.floor));
        &self.effects[self.effects.len() - 1]
    }

    fn apply(&mut self, entry: &Entry) -> Effect {
        match &entry.command {
            Command::Barrier(_) => return Effect::None,
            Command::CloseSession(session) => {
                self.sessions.remove(session);
                self.floor = self.floor.max(*session);
                return Effect::None;
            }
            Command::Operations(_) => {}
        }
        let index = entry.position.index;
        let mut known = None;
        if let Some(request) = entry.request {
            match self.sessions.get(&request.session) {
                None if request.session <= self.floor => return Effect::Refused, // R24
                Some(session) if request.number < session.lowest => return Effect::Refused,
                None | Some(_) => {}
            }
            let session = self.sessions.entry(request.session).or_default();
            session.last_used = index;
            if request.lowest > session.lowest {
                session.lowest = request.lowest;
                session.outcomes = session.outcomes.split_off(&request.lowest);
            }
            known = session.outcomes.get(&request.number).cloned();
            self.evict_sessions();
        }
        if let Some(outcome) = known {
            return Effect::Repeated(outcome);
        }
        let effect = self.apply_under_key(entry);
        if let (Some(request), Some(outcome)) = (entry.request, effect.outcome())
            && let Some(session) = self.sessions.get_mut(&request.session)
        {
            session.outcomes.insert(request.number, outcome.clone());
        }
        effect
    }

    fn apply_under_key(&mut self, entry: &Entry) -> Effect {
        let Some(idempotency) = &entry.idempotency else {
            return Effect::Executed(self.execute(entry));
        };
        if let Some(known) = self.idempotency.get(&idempotency.key) {
            return if known.body_hash == idempotency.body_hash {
                Effect::Repeated(known.outcome.clone())
            } else {
                Effect::Repeated(Outcome { verdict: Verdict::KeyReused, position: known.outcome.position })
            };
        }
        let outcome = self.execute(entry);
        self.idempotency.insert(idempotency.key.clone(), IdempotencyState { body_hash: idempotency.body_hash, outcome: outcome.clone() });
        while self.idempotency.len() > self.memory.idempotency_max {
            let oldest = self.idempotency.iter().min_by_key(|(_, state)| state.outcome.position.index).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.idempotency.remove(&oldest);
            }
        }
        Effect::Executed(outcome)
    }

    fn evict_sessions(&mut self) {
        while self.sessions.len() > self.memory.sessions_max.max(1) {
            let oldest = self.sessions.iter().min_by_key(|(_, state)| state.last_used).map(|(id, _)| *id);
            if let Some(oldest) = oldest {
                self.sessions.remove(&oldest);
                self.floor = self.floor.max(oldest);
                self.evicted_count += 1;
            }
        }
    }

    fn execute(&mut self, entry: &Entry) -> Outcome {
        let position = entry.position;
        let Command::Operations(operations) = &entry.command else {
            return Outcome { verdict: Verdict::Applied { written_count: 0, skipped_count: 0 }, position };
        };
        let mut changed: BTreeMap<Key, Option<StoredRow>> = BTreeMap::new();
        let (mut written_count, mut skipped_count) = (0, 0);
        let (mut existing, mut missing) = (BTreeSet::new(), BTreeSet::new());
        for operation in operations {
            let key = operation.key();
            let old = match changed.get(&key) {
                Some(row) => row.as_ref(),
                None => self.row(key, self.last()),
            };
            let new = match (operation, old) {
                (Operation::Insert { on_conflict: OnConflict::Error, .. }, Some(_)) => {
                    existing.insert(key);
                    continue;
                }
                (Operation::Insert { on_conflict: OnConflict::Skip, .. }, Some(_)) => {
                    skipped_count += 1;
                    continue;
                }
                (Operation::Insert { row, .. }, _) => Some(StoredRow { version: position, row: row.clone() }),
                (Operation::Update { .. } | Operation::Delete { .. }, None) => {
                    missing.insert(key);
                    continue;
                }
                (Operation::Delete { .. }, Some(_)) => None,
                (Operation::Update { set, .. }, Some(old)) => {
                    let mut values = old.row.values.clone();
                    for (place, value) in set {
                        if let Some(slot) = values.get_mut(usize::from(*place)) {
                            slot.clone_from(value);
                        }
                    }
                    Some(StoredRow { version: position, row: Row { key, values } })
                }
            };
            written_count += 1;
            changed.insert(key, new);
        }
        let named = |keys: BTreeSet<Key>| keys.into_iter().take(KEYS_NAMED_MAX).collect();
        let verdict = if !existing.is_empty() {
            Verdict::Conflict(named(existing))
        } else if !missing.is_empty() {
            Verdict::Missing(named(missing))
        } else {
            for (key, row) in changed {
                self.versions.entry(key).or_default().push((position.index, row));
            }
            Verdict::Applied { written_count, skipped_count }
        };
        Outcome { verdict, position }
    }
}

fn place(index: LogIndex) -> Option<usize> {
    usize::try_from(index.0.checked_sub(1)?).ok()
}

fn place_after(index: LogIndex) -> usize {
    usize::try_from(index.0).unwrap_or(usize::MAX)
}

fn hash_state(sessions: &BTreeMap<SessionId, SessionState>, idempotency: &BTreeMap<Box<str>, IdempotencyState>, floor: SessionId) -> u64 {
    let mut hasher = StableHasher::default();
    sessions.hash(&mut hasher);
    floor.hash(&mut hasher);
    // The outcome's index names the entry, and so everything else about a key: cheaper than hashing it all at every entry.
    idempotency.values().for_each(|state| state.outcome.position.hash(&mut hasher));
    hasher.finish()
}
