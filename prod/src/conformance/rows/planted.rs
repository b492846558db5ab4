//! Row stores with one bug each. The suite must find every one: a suite that passes everything shows nothing.

use super::{
    tests::{InMemory, RedbInMemory},
    *,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// None: the wrapper itself is no reason to fail.
    Nothing,
    /// The applied position is not recorded.
    ForgetsApplied,
    /// A batch that was applied before is applied again.
    AppliesTwice,
    /// A batch is written in two transactions.
    TearsBatches,
    /// A batch is acknowledged before it is written.
    AcknowledgesEarly,
    /// The last row of a snapshot is left out when it is read.
    LosesLastRowOut,
    /// The last row of a snapshot is left out when it is staged.
    LosesLastRowIn,
    /// A snapshot shows what came after it was opened.
    SnapshotMoves,
    /// Rows that are read of a snapshot are those of now.
    PinnedMoves,
    /// A stage counts as whole from its first piece on.
    SwapsHalf,
    /// Every opening is the owner.
    IgnoresOwnership,
    /// A page that a bound ended says that there is no more.
    ForgetsMore,
    /// The greatest key is out of every range.
    ExcludesLastKey,
    /// Keys that differ in case are one.
    IgnoresCase,
    /// A damaged row is passed over.
    HidesDamage,
    /// A replica that is not there is opened as an empty one.
    OpensMissingAsEmpty,
    /// A view that went back is written on.
    TrustsCopies,
    /// A replica that was destroyed comes back when the store is opened again.
    ForgetsDestroy,
}

struct BrokenVenue<V> {
    venue: V,
    bug: Bug,
}

struct BrokenStore<S> {
    store: S,
    bug: Bug,
    unwritten: Option<(ReplicaId, StoreCommand)>,
}

impl<V: Venue> Venue for BrokenVenue<V> {
    type Store = BrokenStore<V::Store>;

    fn open(&mut self, identity: Identity, owner: OwnerNumber) -> Result<Self::Store, StoreError> {
        let owner = if self.bug == Bug::IgnoresOwnership { OwnerNumber(1) } else { owner };
        Ok(BrokenStore { store: self.venue.open(identity, owner)?, bug: self.bug, unwritten: None })
    }

    fn is_shared(&self) -> bool {
        self.venue.is_shared()
    }

    fn crash(&mut self, random: &mut Random) {
        self.venue.crash(random);
    }

    fn fail_after(&mut self, operation_count: u64) -> bool {
        self.venue.fail_after(operation_count)
    }

    fn set_room(&mut self, bytes: Option<u64>) -> bool {
        self.venue.set_room(bytes)
    }

    fn lose(&mut self) {
        self.venue.lose();
    }

    fn copy(&mut self, replica: ReplicaId) -> bool {
        self.venue.copy(replica)
    }

    fn go_back(&mut self, replica: ReplicaId) {
        self.venue.go_back(replica);
    }

    fn damage(&mut self, replica: ReplicaId, part: Part) -> bool {
        self.venue.damage(replica, part)
    }
}

impl<S: RecoverRows> BrokenStore<S> {
    fn write_up(&mut self) -> Result<(), StoreError> {
        if let Some((replica, command)) = self.unwritten.take() {
            self.store.execute(replica, command)?;
        }
        Ok(())
    }

    /// The command as the bug wants it.
    fn bent(&mut self, replica: ReplicaId, mut command: StoreCommand) -> Result<StoreCommand, StoreError> {
        match (&mut command, self.bug) {
            (StoreCommand::Flush(batch), Bug::AppliesTwice) => {
                let known = self.store.view(replica)?.unwrap_or_default().applied;
                if batch.applied <= known {
                    batch.applied = Position { index: known.index.next(), ..known };
                }
            }
            (StoreCommand::Flush(batch), Bug::IgnoresCase) => {
                let keys = std::mem::take(&mut batch.idempotency);
                batch.idempotency = keys.into_iter().map(|(key, state)| (key.to_lowercase().into(), state)).collect();
            }
            (StoreCommand::Flush(batch), Bug::TearsBatches) => {
                let known = self.store.view(replica)?.unwrap_or_default().applied;
                let mut first = batch.clone();
                first.applied.index.0 -= 1;
                if first.applied > known {
                    self.store.execute(replica, StoreCommand::Flush(first))?;
                }
            }
            (StoreCommand::Stage { chunk, last: true, .. }, Bug::LosesLastRowIn) => drop(chunk.rows.pop()),
            (StoreCommand::Stage { last, .. }, Bug::SwapsHalf) => *last = true,
            (StoreCommand::ReadSnapshot { snapshot, .. }, Bug::SnapshotMoves) => {
                self.store.execute(replica, StoreCommand::OpenSnapshot(*snapshot))?;
            }
            (StoreCommand::ReadPinned { snapshot: SnapshotId(1), query }, Bug::PinnedMoves) => {
                return Ok(StoreCommand::Read(query.clone()));
            }
            (StoreCommand::Destroy, Bug::ForgetsDestroy) => return Ok(StoreCommand::CloseSnapshot(SnapshotId(0))),
            _ => {}
        }
        Ok(command)
    }
}

impl<S: RecoverRows> RowStore for BrokenStore<S> {
    fn execute(&mut self, replica: ReplicaId, command: StoreCommand) -> Result<StoreAnswer, StoreError> {
        self.write_up()?;
        if let (StoreCommand::Flush(batch), Bug::AcknowledgesEarly) = (&command, self.bug)
            && self.store.view(replica)?.is_ok_and(|known| known.applied < batch.applied)
        {
            let durable = batch.applied;
            self.unwritten = Some((replica, command));
            return Ok(StoreAnswer::Flushed { durable });
        }
        let command = self.bent(replica, command)?;
        let mut answer = self.store.execute(replica, command)?;
        match (&mut answer, self.bug) {
            (StoreAnswer::Chunk(chunk), Bug::LosesLastRowOut) if chunk.next.is_none() => drop(chunk.rows.pop()),
            (StoreAnswer::Rows(page), Bug::ForgetsMore) => page.more = false,
            (StoreAnswer::Rows(page), Bug::ExcludesLastKey) => page.rows.retain(|row| row.row.key < Key(i64::MAX)),
            (StoreAnswer::Lost(LostReason::RowsBehind), Bug::TrustsCopies) => return Ok(StoreAnswer::Flushed { durable: Position::ZERO }),
            (StoreAnswer::Lost(LostReason::RowsDamaged), Bug::HidesDamage) => return Ok(StoreAnswer::Rows(Default::default())),
            _ => {}
        }
        Ok(answer)
    }
}

impl<S: RecoverRows> RecoverRows for BrokenStore<S> {
    fn replicas(&mut self) -> Result<Vec<ReplicaId>, StoreError> {
        self.write_up()?;
        self.store.replicas()
    }

    fn view(&mut self, replica: ReplicaId) -> Result<Result<ViewState, LostReason>, StoreError> {
        self.write_up()?;
        let mut found = self.store.view(replica)?;
        match (&mut found, self.bug) {
            (Ok(view), Bug::ForgetsApplied) => view.applied = Position::ZERO,
            (Err(LostReason::RowsMissing), Bug::OpensMissingAsEmpty) => return Ok(Ok(ViewState::default())),
            _ => {}
        }
        Ok(found)
    }

    fn complete_reset(&mut self, replica: ReplicaId, stage: StageId, base: Position) -> Result<Result<(), LostReason>, StoreError> {
        self.write_up()?;
        self.store.complete_reset(replica, stage, base)
    }
}

#[test]
fn every_planted_bug_of_a_row_store_is_found() {
    let memory = |bug| check(|| BrokenVenue { venue: InMemory::default(), bug });
    let redb = |bug| check(|| BrokenVenue { venue: RedbInMemory::default(), bug });
    assert_eq!(memory(Bug::Nothing), Ok(()));
    for (bug, found) in [
        (Bug::ForgetsApplied, memory(Bug::ForgetsApplied)),
        (Bug::AppliesTwice, memory(Bug::AppliesTwice)),
        (Bug::AcknowledgesEarly, memory(Bug::AcknowledgesEarly)),
        (Bug::LosesLastRowOut, memory(Bug::LosesLastRowOut)),
        (Bug::LosesLastRowIn, memory(Bug::LosesLastRowIn)),
        (Bug::SnapshotMoves, memory(Bug::SnapshotMoves)),
        (Bug::PinnedMoves, memory(Bug::PinnedMoves)),
        (Bug::SwapsHalf, memory(Bug::SwapsHalf)),
        (Bug::IgnoresOwnership, memory(Bug::IgnoresOwnership)),
        (Bug::ForgetsMore, memory(Bug::ForgetsMore)),
        (Bug::ExcludesLastKey, memory(Bug::ExcludesLastKey)),
        (Bug::IgnoresCase, memory(Bug::IgnoresCase)),
        (Bug::OpensMissingAsEmpty, memory(Bug::OpensMissingAsEmpty)),
        (Bug::TrustsCopies, memory(Bug::TrustsCopies)),
        (Bug::ForgetsDestroy, memory(Bug::ForgetsDestroy)),
        (Bug::HidesDamage, redb(Bug::HidesDamage)),
        (Bug::TearsBatches, redb(Bug::TearsBatches)),
    ] {
        assert!(found.is_err(), "{bug:?} was not found");
    }
}

/// The random work alone, without the scripted claims that name a bug: what it is for is the rest.
#[test]
fn random_work_finds_bugs_by_itself() {
    for bug in [Bug::AppliesTwice, Bug::AcknowledgesEarly, Bug::TearsBatches, Bug::LosesLastRowOut, Bug::LosesLastRowIn, Bug::ForgetsMore] {
        let found = (0..20).any(|seed| random_work(&mut BrokenVenue { venue: RedbInMemory::default(), bug }, seed, 120).is_err());
        assert!(found, "{bug:?} was not found");
    }
}
