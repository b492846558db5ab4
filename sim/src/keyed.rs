//! Randomness by key: what happens to one message or one fsync is a function of the seed and of what it is, never of what was drawn
//! before it. So taking an operation or a fault away leaves the fate of everything else as it was (DESIGN 9).
//!
//! The function is a chain of splitmix64 finalisers (Steele, Lea, Flood 2014; constants of Stafford's variant 13): not for secrets,
//! the same on every machine and in every build profile.

/// Whether something with so many chances in a million.
pub const MILLION: u32 = 1_000_000;

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of splitmix64.
#[must_use]
pub const fn mix(value: u64) -> u64 {
    let mut z = value;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Adds a word to a running hash.
#[must_use]
pub const fn fold(hash: u64, word: u64) -> u64 {
    mix(hash.wrapping_mul(5) ^ word.wrapping_add(GOLDEN))
}

/// What a key is for, so that equal keys of different purposes have nothing in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// The fate of a message.
    Message = 1,
    /// An fsync of a log.
    Sync,
    /// Work of a row store.
    Rows,
    /// The register.
    Register,
    /// The provisioner.
    Provision,
    /// What survives a crash.
    Crash,
    /// How late a timer fires.
    Timer,
    /// A client: latency, back-off.
    Client,
    /// A process: start-up, clock origin.
    Process,
}

/// All draws of one seed.
#[derive(Clone, Copy, Debug)]
pub struct Keyed(u64);

impl Keyed {
    /// The draws of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(mix(seed ^ 0x7477_696e_7368_6172))
    }

    /// The draw of one key.
    #[must_use]
    pub fn draw<const N: usize>(self, purpose: Purpose, key: [u64; N]) -> Draw {
        Draw(key.into_iter().fold(fold(self.0, purpose as u64), fold))
    }
}

/// The numbers that belong to one key.
#[derive(Clone, Copy, Debug)]
pub struct Draw(u64);

impl Draw {
    /// The numbers of a part of what the key names; the draw itself stays where it is.
    #[must_use]
    pub const fn split(self, part: u64) -> Self {
        Self(fold(self.0, part))
    }

    /// The next number.
    pub const fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number below `bound`; 0 if that is 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        // The high word of a 128-bit product (Lemire 2019), without the rejection: the bias is below 2^-32 for our bounds.
        ((self.word() as u128 * bound as u128) >> 64) as u64
    }

    /// A number from `low` to `high`, both included.
    pub const fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// Whether something with so many chances in a million happens.
    pub const fn chance(&mut self, ppm: u32) -> bool {
        self.below(MILLION as u64) < ppm as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_depend_on_every_part_of_the_key_and_on_nothing_else() {
        let keyed = Keyed::new(7);
        let first = keyed.draw(Purpose::Message, [1, 2, 3]).word();
        assert_eq!(first, keyed.draw(Purpose::Message, [1, 2, 3]).word());
        assert_ne!(first, keyed.draw(Purpose::Message, [1, 3, 2]).word());
        assert_ne!(first, keyed.draw(Purpose::Sync, [1, 2, 3]).word());
        assert_ne!(first, Keyed::new(8).draw(Purpose::Message, [1, 2, 3]).word());
    }

    #[test]
    fn chances_are_about_what_they_say() {
        let keyed = Keyed::new(1);
        let hits = (0..100_000).filter(|i| keyed.draw(Purpose::Message, [*i]).chance(100_000)).count();
        assert!((9_500..10_500).contains(&hits), "{hits}");
    }
}
