//! JSON to checked values and rows to JSON. Errors name the row and the column.

use super::{
    bodies::VALUE_BYTES,
    error::ApiError,
    fields,
    numbers::{self, Integers},
};
use crate::shown;
use axum::http::StatusCode;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value as Json};
use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt::{self, Write},
};
use twinshard_core::{
    command::OnConflict,
    id::{LogIndex, ShardId},
    request::{Consistency, NewServer, NewShard},
    schema::{Column, ColumnType, Schema},
    value::{Finite, Key, KeyRange, Row, StoredRow, TEXT_BYTES_MAX, Value},
};

/// The most values in one body, counting lists and objects: 100,000 rows of 18 columns. In memory each takes some hundred bytes, so that a
/// body of the smallest ones would become sixty times as large.
const VALUES_MAX: usize = 2_000_000;

/// What a text may have without counting for more than a value.
const SHORT_TEXT_BYTES: usize = 64;

/// Some programs begin a text with it (RFC 8259, section 8.1: it may be skipped).
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The body behind its mark.
pub(super) fn without_mark(body: &[u8]) -> &[u8] {
    body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body)
}

/// Reads a body; the number of values in it, with what long texts take beyond that of one value each. A name that stands twice in one object is refused: two servers or two values of a column would
/// silently become one.
pub(super) fn parse(body: &[u8]) -> Result<(Json, usize), ApiError> {
    let body = without_mark(body);
    let integers = RefCell::new(numbers::look(body, VALUES_MAX)?);
    let reading = Reading { left: Cell::new(Some(VALUES_MAX)), numbers: Cell::new(0), integers, text_bytes: Cell::new(0) };
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let json = Strict(&reading).deserialize(&mut deserializer).and_then(|json| deserializer.end().map(|()| json));
    match (json, reading.left.get()) {
        (Ok(json), Some(left)) => Ok((json, VALUES_MAX - left + reading.text_bytes.get() / VALUE_BYTES)),
        (Err(error), Some(_)) => Err(ApiError::new(StatusCode::BAD_REQUEST, "bad-json", format!("The body is not JSON: {error}"))),
        (_, None) => {
            let words = format!("The body has more than the {VALUES_MAX} values allowed, counting lists and objects");
            Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too-many-values", words))
        }
    }
}

/// A body that is being read.
struct Reading {
    /// How many values there may still be; none once there were too many.
    left: Cell<Option<usize>>,
    /// How many numbers were read.
    numbers: Cell<usize>,
    /// Those that are not what serde_json says.
    integers: RefCell<Integers>,
    /// The bytes of texts that are not short.
    text_bytes: Cell<usize>,
}

/// Reads one value.
#[derive(Clone, Copy)]
struct Strict<'a>(&'a Reading);

impl Strict<'_> {
    fn text(self, text: &str) {
        if text.len() > SHORT_TEXT_BYTES {
            self.0.text_bytes.set(self.0.text_bytes.get() + text.len());
        }
    }

    /// The next number of the body, if it is an integer that was not read as one.
    fn integer(self) -> Option<i64> {
        let number = self.0.numbers.replace(self.0.numbers.get() + 1);
        let mut integers = self.0.integers.borrow_mut();
        let (_, integer) = integers.pop_front_if(|(place, _)| *place == number)?;
        Some(integer)
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        let left = &self.0.left;
        left.set(left.get().and_then(|left| left.checked_sub(1)));
        if left.get().is_none() {
            return Err(D::Error::custom("there are too many values"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        self.integer();
        Ok(Json::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        self.integer();
        Ok(Json::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        match self.integer().or_else(|| numbers::integer(value)) {
            Some(integer) => Ok(Json::from(integer)),
            None => Ok(Number::from_f64(value).map_or(Json::Null, Json::Number)),
        }
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        self.text(value);
        Ok(Json::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        self.text(&value);
        Ok(Json::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Json::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Json, A::Error> {
        let mut map = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            let value = fields.next_value_seed(self)?;
            if map.contains_key(&name) {
                return Err(A::Error::custom(format_args!("'{}' stands twice in one object", short_text(&name))));
            }
            map.insert(name, value);
        }
        Ok(Json::Object(map))
    }
}

/// A field that must be there.
pub(super) fn field<'a>(json: &'a Json, name: &str) -> Result<&'a Json, ApiError> {
    match json.get(name) {
        Some(Json::Null) | None => Err(ApiError::invalid(format!("'{name}' is missing"))),
        Some(value) => Ok(value),
    }
}

/// A whole number, given as a number or as a string of one.
fn integer(value: &Json) -> Option<i64> {
    match value {
        Json::Number(number) => number.as_i64(),
        Json::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// A key: a whole number, also as a string (API.md).
pub(super) fn key(value: &Json, name: &str) -> Result<Key, ApiError> {
    integer(value).map(Key).ok_or_else(|| ApiError::invalid(format!("'{name}' must be a whole number of 64 bits, not {}", short(value))))
}

/// A count that must be there.
pub(super) fn count(json: &Json, name: &str) -> Result<u64, ApiError> {
    let value = field(json, name)?;
    integer(value)
        .and_then(|number| u64::try_from(number).ok())
        .ok_or_else(|| ApiError::invalid(format!("'{name}' must be a whole number of at least 0, not {}", short(value))))
}

/// A count that may be left out.
pub(super) fn optional_count(json: &Json, name: &str) -> Result<Option<u64>, ApiError> {
    if json.get(name).is_none_or(Json::is_null) { Ok(None) } else { count(json, name).map(Some) }
}

/// A flag that may be left out.
pub(super) fn flag(json: &Json, name: &str) -> Result<bool, ApiError> {
    match json.get(name) {
        None | Some(Json::Null) => Ok(false),
        Some(Json::Bool(flag)) => Ok(*flag),
        Some(other) => Err(ApiError::invalid(format!("'{name}' must be true or false, not {}", short(other)))),
    }
}

/// A name or a word, never a text of a row: none is as long as what an error repeats of it, and none has characters that act.
fn plain<'a>(text: &'a str, field: &str) -> Result<&'a str, ApiError> {
    let shown = shown::echo(text);
    if *shown == *text {
        return Ok(text);
    }
    Err(ApiError::invalid(format!("'{}' is no name in '{field}': it is too long or has control characters", shown)))
}

pub(super) fn text<'a>(value: &'a Json, name: &str) -> Result<&'a str, ApiError> {
    plain(value.as_str().ok_or_else(|| ApiError::invalid(format!("'{name}' must be a string, not {}", short(value))))?, name)
}

fn list<'a>(value: &'a Json, name: &str) -> Result<&'a [Json], ApiError> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| ApiError::invalid(format!("'{name}' must be a list, not {}", short(value))))
}

fn object<'a>(value: &'a Json, name: &str) -> Result<&'a Map<String, Json>, ApiError> {
    value.as_object().ok_or_else(|| ApiError::invalid(format!("'{name}' must be an object, not {}", short(value))))
}

/// A list of strings.
pub(super) fn texts(value: &Json, name: &str) -> Result<Vec<Box<str>>, ApiError> {
    list(value, name)?.iter().map(|item| text(item, name).map(Into::into)).collect()
}

/// A value as an error shows it.
fn short(value: &Json) -> String {
    match value {
        // A long one is not written out to be cut.
        Json::String(text) => short_text(&Json::from(shown::echo(text)).to_string()).into_owned(),
        Json::Array(items) if items.len() > 60 => format!("a list of {}", items.len()),
        Json::Object(fields) if fields.len() > 60 => format!("an object of {} fields", fields.len()),
        value => short_text(&value.to_string()).into_owned(),
    }
}

fn short_text(text: &str) -> Cow<'_, str> {
    if text.len() <= 60 {
        return shown::line(text);
    }
    let end = text.floor_char_boundary(57);
    format!("{}...", shown::line(&text[..end])).into()
}

/// `{"columns": [..], "dtypes": [..]}`.
pub(super) fn schema(value: &Json) -> Result<Schema, ApiError> {
    let names = texts(field(value, "columns")?, "columns")?;
    let dtypes = texts(field(value, "dtypes")?, "dtypes")?;
    if names.len() != dtypes.len() {
        return Err(ApiError::invalid(format!("{} columns but {} dtypes", names.len(), dtypes.len())));
    }
    let mut columns = Vec::new();
    for (name, dtype) in names.into_iter().zip(dtypes) {
        let dtype = ColumnType::parse(&dtype)
            .ok_or_else(|| ApiError::invalid(format!("'{dtype}' is no dtype: use Number, String, Float or Boolean")))?;
        columns.push(Column { name, dtype });
    }
    if let Some(column) = columns.iter().find(|column| fields::is_reserved(&column.name)) {
        let words = format!("'{}' is a field of requests and cannot be a column: give it another name", column.name);
        return Err(ApiError::invalid(words));
    }
    Schema::new(columns).map_err(|error| ApiError::invalid(error.to_string()))
}

/// Shards of /init and /add. The first key comes as `Stud_id_low` or as `<key>_low`.
pub(super) fn shards(value: &Json, key_name: &str) -> Result<Vec<NewShard>, ApiError> {
    let own = format!("{key_name}_low");
    let mut shards = Vec::new();
    for item in list(value, "shards")? {
        object(item, "a shard")?;
        let low = item.get(&own).or_else(|| item.get("Stud_id_low"));
        let low = low.ok_or_else(|| ApiError::invalid(format!("A shard lacks '{own}'")))?;
        let Key(low) = key(low, &own)?;
        let Key(size) = key(field(item, "Shard_size")?, "Shard_size")?;
        shards.push(NewShard { name: text(field(item, "Shard_id")?, "Shard_id")?.into(), low, size });
    }
    Ok(shards)
}

/// `{"Server0": ["sh1", ..], ..}`, in the order given.
pub(super) fn servers(value: &Json) -> Result<Vec<NewServer>, ApiError> {
    object(value, "servers")?
        .iter()
        .map(|(name, shards)| {
            let name = plain(name, "servers")?;
            let shards = if shards.is_null() { Vec::new() } else { texts(shards, name)? };
            Ok(NewServer { name: name.into(), shards })
        })
        .collect()
}

/// `replace`, `error` or `skip`.
pub(super) fn on_conflict(json: &Json) -> Result<Option<OnConflict>, ApiError> {
    match json.get("on_conflict") {
        None | Some(Json::Null) => Ok(None),
        Some(value) => match value.as_str() {
            Some("replace") => Ok(Some(OnConflict::Replace)),
            Some("error") => Ok(Some(OnConflict::Error)),
            Some("skip") => Ok(Some(OnConflict::Skip)),
            _ => Err(ApiError::invalid(format!("'on_conflict' must be replace, error or skip, not {}", short(value)))),
        },
    }
}

/// `{"low": .., "high": ..}`, or one key for a range of one.
pub(super) fn range(value: &Json, name: &str) -> Result<KeyRange, ApiError> {
    if let Json::Object(_) = value {
        let low = key(field(value, "low")?, "low")?;
        let high = key(field(value, "high")?, "high")?;
        if low > high {
            return Err(ApiError::invalid(format!("low ({low}) is greater than high ({high})")));
        }
        return Ok(KeyRange { low, high });
    }
    key(value, name).map(KeyRange::one)
}

/// What a read must have seen; `session` is what the client's session has.
pub(super) fn consistency(json: &Json, session: &BTreeMap<ShardId, LogIndex>) -> Result<Consistency, ApiError> {
    match json.get("consistency").filter(|value| !value.is_null()).map(|value| text(value, "consistency")).transpose()? {
        None | Some("linearizable") => Ok(Consistency::Linearizable),
        Some("stale") => Ok(Consistency::Stale),
        Some("session") => Ok(Consistency::Session(session.clone())),
        Some(other) => Err(ApiError::invalid(format!("'consistency' must be linearizable, session or stale, not '{other}'"))),
    }
}

/// Reads a session token: `shard:index` pairs.
pub(super) fn session_token(token: &str) -> Result<BTreeMap<ShardId, LogIndex>, ApiError> {
    let bad = || ApiError::new(StatusCode::BAD_REQUEST, "bad-session", "The Twinshard-Session header is not one that this cluster gave");
    let mut seen = BTreeMap::new();
    for pair in token.split(',').filter(|pair| !pair.is_empty()) {
        let (shard, index) = pair.split_once(':').ok_or_else(bad)?;
        let shard = ShardId(shard.trim().parse().map_err(|_| bad())?);
        seen.insert(shard, LogIndex(index.trim().parse().map_err(|_| bad())?));
    }
    Ok(seen)
}

/// Writes a session token.
pub(super) fn write_session_token(seen: &BTreeMap<ShardId, LogIndex>) -> String {
    let pairs: Vec<String> = seen.iter().map(|(shard, index)| format!("{}:{}", shard.0, index.0)).collect();
    pairs.join(",")
}

/// A value of a column, kept as it was given.
fn value(column: &Column, json: &Json) -> Result<Value, String> {
    let wrong = || Err(format!("must be a {}, not {}", column.dtype, short(json)));
    let value = match json {
        Json::Bool(value) => Value::Boolean(*value),
        Json::String(text) if text.len() > TEXT_BYTES_MAX => return Err(format!("is longer than {TEXT_BYTES_MAX} bytes")),
        Json::String(text) => Value::Text(text.as_str().into()),
        Json::Number(number) => match (number.as_i64(), number.as_f64().and_then(Finite::new)) {
            (Some(integer), _) => Value::Integer(integer),
            // As a decimal it would lose digits.
            (None, _) if number.is_u64() => return Err(format!("{number} is beyond 64 bits")),
            (None, Some(decimal)) => Value::Decimal(decimal),
            (None, None) => return wrong(),
        },
        Json::Null | Json::Array(_) | Json::Object(_) => return wrong(),
    };
    if column.dtype.admits(&value) { Ok(value) } else { wrong() }
}

/// One row of a write; `number` counts from 1 and names it in errors.
pub(super) fn row(schema: &Schema, json: &Json, number: usize) -> Result<Row, ApiError> {
    let bad = |words: String| ApiError::new(StatusCode::BAD_REQUEST, "bad-row", format!("Row {number}: {words}"));
    let fields = json.as_object().ok_or_else(|| bad(format!("must be an object, not {}", short(json))))?;
    let name = schema.key_name();
    let given = fields.get(name).ok_or_else(|| bad(format!("column '{name}' is missing")))?;
    let row_key = integer(given).ok_or_else(|| bad(format!("column '{name}' must be a whole number of 64 bits, not {}", short(given))))?;
    let mut values = Vec::with_capacity(schema.value_columns().len());
    for column in schema.value_columns() {
        let given = fields.get(&*column.name).ok_or_else(|| bad(format!("column '{}' is missing", column.name)))?;
        values.push(value(column, given).map_err(|words| bad(format!("column '{}' {words}", column.name)))?);
    }
    if fields.len() > schema.columns().len() {
        let unknown = fields.keys().find(|name| schema.columns().iter().all(|column| &*column.name != name.as_str()));
        return Err(bad(format!("column '{}' is not in the schema", shown::echo(unknown.map_or("?", String::as_str)))));
    }
    Ok(Row { key: Key(row_key), values })
}

/// The rows of a write.
pub(super) fn rows(schema: &Schema, json: &Json, rows_max: usize) -> Result<Vec<Row>, ApiError> {
    let items = list(field(json, "data")?, "data")?;
    if items.len() > rows_max {
        let words = format!("{} rows are more than the {rows_max} allowed in one request", items.len());
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too-many-rows", words));
    }
    items.iter().enumerate().map(|(place, item)| row(schema, item, place + 1)).collect()
}

/// The columns that an update sets, by place. The key may stand among them if it is the same.
pub(super) fn changes(schema: &Schema, key_of_row: Key, json: &Json) -> Result<Vec<(u16, Value)>, ApiError> {
    let bad = |words: String| ApiError::new(StatusCode::BAD_REQUEST, "bad-row", words);
    let mut set = BTreeMap::new();
    for (name, given) in object(json, "data")? {
        if name == schema.key_name() {
            if integer(given) != Some(key_of_row.0) {
                return Err(ApiError::verbatim("key-mismatch", "<ERROR> Student ID does not match!"));
            }
            continue;
        }
        let place = schema.value_columns().iter().position(|column| *column.name == **name);
        let Some((place, column)) = place.and_then(|place| Some((u16::try_from(place).ok()?, &schema.value_columns()[place]))) else {
            return Err(bad(format!("Column '{}' is not in the schema", shown::echo(name))));
        };
        set.insert(place, value(column, given).map_err(|words| bad(format!("Column '{name}' {words}")))?);
    }
    Ok(set.into_iter().collect())
}

/// Writes one row as JSON, exactly the schema's columns, and its version under a name that no column can have.
pub(super) fn write_row(schema: &Schema, stored: &StoredRow, versions: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{");
    name(schema.key_name(), out);
    out.extend_from_slice(stored.row.key.0.to_string().as_bytes());
    for (column, value) in schema.value_columns().iter().zip(&stored.row.values) {
        out.push(b',');
        name(&column.name, out);
        write_value(value, out);
    }
    if versions {
        let version = stored.version;
        out.extend_from_slice(format!(",\"$version\":\"{}.{}\"", version.epoch.0, version.index.0).as_bytes());
    }
    out.push(b'}');
}

/// A column's name needs no escaping.
fn name(name: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

pub(super) fn write_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Integer(value) => out.extend_from_slice(value.to_string().as_bytes()),
        Value::Boolean(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
        Value::Decimal(value) => out.extend_from_slice(Json::from(value.as_f64()).to_string().as_bytes()),
        Value::Text(text) => write_text(text, out),
    }
}

/// Text with what JSON wants escaped (RFC 8259, section 7).
pub(super) fn write_text(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for character in text.chars() {
        match character {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            control if u32::from(control) < 0x20 => {
                let mut escape = String::new();
                // Writing to a String cannot fail.
                let _ = write!(escape, "\\u{:04x}", u32::from(control));
                out.extend_from_slice(escape.as_bytes());
            }
            other => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests;
