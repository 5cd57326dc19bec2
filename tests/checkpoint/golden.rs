//! The reference checkpoints, written by the real libraries, are opened and described.

use crate::fixture::refused;
use serde_json::Value;
use speculators::checkpoint::{self, Feature, FeatureStage, Options, Speculator};
use speculators::error::Status;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the reference data are: `SPECULATORS_GOLDEN`, or the copy in this project.
fn golden() -> Option<PathBuf> {
    let copy = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let path = std::env::var_os("SPECULATORS_GOLDEN").map_or_else(copy, PathBuf::from);
    let given = std::env::var_os("SPECULATORS_GOLDEN").is_some();
    assert!(path.is_dir() || !given, "SPECULATORS_GOLDEN: no directory at {}", path.display());
    path.is_dir().then_some(path)
}

fn directories(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

fn json_in(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Every checkpoint below `golden/speculators`, with its kind.
fn checkpoints(golden: &Path) -> Vec<(String, PathBuf)> {
    let kinds = directories(&golden.join("speculators"));
    let of_kind = |kind: PathBuf| {
        let name = kind.file_name().unwrap().to_str().unwrap().to_string();
        directories(&kind).into_iter().map(move |path| (name.clone(), path))
    };
    kinds.into_iter().flat_map(of_kind).collect()
}

/// Whether the library has the kind.
fn is_known(kind: &str) -> bool {
    const KINDS: [&str; 8] =
        ["dflash", "dflash2", "dspark", "eagle", "eagle3", "mtp", "peagle", "xpress"];
    KINDS.contains(&kind)
}

/// The features that a speculator reads, as text.
fn stages(speculator: &Speculator) -> Vec<String> {
    let describe = |feature: &Feature| match feature.stage {
        FeatureStage::LayerInput => format!("into layer {}", feature.layer),
        FeatureStage::FinalNorm => "final norm".to_owned(),
    };
    speculator.features.iter().map(describe).collect()
}

/// Those that it was trained with.
fn expected_stages(about: &serde_json::Value) -> serde_json::Value {
    const TARGET_LAYERS: i64 = 5;
    let layer = |layer: i64| format!("into layer {layer}");
    let hidden_input = about["hidden_input"].as_str().unwrap_or_default();
    let stages = if hidden_input.starts_with("post_norm") {
        vec!["final norm".to_owned()]
    } else if hidden_input.starts_with("pre_norm") {
        vec![layer(TARGET_LAYERS)]
    } else {
        let ids = about["aux_layer_ids"].as_array().unwrap();
        ids.iter().map(|id| layer(id.as_i64().unwrap())).collect()
    };
    stages.into()
}

/// What a host says of a checkpoint that the files do not.
fn options_of(kind: &str, about: &Value, target: &Path) -> Options {
    let hidden_input = &about["hidden_input"];
    Options {
        verifier_directory: Some(target.to_owned()),
        overrides: (kind == "mtp").then(|| serde_json::json!({"hidden_input": hidden_input})),
        ..Options::default()
    }
}

#[test]
fn every_reference_checkpoint_of_a_known_kind_opens() {
    let Some(golden) = golden() else { return };
    let mut opened = 0;
    for (kind, directory) in checkpoints(&golden) {
        let about = json_in(&directory.join("about.json"));
        if !is_known(&kind) {
            let error = refused(checkpoint::open(&directory, &Options::default()));
            assert_eq!(error.status(), Status::Unsupported);
            assert!(error.to_string().contains("model_type: expected"), "{error}");
            continue;
        }
        let config = json_in(&directory.join("config.json"));
        let target = golden.join("targets").join(about["target"].as_str().unwrap());
        for map_files in [false, true] {
            let options = Options { map_files, ..options_of(&kind, &about, &target) };
            let name = directory.display();
            let loaded = checkpoint::open(&directory, &options);
            let loaded = loaded.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(loaded.report.warnings(), [] as [&str; 0], "{name}");
            let report = loaded.report.to_json();
            let used = report["tensors"]["used"].as_array().unwrap().len();
            assert_eq!(used, about["tensors"].as_object().unwrap().len(), "{name}");
            assert_eq!(report["unknown_settings"], serde_json::json!({}), "{name}");
            let speculator = loaded.speculator;
            assert_eq!(speculator.kind, kind, "{name}");
            assert_eq!(serde_json::json!(stages(&speculator)), expected_stages(&about), "{name}");
            let layer = &config["transformer_layer_config"];
            let sliding = layer["layer_types"][0] == "sliding_attention";
            let window = speculator.layers[0].window.map(|window| window as u64);
            let expected = layer["sliding_window"].as_u64().filter(|_| sliding);
            assert_eq!(window, expected, "{name}");
        }
        opened += 1;
    }
    assert!(opened > 0, "no checkpoint to open in {}", golden.display());
}

#[test]
fn every_reference_checkpoint_can_be_inspected() {
    let Some(golden) = golden() else { return };
    let all = checkpoints(&golden);
    for (kind, directory) in &all {
        let found = checkpoint::inspect(directory).unwrap();
        assert_eq!(found["kind"], kind.as_str());
        assert_eq!(found["supported"], is_known(kind), "{found}");
        assert!(!found["tensors"].as_array().unwrap().is_empty());
    }
    assert!(!all.is_empty(), "no checkpoint to inspect in {}", golden.display());
}

/// A report with a line for each tensor.
fn with_short_tensors(report: Value) -> Value {
    match report {
        Value::Array(items) => items.into_iter().map(with_short_tensors).collect(),
        Value::Object(tensor) if tensor.contains_key("shape") => {
            let shape = &tensor["shape"];
            let [name, dtype, file] =
                ["name", "dtype", "file"].map(|key| tensor[key].as_str().unwrap());
            format!("{name}: {dtype} {shape} in {file}").into()
        }
        Value::Object(members) => members
            .into_iter()
            .map(|(key, value)| (key, with_short_tensors(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        single => single,
    }
}

/// Every report of the project's own copies of the reference checkpoints, as it was when somebody last read
/// it. `UPDATE_REPORTS=1` in the environment writes those that differ.
#[test]
fn load_reports_say_what_they_said() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let golden = project.join("tests/golden");
    let root = golden.display().to_string();
    for (kind, directory) in checkpoints(&golden) {
        let about = json_in(&directory.join("about.json"));
        let target = golden.join("targets").join(about["target"].as_str().unwrap());
        let loaded = checkpoint::open(&directory, &options_of(&kind, &about, &target)).unwrap();
        let report = with_short_tensors(loaded.report.to_json());
        let report = serde_json::to_string_pretty(&report).unwrap() + "\n";
        let report = report.replace(&root, "tests/golden");
        let variant = directory.file_name().unwrap().to_str().unwrap();
        let path = project.join("tests/checkpoint/reports").join(format!("{kind}.{variant}.json"));
        if std::env::var_os("UPDATE_REPORTS").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &report).unwrap();
        }
        let kept = fs::read_to_string(&path).unwrap_or_default();
        assert!(kept == report, "{}: expected the following\n{report}", path.display());
    }
}
