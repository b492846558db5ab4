//! The trace of a run: a running hash over every event, the same on every machine and in every build profile, and on request a text.
//! Never changes the run.

use crate::keyed::fold;
use core::fmt;
use twinshard_core::time::Instant;

/// A trace that grows.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    hash: u64,
    events: u64,
    text: Option<Vec<String>>,
}

impl Trace {
    /// An empty trace, with text or without.
    #[must_use]
    pub fn new(with_text: bool) -> Self {
        Self { hash: 0, events: 0, text: with_text.then(Vec::new) }
    }

    /// Adds an event: when, where, and what as two words.
    pub fn event(&mut self, at: Instant, place: u64, what: u64, detail: u64) {
        self.events += 1;
        self.hash = fold(fold(fold(fold(self.hash, at.0), place), what), detail);
    }

    /// Adds a line of text if there is text; the closure is not called otherwise.
    pub fn say(&mut self, at: Instant, line: impl FnOnce() -> String) {
        if let Some(text) = &mut self.text {
            text.push(format!("{at} {}", line()));
        }
    }

    /// Whether there is text.
    #[must_use]
    pub const fn has_text(&self) -> bool {
        self.text.is_some()
    }

    /// The hash so far.
    #[must_use]
    pub const fn hash(&self) -> TraceHash {
        TraceHash(self.hash)
    }

    /// How many events there were.
    #[must_use]
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// The text so far.
    #[must_use]
    pub fn text(&self) -> &[String] {
        self.text.as_deref().unwrap_or_default()
    }
}

/// The hash of a whole trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceHash(pub u64);

impl fmt::Display for TraceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A hasher that gives the same on every machine, whatever its word size and byte order.
#[derive(Clone, Copy, Debug, Default)]
pub struct StableHasher(u64);

impl core::hash::Hasher for StableHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..piece.len()].copy_from_slice(piece);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = fold(self.0, value);
    }

    fn write_u128(&mut self, value: u128) {
        self.write_u64(value as u64);
        self.write_u64((value >> 64) as u64);
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_i64(&mut self, value: i64) {
        self.write_u64(value.cast_unsigned());
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64((value as i64).cast_unsigned());
    }
}
