//! MTP: from settings and tensors to a description that can be run.

use super::config::Settings;
use super::decoder::{self, Decoder, LayerForm, LayerReader, Sizes};
use super::report::Report;
use super::speculator::{self, Entry, Feature, Method, Speculator, decoder_settings, tables};
use super::verifier::Verifier;
use super::weights::{Linear, Weights};
use crate::error::{Error, Result};

/// What the names of all tensors begin with.
const LAYER: &str = "mtp_layers.0.";

/// Reads the speculator whose configuration is `top`.
pub(super) fn read(
    top: &mut Settings,
    mut weights: Weights,
    verifier: &Verifier,
    report: &mut Report,
) -> Result<Speculator> {
    let mut layer = decoder_settings(top)?;
    top.text("speculators_version")?;
    if !matches!(layer.text("model_type")?, Some("qwen3")) {
        return Err(Error::unsupported(layer.unexpected("model_type", "\"qwen3\"").to_string()));
    }
    top.integer_or("num_nextn_predict_layers", 1..=1, 1)?;
    let family = decoder::family(&mut layer, &weights, LAYER)?;
    let sizes = Sizes::read(&mut layer, family, &weights, LAYER)?;
    let decoder = Decoder::read(&mut layer, sizes, family, report)?;
    // The rest of the settings is a copy of the verifier's: the layer sees all positions, whatever is
    // said there of windows.
    for key in ["layer_types", "max_window_layers", "sliding_window", "use_sliding_window"] {
        layer.has(key);
    }
    let feature = feature(top, &sizes, verifier)?;
    let layers = {
        let mut reader = LayerReader::new(&mut layer, &mut weights, &sizes, family, report)?;
        vec![reader.read(LayerForm::ordinary(LAYER))?]
    };
    let shape = [sizes.hidden, 2 * sizes.hidden];
    let fusion = weights.required(&format!("{LAYER}input_proj.weight"), &shape, report)?;
    let mut norm = |name: &str| {
        weights.required(&format!("{LAYER}{name}.weight"), &[sizes.hidden], report).map(Some)
    };
    let (embedding_norm, hidden_norm, last_norm) =
        (norm("token_layernorm")?, norm("hidden_layernorm")?, norm("final_layernorm")?);
    let (embedding, head) = tables(&mut weights, &sizes, verifier, report)?;
    let entry =
        Entry::Token { embedding_norm, hidden_norm, fusion: Linear { weight: fusion, bias: None } };
    let speculator = Speculator {
        kind: "mtp",
        decoder,
        features: vec![feature],
        embedding,
        head,
        draft_token_ids: None,
        layers,
        norm: last_norm,
        method: Method::Sequential { entry, norm_output: true },
    };
    layer.finish(report);
    weights.finish(report, |name| {
        name.ends_with("verifier_lm_head.weight").then_some("used in training only")
    })?;
    Ok(speculator)
}

/// The hidden state that is read. The heads that come with models, which are what converters write, were
/// made for the state after the final norm; those that the original library trains for the one before
/// it. Nothing in a file tells them apart.
fn feature(top: &mut Settings, sizes: &Sizes, verifier: &Verifier) -> Result<Feature> {
    const KEY: &str = "hidden_input";
    match top.text(KEY)? {
        None => {
            top.assume(KEY, "post_norm");
            speculator::final_norm(sizes.hidden, verifier, top)
        }
        Some("post_norm") => speculator::final_norm(sizes.hidden, verifier, top),
        Some("pre_norm") => speculator::last_residual(sizes.hidden, verifier, top),
        Some(_) => Err(top.unexpected(KEY, "\"post_norm\" or \"pre_norm\"")),
    }
}
