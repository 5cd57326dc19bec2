//! The phases of drafting trees, on CUDA against the CPU. What follows from the same logits is the same, bit
//! for bit.

mod device;
#[allow(dead_code)] // Each test program uses its own part.
mod phases;
#[allow(dead_code)] // Each test program uses its own part.
#[path = "host/random.rs"]
mod random;

use device::Device;
use device::backend::{backend, cuda_test};
use phases::*;
use random::Random;
use speculators::backend::block_heads::SelectCandidates;
use speculators::backend::draft_trees::{
    BranchRows, CandidatePool, ChildTokens, ColumnTokens, DescribeTree, DrawSiblings, DynamicLevel,
    ExpandBest, FixedLevel, RankCandidates, SHAPE_TABLES, ScoreChildren, TellLogits, TreeKv,
    TreeLevel, TreeShape,
};
use speculators::backend::phases::{
    Attend, AttentionHeads, Column, DraftBatch, KvPool, KvProjection, Limits, Linear, Mask, OwnKv,
    Paging, Plan, Project, QueryProjection, Rotary, Rows,
};
use speculators::tensor::{Dtype, Matrix, Span};
use speculators::tree::{Inner, Limits as TreeLimits, Links, Topology};

/// Results of both devices, that of the CPU first.
fn on_both<T>(run: impl Fn(&mut Place) -> T) -> [T; 2] {
    [Device::Cpu, Device::Cuda].map(|device| run(&mut Place::on(device)))
}

// ---- Attention ----------------------------------------------------------------------------------

/// A level of trees behind sequences with keys and values.
#[derive(Clone, Debug)]
struct Scene {
    heads: AttentionHeads,
    dtype: Dtype,
    page_size: usize,
    lens: Vec<usize>,
    rows: RowValues,
    depth: usize,
    stride: usize,
    slots: usize,
    paths: Vec<i32>,
    context_begin: Option<Vec<i32>>,
    window: Option<usize>,
    layout: Layout,
    seed: u64,
}

const LAYERS: usize = 2;

impl Scene {
    fn random(random: &mut Random) -> Self {
        let num_kv_heads = 1 + random.below(2);
        let num_heads = num_kv_heads * [1, 2, 4, 9][random.below(4)];
        let longest = [20, 100, 600][random.below(3)];
        let (trees, width) = (1 + random.below(4), 1 + random.below(5));
        let lens: Vec<usize> = (0..trees).map(|_| 1 + random.below(longest)).collect();
        let depth = 1 + random.below(6);
        let most = trees * width;
        let mut rows = RowValues::new(most - random.below(2).min(most - 1), most, 0);
        rows.sequence = (0..most).map(|row| (row / width) as i32).collect();
        rows.position = (0..most).map(|row| (lens[row / width] - 1 + depth) as i32).collect();
        rows.rope_position = rows.position.clone();
        let stride = depth + random.below(3);
        let slots = most * (1 + random.below(3));
        // Paths share nodes but for the rows' own.
        let mut own: Vec<i32> = (0..slots as i32).collect();
        random.shuffle(&mut own);
        let mut paths = vec![i32::MIN; most * stride];
        for row in 0..most {
            let path = &mut paths[row * stride..][..depth];
            path.iter_mut().for_each(|slot| *slot = random.below(slots) as i32);
            path[depth - 1] = own[row];
        }
        Self {
            heads: AttentionHeads {
                num_heads,
                num_kv_heads,
                head_dim: [8, 20, 64, 128][random.below(4)],
            },
            dtype: DTYPES[random.below(3)],
            page_size: [1, 3, 16][random.below(3)],
            context_begin: optional(random, |random| {
                lens.iter().map(|&len| random.below(len) as i32).collect()
            }),
            window: random.chance(0.5).then(|| random.below(longest + 10)),
            layout: Layout::random(random),
            seed: random.bits(),
            lens,
            rows,
            depth,
            stride,
            slots,
            paths,
        }
    }

    fn pages(&self, random: &mut Random, rows: usize) -> Values {
        let AttentionHeads { num_kv_heads, head_dim, .. } = self.heads;
        let columns = LAYERS * 2 * num_kv_heads * self.page_size * head_dim;
        let elements = random.normals(rows * columns);
        Values { rows, columns, dtype: self.dtype, layout: self.layout, elements }
    }

    fn paging(&self, place: &mut Place) -> Paging {
        let mut random = Random::new(self.seed);
        let counts = self.lens.iter().map(|len| len.div_ceil(self.page_size) as i32);
        let firsts: Vec<i32> = counts
            .clone()
            .scan(0, |next, count| {
                *next += count;
                Some(*next - count)
            })
            .collect();
        let table: Vec<i32> = (0..counts.sum()).collect();
        let pages = self.pages(&mut random, table.len());
        let own_pages = self.pages(&mut random, self.slots.div_ceil(self.page_size));
        Paging {
            pool: KvPool {
                pages: place.matrix(&pages),
                page_size: self.page_size,
                num_kv_heads: self.heads.num_kv_heads,
                head_dim: self.heads.head_dim,
                slot_pages: Span::new(0, 0),
                pages_per_slot: 0,
            },
            table: place.array(&table),
            page_row: place.array(&firsts),
            layer: 1,
            own: Some(OwnKv::Tree(TreeKv {
                pages: place.matrix(&own_pages),
                paths: place.array(&self.paths),
                stride: self.stride,
                depth: self.depth,
            })),
        }
    }
}

#[test]
fn rows_of_trees_see_their_paths_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(80, 40)) {
        let scene = Scene::random(&mut random);
        let columns = scene.heads.num_heads * scene.heads.head_dim;
        let elements = random.normals(scene.rows.most * columns);
        let rows = scene.rows.most;
        let query = Values { rows, columns, dtype: Dtype::F32, layout: COMPACT, elements };
        let [expected, found] = on_both(|place| {
            let bytes = backend(place.device).attention_scratch(rows, scene.heads, 700);
            let phase = Attend {
                rows: scene.rows.lend(place),
                heads: scene.heads,
                query: place.matrix(&query),
                output: place.output(rows, columns),
                paging: scene.paging(place),
                context_begin: scene.context_begin.as_ref().map(|begin| place.array(begin)),
                mask: Mask {
                    window: scene.window,
                    window_from_block: random.clone().chance(0.3),
                    sees_block: false,
                },
                scale: 1.0 / (scene.heads.head_dim as f32).sqrt(),
                scratch: place.scratch(bytes),
            };
            place.run(|backend, stream| backend.attend(stream, &phase).unwrap());
            read(&phase.output)
        });
        assert_close(&found, &expected, columns, 4.0 * TOLERANCE, &format!("{number}: {scene:?}"));
    }
}

#[test]
fn keys_and_values_of_trees_go_into_their_slots() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(40, 20)) {
        let scene = Scene::random(&mut random);
        let (most, hidden) = (scene.rows.most, WIDTHS[random.below(WIDTHS.len())]);
        let AttentionHeads { num_heads, num_kv_heads, head_dim } = scene.heads;
        let residual = Values {
            layout: COMPACT,
            ..Values::random(&mut random, (most, hidden), Dtype::F32, 1.0)
        };
        let scale = 1.0 / (hidden as f32).sqrt();
        let maps = [num_heads, num_kv_heads, num_kv_heads].map(|heads| {
            Values::random(
                &mut random,
                (heads * head_dim, hidden),
                DTYPES[number as usize % 3],
                scale,
            )
        });
        let [expected, found] = on_both(|place| {
            let [query, key, value] =
                [0, 1, 2].map(|map| Linear::unbiased(place.matrix(&maps[map])));
            let bytes = backend(place.device).projection_scratch(most, scene.heads);
            let kv = [KvProjection { key, value, key_norm: None }];
            let frequencies: Vec<f32> = (0..head_dim / 2).map(|i| 0.9_f32.powi(i as i32)).collect();
            let frequencies = place.array(&frequencies);
            let phase = Project {
                rows: scene.rows.lend(place),
                hidden: place.matrix(&residual),
                norm: None,
                residual_is_normed: false,
                embedding: None,
                input: place.output(most, hidden),
                query: Some(QueryProjection {
                    linear: query,
                    norm: None,
                    output: place.output(most, num_heads * head_dim),
                }),
                kv: &kv,
                kv_scratch: place.output(most, 2 * num_kv_heads * head_dim),
                rotary: Rotary {
                    inverse_frequency: frequencies,
                    long_inverse_frequency: frequencies,
                    long_from: usize::MAX,
                    scale: 1.0,
                },
                turns: place.output(most, 2 * (head_dim / 2)),
                paging: scene.paging(place),
                scratch: place.scratch(bytes),
            };
            place.run(|backend, stream| backend.project(stream, &phase).unwrap());
            (read(&phase.paging.pool.pages), read(&phase.paging.own_pages().unwrap()))
        });
        let what = format!("case {number}: {scene:?}");
        assert_same_bits(&found.0, &expected.0, &what);
        let rounding = if scene.dtype == Dtype::F32 { 0.0 } else { 1.0 / 128.0 };
        let columns = expected.1.len() / scene.slots.div_ceil(scene.page_size);
        assert_close(&found.1, &expected.1, columns, 4.0 * TOLERANCE + rounding, &what);
    }
}

// ---- Whole trees --------------------------------------------------------------------------------

/// A call that drafts trees from random logits in place of a network.
#[derive(Clone, Debug)]
struct Call {
    sequences: usize,
    max_drafts: usize,
    columns: usize,
    position: Vec<i32>,
    rope_position: Vec<i32>,
    row_count: Vec<i32>,
    num_drafts: Option<Vec<i32>>,
    limit: Option<Vec<i32>>,
    most_drafts: usize,
    reads_own_tokens: bool,
    tokens: TokensOfColumns,
    sampling: Option<SamplingValues>,
    /// The type of the logits that the host wants.
    wanted: Option<Dtype>,
    tells_trees: bool,
    /// Whether the rows of a level of a tree share their logits, and have no paths.
    shares_laws: bool,
    seed: u64,
}

/// What tokens the columns of laws are.
#[derive(Clone, Debug)]
enum TokensOfColumns {
    /// The columns themselves.
    Columns,
    /// Those of one table.
    Table(Vec<i32>),
    /// Candidates that the laws of a tree's level have in common.
    Candidates,
}

const MAX_POSITION: usize = 60;
const STRIDE: usize = 9;

impl Call {
    fn random(random: &mut Random, nodes: usize) -> Self {
        let sequences = 1 + random.below(6);
        let max_drafts = (nodes - 1 + random.below(4)).max(1);
        let columns = [1, 3, 40, 300, 1100][random.below(5)];
        let number = |random: &mut Random, most: usize| random.below(most + 2) as i32 - 1;
        let all = |random: &mut Random, number: &dyn Fn(&mut Random) -> i32| {
            (0..sequences).map(|_| number(random)).collect::<Vec<i32>>()
        };
        Self {
            position: all(random, &|random| 1 + random.below(MAX_POSITION - 1) as i32),
            rope_position: all(random, &|random| random.bits() as i32),
            row_count: all(random, &|random| i32::from(random.chance(0.9))),
            num_drafts: optional(random, |random| all(random, &|r| number(r, max_drafts))),
            limit: random.chance(0.3).then(|| all(random, &|random| number(random, 8))),
            most_drafts: if random.chance(0.3) { 1 + random.below(4) } else { usize::MAX },
            reads_own_tokens: random.chance(0.3),
            tokens: match random.below(3) {
                0 => TokensOfColumns::Columns,
                1 => TokensOfColumns::Table(random_tokens(random, columns)),
                _ => TokensOfColumns::Candidates,
            },
            sampling: optional(random, |random| SamplingValues::random(random, sequences)),
            wanted: optional(random, |random| DTYPES[random.below(3)]),
            tells_trees: random.chance(0.8),
            shares_laws: random.chance(0.4),
            seed: random.bits(),
            sequences,
            max_drafts,
            columns,
        }
    }

    /// Logits of a level, with equal ones and some that are no candidates.
    fn logits(&self, random: &mut Random, rows: usize) -> Values {
        let special = [f32::NEG_INFINITY, f32::NAN, f32::INFINITY, 0.0, -0.0];
        let is_flat = random.chance(0.2);
        let rare = if random.chance(0.3) { 0.7 } else { 0.01 };
        let elements = (0..rows * self.columns)
            .map(|_| match (random.chance(rare), is_flat) {
                (true, _) => special[random.below(special.len())],
                (false, true) => random.below(4) as f32,
                (false, false) => random.normal() * 3.0,
            })
            .collect();
        Values { rows, columns: self.columns, dtype: Dtype::F32, layout: COMPACT, elements }
    }
}

fn random_tokens(random: &mut Random, len: usize) -> Vec<i32> {
    (0..len).map(|_| random.below(100_000) as i32).collect()
}

/// Everything that a call has written.
#[derive(Debug, Default, PartialEq)]
struct Written {
    integers: Vec<Vec<i32>>,
    /// The bits of numbers.
    numbers: Vec<Vec<u32>>,
}

impl Written {
    fn integers(&mut self, span: Span<i32>) {
        self.integers.push(read_array(span));
    }

    fn numbers(&mut self, matrix: &Matrix) {
        self.numbers.push(read(matrix).into_iter().map(f32::to_bits).collect());
    }

    /// The rows of a level, as many as there are.
    fn level(&mut self, level: &TreeLevel) {
        let rows = &level.rows;
        let count = read_array(rows.count)[0] as usize;
        self.integers.push(vec![count as i32]);
        for span in [rows.sequence, rows.position, rows.rope_position, rows.token, rows.source] {
            self.integers(span.slice(0, count));
        }
        for row in 0..count {
            let len = if level.stride == 0 { 0 } else { level.depth };
            self.integers(level.paths.slice(row * level.stride, len));
        }
    }
}

/// A call on one device.
struct Scenario<'c> {
    call: &'c Call,
    place: Place,
    batch: DraftBatch<'c>,
    plan: Plan,
    random: Random,
    written: Written,
}

fn rows(place: &mut Place, len: usize) -> Rows {
    let mut column = |len: usize| place.array(&vec![-9_i32; len]);
    Rows {
        count: column(1),
        first: 0,
        sequence: column(len),
        position: column(len),
        rope_position: column(len),
        token: column(len),
        source: column(len),
    }
}

impl<'c> Scenario<'c> {
    /// Plans the call.
    fn new(device: Device, call: &'c Call, shape: TreeShape<'c>) -> Self {
        let mut place = Place::on(device);
        let sequences = call.sequences;
        let column = |span: Span<i32>, stride: usize| Column { span, stride };
        let stride = call.max_drafts + 1;
        let wanted_rows = sequences * call.max_drafts;
        let wanted = call.wanted.map(|dtype| {
            let elements = vec![UNWRITTEN; wanted_rows * call.columns];
            let (rows, columns) = (wanted_rows, call.columns);
            place.matrix(&Values { rows, columns, dtype, layout: COMPACT, elements })
        });
        let is_dynamic = matches!(shape, TreeShape::Dynamic { .. });
        let wants_candidates = matches!(call.tokens, TokensOfColumns::Candidates)
            && (call.wanted.is_some() || call.seed.is_multiple_of(2));
        let links = call.tells_trees.then(|| {
            let mut array = || Some(place.array(&vec![-7_i32; sequences * (stride + 2)]));
            let [parents, first_child, next_sibling, depth, position] = [(); 5].map(|()| array());
            let stride = stride + 2;
            Links { stride, parents, first_child, next_sibling, depth, position }
        });
        let batch = DraftBatch {
            num_rows: sequences * stride,
            position: column(place.array(&call.position), 1),
            row_count: column(place.array(&call.row_count), 1),
            next_token: column(place.array(&vec![0; sequences]), 1),
            num_drafts: call.num_drafts.as_ref().map(|drafts| place.array(drafts)),
            limit: call.limit.as_ref().map(|limit| place.array(limit)),
            tokens: place.array(&vec![0; sequences * stride]),
            rope_position: Some(place.array(&vec![call.rope_position[0]; sequences * stride])),
            sampling: call.sampling.as_ref().map(|s| s.lend(&mut place)).unwrap_or_default(),
            shape: Some(shape),
            links,
            draft_tokens: column(place.array(&vec![-8; sequences * stride]), stride),
            num_proposed: Some(place.array(&vec![-8; sequences])),
            draft_logits: if is_dynamic { None } else { wanted },
            draft_candidates: (wants_candidates && !is_dynamic)
                .then(|| place.array(&vec![-6; wanted_rows * call.columns])),
            padding: -3,
            ..DraftBatch::new(sequences, call.max_drafts)
        };
        let words = backend(device).fault_words().unwrap();
        let plan = Plan {
            commit: rows(&mut place, 2 * sequences),
            draft: rows(&mut place, sequences),
            drafting: place.array(&vec![-9; call.max_drafts]),
            num_drafts: place.array(&vec![-9; sequences]),
            depth: place.array(&vec![-9; sequences]),
            shape: place.array(&vec![-9; SHAPE_TABLES * stride]),
            page_row: place.array(&vec![-9; sequences]),
            fault: words.span,
        };
        let pages = MAX_POSITION.div_ceil(16);
        let pool = KvPool {
            pages: Matrix {
                address: 0,
                dtype: Dtype::F32,
                rows: pages * sequences,
                columns: 1,
                row_stride: 1,
            },
            page_size: 16,
            num_kv_heads: 1,
            head_dim: 1,
            slot_pages: place.array(&(0..(pages * sequences) as i32).collect::<Vec<_>>()),
            pages_per_slot: pages,
        };
        let limits = Limits {
            max_rows: 2 * sequences,
            max_position: MAX_POSITION,
            vocabulary: 10,
            num_slots: sequences,
            most_drafts: call.most_drafts,
            drafts_in_pages: true,
            reads_own_tokens: call.reads_own_tokens,
        };
        place.run(|backend, stream| {
            backend.plan_rows(stream, &batch, &limits, &pool, &plan).map(drop).unwrap();
        });
        let fault = backend(device).take_fault(&words);
        assert_eq!(fault, None);
        let written = Written::default();
        Self { call, place, batch, plan, random: Random::new(call.seed), written }
    }

    fn roots(&self, slots: usize) -> TreeLevel {
        let draft = self.plan.draft.slice(0, self.call.sequences);
        TreeLevel {
            rows: Rows { count: self.plan.drafting.slice(0, 1), ..draft },
            width: 1,
            shared: 1,
            depth: 0,
            paths: Span::new(0, 0),
            stride: 0,
            slots,
            first_slot: 0,
        }
    }

    fn level(&mut self, above: &TreeLevel, width: usize, first_slot: usize) -> TreeLevel {
        let len = self.call.sequences * width;
        TreeLevel {
            rows: rows(&mut self.place, len),
            width,
            shared: if self.call.shares_laws { width } else { 1 },
            depth: above.depth + 1,
            paths: self.place.array(&vec![-9; len * STRIDE]),
            stride: if self.call.shares_laws { 0 } else { STRIDE },
            slots: above.slots,
            first_slot,
        }
    }

    /// The logits of a level's laws, and scratch for what reads them. Those that rows share are some of the
    /// rows of a matrix, as the slots of a block are.
    fn logits(&mut self, level: &TreeLevel) -> (Matrix, Span<u8>) {
        let (step, laws) = (if self.call.shares_laws { 3 } else { 1 }, level.laws());
        let values = self.call.logits(&mut self.random, step * laws);
        let bytes = backend(self.place.device).proposal_scratch(laws, values.columns);
        let all = self.place.matrix(&values);
        (all.every(step, step - 1, laws), self.place.scratch(bytes))
    }

    /// The tokens of a level's columns. Tables of candidates are some of those of a block's slots.
    fn tokens(&mut self, level: &TreeLevel) -> Option<ColumnTokens> {
        let columns = self.call.columns;
        match &self.call.tokens {
            TokensOfColumns::Columns => None,
            TokensOfColumns::Table(ids) => Some(ColumnTokens::of_all(self.place.array(ids))),
            TokensOfColumns::Candidates => {
                let stride = 2 * columns;
                let ids = random_tokens(&mut self.random, self.call.sequences * stride);
                let ids = self.place.array(&ids).slice(columns, ids.len() - columns);
                Some(ColumnTokens { ids, stride, laws: level.width / level.shared })
            }
        }
    }

    fn select(
        &mut self,
        level: &TreeLevel,
        (logits, tokens): (Matrix, Option<ColumnTokens>),
        most: usize,
    ) -> ChildTokens {
        let count = most.min(self.call.columns);
        let rows = level.laws();
        let law_rows = if self.call.shares_laws { self.roots(0).rows } else { level.rows };
        let children = ChildTokens {
            ids: self.place.array(&vec![-9; rows * count]),
            values: self.place.output(rows, count),
            tokens,
        };
        let select =
            SelectCandidates { rows: law_rows, logits, ids: children.ids, values: children.values };
        self.place.run(|backend, stream| backend.select_candidates(stream, &select).unwrap());
        children
    }

    fn describe(&self) {
        let phase = DescribeTree { batch: self.batch, plan: self.plan };
        self.place.run(|backend, stream| backend.describe_tree(stream, &phase).unwrap());
    }

    fn finish(mut self) -> Written {
        let batch = self.batch;
        self.written.integers(batch.draft_tokens.span);
        self.written.integers(self.plan.num_drafts);
        self.written.integers(batch.num_proposed.unwrap());
        if let Some(links) = batch.links {
            let arrays =
                [links.parents, links.first_child, links.next_sibling, links.depth, links.position];
            arrays.into_iter().flatten().for_each(|array| self.written.integers(array));
        }
        if let Some(logits) = &batch.draft_logits {
            self.written.numbers(logits);
        }
        if let Some(candidates) = batch.draft_candidates {
            self.written.integers(candidates);
        }
        self.written
    }
}

/// Drafts a tree whose shape is given.
fn draft_fixed(device: Device, call: &Call, topology: &Topology, is_drawn: bool) -> Written {
    let shape = TreeShape::Fixed { topology, is_drawn };
    let mut scenario = Scenario::new(device, call, shape);
    let inner = Inner::of(topology);
    let mut level = scenario.roots(topology.num_nodes());
    while topology.levels() > level.depth {
        let (logits, scratch) = scenario.logits(&level);
        let tokens = scenario.tokens(&level);
        let nodes = inner.level(level.depth).map(|number| inner.node(number));
        let most = nodes.map(|node| topology.children(node).count()).max().unwrap();
        let fixed = FixedLevel { level, inner: &inner, batch: scenario.batch, plan: scenario.plan };
        if scenario.batch.draft_logits.is_some() || scenario.batch.draft_candidates.is_some() {
            let candidates = scenario.batch.draft_candidates.and(tokens);
            let tell = TellLogits { level: fixed, logits, candidates };
            scenario.place.run(|backend, stream| backend.tell_logits(stream, &tell).unwrap());
        }
        let children = scenario.select(&level, (logits, tokens), most);
        if is_drawn && scenario.batch.sampling.temperature.is_some() {
            let draw = DrawSiblings { level: fixed, logits, children, distance: 2, scratch };
            scenario.place.run(|backend, stream| backend.draw_siblings(stream, &draw).unwrap());
        }
        let below = inner.level(level.depth + 1);
        let next =
            (!below.is_empty()).then(|| scenario.level(&level, below.len(), below.start - 1));
        let branch = BranchRows { level: fixed, children, next };
        scenario.place.run(|backend, stream| backend.branch_rows(stream, &branch).unwrap());
        let Some(next) = next else { break };
        scenario.written.level(&next);
        level = next;
    }
    scenario.describe();
    scenario.finish()
}

/// The parents of a tree by level; children of one node need not be neighbours.
fn random_parents(random: &mut Random) -> Vec<i32> {
    let mut parents = vec![-1];
    let mut above = 0..1;
    for _ in 0..random.below(6) {
        let most = if random.chance(0.1) { 70 } else { 9 };
        let begin = parents.len();
        let level: Vec<usize> =
            (0..1 + random.below(most)).map(|_| above.start + random.below(above.len())).collect();
        parents.extend(level.iter().map(|&parent| parent as i32));
        above = begin..parents.len();
    }
    parents
}

#[test]
fn given_trees_are_those_of_the_cpu_bit_for_bit() {
    let Some(_turn) = cuda_test() else { return };
    let mut proposed = 0;
    for (number, mut random) in cases(test_cases(150, 40)) {
        let parents = random_parents(&mut random);
        let topology = Topology::from_parents(&parents, &TreeLimits::LARGEST).unwrap();
        let call = Call::random(&mut random, parents.len());
        let is_drawn = random.chance(0.6);
        let [expected, found] = [Device::Cpu, Device::Cuda]
            .map(|device| draft_fixed(device, &call, &topology, is_drawn));
        proposed += expected.integers.iter().map(Vec::len).sum::<usize>();
        assert_eq!(found, expected, "case {number}: {parents:?}, drawn: {is_drawn}, {call:?}");
    }
    assert!(proposed > 1000);
}

#[test]
fn the_largest_trees_are_those_of_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    let mut random = Random::new(5);
    let chain: Vec<i32> = (-1..1023).collect();
    let star: Vec<i32> =
        (0..1024).map(|node| if node == 0 { -1 } else { (node - 1) / 256 }).collect();
    for parents in [star, chain] {
        let topology = Topology::from_parents(&parents, &TreeLimits::LARGEST).unwrap();
        let call = Call { sequences: 1, columns: 300, ..Call::random(&mut random, 1024) };
        let call = Call {
            max_drafts: 1023,
            row_count: vec![1],
            num_drafts: None,
            limit: None,
            most_drafts: usize::MAX,
            tokens: TokensOfColumns::Columns,
            wanted: None,
            ..call
        };
        // A chain so long has no room for its rows' paths here; what follows from its shape is told.
        let is_deep = topology.levels() > STRIDE;
        let [expected, found] = [Device::Cpu, Device::Cuda].map(|device| {
            if !is_deep {
                return draft_fixed(device, &call, &topology, true);
            }
            let shape = TreeShape::Fixed { topology: &topology, is_drawn: false };
            let scenario = Scenario::new(device, &call, shape);
            scenario.describe();
            scenario.finish()
        });
        assert_eq!(found, expected);
    }
}

/// Drafts dynamic trees.
fn draft_dynamic(
    device: Device,
    call: &Call,
    (nodes, depth, width): (usize, usize, usize),
) -> Written {
    let shape = TreeShape::Dynamic { nodes, depth, width };
    let mut scenario = Scenario::new(device, call, shape);
    let (sequences, slots) = (call.sequences, width * depth);
    let stride = width + depth * width * width;
    let place = &mut scenario.place;
    let pool = CandidatePool {
        width,
        stride,
        tokens: place.array(&vec![-9; sequences * stride]),
        scores: place.array(&vec![0.5; sequences * stride]),
        expanded: place.array(&vec![-9; sequences * slots]),
        order: place.array(&vec![-9; sequences * stride]),
        best: place.output(sequences, width),
    };
    scenario.describe();
    let mut level = scenario.roots(slots);
    loop {
        let (logits, scratch) = scenario.logits(&level);
        let tokens = scenario.tokens(&level);
        let (batch, plan) = (scenario.batch, scenario.plan);
        let dynamic = DynamicLevel { level, pool, batch, plan };
        let children = scenario.select(&level, (logits, tokens), width);
        let score = ScoreChildren { level: dynamic, logits, children, scratch };
        scenario.place.run(|backend, stream| backend.score_children(stream, &score).unwrap());
        let scored = level.depth + 1;
        let trees = read_array(plan.drafting)[0] as usize;
        for tree in 0..trees {
            let of_level = tree * stride + pool.first(scored);
            scenario.written.integers(pool.tokens.slice(of_level, pool.len(scored)));
            let scores: Vec<f32> = read_array(pool.scores.slice(of_level, pool.len(scored)));
            scenario.written.numbers.push(scores.into_iter().map(f32::to_bits).collect());
        }
        if scored == depth {
            let rank = RankCandidates { level: dynamic };
            scenario.place.run(|backend, stream| backend.rank_candidates(stream, &rank).unwrap());
            return scenario.finish();
        }
        let next = scenario.level(&level, width, (scored - 1) * width);
        let expand = ExpandBest { level: dynamic, next };
        scenario.place.run(|backend, stream| backend.expand_best(stream, &expand).unwrap());
        scenario.written.level(&next);
        level = next;
    }
}

#[test]
fn dynamic_trees_are_those_of_the_cpu_bit_for_bit() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(120, 40)) {
        let depth = 1 + random.below(5);
        let width = if random.chance(0.1) { 20 } else { 1 + random.below(7) };
        let most = 1 + width + (depth - 1) * width * width;
        let nodes = 2 + random.below(most.min(1024) - 1);
        let call = Call::random(&mut random, nodes);
        let max_drafts = call.max_drafts.min(1023);
        let call = Call { max_drafts, ..call };
        let [expected, found] = [Device::Cpu, Device::Cuda]
            .map(|device| draft_dynamic(device, &call, (nodes, depth, width)));
        assert_eq!(found, expected, "case {number}: {nodes}, {depth}, {width}, {call:?}");
    }
}
