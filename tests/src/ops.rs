//! What an operator sees of a running cluster: probes, metrics, events.

use crate::processes::{Up, default_cluster, healthy, ok, production_binary, row, signal, wait_for};
use http::Method;
use serde_json::{Value, json};
use std::process::{Command, Stdio};
use std::time::Duration;
use twinshard::cli::client::Client;

async fn text_of(client: &mut Client, path: &str) -> String {
    let answer = client.send(Method::GET, path, None).await.unwrap();
    assert!(answer.status.is_success(), "{path} answered {}", answer.status);
    String::from_utf8(answer.body.to_vec()).unwrap()
}

/// The value of a metric with these labels.
fn metric(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operator_sees_what_happens_to_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    let mut client = up.client();
    for probe in ["/healthz", "/readyz"] {
        assert_eq!(ok(&mut client, Method::GET, probe, Value::Null).await["status"], "success");
    }
    ok(&mut client, Method::POST, "/init", default_cluster()).await;
    for key in 0..20 {
        ok(&mut client, Method::POST, "/write", json!({ "data": [row(key, 7)] })).await;
    }
    healthy(&mut client, 3).await;
    let text = text_of(&mut client, "/metrics").await;
    assert_eq!(metric(&text, "twinshard_http_request_seconds_count{method=\"POST\",path=\"/write\",status=\"200\"}"), Some(20.0), "{text}");
    assert_eq!(metric(&text, "twinshard_shard_members{shard=\"sh1\"}"), Some(3.0), "{text}");
    assert_eq!(metric(&text, "twinshard_server_up{server=\"Server1\"}"), Some(1.0), "{text}");
    assert!(metric(&text, "twinshard_storage_seconds_count{work=\"register-swap\"}").is_some_and(|count| count >= 2.0), "{text}");

    let before = ok(&mut client, Method::GET, "/events", Value::Null).await["last"].as_u64().unwrap();
    assert!(before >= 3, "three shards became active");
    let (_, status) = client.json(Method::GET, "/status", None).await.unwrap();
    let leader = |status: &Value| status["shards"][0]["primary_server"].as_str().map(str::to_owned);
    let victim = leader(&status).unwrap();
    signal("KILL", &[up.server_pid(&victim)]);
    wait_for("another primary", async || {
        let (_, status) = client.json(Method::GET, "/status", None).await.unwrap();
        leader(&status).filter(|name| *name != victim)
    })
    .await;
    healthy(&mut client, 3).await;
    let events = ok(&mut client, Method::GET, &format!("/events?after={before}"), Value::Null).await;
    let texts: Vec<&str> = events["events"].as_array().unwrap().iter().map(|event| event["text"].as_str().unwrap()).collect();
    let place =
        |words: &str| texts.iter().position(|text| text.contains(words)).unwrap_or_else(|| panic!("'{words}' is not in {texts:#?}"));
    let suspected = place(&format!("{victim} does not answer"));
    let proposed = place(&format!("in place of {victim}"));
    let active = place("is active");
    let anew = place(&format!("{victim} runs anew"));
    assert!(suspected < proposed && proposed < active, "{texts:#?}");
    assert!(suspected < anew, "{texts:#?}");
    let (code, refusal) = client.json(Method::GET, "/events?after=x", None).await.unwrap();
    assert_eq!((code.as_u16(), &refusal["code"]), (400, &json!("invalid-request")));

    // A server has its own.
    let (_, status) = client.json(Method::GET, "/status", None).await.unwrap();
    let server = format!("http://{}", status["health"][&victim]["http"].as_str().unwrap());
    let mut at_server = Client::new(&server, Duration::from_secs(15)).unwrap();
    assert_eq!(ok(&mut at_server, Method::GET, "/readyz", Value::Null).await["status"], "success");
    let text = text_of(&mut at_server, "/metrics").await;
    assert!(metric(&text, "twinshard_storage_seconds_count{work=\"persist\"}").is_some_and(|count| count > 0.0), "{text}");

    let output = Command::new(production_binary()).args(["events", "--url", &up.url]).stdin(Stdio::null()).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && printed.lines().count() >= texts.len(), "{printed}");
    assert!(printed.lines().any(|line| line.contains(" s ago  ") && line.contains(&format!("{victim} does not answer"))), "{printed}");
}
