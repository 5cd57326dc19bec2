//! Verification on the CUDA backend against the CPU backend on equal logits: the records, with flags
//! and padding, and the counters are the same, bit for bit, whatever stands in the arrays.

mod device;
#[path = "host/random.rs"]
mod random;
mod verification;

use device::amount;
use device::backend::{cpu, cuda_test, open_cuda};
use random::Random;
use speculators::backend::Backend;
use speculators::backend::verify::Leniency;
use speculators::backend::verify::record::{INVALID, LIMIT, LOSSY, NO_CANDIDATE, STOPPED};
use speculators::sampling::Parameters;
use speculators::tensor::Dtype;
use verification::processing::{ENTRIES, any_steps};
use verification::{
    BLOCK, Call, DEFAULT, DISTINCT, Decision, FOLLOW, Ids, PLAIN, REJECTION, RELAXED, Request,
    RowOrder, SYNTHETIC, THRESHOLD, TYPICAL, almost_one, decide_counted,
};

const RULES: [i32; 3] = [DEFAULT, FOLLOW, REJECTION];
const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

/// The oracle, what is compared with it, and what the comparisons have met so far.
struct Sides {
    cpu: &'static dyn Backend,
    cuda: Vec<Box<dyn Backend>>,
    emitted: u64,
    accepted: u64,
    flags: i32,
}

impl Sides {
    /// With the device's own way to share out rows.
    fn new() -> Self {
        Self::of(vec![Box::new(open_cuda())])
    }

    fn of(cuda: Vec<Box<dyn Backend>>) -> Self {
        Self { cpu: cpu(), cuda, emitted: 0, accepted: 0, flags: 0 }
    }

    /// Fails unless all decide the same; returns what they decide.
    fn compare(&mut self, what: &str, call: &Call, requests: &[Request]) -> Vec<Decision> {
        let expected = decide_counted(self.cpu, call, requests);
        for cuda in &self.cuda {
            let found = decide_counted(&**cuda, call, requests);
            for (index, (found, expected)) in found.0.iter().zip(&expected.0).enumerate() {
                let request = || describe(&requests[index]);
                assert_eq!(found, expected, "{what}, sequence {index}: {call:?}, {}", request());
            }
            assert_eq!(found.1, expected.1, "{what}: the counters of {call:?}");
        }
        self.emitted += expected.1[2];
        self.accepted += expected.1[3..].iter().sum::<u64>();
        self.flags |= expected.0.iter().fold(0, |flags, decision| flags | decision.flags);
        expected.0
    }
}

/// A request without its logits, which are too many to be read.
fn describe(request: &Request) -> String {
    let rows = |rows: &[Vec<f32>]| rows.iter().map(Vec::len).collect::<Vec<_>>();
    format!(
        "drafts {:?} of {:?} over rows {:?} from rows {:?}, {:?}, {:?}, seed {}, position {}, limit {}, {:?}",
        request.drafts,
        request.parents,
        rows(&request.logits),
        rows(&request.draft_logits),
        request.parameters,
        request.draft_parameters,
        request.seed,
        request.position,
        request.limit,
        request.steps.as_ref().filter(|_| request.logits[0].len() <= 64),
    )
}

/// A row of one of the kinds below, which each have something that filters or draws could trip over.
fn row(random: &mut Random, kind: usize, len: usize) -> Vec<f32> {
    let any = |random: &mut Random, values: &[f32]| values[random.below(values.len())];
    let logit = |random: &mut Random| match kind % KINDS {
        0 => random.normal() * 3.0,
        // Ties everywhere.
        1 => random.below(4) as f32 - 1.0,
        // The largest are zeros of both signs.
        2 => any(random, &[0.0, -0.0, -0.0, -1.0]),
        // Zeros of both signs, and the numbers beside them.
        3 => any(random, &[0.0, -0.0, 1e-40, -1e-40, f32::MIN_POSITIVE, 0.5, -0.5]),
        4 => any(random, &[f32::INFINITY, f32::MAX, 1.0, f32::NAN, f32::NEG_INFINITY]),
        5 => f32::NEG_INFINITY,
        6 => any(random, &[f32::NAN, f32::NAN, f32::NEG_INFINITY, 1.5, -2.5]),
        7 => f32::NAN,
        // As far apart as numbers are, and near to each other on a large one.
        8 => random.normal() * [1.0, 1e4, 1e30, 1e38][random.below(4)],
        _ => 4096.0 + random.normal(),
    };
    (0..len).map(|_| logit(random)).collect()
}

const KINDS: usize = 10;

/// A row of any kind, most often of the first.
fn any_row(random: &mut Random, len: usize) -> Vec<f32> {
    let kind = if random.chance(0.5) { 0 } else { random.below(KINDS) };
    row(random, kind, len)
}

fn parameters(random: &mut Random, len: usize) -> Parameters {
    let temperatures = [0.0, 9e-6, 1e-5, 0.01, 0.4, 1.0, 1.0, 1.8, 1e6, f32::INFINITY];
    let len = len as i32;
    let top_k = [0, 0, -1, 1, 2, 5, 40, len / 2, len, len + 1];
    let top_p = [1.0, 1.0, 1.0, 0.999_999, 0.9, 0.5, 1e-7, 0.0, -1.0, 2.0];
    let min_p = [0.0, 0.0, 0.0, 1e-6, 0.05, 0.5, 1.0, -1.0, 2.0];
    Parameters {
        temperature: temperatures[random.below(temperatures.len())],
        top_k: top_k[random.below(top_k.len())],
        top_p: top_p[random.below(top_p.len())],
        min_p: min_p[random.below(min_p.len())],
    }
}

/// Ids of `count` candidates in any order, and here and there one that is none.
fn candidates(random: &mut Random, vocabulary: usize, count: usize) -> Vec<i32> {
    let mut ids: Vec<i32> = (0..vocabulary as i32).collect();
    random.shuffle(&mut ids);
    ids.truncate(count);
    ids.iter().map(|&id| if random.chance(0.1) { -1 - id } else { id }).collect()
}

/// The sizes of a call.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    vocabulary: usize,
    sequences: usize,
    /// At most.
    drafts: usize,
}

/// A call of any kind, and how many candidates its draft rows have; 0 where drafts come from no
/// distribution.
fn any_call(random: &mut Random, rule: i32, sizes: Sizes) -> (Call, usize) {
    let some = 1 + random.below(sizes.vocabulary);
    let (ids, columns) = match random.below(4) {
        0 => (Ids::Identity, 0),
        1 => (Ids::Identity, sizes.vocabulary),
        2 => (Ids::Shared(candidates(random, sizes.vocabulary, some)), some),
        _ => (Ids::PerRow, some),
    };
    let call = Call {
        ids,
        dtype: DTYPES[random.below(3)],
        draft_dtype: Some(DTYPES[random.below(3)]),
        order: [RowOrder::Forward, RowOrder::Backward, RowOrder::Implied][random.below(3)],
        gap: random.below(9),
        chains: random.chance(0.3),
        is_greedy: random.chance(0.05),
        padding: random.below(3) as i32 - 1,
        ..Call::by(rule)
    };
    (call, columns)
}

/// A draft: mostly one of the candidates, often one that is likely.
fn any_draft(random: &mut Random, target: &[f32], ids: &[i32]) -> i32 {
    if random.chance(0.08) {
        return -1;
    }
    if random.chance(0.4) {
        let largest = target.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        return target.iter().position(|&logit| logit == largest).unwrap_or(0) as i32;
    }
    let known: Vec<i32> = ids.iter().copied().filter(|&id| id >= 0).collect();
    if known.is_empty() || random.chance(0.1) {
        return random.below(target.len()) as i32;
    }
    known[random.below(known.len())]
}

/// A sequence of the call; `rows` makes its rows of logits.
fn any_request(
    random: &mut Random,
    (call, columns): (&Call, usize),
    sizes: Sizes,
    rows: &dyn Fn(&mut Random, usize) -> Vec<f32>,
) -> Request {
    let drafts = random.below(sizes.drafts + 1);
    let logits = (0..=drafts).map(|_| rows(random, sizes.vocabulary)).collect();
    let mut request = Request::new(logits, Vec::new(), parameters(random, sizes.vocabulary));
    for node in 0..drafts {
        if columns > 0 {
            request.draft_logits.push(rows(random, columns));
        }
        let ids = match &call.ids {
            Ids::Identity => Vec::new(),
            Ids::Shared(ids) => ids.clone(),
            Ids::PerRow => candidates(random, sizes.vocabulary, columns),
        };
        let draft = any_draft(random, &request.logits[node], &ids);
        request.drafts.push(draft);
        if draft >= 0 && random.chance(0.5) {
            request.logits[node][draft as usize] += 12.0;
        }
        if matches!(call.ids, Ids::PerRow) {
            request.draft_ids.push(ids);
        }
    }
    if random.chance(0.5) {
        request.draft_parameters = parameters(random, columns.max(1));
    }
    (request.seed, request.position) = (random.bits(), random.below(1 << 20) as i32);
    if random.chance(0.2) {
        request.limit = [0, -3, 1, drafts as i32, drafts as i32 + 1][random.below(5)];
    }
    request.num_drafts = match random.below(12) {
        0 => Some(-1),
        1 => Some(random.below(drafts + 1) as i32),
        _ => None,
    };
    request
}

fn uniforms(random: &mut Random, count: usize) -> Vec<f64> {
    let mut number = || match random.below(8) {
        0 => 0.0,
        1 => almost_one(),
        _ => (random.bits() >> 11) as f64 * (-53_f64).exp2(),
    };
    (0..count).map(|_| number()).collect()
}

/// Compares so many calls of any kind over one of these numbers of tokens.
fn compare_any(sides: &mut Sides, seed: u64, calls: usize, all: &[Sizes]) {
    // Half of the calls are decided by rejection.
    let rules = [DEFAULT, REJECTION, FOLLOW, REJECTION];
    compare(sides, seed, calls, all, (&rules, &|_, _, _| {}));
}

/// The rules, those that look at more than one draft at a row more often.
const ALL_RULES: [i32; 13] = [
    DISTINCT, REJECTION, BLOCK, FOLLOW, TYPICAL, DISTINCT, BLOCK, THRESHOLD, REJECTION, RELAXED,
    DISTINCT, SYNTHETIC, DEFAULT,
];

/// The same for trees, and for the rules that look at more than one draft at a row.
fn compare_trees(sides: &mut Sides, seed: u64, calls: usize, all: &[Sizes]) {
    compare(sides, seed, calls, all, (&ALL_RULES, &plant_trees));
}

/// Makes trees of the requests, mostly, and says what lossy rules go by.
fn plant_trees(random: &mut Random, call: &mut Call, requests: &mut [Request]) {
    let any = |random: &mut Random, values: &[f32]| values[random.below(values.len())];
    call.leniency = Leniency {
        top_n: [1, 1, 2, 5, 300][random.below(5)],
        tolerance: any(random, &[0.0, 0.5, 3.0, f32::INFINITY]),
        epsilon: any(random, &[1e-6, 0.09, 0.3, 1.0]),
        log2_alpha: -(random.below(1 << 20) as i64) << 13,
        threshold_single: any(random, &[1.0, 0.9, 0.1]),
        threshold_accumulated: any(random, &[1.0, 0.7, 0.01]),
        acceptance: None,
    };
    let drafts = requests.iter().map(|request| request.drafts.len()).max().unwrap_or(0);
    if random.chance(0.8) {
        call.acceptance =
            (0..drafts).map(|_| any(random, &[0.0, 0.3, 0.999, 1.0, f32::NAN])).collect();
    }
    if call.rule == BLOCK || random.chance(0.15) {
        return;
    }
    for request in requests {
        request.parents = any_tree(random, request.drafts.len() + 1);
    }
}

/// The same where something is done to logits before.
fn compare_processed(sides: &mut Sides, seed: u64, calls: usize, all: &[Sizes]) {
    let change: Change<'_> = &|random, call, requests| {
        plant_trees(random, call, requests);
        for request in requests {
            if random.chance(0.2) {
                continue;
            }
            let mut steps = any_steps(&mut |bound| random.below(bound), request);
            if random.chance(0.05) {
                let entry = ENTRIES[random.below(ENTRIES.len())];
                steps.spoilt.push((entry, [-2, 0, 500, i32::MAX][random.below(4)]));
            }
            request.steps = Some(steps);
        }
    };
    compare(sides, seed, calls, all, (&ALL_RULES, change));
}

/// The parents of a tree: broad ones, deep ones, and now and then one that is none.
fn any_tree(random: &mut Random, nodes: usize) -> Vec<i32> {
    let breadth = 1 + random.below(4);
    let mut parents: Vec<i32> = (0..nodes)
        .map(|node| match node {
            0 => -1,
            node => node.saturating_sub(1 + random.below(breadth)) as i32,
        })
        .collect();
    if random.chance(0.05) {
        let node = random.below(nodes);
        parents[node] = [-1, node as i32, node as i32 + 1, i32::MAX][random.below(4)];
    }
    parents
}

/// What is done to a call and its requests before they are compared.
type Change<'a> = &'a dyn Fn(&mut Random, &mut Call, &mut [Request]);

fn compare(
    sides: &mut Sides,
    seed: u64,
    calls: usize,
    all: &[Sizes],
    (rules, change): (&[i32], Change<'_>),
) {
    let mut random = Random::new(seed);
    for index in 0..calls {
        let sizes = all[index % all.len()];
        let rule = rules[index / all.len() % rules.len()];
        let (mut call, columns) = any_call(&mut random, rule, sizes);
        let mut requests: Vec<Request> = (0..1 + random.below(sizes.sequences))
            .map(|_| any_request(&mut random, (&call, columns), sizes, &any_row))
            .collect();
        if random.chance(0.4) {
            for request in &mut requests {
                request.uniforms = uniforms(&mut random, 2 * (request.drafts.len() + 1));
            }
        }
        for request in &requests {
            if random.chance(0.2) {
                let stop = request.drafts.first().copied().unwrap_or_default();
                call.stop_tokens.push(stop);
            }
        }
        change(&mut random, &mut call, &mut requests);
        sides.compare(&format!("call {index}"), &call, &requests);
    }
    println!("{} tokens, {} drafts accepted", sides.emitted, sides.accepted);
}

fn sizes(vocabularies: &[usize], sequences: usize, drafts: usize) -> Vec<Sizes> {
    vocabularies.iter().map(|&vocabulary| Sizes { vocabulary, sequences, drafts }).collect()
}

#[test]
fn short_rows_are_decided_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    let mut sides = Sides::new();
    compare_any(&mut sides, 61, amount(2000, 40), &sizes(&[1, 2, 5, 33], 4, 3));
    assert!(sides.emitted > 0 && sides.accepted > 0);
}

#[test]
fn trees_are_decided_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    let mut sides = Sides::new();
    compare_trees(&mut sides, 71, amount(4000, 80), &sizes(&[3, 5, 40], 4, 7));
    assert!(sides.emitted > 0 && sides.accepted > 0);
    let all = INVALID | STOPPED | LIMIT | LOSSY;
    assert_eq!(sides.flags & all, all, "the calls have met too little");
}

#[test]
fn trees_over_whole_tiles_are_decided_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    let mut sides = Sides::new();
    compare_trees(&mut sides, 72, amount(1000, 65), &sizes(&[255, 257, 513, 800, 1030], 3, 6));
    assert!(sides.emitted > 0 && sides.accepted > 0);
}

#[test]
fn trees_over_long_rows_are_decided_as_on_the_cpu_however_blocks_share_them() {
    let Some(_turn) = cuda_test() else { return };
    let shares = [(3, false), (2, true), (1, false), (7, true)];
    let mut cuda: Vec<Box<dyn Backend>> = vec![Box::new(open_cuda())];
    for (blocks, keep_copies) in &shares[..amount(shares.len(), 2)] {
        cuda.push(Box::new(open_cuda().with_verify_teams(*blocks, *keep_copies)));
    }
    let mut sides = Sides::of(cuda);
    compare_trees(&mut sides, 73, amount(200, 13), &sizes(&[4096, 9001], 2, 3));
    assert!(sides.emitted > 0 && sides.accepted > 0);
}

#[test]
fn large_trees_are_decided_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    let mut sides = Sides::new();
    compare_trees(&mut sides, 74, amount(60, 13), &sizes(&[30], 2, 150));
    assert!(sides.emitted > 0 && sides.accepted > 0);
}

#[test]
fn processed_logits_are_decided_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    let mut sides = Sides::new();
    compare_processed(&mut sides, 75, amount(4000, 130), &sizes(&[3, 5, 40], 4, 7));
    assert!(sides.emitted > 0 && sides.accepted > 0);
    let all = NO_CANDIDATE | INVALID | STOPPED | LIMIT | LOSSY;
    assert_eq!(sides.flags & all, all, "the calls have met too little");
}

#[test]
fn processed_rows_of_several_blocks_are_decided_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    let mut cuda: Vec<Box<dyn Backend>> = vec![Box::new(open_cuda())];
    for (blocks, keep_copies) in [(3, true), (2, false)].into_iter().take(amount(2, 1)) {
        cuda.push(Box::new(open_cuda().with_verify_teams(blocks, keep_copies)));
    }
    let mut sides = Sides::of(cuda);
    let vocabularies = [255, 1030, 2047, 2048, 2049, 4099];
    compare_processed(&mut sides, 76, amount(600, 26), &sizes(&vocabularies, 2, 4));
    assert!(sides.emitted > 0 && sides.accepted > 0);
}

#[test]
fn long_paths_are_processed_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    let mut sides = Sides::new();
    compare_processed(&mut sides, 77, amount(60, 13), &sizes(&[30], 2, 300));
    assert!(sides.emitted > 0 && sides.accepted > 0);
}

#[test]
fn rows_around_whole_tiles_are_decided_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    let mut sides = Sides::new();
    let all = sizes(&[255, 256, 257, 511, 512, 513, 1030], 5, 4);
    compare_any(&mut sides, 62, amount(2000, 112), &all);
    assert!(sides.emitted > 0 && sides.accepted > 0);
    let all = NO_CANDIDATE | STOPPED | LIMIT;
    assert_eq!(sides.flags & all, all, "the calls have met too little");
}

#[test]
fn long_rows_are_decided_as_on_the_cpu_however_blocks_share_them() {
    let Some(_turn) = cuda_test() else { return };
    let shares = [(3, false), (32, true), (1, true), (7, true), (2, true)];
    let mut cuda: Vec<Box<dyn Backend>> = vec![Box::new(open_cuda())];
    for (blocks, keep_copies) in &shares[..amount(shares.len(), 2)] {
        cuda.push(Box::new(open_cuda().with_verify_teams(*blocks, *keep_copies)));
    }
    let mut sides = Sides::of(cuda);
    compare_any(&mut sides, 63, amount(400, 9), &sizes(&[2817, 4096, 9001], 2, 2));
    assert!(sides.emitted > 0 && sides.accepted > 0);
}

#[test]
fn rows_of_a_large_vocabulary_are_decided_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    let mut sides = Sides::new();
    compare_any(&mut sides, 64, amount(100, 8), &sizes(&[128_256, 131_071], 1, 1));
    assert!(sides.emitted > 0);
}

/// One sequence by these parameters, with a draft and its row where there are candidates.
fn sampled(random: &mut Random, kind: usize, len: usize, parameters: Parameters) -> Request {
    let logits = vec![row(random, kind, len), row(random, kind, len)];
    let mut request = Request::new(logits, vec![random.below(len) as i32], parameters);
    request.draft_logits = vec![row(random, kind, len)];
    request.seed = random.bits();
    request
}

#[test]
fn ties_zeros_infinities_and_what_is_no_number_are_decided_as_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    let mut sides = Sides::new();
    let mut random = Random::new(65);
    // More equal logits than a block notes one by one, and fewer.
    for len in [300, amount(9000, 2600)] {
        for kind in 0..KINDS {
            let few = len as i32 / 3;
            let all = [
                PLAIN,
                Parameters { top_k: 3, ..PLAIN },
                Parameters { top_k: few, ..PLAIN },
                Parameters { top_p: 0.7, ..PLAIN },
                Parameters { temperature: f32::INFINITY, top_k: few, top_p: 0.6, min_p: 0.9 },
                Parameters::GREEDY,
            ];
            let requests: Vec<Request> =
                all.iter().map(|&one| sampled(&mut random, kind, len, one)).collect();
            for rule in RULES {
                let dtype = DTYPES[random.below(3)];
                let call = Call { dtype, ..Call::by(rule) };
                sides.compare(&format!("rows of kind {kind}"), &call, &requests);
            }
        }
    }
    assert!(sides.flags & NO_CANDIDATE != 0);
}

#[test]
fn filters_alone_and_together_are_those_of_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    let mut sides = Sides::new();
    let mut random = Random::new(66);
    let mut requests = Vec::new();
    for temperature in [1e-5, 0.2, 1.0, f32::INFINITY] {
        for top_k in [0, 1, 7, 300] {
            for top_p in [1.0, 0.95, 0.3, 0.0] {
                for min_p in [0.0, 0.02, 1.0] {
                    let parameters = Parameters { temperature, top_k, top_p, min_p };
                    // Ties at the boundaries, or none.
                    for kind in 0..amount(2, 1) {
                        requests.push(sampled(&mut random, kind, 600, parameters));
                    }
                }
            }
        }
    }
    random.shuffle(&mut requests);
    requests.truncate(amount(requests.len(), 96));
    for (index, requests) in requests.chunks(32).enumerate() {
        for rule in [FOLLOW, REJECTION] {
            sides.compare(&format!("requests from {}", index * 32), &Call::by(rule), requests);
        }
    }
    assert!(sides.accepted > 0);
}

#[test]
fn ids_that_are_no_tokens_or_stand_twice_draw_what_they_draw_on_the_cpu() {
    let Some(_turn) = cuda_test() else { return };
    let mut sides = Sides::new();
    let mut random = Random::new(68);
    for len in [6, 300] {
        for _ in 0..amount(50, 5) {
            let strange = [len as i32, len as i32 + 255, i32::MAX, i32::MIN, -1, 0, 3, 3, 5];
            let ids = (0..len).map(|_| match random.chance(0.5) {
                true => strange[random.below(strange.len())],
                false => random.below(len) as i32,
            });
            let call = Call { ids: Ids::Shared(ids.collect()), ..Call::by(REJECTION) };
            let requests: Vec<Request> =
                (0..6).map(|_| sampled(&mut random, 0, len, PLAIN)).collect();
            sides.compare("strange ids", &call, &requests);
        }
    }
}

/// Sequences that are invalid, each for a reason of its own, made from a valid one of four drafts over
/// six tokens with given numbers.
fn spoilt(sound: &Request) -> Vec<Request> {
    let spoils: [&dyn Fn(&mut Request); 20] = [
        &|request| request.row_begin = Some(-1),
        &|request| request.row_begin = Some(100_000),
        &|request| request.row_begin = Some(i32::MAX),
        &|request| request.row_begin = Some(i32::MIN),
        &|request| request.num_drafts = Some(5),
        &|request| request.num_drafts = Some(i32::MAX),
        &|request| request.drafts[3] = 6,
        &|request| request.drafts[0] = -2,
        &|request| request.drafts[1] = i32::MAX,
        &|request| request.drafts[1] = i32::MIN,
        &|request| request.position = -1,
        &|request| request.position = i32::MAX - 4,
        &|request| request.parameters.temperature = f32::NAN,
        &|request| request.parameters.top_p = f32::NAN,
        &|request| request.parameters.min_p = f32::NAN,
        &|request| request.draft_parameters.min_p = f32::NAN,
        &|request| request.uniforms[9] = 1.0,
        &|request| request.uniforms[2] = -0.1,
        &|request| request.uniforms[3] = f64::NAN,
        &|request| request.uniforms[0] = f64::INFINITY,
    ];
    let spoil = |change: &&dyn Fn(&mut Request)| {
        let mut request = sound.clone();
        change(&mut request);
        request
    };
    spoils.iter().map(spoil).collect()
}

#[test]
fn an_invalid_sequence_is_alone_in_that() {
    let Some(_turn) = cuda_test() else { return };
    let mut sides = Sides::new();
    let mut random = Random::new(67);
    let mut sound = Request::new(vec![random.normals(6); 5], vec![1, 2, 3, 0], PLAIN);
    sound.draft_logits = vec![random.normals(6); 4];
    sound.uniforms = vec![0.4; 10];
    for order in [RowOrder::Forward, RowOrder::Backward] {
        for rule in RULES {
            let call = Call { order, ..Call::by(rule) };
            let alone = decide_counted(sides.cpu, &call, std::slice::from_ref(&sound)).0.remove(0);
            let mut batch = vec![sound.clone()];
            for request in spoilt(&sound) {
                batch.extend([request, sound.clone()]);
            }
            let decisions = sides.compare("a batch with invalid sequences", &call, &batch);
            for (index, decision) in decisions.iter().enumerate() {
                if index % 2 == 0 {
                    assert_eq!(decision, &alone, "sequence {index}");
                } else {
                    assert_eq!((decision.flags, decision.emitted), (INVALID, 0), "{index}");
                }
            }
        }
    }
}
