//! Bad input gets an error that says what is wrong, and changes nothing.

mod device;
mod host;

use device::Device;
use device::buffer::Buffer;
use device::memory::Memory;
use host::checkpoint::{MlpShape, Shape, scratch_directory};
use host::draft::{
    DraftCall, Drafts, Place, Prepared, Sampling, SamplingColumns, Table, Text, Turn,
};
use host::matrix::{Dtype, Matrix};
use host::random::Random;
use host::verify::VerifyCall;
use host::{
    Context, Failure, Model, Session, Versioned, assert_refused, attempt, c_path, session_options,
};
use speculators::capi::*;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::ptr::{dangling_mut, null, null_mut};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const DRAFTS: i32 = 3;
const MAX_POSITION: usize = 64;

fn options() -> spec_session_options {
    spec_session_options {
        max_sequences: 4,
        max_rows: 2 * MAX_POSITION as i32,
        max_drafts: DRAFTS,
        max_position: MAX_POSITION as i32,
        page_size: 8,
        ..session_options()
    }
}

/// A session with some texts.
struct Fixture {
    context: Context,
    directory: std::path::PathBuf,
    model: Model,
    session: Session,
    texts: Vec<Text>,
}

impl Fixture {
    fn new(name: &str) -> Self {
        let shape = Shape::default();
        Self::of(shape.write(name, 21), shape.vocabulary)
    }

    /// One of a kind that keeps nothing of what is committed.
    fn without_cache(name: &str) -> Self {
        let shape = MlpShape::default();
        Self::of(shape.write(&format!("{name}-mlp"), 21), shape.vocabulary)
    }

    fn of(directory: std::path::PathBuf, vocabulary: usize) -> Self {
        let context = Context::with_threads(1);
        let model = Model::load(&context, &directory, None).expect("a model");
        let session = Session::create(&model, &options()).expect("a session");
        let mut random = Random::new(22);
        let text = |_| Text::random(&mut random, MAX_POSITION, vocabulary as i32, &model.widths());
        let texts = (0..3).map(text).collect();
        Self { context, directory, model, session, texts }
    }

    /// All texts commit the same positions, each in pages of its own.
    fn call(&self, rows: std::ops::Range<usize>) -> DraftCall {
        let tables: Vec<Vec<i32>> = (0..self.texts.len() as i32).map(pages).collect();
        let turns = self
            .texts
            .iter()
            .zip(&tables)
            .map(|(text, table)| Turn::new(text, rows.clone(), DRAFTS, Place::Pages(table)));
        DraftCall::of(&turns.collect::<Vec<_>>())
    }
}

/// Runs a test with a cache and without one.
fn with_and_without_cache(name: &str, run: fn(&Fixture)) {
    run(&Fixture::new(name));
    run(&Fixture::without_cache(name));
}

/// Eight pages for each sequence.
fn pages(sequence: i32) -> Vec<i32> {
    (8 * sequence..8 * sequence + 8).collect()
}

const INVALID: spec_status = SPEC_ERROR_INVALID_ARGUMENT;
const UNSUPPORTED: spec_status = SPEC_ERROR_UNSUPPORTED;

#[test]
fn every_function_refuses_every_null_that_it_must_not_get() {
    let fixture = Fixture::new("null");
    let (context, model, session) =
        (fixture.context.handle, fixture.model.handle, fixture.session.handle);
    let directory = c_path(&fixture.directory);
    let path = directory.as_ptr();
    let sizes = options();
    let drafting = fixture.call(0..5);
    let drafting = drafting.prepare(fixture.session.draft_vocabulary).args;
    let verification = spec_verify_args::blank();
    let (trees, moves) = (spec_tree_mask_args::blank(), spec_kv_compact_args::blank());
    let (mut context_info, mut model_info) = (spec_context_info::blank(), spec_model_info::blank());
    let (mut needs, mut length) = (spec_session_requirements::blank(), 0_u64);
    let mut byte: c_char = 0;
    let mut nodes = 0_i32;
    let mut new_model = null_mut();
    let mut new_session = null_mut();
    type Call<'a> = (&'a str, Box<dyn FnMut(*mut spec_error) -> spec_status + 'a>);
    macro_rules! calls {
        ($($function:ident($($argument:expr),*);)*) => {
            vec![$((
                stringify!($function),
                // SAFETY: live handles and sound structs, or the NULL that is to be refused.
                Box::new(|error| unsafe { $function($($argument,)* error) }),
            )),*]
        };
    }
    let (info_place, needs_place) = (&raw mut context_info, &raw mut needs);
    let (length_place, byte_place) = (&raw mut length, &raw mut byte);
    let (model_place, session_place) = (&raw mut new_model, &raw mut new_session);
    let model_info_place = &raw mut model_info;
    let calls: Vec<Call<'_>> = calls! {
        spec_context_create(null(), null_mut());
        spec_context_get_info(null(), info_place);
        spec_context_get_info(context, null_mut());
        spec_checkpoint_inspect(null(), byte_place, 1, length_place);
        spec_checkpoint_inspect(path, null_mut(), 1, length_place);
        spec_checkpoint_inspect(path, null_mut(), 0, null_mut());
        spec_checkpoint_check(null(), null(), byte_place, 1, length_place);
        spec_checkpoint_check(path, null(), null_mut(), 1, length_place);
        spec_checkpoint_check(path, null(), null_mut(), 0, null_mut());
        spec_checkpoint_convert(null(), null(), null(), byte_place, 1, length_place);
        spec_checkpoint_convert(path, null(), null(), null_mut(), 1, length_place);
        spec_checkpoint_stitch(null(), null(), null(), byte_place, 1, length_place);
        spec_checkpoint_stitch(path, null(), null(), byte_place, 1, length_place);
        spec_model_load(null(), path, null(), model_place);
        spec_model_load(context, null(), null(), model_place);
        spec_model_load(context, path, null(), null_mut());
        spec_model_get_info(null(), model_info_place);
        spec_model_get_info(model, null_mut());
        spec_model_get_report(null(), byte_place, 1, length_place);
        spec_model_get_report(model, null_mut(), 1, length_place);
        spec_model_get_report(model, null_mut(), 0, null_mut());
        spec_session_get_requirements(null(), &sizes, needs_place);
        spec_session_get_requirements(model, null(), needs_place);
        spec_session_get_requirements(model, &sizes, null_mut());
        spec_session_create(null(), &sizes, session_place);
        spec_session_create(model, null(), session_place);
        spec_session_create(model, &sizes, null_mut());
        spec_session_warm_up(null_mut(), null_mut());
        spec_session_poll(null_mut());
        spec_draft(null_mut(), &drafting, null_mut());
        spec_draft(session, null(), null_mut());
        spec_verify(null(), &verification, null_mut());
        spec_verify(context, null(), null_mut());
        spec_verify_workspace_size(null(), &verification, length_place);
        spec_verify_workspace_size(context, null(), length_place);
        spec_verify_workspace_size(context, &verification, null_mut());
        spec_tree_mask(null(), &trees, null_mut());
        spec_tree_mask(context, null(), null_mut());
        spec_kv_compact(null(), &moves, null_mut());
        spec_kv_compact(context, null(), null_mut());
        spec_tree_from_paths(null(), 0, 0, null_mut(), null_mut(), 0, null_mut());
        spec_tree_from_paths(null(), 1, 1, null_mut(), null_mut(), 0, &mut nodes);
    };
    for (index, (function, mut call)) in calls.into_iter().enumerate() {
        let what = format!("call {index}, {function}");
        assert_refused(attempt(&mut call), function, INVALID, &what);
        assert_eq!(call(null_mut()), INVALID, "{what}, without an error struct");
    }
    assert!(new_model.is_null() && new_session.is_null());
}

#[test]
fn null_handles_and_names_are_let_be() {
    // SAFETY: NULL is allowed by all of these.
    unsafe {
        spec_context_release(null_mut());
        spec_model_release(null_mut());
        spec_session_release(null_mut());
        assert_eq!(spec_feature(null()), 0);
        assert_eq!(spec_feature(c"no such thing".as_ptr()), 0);
        assert_eq!(spec_feature(c"eagle3".as_ptr()), 1);
        for status in [-1, 10, i32::MAX, i32::MIN] {
            assert_eq!(CStr::from_ptr(spec_status_name(status)), c"unknown status");
        }
        assert_eq!(CStr::from_ptr(spec_status_name(SPEC_ERROR_BUSY)), c"SPEC_ERROR_BUSY");
    }
}

#[test]
fn what_is_no_live_handle_is_refused() {
    let fixture = Fixture::new("handles");
    let args = fixture.call(0..5);
    let args = args.prepare(fixture.session.draft_vocabulary).args;
    // As much memory as a record may have, without the word that live ones begin with.
    let mut nothing = vec![0_u64; 512];
    let nothing = nothing.as_mut_ptr().cast::<c_void>();
    let strangers = [nothing, fixture.context.handle.cast(), fixture.model.handle.cast()];
    for stranger in strangers {
        let session = stranger.cast::<spec_session>();
        // SAFETY: readable memory, which is all that a check of the handle needs.
        let outcomes = unsafe {
            [
                attempt(|error| spec_draft(session, &args, null_mut(), error)),
                attempt(|error| spec_session_warm_up(session, null_mut(), error)),
                attempt(|error| spec_session_poll(session, error)),
            ]
        };
        for (outcome, function) in
            outcomes.into_iter().zip(["spec_draft", "spec_session_warm_up", "spec_session_poll"])
        {
            assert_refused(outcome, function, INVALID, "a stranger as a session");
        }
        // SAFETY: as above; what is not live is let be.
        unsafe { spec_session_release(session) };
    }
    let mut info = spec_model_info::blank();
    let stranger = fixture.session.handle.cast::<spec_model>();
    // SAFETY: readable memory.
    let outcome = attempt(|error| unsafe { spec_model_get_info(stranger, &mut info, error) });
    assert_refused(outcome, "spec_model_get_info", INVALID, "a session as a model");
    let odd = fixture.session.handle.wrapping_byte_add(1);
    // SAFETY: a misaligned pointer is refused before it is read.
    let outcome = attempt(|error| unsafe { spec_session_poll(odd, error) });
    assert_refused(outcome, "spec_session_poll", INVALID, "a misaligned handle");
}

#[test]
fn children_keep_their_parents() {
    let Fixture { context, model, session, texts, .. } = Fixture::new("parents");
    let turn = || Turn::new(&texts[0], 0..20, DRAFTS, Place::Slot(0));
    let expected = DraftCall::of(&[turn()]).run(&session).expect("a call");
    drop(context);
    let second = Session::create(&model, &options()).expect("a session");
    drop(model);
    assert_eq!(DraftCall::of(&[turn()]).run(&session).expect("a call"), expected);
    drop(session);
    assert_eq!(DraftCall::of(&[turn()]).run(&second).expect("a call"), expected);
}

/// A struct as a later version of the header might have it.
#[repr(C)]
struct Grown<T> {
    value: T,
    tail: [u8; 16],
}

/// The statuses of a call for a struct that is smaller than it ever was, of its first version, larger,
/// and larger with something in it.
fn sizes<T: Versioned>(
    value: &T,
    what: &str,
    mut call: impl FnMut(*const T) -> Result<(), Failure>,
) {
    let (first, size) = (T::FIRST_SIZE as u32, size_of::<T>() as u32);
    let mut grown = Grown { value: *value, tail: [0; 16] };
    let mut outcome = |size: u32, tail: u8| {
        let place = (&raw mut grown).cast::<T>();
        grown.tail[9] = tail;
        // SAFETY: every struct of the API begins with its size.
        unsafe { place.cast::<u32>().write(size) };
        call(place)
    };
    for size in [0, 4, first - 1] {
        let failure = outcome(size, 0).expect_err(what);
        assert_eq!(failure.status, INVALID, "{what} of {size} bytes: {}", failure.message);
    }
    outcome(first, 0).unwrap_or_else(|failure| panic!("{what}, the first: {failure:?}"));
    outcome(size, 0).unwrap_or_else(|failure| panic!("{what}: {failure:?}"));
    outcome(size + 16, 0).unwrap_or_else(|failure| panic!("{what}, larger: {failure:?}"));
    outcome(size, 1).unwrap_or_else(|failure| panic!("{what}, with something behind: {failure:?}"));
    let failure = outcome(size + 16, 1).expect_err(what);
    assert_eq!(failure.status, UNSUPPORTED, "{what}: {}", failure.message);
}

#[test]
fn structs_of_other_versions_are_read_by_their_size() {
    let fixture = Fixture::new("sizes");
    let (context, model) = (fixture.context.handle, fixture.model.handle);
    let path = c_path(&fixture.directory);
    sizes(
        &spec_context_options { threads: 1, ..Context::options(Device::chosen()) },
        "context options",
        |options| {
            // SAFETY: a struct of its stated size.
            Context::create(unsafe { &*options }).map(drop)
        },
    );
    sizes(&spec_model_options::blank(), "model options", |options| {
        let mut model = null_mut();
        // SAFETY: live handles and structs of their stated sizes, here and below.
        attempt(|error| unsafe {
            spec_model_load(context, path.as_ptr(), options, &mut model, error)
        })?;
        // SAFETY: the handle is given up.
        unsafe { spec_model_release(model) };
        Ok(())
    });
    sizes(&options(), "session options", |options| {
        let mut needs = spec_session_requirements::blank();
        // SAFETY: as above.
        attempt(|error| unsafe { spec_session_get_requirements(model, options, &mut needs, error) })
    });
    let call = fixture.call(0..5);
    let prepared = call.prepare(fixture.session.draft_vocabulary);
    sizes(&prepared.args, "drafting arguments", |args| {
        // SAFETY: as above.
        fixture.session.draft(unsafe { &*args })
    });
    let columns = SamplingColumns::of([Sampling::default(); 3]);
    sizes(&columns.view(), "sampling", |sampling| {
        fixture.session.draft(&spec_draft_args { sampling, ..prepared.args })
    });
    let mut verification = Verification::new();
    sizes(&verification.args(), "verification arguments", |args| {
        // SAFETY: as above.
        fixture.context.verify(unsafe { &*args })
    });
    let draft_logits = Matrix::filled(2 * DRAFTS as usize, VOCABULARY, Dtype::F32, 0.0);
    let distribution = spec_distribution { logits: draft_logits.tensor(), ..Versioned::blank() };
    sizes(&distribution, "distribution", |draft| {
        verification.run(&fixture.context, &|args| args.draft = draft)
    });
    let stream = fixture.context.stream.handle();
    let links = spec_tree { stride: 1, ..Versioned::blank() };
    let trees = spec_tree_mask_args { max_nodes: 1, ..Versioned::blank() };
    let moves =
        spec_kv_compact_args { max_nodes: 1, page_size: 1, num_pages: 1, ..Versioned::blank() };
    sizes(&links, "links", |tree| {
        let args = spec_tree_mask_args { tree, ..trees };
        // SAFETY: as above, here and below.
        attempt(|error| unsafe { spec_tree_mask(context, &args, stream, error) })
    });
    sizes(&trees, "arguments for trees", |args| {
        // SAFETY: as above.
        attempt(|error| unsafe { spec_tree_mask(context, args, stream, error) })
    });
    sizes(&moves, "arguments for moves", |args| {
        // SAFETY: as above.
        attempt(|error| unsafe { spec_kv_compact(context, args, stream, error) })
    });
}

#[test]
fn structs_for_results_are_written_as_far_as_the_host_has_them() {
    let fixture = Fixture::new("results");
    let mut info = Grown { value: spec_model_info::blank(), tail: [7; 16] };
    info.value.struct_size = size_of::<Grown<spec_model_info>>() as u32;
    let place = (&raw mut info).cast();
    // SAFETY: a live handle, and a struct of its stated size.
    attempt(|error| unsafe { spec_model_get_info(fixture.model.handle, place, error) })
        .expect("info");
    assert_eq!(info.value.vocabulary, 96);
    assert_eq!(info.value.struct_size, size_of::<Grown<spec_model_info>>() as u32);
    assert_eq!(info.tail, [7; 16], "what the library does not know was written");
    info.value.struct_size = 8;
    info.value.vocabulary = -3;
    // SAFETY: as above.
    let outcome =
        attempt(|error| unsafe { spec_model_get_info(fixture.model.handle, place, error) });
    assert_refused(outcome, "spec_model_get_info", INVALID, "too small an info");
    assert_eq!(info.value.vocabulary, -3);
    let mut error = host::marked_error();
    error.struct_size -= 1;
    // SAFETY: NULL is to be refused.
    assert_eq!(unsafe { spec_session_poll(null_mut(), &mut error) }, INVALID);
    assert_eq!((error.status, error.message[0] as u8), (-1, b'#'), "too small an error struct");
}

/// Ways in which a tensor of `rows` by `columns` F32 can be wrong.
fn wrong_tensors(good: &spec_tensor) -> Vec<(&'static str, spec_tensor)> {
    let [rows, columns, ..] = good.shape;
    let (own, other) = match Device::chosen() {
        Device::Cpu => (SPEC_DEVICE_CPU, SPEC_DEVICE_CUDA),
        Device::Cuda => (SPEC_DEVICE_CUDA, SPEC_DEVICE_CPU),
    };
    let shape = |shape| spec_tensor { shape, ..*good };
    let strides = |strides| spec_tensor { strides, ..*good };
    vec![
        ("dtype: integers", spec_tensor { dtype_code: SPEC_DTYPE_INT, ..*good }),
        ("dtype: 64 bits", spec_tensor { dtype_bits: 64, ..*good }),
        ("dtype: bfloat of 32 bits", spec_tensor { dtype_code: SPEC_DTYPE_BFLOAT, ..*good }),
        ("dtype: two lanes", spec_tensor { dtype_lanes: 2, ..*good }),
        ("dtype: an unknown code", spec_tensor { dtype_code: 99, ..*good }),
        ("no dimension", spec_tensor { ndim: 0, ..*good }),
        ("one dimension", spec_tensor { ndim: 1, ..*good }),
        ("three dimensions", spec_tensor { ndim: 3, ..shape([1, rows, columns, 0]) }),
        ("a negative number of dimensions", spec_tensor { ndim: -2, ..*good }),
        ("a row too few", shape([rows - 1, columns, 0, 0])),
        ("a column too few", shape([rows, columns - 1, 0, 0])),
        ("a column too many", shape([rows, columns + 1, 0, 0])),
        ("a negative shape", shape([-rows, columns, 0, 0])),
        ("a huge shape", shape([i64::MAX, columns, 0, 0])),
        ("columns apart", strides([2 * columns, 2, 0, 0])),
        ("rows that overlap", strides([columns - 1, 1, 0, 0])),
        ("rows backwards", strides([-columns, 1, 0, 0])),
        ("huge strides", strides([i64::MAX, 1, 0, 0])),
        ("another kind of device", spec_tensor { device_type: other, ..*good }),
        ("an unknown kind of device", spec_tensor { device_type: 99, ..*good }),
        ("a second device", spec_tensor { device_type: own, device_id: 1, ..*good }),
        ("no data", spec_tensor { data: null_mut(), ..*good }),
        ("odd data", spec_tensor { data: good.data.wrapping_byte_add(1), ..*good }),
    ]
}

/// Makes a drafting call with changed arguments, which must be refused without any effect.
fn assert_draft_refused(
    fixture: &Fixture,
    prepared: &Prepared<'_>,
    args: &spec_draft_args,
    status: spec_status,
    what: &str,
) {
    assert_refused(fixture.session.draft(args), "spec_draft", status, what);
    assert!(prepared.is_untouched(), "{what}: something was written");
    fixture.session.poll().expect("a refused call leaves no fault");
}

#[test]
fn wrong_tensors_are_refused_by_drafting() {
    with_and_without_cache("tensors", refuse_wrong_tensors);
}

fn refuse_wrong_tensors(fixture: &Fixture) {
    let mut call = fixture.call(0..5);
    let width = fixture.model.info().hidden_size as usize;
    call.embeddings = Some(Matrix::filled(15, width, Dtype::F32, 0.0));
    let prepared = call.prepare(fixture.session.draft_vocabulary);
    let args = prepared.args;
    // SAFETY: the prepared call has features, embeddings and a place for logits.
    let (features, embeddings, logits) = unsafe {
        (
            std::slice::from_raw_parts(args.features, args.num_features as usize).to_vec(),
            *args.embeddings,
            *args.draft_logits,
        )
    };
    for (index, good) in features.iter().enumerate() {
        for (what, wrong) in wrong_tensors(good) {
            let mut features = features.clone();
            features[index] = wrong;
            let args = spec_draft_args { features: features.as_ptr(), ..args };
            let what = format!("feature {index}: {what}");
            assert_draft_refused(fixture, &prepared, &args, INVALID, &what);
        }
    }
    for (what, wrong) in wrong_tensors(&embeddings) {
        let args = spec_draft_args { embeddings: &wrong, ..args };
        assert_draft_refused(fixture, &prepared, &args, INVALID, &format!("embeddings: {what}"));
    }
    for (what, wrong) in wrong_tensors(&logits) {
        let args = spec_draft_args { draft_logits: &wrong, ..args };
        assert_draft_refused(fixture, &prepared, &args, INVALID, &format!("logits: {what}"));
    }
    fixture.session.draft(&args).expect("the call as it should be");
}

/// A way to spoil drafting arguments.
type Spoil = (&'static str, spec_status, fn(&mut spec_draft_args));

#[test]
fn wrong_arguments_are_refused_by_drafting() {
    with_and_without_cache("arguments", refuse_wrong_arguments);
}

fn refuse_wrong_arguments(fixture: &Fixture) {
    let mut call = fixture.call(0..5);
    call.row_index = Some(Table { elements: (0..15).map(|row| row % 5).collect(), stride: 5 });
    let prepared = call.prepare(fixture.session.draft_vocabulary);
    let spoils: &[Spoil] = &[
        ("position", INVALID, |args| args.position = null()),
        ("row_count", INVALID, |args| args.row_count = null()),
        ("next_token", INVALID, |args| args.next_token = null()),
        ("tokens", INVALID, |args| args.tokens = null()),
        ("features", INVALID, |args| args.features = null()),
        ("draft_tokens", INVALID, |args| args.draft_tokens = null_mut()),
        ("odd position", INVALID, |args| args.position = args.position.wrapping_byte_add(1)),
        ("odd tokens", INVALID, |args| args.tokens = args.tokens.wrapping_byte_add(2)),
        ("odd features", INVALID, |args| args.features = args.features.wrapping_byte_add(4)),
        ("odd block_table", INVALID, |args| {
            args.block_table = args.block_table.wrapping_byte_add(1);
        }),
        ("unknown flags", UNSUPPORTED, |args| args.flags = 1 << 30),
        ("negative num_sequences", INVALID, |args| args.num_sequences = -1),
        ("too many sequences", INVALID, |args| args.num_sequences = 5),
        ("negative num_rows", INVALID, |args| args.num_rows = -1),
        ("more rows than features have", INVALID, |args| args.num_rows += 1),
        ("negative max_drafts", INVALID, |args| args.max_drafts = -1),
        ("too many drafts", INVALID, |args| args.max_drafts = DRAFTS + 1),
        ("negative decision_stride", INVALID, |args| args.decision_stride = -1),
        ("no row_index_stride", INVALID, |args| args.row_index_stride = 0),
        ("no block_table_stride", INVALID, |args| args.block_table_stride = 0),
        ("negative block_table_stride", INVALID, |args| args.block_table_stride = -8),
        ("a block_table too large to index", INVALID, |args| {
            args.block_table_stride = i32::MAX - 2;
        }),
        ("too few features", INVALID, |args| args.num_features -= 1),
        ("too many features", INVALID, |args| args.num_features += 1),
        ("a draft_stride below max_drafts", INVALID, |args| args.draft_stride = DRAFTS - 1),
        ("negative draft_stride", INVALID, |args| args.draft_stride = -1),
        ("a min_confidence of NaN", INVALID, |args| args.min_confidence = f32::NAN),
        ("a min_confidence above 1", INVALID, |args| args.min_confidence = 1.5),
        ("min_confidence without confidence", INVALID, |args| args.min_confidence = 0.5),
        ("confidence that the model has not", INVALID, |args| {
            args.confidence = args.draft_tokens.cast();
        }),
        ("candidates that the model has not", INVALID, |args| {
            args.draft_candidates = args.draft_tokens;
        }),
        ("an odd tree", INVALID, |args| args.tree = std::ptr::without_provenance(4)),
        ("an odd shape", INVALID, |args| args.tree_shape = std::ptr::without_provenance(4)),
        ("an odd sampling", INVALID, |args| args.sampling = args.sampling.wrapping_byte_add(2)),
        ("no struct_size", INVALID, |args| args.struct_size = 0),
    ];
    for (what, status, spoil) in spoils {
        let mut args = prepared.args;
        spoil(&mut args);
        assert_draft_refused(fixture, &prepared, &args, *status, what);
    }
    fixture.session.draft(&prepared.args).expect("the call as it should be");
}

#[test]
fn the_cpu_has_no_streams() {
    if !device::is_cpu_or_skipped("streams that do not exist cannot be told on CUDA devices") {
        return;
    }
    let fixture = Fixture::new("streams");
    let call = fixture.call(0..5);
    let prepared = call.prepare(fixture.session.draft_vocabulary);
    let handle = fixture.session.handle;
    // SAFETY: a stream that is not NULL is refused before it is used.
    let outcome =
        attempt(|error| unsafe { spec_draft(handle, &prepared.args, dangling_mut(), error) });
    assert_refused(outcome, "spec_draft", INVALID, "a stream");
    // SAFETY: as above.
    let outcome = attempt(|error| unsafe { spec_session_warm_up(handle, dangling_mut(), error) });
    assert_refused(outcome, "spec_session_warm_up", INVALID, "a stream");
    assert!(prepared.is_untouched());
    let mut verification = Verification::new();
    let (context, args) = (fixture.context.handle, verification.args());
    // SAFETY: as above.
    let outcome = attempt(|error| unsafe { spec_verify(context, &args, dangling_mut(), error) });
    assert_refused(outcome, "spec_verify", INVALID, "a stream");
    assert!(verification.decisions.iter().all(|&element| element == -77));
}

#[test]
fn what_may_be_null_may_be_null() {
    with_and_without_cache("optional", leave_out_what_may_be_null);
}

fn leave_out_what_may_be_null(fixture: &Fixture) {
    let turn = |(slot, text)| Turn::new(text, 0..DRAFTS as usize + 1, DRAFTS, Place::Slot(slot));
    let turns: Vec<Turn<'_>> = (0..).zip(&fixture.texts).map(turn).collect();
    let call = DraftCall::of(&turns);
    let expected = call.run(&fixture.session).expect("a call");
    let leave_out: [fn(&mut spec_draft_args); 9] = [
        |args| args.row_begin = null(),
        |args| args.num_drafts = null(),
        |args| args.limit = null(),
        |args| args.context_begin = null(),
        |args| args.slot = null(),
        |args| args.sampling = null(),
        |args| args.draft_stride = 0,
        |args| args.rope_position = null(),
        |args| args.embeddings = null(),
    ];
    for (index, leave_out) in leave_out.into_iter().enumerate() {
        let mut prepared = call.prepare(fixture.session.draft_vocabulary);
        leave_out(&mut prepared.args);
        fixture.session.draft(&prepared.args).expect("a call");
        assert_eq!(prepared.drafts(), expected, "optional argument {index}");
    }
    let mut prepared = call.prepare(fixture.session.draft_vocabulary);
    (prepared.args.num_proposed, prepared.args.draft_logits) = (null_mut(), null());
    fixture.session.draft(&prepared.args).expect("a call without optional results");
    let empty = DraftCall::of(&[]);
    let mut empty = empty.prepare(fixture.session.draft_vocabulary);
    let features: Vec<spec_tensor> =
        fixture.texts[0].features.iter().map(|feature| rows_of_none(feature.columns)).collect();
    (empty.args.features, empty.args.num_features) = (features.as_ptr(), features.len() as i32);
    fixture.session.draft(&empty.args).expect("a call of no sequence");
}

/// A tensor without rows, which needs no data.
fn rows_of_none(columns: usize) -> spec_tensor {
    Matrix::new(0, columns, &[]).tensor()
}

/// A way in which the contents of the arrays take sequence 1 out of a step.
type Fault = (&'static str, fn(&mut DraftCall));

#[test]
fn a_fault_takes_one_sequence_out_and_is_reported_once() {
    with_and_without_cache("faults", take_one_sequence_out);
}

fn take_one_sequence_out(fixture: &Fixture) {
    let first = fixture.call(0..10);
    let mut good = fixture.call(10..13);
    good.row_index = Some(Table { elements: vec![0, 1, 2, 0, 1, 2, 0, 1, 2], stride: 3 });
    let expected = {
        first.run(&fixture.session).expect("the prompts");
        good.run(&fixture.session).expect("a step")
    };
    fn table(call: &mut DraftCall) -> &mut [i32] {
        &mut call.block_table.as_mut().expect("a block table").elements[8..16]
    }
    fn path(call: &mut DraftCall) -> &mut [i32] {
        &mut call.row_index.as_mut().expect("paths").elements[3..6]
    }
    let faults: &[Fault] = &[
        ("a page below 0", |call| table(call)[1] = -1),
        ("an early page below 0", |call| table(call)[0] = -1),
        ("a page beyond the pool", |call| table(call)[1] = 32),
        ("the largest page", |call| table(call)[1] = i32::MAX),
        ("a token beyond the vocabulary", |call| call.tokens[4] = 96),
        ("the largest token", |call| call.tokens[5] = i32::MAX),
        ("a token below 0", |call| call.tokens[4] = -2),
        ("no embedding for a token of -1", |call| call.tokens[5] = -1),
        ("a next token beyond the vocabulary", |call| call.next_token[1] = 96),
        ("a next token below 0", |call| call.next_token[1] = -2),
        ("a position below 0", |call| call.position[1] = -1),
        ("a position below the rows", |call| call.position[1] = 2),
        ("a position beyond the session", |call| call.position[1] = MAX_POSITION as i32),
        ("the largest position", |call| call.position[1] = i32::MAX),
        ("the smallest position", |call| call.position[1] = i32::MIN),
        ("rows before the buffer", |call| call.row_begin.as_mut().unwrap()[1] = -1),
        ("rows behind the buffer", |call| call.row_begin.as_mut().unwrap()[1] = 9),
        ("rows that leave the buffer", |call| call.row_begin.as_mut().unwrap()[1] = 7),
        ("rows far behind the buffer", |call| call.row_begin.as_mut().unwrap()[1] = i32::MAX),
        ("more rows than there are", |call| call.row_count[1] = 10),
        ("the largest row_count", |call| call.row_count[1] = i32::MAX),
        ("a path before the sequence", |call| path(call)[1] = -1),
        ("a path behind the buffer", |call| path(call)[2] = 6),
        ("a path far behind the buffer", |call| path(call)[0] = i32::MAX),
        ("a context that begins behind the rows", |call| {
            call.context_begin.as_mut().unwrap()[1] = 11;
        }),
        ("a context that begins below 0", |call| call.context_begin.as_mut().unwrap()[1] = -1),
    ];
    for (what, fault) in faults {
        first.run(&fixture.session).expect("the prompts");
        let mut bad = good.clone();
        fault(&mut bad);
        let drafts =
            bad.run(&fixture.session).unwrap_or_else(|failure| panic!("{what}: {failure:?}"));
        assert_eq!(drafts[1], Drafts::default(), "{what}");
        assert_eq!((&drafts[0], &drafts[2]), (&expected[0], &expected[2]), "{what}: neighbours");
        let poll = fixture.session.poll();
        let message = poll.as_ref().expect_err(what).message.clone();
        assert_refused(poll, "spec_session_poll", INVALID, what);
        assert!(message.contains("sequence 1"), "{what}: {message}");
        fixture.session.poll().unwrap_or_else(|failure| panic!("{what}, second poll: {failure:?}"));
        assert_eq!(good.run(&fixture.session).expect("a step"), expected, "{what}: afterwards");
        fixture.session.poll().expect("no fault");
    }
}

#[test]
fn rope_positions_may_be_any_numbers() {
    with_and_without_cache("rope-ends", turn_by_any_numbers);
}

fn turn_by_any_numbers(fixture: &Fixture) {
    let mut call = fixture.call(0..10);
    call.rope_position = Some((0..30).map(|row| row % 10).collect());
    let expected = call.run(&fixture.session).expect("a call");
    for position in [i32::MIN, -1, i32::MAX - 1, i32::MAX] {
        call.rope_position.as_mut().expect("rope positions")[10..20].fill(position);
        let drafts = call.run(&fixture.session).expect("a call");
        assert_eq!(drafts[1].tokens.len(), expected[1].tokens.len(), "{position}");
        assert_eq!((&drafts[0], &drafts[2]), (&expected[0], &expected[2]), "{position}");
        fixture.session.poll().expect("no fault");
    }
}

#[test]
fn slots_out_of_range_and_too_many_rows_are_faults() {
    with_and_without_cache("slot-faults", name_slots_out_of_range);
}

fn name_slots_out_of_range(fixture: &Fixture) {
    let turn = |(slot, text)| Turn::new(text, 0..20, DRAFTS, Place::Slot(slot));
    let turns: Vec<Turn<'_>> = (0..).zip(&fixture.texts).map(turn).collect();
    let good = DraftCall::of(&turns);
    let expected = good.run(&fixture.session).expect("a call");
    for slot in [-1, 4, i32::MAX] {
        let mut bad = good.clone();
        bad.slot = Some(vec![0, slot, 2]);
        let drafts = bad.run(&fixture.session).expect("a call");
        assert!(drafts[1].tokens.is_empty(), "slot {slot}");
        assert_eq!((&drafts[0], &drafts[2]), (&expected[0], &expected[2]), "slot {slot}");
        fixture.session.poll().expect_err("a fault");
    }
    let narrow = spec_session_options { max_rows: 45, ..options() };
    let narrow = Session::create(&fixture.model, &narrow).expect("a session");
    let drafts = good.run(&narrow).expect("a call");
    assert_eq!(drafts[..2], expected[..2], "the rows that have room");
    assert!(drafts[2].tokens.is_empty(), "60 rows in a session for 45");
    narrow.poll().expect_err("a fault");
    narrow.poll().expect("one report");
}

/// A number that arrays may hold by mistake.
fn stray(random: &mut Random) -> i32 {
    match random.below(6) {
        0 => i32::MIN,
        1 => i32::MAX,
        2 => random.bits() as i32,
        _ => random.below(80) as i32 - 8,
    }
}

#[test]
fn whatever_the_arrays_hold_a_step_leaves_the_others_alone() {
    with_and_without_cache("strays", put_strays_into_one_sequence);
}

fn put_strays_into_one_sequence(fixture: &Fixture) {
    let mut random = Random::new(23);
    let mut good = fixture.call(0..13);
    good.limit = Some(vec![9; 3]);
    good.row_index = Some(Table { elements: (0..39).map(|row| row % 13).collect(), stride: 13 });
    good.rope_position = Some((0..39).map(|row| row % 13).collect());
    let expected = good.run(&fixture.session).expect("a call");
    let mut faults = 0;
    let steps = device::amount(3000, 150);
    for _ in 0..steps {
        let mut bad = good.clone();
        let table = &mut bad.block_table.as_mut().expect("a table").elements[8..16];
        let columns: [&mut [i32]; 12] = [
            &mut bad.position[1..2],
            &mut bad.row_count[1..2],
            &mut bad.next_token[1..2],
            &mut bad.row_begin.as_mut().expect("row_begin")[1..2],
            &mut bad.num_drafts.as_mut().expect("num_drafts")[1..2],
            &mut bad.limit.as_mut().expect("limit")[1..2],
            &mut bad.context_begin.as_mut().expect("context_begin")[1..2],
            &mut bad.tokens[13..26],
            &mut bad.row_index.as_mut().expect("paths").elements[13..26],
            &mut bad.rope_position.as_mut().expect("rope positions")[13..26],
            &mut bad.sampling.as_mut().expect("sampling").top_k[1..2],
            table,
        ];
        for column in columns {
            if random.chance(0.2) {
                let place = random.below(column.len());
                column[place] = stray(&mut random);
            }
        }
        // Whose a page is, the host alone knows: none of the neighbours' is handed out twice.
        for page in &mut bad.block_table.as_mut().expect("a table").elements[8..16] {
            if (0..8).contains(page) || (16..24).contains(page) {
                *page = 30;
            }
        }
        let drafts = bad.run(&fixture.session).expect("a call");
        assert_eq!((&drafts[0], &drafts[2]), (&expected[0], &expected[2]));
        faults += usize::from(fixture.session.poll().is_err());
    }
    assert!((steps / 30..steps - steps / 30).contains(&faults), "{faults} faults in {steps} steps");
    assert_eq!(good.run(&fixture.session).expect("a call"), expected);
}

#[test]
fn a_sequence_without_rows_takes_no_part() {
    with_and_without_cache("no-rows", take_the_rows_from_one_sequence);
}

fn take_the_rows_from_one_sequence(fixture: &Fixture) {
    let good = fixture.call(0..10);
    let expected = good.run(&fixture.session).expect("a call");
    let mut without = good.clone();
    without.row_count[1] = 0;
    // Nothing else of it is looked at.
    (without.position[1], without.next_token[1]) = (i32::MIN, i32::MAX);
    without.row_begin.as_mut().expect("row_begin")[1] = i32::MIN;
    without.block_table.as_mut().expect("a table").elements[8..16].fill(-1);
    let drafts = without.run(&fixture.session).expect("a call");
    assert!(drafts[1].tokens.is_empty());
    assert_eq!((&drafts[0], &drafts[2]), (&expected[0], &expected[2]));
    fixture.session.poll().expect("no fault");
}

#[test]
fn wrong_session_options_are_refused() {
    let fixture = Fixture::new("options");
    let memory = Memory::filled(64, 0);
    let odd = memory.address().wrapping_byte_add(8);
    let good = options();
    let wrong = [
        spec_session_options { max_sequences: 0, ..good },
        spec_session_options { max_sequences: -1, ..good },
        spec_session_options { max_rows: 0, ..good },
        spec_session_options { max_rows: i32::MIN, ..good },
        spec_session_options { max_drafts: 0, ..good },
        spec_session_options { max_drafts: 5000, ..good },
        spec_session_options { max_position: 0, ..good },
        spec_session_options { max_position: -7, ..good },
        spec_session_options { page_size: -1, ..good },
        spec_session_options { max_pages: -1, ..good },
        spec_session_options { kv_dtype_code: SPEC_DTYPE_FLOAT, kv_dtype_bits: 8, ..good },
        spec_session_options { kv_dtype_code: SPEC_DTYPE_BFLOAT, ..good },
        spec_session_options { page_size: i32::MAX - 1, max_pages: i32::MAX - 1, ..good },
    ];
    for (index, options) in wrong.iter().enumerate() {
        let asked = Session::requirements(&fixture.model, options);
        assert!(asked.is_err(), "options {index}");
        let failure = Session::create(&fixture.model, options).expect_err("a refusal");
        assert_eq!(failure.status, INVALID, "options {index}: {}", failure.message);
    }
    let wrong_memory = [
        spec_session_options { kv_pool: memory.address(), kv_pool_size: 64, ..good },
        spec_session_options { workspace: memory.address(), workspace_size: 64, ..good },
        spec_session_options { kv_pool: odd, kv_pool_size: 1 << 30, ..good },
        spec_session_options { workspace: odd, workspace_size: 1 << 30, ..good },
    ];
    for (index, options) in wrong_memory.iter().enumerate() {
        let failure = Session::create(&fixture.model, options).expect_err("a refusal");
        assert_eq!(failure.status, INVALID, "memory {index}: {}", failure.message);
    }
    let reserved = spec_session_options { reserved: 1, ..good };
    let failure = Session::create(&fixture.model, &reserved).expect_err("a refusal");
    assert_eq!(failure.status, UNSUPPORTED);
    let few = spec_session_options { max_pages: 3, ..good };
    let session = Session::create(&fixture.model, &few).expect("a session without slots");
    let turn = Turn::new(&fixture.texts[0], 0..9, DRAFTS, Place::Slot(0));
    let call = DraftCall::of(&[turn]);
    assert_refused(call.run(&session).map(drop), "spec_draft", INVALID, "slots that do not exist");
}

#[test]
fn wrong_context_and_model_options_are_refused() {
    unsafe extern "C" fn release(_: *mut c_void, _: *mut c_void, _: u64, _: i32) {}
    let half = spec_allocator { release: Some(release), ..Versioned::blank() };
    let blank = spec_context_options::blank();
    let wrong = [
        (UNSUPPORTED, spec_context_options { device_type: 99, ..blank }),
        (INVALID, spec_context_options { device_id: 1, ..blank }),
        (INVALID, spec_context_options { cuda_context: dangling_mut(), ..blank }),
        (INVALID, spec_context_options { threads: -1, ..blank }),
        (INVALID, spec_context_options { threads: 1025, ..blank }),
        (INVALID, spec_context_options { allocator: &half, ..blank }),
    ];
    for (index, (status, options)) in wrong.iter().enumerate() {
        let failure = Context::create(options).expect_err("a refusal");
        assert_eq!(failure.status, *status, "options {index}: {}", failure.message);
    }
    let fixture = Fixture::new("model-options");
    let lent = Matrix::filled(96, 48, Dtype::F32, 0.0);
    let range = |tensor, first_row| spec_row_range { tensor, first_row };
    let (whole, gap) = (range(lent.tensor(), 0), range(lent.tensor(), 1));
    let blank = spec_model_options::blank();
    let wrong = [
        (UNSUPPORTED, spec_model_options { flags: 1 << 9, ..blank }),
        (INVALID, spec_model_options { config_overrides: c"[1, 2]".as_ptr(), ..blank }),
        (INVALID, spec_model_options { config_overrides: c"{".as_ptr(), ..blank }),
        (INVALID, spec_model_options { config_overrides: c"\xFF".as_ptr(), ..blank }),
        (INVALID, spec_model_options { verifier_directory: c"\xFF".as_ptr(), ..blank }),
        (INVALID, spec_model_options { num_embedding: 1, ..blank }),
        (INVALID, spec_model_options { embedding: &whole, ..blank }),
        (INVALID, spec_model_options { embedding: &gap, num_embedding: 1, ..blank }),
        (INVALID, spec_model_options { head: &whole, num_head: -1, ..blank }),
    ];
    for (index, (status, options)) in wrong.iter().enumerate() {
        let failure = Model::load_with(&fixture.context, &fixture.directory, options);
        let failure = failure.expect_err(&format!("options {index}"));
        assert_eq!(failure.status, *status, "options {index}: {}", failure.message);
    }
    let empty = scratch_directory("empty");
    let missing = Model::load(&fixture.context, &empty, None).expect_err("a refusal");
    assert_eq!(missing.status, SPEC_ERROR_IO, "{}", missing.message);
    assert!(missing.message.contains("config.json"), "{}", missing.message);
    let missing = host::inspect(&empty.join("nowhere")).expect_err("a refusal");
    assert_eq!(missing.status, SPEC_ERROR_IO, "{}", missing.message);
}

#[test]
fn texts_are_refused_by_too_small_a_buffer_and_their_length_is_told() {
    let fixture = Fixture::new("texts");
    let path = c_path(&fixture.directory);
    let report = fixture.model.report().to_string();
    assert!(report.contains("embed_tokens.weight"), "{report}");
    for inspects in [true, false] {
        let call = |json: *mut c_char, capacity, length: &mut u64, error| {
            // SAFETY: a live handle; the buffer has the stated capacity.
            unsafe {
                if inspects {
                    spec_checkpoint_inspect(path.as_ptr(), json, capacity, length, error)
                } else {
                    spec_model_get_report(fixture.model.handle, json, capacity, length, error)
                }
            }
        };
        let mut length = 0;
        attempt(|error| call(null_mut(), 0, &mut length, error)).expect("a length");
        let mut buffer = vec![b'#'.cast_signed(); length as usize + 1];
        let mut told = 0;
        let place = buffer.as_mut_ptr();
        attempt(|error| call(place, length, &mut told, error)).expect_err("a refusal");
        assert_eq!(told, length);
        assert!(buffer.iter().all(|&byte| byte == b'#'.cast_signed()), "written all the same");
        let place = buffer.as_mut_ptr();
        attempt(|error| call(place, length + 1, &mut told, error)).expect("the text");
        assert_eq!(buffer.last(), Some(&0));
    }
}

const VOCABULARY: usize = 20;

/// A sound verification of two chains.
struct Verification {
    logits: Matrix,
    drafts: Buffer<i32>,
    position: Buffer<i32>,
    decisions: Buffer<i32>,
    workspace: Memory,
}

impl Verification {
    const STRIDE: i32 = SPEC_DECISION_TOKENS + 2 * (DRAFTS + 1);
    const WORKSPACE: u64 = 1 << 20;

    fn new() -> Self {
        let rows = 2 * (DRAFTS as usize + 1);
        let elements = Random::new(3).normals(rows * VOCABULARY);
        Self {
            logits: Matrix::new(rows, VOCABULARY, &elements),
            drafts: vec![1, 2, 3, 4, 5, 6].into(),
            position: vec![7, 9].into(),
            decisions: Buffer::filled(2 * Self::STRIDE as usize, -77),
            workspace: Memory::filled(Self::WORKSPACE, 0),
        }
    }

    fn args(&mut self) -> spec_verify_args {
        spec_verify_args {
            num_sequences: 2,
            max_drafts: DRAFTS,
            logits: self.logits.tensor(),
            draft_tokens: self.drafts.as_ptr(),
            position: self.position.as_ptr(),
            decision_stride: Self::STRIDE,
            decisions: self.decisions.as_mut_ptr(),
            workspace: self.workspace.address(),
            workspace_size: Self::WORKSPACE,
            ..Versioned::blank()
        }
    }

    fn run(
        &mut self,
        context: &Context,
        spoil: &dyn Fn(&mut spec_verify_args),
    ) -> Result<(), Failure> {
        let mut args = self.args();
        spoil(&mut args);
        context.verify(&args)
    }
}

#[test]
fn wrong_arguments_are_refused_by_verification() {
    type Spoil<'a> = (&'a str, spec_status, &'a dyn Fn(&mut spec_verify_args));
    let context = Context::with_threads(1);
    let mut verification = Verification::new();
    let narrow = Matrix::filled(6, VOCABULARY - 1, Dtype::F32, 0.0);
    let distribution =
        |logits: &Matrix| spec_distribution { logits: logits.tensor(), ..Versioned::blank() };
    let narrow = distribution(&narrow);
    let ids = [0; VOCABULARY];
    let mut scattered = spec_distribution {
        token_ids: ids.as_ptr(),
        token_ids_stride: 1 << 40,
        ..distribution(&verification.logits)
    };
    (scattered.logits.shape[0], scattered.logits.strides) = (1 << 30, [VOCABULARY as i64, 1, 0, 0]);
    let mut parents = [-1_i32; 2 * (DRAFTS as usize + 1)];
    let tree = |parents: *mut i32, stride| spec_tree { parents, stride, ..Versioned::blank() };
    let no_parents = tree(null_mut(), 0);
    let odd_parents = tree(parents.as_mut_ptr().wrapping_byte_add(2), 0);
    let short_trees = tree(parents.as_mut_ptr(), DRAFTS);
    let fine_tree = tree(parents.as_mut_ptr(), 0);
    let lenient = |change: &dyn Fn(&mut spec_leniency)| {
        let mut leniency: spec_leniency = Versioned::blank();
        change(&mut leniency);
        leniency
    };
    let wrong_leniencies = [
        lenient(&|leniency| leniency.tolerance = -0.1),
        lenient(&|leniency| leniency.tolerance = f32::NAN),
        lenient(&|leniency| leniency.epsilon = 1.5),
        lenient(&|leniency| leniency.alpha = -1.0),
        lenient(&|leniency| leniency.threshold_single = f32::NAN),
        lenient(&|leniency| leniency.threshold_accumulated = f32::INFINITY),
        lenient(&|leniency| leniency.top_n = -1),
        lenient(&|leniency| {
            leniency.acceptance = std::ptr::dangling::<f32>().wrapping_byte_add(1);
        }),
    ];
    for (index, leniency) in wrong_leniencies.iter().enumerate() {
        let outcome = verification.run(&context, &|args| args.leniency = &raw const *leniency);
        assert_refused(outcome, "spec_verify", INVALID, &format!("leniency {index}"));
    }
    let spoils: &[Spoil<'_>] = &[
        ("parents that are not there", INVALID, &|args| args.tree = &raw const no_parents),
        ("odd parents", INVALID, &|args| args.tree = &raw const odd_parents),
        ("short trees", INVALID, &|args| args.tree = &raw const short_trees),
        ("a tree with a rule for chains", UNSUPPORTED, &|args| {
            args.tree = &raw const fine_tree;
            args.rule = SPEC_RULE_BLOCK;
        }),
        ("a lossy rule without leave", INVALID, &|args| args.rule = SPEC_RULE_TYPICAL),
        ("unknown flags", UNSUPPORTED, &|args| args.flags = 1 << 20),
        ("negative num_sequences", INVALID, &|args| args.num_sequences = -1),
        ("negative max_drafts", INVALID, &|args| args.max_drafts = -1),
        ("too many drafts", INVALID, &|args| args.max_drafts = 1024),
        ("no drafts", INVALID, &|args| args.draft_tokens = null()),
        ("odd drafts", INVALID, &|args| args.draft_tokens = args.draft_tokens.wrapping_byte_add(1)),
        ("no position", INVALID, &|args| args.position = null()),
        ("no decisions", INVALID, &|args| args.decisions = null_mut()),
        ("short records", INVALID, &|args| args.decision_stride -= 1),
        ("negative decision_stride", INVALID, &|args| args.decision_stride = -90),
        ("draft_stride below K", INVALID, &|args| args.draft_stride = DRAFTS - 1),
        ("negative position_stride", INVALID, &|args| args.position_stride = -1),
        ("stop tokens without any", INVALID, &|args| args.num_stop_tokens = 1),
        ("negative num_stop_tokens", INVALID, &|args| args.num_stop_tokens = -1),
        ("no workspace", INVALID, &|args| args.workspace = null_mut()),
        ("no room", INVALID, &|args| args.workspace_size = 0),
        ("odd workspace", INVALID, &|args| args.workspace = args.workspace.wrapping_byte_add(8)),
        ("a narrow distribution", INVALID, &|args| args.draft = &raw const narrow),
        ("more ids than there are addresses", INVALID, &|args| args.draft = &raw const scattered),
    ];
    for (what, status, spoil) in spoils {
        assert_refused(verification.run(&context, *spoil), "spec_verify", *status, what);
        assert!(verification.decisions.iter().all(|&element| element == -77), "{what}: written");
    }
    let failure = verification.run(&context, &|args| args.rule = 99).expect_err("a rule");
    assert!([INVALID, UNSUPPORTED].contains(&failure.status), "{failure:?}");
    let good = verification.logits.tensor();
    for (what, wrong) in wrong_tensors(&good) {
        // V and R are whatever the tensor says.
        if what.starts_with("a column") || what.starts_with("a row") {
            continue;
        }
        let outcome = verification.run(&context, &|args| args.logits = wrong);
        assert_refused(outcome, "spec_verify", INVALID, what);
    }
    verification.run(&context, &|_| ()).expect("the call as it should be");
    assert!(verification.decisions.iter().any(|&element| element != -77));
}

#[test]
fn invalid_contents_end_the_verification_of_one_sequence_only() {
    let context = Context::with_threads(1);
    let verification = Verification::new();
    let chains = |first: [i32; 3]| Table::ragged(&[&first, &[4, 5, 6]]);
    let good = VerifyCall::new(
        verification.logits.clone(),
        chains([1, 2, 3]),
        vec![3, 3],
        vec![7, 9],
        &[Sampling::default(); 2],
    );
    let expected = good.run(&context).expect("a verification");
    let mut cases = vec![VerifyCall { num_drafts: vec![4, 3], ..good.clone() }];
    for token in [20, i32::MAX, -2] {
        cases.push(VerifyCall { drafts: chains([token, 2, 3]), ..good.clone() });
    }
    for row in [-1, 5, i32::MAX] {
        cases.push(VerifyCall { row_begin: Some(vec![row, 4]), ..good.clone() });
    }
    for (index, call) in cases.iter().enumerate() {
        let decisions = call.run(&context).expect("a verification");
        assert!(decisions.emitted(0).is_empty(), "case {index}");
        let flags = decisions.field(0, SPEC_DECISION_FLAGS);
        assert_eq!(flags, SPEC_DECISION_FLAG_INVALID, "case {index}");
        assert_eq!(decisions.emitted(1), expected.emitted(1), "case {index}: the neighbour");
        assert_eq!(decisions.field(1, SPEC_DECISION_FLAGS), 0, "case {index}: the neighbour");
    }
}

#[test]
fn the_workspace_is_told_before_there_are_any_arrays() {
    let context = Context::with_threads(1);
    let mut verification = Verification::new();
    let mut candidates = Matrix::filled(6, VOCABULARY / 2, Dtype::F32, 0.0).tensor();
    candidates.data = null_mut();
    let draft = spec_distribution { logits: candidates, ..Versioned::blank() };
    let mut args = spec_verify_args {
        draft_tokens: null(),
        position: null(),
        decisions: null_mut(),
        workspace: null_mut(),
        workspace_size: 0,
        draft: &draft,
        ..verification.args()
    };
    args.logits.data = null_mut();
    let mut size = 0;
    // SAFETY: a live handle; only sizes are looked at.
    attempt(|error| unsafe { spec_verify_workspace_size(context.handle, &args, &mut size, error) })
        .expect("a size");
    assert!(size > 0 && size <= Verification::WORKSPACE, "{size}");
}

#[test]
fn no_temperature_brings_back_what_is_masked_out() {
    let context = Context::with_threads(1);
    let mut logits = Matrix::filled(1, VOCABULARY, Dtype::F32, f32::NEG_INFINITY);
    let mut row = vec![f32::NEG_INFINITY; VOCABULARY];
    (row[3], row[11]) = (1.0, -2.0);
    logits.set_row(0, &row);
    for temperature in [1.0, 1e6, f32::MAX, f32::INFINITY] {
        for seed in 0..50 {
            let sampling = Sampling { temperature, seed, ..Sampling::default() };
            let call = VerifyCall::new(
                logits.clone(),
                Table::ragged(&[&[]]),
                vec![0],
                vec![7],
                &[sampling],
            );
            let emitted = call.run(&context).expect("a verification").emitted(0).to_vec();
            assert!([3, 11].contains(&emitted[0]), "{emitted:?} at temperature {temperature}");
        }
    }
}

#[test]
fn a_place_for_errors_that_is_not_aligned_is_let_be() {
    let mut memory = vec![0_u64; size_of::<spec_error>() / 8 + 2];
    memory[0] = u64::MAX;
    memory[1] = u64::MAX;
    let before = memory.clone();
    let error = memory.as_mut_ptr().cast::<spec_error>().wrapping_byte_add(1);
    // SAFETY: the place is refused before it is used.
    let status = unsafe { spec_context_get_info(null(), null_mut(), error) };
    assert_eq!(status, INVALID);
    assert_eq!(memory, before);
}

#[test]
fn a_sequence_without_rows_in_the_distribution_is_invalid() {
    let context = Context::with_threads(1);
    let short = Matrix::filled(5, VOCABULARY, Dtype::F32, 0.0);
    let short = spec_distribution { logits: short.tensor(), ..Versioned::blank() };
    let columns = SamplingColumns::of([Sampling { temperature: 1.0, ..Sampling::default() }; 2]);
    let sampling = columns.view();
    let mut verification = Verification::new();
    let sample = |args: &mut spec_verify_args| {
        (args.draft, args.sampling) = (&raw const short, &raw const sampling);
    };
    verification.run(&context, &sample).expect("a verification");
    let [emitted, flags] = [SPEC_DECISION_EMITTED, SPEC_DECISION_FLAGS].map(|field| {
        [0, Verification::STRIDE].map(|record| verification.decisions[(record + field) as usize])
    });
    assert!(emitted[0] > 0);
    assert_eq!(emitted[1], 0);
    assert_eq!(flags, [0, SPEC_DECISION_FLAG_INVALID]);
}

/// An allocator of the host that keeps book and can refuse one allocation.
#[derive(Default)]
struct Ledger {
    live: Mutex<BTreeMap<usize, (u64, i32, Memory)>>,
    calls: AtomicUsize,
    refused: AtomicUsize,
    refuse_at: usize,
}

impl Ledger {
    unsafe extern "C" fn allocate(
        user: *mut c_void,
        size: u64,
        alignment: u64,
        kind: i32,
    ) -> *mut c_void {
        // SAFETY: the test hands over a ledger that outlives the context.
        let ledger = unsafe { &*user.cast::<Self>() };
        if ledger.calls.fetch_add(1, Ordering::Relaxed) == ledger.refuse_at {
            ledger.refused.fetch_add(1, Ordering::Relaxed);
            return null_mut();
        }
        let memory = Memory::filled(size, 0xFF);
        let address = memory.address();
        assert!((address as u64).is_multiple_of(alignment), "alignment {alignment}");
        let before = ledger.live.lock().unwrap().insert(address as usize, (size, kind, memory));
        assert!(before.is_none());
        address
    }

    unsafe extern "C" fn release(user: *mut c_void, memory: *mut c_void, size: u64, kind: i32) {
        // SAFETY: as above.
        let ledger = unsafe { &*user.cast::<Self>() };
        let entry = ledger.live.lock().unwrap().remove(&(memory as usize));
        let (allocated, allocated_kind, _) = entry.expect("memory of this allocator");
        assert_eq!((size, kind), (allocated, allocated_kind), "size and kind as allocated");
    }

    fn context(&self) -> Context {
        let allocator = spec_allocator {
            user: std::ptr::from_ref(self).cast_mut().cast(),
            allocate: Some(Self::allocate),
            release: Some(Self::release),
            ..Versioned::blank()
        };
        let options = spec_context_options {
            threads: 1,
            allocator: &allocator,
            ..Context::options(Device::chosen())
        };
        Context::create(&options).expect("a context")
    }

    fn kinds(&self) -> Vec<i32> {
        let mut kinds: Vec<i32> = self.live.lock().unwrap().values().map(|entry| entry.1).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }
}

/// Everything that allocates, with one drafting call at the end.
fn lifecycle(ledger: &Ledger, directory: &std::path::Path) -> Result<Vec<Drafts>, Failure> {
    let context = ledger.context();
    let model = Model::load(&context, directory, None)?;
    let session = Session::create(&model, &options())?;
    let kinds = [SPEC_MEMORY_WEIGHTS, SPEC_MEMORY_KV, SPEC_MEMORY_WORKSPACE];
    assert_eq!(ledger.kinds(), kinds, "kinds of memory");
    let before = ledger.calls.load(Ordering::Relaxed);
    session.warm_up()?;
    let text = Text::random(&mut Random::new(1), 30, 96, &model.widths());
    let turn = Turn::new(&text, 0..20, DRAFTS, Place::Slot(0));
    let drafts = DraftCall::of(&[turn]).run(&session)?;
    assert_eq!(ledger.calls.load(Ordering::Relaxed), before, "a step allocated");
    Ok(drafts)
}

#[test]
fn every_refused_allocation_is_a_clean_error() {
    for directory in [
        Shape::default().write("allocator-llama", 5),
        Shape::sliding().write("allocator-sliding", 5),
        Shape::language_model("qwen3").write("allocator-own-tokens", 5),
        MlpShape::default().write("allocator-mlp", 5),
    ] {
        let expected =
            lifecycle(&Ledger { refuse_at: usize::MAX, ..Ledger::default() }, &directory);
        let expected = expected.expect("nothing is refused");
        let mut refused = 0;
        loop {
            let ledger = Ledger { refuse_at: refused, ..Ledger::default() };
            let outcome = lifecycle(&ledger, &directory);
            assert!(ledger.live.lock().unwrap().is_empty(), "allocation {refused}: a leak");
            if ledger.refused.load(Ordering::Relaxed) == 0 {
                assert_eq!(outcome.expect("nothing was refused"), expected);
                break;
            }
            let failure = outcome.expect_err("a refusal");
            assert_eq!(failure.status, SPEC_ERROR_OUT_OF_MEMORY, "{}", failure.message);
            assert!(failure.message.contains("no memory for"), "{}", failure.message);
            refused += 1;
        }
        assert!(refused >= 3, "{refused} allocations go through the host's allocator");
    }
}

#[test]
fn lent_tensors_are_given_back_once_when_nothing_uses_them() {
    unsafe extern "C" fn given_back(count: *mut c_void) {
        // SAFETY: the test hands over a counter that outlives the model.
        unsafe { &*count.cast::<AtomicUsize>() }.fetch_add(1, Ordering::Relaxed);
    }
    let fixture = Fixture::new("lender");
    let lacking = Shape { stores_embedding: false, ..Shape::default() };
    let directory = lacking.write("lacking", 21);
    Model::load(&fixture.context, &directory, None).expect_err("an embedding is missing");
    let weights = host::golden::Tensors::read(&fixture.directory.join("model.safetensors"));
    let table = weights.matrix("embed_tokens.weight").expect("an embedding");
    let rows = |rows: std::ops::Range<usize>| {
        let elements: Vec<f32> = rows.clone().flat_map(|row| table.row(row)).collect();
        Matrix::new(rows.len(), table.columns, &elements).converted(Dtype::F32, table.columns + 4)
    };
    let (low, high) = (rows(0..61), rows(61..96));
    let ranges = [
        spec_row_range { tensor: low.tensor(), first_row: 0 },
        spec_row_range { tensor: high.tensor(), first_row: 61 },
    ];
    let count = AtomicUsize::new(0);
    let options = spec_model_options {
        embedding: ranges.as_ptr(),
        num_embedding: 2,
        lent_release: Some(given_back),
        lent_user: (&raw const count).cast_mut().cast(),
        ..Versioned::blank()
    };
    let short = spec_model_options { num_embedding: 1, ..options };
    Model::load_with(&fixture.context, &directory, &short).expect_err("rows are missing");
    let narrow = Matrix::filled(96, table.columns - 1, Dtype::F32, 0.0);
    let narrow = spec_row_range { tensor: narrow.tensor(), first_row: 0 };
    let narrow = spec_model_options { embedding: &narrow, num_embedding: 1, ..options };
    Model::load_with(&fixture.context, &directory, &narrow).expect_err("columns are missing");
    assert_eq!(count.load(Ordering::Relaxed), 0, "called for a load that failed");
    let model = Model::load_with(&fixture.context, &directory, &options).expect("a model");
    let session = Session::create(&model, &self::options()).expect("a session");
    let turn = || Turn::new(&fixture.texts[0], 0..20, DRAFTS, Place::Slot(0));
    let lent = DraftCall::of(&[turn()]).run(&session).expect("a call");
    let own = DraftCall::of(&[turn()]).run(&fixture.session).expect("a call");
    assert_eq!(lent, own, "the lent embedding");
    drop(model);
    assert_eq!(count.load(Ordering::Relaxed), 0, "the session still uses them");
    drop(session);
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

#[test]
fn eight_threads_share_a_context() {
    let context = Context::with_threads(2);
    let directory = Shape::sliding().write("eight", 31);
    let model = Model::load(&context, &directory, None).expect("a model");
    let texts: Vec<Text> =
        (0..8).map(|seed| Text::random(&mut Random::new(seed), 60, 96, &model.widths())).collect();
    let work = |text: &Text| -> Vec<Vec<Drafts>> {
        let session = Session::create(&model, &options()).expect("a session").with_own_stream();
        let rounds = [0..9, 9..30, 30..31, 31..35, 12..40].into_iter().map(|rows| {
            let turn = Turn::new(text, rows, DRAFTS, Place::Slot(1));
            DraftCall::of(&[turn]).run(&session).expect("a call")
        });
        rounds.collect()
    };
    let alone: Vec<_> = texts.iter().map(work).collect();
    let (work, times) = (&work, device::amount(5, 2));
    let together: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = texts
            .iter()
            .map(|text| scope.spawn(move || (0..times).map(|_| work(text)).collect::<Vec<_>>()))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread")).collect()
    });
    for (runs, alone) in together.iter().zip(&alone) {
        assert!(runs.iter().all(|run| run == alone));
    }
}

#[test]
fn a_second_thread_in_a_session_is_busy_or_right() {
    let fixture = Fixture::new("busy");
    let call = |slot: i32| {
        let turn = Turn::new(&fixture.texts[slot as usize], 0..30, DRAFTS, Place::Slot(slot));
        DraftCall::of(&[turn])
    };
    let calls = [call(0), call(1)];
    let expected = calls.each_ref().map(|call| call.run(&fixture.session).expect("a call"));
    let session = &fixture.session;
    std::thread::scope(|scope| {
        for (call, expected) in calls.iter().zip(&expected) {
            scope.spawn(move || {
                let mut right = 0;
                while right < device::amount(100, 10) {
                    let prepared = call.prepare(session.draft_vocabulary);
                    match session.draft(&prepared.args) {
                        Ok(()) => {
                            assert_eq!(prepared.drafts(), *expected);
                            right += 1;
                        }
                        Err(failure) => {
                            assert_eq!(failure.status, SPEC_ERROR_BUSY, "{}", failure.message);
                            assert!(prepared.is_untouched());
                        }
                    }
                }
            });
        }
    });
}
