//! Plays a scenario file in the explorer: from the file to a plan, from what happened to the run that a report judges. Never changes
//! what a scenario says.

use crate::{
    explorer::world::World,
    faults::{Fault, Place, RegisterFault, Way, Window},
    keyed::MILLION,
    panics,
    plan::{Action, Pages, Plan, PlannedOperation, StorageWeather, Topology},
};
use std::{collections::BTreeSet, sync::Arc};
use twinshard_core::{
    id::ServerId,
    map::ClusterMap,
    planted::Planted,
    request::{NewServer, NewShard},
    server::ServerSettings,
    time::{Duration, Instant},
};
use twinshard_scenarios::{
    report::{AdminEvent, FaultEvent, RunResult, WorldCheck},
    scenario::{AdminKind, Direction, FaultKind, Scenario, Target},
    workload::{ADMIN_TIMEOUT, OPERATOR, Workload},
};

/// When the load begins: a cluster that nothing disturbs is set up by then.
pub(crate) const LOAD_FROM: Instant = Instant(2_000_000_000);
/// How long the cluster may take to come back after the end.
const HEAL_WITHIN: Duration = Duration::from_millis(30_000);

/// A scenario without its load.
pub(crate) struct Staged {
    pub(crate) topology: Topology,
    pub(crate) faults: Vec<Window>,
    /// By window: the place of its fault in the scenario.
    pub(crate) origins: Vec<usize>,
    /// When all faults are over.
    pub(crate) heal_at: Instant,
    /// How long the cluster may take to come back after that.
    pub(crate) heal_within: Duration,
}

/// Plays a scenario under a seed.
#[must_use]
pub fn play(scenario: &Scenario, seed: u64, reproduce: String) -> RunResult {
    let _quiet = panics::Watch::begin();
    let Staged { topology, faults, origins, heal_at, heal_within } = stage(scenario);
    let workload = Workload::new(scenario, seed);
    let operations = operations(scenario, &workload);
    let plan = Plan { seed, topology, operations, faults, heal_at, heal_within, planted: Planted::NONE, staged: true };
    let result = World::new(Arc::new(plan), false).with_closed_loop(workload.closed_loop(LOAD_FROM)).run();
    let mut faults: Vec<FaultEvent> = Vec::new();
    for (window, at, places) in &result.struck {
        let place = origins[*window];
        let names = places.iter().map(|place| match place {
            Place::Server(id) => result.names.server(*id),
            other => other.to_string(),
        });
        match faults.iter_mut().find(|event| event.place == place) {
            Some(event) => event.struck.extend(names),
            None => faults.push(FaultEvent { place, at_ns: at.0, struck: names.collect() }),
        }
    }
    for event in &mut faults {
        event.struck.dedup();
    }
    let admin = scenario.admin.iter().enumerate().filter_map(|(place, _)| {
        let told = result.told.get(&(OPERATOR + place as u32))?;
        Some(AdminEvent { place, at_ns: told.asked.0, answered_ns: told.answered.map(|at| at.0), answer: told.answer.clone() })
    });
    let rule_is = |names: &[&str]| result.violation.as_ref().filter(|found| names.contains(&found.rule)).map(ToString::to_string);
    let world_check = |name: &str, what: &str, count: u64, failure: Option<String>| WorldCheck {
        name: name.to_owned(),
        what: what.to_owned(),
        count,
        failures: failure.into_iter().collect(),
    };
    let others = result.violation.as_ref().filter(|found| !["liveness", "deadline", "history", "reply"].contains(&found.rule));
    let world_checks = vec![
        world_check("invariants", "steps", result.events, others.map(ToString::to_string)),
        world_check("answers", "answers", result.answers, rule_is(&["history", "reply", "deadline"])),
        world_check("coming back after the last fault", "shards", result.shards, rule_is(&["liveness"])),
    ];
    RunResult {
        scenario: scenario.clone(),
        engine: "explorer".to_owned(),
        seed,
        load_from_ns: LOAD_FROM.0,
        ended_ns: result.ended_at.0,
        history: result.history,
        names: result.names,
        notes: result.notes.into_iter().map(|(at, _, note)| (at.0, note)).collect(),
        faults,
        admin: admin.collect(),
        world_checks,
        reproduce,
    }
}

const fn at(ms: u64) -> Instant {
    Instant(LOAD_FROM.0 + Duration::from_millis(ms).0)
}

/// What clients and the operator ask, by time. Requests of the operator have numbers from [`OPERATOR`] on.
fn operations(scenario: &Scenario, workload: &Workload) -> Vec<PlannedOperation> {
    let spec = &scenario.workload;
    let balancer_count = scenario.topology.balancers as usize;
    let clients = workload.plan().into_iter().map(|planned| PlannedOperation {
        id: planned.id as u32,
        at: LOAD_FROM + Duration(planned.at_ns),
        client: planned.client,
        balancer: planned.client as usize % balancer_count.max(1),
        timeout: Duration::from_millis(spec.deadline_ms),
        retries: spec.retries_max,
        action: Action::Raw(planned.request),
    });
    let operator = scenario.admin.iter().enumerate().map(|(place, step)| PlannedOperation {
        id: OPERATOR + place as u32,
        at: at(step.at_ms),
        client: OPERATOR,
        balancer: 0,
        timeout: ADMIN_TIMEOUT,
        retries: 0,
        action: Action::Raw(step.kind.request()),
    });
    let mut operations: Vec<PlannedOperation> = clients.chain(operator).collect();
    operations.sort_by_key(|operation| (operation.at, operation.id));
    operations
}

pub(crate) fn stage(scenario: &Scenario) -> Staged {
    let heal_at = at(scenario.end_ms());
    let mut windows: Vec<(Window, usize)> = Vec::new();
    for (place, fault) in scenario.faults.iter().enumerate() {
        // What 0 means: a crash can be undone at once; failing starts fail from here on.
        let length = match &fault.kind {
            FaultKind::ProvisionFails { .. } if fault.for_ms == 0 => heal_at.since(at(fault.at_ms)),
            _ => Duration::from_millis(fault.for_ms),
        };
        let start = at(fault.at_ms);
        windows.extend(faults(scenario, &fault.kind).into_iter().map(|fault| (Window { start, length, fault }, place)));
    }
    windows.sort_by_key(|(window, place)| (window.start, *place));
    let (faults, origins) = windows.into_iter().unzip();
    Staged { topology: topology(scenario), faults, origins, heal_at, heal_within: HEAL_WITHIN }
}

/// The servers that hold a shard's active configuration: its primary, or the others.
pub(crate) fn holders(map: &ClusterMap, shard: Option<&str>, primary: bool) -> Vec<Place> {
    let record = shard.and_then(|name| map.shard_named(name)).and_then(|id| map.shards.get(&id));
    let Some(config) = record.and_then(|record| record.current.as_ref()) else { return Vec::new() };
    let members = config.members.iter().filter(|member| (**member == config.primary) == primary);
    let servers: BTreeSet<ServerId> = members.filter_map(|member| map.server_of(*member)).collect();
    servers.into_iter().map(Place::Server).collect()
}

fn topology(scenario: &Scenario) -> Topology {
    let spec = &scenario.topology;
    let mut servers: Vec<NewServer> =
        scenario.server_names().map(|name| NewServer { name: name.into_boxed_str(), shards: Vec::new() }).collect();
    for (place, shard) in spec.shards.iter().enumerate() {
        let holders = scenario.servers_of(place);
        for server in servers.iter_mut().filter(|server| holders.iter().any(|holder| **holder == *server.name)) {
            server.shards.push(shard.name.as_str().into());
        }
    }
    let limits = spec.limits;
    let usual = ServerSettings::default();
    let count = |limit: Option<u32>, usual: usize| limit.map_or(usual, |limit| limit as usize);
    let settings = ServerSettings {
        read_bytes_max: limits.read_bytes_max.unwrap_or(usual.read_bytes_max),
        chunk_bytes: limits.chunk_bytes.unwrap_or(usual.chunk_bytes),
        log_keep_count: count(limits.log_keep_count, usual.log_keep_count),
        flush_entries: count(limits.flush_entries, usual.flush_entries),
        pins_max: count(limits.pins_max, usual.pins_max),
        ..usual
    };
    let pages = Pages { rows: limits.page_rows.unwrap_or(Pages::default().rows), ..Pages::default() };
    Topology {
        settings,
        pages,
        shards: spec.shards.iter().map(|shard| NewShard { name: shard.name.as_str().into(), low: shard.low, size: shard.size }).collect(),
        servers,
        balancer_count: spec.balancers as usize,
        write_quorum: spec.write_quorum,
        storage: StorageWeather { start_max: Duration::from_millis(200), ..StorageWeather::default() },
        ..Topology::default()
    }
}

fn place(scenario: &Scenario, target: &Target) -> Place {
    let shard = |name: &str| scenario.topology.shards.iter().position(|shard| shard.name == name).unwrap_or(usize::MAX);
    match target {
        // Ids are minted in the order of /init, then of /add.
        Target::Server(name) => {
            let added = scenario.admin.iter().flat_map(|step| match &step.kind {
                AdminKind::Add { servers, .. } => servers.iter().map(|server| server.name.clone()).collect(),
                AdminKind::Remove { .. } | AdminKind::MovePrimary { .. } | AdminKind::Move { .. } | AdminKind::Drain { .. } => Vec::new(),
            });
            let place = scenario.server_names().chain(added).position(|known| known == *name);
            Place::Server(ServerId(place.map_or(u64::MAX, |place| place as u64 + 1)))
        }
        Target::Balancer(number) => Place::Balancer(*number as usize),
        Target::PrimaryOf(name) => Place::PrimaryOf(shard(name)),
        Target::BackupOf(name) => Place::BackupOf(shard(name)),
        Target::BackupsOf(name) => Place::BackupsOf(shard(name)),
        Target::Controller => Place::Controller,
        Target::Servers => Place::Servers,
        Target::Balancers => Place::Balancers,
        Target::Clients => Place::Clients,
    }
}

fn faults(scenario: &Scenario, kind: &FaultKind) -> Vec<Fault> {
    let place = |target: &Target| place(scenario, target);
    match kind {
        FaultKind::Crash { target } => vec![Fault::Down { place: place(target), loses_disk: false }],
        FaultKind::LoseDisk { target } => vec![Fault::Down { place: place(target), loses_disk: true }],
        FaultKind::PowerLoss {} => {
            vec![Fault::Down { place: Place::Servers, loses_disk: false }, Fault::Down { place: Place::Balancers, loses_disk: false }]
        }
        FaultKind::Pause { target } => vec![Fault::Pause { place: place(target) }],
        FaultKind::Partition { between, and, direction } => {
            let way = match direction {
                Direction::Both => Way::Both,
                Direction::OneWay => Way::Forth,
            };
            between
                .iter()
                .flat_map(|a| and.iter().map(move |b| (a, b)))
                .map(|(a, b)| Fault::Cut { a: place(a), b: place(b), way })
                .collect()
        }
        FaultKind::Isolate { target } => vec![Fault::Cut { a: place(target), b: Place::Others, way: Way::Both }],
        FaultKind::RegisterDown {} => vec![Fault::Register { place: Place::Others, fault: RegisterFault::Unavailable, ppm: MILLION }],
        FaultKind::DatabaseDown { target } => vec![Fault::StoreDown { place: place(target) }],
        FaultKind::ProvisionFails { target, times } => {
            vec![Fault::StartsFail { place: target.as_ref().map_or(Place::Servers, place), times: *times }]
        }
        FaultKind::Network { loss_per_mille, duplicate_per_mille, delay_ms } => vec![Fault::Weather {
            place: Place::Others,
            loss_ppm: loss_per_mille * 1_000,
            duplicate_ppm: duplicate_per_mille * 1_000,
            straggler_ppm: if *delay_ms > 0 { MILLION } else { 0 },
            straggler_max: Duration::from_millis(*delay_ms),
        }],
        FaultKind::SlowDisk { target, sync_ms } => {
            vec![Fault::SlowDisk { place: place(target), sync_max: Duration::from_millis(*sync_ms) }]
        }
    }
}
