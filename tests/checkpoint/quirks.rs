//! What releases of the format, converters and exporters got wrong or leave open: what is made of it, and
//! what the load report says.

use crate::fixture::*;
use safetensors::tensor::Dtype as FileDtype;
use serde_json::{Value, json};
use speculators::checkpoint::{self, Entry, Method, Options, Report, RowSource, Speculator};
use speculators::error::Status;
use speculators::tensor::Dtype;
use std::fs;
use std::path::Path;

fn open_alone(fixture: &Fixture) -> (Speculator, Report) {
    open(fixture.write().path(), &Options::default())
}

fn without(fixture: &mut Fixture, key: &str) {
    fixture.config.as_object_mut().unwrap().remove(key);
}

#[track_caller]
fn assert_refused(fixture: &Fixture, options: &Options, piece: &str) {
    let error = refused(checkpoint::open(fixture.write().path(), options));
    assert_eq!(error.status(), Status::Unsupported, "{error}");
    assert!(error.to_string().contains(piece), "expected {piece:?} in: {error}");
}

/// The settings of a verifier are rewritten by these.
fn rewrite_config(directory: &Path, changes: &Value) {
    let path = directory.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(path, config.to_string()).unwrap();
}

fn of_verifier(directory: &Directory) -> Options {
    Options { verifier_directory: Some(directory.path().to_path_buf()), ..Options::default() }
}

#[test]
fn a_missing_norm_before_residual_is_what_engines_take_it_for() {
    for (mut fixture, options, expected) in [
        (Fixture::llama(), Options::default(), true),
        (Fixture::reference("peagle/llama_fcin_nbr_bias"), beside("llama_untied"), false),
    ] {
        without(&mut fixture, "norm_before_residual");
        let directory = fixture.write();
        let (speculator, report) = open(directory.path(), &options);
        assert_eq!(speculator.norms_residual(), expected);
        let assumed = &report.to_json()["assumed_defaults"];
        assert_eq!(assumed["norm_before_residual"], expected);
        assert!(warned(&report, &format!("norm_before_residual is not set: taken as {expected}")));
        let overrides = Some(json!({"norm_before_residual": !expected}));
        let (speculator, report) = open(directory.path(), &Options { overrides, ..options });
        assert_eq!(speculator.norms_residual(), !expected);
        assert_eq!(report.warnings(), [] as [&str; 0]);
    }
}

#[test]
fn a_scaling_of_positions_that_a_converter_may_have_lost_is_warned_of_and_not_made_up() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0});
    let plain = json!({"rope_type": "default", "rope_theta": 10000.0});
    for (class, ours, theirs, is_warned) in [
        ("Eagle3Speculator", &plain, &llama3, true),
        ("Eagle3Speculator", &plain, &plain, false),
        ("Eagle3Speculator", &llama3, &llama3, false),
        ("Eagle3DraftModel", &plain, &llama3, false),
    ] {
        let target = verifier(true);
        rewrite_config(target.path(), &json!({ "rope_parameters": theirs }));
        let mut fixture = Fixture::llama();
        fixture.config["architectures"] = json!([class]);
        fixture.layer_config()["rope_parameters"] = ours.clone();
        let (speculator, report) = open(fixture.write().path(), &of_verifier(&target));
        assert_eq!(warned(&report, "those of the verifier are (llama3)"), is_warned, "{class}");
        // With or without its verifier, a file is run as it says.
        assert_eq!(speculator.decoder.rope, open_alone(&fixture).0.decoder.rope);
    }
}

#[test]
fn settings_of_the_verifier_that_cannot_be_read_do_not_stop_a_drafter() {
    let target = verifier(true);
    rewrite_config(target.path(), &json!({"rope_scaling": {"rope_type": 7}}));
    let mut fixture = Fixture::llama();
    fixture.config["architectures"] = json!(["Eagle3Speculator"]);
    let (_, report) = open(fixture.write().path(), &of_verifier(&target));
    assert_eq!(report.warnings(), [] as [&str; 0]);
}

#[test]
fn the_stored_type_counts_whatever_the_settings_say() {
    let mut fixture = Fixture::llama();
    fixture.config["torch_dtype"] = json!("bfloat16");
    fixture.layer_config()["dtype"] = json!("float16");
    let (speculator, report) = open_alone(&fixture);
    assert_eq!(fusion(&speculator).1.dtype, Dtype::F32);
    let report = report.to_json();
    let used = report["tensors"]["used"].as_array().unwrap();
    let fc = used.iter().find(|tensor| tensor["name"] == "fc.weight").unwrap();
    assert_eq!(fc["dtype"], "F32");
    let unused = &report["unused_settings"];
    assert_eq!(unused["torch_dtype"], "bfloat16");
    assert_eq!(unused["transformer_layer_config.dtype"], "float16");
}

#[test]
fn heads_are_as_wide_as_stored_where_the_first_converter_took_them_for_parts_of_the_hidden_size() {
    for stated in [json!(HIDDEN / 2), json!(null), json!(6)] {
        let mut fixture = Fixture::llama();
        fixture.layer_config()["head_dim"] = stated.clone();
        let (speculator, report) = open_alone(&fixture);
        assert_eq!(speculator.decoder.sizes.head_dim, 6);
        assert_eq!(speculator.decoder.rope.rotated(), 6);
        let is_corrected = corrected(&report, "head_dim: 6, as stored, instead of 4");
        assert_eq!(is_corrected, stated == 4, "{stated}");
        let assumed = &report.to_json()["assumed_defaults"]["transformer_layer_config.head_dim"];
        assert_eq!(assumed.is_number(), stated.is_null(), "{stated}");
    }
}

#[test]
fn early_dflash_files_have_an_identity_for_a_vocabulary_and_count_the_anchor_among_their_drafts() {
    let mut fixture = Fixture::reference("dflash/full_default");
    let vocabulary = 328;
    fixture.add("embed_tokens.weight", &[vocabulary, 72]);
    fixture.add("lm_head.weight", &[vocabulary, 72]);
    fixture.tensors.insert("d2t".into(), integers(&vec![0; vocabulary]));
    fixture.tensors.insert("t2d".into(), flags(&vec![1; vocabulary]));
    fixture.config["max_anchors"] = json!(256);
    fixture.config["speculators_config"]["proposal_methods"][0]["speculative_tokens"] = json!(5);
    for key in ["sample_from_anchor", "sliding_window_non_causal"] {
        without(&mut fixture, key);
    }
    let directory = fixture.write();
    let loaded = checkpoint::open(directory.path(), &Options::default()).unwrap();
    assert_eq!(loaded.default_num_drafts, 4);
    assert!(corrected(&loaded.report, "speculative_tokens: 4 instead of 5"));
    assert!(loaded.speculator.draft_token_ids.is_none());
    let RowSource::Tensor(head) = &loaded.speculator.head else { panic!("expected a tensor") };
    assert_eq!(head.name(), "lm_head.weight");
    let report = loaded.report.to_json();
    let unused = json!([{"name": "d2t", "reason": "all tokens are drafted"},
        {"name": "t2d", "reason": "all tokens are drafted"}]);
    assert_eq!(report["tensors"]["unused"], unused);
    assert_eq!(report["unused_settings"]["max_anchors"], 256);
    assert_eq!(report["unknown_settings"], json!({}));
    assert_eq!(report["assumed_defaults"]["sample_from_anchor"], false);
}

#[test]
fn sliding_layers_without_a_window_in_effect_are_told_of_once() {
    for enabled in [json!(null), json!(false)] {
        let mut fixture = Fixture::reference("dflash/full_default");
        let layer = fixture.layer_config();
        layer["use_sliding_window"] = enabled;
        layer["sliding_window"] = json!(16);
        layer["layer_types"] = json!(vec!["sliding_attention"; 2]);
        let (speculator, report) = open(fixture.write().path(), &beside("qwen3_tied"));
        assert!(speculator.layers.iter().all(|layer| layer.window.is_none() && layer.sees_block));
        assert!(corrected(&report, "sliding layers have no effective sliding_window"));
        assert_eq!(report.warnings().len(), 1, "{:?}", report.warnings());
    }
}

#[test]
fn early_dspark_files_are_told_by_what_their_proposal_says_however_it_is_spelled() {
    for (method, first_slot) in [
        (json!({"proposal_type": "greedy", "speculative_tokens": "4"}), 1),
        (json!({"proposal_type": "greedy", "speculative_tokens": 4.0}), 1),
        (json!({"proposal_type": "greedy", "speculative_tokens": 5}), 0),
        (json!({"proposal_type": "greedy"}), 0),
        (json!({"proposal_type": "dynamic_tree", "speculative_tokens": 48, "depth": 4}), 1),
        (json!({"proposal_type": "dynamic_tree", "speculative_tokens": 4, "depth": 5}), 0),
    ] {
        let mut fixture = Fixture::reference("dspark/vanilla");
        without(&mut fixture, "sample_from_anchor");
        fixture.config["speculators_config"]["proposal_methods"] = json!([method]);
        let (speculator, report) = open(fixture.write().path(), &beside("llama_untied"));
        let Method::Block(block) = &speculator.method else { panic!("expected blocks") };
        assert_eq!(block.first_slot, first_slot, "{method}");
        let report_json = report.to_json();
        assert_eq!(report_json["unknown_settings"], json!({}), "{method}");
        assert_eq!(report_json["assumed_defaults"]["sample_from_anchor"], first_slot == 0);
        let is_corrected = corrected(&report, "sample_from_anchor is not set: false");
        assert_eq!(is_corrected, first_slot == 1, "{method}");
    }
}

#[test]
fn released_names_of_a_refiner_and_of_codebooks_are_read_as_those_of_the_library() {
    const RELEASED: [(&str, &str); 9] = [
        ("refiner_head.token_embed.", "xpress_head.w1."),
        ("refiner_head.readout.", "xpress_head.w2."),
        ("refiner_head.down_h.", "xpress_head.down_h."),
        ("refiner_head.down_g.", "xpress_head.down_g."),
        ("refiner_head.in_proj.", "xpress_head.in_proj."),
        ("refiner_head.mix_l", "xpress_head.mix.L"),
        ("refiner_head.mlp_gate.", "xpress_head.mlp.gate_proj."),
        ("refiner_head.mlp_up.", "xpress_head.mlp.up_proj."),
        ("refiner_head.mlp_down.", "xpress_head.mlp.down_proj."),
    ];
    const CODEBOOKS: [(&str, &str); 2] = [
        (
            "candidate_selector.predecessor_codebook",
            "candidate_selector.predecessor_codebook.weight",
        ),
        ("candidate_selector.successor_codebook", "candidate_selector.successor_codebook.weight"),
    ];
    for (name, names) in [("xpress/fillin", &RELEASED[..]), ("dflash2/fillin", &CODEBOOKS)] {
        let sound = Fixture::reference(name);
        let mut fixture = sound.clone();
        names.iter().for_each(|(ours, released)| fixture.rename(ours, released));
        let (_, expected) = open(sound.write().path(), &beside("llama_untied"));
        let (speculator, report) = open(fixture.write().path(), &beside("llama_untied"));
        assert!(matches!(speculator.method, Method::Block(_)));
        for (ours, released) in names {
            assert!(corrected(&report, &format!("named {released}… are read as {ours}…")));
        }
        let used =
            |report: &Report| report.to_json()["tensors"]["used"].as_array().expect("a list").len();
        assert_eq!(used(&report), used(&expected), "{name}");
    }
    // Both at once are one too many.
    let mut fixture = Fixture::reference("xpress/fillin");
    fixture.add("xpress_head.w1.weight", &[272, 8]);
    let error = refused(checkpoint::open(fixture.write().path(), &beside("llama_untied")));
    assert!(error.to_string().contains("also stored as"), "{error}");
}

#[test]
fn what_is_left_over_from_training_is_said_to_be() {
    let mut fixture = Fixture::reference("xpress/fillin");
    fixture.add("refiner_head.causal_tril", &[6, 6]);
    fixture.add("verifier_norm.weight", &[80]);
    let (_, report) = open(fixture.write().path(), &beside("llama_untied"));
    assert_eq!(report.warnings(), [] as [&str; 0]);
    let unused = json!([
        {"name": "refiner_head.causal_tril", "reason": "computed from the configuration"},
        {"name": "verifier_norm.weight", "reason": "used in training only"},
    ]);
    assert_eq!(report.to_json()["tensors"]["unused"], unused);
}

#[test]
fn a_verifier_may_be_named_by_a_path_of_another_machine_or_not_at_all() {
    for verifier in [
        json!({"name_or_path": "/home/somebody/target", "architectures": []}),
        json!({"name_or_path": null, "architectures": []}),
        json!({"name_or_path": "", "architectures": null}),
        json!({}),
        json!(null),
    ] {
        let mut fixture = Fixture::llama();
        fixture.config["speculators_config"]["verifier"] = verifier;
        let (_, report) = open_alone(&fixture);
        assert_eq!(report.warnings(), [] as [&str; 0]);
        assert_eq!(report.to_json()["verifier"], Value::Null);
    }
}

#[test]
fn settings_that_are_tied_in_the_copy_of_the_verifiers_do_not_tie_the_drafter() {
    let mut fixture = Fixture::llama();
    fixture.layer_config()["tie_word_embeddings"] = json!(true);
    let (speculator, report) = open_alone(&fixture);
    let RowSource::Tensor(head) = &speculator.head else { panic!("expected a tensor") };
    assert_eq!(head.name(), "lm_head.weight");
    const KEY: &str = "transformer_layer_config.tie_word_embeddings";
    assert_eq!(report.to_json()["unused_settings"][KEY], true);
    // An MTP head has none of its own: whether its verifier's is tied, the verifier tells.
    let fixture = Fixture::reference("mtp/qwen3_postnorm");
    let (speculator, report) = open(fixture.write().path(), &beside("qwen3_tied"));
    let RowSource::Tensor(head) = &speculator.head else { panic!("expected a tensor") };
    assert_eq!(head.name(), "model.embed_tokens.weight");
    assert_eq!(report.to_json()["unused_settings"][KEY], true);
}

#[test]
fn a_mask_token_may_be_any_row_of_the_embedding_even_one_with_another_meaning() {
    for token in [0, 3, 327] {
        let mut fixture = Fixture::reference("dflash/full_default");
        fixture.config["mask_token_id"] = json!(token);
        let layer = fixture.layer_config();
        layer["pad_token_id"] = json!(token);
        layer["eos_token_id"] = json!([token]);
        let (speculator, report) = open(fixture.write().path(), &beside("qwen3_tied"));
        let Method::Block(block) = &speculator.method else { panic!("expected blocks") };
        assert_eq!(block.mask_token, token);
        assert_eq!(report.warnings(), [] as [&str; 0]);
        let unused = &report.to_json()["unused_settings"];
        assert_eq!(unused["transformer_layer_config.pad_token_id"], token);
    }
}

#[test]
fn quantized_drafters_are_refused_by_what_tells_them() {
    let compressed = json!({"quant_method": "compressed-tensors"});
    for name in ["eagle3/llama_base", "dflash/full_default", "mtp/qwen3_postnorm"] {
        let target = if name.starts_with("eagle3") { "llama_untied" } else { "qwen3_tied" };
        let sound = Fixture::reference(name);
        let mut fixture = sound.clone();
        fixture.layer_config()["quantization_config"] = compressed.clone();
        assert_refused(&fixture, &beside(target), "transformer_layer_config.quantization_config");
        let mut fixture = sound.clone();
        fixture.config["quantization_config"] = compressed.clone();
        assert_refused(&fixture, &beside(target), "quantization_config: expected unquantized");
        let projection = sound.tensors.keys().find(|name| name.ends_with("q_proj.weight"));
        let projection = projection.expect("a projection").clone();
        for suffix in ["_packed", "_scale", "_scale_inv"] {
            let mut fixture = sound.clone();
            fixture.rename(&projection, &format!("{projection}{suffix}"));
            let piece = format!("\"{projection}{suffix}\": expected unquantized weights");
            assert_refused(&fixture, &beside(target), &piece);
            let found = checkpoint::inspect(fixture.write().path()).unwrap();
            assert_eq!(found["supported"], false);
            assert!(found["reason"].as_str().unwrap().contains(&piece), "{}", found["reason"]);
        }
    }
}

#[test]
fn the_head_of_a_quantized_verifier_has_to_be_one_of_floats() {
    let mut fixture = Fixture::llama();
    fixture.remove("lm_head.weight");
    let embedding = || floats(1, &[VOCABULARY, HIDDEN]);
    let open_beside = |tied: Value, head: (&str, Stored)| {
        let target = verifier(true);
        let config = json!({"tie_word_embeddings": tied, "quantization_config": {"bits": 4}});
        rewrite_config(target.path(), &config);
        let mut tensors = Tensors::new();
        tensors.insert("model.embed_tokens.weight".into(), embedding());
        tensors.insert(head.0.into(), head.1);
        write_tensors(&target.join("model.safetensors"), &tensors);
        checkpoint::open(fixture.write().path(), &of_verifier(&target))
    };
    let of_bytes = |dtype| Stored {
        dtype,
        shape: vec![VOCABULARY, HIDDEN],
        bytes: vec![0; VOCABULARY * HIDDEN],
    };
    for tied in [json!(null), json!(true), json!(false)] {
        // Never the embedding in its place, though nothing says that the two are not tied.
        for (name, stored, piece) in [
            ("lm_head.weight", of_bytes(FileDtype::F8_E4M3), "found F8_E4M3"),
            ("lm_head.weight_packed", of_bytes(FileDtype::U8), "\"lm_head.weight_packed\""),
            ("model.lm_head.qweight", of_bytes(FileDtype::I8), "\"model.lm_head.qweight\""),
        ] {
            let error = refused(open_beside(tied.clone(), (name, stored)));
            assert_eq!(error.status(), Status::Unsupported, "{error}");
            assert!(error.to_string().contains(piece), "expected {piece:?} in {error}");
        }
    }
    // Whatever else is quantized: the head is what is read.
    let loaded = open_beside(json!(null), ("lm_head.weight", embedding())).unwrap();
    assert_eq!(loaded.report.to_json()["verifier"]["tensors"][0]["name"], "lm_head.weight");
    let packed = ("model.layers.0.mlp.up_proj.weight_packed", of_bytes(FileDtype::U8));
    let loaded = open_beside(json!(null), packed).unwrap();
    let tensors = &loaded.report.to_json()["verifier"]["tensors"];
    assert_eq!(tensors[0]["name"], "model.embed_tokens.weight");
}

#[test]
fn weights_that_only_python_can_read_are_refused_with_what_to_do() {
    for name in ["pytorch_model.bin", "pytorch_model.bin.index.json"] {
        let directory = Directory::new();
        Fixture::llama().write_config(directory.path());
        fs::write(directory.join(name), "{}").unwrap();
        let error = refused(checkpoint::open(directory.path(), &Options::default()));
        assert_eq!(error.status(), Status::Io);
        let piece = format!("found only {name}, which has to be converted");
        assert!(error.to_string().contains(&piece), "{error}");
    }
}

#[test]
fn vocabularies_are_read_in_every_type_that_exporters_write() {
    let retyped = |stored: &Stored, dtype: FileDtype| {
        let (from, to) = (stored.bytes.len() / stored.shape[0], dtype.bitsize() / 8);
        // All values are small and none is negative.
        let values = stored.bytes.chunks(from).flat_map(|bytes| {
            let mut wide = [0; 8];
            wide[..from].copy_from_slice(bytes);
            wide.into_iter().take(to)
        });
        Stored { dtype, shape: stored.shape.clone(), bytes: values.collect() }
    };
    for dtype in [FileDtype::U8, FileDtype::I32, FileDtype::I64] {
        for absolute in [false, true] {
            let mut fixture = Fixture::llama();
            let ids =
                if absolute { integers(&DRAFTED.map(i64::from)) } else { offsets_of(&DRAFTED) };
            fixture.tensors.insert("d2t".into(), retyped(&ids, dtype));
            fixture.tensors.insert("t2d".into(), retyped(&mask_of(&DRAFTED), dtype));
            let (speculator, report) = open_alone(&fixture);
            assert_eq!(speculator.draft_token_ids.as_deref(), Some(&DRAFTED[..]), "{dtype:?}");
            assert_eq!(corrected(&report, "d2t holds target ids"), absolute, "{dtype:?}");
            assert_eq!(report.warnings().len(), usize::from(absolute));
        }
    }
}

#[test]
fn verifiers_of_several_modalities_are_read_by_their_text_part() {
    let mut fixture = Fixture::llama();
    fixture.remove("embed_tokens.weight");
    fixture.remove("lm_head.weight");
    fixture.config["eagle_aux_hidden_state_layer_ids"] = json!(null);
    for (outer, inner) in [
        (json!(true), json!(null)),
        (json!(null), json!(null)),
        (json!(false), json!(true)),
        (json!(null), json!(true)),
    ] {
        let target = verifier(true);
        let config = json!({
            "tie_word_embeddings": outer, "hidden_size": 3, "num_hidden_layers": 2,
            "text_config": {"num_hidden_layers": 20, "hidden_size": HIDDEN,
                "vocab_size": VOCABULARY - 2, "tie_word_embeddings": inner},
            "vision_config": {"hidden_size": 5},
        });
        fs::write(target.join("config.json"), config.to_string()).unwrap();
        // As many rows as the drafter has tokens, and padding, whatever the settings say.
        let mut tensors = Tensors::new();
        let name = "model.language_model.embed_tokens.weight";
        tensors.insert(name.into(), floats(2, &[VOCABULARY + 4, HIDDEN]));
        tensors.insert("model.visual.patch_embed.weight".into(), floats(1, &[3, 3]));
        write_tensors(&target.join("model.safetensors"), &tensors);
        let (speculator, report) = open(fixture.write().path(), &of_verifier(&target));
        let RowSource::Tensor(embedding) = &speculator.embedding else { panic!("a tensor") };
        assert_eq!((embedding.name(), embedding.rows), (name, VOCABULARY));
        let RowSource::TensorRows { tensor: head } = &speculator.head else { panic!("rows") };
        assert_eq!(head.name(), name);
        let ids: Vec<i32> = speculator.features.iter().map(|feature| feature.layer).collect();
        assert_eq!(ids, [2, 10, 17]);
        let read = &report.to_json()["verifier"]["tensors"];
        assert_eq!(read[0]["shape"], json!([VOCABULARY + 4, HIDDEN]));
    }
}

#[test]
fn a_stored_embedding_may_have_rows_that_stand_for_no_token() {
    let mut fixture = Fixture::llama();
    fixture.add("embed_tokens.weight", &[VOCABULARY + 4, HIDDEN]);
    let (speculator, report) = open_alone(&fixture);
    let RowSource::Tensor(embedding) = &speculator.embedding else { panic!("a tensor") };
    assert_eq!(embedding.rows, VOCABULARY);
    assert_eq!(values(embedding).len(), VOCABULARY * HIDDEN);
    assert_eq!(report.warnings(), [] as [&str; 0]);
}

/// Settings that are in no release that is known, at every level.
#[test]
fn settings_of_other_releases_are_kept_as_unknown_and_refused_nowhere() {
    for name in [
        "dflash/full_default",
        "dflash2/fillin",
        "dspark/vanilla",
        "eagle/plain",
        "eagle3/llama_base",
        "mtp/qwen3_postnorm",
        "peagle/llama_base",
        "xpress/fillin",
    ] {
        let mut fixture = Fixture::reference(name);
        let target = match name {
            "dflash/full_default" | "mtp/qwen3_postnorm" => "qwen3_tied",
            _ => "llama_untied",
        };
        let paths = [
            "",
            "speculators_config",
            "speculators_config.verifier",
            "speculators_config.proposal_methods[0]",
            "transformer_layer_config",
            "transformer_layer_config.rope_parameters",
        ];
        let mut expected = serde_json::Map::new();
        for path in paths {
            let pointer = path.replace(['.', '['], "/").replace(']', "");
            let pointer = if path.is_empty() { pointer } else { format!("/{pointer}") };
            let object = fixture.config.pointer_mut(&pointer).unwrap();
            object["of_2027"] = json!([1, {"a": null}]);
            let dot = if path.is_empty() { "" } else { "." };
            expected.insert(format!("{path}{dot}of_2027"), json!([1, {"a": null}]));
        }
        // What transformers writes into every configuration of its older releases.
        for (key, value) in [("return_dict", json!(true)), ("num_labels", json!(2))] {
            fixture.config[key] = value.clone();
            expected.insert(key.into(), value);
        }
        let (_, report) = open(fixture.write().path(), &beside(target));
        assert_eq!(report.to_json()["unknown_settings"], Value::Object(expected), "{name}");
        assert_eq!(report.warnings(), [] as [&str; 0], "{name}");
    }
}

#[test]
fn of_two_tables_of_positions_that_of_sliding_layers_is_used_and_what_is_unknown_beside_them_kept()
{
    let table = |theta: f64| json!({"rope_type": "default", "rope_theta": theta, "of_2027": 1});
    let mut fixture = Fixture::llama();
    fixture.layer_config()["rope_parameters"] =
        json!({"full_attention": table(1e6), "sliding_attention": table(1e4), "of_2027": 2});
    let (speculator, report) = open_alone(&fixture);
    assert_eq!(speculator.decoder.rope, open_alone(&Fixture::llama()).0.decoder.rope);
    assert!(corrected(&report, "sliding_attention: used for layers of both kinds"));
    let unknown = json!({"transformer_layer_config.rope_parameters.of_2027": 2,
        "transformer_layer_config.rope_parameters.sliding_attention.of_2027": 1});
    assert_eq!(report.to_json()["unknown_settings"], unknown);
}

/// As the first release wrote it: three fields of its own, positions as older transformers spell them.
#[test]
fn a_configuration_of_the_first_release_is_read() {
    let mut fixture = Fixture::llama();
    for key in ["norm_before_fc", "fc_norm", "norm_output", "eagle_aux_hidden_state_layer_ids"] {
        without(&mut fixture, key);
    }
    fixture.config["speculators_version"] = json!("0.1.0.dev42");
    fixture.config["architectures"] = json!(["Eagle3Speculator"]);
    fixture.config["auto_map"] = json!({"": "eagle3.Eagle3SpeculatorConfig"});
    fixture.config["has_no_defaults_at_init"] = json!(false);
    fixture.config["torch_dtype"] = json!("bfloat16");
    let layer = fixture.layer_config();
    layer["rope_theta"] = json!(10000);
    layer["rope_scaling"] = json!(null);
    layer.as_object_mut().unwrap().remove("rope_parameters");
    let target = verifier(false);
    let (speculator, report) = open(fixture.write().path(), &of_verifier(&target));
    assert!(matches!(speculator.method, Method::Sequential { entry: Entry::Features(_), .. }));
    let report_json = report.to_json();
    let assumed = json!({"fc_norm": false, "norm_before_fc": false, "norm_output": false,
        "eagle_aux_hidden_state_layer_ids": [2, 4, 5]});
    assert_eq!(report_json["assumed_defaults"], assumed);
    assert_eq!(report_json["unknown_settings"], json!({}));
    assert_eq!(report.warnings(), [] as [&str; 0]);
    let unused = &report_json["unused_settings"];
    assert_eq!(unused["auto_map"][""], "eagle3.Eagle3SpeculatorConfig");
    assert_eq!(unused["has_no_defaults_at_init"], false);
}
