//! Any bytes as the configuration of a reference checkpoint. `cargo fuzz run config` searches; its corpus may
//! begin with the configurations of `tests/golden`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use speculators::checkpoint::{self, Conversion, Converted, Options};
use std::fs;
use std::path::Path;

/// Checkpoints whose weights stand beside the configuration, one for each layout of names.
const WEIGHTS: [&str; 4] = [
    "speculators/eagle3/llama_base",
    "speculators/dspark/vanilla",
    "converters/eagle3_research/input",
    "converters/mtp_native_qwen3_next_moe/input",
];

fuzz_target!(|data: &[u8]| {
    let Some((&which, config)) = data.split_first() else { return };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let weights = golden.join(WEIGHTS[usize::from(which) % WEIGHTS.len()]).join("model.safetensors");
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("config.json"), config).expect("a configuration");
    std::os::unix::fs::symlink(weights, directory.path().join("model.safetensors")).expect("a link");
    let _ = checkpoint::open(directory.path(), &Options::default());
    let _ = checkpoint::inspect(directory.path());
    let _ = Converted::prepare(directory.path(), &Conversion::default());
});
