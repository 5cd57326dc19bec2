//! Checkpoints of the sizes that are in use, with made-up weights: EAGLE-3 heads, and the writing of any.

use crate::host::random::Random;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::path::PathBuf;

/// The shape of a head.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// The target that it goes with.
    pub target: &'static str,
    pub hidden: usize,
    pub intermediate: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Of the target.
    pub vocabulary: usize,
    pub draft_vocabulary: usize,
    /// Whether the file has the embedding. Otherwise the host lends the target's.
    pub stores_embedding: bool,
}

pub const LLAMA_8B: Head = Head {
    target: "Llama-3.1-8B",
    hidden: 4096,
    intermediate: 14336,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    vocabulary: 128_256,
    draft_vocabulary: 32_000,
    stores_embedding: false,
};

pub const QWEN3_8B: Head =
    Head { target: "Qwen3-8B", intermediate: 12288, vocabulary: 151_936, ..LLAMA_8B };

pub const LLAMA_70B: Head =
    Head { target: "Llama-3.3-70B", hidden: 8192, intermediate: 28672, heads: 64, ..LLAMA_8B };

/// Small enough for a simulator.
pub const SMALL: Head = Head {
    target: "nothing (a small head)",
    hidden: 128,
    intermediate: 192,
    heads: 4,
    kv_heads: 2,
    head_dim: 32,
    vocabulary: 512,
    draft_vocabulary: 256,
    stores_embedding: false,
};

impl Head {
    fn maps(&self) -> Vec<(String, [usize; 2])> {
        let layer = |name: &str, rows, columns| (format!("layers.0.{name}"), [rows, columns]);
        let (hidden, heads) = (self.hidden, self.heads * self.head_dim);
        vec![
            layer("self_attn.q_proj", heads, 2 * hidden),
            layer("self_attn.k_proj", self.kv_heads * self.head_dim, 2 * hidden),
            layer("self_attn.v_proj", self.kv_heads * self.head_dim, 2 * hidden),
            layer("self_attn.o_proj", hidden, heads),
            layer("mlp.gate_proj", self.intermediate, hidden),
            layer("mlp.up_proj", self.intermediate, hidden),
            layer("mlp.down_proj", hidden, self.intermediate),
            ("lm_head".to_owned(), [self.draft_vocabulary, hidden]),
        ]
    }

    /// Bytes of weights that every step reads.
    pub fn step_bytes(&self) -> usize {
        self.maps().iter().map(|(_, [rows, columns])| 2 * rows * columns).sum()
    }

    /// Bytes of weights that a call reads once, to fuse the features.
    pub fn fusion_bytes(&self) -> usize {
        2 * self.hidden * 3 * self.hidden
    }

    /// What the file has, in the order of alignment: wide elements first.
    fn tensors(&self) -> Vec<Tensor> {
        let weights =
            |(name, shape): (String, Vec<usize>)| Tensor::weights(format!("{name}.weight"), shape);
        let norms = ["layers.0.hidden_norm", "layers.0.input_layernorm"];
        let norms = norms.into_iter().chain(["layers.0.post_attention_layernorm", "norm"]);
        let norms = norms.map(|name| (name.to_owned(), vec![self.hidden]));
        let embedding = ("embed_tokens".to_owned(), vec![self.vocabulary, self.hidden]);
        let embedding = self.stores_embedding.then_some(embedding).into_iter();
        let fusion = [("fc".to_owned(), vec![self.hidden, 3 * self.hidden])];
        let maps = self.maps().into_iter().map(|(name, shape)| (name, shape.to_vec()));
        let mut tensors: Vec<Tensor> =
            embedding.chain(fusion).chain(maps).chain(norms).map(weights).collect();
        if self.draft_vocabulary < self.vocabulary {
            let (draft, full) = (self.draft_vocabulary, self.vocabulary);
            let contents = Contents::Offsets { of: full };
            tensors.insert(0, Tensor { name: "d2t".to_owned(), shape: vec![draft], contents });
            let contents = Contents::Mask { of: draft };
            tensors.push(Tensor { name: "t2d".to_owned(), shape: vec![full], contents });
        }
        tensors
    }

    fn config(&self) -> Value {
        json!({
            "speculators_model_type": "eagle3", "draft_vocab_size": self.draft_vocabulary,
            "norm_before_residual": true, "eagle_aux_hidden_state_layer_ids": [2, 16, 29],
            "target_hidden_size": self.hidden,
            "speculators_config": {"algorithm": "eagle3", "default_proposal_method": "greedy",
                "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 5}],
                "verifier": {"name_or_path": null, "architectures": ["LlamaForCausalLM"]}},
            "transformer_layer_config": {"model_type": "llama", "vocab_size": self.vocabulary,
                "hidden_size": self.hidden, "intermediate_size": self.intermediate,
                "num_hidden_layers": 1, "num_attention_heads": self.heads,
                "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
                "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "rope_theta": 500_000.0},
        })
    }

    /// Writes the checkpoint into a folder of this name, which the caller removes.
    pub fn write(&self, name: &str) -> PathBuf {
        write(name, &self.config(), &self.tensors())
    }
}

/// Writes a checkpoint into a folder of this name, which the caller removes. Tensors come in the order of
/// alignment, wide elements first.
pub fn write(name: &str, config: &Value, tensors: &[Tensor]) -> PathBuf {
    let directory = crate::host::checkpoint::scratch_directory(name);
    std::fs::write(directory.join("config.json"), config.to_string()).expect("a config");
    let file = File::create(directory.join("model.safetensors")).expect("a file");
    write_tensors(tensors, &mut BufWriter::new(file)).expect("writing the checkpoint");
    directory
}

fn write_tensors(tensors: &[Tensor], file: &mut impl Write) -> Result<()> {
    let (mut header, mut end) = (Map::new(), 0);
    for tensor in tensors {
        let begin = end;
        end += tensor.bytes();
        let offsets = [begin, end];
        let described =
            json!({"dtype": tensor.dtype(), "shape": tensor.shape, "data_offsets": offsets});
        header.insert(tensor.name.clone(), described);
    }
    let header = Value::Object(header).to_string();
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let block = random_weights();
    for tensor in tensors {
        match tensor.contents {
            Contents::Weights => {
                let bytes = tensor.bytes();
                for begin in (0..bytes).step_by(block.len()) {
                    file.write_all(&block[..block.len().min(bytes - begin)])?;
                }
            }
            Contents::Offsets { of } => {
                for (draft, id) in draft_token_ids(tensor.shape[0], of).enumerate() {
                    file.write_all(&((id - draft) as i64).to_le_bytes())?;
                }
            }
            Contents::Mask { of } => {
                let mut mask = vec![0_u8; tensor.shape[0]];
                draft_token_ids(of, mask.len()).for_each(|id| mask[id] = 1);
                file.write_all(&mask)?;
            }
        }
    }
    file.flush()
}

/// The target's ids of the drafter's tokens, spread over the vocabulary.
fn draft_token_ids(draft: usize, full: usize) -> impl Iterator<Item = usize> {
    (0..draft).map(move |id| id * full / draft)
}

/// A tensor of a file.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// As in the file.
    pub name: String,
    pub shape: Vec<usize>,
    contents: Contents,
}

/// What stands in a tensor.
#[derive(Clone, Copy, Debug)]
enum Contents {
    /// Random numbers in bf16.
    Weights,
    /// How far the ids of a target with so many tokens are from the drafter's.
    Offsets { of: usize },
    /// Which of the target's tokens a drafter with so many tokens knows.
    Mask { of: usize },
}

impl Tensor {
    /// Of random numbers.
    pub fn weights(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), shape: shape.into(), contents: Contents::Weights }
    }

    /// In the file.
    pub fn bytes(&self) -> usize {
        let element = match self.contents {
            Contents::Weights => 2,
            Contents::Offsets { .. } => 8,
            Contents::Mask { .. } => 1,
        };
        element * self.shape.iter().product::<usize>()
    }

    fn dtype(&self) -> &'static str {
        match self.contents {
            Contents::Weights => "BF16",
            Contents::Offsets { .. } => "I64",
            Contents::Mask { .. } => "BOOL",
        }
    }
}

/// A mebibyte of small numbers in bf16.
pub fn random_weights() -> Vec<u8> {
    let mut random = Random::new(1);
    (0..1 << 19).flat_map(|_| half::bf16::from_f32(0.02 * random.normal()).to_le_bytes()).collect()
}
