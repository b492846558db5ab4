//! The watermarks of one replica and what must hold between them. Checks, never moves them.

use crate::id::LogIndex;

/// How far one replica has come.
///
/// ```text
/// base <= flushed <= applied <= commit <= last        durable <= last
///          flushed <= durable (R8)
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Watermarks {
    /// Compacted up to here: the log begins after it.
    pub base: LogIndex,
    /// In the row store, durably.
    pub flushed: LogIndex,
    /// Evaluated.
    pub applied: LogIndex,
    /// Known to be committed.
    pub commit: LogIndex,
    /// In the log on disk.
    pub durable: LogIndex,
    /// In the log in memory.
    pub last: LogIndex,
}

impl Watermarks {
    /// Whether everything stands in its order.
    #[must_use]
    pub fn are_ordered(&self) -> bool {
        self.base <= self.flushed
            && self.flushed <= self.applied
            && self.applied <= self.commit
            && self.commit <= self.last
            && self.durable <= self.last
            && self.flushed <= self.durable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_inequality_is_checked() {
        let good = Watermarks {
            base: LogIndex(1),
            flushed: LogIndex(2),
            applied: LogIndex(4),
            commit: LogIndex(5),
            durable: LogIndex(3),
            last: LogIndex(6),
        };
        assert!(good.are_ordered());
        for bad in [
            Watermarks { base: LogIndex(3), ..good },
            Watermarks { flushed: LogIndex(5), durable: LogIndex(6), ..good },
            Watermarks { applied: LogIndex(6), last: LogIndex(7), ..good },
            Watermarks { commit: LogIndex(7), ..good },
            Watermarks { durable: LogIndex(7), ..good },
            Watermarks { durable: LogIndex(1), ..good },
        ] {
            assert!(!bad.are_ordered(), "{bad:?}");
        }
    }
}
