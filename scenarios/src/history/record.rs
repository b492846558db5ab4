//! From requests and replies to the calls of a history. All worlds record through this, so that an answer means the same everywhere.

use super::{
    Action, Asked, Call, CommandOutcome, Effect, History, Kind, Layout, Level, OperationId, SeenRow, TOMBSTONE_MIN, Told, VALUE_COLUMN,
    born_of, value_of,
};
use std::collections::BTreeMap;
use thiserror::Error;
use twinshard_core::{
    command::{OnConflict, Operation},
    id::{LogIndex, ShardId},
    map::ClusterMap,
    request::{Applied, Consistency, Reply, Request, RequestError, Rows, Written},
    value::{Key, KeyRange, Value},
};

/// An answer that no cluster may give, or a world that records wrongly. Either way the run is worth nothing: report it as a violation.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    /// The operation was never begun, or finished before.
    #[error("operation {0} is not open")]
    NotOpen(OperationId),
    /// An answer of another kind than the request.
    #[error("operation {operation} ({kind}) was answered with something else: {reply}")]
    WrongReply {
        /// Which.
        operation: OperationId,
        /// The kind of its request.
        kind: &'static str,
        /// The answer.
        reply: String,
    },
    /// An acknowledged write of a key that no shard known to the recorder spans.
    #[error("operation {operation} was acknowledged but no shard spans key {key}")]
    NoShard {
        /// Which.
        operation: OperationId,
        /// The key.
        key: Key,
    },
    /// Rows outside what was asked for, out of order or twice.
    #[error("operation {operation} was answered with key {key} out of range or order")]
    StrayRow {
        /// Which.
        operation: OperationId,
        /// The key.
        key: Key,
    },
    /// The counts of an acknowledged write do not add up.
    #[error("operation {operation} of {asked} rows was answered with {written} written and {skipped} skipped")]
    WrongCount {
        /// Which.
        operation: OperationId,
        /// Operations asked for.
        asked: usize,
        /// Rows written as answered.
        written: u64,
        /// Rows skipped as answered.
        skipped: u64,
    },
}

/// Effects by shard.
type Parts = BTreeMap<ShardId, Vec<(Key, Effect)>>;

#[derive(Clone, Debug)]
struct Open {
    place: usize,
    client: u32,
    called: u64,
    request: Request,
    /// An earlier attempt of the same request has an unknown outcome.
    maybe_applied: bool,
}

/// Records a history. See [`super`].
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    layout: Layout,
    history: History,
    open: BTreeMap<OperationId, Open>,
    sessions: BTreeMap<u32, BTreeMap<ShardId, LogIndex>>,
    next_operation: u64,
    next_tombstone: u64,
}

impl Recorder {
    /// A recorder that knows these shards.
    #[must_use]
    pub fn new(layout: Layout) -> Self {
        Self { layout, ..Self::default() }
    }

    /// Takes up the shards of a map: call it with every map that becomes known, before the answers that depend on it.
    pub fn learn(&mut self, map: &ClusterMap) {
        self.layout.learn(map);
    }

    /// The shards known so far.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How many requests are open.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.open.len()
    }

    /// What the client has seen of each shard: its session token.
    #[must_use]
    pub fn session(&self, client: u32) -> BTreeMap<ShardId, LogIndex> {
        self.sessions.get(&client).cloned().unwrap_or_default()
    }

    /// The request with the client's session token in it, if it is a session read. Do this before [`Self::begin`].
    #[must_use]
    pub fn with_session(&self, client: u32, request: Request) -> Request {
        match request {
            Request::Read { range, limit, consistency: Consistency::Session(_) } => {
                Request::Read { range, limit, consistency: Consistency::Session(self.session(client)) }
            }
            other => other,
        }
    }

    /// The client got this session token: from now on its session reads have to see as much.
    pub fn saw_token(&mut self, client: u32, token: &BTreeMap<ShardId, LogIndex>) {
        token.iter().for_each(|(shard, index)| self.saw(client, *shard, *index));
    }

    fn saw(&mut self, client: u32, shard: ShardId, index: LogIndex) {
        let seen = self.sessions.entry(client).or_default().entry(shard).or_default();
        *seen = index.max(*seen);
    }

    /// A client sends a request now.
    pub fn begin(&mut self, client: u32, now: u64, request: Request) -> OperationId {
        let operation = OperationId(self.next_operation);
        self.next_operation += 1;
        let asked = Asked { operation, client, kind: Kind::of(&request), called: now, answered: None, told: Told::Unknown };
        self.open.insert(operation, Open { place: self.history.asked.len(), client, called: now, request, maybe_applied: false });
        self.history.asked.push(asked);
        operation
    }

    /// An attempt of the request ended without telling its outcome and the client tries the same request again, under the same
    /// `Idempotency-Key`. Whatever it is told later, it is one operation.
    ///
    /// # Errors
    /// If the operation is not open.
    pub fn retry(&mut self, operation: OperationId) -> Result<(), RecordError> {
        let open = self.open.get_mut(&operation).ok_or(RecordError::NotOpen(operation))?;
        open.maybe_applied = true;
        Ok(())
    }

    /// The answer is there.
    ///
    /// # Errors
    /// If it is an answer that must never be given. What could be recorded is.
    pub fn finish(&mut self, operation: OperationId, now: u64, reply: &Reply) -> Result<(), RecordError> {
        let open = self.open.remove(&operation).ok_or(RecordError::NotOpen(operation))?;
        let asked = &mut self.history.asked[open.place];
        asked.answered = Some(now);
        asked.told = match reply {
            Reply::Failed(error) => told(error, asked.kind.is_write()),
            Reply::Initialised
            | Reply::Status(_)
            | Reply::Added { .. }
            | Reply::Removed { .. }
            | Reply::Rows(_)
            | Reply::ServerRows { .. }
            | Reply::ReadEnded
            | Reply::Written(_)
            | Reply::Primary { .. }
            | Reply::Relocated { .. }
            | Reply::Explained(_)
            | Reply::Server { .. } => Told::Done,
        };
        if open.maybe_applied && asked.told == Told::Failed {
            asked.told = Told::Unknown;
        }
        let kind = asked.kind.name();
        match (&open.request, reply) {
            (Request::Write { operations, on_conflict, .. }, Reply::Written(written)) => {
                self.written(operation, &open, operations, *on_conflict, now, written)
            }
            (Request::Write { operations, on_conflict, .. }, Reply::Failed(error)) => {
                self.write_failed(operation, &open, operations, *on_conflict, now, error);
                Ok(())
            }
            (Request::Read { range, consistency, limit }, Reply::Rows(rows)) => {
                self.rows(operation, &open, *range, *limit, consistency, now, rows)
            }
            (Request::Write { .. } | Request::Read { .. }, Reply::Rows(_) | Reply::Written(_)) => {
                Err(RecordError::WrongReply { operation, kind, reply: format!("{reply:?}") })
            }
            (Request::Read { .. }, Reply::Failed(_)) => Ok(()),
            (Request::Write { .. } | Request::Read { .. }, _) => {
                Err(RecordError::WrongReply { operation, kind, reply: format!("{reply:?}") })
            }
            // Requests that are not about rows leave no calls.
            (
                Request::Init { .. }
                | Request::Status { .. }
                | Request::Add { .. }
                | Request::Remove { .. }
                | Request::ReadPage { .. }
                | Request::EndRead(_)
                | Request::ReadServer { .. }
                | Request::Primary { .. }
                | Request::Move { .. }
                | Request::Drain { .. }
                | Request::Explain(_)
                | Request::PickServer { .. },
                _,
            ) => Ok(()),
        }
    }

    /// There will be no answer: the connection broke or the client gave up. The outcome is unknown.
    ///
    /// # Errors
    /// If the operation is not open.
    pub fn give_up(&mut self, operation: OperationId) -> Result<(), RecordError> {
        let open = self.open.remove(&operation).ok_or(RecordError::NotOpen(operation))?;
        self.unknown(operation, &open);
        Ok(())
    }

    /// The history. What is still open has an unknown outcome.
    #[must_use]
    pub fn into_history(mut self) -> History {
        for (operation, open) in core::mem::take(&mut self.open) {
            self.unknown(operation, &open);
        }
        self.history
    }

    fn unknown(&mut self, operation: OperationId, open: &Open) {
        if let Request::Write { operations, on_conflict, .. } = &open.request {
            for (shard, effects) in self.parts(operations, *on_conflict).0 {
                self.push(operation, open, None, shard, Action::Command { effects, outcome: CommandOutcome::Unknown });
            }
        }
    }

    fn push(&mut self, operation: OperationId, open: &Open, returned: Option<u64>, shard: ShardId, action: Action) {
        self.history.calls.push(Call { operation, client: open.client, called: open.called, returned, shard, action });
    }

    /// The effects by shard, and the first key that no shard spans.
    fn parts(&mut self, operations: &[Operation], on_conflict: Option<OnConflict>) -> (Parts, Option<Key>) {
        let mut parts: Parts = BTreeMap::new();
        let mut outside = None;
        for operation in operations {
            let key = operation.key();
            let Some(shard) = self.layout.shard_of(key) else {
                outside = outside.or(Some(key));
                continue;
            };
            let effect = match operation {
                Operation::Insert { row, on_conflict: own } => match on_conflict.unwrap_or(*own) {
                    OnConflict::Replace => Effect::Put(value_of(row)),
                    OnConflict::Error => Effect::PutNew(value_of(row)),
                    OnConflict::Skip => Effect::PutIfAbsent(value_of(row)),
                },
                Operation::Update { set, .. } => Effect::UpdateSet(
                    set.iter()
                        .find_map(|(place, value)| match value {
                            Value::Integer(value) if *place == VALUE_COLUMN => u64::try_from(*value).ok(),
                            Value::Integer(_) | Value::Decimal(_) | Value::Boolean(_) | Value::Text(_) => None,
                        })
                        .unwrap_or(super::NOT_A_VALUE),
                ),
                Operation::Delete { .. } => {
                    self.next_tombstone += 1;
                    Effect::Delete(TOMBSTONE_MIN + self.next_tombstone)
                }
            };
            parts.entry(shard).or_default().push((key, effect));
        }
        (parts, outside)
    }

    fn written(
        &mut self,
        operation: OperationId,
        open: &Open,
        operations: &[Operation],
        on_conflict: Option<OnConflict>,
        now: u64,
        written: &Written,
    ) -> Result<(), RecordError> {
        let (mut parts, outside) = self.parts(operations, on_conflict);
        let is_skip = |effect: &Effect| matches!(effect, Effect::PutIfAbsent(_));
        let skip_count = parts.values().flatten().filter(|(_, effect)| is_skip(effect)).count() as u64;
        for (_, effect) in parts.values_mut().flatten() {
            if let Effect::PutIfAbsent(value) = *effect {
                if written.skipped_count == 0 {
                    *effect = Effect::PutNew(value);
                } else if written.skipped_count == skip_count {
                    *effect = Effect::Keep;
                }
            }
        }
        for (shard, position) in &written.seen {
            self.saw(open.client, *shard, position.index);
        }
        for (shard, effects) in parts {
            let outcome = CommandOutcome::Acknowledged { position: written.seen.get(&shard).copied() };
            self.push(operation, open, Some(now), shard, Action::Command { effects, outcome });
        }
        if let Some(key) = outside {
            return Err(RecordError::NoShard { operation, key });
        }
        if written.skipped_count > skip_count || written.written_count + written.skipped_count != operations.len() as u64 {
            return Err(RecordError::WrongCount {
                operation,
                asked: operations.len(),
                written: written.written_count,
                skipped: written.skipped_count,
            });
        }
        Ok(())
    }

    fn write_failed(
        &mut self,
        operation: OperationId,
        open: &Open,
        operations: &[Operation],
        on_conflict: Option<OnConflict>,
        now: u64,
        error: &RequestError,
    ) {
        for (shard, position) in error.seen() {
            self.saw(open.client, shard, position.index);
        }
        for (shard, effects) in self.parts(operations, on_conflict).0 {
            let outcome = match error {
                RequestError::Parts(parts) => match self.layout.name(shard).and_then(|name| parts.get(name)) {
                    Some(part) => match part.applied {
                        Applied::Yes => CommandOutcome::Acknowledged { position: part.seen.map(|(_, position)| position) },
                        Applied::No => part.error.as_ref().map_or(CommandOutcome::NotApplied, |error| failed(error, &effects)),
                        Applied::Partial | Applied::Unknown => CommandOutcome::Unknown,
                    },
                    // Not told: nobody knows.
                    None => CommandOutcome::Unknown,
                },
                _ => failed(error, &effects),
            };
            let outcome = match outcome {
                // An earlier attempt may stand in the log (R25): what the last was told does not count.
                CommandOutcome::NotApplied if open.maybe_applied => CommandOutcome::Unknown,
                outcome => outcome,
            };
            let returned = (outcome != CommandOutcome::Unknown).then_some(now);
            self.push(operation, open, returned, shard, Action::Command { effects, outcome });
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one request and its answer")]
    fn rows(
        &mut self,
        operation: OperationId,
        open: &Open,
        range: KeyRange,
        limit: u32,
        consistency: &Consistency,
        now: u64,
        rows: &Rows,
    ) -> Result<(), RecordError> {
        // A page speaks for the keys before the one it says to go on with.
        let covered = match rows.next {
            Some(next) => KeyRange { low: range.low, high: Key(next.0.saturating_sub(1)) },
            None => range,
        };
        let mut last = None;
        for row in &rows.rows {
            let key = row.row.key;
            if !covered.contains(key) || last.is_some_and(|last| last >= key) {
                return Err(RecordError::StrayRow { operation, key });
            }
            last = Some(key);
        }
        if rows.rows.len() > limit as usize {
            return Err(RecordError::StrayRow { operation, key: rows.rows[limit as usize].row.key });
        }
        for (shard, index) in &rows.seen {
            self.saw(open.client, *shard, *index);
        }
        let mut next = rows.rows.iter().peekable();
        let mut spans: Vec<(KeyRange, ShardId)> = self.layout.iter().map(|(id, _, span)| (span, id)).collect();
        spans.sort_unstable_by_key(|(span, _)| span.low);
        for (span, shard) in spans {
            let range = span.intersection(&covered);
            if range.is_empty() {
                continue;
            }
            let mut seen_rows = Vec::new();
            while let Some(row) = next.next_if(|row| row.row.key <= range.high) {
                if row.row.key < range.low {
                    return Err(RecordError::NoShard { operation, key: row.row.key });
                }
                seen_rows.push(SeenRow {
                    key: row.row.key,
                    value: value_of(&row.row),
                    version: Some(row.version),
                    born: born_of(&row.row),
                });
            }
            let at = rows.seen.get(&shard).copied();
            let level = match consistency {
                Consistency::Linearizable => Level::Linearizable,
                Consistency::Session(floor) => Level::Session(floor.get(&shard).copied().unwrap_or(LogIndex(0))),
                Consistency::Stale => Level::Stale,
            };
            if at.is_none() && seen_rows.is_empty() && level != Level::Linearizable {
                // The balancer did not know this shard when it answered. A linearizable read claims that its keys are absent all the same.
                continue;
            }
            self.push(operation, open, Some(now), shard, Action::Read { range, rows: seen_rows, at, level });
        }
        match next.next() {
            Some(row) => Err(RecordError::NoShard { operation, key: row.row.key }),
            None => Ok(()),
        }
    }
}

/// What an error that speaks for the whole part says of it.
fn failed(error: &RequestError, effects: &[(Key, Effect)]) -> CommandOutcome {
    // Only the first condition of a key is a read of what was there before the command.
    let claims = |keys: &[Key], wanted: fn(Effect) -> bool| -> Vec<Key> {
        let once = |key: &Key| effects.iter().filter(|(other, _)| other == key).count() == 1;
        effects.iter().filter(|(key, effect)| keys.contains(key) && wanted(*effect) && once(key)).map(|(key, _)| *key).collect()
    };
    match error {
        RequestError::Exists(keys) => {
            CommandOutcome::Refused { existing: claims(keys, |effect| matches!(effect, Effect::PutNew(_))), missing: Vec::new() }
        }
        RequestError::Missing(keys) => CommandOutcome::Refused {
            existing: Vec::new(),
            missing: claims(keys, |effect| matches!(effect, Effect::UpdateSet(_) | Effect::Delete(_))),
        },
        other => match other.applied() {
            Applied::No => CommandOutcome::NotApplied,
            Applied::Yes | Applied::Partial | Applied::Unknown => CommandOutcome::Unknown,
        },
    }
}

fn told(error: &RequestError, is_write: bool) -> Told {
    match error {
        RequestError::Exists(_) | RequestError::Missing(_) => Told::Refused,
        RequestError::Parts(parts) => {
            let any = |wanted: fn(Applied) -> bool| parts.values().any(|part| wanted(part.applied));
            let is_refusal = |error: &RequestError| matches!(error, RequestError::Exists(_) | RequestError::Missing(_));
            if any(|applied| matches!(applied, Applied::Unknown | Applied::Partial)) {
                Told::Unknown
            } else if any(|applied| applied == Applied::Yes) {
                Told::Partial
            } else if parts.values().filter_map(|part| part.error.as_ref()).all(|error| is_refusal(error)) {
                Told::Refused
            } else {
                Told::Failed
            }
        }
        other => match other.applied() {
            Applied::No => Told::Failed,
            // A read that ran out of time changed nothing.
            Applied::Yes | Applied::Partial | Applied::Unknown if is_write => Told::Unknown,
            Applied::Yes | Applied::Partial | Applied::Unknown => Told::Failed,
        },
    }
}
