//! Any bytes as the weight file of a reference checkpoint. `cargo fuzz run weights` searches; its corpus may
//! begin with the weight files of `tests/golden`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use speculators::checkpoint::{self, Conversion, Converted, Options, Stitched};
use std::fs;
use std::path::Path;

const CONFIGS: [&str; 4] = [
    "speculators/eagle3/llama_base",
    "speculators/mtp/qwen3_next_moe",
    "converters/hass_research/input",
    "converters/mtp_native_qwen3_next_moe/input",
];

fuzz_target!(|data: &[u8]| {
    let Some((&which, weights)) = data.split_first() else { return };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let config = golden.join(CONFIGS[usize::from(which) % CONFIGS.len()]).join("config.json");
    let directory = tempfile::tempdir().expect("a directory");
    fs::copy(config, directory.path().join("config.json")).expect("a configuration");
    fs::write(directory.path().join("model.safetensors"), weights).expect("a weight file");
    let _ = checkpoint::open(directory.path(), &Options::default());
    let _ = checkpoint::inspect(directory.path());
    let _ = Converted::prepare(directory.path(), &Conversion::default());
    let _ = Stitched::prepare(directory.path(), &golden.join("targets/llama_untied"));
});
