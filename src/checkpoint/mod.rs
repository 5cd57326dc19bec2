//! Checkpoints: from a directory to a typed description of the speculator, handles of its
//! weights, and a report of everything that was found, assumed and corrected.

mod check;
mod config;
mod convert;
mod decoder;
mod dflash;
mod dflash2;
mod dspark;
mod eagle;
mod eagle3;
mod experts;
mod features;
mod files;
mod header;
mod independent;
mod layouts;
mod mapped;
mod mlp;
mod mtp;
mod output;
mod peagle;
mod proposal;
mod report;
mod rope;
mod speculator;
mod stitch;
mod verifier;
mod vocabulary;
mod weights;
mod xpress;

pub use check::{Check, Finding, Severity, check, open_without_verifier};
pub use convert::{Conversion, Converted, algorithms};
pub use decoder::{Activation, Decoder, DecoderLayer, GatedMlp, Mlp, Sizes};
pub use experts::Experts;
pub use output::Progress;
pub use report::Report;
pub use rope::Rope;
pub use speculator::{
    Block, BlockEntry, BlockHead, BlockLength, Candidates, Confidence, Convolution, Entry, Feature,
    FeatureFusion, FeatureNorm, FeatureStage, Heads, Markov, MarkovCell, Method, Refiner,
    Speculator,
};
pub use stitch::Stitched;
pub use weights::{Linear, Tensor};

use crate::error::{Error, Result, Status};
use crate::tensor::Dtype;
use config::Settings;
use files::WeightFiles;
use layouts::{Tensors, Translation};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use verifier::Verifier;
use weights::Weights;

/// How a checkpoint is opened.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where the verifier's files are; `None` looks for the directory that the checkpoint names.
    pub verifier_directory: Option<PathBuf>,
    /// A JSON object that is merged into `config.json`, member by member.
    pub overrides: Option<Value>,
    /// Maps the weight files. The host promises that nobody changes them while they are mapped.
    pub map_files: bool,
    /// The verifier's embedding, if the host lends it.
    pub lent_embedding: Option<LentShape>,
    /// The verifier's output head, or the rows of it that are drafted, if the host lends them.
    pub lent_head: Option<LentShape>,
}

/// What the host says about a matrix that it lends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LentShape {
    /// The number of rows.
    pub rows: usize,
    /// The number of elements of a row.
    pub columns: usize,
    /// The element type.
    pub dtype: Dtype,
}

/// An opened checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The speculator.
    pub speculator: Speculator,
    /// How many tokens the checkpoint says to draft in a round.
    pub default_num_drafts: usize,
    /// What was found, assumed and corrected.
    pub report: Report,
}

/// The kinds that can be loaded. Each has a file of its own.
const KINDS: [(&str, Reader); 10] = [
    ("dflash", dflash::read),
    ("dflash2", dflash2::read),
    ("dspark", dspark::read),
    ("eagle", eagle::read),
    ("eagle3", eagle3::read),
    ("independent", independent::read),
    ("mlp", mlp::read),
    ("mtp", mtp::read),
    ("peagle", peagle::read),
    ("xpress", xpress::read),
];

/// The kinds that the format names but that no release of the library which defines it has, each with what
/// it would take.
const UNRELEASED: [(&str, &str); 7] = [
    ("dels_spec", "it drafts with a recurrent head beside DFlash"),
    ("dflare", "it is DFlash with a context projection and a fusion for each layer"),
    ("domino", "it is DFlash with a recurrent head over the tokens before"),
    ("hydra", "it drafts with a head for each position, which reads the tokens before"),
    ("jetspec", "it is DFlash with causal blocks from which trees are drafted"),
    ("medusa", "it drafts with a head for each position"),
    (
        "pard2",
        "its tensors are those of DFlash: the override {\"speculators_model_type\": \"dflash\"} runs it",
    ),
];

/// The names of the kinds that can be loaded.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|(name, _)| *name)
}

/// Reads the speculator of a configuration.
type Reader = fn(&mut Settings<'_>, Weights, &Verifier, &mut Report) -> Result<Speculator>;

/// Where the rows of a table of tokens come from.
#[derive(Clone, Debug)]
pub enum RowSource {
    /// A stored matrix with exactly the rows that are needed.
    Tensor(Tensor),
    /// A stored matrix with a row for each target token; those of the drafted tokens are needed.
    TensorRows {
        /// The whole matrix.
        tensor: Tensor,
    },
    /// What the host lends, from its first row on.
    Lent,
    /// What the host lends has a row for each target token; those of the drafted ones are needed.
    LentRows,
    /// The first rows of the token embedding, of a head that is tied to it.
    Embedding,
}

/// Opens the checkpoint in `directory`.
pub fn open(directory: &Path, options: &Options) -> Result<Checkpoint> {
    let (file, mut config) = files::read_config(directory)?;
    match &options.overrides {
        None => {}
        Some(Value::Object(changes)) => config::merge(&mut config, changes),
        Some(other) => {
            let found = config::found(other);
            return Err(Error::invalid(format!("overrides: expected an object, found {found}")));
        }
    }
    load(directory, &file, &config, Some(options))
}

/// Describes the checkpoint in `directory`, whether or not it can be loaded.
pub fn inspect(directory: &Path) -> Result<Value> {
    let (file, config) = files::read_config(directory)?;
    let tensors = match WeightFiles::locate(directory, false) {
        Ok(files) => files.open_all()?,
        // Without weights, the configuration is still worth a description.
        Err(error) if error.status() == Status::Io => Default::default(),
        Err(error) => return Err(error),
    };
    let loaded = load(directory, &file, &config, None);
    let mut needed = Vec::new();
    let mut features = listed_features(&config);
    if let Ok(Checkpoint { speculator, .. }) = &loaded {
        for (source, what) in [(&speculator.embedding, "embedding"), (&speculator.head, "head")] {
            if matches!(source, RowSource::Lent | RowSource::LentRows) {
                needed.push(what);
            }
        }
        if speculator.features.iter().any(|feature| feature.layer == speculator::UNKNOWN_LAYER) {
            needed.push("number of layers");
        } else {
            let layers = speculator.features.iter();
            let described = layers.map(|f| {
                let stage = match f.stage {
                    FeatureStage::LayerInput => "layer_input",
                    FeatureStage::FinalNorm => "final_norm",
                };
                json!({"layer": f.layer, "stage": stage, "width": f.width})
            });
            features = described.collect();
        }
    }
    Ok(json!({
        "kind": match &loaded {
            Ok(checkpoint) => Some(checkpoint.speculator.kind),
            Err(_) => kind_of(&file, &config).ok(),
        },
        "directory": directory.to_string_lossy(),
        "supported": loaded.is_ok(),
        "reason": loaded.as_ref().err().map(Error::to_string),
        "needed_from_verifier": needed,
        "default_num_drafts": loaded.as_ref().ok().map(|checkpoint| checkpoint.default_num_drafts),
        "features": features,
        "config": summary(&config),
        "tensors": tensors.values().map(report::describe).collect::<Vec<_>>(),
        "warnings": loaded.as_ref().map(|checkpoint| checkpoint.report.warnings()).unwrap_or_default(),
    }))
}

/// Loads what `config` describes. Without options, what only a verifier can tell stays open.
fn load(
    directory: &Path,
    file: &Path,
    config: &Map<String, Value>,
    options: Option<&Options>,
) -> Result<Checkpoint> {
    let map_files = options.is_some_and(|options| options.map_files);
    let stored = WeightFiles::locate(directory, map_files).and_then(|files| files.open_needed());
    let translation = match &stored {
        Ok(stored) => translated(directory, (file, config), stored, options)?,
        // The configuration may have an error of its own, which comes first.
        Err(_) => None,
    };
    if let Some(translation) = translation {
        return load_translated(directory, file, translation, options);
    }
    let kind = kind_of(file, config)?;
    let mut report = Report::new(kind, directory);
    let verifier = named_verifier(directory, (file, config), options, &mut report)?;
    load_kind(directory, (file, config, kind), stored?, (&verifier, report))
}

/// The checkpoint in the speculators format, if it is in another layout that is known.
fn translated(
    directory: &Path,
    (file, config): (&Path, &Map<String, Value>),
    stored: &Tensors,
    options: Option<&Options>,
) -> Result<Option<Translation>> {
    // What has the parts of the speculators format has lost a setting.
    let parts = ["speculators_model_type", "transformer_layer_config", "speculators_config"];
    if parts.iter().any(|key| config.get(*key).is_some_and(|value| !value.is_null())) {
        return Ok(None);
    }
    let verifier = verifier_of(directory, None, options, &mut Report::default())?;
    layouts::translate((file, config), stored, &verifier, None)
}

/// The verifier that the options or a configuration name. The options of loading come to the report.
fn named_verifier(
    directory: &Path,
    (file, config): (&Path, &Map<String, Value>),
    options: Option<&Options>,
    report: &mut Report,
) -> Result<Verifier> {
    report.overrides = options.and_then(|options| options.overrides.clone());
    let name = proposal::verifier_name(&mut Settings::of_file(file, config))?;
    verifier_of(directory, name, options, report)
}

/// The verifier, as far as the options make it known.
fn verifier_of(
    directory: &Path,
    name: Option<&str>,
    options: Option<&Options>,
    report: &mut Report,
) -> Result<Verifier> {
    match options {
        Some(options) => Verifier::open(options, name, directory, report),
        None => Ok(Verifier::promised()),
    }
}

/// Loads what was translated. Overrides hold for what came of it, too.
fn load_translated(
    directory: &Path,
    file: &Path,
    translation: Translation,
    options: Option<&Options>,
) -> Result<Checkpoint> {
    let mut report = Report::new("", directory);
    translation.tell(&mut report);
    let Translation { mut config, tensors, holds_verifier, .. } = translation;
    let mut options = options.cloned();
    if let Some(options) = &mut options {
        if let Some(Value::Object(changes)) = &options.overrides {
            config::merge(&mut config, changes);
        }
        if holds_verifier && options.verifier_directory.is_none() {
            options.verifier_directory = Some(directory.into());
        }
    }
    let kind = kind_of(file, &config)?;
    report.kind = kind.into();
    let verifier = named_verifier(directory, (file, &config), options.as_ref(), &mut report)?;
    load_kind(directory, (file, &config, kind), tensors, (&verifier, report))
}

/// Loads a checkpoint of a kind.
fn load_kind(
    directory: &Path,
    (file, config, kind): (&Path, &Map<String, Value>, &str),
    stored: Tensors,
    (verifier, mut report): (&Verifier, Report),
) -> Result<Checkpoint> {
    let mut settings = Settings::of_file(file, config);
    settings.text("speculators_model_type")?;
    let known = KINDS.iter().find(|(name, _)| *name == kind);
    let (_, read) = known.ok_or_else(|| unknown(file, kind))?;
    // What the format says of a method that does not tell, unless the network has as many steps.
    let steps = if kind == "mlp" { mlp::steps_of(config) } else { None };
    let default_num_drafts = proposal::read(&mut settings, steps.unwrap_or(5), &mut report)?;
    let weights = Weights::new(directory, stored)?;
    let speculator = read(&mut settings, weights, verifier, &mut report)?;
    settings.finish(&mut report);
    let mut default_num_drafts = default_num_drafts;
    let most = match &speculator.method {
        Method::Sequential { .. } => None,
        Method::Block(block) => Some((block.most_drafts, "a block drafts")),
        Method::Heads(heads) => Some((heads.steps, "its heads draft")),
    };
    if let Some((most, what)) = most.filter(|&(most, _)| default_num_drafts > most) {
        report.correct(format!(
            "speculative_tokens: {most} instead of {default_num_drafts}, as {what} no more"
        ));
        default_num_drafts = most;
    }
    Ok(Checkpoint { speculator, default_num_drafts, report })
}

/// Why a kind is refused.
fn unknown(file: &Path, kind: &str) -> Error {
    let names: Vec<_> = kinds().map(|name| format!("{name:?}")).collect();
    let expected = names.join(", ");
    let reason = match UNRELEASED.iter().find(|(name, _)| *name == kind) {
        Some((_, what)) => format!("no release of the format has this kind: {what}"),
        None => "this version cannot load other kinds".to_owned(),
    };
    let text = format!("speculators_model_type: expected one of {expected}, found {kind:?}");
    Error::unsupported(format!("{}: {text}; {reason}", file.display()))
}

/// The kind that a configuration names, or that it has without naming it.
fn kind_of<'a>(file: &'a Path, config: &'a Map<String, Value>) -> Result<&'a str> {
    if let Some(kind) = Settings::of_file(file, config).text("speculators_model_type")? {
        return Ok(kind);
    }
    // Speculators in other formats often have the settings of a language model, and more.
    let foreign = ["dflash_config", "eagle_config", "draft_vocab_size", "block_size"];
    let hint = match foreign.iter().find(|&&key| config.contains_key(key)) {
        Some(key) => format!(" ({key} suggests a speculator in a layout that is not known)"),
        None if independent::is_language_model(config) => return Ok("independent"),
        None if config.get("model_type").is_some_and(|name| name == mlp::MODEL_TYPE) => {
            return Ok("mlp");
        }
        None => String::new(),
    };
    let expected = "a kind of speculator, or the configuration of a causal language model";
    let text = format!("speculators_model_type: expected {expected}, found nothing{hint}");
    Err(Error::new(Status::Unsupported, format!("{}: {text}", file.display())))
}

/// The target layers that the configuration lists, under any of the names in use.
fn listed_features(config: &Map<String, Value>) -> Value {
    let names = ["eagle_aux_hidden_state_layer_ids", "aux_hidden_state_layer_ids"];
    let ids = names.iter().find_map(|&name| config.get(name)?.as_array());
    ids.map_or(Value::Null, |ids| ids.iter().map(|id| json!({"layer": id})).collect())
}

/// The settings that are single values, of the speculator and of its decoder.
fn summary(config: &Map<String, Value>) -> Value {
    let single = |object: &Map<String, Value>| {
        let plain = |value: &Value| !(value.is_object() || value.is_array() || value.is_null());
        let members = object.iter().filter(|(_, value)| plain(value));
        members.map(|(key, value)| (key.clone(), value.clone())).collect::<Map<_, _>>()
    };
    let mut result = single(config);
    if let Some(Value::Object(layer)) = config.get("transformer_layer_config") {
        result.insert("transformer_layer_config".into(), single(layer).into());
    }
    result.into()
}
