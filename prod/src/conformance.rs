//! What every row store, log and register must do, whatever it is made of: suites of scripted and random work against a model. A new
//! implementation gives a venue (how to open it, crash it, damage it) and calls `check`. Not part of the program.

pub mod log;
pub mod register;
pub mod rows;

/// Fails the suite with words unless a claim holds.
macro_rules! ensure {
    ($claim:expr, $($words:tt)+) => {
        if !$claim {
            return Err(format!($($words)+));
        }
    };
}
use ensure;

/// A sequence of numbers that a seed decides (splitmix64: Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x7477_696e)
    }

    /// The next number.
    pub const fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 if that is 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        ((self.word() as u128 * bound as u128) >> 64) as u64
    }

    /// As [`Self::below`], for lengths.
    pub fn size(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).unwrap_or(0)
    }

    /// Whether something with so many chances in a hundred happens.
    pub const fn percent(&mut self, chances: u64) -> bool {
        self.below(100) < chances
    }

    /// One of several; the last of none never comes.
    pub fn pick<'a, T>(&mut self, among: &'a [T]) -> Option<&'a T> {
        among.get(self.size(among.len()))
    }
}
