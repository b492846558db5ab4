//! How rows lie in a table: the user's columns as real columns, and beside them what SQL cannot say of a row. Never decides what is read.

use crate::mysql::{
    connection::{Statement, Trouble},
    quoted,
};
use crate::rows::sealed;
use sqlx::{Row as _, mysql::MySqlRow};
use twinshard_core::{
    id::{Epoch, LogIndex, Position, ReplicaId},
    schema::{ColumnType, Schema},
    storage::LostReason,
    value::{Finite, Key, Row, StoredRow, Value},
};

/// The most columns that are real; values of those after them stand in `exact$`. A row of InnoDB holds about 8,000 bytes, and 40 of
/// every text in it.
const REAL_COLUMNS_MAX: usize = 180;
/// The most parameters of one statement.
const PARAMETERS_MAX: usize = 65_535;
/// The table of the rows.
pub(super) const ROWS: &str = "shard_rows";
/// The columns that are ours. No user's column has a '$'.
const OURS: [&str; 5] = ["epoch$", "index$", "types$", "exact$", "sum$"];

/// Names that InnoDB keeps to itself, in any case.
const INNODBS: [&str; 4] = ["DB_ROW_ID", "DB_TRX_ID", "DB_ROLL_PTR", "FTS_DOC_ID"];

/// A user's column as it stands in a statement.
fn column(name: &str) -> String {
    if INNODBS.iter().any(|taken| taken.eq_ignore_ascii_case(name)) { quoted(&format!("{name}$")) } else { quoted(name) }
}

/// Where a replica's rows are kept.
#[derive(Debug)]
pub(super) struct Place {
    /// The name of the database.
    pub(super) database: String,
    schema: Schema,
}

/// What stands in a column that is there and holds no value of its own.
fn nothing(statement: Statement, dtype: ColumnType) -> Statement {
    match dtype {
        ColumnType::Number | ColumnType::Float => statement.bind(0.0_f64),
        ColumnType::String => statement.bind(""),
        ColumnType::Boolean => statement.bind(false),
    }
}

impl Place {
    pub(super) const fn new(database: String, schema: Schema) -> Self {
        Self { database, schema }
    }

    pub(super) const fn schema(&self) -> &Schema {
        &self.schema
    }

    /// A table of it.
    pub(super) fn table(&self, table: &str) -> String {
        format!("{}.{}", quoted(&self.database), quoted(table))
    }

    pub(super) fn key(&self) -> String {
        column(self.schema.key_name())
    }

    /// The real columns that are not the key.
    fn real(&self) -> impl Iterator<Item = (&str, ColumnType)> {
        self.schema.value_columns().iter().take(REAL_COLUMNS_MAX).map(|column| (&*column.name, column.dtype))
    }

    /// All columns in order: the key, the user's, ours.
    fn columns(&self) -> Vec<String> {
        let ours = OURS.iter().map(|name| quoted(name));
        std::iter::once(self.key()).chain(self.real().map(|(name, _)| column(name))).chain(ours).collect()
    }

    /// The statement that makes the table.
    pub(super) fn create_rows(&self) -> String {
        let mut columns = vec![format!("{} BIGINT NOT NULL PRIMARY KEY", self.key())];
        for (name, dtype) in self.real() {
            let kind = match dtype {
                ColumnType::Number | ColumnType::Float => "DOUBLE",
                ColumnType::String => "MEDIUMTEXT",
                ColumnType::Boolean => "BOOLEAN",
            };
            columns.push(format!("{} {kind} NOT NULL", column(name)));
        }
        for (name, kind) in OURS.iter().zip([
            "BIGINT UNSIGNED NOT NULL",
            "BIGINT UNSIGNED NOT NULL",
            "VARCHAR(256) CHARACTER SET ascii NOT NULL",
            "LONGBLOB NULL",
            "INT UNSIGNED NOT NULL",
        ]) {
            columns.push(format!("{} {kind}", quoted(name)));
        }
        let table = self.table(ROWS);
        format!(
            "CREATE TABLE {table} ({}) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
            columns.join(", ")
        )
    }

    /// The beginning of every read of rows.
    pub(super) fn select(&self) -> String {
        format!("SELECT {} FROM {}", self.columns().join(", "), self.table(ROWS))
    }

    /// The most rows that one statement may write.
    pub(super) fn rows_max(&self) -> usize {
        PARAMETERS_MAX / self.columns().len()
    }

    /// About how many bytes the row takes in a statement.
    pub(super) fn row_bytes(&self, row: &StoredRow) -> usize {
        row.row.size_bytes() + 64
    }

    /// Writes so many rows, over those with the same keys.
    pub(super) fn upsert(&self, row_count: usize) -> String {
        let columns = self.columns();
        let values = format!("({})", vec!["?"; columns.len()].join(", "));
        let set: Vec<String> = columns.iter().skip(1).map(|column| format!("{column} = VALUES({column})")).collect();
        format!(
            "INSERT INTO {} ({}) VALUES {} ON DUPLICATE KEY UPDATE {}",
            self.table(ROWS),
            columns.join(", "),
            vec![values; row_count].join(", "),
            set.join(", ")
        )
    }

    /// Binds one row of [`Self::upsert`]. Every row can be written, whatever its values: what its column cannot say stands in `exact$`.
    pub(super) fn bind(&self, mut statement: Statement, replica: ReplicaId, row: &StoredRow) -> Statement {
        let mut types = String::with_capacity(row.row.values.len());
        let mut exact: Vec<(usize, &Value)> = Vec::new();
        statement = statement.bind(row.row.key.0);
        let mut real = self.real();
        for (index, value) in row.row.values.iter().enumerate() {
            let dtype = real.next().map(|(_, dtype)| dtype);
            let kind = match (dtype, value) {
                (Some(ColumnType::Number | ColumnType::Float), Value::Integer(value)) => {
                    #[allow(clippy::cast_precision_loss, reason = "what is lost is told")]
                    let near = *value as f64;
                    statement = statement.bind(near);
                    if integer(near) == Some(*value) { 'i' } else { 'x' }
                }
                (Some(ColumnType::Number | ColumnType::Float), Value::Decimal(value)) => {
                    statement = statement.bind(value.as_f64());
                    'd'
                }
                (Some(ColumnType::String), Value::Text(text)) => {
                    statement = statement.bind(text.to_string());
                    't'
                }
                (Some(ColumnType::String), Value::Integer(value)) => {
                    statement = statement.bind(value.to_string());
                    'i'
                }
                (Some(ColumnType::String), Value::Decimal(value)) => {
                    statement = statement.bind(format!("{:?}", value.as_f64()));
                    'd'
                }
                (Some(ColumnType::Boolean), Value::Boolean(value)) => {
                    statement = statement.bind(*value);
                    'b'
                }
                (Some(dtype), _) => {
                    statement = nothing(statement, dtype);
                    'x'
                }
                (None, _) => 'x',
            };
            if kind == 'x' {
                exact.push((index, value));
            }
            types.push(kind);
        }
        for (_, dtype) in real {
            statement = nothing(statement, dtype);
        }
        let exact = (!exact.is_empty()).then(|| postcard::to_stdvec(&exact).unwrap_or_default());
        let sum = sealed::sum(&sealed::row_place(replica, row.row.key), row);
        statement.bind(row.version.epoch.0).bind(row.version.index.0).bind(types).bind(exact).bind(sum)
    }

    /// The row as it was bound, if it verifies.
    pub(super) fn row(&self, replica: ReplicaId, found: &MySqlRow) -> Result<StoredRow, Trouble> {
        let row = self.read(found)?.ok_or(Trouble::Lost(LostReason::RowsDamaged))?;
        let sum: u32 = found.try_get_unchecked(found.len() - 1)?;
        if sealed::sum(&sealed::row_place(replica, row.row.key), &row) != sum {
            return Err(Trouble::Lost(LostReason::RowsDamaged));
        }
        Ok(row)
    }

    fn read(&self, found: &MySqlRow) -> Result<Option<StoredRow>, sqlx::Error> {
        let ours = 1 + self.real().count();
        let key: i64 = found.try_get_unchecked(0)?;
        let epoch: u64 = found.try_get_unchecked(ours)?;
        let index: u64 = found.try_get_unchecked(ours + 1)?;
        let types: String = found.try_get_unchecked(ours + 2)?;
        let exact: Option<Vec<u8>> = found.try_get_unchecked(ours + 3)?;
        let mut exact = match exact.as_deref().map(postcard::from_bytes::<Vec<(usize, Value)>>) {
            None => Vec::new(),
            Some(Ok(exact)) => exact,
            Some(Err(_)) => return Ok(None),
        }
        .into_iter();
        let mut values = Vec::with_capacity(types.len());
        let mut real = self.real();
        for (index, kind) in types.chars().enumerate() {
            let dtype = real.next().map(|(_, dtype)| dtype);
            let value = match (kind, dtype) {
                ('x', _) => exact.next().filter(|(at, _)| *at == index).map(|(_, value)| value),
                (_, Some(ColumnType::Number | ColumnType::Float)) => {
                    let value: f64 = found.try_get_unchecked(1 + index)?;
                    match kind {
                        'i' => integer(value).map(Value::Integer),
                        'd' => Finite::new(value).map(Value::Decimal),
                        _ => None,
                    }
                }
                (_, Some(ColumnType::String)) => {
                    let text: String = found.try_get_unchecked(1 + index)?;
                    match kind {
                        't' => Some(Value::Text(text.into())),
                        'i' => text.parse().ok().map(Value::Integer),
                        'd' => text.parse().ok().and_then(Finite::new).map(Value::Decimal),
                        _ => None,
                    }
                }
                ('b', Some(ColumnType::Boolean)) => Some(Value::Boolean(found.try_get_unchecked(1 + index)?)),
                _ => None,
            };
            let Some(value) = value else { return Ok(None) };
            values.push(value);
        }
        let version = Position { epoch: Epoch(epoch), index: LogIndex(index) };
        Ok(Some(StoredRow { version, row: Row { key: Key(key), values } }))
    }
}

/// The integer that a double is, if it is one of 64 bits and no other integer would have become the same double.
fn integer(value: f64) -> Option<i64> {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    #[allow(clippy::cast_possible_truncation, reason = "it is whole and small enough")]
    (value.fract() == 0.0 && value.abs() < EXACT_MAX).then_some(value as i64)
}
