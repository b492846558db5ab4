//! What must hold of the source and the build: who depends on whom, what production does not hold, how long a file may be.

use crate::processes::production_binary;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

/// What the core may depend on, in all: small crates without I/O, and what their macros are built with.
const CORE_MAY_USE: &[&str] = &[
    "proc-macro2",
    "quote",
    "serde",
    "serde_core",
    "serde_derive",
    "syn",
    "thiserror",
    "thiserror-impl",
    "twinshard-core",
    "unicode-ident",
];

/// The name that every planted bug's name starts with.
const PLANTED_MARK: &[u8] = b"planted-";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn dependencies(package: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--edges", "normal,build", "--prefix", "none", "--format", "{p}", "-p", package])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn core_depends_on_small_pure_crates_only() {
    let allowed: BTreeSet<String> = CORE_MAY_USE.iter().map(|&name| name.to_owned()).collect();
    let used = dependencies("twinshard-core");
    assert!(used.contains("serde"), "the listing is empty or of another form: {used:?}");
    assert_eq!(used.difference(&allowed).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn dependencies_point_one_way() {
    let ours = |package| dependencies(package).into_iter().filter(|name| name.starts_with("twinshard")).collect::<Vec<_>>();
    assert_eq!(ours("twinshard-core"), ["twinshard-core"]);
    assert_eq!(ours("twinshard-scenarios"), ["twinshard-core", "twinshard-scenarios"]);
    assert!(!ours("twinshard").contains(&"twinshard-sim".to_owned()));
}

#[test]
fn production_binary_holds_no_planted_bug() {
    let holds = |bytes: &[u8]| bytes.windows(PLANTED_MARK.len()).any(|window| window == PLANTED_MARK);
    // The check can fail: this test's own binary has the simulator in it.
    let simulator: Vec<&str> = twinshard_core::planted::Bug::ALL.iter().map(|bug| bug.name()).collect();
    assert!(simulator.iter().all(|name| holds(name.as_bytes())));
    assert!(!holds(&std::fs::read(production_binary()).unwrap()));
}

#[test]
fn long_files_say_why() {
    let output = Command::new("git").args(["ls-files", "*.rs"]).current_dir(root()).output().unwrap();
    let files = String::from_utf8(output.stdout).unwrap();
    assert!(files.lines().count() > 30, "git lists too few files");
    let long: Vec<_> = files
        .lines()
        .filter(|file| {
            let text = std::fs::read_to_string(root().join(file)).unwrap_or_default();
            text.lines().count() > 800 && !text.lines().take(12).any(|line| line.contains("over 800 lines"))
        })
        .collect();
    assert_eq!(long, Vec::<&str>::new());
}
