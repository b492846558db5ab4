//! `twinshard chaos`: plays a scenario file against real processes or a deployment on Docker, in wall time. The workload, the history, the
//! checks and the report are those of the simulated worlds; the faults are real: kills, pauses, cut networks, removed volumes.

mod ground;
mod live;
mod strike;

use super::{Failure, logs::LogArgs, up::LocalCluster};
use crate::{
    cli::nodes::PolicyArg,
    secret::Secret,
    story::{Clients, Ended, Script},
};
use clap::Args;
use ground::{Ground, Strikes};
use live::{Entered, Live};
use std::{
    net::Ipv4Addr,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use strike::{Struck, strike_all};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use twinshard_core::time::Instant;
use twinshard_scenarios::{
    report::{Report, RunResult, WorldCheck},
    scenario::{FaultKind, Limits, Scenario},
};

/// How long a cluster may take to be set up. A guess: databases are made.
const SETUP_WITHIN: Duration = Duration::from_secs(120);
/// From the end of the setting up to the load.
const LOAD_AFTER: Duration = Duration::from_millis(500);

/// Plays a scenario file against a real cluster and judges what came of it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  twinshard chaos scenarios/primary-crash.toml --up
  make all NAME=rehearsal PORT=5900 CHAOS=1 && twinshard chaos scenarios/lost-disk.toml --deployment rehearsal

With --up it starts a cluster of processes of its own, and removes it. A deployment must have been made for it (CHAOS=1) and be empty; it is
emptied again. A crash is SIGKILL, a pause SIGSTOP or docker pause, an isolation docker network disconnect, a lost disk the removal of the
directory or the volumes, a register or the rows of a server that do not answer a database that is killed as often as it comes back. What
cannot be done to real machines (single messages lost, slow disks, part of a network cut) is refused, never left out; a fault that hits
nobody fails the run. Ctrl-C undoes what was done.")]
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
        let ends = [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?];
        let report = match &self.deployment {
            #[cfg(feature = "docker")]
            Some(name) => {
                let ground = Ground::deployed(name).await?;
                self.play(&scenario, ground, token.as_ref(), ends).await?
            }
            #[cfg(not(feature = "docker"))]
            Some(name) => return Err(Failure::usage(format!("{name}: Docker is not built into this program"))),
            None => {
                LogArgs::of_environment()?.start()?;
                let dir = tempfile_dir()?;
                let balancers = u16::try_from(scenario.topology.balancers.max(1)).unwrap_or(u16::MAX);
                let cluster = LocalCluster::start(&dir.0, Ipv4Addr::LOCALHOST.into(), 0, balancers, PolicyArg::Ring).await?;
                let report = self.play(&scenario, Ground::Processes(Box::new(cluster)), None, ends).await?;
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

    async fn play(&self, scenario: &Scenario, ground: Ground, token: Option<&Secret>, ends: [Signal; 2]) -> Result<Report, Failure> {
        let played = match supported(scenario, &ground) {
            Ok(()) => {
                let [mut interrupt, mut terminate] = ends;
                let (stop, stopped) = watch::channel(false);
                let mut playing = pin!(self.play_on(scenario, &ground, token, stopped));
                // What was done is undone first, whatever ends it.
                loop {
                    tokio::select! {
                        played = &mut playing => break played,
                        _ = interrupt.recv() => drop(stop.send_replace(true)),
                        _ = terminate.recv() => drop(stop.send_replace(true)),
                    }
                }
            }
            Err(reason) => Err(Failure::usage(format!("{}: {reason}", scenario.name))),
        };
        ground.end().await;
        played
    }

    async fn play_on(
        &self,
        scenario: &Scenario,
        ground: &Ground,
        token: Option<&Secret>,
        mut stopped: watch::Receiver<bool>,
    ) -> Result<Report, Failure> {
        let live = Live::new(ground.balancers(), token.map(Secret::bearer));
        if live.is_set_up().await? {
            return Err(Failure::usage(
                "there is a cluster already: a scenario begins with an empty one (`make clean`, then `make all CHAOS=1`)",
            ));
        }
        let interrupted = || Failure::new("interrupted: what was struck was let go; the cluster stays as it is");
        let mut watching = JoinSet::new();
        live.watch(&mut watching);
        let clients = Clients::new(live.clone());
        eprintln!("setting up {} servers ...", scenario.topology.servers);
        tokio::select! {
            set_up = timeout(SETUP_WITHIN, clients.set_up(scenario.init())) => {
                set_up.map_err(|_| Failure::new(format!("the cluster was not set up within {} s", SETUP_WITHIN.as_secs())))?;
            }
            _ = stopped.wait_for(|stop| *stop) => return Err(interrupted()),
        }
        let load_from = live.now() + LOAD_AFTER;
        let load_from = Instant(u64::try_from(load_from.as_nanos()).unwrap_or(u64::MAX));
        eprintln!("playing {} ({} s) ...", scenario.name, scenario.end_ms().div_ceil(1_000));
        let healed = Arc::new(AtomicBool::new(false));
        // Ends with this, however this ends.
        let mut story = JoinSet::new();
        story.spawn(clients.story(Script::new(scenario, self.seed, load_from), Arc::clone(&healed)));
        let mut struck = strike_all(scenario, ground, &live, load_from, &stopped).await;
        if live.sleep_until_or(load_from.0 + scenario.end_ms() * 1_000_000, &mut stopped).await {
            return Err(interrupted());
        }
        healed.store(true, Ordering::SeqCst);
        let ended = tokio::select! {
            ended = story.join_next() => ended.ok_or_else(|| Failure::new("there is no story"))??,
            _ = stopped.wait_for(|stop| *stop) => return Err(interrupted()),
        };
        if ended.failures.is_empty() {
            struck.failures.extend(live.not_lost(&struck.lost).await);
        }
        let ended_ns = live.now_ns_now();
        live.clear().await;
        watching.shutdown().await;
        Ok(Report::new(self.result(scenario, ground, live, load_from, ended, ended_ns, struck)))
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
        struck: Struck,
    ) -> RunResult {
        let Entered { record, notes, .. } = live.into_entered();
        let check =
            |name: &str, what: &str, count: u64, failures| WorldCheck { name: name.to_owned(), what: what.to_owned(), count, failures };
        let world_checks = vec![
            check("faults", "faults", struck.faults.len() as u64, struck.failures),
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
            faults: struck.faults,
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
    if scenario.topology.limits != Limits::default() {
        return Err("limits of its own cannot be given to a live cluster".to_owned());
    }
    if scenario.topology.write_quorum.is_some() {
        return Err("a write quorum of its own cannot be given to a live cluster".to_owned());
    }
    scenario.faults.iter().try_for_each(|fault| {
        let reason = match &fault.kind {
            FaultKind::Crash { .. } | FaultKind::LoseDisk { .. } | FaultKind::PowerLoss {} | FaultKind::Pause { .. } => return Ok(()),
            FaultKind::Isolate { .. } if ground.has_networks() => return Ok(()),
            FaultKind::RegisterDown {} if ground.has_register() => return Ok(()),
            FaultKind::DatabaseDown { .. } if ground.has_databases() => return Ok(()),
            FaultKind::Isolate { .. } => "processes of one machine cannot be cut off from each other: --deployment can",
            FaultKind::RegisterDown {} => "the register is in a file here: a deployment with ROWS=mysql has it in a database",
            FaultKind::DatabaseDown { .. } => "rows are in files here: a deployment with ROWS=mysql has them in databases",
            FaultKind::Partition { .. } => "a network can be cut around one node (`isolate`), not between some",
            FaultKind::ProvisionFails { .. } => "starts cannot be made to fail",
            FaultKind::Network { .. } => "single messages cannot be lost or doubled",
            FaultKind::SlowDisk { .. } => "a disk cannot be made slow",
        };
        Err(format!("'{}' cannot be played live: {reason}", fault.kind.name()))
    })
}
