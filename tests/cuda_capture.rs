//! Rounds that the host captures in graphs of its own and replays while it rewrites the arrays: they
//! do what calls one by one do, for every batch that fits the capture.

mod device;
mod host;

use device::buffer::Buffer;
use device::memory::Memory;
use device::stream::Stream;
use device::{Device, driver};
use host::checkpoint::{MlpShape, Shape};
use host::draft::{DraftCall, Place, Sampling, SamplingColumns, Text, TreeShape, Turn};
use host::golden;
use host::matrix::{Dtype, Matrix};
use host::random::Random;
use host::{Context, Model, Session, Versioned, attempt, session_options};
use speculators::capi::*;
use std::ptr::{from_ref, null};

const DRAFTS: usize = 3;
const ROWS: usize = DRAFTS + 1;
/// Rows of a prompt that one call commits at most.
const CHUNK: usize = 7;
const MAX_POSITION: usize = 64;
const PAGE_SIZE: usize = 8;
const TABLE: usize = MAX_POSITION / PAGE_SIZE;
const STRIDE: usize = SPEC_DECISION_TOKENS as usize + 2 * ROWS;

/// The shapes that rounds are captured of, by name.
fn shapes() -> [(&'static str, Shape); 4] {
    let half = Shape { dtype: Dtype::Bf16, norm_output: true, ..Shape::default() };
    [
        ("llama", Shape::default()),
        ("sliding", Shape::sliding()),
        ("bf16", half),
        ("own-tokens", Shape::language_model("qwen2")),
    ]
}

/// A model with all that sessions of it share.
struct World {
    context: Context,
    model: Model,
    vocabulary: usize,
    widths: Vec<usize>,
}

impl World {
    fn new(name: &str, shape: &Shape) -> Self {
        let context = Context::on(Device::Cuda);
        let directory = shape.write(name, 31);
        let model = Model::load(&context, &directory, None).expect("a model");
        let widths = model.widths();
        Self { context, model, vocabulary: shape.vocabulary, widths }
    }

    fn session(&self, sequences: usize) -> Session {
        let options = spec_session_options {
            max_sequences: sequences as i32,
            max_rows: (sequences * CHUNK.max(ROWS)) as i32,
            max_drafts: DRAFTS as i32,
            max_position: MAX_POSITION as i32,
            page_size: PAGE_SIZE as i32,
            max_pages: (sequences * TABLE + 3) as i32,
            ..session_options()
        };
        Session::create(&self.model, &options).expect("a session").with_own_stream()
    }
}

/// How the sequences of a batch sample.
#[derive(Clone, Copy, Debug)]
enum Sampled {
    None,
    All,
    Some,
}

/// All arrays of a batch, at places that a capture may remember.
#[derive(Clone)]
struct Batch {
    sequences: usize,
    /// What the host says of prompts and rounds, where it does not leave that to the records.
    position: Buffer<i32>,
    row_count: Buffer<i32>,
    next_token: Buffer<i32>,
    row_begin: Buffer<i32>,
    num_drafts: Buffer<i32>,
    limit: Buffer<i32>,
    context_begin: Buffer<i32>,
    block_table: Buffer<i32>,
    tokens: Buffer<i32>,
    features: Vec<Matrix>,
    sampling: Option<SamplingColumns>,
    /// Of batches that are sampled.
    presence: Buffer<f32>,
    logits: Matrix,
    // What calls write.
    records: Buffer<i32>,
    drafts: Buffer<i32>,
    proposed: Buffer<i32>,
    draft_logits: Matrix,
    counters: Buffer<u64>,
}

impl Batch {
    fn new(world: &World, sequences: usize, sampled: Sampled) -> Self {
        let rows = sequences * CHUNK.max(ROWS);
        let columns = |value| Buffer::filled(sequences, value);
        let matrix = |rows, columns| Matrix::filled(rows, columns, Dtype::F32, 0.0);
        let sampling = !matches!(sampled, Sampled::None);
        let draft_vocabulary = world.model.info().draft_vocabulary as usize;
        Self {
            sequences,
            position: columns(0),
            row_count: columns(0),
            next_token: columns(0),
            row_begin: columns(0),
            num_drafts: columns(0),
            limit: columns(i32::MAX),
            context_begin: columns(0),
            block_table: Buffer::filled(sequences * TABLE, 0),
            tokens: Buffer::filled(rows, 0),
            features: world.widths.iter().map(|&width| matrix(rows, width)).collect(),
            sampling: sampling.then(|| {
                SamplingColumns::of((0..sequences).map(|index| Sampling {
                    temperature: if matches!(sampled, Sampled::Some) && index % 2 == 0 {
                        0.0
                    } else {
                        0.9
                    },
                    top_p: 0.95,
                    ..Sampling::default()
                }))
            }),
            presence: Buffer::filled(sequences, 0.0),
            logits: matrix(sequences * ROWS, world.vocabulary),
            records: Buffer::filled(sequences * STRIDE, 0),
            drafts: Buffer::filled(sequences * DRAFTS, -1),
            proposed: columns(0),
            draft_logits: matrix(sequences * DRAFTS, draft_vocabulary),
            counters: Buffer::filled(3 + DRAFTS, 0),
        }
    }

    fn results(&self) -> Results {
        let row = |row| self.draft_logits.row(row).into_iter().map(f32::to_bits);
        Results {
            records: self.records.to_vec(),
            drafts: self.drafts.to_vec(),
            proposed: self.proposed.to_vec(),
            draft_logits: (0..self.draft_logits.rows).flat_map(row).collect(),
            counters: self.counters.to_vec(),
        }
    }
}

/// What replays and single calls must agree on, bit for bit.
#[derive(Debug, PartialEq)]
struct Results {
    records: Vec<i32>,
    drafts: Vec<i32>,
    proposed: Vec<i32>,
    draft_logits: Vec<u32>,
    counters: Vec<u64>,
}

/// A batch, and the structs that name its arrays in calls.
struct Calls<'a> {
    world: &'a World,
    session: &'a Session,
    batch: Box<Batch>,
    sampling: Option<Box<spec_sampling>>,
    processing: Box<spec_processing>,
    features: Vec<spec_tensor>,
    draft_logits: Box<spec_tensor>,
    distribution: Box<spec_distribution>,
    /// What the distribution names.
    _ids: Buffer<i32>,
    workspace: Memory,
    workspace_size: u64,
}

impl<'a> Calls<'a> {
    fn new(world: &'a World, session: &'a Session, batch: Batch) -> Self {
        let mut batch = Box::new(batch);
        let features = batch.features.iter().map(Matrix::tensor).collect();
        let draft_logits = Box::new(batch.draft_logits.output_tensor(Device::Cuda));
        let ids: Buffer<i32> = world.model.draft_token_ids().into();
        let distribution = Box::new(spec_distribution {
            logits: *draft_logits,
            token_ids: if ids.is_empty() { null() } else { ids.as_ptr() },
            ..Versioned::blank()
        });
        let sampling = batch.sampling.as_ref().map(|columns| Box::new(columns.view()));
        let processing =
            Box::new(spec_processing { presence: batch.presence.as_ptr(), ..Versioned::blank() });
        let mut calls = Self {
            world,
            session,
            batch,
            sampling,
            processing,
            features,
            draft_logits,
            distribution,
            _ids: ids,
            workspace: Memory::filled(1, 0),
            workspace_size: 0,
        };
        let (args, mut size) = (calls.verification(), 0);
        let context = world.context.handle;
        // SAFETY: a live handle; only sizes are looked at.
        attempt(|error| unsafe { spec_verify_workspace_size(context, &args, &mut size, error) })
            .expect("a size");
        (calls.workspace, calls.workspace_size) = (Memory::filled(size, 0xA5), size);
        calls
    }

    fn sampling(&self) -> *const spec_sampling {
        self.sampling.as_deref().map_or(null(), from_ref)
    }

    fn record_field(&self, field: i32) -> *const i32 {
        self.batch.records[field as usize..].as_ptr()
    }

    /// The records say where the roots are; drafts are followed, or tested where they were sampled.
    fn verification(&self) -> spec_verify_args {
        let (batch, tested) = (&self.batch, self.sampling.is_some());
        spec_verify_args {
            num_sequences: batch.sequences as i32,
            max_drafts: DRAFTS as i32,
            logits: batch.logits.tensor(),
            num_drafts: batch.proposed.as_ptr(),
            draft_tokens: batch.drafts.as_ptr(),
            position: self.record_field(SPEC_DECISION_NEXT_POSITION),
            position_stride: STRIDE as i32,
            limit: batch.limit.as_ptr(),
            sampling: self.sampling(),
            draft: if tested { from_ref(&*self.distribution) } else { null() },
            processing: if tested { from_ref(&*self.processing) } else { null() },
            decision_stride: STRIDE as i32,
            decisions: batch.records.as_ptr().cast_mut(),
            counters: batch.counters.as_ptr().cast_mut(),
            workspace: self.workspace.address(),
            workspace_size: self.workspace_size,
            ..Versioned::blank()
        }
    }

    /// The arrays of a call that takes positions and rows from the host.
    fn commit(&self) -> spec_draft_args {
        let batch = &self.batch;
        spec_draft_args {
            num_sequences: batch.sequences as i32,
            num_rows: batch.tokens.len() as i32,
            max_drafts: DRAFTS as i32,
            position: batch.position.as_ptr(),
            row_count: batch.row_count.as_ptr(),
            next_token: batch.next_token.as_ptr(),
            row_begin: batch.row_begin.as_ptr(),
            num_drafts: batch.num_drafts.as_ptr(),
            limit: batch.limit.as_ptr(),
            context_begin: batch.context_begin.as_ptr(),
            block_table: batch.block_table.as_ptr(),
            block_table_stride: TABLE as i32,
            tokens: batch.tokens.as_ptr(),
            features: self.features.as_ptr(),
            num_features: self.features.len() as i32,
            sampling: self.sampling(),
            draft_tokens: batch.drafts.as_ptr().cast_mut(),
            num_proposed: batch.proposed.as_ptr().cast_mut(),
            draft_logits: &*self.draft_logits,
            ..Versioned::blank()
        }
    }

    /// The arrays of a call that takes them from the decision records.
    fn round(&self) -> spec_draft_args {
        spec_draft_args {
            decision_stride: STRIDE as i32,
            position: self.record_field(SPEC_DECISION_NEXT_POSITION),
            row_count: self.record_field(SPEC_DECISION_EMITTED),
            next_token: self.record_field(SPEC_DECISION_NEXT_TOKEN),
            ..self.commit()
        }
    }

    /// Verifies, then drafts from the records where they lie.
    fn enqueue_round(&self) {
        let (handle, args) = (self.world.context.handle, self.verification());
        let stream = self.session.stream.handle();
        // SAFETY: live handles; the arrays have the documented sizes and live as long as `self`.
        attempt(|error| unsafe { spec_verify(handle, &args, stream, error) })
            .expect("a verification");
        self.session.enqueue(&self.round()).expect("a drafting call");
    }

    fn enqueue_commit(&self) {
        self.session.enqueue(&self.commit()).expect("a drafting call");
    }

    fn settle(&self) {
        self.session.stream.synchronize();
        self.session.poll().expect("no fault");
    }
}

/// A sequence as the host's scheduler sees it.
#[derive(Clone, Debug)]
struct Sequence {
    position: usize,
    table: Vec<i32>,
    seed: u64,
}

/// A scheduler: it rewrites the arrays of a batch between calls. Equal ones that see equal results
/// write the same.
#[derive(Clone)]
struct Scheduler {
    random: Random,
    sequences: Vec<Sequence>,
    free: Vec<i32>,
    vocabulary: usize,
}

impl Scheduler {
    fn new(world: &World, sequences: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut free: Vec<i32> = (0..(sequences * TABLE + 3) as i32).collect();
        random.shuffle(&mut free);
        let mut scheduler =
            Self { random, sequences: Vec::new(), free, vocabulary: world.vocabulary };
        for _ in 0..sequences {
            let sequence = scheduler.arrive(Vec::new());
            scheduler.sequences.push(sequence);
        }
        scheduler
    }

    /// A new request, in other pages than the one before had.
    fn arrive(&mut self, gone: Vec<i32>) -> Sequence {
        self.free.extend(gone);
        let random = &mut self.random;
        random.shuffle(&mut self.free);
        let table = self.free.split_off(self.free.len() - TABLE);
        Sequence { position: 0, table, seed: random.bits() }
    }

    /// Puts new requests in the places of those that have no room left.
    fn replace_finished(&mut self) {
        for index in 0..self.sequences.len() {
            if self.sequences[index].position + CHUNK + 2 * ROWS > MAX_POSITION {
                let gone = std::mem::take(&mut self.sequences[index].table);
                self.sequences[index] = self.arrive(gone);
            }
        }
    }

    /// Writes what does not depend on the kind of call.
    fn write_common(&mut self, batch: &mut Batch) {
        for (index, sequence) in self.sequences.iter().enumerate() {
            batch.block_table[index * TABLE..][..TABLE].copy_from_slice(&sequence.table);
            if let Some(sampling) = &mut batch.sampling {
                sampling.seed[index] = sequence.seed;
                batch.presence[index] = (sequence.seed % 3) as f32;
            }
            batch.num_drafts[index] = self.random.below(DRAFTS + 1) as i32;
            batch.limit[index] =
                if self.random.chance(0.3) { 1 + self.random.below(4) as i32 } else { i32::MAX };
        }
        for feature in &mut batch.features {
            for row in 0..feature.rows {
                let elements = self.random.normals(feature.columns);
                feature.set_row(row, &elements);
            }
        }
    }

    /// Chunks of prompts beside single rows and rows of rounds, and sequences that take no part.
    fn write_commit(&mut self, batch: &mut Batch) {
        self.replace_finished();
        self.write_common(batch);
        let mut row = 0;
        for (index, sequence) in self.sequences.iter_mut().enumerate() {
            let count = match self.random.below(4) {
                0 if sequence.position > 0 => 0,
                1 => 1,
                2 => 1 + self.random.below(ROWS),
                _ => 1 + self.random.below(CHUNK),
            };
            batch.row_begin[index] = row as i32;
            batch.row_count[index] = count as i32;
            row += count;
            sequence.position += count;
            batch.position[index] = sequence.position as i32;
            batch.next_token[index] = self.random.below(self.vocabulary) as i32;
        }
        for token in &mut batch.tokens[..] {
            *token = self.random.below(self.vocabulary) as i32;
        }
    }

    /// What the target finds for roots and drafts: it agrees with some drafts.
    fn write_round(&mut self, batch: &mut Batch) {
        self.write_common(batch);
        for index in 0..batch.sequences {
            batch.row_begin[index] = (index * ROWS) as i32;
            for step in 0..ROWS {
                let mut logits = self.random.normals(self.vocabulary);
                let draft = batch.drafts[index * DRAFTS + step.min(DRAFTS - 1)];
                if step < DRAFTS && draft >= 0 && self.random.chance(0.7) {
                    logits[draft as usize] += 8.0;
                }
                batch.logits.set_row(index * ROWS + step, &logits);
                let token =
                    if step == 0 { self.random.below(self.vocabulary) as i32 } else { draft };
                batch.tokens[index * ROWS + step] = token.max(0);
            }
        }
    }

    /// Begins rounds where commits have ended.
    fn begin_rounds(&self, batch: &mut Batch) {
        for (index, sequence) in self.sequences.iter().enumerate() {
            batch.records[index * STRIDE + SPEC_DECISION_NEXT_POSITION as usize] =
                sequence.position as i32;
        }
    }

    /// Takes over where the records say that the sequences are; full ones start again.
    fn read_records(&mut self, batch: &mut Batch) {
        for index in 0..batch.sequences {
            let place = index * STRIDE + SPEC_DECISION_NEXT_POSITION as usize;
            let position = batch.records[place] as usize;
            // A rollback: an earlier position is a smaller number, and nothing else.
            let full = position + 2 * ROWS > MAX_POSITION;
            let position = if full { position / 2 } else { position };
            self.sequences[index].position = position;
            batch.records[place] = position as i32;
        }
    }
}

/// A path through the same work: calls one by one, or replays of what was captured.
struct Path<'a> {
    calls: Calls<'a>,
    scheduler: Scheduler,
    graphs: Option<[device::stream::Graph; 2]>,
}

impl<'a> Path<'a> {
    fn new(calls: Calls<'a>, scheduler: Scheduler, captures: bool) -> Self {
        let stream = &calls.session.stream;
        let graphs = captures.then(|| {
            [stream.capture(|| calls.enqueue_commit()), stream.capture(|| calls.enqueue_round())]
        });
        Self { calls, scheduler, graphs }
    }

    fn commit(&mut self) {
        self.scheduler.write_commit(&mut self.calls.batch);
        match &self.graphs {
            Some([commit, _]) => commit.launch(&self.calls.session.stream),
            None => self.calls.enqueue_commit(),
        }
        self.calls.settle();
    }

    fn round(&mut self) {
        self.scheduler.write_round(&mut self.calls.batch);
        match &self.graphs {
            Some([_, round]) => round.launch(&self.calls.session.stream),
            None => self.calls.enqueue_round(),
        }
        self.calls.settle();
        self.scheduler.read_records(&mut self.calls.batch);
    }
}

/// Takes both paths through prompts and rounds, and compares all that they write.
fn assert_replays_equal_calls(name: &str, shape: &Shape, bucket: usize, sampled: Sampled) {
    let world = World::new(&format!("{name}-{bucket}-{sampled:?}"), shape);
    let sessions = [world.session(bucket), world.session(bucket)];
    let batch = Batch::new(&world, bucket, sampled);
    let scheduler = Scheduler::new(&world, bucket, 5);
    let [mut single, mut replayed] =
        [(&sessions[0], false), (&sessions[1], true)].map(|(session, captures)| {
            let calls = Calls::new(&world, session, batch.clone());
            Path::new(calls, scheduler.clone(), captures)
        });
    let what = format!("{name}, {bucket} sequences, sampled: {sampled:?}");
    let (mut proposed, mut emitted) = (0, 0);
    for turn in 0..2 {
        for step in 0..3 {
            single.commit();
            replayed.commit();
            let same = single.calls.batch.results() == replayed.calls.batch.results();
            assert!(same, "{what}: commit {step} of turn {turn}");
            proposed += single.calls.batch.proposed.iter().sum::<i32>();
        }
        for path in [&mut single, &mut replayed] {
            path.scheduler.begin_rounds(&mut path.calls.batch);
        }
        for step in 0..4 {
            single.round();
            replayed.round();
            let same = single.calls.batch.results() == replayed.calls.batch.results();
            assert!(same, "{what}: round {step} of turn {turn}");
        }
        emitted = single.calls.batch.counters[2];
    }
    assert!(proposed > 0, "{what}: nothing was proposed");
    assert!(emitted > 8, "{what}: {emitted} tokens emitted");
}

#[test]
fn greedy_rounds_are_replayed_as_they_are_called() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    for (name, shape) in shapes() {
        for bucket in [1, 2, 5] {
            assert_replays_equal_calls(name, &shape, bucket, Sampled::None);
        }
    }
}

#[test]
fn sampled_rounds_are_replayed_as_they_are_called() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    for (name, shape) in shapes() {
        for (bucket, sampled) in [(1, Sampled::All), (4, Sampled::Some)] {
            assert_replays_equal_calls(name, &shape, bucket, sampled);
        }
    }
}

/// A world of one shape with the calls of one batch whose prompts are committed.
fn with_calls(name: &str, check: impl FnOnce(&World, &Calls<'_>)) {
    let world = World::new(name, &Shape::default());
    let session = world.session(2);
    let mut batch = Batch::new(&world, 2, Sampled::Some);
    Scheduler::new(&world, 2, 6).write_commit(&mut batch);
    let calls = Calls::new(&world, &session, batch);
    calls.enqueue_commit();
    calls.settle();
    check(&world, &calls);
}

#[test]
fn what_may_not_be_captured_is_refused_and_the_capture_goes_on() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    with_calls("refused", |world, calls| {
        let expected = calls.batch.results();
        let session = calls.session;
        let (handle, stream) = (session.handle, session.stream.handle());
        let mut needs = spec_session_requirements::blank();
        let options = session_options();
        let graph = session.stream.capture(|| {
            // SAFETY: live handles.
            let warm_up = attempt(|error| unsafe { spec_session_warm_up(handle, stream, error) });
            let failure = warm_up.expect_err("a warm-up in a capture");
            assert_eq!(failure.status, SPEC_ERROR_INVALID_ARGUMENT, "{}", failure.message);
            assert!(failure.message.contains("captured"), "{}", failure.message);
            let wrong = spec_draft_args { num_rows: -1, ..calls.commit() };
            session.enqueue(&wrong).expect_err("wrong arguments");
            // What does not work on the device is allowed.
            session.poll().expect("no fault");
            world.context.info();
            world.model.info();
            let model = world.model.handle;
            // SAFETY: a live handle and sound structs.
            let _ = attempt(|error| unsafe {
                spec_session_get_requirements(model, &options, &mut needs, error)
            });
            assert!(session.stream.is_capturing(), "the capture was spoilt");
            calls.enqueue_commit();
            session.poll().expect("no fault");
            assert!(session.stream.is_capturing(), "the capture was spoilt");
        });
        for _ in 0..2 {
            graph.launch(&session.stream);
            session.poll().expect("no fault");
            calls.settle();
            assert!(calls.batch.results() == expected);
        }
    });
}

#[test]
fn captured_work_does_nothing_until_it_is_launched() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    with_calls("idle", |_, calls| {
        let proposed = calls.batch.proposed.as_ptr().cast_mut();
        // SAFETY: the device is idle, and nobody else looks at the array.
        unsafe { *proposed = -55 };
        let graph = calls.session.stream.capture(|| calls.enqueue_commit());
        calls.settle();
        assert_eq!(calls.batch.proposed[0], -55, "a capture did the work");
        graph.launch(&calls.session.stream);
        calls.settle();
        assert!(calls.batch.proposed[0] >= 0, "a launch did nothing");
    });
}

#[test]
fn a_fault_in_a_replay_is_reported_by_the_poll() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    with_calls("faults", |_, calls| {
        let graph = calls.session.stream.capture(|| calls.enqueue_commit());
        let position = calls.batch.position.as_ptr().cast_mut();
        // SAFETY: the device is idle, and nobody else looks at the array; here and below.
        let good = unsafe { position.add(1).replace(-4) };
        graph.launch(&calls.session.stream);
        calls.session.stream.synchronize();
        let failure = calls.session.poll().expect_err("a fault");
        assert!(failure.message.contains("sequence 1"), "{}", failure.message);
        assert_eq!(calls.batch.proposed[1], 0);
        // SAFETY: as above.
        unsafe { *position.add(1) = good };
        graph.launch(&calls.session.stream);
        calls.settle();
    });
}

#[test]
fn two_streams_work_on_two_sessions_at_the_same_time() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    for (name, shape) in shapes() {
        let world = World::new(&format!("streams-{name}"), &shape);
        let sessions = [world.session(2), world.session(2)];
        let alone = [world.session(2), world.session(2)];
        let path = |session, seed| {
            let batch = Batch::new(&world, 2, Sampled::Some);
            let scheduler = Scheduler::new(&world, 2, seed);
            Path::new(Calls::new(&world, session, batch), scheduler, false)
        };
        let mut expected = [path(&alone[0], 7), path(&alone[1], 8)];
        let mut together = [path(&sessions[0], 7), path(&sessions[1], 8)];
        // Commits of both are under way, then rounds of both.
        for _ in 0..2 {
            expected.iter_mut().for_each(Path::commit);
            for path in &mut together {
                path.scheduler.write_commit(&mut path.calls.batch);
            }
            together.iter().for_each(|path| path.calls.enqueue_commit());
            together.iter().for_each(|path| path.calls.settle());
        }
        for path in expected.iter_mut().chain(&mut together) {
            path.scheduler.begin_rounds(&mut path.calls.batch);
        }
        for _ in 0..3 {
            expected.iter_mut().for_each(Path::round);
            for path in &mut together {
                path.scheduler.write_round(&mut path.calls.batch);
            }
            together.iter().for_each(|path| path.calls.enqueue_round());
            together.iter().for_each(|path| path.calls.settle());
            for path in &mut together {
                path.scheduler.read_records(&mut path.calls.batch);
            }
        }
        for (expected, together) in expected.iter().zip(&together) {
            assert!(expected.calls.batch.results() == together.calls.batch.results(), "{name}");
        }
    }
}

#[test]
fn a_stream_is_captured_while_another_one_works() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    let world = World::new("beside", &Shape::default());
    let sessions = [world.session(2), world.session(2)];
    let mut batch = Batch::new(&world, 2, Sampled::None);
    Scheduler::new(&world, 2, 9).write_commit(&mut batch);
    let [working, captured] =
        [&sessions[0], &sessions[1]].map(|session| Calls::new(&world, session, batch.clone()));
    working.enqueue_commit();
    working.settle();
    let expected = working.batch.results();
    let graph = captured.session.stream.capture(|| {
        std::thread::scope(|scope| {
            let session = working.session;
            let args = Shared(working.commit());
            // Another thread works on another stream all the while.
            scope.spawn(move || {
                let Shared(args) = { args };
                session.draft(&args).expect("a call");
            });
            captured.enqueue_commit();
        });
    });
    assert!(working.batch.results() == expected);
    graph.launch(&captured.session.stream);
    captured.settle();
    assert!(captured.batch.results() == expected);
}

/// Arguments that another thread uses while this one keeps their arrays.
struct Shared(spec_draft_args);

// SAFETY: the arrays live longer than the thread, and the device alone writes to them.
unsafe impl Send for Shared {}

#[test]
fn a_verification_and_the_drafting_that_reads_its_records_may_be_on_two_streams() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    let world = World::new("events", &Shape::default());
    let sessions = [world.session(3), world.session(3)];
    let path = |session| {
        let batch = Batch::new(&world, 3, Sampled::Some);
        Path::new(Calls::new(&world, session, batch), Scheduler::new(&world, 3, 10), false)
    };
    let mut expected = path(&sessions[0]);
    let mut split = path(&sessions[1]);
    expected.commit();
    split.commit();
    for path in [&mut expected, &mut split] {
        path.scheduler.begin_rounds(&mut path.calls.batch);
    }
    let other = Stream::on(Device::Cuda);
    for _ in 0..4 {
        expected.round();
        split.scheduler.write_round(&mut split.calls.batch);
        let (handle, args) = (world.context.handle, split.calls.verification());
        // SAFETY: live handles; the arrays live as long as the path.
        attempt(|error| unsafe { spec_verify(handle, &args, other.handle(), error) })
            .expect("a verification");
        split.calls.session.stream.wait_for(&other);
        split.calls.session.enqueue(&split.calls.round()).expect("a drafting call");
        split.calls.settle();
        assert!(expected.calls.batch.results() == split.calls.batch.results());
        split.scheduler.read_records(&mut split.calls.batch);
    }
    drop(split);
    driver::synchronize();
}

/// Launches of a round that proposes four tokens, verification not counted: what the table of BENCHMARKS.md
/// is made of. The names are those of reference checkpoints.
const LAUNCHES: [(&str, usize); 15] = [
    ("dflash/full_default", 17),
    ("dflash2/anchor_sliding", 25),
    ("dflash2/fillin", 38),
    ("dspark/gated_noconfmarkov", 26),
    ("dspark/nomarkov_sliding", 15),
    ("dspark/rnn_fillin", 32),
    ("dspark/vanilla", 24),
    ("eagle/plain", 35),
    ("eagle3/llama_base", 29),
    ("eagle3/qwen3_2layer_all", 49),
    ("mtp/qwen3_postnorm", 35),
    ("mtp/qwen3_5_dense_gated", 47),
    ("mtp/qwen3_next_moe", 75),
    ("peagle/llama_base", 13),
    ("xpress/fillin", 39),
];

#[test]
fn a_round_of_every_kind_is_captured_in_so_many_launches() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    const PROMPT: usize = 9;
    let mut counted = 0;
    for case in golden::supported_cases() {
        let model = case.load(&Context::on(Device::Cuda)).expect("a model");
        let info = model.info();
        let drafts = info.most_drafts.min(4);
        let options = spec_session_options {
            max_sequences: 2,
            max_rows: 2 * PROMPT as i32,
            max_drafts: drafts,
            max_position: 64,
            ..session_options()
        };
        let session = Session::create(&model, &options).expect("a session");
        let mut random = Random::new(3);
        let text = Text::random(&mut random, PROMPT + 3, info.vocabulary, &model.widths());
        let call = |rows: std::ops::Range<usize>, drafts| {
            let turns =
                [0, 1].map(|slot| Turn::new(&text, rows.clone(), drafts, Place::Slot(slot)));
            DraftCall { logits: None, ..DraftCall::of(&turns) }
        };
        call(0..PROMPT, 0).run(&session).expect("a commit");
        let round = call(PROMPT..PROMPT + 2, drafts);
        let expected = round.run(&session).expect("a round");
        let prepared = round.prepare(session.outputs);
        let graph = session.stream.capture(|| {
            session.enqueue(&prepared.args).expect("a captured round");
        });
        for _ in 0..2 {
            graph.launch(&session.stream);
            session.stream.synchronize();
            assert_eq!(prepared.drafts(), expected, "{}", case.name);
        }
        let name = case.name.trim_start_matches("speculators/");
        if let Some((_, launches)) = LAUNCHES.iter().find(|(known, _)| *known == name) {
            assert_eq!((drafts, graph.launches), (4, *launches), "{name}");
            counted += 1;
        }
    }
    assert_eq!(counted, LAUNCHES.len(), "checkpoints that are not there");
}

/// Launches of a call that drafts trees of 8 nodes on 3 levels below the root: of a given shape, with the most
/// probable tokens or with siblings that are drawn, and dynamic ones that expand 2 nodes on a level.
const TREE_LAUNCHES: [(&str, [usize; 3]); 3] = [
    ("features", [33, 36, 35]),
    ("heads", [23, 26, 25]),
    ("speculators/dflash2/fillin", [48, 51, 50]),
];

#[test]
fn trees_are_captured_in_so_many_launches_and_replayed_with_other_arrays() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    const PROMPT: usize = 9;
    let parents = vec![-1, 0, 0, 0, 1, 1, 2, 4];
    let shapes = [
        TreeShape::Static(parents.clone()),
        TreeShape::Stochastic(parents),
        TreeShape::Dynamic { nodes: 8, depth: 3, width: 2 },
    ];
    let context = Context::on(Device::Cuda);
    for (name, expected) in TREE_LAUNCHES {
        let of = |directory: std::path::PathBuf| Model::load(&context, &directory, None);
        let model = match name {
            "heads" => of(MlpShape::default().write("tree-heads", 3)),
            "features" => of(Shape::default().write("tree-features", 3)),
            _ => {
                let mut cases = golden::supported_cases().into_iter();
                let case = cases.find(|case| case.name == name).expect("a reference checkpoint");
                case.load(&context)
            }
        };
        let model = model.expect("a model");
        let options = spec_session_options {
            max_sequences: 2,
            max_rows: 2 * PROMPT as i32,
            max_drafts: 7,
            max_position: 64,
            max_tree_width: 4,
            max_tree_depth: 3,
            ..session_options()
        };
        let session = Session::create(&model, &options).expect("a session");
        let vocabulary = model.info().vocabulary;
        let text = Text::random(&mut Random::new(3), PROMPT + 3, vocabulary, &model.widths());
        let mut launches = [0; 3];
        for (shape, launches) in shapes.iter().zip(&mut launches) {
            let sampling = Sampling { temperature: 0.9, seed: 4, ..Sampling::default() };
            let call = |sampling: Sampling| {
                let turns = [0, 1].map(|slot| {
                    let turn = Turn::new(&text, 0..PROMPT, 7, Place::Slot(slot));
                    if slot == 0 { turn } else { Turn { sampling, ..turn } }
                });
                DraftCall { logits: None, ..DraftCall::of(&turns) }.with_trees(shape)
            };
            let call = call(sampling);
            let mut prepared = call.prepare(session.outputs);
            let mut num_drafts = Buffer::filled(2, 0);
            prepared.args.num_drafts = num_drafts.as_ptr();
            let graph = session.stream.capture(|| {
                session.enqueue(&prepared.args).expect("a captured call");
            });
            *launches = graph.launches;
            for wanted in [[7, 7], [5, 0], [1, 6], [7, 7]] {
                num_drafts.copy_from_slice(&wanted);
                graph.launch(&session.stream);
                session.stream.synchronize();
                let called = DraftCall { num_drafts: Some(wanted.to_vec()), ..call.clone() };
                let called = called.run(&session).expect("a call");
                assert_eq!(prepared.drafts(), called, "{name}, {shape:?}, {wanted:?}");
            }
            session.poll().expect("no fault");
        }
        assert_eq!(launches, expected, "{name}");
    }
}
