//! TLS and the bound on a client's rate, as clients and operators meet them on a running cluster.

use crate::processes::{Up, default_cluster, ok, production_binary, row, signal};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use twinshard::cli::client::{Client, ClientError};

fn client(url: &str, certificate: &Path) -> Client {
    Client::new(url, Duration::from_secs(130)).unwrap().trusting(certificate).unwrap()
}

fn keys(answer: &Value) -> Vec<u64> {
    answer["data"].as_array().unwrap().iter().map(|row| row["Stud_id"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_in_tls_serves_who_trusts_it_and_stands_kills() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--tls", "--tls-name", "balancer.example", "--balancers", "2"];
    let up = Up::start_with(dir.path(), &flags);
    assert!(up.url.starts_with("https://"), "{}", up.url);
    let certificate = dir.path().join("tls/ca.pem");
    let mut trusting = client(&up.url, &certificate);
    ok(&mut trusting, Method::POST, "/init", default_cluster()).await;
    ok(&mut trusting, Method::POST, "/write", json!({ "data": [row(1, 7)] })).await;

    // Who does not trust the authority, or trusts another, is not taken in; who speaks no TLS is told to.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Up::start_with(elsewhere.path(), &["--tls"]);
    let mut wrong = client(&up.url, &elsewhere.path().join("tls/ca.pem"));
    let refused = wrong.send(Method::GET, "/status", None).await.unwrap_err();
    assert!(refused.to_string().contains("certificate"), "{refused}");
    let mut unknowing = Client::new(&up.url, Duration::from_secs(5)).unwrap();
    assert!(matches!(unknowing.send(Method::GET, "/status", None).await, Err(ClientError::NoAuthority)));
    let mut plain = Client::new(&up.url.replace("https://", "http://"), Duration::from_secs(5)).unwrap();
    let (code, answer) = plain.json(Method::GET, "/status", None).await.unwrap();
    assert_eq!((code, &answer["code"]), (StatusCode::BAD_REQUEST, &json!("tls")), "{answer}");
    assert!(other.stop().0.success());

    // A server speaks it, too.
    let (_, status) = trusting.json(Method::GET, "/status", None).await.unwrap();
    let server = format!("https://{}", status["health"]["Server0"]["http"].as_str().unwrap());
    ok(&mut client(&server, &certificate), Method::GET, "/home", Value::Null).await;

    // Nodes do among each other: a server that is killed is back and has its rows, through either balancer.
    signal("KILL", &[up.server_pid("Server0")]);
    let write = json!({ "data": (2..200).map(|key| row(key, 8)).collect::<Vec<_>>() });
    ok(&mut trusting, Method::POST, "/write", write).await;
    for url in up.urls() {
        let answer = ok(&mut client(url, &certificate), Method::POST, "/read", json!({ "Stud_id": { "low": 0, "high": 999 } })).await;
        assert_eq!(keys(&answer), (1..200).collect::<Vec<_>>());
    }

    // The program's own commands, and the key of the authority for its owner alone.
    for (flags, code) in [(vec![], 1), (vec!["--ca".as_ref(), certificate.as_os_str()], 0)] {
        let mut command = Command::new(production_binary());
        let command = command.args(["status", "--url", &up.url]).args(flags).env_remove("TWINSHARD_CA").stdin(Stdio::null());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(dir.path().join("tls/ca-key.pem")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    // Found again, the cluster has the authority that it had.
    assert!(up.stop().0.success());
    let up = Up::start_with(dir.path(), &flags);
    let answer = ok(&mut client(&up.url, &certificate), Method::POST, "/read", json!({ "Stud_id": { "low": 0, "high": 1 } })).await;
    assert_eq!(keys(&answer), [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_asks_too_often_is_told_to_wait() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start_with(dir.path(), &["--rate-max", "1"]);
    let mut client = up.client();
    let mut asked = async |path| client.json(Method::GET, path, None).await.unwrap();
    let mut refusal = None;
    for _ in 0..1_000 {
        let (code, answer) = asked("/status").await;
        if code == StatusCode::TOO_MANY_REQUESTS {
            refusal = Some(answer);
            break;
        }
    }
    let refusal = refusal.expect("a refusal");
    assert_eq!((&refusal["code"], &refusal["applied"], &refusal["retryable"]), (&json!("too-many-requests"), &json!("no"), &json!(true)));
    // Probes are no client's.
    for _ in 0..10 {
        assert_eq!(asked("/healthz").await.0, StatusCode::OK);
    }
}
