//! Every check can fail: bugs planted in the core are caught by the general swarm scenario, each at a seed that is known to show it, and the
//! same seed without the bug is fine. `twinshard-sim explore --planted NAME --seeds 5000` searches from the start.

use twinshard_core::planted::{Bug, Planted};
use twinshard_sim::search::{Search, search};

/// Where each bug shows first, as far as it was searched.
const SHOWS_AT: &[(Bug, u64)] = &[
    (Bug::KeepsIdAfterLosingDisk, 0),
    (Bug::AcknowledgesBeforeDurable, 0),
    (Bug::CommitsOldEpochByCounting, 0),
    (Bug::ReadsWithoutRound, 220),
    (Bug::LaterReadsShareRound, 0),
    (Bug::AppliesRetryTwice, 0),
    (Bug::SealsOneTooFew, 28),
    (Bug::ActivatesWithoutCas, 0),
    (Bug::RestartedPrimaryGoesOn, 43),
    (Bug::CountsLearners, 0),
    (Bug::SnapshotWithoutSessions, 0),
    (Bug::ServesUnactivated, 0),
    (Bug::SnapshotInTwoPersists, 3),
    (Bug::PromisesBeforeWrites, 0),
    (Bug::ActsOnIntention, 5),
    (Bug::SealsPending, 97),
    (Bug::InstallsOnWriteQuorum, 7),
    (Bug::IgnoresLame, 0),
    (Bug::ReusesSession, 0),
    (Bug::ForgetsFloor, 34),
];

fn fails(start: u64, planted: Planted) -> bool {
    let found = search(Search { start, count: 1, jobs: 1, planted, keeps_going: false }, |_| {});
    assert_eq!(found.seeds, 1);
    !found.failures.is_empty()
}

#[test]
fn planted_bugs_are_caught() {
    let missed: Vec<&str> = SHOWS_AT.iter().filter(|(bug, seed)| !fails(*seed, Planted::with(*bug))).map(|(bug, _)| bug.name()).collect();
    assert_eq!(missed, Vec::<&str>::new());
}

#[test]
fn the_same_seeds_are_fine_without_a_bug() {
    let mut seeds: Vec<u64> = SHOWS_AT.iter().map(|(_, seed)| *seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let failing: Vec<u64> = seeds.into_iter().filter(|seed| fails(*seed, Planted::NONE)).collect();
    assert_eq!(failing, Vec::<u64>::new());
}
