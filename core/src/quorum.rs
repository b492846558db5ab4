//! Quorum arithmetic over sets of member ids. Pure; counts members, never messages (R6).

use crate::{config::Configuration, id::LogIndex, id::ReplicaId};
use std::collections::BTreeSet;

/// The highest index that at least `count` members hold, given what each member holds. Zero if there are not so many.
///
/// ```text
/// members  a  b  c  d  e        count 1  2  3  4  5
/// holds    9  4  7  0  7        gives 9  7  7  4  0
/// ```
#[must_use]
pub fn held_by(held: impl IntoIterator<Item = LogIndex>, count: usize) -> LogIndex {
    let mut held: Vec<LogIndex> = held.into_iter().collect();
    held.sort_unstable_by(|a, b| b.cmp(a));
    count.checked_sub(1).and_then(|place| held.get(place)).copied().unwrap_or_default()
}

/// Whether at least `count` members of the configuration are in the set.
#[must_use]
pub fn reached(config: &Configuration, set: &BTreeSet<ReplicaId>, count: usize) -> bool {
    set.iter().filter(|replica| config.has(**replica)).count() >= count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Epoch;

    #[test]
    fn held_by_is_the_nth_largest() {
        let cases: &[(&[u64], [u64; 5])] =
            &[(&[9, 4, 7, 0, 7], [9, 7, 7, 4, 0]), (&[5], [5, 0, 0, 0, 0]), (&[], [0; 5]), (&[3, 3, 3], [3, 3, 3, 0, 0])];
        for (held, expected) in cases {
            for (count, expected) in (1..).zip(expected) {
                assert_eq!(held_by(held.iter().map(|index| LogIndex(*index)), count), LogIndex(*expected), "{held:?} by {count}");
            }
        }
    }

    #[test]
    fn strangers_do_not_count() {
        let config = Configuration { epoch: Epoch(1), primary: ReplicaId(1), members: vec![ReplicaId(1), ReplicaId(2)], write_quorum: 2 };
        assert!(!reached(&config, &BTreeSet::from([ReplicaId(1), ReplicaId(7)]), 2));
        assert!(reached(&config, &BTreeSet::from([ReplicaId(1), ReplicaId(2)]), 2));
    }

    #[test]
    fn seal_and_write_quorums_meet_and_so_do_install_and_seal_quorums() {
        for members in 1..=7_usize {
            for write_quorum in 1..=members {
                let ids = (1..=members as u64).map(ReplicaId).collect();
                let config = Configuration { epoch: Epoch(1), primary: ReplicaId(1), members: ids, write_quorum: write_quorum as u32 };
                assert!(config.seal_quorum() + write_quorum > members, "R11: {members} members, w {write_quorum}");
                assert!(config.install_quorum() + config.seal_quorum() > members, "R14: {members} members, w {write_quorum}");
                assert!(config.install_quorum() <= members);
            }
        }
    }
}
