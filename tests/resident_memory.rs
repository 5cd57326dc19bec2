//! What loading takes of the machine's memory. A program of its own, so that nothing else runs
//! beside the measurement.
#![cfg(target_os = "linux")]

mod device;
mod host;

use host::checkpoint::Shape;
use host::matrix::Dtype;
use host::{Context, Model, Versioned};
use speculators::capi::*;

/// A quantity of this process in bytes, by its name in `/proc/self/status`.
fn status(name: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("the process's status");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the quantity");
    let number = line.trim_start_matches(':').trim().strip_suffix(" kB").expect("kilobytes");
    number.parse::<f64>().expect("a number") * 1024.0
}

/// By how much `work` lets the resident memory grow: what stays, and the most on the way, which is
/// unknown where the process may not reset its peak.
fn growth<T>(work: impl FnOnce() -> T) -> (T, f64, Option<f64>) {
    let resets = std::fs::write("/proc/self/clear_refs", "5").is_ok();
    let before = status("VmRSS");
    let result = work();
    let (after, peak) = (status("VmRSS"), status("VmHWM"));
    (result, after - before, resets.then_some(peak - before))
}

#[test]
fn loading_keeps_one_copy_of_the_weights_and_none_where_files_are_mapped() {
    if !device::is_cpu_or_skipped("weights are in memory of the device, not of the process") {
        return;
    }
    let shape = Shape {
        hidden: 512,
        target_hidden: 512,
        intermediate: 1024,
        heads: 8,
        kv_heads: 4,
        head_dim: 64,
        vocabulary: 30_000,
        draft_vocabulary: 30_000,
        dtype: Dtype::Bf16,
        ..Shape::default()
    };
    let directory = shape.write("large", 1);
    let file = std::fs::metadata(directory.join("model.safetensors")).expect("the file");
    let file = file.len() as f64;
    assert!(file > 64e6, "{file} bytes");
    let context = Context::with_threads(2);
    let share = |flags| {
        let options = spec_model_options { flags, ..Versioned::blank() };
        let load = || Model::load_with(&context, &directory, &options).expect("a model");
        let (model, stays, peak) = growth(load);
        drop(model);
        println!("flags {flags}: {:.4} of the file stays, peak {peak:?} bytes", stays / file);
        (stays / file, peak.map(|peak| peak / file))
    };
    let (copied, peak) = share(0);
    // Less than the weights would say that the measurement misses them.
    assert!((0.9..=1.1).contains(&copied), "copied: {copied} of the file");
    assert!(peak.is_none_or(|peak| peak <= 1.1), "copied: {peak:?} of the file on the way");
    let (mapped, peak) = share(SPEC_MODEL_MAP_FILES);
    assert!(mapped <= 0.1, "mapped: {mapped} of the file");
    assert!(peak.is_none_or(|peak| peak <= 0.1), "mapped: {peak:?} of the file on the way");
}
