//! A drafting step of an 8B-class EAGLE-3 head against reading its weights once on the same
//! threads, trees against chains of as many levels, and loading against reading the file.
//!
//! `cargo bench --bench draft`; the checkpoint (1.1 GB, made up) is written to the target folder.

#[path = "../tests/device/mod.rs"]
mod device;
#[path = "../tests/host/mod.rs"]
mod host;
mod measure;

use host::draft::{DraftCall, Place, Sampling, SamplingColumns, Text, TreeShape, Turn};
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

/// A session whose sequences have their context, and calls for their next row.
struct Drafter {
    session: Session,
    text: Text,
    batch: usize,
}

impl Drafter {
    fn new(model: &Model, batch: usize, options: &spec_session_options) -> Self {
        let options = spec_session_options {
            max_sequences: batch as i32,
            max_rows: (batch * CONTEXT) as i32,
            max_position: 4096,
            ..*options
        };
        let session = Session::create(model, &options).expect("a session");
        session.warm_up().expect("a warm session");
        let (mut random, len) = (Random::new(2), CONTEXT + 2);
        let text = Text::random(&mut random, len, HEAD.vocabulary as i32, &[HEAD.hidden; 3]);
        let drafter = Self { session, text, batch };
        drafter.call(0..CONTEXT, 0).run(&drafter.session).expect("a commit");
        drafter
    }

    fn call(&self, rows: std::ops::Range<usize>, drafts: i32) -> DraftCall {
        let turn = |slot| Turn::new(&self.text, rows.clone(), drafts, Place::Slot(slot));
        let turns: Vec<_> = (0..self.batch as i32).map(turn).collect();
        DraftCall { logits: None, ..DraftCall::of(&turns) }
    }

    /// A round with so many drafts, which commits the same row each time.
    fn round(&self, drafts: i32) -> DraftCall {
        self.call(CONTEXT..CONTEXT + 1, drafts)
    }
}

fn report_steps(model: &Model, threads: usize, batch: usize) {
    let options = spec_session_options { max_drafts: STEPS, ..Versioned::blank() };
    let drafter = Drafter::new(model, batch, &options);
    let (one, all) = (drafter.round(1), drafter.round(STEPS));
    let (one, all) = (one.prepare(HEAD.draft_vocabulary), all.prepare(HEAD.draft_vocabulary));
    let run = |args| seconds(|| drafter.session.draft(args).expect("a draft"));
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

/// Trees of some shapes against chains of as many levels, which read the weights as often.
fn report_trees(model: &Model, batch: usize) {
    let binary = |nodes: i32| (0..nodes).map(|node| (node + 1) / 2 - 1).collect::<Vec<i32>>();
    let shapes = [
        ("static, 15 nodes", 3, TreeShape::Static(binary(15))),
        ("static, 31 nodes", 4, TreeShape::Static(binary(31))),
        ("stochastic, 31 nodes", 4, TreeShape::Stochastic(binary(31))),
        ("dynamic, 32 nodes, width 4", 5, TreeShape::Dynamic { nodes: 32, depth: 5, width: 4 }),
        ("dynamic, 60 nodes, width 10", 5, TreeShape::Dynamic { nodes: 60, depth: 5, width: 10 }),
    ];
    let options = spec_session_options {
        max_drafts: 60,
        max_tree_width: 10,
        max_tree_depth: 5,
        ..Versioned::blank()
    };
    let drafter = Drafter::new(model, batch, &options);
    let sampling = Sampling { temperature: 0.8, seed: 5, ..Sampling::default() };
    for (name, levels, shape) in shapes {
        let nodes = match &shape {
            TreeShape::Static(parents) | TreeShape::Stochastic(parents) => parents.len() as i32,
            TreeShape::Dynamic { nodes, .. } => *nodes,
        };
        let sampled = |mut call: DraftCall| {
            if matches!(shape, TreeShape::Stochastic(_)) {
                call.sampling = Some(SamplingColumns::of(std::iter::repeat_n(sampling, batch)));
            }
            call
        };
        let tree = sampled(drafter.round(nodes - 1)).with_trees(&shape);
        let chain = sampled(drafter.round(levels));
        let (tree, chain) = (tree.prepare(0), chain.prepare(0));
        let run = |args| seconds(|| drafter.session.draft(args).expect("a draft"));
        let result = compare(9, || run(&tree.args), || run(&chain.args));
        println!(
            "tree, {name}, B = {batch}: {:.1} ms, a chain of {levels}: {:.1} ms, ratio {:.2}",
            1e3 * result.ours,
            1e3 * result.reference,
            result.ratio
        );
    }
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
    for batch in [1, 4] {
        report_trees(&model, batch);
    }
    drop(model);
    std::fs::remove_dir_all(&directory).expect("removing the checkpoint");
}
