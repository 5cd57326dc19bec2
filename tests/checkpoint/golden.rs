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

/// Whether the library has the kind, and the layer that it is made of.
fn is_known(kind: &str, directory: &Path) -> bool {
    let config = json_in(&directory.join("config.json"));
    match kind {
        "dflash" | "dflash2" | "dspark" | "eagle" | "eagle3" | "peagle" | "xpress" => true,
        "mtp" => config["transformer_layer_config"]["model_type"] == "qwen3",
        _ => false,
    }
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

#[test]
fn every_reference_checkpoint_of_a_known_kind_opens() {
    let Some(golden) = golden() else { return };
    let mut opened = 0;
    for (kind, directory) in checkpoints(&golden) {
        let about = json_in(&directory.join("about.json"));
        if !is_known(&kind, &directory) {
            let error = refused(checkpoint::open(&directory, &Options::default()));
            assert_eq!(error.status(), Status::Unsupported);
            assert!(error.to_string().contains("model_type: expected"), "{error}");
            continue;
        }
        let config = json_in(&directory.join("config.json"));
        let target = golden.join("targets").join(about["target"].as_str().unwrap());
        for map_files in [false, true] {
            let verifier_directory = Some(target.clone());
            let hidden_input = &about["hidden_input"];
            let overrides =
                (kind == "mtp").then(|| serde_json::json!({"hidden_input": hidden_input}));
            let options =
                Options { verifier_directory, map_files, overrides, ..Options::default() };
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
        assert_eq!(found["supported"], is_known(kind, directory), "{found}");
        assert!(!found["tensors"].as_array().unwrap().is_empty());
    }
    assert!(!all.is_empty(), "no checkpoint to inspect in {}", golden.display());
}
