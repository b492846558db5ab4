//! The schema: the columns of every row of the cluster. Checks names and types; knows nothing of JSON.

use crate::value::{TEXT_BYTES_MAX, Value};
use core::fmt;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The most columns a schema may have. A guess: MySQL allows 1,017 in one InnoDB table.
pub const COLUMNS_MAX: usize = 256;
/// The longest name of a column, server or shard, in characters (API.md).
pub const NAME_LENGTH_MAX: usize = 63;

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ColumnType {
    /// A 64-bit integer, or outside the key a finite decimal.
    Number,
    /// Text, or a number that comes back as it was given.
    String,
    /// A finite decimal or an integer.
    Float,
    /// True or false.
    Boolean,
}

impl ColumnType {
    /// From the name that clients use.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "Number" => Some(Self::Number),
            "String" => Some(Self::String),
            "Float" => Some(Self::Float),
            "Boolean" => Some(Self::Boolean),
            _ => None,
        }
    }

    /// Whether a column of this type, outside the key, may hold the value.
    #[must_use]
    pub fn admits(self, value: &Value) -> bool {
        match (self, value) {
            (Self::String, Value::Text(text)) => text.len() <= TEXT_BYTES_MAX,
            (Self::Number | Self::String | Self::Float, Value::Integer(_) | Value::Decimal(_)) => true,
            (Self::Boolean, Value::Boolean(_)) => true,
            (Self::Number | Self::Float | Self::Boolean, Value::Text(_))
            | (Self::Number | Self::String | Self::Float, Value::Boolean(_))
            | (Self::Boolean, Value::Integer(_) | Value::Decimal(_)) => false,
        }
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Number => "Number",
            Self::String => "String",
            Self::Float => "Float",
            Self::Boolean => "Boolean",
        })
    }
}

/// One column.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: Box<str>,
    /// Its type.
    pub dtype: ColumnType,
}

/// The columns of every row; the first is the key and a Number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Schema {
    columns: Vec<Column>,
}

/// Why a schema or a name is refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Error)]
pub enum SchemaError {
    /// No column at all.
    #[error("a schema needs at least one column, the key")]
    Empty,
    /// More than [`COLUMNS_MAX`].
    #[error("{0} columns are more than the {COLUMNS_MAX} allowed")]
    TooManyColumns(usize),
    /// The key is not a Number.
    #[error("the first column '{0}' is the key and must be a Number")]
    KeyNotNumber(Box<str>),
    /// A column name that is not `[A-Za-z_][A-Za-z0-9_]{0,62}`.
    #[error("'{0}' is not a column name: use letters, digits and '_', not starting with a digit, at most 63")]
    BadColumnName(Box<str>),
    /// Two columns of one name, ignoring case.
    #[error("column '{0}' stands twice (case is ignored)")]
    DuplicateColumn(Box<str>),
}

impl Schema {
    /// Checks the columns.
    ///
    /// # Errors
    /// See [`SchemaError`].
    pub fn new(columns: Vec<Column>) -> Result<Self, SchemaError> {
        let key = columns.first().ok_or(SchemaError::Empty)?;
        if columns.len() > COLUMNS_MAX {
            return Err(SchemaError::TooManyColumns(columns.len()));
        }
        if key.dtype != ColumnType::Number {
            return Err(SchemaError::KeyNotNumber(key.name.clone()));
        }
        let mut seen = std::collections::BTreeSet::new();
        for column in &columns {
            if !is_column_name(&column.name) {
                return Err(SchemaError::BadColumnName(column.name.clone()));
            }
            if !seen.insert(column.name.to_ascii_lowercase()) {
                return Err(SchemaError::DuplicateColumn(column.name.clone()));
            }
        }
        Ok(Self { columns })
    }

    /// All columns, the key first.
    #[must_use]
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The name of the key column.
    #[must_use]
    pub fn key_name(&self) -> &str {
        &self.columns[0].name
    }

    /// The columns that are not the key, in the order of [`crate::value::Row::values`].
    #[must_use]
    pub fn value_columns(&self) -> &[Column] {
        &self.columns[1..]
    }
}

/// `[A-Za-z_][A-Za-z0-9_]{0,62}` (API.md).
#[must_use]
pub fn is_column_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= NAME_LENGTH_MAX
        && bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// `[A-Za-z0-9_.-]{1,63}`, the names of servers and shards (API.md).
#[must_use]
pub fn is_name(name: &str) -> bool {
    (1..=NAME_LENGTH_MAX).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}
