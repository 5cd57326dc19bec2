//! Whole calls give the same bits with every instruction set of the processor.

mod device;
mod host;
mod verification;

use host::checkpoint::Shape;
use host::draft::{DraftCall, Drafts, Place, Prepared, Sampling, SamplingColumns, Text, Turn};
use host::matrix::{Dtype, Matrix};
use host::random::Random;
use speculators::backend::cpu::{CpuBackend, Isa, Threads};
use speculators::capi::spec_tensor;
use speculators::context::Context;
use speculators::model::{LoadOptions, Model};
use speculators::sampling::Parameters;
use speculators::session::{Column, DraftBatch, SamplingArrays, Session, SessionOptions, Stream};
use speculators::tensor::{self, Span};
use std::path::Path;
use std::sync::Arc;
use verification::{Call, Decision, Ids, REJECTION, Request, decide};

const DRAFTS: usize = 4;
const SLOTS: usize = 3;
const TEMPERATURE: f32 = 0.8;

/// A context that computes with these instructions.
fn context(isa: Isa) -> Arc<Context> {
    let backend = CpuBackend::new(Threads::Own(2)).expect("threads").with_instructions(isa);
    let context = Context::on(Box::new(backend), None, None);
    assert_eq!(context.description().instruction_set, isa.name());
    Arc::new(context)
}

fn session(isa: Isa, directory: &Path, kv_dtype: tensor::Dtype) -> Session {
    let model = Model::load(&context(isa), directory, LoadOptions::default()).expect("a model");
    let options = SessionOptions {
        max_sequences: SLOTS,
        max_rows: 300,
        max_drafts: DRAFTS,
        tree: None,
        max_position: 200,
        page_size: 16,
        max_pages: 0,
        kv_dtype: Some(kv_dtype),
        kv_pool: None,
        workspace: None,
    };
    Session::create(&Arc::new(model), &options).expect("a session")
}

fn dtype(dtype: Dtype) -> tensor::Dtype {
    match dtype {
        Dtype::F32 => tensor::Dtype::F32,
        Dtype::F16 => tensor::Dtype::F16,
        Dtype::Bf16 => tensor::Dtype::Bf16,
    }
}

fn span<T>(array: *const T, len: usize) -> Option<Span<T>> {
    (!array.is_null()).then(|| Span::new(array as u64, len))
}

fn matrix(matrix: &Matrix) -> tensor::Matrix {
    tensor::Matrix {
        address: matrix.tensor().data as u64,
        dtype: dtype(matrix.dtype),
        rows: matrix.rows,
        columns: matrix.columns,
        row_stride: matrix.row_stride,
    }
}

fn sampling_arrays(columns: &SamplingColumns) -> SamplingArrays {
    let len = columns.seed.len();
    SamplingArrays {
        temperature: span(columns.temperature.as_ptr(), len),
        top_k: span(columns.top_k.as_ptr(), len),
        top_p: span(columns.top_p.as_ptr(), len),
        min_p: span(columns.min_p.as_ptr(), len),
        seed: span(columns.seed.as_ptr(), len),
    }
}

/// Makes the call on a session of the crate. The call has slots and asks for F32 logits.
fn run(session: &Session, call: &DraftCall) -> Vec<Drafts> {
    let prepared = call.prepare(session.model().draft_vocabulary());
    let Prepared { args, .. } = &prepared;
    let (sequences, drafts) = (call.position.len(), call.max_drafts as usize);
    let column = |array: *const i32, stride: usize| Column {
        span: Span::new(array as u64, sequences * stride),
        stride,
    };
    // SAFETY: the tensor of the prepared call.
    let logits: spec_tensor = unsafe { *args.draft_logits };
    let features: Vec<tensor::Matrix> = call.features.iter().map(matrix).collect();
    let batch = DraftBatch {
        num_sequences: sequences,
        num_rows: call.tokens.len(),
        max_drafts: drafts,
        position: column(args.position, 1),
        row_count: column(args.row_count, 1),
        next_token: column(args.next_token, 1),
        row_begin: span(args.row_begin, sequences),
        row_index: None,
        num_drafts: span(args.num_drafts, sequences),
        limit: None,
        context_begin: span(args.context_begin, sequences),
        block_table: None,
        slot: span(args.slot, sequences),
        tokens: Span::new(args.tokens as u64, call.tokens.len()),
        rope_position: None,
        features: &features,
        embeddings: None,
        sampling: sampling_arrays(call.sampling.as_ref().expect("samplings")),
        shape: None,
        links: None,
        draft_tokens: column(args.draft_tokens, call.draft_stride),
        num_proposed: span(args.num_proposed, sequences),
        draft_candidates: None,
        confidence: None,
        min_confidence: 0.0,
        draft_logits: Some(tensor::Matrix {
            address: logits.data as u64,
            dtype: tensor::Dtype::F32,
            rows: sequences * drafts,
            columns: session.model().draft_vocabulary(),
            row_stride: session.model().draft_vocabulary(),
        }),
        padding: -1,
    };
    session.draft(Stream::NONE, &batch).expect("a drafting call");
    session.poll().expect("no fault");
    prepared.drafts()
}

/// No width is a multiple of a vector's, so that every loop has a rest.
fn shapes() -> [Shape; 2] {
    let odd = Shape {
        hidden: 50,
        target_hidden: 37,
        intermediate: 61,
        head_dim: 18,
        vocabulary: 301,
        draft_vocabulary: 139,
        ..Shape::default()
    };
    let sliding = Shape { draft_vocabulary: 301, ..odd.clone() };
    [odd, Shape { layer_kind: "qwen3", layers: 2, window: Some(23), norm_output: true, ..sliding }]
}

/// Prompts longer than a chunk and shorter than a vector, then rounds of ragged acceptance.
fn rounds(texts: &[Text]) -> Vec<DraftCall> {
    let ends = [[150, 3, 40], [151, 7, 40], [155, 8, 45]];
    let mut begins = [0; SLOTS];
    let calls = ends.into_iter().map(|ends| {
        let turns = texts.iter().enumerate().map(|(slot, text)| {
            let rows = begins[slot]..ends[slot];
            let temperature = if slot == 0 { 0.0 } else { TEMPERATURE };
            let sampling = Sampling { temperature, seed: slot as u64, ..Sampling::default() };
            Turn { sampling, ..Turn::new(text, rows, DRAFTS as i32, Place::Slot(slot as i32)) }
        });
        let turns: Vec<Turn<'_>> = turns.filter(|turn| !turn.rows.is_empty()).collect();
        begins = ends;
        DraftCall::of(&turns)
    });
    calls.collect()
}

/// What `work` gives, which is the same with every instruction set.
fn on_each<T: PartialEq>(what: &str, work: impl Fn(Isa) -> T) -> T {
    let mut sets = Isa::available().into_iter();
    let portable = work(sets.next().expect("plain instructions"));
    for isa in sets {
        assert!(work(isa) == portable, "{what}: {isa:?} differs from plain instructions");
    }
    portable
}

#[test]
fn drafting_calls_give_the_same_bits_with_all_instructions() {
    for (index, shape) in shapes().into_iter().enumerate() {
        for weights in Dtype::ALL {
            let shape = Shape { dtype: weights, ..shape.clone() };
            let directory = shape.write(&format!("shape-{index}-{weights:?}"), 1);
            let widths = vec![shape.target_hidden; shape.feature_layers.len()];
            let mut random = Random::new(2);
            let texts: Vec<Text> = (0..SLOTS)
                .map(|_| Text::random(&mut random, 160, shape.vocabulary as i32, &widths))
                .collect();
            for other in Dtype::ALL {
                let mut calls = rounds(&texts);
                for feature in calls.iter_mut().flat_map(|call| &mut call.features) {
                    *feature = feature.converted(other, feature.columns);
                }
                let what = format!("shape {index}, weights {weights:?}, others {other:?}");
                let drafts = on_each(&what, |isa| {
                    let session = session(isa, &directory, dtype(other));
                    calls.iter().map(|call| run(&session, call)).collect::<Vec<_>>()
                });
                let rows = drafts.iter().flatten().flat_map(|drafts| &drafts.logits).flatten();
                assert!(rows.clone().count() > 0 && rows.clone().all(|logit| logit.is_finite()));
            }
        }
    }
}

/// Targets that agree with the drafter more or less: its own logits, disturbed.
fn request(drafts: &Drafts, ids: &[i32], vocabulary: usize, random: &mut Random) -> Request {
    let mut target = |row: &Vec<f32>| {
        let mut logits = random.normals(vocabulary);
        for (&id, logit) in ids.iter().zip(row) {
            logits[id as usize] += logit;
        }
        logits
    };
    let mut logits: Vec<Vec<f32>> = drafts.logits.iter().map(&mut target).collect();
    logits.push(target(&drafts.logits[0]));
    let parameters = Parameters { temperature: TEMPERATURE, ..Parameters::GREEDY };
    Request {
        draft_logits: drafts.logits.clone(),
        seed: random.bits(),
        ..Request::new(logits, drafts.tokens.clone(), parameters)
    }
}

#[test]
fn rounds_are_decided_the_same_with_all_instructions() {
    let [shape, _] = shapes();
    let directory = shape.write("decided", 3);
    let widths = vec![shape.target_hidden; shape.feature_layers.len()];
    let mut random = Random::new(4);
    let texts: Vec<Text> = (0..SLOTS)
        .map(|_| Text::random(&mut random, 160, shape.vocabulary as i32, &widths))
        .collect();
    let calls = rounds(&texts);
    let decisions = on_each("a round", |isa| {
        let session = session(isa, &directory, tensor::Dtype::F32);
        let ids = session.model().draft_token_ids().expect("a reduced vocabulary").to_vec();
        let mut random = Random::new(5);
        let drafts = calls.iter().flat_map(|call| run(&session, call));
        let requests = drafts.map(|drafts| request(&drafts, &ids, shape.vocabulary, &mut random));
        let requests: Vec<Request> = requests.collect();
        let call = Call { ids: Ids::Shared(ids), ..Call::by(REJECTION) };
        decide(session.model().context().backend(), &call, &requests)
    });
    let accepted: usize = decisions.iter().map(|decision: &Decision| decision.accepted).sum();
    assert!(accepted > 0 && accepted < decisions.len() * DRAFTS, "{accepted} drafts accepted");
}
