//! Verification against reading the logits once on the same threads, and the cost of calls that
//! have nothing to do.
//!
//! `cargo bench --bench verify`

#[path = "../tests/device/mod.rs"]
mod device;
#[path = "../tests/host/mod.rs"]
mod host;
mod measure;

use device::memory::Memory;
use host::checkpoint::Shape;
use host::draft::{Sampling, SamplingColumns};
use host::random::Random;
use host::{Context, Model, Session, Versioned, attempt};
use measure::{Reader, compare, cores, seconds_of};
use speculators::capi::*;
use std::ptr::null_mut;

const DRAFTS: usize = 5;

/// More than the caches hold.
const MEMORY_BYTES: usize = 256 << 20;

/// A batch whose drafts are all accepted, so that every row is read.
struct Batch {
    logits: Vec<f32>,
    drafts: Vec<i32>,
    position: Vec<i32>,
    decisions: Vec<i32>,
    sampling: SamplingColumns,
    vocabulary: usize,
}

impl Batch {
    fn new(sequences: usize, vocabulary: usize, sampling: Sampling) -> Self {
        let rows = sequences * (DRAFTS + 1);
        let mut random = Random::new(3);
        // As logits of a target are: a wide bulk, and one token far above it.
        let mut logits: Vec<f32> = (0..rows * vocabulary).map(|_| 2.5 * random.normal()).collect();
        let mut drafts = Vec::new();
        for row in 0..rows {
            let token = random.below(vocabulary);
            logits[row * vocabulary + token] = 30.0;
            if row % (DRAFTS + 1) < DRAFTS {
                drafts.push(token as i32);
            }
        }
        Self {
            logits,
            drafts,
            position: vec![100; sequences],
            decisions: vec![0; sequences * Self::STRIDE],
            sampling: SamplingColumns::of(std::iter::repeat_n(sampling, sequences)),
            vocabulary,
        }
    }

    const STRIDE: usize = SPEC_DECISION_TOKENS as usize + 2 * (DRAFTS + 1);

    /// Takes `copies` of the logits by turns: with one they stay in the caches, with many they come
    /// from memory.
    fn measure(
        &mut self,
        context: &Context,
        reader: &Reader,
        copies: usize,
    ) -> measure::Comparison {
        let sampling = self.sampling.view();
        let rows = self.logits.len() / self.vocabulary;
        let mut logits: Vec<Vec<f32>> = vec![self.logits.clone(); copies];
        let mut args = spec_verify_args {
            num_sequences: self.position.len() as i32,
            max_drafts: DRAFTS as i32,
            logits: spec_tensor {
                data: logits[0].as_mut_ptr().cast(),
                device_type: SPEC_DEVICE_CPU,
                device_id: 0,
                dtype_code: SPEC_DTYPE_FLOAT,
                dtype_bits: 32,
                dtype_lanes: 1,
                ndim: 2,
                shape: [rows as i64, self.vocabulary as i64, 0, 0],
                strides: [0; 4],
            },
            draft_tokens: self.drafts.as_ptr(),
            position: self.position.as_ptr(),
            sampling: &sampling,
            decisions: self.decisions.as_mut_ptr(),
            decision_stride: Self::STRIDE as i32,
            ..Versioned::blank()
        };
        let mut size = 0;
        // SAFETY: a live handle; all arrays have the documented sizes.
        attempt(|error| unsafe {
            spec_verify_workspace_size(context.handle, &args, &mut size, error)
        })
        .expect("a size");
        let workspace = Memory::filled(size, 0);
        (args.workspace, args.workspace_size) = (workspace.address(), size);
        let calls: Vec<spec_verify_args> = logits
            .iter_mut()
            .map(|logits| spec_verify_args {
                logits: spec_tensor { data: logits.as_mut_ptr().cast(), ..args.logits },
                ..args
            })
            .collect();
        let times = ((1 << 26) / (4 * self.logits.len())).max(copies);
        let (mut verified, mut read) = (0, 0);
        let mut verify = || {
            verified = (verified + 1) % copies;
            // SAFETY: as above.
            let status =
                unsafe { spec_verify(context.handle, &calls[verified], null_mut(), null_mut()) };
            assert_eq!(status, SPEC_OK);
        };
        let mut stream = || {
            read = (read + 1) % copies;
            reader.read(bytemuck::cast_slice(&logits[read]));
        };
        let result =
            compare(9, || seconds_of(times, &mut verify), || seconds_of(times, &mut stream));
        let accepted = self.decisions.chunks(Self::STRIDE).map(|record| record[0]);
        assert!(accepted.eq(std::iter::repeat_n(DRAFTS as i32, self.position.len())));
        result
    }
}

fn report_verification(context: &Context, reader: &Reader) {
    let sampled = Sampling { temperature: 0.8, seed: 5, ..Sampling::default() };
    let kinds = [
        ("greedy", Sampling::default()),
        ("temperature", sampled),
        ("top-k 50", Sampling { top_k: 50, ..sampled }),
        ("top-p 0.9", Sampling { top_p: 0.9, ..sampled }),
    ];
    for vocabulary in [32_000, 128_256] {
        for sequences in [1, 8, 32] {
            for (name, sampling) in kinds {
                let mut batch = Batch::new(sequences, vocabulary, sampling);
                let copies = MEMORY_BYTES.div_ceil(4 * batch.logits.len());
                for (place, copies) in [("in memory", copies), ("in caches", 1)] {
                    let result = batch.measure(context, reader, copies);
                    println!(
                        "verify {name}, V = {vocabulary}, B = {sequences}, logits {place}: {:.0} us, reading them: {:.0} us, ratio {:.2}",
                        1e6 * result.ours,
                        1e6 * result.reference,
                        result.ratio
                    );
                }
            }
        }
    }
}

fn report_calls(context: &Context) {
    let directory = Shape::default().write("bench-calls", 1);
    let model = Model::load(context, &directory, None).expect("a model");
    let options = spec_session_options {
        max_sequences: 1,
        max_rows: 1,
        max_drafts: 1,
        max_position: 64,
        ..Versioned::blank()
    };
    let session = Session::create(&model, &options).expect("a session");
    let features = model.features();
    let mut element = 0.0_f32;
    let tensors: Vec<spec_tensor> = features
        .iter()
        .map(|feature| spec_tensor {
            data: (&raw mut element).cast(),
            device_type: SPEC_DEVICE_CPU,
            device_id: 0,
            dtype_code: SPEC_DTYPE_FLOAT,
            dtype_bits: 32,
            dtype_lanes: 1,
            ndim: 2,
            shape: [0, i64::from(feature.width), 0, 0],
            strides: [0; 4],
        })
        .collect();
    let draft = spec_draft_args {
        num_features: tensors.len() as i32,
        features: tensors.as_ptr(),
        ..Versioned::blank()
    };
    let verify = spec_verify_args {
        logits: spec_tensor { shape: [0, 1000, 0, 0], ..tensors[0] },
        decision_stride: 10,
        ..Versioned::blank()
    };
    // SAFETY: live handles; an empty batch has no arrays.
    let draft = seconds_of(1_000_000, || unsafe {
        assert_eq!(spec_draft(session.handle, &draft, null_mut(), null_mut()), SPEC_OK);
    });
    // SAFETY: as above.
    let verify = seconds_of(1_000_000, || unsafe {
        assert_eq!(spec_verify(context.handle, &verify, null_mut(), null_mut()), SPEC_OK);
    });
    println!(
        "call of an empty batch: spec_draft {:.0} ns, spec_verify {:.0} ns",
        1e9 * draft,
        1e9 * verify
    );
}

fn main() {
    let threads = cores();
    let context = Context::with_threads(threads as i32);
    println!("{threads} threads, K = {DRAFTS}, F32 logits");
    report_calls(&context);
    report_verification(&context, &Reader::new(threads));
}
