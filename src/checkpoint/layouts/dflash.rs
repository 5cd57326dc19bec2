//! DFlash as z-lab publishes it, also in the names of assistants of transformers; and what the kinds have in
//! common that are made of it.

use super::super::header::ElementType;
use super::settings::{decoder_of, drafts, neutral};
use super::{Evidence, Source};
use crate::error::Result;
use serde_json::{Map, Value, json};

/// Where z-lab keeps what is not of the decoder.
pub(super) const SECTION: &str = "dflash_config";

pub(super) fn is_one(evidence: &mut Evidence<'_>) -> bool {
    evidence.top.has(SECTION)
        || evidence.has_class("DFlash")
        || evidence.has_tensor("encoder.fc.weight")
        || evidence.top.has("target_layer_ids") && evidence.top.has("block_size")
}

pub(super) fn translate(source: &mut Source<'_>) -> Result<Map<String, Value>> {
    let block = read(source, false, &[])?;
    Ok(block.config(source, ("dflash", "DFlashDraftModel"), json!({})))
}

/// What a source says of its blocks.
pub(super) struct Block {
    own: Value,
    layer: Map<String, Value>,
    drafts: usize,
}

impl Block {
    /// The configuration, with the settings of a kind that is made of DFlash.
    pub(super) fn config(
        self,
        source: &Source<'_>,
        kind: (&str, &str),
        others: Value,
    ) -> Map<String, Value> {
        let mut own = self.own;
        if let (Some(own), Some(others)) = (own.as_object_mut(), others.as_object()) {
            own.extend(others.clone());
        }
        source.config(kind, self.drafts, own, Some(self.layer))
    }
}

/// Reads what all kinds have. `samples_anchor` is what a missing setting means; `others` are settings of the
/// kind that are not of the decoder.
pub(super) fn read(
    source: &mut Source<'_>,
    samples_anchor: bool,
    others: &[&str],
) -> Result<Block> {
    source.top.section(SECTION)?;
    let inner = source.top.object(SECTION).cloned().unwrap_or_default();
    neutral(source, &inner)?;
    let merged = merged(source);
    let mut all = super::Settings::of_file(source.file, &merged);
    let size = all.integer("xpress_block_size", 2..=1024)?.or(all.integer("block_size", 2..=1024)?);
    let Some(block_size) = size else {
        return Err(all.unexpected("block_size", "the number of rows of a block"));
    };
    let mask_token = all.integer("mask_token_id", 0..=1 << 31)?;
    let samples_anchor = match all.flag("sample_from_anchor")? {
        Some(flag) => flag,
        None => all.flag("dspark_bonus_anchor")?.map_or(samples_anchor, |is_bonus| !is_bonus),
    };
    // All rows see each other where the whole network says so; otherwise those of sliding layers are causal.
    let is_causal = all.flag("is_causal")?;
    let features = features(source, &merged)?;
    fit_features(source, features.len())?;
    split_projections(source)?;
    rename_assistant(source)?;
    let layer = decoder_of(source, &[&OWN[..], others].concat())?;
    let draft = drafted(source, &layer)?;
    let own = json!({
        "aux_hidden_state_layer_ids": features,
        "block_size": block_size,
        "draft_vocab_size": draft,
        "mask_token_id": mask_token,
        "sample_from_anchor": samples_anchor,
        "sliding_window_non_causal": is_causal == Some(false),
        "target_hidden_size": merged.get("target_hidden_size"),
    });
    if is_causal == Some(false) {
        source.note(
            "is_causal is false: sliding_window_non_causal, all rows of a block see each other",
        );
    }
    account_for_settings(source, &inner, others);
    let drafts = drafts(source, "speculative_tokens", block_size - 1)?;
    Ok(Block { own, layer, drafts })
}

/// All settings: those of the section go before those around it.
pub(super) fn merged(source: &Source<'_>) -> Map<String, Value> {
    let mut merged = source.top.all().clone();
    merged.extend(source.top.object(SECTION).cloned().unwrap_or_default());
    merged
}

/// Settings of flat configurations that are not of the decoder.
const OWN: [&str; 15] = [
    SECTION,
    "aux_hidden_state_layer_ids",
    "block_size",
    "draft_vocab_size",
    "dspark_bonus_anchor",
    "final_logit_softcapping",
    "input_embedding_scale",
    "is_causal",
    "mask_token_id",
    "num_target_layers",
    "output_multiplier",
    "sample_from_anchor",
    "speculative_tokens",
    "target_hidden_size",
    "target_layer_ids",
];

/// Records the settings beside those of the decoder that nobody reads.
fn account_for_settings(source: &mut Source<'_>, inner: &Map<String, Value>, others: &[&str]) {
    let unknown = inner.iter().filter(|(key, value)| {
        !value.is_null() && !OWN.contains(&key.as_str()) && !others.contains(&key.as_str())
    });
    let unknown = unknown.map(|(key, value)| (format!("{SECTION}.{key}"), value.clone()));
    source.account.unknown_settings.extend(unknown);
}

/// How many tokens are drafted: all, unless the settings say fewer.
fn drafted(source: &mut Source<'_>, layer: &Map<String, Value>) -> Result<Value> {
    let all = layer.get("vocab_size").cloned().unwrap_or_default();
    match source.top.integer("draft_vocab_size", 1..=1 << 31)?.map(Value::from) {
        Some(draft) if draft != all => Ok(draft),
        _ => {
            source.drop_all("all tokens are drafted", |name| name == "d2t" || name == "t2d");
            Ok(all)
        }
    }
}

/// The target layers, as the format counts them.
fn features(source: &mut Source<'_>, merged: &Map<String, Value>) -> Result<Vec<i64>> {
    const WANTED: &str = "aux_hidden_state_layer_ids";
    if let Some(listed) = source.top.list(WANTED)? {
        let ids: Option<_> = listed.iter().map(super::as_integer).collect();
        return ids.ok_or_else(|| source.top.unexpected(WANTED, "a list of layers"));
    }
    const KEY: &str = "target_layer_ids";
    match merged.get(KEY) {
        Some(Value::Array(listed)) if !listed.is_empty() => source.layers_by_output(KEY, listed),
        _ => Err(source.top.wrong(KEY, "expected a list of layers, found none")),
    }
}

/// Some releases store a projection of more features than are listed: the first ones are those.
fn fit_features(source: &mut Source<'_>, count: usize) -> Result<()> {
    let name = if source.peek("fc.weight").is_some() { "fc.weight" } else { "encoder.fc.weight" };
    let Some([rows, columns]) = source.matrix(name) else { return Ok(()) };
    let is_float =
        source.peek(name).is_some_and(|tensor| matches!(tensor.element(), ElementType::Float(_)));
    let fitting = count.saturating_mul(rows);
    if !has_joint_projections(source) || columns <= fitting || !is_float {
        return Ok(());
    }
    if let Some(stored) = source.tensors.remove(name) {
        source.note(format!("fc.weight: the first {fitting} of {columns} columns"));
        source.put(name, stored.named("fc.weight").first_columns(fitting))?;
    }
    Ok(())
}

fn has_joint_projections(source: &Source<'_>) -> bool {
    !source.names(|name| name.contains("qkv_proj")).is_empty()
}

/// Some releases store the projections to queries, keys and values as one.
fn split_projections(source: &mut Source<'_>) -> Result<()> {
    let joint = source.names(|name| name.contains(".qkv_proj."));
    if joint.is_empty() {
        return Ok(());
    }
    let top = &mut source.top;
    let mut size = |key: &str| top.integer(key, 1..=1 << 20);
    let (hidden, heads) =
        (size("hidden_size")?.unwrap_or(4096), size("num_attention_heads")?.unwrap_or(32));
    let head_dim = size("head_dim")?.unwrap_or(hidden / heads);
    let kv_heads = size("num_key_value_heads")?.unwrap_or(heads);
    for name in joint {
        let Some(stored) = source.tensors.remove(&name) else { continue };
        let rows = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim];
        if stored.shape().first() != Some(&rows.iter().sum()) {
            let found = stored.shape();
            let text =
                format!("expected {} rows, found shape {found:?}", rows.iter().sum::<usize>());
            return Err(stored.wrong(text));
        }
        let mut first = 0;
        for (part, rows) in ["q_proj", "k_proj", "v_proj"].into_iter().zip(rows) {
            let tensor = stored.named(&name.replace("qkv_proj", part)).rows(first, rows);
            source.put(&name, tensor)?;
            first += rows;
        }
    }
    source.drop_all("attention is not gated", |name| name.contains(".g_proj."));
    source.drop_all("features are not normed one by one", |name| {
        name.starts_with("aux_hidden_norms.")
    });
    Ok(())
}

/// The names that assistants of transformers have.
fn rename_assistant(source: &mut Source<'_>) -> Result<()> {
    source.rename("encoder.fc.weight", "fc.weight")?;
    source.rename("encoder.output_norm_enc.weight", "hidden_norm.weight")
}
