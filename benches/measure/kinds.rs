//! Checkpoints of every kind of the sizes that go with an 8B target, with made-up weights, and how often a
//! round has to read each of their tensors.

use super::checkpoint::{self, Tensor};
use serde_json::{Value, json};
use std::path::PathBuf;

const HIDDEN: usize = 4096;
const INTERMEDIATE: usize = 12_288;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
pub const VOCABULARY: usize = 32_000;
/// Rows of a block, of which all but the first draft.
const BLOCK: usize = 8;
/// Of a low-rank head.
const RANK: usize = 256;
/// Passes of a refiner.
const PASSES: usize = 6;
const FEATURES: usize = 3;

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
    /// How often a round reads the head, which the host lends where no tensor of the file is it.
    head_reads: usize,
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
        parts.sum::<usize>() + self.head_reads * 2 * VOCABULARY * HIDDEN
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

fn layer(prefix: &str, inputs: usize, reads: Reads) -> Vec<Part> {
    let map = |name: &str, rows, columns, reads| {
        part(format!("{prefix}{name}.weight"), [rows, columns], reads)
    };
    let norm = |name: &str, width: usize| part(format!("{prefix}{name}.weight"), [width], 0);
    let (queries, keys) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    vec![
        map("self_attn.q_proj", queries, inputs, reads.others),
        map("self_attn.k_proj", keys, inputs, reads.kv),
        map("self_attn.v_proj", keys, inputs, reads.kv),
        map("self_attn.o_proj", HIDDEN, queries, reads.others),
        map("mlp.gate_proj", INTERMEDIATE, HIDDEN, reads.others),
        map("mlp.up_proj", INTERMEDIATE, HIDDEN, reads.others),
        map("mlp.down_proj", HIDDEN, INTERMEDIATE, reads.others),
        norm("post_attention_layernorm", HIDDEN),
        norm("self_attn.q_norm", HEAD_DIM),
        norm("self_attn.k_norm", HEAD_DIM),
    ]
}

fn config(kind: &str, family: &str, layers: usize, others: Value) -> Value {
    let mut config = json!({
        "speculators_model_type": kind, "draft_vocab_size": VOCABULARY,
        "speculators_config": {"algorithm": kind, "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": BLOCK - 1}],
            "verifier": {"name_or_path": null, "architectures": []}},
        "transformer_layer_config": {"model_type": family, "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
            "num_hidden_layers": layers, "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 8192, "rope_theta": 1_000_000.0},
    });
    let others = others.as_object().expect("an object").clone();
    config.as_object_mut().expect("an object").extend(others);
    config
}

/// Every kind that drafts `drafts` tokens a round, at most one fewer than a block has rows.
pub fn all(drafts: usize) -> Vec<Checkpoint> {
    let mut all = vec![eagle(drafts), eagle3(drafts), mtp(drafts), peagle()];
    all.push(dflash("dflash", json!({}), Vec::new(), 1));
    let head = part("markov_head.markov_w1.weight", [VOCABULARY, RANK], 0);
    let readout = part("markov_head.markov_w2.weight", [VOCABULARY, RANK], drafts);
    let settings = json!({"markov_rank": RANK, "markov_head_type": "vanilla",
        "enable_confidence_head": false, "sample_from_anchor": false});
    all.push(dflash("dspark", settings, vec![head, readout], 1));
    all.push(dflash2());
    all.push(xpress());
    all
}

fn eagle(drafts: usize) -> Checkpoint {
    let reads = Reads { kv: drafts, others: drafts };
    let mut parts = layer("transformer.", HIDDEN, reads);
    parts.retain(|part| !part.tensor.name.contains("_norm"));
    parts.push(part("fusion_fc.weight", [HIDDEN, 2 * HIDDEN], drafts));
    let config = config("eagle", "llama", 1, json!({"layernorms": false, "fusion_bias": false}));
    Checkpoint { name: "eagle", config, parts, head_reads: drafts }
}

fn eagle3(drafts: usize) -> Checkpoint {
    let mut parts = layer("layers.0.", 2 * HIDDEN, Reads { kv: drafts, others: drafts });
    parts.retain(|part| !part.tensor.name.contains("_norm"));
    let norms = ["layers.0.hidden_norm", "layers.0.input_layernorm", "norm"];
    parts.extend(norms.map(|name| part(format!("{name}.weight"), [HIDDEN], 0)));
    parts.push(part("fc.weight", [HIDDEN, FEATURES * HIDDEN], 1));
    parts.push(part("lm_head.weight", [VOCABULARY, HIDDEN], drafts));
    let settings =
        json!({"norm_before_residual": true, "eagle_aux_hidden_state_layer_ids": [2, 16, 29]});
    Checkpoint {
        name: "eagle3",
        config: config("eagle3", "llama", 1, settings),
        parts,
        head_reads: 0,
    }
}

fn mtp(drafts: usize) -> Checkpoint {
    const PREFIX: &str = "mtp_layers.0.";
    let mut parts = layer(PREFIX, HIDDEN, Reads { kv: drafts, others: drafts });
    let norms = ["token_layernorm", "hidden_layernorm", "final_layernorm", "input_layernorm"];
    parts.extend(norms.map(|name| part(format!("{PREFIX}{name}.weight"), [HIDDEN], 0)));
    parts.push(part(format!("{PREFIX}input_proj.weight"), [HIDDEN, 2 * HIDDEN], drafts));
    let mut config = config("mtp", "qwen3", 1, json!({"num_nextn_predict_layers": 1}));
    config.as_object_mut().expect("an object").remove("draft_vocab_size");
    Checkpoint { name: "mtp", config, parts, head_reads: drafts }
}

fn peagle() -> Checkpoint {
    const LAYERS: usize = 4;
    // Committed rows pass all layers but the last, of which they need keys and values.
    let reads = |index| Reads { kv: 2, others: if index + 1 < LAYERS { 2 } else { 1 } };
    let mut parts: Vec<Part> = (0..LAYERS)
        .flat_map(|index| {
            let inputs = if index == 0 { 2 * HIDDEN } else { HIDDEN };
            layer(&format!("layers.{index}."), inputs, reads(index))
        })
        .collect();
    let norms = (0..LAYERS).map(|index| format!("layers.{index}.input_layernorm"));
    let norms = norms.chain(["layers.0.hidden_norm".to_owned(), "norm".to_owned()]);
    parts.extend(norms.map(|name| part(format!("{name}.weight"), [HIDDEN], 0)));
    parts.push(part("fc.weight", [HIDDEN, FEATURES * HIDDEN], 1));
    parts.push(part("mask_hidden", [1, 1, FEATURES * HIDDEN], 0));
    parts.push(part("embed_tokens.weight", [VOCABULARY, HIDDEN], 0));
    parts.push(part("lm_head.weight", [VOCABULARY, HIDDEN], 1));
    let settings = json!({"norm_before_residual": true, "mask_token_id": 5,
        "eagle_aux_hidden_state_layer_ids": [2, 16, 29]});
    let config = config("peagle", "qwen3", LAYERS, settings);
    Checkpoint { name: "peagle", config, parts, head_reads: 0 }
}

/// DFlash, or a kind that is made of it.
fn dflash(name: &'static str, others: Value, head: Vec<Part>, head_reads: usize) -> Checkpoint {
    const LAYERS: usize = 5;
    let mut parts = head;
    for index in 0..LAYERS {
        let prefix = format!("layers.{index}.");
        parts.extend(layer(&prefix, HIDDEN, Reads { kv: 2, others: 1 }));
        parts.push(part(format!("{prefix}input_layernorm.weight"), [HIDDEN], 0));
        if name == "dflash2" {
            parts.extend(["attention_conv", "mlp_conv"].into_iter().flat_map(|half| {
                const TAPS: usize = 2;
                let coefficients = 2 * TAPS * HIDDEN / 16;
                [
                    part(format!("{prefix}{half}.base_kernel"), [2, TAPS, HIDDEN], 1),
                    part(
                        format!("{prefix}{half}.kernel_projection.weight"),
                        [coefficients, HIDDEN],
                        1,
                    ),
                ]
            }));
        }
    }
    parts.push(part("fc.weight", [HIDDEN, FEATURES * HIDDEN], 1));
    parts.extend(["hidden_norm.weight", "norm.weight"].map(|name| part(name, [HIDDEN], 0)));
    let mut settings = json!({"aux_hidden_state_layer_ids": [2, 16, 29], "mask_token_id": 5,
        "block_size": BLOCK, "sample_from_anchor": false});
    let others = others.as_object().expect("an object").clone();
    settings.as_object_mut().expect("an object").extend(others);
    Checkpoint { name, config: config(name, "qwen3", LAYERS, settings), parts, head_reads }
}

fn dflash2() -> Checkpoint {
    const SELECTOR: &str = "candidate_selector.";
    // Of the books, a round reads a few rows.
    let head = vec![
        part(format!("{SELECTOR}predecessor_codebook"), [VOCABULARY, RANK], 0),
        part(format!("{SELECTOR}successor_codebook"), [VOCABULARY, RANK], 0),
        part(format!("{SELECTOR}hidden_projection.weight"), [RANK, HIDDEN], 1),
    ];
    let settings = json!({"conv_kernel_size": 2, "conv_group_size": 16, "selector_rank": RANK,
        "selector_top_k": 16, "sliding_window_non_causal": true});
    dflash("dflash2", settings, head, 1)
}

fn xpress() -> Checkpoint {
    let head =
        |name: &str, shape: Vec<usize>, reads| part(format!("refiner_head.{name}"), shape, reads);
    let parts = vec![
        head("down_h.weight", vec![RANK, HIDDEN], 1),
        head("down_g.weight", vec![RANK, HIDDEN], 1),
        head("in_proj.weight", vec![RANK, 3 * RANK], PASSES),
        head("mix_l", vec![RANK, BLOCK, BLOCK], PASSES),
        head("mlp_gate.weight", vec![2 * RANK, RANK], PASSES),
        head("mlp_up.weight", vec![2 * RANK, RANK], PASSES),
        head("mlp_down.weight", vec![RANK, 2 * RANK], PASSES),
        head("readout.weight", vec![VOCABULARY, RANK], PASSES),
        head("token_embed.weight", vec![VOCABULARY, RANK], 0),
    ];
    let settings = json!({"xpress_rank": RANK, "xpress_mlp_ratio": 2, "num_jacobi_passes": PASSES});
    dflash("xpress", settings, parts, 1)
}
