//! The server's own HTTP requests (API.md, Servers): reads of its replica, writes through the shard's primary wherever that is. Never
//! says that a write failed when it is not known.

use super::ServerMachine;
use crate::{
    command::{Idempotency, Operation, Verdict},
    config::Configuration,
    effect::ServerEffect,
    id::{LogIndex, NodeId, ReplicaId, ShardId, Token},
    map::ShardRecord,
    message::{Execute, ExecuteResult, Freshness, Message, Read, ReadOn, ReadRefusal, ReadResult, Tag, ToServer},
    request::{Consistency, Pinned, RequestError, ServerReply, ServerRequest},
    time::Instant,
    value::{Key, KeyRange},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The requests under way. Bounded by `requests_max`.
#[derive(Clone, Debug, Default)]
pub(super) struct OwnRequests {
    /// The last tag given out.
    next_number: u64,
    /// The last idempotency key given out.
    minted_count: u64,
    requests: BTreeMap<Token, OwnRequest>,
    /// Which request a tag belongs to.
    tags: BTreeMap<u64, Token>,
    due: BTreeSet<(Instant, Token)>,
}

#[derive(Clone, Debug)]
struct OwnRequest {
    shard: ShardId,
    deadline: Instant,
    due: Instant,
    /// What was sent and not answered or refused.
    open: BTreeSet<u64>,
    /// A copy went over the network, which may double it: that one copy was refused says nothing of the other (R25).
    sent: bool,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Read { range: KeyRange, limit: u32, wanted: u32, consistency: Consistency, pinned: Option<Pinned> },
    Write { operations: Arc<Vec<Operation>>, idempotency: Idempotency },
}

impl OwnRequests {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    fn tag(&mut self, token: Token) -> u64 {
        self.next_number += 1;
        self.tags.insert(self.next_number, token);
        if let Some(request) = self.requests.get_mut(&token) {
            request.open.insert(self.next_number);
        }
        self.next_number
    }

    fn set_due(&mut self, token: Token, due: Instant) {
        if let Some(request) = self.requests.get_mut(&token) {
            self.due.remove(&(request.due, token));
            request.due = due.min(request.deadline);
            self.due.insert((request.due, token));
        }
    }

    fn end(&mut self, token: Token) -> Option<OwnRequest> {
        let request = self.requests.remove(&token)?;
        self.due.remove(&(request.due, token));
        for number in &request.open {
            self.tags.remove(number);
        }
        Some(request)
    }

    /// A tag is answered for good.
    fn close(&mut self, number: u64) -> Option<Token> {
        let token = self.tags.remove(&number)?;
        if let Some(request) = self.requests.get_mut(&token) {
            request.open.remove(&number);
        }
        Some(token)
    }
}

impl ServerMachine {
    /// The request of its own HTTP that an exchange with another server is a part of. For logs.
    #[must_use]
    pub fn request_of(&self, tag: Tag) -> Option<Token> {
        self.own.tags.get(&tag.number).copied()
    }

    pub(super) fn on_request(&mut self, token: Token, request: ServerRequest, deadline: Instant, out: &mut Vec<ServerEffect>) {
        let (name, kind) = match request {
            ServerRequest::Shards => {
                let reply = self.shards_reply();
                out.push(ServerEffect::Reply { token, reply });
                return;
            }
            ServerRequest::Status => {
                let replicas = self.replicas.values().map(|replica| replica.status(self.now)).collect();
                let (request_count, outstanding_count) = (self.own.requests.len() as u64, self.outstanding_count() as u64);
                let map = self.map.as_ref().map(|(_, map)| Arc::clone(map));
                let reply = ServerReply::Status { replicas, request_count, outstanding_count, map };
                out.push(ServerEffect::Reply { token, reply });
                return;
            }
            ServerRequest::Log { shard, from, limit } => {
                let reply = self.log_reply(&shard, from, limit).unwrap_or_else(ServerReply::Failed);
                out.push(ServerEffect::Reply { token, reply });
                return;
            }
            ServerRequest::Read { shard, range, limit, consistency, wanted, pinned } => {
                (shard, Ok(Kind::Read { range, limit, wanted, consistency, pinned }))
            }
            ServerRequest::EndRead(Pinned { pin, .. }) => {
                if let Some(replica) = self.touch(pin.replica) {
                    replica.unpin(pin);
                }
                out.push(ServerEffect::Reply { token, reply: ServerReply::ReadEnded });
                return;
            }
            ServerRequest::Write { shard, operations, idempotency } => {
                self.own.minted_count += 1;
                let minted = self.own.minted_count;
                let idempotency = idempotency.unwrap_or_else(|| Idempotency {
                    // A key of our own makes every attempt the same command. It must never come again: the mark of this
                    // life tells it from those of others.
                    key: format!("~{}.{}.{minted}", self.id(), self.config.incarnation).into(),
                    body_hash: 0,
                });
                let kind = self.check_keys(&shard, &operations).map(|()| Kind::Write { operations: Arc::new(operations), idempotency });
                (shard, kind)
            }
        };
        let accepted = kind.and_then(|kind| self.shard_named(&name).map(|shard| (shard, kind))).and_then(|accepted| {
            let full = self.own.requests.len() >= self.context.settings.requests_max;
            if full { Err(RequestError::Overloaded) } else { Ok(accepted) }
        });
        match accepted {
            Ok((shard, kind)) => {
                let request = OwnRequest { shard, deadline, due: deadline, open: BTreeSet::new(), sent: false, kind };
                self.own.due.insert((deadline, token));
                self.own.requests.insert(token, request);
                self.attempt(token, out);
            }
            Err(error) => out.push(ServerEffect::Reply { token, reply: ServerReply::Failed(error) }),
        }
    }

    pub(super) fn tick_requests(&mut self, out: &mut Vec<ServerEffect>) {
        while let Some((due, token)) = self.own.due.first().copied() {
            if due > self.now {
                return;
            }
            if self.own.requests.get(&token).is_some_and(|request| request.deadline <= self.now) {
                self.give_up(token, out);
            } else {
                self.attempt(token, out);
            }
        }
    }

    /// The deadline has come.
    fn give_up(&mut self, token: Token, out: &mut Vec<ServerEffect>) {
        let Some(request) = self.own.end(token) else { return };
        let error = match request.kind {
            // R25: a copy that was not refused, or the double of one that was, may stand in the log.
            Kind::Write { .. } if request.sent || !request.open.is_empty() => RequestError::OutcomeUnknown,
            Kind::Write { .. } | Kind::Read { .. } => RequestError::ShardUnavailable(self.shard_name(request.shard)),
        };
        out.push(ServerEffect::Reply { token, reply: ServerReply::Failed(error) });
    }

    /// Tries, or tries again.
    fn attempt(&mut self, token: Token, out: &mut Vec<ServerEffect>) {
        let retry_at = self.now + self.context.settings.request_retry_after;
        self.own.set_due(token, retry_at);
        // It waits until the register is known to have recorded this life (R26).
        if !self.takes_part() {
            return;
        }
        let Some(OwnRequest { shard, kind, .. }) = self.own.requests.get(&token).cloned() else { return };
        let own = NodeId::Server(self.id());
        let life = self.config.incarnation;
        let current = self.current(shard);
        match kind {
            Kind::Read { range, limit, pinned: Some(Pinned { pin, .. }), .. } => {
                let tag = Tag { life, number: self.own.tag(token) };
                let now = self.now;
                match self.touch(pin.replica) {
                    Some(reader) => reader.read_on(now, own, ReadOn { tag, pin, range, limit }),
                    None => self.cut_read(token, out),
                }
            }
            Kind::Read { range, limit, wanted, consistency, pinned: None } => {
                let Some(replica) = self.serving_replica(shard) else { return };
                let freshness = match consistency {
                    Consistency::Linearizable => match current {
                        Some(config) => Freshness::Linearizable(config.epoch),
                        None => return,
                    },
                    Consistency::Session(seen) => Freshness::AtLeast(seen.get(&shard).copied().unwrap_or_default()),
                    Consistency::Stale => Freshness::Any,
                };
                let tag = Tag { life, number: self.own.tag(token) };
                let now = self.now;
                if let Some(reader) = self.touch(replica) {
                    reader.read(now, own, Read { tag, replica, range, limit, wanted, freshness });
                }
            }
            Kind::Write { operations, idempotency } => {
                let Some(config) = current else { return };
                let Some(server) = self.directory.get(&config.primary).copied() else { return };
                let tag = Tag { life, number: self.own.tag(token) };
                let (replica, epoch) = (config.primary, config.epoch);
                let execute = Execute { tag, replica, epoch, request: None, idempotency: Some(idempotency), operations };
                if server == self.id() {
                    let now = self.now;
                    match self.touch(replica) {
                        Some(primary) => primary.execute(now, own, execute),
                        None => {
                            self.own.close(tag.number);
                        }
                    }
                } else {
                    if let Some(request) = self.own.requests.get_mut(&token) {
                        request.sent = true;
                    }
                    out.push(ServerEffect::Send { to: NodeId::Server(server), message: Message::ToServer(ToServer::Execute(execute)) });
                }
            }
        }
    }

    pub(super) fn on_own_executed(&mut self, tag: Tag, result: ExecuteResult, out: &mut Vec<ServerEffect>) {
        if tag.life != self.config.incarnation {
            return; // An answer to the server before its restart (R22).
        }
        match result {
            ExecuteResult::Done(outcome) => {
                let Some(request) = self.own.close(tag.number).and_then(|token| self.own.end(token).map(|request| (token, request))) else {
                    return;
                };
                let (token, OwnRequest { shard, .. }) = request;
                let reply = match outcome.verdict.clone() {
                    Verdict::Applied { .. } => {
                        let local =
                            self.serving_replica(shard).and_then(|id| self.replicas.get(&id)).map(|replica| replica.watermarks().applied);
                        let applied = local.unwrap_or_default().max(outcome.position.index);
                        ServerReply::Written { outcome, applied }
                    }
                    Verdict::Conflict(keys) => ServerReply::Failed(RequestError::Exists(keys)),
                    Verdict::Missing(keys) => ServerReply::Failed(RequestError::Missing(keys)),
                    Verdict::KeyReused => ServerReply::Failed(RequestError::KeyReused),
                };
                out.push(ServerEffect::Reply { token, reply });
            }
            // This copy was not appended; it is tried again when it is due.
            ExecuteResult::NotPrimary { .. } | ExecuteResult::Busy => {
                self.own.close(tag.number);
            }
            // It has no session, so this cannot be about it; were it so, an earlier copy may stand in the log.
            ExecuteResult::SessionGone => {}
        }
    }

    pub(super) fn on_own_read(&mut self, tag: Tag, result: ReadResult, out: &mut Vec<ServerEffect>) {
        let Some(token) = self.own.close(tag.number) else {
            // An earlier copy was answered, or nobody waits any more.
            if let ReadResult::Rows { pin: Some(pin), .. } = result
                && let Some(replica) = self.touch(pin.replica)
            {
                replica.unpin(pin);
            }
            return;
        };
        match result {
            ReadResult::Rows { rows, more, at, pin, .. } => {
                let Some(OwnRequest { shard, kind, .. }) = self.own.end(token) else { return };
                let Kind::Read { range, pinned, .. } = kind else { return };
                let next = rows.last().filter(|_| more).and_then(|row| row.row.key.0.checked_add(1)).map(Key);
                let next = next.filter(|next| *next <= range.high);
                let server = self.id();
                let pinned = match pinned {
                    Some(pinned) if next.is_some() => Some(pinned),
                    Some(Pinned { pin, .. }) => {
                        if let Some(replica) = self.touch(pin.replica) {
                            replica.unpin(pin);
                        }
                        None
                    }
                    None => pin.map(|pin| Pinned { shard, server, pin, at }),
                };
                out.push(ServerEffect::Reply { token, reply: ServerReply::Rows { rows, next, pinned, at: at.index } });
            }
            ReadResult::Refused { reason, .. } => match reason {
                ReadRefusal::PinGone => self.cut_read(token, out),
                ReadRefusal::NeverWas => {
                    let Some(OwnRequest { shard, kind, .. }) = self.own.end(token) else { return };
                    let seen = match kind {
                        Kind::Read { consistency: Consistency::Session(seen), .. } => seen.get(&shard).copied(),
                        Kind::Read { .. } | Kind::Write { .. } => None,
                    };
                    let error = RequestError::TokenBeyond(self.shard_name(shard), seen.unwrap_or_default());
                    out.push(ServerEffect::Reply { token, reply: ServerReply::Failed(error) });
                }
                ReadRefusal::Lost | ReadRefusal::NoSuchReplica => self.give_up(token, out),
                ReadRefusal::Busy => {
                    self.own.end(token);
                    out.push(ServerEffect::Reply { token, reply: ServerReply::Failed(RequestError::Overloaded) });
                }
                // Tried again when it is due, with the map that is the newest by then.
                ReadRefusal::WrongEpoch | ReadRefusal::NoReadIndex | ReadRefusal::Behind => {}
            },
        }
    }

    /// What was pinned for the rest of a read is gone.
    fn cut_read(&mut self, token: Token, out: &mut Vec<ServerEffect>) {
        let Some(OwnRequest { shard, .. }) = self.own.end(token) else { return };
        let error = RequestError::ReadCut(self.shard_name(shard));
        out.push(ServerEffect::Reply { token, reply: ServerReply::Failed(error) });
    }

    fn shards_reply(&self) -> ServerReply {
        let names: BTreeSet<Box<str>> = self
            .replicas
            .values()
            .filter(|replica| replica.lost_reason().is_none())
            .map(|replica| self.shard_name(replica.shard()))
            .collect();
        ServerReply::Shards { names: names.into_iter().collect(), map: self.map.as_ref().map(|(_, map)| Arc::clone(map)) }
    }

    fn log_reply(&self, name: &str, from: LogIndex, limit: u32) -> Result<ServerReply, RequestError> {
        let shard = self.shard_named(name)?;
        let id = self.serving_replica(shard).ok_or_else(|| RequestError::ShardUnavailable(name.into()))?;
        let replica = self.replicas.get(&id).ok_or_else(|| RequestError::ShardUnavailable(name.into()))?;
        let log = replica.log();
        let first = from.max(log.base().index.next());
        let entries = log.slice(first, log.last().index, limit as usize, self.context.settings.append_bytes_max);
        Ok(ServerReply::Log { entries, last: log.last().index })
    }

    fn shard_named(&self, name: &str) -> Result<ShardId, RequestError> {
        let map = self.map.as_ref().map(|(_, map)| map).filter(|map| map.schema.is_some()).ok_or(RequestError::NotInitialised)?;
        map.shard_named(name).ok_or_else(|| RequestError::NoSuchShard(name.into()))
    }

    fn shard_record(&self, shard: ShardId) -> Option<&ShardRecord> {
        self.map.as_ref().and_then(|(_, map)| map.shards.get(&shard))
    }

    fn shard_name(&self, shard: ShardId) -> Box<str> {
        self.shard_record(shard).map_or_else(|| shard.to_string().into(), |record| record.name.clone())
    }

    fn check_keys(&self, name: &str, operations: &[Operation]) -> Result<(), RequestError> {
        let shard = self.shard_named(name)?;
        let range = self.shard_record(shard).map_or(KeyRange::ALL, ShardRecord::range);
        match operations.iter().map(Operation::key).find(|key| !range.contains(*key)) {
            Some(key) => Err(RequestError::OutOfRange(key)),
            None => Ok(()),
        }
    }

    fn current(&self, shard: ShardId) -> Option<Configuration> {
        self.shard_record(shard).and_then(|record| record.current.clone())
    }

    /// Its own replica of the shard: the member of the current configuration, else whichever is not lost.
    fn serving_replica(&self, shard: ShardId) -> Option<ReplicaId> {
        let current = self.current(shard);
        let is_member = |id: &ReplicaId| current.as_ref().is_some_and(|config| config.has(*id));
        let mut own = self.replicas.iter().filter(|(_, replica)| replica.shard() == shard && replica.lost_reason().is_none());
        own.clone().map(|(id, _)| *id).find(is_member).or_else(|| own.next().map(|(id, _)| *id))
    }
}
