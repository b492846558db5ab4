//! How a report looks. At most [`WIDTH`] columns, plain ASCII.

use super::{Report, Row};
use crate::{
    checker::Check,
    history::Kind,
    scenario::KeyChoice,
    timeline::{Section, span},
};
use core::fmt::{self, Write};

/// The widest line, in characters.
pub(super) const WIDTH: usize = 100;
/// The most failures of one check of the world that are told.
const FAILURES_MAX: usize = 5;

/// A number with commas: `12,345`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Writes words, breaking lines; the first line goes on where the caller stopped, after `indent` characters.
fn wrapped(f: &mut fmt::Formatter<'_>, indent: usize, text: &str) -> fmt::Result {
    let mut at = indent;
    let mut first = true;
    for word in text.split_whitespace() {
        if !first && at + 1 + word.len() > WIDTH {
            write!(f, "\n{:indent$}", "")?;
            at = indent;
        } else if !first {
            f.write_char(' ')?;
            at += 1;
        }
        f.write_str(word)?;
        at += word.len();
        first = false;
    }
    f.write_char('\n')
}

fn heading(f: &mut fmt::Formatter<'_>, title: &str) -> fmt::Result {
    let dashes = "-".repeat(WIDTH - title.len() - 1);
    write!(f, "\n{title} {dashes}\n")
}

fn mark(ok: bool) -> &'static str {
    if ok { "ok  " } else { "FAIL" }
}

pub(super) fn render(report: &Report, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let run = &report.run;
    let word = if report.is_ok() { "PASS" } else { "FAIL" };
    let right = format!("{}, seed {}", run.engine, run.seed);
    let gap = WIDTH.saturating_sub(word.len() + 2 + run.scenario.name.len() + right.len()).max(2);
    writeln!(f, "{word}  {}{:gap$}{right}", run.scenario.name, "")?;
    writeln!(f, "{}", "=".repeat(WIDTH))?;
    wrapped(f, 0, &run.scenario.story)?;
    let complaints = report.complaints();
    for complaint in complaints.iter().take(10) {
        f.write_str("  ! ")?;
        wrapped(f, 4, complaint)?;
    }
    if complaints.len() > 10 {
        writeln!(f, "  ! {} more", complaints.len() - 10)?;
    }
    cluster(report, f)?;
    timeline(report, f)?;
    operations(report, f)?;
    outages(report, f)?;
    checks(report, f)?;
    if !report.expected.is_empty() {
        heading(f, "Expectations")?;
        for expected in &report.expected {
            write!(f, "  {}  ", mark(expected.met))?;
            wrapped(f, 8, &expected.text)?;
        }
    }
    violations(report, f)?;
    if !run.reproduce.is_empty() {
        writeln!(f, "\nPlay it again: {}", run.reproduce)?;
    }
    Ok(())
}

fn cluster(report: &Report, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let scenario = &report.run.scenario;
    let topology = &scenario.topology;
    heading(f, "Cluster")?;
    let plural = |count: u32, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    writeln!(f, "  {}, {}", plural(topology.servers, "server"), plural(topology.balancers, "balancer"))?;
    let name_width = topology.shards.iter().map(|shard| shard.name.len()).max().unwrap_or(0);
    let keys = |low: i64, size: i64| format!("{low}..{}", low + size - 1);
    let keys_width = topology.shards.iter().map(|shard| keys(shard.low, shard.size).len()).max().unwrap_or(0);
    for (place, shard) in topology.shards.iter().enumerate() {
        let servers = scenario.servers_of(place);
        let quorum = topology.write_quorum.unwrap_or_else(|| twinshard_core::config::majority(servers.len()));
        let start = format!("  {:name_width$}  {:keys_width$}  ", shard.name, keys(shard.low, shard.size));
        f.write_str(&start)?;
        wrapped(f, start.len(), &format!("{} of {} must have a write: {}", quorum, servers.len(), servers.join(", ")))?;
    }
    let load = &scenario.workload;
    let pace = match (load.rate_per_s, load.think_ms) {
        (Some(rate), _) => format!("{} operations a second", grouped(rate)),
        (None, Some(think)) => format!("each thinking {think} ms after an answer"),
        (None, None) => String::new(),
    };
    let choice = match load.key_choice {
        KeyChoice::Uniform => "uniform",
        KeyChoice::Zipf => "Zipf",
        KeyChoice::Sequential => "sequential",
    };
    let clients = plural(load.clients, "client");
    let duration = span(load.duration_ms * 1_000_000);
    let keys = plural(load.keys_per_shard, "key");
    f.write_str("  ")?;
    wrapped(f, 2, &format!("load: {clients}, {pace}, for {duration}; {keys} of each shard, {choice}"))
}

/// A time of the run, from the start of the load.
fn clock(report: &Report, at_ns: u64) -> String {
    let ms = at_ns.saturating_sub(report.run.load_from_ns) / 1_000_000;
    format!("{}.{:03} s", ms / 1_000, ms % 1_000)
}

fn timeline(report: &Report, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    heading(f, "Timeline")?;
    for Section { at_ns, title, lines, more_count } in &report.sections {
        write!(f, "  {:>9}  ", clock(report, *at_ns))?;
        wrapped(f, 13, title)?;
        for (line_ns, text) in lines {
            if *line_ns == u64::MAX {
                if *more_count > 0 {
                    writeln!(f, "{:13}{:>10}  and {more_count} more", "", "")?;
                }
                write!(f, "{:13}{:>10}  ", "", "=")?;
            } else {
                write!(f, "{:13}{:>10}  ", "", format!("+{}", span(line_ns.saturating_sub(*at_ns))))?;
            }
            wrapped(f, 25, text)?;
        }
        if *more_count > 0 && lines.last().is_none_or(|(line_ns, _)| *line_ns != u64::MAX) {
            writeln!(f, "{:13}{:>10}  and {more_count} more", "", "")?;
        }
    }
    writeln!(f, "  {:>9}  the run ends", clock(report, report.run.ended_ns))
}

fn operations(report: &Report, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    heading(f, "Operations")?;
    writeln!(
        f,
        "  {:<14}{:>9}{:>9}{:>8}{:>9}{:>9}{:>10}{:>10}{:>10}{:>10}",
        "", "done", "refused", "failed", "partial", "unknown", "p50", "p90", "p99", "max"
    )?;
    let line = |f: &mut fmt::Formatter<'_>, name: &str, row: &Row| {
        let [done, refused, failed, partial, unknown] = [row.done, row.refused, row.failed, row.partial, row.unknown]
            .map(|count| if count == 0 { "-".to_owned() } else { grouped(count) });
        write!(f, "  {name:<14}{done:>9}{refused:>9}{failed:>8}{partial:>9}{unknown:>9}")?;
        let times = if row.latency.is_empty() {
            ["-".to_owned(), "-".to_owned(), "-".to_owned(), "-".to_owned()]
        } else {
            let at = |quantile| span(row.latency.value_at_quantile(quantile) * 1_000);
            [at(0.5), at(0.9), at(0.99), span(row.latency.max() * 1_000)]
        };
        let [p50, p90, p99, max] = times;
        writeln!(f, "{p50:>10}{p90:>10}{p99:>10}{max:>10}")
    };
    for kind in Kind::ALL {
        if let Some(row) = report.rows.get(&kind) {
            line(f, kind.name(), row)?;
        }
    }
    line(f, "all but admin", &report.total)
}

fn outages(report: &Report, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    heading(f, "Longest time without a write served")?;
    if report.outages.is_empty() {
        writeln!(f, "  nothing was written")?;
    }
    let width = report.outages.iter().map(|(shard, _)| report.run.names.shard(*shard).len()).max().unwrap_or(0);
    for (shard, outage) in &report.outages {
        writeln!(f, "  {:width$}  {:>8}  from {}", report.run.names.shard(*shard), span(outage.length_ns), clock(report, outage.from_ns))?;
    }
    Ok(())
}

fn checks(report: &Report, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    heading(f, "Checks")?;
    let width =
        report.run.world_checks.iter().map(|check| check.name.len()).chain(Check::ALL.map(|check| check.name().len())).max().unwrap_or(0);
    for checked in &report.verdict.checked {
        let counts: Vec<String> = checked.counts.iter().map(|(what, count)| format!("{} {what}", grouped(*count))).collect();
        write!(f, "  {}  {:width$}  ", mark(checked.violation_count == 0), checked.check.name())?;
        wrapped(f, width + 10, &counts.join(", "))?;
    }
    for check in &report.run.world_checks {
        write!(f, "  {}  {:width$}  ", mark(check.failures.is_empty()), check.name)?;
        wrapped(f, width + 10, &format!("{} {}", grouped(check.count), check.what))?;
    }
    Ok(())
}

fn violations(report: &Report, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if report.verdict.violations.is_empty() && report.run.world_checks.iter().all(|check| check.failures.is_empty()) {
        return Ok(());
    }
    heading(f, "What is wrong")?;
    writeln!(f, "  Times count from the start of the run; the load began at {}.", span(report.run.load_from_ns))?;
    for violation in &report.verdict.violations {
        f.write_str("  ")?;
        let shard = report.run.names.shard(violation.shard);
        wrapped(f, 2, &format!("{} of {shard}: {}", violation.check.name(), violation.summary))?;
        for step in &violation.steps {
            let indent = 4 + step.len() - step.trim_start().len();
            write!(f, "{:indent$}", "")?;
            wrapped(f, indent + 2, step)?;
        }
    }
    for check in &report.run.world_checks {
        for failure in check.failures.iter().take(FAILURES_MAX) {
            f.write_str("  ")?;
            wrapped(f, 4, &format!("{}: {failure}", check.name))?;
        }
        if check.failures.len() > FAILURES_MAX {
            writeln!(f, "  {}: {} more", check.name, check.failures.len() - FAILURES_MAX)?;
        }
    }
    Ok(())
}
