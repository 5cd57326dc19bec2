//! EAGLE-3: from settings and tensors to a description that can be run.

use super::config::Settings;
use super::decoder::{self, Decoder, LayerForm, LayerReader, Sizes};
use super::features::{checked_layers, listed_layers, projected};
use super::report::Report;
use super::rope;
use super::speculator::{
    Entry, Feature, FeatureFusion, FeatureNorm, Method, Speculator, UNKNOWN_LAYER,
    decoder_settings, tables, why_unneeded,
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
    /// What a missing flag means to the engine that runs most checkpoints of the kind, which is followed;
    /// the code that trains them may take it otherwise.
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
        if is_converted(top)? {
            warn_of_lost_layer(top, report)?;
            warn_of_lost_scaling(&mut layer, verifier, report)?;
        }

        let family = decoder::family(&mut layer, &weights, "layers.0.")?;
        let sizes = Sizes::read(&mut layer, family, (&weights, "layers.0."), report)?;
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
        let read = feature_layers(top, verifier)?;
        let (features, fc) = projected(read, top, &mut weights, (&sizes, verifier), report)?;
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

/// Whether the checkpoint is converted from another format, and not trained in this one.
fn is_converted(top: &mut Settings) -> Result<bool> {
    let classes = top.list("architectures")?.unwrap_or_default();
    Ok(classes.iter().any(|class| class == "Eagle3Speculator"))
}

/// Some versions of the converter dropped layer 0 and left random weights in its place.
fn warn_of_lost_layer(top: &mut Settings, report: &mut Report) -> Result<()> {
    let version = top.text("speculators_version")?.unwrap_or("");
    if ["0.2.", "0.3.", "0.4."].iter().any(|start| version.starts_with(start)) {
        report.warn(format!(
            "speculators_version {version}: converters of this version lost the weights of \
             layer 0; if drafts are never accepted, convert the original again"
        ));
    }
    Ok(())
}

/// Older converters dropped the scaling of the rotation. Nothing tells those files from others, so they
/// are run as they are.
fn warn_of_lost_scaling(
    layer: &mut Settings,
    verifier: &Verifier,
    report: &mut Report,
) -> Result<()> {
    let Some(mut theirs) = verifier.settings() else { return Ok(()) };
    // What the verifier's settings say that cannot be read is no reason to refuse the drafter.
    if let (None, Ok(Some(kind))) = (rope::scaling(layer)?, rope::scaling(&mut theirs)) {
        let path = layer.path_of("rope_parameters");
        report.warn(format!(
            "{path}: positions are not scaled, those of the verifier are ({kind}): older \
             converters lost the scaling; override it if drafts of long texts are rarely accepted"
        ));
    }
    Ok(())
}

/// The layers whose input is read; [`UNKNOWN_LAYER`] if only the verifier, which is to come later,
/// can tell.
fn feature_layers(top: &mut Settings, verifier: &Verifier) -> Result<Vec<i32>> {
    const KEY: &str = "eagle_aux_hidden_state_layer_ids";
    if let Some(listed) = listed_layers(KEY, top, verifier)? {
        return Ok(listed);
    }
    let ids = match verifier.layers() {
        _ if verifier.is_promised() => return Ok(vec![UNKNOWN_LAYER; 3]),
        Some(n) => {
            let n = n as i64;
            let default = vec![2, n / 2, n - 3];
            let values: Vec<Value> = default.iter().map(|&id| Value::from(id)).collect();
            top.assume(KEY, values);
            default
        }
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
