//! Verification on a CUDA device against reading the logits once, with a launch of each kernel and
//! captured in a graph, and the host's time per call.
//!
//! `cargo bench --bench cuda_verify`; `--torch FILE` sets the times of `tools/gpu/torch_verify.py`
//! beside its own.

#[path = "../tests/device/mod.rs"]
mod device;
#[path = "../tests/host/mod.rs"]
mod host;
mod measure;

use device::Device;
use device::buffer::Buffer;
use device::memory::Memory;
use device::stream::Stream;
use host::random::Random;
use host::{Context, Versioned, attempt};
use measure::cuda::{Bandwidth, Effort, address, device_name, repeated, tensor};
use measure::report::{Figures, Options};
use serde_json::{Value, json};
use speculators::capi::*;

const DRAFTS: usize = 5;
const ROWS: usize = DRAFTS + 1;
const STRIDE: usize = SPEC_DECISION_TOKENS as usize + 2 * ROWS;

/// What is measured.
struct Sizes {
    vocabulary: usize,
    batches: &'static [usize],
    /// What all copies of the logits take together where they are to come from memory: more than
    /// the caches hold.
    memory_bytes: usize,
}

const ALL: Sizes = Sizes { vocabulary: 128_256, batches: &[1, 8, 64], memory_bytes: 512 << 20 };
const QUICK: Sizes = Sizes { vocabulary: 1000, batches: &[1, 3], memory_bytes: 50_000 };

/// The element type of the logits.
#[derive(Clone, Copy)]
struct Element {
    name: &'static str,
    code: u8,
    bytes: usize,
}

const ELEMENTS: [Element; 2] = [
    Element { name: "f32", code: SPEC_DTYPE_FLOAT, bytes: 4 },
    Element { name: "bf16", code: SPEC_DTYPE_BFLOAT, bytes: 2 },
];

/// How all sequences sample.
#[derive(Clone, Copy)]
struct Law {
    name: &'static str,
    temperature: f32,
    top_p: f32,
}

const LAWS: [Law; 2] = [
    Law { name: "greedy", temperature: 0.0, top_p: 1.0 },
    Law { name: "top-p 0.9", temperature: 0.8, top_p: 0.9 },
];

/// Where the logits are when a call begins.
#[derive(Clone, Copy)]
enum Place {
    /// In memory: the calls take copies by turns, more than the caches hold.
    Memory,
    /// One copy, which stays in the caches as far as it fits.
    Caches,
}

/// The logits of one sequence: a wide bulk, and one token per row far above it, which are the
/// drafts, so that all are accepted. `tools/gpu/torch_verify.py` makes the same.
fn rows(vocabulary: usize, element: Element) -> (Vec<u8>, [i32; DRAFTS]) {
    let mut random = Random::new(3);
    let mut logits: Vec<f32> = (0..ROWS * vocabulary).map(|_| 2.5 * random.normal()).collect();
    let tokens: [usize; ROWS] = std::array::from_fn(|row| (row + 1) * vocabulary / (ROWS + 1));
    for (row, token) in tokens.into_iter().enumerate() {
        logits[row * vocabulary + token] = 30.0;
    }
    let bytes = logits.iter().flat_map(|&logit| {
        let bits = logit.to_bits().to_le_bytes();
        let half = half::bf16::from_f32(logit).to_le_bytes();
        if element.bytes == 4 { bits.to_vec() } else { half.to_vec() }
    });
    (bytes.collect(), std::array::from_fn(|draft| tokens[draft] as i32))
}

/// A batch in which all drafts are accepted, with its copies of the logits.
struct Batch {
    sequences: usize,
    vocabulary: usize,
    element: Element,
    logits: Memory,
    copies: usize,
    drafts: Buffer<i32>,
    position: Buffer<i32>,
    temperature: Buffer<f32>,
    top_p: Buffer<f32>,
    seed: Buffer<u64>,
    decisions: Memory,
}

impl Batch {
    fn new(sequences: usize, sizes: &Sizes, element: Element, law: Law, place: Place) -> Self {
        let (rows, drafts) = rows(sizes.vocabulary, element);
        let bytes = sequences * rows.len();
        let copies = match place {
            Place::Memory => sizes.memory_bytes.div_ceil(bytes).max(2),
            Place::Caches => 1,
        };
        Self {
            sequences,
            vocabulary: sizes.vocabulary,
            element,
            logits: repeated(&rows, copies * bytes),
            copies,
            drafts: (0..sequences).flat_map(|_| drafts).collect(),
            position: Buffer::filled(sequences, 100),
            temperature: Buffer::filled(sequences, law.temperature),
            top_p: Buffer::filled(sequences, law.top_p),
            seed: (0..sequences as u64).collect(),
            decisions: Memory::filled_on(Device::Cuda, (4 * sequences * STRIDE) as u64, 0),
        }
    }

    fn bytes(&self) -> usize {
        self.sequences * ROWS * self.vocabulary * self.element.bytes
    }

    /// Times of one call.
    fn measure(&self, context: &Context, stream: &Stream, effort: Effort) -> Times {
        let sampling = spec_sampling {
            temperature: self.temperature.as_ptr(),
            top_p: self.top_p.as_ptr(),
            seed: self.seed.as_ptr(),
            ..Versioned::blank()
        };
        let logits = |copy: usize| {
            let (rows, bits) = (self.sequences * ROWS, 8 * self.element.bytes as u8);
            let data = address(&self.logits) + (copy * self.bytes()) as u64;
            tensor(data, rows, self.vocabulary, self.element.code, bits)
        };
        let mut args = spec_verify_args {
            num_sequences: self.sequences as i32,
            max_drafts: DRAFTS as i32,
            logits: logits(0),
            draft_tokens: self.drafts.as_ptr(),
            position: self.position.as_ptr(),
            sampling: &sampling,
            decisions: self.decisions.address().cast(),
            decision_stride: STRIDE as i32,
            ..Versioned::blank()
        };
        // SAFETY: a live handle; all arrays have the documented sizes.
        attempt(|error| unsafe {
            spec_verify_workspace_size(context.handle, &args, &mut args.workspace_size, error)
        })
        .expect("a size");
        let workspace = Memory::filled_on(Device::Cuda, args.workspace_size, 0);
        args.workspace = workspace.address();
        let calls: Vec<spec_verify_args> = (0..self.copies)
            .map(|copy| spec_verify_args { logits: logits(copy), ..args })
            .collect();
        let verify = |args: &spec_verify_args| {
            // SAFETY: as above; the arrays outlive the work.
            attempt(|error| unsafe { spec_verify(context.handle, args, stream.handle(), error) })
                .expect("a verification");
        };
        // All copies one after the other, which are as many calls.
        let all = || calls.iter().for_each(verify);
        let launches = effort.on_device(stream, all) / self.copies as f64;
        let host = effort.on_host(stream, || verify(&calls[0]));
        let graph = stream.capture(all);
        let graph = effort.on_device(stream, || graph.launch(stream)) / self.copies as f64;
        let records = self.decisions.read(0..4 * self.sequences * STRIDE);
        let words: Vec<i32> =
            records.as_chunks::<4>().0.iter().copied().map(i32::from_le_bytes).collect();
        let accepted = words.chunks(STRIDE).map(|record| record[SPEC_DECISION_ACCEPTED as usize]);
        assert!(accepted.eq(std::iter::repeat_n(DRAFTS as i32, self.sequences)), "{words:?}");
        Times { launches, graph, host }
    }
}

/// Seconds.
struct Times {
    launches: f64,
    graph: f64,
    host: f64,
}

/// What torch took for the same: launch by launch, and captured where it could be.
fn torch_times(torch: &[Value], batch: usize, element: Element, law: Law) -> [Option<f64>; 2] {
    let same = |figure: &&Value| {
        figure["batch"] == json!(batch)
            && figure["element"] == json!(element.name)
            && figure["law"] == json!(law.name)
    };
    let figure = torch.iter().find(same);
    ["launches_us", "graph_us"].map(|name| figure.and_then(|figure| figure[name].as_f64()))
}

fn microseconds(time: Option<f64>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{time:.1}"))
}

fn report_place(
    context: &Context,
    sizes: &Sizes,
    place: Place,
    bandwidth: Bandwidth,
    effort: Effort,
    torch: &[Value],
    figures: &mut Figures,
) {
    let (title, name) = match place {
        Place::Memory => ("Logits that come from memory", "memory"),
        Place::Caches => ("Logits that stay in the caches as far as they fit", "caches"),
    };
    println!("\n{title}:\n");
    println!(
        "| logits | law | B | launches, us | graph, us | reading, us | ratio | host, us | torch, us | torch in a graph, us |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let stream = Stream::on(Device::Cuda);
    for element in ELEMENTS {
        for law in LAWS {
            for &sequences in sizes.batches {
                let batch = Batch::new(sequences, sizes, element, law, place);
                let times = batch.measure(context, &stream, effort);
                let reading = batch.bytes() as f64 / bandwidth.copy;
                let torch = match place {
                    Place::Memory => torch_times(torch, sequences, element, law),
                    Place::Caches => [None, None],
                };
                println!(
                    "| {} | {} | {sequences} | {:.1} | {:.1} | {:.1} | {:.2} | {:.1} | {} | {} |",
                    element.name,
                    law.name,
                    1e6 * times.launches,
                    1e6 * times.graph,
                    1e6 * reading,
                    times.graph / reading,
                    1e6 * times.host,
                    microseconds(torch[0]),
                    microseconds(torch[1])
                );
                figures.add(&json!({
                    "bench": "cuda_verify", "device": device_name(), "place": name,
                    "element": element.name, "law": law.name, "batch": sequences,
                    "drafts": DRAFTS, "vocabulary": sizes.vocabulary, "bytes": batch.bytes(),
                    "launches_us": 1e6 * times.launches, "graph_us": 1e6 * times.graph,
                    "reading_us": 1e6 * reading, "host_us": 1e6 * times.host,
                    "torch_us": torch[0], "torch_graph_us": torch[1],
                }));
            }
        }
    }
}

fn main() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    let options = Options::read();
    let (sizes, effort) = (if options.quick { QUICK } else { ALL }, Effort::new(options.quick));
    let torch = options.torch_figures();
    let mut figures = Figures::new(&options);
    let context = Context::on(Device::Cuda);
    let bandwidth = Bandwidth::measure(effort, &Stream::on(Device::Cuda), options.quick);
    bandwidth.report(&mut figures, options.quick);
    println!("\nVerification, V = {}, K = {DRAFTS}, all drafts accepted.", sizes.vocabulary);
    println!("Reading: the logits at the bandwidth of the copy; ratio: of the graph.");
    for place in [Place::Memory, Place::Caches] {
        report_place(&context, &sizes, place, bandwidth, effort, &torch, &mut figures);
    }
}
