//! Rings: which server a request falls to, so that adding a server moves requests only to it. Know nothing of health or load.
//!
//! [`Ring`] is consistent hashing (Karger et al. 1997) with virtual nodes, walked by the bounded-loads rule of
//! [`super::policy`]. [`ClassicRing`] is the 512-slot ring of the course's stage 1, for comparison runs (API.md).

use super::policy::mix;
use crate::id::ServerId;
use std::collections::BTreeMap;

/// Points of one server on the ring. Spreads plain load to about 9 % (1/sqrt(128)).
const VIRTUAL_NODES: u64 = 128;
/// Keeps the points apart from the hashes of requests, which are made of small numbers too: "ring" in ASCII.
const POINT: u64 = 0x7269_6e67;
/// Slots of the classic ring (API.md).
pub const CLASSIC_SLOTS: usize = 512;
/// Virtual servers of one server on the classic ring (API.md).
pub const CLASSIC_VIRTUAL_SERVERS: u64 = 9;

/// A consistent-hashing ring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// By server, its points in growing order. So a walk among some servers costs nothing for the others.
    points: BTreeMap<ServerId, Vec<u64>>,
}

impl Ring {
    /// The ring of these servers. A server's points depend on its id alone.
    pub fn new(servers: impl IntoIterator<Item = ServerId>) -> Self {
        let points_of = |server: ServerId| {
            let mut points: Vec<u64> = (0..VIRTUAL_NODES).map(|node| mix(&[POINT, server.0, node])).collect();
            points.sort_unstable();
            points
        };
        Self { points: servers.into_iter().map(|server| (server, points_of(server))).collect() }
    }

    /// These servers in the order in which a walk clockwise from `hash` meets them first. Servers that are not on the ring are left out.
    #[must_use]
    pub fn walk(&self, hash: u64, among: &[ServerId]) -> Vec<ServerId> {
        let mut met: Vec<(u64, ServerId)> = among
            .iter()
            .filter_map(|server| {
                let points = self.points.get(server)?;
                let place = points.partition_point(|point| *point < hash);
                let next = points.get(place).or_else(|| points.first())?;
                Some((next.wrapping_sub(hash), *server))
            })
            .collect();
        met.sort_unstable();
        met.into_iter().map(|(_, server)| server).collect()
    }
}

/// One of the two pairs of hash functions of the classic ring (API.md).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashPair {
    /// H(i) = i² + 2i + 17, Φ(i, j) = i² + j² + 2j + 25.
    #[default]
    First,
    /// H(i) = 2^i + 4i³ + 5, Φ(i, j) = i³·j² + i + j + 11.
    Second,
}

impl HashPair {
    /// The slot of a request, H.
    #[must_use]
    pub const fn request_slot(self, request_id: u64) -> usize {
        let i = request_id;
        // Wrapping at 2^64 changes nothing modulo 512.
        let hash = match self {
            Self::First => i.wrapping_mul(i).wrapping_add(i.wrapping_mul(2)).wrapping_add(17),
            Self::Second => {
                let power = if i < 64 { 1_u64 << i } else { 0 };
                power.wrapping_add(i.wrapping_mul(i).wrapping_mul(i).wrapping_mul(4)).wrapping_add(5)
            }
        };
        (hash % CLASSIC_SLOTS as u64) as usize
    }

    /// The slot that a virtual server would like, Φ.
    #[must_use]
    pub const fn server_slot(self, number: u64, virtual_server: u64) -> usize {
        let (i, j) = (number, virtual_server);
        let square = j.wrapping_mul(j);
        let hash = match self {
            Self::First => i.wrapping_mul(i).wrapping_add(square).wrapping_add(j.wrapping_mul(2)).wrapping_add(25),
            Self::Second => i.wrapping_mul(i).wrapping_mul(i).wrapping_mul(square).wrapping_add(i).wrapping_add(j).wrapping_add(11),
        };
        (hash % CLASSIC_SLOTS as u64) as usize
    }
}

/// The 512-slot ring of API.md: virtual servers placed by Φ with linear probing, requests by H at the nearest occupied slot clockwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassicRing {
    pair: HashPair,
    slots: Vec<Option<ServerId>>,
}

impl ClassicRing {
    /// Places the servers, by their numbers, in the order given. When every slot is taken (57 servers), the rest gets none.
    #[must_use]
    pub fn new(pair: HashPair, servers: &[(u64, ServerId)]) -> Self {
        let mut slots = vec![None; CLASSIC_SLOTS];
        for (number, server) in servers {
            for virtual_server in 1..=CLASSIC_VIRTUAL_SERVERS {
                let wanted = pair.server_slot(*number, virtual_server);
                if let Some(free) = (0..CLASSIC_SLOTS).map(|step| (wanted + step) % CLASSIC_SLOTS).find(|slot| slots[*slot].is_none()) {
                    slots[free] = Some(*server);
                }
            }
        }
        Self { pair, slots }
    }

    /// The server whose slot is the nearest clockwise from the request's, its own slot included.
    #[must_use]
    pub fn pick(&self, request_id: u64) -> Option<ServerId> {
        let start = self.pair.request_slot(request_id);
        (0..CLASSIC_SLOTS).find_map(|step| self.slots[(start + step) % CLASSIC_SLOTS])
    }

    /// What stands in each slot.
    #[must_use]
    pub fn slots(&self) -> &[Option<ServerId>] {
        &self.slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn classic_hashes_are_those_of_the_contract() {
        let cases = [
            (HashPair::First, 0, 17),
            (HashPair::First, 1, 20),
            (HashPair::First, 132_574, (132_574_usize * 132_574 + 2 * 132_574 + 17) % 512),
            (HashPair::Second, 0, 6),
            (HashPair::Second, 3, 8 + 108 + 5),
            (HashPair::Second, 9, (4 * 729 + 5) % 512),
            (HashPair::Second, 200_000, 5),
        ];
        for (pair, request_id, slot) in cases {
            assert_eq!(pair.request_slot(request_id), slot, "{pair:?} H({request_id})");
        }
        let cases = [
            (HashPair::First, 1, 1, 29),
            (HashPair::First, 3, 9, 9 + 81 + 18 + 25),
            (HashPair::First, 30, 2, (900 + 4 + 4 + 25) % 512),
            (HashPair::Second, 2, 3, 72 + 2 + 3 + 11),
            (HashPair::Second, 5, 9, (125 * 81 + 5 + 9 + 11) % 512),
        ];
        for (pair, number, virtual_server, slot) in cases {
            assert_eq!(pair.server_slot(number, virtual_server), slot, "{pair:?} phi({number}, {virtual_server})");
        }
    }

    /// As API.md says of the first pair.
    #[test]
    fn first_hash_reaches_87_slots() {
        let reached: BTreeSet<usize> = (100_000..1_000_000).map(|id| HashPair::First.request_slot(id)).collect();
        assert_eq!(reached.len(), 87);
    }

    #[test]
    fn classic_ring_probes_on_collision_and_takes_the_nearest_slot_clockwise() {
        // phi(1, j) = j² + 2j + 26 and phi(0, j) = j² + 2j + 25: 28, 33, 40, .. and 29, 34, 41, .. do not collide; equal numbers do.
        let ring = ClassicRing::new(HashPair::First, &[(1, ServerId(10)), (1, ServerId(11))]);
        assert_eq!(ring.slots()[29], Some(ServerId(10)));
        assert_eq!(ring.slots()[30], Some(ServerId(11)), "linear probing");
        for server in [10, 11] {
            assert_eq!(ring.slots().iter().filter(|slot| **slot == Some(ServerId(server))).count(), 9);
        }
        // H(1) = 20: the nearest occupied slot clockwise is 29. H(2) = 25, H(3) = 32: after 29 and 30 comes 34 = phi(1, 2).
        assert_eq!(ring.pick(1), Some(ServerId(10)));
        assert_eq!(ring.pick(3), ring.slots()[34]);
        // Past the last slot it goes on at the first.
        let last = ring.slots().iter().rposition(Option::is_some).unwrap();
        let beyond = (0..1_000_u64).find(|id| HashPair::First.request_slot(*id) > last).unwrap();
        assert_eq!(ring.pick(beyond), Some(ServerId(10)));
        assert_eq!(ClassicRing::new(HashPair::First, &[]).pick(5), None);
    }

    #[test]
    fn classic_ring_holds_at_most_its_slots() {
        let servers: Vec<_> = (0..100).map(|number| (number, ServerId(number))).collect();
        for pair in [HashPair::First, HashPair::Second] {
            let ring = ClassicRing::new(pair, &servers);
            assert!(ring.slots().iter().all(Option::is_some));
        }
    }

    #[test]
    fn ring_spreads_evenly() {
        let servers: Vec<_> = (1..=6).map(ServerId).collect();
        let ring = Ring::new(servers.iter().copied());
        let mut counts = BTreeMap::new();
        for request in 0..60_000_u64 {
            *counts.entry(ring.walk(mix(&[request]), &servers)[0]).or_insert(0_u32) += 1;
        }
        assert!(counts.values().all(|count| (7_500..12_500).contains(count)), "{counts:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(1), ..ProptestConfig::default() })]

        #[test]
        fn adding_a_server_moves_keys_only_to_it(
            servers in prop::collection::btree_set(1..1_000_u64, 1..12),
            new in 1_000..2_000_u64,
            hashes in prop::collection::vec(any::<u64>(), 1..200),
        ) {
            let old: Vec<_> = servers.into_iter().map(ServerId).collect();
            let all: Vec<_> = old.iter().copied().chain([ServerId(new)]).collect();
            let (before, after) = (Ring::new(old.iter().copied()), Ring::new(all.iter().copied()));
            for hash in hashes {
                let (was, is) = (before.walk(hash, &old), after.walk(hash, &all));
                prop_assert!(is[0] == was[0] || is[0] == ServerId(new));
                prop_assert_eq!(is.into_iter().filter(|server| *server != ServerId(new)).collect::<Vec<_>>(), was);
            }
        }
    }
}
