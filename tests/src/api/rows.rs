//! /write, /update, /del and /read: what may be written, what comes back, conflicts, keys of clients, sessions, pages.

use super::*;

fn added(count: usize) -> Value {
    json!({ "message": format!("{count} Data entries added"), "status": "success" })
}

#[test]
fn rows_are_written_read_changed_and_removed() {
    let Cluster { api, .. } = &Cluster::initialised();
    let rows = json!([row(2255, "GHI"), { "Stud_id": "1000", "Stud_name": 7, "Stud_marks": "27" }, row(8889, "XYZ"), row(5000, "")]);
    // Other top-level fields are ignored, as the course's own balancers send them.
    let write = json!({ "data": rows, "curr_idx": 5, "followers": ["Server1"], "logRequests": true });
    api.is("POST", "/write", write, added(4));
    let stored = [json!({ "Stud_id": 1000, "Stud_name": 7, "Stud_marks": "27" }), row(2255, "GHI"), row(5000, ""), row(8889, "XYZ")];
    let whole = json!({ "shards_queried": ["sh1", "sh2", "sh3"], "data": stored, "status": "success" });
    for (method, low, high) in
        [("GET", json!(1000), json!(8889)), ("POST", json!("1000"), json!("8889")), ("GET", json!(-5), json!(99_999))]
    {
        api.is(method, "/read", json!({ "Stud_id": { "low": low, "high": high } }), whole.clone());
    }
    for (low, high, shards, data) in [
        (1001, 2254, json!(["sh1"]), json!([])),
        (2255, 2255, json!(["sh1"]), json!([stored[1]])),
        (4095, 4096, json!(["sh1", "sh2"]), json!([])),
        (12_288, 99_999, json!([]), json!([])),
    ] {
        let expected = json!({ "shards_queried": shards, "data": data, "status": "success" });
        api.is("GET", "/read", json!({ "Stud_id": { "low": low, "high": high } }), expected);
    }
    // Nothing of this body is a range.
    for (range, message) in [
        (json!({ "low": 2, "high": 1 }), "low (2) is greater than high (1)"),
        (json!({ "low": 2 }), "'high' is missing"),
        (json!({ "low": "a", "high": 1 }), "'low' must be a whole number of 64 bits, not \"a\""),
        (Value::Null, "'Stud_id' is missing"),
    ] {
        api.refuses(("GET", "/read", json!({ "Stud_id": range }), 400, "invalid-request", &format!("<Error> {message}")));
    }

    let updated = json!({ "message": "Data entry for Stud_id: 2255 updated", "status": "success" });
    api.is(
        "PUT",
        "/update",
        json!({ "Stud_id": 2255, "data": { "Stud_id": "2255", "Stud_name": "new", "Stud_marks": 30 } }),
        updated.clone(),
    );
    api.is("PUT", "/update", json!({ "Stud_id": "2255", "data": { "Stud_marks": 31 } }), updated);
    assert_eq!(api.read(2255, 2255), [json!({ "Stud_id": 2255, "Stud_name": "new", "Stud_marks": 31 })]);
    let no_row = "<Error> No row with key 1";
    let beyond = "<Error> No row with key 12288: it is outside every shard's range";
    let other = json!({ "Stud_id": 2256, "Stud_name": "new", "Stud_marks": 30 });
    api.refuses_all([
        ("PUT", "/update", json!({ "Stud_id": 2255, "data": other }), 400, "key-mismatch", "<ERROR> Student ID does not match!"),
        ("PUT", "/update", json!({ "Stud_id": 1, "data": row(1, "a") }), 404, "no-such-row", no_row),
        ("PUT", "/update", json!({ "Stud_id": 12_288, "data": row(12_288, "a") }), 404, "no-such-row", beyond),
        ("PUT", "/update", json!({ "Stud_id": 2255 }), 400, "invalid-request", "<Error> 'data' is missing"),
        ("PUT", "/update", json!({ "Stud_id": 2255, "data": { "age": 5 } }), 400, "bad-row", "<Error> Column 'age' is not in the schema"),
        (
            "PUT",
            "/update",
            json!({ "Stud_id": 2255, "data": { "Stud_name": null } }),
            400,
            "bad-row",
            "<Error> Column 'Stud_name' must be a String, not null",
        ),
        ("DELETE", "/del", json!({ "Stud_id": 1 }), 404, "no-such-row", no_row),
        ("DELETE", "/del", json!({ "Stud_id": 12_288 }), 404, "no-such-row", beyond),
        ("DELETE", "/del", json!({}), 400, "invalid-request", "<Error> 'Stud_id' is missing"),
    ]);
    let removed = json!({ "message": "Data entry with Stud_id:2255 removed from all replicas", "status": "success" });
    api.is("DELETE", "/del", json!({ "Stud_id": "2255" }), removed);
    api.refuses(("DELETE", "/del", json!({ "Stud_id": 2255 }), 404, "no-such-row", "<Error> No row with key 2255"));
    // Both servers of a shard gave it up.
    for server in ["Server0", "Server2"] {
        let held = api.ok("GET", &format!("/read/{server}"), Value::Null);
        assert_eq!(held["sh1"], json!([stored[0]]), "{server} holds {held}");
        assert_eq!(held["status"], "success");
    }
    api.refuses(("GET", "/read/Server9", Value::Null, 400, "no-such-server", "<Error> Requested server does not exist"));
}

#[test]
fn rows_that_do_not_fit_change_nothing_in_any_shard() {
    let Cluster { api, .. } = &Cluster::initialised();
    for (bad, code, message) in [
        (json!({ "Stud_id": 2, "Stud_name": "a" }), "bad-row", "Row 3: column 'Stud_marks' is missing"),
        (json!({ "Stud_id": 2, "Stud_name": "a", "Stud_marks": 1, "age": 5 }), "bad-row", "Row 3: column 'age' is not in the schema"),
        (json!({ "Stud_id": 2, "Stud_name": null, "Stud_marks": 1 }), "bad-row", "Row 3: column 'Stud_name' must be a String, not null"),
        (json!({ "Stud_id": 2, "Stud_name": true, "Stud_marks": 1 }), "bad-row", "Row 3: column 'Stud_name' must be a String, not true"),
        (
            json!({ "Stud_id": 2.5, "Stud_name": "a", "Stud_marks": 1 }),
            "bad-row",
            "Row 3: column 'Stud_id' must be a whole number of 64 bits, not 2.5",
        ),
        (
            json!({ "Stud_id": "two", "Stud_name": "a", "Stud_marks": 1 }),
            "bad-row",
            "Row 3: column 'Stud_id' must be a whole number of 64 bits, not \"two\"",
        ),
        (json!("row"), "bad-row", "Row 3: must be an object, not \"row\""),
        (row(12_288, "a"), "key-out-of-range", "Key 12288 is outside every shard's range"),
        (row(-1, "a"), "key-out-of-range", "Key -1 is outside every shard's range"),
    ] {
        let body = json!({ "data": [row(1, "a"), row(5000, "a"), bad] });
        let answer = api.ask("POST", "/write", &body);
        check_refusal(&answer, 400, code, &format!("<Error> {message}"), &body.to_string());
        assert_eq!(answer.json()["applied"], "no");
    }
    let twice = br#"{"data": [{"Stud_id": 1, "Stud_id": 2, "Stud_name": "a", "Stud_marks": 1}]}"#;
    let answer = wire::send(&api.address, "POST", "/write", &[], twice);
    assert_eq!(answer.status, 400);
    assert!(answer.json()["message"].as_str().unwrap().contains("'Stud_id' stands twice"));
    let long = "x".repeat((64 << 10) + 1);
    let message = "<Error> Row 1: column 'Stud_name' is longer than 65536 bytes";
    api.refuses(("POST", "/write", json!({ "data": [row(1, &long)] }), 400, "bad-row", message));
    let many: Vec<Value> = (0..100_001).map(|number| row(number % 12_288, "")).collect();
    let message = "<Error> 100001 rows are more than the 100000 allowed in one request";
    api.refuses(("POST", "/write", json!({ "data": many }), 413, "too-many-rows", message));
    assert_eq!(api.read(0, 12_287), Vec::<Value>::new(), "something was applied");
    api.is("POST", "/write", json!({ "data": many[1..] }), added(100_000));
    assert_eq!(api.read(0, 12_287).len(), 12_288);
    api.is("POST", "/write", json!({ "data": [row(1, &long[1..])] }), added(1));
    api.is("POST", "/write", json!({ "data": [] }), added(0));
}

#[test]
fn keys_that_exist_are_replaced_refused_or_skipped() {
    let Cluster { api, .. } = &Cluster::initialised();
    api.is("POST", "/write", json!({ "data": [row(1, "first"), row(5000, "first")] }), added(2));
    // By default the later entry wins, in a batch too.
    api.is("POST", "/write", json!({ "data": [row(1, "second"), row(2, "a"), row(2, "b")] }), added(3));
    assert_eq!(api.read(1, 2), [row(1, "second"), row(2, "b")]);

    let conflict = |rows: Value| json!({ "data": rows, "on_conflict": "error" });
    api.refuses_all([
        ("POST", "/write", conflict(json!([row(3, "a"), row(1, "a")])), 409, "key-exists", "<Error> Keys exist already: 1"),
        ("POST", "/write", conflict(json!([row(3, "a"), row(3, "b")])), 409, "key-exists", "<Error> Keys exist already: 3"),
        ("POST", "/write", conflict(json!([row(1, "a"), row(5000, "a")])), 409, "key-exists", "<Error> Keys exist already: 1, 5000"),
        (
            "POST",
            "/write",
            json!({ "data": [row(3, "a")], "on_conflict": "ask" }),
            400,
            "invalid-request",
            "<Error> 'on_conflict' must be replace, error or skip, not \"ask\"",
        ),
    ]);
    assert_eq!(api.read(1, 12_287), [row(1, "second"), row(2, "b"), row(5000, "first")]);
    // One shard's part is refused, the other's is not.
    let answer = api.ask("POST", "/write", &conflict(json!([row(1, "a"), row(3, "a"), row(5001, "a")])));
    check_refusal(&answer, 409, "parts-differ", "<Error> Not every shard's part was applied", "a write of two shards");
    let answer = answer.json();
    assert_eq!(answer["applied"], "partial");
    assert_eq!((&answer["shards"]["sh1"]["applied"], &answer["shards"]["sh2"]), (&json!("no"), &json!({ "applied": "yes" })));
    assert_eq!(answer["shards"]["sh1"]["code"], "key-exists");
    assert_eq!(api.read(3, 12_287), [row(5000, "first"), row(5001, "a")]);

    let answer = api.ok("POST", "/write", json!({ "data": [row(1, "third"), row(3, "a"), row(3, "b")], "on_conflict": "skip" }));
    assert_eq!(answer, json!({ "message": "1 Data entries added", "status": "success", "skipped": 2 }));
    assert_eq!(api.read(1, 3), [row(1, "second"), row(2, "b"), row(3, "a")]);
}

#[test]
fn request_with_a_key_is_carried_out_once() {
    let Cluster { api, .. } = &Cluster::initialised();
    let with_key = |key: &str, method: &str, path: &str, body: Value| {
        let answer = api.ask_with(method, path, &[("Idempotency-Key", key)], &body);
        (answer.status, answer.json())
    };
    let write = json!({ "data": [row(1, "a"), row(5000, "a"), row(9000, "a")], "on_conflict": "error" });
    assert_eq!(with_key("w", "POST", "/write", write.clone()), (200, added(3)));
    assert_eq!(with_key("w", "POST", "/write", write), (200, added(3)), "the first result again");
    // Also a result that says no is kept.
    let delete = json!({ "Stud_id": 2 });
    let missing = with_key("d", "DELETE", "/del", delete.clone());
    assert_eq!(missing.0, 404);
    api.is("POST", "/write", json!({ "data": [row(2, "a")] }), added(1));
    assert_eq!(with_key("d", "DELETE", "/del", delete.clone()), missing);
    assert_eq!(with_key("d2", "DELETE", "/del", delete.clone()).0, 200);
    assert_eq!(with_key("d2", "DELETE", "/del", delete.clone()).0, 200);
    let update = json!({ "Stud_id": 1, "data": { "Stud_name": "b" } });
    assert_eq!(with_key("u", "PUT", "/update", update.clone()).0, 200);
    api.is(
        "PUT",
        "/update",
        json!({ "Stud_id": 1, "data": { "Stud_name": "c" } }),
        json!({ "message": "Data entry for Stud_id: 1 updated", "status": "success" }),
    );
    assert_eq!(with_key("u", "PUT", "/update", update).0, 200);
    assert_eq!(api.read(1, 1), [row(1, "c")], "the repetition changed nothing");
    // Another body, another shard, another path.
    for (method, path, body) in [
        ("POST", "/write", json!({ "data": [row(1, "other")] })),
        ("POST", "/write", json!({ "data": [row(9001, "other")] })),
        ("DELETE", "/del", delete),
    ] {
        let answer = api.ask_with(method, path, &[("Idempotency-Key", "w")], &body);
        check_refusal(&answer, 422, "idempotency-key-reused", "<Error> This Idempotency-Key was used with another body", path);
    }
    assert_eq!(api.read(0, 12_287), [row(1, "c"), row(5000, "a"), row(9000, "a")]);
    // What reached no shard leaves the key free.
    assert_eq!(with_key("k", "POST", "/write", json!({ "data": [row(99_999, "a")] })).0, 400);
    assert_eq!(with_key("k", "POST", "/write", json!({ "data": [row(2, "a")] })).0, 200);
    for bad in ["", &"k".repeat(256), "~k"] {
        let (status, answer) = with_key(bad, "POST", "/write", json!({ "data": [row(3, "a")] }));
        assert_eq!((status, &answer["code"]), (400, &json!("bad-header")), "{bad}");
    }
}

#[test]
fn large_answers_come_in_pages_streams_and_lines() {
    let Cluster { api, .. } = &Cluster::initialised();
    let all: Vec<Value> = (0..12_288).map(|key| row(key, "a name of some length, so that the answer streams")).collect();
    api.is("POST", "/write", json!({ "data": all }), added(12_288));
    let range = json!({ "low": 0, "high": 99_999 });
    let answer = api.ask("GET", "/read", &json!({ "Stud_id": range }));
    assert_eq!((answer.header("transfer-encoding"), answer.status), (Some("chunked"), 200));
    assert_eq!(answer.json(), json!({ "shards_queried": ["sh1", "sh2", "sh3"], "data": all, "status": "success" }));

    let mut body = json!({ "Stud_id": range, "limit": 4096 });
    for place in 0..3 {
        let answer = api.ok("POST", "/read", body.clone());
        assert_eq!(answer["data"], json!(all[place * 4096..(place + 1) * 4096]));
        assert_eq!(answer.get("next_cursor").is_some(), place < 2, "page {place}");
        assert_eq!(answer.get("cursor_promise"), (place < 2).then_some(&json!("key-order")), "page {place}");
        body["cursor"] = answer["next_cursor"].clone();
    }
    for (field, value, message) in [
        ("limit", json!(0), "'limit' must be from 1 to 1000000"),
        ("limit", json!("many"), "'limit' must be a whole number of at least 0, not \"many\""),
        ("cursor", json!("100000"), "'cursor' is not one of this range"),
        ("consistency", json!("strong"), "'consistency' must be linearizable, session or stale, not 'strong'"),
        ("versions", json!("yes"), "'versions' must be true or false, not \"yes\""),
    ] {
        api.refuses(("GET", "/read", json!({ "Stud_id": range, field: value }), 400, "invalid-request", &format!("<Error> {message}")));
    }

    let answer = api.ask_with("GET", "/read", &[("Accept", "application/x-ndjson")], &json!({ "Stud_id": range }));
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
    let text = String::from_utf8(answer.body).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[..12_288], all);
    assert_eq!(lines[12_288..], [json!({ "shards_queried": ["sh1", "sh2", "sh3"], "status": "success" })]);

    let answer = api.ok("GET", "/read", json!({ "Stud_id": { "low": 5, "high": 6 }, "versions": true }));
    for stored in answer["data"].as_array().unwrap() {
        let versioned = stored.as_object().unwrap();
        assert!(versioned.len() == 4 && versioned["$version"].is_string(), "{stored}");
    }
}

#[test]
fn session_reads_see_what_the_session_has_seen() {
    let Cluster { api, .. } = &Cluster::initialised();
    let mut token = String::new();
    let mut ask = |method: &str, path: &str, body: Value| {
        let answer = api.ask_with(method, path, &[("Twinshard-Session", &token)], &body);
        token = answer.header("twinshard-session").unwrap_or_else(|| panic!("{path} has no token")).to_owned();
        answer.json()
    };
    for round in 0..30 {
        let name = round.to_string();
        ask("POST", "/write", json!({ "data": [row(1, &name), row(5000, &name)] }));
        ask("PUT", "/update", json!({ "Stud_id": 9000, "data": { "Stud_name": name } }));
        let read = ask("GET", "/read", json!({ "Stud_id": { "low": 0, "high": 9999 }, "consistency": "session" }));
        assert_eq!(read["data"], json!([row(1, &name), row(5000, &name)]));
    }
    for consistency in ["linearizable", "stale"] {
        let read = ask("GET", "/read", json!({ "Stud_id": { "low": 0, "high": 9999 }, "consistency": consistency }));
        assert_eq!((&read["status"], &read["shards_queried"]), (&json!("success"), &json!(["sh1", "sh2", "sh3"])));
    }
    let body = json!({ "Stud_id": { "low": 0, "high": 1 }, "consistency": "session" });
    let answer = api.ask_with("GET", "/read", &[("Twinshard-Session", "nonsense")], &body);
    check_refusal(&answer, 400, "bad-session", "<Error> The Twinshard-Session header is not one that this cluster gave", "nonsense");
}

#[test]
fn a_token_that_was_made_up_is_refused_and_never_repeated() {
    let Cluster { api, .. } = &Cluster::initialised();
    api.ok("POST", "/write", json!({ "data": [row(1, "a")] }));
    let body = |consistency: &str| json!({ "Stud_id": { "low": 0, "high": 1 }, "consistency": consistency });
    let made_up = "1:9223372036854775808,2:7";
    let began = std::time::Instant::now();
    let answer = api.ask_with("GET", "/read", &[("Twinshard-Session", made_up)], &body("session"));
    assert_eq!((answer.status, &answer.json()["code"]), (400, &json!("session-token-beyond")));
    assert!(began.elapsed().as_secs() < 5, "it waited for its deadline");
    let answer = api.ask_with("GET", "/read", &[("Twinshard-Session", made_up)], &body("linearizable"));
    let (token, position) = (answer.header("twinshard-session").unwrap(), answer.header("twinshard-position").unwrap());
    assert_eq!(token, format!("{position},2:7"), "what the read did not touch is kept, what it did is its own word");
}
