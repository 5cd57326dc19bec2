//! Conversion of a checkpoint in another layout to the speculators format, as the library that defines the
//! format does it, for more layouts and without losing what that leaves out.

use super::config;
use super::files::{self, WeightFiles};
use super::layouts::{self, Translation};
use super::output::{Meter, Output, Progress, TensorFile};
use super::report::Report;
use super::verifier::Verifier;
use super::{kind_of, load_kind};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// What is wanted of a conversion.
#[derive(Clone, Debug, Default)]
pub struct Conversion {
    /// The directory of the model that is drafted for.
    pub verifier_directory: Option<PathBuf>,
    /// The algorithm, instead of what is recognised.
    pub algorithm: Option<String>,
    /// Settings that hold instead of the source's, by their names in either format.
    pub arguments: Map<String, Value>,
}

/// The algorithms that a conversion can be asked for.
pub fn algorithms() -> impl Iterator<Item = &'static str> {
    layouts::algorithms()
}

/// A conversion that is ready: all is known of what will be written, and nothing is written.
pub struct Converted {
    translation: Translation,
    report: Value,
}

impl Converted {
    /// Reads a source and makes sure that what comes of it can be loaded.
    pub fn prepare(source: &Path, wanted: &Conversion) -> Result<Self> {
        let (file, mut config) = files::read_config(source)?;
        if let Some(kind) = config.get("speculators_model_type").filter(|kind| !kind.is_null()) {
            let text = format!(
                "expected another layout, found {} in the speculators format",
                config::found(kind)
            );
            return Err(Error::invalid(format!("{}: {text}", file.display())));
        }
        check_algorithm(wanted.algorithm.as_deref())?;
        check_arguments(&wanted.arguments, &config)?;
        config::merge(&mut config, &wanted.arguments);
        replace_in_sections(&mut config, &wanted.arguments);
        let tensors = WeightFiles::locate(source, false)?.open_needed()?;
        let verifier = Verifier::described(wanted.verifier_directory.as_deref())?;
        let algorithm = wanted.algorithm.as_deref();
        let translation = layouts::translate((&file, &config), &tensors, &verifier, algorithm)?;
        let Some(mut translation) = translation else {
            return Err(unrecognised(&file));
        };
        check_drafts(&wanted.arguments, kind_of(&file, &translation.config)?)?;
        let report = check(source, &file, &translation, &verifier)?;
        for (name, reason) in &report.unused {
            translation.drop_tensor(name, reason);
        }
        let report = describe(source, &translation, &report);
        Ok(Self { translation, report })
    }

    /// What is converted and how: `source`, `layout`, `kind`, `renamed`, `dropped`, `notes`, `config`,
    /// `tensors`, `assumed_defaults`, `warnings`.
    pub fn report(&self) -> &Value {
        &self.report
    }

    /// Writes the result, which appears whole or not at all.
    pub fn write(&self, output: &Path, progress: Progress<'_>) -> Result<()> {
        let metadata = json!({"format": "pt"}).as_object().cloned().unwrap_or_default();
        let weights = TensorFile::new(self.translation.tensors.values(), &metadata);
        let mut output = Output::new(output)?;
        let config = Value::from(self.translation.config.clone());
        let mut meter = Meter::new(progress, weights.bytes());
        weights.write(&mut output.file(Path::new("model.safetensors"))?, &mut meter)?;
        output.file(Path::new("config.json"))?.json(&config)?;
        output.commit()
    }
}

fn check_algorithm(algorithm: Option<&str>) -> Result<()> {
    let Some(algorithm) = algorithm else { return Ok(()) };
    if algorithms().any(|known| known == algorithm) {
        return Ok(());
    }
    let names: Vec<_> = algorithms().map(|name| format!("{name:?}")).collect();
    let expected = names.join(", ");
    Err(Error::invalid(format!("algorithm: expected one of {expected}, found {algorithm:?}")))
}

/// Settings that may be given though the source has none of them.
const ARGUMENTS: [&str; 19] = [
    "aux_hidden_state_layer_ids",
    "block_size",
    "draft_vocab_size",
    "eagle_aux_hidden_state_layer_ids",
    "fc_norm",
    "fusion_bias",
    "head_dim",
    "is_causal",
    "layernorms",
    "markov_head_type",
    "mask_token_id",
    "norm_before_fc",
    "norm_before_residual",
    "norm_output",
    "num_speculative_steps",
    "sample_from_anchor",
    "speculative_tokens",
    "target_hidden_size",
    "target_layer_ids",
];

/// A name that nobody reads would be a mistake that nobody notices.
fn check_arguments(arguments: &Map<String, Value>, config: &Map<String, Value>) -> Result<()> {
    let is_known = |key: &&String| ARGUMENTS.contains(&key.as_str()) || config.contains_key(*key);
    match arguments.keys().find(|key| !is_known(key)) {
        None => Ok(()),
        Some(key) => {
            let expected = ARGUMENTS.join(", ");
            let text =
                format!("arguments: expected settings of the source or {expected}, found {key:?}");
            Err(Error::invalid(text))
        }
    }
}

/// Settings of a section go before those around it, so that an argument has to take their place there.
fn replace_in_sections(config: &mut Map<String, Value>, arguments: &Map<String, Value>) {
    for section in ["dflash_config", "eagle_config"] {
        let Some(Value::Object(section)) = config.get_mut(section) else { continue };
        for (key, value) in arguments {
            if let Some(place) = section.get_mut(key) {
                *place = value.clone();
            }
        }
    }
}

/// How many drafts are made has a name for each kind of layout; the other one would be read by nobody.
fn check_drafts(arguments: &Map<String, Value>, kind: &str) -> Result<()> {
    let (read, other) = match kind {
        "mtp" => ("num_speculative_steps", "speculative_tokens"),
        _ => ("speculative_tokens", "num_speculative_steps"),
    };
    match arguments.contains_key(other) {
        false => Ok(()),
        true => {
            Err(Error::invalid(format!("arguments: expected {read} for {kind}, found {other:?}")))
        }
    }
}

fn unrecognised(file: &Path) -> Error {
    let names: Vec<_> = algorithms().collect();
    let text = format!(
        "expected a layout of {}, found none that is known; the algorithm may be named",
        names.join(", ")
    );
    Error::unsupported(format!("{}: {text}", file.display()))
}

/// Loads what was translated, so that nothing is written that could not be read.
fn check(
    source: &Path,
    file: &Path,
    translation: &Translation,
    verifier: &Verifier,
) -> Result<Report> {
    let kind = kind_of(file, &translation.config)?;
    let mut report = Report::new(kind, source);
    translation.tell(&mut report);
    let config = (file, &translation.config, kind);
    let checkpoint = load_kind(source, config, translation.tensors.clone(), (verifier, report))?;
    Ok(checkpoint.report)
}

fn describe(source: &Path, translation: &Translation, report: &Report) -> Value {
    let mut account = translation.to_json();
    let loaded = report.to_json();
    if let Some(account) = account.as_object_mut() {
        account.insert("source".into(), source.to_string_lossy().into());
        account.insert("kind".into(), loaded["kind"].clone());
        account.insert("config".into(), translation.config.clone().into());
        let tensors = translation.tensors.values().map(super::report::describe);
        account.insert("tensors".into(), tensors.collect());
        for key in ["assumed_defaults", "warnings"] {
            account.insert(key.into(), loaded[key].clone());
        }
    }
    account
}
