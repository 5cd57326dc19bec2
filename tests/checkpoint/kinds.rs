//! What is particular to a kind of speculator, shown on its reference checkpoints with other settings.

use crate::fixture::refused;
use serde_json::{Value, json};
use speculators::checkpoint::{
    self, Checkpoint, Entry, FeatureStage, Method, Options, Report, Speculator,
};
use speculators::error::{Error, Result, Status};
use std::path::{Path, PathBuf};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Opens a reference checkpoint with its settings changed.
fn open(name: &str, target: &str, overrides: Value) -> Result<Checkpoint> {
    let options = Options {
        verifier_directory: Some(golden().join("targets").join(target)),
        overrides: Some(overrides),
        ..Options::default()
    };
    checkpoint::open(&golden().join("speculators").join(name), &options)
}

fn eagle(variant: &str, overrides: Value) -> Result<Checkpoint> {
    open(&format!("eagle/{variant}"), "llama_untied", overrides)
}

fn mtp(overrides: Value) -> Result<Checkpoint> {
    open("mtp/qwen3_postnorm", "qwen3_tied", overrides)
}

fn sound(checkpoint: Result<Checkpoint>) -> (Speculator, Report) {
    let checkpoint = checkpoint.unwrap_or_else(|error| panic!("{error}"));
    let sequential = checkpoint.speculator;
    (sequential, checkpoint.report)
}

#[track_caller]
fn entry(speculator: &Speculator) -> &Entry {
    match &speculator.method {
        Method::Sequential { entry, .. } => entry,
        other => panic!("expected a sequential drafter, found {other:?}"),
    }
}

#[track_caller]
fn assert_says(error: &Error, status: Status, piece: &str) {
    assert_eq!(error.status(), status, "{error}");
    assert!(error.to_string().contains(piece), "expected {piece:?} in {error}");
}

#[test]
fn an_mtp_head_reads_the_normed_state_unless_it_is_told_otherwise() {
    let (speculator, report) = sound(mtp(json!({})));
    assert_eq!(speculator.features[0].stage, FeatureStage::FinalNorm);
    assert_eq!(speculator.features[0].layer, 0);
    assert_eq!(report.to_json()["assumed_defaults"]["hidden_input"], "post_norm");
    let (speculator, report) = sound(mtp(json!({"hidden_input": "pre_norm"})));
    assert_eq!(speculator.features[0].stage, FeatureStage::LayerInput);
    assert_eq!(speculator.features[0].layer, 5, "what leaves the last of five layers");
    assert_eq!(report.to_json()["assumed_defaults"]["hidden_input"], Value::Null);
    let error = refused(mtp(json!({"hidden_input": "normed"})));
    assert_says(&error, Status::Format, "hidden_input: expected");
}

#[test]
fn an_mtp_head_sees_all_positions_whatever_its_verifier_does() {
    let windows = json!({
        "use_sliding_window": true, "sliding_window": 4, "layer_types": vec!["sliding_attention"; 5],
    });
    let (speculator, report) = sound(mtp(json!({"transformer_layer_config": windows})));
    assert_eq!(speculator.layers.len(), 1);
    assert_eq!(speculator.layers[0].window, None);
    assert_eq!(report.to_json()["unknown_settings"], json!({}));
}

#[test]
fn mtp_layers_of_other_families_and_several_of_them_are_refused_by_name() {
    for family in ["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "llama"] {
        let error = refused(mtp(json!({"transformer_layer_config": {"model_type": family}})));
        assert_says(&error, Status::Unsupported, &format!("found \"{family}\""));
    }
    let error = refused(mtp(json!({"num_nextn_predict_layers": 2})));
    assert_says(&error, Status::Format, "num_nextn_predict_layers");
}

#[test]
fn eagle_has_the_norms_and_the_bias_that_its_settings_name() {
    let parts = |speculator: &Speculator| match entry(speculator) {
        Entry::Token { embedding_norm, hidden_norm, fusion } => {
            assert!(hidden_norm.is_none());
            let norms = [
                embedding_norm.is_some(),
                speculator.layers[0].input_norm.is_some(),
                speculator.norm.is_some(),
            ];
            (norms, fusion.bias.is_some())
        }
        other => panic!("expected a token, found {other:?}"),
    };
    let (plain, _) = sound(eagle("plain", json!({})));
    assert_eq!(parts(&plain), ([false; 3], false));
    assert!(matches!(plain.method, Method::Sequential { norm_output: false, .. }));
    let (hass, _) = sound(eagle("hass_layernorms_bias", json!({})));
    assert_eq!(parts(&hass), ([true; 3], true));
    let error = refused(eagle("plain", json!({"fusion_bias": true})));
    assert_says(&error, Status::Format, "fusion_fc.bias");
    let error = refused(eagle("plain", json!({"layernorms": true})));
    assert_says(&error, Status::Format, "layernorm.weight");
}

#[test]
fn without_settings_eagle_has_the_norms_and_the_bias_that_are_stored() {
    let unset = json!({"layernorms": null, "fusion_bias": null});
    let (hass, _) = sound(eagle("hass_layernorms_bias", unset.clone()));
    assert!(hass.norm.is_some());
    let (plain, _) = sound(eagle("plain", unset));
    assert!(plain.norm.is_none());
}

#[test]
fn eagle_rotates_as_its_verifier_does_and_says_so() {
    let other = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}});
    let (plain, report) = sound(eagle("plain", json!({})));
    assert_eq!(report.warnings(), [] as [&str; 0]);
    let overrides = json!({"transformer_layer_config": other});
    let (changed, report) = sound(eagle("plain", overrides));
    assert_eq!(changed.decoder.rope, plain.decoder.rope);
    assert!(report.warnings()[0].contains("rotate as the verifier's"), "{:?}", report.warnings());
}

#[test]
fn a_hidden_state_of_another_width_than_the_verifiers_is_refused() {
    let error = refused(open("eagle/plain", "qwen3_tied", json!({})));
    assert_says(&error, Status::Format, "expected the verifier's 72, found 80");
}
