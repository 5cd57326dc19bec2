//! DFlash2: DFlash with convolutions and a walk through candidates, from settings and tensors to a
//! description that can be run.

use super::config::Settings;
use super::decoder::WIDEST;
use super::dflash::{self, Description, HeadSource, MOST_RANK};
use super::report::Report;
use super::speculator::{BlockHead, Candidates, Convolution, Speculator};
use super::verifier::Verifier;
use super::weights::Weights;
use crate::error::Result;

/// More candidates than a row could ever want.
const MOST_CANDIDATES: usize = 256;

/// Reads the speculator whose configuration is `top`.
pub(super) fn read(
    top: &mut Settings,
    mut weights: Weights,
    verifier: &Verifier,
    report: &mut Report,
) -> Result<Speculator> {
    for name in ["candidate_selector.predecessor_codebook", "candidate_selector.successor_codebook"]
    {
        weights.rename_prefix(&format!("{name}.weight"), name, report)?;
    }
    let description = Description {
        kind: "dflash2",
        default_sample_from_anchor: dflash::second_row_drafts,
        default_non_causal: Some(true),
    };
    description.read(top, weights, verifier, report, |mut source| {
        add_convolutions(&mut source)?;
        Ok((BlockHead::Candidates(candidates(&mut source)?), None))
    })
}

fn add_convolutions(source: &mut HeadSource<'_, '_>) -> Result<()> {
    const GROUP: &str = "conv_group_size";
    let hidden = source.sizes.hidden;
    let taps = source.top.integer_or("conv_kernel_size", 1..=source.block_size, 2)?;
    let group_size = source.top.integer_or(GROUP, 1..=WIDEST, 16)?;
    if !hidden.is_multiple_of(group_size) {
        return Err(source.top.unexpected(GROUP, &format!("a divisor of {hidden}")));
    }
    let outputs = 2 * taps * (hidden / group_size);
    for index in 0..source.layers.len() {
        let mut convolution = |half: &str| -> Result<Convolution> {
            let part = |name: &str| format!("layers.{index}.{half}.{name}");
            Ok(Convolution {
                taps,
                group_size,
                base: source.required(&part("base_kernel"), &[2, taps, hidden])?,
                projection: source
                    .required(&part("kernel_projection.weight"), &[outputs, hidden])?,
            })
        };
        let (attention, mlp) = (convolution("attention_conv")?, convolution("mlp_conv")?);
        source.layers[index].attention_convolution = Some(attention);
        source.layers[index].mlp_convolution = Some(mlp);
    }
    Ok(())
}

fn candidates(source: &mut HeadSource<'_, '_>) -> Result<Candidates> {
    let (hidden, full) = (source.sizes.hidden, source.sizes.vocabulary);
    if source.sizes.draft_vocabulary != full {
        return Err(source.top.unexpected("draft_vocab_size", &format!("all {full} tokens")));
    }
    let rank = source.top.integer_or("selector_rank", 1..=MOST_RANK, 256)?;
    let most = full.min(MOST_CANDIDATES);
    let count = source.top.integer_or("selector_top_k", 1..=most, 16.min(most))?;
    let mut tensor =
        |name: &str, shape: &[usize]| source.required(&format!("candidate_selector.{name}"), shape);
    Ok(Candidates {
        count,
        predecessors: tensor("predecessor_codebook", &[full, rank])?,
        successors: tensor("successor_codebook", &[full, rank])?,
        projection: tensor("hidden_projection.weight", &[rank, hidden])?,
    })
}
