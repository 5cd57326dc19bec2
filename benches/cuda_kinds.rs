//! A drafting round of each kind of speculator on a CUDA device, of the size that goes with an 8B target,
//! against reading the weights once for every pass that the round has to make.
//!
//! `cargo bench --bench cuda_kinds`; the checkpoints (up to 2.3 GB, made up) are written to the target
//! folder, one at a time.

#[path = "../tests/device/mod.rs"]
mod device;
#[path = "../tests/host/mod.rs"]
mod host;
mod measure;

use device::Device;
use device::stream::Stream;
use host::{Context, Versioned};
use measure::cuda::{Bandwidth, Effort};
use measure::kinds::{CONTEXT, Checkpoint, DRAFTS, ROWS, SMALL, TARGET_8B};
use measure::report::{Figures, Options};
use measure::round::{Drafter, Extent, Table, Times};
use speculators::capi::spec_model_options;

const BATCHES: &[usize] = &[1, 4, 16];
const QUICK_BATCHES: &[usize] = &[1, 2];

/// A round of so many sequences.
fn round_of(batch: usize) -> Extent {
    Extent { batch, rows: ROWS, drafts: DRAFTS, context: CONTEXT + ROWS }
}

/// Loads a checkpoint, to which the target's table is lent as embedding and as head.
fn load(checkpoint: &Checkpoint, context: &Context, table: &Table, batches: &[usize]) -> Drafter {
    let lent = table.range();
    let options = spec_model_options {
        embedding: &lent,
        num_embedding: 1,
        head: &lent,
        num_head: 1,
        ..Versioned::blank()
    };
    let most = round_of(*batches.iter().max().expect("batches"));
    Drafter::load(context, &checkpoint.write(), &options, most)
}

fn main() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    let options = Options::read();
    let (sizes, batches) =
        if options.quick { (SMALL, QUICK_BATCHES) } else { (TARGET_8B, BATCHES) };
    let effort = Effort::new(options.quick);
    let mut figures = Figures::new(&options);
    let context = Context::on(Device::Cuda);
    let bandwidth = Bandwidth::measure(effort, &Stream::on(Device::Cuda), options.quick);
    bandwidth.report(&mut figures, options.quick);
    println!("\nRounds, {CONTEXT} positions of context, {ROWS} rows committed, K = {DRAFTS}.");
    println!("Reading: weights at the bandwidth of the copy; ratio: of the graph.\n");
    println!("| kind | B | reads | {}", Times::COLUMNS);
    println!("|---|---|---|---|---|---|---|---|");
    let table = Table::new(sizes.vocabulary, sizes.hidden);
    for checkpoint in sizes.kinds() {
        let drafter = load(&checkpoint, &context, &table, batches);
        let bytes = checkpoint.round_bytes();
        for &batch in batches {
            let times = drafter.round(round_of(batch), effort);
            let reading = bytes as f64 / bandwidth.copy;
            let (kind, megabytes) = (checkpoint.name, bytes / 1_000_000);
            println!("| {kind} | {batch} | {megabytes} MB | {}", times.columns(reading));
            let of = serde_json::json!({
                "bench": "cuda_kinds", "kind": kind, "batch": batch, "drafts": DRAFTS,
                "rows": ROWS, "context": CONTEXT, "bytes": bytes,
            });
            figures.add(&times.figure(reading, &of));
        }
    }
}
