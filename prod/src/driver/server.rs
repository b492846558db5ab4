//! The task that owns a server machine.

use super::{Clock, INPUTS_MAX, NodeError, Notes, StorageMode, StorageWork, TICK_MIN, pending::Pending, worker::Worker};
use crate::{
    handle::Ask,
    log::{Log, LogError},
    net::Network,
    peer::{Inbound, Peers},
    request_id,
    rows::{RowStore, StoreError},
    telemetry::Telemetry,
};
use prometheus_client::metrics::gauge::Gauge;
use std::{pin::Pin, sync::Arc};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, Sleep},
};
use twinshard_core::{
    effect::{ServerEffect, ServerInput},
    id::{ClusterId, MapVersion, NodeId, ReplicaId, Token},
    map::ClusterMap,
    message::{Message, ToServer},
    request::{RequestError, ServerReply, ServerRequest},
    server::ServerMachine,
    storage::{LogBatch, StoreAnswer, StoreCommand},
};

/// The most requests of its own HTTP that wait at a server; one more is answered `Overloaded`. A guess.
const REQUESTS_MAX: usize = 4_096;
/// How many commands are handed to the row store's thread before one is answered: enough that it need not wait for the driver.
const ROWS_WINDOW: usize = 128;

/// Batches under one fsync, with the tokens to answer.
type Group = (Vec<Token>, Vec<LogBatch>);
type LogWorker = Worker<Group, Result<Vec<Token>, LogError>>;
type RowsWorker = Worker<(Token, ReplicaId, StoreCommand), Result<(Token, StoreAnswer), StoreError>>;

/// How much waits at the driver.
struct Depths {
    requests: Gauge,
    unsynced: Gauge,
}

impl Depths {
    fn new(telemetry: &Telemetry) -> Self {
        Self { requests: telemetry.queue("requests"), unsynced: telemetry.queue("log batches") }
    }
}

/// As gauges have it.
pub(super) fn depth(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A server machine and all it is connected to.
pub(crate) struct ServerDriver<N: Network> {
    machine: ServerMachine,
    node: NodeId,
    cluster: ClusterId,
    clock: Clock,
    peers: Peers<N>,
    inbound: mpsc::Receiver<Inbound>,
    asks: Option<mpsc::Receiver<Ask<ServerRequest, ServerReply>>>,
    log: LogWorker,
    /// What the log has not begun: it joins the next group.
    unsynced: Group,
    rows: RowsWorker,
    pending: Pending<ServerReply>,
    depths: Depths,
    map: watch::Sender<Option<(MapVersion, Arc<ClusterMap>)>>,
    notes: Notes,
    stop: watch::Receiver<bool>,
    ticked: Option<Instant>,
}

/// What a server driver is made of, apart from storage.
pub(crate) struct ServerEnds<N: Network> {
    pub(crate) machine: ServerMachine,
    pub(crate) cluster: ClusterId,
    pub(crate) clock: Clock,
    pub(crate) peers: Peers<N>,
    pub(crate) inbound: mpsc::Receiver<Inbound>,
    pub(crate) asks: mpsc::Receiver<Ask<ServerRequest, ServerReply>>,
    pub(crate) map: watch::Sender<Option<(MapVersion, Arc<ClusterMap>)>>,
    pub(crate) notes: Notes,
    pub(crate) stop: watch::Receiver<bool>,
}

/// What a row store answers, reads that wait one behind the other together.
fn carry_out(rows: &mut impl RowStore, jobs: Vec<(Token, ReplicaId, StoreCommand)>) -> Vec<Result<(Token, StoreAnswer), StoreError>> {
    let (mut tokens, mut reads, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    for (token, replica, command) in jobs {
        if let StoreCommand::Read(query) = command {
            tokens.push(token);
            reads.push((replica, query));
        } else {
            answers.push(rows.execute(replica, command).map(|answer| (token, answer)));
        }
    }
    let read = if reads.is_empty() { Vec::new() } else { rows.read_all(reads) };
    answers.extend(tokens.into_iter().zip(read).map(|(token, answer)| answer.map(|answer| (token, answer))));
    answers
}

impl<N: Network> ServerDriver<N> {
    /// Starts the storage.
    pub(crate) fn new(ends: ServerEnds<N>, storage: &StorageMode, mut log: impl Log, mut rows: impl RowStore) -> Result<Self, NodeError> {
        let log = Worker::start(
            "log",
            storage,
            ends.notes.telemetry(),
            1,
            |(_, batches): &Group| StorageWork::Persist { record_count: batches.iter().map(Vec::len).sum() },
            Result::is_err,
            move |(tokens, batches): Group| log.persist(&batches).map(|()| tokens),
        )?;
        let rows = Worker::start_gathering(
            "row store",
            storage,
            ends.notes.telemetry(),
            ROWS_WINDOW,
            |(_, _, command)| match command {
                StoreCommand::Read(_)
                | StoreCommand::ReadSnapshot { .. }
                | StoreCommand::ReadPinned { .. }
                | StoreCommand::OpenSnapshot(_)
                | StoreCommand::CloseSnapshot(_) => StorageWork::RowsRead,
                _ => StorageWork::RowsWrite,
            },
            |answer| !matches!(answer, Ok((_, answer)) if !matches!(answer, StoreAnswer::Unavailable | StoreAnswer::Lost(_))),
            |(_, _, command)| matches!(command, StoreCommand::Read(_)),
            move |jobs| carry_out(&mut rows, jobs),
        )?;
        let ServerEnds { machine, cluster, clock, peers, inbound, asks, map, notes, stop } = ends;
        Ok(Self {
            node: NodeId::Server(machine.id()),
            machine,
            cluster,
            clock,
            peers,
            inbound,
            asks: Some(asks),
            log,
            unsynced: (Vec::new(), Vec::new()),
            rows,
            pending: Pending::new(),
            depths: Depths::new(notes.telemetry()),
            map,
            notes,
            stop,
            ticked: None,
        })
    }

    /// Runs until told to stop or until storage fails, and leaves everything closed.
    pub(crate) async fn run(mut self) -> Result<(), NodeError> {
        let ran = self.work().await;
        self.peers.close().await;
        let log = self.log.close().await;
        let rows = self.rows.close().await;
        ran.and(log).and(rows)
    }

    async fn work(&mut self) -> Result<(), NodeError> {
        let mut inputs = Vec::new();
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
            // A driver that always finds work must let others have the processor, too.
            tokio::task::coop::consume_budget().await;
        }
        Ok(())
    }

    /// Takes what is ready, a bounded number from each source.
    fn gather(&mut self, inputs: &mut Vec<ServerInput>) -> Result<(), NodeError> {
        self.peers.check()?;
        while let Some(answer) = self.log.try_answer()? {
            persisted(answer, inputs)?;
        }
        for _ in 0..INPUTS_MAX {
            let Some(answer) = self.rows.try_answer()? else { break };
            stored(answer, inputs)?;
        }
        let mut taken = 0;
        while taken < INPUTS_MAX {
            let Ok(inbound) = self.inbound.try_recv() else { break };
            taken += inbound.messages.len();
            self.received(inbound, inputs);
        }
        for _ in 0..INPUTS_MAX {
            let Some(Ok(ask)) = self.asks.as_mut().map(mpsc::Receiver::try_recv) else { break };
            self.asked(ask, inputs);
        }
        if self.tick_at().is_some_and(|due| due <= Instant::now()) {
            self.ticked = Some(Instant::now());
            inputs.push(ServerInput::Tick);
        }
        Ok(())
    }

    /// Waits until anything happens.
    async fn wait(&mut self, mut timer: Pin<&mut Sleep>, inputs: &mut Vec<ServerInput>) -> Result<(), NodeError> {
        let due = self.tick_at();
        if let Some(due) = due
            && timer.deadline() != due
        {
            timer.as_mut().reset(due);
        }
        tokio::select! {
            biased;
            // The sender is dropped only with the node: as good as a stop. The loop looks.
            changed = self.stop.changed() => changed.map_err(|_| NodeError::Ended("node"))?,
            answer = self.log.answer() => persisted(answer?, inputs)?,
            answer = self.rows.answer() => stored(answer?, inputs)?,
            inbound = self.inbound.recv() => match inbound {
                Some(inbound) => self.received(inbound, inputs),
                None => return Err(NodeError::Ended("peer transport")),
            },
            ask = next_ask(&mut self.asks) => self.asked(ask, inputs),
            () = timer, if due.is_some() => {}
        }
        Ok(())
    }

    /// When the machine wants to be called, at the earliest a moment after the last time.
    fn tick_at(&self) -> Option<Instant> {
        let wanted = self.clock.wake(self.machine.next_deadline()?)?;
        Some(self.ticked.map_or(wanted, |ticked| wanted.max(ticked + TICK_MIN)))
    }

    fn received(&self, inbound: Inbound, inputs: &mut Vec<ServerInput>) {
        let from = inbound.from;
        for message in inbound.messages {
            // The transport needs to know where the others are. What the machine makes of the map is its own affair.
            if let Message::ToServer(ToServer::Map { version, map }) = &message {
                self.learn(*version, map);
            }
            request_id::log_exchange(from, request_id::asked(&message), self.node, "asked");
            inputs.push(ServerInput::Message { from, message });
        }
    }

    fn learn(&self, version: MapVersion, map: &Arc<ClusterMap>) {
        if map.cluster == self.cluster {
            self.map.send_if_modified(|known| {
                let newer = known.as_ref().is_none_or(|(had, _)| *had < version);
                if newer {
                    *known = Some((version, Arc::clone(map)));
                }
                newer
            });
        }
    }

    fn asked(&mut self, ask: Ask<ServerRequest, ServerReply>, inputs: &mut Vec<ServerInput>) {
        if self.pending.len() >= REQUESTS_MAX {
            self.pending.sweep();
        }
        if self.pending.len() >= REQUESTS_MAX {
            let token = self.pending.add(ask.reply, ask.id);
            self.pending.answer(token, ServerReply::Failed(RequestError::Overloaded));
            return;
        }
        let deadline = self.clock.at(ask.deadline);
        let token = self.pending.add(ask.reply, ask.id);
        inputs.push(ServerInput::Request { token, request: ask.request, deadline });
    }

    /// Says of which request of its own HTTP an exchange with another server is a part.
    fn log_asked(&self, to: NodeId, message: &Message) {
        if let Some(exchange) = request_id::asked(message)
            && tracing::enabled!(target: request_id::TARGET, tracing::Level::DEBUG)
            && let Some(request) = self.machine.request_of(exchange.1).and_then(|token| self.pending.id(token))
        {
            request_id::log_asked(request, self.node, exchange, to);
        }
    }

    fn carry_out(&mut self, effects: &mut Vec<ServerEffect>) -> Result<(), NodeError> {
        for effect in effects.drain(..) {
            match effect {
                ServerEffect::Send { to, message } => {
                    request_id::log_exchange(to, request_id::answered(&message), self.node, "answers");
                    self.log_asked(to, &message);
                    self.peers.send(to, message);
                }
                ServerEffect::Persist { token, batch } => {
                    self.unsynced.0.push(token);
                    self.unsynced.1.push(batch);
                }
                ServerEffect::Store { token, replica, command } => self.rows.submit((token, replica, command))?,
                ServerEffect::Reply { token, reply } => {
                    self.pending.answer(token, reply);
                }
                ServerEffect::Note(note) => self.notes.tell(Some(self.node), &note),
            }
        }
        if !self.unsynced.0.is_empty() && self.log.is_free() {
            self.log.submit(std::mem::take(&mut self.unsynced))?;
        }
        self.depths.requests.set(depth(self.pending.len()));
        self.depths.unsynced.set(depth(self.unsynced.0.len()));
        Ok(())
    }
}

/// The next ask; never, once all handles are gone.
pub(super) async fn next_ask<Q, A>(asks: &mut Option<mpsc::Receiver<Ask<Q, A>>>) -> Ask<Q, A> {
    if let Some(open) = asks {
        match open.recv().await {
            Some(ask) => return ask,
            None => *asks = None,
        }
    }
    std::future::pending().await
}

fn persisted(answer: Result<Vec<Token>, LogError>, inputs: &mut Vec<ServerInput>) -> Result<(), NodeError> {
    // R9: whatever the error, the process does not go on with this log.
    inputs.extend(answer?.into_iter().map(|token| ServerInput::Persisted { token }));
    Ok(())
}

fn stored(answer: Result<(Token, StoreAnswer), StoreError>, inputs: &mut Vec<ServerInput>) -> Result<(), NodeError> {
    let (token, answer) = answer?;
    inputs.push(ServerInput::Stored { token, answer });
    Ok(())
}
