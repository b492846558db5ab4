//! Tokens, as clients and operators meet them on a running cluster.

use crate::processes::{Up, default_cluster, ok, production_binary, row};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use twinshard::{cli::client::Client, secret::Secret};

/// A client that shows the token of this name, if any.
fn client(url: &str, dir: &Path, token: Option<&str>) -> Client {
    let client = Client::new(url, Duration::from_secs(130)).unwrap();
    match token {
        Some(name) => client.with_token(&Secret::load(&dir.join(format!("tokens/{name}.token"))).unwrap()),
        None => client,
    }
}

async fn asked(client: &mut Client, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
    client.json(method, path, Some(&body)).await.unwrap()
}

/// Whether the answer says so and nothing was done.
fn refused((code, answer): (StatusCode, Value), expected: StatusCode, name: &str) {
    assert_eq!((code, &answer["code"], &answer["applied"]), (expected, &json!(name), &json!("no")), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_with_tokens_lets_in_who_shows_one() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start_with(dir.path(), &["--auth", "required"]);
    let [mut nobody, mut data, mut admin] = [None, Some("data"), Some("admin")].map(|token| client(&up.url, dir.path(), token));
    let write = || json!({ "data": [row(1, 7)] });
    refused(asked(&mut nobody, Method::POST, "/init", default_cluster()).await, StatusCode::UNAUTHORIZED, "unauthorized");
    refused(asked(&mut data, Method::POST, "/init", default_cluster()).await, StatusCode::FORBIDDEN, "forbidden");
    ok(&mut admin, Method::POST, "/init", default_cluster()).await;
    refused(asked(&mut nobody, Method::POST, "/write", write()).await, StatusCode::UNAUTHORIZED, "unauthorized");
    ok(&mut data, Method::POST, "/write", write()).await;
    let (_, status) = asked(&mut data, Method::GET, "/status", Value::Null).await;
    let mut read = client(&up.url, dir.path(), Some("read"));
    refused(asked(&mut read, Method::POST, "/write", write()).await, StatusCode::FORBIDDEN, "forbidden");
    refused(asked(&mut read, Method::DELETE, "/rm", json!({ "n": 1 })).await, StatusCode::FORBIDDEN, "forbidden");
    let answer = ok(&mut read, Method::POST, "/read", json!({ "Stud_id": 1 })).await;
    assert_eq!(answer["data"], json!([row(1, 7)]));
    assert!(read.send(Method::GET, "/metrics", None).await.unwrap().status.is_success());

    // The servers ask for the same ones.
    let server = format!("http://{}", status["health"]["Server0"]["http"].as_str().unwrap());
    let [mut nobody, mut data] = [None, Some("data")].map(|token| client(&server, dir.path(), token));
    assert!(nobody.send(Method::GET, "/heartbeat", None).await.unwrap().status.is_success());
    let copy = json!({ "shards": ["sh1"] });
    refused(asked(&mut nobody, Method::GET, "/copy", copy.clone()).await, StatusCode::UNAUTHORIZED, "unauthorized");
    let (code, copied) = asked(&mut data, Method::GET, "/copy", copy).await;
    assert_eq!((code, copied["sh1"].as_array().map(Vec::len)), (StatusCode::OK, Some(1)), "{copied}");

    // The program's own commands show a token from a file, and nothing shows it to others.
    let file = dir.path().join("tokens/data.token");
    for (token_file, code) in [(None, 1), (Some(&file), 0)] {
        let mut status = Command::new(production_binary());
        status.args(["status", "--url", &up.url]).env_remove("TWINSHARD_TOKEN_FILE").stdin(Stdio::null());
        let output = status.args(token_file.iter().flat_map(|file| ["--token-file".as_ref(), file.as_os_str()])).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let logs: Vec<_> = std::fs::read_dir(dir.path().join("logs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(logs.len(), 3);
    for token in ["tokens/read.token", "tokens/data.token", "tokens/admin.token", "secret"] {
        let token = std::fs::read_to_string(dir.path().join(token)).unwrap();
        for log in &logs {
            assert!(!std::fs::read_to_string(log).unwrap().contains(token.trim()), "{} tells a secret", log.display());
        }
        assert!(!status.to_string().contains(token.trim()));
    }

    // Found again, the cluster has the tokens that it had.
    assert!(up.stop().0.success());
    let up = Up::start_with(dir.path(), &["--auth", "required"]);
    let (code, _) = asked(&mut client(&up.url, dir.path(), None), Method::GET, "/status", Value::Null).await;
    assert_eq!(code, StatusCode::UNAUTHORIZED);
    let mut data = client(&up.url, dir.path(), Some("data"));
    let answer = ok(&mut data, Method::POST, "/read", json!({ "Stud_id": { "low": 0, "high": 10 } })).await;
    assert_eq!(answer["data"], json!([row(1, 7)]));
}
