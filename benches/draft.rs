//! A drafting step of an 8B-class EAGLE-3 head against reading its weights once on the same
//! threads, and loading against reading the file.
//!
//! `cargo bench --bench draft`; the checkpoint (1.1 GB, made up) is written to the target folder.

#[path = "../tests/device/mod.rs"]
mod device;
#[path = "../tests/host/mod.rs"]
mod host;
mod measure;

use host::draft::{DraftCall, Place, Text, Turn};
use host::random::Random;
use host::{Context, Model, Session, Versioned};
use measure::{Memory, Reader, compare, cores, seconds};
use speculators::capi::spec_session_options;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

const HIDDEN: usize = 4096;
const INTERMEDIATE: usize = 14336;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
const VOCABULARY: usize = 32000;
const CONTEXT: usize = 128;
const STEPS: i32 = 5;

fn tensors() -> Vec<(String, Vec<usize>)> {
    let layer = |name: &str| format!("layers.0.{name}.weight");
    let map = |name: &str, rows, columns| (layer(name), vec![rows, columns]);
    let norm = |name: &str| (layer(name), vec![HIDDEN]);
    vec![
        ("embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("fc.weight".to_owned(), vec![HIDDEN, 3 * HIDDEN]),
        norm("hidden_norm"),
        norm("input_layernorm"),
        norm("post_attention_layernorm"),
        map("self_attn.q_proj", HEADS * HEAD_DIM, 2 * HIDDEN),
        map("self_attn.k_proj", KV_HEADS * HEAD_DIM, 2 * HIDDEN),
        map("self_attn.v_proj", KV_HEADS * HEAD_DIM, 2 * HIDDEN),
        map("self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM),
        map("mlp.gate_proj", INTERMEDIATE, HIDDEN),
        map("mlp.up_proj", INTERMEDIATE, HIDDEN),
        map("mlp.down_proj", HIDDEN, INTERMEDIATE),
        ("norm.weight".to_owned(), vec![HIDDEN]),
        ("lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
    ]
}

/// Bytes of weights that a step after the first reads: all maps but fc, and no embedding.
fn step_bytes() -> usize {
    let read = |name: &str| name != "embed_tokens.weight" && name != "fc.weight";
    let tensors = tensors().into_iter().filter(|(name, _)| read(name));
    tensors.map(|(_, shape)| 2 * shape.iter().product::<usize>()).sum()
}

fn write_checkpoint() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-eagle3");
    std::fs::create_dir_all(&directory).expect("a folder");
    let config = serde_json::json!({
        "speculators_model_type": "eagle3", "draft_vocab_size": VOCABULARY,
        "norm_before_residual": true, "eagle_aux_hidden_state_layer_ids": [2, 16, 29],
        "speculators_config": {"algorithm": "eagle3", "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": STEPS}],
            "verifier": {"name_or_path": null, "architectures": ["LlamaForCausalLM"]}},
        "transformer_layer_config": {"model_type": "llama", "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": 1,
            "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "rope_theta": 500_000.0},
    });
    std::fs::write(directory.join("config.json"), config.to_string()).expect("a config");
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors() {
        let begin = end;
        end += 2 * shape.iter().product::<usize>();
        let entry =
            serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]});
        header.insert(name, entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let file = File::create(directory.join("model.safetensors")).expect("a file");
    let mut file = BufWriter::new(file);
    let mut random = Random::new(1);
    let block: Vec<u8> = (0..1 << 19)
        .flat_map(|_| half::bf16::from_f32(0.02 * random.normal()).to_le_bytes())
        .collect();
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("writing");
    file.write_all(header.as_bytes()).expect("writing");
    while end > 0 {
        let len = end.min(block.len());
        file.write_all(&block[..len]).expect("writing");
        end -= len;
    }
    file.flush().expect("writing");
    directory
}

fn report_load(context: &Context, directory: &Path) {
    let path = directory.join("model.safetensors");
    let mut buffer = vec![0; 1 << 22];
    let result = compare(
        3,
        || seconds(|| drop(Model::load(context, directory, None).expect("a model"))),
        || {
            seconds(|| {
                let mut file = File::open(&path).expect("the file");
                while file.read(&mut buffer).expect("reading") > 0 {}
            })
        },
    );
    println!(
        "load: {:.2} s, reading the file once: {:.2} s, ratio {:.2}",
        result.ours, result.reference, result.ratio
    );
}

fn report_steps(model: &Model, threads: usize, batch: usize) {
    let options = spec_session_options {
        max_sequences: batch as i32,
        max_rows: (batch * CONTEXT) as i32,
        max_drafts: STEPS,
        max_position: 4096,
        ..Versioned::blank()
    };
    let session = Session::create(model, &options).expect("a session");
    session.warm_up().expect("a warm session");
    let mut random = Random::new(2);
    let text = Text::random(&mut random, CONTEXT + 2, VOCABULARY as i32, &[HIDDEN; 3]);
    let turn = |rows: std::ops::Range<usize>, drafts, slot| {
        Turn::new(&text, rows, drafts, Place::Slot(slot))
    };
    let call = |rows: std::ops::Range<usize>, drafts| {
        let turns: Vec<_> = (0..batch as i32).map(|b| turn(rows.clone(), drafts, b)).collect();
        DraftCall { logits: None, ..DraftCall::of(&turns) }
    };
    call(0..CONTEXT, 0).run(&session).expect("a commit");
    let (one, all) = (call(CONTEXT..CONTEXT + 1, 1), call(CONTEXT..CONTEXT + 1, STEPS));
    let (one, all) = (one.prepare(VOCABULARY), all.prepare(VOCABULARY));
    let run = |args| seconds(|| session.draft(args).expect("a draft"));
    let (memory, reader) = (Memory::new(step_bytes()), Reader::new(threads));
    let result = compare(
        9,
        || (run(&all.args) - run(&one.args)) / f64::from(STEPS - 1),
        || seconds(|| reader.read(memory.as_slice())),
    );
    println!(
        "draft step, B = {batch}: {:.1} ms, reading its {} MB of weights: {:.1} ms, ratio {:.2}",
        1e3 * result.ours,
        step_bytes() / 1_000_000,
        1e3 * result.reference,
        result.ratio
    );
}

fn main() {
    let threads = cores();
    let directory = write_checkpoint();
    let context = Context::with_threads(threads as i32);
    println!("{threads} threads, H {HIDDEN}, I {INTERMEDIATE}, Vd {VOCABULARY}, bf16");
    report_load(&context, &directory);
    let model = Model::load(&context, &directory, None).expect("a model");
    for batch in [1, 4, 8] {
        report_steps(&model, threads, batch);
    }
    drop(model);
    std::fs::remove_dir_all(&directory).expect("removing the checkpoint");
}
