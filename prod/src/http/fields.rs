//! The fields that requests have. What a request has besides is ignored, as old clients send fields of their own; but a field that is nearly
//! one of these is refused with the one that was probably meant: to ignore it would be to do something else than was asked. None beside which a
//! row's key stands can be a column: nobody could tell them apart.

use super::error::ApiError;
use crate::shown;
use axum::http::StatusCode;
use serde_json::{Map, Value};

/// The fields of one request.
pub(super) type Fields = &'static [&'static str];

pub(super) const INIT: Fields = &["N", "schema", "shards", "servers", "on_conflict"];
pub(super) const ADD: Fields = &["n", "new_shards", "servers", "hostnames"];
pub(super) const REMOVE: Fields = &["n", "servers", "hostnames", "accept_data_loss"];
pub(super) const READ: Fields = &["limit", "cursor", "consistency", "versions"];
pub(super) const WRITE: Fields = &["data", "on_conflict"];
pub(super) const UPDATE: Fields = &["data"];
pub(super) const DELETE: Fields = &[];
pub(super) const PRIMARY: Fields = &["shard", "Shard_id", "shard_id"];
pub(super) const MOVE: Fields = &["shard", "from", "to"];
pub(super) const DRAIN: Fields = &["server"];
pub(super) const EXPLAIN: Fields = &["key", "shard"];
pub(super) const COPY: Fields = &["shards"];
pub(super) const SERVER_READ: Fields = &["shard", "consistency", "versions"];
pub(super) const SERVER_WRITE: Fields = &["shard", "data", "curr_idx", "on_conflict"];
pub(super) const SERVER_UPDATE: Fields = &["shard", "data"];
pub(super) const SERVER_DELETE: Fields = &["shard"];
pub(super) const CONFIG: Fields = &["schema", "shards"];
pub(super) const LOG: Fields = &["shard"];

/// Of requests beside whose fields a row's key stands, under its own name.
const BESIDE_KEYS: &[Fields] = &[READ, WRITE, UPDATE, DELETE, SERVER_READ, SERVER_WRITE, SERVER_UPDATE, SERVER_DELETE];

/// What the course's own balancers send besides.
const IGNORED: Fields = &["curr_idx", "followers", "logRequests"];

/// Whether a column cannot be called so. As for columns, case does not matter.
pub(super) fn is_reserved(name: &str) -> bool {
    BESIDE_KEYS.iter().copied().flatten().any(|field| field.eq_ignore_ascii_case(name))
}

/// Refuses a field that is nearly one of these; the key of a row stands beside them under its own name.
///
/// # Errors
/// The first such field.
pub(super) fn check(body: &Map<String, Value>, fields: Fields, key: Option<&str>) -> Result<(), ApiError> {
    let is_known = |name: &str| fields.contains(&name) || IGNORED.contains(&name) || key == Some(name);
    for name in body.keys().filter(|name| !is_known(name)) {
        // Where both stand, this one is something else.
        let meant = fields.iter().copied().chain(key).find(|field| !body.contains_key(*field) && is_near(name, field));
        if let Some(meant) = meant {
            let words = format!("'{}' is no field of this request: was '{meant}' meant?", shown::echo(name));
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "unknown-field", words));
        }
    }
    Ok(())
}

/// Whether one was probably meant for the other: the same but for case, '_' and '-', or with a letter or two of a longer one mistyped.
fn is_near(name: &str, field: &str) -> bool {
    // Longer names are of something else, and would take long to compare.
    if name.len() > field.len() + 8 {
        return false;
    }
    let bare = |name: &str| name.chars().filter(|character| !"_-".contains(*character)).flat_map(char::to_lowercase).collect::<String>();
    let (name, field) = (bare(name), bare(field));
    let mistyped_max = match field.len() {
        0..4 => 0,
        4..8 => 1,
        _ => 2,
    };
    strsim::osa_distance(&name, &field) <= mistyped_max
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const ALL: &[Fields] = &[
        INIT,
        ADD,
        REMOVE,
        READ,
        WRITE,
        UPDATE,
        DELETE,
        PRIMARY,
        MOVE,
        DRAIN,
        EXPLAIN,
        COPY,
        SERVER_READ,
        SERVER_WRITE,
        SERVER_UPDATE,
        SERVER_DELETE,
        CONFIG,
        LOG,
    ];

    fn checked(names: &[&str], fields: Fields, key: Option<&str>) -> Option<String> {
        let body = names.iter().map(|name| ((*name).to_owned(), Value::Null)).collect();
        check(&body, fields, key).err().and_then(|error| error.body()["message"].as_str().map(str::to_owned))
    }

    #[test]
    fn nearly_one_of_ours_is_refused_and_what_is_of_others_is_ignored() {
        for (name, fields, meant) in [
            ("consistancy", READ, "consistency"),
            ("Consistency", READ, "consistency"),
            ("limits", READ, "limit"),
            ("onConflict", WRITE, "on_conflict"),
            ("on-conflict", WRITE, "on_conflict"),
            ("accept_dataloss", REMOVE, "accept_data_loss"),
            ("server", REMOVE, "servers"),
            ("N", ADD, "n"),
            ("stud_id", READ, "Stud_id"),
            ("Stud_di", DELETE, "Stud_id"),
        ] {
            let words = format!("<Error> '{name}' is no field of this request: was '{meant}' meant?");
            assert_eq!(checked(&[name], fields, Some("Stud_id")), Some(words));
        }
        let others = ["curr_idx", "followers", "logRequests", "request_id", "x", "low", "epoch", "Stud_id", "payload"];
        for fields in ALL {
            assert_eq!(checked(&others, fields, Some("Stud_id")), None, "{fields:?}");
        }
        assert_eq!(checked(&["shard", "Shard_id"], PRIMARY, None), None);
        assert_eq!(checked(&["limit", "limits"], READ, None), None, "both are there: one is something else");
        assert_eq!(checked(&["limits"], READ, Some("limits")), None, "the key is");
        assert_eq!(checked(&[&"limit".repeat(1_000_000)], READ, None), None);
    }

    #[test]
    fn what_requests_have_cannot_be_a_column() {
        for name in ["limit", "cursor", "data", "shard", "consistency", "versions", "on_conflict", "Limit", "curr_idx"] {
            assert!(is_reserved(name), "{name}");
        }
        for name in ["Stud_id", "id", "key", "n", "name", "low", "status", "value"] {
            assert!(!is_reserved(name), "{name}");
        }
    }

    /// By the sources of those that read them.
    #[test]
    fn every_field_that_is_read_is_one_of_these() {
        let sources = [
            include_str!("balancer.rs"),
            include_str!("balancer/operators.rs"),
            include_str!("balancer/reads.rs"),
            include_str!("balancer/writes.rs"),
            include_str!("server.rs"),
            include_str!("json.rs"),
        ];
        let mut read = BTreeSet::new();
        for source in sources {
            let source = source.split("#[cfg(test)]").next().unwrap_or_default();
            for begin in ["call.json, \"", "call.json.get(\"", "json.get(\"", "given(\"", "name(&call, \""] {
                read.extend(source.split(begin).skip(1).filter_map(|rest| rest.split('"').next()));
            }
        }
        let known: BTreeSet<&str> = ALL.iter().copied().flatten().copied().collect();
        let unknown: Vec<_> = read.difference(&known).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        assert!(
            ["N", "limit", "shard", "from", "server", "data", "consistency", "on_conflict"].iter().all(|name| read.contains(name)),
            "{read:?}"
        );
    }
}
