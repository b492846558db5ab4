//! `twinshard up`: a cluster of processes on this machine. The supervisor that it runs owns every process, and the register, in which all
//! stands that the cluster is.

use super::{Failure, make_dir, nodes::Choices};
use crate::{
    aside,
    provision::process::{ProcessProvisioner, ProcessSettings, Signal, send},
    register::{RegisterError, redb::RedbRegister},
    supervised::{FromBalancer, Services, serve_balancer},
};
use clap::Args;
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::BufReader,
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
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
/// Signals that may wait for one balancer.
const SIGNALS_MAX: usize = 16;
/// A signal that a balancer is to get, and who is told whether it did.
type Asked = (Signal, oneshot::Sender<bool>);
/// More are of no use on one machine.
const BALANCERS_MAX: i64 = 16;

/// Runs a cluster on this machine: balancers, and the servers that they are asked for, as processes under one directory.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  twinshard up
  twinshard up --port 5001 --dir /var/lib/twinshard
  twinshard up --balancers 2

It stays in the foreground and stops everything on Ctrl-C or SIGTERM. Started again on the same directory it finds its cluster again.
Below the directory: register.redb (the cluster map), servers/ (each server's log and rows), logs/, secret (for its owner only).")]
pub struct Up {
    /// The address that the balancers listen on; beyond loopback, --auth says who may come
    #[arg(long, default_value = "127.0.0.1")]
    bind: IpAddr,
    /// The balancer's port; the second balancer has the next one, and so on
    #[arg(long, default_value_t = 5000)]
    port: u16,
    /// How many balancers; each serves every request, one of them controls, another takes over when that one is gone
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=BALANCERS_MAX))]
    balancers: u16,
    /// Where the cluster lives; made if it is not there
    #[arg(long, default_value = "data")]
    dir: PathBuf,
    #[command(flatten)]
    choices: Choices,
}

impl Up {
    /// Refuses what contradicts itself.
    ///
    /// # Errors
    /// Usage.
    pub fn check(&self) -> Result<(), Failure> {
        self.choices.check(&[self.bind])
    }

    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// If the cluster cannot be started, or its balancer never comes up.
    pub async fn run(self) -> Result<(), Failure> {
        self.choices.serving.log.start()?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let cluster = LocalCluster::start(&self.dir, self.bind, self.port, self.balancers, self.choices.clone()).await?;
        let urls: Vec<String> = cluster.balancers.iter().map(|http| format!("{}://{http}", cluster.scheme)).collect();
        println!("Twinshard is ready on {}  (data in {})", urls.join(" and "), self.dir.display());
        println!();
        println!("Set it up with the course's default cluster:");
        let certificate = self.choices.serving.certificate(&self.dir);
        let trust = certificate.as_ref().map(|file| format!("--cacert {} ", file.display())).unwrap_or_default();
        println!("  curl {trust}-X POST {}/init -d '{}'", cluster.url(), super::topology::default_cluster());
        if let Some(tokens) = self.choices.serving.access.token_dir(&self.dir) {
            let (admin, data) = (tokens.join("admin.token"), tokens.join("data.token"));
            println!(
                "each with  -H \"Authorization: Bearer $(cat {})\"; {} is enough to read and write rows, read.token beside it to read and scrape.",
                admin.display(),
                data.display()
            );
        }
        let trust = certificate.map(|file| format!(" --ca {}", file.display())).unwrap_or_default();
        println!("then try `twinshard status --url {0}{trust}` or `twinshard bench --run a1 --url {0}{trust}`.", cluster.url());
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
    /// Where the balancers serve clients, `host:port`; one at least.
    balancers: Vec<String>,
    /// What their URLs begin with.
    scheme: &'static str,
    /// What runs the servers.
    pub provisioner: Arc<ProcessProvisioner>,
    signals: Vec<mpsc::Sender<Asked>>,
    stop: watch::Sender<bool>,
    keepers: JoinSet<()>,
    _lock: File,
}

impl LocalCluster {
    /// Starts the balancers on `dir` and waits until all serve. They listen on `port` and those after it; 0 takes any.
    ///
    /// # Errors
    /// If the directory is in use or not usable, a port is taken, or a balancer does not come up.
    pub async fn start(dir: &Path, bind: IpAddr, port: u16, balancer_count: u16, choices: impl Into<Choices>) -> Result<Self, Failure> {
        let choices = choices.into();
        choices.check(&[bind])?;
        make_dir(dir)?;
        let dir = dir.canonicalize()?;
        let lock = lock(&dir).await?;
        let cluster = cluster_id(&dir)?;
        register_is_where_its_data_is(&dir)?;
        crate::secret::Secret::load_or_create(&dir.join("secret"))?;
        let mut ports = Vec::new();
        for place in 0..balancer_count {
            let wanted = if port == 0 { Some(0) } else { port.checked_add(place) };
            let wanted = wanted.ok_or_else(|| Failure::new(format!("there are no {balancer_count} ports from {port} on")))?;
            ports.push(free_port(bind, wanted).await?);
        }
        let program = std::env::current_exe()?;
        // Before the children look for them.
        choices.serving.access.settle(&[bind], &dir)?;
        choices.serving.authority(&dir)?;
        let settings = ProcessSettings { program: program.clone(), dir: dir.clone(), cluster, serving: choices.serving.words(&dir) };
        let provisioner = Arc::new(ProcessProvisioner::new(settings));
        let register = Arc::new(Mutex::new(open_register(&dir, cluster)?));
        let services = Services { provisioner: Arc::clone(&provisioner), register };
        let (stop, stopped) = watch::channel(false);
        let mut keepers = JoinSet::new();
        let (mut starting, mut signals) = (Vec::new(), Vec::new());
        for port in ports {
            let (ready, served) = watch::channel(None);
            let several = balancer_count > 1;
            let balancer = Balancer { program: program.clone(), dir: dir.clone(), cluster, bind, port, several, choices: choices.clone() };
            let (signal, signalled) = mpsc::channel(SIGNALS_MAX);
            keepers.spawn(keep_balancer(balancer, services.clone(), stopped.clone(), ready, signalled));
            starting.push(served);
            signals.push(signal);
        }
        let mut balancers = Vec::new();
        for mut served in starting {
            match served.wait_for(Option::is_some).await.map(|value| value.clone()) {
                Ok(Some(Ok(http))) => balancers.push(http),
                Ok(Some(Err(reason))) => return Err(Failure::new(reason)),
                Ok(None) | Err(_) => return Err(Failure::new("a balancer did not come up; see its messages above")),
            }
        }
        Ok(Self { balancers, scheme: choices.serving.tls.scheme(), provisioner, signals, stop, keepers, _lock: lock })
    }

    /// Where the first balancer serves clients.
    #[must_use]
    pub fn url(&self) -> String {
        self.balancers.first().map(|http| format!("{}://{http}", self.scheme)).unwrap_or_default()
    }

    /// Where the balancers serve clients, `host:port`.
    #[must_use]
    pub fn balancers(&self) -> &[String] {
        &self.balancers
    }

    /// Signals a balancer, by its place, as a rehearsal. Whether one ran that could be.
    pub async fn signal_balancer(&self, place: usize, signal: Signal) -> bool {
        let Some(signals) = self.signals.get(place) else { return false };
        let (hit, is_hit) = oneshot::channel();
        signals.send((signal, hit)).await.is_ok() && is_hit.await.unwrap_or(false)
    }

    /// Stops the balancers, then the servers.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        while let Some(ended) = self.keepers.join_next().await {
            if let Err(error) = ended {
                tracing::warn!(%error, "a balancer's keeper failed");
            }
        }
        self.provisioner.shutdown().await;
    }
}

#[derive(Clone, Debug)]
struct Balancer {
    program: PathBuf,
    dir: PathBuf,
    cluster: ClusterId,
    bind: IpAddr,
    port: u16,
    /// There are others.
    several: bool,
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
            .arg(SocketAddr::from((self.bind, self.port)).to_string())
            .args(self.choices.words(&self.dir))
            .arg("--child")
            .args(self.several.then_some("--several"))
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
    services: Services,
    mut stopped: watch::Receiver<bool>,
    ready: watch::Sender<Option<Result<String, String>>>,
    mut signals: mpsc::Receiver<Asked>,
) {
    let mut wait = RESTART_WAIT;
    loop {
        let born = Instant::now();
        while signals.try_recv().is_ok() {}
        match balancer.spawn() {
            Ok(mut child) => {
                if let Err(error) = live(&mut child, &services, &mut stopped, &ready, &mut signals).await {
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
        let mut waited = std::pin::pin!(sleep(wait));
        loop {
            tokio::select! {
                () = &mut waited => break,
                _ = stopped.wait_for(|stop| *stop) => return,
                // Nobody is hit.
                Some(_) = signals.recv() => {}
            }
        }
        wait = (wait * 2).min(RESTART_WAIT_MAX);
    }
}

/// One life of the balancer: serves its commands until it ends or is told to.
async fn live(
    child: &mut Child,
    services: &Services,
    stopped: &mut watch::Receiver<bool>,
    ready: &watch::Sender<Option<Result<String, String>>>,
    signals: &mut mpsc::Receiver<Asked>,
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
        FromBalancer::Ask { .. } => {}
    };
    // Dropping the pipes asks the balancer to end.
    let serve = serve_balancer(BufReader::new(stdout), stdin, services.clone(), said);
    let mut serve = std::pin::pin!(serve);
    loop {
        tokio::select! {
            result = &mut serve => return result,
            _ = stopped.wait_for(|stop| *stop) => return Ok(()),
            Some((signal, hit)) = signals.recv() => {
                let _ = hit.send(send(child, signal)?.is_some());
            }
        }
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
            if aside::create(&path, &format!("{cluster}\n")).map_err(|error| bad(&error))? { Ok(cluster) } else { cluster_id(dir) }
        }
        Err(error) => Err(bad(&error)),
    }
}

/// Sees that the port can be had, so that a taken one is one clear line and not a balancer that never comes up.
async fn free_port(bind: IpAddr, port: u16) -> Result<u16, Failure> {
    let deadline = Instant::now() + FREE_TIMEOUT;
    loop {
        match tokio::net::TcpListener::bind((bind, port)).await {
            // Port 0 asks for any; its balancer is told which, so that it keeps it over its lives.
            Ok(listener) => return Ok(listener.local_addr()?.port()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => sleep(RESTART_WAIT).await,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(Failure::new(format!("port {port} is taken on {bind}; stop what holds it or give another --port")));
            }
            Err(error) => return Err(Failure::new(format!("could not listen on {}: {error}", SocketAddr::from((bind, port))))),
        }
    }
}

/// Refuses a directory whose servers hold something and whose register is gone: a new one would mint the ids of the old one again.
pub(super) fn register_is_where_its_data_is(dir: &Path) -> Result<(), Failure> {
    let holds = |place: &str| std::fs::read_dir(dir.join(place)).is_ok_and(|mut entries| entries.next().is_some());
    if (holds("servers") || holds("store")) && !dir.join("register.redb").exists() {
        return Err(Failure::new(format!(
            "{} holds servers' data but no register.redb, which knows what it is: make it anew with `twinshard recover`, or \
             start on another --dir",
            dir.display()
        )));
    }
    Ok(())
}

/// Opens the register of a directory.
pub(super) fn open_register(dir: &Path, cluster: ClusterId) -> Result<RedbRegister, Failure> {
    let path = dir.join("register.redb");
    RedbRegister::open(&path, cluster).map_err(|error| {
        let hint = if matches!(error, RegisterError::Damaged(_)) { "; make it anew with `twinshard recover`" } else { "" };
        Failure::new(format!("{}: {error}{hint}", path.display()))
    })
}
