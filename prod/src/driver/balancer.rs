//! The task that owns a balancer machine.

use super::{
    Clock, INPUTS_MAX, NodeError, Notes, StorageMode, StorageWork, TICK_MIN,
    pending::Pending,
    server::{depth, next_ask},
    worker::Worker,
};
use crate::{
    handle::Ask,
    net::Network,
    peer::{Identity, Inbound, Peers},
    provision::Provisioner,
    register::{Register, RegisterError},
    request_id,
};
use prometheus_client::metrics::gauge::Gauge;
use std::{pin::Pin, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
    time::{Instant, Sleep},
};
use twinshard_core::{
    balancer::BalancerMachine,
    effect::{BalancerEffect, BalancerInput, ProvisionAnswer, ProvisionCommand, RegisterAnswer},
    id::{MapVersion, NodeId, ServerId, Token},
    map::ClusterMap,
    message::Message,
    request::{Reply, Request},
};

/// How many register operations are handed to its thread before one is answered.
const REGISTER_WINDOW: usize = 8;
/// How often requests are looked through for those whose client is gone. A guess: what they cost until then is a place in a queue.
const SWEEP_EVERY: Duration = Duration::from_millis(250);
/// The longest that a provisioner may take; then it is dropped and counts as failed. Longer than a container takes from nothing.
const PROVISION_MAX: Duration = Duration::from_secs(60);

enum RegisterJob {
    Read(Token),
    Swap(Token, MapVersion, Arc<ClusterMap>),
}

type RegisterWorker = Worker<RegisterJob, (Token, RegisterAnswer)>;

/// A balancer machine and all it is connected to.
pub(crate) struct BalancerDriver<N: Network, P: Provisioner> {
    machine: BalancerMachine,
    clock: Clock,
    peers: Peers<N>,
    inbound: mpsc::Receiver<Inbound>,
    asks: Option<mpsc::Receiver<Ask<Request, Reply>>>,
    register: RegisterWorker,
    provisioner: Arc<P>,
    provisioning: JoinSet<(Token, ProvisionAnswer)>,
    pending: Pending<Reply>,
    /// Tells how many requests are not answered.
    depth: Gauge,
    swept: Instant,
    map: watch::Sender<Option<(MapVersion, Arc<ClusterMap>)>>,
    /// The newest map, until others are told.
    newest: Option<(MapVersion, Arc<ClusterMap>)>,
    identity: watch::Sender<Option<Identity>>,
    notes: Notes,
    stop: watch::Receiver<bool>,
    ticked: Option<Instant>,
}

/// What a balancer driver is made of, apart from storage.
pub(crate) struct BalancerEnds<N: Network, P: Provisioner> {
    pub(crate) machine: BalancerMachine,
    pub(crate) clock: Clock,
    pub(crate) peers: Peers<N>,
    pub(crate) inbound: mpsc::Receiver<Inbound>,
    pub(crate) asks: mpsc::Receiver<Ask<Request, Reply>>,
    pub(crate) provisioner: P,
    pub(crate) map: watch::Sender<Option<(MapVersion, Arc<ClusterMap>)>>,
    pub(crate) identity: watch::Sender<Option<Identity>>,
    pub(crate) notes: Notes,
    pub(crate) stop: watch::Receiver<bool>,
}

impl<N: Network, P: Provisioner> BalancerDriver<N, P> {
    /// Starts the storage.
    pub(crate) fn new(ends: BalancerEnds<N, P>, storage: &StorageMode, mut register: impl Register) -> Result<Self, NodeError> {
        let register = Worker::start(
            "metadata register",
            storage,
            ends.notes.telemetry(),
            REGISTER_WINDOW,
            |job| match job {
                RegisterJob::Read(_) => StorageWork::RegisterRead,
                RegisterJob::Swap(..) => StorageWork::RegisterSwap,
            },
            |(_, answer)| matches!(answer, RegisterAnswer::Unavailable),
            move |job| match job {
                RegisterJob::Read(token) => {
                    let answer = register.read().map(|(version, map)| RegisterAnswer::Read { version, map });
                    (token, answer.unwrap_or_else(|error| unavailable(&error)))
                }
                RegisterJob::Swap(token, expected, map) => {
                    let answer = register.compare_and_set(expected, &map);
                    let answer = answer.map(|done| if done { RegisterAnswer::Swapped } else { RegisterAnswer::Conflict });
                    (token, answer.unwrap_or_else(|error| unavailable(&error)))
                }
            },
        )?;
        let BalancerEnds { machine, clock, peers, inbound, asks, provisioner, map, identity, notes, stop } = ends;
        Ok(Self {
            machine,
            clock,
            peers,
            inbound,
            asks: Some(asks),
            register,
            provisioner: Arc::new(provisioner),
            provisioning: JoinSet::new(),
            pending: Pending::new(),
            depth: notes.telemetry().queue("requests"),
            swept: Instant::now(),
            map,
            newest: None,
            identity,
            notes,
            stop,
            ticked: None,
        })
    }

    /// Runs until told to stop, and leaves everything closed.
    pub(crate) async fn run(mut self) -> Result<(), NodeError> {
        let ran = self.work().await;
        self.provisioning.shutdown().await;
        self.peers.close().await;
        ran.and(self.register.close().await)
    }

    async fn work(&mut self) -> Result<(), NodeError> {
        let mut inputs = vec![BalancerInput::Tick];
        let mut effects = Vec::new();
        let mut timer = Box::pin(tokio::time::sleep_until(Instant::now()));
        while !*self.stop.borrow() {
            self.gather(&mut inputs)?;
            if inputs.is_empty() {
                self.wait(timer.as_mut(), &mut inputs).await?;
                self.gather(&mut inputs)?;
            }
            let now = self.clock.now();
            for input in inputs.drain(..) {
                self.machine.step(now, input, &mut effects);
            }
            self.carry_out(&mut effects)?;
            tokio::task::coop::consume_budget().await;
        }
        Ok(())
    }

    /// Takes what is ready, a bounded number from each source.
    fn gather(&mut self, inputs: &mut Vec<BalancerInput>) -> Result<(), NodeError> {
        self.peers.check()?;
        while let Some((token, answer)) = self.register.try_answer()? {
            inputs.push(BalancerInput::Register { token, answer });
        }
        for _ in 0..INPUTS_MAX {
            let Some(joined) = self.provisioning.try_join_next() else { break };
            inputs.push(provisioned(joined)?);
        }
        let mut taken = 0;
        while taken < INPUTS_MAX {
            let Ok(inbound) = self.inbound.try_recv() else { break };
            taken += inbound.messages.len();
            received(inbound, inputs);
        }
        for _ in 0..INPUTS_MAX {
            let Some(Ok(ask)) = self.asks.as_mut().map(mpsc::Receiver::try_recv) else { break };
            self.asked(ask, inputs);
        }
        let now = Instant::now();
        if self.pending.len() > 0 && self.swept + SWEEP_EVERY <= now {
            self.swept = now;
            inputs.extend(self.pending.sweep().into_iter().map(|token| BalancerInput::Abandoned { token }));
        }
        if self.tick_at().is_some_and(|due| due <= now) {
            self.ticked = Some(now);
            inputs.push(BalancerInput::Tick);
        }
        Ok(())
    }

    /// Waits until anything happens.
    async fn wait(&mut self, mut timer: Pin<&mut Sleep>, inputs: &mut Vec<BalancerInput>) -> Result<(), NodeError> {
        let sweep = (self.pending.len() > 0).then(|| self.swept + SWEEP_EVERY);
        let due = match (self.tick_at(), sweep) {
            (Some(tick), Some(sweep)) => Some(tick.min(sweep)),
            (tick, sweep) => tick.or(sweep),
        };
        if let Some(due) = due
            && timer.deadline() != due
        {
            timer.as_mut().reset(due);
        }
        tokio::select! {
            biased;
            changed = self.stop.changed() => changed.map_err(|_| NodeError::Ended("node"))?,
            answer = self.register.answer() => {
                let (token, answer) = answer?;
                inputs.push(BalancerInput::Register { token, answer });
            }
            Some(joined) = self.provisioning.join_next() => inputs.push(provisioned(joined)?),
            inbound = self.inbound.recv() => match inbound {
                Some(inbound) => received(inbound, inputs),
                None => return Err(NodeError::Ended("peer transport")),
            },
            ask = next_ask(&mut self.asks) => self.asked(ask, inputs),
            () = timer, if due.is_some() => {}
        }
        Ok(())
    }

    fn tick_at(&self) -> Option<Instant> {
        let wanted = self.clock.wake(self.machine.next_deadline()?)?;
        Some(self.ticked.map_or(wanted, |ticked| wanted.max(ticked + TICK_MIN)))
    }

    /// The machine bounds how many it takes (`requests_max`) and answers the others at once.
    fn asked(&mut self, ask: Ask<Request, Reply>, inputs: &mut Vec<BalancerInput>) {
        let deadline = self.clock.at(ask.deadline);
        let token = self.pending.add(ask.reply, ask.id);
        inputs.push(BalancerInput::Request { token, request: ask.request, deadline });
    }

    fn carry_out(&mut self, effects: &mut Vec<BalancerEffect>) -> Result<(), NodeError> {
        for effect in effects.drain(..) {
            match effect {
                BalancerEffect::Send { to, message } => {
                    self.log_exchange(to, &message);
                    self.peers.send(NodeId::Server(to), message);
                }
                BalancerEffect::Reply { token, reply } => {
                    self.pending.answer(token, reply);
                }
                BalancerEffect::RegisterRead { token } => self.register.submit(RegisterJob::Read(token))?,
                BalancerEffect::RegisterCas { token, expected, map } => self.register.submit(RegisterJob::Swap(token, expected, map))?,
                BalancerEffect::Provision { token, command } => self.provision(token, command),
                BalancerEffect::Publish { version, map } => self.newest = Some((version, map)),
                BalancerEffect::Note(note) => self.notes.tell(self.machine.id().map(NodeId::Balancer), &note),
            }
        }
        self.depth.set(depth(self.pending.len()));
        self.introduce();
        Ok(())
    }

    /// Says of which request an exchange with a server is a part.
    fn log_exchange(&self, server: ServerId, message: &Message) {
        if let Some(exchange) = request_id::asked(message)
            && tracing::enabled!(target: request_id::TARGET, tracing::Level::DEBUG)
            && let Some(request) = self.machine.request_of(exchange.1).and_then(|token| self.pending.id(token))
            && let Some(id) = self.machine.id()
        {
            request_id::log_asked(request, NodeId::Balancer(id), exchange, NodeId::Server(server));
        }
    }

    /// Tells the transport who it speaks for, and routers and transport the newest map, once the machine has an id: it is minted in the
    /// register, and before that nothing can be sent or served.
    fn introduce(&mut self) {
        let Some(id) = self.machine.id() else { return };
        let Some((version, map)) = self.newest.take() else { return };
        let identity = Identity { cluster: map.cluster, node: NodeId::Balancer(id) };
        self.identity.send_if_modified(|known| {
            let changed = *known != Some(identity);
            *known = Some(identity);
            changed
        });
        self.map.send_replace(Some((version, map)));
    }

    fn provision(&mut self, token: Token, command: ProvisionCommand) {
        let provisioner = Arc::clone(&self.provisioner);
        self.provisioning.spawn(async move {
            let work = async {
                match &command {
                    ProvisionCommand::Start { server, name, number, replace } => {
                        provisioner.start(*server, name, *number, *replace).await.map(|address| ProvisionAnswer::Started { address })
                    }
                    ProvisionCommand::Stop { server, name } => provisioner.stop(*server, name).await.map(|()| ProvisionAnswer::Stopped),
                }
            };
            let answer = tokio::time::timeout(PROVISION_MAX, work).await.unwrap_or_else(|_| Err("it took too long".to_owned()));
            (token, answer.unwrap_or_else(|reason| ProvisionAnswer::Failed { reason: reason.into() }))
        });
    }
}

fn received(inbound: Inbound, inputs: &mut Vec<BalancerInput>) {
    match inbound.from {
        NodeId::Server(from) => {
            inputs.extend(inbound.messages.into_iter().map(|message| BalancerInput::Message { from, message }));
        }
        // A balancer listens to nobody and dials servers alone, so the handshake has excluded this.
        NodeId::Balancer(other) => tracing::warn!(%other, "a balancer spoke to a balancer"),
    }
}

fn provisioned(joined: Result<(Token, ProvisionAnswer), JoinError>) -> Result<BalancerInput, NodeError> {
    match joined {
        Ok((token, answer)) => Ok(BalancerInput::Provisioned { token, answer }),
        Err(error) => {
            tracing::error!(%error, "the provisioner failed");
            Err(NodeError::Ended("provisioner"))
        }
    }
}

fn unavailable(error: &RegisterError) -> RegisterAnswer {
    tracing::warn!(%error, "the metadata register does not answer");
    RegisterAnswer::Unavailable
}
