//! `twinshard up`: a cluster of processes on this machine. The supervisor that it runs owns every process and nothing else: what the
//! cluster is stands in the register, which the balancer keeps.

use super::{Failure, nodes::Choices};
use crate::provision::{
    process::{ProcessProvisioner, ProcessSettings},
    supervised::{FromBalancer, serve_balancer},
};
use clap::Args;
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::BufReader,
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{Instant, sleep, timeout},
};
use twinshard_core::id::ClusterId;

/// How long a directory or a port that is still held may take to come free, as after a kill of the supervisor alone.
const FREE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the balancer may take to end by itself.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The first wait before a balancer that ended is started again, doubled up to [`RESTART_WAIT_MAX`]; a life of that long resets it.
const RESTART_WAIT: Duration = Duration::from_millis(100);
/// See [`RESTART_WAIT`].
const RESTART_WAIT_MAX: Duration = Duration::from_secs(5);

/// Runs a cluster on this machine: a balancer, and the servers that it is asked for, as processes under one directory.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  twinshard up
  twinshard up --port 5001 --dir /var/lib/twinshard

It stays in the foreground and stops everything on Ctrl-C or SIGTERM. Started again on the same directory it finds its cluster again.
Below the directory: register.redb (the cluster map), servers/ (each server's log and rows), logs/, secret (for its owner only).")]
pub struct Up {
    /// The balancer's port on 127.0.0.1
    #[arg(long, default_value_t = 5000)]
    port: u16,
    /// Where the cluster lives; made if it is not there
    #[arg(long, default_value = "data")]
    dir: PathBuf,
    #[command(flatten)]
    choices: Choices,
}

impl Up {
    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// If the cluster cannot be started, or its balancer never comes up.
    pub async fn run(self) -> Result<(), Failure> {
        super::log_to_stderr();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let cluster = LocalCluster::start(&self.dir, self.port, self.choices).await?;
        println!("Twinshard is ready on http://{}  (data in {})", cluster.http, self.dir.display());
        println!();
        println!("Set it up with the course's default cluster:");
        println!("  curl -X POST http://{}/init -d '{}'", cluster.http, super::topology::default_cluster());
        println!("then try `twinshard status --url http://{0}` or `twinshard bench --run a1 --url http://{0}`.", cluster.http);
        println!("Ctrl-C stops everything; what was written stays.");
        io::stdout().flush()?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        println!("Stopping ...");
        cluster.stop().await;
        println!("Stopped. `twinshard up --dir {}` goes on where it was.", self.dir.display());
        Ok(())
    }
}

/// A running cluster of processes.
#[derive(Debug)]
pub struct LocalCluster {
    /// Where the balancer serves clients, `host:port`.
    pub http: String,
    /// What runs the servers.
    pub provisioner: Arc<ProcessProvisioner>,
    stop: watch::Sender<bool>,
    keeper: tokio::task::JoinHandle<()>,
    _lock: File,
}

impl LocalCluster {
    /// Starts the balancer on `dir` and waits until it serves.
    ///
    /// # Errors
    /// If the directory is in use or not usable, the port is taken, or the balancer does not come up.
    pub async fn start(dir: &Path, port: u16, choices: impl Into<Choices>) -> Result<Self, Failure> {
        std::fs::create_dir_all(dir).map_err(|error| Failure::new(format!("could not make {}: {error}", dir.display())))?;
        let dir = dir.canonicalize()?;
        let lock = lock(&dir).await?;
        let cluster = cluster_id(&dir)?;
        crate::secret::Secret::load_or_create(&dir.join("secret"))?;
        let port = free_port(port).await?;
        let program = std::env::current_exe()?;
        let settings = ProcessSettings { program: program.clone(), dir: dir.clone(), cluster };
        let provisioner = Arc::new(ProcessProvisioner::new(settings));
        let (stop, stopped) = watch::channel(false);
        let (ready, mut served) = watch::channel(None);
        let balancer = Balancer { program, dir, cluster, port, choices: choices.into() };
        let keeper = tokio::spawn(keep_balancer(balancer, Arc::clone(&provisioner), stopped, ready));
        let started = served.wait_for(Option::is_some).await.map(|value| value.clone());
        match started {
            Ok(Some(Ok(http))) => Ok(Self { http, provisioner, stop, keeper, _lock: lock }),
            Ok(Some(Err(reason))) => Err(Failure::new(reason)),
            Ok(None) | Err(_) => Err(Failure::new("the balancer did not come up; see its messages above")),
        }
    }

    /// Stops the balancer, then the servers.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        if let Err(error) = self.keeper.await {
            tracing::warn!(%error, "the balancer's keeper failed");
        }
        self.provisioner.shutdown().await;
    }
}

#[derive(Clone, Debug)]
struct Balancer {
    program: PathBuf,
    dir: PathBuf,
    cluster: ClusterId,
    port: u16,
    choices: Choices,
}

impl Balancer {
    fn spawn(&self) -> io::Result<Child> {
        Command::new(&self.program)
            .arg("balancer")
            .arg("--dir")
            .arg(&self.dir)
            .arg("--cluster")
            .arg(self.cluster.to_string())
            .arg("--secret-file")
            .arg(self.dir.join("secret"))
            .arg("--listen")
            .arg(format!("127.0.0.1:{}", self.port))
            .arg("--policy")
            .arg(self.choices.policy.name())
            .arg("--on-conflict")
            .arg(self.choices.on_conflict.name())
            .arg("--child")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C at the terminal is for the supervisor, which stops its children in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }
}

/// Runs the balancer, again and again until told to stop. The first life's outcome decides whether the start worked.
async fn keep_balancer(
    balancer: Balancer,
    provisioner: Arc<ProcessProvisioner>,
    mut stopped: watch::Receiver<bool>,
    ready: watch::Sender<Option<Result<String, String>>>,
) {
    let mut wait = RESTART_WAIT;
    loop {
        let born = Instant::now();
        match balancer.spawn() {
            Ok(mut child) => {
                if let Err(error) = live(&mut child, &provisioner, &mut stopped, &ready).await {
                    tracing::warn!(%error, "the balancer's control channel broke");
                }
                end(child).await;
            }
            Err(error) => tracing::error!(%error, "could not run the balancer"),
        }
        if *stopped.borrow() {
            return;
        }
        if !matches!(&*ready.borrow(), Some(Ok(_))) {
            let reason = Err("the balancer ended before it served".to_owned());
            ready.send_if_modified(|value| {
                if value.is_none() {
                    *value = Some(reason);
                    true
                } else {
                    false
                }
            });
            return;
        }
        if born.elapsed() >= RESTART_WAIT_MAX {
            wait = RESTART_WAIT;
        }
        tracing::warn!(?wait, "the balancer ended; starting it again");
        tokio::select! {
            () = sleep(wait) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        wait = (wait * 2).min(RESTART_WAIT_MAX);
    }
}

/// One life of the balancer: serves its commands until it ends or is told to.
async fn live(
    child: &mut Child,
    provisioner: &Arc<ProcessProvisioner>,
    stopped: &mut watch::Receiver<bool>,
    ready: &watch::Sender<Option<Result<String, String>>>,
) -> io::Result<()> {
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("no standard input or output"));
    };
    let said = |line| match line {
        FromBalancer::Ready { http } => {
            ready.send_replace(Some(Ok(http)));
        }
        FromBalancer::Failed { reason } => {
            ready.send_if_modified(|value| {
                if value.is_none() {
                    *value = Some(Err(reason));
                    true
                } else {
                    false
                }
            });
        }
        FromBalancer::Start { .. } | FromBalancer::Stop { .. } => {}
    };
    // Dropping the pipes asks the balancer to end.
    tokio::select! {
        result = serve_balancer(BufReader::new(stdout), stdin, Arc::clone(provisioner), said) => result,
        _ = stopped.wait_for(|stop| *stop) => Ok(()),
    }
}

async fn end(mut child: Child) {
    if timeout(CLOSE_TIMEOUT, child.wait()).await.is_err()
        && let Err(error) = child.kill().await
    {
        tracing::warn!(%error, "could not kill the balancer");
    }
}

/// Takes the directory for this process, so that two supervisors never share one.
async fn lock(dir: &Path) -> Result<File, Failure> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| Failure::new(format!("could not open {}: {error}", path.display())))?;
    let deadline = Instant::now() + FREE_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(RESTART_WAIT).await,
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::new(format!(
                    "{} is in use by another `twinshard up`; stop that one or give another --dir",
                    dir.display()
                )));
            }
            Err(TryLockError::Error(error)) => return Err(Failure::new(format!("could not lock {}: {error}", path.display()))),
        }
    }
}

/// Reads the cluster's id, or draws one for a new directory.
pub(super) fn cluster_id(dir: &Path) -> Result<ClusterId, Failure> {
    let path = dir.join("cluster");
    let bad = |error: &dyn std::fmt::Display| Failure::new(format!("could not use {}: {error}", path.display()));
    match File::open(&path) {
        Ok(mut file) => {
            let mut text = String::new();
            file.read_to_string(&mut text).map_err(|error| bad(&error))?;
            u128::from_str_radix(text.trim(), 16).map(ClusterId).map_err(|error| bad(&error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if dir.join("register.redb").exists() {
                return Err(Failure::new(format!(
                    "{} has a register but no `cluster` file: it is not whole; restore the file or start on another --dir",
                    dir.display()
                )));
            }
            let mut bytes = [0; 16];
            getrandom::fill(&mut bytes).map_err(|error| bad(&error))?;
            let cluster = ClusterId(u128::from_be_bytes(bytes));
            // Written aside and renamed, so that a power loss leaves all of it or nothing.
            let aside = dir.join("cluster.new");
            let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&aside)?;
            writeln!(file, "{cluster}")?;
            file.sync_all()?;
            std::fs::rename(&aside, &path)?;
            File::open(dir)?.sync_all()?;
            Ok(cluster)
        }
        Err(error) => Err(bad(&error)),
    }
}

/// Sees that the port can be had, so that a taken one is one clear line and not a balancer that never comes up.
async fn free_port(port: u16) -> Result<u16, Failure> {
    let deadline = Instant::now() + FREE_TIMEOUT;
    loop {
        match tokio::net::TcpListener::bind(("127.0.0.1", port)).await {
            // Port 0 asks for any; the balancer is told which, so that it keeps it over its lives.
            Ok(listener) => return Ok(listener.local_addr()?.port()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => sleep(RESTART_WAIT).await,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(Failure::new(format!("port {port} is taken on 127.0.0.1; stop what holds it or give another --port")));
            }
            Err(error) => return Err(Failure::new(format!("could not listen on 127.0.0.1:{port}: {error}"))),
        }
    }
}
