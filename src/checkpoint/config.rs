//! Reading settings from `config.json`: typed, with the path of a setting in every error, and
//! with a record of what was assumed and of what nobody asked for.

use super::report::Report;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::Path;

/// Settings that say nothing about how to run a speculator: Python bookkeeping, training,
/// tokenizer ids, and the element type, which the weight files know better.
const WITHOUT_EFFECT: &[&str] = &[
    "_name_or_path",
    "algorithm",
    "architectures",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "dtype",
    "embed_requires_grad",
    "eos_token_id",
    "has_no_defaults_at_init",
    "initializer_range",
    "pad_token_id",
    "pretraining_tp",
    "speculators_version",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

/// One JSON object of a configuration.
#[derive(Debug)]
pub(super) struct Settings<'a> {
    file: &'a Path,
    /// What stands before a key in messages: empty, or the path of the object and a dot.
    prefix: String,
    object: &'a Map<String, Value>,
    asked: BTreeSet<String>,
    unneeded: Vec<&'static str>,
    assumed: Vec<(String, Value)>,
}

impl<'a> Settings<'a> {
    /// The settings of a whole file.
    pub(super) fn of_file(file: &'a Path, object: &'a Map<String, Value>) -> Self {
        let (prefix, asked, unneeded, assumed) = Default::default();
        Self { file, prefix, object, asked, unneeded, assumed }
    }

    /// The object under `key`, if there is one.
    pub(super) fn section(&mut self, key: &str) -> Result<Option<Self>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Self::at(self, &self.path_of(key), object))),
            Some(_) => Err(self.unexpected(key, "an object")),
        }
    }

    /// The settings `object` of the same file as `outer`, at the path `path`.
    pub(super) fn at(outer: &Self, path: &str, object: &'a Map<String, Value>) -> Self {
        let prefix = format!("{path}.");
        Self { prefix, ..Self::of_file(outer.file, object) }
    }

    /// All of them.
    pub(super) fn all(&self) -> &'a Map<String, Value> {
        self.object
    }

    /// The object under `key`, if there is one, as it is.
    pub(super) fn object(&self, key: &str) -> Option<&'a Map<String, Value>> {
        self.object.get(key)?.as_object()
    }

    /// Whether `key` is there and not null.
    pub(super) fn has(&mut self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Whether `key` is there, even if it is null.
    pub(super) fn mentions(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    /// A whole number in `range`, however it is spelled: `3`, `3.0` or `"3"`.
    pub(super) fn integer(
        &mut self,
        key: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = as_integer(value)
            .and_then(|number| usize::try_from(number).ok())
            .filter(|number| range.contains(number));
        let expected = || format!("an integer from {} to {}", range.start(), range.end());
        number.map(Some).ok_or_else(|| self.unexpected(key, &expected()))
    }

    /// As [`Self::integer`]; `default` where the setting is missing, which is recorded.
    pub(super) fn integer_or(
        &mut self,
        key: &str,
        range: RangeInclusive<usize>,
        default: usize,
    ) -> Result<usize> {
        let value = self.integer(key, range)?;
        Ok(value.unwrap_or_else(|| self.assume(key, default)))
    }

    /// A finite number.
    pub(super) fn number(&mut self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        as_number(value).map(Some).ok_or_else(|| self.unexpected(key, "a finite number"))
    }

    /// A finite number above zero.
    pub(super) fn positive(&mut self, key: &str) -> Result<Option<f64>> {
        match self.number(key)? {
            Some(number) if number <= 0.0 => Err(self.unexpected(key, "a number above 0")),
            number => Ok(number),
        }
    }

    /// As [`Self::positive`]; `default` where the setting is missing, which is recorded.
    pub(super) fn positive_or(&mut self, key: &str, default: f64) -> Result<f64> {
        let value = self.positive(key)?;
        Ok(value.unwrap_or_else(|| self.assume(key, default)))
    }

    /// True or false.
    pub(super) fn flag(&mut self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let flag = match value {
            Value::Bool(flag) => Some(*flag),
            Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
            Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
            other => match as_integer(other) {
                Some(0) => Some(false),
                Some(1) => Some(true),
                _ => None,
            },
        };
        flag.map(Some).ok_or_else(|| self.unexpected(key, "true or false"))
    }

    /// As [`Self::flag`]; `default` where the setting is missing, which is recorded.
    pub(super) fn flag_or(&mut self, key: &str, default: bool) -> Result<bool> {
        let value = self.flag(key)?;
        Ok(value.unwrap_or_else(|| self.assume(key, default)))
    }

    /// As [`Self::flag`], for a flag whose tensors may tell otherwise: what the file says decides;
    /// where it says nothing, whether the tensors are `stored` does.
    pub(super) fn flag_or_stored(
        &mut self,
        key: &str,
        stored: bool,
        report: &mut Report,
    ) -> Result<bool> {
        let flag = self.flag(key)?;
        let path = self.path_of(key);
        match flag {
            None if stored => report.correct(format!("{path} is not set, its tensors are: used")),
            Some(false) if stored => {
                report.correct(format!("{path} is false: its tensors are not used"));
            }
            _ => {}
        }
        Ok(flag.unwrap_or_else(|| self.assume(key, stored)))
    }

    /// A string.
    pub(super) fn text(&mut self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.unexpected(key, "a string")),
        }
    }

    /// A list.
    pub(super) fn list(&mut self, key: &str) -> Result<Option<&'a [Value]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(_) => Err(self.unexpected(key, "a list")),
        }
    }

    /// Records that the setting `key` is missing and that `value` is used instead.
    pub(super) fn assume<T: Into<Value> + Clone>(&mut self, key: &str, value: T) -> T {
        self.assumed.push((self.path_of(key), value.clone().into()));
        value
    }

    /// Records that these settings, where they are there and nobody asks for them, say nothing of how to
    /// run a speculator of this kind.
    pub(super) fn unneeded(&mut self, keys: &[&'static str]) {
        self.unneeded.extend(keys);
    }

    /// An error about the value of `key`.
    pub(super) fn unexpected(&self, key: &str, expected: &str) -> Error {
        let found = self.object.get(key).map_or_else(|| "nothing".into(), found);
        self.wrong(key, format_args!("expected {expected}, found {found}"))
    }

    /// An error about the setting `key`.
    pub(super) fn wrong(&self, key: &str, text: impl std::fmt::Display) -> Error {
        Error::format(self.file, format!("{}: {text}", self.path_of(key)))
    }

    /// The full path of `key` inside the file.
    pub(super) fn path_of(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The file that the settings come from.
    pub(super) fn file(&self) -> &'a Path {
        self.file
    }

    /// Hands over what was assumed and what nobody asked for.
    pub(super) fn finish(self, report: &mut Report) {
        report.assumed_defaults.extend(self.assumed);
        for (key, value) in self.object {
            let name = key.as_str();
            if self.asked.contains(name) {
                continue;
            }
            let is_known = WITHOUT_EFFECT.contains(&name) || self.unneeded.contains(&name);
            let list = match is_known {
                true if value.is_null() => continue,
                true => &mut report.unused_settings,
                false => &mut report.unknown_settings,
            };
            list.insert(format!("{}{key}", self.prefix), value.clone());
        }
    }

    /// A missing setting and null are the same to every reader of this format.
    fn get(&mut self, key: &str) -> Option<&'a Value> {
        let (key, value) = self.object.get_key_value(key)?;
        self.asked.insert(key.clone());
        (!value.is_null()).then_some(value)
    }
}

/// A value as messages show it: short, on one line.
pub(super) fn found(value: &Value) -> String {
    const LONGEST: usize = 60;
    match value {
        Value::Object(_) => "an object".into(),
        Value::Array(list) if list.len() > 8 => format!("a list of {}", list.len()),
        Value::Array(list) if list.iter().any(|value| value.is_array() || value.is_object()) => {
            "a list of lists or objects".into()
        }
        other => {
            let mut text = other.to_string();
            if let Some((end, _)) = text.char_indices().nth(LONGEST) {
                text.truncate(end);
                text.push('…');
            }
            text
        }
    }
}

/// A whole number, also as an integral float or in a string.
pub(super) fn as_integer(value: &Value) -> Option<i64> {
    /// Above this, a float no longer tells neighbouring integers apart.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let integral =
        |float: f64| (float.fract() == 0.0 && float.abs() <= EXACT).then_some(float as i64);
    match value {
        Value::Number(number) => number.as_i64().or_else(|| number.as_f64().and_then(integral)),
        Value::String(text) => {
            let text = text.trim();
            text.parse().ok().or_else(|| text.parse().ok().and_then(integral))
        }
        _ => None,
    }
}

/// A finite number, also in a string.
pub(super) fn as_number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    number.filter(|number| number.is_finite())
}

/// Puts the members of `changes` into `object`, member by member where both are objects.
pub(super) fn merge(object: &mut Map<String, Value>, changes: &Map<String, Value>) {
    for (key, change) in changes {
        match (object.get_mut(key), change) {
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            _ => {
                object.insert(key.clone(), change.clone());
            }
        }
    }
}
