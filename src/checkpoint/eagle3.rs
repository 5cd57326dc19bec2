//! EAGLE-3: from settings and tensors to a description that can be run.

use super::config::{Settings, as_integer};
use super::decoder::{self, Decoder, LayerForm, LayerReader, Sizes, WIDEST};
use super::report::Report;
use super::speculator::{
    Entry, Feature, FeatureFusion, FeatureNorm, FeatureStage, Method, Speculator, UNKNOWN_LAYER,
    decoder_settings, tables,
};
use super::verifier::Verifier;
use super::vocabulary;
use super::weights::{Tensor, Weights};
use crate::error::{Error, Result};
use serde_json::Value;

/// Reads the speculator whose configuration is `top`.
pub(super) fn read(
    top: &mut Settings,
    weights: Weights,
    verifier: &Verifier,
    report: &mut Report,
) -> Result<Speculator> {
    let description = Description { kind: "eagle3", default_norm_before_residual: true };
    description.read(top, weights, verifier, report, |top, _, fusion, _| {
        let norm_output = top.flag_or("norm_output", false)?;
        Ok(Method::Sequential { entry: Entry::Features(fusion), norm_output })
    })
}

/// What EAGLE-3 and the kind that is made of it have in common.
pub(super) struct Description {
    /// What the format calls the kind.
    pub(super) kind: &'static str,
    /// A missing flag means to the engines that run most of these checkpoints, not what it means to the
    /// code that trains them; what runs is followed.
    pub(super) default_norm_before_residual: bool,
}

impl Description {
    /// Reads a speculator; `method` reads how it drafts.
    pub(super) fn read(
        &self,
        top: &mut Settings,
        mut weights: Weights,
        verifier: &Verifier,
        report: &mut Report,
        method: impl FnOnce(
            &mut Settings,
            &mut Weights,
            FeatureFusion,
            (&Decoder, &mut Report),
        ) -> Result<Method>,
    ) -> Result<Speculator> {
        let mut layer = decoder_settings(top)?;
        weights.rename_prefix("midlayer.", "layers.0.", report)?;
        warn_of_lost_layer(top, report)?;

        let family = decoder::family(&mut layer, &weights, "layers.0.")?;
        let sizes = Sizes::read(&mut layer, family, &weights, "layers.0.")?;
        let sizes = sizes.of_reduced_vocabulary(top, &weights)?;
        let decoder = Decoder::read(&mut layer, sizes, family, report)?;
        let layers = {
            let windows = decoder::windows(&mut layer, family, sizes.layers, report)?;
            let mut reader = LayerReader::new(&mut layer, &mut weights, &sizes, family, report)?;
            let mut read = |(index, window)| {
                let prefix = format!("layers.{index}.");
                let reads_embedding = index == 0;
                reader.read(LayerForm { reads_embedding, window, ..LayerForm::ordinary(&prefix) })
            };
            windows.into_iter().enumerate().map(&mut read).collect::<Result<_>>()?
        };
        let (features, fc) = features(top, &mut weights, &sizes, verifier, report)?;
        let fusion = FeatureFusion {
            norm: feature_norm(top, &mut weights, &features, report)?,
            fc,
            norm_before_residual: self.norm_before_residual(top, report)?,
        };
        let (embedding, head) = tables(&mut weights, &sizes, verifier, report)?;
        let (draft, full) = (sizes.draft_vocabulary, sizes.vocabulary);
        let method = method(top, &mut weights, fusion, (&decoder, report))?;
        let speculator = Speculator {
            kind: self.kind,
            decoder,
            features,
            embedding,
            head,
            draft_token_ids: vocabulary::read(&mut weights, draft, full, report)?,
            layers,
            norm: Some(weights.required("norm.weight", &[sizes.hidden], report)?),
            method,
        };
        layer.finish(report);
        weights.finish(report, why_unneeded)?;
        Ok(speculator)
    }

    fn norm_before_residual(&self, top: &mut Settings, report: &mut Report) -> Result<bool> {
        let flag = top.flag("norm_before_residual")?;
        Ok(flag.unwrap_or_else(|| {
            let default = self.default_norm_before_residual;
            report.warn(format!(
                "norm_before_residual is not set: taken as {default}; override it if that is wrong"
            ));
            top.assume("norm_before_residual", default)
        }))
    }
}

/// Tensors that files hold and drafting does not need.
pub(super) fn why_unneeded(name: &str) -> Option<&'static str> {
    match name {
        "d2t" | "t2d" => Some("all tokens are drafted"),
        "verifier_lm_head.weight" | "verifier_norm.weight" => Some("used in training only"),
        _ if name.ends_with("rotary_emb.inv_freq") => Some("computed from the configuration"),
        _ => None,
    }
}

/// Some versions of the converter dropped layer 0 and left random weights in its place.
fn warn_of_lost_layer(top: &mut Settings, report: &mut Report) -> Result<()> {
    let version = top.text("speculators_version")?.unwrap_or("");
    let affected = ["0.2.", "0.3.", "0.4."].iter().any(|start| version.starts_with(start));
    let classes = top.list("architectures")?.unwrap_or_default();
    if affected && classes.iter().any(|class| class == "Eagle3Speculator") {
        report.warn(format!(
            "speculators_version {version}: converters of this version lost the weights of \
             layer 0; if drafts are never accepted, convert the original again"
        ));
    }
    Ok(())
}

/// The features that are read, and the matrix that projects them.
fn features(
    top: &mut Settings,
    weights: &mut Weights,
    sizes: &Sizes,
    verifier: &Verifier,
    report: &mut Report,
) -> Result<(Vec<Feature>, Tensor)> {
    let layers = feature_layers(top, verifier)?;
    projected_features(layers, top, weights, (sizes, verifier), report)
}

/// The features of these layers and the matrix `fc` that projects them.
pub(super) fn projected_features(
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

/// The layers whose input is read; [`UNKNOWN_LAYER`] if only the verifier, which is to come later,
/// can tell.
fn feature_layers(top: &mut Settings, verifier: &Verifier) -> Result<Vec<i32>> {
    const KEY: &str = "eagle_aux_hidden_state_layer_ids";
    if let Some(listed) = listed_layers(KEY, top, verifier)? {
        return Ok(listed);
    }
    let ids = match verifier.layers() {
        Some(n) => {
            let n = n as i64;
            let default = vec![2, n / 2, n - 3];
            let values: Vec<Value> = default.iter().map(|&id| Value::from(id)).collect();
            top.assume(KEY, values);
            default
        }
        None if verifier.is_promised() => return Ok(vec![UNKNOWN_LAYER; 3]),
        None => {
            return Err(Error::invalid(format!(
                "{}: {KEY}: expected a list of layers, or the verifier's directory to count its \
                 layers, found neither",
                top.file().display()
            )));
        }
    };
    checked_layers(KEY, Some(ids), top, verifier)
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
fn checked_layers(
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

fn feature_norm(
    top: &mut Settings,
    weights: &mut Weights,
    features: &[Feature],
    report: &mut Report,
) -> Result<FeatureNorm> {
    let stored_joint = weights.peek("input_norm.weight").is_some();
    let stored_each = weights.any(|name| name.starts_with("fc_norm."));
    let joint = top.flag_or_stored("norm_before_fc", stored_joint, report)?;
    let each = top.flag_or_stored("fc_norm", stored_each, report)?;
    let file = top.file();
    let mut norm = |name: &str, len: usize| -> Result<Tensor> {
        if let Some(tensor) = weights.optional(name, &[len], report)? {
            return Ok(tensor);
        }
        // Converters kept the flag and dropped the tensor; engines then run with ones.
        report.absent.push((name.into(), "ones".into()));
        report.correct(format!("{name} is not stored: ones are used"));
        Ok(Tensor::ones(name, len, file))
    };
    match (joint, each) {
        (false, false) => Ok(FeatureNorm::None),
        (true, true) => Err(top.wrong("fc_norm", "expected norm_before_fc or fc_norm, found both")),
        (true, false) => {
            let width = features.iter().map(|feature| feature.width).sum();
            Ok(FeatureNorm::Joint(norm("input_norm.weight", width)?))
        }
        (false, true) => {
            let norms = features.iter().enumerate();
            let norms = norms.map(|(index, f)| norm(&format!("fc_norm.{index}.weight"), f.width));
            Ok(FeatureNorm::Each(norms.collect::<Result<_>>()?))
        }
    }
}
