//! Log replication: the primary's appends and its counting, the follower's answers. Never decides who leads.
//!
//! Raft's log rules (Ongaro and Ousterhout 2014, section 5.3) with flexible write quorums (Howard et al. 2016). Unlike Raft's, the
//! commit rule has a precondition outside the log: the map must have activated the epoch.

use super::{Replica, ReplicaEffect, Role, durability::After, read_round::Rounds};
use crate::{
    command::{Command, Entry},
    config::Configuration,
    id::{Epoch, LogIndex, NodeId, Position, ReplicaId},
    message::{Execute, ExecuteResult, LeadStage, ReplicaBody, Tag, ToBalancer},
    planted::Bug,
    quorum,
    storage::LogRecord,
    time::{Duration, Instant},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// Silence after which a primary says that a member does not hear it. Longer than a restart of the member takes. A guess.
const UNREACHED_AFTER: Duration = Duration::from_millis(1_000);
/// See [`UNREACHED_AFTER`]: and only if it was sent so much in that time.
const UNREACHED_COUNT: u32 = 3;

/// A replica that leads an epoch.
#[derive(Clone, Debug)]
pub(super) struct Lead {
    pub(super) config: Configuration,
    pub(super) stage: LeadStage,
    /// The index of the epoch's first entry.
    pub(super) barrier: LogIndex,
    /// The other members, and the learners.
    pub(super) followers: BTreeMap<ReplicaId, Follower>,
    /// Who waits for the result of which entry. Bounded by `executes_max`.
    pub(super) pending: BTreeMap<LogIndex, (NodeId, Tag)>,
    pub(super) rounds: Rounds,
    /// Who asked for the installation last: told when it is done.
    pub(super) controller: Option<NodeId>,
}

impl Lead {
    /// How many entries up to the barrier the members have, taken together.
    pub(super) fn matched_count(&self) -> u64 {
        let members = self.followers.iter().filter(|(id, _)| self.config.has(**id));
        members.map(|(_, follower)| follower.matched.min(self.barrier).0).sum()
    }

    pub(super) const fn epoch(&self) -> Epoch {
        self.config.epoch
    }

    pub(super) const fn stage(&self) -> LeadStage {
        self.stage
    }

    /// The highest index that so many members hold durably. Learners never count; the primary counts with what its own disk has.
    fn held_by(&self, own: LogIndex, count: usize, count_learners: bool) -> LogIndex {
        let others = self.followers.iter().filter(|(id, _)| count_learners || self.config.has(**id));
        quorum::held_by(others.map(|(_, follower)| follower.matched).chain([own]), count)
    }
}

/// How entries are sent to one follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Mode {
    /// Looking for where the logs part: one append at a time.
    Probe {
        /// One is under way.
        asked: bool,
    },
    /// Appends follow each other without waiting.
    Stream,
    /// Its log ends before the base: it fetches a snapshot.
    Snapshot,
}

/// A member or learner as its primary sees it.
#[derive(Clone, Debug)]
pub(super) struct Follower {
    mode: Mode,
    /// The next index to send.
    next: LogIndex,
    /// The last index that it has durably and in agreement.
    pub(super) matched: LogIndex,
    /// Appends under way: the last index of each and its size.
    sent: VecDeque<(LogIndex, usize)>,
    sent_bytes: usize,
    /// The commit index it was told last.
    commit_told: LogIndex,
    /// When to send again, whatever happens.
    send_at: Instant,
    /// How often it was sent to again without an answer.
    silence_count: u32,
    /// When it answered last, in this epoch.
    heard_at: Instant,
    /// How many messages went to it since.
    unanswered_count: u32,
}

impl Follower {
    pub(super) fn new(last: LogIndex, now: Instant) -> Self {
        Self {
            mode: Mode::Probe { asked: false },
            next: last.next(),
            matched: LogIndex(0),
            sent: VecDeque::new(),
            sent_bytes: 0,
            commit_told: LogIndex(0),
            send_at: now,
            silence_count: 0,
            heard_at: now,
            unanswered_count: 0,
        }
    }

    /// Whether it does not seem to hear this primary. Time alone does not say so: the primary may have been paused itself.
    fn is_unreached(&self, now: Instant) -> bool {
        self.unanswered_count >= UNREACHED_COUNT && now.since(self.heard_at) > UNREACHED_AFTER
    }

    fn probe_from(&mut self, next: LogIndex) {
        self.mode = Mode::Probe { asked: false };
        self.next = next;
        self.sent.clear();
        self.sent_bytes = 0;
    }
}

impl Replica {
    // ---- the follower -------------------------------------------------------------------------------------------------------

    /// Whether a message of a primary of this epoch may be followed; if it may, the epoch is promised (R4) and its primary known.
    pub(super) fn follow(&mut self, now: Instant, from: ReplicaId, epoch: Epoch) -> bool {
        if epoch < self.promised {
            self.send(from, ReplicaBody::Refused);
            return false;
        }
        if epoch == self.begun {
            // Epochs are minted once and have one primary, and this one is that.
            self.drop_message("an append in the own epoch");
            return false;
        }
        if epoch > self.promised {
            self.promise(now, epoch);
        }
        self.leader = Some(from);
        true
    }

    pub(super) fn on_append(
        &mut self,
        now: Instant,
        from: ReplicaId,
        epoch: Epoch,
        previous: Position,
        entries: Vec<Arc<Entry>>,
        commit: LogIndex,
    ) {
        if !is_contiguous(previous, &entries) || entries.last().is_some_and(|last| last.position.epoch > epoch) {
            self.drop_message("an append with a gap");
            return;
        }
        if !self.follow(now, from, epoch) {
            return;
        }
        let base = self.log.base();
        // What lies at or below the base is committed, so every later primary has the same.
        if previous.index >= base.index && !self.log.has(previous) {
            // The last position that may agree with a log that has `previous`, but never before what is committed.
            let below = Position { epoch: previous.epoch, index: LogIndex(previous.index.0 - 1) };
            let committed = self.log.position(self.commit).unwrap_or(base);
            let hint = self.log.candidate(below).max(committed);
            if self.context.planted.has(Bug::CommitsUnverified) {
                self.commit = self.commit.max(commit.min(self.log.last().index));
            }
            self.send(from, ReplicaBody::Mismatch { hint });
            return;
        }
        let matched = LogIndex(previous.index.0 + entries.len() as u64).max(base.index);
        let first_new = entries.iter().position(|entry| entry.position.index > base.index && !self.log.has(entry.position));
        if let Some(first_new) = first_new {
            let mut new = entries;
            new.drain(..first_new);
            let after = LogIndex(new[0].position.index.0 - 1);
            if self.log.last().index > after {
                self.truncate(after);
            }
            self.append(new);
        }
        self.verified = self.verified.max(matched);
        // R2: what was not verified in this epoch may be another entry than the one that is committed there.
        let known = if self.context.planted.has(Bug::CommitsUnverified) { self.log.last().index } else { self.verified };
        self.commit = self.commit.max(commit.min(known));
        if self.context.planted.has(Bug::AcknowledgesBeforeDurable) {
            self.acknowledgement = Some((from, epoch, matched));
        } else {
            self.once_durable(now, After::Acknowledge { to: from, epoch, matched });
        }
    }

    /// Adds entries to the log, in memory and to the step's batch.
    pub(super) fn append(&mut self, entries: Vec<Arc<Entry>>) {
        if entries.is_empty() {
            return;
        }
        for entry in &entries {
            self.log.push(Arc::clone(entry));
        }
        match self.batch.last_mut() {
            Some(LogRecord::Append { entries: batched, .. }) => batched.extend(entries),
            Some(_) | None => self.batch.push(LogRecord::Append { replica: self.id, entries }),
        }
    }

    // ---- the primary --------------------------------------------------------------------------------------------------------

    pub(super) fn lead(&self) -> Option<&Lead> {
        match &self.role {
            Role::Leading(lead) => Some(lead),
            Role::Backup | Role::Fetching(_) => None,
        }
    }

    pub(super) fn lead_mut(&mut self) -> Option<&mut Lead> {
        match &mut self.role {
            Role::Leading(lead) => Some(lead),
            Role::Backup | Role::Fetching(_) => None,
        }
    }

    /// Whether it may commit and answer in this epoch: only once the map has it (DESIGN 4, step 5).
    pub(super) fn serves_as_primary(&self) -> bool {
        self.lead().is_some_and(|lead| match lead.stage {
            LeadStage::Active => true,
            LeadStage::Installing | LeadStage::Installed => self.context.planted.has(Bug::ServesUnactivated),
            LeadStage::SourceFailed | LeadStage::Lame => false,
        })
    }

    /// Appends a command and remembers who waits for its result.
    pub(crate) fn execute(&mut self, _now: Instant, from: NodeId, execute: Execute) {
        let Execute { tag, replica: _, epoch, request, idempotency, operations } = execute;
        let leads = self.lost.is_none() && self.serves_as_primary() && self.lead().is_some_and(|lead| lead.epoch() == epoch);
        let (count, behind) = (self.lead().map_or(0, |lead| lead.pending.len()), self.log.last().index.0 - self.commit.0);
        let settings = &self.context.settings;
        let refusal = if !leads {
            Some(ExecuteResult::NotPrimary { epoch: self.heard, lame: self.lead_stage(epoch) == Some(LeadStage::Lame) })
        } else if request.is_none() && idempotency.is_none() {
            // Without an identity a lost answer could not be asked for again.
            self.drop_message("a command without identity");
            return;
        } else if count >= settings.executes_max
            || behind >= settings.executes_max as u64
            || self.log.size_bytes() > settings.log_bytes_max
            || self.swap.is_some()
        {
            Some(ExecuteResult::Busy)
        } else {
            None
        };
        if let Some(result) = refusal {
            self.tell(from, ToBalancer::Executed { tag, result });
            return;
        }
        let position = Position { epoch, index: self.log.last().index.next() };
        let command = Command::Operations(Arc::unwrap_or_clone(operations));
        self.append(vec![Arc::new(Entry { position, request, idempotency, command })]);
        if let Some(lead) = self.lead_mut() {
            lead.pending.insert(position.index, (from, tag));
        }
    }

    pub(super) fn on_appended(&mut self, now: Instant, from: ReplicaId, epoch: Epoch, matched: LogIndex) {
        let (last, heartbeat) = (self.log.last().index, self.context.settings.heartbeat_every);
        let resend = self.context.settings.resend_after;
        // R6: by member and by epoch.
        let Some(follower) = self.follower_in(epoch, from) else { return };
        if matched > last {
            self.drop_message("an acknowledgement beyond the log");
            return;
        }
        follower.matched = follower.matched.max(matched);
        follower.silence_count = 0;
        while follower.sent.front().is_some_and(|(end, _)| *end <= follower.matched) {
            if let Some((_, bytes)) = follower.sent.pop_front() {
                follower.sent_bytes -= bytes;
            }
        }
        match follower.mode {
            Mode::Probe { .. } | Mode::Snapshot => {
                follower.mode = Mode::Stream;
                follower.next = follower.matched.next();
            }
            Mode::Stream => follower.next = follower.next.max(follower.matched.next()),
        }
        follower.send_at = now + if follower.sent.is_empty() { heartbeat } else { resend };
        let matched = follower.matched;
        self.end_lending(from, matched);
    }

    pub(super) fn on_mismatch(&mut self, now: Instant, from: ReplicaId, epoch: Epoch, hint: Position) {
        let agreed = self.log.candidate(hint);
        let behind = hint.index < self.log.base().index;
        let Some(follower) = self.follower_in(epoch, from) else { return };
        follower.silence_count = 0;
        if hint.index < follower.matched {
            return; // Late: more than that is known to agree.
        }
        if behind {
            if follower.mode != Mode::Snapshot {
                follower.mode = Mode::Snapshot;
                follower.send_at = now;
            }
            return;
        }
        let next = agreed.index.max(follower.matched).next();
        match follower.mode {
            // One probe at a time: an answer to an older one says nothing new.
            Mode::Probe { asked: true } if next >= follower.next => {}
            Mode::Probe { .. } | Mode::Stream | Mode::Snapshot => follower.probe_from(next),
        }
    }

    fn follower_in(&mut self, epoch: Epoch, from: ReplicaId) -> Option<&mut Follower> {
        self.lead_mut().filter(|lead| lead.epoch() == epoch).and_then(|lead| lead.followers.get_mut(&from))
    }

    /// The members that hold the barrier, and with enough of them: installed (R14).
    pub(super) fn advance_install(&mut self) {
        let own = self.durable;
        let (write_quorum_only, count_learners) =
            (self.context.planted.has(Bug::InstallsOnWriteQuorum), self.context.planted.has(Bug::CountsLearners));
        let id = self.id;
        let Some(lead) = self.lead_mut() else { return };
        if lead.stage != LeadStage::Installing {
            return;
        }
        let count = if write_quorum_only { lead.config.write_quorum as usize } else { lead.config.install_quorum() };
        if lead.held_by(own, count, count_learners) < lead.barrier {
            return;
        }
        lead.stage = LeadStage::Installed;
        let (epoch, stage, controller) = (lead.epoch(), lead.stage, lead.controller);
        if let Some(to) = controller {
            self.tell(to, ToBalancer::Progress { replica: id, epoch, stage });
        }
    }

    /// Commits what the write quorum holds, if that is an entry of the own epoch; everything before it is committed with it.
    pub(super) fn advance_commit(&mut self) {
        let own = self.durable;
        let serves = self.serves_as_primary();
        let planted = self.context.planted;
        let commit = self.commit;
        let Some(lead) = self.lead() else { return };
        let held = lead.held_by(own, lead.config.write_quorum as usize, planted.has(Bug::CountsLearners));
        let counts = if planted.has(Bug::CommitsOldEpochByCounting) {
            serves || held < lead.barrier
        } else {
            // Never an entry of an older epoch by counting (Raft 5.4.2).
            serves && held >= lead.barrier
        };
        if counts && held > commit {
            self.commit = held;
        }
    }

    /// Sends what there is to send, at the end of every step.
    pub(super) fn pump(&mut self, now: Instant) {
        // Nothing of an epoch leaves before its promise is durable: a restart that had forgotten the promise could begin the epoch a
        // second time, with another log (R13).
        if self.persisted < self.promise_batch {
            return;
        }
        let Role::Leading(lead) = &mut self.role else { return };
        let (epoch, commit) = (lead.epoch(), self.commit);
        let settings = &self.context.settings;
        let last = self.log.last().index;
        let base = self.log.base();
        for (to, follower) in &mut lead.followers {
            loop {
                if follower.mode != Mode::Snapshot && follower.next <= base.index {
                    // What it needs is compacted away.
                    follower.mode = Mode::Snapshot;
                    follower.send_at = now;
                }
                let due = now >= follower.send_at;
                let (body, bytes) = match follower.mode {
                    Mode::Snapshot if due => (ReplicaBody::NeedSnapshot { base }, 0),
                    Mode::Probe { asked: false } => {
                        // Nobody seems to be there: do not send the same bytes again and again.
                        let count = if follower.silence_count > 1 { 0 } else { settings.append_entries_max };
                        let Some(previous) = self.log.position(LogIndex(follower.next.0 - 1)) else { break };
                        let entries = self.log.slice(follower.next, last, count, settings.append_bytes_max);
                        (ReplicaBody::Append { previous, entries, commit }, 0)
                    }
                    Mode::Stream
                        if follower.next <= last
                            && follower.sent.len() < settings.appends_in_flight_max
                            && (follower.sent.is_empty() || follower.sent_bytes < settings.append_bytes_max.saturating_mul(4)) =>
                    {
                        let Some(previous) = self.log.position(LogIndex(follower.next.0 - 1)) else { break };
                        let entries = self.log.slice(follower.next, last, settings.append_entries_max, settings.append_bytes_max);
                        let bytes = entries.iter().map(|entry| entry.size_bytes()).sum();
                        (ReplicaBody::Append { previous, entries, commit }, bytes)
                    }
                    Mode::Stream if due && follower.sent.is_empty() => {
                        let Some(previous) = self.log.position(LogIndex(follower.next.0 - 1)) else { break };
                        (ReplicaBody::Append { previous, entries: Vec::new(), commit }, 0)
                    }
                    Mode::Snapshot | Mode::Probe { asked: true } | Mode::Stream => break,
                };
                if let ReplicaBody::Append { entries, .. } = &body {
                    follower.commit_told = commit;
                    if let (Some(end), Mode::Stream) = (entries.last().map(|entry| entry.position.index), follower.mode) {
                        follower.next = end.next();
                        follower.sent.push_back((end, bytes));
                        follower.sent_bytes += bytes;
                    }
                }
                follower.send_at = now
                    + match follower.mode {
                        Mode::Probe { .. } => back_off(settings.resend_after, follower.silence_count),
                        Mode::Stream if follower.sent.is_empty() => settings.heartbeat_every,
                        Mode::Stream | Mode::Snapshot => settings.resend_after,
                    };
                if let Mode::Probe { asked } = &mut follower.mode {
                    *asked = true;
                }
                follower.unanswered_count = follower.unanswered_count.saturating_add(1);
                self.out.push(ReplicaEffect::Send(crate::message::ReplicaMessage { from: self.id, to: *to, epoch, body }));
            }
            // A commit index that travels with no entry travels alone, a moment later: others may come along.
            if follower.mode == Mode::Stream && follower.sent.is_empty() && follower.commit_told < commit {
                follower.send_at = follower.send_at.min(now + settings.commit_spread_after);
            }
        }
    }

    pub(super) fn tick_followers(&mut self, now: Instant) {
        let Role::Leading(lead) = &mut self.role else { return };
        for follower in lead.followers.values_mut() {
            if now < follower.send_at {
                continue;
            }
            match follower.mode {
                Mode::Probe { .. } => {
                    follower.silence_count = follower.silence_count.saturating_add(1);
                    follower.mode = Mode::Probe { asked: false };
                }
                Mode::Stream if !follower.sent.is_empty() => {
                    follower.silence_count = follower.silence_count.saturating_add(1);
                    follower.probe_from(follower.matched.next());
                }
                Mode::Stream | Mode::Snapshot => {}
            }
        }
    }

    pub(super) fn followers_deadline(&self) -> Option<Instant> {
        if self.persisted < self.promise_batch {
            return None; // It sends nothing yet.
        }
        self.lead()?.followers.values().map(|follower| follower.send_at).min()
    }

    /// An answer of a follower came, which shows that messages of this epoch reach it. Others, such as its reads, show only that it lives.
    pub(super) fn reached(&mut self, now: Instant, from: ReplicaId, epoch: Epoch) {
        let lead = self.lead_mut().filter(|lead| lead.epoch() == epoch);
        if let Some(follower) = lead.and_then(|lead| lead.followers.get_mut(&from)) {
            follower.heard_at = now;
            follower.unanswered_count = 0;
        }
    }

    /// The members that do not seem to hear this primary.
    pub(super) fn unreached(&self, now: Instant) -> Vec<ReplicaId> {
        let Some(lead) = self.lead() else { return Vec::new() };
        let members = lead.followers.iter().filter(|(id, _)| lead.config.has(**id));
        members.filter(|(_, follower)| follower.is_unreached(now)).map(|(id, _)| *id).collect()
    }

    /// The learners of an active primary: how far each is and whether it is close enough to become a member.
    pub(super) fn learners(&self) -> Vec<(ReplicaId, LogIndex, bool)> {
        let Some(lead) = self.lead().filter(|lead| lead.stage == LeadStage::Active) else { return Vec::new() };
        let (last, close) = (self.log.last().index.0, self.context.settings.learner_close_count);
        lead.followers
            .iter()
            .filter(|(id, _)| !lead.config.has(**id))
            .map(|(id, follower)| {
                let streams = matches!(follower.mode, Mode::Stream);
                (*id, follower.matched, streams && follower.matched.0 + close >= last && follower.matched.0 > 0)
            })
            .collect()
    }
}

/// `wait`, doubled for every silence up to eight times.
fn back_off(wait: Duration, silence_count: u32) -> Duration {
    wait.times(1 << silence_count.min(3))
}

/// Whether entries follow `previous` and each other.
pub(super) fn is_contiguous(previous: Position, entries: &[Arc<Entry>]) -> bool {
    let mut last = previous;
    entries.iter().all(|entry| {
        let follows = entry.position.index == last.index.next() && entry.position.epoch >= last.epoch;
        last = entry.position;
        follows
    })
}
