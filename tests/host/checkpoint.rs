//! Writes EAGLE-3 checkpoints and language models of any shape with random weights.

use super::matrix::Dtype;
use super::random::Random;
use safetensors::tensor::{Dtype as FileDtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use std::path::PathBuf;

/// The shape of a speculator. Nothing of it has to be read from a verifier's directory.
#[derive(Clone, Debug)]
pub struct Shape {
    /// `llama`, or `qwen3` for layers with per-head norms; a language model may also be `qwen2`, with
    /// biases, or `mistral`.
    pub layer_kind: &'static str,
    pub hidden: usize,
    pub target_hidden: usize,
    pub intermediate: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub layers: usize,
    pub vocabulary: usize,
    /// As large as `vocabulary`: no mapping is written.
    pub draft_vocabulary: usize,
    /// None: it is a language model, whose head is tied to the embedding if it is not stored.
    pub feature_layers: Vec<i32>,
    /// Rows see this many positions.
    pub window: Option<usize>,
    pub norm_before_residual: bool,
    pub norm_output: bool,
    /// Whether the file has the embedding; the host has to lend it otherwise.
    pub stores_embedding: bool,
    /// Whether the file has the head.
    pub stores_head: bool,
    pub dtype: Dtype,
}

impl Default for Shape {
    /// One llama layer, three features, half of the vocabulary.
    fn default() -> Self {
        Self {
            layer_kind: "llama",
            hidden: 48,
            target_hidden: 48,
            intermediate: 56,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            layers: 1,
            vocabulary: 96,
            draft_vocabulary: 50,
            feature_layers: vec![1, 3, 5],
            window: None,
            norm_before_residual: false,
            norm_output: false,
            stores_embedding: true,
            stores_head: true,
            dtype: Dtype::F32,
        }
    }
}

impl Shape {
    /// Two qwen3 layers with a sliding window, two features of another width, the full vocabulary.
    pub fn sliding() -> Self {
        Self {
            layer_kind: "qwen3",
            target_hidden: 40,
            layers: 2,
            draft_vocabulary: 96,
            feature_layers: vec![0, 4],
            window: Some(11),
            norm_before_residual: true,
            norm_output: true,
            ..Self::default()
        }
    }

    /// A language model of two layers with the full vocabulary, of this kind.
    pub fn language_model(layer_kind: &'static str) -> Self {
        let vocabulary = 96;
        Self {
            layer_kind,
            layers: 2,
            vocabulary,
            draft_vocabulary: vocabulary,
            feature_layers: Vec::new(),
            ..Self::default()
        }
    }

    fn is_language_model(&self) -> bool {
        self.feature_layers.is_empty()
    }

    /// Writes the checkpoint into a folder of this name for the test program.
    pub fn write(&self, name: &str, seed: u64) -> PathBuf {
        write(name, &self.config(), &self.tensors(&mut Random::new(seed)))
    }

    /// Writes the tables of a model that the speculator may draft for, which is as wide as the
    /// speculator. They have `padding` rows that stand for no token.
    pub fn write_verifier(&self, name: &str, seed: u64, padding: usize) -> PathBuf {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "hidden_size": self.hidden, "num_hidden_layers": 8, "vocab_size": self.vocabulary,
            "tie_word_embeddings": false,
        });
        let mut random = Random::new(seed);
        let mut writer = Writer { dtype: self.dtype, random: &mut random, tensors: Vec::new() };
        writer.map("model.embed_tokens", self.vocabulary + padding, self.hidden, 1.0);
        writer.map("lm_head", self.vocabulary + padding, self.hidden, 3.0);
        write(name, &config, &writer.tensors)
    }

    fn config(&self) -> Value {
        let mut layer = json!({
            "model_type": self.layer_kind, "vocab_size": self.vocabulary,
            "hidden_size": self.hidden, "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_bias": false,
            "mlp_bias": false, "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        });
        if self.is_language_model() {
            return self.complete_language_model(layer);
        }
        if let Some(window) = self.window {
            layer["sliding_window"] = json!(window);
            layer["use_sliding_window"] = json!(true);
            layer["layer_types"] = json!(vec!["sliding_attention"; self.layers]);
        }
        let proposal = json!({"proposal_type": "greedy", "speculative_tokens": 4,
            "verifier_accept_k": 1, "accept_tolerance": 0.0});
        json!({
            "speculators_model_type": "eagle3", "speculators_version": "0.9.0",
            "architectures": ["Eagle3DraftModel"], "draft_vocab_size": self.draft_vocabulary,
            "norm_before_residual": self.norm_before_residual, "norm_output": self.norm_output,
            "norm_before_fc": false, "fc_norm": false, "target_hidden_size": self.target_hidden,
            "eagle_aux_hidden_state_layer_ids": self.feature_layers,
            "speculators_config": {"algorithm": "eagle3", "default_proposal_method": "greedy",
                "proposal_methods": [proposal],
                "verifier": {"name_or_path": null, "architectures": ["LlamaForCausalLM"]}},
            "transformer_layer_config": layer,
        })
    }

    /// The settings as transformers writes them for a whole model. Of those kinds that can, only the
    /// layers from the second on have a window.
    fn complete_language_model(&self, mut config: Value) -> Value {
        let class = match self.layer_kind {
            "mistral" => "MistralForCausalLM",
            "qwen2" => "Qwen2ForCausalLM",
            "qwen3" => "Qwen3ForCausalLM",
            _ => "LlamaForCausalLM",
        };
        config["architectures"] = json!([class]);
        config["tie_word_embeddings"] = json!(!self.stores_head);
        config["sliding_window"] = json!(self.window);
        if self.layer_kind != "mistral" {
            config["use_sliding_window"] = json!(self.window.is_some());
            config["max_window_layers"] = json!(1);
        }
        config
    }

    fn tensors(&self, random: &mut Random) -> Vec<Tensor> {
        let mut writer = Writer { dtype: self.dtype, random, tensors: Vec::new() };
        let hidden = self.hidden;
        let model = |part: &str| match self.is_language_model() {
            true => format!("model.{part}"),
            false => part.to_owned(),
        };
        writer.map(&model("embed_tokens"), self.vocabulary, hidden, 1.0);
        if !self.stores_embedding {
            writer.tensors.clear();
        }
        if !self.is_language_model() {
            writer.map("fc", hidden, self.feature_layers.len() * self.target_hidden, 1.0);
        }
        for index in 0..self.layers {
            self.layer(&mut writer, &model(&format!("layers.{index}")), index);
        }
        writer.norm(&model("norm"), hidden);
        writer.map("lm_head", self.draft_vocabulary, hidden, 3.0);
        if !self.stores_head {
            writer.tensors.pop();
        }
        if self.draft_vocabulary != self.vocabulary {
            writer.vocabulary_maps(self.vocabulary, self.draft_vocabulary);
        }
        writer.tensors
    }

    fn layer(&self, writer: &mut Writer<'_>, name: &str, index: usize) {
        let (hidden, head_dim) = (self.hidden, self.head_dim);
        let reads_embedding = index == 0 && !self.is_language_model();
        let inputs = if reads_embedding { 2 * hidden } else { hidden };
        let layer = |part: &str| format!("{name}.{part}");
        if reads_embedding {
            writer.norm(&layer("hidden_norm"), hidden);
        }
        writer.norm(&layer("input_layernorm"), hidden);
        writer.norm(&layer("post_attention_layernorm"), hidden);
        for (part, heads) in [("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads)] {
            let map = layer(&format!("self_attn.{part}_proj"));
            writer.map(&map, heads * head_dim, inputs, 1.5);
            if self.layer_kind == "qwen2" {
                writer.bias(&map, heads * head_dim);
            }
        }
        writer.map(&layer("self_attn.o_proj"), hidden, self.heads * head_dim, 1.0);
        if self.layer_kind == "qwen3" {
            writer.norm(&layer("self_attn.q_norm"), head_dim);
            writer.norm(&layer("self_attn.k_norm"), head_dim);
        }
        writer.map(&layer("mlp.gate_proj"), self.intermediate, hidden, 1.0);
        writer.map(&layer("mlp.up_proj"), self.intermediate, hidden, 1.0);
        writer.map(&layer("mlp.down_proj"), hidden, self.intermediate, 1.0);
    }
}

/// The shape of an MLP speculator.
#[derive(Clone, Debug)]
pub struct MlpShape {
    /// Of the target's hidden state.
    pub width: usize,
    /// 0: as wide.
    pub inner: usize,
    pub steps: usize,
    pub vocabulary: usize,
    pub is_tied: bool,
    pub scales_input: bool,
    /// What stands before the names of all tensors.
    pub prefix: &'static str,
    pub dtype: Dtype,
}

impl Default for MlpShape {
    /// Three steps that are not tied.
    fn default() -> Self {
        Self {
            width: 48,
            inner: 40,
            steps: 3,
            vocabulary: 96,
            is_tied: false,
            scales_input: false,
            prefix: "",
            dtype: Dtype::F32,
        }
    }
}

impl MlpShape {
    /// Writes the checkpoint into a folder of this name for the test program. Of tied tensors only the
    /// first is stored.
    pub fn write(&self, name: &str, seed: u64) -> PathBuf {
        let config = json!({
            "architectures": ["MLPSpeculatorPreTrainedModel"], "model_type": "mlp_speculator",
            "vocab_size": self.vocabulary, "emb_dim": self.width, "inner_dim": self.inner,
            "n_predict": self.steps, "tie_weights": self.is_tied,
            "scale_input": self.scales_input, "n_candidates": 5,
            "top_k_tokens_per_head": vec![2; self.steps], "torch_dtype": "float32",
        });
        let mut random = Random::new(seed);
        let mut writer = Writer { dtype: self.dtype, random: &mut random, tensors: Vec::new() };
        let inner = if self.inner == 0 { self.width } else { self.inner };
        for step in 0..self.steps {
            let part = |module: &str| format!("{}{module}.{step}", self.prefix);
            if step == 0 || !self.is_tied {
                writer.map(&part("emb"), self.vocabulary, inner, 1.0);
                writer.map(&part("head"), self.vocabulary, inner, 3.0);
                writer.norm(&part("ln"), inner);
                writer.bias(&part("ln"), inner);
            }
            if step < 2 || !self.is_tied {
                let inputs = if step == 0 { self.width } else { inner };
                writer.map(&part("proj"), inner, inputs, 1.0);
            }
        }
        write(name, &config, &writer.tensors)
    }
}

fn write(name: &str, config: &Value, tensors: &[Tensor]) -> PathBuf {
    let directory = scratch_directory(name);
    std::fs::write(directory.join("config.json"), config.to_string()).expect("a config");
    let views = tensors.iter().map(|tensor| (tensor.name.clone(), tensor.view()));
    serialize_to_file(views, None, &directory.join("model.safetensors")).expect("weights");
    directory
}

/// An empty folder of this name, for this test alone: others run beside it, and tests with a thread for each have
/// their names.
pub fn scratch_directory(name: &str) -> PathBuf {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("main").replace("::", ".");
    let root = super::files::scratch().join(env!("CARGO_CRATE_NAME")).join(test);
    let directory = root.join(name);
    if directory.exists() {
        std::fs::remove_dir_all(&directory).expect("an old folder to remove");
    }
    std::fs::create_dir_all(&directory).expect("a folder");
    directory
}

struct Tensor {
    name: String,
    dtype: FileDtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn view(&self) -> TensorView<'_> {
        TensorView::new(self.dtype, self.shape.clone(), &self.bytes).expect("a sound tensor")
    }
}

struct Writer<'a> {
    dtype: Dtype,
    random: &'a mut Random,
    tensors: Vec<Tensor>,
}

impl Writer<'_> {
    /// A linear map whose outputs have `gain` times the variance of its inputs.
    fn map(&mut self, name: &str, outputs: usize, inputs: usize, gain: f32) {
        let scale = (gain / inputs as f32).sqrt();
        let elements = self.random.normals(outputs * inputs);
        let elements = elements.iter().map(|element| element * scale);
        self.push(format!("{name}.weight"), vec![outputs, inputs], elements);
    }

    fn bias(&mut self, name: &str, len: usize) {
        let elements = self.random.normals(len);
        self.push(format!("{name}.bias"), vec![len], elements.into_iter());
    }

    fn norm(&mut self, name: &str, len: usize) {
        let elements = self.random.normals(len);
        let elements = elements.iter().map(|element| 1.0 + 0.1 * element);
        self.push(format!("{name}.weight"), vec![len], elements);
    }

    fn push(&mut self, name: String, shape: Vec<usize>, elements: impl Iterator<Item = f32>) {
        let mut bytes = Vec::new();
        elements.for_each(|element| self.dtype.encode(element, &mut bytes));
        let dtype = match self.dtype {
            Dtype::F32 => FileDtype::F32,
            Dtype::F16 => FileDtype::F16,
            Dtype::Bf16 => FileDtype::BF16,
        };
        self.tensors.push(Tensor { name, dtype, shape, bytes });
    }

    /// Which of the target's tokens the drafter knows: offsets, and a mask.
    fn vocabulary_maps(&mut self, vocabulary: usize, draft_vocabulary: usize) {
        let mut ids: Vec<usize> = (0..vocabulary).collect();
        self.random.shuffle(&mut ids);
        ids.truncate(draft_vocabulary);
        ids.sort_unstable();
        let offsets =
            ids.iter().enumerate().flat_map(|(draft, id)| ((id - draft) as i64).to_le_bytes());
        let mask = (0..vocabulary).map(|id| u8::from(ids.binary_search(&id).is_ok()));
        self.tensors.push(Tensor {
            name: "d2t".to_owned(),
            dtype: FileDtype::I64,
            shape: vec![draft_vocabulary],
            bytes: offsets.collect(),
        });
        self.tensors.push(Tensor {
            name: "t2d".to_owned(),
            dtype: FileDtype::BOOL,
            shape: vec![vocabulary],
            bytes: mask.collect(),
        });
    }
}
