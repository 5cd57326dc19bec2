//! Drafting rounds of EAGLE-3 heads on a CUDA device against reading their weights, with a launch of
//! each kernel and captured in a graph.
//!
//! `cargo bench --bench cuda_draft`. The checkpoints (up to 2.8 GB, made up) are written to the
//! target folder, one at a time.

#[path = "../tests/device/mod.rs"]
mod device;
#[path = "../tests/host/mod.rs"]
mod host;
mod measure;

use device::Device;
use device::stream::Stream;
use host::{Context, Versioned};
use measure::checkpoint::{Head, LLAMA_8B, LLAMA_70B, QWEN3_8B, SMALL};
use measure::cuda::{Bandwidth, Effort};
use measure::report::{Figures, Options};
use measure::round::{Drafter, Extent, Table, Times};
use speculators::capi::spec_model_options;

/// What is measured of each head.
struct Sizes {
    heads: &'static [Head],
    batches: &'static [usize],
    drafts: &'static [usize],
    /// Positions that are committed before the round.
    context: usize,
}

const ALL: Sizes = Sizes {
    heads: &[LLAMA_8B, QWEN3_8B, LLAMA_70B],
    batches: &[1, 4, 16, 64],
    drafts: &[1, 3, 5, 7],
    context: 2048,
};

const QUICK: Sizes = Sizes { heads: &[SMALL], batches: &[1, 3], drafts: &[1, 3], context: 40 };

impl Sizes {
    /// A round, in which a sequence commits its root and half of the drafts.
    fn round(&self, batch: usize, drafts: usize) -> Extent {
        Extent { batch, rows: 1 + drafts / 2, drafts, context: self.context }
    }

    fn largest_round(&self) -> Extent {
        let largest = |sizes: &[usize]| *sizes.iter().max().expect("sizes");
        self.round(largest(self.batches), largest(self.drafts))
    }
}

fn load(context: &Context, head: &Head, most: Extent) -> (Drafter, Table) {
    let directory = head.write("bench-eagle3");
    let table = Table::new(head.vocabulary, head.hidden);
    let lent = table.range();
    let options = spec_model_options { embedding: &lent, num_embedding: 1, ..Versioned::blank() };
    (Drafter::load(context, &directory, &options, most), table)
}

/// Bytes that a round has to read: the weights in every step, those that fuse the features once, keys
/// and values of the context in every step.
fn bytes(head: &Head, drafter: &Drafter, round: Extent) -> usize {
    let context = round.batch * round.context * drafter.kv_bytes;
    round.drafts * (head.step_bytes() + context) + head.fusion_bytes()
}

fn report_head(
    head: &Head,
    drafter: &Drafter,
    sizes: &Sizes,
    bandwidth: Bandwidth,
    effort: Effort,
    figures: &mut Figures,
) {
    println!("\nEAGLE-3 head for {}, {} MB a step:\n", head.target, head.step_bytes() / 1_000_000);
    println!("| B | K | {}", Times::COLUMNS);
    println!("|---|---|---|---|---|---|---|");
    for &batch in sizes.batches {
        for &drafts in sizes.drafts {
            let round = sizes.round(batch, drafts);
            let times = drafter.round(round, effort);
            let bytes = bytes(head, drafter, round);
            let reading = bytes as f64 / bandwidth.copy;
            println!("| {batch} | {drafts} | {}", times.columns(reading));
            let of = serde_json::json!({
                "bench": "cuda_draft", "head": head.target, "batch": batch, "drafts": drafts,
                "rows": round.rows, "context": round.context, "bytes": bytes,
            });
            figures.add(&times.figure(reading, &of));
        }
    }
}

fn main() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    let options = Options::read();
    let (sizes, effort) = (if options.quick { QUICK } else { ALL }, Effort::new(options.quick));
    let mut figures = Figures::new(&options);
    let context = Context::on(Device::Cuda);
    let bandwidth = Bandwidth::measure(effort, &Stream::on(Device::Cuda), options.quick);
    bandwidth.report(&mut figures, options.quick);
    println!("\nDrafting, {} positions of context, 1 + K / 2 rows committed.", sizes.context);
    println!(
        "Reading: weights, keys and values at the bandwidth of the copy; ratio: of the graph."
    );
    for head in sizes.heads {
        let (drafter, _table) = load(&context, head, sizes.largest_round());
        report_head(head, &drafter, &sizes, bandwidth, effort, &mut figures);
    }
}
