//! Text of others, as it may be shown: to a terminal, in a log, in an answer. A control character could forge a line of a log or steer a
//! terminal; a text of megabytes would come back as megabytes.

use std::{borrow::Cow, fmt::Write, io};

/// The most characters of a text that an error repeats. A guess: longer than any good name.
pub const ECHO_CHARS_MAX: usize = 200;
/// The most characters of an error's whole message. A guess: some hundred keys.
const MESSAGE_CHARS_MAX: usize = 4_000;

/// Whether a character does something to a terminal, a log or the order of the text around it rather than standing for itself.
const fn acts(character: char) -> bool {
    // C0 and C1 controls; the line and paragraph separators; marks that reorder text.
    matches!(character, '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text on one line, with every character that acts written as JSON escapes it.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    if !text.contains(acts) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if acts(character) => {
                // Writing to a String cannot fail; all of them are in the basic plane.
                let _ = write!(out, "\\u{:04x}", u32::from(character));
            }
            _ => out.push(character),
        }
    }
    out.into()
}

/// The text on its own lines, for what the program itself wrote around the words of others.
#[must_use]
pub fn lines(text: &str) -> String {
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// What an error repeats of a client's text: its beginning, on one line.
#[must_use]
pub fn echo(text: &str) -> Cow<'_, str> {
    cut(text, ECHO_CHARS_MAX)
}

/// An error's message, whatever it was made of.
#[must_use]
pub fn message(text: &str) -> Cow<'_, str> {
    cut(text, MESSAGE_CHARS_MAX)
}

fn cut(text: &str, chars_max: usize) -> Cow<'_, str> {
    match text.char_indices().nth(chars_max) {
        None => line(text),
        Some((end, _)) => format!("{}...", line(&text[..end])).into(),
    }
}

/// A log whose every entry is one line, whatever stands in it. An entry is written at once, with its end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entries<W>(pub W);

impl<W: io::Write> io::Write for Entries<W> {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(entry);
        match text.strip_suffix('\n') {
            Some(body) => self.0.write_all(format!("{}\n", line(body)).as_bytes())?,
            None => self.0.write_all(line(&text).as_bytes())?,
        }
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn what_acts_is_escaped_and_what_is_long_is_cut() {
        for (text, shown) in [
            ("Server0 é \u{1F600} '\"\\", "Server0 é \u{1F600} '\"\\"),
            ("x\u{1b}[31m\n2026-12-01  INFO forged\r\u{7}", "x\\u001b[31m\\n2026-12-01  INFO forged\\r\\u0007"),
            ("\u{9b}31m\u{7f}\t\0", "\\u009b31m\\u007f\\t\\u0000"),
            ("a\u{202e}b\u{2028}c\u{2066}", "a\\u202eb\\u2028c\\u2066"),
        ] {
            assert_eq!(line(text), shown);
        }
        assert_eq!(echo(&"é".repeat(200)), "é".repeat(200));
        assert_eq!(echo(&"é".repeat(201)), "é".repeat(200) + "...");
        assert_eq!(message(&"a".repeat(32 << 20)).len(), 4_003);
    }

    #[test]
    fn an_entry_of_a_log_is_one_line_in_text_and_in_json() {
        let mut log = Vec::new();
        Entries(&mut log).write_all("INFO x\u{1b}[31m\nINFO forged\r\u{7}\n".as_bytes()).unwrap();
        Entries(&mut log).write_all("{\"message\":\"a\u{9b}\u{2028}\\n\"}\n".as_bytes()).unwrap();
        let log = String::from_utf8(log).unwrap();
        assert_eq!(log, "INFO x\\u001b[31m\\nINFO forged\\r\\u0007\n{\"message\":\"a\\u009b\\u2028\\n\"}\n");
    }
}
