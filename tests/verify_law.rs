//! Every rule keeps its promise about the law of the text: the law is measured by running the
//! library on the intervals between the breakpoints of its random numbers, not estimated. That takes
//! thousands of calls for one law: on a simulated device few and small ones are measured. The others
//! hold there as they do on the CPU, whose decisions it makes bit for bit: `tests/cuda_verify.rs`.

mod device;
mod verification;

use device::amount;
use proptest::prelude::*;
use speculators::backend::Backend;
use speculators::sampling::Parameters;
use std::collections::BTreeMap;
use verification::{
    Call, FOLLOW, Ids, PLAIN, REJECTION, Request, almost_one, backend_with, decide, law, round_law,
    row_law,
};

fn backend() -> &'static dyn Backend {
    backend_with(1)
}

/// Laws are measured in steps of 2^-53, one rounding for each breakpoint.
const EXACT: f64 = 1e-12;

fn assert_close(left: &[f64], right: &[f64], what: &str) {
    for (token, (left, right)) in left.iter().zip(right).enumerate() {
        assert!((left - right).abs() < EXACT, "{what}, token {token}: {left} and {right}");
    }
}

/// A way to describe q over a vocabulary.
#[derive(Clone, Debug)]
struct Proposer {
    ids: Ids,
    logits: Vec<f32>,
    row_ids: Vec<i32>,
    parameters: Parameters,
}

impl Proposer {
    /// q over the vocabulary.
    fn law(&self, backend: &dyn Backend, vocabulary: usize) -> Vec<f64> {
        let identity: Vec<i32> = (0..self.logits.len() as i32).collect();
        let ids = match &self.ids {
            Ids::Identity => &identity,
            Ids::Shared(ids) => ids,
            Ids::PerRow => &self.row_ids,
        };
        let masked = ids.iter().zip(&self.logits);
        let masked = masked.map(|(&id, &l)| if id < 0 { f32::NEG_INFINITY } else { l });
        let columns = row_law(backend, &masked.collect::<Vec<_>>(), self.parameters);
        let mut law = vec![0.0; vocabulary];
        for (&id, probability) in ids.iter().zip(columns) {
            if id >= 0 {
                law[id as usize] += probability;
            }
        }
        law
    }

    fn propose(&self, request: &mut Request) {
        request.draft_logits = vec![self.logits.clone()];
        request.draft_ids = vec![self.row_ids.clone()];
        request.draft_parameters = self.parameters;
    }
}

/// The law of the token after the root, over the draws of its draft and the test.
fn emitted_law(
    backend: &dyn Backend,
    target: &[f32],
    parameters: Parameters,
    proposer: &Proposer,
) -> Vec<f64> {
    let call = Call { ids: proposer.ids.clone(), ..Call::by(REJECTION) };
    let mut law = vec![0.0; target.len()];
    for (token, q) in proposer.law(backend, target.len()).into_iter().enumerate() {
        if q == 0.0 {
            continue;
        }
        let logits = vec![target.to_vec(), vec![0.0; target.len()]];
        let mut request = Request::new(logits, vec![token as i32], parameters);
        proposer.propose(&mut request);
        for (tokens, probability) in round_law(backend, &call, &request) {
            law[tokens[0] as usize] += q * probability;
        }
    }
    law
}

fn logits(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![
        12 => -4.0_f32..4.0,
        2 => (-2_i32..3).prop_map(|value| value as f32),
        1 => Just(f32::NEG_INFINITY),
        1 => Just(f32::NAN),
        1 => Just(-40.0_f32),
    ];
    prop::collection::vec(logit, len)
        .prop_filter("a candidate", |row| row.iter().any(|&logit| logit > -10.0))
}

fn parameters() -> impl Strategy<Value = Parameters> {
    let temperature = prop_oneof![Just(1.0_f32), 0.3_f32..2.0];
    let top_k = prop_oneof![Just(0), 1..6];
    let top_p = prop_oneof![Just(1.0_f32), 0.2_f32..1.0];
    let min_p = prop_oneof![Just(0.0_f32), 0.0_f32..0.3];
    (temperature, top_k, top_p, min_p).prop_map(|(temperature, top_k, top_p, min_p)| Parameters {
        temperature,
        top_k,
        top_p,
        min_p,
    })
}

/// Candidates of a vocabulary of seven, in any order.
fn proposer() -> impl Strategy<Value = Proposer> {
    let identity = logits(7..8).prop_map(|logits| (Ids::Identity, logits, Vec::new()));
    let order = Just((0..7).collect::<Vec<i32>>()).prop_shuffle();
    let shared = (order.clone(), logits(4..5))
        .prop_map(|(ids, logits)| (Ids::Shared(ids[..4].to_vec()), logits, Vec::new()));
    let per_row = (order, logits(5..6), 0_usize..5).prop_filter_map(
        "a candidate",
        |(mut ids, logits, hole)| {
            ids.truncate(5);
            ids[hole] = -1 - ids[hole];
            let is_candidate = |(id, logit): (&i32, &f32)| *id >= 0 && *logit > -10.0;
            let has_one = ids.iter().zip(&logits).any(is_candidate);
            has_one.then_some((Ids::PerRow, logits, ids))
        },
    );
    let greedy_or_sampled = prop_oneof![3 => parameters(), 1 => Just(Parameters::GREEDY)];
    (prop_oneof![identity, shared, per_row], greedy_or_sampled).prop_map(
        |((ids, logits, row_ids), parameters)| Proposer { ids, logits, row_ids, parameters },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: amount(60, 1), failure_persistence: None, ..<_>::default() })]

    #[test]
    fn rejection_emits_the_targets_distribution_for_any_draft_distribution(
        target in logits(7..8),
        parameters in parameters(),
        proposer in proposer(),
    ) {
        let backend = backend();
        let p = row_law(backend, &target, parameters);
        let emitted = emitted_law(backend, &target, parameters, &proposer);
        assert_close(&emitted, &p, &format!("{proposer:?} for {target:?}, {parameters:?}"));
    }

    #[test]
    fn rejection_of_a_given_draft_emits_the_targets_distribution(
        target in logits(6..7),
        parameters in parameters(),
        draft in 0_i32..6,
    ) {
        let backend = backend();
        let p = row_law(backend, &target, parameters);
        let logits = vec![target.clone(), vec![0.0; 6]];
        let request = Request::new(logits, vec![draft], parameters);
        let mut emitted = vec![0.0; 6];
        let mut accepted = 0.0;
        for (tokens, probability) in round_law(backend, &Call::by(REJECTION), &request) {
            emitted[tokens[0] as usize] += probability;
            accepted += if tokens.len() > 1 { probability } else { 0.0 };
        }
        assert_close(&emitted, &p, "one draft");
        prop_assert!((accepted - p[draft as usize]).abs() < EXACT);
    }

    #[test]
    fn a_struck_out_draft_is_replaced_from_what_the_target_has_above_the_drafter(
        target in logits(7..8),
        parameters in parameters(),
        proposer in proposer(),
    ) {
        let backend = backend();
        let p = row_law(backend, &target, parameters);
        let q = proposer.law(backend, 7);
        let mut above: Vec<f64> = p.iter().zip(&q).map(|(p, q)| (p - q).max(0.0)).collect();
        let sum: f64 = above.iter().sum();
        // Nothing above q: the laws are equal, and the target's own is drawn from.
        prop_assume!(!(EXACT..=1e-4).contains(&sum));
        if sum < EXACT { above = p } else { above.iter_mut().for_each(|p| *p /= sum) }
        let mut request = Request::new(vec![target.clone(), vec![0.0; 7]], vec![-1], parameters);
        proposer.propose(&mut request);
        let call = Call { ids: proposer.ids.clone(), ..Call::by(REJECTION) };
        let mut replaced = vec![0.0; 7];
        for (tokens, probability) in round_law(backend, &call, &request) {
            prop_assert_eq!(tokens.len(), 1);
            replaced[tokens[0] as usize] += probability;
        }
        for (left, right) in replaced.iter().zip(&above) {
            prop_assert!((left - right).abs() < EXACT / sum.max(1e-4), "{replaced:?}, {above:?}");
        }
    }

    #[test]
    fn filters_leave_what_their_definition_says(
        target in prop::collection::vec(-4.0_f32..4.0, 12..13),
        parameters in parameters(),
    ) {
        let exact: Vec<f64> = target.iter()
            .map(|&logit| (f64::from(logit) / f64::from(parameters.temperature)).exp())
            .collect();
        let mut order: Vec<usize> = (0..exact.len()).collect();
        order.sort_by(|&left, &right| exact[right].total_cmp(&exact[left]));
        let mut is_close = false;
        let (largest, min_p) = (exact[order[0]], f64::from(parameters.min_p));
        order.retain(|&token| {
            let share = exact[token] / largest;
            is_close |= (share / min_p - 1.0).abs() < 1e-5;
            share >= min_p
        });
        if parameters.top_k > 0 {
            order.truncate(parameters.top_k as usize);
        }
        let sum: f64 = order.iter().map(|&token| exact[token]).sum();
        let enough = f64::from(parameters.top_p) * sum;
        let (mut above, mut kept) = (0.0, Vec::new());
        for &token in &order {
            is_close |= (above / enough - 1.0).abs() < 1e-5;
            if parameters.top_p >= 1.0 || above < enough {
                above += exact[token];
                kept.push(token);
            }
        }
        // The definition in real numbers decides nothing that rounding could turn.
        prop_assume!(!is_close);
        let p = row_law(backend(), &target, parameters);
        let sum: f64 = kept.iter().map(|&token| exact[token]).sum();
        for (token, p) in p.into_iter().enumerate() {
            let expected = if kept.contains(&token) { exact[token] / sum } else { 0.0 };
            prop_assert!((p - expected).abs() < 2e-6, "token {token}: {p}, expected {expected}");
        }
    }
}

/// The text that sampling without speculation gives for a seed.
fn undrafted(backend: &dyn Backend, rows: &[Vec<f32>], request: &Request) -> Vec<i32> {
    let step = |(node, row): (usize, &Vec<f32>)| {
        let mut step = Request::new(vec![row.clone()], Vec::new(), request.parameters);
        (step.seed, step.position) = (request.seed, request.position + node as i32);
        decide(backend, &Call::by(FOLLOW), &[step])[0].places[0]
    };
    rows.iter().enumerate().map(step).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: amount(200, 20), failure_persistence: None, ..<_>::default() })]

    #[test]
    fn following_gives_the_text_of_sampling_without_speculation(
        rows in prop::collection::vec(logits(5..6), 1..6),
        parameters in prop_oneof![4 => parameters(), 1 => Just(Parameters::GREEDY)],
        seed in any::<u64>(),
        position in 0_i32..1_000_000,
        drafts in prop::collection::vec(0_usize..4, 5),
    ) {
        let backend = backend();
        let mut request = Request::new(rows.clone(), Vec::new(), parameters);
        (request.seed, request.position) = (seed, position);
        let text = undrafted(backend, &rows, &request);
        // Mostly right drafts, a wrong or struck-out one here and there.
        let draft = |(&token, &turn): (&i32, &usize)| match turn {
            0 => (token + 1) % 5,
            1 if seed % 3 == 0 => -1,
            _ => token,
        };
        request.drafts = text.iter().zip(&drafts).map(draft).take(rows.len() - 1).collect();
        let expected = request.drafts.iter().zip(&text).take_while(|(d, t)| d == t).count();
        let decision = &decide(backend, &Call::by(FOLLOW), &[request.clone()])[0];
        prop_assert_eq!(decision.accepted, expected);
        prop_assert_eq!(decision.tokens(), &text[..expected + 1]);
    }

    #[test]
    fn greedy_sequences_keep_the_targets_argmax_whatever_the_rule(
        rows in prop::collection::vec(logits(5..6), 1..5),
        rule in 0_i32..3,
        wrong_at in 0_usize..5,
        has_distribution in any::<bool>(),
    ) {
        let argmax = |row: &Vec<f32>| {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter().position(|&logit| logit == largest).unwrap() as i32
        };
        let text: Vec<i32> = rows.iter().map(argmax).collect();
        let mut drafts = text[..rows.len() - 1].to_vec();
        if let Some(draft) = drafts.get_mut(wrong_at) {
            *draft = (*draft + 1) % 5;
        }
        let expected = wrong_at.min(drafts.len());
        let mut request = Request::new(rows.clone(), drafts, Parameters::GREEDY);
        if has_distribution {
            request.draft_logits = rows[..rows.len() - 1].to_vec();
            request.draft_parameters = PLAIN;
        }
        let decision = &decide(backend(), &Call::by(rule), &[request])[0];
        prop_assert_eq!(decision.accepted, expected);
        prop_assert_eq!(decision.tokens(), &text[..expected + 1]);
    }
}

/// A row of logits that depends on the text so far.
fn row_after(text: &[i32], salt: u64) -> Vec<f32> {
    let mut state = salt;
    for &token in text {
        state = (state ^ (token as u64 + 1)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    let logit = |place: u64| {
        let bits = (state ^ place).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((bits >> 40) as f32 / 16_777_216.0 - 0.5) * 4.0
    };
    (0..3).map(logit).collect()
}

/// The law of at least `len` tokens after `text`, by rounds of two drafts each.
fn continue_text(
    backend: &dyn Backend,
    len: usize,
    text: &[i32],
    probability: f64,
    laws: &mut BTreeMap<Vec<i32>, f64>,
) {
    if text.len() >= len {
        *laws.entry(text[..len].to_vec()).or_default() += probability;
        return;
    }
    let after = |drafts: &[i32], salt| row_after(&[text, drafts].concat(), salt);
    let (target, draft) = (1, 2);
    let first = row_law(backend, &after(&[], draft), PLAIN);
    for one in 0..3 {
        let second = row_law(backend, &after(&[one], draft), PLAIN);
        for two in 0..3 {
            let rows = vec![after(&[], target), after(&[one], target), after(&[one, two], target)];
            let mut request = Request::new(rows, vec![one, two], PLAIN);
            request.draft_logits = vec![after(&[], draft), after(&[one], draft)];
            let drawn = probability * first[one as usize] * second[two as usize];
            for (tokens, share) in round_law(backend, &Call::by(REJECTION), &request) {
                continue_text(backend, len, &[text, &tokens].concat(), drawn * share, laws);
            }
        }
    }
}

#[test]
fn the_text_of_consecutive_rounds_has_the_targets_distribution() {
    let backend = backend();
    let mut laws = BTreeMap::new();
    let len = amount(3, 1);
    continue_text(backend, len, &[], 1.0, &mut laws);
    assert_eq!(laws.len(), 3_usize.pow(len as u32));
    for (text, probability) in laws {
        let p: f64 = (0..len)
            .map(|len| row_law(backend, &row_after(&text[..len], 1), PLAIN)[text[len] as usize])
            .product();
        assert!((probability - p).abs() < EXACT, "{text:?}: {probability}, expected {p}");
    }
}

#[test]
fn laws_hold_beyond_one_block_of_the_vocabulary() {
    let backend = backend();
    let wave = |place: usize, turn: f32| (place as f32 * turn).sin() * 3.0;
    let target: Vec<f32> = (0..900).map(|place| wave(place, 1.7)).collect();
    let parameters = amount(PLAIN, Parameters { top_k: 3, ..PLAIN });
    let p = row_law(backend, &target, parameters);
    // A few candidates far apart, in no order, so that the law of each can be measured.
    let ids: Vec<i32> = (0..300).map(|place| (place * 577 + 13) % 900).collect();
    let few = Parameters { top_k: 3, ..PLAIN };
    let logits: Vec<f32> = (0..300).map(|place| wave(place, 0.37)).collect();
    let full: Vec<f32> = (0..900).map(|place| wave(place, 2.9)).collect();
    for proposer in [
        Proposer { ids: Ids::Shared(ids), logits, row_ids: Vec::new(), parameters: few },
        Proposer { ids: Ids::Identity, logits: full, row_ids: Vec::new(), parameters: few },
    ] {
        let emitted = emitted_law(backend, &target, parameters, &proposer);
        assert_close(&emitted, &p, "900 tokens");
    }
}

#[test]
fn the_number_of_a_test_decides_at_the_ratio_of_the_laws() {
    let backend = backend();
    let target = vec![0.0, 1.0, 2.0];
    let drafter = vec![2.0, 1.0, 0.0];
    let (p, q) = (row_law(backend, &target, PLAIN), row_law(backend, &drafter, PLAIN));
    for token in 0..3 {
        let mut request = Request::new(vec![target.clone(); 2], vec![token as i32], PLAIN);
        request.draft_logits = vec![drafter.clone()];
        let accepted = law(|uniform| {
            let mut request = request.clone();
            request.uniforms = vec![uniform, 0.0, 0.0, 0.0];
            1 - decide(backend, &Call::by(REJECTION), &[request])[0].accepted as i32
        });
        let probability: f64 = accepted.iter().filter(|o| o.0 == 0).map(|o| o.1).sum();
        assert!((probability - (p[token] / q[token]).min(1.0)).abs() < EXACT);
    }
}

#[test]
fn a_draft_that_its_distribution_cannot_give_is_rejected() {
    let mut request = Request::new(vec![vec![0.0, 3.0]; 2], vec![1], PLAIN);
    request.draft_logits = vec![vec![0.0, f32::NEG_INFINITY]];
    request.uniforms = vec![0.0, almost_one(), 0.0, 0.0];
    let decision = &decide(backend(), &Call::by(REJECTION), &[request])[0];
    assert_eq!((decision.accepted, decision.tokens()), (0, &[1][..]));
}
