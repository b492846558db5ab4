//! The HTTP contract, played against a real `twinshard up` by a client that knows nothing else of it. Where the contract is exact, so are
//! these tables.

mod members;
mod rows;
mod servers;
mod setup;
mod tools;
pub(crate) mod wire;

use crate::processes::{Up, default_cluster};
use serde_json::{Value, json};
use wire::Answer;

/// One balancer or server.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) address: String,
}

/// The methods of a table: method, path, body (null: none), and what is expected.
type Refusal<'a> = (&'a str, &'a str, Value, u16, &'a str, &'a str);

impl Api {
    pub(crate) fn of(up: &Up) -> Self {
        Self { address: up.url.trim_start_matches("http://").to_owned() }
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.ask_with(method, path, &[], body)
    }

    fn ask_with(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        wire::send(&self.address, method, path, headers, &body)
    }

    /// 200, and the body.
    pub(crate) fn ok(&self, method: &str, path: &str, body: Value) -> Value {
        let answer = self.ask(method, path, &body);
        let json = answer.json();
        assert_eq!(answer.status, 200, "{method} {path} {body} answered {json}");
        json
    }

    /// 200 and exactly this.
    fn is(&self, method: &str, path: &str, body: Value, expected: Value) {
        assert_eq!(self.ok(method, path, body.clone()), expected, "{method} {path} {body}");
    }

    fn refuses(&self, (method, path, body, status, code, message): Refusal<'_>) {
        check_refusal(&self.ask(method, path, &body), status, code, message, &format!("{method} {path} {body}"));
    }

    fn refuses_all<'a>(&self, refusals: impl IntoIterator<Item = Refusal<'a>>) {
        refusals.into_iter().for_each(|refusal| self.refuses(refusal));
    }

    pub(crate) fn status(&self) -> Value {
        self.ok("GET", "/status", Value::Null)
    }

    pub(crate) fn read(&self, low: i64, high: i64) -> Vec<Value> {
        let answer = self.ok("GET", "/read", json!({ "Stud_id": { "low": low, "high": high } }));
        answer["data"].as_array().unwrap().clone()
    }
}

/// A refusal with these, and all of the fields that every one has.
fn check_refusal(answer: &Answer, status: u16, code: &str, message: &str, of: &str) {
    let body = answer.json();
    assert_eq!((answer.status, &body["code"], &body["message"]), (status, &json!(code), &json!(message)), "{of} answered {body}");
    assert_eq!(body["status"], "failure", "{of}");
    assert!(["no", "yes", "partial", "unknown"].iter().any(|applied| body["applied"] == *applied), "{of} answered {body}");
    assert!(body["retryable"].is_boolean() && body["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{of} answered {body}");
    assert_eq!(answer.header("retry-after").is_some(), status == 503, "{of}");
}

pub(crate) fn row(key: i64, name: &str) -> Value {
    json!({ "Stud_id": key, "Stud_name": name, "Stud_marks": 27 })
}

/// Three servers, three shards of 4096 keys; each shard on two servers.
pub(crate) fn init() -> Value {
    let mut init = default_cluster();
    init["servers"] = json!({ "Server0": ["sh1", "sh2"], "Server1": ["sh2", "sh3"], "Server2": ["sh1", "sh3"] });
    init
}

/// An empty cluster, torn down with what it is given.
struct Cluster {
    api: Api,
    up: Up,
    _dir: tempfile::TempDir,
}

impl Cluster {
    fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let up = Up::start(dir.path());
        Self { api: Api::of(&up), up, _dir: dir }
    }

    fn started_with(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let up = Up::start_with(dir.path(), flags);
        Self { api: Api::of(&up), up, _dir: dir }
    }

    fn initialised() -> Self {
        let cluster = Self::empty();
        cluster.api.is("POST", "/init", init(), json!({ "message": "Configured Database", "status": "success" }));
        cluster
    }
}
