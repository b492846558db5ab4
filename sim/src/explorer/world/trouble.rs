//! Faults at work: windows open and close, roles become nodes, processes stop and go on.

use super::super::coverage::Sometimes;
use super::World;
use crate::{
    faults::{Fault, Loss, Place, is_cut},
    staging,
};
use twinshard_core::{
    effect::{BalancerInput, ServerInput},
    id::ServerId,
};

impl World {
    pub(super) fn window_opens(&mut self, place: usize) {
        if self.now >= self.plan.heal_at {
            return;
        }
        let fault = self.plan.faults[place].fault;
        let faults = self.resolve(fault);
        self.trace.say(self.now, || format!("fault: {fault}"));
        if self.plan.staged {
            self.struck.push((place, self.now, faults.iter().flat_map(|fault| fault.places()).collect()));
        }
        self.open_faults.insert(place, faults.clone());
        faults.into_iter().for_each(|fault| self.fault_begins(fault));
    }

    pub(super) fn fault_begins(&mut self, fault: Fault) {
        match fault {
            Fault::Crash { place } | Fault::Down { place, loses_disk: false } => match place {
                Place::Server(id) => self.crash_server(id),
                Place::Balancer(place) if place < self.balancers.len() => self.crash_balancer(place),
                _ => {}
            },
            Fault::PowerLoss => {
                let ids: Vec<_> = self.servers.keys().copied().collect();
                ids.into_iter().for_each(|id| self.crash_server(id));
                (0..self.balancers.len()).for_each(|place| self.crash_balancer(place));
            }
            Fault::DiskLoss { server, loss } => self.lose_disk(server, loss),
            Fault::Down { place: Place::Server(server), loses_disk: true } => self.lose_disk(server, Loss::Disk),
            Fault::DiskBack { server } => {
                self.copy_disk(server);
                self.restart_server(server);
            }
            Fault::Rot { server, pick } => {
                if let Some(replica) = self.servers.get_mut(&server).and_then(|node| node.rows.rot(pick)) {
                    self.checks.on_rot(replica);
                }
            }
            Fault::Pause { place } => {
                self.checks.coverage.hit(Sometimes::Pauses);
                self.set_paused(place, true);
            }
            Fault::Cut { .. } | Fault::Split { .. } => self.checks.coverage.hit(Sometimes::Cuts),
            Fault::Down { .. }
            | Fault::Weather { .. }
            | Fault::SlowDisk { .. }
            | Fault::StoreDown { .. }
            | Fault::Register { .. }
            | Fault::StartsFail { .. }
            | Fault::ProvisionFails => {}
        }
    }

    pub(super) fn window_closes(&mut self, place: usize) {
        let Some(faults) = self.open_faults.remove(&place) else { return };
        let fault = self.plan.faults[place].fault;
        self.trace.say(self.now, || format!("over: {fault}"));
        faults.into_iter().for_each(|fault| self.fault_ends(fault));
    }

    pub(super) fn fault_ends(&mut self, fault: Fault) {
        match fault {
            Fault::Crash { place: Place::Server(id) } | Fault::DiskLoss { server: id, .. } => self.restart_server(id),
            Fault::Crash { place: Place::Balancer(place) } | Fault::Down { place: Place::Balancer(place), .. } => {
                if place < self.balancers.len() {
                    self.start_balancer(place);
                }
            }
            Fault::DiskBack { server } => {
                self.put_disk_back(server);
                self.restart_server(server);
            }
            Fault::PowerLoss => self.start_everything(),
            Fault::Pause { place } => self.set_paused(place, false),
            Fault::Crash { .. }
            | Fault::Down { .. }
            | Fault::Weather { .. }
            | Fault::Cut { .. }
            | Fault::Split { .. }
            | Fault::Rot { .. }
            | Fault::SlowDisk { .. }
            | Fault::StoreDown { .. }
            | Fault::Register { .. }
            | Fault::StartsFail { .. }
            | Fault::ProvisionFails => {}
        }
    }

    /// The fault with nodes in the place of roles: one for each node that has the role now.
    pub(super) fn resolve(&self, fault: Fault) -> Vec<Fault> {
        let nodes = |place: Place| self.nodes(place);
        match fault {
            Fault::Weather { place, loss_ppm, duplicate_ppm, straggler_ppm, straggler_max } => nodes(place)
                .into_iter()
                .map(|place| Fault::Weather { place, loss_ppm, duplicate_ppm, straggler_ppm, straggler_max })
                .collect(),
            Fault::Cut { a, b, way } => {
                nodes(a).into_iter().flat_map(|a| nodes(b).into_iter().map(move |b| Fault::Cut { a, b, way })).collect()
            }
            Fault::Crash { place } => nodes(place).into_iter().map(|place| Fault::Crash { place }).collect(),
            Fault::Down { place, loses_disk } => nodes(place).into_iter().map(|place| Fault::Down { place, loses_disk }).collect(),
            Fault::Pause { place } => nodes(place).into_iter().map(|place| Fault::Pause { place }).collect(),
            Fault::SlowDisk { place, sync_max } => nodes(place).into_iter().map(|place| Fault::SlowDisk { place, sync_max }).collect(),
            Fault::StoreDown { place } => nodes(place).into_iter().map(|place| Fault::StoreDown { place }).collect(),
            // Anyone's starts stay anyone's.
            Fault::StartsFail { place: Place::Servers, .. } => vec![fault],
            Fault::StartsFail { place, times } => nodes(place).into_iter().map(|place| Fault::StartsFail { place, times }).collect(),
            Fault::PowerLoss
            | Fault::Split { .. }
            | Fault::DiskLoss { .. }
            | Fault::DiskBack { .. }
            | Fault::Rot { .. }
            | Fault::Register { .. }
            | Fault::ProvisionFails => vec![fault],
        }
    }

    /// The nodes that have a role now.
    pub(super) fn nodes(&self, place: Place) -> Vec<Place> {
        let map = &self.register.map;
        let of_shard = |shard: usize, primary: bool| {
            let name = self.plan.topology.shards.get(shard).map(|shard| &*shard.name);
            staging::holders(map, name, primary)
        };
        match place {
            Place::Server(_) | Place::Balancer(_) | Place::Others | Place::Clients => vec![place],
            Place::PrimaryOf(shard) => of_shard(shard, true),
            Place::BackupOf(shard) => of_shard(shard, false).into_iter().take(1).collect(),
            Place::BackupsOf(shard) => of_shard(shard, false),
            Place::Controller => {
                let holder = map.controller.holder.and_then(|holder| self.balancer_ids.get(&holder));
                holder.map(|place| Place::Balancer(*place)).into_iter().collect()
            }
            Place::Servers => self.servers.iter().filter(|(_, node)| node.wanted).map(|(id, _)| Place::Server(*id)).collect(),
            Place::Balancers => (0..self.balancers.len()).map(Place::Balancer).collect(),
        }
    }

    pub(super) fn restart_server(&mut self, id: ServerId) {
        if self.servers.get(&id).is_some_and(|node| node.wanted) {
            self.start_server(id);
        }
    }

    pub(super) fn start_everything(&mut self) {
        let ids: Vec<_> = self.servers.keys().copied().collect();
        ids.into_iter().for_each(|id| self.restart_server(id));
        (0..self.balancers.len()).for_each(|place| self.start_balancer(place));
    }

    pub(super) fn set_paused(&mut self, place: Place, paused: bool) {
        match place {
            Place::Server(id) => {
                let Some(node) = self.servers.get_mut(&id).filter(|node| node.machine.is_some() && node.process.paused != paused) else {
                    return;
                };
                node.process.paused = paused;
                if !paused {
                    node.process.timer = None;
                    // What is drained must not meet a pause again: one window at a time.
                    for input in core::mem::take(&mut node.backlog) {
                        self.step_server(id, input);
                    }
                    self.step_server(id, ServerInput::Tick);
                }
            }
            Place::Balancer(place) => {
                let now = self.now;
                let node = &mut self.balancers[place];
                if node.machine.is_none() || node.process.paused == paused {
                    return;
                }
                node.process.paused = paused;
                if !paused {
                    node.process.timer = None;
                    node.running_since = now;
                    for input in core::mem::take(&mut node.backlog) {
                        self.step_balancer(place, input);
                    }
                    self.step_balancer(place, BalancerInput::Tick);
                }
            }
            Place::Others
            | Place::Clients
            | Place::PrimaryOf(_)
            | Place::BackupOf(_)
            | Place::BackupsOf(_)
            | Place::Controller
            | Place::Servers
            | Place::Balancers => {}
        }
    }

    /// Whether a link is cut now.
    pub(in crate::explorer) fn is_cut(&self, from: Place, to: Place) -> bool {
        self.open().any(|fault| matches!(fault, Fault::Cut { a, b, way } if is_cut(*a, *b, *way, from, to)))
    }
}
