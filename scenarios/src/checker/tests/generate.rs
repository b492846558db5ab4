//! Small random histories of one shard: a store that works, or one with a bug, and clients that overlap.

use crate::{
    checker::wgl::Order,
    history::{Action, Call, CommandOutcome, Effect, Level, OperationId, SeenRow, TOMBSTONE_MIN},
    workload::{below, stream},
};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use twinshard_core::{
    id::{Epoch, LogIndex, Position, ShardId},
    value::{Key, KeyRange},
};

/// What a store does wrong, once or now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    None,
    StaleRead,
    LostUpdate,
    HalfBatch,
    AppliedTwice,
    TornRange,
    WrongRow,
    MissingRow,
    FalseRefusal,
    WrongTime,
}

pub(super) const FLAWS: [Flaw; 9] = [
    Flaw::StaleRead,
    Flaw::LostUpdate,
    Flaw::HalfBatch,
    Flaw::AppliedTwice,
    Flaw::TornRange,
    Flaw::WrongRow,
    Flaw::MissingRow,
    Flaw::FalseRefusal,
    Flaw::WrongTime,
];

/// What clients do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) operations: u64,
    pub(super) keys: u64,
    /// Batches and ranges too.
    pub(super) many: bool,
    /// Deletions, conditions and unknown outcomes too: absences whose origin cannot be seen.
    pub(super) ambiguous: bool,
    /// Session and stale reads too.
    pub(super) weak: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stored {
    value: u64,
    index: u64,
}

type State = BTreeMap<Key, Stored>;

struct Draft {
    id: u64,
    client: u32,
    called: u64,
    returned: u64,
    /// When it takes effect; `None` for never.
    point: Option<(u64, u64)>,
    unknown: bool,
    what: What,
}

enum What {
    Command(Vec<(Key, Effect)>),
    Read(KeyRange, Weak),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Weak {
    No,
    Session,
    Stale,
}

pub(super) fn position(index: u64) -> Position {
    Position { epoch: Epoch(1 + index / 4), index: LogIndex(index) }
}

/// A history and the log order of its commands, as far as answers tell it.
pub(super) fn generate(seed: u64, shape: Shape, flaw: Flaw) -> (Vec<Call>, Order) {
    let rng = &mut stream(seed, "checker histories", 0);
    let mut drafts: Vec<Draft> = (0..shape.operations).map(|id| draft(rng, id, shape)).collect();
    drafts.sort_by_key(|draft| draft.point.unwrap_or((u64::MAX, draft.id)));
    run(rng, &drafts, flaw)
}

fn draft(rng: &mut ChaCha8Rng, id: u64, shape: Shape) -> Draft {
    const SPAN: u64 = 24;
    let called = below(rng, SPAN);
    let returned = called + below(rng, 7);
    let key = |rng: &mut ChaCha8Rng| Key(below(rng, shape.keys) as i64);
    let is_read = below(rng, 2) == 0;
    let what = if is_read {
        let low = key(rng);
        let high = if shape.many { Key(low.0 + below(rng, shape.keys) as i64) } else { low };
        let weak = match below(rng, 6) {
            0 if shape.weak => Weak::Session,
            1 if shape.weak => Weak::Stale,
            _ => Weak::No,
        };
        What::Read(KeyRange { low, high }, weak)
    } else {
        let count = if shape.many { 1 + below(rng, 3) } else { 1 };
        let effects = (0..count)
            .map(|nth| {
                let value = 1 + id * 4 + nth;
                let effect = match below(rng, 12) {
                    0..3 if shape.ambiguous => Effect::Delete(TOMBSTONE_MIN + value),
                    3 if shape.ambiguous => Effect::PutNew(value),
                    4 if shape.ambiguous => Effect::UpdateSet(value),
                    5 if shape.ambiguous && count == 1 => Effect::PutIfAbsent(value),
                    _ => Effect::Put(value),
                };
                (key(rng), effect)
            })
            .collect();
        What::Command(effects)
    };
    let unknown = !is_read && shape.ambiguous && below(rng, 6) == 0;
    let point = match (unknown, below(rng, 3)) {
        (true, 0) => None,
        (true, _) => Some(called + below(rng, SPAN)),
        (false, _) => Some(called + below(rng, returned - called + 1)),
    };
    let tie = below(rng, 1 << 40);
    Draft { id, client: below(rng, 3) as u32, called, returned, point: point.map(|point| (point, tie)), unknown, what }
}

/// What a command does to the rows: all of it, or the keys that forbid it.
fn apply(state: &mut State, effects: &[(Key, Effect)], index: u64) -> Result<(), (Vec<Key>, Vec<Key>)> {
    let mut rows = state.clone();
    let (mut existing, mut missing) = (Vec::new(), Vec::new());
    let mut is_refused = false;
    for (key, effect) in effects {
        let there = rows.contains_key(key);
        // What the command itself did to the key says nothing of the time before it.
        let once = effects.iter().filter(|(other, _)| other == key).count() == 1;
        match *effect {
            Effect::PutNew(_) if there => {
                is_refused = true;
                existing.extend(once.then_some(*key));
            }
            Effect::UpdateSet(_) | Effect::Delete(_) if !there => {
                is_refused = true;
                missing.extend(once.then_some(*key));
            }
            Effect::PutIfAbsent(_) if there => {}
            Effect::Put(value) | Effect::PutNew(value) | Effect::PutIfAbsent(value) | Effect::UpdateSet(value) => {
                rows.insert(*key, Stored { value, index });
            }
            Effect::Delete(_) => {
                rows.remove(key);
            }
            Effect::Keep => {}
        }
    }
    if is_refused {
        return Err((existing, missing));
    }
    *state = rows;
    Ok(())
}

fn run(rng: &mut ChaCha8Rng, drafts: &[Draft], flaw: Flaw) -> (Vec<Call>, Order) {
    let mut state = State::new();
    // The state as of each index.
    let mut states = vec![state.clone()];
    let mut calls: Vec<Call> = Vec::new();
    let mut placed: BTreeMap<OperationId, u64> = BTreeMap::new();
    let mut written: Vec<(Key, Stored)> = Vec::new();
    let mut again: Option<Vec<(Key, Effect)>> = None;
    let mut reached: Vec<(u32, u64, u64)> = Vec::new();
    for draft in drafts {
        let strikes = flaw != Flaw::None && below(rng, 4) == 0;
        let index = states.len() as u64 - 1;
        let (mut called, mut returned) = (draft.called, draft.returned);
        if strikes && flaw == Flaw::WrongTime {
            called = below(rng, 30);
            returned = called + below(rng, 3);
        }
        let operation = OperationId(draft.id);
        let action = match &draft.what {
            What::Read(range, weak) => {
                let (level, mut at) = match weak {
                    Weak::No => (Level::Linearizable, index),
                    Weak::Session => {
                        let mine = reached.iter().filter(|(client, returned, _)| *client == draft.client && *returned < called);
                        let floor = mine.map(|(_, _, index)| *index).max().unwrap_or(0);
                        (Level::Session(LogIndex(floor)), floor + below(rng, index - floor + 1))
                    }
                    Weak::Stale => (Level::Stale, below(rng, index + 1)),
                };
                if strikes && flaw == Flaw::StaleRead {
                    at = below(rng, at + 1);
                }
                let rows_of = |at: u64| {
                    let rows = states[at as usize].range(range.low..=range.high);
                    rows.map(|(key, row)| SeenRow { key: *key, value: row.value, version: Some(position(row.index)), born: None })
                        .collect::<Vec<_>>()
                };
                // The newest state may have been changed behind the log's back by a flaw.
                let mut rows = if at == index {
                    let rows = state.range(range.low..=range.high);
                    rows.map(|(key, row)| SeenRow { key: *key, value: row.value, version: Some(position(row.index)), born: None }).collect()
                } else {
                    rows_of(at)
                };
                match flaw {
                    Flaw::TornRange if strikes => {
                        let middle = Key((range.low.0 + range.high.0) / 2);
                        let old = rows_of(below(rng, at + 1));
                        rows = old
                            .into_iter()
                            .filter(|row| row.key <= middle)
                            .chain(rows.into_iter().filter(|row| row.key > middle))
                            .collect();
                    }
                    Flaw::WrongRow if strikes => {
                        for row in &mut rows {
                            let others: Vec<_> = written.iter().filter(|(key, _)| *key == row.key).collect();
                            let (_, other) = others[below(rng, others.len() as u64) as usize];
                            (row.value, row.version) = (other.value, Some(position(other.index)));
                        }
                    }
                    Flaw::MissingRow if strikes => {
                        rows.pop();
                    }
                    _ => {}
                }
                if *weak != Weak::Stale {
                    reached.push((draft.client, returned, at));
                }
                Action::Read { range: *range, rows, at: Some(LogIndex(at)), level }
            }
            What::Command(effects) => {
                let mut outcome = CommandOutcome::Unknown;
                if draft.point.is_some() {
                    let mut new = state.clone();
                    let next = index + 1;
                    let result = apply(&mut new, effects, next);
                    outcome = match result {
                        Err((existing, missing)) => CommandOutcome::Refused { existing, missing },
                        Ok(()) => {
                            for (key, row) in &new {
                                if row.index == next {
                                    written.push((*key, *row));
                                }
                            }
                            match flaw {
                                Flaw::LostUpdate if strikes => {}
                                Flaw::HalfBatch if strikes => {
                                    let half: Vec<_> = effects.iter().take(effects.len() / 2).copied().collect();
                                    // Cannot be refused: the whole was not.
                                    if apply(&mut state, &half, next).is_err() {
                                        state = new;
                                    }
                                }
                                Flaw::AppliedTwice if strikes => {
                                    state = new;
                                    if let Some(again) = again.replace(effects.clone()) {
                                        let old = placed.values().copied().max().unwrap_or(0);
                                        // A refusal of the second application changes nothing.
                                        let _ = apply(&mut state, &again, old);
                                    }
                                }
                                _ => state = new,
                            }
                            placed.insert(operation, next);
                            states.push(state.clone());
                            reached.push((draft.client, if draft.unknown { u64::MAX } else { returned }, next));
                            CommandOutcome::Acknowledged { position: Some(position(next)) }
                        }
                    };
                    if strikes && flaw == Flaw::FalseRefusal && effects.len() == 1 {
                        let (key, effect) = effects[0];
                        outcome = match effect {
                            Effect::PutNew(_) => CommandOutcome::Refused { existing: vec![key], missing: vec![] },
                            Effect::UpdateSet(_) | Effect::Delete(_) => CommandOutcome::Refused { existing: vec![], missing: vec![key] },
                            _ => outcome,
                        };
                    }
                }
                if draft.unknown {
                    outcome = CommandOutcome::Unknown;
                }
                Action::Command { effects: effects.clone(), outcome }
            }
        };
        let returned = (!draft.unknown).then_some(returned);
        calls.push(Call { operation, client: draft.client, called, returned, shard: ShardId(1), action });
    }
    let order = told_order(&calls, &placed);
    (calls, order)
}

/// The places in the log that answers tell: of acknowledged commands, and of those whose rows were seen.
fn told_order(calls: &[Call], placed: &BTreeMap<OperationId, u64>) -> Order {
    let seen: Vec<u64> = calls
        .iter()
        .filter_map(|call| match &call.action {
            Action::Read { rows, .. } => Some(rows.iter().map(|row| row.value)),
            Action::Command { .. } => None,
        })
        .flatten()
        .collect();
    let told = |call: &&Call| match &call.action {
        Action::Command { outcome: CommandOutcome::Acknowledged { .. }, .. } => true,
        Action::Command { effects, .. } => effects.iter().any(|(_, effect)| effect.value().is_some_and(|value| seen.contains(&value))),
        Action::Read { .. } => false,
    };
    calls.iter().filter(told).filter_map(|call| placed.get(&call.operation).map(|index| (call.operation, *index))).collect()
}
