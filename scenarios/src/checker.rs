//! Judges a history. Black box: each shard is strictly serializable, each row linearizable. White box, as far as answers carry versions
//! and indexes: what was seen is what the log says. Never trusts one of these alone; a small exhaustive search is the oracle of both
//! black-box tests in the property tests.
//!
//! What holds for all: a write that was never answered returns at infinity and counts only if it was seen. An operation that is called
//! at the instant at which another returns is concurrent with it. That a key is there or not is read also by conditional writes, whether
//! they succeed or are refused. A read of a range is a read of every key in it. Which deletion made a row absent cannot be seen, so such
//! a read is held only to what all candidates have in common: no check ever cries wolf, and next to nothing escapes all three.

mod cycle;
mod explain;
mod log_order;
mod model;
#[cfg(test)]
mod tests;
mod versions;
pub mod wgl;
mod zone;

use crate::history::{Call, History, OperationId};
use core::fmt;
use std::collections::BTreeMap;
use twinshard_core::id::ShardId;

/// The most violations that one check tells of one shard. The rest is counted.
pub const VIOLATIONS_MAX: usize = 3;

/// One of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Check {
    /// What was read was written: by a command that may have happened, as its last word on the key, under one version.
    Integrity,
    /// Each shard is strictly serializable (cycle test; Kingsbury and Alvaro, "Elle", 2020).
    Serializability,
    /// Each row is linearizable (zone test; Gibbons and Korach, "Testing Shared Memories", 1997).
    Linearizability,
    /// Answers agree with the log order that their indexes claim (I4, I6).
    LogOrder,
}

impl Check {
    /// Every check, in the order of reports.
    pub const ALL: [Self; 4] = [Self::Integrity, Self::Serializability, Self::Linearizability, Self::LogOrder];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Integrity => "integrity",
            Self::Serializability => "strict serializability",
            Self::Linearizability => "linearizability per key",
            Self::LogOrder => "log order",
        }
    }
}

/// What is wrong, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which check found it.
    pub check: Check,
    /// In which shard.
    pub shard: ShardId,
    /// In one line.
    pub summary: String,
    /// The operations that show it and how they hang together, one a line.
    pub steps: Vec<String>,
    /// Those operations.
    pub operations: Vec<OperationId>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}: {}", self.check.name(), self.shard, self.summary)?;
        for step in &self.steps {
            write!(f, "\n  {step}")?;
        }
        Ok(())
    }
}

/// How much a check looked at, so that none can pass by doing nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Which.
    pub check: Check,
    /// What it looked at and how often.
    pub counts: Vec<(&'static str, u64)>,
    /// How many violations it found, those not told included.
    pub violation_count: u64,
}

/// What all checks say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What is wrong; at most [`VIOLATIONS_MAX`] of each check in each shard.
    pub violations: Vec<Violation>,
    /// What was looked at.
    pub checked: Vec<Checked>,
}

impl Verdict {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.checked.iter().all(|checked| checked.violation_count == 0)
    }

    /// How often a check looked at something; 0 for what it does not count.
    #[must_use]
    pub fn count(&self, check: Check, what: &str) -> u64 {
        self.checked
            .iter()
            .filter(|checked| checked.check == check)
            .flat_map(|checked| &checked.counts)
            .filter(|(name, _)| *name == what)
            .map(|(_, count)| *count)
            .sum()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, violation) in self.violations.iter().enumerate() {
            write!(f, "{}{violation}", if place > 0 { "\n" } else { "" })?;
        }
        if self.violations.is_empty() { f.write_str("no violation") } else { Ok(()) }
    }
}

/// What one check found in one shard.
#[derive(Debug, Default)]
struct Findings {
    violations: Vec<Violation>,
    violation_count: u64,
    counts: Vec<(&'static str, u64)>,
}

impl Findings {
    fn violation(&mut self, make: impl FnOnce() -> Violation) {
        self.violation_count += 1;
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(make());
        }
    }

    fn count(&mut self, what: &'static str, count: usize) {
        self.counts.push((what, count as u64));
    }
}

/// Judges a history by every check.
#[must_use]
pub fn check(history: &History) -> Verdict {
    let mut shards: BTreeMap<ShardId, Vec<&Call>> = BTreeMap::new();
    for call in &history.calls {
        shards.entry(call.shard).or_default().push(call);
    }
    let mut checked: BTreeMap<Check, Checked> =
        Check::ALL.into_iter().map(|check| (check, Checked { check, counts: Vec::new(), violation_count: 0 })).collect();
    let mut violations = Vec::new();
    let mut take = |check: Check, found: Findings| {
        let checked = checked.entry(check).or_insert_with(|| Checked { check, counts: Vec::new(), violation_count: 0 });
        checked.violation_count += found.violation_count;
        for (what, count) in found.counts {
            match checked.counts.iter_mut().find(|(name, _)| *name == what) {
                Some((_, sum)) => *sum += count,
                None => checked.counts.push((what, count)),
            }
        }
        violations.extend(found.violations);
    };
    for (shard, calls) in shards {
        let (model, found) = model::Model::build(shard, &calls);
        take(Check::Integrity, found);
        take(Check::Serializability, cycle::check(&model));
        take(Check::Linearizability, zone::check(&model));
        take(Check::LogOrder, log_order::check(&model));
    }
    Verdict { violations, checked: checked.into_values().collect() }
}
