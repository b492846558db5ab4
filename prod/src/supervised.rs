//! The channel between `twinshard up` and each balancer that is its child: lines of JSON over the child's standard input and output. The
//! supervisor starts and stops servers, so that they outlive the balancers and can always be signalled by the process that spawned them,
//! and it keeps the register, so that several balancers share it and none holds it locked.

use crate::{
    provision::{Provisioner, process::ProcessProvisioner},
    register::{Register, RegisterError},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Error},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt},
    runtime::Handle,
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};
use twinshard_core::{
    id::{MapVersion, ServerId},
    map::{Address, ClusterMap},
};

/// Lines that may wait to be written.
const LINES_MAX: usize = 1_024;
/// How long the register may take to answer before it counts as out of reach. A guess; its file is written in milliseconds.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);

/// From a balancer to its supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromBalancer {
    /// It serves clients there.
    Ready {
        /// `host:port`.
        http: String,
    },
    /// It cannot start.
    Failed {
        /// Why.
        reason: String,
    },
    /// It wants something done.
    Ask {
        /// The answer carries it.
        call: u64,
        /// What.
        ask: Ask,
    },
}

/// What a balancer has its supervisor do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// See [`Provisioner::start`].
    Start {
        /// Which server.
        server: ServerId,
        /// Its name.
        name: String,
        /// Its number.
        number: u64,
        /// Whether to stop one that runs.
        replace: bool,
    },
    /// See [`Provisioner::stop`].
    Stop {
        /// Which server.
        server: ServerId,
        /// Its name.
        name: String,
    },
    /// See [`Register::read`].
    Read,
    /// See [`Register::compare_and_set`].
    Swap {
        /// The version that is to be replaced.
        expected: MapVersion,
        /// By what.
        map: Box<ClusterMap>,
    },
}

/// From the supervisor to a balancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    call: u64,
    result: Result<Done, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Done {
    Started(Address),
    Stopped,
    Map { version: MapVersion, map: Box<ClusterMap> },
    Swapped(bool),
}

/// The balancer's end.
#[derive(Clone, Debug)]
struct Calls {
    lines: mpsc::Sender<FromBalancer>,
    last: Arc<AtomicU64>,
    waiting: Arc<Mutex<BTreeMap<u64, oneshot::Sender<Answer>>>>,
}

impl Calls {
    async fn call(&self, ask: Ask) -> Result<Done, String> {
        let call = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (reply, answer) = oneshot::channel();
        self.waiting().insert(call, reply);
        let _forget = Forget { calls: self, call };
        if self.lines.try_send(FromBalancer::Ask { call, ask }).is_err() {
            return Err("the supervisor does not take commands".to_owned());
        }
        answer.await.map_err(|_| "the supervisor is gone".to_owned())?.result
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, oneshot::Sender<Answer>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody waits for the call any longer.
struct Forget<'a> {
    calls: &'a Calls,
    call: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.calls.waiting().remove(&self.call);
    }
}

/// Has the supervisor start and stop servers.
#[derive(Clone, Debug)]
pub struct SupervisedProvisioner(Calls);

/// The register that the supervisor keeps.
#[derive(Clone, Debug)]
pub struct SupervisedRegister {
    calls: Calls,
    runtime: Handle,
}

/// What a balancer has of its supervisor.
#[derive(Clone, Debug)]
pub struct Supervised {
    /// Starts and stops servers.
    pub provisioner: SupervisedProvisioner,
    /// Holds the cluster map.
    pub register: SupervisedRegister,
    /// Takes [`FromBalancer::Ready`] and [`FromBalancer::Failed`].
    pub lines: mpsc::Sender<FromBalancer>,
}

/// Speaks over these ends, within a tokio runtime. The second value is the work of the connection: it ends when the supervisor closes its
/// end, and the balancer must end then too.
pub fn connect<R, W>(input: R, mut output: W) -> (Supervised, impl Future<Output = io::Result<()>>)
where
    R: AsyncBufRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (lines, mut queued) = mpsc::channel(LINES_MAX);
    let calls = Calls { lines: lines.clone(), last: Arc::default(), waiting: Arc::default() };
    let shared = calls.clone();
    let work = async move {
        let read = async {
            let mut input = input.lines();
            while let Some(line) = input.next_line().await? {
                let answer: Answer = parse(&line)?;
                let waiting = shared.waiting().remove(&answer.call);
                if let Some(waiting) = waiting {
                    // Who asked may have given up meanwhile.
                    let _ = waiting.send(answer);
                }
            }
            Ok(())
        };
        let ended = tokio::select! {
            ended = read => ended,
            ended = write_lines(&mut output, &mut queued) => ended,
        };
        // Nobody will be answered any more.
        queued.close();
        shared.waiting().clear();
        ended
    };
    let register = SupervisedRegister { calls: calls.clone(), runtime: Handle::current() };
    (Supervised { provisioner: SupervisedProvisioner(calls), register, lines }, work)
}

const MISMATCH: &str = "the supervisor answered something else than was asked";

impl Provisioner for SupervisedProvisioner {
    async fn start(&self, server: ServerId, name: &str, number: u64, replace: bool) -> Result<Address, String> {
        match self.0.call(Ask::Start { server, name: name.to_owned(), number, replace }).await? {
            Done::Started(address) => Ok(address),
            Done::Stopped | Done::Map { .. } | Done::Swapped(_) => Err(MISMATCH.to_owned()),
        }
    }

    async fn stop(&self, server: ServerId, name: &str) -> Result<(), String> {
        match self.0.call(Ask::Stop { server, name: name.to_owned() }).await? {
            Done::Stopped => Ok(()),
            Done::Started(_) | Done::Map { .. } | Done::Swapped(_) => Err(MISMATCH.to_owned()),
        }
    }
}

impl SupervisedRegister {
    fn call(&self, ask: Ask) -> Result<Done, RegisterError> {
        let answer = self.runtime.block_on(async { timeout(REGISTER_TIMEOUT, self.calls.call(ask)).await });
        let result = answer.unwrap_or_else(|_| Err(format!("no answer from the supervisor within {} s", REGISTER_TIMEOUT.as_secs())));
        result.map_err(RegisterError::Failed)
    }
}

/// Called on a thread of its own, outside the runtime.
impl Register for SupervisedRegister {
    fn read(&mut self) -> Result<(MapVersion, Arc<ClusterMap>), RegisterError> {
        match self.call(Ask::Read)? {
            Done::Map { version, map } => Ok((version, Arc::from(map))),
            Done::Started(_) | Done::Stopped | Done::Swapped(_) => Err(RegisterError::Failed(MISMATCH.to_owned())),
        }
    }

    fn compare_and_set(&mut self, expected: MapVersion, map: &ClusterMap) -> Result<bool, RegisterError> {
        match self.call(Ask::Swap { expected, map: Box::new(map.clone()) })? {
            Done::Swapped(done) => Ok(done),
            Done::Started(_) | Done::Stopped | Done::Map { .. } => Err(RegisterError::Failed(MISMATCH.to_owned())),
        }
    }
}

/// What a supervisor does for its balancers. Clones share the same register and servers.
#[derive(Clone)]
pub struct Services {
    /// Runs the servers.
    pub provisioner: Arc<ProcessProvisioner>,
    /// Holds the cluster map.
    pub register: Arc<Mutex<dyn Register>>,
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services").finish_non_exhaustive()
    }
}

impl Services {
    /// Does what the register is asked. Blocks.
    fn register(&self, ask: impl FnOnce(&mut dyn Register) -> Result<Done, RegisterError>) -> Result<Done, String> {
        let mut register = self.register.lock().unwrap_or_else(PoisonError::into_inner);
        ask(&mut *register).map_err(|error| error.to_string())
    }
}

/// The supervisor's end: takes a balancer's lines, does what it asks, answers. Ends when the balancer does.
///
/// # Errors
/// A line that is not one of ours, or an end that broke.
pub async fn serve_balancer<R, W>(input: R, mut output: W, services: Services, mut said: impl FnMut(FromBalancer)) -> io::Result<()>
where
    R: AsyncBufRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (answers, mut queued) = mpsc::channel::<Answer>(LINES_MAX);
    let read = async {
        let mut lines = input.lines();
        let mut jobs: JoinSet<()> = JoinSet::new();
        loop {
            let line = tokio::select! {
                Some(done) = jobs.join_next() => {
                    done.map_err(Error::other)?;
                    continue;
                }
                line = lines.next_line() => line?,
            };
            let Some(line) = line else { return Ok(()) };
            let (call, ask) = match parse(&line)? {
                FromBalancer::Ask { call, ask } => (call, ask),
                other @ (FromBalancer::Ready { .. } | FromBalancer::Failed { .. }) => {
                    said(other);
                    continue;
                }
            };
            let (services, answers) = (services.clone(), answers.clone());
            jobs.spawn(async move {
                let result = services.answer(ask).await;
                // The balancer may be gone meanwhile.
                let _ = answers.send(Answer { call, result }).await;
            });
        }
    };
    // Beside each other: were one to wait for the other, two full pipes would wait for ever.
    tokio::select! {
        ended = read => ended,
        ended = write_lines(&mut output, &mut queued) => ended,
    }
}

impl Services {
    #[expect(clippy::disallowed_methods, reason = "no supervisor is ever simulated")]
    async fn answer(&self, ask: Ask) -> Result<Done, String> {
        let services = self.clone();
        let work = match ask {
            Ask::Start { server, name, number, replace } => {
                return self.provisioner.start(server, &name, number, replace).await.map(Done::Started);
            }
            Ask::Stop { server, name } => return self.provisioner.stop(server, &name).await.map(|()| Done::Stopped),
            Ask::Read => tokio::task::spawn_blocking(move || {
                services.register(|register| {
                    register.read().map(|(version, map)| Done::Map { version, map: Box::new(Arc::unwrap_or_clone(map)) })
                })
            }),
            Ask::Swap { expected, map } => tokio::task::spawn_blocking(move || {
                services.register(|register| register.compare_and_set(expected, &map).map(Done::Swapped))
            }),
        };
        work.await.unwrap_or_else(|error| Err(format!("the register failed: {error}")))
    }
}

fn parse<T: DeserializeOwned>(line: &str) -> io::Result<T> {
    serde_json::from_str(line).map_err(Error::other)
}

/// Never ends by itself while `queued` is open.
async fn write_lines<W: AsyncWrite + Unpin>(output: &mut W, queued: &mut mpsc::Receiver<impl Serialize>) -> io::Result<()> {
    while let Some(line) = queued.recv().await {
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        output.write_all(&bytes).await?;
        output.flush().await?;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{disk::memory::MemoryDisk, provision::process::ProcessSettings, register::redb::RedbRegister};
    use tokio::io::{BufReader, duplex};
    use twinshard_core::id::{BalancerId, ClusterId, SessionId};

    fn services(disk: &MemoryDisk) -> Services {
        let settings =
            ProcessSettings { program: "/nowhere/twinshard".into(), dir: "/nowhere".into(), cluster: ClusterId(7), serving: vec![] };
        let register = RedbRegister::open_on(disk, &ClusterMap { cluster: ClusterId(7), ..ClusterMap::default() }).unwrap();
        Services { provisioner: Arc::new(ProcessProvisioner::new(settings)), register: Arc::new(Mutex::new(register)) }
    }

    /// A balancer's end, connected to a supervisor with those services.
    fn connected(services: &Services) -> Supervised {
        let (ours, theirs) = duplex(1_000);
        let (input, output) = tokio::io::split(ours);
        let (supervised, work) = connect(BufReader::new(input), output);
        tokio::spawn(work);
        let (input, output) = tokio::io::split(theirs);
        tokio::spawn(serve_balancer(BufReader::new(input), output, services.clone(), |_| {}));
        supervised
    }

    async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, answer) = oneshot::channel();
        std::thread::spawn(move || done.send(work()).map_err(|_| "nobody waits").unwrap());
        answer.await.unwrap()
    }

    /// Far longer than what the pipe holds.
    fn large(map: &ClusterMap) -> ClusterMap {
        let sessions = (1..=3_000).map(|id| (SessionId(id), BalancerId(id))).collect();
        ClusterMap { sessions, ..map.clone() }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn balancers_share_one_register() {
        let services = services(&MemoryDisk::default());
        let (mut first, mut second) = (connected(&services).register, connected(&services).register);
        on_a_thread(move || {
            let (version, map) = first.read().unwrap();
            assert_eq!((version, map.cluster), (MapVersion(0), ClusterId(7)));
            let next = large(&map);
            assert!(first.compare_and_set(version, &next).unwrap());
            assert!(!second.compare_and_set(version, &map).unwrap(), "the other was first");
            let (version, read) = second.read().unwrap();
            assert_eq!((version, &*read), (MapVersion(1), &next));
            assert!(second.compare_and_set(version, &map).unwrap());
            assert_eq!(first.read().unwrap().0, MapVersion(2));
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn failure_of_a_server_to_start_is_told() {
        let supervised = connected(&services(&MemoryDisk::default()));
        let reason = supervised.provisioner.start(ServerId(1), "Server0", 0, false).await.unwrap_err();
        assert!(reason.contains("/nowhere"), "{reason}");
        assert_eq!(supervised.provisioner.stop(ServerId(1), "Server0").await, Ok(()));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nobody_waits_for_a_supervisor_that_is_gone() {
        let (ours, theirs) = duplex(1_000);
        let (input, output) = tokio::io::split(ours);
        let (Supervised { mut register, provisioner, .. }, work) = connect(BufReader::new(input), output);
        let work = tokio::spawn(work);
        let waiting = tokio::spawn(async move { provisioner.start(ServerId(1), "Server0", 0, false).await });
        tokio::task::yield_now().await;
        drop(theirs);
        assert!(waiting.await.unwrap().is_err());
        let _ = work.await.unwrap();
        assert!(matches!(on_a_thread(move || register.read()).await, Err(RegisterError::Failed(_))));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn line_that_is_not_ours_ends_the_channel() {
        let (ours, theirs) = duplex(1_000);
        let (input, output) = tokio::io::split(theirs);
        let served = tokio::spawn(serve_balancer(BufReader::new(input), output, services(&MemoryDisk::default()), |_| {}));
        let (_input, mut output) = tokio::io::split(ours);
        output.write_all(b"{\"ask\":\n").await.unwrap();
        assert!(served.await.unwrap().is_err());
    }
}
