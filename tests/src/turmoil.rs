//! Every scenario file that the turmoil world can play, against the snapshot of its report beside it; and that nothing but the scenario and
//! the seed decides what happens there. Never looks at wall time.

use crate::{
    lock,
    scenarios::{SEED, compare, files},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};
use twinshard_scenarios::{report::Report, scenario::Scenario};
use twinshard_sim::turmoil::{
    engine::{Unsupported, play, play_with},
    flaw::Flaw,
    swarm,
};

/// Seeds of the turmoil world's own general scenario that are played each time.
const SEEDS: u64 = 20;

fn load(file: &Path) -> Scenario {
    Scenario::load(file).unwrap()
}

fn reproduce(scenario: &Scenario) -> String {
    format!("twinshard-sim run scenarios/{}.toml --seed {SEED} --engine turmoil", scenario.name)
}

fn played(scenario: &Scenario) -> Result<(Report, String), Unsupported> {
    let played = play(scenario, SEED, reproduce(scenario))?;
    Ok((Report::new(played.run), played.hash.to_string()))
}

/// What the report of a scenario complains about when it is played in a world with a flaw.
fn complaints(name: &str, flaw: Flaw) -> Vec<String> {
    let file = files().into_iter().find(|file| file.file_stem().is_some_and(|stem| stem == name)).unwrap();
    let scenario = load(&file);
    Report::new(play_with(&scenario, SEED, reproduce(&scenario), Some(flaw)).unwrap().run).complaints()
}

/// What can be played, in this order: what each report says, and its hash.
fn play_all(files: impl Iterator<Item = PathBuf>) -> BTreeMap<String, (String, String)> {
    files
        .map(|file| load(&file))
        .map(|scenario| {
            let (report, hash) = played(&scenario).unwrap();
            (scenario.name, (report.to_string(), hash))
        })
        .collect()
}

#[test]
fn reports_are_those_of_the_snapshots() {
    let (mut complaints, mut hashes) = (Vec::new(), BTreeMap::new());
    for file in files() {
        let scenario = load(&file);
        let name = scenario.name.clone();
        let (report, hash) = played(&scenario).unwrap();
        complaints.extend(report.complaints().into_iter().map(|complaint| format!("{name}: {complaint}")));
        compare(&format!("{name}.turmoil"), &report);
        hashes.insert(name, hash);
    }
    assert_eq!(complaints, Vec::<String>::new());
    lock::check("turmoil", &hashes);
}

#[test]
fn two_runs_at_once_do_not_disturb_each_other() {
    let (there, back) = std::thread::scope(|scope| {
        let there = scope.spawn(|| play_all(files().into_iter()));
        let back = scope.spawn(|| play_all(files().into_iter().rev()));
        (there.join().unwrap(), back.join().unwrap())
    });
    assert!(there.len() >= 10, "only {} scenarios were played", there.len());
    for (name, (report, hash)) in &there {
        let (other_report, other_hash) = &back[name];
        assert_eq!((report, hash), (other_report, other_hash), "{name}");
    }
}

#[test]
fn seeds_show_no_violation() {
    let found = swarm::search(0, SEEDS, 2, true, |_| {});
    assert_eq!(found.seeds, SEEDS);
    let failures: Vec<_> = found.failures.iter().map(|failure| (failure.seed, &failure.complaints)).collect();
    assert_eq!(failures, Vec::new());
    lock::check("turmoil-seeds", &BTreeMap::from([(format!("0..{SEEDS}"), found.hash.to_string())]));
}

#[test]
fn disks_that_lie_do_not_stand_power_loss() {
    // Of what was not synced parts are there: logs with holes, which no server opens. The snapshots show the same with honest disks.
    let complaints = complaints("power-loss", Flaw::DisksLie);
    assert!(complaints.iter().any(|complaint| complaint.starts_with("coming back after the last fault: not whole")), "{complaints:?}");
}

#[test]
fn session_reads_that_take_no_notice_of_their_token_are_found_by_their_index() {
    let mut found = Vec::new();
    for seed in 0..SEEDS {
        let scenario = Scenario::parse("seed", &swarm::scenario(seed)).unwrap();
        found = Report::new(play_with(&scenario, seed, reproduce(&scenario), Some(Flaw::TokensIgnored)).unwrap().run).complaints();
        if found.iter().any(|complaint| complaint.contains("although its token says")) {
            return;
        }
    }
    panic!("not in {SEEDS} seeds; the last says {found:?}");
}

#[test]
fn panic_of_a_spawned_task_ends_the_process() {
    const CHILD: &str = "TWINSHARD_TASK_PANICS";
    if std::env::var_os(CHILD).is_some() {
        let complaints = complaints("steady-state", Flaw::TaskPanics);
        println!("played to the end: {complaints:?}");
        return;
    }
    let name = std::thread::current().name().unwrap().to_owned();
    let output = Command::new(std::env::current_exe().unwrap()).args([&*name, "--exact"]).env(CHILD, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        said.contains("a task that nobody waits for") && said.contains("reproduce: twinshard-sim run scenarios/steady-state"),
        "{output:?}"
    );
}
