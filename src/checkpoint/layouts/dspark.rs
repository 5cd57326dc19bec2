//! DSpark as DeepSpec publishes it: the settings of its heads stand flat beside those of the decoder.

use super::dflash;
use super::{Evidence, Source};
use crate::error::Result;
use serde_json::{Map, Value, json};

/// The settings that are not of the decoder.
const OWN: [&str; 7] = [
    "confidence_head_with_markov",
    "dspark_markov_rank",
    "enable_confidence_head",
    "markov_head_type",
    "markov_rank",
    "max_anchors",
    "num_anchors",
];

pub(super) fn is_one(evidence: &mut Evidence<'_>) -> bool {
    let is_flat = ["markov_rank", "block_size"].iter().all(|key| evidence.top.has(key));
    is_flat || evidence.has_class("DSpark") || evidence.has_tensor("markov_head.")
}

pub(super) fn translate(source: &mut Source<'_>) -> Result<Map<String, Value>> {
    let stored = source.matrix("markov_head.markov_w1.weight").map_or(0, |[_, rank]| rank);
    let has_confidence = source.peek("confidence_head.proj.weight").is_some();
    let merged = dflash::merged(source);
    let mut all = super::Settings::of_file(source.file, &merged);
    let rank = all
        .integer("markov_rank", 0..=1 << 14)?
        .or(all.integer("dspark_markov_rank", 0..=1 << 14)?);
    let rank = rank.unwrap_or(stored);
    let heads = json!({
        "markov_rank": rank,
        "markov_head_type": all.text("markov_head_type")?.unwrap_or("vanilla"),
        "enable_confidence_head": all.flag("enable_confidence_head")?.unwrap_or(has_confidence),
        "confidence_head_with_markov": all.flag("confidence_head_with_markov")?.unwrap_or(rank > 0),
    });
    // z-lab's settings around the same heads come from trainers that leave the first row out.
    let samples_anchor = !source.top.has(dflash::SECTION);
    let block = dflash::read(source, samples_anchor, &OWN)?;
    Ok(block.config(source, ("dspark", "DSparkDraftModel"), heads))
}
