//! The bounded-exhaustive engine: the fault-free schedule of a tiny workload, and every combination of at most `depth` deviations
//! (drop, delay, duplicate, crash of the receiver) at every message and every fsync. Complete within its bound, unlike any seed.

use crate::{
    explorer::{
        exhaustive::{Deviation, Script},
        invariants::Violation,
        world::{RunResult, World},
    },
    panics,
    plan::{Action, Level, Pages, Plan, PlannedOperation, StorageWeather, Topology, unique_row, unique_value},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};
use twinshard_core::{
    balancer::BalancerConfig,
    command::{OnConflict, Operation},
    planted::Planted,
    request::{NewServer, NewShard},
    server::ServerSettings,
    time::{Duration, Instant},
    value::{Key, KeyRange},
};

/// When a cluster is set up and quiet.
const SET_UP_AT: Instant = Instant(1_500_000_000);
/// For how long after that the schedule may deviate.
const WINDOW: Duration = Duration::from_millis(400);

/// A tiny workload.
#[derive(Clone, Debug)]
pub struct Tiny {
    /// Its name.
    pub name: &'static str,
    /// What is played when nothing deviates.
    pub plan: Plan,
}

/// What a search of one workload found.
#[derive(Clone, Debug, Default)]
pub struct Searched {
    /// Schedules that were played.
    pub schedules: u64,
    /// Steps of machines, the shared beginning not counted again.
    pub events: u64,
    /// Places where the fault-free schedule can deviate.
    pub sites: u32,
    /// If the most schedules were played before all were: how many first deviations were tried to the end, and of how many.
    pub stopped: Option<(usize, usize)>,
    /// The first violation in the order of the search, with the deviations that lead to it.
    pub failure: Option<(BTreeMap<u32, Deviation>, Violation)>,
}

/// The tiny workloads.
#[must_use]
pub fn workloads(planted: Planted) -> Vec<Tiny> {
    let put = |id: u32, key: i64| Action::Write {
        operations: vec![Operation::Insert { row: unique_row(id, 0, Key(key)), on_conflict: OnConflict::Replace }],
        on_conflict: None,
    };
    let change = |id: u32, key: i64| Action::Write {
        operations: vec![Operation::Update { key: Key(key), set: vec![(1, unique_value(id, 0))] }],
        on_conflict: None,
    };
    let remove = |key: i64| Action::Write { operations: vec![Operation::Delete { key: Key(key) }], on_conflict: None };
    let read =
        |low: i64, high: i64| Action::Read { range: KeyRange { low: Key(low), high: Key(high) }, limit: 10, level: Level::Linearizable };
    let tiny = |name, servers: usize, replicas: &[usize], quorum: Option<u32>, actions: Vec<(u64, Action)>| Tiny {
        name,
        plan: plan(servers, replicas, quorum, actions, planted),
    };
    let mv = || Action::MovePrimary { shard: "sh1".into() };
    vec![
        tiny("a write and a read", 3, &[3], None, vec![(5, put(1, 1)), (25, read(1, 1))]),
        tiny("two writes of one key, and a read between", 3, &[3], None, vec![(5, put(1, 1)), (7, put(2, 1)), (9, read(1, 1))]),
        tiny("a primary that moves under writes", 3, &[3], None, vec![(5, put(1, 1)), (6, mv()), (8, put(2, 1)), (30, read(1, 1))]),
        tiny("any one member is enough", 3, &[3], Some(1), vec![(5, put(1, 1)), (6, mv()), (9, change(2, 1)), (30, read(1, 1))]),
        tiny("every member is needed", 2, &[2], Some(2), vec![(5, put(1, 1)), (8, remove(1)), (20, put(2, 1)), (30, read(1, 1))]),
        tiny(
            "a server is added",
            3,
            &[2],
            None,
            vec![
                (5, put(1, 1)),
                (6, Action::AddServer { name: "S9".into(), shards: vec!["sh1".into()], new_shards: Vec::new() }),
                (12, put(2, 1)),
                (60, read(1, 1)),
            ],
        ),
        tiny(
            "a server leaves",
            4,
            &[3],
            None,
            vec![(5, put(1, 1)), (6, Action::RemoveServer { name: "S1".into() }), (12, put(2, 1)), (60, read(1, 1))],
        ),
        tiny("two shards at once", 3, &[3, 2], None, vec![(5, two(1)), (8, read(0, 20)), (9, two(2)), (20, read(0, 20))]),
    ]
}

/// One row in each of two shards.
fn two(id: u32) -> Action {
    let insert = |part: usize, key: i64| Operation::Insert { row: unique_row(id, part, Key(key)), on_conflict: OnConflict::Replace };
    Action::Write { operations: vec![insert(0, 1), insert(1, 9)], on_conflict: None }
}

fn plan(server_count: usize, replicas: &[usize], write_quorum: Option<u32>, actions: Vec<(u64, Action)>, planted: Planted) -> Plan {
    let shard = |place: usize| -> Box<str> { format!("sh{}", place + 1).into() };
    let servers = (0..server_count).map(|server| NewServer {
        name: format!("S{}", server + 1).into(),
        shards: replicas.iter().enumerate().filter(|(_, count)| server < **count).map(|(place, _)| shard(place)).collect(),
    });
    let shards = (0..replicas.len()).map(|place| NewShard { name: shard(place), low: place as i64 * 8, size: 8 });
    let operations = actions.into_iter().enumerate().map(|(place, (at_ms, action))| PlannedOperation {
        id: place as u32 + 1,
        at: SET_UP_AT + Duration::from_millis(at_ms),
        client: place as u32,
        balancer: 0,
        timeout: Duration::from_millis(3_000),
        retries: if place % 2 == 0 { 5 } else { 0 },
        action,
    });
    Plan {
        seed: 0,
        topology: Topology {
            shards: shards.collect(),
            servers: servers.collect(),
            balancer_count: 1,
            write_quorum,
            settings: ServerSettings { flush_entries: 2, log_keep_count: 1, append_entries_max: 2, ..ServerSettings::default() },
            balancer: BalancerConfig {
                suspect_after: Duration::from_millis(250),
                replace_after: Duration::from_millis(1_000),
                ..BalancerConfig::default()
            },
            storage: StorageWeather { sync_max: Duration(50_000), ..StorageWeather::default() },
            pages: Pages::default(),
        },
        operations: operations.collect(),
        faults: Vec::new(),
        heal_at: SET_UP_AT + WINDOW,
        heal_within: Duration::from_millis(15_000),
        planted,
        staged: false,
    }
}

/// Plays every schedule of a workload with at most `depth` deviations, on so many threads. The search stops at the first violation, or when
/// so many schedules were played that there are `schedules_max`.
#[must_use]
pub fn search(tiny: &Tiny, depth: u32, schedules_max: u64, jobs: usize) -> Searched {
    let base = World::set_up(Arc::new(tiny.plan.clone()), SET_UP_AT);
    if let Some(violation) = base.violation() {
        return Searched { failure: Some((BTreeMap::new(), violation.clone())), ..Searched::default() };
    }
    let (result, script) = play(&base, &BTreeMap::new());
    let mut searched = Searched { schedules: 1, events: result.events, sites: script.site_count, ..Searched::default() };
    if let Some(violation) = result.violation {
        searched.failure = Some((BTreeMap::new(), violation));
        return searched;
    }
    let firsts = successors(&BTreeMap::new(), &script);
    // Up to which first deviation it matters: beyond the lowest that leads to a failure nothing does.
    let (next, end) = (AtomicUsize::new(0), AtomicUsize::new(if depth == 0 { 0 } else { firsts.len() }));
    let (schedules, events) = (AtomicU64::new(1), AtomicU64::new(result.events));
    let completed = AtomicUsize::new(0);
    let failures = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            // Each thread has a world of its own to copy: what worlds share is counted with atomics.
            let base = base.clone();
            let (next, end, schedules, events, failures, firsts, completed) =
                (&next, &end, &schedules, &events, &failures, &firsts, &completed);
            scope.spawn(move || {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let goes_on = || place < end.load(Ordering::Relaxed) && schedules.load(Ordering::Relaxed) < schedules_max;
                    if !goes_on() {
                        break;
                    }
                    let mut own = Searched::default();
                    descend(&base, &firsts[place], depth - 1, &mut own, schedules, &goes_on);
                    events.fetch_add(own.events, Ordering::Relaxed);
                    if schedules.load(Ordering::Relaxed) < schedules_max {
                        completed.fetch_add(1, Ordering::Relaxed);
                    }
                    if let Some(failure) = own.failure {
                        end.fetch_min(place, Ordering::Relaxed);
                        failures.lock().unwrap_or_else(PoisonError::into_inner).insert(place, failure);
                    }
                }
            });
        }
    });
    searched.schedules = schedules.into_inner();
    searched.stopped = (searched.schedules >= schedules_max).then_some((completed.into_inner(), firsts.len()));
    searched.events = events.into_inner();
    searched.failure = failures.into_inner().unwrap_or_else(PoisonError::into_inner).pop_first().map(|(_, failure)| failure);
    searched
}

fn descend(
    base: &World,
    deviations: &BTreeMap<u32, Deviation>,
    depth: u32,
    searched: &mut Searched,
    schedules: &AtomicU64,
    goes_on: &dyn Fn() -> bool,
) {
    let (result, script) = play(base, deviations);
    schedules.fetch_add(1, Ordering::Relaxed);
    searched.events += result.events;
    if let Some(violation) = result.violation {
        searched.failure = Some((deviations.clone(), violation));
        return;
    }
    if depth == 0 {
        return;
    }
    for next in successors(deviations, &script) {
        if searched.failure.is_some() || !goes_on() {
            return;
        }
        descend(base, &next, depth - 1, searched, schedules, goes_on);
    }
}

/// The deviations with one more, at a place after the last.
fn successors(deviations: &BTreeMap<u32, Deviation>, script: &Script) -> Vec<BTreeMap<u32, Deviation>> {
    let after = deviations.last_key_value().map_or(0, |(site, _)| site + 1);
    let mut all = Vec::new();
    for site in after..script.site_count {
        let kinds: &[Deviation] = if script.syncs.binary_search(&site).is_ok() { &[Deviation::Crash] } else { &Deviation::OF_MESSAGE };
        for kind in kinds {
            let mut next = deviations.clone();
            next.insert(site, *kind);
            all.push(next);
        }
    }
    all
}

/// Plays one schedule.
#[must_use]
pub fn play(base: &World, deviations: &BTreeMap<u32, Deviation>) -> (RunResult, Script) {
    let _quiet = panics::Watch::begin();
    base.clone().run_script(Script { deviations: deviations.clone(), ..Script::default() })
}

/// The trace of one schedule, for people.
#[must_use]
pub fn explain(tiny: &Tiny, deviations: &BTreeMap<u32, Deviation>) -> RunResult {
    let _quiet = panics::Watch::begin();
    let base = World::set_up_with_text(Arc::new(tiny.plan.clone()), SET_UP_AT);
    base.run_script(Script { deviations: deviations.clone(), ..Script::default() }).0
}
