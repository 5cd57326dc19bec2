//! XPress as it is released: names of its own for the refiner and its sizes.

use super::super::xpress::RELEASED_NAMES;
use super::dflash;
use super::{Evidence, Source};
use crate::error::Result;
use serde_json::{Map, Value, json};

/// The settings that are not of the decoder.
const OWN: [&str; 8] = [
    "num_jacobi_passes",
    "xpress_block_size",
    "xpress_config",
    "xpress_mlp_hidden",
    "xpress_mlp_ratio",
    "xpress_num_passes",
    "xpress_rank",
    "xpress_topc",
];

pub(super) fn is_one(evidence: &mut Evidence<'_>) -> bool {
    evidence.has_tensor("xpress_head.") || evidence.has_tensor("refiner_head.")
}

pub(super) fn translate(source: &mut Source<'_>) -> Result<Map<String, Value>> {
    let stored = ["xpress_head.w1.weight", "refiner_head.token_embed.weight"];
    let stored = stored.iter().find_map(|name| source.matrix(name)).map_or(256, |[_, rank]| rank);
    let block = dflash::read(source, false, &OWN)?;
    let merged = dflash::merged(source);
    let mut all = super::Settings::of_file(source.file, &merged);
    let rank = all.integer("xpress_rank", 1..=1 << 14)?.unwrap_or(stored);
    const INNER: &str = "xpress_mlp_hidden";
    let ratio = match all.integer(INNER, 1..=1 << 20)? {
        Some(inner) if inner.is_multiple_of(rank) => inner / rank,
        Some(_) => return Err(all.unexpected(INNER, &format!("a multiple of the rank, {rank}"))),
        None => all.integer("xpress_mlp_ratio", 1..=64)?.unwrap_or(2),
    };
    let passes = all.integer("xpress_num_passes", 1..=1024)?;
    let passes = passes.or(all.integer("num_jacobi_passes", 1..=1024)?).unwrap_or(6);
    if all.has("xpress_topc") {
        source.note("xpress_topc: all tokens are refined, not only the most probable ones");
    }
    for (released, name) in RELEASED_NAMES {
        source.rename_prefix(released, name)?;
    }
    let sizes = json!({
        "xpress_rank": rank,
        "xpress_mlp_ratio": ratio,
        "num_jacobi_passes": passes,
    });
    Ok(block.config(source, ("xpress", "XPressDraftModel"), sizes))
}
