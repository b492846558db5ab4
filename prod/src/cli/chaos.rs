//! `twinshard chaos`: plays a scenario file against real processes or a deployment on Docker, in wall time. The workload, the history, the
//! checks and the report are those of the simulated worlds; the faults are real: kills, pauses, cut networks, removed volumes.

mod ground;
mod live;

use super::{Failure, log_to_stderr, up::LocalCluster};
use crate::{
    cli::nodes::PolicyArg,
    secret::Secret,
    story::{Clients, Ended, Script},
};
use clap::Args;
use ground::{Ground, Node};
use live::{Entered, Live};
use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use twinshard_core::time::Instant;
use twinshard_scenarios::{
    report::{FaultEvent, Report, RunResult, WorldCheck},
    scenario::{FaultKind, Scenario},
};

/// How long a cluster may take to be set up. A guess: databases are made.
const SETUP_WITHIN: Duration = Duration::from_secs(120);
/// How often a fault that lasts is seen to: who came back meanwhile is struck again.
const STRIKE_EVERY: Duration = Duration::from_millis(100);
/// From the end of the setting up to the load.
const LOAD_AFTER: Duration = Duration::from_millis(500);

/// Plays a scenario file against a real cluster and judges what came of it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  twinshard chaos scenarios/primary-crash.toml --up
  make all NAME=rehearsal PORT=5900 CHAOS=1 && twinshard chaos scenarios/lost-disk.toml --deployment rehearsal

With --up it starts a cluster of processes of its own, and removes it. A deployment must have been made for it (CHAOS=1) and be empty; it is
emptied again. A crash is SIGKILL, a pause SIGSTOP or docker pause, an isolation docker network disconnect, a lost disk the removal of the
directory or the volumes, a register that is down a database that is killed as often as it comes back. What cannot be done to real
machines (single messages lost, slow disks, part of a network cut) is refused, never left out.")]
pub struct Chaos {
    /// The scenario, a TOML file
    file: PathBuf,
    /// Against processes that it starts itself
    #[arg(long, conflicts_with = "deployment", required_unless_present = "deployment")]
    up: bool,
    /// Against a deployment on Docker that was made with CHAOS=1
    #[arg(long, value_name = "NAME")]
    deployment: Option<String>,
    /// The seed of what clients ask
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The file with the admin token, where the deployment asks for one
    #[arg(long, env = "TWINSHARD_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl Chaos {
    /// Runs it.
    ///
    /// # Errors
    /// If the scenario cannot be read or played here, or the run shows a violation or not what the scenario expects.
    pub async fn run(self) -> Result<(), Failure> {
        let scenario = Scenario::load(&self.file).map_err(|error| Failure::usage(error.to_string()))?;
        let token = self.token_file.as_deref().map(Secret::load).transpose()?;
        let report = match &self.deployment {
            #[cfg(feature = "docker")]
            Some(name) => {
                let ground = Ground::deployed(name).await?;
                self.play(&scenario, ground, token.as_ref()).await?
            }
            #[cfg(not(feature = "docker"))]
            Some(name) => return Err(Failure::usage(format!("{name}: Docker is not built into this program"))),
            None => {
                log_to_stderr();
                let dir = tempfile_dir()?;
                let balancers = u16::try_from(scenario.topology.balancers.max(1)).unwrap_or(u16::MAX);
                let cluster = LocalCluster::start(&dir.0, Ipv4Addr::LOCALHOST.into(), 0, balancers, PolicyArg::Ring).await?;
                let report = self.play(&scenario, Ground::Processes(Box::new(cluster)), None).await?;
                if !report.is_ok() {
                    eprintln!("what the cluster left is in {}", dir.0.display());
                    std::mem::forget(dir);
                }
                report
            }
        };
        println!("{report}");
        if report.is_ok() { Ok(()) } else { Err(Failure::new(format!("{} went wrong: see the report", scenario.name))) }
    }

    async fn play(&self, scenario: &Scenario, ground: Ground, token: Option<&Secret>) -> Result<Report, Failure> {
        let played = match supported(scenario, &ground) {
            Ok(()) => self.play_on(scenario, &ground, token).await,
            Err(reason) => Err(Failure::usage(format!("{}: {reason}", scenario.name))),
        };
        ground.end().await;
        played
    }

    async fn play_on(&self, scenario: &Scenario, ground: &Ground, token: Option<&Secret>) -> Result<Report, Failure> {
        let live = Live::new(ground.balancers(), token.map(Secret::bearer));
        if live.is_set_up().await? {
            return Err(Failure::usage(
                "there is a cluster already: a scenario begins with an empty one (`make clean`, then `make all CHAOS=1`)",
            ));
        }
        let mut watching = JoinSet::new();
        live.watch(&mut watching);
        let clients = Clients::new(live.clone());
        let mut script = Script::new(scenario, self.seed, Instant(0));
        eprintln!("setting up {} servers ...", scenario.topology.servers);
        timeout(SETUP_WITHIN, clients.set_up(script.init.clone()))
            .await
            .map_err(|_| Failure::new(format!("the cluster was not set up within {} s", SETUP_WITHIN.as_secs())))?;
        let load_from = live.now() + LOAD_AFTER;
        let load_from = Instant(u64::try_from(load_from.as_nanos()).unwrap_or(u64::MAX));
        script = Script::new(scenario, self.seed, load_from);
        eprintln!("playing {} ({} s) ...", scenario.name, scenario.end_ms().div_ceil(1_000));
        let healed = Arc::new(AtomicBool::new(false));
        let story = tokio::spawn(clients.story(script, Arc::clone(&healed)));
        let (faults, failures) = strike_all(scenario, ground, &live, load_from).await;
        live.sleep_until(load_from.0 + scenario.end_ms() * 1_000_000).await;
        healed.store(true, Ordering::SeqCst);
        let ended = story.await?;
        let ended_ns = u64::try_from(live.now().as_nanos()).unwrap_or(u64::MAX);
        live.clear().await;
        watching.shutdown().await;
        Ok(Report::new(self.result(scenario, ground, live, load_from, ended, ended_ns, faults, failures)))
    }

    #[expect(clippy::too_many_arguments, reason = "what a run has, once")]
    fn result(
        &self,
        scenario: &Scenario,
        ground: &Ground,
        live: Live,
        load_from: Instant,
        ended: Ended,
        ended_ns: u64,
        faults: Vec<FaultEvent>,
        failures: Vec<String>,
    ) -> RunResult {
        let Entered { record, notes, .. } = live.into_entered();
        let check =
            |name: &str, what: &str, count: u64, failures| WorldCheck { name: name.to_owned(), what: what.to_owned(), count, failures };
        let world_checks = vec![
            check("faults", "faults", faults.len() as u64, failures),
            check("answers", "answers", record.answer_count, record.breaches),
            check("coming back after the last fault", "shards", ended.shards, ended.failures),
            check("replicas equal", "replicas", ended.compared, ended.unequal),
        ];
        RunResult {
            scenario: scenario.clone(),
            engine: ground.name().to_owned(),
            seed: self.seed,
            load_from_ns: load_from.0,
            ended_ns,
            history: record.recorder.into_history(),
            names: record.names,
            notes,
            faults,
            admin: record.told.into_values().collect(),
            world_checks,
            reproduce: format!("twinshard chaos scenarios/{}.toml {} --seed {}", scenario.name, ground.flag(), self.seed),
        }
    }
}

/// A directory of this run alone, removed with it.
struct TemporaryDir(PathBuf);

fn tempfile_dir() -> Result<TemporaryDir, Failure> {
    let number = getrandom::u64().map_err(|error| Failure::new(format!("no entropy: {error}")))?;
    let dir = std::env::temp_dir().join(format!("twinshard-chaos-{number:016x}"));
    super::make_dir(&dir)?;
    Ok(TemporaryDir(dir))
}

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, dir = %self.0.display(), "could not be removed");
        }
    }
}

/// Refuses what cannot be done here.
fn supported(scenario: &Scenario, ground: &Ground) -> Result<(), String> {
    let (wanted, there) = (scenario.topology.balancers.max(1) as usize, ground.balancers().len());
    if wanted > there {
        return Err(format!("it takes {wanted} balancers, here is {there} (make all BALANCERS={wanted})"));
    }
    if scenario.topology.write_quorum.is_some() {
        return Err("a write quorum of its own cannot be given to a live cluster".to_owned());
    }
    scenario.faults.iter().try_for_each(|fault| {
        let reason = match &fault.kind {
            FaultKind::Crash { .. } | FaultKind::LoseDisk { .. } | FaultKind::PowerLoss {} | FaultKind::Pause { .. } => return Ok(()),
            FaultKind::Isolate { .. } if ground.has_networks() => return Ok(()),
            FaultKind::RegisterDown {} if ground.has_register() => return Ok(()),
            FaultKind::Isolate { .. } => "processes of one machine cannot be cut off from each other: --deployment can",
            FaultKind::RegisterDown {} => "the register is in a file here: a deployment with ROWS=mysql has it in a database",
            FaultKind::Partition { .. } => "a network can be cut around one node (`isolate`), not between some",
            FaultKind::ProvisionFails { .. } => "starts cannot be made to fail",
            FaultKind::Network { .. } => "single messages cannot be lost or doubled",
            FaultKind::SlowDisk { .. } => "a disk cannot be made slow",
        };
        Err(format!("'{}' cannot be played live: {reason}", fault.kind.name()))
    })
}

/// Plays all faults at their times: what happened, and what did not work.
async fn strike_all(scenario: &Scenario, ground: &Ground, live: &Live, load_from: Instant) -> (Vec<FaultEvent>, Vec<String>) {
    let mut windows = Vec::new();
    for (place, fault) in scenario.faults.iter().enumerate() {
        windows.push(async move {
            let (from, until) = (load_from.0 + fault.at_ms * 1_000_000, load_from.0 + (fault.at_ms + fault.for_ms) * 1_000_000);
            live.sleep_until(from).await;
            let nodes = live.nodes(&fault.kind);
            let event = FaultEvent { place, at_ns: live.now_ns_now(), struck: nodes.iter().map(|node| live.name(*node)).collect() };
            let done = strike(ground, live, &fault.kind, &nodes, until).await;
            (event, done.err())
        });
    }
    let mut events: BTreeMap<(u64, usize), FaultEvent> = BTreeMap::new();
    let mut failures = Vec::new();
    for (event, failure) in futures_util::future::join_all(windows).await {
        if event.struck.is_empty() && !matches!(scenario.faults[event.place].kind, FaultKind::RegisterDown {}) {
            failures.push(format!("fault {} found nobody to strike", event.place));
        }
        failures.extend(failure.map(|failure| format!("fault {}: {failure}", event.place)));
        events.insert((event.at_ns, event.place), event);
    }
    (events.into_values().collect(), failures)
}

/// Plays one fault until its end.
async fn strike(ground: &Ground, live: &Live, kind: &FaultKind, nodes: &[Node], until: u64) -> Result<(), String> {
    if let FaultKind::LoseDisk { .. } = kind {
        for node in nodes {
            ground.lose_disk(*node).await?;
        }
    }
    let mut is_first = true;
    loop {
        match kind {
            FaultKind::Crash { .. } | FaultKind::PowerLoss {} => ground.kill(nodes).await?,
            // Its disk is lost once.
            FaultKind::LoseDisk { .. } if !is_first => ground.kill(nodes).await?,
            FaultKind::Pause { .. } if is_first => ground.pause(nodes).await?,
            FaultKind::Isolate { .. } => ground.cut_off(nodes).await?,
            FaultKind::RegisterDown {} => ground.kill_register().await?,
            // Refused, or done.
            _ => {}
        }
        is_first = false;
        if live.now_ns_now() >= until {
            break;
        }
        sleep(STRIKE_EVERY.min(Duration::from_nanos(until - live.now_ns_now().min(until)))).await;
    }
    match kind {
        FaultKind::Pause { .. } => ground.resume(nodes).await,
        FaultKind::Isolate { .. } => ground.rejoin(nodes).await,
        FaultKind::Crash { .. } | FaultKind::PowerLoss {} => ground.revive(nodes).await,
        _ => Ok(()),
    }
}
