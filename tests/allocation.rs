//! Steps allocate nothing, on no thread.

mod device;
mod host;

use device::buffer::Buffer;
use device::memory::Memory;
use host::checkpoint::{MlpShape, Shape};
use host::draft::{DraftCall, Place, Sampling, SamplingColumns, Text, TreeShape, Turn};
use host::golden;
use host::matrix::Matrix;
use host::random::Random;
use host::{Context, Model, Session, Versioned, session_options};
use speculators::capi::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The system's allocator, which counts while it is told to.
struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

fn count() {
    if COUNTS.load(Ordering::Relaxed) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as this function's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as this function's contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as this function's contract.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count();
        // SAFETY: as this function's contract.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations and releases during `work`.
fn allocations(work: impl FnOnce()) -> usize {
    ALLOCATIONS.store(0, Ordering::Relaxed);
    COUNTS.store(true, Ordering::Relaxed);
    work();
    COUNTS.store(false, Ordering::Relaxed);
    ALLOCATIONS.load(Ordering::Relaxed)
}

const SEQUENCES: usize = 3;
const DRAFTS: usize = 3;
const PROMPT: usize = 9;
/// Rounds until the texts start again, so that they keep inside of the session.
const ROUNDS: usize = 20;
const STRIDE: usize = SPEC_DECISION_TOKENS as usize + 2 * (DRAFTS + 1);

/// Greedy, sampled by p / q, sampled by nucleus.
fn samplings() -> [Sampling; SEQUENCES] {
    let sampled = Sampling { temperature: 0.8, seed: 5, ..Sampling::default() };
    [Sampling::default(), sampled, Sampling { top_p: 0.9, top_k: 30, min_p: 0.01, ..sampled }]
}

fn session(model: &Model) -> Session {
    let options = spec_session_options {
        max_sequences: SEQUENCES as i32,
        max_rows: (SEQUENCES * PROMPT.max(DRAFTS + 1)) as i32,
        max_drafts: DRAFTS as i32,
        max_position: (PROMPT + (ROUNDS + 2) * (DRAFTS + 1)) as i32,
        page_size: 8,
        ..session_options()
    };
    Session::create(model, &options).expect("a session")
}

/// Held by the test whose allocations are counted.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn a_round_of_every_kind_allocates_nothing() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let context = Context::with_threads(2);
    // The workers allocate while they start: let them settle.
    std::thread::sleep(Duration::from_millis(200));
    let cases = golden::supported_cases().into_iter();
    let mut models: Vec<_> =
        cases.map(|case| (case.load(&context).expect("a model"), case.name)).collect();
    let directory = Shape::language_model("qwen2").write("own-tokens", 3);
    let model = Model::load(&context, &directory, None).expect("a model");
    models.push((model, "independent".to_owned()));
    if !device::is_cuda() {
        let directory = MlpShape::default().write("heads", 3);
        let model = Model::load(&context, &directory, None).expect("a model");
        models.push((model, "mlp".to_owned()));
    }
    for (model, name) in models {
        let session = session(&model);
        let vocabulary = model.info().vocabulary;
        let text = Text::random(&mut Random::new(4), PROMPT + 1, vocabulary, &model.widths());
        let turn = |slot| Turn {
            sampling: samplings()[slot],
            ..Turn::new(&text, 0..PROMPT, DRAFTS as i32, Place::Slot(slot as i32))
        };
        let turns: Vec<Turn<'_>> = (0..SEQUENCES).map(turn).collect();
        let call = DraftCall::of(&turns);
        let prepared = call.prepare(session.outputs);
        session.draft(&prepared.args).expect("a first round");
        let count = allocations(|| session.draft(&prepared.args).expect("a round"));
        assert_eq!(count, 0, "{name}");
        assert!(prepared.drafts().iter().all(|drafts| drafts.tokens.len() == DRAFTS));
    }
}

#[test]
fn trees_of_every_shape_allocate_nothing() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let context = Context::with_threads(2);
    // The workers allocate while they start: let them settle.
    std::thread::sleep(Duration::from_millis(200));
    let parents = vec![-1, 0, 0, 0, 1, 1, 2, 4];
    let shapes = [
        TreeShape::Static(parents.clone()),
        TreeShape::Stochastic(parents),
        TreeShape::Dynamic { nodes: 8, depth: 3, width: 4 },
    ];
    let directories = [
        Shape::default().write("tree-features", 3),
        Shape::language_model("qwen2").write("tree-tokens", 3),
        MlpShape::default().write("tree-heads", 3),
    ];
    let of = |directory| Model::load(&context, directory, None).expect("a model");
    let mut models: Vec<Model> = directories.iter().map(|directory| of(directory)).collect();
    let kinds = ["peagle", "dflash", "dflash2", "dspark"];
    let blocks = golden::supported_cases().into_iter();
    let blocks = blocks.filter(|case| kinds.contains(&case.kind.as_str()));
    models.extend(blocks.map(|case| case.load(&context).expect("a model")));
    for (model, shape) in models.iter().flat_map(|m| shapes.iter().map(move |s| (m, s))) {
        let options = spec_session_options {
            max_sequences: SEQUENCES as i32,
            max_rows: (SEQUENCES * PROMPT) as i32,
            max_drafts: 7,
            max_position: 64,
            max_tree_width: 4,
            max_tree_depth: 3,
            ..session_options()
        };
        let session = Session::create(model, &options).expect("a session");
        let vocabulary = model.info().vocabulary;
        let text = Text::random(&mut Random::new(4), PROMPT + 1, vocabulary, &model.widths());
        let turn = |slot| Turn {
            sampling: samplings()[slot],
            ..Turn::new(&text, 0..PROMPT, 7, Place::Slot(slot as i32))
        };
        let turns: Vec<Turn<'_>> = (0..SEQUENCES).map(turn).collect();
        let call = DraftCall { logits: None, ..DraftCall::of(&turns) }.with_trees(shape);
        let prepared = call.prepare(session.outputs);
        session.draft(&prepared.args).expect("a first round");
        let count = allocations(|| session.draft(&prepared.args).expect("a round"));
        assert_eq!(count, 0, "{shape:?}");
        assert!(prepared.drafts().iter().all(|drafts| drafts.tokens.len() == 7));
    }
}

#[test]
fn thousands_of_rounds_of_drafting_and_verification_allocate_nothing() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(allocations(|| drop(std::hint::black_box(vec![1_u8]))) >= 2, "nothing is counted");
    let context = Context::with_threads(2);
    let shape = Shape::default();
    let directory = shape.write("allocation", 3);
    let model = Model::load(&context, &directory, None).expect("a model");
    let session = session(&model);
    let mut random = Random::new(4);
    let vocabulary = shape.vocabulary as i32;
    let text = Text::random(&mut random, PROMPT + DRAFTS + 2, vocabulary, &model.widths());

    // The prompts of all sequences.
    let turn = |slot| Turn {
        sampling: samplings()[slot],
        ..Turn::new(&text, 0..PROMPT, DRAFTS as i32, Place::Slot(slot as i32))
    };
    let turns: Vec<Turn<'_>> = (0..SEQUENCES).map(turn).collect();
    let prompts = DraftCall::of(&turns);
    let prompts = prompts.prepare(session.draft_vocabulary);

    // One round: the rows are root and drafts, everything else stands in the decision records.
    let mut records = Buffer::filled(SEQUENCES * STRIDE, 0_i32);
    let records = records.as_mut_ptr();
    // SAFETY: the fields lie inside of the records, here and below.
    let field = |name: i32| unsafe { records.add(name as usize) };
    let turn = |slot| Turn {
        sampling: samplings()[slot],
        ..Turn::new(&text, 0..DRAFTS + 1, DRAFTS as i32, Place::Slot(slot as i32))
    };
    let turns: Vec<Turn<'_>> = (0..SEQUENCES).map(turn).collect();
    let round = DraftCall::of(&turns);
    let mut round = round.prepare(session.draft_vocabulary);
    round.args.decision_stride = STRIDE as i32;
    round.args.position = field(SPEC_DECISION_NEXT_POSITION);
    round.args.row_count = field(SPEC_DECISION_EMITTED);
    round.args.next_token = field(SPEC_DECISION_NEXT_TOKEN);
    round.args.draft_tokens = prompts.args.draft_tokens;
    round.args.draft_logits = prompts.args.draft_logits;

    // Logits in which the drafts are likely, so that chains of every length are accepted.
    let rows = SEQUENCES * (DRAFTS + 1);
    let logits: Vec<f32> = random.normals(rows * shape.vocabulary);
    let logits = Matrix::new(rows, shape.vocabulary, &logits);
    let columns = SamplingColumns::of(samplings());
    let sampling = columns.view();
    // SAFETY: the prompts' tensor lives as long as the prepared call.
    let draft_logits = unsafe { *prompts.args.draft_logits };
    let distribution = spec_distribution {
        logits: draft_logits,
        token_ids: model.info().draft_token_ids,
        ..Versioned::blank()
    };
    let mut counters = Buffer::filled(3 + DRAFTS, 0_u64);
    let presence = Buffer::filled(SEQUENCES, 0.25_f32);
    let min_tokens = Buffer::filled(SEQUENCES, 2_i32);
    let stops = Buffer::filled(1, 2_i32);
    let processing = spec_processing {
        presence: presence.as_ptr(),
        min_tokens: min_tokens.as_ptr(),
        ..Versioned::blank()
    };
    let mut values = Buffer::filled(4 * rows, 0.0_f32);
    let mut named = Buffer::filled(4 * rows, 0_i32);
    let mut ranks = Buffer::filled(rows, 0_i32);
    let logprobs = spec_logprobs {
        num_alternatives: 3,
        values: values.as_mut_ptr(),
        token_ids: named.as_mut_ptr(),
        ranks: ranks.as_mut_ptr(),
        ..Versioned::blank()
    };
    let mut verification = spec_verify_args {
        num_sequences: SEQUENCES as i32,
        max_drafts: DRAFTS as i32,
        logits: logits.tensor(),
        draft_tokens: prompts.args.draft_tokens,
        position: field(SPEC_DECISION_NEXT_POSITION),
        position_stride: STRIDE as i32,
        sampling: &sampling,
        draft: &distribution,
        processing: &processing,
        processed_logprobs: &logprobs,
        stop_tokens: stops.as_ptr(),
        num_stop_tokens: 1,
        decision_stride: STRIDE as i32,
        decisions: records,
        counters: counters.as_mut_ptr(),
        ..Versioned::blank()
    };
    let mut size = 0;
    host::attempt(|error| {
        // SAFETY: a live handle; all arrays have the documented sizes and outlive the calls.
        unsafe { spec_verify_workspace_size(context.handle, &verification, &mut size, error) }
    })
    .expect("the size of the workspace");
    let workspace = Memory::filled(size, 0);
    (verification.workspace, verification.workspace_size) = (workspace.address(), size);

    let stream = context.stream.handle();
    let step = |index: usize| {
        // SAFETY: live handles; all arrays have the documented sizes and outlive the calls.
        unsafe {
            if index.is_multiple_of(ROUNDS) {
                context.stream.synchronize();
                let status = spec_draft(session.handle, &prompts.args, stream, null_mut());
                assert_eq!(status, SPEC_OK);
                context.stream.synchronize();
                for sequence in 0..SEQUENCES {
                    *field(SPEC_DECISION_NEXT_POSITION).add(sequence * STRIDE) = PROMPT as i32;
                }
            }
            let status = spec_verify(context.handle, &verification, stream, null_mut());
            assert_eq!(status, SPEC_OK);
            let status = spec_draft(session.handle, &round.args, stream, null_mut());
            assert_eq!(status, SPEC_OK);
            assert_eq!(spec_session_poll(session.handle, null_mut()), SPEC_OK);
        }
    };
    // The workers and the test harness's own thread allocate while they start: let them settle.
    (0..ROUNDS).for_each(&step);
    context.stream.synchronize();
    std::thread::sleep(Duration::from_millis(200));
    counters.fill(0);
    let rounds = device::amount(10_000, 5 * ROUNDS);
    let counted = allocations(|| (0..rounds).for_each(step));
    assert_eq!(counted, 0, "allocations or releases in {rounds} rounds");
    context.stream.synchronize();
    let emitted = counters[2];
    assert_eq!(counters[0], (rounds * SEQUENCES) as u64, "rounds");
    assert!(emitted > counters[0], "no draft was ever accepted: {counters:?}");
}

#[test]
fn telling_of_trees_and_moving_rows_allocate_nothing() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let context = Context::with_threads(2);
    // The second tree is none, which takes no more than the first.
    let parents: Buffer<i32> = vec![-1, 0, 0, 1, -1, 0, 2, 1].into();
    let decisions: Buffer<i32> = vec![4, 2, 6, 3].into();
    let path: Buffer<i32> = vec![0, 2, -1, -1, 0, 1, 3, -1].into();
    let mut mask = Buffer::filled(2 * 4 * 8, 7_u8);
    let mut paths = Buffer::filled(2 * 4 * 4, 7);
    let mut rows: Buffer<u8> = (0..64).collect();
    let base: *mut std::ffi::c_void = rows.as_mut_ptr().cast();
    let told = spec_tree_mask_args {
        flags: SPEC_TREE_MASK_PREFIX,
        num_sequences: 2,
        max_nodes: 4,
        parents: parents.as_ptr(),
        parents_stride: 4,
        position: decisions.as_ptr(),
        position_stride: 1,
        paths: paths.as_mut_ptr(),
        mask: mask.as_mut_ptr().cast(),
        mask_form: SPEC_MASK_BOOL,
        mask_columns: 8,
        ..Versioned::blank()
    };
    let moved = spec_kv_compact_args {
        num_sequences: 2,
        max_nodes: 4,
        position: decisions.as_ptr(),
        row_count: decisions[1..].as_ptr(),
        decision_stride: 2,
        path: path.as_ptr(),
        path_stride: 4,
        page_size: 8,
        num_pages: 2,
        num_layers: 1,
        num_heads: 1,
        head_bytes: 4,
        keys: &raw const base,
        ..Versioned::blank()
    };
    let stream = context.stream.handle();
    let step = |_| {
        // SAFETY: a live handle; all arrays have the documented sizes and outlive the calls.
        unsafe {
            assert_eq!(spec_tree_mask(context.handle, &told, stream, null_mut()), SPEC_OK);
            assert_eq!(spec_kv_compact(context.handle, &moved, stream, null_mut()), SPEC_OK);
        }
    };
    step(0);
    context.stream.synchronize();
    // The workers allocate while they start: let them settle.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(allocations(|| (0..50).for_each(step)), 0);
    context.stream.synchronize();
    assert_eq!(paths[..4], [0, 2, -1, -1]);
    assert_eq!(mask[..8], [1, 1, 1, 1, 1, 0, 0, 0]);
    assert_eq!(rows[12..16], [16, 17, 18, 19]);
}
