//! Files of running clusters that rot, are cut or vanish: nothing that was acknowledged is lost, who is touched is refilled under a new id,
//! and the process's log says what was wrong.

use crate::processes::{
    Load, Up, assert_all_there, default_cluster, healthy, holds, ok, production_binary, read_all, row, signal, wait_for,
};
use http::Method;
use serde_json::json;
use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Inverts some bytes at an offset of a file, or as many as there are.
fn flip(file: &Path, offset: u64, count: usize) {
    let file = fs::File::options().read(true).write(true).open(file).unwrap();
    let mut bytes = vec![0; count];
    let found = file.read_at(&mut bytes, offset).unwrap();
    bytes.truncate(found);
    bytes.iter_mut().for_each(|byte| *byte = !*byte);
    file.write_all_at(&bytes, offset).unwrap();
}

fn len(file: &Path) -> u64 {
    fs::metadata(file).unwrap().len()
}

fn cut(file: &Path, len: u64) {
    fs::File::options().write(true).open(file).unwrap().set_len(len).unwrap();
}

/// The one entry of a directory whose name begins so.
fn entry_of(dir: &Path, name: &str) -> PathBuf {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found = entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(name));
    let entry = found.next().unwrap();
    assert_eq!(found.next(), None, "{name} stands twice in {}", dir.display());
    entry
}

/// Waits until each server holds all rows itself.
async fn all_hold_all(up: &Up) {
    let mut client = up.client();
    let count = read_all(&mut client).await.len();
    assert!(count > 3_000, "{count}");
    for server in ["Server0", "Server1", "Server2"] {
        holds(&mut client, server, count).await;
    }
}

/// While writes go on: stops a server, damages its files, and waits until it holds everything again. What it said about it.
async fn damaged(up: &Up, dir: &Path, server: &str, first_key: i64, damage: impl FnOnce(&Path)) -> String {
    let mut client = up.client();
    healthy(&mut client, 3).await;
    let log = entry_of(&dir.join("logs"), &format!("{server}-"));
    let said_before = len(&log);
    let load = Load::start(&up.url, first_key);
    let pid = up.server_pid(server);
    // A process that stands still writes nothing over the damage.
    signal("STOP", &[pid]);
    damage(&entry_of(&dir.join("servers"), &format!("{server}-")));
    signal("KILL", &[pid]);
    let said = wait_for("what the server says about the damage", async || {
        let said = fs::read(&log).unwrap()[usize::try_from(said_before).unwrap()..].to_vec();
        let said = String::from_utf8_lossy(&said).into_owned();
        said.contains("replica lost").then_some(said)
    })
    .await;
    healthy(&mut client, 3).await;
    let acknowledged = load.stop().await;
    assert_all_there(&mut client, &acknowledged).await;
    said
}

async fn cluster_with_rows(dir: &Path) -> Up {
    let up = Up::start(dir);
    let mut client = up.client();
    ok(&mut client, Method::POST, "/init", default_cluster()).await;
    // Keys from 3,000 on in each shard: the load writes those below.
    for shard in 0..3 {
        let rows: Vec<_> = (0..1_000).map(|key| row(shard * 4_096 + 3_000 + key, 7)).collect();
        ok(&mut client, Method::POST, "/write", json!({ "data": rows })).await;
    }
    up
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_whose_log_is_damaged_is_refilled() {
    let dir = tempfile::tempdir().unwrap();
    let up = cluster_with_rows(dir.path()).await;
    let rotted = |data: &Path| flip(&data.join("log"), len(&data.join("log")) / 2, 64);
    let said = damaged(&up, dir.path(), "Server0", 0, rotted).await;
    assert!(said.contains("do not verify") && said.contains("LogDamaged"), "{said}");
    let half = |data: &Path| cut(&data.join("log"), len(&data.join("log")) / 2);
    let said = damaged(&up, dir.path(), "Server1", 2_000, half).await;
    assert!(said.contains("do not verify") && said.contains("LogDamaged"), "{said}");
    let headless = |data: &Path| flip(&data.join("log"), 0, 48);
    let said = damaged(&up, dir.path(), "Server2", 4_000, headless).await;
    assert!(said.contains("header does not verify") && said.contains("LogMissing"), "{said}");
    let gone = |data: &Path| fs::remove_file(data.join("log")).unwrap();
    let said = damaged(&up, dir.path(), "Server0", 6_000, gone).await;
    assert!(said.contains("LogMissing"), "{said}");
    all_hold_all(&up).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_whose_row_store_is_damaged_is_refilled() {
    let dir = tempfile::tempdir().unwrap();
    let up = cluster_with_rows(dir.path()).await;
    let rows = |data: &Path| data.join("rows.redb");
    let rotted = |data: &Path| (2..len(&rows(data)) / 4_096).for_each(|page| flip(&rows(data), page * 4_096 + 64, 8));
    let said = damaged(&up, dir.path(), "Server0", 0, rotted).await;
    assert!(said.contains("row store is damaged") && said.contains("RowsMissing"), "{said}");
    let half = |data: &Path| cut(&rows(data), len(&rows(data)) / 2);
    let said = damaged(&up, dir.path(), "Server1", 2_000, half).await;
    assert!(said.contains("row store is damaged") && said.contains("RowsMissing"), "{said}");
    let gone = |data: &Path| fs::remove_file(rows(data)).unwrap();
    let said = damaged(&up, dir.path(), "Server2", 4_000, gone).await;
    assert!(said.contains("RowsMissing"), "{said}");
    all_hold_all(&up).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn register_that_is_damaged_or_gone_is_not_started_anew() {
    let dir = tempfile::tempdir().unwrap();
    let up = cluster_with_rows(dir.path()).await;
    assert!(up.stop().0.success());
    let register = dir.path().join("register.redb");
    let whole = fs::read(&register).unwrap();
    let refused = |reason: &str| {
        let mut program = Command::new(production_binary());
        let output = program.args(["up", "--port", "0", "--dir"]).arg(dir.path()).stdin(Stdio::null()).output().unwrap();
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), words.lines().count()), (Some(1), 1), "{words}");
        assert!(words.contains("register.redb") && words.contains(reason) && words.contains("recover"), "{words}");
    };
    for _ in 0..2 {
        (1..whole.len() as u64 / 4_096).for_each(|page| flip(&register, page * 4_096 + 64, 8));
        refused("damaged");
        cut(&register, whole.len() as u64 / 2);
        refused("damaged");
        cut(&register, 0);
        refused("damaged");
        fs::remove_file(&register).unwrap();
        refused("holds servers' data");
        fs::write(&register, &whole).unwrap();
    }
    let up = Up::start(dir.path());
    let answer = ok(&mut up.client(), Method::POST, "/read", json!({ "Stud_id": { "low": 0, "high": 12_287 } })).await;
    assert_eq!(answer["data"].as_array().unwrap().len(), 3_000);
}

/// What `twinshard recover` says, and whether it did it.
fn recover(dir: &Path, flags: &[&str]) -> (bool, String) {
    let mut program = Command::new(production_binary());
    let output = program.args(["recover", "--dir"]).arg(dir).args(flags).stdin(Stdio::null()).output().unwrap();
    let words = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.success(), words)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn register_that_is_lost_is_made_anew_from_what_servers_remember() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = cluster_with_rows(dir.path()).await;
    let register = dir.path().join("register.redb");
    let (done, words) = recover(dir.path(), &[]);
    assert!(!done && words.contains("runs"), "{words}");
    let mut acknowledged = Vec::new();
    for (round, is_damaged) in [false, true].into_iter().enumerate() {
        // In the middle of writes, and of a failover: its last steps may be in no server's map.
        let load = Load::start(&up.url, i64::try_from(round).unwrap() * 4_000);
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        signal("KILL", &[up.server_pid("Server1")]);
        tokio::time::sleep(std::time::Duration::from_millis(800)).await;
        up.kill();
        acknowledged.extend(load.stop().await);
        drop(up);
        let (done, words) = recover(dir.path(), &[]);
        assert!(!done && words.contains("nothing to recover"), "{words}");
        if is_damaged {
            cut(&register, len(&register) / 2);
        } else {
            fs::remove_file(&register).unwrap();
        }
        let (done, words) = recover(dir.path(), &["--dry-run"]);
        assert!(done && words.contains("Nothing was written") && words.contains("sh3: e"), "{words}");
        let (done, words) = recover(dir.path(), &[]);
        assert!(done && words.contains("goes on") && words.contains("register.redb.damaged") == is_damaged, "{words}");
        up = Up::start(dir.path());
        assert_all_there(&mut up.client(), &acknowledged).await;
        healthy(&mut up.client(), 3).await;
        // Ids go on where nobody has been.
        ok(&mut up.client(), Method::POST, "/write", json!({ "data": [row(4_095 - i64::try_from(round).unwrap(), 1)] })).await;
    }
    // Two of three that remember nothing are too many.
    assert!(up.stop().0.success());
    fs::remove_file(&register).unwrap();
    for server in ["Server0", "Server2"] {
        fs::remove_file(entry_of(&dir.path().join("servers"), &format!("{server}-")).join("log")).unwrap();
    }
    let (done, words) = recover(dir.path(), &[]);
    assert!(!done && words.contains("nothing was written") && words.contains("on Server0") && words.contains("on Server2"), "{words}");
    assert!(!register.exists());
}
