use super::*;
use crate::{
    cli::chaos::strike::{
        strike_all,
        tests::{Field, scenario},
    },
    story::Script,
};
use std::collections::BTreeSet;
use twinshard_core::{
    id::ShardId,
    map::{ReplicaRecord, ReplicaStage, ServerGoal, ServerRecord},
};

const MS: u64 = 1_000_000;

fn live() -> Live {
    Live::new(vec!["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()], None)
}

fn told(events: &[(u64, u64, Note)], map: Option<ClusterMap>) -> Told {
    let events: Vec<Event> =
        events.iter().map(|(number, ago_ms, note)| Event { number: *number, ago_ms: *ago_ms, note: note.clone() }).collect();
    Told { last: events.last().map_or(0, |event| event.number), events, map }
}

/// `Server0` with a replica of this id.
fn map(replica: u64) -> ClusterMap {
    let mut map = ClusterMap::default();
    let server = ServerId(1);
    map.servers.insert(server, ServerRecord { name: "Server0".into(), number: 1, goal: ServerGoal::Run, address: None, incarnation: None });
    map.replicas.insert(ReplicaId(replica), ReplicaRecord { shard: ShardId(1), server, stage: ReplicaStage::Ready });
    map
}

#[tokio::test(start_paused = true)]
async fn disk_that_is_still_there_is_noticed() {
    for (found_again, failures) in [(7, &["replica r7 was not lost with its disk"][..]), (8, &[])] {
        let live = live();
        live.enter(0, told(&[], Some(map(7))), [0, 0], &mut BTreeMap::new());
        let (_stop, stopped) = watch::channel(false);
        // Says that it removed everything.
        let ground = Field::new(|_, _| Ok(true));
        let scenario = scenario("kind = \"lose-disk\"\ntarget = \"Server0\"");
        let struck = strike_all(&scenario, &ground, &live, twinshard_core::time::Instant(0), &stopped).await;
        assert_eq!((struck.faults.len(), struck.failures.len()), (1, 0));
        live.enter(0, told(&[], Some(map(found_again))), [0, 0], &mut BTreeMap::new());
        assert_eq!(live.not_lost(&struck.lost).await, failures);
    }
}

#[test]
fn controller_is_known_that_was_one_before_the_run() {
    let live = live();
    let controller = || live.those(&Target::Controller);
    assert_eq!(controller(), []);
    // The first balancer controlled until the second took over; both before the run, and the first is asked last.
    live.enter(1, told(&[(1, 4_000, Note::Controlling { from: None })], None), [10 * MS, 11 * MS], &mut BTreeMap::new());
    live.enter(0, told(&[(1, 90_000, Note::Controlling { from: None })], None), [10 * MS, 11 * MS], &mut BTreeMap::new());
    assert_eq!(controller(), [Node::Balancer(1)]);
    live.enter(0, told(&[(2, 5, Note::Controlling { from: None })], None), [60 * MS, 61 * MS], &mut BTreeMap::new());
    assert_eq!(controller(), [Node::Balancer(0)]);
    // What was before the run is not told of.
    assert_eq!(live.into_entered().notes, [(56 * MS, Note::Controlling { from: None })]);
}

#[test]
fn what_is_told_again_counts_once_and_another_life_counts_anew() {
    let (live, mut known) = (live(), BTreeMap::new());
    let restarted = |number| (1, number, Note::Restarted { server: ServerId(1) });
    let count = || live.entered().notes.len();
    live.enter(0, told(&[restarted(100)], None), [1_000 * MS, 1_001 * MS], &mut known);
    // An answer that was long on its way seems to tell of something later.
    live.enter(0, told(&[restarted(1_100)], None), [2_000 * MS, 2_400 * MS], &mut known);
    assert_eq!(count(), 1);
    live.enter(0, told(&[restarted(10)], None), [3_000 * MS, 3_001 * MS], &mut known);
    assert_eq!(count(), 2);
}

#[test]
fn clients_ask_all_balancers_whatever_the_scenario_takes() {
    let live = live();
    let script = Script::new(&scenario("kind = \"power-loss\""), 1, twinshard_core::time::Instant(0));
    let asked: BTreeSet<String> = script.operations.iter().map(|step| live.balancer(step.balancer)).collect();
    assert_eq!(asked.len(), 2, "{asked:?}");
}
