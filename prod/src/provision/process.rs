//! Servers as child processes of this one, each on its own directory. A process is only ever signalled through the handle that
//! spawned it, never by a pid that was read somewhere.

use super::Provisioner;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, Command},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};
use twinshard_core::{
    id::{ClusterId, ServerId},
    map::Address,
};

/// How long a server may take to open its store and say that it is ready. Opening replays its log. A guess.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a server may take to close its store before it is killed. A guess.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Commands that may wait for one server; more is an error.
const COMMANDS_MAX: usize = 16;

/// The one line that a server process prints on its standard output once it serves, or when it cannot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadyLine {
    /// It serves there.
    Ready {
        /// `host:port` for people and tools.
        http: String,
        /// `host:port` for nodes.
        peer: String,
    },
    /// It cannot.
    Failed {
        /// Why.
        reason: String,
    },
}

/// What the server processes have in common.
#[derive(Clone, Debug)]
pub struct ProcessSettings {
    /// The program, `twinshard`.
    pub program: PathBuf,
    /// The cluster's directory.
    pub dir: PathBuf,
    /// Which cluster.
    pub cluster: ClusterId,
    /// The flags that say how servers serve.
    pub serving: Vec<OsString>,
}

/// The directory of a server below the cluster's. The id keeps a server apart from an earlier one of the same name, and the name of a
/// server from being a path.
#[must_use]
pub fn server_dir(dir: &Path, server: ServerId, name: &str) -> PathBuf {
    dir.join("servers").join(format!("{name}-{server}"))
}

/// The log file of a server.
#[must_use]
pub fn server_log(dir: &Path, server: ServerId, name: &str) -> PathBuf {
    dir.join("logs").join(format!("{name}-{server}.log"))
}

/// Starts and stops servers as child processes. Each server has a task of its own that owns its process.
#[derive(Debug)]
pub struct ProcessProvisioner {
    settings: ProcessSettings,
    keepers: Mutex<Keepers>,
}

#[derive(Debug, Default)]
struct Keepers {
    commands: BTreeMap<ServerId, mpsc::Sender<KeeperCommand>>,
    tasks: JoinSet<()>,
}

/// What a process may be sent, as a rehearsal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// It dies at once.
    Kill,
    /// It stands still.
    Stop,
    /// It goes on.
    Continue,
}

/// Sends it to a child, which its handle keeps from being another's pid. The pid, or `None` if it has ended.
///
/// # Errors
/// If the system refuses.
pub fn send(child: &Child, signal: Signal) -> std::io::Result<Option<u32>> {
    let Some(id) = child.id() else { return Ok(None) };
    let signal = match signal {
        Signal::Kill => rustix::process::Signal::KILL,
        Signal::Stop => rustix::process::Signal::STOP,
        Signal::Continue => rustix::process::Signal::CONT,
    };
    let pid = i32::try_from(id).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        rustix::process::kill_process(pid, signal)?;
    }
    Ok(Some(id))
}

#[derive(Debug)]
enum KeeperCommand {
    Start { replace: bool, reply: oneshot::Sender<Result<Address, String>> },
    Stop { reply: oneshot::Sender<Result<(), String>> },
    Signal { signal: Signal, reply: oneshot::Sender<Option<u32>> },
    LoseDisk { reply: oneshot::Sender<Result<(), String>> },
}

impl ProcessProvisioner {
    /// A provisioner without any process yet.
    #[must_use]
    pub fn new(settings: ProcessSettings) -> Self {
        Self { settings, keepers: Mutex::default() }
    }

    /// Signals the server's process, as a rehearsal. Its pid, or `None` if none runs.
    pub async fn signal(&self, server: ServerId, signal: Signal) -> Option<u32> {
        let keeper = self.known(server)?;
        let (reply, answer) = oneshot::channel();
        keeper.send(KeeperCommand::Signal { signal, reply }).await.ok()?;
        answer.await.ok().flatten()
    }

    /// Kills the server's process and removes all that it had stored, as a rehearsal.
    ///
    /// # Errors
    /// If there is no such server, or the files cannot be removed.
    pub async fn lose_disk(&self, server: ServerId) -> Result<(), String> {
        let keeper = self.known(server).ok_or_else(|| format!("{server} was never started"))?;
        let (reply, answer) = oneshot::channel();
        keeper.send(KeeperCommand::LoseDisk { reply }).await.map_err(|error| error.to_string())?;
        answer.await.map_err(|error| error.to_string())?
    }

    fn known(&self, server: ServerId) -> Option<mpsc::Sender<KeeperCommand>> {
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner).commands.get(&server).cloned()
    }

    /// Stops every process: asks by closing its standard input, kills what does not end in time.
    pub async fn shutdown(&self) {
        let mut keepers = std::mem::take(&mut *self.keepers.lock().unwrap_or_else(PoisonError::into_inner));
        keepers.commands.clear();
        while keepers.tasks.join_next().await.is_some() {}
    }

    fn keeper(&self, server: ServerId, name: &str, number: u64) -> mpsc::Sender<KeeperCommand> {
        let mut keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(commands) = keepers.commands.get(&server) {
            return commands.clone();
        }
        let (commands, taken) = mpsc::channel(COMMANDS_MAX);
        let keeper = Keeper { settings: self.settings.clone(), server, name: name.to_owned(), number, running: None };
        keepers.tasks.spawn(keeper.run(taken));
        keepers.commands.insert(server, commands.clone());
        commands
    }
}

impl Provisioner for ProcessProvisioner {
    async fn start(&self, server: ServerId, name: &str, number: u64, replace: bool) -> Result<Address, String> {
        let (reply, answer) = oneshot::channel();
        let keeper = self.keeper(server, name, number);
        keeper.try_send(KeeperCommand::Start { replace, reply }).map_err(|_| format!("{name} is still busy with earlier commands"))?;
        answer.await.map_err(|_| format!("{name} is being shut down"))?
    }

    async fn stop(&self, server: ServerId, name: &str) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        let keeper = self.keeper(server, name, 0);
        keeper.try_send(KeeperCommand::Stop { reply }).map_err(|_| format!("{name} is still busy with earlier commands"))?;
        answer.await.map_err(|_| format!("{name} is being shut down"))?
    }
}

#[derive(Debug)]
struct Running {
    child: Child,
    /// Kept apart, since waiting for a child closes the standard input that it holds, which asks the child to end.
    stdin: Option<ChildStdin>,
    address: Address,
}

/// Owns the process of one server.
#[derive(Debug)]
struct Keeper {
    settings: ProcessSettings,
    server: ServerId,
    name: String,
    number: u64,
    running: Option<Running>,
}

impl Keeper {
    async fn run(mut self, mut commands: mpsc::Receiver<KeeperCommand>) {
        loop {
            let command = tokio::select! {
                biased;
                command = commands.recv() => command,
                status = ended(&mut self.running) => {
                    tracing::warn!(server = %self.name, ?status, "server process ended");
                    self.running = None;
                    continue;
                }
            };
            match command {
                Some(KeeperCommand::Start { replace, reply }) => {
                    let result = self.start(replace).await;
                    if let Err(reason) = &result {
                        tracing::warn!(server = %self.name, reason, "server did not start");
                    }
                    let _ = reply.send(result);
                }
                Some(KeeperCommand::Stop { reply }) => {
                    self.close().await;
                    let _ = reply.send(Ok(()));
                }
                Some(KeeperCommand::Signal { signal, reply }) => {
                    let sent = self.running.as_ref().map_or(Ok(None), |running| send(&running.child, signal));
                    let _ = reply.send(sent.unwrap_or_else(|error| {
                        tracing::warn!(server = %self.name, %error, ?signal, "could not signal");
                        None
                    }));
                }
                Some(KeeperCommand::LoseDisk { reply }) => {
                    let _ = reply.send(self.lose_disk().await);
                }
                None => {
                    self.close().await;
                    return;
                }
            }
        }
    }

    async fn lose_disk(&mut self) -> Result<(), String> {
        if let Some(mut running) = self.running.take() {
            running.child.kill().await.map_err(|error| format!("could not kill {}: {error}", self.name))?;
        }
        let dir = server_dir(&self.settings.dir, self.server, &self.name);
        std::fs::remove_dir_all(&dir).map_err(|error| format!("could not remove {}: {error}", dir.display()))
    }

    async fn start(&mut self, replace: bool) -> Result<Address, String> {
        if let Some(mut running) = self.running.take() {
            let alive = matches!(running.child.try_wait(), Ok(None));
            if alive && !replace {
                let address = running.address.clone();
                self.running = Some(running);
                return Ok(address);
            }
            // SIGKILL also ends a process that is stopped; the handle is ours, so it cannot be another's pid.
            if alive {
                running.child.kill().await.map_err(|error| format!("could not stop the old process of {}: {error}", self.name))?;
            }
        }
        let mut child = self.spawn()?;
        let line = match child.stdout.take() {
            Some(stdout) => {
                let mut line = String::new();
                let mut reader = BufReader::new(stdout);
                match timeout(READY_TIMEOUT, reader.read_line(&mut line)).await {
                    Ok(Ok(_)) => Ok(line),
                    Ok(Err(error)) => Err(format!("could not read from {}: {error}", self.name)),
                    Err(_) => Err(format!("{} was not ready within {} s", self.name, READY_TIMEOUT.as_secs())),
                }
            }
            None => Err("no standard output".to_owned()),
        };
        let ready = line.and_then(|line| {
            serde_json::from_str::<ReadyLine>(&line).map_err(|_| {
                format!(
                    "{} ended before it was ready; see {}",
                    self.name,
                    server_log(&self.settings.dir, self.server, &self.name).display()
                )
            })
        });
        match ready {
            Ok(ReadyLine::Ready { http, peer }) => {
                let address = Address { http: http.into(), peer: peer.into() };
                let stdin = child.stdin.take();
                self.running = Some(Running { child, stdin, address: address.clone() });
                Ok(address)
            }
            Ok(ReadyLine::Failed { reason }) | Err(reason) => {
                child.kill().await.map_err(|error| format!("{reason}; and it could not be killed: {error}"))?;
                Err(reason)
            }
        }
    }

    fn spawn(&self) -> Result<Child, String> {
        let Self { settings, server, name, number, .. } = self;
        let dir = server_dir(&settings.dir, *server, name);
        let log_path = server_log(&settings.dir, *server, name);
        let prepare = |path: &Path| std::fs::create_dir_all(path).map_err(|error| format!("could not make {}: {error}", path.display()));
        prepare(&dir)?;
        prepare(&settings.dir.join("logs"))?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)
            .map_err(|error| format!("could not open {}: {error}", log_path.display()))?;
        Command::new(&settings.program)
            .arg("server")
            .arg("--dir")
            .arg(&dir)
            .arg("--id")
            .arg(server.0.to_string())
            .arg("--name")
            .arg(name)
            .arg("--number")
            .arg(number.to_string())
            .arg("--cluster")
            .arg(settings.cluster.to_string())
            .arg("--secret-file")
            .arg(settings.dir.join("secret"))
            .args(&settings.serving)
            .arg("--child")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C at the terminal is for the supervisor, which stops its children in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("could not run {}: {error}", settings.program.display()))
    }

    /// Closes the standard input, which a child takes as the wish that it ends, and waits; kills it if it does not.
    async fn close(&mut self) {
        if let Some(mut running) = self.running.take() {
            drop(running.stdin.take());
            if timeout(CLOSE_TIMEOUT, running.child.wait()).await.is_err()
                && let Err(error) = running.child.kill().await
            {
                tracing::warn!(server = %self.name, %error, "could not kill");
            }
        }
    }
}

/// Ends when the running process does; never if there is none.
async fn ended(running: &mut Option<Running>) -> std::io::Result<std::process::ExitStatus> {
    match running {
        Some(running) => running.child.wait().await,
        None => std::future::pending().await,
    }
}
