//! What is durable of a replica, and what waits for it: the batches of records, acknowledgements, promises. Never says anything early.

use super::Replica;
use crate::{
    id::{Epoch, LogIndex, NodeId, Position, ReplicaId},
    message::{ReplicaBody, ToBalancer},
    storage::LogRecord,
    time::Instant,
};

/// What holds back until writes are durable.
#[derive(Clone, Debug)]
pub(super) enum After {
    /// A promise (R3).
    Promised { to: NodeId, epoch: Epoch, last: Position },
    /// An acknowledgement to the primary.
    Acknowledge { to: ReplicaId, epoch: Epoch, matched: LogIndex },
    /// The swap of a staged snapshot (R1).
    Swap,
}

impl Replica {
    /// The batch of that number is durable, and so are all before it.
    pub(crate) fn persisted(&mut self, now: Instant, number: u64) {
        self.persisted = self.persisted.max(number);
        while let Some((write, end)) = self.writes.front().copied() {
            if write > self.persisted {
                break;
            }
            self.durable = self.durable.max(end);
            self.writes.pop_front();
        }
        while self.after.front().is_some_and(|(write, _)| *write <= self.persisted) {
            if let Some((_, after)) = self.after.pop_front() {
                self.carry_on(now, after);
            }
        }
    }

    /// The number of the batch after which everything written up to here is durable.
    pub(super) fn write_order(&self) -> u64 {
        self.issued + u64::from(!self.batch.is_empty())
    }

    pub(super) fn carry_on(&mut self, now: Instant, after: After) {
        match after {
            After::Promised { to, epoch, last } => {
                self.tell(to, ToBalancer::Promised { replica: self.id, epoch, last });
            }
            // An acknowledgement of an epoch left behind helps nobody any more: the promise reported what it was about.
            After::Acknowledge { to, epoch, matched } => {
                if epoch == self.promised {
                    let before = self.acknowledgement.filter(|(_, of, _)| *of == epoch).map_or(LogIndex(0), |(_, _, before)| before);
                    self.acknowledgement = Some((to, epoch, matched.max(before)));
                }
            }
            After::Swap => self.on_reset_durable(now),
        }
    }

    /// Does it now if everything written so far is durable, else once it is.
    pub(super) fn once_durable(&mut self, now: Instant, after: After) {
        let order = self.write_order();
        if order <= self.persisted {
            self.carry_on(now, after);
        } else {
            self.after.push_back((order, after));
        }
    }

    pub(super) fn acknowledge(&mut self) {
        if let Some((to, epoch, matched)) = self.acknowledgement.take()
            && epoch == self.promised
        {
            self.send(to, ReplicaBody::Appended { matched });
        }
    }

    /// Drops the log after the index, in memory and on disk.
    pub(super) fn truncate(&mut self, after: LogIndex) {
        assert!(after >= self.commit, "I2: {} is to drop what follows {after} but knows {} to be committed", self.id, self.commit);
        self.log.truncate(after);
        self.batch.push(LogRecord::Truncate { replica: self.id, after });
        self.cut_durable(after);
    }

    /// What is on its way to the disk beyond the index is no longer part of the log.
    pub(super) fn cut_durable(&mut self, after: LogIndex) {
        self.durable = self.durable.min(after);
        for (_, end) in &mut self.writes {
            *end = (*end).min(after);
        }
    }

    pub(super) fn close_batch(&mut self) {
        if self.batch.is_empty() {
            // Compaction rides along, too, unless the log is so large that nothing more is appended that it could ride on.
            if self.log.size_bytes() > self.context.settings.log_bytes_max {
                self.compact();
            }
            if self.batch.is_empty() {
                return;
            }
        }
        // A hint that rides along, never for its own sake; it stands behind the entries it speaks of.
        let commit = self.commit.min(self.log.last().index);
        if commit > self.commit_hint {
            self.commit_hint = commit;
            self.batch.push(LogRecord::Commit { replica: self.id, index: commit });
        }
        self.compact();
        self.issued += 1;
        self.writes.push_back((self.issued, self.log.last().index));
    }

    /// Drops what the rows hold durably and no follower is likely to want (DESIGN 4; R8 for learners).
    pub(super) fn compact(&mut self) {
        let settings = &self.context.settings;
        if self.swap.is_some() {
            return;
        }
        let base = self.log.base().index;
        let flushed = self.view.flushed().index.min(self.durable);
        if flushed <= base {
            return;
        }
        let behind = flushed.0 - base.0;
        let keep = settings.log_keep_count as u64;
        let mut to = if self.log.size_bytes() > settings.log_keep_bytes {
            // Half of what is flushed at once, so that it is not done at every step.
            base.0 + behind.div_ceil(2)
        } else if behind > keep + keep / 4 {
            flushed.0 - keep
        } else {
            return;
        };
        // Within bounds the log waits for those who fetch a snapshot now.
        if behind <= keep.saturating_mul(4) && self.log.size_bytes() <= settings.log_bytes_max {
            for lending in self.lendings.values() {
                if let Some(position) = lending.position() {
                    to = to.min(position.index.0.max(base.0));
                }
            }
        }
        if to <= base.0 {
            return;
        }
        if let Some(base) = self.log.position(LogIndex(to)) {
            self.log.compact(base.index);
            self.batch.push(LogRecord::Compact { replica: self.id, base });
        }
    }
}
