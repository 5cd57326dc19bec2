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
use std::ptr::{null, null_mut};

/// Drafts of a chain.
const DRAFTS: usize = 5;

/// More than the caches hold.
const MEMORY_BYTES: usize = 256 << 20;

/// A batch of chains whose drafts are all accepted, so that every row is read, or of trees in which the
/// second child of each node is.
struct Batch {
    logits: Vec<f32>,
    /// Beside the root.
    drafts_each: usize,
    drafts: Vec<i32>,
    /// Of trees, the same for all sequences.
    parents: Option<Vec<i32>>,
    rule: i32,
    /// What drafts were drawn from, `[B * drafts_each, V]`.
    draft_logits: Option<Vec<f32>>,
    position: Vec<i32>,
    decisions: Vec<i32>,
    sampling: SamplingColumns,
    vocabulary: usize,
}

impl Batch {
    fn new(sequences: usize, vocabulary: usize, sampling: Sampling) -> Self {
        let parents: Vec<i32> = (-1..DRAFTS as i32).collect();
        let batch = Self::of_trees(sequences, vocabulary, sampling, parents);
        Self { parents: None, ..batch }
    }

    /// Trees in the order of their depth; the rows of the accepted path are read.
    fn of_trees(
        sequences: usize,
        vocabulary: usize,
        sampling: Sampling,
        parents: Vec<i32>,
    ) -> Self {
        let nodes = parents.len();
        let rows = sequences * nodes;
        let mut random = Random::new(3);
        // As logits of a target are: a wide bulk, and one token far above it.
        let mut logits: Vec<f32> = (0..rows * vocabulary).map(|_| 2.5 * random.normal()).collect();
        let mut drafts = Vec::new();
        for sequence in 0..sequences {
            for node in 1..nodes {
                let token = random.below(vocabulary);
                drafts.push(token as i32);
                // The last child overwrites what the first has made likely.
                let row = sequence * nodes + parents[node] as usize;
                let earlier = (1..node).filter(|&other| parents[other] == parents[node]);
                for other in earlier {
                    let token = drafts[sequence * (nodes - 1) + other - 1] as usize;
                    logits[row * vocabulary + token] = 0.0;
                }
                logits[row * vocabulary + token] = 30.0;
            }
        }
        Self {
            logits,
            drafts_each: nodes - 1,
            drafts,
            parents: Some(parents),
            rule: SPEC_RULE_DEFAULT,
            draft_logits: None,
            position: vec![100; sequences],
            decisions: vec![0; sequences * Self::stride(nodes - 1)],
            sampling: SamplingColumns::of(std::iter::repeat_n(sampling, sequences)),
            vocabulary,
        }
    }

    /// The same with drafts that are as likely by the drafter as any of their siblings.
    fn drawn(mut self, rule: i32) -> Self {
        let (nodes, vocabulary) = (self.drafts_each + 1, self.vocabulary);
        let mut logits = vec![0.0; self.position.len() * self.drafts_each * vocabulary];
        if let Some(parents) = &self.parents {
            for (index, &token) in self.drafts.iter().enumerate() {
                let (sequence, node) = (index / self.drafts_each, index % self.drafts_each + 1);
                let row = sequence * self.drafts_each + parents[node] as usize;
                logits[row * vocabulary + token as usize] = 20.0;
            }
        }
        assert_eq!(self.logits.len() / vocabulary, self.position.len() * nodes);
        (self.rule, self.draft_logits) = (rule, Some(logits));
        self
    }

    /// The drafts on the way that takes the last child of each node.
    fn accepted(&self) -> i32 {
        let Some(parents) = &self.parents else { return self.drafts_each as i32 };
        let last_child = |node: i32| parents.iter().rposition(|&parent| parent == node);
        let mut depth = 0;
        let mut node = 0;
        while let Some(child) = last_child(node) {
            (node, depth) = (child as i32, depth + 1);
        }
        depth
    }

    /// Elements of a decision record.
    fn stride(drafts: usize) -> usize {
        SPEC_DECISION_TOKENS as usize + 2 * (drafts + 1)
    }

    fn tensor(logits: &[f32], vocabulary: usize) -> spec_tensor {
        spec_tensor {
            data: logits.as_ptr().cast_mut().cast(),
            device_type: SPEC_DEVICE_CPU,
            device_id: 0,
            dtype_code: SPEC_DTYPE_FLOAT,
            dtype_bits: 32,
            dtype_lanes: 1,
            ndim: 2,
            shape: [(logits.len() / vocabulary) as i64, vocabulary as i64, 0, 0],
            strides: [0; 4],
        }
    }

    /// Takes `copies` of the logits by turns: with one they stay in the caches, with many they come
    /// from memory.
    fn measure(
        &mut self,
        context: &Context,
        reader: &Reader,
        copies: usize,
    ) -> measure::Comparison {
        let sampling = self.sampling.view();
        let mut logits: Vec<Vec<f32>> = vec![self.logits.clone(); copies];
        let tree = self.parents.as_ref().map(|parents| spec_tree {
            parents: parents.as_ptr().cast_mut(),
            ..Versioned::blank()
        });
        let draft = self.draft_logits.as_ref().map(|logits| spec_distribution {
            logits: Self::tensor(logits, self.vocabulary),
            ..Versioned::blank()
        });
        let stride = Self::stride(self.drafts_each);
        let mut args = spec_verify_args {
            num_sequences: self.position.len() as i32,
            max_drafts: self.drafts_each as i32,
            rule: self.rule,
            logits: Self::tensor(&logits[0], self.vocabulary),
            draft_tokens: self.drafts.as_ptr(),
            position: self.position.as_ptr(),
            sampling: &sampling,
            draft: draft.as_ref().map_or(null(), |draft| draft),
            tree: tree.as_ref().map_or(null(), |tree| tree),
            decisions: self.decisions.as_mut_ptr(),
            decision_stride: stride as i32,
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
        let accepted = self.decisions.chunks(stride).map(|record| record[0]);
        assert!(accepted.eq(std::iter::repeat_n(self.accepted(), self.position.len())));
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

/// Trees in which each node has two children, by the rules for trees, against reading all their rows.
fn report_trees(context: &Context, reader: &Reader) {
    let vocabulary = 128_256;
    let sampled = Sampling { temperature: 0.8, seed: 5, ..Sampling::default() };
    for nodes in [8, 32, 64] {
        let parents: Vec<i32> = (0..nodes).map(|node| (node + 1) / 2 - 1).collect();
        let tree = |sampling| Batch::of_trees(1, vocabulary, sampling, parents.clone());
        let filtered = Sampling { top_p: 0.9, ..sampled };
        for (name, mut batch) in [
            ("greedy", tree(Sampling::default())),
            ("following", tree(sampled)),
            ("following, top-p 0.9", tree(filtered)),
            ("rejection", tree(sampled).drawn(SPEC_RULE_REJECTION)),
            ("rejection of distinct siblings", tree(sampled).drawn(SPEC_RULE_REJECTION_DISTINCT)),
            ("the same, top-p 0.9", tree(filtered).drawn(SPEC_RULE_REJECTION_DISTINCT)),
        ] {
            let copies = MEMORY_BYTES.div_ceil(4 * batch.logits.len());
            let rows = batch.accepted() + 1;
            let result = batch.measure(context, reader, copies);
            println!(
                "verify tree {name}, V = {vocabulary}, N = {nodes}, rows that matter {rows}: {:.0} us, reading all: {:.0} us, ratio {:.2}",
                1e6 * result.ours,
                1e6 * result.reference,
                result.ratio
            );
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
    let reader = Reader::new(threads);
    report_verification(&context, &reader);
    report_trees(&context, &reader);
}
