//! The target's features: which layers a speculator reads, and the matrix that projects what it reads.

use super::config::{Settings, as_integer};
use super::decoder::{Sizes, WIDEST};
use super::report::Report;
use super::speculator::{Feature, FeatureFusion, FeatureNorm, FeatureStage};
use super::verifier::Verifier;
use super::weights::{Tensor, Weights};
use crate::error::{Error, Result};

/// The features of these layers and the matrix `fc` that projects them.
pub(super) fn projected(
    layers: Vec<i32>,
    top: &mut Settings,
    weights: &mut Weights,
    (sizes, verifier): (&Sizes, &Verifier),
    report: &mut Report,
) -> Result<(Vec<Feature>, Tensor)> {
    let Some(stored) = weights.peek("fc.weight") else {
        return Err(Error::unsupported(format!(
            "{}: tensor \"fc.weight\": expected a projection of the target's features, found no \
             such tensor; drafters that take the target's last hidden state are not supported",
            weights.directory.display()
        )));
    };
    let columns = stored.shape().get(1).copied().unwrap_or(0);
    let count = layers.len();
    let wanted = top.integer("target_hidden_size", 1..=WIDEST)?;
    // Training code ignores target_hidden_size; the stored matrix tells who is right.
    let widths = [wanted, Some(sizes.hidden), verifier.hidden_size()];
    let fits = |width: &usize| width.checked_mul(count) == Some(columns);
    let first = wanted.unwrap_or(sizes.hidden);
    let width = widths.into_iter().flatten().find(fits).unwrap_or(first);
    let fc = weights.required("fc.weight", &[sizes.hidden, count * width], report)?;
    if width != first {
        report.correct(format!(
            "target_hidden_size: {width}, because fc.weight has {columns} columns"
        ));
    }
    if let Some(target) = verifier.hidden_size().filter(|&target| target != width) {
        let text =
            format!("features of width {width} are read, the verifier's have width {target}");
        return Err(Error::format(top.file(), format!("target_hidden_size: {text}")));
    }
    let feature = |layer| Feature { layer, stage: FeatureStage::LayerInput, width };
    Ok((layers.into_iter().map(feature).collect(), fc))
}

/// The layers that the list `key` names, if it names any.
pub(super) fn listed_layers(
    key: &str,
    top: &mut Settings,
    verifier: &Verifier,
) -> Result<Option<Vec<i32>>> {
    let Some(list) = top.list(key)?.filter(|list| !list.is_empty()) else { return Ok(None) };
    let ids = list.iter().map(as_integer).collect();
    checked_layers(key, ids, top, verifier).map(Some)
}

/// Layers that the verifier has, each once.
pub(super) fn checked_layers(
    key: &str,
    ids: Option<Vec<i64>>,
    top: &Settings,
    verifier: &Verifier,
) -> Result<Vec<i32>> {
    let most = verifier.layers().unwrap_or(100_000) as i64;
    let in_range =
        |ids: &Vec<i64>| ids.len() <= 1024 && ids.iter().all(|id| (0..=most).contains(id));
    let Some(ids) = ids.filter(in_range) else {
        return Err(top.unexpected(key, &format!("a list of layers from 0 to {most}")));
    };
    if let Some(twice) = (1..ids.len()).find(|&later| ids[..later].contains(&ids[later])) {
        let text = format!("expected distinct layers, found {} twice in {ids:?}", ids[twice]);
        return Err(top.wrong(key, text));
    }
    Ok(ids.into_iter().map(|id| id as i32).collect())
}

impl FeatureFusion {
    /// The hidden state that a row of features comes to, where it is the same in all steps.
    pub fn hidden_of(&self, features: &Tensor, epsilon: f32) -> Result<Vec<f32>> {
        let epsilon = f64::from(epsilon);
        let mut features = features.values(0, 1)?;
        match &self.norm {
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
            let row = self.fc.values(index, 1)?;
            let terms = row.iter().zip(&features).map(|(&a, &b)| f64::from(a) * f64::from(b));
            Ok(terms.sum::<f64>() as f32)
        };
        (0..self.fc.rows).map(product).collect()
    }
}

fn rms_norm(values: &mut [f32], gain: &[f32], epsilon: f64) {
    let squares: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
    let factor = (squares / values.len() as f64 + epsilon).sqrt().recip() as f32;
    for (value, gain) in values.iter_mut().zip(gain) {
        *value = *value * factor * gain;
    }
}
