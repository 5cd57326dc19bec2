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
use measure::checkpoint::{Head, LLAMA_8B};
use measure::{Memory, Reader, compare, cores, seconds};
use speculators::capi::spec_session_options;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// With the embedding of a small vocabulary, which steps do not read.
const HEAD: Head = Head { vocabulary: 32_000, stores_embedding: true, ..LLAMA_8B };
const CONTEXT: usize = 128;
const STEPS: i32 = 5;

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
    let text = Text::random(&mut random, CONTEXT + 2, HEAD.vocabulary as i32, &[HEAD.hidden; 3]);
    let turn = |rows: std::ops::Range<usize>, drafts, slot| {
        Turn::new(&text, rows, drafts, Place::Slot(slot))
    };
    let call = |rows: std::ops::Range<usize>, drafts| {
        let turns: Vec<_> = (0..batch as i32).map(|b| turn(rows.clone(), drafts, b)).collect();
        DraftCall { logits: None, ..DraftCall::of(&turns) }
    };
    call(0..CONTEXT, 0).run(&session).expect("a commit");
    let (one, all) = (call(CONTEXT..CONTEXT + 1, 1), call(CONTEXT..CONTEXT + 1, STEPS));
    let (one, all) = (one.prepare(HEAD.draft_vocabulary), all.prepare(HEAD.draft_vocabulary));
    let run = |args| seconds(|| session.draft(args).expect("a draft"));
    let (memory, reader) = (Memory::new(HEAD.step_bytes()), Reader::new(threads));
    let result = compare(
        9,
        || (run(&all.args) - run(&one.args)) / f64::from(STEPS - 1),
        || seconds(|| reader.read(memory.as_slice())),
    );
    println!(
        "draft step, B = {batch}: {:.1} ms, reading its {} MB of weights: {:.1} ms, ratio {:.2}",
        1e3 * result.ours,
        HEAD.step_bytes() / 1_000_000,
        1e3 * result.reference,
        result.ratio
    );
}

fn main() {
    let threads = cores();
    let directory = HEAD.write("bench-eagle3");
    let context = Context::with_threads(threads as i32);
    println!(
        "{threads} threads, H {}, I {}, Vd {}, bf16",
        HEAD.hidden, HEAD.intermediate, HEAD.draft_vocabulary
    );
    report_load(&context, &directory);
    let model = Model::load(&context, &directory, None).expect("a model");
    for batch in [1, 4, 8] {
        report_steps(&model, threads, batch);
    }
    drop(model);
    std::fs::remove_dir_all(&directory).expect("removing the checkpoint");
}
