//! Every spelling of a sound checkpoint gives the description that it means.

use crate::fixture::*;
use safetensors::tensor::Dtype as FileDtype;
use serde_json::{Value, json};
use speculators::checkpoint::{
    self, Activation, FeatureNorm, LentShape, Options, RowSource, Tensor,
};
use speculators::error::Status;
use speculators::tensor::Dtype;
use std::fs;

fn layers(features: &[checkpoint::Feature]) -> Vec<i32> {
    features.iter().map(|feature| feature.layer).collect()
}

#[test]
fn a_plain_checkpoint_is_described_completely() {
    let fixture = Fixture::llama();
    let directory = fixture.write();
    let checkpoint = checkpoint::open(directory.path(), &Options::default()).unwrap();
    assert_eq!(checkpoint.default_num_drafts, 4);
    let (eagle3, report) = open(directory.path(), &Options::default());
    assert_eq!(
        (
            eagle3.decoder.sizes.vocabulary,
            eagle3.decoder.sizes.draft_vocabulary,
            eagle3.decoder.sizes.hidden,
            eagle3.decoder.sizes.intermediate
        ),
        (VOCABULARY, DRAFTED.len(), HIDDEN, 6)
    );
    assert_eq!(
        (eagle3.decoder.sizes.heads, eagle3.decoder.sizes.kv_heads, eagle3.decoder.sizes.head_dim),
        (2, 1, 6)
    );
    assert_eq!((eagle3.decoder.epsilon, eagle3.decoder.activation), (1e-5, Activation::Silu));
    assert_eq!(layers(&eagle3.features), [1, 3, 5]);
    assert!(eagle3.features.iter().all(|feature| feature.width == HIDDEN));
    assert!(matches!(*fusion(&eagle3).0, FeatureNorm::None));
    assert_eq!(eagle3.draft_token_ids.as_deref(), Some(&DRAFTED[..]));
    assert_eq!((fusion(&eagle3).2, norm_output(&eagle3)), (false, false));
    assert_eq!((eagle3.decoder.rope.rotated(), eagle3.decoder.max_position), (6, 64));
    let [layer] = &eagle3.layers[..] else { panic!("expected one layer") };
    assert!(layer.hidden_norm.is_some() && layer.query_norm.is_none() && layer.window.is_none());
    assert_eq!((layer.query.weight.rows, layer.query.weight.columns), (12, 2 * HIDDEN));
    assert_eq!(layer.query.weight.name(), "layers.0.self_attn.q_proj.weight");
    assert_eq!(layer.query.weight.path(), directory.join("model.safetensors"));
    let json = report.to_json();
    assert_eq!(json["kind"], "eagle3");
    assert_eq!(json["files"], json!(["model.safetensors"]));
    assert_eq!(json["tensors"]["used"].as_array().unwrap().len(), fixture.tensors.len());
    assert_eq!(json["tensors"]["unused"], json!([]));
    assert_eq!(json["tensors"]["absent"], json!([]));
    assert_eq!(json["assumed_defaults"], json!({}));
    assert_eq!(json["unknown_settings"], json!({}));
    assert_eq!(json["warnings"], json!([]));
    assert_eq!(json["verifier"], Value::Null);
}

#[test]
fn handles_read_exactly_the_stored_rows_mapped_or_not() {
    let fixture = Fixture::llama();
    let directory = fixture.write();
    for map_files in [false, true] {
        let options = Options { map_files, ..Options::default() };
        let (eagle3, _) = open(directory.path(), &options);
        let stored = &fixture.tensors["fc.weight"].bytes;
        let row = fusion(&eagle3).1.row_bytes();
        let mut rows = vec![0; 2 * row];
        fusion(&eagle3).1.read_into(3, 2, &mut rows).unwrap();
        assert_eq!(rows, stored[3 * row..5 * row]);
        let clone = fusion(&eagle3).1.clone();
        assert_eq!(clone.mapping().is_some(), map_files);
        assert_eq!(clone.mapped_address().is_some(), map_files);
        for (first, count, bytes) in [(7, 2, 2 * row), (0, 1, row - 1), (usize::MAX, 2, 2 * row)] {
            let error = refused(clone.read_into(first, count, &mut vec![0; bytes]));
            assert_eq!(error.status(), Status::Internal);
        }
    }
}

#[test]
fn the_mapped_address_holds_the_stored_bytes() {
    let fixture = Fixture::llama();
    let directory = fixture.write();
    let options = Options { map_files: true, ..Options::default() };
    let (eagle3, _) = open(directory.path(), &options);
    let norm = eagle3.norm.as_ref().unwrap();
    let (address, keep) = (norm.mapped_address().unwrap(), norm.mapping().unwrap());
    drop(eagle3);
    // SAFETY: `mapped_address` is valid for the bytes of the tensor while `keep` lives, and nobody
    // changes the file.
    let bytes = unsafe { std::slice::from_raw_parts(address as *const u8, 4 * HIDDEN) };
    assert_eq!(bytes, fixture.tensors["norm.weight"].bytes);
    drop(keep);
}

#[test]
fn shards_are_read_like_one_file_and_the_index_wins_over_a_single_file() {
    let fixture = Fixture::llama();
    let directory = Directory::new();
    fixture.write_shards(directory.path());
    fs::write(directory.join("model.safetensors"), "not even a header").unwrap();
    let (eagle3, report) = open(directory.path(), &Options::default());
    let (single, _) = open(fixture.write().path(), &Options::default());
    assert_eq!(values(fusion(&eagle3).1), values(fusion(&single).1));
    assert_eq!(values(eagle3.norm.as_ref().unwrap()), values(single.norm.as_ref().unwrap()));
    assert_eq!(report.to_json()["files"], json!([shard_name(0), shard_name(1)]));
}

#[test]
fn half_precision_weights_keep_their_type() {
    for (stored, expected) in [(FileDtype::F16, Dtype::F16), (FileDtype::BF16, Dtype::Bf16)] {
        let mut fixture = Fixture::llama();
        for tensor in fixture.tensors.values_mut().filter(|t| t.dtype == FileDtype::F32) {
            tensor.dtype = stored;
            tensor.bytes = tensor.bytes.chunks(4).flat_map(|bytes| [bytes[0], 0x3f]).collect();
        }
        let (eagle3, _) = open(fixture.write().path(), &Options::default());
        assert_eq!(fusion(&eagle3).1.dtype, expected);
        assert_eq!(fusion(&eagle3).1.bytes_len(), HIDDEN * 3 * HIDDEN * 2);
    }
}

#[test]
fn numbers_may_be_spelled_as_floats_and_strings_and_old_spellings_are_read() {
    let mut fixture = Fixture::llama();
    fixture.config["draft_vocab_size"] = json!("5");
    fixture.config["norm_output"] = json!("True");
    fixture.config["torch_dtype"] = json!("bfloat16");
    fixture.config["auto_map"] = json!({"": "eagle3.Eagle3SpeculatorConfig"});
    fixture.config["eagle_aux_hidden_state_layer_ids"] = json!([1.0, "3", 5]);
    let layer = fixture.layer_config();
    layer["hidden_size"] = json!(8.0);
    layer["rms_norm_eps"] = json!("1e-5");
    layer["head_dim"] = json!(null);
    layer["attention_bias"] = json!(0);
    layer.as_object_mut().unwrap().remove("rope_parameters");
    layer["rope_theta"] = json!(10000);
    layer["rope_scaling"] = json!(null);
    let (eagle3, report) = open(fixture.write().path(), &Options::default());
    assert_eq!(
        (eagle3.decoder.sizes.hidden, eagle3.decoder.sizes.head_dim, eagle3.decoder.epsilon),
        (HIDDEN, 6, 1e-5)
    );
    assert_eq!(layers(&eagle3.features), [1, 3, 5]);
    assert!(norm_output(&eagle3));
    let (plain, _) = open(Fixture::llama().write().path(), &Options::default());
    assert_eq!(eagle3.decoder.rope, plain.decoder.rope);
    let json = report.to_json();
    assert_eq!(json["unknown_settings"], json!({}));
    assert_eq!(json["assumed_defaults"], json!({"transformer_layer_config.head_dim": 6}));
}

#[test]
fn a_sparse_configuration_is_completed_and_says_so() {
    let mut fixture = Fixture::qwen3();
    let top = fixture.config.as_object_mut().unwrap();
    for key in ["draft_vocab_size", "norm_before_residual", "fc_norm", "speculators_config"] {
        top.remove(key);
    }
    let layer = fixture.layer_config().as_object_mut().unwrap();
    for key in ["model_type", "num_hidden_layers", "head_dim", "hidden_act", "rms_norm_eps"] {
        layer.remove(key);
    }
    layer.insert("num_key_value_heads".into(), json!(null));
    layer.insert("num_attention_heads".into(), json!(2));
    for name in ["k_proj", "v_proj"] {
        fixture.add(&format!("layers.0.self_attn.{name}.weight"), &[12, 2 * HIDDEN]);
    }
    let directory = fixture.write();
    let checkpoint = checkpoint::open(directory.path(), &Options::default()).unwrap();
    assert_eq!(checkpoint.default_num_drafts, 5);
    let (eagle3, report) = open(directory.path(), &Options::default());
    assert!(fusion(&eagle3).2);
    assert!(eagle3.layers[0].query_norm.is_some());
    assert_eq!(
        (
            eagle3.decoder.sizes.kv_heads,
            eagle3.decoder.sizes.head_dim,
            eagle3.decoder.sizes.draft_vocabulary
        ),
        (2, 6, 5)
    );
    let assumed = report.to_json()["assumed_defaults"].clone();
    for (key, value) in [
        ("draft_vocab_size", json!(5)),
        ("norm_before_residual", json!(true)),
        ("fc_norm", json!(false)),
        ("speculators_config.proposal_methods[0].speculative_tokens", json!(5)),
        ("transformer_layer_config.model_type", json!("qwen3")),
        ("transformer_layer_config.num_hidden_layers", json!(1)),
        ("transformer_layer_config.num_key_value_heads", json!(2)),
        ("transformer_layer_config.head_dim", json!(6)),
        ("transformer_layer_config.hidden_act", json!("silu")),
        ("transformer_layer_config.rms_norm_eps", json!(1e-6)),
    ] {
        assert_eq!(assumed[key], value, "{key}");
    }
    assert!(report.warnings().iter().any(|text| text.contains("norm_before_residual")));
}

#[test]
fn unknown_settings_and_tensors_are_kept_in_the_report() {
    let mut fixture = Fixture::llama();
    fixture.config["favourite_colour"] = json!("blue");
    fixture.layer_config()["shape"] = json!({"round": true});
    fixture.add("layers.7.mystery", &[2, 2, 2]);
    fixture.add("rotary_emb.inv_freq", &[3]);
    fixture.tensors.insert("verifier_lm_head.weight".into(), only_nan(&[2, 2]));
    let (_, report) = open(fixture.write().path(), &Options::default());
    let json = report.to_json();
    assert_eq!(
        json["unknown_settings"],
        json!({"favourite_colour": "blue", "transformer_layer_config.shape": {"round": true}})
    );
    assert_eq!(
        json["tensors"]["unused"],
        json!([
            {"name": "layers.7.mystery", "reason": "not part of the model"},
            {"name": "rotary_emb.inv_freq", "reason": "computed from the configuration"},
            {"name": "verifier_lm_head.weight", "reason": "used in training only"},
        ])
    );
    assert_eq!(report.warnings().len(), 1);
}

#[test]
fn every_proposal_method_is_read_as_the_chain_that_is_run() {
    for (methods, drafts, warning) in [
        (json!([{"proposal_type": "greedy", "speculative_tokens": 7}]), 7, None),
        (json!([{"proposal_type": "sampling", "speculative_tokens": "2"}]), 2, None),
        (json!([{"proposal_type": "greedy"}]), 5, None),
        (
            json!([{"proposal_type": "of_2027", "speculative_tokens": 3}]),
            3,
            Some("proposal_type: of_2027 is run as a chain of 3 tokens"),
        ),
        (
            json!([{"proposal_type": "sampling"}, {"proposal_type": "greedy"}]),
            5,
            Some("proposal_methods[1]: not run, though it is the default"),
        ),
        (json!([]), 5, None),
        (
            json!([{"proposal_type": "dynamic_tree", "depth": 6, "speculative_tokens": 48}]),
            6,
            Some("dynamic_tree is run as a chain of 6 tokens"),
        ),
        (
            json!([{"speculative_tokens": 3, "verifier_accept_k": 2}]),
            3,
            Some("verifier_accept_k: not applied"),
        ),
    ] {
        let mut fixture = Fixture::llama();
        fixture.config["speculators_config"]["proposal_methods"] = methods;
        let directory = fixture.write();
        let opened = checkpoint::open(directory.path(), &Options::default()).unwrap();
        assert_eq!(opened.default_num_drafts, drafts);
        let first = "speculators_config.proposal_methods[0]";
        let unknown = opened.report.to_json()["unknown_settings"].to_string();
        assert!(!unknown.contains(first), "{unknown}");
        match (warning, opened.report.warnings()) {
            (None, []) => {}
            (Some(piece), [text]) => assert!(text.contains(piece), "{text}"),
            (expected, found) => panic!("expected {expected:?}, found {found:?}"),
        }
    }
}

#[test]
fn versions_that_lost_layer_0_are_warned_of() {
    for (version, class, warned) in [
        ("0.3.0", "Eagle3Speculator", true),
        ("0.3.0", "Eagle3DraftModel", false),
        ("0.5.0", "Eagle3Speculator", false),
        ("0.1.0.dev42", "Eagle3Speculator", false),
    ] {
        let mut fixture = Fixture::llama();
        fixture.config["speculators_version"] = json!(version);
        fixture.config["architectures"] = json!([class]);
        let (_, report) = open(fixture.write().path(), &Options::default());
        let found = report.warnings().iter().any(|text| text.contains("layer 0"));
        assert_eq!(found, warned, "{version} {class}");
    }
}

#[test]
fn activations_are_read_by_all_their_names() {
    for (name, expected) in [
        ("silu", Activation::Silu),
        ("gelu", Activation::Gelu),
        ("gelu_new", Activation::GeluTanh),
        ("gelu_pytorch_tanh", Activation::GeluTanh),
        ("relu", Activation::Relu),
    ] {
        let mut fixture = Fixture::llama();
        fixture.layer_config()["hidden_act"] = json!(name);
        let (eagle3, _) = open(fixture.write().path(), &Options::default());
        assert_eq!(eagle3.decoder.activation, expected);
    }
}

#[test]
fn overrides_are_merged_before_anything_is_read() {
    let directory = Fixture::llama().write();
    let overrides = json!({"norm_output": true, "transformer_layer_config": {"rms_norm_eps": 0.5}});
    let options = Options { overrides: Some(overrides.clone()), ..Options::default() };
    let (eagle3, report) = open(directory.path(), &options);
    assert_eq!(
        (norm_output(&eagle3), eagle3.decoder.epsilon, eagle3.decoder.sizes.head_dim),
        (true, 0.5, 6)
    );
    assert_eq!(report.to_json()["overrides"], overrides);
    let options = Options { overrides: Some(json!([1])), ..Options::default() };
    let error = refused(checkpoint::open(directory.path(), &options));
    assert_eq!(error.status(), Status::InvalidArgument);
}

#[test]
fn the_old_name_of_layer_0_is_read() {
    let mut fixture = Fixture::llama();
    let renamed =
        fixture.tensors.into_iter().map(|(name, stored)| match name.strip_prefix("layers.0.") {
            Some(rest) => (format!("midlayer.{rest}"), stored),
            None => (name, stored),
        });
    fixture.tensors = renamed.collect();
    let (eagle3, report) = open(fixture.write().path(), &Options::default());
    assert_eq!(gated_mlp(&eagle3).gate.weight.name(), "midlayer.mlp.gate_proj.weight");
    assert!(corrected(&report, "midlayer."));
    fixture.add("layers.0.hidden_norm.weight", &[HIDDEN]);
    let error = refused(checkpoint::open(fixture.write().path(), &Options::default()));
    assert!(error.to_string().contains("also stored as"), "{error}");
}

#[test]
fn several_layers_after_the_first_read_only_the_residual_stream() {
    let mut fixture = Fixture::llama();
    fixture.layer_config()["num_hidden_layers"] = json!(3);
    fixture.add_layer(1);
    fixture.add_layer(2);
    let (eagle3, _) = open(fixture.write().path(), &Options::default());
    let inputs: Vec<_> = eagle3.layers.iter().map(|layer| layer.key.weight.columns).collect();
    assert_eq!(inputs, [2 * HIDDEN, HIDDEN, HIDDEN]);
    assert!(eagle3.layers[1].hidden_norm.is_none());
}

fn with_biases(mut fixture: Fixture, parts: &[(&str, usize)]) -> Fixture {
    for (part, len) in parts {
        fixture.add(&format!("layers.0.{part}.bias"), &[*len]);
    }
    fixture
}

const ATTENTION: [(&str, usize); 4] = [
    ("self_attn.q_proj", 12),
    ("self_attn.k_proj", 6),
    ("self_attn.v_proj", 6),
    ("self_attn.o_proj", HIDDEN),
];

#[test]
fn biases_follow_the_flag_and_without_a_flag_the_tensors() {
    for (flag, expected, note) in [
        (json!(true), true, None),
        (json!(null), true, Some("is not set, its tensors are: used")),
        (json!(false), false, Some("is false: its tensors are not used")),
    ] {
        let mut fixture = with_biases(Fixture::llama(), &ATTENTION);
        let mlp = [("mlp.gate_proj", 6), ("mlp.up_proj", 6), ("mlp.down_proj", HIDDEN)];
        fixture = with_biases(fixture, &mlp);
        fixture.layer_config()["attention_bias"] = flag.clone();
        fixture.layer_config()["mlp_bias"] = flag;
        let (eagle3, report) = open(fixture.write().path(), &Options::default());
        let layer = &eagle3.layers[0];
        for linear in [&layer.query, &layer.key, &layer.value, &layer.output] {
            assert_eq!(linear.bias.is_some(), expected);
        }
        let mlp = gated_mlp(&eagle3);
        for linear in [&mlp.gate, &mlp.up, &mlp.down] {
            assert_eq!(linear.bias.is_some(), expected);
        }
        match note {
            Some(note) => assert!(corrected(&report, note)),
            None => assert!(report.warnings().is_empty()),
        }
    }
}

#[test]
fn biases_that_are_asked_for_and_not_stored_are_left_out_and_reported() {
    let mut fixture = Fixture::llama();
    fixture.layer_config()["attention_bias"] = json!(true);
    let (eagle3, report) = open(fixture.write().path(), &Options::default());
    assert!(eagle3.layers[0].query.bias.is_none());
    assert!(corrected(&report, "no bias is stored"));

    let fixture = with_biases(fixture, &ATTENTION[..3]);
    let (eagle3, report) = open(fixture.write().path(), &Options::default());
    assert!(eagle3.layers[0].query.bias.is_some() && eagle3.layers[0].output.bias.is_none());
    assert!(corrected(&report, "o_proj.bias is not stored"));

    let fixture =
        with_biases(Fixture { tensors: Fixture::llama().tensors, ..fixture }, &ATTENTION[1..]);
    let error = refused(checkpoint::open(fixture.write().path(), &Options::default()));
    assert!(error.to_string().contains("q_proj.bias"), "{error}");
}

#[test]
fn feature_norms_follow_the_flag_and_without_a_flag_the_tensors() {
    for flag in [json!(true), json!(null)] {
        let mut fixture = Fixture::llama();
        fixture.config["norm_before_fc"] = flag.clone();
        fixture.add("input_norm.weight", &[3 * HIDDEN]);
        let (eagle3, report) = open(fixture.write().path(), &Options::default());
        assert!(matches!(fusion(&eagle3).0, FeatureNorm::Joint(norm) if norm.columns == 24));
        assert_eq!(corrected(&report, "norm_before_fc is not set"), flag.is_null());

        let mut fixture = Fixture::llama();
        fixture.config["fc_norm"] = flag.clone();
        for index in 0..3 {
            fixture.add(&format!("fc_norm.{index}.weight"), &[HIDDEN]);
        }
        let (eagle3, report) = open(fixture.write().path(), &Options::default());
        assert_eq!(corrected(&report, "fc_norm is not set"), flag.is_null());
        let FeatureNorm::Each(norms) = fusion(&eagle3).0 else { panic!("expected three norms") };
        assert_eq!(norms.len(), 3);
        assert_ne!(values(&norms[0]), values(&norms[1]));
    }
}

#[test]
fn a_feature_norm_that_is_asked_for_and_not_stored_is_ones() {
    let mut fixture = Fixture::llama();
    fixture.config["norm_before_fc"] = json!(true);
    let (eagle3, report) = open(fixture.write().path(), &Options::default());
    let FeatureNorm::Joint(norm) = fusion(&eagle3).0 else { panic!("expected one norm") };
    assert_eq!(values(norm), [1.0; 24]);
    assert!(norm.mapped_address().is_none());
    assert!(corrected(&report, "input_norm.weight is not stored"));
    let absent = json!([{"name": "input_norm.weight", "instead": "ones"}]);
    assert_eq!(report.to_json()["tensors"]["absent"], absent);
}

#[test]
fn both_feature_norms_at_once_are_refused() {
    let mut fixture = Fixture::llama();
    fixture.config["norm_before_fc"] = json!(true);
    fixture.config["fc_norm"] = json!(true);
    let error = refused(checkpoint::open(fixture.write().path(), &Options::default()));
    assert_eq!(error.status(), Status::Format);
    assert!(error.to_string().contains("norm_before_fc or fc_norm"), "{error}");
}

#[test]
fn windows_are_resolved_as_each_family_does() {
    let sliding = json!(["sliding_attention", "full_attention"]);
    let none = json!(null);
    for (qwen3, enabled, window, kinds, from, expected) in [
        (true, json!(true), json!(12), &sliding, json!(0), [Some(12), None]),
        (true, json!(true), none.clone(), &sliding, json!(0), [Some(4096), None]),
        (true, json!(false), json!(12), &sliding, json!(0), [None, None]),
        (true, none.clone(), json!(12), &sliding, json!(0), [None, None]),
        (true, json!(true), json!(12), &none, json!(1), [None, Some(12)]),
        (true, json!(true), json!(12), &none, none.clone(), [None, None]),
        (false, none.clone(), json!(12), &sliding, none.clone(), [Some(12), None]),
        (false, none.clone(), none.clone(), &sliding, none.clone(), [None, None]),
        (false, none.clone(), json!(12), &none, none.clone(), [None, None]),
    ] {
        let mut fixture = if qwen3 { Fixture::qwen3() } else { Fixture::llama() };
        fixture.add_layer(1);
        if qwen3 {
            fixture.add("layers.1.self_attn.q_norm.weight", &[6]);
            fixture.add("layers.1.self_attn.k_norm.weight", &[6]);
        }
        let layer = fixture.layer_config();
        layer["num_hidden_layers"] = json!(2);
        layer["use_sliding_window"] = enabled;
        layer["sliding_window"] = window;
        layer["layer_types"] = kinds.clone();
        layer["max_window_layers"] = from;
        let (eagle3, _) = open(fixture.write().path(), &Options::default());
        let windows: Vec<_> = eagle3.layers.iter().map(|layer| layer.window).collect();
        assert_eq!(windows, expected, "{}", fixture.config);
    }
}

#[test]
fn the_vocabulary_is_rebuilt_from_either_tensor() {
    for (missing, kept) in [("d2t", "t2d"), ("t2d", "d2t")] {
        let mut fixture = Fixture::llama();
        fixture.remove(missing);
        let (eagle3, report) = open(fixture.write().path(), &Options::default());
        assert_eq!(eagle3.draft_token_ids.as_deref(), Some(&DRAFTED[..]));
        let absent = json!([{"name": missing, "instead": format!("derived from {kept}")}]);
        assert_eq!(report.to_json()["tensors"]["absent"], absent);
    }
}

#[test]
fn target_ids_in_place_of_offsets_are_recognised_by_the_mask() {
    let mut fixture = Fixture::llama();
    fixture.tensors.insert("d2t".into(), integers(&DRAFTED.map(i64::from)));
    let (eagle3, report) = open(fixture.write().path(), &Options::default());
    assert_eq!(eagle3.draft_token_ids.as_deref(), Some(&DRAFTED[..]));
    assert!(corrected(&report, "target ids"));
    fixture.remove("t2d");
    let error = refused(checkpoint::open(fixture.write().path(), &Options::default()));
    assert!(error.to_string().contains("\"d2t\""), "{error}");
}

#[test]
fn a_full_vocabulary_ignores_its_mapping() {
    let mut fixture = Fixture::llama();
    fixture.config["draft_vocab_size"] = json!(VOCABULARY);
    fixture.add("lm_head.weight", &[VOCABULARY, HIDDEN]);
    fixture.tensors.insert("d2t".into(), integers(&[0; VOCABULARY]));
    fixture.tensors.insert("t2d".into(), flags(&[1; VOCABULARY]));
    let (eagle3, report) = open(fixture.write().path(), &Options::default());
    assert!(eagle3.draft_token_ids.is_none());
    assert_eq!(report.to_json()["tensors"]["unused"].as_array().unwrap().len(), 2);
}

#[test]
fn missing_tables_come_from_the_verifier_and_nan_counts_as_missing() {
    let mut fixture = Fixture::llama();
    fixture.tensors.insert("embed_tokens.weight".into(), only_nan(&[VOCABULARY, HIDDEN]));
    fixture.remove("lm_head.weight");
    for tied in [false, true] {
        let target = verifier(tied);
        let verifier_directory = Some(target.path().to_path_buf());
        let options = Options { verifier_directory, ..Options::default() };
        let (eagle3, report) = open(fixture.write().path(), &options);
        let RowSource::Tensor(embedding) = &eagle3.embedding else { panic!("expected a tensor") };
        let RowSource::TensorRows { tensor: head } = &eagle3.head else { panic!("expected rows") };
        assert_eq!(embedding.path(), target.join("model.safetensors"));
        assert_eq!((head.rows, head.columns), (VOCABULARY, HIDDEN));
        let expected = if tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
        assert_eq!(head.name(), expected);
        let json = report.to_json();
        assert_eq!(json["tensors"]["absent"].as_array().unwrap().len(), 2);
        let unused = json!([{"name": "embed_tokens.weight",
            "reason": "all values are NaN: never filled"}]);
        assert_eq!(json["tensors"]["unused"], unused);
        let count = if tied { 1 } else { 2 };
        assert_eq!(json["verifier"]["tensors"].as_array().unwrap().len(), count);
    }
}

#[test]
fn the_verifier_is_found_where_the_checkpoint_says() {
    let target = verifier(true);
    let mut fixture = Fixture::llama();
    fixture.remove("embed_tokens.weight");
    let name = target.path().file_name().unwrap().to_str().unwrap();
    for path in [target.path().to_str().unwrap().to_string(), format!("../{name}")] {
        fixture.config["speculators_config"]["verifier"]["name_or_path"] = json!(path);
        let (eagle3, _) = open(fixture.write().path(), &Options::default());
        assert!(matches!(eagle3.embedding, RowSource::Tensor(_)));
    }
    fixture.config["speculators_config"]["verifier"]["name_or_path"] = json!("Some/Model-8B");
    let error = refused(checkpoint::open(fixture.write().path(), &Options::default()));
    assert_eq!(error.status(), Status::InvalidArgument);
    assert!(error.to_string().contains("verifier's directory"), "{error}");
}

#[test]
fn verifier_names_match_as_a_suffix_and_the_shortest_wins() {
    let target = verifier(true);
    let mut tensors = Tensors::new();
    tensors.insert("vision.model.embed_tokens.weight".into(), floats(1, &[3, 3]));
    tensors.insert("model.embed_tokens.weight".into(), floats(2, &[VOCABULARY + 4, HIDDEN]));
    tensors.insert("not_embed_tokens.weight".into(), floats(3, &[3, 3]));
    write_tensors(&target.join("model.safetensors"), &tensors);
    let mut fixture = Fixture::llama();
    fixture.remove("embed_tokens.weight");
    let verifier_directory = Some(target.path().to_path_buf());
    let options = Options { verifier_directory, ..Options::default() };
    let (eagle3, _) = open(fixture.write().path(), &options);
    let RowSource::Tensor(embedding) = &eagle3.embedding else { panic!("expected a tensor") };
    assert_eq!((embedding.name(), embedding.rows), ("model.embed_tokens.weight", VOCABULARY));
}

#[test]
fn lent_tables_fill_in_for_missing_ones_only() {
    let lent = |rows| Some(LentShape { rows, columns: HIDDEN, dtype: Dtype::Bf16 });
    let mut fixture = Fixture::llama();
    let options = Options { lent_embedding: lent(VOCABULARY), ..Options::default() };
    let (eagle3, report) = open(fixture.write().path(), &options);
    assert!(matches!(eagle3.embedding, RowSource::Tensor(_)));
    assert!(report.warnings()[0].contains("lent embedding is not used"));

    fixture.remove("embed_tokens.weight");
    fixture.remove("lm_head.weight");
    for (rows, whole) in [(VOCABULARY, false), (VOCABULARY + 1, false), (DRAFTED.len(), true)] {
        let options = Options { lent_head: lent(rows), ..options.clone() };
        let (eagle3, _) = open(fixture.write().path(), &options);
        assert!(matches!(eagle3.embedding, RowSource::Lent));
        assert_eq!(matches!(eagle3.head, RowSource::Lent), whole);
        assert_eq!(matches!(eagle3.head, RowSource::LentRows), !whole);
    }
    for rows in [0, DRAFTED.len() + 1, VOCABULARY - 1] {
        let options = Options { lent_head: lent(rows), ..options.clone() };
        let error = refused(checkpoint::open(fixture.write().path(), &options));
        assert_eq!(error.status(), Status::InvalidArgument);
        assert!(error.to_string().contains("lent head"), "{error}");
    }
}

#[test]
fn missing_feature_layers_are_counted_from_the_verifier() {
    let target = verifier(true);
    let mut fixture = Fixture::llama();
    for absent in [json!(null), json!([])] {
        fixture.config["eagle_aux_hidden_state_layer_ids"] = absent;
        let directory = fixture.write();
        let verifier_directory = Some(target.path().to_path_buf());
        let options = Options { verifier_directory, ..Options::default() };
        let (eagle3, report) = open(directory.path(), &options);
        assert_eq!(layers(&eagle3.features), [2, 4, 5]);
        let assumed = &report.to_json()["assumed_defaults"];
        assert_eq!(assumed["eagle_aux_hidden_state_layer_ids"], json!([2, 4, 5]));
        let error = refused(checkpoint::open(directory.path(), &Options::default()));
        assert_eq!(error.status(), Status::InvalidArgument);
        assert!(error.to_string().contains("verifier's directory"), "{error}");
    }
    let nested = json!({"text_config": {"num_hidden_layers": 20, "hidden_size": HIDDEN}});
    fs::write(target.join("config.json"), nested.to_string()).unwrap();
    let verifier_directory = Some(target.path().to_path_buf());
    let options = Options { verifier_directory, ..Options::default() };
    let (eagle3, _) = open(fixture.write().path(), &options);
    assert_eq!(layers(&eagle3.features), [2, 10, 17]);
}

#[test]
fn the_width_of_features_is_what_fc_was_trained_on() {
    let width = |columns: usize, target: Value| {
        let mut fixture = Fixture::llama();
        fixture.config["target_hidden_size"] = target;
        fixture.add("fc.weight", &[HIDDEN, columns]);
        let (eagle3, report) = open(fixture.write().path(), &Options::default());
        (eagle3.features[0].width, corrected(&report, "target_hidden_size"))
    };
    assert_eq!(width(3 * HIDDEN, json!(null)), (HIDDEN, false));
    assert_eq!(width(3 * 10, json!(10)), (10, false));
    assert_eq!(width(3 * HIDDEN, json!(10)), (HIDDEN, true));
}

#[test]
fn inspection_needs_no_verifier_and_says_what_to_bring() {
    let mut fixture = Fixture::llama();
    fixture.remove("embed_tokens.weight");
    fixture.config["eagle_aux_hidden_state_layer_ids"] = json!(null);
    fixture.config["norm_before_fc"] = json!(true);
    fixture.add("input_norm.weight", &[3 * HIDDEN]);
    let found = checkpoint::inspect(fixture.write().path()).unwrap();
    assert_eq!(found["supported"], true, "{found}");
    assert_eq!(found["needed_from_verifier"], json!(["embedding", "number of layers"]));
    assert_eq!(found["features"], Value::Null);
    assert_eq!(found["default_num_drafts"], 4);
    assert_eq!(found["config"]["transformer_layer_config"]["hidden_size"], HIDDEN);
    assert_eq!(found["tensors"].as_array().unwrap().len(), fixture.tensors.len());
}

#[test]
fn other_kinds_are_refused_by_name_and_can_be_inspected() {
    let mut fixture = Fixture::llama();
    for kind in ["medusa", "jetspec", "something-new"] {
        fixture.config["speculators_model_type"] = json!(kind);
        let directory = fixture.write();
        let error = refused(checkpoint::open(directory.path(), &Options::default()));
        assert_eq!(error.status(), Status::Unsupported);
        assert!(error.to_string().contains(&format!("found \"{kind}\"")), "{error}");
        let found = checkpoint::inspect(directory.path()).unwrap();
        assert_eq!((&found["kind"], &found["supported"]), (&json!(kind), &json!(false)));
        assert_eq!(found["reason"], error.to_string());
        assert_eq!(found["features"], json!([{"layer": 1}, {"layer": 3}, {"layer": 5}]));
    }
    fixture.config.as_object_mut().unwrap().remove("speculators_model_type");
    let error = refused(checkpoint::open(fixture.write().path(), &Options::default()));
    assert_eq!(error.status(), Status::Unsupported);
    assert!(error.to_string().contains("in a layout that is not known"), "{error}");
}

#[test]
fn kinds_that_were_never_released_are_told_from_unknown_ones() {
    let mut fixture = Fixture::llama();
    let mut reason = |kind: &str| {
        fixture.config["speculators_model_type"] = json!(kind);
        refused(checkpoint::open(fixture.write().path(), &Options::default())).to_string()
    };
    for kind in ["dels_spec", "dflare", "domino", "hydra", "jetspec", "medusa", "pard2"] {
        let text = reason(kind);
        let parts =
            [&format!("found {kind:?}; no release of the format has this kind: "), "config"];
        assert!(parts.iter().all(|part| text.contains(*part)), "{text}");
    }
    // What runs all the same says how.
    assert!(reason("pard2").contains(r#"{"speculators_model_type": "dflash"}"#));
    assert!(reason("something-new").ends_with("this version cannot load other kinds"));
}

#[test]
fn handles_can_be_shared_between_threads() {
    fn shared<T: Send + Sync + Clone>() {}
    shared::<Tensor>();
    shared::<checkpoint::Checkpoint>();
}
