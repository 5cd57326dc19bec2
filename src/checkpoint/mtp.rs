//! MTP: from settings and tensors to a description that can be run.

use super::config::Settings;
use super::decoder::{Decoder, Family, LayerForm, LayerReader, Sizes};
use super::experts::ExpertSizes;
use super::report::Report;
use super::speculator::{
    self, Entry, Feature, Method, Speculator, decoder_settings, tables, why_unneeded,
};
use super::verifier::Verifier;
use super::weights::{Linear, Weights};
use crate::error::{Error, Result};

/// What the names of all tensors begin with.
const LAYER: &str = "mtp_layers.0.";

/// The settings are a copy of the verifier's: these are about its other layers. The layer sees all
/// positions, whatever is said there of windows, and whether its attention is gated depends on its family.
const OF_THE_VERIFIER: [&str; 14] = [
    "attn_output_gate",
    "full_attention_interval",
    "layer_types",
    "linear_conv_kernel_dim",
    "linear_key_head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_value_head_dim",
    "mamba_ssm_dtype",
    "max_window_layers",
    "mtp_num_hidden_layers",
    "mtp_use_dedicated_embeddings",
    "sliding_window",
    "use_sliding_window",
];

/// Reads the speculator whose configuration is `top`.
pub(super) fn read(
    top: &mut Settings,
    mut weights: Weights,
    verifier: &Verifier,
    report: &mut Report,
) -> Result<Speculator> {
    let mut layer = decoder_settings(top)?;
    let family = family(&mut layer)?;
    top.integer_or("num_nextn_predict_layers", 1..=1, 1)?;
    let experts = experts(&mut layer, family)?;
    let sizes = match &experts {
        None => Sizes::read(&mut layer, family, (&weights, LAYER), report)?,
        Some(experts) => {
            layer.unneeded(&["intermediate_size"]);
            Sizes::with_intermediate(experts.shared, &mut layer, family, (&weights, LAYER), report)?
        }
    };
    let decoder = Decoder::read(&mut layer, sizes, family, report)?;
    layer.unneeded(&OF_THE_VERIFIER);
    let feature = feature(top, &sizes, verifier)?;
    let layers = {
        let mut reader = LayerReader::new(&mut layer, &mut weights, &sizes, family, report)?;
        vec![reader.read(LayerForm { experts, ..LayerForm::ordinary(LAYER) })?]
    };
    let shape = [sizes.hidden, 2 * sizes.hidden];
    let fusion = weights.required(&format!("{LAYER}input_proj.weight"), &shape, report)?;
    let mut norm = |name: &str| {
        let stored = weights.required(&format!("{LAYER}{name}.weight"), &[sizes.hidden], report);
        stored.map(|stored| Some(family.gain(stored)))
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
    weights.finish(report, why_unneeded)?;
    Ok(speculator)
}

fn family(layer: &mut Settings) -> Result<Family> {
    const KEY: &str = "model_type";
    match layer.text(KEY)? {
        Some("qwen3") => Ok(Family::Qwen3),
        Some("qwen3_next") => Ok(Family::Qwen3Next),
        Some("qwen3_5_text") => Ok(Family::Qwen35),
        Some("qwen3_5_moe_text") => Ok(Family::Qwen35Moe),
        _ => {
            let expected = "\"qwen3\", \"qwen3_next\", \"qwen3_5_text\" or \"qwen3_5_moe_text\"";
            Err(Error::unsupported(layer.unexpected(KEY, expected).to_string()))
        }
    }
}

/// The experts of the layer, which in a hybrid family is made like the last one of the verifier's layers
/// with full attention.
fn experts(layer: &mut Settings, family: Family) -> Result<Option<ExpertSizes>> {
    if family == Family::Qwen3 {
        return Ok(None);
    }
    let index = last_full_attention(layer, family)?;
    ExpertSizes::read(layer, family, index)
}

fn last_full_attention(layer: &mut Settings, family: Family) -> Result<usize> {
    const KEY: &str = "layer_types";
    let layers = layer.integer("num_hidden_layers", 1..=1024)?;
    let found = match layer.list(KEY)? {
        Some(types) => {
            if let Some(layers) = layers.filter(|&layers| layers != types.len()) {
                return Err(layer.unexpected(KEY, &format!("a list of {layers}")));
            }
            types.iter().rposition(|kind| kind == "full_attention")
        }
        None => {
            let layers = layers.unwrap_or(family.defaults().layers);
            let interval = layer.integer_or("full_attention_interval", 1..=1024, 4)?;
            (layers / interval * interval).checked_sub(1)
        }
    };
    found.ok_or_else(|| layer.unexpected(KEY, "a layer with \"full_attention\""))
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
