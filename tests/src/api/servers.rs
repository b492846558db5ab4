//! The servers' own endpoints: of a cluster's members, and of a server on its own.

use super::*;
use crate::processes::{production_binary, signal};
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

fn endpoint(api: &Api, server: &str) -> Api {
    Api { address: api.status()["health"][server]["http"].as_str().unwrap().to_owned() }
}

fn range(low: i64, high: i64) -> Value {
    json!({ "low": low, "high": high })
}

#[test]
fn members_serve_their_shards_whoever_leads() {
    let Cluster { api, .. } = &Cluster::initialised();
    // Both members of sh1, and the one that has no replica of it.
    for (number, name) in ["Server0", "Server2", "Server1"].into_iter().enumerate() {
        let server = endpoint(api, name);
        let answer = server.ask("GET", "/heartbeat", &Value::Null);
        assert_eq!((answer.status, answer.body.len()), (200, 0));
        let digit = name.strip_prefix("Server").unwrap();
        server.is("GET", "/home", Value::Null, json!({ "message": format!("Hello from Server: {digit}"), "status": "successful" }));

        let base = i64::try_from(number).unwrap() * 100;
        let rows: Vec<Value> = (base..base + 5).map(|key| row(key, "a")).collect();
        let added = json!({ "message": "Data entries added", "current_idx": 512, "status": "success" });
        server.is("POST", "/write", json!({ "shard": "sh1", "curr_idx": 507, "data": rows }), added);
        server.is(
            "PUT",
            "/update",
            json!({ "shard": "sh1", "Stud_id": base, "data": row(base, "b") }),
            json!({ "message": format!("Data entry for Stud_id:{base} updated"), "status": "success" }),
        );
        let last = base + 4;
        server.is(
            "DELETE",
            "/del",
            json!({ "shard": "sh1", "Stud_id": last }),
            json!({ "message": format!("Data entry with Stud_id:{last} removed"), "status": "success" }),
        );
        let kept = json!([row(base, "b"), rows[1], rows[2], rows[3]]);
        assert_eq!(json!(api.read(base, base + 99)), kept, "what was written at {name} is the cluster's");
        let none = format!("<Error> No row with key {last}");
        server.refuses_all([
            ("DELETE", "/del", json!({ "shard": "sh1", "Stud_id": last }), 404, "no-such-row", none.as_str()),
            (
                "PUT",
                "/update",
                json!({ "shard": "sh1", "Stud_id": 1, "data": row(2, "b") }),
                400,
                "key-mismatch",
                "<ERROR> Student ID does not match!",
            ),
            ("POST", "/write", json!({ "data": [row(1, "a")] }), 400, "invalid-request", "<Error> 'shard' is missing"),
            (
                "POST",
                "/write",
                json!({ "shard": "sh9", "data": [row(1, "a")] }),
                400,
                "no-such-shard",
                "<Error> Shard 'sh9' does not exist",
            ),
            (
                "POST",
                "/write",
                json!({ "shard": "sh1", "data": [row(5000, "a")] }),
                400,
                "key-out-of-range",
                "<Error> Key 5000 is outside the range of shard 'sh1'",
            ),
            (
                "POST",
                "/config",
                json!({ "schema": init()["schema"], "shards": ["sh1"] }),
                409,
                "cluster-owned",
                "<Error> This server belongs to a cluster; the balancer configures it",
            ),
            ("GET", "/nothing", Value::Null, 404, "no-such-endpoint", "<Error> '/nothing' endpoint does not exist"),
            ("POST", "/home", Value::Null, 405, "method-not-allowed", "<Error> POST is not a method of /home; use GET"),
        ]);
        let reads = [
            ("GET", "/read", json!({ "shard": "sh1", "Stud_id": range(base, base + 99) })),
            ("GET", "/copy", json!({ "shards": ["sh1"] })),
            ("GET", "/get_wal", json!({ "shard": "sh1" })),
            ("GET", "/get_wal_count", json!({ "shard": "sh1" })),
        ];
        if name == "Server1" {
            for (method, path, body) in reads {
                server.refuses((method, path, body, 400, "shard-not-here", "<Error> Shard 'sh1' is not on this server"));
            }
            continue;
        }
        server.is("GET", "/read", reads[0].2.clone(), json!({ "data": kept, "status": "success" }));
        server.is("POST", "/read", reads[0].2.clone(), json!({ "data": kept, "status": "success" }));
        server.is("GET", "/copy", reads[1].2.clone(), json!({ "sh1": api.read(0, 4095), "status": "success" }));
        let entries = server.ok("GET", "/get_wal", json!({ "shard": "sh1" }));
        let count = server.ok("GET", "/get_wal_count", json!({ "shard": "sh1" }));
        let list = entries["data"].as_array().unwrap();
        assert_eq!((entries["status"].as_str(), count), (Some("success"), json!({ "count": list.len(), "status": "success" })));
        for (place, entry) in list.iter().enumerate() {
            assert_eq!(entry["index"], place + 1, "{entry}");
            assert!(entry["epoch"].is_u64() && entry.get("command").is_some(), "{entry}");
        }
    }
}

/// A running `twinshard server --standalone`.
struct Standalone {
    child: Child,
    api: Api,
}

impl Standalone {
    fn start(dir: &Path) -> Self {
        let mut child = Command::new(production_binary())
            .args(["server", "--standalone", "--port", "0", "--name", "Server3", "--number", "3", "--dir"])
            .arg(dir)
            .env("TWINSHARD_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("Server3 is ready on http://").unwrap_or_else(|| panic!("{line}")).to_owned();
        Self { child, api: Api { address } }
    }

    fn stop(mut self, name: &str) {
        signal(name, &[self.child.id()]);
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), (name != "KILL").then_some(0), "{name}");
    }
}

impl Drop for Standalone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn server_on_its_own_is_configured_and_keeps_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let server = Standalone::start(dir.path());
    let api = &server.api;
    let home = json!({ "message": "Hello from Server: 3", "status": "successful" });
    api.is("GET", "/home", Value::Null, home.clone());
    let config = |shards: Value| json!({ "schema": init()["schema"], "shards": shards });
    api.refuses_all([
        ("GET", "/copy", json!({ "shards": ["sh1"] }), 400, "not-initialised", "<Error> The cluster is not configured yet"),
        ("POST", "/config", json!({ "schema": init()["schema"] }), 400, "invalid-request", "<Error> 'shards' is missing"),
        ("POST", "/config", config(json!([])), 400, "invalid-request", "<Error> At least one shard is needed"),
        ("POST", "/config", config(json!(["sh1", "sh1"])), 400, "invalid-request", "<Error> Shard 'sh1' stands twice"),
    ]);
    let configured = json!({ "message": "Server3:sh1, Server3:sh2 configured", "status": "success" });
    api.is("POST", "/config", config(json!(["sh1", "sh2"])), configured);
    api.refuses(("POST", "/config", config(json!(["sh1"])), 409, "already-initialised", "<Error> The cluster is configured already"));

    // Its shards are told apart by name; each has room for every key.
    let rows: Vec<Value> = (0..5).map(|key| row(key, "a")).collect();
    for (shard, index) in [("sh1", 0), ("sh1", 5), ("sh2", 0)] {
        let added = json!({ "message": "Data entries added", "current_idx": index + 5, "status": "success" });
        api.is("POST", "/write", json!({ "shard": shard, "curr_idx": index, "data": rows }), added);
    }
    // Who does not count is told how many rows there were.
    let uncounted = json!({ "message": "Data entries added", "current_idx": 10, "status": "success" });
    api.is("POST", "/write", json!({ "shard": "sh2", "curr_idx": "five", "data": rows }), uncounted);
    let removed = json!({ "message": "Data entry with Stud_id:3 removed", "status": "success" });
    api.is("DELETE", "/del", json!({ "shard": "sh2", "Stud_id": 3 }), removed);
    let updated = json!({ "message": "Data entry for Stud_id:4 updated", "status": "success" });
    api.is("PUT", "/update", json!({ "shard": "sh2", "Stud_id": 4, "data": row(4, "b") }), updated);
    let copy = json!({ "sh1": rows, "sh2": [rows[0], rows[1], rows[2], row(4, "b")], "status": "success" });
    api.is("GET", "/copy", json!({ "shards": ["sh1", "sh2"] }), copy.clone());
    let read = json!({ "data": [rows[2], row(4, "b")], "status": "success" });
    api.is("GET", "/read", json!({ "shard": "sh2", "Stud_id": range(2, 9_999_999) }), read);
    let count = api.ok("GET", "/get_wal_count", json!({ "shard": "sh2" }))["count"].as_u64().unwrap();
    assert_eq!(api.ok("GET", "/get_wal", json!({ "shard": "sh2" }))["data"].as_array().unwrap().len() as u64, count);

    // Whichever way it ends, the first answer after a start has all of it.
    let mut server = server;
    for end in ["TERM", "KILL", "INT"] {
        server.stop(end);
        server = Standalone::start(dir.path());
        server.api.is("GET", "/copy", json!({ "shards": ["sh1", "sh2"] }), copy.clone());
    }
    let second =
        Command::new(production_binary()).args(["server", "--standalone", "--port", "0", "--dir"]).arg(dir.path()).output().unwrap();
    let words = String::from_utf8(second.stderr).unwrap();
    assert_eq!((second.status.code(), words.lines().count(), words.contains("another process has it open")), (Some(1), 1, true), "{words}");
}
