//! Reads: a read index against what was committed when the read was sent, rows against the state at the index that was said, further pages
//! against the first (I6).

use super::{Checks, Servers, Sometimes};
use twinshard_core::{
    id::{LogIndex, NodeId, Position},
    message::{Freshness, Read, ReadOn, ReadRefusal, ReadResult, Tag},
};

#[derive(Clone, Debug)]
pub(super) struct AskedRead {
    read: Read,
    /// Of a further page: the position of the first.
    pinned: Option<Position>,
    /// What was committed when it was sent.
    committed: LogIndex,
}

impl Checks {
    pub(super) fn on_read_asked(&mut self, from: NodeId, read: &Read) {
        let Some(known) = self.replicas.get(&read.replica).copied() else { return };
        let committed = self.shard_mut(known.shard).model.last();
        self.reads.insert((from, read.tag), AskedRead { read: read.clone(), pinned: None, committed });
    }

    pub(super) fn on_read_on_asked(&mut self, from: NodeId, read: &ReadOn) {
        let ReadOn { tag, pin, range, limit } = read;
        let Some(at) = self.pins.get(pin).copied() else {
            return self.fail("reply", || format!("{from} reads on in {pin:?}, which nobody was told of"));
        };
        let read = Read { tag: *tag, replica: pin.replica, range: *range, limit: *limit, wanted: 0, freshness: Freshness::Any };
        self.reads.insert((from, *tag), AskedRead { read, pinned: Some(at), committed: LogIndex(0) });
    }

    pub(super) fn on_read_done(&mut self, servers: &Servers, to: NodeId, tag: Tag, result: &ReadResult) {
        let (rows, more, at, read_index, pin) = match result {
            ReadResult::Rows { rows, more, at, read_index, pin, .. } => (rows, *more, *at, *read_index, *pin),
            ReadResult::Refused { reason, .. } => {
                self.coverage.hit(Sometimes::ReadsRefused);
                if *reason == ReadRefusal::NeverWas
                    && let Some(AskedRead { read, .. }) = self.reads.get(&(to, tag)).cloned()
                    && let Freshness::AtLeast(index) = read.freshness
                    && let Some(known) = self.replicas.get(&read.replica).copied()
                    && index <= self.shard_mut(known.shard).acked
                {
                    self.fail("I6", || format!("{} says that nobody can have seen {index}, which was acknowledged", read.replica));
                }
                return;
            }
        };
        let Some(AskedRead { read, pinned, committed }) = self.reads.get(&(to, tag)).cloned() else { return };
        if let Some(pin) = pin {
            self.pins.insert(pin, at);
        }
        if let Some(first) = pinned {
            self.coverage.hit(Sometimes::FurtherPages);
            if at != first {
                self.fail("I6", || format!("{} reads a further page at {at}, the first was at {first}", read.replica));
            }
        } else if more
            && pin.is_none()
            && rows.len() < read.wanted as usize
            && rows.last().is_some_and(|last| last.row.key < read.range.high)
        {
            self.fail("I6", || format!("{} leaves more of {read:?} and pins nothing for it", read.replica));
        }
        self.claim(servers, read.replica, at.index, None);
        let Some(known) = self.replicas.get(&read.replica).copied() else { return };
        match read.freshness {
            Freshness::Linearizable(epoch) => {
                self.coverage.hit(Sometimes::Linearizable);
                if self.leaders.get(&epoch).is_some_and(|leader| *leader != read.replica) {
                    self.coverage.hit(Sometimes::LinearizableAtBackup);
                }
                // The index itself, not only what the replica has: a replica is usually ahead and hides the mistake (R21).
                match read_index {
                    None => self.fail("I6", || format!("{} answers a linearizable read without an index", read.replica)),
                    Some(index) if index < committed || at.index < index => {
                        self.fail("I6", || {
                            format!("{} reads at {at} with read index {index}; {committed} was committed when it was asked", read.replica)
                        });
                    }
                    Some(_) => {}
                }
            }
            Freshness::AtLeast(index) => {
                self.coverage.hit(Sometimes::WeakReads);
                if at.index < index {
                    self.fail("I6", || format!("{} reads at {at}, {index} was asked for", read.replica));
                }
            }
            Freshness::Any => self.coverage.hit(Sometimes::WeakReads),
        }
        let model = &self.shard_mut(known.shard).model;
        if !model.has(at) {
            return self.fail("I6", || format!("{} reads at {at}, which is not committed", read.replica));
        }
        let mut expected = model.rows(read.range, at.index);
        let agrees = rows.iter().all(|row| expected.next() == Some(row)) && rows.len() <= read.limit as usize;
        let left = expected.next().cloned();
        drop(expected);
        if !agrees || (left.is_some() && !more) {
            let text = format!("{} reads {rows:?} (more: {more}) in {:?} at {at}, then comes {left:?}", read.replica, read.range);
            self.fail("I6", || text);
        }
    }
}
