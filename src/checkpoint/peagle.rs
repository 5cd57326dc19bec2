//! P-EAGLE: EAGLE-3 with rows of a mask token, from settings and tensors to a description that can be run.

use super::config::Settings;
use super::decoder::{Decoder, MOST_TOKENS};
use super::eagle3::Description;
use super::report::Report;
use super::speculator::{Block, BlockEntry, BlockLength, FeatureFusion, FeatureNorm, Method};
use super::speculator::{Speculator, mask_token};
use super::verifier::Verifier;
use super::weights::{Tensor, Weights};
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
        for key in ["norm_output", "num_depths", "down_sample_ratio", "down_sample_ratio_min"] {
            top.has(key);
        }
        let columns = fusion.fc.columns;
        let learnt = weights.required("mask_hidden", &[1, 1, columns], report)?;
        let mask_hidden = fused(&learnt, &fusion, decoder)?;
        Ok(Method::Block(Block {
            entry: BlockEntry::Continued { mask_hidden },
            mask_token: mask_token(top, decoder.sizes.vocabulary)?,
            length: BlockLength::Drafts,
            most_drafts: MOST_TOKENS,
            first_slot: 0,
            fusion,
        }))
    })
}

/// What the learnt features are fused to: the same for all rows, so that no step has to compute it.
fn fused(learnt: &Tensor, fusion: &FeatureFusion, decoder: &Decoder) -> Result<Vec<f32>> {
    let epsilon = f64::from(decoder.epsilon);
    let mut features = learnt.values(0, 1)?;
    match &fusion.norm {
        FeatureNorm::None => {}
        FeatureNorm::Joint(gain) => rms_norm(&mut features, &gain.values(0, 1)?, epsilon),
        FeatureNorm::Each(gains) => {
            let mut rest = &mut features[..];
            for gain in gains {
                let gain = gain.values(0, 1)?;
                let (part, others) = rest.split_at_mut(gain.len());
                rms_norm(part, &gain, epsilon);
                rest = others;
            }
        }
    }
    let product = |index: usize| {
        let row = fusion.fc.values(index, 1)?;
        let terms = row.iter().zip(&features).map(|(&a, &b)| f64::from(a) * f64::from(b));
        Ok(terms.sum::<f64>() as f32)
    };
    (0..fusion.fc.rows).map(product).collect()
}

fn rms_norm(values: &mut [f32], gain: &[f32], epsilon: f64) {
    let squares: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
    let factor = (squares / values.len() as f64 + epsilon).sqrt().recip() as f32;
    for (value, gain) in values.iter_mut().zip(gain) {
        *value = *value * factor * gain;
    }
}
