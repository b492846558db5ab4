//! The general scenario: from a seed every knob, all kinds of faults, at least a hundred operations (DESIGN 9). Plans are drawn from
//! ChaCha8 streams, one per purpose, so that a change to the workload's dice leaves the faults as they were.

use crate::{
    faults::{Fault, Loss, Place, RegisterFault, Way, Window},
    keyed::MILLION,
    plan::{Action, Level, Pages, Plan, PlannedOperation, StorageWeather, Topology, unique_row, unique_value},
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use twinshard_core::{
    balancer::{BalancerConfig, Policy},
    command::{OnConflict, Operation},
    id::ServerId,
    planted::Planted,
    request::{NewServer, NewShard, Request},
    schema::{Column, Schema},
    server::ServerSettings,
    time::{Duration, Instant},
    value::{Key, KeyRange},
};
use twinshard_scenarios::scenario;

/// Keys of one shard: few, so that operations meet.
const SHARD_KEYS: i64 = 8;
/// When the workload begins: about when a cluster is set up that nothing disturbs.
const WORKLOAD_AT_MS: u64 = 700;

/// What a stream of dice is for.
#[derive(Clone, Copy, Debug)]
enum Stream {
    Options = 1,
    Topology,
    Workload,
    Faults,
    Relocations,
    Reads,
    Losses,
    Resets,
}

/// Dice of one stream.
struct Dice(ChaCha8Rng);

impl Dice {
    fn new(seed: u64, stream: Stream) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream as u64);
        Self(rng)
    }

    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.0.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    fn ms(&mut self, low: u64, high: u64) -> Duration {
        Duration(self.between(low * 1_000_000, high * 1_000_000))
    }
}

/// The plan of a seed, with this bug in it.
#[must_use]
pub fn plan(seed: u64, planted: Planted) -> Plan {
    let mut options = Dice::new(seed, Stream::Options);
    let mut topology = topology(&mut Dice::new(seed, Stream::Topology));
    let mut reads = Dice::new(seed, Stream::Reads);
    page_limits(&mut reads, &mut topology);
    let span_ms = options.between(2_000, 7_000);
    let count = options.between(100, 160);
    let end = Instant((WORKLOAD_AT_MS + span_ms) * 1_000_000);
    let mut operations = operations(&mut Dice::new(seed, Stream::Workload), &topology, count, span_ms);
    operations.extend(relocations(&mut Dice::new(seed, Stream::Relocations), &topology, span_ms));
    operations.extend(wide_reads(&mut reads, &topology, span_ms));
    let (losses, downs) = losses(&mut Dice::new(seed, Stream::Losses), &topology, end);
    operations.extend(losses);
    operations.extend(resets(&mut Dice::new(seed, Stream::Resets), &topology, end));
    operations.sort_by_key(|operation| (operation.at, operation.id));
    let mut faults = faults(&mut Dice::new(seed, Stream::Faults), &mut options, &topology, end);
    faults.extend(downs);
    faults.sort_by_key(|window| window.start);
    Plan { seed, topology, operations, faults, heal_at: end, heal_within: Duration::from_millis(20_000), planted, staged: false }
}

fn shard_name(number: u64) -> Box<str> {
    format!("sh{number}").into()
}

fn server_name(number: u64) -> Box<str> {
    format!("S{number}").into()
}

fn topology(dice: &mut Dice) -> Topology {
    let server_count = dice.between(3, 6);
    let shard_count = dice.pick(&[1, 1, 2, 2, 3]);
    let mut servers: Vec<NewServer> =
        (1..=server_count).map(|number| NewServer { name: server_name(number), shards: Vec::new() }).collect();
    let mut shards = Vec::new();
    for number in 1..=shard_count {
        shards.push(NewShard { name: shard_name(number), low: (number as i64 - 1) * SHARD_KEYS, size: SHARD_KEYS });
        let replicas = dice.pick(&[1, 2, 3, 3, 3, 4, 5]).min(server_count);
        let first = dice.below(server_count);
        for step in 0..replicas {
            servers[((first + step) % server_count) as usize].shards.push(shard_name(number));
        }
    }
    let heartbeat = dice.between(20, 100);
    let suspect = heartbeat * dice.between(3, 5);
    let replace = suspect + dice.between(100, 2_000);
    Topology {
        shards,
        servers,
        balancer_count: dice.pick(&[1, 2, 2]),
        write_quorum: dice.pick(&[None, None, None, Some(1), Some(2), Some(2), Some(3), Some(5)]),
        settings: ServerSettings {
            sessions_max: dice.pick(&[1, 2, 3, 3, 3, 1_024]),
            append_entries_max: dice.pick(&[1, 2, 8, 512]),
            append_bytes_max: dice.pick(&[200, 2_000, 1 << 20]),
            log_keep_count: dice.pick(&[1, 4, 16, 1_000]),
            log_keep_bytes: dice.pick(&[500, 5_000, 16 << 20]),
            chunk_bytes: dice.pick(&[60, 500, 256 << 10]),
            flush_entries: dice.pick(&[1, 2, 5, 20]),
            appends_in_flight_max: dice.pick(&[1, 3, 32]),
            read_bytes_max: dice.pick(&[100, 1 << 20]),
            learners_max: dice.pick(&[1, 16]),
            snapshots_max: dice.pick(&[1, 4]),
            learner_close_count: dice.pick(&[1, 8, 64]),
            heartbeat_every: Duration::from_millis(dice.between(20, 100)),
            resend_after: Duration::from_millis(dice.between(20, 150)),
            commit_spread_after: dice.pick(&[Duration::ZERO, Duration::from_millis(2), Duration::from_millis(20)]),
            read_timeout: Duration::from_millis(dice.between(100, 1_000)),
            fetch_timeout: dice.pick(&[60, 150, 400, 2_000].map(Duration::from_millis)),
            snapshot_idle_max: Duration::from_millis(dice.between(300, 3_000)),
            map_persist_after: Duration::from_millis(dice.between(0, 200)),
            request_retry_after: Duration::from_millis(dice.between(20, 200)),
            ..ServerSettings::default()
        },
        balancer: BalancerConfig {
            policy: dice.pick(&[Policy::Classic, Policy::Ring, Policy::LeastLoaded]),
            heartbeat_every: Duration::from_millis(heartbeat),
            suspect_after: Duration::from_millis(suspect),
            replace_after: Duration::from_millis(replace),
            // Shorter than the holder's beat: two balancers then take control from each other all the time.
            controller_after: dice.pick(&[Duration::from_millis(50), Duration::from_millis(300), Duration::from_millis(1_500)]),
            ..BalancerConfig::default()
        },
        storage: StorageWeather {
            sync_max: dice.ms(0, 5),
            rows_max: dice.ms(0, 3),
            flush_durable_ppm: dice.pick(&[0, 200_000, MILLION]),
            start_max: dice.ms(1, 60),
        },
        pages: Pages::default(),
    }
}

fn operations(dice: &mut Dice, topology: &Topology, count: u64, span_ms: u64) -> Vec<PlannedOperation> {
    let mut operations = Vec::new();
    let keys = topology.shards.len() as i64 * SHARD_KEYS;
    for id in 1..=count {
        let at = Instant((WORKLOAD_AT_MS * 1_000_000) + dice.below(span_ms * 1_000_000));
        let id = id as u32;
        let timeout = dice.pick(&[150, 1_000, 3_000, 10_000]);
        let (client, balancer) = (dice.below(8) as u32, dice.below(topology.balancer_count as u64) as usize);
        let retries = if dice.percent(40) { 5 } else { 0 };
        let action = action(dice, topology, id, keys);
        operations.push(PlannedOperation { id, at, client, balancer, timeout: Duration::from_millis(timeout), retries, action });
    }
    let mut names: Vec<Box<str>> = topology.servers.iter().map(|server| server.name.clone()).collect();
    for step in 0..dice.pick(&[0, 1, 2, 4, 8]) {
        let id = count as u32 + 1 + step;
        let at = Instant((WORKLOAD_AT_MS * 1_000_000) + dice.below(span_ms * 1_000_000));
        let action = admin(dice, topology, id, &mut names);
        let (client, balancer) = (100 + step, dice.below(topology.balancer_count as u64) as usize);
        operations.push(PlannedOperation { id, at, client, balancer, timeout: Duration::from_millis(5_000), retries: 0, action });
    }
    operations
}

/// Ids of operations that move replicas: beyond those of all others.
const RELOCATIONS_FROM: u32 = 5_000;

/// In some seeds operators move replicas, or all of a server's.
fn relocations(dice: &mut Dice, topology: &Topology, span_ms: u64) -> Vec<PlannedOperation> {
    let server = |dice: &mut Dice| server_name(dice.between(1, topology.servers.len() as u64));
    let mut operations = Vec::new();
    for step in 0..dice.pick(&[0, 0, 1, 2, 4]) {
        let at = Instant((WORKLOAD_AT_MS * 1_000_000) + dice.below(span_ms * 1_000_000));
        let request = if dice.percent(70) {
            let shard = shard_name(dice.between(1, topology.shards.len() as u64));
            Request::Move { shard, from: server(dice), to: server(dice) }
        } else {
            Request::Drain { server: server(dice) }
        };
        let (id, client) = (RELOCATIONS_FROM + step, 200 + step);
        let balancer = dice.below(topology.balancer_count as u64) as usize;
        let (timeout, action) = (Duration::from_millis(5_000), Action::Raw(request));
        operations.push(PlannedOperation { id, at, client, balancer, timeout, retries: 0, action });
    }
    operations
}

/// Reads of several pages are the rule: pages are small, what is held for them is little and short.
fn page_limits(dice: &mut Dice, topology: &mut Topology) {
    topology.pages = Pages {
        rows: dice.pick(&[1, 2, 3, 4, 100]),
        pause_max: dice.pick(&[Duration::ZERO, Duration::from_millis(20), Duration::from_millis(800)]),
    };
    let settings = &mut topology.settings;
    settings.pins_max = dice.pick(&[1, 2, 8, 8]);
    settings.pin_bytes_max = dice.pick(&[0, 300, 32 << 20, 32 << 20]);
    settings.pin_idle_max = dice.ms(50, 1_500);
    settings.pin_life_max = dice.ms(200, 5_000);
}

/// Ids of reads that go over whole shards and several, and of those at servers: beyond those of moves.
const WIDE_READS_FROM: u32 = 6_000;

fn wide_reads(dice: &mut Dice, topology: &Topology, span_ms: u64) -> Vec<PlannedOperation> {
    let keys = topology.shards.len() as i64 * SHARD_KEYS;
    let mut operations = Vec::new();
    for step in 0..dice.pick(&[0, 4, 12]) {
        let at = Instant((WORKLOAD_AT_MS * 1_000_000) + dice.below(span_ms * 1_000_000));
        let level = dice.pick(&[Level::Linearizable, Level::Linearizable, Level::Session, Level::Session, Level::Stale]);
        let action = if dice.percent(70) {
            // Whole shards, several of them, and beyond all.
            let low = Key(dice.pick(&[0, 0, SHARD_KEYS / 2, SHARD_KEYS]));
            let high = Key(dice.pick(&[SHARD_KEYS - 1, keys - 1, keys, 1_000_000]).max(low.0));
            Action::Read { range: KeyRange { low, high }, limit: dice.pick(&[1, 2, 5, 9, 1_000]), level }
        } else {
            let shard = dice.between(1, topology.shards.len() as u64);
            let range = dice.pick(&[KeyRange::ALL, KeyRange { low: Key(2), high: Key(SHARD_KEYS + 3) }]);
            Action::ReadAtServer { server: dice.between(1, topology.servers.len() as u64), shard: shard_name(shard), range, level }
        };
        // The clients of the other operations: a session goes over balancers and servers.
        let (client, balancer) = (dice.below(8) as u32, dice.below(topology.balancer_count as u64) as usize);
        let timeout = Duration::from_millis(dice.pick(&[300, 3_000, 10_000]));
        operations.push(PlannedOperation { id: WIDE_READS_FROM + step, at, client, balancer, timeout, retries: 0, action });
    }
    operations
}

/// Ids of operations that tear the cluster down and set it up anew.
const RESETS_FROM: u32 = 7_000;

/// In a few seeds the cluster is torn down while it is used, and set up again with another schema.
fn resets(dice: &mut Dice, topology: &Topology, end: Instant) -> Vec<PlannedOperation> {
    if dice.percent(92) {
        return Vec::new();
    }
    let start = Instant(dice.between(WORKLOAD_AT_MS * 1_000_000, end.0));
    let renamed = |(number, server): (usize, &NewServer)| NewServer { name: format!("T{number}").into(), shards: server.shards.clone() };
    let before = scenario::schema();
    let columns = before.columns().iter().enumerate();
    let columns = columns.map(|(place, column)| Column { name: format!("other{place}").into(), dtype: column.dtype });
    let Ok(schema) = Schema::new(columns.collect()) else { return Vec::new() };
    let shards = topology.shards.iter().map(|shard| NewShard { size: shard.size + SHARD_KEYS, low: shard.low * 2, ..shard.clone() });
    let init = Request::Init {
        server_count: None,
        schema,
        shards: shards.collect(),
        servers: Some(topology.servers.iter().enumerate().map(renamed).collect()),
        on_conflict: None,
        by_name: false,
    };
    let down = Request::Remove { server_count: 100, servers: Vec::new(), accept_data_loss: true, capped: true };
    let steps = [(start, down), (start + dice.ms(20, 800), init.clone()), (start + dice.ms(800, 2_500), init)];
    let balancer_count = topology.balancer_count as u64;
    let planned = (0_u32..).zip(steps).map(|(step, (at, request))| {
        let balancer = dice.below(balancer_count) as usize;
        let (id, client, timeout) = (RESETS_FROM + step, 400 + step, Duration::from_millis(10_000));
        PlannedOperation { id, at: at.min(end), client, balancer, timeout, retries: 0, action: Action::Raw(request) }
    });
    planned.collect()
}

/// Ids of operations that accept the loss of data.
const LOSSES_FROM: u32 = 8_000;

/// In some seeds an operator accepts the loss of data: where servers are gone for good, as it seems, with their disk or without, where they
/// are merely silent, or where nothing is wrong at all.
fn losses(dice: &mut Dice, topology: &Topology, end: Instant) -> (Vec<PlannedOperation>, Vec<Window>) {
    let (mut operations, mut downs) = (Vec::new(), Vec::new());
    if dice.percent(75) {
        return (operations, downs);
    }
    let server_count = topology.servers.len() as u64;
    let first = dice.below(server_count);
    let at = |dice: &mut Dice| Instant(dice.between(WORKLOAD_AT_MS * 1_000_000, end.0));
    let start = at(dice);
    for step in 0..dice.pick(&[0, 1, 2, 2, 3, 4]).min(server_count - 1) {
        let place = Place::Server(ServerId((first + step) % server_count + 1));
        let length = if dice.percent(33) { dice.ms(100, 1_000) } else { end.since(start) };
        downs.push(Window { start, length, fault: Fault::Down { place, loses_disk: dice.percent(20) } });
    }
    for step in 0..dice.pick(&[1, 1, 2]) {
        let at = if dice.percent(50) { at(dice) } else { (start + dice.ms(0, 1_500)).min(end) };
        let names = (0..dice.pick(&[1, 1, 2])).map(|step| server_name((first + step) % server_count + 1)).collect::<Vec<_>>();
        let request = Request::Remove { server_count: names.len() as u64, servers: names, accept_data_loss: true, capped: false };
        let (id, client) = (LOSSES_FROM + step, 300 + step);
        let balancer = dice.below(topology.balancer_count as u64) as usize;
        let (timeout, action) = (dice.pick(&[5_000, 20_000].map(Duration::from_millis)), Action::Raw(request));
        operations.push(PlannedOperation { id, at, client, balancer, timeout, retries: 0, action });
    }
    (operations, downs)
}

fn action(dice: &mut Dice, topology: &Topology, id: u32, keys: i64) -> Action {
    let key = |dice: &mut Dice| Key(dice.below(keys as u64) as i64);
    let insert = |dice: &mut Dice, part: usize, on_conflict: OnConflict| {
        let key = key(dice);
        Operation::Insert { row: unique_row(id, part, key), on_conflict }
    };
    match dice.below(100) {
        0..45 => {
            let mode = dice.pick(&[OnConflict::Replace, OnConflict::Replace, OnConflict::Error, OnConflict::Skip]);
            let count = dice.pick(&[1, 1, 2, 3]);
            Action::Write { operations: (0..count).map(|part| insert(dice, part, mode)).collect(), on_conflict: Some(mode) }
        }
        45..57 => {
            let operation = Operation::Update { key: key(dice), set: vec![(1, unique_value(id, 0))] };
            Action::Write { operations: vec![operation], on_conflict: None }
        }
        57..65 => Action::Write { operations: vec![Operation::Delete { key: key(dice) }], on_conflict: None },
        65..93 => {
            let low = key(dice);
            let high = dice.pick(&[low, Key(low.0 + 3), Key(keys)]);
            let level = dice.pick(&[Level::Linearizable, Level::Linearizable, Level::Linearizable, Level::Session, Level::Stale]);
            Action::Read { range: KeyRange { low, high }, limit: dice.pick(&[1, 3, 100]), level }
        }
        93..96 => {
            let shard = dice.below(topology.shards.len() as u64);
            let key = Key(shard as i64 * SHARD_KEYS + dice.below(SHARD_KEYS as u64) as i64);
            let operations = vec![Operation::Insert { row: unique_row(id, 0, key), on_conflict: OnConflict::Replace }];
            Action::WriteAtServer { server: dice.between(1, topology.servers.len() as u64), shard: shard_name(shard + 1), operations }
        }
        96..98 => {
            let server = server_name(dice.between(1, topology.servers.len() as u64));
            Action::ReadServer { server, shard: shard_name(dice.between(1, topology.shards.len() as u64)) }
        }
        _ => Action::Status,
    }
}

fn admin(dice: &mut Dice, topology: &Topology, id: u32, names: &mut Vec<Box<str>>) -> Action {
    match dice.below(10) {
        0..3 => {
            let name = server_name(u64::from(id));
            names.push(name.clone());
            let mut shards: Vec<Box<str>> = Vec::new();
            for shard in &topology.shards {
                if dice.percent(60) {
                    shards.push(shard.name.clone());
                }
            }
            let new_shards = if dice.percent(20) {
                let new = NewShard { name: shard_name(u64::from(id)), low: 10_000 + i64::from(id) * SHARD_KEYS, size: SHARD_KEYS };
                shards.push(new.name.clone());
                vec![new]
            } else {
                Vec::new()
            };
            Action::AddServer { name, shards, new_shards }
        }
        3..5 => {
            let place = dice.below(names.len() as u64) as usize;
            Action::RemoveServer { name: if names.len() > 1 { names.remove(place) } else { names[place].clone() } }
        }
        _ => Action::MovePrimary { shard: shard_name(dice.between(1, topology.shards.len() as u64)) },
    }
}

/// The kinds of faults that a seed may have or not.
const KINDS: u64 = 14;

fn faults(dice: &mut Dice, options: &mut Dice, topology: &Topology, end: Instant) -> Vec<Window> {
    // Half of the seeds have every kind (FACTS.md: a random subset alone finds less).
    let all = options.percent(50);
    let kinds: Vec<u64> = (0..KINDS).filter(|_| all || options.percent(40)).collect();
    let mut windows = weather(dice, options, end);
    let count = options.pick(&[2, 6, 12, 20, 30]);
    let mut losses = options.pick(&[0, 0, 1, 1, 2]);
    if kinds.is_empty() {
        return windows;
    }
    for _ in 0..count {
        // Some while the cluster is being set up.
        let latest = if dice.percent(12) { 700_000_000 } else { end.0 };
        let start = Instant(dice.between(30_000_000, latest));
        let kind = dice.pick(&kinds);
        let (fault, length) = fault(dice, kind, topology);
        if matches!(fault, Fault::DiskLoss { .. } | Fault::DiskBack { .. } | Fault::Rot { .. }) {
            if losses == 0 {
                continue;
            }
            losses -= 1;
        }
        windows.push(Window { start, length, fault });
    }
    windows.sort_by_key(|window| window.start);
    windows
}

/// The weather of the whole run, as windows like any other.
fn weather(dice: &mut Dice, options: &mut Dice, end: Instant) -> Vec<Window> {
    let mut windows = Vec::new();
    if options.percent(60) {
        let fault = Fault::Weather {
            place: Place::Others,
            loss_ppm: dice.pick(&[0, 5_000, 30_000]),
            duplicate_ppm: dice.pick(&[0, 20_000, 100_000]),
            straggler_ppm: dice.pick(&[0, 10_000, 60_000]),
            straggler_max: dice.pick(&[Duration::from_millis(20), Duration::from_millis(400)]),
        };
        windows.push(Window { start: Instant(0), length: end.since(Instant(0)), fault });
    }
    windows
}

fn fault(dice: &mut Dice, kind: u64, topology: &Topology) -> (Fault, Duration) {
    let server_count = topology.servers.len() as u64;
    let server = |dice: &mut Dice| ServerId(dice.between(1, server_count));
    let balancer = |dice: &mut Dice| Place::Balancer(dice.below(topology.balancer_count as u64) as usize);
    let anyone = |dice: &mut Dice| if dice.percent(75) { Place::Server(server(dice)) } else { balancer(dice) };
    // Shorter than the failure detector, about as long, much longer.
    let outage = |dice: &mut Dice| match dice.below(3) {
        0 => dice.ms(5, 80),
        1 => dice.ms(80, 800),
        _ => dice.ms(800, 3_500),
    };
    match kind {
        0 => (Fault::Crash { place: Place::Server(server(dice)) }, outage(dice)),
        1 => (Fault::Crash { place: balancer(dice) }, outage(dice)),
        2 => {
            let (a, b) = (anyone(dice), if dice.percent(40) { Place::Others } else { anyone(dice) });
            (Fault::Cut { a, b, way: dice.pick(&[Way::Both, Way::Forth, Way::Back]) }, outage(dice))
        }
        3 => (Fault::Pause { place: anyone(dice) }, outage(dice)),
        4 => {
            let sync_max = dice.pick(&[Duration::from_millis(10), Duration::from_millis(60)]);
            (Fault::SlowDisk { place: Place::Server(server(dice)), sync_max }, dice.ms(200, 4_000))
        }
        5 => {
            let fault = dice.pick(&[RegisterFault::LostReply, RegisterFault::Late, RegisterFault::Unavailable, RegisterFault::Touched]);
            let place = if dice.percent(50) { Place::Others } else { balancer(dice) };
            (Fault::Register { place, fault, ppm: dice.pick(&[100_000, 500_000, MILLION]) }, outage(dice))
        }
        6 => (Fault::DiskLoss { server: server(dice), loss: dice.pick(&[Loss::Disk, Loss::Disk, Loss::Log, Loss::Rows]) }, outage(dice)),
        7 => (Fault::StoreDown { place: Place::Server(server(dice)) }, outage(dice)),
        8 => {
            let fault = Fault::Weather {
                place: anyone(dice),
                loss_ppm: dice.pick(&[0, 100_000, 400_000]),
                duplicate_ppm: dice.pick(&[0, 200_000]),
                straggler_ppm: dice.pick(&[0, 200_000]),
                straggler_max: Duration::from_millis(400),
            };
            (fault, dice.ms(100, 2_000))
        }
        9 => match dice.below(4) {
            0 => (Fault::PowerLoss, outage(dice)),
            1 => (Fault::Rot { server: server(dice), pick: dice.below(8) }, Duration::from_millis(1)),
            _ => (Fault::ProvisionFails, outage(dice)),
        },
        10 => {
            let fault = Fault::Split { servers: dice.below(256), balancers: dice.below(4), register: dice.percent(50) };
            (fault, outage(dice))
        }
        11 => {
            // Two servers that do not hear each other, while everyone else hears both.
            let (a, b) = (Place::Server(server(dice)), Place::Server(server(dice)));
            (Fault::Cut { a, b, way: dice.pick(&[Way::Both, Way::Forth, Way::Back]) }, dice.ms(300, 3_000))
        }
        12 => (Fault::DiskBack { server: server(dice) }, dice.ms(200, 3_000)),
        _ => {
            // A primary that restarts again and again, faster than anyone suspects it.
            (Fault::Crash { place: Place::Server(server(dice)) }, dice.ms(1, 20))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_plan_of_at_least_a_hundred_operations() {
        for seed in 0..200 {
            let first = plan(seed, Planted::NONE);
            assert!(first.operations.len() >= 100);
            assert_eq!(first, plan(seed, Planted::NONE));
            assert!(first.faults.iter().all(|window| window.start <= first.heal_at));
        }
    }
}
