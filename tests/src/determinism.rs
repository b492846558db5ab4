//! The same seed gives the same trace, byte for byte, on any machine, in any build and on any thread.

use std::path::Path;
use twinshard_core::planted::Planted;
use twinshard_sim::search::{Search, search};

fn found(jobs: usize) -> (String, u64) {
    let found = search(Search { start: 0, count: 24, jobs, planted: Planted::NONE, keeps_going: true }, |_| {});
    assert_eq!(found.seeds, 24);
    (found.hash.to_string(), found.events)
}

#[test]
fn traces_are_those_of_the_lock_file() {
    let (hash, events) = found(1);
    assert_eq!((hash.clone(), events), found(2), "the number of threads changes the traces");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("determinism.lock");
    let line = format!("general 0..24 {hash} {events}\n");
    if std::env::var_os("TWINSHARD_UPDATE_LOCK").is_some() {
        std::fs::write(&path, &line).unwrap();
    }
    let locked = std::fs::read_to_string(&path).unwrap();
    assert_eq!(line, locked, "set TWINSHARD_UPDATE_LOCK=1 if the protocol was changed on purpose");
}
