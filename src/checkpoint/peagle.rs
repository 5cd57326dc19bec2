//! P-EAGLE: EAGLE-3 with rows of a mask token, from settings and tensors to a description that can be run.

use super::config::Settings;
use super::decoder::MOST_TOKENS;
use super::eagle3::Description;
use super::report::Report;
use super::speculator::{
    Block, BlockEntry, BlockHead, BlockLength, Method, Speculator, mask_token,
};
use super::verifier::Verifier;
use super::weights::Weights;
use crate::error::Result;

/// Reads the speculator whose configuration is `top`.
pub(super) fn read(
    top: &mut Settings,
    weights: Weights,
    verifier: &Verifier,
    report: &mut Report,
) -> Result<Speculator> {
    let description = Description { kind: "peagle", default_norm_before_residual: false };
    description.read(top, weights, verifier, report, |top, weights, fusion, (decoder, report)| {
        // Nothing is fed back; the others are of training.
        top.unneeded(&["norm_output", "num_depths", "down_sample_ratio", "down_sample_ratio_min"]);
        let columns = fusion.fc.columns;
        let mask_features = weights.required("mask_hidden", &[1, 1, columns], report)?;
        Ok(Method::Block(Block {
            entry: BlockEntry::Continued { mask_features },
            mask_token: mask_token(top, decoder.sizes.vocabulary)?,
            length: BlockLength::Drafts,
            most_drafts: MOST_TOKENS,
            first_slot: 0,
            head: BlockHead::Independent,
            confidence: None,
            fusion,
        }))
    })
}
