//! Other ways to say a request that the contract has, and requests that it has not: clients of all kinds write both, and each of those has
//! an answer.

use super::wire::Call;
use bytes::Bytes;
use http::Method;
use serde_json::{Value as Json, json};

/// A request as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spelled {
    /// The method.
    pub method: Method,
    /// The target.
    pub path: String,
    /// The body.
    pub body: Bytes,
}

/// The call in one of the ways that mean the same. Which one depends on what it says alone, so that it is repeated as it was.
#[must_use]
pub fn spelled(call: &Call) -> Spelled {
    let body = if call.body.is_null() { String::new() } else { call.body.to_string() };
    let sum = body.bytes().chain(call.path.bytes()).fold(7_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) >> 3;
    let plain = Spelled { method: call.method.clone(), path: call.path.clone(), body: body.clone().into() };
    match sum % 8 {
        0 => Spelled { path: format!("/{}", call.path), ..plain },
        1 if !call.path.contains('?') => Spelled { path: format!("{}/", call.path), ..plain },
        2 if call.method == Method::DELETE => Spelled { method: Method::POST, ..plain },
        3 if !body.is_empty() => Spelled { body: format!("\u{feff}{body}").into(), ..plain },
        4 if !body.is_empty() => Spelled { body: with_decimals(&call.body).into(), ..plain },
        5 if call.body.is_object() => {
            let mut more = call.body.clone();
            more["followers"] = json!(["Server1"]);
            Spelled { body: more.to_string().into(), ..plain }
        }
        _ => plain,
    }
}

/// Whole numbers as decimals and with an exponent.
fn with_decimals(json: &Json) -> String {
    match json {
        Json::Number(number) if number.is_i64() && number.as_i64().is_some_and(|number| number % 10 == 0 && number != 0) => {
            format!("{}e1", number.as_i64().unwrap_or_default() / 10)
        }
        Json::Number(number) if number.is_i64() => format!("{number}.0"),
        Json::Array(items) => format!("[{}]", items.iter().map(with_decimals).collect::<Vec<_>>().join(",")),
        Json::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| format!("{}:{}", json!(name), with_decimals(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

/// What a client asks that does not know the contract, and what it may be told: statuses of the contract that say that nothing was done, or
/// 200 for what only looks.
#[must_use]
pub fn stray(number: usize) -> (Spelled, &'static [u16]) {
    // A node that does not know the cluster yet, has too much to do, or may not serve says so.
    let (method, path, body, statuses): (&str, &str, &str, &[u16]) = match number % 16 {
        0 => ("HEAD", "/status", "", &[200, 503, 504]),
        1 => ("HEAD", "/write", "", &[405]),
        2 => ("GET", "/nowhere", "", &[400]),
        3 => ("POST", "/nowhere//", "", &[404]),
        4 => ("BREW", "/read", "{}", &[405]),
        5 => ("POST", "/write", "{\"data\":[", &[400]),
        6 => ("POST", "/write", "[1,2,3]", &[400]),
        7 => ("POST", "/write", "{\"data\":[{\"id\":18446744073709551616}]}", &[400]),
        8 => ("POST", "/read", "{\"consistancy\":\"stale\"}", &[400]),
        9 => ("POST", "/rm", "{\"n\":1,\"servers\":[\"x\\u001b[31m\\n\"]}", &[400, 503, 504]),
        10 => ("POST", "/init", "{\"schema\":{\"columns\":[\"limit\"],\"dtypes\":[\"Number\"]},\"shards\":[]}", &[400]),
        11 => ("GET", "//healthz/", "", &[200]),
        12 => ("GET", "/heartbeat", "", &[200, 400, 503, 504]),
        13 => ("POST", "/drain", "{\"server\":\"Nobody\"}", &[400, 409, 503, 504]),
        14 => ("DELETE", "/del", "", &[400, 503, 504]),
        _ => ("GET", "/readyz", "", &[200, 503]),
    };
    let method = Method::from_bytes(method.as_bytes()).unwrap_or_default();
    (Spelled { method, path: path.to_owned(), body: Bytes::from_static(body.as_bytes()) }, statuses)
}

/// Why an answer to such a request is none of the contract.
#[must_use]
pub fn breach(asked: &Spelled, statuses: &[u16], status: u16, body: &[u8]) -> Option<String> {
    let of = || format!("{} {}", asked.method, asked.path);
    if !statuses.contains(&status) {
        return Some(format!("{} is answered {status}: {}", of(), String::from_utf8_lossy(body)));
    }
    if asked.method == Method::HEAD {
        return (!body.is_empty()).then(|| format!("{} has a body", of()));
    }
    if status == 200 {
        return None;
    }
    let says_all = serde_json::from_slice::<Json>(body).is_ok_and(|json| {
        let is_text = |name: &str| json[name].as_str().is_some_and(|text| !text.is_empty() && !text.contains(char::is_control));
        ["message", "code", "hint"].into_iter().all(is_text) && json["status"] == "failure" && json["retryable"].is_boolean()
    });
    (!says_all).then(|| format!("{} is refused with {status} and {}", of(), String::from_utf8_lossy(body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_means_the_same_and_is_the_same_again() {
        let mut ways = std::collections::BTreeSet::new();
        for key in 0..200 {
            let body = json!({ "id": key, "data": { "a": "x", "n": -0.5, "m": [key, 10] } });
            let call = Call { method: Method::DELETE, path: "/del".to_owned(), body: body.clone(), key: None, session: None };
            let way = spelled(&call);
            assert_eq!(way, spelled(&call));
            let text = std::str::from_utf8(&way.body).unwrap().trim_start_matches('\u{feff}');
            let said: Json = serde_json::from_str(text).unwrap();
            assert_eq!((said["id"].as_f64(), said["data"]["m"][1].as_f64()), (Some(f64::from(key)), Some(10.0)), "{text}");
            assert_eq!(way.path.trim_matches('/'), "del");
            ways.insert((
                way.method.to_string(),
                way.path,
                text.contains(".0"),
                text.len() != way.body.len(),
                said.get("followers").is_some(),
            ));
        }
        assert!(ways.len() >= 6, "{ways:?}");
    }

    #[test]
    fn an_answer_that_the_contract_has_not_is_seen() {
        let (asked, statuses) = stray(2);
        let good = br#"{"message":"<Error> a","status":"failure","code":"b","applied":"no","retryable":false,"hint":"c"}"#;
        assert_eq!(breach(&asked, statuses, 400, good), None);
        for (status, body) in [(200, &good[..]), (500, good), (400, b""), (400, b"<html>"), (400, br#"{"message":"a\u001b"}"#)] {
            assert!(breach(&asked, statuses, status, body).is_some(), "{status}");
        }
        let (head, statuses) = stray(0);
        assert!(breach(&head, statuses, 200, b"").is_none() && breach(&head, statuses, 200, b"x").is_some());
    }
}
