//! EAGLE-3 as its authors publish it (`midlayer`), as SpecForge trains it, and P-EAGLE in the same layout.

use super::super::config::as_integer;
use super::settings::{self, Defaults, drafts};
use super::{Evidence, Source};
use crate::error::Result;
use serde_json::{Map, Value, json};

const LAYER: &str = "midlayer.";
const FEATURES: &str = "eagle_aux_hidden_state_layer_ids";

pub(super) fn is_one(evidence: &mut Evidence<'_>) -> bool {
    let has_vocabulary = evidence.top.has("draft_vocab_size") || evidence.has_tensor("d2t");
    evidence.has_tensor(LAYER)
        || evidence.has_class("Eagle3") && evidence.fused().is_some()
        || has_vocabulary && evidence.fused().is_some_and(|count| count > 2)
}

pub(super) fn is_specforge(evidence: &mut Evidence<'_>) -> bool {
    // A causal language model of this class exists there alone.
    evidence.has_class("ForCausalLMEagle3") && is_one(evidence)
}

pub(super) fn is_parallel(evidence: &mut Evidence<'_>) -> bool {
    evidence.has_tensor("mask_hidden") && (evidence.fused().is_some() || evidence.has_tensor(LAYER))
}

pub(super) fn translate(source: &mut Source<'_>) -> Result<Map<String, Value>> {
    let own = common(source)?;
    let drafts = drafts(source, "speculative_tokens", 3)?;
    let layer = layers(source)?;
    source.account_for_settings();
    Ok(source.config(("eagle3", "Eagle3Speculator"), drafts, own, Some(layer)))
}

pub(super) fn translate_parallel(source: &mut Source<'_>) -> Result<Map<String, Value>> {
    let mut own = common(source)?;
    own["embed_requires_grad"] = true.into();
    let key = source.first_of(&["mask_token_id", "ptd_token_id", "pard_token"]);
    own["mask_token_id"] = match key {
        Some(key) => source.top.integer(key, 0..=1 << 31)?.into(),
        None => {
            return Err(source
                .top
                .unexpected("mask_token_id", "the token of rows that wait for one"));
        }
    };
    if let Some(stored) = source.tensors.remove("mask_hidden") {
        let shape = [1, 1, stored.shape().iter().product()];
        source.put("mask_hidden", stored.shaped(&shape))?;
    }
    let drafts = drafts(source, "speculative_tokens", 3)?;
    let layer = layers(source)?;
    source.account_for_settings();
    Ok(source.config(("peagle", "PEagleSpeculator"), drafts, own, Some(layer)))
}

/// The settings that are the kind's own.
fn common(source: &mut Source<'_>) -> Result<Value> {
    let features = features(source)?;
    let vocabulary = vocabulary(source)?;
    let draft = source.top.integer("draft_vocab_size", 1..=1 << 31)?;
    let stored = source.matrix("lm_head.weight").map(|[rows, _]| rows);
    let has_norm = source.peek("input_norm.weight").is_some();
    let has_norms = source.peek("fc_norm.0.weight").is_some();
    let top = &mut source.top;
    Ok(json!({
        "draft_vocab_size": draft.or(stored).unwrap_or(vocabulary),
        FEATURES: features,
        "embed_requires_grad": false,
        "norm_before_residual": top.flag("norm_before_residual")?.unwrap_or(false),
        "norm_before_fc": top.flag("norm_before_fc")?.unwrap_or(has_norm),
        "fc_norm": top.flag("fc_norm")?.unwrap_or(has_norms),
        "norm_output": top.flag("norm_output")?.unwrap_or(false),
        "target_hidden_size": top.integer("target_hidden_size", 1..=1 << 20)?,
    }))
}

/// The target layers, as the format counts them; null is its default.
fn features(source: &mut Source<'_>) -> Result<Value> {
    let own = source.top.list(FEATURES)?;
    let Some(mut inner) = source.top.section("eagle_config")? else { return Ok(own.into()) };
    let listed = inner.list(FEATURES)?.filter(|listed| !listed.is_empty());
    if inner.flag("use_aux_hidden_state")? == Some(false) && source.peek("fc.weight").is_some() {
        return Err(inner.unexpected("use_aux_hidden_state", "true, as fc.weight fuses layers"));
    }
    source.account_for(inner);
    let listed = match (own, listed) {
        (None, Some(listed)) => listed,
        (own, _) => return Ok(own.into()),
    };
    // Engines that read this list tell its two conventions apart by its first layer: what leaves layer 1 is
    // what enters layer 2, where both begin.
    let key = format!("eagle_config.{FEATURES}");
    if listed.first().and_then(as_integer) == Some(1) {
        return Ok(source.layers_by_output(&key, listed)?.into());
    }
    source.note(format!("{key}: taken as layers whose input is read, as the first is not 1"));
    Ok(listed.into())
}

/// The tokens of the target: `t2d` has an element for each.
fn vocabulary(source: &mut Source<'_>) -> Result<usize> {
    let own = source.top.integer("vocab_size", 1..=1 << 31)?;
    let stored = source.peek("t2d").and_then(|tensor| tensor.shape().first().copied());
    Ok(stored.or(source.verifier.vocabulary()).or(own).unwrap_or(32_000))
}

/// The decoder, whose layers are counted as they are stored.
fn layers(source: &mut Source<'_>) -> Result<Map<String, Value>> {
    let is_named = !source.names(|name| name.starts_with(LAYER)).is_empty();
    let others = source.layers("layers.");
    let has_first = !source.names(|name| name.starts_with("layers.0.")).is_empty();
    if is_named && has_first {
        return Err(source.wrong("expected tensors of midlayer or of layers.0, found both"));
    }
    let vocabulary = vocabulary(source)?;
    let defaults = Defaults { kv_heads: Some(8), max_position: 4096, bos: 1, eos: 2 };
    let first = if is_named { LAYER } else { "layers.0." };
    let mut layer = settings::llama(source, &defaults, (others.max(1), first))?;
    layer.insert("vocab_size".into(), vocabulary.into());
    source.rename_prefix(LAYER, "layers.0.")?;
    Ok(layer)
}
