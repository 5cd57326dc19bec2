//! MLP speculators (Wertheimer et al., 2024, "Accelerating Production LLMs with Combined Token/Embedding
//! Speculators"), from settings and tensors to a description that can be run.

use super::RowSource;
use super::config::{Settings, as_integer};
use super::decoder::{Activation, Decoder, MOST_TOKENS, Sizes, WIDEST};
use super::report::Report;
use super::rope::Rope;
use super::speculator::{Feature, FeatureStage, Heads, Method, Speculator, refuse_quantized};
use super::verifier::Verifier;
use super::weights::{Tensor, Weights};
use crate::error::Result;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// The model type of configurations that name no kind.
pub(super) const MODEL_TYPE: &str = "mlp_speculator";

/// The settings that number the steps: those of the original, and those of the speculators format.
const STEPS: [&str; 2] = ["n_predict", "num_layers"];

/// The most steps.
const MOST_STEPS: usize = 1023;

/// How many tokens a configuration says to draft: one for each step.
pub(super) fn steps_of(config: &Map<String, Value>) -> Option<usize> {
    let stated = STEPS.iter().find_map(|&key| as_integer(config.get(key)?));
    stated
        .and_then(|steps| usize::try_from(steps).ok())
        .filter(|steps| (1..=MOST_STEPS).contains(steps))
}

/// Reads the speculator whose configuration is `top`.
pub(super) fn read(
    top: &mut Settings,
    mut weights: Weights,
    verifier: &Verifier,
    report: &mut Report,
) -> Result<Speculator> {
    refuse_quantized(top)?;
    // What the format says of inputs is always so, and the original's settings of trees are the host's.
    top.unneeded(&["inputs", "model_type", "n_candidates", "top_k_tokens_per_head"]);
    if weights.any(|name| name.starts_with("speculator.")) {
        weights.rename_prefix("speculator.", "", report)?;
    }
    let width = required(top, ["emb_dim", "hidden_size"], 1..=WIDEST)?;
    let inner = either(top, ["inner_dim", "intermediate_size"], 0..=WIDEST)?;
    let inner = inner.filter(|&inner| inner > 0).unwrap_or(width);
    let steps = required(top, STEPS, 1..=MOST_STEPS)?;
    let vocabulary = required(top, ["vocab_size"; 2], 1..=MOST_TOKENS)?;
    if let Some(target) = verifier.hidden_size().filter(|&target| target != width) {
        let text = format_args!("expected the verifier's {target}, found {width}");
        return Err(top.wrong("emb_dim", text));
    }
    let stored = steps > 1 && weights.peek("emb.1.weight").is_some();
    let is_tied = match top.flag("tie_weights")? {
        Some(is_tied) => is_tied,
        None => top.assume("tie_weights", !stored),
    };
    let scales_input = top.flag_or("scale_input", false)?;
    let heads = {
        let mut reader = Reader { weights: &mut weights, report, steps, is_tied };
        let square = |step| vec![inner, if step == 0 { width } else { inner }];
        Heads {
            steps,
            scales_input,
            embeddings: reader.tensors(("emb", "weight"), 1, |_| vec![vocabulary, inner])?,
            projections: reader.tensors(("proj", "weight"), 2, square)?,
            gains: reader.tensors(("ln", "weight"), 1, |_| vec![inner])?,
            biases: reader.tensors(("ln", "bias"), 1, |_| vec![inner])?,
            readouts: reader.tensors(("head", "weight"), 1, |_| vec![vocabulary, inner])?,
        }
    };
    verifier.report_unneeded(false, false, report);
    weights.finish(report, |_| is_tied.then_some("tied to that of an earlier step"))?;
    Ok(Speculator {
        kind: "mlp",
        decoder: without_layers(vocabulary, inner),
        features: vec![Feature { layer: 0, stage: FeatureStage::FinalNorm, width }],
        embedding: RowSource::Tensor(heads.embeddings[0].clone()),
        head: RowSource::Tensor(heads.readouts[0].clone()),
        draft_token_ids: None,
        layers: Vec::new(),
        norm: None,
        method: Method::Heads(heads),
    })
}

/// The setting that has either of two names.
fn either(
    top: &mut Settings,
    [first, second]: [&str; 2],
    range: RangeInclusive<usize>,
) -> Result<Option<usize>> {
    match top.integer(first, range.clone())? {
        Some(value) => Ok(Some(value)),
        None => top.integer(second, range),
    }
}

/// The same, which must be there.
fn required(top: &mut Settings, names: [&str; 2], range: RangeInclusive<usize>) -> Result<usize> {
    let value = either(top, names, range)?;
    value.ok_or_else(|| top.unexpected(names[0], "a number"))
}

/// What is common to all kinds, of a network that has no layers.
fn without_layers(vocabulary: usize, inner: usize) -> Decoder {
    Decoder {
        sizes: Sizes {
            vocabulary,
            draft_vocabulary: vocabulary,
            hidden: inner,
            intermediate: inner,
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            layers: 0,
        },
        epsilon: 1e-6,
        activation: Activation::Gelu,
        rope: Rope {
            inverse_frequency: Vec::new(),
            long_inverse_frequency: Vec::new(),
            long_from: usize::MAX,
            scale: 1.0,
        },
        max_position: MOST_TOKENS,
    }
}

/// Reads the tensors of all steps.
struct Reader<'r> {
    weights: &'r mut Weights,
    report: &'r mut Report,
    steps: usize,
    is_tied: bool,
}

impl Reader<'_> {
    /// Those of one name: one for each step, or only the first `distinct` where the later ones are tied.
    fn tensors(
        &mut self,
        (module, part): (&str, &str),
        distinct: usize,
        shape: impl Fn(usize) -> Vec<usize>,
    ) -> Result<Vec<Tensor>> {
        let count = if self.is_tied { distinct.min(self.steps) } else { self.steps };
        let read = |step: usize| {
            let name = format!("{module}.{step}.{part}");
            self.weights.required(&name, &shape(step), self.report)
        };
        (0..count).map(read).collect()
    }
}
