//! Every refusal: its status, and what it says of what was applied.

use super::*;
use crate::telemetry::Telemetry;
use twinshard_core::{
    id::Position,
    request::{Applied, RequestError, ServerReply, ShardPart, Written},
};

const WRITE: &str = r#"{"data": [{"Stud_id": 1, "Stud_name": "a"}, {"Stud_id": 1001, "Stud_name": "b"}]}"#;

fn part(applied: Applied, error: Option<RequestError>) -> ShardPart {
    ShardPart { applied, error: error.map(Box::new), seen: (applied == Applied::Yes).then_some((ShardId(2), Position::default())) }
}

/// A write that the machine answers so: status, body, and whether it says when to ask again.
async fn write_met(error: RequestError) -> (u16, Value, bool) {
    let (router, _machine) = played(HttpSettings::default(), move |_| Some(Reply::Failed(error.clone())));
    let response = ask(&router, request("POST", "/write", WRITE)).await;
    let retry_after = response.headers().contains_key("retry-after");
    let (status, body) = json_of(response).await;
    (status, body, retry_after)
}

#[tokio::test]
async fn refusals_of_the_machine_say_what_was_applied_and_whether_to_ask_again() {
    use RequestError::{
        AlreadyInitialised, Exists, Invalid, KeyReused, Missing, NoServer, NotInitialised, OutOfRange, OutcomeUnknown, Overloaded, Refused,
        RegisterUnavailable, ShardUnavailable, StillChanging,
    };
    for (error, status, code, applied, retryable, message) in [
        (NotInitialised, 400, "not-initialised", "no", false, "<Error> The cluster is not configured yet"),
        (AlreadyInitialised, 409, "already-initialised", "no", false, "<Error> The cluster is configured already"),
        (Invalid("what".into()), 400, "invalid-request", "no", false, "<Error> what"),
        (Refused("what".into()), 409, "refused", "no", false, "<Error> what"),
        (OutOfRange(Key(5)), 400, "key-out-of-range", "no", false, "<Error> Key 5 is outside every shard's range"),
        (Exists(vec![Key(5), Key(6)]), 409, "key-exists", "no", false, "<Error> Keys exist already: 5, 6"),
        (Missing(vec![Key(5)]), 404, "no-such-row", "no", false, "<Error> No row with key 5"),
        (KeyReused, 422, "idempotency-key-reused", "no", false, "<Error> This Idempotency-Key was used with another body"),
        (Overloaded, 503, "overloaded", "no", true, "<Error> Too many requests at once"),
        (
            ShardUnavailable("sh1".into()),
            503,
            "shard-unavailable",
            "no",
            true,
            "<Error> Shard 'sh1' has no replica that can serve this now",
        ),
        (NoServer, 503, "no-server", "no", true, "<Error> No server is available"),
        (RegisterUnavailable, 503, "register-unavailable", "no", true, "<Error> The metadata register does not answer"),
        (OutcomeUnknown, 504, "outcome-unknown", "unknown", true, "<Error> The deadline passed before the outcome was known"),
        (
            StillChanging,
            504,
            "still-changing",
            "partial",
            true,
            "<Error> The deadline passed before the change was complete; it goes on: ask again",
        ),
    ] {
        let (met, body, retry_after) = write_met(error.clone()).await;
        let hint = body["hint"].as_str().expect("a hint").to_owned();
        assert!(!hint.is_empty(), "{error:?}");
        let expected = json!({
            "message": message, "status": "failure", "code": code, "applied": applied, "retryable": retryable, "hint": hint,
        });
        assert_eq!((met, body, retry_after), (status, expected, status == 503), "{error:?}");
    }
}

#[tokio::test]
async fn parts_that_differ_are_answered_as_the_worst() {
    let unknown = RequestError::OutcomeUnknown;
    for (first, second, status, applied) in [
        (part(Applied::No, Some(RequestError::Exists(vec![Key(1)]))), part(Applied::Yes, None), 409, "partial"),
        (part(Applied::Unknown, Some(unknown.clone())), part(Applied::Yes, None), 504, "partial"),
        (part(Applied::Unknown, Some(unknown.clone())), part(Applied::Unknown, Some(unknown)), 504, "unknown"),
        (part(Applied::No, Some(RequestError::Overloaded)), part(Applied::Yes, None), 503, "partial"),
        (
            part(Applied::No, Some(RequestError::Exists(vec![Key(1)]))),
            part(Applied::No, Some(RequestError::ShardUnavailable("sh2".into()))),
            503,
            "no",
        ),
    ] {
        let names = |part: &ShardPart| match part.applied {
            Applied::No => "no",
            Applied::Yes => "yes",
            Applied::Partial => "partial",
            Applied::Unknown => "unknown",
        };
        let (one, two) = (names(&first), names(&second));
        let (met, body, _) = write_met(RequestError::Parts([("sh1".into(), first), ("sh2".into(), second)].into())).await;
        assert_eq!((met, &body["applied"], &body["status"]), (status, &json!(applied), &json!("failure")), "{body}");
        assert_eq!((&body["shards"]["sh1"]["applied"], &body["shards"]["sh2"]["applied"]), (&json!(one), &json!(two)), "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_silent_leaves_the_outcome_unknown_at_the_deadline() {
    let (router, _machine) = played(HttpSettings::default(), |_| None);
    for (method, path, body, seconds) in [
        ("POST", "/write", WRITE, 10),
        ("GET", "/read", r#"{"Stud_id": {"low": 0, "high": 5}}"#, 10),
        ("GET", "/home", "", 10),
        ("POST", "/add", r#"{"n": 1}"#, 120),
        ("DELETE", "/rm", r#"{"n": 1}"#, 120),
    ] {
        let began = tokio::time::Instant::now();
        let (status, answer) = json_of(ask(&router, request(method, path, body)).await).await;
        assert_eq!((status, &answer["applied"], &answer["retryable"]), (504, &json!("unknown"), &json!(true)), "{path}");
        let waited = began.elapsed();
        assert!(waited >= Duration::from_secs(seconds) && waited < Duration::from_secs(seconds + 1), "{path} waited {waited:?}");
    }
}

#[tokio::test]
async fn a_machine_that_is_gone_leaves_the_outcome_unknown_or_refuses() {
    let (router, machine) = played(HttpSettings::default(), |_| None);
    machine.abort();
    assert!(machine.await.is_err());
    let (status, answer) = json_of(ask(&router, request("POST", "/write", WRITE)).await).await;
    assert_eq!((status, &answer["applied"]), (503, &json!("no")), "nobody took the request");
}

#[tokio::test]
async fn one_request_more_than_are_allowed_at_once_is_told_to_come_again() {
    let settings = HttpSettings { requests_max: 2, ..HttpSettings::default() };
    let (router, machine, waiting) = with_two_waiting(settings, WRITE).await;
    assert_eq!(ask(&router, request("GET", "/healthz", "")).await.status(), StatusCode::OK, "probes have places of their own");
    let response = ask(&router, request("GET", "/read", r#"{"Stud_id": 1}"#)).await;
    assert_eq!(response.headers()["retry-after"], "1");
    let (status, body) = json_of(response).await;
    assert_eq!((status, &body["code"], &body["applied"]), (503, &json!("overloaded"), &json!("no")));
    machine.abort();
    for waiting in waiting {
        assert_eq!(waiting.await.expect("answered"), 504, "it had been taken");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_given_up() {
    let (router, _machine) = played(HttpSettings::default(), |_| None);
    let slow = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
    let (status, body) = json_of(ask(&router, request("POST", "/write", slow)).await).await;
    assert_eq!((status, &body["code"], &body["applied"]), (408, &json!("slow-body"), &json!("no")));
}

#[tokio::test]
async fn clients_that_stop_midway_are_told_and_let_go() {
    let settings = HttpSettings { read_timeout: Duration::from_millis(100), ..HttpSettings::default() };
    for (words, status, code) in [
        ("POST /wri", "408 Request Timeout", "slow-headers"),
        ("POST /write HTTP/1.1\r\nHost: localhost\r\nConte", "408 Request Timeout", "slow-headers"),
        ("POST /write HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{\"data\":", "408 Request Timeout", "slow-body"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400 Bad Request", "bad-http"),
    ] {
        let (router, _machine) = played(settings.clone(), |_| None);
        let answer = String::from_utf8(exchange(router, settings.clone(), words.as_bytes()).await).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{words}: {answer}");
        assert!(head.to_lowercase().contains(&format!("content-length: {}", body.len())), "{words}: {answer}");
        let body: Value = serde_json::from_str(body).expect("JSON");
        assert_eq!((&body["code"], &body["applied"], &body["status"]), (&json!(code), &json!("no"), &json!("failure")), "{words}");
    }
}

#[tokio::test]
async fn a_connection_that_was_answered_ends_without_another_word() {
    let short = Duration::from_millis(100);
    let settings = HttpSettings { read_timeout: short, idle_timeout: short, ..HttpSettings::default() };
    for then in ["", "GET /hea"] {
        let (router, _machine) = played(settings.clone(), |_| None);
        let words = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n{then}");
        let answer = String::from_utf8(exchange(router, settings.clone(), words.as_bytes()).await).expect("text");
        assert_eq!((answer.starts_with("HTTP/1.1 200 OK\r\n"), answer.matches("HTTP/1.1").count()), (true, 1), "{answer}");
    }
}

#[tokio::test]
async fn a_body_of_unknown_length_is_refused_once_it_is_too_long() {
    let settings = HttpSettings { body_bytes_max: 1_000, ..HttpSettings::default() };
    let (router, _machine) = played(settings, |_| Some(Reply::Written(Written::default())));
    let body = |bytes: usize| {
        let spaces = std::iter::repeat_n(Bytes::from_static(b"     "), bytes / 5).map(Ok::<_, std::io::Error>);
        Body::from_stream(futures_util::stream::iter(spaces.chain([Ok(Bytes::from_static(br#"{"data":[]}"#))])))
    };
    let (status, answer) = json_of(ask(&router, request("POST", "/write", body(900))).await).await;
    assert_eq!((status, &answer["message"]), (200, &json!("0 Data entries added")));
    let (status, answer) = json_of(ask(&router, request("POST", "/write", body(1_000))).await).await;
    assert_eq!((status, &answer["code"], &answer["applied"]), (413, &json!("body-too-large"), &json!("no")));
}

#[tokio::test]
async fn a_key_is_free_again_only_where_no_shard_was_reached() {
    for (first, second_status) in [
        (Reply::Written(Written::default()), 422),
        (Reply::Failed(RequestError::Exists(vec![Key(1)])), 422),
        (Reply::Failed(RequestError::OutcomeUnknown), 422),
        (Reply::Failed(RequestError::Overloaded), 200),
        (Reply::Failed(RequestError::ShardUnavailable("sh1".into())), 200),
        (Reply::Failed(RequestError::OutOfRange(Key(1))), 200),
    ] {
        let mut replies = vec![Reply::Written(Written::default()), first.clone()];
        let (router, _machine) = played(HttpSettings::default(), move |_| replies.pop());
        let with_key = |body: &'static str| {
            let mut request = request("POST", "/write", body);
            request.headers_mut().insert("idempotency-key", "k".parse().expect("a header"));
            request
        };
        ask(&router, with_key(WRITE)).await;
        let second = ask(&router, with_key(r#"{"data": [{"Stud_id": 1001, "Stud_name": "c"}]}"#)).await;
        assert_eq!(second.status().as_u16(), second_status, "{first:?}");
    }
}

#[tokio::test]
async fn other_methods_are_told_which_there_are() {
    let (balancer, _machine) = played(HttpSettings::default(), |_| None);
    let (handle, _asks) = ServerHandle::new(watch::channel(None).1, Telemetry::default());
    let identity = server::ServerIdentity { name: "Server0".into(), number: 0, standalone: None };
    let server = server::router(handle, identity, HttpSettings::default());
    for (router, path, methods) in [
        (&balancer, "/init", "POST"),
        (&balancer, "/status", "GET, HEAD"),
        (&balancer, "/add", "POST"),
        (&balancer, "/rm", "DELETE, POST"),
        (&balancer, "/rep", "GET, HEAD"),
        (&balancer, "/read", "GET, HEAD, POST"),
        (&balancer, "/read/Server0", "GET, HEAD"),
        (&balancer, "/write", "POST"),
        (&balancer, "/update", "PUT"),
        (&balancer, "/del", "DELETE, POST"),
        (&balancer, "/primary_elect", "GET, HEAD, POST, PUT"),
        (&balancer, "/primary-elect", "GET, HEAD, POST, PUT"),
        (&balancer, "/home", "GET, HEAD"),
        (&server, "/heartbeat", "GET, HEAD"),
        (&server, "/home", "GET, HEAD"),
        (&server, "/copy", "GET, HEAD"),
        (&server, "/read", "GET, HEAD, POST"),
        (&server, "/write", "POST"),
        (&server, "/update", "PUT"),
        (&server, "/del", "DELETE, POST"),
        (&server, "/config", "POST"),
        (&server, "/get_wal", "GET, HEAD"),
        (&server, "/get_wal_count", "GET, HEAD"),
    ] {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "BREW"] {
            if methods.split(", ").any(|own| own == method) {
                continue;
            }
            let response = ask(router, request(method, path, "not even JSON")).await;
            assert_eq!((response.status().as_u16(), &response.headers()["allow"]), (405, &methods.parse().expect("a header")));
            // The answer to HEAD has no body, by what HEAD is.
            if method != "HEAD" {
                let (_, body) = json_of(response).await;
                assert_eq!((&body["code"], &body["status"]), (&json!("method-not-allowed"), &json!("failure")), "{method} {path}");
            }
        }
    }
}

/// By what routers say that they take.
#[tokio::test]
async fn documents_have_the_methods_that_routers_have() {
    let (balancer, _machine) = played(HttpSettings::default(), |_| None);
    let (handle, _asks) = ServerHandle::new(watch::channel(None).1, Telemetry::default());
    let identity = server::ServerIdentity { name: "Server0".into(), number: 0, standalone: None };
    let server = server::router(handle, identity, HttpSettings::default());
    for (router, own) in [(&balancer, openapi::BALANCER), (&server, openapi::SERVER)] {
        for endpoint in own.iter().chain(openapi::EVERY) {
            let response = ask(router, request("PATCH", &endpoint.path.replace("{server}", "Server0"), Body::empty())).await;
            let allowed = response.headers()["allow"].to_str().expect("text");
            let methods = endpoint.methods.join(", ").replace("GET", "GET, HEAD");
            assert_eq!((response.status().as_u16(), allowed), (405, methods.as_str()), "{}", endpoint.path);
        }
    }
}

#[tokio::test]
async fn a_server_says_what_its_own_shards_cannot_serve() {
    let (known, map) = watch::channel(Some((MapVersion(1), Arc::new(map()))));
    let (handle, mut asks) = ServerHandle::new(map, Telemetry::default());
    tokio::spawn(async move {
        let _known = known;
        while let Some(ask) = asks.recv().await {
            let _ = ask.reply.send(ServerReply::Failed(RequestError::ShardUnavailable("sh1".into())));
        }
    });
    let identity = server::ServerIdentity { name: "Server0".into(), number: 0, standalone: None };
    let router = server::router(handle, identity, HttpSettings::default());
    let body = r#"{"shard": "sh1", "data": [{"Stud_id": 1, "Stud_name": "a"}]}"#;
    let response = ask(&router, request("POST", "/write", body)).await;
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(json_of(response).await.1["code"], "shard-unavailable");
}
