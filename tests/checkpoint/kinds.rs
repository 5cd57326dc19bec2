//! What is particular to a kind of speculator, shown on its reference checkpoints with other settings.

use crate::fixture::{Fixture, beside, golden, only_nan, refused, values};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use speculators::checkpoint::{
    self, Block, BlockHead, BlockLength, Checkpoint, Entry, Experts, FeatureStage, MarkovCell,
    Method, Mlp, Options, Report, RowSource, Speculator,
};
use speculators::error::{Error, Result, Status};

/// Opens a reference checkpoint with its settings changed.
fn open(name: &str, target: &str, overrides: Value) -> Result<Checkpoint> {
    let options = Options { overrides: Some(overrides), ..beside(target) };
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
    for family in ["qwen2", "qwen3_moe", "qwen3_5", "llama"] {
        let error = refused(mtp(json!({"transformer_layer_config": {"model_type": family}})));
        assert_says(&error, Status::Unsupported, &format!("found \"{family}\""));
    }
    let error = refused(mtp(json!({"num_nextn_predict_layers": 2})));
    assert_says(&error, Status::Format, "num_nextn_predict_layers");
}

fn dense(overrides: Value) -> Result<Checkpoint> {
    open("mtp/qwen3_5_dense_gated", "qwen3_tied", json!({"transformer_layer_config": overrides}))
}

fn sparse(overrides: Value) -> Result<Checkpoint> {
    open("mtp/qwen3_next_moe", "qwen3_tied", json!({"transformer_layer_config": overrides}))
}

#[track_caller]
fn experts(speculator: &Speculator) -> &Experts {
    match &speculator.layers[0].mlp {
        Mlp::Experts(experts) => experts,
        other => panic!("expected experts, found {other:?}"),
    }
}

/// A checkpoint's weight file as it is stored.
fn stored(name: &str) -> Vec<u8> {
    std::fs::read(golden().join("speculators").join(name).join("model.safetensors")).unwrap()
}

fn numbers(tensor: &TensorView<'_>) -> Vec<f32> {
    tensor.data().chunks(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

#[test]
fn norms_of_hybrid_layers_are_one_plus_what_is_stored_and_those_of_others_are_not() {
    for (name, offset) in
        [("qwen3_5_dense_gated", 1.0), ("qwen3_next_moe", 1.0), ("qwen3_postnorm", 0.0)]
    {
        let name = format!("mtp/{name}");
        let (speculator, _) = sound(open(&name, "qwen3_tied", json!({})));
        let Entry::Token { embedding_norm, hidden_norm, .. } = entry(&speculator) else {
            panic!("expected a token")
        };
        let layer = &speculator.layers[0];
        let norms = [
            ("token_layernorm", embedding_norm),
            ("hidden_layernorm", hidden_norm),
            ("final_layernorm", &speculator.norm),
            ("input_layernorm", &layer.input_norm),
            ("post_attention_layernorm", &Some(layer.post_attention_norm.clone())),
            ("self_attn.q_norm", &layer.query_norm),
            ("self_attn.k_norm", &layer.key_norm),
        ];
        let bytes = stored(&name);
        let file = SafeTensors::deserialize(&bytes).unwrap();
        for (norm, tensor) in norms {
            let view = file.tensor(&format!("mtp_layers.0.{norm}.weight")).unwrap();
            let expected: Vec<f32> = numbers(&view).iter().map(|gain| offset + gain).collect();
            let tensor = tensor.as_ref().unwrap();
            assert_eq!(values(tensor), expected, "{name}, {norm}");
            assert_eq!((tensor.rows, tensor.columns), (1, expected.len()));
        }
    }
}

#[test]
fn queries_and_the_gates_of_their_attention_alternate_head_by_head() {
    let name = "mtp/qwen3_5_dense_gated";
    let (speculator, _) = sound(open(name, "qwen3_tied", json!({})));
    let layer = &speculator.layers[0];
    let gate = layer.attention_gate.as_ref().expect("a gate");
    let bytes = stored(name);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let all = numbers(&file.tensor("mtp_layers.0.self_attn.q_proj.weight").unwrap());
    let (head_dim, hidden) = (32, 72);
    for (tensor, place) in [(&layer.query.weight, 0), (&gate.weight, 1)] {
        assert_eq!((tensor.rows, tensor.columns), (2 * head_dim, hidden));
        let heads = all.chunks(head_dim * hidden).skip(place).step_by(2);
        let expected: Vec<f32> = heads.flatten().copied().collect();
        assert_eq!(values(tensor), expected);
        // Any rows can be read, over the end of a head, too.
        let mut bytes = vec![0; 3 * tensor.row_bytes()];
        tensor.read_into(head_dim - 2, 3, &mut bytes).unwrap();
        let expected = &expected[(head_dim - 2) * hidden..(head_dim + 1) * hidden];
        let expected: Vec<u8> = expected.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(bytes, expected);
    }
    let (plain, _) = sound(mtp(json!({})));
    assert!(plain.layers[0].attention_gate.is_none());
}

#[test]
fn hybrid_layers_rotate_a_quarter_of_a_head_unless_they_are_told_otherwise() {
    let rotated = |checkpoint| {
        let (speculator, report) = sound(checkpoint);
        let assumed = report.to_json()["assumed_defaults"].clone();
        let assumed = assumed["transformer_layer_config.partial_rotary_factor"].clone();
        (speculator.decoder.rope.rotated(), assumed)
    };
    assert_eq!(rotated(dense(json!({}))), (16, Value::Null));
    let unset = json!({"partial_rotary_factor": null, "rope_parameters": null});
    assert_eq!(rotated(dense(unset)), (8, json!(0.25)));
    assert_eq!(rotated(mtp(json!({}))), (32, Value::Null));
    let error = refused(sparse(json!({"rope_parameters": {"partial_rotary_factor": 0.1}})));
    assert_says(&error, Status::Format, "partial_rotary_factor: expected an even part");
}

#[test]
fn experts_are_those_of_the_settings_and_the_later_family_always_renormalizes() {
    let (speculator, report) = sound(sparse(json!({})));
    let mixture = experts(&speculator);
    assert_eq!((mixture.router.rows, mixture.chosen, mixture.renormalizes), (5, 2, true));
    assert_eq!((mixture.gate_up.rows, mixture.gate_up.columns), (5 * 40, 72));
    assert_eq!((mixture.down.rows, mixture.down.columns), (5 * 72, 20));
    assert_eq!((mixture.shared.gate.weight.rows, mixture.shared_gate.rows), (12, 1));
    assert_eq!(speculator.decoder.sizes.intermediate, 12);
    assert_eq!(report.to_json()["unknown_settings"], json!({}));
    let (speculator, _) = sound(sparse(json!({"norm_topk_prob": false})));
    assert!(!experts(&speculator).renormalizes);
    let later = json!({"model_type": "qwen3_5_moe_text", "norm_topk_prob": false});
    let (speculator, _) = sound(sparse(later));
    assert!(experts(&speculator).renormalizes);
    let (speculator, report) =
        sound(sparse(json!({"norm_topk_prob": null, "num_experts_per_tok": null})));
    assert!(experts(&speculator).renormalizes);
    assert_eq!(experts(&speculator).chosen, 5, "no more than there are");
    let assumed = &report.to_json()["assumed_defaults"];
    assert_eq!(assumed["transformer_layer_config.norm_topk_prob"], true);
}

#[test]
fn experts_that_do_not_fit_the_weights_or_are_absurd_are_refused() {
    for (key, value, piece) in [
        ("num_experts_per_tok", json!(6), "num_experts_per_tok: expected an integer from 1 to 5"),
        ("num_experts_per_tok", json!(0), "num_experts_per_tok: expected an integer from 1 to 5"),
        ("num_experts", json!(6), "expected shape [6, 72], found [5, 72]"),
        ("num_experts", json!(1_u64 << 40), "num_experts: expected an integer"),
        ("moe_intermediate_size", json!(21), "expected shape [5, 42, 72], found [5, 40, 72]"),
        ("moe_intermediate_size", json!(1_u64 << 60), "moe_intermediate_size: expected"),
        ("shared_expert_intermediate_size", json!(13), "expected shape [13, 72], found [12, 72]"),
        ("shared_expert_intermediate_size", json!(0), "shared_expert_intermediate_size: expected"),
        ("head_dim", json!(64), "q_proj.weight"),
        ("decoder_sparse_step", json!(0), "decoder_sparse_step: expected"),
        ("mlp_only_layers", json!(["last"]), "mlp_only_layers: expected a list of layers"),
        // Its layer has no experts then, and an MLP is not stored.
        ("decoder_sparse_step", json!(3), "mlp.gate_proj.weight"),
        ("mlp_only_layers", json!([1, 3]), "mlp.gate_proj.weight"),
        ("num_experts", json!(0), "mlp.gate_proj.weight"),
        ("model_type", json!("qwen3_5_text"), "mlp.gate_proj.weight"),
        ("model_type", json!("qwen3"), "q_proj.weight"),
    ] {
        let error = refused(sparse(json!({ key: value })));
        assert_says(&error, Status::Format, piece);
    }
    let error = refused(sparse(json!({"model_type": "qwen3_5_moe_text", "num_experts": 0})));
    assert_says(&error, Status::Format, "num_experts: expected at least 1, found 0");
    let error = refused(dense(json!({"model_type": "qwen3_5_moe_text", "num_experts": 4})));
    assert_says(&error, Status::Format, "mlp.gate.weight");
}

#[test]
fn a_hybrid_layer_is_made_like_the_last_one_with_full_attention() {
    // Layer 2 of 4 would be off a step of 2; the last one, layer 3, is on it.
    let last_full = |types: [&str; 4]| {
        let types = types.map(|kind| format!("{kind}_attention"));
        sparse(json!({"layer_types": types, "decoder_sparse_step": 2}))
    };
    experts(&sound(last_full(["full", "linear", "linear", "full"])).0);
    let error = refused(last_full(["full", "linear", "full", "linear"]));
    assert_says(&error, Status::Format, "mlp.gate_proj.weight");
    let error = refused(last_full(["linear"; 4]));
    assert_says(&error, Status::Format, "layer_types: expected a layer with \"full_attention\"");
    let error = refused(sparse(json!({"num_hidden_layers": 8})));
    assert_says(&error, Status::Format, "layer_types: expected a list of 8");
    // Without a list, every fourth layer has it.
    let (speculator, report) =
        sound(sparse(json!({"layer_types": null, "mlp_only_layers": [0, 1, 2]})));
    experts(&speculator);
    let assumed = &report.to_json()["assumed_defaults"];
    assert_eq!(assumed["transformer_layer_config.full_attention_interval"], 4);
    let error = refused(sparse(json!({"layer_types": null, "full_attention_interval": 8})));
    assert_says(&error, Status::Format, "layer_types: expected");
}

#[test]
fn a_head_that_converters_leave_unfilled_is_no_part_of_an_mtp_head() {
    let mut fixture = Fixture::reference("mtp/qwen3_next_moe");
    fixture.tensors.insert("verifier_lm_head.weight".into(), only_nan(&[328, 72]));
    let open = |fixture: &Fixture| checkpoint::open(fixture.write().path(), &beside("qwen3_tied"));
    let (_, report) = sound(open(&fixture));
    assert_eq!(report.warnings(), [] as [&str; 0]);
    let unused = json!([{"name": "verifier_lm_head.weight", "reason": "used in training only"}]);
    assert_eq!(report.to_json()["tensors"]["unused"], unused);
    // A tensor of the layer that was never filled is missing.
    for missing in ["experts.down_proj", "experts.gate_up_proj", "shared_expert_gate.weight"] {
        let mut fixture = fixture.clone();
        let name = format!("mtp_layers.0.mlp.{missing}");
        let stored = fixture.remove(&name);
        let error = refused(open(&fixture));
        assert_says(&error, Status::Format, &format!("{name:?}: expected shape"));
        fixture.tensors.insert(name, only_nan(&stored.shape));
        assert_says(&refused(open(&fixture)), Status::Format, "found only NaN");
    }
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

/// A target of the reference data as a drafter.
fn independent(target: &str, overrides: Value) -> Result<Checkpoint> {
    let options = Options { overrides: Some(overrides), ..Options::default() };
    checkpoint::open(&golden().join("targets").join(target), &options)
}

#[test]
fn a_language_model_is_a_drafter_that_needs_nothing_of_its_target() {
    for target in ["llama_untied", "qwen3_tied"] {
        let (speculator, report) = sound(independent(target, json!({})));
        assert_eq!(speculator.kind, "independent");
        assert!(matches!(entry(&speculator), Entry::Embedding));
        assert!(speculator.features.is_empty() && speculator.draft_token_ids.is_none());
        assert_eq!(matches!(speculator.head, RowSource::Embedding), target == "qwen3_tied");
        assert_eq!(report.warnings(), [] as [&str; 0], "{target}");
        assert_eq!(report.to_json()["unknown_settings"], json!({}), "{target}");
    }
    let named = json!({"speculators_model_type": "independent", "speculators_version": "0.2.0",
        "architectures": ["IndependentSpeculator"], "speculators_config": {
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 7}],
            "verifier": {"name_or_path": null, "architectures": []}}});
    let checkpoint = independent("llama_untied", named).unwrap();
    assert_eq!((checkpoint.speculator.kind, checkpoint.default_num_drafts), ("independent", 7));
}

#[test]
fn what_only_looks_like_a_language_model_is_not_taken_for_one() {
    for (overrides, hint) in [
        (json!({"draft_vocab_size": 100}), "draft_vocab_size suggests"),
        (json!({"architectures": ["LlamaForCausalLMEagle3"]}), "found nothing"),
        (json!({"architectures": ["LlamaForCausalLM", "Other"]}), "found nothing"),
        (json!({"model_type": "mixtral"}), "found nothing"),
        (json!({"model_type": "qwen3"}), "found nothing"),
    ] {
        let error = refused(independent("llama_untied", overrides));
        assert_says(&error, Status::Unsupported, hint);
    }
    let error = refused(independent("llama_untied", json!({"num_hidden_layers": null})));
    assert_says(&error, Status::Format, "num_hidden_layers: expected");
}

#[test]
fn the_layers_of_a_language_model_slide_as_its_class_says() {
    let windows = |target: &str, overrides| -> Vec<Option<usize>> {
        let (speculator, _) = sound(independent(target, overrides));
        speculator.layers.iter().map(|layer| layer.window).collect()
    };
    let mistral = |window: Value| {
        let mut overrides = json!({"model_type": "mistral", "architectures": null});
        if !window.is_array() {
            overrides["sliding_window"] = window;
        }
        windows("llama_untied", overrides)
    };
    assert_eq!(mistral(json!(4)), [Some(4); 4]);
    assert_eq!(mistral(Value::Null), [None; 4], "said to have none");
    assert_eq!(mistral(json!([])), [Some(4096); 4], "not said");
    assert_eq!(windows("llama_untied", json!({"sliding_window": 4})), [None; 4]);
    let qwen = |used: bool| {
        json!({"use_sliding_window": used, "sliding_window": 6, "max_window_layers": 2,
            "layer_types": null})
    };
    assert_eq!(windows("qwen3_tied", qwen(false)), [None; 5]);
    assert_eq!(windows("qwen3_tied", qwen(true)), [None, None, Some(6), Some(6), Some(6)]);
}

#[test]
fn the_head_of_a_language_model_is_tied_as_its_setting_says() {
    let (tied, report) = sound(independent("llama_untied", json!({"tie_word_embeddings": true})));
    assert!(matches!(tied.head, RowSource::Embedding));
    assert!(report.to_json()["tensors"].to_string().contains("tied to the embedding"));
    let error = refused(independent("qwen3_tied", json!({"tie_word_embeddings": false})));
    assert_says(&error, Status::Format, "lm_head.weight");
    let (unset, report) = sound(independent("qwen3_tied", json!({"tie_word_embeddings": null})));
    assert!(matches!(unset.head, RowSource::Embedding));
    assert_eq!(report.to_json()["assumed_defaults"]["tie_word_embeddings"], true);
}

#[test]
fn a_qwen2_model_without_its_biases_is_refused() {
    let qwen2 = json!({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]});
    let error = refused(independent("llama_untied", qwen2));
    assert_says(&error, Status::Format, "self_attn.q_proj.bias");
}
