//! How probable emitted tokens were: logarithms of probabilities, ranks and alternatives, by the logits
//! as they are and by what tokens were drawn from.

mod device;
mod host;
mod verification;

use device::{Device, amount};
use host::matrix::{self, Matrix};
use host::random::Random;
use host::{Context, Versioned, attempt};
use speculators::backend::Backend;
use speculators::backend::cpu::{CpuBackend, Threads};
use speculators::backend::verify::record::{INVALID, NO_CANDIDATE};
use speculators::capi::*;
use speculators::sampling::Parameters;
use speculators::tensor::Dtype;
use std::ptr::null;
use verification::processing::{any_steps, applied};
use verification::{
    Answer, BLOCK, Call, DEFAULT, DISTINCT, Decision, FOLLOW, PLAIN, REJECTION, RELAXED, Request,
    SYNTHETIC, THRESHOLD, TYPICAL, Told, ask, backend_with, decide, row_law,
};

const RULES: [i32; 9] =
    [FOLLOW, DEFAULT, REJECTION, DISTINCT, BLOCK, TYPICAL, THRESHOLD, RELAXED, SYNTHETIC];

const RAW: usize = 0;
const PROCESSED: usize = 1;

fn backend() -> &'static dyn Backend {
    backend_with(2)
}

fn told(answer: &Answer, kind: usize) -> &Told {
    answer.logprobs[kind].as_ref().expect("they were asked for")
}

fn wanting(rule: i32, alternatives: usize) -> Call {
    Call { alternatives: [Some(alternatives); 2], ..Call::by(rule) }
}

/// The logarithms of the softmax of a row, in double precision.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let logit = |logit: &f32| if logit.is_nan() { f64::NEG_INFINITY } else { f64::from(*logit) };
    let most = logits.iter().map(logit).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|one| (logit(one) - most).exp()).sum();
    logits.iter().map(|one| logit(one) - most - sum.ln()).collect()
}

/// A row of logits after which each token is about `spread` apart from others.
fn any_row(random: &mut Random, vocabulary: usize, spread: f32) -> Vec<f32> {
    random.normals(vocabulary).iter().map(|logit| logit * spread).collect()
}

/// A request of any kind: a tree, but for the rule for chains.
fn any_request(random: &mut Random, vocabulary: usize, rule: i32) -> Request {
    let drafts: Vec<i32> =
        (0..random.below(6)).map(|_| random.below(vocabulary.min(6)) as i32).collect();
    let rows = (0..=drafts.len()).map(|_| any_row(random, vocabulary, 3.0)).collect();
    let parameters = match random.below(3) {
        0 => Parameters::GREEDY,
        1 => PLAIN,
        _ => Parameters { temperature: 0.7, top_k: 5, top_p: 0.9, min_p: 0.02 },
    };
    let mut request = Request::new(rows, drafts, parameters);
    if rule != BLOCK {
        request.parents =
            (0..request.logits.len()).map(|node| random.below(node.max(1)) as i32).collect();
        request.parents[0] = -1;
    }
    (request.seed, request.position) = (random.bits(), random.below(1 << 20) as i32);
    request
}

/// The tokens of a row, the most probable first and of equal ones the lowest id.
fn in_order(values: &[f64]) -> Vec<usize> {
    let mut tokens: Vec<usize> = (0..values.len()).collect();
    tokens.sort_by(|&left, &right| values[right].total_cmp(&values[left]));
    tokens
}

/// Whether a place says what the logarithms of its row say, which may be -inf.
fn assert_place(
    told: &Told,
    (sequence, place): (usize, usize),
    token: i32,
    (logits, expected): (&[f32], &[f64]),
    what: &str,
) {
    let (values, ids) = (&told.values[sequence][place], &told.token_ids[sequence][place]);
    let is_near = |value: f32, expected: f64| {
        f64::from(value) == expected
            || (f64::from(value) - expected).abs() < 2e-6 * expected.abs().max(1.0)
    };
    assert_eq!(ids[0], token, "{what}");
    assert!(is_near(values[0], expected[token as usize]), "{what}: {values:?} of {expected:?}");
    let above = logits.iter().filter(|&&logit| logit > logits[token as usize]).count();
    assert_eq!(told.ranks[sequence][place], above as i32 + 1, "{what}: rank");
    let logits: Vec<f64> = logits.iter().map(|&logit| f64::from(logit)).collect();
    let order = in_order(&logits);
    for (rank, (&value, &id)) in values[1..].iter().zip(&ids[1..]).enumerate() {
        match order.get(rank) {
            Some(&token) if expected[token] > f64::NEG_INFINITY => {
                assert_eq!(id, token as i32, "{what}: alternative {rank}");
                assert!(is_near(value, expected[token]), "{what}: {value}, {}", expected[token]);
            }
            _ => assert_eq!((id, value), (-1, f32::NEG_INFINITY), "{what}: alternative {rank}"),
        }
    }
}

/// The nodes that emitted tokens were drawn at.
fn nodes(decision: &Decision) -> impl Iterator<Item = (usize, i32)> {
    let path = decision.path.iter().map(|&node| node as usize);
    path.zip(decision.tokens().iter().copied())
}

#[test]
fn raw_values_are_those_of_the_softmax_of_the_logits_as_they_are() {
    let mut random = Random::new(61);
    for vocabulary in [1, 2, 7, 300, 3000] {
        for rule in RULES {
            for alternatives in [0, 3] {
                let mut requests: Vec<Request> =
                    (0..3).map(|_| any_request(&mut random, vocabulary, rule)).collect();
                for request in &mut requests {
                    request.steps = Some(any_steps(&mut |bound| random.below(bound), request));
                }
                let answer = ask(backend(), &wanting(rule, alternatives), &requests);
                for (index, (decision, request)) in
                    answer.decisions.iter().zip(&requests).enumerate()
                {
                    for (place, (node, token)) in nodes(decision).enumerate() {
                        let logits = &request.logits[node];
                        let expected = log_softmax(logits);
                        let what = format!("rule {rule}, V {vocabulary}, node {node}");
                        let told = told(&answer, RAW);
                        assert_place(told, (index, place), token, (logits, &expected), &what);
                    }
                }
            }
        }
    }
}

#[test]
fn processed_values_are_those_of_the_law_that_tokens_are_drawn_from() {
    let mut random = Random::new(62);
    for round in 0..amount(30, 6) {
        let rule = RULES[round % RULES.len()];
        let mut request = any_request(&mut random, 12, rule);
        request.steps = Some(any_steps(&mut |bound| random.below(bound), &request));
        let answer = ask(backend(), &wanting(rule, 5), std::slice::from_ref(&request));
        let decision = &answer.decisions[0];
        if decision.flags & NO_CANDIDATE != 0 {
            continue;
        }
        let processed = applied(&request, Dtype::F32, &[]);
        let is_greedy = request.parameters.is_greedy();
        let parameters = if is_greedy { PLAIN } else { request.parameters };
        for (place, (node, token)) in nodes(decision).enumerate() {
            let logits = &processed.logits[node];
            let law = row_law(backend(), logits, parameters);
            let expected: Vec<f64> = law.iter().map(|probability| probability.ln()).collect();
            let what = format!("round {round}, rule {rule}, node {node}");
            let told = told(&answer, PROCESSED);
            assert_place(told, (0, place), token, (logits, &expected), &what);
        }
    }
}

#[test]
fn rare_tokens_have_a_raw_value_however_little_they_weigh() {
    // The weight of the draft in the law is nothing: it is far below 2^-43 of the largest.
    let row = vec![0.0, 100.0, f32::NAN, f32::NEG_INFINITY, -60.0];
    let mut request = Request::new(vec![row.clone(), row], vec![4], PLAIN);
    request.uniforms = vec![0.0, 0.5, 0.0, 0.5];
    let call = Call { acceptance: vec![1.0], ..wanting(SYNTHETIC, 5) };
    let answer = ask(backend(), &call, &[request]);
    assert_eq!(answer.decisions[0].tokens(), [4, 1]);
    let raw = told(&answer, RAW);
    assert_eq!(
        raw.values[0][0],
        [-160.0, 0.0, -100.0, -160.0, f32::NEG_INFINITY, f32::NEG_INFINITY]
    );
    assert_eq!(raw.token_ids[0][0], [4, 1, 0, 4, -1, -1]);
    assert_eq!(raw.ranks[0], [3, 1]);
    let processed = told(&answer, PROCESSED);
    assert_eq!(processed.values[0][0][..2], [f32::NEG_INFINITY, 0.0]);
    assert_eq!(processed.token_ids[0][0], [4, 1, -1, -1, -1, -1]);
    assert_eq!(processed.ranks[0], [3, 1]);
}

#[test]
fn infinite_logits_share_all_probability() {
    let infinite = f32::INFINITY;
    let row = vec![1.0, infinite, 2.0, infinite];
    let answer = ask(
        backend(),
        &wanting(FOLLOW, 4),
        &[Request::new(vec![row], Vec::new(), Parameters::GREEDY)],
    );
    for kind in [RAW, PROCESSED] {
        let told = told(&answer, kind);
        let half = -std::f32::consts::LN_2;
        let none = f32::NEG_INFINITY;
        assert_eq!(told.values[0][0], [half, half, half, none, none]);
        assert_eq!(told.token_ids[0][0], [1, 1, 3, -1, -1]);
        assert_eq!(told.ranks[0], [1]);
    }
}

#[test]
fn rows_without_a_candidate_have_nothing_but_minus_infinity() {
    let row = vec![f32::NAN, f32::NEG_INFINITY, f32::NAN];
    let answer = ask(backend(), &wanting(FOLLOW, 2), &[Request::new(vec![row], Vec::new(), PLAIN)]);
    assert_eq!(answer.decisions[0].flags & NO_CANDIDATE, NO_CANDIDATE);
    for kind in [RAW, PROCESSED] {
        let told = told(&answer, kind);
        assert_eq!(told.values[0][0], [f32::NEG_INFINITY; 3]);
        assert_eq!(told.token_ids[0][0], [0, -1, -1]);
        assert_eq!(told.ranks[0], [1]);
    }
}

#[test]
fn places_without_a_token_hold_no_numbers() {
    let row = || vec![0.0, 5.0, 1.0];
    let chain = |drafts: Vec<i32>| {
        Request::new((0..=drafts.len()).map(|_| row()).collect(), drafts, Parameters::GREEDY)
    };
    let rejected = chain(vec![0, 1]);
    let invalid = chain(vec![7]);
    let absent = Request { num_drafts: Some(-1), ..chain(vec![1, 1]) };
    let finished = Request { limit: 0, ..chain(vec![1]) };
    let answer = ask(backend(), &wanting(FOLLOW, 1), &[rejected, invalid, absent, finished]);
    assert_eq!(answer.decisions[1].flags, INVALID);
    for kind in [RAW, PROCESSED] {
        let told = told(&answer, kind);
        for (index, decision) in answer.decisions.iter().enumerate() {
            assert_eq!(decision.emitted, usize::from(index == 0));
            for place in decision.emitted..3 {
                assert!(told.values[index][place].iter().all(|value| value.is_nan()));
                assert_eq!(told.token_ids[index][place], [-1, -1]);
                assert_eq!(told.ranks[index][place], 0);
            }
        }
    }
}

#[test]
fn equal_logits_are_named_in_the_order_of_their_ids() {
    let vocabulary = 1500;
    for (distinct, alternatives) in [(1, 256), (3, 200), (700, 20)] {
        let row: Vec<f32> = (0..vocabulary).map(|token| (token * 7 % distinct) as f32).collect();
        let logits: Vec<f64> = row.iter().map(|&logit| f64::from(logit)).collect();
        let expected: Vec<i32> =
            in_order(&logits).iter().take(alternatives).map(|&token| token as i32).collect();
        let request = Request::new(vec![row], Vec::new(), Parameters::GREEDY);
        let answer = ask(backend(), &wanting(FOLLOW, alternatives), &[request]);
        for kind in [RAW, PROCESSED] {
            assert_eq!(told(&answer, kind).token_ids[0][0][1..], expected, "{distinct} logits");
        }
    }
}

#[test]
fn decisions_do_not_depend_on_what_is_asked() {
    let mut random = Random::new(63);
    for round in 0..amount(40, 9) {
        let rule = RULES[round % RULES.len()];
        let requests: Vec<Request> = (0..4).map(|_| any_request(&mut random, 40, rule)).collect();
        let expected = decide(backend(), &Call::by(rule), &requests);
        for alternatives in [[Some(0), None], [None, Some(2)], [Some(1), Some(40)]] {
            let answer = ask(backend(), &Call { alternatives, ..Call::by(rule) }, &requests);
            assert_eq!(answer.decisions, expected);
            let wanted = answer.logprobs.each_ref().map(Option::is_some);
            assert_eq!(wanted, alternatives.map(|count| count.is_some()));
        }
    }
}

#[test]
fn every_device_and_every_number_of_threads_tells_the_same_bits() {
    let mut random = Random::new(64);
    let others: Vec<CpuBackend> = match Device::chosen() {
        Device::Cpu => [1, 3].map(|threads| CpuBackend::new(Threads::Own(threads)).unwrap()).into(),
        Device::Cuda => vec![CpuBackend::new(Threads::Own(1)).unwrap()],
    };
    let vocabularies = if amount(1, 0) == 1 { [37, 700, 9000] } else { [37, 300, 700] };
    for round in 0..amount(27, 9) {
        let (rule, dtype) = (RULES[round % 9], [Dtype::F32, Dtype::F16, Dtype::Bf16][round % 3]);
        let vocabulary = vocabularies[random.below(3)];
        let mut requests: Vec<Request> =
            (0..random.below(4) + 1).map(|_| any_request(&mut random, vocabulary, rule)).collect();
        if random.chance(0.5) {
            for request in &mut requests {
                request.steps = Some(any_steps(&mut |bound| random.below(bound), request));
            }
        }
        let call = Call { dtype, ..wanting(rule, random.below(30)) };
        let answer = ask(backend(), &call, &requests);
        for other in &others {
            let expected = ask(other, &call, &requests);
            assert_eq!(answer.decisions, expected.decisions, "round {round}");
            for kind in [RAW, PROCESSED] {
                let (found, expected) = (told(&answer, kind), told(&expected, kind));
                assert_eq!(found.token_ids, expected.token_ids, "round {round}");
                assert_eq!(found.ranks, expected.ranks, "round {round}");
                assert_eq!(found.bits(), expected.bits(), "round {round}");
            }
        }
    }
}

#[test]
fn wrong_places_for_logarithms_are_refused() {
    let context = Context::with_threads(1);
    let logits = Matrix::filled(2, 5, matrix::Dtype::F32, 0.0);
    let mut decisions = device::buffer::Buffer::filled(2 * 10, 0);
    let position = device::buffer::Buffer::filled(2, 0);
    let mut values = device::buffer::Buffer::filled(2 * 3, 0.0_f32);
    let mut ids = device::buffer::Buffer::filled(2 * 3, 0);
    let (values, ids) = (values.as_mut_ptr(), ids.as_mut_ptr());
    let sound = spec_logprobs { num_alternatives: 2, values, token_ids: ids, ..Versioned::blank() };
    let wrong = [
        ("values", spec_logprobs { values: std::ptr::null_mut(), ..sound }),
        ("values", spec_logprobs { values: values.wrapping_byte_add(1), ..sound }),
        ("token_ids", spec_logprobs { token_ids: std::ptr::null_mut(), ..sound }),
        ("token_ids", spec_logprobs { token_ids: ids.wrapping_byte_add(2), ..sound }),
        ("ranks", spec_logprobs { ranks: ids.wrapping_byte_add(2), ..sound }),
        ("num_alternatives", spec_logprobs { num_alternatives: -1, ..sound }),
        ("num_alternatives", spec_logprobs { num_alternatives: 257, ..sound }),
        ("struct_size", spec_logprobs { struct_size: 8, ..sound }),
    ];
    let mut args = spec_verify_args {
        num_sequences: 2,
        logits: logits.tensor(),
        position: position.as_ptr(),
        decision_stride: 10,
        decisions: decisions.as_mut_ptr(),
        ..Versioned::blank()
    };
    args.raw_logprobs = &raw const sound;
    args.processed_logprobs = &raw const sound;
    let mut size = 0;
    // SAFETY: a live handle; all arrays have the documented sizes and outlive the calls.
    attempt(|error| unsafe { spec_verify_workspace_size(context.handle, &args, &mut size, error) })
        .unwrap();
    let workspace = device::memory::Memory::filled_on(context.device, size, 0xA5);
    (args.workspace, args.workspace_size) = (workspace.address(), size);
    for (name, logprobs) in &wrong {
        for is_raw in [true, false] {
            let place = std::ptr::from_ref(logprobs);
            args.raw_logprobs = if is_raw { place } else { null() };
            args.processed_logprobs = if is_raw { null() } else { place };
            let failure = context.verify(&args).unwrap_err();
            assert_eq!(failure.status, SPEC_ERROR_INVALID_ARGUMENT, "{failure:?}");
            let path = if is_raw { "raw_logprobs: " } else { "processed_logprobs: " };
            let is_named = failure.message.contains(path) || *name == "struct_size";
            assert!(is_named && failure.message.contains(name), "{name}: {failure:?}");
        }
    }
    (args.raw_logprobs, args.processed_logprobs) = (&raw const sound, null());
    context.verify(&args).unwrap();
}
