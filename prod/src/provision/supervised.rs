//! A balancer that is a supervisor's child has its servers started by the supervisor, so that they outlive it and can always be
//! signalled by the process that spawned them. They speak lines of JSON over the child's standard input and output.

use super::{Provisioner, process::ProcessProvisioner};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt},
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use twinshard_core::{id::ServerId, map::Address};

/// Lines that may wait to be written.
const LINES_MAX: usize = 1_024;

/// From the balancer to its supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromBalancer {
    /// It serves clients there, in this cluster.
    Ready {
        /// `host:port`.
        http: String,
    },
    /// It cannot start.
    Failed {
        /// Why.
        reason: String,
    },
    /// See [`Provisioner::start`].
    Start {
        /// The answer carries it.
        call: u64,
        /// Which server.
        server: u64,
        /// Its name.
        name: String,
        /// Its number.
        number: u64,
        /// Whether to stop one that runs.
        replace: bool,
    },
    /// See [`Provisioner::stop`].
    Stop {
        /// The answer carries it.
        call: u64,
        /// Which server.
        server: u64,
        /// Its name.
        name: String,
    },
}

/// From the supervisor to the balancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToBalancer {
    call: u64,
    /// `None` after a stop.
    result: Result<Option<(String, String)>, String>,
}

/// The balancer's end.
#[derive(Debug)]
pub struct SupervisedProvisioner {
    lines: mpsc::Sender<FromBalancer>,
    calls: Arc<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    last: AtomicU64,
    waiting: Mutex<BTreeMap<u64, oneshot::Sender<ToBalancer>>>,
}

impl SupervisedProvisioner {
    /// Speaks over these ends. The second value is the work of the connection: it ends when the supervisor closes its end, and the
    /// balancer must end then too.
    pub fn new<R, W>(input: R, mut output: W) -> (Self, mpsc::Sender<FromBalancer>, impl Future<Output = std::io::Result<()>>)
    where
        R: AsyncBufRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let (lines, mut queued) = mpsc::channel(LINES_MAX);
        let calls = Arc::new(Calls::default());
        let shared = Arc::clone(&calls);
        let work = async move {
            let mut answers = input.lines();
            loop {
                tokio::select! {
                    Some(line) = queued.recv() => write_line(&mut output, &line).await?,
                    line = answers.next_line() => {
                        let Some(line) = line? else { return Ok(()) };
                        let answer: ToBalancer = serde_json::from_str(&line)?;
                        let waiting = shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&answer.call);
                        if let Some(waiting) = waiting {
                            let _ = waiting.send(answer);
                        }
                    }
                }
            }
        };
        (Self { lines: lines.clone(), calls }, lines, work)
    }

    async fn call(&self, line: impl FnOnce(u64) -> FromBalancer) -> Result<Option<(String, String)>, String> {
        let call = self.calls.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (reply, answer) = oneshot::channel();
        self.calls.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(call, reply);
        if self.lines.try_send(line(call)).is_err() {
            self.calls.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&call);
            return Err("the supervisor does not take commands".to_owned());
        }
        answer.await.map_err(|_| "the supervisor is gone".to_owned())?.result
    }
}

impl Provisioner for SupervisedProvisioner {
    async fn start(&self, server: ServerId, name: &str, number: u64, replace: bool) -> Result<Address, String> {
        let name = name.to_owned();
        match self.call(|call| FromBalancer::Start { call, server: server.0, name, number, replace }).await? {
            Some((http, peer)) => Ok(Address { http: http.into(), peer: peer.into() }),
            None => Err("the supervisor did not say where the server runs".to_owned()),
        }
    }

    async fn stop(&self, server: ServerId, name: &str) -> Result<(), String> {
        let name = name.to_owned();
        self.call(|call| FromBalancer::Stop { call, server: server.0, name }).await.map(|_| ())
    }
}

/// The supervisor's end: takes the balancer's lines, carries its commands out by `provisioner`, answers. Ends when the balancer does.
///
/// # Errors
/// A line that is not one of ours, or an end that broke.
pub async fn serve_balancer<R, W>(
    input: R,
    mut output: W,
    provisioner: Arc<ProcessProvisioner>,
    mut said: impl FnMut(FromBalancer),
) -> std::io::Result<()>
where
    R: AsyncBufRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut lines = input.lines();
    let mut jobs: JoinSet<ToBalancer> = JoinSet::new();
    loop {
        tokio::select! {
            Some(done) = jobs.join_next() => match done {
                Ok(answer) => write_line(&mut output, &answer).await?,
                Err(error) => return Err(std::io::Error::other(error)),
            },
            line = lines.next_line() => {
                let Some(line) = line? else { return Ok(()) };
                let provisioner = Arc::clone(&provisioner);
                match serde_json::from_str(&line)? {
                    FromBalancer::Start { call, server, name, number, replace } => {
                        jobs.spawn(async move {
                            let result = provisioner.start(ServerId(server), &name, number, replace).await;
                            ToBalancer { call, result: result.map(|address| Some((address.http.into(), address.peer.into()))) }
                        });
                    }
                    FromBalancer::Stop { call, server, name } => {
                        jobs.spawn(async move {
                            let result = provisioner.stop(ServerId(server), &name).await;
                            ToBalancer { call, result: result.map(|()| None) }
                        });
                    }
                    other @ (FromBalancer::Ready { .. } | FromBalancer::Failed { .. }) => said(other),
                }
            }
        }
    }
}

async fn write_line<W: AsyncWrite + Unpin>(output: &mut W, line: &impl Serialize) -> std::io::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    output.write_all(&bytes).await?;
    output.flush().await
}
