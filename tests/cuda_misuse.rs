//! Bad input and bad luck on CUDA devices: what the host has made current stays so, wrong devices,
//! contexts, streams and tensors are told by name, whatever arrays hold concerns one sequence, and a
//! fault of the device is an error in later calls. `misuse.rs` has what all devices share.

mod device;
mod host;

use device::driver::{self, OwnContext};
use device::memory::Memory;
use device::stream::Stream;
use device::{Device, child, simulator};
use host::checkpoint::Shape;
use host::draft::{DraftCall, Drafts, Place, Sampling, SamplingColumns, Table, Text, Turn};
use host::matrix::{Dtype, Matrix};
use host::random::Random;
use host::verify::VerifyCall;
use host::{
    Context, Failure, Model, Outcome, Session, Versioned, attempt, c_path, session_options,
};
use speculators::capi::*;
use std::ffi::{CString, c_void};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;

const DRAFTS: i32 = 3;
const MAX_POSITION: usize = 64;
const PAGE_SIZE: usize = 8;
const VOCABULARY: usize = 96;

fn options() -> spec_session_options {
    spec_session_options {
        max_sequences: 4,
        max_rows: 2 * MAX_POSITION as i32,
        max_drafts: DRAFTS,
        max_position: MAX_POSITION as i32,
        page_size: PAGE_SIZE as i32,
        ..session_options()
    }
}

/// A session with some texts.
struct Fixture {
    context: Context,
    directory: PathBuf,
    model: Model,
    session: Session,
    texts: Vec<Text>,
}

impl Fixture {
    fn new(name: &str) -> Self {
        Self::on(Context::on(Device::Cuda), name)
    }

    fn on(context: Context, name: &str) -> Self {
        let directory = Shape::default().write(name, 21);
        let model = Model::load(&context, &directory, None).expect("a model");
        let session = Session::create(&model, &options()).expect("a session");
        let texts = texts(&model.widths());
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

fn texts(widths: &[usize]) -> Vec<Text> {
    let mut random = Random::new(22);
    let text = |_| Text::random(&mut random, MAX_POSITION, VOCABULARY as i32, widths);
    (0..3).map(text).collect()
}

/// Eight pages for each sequence.
fn pages(sequence: i32) -> Vec<i32> {
    (8 * sequence..8 * sequence + 8).collect()
}

/// Two chains with logits, one of them sampled.
fn verification() -> VerifyCall {
    let rows = 2 * (DRAFTS as usize + 1);
    let logits = Matrix::new(rows, VOCABULARY, &Random::new(3).normals(rows * VOCABULARY));
    let drafts = Table { elements: vec![1, 2, 3, 4, 5, 6], stride: DRAFTS as usize };
    let sampled = Sampling { temperature: 0.9, seed: 4, ..Sampling::default() };
    VerifyCall::new(logits, drafts, vec![3, 3], vec![7, 9], &[Sampling::default(), sampled])
}

fn assert_refused<T: std::fmt::Debug>(
    outcome: Outcome<T>,
    status: spec_status,
    parts: &[&str],
) -> Failure {
    let failure = outcome.expect_err("a refusal");
    assert_eq!(failure.status, status, "{}", failure.message);
    for part in parts {
        assert!(failure.message.contains(part), "expected {part:?} in {:?}", failure.message);
    }
    failure
}

#[test]
fn without_a_driver_the_message_says_what_was_looked_for() {
    const TEST: &str = "without_a_driver_the_message_says_what_was_looked_for";
    if child::part().is_none() {
        let text =
            child::run(TEST, "all", &[("LD_LIBRARY_PATH", None), ("SPEC_TEST_DEVICE", None)]);
        print!("{text}");
        return;
    }
    if driver::is_present() {
        println!("skipped: the system has a driver");
        return;
    }
    let outcome = Context::create(&Context::options(Device::Cuda));
    let parts = ["spec_context_create: ", "libcuda.so"];
    let failure = assert_refused(outcome, SPEC_ERROR_DEVICE, &parts);
    println!("{}", failure.message);
    // Everything else goes on.
    let fixture = Fixture::on(Context::on(Device::Cpu), "no-driver");
    fixture.call(0..9).run(&fixture.session).expect("a call on the CPU");
}

#[test]
fn devices_that_are_not_there_are_refused() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    let blank = Context::options(Device::Cuda);
    for device_id in [-1, driver::devices(), i32::MAX] {
        let options = spec_context_options { device_id, ..blank };
        let parts = ["spec_context_create: device_id: expected", &device_id.to_string()];
        assert_refused(Context::create(&options), SPEC_ERROR_INVALID_ARGUMENT, &parts);
    }
    let info = Context::create(&blank).expect("a context").info();
    assert_eq!((info.device_type, info.device_id, info.threads), (SPEC_DEVICE_CUDA, 0, 1));
    // SAFETY: never NULL and ends with NUL.
    let set = unsafe { std::ffi::CStr::from_ptr(info.instruction_set) };
    assert!(set.to_str().expect("UTF-8").starts_with("sm_"), "{set:?}");
}

#[test]
fn a_context_of_another_device_is_refused() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    if driver::devices() < 2 {
        println!("skipped: there is one device");
        return;
    }
    let own = OwnContext::create(1);
    let options = spec_context_options {
        cuda_context: own.handle().cast(),
        ..Context::options(Device::Cuda)
    };
    let before = driver::current();
    let parts = ["cuda_context: expected a context of device 0"];
    assert_refused(Context::create(&options), SPEC_ERROR_INVALID_ARGUMENT, &parts);
    assert_eq!(driver::current(), before);
    assert!(own.is_alive());
}

#[test]
fn directories_without_sound_kernels_are_refused() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    let create = |directory: &Path| {
        let directory = c_path(directory);
        Context::create(&spec_context_options {
            kernel_directory: directory.as_ptr(),
            ..Context::options(Device::Cuda)
        })
    };
    let empty = host::checkpoint::scratch_directory("no-kernels");
    let missing = create(&empty.join("nowhere"));
    assert_refused(missing, SPEC_ERROR_IO, &["nowhere"]);
    let damaged = host::checkpoint::scratch_directory("damaged-kernels");
    let kernels = host::files::project("kernels");
    for entry in std::fs::read_dir(kernels).expect("the kernels") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            let name = path.with_extension("cubin");
            let name = name.file_name().expect("a name");
            std::fs::write(damaged.join(name), b"no image").expect("a file");
        }
    }
    let failure = create(&damaged).expect_err("images that are none");
    assert!([SPEC_ERROR_IO, SPEC_ERROR_DEVICE].contains(&failure.status), "{failure:?}");
    assert!(failure.message.contains("damaged-kernels"), "{}", failure.message);
}

#[test]
fn memory_of_the_cpu_or_of_another_device_is_refused() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    let fixture = Fixture::new("memory");
    let expected = ["device type 2 (CUDA), device 0"];
    let call = fixture.call(0..5);
    let prepared = call.prepare(fixture.session.draft_vocabulary);
    // SAFETY: the prepared call has three features and a place for logits.
    let (features, logits) = unsafe {
        (std::slice::from_raw_parts(prepared.args.features, 3), *prepared.args.draft_logits)
    };
    for (device_type, device_id) in [(SPEC_DEVICE_CPU, 0), (SPEC_DEVICE_CUDA, 1)] {
        let elsewhere = |tensor: spec_tensor| spec_tensor { device_type, device_id, ..tensor };
        for index in 0..3 {
            let mut features = features.to_vec();
            features[index] = elsewhere(features[index]);
            let args = spec_draft_args { features: features.as_ptr(), ..prepared.args };
            let outcome = fixture.session.draft(&args);
            assert_refused(outcome, SPEC_ERROR_INVALID_ARGUMENT, &expected);
        }
        let logits = elsewhere(logits);
        let args = spec_draft_args { draft_logits: &logits, ..prepared.args };
        let outcome = fixture.session.draft(&args);
        assert_refused(outcome, SPEC_ERROR_INVALID_ARGUMENT, &expected);

        let matrix = Matrix::filled(8, VOCABULARY, Dtype::F32, 0.0);
        let args = spec_verify_args { logits: elsewhere(matrix.tensor()), ..Versioned::blank() };
        let outcome = fixture.context.verify(&args);
        assert_refused(outcome, SPEC_ERROR_INVALID_ARGUMENT, &expected);

        let table = Matrix::filled(VOCABULARY, 48, Dtype::F32, 0.0);
        let range = spec_row_range { tensor: elsewhere(table.tensor()), first_row: 0 };
        let lent = spec_model_options { embedding: &range, num_embedding: 1, ..Versioned::blank() };
        let outcome = Model::load_with(&fixture.context, &fixture.directory, &lent);
        assert_refused(outcome, SPEC_ERROR_INVALID_ARGUMENT, &expected);
    }
    assert!(prepared.is_untouched());
    fixture.session.draft(&prepared.args).expect("the call as it should be");
}

#[test]
fn streams_of_another_context_are_refused_and_default_streams_serve() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    let fixture = Fixture::new("streams");
    let call = fixture.call(0..9);
    let expected = call.run(&fixture.session).expect("a call");
    let own = OwnContext::create(0);
    let stranger = Stream::in_context(Device::Cuda, own.handle().cast());
    let prepared = call.prepare(fixture.session.draft_vocabulary);
    let handle = fixture.session.handle;
    // SAFETY: a live handle and stream; all arrays are as the struct says.
    let outcome =
        attempt(|error| unsafe { spec_draft(handle, &prepared.args, stranger.handle(), error) });
    assert_refused(outcome, SPEC_ERROR_INVALID_ARGUMENT, &["spec_draft: stream: expected"]);
    assert!(prepared.is_untouched());
    drop(stranger);
    // The legacy default stream, and that of the thread.
    for stream in [0, 2] {
        let prepared = call.prepare(fixture.session.draft_vocabulary);
        let stream = stream as *mut c_void;
        // SAFETY: as above.
        attempt(|error| unsafe { spec_draft(handle, &prepared.args, stream, error) })
            .expect("a call on a default stream");
        device::synchronize();
        assert_eq!(prepared.drafts(), expected);
    }
}

/// Makes calls of every function while `current` is current to the thread, some of which fail.
fn assert_current_stays(name: &str, current: driver::CUcontext) {
    let fixture = Fixture::new(&format!("current-{name}"));
    let call = fixture.call(0..5);
    let prepared = call.prepare(fixture.session.draft_vocabulary);
    let blank = Context::options(Device::Cuda);
    let nobody = spec_context_options { device_id: 99, ..blank };
    let directory = c_path(&fixture.directory);
    let (good, bad) = (options(), spec_session_options { max_rows: -1, ..options() });
    let wrong = spec_draft_args { num_rows: -1, ..prepared.args };
    let stream = fixture.session.stream.handle();
    let (mut context, mut model, mut session) = (null_mut(), null_mut(), null_mut());
    let logits = Matrix::filled(8, VOCABULARY, Dtype::F32, 0.0);
    let verify = spec_verify_args { logits: logits.tensor(), ..Versioned::blank() };
    let wrong_verify = spec_verify_args { num_sequences: -1, ..verify };
    let mut needs = spec_session_requirements::blank();
    let (nothing, size) = (null_mut::<spec_error>(), &mut 0);
    macro_rules! calls {
        ($($expected:ident = $function:ident($($argument:expr),*);)*) => {$(
            driver::set_current(current);
            // SAFETY: live handles and sound structs, or what is refused before it is used.
            let status = unsafe { $function($($argument,)* nothing) };
            assert_eq!(driver::current(), current, "{name}: {}", stringify!($function));
            assert_eq!(status, $expected, "{name}: {}", stringify!($function));
        )*};
    }
    calls! {
        SPEC_ERROR_INVALID_ARGUMENT = spec_context_create(&nobody, &mut context);
        SPEC_OK = spec_context_create(&blank, &mut context);
        SPEC_ERROR_IO = spec_model_load(context, c"nowhere".as_ptr(), std::ptr::null(), &mut model);
        SPEC_OK = spec_model_load(context, directory.as_ptr(), std::ptr::null(), &mut model);
        SPEC_OK = spec_session_get_requirements(model, &good, &mut needs);
        SPEC_ERROR_INVALID_ARGUMENT = spec_session_create(model, &bad, &mut session);
        SPEC_OK = spec_session_create(model, &good, &mut session);
        SPEC_OK = spec_session_warm_up(session, stream);
        SPEC_ERROR_INVALID_ARGUMENT = spec_draft(session, &wrong, stream);
        SPEC_OK = spec_draft(session, &prepared.args, stream);
        SPEC_OK = spec_verify_workspace_size(context, &verify, size);
        SPEC_ERROR_INVALID_ARGUMENT = spec_verify(context, &wrong_verify, stream);
        SPEC_OK = spec_session_poll(session);
    }
    fixture.session.stream.synchronize();
    assert_eq!(prepared.drafts(), call.run(&fixture.session).expect("a call"), "{name}");
    driver::set_current(current);
    // SAFETY: the handles are given up; the work is done.
    unsafe {
        spec_context_release(context);
        spec_model_release(model);
        assert_eq!(driver::current(), current, "{name}: the model's release");
        spec_session_release(session);
        assert_eq!(driver::current(), current, "{name}: the last release");
    }
}

#[test]
fn what_is_current_to_the_thread_stays_so() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    assert_current_stays("none", null_mut());
    assert_current_stays("primary", driver::primary());
    let own = OwnContext::create(0);
    assert_current_stays("own", own.handle());
    driver::set_current(null_mut());
    assert!(own.is_alive());
}

#[test]
fn a_context_of_the_host_is_used_and_left_to_it() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    let primary = Fixture::new("primary");
    let expected = primary.call(0..9).run(&primary.session).expect("a call");
    let decisions = verification().run(&primary.context).expect("a verification");
    let own = OwnContext::create(0);
    let options = spec_context_options {
        cuda_context: own.handle().cast(),
        ..Context::options(Device::Cuda)
    };
    driver::set_current(own.handle());
    for name in ["first", "second"] {
        let fixture = Fixture::on(Context::create(&options).expect("a context"), name);
        assert_eq!(fixture.call(0..9).run(&fixture.session).expect("a call"), expected);
        assert_eq!(verification().run(&fixture.context).expect("a verification"), decisions);
        drop(fixture);
        assert_eq!(driver::current(), own.handle());
        assert!(own.is_alive(), "the library has ended the host's context");
    }
    driver::set_current(null_mut());
}

/// A session in the middle of memory that nobody may write.
struct Walled {
    arena: Memory,
    pool: std::ops::Range<usize>,
    workspace: std::ops::Range<usize>,
    page_bytes: usize,
    session: Session,
}

const WALL: usize = 4096;
const BRICK: u8 = 0xC3;

impl Walled {
    fn new(model: &Model) -> Self {
        let needs = Session::requirements(model, &options()).expect("the requirements");
        let (kv, scratch) = (needs.kv_pool_size as usize, needs.workspace_size as usize);
        let pool = WALL..WALL + kv;
        let begin = (pool.end + WALL).next_multiple_of(64);
        let workspace = begin..begin + scratch;
        let arena = Memory::filled((workspace.end + WALL) as u64, BRICK);
        let at = |range: &std::ops::Range<usize>| arena.address().wrapping_byte_add(range.start);
        let session = Session::create(
            model,
            &spec_session_options {
                kv_pool: at(&pool),
                kv_pool_size: kv as u64,
                workspace: at(&workspace),
                workspace_size: scratch as u64,
                ..options()
            },
        );
        let session = session.expect("a session");
        Self { arena, pool, workspace, page_bytes: needs.page_bytes as usize, session }
    }

    fn page(&self, page: usize) -> Vec<u8> {
        let begin = self.pool.start + page * self.page_bytes;
        self.arena.read(begin..begin + self.page_bytes)
    }

    fn assert_walls_stand(&self, what: &str) {
        let walls = [
            0..self.pool.start,
            self.pool.end..self.workspace.start,
            self.workspace.end..self.workspace.end + WALL,
        ];
        for wall in walls {
            let bytes = self.arena.read(wall.clone());
            assert!(bytes.iter().all(|&byte| byte == BRICK), "{what}: {wall:?} was written");
        }
    }
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

/// A call whose second sequence holds strays.
fn stray_call(good: &DraftCall, random: &mut Random) -> DraftCall {
    let mut bad = good.clone();
    let columns: [&mut [i32]; 10] = [
        &mut bad.position[1..2],
        &mut bad.row_count[1..2],
        &mut bad.next_token[1..2],
        &mut bad.row_begin.as_mut().expect("row_begin")[1..2],
        &mut bad.num_drafts.as_mut().expect("num_drafts")[1..2],
        &mut bad.context_begin.as_mut().expect("context_begin")[1..2],
        &mut bad.tokens[13..26],
        &mut bad.row_index.as_mut().expect("paths").elements[13..26],
        &mut bad.rope_position.as_mut().expect("rope positions")[13..26],
        &mut bad.block_table.as_mut().expect("a table").elements[8..16],
    ];
    for column in columns {
        if random.chance(0.25) {
            let place = random.below(column.len());
            column[place] = stray(random);
        }
    }
    // Whose a page is, the host alone knows: none of the neighbours' is handed out twice.
    for page in &mut bad.block_table.as_mut().expect("a table").elements[8..16] {
        if (0..8).contains(page) || (16..24).contains(page) {
            *page = 30;
        }
    }
    bad
}

#[test]
fn whatever_arrays_hold_nothing_outside_of_the_sequences_pages_is_written() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    let fixture = Fixture::new("walls");
    let walled = Walled::new(&fixture.model);
    let mut random = Random::new(23);
    let mut good = fixture.call(0..13);
    good.row_index = Some(Table { elements: (0..39).map(|row| row % 13).collect(), stride: 13 });
    good.rope_position = Some((0..39).map(|row| row % 13).collect());
    good.sampling = Some(SamplingColumns::of([Sampling::default(); 3]));
    let expected = good.run(&walled.session).expect("a call");
    walled.assert_walls_stand("the call as it should be");
    let mut faults = 0;
    for step in 0..60 {
        let bad = stray_call(&good, &mut random);
        let table = &bad.block_table.as_ref().expect("a table").elements[8..16];
        let others = (24..32).filter(|page| !table.contains(&(*page as i32)));
        let before: Vec<(usize, Vec<u8>)> = others.map(|page| (page, walled.page(page))).collect();
        let drafts = bad.run(&walled.session).expect("a call");
        assert_eq!((&drafts[0], &drafts[2]), (&expected[0], &expected[2]), "step {step}");
        faults += usize::from(walled.session.poll().is_err());
        walled.assert_walls_stand(&format!("step {step}"));
        for (page, bytes) in before {
            assert!(walled.page(page) == bytes, "step {step}: page {page} was written");
        }
    }
    assert!((5..55).contains(&faults), "{faults} faults");
    assert_eq!(good.run(&walled.session).expect("a call"), expected);
}

#[test]
fn the_first_fault_since_the_last_poll_is_reported() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    let fixture = Fixture::new("first-fault");
    let good = fixture.call(0..10);
    let faulty = |sequences: &[usize]| {
        let mut call = good.clone();
        sequences.iter().for_each(|&sequence| call.position[sequence] = -1);
        call
    };
    let reported = |outcome: Outcome<()>| {
        let message = assert_refused(outcome, SPEC_ERROR_INVALID_ARGUMENT, &["sequence "]).message;
        (0..3).find(|sequence| message.contains(&format!("sequence {sequence} ")))
    };
    faulty(&[1, 2]).run(&fixture.session).expect("a call");
    assert_eq!(reported(fixture.session.poll()), Some(1), "the first in the call");
    fixture.session.poll().expect("a clean slate");
    faulty(&[2]).run(&fixture.session).expect("a call");
    faulty(&[0]).run(&fixture.session).expect("a call");
    good.run(&fixture.session).expect("a call");
    assert_eq!(reported(fixture.session.poll()), Some(2), "the first of all calls");
    fixture.session.poll().expect("a clean slate");

    // A poll does not wait: it tells of a call that is enqueued once it is done.
    let call = faulty(&[1]);
    let prepared = call.prepare(fixture.session.draft_vocabulary);
    fixture.session.enqueue(&prepared.args).expect("a call");
    let early = fixture.session.poll();
    fixture.session.stream.synchronize();
    let late = fixture.session.poll();
    assert!(early.is_err() != late.is_err(), "{early:?}, {late:?}");
}

/// The names of all kernels.
fn kernels() -> Vec<String> {
    let directory = host::files::project("kernels");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).expect("the kernels") {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("a text");
        for definition in text.lines().filter_map(|line| line.strip_prefix("KERNEL")) {
            let (arguments, _) = definition.split_once(')').expect("the end of the arguments");
            let name = arguments.rsplit(',').nth(1).expect("the name, then the arguments' type");
            names.push(name.trim().to_owned());
        }
    }
    names
}

/// Drafts and verifies until a call fails, and says with which status.
fn work_until_a_fault() -> Option<Failure> {
    let fixture = Fixture::new(&format!("faulty-{}", std::process::id()));
    let call = fixture.call(0..9);
    let mut sampled = fixture.call(0..9);
    let sampling = Sampling { temperature: 0.8, ..Sampling::default() };
    sampled.sampling = Some(SamplingColumns::of([sampling; 3]));
    let calls = [call.prepare(50), sampled.prepare(50)];
    let verification = verification();
    let mut failure = None;
    for _ in 0..3 {
        let outcomes = calls.iter().map(|call| fixture.session.enqueue(&call.args));
        failure = outcomes.filter_map(Result::err).next();
        fixture.session.stream.settle();
        if failure.is_some() {
            break;
        }
        // Makes buffers, which a device at fault does not give.
        let verify = || verification.run(&fixture.context);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(verify));
        if let Ok(Err(failed)) = caught {
            failure = Some(failed);
            break;
        }
    }
    // Everything can be given up, in any order.
    drop(fixture.context);
    drop(fixture.session);
    drop(fixture.model);
    failure
}

#[test]
fn a_fault_in_any_kernel_is_an_error_of_later_calls_and_nothing_hangs() {
    const TEST: &str = "a_fault_in_any_kernel_is_an_error_of_later_calls_and_nothing_hangs";
    if !device::is_cuda_or_skipped() {
        return;
    }
    if child::part().is_some() {
        match work_until_a_fault() {
            None => println!("no fault"),
            Some(failure) => println!("fault: {} {}", failure.status, failure.message),
        }
        return;
    }
    if !simulator::is_present_or_skipped("only the simulator makes kernels fault") {
        return;
    }
    assert!(!child::run(TEST, "sound", &[]).contains("fault: "));
    let mut faults = 0;
    for kernel in kernels() {
        let text = child::run(TEST, &kernel, &[("SIMT_FAULT_KERNEL", Some(&kernel))]);
        if text.contains("no fault") {
            println!("{kernel}: not used by this work");
            continue;
        }
        let expected = format!("fault: {SPEC_ERROR_DEVICE} ");
        assert!(text.contains(&expected), "{kernel}: {text}");
        assert!(text.contains("CUDA_ERROR_"), "{kernel}: {text}");
        faults += 1;
    }
    assert!(faults >= 6, "only {faults} kernels are part of a round");
}

#[test]
fn what_the_device_cannot_do_is_unsupported() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    let context = Context::on(Device::Cuda);
    let lacking = Shape { stores_embedding: false, ..Shape::default() };
    let directory = lacking.write("unsupported", 21);
    let mapped = spec_model_options { flags: SPEC_MODEL_MAP_FILES, ..Versioned::blank() };
    let outcome = Model::load_with(&context, &directory, &mapped);
    assert_refused(outcome, SPEC_ERROR_UNSUPPORTED, &["mapped"]);
    let table = Matrix::filled(VOCABULARY, 48, Dtype::F32, 0.5);
    // As many ranges as a kernel takes, and one more.
    for (ranges, is_refused) in [(16, false), (17, true)] {
        let tensor = |first: usize, last: usize| spec_tensor {
            data: table.tensor().data.wrapping_byte_add(first * 48 * 4),
            shape: [(last - first) as i64, 48, 0, 0],
            ..table.tensor()
        };
        let lent: Vec<spec_row_range> = (0..ranges)
            .map(|index| {
                let last = if index + 1 == ranges { VOCABULARY } else { 5 * index + 5 };
                spec_row_range { tensor: tensor(5 * index, last), first_row: 5 * index as i64 }
            })
            .collect();
        let options = spec_model_options {
            embedding: lent.as_ptr(),
            num_embedding: ranges as i32,
            ..Versioned::blank()
        };
        let outcome = Model::load_with(&context, &directory, &options);
        if is_refused {
            assert_refused(outcome, SPEC_ERROR_UNSUPPORTED, &["embedding", "16", "17"]);
        } else {
            outcome.expect("a model");
        }
    }
}

#[test]
fn strings_of_options_are_checked() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    let text = CString::new(vec![0xFF, 0xFE]).expect("no NUL");
    let options =
        spec_context_options { kernel_directory: text.as_ptr(), ..Context::options(Device::Cuda) };
    let outcome = Context::create(&options);
    assert_refused(outcome, SPEC_ERROR_INVALID_ARGUMENT, &["kernel_directory"]);
}

/// What a call proposes does not change while another thread makes contexts on the same device.
#[test]
fn contexts_come_and_go_beside_calls() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    let fixture = Fixture::new("beside");
    let call = fixture.call(0..9);
    let expected = call.run(&fixture.session).expect("a call");
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let drafts: Vec<Vec<Drafts>> = (0..2)
                .map(|index| {
                    let fixture = Fixture::new(&format!("beside-{index}"));
                    fixture.call(0..9).run(&fixture.session).expect("a call")
                })
                .collect();
            drafts
        });
        for _ in 0..4 {
            assert_eq!(call.run(&fixture.session).expect("a call"), expected);
        }
        let others = other.join().expect("a thread");
        assert!(others.iter().all(|drafts| *drafts == expected));
    });
}
