//! What this balancer asks of the provisioner as controller: servers that the map wants and that do not answer are started, those that
//! leave are stopped. Acts only on a map read after the need was seen, so that a controller that is none any more starts nothing.

use super::{BalancerMachine, backoff, mix, plan};
use crate::{
    effect::{BalancerEffect, Note, ProvisionAnswer, ProvisionCommand},
    id::{ServerId, Token},
    map::{Address, ClusterMap, ServerGoal, ServerRecord},
    time::Instant,
};

/// What the provisioner is doing for one server.
#[derive(Clone, Debug, Default)]
pub(super) struct Provision {
    token: Option<Token>,
    attempts: u32,
    not_before: Instant,
    /// Where it said that the server runs, until the map has it.
    pub(super) address: Option<Address>,
    /// How many operations on the register had begun when it was first seen that something is to be done.
    due_at: Option<u64>,
    /// The provisioner is asked to see whether the process of a suspected server runs, which does no harm if it does.
    looks: bool,
    /// It was, in this suspicion.
    looked: bool,
    /// It is asked to see that no process runs which ran before.
    fences: bool,
}

/// What is to be done for a server.
enum Need {
    Nothing,
    Start,
    /// It is suspected: start it if its process is gone.
    Look,
    Replace,
    Stop,
    /// It cannot be started, and a shard waits to be given up: see at least that it does not run.
    Fence,
}

impl BalancerMachine {
    /// Asks the provisioner for what the map wants and is not there.
    pub(super) fn provision(&mut self, now: Instant, map: &ClusterMap, out: &mut Vec<BalancerEffect>) {
        for (id, record) in &map.servers {
            let need = self.need(now, map, *id, record);
            let operations_begun = self.operations_begun;
            let provision = self.provisions.entry(*id).or_default();
            if self.observed.is_alive(*id, now) {
                provision.looked = false;
            }
            if matches!(need, Need::Nothing) {
                provision.due_at = None;
                continue;
            }
            if provision.token.is_some() || now < provision.not_before {
                continue;
            }
            let due_at = *provision.due_at.get_or_insert(operations_begun);
            if self.confirmed <= due_at {
                self.must_read = true;
                continue;
            }
            provision.due_at = None;
            provision.looks = matches!(need, Need::Look);
            provision.looked |= provision.looks;
            provision.fences = matches!(need, Need::Replace | Need::Stop | Need::Fence);
            let name = record.name.clone();
            let command = match need {
                Need::Nothing => continue,
                Need::Stop | Need::Fence => ProvisionCommand::Stop { server: *id, name },
                Need::Start | Need::Look => ProvisionCommand::Start { server: *id, name, number: record.number, replace: false },
                Need::Replace => {
                    out.push(BalancerEffect::Note(Note::Respawning { server: *id }));
                    ProvisionCommand::Start { server: *id, name, number: record.number, replace: true }
                }
            };
            self.last_token += 1;
            let token = Token(self.last_token);
            provision.token = Some(token);
            out.push(BalancerEffect::Provision { token, command });
        }
    }

    fn need(&self, now: Instant, map: &ClusterMap, server: ServerId, record: &ServerRecord) -> Need {
        let silence = self.observed.silence(server, now);
        let is_silent = self.observed.is_overdue(server, now);
        let provision = self.provisions.get(&server);
        match record.goal {
            ServerGoal::Run => match (&record.address, provision.and_then(|provision| provision.address.as_ref())) {
                (None, None) => Need::Start,
                (Some(_), None) if is_silent && self.is_to_fence(map, server) => Need::Fence,
                (Some(_), None) if is_silent => Need::Replace,
                (Some(_), None) if silence > self.config.suspect_after && !provision.is_some_and(|provision| provision.looked) => {
                    Need::Look
                }
                // It answers, or the map is about to know where it is.
                (Some(_), None) | (None | Some(_), Some(_)) => Need::Nothing,
            },
            ServerGoal::Leave => {
                let holds = map.replicas.values().any(|replica| replica.server == server);
                if plan::is_in_use(map, server) {
                    // What it holds is still needed: to be sealed, or as a source.
                    match record.address {
                        Some(_) if is_silent && self.is_to_fence(map, server) => Need::Fence,
                        Some(_) if is_silent => Need::Replace,
                        Some(_) | None => Need::Nothing,
                    }
                } else if (holds && !is_silent) || self.drives.stopped.contains(&server) {
                    Need::Nothing
                } else {
                    Need::Stop
                }
            }
        }
    }

    /// Whether it could not be started, nobody has seen that it does not run, and a shard that it has part in waits for that.
    fn is_to_fence(&self, map: &ClusterMap, server: ServerId) -> bool {
        let failed = self.provisions.get(&server).is_some_and(|provision| provision.attempts > 0);
        let is_fenced = self.observed.servers.get(&server).is_some_and(|seen| seen.is_fenced);
        failed && !is_fenced && map.accepted_loss.iter().any(|shard| plan::has_part(map, *shard, server))
    }

    pub(super) fn provisioned(&mut self, now: Instant, token: Token, answer: ProvisionAnswer, out: &mut Vec<BalancerEffect>) {
        let Some((server, provision)) = self.provisions.iter_mut().find(|(_, provision)| provision.token == Some(token)) else { return };
        let server = *server;
        self.dirty = true;
        provision.token = None;
        match answer {
            ProvisionAnswer::Started { address } => {
                provision.attempts = 0;
                let known = self.known.as_ref().and_then(|(_, map)| map.servers.get(&server)).and_then(|record| record.address.as_ref());
                if provision.looks && known == Some(&address) {
                    // As far as the provisioner can tell it runs where it ran: its silence goes on.
                    return;
                }
                provision.address = Some(address);
                out.push(BalancerEffect::Note(Note::Started { server }));
                if let Some(seen) = self.observed.servers.get_mut(&server) {
                    // It has from now on to answer.
                    seen.expected = now;
                    seen.is_fenced |= provision.fences;
                    seen.unheard_starts = seen.unheard_starts.saturating_add(1);
                }
            }
            ProvisionAnswer::Stopped => {
                if let Some(seen) = self.observed.servers.get_mut(&server) {
                    seen.is_fenced |= provision.fences;
                }
                let leaves = |map: &ClusterMap| {
                    map.servers.get(&server).is_none_or(|record| record.goal == ServerGoal::Leave) && !plan::is_in_use(map, server)
                };
                if !self.known.as_ref().is_none_or(|(_, map)| leaves(map)) {
                    // It was to be fenced: it is started again when it is taken for dead.
                    return;
                }
                self.drives.stopped.insert(server);
                out.push(BalancerEffect::Note(Note::Stopped { server }));
            }
            ProvisionAnswer::Failed { reason } => {
                // Nobody saw whether it runs.
                provision.looked &= !provision.looks;
                provision.not_before = now + backoff(provision.attempts, mix(self.config.seed, server.0));
                provision.attempts = provision.attempts.saturating_add(1);
                out.push(BalancerEffect::Note(Note::ProvisionFailed { server, reason }));
            }
        }
    }
}
