//! Policies: which of several servers gets a request, from what is in flight to each (DESIGN 6). Decide nothing that safety depends on.

use super::{
    Policy,
    ring::{ClassicRing, HashPair, Ring},
};
use crate::{
    id::ServerId,
    time::{Duration, Instant},
};

/// Mixes words into one that looks random: the finaliser of SplitMix64 (Steele, Lea, Flood 2014) over each. A keyed choice, not a secret.
#[must_use]
pub(crate) fn mix(words: &[u64]) -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for word in words {
        state = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^= state >> 31;
    }
    state
}

/// When to try again: `base` doubled by every attempt up to `max`, give or take a quarter by `key`, so that many do not come at once.
#[must_use]
pub(crate) fn back_off(now: Instant, base: Duration, attempt: u32, max: Duration, key: u64) -> Instant {
    let span = base.times(1 << attempt.min(16)).min(max);
    now + Duration(span.0 - span.0 / 4) + Duration(key % (span.0 / 2).max(1))
}

/// A server that could take a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Which.
    pub(crate) server: ServerId,
    /// Its number, by which the classic ring places it.
    pub(crate) number: u64,
    /// Requests in flight to it.
    pub(crate) load_count: u32,
}

/// Picks servers.
#[derive(Clone, Debug)]
pub(crate) struct Picker {
    policy: Policy,
    seed: u64,
    draw_count: u64,
    ring: Ring,
}

impl Picker {
    pub(crate) fn new(policy: Policy, seed: u64) -> Self {
        Self { policy, seed, draw_count: 0, ring: Ring::default() }
    }

    /// Takes the servers there are.
    pub(crate) fn set_servers(&mut self, servers: impl IntoIterator<Item = ServerId>) {
        self.ring = Ring::new(servers);
    }

    /// A number that looks random; the next is another.
    pub(crate) fn draw(&mut self) -> u64 {
        self.draw_count += 1;
        mix(&[self.seed, self.draw_count])
    }

    /// A random request id of six digits, as the classic ring wants them (API.md).
    pub(crate) fn request_id(&mut self) -> u64 {
        100_000 + self.draw() % 900_000
    }

    /// The candidate for the request; `None` only without candidates. `hash` places it on the ring, `request_id` on the classic ring.
    pub(crate) fn pick(&mut self, hash: u64, request_id: u64, candidates: &[Candidate]) -> Option<ServerId> {
        let first = candidates.first()?;
        let picked = match self.policy {
            Policy::Classic => {
                let servers: Vec<_> = candidates.iter().map(|candidate| (candidate.number, candidate.server)).collect();
                ClassicRing::new(HashPair::First, &servers).pick(request_id)
            }
            Policy::Ring => self.pick_bounded(hash, candidates),
            Policy::LeastLoaded => Some(self.pick_of_two(candidates)),
        };
        Some(picked.unwrap_or(first.server))
    }

    /// How it picks one of so many candidates, in words.
    pub(crate) fn describe(&self, candidate_count: usize) -> String {
        match self.policy {
            Policy::Ring => format!(
                "ring: the first of {candidate_count} clockwise of the place of shard and first key that has less than 1.25 times the mean in flight"
            ),
            Policy::Classic => {
                format!("classic: the first of {candidate_count} clockwise of a random request id; another read may go elsewhere")
            }
            Policy::LeastLoaded => {
                format!("least-loaded: the less loaded of two of {candidate_count} drawn at random; another read may go elsewhere")
            }
        }
    }

    /// Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2018), c = 1.25: the first server clockwise that has less
    /// than c times the mean in flight, this request counted.
    fn pick_bounded(&self, hash: u64, candidates: &[Candidate]) -> Option<ServerId> {
        let count = candidates.len() as u64;
        let total = candidates.iter().map(|candidate| u64::from(candidate.load_count)).sum::<u64>() + 1;
        let load_max = (5 * total).div_ceil(4 * count);
        let servers: Vec<_> = candidates.iter().map(|candidate| candidate.server).collect();
        let load = |server: ServerId| candidates.iter().find(|candidate| candidate.server == server).map_or(0, |found| found.load_count);
        self.ring.walk(hash, &servers).into_iter().find(|server| u64::from(load(*server)) < load_max)
    }

    /// The power of two choices (Mitzenmacher 2001): the less loaded of two different ones drawn at random.
    fn pick_of_two(&mut self, candidates: &[Candidate]) -> ServerId {
        let count = candidates.len() as u64;
        let draw = self.draw();
        let first = draw % count;
        let second = if count > 1 { (first + 1 + (draw >> 32) % (count - 1)) % count } else { first };
        let (first, second) = (candidates[first as usize], candidates[second as usize]);
        if second.load_count < first.load_count { second.server } else { first.server }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn candidates(loads: &[u32]) -> Vec<Candidate> {
        (1..).zip(loads).map(|(id, load_count)| Candidate { server: ServerId(id), number: id, load_count: *load_count }).collect()
    }

    fn picker(policy: Policy, count: u64) -> Picker {
        let mut picker = Picker::new(policy, 7);
        picker.set_servers((1..=count).map(ServerId));
        picker
    }

    #[test]
    fn nobody_is_picked_only_without_candidates() {
        for policy in [Policy::Classic, Policy::Ring, Policy::LeastLoaded] {
            let mut picker = picker(policy, 3);
            assert_eq!(picker.pick(1, 100_000, &[]), None);
            // A server that the ring does not know yet is better than none.
            let unknown = Candidate { server: ServerId(99), number: 99, load_count: 0 };
            assert_eq!(picker.pick(1, 100_000, &[unknown]), Some(ServerId(99)), "{policy:?}");
        }
    }

    #[test]
    fn ring_keeps_a_request_at_its_server_until_that_is_full() {
        let mut picker = picker(Policy::Ring, 4);
        let home = picker.pick(42, 0, &candidates(&[0; 4])).unwrap();
        assert_eq!(picker.pick(42, 0, &candidates(&[0; 4])), Some(home));
        // 8 in flight and this one: at most ceil(1.25 * 9 / 4) = 3 each.
        let mut loads = [2_u32; 4];
        let place = usize::try_from(home.0).unwrap() - 1;
        assert_eq!(picker.pick(42, 0, &candidates(&loads)), Some(home), "2 is below 3");
        loads[place] = 3;
        loads[(place + 1) % 4] = 1;
        assert_ne!(picker.pick(42, 0, &candidates(&loads)), Some(home), "3 is not");
    }

    #[test]
    fn ring_never_exceeds_its_bound() {
        let mut picker = picker(Policy::Ring, 5);
        let mut loads = [0_u32; 5];
        for total in 1..=1_000_u64 {
            // Always the same request: plain hashing would give it all to one.
            let server = picker.pick(99, 0, &candidates(&loads)).unwrap();
            loads[usize::try_from(server.0).unwrap() - 1] += 1;
            let bound = (5 * total).div_ceil(4 * 5);
            assert!(loads.iter().all(|load| u64::from(*load) <= bound), "{loads:?} after {total}");
        }
    }

    #[test]
    fn least_loaded_prefers_the_idle_and_reaches_everybody() {
        let mut picker = picker(Policy::LeastLoaded, 2);
        for _ in 0..50 {
            assert_eq!(picker.pick(0, 0, &candidates(&[5, 1])), Some(ServerId(2)));
        }
        let mut picker = Picker::new(Policy::LeastLoaded, 3);
        let mut counts = BTreeMap::new();
        for _ in 0..3_000 {
            *counts.entry(picker.pick(0, 0, &candidates(&[0, 0, 0])).unwrap()).or_insert(0) += 1;
        }
        assert!(counts.len() == 3 && counts.values().all(|count| (800..1_200).contains(count)), "{counts:?}");
    }

    #[test]
    fn back_off_grows_to_its_bound_and_is_spread() {
        let (base, max) = (Duration::from_millis(100), Duration::from_millis(800));
        for (attempt, span) in [(0, 100), (1, 200), (3, 800), (4, 800), (40, 800)] {
            for key in [0, 1, u64::MAX, 0x1234_5678_9abc] {
                let wait = back_off(Instant(0), base, attempt, max, key).since(Instant(0));
                assert!((span * 3 / 4..=span * 5 / 4).contains(&wait.as_millis()), "attempt {attempt}: {wait}");
            }
        }
        assert_ne!(back_off(Instant(0), base, 0, max, mix(&[1])), back_off(Instant(0), base, 0, max, mix(&[2])));
    }
}
