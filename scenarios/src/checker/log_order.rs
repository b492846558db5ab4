//! White box: what answers say of the log is one story. Positions and indexes are looked at, as far as they are given.
//!
//! An index holds one command, epochs grow along the log; a read as of an index saw exactly what the commands up to it left (I4); what is
//! called after a return comes later in the log, or reads at least as far (I6); a session never goes back and never ignores its token; a
//! row is whole: an update changed what it names and nothing else.

use super::{
    Check, Findings, explain,
    model::{Born, Class, INFINITY, Model, Op, Seen},
    versions::Versions,
};
use crate::history::{ABSENT, Action, CommandOutcome, Level};
use std::collections::BTreeMap;
use twinshard_core::id::LogIndex;

/// Checks one shard.
pub(super) fn check(model: &Model<'_>) -> Findings {
    let mut found = Findings::default();
    let versions = Versions::new(model);
    one_story(model, &mut found);
    replay(model, &versions, &mut found);
    real_time(model, &mut found);
    found
}

/// One command per index, epochs that grow.
fn one_story(model: &Model<'_>, found: &mut Findings) {
    let mut placed: Vec<usize> = (0..model.ops.len()).filter(|op| model.ops[*op].position.is_some()).collect();
    placed.sort_by_key(|op| model.ops[*op].index());
    for pair in placed.windows(2) {
        let (Some(one), Some(other)) = (model.ops[pair[0]].position, model.ops[pair[1]].position) else { continue };
        let summary = if one.index == other.index {
            format!("two commands at {}", one.index)
        } else if one.epoch > other.epoch {
            format!("{one} stands before {other}: epochs go back")
        } else {
            continue;
        };
        found.violation(|| model.violation(Check::LogOrder, summary, &[(pair[0], ""), (pair[1], "")]));
    }
    found.count("commands placed", placed.len());
}

/// Every read that says its index saw the state as of it.
fn replay(model: &Model<'_>, versions: &Versions, found: &mut Findings) {
    let (mut read_count, mut key_count) = (0, 0);
    let mut born_count = 0;
    for (op, each) in model.ops.iter().enumerate() {
        for seen in &model.seen[each.seen.clone()] {
            born_count += usize::from(whole_row(model, versions, op, seen, found));
        }
        let Some(at) = each.at else { continue };
        read_count += 1;
        for seen in &model.seen[each.seen.clone()] {
            key_count += 1;
            let of_key = versions.of(seen.key);
            let expected = of_key.partition_point(|version| version.index <= at).checked_sub(1).map(|place| of_key[place]);
            let value = expected.filter(|version| version.present).map_or(ABSENT, |version| version.value);
            if value == seen.value {
                continue;
            }
            let excused = match seen.writer {
                // A deletion that nobody knows the place of.
                None => seen.value != ABSENT || versions.could_be(seen.key, false, each.returned, op),
                // A row whose place nobody told.
                Some(writer) => model.ops[writer].index().is_none(),
            };
            if !excused {
                found.violation(|| {
                    let summary = format!(
                        "key {} as of {at} was {}, the read saw {}",
                        model.keys[seen.key],
                        explain::value(value),
                        explain::value(seen.value)
                    );
                    let mut ops: Vec<(usize, &str)> = Vec::new();
                    ops.extend(expected.map(|version| (version.op, "  <- what the log has")));
                    ops.extend(seen.writer.map(|writer| (writer, "  <- what was seen")));
                    ops.push((op, ""));
                    model.violation(Check::LogOrder, summary, &ops)
                });
            }
        }
    }
    found.count("reads replayed", read_count);
    found.count("keys replayed", key_count);
    found.count("rows whole", born_count);
}

/// An update leaves the columns that it does not name: they still tell of the insertion. Gives whether that could be told.
fn whole_row(model: &Model<'_>, versions: &Versions, op: usize, seen: &Seen, found: &mut Findings) -> bool {
    let (Some(born), Some(writer)) = (seen.born, seen.writer) else { return false };
    let Some(place) = model.ops[writer].index().and_then(|index| versions.place(seen.key, index, writer)) else { return false };
    let version = versions.of(seen.key)[place];
    let Born::With(expected) = version.born else { return false };
    // An insertion that nobody knows the place of may have come between.
    if expected != version.value && versions.could_be(seen.key, true, model.ops[op].returned, op) {
        return false;
    }
    if born != expected {
        found.violation(|| {
            let summary = format!(
                "key {}: the columns that an update leaves alone are of ={born}, they should be of ={expected}",
                model.keys[seen.key]
            );
            model.violation(Check::LogOrder, summary, &[(writer, "  <- what was seen"), (op, "")])
        });
    }
    true
}

/// Whether the answer itself told the client how far it got. A place that was learned from others' reads binds no session, nor does a
/// stale read.
fn tells_its_client(op: &Op<'_>) -> bool {
    match &op.call.action {
        Action::Command { outcome, .. } => matches!(outcome, CommandOutcome::Acknowledged { position: Some(_) }),
        Action::Read { level, .. } => *level != Level::Stale,
    }
}

/// The furthest that was reached by anything that returned, and by whom.
type Reached = (LogIndex, usize);

/// What is called after a return goes on from there.
fn real_time(model: &Model<'_>, found: &mut Findings) {
    let mut events: Vec<(u64, bool, usize)> = Vec::new();
    for (op, each) in model.ops.iter().enumerate() {
        if each.index().is_none() && each.at.is_none() {
            continue;
        }
        events.push((each.called, false, op));
        if each.returned != INFINITY {
            events.push((each.returned, true, op));
        }
    }
    // At equal times calls come first: they are concurrent with what returns then.
    events.sort_unstable();
    let mut all: Option<Reached> = None;
    let mut by_client: BTreeMap<u32, Reached> = BTreeMap::new();
    let (mut order_count, mut session_count) = (0, 0);
    for (_, is_return, op) in events {
        let each = &model.ops[op];
        let Some(index) = each.index().or(each.at) else { continue };
        if is_return {
            if each.is_strict() && all.is_none_or(|(reached, _)| reached < index) {
                all = Some((index, op));
            }
            if !tells_its_client(each) {
                continue;
            }
            let of_client = by_client.entry(each.call.client).or_insert((index, op));
            if of_client.0 < index {
                *of_client = (index, op);
            }
            continue;
        }
        // Who must have been reached, and whether it must be left behind.
        let floor = match each.class {
            Class::Command => all.map(|reached| (reached, true)),
            Class::Read(Level::Linearizable) => all.map(|reached| (reached, false)),
            Class::Read(Level::Session(token)) => {
                session_count += 1;
                if index < token {
                    found.violation(|| {
                        model.violation(
                            Check::LogOrder,
                            format!("a session read as of {index} although its token says {token}"),
                            &[(op, "")],
                        )
                    });
                }
                by_client.get(&each.call.client).map(|reached| (*reached, false))
            }
            Class::Read(Level::Stale) | Class::Refusal => None,
        };
        let Some(((reached, by), beyond)) = floor else { continue };
        order_count += 1;
        if index < reached || (beyond && index == reached) {
            found.violation(|| {
                let what = if beyond { "a command was put at" } else { "a read was as of" };
                let summary = format!("{what} {index} although {reached} had been reached before it was called");
                model.violation(Check::LogOrder, summary, &[(by, ""), (op, "")])
            });
        }
    }
    found.count("real-time orders", order_count);
    found.count("session reads", session_count);
}
