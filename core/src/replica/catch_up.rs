//! Snapshots: lent by whoever has the rows, taken in by a learner or a new primary. The taker collects aside and swaps once (R1); it
//! never holds less than what it once acknowledged.
//!
//! ```text
//!   taker: ask -> stage piece by piece -> Reset in the log, durable -> swap the stage in -> new view
//!   lender: open -> read piece by piece -> closed when idle
//! ```

use super::{Replica, Role, StorePurpose, durability::After, view::View, view_limits};
use crate::{
    id::{Epoch, LogIndex, Position, ReplicaId, SnapshotId, StageId},
    message::{ReadRefusal, ReplicaBody},
    planted::Bug,
    storage::{LostReason, SnapshotChunk, SnapshotCursor, StoreAnswer, StoreCommand},
    time::Instant,
};

/// A snapshot on its way in.
#[derive(Clone, Debug)]
pub(super) struct Intake {
    source: ReplicaId,
    /// The epoch in which it was begun: it ends with it.
    epoch: Epoch,
    stage: StageId,
    /// The lender's snapshot and its position, once it answered.
    snapshot: Option<(SnapshotId, Position)>,
    /// Where the piece begins that is wanted now.
    cursor: Option<SnapshotCursor>,
    /// A piece is with the row store: what follows it.
    staging: Option<Option<SnapshotCursor>>,
    resend_at: Instant,
}

impl Intake {
    pub(super) const fn epoch(&self) -> Epoch {
        self.epoch
    }
}

/// A staged snapshot that takes the place of the view.
#[derive(Clone, Debug)]
pub(super) struct Swap {
    stage: StageId,
    position: Position,
    /// The store was asked; `None` until the `Reset` record is durable.
    ask_at: Option<Instant>,
    /// The store works on it.
    asked: bool,
}

/// How often in a row the store may fail to read a piece of a snapshot before it is given up. A guess: some resends.
const LENDING_FAILURES_MAX: u32 = 8;

/// A snapshot lent to another replica.
#[derive(Clone, Debug)]
pub(super) struct Lending {
    snapshot: SnapshotId,
    /// Where it stands, once open.
    position: Option<Position>,
    /// The store works for it.
    busy: bool,
    /// The piece that is being read.
    cursor: Option<SnapshotCursor>,
    /// How often in a row the store could not read a piece.
    failed_count: u32,
    close_at: Instant,
}

impl Lending {
    /// The position of the snapshot, if it is open.
    pub(super) const fn position(&self) -> Option<Position> {
        self.position
    }
}

impl Replica {
    // ---- taking in ----------------------------------------------------------------------------------------------------------

    pub(super) fn on_need_snapshot(&mut self, now: Instant, from: ReplicaId, epoch: Epoch, base: Position) {
        if !self.follow(now, from, epoch) {
            return;
        }
        let planted = self.context.planted.has(Bug::SnapshotInTwoPersists);
        if self.log.last().index >= base.index && self.holds(base) && !planted {
            // It has come that far meanwhile, durably or soon: the log is enough.
            let matched = base.index.max(self.log.base().index);
            self.verified = self.verified.max(matched);
            self.once_durable(now, After::Acknowledge { to: from, epoch, matched });
            return;
        }
        self.take_in(now, from);
    }

    /// Begins to fetch a snapshot, unless one is already on its way.
    pub(super) fn take_in(&mut self, now: Instant, source: ReplicaId) {
        if self.swap.is_some() || self.intake.as_ref().is_some_and(|intake| intake.source == source) {
            return;
        }
        let stage = StageId(self.mint());
        self.fetch_begins_snapshot();
        self.intake = Some(Intake { source, epoch: self.promised, stage, snapshot: None, cursor: None, staging: None, resend_at: now });
        if self.context.planted.has(Bug::SnapshotInTwoPersists) {
            // Planted: the old log goes first, the snapshot follows in a later persist.
            self.truncate(self.commit);
            self.verified = self.verified.min(self.commit);
        }
        self.ask_piece(now);
    }

    fn ask_piece(&mut self, now: Instant) {
        let resend_after = self.context.settings.resend_after;
        let Some(intake) = &mut self.intake else { return };
        if intake.staging.is_some() {
            return;
        }
        intake.resend_at = now + resend_after;
        let (to, snapshot, cursor) = (intake.source, intake.snapshot.map(|(snapshot, _)| snapshot), intake.cursor.clone());
        self.send(to, ReplicaBody::FetchSnapshot { snapshot, cursor });
    }

    pub(super) fn on_snapshot_part(
        &mut self,
        now: Instant,
        from: ReplicaId,
        snapshot: SnapshotId,
        position: Position,
        cursor: Option<SnapshotCursor>,
        chunk: Box<SnapshotChunk>,
    ) {
        let Some(intake) = &mut self.intake else { return };
        // Pieces of two sources or two snapshots are never mixed (R13).
        let fits = intake.source == from
            && intake.staging.is_none()
            && intake.cursor == cursor
            && intake.snapshot.is_none_or(|known| known == (snapshot, position));
        if !fits {
            return;
        }
        intake.snapshot = Some((snapshot, position));
        let next = chunk.next.clone();
        let (stage, last) = (intake.stage, next.is_none());
        intake.staging = Some(next);
        self.fetch_has_piece(now, false);
        self.store(StorePurpose::Stage(stage), StoreCommand::Stage { stage, position, chunk, last });
    }

    pub(super) fn on_staged(&mut self, now: Instant, stage: StageId, answer: &StoreAnswer) {
        let resend_after = self.context.settings.resend_after;
        let Some(intake) = self.intake.as_mut().filter(|intake| intake.stage == stage) else { return };
        let Some(next) = intake.staging.take() else { return };
        if *answer == StoreAnswer::Unavailable {
            // Nothing was changed: the piece is asked for again later.
            intake.resend_at = now + resend_after;
            return;
        }
        if next.is_some() {
            intake.cursor = next;
            self.fetch_has_piece(now, true);
            self.ask_piece(now);
            return;
        }
        let Some(intake) = self.intake.take() else { return };
        let Some((_, position)) = intake.snapshot else { return };
        if let Role::Fetching(_) = self.role {
            self.snapshot_for_fetch(now, stage, position);
        } else {
            self.take_over(now, intake.source, stage, position);
        }
    }

    /// A follower has a snapshot staged whole.
    fn take_over(&mut self, now: Instant, source: ReplicaId, stage: StageId, position: Position) {
        // R1: a log that has that entry keeps what follows it. The stage is dropped when another is begun.
        if !self.holds(position) {
            self.reset_to(now, stage, position);
        }
        // Committed entries are in every later primary's log (R2).
        self.verified = self.verified.max(position.index);
        let epoch = self.promised;
        if self.leader == Some(source) {
            self.once_durable(now, After::Acknowledge { to: source, epoch, matched: position.index });
        }
    }

    pub(super) fn on_fetch_refused(&mut self, now: Instant, from: ReplicaId, epoch: Epoch) {
        if epoch != self.promised {
            return;
        }
        if let Some(intake) = self.intake.as_ref().filter(|intake| intake.source == from) {
            // The lender closed it, or restarted: from the start, into a new stage.
            if intake.snapshot.is_some() && intake.staging.is_none() {
                self.intake = None;
                self.take_in(now, from);
            }
            return;
        }
        let of_fetch = matches!(&self.role, Role::Fetching(fetch) if fetch.is_from(from));
        if of_fetch {
            self.fail_fetch();
        }
    }

    pub(super) fn tick_intake(&mut self, now: Instant) {
        if self.intake.as_ref().is_some_and(|intake| intake.staging.is_none() && now >= intake.resend_at) {
            self.ask_piece(now);
        }
        if let Some(swap) = &self.swap
            && !swap.asked
            && swap.ask_at.is_some_and(|ask_at| now >= ask_at)
        {
            self.ask_swap();
        }
    }

    pub(super) fn intake_deadline(&self) -> Option<Instant> {
        let intake = self.intake.as_ref().filter(|intake| intake.staging.is_none()).map(|intake| intake.resend_at);
        let swap = self.swap.as_ref().filter(|swap| !swap.asked).and_then(|swap| swap.ask_at);
        intake.into_iter().chain(swap).min()
    }

    // ---- the swap -----------------------------------------------------------------------------------------------------------

    /// The log was reset in this step; once that is durable, the stage becomes the view.
    pub(super) fn begin_swap(&mut self, now: Instant, stage: StageId, position: Position) {
        // Reads of the old rows have nothing to wait for any more, and the old view gets no answers.
        self.refuse_all_reads(ReadRefusal::Behind);
        self.end_pins(ReadRefusal::Behind);
        self.generation += 1;
        self.swap = Some(Swap { stage, position, ask_at: None, asked: false });
        for lent in std::mem::take(&mut self.lendings).into_values() {
            self.store(StorePurpose::Close, StoreCommand::CloseSnapshot(lent.snapshot));
        }
        self.once_durable(now, After::Swap);
    }

    pub(super) fn on_reset_durable(&mut self, now: Instant) {
        if let Some(swap) = &mut self.swap {
            swap.ask_at = Some(now);
            self.ask_swap();
        }
    }

    fn ask_swap(&mut self) {
        if let Some(swap) = &mut self.swap {
            swap.asked = true;
            let (stage, position) = (swap.stage, swap.position);
            self.store(StorePurpose::Swap(stage), StoreCommand::SwapStage { stage, position });
        }
    }

    pub(super) fn on_swapped(&mut self, now: Instant, stage: StageId, answer: StoreAnswer) {
        let retry_at = now + self.context.settings.resend_after;
        let Some(swap) = self.swap.as_mut().filter(|swap| swap.stage == stage) else { return };
        match answer {
            StoreAnswer::Swapped(state) if state.applied == swap.position => {
                self.swap = None;
                self.view = View::new(*state, view_limits(&self.context), self.context.planted);
                if self.commit > self.view.applied().index && self.context.planted.has(Bug::LosesItselfAfterSwap) {
                    self.lose(LostReason::RowsBehind);
                }
            }
            StoreAnswer::Unavailable => {
                swap.asked = false;
                swap.ask_at = Some(retry_at);
            }
            // The rows are not those that the log was reset for.
            StoreAnswer::Swapped(_)
            | StoreAnswer::Done
            | StoreAnswer::Flushed { .. }
            | StoreAnswer::Rows(_)
            | StoreAnswer::SnapshotOpened { .. }
            | StoreAnswer::Chunk(_)
            | StoreAnswer::Lost(_) => self.lose(LostReason::RowsDamaged),
        }
    }

    // ---- lending ------------------------------------------------------------------------------------------------------------

    pub(super) fn on_fetch_snapshot(
        &mut self,
        now: Instant,
        from: ReplicaId,
        epoch: Epoch,
        snapshot: Option<SnapshotId>,
        cursor: Option<SnapshotCursor>,
    ) {
        if epoch < self.promised {
            self.send(from, ReplicaBody::Refused);
            return;
        }
        if self.swap.is_some() {
            return; // Its rows are on their way in themselves: the question comes again.
        }
        let close_at = now + self.context.settings.snapshot_idle_max;
        let base = self.log.base();
        let Some(lent) = self.lendings.get_mut(&from) else {
            if snapshot.is_some() {
                self.send_as(from, epoch, ReplicaBody::FetchRefused);
            } else {
                self.lend(from, close_at);
            }
            return;
        };
        if lent.busy {
            return; // The piece on its way answers this too.
        }
        let stale = lent.position.is_some_and(|position| position.index < base.index);
        match snapshot {
            Some(wanted) if wanted != lent.snapshot => self.send_as(from, epoch, ReplicaBody::FetchRefused),
            // Asked for anew, and the log no longer follows the one that is open.
            None if stale => {
                let old = lent.snapshot;
                self.lendings.remove(&from);
                self.store(StorePurpose::Close, StoreCommand::CloseSnapshot(old));
                self.lend(from, close_at);
            }
            Some(_) | None => {
                lent.close_at = close_at;
                lent.busy = true;
                lent.cursor.clone_from(&cursor);
                let snapshot = lent.snapshot;
                self.read_piece(from, snapshot, cursor);
            }
        }
    }

    fn lend(&mut self, to: ReplicaId, close_at: Instant) {
        if self.lendings.len() >= self.context.settings.snapshots_max {
            return; // Asked again later.
        }
        let snapshot = SnapshotId(self.mint());
        self.lendings.insert(to, Lending { snapshot, position: None, busy: true, cursor: None, failed_count: 0, close_at });
        self.store(StorePurpose::Open(to), StoreCommand::OpenSnapshot(snapshot));
    }

    fn read_piece(&mut self, to: ReplicaId, snapshot: SnapshotId, cursor: Option<SnapshotCursor>) {
        let bytes_max = self.context.settings.chunk_bytes;
        self.store(StorePurpose::Chunk(to), StoreCommand::ReadSnapshot { snapshot, cursor, bytes_max });
    }

    pub(super) fn on_snapshot_opened(&mut self, asker: ReplicaId, answer: &StoreAnswer) {
        let Some(lent) = self.lendings.get_mut(&asker) else { return };
        if let StoreAnswer::SnapshotOpened { position } = answer {
            lent.position = Some(*position);
            let snapshot = lent.snapshot;
            self.read_piece(asker, snapshot, None);
        } else {
            self.lendings.remove(&asker);
        }
    }

    pub(super) fn on_chunk(&mut self, asker: ReplicaId, answer: StoreAnswer) {
        let drop_sessions = self.context.planted.has(Bug::SnapshotWithoutSessions);
        let Some(lent) = self.lendings.get_mut(&asker) else { return };
        lent.busy = false;
        let (StoreAnswer::Chunk(mut chunk), Some(position)) = (answer, lent.position) else {
            lent.failed_count += 1;
            let snapshot = lent.snapshot;
            if lent.failed_count >= LENDING_FAILURES_MAX {
                // It may have gone with the connection that held it. Who asks for it again is refused, and begins anew.
                self.lendings.remove(&asker);
                self.store(StorePurpose::Close, StoreCommand::CloseSnapshot(snapshot));
            }
            return;
        };
        lent.failed_count = 0;
        if drop_sessions {
            chunk.sessions.clear();
        }
        let (snapshot, cursor) = (lent.snapshot, lent.cursor.clone());
        self.send(asker, ReplicaBody::SnapshotPart { snapshot, position, cursor, chunk });
    }

    /// The taker is past the snapshot: it needs it no more.
    pub(super) fn end_lending(&mut self, to: ReplicaId, matched: LogIndex) {
        let over = |lent: &Lending| !lent.busy && lent.position.is_some_and(|position| position.index <= matched);
        if self.lendings.get(&to).is_some_and(over)
            && let Some(lent) = self.lendings.remove(&to)
        {
            self.store(StorePurpose::Close, StoreCommand::CloseSnapshot(lent.snapshot));
        }
    }

    pub(super) fn tick_lendings(&mut self, now: Instant) {
        let idle: Vec<_> = self.lendings.iter().filter(|(_, lent)| !lent.busy && now >= lent.close_at).map(|(asker, _)| *asker).collect();
        for asker in idle {
            if let Some(lent) = self.lendings.remove(&asker) {
                self.store(StorePurpose::Close, StoreCommand::CloseSnapshot(lent.snapshot));
            }
        }
    }

    pub(super) fn lendings_deadline(&self) -> Option<Instant> {
        self.lendings.values().filter(|lent| !lent.busy).map(|lent| lent.close_at).min()
    }
}
