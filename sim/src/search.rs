//! Many seeds: runs them on a few threads, adds up what happened, and shrinks the first that fails. The result depends on the seeds
//! alone, never on the number of threads.

use crate::{
    explorer::{self, coverage::Coverage, invariants::Violation, world::RunResult},
    minimize, panics,
    plan::Plan,
    swarm,
    trace::TraceHash,
};
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};
use twinshard_core::{
    planted::Planted,
    time::{Duration, Instant},
};
use twinshard_scenarios::checker;

/// What is searched.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    /// The first seed.
    pub start: u64,
    /// How many seeds.
    pub count: u64,
    /// On how many threads.
    pub jobs: usize,
    /// The bug planted.
    pub planted: Planted,
    /// Whether to go on after a failure.
    pub keeps_going: bool,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Seeds that were played.
    pub seeds: u64,
    /// Steps of machines.
    pub events: u64,
    /// Entries of all counts.
    pub coverage: Coverage,
    /// The hashes of all traces, in the order of the seeds, folded.
    pub hash: TraceHash,
    /// The longest time that a cluster took to come back, and the seed.
    pub slowest: Option<(Duration, u64)>,
    /// The seeds that failed, the lowest first; only that one unless the search keeps going.
    pub failures: Vec<(u64, Violation, Instant)>,
}

/// Plays one plan, checks its history too, and keeps panics quiet.
#[must_use]
pub fn play(plan: &Plan) -> RunResult {
    let _quiet = panics::Watch::begin();
    judge(explorer::run(plan))
}

/// The same, with the trace as text.
#[must_use]
pub fn play_with_text(plan: &Plan) -> RunResult {
    let _quiet = panics::Watch::begin();
    judge(explorer::run_with_text(plan))
}

/// Judges the history of a run that broke nothing else.
fn judge(mut result: RunResult) -> RunResult {
    if result.violation.is_none() {
        let verdict = checker::check(&result.history);
        if let Some(found) = verdict.violations.first() {
            result.violation = Some(Violation { rule: found.check.name(), text: found.to_string() });
        } else if !verdict.is_ok() {
            result.violation = Some(Violation { rule: "history", text: format!("{:?}", verdict.checked) });
        }
    }
    result
}

/// Plays the seeds. Stops at the lowest that fails.
#[must_use]
pub fn search(search: Search, progress: impl Fn(u64) + Sync) -> Found {
    let next = AtomicU64::new(search.start);
    let end = AtomicU64::new(search.start + search.count);
    let found: Mutex<Vec<(u64, RunResult)>> = Mutex::new(Vec::new());
    let total: Mutex<Found> = Mutex::new(Found::default());
    std::thread::scope(|scope| {
        for _ in 0..search.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end.load(Ordering::Relaxed) {
                        break;
                    }
                    let mut result = play(&swarm::plan(seed, search.planted));
                    result.history = Default::default();
                    if result.violation.is_some() && !search.keeps_going {
                        // Seeds below this one are still to be played; those above no longer matter.
                        end.fetch_min(seed + 1, Ordering::Relaxed);
                    }
                    found.lock().unwrap_or_else(PoisonError::into_inner).push((seed, result));
                    progress(seed);
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by_key(|(seed, _)| *seed);
    let mut total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (seed, result) in found {
        total.add(seed, &result);
        if let Some(violation) = result.violation {
            total.failures.push((seed, violation, result.ended_at));
            if !search.keeps_going {
                break;
            }
        }
    }
    total
}

impl Found {
    fn add(&mut self, seed: u64, result: &RunResult) {
        self.seeds += 1;
        self.events += result.events;
        self.coverage.merge(&result.coverage);
        self.hash = TraceHash(crate::keyed::fold(self.hash.0, result.hash.0));
        if let Some(took) = result.healed_after
            && self.slowest.is_none_or(|(slowest, _)| took > slowest)
        {
            self.slowest = Some((took, seed));
        }
    }
}

/// Shrinks a plan that breaks a rule to a small one that breaks the same rule.
#[must_use]
pub fn shrink(plan: &Plan, rule: &str) -> (Plan, u32) {
    minimize::shrink(plan, |plan| play(plan).violation.is_some_and(|violation| violation.rule == rule))
}
