//! A drafting round of each kind of speculator of the size that goes with an 8B target against reading the
//! weights once for every pass that the round has to make, on the same threads.
//!
//! `cargo bench --bench kinds`, or with names of kinds behind `--`; the checkpoints (up to 2.3 GB, made up)
//! are written to the target folder, one at a time.

#[path = "../tests/device/mod.rs"]
mod device;
#[path = "../tests/host/mod.rs"]
mod host;
mod measure;

use half::bf16;
use host::draft::{DraftCall, Place, Text, Turn};
use host::matrix::{Dtype, Matrix};
use host::random::Random;
use host::{Context, Model, Session, Versioned};
use measure::kinds::{CONTEXT, Checkpoint, DRAFTS, ROWS, TARGET_8B};
use measure::{Memory, Reader, compare, cores, seconds};
use speculators::capi::{spec_model_options, spec_row_range, spec_session_options};

/// The target's table, which is lent as embedding and as head.
fn table() -> Matrix {
    let block: Vec<f32> = measure::checkpoint::random_weights()
        .chunks_exact(2)
        .map(|bytes| bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32())
        .collect();
    let (rows, columns) = (TARGET_8B.vocabulary, TARGET_8B.hidden);
    let elements: Vec<f32> = block.iter().copied().cycle().take(rows * columns).collect();
    Matrix::new(rows, columns, &elements).converted(Dtype::Bf16, columns)
}

fn report(checkpoint: &Checkpoint, context: &Context, table: &Matrix, reader: &Reader) {
    let directory = checkpoint.write();
    let lent = spec_row_range { tensor: table.tensor_for(context.device), first_row: 0 };
    let options = spec_model_options {
        embedding: &lent,
        num_embedding: 1,
        head: &lent,
        num_head: 1,
        ..Versioned::blank()
    };
    let model = Model::load_with(context, &directory, &options).expect("a model");
    std::fs::remove_dir_all(&directory).expect("removing the checkpoint");
    let bytes = checkpoint.round_bytes();
    let memory = Memory::new(bytes.min(2 << 30));
    for batch in [1, 4] {
        let round = Round::new(&model, batch);
        let result = compare(5, || round.seconds(), || read(reader, &memory, bytes));
        println!(
            "| {} | {batch} | {:.0} ms | {} MB | {:.0} ms | {:.2} |",
            checkpoint.name,
            1e3 * result.ours,
            bytes / 1_000_000,
            1e3 * result.reference,
            result.ratio
        );
    }
}

/// Seconds of reading so many bytes, more than the memory has in several turns.
fn read(reader: &Reader, memory: &Memory, bytes: usize) -> f64 {
    let all = memory.as_slice();
    seconds(|| {
        let mut rest = bytes;
        while rest > 0 {
            let part = rest.min(all.len());
            reader.read(&all[..part]);
            rest -= part;
        }
    })
}

/// A session in which all sequences have their context.
struct Round {
    session: Session,
    call: DraftCall,
}

impl Round {
    fn new(model: &Model, batch: usize) -> Self {
        let options = spec_session_options {
            max_sequences: batch as i32,
            max_rows: (batch * CONTEXT) as i32,
            max_drafts: DRAFTS as i32,
            max_position: 1024,
            ..Versioned::blank()
        };
        let session = Session::create(model, &options).expect("a session");
        session.warm_up().expect("a warm session");
        let mut random = Random::new(2);
        let len = CONTEXT + ROWS + 1;
        let text = Text::random(&mut random, len, model.info().vocabulary, &model.widths());
        let call = |rows: std::ops::Range<usize>, drafts| {
            let turn = |slot| Turn::new(&text, rows.clone(), drafts, Place::Slot(slot));
            let turns: Vec<Turn<'_>> = (0..batch as i32).map(turn).collect();
            DraftCall { logits: None, ..DraftCall::of(&turns) }
        };
        call(0..CONTEXT, 0).run(&session).expect("a commit");
        Self { call: call(CONTEXT..CONTEXT + ROWS, DRAFTS as i32), session }
    }

    /// Of a round, which commits the same rows each time.
    fn seconds(&self) -> f64 {
        let prepared = self.call.prepare(self.session.outputs);
        seconds(|| self.session.draft(&prepared.args).expect("a round"))
    }
}

fn main() {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let threads = cores();
    let context = Context::with_threads(threads as i32);
    let (table, reader) = (table(), Reader::new(threads));
    println!(
        "{threads} threads, {CONTEXT} positions of context, {ROWS} rows committed, K = {DRAFTS}\n"
    );
    println!("| kind | B | round | reads | reading | ratio |");
    println!("|---|---|---|---|---|---|");
    for checkpoint in TARGET_8B.kinds() {
        if wanted.is_empty() || wanted.iter().any(|name| name == checkpoint.name) {
            report(&checkpoint, &context, &table, &reader);
        }
    }
}
