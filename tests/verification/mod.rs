//! Verification calls from plain vectors, and the measurement of the law that they follow.
#![allow(dead_code)] // Each test program uses its own part.

pub mod processing;

use crate::device::backend::open_cuda;
use crate::device::buffer::Buffer;
use crate::device::memory::Memory;
use crate::device::{Device, driver};
use half::{bf16, f16};
use processing::Steps;
use speculators::backend::cpu::{CpuBackend, Threads};
use speculators::backend::phases::Column;
use speculators::backend::verify::{
    DraftDistribution, Leniency, Logprobs, SamplingArrays, VerifyBatch, record,
};
use speculators::backend::{Backend, DeviceType};
use speculators::sampling::Parameters;
use speculators::tensor::{Dtype, Matrix, Span};
use speculators::verify::{Stream, verify, workspace_bytes};
use std::any::Any;
use std::sync::OnceLock;

pub const DEFAULT: i32 = 0;
pub const FOLLOW: i32 = 1;
pub const REJECTION: i32 = 2;
pub const DISTINCT: i32 = 3;
pub const BLOCK: i32 = 4;
pub const TYPICAL: i32 = 16;
pub const THRESHOLD: i32 = 17;
pub const RELAXED: i32 = 18;
pub const SYNTHETIC: i32 = 19;

/// Drawn at temperature 1.
pub const PLAIN: Parameters = Parameters::PLAIN;

/// The backend that the tests of this process run on, with so many threads on the CPU.
pub fn backend_with(threads: usize) -> &'static dyn Backend {
    static BACKEND: OnceLock<Box<dyn Backend>> = OnceLock::new();
    let create = || -> Box<dyn Backend> {
        match Device::chosen() {
            Device::Cpu => Box::new(CpuBackend::new(Threads::Own(threads)).unwrap()),
            Device::Cuda => Box::new(open_cuda()),
        }
    };
    BACKEND.get_or_init(create).as_ref()
}

/// One sequence of a call.
#[derive(Clone, Debug)]
pub struct Request {
    /// The target's rows: the root's, then that of each draft.
    pub logits: Vec<Vec<f32>>,
    pub drafts: Vec<i32>,
    /// The parent of each node, if the drafts are a tree; for all sequences of a call or for none.
    pub parents: Vec<i32>,
    /// What the drafts were drawn from; empty if the call has no distribution.
    pub draft_logits: Vec<Vec<f32>>,
    /// The ids of each draft row's candidates, with [`Ids::PerRow`].
    pub draft_ids: Vec<Vec<i32>>,
    pub parameters: Parameters,
    pub draft_parameters: Parameters,
    pub seed: u64,
    pub position: i32,
    pub limit: i32,
    /// Instead of the seeded numbers, for all sequences of a call or for none.
    pub uniforms: Vec<f64>,
    /// Instead of the number of drafts that there are.
    pub num_drafts: Option<i32>,
    /// Instead of where the rows are.
    pub row_begin: Option<i32>,
    /// What is done to the logits before; if nobody in a call has any, the call has none.
    pub steps: Option<Steps>,
}

impl Request {
    pub fn new(logits: Vec<Vec<f32>>, drafts: Vec<i32>, parameters: Parameters) -> Self {
        Self {
            logits,
            drafts,
            parents: Vec::new(),
            draft_logits: Vec::new(),
            draft_ids: Vec::new(),
            parameters,
            draft_parameters: parameters,
            seed: 0,
            position: 0,
            limit: i32::MAX,
            uniforms: Vec::new(),
            num_drafts: None,
            row_begin: None,
            steps: None,
        }
    }
}

/// Which tokens the candidates of draft rows are.
#[derive(Clone, Debug)]
pub enum Ids {
    Identity,
    Shared(Vec<i32>),
    PerRow,
}

/// Where the rows of the sequences are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// Those of the first sequence first, each after an unused row.
    Forward,
    /// Those of the last sequence first, each after an unused row.
    Backward,
    /// As many for each sequence, so that nothing says where they are. All arrays are absent that
    /// would say what their absence says.
    Implied,
}

/// What the sequences of a call share.
#[derive(Clone, Debug)]
pub struct Call {
    pub rule: i32,
    pub dtype: Dtype,
    /// The type of the draft logits; `None` is that of the others.
    pub draft_dtype: Option<Dtype>,
    pub order: RowOrder,
    pub ids: Ids,
    pub stop_tokens: Vec<i32>,
    pub padding: i32,
    /// What stands in the records before the call.
    pub before: i32,
    /// Elements between the rows.
    pub gap: usize,
    /// Whether the positions lie in the records, where the next ones are written.
    pub chains: bool,
    /// Whether there are no arrays of parameters, which makes all sequences greedy.
    pub is_greedy: bool,
    /// What lossy rules go by.
    pub leniency: Leniency,
    /// How often drafts of each depth are to be accepted.
    pub acceptance: Vec<f32>,
    /// How many alternatives of emitted tokens are wanted with their log-probabilities, raw and
    /// processed; `None`: these are not wanted.
    pub alternatives: [Option<usize>; 2],
}

impl Call {
    pub fn by(rule: i32) -> Self {
        Self {
            rule,
            dtype: Dtype::F32,
            draft_dtype: None,
            order: RowOrder::Forward,
            ids: Ids::Identity,
            stop_tokens: Vec::new(),
            padding: -1,
            before: 77,
            gap: 3,
            chains: false,
            is_greedy: false,
            leniency: Leniency::default(),
            acceptance: Vec::new(),
            alternatives: [None; 2],
        }
    }

    /// The sequences in the order of their rows.
    fn places(&self, sequences: usize) -> Vec<usize> {
        let mut places: Vec<usize> = (0..sequences).collect();
        if self.order == RowOrder::Backward {
            places.reverse();
        }
        places
    }
}

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub accepted: usize,
    pub emitted: usize,
    pub next_token: i32,
    pub next_position: i32,
    pub flags: i32,
    pub dropped: usize,
    /// All places for tokens, the padded ones too.
    pub places: Vec<i32>,
    pub path: Vec<i32>,
}

impl Decision {
    pub fn tokens(&self) -> &[i32] {
        &self.places[..self.emitted]
    }
}

/// What is told of how probable emitted tokens were, for each sequence and place.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub values: Vec<Vec<Vec<f32>>>,
    pub token_ids: Vec<Vec<Vec<i32>>>,
    pub ranks: Vec<Vec<i32>>,
}

impl Told {
    /// The bits of all values, of which NaN are some.
    pub fn bits(&self) -> Vec<u32> {
        self.values.iter().flatten().flatten().map(|value| value.to_bits()).collect()
    }
}

/// What a call answers.
pub struct Answer {
    pub decisions: Vec<Decision>,
    pub counters: Vec<u64>,
    /// Raw and processed.
    pub logprobs: [Option<Told>; 2],
}

/// Where a call writes how probable emitted tokens were.
struct LogprobOutputs {
    alternatives: usize,
    values: Buffer<f32>,
    token_ids: Buffer<i32>,
    ranks: Buffer<i32>,
}

impl LogprobOutputs {
    fn new(device: Device, alternatives: usize, places: usize) -> Self {
        let len = places * (alternatives + 1);
        Self {
            alternatives,
            values: Buffer::on(device, vec![77.0; len]),
            token_ids: Buffer::on(device, vec![77; len]),
            ranks: Buffer::on(device, vec![77; places]),
        }
    }

    fn view(&self) -> Logprobs {
        Logprobs {
            alternatives: self.alternatives,
            values: Span::new(self.values.as_ptr() as u64, self.values.len()),
            token_ids: Some(Span::new(self.token_ids.as_ptr() as u64, self.token_ids.len())),
            ranks: Some(Span::new(self.ranks.as_ptr() as u64, self.ranks.len())),
        }
    }

    fn told(self, nodes: usize) -> Told {
        // Written through their addresses.
        let Self { alternatives, values, token_ids, ranks } = std::hint::black_box(self);
        fn split<T: Clone>(elements: &[T], len: usize, nodes: usize) -> Vec<Vec<Vec<T>>> {
            let places: Vec<Vec<T>> = elements.chunks(len).map(<[T]>::to_vec).collect();
            places.chunks(nodes).map(<[Vec<T>]>::to_vec).collect()
        }
        Told {
            values: split(&values, alternatives + 1, nodes),
            token_ids: split(&token_ids, alternatives + 1, nodes),
            ranks: ranks.chunks(nodes).map(<[i32]>::to_vec).collect(),
        }
    }
}

/// The arrays of a call, where its device reads them.
struct Arrays {
    device: Device,
    /// Whether arrays are left out that hold nothing but what their absence means.
    are_implied: bool,
    kept: Vec<Box<dyn Any>>,
}

impl Arrays {
    fn span<T: Copy + 'static>(&mut self, elements: Vec<T>) -> Span<T> {
        let buffer = Buffer::on(self.device, elements);
        let span = Span::new(buffer.as_ptr() as u64, buffer.len());
        self.kept.push(Box::new(buffer));
        span
    }

    fn optional<T: Copy + PartialEq + 'static>(
        &mut self,
        elements: impl IntoIterator<Item = T>,
        default: T,
    ) -> Option<Span<T>> {
        let elements: Vec<T> = elements.into_iter().collect();
        let is_absent = self.are_implied && elements.iter().all(|element| *element == default);
        (!is_absent).then(|| self.span(elements))
    }

    /// Rows with gaps of NaN between them, so that a reader who goes too far is found out.
    fn matrix(&mut self, rows: &[&Vec<f32>], dtype: Dtype, gap: usize) -> Matrix {
        let columns = rows[0].len();
        let row_stride = columns + gap;
        let gap = vec![f32::NAN; gap];
        let mut bytes = Vec::new();
        for row in rows {
            assert_eq!(row.len(), columns);
            for &value in row.iter().chain(&gap) {
                match dtype {
                    Dtype::F32 => bytes.extend(value.to_ne_bytes()),
                    Dtype::F16 => bytes.extend(f16::from_f32(value).to_ne_bytes()),
                    Dtype::Bf16 => bytes.extend(bf16::from_f32(value).to_ne_bytes()),
                }
            }
        }
        let address = self.span(bytes).address();
        Matrix { address, dtype, rows: rows.len(), columns, row_stride }
    }

    fn sampling<'a>(
        &mut self,
        parameters: impl Iterator<Item = &'a Parameters> + Clone,
        seeds: impl Iterator<Item = u64>,
    ) -> SamplingArrays {
        let all = parameters;
        SamplingArrays {
            temperature: self.optional(all.clone().map(|one| one.temperature), 0.0),
            top_k: self.optional(all.clone().map(|one| one.top_k), 0),
            top_p: self.optional(all.clone().map(|one| one.top_p), 1.0),
            min_p: self.optional(all.map(|one| one.min_p), 0.0),
            seed: self.optional(seeds, 0),
        }
    }

    /// What the drafts were drawn from.
    fn distribution(&mut self, call: &Call, requests: &[Request]) -> Option<DraftDistribution> {
        let candidates = requests.iter().flat_map(|request| &request.draft_logits).next()?.len();
        let most = requests.iter().map(|request| request.drafts.len()).max().unwrap_or(0);
        let unused = (vec![f32::NAN; candidates], vec![-1; candidates]);
        let (mut rows, mut ids) = (Vec::new(), Vec::new());
        let mut begin = vec![0; requests.len()];
        for index in call.places(requests.len()) {
            let request = &requests[index];
            begin[index] = rows.len() as i32;
            rows.extend(&request.draft_logits);
            ids.extend(&request.draft_ids);
            if self.are_implied {
                rows.resize((begin[index] as usize + most).max(rows.len()), &unused.0);
                ids.resize(rows.len(), &unused.1);
            }
        }
        let (ids, token_ids_stride) = match &call.ids {
            Ids::Identity => (None, 0),
            Ids::Shared(ids) => (Some(ids.clone()), 0),
            Ids::PerRow => (Some(ids.into_iter().flatten().copied().collect()), candidates),
        };
        let is_alike = requests.iter().all(|r| r.draft_parameters == r.parameters);
        let parameters = requests.iter().map(|request| &request.draft_parameters);
        Some(DraftDistribution {
            logits: self.matrix(&rows, call.draft_dtype.unwrap_or(call.dtype), call.gap),
            token_ids: ids.map(|ids| self.span(ids)),
            token_ids_stride,
            row_begin: (!self.are_implied).then(|| self.span(begin)),
            rows_per_sequence: if self.are_implied { most } else { 0 },
            sampling: (!self.are_implied || !is_alike)
                .then(|| self.sampling(parameters, requests.iter().map(|_| 0))),
        })
    }

    /// The trees of the drafts, if they are trees.
    fn parents(&mut self, requests: &[Request], drafts: usize) -> Option<Column> {
        if requests.iter().all(|request| request.parents.is_empty()) {
            return None;
        }
        // What lies beyond a sequence's nodes is not looked at.
        let stride = drafts + 3;
        let mut parents = vec![1 << 30; requests.len() * stride];
        for (parents, request) in parents.chunks_mut(stride).zip(requests) {
            parents[..request.parents.len()].copy_from_slice(&request.parents);
        }
        let is_one = requests.iter().all(|request| request.parents == requests[0].parents);
        let stride = if self.are_implied && is_one { 0 } else { stride };
        Some(Column { span: self.span(parents), stride })
    }

    /// The uniform numbers, if they are given.
    fn uniforms(&mut self, requests: &[Request], drafts: usize) -> Option<Span<f64>> {
        if requests.iter().all(|request| request.uniforms.is_empty()) {
            return None;
        }
        let mut uniforms = vec![f64::NAN; requests.len() * 2 * (drafts + 1)];
        for (numbers, request) in uniforms.chunks_mut(2 * (drafts + 1)).zip(requests) {
            numbers[..request.uniforms.len()].copy_from_slice(&request.uniforms);
        }
        Some(self.span(uniforms))
    }

    /// The logits, and where those of each sequence begin.
    fn logits(&mut self, call: &Call, requests: &[Request]) -> (Matrix, Vec<i32>) {
        let unused = vec![f32::NAN; requests[0].logits[0].len()];
        let most = requests.iter().map(|request| request.drafts.len()).max().unwrap_or(0);
        let mut rows = Vec::new();
        let mut row_begin = vec![0; requests.len()];
        for index in call.places(requests.len()) {
            let request = &requests[index];
            if !self.are_implied {
                rows.push(&unused);
            }
            let begin = rows.len();
            row_begin[index] = begin as i32;
            rows.extend(&request.logits);
            if self.are_implied {
                rows.resize(begin + most + 1, &unused);
            }
        }
        (self.matrix(&rows, call.dtype, call.gap), row_begin)
    }
}

/// What the call with these requests writes; the positions stand in the records if they are there.
struct Outputs {
    records: Buffer<i32>,
    counters: Buffer<u64>,
    stride: usize,
}

impl Outputs {
    fn new(device: Device, call: &Call, requests: &[Request], drafts: usize) -> Self {
        let stride = record::len(drafts) + 2;
        let mut records = vec![call.before; requests.len() * stride];
        if call.chains {
            for (record, request) in records.chunks_mut(stride).zip(requests) {
                record[record::NEXT_POSITION] = request.position;
            }
        }
        let counters = Buffer::on(device, vec![0; 3 + drafts]);
        Self { records: Buffer::on(device, records), counters, stride }
    }

    fn column(&self, field: usize) -> Column {
        let address = self.records[field..].as_ptr() as u64;
        Column { span: Span::new(address, self.records.len() - field), stride: self.stride }
    }
}

/// Makes a call; the counters come with the decisions.
pub fn decide_counted(
    backend: &dyn Backend,
    call: &Call,
    requests: &[Request],
) -> (Vec<Decision>, Vec<u64>) {
    let Answer { decisions, counters, .. } = ask(backend, call, requests);
    (decisions, counters)
}

/// Makes a call, and returns all that it answers.
pub fn ask(backend: &dyn Backend, call: &Call, requests: &[Request]) -> Answer {
    let device = match backend.description().device_type {
        DeviceType::Cpu => Device::Cpu,
        DeviceType::Cuda => Device::Cuda,
    };
    let are_implied = call.order == RowOrder::Implied;
    let mut arrays = Arrays { device, are_implied, kept: Vec::new() };
    let drafts = requests.iter().map(|request| request.drafts.len()).max().unwrap_or(0);
    let (logits, begins) = arrays.logits(call, requests);
    let row_begin = requests.iter().zip(&begins);
    let row_begin = row_begin.map(|(request, &begin)| request.row_begin.unwrap_or(begin)).collect();
    let row_begin = (!are_implied).then(|| arrays.span(row_begin));
    let draft_stride = drafts + 1;
    let mut tokens = vec![1 << 30; requests.len() * draft_stride];
    for (tokens, request) in tokens.chunks_mut(draft_stride).zip(requests) {
        tokens[..request.drafts.len()].copy_from_slice(&request.drafts);
    }
    let num_drafts = requests.iter().map(|r| r.num_drafts.unwrap_or(r.drafts.len() as i32));
    let outputs = Outputs::new(device, call, requests, drafts);
    let places = requests.len() * (drafts + 1);
    let logprobs = call
        .alternatives
        .map(|wanted| wanted.map(|count| LogprobOutputs::new(device, count, places)));
    let position = if call.chains {
        outputs.column(record::NEXT_POSITION)
    } else {
        let positions = requests.iter().map(|request| request.position).collect();
        Column { span: arrays.span(positions), stride: 1 }
    };
    let parameters = requests.iter().map(|request| &request.parameters);
    let seeds = requests.iter().map(|request| request.seed);
    let batch = VerifyBatch {
        num_sequences: requests.len(),
        max_drafts: drafts,
        logits,
        row_begin,
        num_drafts: arrays.optional(num_drafts, drafts as i32),
        draft_tokens: Column { span: arrays.span(tokens), stride: draft_stride },
        parents: arrays.parents(requests, drafts),
        position,
        limit: arrays.optional(requests.iter().map(|request| request.limit), i32::MAX),
        processing: arrays.processing(requests, &begins, logits.rows),
        sampling: if call.is_greedy {
            SamplingArrays::default()
        } else {
            arrays.sampling(parameters, seeds)
        },
        draft: arrays.distribution(call, requests),
        uniforms: arrays.uniforms(requests, drafts),
        leniency: Leniency {
            acceptance: (!call.acceptance.is_empty()).then(|| arrays.span(call.acceptance.clone())),
            ..call.leniency
        },
        stop_tokens: arrays.span(call.stop_tokens.clone()),
        padding: call.padding,
        decisions: outputs.column(0),
        counters: Some(Span::new(outputs.counters.as_ptr() as u64, outputs.counters.len())),
        raw_logprobs: logprobs[0].as_ref().map(LogprobOutputs::view),
        processed_logprobs: logprobs[1].as_ref().map(LogprobOutputs::view),
    };
    let bytes = workspace_bytes(backend, &batch, call.rule).unwrap();
    let workspace = Memory::filled_on(device, bytes as u64, 0xA5);
    let workspace = Span::new(workspace.address() as u64, bytes);
    verify((backend, Stream::NONE), &batch, (call.rule, true), workspace).unwrap();
    if device == Device::Cuda {
        driver::synchronize();
    }
    // Written through their addresses.
    let Outputs { records, counters, stride } = std::hint::black_box(outputs);
    let decisions = records.chunks(stride).map(|record| parse(record, drafts, call.before));
    Answer {
        decisions: decisions.collect(),
        counters: counters.to_vec(),
        logprobs: logprobs.map(|outputs| outputs.map(|outputs| outputs.told(drafts + 1))),
    }
}

fn parse(fields: &[i32], drafts: usize, before: i32) -> Decision {
    let (tokens, rest) = fields[record::TOKENS..].split_at(drafts + 1);
    let (path, beyond) = rest.split_at(drafts + 1);
    assert_eq!(fields[record::DROPPED + 1..record::TOKENS], [0; 2], "reserved elements");
    assert!(beyond.iter().all(|&element| element == before), "elements beyond the record");
    Decision {
        accepted: fields[record::ACCEPTED] as usize,
        emitted: fields[record::EMITTED] as usize,
        next_token: fields[record::NEXT_TOKEN],
        next_position: fields[record::NEXT_POSITION],
        flags: fields[record::FLAGS],
        dropped: fields[record::DROPPED] as usize,
        places: tokens.to_vec(),
        path: path.to_vec(),
    }
}

/// Makes a call.
pub fn decide(backend: &dyn Backend, call: &Call, requests: &[Request]) -> Vec<Decision> {
    decide_counted(backend, call, requests).0
}

/// Uniform numbers in steps that an `f64` holds exactly.
const STEPS: u64 = 1 << 53;

fn number(step: u64) -> f64 {
    step as f64 / STEPS as f64
}

/// The largest number that a host can give.
pub fn almost_one() -> f64 {
    number(STEPS - 1)
}

/// The law of an outcome that does not fall when its uniform number rises: each outcome with its
/// probability, found by halving the intervals at whose ends it differs.
pub fn law(outcome: impl Fn(f64) -> i32) -> Vec<(i32, f64)> {
    fn halve(
        outcome: &impl Fn(f64) -> i32,
        low: (u64, i32),
        high: (u64, i32),
        ends: &mut Vec<(i32, u64)>,
    ) {
        if low.1 == high.1 {
            return;
        }
        if high.0 - low.0 == 1 {
            ends.push((low.1, high.0));
            return;
        }
        let middle = low.0 + (high.0 - low.0) / 2;
        let middle = (middle, outcome(number(middle)));
        halve(outcome, low, middle, ends);
        halve(outcome, middle, high, ends);
    }
    let (low, high) = ((0, outcome(0.0)), (STEPS - 1, outcome(almost_one())));
    let mut ends = Vec::new();
    halve(&outcome, low, high, &mut ends);
    ends.push((high.1, STEPS));
    let mut begin = 0;
    let share = |(outcome, end): (i32, u64)| {
        let probability = number(end - begin);
        begin = end;
        (outcome, probability)
    };
    ends.into_iter().map(share).collect()
}

/// The law of one row's tokens, as verification draws them where nothing is proposed.
pub fn row_law(backend: &dyn Backend, logits: &[f32], parameters: Parameters) -> Vec<f64> {
    let mut request = Request::new(vec![logits.to_vec()], Vec::new(), parameters);
    let mut probabilities = vec![0.0; logits.len()];
    let drawn = |uniform| {
        let mut request = request.clone();
        request.uniforms = vec![0.0, uniform];
        decide(backend, &Call::by(FOLLOW), &[request])[0].places[0]
    };
    let outcomes = law(drawn);
    request.uniforms.clear();
    for (token, probability) in outcomes {
        probabilities[token as usize] += probability;
    }
    probabilities
}

/// What can happen in a round: the tokens emitted, the drafts accepted, and how probable that is.
pub fn round_law(backend: &dyn Backend, call: &Call, request: &Request) -> Vec<(Vec<i32>, f64)> {
    let drafts = request.drafts.len();
    let with = |uniforms: &[f64]| {
        let mut request = request.clone();
        request.uniforms = uniforms.to_vec();
        decide(backend, call, &[request]).remove(0)
    };
    let mut outcomes = Vec::new();
    let mut reached = 1.0;
    let mut uniforms = vec![0.0; 2 * (drafts + 1)];
    for node in 0..=drafts {
        let mut rejected = 1.0;
        if node < drafts {
            let accepts = law(|uniform| {
                // Rejection comes with the higher numbers.
                let mut numbers = uniforms.clone();
                numbers[2 * node] = uniform;
                i32::from(with(&numbers).accepted <= node)
            });
            rejected = accepts.iter().filter(|(outcome, _)| *outcome == 1).map(|o| o.1).sum();
            uniforms[2 * node] = almost_one();
        }
        if rejected > 0.0 {
            let tokens = law(|uniform| {
                let mut numbers = uniforms.clone();
                numbers[2 * node + 1] = uniform;
                with(&numbers).places[node]
            });
            for (token, probability) in tokens {
                let mut emitted = request.drafts[..node].to_vec();
                emitted.push(token);
                outcomes.push((emitted, reached * rejected * probability));
            }
        }
        reached *= 1.0 - rejected;
        if node < drafts {
            uniforms[2 * node] = 0.0;
        }
        if reached == 0.0 {
            break;
        }
    }
    outcomes
}

/// What can happen in a round of a tree, by a rule that decides node by node: the tokens emitted and
/// how probable that is.
pub fn tree_law(backend: &dyn Backend, call: &Call, request: &Request) -> Vec<(Vec<i32>, f64)> {
    let numbers = vec![almost_one(); 2 * request.parents.len()];
    let walk = TreeWalk { backend, call, request };
    let mut outcomes = Vec::new();
    walk.at(0, &[], 1.0, &numbers, &mut outcomes);
    outcomes
}

struct TreeWalk<'a> {
    backend: &'a dyn Backend,
    call: &'a Call,
    request: &'a Request,
}

impl TreeWalk<'_> {
    fn with(&self, uniforms: &[f64], index: usize, number: f64) -> Decision {
        let mut uniforms = uniforms.to_vec();
        uniforms[index] = number;
        let request = Request { uniforms, ..self.request.clone() };
        decide(self.backend, self.call, &[request]).remove(0)
    }

    /// Adds what can happen once a node is reached, with all numbers of other nodes as they were set
    /// to reach it: the highest, with which tests fail, but for those of the path.
    fn at(
        &self,
        node: usize,
        tokens: &[i32],
        reached: f64,
        numbers: &[f64],
        outcomes: &mut Vec<(Vec<i32>, f64)>,
    ) {
        let children = (1..self.request.parents.len())
            .filter(|&child| self.request.parents[child] == node as i32);
        let mut left = reached;
        for child in children {
            let test = 2 * (child - 1);
            let is_off = |number| {
                let decision = self.with(numbers, test, number);
                i32::from(!decision.path.contains(&(child as i32)))
            };
            // The child's row is committed only if something is emitted below it.
            let accepts = law(is_off);
            let accepted: f64 = accepts.iter().filter(|(off, _)| *off == 0).map(|one| one.1).sum();
            if accepted > 0.0 {
                let mut numbers = numbers.to_vec();
                numbers[test] = 0.0;
                let tokens = [tokens, &[self.request.drafts[child - 1]]].concat();
                self.at(child, &tokens, left * accepted, &numbers, outcomes);
            }
            left *= 1.0 - accepted;
        }
        if left == 0.0 {
            return;
        }
        let emitted = law(|number| self.with(numbers, 2 * node + 1, number).places[tokens.len()]);
        for (token, probability) in emitted {
            outcomes.push(([tokens, &[token]].concat(), left * probability));
        }
    }
}

/// What can happen in a round of a tree that follows the target's own draws.
pub fn follow_law(backend: &dyn Backend, request: &Request) -> Vec<(Vec<i32>, f64)> {
    let call = Call::by(FOLLOW);
    let walk = TreeWalk { backend, call: &call, request };
    let mut outcomes = Vec::new();
    walk.follow(0, &[], 1.0, &vec![0.0; 2 * request.parents.len()], &mut outcomes);
    outcomes
}

impl TreeWalk<'_> {
    fn follow(
        &self,
        node: usize,
        tokens: &[i32],
        reached: f64,
        numbers: &[f64],
        outcomes: &mut Vec<(Vec<i32>, f64)>,
    ) {
        let draw = 2 * node + 1;
        let drawn = law(|number| self.with(numbers, draw, number).places[tokens.len()]);
        let mut below = 0.0;
        for (token, probability) in drawn {
            let mut numbers = numbers.to_vec();
            numbers[draw] = below + probability / 2.0;
            below += probability;
            let tokens = [tokens, &[token]].concat();
            let decision = self.with(&numbers, draw, numbers[draw]);
            match decision.path.get(tokens.len()) {
                Some(&child) if child >= 0 => {
                    self.follow(child as usize, &tokens, reached * probability, &numbers, outcomes);
                }
                _ => outcomes.push((tokens, reached * probability)),
            }
        }
    }
}

/// What can happen in a round of a chain by a rule whose tests are independent of each other, the
/// last one that passes deciding.
pub fn block_law(backend: &dyn Backend, call: &Call, request: &Request) -> Vec<(Vec<i32>, f64)> {
    let drafts = request.drafts.len();
    let with = |uniforms: &[f64]| {
        let request = Request { uniforms: uniforms.to_vec(), ..request.clone() };
        decide(backend, call, &[request]).remove(0)
    };
    let mut outcomes = Vec::new();
    let mut left = 1.0;
    for accepted in (0..=drafts).rev() {
        let mut uniforms = vec![almost_one(); 2 * (drafts + 1)];
        let mut passes = 1.0;
        if accepted > 0 {
            let test = 2 * (accepted - 1);
            let chances = law(|number| {
                let mut numbers = uniforms.clone();
                numbers[test] = number;
                i32::from(with(&numbers).accepted < accepted)
            });
            passes = chances.iter().filter(|(fails, _)| *fails == 0).map(|one| one.1).sum();
            uniforms[test] = 0.0;
        }
        if left * passes > 0.0 {
            let emitted = law(|number| {
                let mut numbers = uniforms.clone();
                numbers[2 * accepted + 1] = number;
                with(&numbers).places[accepted]
            });
            for (token, probability) in emitted {
                let tokens = [&request.drafts[..accepted], &[token]].concat();
                outcomes.push((tokens, left * passes * probability));
            }
        }
        left *= 1.0 - passes;
    }
    outcomes
}
