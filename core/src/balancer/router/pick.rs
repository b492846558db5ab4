//! /home: a server chosen on the ring by a request id, which must answer itself.

use super::{
    super::{policy::mix, routes::Routes},
    Cause, Pending, READ_AGAIN_AFTER, READ_AGAIN_MAX, Router,
};
use crate::{
    effect::BalancerEffect,
    id::{ServerId, Token},
    map::ServerGoal,
    message::{Tag, ToServer},
    request::{Health, Reply, RequestError},
};

/// A pick under way.
#[derive(Clone, Debug)]
pub(super) struct Pick {
    request_id: u64,
    reply: Option<Reply>,
}

impl Pick {
    pub(super) fn new(routes: &Routes, request_id: u64) -> Result<Self, RequestError> {
        if routes.map().servers.is_empty() {
            return Err(RequestError::NoServer);
        }
        Ok(Self { request_id, reply: None })
    }

    pub(super) const fn is_done(&self) -> bool {
        self.reply.is_some()
    }

    pub(super) fn reply(&mut self) -> Option<Reply> {
        self.reply.take()
    }
}

impl Router {
    /// The servers that may be picked: those that shall run, those that are up if any is.
    fn pickable(&self) -> Vec<ServerId> {
        let Some(routes) = &self.routes else { return Vec::new() };
        let running = || routes.map().servers.iter().filter(|(_, record)| record.goal == ServerGoal::Run).map(|(server, _)| *server);
        let up: Vec<_> = running().filter(|server| self.health.get(server) == Some(&Health::Up)).collect();
        if up.is_empty() { running().collect() } else { up }
    }

    /// Asks the server that the policy picks among those not asked in this turn.
    pub(super) fn send_home(&mut self, token: Token, pending: &mut Pending, cause: Cause, out: &mut Vec<BalancerEffect>) {
        let super::Job::Pick(pick) = &pending.job else { return };
        let request_id = pick.request_id;
        let leg = &mut pending.legs[0];
        let (servers, hash) = (self.pickable(), mix(&[request_id]));
        let mut chosen = self.choose(&servers, &leg.tried, hash, request_id);
        if chosen.is_none() && cause == Cause::Due {
            leg.tried.clear();
            leg.attempt = leg.attempt.saturating_add(1);
            chosen = self.choose(&servers, &leg.tried, hash, request_id);
        }
        if let Some(server) = chosen {
            self.send((token, 0), leg, server, |tag| ToServer::Home { tag }, out);
        }
        if chosen.is_some() || leg.again_at.is_none() {
            self.come_again((token, 0), leg, READ_AGAIN_AFTER, READ_AGAIN_MAX);
        }
    }

    pub(super) fn on_home(&mut self, from: ServerId, tag: Tag, out: &mut Vec<BalancerEffect>) {
        let job = self.tags.get(&tag.number).and_then(|copy| self.requests.get(&copy.token)).map(|pending| &pending.job);
        match job {
            Some(super::Job::Pick(_)) => {}
            Some(super::Job::Write(_) | super::Job::Read(_) | super::Job::ReadServer(_)) => {
                return Self::drop_message("an answer to another question", out);
            }
            None => return,
        }
        let Some((token, pending, _)) = self.answered(from, tag) else { return };
        self.with(token, pending, out, |router, pending, _| {
            let record = router.routes.as_ref().and_then(|routes| routes.map().servers.get(&from));
            if let (super::Job::Pick(pick), Some(record)) = (&mut pending.job, record) {
                pick.reply = Some(Reply::Server { id: from, name: record.name.clone(), number: record.number });
            }
        });
    }
}
