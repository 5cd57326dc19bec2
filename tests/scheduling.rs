//! What a sequence drafts depends on its own text alone: not on its neighbours, its pages, its
//! slot, the sizes of its commits, or the threads that work on it.

mod device;
mod host;

use device::memory::Memory;
use host::checkpoint::{MlpShape, Shape};
use host::draft::{DraftCall, Drafts, Place, Sampling, SamplingColumns, Table, Text, Turn};
use host::golden;
use host::matrix::{Dtype, Matrix};
use host::random::Random;
use host::{Context, Model, Session, Versioned, session_options};
use speculators::capi::*;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

const DRAFTS: i32 = 4;
const PAGE_SIZE: usize = 4;
const MAX_POSITION: usize = 96;

/// Sizes that hold every call of these tests.
fn options() -> spec_session_options {
    spec_session_options {
        max_sequences: 8,
        max_rows: 8 * MAX_POSITION as i32,
        max_drafts: DRAFTS,
        max_position: MAX_POSITION as i32,
        page_size: PAGE_SIZE as i32,
        ..session_options()
    }
}

/// The shapes that most promises are tested with, by name.
fn shapes() -> [(&'static str, Shape); 4] {
    let half = Shape { dtype: Dtype::Bf16, norm_output: true, ..Shape::default() };
    let own_tokens = Shape { window: Some(7), ..Shape::language_model("qwen2") };
    [
        ("llama", Shape::default()),
        ("sliding", Shape::sliding()),
        ("bf16", half),
        ("own-tokens", own_tokens),
    ]
}

/// A loaded speculator: a random one, or a reference checkpoint.
struct World {
    vocabulary: i32,
    model: Model,
}

impl World {
    fn new(test: &str, name: &str, shape: Shape) -> Self {
        Self::on(&Context::with_threads(1), test, name, shape)
    }

    fn on(context: &Context, test: &str, name: &str, shape: Shape) -> Self {
        let directory = shape.write(&format!("{test}-{name}"), 11);
        Self::of(Model::load(context, &directory, None).expect("a model"))
    }

    fn of(model: Model) -> Self {
        Self { vocabulary: model.info().vocabulary, model }
    }

    fn text(&self, random: &mut Random, len: usize) -> Text {
        Text::random(random, len, self.vocabulary, &self.model.widths())
    }

    /// 1 where the next token has a row of its own, as rows read their own tokens.
    fn next_rows(&self) -> usize {
        usize::from(self.model.info().num_features == 0)
    }

    fn session(&self) -> Session {
        self.session_with(options())
    }

    fn session_with(&self, options: spec_session_options) -> Session {
        Session::create(&self.model, &options).expect("a session")
    }

    /// What one commit of these rows in an empty slot proposes.
    fn draft(&self, text: &Text, rows: Range<usize>) -> Drafts {
        one(&self.session(), Turn::new(text, rows, DRAFTS, Place::Slot(0)))
    }
}

/// Runs a test on each shape.
fn for_each_shape(test: &str, run: impl Fn(&World)) {
    for (name, shape) in shapes() {
        println!("{name}");
        run(&World::new(test, name, shape));
    }
}

/// Runs a test on each shape, and on a checkpoint of each kind.
fn for_each_model(test: &str, run: impl Fn(&World)) {
    for_each_shape(test, &run);
    for_each_kind(test, run);
}

/// Runs a test on a reference checkpoint of each kind, and on one of the kind that has none.
fn for_each_kind(test: &str, run: impl Fn(&World)) {
    let mut kinds: Vec<String> = Vec::new();
    for case in golden::supported_cases() {
        if !kinds.contains(&case.kind) {
            println!("{}", case.name);
            run(&World::of(case.load(&Context::with_threads(1)).expect("a model")));
            kinds.push(case.kind);
        }
    }
    println!("mlp");
    assert!(!kinds.contains(&"mlp".to_owned()), "the reference data have one");
    let directory = mlp().write(&format!("{test}-mlp"), 11);
    run(&World::of(Model::load(&Context::with_threads(1), &directory, None).expect("a model")));
}

/// Heads that draft as much as these tests ask for.
fn mlp() -> MlpShape {
    MlpShape { steps: DRAFTS as usize, ..MlpShape::default() }
}

/// A call of one turn.
fn one(session: &Session, turn: Turn<'_>) -> Drafts {
    run(session, &DraftCall::of(&[turn])).remove(0)
}

fn run(session: &Session, call: &DraftCall) -> Vec<Drafts> {
    let drafts = call.run(session).expect("a drafting call");
    session.poll().expect("no fault");
    drafts
}

/// The rows that one call commits for a request, and how many drafts follow.
#[derive(Clone, Debug)]
struct Round {
    rows: Range<usize>,
    drafts: i32,
}

/// A request with all its rounds, as its target will accept them.
struct Request {
    text: Text,
    rounds: Vec<Round>,
    sampling: Sampling,
}

impl Request {
    /// A prompt in chunks, then rounds in which some drafts are accepted.
    fn random(world: &World, random: &mut Random) -> Self {
        let text = world.text(random, MAX_POSITION - DRAFTS as usize);
        let prompt = 1 + random.below(40);
        let mut rounds: Vec<Round> = Vec::new();
        let mut position = 0;
        while position + 1 < text.tokens.len() {
            let is_prompt = position < prompt;
            let most = if is_prompt { prompt - position } else { 1 + DRAFTS as usize };
            let rows = position..(position + 1 + random.below(most)).min(text.tokens.len() - 1);
            position = rows.end;
            let more = is_prompt && position < prompt;
            let drafts = if more { 0 } else { random.below(1 + DRAFTS as usize) as i32 };
            rounds.push(Round { rows, drafts });
        }
        let sampling = if random.chance(0.5) {
            Sampling::default()
        } else {
            Sampling { temperature: 0.9, top_k: 20, seed: random.bits(), ..Sampling::default() }
        };
        Self { text, rounds, sampling }
    }

    fn turn<'a>(&'a self, rows: Range<usize>, drafts: i32, place: Place<'a>) -> Turn<'a> {
        Turn { sampling: self.sampling, ..Turn::new(&self.text, rows, drafts, place) }
    }

    /// What the rounds propose when nothing else happens.
    fn undisturbed(&self, world: &World) -> Vec<Drafts> {
        let session = world.session();
        let rounds = self.rounds.iter();
        rounds
            .map(|round| one(&session, self.turn(round.rows.clone(), round.drafts, Place::Slot(0))))
            .collect()
    }
}

/// A session over memory of the host, with a pool of pages in random order. Pages that are free
/// hold NaN.
struct Server {
    session: Session,
    free: Vec<i32>,
    page_bytes: usize,
    /// Rows that a proposal writes for the next token.
    next_rows: usize,
    pool: Memory,
    _workspace: Memory,
}

impl Server {
    fn new(world: &World, max_pages: i32, random: &mut Random) -> Self {
        let mut options = spec_session_options { max_pages, ..options() };
        let needs = Session::requirements(&world.model, &options).expect("the requirements");
        let pool = Memory::filled(needs.kv_pool_size, 0xFF);
        let workspace = Memory::filled(needs.workspace_size, 0xFF);
        (options.kv_pool, options.kv_pool_size) = (pool.address(), needs.kv_pool_size);
        (options.workspace, options.workspace_size) = (workspace.address(), needs.workspace_size);
        let mut free: Vec<i32> = (0..needs.num_pages).collect();
        random.shuffle(&mut free);
        let page_bytes = needs.page_bytes as usize;
        Self {
            session: world.session_with(options),
            free,
            page_bytes,
            next_rows: world.next_rows(),
            pool,
            _workspace: workspace,
        }
    }

    fn page(&self, page: i32) -> Vec<u8> {
        let begin = page as usize * self.page_bytes;
        self.pool.read(begin..begin + self.page_bytes)
    }

    fn set_page(&self, page: i32, contents: &[u8]) {
        assert_eq!(contents.len(), self.page_bytes);
        self.pool.write(page as usize * self.page_bytes, contents);
    }

    /// Makes a table reach the last position that a turn writes; false if the pool is exhausted.
    fn reach(&mut self, table: &mut Vec<i32>, round: &Round) -> bool {
        let behind = match round.drafts {
            0 => 0,
            drafts => drafts as usize - 1 + self.next_rows,
        };
        let positions = round.rows.end + behind;
        let missing = positions.div_ceil(PAGE_SIZE).saturating_sub(table.len());
        if missing > self.free.len() {
            return false;
        }
        table.extend(self.free.drain(self.free.len() - missing..));
        true
    }

    fn give_back(&mut self, table: &mut Vec<i32>, random: &mut Random) {
        for page in table.drain(..) {
            let begin = page as usize * self.page_bytes;
            self.pool.fill(begin..begin + self.page_bytes, 0xFF);
            let place = random.below(self.free.len() + 1);
            self.free.insert(place, page);
        }
    }
}

/// A request on the server.
struct Running<'a> {
    request: &'a Request,
    expected: &'a [Drafts],
    next: usize,
    table: Vec<i32>,
    /// The contents of the pages, while they are swapped out.
    swapped: Option<Vec<Vec<u8>>>,
    /// Everything has to be committed again.
    preempted: bool,
}

impl<'a> Running<'a> {
    fn new(request: &'a Request, expected: &'a [Drafts]) -> Self {
        Self { request, expected, next: 0, table: Vec::new(), swapped: None, preempted: false }
    }

    /// The next round, from position 0 on if the pages were lost.
    fn round(&self) -> Option<Round> {
        let round = self.request.rounds.get(self.next)?;
        let first = if self.preempted { 0 } else { round.rows.start };
        Some(Round { rows: first..round.rows.end, drafts: round.drafts })
    }

    /// One of the things that a scheduler does to a request between two steps.
    fn disturb(&mut self, server: &mut Server, random: &mut Random) {
        if self.swapped.is_some() || self.table.is_empty() {
            return;
        }
        match random.below(3) {
            0 => {
                self.preempted = true;
                server.give_back(&mut self.table, random);
            }
            1 => {
                let pages = self.table.iter().map(|&page| server.page(page));
                self.swapped = Some(pages.collect());
                server.give_back(&mut self.table, random);
            }
            _ => self.detour(server, random),
        }
    }

    /// Commits rows that are rolled back at once: the next round begins where it would have.
    fn detour(&self, server: &Server, random: &mut Random) {
        let Some(Round { rows, .. }) = self.round() else { return };
        let mut text = self.request.text.clone();
        random.shuffle(&mut text.tokens);
        let room = (self.table.len() * PAGE_SIZE).saturating_sub(rows.start + server.next_rows);
        if room > 0 && !self.preempted {
            let end = rows.start + 1 + random.below(room.min(5));
            let rows = rows.start..end.min(text.tokens.len() - 1);
            one(&server.session, Turn::new(&text, rows, 1, Place::Pages(&self.table)));
        }
    }

    /// Brings swapped pages back to wherever there is room.
    fn swap_in(&mut self, server: &mut Server) {
        let Some(contents) = self.swapped.take() else { return };
        if server.free.len() < contents.len() {
            self.swapped = Some(contents);
            return;
        }
        for page in contents {
            let place = server.free.pop().expect("a free page");
            server.set_page(place, &page);
            self.table.push(place);
        }
    }
}

#[test]
fn a_disturbed_schedule_drafts_what_an_undisturbed_one_does() {
    for_each_shape("schedule", |world| {
        (1..device::amount(4, 2)).for_each(|seed| disturb_a_schedule(world, seed))
    });
    if !device::is_shortened() {
        for_each_kind("schedule", |world| disturb_a_schedule(world, 5));
    }
}

/// Runs more requests than there is room for to their ends, with everything that a scheduler does.
fn disturb_a_schedule(world: &World, seed: u64) {
    let mut random = Random::new(seed);
    let requests: Vec<Request> = (0..9).map(|_| Request::random(world, &mut random)).collect();
    let expected: Vec<_> = requests.iter().map(|request| request.undisturbed(world)).collect();
    // Too few pages for all requests at once.
    let mut server = Server::new(world, 60, &mut random);
    let waiting = requests.iter().zip(&expected);
    let mut waiting: Vec<Running<'_>> =
        waiting.map(|(request, expected)| Running::new(request, expected)).collect();
    let mut running: Vec<Running<'_>> = Vec::new();
    let mut compared = 0;
    while !(waiting.is_empty() && running.is_empty()) {
        if running.len() < 5 && !waiting.is_empty() {
            running.push(waiting.swap_remove(random.below(waiting.len())));
        }
        random.shuffle(&mut running);
        for request in &mut running {
            if random.chance(0.1) {
                request.disturb(&mut server, &mut random);
            }
            request.swap_in(&mut server);
        }
        let stepped = step(&mut server, &mut running, &mut random);
        compared += stepped;
        if stepped == 0 {
            // Nobody has room: the last one makes some, as schedulers do.
            let last = running.last_mut().expect("a running request");
            (last.preempted, last.swapped) = (true, None);
            server.give_back(&mut last.table, &mut random);
        }
        if random.chance(0.01) && running.len() > 1 {
            let mut cancelled = running.swap_remove(0);
            server.give_back(&mut cancelled.table, &mut random);
        }
        let finished = running.iter_mut().filter(|request| request.round().is_none());
        finished.for_each(|request| server.give_back(&mut request.table, &mut random));
        running.retain(|request| request.round().is_some());
    }
    assert!(compared > 100, "only {compared} rounds ran");
}

/// Takes as many requests as there is room for through one call, and compares what they propose.
fn step(server: &mut Server, running: &mut [Running<'_>], random: &mut Random) -> usize {
    let mut taking_part = Vec::new();
    for request in running.iter_mut() {
        let Some(round) = request.round() else { continue };
        if request.swapped.is_some() || random.chance(0.2) {
            continue;
        }
        if server.reach(&mut request.table, &round) {
            taking_part.push((request, round));
        }
    }
    let turns: Vec<Turn<'_>> = taking_part
        .iter()
        .map(|(running, round)| {
            running.request.turn(round.rows.clone(), round.drafts, Place::Pages(&running.table))
        })
        .collect();
    let call = DraftCall::of(&turns);
    if turns.is_empty() {
        return 0;
    }
    let drafts = run(&server.session, &call);
    let count = drafts.len();
    for ((request, round), drafts) in taking_part.into_iter().zip(drafts) {
        assert_eq!(drafts, request.expected[request.next], "{round:?}");
        request.next += 1;
        request.preempted = false;
    }
    count
}

#[test]
fn chunks_of_every_size_commit_the_same() {
    for_each_model("chunks", |world| {
        let text = world.text(&mut Random::new(2), 30);
        let expected = world.draft(&text, 0..29);
        for size in (1..29).step_by(device::amount(1, 6)) {
            let session = world.session();
            for first in (0..29).step_by(size) {
                let rows = first..(first + size).min(29);
                let last = rows.end == 29;
                let drafts = if last { DRAFTS } else { 0 };
                let drafts = one(&session, Turn::new(&text, rows, drafts, Place::Slot(0)));
                assert!(!last || drafts == expected, "chunks of {size}");
            }
        }
    });
}

#[test]
fn rows_may_stand_in_any_batch_order() {
    for_each_model("order", |world| {
        let mut random = Random::new(3);
        let texts: Vec<Text> = (0..6).map(|_| world.text(&mut random, 40)).collect();
        let ends: Vec<usize> = texts.iter().map(|_| 1 + random.below(38)).collect();
        let alone = texts.iter().zip(&ends).map(|(text, &end)| world.draft(text, 0..end));
        let alone: Vec<Drafts> = alone.collect();
        for _ in 0..device::amount(10, 3) {
            let mut order: Vec<usize> = (0..texts.len()).collect();
            random.shuffle(&mut order);
            let turn = |(slot, &index): (usize, &usize)| {
                Turn::new(&texts[index], 0..ends[index], DRAFTS, Place::Slot(slot as i32))
            };
            let turns: Vec<Turn<'_>> = order.iter().enumerate().map(turn).collect();
            let mut call = DraftCall::of(&turns);
            reverse_rows(&mut call);
            let together = run(&world.session(), &call);
            for (drafts, &index) in together.iter().zip(&order) {
                assert_eq!(*drafts, alone[index], "order {order:?}");
            }
        }
    });
}

/// Stores the rows of the sequences in the opposite order, as `row_begin` allows.
fn reverse_rows(call: &mut DraftCall) {
    let begins = call.row_begin.clone().expect("row_begin");
    let mut order: Vec<usize> = Vec::new();
    let mut moved = begins.clone();
    for sequence in (0..begins.len()).rev() {
        moved[sequence] = order.len() as i32;
        let first = begins[sequence] as usize;
        order.extend(first..first + call.row_count[sequence] as usize);
    }
    call.tokens = order.iter().map(|&row| call.tokens[row]).collect();
    for feature in &mut call.features {
        let elements: Vec<f32> = order.iter().flat_map(|&row| feature.row(row)).collect();
        *feature = Matrix::new(feature.rows, feature.columns, &elements);
    }
    call.row_begin = Some(moved);
}

#[test]
fn slots_and_block_tables_draft_the_same() {
    for_each_model("slots", |world| {
        let mut random = Random::new(4);
        let texts: Vec<Text> = (0..3).map(|_| world.text(&mut random, 35)).collect();
        let mut server = Server::new(world, 40, &mut random);
        let round = Round { rows: 0..30, drafts: DRAFTS };
        let mut tables = vec![Vec::new(); 3];
        assert!(tables.iter_mut().all(|table| server.reach(table, &round)));
        let turn = |text, place| Turn::new(text, round.rows.clone(), DRAFTS, place);
        let paged: Vec<Turn<'_>> = texts
            .iter()
            .zip(&tables)
            .map(|(text, table)| turn(text, Place::Pages(table)))
            .collect();
        let slots = [7, 0, 3];
        let slotted: Vec<Turn<'_>> =
            texts.iter().zip(slots).map(|(text, slot)| turn(text, Place::Slot(slot))).collect();
        let expected = run(&world.session(), &DraftCall::of(&slotted));
        assert_eq!(run(&server.session, &DraftCall::of(&paged)), expected);
        let mut by_default = DraftCall::of(&slotted);
        by_default.slot = None;
        assert_eq!(run(&world.session(), &by_default), expected);
    });
}

/// A shape large enough for the work to be shared among threads.
fn wide() -> Shape {
    Shape {
        hidden: 256,
        target_hidden: 256,
        intermediate: 512,
        heads: 8,
        kv_heads: 4,
        head_dim: 32,
        vocabulary: 3000,
        draft_vocabulary: 1500,
        ..Shape::default()
    }
}

/// Starts a thread for each task, and counts the calls.
unsafe extern "C" fn thread_per_task(
    calls: *mut c_void,
    tasks: i32,
    task: Option<unsafe extern "C" fn(*mut c_void, i32)>,
    argument: *mut c_void,
) {
    // SAFETY: the test hands over a counter that outlives the context.
    unsafe { &*calls.cast::<AtomicUsize>() }.fetch_add(1, Ordering::Relaxed);
    let (task, argument) = (task.expect("a task"), argument as usize);
    std::thread::scope(|scope| {
        for index in 0..tasks {
            // SAFETY: each task is called once, with the argument given, before this returns.
            scope.spawn(move || unsafe { task(argument as *mut c_void, index) });
        }
    });
}

#[test]
fn threads_of_the_library_or_the_host_draft_the_same() {
    if !device::is_cpu_or_skipped("a CUDA device has threads of its own") {
        return;
    }
    let calls = AtomicUsize::new(0);
    let own = [1, 2, 3].map(Context::with_threads);
    let lent = [2, 5].map(|threads| {
        Context::create(&spec_context_options {
            threads,
            parallel_for: Some(thread_per_task),
            parallel_for_user: (&raw const calls).cast_mut().cast(),
            ..Versioned::blank()
        })
        .expect("a context")
    });
    let mut results: Vec<Vec<Drafts>> = Vec::new();
    for (index, context) in own.iter().chain(&lent).enumerate() {
        let world = World::on(context, "threads", &index.to_string(), wide());
        let mut random = Random::new(5);
        let texts: Vec<Text> = (0..3).map(|_| world.text(&mut random, 60)).collect();
        let turns: Vec<Turn<'_>> = texts
            .iter()
            .enumerate()
            .map(|(slot, text)| {
                Turn::new(text, 0..20 + 15 * slot, DRAFTS, Place::Slot(slot as i32))
            })
            .collect();
        results.push(run(&world.session(), &DraftCall::of(&turns)));
    }
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    assert!(calls.load(Ordering::Relaxed) > 0, "the host's threads did nothing");
}

#[test]
fn a_forked_prefix_drafts_as_if_it_had_been_computed() {
    for_each_model("fork", |world| {
        let margin = world.model.info().prefix_margin as usize;
        let mut random = Random::new(6);
        for _ in 0..device::amount(8, 2) {
            let shared = margin + 1 + random.below(30);
            let first = world.text(&mut random, 60);
            let mut second = world.text(&mut random, 60);
            second.tokens[..shared].copy_from_slice(&first.tokens[..shared]);
            for (feature, from) in second.features.iter_mut().zip(&first.features) {
                (0..shared).for_each(|row| feature.set_row(row, &from.row(row)));
            }
            let mut server = Server::new(world, 60, &mut random);
            let (mut table, mut fork) = (Vec::new(), Vec::new());
            let (parent, child) = (
                Round { rows: 0..50, drafts: 2 },
                Round { rows: shared - margin..55, drafts: DRAFTS },
            );
            assert!(server.reach(&mut table, &parent) && server.reach(&mut fork, &child));
            one(&server.session, Turn::new(&first, parent.rows, 2, Place::Pages(&table)));
            // Whole pages of the prefix are shared, the one where the texts part is copied.
            let whole = (shared - margin) / PAGE_SIZE;
            fork[..whole].copy_from_slice(&table[..whole]);
            server.set_page(fork[whole], &server.page(table[whole]));
            let turn = Turn::new(&second, child.rows, DRAFTS, Place::Pages(&fork));
            assert_eq!(one(&server.session, turn), world.draft(&second, 0..55), "shared {shared}");
        }
    });
}

#[test]
fn positions_before_context_begin_are_not_looked_at() {
    for_each_model("context", |world| {
        let mut random = Random::new(8);
        let text = world.text(&mut random, 40);
        for &begin in device::amount(&[1, 4, 6, 13, 20, 29][..], &[1, 13, 20]) {
            let mut server = Server::new(world, 30, &mut random);
            let mut table = Vec::new();
            assert!(server.reach(&mut table, &Round { rows: 0..30, drafts: DRAFTS }));
            // Neither the pages nor their numbers are looked at.
            table[..begin / PAGE_SIZE].fill(-1);
            let place = Place::Pages(&table);
            let turn =
                Turn { context_begin: begin as i32, ..Turn::new(&text, begin..30, DRAFTS, place) };
            let partial = one(&server.session, turn);
            // The same text without its beginning, turned as if that were there.
            let cut = Text {
                tokens: text.tokens[begin..].to_vec(),
                features: text.features.iter().map(|feature| rows_of(feature, begin..40)).collect(),
            };
            let turn = Turn::new(&cut, 0..30 - begin, DRAFTS, Place::Slot(0));
            let mut call = DraftCall::of(&[turn]);
            call.rope_position = Some((begin as i32..30).collect());
            let alone = run(&world.session(), &call).remove(0);
            assert_eq!(partial.tokens, alone.tokens, "begin {begin}");
            assert!(partial.distance(&alone) < 1e-4, "begin {begin}: {}", partial.distance(&alone));
        }
    });
}

fn rows_of(matrix: &Matrix, rows: Range<usize>) -> Matrix {
    let elements: Vec<f32> = rows.clone().flat_map(|row| matrix.row(row)).collect();
    Matrix::new(rows.len(), matrix.columns, &elements)
}

#[test]
fn context_begin_leaves_something_out() {
    let world = World::new("context-effect", "llama", Shape::default());
    let text = world.text(&mut Random::new(9), 40);
    let turn = Turn { context_begin: 20, ..Turn::new(&text, 20..30, DRAFTS, Place::Slot(0)) };
    let partial = one(&world.session(), turn);
    let whole = world.draft(&text, 0..30);
    assert!(host::draft::distance(&partial.logits[0], &whole.logits[0]) > 1e-3);
}

#[test]
fn embeddings_take_the_place_of_tokens() {
    for (name, shape) in shapes() {
        let world = World::new("embeddings", name, shape.clone());
        let directory = shape.write("embeddings-table", 11);
        let weights = host::golden::Tensors::read(&directory.join("model.safetensors"));
        let names = ["embed_tokens.weight", "model.embed_tokens.weight"];
        let table = names.iter().find_map(|name| weights.matrix(name)).expect("the embedding");
        let text = world.text(&mut Random::new(10), 40);
        let expected = world.draft(&text, 0..33);
        let mut call = DraftCall::of(&[Turn::new(&text, 0..33, DRAFTS, Place::Slot(0))]);
        let mut embeddings = Matrix::filled(33, shape.hidden, Dtype::F32, f32::NAN);
        for row in (3..9).chain(20..31) {
            embeddings.set_row(row, &table.row(call.tokens[row] as usize));
            call.tokens[row] = -1;
        }
        for dtype in [Dtype::F32, shape.dtype] {
            call.embeddings = Some(embeddings.converted(dtype, shape.hidden + 3));
            assert_eq!(run(&world.session(), &call), vec![expected.clone()], "{dtype:?}");
        }
    }
}

#[test]
fn only_differences_of_rope_positions_matter() {
    for_each_shape("rope", |world| {
        let text = world.text(&mut Random::new(12), 40);
        let expected = world.draft(&text, 0..33);
        let mut call = DraftCall::of(&[Turn::new(&text, 0..33, DRAFTS, Place::Slot(0))]);
        call.rope_position = Some((0..33).collect());
        assert_eq!(
            run(&world.session(), &call),
            vec![expected.clone()],
            "the positions themselves"
        );
        call.rope_position = Some((500..533).collect());
        let shifted = run(&world.session(), &call).remove(0);
        assert!(shifted.distance(&expected) < 1e-3, "{}", shifted.distance(&expected));
        call.rope_position = Some((0..33).map(|row| row * row % 17).collect());
        let scattered = run(&world.session(), &call).remove(0);
        let distance = host::draft::distance(&scattered.logits[0], &expected.logits[0]);
        assert!(distance > 1e-3, "rope positions have no effect: {distance}");
    });
}

#[test]
fn a_row_index_picks_rows_out_of_the_buffer() {
    for_each_model("paths", |world| {
        let mut random = Random::new(13);
        let texts: Vec<Text> = (0..2).map(|_| world.text(&mut random, 30)).collect();
        let expected: Vec<Drafts> = texts.iter().map(|text| world.draft(text, 0..17)).collect();
        let turn =
            |(slot, text): (usize, _)| Turn::new(text, 0..17, DRAFTS, Place::Slot(slot as i32));
        let turns: Vec<Turn<'_>> = texts.iter().enumerate().map(turn).collect();
        let compact = DraftCall::of(&turns);
        let mut call = compact.clone();
        // The first sequence's rows lie scattered over 40 rows, the second's behind them.
        let mut places: Vec<i32> = (0..40).collect();
        random.shuffle(&mut places);
        places.truncate(17);
        call.tokens = vec![-5; 40 + 17];
        call.tokens[40..].copy_from_slice(&compact.tokens[17..]);
        for (feature, from) in call.features.iter_mut().zip(&compact.features) {
            *feature = Matrix::filled(57, from.columns, Dtype::F32, f32::NAN);
            (0..17).for_each(|row| feature.set_row(40 + row, &from.row(17 + row)));
            for (row, &place) in places.iter().enumerate() {
                feature.set_row(place as usize, &from.row(row));
            }
        }
        for (row, &place) in places.iter().enumerate() {
            call.tokens[place as usize] = compact.tokens[row];
        }
        call.row_begin = Some(vec![0, 40]);
        call.row_index = Some(Table::ragged(&[&places, &[-1]]));
        assert_eq!(run(&world.session(), &call), expected);
    });
}

#[test]
fn sequences_share_rows_as_long_as_the_call_has_as_many_in_all() {
    for_each_model("shared-rows", |world| {
        let text = world.text(&mut Random::new(17), 40);
        let [half, whole] = [10, 20].map(|rows| world.draft(&text, 0..rows));
        let session = world.session();
        // The rows of one prompt, which all sequences name.
        let mut call = DraftCall::of(&[Turn::new(&text, 0..20, DRAFTS, Place::Slot(0))]);
        for column in [&mut call.position, &mut call.row_count, &mut call.next_token] {
            *column = vec![column[0]; 3];
        }
        let sampling = call.sampling.as_mut().expect("sampling");
        *sampling = SamplingColumns::of([Sampling::default(); 3]);
        call.row_begin = Some(vec![0; 3]);
        call.num_drafts = None;
        call.context_begin = None;
        call.slot = None;
        let drafts = call.run(&session).expect("a drafting call");
        assert_eq!(drafts, [whole, Drafts::default(), Drafts::default()]);
        let fault = session.poll().expect_err("more rows than the call has").message;
        assert!(fault.contains("sequence 1 ") && fault.contains("num_rows"), "{fault}");

        let next = text.tokens[10];
        for (column, value) in
            [(&mut call.position, 10), (&mut call.row_count, 10), (&mut call.next_token, next)]
        {
            column[..2].fill(value);
        }
        call.row_count[2] = 0;
        assert_eq!(run(&session, &call), [half.clone(), half, Drafts::default()]);
    });
}

#[test]
fn no_more_is_proposed_than_limits_allow() {
    for_each_model("limits", |world| {
        let text = world.text(&mut Random::new(14), 40);
        let expected = world.draft(&text, 0..20);
        let turn = |slot, drafts| Turn::new(&text, 0..20, drafts, Place::Slot(slot));
        let turns: Vec<Turn<'_>> = (0..8).map(|slot| turn(slot, DRAFTS - slot % 2)).collect();
        let mut call = DraftCall::of(&turns);
        let limits = [0, 0, 1, 1, 3, 4, 100, i32::MAX];
        call.limit = Some(limits.to_vec());
        call.draft_stride = DRAFTS as usize + 2;
        call.padding = Some(-9);
        for (index, drafts) in run(&world.session(), &call).iter().enumerate() {
            let allowed = turns[index].drafts.min((limits[index] - 1).max(0)) as usize;
            assert_eq!(drafts.tokens, expected.tokens[..allowed], "limit {}", limits[index]);
            assert_eq!(drafts.logits, expected.logits[..allowed], "limit {}", limits[index]);
        }
        (call.limit, call.num_drafts) = (None, None);
        call.padding = None;
        let all = run(&world.session(), &call);
        assert!(all.iter().all(|drafts| *drafts == expected), "no limit");
    });
}

#[test]
fn proposals_stop_where_positions_end() {
    let world = World::new("end", "llama", Shape::default());
    let text = world.text(&mut Random::new(15), 40);
    let expected = world.draft(&text, 0..20);
    let mut before = 1;
    for max_position in 21..30 {
        let session = world.session_with(spec_session_options { max_position, ..options() });
        let drafts = one(&session, Turn::new(&text, 0..20, DRAFTS, Place::Slot(0)));
        let count = drafts.tokens.len();
        // The last row that drafting writes is that of the proposal before the last.
        assert!(20 + count - 2 < max_position as usize, "{count} drafts below {max_position}");
        assert!(count >= before, "fewer drafts for more room");
        assert_eq!(drafts.tokens, expected.tokens[..count]);
        assert_eq!(drafts.logits, expected.logits[..count]);
        before = count;
    }
    assert_eq!(before, DRAFTS as usize);
}

#[test]
fn features_of_any_type_and_row_stride_are_read_as_they_are() {
    for_each_model("features", |world| {
        let text = world.text(&mut Random::new(16), 40);
        for dtype in Dtype::ALL {
            let mut rounded = text.clone();
            for feature in &mut rounded.features {
                *feature = feature
                    .converted(dtype, feature.columns)
                    .converted(Dtype::F32, feature.columns);
            }
            let expected = world.draft(&rounded, 0..30);
            let mut call = DraftCall::of(&[Turn::new(&text, 0..30, DRAFTS, Place::Slot(0))]);
            for (index, feature) in call.features.iter_mut().enumerate() {
                *feature = feature.converted(dtype, feature.columns + 5 * index);
            }
            assert_eq!(run(&world.session(), &call), [expected], "{dtype:?}");
        }
    });
}

#[test]
fn a_token_is_drawn_from_the_logits_as_they_are_handed_out() {
    for_each_shape("logits", |world| {
        let info = world.model.info();
        let text = world.text(&mut Random::new(17), 40);
        let exact = world.draft(&text, 0..30);
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let mut call = DraftCall::of(&[Turn::new(&text, 0..30, DRAFTS, Place::Slot(0))]);
            call.logits = Some(dtype);
            let drafts = run(&world.session(), &call).remove(0);
            let rounded: Vec<f32> =
                exact.logits[0].iter().map(|&logit| dtype.round(logit)).collect();
            assert_eq!(drafts.logits[0], rounded, "{dtype:?}");
            for (token, logits) in drafts.tokens.iter().zip(&drafts.logits) {
                let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let column = logits.iter().position(|&logit| logit == best).expect("a best one");
                assert_eq!(*token, target_id(&info, column), "{dtype:?}");
            }
        }
        let mut call = DraftCall::of(&[Turn::new(&text, 0..30, DRAFTS, Place::Slot(0))]);
        call.logits = None;
        assert_eq!(
            run(&world.session(), &call)[0].tokens,
            exact.tokens,
            "without a place for logits"
        );
    });
}

fn target_id(info: &spec_model_info, column: usize) -> i32 {
    if info.draft_token_ids.is_null() {
        return column as i32;
    }
    assert!(column < info.draft_vocabulary as usize);
    // SAFETY: the array has an element for each column of draft logits.
    unsafe { *info.draft_token_ids.add(column) }
}

#[test]
fn memory_of_the_host_serves_as_well_as_memory_of_the_library() {
    for_each_model("memory", |world| {
        let mut random = Random::new(18);
        let text = world.text(&mut random, 40);
        let server = Server::new(world, 0, &mut random);
        let turn = Turn::new(&text, 0..30, DRAFTS, Place::Slot(2));
        assert_eq!(one(&server.session, turn.clone()), world.draft(&text, 0..30));
        server.session.warm_up().expect("a warm-up");
        assert_eq!(one(&server.session, turn), world.draft(&text, 0..30));
    });
}

#[test]
fn keys_and_values_of_16_bits_take_half_the_memory_and_draft_nearly_the_same() {
    for_each_model("kv", |world| {
        let text = world.text(&mut Random::new(19), 40);
        let exact = world.draft(&text, 0..30);
        let full = Session::requirements(&world.model, &options()).expect("the requirements");
        for (dtype, tolerance) in [(Dtype::F16, 0.02), (Dtype::Bf16, 0.15)] {
            let (kv_dtype_code, kv_dtype_bits) = dtype.codes();
            let options = spec_session_options { kv_dtype_code, kv_dtype_bits, ..options() };
            let half = Session::requirements(&world.model, &options).expect("the requirements");
            assert_eq!(half.kv_bytes_per_token * 2, full.kv_bytes_per_token, "{dtype:?}");
            assert_eq!(half.page_bytes * 2, full.page_bytes, "{dtype:?}");
            let session = world.session_with(options);
            let drafts = one(&session, Turn::new(&text, 0..30, DRAFTS, Place::Slot(0)));
            let distance = host::draft::distance(&drafts.logits[0], &exact.logits[0]);
            let keeps = full.kv_bytes_per_token > 0;
            assert_eq!(distance > 0.0, keeps, "{dtype:?}: {distance}");
            assert!(distance < tolerance, "{dtype:?}: {distance}");
        }
    });
}

#[test]
fn sampled_drafts_depend_on_seed_and_position_alone() {
    for_each_model("seeds", |world| {
        let text = world.text(&mut Random::new(20), 40);
        let sampled = |seed, slot| Turn {
            sampling: Sampling { temperature: 1.0, seed, ..Sampling::default() },
            ..Turn::new(&text, 0..30, DRAFTS, Place::Slot(slot))
        };
        let alone: Vec<Drafts> =
            (0..6).map(|seed| one(&world.session(), sampled(seed, 0))).collect();
        let turns: Vec<Turn<'_>> = (0..6).map(|seed| sampled(seed, 5 - seed as i32)).collect();
        assert_eq!(run(&world.session(), &DraftCall::of(&turns)), alone);
        assert!(
            alone.iter().any(|drafts| drafts.tokens != alone[0].tokens),
            "seeds have no effect"
        );
    });
}
