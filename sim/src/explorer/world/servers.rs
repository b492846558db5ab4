//! Servers at work: their steps, their log and rows, their processes.

use super::super::{
    coverage::Sometimes,
    log::LogState,
    net::Subject,
    rows::{SimRows, Terms},
};
use super::{Event, ServerNode, World, message_code, short};
use crate::{
    faults::{Fault, Loss, Place},
    keyed::Purpose,
};
use std::collections::BTreeMap;
use twinshard_core::{
    effect::{Note, ServerEffect, ServerInput},
    id::{Incarnation, NodeId, OwnerNumber, ReplicaId, ServerId, Token},
    message::Message,
    server::{ServerConfig, ServerMachine},
    storage::{LogBatch, LostReason, Recovered, RecoveredReplica, StoreCommand, ViewState},
    time::Duration,
};

impl World {
    pub(in crate::explorer) fn step_server(&mut self, id: ServerId, input: ServerInput) {
        let Some(node) = self.servers.get_mut(&id) else { return };
        let Some(machine) = node.machine.as_mut() else { return };
        if node.process.paused {
            node.backlog.push_back(input);
            return;
        }
        let (what, detail) = server_input_code(&input);
        self.trace.event(self.now, Place::Server(id).code(), what, detail);
        self.trace.say(self.now, || format!("{id} <- {}", short(&input)));
        let mut out = core::mem::take(&mut self.server_out);
        machine.step(node.process.local(self.now), input, &mut out);
        // Writes first: what a step sends may speak of what it writes.
        for effect in &mut out {
            self.trace.say(self.now, || format!("    {id} -> {}", short(&effect)));
            if let ServerEffect::Persist { token, batch } = effect {
                let batch = core::mem::take(batch);
                self.write_log(id, *token, batch);
            }
        }
        for effect in out.drain(..) {
            self.server_effect(id, effect);
        }
        self.server_out = out;
        if let Some(machine) = self.servers.get(&id).and_then(|node| node.machine.as_ref()) {
            self.checks.on_step(&self.servers, machine);
        }
        self.rearm_server(id);
    }

    pub(super) fn rearm_server(&mut self, server: ServerId) {
        let Some(node) = self.servers.get_mut(&server) else { return };
        let Some(deadline) = node.machine.as_ref().and_then(ServerMachine::next_deadline) else { return };
        let due = node.process.world(deadline).max(self.now);
        if node.process.timer.is_none_or(|timer| due < timer) {
            let late = self.keyed.draw(Purpose::Timer, [server.0, due.0]).below(150_000);
            let at = due + Duration(late + 1);
            if node.process.timer.is_none_or(|timer| at < timer) {
                node.process.timer = Some(at);
                self.queue.plan(at, Event::ServerTick { server, at });
            }
        }
    }

    pub(super) fn server_effect(&mut self, id: ServerId, effect: ServerEffect) {
        match effect {
            ServerEffect::Send { to, message } => {
                self.checks.on_say(&self.servers, id, to, &message);
                self.carry_from_server(id, to, message);
            }
            ServerEffect::Persist { .. } => {}
            ServerEffect::Store { token, replica, command } => {
                self.checks.on_store(&self.servers, replica, &command);
                let weather = self.plan.topology.storage;
                let now = self.now;
                let Some(node) = self.servers.get_mut(&id) else { return };
                node.store_count += 1;
                let mut draw = self.keyed.draw(Purpose::Rows, [id.0, replica.0, node.store_count]);
                let start = node.busy.get(&replica).copied().unwrap_or(now).max(now);
                let at = start + Duration(draw.between(5_000, weather.rows_max.0));
                node.busy.insert(replica, at);
                let incarnation = node.process.incarnation;
                self.at(at, Event::StoreDone { server: id, incarnation, replica, token, command });
            }
            ServerEffect::Reply { token, reply } => self.server_replied(token, reply),
            ServerEffect::Note(note) => self.note(Place::Server(id), note),
        }
    }

    pub(super) fn write_log(&mut self, id: ServerId, token: Token, batch: LogBatch) {
        let Some(node) = self.servers.get_mut(&id) else { return };
        let checks = &mut self.checks;
        match node.log.write(token, batch, |before, record| checks.on_record(id, before, record)) {
            Err(text) => self.checks.fail("log", || format!("{id} writes {text}")),
            Ok(sync) => {
                let batch = self.servers.get(&id).map_or(&[][..], |node| node.log.last_written());
                self.checks.on_written(&self.servers, batch);
                if sync {
                    self.start_sync(id);
                }
            }
        }
    }

    pub(super) fn note(&mut self, by: Place, note: Note) {
        match &note {
            Note::Controlling { .. } => self.checks.coverage.hit(Sometimes::Controlling),
            Note::Dropped { .. } => return,
            Note::RegisterWentBack { .. } => panic!("the register never goes back here: {note:?}"),
            Note::Suspected { .. }
            | Note::DiskWentBack { .. }
            | Note::Recovered { .. }
            | Note::Respawning { .. }
            | Note::Restarted { .. }
            | Note::Started { .. }
            | Note::ProvisionFailed { .. }
            | Note::Stopped { .. }
            | Note::Removed { .. }
            | Note::Minted { .. }
            | Note::Retired { .. }
            | Note::GivenUp { .. }
            | Note::Leads { .. }
            | Note::Granted { .. }
            | Note::Refused { .. }
            | Note::Ceded { .. }
            | Note::Proposed { .. }
            | Note::Activated { .. }
            | Note::Lost { .. } => {}
        }
        if self.plan.staged {
            self.notes.push((self.now, by.code(), note));
        }
    }

    pub(super) fn start_sync(&mut self, server: ServerId) {
        let slow = self.open().filter_map(|fault| {
            if let Fault::SlowDisk { place, sync_max } = fault { (*place == Place::Server(server)).then_some(sync_max.0) } else { None }
        });
        let slowest = slow.max();
        let longest = slowest.unwrap_or(self.plan.topology.storage.sync_max.0).max(50_000);
        let shortest = slowest.map_or(50_000, |slowest| if self.plan.staged { slowest } else { slowest / 4 });
        let Some(node) = self.servers.get_mut(&server) else { return };
        node.log.start_sync();
        let latency = self.keyed.draw(Purpose::Sync, [server.0, node.log.syncs]).between(shortest, longest);
        let incarnation = node.process.incarnation;
        self.after(Duration(latency), Event::SyncDone { server, incarnation });
    }

    pub(super) fn sync_done(&mut self, server: ServerId, incarnation: u64) {
        if self.script.is_some() && self.scripted_sync(server) {
            return;
        }
        let Some(node) = self.servers.get_mut(&server) else { return };
        if node.process.incarnation != incarnation || node.machine.is_none() {
            return;
        }
        let mut done = Vec::new();
        let checks = &mut self.checks;
        if let Err(text) = node.log.finish_sync(|before, record| checks.on_durable(before, record), &mut done) {
            self.checks.fail("log", || format!("{server} syncs {text}"));
        }
        if node.log.has_unsynced() {
            self.start_sync(server);
        }
        for token in done {
            self.step_server(server, ServerInput::Persisted { token });
        }
    }

    pub(super) fn store_done(&mut self, server: ServerId, incarnation: u64, replica: ReplicaId, token: Token, command: StoreCommand) {
        let down = self.open().any(|fault| *fault == Fault::StoreDown { place: Place::Server(server) });
        let weather = self.plan.topology.storage;
        let Some(node) = self.servers.get_mut(&server) else { return };
        if node.process.incarnation != incarnation || node.machine.is_none() {
            return;
        }
        let durable = self.keyed.draw(Purpose::Rows, [server.0, replica.0, token.0, node.owner.0]).chance(weather.flush_durable_ppm);
        let looked_at = match &command {
            StoreCommand::Flush(_) => Some(false),
            StoreCommand::Stage { last: true, .. } => Some(true),
            StoreCommand::Create
            | StoreCommand::Destroy
            | StoreCommand::Read(_)
            | StoreCommand::OpenSnapshot(_)
            | StoreCommand::ReadSnapshot { .. }
            | StoreCommand::ReadPinned { .. }
            | StoreCommand::CloseSnapshot(_)
            | StoreCommand::Stage { last: false, .. }
            | StoreCommand::SwapStage { .. } => None,
        };
        let answer = node.rows.execute(replica, command, Terms { durable, down });
        if let Some(staged) = looked_at {
            self.checks.on_view(node, replica, staged);
        }
        self.step_server(server, ServerInput::Stored { token, answer });
    }

    pub(super) fn carry_from_server(&mut self, from: ServerId, to: NodeId, message: Message) {
        let here = Place::Server(from);
        match to {
            NodeId::Server(to) => {
                let event = |message| Event::ToServer { to, from: NodeId::Server(from), message };
                self.carry(here, Place::Server(to), message, event);
            }
            NodeId::Balancer(to) => {
                if let Some(place) = self.balancer_ids.get(&to).copied() {
                    self.carry(here, Place::Balancer(place), message, |message| Event::ToBalancer { to, from, message });
                }
            }
        }
    }

    pub(super) fn carry(&mut self, from: Place, to: Place, message: Message, event: impl Fn(Message) -> Event) {
        let subject = Subject::of(&message);
        let mut fate = self.net.fate(from, to, subject, self.open_faults.values().flatten());
        if self.script.is_some() {
            fate = self.scripted_message(from, to, subject, fate);
        }
        self.checks.coverage.hit(Sometimes::Messages);
        match (fate.first, fate.second) {
            (None, None) => self.checks.coverage.hit(Sometimes::MessagesLost),
            (Some(delay), None) | (None, Some(delay)) => self.after(delay, event(message)),
            (Some(first), Some(second)) => {
                self.checks.coverage.hit(Sometimes::MessagesTwice);
                self.after(first, event(message.clone()));
                self.after(second, event(message));
            }
        }
    }

    pub(super) fn open(&self) -> impl Iterator<Item = &Fault> {
        self.open_faults.values().flatten()
    }

    pub(super) fn crash_server(&mut self, id: ServerId) {
        let key = [id.0, self.servers.get(&id).map_or(0, |node| node.process.incarnation)];
        let Some(node) = self.servers.get_mut(&id) else { return };
        if node.machine.take().is_none() {
            return;
        }
        self.trace.say(self.now, || format!("{id} dies"));
        let mut draw = self.keyed.draw(Purpose::Crash, key);
        node.process.incarnation += 1;
        node.process.paused = false;
        node.process.timer = None;
        node.backlog.clear();
        node.busy.clear();
        let checks = &mut self.checks;
        let records = node.log.crash(&mut draw, |before, record| checks.on_durable(before, record));
        let flushes = node.rows.crash(&mut draw);
        self.checks.on_crash(id, &node.log.durable);
        self.checks.coverage.hit(Sometimes::Crashes);
        self.checks.coverage.add(Sometimes::RecordsLost, records);
        self.checks.coverage.add(Sometimes::FlushesLost, flushes);
    }

    pub(super) fn start_server(&mut self, id: ServerId) {
        let planted = self.plan.planted;
        let node = self.servers.entry(id).or_default();
        if node.machine.is_some() {
            return;
        }
        let mut draw = self.keyed.draw(Purpose::Process, [id.0, node.process.incarnation]);
        node.process.start(self.now, &mut draw);
        node.owner = node.owner.next();
        let recovered = recover(node);
        self.trace.say(self.now, || format!("{id} starts as {} with {}", node.owner, short(&recovered)));
        // Drawn apart, so that the rest of the process is as it was.
        let incarnation = Incarnation(draw.split(1).word().max(1));
        let settings = self.plan.topology.settings.clone();
        let config = ServerConfig { server: id, owner: node.owner, incarnation, settings, planted };
        node.machine = Some(ServerMachine::open(config, recovered, node.process.local(self.now)));
        self.checks.coverage.hit(Sometimes::Spawned);
        self.step_server(id, ServerInput::Tick);
    }

    pub(super) fn lose_disk(&mut self, id: ServerId, loss: Loss) {
        self.crash_server(id);
        let Some(node) = self.servers.get_mut(&id) else { return };
        self.checks.on_loss(&node.log.durable);
        self.checks.coverage.hit(Sometimes::DisksLost);
        match loss {
            Loss::Disk => {
                node.log.lose();
                node.rows.lose();
            }
            Loss::Log => node.log.lose(),
            Loss::Rows => node.rows.lose(),
        }
    }
}

/// A copy of a server's disk, as it was while the server was down.
#[derive(Clone, Debug)]
pub(super) struct DiskCopy {
    log: LogState,
    rows: SimRows,
    owner: OwnerNumber,
}

impl World {
    /// The server dies for a moment, and somebody copies its disk.
    pub(super) fn copy_disk(&mut self, id: ServerId) {
        self.crash_server(id);
        if let Some(node) = self.servers.get_mut(&id) {
            node.copy = Some(DiskCopy { log: node.log.durable.clone(), rows: node.rows.clone(), owner: node.owner });
        }
    }

    /// The server dies, and the copy takes the place of its disk.
    pub(super) fn put_disk_back(&mut self, id: ServerId) {
        self.crash_server(id);
        let Some(node) = self.servers.get_mut(&id) else { return };
        let Some(DiskCopy { log, rows, owner }) = node.copy.take() else { return };
        let recorded = self.register.map.servers.get(&id).and_then(|record| record.incarnation);
        let is_older = recorded.is_some_and(|recorded| !log.lives.seen.contains(&recorded));
        self.checks.on_put_back(&node.log.durable, &log, is_older);
        self.checks.coverage.hit(if is_older { Sometimes::DisksOlder } else { Sometimes::DisksPutBack });
        (node.rows, node.owner) = (rows, owner);
        node.log.put_back(log);
        self.checks.on_crash(id, &node.log.durable);
    }
}

/// What a server finds on its disk.
fn recover(node: &mut ServerNode) -> Recovered {
    let mut replicas = BTreeMap::new();
    for (id, log) in &node.log.durable.replicas {
        let is_lost = node.log.durable.lives.lost.contains(id);
        let view: Result<ViewState, LostReason> = node.rows.open(*id, log.base, log.reset);
        let view = if is_lost { Err(LostReason::DiskWentBack) } else { view };
        let entries = log.entries.iter().cloned().collect();
        let replica = RecoveredReplica { shard: log.shard, promised: log.promised, commit: log.commit, base: log.base, entries, view };
        replicas.insert(*id, replica);
    }
    Recovered { replicas, map: node.log.durable.map.clone(), lives: node.log.durable.lives.clone() }
}

fn server_input_code(input: &ServerInput) -> (u64, u64) {
    match input {
        ServerInput::Message { message, .. } => message_code(message),
        ServerInput::Persisted { token } => (101, token.0),
        ServerInput::Stored { token, .. } => (102, token.0),
        ServerInput::Request { token, .. } => (103, token.0),
        ServerInput::Tick => (104, 0),
    }
}
