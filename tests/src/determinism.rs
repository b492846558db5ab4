//! The same seed gives the same trace, byte for byte, on any machine, in any build and on any thread.

use crate::lock;
use std::collections::BTreeMap;
use twinshard_core::planted::Planted;
use twinshard_sim::{
    explorer::coverage::Sometimes,
    search::{Search, search},
};

fn found(jobs: usize) -> String {
    let found = search(Search { start: 0, count: 24, jobs, planted: Planted::NONE, keeps_going: true }, |_| {});
    assert_eq!(found.seeds, 24);
    // What is pinned has replicas that operators moved.
    assert!(found.coverage.count(Sometimes::Relocated) > 0, "no replica was moved");
    format!("{} {}", found.hash, found.events)
}

#[test]
fn traces_are_those_of_the_lock_file() {
    let alone = found(1);
    assert_eq!(alone, found(2), "the number of threads changes the traces");
    lock::check("general", &BTreeMap::from([("0..24".to_owned(), alone)]));
}
