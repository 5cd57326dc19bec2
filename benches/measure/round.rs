//! Drafting rounds on a CUDA device, with a launch of each kernel and captured in a graph.

use super::cuda::{Effort, address, device_name, random_memory, tensor};
use crate::device::Device;
use crate::device::buffer::Buffer;
use crate::device::memory::Memory;
use crate::device::stream::Stream;
use crate::host::{Context, Model, Session, Versioned, attempt};
use serde_json::{Value, json};
use speculators::capi::*;
use std::path::Path;

/// A table of the target that the host lends, in the device's memory.
pub struct Table {
    memory: Memory,
    rows: usize,
    columns: usize,
}

impl Table {
    pub fn new(rows: usize, columns: usize) -> Self {
        Self { memory: random_memory(2 * rows * columns), rows, columns }
    }

    pub fn range(&self) -> spec_row_range {
        let data = address(&self.memory);
        let tensor = tensor(data, self.rows, self.columns, SPEC_DTYPE_BFLOAT, 16);
        spec_row_range { tensor, first_row: 0 }
    }
}

/// What a round does.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Sequences.
    pub batch: usize,
    /// Rows that each commits.
    pub rows: usize,
    /// Tokens that each proposes.
    pub drafts: usize,
    /// Positions before the next token, those of the rows among them.
    pub context: usize,
}

/// A loaded model with a session whose pages hold random keys and values.
pub struct Drafter {
    session: Session,
    model: Model,
    stream: Stream,
    /// Bytes of keys and values of one position.
    pub kv_bytes: usize,
    _pool: Memory,
}

impl Drafter {
    /// Loads a checkpoint and removes it; `most` is what its rounds do at most.
    pub fn load(
        context: &Context,
        directory: &Path,
        options: &spec_model_options,
        most: Extent,
    ) -> Self {
        let model = Model::load_with(context, directory, options).expect("a model");
        std::fs::remove_dir_all(directory).expect("removing the checkpoint");
        let mut options = spec_session_options {
            max_sequences: most.batch as i32,
            max_rows: (most.batch * most.rows) as i32,
            max_drafts: most.drafts as i32,
            max_position: (most.context + 2 * most.drafts) as i32,
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
            kv_bytes: needs.kv_bytes_per_token as usize,
            _pool: pool,
        }
    }

    /// Times of a round, which commits the same rows each time.
    pub fn round(&self, extent: Extent, effort: Effort) -> Times {
        let Extent { batch, rows: rows_of_sequence, drafts, context } = extent;
        let rows = batch * rows_of_sequence;
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
        let position = Buffer::filled(batch, context as i32);
        let row_count = Buffer::filled(batch, rows_of_sequence as i32);
        let next_token = Buffer::filled(batch, 7);
        let row_begin: Buffer<i32> = (0..batch).map(|b| (b * rows_of_sequence) as i32).collect();
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
}

/// Seconds of a round.
pub struct Times {
    /// With a launch of each kernel.
    pub launches: f64,
    /// Captured.
    pub graph: f64,
    /// Of the host.
    pub host: f64,
}

impl Times {
    /// The heads of [`Times::columns`].
    pub const COLUMNS: &str = "launches, us | graph, us | reading, us | ratio | host, us |";

    /// The end of a table's row, beside the seconds of reading what the round has to read.
    pub fn columns(&self, reading: f64) -> String {
        format!(
            "{:.1} | {:.1} | {:.1} | {:.2} | {:.1} |",
            1e6 * self.launches,
            1e6 * self.graph,
            1e6 * reading,
            self.graph / reading,
            1e6 * self.host
        )
    }

    /// The same as a figure, with what it is a figure of.
    pub fn figure(&self, reading: f64, of: &Value) -> Value {
        let mut figure = json!({
            "device": device_name(),
            "launches_us": 1e6 * self.launches, "graph_us": 1e6 * self.graph,
            "reading_us": 1e6 * reading, "host_us": 1e6 * self.host,
        });
        let all = figure.as_object_mut().expect("an object");
        all.extend(of.as_object().expect("an object").clone());
        figure
    }
}
