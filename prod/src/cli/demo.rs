//! `twinshard demo`: the default cluster, a load, a `kill -9` of a primary in the middle, and what came of it.

use super::{
    Failure,
    client::Client,
    load::{Plan, WriteRecord, micros, read_back},
    nodes::PolicyArg,
    topology,
    up::LocalCluster,
};
use crate::provision::process::Signal;
use clap::Args;
use http::Method;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use serde_json::{Value, json};
use std::{
    net::Ipv4Addr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{task::JoinSet, time::sleep};
use twinshard_core::id::ServerId;

/// How many writers there are.
const WRITERS: u64 = 8;
/// How long writes go on before the kill.
const BEFORE: Duration = Duration::from_secs(3);
/// How long writes go on after it.
const AFTER: Duration = Duration::from_secs(7);
/// How often /status is asked while waiting for something.
const POLL: Duration = Duration::from_millis(50);
/// How long the killed server may take to be back.
const BACK_TIMEOUT: Duration = Duration::from_secs(30);
/// Longer than any deadline of the balancer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Starts a cluster of its own, loads it, kills a primary with SIGKILL in the middle, and reports.
#[derive(Debug, Args)]
pub struct Demo {
    /// Where its cluster lives; must not exist yet, and is deleted at the end
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Demo {
    /// Runs it.
    ///
    /// # Errors
    /// If the cluster cannot be started or anything was lost.
    pub async fn run(self) -> Result<(), Failure> {
        let dir = self.dir.unwrap_or_else(|| std::env::temp_dir().join(format!("twinshard-demo-{}", std::process::id())));
        if dir.exists() {
            return Err(Failure::new(format!("{} exists already; the demo wants a directory of its own", dir.display())));
        }
        let cluster = LocalCluster::start(&dir, Ipv4Addr::LOCALHOST.into(), 0, 1, PolicyArg::Ring).await?;
        let result = show(&cluster).await;
        cluster.stop().await;
        match result {
            Ok(()) => Ok(std::fs::remove_dir_all(&dir)?),
            Err(failure) => Err(Failure::new(format!("{failure}\nThe cluster's files are kept in {}", dir.display()))),
        }
    }
}

async fn show(cluster: &LocalCluster) -> Result<(), Failure> {
    let url = cluster.url();
    let mut client = Client::new(&url, Duration::from_secs(125))?;
    println!("A cluster of three servers and three shards, two replicas each, on {url}");
    let (code, answer) = client.json(Method::POST, "/init", Some(&topology::default_cluster())).await?;
    if !code.is_success() {
        return Err(Failure::new(format!("/init answered {code}: {answer}")));
    }
    let (_, status) = client.json(Method::GET, "/status", None).await?;
    let plan = Arc::new(Plan::new(&status)?);

    let began = Instant::now();
    let writers = Writers::start(&url, &plan, began)?;
    println!("{WRITERS} clients write rows, one at a time each ...");
    sleep(BEFORE).await;

    let (_, status) = client.json(Method::GET, "/status", None).await?;
    let victim = primary(&status, "sh1").ok_or_else(|| Failure::new("sh1 has no primary"))?;
    let id = server_id(&status, &victim).ok_or_else(|| Failure::new(format!("/status does not give the id of {victim}")))?;
    let killed = began.elapsed();
    let pid = cluster.provisioner.signal(id, Signal::Kill).await.ok_or_else(|| Failure::new(format!("{victim} has no process")))?;
    println!("{:6.2} s  kill -9 {pid}: {victim}, the primary of sh1", killed.as_secs_f64());

    let mut elected = None;
    let mut back = None;
    let deadline = killed + BACK_TIMEOUT;
    while began.elapsed() < deadline && (back.is_none() || elected.is_none()) {
        sleep(POLL).await;
        let (_, status) = client.json(Method::GET, "/status", None).await?;
        let now = began.elapsed();
        if elected.is_none()
            && let Some(name) = primary(&status, "sh1").filter(|name| *name != victim)
        {
            println!("{:6.2} s  {name} leads sh1", now.as_secs_f64());
            elected = Some(now);
        }
        let respawned = status["health"][&victim]["respawns"].as_u64().unwrap_or(0) > 0;
        if back.is_none() && respawned && status["health"][&victim]["state"] == "up" {
            println!("{:6.2} s  {victim} is back, with its log", now.as_secs_f64());
            back = Some(now);
        }
    }
    let left = (killed + AFTER).saturating_sub(began.elapsed());
    sleep(left).await;
    let (records, errors) = writers.stop().await?;

    let found = read_back(&mut client, &plan, &records).await?;
    let acknowledged = records.iter().filter(|record| record.returned.is_some()).count();
    println!();
    println!("writes acknowledged       {acknowledged}");
    println!("writes that failed        {errors}");
    println!("longest wait of a write   {} ms", longest(&records) / 1_000);
    println!("rows read back            {} keys, {} missing, {} wrong", found.acknowledged_keys, found.missing, found.wrong);
    if back.is_none() || elected.is_none() {
        return Err(Failure::new(format!("{victim} or its shard did not come back within {} s", BACK_TIMEOUT.as_secs())));
    }
    if found.missing > 0 || found.wrong > 0 || acknowledged == 0 {
        return Err(Failure::new("acknowledged rows were LOST"));
    }
    println!();
    println!("Nothing was lost.");
    Ok(())
}

/// The longest time that an acknowledged write took, in microseconds.
fn longest(records: &[WriteRecord]) -> u64 {
    records.iter().filter_map(|record| Some(record.returned? - record.called)).max().unwrap_or(0)
}

fn primary(status: &Value, shard: &str) -> Option<String> {
    let shards = status["shards"].as_array()?;
    shards.iter().find(|record| record["Shard_id"] == shard)?["primary_server"].as_str().map(str::to_owned)
}

fn server_id(status: &Value, name: &str) -> Option<ServerId> {
    status["health"][name]["id"].as_u64().map(ServerId)
}

struct Writers {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Result<(Vec<WriteRecord>, u64), Failure>>,
}

impl Writers {
    fn start(url: &str, plan: &Arc<Plan>, began: Instant) -> Result<Self, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let numbers = Arc::new(AtomicU64::new(1));
        let mut tasks = JoinSet::new();
        for writer in 0..WRITERS {
            let mut client = Client::new(url, REQUEST_TIMEOUT)?;
            let (stop, plan, numbers) = (Arc::clone(&stop), Arc::clone(plan), Arc::clone(&numbers));
            tasks.spawn(async move {
                let mut random = ChaCha8Rng::seed_from_u64(writer);
                let mut records = Vec::new();
                let mut errors = 0;
                while !stop.load(Ordering::Relaxed) {
                    let value = numbers.fetch_add(1, Ordering::Relaxed);
                    let key = plan.key(random.next_u64());
                    let called = micros(began.elapsed());
                    let body = json!({ "data": [plan.row(key, value)] });
                    let fine = matches!(client.json(Method::POST, "/write", Some(&body)).await, Ok((code, _)) if code.is_success());
                    let returned = fine.then(|| micros(began.elapsed()));
                    errors += u64::from(!fine);
                    records.push(WriteRecord { key, value, called, returned });
                }
                Ok((records, errors))
            });
        }
        Ok(Self { stop, tasks })
    }

    async fn stop(mut self) -> Result<(Vec<WriteRecord>, u64), Failure> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = (Vec::new(), 0);
        while let Some(done) = self.tasks.join_next().await {
            let (records, errors) = done.map_err(|error| Failure::new(format!("a writer failed: {error}")))??;
            all.0.extend(records);
            all.1 += errors;
        }
        Ok(all)
    }
}
