//! What clients and tools send that is not quite what the contract shows, as they meet it: who is let in, who is told what to change.

use super::*;
use twinshard_core::request::{ServerReply, ServerRequest};

/// A balancer whose machine answers everything with what the contract needs to go on.
fn balancer() -> Router {
    of_balancer(HttpSettings::default())
}

fn of_balancer(settings: HttpSettings) -> Router {
    let (router, _machine) = played(settings, |asked| {
        Some(match asked {
            Asked::Write { .. } => Reply::Written(Default::default()),
            Asked::Init { .. } => Reply::Initialised,
            Asked::Read { .. } | Asked::ReadPage { .. } => page(0..1, "a", None),
            Asked::PickServer { .. } => Reply::Server { id: twinshard_core::id::ServerId(3), name: "Server3".into(), number: 3 },
            _ => return None,
        })
    });
    router
}

fn server() -> Router {
    let (known, map) = watch::channel(Some((MapVersion(1), Arc::new(map()))));
    let (handle, mut asks) = ServerHandle::new(map, Telemetry::default());
    tokio::spawn(async move {
        let _known = known;
        while let Some(Ask { request, reply, .. }) = asks.recv().await {
            let answer = match request {
                ServerRequest::Shards => ServerReply::Shards { names: vec!["sh1".into()], map: None },
                _ => continue,
            };
            let _ = reply.send(answer);
        }
    });
    let identity = server::ServerIdentity { name: "Server0".into(), number: 0, standalone: None };
    server::router(handle, identity, HttpSettings::default())
}

/// What a raw request is answered: the first line's status, and everything.
async fn said(router: &Router, words: &str) -> (u16, String) {
    let answer = exchange(router.clone(), HttpSettings::default(), words.as_bytes()).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    (answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0), answer)
}

#[tokio::test]
async fn hosts_targets_and_framing_that_say_two_things_are_refused() {
    let router = balancer();
    let proxied = "HTTP/1.1\r\nHost: localhost\r\nConnection: close";
    for (words, expected) in [
        ("GET /rep HTTP/1.1\r\nHost: 0.0.0.0:5000\r\nConnection: close\r\n\r\n".to_owned(), 200),
        ("GET /rep HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n".to_owned(), 200),
        ("GET /rep HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".to_owned(), 403),
        ("GET /rep HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n".to_owned(), 400),
        ("GET /rep HTTP/1.1\r\nHost: evil.example\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_owned(), 400),
        (format!("GET http://evil.example/rep {proxied}\r\n\r\n"), 400),
        (format!("GET http://localhost/rep {proxied}\r\n\r\n"), 200),
        ("GET /rep HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), 400),
        ("GET /rep HTTP/1.0\r\n\r\n".to_owned(), 403),
        ("GET /rep HTTP/1.0\r\nHost: 10.0.0.1\r\n\r\n".to_owned(), 200),
        (format!("GET /rep {proxied}\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n"), 400),
        (format!("POST /write {proxied}\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"), 501),
        (format!("POST /write {proxied}\r\nContent-Length: 18446744073709551615\r\n\r\n{{}}"), 413),
        (format!("POST /write {proxied}\r\nContent-Length: 18446744073709551616\r\n\r\n{{}}"), 400),
        (format!("GET /rep {proxied}\r\nX: {}\r\n\r\n", "x".repeat(400_000)), 431),
        (format!("GET /rep {proxied}\r\n{}\r\n", "X: y\r\n".repeat(200)), 431),
    ] {
        let (status, answer) = said(&router, &words).await;
        assert_eq!(status, expected, "{:.300}\n{answer:.300}", words);
        assert!(answer.contains("content-type: application/json\r\n"), "{answer}");
        assert!(answer.contains("cache-control: no-store\r\n") && answer.contains("x-content-type-options: nosniff\r\n"), "{answer}");
        assert!(answer.contains("cross-origin-resource-policy: same-origin\r\n"), "{answer}");
        assert!(!answer.contains("\r\ndate:"), "simulated time has none");
    }
}

#[tokio::test]
async fn probes_need_to_know_nothing_of_a_node() {
    for (router, paths) in [(balancer(), ["/healthz", "/heartbeat"]), (server(), ["/healthz", "/heartbeat"])] {
        for path in paths {
            for head in [
                "HTTP/1.0",
                "HTTP/1.0\r\nHost: any.example",
                "HTTP/1.1\r\nConnection: close",
                "HTTP/1.1\r\nHost: lb.example\r\nConnection: close",
            ] {
                for method in ["GET", "HEAD"] {
                    let (status, answer) = said(&router, &format!("{method} {path} {head}\r\n\r\n")).await;
                    assert_eq!(status, 200, "{method} {path} {head}: {answer}");
                    assert!(method == "GET" || answer.ends_with("\r\n\r\n"), "an answer to HEAD has no body: {answer}");
                }
            }
        }
    }
    // Production says when; also where hyper refuses by itself.
    for words in ["GET /healthz HTTP/1.0\r\n\r\n", "nonsense\r\n\r\n"] {
        let settings = HttpSettings { dates: true, ..HttpSettings::default() };
        let answer = exchange(balancer(), settings, words.as_bytes()).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.contains("\r\ndate: ") && answer.contains("content-type: application/json\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn paths_and_methods_that_mean_the_same_are_the_same() {
    let (balancer, server) = (balancer(), server());
    let init = r#"{"schema":{"columns":["id"],"dtypes":["Number"]},"shards":[]}"#;
    for (router, method, path, body, expected) in [
        (&balancer, "POST", "//init", init, 200),
        (&balancer, "POST", "/init/", init, 200),
        (&balancer, "POST", "//write//", r#"{"data":[]}"#, 200),
        (&balancer, "GET", "/healthz/", "", 200),
        (&balancer, "GET", "//events/?after=0", "", 200),
        (&balancer, "GET", "/home/", "", 200),
        (&balancer, "GET", "/heartbeat", "", 200),
        (&balancer, "HEAD", "/home", "", 200),
        (&balancer, "HEAD", "/events", "", 200),
        (&balancer, "HEAD", "/openapi.json", "", 200),
        (&balancer, "HEAD", "/read", r#"{"Stud_id":1}"#, 200),
        (&balancer, "HEAD", "/write", "", 405),
        (&balancer, "HEAD", "/nowhere", "", 400),
        (&balancer, "POST", "/del", r#"{"Stud_id":1}"#, 200),
        (&balancer, "POST", "/del", "", 400),
        (&server, "GET", "//heartbeat/", "", 200),
        (&server, "HEAD", "/home", "", 200),
        (&server, "POST", "/del", "", 400),
    ] {
        let response = ask(router, request(method, path, body)).await;
        let status = response.status().as_u16();
        let told = response.into_body().collect().await.expect("whole").to_bytes();
        assert_eq!(status, expected, "{method} {path}: {told:?}");
        assert!(method != "HEAD" || told.is_empty(), "{method} {path}");
    }
}

#[tokio::test]
async fn bodies_are_read_as_they_were_meant_or_refused() {
    let router = balancer();
    let row = |value: &str| format!(r#"{{"data":[{{"Stud_id":1,"Stud_name":{value}}}]}}"#);
    for (path, body, expected, code) in [
        ("/write", row("18446744073709551616"), 400, "bad-row"),
        ("/write", row("-9223372036854775809"), 400, "bad-row"),
        ("/write", row("9223372036854775808"), 400, "bad-row"),
        ("/write", " \u{feff}".to_owned(), 400, "bad-json"),
        ("/write", "\u{feff} ".to_owned(), 400, "invalid-request"),
        ("/write", row("123456789012345678901"), 400, "bad-row"),
        ("/write", row("1e-400"), 400, "bad-row"),
        ("/write", row("1e3"), 200, ""),
        ("/write", r#"{"data":[{"Stud_id":2e2,"Stud_name":"a"}]}"#.to_owned(), 200, ""),
        ("/write", r#"{"data":[{"Stud_id":-0,"Stud_name":"a"}]}"#.to_owned(), 200, ""),
        ("/write", format!("\u{feff}{}", row("1")), 200, ""),
        ("/write", r#"{"data":[],"curr_idx":1,"followers":[],"logRequests":true,"x":1}"#.to_owned(), 200, ""),
        ("/write", r#"{"data":[],"onconflict":"skip"}"#.to_owned(), 400, "unknown-field"),
        ("/read", r#"{"Stud_id":1,"consistancy":"stale"}"#.to_owned(), 400, "unknown-field"),
        ("/read", r#"{"Stud_id":1,"curr_idx":18446744073709551616}"#.to_owned(), 400, "invalid-request"),
        ("/init", r#"{"schema":{"columns":["limit"],"dtypes":["Number"]},"shards":[]}"#.to_owned(), 400, "invalid-request"),
    ] {
        let (status, answer) = json_of(ask(&router, request("POST", path, body.clone())).await).await;
        let code = if code.is_empty() { Value::Null } else { json!(code) };
        assert_eq!((status, answer.get("code").cloned().unwrap_or_default()), (expected, code), "{path} {body}: {answer}");
    }
    let servers: serde_json::Map<String, Value> = (0..10).map(|number| (format!("Server{number}"), json!(["sh1"]))).collect();
    let init = json!({
        "N": 3, "schema": { "columns": ["id"], "dtypes": ["Number"] }, "shards": [{ "id_low": 0, "Shard_id": "sh1", "Shard_size": 9 }],
        "servers": servers,
    });
    let (status, answer) = json_of(ask(&router, request("POST", "/init", init.to_string())).await).await;
    assert_eq!((status, &answer["message"]), (400, &json!("<Error> N is 3 but 10 servers are given")));
    assert!(answer["hint"].as_str().is_some_and(|hint| hint.starts_with("leave N out")), "{answer}");
    let mut packed = request("POST", "/write", row("1"));
    packed.headers_mut().insert("content-encoding", "gzip".parse().expect("a header"));
    let (status, answer) = json_of(ask(&router, packed).await).await;
    assert_eq!((status, &answer["code"], &answer["applied"]), (415, &json!("unsupported-encoding"), &json!("no")));
    let mut plain = request("POST", "/write", row("1"));
    plain.headers_mut().insert("content-encoding", "identity".parse().expect("a header"));
    assert_eq!(ask(&router, plain).await.status(), 200);
}

#[tokio::test]
async fn a_page_that_was_let_in_may_ask_and_read() {
    let settings = HttpSettings { allow_origins: vec!["https://app.example".to_owned()], ..HttpSettings::default() };
    let (router, closed) = (of_balancer(settings), balancer());
    let from = |method: &str, headers: &[(&'static str, &str)]| {
        let mut request = request(method, "/write", if method == "POST" { r#"{"data":[]}"# } else { "" });
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().expect("a header"));
        }
        request
    };
    let page = ("origin", "https://app.example");
    let response = ask(&router, from("OPTIONS", &[page, ("access-control-request-method", "POST")])).await;
    assert_eq!(response.status(), 204);
    for (name, value) in [
        ("access-control-allow-origin", "https://app.example"),
        ("access-control-allow-methods", "GET, HEAD, POST, PUT, DELETE"),
        ("vary", "Origin"),
    ] {
        assert_eq!(response.headers()[name], value);
    }
    let response = ask(&router, from("POST", &[page])).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["access-control-allow-origin"]),
        (200, &"https://app.example".parse().expect("a header"))
    );
    for (router, headers) in [(&router, ("origin", "http://evil.example")), (&closed, page), (&router, ("sec-fetch-site", "same-site"))] {
        let response = ask(router, from("POST", &[headers])).await;
        assert!(!response.headers().contains_key("access-control-allow-origin"));
        let (status, answer) = json_of(response).await;
        assert_eq!((status, &answer["code"]), (403, &json!("forbidden-origin")), "{headers:?}");
        assert!(answer["message"].as_str().is_some_and(|words| words.contains("--allow-origin")), "{answer}");
    }
}

/// What is refused of 24 clients that read nothing takes no memory of theirs.
#[tokio::test]
async fn an_error_is_small_however_large_its_cause() {
    let router = balancer();
    let long = "a".repeat(20 << 20);
    for (method, path, body) in [
        ("POST", "/read".to_owned(), format!(r#"{{"Stud_id":1,"consistency":"{long}"}}"#)),
        ("POST", "/primary_elect".to_owned(), format!(r#"{{"shard":"{long}"}}"#)),
        ("POST", "/rm".to_owned(), format!(r#"{{"n":1,"servers":["{long}"]}}"#)),
        ("POST", "/drain".to_owned(), format!(r#"{{"server":"{long}"}}"#)),
        ("POST", "/add".to_owned(), format!(r#"{{"n":1,"hostnames":["{long}"]}}"#)),
        ("GET", format!("/{}", &long[..60_000]), String::new()),
        ("POST", format!("/{}", &long[..60_000]), String::new()),
        (&long[..1_000], "/write".to_owned(), String::new()),
    ] {
        let response = ask(&router, request(method, &path, body)).await;
        let status = response.status();
        let told = response.into_body().collect().await.expect("whole").to_bytes();
        assert!(status.is_client_error() && told.len() < 2_000, "{method:.20} {path:.20}: {status}, {} bytes", told.len());
    }
}
