//! What is particular to a kind of speculator, shown on its reference checkpoints with other settings.

use crate::fixture::refused;
use serde_json::{Value, json};
use speculators::checkpoint::{
    self, Block, BlockHead, BlockLength, Checkpoint, Entry, FeatureStage, MarkovCell, Method,
    Options, Report, Speculator,
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
    (checkpoint.speculator, checkpoint.report)
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

fn dflash(variant: &str, overrides: Value) -> Result<Checkpoint> {
    let target = if variant.starts_with("sliding") { "llama_untied" } else { "qwen3_tied" };
    open(&format!("dflash/{variant}"), target, overrides)
}

#[track_caller]
fn block(speculator: &Speculator) -> &Block {
    match &speculator.method {
        Method::Block(block) => block,
        other => panic!("expected a drafter of blocks, found {other:?}"),
    }
}

/// What the layers see: whether their window ends before the block, and whether they see all of it.
fn masks(speculator: &Speculator) -> Vec<(bool, bool)> {
    speculator.layers.iter().map(|layer| (layer.window_from_block, layer.sees_block)).collect()
}

#[test]
fn dflash_blocks_are_those_of_training_unless_the_host_asks_for_the_engines() {
    let (library, report) = sound(dflash("full_default", json!({})));
    assert_eq!(report.to_json()["assumed_defaults"]["block_semantics"], "library");
    assert!(matches!(block(&library).length, BlockLength::Trained(_)));
    assert!(masks(&library).iter().all(|&mask| mask == (true, true)), "{:?}", masks(&library));
    let (engine, _) = sound(dflash("full_default", json!({"block_semantics": "vllm"})));
    assert_eq!(block(&engine).length, BlockLength::Drafts);
    assert!(masks(&engine).iter().all(|&mask| mask == (false, false)), "one causal mask for all");
    let error = refused(dflash("full_default", json!({"block_semantics": "both"})));
    assert_says(&error, Status::Format, "block_semantics: expected");
}

#[test]
fn dflash_layers_that_slide_see_their_block_as_their_setting_says() {
    for (non_causal, sees_block) in [(false, false), (true, true)] {
        let overrides = json!({"sliding_window_non_causal": non_causal});
        let (sliding, _) = sound(dflash("sliding_causal_bias", overrides));
        assert!(sliding.layers[0].window.is_some());
        assert_eq!(masks(&sliding)[0], (true, sees_block));
    }
    let unset = json!({"transformer_layer_config": {"use_sliding_window": false}});
    let (full, report) = sound(dflash("sliding_causal_bias", unset));
    assert_eq!((full.layers[0].window, masks(&full)[0]), (None, (true, true)));
    assert!(report.warnings()[0].contains("full attention"), "{:?}", report.warnings());
}

#[test]
fn a_block_drafts_no_more_tokens_than_it_has_rows_for() {
    let loaded = dflash("full_default", json!({}));
    let (speculator, _) = sound(loaded.clone());
    let BlockLength::Trained(rows) = block(&speculator).length else { panic!("a trained length") };
    assert_eq!(block(&speculator).most_drafts, rows - 1);
    let config = json!({"speculators_config": {"proposal_methods": [
        {"proposal_type": "greedy", "speculative_tokens": rows},
    ]}});
    let checkpoint = dflash("full_default", config).unwrap();
    assert_eq!(checkpoint.default_num_drafts, rows - 1);
    assert!(checkpoint.report.warnings()[0].contains("a block drafts no more"));
    let (anchored, _) = sound(dflash("full_default", json!({"sample_from_anchor": true})));
    assert_eq!(block(&anchored).most_drafts, rows);
}

#[test]
fn blocks_without_a_mask_token_or_layers_to_read_are_refused() {
    for key in ["mask_token_id", "aux_hidden_state_layer_ids"] {
        let error = refused(dflash("full_default", json!({ key: null })));
        assert_says(&error, Status::Format, &format!("{key}: expected"));
    }
    let error = refused(dflash("full_default", json!({"mask_token_id": 328})));
    assert_says(&error, Status::Format, "mask_token_id: expected");
    let peagle = |overrides| open("peagle/llama_base", "llama_untied", overrides);
    let error = refused(peagle(json!({"mask_token_id": null})));
    assert_says(&error, Status::Format, "mask_token_id: expected");
    let (speculator, _) = sound(peagle(json!({})));
    assert_eq!(block(&speculator).length, BlockLength::Drafts);
}

fn dspark(variant: &str, overrides: Value) -> Result<Checkpoint> {
    let target = if variant.starts_with("gated") { "qwen3_tied" } else { "llama_untied" };
    open(&format!("dspark/{variant}"), target, overrides)
}

#[test]
fn early_dspark_files_draft_from_the_second_row_and_later_ones_from_the_first() {
    let drafts = |tokens: u32| {
        json!({"sample_from_anchor": null, "speculators_config": {"proposal_methods": [
            {"proposal_type": "greedy", "speculative_tokens": tokens},
        ]}})
    };
    let (early, report) = sound(dspark("vanilla", drafts(4)));
    assert_eq!((block(&early).first_slot, block(&early).most_drafts), (1, 4));
    assert!(report.warnings()[0].contains("sample_from_anchor"), "{:?}", report.warnings());
    let (later, report) = sound(dspark("vanilla", drafts(5)));
    assert_eq!((block(&later).first_slot, block(&later).most_drafts), (0, 5));
    assert_eq!(report.to_json()["assumed_defaults"]["sample_from_anchor"], true);
}

#[test]
fn dspark_heads_are_those_of_their_settings() {
    let cell = |variant: &str, overrides| {
        let (speculator, _) = sound(dspark(variant, overrides));
        match block(&speculator).head.clone() {
            BlockHead::Markov(markov) => Some(markov.cell),
            _ => None,
        }
    };
    let unset = json!({"markov_head_type": null});
    assert!(matches!(cell("vanilla", unset), Some(MarkovCell::Vanilla)));
    assert!(matches!(cell("gated_noconfmarkov", json!({})), Some(MarkovCell::Gated(_))));
    assert!(matches!(cell("rnn_fillin", json!({})), Some(MarkovCell::Recurrent(_))));
    assert!(cell("nomarkov_sliding", json!({})).is_none());
    let error = refused(dspark("vanilla", json!({"markov_head_type": "lstm"})));
    assert_says(&error, Status::Format, "markov_head_type: expected");
    let error = refused(dspark("vanilla", json!({"markov_rank": 11})));
    assert_says(&error, Status::Format, "[272, 11]");
    let error = refused(dspark("nomarkov_sliding", json!({"confidence_head_with_markov": true})));
    assert_says(&error, Status::Format, "confidence_head_with_markov: expected false");
    let (without, report) = sound(dspark("vanilla", json!({"enable_confidence_head": false})));
    assert!(block(&without).confidence.is_none());
    assert!(report.warnings()[0].contains("enable_confidence_head"), "{:?}", report.warnings());
}

#[test]
fn dflash2_needs_all_tokens_and_groups_that_divide() {
    let open = |overrides| open("dflash2/fillin", "llama_untied", overrides);
    let error = refused(open(json!({"draft_vocab_size": 100})));
    assert_says(&error, Status::Format, "draft_vocab_size: expected all 272 tokens");
    let error = refused(open(json!({"conv_group_size": 7})));
    assert_says(&error, Status::Format, "conv_group_size: expected a divisor of 80");
    let error = refused(open(json!({"conv_kernel_size": 7})));
    assert_says(&error, Status::Format, "conv_kernel_size: expected");
    let error = refused(open(json!({"selector_top_k": 0})));
    assert_says(&error, Status::Format, "selector_top_k: expected");
    let (speculator, _) = sound(open(json!({"sliding_window_non_causal": null})));
    assert!(speculator.layers.iter().all(|layer| layer.mlp_convolution.is_some()));
    assert!(masks(&speculator).iter().all(|&(_, sees_block)| sees_block));
}

#[test]
fn refiners_run_on_blocks_of_the_length_that_they_were_trained_with() {
    let open = |overrides| open("xpress/fillin", "llama_untied", overrides);
    let (speculator, _) = sound(open(json!({"block_semantics": "vllm"})));
    assert_eq!(block(&speculator).length, BlockLength::Trained(6));
    let error = refused(open(json!({"block_size": 5})));
    assert_says(&error, Status::Format, "refiner_head.mix_l");
}
