//! Reads: scattered over the shards that meet the range, gathered in key order into one bounded page. Each shard's part is what one replica
//! had at one position; parts of two replicas are never mixed.
//!
//! A read of several pages goes on in the shard that a page ended in, at the replica that pinned its state; where that is gone the read is
//! cut, never continued elsewhere. Only the first shard of a page may be pinned: a later one that does not fit begins the next page.

use super::{
    super::{
        policy::mix,
        routes::{Routes, Target},
    },
    Cause, Leg, Pending, READ_AGAIN_AFTER, READ_AGAIN_MAX, REFUSED_AGAIN_AFTER, REFUSED_AGAIN_MAX, Router,
};
use crate::{
    effect::BalancerEffect,
    id::{Position, ServerId, ShardId, Token},
    message::{Freshness, Message, Pin, Read, ReadOn, ReadRefusal, ReadResult, Tag, ToServer},
    request::{Consistency, Pinned, Reply, RequestError, Rows},
    value::{Key, KeyRange, StoredRow},
};

/// How many shards of one read are asked at once. Bounds what an answer holds in memory, with a replica's own bound. A guess.
const SCATTER_MAX: usize = 8;
/// A page ends after the shard that brings it to this size. A guess: a few replies of one replica.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// The most pins that are remembered. Who is forgotten is let go by its replica, in time.
const PINS_MAX: usize = 4_096;

/// A read of a range under way.
#[derive(Clone, Debug)]
pub(super) struct Scatter {
    range: KeyRange,
    limit: u32,
    /// The most rows of this and further pages; 0 if there are none.
    wanted: u32,
    /// Where the first shard's part goes on.
    pinned: Option<Pinned>,
    /// Why it cannot be answered.
    failed: Option<RequestError>,
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
    at: Position,
    lag: u64,
    pinned: Option<Pinned>,
}

impl Scatter {
    pub(super) fn new(
        routes: &Routes,
        range: KeyRange,
        (limit, wanted): (u32, u32),
        consistency: Consistency,
        pinned: Option<Pinned>,
    ) -> Self {
        let shards_queried = routes.meeting(range).map(|(shard, _)| routes.name(shard)).collect();
        Self {
            range,
            limit: limit.max(1),
            wanted,
            pinned,
            failed: None,
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
        if self.parts.is_empty() && self.pinned.is_some_and(|pinned| pinned.shard != shard) {
            // The cluster that it was of is gone.
            self.failed = self.pinned.map(|pinned| RequestError::ReadCut(routes.name(pinned.shard)));
        }
        self.rest = range.high.0.checked_add(1).map(Key).filter(|low| *low <= self.range.high);
        self.parts.push(Part { shard, range, page: None });
        Some(shard)
    }

    /// Moves answered parts into the answer, in key order. `Some` when the page ends there, with the first key that it does not cover.
    fn gather(&mut self, routes: &Routes) -> Option<Option<Key>> {
        while let Some(part) = self.parts.get_mut(self.gathered_count) {
            let page = part.page.take()?;
            let (shard, range) = (part.shard, part.range);
            let room = (self.limit as usize).saturating_sub(self.rows.rows.len());
            let is_cut = page.more || page.rows.len() > room;
            let is_enough = self.rows.rows.len() + page.rows.len().min(room) >= self.wanted as usize;
            if is_cut && self.gathered_count > 0 && !is_enough {
                return Some(Some(range.low));
            }
            self.gathered_count += 1;
            self.rows.seen.insert(shard, page.at.index);
            if self.consistency == Consistency::Stale {
                self.rows.lag.insert(shard, page.lag);
            }
            self.rows.pinned = page.pinned;
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
    shard: Option<(ShardId, Target)>,
    range: KeyRange,
    limit: u32,
    wanted: u32,
    pinned: Option<Pinned>,
    answer: Option<Result<ServerPage, RequestError>>,
}

/// Rows, where to go on, what is pinned for that, and where they were read.
type ServerPage = (Vec<StoredRow>, Option<Key>, Option<Pinned>, Option<Position>);

impl AtServer {
    pub(super) fn new(
        routes: &Routes,
        (server, shard): (&str, Option<&str>),
        range: KeyRange,
        (limit, wanted): (u32, u32),
        pinned: Option<Pinned>,
    ) -> Result<Self, RequestError> {
        let server = routes.map().server_named(server).ok_or(RequestError::NoSuchServer)?;
        let held = routes.held_by(server);
        let shards = held.iter().map(|(shard, _)| routes.name(*shard)).collect();
        let shard_wanted = match shard {
            None => None,
            Some(name) => {
                let found = held.into_iter().find(|(shard, _)| *routes.name(*shard) == *name);
                Some(found.ok_or_else(|| RequestError::NoSuchShard(name.into()))?)
            }
        };
        let answer = shard_wanted.is_none().then(|| Ok((Vec::new(), None, None, None)));
        Ok(Self { shards, shard: shard_wanted, range, limit: limit.max(1), wanted, pinned, answer })
    }

    pub(super) const fn is_done(&self) -> bool {
        self.answer.is_some()
    }

    pub(super) fn shard(&self) -> ShardId {
        self.shard.map_or_else(ShardId::default, |(shard, _)| shard)
    }

    pub(super) fn reply(&mut self) -> Option<Reply> {
        Some(match self.answer.take()? {
            Ok((rows, next, pinned, at)) => Reply::ServerRows { shards: std::mem::take(&mut self.shards), rows, next, pinned, at },
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

/// Whether a page goes with the others of its read: a further one is of the pinned position, and a first one that leaves more to be wanted
/// is pinned.
fn is_continuable(
    range: KeyRange,
    wanted: u32,
    rows: &[StoredRow],
    more: bool,
    (at, pin): (Position, Option<Pin>),
    going_on: Option<Pinned>,
) -> bool {
    match going_on {
        Some(pinned) => at == pinned.at,
        None => !more || pin.is_some() || rows.len() >= wanted as usize || rows.last().is_none_or(|last| last.row.key >= range.high),
    }
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
            if let Some(error) = scatter.failed.take() {
                return Some(Reply::Failed(error));
            }
            // Where a page goes on in a shard, that shard's part decides whether further ones are needed.
            if end.is_none() && scatter.pinned.is_some() && scatter.gathered_count == 0 && !scatter.parts.is_empty() {
                return None;
            }
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
        if let Some(pinned) = scatter.pinned.filter(|_| place == 0) {
            let (range, limit) = (part.range, scatter.limit);
            if self.send_read_on((token, place), leg, pinned, (range, limit), cause, out) {
                let name = self.routes.as_ref().map_or_else(|| pinned.shard.to_string().into(), |routes| routes.name(pinned.shard));
                if let super::Job::Read(scatter) = &mut pending.job {
                    scatter.failed = Some(RequestError::ReadCut(name));
                }
            }
            return;
        }
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
        let wanted = if place == 0 { scatter.wanted } else { 0 };
        self.send((token, place), leg, target.server, |tag| ToServer::Read(Read { tag, replica, range, limit, wanted, freshness }), out);
        self.come_again((token, place), leg, READ_AGAIN_AFTER, READ_AGAIN_MAX);
    }

    /// Sends a read of what a server holds to that server.
    pub(super) fn send_server_read(&mut self, token: Token, pending: &mut Pending, cause: Cause, out: &mut Vec<BalancerEffect>) {
        let super::Job::ReadServer(read) = &pending.job else { return };
        let Some((_, target)) = read.shard else { return };
        let leg = &mut pending.legs[0];
        if let Some(pinned) = read.pinned {
            let (range, limit) = (read.range, read.limit);
            if self.send_read_on((token, 0), leg, pinned, (range, limit), cause, out) {
                let name = self.routes.as_ref().map_or_else(|| pinned.shard.to_string().into(), |routes| routes.name(pinned.shard));
                if let super::Job::ReadServer(read) = &mut pending.job {
                    read.answer = Some(Err(RequestError::ReadCut(name)));
                }
            }
            return;
        }
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
        let (replica, range, limit, wanted) = (target.replica, read.range, read.limit, read.wanted);
        self.send((token, 0), leg, target.server, |tag| ToServer::Read(Read { tag, replica, range, limit, wanted, freshness }), out);
        self.come_again((token, 0), leg, READ_AGAIN_AFTER, READ_AGAIN_MAX);
    }

    pub(super) fn on_read_done(&mut self, from: ServerId, tag: Tag, result: ReadResult, out: &mut Vec<BalancerEffect>) {
        let job = self.tags.get(&tag.number).and_then(|copy| self.requests.get(&copy.token)).map(|pending| &pending.job);
        match job {
            Some(super::Job::Read(_) | super::Job::ReadServer(_)) => {}
            Some(super::Job::Write(_) | super::Job::Pick(_)) => return Self::drop_message("an answer to another question", out),
            None => return self.drop_late_pin(from, &result, out),
        }
        let Some((token, pending, place)) = self.answered(from, tag) else { return };
        self.with(token, pending, out, |router, pending, out| match &pending.job {
            super::Job::Read(_) => router.take_page((token, from), pending, place, result, out),
            super::Job::ReadServer(_) => router.take_server_page((token, from), pending, result, out),
            super::Job::Write(_) | super::Job::Pick(_) => {}
        });
    }

    /// A page that comes too late, of which more was wanted: what was pinned for that is let go, unless its first copy came in time.
    fn drop_late_pin(&self, from: ServerId, result: &ReadResult, out: &mut Vec<BalancerEffect>) {
        if let ReadResult::Rows { pin: Some(pin), .. } = result
            && !self.pins.contains_key(pin)
        {
            out.push(BalancerEffect::Send { to: from, message: Message::ToServer(ToServer::Unpin(*pin)) });
        }
    }

    /// Remembers what is held for a read.
    fn hold_pin(&mut self, server: ServerId, pin: Pin) {
        if self.pins.len() >= PINS_MAX {
            self.pins.pop_first();
        }
        self.pins.insert(pin, server);
    }

    /// Nobody reads on there.
    pub(crate) fn end_read(&mut self, pinned: Pinned, out: &mut Vec<BalancerEffect>) {
        if let Some(server) = self.pins.remove(&pinned.pin) {
            out.push(BalancerEffect::Send { to: server, message: Message::ToServer(ToServer::Unpin(pinned.pin)) });
        }
    }

    /// Asks for the next page of what is pinned. `true` if that is known to be gone.
    fn send_read_on(
        &mut self,
        (token, place): (Token, usize),
        leg: &mut Leg,
        pinned: Pinned,
        (range, limit): (KeyRange, u32),
        cause: Cause,
        out: &mut Vec<BalancerEffect>,
    ) -> bool {
        let is_known = self.routes.as_ref().is_some_and(|routes| routes.map().servers.contains_key(&pinned.server));
        if cause == Cause::Refused || !is_known || self.rank(pinned.server) >= super::DOWN_RANK {
            self.pins.remove(&pinned.pin);
            return true;
        }
        if cause == Cause::Changed && leg.again_at.is_some() {
            return false;
        }
        if cause == Cause::Due {
            leg.attempt = leg.attempt.saturating_add(1);
        }
        self.send((token, place), leg, pinned.server, |tag| ToServer::ReadOn(ReadOn { tag, pin: pinned.pin, range, limit }), out);
        self.come_again((token, place), leg, READ_AGAIN_AFTER, READ_AGAIN_MAX);
        false
    }

    fn take_page(
        &mut self,
        (token, from): (Token, ServerId),
        pending: &mut Pending,
        place: usize,
        result: ReadResult,
        out: &mut Vec<BalancerEffect>,
    ) {
        let super::Job::Read(scatter) = &mut pending.job else { return };
        let (limit, wanted) = (scatter.limit, if place == 0 { scatter.wanted } else { 0 });
        let going_on = scatter.pinned.filter(|_| place == 0);
        let part = &mut scatter.parts[place];
        let (shard, server) = (part.shard, from);
        match result {
            ReadResult::Rows { rows, more, at, read_index: _, lag, pin }
                if is_page_of(part.range, limit, &rows, more) && is_continuable(part.range, wanted, &rows, more, (at, pin), going_on) =>
            {
                let pinned = match going_on {
                    Some(pinned) if more => Some(pinned),
                    Some(pinned) => {
                        self.end_read(pinned, out);
                        None
                    }
                    None => pin.map(|pin| Pinned { shard, server, pin, at }),
                };
                if let Some(pinned) = pinned {
                    self.hold_pin(server, pinned.pin);
                }
                part.page = Some(Page { rows, more, at, lag, pinned });
                self.rest(token, place, &mut pending.legs[place]);
            }
            ReadResult::Rows { .. } => {
                Self::drop_message("rows that were not asked for", out);
                self.send_read(token, pending, place, Cause::Refused, out);
            }
            ReadResult::Refused { reason: ReadRefusal::NeverWas, .. } => {
                let seen = if let Consistency::Session(seen) = &scatter.consistency { seen.get(&shard).copied() } else { None };
                let name = self.routes.as_ref().map_or_else(|| shard.to_string().into(), |routes| routes.name(shard));
                scatter.failed = Some(RequestError::TokenBeyond(name, seen.unwrap_or_default()));
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

    fn take_server_page(
        &mut self,
        (token, from): (Token, ServerId),
        pending: &mut Pending,
        result: ReadResult,
        out: &mut Vec<BalancerEffect>,
    ) {
        let super::Job::ReadServer(read) = &mut pending.job else { return };
        let shard = read.shard();
        let leg = &mut pending.legs[0];
        match result {
            ReadResult::Rows { rows, more, at, pin, .. }
                if is_page_of(read.range, read.limit, &rows, more)
                    && is_continuable(read.range, read.wanted, &rows, more, (at, pin), read.pinned) =>
            {
                let last = rows.last().filter(|_| more).map(|last| last.row.key.0);
                let next = last.and_then(|last| last.checked_add(1)).map(Key).filter(|next| *next <= read.range.high);
                let pinned = match read.pinned {
                    Some(pinned) if next.is_some() => Some(pinned),
                    Some(pinned) => {
                        self.end_read(pinned, out);
                        None
                    }
                    None => pin.map(|pin| Pinned { shard, server: from, pin, at }),
                };
                if let Some(pinned) = pinned {
                    self.hold_pin(from, pinned.pin);
                }
                read.answer = Some(Ok((rows, next, pinned, Some(at))));
                self.rest(token, 0, leg);
            }
            ReadResult::Rows { .. } => Self::drop_message("rows that were not asked for", out),
            ReadResult::Refused { .. } if read.pinned.is_some() => {
                let name = self.routes.as_ref().map_or_else(|| shard.to_string().into(), |routes| routes.name(shard));
                read.answer = Some(Err(RequestError::ReadCut(name)));
                self.rest(token, 0, leg);
            }
            ReadResult::Refused { reason, .. } => match reason {
                // It does not have it, and will not under this id.
                ReadRefusal::NoSuchReplica | ReadRefusal::Lost | ReadRefusal::PinGone | ReadRefusal::NeverWas => {
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
