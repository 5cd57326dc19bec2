//! EAGLE-3: from settings and tensors to a description that can be run.

use super::RowSource;
use super::config::{Settings, as_integer};
use super::decoder::{self, Activation, DecoderLayer, LayerReader, MOST_TOKENS, Sizes, WIDEST};
use super::report::Report;
use super::rope::{self, Rope};
use super::verifier::Verifier;
use super::vocabulary;
use super::weights::{Tensor, Weights};
use crate::error::{Error, Result};
use serde_json::Value;

/// The layer of a feature in an inspection, where only the verifier can tell it.
pub(super) const UNKNOWN_LAYER: i32 = -1;

/// An EAGLE-3 speculator.
#[derive(Clone, Debug)]
pub struct Eagle3 {
    /// Tokens of the target.
    pub vocabulary: usize,
    /// Tokens that can be drafted.
    pub draft_vocabulary: usize,
    /// The width of the drafter's residual stream.
    pub hidden_size: usize,
    /// The width between the two halves of an MLP.
    pub intermediate_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, which divide the query heads.
    pub kv_heads: usize,
    /// Elements of a head; `heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// What RMS norms add to the mean square.
    pub epsilon: f32,
    /// The gate's activation.
    pub activation: Activation,
    /// The target's hidden states that are read, in the order of their columns in `fc`.
    pub features: Vec<Feature>,
    /// What is done to the features before `fc`.
    pub feature_norm: FeatureNorm,
    /// From all features side by side to `hidden_size`.
    pub fc: Tensor,
    /// The token embedding, a row for each target token.
    pub embedding: RowSource,
    /// The output head, a row for each drafted token.
    pub head: RowSource,
    /// The target id of each draft id, ascending; `None` where all tokens are drafted.
    pub draft_token_ids: Option<Vec<i32>>,
    /// The decoder layers, at least one.
    pub layers: Vec<DecoderLayer>,
    /// The norm before the head.
    pub norm: Tensor,
    /// Whether the residual stream of layer 0 starts from the normed hidden state.
    pub norm_before_residual: bool,
    /// Whether the next step is fed what comes after `norm`, not before.
    pub norm_output: bool,
    /// How positions rotate queries and keys.
    pub rope: Rope,
    /// Positions lie below this.
    pub max_position: usize,
}

/// A hidden state of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The residual stream that enters this decoder layer of the target; the number of layers
    /// stands for what leaves the last one, before the final norm.
    pub layer: i32,
    /// The number of elements.
    pub width: usize,
}

/// What is done to the features before they are projected.
#[derive(Clone, Debug)]
pub enum FeatureNorm {
    /// Nothing.
    None,
    /// One RMS norm over all features side by side.
    Joint(Tensor),
    /// An RMS norm for each feature.
    Each(Vec<Tensor>),
}

/// Reads the speculator whose configuration is `top`.
pub(super) fn read(
    top: &mut Settings,
    mut weights: Weights,
    verifier: &Verifier,
    report: &mut Report,
) -> Result<Eagle3> {
    let mut layer = top
        .section("transformer_layer_config")?
        .ok_or_else(|| top.unexpected("transformer_layer_config", "an object"))?;
    refuse_quantized(top)?;
    refuse_quantized(&mut layer)?;
    weights.rename_prefix("midlayer.", "layers.0.", report)?;
    warn_of_lost_layer(top, report)?;

    let family = decoder::family(&mut layer, &weights)?;
    let sizes = Sizes::read(top, &mut layer, family, &weights)?;
    let max_position = layer.integer_or(
        "max_position_embeddings",
        1..=MOST_TOKENS,
        family.defaults().max_position,
    )?;
    let rope = rope::read(&mut layer, sizes.head_dim, max_position, report)?;
    let layers = {
        let windows = decoder::windows(&mut layer, family, sizes.layers, report)?;
        let mut reader = LayerReader::new(&mut layer, &mut weights, &sizes, family, report)?;
        let layers = windows.into_iter().enumerate();
        layers.map(|(index, window)| reader.read(index, window)).collect::<Result<_>>()?
    };
    let (features, fc) = features(top, &mut weights, &sizes, verifier, report)?;
    let feature_norm = feature_norm(top, &mut weights, &features, report)?;
    let (embedding, head) = tables(&mut weights, &sizes, verifier, report)?;
    let (draft, full) = (sizes.draft_vocabulary, sizes.vocabulary);
    let eagle3 = Eagle3 {
        vocabulary: full,
        draft_vocabulary: draft,
        hidden_size: sizes.hidden,
        intermediate_size: sizes.intermediate,
        heads: sizes.heads,
        kv_heads: sizes.kv_heads,
        head_dim: sizes.head_dim,
        epsilon: epsilon(&mut layer)?,
        activation: decoder::activation(&mut layer)?,
        features,
        feature_norm,
        fc,
        embedding,
        head,
        draft_token_ids: vocabulary::read(&mut weights, draft, full, report)?,
        layers,
        norm: weights.required("norm.weight", &[sizes.hidden], report)?,
        norm_before_residual: norm_before_residual(top, report)?,
        norm_output: top.flag_or("norm_output", false)?,
        rope,
        max_position,
    };
    layer.finish(report);
    weights.finish(report, why_unneeded)?;
    Ok(eagle3)
}

/// Tensors that files hold and drafting does not need.
fn why_unneeded(name: &str) -> Option<&'static str> {
    match name {
        "d2t" | "t2d" => Some("all tokens are drafted"),
        "verifier_lm_head.weight" | "verifier_norm.weight" => Some("used in training only"),
        _ if name.ends_with("rotary_emb.inv_freq") => Some("computed from the configuration"),
        _ => None,
    }
}

fn refuse_quantized(settings: &mut Settings) -> Result<()> {
    let key = "quantization_config";
    if !settings.has(key) {
        return Ok(());
    }
    let (file, path) = (settings.file().display(), settings.path_of(key));
    Err(Error::unsupported(format!("{file}: {path}: expected unquantized weights, found it set")))
}

/// Some versions of the converter dropped layer 0 and left random weights in its place.
fn warn_of_lost_layer(top: &mut Settings, report: &mut Report) -> Result<()> {
    let version = top.text("speculators_version")?.unwrap_or("");
    let affected = ["0.2.", "0.3.", "0.4."].iter().any(|start| version.starts_with(start));
    let classes = top.list("architectures")?.unwrap_or_default();
    if affected && classes.iter().any(|class| class == "Eagle3Speculator") {
        report.warn(format!(
            "speculators_version {version}: converters of this version lost the weights of \
             layer 0; if drafts are never accepted, convert the original again"
        ));
    }
    Ok(())
}

fn epsilon(layer: &mut Settings) -> Result<f32> {
    let epsilon = layer.positive_or("rms_norm_eps", 1e-6)? as f32;
    if !(f32::MIN_POSITIVE..=1.0).contains(&epsilon) {
        return Err(layer.unexpected("rms_norm_eps", "a small number above 0"));
    }
    Ok(epsilon)
}

/// A missing flag means true to the engine that runs most of these checkpoints, and
/// false to the code that trains them; what runs is followed.
fn norm_before_residual(top: &mut Settings, report: &mut Report) -> Result<bool> {
    let flag = top.flag("norm_before_residual")?;
    Ok(flag.unwrap_or_else(|| {
        report.warn("norm_before_residual is not set: taken as true; override it if that is wrong");
        top.assume("norm_before_residual", true)
    }))
}

/// The features that are read, and the matrix that projects them.
fn features(
    top: &mut Settings,
    weights: &mut Weights,
    sizes: &Sizes,
    verifier: &Verifier,
    report: &mut Report,
) -> Result<(Vec<Feature>, Tensor)> {
    let Some(stored) = weights.peek("fc.weight") else {
        return Err(Error::unsupported(format!(
            "{}: tensor \"fc.weight\": expected a projection of the target's features, found no \
             such tensor; drafters that take the target's last hidden state are not supported",
            weights.directory.display()
        )));
    };
    let columns = stored.shape().get(1).copied().unwrap_or(0);
    let layers = feature_layers(top, verifier)?;
    let count = layers.len();
    let wanted = top.integer("target_hidden_size", 1..=WIDEST)?;
    // Training code ignores target_hidden_size; the stored matrix tells who is right.
    let widths = [wanted, Some(sizes.hidden), verifier.hidden_size()];
    let fits = |width: &usize| width.checked_mul(count) == Some(columns);
    let first = wanted.unwrap_or(sizes.hidden);
    let width = widths.into_iter().flatten().find(fits).unwrap_or(first);
    let fc = weights.required("fc.weight", &[sizes.hidden, count * width], report)?;
    if width != first {
        report.correct(format!(
            "target_hidden_size: {width}, because fc.weight has {columns} columns"
        ));
    }
    if let Some(target) = verifier.hidden_size().filter(|&target| target != width) {
        let text =
            format!("features of width {width} are read, the verifier's have width {target}");
        return Err(Error::format(top.file(), format!("target_hidden_size: {text}")));
    }
    let feature = |layer| Feature { layer, width };
    Ok((layers.into_iter().map(feature).collect(), fc))
}

/// The layers whose input is read; [`UNKNOWN_LAYER`] if only the verifier, which is to come later,
/// can tell.
fn feature_layers(top: &mut Settings, verifier: &Verifier) -> Result<Vec<i32>> {
    const KEY: &str = "eagle_aux_hidden_state_layer_ids";
    let last = verifier.layers();
    let listed = top.list(KEY)?.filter(|list| !list.is_empty());
    let ids = match (listed, last) {
        (Some(list), _) => list.iter().map(as_integer).collect(),
        (None, Some(n)) => {
            let n = n as i64;
            let default = vec![2, n / 2, n - 3];
            let values: Vec<Value> = default.iter().map(|&id| Value::from(id)).collect();
            top.assume(KEY, values);
            Some(default)
        }
        (None, None) if verifier.is_promised() => return Ok(vec![UNKNOWN_LAYER; 3]),
        (None, None) => {
            return Err(Error::invalid(format!(
                "{}: {KEY}: expected a list of layers, or the verifier's directory to count its \
                 layers, found neither",
                top.file().display()
            )));
        }
    };
    let most = last.unwrap_or(100_000) as i64;
    let in_range =
        |ids: &Vec<i64>| ids.len() <= 1024 && ids.iter().all(|id| (0..=most).contains(id));
    let Some(ids) = ids.filter(in_range) else {
        return Err(top.unexpected(KEY, &format!("a list of layers from 0 to {most}")));
    };
    if let Some(twice) = (1..ids.len()).find(|&later| ids[..later].contains(&ids[later])) {
        let text = format!("expected distinct layers, found {} twice in {ids:?}", ids[twice]);
        return Err(top.wrong(KEY, text));
    }
    Ok(ids.into_iter().map(|id| id as i32).collect())
}

fn feature_norm(
    top: &mut Settings,
    weights: &mut Weights,
    features: &[Feature],
    report: &mut Report,
) -> Result<FeatureNorm> {
    let stored_joint = weights.peek("input_norm.weight").is_some();
    let stored_each = weights.any(|name| name.starts_with("fc_norm."));
    let joint = top.flag_or_stored("norm_before_fc", stored_joint, report)?;
    let each = top.flag_or_stored("fc_norm", stored_each, report)?;
    let file = top.file();
    let mut norm = |name: &str, len: usize| -> Result<Tensor> {
        if let Some(tensor) = weights.optional(name, &[len], report)? {
            return Ok(tensor);
        }
        // Converters kept the flag and dropped the tensor; engines then run with ones.
        report.absent.push((name.into(), "ones".into()));
        report.correct(format!("{name} is not stored: ones are used"));
        Ok(Tensor::ones(name, len, file))
    };
    match (joint, each) {
        (false, false) => Ok(FeatureNorm::None),
        (true, true) => Err(top.wrong("fc_norm", "expected norm_before_fc or fc_norm, found both")),
        (true, false) => {
            let width = features.iter().map(|feature| feature.width).sum();
            Ok(FeatureNorm::Joint(norm("input_norm.weight", width)?))
        }
        (false, true) => {
            let norms = features.iter().enumerate();
            let norms = norms.map(|(index, f)| norm(&format!("fc_norm.{index}.weight"), f.width));
            Ok(FeatureNorm::Each(norms.collect::<Result<_>>()?))
        }
    }
}

/// The embedding and the head: the checkpoint's own, or else the verifier's.
fn tables(
    weights: &mut Weights,
    sizes: &Sizes,
    verifier: &Verifier,
    report: &mut Report,
) -> Result<(RowSource, RowSource)> {
    const EMBEDDING: &str = "embed_tokens.weight";
    let Sizes { vocabulary, draft_vocabulary: draft, hidden, .. } = *sizes;
    // A table may be padded with rows that stand for no token.
    let stored = weights.peek(EMBEDDING).and_then(|tensor| tensor.shape().first().copied());
    let rows = stored.unwrap_or(0).max(vocabulary);
    let own_embedding = weights.optional(EMBEDDING, &[rows, hidden], report)?;
    let own_head = weights.optional("lm_head.weight", &[draft, hidden], report)?;
    verifier.report_unneeded(own_embedding.is_none(), own_head.is_none(), report);
    let embedding = match own_embedding {
        Some(tensor) => RowSource::Tensor(tensor.first_rows(vocabulary)),
        None => verifier.embedding(vocabulary, hidden, report)?,
    };
    let head = match own_head {
        Some(tensor) => RowSource::Tensor(tensor),
        None => verifier.head(draft, vocabulary, hidden, report)?,
    };
    Ok((embedding, head))
}
