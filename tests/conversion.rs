//! Checkpoints in the layouts of research repositories: they are converted as the original converter does
//! it, and draft the same whether they are loaded as they are or converted.

mod device;
#[path = "checkpoint/fixture.rs"]
#[allow(dead_code)]
mod fixture;
mod host;
#[path = "checkpoint/original.rs"]
#[allow(dead_code)]
mod original;

use fixture::{
    Directory, Fixture, Stored, Tensors, floats, shard_name, write_index, write_tensors,
};
use host::draft::{DraftCall, Drafts, Place, Text, Turn};
use host::random::Random;
use host::{Context, Model, Session, golden, session_options};
use original::{Original, json_in, tensors_in};
use safetensors::tensor::Dtype;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use speculators::capi::*;
use speculators::checkpoint::{self, Conversion, Converted, Options, Stitched};
use speculators::error::Status;
use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_void};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};

fn same(a: &Stored, b: &Stored) -> bool {
    (a.dtype, &a.shape, &a.bytes) == (b.dtype, &b.shape, &b.bytes)
}

fn target(name: &str) -> PathBuf {
    golden::root().join("targets").join(name)
}

fn convert(source: &Path, wanted: &Conversion, output: &Path) -> Value {
    let ready = Converted::prepare(source, wanted).unwrap_or_else(|error| panic!("{error}"));
    ready.write(output, &mut |_, _| true).unwrap_or_else(|error| panic!("{error}"));
    ready.report().clone()
}

// ---- What the original makes of it -----------------------------------------------------------------

fn conversion(original: &Original) -> Conversion {
    let expected = json_in(&original.directory.join("output/config.json"));
    let verifier = expected["speculators_config"]["verifier"]["name_or_path"].as_str();
    let arguments = original
        .option("--algorithm-kwargs")
        .map_or(json!({}), |text| serde_json::from_str(text).expect("JSON"));
    Conversion {
        verifier_directory: verifier.map(target),
        algorithm: original.option("--algorithm").map(str::to_owned),
        arguments: arguments.as_object().cloned().expect("an object"),
    }
}

fn digest(stored: &Stored) -> String {
    Sha256::digest(&stored.bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>()[..24]
        .into()
}

/// A configuration without what differs on purpose: the original writes Python files beside it, and the
/// verifier as it was named.
fn comparable(mut config: Value) -> Value {
    config.as_object_mut().expect("an object").remove("auto_map");
    let name = &mut config["speculators_config"]["verifier"]["name_or_path"];
    let path = PathBuf::from(name.as_str().expect("a name"));
    *name = path.file_name().expect("a name").to_string_lossy().into();
    config
}

#[test]
fn conversions_are_those_of_the_original_but_for_what_is_better() {
    let mut seen = 0;
    for original in Original::all(&golden::root()) {
        let Some(source) = original.write_input() else { continue };
        println!("{}", original.name);
        let output = Directory::new();
        convert(source.path(), &conversion(&original), output.path());
        let expected = comparable(json_in(&original.directory.join("output/config.json")));
        let found = comparable(json_in(&output.join("config.json")));
        assert_eq!(found, expected, "{}", original.name);
        let found = tensors_in(&output.join("model.safetensors"));
        let mut expected = original.about["output_tensors"].as_object().cloned().expect("tensors");
        // What was never filled is left out.
        expected.remove("verifier_lm_head.weight");
        for (name, described) in &expected {
            let stored = found.get(name).unwrap_or_else(|| panic!("{}: no {name}", original.name));
            assert_eq!(digest(stored), described["sha256_24"], "{}, {name}", original.name);
            let dtype = match format!("{:?}", stored.dtype).as_str() {
                "F32" => "float32",
                "I64" => "int64",
                "BOOL" => "bool",
                other => panic!("{other}"),
            };
            assert_eq!(
                (json!(dtype), json!(stored.shape)),
                (described["dtype"].clone(), described["shape"].clone())
            );
        }
        let more: Vec<_> = found.keys().filter(|name| !expected.contains_key(*name)).collect();
        // A norm that the settings ask for is not lost.
        let is_kept = original.name == "eagle3_research_norm_before_fc";
        assert_eq!(
            more,
            if is_kept { vec!["input_norm.weight"] } else { vec![] },
            "{}",
            original.name
        );
        seen += 1;
    }
    assert!(seen >= 9, "only {seen}");
}

// ---- The reference checkpoints in other layouts ----------------------------------------------------

/// The settings of the decoder beside those of the kind.
fn flat(config: &Value) -> Map<String, Value> {
    let mut flat = config["transformer_layer_config"].as_object().cloned().expect("a decoder");
    flat.insert("torch_dtype".into(), "float32".into());
    flat
}

fn by_output(ids: &Value) -> Value {
    ids.as_array().expect("layers").iter().map(|id| id.as_i64().expect("a layer") - 1).collect()
}

/// What a reference checkpoint looks like in the layout of those who invented its kind.
fn research(kind: &str, reference: &Fixture, target: &Path) -> Fixture {
    let Fixture { config, tensors } = reference;
    let mut fixture = Fixture { config: flat(config).into(), tensors: tensors.clone() };
    let all = config.as_object().expect("an object");
    let copy = |flat: &mut Value, keys: &[&str]| {
        keys.iter().for_each(|key| flat[*key] = all.get(*key).cloned().unwrap_or_default());
    };
    match kind {
        "eagle" => {
            fixture.config["architectures"] = json!(["LlamaForCausalLM"]);
            fixture.rename("fusion_fc.", "fc.");
            for (new, old) in [
                ("embed_layernorm.", "embedding_layernorm."),
                ("hidden_layernorm.", "transformer.input_layernorm."),
                ("lm_head_layernorm.", "pre_lm_head_layernorm."),
            ] {
                if config["layernorms"] == true {
                    fixture.rename(old, new);
                }
            }
            fixture.rename("transformer.", "layers.0.");
        }
        "eagle3" | "peagle" => {
            copy(
                &mut fixture.config,
                &["norm_before_residual", "draft_vocab_size", "norm_output", "target_hidden_size"],
            );
            fixture.config["architectures"] = json!(["LlamaForCausalLMEagle3"]);
            let ids = &config["eagle_aux_hidden_state_layer_ids"];
            fixture.config["eagle_config"] = match ids.as_array() {
                // The convention of those whose first layer is 1.
                Some(listed) if listed[0] == 2 => {
                    json!({"eagle_aux_hidden_state_layer_ids": by_output(ids)})
                }
                _ => json!({}),
            };
            if fixture.config["eagle_config"] == json!({}) {
                fixture.config["eagle_aux_hidden_state_layer_ids"] = ids.clone();
            }
            if kind == "peagle" {
                fixture.config["ptd_token_id"] = config["mask_token_id"].clone();
            }
            fixture.rename("layers.0.", "midlayer.");
        }
        "mtp" => {
            fixture.config["mtp_num_hidden_layers"] = 1.into();
            take_experts_apart(&mut fixture.tensors);
            for (new, old) in [
                ("mtp.fc.", "mtp_layers.0.input_proj."),
                ("mtp.norm.", "mtp_layers.0.final_layernorm."),
                ("mtp.pre_fc_norm_hidden.", "mtp_layers.0.hidden_layernorm."),
                ("mtp.pre_fc_norm_embedding.", "mtp_layers.0.token_layernorm."),
                ("mtp.layers.0.", "mtp_layers.0."),
            ] {
                fixture.rename(old, new);
            }
            fixture.tensors.extend(tensors_in(&target.join("model.safetensors")));
        }
        _ => {
            fixture.config["architectures"] = json!(["DFlashDraftModel"]);
            let mut inner = json!({
                "target_layer_ids": by_output(&config["aux_hidden_state_layer_ids"]),
                "mask_token_id": config["mask_token_id"],
                "sample_from_anchor": config["sample_from_anchor"],
            });
            copy(&mut fixture.config, &["draft_vocab_size"]);
            if config["sliding_window_non_causal"] == true {
                fixture.config["is_causal"] = false.into();
            }
            let mut to_inner =
                |keys: &[&str]| keys.iter().for_each(|key| inner[*key] = config[*key].clone());
            match kind {
                "dflash" => to_inner(&["block_size"]),
                "dflash2" => {
                    let own = [
                        "block_size",
                        "conv_kernel_size",
                        "conv_group_size",
                        "selector_rank",
                        "selector_top_k",
                    ];
                    to_inner(&own);
                    for name in ["predecessor_codebook", "successor_codebook"] {
                        let name = format!("candidate_selector.{name}");
                        fixture.rename(&name, &format!("{name}.weight"));
                    }
                }
                "dspark" => {
                    fixture.config["architectures"] = json!(["Qwen3DSparkModel"]);
                    let flat = fixture.config.as_object_mut().expect("an object");
                    flat.extend(
                        std::mem::take(&mut inner).as_object().cloned().expect("an object"),
                    );
                    for key in [
                        "block_size",
                        "confidence_head_with_markov",
                        "enable_confidence_head",
                        "markov_head_type",
                        "markov_rank",
                    ] {
                        flat.insert(key.into(), config[key].clone());
                    }
                }
                "xpress" => {
                    let number = |key: &str| config[key].as_u64().expect("a number");
                    let (rank, ratio) = (number("xpress_rank"), number("xpress_mlp_ratio"));
                    inner["xpress_block_size"] = config["block_size"].clone();
                    inner["xpress_rank"] = rank.into();
                    inner["xpress_mlp_hidden"] = (rank * ratio).into();
                    inner["xpress_num_passes"] = config["num_jacobi_passes"].clone();
                    inner["xpress_topc"] = 512.into();
                    for (new, old) in [
                        ("xpress_head.w1.", "refiner_head.token_embed."),
                        ("xpress_head.w2.", "refiner_head.readout."),
                        ("xpress_head.down_", "refiner_head.down_"),
                        ("xpress_head.in_proj.", "refiner_head.in_proj."),
                        ("xpress_head.mix.L", "refiner_head.mix_l"),
                        ("xpress_head.mlp.gate_proj.", "refiner_head.mlp_gate."),
                        ("xpress_head.mlp.up_proj.", "refiner_head.mlp_up."),
                        ("xpress_head.mlp.down_proj.", "refiner_head.mlp_down."),
                    ] {
                        fixture.rename(old, new);
                    }
                }
                other => panic!("{other}: what layout do its inventors use?"),
            }
            if inner.is_object() {
                fixture.config["dflash_config"] = inner;
            }
        }
    }
    fixture
}

/// Stores the experts of a layer each on its own, as verifiers do.
fn take_experts_apart(tensors: &mut Tensors) {
    const EXPERTS: &str = "mtp_layers.0.mlp.experts.";
    let Some(gate_up) = tensors.remove(&format!("{EXPERTS}gate_up_proj")) else { return };
    let down = tensors.remove(&format!("{EXPERTS}down_proj")).expect("the ways back");
    let mut put = |joint: &Stored, index: usize, (part, parts): (usize, usize), name: &str| {
        let len = joint.bytes.len() / joint.shape[0] / parts;
        let first = (index * parts + part) * len;
        let stored = Stored {
            dtype: joint.dtype,
            shape: vec![joint.shape[1] / parts, joint.shape[2]],
            bytes: joint.bytes[first..first + len].to_vec(),
        };
        tensors.insert(format!("{EXPERTS}{index}.{name}.weight"), stored);
    };
    for index in 0..gate_up.shape[0] {
        put(&gate_up, index, (0, 2), "gate_proj");
        put(&gate_up, index, (1, 2), "up_proj");
        put(&down, index, (0, 1), "down_proj");
    }
}

fn drafts(model: &Model) -> Vec<Drafts> {
    let info = model.info();
    let options = spec_session_options {
        max_sequences: 2,
        max_rows: 64,
        max_drafts: 8,
        max_position: 64,
        page_size: 8,
        ..session_options()
    };
    let session = Session::create(model, &options).expect("a session");
    let text = Text::random(&mut Random::new(5), 22, info.vocabulary, &model.widths());
    let drafts = info.most_drafts.min(4);
    let turns = [
        Turn::new(&text, 0..21, drafts, Place::Slot(0)),
        Turn::new(&text, 0..9, drafts, Place::Slot(1)),
    ];
    let found = DraftCall::of(&turns).run(&session).expect("a drafting call");
    session.poll().expect("no fault");
    found
}

#[test]
fn research_layouts_draft_the_same_as_they_are_and_converted() {
    let context = Context::with_threads(1);
    let mut kinds = BTreeMap::new();
    for case in golden::supported_cases() {
        let reference =
            case.directory.strip_prefix(golden::root().join("speculators")).expect("a case");
        let mut fixture = Fixture::of(&case.directory);
        fixture = research(&case.kind, &fixture, &case.target);
        let source = fixture.write();
        println!("{}", reference.display());
        let expected = drafts(&case.load(&context).expect("a model"));
        let direct = case.load_from(&context, source.path()).expect("a model");
        assert_eq!(drafts(&direct), expected, "{}", reference.display());
        let report = direct.report();
        assert!(report["translation"]["layout"].is_string(), "{report}");
        let output = Directory::new();
        let wanted =
            Conversion { verifier_directory: Some(case.target.clone()), ..Conversion::default() };
        let account = convert(source.path(), &wanted, output.path());
        assert_eq!(account["kind"], case.kind);
        let converted = case.load_from(&context, output.path()).expect("a model");
        assert_eq!(drafts(&converted), expected, "{}", reference.display());
        *kinds.entry(case.kind.clone()).or_insert(0) += 1;
    }
    assert!(kinds.len() >= 8, "{kinds:?}");
}

// ---- What becomes of outputs -----------------------------------------------------------------------

/// A source in the layout of EAGLE-3's authors.
fn eagle3() -> Fixture {
    let reference = Fixture::of(&golden::root().join("speculators/eagle3/llama_base"));
    research("eagle3", &reference, Path::new(""))
}

fn refused(source: &Path, wanted: &Conversion) -> (Status, String) {
    match Converted::prepare(source, wanted) {
        Ok(_) => panic!("{}: expected a refusal", source.display()),
        Err(error) => (error.status(), error.to_string()),
    }
}

/// Everything in a directory, with its contents.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries =
        fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), fs::read(path).expect("a file")))
        .collect()
}

#[test]
fn a_conversion_that_is_called_off_leaves_nothing() {
    let (source, place) = (eagle3().write(), Directory::new());
    let ready = Converted::prepare(source.path(), &Conversion::default()).expect("a conversion");
    let (mut calls, before) = (0, contents(source.path()));
    let error = ready.write(&place.join("out"), &mut |done, total| {
        calls += 1;
        assert!(done <= total);
        calls < 3
    });
    let error = error.expect_err("called off");
    assert_eq!((error.status(), calls), (Status::Cancelled, 3));
    assert_eq!(fs::read_dir(place.path()).expect("the place").count(), 0);
    let mut last = (0, 1);
    ready
        .write(&place.join("a/b/out"), &mut |done, total| {
            last = (done, total);
            true
        })
        .expect("the conversion");
    assert_eq!(last.0, last.1);
    assert_eq!(
        fs::metadata(place.join("a/b/out/model.safetensors")).expect("a file").len(),
        last.0
    );
    assert_eq!(fs::read_dir(place.join("a/b/out")).expect("the output").count(), 2);
    assert_eq!(contents(source.path()), before);
}

#[test]
fn outputs_that_hold_something_are_refused_and_kept() {
    let (source, place) = (eagle3().write(), Directory::new());
    fs::write(place.join("mine"), "mine").expect("a file");
    let ready = Converted::prepare(source.path(), &Conversion::default()).expect("a conversion");
    for output in [place.path().to_owned(), source.path().to_owned(), place.join("mine")] {
        let before = contents(output.parent().expect("a parent"));
        let error = ready.write(&output, &mut |_, _| true).expect_err("a refusal");
        assert!([Status::InvalidArgument, Status::Io].contains(&error.status()), "{error}");
        assert_eq!(contents(output.parent().expect("a parent")), before);
    }
    assert_eq!(fs::read(place.join("mine")).expect("a file"), b"mine");
    std::os::unix::fs::symlink("nowhere", place.join("link")).expect("a link");
    let link = ready.write(&place.join("link"), &mut |_, _| true).expect_err("a refusal");
    assert!(link.to_string().contains("found a link that leads nowhere"), "{link}");
    let below = ready.write(&place.join("mine/below"), &mut |_, _| true).expect_err("a refusal");
    assert_eq!(below.status(), Status::Io);
}

#[test]
fn mount_points_are_refused_before_anything_is_written() {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
    let is_empty =
        |path: &&Path| fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    let ready = Converted::prepare(eagle3().write().path(), &Conversion::default());
    let ready = ready.expect("a conversion");
    // A folder that is mounted once more in its own file system does not look like one.
    let device = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
    let begins_one =
        |path: &&Path| path.parent().is_some_and(|above| device(above) != device(path));
    for place in places.filter(is_empty).filter(begins_one) {
        let mut written = false;
        let error = ready.write(place, &mut |_, _| {
            written = true;
            true
        });
        let text = error.expect_err("a mount point cannot be replaced").to_string();
        assert!(text.contains("found a mount point") && !written, "{}: {text}", place.display());
    }
}

#[test]
fn sources_are_read_through_links_and_from_shards() {
    let (whole, shards, links, place) =
        (eagle3().write(), Directory::new(), Directory::new(), Directory::new());
    eagle3().write_shards(shards.path());
    for file in fs::read_dir(shards.path()).expect("the shards") {
        let file = file.expect("a file").path();
        std::os::unix::fs::symlink(
            &file,
            links.join(&file.file_name().expect("a name").to_string_lossy()),
        )
        .expect("a link");
    }
    std::os::unix::fs::symlink(place.path(), links.join("out")).expect("a link");
    let outputs = [(whole.path(), place.join("1")), (shards.path(), place.join("2"))];
    for (source, output) in &outputs {
        convert(source, &Conversion::default(), output);
    }
    let linked = Directory::new();
    convert(links.path(), &Conversion::default(), linked.path());
    let expected = fs::read(outputs[0].1.join("model.safetensors")).expect("a file");
    assert_eq!(fs::read(outputs[1].1.join("model.safetensors")).expect("a file"), expected);
    assert_eq!(fs::read(linked.join("model.safetensors")).expect("a file"), expected);
}

#[test]
fn what_cannot_be_converted_is_refused_with_the_reason() {
    let reference = Fixture::of(&golden::root().join("speculators/eagle3/llama_base"));
    let (status, message) = refused(reference.write().path(), &Conversion::default());
    assert_eq!(status, Status::InvalidArgument);
    assert!(message.contains("found \"eagle3\" in the speculators format"), "{message}");
    let check = |change: &dyn Fn(&mut Fixture, &mut Conversion), status: Status, expected: &str| {
        let (mut fixture, mut wanted) = (eagle3(), Conversion::default());
        change(&mut fixture, &mut wanted);
        let (found, message) = refused(fixture.write().path(), &wanted);
        assert_eq!(found, status, "{message}");
        assert!(message.contains(expected), "{message}");
    };
    check(
        &|_, wanted| wanted.algorithm = Some("medusa".into()),
        Status::InvalidArgument,
        "found \"medusa\"",
    );
    check(
        &|_, wanted| {
            wanted.arguments.insert("norm_befor_fc".into(), true.into());
        },
        Status::InvalidArgument,
        "found \"norm_befor_fc\"",
    );
    check(
        &|fixture, _| {
            fixture.remove("midlayer.mlp.up_proj.weight");
        },
        Status::Format,
        "layers.0.mlp.up_proj.weight",
    );
    check(
        &|fixture, _| fixture.add("layers.0.mlp.up_proj.weight", &[2, 2]),
        Status::Format,
        "midlayer or of layers.0, found both",
    );
    check(
        &|fixture, _| {
            fixture.config = json!({"model_type": "something"});
            fixture.tensors.retain(|name, _| name == "norm.weight");
        },
        Status::Unsupported,
        "found none that is known",
    );
    check(
        &|fixture, _| fixture.add("mask_hidden", &[1, 1, 240]),
        Status::Format,
        "mask_token_id: expected the token",
    );
}

#[test]
fn settings_that_would_change_what_is_drafted_are_refused() {
    let reference = Fixture::of(&golden::root().join("speculators/dflash2/fillin"));
    let sound = research("dflash2", &reference, Path::new(""));
    for (key, value, is_refused) in [
        ("output_multiplier", json!(1.0), false),
        ("output_multiplier", json!(0.5), true),
        ("input_embedding_scale", json!(8), true),
        ("final_logit_softcapping", json!(null), false),
        ("final_logit_softcapping", json!(30.0), true),
    ] {
        let mut fixture = sound.clone();
        fixture.config["dflash_config"][key] = value.clone();
        let source = fixture.write();
        let ready = Converted::prepare(source.path(), &Conversion::default());
        assert_eq!(ready.is_err(), is_refused, "{key}: {value}");
        if let Err(error) = ready {
            assert_eq!(error.status(), Status::Unsupported);
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}

#[test]
fn joint_projections_are_taken_apart_and_the_first_features_are_read() {
    let reference = Fixture::of(&golden::root().join("speculators/dflash/full_default"));
    let sound = research("dflash", &reference, Path::new(""));
    let mut joint = sound.clone();
    for layer in 0..2 {
        let begin = format!("layers.{layer}.self_attn.");
        let parts = ["q_proj", "k_proj", "v_proj"]
            .map(|part| joint.remove(&format!("{begin}{part}.weight")));
        let whole = Stored {
            dtype: parts[0].dtype,
            shape: vec![parts.iter().map(|part| part.shape[0]).sum(), parts[0].shape[1]],
            bytes: parts.iter().flat_map(|part| part.bytes.clone()).collect(),
        };
        joint.tensors.insert(format!("{begin}qkv_proj.weight"), whole);
        joint.add(&format!("{begin}g_proj.weight"), &[4, 72]);
    }
    joint.add("aux_hidden_norms.0.weight", &[72]);
    // A projection of one more feature than is listed.
    let narrow = joint.remove("fc.weight");
    let row = narrow.shape[1] * 4;
    let wide = narrow.bytes.chunks(row).flat_map(|row| row.iter().copied().chain([7; 72 * 4]));
    let (shape, bytes) = (vec![72, narrow.shape[1] + 72], wide.collect());
    joint.tensors.insert("fc.weight".into(), Stored { dtype: narrow.dtype, shape, bytes });
    let outputs = [sound, joint].map(|fixture| {
        let output = Directory::new();
        let account = convert(fixture.write().path(), &Conversion::default(), output.path());
        (account, tensors_in(&output.join("model.safetensors")))
    });
    let [(_, expected), (account, found)] = &outputs;
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert!(found.iter().all(|(name, stored)| same(stored, &expected[name])));
    assert_eq!(account["dropped"].as_array().map(Vec::len), Some(3), "{account}");
}

#[test]
fn layers_are_counted_as_the_format_counts_them_and_the_report_says_so() {
    let mut fixture = eagle3();
    let ids = |fixture: &Fixture| {
        let source = fixture.write();
        let checkpoint = checkpoint::inspect(source.path()).expect("a description");
        checkpoint["features"]
            .as_array()
            .expect("features")
            .iter()
            .map(|f| f["layer"].clone())
            .collect::<Vec<_>>()
    };
    let object = fixture.config.as_object_mut().expect("an object");
    object.remove("eagle_aux_hidden_state_layer_ids");
    fixture.config["eagle_config"] = json!({"eagle_aux_hidden_state_layer_ids": [1, 2, 4]});
    assert_eq!(ids(&fixture), [2, 3, 5]);
    fixture.config["eagle_config"] = json!({"eagle_aux_hidden_state_layer_ids": [2, 3, 4]});
    assert_eq!(ids(&fixture), [2, 3, 4]);
    fixture.config["eagle_aux_hidden_state_layer_ids"] = json!([0, 1, 5]);
    assert_eq!(ids(&fixture), [0, 1, 5]);
    let reference = Fixture::of(&golden::root().join("speculators/dflash/full_default"));
    let mut fixture = research("dflash", &reference, Path::new(""));
    fixture.config["dflash_config"]["target_layer_ids"] = json!([-1, 4]);
    assert_eq!(ids(&fixture), [0, 5]);
    let report =
        Converted::prepare(fixture.write().path(), &Conversion::default()).expect("a conversion");
    let notes = report.report()["notes"].to_string();
    assert!(notes.contains("[-1, 4] are layers whose output is read: [0, 5]"), "{notes}");
}

#[test]
fn settings_that_nobody_reads_are_told() {
    let warnings = |fixture: &Fixture| {
        let source = fixture.write();
        let ready =
            Converted::prepare(source.path(), &Conversion::default()).expect("a conversion");
        ready.report()["warnings"].to_string()
    };
    let mut fixture = eagle3();
    assert_eq!(warnings(&fixture), "[]");
    fixture.config["use_swirl"] = 3.into();
    fixture.config["eagle_config"]["use_curl"] = 4.into();
    assert!(warnings(&fixture).contains("use_swirl: not known, not used: 3"));
    assert!(warnings(&fixture).contains("eagle_config.use_curl: not known, not used: 4"));
    let reference = Fixture::of(&golden::root().join("speculators/dflash/full_default"));
    let mut fixture = research("dflash", &reference, Path::new(""));
    assert_eq!(warnings(&fixture), "[]");
    fixture.config["dflash_config"]["use_swa"] = true.into();
    assert!(warnings(&fixture).contains("dflash_config.use_swa: not known, not used: true"));
}

fn converted(fixture: &Fixture, arguments: Value) -> Value {
    let source = fixture.write();
    let arguments = arguments.as_object().cloned().expect("an object");
    let wanted = Conversion { arguments, ..Conversion::default() };
    let ready = Converted::prepare(source.path(), &wanted);
    ready.unwrap_or_else(|error| panic!("{error}")).report().clone()
}

#[test]
fn arguments_hold_instead_of_settings_wherever_these_stand() {
    let reference = Fixture::of(&golden::root().join("speculators/dflash/full_default"));
    let fixture = research("dflash", &reference, Path::new(""));
    let found = converted(&fixture, json!({"mask_token_id": 9, "target_layer_ids": [2, 1]}));
    assert_eq!(found["config"]["mask_token_id"], 9);
    assert_eq!(found["config"]["aux_hidden_state_layer_ids"], json!([3, 2]));
    let drafts = |arguments| converted(&fixture, arguments)["config"]["speculators_config"].clone();
    let found = drafts(json!({"speculative_tokens": 2}));
    assert_eq!(found["proposal_methods"][0]["speculative_tokens"], 2);
    let wanted = Conversion {
        arguments: json!({"num_speculative_steps": 2}).as_object().cloned().expect("an object"),
        ..Conversion::default()
    };
    let (status, message) = refused(fixture.write().path(), &wanted);
    assert_eq!(status, Status::InvalidArgument);
    assert!(message.contains("expected speculative_tokens for dflash"), "{message}");
}

#[test]
fn biases_that_are_stored_are_kept_where_no_setting_speaks_of_them() {
    let reference = golden::root().join("speculators/eagle3/llama_bias_rope3");
    let sound = research("eagle3", &Fixture::of(&reference), Path::new(""));
    assert_eq!(sound.config["attention_bias"], true);
    let mut silent = sound.clone();
    silent.config.as_object_mut().expect("an object").remove("attention_bias");
    let mut renamed = silent.clone();
    renamed.config["qkv_bias"] = true.into();
    let expected = converted(&sound, json!({}));
    for fixture in [silent, renamed] {
        let found = converted(&fixture, json!({}));
        assert_eq!(found["config"]["transformer_layer_config"]["attention_bias"], true);
        assert_eq!(found["tensors"], expected["tensors"]);
        assert_eq!(found["warnings"], expected["warnings"]);
    }
}

#[test]
fn settings_of_heads_are_read_out_of_sections_as_well() {
    let reference = golden::root().join("speculators/dspark/gated_noconfmarkov");
    let flat = research("dspark", &Fixture::of(&reference), Path::new(""));
    let mut inner = flat.clone();
    let all = inner.config.as_object_mut().expect("an object");
    let keys = ["markov_rank", "markov_head_type", "confidence_head_with_markov", "mask_token_id"];
    let moved: Map<String, Value> =
        keys.iter().map(|key| ((*key).into(), all.remove(*key).expect("a setting"))).collect();
    all.insert("dflash_config".into(), moved.into());
    let (expected, found) = (converted(&flat, json!({})), converted(&inner, json!({})));
    for key in keys {
        assert_eq!(found["config"][key], expected["config"][key], "{key}");
    }
    assert_eq!(found["dropped"], expected["dropped"]);
}

#[test]
fn quantization_of_a_verifier_is_not_that_of_a_layer_that_is_stored_without() {
    let case = golden::supported_cases().into_iter().find(|case| case.name.contains("next_moe"));
    let case = case.expect("a reference checkpoint");
    let mut fixture = research("mtp", &Fixture::of(&case.directory), &case.target);
    let expected = converted(&fixture, json!({}))["config"].clone();
    fixture.config["quantization_config"] = json!({"quant_method": "awq", "bits": 4});
    assert_eq!(converted(&fixture, json!({}))["config"], expected);
}

#[test]
fn only_the_shards_with_the_mtp_layer_have_to_be_there() {
    let case = golden::supported_cases().into_iter().find(|case| case.name.contains("next_moe"));
    let case = case.expect("a reference checkpoint");
    let fixture = research("mtp", &Fixture::of(&case.directory), &case.target);
    let expected = converted(&fixture, json!({}))["tensors"].as_array().expect("tensors").len();
    let source = Directory::new();
    fixture.write_config(source.path());
    let is_of_layer = |name: &str| name.starts_with("mtp.");
    let shards = fixture
        .tensors
        .keys()
        .map(|name| (name.clone(), shard_name(usize::from(!is_of_layer(name))).into()));
    let files: Map<String, Value> = shards.collect();
    write_index(source.path(), &json!({"metadata": {"total_size": 0}, "weight_map": files}));
    let mut layer = fixture.tensors.clone();
    layer.retain(|name, _| is_of_layer(name));
    assert!(layer.len() < fixture.tensors.len(), "the model has tensors of its own");
    let shard = source.join(&shard_name(0));
    write_tensors(&shard, &layer);
    let ready = Converted::prepare(source.path(), &Conversion::default()).expect("a conversion");
    assert_eq!(ready.report()["tensors"].as_array().expect("tensors").len(), expected);
    fs::remove_file(shard).expect("a shard");
    let (status, message) = refused(source.path(), &Conversion::default());
    assert_eq!(status, Status::Io, "{message}");
}

#[test]
fn a_model_with_an_mtp_layer_is_its_own_verifier() {
    let context = Context::with_threads(1);
    let case =
        golden::supported_cases().into_iter().find(|case| case.name.contains("qwen3_postnorm"));
    let case = case.expect("a reference checkpoint");
    let fixture = research("mtp", &Fixture::of(&case.directory), &case.target);
    let source = fixture.write();
    let model = Model::load(&context, source.path(), None).expect("a model");
    assert_eq!(drafts(&model), drafts(&case.load(&context).expect("a model")));
    assert!(model.report()["translation"]["layout"].to_string().contains("MTP"));
}

// ---- The way back ----------------------------------------------------------------------------------

#[test]
fn what_is_stitched_is_the_model_with_the_weights_of_its_mtp_layer() {
    for case in golden::supported_cases().into_iter().filter(|case| case.kind == "mtp") {
        let reference = Fixture::of(&case.directory);
        let carrier = research("mtp", &reference, &case.target);
        for sharded in [false, true] {
            // The same model with other weights in its layer.
            let mut blank = carrier.clone();
            for (name, stored) in &mut blank.tensors {
                if name.starts_with("mtp.") {
                    stored.bytes.fill(0);
                }
            }
            let (verifier, output) = (Directory::new(), Directory::new());
            match sharded {
                true => drop(blank.write_shards(verifier.path())),
                false => {
                    blank.write_config(verifier.path());
                    write_tensors(&verifier.join("model.safetensors"), &blank.tensors);
                }
            }
            fs::write(verifier.join("tokenizer.json"), "{}").expect("a file");
            fs::create_dir(verifier.join("more")).expect("a folder");
            fs::write(verifier.join("more/file"), "text").expect("a file");
            let ready = Stitched::prepare(&case.directory, verifier.path());
            let ready = ready.unwrap_or_else(|error| panic!("{}: {error}", case.name));
            ready.write(output.path(), &mut |_, _| true).expect("the copy");
            let mut found = Tensors::new();
            for file in fs::read_dir(output.path()).expect("the output") {
                let file = file.expect("a file").path();
                if file.extension().is_some_and(|end| end == "safetensors") {
                    found.extend(tensors_in(&file));
                }
            }
            assert_eq!(
                found.keys().collect::<Vec<_>>(),
                carrier.tensors.keys().collect::<Vec<_>>()
            );
            assert!(
                found.iter().all(|(name, stored)| same(stored, &carrier.tensors[name])),
                "{}",
                case.name
            );
            assert_eq!(fs::read(output.join("more/file")).expect("a file"), b"text");
            assert_eq!(
                fs::read(output.join("config.json")).expect("a file"),
                fs::read(verifier.join("config.json")).expect("a file")
            );
            // And it loads as what it is.
            let opened = checkpoint::open(output.path(), &Options::default());
            opened.unwrap_or_else(|error| panic!("{}: {error}", case.name));
        }
    }
}

#[test]
fn what_does_not_fit_the_model_is_not_stitched() {
    let case =
        golden::supported_cases().into_iter().find(|case| case.kind == "mtp").expect("a case");
    let reference = Fixture::of(&case.directory);
    let carrier = research("mtp", &reference, &case.target);
    let verifier = Directory::new();
    carrier.write_shards(verifier.path());
    let refuse = |fixture: &Fixture, expected: &str| {
        let source = fixture.write();
        let Err(error) = Stitched::prepare(source.path(), verifier.path()) else {
            panic!("{expected}")
        };
        assert!(error.to_string().contains(expected), "{error}");
    };
    let mut other = reference.clone();
    other.config["speculators_model_type"] = "eagle3".into();
    refuse(&other, "expected \"mtp\", found \"eagle3\"");
    let mut other = reference.clone();
    other.add("layers.0.mlp.up_proj.weight", &[2, 2]);
    refuse(&other, "expected a tensor of mtp_layers.0");
    let mut other = reference.clone();
    other.add("mtp_layers.0.more.weight", &[2, 2]);
    refuse(&other, "among the verifier's");
    let mut other = reference.clone();
    other.remove("mtp_layers.0.final_layernorm.weight");
    other.add("mtp_layers.0.final_layernorm.weight", &[3]);
    refuse(&other, "as in the verifier, found [3]");
    let mut other = reference.clone();
    let huge = Stored { shape: vec![1 << 40, 0, 1], bytes: Vec::new(), ..floats(0, &[1]) };
    other.tensors.insert("mtp_layers.0.mlp.experts.gate_up_proj".into(), huge);
    refuse(&other, "expected at most 65536 experts of an even size");
}

#[test]
fn weights_are_not_put_in_the_place_of_quantized_ones() {
    let case =
        golden::supported_cases().into_iter().find(|case| case.name.contains("qwen3_postnorm"));
    let case = case.expect("a reference checkpoint");
    let mut carrier = research("mtp", &Fixture::of(&case.directory), &case.target);
    let name = "mtp.layers.0.mlp.up_proj.weight";
    let old = carrier.remove(name);
    let bytes = vec![0; old.bytes.len() / 4];
    carrier.tensors.insert(name.into(), Stored { dtype: Dtype::F8_E4M3, bytes, ..old });
    let verifier = carrier.write();
    let Err(error) = Stitched::prepare(&case.directory, verifier.path()) else {
        panic!("expected a refusal")
    };
    assert_eq!(error.status(), Status::Unsupported);
    let text = error.to_string();
    assert!(text.contains(name) && text.contains("found F8_E4M3"), "{text}");
}

#[test]
fn a_model_with_many_files_is_copied_whole() {
    let case =
        golden::supported_cases().into_iter().find(|case| case.kind == "mtp").expect("a case");
    let verifier = research("mtp", &Fixture::of(&case.directory), &case.target).write();
    for index in 0..300 {
        let folder = verifier.join(&format!("more/{}", index % 7));
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join(index.to_string()), format!("{index}")).expect("a file");
    }
    let place = Directory::new();
    let ready = Stitched::prepare(&case.directory, verifier.path()).expect("a model");
    ready.write(&place.join("out"), &mut |_, _| true).expect("the copy");
    for index in 0..300 {
        let name = format!("out/more/{}/{index}", index % 7);
        assert_eq!(fs::read(place.join(&name)).expect("a file"), index.to_string().as_bytes());
    }
    assert!(place.join("out/config.json").exists() && place.join("out/model.safetensors").exists());
    // Nothing is left of what was on its way, either when it is called off.
    let called_off = ready.write(&place.join("no"), &mut |done, all| done < all);
    assert_eq!(called_off.expect_err("called off").status(), Status::Cancelled);
    assert_eq!(fs::read_dir(place.path()).expect("the folder").count(), 1);
}

#[test]
fn links_to_folders_of_a_verifier_are_refused() {
    let case =
        golden::supported_cases().into_iter().find(|case| case.kind == "mtp").expect("a case");
    let verifier = research("mtp", &Fixture::of(&case.directory), &case.target).write();
    std::os::unix::fs::symlink(".", verifier.join("loop")).expect("a link");
    let Err(error) = Stitched::prepare(&case.directory, verifier.path()) else {
        panic!("expected a refusal")
    };
    assert!(error.to_string().contains("found a link to a folder"), "{error}");
}

// ---- From C ----------------------------------------------------------------------------------------

type Call = unsafe extern "C" fn(
    *const c_char,
    *const c_char,
    *const spec_convert_options,
    *mut c_char,
    u64,
    *mut u64,
    *mut spec_error,
) -> spec_status;

/// Calls a function with a buffer of this capacity; what it said, and the length that it told.
fn call(
    function: Call,
    (source, output): (&Path, Option<&Path>),
    options: Option<&spec_convert_options>,
    capacity: usize,
) -> (Result<String, host::Failure>, u64) {
    let (source, output) = (host::c_path(source), output.map(host::c_path));
    let (mut buffer, mut length) = (vec![0_u8; capacity], 0);
    let text = if capacity == 0 { null_mut() } else { buffer.as_mut_ptr().cast() };
    // SAFETY: strings and options live during the call, the buffer has its capacity.
    let outcome = host::attempt(|error| unsafe {
        let output = output.as_ref().map_or(null(), |path| path.as_ptr());
        let options = options.map_or(null(), |options| options);
        function(source.as_ptr(), output, options, text, capacity as u64, &mut length, error)
    });
    let told = outcome.map(|()| {
        buffer.truncate(buffer.iter().position(|&byte| byte == 0).unwrap_or(0));
        String::from_utf8(buffer).expect("UTF-8")
    });
    (told, length)
}

#[test]
fn the_report_is_the_same_whether_or_not_anything_is_written() {
    let (source, place) = (eagle3().write(), Directory::new());
    let output = place.join("out");
    let (told, length) = call(spec_checkpoint_convert, (source.path(), None), None, 0);
    assert_eq!(told.expect("a length"), "");
    let (told, _) =
        call(spec_checkpoint_convert, (source.path(), Some(&output)), None, length as usize);
    let failure = told.expect_err("no room for the NUL");
    assert_eq!(failure.status, SPEC_ERROR_INVALID_ARGUMENT);
    assert!(!output.exists(), "what could not be told was written");
    let capacity = length as usize + 1;
    let (report, _) = call(spec_checkpoint_convert, (source.path(), Some(&output)), None, capacity);
    let report: Value = serde_json::from_str(&report.expect("a report")).expect("JSON");
    assert_eq!(report["kind"], "eagle3");
    assert_eq!(report["layout"], "SpecForge EAGLE-3");
    let renamed =
        json!({"from": "midlayer.mlp.up_proj.weight", "to": "layers.0.mlp.up_proj.weight"});
    assert!(report["renamed"].as_array().expect("names").contains(&renamed), "{report}");
    assert_eq!(json_in(&output.join("config.json")), report["config"]);
    // Without any place for the report.
    let (source, output) = (host::c_path(source.path()), host::c_path(&place.join("2")));
    // SAFETY: strings that live during the call.
    host::attempt(|error| unsafe {
        spec_checkpoint_convert(
            source.as_ptr(),
            output.as_ptr(),
            null(),
            null_mut(),
            0,
            null_mut(),
            error,
        )
    })
    .expect("a conversion");
    assert!(place.join("2/model.safetensors").exists());
}

#[test]
fn options_are_read_and_wrong_ones_are_refused() {
    let (source, place) = (eagle3().write(), Directory::new());
    let verifier = host::c_path(&target("llama_untied"));
    let algorithm = CString::new("eagle3").expect("no NUL");
    let convert = |arguments: &str, change: &dyn Fn(&mut spec_convert_options)| {
        let arguments = CString::new(arguments).expect("no NUL");
        let mut options = spec_convert_options {
            verifier_directory: verifier.as_ptr(),
            algorithm: algorithm.as_ptr(),
            arguments: arguments.as_ptr(),
            ..host::Versioned::blank()
        };
        change(&mut options);
        call(spec_checkpoint_convert, (source.path(), None), Some(&options), 1 << 16).0
    };
    let report = convert("{\"speculative_tokens\": 6, \"norm_before_residual\": true}", &|_| {});
    let report: Value = serde_json::from_str(&report.expect("a report")).expect("JSON");
    let config = &report["config"];
    assert_eq!(config["norm_before_residual"], true);
    assert_eq!(config["speculators_config"]["proposal_methods"][0]["speculative_tokens"], 6);
    assert_eq!(
        config["speculators_config"]["verifier"]["architectures"],
        json!(["LlamaForCausalLM"])
    );
    for (arguments, expected) in
        [("[]", "arguments: expected a JSON object"), ("{", "arguments: EOF")]
    {
        let failure = convert(arguments, &|_| {}).expect_err("a refusal");
        assert_eq!(failure.status, SPEC_ERROR_INVALID_ARGUMENT);
        assert!(failure.message.contains(expected), "{}", failure.message);
    }
    let failure = convert("{}", &|options| options.flags = 1).expect_err("a refusal");
    assert_eq!(failure.status, SPEC_ERROR_UNSUPPORTED);
    let failure = convert("{}", &|options| options.struct_size = 8).expect_err("a refusal");
    assert!(failure.message.contains("struct_size"), "{}", failure.message);

    unsafe extern "C" fn stop(user: *mut c_void, done: u64, total: u64) -> i32 {
        // SAFETY: the counter of the test below, which lives during the call.
        unsafe { *user.cast::<u64>() += 1 };
        i32::from(done <= total)
    }
    let mut calls = 0_u64;
    let options = spec_convert_options {
        progress: Some(stop),
        progress_user: (&raw mut calls).cast(),
        ..host::Versioned::blank()
    };
    let output = place.join("out");
    let (told, _) =
        call(spec_checkpoint_convert, (source.path(), Some(&output)), Some(&options), 1 << 16);
    let failure = told.expect_err("called off");
    assert_eq!((failure.status, calls), (SPEC_ERROR_CANCELLED, 1));
    assert!(!output.exists());
}

#[test]
fn stitching_from_c_needs_the_model_and_nothing_else() {
    let case =
        golden::supported_cases().into_iter().find(|case| case.kind == "mtp").expect("a case");
    let carrier = research("mtp", &Fixture::of(&case.directory), &case.target).write();
    let (verifier, algorithm) =
        (host::c_path(carrier.path()), CString::new("mtp").expect("no NUL"));
    let options =
        spec_convert_options { verifier_directory: verifier.as_ptr(), ..host::Versioned::blank() };
    let output = Directory::new();
    let (told, _) = call(
        spec_checkpoint_stitch,
        (&case.directory, Some(output.path())),
        Some(&options),
        1 << 16,
    );
    let report: Value = serde_json::from_str(&told.expect("a report")).expect("JSON");
    assert_eq!(report["rewritten_files"], json!(["model.safetensors"]));
    assert_eq!(report["copied_files"], json!(["config.json"]));
    let refuse = |options: Option<&spec_convert_options>, expected: &str| {
        let (told, _) = call(spec_checkpoint_stitch, (&case.directory, None), options, 1 << 16);
        let failure = told.expect_err("a refusal");
        assert_eq!(failure.status, SPEC_ERROR_INVALID_ARGUMENT);
        assert!(failure.message.contains(expected), "{}", failure.message);
    };
    refuse(None, "expected a spec_convert_options, found NULL");
    refuse(Some(&host::Versioned::blank()), "verifier_directory: expected a path");
    let named = spec_convert_options { algorithm: algorithm.as_ptr(), ..options };
    refuse(Some(&named), "algorithm, arguments: expected NULL");
}

#[test]
fn checks_are_told_to_programs() {
    let (directory, verifier) = (
        host::c_path(&golden::root().join("speculators/eagle3/llama_base")),
        host::c_path(&target("qwen3_tied")),
    );
    let tell = |verifier: *const c_char, capacity: usize| {
        let (mut buffer, mut length) = (vec![0_u8; capacity], 0);
        let text = if capacity == 0 { null_mut() } else { buffer.as_mut_ptr().cast() };
        // SAFETY: strings that live during the call, a buffer of its capacity.
        let outcome = host::attempt(|error| unsafe {
            let capacity = capacity as u64;
            spec_checkpoint_check(directory.as_ptr(), verifier, text, capacity, &mut length, error)
        });
        buffer.truncate(buffer.iter().position(|&byte| byte == 0).unwrap_or(0));
        (outcome, length as usize, String::from_utf8(buffer).expect("UTF-8"))
    };
    let (outcome, length, _) = tell(null(), 0);
    outcome.expect("a length");
    let (outcome, _, text) = tell(null(), length + 1);
    outcome.expect("a check");
    let found: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&found["verdict"], &found["kind"]), (&json!("sound"), &json!("eagle3")));
    let (outcome, told, _) = tell(null(), length);
    assert_eq!(outcome.expect_err("no room for the NUL").status, SPEC_ERROR_INVALID_ARGUMENT);
    assert_eq!(told, length);
    // Another model is no error of the call.
    let (outcome, _, text) = tell(verifier.as_ptr(), 1 << 16);
    outcome.expect("a check");
    let found: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(found["verdict"], "broken", "{found}");
    assert_eq!(found["findings"][0]["severity"], "broken");
}
