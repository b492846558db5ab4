//! Scenario files played live by the production program: the checks of the simulated worlds on real processes.

use crate::processes::{production_binary, signal, wait_for};
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

fn scenarios() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("scenarios")
}

/// The exit code, what was printed and what was said.
fn play(file: &Path, flags: &[&str], temporary: &Path) -> (Option<i32>, String, String) {
    let mut chaos = Command::new(production_binary());
    chaos.arg("chaos").arg(file).args(flags).env("TWINSHARD_LOG", "error").env("TMPDIR", temporary).stdin(Stdio::null());
    let output = chaos.output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn killed_primary_loses_nothing_and_nothing_is_left() {
    let temporary = tempfile::tempdir().unwrap();
    let (code, report, said) = play(&scenarios().join("primary-crash.toml"), &["--up", "--seed", "7"], temporary.path());
    assert_eq!(code, Some(0), "{report}{said}");
    for words in ["ok    linearizability per key", "ok    1 of 1 faults happened", "crash of primary of sh1", "is suspected"] {
        assert!(report.contains(words), "no '{words}' in {report}");
    }
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
}

/// The states of the processes that have something to do with a directory: `T` for one that stands still.
fn states(of: &Path) -> Vec<char> {
    let mut states = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let entry = entry.unwrap().path();
        let (Ok(command), Ok(status)) = (std::fs::read(entry.join("cmdline")), std::fs::read_to_string(entry.join("status"))) else {
            continue;
        };
        if String::from_utf8_lossy(&command).contains(of.to_str().unwrap()) {
            states.extend(status.lines().find_map(|line| line.strip_prefix("State:")?.trim().chars().next()));
        }
    }
    states
}

#[tokio::test]
async fn interrupted_run_lets_go_of_whom_it_struck() {
    let temporary = tempfile::tempdir().unwrap();
    let mut chaos = Command::new(production_binary());
    chaos.arg("chaos").arg(scenarios().join("paused-primary.toml")).arg("--up").env("TWINSHARD_LOG", "error");
    chaos.env("TMPDIR", temporary.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let chaos = chaos.spawn().unwrap();
    wait_for("a server that stands still", async || states(temporary.path()).contains(&'T').then_some(())).await;
    signal("INT", &[chaos.id()]);
    let output = chaos.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b""[..]), "{said}");
    assert!(said.contains("interrupted: what was struck was let go"), "{said}");
    assert!(states(temporary.path()).is_empty());
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
}

/// More is lost than any cluster can stand: if that passed, so would everything.
#[test]
fn loss_of_every_disk_is_noticed() {
    let temporary = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(scenarios().join("lost-disk.toml")).unwrap();
    let text = text.replace("name = \"lost-disk\"", "name = \"every-disk-lost\"").replace("\"primary of sh1\"", "\"servers\"");
    let text = text.replace("duration_ms = 9000", "duration_ms = 4000");
    let file = temporary.path().join("every-disk-lost.toml");
    std::fs::write(&file, text).unwrap();
    let (code, report, said) = play(&file, &["--up"], temporary.path());
    assert_eq!(code, Some(1), "{report}{said}");
    assert!(report.contains("FAIL  coming back after the last fault"), "{report}");
    assert!(said.contains("every-disk-lost went wrong: see the report") && said.contains("what the cluster left is in"), "{said}");
}

#[test]
fn what_cannot_be_played_is_refused_by_name() {
    let temporary = tempfile::tempdir().unwrap();
    for (file, words) in [
        ("one-way-cut", "'partition' cannot be played live"),
        ("bad-network", "'network' cannot be played live"),
        ("respawn-fails-twice", "'provision-fails' cannot be played live"),
        ("register-down", "'register-down' cannot be played live: the register is in a file here"),
        ("database-down", "'database-down' cannot be played live: rows are in files here"),
        ("isolated-primary", "'isolate' cannot be played live: processes of one machine"),
    ] {
        let (code, report, said) = play(&scenarios().join(format!("{file}.toml")), &["--up"], temporary.path());
        assert_eq!((code, report.as_str()), (Some(2), ""), "{said}");
        assert!(said.contains(words) && said.contains(file), "{said}");
    }
    let (code, _, said) = play(&scenarios().join("nothing.toml"), &["--up"], temporary.path());
    assert!(code == Some(2) && said.contains("nothing.toml"), "{said}");
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
}
