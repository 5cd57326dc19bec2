//! DSpark: DFlash with a Markov head and a confidence head, from settings and tensors to a description that
//! can be run.

use super::config::Settings;
use super::dflash::{Description, HeadSource, MOST_RANK};
use super::proposal;
use super::report::Report;
use super::speculator::{BlockHead, Confidence, Markov, MarkovCell, Speculator};
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
    let description =
        Description { kind: "dspark", default_sample_from_anchor, default_non_causal: None };
    description.read(top, weights, verifier, report, |mut source| {
        let rank = source.top.integer_or("markov_rank", 0..=MOST_RANK, 256)?;
        let head = match rank {
            0 => BlockHead::Independent,
            rank => BlockHead::Markov(markov(&mut source, rank)?),
        };
        // Where there is no Markov head, its kind says nothing.
        source.top.unneeded(&["markov_head_type"]);
        Ok((head, confidence(&mut source, rank)?))
    })
}

/// The first writers of this kind left the setting out and meant no; they wrote that a block drafts one
/// token fewer than it has rows.
fn default_sample_from_anchor(
    top: &mut Settings,
    block_size: usize,
    report: &mut Report,
) -> Result<bool> {
    let is_early = proposal::stated_drafts(top)? == Some(block_size - 1);
    if is_early {
        report.correct(format!(
            "sample_from_anchor is not set: false, as blocks of {block_size} draft {} tokens",
            block_size - 1
        ));
    }
    Ok(!is_early)
}

fn markov(source: &mut HeadSource<'_, '_>, rank: usize) -> Result<Markov> {
    let (hidden, full, draft) =
        (source.sizes.hidden, source.sizes.vocabulary, source.sizes.draft_vocabulary);
    const TYPE: &str = "markov_head_type";
    let cell = match source.top.text(TYPE)? {
        None => {
            source.top.assume(TYPE, "vanilla");
            MarkovCell::Vanilla
        }
        Some("vanilla") => MarkovCell::Vanilla,
        Some("gated") => {
            MarkovCell::Gated(source.linear("markov_head.gate_proj", rank, hidden + rank)?)
        }
        Some("rnn") => {
            let inputs = 2 * rank + hidden;
            MarkovCell::Recurrent(source.linear("markov_head.joint_proj", 3 * rank, inputs)?)
        }
        Some(_) => return Err(source.top.unexpected(TYPE, "\"vanilla\", \"gated\" or \"rnn\"")),
    };
    Ok(Markov {
        embedding: source.required("markov_head.markov_w1.weight", &[full, rank])?,
        readout: source.required("markov_head.markov_w2.weight", &[draft, rank])?,
        cell,
    })
}

fn confidence(source: &mut HeadSource<'_, '_>, rank: usize) -> Result<Option<Confidence>> {
    const WITH_MARKOV: &str = "confidence_head_with_markov";
    let stored = source.weights.peek("confidence_head.proj.weight").is_some();
    let enabled = source.top.flag_or_stored("enable_confidence_head", stored, source.report)?;
    let reads_token = source.top.flag_or(WITH_MARKOV, rank > 0)?;
    if !enabled {
        return Ok(None);
    }
    if reads_token && rank == 0 {
        return Err(source
            .top
            .wrong(WITH_MARKOV, "expected false where markov_rank is 0, found true"));
    }
    let inputs = source.sizes.hidden + if reads_token { rank } else { 0 };
    Ok(Some(Confidence { linear: source.linear("confidence_head.proj", 1, inputs)?, reads_token }))
}
