//! What happened when: faults and requests of the operator, and beneath each what the cluster did about it and how long writes waited.
//! Made from data that worlds record; knows no world.

use crate::{
    history::{Action, CommandOutcome, History, Layout},
    report::RunResult,
    scenario::{AdminKind, Direction, Fault, FaultKind, Target},
};
use std::collections::{BTreeMap, BTreeSet};
use twinshard_core::{
    config::Configuration,
    effect::Note,
    id::{Epoch, ReplicaId, ServerId, ShardId},
    map::ClusterMap,
    reason::Reason,
};

/// The most lines beneath one event.
const LINES_MAX: usize = 14;

/// Names for ids, gathered from every map of the run, so that what was removed keeps its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    servers: BTreeMap<ServerId, Box<str>>,
    replicas: BTreeMap<ReplicaId, (ShardId, ServerId)>,
    layout: Layout,
}

impl Names {
    /// Takes up a map.
    pub fn learn(&mut self, map: &ClusterMap) {
        self.layout.learn(map);
        for (id, record) in &map.servers {
            if !self.servers.contains_key(id) {
                self.servers.insert(*id, record.name.clone());
            }
        }
        for (id, record) in &map.replicas {
            self.replicas.insert(*id, (record.shard, record.server));
        }
    }

    /// The name of a server, or its id.
    #[must_use]
    pub fn server(&self, id: ServerId) -> String {
        self.servers.get(&id).map_or_else(|| id.to_string(), |name| name.to_string())
    }

    /// The name of a shard, or its id.
    #[must_use]
    pub fn shard(&self, id: ShardId) -> String {
        self.layout.name(id).map_or_else(|| id.to_string(), str::to_owned)
    }

    /// The name of the server that holds a replica, or the replica's id.
    #[must_use]
    pub fn holder(&self, id: ReplicaId) -> String {
        self.replicas.get(&id).map_or_else(|| id.to_string(), |(_, server)| self.server(*server))
    }

    /// The shards.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A replica as people see it: `sh1 at Server2`.
    #[must_use]
    pub fn replica(&self, id: ReplicaId) -> String {
        self.replicas
            .get(&id)
            .map_or_else(|| id.to_string(), |(shard, server)| format!("{} at {}", self.shard(*shard), self.server(*server)))
    }

    fn config(&self, config: &Configuration) -> String {
        let backups: Vec<String> = config.members.iter().filter(|id| **id != config.primary).map(|id| self.holder(*id)).collect();
        let mut text = format!("{} leads", self.holder(config.primary));
        if !backups.is_empty() {
            text.push_str(&format!(", with {}", backups.join(", ")));
        }
        text
    }
}

/// An event with what followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// When, in nanoseconds of the run.
    pub at_ns: u64,
    /// What.
    pub title: String,
    /// What followed: when, and what.
    pub lines: Vec<(u64, String)>,
    /// Lines left out.
    pub more_count: usize,
}

/// When a write of a shard was asked for, when that ended, and whether the shard served it.
#[derive(Clone, Copy, Debug)]
struct Served {
    called: u64,
    /// `None` is never.
    ended: Option<u64>,
    served: bool,
}

/// A time without a served write although one was wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outage {
    /// How long.
    pub length_ns: u64,
    /// From when.
    pub from_ns: u64,
}

/// The writes of each shard, for outages.
#[derive(Clone, Debug, Default)]
pub struct Service {
    shards: BTreeMap<ShardId, Vec<Served>>,
}

impl Service {
    /// From a history. A write that was refused for the rows that were there was served.
    #[must_use]
    pub fn new(history: &History) -> Self {
        let ended: BTreeMap<_, _> = history.asked.iter().map(|asked| (asked.operation, asked.answered)).collect();
        let mut shards: BTreeMap<ShardId, Vec<Served>> = BTreeMap::new();
        for call in &history.calls {
            let Action::Command { outcome, .. } = &call.action else { continue };
            let served = matches!(outcome, CommandOutcome::Acknowledged { .. } | CommandOutcome::Refused { .. });
            let ended = call.returned.or_else(|| ended.get(&call.operation).copied().flatten());
            shards.entry(call.shard).or_default().push(Served { called: call.called, ended, served });
        }
        // By end; those without one come last.
        for writes in shards.values_mut() {
            writes.sort_by_key(|write| (write.ended.unwrap_or(u64::MAX), write.called));
        }
        Self { shards }
    }

    /// The shards that were written to.
    pub fn shards(&self) -> impl Iterator<Item = ShardId> {
        self.shards.keys().copied()
    }

    /// The longest outage of a shard that began in a window of time.
    #[must_use]
    pub fn longest_outage(&self, shard: ShardId, from_ns: u64, until_ns: u64) -> Option<Outage> {
        let writes = self.shards.get(&shard)?;
        // The earliest call among the writes that end at this place or later.
        let mut earliest = vec![u64::MAX; writes.len() + 1];
        for place in (0..writes.len()).rev() {
            earliest[place] = earliest[place + 1].min(writes[place].called);
        }
        let mut longest = Outage { length_ns: 0, from_ns };
        let mut last_served = 0;
        let mut consider = |place: usize, last_served: u64, until: u64| {
            let from = last_served.max(earliest[place]);
            if from_ns <= from && from < until_ns && until > from {
                longest = longest.max(Outage { length_ns: until - from, from_ns: from });
            }
        };
        let mut first_after = 0;
        for (place, write) in writes.iter().enumerate() {
            if let (true, Some(ended)) = (write.served, write.ended) {
                consider(first_after, last_served, ended);
                last_served = ended;
                first_after = place + 1;
            }
        }
        // Writes after the last that was served.
        let last_sign = writes[first_after..].iter().map(|write| write.ended.unwrap_or(write.called)).max();
        if let Some(last_sign) = last_sign {
            consider(first_after, last_served, last_sign);
        }
        Some(longest)
    }

    /// What became of the writes that were asked for at this time or later.
    #[must_use]
    pub fn after(&self, shard: ShardId, from_ns: u64) -> Again {
        let mut later = self.shards.get(&shard).into_iter().flatten().filter(|write| write.called >= from_ns).peekable();
        if later.peek().is_none() {
            return Again::NotAsked;
        }
        later.filter(|write| write.served).filter_map(|write| write.ended).min().map_or(Again::Never, Again::At)
    }
}

/// What became of the writes after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// The first was served at this time, in nanoseconds of the run.
    At(u64),
    /// None was served.
    Never,
    /// None was asked for.
    NotAsked,
}

/// What the cluster did, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deeds {
    /// New configurations of shards, the first of each not counted.
    pub failover_count: u64,
    /// Servers respawned.
    pub respawn_count: u64,
    /// Starts that failed.
    pub provision_failure_count: u64,
    /// Replicas lost.
    pub lost_count: u64,
    /// How many members each shard's last configuration has.
    pub members: BTreeMap<ShardId, u64>,
}

impl Deeds {
    /// From the notes of a run.
    #[must_use]
    pub fn new(notes: &[(u64, Note)]) -> Self {
        let mut deeds = Self::default();
        let mut epochs: BTreeMap<ShardId, BTreeSet<Epoch>> = BTreeMap::new();
        let mut lost = BTreeSet::new();
        for (_, note) in notes {
            match note {
                Note::Activated { shard, config } => {
                    let of_shard = epochs.entry(*shard).or_default();
                    of_shard.insert(config.epoch);
                    if of_shard.last() == Some(&config.epoch) {
                        deeds.members.insert(*shard, config.members.len() as u64);
                    }
                }
                Note::Restarted { .. } => deeds.respawn_count += 1,
                Note::ProvisionFailed { .. } => deeds.provision_failure_count += 1,
                Note::Lost { replica, .. } => {
                    lost.insert(*replica);
                }
                Note::Suspected { .. }
                | Note::DiskWentBack { .. }
                | Note::Recovered { .. }
                | Note::Respawning { .. }
                | Note::Started { .. }
                | Note::Stopped { .. }
                | Note::Removed { .. }
                | Note::Minted { .. }
                | Note::Retired { .. }
                | Note::GivenUp { .. }
                | Note::Proposed { .. }
                | Note::RegisterWentBack { .. }
                | Note::Leads { .. }
                | Note::Granted { .. }
                | Note::Refused { .. }
                | Note::Controlling { .. }
                | Note::Ceded { .. }
                | Note::Dropped { .. } => {}
            }
        }
        deeds.failover_count = epochs.values().map(|epochs| epochs.len() as u64 - 1).sum();
        deeds.lost_count = lost.len() as u64;
        deeds
    }
}

/// Why configurations were proposed: only the balancer that did it says so.
type Reasons<'a> = BTreeMap<&'a Configuration, Reason>;

fn note_text(names: &Names, reasons: &Reasons<'_>, note: &Note) -> Option<String> {
    Some(match note {
        Note::Suspected { server } => format!("{} is suspected", names.server(*server)),
        Note::DiskWentBack { server } => {
            format!("the disk of {} is older than the one it had: what it holds counts for nothing", names.server(*server))
        }
        Note::Recovered { server } => format!("{} answers again", names.server(*server)),
        Note::Respawning { server } => format!("{} is taken for dead and respawned", names.server(*server)),
        Note::Restarted { server } => format!("{} runs anew", names.server(*server)),
        Note::Started { server } => format!("{} runs", names.server(*server)),
        Note::ProvisionFailed { server, reason } => format!("{} could not be started: {reason}", names.server(*server)),
        Note::Removed { server, .. } => format!("{} is stopped and forgotten", names.server(*server)),
        Note::Proposed { shard, config, .. } => {
            let why = reasons.get(config).map_or_else(String::new, |reason| format!(": {}", reason.cause));
            format!("{}: {} proposed{why}", names.shard(*shard), config.epoch)
        }
        Note::Activated { shard, config } => format!("{}: {} active, {}", names.shard(*shard), config.epoch, names.config(config)),
        Note::Lost { replica, reason } => format!("{} is lost: {reason:?}", names.replica(*replica)),
        Note::GivenUp { anew, .. } => format!("{} is given up, as was accepted, and begins anew", names.shard(*anew)),
        Note::RegisterWentBack { told, found } => format!("the register went back from {told} to {found}"),
        Note::Controlling { .. } => "a balancer takes control".to_owned(),
        // Told by what came before them or follows: a lost replica, an operator's request, a configuration.
        Note::Stopped { .. }
        | Note::Minted { .. }
        | Note::Retired { .. }
        | Note::Leads { .. }
        | Note::Granted { .. }
        | Note::Refused { .. }
        | Note::Ceded { .. } => return None,
        // Counted by metrics; far too many for people.
        Note::Dropped { .. } => return None,
    })
}

fn seconds(ms: u64) -> String {
    if ms.is_multiple_of(1_000) { format!("{} s", ms / 1_000) } else { format!("{ms} ms") }
}

fn targets(targets: &[Target]) -> String {
    targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A fault in words.
#[must_use]
pub fn fault_title(fault: &Fault, struck: &[String]) -> String {
    let who = |target: &Target| {
        let named = target.to_string();
        if struck.is_empty() || struck == [named.clone()] { named } else { format!("{named} ({})", struck.join(", ")) }
    };
    let lasting = if fault.for_ms > 0 { format!(" for {}", seconds(fault.for_ms)) } else { String::new() };
    let down = if fault.for_ms > 0 { format!("; cannot start for {}", seconds(fault.for_ms)) } else { String::new() };
    match &fault.kind {
        FaultKind::Crash { target } => format!("crash of {}{down}", who(target)),
        FaultKind::LoseDisk { target } => format!("crash of {}, its disk is lost{down}", who(target)),
        FaultKind::PowerLoss {} => format!("everything loses power{lasting}"),
        FaultKind::Pause { target } => format!("{} stands still{lasting}", who(target)),
        FaultKind::Partition { between, and, direction } => {
            let mut nodes: Vec<&str> = Vec::new();
            for name in struck {
                if !nodes.contains(&name.as_str()) {
                    nodes.push(name);
                }
            }
            let names = if nodes.is_empty() { String::new() } else { format!(" ({})", nodes.join(", ")) };
            match direction {
                Direction::Both => format!("cut between {} and {}{names}{lasting}", targets(between), targets(and)),
                Direction::OneWay => format!("nothing gets from {} to {}{names}{lasting}", targets(between), targets(and)),
            }
        }
        FaultKind::Isolate { target } => format!("{} is cut off from everyone{lasting}", who(target)),
        FaultKind::RegisterDown {} => format!("the register does not answer{lasting}"),
        FaultKind::DatabaseDown { target } => format!("the rows of {} do not answer{lasting}", who(target)),
        FaultKind::ProvisionFails { target, times } => {
            let whose = target.as_ref().map_or_else(|| "any server".to_owned(), &who);
            format!("the next {times} starts of {whose} fail")
        }
        FaultKind::Network { loss_per_mille, duplicate_per_mille, delay_ms } => {
            format!("bad network{lasting}: of 1000 messages {loss_per_mille} lost, {duplicate_per_mille} doubled; up to {delay_ms} ms late")
        }
        FaultKind::SlowDisk { target, sync_ms } => format!("each sync of {} takes {sync_ms} ms{lasting}", who(target)),
    }
}

/// A request of the operator in words.
#[must_use]
pub fn admin_title(kind: &AdminKind) -> String {
    match kind {
        AdminKind::Add { servers, shards } => {
            let servers: Vec<String> = servers.iter().map(|server| format!("{} ({})", server.name, server.shards.join(", "))).collect();
            let shards: Vec<String> =
                shards.iter().map(|shard| format!("{} ({}..{})", shard.name, shard.low, shard.low + shard.size - 1)).collect();
            let shards = if shards.is_empty() { String::new() } else { format!(" and shard {}", shards.join(", ")) };
            format!("operator adds {}{shards}", servers.join(", "))
        }
        AdminKind::Remove { servers } => format!("operator removes {}", servers.join(", ")),
        AdminKind::MovePrimary { shard } => format!("operator moves the primary of {shard}"),
        AdminKind::Move { shard, from, to } => format!("operator moves {shard} from {from} to {to}"),
        AdminKind::Drain { server } => format!("operator drains {server}"),
    }
}

/// A length of time for people.
#[must_use]
pub fn span(ns: u64) -> String {
    match ns {
        0..10_000_000 => format!("{}.{:02} ms", ns / 1_000_000, ns / 10_000 % 100),
        10_000_000..1_000_000_000 => format!("{} ms", ns / 1_000_000),
        _ => format!("{}.{:02} s", ns / 1_000_000_000, ns / 10_000_000 % 100),
    }
}

/// The events of a run, with what followed each until the next.
#[must_use]
pub fn sections(run: &RunResult, service: &Service) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let mut event = |at_ns: u64, title: String| sections.push(Section { at_ns, title, lines: Vec::new(), more_count: 0 });
    event(run.load_from_ns, "the load begins".to_owned());
    for fault in &run.faults {
        if let Some(spec) = run.scenario.faults.get(fault.place) {
            event(fault.at_ns, fault_title(spec, &fault.struck));
        }
    }
    for step in &run.admin {
        if let Some(spec) = run.scenario.admin.get(step.place) {
            let answer = match step.answered_ns {
                Some(at_ns) => format!("; answered after {}: {}", span(at_ns.saturating_sub(step.at_ns)), step.answer),
                None => "; never answered".to_owned(),
            };
            event(step.at_ns, admin_title(&spec.kind) + &answer);
        }
    }
    sections.sort_by_key(|section| section.at_ns);
    let reasons = run.notes.iter().filter_map(|(_, note)| match note {
        Note::Proposed { config, reason, .. } => Some((config, (*reason)?)),
        _ => None,
    });
    let reasons: Reasons<'_> = reasons.collect();
    let ends: Vec<u64> = sections.iter().skip(1).map(|section| section.at_ns).chain([u64::MAX]).collect();
    for (section, end_ns) in sections.iter_mut().zip(ends) {
        // Told once, at its first time: several balancers see the same.
        let mut told: BTreeMap<String, (usize, u32)> = BTreeMap::new();
        for (at_ns, note) in run.notes.iter().filter(|(at_ns, _)| (section.at_ns..end_ns).contains(at_ns)) {
            let Some(text) = note_text(&run.names, &reasons, note) else { continue };
            let (_, count) = told.entry(text.clone()).or_insert((section.lines.len(), 0));
            *count += 1;
            if *count == 1 {
                section.lines.push((*at_ns, text));
            }
        }
        for (place, count) in told.into_values().filter(|(_, count)| *count > 1) {
            section.lines[place].1.push_str(&format!(" ({count} times)"));
        }
        let load_end_ns = run.load_from_ns + run.scenario.workload.duration_ms * 1_000_000;
        if (section.at_ns..end_ns).contains(&load_end_ns) {
            let place = section.lines.partition_point(|(at_ns, _)| *at_ns < load_end_ns);
            section.lines.insert(place, (load_end_ns, "the load ends".to_owned()));
        }
        section.more_count = section.lines.len().saturating_sub(LINES_MAX);
        section.lines.truncate(LINES_MAX);
        if section.at_ns > run.load_from_ns {
            let gaps: Vec<String> = service
                .shards()
                .filter_map(|shard| {
                    let from_ns = section.at_ns;
                    // An outage that this event caused may have begun a moment before it was noticed, with the last answer.
                    let outage = service.longest_outage(shard, from_ns.saturating_sub(100_000_000), end_ns)?;
                    Some(format!("{} {}", run.names.shard(shard), span(outage.length_ns)))
                })
                .collect();
            if !gaps.is_empty() {
                section.lines.push((u64::MAX, format!("longest wait for a write: {}", gaps.join(", "))));
            }
        }
    }
    sections
}
