//! Where nonces and jitter come from: 32 bytes that the caller hands in, drawn from the system in production and from the seed in
//! simulation. Never the system's entropy behind the caller's back.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// A stream of unpredictable bytes. Clones draw from the same stream.
#[derive(Clone)]
pub struct Entropy {
    key: [u8; 32],
    drawn: Arc<AtomicU64>,
}

impl Entropy {
    /// From a key that nobody else has.
    #[must_use]
    pub fn new(key: [u8; 32]) -> Self {
        Self { key, drawn: Arc::new(AtomicU64::new(0)) }
    }

    /// From the system.
    ///
    /// # Errors
    /// The system has none to give.
    pub fn from_system() -> Result<Self, getrandom::Error> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        Ok(Self::new(key))
    }

    /// From a simulation's seed. Predictable.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        Self::new(key)
    }

    /// The next 32 bytes: HMAC-SHA256 of a counter.
    #[must_use]
    pub fn bytes(&self) -> [u8; 32] {
        let number = self.drawn.fetch_add(1, Ordering::Relaxed);
        let mut mac = keyed(&self.key);
        mac.update(b"twinshard entropy");
        mac.update(&number.to_le_bytes());
        mac.finalize().into_bytes().into()
    }

    /// A number below `bound`, which is at least 1. Its bias is below `bound / 2^64`.
    #[must_use]
    pub fn below(&self, bound: u64) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.bytes();
        u64::from_le_bytes([a, b, c, d, e, f, g, h]) % bound.max(1)
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entropy(..)")
    }
}

/// An HMAC-SHA256 under a 32 byte key.
pub(crate) fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    // A key of the block size is taken as it is: this constructor cannot fail, unlike the one from a slice.
    let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
    block[..32].copy_from_slice(key);
    Hmac::<Sha256>::new(&block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_stream_and_another_another() {
        let (a, b, c) = (Entropy::from_seed(7), Entropy::from_seed(7), Entropy::from_seed(8));
        let first = a.bytes();
        assert_eq!(first, b.bytes());
        assert_ne!(first, c.bytes());
        assert_ne!(first, a.bytes());
        assert!((0..100).all(|_| a.below(3) < 3));
    }

    #[test]
    fn the_mac_is_the_standard_one() {
        // RFC 4231, case 6 has a long key; a short key padded with zeros is the same key by definition of HMAC.
        let mut mac = keyed(&[0x0b; 32]);
        mac.update(b"Hi There");
        let ours: [u8; 32] = mac.finalize().into_bytes().into();
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&[0x0b; 32]).expect("any length will do");
        mac.update(b"Hi There");
        let theirs: [u8; 32] = mac.finalize().into_bytes().into();
        assert_eq!(ours, theirs);
    }
}
