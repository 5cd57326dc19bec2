//! A small sound checkpoint and its verifier, written into a directory of their own.

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use speculators::checkpoint::{
    self, Entry, FeatureNorm, GatedMlp, Method, Mlp, Options, Report, Speculator, Tensor,
};
use speculators::error::{Error, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

pub const VOCABULARY: usize = 12;
pub const HIDDEN: usize = 8;

/// The target ids that the fixture drafts.
pub const DRAFTED: [i32; 5] = [0, 3, 4, 9, 11];

/// A directory that is removed with its contents.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("speculators-checkpoint-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[derive(Clone)]
pub struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

pub type Tensors = BTreeMap<String, Stored>;

/// Values that differ from one another and from tensor to tensor.
pub fn floats(seed: usize, shape: &[usize]) -> Stored {
    let count = shape.iter().product::<usize>();
    let bytes = (0..count).flat_map(|i| ((seed * 1000 + i) as f32 / 64.0).to_le_bytes()).collect();
    Stored { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
}

pub fn only_nan(shape: &[usize]) -> Stored {
    let mut stored = floats(0, shape);
    stored.bytes = stored.bytes.chunks(4).flat_map(|_| f32::NAN.to_le_bytes()).collect();
    stored
}

pub fn integers(values: &[i64]) -> Stored {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Stored { dtype: Dtype::I64, shape: vec![values.len()], bytes }
}

pub fn flags(values: &[u8]) -> Stored {
    Stored { dtype: Dtype::BOOL, shape: vec![values.len()], bytes: values.to_vec() }
}

pub fn offsets_of(ids: &[i32]) -> Stored {
    let offsets: Vec<_> = (0..).zip(ids).map(|(draft, &id)| i64::from(id) - draft).collect();
    integers(&offsets)
}

pub fn mask_of(ids: &[i32]) -> Stored {
    let drafted = |id: usize| u8::from(ids.contains(&(id as i32)));
    flags(&(0..VOCABULARY).map(drafted).collect::<Vec<_>>())
}

pub fn write_tensors(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, stored)| {
        (name, TensorView::new(stored.dtype, stored.shape.clone(), &stored.bytes).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The project's own copy of the reference data.
pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// What reads one of its targets beside a checkpoint.
pub fn beside(target: &str) -> Options {
    Options {
        verifier_directory: Some(golden().join("targets").join(target)),
        ..Options::default()
    }
}

/// A checkpoint in memory, sound until a test changes it.
#[derive(Clone)]
pub struct Fixture {
    pub config: Value,
    pub tensors: Tensors,
}

impl Fixture {
    /// A reference checkpoint.
    pub fn reference(name: &str) -> Self {
        Self::of(&golden().join("speculators").join(name))
    }

    /// The checkpoint in a directory, which has one weight file.
    pub fn of(directory: &Path) -> Self {
        let config = fs::read(directory.join("config.json")).unwrap();
        let bytes = fs::read(directory.join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
        let tensors = tensors.into_iter().map(|(name, view)| {
            let (shape, bytes) = (view.shape().to_vec(), view.data().to_vec());
            (name, Stored { dtype: view.dtype(), shape, bytes })
        });
        Self { config: serde_json::from_slice(&config).unwrap(), tensors: tensors.collect() }
    }

    /// One Llama layer, a reduced vocabulary, its own embedding and head.
    pub fn llama() -> Self {
        let config = json!({
            "speculators_model_type": "eagle3",
            "speculators_version": "0.9.0",
            "architectures": ["Eagle3DraftModel"],
            "draft_vocab_size": DRAFTED.len(),
            "norm_before_residual": false,
            "norm_before_fc": false,
            "fc_norm": false,
            "norm_output": false,
            "target_hidden_size": null,
            "eagle_aux_hidden_state_layer_ids": [1, 3, 5],
            "speculators_config": {
                "algorithm": "eagle3",
                "default_proposal_method": "greedy",
                "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 4,
                    "verifier_accept_k": 1, "accept_tolerance": 0.0}],
                "verifier": {"name_or_path": null, "architectures": []},
            },
            "transformer_layer_config": {
                "model_type": "llama",
                "vocab_size": VOCABULARY,
                "hidden_size": HIDDEN,
                "intermediate_size": 6,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 6,
                "hidden_act": "silu",
                "rms_norm_eps": 1e-5,
                "max_position_embeddings": 64,
                "attention_bias": false,
                "mlp_bias": false,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            },
        });
        let mut fixture = Self { config, tensors: Tensors::new() };
        fixture.add_layer(0);
        for (name, shape) in [
            ("embed_tokens.weight", &[VOCABULARY, HIDDEN][..]),
            ("fc.weight", &[HIDDEN, 3 * HIDDEN]),
            ("norm.weight", &[HIDDEN]),
            ("lm_head.weight", &[DRAFTED.len(), HIDDEN]),
        ] {
            fixture.add(name, shape);
        }
        fixture.tensors.insert("d2t".into(), offsets_of(&DRAFTED));
        fixture.tensors.insert("t2d".into(), mask_of(&DRAFTED));
        fixture
    }

    /// The same with norms of query and key heads.
    pub fn qwen3() -> Self {
        let mut fixture = Self::llama();
        fixture.layer_config()["model_type"] = json!("qwen3");
        fixture.add("layers.0.self_attn.q_norm.weight", &[6]);
        fixture.add("layers.0.self_attn.k_norm.weight", &[6]);
        fixture
    }

    pub fn layer_config(&mut self) -> &mut Value {
        &mut self.config["transformer_layer_config"]
    }

    pub fn add(&mut self, name: &str, shape: &[usize]) {
        let seed = self.tensors.len() + 1;
        self.tensors.insert(name.into(), floats(seed, shape));
    }

    pub fn remove(&mut self, name: &str) -> Stored {
        self.tensors.remove(name).unwrap()
    }

    /// Files what is stored as `old…` under `new…`.
    pub fn rename(&mut self, old: &str, new: &str) {
        let names: Vec<_> = self.tensors.keys().filter(|name| name.starts_with(old)).collect();
        assert!(!names.is_empty(), "no tensor named {old}…");
        for name in names.into_iter().cloned().collect::<Vec<_>>() {
            let stored = self.remove(&name);
            self.tensors.insert(name.replacen(old, new, 1), stored);
        }
    }

    pub fn add_layer(&mut self, index: usize) {
        let input = if index == 0 { 2 * HIDDEN } else { HIDDEN };
        if index == 0 {
            self.add("layers.0.hidden_norm.weight", &[HIDDEN]);
        }
        for (name, shape) in [
            ("input_layernorm", &[HIDDEN][..]),
            ("post_attention_layernorm", &[HIDDEN]),
            ("self_attn.q_proj", &[12, input]),
            ("self_attn.k_proj", &[6, input]),
            ("self_attn.v_proj", &[6, input]),
            ("self_attn.o_proj", &[HIDDEN, 12]),
            ("mlp.gate_proj", &[6, HIDDEN]),
            ("mlp.up_proj", &[6, HIDDEN]),
            ("mlp.down_proj", &[HIDDEN, 6]),
        ] {
            self.add(&format!("layers.{index}.{name}.weight"), shape);
        }
    }

    /// Writes the checkpoint with one weight file.
    pub fn write(&self) -> Directory {
        let directory = Directory::new();
        self.write_config(directory.path());
        write_tensors(&directory.join("model.safetensors"), &self.tensors);
        directory
    }

    pub fn write_config(&self, directory: &Path) {
        fs::write(directory.join("config.json"), self.config.to_string()).unwrap();
    }

    /// Writes the checkpoint with the tensors spread over two shards, and returns the index.
    pub fn write_shards(&self, directory: &Path) -> Value {
        self.write_config(directory);
        let mut shards = [Tensors::new(), Tensors::new()];
        let mut files = serde_json::Map::new();
        for (position, (name, stored)) in self.tensors.iter().enumerate() {
            shards[position % 2].insert(name.clone(), stored.clone());
            files.insert(name.clone(), shard_name(position % 2).into());
        }
        for (number, shard) in shards.iter().enumerate() {
            write_tensors(&directory.join(shard_name(number)), shard);
        }
        let index = json!({"metadata": {"total_size": 0}, "weight_map": files});
        write_index(directory, &index);
        index
    }
}

pub fn shard_name(number: usize) -> String {
    format!("model-{:05}-of-00002.safetensors", number + 1)
}

pub fn write_index(directory: &Path, index: &Value) {
    fs::write(directory.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// A verifier of 8 layers with an embedding, and a head if it is not tied.
pub fn verifier(tied: bool) -> Directory {
    let directory = Directory::new();
    let config = json!({"model_type": "llama", "num_hidden_layers": 8, "hidden_size": HIDDEN,
        "tie_word_embeddings": tied});
    fs::write(directory.join("config.json"), config.to_string()).unwrap();
    let mut tensors = Tensors::new();
    tensors.insert("model.embed_tokens.weight".into(), floats(70, &[VOCABULARY, HIDDEN]));
    if !tied {
        tensors.insert("lm_head.weight".into(), floats(80, &[VOCABULARY + 2, HIDDEN]));
    }
    write_tensors(&directory.join("model.safetensors"), &tensors);
    directory
}

/// Opens a checkpoint that is expected to be sound.
#[track_caller]
pub fn open(directory: &Path, options: &Options) -> (Speculator, Report) {
    match checkpoint::open(directory, options) {
        Ok(checkpoint) => (checkpoint.speculator, checkpoint.report),
        Err(error) => panic!("{error}"),
    }
}

/// Whether a report has this piece of text among what was corrected, and among the warnings.
pub fn corrected(report: &Report, piece: &str) -> bool {
    let json = report.to_json();
    let texts = json["corrected"].as_array().unwrap();
    texts.iter().any(|text| text.as_str().unwrap().contains(piece)) && warned(report, piece)
}

/// Whether a report has this piece of text among the warnings.
pub fn warned(report: &Report, piece: &str) -> bool {
    report.warnings().iter().any(|text| text.contains(piece))
}

/// How an EAGLE-3 speculator fuses features: their norm, the matrix, and whether the residual stream goes
/// on normed.
#[track_caller]
pub fn fusion(speculator: &Speculator) -> (&FeatureNorm, &Tensor, bool) {
    match &speculator.method {
        Method::Sequential { entry: Entry::Features(fusion), .. } => {
            (&fusion.norm, &fusion.fc, fusion.norm_before_residual)
        }
        other => panic!("expected features, found {other:?}"),
    }
}

/// The MLP of a speculator's first layer.
#[track_caller]
pub fn gated_mlp(speculator: &Speculator) -> &GatedMlp {
    match &speculator.layers[0].mlp {
        Mlp::Gated(mlp) => mlp,
        other => panic!("expected one MLP, found {other:?}"),
    }
}

/// Whether a sequential speculator goes on from what comes after its last norm.
#[track_caller]
pub fn norm_output(speculator: &Speculator) -> bool {
    match &speculator.method {
        Method::Sequential { norm_output, .. } => *norm_output,
        other => panic!("expected a sequential drafter, found {other:?}"),
    }
}

/// The error of a checkpoint that is expected to be refused.
#[track_caller]
pub fn refused<T>(result: Result<T>) -> Error {
    match result {
        Ok(_) => panic!("expected an error"),
        Err(error) => error,
    }
}

/// All values of `tensor`, which is F32.
pub fn values(tensor: &checkpoint::Tensor) -> Vec<f32> {
    let mut bytes = vec![0; tensor.bytes_len()];
    tensor.read_into(0, tensor.rows, &mut bytes).unwrap();
    bytes.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}
