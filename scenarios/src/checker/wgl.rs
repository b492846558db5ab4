//! An exhaustive search for an order that explains the history of one shard (Wing and Gong 1993, with Lowe's memory of what was tried,
//! 2017). Exponential in concurrency and bounded to 64 operations: the oracle of property tests, nothing else. It shares no code with
//! the other checks; it reads the history as it is.

use crate::history::{Action, Call, CommandOutcome, Effect, Level, OperationId};
use std::collections::{BTreeMap, BTreeSet};
use twinshard_core::value::Key;

/// The most operations it takes.
pub const OPERATIONS_MAX: usize = 64;

/// Where each write stands in the log. Given to the search, writes of one key must follow it.
pub type Order = BTreeMap<OperationId, u64>;

struct Search<'h> {
    calls: Vec<&'h Call>,
    order: &'h Order,
    /// Sets of linearized calls and state that led nowhere, as 128-bit Zobrist hashes.
    tried: BTreeSet<u128>,
    rows: BTreeMap<Key, u64>,
}

/// Whether some order of the calls of one shard explains all answers and real time. Session and stale reads are left out, and so are
/// commands that were not applied. No two calls may have the same operation.
///
/// # Panics
/// With more than [`OPERATIONS_MAX`] calls.
#[must_use]
pub fn is_strictly_serializable(calls: &[Call], order: &Order) -> bool {
    let calls: Vec<&Call> = calls
        .iter()
        .filter(|call| match &call.action {
            Action::Command { outcome, .. } => *outcome != CommandOutcome::NotApplied,
            Action::Read { level, .. } => *level == Level::Linearizable,
        })
        .collect();
    assert!(calls.len() <= OPERATIONS_MAX, "{} calls are too many", calls.len());
    Search { calls, order, tried: BTreeSet::new(), rows: BTreeMap::new() }.extend(0)
}

fn hash(parts: [u64; 3]) -> u128 {
    // SplitMix64 twice: a table of random numbers that needs no table.
    let mix = |mut word: u64| {
        word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    };
    let half = |salt: u64| parts.iter().fold(salt, |sum, part| mix(sum ^ mix(*part)));
    (u128::from(half(1)) << 64) | u128::from(half(2))
}

impl Search<'_> {
    fn extend(&mut self, done: u64) -> bool {
        let returned = |call: &Call| match &call.action {
            Action::Command { outcome: CommandOutcome::Unknown, .. } => u64::MAX,
            _ => call.returned.unwrap_or(u64::MAX),
        };
        let left = |place: &usize| done & (1 << place) == 0;
        let must_end = (0..self.calls.len()).filter(left).map(|place| returned(self.calls[place])).min().unwrap_or(u64::MAX);
        if must_end == u64::MAX {
            // What is left need not have happened.
            return true;
        }
        let state = self.rows.iter().fold(hash([0, done, 0]), |sum, (key, value)| sum ^ hash([1, key.0 as u64, *value]));
        if !self.tried.insert(state) {
            return false;
        }
        for place in (0..self.calls.len()).filter(left) {
            let call = self.calls[place];
            if call.called > must_end || self.waits_for_order(place, done) {
                continue;
            }
            let before = self.rows.clone();
            if self.apply(call) && self.extend(done | (1 << place)) {
                return true;
            }
            self.rows = before;
        }
        false
    }

    fn waits_for_order(&self, place: usize, done: u64) -> bool {
        let (Some(own), Action::Command { effects, .. }) = (self.order.get(&self.calls[place].operation), &self.calls[place].action) else {
            return false;
        };
        self.calls.iter().enumerate().any(|(other, call)| {
            done & (1 << other) == 0
                && self.order.get(&call.operation).is_some_and(|rank| rank < own)
                && match &call.action {
                    Action::Command { effects: others, .. } => others.iter().any(|(key, _)| effects.iter().any(|(own, _)| own == key)),
                    Action::Read { .. } => false,
                }
        })
    }

    /// Carries a call out; false if its answer would have been another.
    fn apply(&mut self, call: &Call) -> bool {
        match &call.action {
            Action::Read { range, rows, .. } => {
                let stand = self.rows.range(range.low..=range.high).map(|(key, value)| (*key, *value));
                stand.eq(rows.iter().map(|row| (row.key, row.value)))
            }
            Action::Command { outcome: CommandOutcome::Refused { existing, missing }, .. } => {
                existing.iter().all(|key| self.rows.contains_key(key)) && !missing.iter().any(|key| self.rows.contains_key(key))
            }
            Action::Command { effects, .. } => effects.iter().all(|(key, effect)| {
                let there = self.rows.contains_key(key);
                match *effect {
                    Effect::Put(value) => {
                        self.rows.insert(*key, value);
                        true
                    }
                    Effect::PutNew(value) => {
                        self.rows.insert(*key, value);
                        !there
                    }
                    Effect::PutIfAbsent(value) => {
                        self.rows.entry(*key).or_insert(value);
                        true
                    }
                    Effect::UpdateSet(value) => {
                        self.rows.insert(*key, value);
                        there
                    }
                    Effect::Delete(_) => {
                        self.rows.remove(key);
                        there
                    }
                    Effect::Keep => there,
                }
            }),
        }
    }
}
