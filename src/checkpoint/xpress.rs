//! XPress: DFlash with a refiner of all tokens of a block, from settings and tensors to a description that
//! can be run.

use super::config::Settings;
use super::dflash::{self, Description, HeadSource, MOST_RANK};
use super::report::Report;
use super::speculator::{BlockHead, Refiner, Speculator};
use super::verifier::Verifier;
use super::weights::Weights;
use crate::error::Result;

/// Names that released files have, and what the library calls the same tensors.
pub(super) const RELEASED_NAMES: [(&str, &str); 9] = [
    ("xpress_head.w1.", "refiner_head.token_embed."),
    ("xpress_head.w2.", "refiner_head.readout."),
    ("xpress_head.down_h.", "refiner_head.down_h."),
    ("xpress_head.down_g.", "refiner_head.down_g."),
    ("xpress_head.in_proj.", "refiner_head.in_proj."),
    ("xpress_head.mix.L", "refiner_head.mix_l"),
    ("xpress_head.mlp.gate_proj.", "refiner_head.mlp_gate."),
    ("xpress_head.mlp.up_proj.", "refiner_head.mlp_up."),
    ("xpress_head.mlp.down_proj.", "refiner_head.mlp_down."),
];

/// Reads the speculator whose configuration is `top`.
pub(super) fn read(
    top: &mut Settings,
    mut weights: Weights,
    verifier: &Verifier,
    report: &mut Report,
) -> Result<Speculator> {
    for (other, name) in RELEASED_NAMES {
        weights.rename_prefix(other, name, report)?;
    }
    let description = Description {
        kind: "xpress",
        default_sample_from_anchor: dflash::second_row_drafts,
        default_non_causal: None,
    };
    description.read(top, weights, verifier, report, |mut source| {
        Ok((BlockHead::Refined(refiner(&mut source)?), None))
    })
}

fn refiner(source: &mut HeadSource<'_, '_>) -> Result<Refiner> {
    let rank = source.top.integer_or("xpress_rank", 1..=MOST_RANK, 256)?;
    let ratio = source.top.integer_or("xpress_mlp_ratio", 1..=64, 2)?;
    let passes = source.top.integer_or("num_jacobi_passes", 1..=1024, 6)?;
    let (hidden, rows, inner) = (source.sizes.hidden, source.block_size, rank * ratio);
    let (full, draft) = (source.sizes.vocabulary, source.sizes.draft_vocabulary);
    let mut tensor =
        |name: &str, shape: &[usize]| source.required(&format!("refiner_head.{name}"), shape);
    Ok(Refiner {
        embedding: tensor("token_embed.weight", &[full, rank])?,
        down_row: tensor("down_h.weight", &[rank, hidden])?,
        down_mean: tensor("down_g.weight", &[rank, hidden])?,
        input: tensor("in_proj.weight", &[rank, 3 * rank])?,
        mix: tensor("mix_l", &[rank, rows, rows])?,
        gate: tensor("mlp_gate.weight", &[inner, rank])?,
        up: tensor("mlp_up.weight", &[inner, rank])?,
        down: tensor("mlp_down.weight", &[rank, inner])?,
        readout: tensor("readout.weight", &[draft, rank])?,
        passes,
    })
}
