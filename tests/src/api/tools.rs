//! What proxies, probes and programs of all kinds send, as they meet it on a real cluster.

use super::*;
use crate::processes::signal;
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

fn raw(address: &str, words: &str) -> Answer {
    wire::exchange(address, words.as_bytes())
}

/// Asks until an answer has this status; its body.
fn until(api: &Api, path: &str, status: u16) -> Value {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = api.ask("GET", path, &Value::Null);
        if answer.status == status {
            return answer.json();
        }
        assert!(Instant::now() < deadline, "{path} is answered {}: {}", answer.status, answer.json());
        std::thread::yield_now();
    }
}

#[test]
fn probes_know_nothing_and_other_ways_mean_the_same() {
    let Cluster { api, .. } = &Cluster::initialised();
    let server = api.status()["health"]["Server0"]["http"].as_str().unwrap().to_owned();
    for (address, path) in
        [(&api.address, "/healthz"), (&api.address, "/readyz"), (&api.address, "/heartbeat"), (&server, "/heartbeat"), (&server, "/readyz")]
    {
        for head in ["HTTP/1.0", "HTTP/1.1\r\nHost: lb.example\r\nConnection: close"] {
            let answer = raw(address, &format!("GET {path} {head}\r\n\r\n"));
            assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")), "{path} {head}");
            assert!(answer.header("date").is_some() && answer.header("x-content-type-options") == Some("nosniff"), "{answer:?}");
            let head = wire::head(address, path);
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{path}: {head}");
        }
    }
    let row = |key: &str, value: &str| format!(r#"{{"data":[{{"Stud_id":{key},"Stud_name":{value},"Stud_marks":1}}]}}"#);
    for (key, value, kept) in [
        ("2255.0", "1e3", Some((2255, json!(1000)))),
        ("1e3", "-0", Some((1000, json!(0)))),
        ("-0", "27", Some((0, json!(27)))),
        ("1", "18446744073709551616", None),
        ("1", "-9223372036854775809", None),
        ("1", "123456789012345678901", None),
        ("1", "1e-400", None),
        ("18446744073709551616", "1", None),
    ] {
        let answer = wire::send(&api.address, "POST", "//write/", &[], row(key, value).as_bytes());
        match kept {
            Some((key, value)) => {
                assert_eq!(answer.status, 200, "{}", answer.json());
                assert_eq!(api.read(key, key)[0]["Stud_name"], value);
            }
            None => check_refusal(&answer, 400, "bad-row", answer.json()["message"].as_str().unwrap(), value),
        }
    }
    assert_eq!(api.read(1, 1), Vec::<Value>::new(), "nothing was rounded");
    let marked = [b"\xef\xbb\xbf", row("1", "1").as_bytes()].concat();
    assert_eq!(wire::send(&api.address, "POST", "/write", &[], &marked).status, 200);
    assert_eq!(wire::send(&api.address, "POST", "/write", &[("Content-Encoding", "gzip")], &marked).status, 415);
    api.is(
        "POST",
        "/del",
        json!({ "Stud_id": 1 }),
        json!({ "message": "Data entry with Stud_id:1 removed from all replicas", "status": "success" }),
    );
    let words = "<Error> 'consistancy' is no field of this request: was 'consistency' meant?";
    api.refuses(("GET", "/read", json!({ "Stud_id": 1, "consistancy": "stale" }), 400, "unknown-field", words));
}

#[test]
fn names_of_fields_are_no_columns() {
    let Cluster { api, .. } = &Cluster::empty();
    for name in ["limit", "cursor", "data", "shard", "consistency", "versions"] {
        let body = json!({
            "schema": { "columns": [name, "a"], "dtypes": ["Number", "String"] },
            "shards": [{ format!("{name}_low"): 0, "Shard_id": "sh1", "Shard_size": 10 }], "servers": { "Server0": ["sh1"] },
        });
        let words = format!("<Error> '{name}' is a field of requests and cannot be a column: give it another name");
        api.refuses(("POST", "/init", body, 400, "invalid-request", &words));
    }
    assert_eq!(api.status()["N"], 0);
}

/// Ten connections are all there are, and ten clients hold them with half a head.
#[test]
fn probes_are_answered_when_clients_hold_every_connection() {
    let Cluster { api, .. } = &Cluster::started_with(&["--connections-max", "10"]);
    let held: Vec<TcpStream> = (0..10)
        .map(|_| {
            let mut stream = TcpStream::connect(&api.address).unwrap();
            stream.write_all(b"POST /write HTTP/1.1\r\nHo").unwrap();
            stream
        })
        .collect();
    for path in ["/healthz", "/readyz", "/status", "/metrics"] {
        let began = Instant::now();
        assert_eq!(api.ask("GET", path, &Value::Null).status, 200, "{path}");
        assert!(began.elapsed() < Duration::from_secs(2), "{path} took {:?}", began.elapsed());
    }
    let refused = api.ask("POST", "/write", &json!({ "data": [] }));
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    drop(held);
}

#[test]
fn readiness_is_about_now() {
    let cluster = Cluster::started_with(&["--stop-grace", "1500"]);
    let api = &cluster.api;
    api.ok("POST", "/init", init());
    until(api, "/readyz", 200);
    let servers = ["Server0", "Server1", "Server2"].map(|name| cluster.up.server_pid(name));
    signal("STOP", &servers);
    let told = until(api, "/readyz", 503);
    assert_eq!(told["code"], "not-ready");
    assert!(told["message"].as_str().unwrap().contains("reaches a quorum of no shard"), "{told}");
    assert_eq!(api.ask("GET", "/healthz", &Value::Null).status, 200, "it is alive all the same");
    until(api, "/readyz", 200);
    // It says so while it still serves.
    signal("TERM", &[cluster.up.pid()]);
    let told = until(api, "/readyz", 503);
    assert_eq!(told["message"], "<Error> The node is told to stop");
    assert_eq!(api.ask("GET", "/rep", &Value::Null).status, 200);
}

/// A body that drips: what is refused is refused at once.
#[test]
fn refusals_do_not_wait_for_the_body() {
    let Cluster { api, .. } = &Cluster::empty();
    for (head, status) in [("POST /nowhere HTTP/1.1\r\nHost: localhost", "404"), ("POST /write HTTP/1.1\r\nHost: evil.example", "403")] {
        let mut stream = TcpStream::connect(&api.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(format!("{head}\r\nContent-Length: 100000\r\n\r\n ").as_bytes()).unwrap();
        let mut begun = [0; 12];
        stream.read_exact(&mut begun).unwrap();
        assert_eq!(&begun[9..], status.as_bytes(), "{head}");
    }
}
