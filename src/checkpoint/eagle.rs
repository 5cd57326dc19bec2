//! EAGLE, EAGLE-2 and HASS, as the format had them until its version 0.6: from settings and tensors to a
//! description that can be run.

use super::config::Settings;
use super::decoder::{self, Decoder, LayerForm, LayerReader, Sizes};
use super::report::Report;
use super::rope;
use super::speculator::{self, Entry, Method, Speculator, decoder_settings, tables, why_unneeded};
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
) -> Result<Speculator> {
    let mut layer = decoder_settings(top)?;
    top.unneeded(&["transformer_layer_architecture"]);
    let family = decoder::family(&mut layer, &weights, LAYER)?;
    let sizes = Sizes::read(&mut layer, family, (&weights, LAYER), report)?;
    let mut decoder = Decoder::read(&mut layer, sizes, family, report)?;
    // The original rotates with the verifier's module, whatever the copy of its settings says.
    if let Some(mut theirs) = verifier.settings() {
        let head = rope::Head { dim: sizes.head_dim, rotated: 1.0 };
        let theirs = rope::read(&mut theirs, head, decoder.max_position, report)?;
        if theirs != decoder.rope {
            report.correct("transformer_layer_config: positions rotate as the verifier's do");
            decoder.rope = theirs;
        }
    }
    let stored = weights.any(|name| name == "embedding_layernorm.weight");
    let norms = top.flag_or_stored("layernorms", stored, report)?;
    let feature = speculator::final_norm(sizes.hidden, verifier, top)?;
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
    let speculator = Speculator {
        kind: "eagle",
        decoder,
        features: vec![feature],
        embedding,
        head,
        draft_token_ids: None,
        layers,
        norm: last_norm,
        method: Method::Sequential {
            entry: Entry::Token { embedding_norm, hidden_norm: None, fusion },
            norm_output: false,
        },
    };
    layer.finish(report);
    weights.finish(report, why_unneeded)?;
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
