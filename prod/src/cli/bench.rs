//! `twinshard bench`: the course's analysis against a running cluster, and the proof that every acknowledged row is there.

use super::{
    Failure,
    access::Target,
    client::ClientError,
    load::{Plan, ReadBack, WriteRecord, micros, read_back},
    topology::{self, Run},
};
use clap::Args;
use hdrhistogram::Histogram;
use http::Method;
use indicatif::{ProgressBar, ProgressStyle};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// Longer than any request's deadline, so that an answer past its deadline is seen as what it is.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// /init waits for servers to start.
const INIT_TIMEOUT: Duration = Duration::from_secs(125);

/// Measures throughput and latency as the course does, then reads everything back.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  twinshard bench --url http://127.0.0.1:5000 --run a1
  twinshard bench --run a2 --workers 50 --json

a1: 6 servers, 4 shards, 3 replicas.  a2: 7 servers, 4 shards, 7 replicas.  a3: 10 servers, 6 shards, 8 replicas.
A cluster that is not initialised is initialised with the topology of the run; one that is, is used as it is.
Exit code 0: no error and every acknowledged row is there. 1: otherwise. 2: usage.")]
pub struct Bench {
    #[command(flatten)]
    target: Target,
    /// Which analysis
    #[arg(long, value_enum)]
    run: Run,
    /// How many requests are under way at once
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    workers: u32,
    /// How many writes, and then how many reads
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    requests: u64,
    /// Seeds the keys
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Method, path, body, key and value of the request of that number.
type MakeRequest = fn(&Plan, u64, &mut ChaCha8Rng) -> (Method, &'static str, Value, i64, u64);

/// What came of one phase.
#[derive(Debug, Serialize)]
struct Phase {
    requests: u64,
    errors: u64,
    seconds: f64,
    per_second: f64,
    latency_ms: Latency,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    error_kinds: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize)]
struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    run: &'static str,
    workers: u32,
    writes_per_second: f64,
    reads_per_second: f64,
    writes: Phase,
    reads: Phase,
    read_back: ReadBack,
    requests_per_server: BTreeMap<String, u64>,
}

impl Bench {
    /// Runs it.
    ///
    /// # Errors
    /// If the cluster cannot be reached or initialised, if there were errors, or if a row is missing.
    pub async fn run(self) -> Result<(), Failure> {
        let mut client = self.target.client(INIT_TIMEOUT)?;
        let (_, mut status) = client.json(Method::GET, "/status", None).await?;
        if status["schema"].is_null() {
            let (code, answer) = client.json(Method::POST, "/init", Some(&topology::init(self.run))).await?;
            if !code.is_success() {
                return Err(Failure::new(format!("/init answered {code}: {answer}")));
            }
            (_, status) = client.json(Method::GET, "/status", None).await?;
        }
        let plan = Arc::new(Plan::new(&status)?);
        let before = requests_per_server(&status);

        let (writes, records) = self.writes(&plan).await?;
        let reads = self.reads(&plan).await?;
        let read_back = read_back(&mut client, &plan, &records).await?;
        let (_, status) = client.json(Method::GET, "/status", None).await?;
        let mut requests_per_server = requests_per_server(&status);
        for (name, count) in &mut requests_per_server {
            *count = count.saturating_sub(before.get(name).copied().unwrap_or(0));
        }

        let fine = writes.errors == 0 && reads.errors == 0 && read_back.missing == 0 && read_back.wrong == 0;
        let report = Report {
            run: self.run.name(),
            workers: self.workers,
            writes_per_second: writes.per_second,
            reads_per_second: reads.per_second,
            writes,
            reads,
            read_back,
            requests_per_server,
        };
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report).map_err(ClientError::from)?);
        } else {
            report.print();
        }
        if fine { Ok(()) } else { Err(Failure::new("there were errors, or an acknowledged row is not there")) }
    }

    async fn writes(&self, plan: &Arc<Plan>) -> Result<(Phase, Vec<WriteRecord>), Failure> {
        self.phase("writes", plan, |plan, number, random| {
            let key = plan.key(random.next_u64());
            // The number is the value, so that every write is told apart.
            let row = plan.row(key, number);
            (Method::POST, "/write", json!({ "data": [row] }), key, number)
        })
        .await
    }

    async fn reads(&self, plan: &Arc<Plan>) -> Result<Phase, Failure> {
        let phase = self.phase("reads", plan, |plan, _, random| {
            let low = plan.key(random.next_u64());
            let mut range = serde_json::Map::new();
            range.insert(plan.key_name.clone(), json!({ "low": low, "high": low + 49 }));
            (Method::POST, "/read", Value::Object(range), low, 0)
        });
        Ok(phase.await?.0)
    }

    async fn phase(&self, what: &'static str, plan: &Arc<Plan>, make: MakeRequest) -> Result<(Phase, Vec<WriteRecord>), Failure> {
        let bar = if self.json { ProgressBar::hidden() } else { ProgressBar::new(self.requests) };
        if let Ok(style) = ProgressStyle::with_template("{msg:6} {bar:40} {pos}/{len} {per_sec} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(what);
        let next = Arc::new(AtomicU64::new(0));
        let began = Instant::now();
        let mut workers = JoinSet::new();
        for worker in 0..self.workers {
            let mut client = self.target.client(REQUEST_TIMEOUT)?;
            let (plan, next, bar) = (Arc::clone(plan), Arc::clone(&next), bar.clone());
            let (requests, seed) = (self.requests, self.seed);
            workers.spawn(async move {
                let mut tally = Tally::new();
                let mut random = ChaCha8Rng::seed_from_u64(seed ^ (u64::from(worker) << 32) ^ what.len() as u64);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= requests {
                        return tally;
                    }
                    let (method, path, body, key, value) = make(&plan, number + 1, &mut random);
                    let called = began.elapsed();
                    let result = client.send(method, path, Some(body.to_string().into_bytes())).await;
                    let returned = began.elapsed();
                    tally.record(result, WriteRecord { key, value, called: micros(called), returned: None }, micros(returned));
                    bar.inc(1);
                }
            });
        }
        let mut total = Tally::new();
        while let Some(tally) = workers.join_next().await {
            total.add(tally.map_err(|error| Failure::new(format!("a worker failed: {error}")))?);
        }
        let seconds = began.elapsed().as_secs_f64();
        bar.finish_and_clear();
        Ok(total.finish(self.requests, seconds))
    }
}

/// What one worker saw.
struct Tally {
    latency: Histogram<u64>,
    errors: BTreeMap<String, u64>,
    records: Vec<WriteRecord>,
}

impl Tally {
    fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, 60_000_000, 3).unwrap_or_else(|_| unreachable!("constant bounds are valid"));
        Self { latency, errors: BTreeMap::new(), records: Vec::new() }
    }

    fn record(&mut self, result: Result<super::client::Answer, ClientError>, mut record: WriteRecord, returned: u64) {
        self.latency.saturating_record(returned.saturating_sub(record.called).max(1));
        match result {
            Ok(answer) if answer.status.is_success() => {
                record.returned = Some(returned);
                self.records.push(record);
            }
            Ok(answer) => {
                let applied = answer.json().ok().and_then(|body| body["applied"].as_str().map(str::to_owned));
                // Only a clear "no" rules the write out.
                if applied.as_deref() != Some("no") {
                    self.records.push(record);
                }
                *self.errors.entry(format!("status {}", answer.status.as_u16())).or_default() += 1;
            }
            Err(error) => {
                if !matches!(error, ClientError::Connect { .. }) {
                    self.records.push(record);
                }
                *self.errors.entry(error.to_string()).or_default() += 1;
            }
        }
    }

    fn add(&mut self, other: Self) {
        // Both have the same bounds, so adding cannot fail.
        let _ = self.latency.add(&other.latency);
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        self.records.extend(other.records);
    }

    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    fn finish(self, requests: u64, seconds: f64) -> (Phase, Vec<WriteRecord>) {
        let at = |quantile: f64| self.latency.value_at_quantile(quantile) as f64 / 1_000.0;
        let errors = self.errors.values().sum();
        let phase = Phase {
            requests,
            errors,
            seconds,
            per_second: (requests - errors) as f64 / seconds,
            latency_ms: Latency { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: self.latency.max() as f64 / 1_000.0 },
            error_kinds: self.errors,
        };
        (phase, self.records)
    }
}

/// How many requests each server was sent, as the balancer counts.
fn requests_per_server(status: &Value) -> BTreeMap<String, u64> {
    let servers = status["health"].as_object();
    servers.into_iter().flatten().map(|(name, server)| (name.clone(), server["requests"].as_u64().unwrap_or(0))).collect()
}

impl Report {
    fn print(&self) {
        println!("run {}, {} workers", self.run, self.workers);
        println!();
        println!("          per second   requests  errors   p50 ms   p90 ms   p99 ms  p99.9 ms   max ms");
        for (name, phase) in [("writes", &self.writes), ("reads", &self.reads)] {
            let Latency { p50, p90, p99, p999, max } = phase.latency_ms;
            println!(
                "{name:8} {:>11.0} {:>10} {:>7} {p50:>8.2} {p90:>8.2} {p99:>8.2} {p999:>9.2} {max:>8.2}",
                phase.per_second, phase.requests, phase.errors
            );
            for (kind, count) in &phase.error_kinds {
                println!("         {count} x {kind}");
            }
        }
        println!();
        if !self.requests_per_server.is_empty() {
            println!("requests per server");
            let most = self.requests_per_server.values().copied().max().unwrap_or(0).max(1);
            for (name, count) in &self.requests_per_server {
                let bar = "#".repeat(usize::try_from(count * 40 / most).unwrap_or(0));
                println!("  {name:20} {count:>8} {bar}");
            }
            println!();
        }
        let ReadBack { acknowledged_keys, missing, wrong } = self.read_back;
        if missing == 0 && wrong == 0 {
            println!("read back: every acknowledged row is there ({acknowledged_keys} keys)");
        } else {
            println!("read back: of {acknowledged_keys} acknowledged keys, {missing} are MISSING and {wrong} hold a WRONG value");
        }
    }
}
