//! Administrative requests on their way: each waits for a map that was read after it came, wishes its change into the next map, and is
//! answered when what it waits for is seen. What the wishes are is in [`admin`].

use super::{BalancerMachine, Register, admin, admin::Goal, explain, loss::Denied, relocate, removal, status};
use crate::{
    effect::{BalancerEffect, Note},
    id::{ShardId, Token},
    map::ClusterMap,
    planted::Bug,
    request::{Reply, Request, RequestError, Subject, shortened},
    time::Instant,
};
use std::sync::Arc;

/// The shard that is asked about.
fn subject_of(map: &ClusterMap, subject: &Subject) -> Option<ShardId> {
    match subject {
        Subject::Key(key) => map.shards.iter().find(|(_, record)| record.range().contains(*key)).map(|(id, _)| *id),
        Subject::Shard(name) => map.shard_named(name),
    }
}

/// An administrative request that waits.
#[derive(Clone, Debug)]
pub(super) struct Admin {
    pub(super) token: Token,
    pub(super) request: Request,
    pub(super) deadline: Instant,
    /// How many operations on the register had begun when it came: an older map does not say whether it is to be refused.
    pub(super) operation: u64,
    /// What it waits for, once the map wants it.
    pub(super) goal: Option<Goal>,
    /// What it would wait for if the compare-and-set was done whose answer was lost, and the map of that.
    pub(super) tried: Option<(Goal, Arc<ClusterMap>)>,
    /// What it is refused with at its deadline, as long as nobody knows whether it can be granted.
    pub(super) doubt: Option<RequestError>,
}

impl BalancerMachine {
    /// Whether only a map that is read after the request came can answer it.
    pub(super) fn wants_newer(&self, request: &Request) -> bool {
        match request {
            Request::Status { fresh } => *fresh,
            // What is known shows how things stand; that something is not there only a newer map shows.
            Request::Primary { shard, change: false } => self.known.as_ref().is_none_or(|(_, map)| map.shard_named(shard).is_none()),
            Request::Explain(subject) => self.known.as_ref().is_none_or(|(_, map)| subject_of(map, subject).is_none()),
            Request::Init { .. }
            | Request::Add { .. }
            | Request::Remove { .. }
            | Request::Move { .. }
            | Request::Drain { .. }
            | Request::Primary { change: true, .. } => true,
            Request::Read { .. }
            | Request::ReadPage { .. }
            | Request::EndRead(_)
            | Request::ReadServer { .. }
            | Request::Write { .. }
            | Request::PickServer { .. } => false,
        }
    }

    /// Answers who waits and can be answered.
    pub(super) fn answer(&mut self, now: Instant, out: &mut Vec<BalancerEffect>) {
        let known = self.known.clone();
        let mut waiting = std::mem::take(&mut self.admins);
        let in_swap: Vec<Token> = match &self.register {
            Register::Swapping { swap, .. } => swap.goals.iter().map(|(token, _)| *token).collect(),
            Register::Idle | Register::Reading { .. } => Vec::new(),
        };
        waiting.retain_mut(|admin| {
            let mut reply = None;
            if let Some((version, map)) = &known {
                reply = match (&admin.goal, &admin.request) {
                    (Some(goal), _) => goal
                        .reached(map, &self.observed, now)
                        .or_else(|| self.config.planted.has(Bug::AnswersOnWish).then(|| goal.hoped(map))?)
                        .or_else(|| goal.overtaken(map).map(Reply::Failed)),
                    (None, request) if admin.operation >= self.confirmed && self.wants_newer(request) => None,
                    (None, Request::Status { .. }) => {
                        let requests = self.router.request_counts();
                        let after = self.config.replace_after;
                        let mut status = status::status(*version, map, &self.observed, &self.drives, requests, after, now);
                        if self.register_failures > 0 {
                            let words = "the metadata register does not answer: nothing is changed or repaired until it does";
                            status.warnings.push(words.into());
                        }
                        if let Some((told, found)) = self.told.went_back() {
                            let words = format!(
                                "the metadata register went back from {told} to {found}, as if it was restored from an older copy: nothing is \
                                 changed or repaired by this balancer; stop the cluster and run `twinshard recover` (`make recover`)"
                            );
                            status.warnings.push(words.into());
                        }
                        Some(Reply::Status(Box::new(status)))
                    }
                    (None, Request::Primary { shard, change: false }) => Some(match map.shard_named(shard) {
                        Some(id) => admin::primary_reply(map, id, admin::primary_server(map, &self.observed, id, now)),
                        None => Reply::Failed(RequestError::NoSuchShard(shard.clone())),
                    }),
                    (None, Request::Explain(subject)) => Some(self.explain(map, subject, now)),
                    (None, _) => None,
                };
            }
            if reply.is_none() && now >= admin.deadline {
                // What a compare-and-set that was not answered carries may be done, or be done later.
                let is_unknown = admin.tried.is_some() || in_swap.contains(&admin.token);
                reply = Some(Reply::Failed(match admin.goal {
                    Some(_) => RequestError::StillChanging,
                    None if is_unknown => RequestError::OutcomeUnknown,
                    None if admin.doubt.is_some() => admin.doubt.take().unwrap_or(RequestError::RegisterUnavailable),
                    None => RequestError::RegisterUnavailable,
                }));
            }
            match reply {
                Some(reply) => {
                    out.push(BalancerEffect::Reply { token: admin.token, reply });
                    false
                }
                None => true,
            }
        });
        self.admins = waiting;
    }

    /// The map with everything that is asked for and allowed, and what is waited for then. What is not allowed is refused at once.
    pub(super) fn wish_all(
        &mut self,
        mut next: ClusterMap,
        now: Instant,
        out: &mut Vec<BalancerEffect>,
    ) -> (ClusterMap, Vec<(Token, Goal)>) {
        let mut goals = Vec::new();
        let (mut refused, mut doubts) = (Vec::new(), Vec::new());
        for admin in self.admins.iter().filter(|admin| admin.goal.is_none() && admin.operation < self.confirmed) {
            if let Some((goal, wished)) = &admin.tried
                && goal.stands(wished, &next)
            {
                // Its compare-and-set was done: asked again it would be refused for what it did itself.
                goals.push((admin.token, goal.clone()));
                continue;
            }
            match self.wish(&next, &admin.request, now) {
                Some(Ok((wished, goal))) => {
                    next = wished;
                    goals.push((admin.token, goal));
                }
                Some(Err(Denied::Now(error))) => refused.push((admin.token, error)),
                Some(Err(Denied::Later(error))) => doubts.push((admin.token, error)),
                None => {}
            }
        }
        for (token, error) in doubts {
            if let Some(admin) = self.admins.iter_mut().find(|admin| admin.token == token) {
                admin.doubt = Some(error);
            }
        }
        for (token, error) in refused {
            if let Some(place) = self.admins.iter().position(|admin| admin.token == token)
                && let Some(admin) = self.admins.remove(place)
                && let Some(request) = admin.request.change()
            {
                out.push(BalancerEffect::Note(Note::Refused { request, reason: shortened(&error.to_string()) }));
            }
            out.push(BalancerEffect::Reply { token, reply: Reply::Failed(error) });
        }
        (next, goals)
    }

    /// The map wants what these requests asked for.
    pub(super) fn set_goals(&mut self, goals: Vec<(Token, Goal)>, out: &mut Vec<BalancerEffect>) {
        for (token, goal) in goals {
            if let Some(admin) = self.admins.iter_mut().find(|admin| admin.token == token) {
                out.extend(admin.request.change().map(|request| BalancerEffect::Note(Note::Granted { request })));
                admin.goal = Some(goal);
                admin.tried = None;
            }
        }
    }

    /// The map may want what these requests asked for: the compare-and-set was not answered.
    pub(super) fn set_tried(&mut self, goals: Vec<(Token, Goal)>, map: &Arc<ClusterMap>) {
        for (token, goal) in goals {
            if let Some(admin) = self.admins.iter_mut().find(|admin| admin.token == token) {
                admin.tried = Some((goal, Arc::clone(map)));
            }
        }
    }

    /// Why a shard stands as it does.
    fn explain(&self, map: &ClusterMap, subject: &Subject, now: Instant) -> Reply {
        let replace_after = self.config.replace_after;
        let seen = explain::Seen { observed: &self.observed, drives: &self.drives, reasons: &self.reasons, replace_after, now };
        let shard = subject_of(map, subject);
        let explained = shard.and_then(|shard| explain::explain(map, shard, &seen, |server| self.router.load_count(server)));
        match (shard, explained) {
            (Some(shard), Some(mut explanation)) => {
                let key = if let Subject::Key(key) = subject { *key } else { explanation.range.low };
                explanation.read = self.router.explain_read(shard, key);
                Reply::Explained(Box::new(explanation))
            }
            _ => Reply::Failed(match subject {
                Subject::Key(key) => RequestError::OutOfRange(*key),
                Subject::Shard(name) => RequestError::NoSuchShard(name.clone()),
            }),
        }
    }

    /// The map that an administrative request wants; `None` if it wants nothing of the map.
    fn wish(&self, map: &ClusterMap, request: &Request, now: Instant) -> Option<Result<(ClusterMap, Goal), Denied>> {
        match request {
            Request::Init { server_count, schema, shards, servers, on_conflict, by_name } => {
                let servers = servers.as_deref();
                let init =
                    admin::Init { server_count: *server_count, schema, shards, servers, on_conflict: *on_conflict, by_name: *by_name };
                Some(admin::init(map, &init).map_err(Denied::Now))
            }
            Request::Add { server_count, new_shards, servers, strict } => {
                Some(admin::add(map, *server_count, new_shards, servers, *strict).map_err(Denied::Now))
            }
            Request::Remove { server_count, servers, accept_data_loss, capped } => {
                let (accept_data_loss, capped) = (*accept_data_loss, *capped);
                let remove = removal::Remove { server_count: *server_count, servers, accept_data_loss, capped };
                Some(removal::remove(map, &remove, &self.observed, now))
            }
            Request::Primary { shard, change: true } => Some(match map.shard_named(shard) {
                Some(id) => admin::move_primary(map, id, &self.observed, now),
                None => Err(RequestError::NoSuchShard(shard.clone()).into()),
            }),
            Request::Move { shard, from, to } => Some(relocate::move_replica(map, (shard, from, to), &self.observed, now)),
            Request::Drain { server } => Some(relocate::drain(map, server, &self.observed, now, self.config.planted)),
            Request::Status { .. }
            | Request::Explain(_)
            | Request::Primary { change: false, .. }
            | Request::Read { .. }
            | Request::ReadPage { .. }
            | Request::EndRead(_)
            | Request::ReadServer { .. }
            | Request::Write { .. }
            | Request::PickServer { .. } => None,
        }
    }
}
