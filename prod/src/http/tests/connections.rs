//! What one client may hold and for how long, on paused time.

use super::*;
use crate::peer::memory::Memory;
use tokio::{io::DuplexStream, time::Instant};
use twinshard_core::{
    command::{Command, Entry, OnConflict, Operation},
    id::{Epoch, Position},
    request::ServerReply,
};

const ADDRESS: &str = "balancer:5000";
const READ: &str = r#"{"Stud_id": {"low": 0, "high": 1999}}"#;

/// A balancer with one place for a connection, whose answers to reads never end.
async fn endless() -> (Memory, watch::Sender<bool>, JoinHandle<()>) {
    let settings = HttpSettings { connections_max: 1, ..HttpSettings::default() };
    let (router, _machine) = played(settings.clone(), |_| Some(page(0..1, &"x".repeat(1_000), Some(0))));
    let (stop, stopped) = watch::channel(false);
    let network = Memory::default();
    let listener = network.listen(ADDRESS).await.expect("an address");
    let serving = tokio::spawn(serve::<Memory>(listener, router, settings, stopped));
    (network, stop, serving)
}

/// A client that asks and has read nothing yet.
async fn asks(network: &Memory, method: &str, path: &str, body: &str) -> DuplexStream {
    let mut client = network.connect(ADDRESS).await.expect("a connection");
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    client.write_all(head.as_bytes()).await.expect("sent");
    client.write_all(body.as_bytes()).await.expect("sent");
    client
}

/// All of an answer, on one line.
async fn heard(mut client: DuplexStream) -> String {
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(start_paused = true)]
async fn client_that_does_not_read_its_answer_is_let_go_and_its_place_is_free() {
    let (network, _stop, _serving) = endless().await;
    let deaf = asks(&network, "POST", "/read", READ).await;
    let began = Instant::now();
    assert!(heard(asks(&network, "GET", "/healthz", "").await).await.starts_with("HTTP/1.1 200"), "a probe has another place");
    let refused = heard(asks(&network, "POST", "/read", READ).await).await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after: 1\r\n"), "{refused}");
    assert_eq!(began.elapsed().as_secs(), 0, "neither waits");
    tokio::time::sleep(Duration::from_secs(31)).await;
    let mut next = asks(&network, "POST", "/read", READ).await;
    let mut begun = [0; 12];
    next.read_exact(&mut begun).await.expect("an answer");
    assert_eq!(&begun, b"HTTP/1.1 200", "as long as a client may take to read nothing");
    // What had been written before is there, and not an end that it could be taken for.
    let begun = heard(deaf).await;
    assert!(begun.starts_with("HTTP/1.1 200") && !begun.ends_with("0\r\n\r\n"));
}

/// With one place for clients, and so many who hold what there is with half a head, coming back at once.
#[tokio::test(start_paused = true)]
async fn probes_are_answered_whoever_holds_all_places() {
    let (network, _stop, _serving) = endless().await;
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut half = network.connect(ADDRESS).await.expect("a connection");
        half.write_all(b"GET /status HTTP/1.1\r\nHo").await.expect("sent");
        held.push(half);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for path in ["/healthz", "/readyz", "/heartbeat", "/metrics", "/events"] {
        let mut another = network.connect(ADDRESS).await.expect("a connection");
        another.write_all(b"GET /status HTTP/1.1\r\nHo").await.expect("sent");
        held.push(another);
        let answer = heard(asks(&network, "GET", path, "").await).await;
        // The machine that is played answers nothing else.
        let is_answered = answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.1 500");
        assert!(is_answered && answer.contains("connection: close"), "{path}: {answer}");
    }
    let mut first = held.remove(0);
    first.write_all(b"st: localhost\r\nConnection: close\r\n\r\n").await.expect("still there");
    assert!(heard(first).await.starts_with("HTTP/1.1 500"), "who has a place keeps it");
}

#[tokio::test(start_paused = true)]
async fn connection_without_a_request_is_closed_without_a_word() {
    let (network, _stop, _serving) = endless().await;
    for (words, seconds, answers) in [
        ("", 75, 0),
        ("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 75, 1),
        ("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea", 75, 1),
        ("GET /hea", 30, 1),
    ] {
        let mut client = network.connect(ADDRESS).await.expect("a connection");
        let began = Instant::now();
        client.write_all(words.as_bytes()).await.expect("sent");
        let answer = heard(client).await;
        assert_eq!((began.elapsed().as_secs(), answer.matches("HTTP/1.1").count()), (seconds, answers), "{words}: {answer}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // A proxy asks again within the minute that it keeps connections.
    let mut client = network.connect(ADDRESS).await.expect("a connection");
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        client.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200");
        let mut rest = [0; 4 << 10];
        assert!(client.read(&mut rest).await.expect("the rest of it") > 0);
    }
    // A head that began after an answer has its own time.
    client.write_all(b"GET /healthz HT").await.expect("sent");
    let began = Instant::now();
    assert_eq!(heard(client).await, "");
    assert_eq!(began.elapsed().as_secs(), 30);
}

/// A client that sends a byte of its body a second: whether it hears in time, and is let go.
#[tokio::test(start_paused = true)]
async fn refusals_do_not_wait_for_a_body_and_late_ones_are_told_in_time() {
    let (network, _stop, _serving) = endless().await;
    for (target, status, seconds) in [
        ("POST /write HTTP/1.1\r\nHost: localhost", 408, 30),
        ("POST /write HTTP/1.1\r\nHost: evil.example", 403, 0),
        ("POST /nowhere HTTP/1.1\r\nHost: localhost", 404, 0),
        ("GET /write HTTP/1.1\r\nHost: localhost", 405, 0),
        ("POST /write HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip", 415, 0),
    ] {
        let client = network.connect(ADDRESS).await.expect("a connection");
        let (mut reading, mut writing) = tokio::io::split(client);
        let head = format!("{target}\r\nContent-Length: 100000\r\n\r\n");
        let drips = tokio::spawn(async move {
            writing.write_all(head.as_bytes()).await?;
            for _ in 0..100_000 {
                writing.write_all(b" ").await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Ok::<_, std::io::Error>(())
        });
        let began = Instant::now();
        let mut answer = [0; 12];
        reading.read_exact(&mut answer).await.expect("an answer");
        assert_eq!((answer[9..].to_vec(), began.elapsed().as_secs()), (status.to_string().into_bytes(), seconds), "{target}");
        let mut rest = String::new();
        let _ = reading.read_to_string(&mut rest).await;
        assert!(rest.contains("connection: close") && rest.contains("\"status\":\"failure\""), "{target}: {rest}");
        assert!(drips.await.expect("no panic").is_err(), "it is let go");
        assert!(began.elapsed().as_secs() <= seconds + 31, "{target}: {:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn client_that_reads_slowly_is_served() {
    let (network, _stop, _serving) = endless().await;
    let mut slow = asks(&network, "POST", "/read", READ).await;
    let mut piece = [0; 4 << 10];
    for _ in 0..200 {
        slow.read_exact(&mut piece).await.expect("more of it");
        tokio::time::advance(Duration::from_secs(20)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn node_that_has_no_place_left_stops_all_the_same() {
    let (network, stop, serving) = endless().await;
    let _deaf = asks(&network, "POST", "/read", READ).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let told = Instant::now();
    stop.send_replace(true);
    serving.await.expect("served");
    assert_eq!(told.elapsed(), DRAIN_TIMEOUT);
}

#[tokio::test]
async fn bodies_that_do_not_fit_beside_the_others_are_told_to_come_again() {
    const WRITE: &str = r#"{"data": [{"Stud_id": 1, "Stud_name": "a"}]}"#;
    // One such body takes its bytes, and 128 for each of its 5 values.
    let room = 2 * (WRITE.len() + 5 * 128);
    let settings = HttpSettings { bodies: Bodies::new(room), ..HttpSettings::default() };
    let (router, machine, waiting) = with_two_waiting(settings, WRITE).await;
    for body in [WRITE, "{}", " "] {
        let response = ask(&router, request("POST", "/write", body)).await;
        assert_eq!(response.headers()["retry-after"], "1");
        let (status, answer) = json_of(response).await;
        assert_eq!((status, &answer["code"], &answer["applied"]), (503, &json!("overloaded"), &json!("no")), "{body}");
    }
    assert_eq!(ask(&router, request("GET", "/healthz", "")).await.status(), StatusCode::OK, "what has no body needs no room");
    machine.abort();
    for waiting in waiting {
        assert_eq!(waiting.await.expect("answered"), 504, "it had been taken");
    }
    assert_eq!(json_of(ask(&router, request("POST", "/write", "{}")).await).await.1["code"], "invalid-request", "there is room again");
    // What would not fit if it were alone is told not to come again.
    let large = format!("{WRITE}{}", " ".repeat(room));
    let (status, answer) = json_of(ask(&router, request("POST", "/write", large)).await).await;
    assert_eq!((status, &answer["code"], &answer["retryable"]), (413, &json!("body-too-large"), &json!(false)));
}

#[tokio::test]
async fn a_log_comes_piece_by_piece() {
    const ENTRIES: u64 = 5_000;
    let (known, map) = watch::channel(Some((MapVersion(1), Arc::new(map()))));
    let (handle, mut asks) = ServerHandle::new(map, Telemetry::default());
    let fetched = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&fetched);
    tokio::spawn(async move {
        let _known = known;
        while let Some(Ask { request, reply, .. }) = asks.recv().await {
            let answer = match request {
                twinshard_core::request::ServerRequest::Log { from, limit, .. } => {
                    count.fetch_add(1, Ordering::SeqCst);
                    let entry = |index| {
                        let row = Row { key: Key(1), values: vec![Held::Text("x".repeat(1_000).into())] };
                        let operation = Operation::Insert { row, on_conflict: OnConflict::Replace };
                        let position = Position { epoch: Epoch(1), index: LogIndex(index) };
                        Arc::new(Entry { position, request: None, idempotency: None, command: Command::Operations(vec![operation]) })
                    };
                    let entries = (from.0..=ENTRIES).take(limit as usize).map(entry).collect();
                    ServerReply::Log { entries, last: LogIndex(ENTRIES) }
                }
                _ => ServerReply::Shards { names: vec!["sh1".into()], map: None },
            };
            let _ = reply.send(answer);
        }
    });
    let identity = server::ServerIdentity { name: "Server0".into(), number: 0, standalone: None };
    let router = server::router(handle, identity, HttpSettings::default());
    let response = ask(&router, request("GET", "/get_wal", r#"{"shard":"sh1"}"#)).await;
    assert_eq!(fetched.load(Ordering::SeqCst), 1, "it begins to answer with the first piece");
    let (status, answer) = json_of(response).await;
    let indices: Vec<u64> = answer["data"].as_array().expect("entries").iter().filter_map(|entry| entry["index"].as_u64()).collect();
    assert_eq!((status, &answer["status"], indices), (200, &json!("success"), (1..=ENTRIES).collect()));
}
