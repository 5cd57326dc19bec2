//! What commands print: text for people, or one JSON document.

use serde_json::Value;
use std::borrow::Cow;
use std::io::{self, BufWriter, Stdout, Write};

/// Where commands print.
pub struct Output {
    json: bool,
    to: BufWriter<Stdout>,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json, to: BufWriter::new(io::stdout()) }
    }

    /// Whether JSON is wanted.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a line.
    pub fn line(&mut self, text: impl std::fmt::Display) -> io::Result<()> {
        writeln!(self.to, "{}", visible(&text.to_string()))
    }

    /// Prints a name and what it is, in two columns; nothing if it is nothing.
    pub fn entry(&mut self, name: &str, value: impl std::fmt::Display) -> io::Result<()> {
        let value = value.to_string();
        if value.is_empty() {
            return Ok(());
        }
        self.line(format_args!("{name:<22} {value}"))
    }

    /// Prints a JSON document.
    pub fn json(&mut self, value: &Value) -> io::Result<()> {
        write_json(&mut self.to, value)
    }

    /// Writes out what was printed.
    pub fn finish(&mut self) -> io::Result<()> {
        self.to.flush()
    }

    /// Where bytes go as they are.
    pub fn raw(&mut self) -> &mut impl Write {
        &mut self.to
    }
}

/// Writes a JSON document.
pub fn write_json(to: &mut impl Write, value: &Value) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *to, value)?;
    writeln!(to)
}

/// Tells people what went wrong. Nothing can be done if that fails, too.
pub fn tell_error(text: &str) {
    let _ = writeln!(io::stderr(), "speculators: {}", visible(text));
}

/// Tells people what may go wrong.
pub fn tell_warning(text: &str) {
    let _ = writeln!(io::stderr(), "speculators: warning: {}", visible(text));
}

/// A text without characters that would move about on a terminal: names of files that others have written may
/// have some.
fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let escaped = |character: char| match character.is_control() {
        true => character.escape_default().to_string(),
        false => character.into(),
    };
    text.chars().map(escaped).collect::<String>().into()
}

/// A JSON value as a person reads it.
pub fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// A number of bytes.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A number, its thousands apart.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}
