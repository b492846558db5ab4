//! The numbers of a body as they are written. serde_json reads what has a fraction or an exponent, and whole numbers beyond 64 bits, as
//! doubles, which may not have that value: so numbers are looked at as text before. One with a whole value is an integer, however it is
//! written; one whose value would be changed is refused wherever it stands.

use super::error::ApiError;
use crate::shown;
use axum::http::StatusCode;
use std::collections::VecDeque;

/// What serde_json would read otherwise: the place of a number among all of the body, and the integer that it is.
pub(super) type Integers = VecDeque<(usize, i64)>;

/// Up to here every whole number is a double.
const DOUBLE_EXACT_MAX: u64 = 1 << 53;

/// The integer that a double is, if it is one that has no other value beside it.
pub(super) fn integer(value: f64) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "within what is exact")]
    (value.fract() == 0.0 && value.abs() <= DOUBLE_EXACT_MAX as f64).then_some(value as i64)
}

/// Looks at every number of a body that is JSON; a body with more than so many is refused by who reads it.
///
/// # Errors
/// The first whose value would be changed, with where it stands.
pub(super) fn look(body: &[u8], numbers_max: usize) -> Result<Integers, ApiError> {
    let mut integers = Integers::new();
    let (mut at, mut count) = (0, 0);
    let mut path = Path::default();
    while let Some(&byte) = body.get(at) {
        match byte {
            b'"' => {
                let end = string_end(body, at);
                path.string(&body[at..end]);
                at = end;
                continue;
            }
            b'-' | b'0'..=b'9' => {
                let digits = body[at..].iter().take_while(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')).count();
                // Only bytes of ASCII are in it.
                let text = std::str::from_utf8(&body[at..at + digits]).unwrap_or_default();
                match judge(text) {
                    Judged::AsRead => {}
                    // A smaller one is a double, too, and shows itself.
                    Judged::Integer(integer) if integer.unsigned_abs() > DOUBLE_EXACT_MAX => integers.push_back((count, integer)),
                    Judged::Integer(_) => {}
                    Judged::Changed(why) => return Err(path.refusal(text, why)),
                }
                if integers.len() > numbers_max {
                    break;
                }
                count += 1;
                at += digits;
                continue;
            }
            b'{' => path.enter(Step::Field(Vec::new())),
            b'[' => path.enter(Step::Item(0)),
            b'}' | b']' => path.leave(),
            b',' => path.next(),
            _ => {}
        }
        at += 1;
    }
    Ok(integers)
}

/// Behind the closing quotation mark.
fn string_end(body: &[u8], begin: usize) -> usize {
    let mut at = begin + 1;
    while let Some(&byte) = body.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    body.len()
}

#[derive(Debug, PartialEq)]
enum Judged {
    /// serde_json reads the value that is meant.
    AsRead,
    Integer(i64),
    Changed(&'static str),
}

const BEYOND: &str = "is beyond 64 bits";

fn judge(text: &str) -> Judged {
    if text != "-0" && !text.contains(['.', 'e', 'E']) {
        let whole = text.strip_prefix('-').unwrap_or(text);
        // What is no number at all, the parser says.
        let is_whole = !whole.is_empty() && whole.bytes().all(|byte| byte.is_ascii_digit());
        let is_kept = text.parse::<i64>().is_ok() || text.parse::<u64>().is_ok();
        return if is_kept || !is_whole { Judged::AsRead } else { Judged::Changed(BEYOND) };
    }
    let (digits, exponent) = significant(text);
    if digits.is_empty() {
        return Judged::Integer(0);
    }
    let is_negative = text.starts_with('-');
    // Nineteen digits are the most that an integer has.
    if let Some(zeros) = usize::try_from(exponent).ok().filter(|zeros| digits.len() + zeros <= 19) {
        let sign = if is_negative { "-" } else { "" };
        if let Ok(integer) = format!("{sign}{digits}{}", "0".repeat(zeros)).parse() {
            return Judged::Integer(integer);
        }
    }
    match text.parse::<f64>() {
        Ok(0.0) => Judged::Changed("is too small for a number of 64 bits"),
        Ok(value) if !value.is_finite() => Judged::Changed("is too large for a number of 64 bits"),
        // A whole number beyond 64 bits may be one of a Float, if it is that one to the last digit.
        Ok(value) if exponent >= 0 && significant(&format!("{value:e}")) != (digits, exponent) => Judged::Changed(BEYOND),
        Ok(_) | Err(_) => Judged::AsRead,
    }
}

/// The digits of a number without zeros before and after them, and the power of ten that they are multiples of.
fn significant(text: &str) -> (String, i64) {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits: String = whole.trim_start_matches('-').chars().chain(fraction.chars()).collect();
    // An exponent beyond what can be counted is beyond any value, too.
    let bound = if exponent.starts_with('-') { -1_000_000_000 } else { 1_000_000_000 };
    let exponent: i64 = exponent.trim_start_matches('+').parse::<i64>().unwrap_or(bound).clamp(-1_000_000_000, 1_000_000_000);
    let kept = digits.trim_end_matches('0');
    let exponent = exponent + (digits.len() - kept.len()) as i64 - fraction.len() as i64;
    (kept.trim_start_matches('0').to_owned(), exponent)
}

#[derive(Debug)]
enum Step {
    /// The name as it stands in the body.
    Field(Vec<u8>),
    Item(usize),
}

/// Where in the body.
#[derive(Debug, Default)]
struct Path {
    steps: Vec<Step>,
    /// Whether the next string of this object is a name.
    expects_name: bool,
}

impl Path {
    fn enter(&mut self, step: Step) {
        self.expects_name = matches!(step, Step::Field(_));
        self.steps.push(step);
    }

    fn leave(&mut self) {
        self.steps.pop();
        self.expects_name = false;
    }

    fn next(&mut self) {
        match self.steps.last_mut() {
            Some(Step::Item(number)) => *number += 1,
            Some(Step::Field(_)) => self.expects_name = true,
            None => {}
        }
    }

    fn string(&mut self, quoted: &[u8]) {
        if let Some(Step::Field(name)) = self.steps.last_mut()
            && std::mem::take(&mut self.expects_name)
        {
            name.clear();
            name.extend_from_slice(quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default());
        }
    }

    fn refusal(&self, number: &str, why: &str) -> ApiError {
        let number = shown::echo(number);
        let name = |name: &[u8]| shown::echo(&String::from_utf8_lossy(name)).into_owned();
        let (code, words) = match &self.steps[..] {
            [Step::Field(data), Step::Item(row), Step::Field(column)] if data == b"data" => {
                ("bad-row", format!("Row {}: column '{}' {number} {why}", row + 1, name(column)))
            }
            [Step::Field(data), Step::Field(column)] if data == b"data" => ("bad-row", format!("Column '{}' {number} {why}", name(column))),
            steps => {
                let nearest = steps.iter().rev().find_map(|step| if let Step::Field(field) = step { Some(name(field)) } else { None });
                ("invalid-request", nearest.map_or_else(|| format!("{number} {why}"), |field| format!("'{field}': {number} {why}")))
            }
        };
        ApiError::new(StatusCode::BAD_REQUEST, code, words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_values_are_integers_and_changed_ones_are_refused() {
        let small = Judged::Changed("is too small for a number of 64 bits");
        let large = Judged::Changed("is too large for a number of 64 bits");
        for (text, judged) in [
            ("2255", Judged::AsRead),
            ("-9223372036854775808", Judged::AsRead),
            ("2255.0", Judged::Integer(2255)),
            ("1e3", Judged::Integer(1000)),
            ("1E+3", Judged::Integer(1000)),
            ("-0", Judged::Integer(0)),
            ("-0.0", Judged::Integer(0)),
            ("0e999999999999999999999", Judged::Integer(0)),
            ("12.50e1", Judged::Integer(125)),
            ("1000e-3", Judged::Integer(1)),
            ("9007199254740993.0", Judged::Integer(9_007_199_254_740_993)),
            ("9.223372036854775807e18", Judged::Integer(i64::MAX)),
            ("-9223372036854775808.0", Judged::Integer(i64::MIN)),
            ("1.5", Judged::AsRead),
            ("0.1", Judged::AsRead),
            ("5e-324", Judged::AsRead),
            ("1.7976931348623157e308", Judged::AsRead),
            ("1e19", Judged::AsRead),
            ("18446744073709551615", Judged::AsRead),
            ("18446744073709551616", Judged::Changed(BEYOND)),
            ("-9223372036854775809", Judged::Changed(BEYOND)),
            ("123456789012345678901234567890", Judged::Changed(BEYOND)),
            ("18446744073709551617.0", Judged::Changed(BEYOND)),
            ("1e-400", small),
            ("1e400", large),
            ("1e-99999999999999999999", Judged::Changed("is too small for a number of 64 bits")),
        ] {
            assert_eq!(judge(text), judged, "{text}");
        }
    }

    #[test]
    fn a_refusal_says_where_the_number_stands() {
        let beyond = "18446744073709551616";
        for (body, words) in [
            (
                r#"{"data":[{"id":1,"a":"5, [{"},{"id":2,"a":18446744073709551616}]}"#,
                format!("Row 2: column 'a' {beyond} is beyond 64 bits"),
            ),
            (r#"{"id":1,"data":{"b\"":[1],"a":18446744073709551616}}"#, format!("Column 'a' {beyond} is beyond 64 bits")),
            (r#"{"id":18446744073709551616}"#, format!("'id': {beyond} is beyond 64 bits")),
            (r#"{"id":{"low":1,"high":18446744073709551616}}"#, format!("'high': {beyond} is beyond 64 bits")),
            (r#"{"followers":[[1],[{"x":1},18446744073709551616]]}"#, format!("'followers': {beyond} is beyond 64 bits")),
        ] {
            assert_eq!(look(body.as_bytes(), 100).unwrap_err().body()["message"], format!("<Error> {words}"), "{body}");
        }
        let large = br#"{"a":"1e3","b":[1,2.0,{"c":9007199254740993.0,"d":0.5}],"e":9e18}"#;
        assert_eq!(look(large, 100).unwrap(), [(2, 9_007_199_254_740_993), (4, 9_000_000_000_000_000_000)]);
    }
}
