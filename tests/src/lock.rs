//! `determinism.lock`: what each world's traces hash to, one line for each thing that is played. The lines of one test share a first word.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// Tests run side by side, and all of them rewrite one file.
static FILE: Mutex<()> = Mutex::new(());

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("determinism.lock")
}

fn is_of(line: &str, world: &str) -> bool {
    line.split(' ').next() == Some(world)
}

/// Asserts that the lines of a world are these and no others: by what was played, what came of it. With `TWINSHARD_UPDATE_LOCK` they
/// replace those of the file.
pub(crate) fn check(world: &str, played: &BTreeMap<String, String>) {
    let lines: Vec<String> = played.iter().map(|(what, came)| format!("{world} {what} {came}")).collect();
    let _held = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    let locked = std::fs::read_to_string(path()).unwrap();
    let (own, others): (Vec<&str>, Vec<&str>) = locked.lines().partition(|line| is_of(line, world));
    if std::env::var_os("TWINSHARD_UPDATE_LOCK").is_some() {
        let mut all: Vec<String> = others.into_iter().map(str::to_owned).chain(lines).collect();
        all.sort();
        std::fs::write(path(), all.join("\n") + "\n").unwrap();
        return;
    }
    assert_eq!(lines, own, "set TWINSHARD_UPDATE_LOCK=1 if what is simulated was changed on purpose");
}
