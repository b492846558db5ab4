use super::*;
use serde_json::json;

fn columns(columns: &[(&str, &str)]) -> Schema {
    let (names, dtypes): (Vec<&str>, Vec<&str>) = columns.iter().copied().unzip();
    schema(&json!({ "columns": names, "dtypes": dtypes })).expect("a schema")
}

/// The course's schema.
fn students() -> Schema {
    columns(&[("Stud_id", "Number"), ("Stud_name", "String"), ("Stud_marks", "String")])
}

/// One column of each type after the key.
fn mixed() -> Schema {
    columns(&[("id", "Number"), ("n", "Number"), ("s", "String"), ("f", "Float"), ("b", "Boolean")])
}

async fn refusal(error: ApiError) -> (u16, String, String) {
    use axum::response::IntoResponse;
    use http_body_util::BodyExt;
    let response = error.into_response();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("whole").to_bytes();
    let body: Json = serde_json::from_slice(&body).expect("JSON");
    assert_eq!((&body["status"], &body["applied"], &body["retryable"]), (&json!("failure"), &json!("no"), &json!(false)));
    assert!(body["hint"].as_str().is_some_and(|hint| !hint.is_empty()));
    (status, body["code"].as_str().expect("text").to_owned(), body["message"].as_str().expect("text").to_owned())
}

fn given_back(schema: &Schema, row: Row) -> Json {
    let mut out = Vec::new();
    write_row(schema, &StoredRow { version: Default::default(), row }, false, &mut out);
    serde_json::from_slice(&out).expect("JSON")
}

#[test]
fn what_is_given_comes_back_as_it_was_given() {
    for (given, back) in [
        (json!({ "Stud_id": 2255, "Stud_name": "GHI", "Stud_marks": 27 }), None),
        (json!({ "Stud_id": 2255, "Stud_name": "GHI", "Stud_marks": "27" }), None),
        (json!({ "Stud_id": 2255, "Stud_name": 1.5, "Stud_marks": -7 }), None),
        (json!({ "Stud_id": 2255, "Stud_name": "", "Stud_marks": "null" }), None),
        (json!({ "Stud_id": 2255, "Stud_name": "\" \\ \n \r \t \u{1} \u{7f} é \u{1F600} \u{2028}", "Stud_marks": 0 }), None),
        // The key alone is normalised.
        (json!({ "Stud_id": "2255", "Stud_name": "a", "Stud_marks": "b" }), Some(2255)),
        (json!({ "Stud_id": " 02255 ", "Stud_name": "a", "Stud_marks": "b" }), Some(2255)),
        (json!({ "Stud_id": "-1", "Stud_name": "a", "Stud_marks": "b" }), Some(-1)),
    ] {
        let read = row(&students(), &given, 1).unwrap_or_else(|error| panic!("{given}: {error:?}"));
        let mut expected = given.clone();
        if let Some(key) = back {
            expected["Stud_id"] = json!(key);
        }
        assert_eq!(given_back(&students(), read), expected);
    }
}

#[test]
fn numbers_survive_to_the_last_bit() {
    let schema = mixed();
    for number in
        ["0.1", "1e-300", "1.7976931348623157e308", "5e-324", "2.2250738585072014e-308", "0.30000000000000004", "123456789.123456789"]
    {
        let text = format!("{{\"id\":1,\"n\":{number},\"s\":{number},\"f\":{number},\"b\":true}}");
        let read = row(&schema, &parse(text.as_bytes()).expect("JSON").0, 1).expect("a row");
        let exact: f64 = number.parse().expect("a number");
        for column in ["n", "s", "f"] {
            let back = given_back(&schema, read.clone())[column].as_f64().expect("a number");
            assert_eq!(back.to_bits(), exact.to_bits(), "{number} in {column}");
        }
    }
    for (text, whole) in [("2255.0", 2255_i64), ("1e3", 1000), ("-0", 0), ("-0.0", 0), ("9007199254740993.0", 9_007_199_254_740_993)] {
        let body = format!("{{\"id\":{text},\"n\":{text},\"s\":{text},\"f\":{text},\"b\":true}}");
        let read = row(&schema, &parse(body.as_bytes()).expect("JSON").0, 1).unwrap_or_else(|error| panic!("{text}: {error:?}"));
        assert_eq!(given_back(&schema, read), json!({ "id": whole, "n": whole, "s": whole, "f": whole, "b": true }), "{text}");
    }
    for number in [i64::MIN, -1, 0, i64::MAX] {
        let given = json!({ "id": number, "n": number, "s": number, "f": number, "b": false });
        assert_eq!(given_back(&schema, row(&schema, &given, 1).expect("a row")), given);
    }
}

#[tokio::test]
async fn a_row_that_does_not_fit_is_refused_by_row_and_column() {
    let long = "x".repeat(TEXT_BYTES_MAX + 1);
    let fine = json!({ "id": 1, "n": 1, "s": "s", "f": 1.5, "b": true });
    let with = |column: &str, value: Json| {
        let mut row = fine.clone();
        row[column] = value;
        row
    };
    let without = |column: &str| {
        let mut row = fine.clone();
        row.as_object_mut().expect("an object").remove(column);
        row
    };
    for (given, words) in [
        (without("id"), "Row 2: column 'id' is missing"),
        (without("b"), "Row 2: column 'b' is missing"),
        (with("extra", json!(1)), "Row 2: column 'extra' is not in the schema"),
        (with("id", json!(null)), "Row 2: column 'id' must be a whole number of 64 bits, not null"),
        (with("id", json!(1.5)), "Row 2: column 'id' must be a whole number of 64 bits, not 1.5"),
        (with("id", json!("1.5")), "Row 2: column 'id' must be a whole number of 64 bits, not \"1.5\""),
        (with("id", json!("")), "Row 2: column 'id' must be a whole number of 64 bits, not \"\""),
        (with("id", json!(true)), "Row 2: column 'id' must be a whole number of 64 bits, not true"),
        (with("id", json!(u64::MAX)), "Row 2: column 'id' must be a whole number of 64 bits, not 18446744073709551615"),
        (with("n", json!("1")), "Row 2: column 'n' must be a Number, not \"1\""),
        (with("n", json!(null)), "Row 2: column 'n' must be a Number, not null"),
        (with("n", json!(true)), "Row 2: column 'n' must be a Number, not true"),
        (with("n", json!(u64::MAX)), "Row 2: column 'n' 18446744073709551615 is beyond 64 bits"),
        (with("s", json!(null)), "Row 2: column 's' must be a String, not null"),
        (with("s", json!(true)), "Row 2: column 's' must be a String, not true"),
        (with("s", json!([1])), "Row 2: column 's' must be a String, not [1]"),
        (with("s", json!({ "a": 1 })), "Row 2: column 's' must be a String, not {\"a\":1}"),
        (with("s", json!(long)), "Row 2: column 's' is longer than 65536 bytes"),
        (with("f", json!(u64::MAX)), "Row 2: column 'f' 18446744073709551615 is beyond 64 bits"),
        (with("f", json!("1.5")), "Row 2: column 'f' must be a Float, not \"1.5\""),
        (with("b", json!("true")), "Row 2: column 'b' must be a Boolean, not \"true\""),
        (with("b", json!(1)), "Row 2: column 'b' must be a Boolean, not 1"),
        (json!(5), "Row 2: must be an object, not 5"),
        (json!(null), "Row 2: must be an object, not null"),
    ] {
        let error = rows(&mixed(), &json!({ "data": [fine, given] }), 10).expect_err(words);
        assert_eq!(refusal(error).await, (400, "bad-row".to_owned(), format!("<Error> {words}")));
    }
    assert_eq!(rows(&mixed(), &json!({ "data": [fine, fine] }), 10).expect("both fit").len(), 2);
    let full = "x".repeat(TEXT_BYTES_MAX);
    assert!(rows(&mixed(), &json!({ "data": [with("s", json!(full))] }), 10).is_ok(), "64 KiB are allowed");
}

#[tokio::test]
async fn a_write_has_a_list_of_so_many_rows() {
    let row = json!({ "Stud_id": 1, "Stud_name": "a", "Stud_marks": "b" });
    for (given, status, code, words) in [
        (json!({}), 400, "invalid-request", "'data' is missing"),
        (json!({ "data": null }), 400, "invalid-request", "'data' is missing"),
        (
            json!({ "data": row }),
            400,
            "invalid-request",
            "'data' must be a list, not {\"Stud_id\":1,\"Stud_name\":\"a\",\"Stud_marks\":\"b\"}",
        ),
        (json!({ "data": [row, row, row] }), 413, "too-many-rows", "3 rows are more than the 2 allowed in one request"),
    ] {
        let error = rows(&students(), &given, 2).expect_err(words);
        assert_eq!(refusal(error).await, (status, code.to_owned(), format!("<Error> {words}")));
    }
    assert_eq!(rows(&students(), &json!({ "data": [] }), 2).expect("nothing to do").len(), 0);
}

#[tokio::test]
async fn an_update_sets_what_it_names_and_no_other_key() {
    let key = Key(2255);
    let all = |schema: &Schema, data: Json| changes(schema, key, &data).expect("fits");
    assert_eq!(all(&students(), json!({})), []);
    assert_eq!(all(&students(), json!({ "Stud_id": "02255" })), [], "ids are compared after normalising");
    assert_eq!(all(&students(), json!({ "Stud_marks": 30 })), [(1, Value::Integer(30))]);
    let both = [(0, Value::Text("GHI".into())), (1, Value::Text("x".into()))];
    assert_eq!(all(&students(), json!({ "Stud_marks": "x", "Stud_id": 2255, "Stud_name": "GHI" })), both, "in the schema's order");
    for (data, code, words) in [
        (json!({ "Stud_id": 2256 }), "key-mismatch", "<ERROR> Student ID does not match!"),
        (json!({ "Stud_id": "x" }), "key-mismatch", "<ERROR> Student ID does not match!"),
        (json!({ "Stud_id": null }), "key-mismatch", "<ERROR> Student ID does not match!"),
        (json!({ "stud_name": "x" }), "bad-row", "<Error> Column 'stud_name' is not in the schema"),
        (json!({ "Stud_name": null }), "bad-row", "<Error> Column 'Stud_name' must be a String, not null"),
        (json!([]), "invalid-request", "<Error> 'data' must be an object, not []"),
    ] {
        let error = changes(&students(), key, &data).expect_err(words);
        assert_eq!(refusal(error).await, (400, code.to_owned(), words.to_owned()));
    }
}

#[tokio::test]
async fn schemas_and_shards_are_checked() {
    let name = "a".repeat(63);
    assert_eq!(columns(&[("_", "Number"), (&name, "Float")]).value_columns().len(), 1);
    for (given, words) in [
        (json!({ "dtypes": ["Number"] }), "'columns' is missing"),
        (json!({ "columns": ["a"] }), "'dtypes' is missing"),
        (json!({ "columns": "a", "dtypes": ["Number"] }), "'columns' must be a list, not \"a\""),
        (json!({ "columns": [1], "dtypes": ["Number"] }), "'columns' must be a string, not 1"),
        (json!({ "columns": ["a", "b"], "dtypes": ["Number"] }), "2 columns but 1 dtypes"),
        (json!({ "columns": [], "dtypes": [] }), "a schema needs at least one column, the key"),
        (json!({ "columns": ["a"], "dtypes": ["number"] }), "'number' is no dtype: use Number, String, Float or Boolean"),
        (json!({ "columns": ["a"], "dtypes": ["String"] }), "the first column 'a' is the key and must be a Number"),
        (json!({ "columns": ["a", "A"], "dtypes": ["Number", "Number"] }), "column 'A' stands twice (case is ignored)"),
    ] {
        assert_eq!(refusal(schema(&given).expect_err(words)).await, (400, "invalid-request".to_owned(), format!("<Error> {words}")));
    }
    for bad in ["", "1a", "a b", "a-b", "é", "$a", &"a".repeat(64)] {
        let (_, _, words) = refusal(schema(&json!({ "columns": ["k", bad], "dtypes": ["Number", "String"] })).expect_err(bad)).await;
        assert!(words.starts_with(&format!("<Error> '{bad}' is not a column name")), "{words}");
    }

    let low = |name: &str| json!([{ name: "5", "Shard_id": "sh1", "Shard_size": 10 }]);
    for name in ["Stud_id_low", "id_low"] {
        assert_eq!(*shards(&low(name), "id").expect(name), [NewShard { name: "sh1".into(), low: 5, size: 10 }]);
    }
    for (given, words) in [
        (low("other_low"), "A shard lacks 'id_low'"),
        (json!([1]), "'a shard' must be an object, not 1"),
        (json!({}), "'shards' must be a list, not {}"),
        (json!([{ "id_low": 0, "Shard_size": 1 }]), "'Shard_id' is missing"),
        (json!([{ "id_low": 0, "Shard_id": 7, "Shard_size": 1 }]), "'Shard_id' must be a string, not 7"),
        (json!([{ "id_low": 0, "Shard_id": "s" }]), "'Shard_size' is missing"),
        (json!([{ "id_low": 0.5, "Shard_id": "s", "Shard_size": 1 }]), "'id_low' must be a whole number of 64 bits, not 0.5"),
    ] {
        assert_eq!(refusal(shards(&given, "id").expect_err(words)).await.2, format!("<Error> {words}"));
    }
}

#[test]
fn servers_stand_in_the_order_given() {
    let (given, _) = parse(br#"{"zeta":["sh1"],"Server10":null,"Server9":[]}"#).expect("JSON");
    let names: Vec<Box<str>> = servers(&given).expect("servers").into_iter().map(|server| server.name).collect();
    assert_eq!(names, ["zeta", "Server10", "Server9"].map(Box::from));
}

#[test]
fn a_name_that_stands_twice_is_refused_at_any_depth() {
    for text in [r#"{"a":1,"a":1}"#, r#"[{"x":{"b":[],"b":2}}]"#, r#"{"a":{"c":1,"\u0063":2}}"#] {
        let error = parse(text.as_bytes()).expect_err(text).body().to_string();
        assert!(error.contains("stands twice in one object"), "{error}");
    }
    let fine = r#"{"a":{"a":[{"a":1},{"a":-2}]},"b":[null,true,1.5,"x",18446744073709551615]}"#;
    let (read, _) = parse(fine.as_bytes()).expect("JSON");
    assert_eq!(read, serde_json::from_str::<Json>(fine).expect("JSON"));
    assert_eq!(read.to_string(), fine, "in the order given");
    for text in ["", "{", "{}x", "[1,]", "{\"a\":NaN}", "{'a':1}", "\"\u{1}\"", "\"\\ud800\""] {
        assert!(parse(text.as_bytes()).is_err(), "{text}");
    }
    assert!(parse("[".repeat(100_000).as_bytes()).is_err(), "deep nesting is refused, not followed");
    assert!(parse(b"{\"a\":\"\xff\"}").is_err(), "bytes that are no text");
}

#[tokio::test]
async fn ranges_counts_and_flags() {
    let keys = |low, high| KeyRange { low: Key(low), high: Key(high) };
    assert_eq!(range(&json!({ "low": 1000, "high": "8889" }), "id").expect("a range"), keys(1000, 8889));
    assert_eq!(range(&json!({ "low": i64::MIN, "high": i64::MAX }), "id").expect("all"), KeyRange::ALL);
    assert_eq!(range(&json!("7"), "id").expect("one key"), keys(7, 7));
    for (given, words) in [
        (json!({ "low": 2, "high": 1 }), "low (2) is greater than high (1)"),
        (json!({ "low": 2 }), "'high' is missing"),
        (json!({ "low": null, "high": 1 }), "'low' is missing"),
        (json!([1, 2]), "'id' must be a whole number of 64 bits, not [1,2]"),
    ] {
        assert_eq!(refusal(range(&given, "id").expect_err(words)).await.2, format!("<Error> {words}"));
    }
    assert_eq!(count(&json!({ "n": "3" }), "n").expect("a count"), 3);
    assert_eq!(optional_count(&json!({ "n": null }), "n").expect("none"), None);
    for bad in [json!(-1), json!(1.5), json!("x"), json!([])] {
        assert!(count(&json!({ "n": bad }), "n").is_err(), "{bad}");
    }
    assert!(flag(&json!({ "f": true }), "f").expect("a flag") && !flag(&json!({}), "f").expect("left out"));
    assert!(flag(&json!({ "f": "yes" }), "f").is_err());
    assert_eq!(on_conflict(&json!({ "on_conflict": "skip" })).expect("known"), Some(OnConflict::Skip));
    assert!(on_conflict(&json!({ "on_conflict": "Skip" })).is_err());
}

#[test]
fn session_tokens_are_read_back_and_foreign_ones_refused() {
    let seen: BTreeMap<ShardId, LogIndex> = [(ShardId(1), LogIndex(7)), (ShardId(20), LogIndex(u64::MAX))].into();
    let token = write_session_token(&seen);
    assert_eq!(session_token(&token).expect("ours"), seen);
    assert_eq!(session_token("").expect("nothing seen"), BTreeMap::new());
    for foreign in ["x", "1", "1:", ":1", "1:2:3", "1:-2", "1:2,x", "1:99999999999999999999"] {
        assert!(session_token(foreign).is_err(), "{foreign}");
    }
    let asked = |level: &str| consistency(&json!({ "consistency": level }), &seen);
    assert_eq!(asked("session").expect("known"), Consistency::Session(seen.clone()));
    assert_eq!(asked("stale").expect("known"), Consistency::Stale);
    assert_eq!(consistency(&json!({}), &seen).expect("default"), Consistency::Linearizable);
    assert!(asked("eventual").is_err());
}

#[test]
fn values_are_counted_and_too_many_refused_before_they_take_memory() {
    for (text, count) in [("1", 1), ("{}", 1), (r#"{"a":[1,"b",null],"c":{"d":true}}"#, 7)] {
        assert_eq!(parse(text.as_bytes()).expect("JSON").1, count, "{text}");
    }
    let list = |count: usize| format!("[{}0]", "0,".repeat(count - 2));
    assert_eq!(parse(list(VALUES_MAX).as_bytes()).expect("JSON").1, VALUES_MAX);
    let code = |text: &str| parse(text.as_bytes()).expect_err("too many").body()["code"].clone();
    assert_eq!(code(&list(VALUES_MAX + 1)), "too-many-values");
    assert_eq!(code(&format!("{}]", list(VALUES_MAX))), "bad-json");
}

#[test]
fn a_mark_of_the_byte_order_is_skipped_and_no_number_is_changed() {
    assert_eq!(parse(b"\xef\xbb\xbf{\"a\":1}").expect("JSON").0, json!({ "a": 1 }));
    for body in [
        "{\"a\":18446744073709551616}",
        "{\"a\":[-9223372036854775809]}",
        "{\"a\":1e-400}",
        "{\"a\":1e400}",
        "{\"a\":12345678901234567890123.0}",
    ] {
        assert!(parse(body.as_bytes()).is_err(), "{body}");
    }
}

#[test]
fn names_of_requests_cannot_be_columns() {
    for name in ["limit", "Cursor", "data", "shard", "consistency", "versions"] {
        for columns in [[name, "a"], ["id", name]] {
            let error = schema(&json!({ "columns": columns, "dtypes": ["Number", "String"] })).expect_err(name);
            let words = format!("<Error> '{name}' is a field of requests and cannot be a column: give it another name");
            assert_eq!(error.body()["message"], words);
        }
    }
}

/// Whatever is refused: what it was is repeated up to a bound, on one line.
#[test]
fn what_is_repeated_of_a_client_is_short_and_does_nothing() {
    let long = "\u{1b}[31m\n".repeat(1 << 20);
    let seen = BTreeMap::new();
    let errors = [
        consistency(&json!({ "consistency": long }), &seen).expect_err("consistency"),
        schema(&json!({ "columns": ["id"], "dtypes": [long] })).expect_err("dtype"),
        schema(&json!({ "columns": [long], "dtypes": ["Number"] })).expect_err("column"),
        servers(&json!({ &long: [] })).expect_err("server"),
        servers(&json!({ "Server0": [long] })).expect_err("shard"),
        shards(&json!([{ "Stud_id_low": 0, "Shard_id": long, "Shard_size": 1 }]), "Stud_id").expect_err("shard"),
        shards(&json!([{ "Stud_id_low": long, "Shard_id": "sh1", "Shard_size": 1 }]), "Stud_id").expect_err("low"),
        on_conflict(&json!({ "on_conflict": long })).expect_err("on_conflict"),
        row(&students(), &json!({ "Stud_id": 1, "Stud_name": "a", "Stud_marks": 1, &long: 1 }), 1).expect_err("unknown column"),
        row(&students(), &json!({ "Stud_id": long, "Stud_name": "a", "Stud_marks": 1 }), 1).expect_err("key"),
        row(&students(), &json!({ "Stud_id": 1, "Stud_name": [long], "Stud_marks": 1 }), 1).expect_err("value"),
        changes(&students(), Key(1), &json!({ &long: 1 })).expect_err("unknown column"),
        key(&json!(long), "cursor").expect_err("cursor"),
        parse(format!("{{{0}:1,{0}:1}}", json!(long)).as_bytes()).expect_err("twice"),
        ApiError::invalid(&long),
    ];
    for error in errors {
        let message = error.body()["message"].as_str().expect("text").to_owned();
        assert!(message.len() < 25_000 && !message.contains(char::is_control), "{} bytes: {:.80}", message.len(), message);
    }
}

#[test]
fn long_texts_count_for_what_they_take() {
    let counted = |text: &str| parse(format!("{{\"a\":\"{text}\"}}").as_bytes()).expect("JSON").1;
    assert_eq!([counted("x"), counted(&"x".repeat(64)), counted(&"x".repeat(128_000))], [2, 2, 1_002]);
}
