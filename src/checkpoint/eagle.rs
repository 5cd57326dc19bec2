//! EAGLE, EAGLE-2 and HASS, as the format had them until its version 0.6: from settings and tensors to a
//! description that can be run.

use super::config::Settings;
use super::decoder::{self, LayerForm, LayerReader, MOST_TOKENS, Sizes};
use super::report::Report;
use super::rope;
use super::sequential::{self, Entry, Sequential, decoder_settings, epsilon, tables};
use super::verifier::Verifier;
use super::weights::{Linear, Weights};
use crate::error::Result;

/// What the names of the layer's tensors begin with.
const LAYER: &str = "transformer.";

/// Reads the speculator whose configuration is `top`.
pub(super) fn read(
    top: &mut Settings,
    mut weights: Weights,
    verifier: &Verifier,
    report: &mut Report,
) -> Result<Sequential> {
    let mut layer = decoder_settings(top)?;
    for key in ["speculators_version", "transformer_layer_architecture"] {
        top.text(key)?;
    }
    let family = decoder::family(&mut layer, &weights, LAYER)?;
    let sizes = Sizes::read(&mut layer, family, &weights, LAYER)?;
    let default_positions = family.defaults().max_position;
    let max_position =
        layer.integer_or("max_position_embeddings", 1..=MOST_TOKENS, default_positions)?;
    let mut rope = rope::read(&mut layer, sizes.head_dim, max_position, report)?;
    // The original rotates with the verifier's module, whatever the copy of its settings says.
    if let Some(mut theirs) = verifier.settings() {
        let theirs = rope::read(&mut theirs, sizes.head_dim, max_position, report)?;
        if theirs != rope {
            report.correct("transformer_layer_config: positions rotate as the verifier's do");
            rope = theirs;
        }
    }
    let stored = weights.any(|name| name == "embedding_layernorm.weight");
    let norms = top.flag_or_stored("layernorms", stored, report)?;
    let feature = sequential::final_norm(sizes.hidden, verifier, top)?;
    let layers = {
        let mut reader = LayerReader::new(&mut layer, &mut weights, &sizes, family, report)?;
        vec![reader.read(LayerForm { norms_input: norms, ..LayerForm::ordinary(LAYER) })?]
    };
    let mut norm =
        |name: &str| norms.then(|| weights.required(name, &[sizes.hidden], report)).transpose();
    let (embedding_norm, last_norm) =
        (norm("embedding_layernorm.weight")?, norm("pre_lm_head_layernorm.weight")?);
    let fusion = fusion(top, &mut weights, &sizes, report)?;
    let (embedding, head) = tables(&mut weights, &sizes, verifier, report)?;
    let speculator = Sequential {
        kind: "eagle",
        entry: Entry::Token { embedding_norm, hidden_norm: None, fusion },
        features: vec![feature],
        embedding,
        head,
        draft_token_ids: None,
        layers,
        norm: last_norm,
        norm_output: false,
        rope,
        max_position,
        vocabulary: sizes.vocabulary,
        draft_vocabulary: sizes.vocabulary,
        hidden_size: sizes.hidden,
        intermediate_size: sizes.intermediate,
        heads: sizes.heads,
        kv_heads: sizes.kv_heads,
        head_dim: sizes.head_dim,
        epsilon: epsilon(&mut layer)?,
        activation: decoder::activation(&mut layer)?,
    };
    layer.finish(report);
    weights.finish(report, |name| {
        name.ends_with("rotary_emb.inv_freq").then_some("computed from the configuration")
    })?;
    Ok(speculator)
}

/// The map of the embedding and the hidden state to what enters the layer.
fn fusion(
    top: &mut Settings,
    weights: &mut Weights,
    sizes: &Sizes,
    report: &mut Report,
) -> Result<Linear> {
    let shape = [sizes.hidden, 2 * sizes.hidden];
    let weight = weights.required("fusion_fc.weight", &shape, report)?;
    let stored = weights.peek("fusion_fc.bias").is_some();
    let bias = if top.flag_or_stored("fusion_bias", stored, report)? {
        Some(weights.required("fusion_fc.bias", &[sizes.hidden], report)?)
    } else {
        None
    };
    Ok(Linear { weight, bias })
}
