//! Checkpoints of every kind with made-up weights, and how often a round has to read each of their tensors.

use super::checkpoint::{self, Tensor};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Positions before a round.
pub const CONTEXT: usize = 128;
/// Tokens that a round proposes for each sequence.
pub const DRAFTS: usize = BLOCK - 1;
/// Rows that a sequence commits in a round.
pub const ROWS: usize = 1 + DRAFTS / 2;
/// Rows of a block, of which all but the first draft.
const BLOCK: usize = 8;
/// Passes of a refiner.
const PASSES: usize = 6;
const FEATURES: usize = 3;

/// The sizes of all checkpoints.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub hidden: usize,
    intermediate: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    pub vocabulary: usize,
    /// Of a low-rank head.
    rank: usize,
}

/// Those that go with an 8B target.
pub const TARGET_8B: Sizes = Sizes {
    hidden: 4096,
    intermediate: 12_288,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    vocabulary: 32_000,
    rank: 256,
};

/// Small enough for a simulator.
pub const SMALL: Sizes = Sizes {
    hidden: 64,
    intermediate: 96,
    heads: 2,
    kv_heads: 1,
    head_dim: 32,
    vocabulary: 256,
    rank: 16,
};

/// A tensor, and how often a round reads it.
struct Part {
    tensor: Tensor,
    reads: usize,
}

/// A checkpoint.
pub struct Checkpoint {
    pub name: &'static str,
    config: Value,
    parts: Vec<Part>,
    /// Bytes of the target's head that a round reads, where it is lent by the host.
    head_bytes: usize,
}

impl Checkpoint {
    /// Writes it into a folder of its name, which the caller removes.
    pub fn write(&self) -> PathBuf {
        let tensors: Vec<Tensor> = self.parts.iter().map(|part| part.tensor.clone()).collect();
        checkpoint::write(&format!("bench-{}", self.name), &self.config, &tensors)
    }

    /// Bytes of weights that a round has to read.
    pub fn round_bytes(&self) -> usize {
        let parts = self.parts.iter().map(|part| part.reads * part.tensor.bytes());
        parts.sum::<usize>() + self.head_bytes
    }
}

fn part(name: impl Into<String>, shape: impl Into<Vec<usize>>, reads: usize) -> Part {
    Part { tensor: Tensor::weights(name, shape), reads }
}

/// How often the maps of a layer are read: those to keys and values, and all others.
#[derive(Clone, Copy)]
struct Reads {
    kv: usize,
    others: usize,
}

impl Sizes {
    /// Of the target's head.
    fn head_bytes(&self) -> usize {
        2 * self.vocabulary * self.hidden
    }

    fn layer(&self, prefix: &str, inputs: usize, reads: Reads) -> Vec<Part> {
        let map = |name: &str, rows, columns, reads| {
            part(format!("{prefix}{name}.weight"), [rows, columns], reads)
        };
        let norm = |name: &str, width: usize| part(format!("{prefix}{name}.weight"), [width], 0);
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        vec![
            map("self_attn.q_proj", queries, inputs, reads.others),
            map("self_attn.k_proj", keys, inputs, reads.kv),
            map("self_attn.v_proj", keys, inputs, reads.kv),
            map("self_attn.o_proj", self.hidden, queries, reads.others),
            map("mlp.gate_proj", self.intermediate, self.hidden, reads.others),
            map("mlp.up_proj", self.intermediate, self.hidden, reads.others),
            map("mlp.down_proj", self.hidden, self.intermediate, reads.others),
            norm("post_attention_layernorm", self.hidden),
            norm("self_attn.q_norm", self.head_dim),
            norm("self_attn.k_norm", self.head_dim),
        ]
    }

    fn config(&self, kind: &str, family: &str, layers: usize, others: Value) -> Value {
        let mut config = json!({
            "speculators_model_type": kind, "draft_vocab_size": self.vocabulary,
            "speculators_config": {"algorithm": kind, "default_proposal_method": "greedy",
                "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": BLOCK - 1}],
                "verifier": {"name_or_path": null, "architectures": []}},
            "transformer_layer_config": {"model_type": family, "vocab_size": self.vocabulary,
                "hidden_size": self.hidden, "intermediate_size": self.intermediate,
                "num_hidden_layers": layers, "num_attention_heads": self.heads,
                "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
                "rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "rope_theta": 1_000_000.0},
        });
        let others = others.as_object().expect("an object").clone();
        config.as_object_mut().expect("an object").extend(others);
        config
    }

    /// Every kind.
    pub fn kinds(&self) -> Vec<Checkpoint> {
        let mut all = vec![self.eagle(), self.eagle3(), self.mtp(), self.peagle()];
        all.push(self.dflash("dflash", json!({}), Vec::new()));
        let head = part("markov_head.markov_w1.weight", [self.vocabulary, self.rank], 0);
        let readout = part("markov_head.markov_w2.weight", [self.vocabulary, self.rank], DRAFTS);
        let settings = json!({"markov_rank": self.rank, "markov_head_type": "vanilla",
            "enable_confidence_head": false, "sample_from_anchor": false});
        all.push(self.dflash("dspark", settings, vec![head, readout]));
        all.push(self.dflash2());
        all.push(self.xpress());
        all
    }

    fn eagle(&self) -> Checkpoint {
        let reads = Reads { kv: DRAFTS, others: DRAFTS };
        let mut parts = self.layer("transformer.", self.hidden, reads);
        parts.retain(|part| !part.tensor.name.contains("_norm"));
        parts.push(part("fusion_fc.weight", [self.hidden, 2 * self.hidden], DRAFTS));
        let config =
            self.config("eagle", "llama", 1, json!({"layernorms": false, "fusion_bias": false}));
        Checkpoint { name: "eagle", config, parts, head_bytes: DRAFTS * self.head_bytes() }
    }

    fn eagle3(&self) -> Checkpoint {
        let mut parts =
            self.layer("layers.0.", 2 * self.hidden, Reads { kv: DRAFTS, others: DRAFTS });
        parts.retain(|part| !part.tensor.name.contains("_norm"));
        let norms = ["layers.0.hidden_norm", "layers.0.input_layernorm", "norm"];
        parts.extend(norms.map(|name| part(format!("{name}.weight"), [self.hidden], 0)));
        parts.push(part("fc.weight", [self.hidden, FEATURES * self.hidden], 1));
        parts.push(part("lm_head.weight", [self.vocabulary, self.hidden], DRAFTS));
        let settings =
            json!({"norm_before_residual": true, "eagle_aux_hidden_state_layer_ids": [2, 16, 29]});
        Checkpoint {
            name: "eagle3",
            config: self.config("eagle3", "llama", 1, settings),
            parts,
            head_bytes: 0,
        }
    }

    fn mtp(&self) -> Checkpoint {
        const PREFIX: &str = "mtp_layers.0.";
        let mut parts = self.layer(PREFIX, self.hidden, Reads { kv: DRAFTS, others: DRAFTS });
        let norms = ["token_layernorm", "hidden_layernorm", "final_layernorm", "input_layernorm"];
        parts.extend(norms.map(|name| part(format!("{PREFIX}{name}.weight"), [self.hidden], 0)));
        parts.push(part(
            format!("{PREFIX}input_proj.weight"),
            [self.hidden, 2 * self.hidden],
            DRAFTS,
        ));
        let mut config = self.config("mtp", "qwen3", 1, json!({"num_nextn_predict_layers": 1}));
        config.as_object_mut().expect("an object").remove("draft_vocab_size");
        Checkpoint { name: "mtp", config, parts, head_bytes: DRAFTS * self.head_bytes() }
    }

    fn peagle(&self) -> Checkpoint {
        const LAYERS: usize = 4;
        // Committed rows pass all layers but the last, of which they need keys and values.
        let reads = |index| Reads { kv: 2, others: if index + 1 < LAYERS { 2 } else { 1 } };
        let mut parts: Vec<Part> = (0..LAYERS)
            .flat_map(|index| {
                let inputs = if index == 0 { 2 * self.hidden } else { self.hidden };
                self.layer(&format!("layers.{index}."), inputs, reads(index))
            })
            .collect();
        let norms = (0..LAYERS).map(|index| format!("layers.{index}.input_layernorm"));
        let norms = norms.chain(["layers.0.hidden_norm".to_owned(), "norm".to_owned()]);
        parts.extend(norms.map(|name| part(format!("{name}.weight"), [self.hidden], 0)));
        parts.push(part("fc.weight", [self.hidden, FEATURES * self.hidden], 1));
        parts.push(part("mask_hidden", [1, 1, FEATURES * self.hidden], 0));
        parts.push(part("embed_tokens.weight", [self.vocabulary, self.hidden], 0));
        parts.push(part("lm_head.weight", [self.vocabulary, self.hidden], 1));
        let settings = json!({"norm_before_residual": true, "mask_token_id": 5,
            "eagle_aux_hidden_state_layer_ids": [2, 16, 29]});
        let config = self.config("peagle", "qwen3", LAYERS, settings);
        Checkpoint { name: "peagle", config, parts, head_bytes: 0 }
    }

    /// DFlash, or a kind that is made of it.
    fn dflash(&self, name: &'static str, others: Value, head: Vec<Part>) -> Checkpoint {
        const LAYERS: usize = 5;
        let mut parts = head;
        for index in 0..LAYERS {
            let prefix = format!("layers.{index}.");
            parts.extend(self.layer(&prefix, self.hidden, Reads { kv: 2, others: 1 }));
            parts.push(part(format!("{prefix}input_layernorm.weight"), [self.hidden], 0));
            if name == "dflash2" {
                parts.extend(["attention_conv", "mlp_conv"].into_iter().flat_map(|half| {
                    const TAPS: usize = 2;
                    let coefficients = 2 * TAPS * self.hidden / 16;
                    [
                        part(format!("{prefix}{half}.base_kernel"), [2, TAPS, self.hidden], 1),
                        part(
                            format!("{prefix}{half}.kernel_projection.weight"),
                            [coefficients, self.hidden],
                            1,
                        ),
                    ]
                }));
            }
        }
        parts.push(part("fc.weight", [self.hidden, FEATURES * self.hidden], 1));
        parts
            .extend(["hidden_norm.weight", "norm.weight"].map(|name| part(name, [self.hidden], 0)));
        let mut settings = json!({"aux_hidden_state_layer_ids": [2, 16, 29], "mask_token_id": 5,
            "block_size": BLOCK, "sample_from_anchor": false});
        let others = others.as_object().expect("an object").clone();
        settings.as_object_mut().expect("an object").extend(others);
        Checkpoint {
            name,
            config: self.config(name, "qwen3", LAYERS, settings),
            parts,
            head_bytes: self.head_bytes(),
        }
    }

    fn dflash2(&self) -> Checkpoint {
        const SELECTOR: &str = "candidate_selector.";
        // Of the books, a round reads a few rows.
        let head = vec![
            part(format!("{SELECTOR}predecessor_codebook"), [self.vocabulary, self.rank], 0),
            part(format!("{SELECTOR}successor_codebook"), [self.vocabulary, self.rank], 0),
            part(format!("{SELECTOR}hidden_projection.weight"), [self.rank, self.hidden], 1),
        ];
        let settings = json!({"conv_kernel_size": 2, "conv_group_size": 16, "selector_rank": self.rank,
            "selector_top_k": 16, "sliding_window_non_causal": true});
        self.dflash("dflash2", settings, head)
    }

    fn xpress(&self) -> Checkpoint {
        let head = |name: &str, shape: Vec<usize>, reads| {
            part(format!("refiner_head.{name}"), shape, reads)
        };
        let parts = vec![
            head("down_h.weight", vec![self.rank, self.hidden], 1),
            head("down_g.weight", vec![self.rank, self.hidden], 1),
            head("in_proj.weight", vec![self.rank, 3 * self.rank], PASSES),
            head("mix_l", vec![self.rank, BLOCK, BLOCK], PASSES),
            head("mlp_gate.weight", vec![2 * self.rank, self.rank], PASSES),
            head("mlp_up.weight", vec![2 * self.rank, self.rank], PASSES),
            head("mlp_down.weight", vec![self.rank, 2 * self.rank], PASSES),
            head("readout.weight", vec![self.vocabulary, self.rank], PASSES),
            head("token_embed.weight", vec![self.vocabulary, self.rank], 0),
        ];
        let settings =
            json!({"xpress_rank": self.rank, "xpress_mlp_ratio": 2, "num_jacobi_passes": PASSES});
        self.dflash("xpress", settings, parts)
    }
}
