//! Every scenario file, played in the explorer, against the snapshot of its report beside it.

use std::path::Path;
use twinshard_scenarios::{report::Report, scenario::Scenario};
use twinshard_sim::staging;

/// The seed of the snapshots.
pub(crate) const SEED: u64 = 1;

/// The scenario files, in the order of their names.
pub(crate) fn files() -> Vec<std::path::PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("scenarios");
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|kind| kind == "toml") && !path.ends_with("Cargo.toml")).collect();
    files.sort();
    files
}

/// Compares a report with the snapshot of this name beside the scenarios.
pub(crate) fn compare(name: &str, report: &Report) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../../scenarios");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, report.to_string()));
}

#[test]
fn reports_are_those_of_the_snapshots() {
    let files = files();
    assert!(files.len() >= 10, "only {} scenarios were found", files.len());
    let mut complaints = Vec::new();
    for file in files {
        let scenario = Scenario::load(&file).unwrap();
        let reproduce = format!("twinshard-sim run scenarios/{}.toml --seed {SEED} --engine explorer", scenario.name);
        let name = scenario.name.clone();
        let report = Report::new(staging::play(&scenario, SEED, reproduce));
        complaints.extend(report.complaints().into_iter().map(|complaint| format!("{name}: {complaint}")));
        compare(&name, &report);
    }
    assert_eq!(complaints, Vec::<String>::new());
}
