//! Balancers at work: their steps, the register, the provisioner, their processes.

use super::super::{
    coverage::Sometimes,
    operators::given_up,
    register::{Ask, SimRegister},
};
use super::{Event, World, message_code, short};
use crate::{
    faults::{Fault, Place},
    keyed::Purpose,
};
use std::sync::Arc;
use twinshard_core::{
    balancer::{BalancerConfig, BalancerMachine},
    effect::{BalancerEffect, BalancerInput, ProvisionAnswer, ProvisionCommand, RegisterAnswer},
    id::{NodeId, ServerId, Token},
    map::Address,
    message::{Message, ToServer},
    time::Duration,
};

impl World {
    pub(in crate::explorer) fn step_balancer(&mut self, place: usize, input: BalancerInput) {
        let node = &mut self.balancers[place];
        let Some(machine) = node.machine.as_mut() else { return };
        if node.process.paused {
            node.backlog.push_back(input);
            return;
        }
        let (what, detail) = balancer_input_code(&input);
        self.trace.event(self.now, Place::Balancer(place).code(), what, detail);
        self.trace.say(self.now, || format!("balancer {place} <- {}", short(&input)));
        let mut out = core::mem::take(&mut self.balancer_out);
        machine.step(node.process.local(self.now), input, &mut out);
        if let Some(id) = machine.id() {
            self.balancer_ids.entry(id).or_insert(place);
        }
        for effect in out.drain(..) {
            self.trace.say(self.now, || format!("    balancer {place} -> {}", short(&effect)));
            self.balancer_effect(place, effect);
        }
        self.balancer_out = out;
        self.rearm_balancer(place);
    }

    pub(super) fn rearm_balancer(&mut self, place: usize) {
        let node = &mut self.balancers[place];
        let Some(deadline) = node.machine.as_ref().and_then(BalancerMachine::next_deadline) else { return };
        let due = node.process.world(deadline).max(self.now);
        if node.process.timer.is_none_or(|timer| due < timer) {
            let late = self.keyed.draw(Purpose::Timer, [1_000_000 + place as u64, due.0]).below(150_000);
            let at = due + Duration(late + 1);
            if node.process.timer.is_none_or(|timer| at < timer) {
                node.process.timer = Some(at);
                self.queue.plan(at, Event::BalancerTick { place, at });
            }
        }
    }

    pub(super) fn balancer_effect(&mut self, place: usize, effect: BalancerEffect) {
        match effect {
            BalancerEffect::Send { to, message } => {
                let Some(id) = self.balancers[place].machine.as_ref().and_then(BalancerMachine::id) else {
                    return self.checks.fail("R10", || format!("balancer {place} sends before its id is minted"));
                };
                if let Message::ToServer(ToServer::Execute(execute)) = &message {
                    self.check_schema(place, execute);
                }
                let from = NodeId::Balancer(id);
                self.checks.on_ask(from, &message);
                self.carry(Place::Balancer(place), Place::Server(to), message, |message| Event::ToServer { to, from, message });
            }
            BalancerEffect::Reply { token, reply } => self.balancer_replied(place, token, reply),
            BalancerEffect::RegisterRead { token } => self.ask_register(place, token, Ask::Read),
            BalancerEffect::RegisterCas { token, expected, map } => {
                self.check_intention(place, &map);
                self.ask_register(place, token, Ask::Cas { expected, map });
            }
            BalancerEffect::Provision { token, command } => {
                let node = &mut self.balancers[place];
                node.provision_count += 1;
                let mut draw = self.keyed.draw(Purpose::Provision, [place as u64, node.provision_count]);
                let delay = Duration(draw.between(500_000, self.plan.topology.storage.start_max.0));
                let incarnation = node.process.incarnation;
                self.after(delay, Event::ProvisionEffect { place, incarnation, token, command });
            }
            BalancerEffect::Publish { version, map } => {
                if version > self.register.version {
                    self.checks.fail("R10", || format!("balancer {place} publishes {version}, which is not written yet"));
                }
                self.clients.learn(&map);
            }
            BalancerEffect::Note(note) => self.note(Place::Balancer(place), note),
        }
    }

    pub(super) fn ask_register(&mut self, place: usize, token: Token, ask: Ask) {
        let node = &mut self.balancers[place];
        node.register_count += 1;
        let incarnation = node.process.incarnation;
        let count = node.register_count;
        let fate = SimRegister::fate(self.keyed, Place::Balancer(place), count, self.open());
        if let Some(delay) = fate.effect {
            self.after(delay, Event::RegisterEffect { place, incarnation, token, ask, answer: fate.answer, touched: fate.touched });
        }
        if let Some(delay) = fate.unavailable {
            self.checks.coverage.hit(Sometimes::RegisterUnavailable);
            let input = BalancerInput::Register { token, answer: RegisterAnswer::Unavailable };
            self.after(delay, Event::BalancerAnswer { place, incarnation, input });
        }
    }

    pub(super) fn register_effect(
        &mut self,
        place: usize,
        incarnation: u64,
        token: Token,
        ask: Ask,
        answer: Option<Duration>,
        touched: bool,
    ) {
        if touched {
            self.register.execute(Ask::Touch);
        }
        let before = Arc::clone(&self.register.map);
        let reads = matches!(ask, Ask::Read);
        let result = self.register.execute(ask);
        match &result {
            RegisterAnswer::Swapped => {
                let writer = (place as u64) << 32 | incarnation;
                let after = Arc::clone(&self.register.map);
                self.trace.say(self.now, || format!("register is {} by balancer {place}", self.register.version));
                self.checks.on_cas(&self.servers, writer, &before, &after);
                self.operators.stands(&after, self.now);
                let given_up = given_up(&before, &after);
                for (shard, _) in &given_up {
                    self.checks.give_up(*shard);
                }
                let is_torn_down = after.schema.is_none() || after.counters.schema != before.counters.schema;
                if !given_up.is_empty() || (before.schema.is_some() && is_torn_down) {
                    self.clients.end_history();
                }
                if self.plan.staged {
                    self.names.learn(&after);
                }
            }
            RegisterAnswer::Conflict => self.checks.coverage.hit(Sometimes::RegisterConflicts),
            RegisterAnswer::Read { .. } | RegisterAnswer::Unavailable => debug_assert!(reads),
        }
        if let Some(delay) = answer {
            let input = BalancerInput::Register { token, answer: result };
            self.after(delay, Event::BalancerAnswer { place, incarnation, input });
        }
    }

    pub(super) fn provision_effect(&mut self, place: usize, incarnation: u64, token: Token, command: ProvisionCommand) {
        let fails = match &command {
            ProvisionCommand::Start { server, .. } => self.start_fails(*server),
            ProvisionCommand::Stop { .. } => self.open().any(|fault| matches!(fault, Fault::ProvisionFails)),
        };
        let answer = match command {
            _ if fails => ProvisionAnswer::Failed { reason: "the provisioner fails".into() },
            ProvisionCommand::Start { server, replace, .. } => {
                if replace {
                    self.crash_server(server);
                }
                self.servers.entry(server).or_default().wanted = true;
                self.start_server(server);
                let host = server.to_string();
                ProvisionAnswer::Started { address: Address { http: format!("{host}:5000").into(), peer: format!("{host}:6000").into() } }
            }
            ProvisionCommand::Stop { server, .. } => {
                self.crash_server(server);
                if let Some(node) = self.servers.get_mut(&server) {
                    node.wanted = false;
                }
                ProvisionAnswer::Stopped
            }
        };
        let input = BalancerInput::Provisioned { token, answer };
        self.after(Duration(300_000), Event::BalancerAnswer { place, incarnation, input });
    }

    pub(super) fn start_fails(&mut self, server: ServerId) -> bool {
        let mut fails = false;
        for (window, fault) in self.open_faults.iter().flat_map(|(window, faults)| faults.iter().map(move |fault| (window, fault))) {
            match fault {
                Fault::ProvisionFails => fails = true,
                Fault::Down { place, .. } => fails |= *place == Place::Server(server),
                Fault::StartsFail { place, times } if *place == Place::Servers || *place == Place::Server(server) => {
                    let count = self.failed_starts.entry(*window).or_default();
                    if *count < *times {
                        *count += 1;
                        fails = true;
                    }
                }
                Fault::StartsFail { .. }
                | Fault::Weather { .. }
                | Fault::Cut { .. }
                | Fault::Split { .. }
                | Fault::Crash { .. }
                | Fault::PowerLoss
                | Fault::DiskLoss { .. }
                | Fault::DiskBack { .. }
                | Fault::Rot { .. }
                | Fault::Pause { .. }
                | Fault::SlowDisk { .. }
                | Fault::StoreDown { .. }
                | Fault::Register { .. } => {}
            }
        }
        fails
    }

    pub(super) fn start_balancer(&mut self, place: usize) {
        let node = &mut self.balancers[place];
        if node.machine.is_some() {
            return;
        }
        let mut draw = self.keyed.draw(Purpose::Process, [1_000_000 + place as u64, node.process.incarnation]);
        node.process.start(self.now, &mut draw);
        node.running_since = self.now;
        self.operators.balancer_starts(place, self.now);
        let config = BalancerConfig { seed: draw.word(), planted: self.plan.planted, ..self.plan.topology.balancer.clone() };
        node.machine = Some(BalancerMachine::new(config, node.process.local(self.now)));
        self.trace.say(self.now, || format!("balancer {place} starts"));
        self.step_balancer(place, BalancerInput::Tick);
    }

    pub(super) fn crash_balancer(&mut self, place: usize) {
        let node = &mut self.balancers[place];
        if node.machine.take().is_none() {
            return;
        }
        node.process.incarnation += 1;
        node.process.paused = false;
        node.process.timer = None;
        node.backlog.clear();
        self.trace.say(self.now, || format!("balancer {place} dies"));
        self.checks.coverage.hit(Sometimes::Crashes);
        self.clients_lose_balancer(place);
    }
}

fn balancer_input_code(input: &BalancerInput) -> (u64, u64) {
    match input {
        BalancerInput::Message { message, .. } => message_code(message),
        BalancerInput::Request { token, .. } => (111, token.0),
        BalancerInput::Abandoned { token } => (112, token.0),
        BalancerInput::Register { token, .. } => (113, token.0),
        BalancerInput::Provisioned { token, .. } => (114, token.0),
        BalancerInput::Tick => (115, 0),
    }
}
