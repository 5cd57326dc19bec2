//! Verification calls from plain vectors, and the measurement of the law that they follow.
#![allow(dead_code)] // Each test program uses its own part.

use half::{bf16, f16};
use speculators::backend::Backend;
use speculators::backend::phases::Column;
use speculators::backend::verify::{DraftDistribution, SamplingArrays, VerifyBatch, record};
use speculators::sampling::Parameters;
use speculators::tensor::{Dtype, Matrix, Span};
use speculators::verify::{Stream, verify, workspace_bytes};

pub const DEFAULT: i32 = 0;
pub const FOLLOW: i32 = 1;
pub const REJECTION: i32 = 2;

/// Drawn at temperature 1.
pub const PLAIN: Parameters = Parameters { temperature: 1.0, ..Parameters::GREEDY };

/// One sequence of a call.
#[derive(Clone, Debug)]
pub struct Request {
    /// The target's rows: the root's, then that of each draft.
    pub logits: Vec<Vec<f32>>,
    pub drafts: Vec<i32>,
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
}

impl Request {
    pub fn new(logits: Vec<Vec<f32>>, drafts: Vec<i32>, parameters: Parameters) -> Self {
        Self {
            logits,
            drafts,
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

/// What the sequences of a call share.
#[derive(Clone, Debug)]
pub struct Call {
    pub rule: i32,
    pub dtype: Dtype,
    pub ids: Ids,
    pub stop_tokens: Vec<i32>,
    pub padding: i32,
    /// What stands in the records before the call.
    pub before: i32,
}

impl Call {
    pub fn by(rule: i32) -> Self {
        Self {
            rule,
            dtype: Dtype::F32,
            ids: Ids::Identity,
            stop_tokens: Vec::new(),
            padding: -1,
            before: 77,
        }
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
    /// All places for tokens, the padded ones too.
    pub places: Vec<i32>,
    pub path: Vec<i32>,
}

impl Decision {
    pub fn tokens(&self) -> &[i32] {
        &self.places[..self.emitted]
    }
}

/// Rows with gaps of NaN between them, so that a reader who goes too far is found out.
struct Rows {
    bytes: Vec<u8>,
    matrix: Matrix,
}

impl Rows {
    fn new(rows: &[&Vec<f32>], columns: usize, dtype: Dtype) -> Self {
        let row_stride = columns + 3;
        let mut bytes = Vec::new();
        for row in rows {
            assert_eq!(row.len(), columns);
            for &value in row.iter().chain(&[f32::NAN; 3]) {
                match dtype {
                    Dtype::F32 => bytes.extend(value.to_ne_bytes()),
                    Dtype::F16 => bytes.extend(f16::from_f32(value).to_ne_bytes()),
                    Dtype::Bf16 => bytes.extend(bf16::from_f32(value).to_ne_bytes()),
                }
            }
        }
        let address = bytes.as_ptr() as u64;
        Self { bytes, matrix: Matrix { address, dtype, rows: rows.len(), columns, row_stride } }
    }
}

fn span<T>(values: &[T]) -> Span<T> {
    Span::new(values.as_ptr() as u64, values.len())
}

struct SamplingColumns {
    temperature: Vec<f32>,
    top_k: Vec<i32>,
    top_p: Vec<f32>,
    min_p: Vec<f32>,
    seed: Vec<u64>,
}

impl SamplingColumns {
    fn new<'a>(
        parameters: impl Iterator<Item = &'a Parameters> + Clone,
        seeds: impl Iterator<Item = u64>,
    ) -> Self {
        Self {
            temperature: parameters.clone().map(|parameters| parameters.temperature).collect(),
            top_k: parameters.clone().map(|parameters| parameters.top_k).collect(),
            top_p: parameters.clone().map(|parameters| parameters.top_p).collect(),
            min_p: parameters.map(|parameters| parameters.min_p).collect(),
            seed: seeds.collect(),
        }
    }

    fn arrays(&self) -> SamplingArrays {
        SamplingArrays {
            temperature: Some(span(&self.temperature)),
            top_k: Some(span(&self.top_k)),
            top_p: Some(span(&self.top_p)),
            min_p: Some(span(&self.min_p)),
            seed: Some(span(&self.seed)),
        }
    }
}

#[derive(Clone)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [u8; 64]);

/// Makes a call; the counters come with the decisions.
pub fn decide_counted(
    backend: &dyn Backend,
    call: &Call,
    requests: &[Request],
) -> (Vec<Decision>, Vec<u64>) {
    let columns = requests[0].logits[0].len();
    let drafts = requests.iter().map(|request| request.drafts.len()).max().unwrap_or(0);
    let unused = vec![f32::NAN; columns];
    let (mut rows, mut row_begin) = (Vec::new(), Vec::new());
    for request in requests {
        rows.push(&unused);
        row_begin.push(request.row_begin.unwrap_or(rows.len() as i32));
        rows.extend(&request.logits);
    }
    let logits = Rows::new(&rows, columns, call.dtype);
    let parameters = requests.iter().map(|request| &request.parameters);
    let seeds = requests.iter().map(|request| request.seed);
    let sampling = SamplingColumns::new(parameters, seeds);
    let draft_parameters = requests.iter().map(|request| &request.draft_parameters);
    let draft_sampling = SamplingColumns::new(draft_parameters, requests.iter().map(|_| 0));
    let draft_stride = drafts + 1;
    let mut tokens = vec![1 << 30; requests.len() * draft_stride];
    for (tokens, request) in tokens.chunks_mut(draft_stride).zip(requests) {
        tokens[..request.drafts.len()].copy_from_slice(&request.drafts);
    }
    let position: Vec<i32> = requests.iter().map(|request| request.position).collect();
    let limit: Vec<i32> = requests.iter().map(|request| request.limit).collect();
    let num_drafts = requests.iter().map(|r| r.num_drafts.unwrap_or(r.drafts.len() as i32));
    let num_drafts: Vec<i32> = num_drafts.collect();
    let given = requests.iter().any(|request| !request.uniforms.is_empty());
    let mut uniforms = vec![f64::NAN; if given { requests.len() * 2 * (drafts + 1) } else { 0 }];
    for (numbers, request) in uniforms.chunks_mut(2 * (drafts + 1)).zip(requests) {
        numbers[..request.uniforms.len()].copy_from_slice(&request.uniforms);
    }
    // The distribution: all draft rows one after the other.
    let draft_rows: Vec<&Vec<f32>> = requests.iter().flat_map(|r| &r.draft_logits).collect();
    let candidates = draft_rows.first().map_or(columns, |row| row.len());
    let q = Rows::new(&draft_rows, candidates, call.dtype);
    let mut draft_begin = Vec::new();
    let mut before = 0;
    for request in requests {
        draft_begin.push(before);
        before += request.draft_logits.len() as i32;
    }
    let (ids, ids_stride): (Vec<i32>, usize) = match &call.ids {
        Ids::Identity => (Vec::new(), 0),
        Ids::Shared(ids) => (ids.clone(), 0),
        Ids::PerRow => (requests.iter().flat_map(|r| r.draft_ids.concat()).collect(), candidates),
    };
    let draft = (!draft_rows.is_empty()).then(|| DraftDistribution {
        logits: q.matrix,
        token_ids: (!ids.is_empty()).then(|| span(&ids)),
        token_ids_stride: ids_stride,
        row_begin: Some(span(&draft_begin)),
        rows_per_sequence: 0,
        sampling: Some(draft_sampling.arrays()),
    });
    let stride = record::len(drafts) + 2;
    let mut records = vec![call.before; requests.len() * stride];
    let mut counters = vec![0_u64; 3 + drafts];
    let batch = VerifyBatch {
        num_sequences: requests.len(),
        max_drafts: drafts,
        logits: logits.matrix,
        row_begin: Some(span(&row_begin)),
        num_drafts: Some(span(&num_drafts)),
        draft_tokens: Column { span: span(&tokens), stride: draft_stride },
        position: Column { span: span(&position), stride: 1 },
        limit: Some(span(&limit)),
        sampling: sampling.arrays(),
        draft,
        uniforms: given.then(|| span(&uniforms)),
        stop_tokens: span(&call.stop_tokens),
        padding: call.padding,
        decisions: Column { span: span(&records), stride },
        counters: Some(span(&counters)),
    };
    let bytes = workspace_bytes(backend, &batch, call.rule).unwrap();
    let mut workspace = vec![Line([0xA5; 64]); bytes.div_ceil(64)];
    let workspace = Span::new(workspace.as_mut_ptr() as u64, bytes);
    verify((backend, Stream::NONE), &batch, call.rule, workspace).unwrap();
    // Written through their addresses.
    let records = std::hint::black_box(&mut records);
    let counters = std::hint::black_box(&mut counters).clone();
    assert!(logits.bytes.len() + q.bytes.len() > 0);
    let decisions = records.chunks(stride).map(|record| parse(record, drafts, call.before));
    (decisions.collect(), counters)
}

fn parse(fields: &[i32], drafts: usize, before: i32) -> Decision {
    let (tokens, rest) = fields[record::TOKENS..].split_at(drafts + 1);
    let (path, beyond) = rest.split_at(drafts + 1);
    assert_eq!(fields[record::FLAGS + 1..record::TOKENS], [0; 3], "reserved elements");
    assert!(beyond.iter().all(|&element| element == before), "elements beyond the record");
    Decision {
        accepted: fields[record::ACCEPTED] as usize,
        emitted: fields[record::EMITTED] as usize,
        next_token: fields[record::NEXT_TOKEN],
        next_position: fields[record::NEXT_POSITION],
        flags: fields[record::FLAGS],
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
