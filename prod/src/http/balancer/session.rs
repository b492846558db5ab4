//! What a client is told of positions: its session's token, which adds up, and the position of the answer itself, which does not.

use crate::http::{Call, error::ApiError, json};
use axum::{http::HeaderValue, response::Response};
use std::collections::BTreeMap;
use twinshard_core::{
    id::{LogIndex, Position, ShardId},
    request::Consistency,
};

/// The header that carries what a session has seen.
pub(super) const SESSION: &str = "twinshard-session";
/// The header that carries at which entry of each shard's log the answer was read or written, whatever the client had seen before.
const POSITION: &str = "twinshard-position";

/// What the client's session had seen before, by its header.
pub(super) fn session(call: &Call) -> Result<BTreeMap<ShardId, LogIndex>, ApiError> {
    Ok(call.header(SESSION)?.map(json::session_token).transpose()?.unwrap_or_default())
}

/// What a session has seen with this answer. Of the shards that it speaks for that is the answer's own word, since whatever the client has
/// truly seen is in it: a token that says more was made up, and is not repeated. A stale read alone may be older than what was seen before.
pub(super) fn seen_with(
    mut before: BTreeMap<ShardId, LogIndex>,
    consistency: Option<&Consistency>,
    seen: impl IntoIterator<Item = (ShardId, LogIndex)>,
) -> BTreeMap<ShardId, LogIndex> {
    for (shard, index) in seen {
        let known = before.entry(shard).or_default();
        *known = if consistency == Some(&Consistency::Stale) { index.max(*known) } else { index };
    }
    before
}

/// At which entry of each shard a read was.
pub(super) fn read_position(seen: &BTreeMap<ShardId, LogIndex>) -> String {
    json::write_session_token(seen)
}

/// At which entry of each shard a write is, with its epoch, as `$version` of a row has it.
pub(super) fn write_position(seen: &BTreeMap<ShardId, Position>) -> String {
    let pairs: Vec<String> = seen.iter().map(|(shard, at)| format!("{}:{}.{}", shard.0, at.epoch.0, at.index.0)).collect();
    pairs.join(",")
}

pub(super) fn with_headers(mut response: Response, seen: &BTreeMap<ShardId, LogIndex>, position: &str) -> Response {
    for (name, value) in [(SESSION, &*json::write_session_token(seen)), (POSITION, position)] {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_says_more_than_the_answer_shows_is_not_repeated() {
        let (one, other) = (ShardId(1), ShardId(2));
        let before = || BTreeMap::from([(one, LogIndex(1 << 63)), (other, LogIndex(7))]);
        let seen = [(one, LogIndex(12))];
        for consistency in [Some(Consistency::Linearizable), Some(Consistency::Session(before())), None] {
            assert_eq!(seen_with(before(), consistency.as_ref(), seen), BTreeMap::from([(one, LogIndex(12)), (other, LogIndex(7))]));
        }
        assert_eq!(
            seen_with(BTreeMap::from([(one, LogIndex(15))]), Some(&Consistency::Stale), seen),
            BTreeMap::from([(one, LogIndex(15))])
        );
    }
}
