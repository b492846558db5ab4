//! Large answers: where they end, and that one that breaks off cannot be taken for whole.

use super::*;
use std::sync::Mutex;
use twinshard_core::{
    id::{Epoch, Position, ReplicaId, ServerId},
    message::Pin,
    request::{Pinned, RequestError},
};

const READ: &str = r#"{"Stud_id": {"low": 0, "high": 1999}}"#;

/// More than what is sent in one piece.
fn long() -> String {
    "x".repeat(300 << 10)
}

#[tokio::test]
async fn an_error_before_anything_was_sent_has_its_own_status() {
    let mut pages = vec![Reply::Failed(RequestError::ShardUnavailable("sh2".into())), page(0..3, "short", Some(1_000))];
    let (router, _machine) = played(HttpSettings::default(), move |_| pages.pop());
    let response = ask(&router, request("POST", "/read", READ)).await;
    assert_eq!(response.headers()["retry-after"], "1");
    let (status, body) = json_of(response).await;
    assert_eq!((status, &body["code"], &body["status"]), (503, &json!("shard-unavailable"), &json!("failure")));
}

#[tokio::test]
async fn a_read_that_is_cut_before_anything_was_given_out_begins_anew() {
    let cut = || Reply::Failed(RequestError::ReadCut("sh1".into()));
    let mut pages = vec![page(1_000..1_002, "c", None), page(0..3, "b", Some(1_000)), cut(), page(0..2, "a", Some(1_000)), cut()];
    let (router, _machine) = played(HttpSettings::default(), move |_| pages.pop());
    let (status, body) = json_of(ask(&router, request("POST", "/read", READ)).await).await;
    assert_eq!((status, body["data"].as_array().map(Vec::len)), (200, Some(5)), "nothing of the first attempt is in it: {body}");
    // Once a part was given out it breaks off.
    let mut pages = vec![cut(), page(0..1, &long(), Some(1_000))];
    let (router, _machine) = played(HttpSettings::default(), move |_| pages.pop());
    let head = format!("POST /read HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{READ}", READ.len());
    let answer = exchange(router, HttpSettings::default(), head.as_bytes()).await;
    assert!(answer.starts_with(b"HTTP/1.1 200") && !answer.ends_with(b"0\r\n\r\n"));
}

#[tokio::test]
async fn what_is_pinned_is_gone_on_with_and_let_go() {
    let pin = Pin { replica: ReplicaId(5), number: 9 };
    let pinned = Pinned { shard: ShardId(1), server: ServerId(3), pin, at: Position { epoch: Epoch(1), index: LogIndex(7) } };
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let (router, machine) = played(HttpSettings::default(), move |request| {
        Some(match request {
            Asked::ReadPage { pinned: from, .. } => {
                seen.lock().expect("not poisoned").push(("page", from));
                let Reply::Rows(mut rows) = page(0..2, "a", Some(2)) else { unreachable!("rows") };
                rows.pinned = Some(pinned);
                Reply::Rows(rows)
            }
            Asked::EndRead(pinned) => {
                seen.lock().expect("not poisoned").push(("end", Some(pinned)));
                Reply::ReadEnded
            }
            other => panic!("{other:?}"),
        })
    });
    let limited = r#"{"Stud_id": {"low": 0, "high": 1999}, "limit": 3}"#;
    let (status, _) = json_of(ask(&router, request("POST", "/read", limited)).await).await;
    assert_eq!(status, 200);
    drop(router);
    machine.await.expect("plays on");
    assert_eq!(*asked.lock().expect("not poisoned"), [("page", None), ("page", Some(pinned)), ("end", Some(pinned))]);
}

/// What a client has of an answer whose second page fails.
async fn broken(accept: &'static str) -> Vec<u8> {
    let mut pages = vec![Reply::Failed(RequestError::ShardUnavailable("sh2".into())), page(0..1, &long(), Some(1_000))];
    let (router, _machine) = played(HttpSettings::default(), move |_| pages.pop());
    let head = format!("POST /read HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nContent-Length: {}\r\n\r\n{READ}", READ.len());
    exchange(router, HttpSettings::default(), head.as_bytes()).await
}

#[tokio::test]
async fn an_answer_that_fails_midway_breaks_off() {
    for accept in ["*/*", "application/x-ndjson"] {
        let answer = broken(accept).await;
        assert!(answer.starts_with(b"HTTP/1.1 200") && answer.len() > 300 << 10, "{accept}: it began");
        assert!(answer.windows(8).any(|word| word.eq_ignore_ascii_case(b"chunked\r")));
        assert!(!answer.ends_with(b"0\r\n\r\n"), "{accept}: the last chunk would say that it is whole");
        let said_so = answer.windows(9).any(|word| word == b"\"success\"");
        assert!(!said_so, "{accept}");
    }
}

#[tokio::test]
async fn every_page_is_asked_for_under_the_name_of_the_request() {
    let (_known, map) = watch::channel(Some((MapVersion(1), Arc::new(map()))));
    let (handle, mut asks) = BalancerHandle::new(map, Telemetry::default());
    let machine = tokio::spawn(async move {
        let mut pages = vec![page(1_001..1_002, "end", None), page(1_000..1_001, &long(), Some(1_001)), page(0..1, &long(), Some(1_000))];
        let mut names = Vec::new();
        while let Some(Ask { reply, id, .. }) = asks.recv().await {
            names.push(id.map(|id| id.to_string()));
            drop(reply.send(pages.pop().expect("three pages")));
        }
        names
    });
    let mut request = request("POST", "/read", READ);
    request.headers_mut().insert("x-request-id", "order-7".parse().expect("a header"));
    let (status, answer) = json_of(ask(&balancer::router(handle, HttpSettings::default()), request).await).await;
    assert_eq!((status, answer["data"].as_array().map(Vec::len)), (200, Some(3)));
    assert_eq!(machine.await.expect("plays on"), vec![Some("order-7".to_owned()); 3]);
}

#[tokio::test]
async fn a_limit_asks_for_one_row_more_and_points_at_it() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let (router, _machine) = played(HttpSettings::default(), move |request| {
        let Asked::ReadPage { range, limit, .. } = request else { panic!("{request:?}") };
        seen.lock().expect("not poisoned").push((range.low.0, limit));
        let shard_end = if range.low < Key(1_000) { 1_000 } else { 2_000 };
        let end = shard_end.min(range.low.0 + i64::from(limit));
        // As shards answer: what is left of one shard, and where the next begins.
        let next = if end == shard_end { (end == 1_000).then_some(1_000) } else { Some(end) };
        Some(page(range.low.0..end, "n", next))
    });
    for (limit, cursor, expected_keys, next, pages) in [
        (5, None, 0..5, Some(5), vec![(0, 6)]),
        (5, Some("998"), 998..1_003, Some(1_003), vec![(998, 6), (1_000, 4)]),
        (2, Some("998"), 998..1_000, Some(1_000), vec![(998, 3), (1_000, 1)]),
        (2, Some("1998"), 1_998..2_000, None, vec![(1_998, 3)]),
        (9, Some("1998"), 1_998..2_000, None, vec![(1_998, 10)]),
    ] {
        asked.lock().expect("not poisoned").clear();
        let mut body = json!({ "Stud_id": { "low": 0, "high": 1_999 }, "limit": limit });
        if let Some(cursor) = cursor {
            body["cursor"] = json!(cursor);
        }
        let (status, answer) = json_of(ask(&router, request("GET", "/read", body.to_string())).await).await;
        let keys: Vec<i64> = answer["data"].as_array().expect("rows").iter().map(|row| row["Stud_id"].as_i64().expect("a key")).collect();
        assert_eq!((status, keys), (200, expected_keys.collect::<Vec<_>>()), "{body}");
        assert_eq!(answer.get("next_cursor"), next.map(|next: i64| json!(next.to_string())).as_ref(), "{body}");
        assert_eq!(*asked.lock().expect("not poisoned"), pages, "{body}");
    }
}

#[tokio::test]
async fn what_was_seen_after_the_header_stands_at_the_end_for_sessions() {
    for (header, expected) in [(Some("2:9"), Some("1:7,2:9")), (None, None)] {
        let mut pages = vec![page(1_000..1_001, "end", None), page(0..1, &long(), Some(1_000))];
        let (router, _machine) = played(HttpSettings::default(), move |_| pages.pop());
        let mut request = request("POST", "/read", READ);
        if let Some(header) = header {
            request.headers_mut().insert("twinshard-session", header.parse().expect("a header"));
        }
        let (status, answer) = json_of(ask(&router, request).await).await;
        assert_eq!((status, answer["data"].as_array().map(Vec::len)), (200, Some(2)));
        assert_eq!(answer.get("session"), expected.map(|session| json!(session)).as_ref());
    }
}

/// Clients that do not read hold what they were given, and no more than that.
#[tokio::test]
async fn answers_under_way_are_counted_until_they_are_sent() {
    for (settings, what) in [
        (HttpSettings { streams_max: 1, ..HttpSettings::default() }, "answers that are sent page by page"),
        (HttpSettings { requests_max: 1, ..HttpSettings::default() }, "requests with what is still being sent"),
    ] {
        let (router, _machine) = played(settings, |_| Some(page(0..1, &long(), Some(1_000))));
        let first = ask(&router, request("POST", "/read", READ)).await;
        assert_eq!(first.status(), 200);
        let second = ask(&router, request("POST", "/read", READ)).await;
        assert_eq!(second.headers()["retry-after"], "1");
        let (status, answer) = json_of(second).await;
        assert_eq!((status, &answer["code"]), (503, &json!("overloaded")), "{what}");
        assert_eq!(ask(&router, request("GET", "/healthz", "")).await.status(), 200);
        drop(first);
        assert_eq!(ask(&router, request("POST", "/read", READ)).await.status(), 200, "{what}: it is free again");
    }
}
