//! The replica's side of the five steps: seal, install (fetch the source's log whole, then the barrier), activate, learn. Never decides
//! which configuration comes next, and never remembers that one is active: it is told (R15).
//!
//! Vertical Paxos II (Lamport, Malkhi, Zhou 2009): state is transferred before the configuration is activated.

use super::{
    Replica, ReplicaEffect, Role,
    durability::After,
    replication::{Follower, Lead, is_contiguous},
};
use crate::{
    command::{Command, Entry},
    effect::Note,
    id::{Epoch, LogIndex, NodeId, Position, ReplicaId, StageId},
    message::{Install, LeadStage, ReplicaBody, ToBalancer},
    planted::Bug,
    storage::LogRecord,
    time::Instant,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The log of the source on its way to the new primary. Kept aside until it is whole, then it takes the own log's place in one persist.
#[derive(Clone, Debug)]
pub(super) struct Fetch {
    install: Install,
    controller: NodeId,
    /// The source gave up, or seems to be gone (R12).
    failed: bool,
    /// A position of the own log, or of the staged snapshot, that is asked about or agreed on.
    after: Position,
    /// Whether the source has `after`.
    agreed: bool,
    /// The source's entries after `after`.
    entries: Vec<Arc<Entry>>,
    /// A snapshot that lies staged whole: the entries follow it.
    staged: Option<(StageId, Position)>,
    /// How often `after` was moved down to where the logs may agree.
    steps_down: u64,
    /// How many pieces of the snapshot under way are here.
    piece_count: u64,
    /// Whether the next one has come and is being staged.
    piece_came: bool,
    /// The most that was here so far. What is fetched again is no progress.
    progress: u64,
    resend_at: Instant,
    give_up_at: Instant,
}

impl Fetch {
    pub(super) const fn epoch(&self) -> Epoch {
        self.install.config.epoch
    }

    pub(super) const fn stage(&self) -> LeadStage {
        if self.failed { LeadStage::SourceFailed } else { LeadStage::Installing }
    }

    pub(super) fn is_from(&self, source: ReplicaId) -> bool {
        !self.failed && self.install.source == source
    }

    /// How much of it is done.
    pub(super) const fn progress(&self) -> u64 {
        self.progress
    }

    /// The end of what is here aside.
    fn end(&self) -> Position {
        self.entries.last().map_or(self.after, |entry| entry.position)
    }
}

impl Replica {
    /// Step 2: promise and report, once durable.
    pub(crate) fn seal(&mut self, now: Instant, from: NodeId, epoch: Epoch) {
        if self.lost.is_some() {
            return; // A lost replica has forgotten what it promised: its word is worth nothing.
        }
        if epoch > self.promised {
            self.promise(now, epoch);
        }
        // The promise asked for or, as a refusal, the higher one that stands; with the end of the log as of this moment's order (R3).
        let answer = After::Promised { to: from, epoch: self.promised, last: self.log.last() };
        if self.context.planted.has(Bug::PromisesBeforeWrites) {
            self.carry_on(now, answer);
        } else {
            self.once_durable(now, answer);
        }
    }

    /// Steps 3 and 4.
    pub(crate) fn install(&mut self, now: Instant, from: NodeId, install: Install) {
        if self.lost.is_some() {
            return;
        }
        let epoch = install.config.epoch;
        if !install.config.is_valid() || install.config.primary != self.id {
            self.drop_message("an install that is not for this replica");
            return;
        }
        // R13: begun once. Asked again, it says how far it is and changes nothing.
        if let Some(stage) = self.lead_stage(epoch) {
            if self.context.planted.has(Bug::InstallsTwice) && stage != LeadStage::Lame {
                self.install_again(now, from, install);
                return;
            }
            match &mut self.role {
                Role::Fetching(fetch) => fetch.controller = from,
                Role::Leading(lead) => lead.controller = Some(from),
                Role::Backup => {}
            }
            self.report_progress(from, epoch, stage);
            return;
        }
        if epoch == self.promised && self.leader.is_some() {
            self.drop_message("an install of an epoch that another leads");
            return;
        }
        if epoch > self.promised {
            self.promise(now, epoch);
        }
        self.begin(now, from, install);
        if let Some(stage) = self.lead_stage(epoch) {
            self.report_progress(from, epoch, stage);
        }
    }

    fn begin(&mut self, now: Instant, from: NodeId, install: Install) {
        self.begun = install.config.epoch;
        self.refuse_asked();
        if install.source == self.id {
            // The first configuration has nothing to seal: whatever an attempt before it left here was never committed.
            if self.log.last() == install.source_last || install.source_last == Position::ZERO {
                self.lead_with(now, install, Some(from));
            } else {
                // It promised another end than it has: somebody is mistaken, and a guess could lose what was acknowledged.
                let mut fetch = self.fetch_of(now, from, install);
                fetch.failed = true;
                self.role = Role::Fetching(Box::new(fetch));
            }
            return;
        }
        let fetch = self.fetch_of(now, from, install);
        self.role = Role::Fetching(Box::new(fetch));
        self.ask_log(now);
    }

    fn fetch_of(&self, now: Instant, controller: NodeId, install: Install) -> Fetch {
        Fetch {
            after: self.log.candidate(install.source_last),
            install,
            controller,
            failed: false,
            agreed: false,
            entries: Vec::new(),
            staged: None,
            steps_down: 0,
            piece_count: 0,
            piece_came: false,
            progress: 0,
            resend_at: now,
            give_up_at: now + self.context.settings.fetch_timeout,
        }
    }

    /// Planted: a second install of the epoch starts again from its own source.
    fn install_again(&mut self, now: Instant, from: NodeId, install: Install) {
        match &self.role {
            Role::Fetching(fetch) if fetch.install.source == install.source => return,
            Role::Fetching(_) | Role::Leading(_) | Role::Backup => {}
        }
        self.role = Role::Backup;
        self.intake = None;
        if install.source == self.id && self.log.last().index > install.source_last.index {
            self.truncate(install.source_last.index);
        }
        self.begin(now, from, install);
    }

    fn report_progress(&mut self, to: NodeId, epoch: Epoch, stage: LeadStage) {
        self.tell(to, ToBalancer::Progress { replica: self.id, epoch, stage });
    }

    // ---- the log of the source ----------------------------------------------------------------------------------------------

    fn fetch_mut(&mut self) -> Option<&mut Fetch> {
        match &mut self.role {
            Role::Fetching(fetch) if !fetch.failed => Some(fetch),
            Role::Fetching(_) | Role::Backup | Role::Leading(_) => None,
        }
    }

    /// Asks the source for what follows the end of what is here.
    fn ask_log(&mut self, now: Instant) {
        let resend_at = now + self.context.settings.resend_after;
        let Some(fetch) = self.fetch_mut() else { return };
        fetch.resend_at = resend_at;
        let (to, after, last) = (fetch.install.source, fetch.end(), fetch.install.source_last);
        if fetch.agreed && after == last {
            self.adopt(now);
        } else {
            self.send(to, ReplicaBody::FetchLog { after, last });
        }
    }

    /// The fetch under way, if a message of that sender and epoch belongs to it.
    fn fetch_from(&mut self, from: ReplicaId, epoch: Epoch) -> Option<&mut Fetch> {
        self.fetch_mut().filter(|fetch| fetch.install.source == from && fetch.epoch() == epoch)
    }

    pub(super) fn on_log_part(&mut self, now: Instant, from: ReplicaId, epoch: Epoch, previous: Position, entries: Vec<Arc<Entry>>) {
        let Some(fetch) = self.fetch_from(from, epoch) else { return };
        // A piece that does not continue what is here was asked for before: nothing is lost by dropping it.
        let last = fetch.install.source_last;
        if previous != fetch.end() || !is_contiguous(previous, &entries) || entries.last().is_some_and(|entry| entry.position > last) {
            return;
        }
        fetch.agreed = true;
        fetch.entries.extend(entries);
        self.fetch_moves(now);
        self.ask_log(now);
    }

    pub(super) fn on_log_gap(&mut self, now: Instant, from: ReplicaId, epoch: Epoch, hint: Position, base: Position) {
        let (own, own_base, own_last) = (self.log.candidate(hint), self.log.base(), self.log.last());
        // Where the logs part before the source's base, only its snapshot helps. Its base is committed: another entry of that index is not.
        let parts_before_base = parts_before(own, base);
        let Some(fetch) = self.fetch_from(from, epoch) else { return };
        if fetch.agreed {
            return; // Late.
        }
        if let Some((_, position)) = fetch.staged {
            // Late, unless the source has dropped meanwhile what follows its snapshot. A new stage takes the place of the old one at once, so
            // what was staged must not be adopted any more.
            if base.index > position.index {
                fetch.staged = None;
                fetch.after = own_last;
                let source = fetch.install.source;
                self.take_in(now, source);
            }
            return;
        }
        // Before its base the source has only a snapshot. And what lies before the own base is committed, so the source had it once.
        if hint.index < own_base.index || parts_before_base {
            let source = fetch.install.source;
            self.take_in(now, source);
        } else if own < fetch.after {
            fetch.after = own;
            fetch.steps_down += 1;
            self.fetch_moves(now);
            self.ask_log(now);
        }
    }

    /// The source does not have what it promised, or not any more.
    pub(super) fn fail_fetch(&mut self) {
        let Some(fetch) = self.fetch_mut() else { return };
        fetch.failed = true;
        let (to, epoch) = (fetch.controller, fetch.epoch());
        self.intake = None;
        // R12, R13: this epoch keeps its source; the controller gathers another set for another epoch.
        self.report_progress(to, epoch, LeadStage::SourceFailed);
    }

    /// A snapshot of the source is staged whole.
    pub(super) fn snapshot_for_fetch(&mut self, now: Instant, stage: StageId, position: Position) {
        let Some(fetch) = self.fetch_mut() else { return };
        if position > fetch.install.source_last {
            self.fail_fetch();
            return;
        }
        fetch.staged = Some((stage, position));
        fetch.after = position;
        fetch.agreed = false;
        fetch.entries.clear();
        self.fetch_has_piece(now, true);
        self.ask_log(now);
    }

    /// The source's log is here whole: it takes the own log's place, in one persist (R1), and the epoch begins.
    fn adopt(&mut self, now: Instant) {
        let Role::Fetching(fetch) = std::mem::replace(&mut self.role, Role::Backup) else { return };
        let Fetch { install, controller, after, entries, staged, .. } = *fetch;
        match staged {
            Some((stage, position)) if !self.holds(position) => self.reset_to(now, stage, position),
            // R1: the own log has that entry, so it keeps what it has.
            Some(_) | None => {}
        }
        let entries: Vec<_> =
            entries.into_iter().skip_while(|entry| entry.position.index <= self.log.base().index || self.log.has(entry.position)).collect();
        let end = entries.first().map_or(install.source_last.index.max(after.index), |entry| LogIndex(entry.position.index.0 - 1));
        if self.log.last().index > end {
            self.truncate(end);
        }
        self.append(entries);
        assert!(self.log.last() == install.source_last, "R12: {} took {} for {}", self.id, self.log.last(), install.source_last);
        self.lead_with(now, install, Some(controller));
    }

    /// Whether the log has the position, or had it and compacted it: then it is committed and agrees.
    pub(super) fn holds(&self, position: Position) -> bool {
        position.index < self.log.base().index || self.log.has(position)
    }

    fn lead_with(&mut self, now: Instant, install: Install, controller: Option<NodeId>) {
        let config = install.config;
        let last = self.log.last().index;
        let followers: BTreeMap<_, _> =
            config.members.iter().filter(|member| **member != self.id).map(|member| (*member, Follower::new(last, now))).collect();
        let barrier = Position { epoch: config.epoch, index: last.next() };
        // R19: the barrier carries its configuration.
        let command = Command::Barrier(config.clone());
        self.append(vec![Arc::new(Entry { position: barrier, request: None, idempotency: None, command })]);
        self.role = Role::Leading(Box::new(Lead {
            config,
            stage: LeadStage::Installing,
            barrier: barrier.index,
            followers,
            pending: BTreeMap::new(),
            rounds: super::read_round::Rounds::default(),
            controller,
        }));
    }

    /// Planted: after a restart it goes on where the barrier of its epoch says that it led.
    pub(super) fn go_on_after_restart(&mut self) {
        let barrier = self.log.entries().rev().find_map(|entry| match &entry.command {
            Command::Barrier(config) if config.epoch == self.promised && config.primary == self.id => {
                Some((entry.position.index, config.clone()))
            }
            Command::Barrier(_) | Command::Operations(_) | Command::CloseSession(_) => None,
        });
        let Some((barrier, config)) = barrier else { return };
        let last = self.log.last().index;
        let followers =
            config.members.iter().filter(|member| **member != self.id).map(|member| (*member, Follower::new(last, Instant(0)))).collect();
        self.lame_through = Epoch(0);
        self.begun = self.promised;
        self.role = Role::Leading(Box::new(Lead {
            config,
            stage: if self.commit >= barrier { LeadStage::Active } else { LeadStage::Installing },
            barrier,
            followers,
            pending: BTreeMap::new(),
            rounds: super::read_round::Rounds::default(),
            controller: None,
        }));
    }

    pub(super) fn tick_fetch(&mut self, now: Instant) {
        let Some(fetch) = self.fetch_mut() else { return };
        if now >= fetch.give_up_at {
            self.fail_fetch();
        } else if now >= fetch.resend_at {
            if self.intake.is_some() {
                // The snapshot has its own timer.
                let resend_at = now + self.context.settings.resend_after;
                if let Some(fetch) = self.fetch_mut() {
                    fetch.resend_at = resend_at;
                }
            } else {
                self.ask_log(now);
            }
        }
    }

    pub(super) fn fetch_deadline(&self) -> Option<Instant> {
        match &self.role {
            Role::Fetching(fetch) if !fetch.failed => Some(fetch.resend_at.min(fetch.give_up_at)),
            Role::Fetching(_) | Role::Backup | Role::Leading(_) => None,
        }
    }

    /// A fetch begins a snapshot from its start.
    pub(super) fn fetch_begins_snapshot(&mut self) {
        if let Some(fetch) = self.fetch_mut() {
            (fetch.piece_count, fetch.piece_came) = (0, false);
        }
    }

    /// The next piece of the snapshot has come, or is staged.
    pub(super) fn fetch_has_piece(&mut self, now: Instant, is_staged: bool) {
        if let Some(fetch) = self.fetch_mut() {
            fetch.piece_count += u64::from(is_staged);
            fetch.piece_came = !is_staged;
        }
        self.fetch_moves(now);
    }

    /// If there is more here than ever, the fetch is not stuck. An answer alone does not say so.
    fn fetch_moves(&mut self, now: Instant) {
        let give_up_at = now + self.context.settings.fetch_timeout;
        let Some(fetch) = self.fetch_mut() else { return };
        let progress = fetch.steps_down + 2 * fetch.piece_count + u64::from(fetch.piece_came) + fetch.entries.len() as u64;
        if progress > fetch.progress {
            fetch.progress = progress;
            fetch.give_up_at = give_up_at;
        }
    }

    // ---- the end of the change ----------------------------------------------------------------------------------------------

    /// Step 5: the map has this epoch as current. Only for exactly the epoch that it leads and has installed.
    pub(crate) fn activate(&mut self, from: NodeId, epoch: Epoch) {
        if self.lost.is_some() {
            return;
        }
        if let Some(lead) = self.lead_mut().filter(|lead| lead.epoch() == epoch && lead.stage == LeadStage::Installed) {
            lead.stage = LeadStage::Active;
            self.out.push(ReplicaEffect::Note(Note::Leads { replica: self.id, shard: self.shard, epoch }));
        }
        let stage = self.lead_stage(epoch);
        if let Some(stage) = stage {
            self.report_progress(from, epoch, stage);
        }
    }

    /// These replicas are brought up to date beside the members. Their answers never count.
    pub(crate) fn learn(&mut self, now: Instant, epoch: Epoch, learners: &BTreeSet<ReplicaId>) {
        let (id, last) = (self.id, self.log.last().index);
        let learners_max = self.context.settings.learners_max;
        let Some(lead) = self.lead_mut().filter(|lead| lead.epoch() == epoch) else { return };
        let config = &lead.config;
        lead.followers.retain(|follower, _| config.has(*follower) || learners.contains(follower));
        for learner in learners.iter().take(learners_max) {
            if *learner != id {
                lead.followers.entry(*learner).or_insert_with(|| Follower::new(last, now));
            }
        }
    }

    /// The map shows a higher epoch as current: whatever is led here is over (R5).
    pub(crate) fn current_is(&mut self, now: Instant, epoch: Epoch) {
        if self.lost.is_none() {
            self.hear(now, epoch);
        }
    }

    /// Persisted nothing yet of an epoch that is only begun: questions to its old primary end.
    fn refuse_asked(&mut self) {
        self.leader = None;
    }

    /// For the source: entries after a position, as of the log that it promised (R3: only what is durable).
    pub(super) fn on_fetch_log(&mut self, from: ReplicaId, epoch: Epoch, after: Position, last: Position) {
        if epoch < self.promised {
            self.send(from, ReplicaBody::Refused);
            return;
        }
        // The source has promised that epoch and since then accepted nothing older: its end is what it reported, or it is not that log.
        if epoch != self.promised || !self.log.has(last) {
            self.send_as(from, epoch, ReplicaBody::FetchRefused);
            return;
        }
        if self.durable < last.index {
            return; // Not yet durable: the question comes again.
        }
        let base = self.log.base();
        if !self.log.has(after) {
            let below = Position { epoch: after.epoch, index: after.index.min(last.index) };
            let hint = if after.index < base.index { base } else { self.log.candidate(below) };
            self.send(from, ReplicaBody::LogGap { hint, base });
            return;
        }
        let settings = &self.context.settings;
        let entries = self.log.slice(after.index.next(), last.index, settings.append_entries_max, settings.append_bytes_max);
        let commit = self.commit;
        self.send(from, ReplicaBody::LogPart { previous: after, entries, commit });
    }

    /// Drops everything for a staged snapshot, in one record (R1).
    pub(super) fn reset_to(&mut self, now: Instant, stage: StageId, position: Position) {
        assert!(position.index > self.commit, "I2: {} knows {} to be committed and is to drop it for {position}", self.id, self.commit);
        self.log.reset(position);
        self.batch.push(LogRecord::Reset { replica: self.id, base: position, stage });
        self.cut_durable(LogIndex(0));
        // A snapshot is made of applied entries, so all of it is committed.
        self.commit = position.index;
        self.commit_hint = self.commit_hint.max(position.index);
        self.begin_swap(now, stage, position);
    }
}

/// Whether a log whose last position that may agree is `own` parts from another log before that one's base: it ends below the base, or has
/// another entry there.
fn parts_before(own: Position, base: Position) -> bool {
    own.index < base.index || (own.index == base.index && own.epoch != base.epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_parts_before_a_base_that_it_does_not_have() {
        let at = |epoch, index| Position { epoch: Epoch(epoch), index: LogIndex(index) };
        assert!(parts_before(at(2, 4), at(2, 5)), "ends below");
        assert!(parts_before(at(1, 5), at(2, 5)), "another entry of that index: asking for what follows it goes round for ever");
        assert!(!parts_before(at(2, 5), at(2, 5)), "the base itself");
        assert!(!parts_before(at(3, 6), at(2, 5)), "beyond");
    }
}
