//! The history of one shard as the checks want it: operations with times, final writes, needs and sightings by key. Building it finds
//! what is wrong with single values: never written, of a refused command, overwritten within its command, under two versions.

use super::{Check, Findings, Violation, explain};
use crate::history::{ABSENT, Action, Call, CommandOutcome, Effect, Level, OperationId};
use core::ops::Range;
use twinshard_core::{
    id::{LogIndex, Position, ShardId},
    value::Key,
};

/// Before everything.
pub(super) const MINUS_INFINITY: u64 = 0;
/// After everything.
pub(super) const INFINITY: u64 = u64::MAX;

/// What an operation is to the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// A command that happened.
    Command,
    /// A command that was refused for what was there: a read of existence.
    Refusal,
    /// A read.
    Read(Level),
}

/// One operation. Times are shifted by one, so that [`MINUS_INFINITY`] is before all.
#[derive(Clone, Debug)]
pub(super) struct Op<'h> {
    /// Where it comes from: its first call.
    pub(super) call: &'h Call,
    pub(super) class: Class,
    pub(super) called: u64,
    pub(super) returned: u64,
    /// Of a command: its position, if any answer told it.
    pub(super) position: Option<Position>,
    /// Of a read: the index it claims to be the state of.
    pub(super) at: Option<LogIndex>,
    pub(super) writes: Range<usize>,
    pub(super) needs: Range<usize>,
    pub(super) seen: Range<usize>,
}

impl Op<'_> {
    pub(super) fn index(&self) -> Option<LogIndex> {
        self.position.map(|position| position.index)
    }

    /// Whether it has a place in the order of all operations: everything but reads that may be old.
    pub(super) fn is_strict(&self) -> bool {
        !matches!(self.class, Class::Read(Level::Session(_) | Level::Stale))
    }
}

/// What a command that happened left in a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    pub(super) op: usize,
    pub(super) key: usize,
    pub(super) value: u64,
    /// False for a deletion.
    pub(super) present: bool,
    /// Who wrote the columns that an update leaves alone.
    pub(super) born: Born,
}

/// Where the columns of a row come from that an update leaves alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Born {
    /// From this value's insertion.
    With(u64),
    /// From the row that was there before the command.
    Before,
    /// It cannot be told.
    Unclear,
}

/// That a key was there, or not, just before the operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    pub(super) key: usize,
    pub(super) present: bool,
}

/// What a read saw of a key that some command touches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) key: usize,
    /// [`ABSENT`] for none.
    pub(super) value: u64,
    /// The operation that wrote it, if it was found.
    pub(super) writer: Option<usize>,
    /// The value whose insertion its other columns name.
    pub(super) born: Option<u64>,
}

/// Something that may have happened at any time after its call, and that no read proves or disproves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maybe {
    pub(super) key: usize,
    pub(super) present: bool,
    pub(super) called: u64,
}

/// The history of one shard.
#[derive(Debug)]
pub(super) struct Model<'h> {
    pub(super) shard: ShardId,
    pub(super) ops: Vec<Op<'h>>,
    /// The keys that any command touches, in order. Others are never there.
    pub(super) keys: Vec<Key>,
    pub(super) writes: Vec<Write>,
    pub(super) needs: Vec<Need>,
    pub(super) seen: Vec<Seen>,
    pub(super) maybes: Vec<Maybe>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Applied,
    Refused,
    Unknown,
    Never,
}

/// All attempts of one command.
struct Command<'h> {
    call: &'h Call,
    effects: &'h [(Key, Effect)],
    claims: Option<(&'h [Key], &'h [Key])>,
    called: u64,
    returned: u64,
    status: Status,
    position: Option<Position>,
    observed: bool,
}

/// Where a value was written.
struct Origin {
    value: u64,
    command: usize,
    key: Key,
    /// Whether it is the command's last word on the key.
    last: bool,
    observed: bool,
}

/// What a command does to one key, all its effects on it taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Untouched,
    Present(u64, Born),
    Absent(u64),
    /// This value, or what was there.
    PresentOr(u64),
}

fn reduce(effects: impl Iterator<Item = Effect>) -> (Option<bool>, After) {
    let mut need = None;
    let mut after = After::Untouched;
    for effect in effects {
        let first = after == After::Untouched;
        after = match effect {
            Effect::Put(value) => After::Present(value, Born::With(value)),
            Effect::PutNew(value) => {
                need = need.or(first.then_some(false));
                After::Present(value, Born::With(value))
            }
            Effect::PutIfAbsent(value) => match after {
                After::Untouched => After::PresentOr(value),
                After::Absent(_) => After::Present(value, Born::With(value)),
                After::Present(..) | After::PresentOr(_) => after,
            },
            Effect::UpdateSet(value) => {
                need = need.or(first.then_some(true));
                let born = match after {
                    After::Present(_, born) => born,
                    After::Untouched => Born::Before,
                    After::Absent(_) | After::PresentOr(_) => Born::Unclear,
                };
                After::Present(value, born)
            }
            Effect::Delete(value) => {
                need = need.or(first.then_some(true));
                After::Absent(value)
            }
            Effect::Keep => {
                need = need.or(first.then_some(true));
                after
            }
        };
    }
    (need, after)
}

/// Calls `each` with every key of a command and what the command needs of it and does to it.
fn for_each_key(effects: &[(Key, Effect)], mut each: impl FnMut(Key, Option<bool>, After)) {
    if let [(key, effect)] = effects {
        let (need, after) = reduce([*effect].into_iter());
        each(*key, need, after);
        return;
    }
    let mut by_key: Vec<(Key, usize)> = effects.iter().enumerate().map(|(place, (key, _))| (*key, place)).collect();
    by_key.sort_unstable();
    for group in by_key.chunk_by(|one, other| one.0 == other.0) {
        let (need, after) = reduce(group.iter().map(|(_, place)| effects[*place].1));
        each(group[0].0, need, after);
    }
}

impl<'h> Model<'h> {
    /// Builds the model and tells what is wrong with single values.
    pub(super) fn build(shard: ShardId, calls: &[&'h Call]) -> (Self, Findings) {
        let mut found = Findings::default();
        let mut commands = commands(shard, calls, &mut found);
        let mut origins = origins(shard, &commands, &mut found);
        let mut keys: Vec<Key> = commands.iter().flat_map(|command| command.effects.iter().map(|(key, _)| *key)).collect();
        keys.sort_unstable();
        keys.dedup();

        // Reads first: they prove which unknown commands happened, and under which versions.
        let mut model = Model { shard, ops: Vec::new(), keys, writes: Vec::new(), needs: Vec::new(), seen: Vec::new(), maybes: Vec::new() };
        let mut row_count = 0;
        for call in calls {
            let Action::Read { range, rows, at, level } = &call.action else { continue };
            let first = model.seen.len();
            let mut rows_left = rows.iter().peekable();
            let from = model.keys.partition_point(|key| *key < range.low);
            for key in from..model.keys.len() {
                if model.keys[key] > range.high {
                    break;
                }
                // Rows of keys that no command touches are nobody's.
                while let Some(stray) = rows_left.next_if(|row| row.key < model.keys[key]) {
                    found.violation(|| nobody_wrote(shard, call, stray.key, stray.value));
                }
                let row = rows_left.next_if(|row| row.key == model.keys[key]);
                let writer = row.and_then(|row| {
                    row_count += 1;
                    origin_of(shard, call, row, &mut origins, &mut commands, &mut found)
                });
                model.seen.push(Seen { key, value: row.map_or(ABSENT, |row| row.value), writer, born: row.and_then(|row| row.born) });
            }
            for stray in rows_left {
                found.violation(|| nobody_wrote(shard, call, stray.key, stray.value));
            }
            model.ops.push(Op {
                call,
                class: Class::Read(*level),
                called: call.called + 1,
                returned: call.returned.map_or(INFINITY, |at| at + 1),
                position: None,
                at: *at,
                writes: 0..0,
                needs: 0..0,
                seen: first..model.seen.len(),
            });
        }
        let read_count = model.ops.len();

        // Then the commands that happened, or may have.
        let mut place_of_command: Vec<Option<usize>> = Vec::with_capacity(commands.len());
        for command in &commands {
            place_of_command.push(model.add_command(command, &origins));
        }
        for seen in &mut model.seen {
            seen.writer = seen.writer.and_then(|command| place_of_command[command]);
        }
        let count = |status| commands.iter().filter(|command| command.status == status).count();
        found.count("writes acknowledged", count(Status::Applied));
        found.count("writes refused", count(Status::Refused));
        found.count("writes unknown", count(Status::Unknown));
        found.count("unknown but seen", commands.iter().filter(|command| command.status == Status::Unknown && command.observed).count());
        found.count("reads", read_count);
        found.count("rows read", row_count);
        (model, found)
    }

    fn key(&self, key: Key) -> usize {
        // Every key of every command is in the list.
        self.keys.partition_point(|other| *other < key)
    }

    /// Adds a command; the place of its operation if it has one.
    fn add_command(&mut self, command: &Command<'h>, origins: &[Origin]) -> Option<usize> {
        let op = self.ops.len();
        let (first_write, first_need) = (self.writes.len(), self.needs.len());
        let happened = match command.status {
            Status::Applied => true,
            Status::Unknown => command.observed,
            Status::Refused => {
                let (existing, missing) = command.claims.unwrap_or_default();
                for (keys, present) in [(existing, true), (missing, false)] {
                    for key in keys {
                        let key = self.key(*key);
                        self.needs.push(Need { key, present });
                    }
                }
                if self.needs.len() == first_need {
                    return None;
                }
                false
            }
            Status::Never => return None,
        };
        if command.status != Status::Refused {
            for_each_key(command.effects, |key, need, after| {
                let key = self.key(key);
                let seen = |value: u64| origins.binary_search_by_key(&value, |origin| origin.value).is_ok_and(|at| origins[at].observed);
                let (after, need) = match after {
                    After::PresentOr(value) if seen(value) => (After::Present(value, Born::With(value)), Some(false)),
                    other => (other, need),
                };
                match after {
                    After::Untouched => {}
                    After::Present(value, born) if happened => self.writes.push(Write { op, key, value, present: true, born }),
                    After::Absent(value) if happened => self.writes.push(Write { op, key, value, present: false, born: Born::Unclear }),
                    After::Present(..) | After::PresentOr(_) => self.maybes.push(Maybe { key, present: true, called: command.called }),
                    After::Absent(_) => self.maybes.push(Maybe { key, present: false, called: command.called }),
                }
                if let (Some(present), true) = (need, happened) {
                    self.needs.push(Need { key, present });
                }
            });
            if !happened {
                return None;
            }
        }
        self.ops.push(Op {
            call: command.call,
            class: if happened { Class::Command } else { Class::Refusal },
            called: command.called,
            returned: command.returned,
            position: command.position,
            at: None,
            writes: first_write..self.writes.len(),
            needs: first_need..self.needs.len(),
            seen: 0..0,
        });
        Some(op)
    }

    /// A violation that these operations show, in this order.
    pub(super) fn violation(&self, check: Check, summary: String, ops: &[(usize, &str)]) -> Violation {
        let steps = ops.iter().map(|(op, role)| format!("{}{role}", explain::op(&self.ops[*op]))).collect();
        Violation { check, shard: self.shard, summary, steps, operations: ops.iter().map(|(op, _)| self.ops[*op].call.operation).collect() }
    }
}

/// Commands with their attempts joined: those of one operation are one.
fn commands<'h>(shard: ShardId, calls: &[&'h Call], found: &mut Findings) -> Vec<Command<'h>> {
    let mut order: Vec<(OperationId, usize)> = calls
        .iter()
        .enumerate()
        .filter(|(_, call)| matches!(call.action, Action::Command { .. }))
        .map(|(place, call)| (call.operation, place))
        .collect();
    order.sort_unstable();
    let mut commands = Vec::with_capacity(order.len());
    for attempts in order.chunk_by(|one, other| one.0 == other.0) {
        let mut joined: Option<Command<'h>> = None;
        for (_, place) in attempts {
            let call = calls[*place];
            let Action::Command { effects, outcome } = &call.action else { continue };
            let returned = call.returned.map_or(INFINITY, |at| at + 1);
            let (status, position, claims) = match outcome {
                CommandOutcome::Acknowledged { position } => (Status::Applied, *position, None),
                CommandOutcome::Refused { existing, missing } => (Status::Refused, None, Some((existing.as_slice(), missing.as_slice()))),
                CommandOutcome::Unknown => (Status::Unknown, None, None),
                CommandOutcome::NotApplied => (Status::Never, None, None),
            };
            let returned = if status == Status::Unknown { INFINITY } else { returned };
            let Some(before) = &mut joined else {
                joined = Some(Command { call, effects, claims, called: call.called + 1, returned, status, position, observed: false });
                continue;
            };
            before.called = before.called.min(call.called + 1);
            let differ = match (before.position, position) {
                (Some(one), Some(other)) => one != other,
                (None, _) | (_, None) => false,
            };
            let torn = matches!((before.status, status), (Status::Applied, Status::Refused) | (Status::Refused, Status::Applied));
            if differ || torn {
                found.violation(|| Violation {
                    check: Check::Integrity,
                    shard,
                    summary: format!("one command, {}", if torn { "two answers" } else { "two positions: it was applied twice" }),
                    steps: attempts.iter().map(|(_, place)| explain::call(calls[*place])).collect(),
                    operations: vec![call.operation],
                });
            }
            // The definite answer counts: applied, else refused, else unknown.
            let rank = |status| match status {
                Status::Applied => 0,
                Status::Refused => 1,
                Status::Unknown => 2,
                Status::Never => 3,
            };
            match rank(status).cmp(&rank(before.status)) {
                core::cmp::Ordering::Less => {
                    (before.status, before.returned, before.claims) = (status, returned, claims);
                    before.position = position.or(before.position);
                }
                core::cmp::Ordering::Equal => {
                    before.returned = before.returned.min(returned);
                    before.position = before.position.or(position);
                }
                core::cmp::Ordering::Greater => {}
            }
        }
        commands.extend(joined);
    }
    commands
}

fn origins(shard: ShardId, commands: &[Command<'_>], found: &mut Findings) -> Vec<Origin> {
    let mut origins: Vec<Origin> = Vec::with_capacity(commands.len());
    for (command, each) in commands.iter().enumerate() {
        for (key, effect) in each.effects {
            if let Some(value) = effect.value() {
                origins.push(Origin { value, command, key: *key, last: each.effects.len() == 1, observed: false });
            }
        }
    }
    origins.sort_by_key(|origin| origin.value);
    for (command, each) in commands.iter().enumerate() {
        if each.effects.len() > 1 {
            for_each_key(each.effects, |_, _, after| {
                if let After::Present(value, _) | After::Absent(value) | After::PresentOr(value) = after
                    && let Ok(at) = origins.binary_search_by_key(&value, |origin| origin.value)
                    && origins[at].command == command
                {
                    origins[at].last = true;
                }
            });
        }
    }
    for pair in origins.windows(2) {
        if pair[0].value == pair[1].value {
            found.violation(|| Violation {
                check: Check::Integrity,
                shard,
                summary: format!("value {} was written by two commands: the workload is broken", pair[0].value),
                steps: pair.iter().map(|origin| explain::call(commands[origin.command].call)).collect(),
                operations: pair.iter().map(|origin| commands[origin.command].call.operation).collect(),
            });
        }
    }
    origins
}

fn nobody_wrote(shard: ShardId, call: &Call, key: Key, value: u64) -> Violation {
    Violation {
        check: Check::Integrity,
        shard,
        summary: format!("key {key} held {}, which nobody wrote there", explain::value(value)),
        steps: vec![explain::call(call)],
        operations: vec![call.operation],
    }
}

/// The command that wrote a row, and all that the sight of the row tells of it.
fn origin_of(
    shard: ShardId,
    call: &Call,
    row: &crate::history::SeenRow,
    origins: &mut [Origin],
    commands: &mut [Command<'_>],
    found: &mut Findings,
) -> Option<usize> {
    let origin = origins.binary_search_by_key(&row.value, |origin| origin.value).ok().map(|at| &mut origins[at]);
    let Some(origin) = origin.filter(|origin| origin.key == row.key) else {
        found.violation(|| nobody_wrote(shard, call, row.key, row.value));
        return None;
    };
    origin.observed = true;
    let writer = &mut commands[origin.command];
    writer.observed = true;
    let mut wrong = |what: &str, writer: &Command<'_>| {
        found.violation(|| Violation {
            check: Check::Integrity,
            shard,
            summary: format!("key {} held {}, {what}", row.key, explain::value(row.value)),
            steps: vec![explain::call(writer.call), explain::call(call)],
            operations: vec![writer.call.operation, call.operation],
        });
    };
    match writer.status {
        Status::Applied | Status::Unknown => {}
        Status::Refused | Status::Never => wrong("of a command that was answered as not applied", writer),
    }
    if !origin.last {
        wrong("which the same command wrote over: half of it was seen", writer);
    }
    match (writer.position, row.version) {
        (None, Some(_)) => writer.position = row.version,
        (Some(known), Some(version)) if known != version => {
            wrong(&format!("under the version {version} and under {known}: its command was applied twice"), writer);
        }
        (_, None) | (Some(_), Some(_)) => {}
    }
    Some(origin.command)
}
