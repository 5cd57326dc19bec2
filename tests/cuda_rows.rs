//! The phases that lay out, gather and attend rows, on CUDA against the CPU.

mod device;
#[allow(dead_code)] // Each test program uses its own part.
mod phases;
#[path = "host/random.rs"]
mod random;

use device::Device;
use device::backend::{backend, cuda, cuda_test};
use device::memory::Memory;
use phases::{
    COMPACT, DTYPES, Layout, Place, RowValues, Values, assert_same_bits, cases, optional, read,
    read_array, rows_of, test_cases,
};
use random::Random;
use speculators::backend::FaultWords;
use speculators::backend::phases::{
    Attend, AttentionHeads, Column, DraftBatch, Fault, Gather, KvPool, Limits, Mask, Paging, Plan,
    Rows,
};
use speculators::tensor::{Dtype, Matrix, Span};

/// The limits of a session for a kind that drafts in sequence.
fn limits(max_rows: usize, max_position: usize, vocabulary: usize, num_slots: usize) -> Limits {
    let most_drafts = usize::MAX;
    Limits {
        max_rows,
        max_position,
        vocabulary,
        num_slots,
        most_drafts,
        drafts_in_pages: true,
        reads_own_tokens: false,
    }
}

// ---- Plans --------------------------------------------------------------------------------------

/// The contents of a call's arrays, and the sizes of its session.
#[derive(Clone, Debug)]
struct Call {
    sequences: usize,
    num_rows: usize,
    max_drafts: usize,
    limits: Limits,
    page_size: usize,
    num_pages: usize,
    pages_per_slot: usize,
    decision_stride: usize,
    position: Vec<i32>,
    row_count: Vec<i32>,
    next_token: Vec<i32>,
    row_begin: Option<Vec<i32>>,
    row_index: Option<(Vec<i32>, usize)>,
    num_drafts: Option<Vec<i32>>,
    limit: Option<Vec<i32>>,
    context_begin: Option<Vec<i32>>,
    block_table: Option<(Vec<i32>, usize)>,
    slot: Option<Vec<i32>>,
    tokens: Vec<i32>,
    rope_position: Option<Vec<i32>>,
    has_embeddings: bool,
    draft_stride: usize,
    counts_proposed: bool,
}

/// How likely an element of an array is out of its range.
#[derive(Clone, Copy, Debug)]
struct Hostility(f64);

impl Hostility {
    fn index(self, random: &mut Random, bound: usize) -> i32 {
        let well = random.below(bound);
        self.number(random, well, bound)
    }

    fn number(self, random: &mut Random, well: usize, bound: usize) -> i32 {
        if !random.chance(self.0) {
            return well as i32;
        }
        match random.below(6) {
            0 => -1,
            1 => i32::MIN,
            2 => i32::MAX,
            3 => bound as i32,
            4 => bound as i32 + 1,
            _ => random.below(2 * bound + 2) as i32 - 1,
        }
    }
}

/// A column of records: one element for each, `stride` elements apart.
fn spread(elements: &[i32], stride: usize) -> Vec<i32> {
    let mut column = vec![-7; (elements.len() - 1) * stride + 1];
    for (index, &element) in elements.iter().enumerate() {
        column[index * stride] = element;
    }
    column
}

impl Call {
    fn random(random: &mut Random, sequences: usize, hostility: Hostility) -> Self {
        let max_drafts = [0, 1, 3, 5, 40][random.below(5)];
        let max_position = 1 + random.below(120);
        let page_size = [1, 16, 37][random.below(3)];
        let vocabulary = 1 + random.below(1000);
        let pages_per_slot = max_position.div_ceil(page_size);
        let num_pages = 1 + random.below(2 * pages_per_slot * sequences);
        let num_slots = (num_pages / pages_per_slot).min(sequences);
        let counts: Vec<usize> = (0..sequences)
            .map(|_| match random.below(8) {
                0 => 0,
                1 => 1 + random.below(max_position),
                _ => 1 + random.below(max_position.min(max_drafts + 1)),
            })
            .collect();
        let total = counts.iter().sum::<usize>();
        let num_rows = total + random.below(1 + total);
        // Mostly all fit.
        let max_rows = if random.chance(0.7) { total + random.below(9) } else { total / 2 }.max(1);
        let mut call = Self {
            sequences,
            num_rows,
            max_drafts,
            limits: Limits {
                reads_own_tokens: random.chance(0.4),
                ..limits(max_rows, max_position, vocabulary, num_slots)
            },
            page_size,
            num_pages,
            pages_per_slot,
            decision_stride: 1 + random.below(4),
            position: Vec::new(),
            row_count: Vec::new(),
            next_token: Vec::new(),
            row_begin: None,
            row_index: None,
            num_drafts: None,
            limit: None,
            context_begin: None,
            block_table: None,
            slot: None,
            tokens: Vec::new(),
            rope_position: None,
            has_embeddings: random.chance(0.3),
            draft_stride: max_drafts + random.below(3),
            counts_proposed: random.chance(0.7),
        };
        call.fill(random, &counts, hostility);
        // Kinds that draft blocks.
        if random.chance(0.4) {
            call.limits.most_drafts = 1 + random.below(8);
            call.limits.drafts_in_pages = random.chance(0.5);
        }
        call
    }

    fn fill(&mut self, random: &mut Random, counts: &[usize], hostility: Hostility) {
        let Limits { max_position, vocabulary, num_slots, .. } = self.limits;
        let (rows, sequences) = (self.num_rows, self.sequences);
        let (mut position, mut begin, mut first) = (Vec::new(), Vec::new(), Vec::new());
        let mut next_row = 0;
        for &count in counts {
            let at = count + random.below((max_position - count).max(1));
            position.push(hostility.number(random, at, max_position));
            begin.push(hostility.index(random, at - count + 1));
            first.push(hostility.number(random, next_row, rows));
            next_row += count;
        }
        let number = |random: &mut Random, well, bound| hostility.number(random, well, bound);
        let row_count = counts.iter().map(|&count| number(random, count, rows)).collect::<Vec<_>>();
        let next = (0..sequences).map(|_| hostility.index(random, vocabulary)).collect::<Vec<_>>();
        self.position = spread(&position, self.decision_stride);
        self.row_count = spread(&row_count, self.decision_stride);
        self.next_token = spread(&next, self.decision_stride);
        self.row_begin = (!random.chance(0.1)).then_some(first);
        self.context_begin = optional(random, |_| begin);
        let few = |random: &mut Random, most: usize| -> Vec<i32> {
            (0..sequences).map(|_| random.below(most + 3) as i32 - 1).collect()
        };
        let most_drafts = self.max_drafts;
        self.num_drafts = optional(random, |random| few(random, most_drafts));
        self.limit = optional(random, |random| few(random, 2 * most_drafts));
        self.tokens = (0..rows)
            .map(|_| {
                let well = random.below(vocabulary);
                if self.has_embeddings && random.chance(0.3) {
                    -1
                } else {
                    number(random, well, vocabulary)
                }
            })
            .collect();
        self.rope_position =
            optional(random, |random| (0..rows).map(|_| random.bits() as i32).collect());
        self.row_index = optional(random, |random| self.paths(random, &row_count, hostility));
        let pages = self.pages_per_slot;
        if num_slots == 0 || random.chance(0.7) {
            let stride = (pages + random.below(3)).saturating_sub(random.below(2)).max(1);
            let table = (0..sequences * stride)
                .map(|_| {
                    // A page for each sequence is enough for one hostile sequence.
                    let hostility = Hostility(hostility.0 / stride as f64);
                    hostility.index(random, self.num_pages)
                })
                .collect();
            self.block_table = Some((table, stride));
        } else if num_slots < sequences || random.chance(0.5) {
            let slots = (0..sequences).map(|_| hostility.index(random, num_slots)).collect();
            self.slot = Some(slots);
        }
    }

    /// The most rows of a plan.
    fn most_rows(&self) -> usize {
        let Limits { max_rows, reads_own_tokens, .. } = self.limits;
        if reads_own_tokens { max_rows + self.sequences } else { max_rows }
    }

    /// Rows that are not contiguous. The last path ends with its last row.
    fn paths(
        &self,
        random: &mut Random,
        row_count: &[i32],
        hostility: Hostility,
    ) -> (Vec<i32>, usize) {
        let most = row_count.iter().copied().filter(|&count| count <= self.num_rows as i32).max();
        let stride = (most.unwrap_or(1).max(1) as usize).saturating_sub(random.below(2)).max(1);
        let last = row_count[self.sequences - 1].clamp(0, stride as i32) as usize;
        let mut paths = Vec::new();
        for _ in 0..self.sequences {
            let is_contiguous = random.chance(0.4);
            for index in 0..stride {
                let offset =
                    hostility.number(random, index + random.clone().below(2), self.num_rows);
                paths.push(if index == 0 && is_contiguous { -1 } else { offset });
            }
        }
        let end = (self.sequences - 1) * stride + last;
        paths.truncate(end);
        // Even an empty path has an address.
        if paths.is_empty() {
            paths.push(-1);
        }
        (paths, stride)
    }
}

/// What a plan says.
#[derive(Clone, Debug, Default, PartialEq)]
struct Planned {
    /// The count, then sequence, position, rope position, token and source of each row.
    commit: Vec<Vec<i32>>,
    draft: Vec<Vec<i32>>,
    drafting: Vec<i32>,
    num_drafts: Vec<i32>,
    page_row: Vec<i32>,
    draft_tokens: Vec<i32>,
    num_proposed: Vec<i32>,
    fault: Option<(Fault, usize)>,
}

/// A session's memory for plans.
struct Planner {
    place: Place,
    words: FaultWords,
    plan: Plan,
    slot_pages: Span<i32>,
}

const UNPLANNED: i32 = -1_000_000;

/// Memory for rows that a plan lays out, or of which a phase looks at few columns.
fn new_rows(place: &mut Place, len: usize) -> Rows {
    Rows { count: place.array(&[UNPLANNED]), ..RowValues::new(0, len, 0).lend(place) }
}

impl Planner {
    fn new(device: Device, call: &Call) -> Self {
        let mut place = Place::on(device);
        let words = backend(device).fault_words().unwrap();
        let plan = Plan {
            commit: new_rows(&mut place, call.most_rows()),
            draft: new_rows(&mut place, call.sequences + 1),
            drafting: place.array(&vec![UNPLANNED; call.max_drafts + 1]),
            num_drafts: place.array(&vec![UNPLANNED; call.sequences]),
            depth: place.array(&[]),
            shape: place.array(&[]),
            page_row: place.array(&vec![UNPLANNED; call.sequences]),
            fault: words.span,
        };
        let len = call.limits.num_slots * call.pages_per_slot;
        let slot_pages = place.array(&(0..len as i32).collect::<Vec<_>>());
        Self { place, words, plan, slot_pages }
    }

    fn plan(&mut self, call: &Call) -> Planned {
        let place = &mut self.place;
        let mut column = |elements: &[i32], stride| Column { span: place.array(elements), stride };
        let position = column(&call.position, call.decision_stride);
        let row_count = column(&call.row_count, call.decision_stride);
        let next_token = column(&call.next_token, call.decision_stride);
        let row_index = call.row_index.as_ref().map(|(paths, stride)| column(paths, *stride));
        let block_table = call.block_table.as_ref().map(|(table, stride)| column(table, *stride));
        let len = (call.sequences - 1) * call.draft_stride + call.max_drafts;
        let draft_tokens = column(&vec![UNPLANNED; len], call.draft_stride);
        let proposed = call.counts_proposed.then(|| vec![UNPLANNED; call.sequences]);
        let embeddings = call
            .has_embeddings
            .then(|| place.matrix(&Values::compact(vec![0.0; call.num_rows], 1)));
        let batch = DraftBatch {
            num_rows: call.num_rows,
            position,
            row_count,
            next_token,
            row_begin: place.optional(&call.row_begin),
            row_index,
            num_drafts: place.optional(&call.num_drafts),
            limit: place.optional(&call.limit),
            context_begin: place.optional(&call.context_begin),
            block_table,
            slot: place.optional(&call.slot),
            tokens: place.array(&call.tokens),
            rope_position: place.optional(&call.rope_position),
            embeddings,
            draft_tokens,
            num_proposed: place.optional(&proposed),
            padding: -99,
            ..DraftBatch::new(call.sequences, call.max_drafts)
        };
        let pages = Matrix {
            address: 0,
            dtype: Dtype::F32,
            rows: call.num_pages,
            columns: 1,
            row_stride: 1,
        };
        let pool = KvPool {
            pages,
            page_size: call.page_size,
            num_kv_heads: 1,
            head_dim: 1,
            slot_pages: self.slot_pages,
            pages_per_slot: call.pages_per_slot,
        };
        let plan = &self.plan;
        let most = self.place.run(|backend, stream| {
            backend.plan_rows(stream, &batch, &call.limits, &pool, plan).unwrap()
        });
        let planned = Planned {
            commit: rows_of(&plan.commit),
            draft: if call.max_drafts > 0 { rows_of(&plan.draft) } else { Vec::new() },
            drafting: read_array(plan.drafting),
            num_drafts: read_array(plan.num_drafts),
            page_row: read_array(plan.page_row),
            draft_tokens: read_array(draft_tokens.span),
            num_proposed: batch.num_proposed.map_or(Vec::new(), read_array),
            fault: None,
        };
        assert!(planned.commit[0][0] as usize <= most && most <= call.most_rows());
        planned
    }

    fn take_fault(&self) -> Option<(Fault, usize)> {
        backend(self.place.device).take_fault(&self.words)
    }
}

/// Plans a call on both devices.
#[track_caller]
fn assert_same_plan(call: &Call, what: &str) -> Planned {
    let [expected, found] = [Device::Cpu, Device::Cuda].map(|device| {
        let mut planner = Planner::new(device, call);
        let planned = planner.plan(call);
        Planned { fault: planner.take_fault(), ..planned }
    });
    assert_eq!(found, expected, "{what}: {call:?}");
    expected
}

fn random_sequences(random: &mut Random) -> usize {
    match random.below(10) {
        0 => 1,
        1..=5 => 2 + random.below(8),
        6 | 7 => 31 + random.below(4),
        8 => 100 + random.below(60),
        _ => 129 + random.below(200),
    }
}

#[test]
fn plans_of_well_formed_calls_are_those_of_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    let (mut rows, mut drafts) = (0, 0);
    for (number, mut random) in cases(test_cases(120, 120)) {
        let sequences = random_sequences(&mut random);
        let call = Call::random(&mut random, sequences, Hostility(0.0));
        let planned = assert_same_plan(&call, &format!("case {number}"));
        rows += planned.commit[0][0];
        drafts += planned.draft.first().map_or(0, |count| count[0]);
    }
    assert!(rows > 100 && drafts > 20, "{rows} rows, {drafts} drafting");
}

#[test]
fn plans_of_hostile_arrays_are_those_of_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    let mut faults = std::collections::BTreeMap::new();
    for (number, mut random) in cases(test_cases(400, 400)) {
        let sequences = random_sequences(&mut random);
        let hostility = Hostility([0.003, 0.02, 0.1, 0.4][random.below(4)]);
        let call = Call::random(&mut random, sequences, hostility);
        let planned = assert_same_plan(&call, &format!("case {number}"));
        if let Some((fault, _)) = planned.fault {
            *faults.entry(fault as i32).or_insert(0) += 1;
        }
    }
    assert!(faults.len() == 5 || std::env::var_os("SPEC_TEST_CASE").is_some(), "{faults:?}");
}

#[test]
fn plans_of_more_sequences_than_a_block_has_threads_are_those_of_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(4, 4)) {
        let hostility = Hostility([0.0, 0.01][random.below(2)]);
        let sequences = 1030 + random.below(1500);
        let call = Call::random(&mut random, sequences, hostility);
        assert_same_plan(&call, &format!("case {number}"));
    }
}

#[test]
fn the_rows_of_a_long_prompt_are_laid_out_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    let mut random = Random::new(7);
    let mut call = Call::random(&mut random, 3, Hostility(0.0));
    let counts = [5, 2900, 1];
    call.limits = limits(3000, 4000, 500, 0);
    call.num_rows = 3000;
    call.num_pages = 4000_usize.div_ceil(call.page_size);
    call.pages_per_slot = call.num_pages;
    call.fill(&mut random, &counts, Hostility(0.0));
    call.row_index = None;
    call.row_begin = Some(vec![0, 5, 2905]);
    call.block_table = Some((
        (0..3 * call.num_pages).map(|i| (i % call.num_pages) as i32).collect(),
        call.num_pages,
    ));
    let planned = assert_same_plan(&call, "a prompt");
    assert_eq!(planned.commit[0][0], 2906);
    // A token in the middle that is none takes the prompt out, and nothing else.
    call.has_embeddings = false;
    call.tokens[2000] = 500;
    let planned = assert_same_plan(&call, "a bad token");
    assert_eq!((planned.commit[0][0], planned.fault), (6, Some((Fault::Token, 1))));
}

#[test]
fn the_first_fault_stays_until_the_host_takes_it() {
    let Some(_turn) = cuda_test() else { return };
    let mut random = Random::new(3);
    let mut call = Call::random(&mut random, 40, Hostility(0.0));
    call.limits.max_rows = 1000;
    // Random paths may end behind the call's rows.
    call.row_index = None;
    let stride = call.decision_stride;
    let with = |sequence: usize, position: i32| {
        let mut call = call.clone();
        call.row_count[sequence * stride] = 1;
        call.position[sequence * stride] = position;
        call
    };
    for device in [Device::Cpu, Device::Cuda] {
        let mut planner = Planner::new(device, &call);
        assert_eq!(planner.take_fault(), None);
        planner.plan(&with(33, -1));
        planner.plan(&with(2, i32::MAX));
        assert_eq!(planner.take_fault(), Some((Fault::Position, 33)), "{device:?}");
        assert_eq!(planner.take_fault(), None);
        planner.plan(&with(2, i32::MAX));
        planner.plan(&call);
        assert_eq!(planner.take_fault(), Some((Fault::Position, 2)), "{device:?}");
    }
}

// ---- Gathering ----------------------------------------------------------------------------------

#[test]
fn gathered_rows_are_those_of_the_chunk() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(30, 30)) {
        let columns = [1, 3, 8, 40, 257][random.below(5)];
        let (first, len) = (random.below(20), 1 + random.below(10));
        let most = 1 + random.below(40);
        let before = if random.chance(0.3) { random.below(9) } else { 0 };
        // Of all views; those of this one may be none or fill it.
        let count = random.below(before + most + 9) as i32;
        let from = random.normals(len * columns);
        let sources: Vec<i32> = (0..most).map(|_| random.below(40) as i32).collect();
        let [expected, found] = [Device::Cpu, Device::Cuda].map(|device| {
            let mut place = Place::on(device);
            let rows = Rows {
                count: place.array(&[count]),
                first: before,
                source: place.array(&sources),
                ..new_rows(&mut place, most)
            };
            let to = place.output(most, columns);
            let from = place.matrix(&Values::compact(from.clone(), columns));
            let phase = Gather { rows, from, first, len, to };
            place.run(|backend, stream| backend.gather(stream, &phase).unwrap());
            read(&to)
        });
        assert_eq!(found, expected, "case {number}");
    }
}

// ---- Copies -------------------------------------------------------------------------------------

#[test]
fn rows_are_copied_by_id_wherever_the_matrices_begin() {
    let Some(_turn) = cuda_test() else { return };
    const UNTOUCHED: u8 = 0xee;
    let ids = [3, 0, 3, -1, 5, 6, 2];
    // Elements of a row, of a stride of each matrix, and bytes before the first row of each.
    for (columns, strides, offsets) in [
        (64, [64, 64], [0, 0]),
        (64, [72, 80], [16, 32]),
        (66, [66, 70], [4, 8]),
        (64, [64, 64], [2, 0]),
        (63, [63, 65], [0, 2]),
        (2056, [2056 / 4, 2056], [0, 0]),
    ] {
        // Nothing may be read or written beyond the last rows.
        let len =
            |rows: usize, side: usize| offsets[side] + ((rows - 1) * strides[side] + columns) * 2;
        let from: Vec<u8> = (0..len(6, 0)).map(|place| (place * 7 % 253) as u8).collect();
        let mut place = Place::on(Device::Cuda);
        let [source, target] =
            [from.clone(), vec![UNTOUCHED; len(ids.len(), 1)]].map(|bytes| place.array(&bytes));
        let matrix = |bytes: Span<u8>, side: usize, rows| Matrix {
            address: bytes.address() + offsets[side] as u64,
            dtype: Dtype::Bf16,
            rows,
            columns,
            row_stride: strides[side],
        };
        let _scope = cuda().enter().unwrap();
        let to = matrix(target, 1, ids.len());
        cuda().copy_rows(&matrix(source, 0, 6), &ids, &to).unwrap();

        let mut expected = vec![UNTOUCHED; target.len()];
        for (row, id) in ids.iter().enumerate().filter(|(_, id)| (0..6).contains(*id)) {
            let from_row = offsets[0] + *id as usize * strides[0] * 2;
            let to_row = offsets[1] + row * strides[1] * 2;
            expected[to_row..][..columns * 2].copy_from_slice(&from[from_row..][..columns * 2]);
        }
        assert!(read_array(target) == expected, "{columns} {strides:?} {offsets:?}");
    }
}

#[test]
fn more_rows_are_copied_than_there_are_blocks() {
    let Some(_turn) = cuda_test() else { return };
    let ids: Vec<i32> = (0..4100).map(|row| (row * 11 + 5) % 40).collect();
    let mut place = Place::on(Device::Cuda);
    let from: Vec<f32> = (0..40).map(|id| id as f32).collect();
    let (from, to) = (place.matrix(&Values::compact(from, 1)), place.output(ids.len(), 1));
    let _scope = cuda().enter().unwrap();
    cuda().copy_rows(&from, &ids, &to).unwrap();
    assert!(read(&to).iter().zip(&ids).all(|(found, id)| *found == *id as f32));
}

// ---- Attention ----------------------------------------------------------------------------------

/// One row of a batch.
#[derive(Clone, Copy, Debug)]
struct Query {
    sequence: usize,
    position: usize,
}

/// Sequences with keys and values, and rows that look at them.
#[derive(Clone, Debug)]
struct Scene {
    heads: AttentionHeads,
    dtype: Dtype,
    page_size: usize,
    /// Positions of each sequence, and those that it shares with the first one.
    lens: Vec<usize>,
    shared: usize,
    context_begin: Option<Vec<i32>>,
    window: Option<usize>,
    queries: Vec<Query>,
    /// Rows before those of the view, and rows that there can be.
    first: usize,
    most: usize,
    /// What the scratch is made for; 0 is none.
    positions: usize,
    /// Of the pool.
    layout: Layout,
    seed: u64,
}

const LAYERS: usize = 2;
const LAYER: usize = 1;

impl Scene {
    fn random(random: &mut Random, most_positions: usize) -> Self {
        let num_kv_heads = 1 + random.below(2);
        let group = [1, 1, 2, 3, 4, 4, 5, 8, 9, 12][random.below(10)];
        let head_dim =
            [8, 12, 20, 32, 40, 64, 64, 96, 128, 128, 160, 256, 264, 512][random.below(14)];
        let heads = AttentionHeads { num_heads: num_kv_heads * group, num_kv_heads, head_dim };
        let sequences = 1 + random.below(4);
        let lens: Vec<usize> = (0..sequences).map(|_| 1 + random.below(most_positions)).collect();
        let shared = random.below(lens.iter().copied().min().unwrap());
        let rows = match random.below(6) {
            0 => 0,
            1 => 1,
            5 => random.below(71),
            _ => random.below(9),
        };
        let queries = (0..rows)
            .map(|_| {
                let sequence = random.below(sequences);
                let len = lens[sequence];
                // Mostly near the end.
                let position = if random.chance(0.7) {
                    len - 1 - random.below(len.min(4))
                } else {
                    random.below(len)
                };
                Query { sequence, position }
            })
            .collect();
        let context_begin =
            optional(random, |random| lens.iter().map(|&len| random.below(len) as i32).collect());
        Self {
            heads,
            dtype: DTYPES[random.below(3)],
            page_size: [1, 16, 37][random.below(3)],
            shared,
            context_begin,
            window: random.chance(0.3).then(|| 1 + random.below(most_positions)),
            queries,
            first: if random.chance(0.3) { random.below(50) } else { 0 },
            most: rows + random.below(3),
            positions: if random.chance(0.2) { 0 } else { most_positions },
            layout: Layout::random(random),
            lens,
            seed: random.bits(),
        }
    }

    fn query_columns(&self) -> usize {
        self.heads.num_heads * self.heads.head_dim
    }

    /// The row's query, which depends on the row alone.
    fn query(&self, query: &Query) -> Vec<f32> {
        let key = (query.sequence * 100_003 + query.position) as u64;
        Random::new(self.seed ^ key).normals(self.query_columns())
    }

    /// Keys or values of a position of a sequence, all heads.
    fn entries(&self, sequence: usize, position: usize, is_value: bool) -> Vec<f32> {
        let sequence = if position < self.shared { 0 } else { sequence };
        let key = ((sequence * 100_003 + position) * 2 + usize::from(is_value)) as u64;
        Random::new(!self.seed ^ key).normals(self.heads.num_kv_heads * self.heads.head_dim)
    }

    /// The pages of each sequence: those of the first one as far as they are shared.
    fn tables(&self) -> (Vec<Vec<i32>>, usize) {
        let mut pages: Vec<i32> = Vec::new();
        let mut tables: Vec<Vec<i32>> = Vec::new();
        for &len in &self.lens {
            let mut table = Vec::new();
            for index in 0..len.div_ceil(self.page_size) {
                let is_shared = (index + 1) * self.page_size <= self.shared && !tables.is_empty();
                table.push(if is_shared { tables[0][index] } else { pages.len() as i32 });
                if !is_shared {
                    pages.push(0);
                }
            }
            tables.push(table);
        }
        let count = pages.len() + 1;
        let mut names: Vec<i32> = (0..count as i32).collect();
        Random::new(self.seed).shuffle(&mut names);
        for page in tables.iter_mut().flatten() {
            *page = names[*page as usize];
        }
        (tables, count)
    }

    /// All pages; what no position has is NaN.
    fn pool(&self, tables: &[Vec<i32>], count: usize) -> Values {
        let AttentionHeads { num_kv_heads, head_dim, .. } = self.heads;
        let columns = self.page_columns();
        let mut pool = vec![f32::NAN; count * columns];
        for (sequence, table) in tables.iter().enumerate() {
            for position in 0..self.lens[sequence] {
                let page = table[position / self.page_size] as usize;
                for is_value in [false, true] {
                    let entries = self.entries(sequence, position, is_value);
                    for (head, entries) in entries.chunks(head_dim).enumerate() {
                        let plane = (LAYER * 2 + usize::from(is_value)) * num_kv_heads + head;
                        let place = (plane * self.page_size + position % self.page_size) * head_dim;
                        pool[page * columns + place..][..head_dim].copy_from_slice(entries);
                    }
                }
            }
        }
        let (dtype, layout) = (self.dtype, self.layout);
        Values { rows: count, columns, dtype, layout, elements: pool }
    }

    fn page_columns(&self) -> usize {
        LAYERS * 2 * self.heads.num_kv_heads * self.page_size * self.heads.head_dim
    }

    /// The outputs of all rows; those beyond the count are as they were.
    fn attend(&self, device: Device) -> Vec<f32> {
        self.attend_with(device, |_| ())
    }

    /// The same with tables that `spoil` has changed after they were filled.
    fn attend_with(&self, device: Device, spoil: impl FnOnce(&mut Vec<Vec<i32>>)) -> Vec<f32> {
        let (mut tables, count) = self.tables();
        let pool = self.pool(&tables, count);
        spoil(&mut tables);
        let mut place = Place::on(device);
        let pages = place.matrix(&pool);
        let (table, page_row) = flat(&tables);
        let pool = KvPool {
            pages,
            page_size: self.page_size,
            num_kv_heads: self.heads.num_kv_heads,
            head_dim: self.heads.head_dim,
            slot_pages: Span::new(0, 0),
            pages_per_slot: 0,
        };
        let paging = Paging {
            pool,
            table: place.array(&table),
            page_row: place.array(&page_row),
            layer: LAYER,
            own: None,
        };
        let column = |value: fn(&Query) -> i32| {
            let mut column: Vec<i32> = self.queries.iter().map(value).collect();
            column.resize(self.most, i32::MAX);
            column
        };
        let rows = Rows {
            count: place.array(&[(self.first + self.queries.len()) as i32]),
            first: self.first,
            sequence: place.array(&column(|query| query.sequence as i32)),
            position: place.array(&column(|query| query.position as i32)),
            ..new_rows(&mut place, self.most)
        };
        let columns = self.query_columns();
        let mut queries: Vec<f32> =
            self.queries.iter().flat_map(|query| self.query(query)).collect();
        queries.resize(self.most * columns, f32::NAN);
        let query = place.matrix(&Values::compact(queries, columns));
        let output = place.output(self.most, columns);
        let context_begin = place.optional(&self.context_begin);
        let bytes = match self.positions {
            0 => 0,
            positions => backend(device).attention_scratch(self.most, self.heads, positions),
        };
        let memory = Memory::filled_on(device, bytes as u64, 0xff);
        let scratch = Span::new(memory.address() as u64, bytes);
        backend(device).prepare_scratch(scratch).unwrap();
        let phase = Attend {
            rows,
            heads: self.heads,
            query,
            output,
            paging,
            context_begin,
            mask: Mask { window: self.window, window_from_block: false, sees_block: false },
            scale: 1.0 / (self.heads.head_dim as f32).sqrt(),
            scratch,
        };
        // Twice, as what the first time leaves in the scratch is what the second time finds.
        for _ in 0..2 {
            place.run(|backend, stream| backend.attend(stream, &phase).unwrap());
        }
        if device == Device::Cuda {
            let counters = memory.read(0..bytes.min(COUNTER_BYTES));
            assert!(counters.iter().all(|&byte| byte == 0), "counters that are not zero");
        }
        read(&output)
    }
}

/// Where the scratch has counters, which each launch leaves as it found them.
const COUNTER_BYTES: usize = 8192;

/// All tables one after the other, and where each begins.
fn flat(tables: &[Vec<i32>]) -> (Vec<i32>, Vec<i32>) {
    let mut flat = Vec::new();
    let mut first = Vec::new();
    for table in tables {
        first.push(flat.len() as i32);
        flat.extend(table);
    }
    (flat, first)
}

/// Values lie around one, so that differences are those of single precision sums.
#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let is_close = (found - expected).abs() <= 1e-5 * expected.abs().max(0.5);
        assert!(is_close, "{what}: element {index}: {found} for {expected}");
    }
}

#[test]
fn attention_is_that_of_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(60, 60)) {
        let most_positions = [40, 140, 300, 700][random.below(4)];
        let scene = Scene::random(&mut random, most_positions);
        let (found, expected) = (scene.attend(Device::Cuda), scene.attend(Device::Cpu));
        assert_close(&found, &expected, &format!("case {number}: {scene:?}"));
    }
}

#[test]
fn attention_of_many_chunks_is_that_of_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    // Chunks of several steps begin with 64 * 256 positions.
    for (number, (len, window, positions)) in
        [(3000, None, 3000), (2500, Some(2047), 4000), (17_000, None, 17_000), (2000, None, 0)]
            .into_iter()
            .enumerate()
    {
        let scene = Scene {
            heads: AttentionHeads { num_heads: 2, num_kv_heads: 1, head_dim: 8 },
            dtype: Dtype::Bf16,
            page_size: 16,
            lens: vec![len],
            shared: 0,
            context_begin: None,
            window,
            queries: vec![Query { sequence: 0, position: len - 1 }],
            first: 0,
            most: 1,
            positions,
            layout: COMPACT,
            seed: number as u64,
        };
        let (found, expected) = (scene.attend(Device::Cuda), scene.attend(Device::Cpu));
        assert_close(&found, &expected, &format!("{len} positions, window {window:?}"));
    }
}

#[test]
fn attention_of_a_row_depends_on_nothing_but_what_it_sees() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(12, 12)) {
        let mut scene = Scene::random(&mut random, 800);
        scene.heads.head_dim = scene.heads.head_dim.min(128);
        if scene.queries.is_empty() {
            let query = Query { sequence: 0, position: scene.lens[0] - 1 };
            (scene.queries, scene.most) = (vec![query], 1);
        }
        scene.queries.truncate(9);
        let together = scene.attend(Device::Cuda);
        let columns = scene.query_columns();
        for index in [0, scene.queries.len() - 1] {
            let mut alone = scene.clone();
            alone.queries = vec![scene.queries[index]];
            (alone.most, alone.first) = (1, 0);
            // Other places in memory, other helpers.
            alone.page_size = 53;
            alone.layout = Layout { offset: 3 - scene.layout.offset.min(3), gap: 8 };
            alone.positions = if scene.positions == 0 { 1000 } else { 0 };
            let found = alone.attend(Device::Cuda);
            let what = format!("case {number}, row {index}: {scene:?}");
            assert_same_bits(&found, &together[index * columns..][..columns], &what);
        }
    }
}

#[test]
fn pages_that_the_host_takes_away_are_not_looked_at() {
    let Some(_turn) = cuda_test() else { return };
    for dtype in DTYPES {
        let scene = Scene {
            heads: AttentionHeads { num_heads: 4, num_kv_heads: 2, head_dim: 32 },
            dtype,
            page_size: 16,
            lens: vec![300, 300],
            shared: 0,
            context_begin: None,
            window: None,
            queries: [0, 1].map(|sequence| Query { sequence, position: 299 }).to_vec(),
            first: 0,
            most: 2,
            positions: 300,
            layout: COMPACT,
            seed: 1,
        };
        let well = scene.attend(Device::Cuda);
        let (_, pages) = scene.tables();
        for bad in [-1, i32::MIN, i32::MAX, pages as i32] {
            let spoil_some = |tables: &mut Vec<Vec<i32>>| tables[0][3] = bad;
            let spoil_all = |tables: &mut Vec<Vec<i32>>| tables[0].fill(bad);
            let some = scene.attend_with(Device::Cuda, spoil_some);
            let all = scene.attend_with(Device::Cuda, spoil_all);
            let columns = scene.query_columns();
            assert_same_bits(&some[columns..], &well[columns..], "the other row");
            assert!(some.iter().all(|value| value.is_finite()));
            assert_same_bits(&all[columns..], &well[columns..], "the other row");
            assert_eq!(all[..columns], vec![0.0; columns], "a row that sees nothing");
        }
    }
}
