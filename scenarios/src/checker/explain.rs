//! Operations in words, for violations.

use super::model::Op;
use crate::history::{ABSENT, Action, Call, CommandOutcome, Effect, Level, NOT_A_VALUE, TOMBSTONE_MIN};
use core::fmt::Write;

/// The most keys that a line tells.
const KEYS_MAX: usize = 6;

/// A unique value.
pub(super) fn value(value: u64) -> String {
    match value {
        ABSENT => "no row".to_owned(),
        NOT_A_VALUE => "something that is no value".to_owned(),
        deletion if deletion >= TOMBSTONE_MIN => "a deletion".to_owned(),
        value => format!("={value}"),
    }
}

fn time(ns: Option<u64>) -> String {
    ns.map_or_else(|| "never".to_owned(), |ns| format!("{}.{:03}ms", ns / 1_000_000, ns / 1_000 % 1_000))
}

/// An operation, with the position that was learned of it.
pub(super) fn op(op: &Op<'_>) -> String {
    let mut text = call(op.call);
    if let (Some(position), Action::Command { outcome: CommandOutcome::Unknown, .. }) = (op.position, &op.call.action) {
        let _ = write!(text, ", seen as {position}");
    }
    text
}

/// A call in one line.
pub(super) fn call(call: &Call) -> String {
    let mut text = format!("{} client {} [{} to {}] ", call.operation, call.client, time(Some(call.called)), time(call.returned));
    // Writing to a string cannot fail.
    let _ = match &call.action {
        Action::Command { effects, outcome } => command(&mut text, effects, outcome),
        Action::Read { range, rows, at, level } => {
            let level = match level {
                Level::Linearizable => String::new(),
                Level::Session(floor) => format!("session({floor}) "),
                Level::Stale => "stale ".to_owned(),
            };
            let _ = if range.low == range.high {
                write!(text, "{level}read {}", range.low)
            } else {
                write!(text, "{level}read {}..{}", range.low, range.high)
            };
            text.push_str(" saw ");
            if rows.is_empty() {
                text.push_str("nothing");
            }
            for (place, row) in rows.iter().take(KEYS_MAX).enumerate() {
                let version = row.version.map_or_else(String::new, |version| format!(" ({version})"));
                let _ = write!(text, "{}{}={}{version}", if place > 0 { ", " } else { "" }, row.key, row.value);
            }
            if rows.len() > KEYS_MAX {
                let _ = write!(text, ", {} more", rows.len() - KEYS_MAX);
            }
            at.map_or(Ok(()), |at| write!(text, " as of {at}"))
        }
    };
    text
}

fn command(text: &mut String, effects: &[(twinshard_core::value::Key, Effect)], outcome: &CommandOutcome) -> core::fmt::Result {
    for (place, (key, effect)) in effects.iter().take(KEYS_MAX).enumerate() {
        text.push_str(if place > 0 { ", " } else { "" });
        match effect {
            Effect::Put(value) => write!(text, "put {key}={value}"),
            Effect::PutNew(value) => write!(text, "put new {key}={value}"),
            Effect::PutIfAbsent(value) => write!(text, "put if absent {key}={value}"),
            Effect::UpdateSet(value) => write!(text, "update {key}={value}"),
            Effect::Delete(_) => write!(text, "delete {key}"),
            Effect::Keep => write!(text, "keep {key}"),
        }?;
    }
    if effects.len() > KEYS_MAX {
        write!(text, ", {} more", effects.len() - KEYS_MAX)?;
    }
    match outcome {
        CommandOutcome::Acknowledged { position: Some(position) } => write!(text, ": done at {position}"),
        CommandOutcome::Acknowledged { position: None } => write!(text, ": done"),
        CommandOutcome::NotApplied => write!(text, ": not applied"),
        CommandOutcome::Refused { existing, missing } => {
            let keys = |keys: &[twinshard_core::value::Key]| keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            write!(text, ": refused")?;
            if !existing.is_empty() {
                write!(text, ", {} exist", keys(existing))?;
            }
            if missing.is_empty() { Ok(()) } else { write!(text, ", {} missing", keys(missing)) }
        }
        CommandOutcome::Unknown => write!(text, ": unknown"),
    }
}
