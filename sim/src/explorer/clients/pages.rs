//! Reads of several pages: a client asks for one page after the other, as the HTTP of a balancer or server does for its clients, takes its time
//! now and then, leaves what is pinned sometimes, and compares the whole. Never takes a page of another index for one of the same read.

use super::{Running, draw, token};
use crate::{
    explorer::{
        coverage::Sometimes,
        world::{Event, World},
    },
    faults::Place,
    plan::{Action, Level, PlannedOperation},
};
use std::collections::BTreeMap;
use twinshard_core::{
    effect::{BalancerInput, ServerInput},
    id::{LogIndex, Position, ServerId, ShardId},
    paging::Paging,
    request::{Consistency, Pinned, Reply, Request, RequestError, Rows, ServerReply, ServerRequest},
    time::Duration,
    value::{Key, KeyRange, StoredRow},
};

/// A read under way.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    begun: Begun,
    /// The keys that are left.
    left: KeyRange,
    gathered: Rows,
    pinned: Option<Pinned>,
    at: Option<Position>,
    paging: Paging,
}

/// What it is a read of.
#[derive(Clone, Debug)]
enum Begun {
    /// A range, of so many rows at most.
    Range { range: KeyRange, limit: u32, consistency: Consistency },
    /// What a server holds, by a balancer.
    Held { server: Box<str>, shard: Box<str> },
    /// What a server holds, by itself.
    AtServer { server: ServerId, shard: Box<str>, range: KeyRange, consistency: Consistency, floor: BTreeMap<ShardId, LogIndex> },
}

impl Pages {
    fn new(begun: Begun, page_rows: u32) -> Self {
        let (left, consistency) = match &begun {
            Begun::Range { range, consistency, .. } | Begun::AtServer { range, consistency, .. } => (*range, consistency.clone()),
            Begun::Held { .. } => (KeyRange::ALL, Consistency::Stale),
        };
        Self { begun, left, gathered: Rows::default(), pinned: None, at: None, paging: Paging::new(page_rows, consistency) }
    }

    /// The pages of a request, if it is one that has pages.
    pub(super) fn of(request: &Request, page_rows: u32) -> Option<Self> {
        let begun = match request {
            Request::Read { range, limit, consistency } => Begun::Range { range: *range, limit: *limit, consistency: consistency.clone() },
            Request::ReadServer { server, shard: Some(shard), .. } => Begun::Held { server: server.clone(), shard: shard.clone() },
            _ => return None,
        };
        Some(Self::new(begun, page_rows))
    }

    /// How many rows may still be given; `None` if there is no limit.
    fn room(&self) -> Option<u32> {
        match &self.begun {
            Begun::Range { limit, .. } => Some(limit.saturating_sub(self.gathered.rows.len() as u32)),
            Begun::Held { .. } | Begun::AtServer { .. } => None,
        }
    }

    pub(super) fn request(&self, page_rows: u32) -> Request {
        match &self.begun {
            Begun::Held { server, shard } => Request::ReadServer {
                server: server.clone(),
                shard: Some(shard.clone()),
                range: self.left,
                limit: page_rows,
                wanted: u32::MAX,
                pinned: self.pinned,
            },
            Begun::Range { .. } | Begun::AtServer { .. } => self.paging.request(self.left, self.room()),
        }
    }
}

impl World {
    /// A page is there. The whole answer, if it was the last.
    pub(super) fn take_page(&mut self, place: usize, attempt: u32, reply: &Reply) -> Option<Reply> {
        let Some(mut pages) = self.clients.operations[place].pages.take() else { return Some(reply.clone()) };
        let next = match reply {
            Reply::Rows(page) => {
                for (shard, index) in &page.seen {
                    if let Some(first) = pages.gathered.seen.get(shard).filter(|first| *first != index) {
                        let planned = self.clients.operations[place].planned.clone();
                        self.checks.fail("I6", || format!("{planned} read {shard} at {first} and, on a further page, at {index}"));
                    }
                }
                if pages.paging.take(page).is_err() {
                    return None;
                }
                pages.gathered.shards_queried.clone_from(&page.shards_queried);
                pages.gathered.seen.extend(page.seen.iter().map(|(shard, index)| (*shard, *index)));
                pages.gathered.lag.extend(page.lag.iter().map(|(shard, lag)| (*shard, *lag)));
                pages.gathered.rows.extend(page.rows.iter().cloned());
                pages.pinned = page.pinned;
                page.next
            }
            Reply::ServerRows { rows, next, pinned, at, .. } => {
                if pages.at.is_some_and(|first| Some(first) != *at) {
                    let (planned, first) = (self.clients.operations[place].planned.clone(), pages.at);
                    self.checks.fail("I6", || format!("{planned} read at {first:?} and, on a further page, at {at:?}"));
                }
                pages.at = *at;
                pages.gathered.rows.extend(rows.iter().cloned());
                pages.pinned = *pinned;
                *next
            }
            // Nothing of it was given out: it begins anew.
            Reply::Failed(RequestError::ReadCut(_)) if !self.is_past_deadline(place) => {
                self.checks.coverage.hit(Sometimes::ReadsCut);
                let page_rows = self.plan.topology.pages.rows;
                self.read_on(place, attempt, Pages::new(pages.begun, page_rows));
                return None;
            }
            other => return Some(other.clone()),
        };
        // The row after the last that may be given shows where the next request would go on.
        let beyond = match &pages.begun {
            Begun::Range { limit, .. } => pages.gathered.rows.get(*limit as usize).map(|row| row.row.key),
            Begun::Held { .. } | Begun::AtServer { .. } => None,
        };
        if let (None, Some(next)) = (beyond, next) {
            pages.left.low = next;
            self.checks.coverage.hit(Sometimes::Pages);
            self.read_on(place, attempt, pages);
            return None;
        }
        Some(self.whole(place, attempt, pages, beyond))
    }

    fn is_past_deadline(&self, place: usize) -> bool {
        let running = &self.clients.operations[place];
        self.now >= running.deadline
    }

    /// All pages are there.
    fn whole(&mut self, place: usize, attempt: u32, mut pages: Pages, beyond: Option<Key>) -> Reply {
        let planned = self.clients.operations[place].planned.clone();
        if let Some(pinned) = pages.pinned
            && draw(self.keyed, &planned, attempt, 5).chance(500_000)
        {
            self.end_read(place, attempt, &pages.begun, pinned);
        }
        match &pages.begun {
            Begun::Range { limit, .. } => {
                pages.gathered.rows.truncate(*limit as usize);
                pages.gathered.next = beyond;
                Reply::Rows(Box::new(pages.gathered))
            }
            Begun::Held { shard, .. } => {
                self.check_held(&planned, shard, KeyRange::ALL, &pages.gathered.rows, pages.at.map(|at| at.index));
                Reply::ServerRows { shards: Vec::new(), rows: pages.gathered.rows, next: None, pinned: None, at: pages.at }
            }
            Begun::AtServer { shard, range, consistency, floor, .. } => {
                let seen = pages.gathered.seen.first_key_value().map(|(shard, index)| (*shard, *index));
                self.check_held(&planned, shard, *range, &pages.gathered.rows, seen.map(|(_, index)| index));
                if let Some((id, index)) = seen {
                    let floor = match consistency {
                        Consistency::Linearizable => floor.get(&id),
                        Consistency::Session(token) => token.get(&id),
                        Consistency::Stale => None,
                    };
                    if floor.is_some_and(|floor| index < *floor) {
                        self.checks.fail("I6", || format!("{planned} read {id} at {index}; {floor:?} was acknowledged or seen before"));
                    }
                }
                Reply::ServerRows { shards: Vec::new(), rows: pages.gathered.rows, next: None, pinned: None, at: None }
            }
        }
    }

    /// What a replica holds is the state of the shard at the index that it says.
    fn check_held(&mut self, planned: &PlannedOperation, shard: &str, range: KeyRange, rows: &[StoredRow], at: Option<LogIndex>) {
        let Some(at) = at else { return };
        let known = self.clients.shards.iter().rev().filter(|(_, (name, _))| **name == *shard).map(|(id, _)| *id);
        // After a cluster was torn down there may be two of one name: it is one of them.
        let mut fits = None;
        for id in known {
            let Some(known) = self.checks.shard(id) else { continue };
            let is_so = at <= known.model.last() && known.model.rows(range, at).eq(rows.iter());
            fits = Some(fits.unwrap_or(false) || is_so);
        }
        if fits == Some(false) {
            self.checks.fail("I6", || format!("{planned} at {at} is answered {rows:?}, which {shard} never was then"));
        }
    }

    /// The next page, after a while.
    fn read_on(&mut self, place: usize, attempt: u32, pages: Pages) {
        let running = &mut self.clients.operations[place];
        running.page_count += 1;
        let mut dice = draw(self.keyed, &running.planned, attempt, 1_000 + running.page_count);
        let pause_max = self.plan.topology.pages.pause_max.0;
        let pause = if pause_max > 0 && dice.chance(100_000) { dice.between(0, pause_max) } else { dice.between(50_000, 500_000) };
        running.pages = Some(pages);
        running.pausing = true;
        self.after(Duration(pause), Event::ClientReadsOn { operation: place, attempt });
    }

    pub(in crate::explorer) fn client_reads_on(&mut self, place: usize, attempt: u32) {
        let page_rows = self.plan.topology.pages.rows;
        let running = &mut self.clients.operations[place];
        if running.finished || running.attempt != attempt {
            return;
        }
        let Some(pages) = running.pages.clone() else { return };
        running.pausing = false;
        let (deadline, balancer) = (running.deadline, running.asked.as_ref().map(|asked| asked.balancer));
        let request = pages.request(page_rows);
        let token = token(place, attempt);
        match (&pages.begun, balancer) {
            (Begun::AtServer { server, .. }, _) => {
                let Some(local) = self.server_local(*server, deadline) else { return self.client_comes_again(place, attempt, false) };
                let Some(request) = at_server(&pages, &request) else { return };
                self.step_server(*server, ServerInput::Request { token, request, deadline: local });
            }
            (Begun::Range { .. } | Begun::Held { .. }, Some(balancer)) => {
                if self.is_cut(Place::Clients, Place::Balancer(balancer)) || self.balancers[balancer].machine.is_none() {
                    // Nobody hears it.
                    self.clients.operations[place].pausing = true;
                    return;
                }
                let local = self.balancer_local(balancer, deadline);
                self.step_balancer(balancer, BalancerInput::Request { token, request, deadline: local });
            }
            (Begun::Range { .. } | Begun::Held { .. }, None) => {}
        }
    }

    fn end_read(&mut self, place: usize, attempt: u32, begun: &Begun, pinned: Pinned) {
        let deadline = self.now + Duration::from_millis(1_000);
        let token = token(place, attempt);
        let balancer = self.clients.operations[place].asked.as_ref().map(|asked| asked.balancer);
        match (begun, balancer) {
            (Begun::AtServer { server, .. }, _) => {
                if let Some(deadline) = self.server_local(*server, deadline) {
                    self.step_server(*server, ServerInput::Request { token, request: ServerRequest::EndRead(pinned), deadline });
                }
            }
            (_, Some(balancer)) if self.balancers[balancer].machine.is_some() => {
                let deadline = self.balancer_local(balancer, deadline);
                self.step_balancer(balancer, BalancerInput::Request { token, request: Request::EndRead(pinned), deadline });
            }
            _ => {}
        }
    }

    /// A client reads at a server's own HTTP.
    pub(super) fn client_reads_at_server(&mut self, (place, attempt): (usize, u32), planned: &PlannedOperation) {
        let Action::ReadAtServer { server, shard, range, level } = &planned.action else { return };
        let server = ServerId(*server);
        if !self.register.map.servers.contains_key(&server) {
            return self.client_gives_in(place);
        }
        let consistency = match level {
            Level::Linearizable => Consistency::Linearizable,
            Level::Session => Consistency::Session(self.clients.recorder.session(planned.client)),
            Level::Stale => Consistency::Stale,
        };
        let floor = self.clients.observed.clone();
        let begun = Begun::AtServer { server, shard: shard.clone(), range: *range, consistency, floor };
        let pages = Pages::new(begun, self.plan.topology.pages.rows);
        let running = &mut self.clients.operations[place];
        running.deadline = self.now + planned.timeout;
        running.pages = Some(pages);
        self.after(Duration(planned.timeout.0 + super::GRACE.0), Event::ClientGivesUp { operation: place, attempt });
        self.client_reads_on(place, attempt);
    }

    /// Rows of a server, as a page like any other.
    pub(super) fn page_at_server(&self, running: &Running, reply: ServerReply) -> Reply {
        match reply {
            ServerReply::Rows { rows, next, pinned, at } => {
                let name = match &running.planned.action {
                    Action::ReadAtServer { shard, .. } => shard.clone(),
                    _ => Box::default(),
                };
                let id = self.clients.shards.iter().rev().find(|(_, (known, _))| *known == name).map(|(id, _)| *id);
                let seen = id.map(|id| (id, at)).into_iter().collect();
                Reply::Rows(Box::new(Rows { rows, next, pinned, seen, ..Rows::default() }))
            }
            ServerReply::Failed(error) => Reply::Failed(error),
            ServerReply::ReadEnded => Reply::ReadEnded,
            other => {
                let text = format!("{other:?}");
                Reply::Failed(RequestError::Invalid(text.into()))
            }
        }
    }
}

fn at_server(pages: &Pages, request: &Request) -> Option<ServerRequest> {
    let Begun::AtServer { shard, .. } = &pages.begun else { return None };
    match request {
        Request::ReadPage { range, limit, wanted, consistency, pinned } => Some(ServerRequest::Read {
            shard: shard.clone(),
            range: *range,
            limit: *limit,
            consistency: consistency.clone(),
            wanted: *wanted,
            pinned: *pinned,
        }),
        _ => None,
    }
}
