//! Values, keys and rows. Plain data with a total order; never a NaN, never an infinity, never null.

use crate::id::Position;
use core::fmt;
use serde::{Deserialize, Serialize};

/// The longest text a column may hold, in bytes of UTF-8 (API.md: String up to 64 KiB).
pub const TEXT_BYTES_MAX: usize = 64 * 1024;

/// A finite decimal, kept as the bits of an IEEE 754 double so that it can be compared and hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Finite(u64);

impl Finite {
    /// The value, or `None` if it is a NaN or an infinity. Minus zero becomes zero.
    #[must_use]
    pub fn new(value: f64) -> Option<Self> {
        value.is_finite().then(|| Self((value + 0.0).to_bits()))
    }

    /// The value as a double.
    #[must_use]
    pub const fn as_f64(self) -> f64 {
        f64::from_bits(self.0)
    }
}

impl TryFrom<u64> for Finite {
    type Error = &'static str;

    fn try_from(bits: u64) -> Result<Self, Self::Error> {
        Self::new(f64::from_bits(bits)).ok_or("a decimal that is not finite")
    }
}

impl From<Finite> for u64 {
    fn from(value: Finite) -> Self {
        value.0
    }
}

/// The value of one column. It keeps the type it was given in: a number given for a String column stays a number (API.md).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Value {
    /// A 64-bit integer.
    Integer(i64),
    /// A finite decimal.
    Decimal(Finite),
    /// True or false.
    Boolean(bool),
    /// Text, at most [`TEXT_BYTES_MAX`] bytes.
    Text(Box<str>),
}

impl Value {
    /// About how much memory the value takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Integer(_) | Self::Decimal(_) | Self::Boolean(_) => 16,
            Self::Text(text) => 16 + text.len(),
        }
    }
}

/// The key of a row: the value of its first column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(pub i64);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Keys from `low` to `high`, both inclusive. Empty when `low > high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyRange {
    /// The first key.
    pub low: Key,
    /// The last key.
    pub high: Key,
}

impl KeyRange {
    /// Every key there is.
    pub const ALL: Self = Self { low: Key(i64::MIN), high: Key(i64::MAX) };

    /// The range of one key.
    #[must_use]
    pub const fn one(key: Key) -> Self {
        Self { low: key, high: key }
    }

    /// Whether the key is in it.
    #[must_use]
    pub fn contains(&self, key: Key) -> bool {
        self.low <= key && key <= self.high
    }

    /// Whether no key is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.low > self.high
    }

    /// The keys in both. May be empty.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self { low: self.low.max(other.low), high: self.high.min(other.high) }
    }
}

/// A row as a client sees it: the key and the other columns in schema order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Row {
    /// The value of the first column.
    pub key: Key,
    /// The values of the other columns.
    pub values: Vec<Value>,
}

impl Row {
    /// About how much memory the row takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        32 + self.values.iter().map(Value::size_bytes).sum::<usize>()
    }
}

/// A row as a replica stores it: with the position of the entry that wrote it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StoredRow {
    /// The position of the entry that wrote it.
    pub version: Position,
    /// The row.
    pub row: Row,
}
