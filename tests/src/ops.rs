//! What an operator sees of a running cluster: probes, metrics, events.

use crate::api::wire;
use crate::processes::{Up, default_cluster, healthy, ok, production_binary, row, signal, wait_for};
use http::Method;
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
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
    // It may be started again before it has been silent for long enough.
    let why = events["events"][proposed]["why"].as_str().unwrap();
    assert!(["the primary does not answer", "the primary was restarted or stepped down"].contains(&why), "{why}");
    assert!(texts[proposed].contains(why), "{}", texts[proposed]);
    let (_, explained) = client.json(Method::GET, "/explain?shard=sh1", None).await.unwrap();
    // Of the epoch that is active by now: another may have followed.
    let events = ok(&mut client, Method::GET, "/events", Value::Null).await;
    let is_it = |event: &&Value| {
        (&event["kind"], &event["shard"], &event["epoch"]) == (&json!("proposed"), &explained["shard"], &explained["epoch"])
    };
    let why = events["events"].as_array().unwrap().iter().find(is_it).unwrap()["why"].as_str().unwrap();
    assert!(explained["why_primary"].to_string().contains(why), "{explained}");
    let last = events["last"].as_u64().unwrap();
    let (code, _) = client.json(Method::POST, "/drain", Some(&json!({ "server": "Nobody" }))).await.unwrap();
    assert_eq!(code.as_u16(), 400);
    let refused = ok(&mut client, Method::GET, &format!("/events?after={last}"), Value::Null).await;
    let text = "an operator asked for /drain of Nobody: refused, as Server 'Nobody' does not exist";
    assert_eq!((&refused["events"][0]["kind"], &refused["events"][0]["text"]), (&json!("refused"), &json!(text)));
    let text = text_of(&mut client, "/metrics").await;
    assert!(metric(&text, "twinshard_elections_total").is_some_and(|count| count >= 4.0), "{text}");
    let (code, refusal) = client.json(Method::GET, "/events?after=x", None).await.unwrap();
    assert_eq!((code.as_u16(), &refusal["code"]), (400, &json!("invalid-request")));

    // A server has its own.
    let (_, status) = client.json(Method::GET, "/status", None).await.unwrap();
    let primary = leader(&status).unwrap();
    let server = format!("http://{}", status["health"][&primary]["http"].as_str().unwrap());
    let mut at_server = Client::new(&server, Duration::from_secs(15)).unwrap();
    assert_eq!(ok(&mut at_server, Method::GET, "/readyz", Value::Null).await["status"], "success");
    let text = text_of(&mut at_server, "/metrics").await;
    assert!(metric(&text, "twinshard_storage_seconds_count{work=\"persist\"}").is_some_and(|count| count > 0.0), "{text}");
    assert_eq!(metric(&text, "twinshard_storage_errors_total{work=\"persist\"}"), Some(0.0), "{text}");
    assert!(metric(&text, "twinshard_elections_total").is_some_and(|count| count >= 1.0), "{text}");
    assert!(metric(&text, "twinshard_peer_total{kind=\"sent\"}").is_some_and(|count| count > 0.0), "{text}");
    for queue in ["log", "log batches", "row store", "requests"] {
        assert!(metric(&text, &format!("twinshard_queue{{queue=\"{queue}\"}}")).is_some(), "{queue}: {text}");
    }
    assert!(
        ["requests_waiting", "storage_open", "peer_messages_waiting"].iter().all(|name| text.contains(&format!("\ntwinshard_{name} ")))
    );
    let of_sh1 = |name: &str| {
        let labels = format!("twinshard_{name}{{shard=\"sh1\",server=\"{primary}\",replica=\"");
        text.lines().find_map(|line| line.strip_prefix(&labels)?.split_once(' ')?.1.parse::<f64>().ok())
    };
    let epoch = status["shards"][0]["epoch"].as_f64();
    assert_eq!((of_sh1("replica_epoch"), of_sh1("replica_leads")), (epoch, Some(1.0)), "{text}");
    assert!(of_sh1("replica_commit_index") >= Some(1.0) && of_sh1("replica_applied_index") >= Some(1.0), "{text}");
    assert!(of_sh1("replica_commit_lag").is_some() && of_sh1("replica_apply_lag").is_some(), "{text}");
    let told = text_of(&mut at_server, "/events").await;
    assert!(told.contains(&format!("sh1: {primary} leads epoch ")), "{told}");

    let output = Command::new(production_binary()).args(["events", "--url", &up.url]).stdin(Stdio::null()).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && printed.lines().count() >= texts.len(), "{printed}");
    assert!(printed.lines().any(|line| line.contains(" s ago  ") && line.contains(&format!("{victim} does not answer"))), "{printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn examples_of_the_openapi_document_are_answered_as_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    let mut client = up.client();
    let document: Value = serde_json::from_str(&text_of(&mut client, "/openapi.json").await).unwrap();
    for (method, path) in
        [("post", "/init"), ("post", "/write"), ("put", "/update"), ("post", "/read"), ("delete", "/del"), ("get", "/primary_elect")]
    {
        let operation = &document["paths"][path][method];
        let body = operation["requestBody"]["content"]["application/json"]["example"].clone();
        let expected = &operation["responses"]["200"]["content"]["application/json"]["example"];
        let answer = ok(&mut client, Method::from_bytes(method.to_uppercase().as_bytes()).unwrap(), path, body).await;
        assert_eq!((&answer["message"], &answer["status"]), (&expected["message"], &expected["status"]), "{path}");
        let optional = ["next_cursor", "cursor_promise", "position", "index", "lag", "session", "skipped"];
        for field in expected.as_object().unwrap().keys().filter(|field| !optional.contains(&field.as_str())) {
            assert!(answer.get(field).is_some(), "{path}: {field} is not in {answer}");
        }
    }
}

/// By its name at the balancer, by its exchange at the server.
#[test]
fn request_is_followed_from_its_name_to_the_server_that_carried_it_out() {
    let dir = tempfile::tempdir().unwrap();
    let said = dir.path().join("said");
    let mut up = Command::new(production_binary())
        .args(["up", "--port", "0", "--dir"])
        .arg(dir.path().join("data"))
        .env("TWINSHARD_LOG", "warn,twinshard::request=debug")
        .env("TWINSHARD_LOG_FORMAT", "json")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&said).unwrap())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut printed = BufReader::new(up.stdout.take().unwrap());
    printed.read_line(&mut line).unwrap();
    let address = line.split_whitespace().find_map(|word| word.strip_prefix("http://")).unwrap();
    let send = |path, name: &[(&str, &str)], body: Value| wire::send(address, "POST", path, name, body.to_string().as_bytes());
    let unnamed = send("/init", &[], default_cluster());
    assert!(unnamed.status == 200 && unnamed.header("x-request-id").is_some());
    let named = send("/write", &[("X-Request-Id", "order-7")], json!({ "data": [row(1, 7)] }));
    assert_eq!((named.status, named.header("x-request-id")), (200, Some("order-7")));
    // At a server that has to forward it.
    let status: Value = serde_json::from_slice(&wire::send(address, "GET", "/status", &[], b"").body).unwrap();
    let primary = status["shards"][0]["primary_server"].as_str().unwrap();
    let (_, backup) = status["health"].as_object().unwrap().iter().find(|(name, _)| *name != primary).unwrap();
    let write = json!({ "shard": "sh1", "curr_idx": 1, "data": [row(2, 7)] });
    let forwarded =
        wire::send(backup["http"].as_str().unwrap(), "POST", "/write", &[("X-Request-Id", "order-8")], write.to_string().as_bytes());
    assert_eq!((forwarded.status, forwarded.header("x-request-id")), (200, Some("order-8")));
    signal("TERM", &[up.id()]);
    printed.read_to_string(&mut String::new()).unwrap();
    assert!(up.wait().unwrap().success());

    let lines = |path: &Path| -> Vec<Value> {
        std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let balancer = lines(&said);
    let of_it: Vec<&Value> = balancer.iter().filter(|line| line["request"] == "order-7").collect();
    assert!(of_it.iter().any(|line| line["message"] == "answered" && line["path"] == "/write" && line["status"] == 200), "{of_it:?}");
    let exchange = of_it.iter().find_map(|line| line["exchange"].as_str()).unwrap();
    let logs = std::fs::read_dir(dir.path().join("data/logs")).unwrap();
    let logged: Vec<Value> = logs.flat_map(|log| lines(&log.unwrap().path())).collect();
    let carried_out = |exchange: &str| {
        let of_it: Vec<&Value> = logged.iter().filter(|line| line["exchange"] == exchange && line["message"] != "asks").collect();
        let what: Vec<&str> = of_it.iter().filter_map(|line| line["what"].as_str()).collect();
        assert_eq!(what, ["asked", "answers"], "{of_it:?}");
    };
    carried_out(exchange);
    let asks: Vec<&Value> = logged.iter().filter(|line| line["request"] == "order-8" && line["message"] == "asks").collect();
    let [asks] = asks[..] else { panic!("{asks:?}") };
    carried_out(asks["exchange"].as_str().unwrap());
}
