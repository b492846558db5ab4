//! The log of one replica as it stands in memory: a base and the entries after it. Knows nothing of what is durable or committed.

use crate::{
    command::Entry,
    id::{LogIndex, Position},
};
use std::{collections::VecDeque, sync::Arc};

/// A log without gaps: `base.index + 1 ..= last.index`, epochs never falling.
#[derive(Clone, Debug, Default)]
pub struct Log {
    base: Position,
    entries: VecDeque<Arc<Entry>>,
    size_bytes: usize,
}

impl Log {
    /// A log with these entries after `base`. `None` if they are not contiguous.
    #[must_use]
    pub fn new(base: Position, entries: Vec<Arc<Entry>>) -> Option<Self> {
        let mut log = Self { base, entries: VecDeque::with_capacity(entries.len()), size_bytes: 0 };
        for entry in entries {
            if !log.follows(entry.position) {
                return None;
            }
            log.push(entry);
        }
        Some(log)
    }

    /// The position before the first entry: what lies at or below it is committed and no longer here.
    #[must_use]
    pub const fn base(&self) -> Position {
        self.base
    }

    /// The position of the last entry, or the base.
    #[must_use]
    pub fn last(&self) -> Position {
        self.entries.back().map_or(self.base, |entry| entry.position)
    }

    /// About how many bytes the entries take.
    #[must_use]
    pub const fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// The entries, in order.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &Arc<Entry>> + ExactSizeIterator {
        self.entries.iter()
    }

    /// The entry at the index, if it is here.
    #[must_use]
    pub fn get(&self, index: LogIndex) -> Option<&Arc<Entry>> {
        let place = index.0.checked_sub(self.base.index.0 + 1)?;
        self.entries.get(usize::try_from(place).ok()?)
    }

    /// The position at the index: the base or an entry.
    #[must_use]
    pub fn position(&self, index: LogIndex) -> Option<Position> {
        if index == self.base.index { Some(self.base) } else { self.get(index).map(|entry| entry.position) }
    }

    /// Whether the position is the base or that of an entry here. By log matching (I2) everything before it then agrees as well.
    #[must_use]
    pub fn has(&self, position: Position) -> bool {
        self.position(position.index) == Some(position)
    }

    /// Adds an entry.
    ///
    /// # Panics
    /// If it does not follow the last one: I2 would be broken.
    pub fn push(&mut self, entry: Arc<Entry>) {
        assert!(self.follows(entry.position), "I2: {} cannot follow {}", entry.position, self.last());
        self.size_bytes += entry.size_bytes();
        self.entries.push_back(entry);
    }

    /// Drops the entries after the index.
    pub fn truncate(&mut self, after: LogIndex) {
        while self.last().index > after {
            if let Some(entry) = self.entries.pop_back() {
                self.size_bytes -= entry.size_bytes();
            } else {
                break;
            }
        }
    }

    /// Drops the entries up to and with the index, which becomes the base. Nothing happens if it is not here.
    pub fn compact(&mut self, to: LogIndex) {
        if self.position(to).is_none() {
            return;
        }
        while self.base.index < to {
            if let Some(entry) = self.entries.pop_front() {
                self.size_bytes -= entry.size_bytes();
                self.base = entry.position;
            } else {
                break;
            }
        }
    }

    /// Drops everything: an empty log after `base`.
    pub fn reset(&mut self, base: Position) {
        *self = Self { base, ..Self::default() };
    }

    /// Entries from `from` to `through`, at most `count_max` of them and about `bytes_max` bytes, at least one if there is one.
    #[must_use]
    pub fn slice(&self, from: LogIndex, through: LogIndex, count_max: usize, bytes_max: usize) -> Vec<Arc<Entry>> {
        let mut slice = Vec::new();
        let mut size_bytes = 0;
        let mut index = from;
        while slice.len() < count_max && index <= through {
            let Some(entry) = self.get(index) else { break };
            size_bytes += entry.size_bytes();
            if !slice.is_empty() && size_bytes > bytes_max {
                break;
            }
            slice.push(Arc::clone(entry));
            index = index.next();
        }
        slice
    }

    /// The last position here that may agree with a log that has `other`: neither its index nor its epoch is higher. Never below the base.
    #[must_use]
    pub fn candidate(&self, other: Position) -> Position {
        let below = |entry: &Arc<Entry>| entry.position.index <= other.index && entry.position.epoch <= other.epoch;
        let count = self.entries.partition_point(below);
        if count == 0 { self.base } else { self.entries[count - 1].position }
    }

    fn follows(&self, position: Position) -> bool {
        position.index == self.last().index.next() && position.epoch >= self.last().epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        command::Command,
        id::{Epoch, SessionId},
    };

    fn entry(epoch: u64, index: u64) -> Arc<Entry> {
        Arc::new(Entry {
            position: Position { epoch: Epoch(epoch), index: LogIndex(index) },
            request: None,
            idempotency: None,
            command: Command::CloseSession(SessionId(index)),
        })
    }

    fn at(epoch: u64, index: u64) -> Position {
        Position { epoch: Epoch(epoch), index: LogIndex(index) }
    }

    fn log(base: Position, epochs: &[u64]) -> Log {
        let entries = epochs.iter().zip(base.index.0 + 1..).map(|(epoch, index)| entry(*epoch, index)).collect();
        Log::new(base, entries).expect("contiguous")
    }

    #[test]
    fn a_gap_or_a_falling_epoch_is_no_log() {
        assert!(Log::new(Position::ZERO, vec![entry(1, 2)]).is_none());
        assert!(Log::new(Position::ZERO, vec![entry(2, 1), entry(1, 2)]).is_none());
    }

    #[test]
    fn positions_are_found_from_the_base_to_the_last() {
        let log = log(at(3, 10), &[3, 3, 5]);
        assert!(log.has(at(3, 10)) && log.has(at(3, 12)) && log.has(at(5, 13)));
        assert!(!log.has(at(5, 12)) && !log.has(at(5, 14)) && !log.has(at(3, 9)));
        assert_eq!(log.last(), at(5, 13));
    }

    #[test]
    fn truncating_and_compacting_keep_the_size_right() {
        let mut log = log(Position::ZERO, &[1, 1, 2, 2]);
        log.truncate(LogIndex(3));
        log.compact(LogIndex(2));
        assert_eq!((log.base(), log.last()), (at(1, 2), at(2, 3)));
        assert_eq!(log.size_bytes(), entry(2, 3).size_bytes());
        log.compact(LogIndex(9));
        assert_eq!(log.base(), at(1, 2), "an index that is not here compacts nothing");
        log.reset(at(4, 9));
        assert_eq!((log.last(), log.size_bytes()), (at(4, 9), 0));
    }

    #[test]
    fn a_candidate_is_neither_longer_nor_newer_than_the_other_log() {
        let log = log(at(1, 1), &[1, 3, 3, 6]);
        for (other, expected) in
            [(at(6, 9), at(6, 5)), (at(5, 9), at(3, 4)), (at(5, 3), at(3, 3)), (at(2, 9), at(1, 2)), (at(0, 9), at(1, 1))]
        {
            assert_eq!(log.candidate(other), expected, "against {other}");
        }
    }

    #[test]
    fn a_slice_is_bounded_but_never_empty_for_nothing() {
        let log = log(Position::ZERO, &[1, 1, 1, 1]);
        let indexes = |slice: Vec<Arc<Entry>>| slice.iter().map(|entry| entry.position.index.0).collect::<Vec<_>>();
        assert_eq!(indexes(log.slice(LogIndex(2), LogIndex(9), 2, usize::MAX)), [2, 3]);
        assert_eq!(indexes(log.slice(LogIndex(2), LogIndex(2), 9, 0)), [2]);
        assert_eq!(indexes(log.slice(LogIndex(5), LogIndex(9), 9, 9)), [0u64; 0]);
    }
}
