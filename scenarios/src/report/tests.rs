use super::*;
use crate::history::{Recorder, name_for};
use twinshard_core::{
    command::{OnConflict, Operation},
    config::Configuration,
    id::{Epoch, LogIndex, Position, ReplicaId, ServerId},
    map::{ClusterMap, ReplicaRecord, ReplicaStage, ServerGoal, ServerRecord, ShardRecord},
    reason::{Cause, Choice, Reason},
    request::{Consistency, Reply, Request, RequestError, Rows, Written},
    value::{Key, KeyRange, Row as DataRow, StoredRow, Value},
};

const SCENARIO: &str = r#"
name = "primary-crash"
story = """
The server that leads sh1 dies under load. A backup takes over within a heartbeat or two, clients wait
a moment and lose nothing, and the dead server comes back with its log.
"""
[topology]
servers = 3
shards = [{ name = "sh1", low = 0, size = 4096 }]
[workload]
clients = 4
duration_ms = 2000
rate_per_s = 200
mix = { write = 1, read = 1 }
[[faults]]
at_ms = 1000
for_ms = 300
kind = "crash"
target = "primary of sh1"
[expect]
writes_again_within_ms = 2000
longest_outage_ms = 1000
failovers_min = 1
unknown_max = 5
"#;

const MS: u64 = 1_000_000;

fn map() -> ClusterMap {
    let mut map = ClusterMap::default();
    for number in 0..3 {
        let record =
            ServerRecord { name: format!("Server{number}").into(), number, goal: ServerGoal::Run, address: None, incarnation: None };
        map.servers.insert(ServerId(number + 1), record);
        let replica = ReplicaRecord { shard: ShardId(1), server: ServerId(number + 1), stage: ReplicaStage::Ready };
        map.replicas.insert(ReplicaId(number + 1), replica);
    }
    let shard = ShardRecord {
        name: "sh1".into(),
        low: Key(0),
        size: 4096,
        current: None,
        pending: None,
        placement: Default::default(),
        wanted_primary: None,
    };
    map.shards.insert(ShardId(1), shard);
    map
}

fn config(epoch: u64, primary: u64, members: &[u64]) -> Configuration {
    let members: Vec<ReplicaId> = members.iter().map(|id| ReplicaId(*id)).collect();
    Configuration { epoch: Epoch(epoch), primary: ReplicaId(primary), write_quorum: 2, members }
}

/// A cluster that loses its primary from 1,000 to 1,560 ms of the load. `lost`: the last acknowledged write is gone afterwards.
fn run(lost: bool) -> RunResult {
    let mut names = Names::default();
    names.learn(&map());
    let mut recorder = Recorder::new(names.layout().clone());
    let start = 500 * MS;
    let mut index = 1;
    let mut last = (1, 1, 1);
    for nth in 0..200_u64 {
        let at = start + nth * 10 * MS;
        let key = Key(nth as i64);
        let value = nth as i64 + 1;
        let row = DataRow { key, values: vec![Value::Text(name_for(value as u64)), Value::Integer(value)] };
        let operations = vec![Operation::Insert { row, on_conflict: OnConflict::Replace }];
        let write = recorder.begin((nth % 4) as u32, at, Request::Write { operations, on_conflict: None, idempotency: None });
        let down = (100..156).contains(&nth);
        if nth == 100 {
            recorder.finish(write, at + 900 * MS, &Reply::Failed(RequestError::OutcomeUnknown)).expect("recorded");
            continue;
        }
        let ended = if down { start + 1_560 * MS + nth * 1_000 } else { at + 2 * MS + nth * 7_000 };
        index += 1;
        let position = Position { epoch: Epoch(if nth < 100 { 1 } else { 2 }), index: LogIndex(index) };
        let seen = BTreeMap::from([(ShardId(1), position)]);
        recorder.finish(write, ended, &Reply::Written(Written { written_count: 1, skipped_count: 0, seen })).expect("recorded");
        last = if down { last } else { (key.0, value, index) };
        let consistency = Consistency::Linearizable;
        let key = Key(last.0);
        let read = recorder.begin(9, ended + MS, Request::Read { range: KeyRange::one(key), limit: 1, consistency });
        let version = Position { epoch: Epoch(if last.1 <= 100 { 1 } else { 2 }), index: LogIndex(last.2) };
        let row = StoredRow { version, row: DataRow { key, values: vec![Value::Text(name_for(last.1 as u64)), Value::Integer(last.1)] } };
        let rows = if lost && nth == 160 { vec![] } else { vec![row] };
        recorder.finish(read, ended + 2 * MS, &Reply::Rows(Box::new(Rows { rows, ..Rows::default() }))).expect("recorded");
    }
    let at = |ms: u64| start + ms * MS;
    let (shard, server) = (ShardId(1), ServerId(1));
    let reason = Some(Reason { cause: Cause::PrimarySilent, choice: Choice::NewestLog });
    let notes = vec![
        (at(0) - 200 * MS, Note::Activated { shard, config: config(1, 1, &[1, 2, 3]) }),
        (at(1_512), Note::Suspected { server }),
        (at(1_513), Note::Proposed { shard, config: config(2, 2, &[1, 2, 3]), reason }),
        // By another balancer that saw it: told once.
        (at(1_514), Note::Proposed { shard, config: config(2, 2, &[1, 2, 3]), reason: None }),
        (at(1_530), Note::Dropped { reason: "late".into() }),
        (at(1_541), Note::Activated { shard, config: config(2, 2, &[1, 2, 3]) }),
        (at(1_541), Note::Activated { shard, config: config(2, 2, &[1, 2, 3]) }),
        (at(4_020), Note::Respawning { server }),
        (at(4_300), Note::Started { server }),
        (at(4_350), Note::Restarted { server }),
    ];
    RunResult {
        scenario: Scenario::parse("primary-crash.toml", SCENARIO).expect("a good scenario"),
        engine: "example".to_owned(),
        seed: 7,
        load_from_ns: start,
        ended_ns: start + 6_000 * MS,
        history: recorder.into_history(),
        names,
        notes,
        faults: vec![FaultEvent { place: 0, at_ns: at(1_000), struck: vec!["Server0".to_owned()] }],
        admin: Vec::new(),
        world_checks: vec![WorldCheck {
            name: "replicas equal".to_owned(),
            what: "replicas compared".to_owned(),
            count: 3,
            failures: Vec::new(),
        }],
        reproduce: "twinshard-sim run scenarios/primary-crash.toml --engine example --seed 7".to_owned(),
    }
}

#[test]
fn a_report_looks_as_it_should() {
    let report = Report::new(run(false));
    assert!(report.is_ok(), "{report}");
    let text = report.to_string();
    assert!(text == include_str!("example.txt"), "src/report/example.txt should be:\n{text}<end>");
}

#[test]
fn no_line_is_too_wide() {
    for lost in [false, true] {
        let text = Report::new(run(lost)).to_string();
        let wide: Vec<&str> = text.lines().filter(|line| line.chars().count() > render::WIDTH || line.trim_end() != *line).collect();
        assert!(wide.is_empty(), "{wide:#?}");
    }
}

#[test]
fn a_lost_write_is_told_with_its_operations() {
    let report = Report::new(run(true));
    assert!(!report.is_ok());
    let text = report.to_string();
    assert!(text.starts_with("FAIL  primary-crash"), "{text}");
    assert!(text.contains("\n  ! strict serializability: "), "{text}");
    assert!(text.contains("What is wrong") && text.contains("saw nothing") && text.contains("FAIL  linearizability per key"), "{text}");
}

#[test]
fn what_was_expected_has_to_come_true() {
    let unmet = |change: fn(&mut RunResult)| {
        let mut run = run(false);
        change(&mut run);
        let report = Report::new(run);
        assert_eq!(report.is_ok(), report.complaints().is_empty());
        report.complaints().join("; ")
    };
    assert_eq!(unmet(|_| {}), "");
    assert!(unmet(|run| run.scenario.expect.writes_again_within_ms = Some(559)).contains("560 ms (sh1)"));
    assert!(unmet(|run| run.scenario.expect.longest_outage_ms = Some(500)).contains("no shard without writes for over 500 ms"));
    assert!(unmet(|run| run.scenario.expect.failovers_min = Some(2)).contains("at least 2 new configurations: 1"));
    assert!(unmet(|run| run.scenario.expect.failovers_max = Some(0)).contains("at most 0 new configurations: 1"));
    assert!(unmet(|run| run.scenario.expect.operations_min = Some(1_000)).contains("at least 1,000 operations that worked"));
    assert!(unmet(|run| run.scenario.expect.unknown_max = Some(0)).contains("at most 0 unknown outcomes: 1"));
    assert!(unmet(|run| run.scenario.expect.p99_max_ms = Some(10)).contains("99 of 100 within 10 ms"));
    assert!(unmet(|run| run.scenario.expect.members_min = Some(4)).contains("at least 4 members of every shard in the end: 3 (sh1)"));
    assert!(unmet(|run| run.scenario.expect.lost_replicas_min = Some(1)).contains("replicas lost"));
    assert!(unmet(|run| run.faults.clear()).contains("0 of 1 faults happened"));
    assert!(unmet(|run| run.world_checks[0].failures.push("sh1 differs".to_owned())).contains("replicas equal: sh1 differs"));
    assert!(unmet(|run| run.history = History::default()).contains("some writes served: 0"));
}

#[test]
fn outages_count_from_the_first_write_that_waits() {
    let mut recorder = Recorder::new(run(false).names.layout().clone());
    let mut write = |called: u64, ended: Option<u64>, value: i64, works: bool| {
        let row = DataRow { key: Key(1), values: vec![Value::Text("x".into()), Value::Integer(value)] };
        let operations = vec![Operation::Insert { row, on_conflict: OnConflict::Replace }];
        let operation = recorder.begin(0, called, Request::Write { operations, on_conflict: None, idempotency: None });
        let Some(ended) = ended else { return };
        let reply = if works {
            Reply::Written(Written { written_count: 1, ..Written::default() })
        } else {
            Reply::Failed(RequestError::Overloaded)
        };
        recorder.finish(operation, ended, &reply).expect("recorded");
    };
    // Idle until 100; then a failure at 110, served at 150; at the end one that never ends.
    write(0, Some(10), 1, true);
    write(100, Some(110), 2, false);
    write(140, Some(150), 3, true);
    write(500, Some(503), 4, true);
    write(600, None, 5, true);
    write(640, Some(660), 6, false);
    let service = Service::new(&recorder.into_history());
    assert_eq!(service.longest_outage(ShardId(1), 0, u64::MAX), Some(Outage { length_ns: 60, from_ns: 600 }));
    assert_eq!(service.longest_outage(ShardId(1), 0, 600), Some(Outage { length_ns: 50, from_ns: 100 }));
    assert_eq!(service.after(ShardId(1), 100), Again::At(150));
    assert_eq!(service.after(ShardId(1), 550), Again::Never);
    assert_eq!(service.after(ShardId(1), 700), Again::NotAsked);
}
