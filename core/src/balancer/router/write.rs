//! Writes: split by shard, each part a command with an identity, sent to the primary until it is known what came of it. A part that may
//! stand in a log is never called failed (R25).

use super::{
    super::{routes::Routes, sessions::Number},
    Cause, Pending, REFUSED_AGAIN_AFTER, REFUSED_AGAIN_MAX, Router, WRITE_AGAIN_AFTER, WRITE_AGAIN_MAX,
};
use crate::{
    command::{Idempotency, OPERATIONS_MAX, OnConflict, Operation, Verdict},
    effect::BalancerEffect,
    id::{Position, ServerId, ShardId, Token},
    message::{Execute, ExecuteResult, Tag, ToServer},
    request::{Applied, Health, Reply, RequestError, ShardPart, Written},
    value::Key,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A write under way.
#[derive(Clone, Debug)]
pub(super) struct Write {
    parts: Vec<Part>,
    idempotency: Option<Idempotency>,
}

/// The operations of one shard.
#[derive(Clone, Debug)]
pub(super) struct Part {
    shard: ShardId,
    /// The shard's name, for the answer: it may have left the map by then.
    name: Box<str>,
    operations: Arc<Vec<Operation>>,
    /// Its number, once it has one.
    number: Option<Number>,
    /// Its place in line for one.
    ticket: Option<u64>,
    /// Copies ever sent.
    sent_count: u64,
    result: Option<Result<Done, RequestError>>,
}

#[derive(Clone, Copy, Debug)]
struct Done {
    written_count: u32,
    skipped_count: u32,
    position: Position,
}

impl Write {
    /// Splits the operations by shard, in order.
    pub(super) fn new(
        routes: &Routes,
        operations: Vec<Operation>,
        on_conflict: Option<OnConflict>,
        idempotency: Option<Idempotency>,
    ) -> Result<Self, RequestError> {
        if routes.map().schema.is_none() {
            return Err(RequestError::NotInitialised);
        }
        if operations.len() > OPERATIONS_MAX {
            return Err(RequestError::Invalid(format!("More than {OPERATIONS_MAX} rows in one request").into()));
        }
        let on_conflict = on_conflict.unwrap_or(routes.map().settings.on_conflict);
        let mut by_shard: BTreeMap<ShardId, Vec<Operation>> = BTreeMap::new();
        for mut operation in operations {
            // One key outside every range, and nothing is sent at all (API.md).
            let shard = routes.shard_at(operation.key()).ok_or_else(|| RequestError::OutOfRange(operation.key()))?;
            if let Operation::Insert { on_conflict: of_row, .. } = &mut operation {
                *of_row = on_conflict;
            }
            by_shard.entry(shard).or_default().push(operation);
        }
        let part = |(shard, operations)| Part {
            shard,
            name: routes.name(shard),
            operations: Arc::new(operations),
            number: None,
            ticket: None,
            sent_count: 0,
            result: None,
        };
        Ok(Self { parts: by_shard.into_iter().map(part).collect(), idempotency })
    }

    pub(super) fn shards(&self) -> impl Iterator<Item = ShardId> {
        self.parts.iter().map(|part| part.shard)
    }

    pub(super) fn part_count(&self) -> usize {
        self.parts.len()
    }

    pub(super) fn is_part_done(&self, place: usize) -> bool {
        self.parts[place].result.is_some()
    }

    pub(super) fn shard_of(&self, place: usize) -> Option<ShardId> {
        self.parts.get(place).map(|part| part.shard)
    }

    pub(super) fn parts_mut(&mut self) -> &mut [Part] {
        &mut self.parts
    }

    /// The answer, once every part has a result.
    pub(super) fn reply(&self) -> Option<Reply> {
        let mut written = Written::default();
        let mut failed_count = 0;
        for part in &self.parts {
            match part.result.as_ref()? {
                Ok(done) => {
                    written.written_count += u64::from(done.written_count);
                    written.skipped_count += u64::from(done.skipped_count);
                    written.seen.insert(part.shard, done.position);
                }
                Err(_) => failed_count += 1,
            }
        }
        Some(if failed_count == 0 { Reply::Written(written) } else { Reply::Failed(self.error(failed_count)) })
    }

    /// One error if all parts have the same, else what came of each.
    fn error(&self, failed_count: usize) -> RequestError {
        let errors = || self.parts.iter().filter_map(|part| part.result.as_ref()?.as_ref().err());
        if failed_count == self.parts.len()
            && let Some(common) = common_error(errors())
        {
            return common;
        }
        let outcome = |part: &Part| {
            let (error, seen) = match &part.result {
                Some(Ok(done)) => (None, Some((part.shard, done.position))),
                Some(Err(error)) => (Some(error), None),
                None => (None, None),
            };
            let applied = error.map_or(Applied::Yes, RequestError::applied);
            (part.name.clone(), ShardPart { applied, error: error.cloned().map(Box::new), seen })
        };
        RequestError::Parts(self.parts.iter().map(outcome).collect())
    }

    /// The answer at the deadline.
    pub(super) fn give_up(&mut self, name: impl Fn(ShardId) -> Box<str>) -> Reply {
        for part in self.parts.iter_mut().filter(|part| part.result.is_none()) {
            part.result = Some(Err(part.unanswered(&name)));
        }
        self.reply().unwrap_or(Reply::Failed(RequestError::OutcomeUnknown))
    }
}

impl Part {
    /// What is known of a part that has no answer. A copy that was sent may stand in a log or still arrive, also one that was refused: the
    /// network may deliver it twice (R25).
    fn unanswered(&self, name: impl Fn(ShardId) -> Box<str>) -> RequestError {
        if self.sent_count == 0 { RequestError::ShardUnavailable(name(self.shard)) } else { RequestError::OutcomeUnknown }
    }
}

/// The error that says what all of these say; none if they differ.
fn common_error<'a>(mut errors: impl Iterator<Item = &'a RequestError>) -> Option<RequestError> {
    let join = |into: &mut Vec<Key>, keys: &[Key]| {
        let all: BTreeSet<Key> = into.iter().chain(keys).copied().collect();
        *into = all.into_iter().collect();
    };
    let mut common = errors.next()?.clone();
    for error in errors {
        match (&mut common, error) {
            (RequestError::Exists(into), RequestError::Exists(keys)) | (RequestError::Missing(into), RequestError::Missing(keys)) => {
                join(into, keys);
            }
            (common, error) if common == error => {}
            (_, _) => return None,
        }
    }
    Some(common)
}

impl Router {
    /// Sends a part to the primary, or has it wait for whatever is missing.
    pub(super) fn send_part(&mut self, token: Token, pending: &mut Pending, place: usize, cause: Cause, out: &mut Vec<BalancerEffect>) {
        let super::Job::Write(write) = &mut pending.job else { return };
        let (part, leg) = (&mut write.parts[place], &mut pending.legs[place]);
        let Some(routes) = &self.routes else { return };
        if routes.shard(part.shard).is_none() {
            // The shard is gone for good, with the cluster it belonged to.
            let name = part.name.clone();
            part.result = Some(Err(part.unanswered(|_| name.clone())));
            self.rest(token, place, leg);
            self.release(part);
            return;
        }
        // Without an active configuration it waits for the map.
        let Some((epoch, primary)) = routes.serving(part.shard).map(|serving| (serving.epoch, serving.primary)) else { return };
        let number = match part.number {
            Some(number) => number,
            None => {
                // As long as no copy was sent, nothing is unknown: a server that is down is not asked.
                if part.sent_count == 0 && self.health.get(&primary.server) == Some(&Health::Down) {
                    return;
                }
                let opened =
                    if self.sessions.has_waiting(part.shard) && part.ticket.is_none() { None } else { self.sessions.open(part.shard) };
                let Some(number) = opened else {
                    if part.ticket.is_none() {
                        part.ticket = Some(self.sessions.wait(part.shard, token, place));
                    }
                    return;
                };
                if let Some(ticket) = part.ticket.take() {
                    self.sessions.leave(part.shard, ticket);
                }
                part.number = Some(number);
                number
            }
        };
        if cause == Cause::Due {
            leg.attempt = leg.attempt.saturating_add(1);
        }
        let request = Some(self.sessions.request_id(part.shard, number));
        let (idempotency, operations) = (write.idempotency.clone(), Arc::clone(&part.operations));
        part.sent_count += 1;
        let execute = |tag| ToServer::Execute(Execute { tag, replica: primary.replica, epoch, request, idempotency, operations });
        self.send((token, place), leg, primary.server, execute, out);
        self.come_again((token, place), leg, WRITE_AGAIN_AFTER, WRITE_AGAIN_MAX);
    }

    pub(super) fn on_executed(&mut self, from: ServerId, tag: Tag, result: ExecuteResult, out: &mut Vec<BalancerEffect>) {
        let is_write = |router: &Self| {
            let copy = router.tags.get(&tag.number)?;
            router.requests.get(&copy.token).map(Pending::is_write)
        };
        if is_write(self) == Some(false) {
            return Self::drop_message("an answer to another question", out);
        }
        let Some((token, pending, place)) = self.answered(from, tag) else { return };
        self.with(token, pending, out, |router, pending, out| router.take_result(token, pending, place, result, out));
    }

    fn take_result(&mut self, token: Token, pending: &mut Pending, place: usize, result: ExecuteResult, out: &mut Vec<BalancerEffect>) {
        let super::Job::Write(write) = &mut pending.job else { return };
        let (part, leg) = (&mut write.parts[place], &mut pending.legs[place]);
        match result {
            ExecuteResult::Done(outcome) => {
                part.result = Some(match outcome.verdict {
                    Verdict::Applied { written_count, skipped_count } => {
                        Ok(Done { written_count, skipped_count, position: outcome.position })
                    }
                    Verdict::Conflict(keys) => Err(RequestError::Exists(keys)),
                    Verdict::Missing(keys) => Err(RequestError::Missing(keys)),
                    Verdict::KeyReused => Err(RequestError::KeyReused),
                });
                self.rest(token, place, leg);
                self.release(part);
            }
            ExecuteResult::NotPrimary { epoch, lame: _ } => {
                self.refresh |= self.routes.as_ref().and_then(|routes| routes.epoch(part.shard)).is_none_or(|known| epoch > known);
                // While another copy is out, as after a new configuration, that one decides.
                if leg.open.is_empty() {
                    self.come_again((token, place), leg, REFUSED_AGAIN_AFTER, REFUSED_AGAIN_MAX);
                    leg.attempt = leg.attempt.saturating_add(1);
                }
            }
            ExecuteResult::Busy => {
                self.come_again((token, place), leg, REFUSED_AGAIN_AFTER, REFUSED_AGAIN_MAX);
                leg.attempt = leg.attempt.saturating_add(1);
            }
            ExecuteResult::SessionGone => {
                let Some(number) = part.number else { return };
                self.sessions.refuse(part.shard, number.session);
                self.rest(token, place, leg);
                self.release(part);
                if write.idempotency.is_some() {
                    // The shard remembers the key of whichever copy was executed, so another identity changes nothing twice.
                    leg.attempt = 0;
                    self.send_part(token, pending, place, Cause::Refused, out);
                } else {
                    // R25. Also if this was the only copy sent: the network may have delivered it twice, and the first may have been executed
                    // before the session went.
                    part.result = Some(Err(RequestError::OutcomeUnknown));
                }
            }
        }
    }

    /// The part needs no number and no place in line any more.
    pub(super) fn release(&mut self, part: &mut Part) {
        if let Some(number) = part.number.take() {
            self.sessions.close(part.shard, number);
            if self.sessions.has_waiting(part.shard) {
                self.freed.insert(part.shard);
            }
        }
        if let Some(ticket) = part.ticket.take() {
            self.sessions.leave(part.shard, ticket);
        }
    }

    /// Lets whoever is first in line for numbers of the shard go on, as far as numbers are free.
    pub(super) fn move_line(&mut self, shard: ShardId, out: &mut Vec<BalancerEffect>) {
        while let Some((token, place)) = self.sessions.next(shard) {
            let Some(mut pending) = self.requests.remove(&token) else { continue };
            if let super::Job::Write(write) = &mut pending.job {
                // Its ticket is spent: it has left the line.
                write.parts[place].ticket = None;
            }
            self.with(token, pending, out, |router, pending, out| router.send_first(token, pending, place, out));
        }
    }

    /// Sends the part that came first in line, past those that still wait.
    fn send_first(&mut self, token: Token, pending: &mut Pending, place: usize, out: &mut Vec<BalancerEffect>) {
        if let super::Job::Write(write) = &mut pending.job
            && write.parts[place].number.is_none()
            && self.routes.as_ref().is_some_and(|routes| routes.serving(write.parts[place].shard).is_some())
        {
            write.parts[place].number = self.sessions.open(write.parts[place].shard);
        }
        self.send_part(token, pending, place, Cause::Changed, out);
    }
}
