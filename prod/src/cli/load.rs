//! What the load commands share: keys and rows drawn for a cluster as it is, and the proof that every acknowledged row is there.

use super::{Failure, client::Client};
use http::Method;
use serde::Serialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};

/// How many rows one page of the final read asks for.
const READ_BACK_ROWS: u64 = 10_000;

/// A write of a key: when it was called and when acknowledged (`None`: outcome unknown), in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct WriteRecord {
    /// Its key.
    pub key: i64,
    /// The number that it wrote; no other write has it.
    pub value: u64,
    /// When it was called, in microseconds.
    pub called: u64,
    /// When it was acknowledged; `None` if its outcome is unknown.
    pub returned: Option<u64>,
}

/// What reading everything back found.
#[derive(Debug, Default, Serialize)]
pub struct ReadBack {
    /// Keys that an acknowledged write wrote.
    pub acknowledged_keys: u64,
    /// Of these, not there.
    pub missing: u64,
    /// Of these, there with a value that a later acknowledged write had replaced, or that nobody wrote.
    pub wrong: u64,
}

/// The cluster as the run uses it.
#[derive(Debug)]
pub struct Plan {
    /// The name of the key column.
    pub key_name: String,
    columns: Vec<(String, String)>,
    ranges: Vec<(i64, i64)>,
    key_count: u64,
}

impl Plan {
    /// From the answer to /status.
    ///
    /// # Errors
    /// If the cluster has no shard, or no column to tell writes apart by.
    pub fn new(status: &Value) -> Result<Self, Failure> {
        let bad = || Failure::new("/status does not look like a Twinshard balancer's");
        let texts =
            |value: &Value| -> Option<Vec<String>> { value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect() };
        let names = texts(&status["schema"]["columns"]).ok_or_else(bad)?;
        let dtypes = texts(&status["schema"]["dtypes"]).ok_or_else(bad)?;
        let mut columns: Vec<_> = names.into_iter().zip(dtypes).collect();
        if columns.len() < 2 {
            return Err(Failure::new("the cluster's rows have no column besides the key: nothing to tell writes apart by"));
        }
        let (key_name, _) = columns.remove(0);
        if !matches!(columns[0].1.as_str(), "String" | "Number" | "Float") {
            return Err(Failure::new("the cluster's first column besides the key cannot hold a number to tell writes apart by"));
        }
        let mut ranges = Vec::new();
        let mut key_count = 0_u64;
        for shard in status["shards"].as_array().ok_or_else(bad)? {
            let low = shard.get("Stud_id_low").and_then(Value::as_i64).ok_or_else(bad)?;
            let size = shard["Shard_size"].as_i64().ok_or_else(bad)?;
            ranges.push((low, size));
            key_count += size.unsigned_abs();
        }
        if key_count == 0 {
            return Err(Failure::new("the cluster has no shards"));
        }
        Ok(Self { key_name, columns, ranges, key_count })
    }

    /// A key, uniform over all shards.
    #[must_use]
    pub fn key(&self, random: u64) -> i64 {
        let mut place = (random % self.key_count).cast_signed();
        for (low, size) in &self.ranges {
            if place < *size {
                return low + place;
            }
            place -= size;
        }
        unreachable!("the place is below the sum of the sizes")
    }

    /// A row with that key; the number tells it apart.
    #[must_use]
    pub fn row(&self, key: i64, number: u64) -> Value {
        let mut row = serde_json::Map::new();
        row.insert(self.key_name.clone(), json!(key));
        for (place, (name, dtype)) in self.columns.iter().enumerate() {
            let value = match (place, dtype.as_str()) {
                (0, "String") => json!(number.to_string()),
                (_, "Boolean") => json!(number.is_multiple_of(2)),
                (_, "String") => json!((number % 100).to_string()),
                (0, _) => json!(number),
                (_, _) => json!(number % 100),
            };
            row.insert(name.clone(), value);
        }
        Value::Object(row)
    }

    /// The number that [`Self::row`] put in.
    #[must_use]
    pub fn number(&self, row: &Value) -> Option<u64> {
        match &row[&self.columns[0].0] {
            Value::String(text) => text.parse().ok(),
            other => other.as_u64(),
        }
    }
}

/// Reads every row of the cluster and compares with what was written.
///
/// # Errors
/// If the cluster cannot be read.
pub async fn read_back(client: &mut Client, plan: &Plan, records: &[WriteRecord]) -> Result<ReadBack, Failure> {
    let mut found = BTreeMap::new();
    for (low, size) in &plan.ranges {
        let mut cursor: Option<Value> = None;
        loop {
            let mut request = serde_json::Map::new();
            request.insert(plan.key_name.clone(), json!({ "low": low, "high": low + size - 1 }));
            request.insert("limit".to_owned(), json!(READ_BACK_ROWS));
            if let Some(cursor) = cursor.take() {
                request.insert("cursor".to_owned(), cursor);
            }
            let (code, answer) = client.json(Method::POST, "/read", Some(&Value::Object(request))).await?;
            if !code.is_success() {
                return Err(Failure::new(format!("reading back: /read answered {code}: {answer}")));
            }
            for row in answer["data"].as_array().into_iter().flatten() {
                if let Some(key) = row[&plan.key_name].as_i64() {
                    found.insert(key, plan.number(row));
                }
            }
            match answer.get("next_cursor") {
                Some(next) if !next.is_null() => cursor = Some(next.clone()),
                _ => break,
            }
        }
    }
    let mut by_key: BTreeMap<i64, Vec<WriteRecord>> = BTreeMap::new();
    for record in records {
        by_key.entry(record.key).or_default().push(*record);
    }
    let mut result = ReadBack::default();
    for (key, writes) in by_key {
        // The last write may be any that no acknowledged write was called after the return of.
        let latest_call = writes.iter().filter(|write| write.returned.is_some()).map(|write| write.called).max();
        let Some(latest_call) = latest_call else { continue };
        result.acknowledged_keys += 1;
        match found.get(&key) {
            None => result.missing += 1,
            Some(value) => {
                let fine = writes
                    .iter()
                    .filter(|write| write.returned.is_none_or(|returned| returned >= latest_call))
                    .any(|write| Some(write.value) == *value);
                result.wrong += u64::from(!fine);
            }
        }
    }
    Ok(result)
}

/// In whole microseconds.
#[must_use]
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
