//! One replica of a shard (DESIGN 4): its log, its promise, its part in an epoch, its reads. Decides nothing about which replicas
//! there are; that is for the register, through balancers.
//!
//! A replica is a value inside the server machine. Its handlers change it and note effects; [`Replica::finish`] ends each step.
//!
//! ```text
//!             Install (once per epoch, R13)        log whole          barrier on max(w, n-w+1)        Activate
//!   Backup ------------------------------> Fetching --------> Installing -------------------> Installed ------> Active
//!     ^                                       |                   |                              |                |
//!     +---------------------------------------+-------------------+------------------------------+----------------+
//!        any higher epoch heard (R5): lame in the old one for ever. A restart ends in Backup, lame in all it had promised.
//!
//!   any state -- a log or a store that is missing or damaged --> Lost: serves nothing, promises nothing, never comes back
//! ```
//!
//! Numbered invariants that this module asserts: I2 (log matching: a committed entry is never truncated or contradicted), the order of
//! the [`Watermarks`], promises that only grow, and that nobody leads an epoch that it may not lead.

mod session;
pub mod view;

mod catch_up;
mod durability;
mod pins;
mod read_round;
mod reconfigure;
mod replication;
mod serving;

#[cfg(test)]
pub(crate) mod tests;

use crate::{
    config::Configuration,
    effect::Note,
    id::{Epoch, Incarnation, LogIndex, NodeId, OwnerNumber, ReplicaId, ShardId, SnapshotId, StageId},
    log::Log,
    message::{LeadStage, ReplicaBody, ReplicaMessage, ReplicaStatus, ToBalancer},
    planted::{Bug, Planted},
    server::ServerSettings,
    storage::{LogBatch, LogRecord, LostReason, RecoveredReplica, StoreAnswer, StoreCommand, ViewState},
    time::Instant,
    watermark::Watermarks,
};
use catch_up::{Intake, Lending, Swap};
use durability::After;
use pins::Pins;
use read_round::{Asking, ReadTable};
use reconfigure::Fetch;
use replication::Lead;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};
use view::{View, ViewLimits};

/// What a replica wants done; the server machine puts tokens and addresses to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ReplicaEffect {
    /// A message to another replica.
    Send(ReplicaMessage),
    /// An answer to whoever asked.
    Tell {
        /// A balancer, another server, or the own server's HTTP.
        to: NodeId,
        /// The answer.
        message: ToBalancer,
    },
    /// Work for the row store.
    Store {
        /// What the answer is for.
        purpose: StorePurpose,
        /// The work.
        command: StoreCommand,
    },
    /// For people.
    Note(Note),
}

/// What an answer of the row store is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum StorePurpose {
    /// The view's own request. A view that was swapped out gets no answers.
    View {
        /// Which view.
        generation: u64,
        /// Its request.
        request: u64,
    },
    /// A piece was staged.
    Stage(StageId),
    /// The stage became the view.
    Swap(StageId),
    /// A snapshot was opened for that replica.
    Open(ReplicaId),
    /// A piece was read for that replica.
    Chunk(ReplicaId),
    /// A snapshot was opened for a read of several pages.
    OpenPin(SnapshotId),
    /// A page of such a read.
    Pinned(SnapshotId),
    /// A snapshot was closed.
    Close,
}

/// What the replica does in its epoch.
#[derive(Clone, Debug)]
enum Role {
    /// It follows whoever leads, or nobody.
    Backup,
    /// It is to lead and fetches the log of the source.
    Fetching(Box<Fetch>),
    /// It leads.
    Leading(Box<Lead>),
}

/// How many of the last entries the deep check looks at.
const DEEP_ENTRIES: usize = 16;

/// What a replica is told of its surroundings.
#[derive(Clone, Debug)]
pub(crate) struct ReplicaContext {
    /// Limits and times.
    pub(crate) settings: Arc<ServerSettings>,
    /// The owner number of the store: makes the ids of stages unique over restarts.
    pub(crate) owner: OwnerNumber,
    /// The mark of the server's life: makes ids unique over restarts (R22).
    pub(crate) incarnation: Incarnation,
    /// For the simulator.
    pub(crate) planted: Planted,
}

/// One replica.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    id: ReplicaId,
    shard: ShardId,
    context: ReplicaContext,
    lost: Option<LostReason>,

    log: Log,
    /// The highest epoch promised; its record may still be on its way to the disk.
    promised: Epoch,
    /// The number of the batch that the promise is in.
    promise_batch: u64,
    /// The highest epoch heard of, promised or not (R5). Never below `promised`.
    heard: Epoch,
    /// It leads no epoch up to this one: restarted in it or stepped down from it (R15).
    lame_through: Epoch,
    /// The last epoch it began as primary (R13).
    begun: Epoch,
    /// Who sent appends in `promised`.
    leader: Option<ReplicaId>,
    role: Role,
    /// The end of what appends of `promised` showed to agree with its primary's log (R2).
    verified: LogIndex,
    commit: LogIndex,
    /// The last commit index handed to the log as a hint.
    commit_hint: LogIndex,

    view: View,
    generation: u64,
    swap: Option<Swap>,
    intake: Option<Intake>,
    lendings: BTreeMap<ReplicaId, Lending>,
    /// How many stages and snapshots were named in this life.
    minted_count: u64,

    reads: ReadTable,
    pins: Pins,
    asking: Asking,

    /// Records of this step.
    batch: LogBatch,
    /// The number of the last batch handed out; the next has the next.
    issued: u64,
    /// The number of the last batch that is durable.
    persisted: u64,
    /// Batches under way and the end of the log that each brings.
    writes: VecDeque<(u64, LogIndex)>,
    /// The end of what is durable of the log in memory.
    durable: LogIndex,
    after: VecDeque<(u64, After)>,
    /// The acknowledgement to send at the end of the step: only the last one matters.
    acknowledgement: Option<(ReplicaId, Epoch, LogIndex)>,

    out: Vec<ReplicaEffect>,
    deadline: Option<Instant>,
    /// The promise at the end of the last step, to see that it only grows.
    promised_before: Epoch,
}

impl Replica {
    /// A new, empty replica.
    #[must_use]
    pub(crate) fn create(id: ReplicaId, shard: ShardId, context: ReplicaContext) -> Self {
        Self::with(id, shard, context, Log::default(), ViewState::default())
    }

    /// A replica that is known to be lost: it only says so.
    #[must_use]
    pub(crate) fn lost(id: ReplicaId, shard: ShardId, context: ReplicaContext, reason: LostReason) -> Self {
        let mut replica = Self::create(id, shard, context);
        replica.lose(reason);
        replica
    }

    /// A replica as found when its server was opened. It replays up to the stored commit index and no further (R2), and is lame in
    /// every epoch that it had promised (DESIGN 4: it may have sent entries that its log did not keep).
    #[must_use]
    pub(crate) fn recover(id: ReplicaId, context: ReplicaContext, recovered: RecoveredReplica) -> Self {
        let RecoveredReplica { shard, promised, commit, base, entries, view } = recovered;
        let state = match view {
            Ok(state) => state,
            Err(reason) => return Self::lost(id, shard, context, reason),
        };
        let Some(log) = Log::new(base, entries) else {
            return Self::lost(id, shard, context, LostReason::LogDamaged);
        };
        let applied = state.applied.index;
        if applied < base.index {
            return Self::lost(id, shard, context, LostReason::RowsBehind);
        }
        // R8: rows never run ahead of the own durable log. If they do, the log has lost what it held.
        if log.position(applied).is_none_or(|position| position != state.applied) {
            return Self::lost(id, shard, context, LostReason::LogDamaged);
        }
        let mut replica = Self::with(id, shard, context, log, state);
        let last = replica.log.last().index;
        replica.promised = promised;
        replica.heard = promised;
        replica.promised_before = promised;
        replica.lame_through = promised;
        replica.durable = last;
        // What was flushed was committed, with or without a stored hint.
        replica.commit = commit.max(applied).min(last);
        replica.commit_hint = replica.commit;
        if replica.context.planted.has(Bug::RestartedPrimaryGoesOn) {
            replica.go_on_after_restart();
        }
        replica
    }

    fn with(id: ReplicaId, shard: ShardId, context: ReplicaContext, log: Log, state: ViewState) -> Self {
        let limits = view_limits(&context);
        let base = log.base();
        let planted = context.planted;
        Self {
            id,
            shard,
            context,
            lost: None,
            log,
            promised: Epoch(0),
            promise_batch: 0,
            heard: Epoch(0),
            lame_through: Epoch(0),
            begun: Epoch(0),
            leader: None,
            role: Role::Backup,
            verified: LogIndex(0),
            commit: base.index,
            commit_hint: base.index,
            view: View::new(state, limits, planted),
            generation: 0,
            swap: None,
            intake: None,
            lendings: BTreeMap::new(),
            minted_count: 0,
            reads: ReadTable::default(),
            pins: Pins::default(),
            asking: Asking::default(),
            batch: Vec::new(),
            issued: 0,
            persisted: 0,
            writes: VecDeque::new(),
            durable: base.index,
            after: VecDeque::new(),
            acknowledgement: None,
            out: Vec::new(),
            deadline: None,
            promised_before: Epoch(0),
        }
    }

    /// Which shard it is of.
    pub(crate) const fn shard(&self) -> ShardId {
        self.shard
    }

    /// Why it is lost, if it is.
    pub(crate) const fn lost_reason(&self) -> Option<LostReason> {
        self.lost
    }

    /// Its log.
    pub(crate) const fn log(&self) -> &Log {
        &self.log
    }

    /// Which replica it is.
    pub(crate) const fn id(&self) -> ReplicaId {
        self.id
    }

    /// The highest epoch it has promised, durable or on its way.
    pub(crate) const fn promised(&self) -> Epoch {
        self.promised
    }

    /// The index up to which the log is known to agree with the primary's (R2).
    pub(crate) const fn verified(&self) -> LogIndex {
        self.verified
    }

    /// The configuration it leads, if it does.
    pub(crate) fn configuration(&self) -> Option<&Configuration> {
        self.lead().map(|lead| &lead.config)
    }

    /// When it wants a tick.
    pub(crate) const fn next_deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// How far it has come.
    pub(crate) fn watermarks(&self) -> Watermarks {
        Watermarks {
            base: self.log.base().index,
            flushed: self.view.flushed().index,
            applied: self.view.applied().index,
            commit: self.commit,
            durable: self.durable,
            last: self.log.last().index,
        }
    }

    /// What it says of itself in a beat.
    pub(crate) fn status(&self, now: Instant) -> ReplicaStatus {
        let marks = self.watermarks();
        ReplicaStatus {
            replica: self.id,
            shard: self.shard,
            lost: self.lost,
            promised: self.promised,
            lead: self.lead_stage(self.promised),
            lead_progress: self.lead_progress(),
            last: self.log.last(),
            commit: marks.commit,
            applied: marks.applied,
            flushed: marks.flushed,
            store_away: self.view.is_store_away(now),
            learners: self.learners(),
            unreached: self.unreached(now),
        }
    }

    /// The highest epoch it knows of.
    pub(crate) const fn heard(&self) -> Epoch {
        self.heard
    }

    /// How far it leads the epoch; `None` if it has nothing to do with leading it.
    pub(crate) fn lead_stage(&self, epoch: Epoch) -> Option<LeadStage> {
        if epoch == Epoch(0) {
            return None;
        }
        match &self.role {
            Role::Fetching(fetch) if fetch.epoch() == epoch => Some(fetch.stage()),
            Role::Leading(lead) if lead.epoch() == epoch => Some(lead.stage()),
            // R15: who may not lead says so.
            Role::Backup | Role::Fetching(_) | Role::Leading(_) => {
                (epoch <= self.lame_through || epoch < self.heard).then_some(LeadStage::Lame)
            }
        }
    }

    /// How much of the installing is done: of the log that is fetched, or of what the members are brought. Bounded, since neither grows.
    fn lead_progress(&self) -> u64 {
        match &self.role {
            Role::Fetching(fetch) => fetch.progress(),
            Role::Leading(lead) if lead.stage == LeadStage::Installing => lead.matched_count(),
            Role::Leading(_) | Role::Backup => 0,
        }
    }

    /// Takes a message of another replica.
    pub(crate) fn message(&mut self, now: Instant, message: ReplicaMessage) {
        let ReplicaMessage { from, to: _, epoch, body } = message;
        if self.lost.is_some() || from == self.id {
            return;
        }
        if let ReplicaBody::Appended { .. } | ReplicaBody::Mismatch { .. } | ReplicaBody::RoundConfirmed { .. } = &body {
            self.reached(now, from, epoch);
        }
        match body {
            ReplicaBody::Append { previous, entries, commit } => self.on_append(now, from, epoch, previous, entries, commit),
            ReplicaBody::NeedSnapshot { base } => self.on_need_snapshot(now, from, epoch, base),
            ReplicaBody::Round { round } => self.on_round(now, from, epoch, round),
            ReplicaBody::Appended { matched } => {
                self.hear(now, epoch);
                self.on_appended(now, from, epoch, matched);
            }
            ReplicaBody::Mismatch { hint } => {
                self.hear(now, epoch);
                self.on_mismatch(now, from, epoch, hint);
            }
            ReplicaBody::Refused => self.hear(now, epoch),
            ReplicaBody::RoundConfirmed { round } => {
                self.hear(now, epoch);
                self.on_round_confirmed(from, epoch, round);
            }
            ReplicaBody::ReadIndex { tag } => {
                self.hear(now, epoch);
                self.on_read_index(from, epoch, tag);
            }
            ReplicaBody::ReadIndexIs { tag, index } => {
                self.hear(now, epoch);
                self.on_read_index_is(now, from, epoch, tag, index);
            }
            ReplicaBody::FetchLog { after, last } => {
                self.hear(now, epoch);
                self.on_fetch_log(from, epoch, after, last);
            }
            ReplicaBody::LogPart { previous, entries, commit: _ } => {
                self.hear(now, epoch);
                self.on_log_part(now, from, epoch, previous, entries);
            }
            ReplicaBody::LogGap { hint, base } => {
                self.hear(now, epoch);
                self.on_log_gap(now, from, epoch, hint, base);
            }
            ReplicaBody::FetchRefused => {
                self.hear(now, epoch);
                self.on_fetch_refused(now, from, epoch);
            }
            ReplicaBody::FetchSnapshot { snapshot, cursor } => {
                self.hear(now, epoch);
                self.on_fetch_snapshot(now, from, epoch, snapshot, cursor);
            }
            ReplicaBody::SnapshotPart { snapshot, position, cursor, chunk } => {
                self.hear(now, epoch);
                self.on_snapshot_part(now, from, snapshot, position, cursor, chunk);
            }
        }
    }

    /// Takes an answer of the row store.
    pub(crate) fn stored(&mut self, now: Instant, purpose: StorePurpose, answer: StoreAnswer) {
        if self.lost.is_some() {
            return;
        }
        if let StoreAnswer::Lost(reason) = answer {
            self.lose(reason);
            return;
        }
        match purpose {
            StorePurpose::View { generation, request } => {
                if generation == self.generation {
                    let mut out = Vec::new();
                    self.view.stored(now, request, answer, &mut out);
                    self.carry_out(now, out);
                }
            }
            StorePurpose::Stage(stage) => self.on_staged(now, stage, &answer),
            StorePurpose::Swap(stage) => self.on_swapped(now, stage, answer),
            StorePurpose::Open(asker) => self.on_snapshot_opened(asker, &answer),
            StorePurpose::Chunk(asker) => self.on_chunk(asker, answer),
            StorePurpose::OpenPin(snapshot) => self.on_pin_opened(now, snapshot, &answer),
            StorePurpose::Pinned(snapshot) => self.on_pinned_rows(snapshot, answer),
            StorePurpose::Close => {}
        }
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Instant) {
        if self.lost.is_some() {
            return;
        }
        self.tick_followers(now);
        self.tick_rounds(now);
        self.tick_reads(now);
        self.tick_fetch(now);
        self.tick_intake(now);
        self.tick_lendings(now);
        self.tick_pins(now);
    }

    /// Ends a step: moves what can move, closes the batch of records, checks the invariants.
    pub(crate) fn finish(&mut self, now: Instant) {
        if self.lost.is_none() {
            self.advance_install();
            self.advance_commit();
            self.start_round(now);
            self.ask_index(now);
            self.advance_view(now);
            self.pump(now);
            self.acknowledge();
        }
        self.close_batch();
        self.deadline = self.earliest_deadline(now);
        self.check_invariants();
    }

    /// Takes what the step wants done, and the number and records of its batch, if it has one.
    pub(crate) fn drain(&mut self) -> (Vec<ReplicaEffect>, Option<(u64, LogBatch)>) {
        let batch = (!self.batch.is_empty()).then(|| (self.issued, std::mem::take(&mut self.batch)));
        (std::mem::take(&mut self.out), batch)
    }

    /// Becomes lost, for ever under this id (DESIGN 3).
    pub(crate) fn lose(&mut self, reason: LostReason) {
        if self.lost.is_some() {
            return;
        }
        self.step_down();
        self.refuse_all_reads(crate::message::ReadRefusal::Lost);
        self.end_pins(crate::message::ReadRefusal::Lost);
        self.lost = Some(reason);
        self.after.clear();
        self.acknowledgement = None;
        self.intake = None;
        self.lendings.clear();
        self.batch.clear();
        self.out.push(ReplicaEffect::Note(Note::Lost { replica: self.id, reason }));
    }

    /// R5: of a higher epoch, before anything of it is durable, a primary stops everything it does as one.
    fn hear(&mut self, now: Instant, epoch: Epoch) {
        if epoch <= self.heard {
            return;
        }
        self.heard = epoch;
        if self.swap.is_some() && self.context.planted.has(Bug::LosesItselfAtHigherEpoch) {
            self.lose(LostReason::RowsDamaged);
        }
        if self.leads_below(epoch) {
            self.step_down();
        }
        self.on_epoch_change(now);
    }

    /// Raises the promise: nothing of a lower epoch is accepted from here on. The record goes into the step's batch, before whatever
    /// entries of that epoch the step adds (R4).
    fn promise(&mut self, now: Instant, epoch: Epoch) {
        assert!(epoch > self.promised, "{}: a promise of {epoch} after {}", self.id, self.promised);
        self.hear(now, epoch);
        self.promised = epoch;
        // R2: nothing is verified in the new epoch yet.
        self.verified = LogIndex(0);
        self.leader = None;
        self.batch.push(LogRecord::Promise { replica: self.id, epoch });
        self.promise_batch = self.write_order();
        self.on_epoch_change(now);
    }

    /// What was begun for an older epoch ends.
    fn on_epoch_change(&mut self, now: Instant) {
        if self.intake.as_ref().is_some_and(|intake| intake.epoch() < self.heard) {
            self.intake = None;
        }
        self.stop_asking(now);
    }

    fn leads_below(&self, epoch: Epoch) -> bool {
        match &self.role {
            Role::Backup => false,
            Role::Fetching(fetch) => fetch.epoch() < epoch,
            Role::Leading(lead) => lead.epoch() < epoch,
        }
    }

    /// Ends leading or the attempt at it; lame in that epoch from here on (R15). Whoever waits for a command is not answered: the command
    /// stands in the log and its outcome is not known here.
    fn step_down(&mut self) {
        let epoch = match std::mem::replace(&mut self.role, Role::Backup) {
            Role::Backup => return,
            Role::Fetching(fetch) => fetch.epoch(),
            Role::Leading(lead) => {
                let epoch = lead.epoch();
                self.fail_rounds(*lead);
                epoch
            }
        };
        self.lame_through = self.lame_through.max(epoch);
        self.intake = None;
    }

    fn send(&mut self, to: ReplicaId, body: ReplicaBody) {
        self.send_as(to, self.promised, body);
    }

    fn send_as(&mut self, to: ReplicaId, epoch: Epoch, body: ReplicaBody) {
        self.out.push(ReplicaEffect::Send(ReplicaMessage { from: self.id, to, epoch, body }));
    }

    fn tell(&mut self, to: NodeId, message: ToBalancer) {
        self.out.push(ReplicaEffect::Tell { to, message });
    }

    fn store(&mut self, purpose: StorePurpose, command: StoreCommand) {
        self.out.push(ReplicaEffect::Store { purpose, command });
    }

    fn drop_message(&mut self, reason: &str) {
        self.out.push(ReplicaEffect::Note(Note::Dropped { reason: reason.into() }));
    }

    /// A number for a stage or a snapshot, unique for this replica over restarts too.
    fn mint(&mut self) -> u64 {
        self.minted_count += 1;
        (self.context.owner.0 << 32) | self.minted_count
    }

    fn earliest_deadline(&self, now: Instant) -> Option<Instant> {
        if self.lost.is_some() {
            return None;
        }
        // The view has just done what it could: what is still due waits for the disk, and is looked at again in a moment.
        let again = now + self.context.settings.resend_after;
        let view = self.view.next_deadline().filter(|_| self.swap.is_none()).map(|due| if due <= now { again } else { due });
        [
            self.followers_deadline(),
            self.rounds_deadline(),
            self.reads_deadline(),
            self.fetch_deadline(),
            self.intake_deadline(),
            self.lendings_deadline(),
            self.pins_deadline(),
            view,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The O(1) invariants, at the end of every step.
    fn check_invariants(&mut self) {
        if self.lost.is_some() {
            return;
        }
        let marks = self.watermarks();
        // While a snapshot is swapped in, the rows are still the old ones.
        if self.swap.is_none() {
            assert!(marks.are_ordered(), "{}: {marks:?} out of order", self.id);
        }
        assert!(marks.commit <= marks.last, "{}: {marks:?} out of order", self.id);
        assert!(self.promised >= self.promised_before, "{}: the promise fell to {}", self.id, self.promised);
        assert!(self.heard >= self.promised, "{}: heard {} below promised {}", self.id, self.heard, self.promised);
        self.promised_before = self.promised;
        let leads = match &self.role {
            Role::Backup => None,
            Role::Fetching(fetch) => Some(fetch.epoch()),
            Role::Leading(lead) => Some(lead.epoch()),
        };
        if let Some(epoch) = leads {
            // I1, R5, R13, R15.
            assert!(
                epoch == self.promised && epoch == self.heard && epoch == self.begun && epoch > self.lame_through,
                "{}: leads {epoch}, promised {}, heard {}, begun {}, lame through {}",
                self.id,
                self.promised,
                self.heard,
                self.begun,
                self.lame_through
            );
        }
        // The feature is the simulators', whose release builds burn the most seeds.
        if cfg!(any(debug_assertions, feature = "planted")) {
            self.check_deeply();
        }
    }

    /// What takes longer to check: in simulation and tests only.
    fn check_deeply(&self) {
        let last = self.log.last();
        assert!(last.epoch <= self.promised, "{}: an entry of {} above the promise {}", self.id, last.epoch, self.promised);
        assert!(self.log.position(self.commit).is_some(), "{}: {} is committed and not in the log", self.id, self.commit);
        assert!(self.writes.iter().zip(self.writes.iter().skip(1)).all(|(one, next)| one.0 < next.0), "{}: writes out of order", self.id);
        let mut before = None;
        for entry in self.log.entries().rev().take(DEEP_ENTRIES) {
            if let Some(before) = before.replace(entry.position) {
                assert!(
                    entry.position.index.next() == before.index && entry.position.epoch <= before.epoch,
                    "I2: {} has {before} after {}",
                    self.id,
                    entry.position
                );
            }
        }
    }
}

fn view_limits(context: &ReplicaContext) -> ViewLimits {
    let settings = &context.settings;
    ViewLimits { sessions_max: settings.sessions_max, idempotency_max: settings.idempotency_max, flush_entries: settings.flush_entries }
}
