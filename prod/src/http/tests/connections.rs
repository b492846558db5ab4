//! What one client may hold and for how long, on paused time.

use super::*;
use crate::{net::Network, peer::memory::Memory};
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

#[tokio::test(start_paused = true)]
async fn client_that_does_not_read_its_answer_is_let_go_and_its_place_is_free() {
    let (network, _stop, _serving) = endless().await;
    let mut deaf = asks(&network, "POST", "/read", READ).await;
    let began = Instant::now();
    let mut next = asks(&network, "GET", "/healthz", "").await;
    let mut answer = Vec::new();
    next.read_to_end(&mut answer).await.expect("an answer");
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    assert_eq!(began.elapsed().as_secs(), 30, "as long as a client may take to read nothing");
    let mut begun = Vec::new();
    // What had been written before is there, and not an end that it could be taken for.
    let _ = deaf.read_to_end(&mut begun).await;
    assert!(begun.starts_with(b"HTTP/1.1 200") && !begun.ends_with(b"0\r\n\r\n"));
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
    let _waits = asks(&network, "GET", "/healthz", "").await;
    tokio::time::advance(Duration::from_secs(1)).await;
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
    assert_eq!(ask(&router, request("GET", "/readyz", "")).await.status(), StatusCode::OK, "what has no body needs no room");
    machine.abort();
    for waiting in waiting {
        assert_eq!(waiting.await.expect("answered"), 504, "it had been taken");
    }
    assert_eq!(json_of(ask(&router, request("POST", "/write", "{}")).await).await.1["code"], "invalid-request", "there is room again");
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
