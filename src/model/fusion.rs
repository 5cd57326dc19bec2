//! The target's features as a hidden state: norms, side by side, one linear map.

use super::decoder::{Decoder, Step};
use super::placement::Placement;
use crate::backend::phases::{FeatureNorm, FuseFeatures, Linear, Norm};
use crate::checkpoint;
use crate::error::Result;

/// How features become the hidden state of a committed row.
#[derive(Debug)]
pub(super) struct FeatureFusion {
    joint: Option<Norm>,
    each: Vec<Norm>,
    linear: Linear,
}

impl FeatureFusion {
    /// Gives the weights their place.
    pub(super) fn place(
        description: &checkpoint::FeatureFusion,
        epsilon: f32,
        placement: &mut Placement<'_>,
    ) -> Result<Self> {
        let (joint, each) = match &description.norm {
            checkpoint::FeatureNorm::None => (None, &[][..]),
            checkpoint::FeatureNorm::Joint(norm) => (Some(norm), &[][..]),
            checkpoint::FeatureNorm::Each(norms) => (None, &norms[..]),
        };
        let each = each.iter().map(|norm| placement.norm(norm, epsilon));
        let each = each.collect::<Result<_>>()?;
        let weight = placement.tensor(&description.fc)?;
        Ok(Self {
            joint: placement.optional_norm(joint, epsilon)?,
            each,
            linear: Linear::unbiased(weight),
        })
    }

    /// The hidden state of the step's rows, which are to be committed.
    pub(super) fn fuse(&self, decoder: &Decoder, step: &Step<'_>) -> Result<()> {
        let norm = match &self.joint {
            Some(norm) => FeatureNorm::Joint(*norm),
            None if self.each.is_empty() => FeatureNorm::None,
            None => FeatureNorm::Each(&self.each),
        };
        let phase = FuseFeatures {
            rows: step.rows,
            features: step.batch.features,
            norm,
            linear: self.linear,
            input: step.scratch.input(decoder.feature_width()),
            hidden: step.scratch.hidden,
        };
        step.backend.fuse_features(step.stream, &phase)
    }
}
