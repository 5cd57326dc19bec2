//! The phases of drafting in blocks, on CUDA against the CPU.

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
use speculators::backend::block_heads::{
    Convolve, MarkovCell, RateDrafts, Refine, RefinerWeights, ScoreCandidates, SelectCandidates,
    Selector, Slots, StepMarkov, WalkCandidates,
};
use speculators::backend::draft_trees::ColumnTokens;
use speculators::backend::phases::{
    Attend, AttentionHeads, BlockInput, BlockKv, Choice, Column, DraftBatch, EmbeddingInput,
    KvPool, KvProjection, Linear, MapRows, Mask, OwnKv, Paging, Project, Propose, QueryProjection,
    Rotary, RowSegments, Rows, StartBlock,
};
use speculators::tensor::{Dtype, Matrix, Span};

/// Results of both devices, that of the CPU first.
fn on_both<T>(run: impl Fn(&mut Place) -> T) -> [T; 2] {
    [Device::Cpu, Device::Cuda].map(|device| run(&mut Place::on(device)))
}

/// Blocks of a call: how many there are of how many, their rows, and those of them that draft.
#[derive(Clone, Debug)]
struct Blocks {
    count: usize,
    most: usize,
    len: usize,
    first_slot: usize,
    num_slots: usize,
    /// Of the drafting rows.
    draft: RowValues,
}

impl Blocks {
    fn random(random: &mut Random, vocabulary: usize) -> Self {
        let most = 1 + random.below(5);
        let count = if random.chance(0.2) { random.below(most + 1) } else { most };
        let len = 1 + random.below(9);
        let first_slot = random.below(len.min(2));
        let num_slots = 1 + random.below(len - first_slot);
        let mut sequences: Vec<i32> = (0..most as i32).collect();
        random.shuffle(&mut sequences);
        let mut draft = RowValues::new(count, most, 0);
        draft.sequence = sequences[..count].to_vec();
        draft.position = (0..count).map(|_| random.below(1000) as i32).collect();
        draft.rope_position = (0..count).map(|_| random.bits() as i32).collect();
        draft.token = (0..count).map(|_| random.below(vocabulary) as i32).collect();
        draft.source = (0..count).map(|_| random.below(3) as i32).collect();
        Self { count, most, len, first_slot, num_slots, draft }
    }

    /// Rows of all blocks, `each` of every one; the caller fills in what its phase looks at.
    fn rows(&self, each: usize) -> RowValues {
        RowValues::new(self.count * each, self.most * each, 0)
    }

    fn slots(&self, place: &mut Place) -> Slots {
        let Self { len, first_slot, num_slots, .. } = *self;
        Slots { draft: self.draft.lend(place), len, first_slot, num_slots }
    }

    /// How many tokens each sequence proposes: those that draft one at least.
    fn num_drafts(&self, random: &mut Random) -> Vec<i32> {
        let mut drafts = vec![0; self.most];
        for &sequence in &self.draft.sequence {
            drafts[sequence as usize] = 1 + random.below(self.num_slots) as i32;
        }
        drafts
    }
}

fn tokens(random: &mut Random, len: usize, vocabulary: usize) -> Vec<i32> {
    (0..len).map(|_| random.below(vocabulary) as i32).collect()
}

fn f32_values(random: &mut Random, rows: usize, columns: usize) -> Values {
    Values::compact(random.normals(rows * columns), columns)
}

fn weights(random: &mut Random, rows: usize, columns: usize) -> Values {
    let dtype = DTYPES[random.below(3)];
    Values::random(random, (rows, columns), dtype, 1.0 / (columns as f32).sqrt())
}

/// Elements of rows that are there, and a few bits more than those of f32 sums.
#[track_caller]
fn assert_rows_close([expected, found]: &[Vec<f32>; 2], columns: usize, what: &str) {
    assert_close(found, expected, columns, 4.0 * TOLERANCE, what);
}

// ---- Layout -------------------------------------------------------------------------------------

#[test]
fn blocks_are_laid_out_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(60, 30)) {
        let vocabulary = 1 + random.below(40);
        let blocks = Blocks::random(&mut random, vocabulary);
        let columns = WIDTHS[random.below(WIDTHS.len())];
        let table = weights(&mut random, vocabulary, columns);
        let gain = optional(&mut random, |random| Values::gain(random, columns));
        let is_embedded = random.chance(0.5);
        let first = f32_values(&mut random, blocks.most, columns);
        let others = f32_values(&mut random, 1, columns);
        let distance = random.below(2);
        let mask_token = random.below(vocabulary) as i32;
        let results = on_both(|place| {
            let table = [place.matrix(&table)];
            let norm = gain.as_ref().map(|_| place.norm(&gain));
            let rows = RowValues::new(0, blocks.most * blocks.len, 0).lend(place);
            let mut slots = RowValues::new(0, blocks.most * blocks.num_slots, 0);
            slots.token = vec![5; slots.most];
            let phase = StartBlock {
                draft: blocks.draft.lend(place),
                rows,
                len: blocks.len,
                distance,
                mask_token,
                slots: slots.lend(place),
                first_slot: blocks.first_slot,
                num_slots: blocks.num_slots,
                input: if is_embedded {
                    let table = RowSegments { segments: &table };
                    BlockInput::Embedding(EmbeddingInput { table, embeddings: None, norm })
                } else {
                    BlockInput::Hidden {
                        first: place.matrix(&first),
                        others: place.matrix(&others),
                    }
                },
                hidden: place.output(blocks.most * blocks.len, columns),
            };
            place.run(|backend, stream| backend.start_block(stream, &phase).unwrap());
            let mut laid_out = rows_of(&phase.rows);
            // A row of a block continues none.
            laid_out.truncate(5);
            (laid_out, rows_of(&phase.slots), read(&phase.hidden))
        });
        let what = format!("case {number}: {blocks:?}");
        let [expected, found] = &results;
        assert_eq!((&found.0, &found.1), (&expected.0, &expected.1), "{what}");
        assert_close(&found.2, &expected.2, columns, TOLERANCE, &what);
    }
}

// ---- Attention ----------------------------------------------------------------------------------

/// Blocks behind sequences with keys and values.
#[derive(Clone, Debug)]
struct Scene {
    heads: AttentionHeads,
    dtype: Dtype,
    page_size: usize,
    blocks: Blocks,
    /// Positions of the sequences that pages of the pool hold.
    lens: Vec<usize>,
    /// From the last of them to the first row of the block.
    distance: usize,
    context_begin: Option<Vec<i32>>,
    mask: Mask,
    layout: Layout,
    seed: u64,
}

const LAYERS: usize = 2;

impl Scene {
    fn random(random: &mut Random) -> Self {
        let num_kv_heads = 1 + random.below(2);
        let num_heads = num_kv_heads * [1, 2, 4, 9][random.below(4)];
        let head_dim = [8, 20, 64, 128][random.below(4)];
        let blocks = Blocks::random(random, 2);
        let longest = [20, 100, 600][random.below(3)];
        let lens: Vec<usize> = (0..blocks.most).map(|_| 1 + random.below(longest)).collect();
        let begin = |random: &mut Random, &len: &usize| random.below(len) as i32;
        Self {
            heads: AttentionHeads { num_heads, num_kv_heads, head_dim },
            dtype: DTYPES[random.below(3)],
            page_size: [1, 3, 16][random.below(3)],
            distance: random.below(2),
            context_begin: optional(random, |random| {
                lens.iter().map(|len| begin(random, len)).collect()
            }),
            mask: Mask {
                window: random.chance(0.6).then(|| random.below(longest + 10)),
                window_from_block: random.chance(0.5),
                sees_block: random.chance(0.5),
            },
            layout: Layout::random(random),
            seed: random.bits(),
            blocks,
            lens,
        }
    }

    fn page_columns(&self, layers: usize) -> usize {
        layers * 2 * self.heads.num_kv_heads * self.page_size * self.heads.head_dim
    }

    fn pages(&self, random: &mut Random, pages: usize, layers: usize) -> Values {
        let (rows, columns) = (pages, self.page_columns(layers));
        let elements = random.normals(rows * columns);
        Values { rows, columns, dtype: self.dtype, layout: self.layout, elements }
    }

    /// All pages in order, and the first of each sequence.
    fn table(&self) -> (Vec<i32>, Vec<i32>) {
        let counts = self.lens.iter().map(|len| len.div_ceil(self.page_size) as i32);
        let firsts = counts.scan(0, |next, count| {
            *next += count;
            Some(*next - count)
        });
        let firsts: Vec<i32> = firsts.collect();
        let total = self.lens.iter().map(|len| len.div_ceil(self.page_size) as i32).sum();
        ((0..total).collect(), firsts)
    }

    /// The rows of the blocks.
    fn rows(&self) -> RowValues {
        let len = self.blocks.len;
        let mut rows = self.blocks.rows(len);
        for &sequence in &self.blocks.draft.sequence {
            let first = self.lens[sequence as usize] - 1 + self.distance;
            rows.sequence.extend(vec![sequence; len]);
            rows.position.extend((first..first + len).map(|position| position as i32));
        }
        rows.rope_position = rows.position.clone();
        rows
    }

    fn paging(&self, place: &mut Place, layer: usize) -> Paging {
        let mut random = Random::new(self.seed);
        let (table, firsts) = self.table();
        let pages_per_block = self.blocks.len.div_ceil(self.page_size);
        let pages = self.pages(&mut random, table.len(), LAYERS);
        let block_pages = self.pages(&mut random, self.blocks.most * pages_per_block, 1);
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
            layer,
            own: Some(OwnKv::Block(BlockKv {
                pages: place.matrix(&block_pages),
                len: self.blocks.len,
            })),
        }
    }
}

#[test]
fn rows_of_blocks_see_what_they_see_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(80, 40)) {
        let scene = Scene::random(&mut random);
        let rows = scene.rows();
        let columns = scene.heads.num_heads * scene.heads.head_dim;
        let query = f32_values(&mut random, rows.most, columns);
        let results = on_both(|place| {
            let bytes = backend(place.device).attention_scratch(rows.most, scene.heads, 700);
            let phase = Attend {
                rows: rows.lend(place),
                heads: scene.heads,
                query: place.matrix(&query),
                output: place.output(rows.most, columns),
                paging: scene.paging(place, 1),
                context_begin: scene.context_begin.as_ref().map(|begin| place.array(begin)),
                mask: scene.mask,
                scale: 1.0 / (scene.heads.head_dim as f32).sqrt(),
                scratch: place.scratch(bytes),
            };
            place.run(|backend, stream| backend.attend(stream, &phase).unwrap());
            read(&phase.output)
        });
        assert_rows_close(&results, columns, &format!("case {number}: {scene:?}"));
    }
}

#[test]
fn keys_and_values_of_blocks_stay_in_their_own_pages() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(40, 20)) {
        let scene = Scene::random(&mut random);
        let (rows, hidden) = (scene.rows(), WIDTHS[random.below(WIDTHS.len())]);
        let AttentionHeads { num_heads, num_kv_heads, head_dim } = scene.heads;
        let residual = f32_values(&mut random, rows.most, hidden);
        let maps = [num_heads, num_kv_heads, num_kv_heads]
            .map(|heads| weights(&mut random, heads * head_dim, hidden));
        let results = on_both(|place| {
            let [query, key, value] =
                [0, 1, 2].map(|map| Linear { weight: place.matrix(&maps[map]), bias: None });
            let kv = [KvProjection { key, value, key_norm: None }];
            let bytes = backend(place.device).projection_scratch(rows.most, scene.heads);
            let frequencies: Vec<f32> = (0..head_dim / 2).map(|i| 0.9_f32.powi(i as i32)).collect();
            let frequencies = place.array(&frequencies);
            let phase = Project {
                rows: rows.lend(place),
                hidden: place.matrix(&residual),
                norm: None,
                residual_is_normed: false,
                embedding: None,
                input: place.output(rows.most, hidden),
                query: Some(QueryProjection {
                    linear: query,
                    norm: None,
                    output: place.output(rows.most, num_heads * head_dim),
                }),
                kv: &kv,
                kv_scratch: place.output(rows.most, 2 * num_kv_heads * head_dim),
                rotary: Rotary {
                    inverse_frequency: frequencies,
                    long_inverse_frequency: frequencies,
                    long_from: usize::MAX,
                    scale: 1.0,
                },
                turns: place.output(rows.most, 2 * (head_dim / 2)),
                paging: scene.paging(place, 1),
                scratch: place.scratch(bytes),
            };
            place.run(|backend, stream| backend.project(stream, &phase).unwrap());
            let block = phase.paging.block().unwrap();
            (read(&phase.paging.pool.pages), read(&block.pages))
        });
        let what = format!("case {number}: {scene:?}");
        let [expected, found] = &results;
        assert_same_bits(&found.0, &expected.0, &what);
        let rounding = if scene.dtype == Dtype::F32 { 0.0 } else { 1.0 / 128.0 };
        let columns = scene.page_columns(1);
        assert_close(&found.1, &expected.1, columns, 4.0 * TOLERANCE + rounding, &what);
    }
}

// ---- Proposals ----------------------------------------------------------------------------------

/// What stands in the rows and outputs of a call after a phase that proposes.
#[derive(Debug)]
struct Outcome {
    draft_tokens: Vec<i32>,
    others: Vec<Vec<i32>>,
    numbers: Vec<Vec<f32>>,
}

#[test]
fn the_slots_of_blocks_propose_and_keep_what_they_do_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(80, 40)) {
        let blocks = Blocks::random(&mut random, 30);
        let (columns, width) = (1 + random.below(600), WIDTHS[random.below(WIDTHS.len())]);
        let max_drafts = blocks.num_slots + random.below(3);
        let num_drafts = blocks.num_drafts(&mut random);
        let mut rows = blocks.rows(blocks.num_slots);
        for (&sequence, &position) in blocks.draft.sequence.iter().zip(&blocks.draft.position) {
            rows.sequence.extend(vec![sequence; blocks.num_slots]);
            rows.position.extend((0..blocks.num_slots as i32).map(|slot| position + slot));
        }
        rows.rope_position = rows.position.clone();
        rows.token = vec![9; rows.count];
        let hidden = f32_values(&mut random, rows.most, width);
        let gain = optional(&mut random, |random| Values::gain(random, width));
        let head = weights(&mut random, columns, width);
        let rows_of_base = 1 + random.below(4);
        let base = optional(&mut random, |random| {
            f32_values(random, rows.most.div_ceil(rows_of_base), columns)
        });
        let choice = match random.below(3) {
            0 => Choice::Kept { with_logits: false },
            1 => Choice::Kept { with_logits: true },
            _ => Choice::Proposed,
        };
        let target_ids = optional(&mut random, |random| tokens(random, columns, 1 << 20));
        let sampling = optional(&mut random, |random| SamplingValues::random(random, blocks.most));
        let wanted = optional(&mut random, |random| {
            let rows = blocks.most * max_drafts;
            let elements = vec![UNWRITTEN; rows * columns];
            let dtype = DTYPES[random.below(3)];
            Values { rows, columns, dtype, layout: Layout::random(random), elements }
        });
        let results = on_both(|place| {
            let head = [place.matrix(&head)];
            let bytes = backend(place.device).proposal_scratch(rows.most, columns);
            let draft_tokens = place.array(&vec![-7; blocks.most * max_drafts]);
            let batch = DraftBatch {
                sampling: sampling.as_ref().map(|values| values.lend(place)).unwrap_or_default(),
                draft_tokens: Column { span: draft_tokens, stride: max_drafts },
                draft_logits: wanted.as_ref().map(|wanted| place.matrix(wanted)),
                ..DraftBatch::new(blocks.most, max_drafts)
            };
            let phase = Propose {
                rows: rows.lend(place),
                step: 0,
                slots: blocks.num_slots,
                distance: 2,
                num_drafts: place.array(&num_drafts),
                batch,
                hidden: place.matrix(&hidden),
                norm: gain.as_ref().map(|_| place.norm(&gain)),
                feed_back_normed: false,
                head: RowSegments { segments: &head },
                base: base.as_ref().map(|base| place.matrix(base)),
                rows_of_base,
                choice,
                target_ids: target_ids.as_ref().map(|ids| place.array(ids)),
                input: place.output(rows.most, width),
                logits: place.output(rows.most, columns),
                scratch: place.scratch(bytes),
            };
            place.run(|backend, stream| backend.propose(stream, &phase).unwrap());
            let Rows { token, position, rope_position, .. } = phase.rows;
            let logits = match choice {
                Choice::Kept { with_logits: true } => read(&phase.logits),
                _ => Vec::new(),
            };
            Outcome {
                draft_tokens: read_array(draft_tokens),
                others: [token, position, rope_position].map(read_array).into(),
                numbers: vec![logits, batch.draft_logits.as_ref().map_or(Vec::new(), read)],
            }
        });
        let what = format!("case {number}: {blocks:?}, {choice:?}");
        let [expected, found] = &results;
        assert_eq!(found.draft_tokens, expected.draft_tokens, "{what}");
        assert_eq!(found.others, expected.others, "{what}");
        let rounding = wanted.as_ref().map_or(0.0, |wanted| rounding(wanted.dtype));
        for (found, expected) in found.numbers.iter().zip(&expected.numbers) {
            assert_close(found, expected, columns, 4.0 * TOLERANCE + rounding, &what);
        }
    }
}

/// What numbers that are almost the same may differ by when they are stored.
fn rounding(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F32 => 0.0,
        Dtype::F16 => 1.0 / 1024.0,
        Dtype::Bf16 => 1.0 / 128.0,
    }
}

#[test]
fn rows_are_mapped_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(80, 40)) {
        let rows = random_rows(&mut random);
        let width = WIDTHS[random.below(WIDTHS.len())];
        let from = f32_values(&mut random, rows.most, width);
        let dtype = DTYPES[random.below(3)];
        let segments: Vec<Values> = (0..1 + random.below(3))
            .map(|_| {
                let outputs = 1 + random.below(300);
                Values::random(&mut random, (outputs, width), dtype, 1.0)
            })
            .collect();
        let columns = segments.iter().map(|segment| segment.rows).sum();
        let bias = bias(&mut random, columns);
        let gain = optional(&mut random, |random| Values::gain(random, width));
        let results = on_both(|place| {
            let segments: Vec<Matrix> =
                segments.iter().map(|segment| place.matrix(segment)).collect();
            let phase = MapRows {
                rows: rows.lend(place),
                from: place.matrix(&from),
                norm: gain.as_ref().map(|_| place.norm(&gain)),
                weight: RowSegments { segments: &segments },
                bias: bias.as_ref().map(|bias| place.matrix(bias)),
                input: place.output(rows.most, width),
                to: place.output(rows.most, columns),
            };
            place.run(|backend, stream| backend.map_rows(stream, &phase).unwrap());
            read(&phase.to)
        });
        assert_rows_close(&results, columns, &format!("case {number}: {rows:?}"));
    }
}

// ---- Heads --------------------------------------------------------------------------------------

#[test]
fn convolutions_are_those_of_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(60, 30)) {
        let blocks = Blocks::random(&mut random, 2);
        let rows = blocks.rows(blocks.len);
        let groups = 1 + random.below(4);
        let columns = groups * (1 + random.below(90));
        let taps = 1 + random.below(blocks.len);
        let from = f32_values(&mut random, rows.most, columns);
        let gain = optional(&mut random, |random| Values::gain(random, columns));
        let base = weights(&mut random, taps, columns);
        let coefficients = f32_values(&mut random, rows.most, taps * groups);
        let adds = random.chance(0.5);
        let before = f32_values(&mut random, rows.most, columns);
        let results = on_both(|place| {
            let phase = Convolve {
                rows: rows.lend(place),
                len: blocks.len,
                from: place.matrix(&from),
                norm: gain.as_ref().map(|_| place.norm(&gain)),
                base: place.matrix(&base),
                coefficients: place.matrix(&coefficients),
                input: place.output(rows.most, columns),
                to: place.matrix(&before),
                adds,
            };
            place.run(|backend, stream| backend.convolve(stream, &phase).unwrap());
            read(&phase.to)
        });
        assert_rows_close(&results, columns, &format!("case {number}: {blocks:?}"));
    }
}

#[test]
fn markov_cells_step_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(60, 30)) {
        let (vocabulary, rank) = (1 + random.below(50), 1 + random.below(80));
        let mut rows = random_rows(&mut random);
        rows.token = tokens(&mut random, rows.count, vocabulary);
        let gates = [0, 1, 3][number as usize % 3];
        let embedding = weights(&mut random, vocabulary, rank);
        let weight = weights(&mut random, gates.max(1) * rank, rank * gates.clamp(1, 2));
        let rows_of_part = 1 + random.below(3);
        let parts = rows.most.div_ceil(rows_of_part);
        let part = f32_values(&mut random, parts, gates.max(1) * rank);
        let from = optional(&mut random, |random| tokens(random, rows.most, rows.most));
        let state = f32_values(&mut random, rows.most, rank);
        let is_first = random.chance(0.4);
        let results = on_both(|place| {
            let weight = place.matrix(&weight);
            let phase = StepMarkov {
                rows: rows.lend(place),
                embedding: place.matrix(&embedding),
                cell: match gates {
                    0 => MarkovCell::Vanilla,
                    1 => MarkovCell::Gated { weight },
                    _ => MarkovCell::Recurrent { weight, is_first },
                },
                part: place.matrix(&part),
                rows_of_part,
                state: place.matrix(&state),
                from: from.as_ref().map(|from| place.array(from)),
                next_state: place.output(rows.most, rank),
                scratch: place.output(rows.most, 5 * rank),
                output: place.output(rows.most, rank),
            };
            place.run(|backend, stream| backend.step_markov(stream, &phase).unwrap());
            [read(&phase.output), read(&phase.next_state)].concat()
        });
        assert_rows_close(&results, rank, &format!("case {number}: {rows:?}"));
    }
}

#[test]
fn drafts_are_rated_and_end_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(80, 40)) {
        let (vocabulary, rank) = (1 + random.below(50), 1 + random.below(300));
        let mut blocks = Blocks::random(&mut random, vocabulary);
        // More proposals than a launch has warps.
        blocks.len += if random.chance(0.3) { 20 } else { 0 };
        blocks.num_slots = 1 + random.below(blocks.len - blocks.first_slot);
        let max_drafts = blocks.num_slots + random.below(3);
        let num_drafts = blocks.num_drafts(&mut random);
        let proposals = tokens(&mut random, blocks.most * max_drafts, vocabulary);
        let mut block_rows = blocks.rows(blocks.len);
        block_rows.token = tokens(&mut random, block_rows.count, vocabulary);
        let part = f32_values(&mut random, block_rows.most, 1);
        let embedding = weights(&mut random, vocabulary, rank);
        let weight = f32_values(&mut random, 1, rank);
        let reads_token = random.chance(0.6);
        let wants = random.chance(0.7);
        let min_confidence = [0.0, 0.02, 0.3, 0.9, 2.0][random.below(5)];
        let results = on_both(|place| {
            let num_drafts = place.array(&num_drafts);
            let num_proposed = place.array(&vec![-5; blocks.most]);
            let draft_tokens = place.array(&proposals);
            let confidence = place.array(&vec![UNWRITTEN; blocks.most * max_drafts]);
            let batch = DraftBatch {
                draft_tokens: Column { span: draft_tokens, stride: max_drafts },
                num_proposed: Some(num_proposed),
                confidence: wants.then_some(confidence),
                min_confidence,
                padding: -77,
                ..DraftBatch::new(blocks.most, max_drafts)
            };
            let phase = RateDrafts {
                slots: blocks.slots(place),
                blocks: block_rows.lend(place),
                num_drafts,
                batch,
                part: place.matrix(&part),
                token: reads_token.then(|| (place.matrix(&embedding), place.matrix(&weight))),
            };
            place.run(|backend, stream| backend.rate_drafts(stream, &phase).unwrap());
            Outcome {
                draft_tokens: read_array(draft_tokens),
                others: vec![read_array(num_drafts), read_array(num_proposed)],
                numbers: vec![read_array(confidence)],
            }
        });
        let what = format!("case {number}: {blocks:?}, {min_confidence}");
        let [expected, found] = &results;
        assert_eq!(found.draft_tokens, expected.draft_tokens, "{what}");
        assert_eq!(found.others, expected.others, "{what}");
        assert_close(&found.numbers[0], &expected.numbers[0], 1, 4.0 * TOLERANCE, &what);
    }
}

/// The ids of rows of logits, and their values.
fn selected(rows: &RowValues, logits: &Values, count: usize) -> [(Vec<i32>, Vec<f32>); 2] {
    on_both(|place| {
        let phase = SelectCandidates {
            rows: rows.lend(place),
            logits: place.matrix(logits),
            ids: place.array(&vec![-3; rows.most * count]),
            values: place.output(rows.most, count),
        };
        place.run(|backend, stream| backend.select_candidates(stream, &phase).unwrap());
        (read_array(phase.ids), read(&phase.values))
    })
}

#[test]
fn the_largest_logits_become_candidates_in_order() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(60, 30)) {
        let most = 1 + random.below(6);
        let rows = RowValues::new(random.below(most + 1), most, 0);
        let most_columns = [3, 300, 6000][random.below(3)];
        let columns = 1 + random.below(most_columns);
        let mut count = 1 + random.below(columns.min(256));
        let mut logits = f32_values(&mut random, most, columns);
        // So small in one of as many parts as there may be candidates that all others pass its largest.
        if columns > 2000 && random.chance(0.5) {
            count = 256;
            logits.elements.chunks_mut(columns).for_each(|row| {
                row.iter_mut().step_by(count).for_each(|logit| *logit -= 100.0);
            });
        }
        for row in logits.elements.chunks_mut(columns) {
            match random.below(7) {
                // Few values, so that many are equal; all equal; rising; infinities and no numbers.
                0 => row.iter_mut().for_each(|logit| *logit = logit.round()),
                1 => row.fill(-0.5),
                2 => row.sort_unstable_by(f32::total_cmp),
                3 => row.iter_mut().step_by(3).for_each(|logit| *logit = f32::NAN),
                4 => row.iter_mut().step_by(2).for_each(|logit| *logit = f32::NEG_INFINITY),
                5 => row.iter_mut().step_by(5).for_each(|logit| *logit = 0.0 * -logit.signum()),
                _ => {}
            }
        }
        let [expected, found] = selected(&rows, &logits, count);
        let what = format!("case {number}: {count} of {columns}");
        assert_eq!(found.0, expected.0, "{what}");
        assert_same_bits(&found.1, &expected.1, &what);
    }
}

#[test]
fn walks_through_candidates_are_those_of_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(60, 30)) {
        let (vocabulary, rank) = (20 + random.below(300), 1 + random.below(90));
        let blocks = Blocks::random(&mut random, vocabulary);
        let most_candidates = [8, 256][random.below(2)];
        let count = 1 + random.below(vocabulary.min(most_candidates));
        let max_drafts = blocks.num_slots + random.below(3);
        let num_drafts = blocks.num_drafts(&mut random);
        let slots = blocks.most * blocks.num_slots;
        let ids: Vec<i32> = (0..slots)
            .flat_map(|_| {
                let mut all: Vec<i32> = (0..vocabulary as i32).collect();
                random.shuffle(&mut all);
                all.truncate(count);
                all
            })
            .collect();
        let values = f32_values(&mut random, slots, count);
        let projected = f32_values(&mut random, slots, rank);
        let [predecessors, successors] =
            [0, 1].map(|_| Values::random(&mut random, (vocabulary, rank), Dtype::Bf16, 0.5));
        let sampling = optional(&mut random, |random| SamplingValues::random(random, blocks.most));
        let wanted = optional(&mut random, |random| {
            let rows = blocks.most * max_drafts;
            let elements = vec![UNWRITTEN; rows * count];
            let (dtype, layout) = (Dtype::F32, Layout::random(random));
            Values { rows, columns: count, dtype, layout, elements }
        });
        let results = on_both(|place| {
            let draft_tokens = place.array(&vec![-7; blocks.most * max_drafts]);
            let candidates = place.array(&vec![-8; blocks.most * max_drafts * count]);
            let bytes = backend(place.device).proposal_scratch(slots, count);
            let batch = DraftBatch {
                sampling: sampling.as_ref().map(|values| values.lend(place)).unwrap_or_default(),
                draft_tokens: Column { span: draft_tokens, stride: max_drafts },
                draft_logits: wanted.as_ref().map(|wanted| place.matrix(wanted)),
                draft_candidates: Some(candidates),
                ..DraftBatch::new(blocks.most, max_drafts)
            };
            let phase = WalkCandidates {
                slots: blocks.slots(place),
                num_drafts: place.array(&num_drafts),
                batch,
                ids: place.array(&ids),
                values: place.matrix(&values),
                projected: place.matrix(&projected),
                selector: Selector {
                    predecessors: place.matrix(&predecessors),
                    successors: place.matrix(&successors),
                },
                scratch: place.scratch(bytes),
            };
            place.run(|backend, stream| backend.walk_candidates(stream, &phase).unwrap());
            Outcome {
                draft_tokens: read_array(draft_tokens),
                others: vec![read_array(candidates)],
                numbers: vec![batch.draft_logits.as_ref().map_or(Vec::new(), read)],
            }
        });
        let what = format!("case {number}: {blocks:?}, {count} candidates");
        let [expected, found] = &results;
        assert_eq!(found.draft_tokens, expected.draft_tokens, "{what}");
        assert_eq!(found.others, expected.others, "{what}");
        assert_close(&found.numbers[0], &expected.numbers[0], count, 4.0 * TOLERANCE, &what);
    }
}

#[test]
fn candidates_below_rows_of_trees_are_scored_as_on_the_cpu_and_slots_stay_as_they_are() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(60, 30)) {
        let (vocabulary, rank) = (20 + random.below(300), 1 + random.below(90));
        let (blocks, width) = (1 + random.below(4), 1 + random.below(5));
        let slots = 1 + random.below(4);
        let slot = random.below(slots);
        let most_candidates = [8, 256][random.below(2)];
        let count = 1 + random.below(vocabulary.min(most_candidates));
        let most = blocks * width;
        let mut rows = RowValues::new(random.below(most + 1), most, 0);
        rows.token = tokens(&mut random, most, vocabulary);
        let ids = tokens(&mut random, blocks * slots * count, vocabulary);
        let values = f32_values(&mut random, blocks * slots, count);
        let projected = f32_values(&mut random, blocks * slots, rank);
        let [predecessors, successors] = [0, 1].map(|_| weights(&mut random, vocabulary, rank));
        let results = on_both(|place| {
            let ids = place.array(&ids);
            let all = [place.matrix(&values), place.matrix(&projected)];
            let [values, projected] = all.map(|matrix| matrix.every(slots, slot, blocks));
            let phase = ScoreCandidates {
                rows: rows.lend(place),
                candidates: ColumnTokens {
                    ids: ids.slice(slot * count, ids.len() - slot * count),
                    stride: slots * count,
                    laws: width,
                },
                values,
                projected,
                selector: Selector {
                    predecessors: place.matrix(&predecessors),
                    successors: place.matrix(&successors),
                },
                weights: place.output(most, rank),
                scores: place.output(most, count),
            };
            place.run(|backend, stream| backend.score_candidates(stream, &phase).unwrap());
            (read(&phase.scores), all.map(|matrix| read(&matrix)))
        });
        let what = format!("case {number}: {rows:?}, {count} candidates");
        let [expected, found] = &results;
        assert_close(&found.0, &expected.0, count, 4.0 * TOLERANCE, &what);
        assert!(expected.0[rows.count * count..].iter().all(|&score| score == UNWRITTEN), "{what}");
        for (found, expected) in [&values, &projected].into_iter().zip([0, 1]) {
            let kept = found.elements.iter();
            assert!(results.iter().all(|of| kept.clone().eq(of.1[expected].iter())), "{what}");
        }
    }
}

#[test]
fn passes_of_refiners_are_those_of_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(60, 30)) {
        let (vocabulary, rank) = (20 + random.below(50), 1 + random.below(70));
        let inner = rank * (1 + random.below(3));
        let blocks = Blocks::random(&mut random, vocabulary);
        // As many rows as in training, of which the call may use fewer.
        let (block_rows, mut rows) = (blocks.rows(blocks.len), blocks.rows(blocks.num_slots));
        rows.token = tokens(&mut random, rows.count, vocabulary);
        let mut commit = RowValues::new(3, 3, 0);
        commit.source = tokens(&mut random, 3, 4);
        let committed = [-1, 7, 3, 12];
        let features = f32_values(&mut random, block_rows.most, 2 * rank);
        let embedding = weights(&mut random, vocabulary, rank);
        let input = weights(&mut random, rank, 3 * rank);
        let mix = weights(&mut random, rank * blocks.len, blocks.len);
        let [gate, up] = [0, 1].map(|_| weights(&mut random, inner, rank));
        let down = weights(&mut random, rank, inner);
        let results = on_both(|place| {
            let batch = DraftBatch {
                tokens: place.array(&committed),
                ..DraftBatch::new(blocks.most, blocks.num_slots)
            };
            let phase = Refine {
                slots: blocks.slots(place),
                rows: rows.lend(place),
                block_rows: block_rows.lend(place),
                commit: commit.lend(place),
                batch,
                features: place.matrix(&features),
                weights: RefinerWeights {
                    embedding: place.matrix(&embedding),
                    input: place.matrix(&input),
                    mix: place.matrix(&mix),
                    gate: place.matrix(&gate),
                    up: place.matrix(&up),
                    down: place.matrix(&down),
                },
                input: place.output(block_rows.most, 3 * rank),
                mixed: place.output(block_rows.most, rank),
                inner: place.output(rows.most, inner),
                output: place.output(rows.most, rank),
            };
            place.run(|backend, stream| backend.refine(stream, &phase).unwrap());
            read(&phase.output)
        });
        assert_rows_close(&results, rank, &format!("case {number}: {blocks:?}"));
    }
}
