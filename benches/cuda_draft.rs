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
use device::buffer::Buffer;
use device::memory::Memory;
use device::stream::Stream;
use host::{Context, Model, Session, Versioned, attempt};
use measure::checkpoint::{Head, LLAMA_8B, LLAMA_70B, QWEN3_8B, SMALL};
use measure::cuda::{Bandwidth, Effort, address, device_name, random_memory, tensor};
use measure::report::{Figures, Options};
use speculators::capi::*;

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

/// Rows that a sequence commits in a round: its root and half of the drafts.
const fn rows_of(drafts: usize) -> usize {
    1 + drafts / 2
}

/// A loaded head with a session whose pages hold random keys and values.
struct Bench {
    session: Session,
    model: Model,
    stream: Stream,
    context: usize,
    /// Bytes of keys and values of one position.
    kv_bytes: usize,
    _pool: Memory,
    _embedding: Memory,
}

impl Bench {
    fn new(context: &Context, head: &Head, sizes: &Sizes) -> Self {
        let directory = head.write("bench-eagle3");
        let embedding = random_memory(2 * head.vocabulary * head.hidden);
        let (rows, columns) = (head.vocabulary, head.hidden);
        let lent = spec_row_range {
            tensor: tensor(address(&embedding), rows, columns, SPEC_DTYPE_BFLOAT, 16),
            first_row: 0,
        };
        let options =
            spec_model_options { embedding: &lent, num_embedding: 1, ..Versioned::blank() };
        let model = Model::load_with(context, &directory, &options).expect("a model");
        std::fs::remove_dir_all(&directory).expect("removing the checkpoint");
        let batch = *sizes.batches.iter().max().expect("batches");
        let drafts = *sizes.drafts.iter().max().expect("drafts");
        let mut options = spec_session_options {
            max_sequences: batch as i32,
            max_rows: (batch * rows_of(drafts)) as i32,
            max_drafts: drafts as i32,
            max_position: (sizes.context + 2 * drafts) as i32,
            ..Versioned::blank()
        };
        let needs = Session::requirements(&model, &options).expect("requirements");
        let pool = random_memory(needs.kv_pool_size as usize);
        options.kv_pool = pool.address();
        options.kv_pool_size = needs.kv_pool_size;
        Self {
            session: Session::create(&model, &options).expect("a session"),
            model,
            stream: Stream::on(Device::Cuda),
            context: sizes.context,
            kv_bytes: needs.kv_bytes_per_token as usize,
            _pool: pool,
            _embedding: embedding,
        }
    }

    /// Times of a round of `batch` sequences with `drafts` drafts each.
    fn round(&self, batch: usize, drafts: usize, effort: Effort) -> Times {
        let rows = batch * rows_of(drafts);
        let features: Vec<(Memory, usize)> = self
            .model
            .widths()
            .iter()
            .map(|&width| (random_memory(2 * rows * width), width))
            .collect();
        let tensors: Vec<spec_tensor> = features
            .iter()
            .map(|(memory, width)| tensor(address(memory), rows, *width, SPEC_DTYPE_BFLOAT, 16))
            .collect();
        let position = Buffer::filled(batch, self.context as i32);
        let row_count = Buffer::filled(batch, rows_of(drafts) as i32);
        let next_token = Buffer::filled(batch, 7);
        let row_begin: Buffer<i32> = (0..batch).map(|b| (b * rows_of(drafts)) as i32).collect();
        let tokens: Buffer<i32> = (0..rows).map(|row| (row % 100) as i32).collect();
        let outputs = Memory::filled_on(Device::Cuda, (4 * batch * (drafts + 1)) as u64, 0);
        let proposed = address(&outputs) + (4 * batch * drafts) as u64;
        let args = spec_draft_args {
            num_sequences: batch as i32,
            num_rows: rows as i32,
            max_drafts: drafts as i32,
            position: position.as_ptr(),
            row_count: row_count.as_ptr(),
            next_token: next_token.as_ptr(),
            row_begin: row_begin.as_ptr(),
            tokens: tokens.as_ptr(),
            num_features: tensors.len() as i32,
            features: tensors.as_ptr(),
            draft_tokens: outputs.address().cast(),
            num_proposed: proposed as *mut i32,
            ..Versioned::blank()
        };
        let draft = || {
            // SAFETY: a live session and arrays of the documented sizes, which outlive the work.
            attempt(|error| unsafe {
                spec_draft(self.session.handle, &args, self.stream.handle(), error)
            })
            .expect("a round");
        };
        let launches = effort.on_device(&self.stream, draft);
        let host = effort.on_host(&self.stream, draft);
        let graph = self.stream.capture(draft);
        let graph = effort.on_device(&self.stream, || graph.launch(&self.stream));
        self.session.poll().expect("a round without faults");
        let proposed = outputs.read(4 * batch * drafts..4 * batch * (drafts + 1));
        let all = (drafts as i32).to_le_bytes();
        assert!(proposed.as_chunks::<4>().0.iter().all(|count| *count == all), "{proposed:?}");
        Times { launches, graph, host }
    }

    /// Bytes that a round has to read: the weights in every step, those that fuse the features
    /// once, keys and values of the context in every step.
    fn bytes(&self, head: &Head, batch: usize, drafts: usize) -> usize {
        drafts * (head.step_bytes() + batch * self.context * self.kv_bytes) + head.fusion_bytes()
    }
}

/// Seconds.
struct Times {
    launches: f64,
    graph: f64,
    host: f64,
}

fn report_head(
    head: &Head,
    bench: &Bench,
    sizes: &Sizes,
    bandwidth: Bandwidth,
    effort: Effort,
    figures: &mut Figures,
) {
    println!("\nEAGLE-3 head for {}, {} MB a step:\n", head.target, head.step_bytes() / 1_000_000);
    println!("| B | K | launches, us | graph, us | reading, us | ratio | host, us |");
    println!("|---|---|---|---|---|---|---|");
    for &batch in sizes.batches {
        for &drafts in sizes.drafts {
            let times = bench.round(batch, drafts, effort);
            let reading = bench.bytes(head, batch, drafts) as f64 / bandwidth.copy;
            println!(
                "| {batch} | {drafts} | {:.1} | {:.1} | {:.1} | {:.2} | {:.1} |",
                1e6 * times.launches,
                1e6 * times.graph,
                1e6 * reading,
                times.graph / reading,
                1e6 * times.host
            );
            figures.add(&serde_json::json!({
                "bench": "cuda_draft", "device": device_name(), "head": head.target,
                "batch": batch, "drafts": drafts, "rows": rows_of(drafts),
                "context": bench.context, "bytes": bench.bytes(head, batch, drafts),
                "launches_us": 1e6 * times.launches, "graph_us": 1e6 * times.graph,
                "reading_us": 1e6 * reading, "host_us": 1e6 * times.host,
            }));
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
        let bench = Bench::new(&context, head, &sizes);
        report_head(head, &bench, &sizes, bandwidth, effort, &mut figures);
    }
}
