//! The report of a run: text made for people, the same for every engine. The same run gives the same bytes: no wall time, no addresses,
//! no dates.

mod render;
#[cfg(test)]
mod tests;

use crate::{
    checker::{self, Verdict},
    history::{Asked, History, Kind, Told},
    scenario::Scenario,
    timeline::{Again, Deeds, Names, Outage, Service, span},
};
use core::fmt;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use twinshard_core::{effect::Note, id::ShardId};

/// A fault that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultEvent {
    /// Its place in [`Scenario::faults`].
    pub place: usize,
    /// When it began, in nanoseconds of the run.
    pub at_ns: u64,
    /// Whom it struck, by name: what its targets meant at that moment.
    pub struck: Vec<String>,
}

/// A request of the operator that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminEvent {
    /// Its place in [`Scenario::admin`].
    pub place: usize,
    /// When it was sent.
    pub at_ns: u64,
    /// When it was answered.
    pub answered_ns: Option<u64>,
    /// `done`, or the error in words.
    pub answer: String,
}

/// A check that the world itself made: invariants, convergence, liveness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorldCheck {
    /// Its name.
    pub name: String,
    /// What it looked at, in the plural: `steps`, `replicas compared`.
    pub what: String,
    /// How often.
    pub count: u64,
    /// What was wrong.
    pub failures: Vec<String>,
}

/// Everything that a world knows of a run.
#[derive(Clone, Debug)]
pub struct RunResult {
    /// What was played.
    pub scenario: Scenario,
    /// The engine: `explorer`, `turmoil`, `live`.
    pub engine: String,
    /// The seed.
    pub seed: u64,
    /// When the load began, in nanoseconds of the run: the scenario's times count from here.
    pub load_from_ns: u64,
    /// When the run ended.
    pub ended_ns: u64,
    /// What clients saw.
    pub history: History,
    /// Names, from every map of the run.
    pub names: Names,
    /// What machines told, by time.
    pub notes: Vec<(u64, Note)>,
    /// Faults that happened, by time.
    pub faults: Vec<FaultEvent>,
    /// What the operator asked, by time.
    pub admin: Vec<AdminEvent>,
    /// The world's own checks. Answers that no cluster may give (`RecordError`) are failures of one.
    pub world_checks: Vec<WorldCheck>,
    /// How to play it again: a command line.
    pub reproduce: String,
}

/// One line of the table of operations.
#[derive(Clone, Debug)]
struct Row {
    done: u64,
    refused: u64,
    failed: u64,
    partial: u64,
    unknown: u64,
    /// Microseconds of those that were done, in part at least, or refused.
    latency: Histogram<u64>,
}

impl Row {
    fn new() -> Self {
        // Up to two weeks, to three digits: bounds that are fine.
        let latency = Histogram::new_with_bounds(1, 1 << 40, 3).expect("good bounds");
        Self { done: 0, refused: 0, failed: 0, partial: 0, unknown: 0, latency }
    }

    fn add(&mut self, asked: &Asked) {
        match asked.told {
            Told::Done => self.done += 1,
            Told::Refused => self.refused += 1,
            Told::Failed => self.failed += 1,
            Told::Partial => self.partial += 1,
            Told::Unknown => self.unknown += 1,
        }
        if let (Told::Done | Told::Refused | Told::Partial, Some(answered)) = (asked.told, asked.answered) {
            self.latency.saturating_record((answered - asked.called) / 1_000);
        }
    }
}

/// An expectation and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Whether it came true.
    pub met: bool,
    /// What was expected and what was.
    pub text: String,
}

/// A judged run. Display renders it.
#[derive(Clone, Debug)]
pub struct Report {
    run: RunResult,
    verdict: Verdict,
    rows: BTreeMap<Kind, Row>,
    total: Row,
    outages: Vec<(ShardId, Outage)>,
    expected: Vec<Expected>,
    sections: Vec<crate::timeline::Section>,
}

impl Report {
    /// Judges a run.
    #[must_use]
    pub fn new(run: RunResult) -> Self {
        let verdict = checker::check(&run.history);
        let mut rows: BTreeMap<Kind, Row> = BTreeMap::new();
        let mut total = Row::new();
        for asked in &run.history.asked {
            rows.entry(asked.kind).or_insert_with(Row::new).add(asked);
            if asked.kind != Kind::Admin {
                total.add(asked);
            }
        }
        let service = Service::new(&run.history);
        let outages = service
            .shards()
            .filter_map(|shard| service.longest_outage(shard, run.load_from_ns, u64::MAX).map(|outage| (shard, outage)))
            .collect::<Vec<_>>();
        let expected = expectations(&run, &service, &total, &outages);
        let sections = crate::timeline::sections(&run, &service);
        Self { run, verdict, rows, total, outages, expected, sections }
    }

    /// Whether nothing is wrong and all came as expected.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.verdict.is_ok()
            && self.run.world_checks.iter().all(|check| check.failures.is_empty())
            && self.expected.iter().all(|expected| expected.met)
    }

    /// What the checks of the history said.
    #[must_use]
    pub const fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// What was expected.
    #[must_use]
    pub fn expected(&self) -> &[Expected] {
        &self.expected
    }

    /// The run.
    #[must_use]
    pub const fn run(&self) -> &RunResult {
        &self.run
    }

    /// What is wrong, one line each; empty if nothing is.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let violations = self.verdict.violations.iter().map(|violation| format!("{}: {}", violation.check.name(), violation.summary));
        let world =
            self.run.world_checks.iter().flat_map(|check| check.failures.iter().map(move |failure| format!("{}: {failure}", check.name)));
        let missed = self.expected.iter().filter(|expected| !expected.met).map(|expected| format!("expected {}", expected.text));
        violations.chain(world).chain(missed).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        render::render(self, f)
    }
}

fn expectations(run: &RunResult, service: &Service, total: &Row, outages: &[(ShardId, Outage)]) -> Vec<Expected> {
    let expect = &run.scenario.expect;
    let deeds = Deeds::new(&run.notes);
    let mut all = Vec::new();
    let mut add = |met: bool, text: String| all.push(Expected { met, text });
    if let Some(limit_ms) = expect.writes_again_within_ms {
        // The slowest shard after the slowest fault.
        let mut slowest: Option<(u64, ShardId)> = None;
        let mut never = None;
        let mut seen_count = 0;
        for fault in &run.faults {
            for shard in service.shards() {
                match service.after(shard, fault.at_ns) {
                    Again::At(at_ns) => {
                        seen_count += 1;
                        slowest = slowest.max(Some((at_ns - fault.at_ns, shard)));
                    }
                    Again::NotAsked => {}
                    Again::Never => never = Some(shard),
                }
            }
        }
        let was = match (never, slowest) {
            (Some(shard), _) => format!("{} never again", run.names.shard(shard)),
            (None, Some((took, shard))) => format!("{} ({})", span(took), run.names.shard(shard)),
            (None, None) => "no write was asked for after a fault".to_owned(),
        };
        let met = never.is_none() && seen_count > 0 && slowest.is_some_and(|(took, _)| took <= limit_ms * 1_000_000);
        add(met, format!("writes again within {limit_ms} ms of every fault: {was}"));
    }
    if let Some(limit_ms) = expect.longest_outage_ms {
        let worst = outages.iter().map(|(shard, outage)| (outage.length_ns, *shard)).max();
        let was = worst
            .map_or_else(|| "nothing was written".to_owned(), |(length, shard)| format!("{} ({})", span(length), run.names.shard(shard)));
        add(
            worst.is_some_and(|(length, _)| length <= limit_ms * 1_000_000),
            format!("no shard without writes for over {limit_ms} ms: {was}"),
        );
    }
    let worked = total.done + total.refused + total.partial;
    let min = |add: &mut dyn FnMut(bool, String), limit: Option<u64>, was: u64, what: &str| {
        if let Some(limit) = limit {
            add(was >= limit, format!("at least {} {what}: {}", render::grouped(limit), render::grouped(was)));
        }
    };
    let max = |add: &mut dyn FnMut(bool, String), limit: Option<u64>, was: u64, what: &str| {
        if let Some(limit) = limit {
            add(was <= limit, format!("at most {} {what}: {}", render::grouped(limit), render::grouped(was)));
        }
    };
    min(&mut add, expect.operations_min, worked, "operations that worked");
    min(&mut add, expect.rate_min_per_s, worked * 1_000 / run.scenario.workload.duration_ms.max(1), "operations a second");
    max(&mut add, expect.unknown_max, total.unknown, "unknown outcomes");
    max(&mut add, expect.failed_max, total.failed, "operations that failed");
    min(&mut add, expect.failovers_min, deeds.failover_count, "new configurations");
    max(&mut add, expect.failovers_max, deeds.failover_count, "new configurations");
    min(&mut add, expect.respawns_min, deeds.respawn_count, "respawns");
    min(&mut add, expect.provision_failures_min, deeds.provision_failure_count, "starts that failed");
    min(&mut add, expect.lost_replicas_min, deeds.lost_count, "replicas lost and noticed");
    if let Some(limit) = expect.members_min {
        let fewest = deeds.members.iter().map(|(shard, count)| (*count, *shard)).min();
        let was =
            fewest.map_or_else(|| "no configuration was told".to_owned(), |(count, shard)| format!("{count} ({})", run.names.shard(shard)));
        add(fewest.is_some_and(|(count, _)| count >= limit), format!("at least {limit} members of every shard in the end: {was}"));
    }
    if let Some(limit_ms) = expect.p99_max_ms {
        let p99_us = total.latency.value_at_quantile(0.99);
        add(p99_us <= limit_ms * 1_000, format!("99 of 100 within {limit_ms} ms: {}", span(p99_us * 1_000)));
    }
    // Whatever the scenario asks for has to have happened: no run passes by doing nothing.
    let mix = &run.scenario.workload.mix;
    let writes: u32 = [mix.write, mix.insert, mix.skip, mix.batch, mix.mixed_batch, mix.update, mix.delete].iter().sum();
    let reads: u32 = [mix.read, mix.range_read, mix.session_read, mix.stale_read].iter().sum();
    for (weight, is_write, what) in [(writes, true, "writes"), (reads, false, "reads")] {
        let served = |asked: &&Asked| {
            asked.kind != Kind::Admin
                && asked.kind.is_write() == is_write
                && matches!(asked.told, Told::Done | Told::Refused | Told::Partial)
        };
        let count = run.history.asked.iter().filter(served).count() as u64;
        if weight > 0 {
            add(count > 0, format!("some {what} served: {}", render::grouped(count)));
        }
    }
    let faults = (run.faults.len(), run.scenario.faults.len());
    if faults.1 > 0 {
        add(faults.0 == faults.1, format!("{} of {} faults happened", faults.0, faults.1));
    }
    let steps = (run.admin.iter().filter(|step| step.answered_ns.is_some() && step.answer == "done").count(), run.scenario.admin.len());
    if steps.1 > 0 {
        add(steps.0 == steps.1, format!("{} of {} requests of the operator done", steps.0, steps.1));
    }
    all
}
