use super::*;
use twinshard_core::{command::Idempotency, schema::Column, value::KeyRange};
use twinshard_scenarios::scenario::schema;

fn range(low: i64, high: i64) -> KeyRange {
    KeyRange { low: Key(low), high: Key(high) }
}

fn row(key: i64, name: &str, marks: i64) -> Row {
    Row { key: Key(key), values: vec![Value::Text(name.into()), Value::Integer(marks)] }
}

fn insert(row: Row) -> Operation {
    Operation::Insert { row, on_conflict: OnConflict::Replace }
}

fn write(operations: Vec<Operation>) -> Request {
    Request::Write { operations, on_conflict: None, idempotency: None }
}

fn read(consistency: Consistency) -> Request {
    Request::Read { range: range(0, 9), limit: 5, consistency }
}

fn shard() -> NewShard {
    NewShard { name: "sh1".into(), low: 0, size: 64 }
}

fn server(name: &str) -> NewServer {
    NewServer { name: name.into(), shards: vec!["sh1".into()] }
}

/// A request, the call that says it, and what an answer of 200 to it stands for.
#[track_caller]
fn check(request: &Request, (method, path, body): (Method, &str, Json), answer: &Json, reply: Reply) {
    let expected = Call { method, path: path.to_owned(), body, key: None, session: None };
    assert_eq!(call(&schema(), request).unwrap(), expected);
    assert_eq!(answer_to(request, 200, answer).unwrap(), reply);
}

/// Where writes are said to stand.
fn at() -> BTreeMap<ShardId, Position> {
    BTreeMap::from([(ShardId(1), Position { epoch: Epoch(2), index: LogIndex(40) })])
}

fn request_writes(request: &Request) -> bool {
    matches!(request, Request::Write { .. })
}

fn answer_to(request: &Request, status: u16, body: &Json) -> Result<Reply, String> {
    let told = Told { session: None, position: Some(if request_writes(request) { "1:2.40" } else { "1:40" }.to_owned()) };
    answered(&schema(), request, status, &told, body.to_string().as_bytes()).map(|answered| answered.reply)
}

#[test]
fn init_names_columns_shards_and_servers() {
    let request = Request::Init {
        server_count: Some(2),
        schema: schema(),
        shards: vec![shard()],
        servers: Some(vec![server("Server0"), server("Server1")]),
        on_conflict: Some(OnConflict::Skip),
        by_name: false,
    };
    let body = json!({
        "N": 2,
        "schema": { "columns": ["Stud_id", "Stud_name", "Stud_marks"], "dtypes": ["Number", "String", "Number"] },
        "shards": [{ "Stud_id_low": 0, "Shard_id": "sh1", "Shard_size": 64 }],
        "servers": { "Server0": ["sh1"], "Server1": ["sh1"] },
        "on_conflict": "skip",
    });
    let answer = json!({ "message": "Configured Database", "status": "success" });
    check(&request, (Method::POST, "/init", body), &answer, Reply::Initialised);
}

#[test]
fn servers_are_added_by_name() {
    let request = Request::Add { server_count: 1, new_shards: vec![shard()], servers: vec![server("Server3")], strict: true };
    let body = json!({
        "n": 1,
        "new_shards": [{ "Stud_id_low": 0, "Shard_id": "sh1", "Shard_size": 64 }],
        "servers": { "Server3": ["sh1"] },
    });
    let answer = json!({ "N": 4, "message": "Add Server:3", "status": "successful" });
    check(&request, (Method::POST, "/add", body), &answer, Reply::Added { server_count: 4, servers: vec!["Server3".into()] });
}

#[test]
fn servers_are_removed_by_name() {
    let request = Request::Remove { server_count: 1, servers: vec!["Server2".into()], accept_data_loss: false, capped: false };
    let body = json!({ "n": 1, "servers": ["Server2"], "accept_data_loss": false });
    let answer = json!({ "message": { "N": 2, "servers": ["Server2"] }, "status": "successful" });
    check(&request, (Method::DELETE, "/rm", body), &answer, Reply::Removed { server_count: 2, servers: vec!["Server2".into()] });
}

#[test]
fn primary_is_asked_for_or_moved() {
    let answer = json!({ "primary_server": "Server1", "epoch": 7 });
    for (change, method) in [(false, Method::GET), (true, Method::POST)] {
        let request = Request::Primary { shard: "sh1".into(), change };
        let reply = Reply::Primary { server: Some("Server1".into()), epoch: Epoch(7) };
        check(&request, (method, "/primary_elect", json!({ "shard": "sh1" })), &answer, reply);
    }
    let nobody = answer_to(&Request::Primary { shard: "sh1".into(), change: false }, 200, &json!({ "primary_server": null, "epoch": 7 }));
    assert_eq!(nobody, Ok(Reply::Primary { server: None, epoch: Epoch(7) }));
}

#[test]
fn replica_is_moved_and_server_is_drained() {
    let request = Request::Move { shard: "sh1".into(), from: "Server0".into(), to: "Server3".into() };
    let body = json!({ "shard": "sh1", "from": "Server0", "to": "Server3" });
    let answer = json!({ "message": "sh1 was moved from Server0 to Server3", "status": "successful" });
    check(&request, (Method::POST, "/move", body), &answer, Reply::Relocated { moves: vec![("sh1".into(), "Server3".into())] });
    assert!(answer_to(&request, 200, &json!({ "status": "successful" })).is_err(), "nothing is said");

    let request = Request::Drain { server: "Server0".into() };
    let answer = json!({
        "message": "Server0 holds no replica any more",
        "moves": [{ "shard": "sh1", "to": "Server3" }, { "shard": "sh2", "to": "Server4" }],
        "status": "successful",
    });
    let moves = vec![("sh1".into(), "Server3".into()), ("sh2".into(), "Server4".into())];
    check(&request, (Method::POST, "/drain", json!({ "server": "Server0" })), &answer, Reply::Relocated { moves });
    for moves in [json!(null), json!([{ "shard": "sh1" }])] {
        assert!(answer_to(&request, 200, &json!({ "message": "done", "moves": moves, "status": "successful" })).is_err(), "{moves}");
    }
}

#[test]
fn rows_come_with_their_versions_and_the_next_key() {
    let answer = json!({
        "shards_queried": ["sh1"],
        "data": [{ "Stud_id": 3, "Stud_name": "a", "Stud_marks": 7, "$version": "2.40" }],
        "next_cursor": "4",
        "status": "success",
    });
    let stored = StoredRow { version: Position { epoch: Epoch(2), index: LogIndex(40) }, row: row(3, "a", 7) };
    let rows = Rows {
        shards_queried: vec!["sh1".into()],
        rows: vec![stored],
        next: Some(Key(4)),
        seen: BTreeMap::from([(ShardId(1), LogIndex(40))]),
        ..Rows::default()
    };
    for (consistency, name) in [(Consistency::Linearizable, "linearizable"), (Consistency::Stale, "stale")] {
        let body = json!({ "Stud_id": { "low": 0, "high": 9 }, "limit": 5, "versions": true, "consistency": name });
        check(&read(consistency), (Method::POST, "/read", body), &answer, Reply::Rows(Box::new(rows.clone())));
    }
}

#[test]
fn session_is_sent_and_what_was_seen_comes_back() {
    let seen = BTreeMap::from([(ShardId(1), LogIndex(5)), (ShardId(2), LogIndex(80))]);
    let request = read(Consistency::Session(seen));
    let call = call(&schema(), &request).unwrap();
    assert_eq!((call.session.as_deref(), &call.body["consistency"]), (Some("1:5,2:80"), &json!("session")));
    let empty = json!({ "shards_queried": [], "data": [], "status": "success" }).to_string();
    let told = |session: &str, position: Option<&str>| Told { session: Some(session.to_owned()), position: position.map(str::to_owned) };
    let answer = answered(&schema(), &request, 200, &told("1:6,2:80", Some("1:4")), empty.as_bytes()).unwrap();
    assert_eq!(answer.seen, BTreeMap::from([(ShardId(1), LogIndex(6)), (ShardId(2), LogIndex(80))]));
    // What the read saw is its own word: here less than the token that the client sent, which is for the checks to find.
    let seen = BTreeMap::from([(ShardId(1), LogIndex(4))]);
    assert_eq!(answer.reply, Reply::Rows(Box::new(Rows { seen, ..Rows::default() })));
    for bad in [told("1:x", Some("1:4")), told("1:6", Some("1:x")), told("1:6", None)] {
        assert!(answered(&schema(), &request, 200, &bad, empty.as_bytes()).is_err(), "{bad:?}");
    }
    let streamed = json!({ "shards_queried": [], "data": [], "position": "1:9,2:81", "session": "1:9,2:81", "status": "success" });
    let answer = answered(&schema(), &request, 200, &told("1:6", Some("1:9")), streamed.to_string().as_bytes()).unwrap();
    let seen = BTreeMap::from([(ShardId(1), LogIndex(9)), (ShardId(2), LogIndex(81))]);
    assert_eq!((answer.seen, answer.reply), (seen.clone(), Reply::Rows(Box::new(Rows { seen, ..Rows::default() }))));
}

#[test]
fn inserts_count_what_they_skipped() {
    let request = Request::Write {
        operations: vec![insert(row(1, "a", 10)), insert(row(2, "b", 20))],
        on_conflict: Some(OnConflict::Skip),
        idempotency: None,
    };
    let body = json!({
        "data": [{ "Stud_id": 1, "Stud_name": "a", "Stud_marks": 10 }, { "Stud_id": 2, "Stud_name": "b", "Stud_marks": 20 }],
        "on_conflict": "skip",
    });
    let answer = json!({ "message": "1 Data entries added", "skipped": 1, "status": "success" });
    let reply = Reply::Written(Written { written_count: 1, skipped_count: 1, seen: at() });
    check(&request, (Method::POST, "/write", body), &answer, reply);
    assert!(answer_to(&request, 200, &json!({ "skipped": 3, "status": "success" })).is_err(), "more skipped than sent");
}

#[test]
fn update_and_deletion_name_a_key() {
    let answer = json!({ "message": "done", "status": "success" });
    let one = || Reply::Written(Written { written_count: 1, seen: at(), ..Written::default() });
    let update = write(vec![Operation::Update { key: Key(3), set: vec![(1, Value::Integer(9))] }]);
    check(&update, (Method::PUT, "/update", json!({ "data": { "Stud_marks": 9 }, "Stud_id": 3 })), &answer, one());
    let delete = write(vec![Operation::Delete { key: Key(3) }]);
    check(&delete, (Method::DELETE, "/del", json!({ "Stud_id": 3 })), &answer, one());
}

#[test]
fn idempotency_key_goes_along() {
    let idempotency = Idempotency { key: "k1".into(), body_hash: 0 };
    let request = Request::Write { operations: vec![insert(row(1, "a", 10))], on_conflict: None, idempotency: Some(idempotency) };
    assert_eq!(call(&schema(), &request).unwrap().key.as_deref(), Some("k1"));
}

#[test]
fn status_is_asked_for_but_judged_elsewhere() {
    let expected = Call { method: Method::GET, path: "/status".to_owned(), body: Json::Null, key: None, session: None };
    assert_eq!(call(&schema(), &Request::Status { fresh: false }), Some(expected));
    assert!(answer_to(&Request::Status { fresh: false }, 200, &json!({})).is_err());
}

#[test]
fn what_http_cannot_say_is_not_said() {
    let mixed = write(vec![Operation::Delete { key: Key(1) }, insert(row(1, "a", 10))]);
    let first = write(vec![Operation::Delete { key: Key(1) }]);
    assert_eq!(call(&schema(), &mixed), None);
    assert_eq!(sayable(mixed), first);
    let inserts = write(vec![insert(row(1, "a", 10)), insert(row(1, "b", 20))]);
    assert_eq!(sayable(inserts.clone()), inserts);
    for request in [
        Request::Init { server_count: None, schema: schema(), shards: vec![], servers: None, on_conflict: None, by_name: true },
        Request::Add { server_count: 1, new_shards: vec![], servers: vec![], strict: false },
        Request::Remove { server_count: 1, servers: vec![], accept_data_loss: false, capped: true },
        Request::ReadServer { server: "Server0".into(), shard: None, range: range(0, 1), limit: 1, wanted: 0, pinned: None },
        Request::PickServer { request_id: 100_000 },
    ] {
        assert_eq!(call(&schema(), &request), None, "{request:?}");
    }
}

fn failure(code: &str, message: &str, applied: &str, retryable: bool) -> Json {
    json!({ "message": format!("<Error> {message}"), "status": "failure", "code": code, "applied": applied, "retryable": retryable, "hint": "" })
}

#[test]
fn every_refusal_is_read_back() {
    let request = write(vec![insert(row(1, "a", 10)), insert(row(2, "b", 20))]);
    for (status, code, message, applied, retryable, error) in [
        (400, "not-initialised", "no", "no", false, RequestError::NotInitialised),
        (409, "already-initialised", "no", "no", false, RequestError::AlreadyInitialised),
        (400, "invalid-request", "wrong", "no", false, RequestError::Invalid("wrong".into())),
        (409, "refused", "not now", "no", false, RequestError::Refused("not now".into())),
        (400, "too-few-servers", "no", "no", false, RequestError::TooFewServers),
        (400, "too-many-servers", "no", "no", false, RequestError::TooManyServersToRemove),
        (400, "no-such-server", "no", "no", false, RequestError::NoSuchServer),
        (400, "no-such-shard", "sh9", "no", false, RequestError::NoSuchShard("sh9".into())),
        (400, "key-out-of-range", "Key 2 is outside every shard's range", "no", false, RequestError::OutOfRange(Key(2))),
        (409, "key-exists", "Keys exist already: 1, 2", "no", false, RequestError::Exists(vec![Key(1), Key(2)])),
        (404, "no-such-row", "No row with key 1", "no", false, RequestError::Missing(vec![Key(1)])),
        (422, "idempotency-key-reused", "no", "no", false, RequestError::KeyReused),
        (503, "overloaded", "no", "no", true, RequestError::Overloaded),
        (503, "shard-unavailable", "sh1", "no", true, RequestError::ShardUnavailable("sh1".into())),
        (503, "no-server", "no", "no", true, RequestError::NoServer),
        (503, "register-unavailable", "no", "no", true, RequestError::RegisterUnavailable),
        (504, "outcome-unknown", "no", "unknown", true, RequestError::OutcomeUnknown),
        (504, "still-changing", "no", "partial", true, RequestError::StillChanging),
    ] {
        let answer = answer_to(&request, status, &failure(code, message, applied, retryable));
        assert_eq!(answer, Ok(Reply::Failed(error)), "{code}");
    }
}

#[test]
fn parts_of_a_write_are_read_one_by_one() {
    let request = write(vec![insert(row(1, "a", 10)), insert(row(70, "b", 20))]);
    let mut answer = failure("parts-differ", "Not every shard's part was applied", "partial", false);
    answer["shards"] = json!({
        "sh1": { "applied": "yes" },
        "sh2": { "applied": "no", "code": "key-exists", "message": "<Error> Keys exist already: 70" },
    });
    let parts = BTreeMap::from([
        ("sh1".into(), ShardPart { applied: Applied::Yes, error: None, seen: None }),
        ("sh2".into(), ShardPart { applied: Applied::No, error: Some(Box::new(RequestError::Exists(vec![Key(70)]))), seen: None }),
    ]);
    assert_eq!(answer_to(&request, 409, &answer), Ok(Reply::Failed(RequestError::Parts(parts))));
}

#[test]
fn answers_that_the_contract_does_not_have_are_breaches() {
    let request = write(vec![insert(row(1, "a", 10))]);
    for (status, body) in [
        (409, failure("overloaded", "no", "no", true)),
        (503, failure("overloaded", "no", "yes", true)),
        (503, failure("overloaded", "no", "no", false)),
        (500, failure("internal", "no", "no", false)),
        (503, json!({ "message": "no", "status": "failure", "code": "overloaded", "applied": "no", "retryable": true })),
        (503, json!({ "status": "failure" })),
        (201, json!({ "status": "success" })),
    ] {
        assert!(answer_to(&request, status, &body).is_err(), "{status} {body}");
    }
    assert!(answered(&schema(), &request, 200, &Told::default(), b"<html>").is_err());
    let read = read(Consistency::Linearizable);
    for data in [
        json!([{ "Stud_id": 3, "Stud_name": "a", "Stud_marks": 7 }]),
        json!([{ "Stud_id": 3, "Stud_name": true, "Stud_marks": 7, "$version": "1.1" }]),
    ] {
        assert!(answer_to(&read, 200, &json!({ "shards_queried": ["sh1"], "data": data })).is_err());
    }
    let beyond = json!({ "shards_queried": [], "data": [], "next_cursor": "10" });
    assert!(answer_to(&read, 200, &beyond).is_err(), "the next page is outside of what was asked for");
}

#[test]
fn values_are_of_their_column() {
    let column = |name: &str, dtype| Column { name: name.into(), dtype };
    let schema = Schema::new(vec![
        column("id", ColumnType::Number),
        column("share", ColumnType::Number),
        column("there", ColumnType::Boolean),
        column("name", ColumnType::String),
    ])
    .unwrap();
    let values = vec![Value::Decimal(Finite::new(0.5).unwrap()), Value::Boolean(true), Value::Text("a\"b".into())];
    let row = Row { key: Key(-1), values };
    let mut json = row_json(&schema, &row);
    json["$version"] = json!("1.2");
    assert_eq!(stored_row(&schema, &json).unwrap().row, row);
    json["there"] = json!("true");
    assert_eq!(stored_row(&schema, &json), None);
}
