//! EAGLE and EAGLE-2 as their authors publish them, and HASS, which adds norms and a bias.

use super::settings::{self, Defaults, drafts};
use super::{Evidence, Source};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};

const LAYER: &str = "layers.0.";

/// HASS: what each norm is called in the format.
const NORMS: [(&str, &str); 3] = [
    ("embed_layernorm.weight", "embedding_layernorm.weight"),
    ("hidden_layernorm.weight", "transformer.input_layernorm.weight"),
    ("lm_head_layernorm.weight", "pre_lm_head_layernorm.weight"),
];

pub(super) fn is_one(evidence: &mut Evidence<'_>) -> bool {
    evidence.fused() == Some(2)
        && evidence.has_tensor(LAYER)
        && !evidence.has_tensor("layers.0.hidden_norm")
        && !evidence.has_tensor("hidden_norm")
}

pub(super) fn translate(source: &mut Source<'_>) -> Result<Map<String, Value>> {
    if source.layers("layers.") > 1 {
        let file = source.file.display();
        return Err(Error::unsupported(format!(
            "{file}: expected one layer, found tensors of more"
        )));
    }
    let stored = |name: &str| source.peek(name).is_some();
    let has_bias = stored("fc.bias");
    let has_norms = stored("embed_layernorm.weight") || stored("post_embedding_layernorm.weight");
    let has_bias = source.top.flag("fusion_bias")?.unwrap_or(has_bias);
    let has_norms = source.top.flag("layernorms")?.unwrap_or(has_norms);
    let defaults = Defaults { kv_heads: None, max_position: 2048, bos: 1, eos: 2 };
    let bos = source.top.integer("bos_token_id", 0..=1 << 31)?.map_or(defaults.bos, |id| id as i64);
    let eos = source.top.integer("eos_token_id", 0..=1 << 31)?.map_or(defaults.eos, |id| id as i64);
    let mut layer = settings::llama(source, &Defaults { bos, eos, ..defaults }, (1, LAYER))?;
    let vocabulary = source.top.integer("vocab_size", 1..=1 << 31)?.unwrap_or(32_000);
    layer.insert("vocab_size".into(), vocabulary.into());
    layer.remove("dtype");
    let own = json!({
        "fusion_bias": has_bias,
        "layernorms": has_norms,
        "transformer_layer_architecture": "LlamaDecoderLayer",
    });
    let drafts = drafts(source, "speculative_tokens", 3)?;
    source.top.unneeded(&["bias"]);
    source.account_for_settings();
    source.rename_prefix("fc.", "fusion_fc.")?;
    if has_norms {
        for (old, new) in NORMS {
            source.rename(old, new)?;
        }
        source.rename("post_embedding_layernorm.weight", "embedding_layernorm.weight")?;
    }
    source.drop_all("there are no norms without that of the embedding", |name| {
        NORMS.iter().any(|(norm, _)| *norm == name)
    });
    source.rename_prefix(LAYER, "transformer.")?;
    source.drop_all("the verifier's is used", |name| name == "embed_tokens.weight");
    Ok(source.config(("eagle", "EagleSpeculator"), drafts, own, Some(layer)))
}
