//! The phases that are matrix products, on CUDA against the CPU.

mod device;
#[allow(dead_code)] // Each test program uses its own part.
mod phases;
#[allow(dead_code)] // Each test program uses its own part.
#[path = "host/random.rs"]
mod random;

use device::backend::{backend, cuda_test};
use device::{Device, simulator};
use phases::*;
use random::Random;
use speculators::backend::phases::{
    Activation, AddProjection, AttentionHeads, Choice, Column, DraftBatch, EmbeddingInput,
    FeatureNorm, FuseFeatures, FuseToken, GateUp, HiddenSource, KvPool, KvProjection, Norm, Paging,
    Project, Propose, QueryProjection, Rotary, RowSegments, Rows,
};
use speculators::tensor::{Dtype, Matrix, Span};

// ---- Linear maps --------------------------------------------------------------------------------

#[derive(Clone, Debug)]
struct AddCase {
    rows: RowValues,
    input: Values,
    weight: Values,
    bias: Option<Values>,
    hidden: Values,
}

impl AddCase {
    fn random(random: &mut Random, rows: RowValues) -> Self {
        let (inputs, outputs) = (WIDTHS[random.below(10)], 1 + random.below(170));
        let scale = 1.0 / (inputs as f32).sqrt();
        let dtype = DTYPES[random.below(3)];
        Self {
            input: Values::random(random, (rows.most, inputs), Dtype::F32, 1.0),
            weight: Values::random(random, (outputs, inputs), dtype, scale),
            bias: bias(random, outputs),
            hidden: Values::random(random, (rows.most, outputs), Dtype::F32, 1.0),
            rows,
        }
    }

    fn run(&self, device: Device) -> Vec<f32> {
        let mut place = Place::on(device);
        let phase = AddProjection {
            rows: self.rows.lend(&mut place),
            input: place.matrix(&self.input),
            linear: place.linear(&self.weight, &self.bias),
            hidden: place.matrix(&self.hidden),
        };
        place.run(|backend, stream| backend.add_projection(stream, &phase).unwrap());
        read(&phase.hidden)
    }

    /// The case of some of the rows.
    fn rows(&self, first: usize, rows: usize) -> Self {
        Self {
            rows: RowValues::new(rows, rows, 0),
            input: self.input.rows(first, rows),
            hidden: self.hidden.rows(first, rows),
            ..self.clone()
        }
    }
}

#[test]
fn linear_maps_are_added_to_the_residual_stream_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(60, 40)) {
        let rows = random_rows(&mut random);
        let case = AddCase::random(&mut random, rows);
        let (found, expected) = (case.run(Device::Cuda), case.run(Device::Cpu));
        let what = format!("case {number}: {:?} {:?}", case.weight.dtype, case.rows);
        assert_close(&found, &expected, case.hidden.columns, TOLERANCE, &what);
    }
}

/// Runs parts of a case that has 130 rows: what each row comes to depends on it alone.
fn assert_rows_are_independent(width: usize, run: impl Fn(usize, usize) -> Vec<f32>) {
    let all = run(0, 130);
    for (first, rows) in
        [(0, 65), (3, 64), (100, 30), (5, 33), (7, 17), (60, 16), (129, 1), (64, 2)]
    {
        let found = run(first, rows);
        let expected = &all[first * width..][..rows * width];
        assert_same_bits(&found, expected, &format!("rows {first} .. {first} + {rows}"));
    }
}

#[test]
fn a_row_of_a_linear_map_does_not_depend_on_its_neighbours() {
    let Some(_turn) = cuda_test() else { return };
    for (_, mut random) in cases(test_cases(9, 4)) {
        let case = AddCase::random(&mut random, RowValues::new(130, 130, 0));
        let width = case.hidden.columns;
        assert_rows_are_independent(width, |first, rows| case.rows(first, rows).run(Device::Cuda));
    }
}

// ---- Features -----------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum FeatureGains {
    None,
    Joint(Option<Values>),
    Each(Vec<Option<Values>>),
}

#[derive(Clone, Debug)]
struct FuseCase {
    rows: RowValues,
    features: Vec<Values>,
    gains: FeatureGains,
    weight: Values,
}

impl FuseCase {
    fn random(random: &mut Random, mut rows: RowValues) -> Self {
        let num_rows = 1 + random.below(20);
        rows.source = (0..rows.count).map(|_| random.below(num_rows) as i32).collect();
        let count = if random.chance(0.1) { 70 } else { 1 + random.below(4) };
        let widths: Vec<usize> = (0..count).map(|_| WIDTHS[random.below(5)]).collect();
        let feature = |random: &mut Random, &width: &usize| {
            let dtype = DTYPES[random.below(3)];
            Values::random(random, (num_rows, width), dtype, 2.0)
        };
        let features = widths.iter().map(|width| feature(random, width)).collect();
        let total = widths.iter().sum();
        let gains = match random.below(3) {
            0 => FeatureGains::None,
            1 => FeatureGains::Joint(optional(random, |random| Values::gain(random, total))),
            _ => FeatureGains::Each(
                widths
                    .iter()
                    .map(|&width| optional(random, |random| Values::gain(random, width)))
                    .collect(),
            ),
        };
        let dtype = DTYPES[random.below(3)];
        let scale = 1.0 / (total as f32).sqrt();
        let outputs = 1 + random.below(100);
        let weight = Values::random(random, (outputs, total), dtype, scale);
        Self { rows, features, gains, weight }
    }

    fn run(&self, device: Device) -> Vec<f32> {
        let mut place = Place::on(device);
        let features: Vec<Matrix> = self.features.iter().map(|f| place.matrix(f)).collect();
        let each: Vec<Norm> = match &self.gains {
            FeatureGains::Each(gains) => gains.iter().map(|gain| place.norm(gain)).collect(),
            _ => Vec::new(),
        };
        let norm = match &self.gains {
            FeatureGains::None => FeatureNorm::None,
            FeatureGains::Joint(gain) => FeatureNorm::Joint(place.norm(gain)),
            FeatureGains::Each(_) => FeatureNorm::Each(&each),
        };
        let phase = FuseFeatures {
            rows: self.rows.lend(&mut place),
            features: &features,
            norm,
            linear: place.linear(&self.weight, &None),
            input: place.output(self.rows.most, self.weight.columns),
            hidden: place.output(self.rows.most, self.weight.rows),
        };
        place.run(|backend, stream| backend.fuse_features(stream, &phase).unwrap());
        let beyond = &read(&phase.input)[self.rows.count * self.weight.columns..];
        assert!(beyond.iter().all(|&value| value == UNWRITTEN), "rows that are not there");
        read(&phase.hidden)
    }
}

#[test]
fn features_become_hidden_state_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(40, 30)) {
        let rows = random_rows(&mut random);
        let case = FuseCase::random(&mut random, rows);
        let (found, expected) = (case.run(Device::Cuda), case.run(Device::Cpu));
        let what = format!("case {number}: {:?} {:?}", case.weight.dtype, case.rows);
        assert_close(&found, &expected, case.weight.rows, TOLERANCE, &what);
    }
}

// ---- Token and hidden state ---------------------------------------------------------------------

#[derive(Clone, Debug)]
struct TokenCase {
    rows: RowValues,
    segments: Vec<Values>,
    given: Option<Values>,
    /// The rows' own hidden state, or a feature of which they have rows.
    from: Values,
    is_feature: bool,
    /// Of the embedding and of the hidden state; a norm may have a gain.
    norms: [Option<Option<Values>>; 2],
    weight: Values,
    bias: Option<Values>,
}

impl TokenCase {
    fn random(random: &mut Random, mut rows: RowValues) -> Self {
        let width = WIDTHS[random.below(10)];
        let dtype = DTYPES[random.below(3)];
        let lengths: Vec<usize> = (0..1 + random.below(3)).map(|_| 1 + random.below(9)).collect();
        let vocabulary: usize = lengths.iter().sum();
        let segment = |&rows: &usize| Values::random(random, (rows, width), dtype, 2.0);
        let segments = lengths.iter().map(segment).collect();
        let given = optional(random, |random| {
            let dtype = DTYPES[random.below(3)];
            Values::random(random, (5, width), dtype, 2.0)
        });
        let is_feature = random.chance(0.5);
        let (held, dtype) =
            if is_feature { (1 + random.below(20), random.below(3)) } else { (rows.most, 0) };
        let from = Values::random(random, (held, width), DTYPES[dtype], 3.0);
        for _ in 0..rows.count {
            rows.source.push(if is_feature { random.below(held) as i32 } else { i32::MIN });
            rows.token.push(match &given {
                Some(given) if random.chance(0.5) => -1 - random.below(given.rows) as i32,
                _ => random.below(vocabulary) as i32,
            });
        }
        let mut norm =
            || optional(random, |random| optional(random, |random| Values::gain(random, width)));
        let norms = [norm(), norm()];
        let (outputs, scale) = (1 + random.below(170), 1.0 / (2.0 * width as f32).sqrt());
        let dtype = DTYPES[random.below(3)];
        let weight = Values::random(random, (outputs, 2 * width), dtype, scale);
        let bias = bias(random, outputs);
        Self { rows, segments, given, from, is_feature, norms, weight, bias }
    }

    fn run(&self, device: Device) -> Vec<f32> {
        let mut place = Place::on(device);
        let segments: Vec<Matrix> = self.segments.iter().map(|part| place.matrix(part)).collect();
        let [embedding_norm, norm] =
            [0, 1].map(|half| self.norms[half].as_ref().map(|gain| place.norm(gain)));
        let from = place.matrix(&self.from);
        let phase = FuseToken {
            rows: self.rows.lend(&mut place),
            embedding: EmbeddingInput {
                table: RowSegments { segments: &segments },
                embeddings: self.given.as_ref().map(|given| place.matrix(given)),
                norm: embedding_norm,
            },
            from: match self.is_feature {
                true => HiddenSource::Feature(from),
                false => HiddenSource::Rows(from),
            },
            norm,
            linear: place.linear(&self.weight, &self.bias),
            input: place.output(self.rows.most, self.weight.columns),
            hidden: place.output(self.rows.most, self.weight.rows),
        };
        place.run(|backend, stream| backend.fuse_token(stream, &phase).unwrap());
        let beyond = &read(&phase.input)[self.rows.count * self.weight.columns..];
        assert!(beyond.iter().all(|&value| value == UNWRITTEN), "rows that are not there");
        read(&phase.hidden)
    }
}

#[test]
fn tokens_and_hidden_states_are_fused_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(40, 25)) {
        let rows = random_rows(&mut random);
        let case = TokenCase::random(&mut random, rows);
        let (found, expected) = (case.run(Device::Cuda), case.run(Device::Cpu));
        let what = format!("case {number}: {:?} {:?}", case.weight.dtype, case.rows);
        assert_close(&found, &expected, case.weight.rows, TOLERANCE, &what);
    }
}

// ---- Gated MLP ----------------------------------------------------------------------------------

#[derive(Clone, Debug)]
struct GateCase {
    rows: RowValues,
    hidden: Values,
    gain: Option<Values>,
    gate: (Values, Option<Values>),
    up: (Values, Option<Values>),
    activation: Activation,
}

impl GateCase {
    fn random(random: &mut Random, rows: RowValues) -> Self {
        let (inputs, outputs) = (WIDTHS[random.below(10)], 1 + random.below(140));
        let dtype = DTYPES[random.below(3)];
        let other = if random.chance(0.1) { DTYPES[random.below(3)] } else { dtype };
        let scale = 1.0 / (inputs as f32).sqrt();
        let mut map = |dtype| {
            (Values::random(random, (outputs, inputs), dtype, scale), bias(random, outputs))
        };
        let (gate, up) = (map(dtype), map(other));
        let activations =
            [Activation::Silu, Activation::GeluTanh, Activation::Gelu, Activation::Relu];
        Self {
            hidden: Values::random(random, (rows.most, inputs), Dtype::F32, 30.0),
            gain: optional(random, |random| Values::gain(random, inputs)),
            gate,
            up,
            activation: activations[random.below(4)],
            rows,
        }
    }

    fn run(&self, device: Device) -> Vec<f32> {
        let mut place = Place::on(device);
        let phase = GateUp {
            rows: self.rows.lend(&mut place),
            hidden: place.matrix(&self.hidden),
            norm: Some(place.norm(&self.gain)),
            gate: place.linear(&self.gate.0, &self.gate.1),
            up: place.linear(&self.up.0, &self.up.1),
            activation: self.activation,
            input: place.output(self.rows.most, self.hidden.columns),
            output: place.output(self.rows.most, self.gate.0.rows),
        };
        place.run(|backend, stream| backend.gate_up(stream, &phase).unwrap());
        read(&phase.output)
    }

    fn rows(&self, first: usize, rows: usize) -> Self {
        let hidden = self.hidden.rows(first, rows);
        Self { rows: RowValues::new(rows, rows, 0), hidden, ..self.clone() }
    }
}

#[test]
fn gated_products_are_those_of_the_cpu_with_every_activation() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(60, 40)) {
        let rows = random_rows(&mut random);
        let case = GateCase::random(&mut random, rows);
        let (found, expected) = (case.run(Device::Cuda), case.run(Device::Cpu));
        let what = format!("case {number}: {:?} {:?}", case.gate.0.dtype, case.rows);
        // The errors of two products meet, and a row of few columns may be small throughout.
        let tolerance = 4.0 * TOLERANCE;
        assert_close(&found, &expected, case.gate.0.rows, tolerance, &what);
    }
}

#[test]
fn a_row_of_a_gated_product_does_not_depend_on_its_neighbours() {
    let Some(_turn) = cuda_test() else { return };
    for (_, mut random) in cases(test_cases(9, 4)) {
        let case = GateCase::random(&mut random, RowValues::new(130, 130, 0));
        let width = case.gate.0.rows;
        assert_rows_are_independent(width, |first, rows| case.rows(first, rows).run(Device::Cuda));
    }
}

// ---- Projections --------------------------------------------------------------------------------

#[derive(Clone, Debug)]
struct EmbeddingValues {
    segments: Vec<Values>,
    given: Option<Values>,
    gain: Option<Values>,
}

#[derive(Clone, Debug)]
struct ProjectCase {
    rows: RowValues,
    hidden: Values,
    gain: Option<Values>,
    residual_is_normed: bool,
    embedding: Option<EmbeddingValues>,
    heads: AttentionHeads,
    query: Option<(Values, Option<Values>, Option<Option<Values>>)>,
    kv: Vec<LayerValues>,
    frequencies: [Vec<f32>; 2],
    long_from: usize,
    rotary_scale: f32,
    page_size: usize,
    kv_dtype: Dtype,
    page_gap: usize,
    table: Vec<i32>,
    page_row: Vec<i32>,
    num_pages: usize,
    layer: usize,
    /// Of a page.
    layers: usize,
}

/// The maps to a layer's keys and values, and the norm of its keys.
#[derive(Clone, Debug)]
struct LayerValues {
    key: (Values, Option<Values>),
    value: (Values, Option<Values>),
    key_gain: Option<Option<Values>>,
}

const SEQUENCES: usize = 7;
const PAGES_OF_SEQUENCE: usize = 6;

impl ProjectCase {
    /// One layer, of pages with two.
    fn random(random: &mut Random, rows: RowValues) -> Self {
        Self::random_layers(random, rows, 1, 2)
    }

    /// A phase that has so many layers of those of the pages.
    fn random_layers(
        random: &mut Random,
        mut rows: RowValues,
        kv_layers: usize,
        layers: usize,
    ) -> Self {
        let hidden = WIDTHS[random.below(9)];
        let head_dim = [8, 20, 32, 36, 64, 80, 128][random.below(7)];
        let num_kv_heads = 1 + random.below(3);
        let heads = AttentionHeads {
            num_heads: num_kv_heads * (1 + random.below(3)),
            num_kv_heads,
            head_dim,
        };
        let embedding = optional(random, |random| Self::embedding(random, hidden));
        let inputs = if embedding.is_some() { 2 * hidden } else { hidden };
        let dtype = DTYPES[random.below(3)];
        let map = |random: &mut Random, heads| {
            let outputs = heads * head_dim;
            let scale = 1.0 / (inputs as f32).sqrt();
            let weight = Values::random(random, (outputs, inputs), dtype, scale);
            (weight, bias(random, outputs))
        };
        let head_gain = |random: &mut Random| {
            optional(random, |random| optional(random, |random| Values::gain(random, head_dim)))
        };
        let halves = if kv_layers == 1 { random.below(4) } else { 2 * random.below(2) };
        let query = (halves != 0).then(|| {
            let (weight, bias) = map(random, heads.num_heads);
            (weight, bias, head_gain(random))
        });
        let kv_layers = if halves == 1 { 0 } else { kv_layers };
        let kv = (0..kv_layers).map(|_| LayerValues {
            key: map(random, num_kv_heads),
            value: map(random, num_kv_heads),
            key_gain: head_gain(random),
        });
        let kv = kv.collect();
        let page_size = [1, 16, 37][random.below(3)].max(rows.most.div_ceil(SEQUENCES * 3));
        Self::place_rows(random, &mut rows, embedding.as_ref(), page_size);
        let half = 1 + random.below(head_dim / 2);
        let frequencies = [0, 1]
            .map(|_| (0..half).map(|i| (-(i as f32) * 0.3).exp() * random.normal()).collect());
        let num_pages = SEQUENCES * PAGES_OF_SEQUENCE;
        let mut table: Vec<i32> = (0..num_pages as i32).collect();
        random.shuffle(&mut table);
        Self {
            hidden: Values::random(random, (rows.most, hidden), Dtype::F32, 5.0),
            gain: optional(random, |random| Values::gain(random, hidden)),
            residual_is_normed: halves != 0 && random.chance(0.5),
            embedding,
            heads,
            query,
            kv,
            frequencies,
            long_from: [0, 1000, usize::MAX][random.below(3)],
            rotary_scale: 1.0 + random.below(2) as f32 * 0.25,
            page_size,
            kv_dtype: DTYPES[random.below(3)],
            page_gap: random.below(2) * 3,
            table,
            page_row: (0..SEQUENCES).map(|b| (b * PAGES_OF_SEQUENCE) as i32).collect(),
            num_pages,
            layer: random.below(layers - kv_layers + 1),
            layers,
            rows,
        }
    }

    fn embedding(random: &mut Random, hidden: usize) -> EmbeddingValues {
        let dtype = DTYPES[random.below(3)];
        let segment = |random: &mut Random| {
            let rows = 1 + random.below(9);
            Values::random(random, (rows, hidden), dtype, 0.1)
        };
        let segments = (0..1 + random.below(3)).map(|_| segment(random)).collect();
        let given_dtype = DTYPES[random.below(3)];
        let given =
            optional(random, |random| Values::random(random, (5, hidden), given_dtype, 0.1));
        EmbeddingValues {
            segments,
            given,
            gain: optional(random, |random| Values::gain(random, hidden)),
        }
    }

    /// Positions that no two rows of a sequence share, and tokens of the table or of the host.
    fn place_rows(
        random: &mut Random,
        rows: &mut RowValues,
        embedding: Option<&EmbeddingValues>,
        page_size: usize,
    ) {
        let positions = PAGES_OF_SEQUENCE * page_size;
        let mut places: Vec<usize> = (0..SEQUENCES * positions).collect();
        random.shuffle(&mut places);
        let vocabulary = embedding.map_or(1, |embedding| {
            embedding.segments.iter().map(|segment| segment.rows).sum::<usize>()
        });
        let given = embedding.and_then(|embedding| embedding.given.as_ref());
        for &place in places.iter().cycle().take(rows.count) {
            rows.sequence.push((place / positions) as i32);
            rows.position.push((place % positions) as i32);
            rows.rope_position.push(match random.below(4) {
                0 => random.bits() as i32,
                1 => 1000 + random.below(3) as i32 - 1,
                _ => (place % positions) as i32,
            });
            rows.token.push(match given {
                Some(given) if random.chance(0.5) => -1 - random.below(given.rows) as i32,
                _ => random.below(vocabulary) as i32,
            });
        }
    }

    fn run(&self, device: Device) -> Vec<Vec<f32>> {
        let mut place = Place::on(device);
        let AttentionHeads { num_heads, num_kv_heads, head_dim } = self.heads;
        let most = self.rows.most;
        let embedding = self.embedding.as_ref().map(|embedding| {
            let segments: Vec<Matrix> =
                embedding.segments.iter().map(|segment| place.matrix(segment)).collect();
            let given = embedding.given.as_ref().map(|given| place.matrix(given));
            (segments, given, place.norm(&embedding.gain))
        });
        let kv = self.kv.iter().map(|LayerValues { key, value, key_gain }| KvProjection {
            key: place.linear(&key.0, &key.1),
            value: place.linear(&value.0, &value.1),
            key_norm: key_gain.as_ref().map(|gain| place.norm(gain)),
        });
        let kv: Vec<KvProjection> = kv.collect();
        let pages = self.pages(&mut place);
        let turned = self.frequencies[0].len();
        let inputs = self.hidden.columns * if embedding.is_some() { 2 } else { 1 };
        let bytes = backend(device).projection_scratch(most + 5, self.heads);
        let phase = Project {
            rows: self.rows.lend(&mut place),
            hidden: place.matrix(&self.hidden),
            norm: Some(place.norm(&self.gain)),
            residual_is_normed: self.residual_is_normed,
            embedding: embedding.as_ref().map(|(segments, embeddings, norm)| EmbeddingInput {
                table: RowSegments { segments },
                embeddings: *embeddings,
                norm: Some(*norm),
            }),
            input: place.output(most, inputs),
            query: self.query.as_ref().map(|(weight, bias, gain)| QueryProjection {
                linear: place.linear(weight, bias),
                norm: gain.as_ref().map(|gain| place.norm(gain)),
                output: place.output(most, num_heads * head_dim),
            }),
            kv: &kv,
            kv_scratch: place.output(most, kv.len().max(1) * 2 * num_kv_heads * head_dim),
            rotary: Rotary {
                inverse_frequency: place.array(&self.frequencies[0]),
                long_inverse_frequency: place.array(&self.frequencies[1]),
                long_from: self.long_from,
                scale: self.rotary_scale,
            },
            turns: place.output(most, 2 * turned),
            paging: Paging {
                pool: KvPool {
                    pages,
                    page_size: self.page_size,
                    num_kv_heads,
                    head_dim,
                    slot_pages: Span::new(0, 0),
                    pages_per_slot: 0,
                },
                table: place.array(&self.table),
                page_row: place.array(&self.page_row),
                layer: self.layer,
                own: None,
            },
            scratch: place.scratch(bytes),
        };
        place.run(|backend, stream| backend.project(stream, &phase).unwrap());
        if device == Device::Cuda {
            let scratch = place.scratch_bytes();
            let counters = &scratch[..scratch.len() - (most + 5) * size_of::<f32>()];
            assert!(counters.iter().all(|&byte| byte == 0), "counters are left zero");
        }
        let query = phase.query.as_ref().map(|query| read(&query.output));
        self.results(&read(&phase.hidden), query.as_deref(), &read(&pages))
    }

    fn pages(&self, place: &mut Place) -> Matrix {
        let AttentionHeads { num_kv_heads, head_dim, .. } = self.heads;
        let columns = self.layers * 2 * num_kv_heads * self.page_size * head_dim;
        place.matrix(&Values {
            rows: self.num_pages,
            columns,
            dtype: self.kv_dtype,
            layout: Layout { offset: 0, gap: self.page_gap },
            elements: vec![UNWRITTEN; self.num_pages * columns],
        })
    }

    /// Of each row its residual stream, queries, keys and values; last, what is in the pages beside.
    fn results(&self, hidden: &[f32], query: Option<&[f32]>, pages: &[f32]) -> Vec<Vec<f32>> {
        let AttentionHeads { num_heads, num_kv_heads, head_dim } = self.heads;
        let mut rest = pages.to_vec();
        let page_columns = pages.len() / self.num_pages;
        let part =
            |values: &[f32], row: usize, width: usize| values[row * width..][..width].to_vec();
        let mut results = Vec::new();
        for row in 0..self.rows.most {
            let mut result = part(hidden, row, self.hidden.columns);
            if let Some(query) = query {
                result.extend(part(query, row, num_heads * head_dim));
            }
            if !self.kv.is_empty() && row < self.rows.count {
                let position = self.rows.position[row] as usize;
                let first = self.page_row[self.rows.sequence[row] as usize] as usize;
                let page = self.table[first + position / self.page_size];
                // A page that does not exist takes nothing.
                let page = usize::try_from(page).ok().filter(|&page| page < self.num_pages);
                let Some(page) = page else {
                    results.push(result);
                    continue;
                };
                for head in 0..self.kv.len() * 2 * num_kv_heads {
                    let plane = self.layer * 2 * num_kv_heads + head;
                    let offset = plane * self.page_size + position % self.page_size;
                    let place = page * page_columns + offset * head_dim;
                    result.extend_from_slice(&pages[place..place + head_dim]);
                    rest[place..place + head_dim].fill(UNWRITTEN);
                }
            }
            results.push(result);
        }
        results.push(rest);
        results
    }

    fn rows(&self, first: usize, rows: usize) -> Self {
        let part = |values: &Vec<i32>| values[first..first + rows].to_vec();
        let rows_of = RowValues {
            sequence: part(&self.rows.sequence),
            position: part(&self.rows.position),
            rope_position: part(&self.rows.rope_position),
            token: part(&self.rows.token),
            ..RowValues::new(rows, rows, 0)
        };
        Self { rows: rows_of, hidden: self.hidden.rows(first, rows), ..self.clone() }
    }
}

#[track_caller]
fn assert_same_projections(case: &ProjectCase, number: u64) {
    let (found, expected) = (case.run(Device::Cuda), case.run(Device::Cpu));
    for (row, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let what = format!("case {number} row {row} of {:?}", case.rows.count);
        // Values next to a middle may be rounded to either side in the pages.
        let rounding = match case.kv_dtype {
            Dtype::F32 => 0.0,
            Dtype::F16 => 1.0 / 1024.0,
            Dtype::Bf16 => 1.0 / 128.0,
        };
        assert_close(found, expected, expected.len().max(1), TOLERANCE + rounding, &what);
    }
}

#[test]
fn projections_turn_and_append_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(100, 40)) {
        let rows = random_rows(&mut random);
        assert_same_projections(&ProjectCase::random(&mut random, rows), number);
    }
}

/// Few layers, as many as a launch has, and so many that they take several launches.
const LAYER_COUNTS: [usize; 6] = [2, 3, 5, 8, 9, 19];

#[test]
fn keys_and_values_of_several_layers_are_appended_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(60, 18)) {
        let layers = LAYER_COUNTS[number as usize % LAYER_COUNTS.len()];
        let rows = random_rows(&mut random);
        let of_pages = layers + random.below(3);
        let case = ProjectCase::random_layers(&mut random, rows, layers, of_pages);
        assert_same_projections(&case, number);
    }
}

#[test]
fn what_layers_append_together_is_what_each_appends_alone() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(24, 6)) {
        let layers = LAYER_COUNTS[number as usize % LAYER_COUNTS.len()];
        let rows = random_rows(&mut random);
        let mut case = ProjectCase::random_layers(&mut random, rows, layers, layers);
        case.query = None;
        case.residual_is_normed = false;
        // Whether weights lie as vectors decides how they are multiplied, for all of a phase.
        for layer in &mut case.kv {
            for (weight, _) in [&mut layer.key, &mut layer.value] {
                weight.layout = COMPACT;
            }
        }
        for device in [Device::Cpu, Device::Cuda] {
            let together = case.run(device);
            let width = case.hidden.columns;
            let mut alone: Vec<Vec<f32>> = Vec::new();
            for (index, layer) in case.kv.iter().enumerate() {
                let part = ProjectCase {
                    kv: vec![layer.clone()],
                    layer: case.layer + index,
                    ..case.clone()
                };
                let found = part.run(device);
                alone.resize(found.len() - 1, Vec::new());
                for (row, found) in alone.iter_mut().zip(&found) {
                    let appended = if row.is_empty() { 0 } else { width };
                    row.extend_from_slice(&found[appended..]);
                }
            }
            for (row, (together, alone)) in together.iter().zip(&alone).enumerate() {
                assert_same_bits(together, alone, &format!("case {number} row {row} {device:?}"));
            }
        }
    }
}

#[test]
fn a_row_of_a_projection_does_not_depend_on_its_neighbours() {
    let Some(_turn) = cuda_test() else { return };
    for (_, mut random) in cases(test_cases(12, 3)) {
        let case = ProjectCase::random(&mut random, RowValues::new(130, 130, 0));
        let width = case.run(Device::Cuda)[0].len();
        assert_rows_are_independent(width, |first, rows| {
            case.rows(first, rows).run(Device::Cuda)[..rows].concat()
        });
    }
}

#[test]
fn keys_and_values_of_pages_outside_of_the_pool_go_nowhere() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(12, 3)) {
        let rows = random_rows(&mut random);
        let case = ProjectCase::random(&mut random, rows);
        let mut hostile = case.clone();
        for page in &mut hostile.table {
            if random.chance(0.5) {
                *page = [-1, i32::MIN, case.num_pages as i32, i32::MAX][random.below(4)];
            }
        }
        let (found, expected) = (hostile.run(Device::Cuda), case.run(Device::Cuda));
        for (row, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let what = format!("case {number} row {row}");
            assert_same_bits(found, &expected[..found.len()], &what);
        }
    }
}

// ---- Proposals ----------------------------------------------------------------------------------

#[derive(Clone, Debug)]
struct ProposeCase {
    rows: RowValues,
    hidden: Values,
    gain: Option<Values>,
    feed_back_normed: bool,
    head: Vec<Values>,
    target_ids: Option<Vec<i32>>,
    sampling: Option<SamplingValues>,
    draft_logits: Option<(Dtype, Layout)>,
    sequences: usize,
    step: usize,
    max_drafts: usize,
}

/// What a proposal leaves behind.
#[derive(Clone, Debug)]
struct Proposed {
    draft_tokens: Vec<i32>,
    /// Token, position and RoPE position of all rows.
    rows: [Vec<i32>; 3],
    hidden: Vec<f32>,
    draft_logits: Vec<f32>,
}

impl ProposeCase {
    fn random(random: &mut Random, mut rows: RowValues) -> Self {
        let hidden = WIDTHS[random.below(10)];
        let dtype = DTYPES[random.below(3)];
        let segments = 1 + random.below(3);
        let head: Vec<Values> = (0..segments)
            .map(|_| {
                let tokens = 1 + random.below(600 / segments);
                Values::random(random, (tokens, hidden), dtype, 3.0 / (hidden as f32).sqrt())
            })
            .collect();
        let columns: usize = head.iter().map(|segment| segment.rows).sum();
        let sequences = rows.most + random.below(5);
        let mut all: Vec<i32> = (0..sequences as i32).collect();
        random.shuffle(&mut all);
        rows.sequence = all[..rows.count].to_vec();
        rows.position = (0..rows.count).map(|_| random.below(1000) as i32).collect();
        rows.rope_position = (0..rows.count).map(|_| random.bits() as i32).collect();
        rows.rope_position.iter_mut().take(1).for_each(|position| *position = i32::MAX);
        rows.token = vec![3; rows.count];
        let max_drafts = 1 + random.below(4);
        Self {
            hidden: Values::random(random, (rows.most, hidden), Dtype::F32, 3.0),
            gain: optional(random, |random| Values::gain(random, hidden)),
            feed_back_normed: random.chance(0.3),
            head,
            target_ids: optional(random, |random| {
                (0..columns).map(|_| random.below(1 << 20) as i32).collect()
            }),
            sampling: optional(random, |random| SamplingValues::random(random, sequences)),
            draft_logits: optional(random, |random| {
                (DTYPES[random.below(3)], Layout::random(random))
            }),
            sequences,
            step: random.below(max_drafts),
            max_drafts,
            rows,
        }
    }

    fn columns(&self) -> usize {
        self.head.iter().map(|segment| segment.rows).sum()
    }

    fn run(&self, device: Device) -> Proposed {
        let mut place = Place::on(device);
        let head: Vec<Matrix> = self.head.iter().map(|segment| place.matrix(segment)).collect();
        let (most, columns) = (self.rows.most, self.columns());
        let stride = self.max_drafts + 1;
        let draft_tokens = place.array(&vec![-7; self.sequences * stride]);
        let num_drafts = place.array(&vec![self.max_drafts as i32; self.sequences]);
        let draft_logits = self.draft_logits.map(|(dtype, layout)| {
            let rows = self.sequences * self.max_drafts;
            let elements = vec![UNWRITTEN; rows * columns];
            place.matrix(&Values { rows, columns, dtype, layout, elements })
        });
        let sampling = self.sampling.as_ref().map(|sampling| sampling.lend(&mut place));
        let sampling = sampling.unwrap_or_default();
        let bytes = backend(device).proposal_scratch(most, columns);
        let batch = DraftBatch {
            sampling,
            draft_tokens: Column { span: draft_tokens, stride },
            draft_logits,
            ..DraftBatch::new(self.sequences, self.max_drafts)
        };
        let phase = Propose {
            rows: self.rows.lend(&mut place),
            step: self.step,
            slots: 1,
            distance: 1 + self.step % 2,
            num_drafts,
            batch,
            hidden: place.matrix(&self.hidden),
            norm: Some(place.norm(&self.gain)),
            feed_back_normed: self.feed_back_normed,
            head: RowSegments { segments: &head },
            base: None,
            rows_of_base: 1,
            choice: Choice::Proposed,
            target_ids: self.target_ids.as_ref().map(|ids| place.array(ids)),
            input: place.output(most, self.hidden.columns),
            logits: place.output(most, columns),
            scratch: place.scratch(bytes),
        };
        place.run(|backend, stream| backend.propose(stream, &phase).unwrap());
        if device == Device::Cuda {
            let scratch = place.scratch_bytes();
            for record in scratch.chunks(bytes / most) {
                assert!(record[..16].iter().all(|&byte| byte == 0), "counters are left zero");
            }
        }
        let Rows { token, position, rope_position, .. } = phase.rows;
        Proposed {
            draft_tokens: read_array(draft_tokens),
            rows: [token, position, rope_position].map(read_array),
            hidden: read(&phase.hidden),
            draft_logits: draft_logits.as_ref().map_or(Vec::new(), read),
        }
    }

    fn rows(&self, first: usize, rows: usize) -> Self {
        let part = |values: &Vec<i32>| values[first..first + rows].to_vec();
        let rows_of = RowValues {
            sequence: part(&self.rows.sequence),
            position: part(&self.rows.position),
            rope_position: part(&self.rows.rope_position),
            token: part(&self.rows.token),
            ..RowValues::new(rows, rows, 0)
        };
        Self { rows: rows_of, hidden: self.hidden.rows(first, rows), ..self.clone() }
    }

    /// A row's token, residual stream and logits.
    fn of_row(&self, proposed: &Proposed, row: usize) -> Vec<f32> {
        let (width, columns) = (self.hidden.columns, self.columns());
        let mut result = vec![f32::from_bits(proposed.rows[0][row] as u32)];
        result.extend_from_slice(&proposed.hidden[row * width..][..width]);
        if self.draft_logits.is_some() {
            let logits = self.rows.sequence[row] as usize * self.max_drafts + self.step;
            result.extend_from_slice(&proposed.draft_logits[logits * columns..][..columns]);
        }
        result
    }
}

#[track_caller]
fn assert_same_proposals(case: &ProposeCase, number: u64) {
    let (found, expected) = (case.run(Device::Cuda), case.run(Device::Cpu));
    let what = format!("case {number}: {:?} {:?}", case.head[0].dtype, case.rows);
    assert_close(&found.hidden, &expected.hidden, case.hidden.columns, TOLERANCE, &what);
    let rounding = match case.draft_logits {
        Some((Dtype::F16, _)) => 1.0 / 2048.0,
        Some((Dtype::Bf16, _)) => 1.0 / 256.0,
        _ => 0.0,
    };
    let tolerance = TOLERANCE + rounding;
    assert_close(&found.draft_logits, &expected.draft_logits, case.columns(), tolerance, &what);
    assert_eq!(found.rows, expected.rows, "{what}");
    assert_eq!(found.draft_tokens, expected.draft_tokens, "{what}");
}

#[test]
fn proposals_are_those_of_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(100, 40)) {
        let rows = random_rows(&mut random);
        assert_same_proposals(&ProposeCase::random(&mut random, rows), number);
    }
}

#[test]
fn the_first_of_the_largest_logits_is_proposed_whatever_stands_beside() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(30, 20)) {
        let rows = random_rows(&mut random);
        let mut case = ProposeCase::random(&mut random, rows);
        case.sampling = None;
        // All rows look at a few directions, each of which several tokens have.
        let width = case.hidden.columns;
        for segment in &mut case.head {
            for token in 0..segment.rows {
                let row = &mut segment.elements[token * width..][..width];
                match random.below(4) {
                    0 => row.fill(f32::NAN),
                    kind => {
                        row.iter_mut().enumerate().for_each(|(i, x)| {
                            *x = if i % 3 == kind - 1 { 0.25 } else { 0.5 };
                        });
                    }
                }
            }
            if number % 5 == 0 {
                segment.elements.fill(f32::NAN);
            }
        }
        let (found, expected) = (case.run(Device::Cuda), case.run(Device::Cpu));
        assert_eq!(found.rows, expected.rows, "case {number}");
        assert_eq!(found.draft_tokens, expected.draft_tokens, "case {number}");
    }
}

#[test]
fn logits_may_be_infinite() {
    let Some(_turn) = cuda_test() else { return };
    for (number, mut random) in cases(test_cases(9, 6)) {
        let mut case = ProposeCase::random(&mut random, RowValues::new(5, 5, 0));
        case.sampling = None;
        case.draft_logits = Some((DTYPES[number as usize % 3], COMPACT));
        // Sums of such weights overflow, as rows have elements of one sign. The first is no number.
        case.hidden.elements.iter_mut().for_each(|value| *value = value.abs() + 1.0);
        case.gain = None;
        let tokens = 2 + random.below(60);
        let mut head = Values::random(&mut random, (tokens, case.hidden.columns), Dtype::Bf16, 1.0);
        head.elements.fill(-3e38);
        head.elements[..case.hidden.columns].fill(f32::NAN);
        if number % 2 == 0 {
            head.elements[case.hidden.columns..].fill(3e38);
        }
        case.target_ids = None;
        case.head = vec![head];
        let (found, expected) = (case.run(Device::Cuda), case.run(Device::Cpu));
        assert_eq!(found.rows, expected.rows, "case {number}");
        assert_eq!(found.draft_tokens, expected.draft_tokens, "case {number}");
        let same = |(found, expected): (&f32, &f32)| {
            found == expected || found.is_nan() && expected.is_nan()
        };
        assert!(found.draft_logits.iter().zip(&expected.draft_logits).all(same), "case {number}");
    }
}

#[test]
fn a_proposal_does_not_depend_on_other_rows() {
    let Some(_turn) = cuda_test() else { return };
    for (_, mut random) in cases(test_cases(12, 3)) {
        let case = ProposeCase::random(&mut random, RowValues::new(130, 130, 0));
        let run = |first, rows| {
            let part = case.rows(first, rows);
            let proposed = part.run(Device::Cuda);
            (0..rows).flat_map(|row| part.of_row(&proposed, row)).collect::<Vec<_>>()
        };
        assert_rows_are_independent(run(0, 1).len(), run);
    }
}

#[test]
fn blocks_that_wait_for_others_leave_them_room() {
    let Some(_turn) = cuda_test() else { return };
    if !simulator::is_present_or_skipped("only the simulator has room for few blocks") {
        return;
    }
    // One more than may wait. There are a few groups of 32 rows, then more than blocks may wait.
    simulator::configure("SIMT_RESIDENT", "17");
    for rows in [70, 520] {
        let mut random = Random::new(rows as u64);
        let case = ProposeCase {
            hidden: Values::random(&mut random, (rows, 8), Dtype::F32, 3.0),
            gain: None,
            feed_back_normed: true,
            head: vec![Values::random(&mut random, (250, 8), Dtype::Bf16, 1.0)],
            target_ids: None,
            sampling: None,
            draft_logits: None,
            ..ProposeCase::random(&mut random, RowValues::new(rows, rows, 0))
        };
        assert_same_proposals(&case, rows as u64);
    }
    simulator::configure("SIMT_RESIDENT", "0");
}
