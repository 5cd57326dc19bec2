//! DFlash2 as z-lab publishes it: its sizes stand beside those of DFlash.

use super::dflash::{self, SECTION};
use super::{Evidence, Source};
use crate::error::Result;
use serde_json::{Map, Value};

/// The settings that DFlash does not have.
const OWN: [&str; 4] = ["conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k"];

pub(super) fn is_one(evidence: &mut Evidence<'_>) -> bool {
    let inner = evidence.top.object(SECTION);
    let is_set = inner.is_some_and(|inner| OWN.iter().any(|key| inner.contains_key(*key)));
    is_set || evidence.has_class("DFlash2") || evidence.has_tensor("candidate_selector.")
}

pub(super) fn translate(source: &mut Source<'_>) -> Result<Map<String, Value>> {
    let block = dflash::read(source, false, &OWN)?;
    let mut sizes = dflash::merged(source);
    sizes.retain(|key, _| OWN.contains(&key.as_str()));
    for codebook in ["predecessor_codebook", "successor_codebook"] {
        let name = format!("candidate_selector.{codebook}");
        source.rename(&format!("{name}.weight"), &name)?;
    }
    Ok(block.config(source, ("dflash2", "DFlash2DraftModel"), sizes.into()))
}
