//! Reads: scattered over the shards that meet the range, gathered in key order into one bounded page. Each shard's part is what one replica
//! had at one position; parts of two replicas are never mixed.

use super::{
    super::{
        policy::mix,
        routes::{Routes, Target},
    },
    Cause, Leg, Pending, READ_AGAIN_AFTER, READ_AGAIN_MAX, REFUSED_AGAIN_AFTER, REFUSED_AGAIN_MAX, Router,
};
use crate::{
    effect::BalancerEffect,
    id::{LogIndex, ServerId, ShardId, Token},
    message::{Freshness, Read, ReadRefusal, ReadResult, Tag, ToServer},
    request::{Consistency, Reply, RequestError, Rows},
    value::{Key, KeyRange, StoredRow},
};

/// How many shards of one read are asked at once. Bounds what an answer holds in memory, with a replica's own bound. A guess.
const SCATTER_MAX: usize = 8;
/// A page ends after the shard that brings it to this size. A guess: a few replies of one replica.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// A read of a range under way.
#[derive(Clone, Debug)]
pub(super) struct Scatter {
    range: KeyRange,
    limit: u32,
    consistency: Consistency,
    /// The shards asked so far, in key order.
    parts: Vec<Part>,
    /// How many of them are in `rows`.
    gathered_count: usize,
    /// Where the shards not yet asked begin; `None` when all are asked.
    rest: Option<Key>,
    rows: Rows,
    bytes: usize,
}

#[derive(Clone, Debug)]
struct Part {
    shard: ShardId,
    range: KeyRange,
    page: Option<Page>,
}

#[derive(Clone, Debug)]
struct Page {
    rows: Vec<StoredRow>,
    more: bool,
    index: LogIndex,
    lag: u64,
}

impl Scatter {
    pub(super) fn new(routes: &Routes, range: KeyRange, limit: u32, consistency: Consistency) -> Self {
        let shards_queried = routes.meeting(range).map(|(shard, _)| routes.name(shard)).collect();
        Self {
            range,
            limit: limit.max(1),
            consistency,
            parts: Vec::new(),
            gathered_count: 0,
            rest: (!range.is_empty()).then_some(range.low),
            rows: Rows { shards_queried, ..Rows::default() },
            bytes: 0,
        }
    }

    pub(super) fn is_leg_done(&self, place: usize) -> bool {
        place < self.gathered_count || self.parts.get(place).is_some_and(|part| part.page.is_some())
    }

    pub(super) fn shard_of(&self, place: usize) -> Option<ShardId> {
        self.parts.get(place).map(|part| part.shard)
    }

    /// The first shard that has not answered.
    pub(super) fn waits_for(&self) -> ShardId {
        self.parts.iter().skip(self.gathered_count).find(|part| part.page.is_none()).map_or_else(ShardId::default, |part| part.shard)
    }

    /// Takes the next shard to ask, with the keys wanted of it.
    fn next_part(&mut self, routes: &Routes) -> Option<ShardId> {
        let low = self.rest?;
        let next = routes.meeting(KeyRange { low, high: self.range.high }).next();
        let Some((shard, range)) = next else {
            self.rest = None;
            return None;
        };
        self.rest = range.high.0.checked_add(1).map(Key).filter(|low| *low <= self.range.high);
        self.parts.push(Part { shard, range, page: None });
        Some(shard)
    }

    /// Moves answered parts into the answer, in key order. `Some` when the page ends there, with the first key that it does not cover.
    fn gather(&mut self, routes: &Routes) -> Option<Option<Key>> {
        while let Some(part) = self.parts.get_mut(self.gathered_count) {
            let page = part.page.take()?;
            let (shard, range) = (part.shard, part.range);
            self.gathered_count += 1;
            self.rows.seen.insert(shard, page.index);
            if self.consistency == Consistency::Stale {
                self.rows.lag.insert(shard, page.lag);
            }
            let room = (self.limit as usize).saturating_sub(self.rows.rows.len());
            let is_cut = page.more || page.rows.len() > room;
            self.rows.rows.extend(page.rows.into_iter().take(room).inspect(|stored| self.bytes += stored.row.size_bytes()));
            if is_cut && let Some(last) = self.rows.rows.last().filter(|last| range.contains(last.row.key)) {
                let next = last.row.key.0.checked_add(1).map(Key).filter(|next| *next <= self.range.high);
                // What a bound ended at the shard's last key is complete as far as this shard goes.
                return Some(next);
            }
            if self.rows.rows.len() >= self.limit as usize || self.bytes >= PAGE_BYTES_MAX {
                let after = range.high.0.checked_add(1).map(Key).filter(|low| *low <= self.range.high);
                let next = after.and_then(|low| routes.meeting(KeyRange { low, high: self.range.high }).next());
                return Some(next.map(|(_, keys)| keys.low));
            }
        }
        None
    }
}

/// A read of what one server holds.
#[derive(Clone, Debug)]
pub(super) struct AtServer {
    shards: Vec<Box<str>>,
    /// `None` if only the names are wanted.
    wanted: Option<(ShardId, Target)>,
    range: KeyRange,
    limit: u32,
    answer: Option<Result<ServerPage, RequestError>>,
}

/// Rows, and where to go on.
type ServerPage = (Vec<StoredRow>, Option<Key>);

impl AtServer {
    pub(super) fn new(routes: &Routes, server: &str, shard: Option<&str>, range: KeyRange, limit: u32) -> Result<Self, RequestError> {
        let server = routes.map().server_named(server).ok_or(RequestError::NoSuchServer)?;
        let held = routes.held_by(server);
        let shards = held.iter().map(|(shard, _)| routes.name(*shard)).collect();
        let wanted = match shard {
            None => None,
            Some(name) => {
                let wanted = held.into_iter().find(|(shard, _)| *routes.name(*shard) == *name);
                Some(wanted.ok_or_else(|| RequestError::NoSuchShard(name.into()))?)
            }
        };
        let answer = wanted.is_none().then(|| Ok((Vec::new(), None)));
        Ok(Self { shards, wanted, range, limit: limit.max(1), answer })
    }

    pub(super) const fn is_done(&self) -> bool {
        self.answer.is_some()
    }

    pub(super) fn shard(&self) -> ShardId {
        self.wanted.map_or_else(ShardId::default, |(shard, _)| shard)
    }

    pub(super) fn reply(&mut self) -> Option<Reply> {
        Some(match self.answer.take()? {
            Ok((rows, next)) => Reply::ServerRows { shards: std::mem::take(&mut self.shards), rows, next },
            Err(error) => Reply::Failed(error),
        })
    }
}

/// Whether rows are of the range, in key order, each once, and no more than asked for; and more only after at least one.
fn is_page_of(range: KeyRange, limit: u32, rows: &[StoredRow], more: bool) -> bool {
    rows.len() <= limit as usize
        && rows.windows(2).all(|pair| pair[0].row.key < pair[1].row.key)
        && rows.first().is_none_or(|first| first.row.key >= range.low)
        && rows.last().map_or(!more, |last| last.row.key <= range.high)
}

/// Where a read of the shard from this key on stands on the ring.
pub(super) fn place_of(shard: ShardId, low: Key) -> u64 {
    mix(&[shard.0, low.0.cast_unsigned()])
}

impl Router {
    /// Takes what has come into the answer and asks further shards; the reply if that was all.
    pub(super) fn gather(&mut self, token: Token, pending: &mut Pending, out: &mut Vec<BalancerEffect>) -> Option<Reply> {
        loop {
            let super::Job::Read(scatter) = &mut pending.job else { return None };
            let routes = self.routes.as_ref()?;
            if scatter.shard_of(scatter.gathered_count).is_some_and(|shard| routes.shard(shard).is_none()) {
                // The shard is gone, with the cluster it belonged to.
                let error = match routes.map().schema {
                    None => RequestError::NotInitialised,
                    Some(_) => RequestError::ShardUnavailable(routes.name(scatter.waits_for())),
                };
                return Some(Reply::Failed(error));
            }
            let end = scatter.gather(routes);
            if end.is_none() && scatter.parts.len() - scatter.gathered_count < SCATTER_MAX && scatter.next_part(routes).is_some() {
                pending.legs.push(Leg::default());
                let place = pending.legs.len() - 1;
                self.send_read(token, pending, place, Cause::Changed, out);
                continue;
            }
            let is_whole = scatter.rest.is_none() && scatter.gathered_count == scatter.parts.len();
            let next = match end {
                Some(next) => next,
                None if is_whole => None,
                None => return None,
            };
            let mut rows = std::mem::take(&mut scatter.rows);
            rows.next = next;
            return Some(Reply::Rows(Box::new(rows)));
        }
    }

    /// Sends a shard's part of a read to a replica that was not asked in this turn, or waits for the next turn.
    pub(super) fn send_read(&mut self, token: Token, pending: &mut Pending, place: usize, cause: Cause, out: &mut Vec<BalancerEffect>) {
        let super::Job::Read(scatter) = &pending.job else { return };
        let (part, leg) = (&scatter.parts[place], &mut pending.legs[place]);
        // Without an active configuration it waits for the map.
        let Some(serving) = self.routes.as_ref().and_then(|routes| routes.serving(part.shard)) else { return };
        let (epoch, members) = (serving.epoch, serving.members.clone());
        let servers: Vec<ServerId> = members.iter().map(|member| member.server).collect();
        let hash = place_of(part.shard, part.range.low);
        let request_id = self.picker.request_id();
        let mut chosen = self.choose(&servers, &leg.tried, hash, request_id);
        if chosen.is_none() {
            if cause == Cause::Changed && leg.again_at.is_some() {
                return;
            }
            leg.tried.clear();
            if cause == Cause::Due {
                leg.attempt = leg.attempt.saturating_add(1);
                chosen = self.choose(&servers, &leg.tried, hash, request_id);
            }
        }
        let Some(target) = members.iter().find(|member| Some(member.server) == chosen) else {
            self.come_again((token, place), leg, REFUSED_AGAIN_AFTER, REFUSED_AGAIN_MAX);
            leg.attempt = leg.attempt.saturating_add(1);
            return;
        };
        let freshness = match &scatter.consistency {
            Consistency::Linearizable => Freshness::Linearizable(epoch),
            Consistency::Session(seen) => Freshness::AtLeast(seen.get(&part.shard).copied().unwrap_or_default()),
            Consistency::Stale => Freshness::Any,
        };
        let (replica, range, limit) = (target.replica, part.range, scatter.limit);
        self.send((token, place), leg, target.server, |tag| ToServer::Read(Read { tag, replica, range, limit, freshness }), out);
        self.come_again((token, place), leg, READ_AGAIN_AFTER, READ_AGAIN_MAX);
    }

    /// Sends a read of what a server holds to that server.
    pub(super) fn send_server_read(&mut self, token: Token, pending: &mut Pending, cause: Cause, out: &mut Vec<BalancerEffect>) {
        let super::Job::ReadServer(read) = &pending.job else { return };
        let Some((_, target)) = read.wanted else { return };
        let leg = &mut pending.legs[0];
        if cause == Cause::Changed && leg.again_at.is_some() {
            return;
        }
        if cause == Cause::Due {
            leg.attempt = leg.attempt.saturating_add(1);
        }
        // At first as new as any read, so that what was acknowledged is seen; a replica that cannot give that gives what it has.
        let serving = self.routes.as_ref().and_then(|routes| routes.serving(read.shard()));
        let freshness = match serving {
            Some(serving) if leg.attempt == 0 => Freshness::Linearizable(serving.epoch),
            Some(_) | None => Freshness::Any,
        };
        let (replica, range, limit) = (target.replica, read.range, read.limit);
        self.send((token, 0), leg, target.server, |tag| ToServer::Read(Read { tag, replica, range, limit, freshness }), out);
        self.come_again((token, 0), leg, READ_AGAIN_AFTER, READ_AGAIN_MAX);
    }

    pub(super) fn on_read_done(&mut self, from: ServerId, tag: Tag, result: ReadResult, out: &mut Vec<BalancerEffect>) {
        let job = self.tags.get(&tag.number).and_then(|copy| self.requests.get(&copy.token)).map(|pending| &pending.job);
        match job {
            Some(super::Job::Read(_) | super::Job::ReadServer(_)) => {}
            Some(super::Job::Write(_) | super::Job::Pick(_)) => return Self::drop_message("an answer to another question", out),
            None => return,
        }
        let Some((token, pending, place)) = self.answered(from, tag) else { return };
        self.with(token, pending, out, |router, pending, out| match &pending.job {
            super::Job::Read(_) => router.take_page(token, pending, place, result, out),
            super::Job::ReadServer(_) => router.take_server_page(token, pending, result, out),
            super::Job::Write(_) | super::Job::Pick(_) => {}
        });
    }

    fn take_page(&mut self, token: Token, pending: &mut Pending, place: usize, result: ReadResult, out: &mut Vec<BalancerEffect>) {
        let super::Job::Read(scatter) = &mut pending.job else { return };
        let limit = scatter.limit;
        let part = &mut scatter.parts[place];
        match result {
            ReadResult::Rows { rows, more, at, read_index: _, lag } if is_page_of(part.range, limit, &rows, more) => {
                part.page = Some(Page { rows, more, index: at.index, lag });
                self.rest(token, place, &mut pending.legs[place]);
            }
            ReadResult::Rows { .. } => {
                Self::drop_message("rows that were not asked for", out);
                self.send_read(token, pending, place, Cause::Refused, out);
            }
            ReadResult::Refused { epoch, reason } => {
                let known = self.routes.as_ref().and_then(|routes| routes.epoch(part.shard));
                self.refresh |= known.is_none_or(|known| epoch > known) || reason == ReadRefusal::NoSuchReplica;
                // While another copy is out, that one or its time decides.
                if pending.legs[place].open.is_empty() {
                    self.send_read(token, pending, place, Cause::Refused, out);
                }
            }
        }
    }

    fn take_server_page(&mut self, token: Token, pending: &mut Pending, result: ReadResult, out: &mut Vec<BalancerEffect>) {
        let super::Job::ReadServer(read) = &mut pending.job else { return };
        let shard = read.shard();
        let leg = &mut pending.legs[0];
        match result {
            ReadResult::Rows { rows, more, .. } if is_page_of(read.range, read.limit, &rows, more) => {
                let last = rows.last().filter(|_| more).map(|last| last.row.key.0);
                let next = last.and_then(|last| last.checked_add(1)).map(Key).filter(|next| *next <= read.range.high);
                read.answer = Some(Ok((rows, next)));
                self.rest(token, 0, leg);
            }
            ReadResult::Rows { .. } => Self::drop_message("rows that were not asked for", out),
            ReadResult::Refused { reason, .. } => match reason {
                // It does not have it, and will not under this id.
                ReadRefusal::NoSuchReplica | ReadRefusal::Lost => {
                    let name = self.routes.as_ref().map_or_else(|| shard.to_string().into(), |routes| routes.name(shard));
                    read.answer = Some(Err(RequestError::ShardUnavailable(name)));
                    self.rest(token, 0, leg);
                }
                ReadRefusal::WrongEpoch | ReadRefusal::NoReadIndex | ReadRefusal::Behind | ReadRefusal::Busy => {
                    self.come_again((token, 0), leg, REFUSED_AGAIN_AFTER, REFUSED_AGAIN_MAX);
                    leg.attempt = leg.attempt.saturating_add(1);
                }
            },
        }
    }
}
