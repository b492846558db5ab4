//! What there is before and around /init: refusals that leave nothing behind, the plain load balancer of stage 1, paths, methods, bodies.

use super::*;

/// /init with one thing changed.
fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut init = init();
    change(&mut init);
    init
}

#[test]
fn init_that_is_wrong_creates_nothing() {
    let Cluster { api, .. } = &Cluster::empty();
    let shard = |name: &str, low: i64, size: i64| json!({ "Stud_id_low": low, "Shard_id": name, "Shard_size": size });
    let bad_name = "is not a server name: use 1 to 63 letters, digits, '_', '.' and '-'";
    for (body, message) in [
        (with(|init| init["N"] = json!(4)), "N is 4 but 3 servers are given".to_owned()),
        (with(|init| init["N"] = json!(2)), "N is 2 but 3 servers are given".into()),
        (with(|init| init["N"] = json!("three")), "'N' must be a whole number of at least 0, not \"three\"".into()),
        (
            with(|init| {
                init["servers"]["bad name"] = json!(["sh1"]);
                init["N"] = json!(4);
            }),
            format!("'bad name' {bad_name}"),
        ),
        (with(|init| init["servers"]["Server0"] = json!(["sh1", "sh2", "sh9"])), "Server 'Server0' names the unknown shard 'sh9'".into()),
        (with(|init| init["servers"]["Server0"] = json!(["sh1", "sh1"])), "Server 'Server0' names the shard 'sh1' twice".into()),
        (with(|init| init["shards"][1] = shard("sh1", 4096, 1)), "Shard 'sh1' stands twice".into()),
        (with(|init| init["shards"][1] = shard("sh2", 4095, 4096)), "Shards 'sh1' and 'sh2' overlap".into()),
        (with(|init| init["shards"][1] = shard("sh2", 4096, 0)), "Shard 'sh2' has size 0; it must be at least 1".into()),
        (with(|init| init["shards"][1] = shard("sh2", 4096, -1)), "Shard 'sh2' has size -1; it must be at least 1".into()),
        (with(|init| init["shards"][0] = shard("sh1", -1, 10)), "Shard 'sh1' begins at -1; it must be at least 0".into()),
        (with(|init| init["shards"][2] = shard("sh3", i64::MAX, 2)), "Shard 'sh3' ends beyond the largest key".into()),
        (with(|init| init["shards"].as_array_mut().unwrap().push(shard("sh4", 90_000, 1))), "Shard 'sh4' is held by no server".into()),
        (with(|init| init["shards"] = json!([])), "At least one shard is needed".into()),
        (with(|init| init["shards"] = Value::Null), "'shards' is missing".into()),
        (with(|init| init["schema"] = Value::Null), "'schema' is missing".into()),
        (with(|init| init["schema"]["dtypes"] = json!(["Number", "String"])), "3 columns but 2 dtypes".into()),
        (
            with(|init| init["schema"]["dtypes"] = json!(["String", "String", "String"])),
            "the first column 'Stud_id' is the key and must be a Number".into(),
        ),
        (
            with(|init| init["schema"]["dtypes"] = json!(["Number", "Text", "String"])),
            "'Text' is no dtype: use Number, String, Float or Boolean".into(),
        ),
        (with(|init| init["schema"]["columns"] = json!(["a", "B", "b"])), "column 'b' stands twice (case is ignored)".into()),
        (with(|init| init["on_conflict"] = json!("ignore")), "'on_conflict' must be replace, error or skip, not \"ignore\"".into()),
    ] {
        api.refuses(("POST", "/init", body, 400, "invalid-request", &format!("<Error> {message}")));
    }
    let twice = init().to_string().replace("\"Server1\"", "\"Server0\"");
    let answer = wire::send(&api.address, "POST", "/init", &[], twice.as_bytes());
    assert_eq!((answer.status, &answer.json()["code"]), (400, &json!("bad-json")), "a server that stands twice");
    let status = api.status();
    assert_eq!((&status["N"], &status["schema"], &status["shards"], &status["servers"]), (&json!(0), &Value::Null, &json!([]), &json!({})));
}

#[test]
fn nothing_is_served_before_init_and_a_second_one_is_refused() {
    let Cluster { api, .. } = &Cluster::empty();
    let words = "<Error> The cluster is not configured yet";
    let new_shard = json!([{ "Stud_id_low": 0, "Shard_id": "sh1", "Shard_size": 1 }]);
    api.refuses_all([
        ("GET", "/read", json!({ "Stud_id": { "low": 0, "high": 1 } }), 400, "not-initialised", words),
        ("POST", "/write", json!({ "data": [row(1, "a")] }), 400, "not-initialised", words),
        ("PUT", "/update", json!({ "Stud_id": 1, "data": row(1, "a") }), 400, "not-initialised", words),
        ("DELETE", "/del", json!({ "Stud_id": 1 }), 400, "not-initialised", words),
        ("POST", "/add", json!({ "n": 1, "new_shards": new_shard }), 400, "not-initialised", words),
        ("GET", "/read/Server0", Value::Null, 400, "no-such-server", "<Error> Requested server does not exist"),
        ("GET", "/primary_elect", json!({ "shard": "sh1" }), 400, "no-such-shard", "<Error> Shard 'sh1' does not exist"),
        ("GET", "/home", Value::Null, 503, "no-server", "<Error> No server is available"),
    ]);
    api.is("POST", "/init", init(), json!({ "message": "Configured Database", "status": "success" }));
    api.refuses(("POST", "/init", init(), 409, "already-initialised", "<Error> The cluster is configured already"));
    let status = api.status();
    assert_eq!((&status["N"], &status["schema"], &status["servers"]), (&json!(3), &init()["schema"], &init()["servers"]));
    let shards: Vec<Value> = status["shards"]
        .as_array()
        .unwrap()
        .iter()
        .map(|shard| json!({ "Stud_id_low": shard["Stud_id_low"], "Shard_id": shard["Shard_id"], "Shard_size": shard["Shard_size"] }))
        .collect();
    assert_eq!(json!(shards), init()["shards"]);
    for shard in status["shards"].as_array().unwrap() {
        let (name, primary) = (shard["Shard_id"].as_str().unwrap(), shard["primary_server"].as_str().unwrap());
        assert!(status["servers"][primary].as_array().unwrap().contains(&json!(name)), "{primary} leads {name}");
    }
}

#[test]
fn stage_one_adds_and_removes_plain_servers() {
    let Cluster { api, .. } = &Cluster::empty();
    let rep = |names: &[&str]| json!({ "message": { "N": names.len(), "replicas": names }, "status": "successful" });
    api.is("GET", "/rep", Value::Null, rep(&[]));
    let four = rep(&["S5", "S4", "Server 0", "Server 1"]);
    api.is("POST", "/add", json!({ "n": 4, "hostnames": ["S5", "S4"] }), four.clone());
    api.is("GET", "/rep", Value::Null, four);
    assert_eq!((&api.status()["N"], &api.status()["schema"]), (&json!(4), &Value::Null));
    let too_many = "<Error> Length of hostname list is more than newly added instances";
    let too_many_to_remove = "<Error> Length of hostname list is more than removable instances";
    api.refuses_all([
        ("POST", "/add", json!({ "n": 1, "hostnames": ["S6", "S7"] }), 400, "too-many-hostnames", too_many),
        ("POST", "/add", json!({ "n": 1, "hostnames": ["S5"] }), 409, "refused", "<Error> Server 'S5' exists already"),
        ("DELETE", "/rm", json!({ "n": 1, "hostnames": ["S5", "S4"] }), 400, "too-many-hostnames", too_many_to_remove),
        ("DELETE", "/rm", json!({ "n": 1, "hostnames": ["S9"] }), 400, "invalid-request", "<Error> Server 'S9' does not exist"),
    ]);
    // The numbers are the trailing digits of the names, where they are free.
    for _ in 0..20 {
        let answer = api.ok("GET", "/home", Value::Null);
        let message = answer["message"].as_str().unwrap();
        let number: u64 = message.strip_prefix("Hello from Server: ").unwrap().parse().unwrap();
        assert!([0, 1, 4, 5].contains(&number), "{message}");
        assert_eq!(answer, json!({ "message": message, "status": "successful" }));
    }
    api.is("DELETE", "/rm", json!({ "n": 2, "hostnames": ["S5", "Server 0"] }), rep(&["S4", "Server 1"]));
    api.is("DELETE", "/rm", json!({ "n": 100, "hostnames": ["S4"] }), rep(&[]));
    // What an /init names is taken up, the rest is retired.
    api.is("POST", "/add", json!({ "n": 2, "hostnames": ["Server2", "S9"] }), rep(&["Server 2", "S9"]));
    api.is("POST", "/init", init(), json!({ "message": "Configured Database", "status": "success" }));
    api.is("GET", "/rep", Value::Null, rep(&["Server 2", "Server 0", "Server 1"]));
}

#[test]
fn unknown_paths_methods_and_bodies_are_refused_in_json() {
    let Cluster { api, .. } = &Cluster::initialised();
    let missing = "<Error> '/other' endpoint does not exist in server replicas";
    api.refuses_all([
        ("GET", "/other", Value::Null, 400, "no-such-endpoint", missing),
        ("POST", "/other", Value::Null, 404, "no-such-endpoint", "<Error> '/other' endpoint does not exist"),
        ("DELETE", "/other", Value::Null, 404, "no-such-endpoint", "<Error> '/other' endpoint does not exist"),
        ("GET", "/init", Value::Null, 405, "method-not-allowed", "<Error> GET is not a method of /init; use POST"),
        ("PATCH", "/write", Value::Null, 405, "method-not-allowed", "<Error> PATCH is not a method of /write; use POST"),
        ("PUT", "/rm", Value::Null, 405, "method-not-allowed", "<Error> PUT is not a method of /rm; use DELETE or POST"),
        ("OPTIONS", "/status", Value::Null, 405, "method-not-allowed", "<Error> OPTIONS is not a method of /status; use GET"),
        ("POST", "/write", json!([]), 400, "bad-json", "<Error> The body must be a JSON object"),
        ("POST", "/write", json!("data"), 400, "bad-json", "<Error> The body must be a JSON object"),
        ("POST", "/write", Value::Null, 400, "invalid-request", "<Error> 'data' is missing"),
    ]);
    assert_eq!(api.ask("PUT", "/rm", &Value::Null).header("allow"), Some("DELETE, POST"));
    for body in [&b"{"[..], b"{\"data\": [}", b"\xff\xfe", b"nonsense", b"{}{}", &b"[".repeat(10_000)] {
        let answer = wire::send(&api.address, "POST", "/write", &[], body);
        let json = answer.json();
        assert_eq!((answer.status, &json["code"], &json["applied"]), (400, &json!("bad-json"), &json!("no")), "{json}");
    }
    // Whatever it says that it is.
    for (number, kind) in ["text/plain", "application/x-www-form-urlencoded", "nonsense"].into_iter().enumerate() {
        let body = json!({ "data": [row(number.try_into().unwrap(), "a")] }).to_string();
        let answer = wire::send(&api.address, "POST", "/write", &[("Content-Type", kind)], body.as_bytes());
        assert_eq!((answer.status, &answer.json()["message"]), (200, &json!("1 Data entries added")), "{kind}");
    }
    for (bytes, status, code) in [(32 << 20, 400, "invalid-request"), ((32 << 20) + 1, 413, "body-too-large")] {
        let answer = wire::send(&api.address, "POST", "/write", &[], &vec![b' '; bytes]);
        assert_eq!((answer.status, &answer.json()["code"]), (status, &json!(code)), "{bytes} bytes");
    }
}

#[test]
fn what_is_no_request_is_refused_in_json_too() {
    let Cluster { api, .. } = &Cluster::empty();
    let long_path = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "a".repeat(70_000));
    let many_headers = format!("GET /rep HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: 1\r\n".repeat(200));
    for (words, status, code) in [
        ("nonsense\r\n\r\n", 400, "bad-http"),
        ("GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "bad-http"),
        ("POST /write HTTP/1.1\r\nHost: localhost\r\nContent-Length: many\r\n\r\n", 400, "bad-http"),
        ("\u{16}\u{3}\u{1}\0\u{1}", 400, "bad-http"),
        (&long_path, 414, "path-too-long"),
        (&many_headers, 431, "headers-too-large"),
        ("GET /rep HTTP/1.0\r\n\r\n", 403, "forbidden-host"),
        ("GET /rep HTTP/1.1\r\nConnection: close\r\n\r\n", 400, "bad-header"),
        ("GET /rep HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 400, "bad-header"),
        ("GET http://evil.example/rep HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 400, "bad-header"),
        ("POST /write HTTP/1.1\r\nHost: localhost\r\nContent-Length: 18446744073709551615\r\n\r\n", 413, "body-too-large"),
        (
            "POST /write HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            501,
            "unsupported-encoding",
        ),
        ("POST /write HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "bad-body"),
        ("POST /write HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n", 413, "body-too-large"),
    ] {
        let answer = wire::exchange(&api.address, words.as_bytes());
        let body = answer.json();
        let of = &words[..words.len().min(60)];
        assert_eq!((answer.status, &body["code"], &body["status"]), (status, &json!(code), &json!("failure")), "{of}");
        assert_eq!((&body["applied"], &body["retryable"]), (&json!("no"), &json!(false)), "{of}");
    }
    assert_eq!(api.status()["N"], 0);
}

#[test]
fn web_pages_of_others_are_refused() {
    let Cluster { api, .. } = &Cluster::empty();
    let own = format!("http://{}", api.address);
    for (header, value, status) in [
        ("Host", "localhost", 200),
        ("Host", "localhost:80", 200),
        ("Host", "[::1]:5000", 200),
        ("Host", "0.0.0.0:5000", 200),
        ("Host", "192.168.1.7", 200),
        ("Host", "evil.example", 403),
        ("Origin", own.as_str(), 200),
        ("Origin", "http://evil.example", 403),
        ("Origin", "null", 403),
        ("Sec-Fetch-Site", "none", 200),
        ("Sec-Fetch-Site", "same-origin", 200),
        ("Sec-Fetch-Site", "same-site", 200),
        ("Sec-Fetch-Site", "cross-site", 403),
    ] {
        let answer = api.ask_with("GET", "/rep", &[(header, value)], &Value::Null);
        let json = answer.json();
        assert_eq!(answer.status, status, "{header}: {value}");
        assert_eq!(json["status"], if status == 200 { "successful" } else { "failure" });
    }
}
