//! The view of a replica's log, in its simplest form: inserts and range reads, no sessions, no idempotency keys. The full one takes its place.
#![allow(missing_docs, clippy::all, reason = "stands in until the full view takes its place")]
use crate::{command::*, id::*, planted::Planted, storage::*, time::Instant, value::*};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

#[derive(Clone, Debug)]
pub struct ViewLimits {
    pub sessions_max: usize,
    pub idempotency_max: usize,
    pub flush_entries: usize,
}
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AppliedResult {
    Done(Outcome),
    SessionGone,
    Nothing,
}
#[derive(Clone, Debug)]
pub enum ViewEffect {
    Store { request: u64, command: StoreCommand },
    Applied { position: Position, request: Option<RequestId>, result: AppliedResult },
    ReadDone { id: u64, rows: Vec<StoredRow>, more: bool, at: Position },
    Lost(LostReason),
}
#[derive(Clone, Debug)]
pub struct View {
    state: ViewState,
    applied: Position,
    flushed: Position,
    queue: VecDeque<Arc<Entry>>,
    through: LogIndex,
    rows: BTreeMap<Key, StoredRow>,
    dirty: BTreeMap<Key, Option<StoredRow>>,
    reads: Vec<(u64, KeyRange, u32)>,
    flushing: bool,
    loaded: bool,
    loading: bool,
    flush_entries: u64,
}
impl View {
    pub fn new(state: ViewState, limits: ViewLimits, _planted: Planted) -> Self {
        let a = state.applied;
        Self {
            loaded: a == Position::ZERO,
            loading: false,
            state,
            applied: a,
            flushed: a,
            queue: VecDeque::new(),
            through: a.index,
            rows: BTreeMap::new(),
            dirty: BTreeMap::new(),
            reads: vec![],
            flushing: false,
            flush_entries: limits.flush_entries as u64,
        }
    }
    pub fn applied(&self) -> Position {
        self.applied
    }
    pub fn flushed(&self) -> Position {
        self.flushed
    }
    pub fn queue(&mut self, entry: Arc<Entry>) {
        assert_eq!(entry.position.index, self.through.next());
        self.through = entry.position.index;
        self.queue.push_back(entry);
    }
    pub fn queued_through(&self) -> LogIndex {
        self.through
    }
    pub fn read(&mut self, id: u64, range: KeyRange, limit: u32, _bytes_max: u32) {
        self.reads.push((id, range, limit));
    }
    pub fn advance(&mut self, _now: Instant, durable_log: LogIndex, out: &mut Vec<ViewEffect>) {
        if !self.loaded {
            if !self.loading {
                self.loading = true;
                out.push(ViewEffect::Store {
                    request: 1,
                    command: StoreCommand::Read(RowQuery::Range { range: KeyRange::ALL, limit: u32::MAX, bytes_max: u32::MAX }),
                });
            }
            return;
        }
        while let Some(entry) = self.queue.pop_front() {
            let position = entry.position;
            let result = match &entry.command {
                Command::Operations(ops) => {
                    for op in ops {
                        if let Operation::Insert { row, .. } = op {
                            let r = StoredRow { version: position, row: row.clone() };
                            self.rows.insert(row.key, r.clone());
                            self.dirty.insert(row.key, Some(r));
                        }
                    }
                    AppliedResult::Done(Outcome {
                        verdict: Verdict::Applied { written_count: ops.len() as u32, skipped_count: 0 },
                        position,
                    })
                }
                _ => AppliedResult::Nothing,
            };
            self.applied = position;
            out.push(ViewEffect::Applied { position, request: entry.request, result });
        }
        for (id, range, limit) in std::mem::take(&mut self.reads) {
            let all: Vec<_> = self.rows.range(range.low..=range.high).map(|(_, r)| r.clone()).collect();
            let more = all.len() > limit as usize;
            out.push(ViewEffect::ReadDone { id, rows: all.into_iter().take(limit as usize).collect(), more, at: self.applied });
        }
        if !self.flushing && self.applied.index <= durable_log && self.applied.index.0 >= self.flushed.index.0 + self.flush_entries {
            self.flushing = true;
            let rows = std::mem::take(&mut self.dirty);
            out.push(ViewEffect::Store {
                request: 2,
                command: StoreCommand::Flush(Box::new(FlushBatch {
                    rows,
                    sessions: BTreeMap::new(),
                    idempotency: BTreeMap::new(),
                    session_floor: self.state.session_floor,
                    applied: self.applied,
                })),
            });
        }
    }
    pub fn stored(&mut self, now: Instant, request: u64, answer: StoreAnswer, out: &mut Vec<ViewEffect>) {
        let _ = (now, &out);
        match (request, answer) {
            (1, StoreAnswer::Rows(page)) => {
                self.loaded = true;
                for r in page.rows {
                    self.rows.insert(r.row.key, r);
                }
            }
            (2, StoreAnswer::Flushed { durable }) => {
                self.flushing = false;
                self.flushed = durable;
            }
            (_, _) => {}
        }
    }
    pub fn reset(&mut self, _state: ViewState) {}
    pub fn next_deadline(&self) -> Option<Instant> {
        None
    }
}
