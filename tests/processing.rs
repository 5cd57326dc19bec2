//! What is done to the target's logits before tokens are drawn from them: masks, bad words, stop
//! tokens, biases and penalties, each at every node as decoding without speculation would have it
//! after the same text.

mod device;
mod host;
mod verification;

use device::amount;
use device::buffer::Buffer;
use device::memory::Memory;
use host::matrix::Matrix;
use host::random::Random;
use host::{Context, Failure, Versioned, attempt};
use speculators::backend::Backend;
use speculators::backend::verify::record::{INVALID, LOSSY, NO_CANDIDATE, STOPPED};
use speculators::capi::*;
use speculators::sampling::Parameters;
use speculators::tensor::Dtype;
use std::collections::BTreeMap;
use std::ptr::{dangling, null};
use verification::processing::{Entry, NO_STEPS, Steps, any_steps, applied, path_of};
use verification::{
    BLOCK, Call, DEFAULT, DISTINCT, Decision, FOLLOW, PLAIN, REJECTION, RELAXED, Request,
    SYNTHETIC, THRESHOLD, TYPICAL, backend_with, block_law, decide, row_law, tree_law,
};

const RULES: [i32; 9] =
    [FOLLOW, DEFAULT, REJECTION, DISTINCT, BLOCK, TYPICAL, THRESHOLD, RELAXED, SYNTHETIC];

fn backend() -> &'static dyn Backend {
    backend_with(2)
}

/// A request of any kind: a tree, but for rules for chains.
fn any_request(random: &mut Random, vocabulary: usize, rule: i32) -> Request {
    let drafts: Vec<i32> =
        (0..random.below(6)).map(|_| random.below(vocabulary.min(6)) as i32 - 1).collect();
    let rows = (0..=drafts.len())
        .map(|_| random.normals(vocabulary).iter().map(|logit| logit * 3.0).collect())
        .collect();
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
    if random.chance(0.8) {
        request.steps = Some(any_steps(&mut |bound| random.below(bound), &request));
    }
    request
}

#[test]
fn every_rule_decides_as_on_logits_that_were_processed_by_the_definition() {
    let mut random = Random::new(31);
    let (mut accepted, mut flags) = (0, 0);
    for vocabulary in [5, 40, amount(2100, 300)] {
        for turn in 0..amount(40, 3) {
            for rule in RULES {
                let dtype = [Dtype::F32, Dtype::F16, Dtype::Bf16][random.below(3)];
                let call = Call {
                    dtype,
                    order: [
                        verification::RowOrder::Forward,
                        verification::RowOrder::Backward,
                        verification::RowOrder::Implied,
                    ][random.below(3)],
                    stop_tokens: (0..random.below(3)).map(|_| random.below(6) as i32).collect(),
                    acceptance: vec![0.5; 5],
                    ..Call::by(rule)
                };
                let mut requests: Vec<Request> =
                    (0..4).map(|_| any_request(&mut random, vocabulary, rule)).collect();
                if random.chance(0.5) && vocabulary < 300 {
                    for request in &mut requests {
                        let nodes = request.drafts.len();
                        request.draft_logits =
                            (0..nodes).map(|_| random.normals(vocabulary)).collect();
                    }
                }
                let found = decide(backend(), &call, &requests);
                let plain: Vec<Request> =
                    requests.iter().map(|one| applied(one, dtype, &call.stop_tokens)).collect();
                let draft_dtype = Some(call.draft_dtype.unwrap_or(dtype));
                let plain_call = Call { dtype: Dtype::F32, draft_dtype, ..call.clone() };
                let expected = decide(backend(), &plain_call, &plain);
                for ((found, expected), request) in found.iter().zip(&expected).zip(&requests) {
                    assert_eq!(found, expected, "turn {turn}: {call:?}, {request:?}");
                    accepted += found.accepted;
                    flags |= found.flags;
                }
            }
        }
    }
    assert!(accepted > 0);
    assert_eq!(flags, NO_CANDIDATE | STOPPED | LOSSY);
}

/// The greedy text of a chain over rows whose logits are all these.
fn greedy(logits: &[f32], drafts: &[i32], stops: &[i32], steps: Steps) -> Decision {
    let rows = vec![logits.to_vec(); drafts.len() + 1];
    let mut request = Request::new(rows, drafts.to_vec(), Parameters::GREEDY);
    request.steps = Some(steps);
    let call = Call { stop_tokens: stops.to_vec(), ..Call::by(DEFAULT) };
    decide(backend(), &call, &[request]).remove(0)
}

#[test]
fn a_mask_leaves_what_it_allows_and_each_row_has_its_own() {
    let logits = [4.0, 3.0, 2.0, 1.0];
    let only = |tokens: &[usize]| (0..4).map(|token| tokens.contains(&token)).collect();
    let steps = Steps { masks: vec![only(&[1, 2]), only(&[2, 3]), only(&[])], ..NO_STEPS };
    let decision = greedy(&logits, &[1, 2], &[], steps.clone());
    // Nothing is allowed after the second draft.
    assert_eq!((decision.tokens(), decision.flags), (&[1, 2, 0][..], NO_CANDIDATE));
    let decision = greedy(&logits, &[2, 2], &[], steps);
    assert_eq!((decision.tokens(), decision.flags), (&[1][..], 0));
    // No bias brings back what is excluded.
    let masks = vec![only(&[1, 2])];
    let biases = vec![(0, f32::INFINITY), (2, 1.5)];
    let steps = Steps { masks, biases, ..NO_STEPS };
    assert_eq!(greedy(&logits, &[], &[], steps).tokens(), [2]);
}

#[test]
fn bad_words_end_neither_in_the_path_nor_across_the_root() {
    let logits = [0.0, 5.0, 4.0, 3.0, 2.0];
    let text = |words: &[&[i32]], history: &[i32], drafts: &[i32]| {
        let words = words.iter().map(|word| word.to_vec()).collect();
        let steps = Steps { words, history: history.to_vec(), ..NO_STEPS };
        greedy(&logits, drafts, &[], steps).tokens().to_vec()
    };
    assert_eq!(text(&[&[1]], &[], &[]), [2]);
    assert_eq!(text(&[&[3, 1]], &[3], &[]), [2]);
    assert_eq!(text(&[&[3, 1]], &[3, 4], &[]), [1]);
    assert_eq!(text(&[&[3, 1]], &[], &[]), [1]);
    // Within the path: 1 must not follow 1.
    assert_eq!(text(&[&[1, 1]], &[3], &[1, 2, 1]), [1, 2, 1, 2]);
    assert_eq!(text(&[&[1, 1]], &[3], &[1, 1]), [1, 2]);
    // Across the root: 4, 3, then 1.
    assert_eq!(text(&[&[4, 3, 1, 2], &[4, 3, 1, 1]], &[0, 4, 3], &[1]), [1, 3]);
    assert_eq!(text(&[&[4, 3, 1, 2], &[4, 3, 1, 1]], &[3], &[1]), [1, 1]);
}

#[test]
fn no_stop_token_is_emitted_before_there_are_enough_tokens() {
    let logits = [0.0, 5.0, 4.0];
    for (min_tokens, expected, flags) in [
        (0, &[1][..], STOPPED),
        (-3, &[1], STOPPED),
        (1, &[2, 1], STOPPED),
        (2, &[2, 2, 1], STOPPED),
        (3, &[2, 2, 2], 0),
        (i32::MAX, &[2, 2, 2], 0),
    ] {
        let steps = Steps { min_tokens, ..NO_STEPS };
        // A stop token that is no token excludes none.
        let decision = greedy(&logits, &[2, 2], &[1, 99, -1], steps);
        assert_eq!((decision.tokens(), decision.flags), (expected, flags), "{min_tokens}");
    }
}

#[test]
fn penalties_count_the_prompt_the_text_and_the_path() {
    let text = |logits: &[f32], drafts: &[i32], steps| {
        greedy(logits, drafts, &[], steps).tokens().to_vec()
    };
    // Repetition: what stands in the text or the prompt, divided above 0 and multiplied below.
    let steps = Steps {
        repetition: 2.0,
        counts: vec![1, 0, 0],
        prompt: vec![false, true, false],
        ..NO_STEPS
    };
    assert_eq!(text(&[4.0, 3.0, 2.5], &[], steps.clone()), [2]);
    assert_eq!(text(&[4.0, 3.0, 1.9], &[], steps.clone()), [0]);
    assert_eq!(text(&[-1.0, -1.0, -1.9], &[], steps), [2]);
    // Frequency: 1 stands twice in the text and once more after the draft.
    let steps = Steps { frequency: 0.5, counts: vec![0, 2, 0], ..NO_STEPS };
    assert_eq!(text(&[0.0, 3.0, 1.7], &[1, 1], steps.clone()), [1, 2]);
    assert_eq!(text(&[0.0, 3.0, 1.4], &[1, 1], steps), [1, 1, 2]);
    // Presence: once, however often.
    let steps = Steps { presence: 1.0, ..NO_STEPS };
    assert_eq!(text(&[0.0, 3.0, 2.5], &[1, 2, 1], steps.clone()), [1, 2, 1, 1]);
    // The path is not that of a sibling.
    let rows = vec![vec![0.0, 3.0, 2.9]; 4];
    let mut request = Request::new(rows, vec![2, 1, 2], Parameters::GREEDY);
    (request.parents, request.steps) = (vec![-1, 0, 0, 2], Some(steps));
    assert_eq!(decide(backend(), &Call::by(FOLLOW), &[request])[0].tokens(), [1, 2, 1]);
    // Biases come before penalties: (1 + 3) / 2 is less than 2.5.
    let steps = Steps { biases: vec![(0, 3.0)], repetition: 2.0, counts: vec![1, 0], ..NO_STEPS };
    assert_eq!(text(&[1.0, 2.5], &[], steps), [1]);
}

/// A row of logits that depends on the text so far.
fn row_after(text: &[i32], salt: u64, vocabulary: usize) -> Vec<f32> {
    let mut state = salt;
    for &token in text {
        state = (state ^ (token + 2) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    let logit = |place: usize| {
        let bits = (state ^ place as u64).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((bits >> 40) as f32 / 16_777_216.0 - 0.5) * 4.0
    };
    (0..vocabulary).map(logit).collect()
}

/// A sequence that is decoded, with all steps, by a target whose logits depend on the text.
#[derive(Clone)]
struct Text {
    vocabulary: usize,
    /// What has been emitted, the root last.
    tokens: Vec<i32>,
    parameters: Parameters,
    seed: u64,
}

const STOPS: [i32; 2] = [0, 3];

impl Text {
    fn after(&self, path: &[i32]) -> Vec<i32> {
        [&self.tokens[..], path].concat()
    }

    /// A grammar: which tokens may follow a text.
    fn mask(&self, text: &[i32]) -> Vec<bool> {
        row_after(text, 99, self.vocabulary).iter().map(|&logit| logit > -1.2).collect()
    }

    /// The steps at the root, with masks after these paths, as a host keeps them.
    fn steps(&self, paths: &[Vec<i32>]) -> Steps {
        let is_token = |&token: &i32| token < self.vocabulary as i32;
        let words = [&[1, 2][..], &[2, 4, 1], &[4, 4, 4], &[5], &[2, 0, 1]];
        let words = words.into_iter().filter(|word| word.iter().all(is_token));
        let biases = [(1, 0.7), (4, -0.4)].into_iter().filter(|(token, _)| is_token(token));
        let mut counts = vec![0; self.vocabulary];
        self.tokens.iter().for_each(|&token| counts[token as usize] += 1);
        Steps {
            masks: paths.iter().map(|path| self.mask(&self.after(path))).collect(),
            words: words.map(<[i32]>::to_vec).collect(),
            history: self.tokens[self.tokens.len().saturating_sub(2)..].to_vec(),
            min_tokens: 9 - self.tokens.len() as i32,
            biases: biases.collect(),
            repetition: 1.2,
            frequency: 0.15,
            presence: 0.1,
            counts,
            prompt: (0..self.vocabulary).map(|token| token % 5 == 2).collect(),
            spoilt: Vec::new(),
        }
    }

    /// A request for the nodes of a tree.
    fn request(&self, parents: Vec<i32>, drafts: Vec<i32>) -> Request {
        let mut request = Request::new(Vec::new(), drafts, self.parameters);
        request.parents = parents;
        let nodes = 0..=request.drafts.len();
        let paths: Vec<Vec<i32>> = nodes.map(|node| path_of(&request, node)).collect();
        let row = |path: &Vec<i32>| row_after(&self.after(path), 1, self.vocabulary);
        request.logits = paths.iter().map(row).collect();
        request.position = self.tokens.len() as i32;
        request.seed = self.seed;
        request.steps = Some(self.steps(&paths));
        request
    }

    /// The next token without speculation.
    fn step(&self) -> i32 {
        let call = Call { stop_tokens: STOPS.to_vec(), ..Call::by(FOLLOW) };
        decide(backend(), &call, &[self.request(Vec::new(), Vec::new())])[0].places[0]
    }

    /// The next tokens without speculation.
    fn continued(&self, len: usize) -> Vec<i32> {
        let mut text = self.clone();
        for _ in 0..len {
            let token = text.step();
            text.tokens.push(token);
        }
        text.tokens[self.tokens.len()..].to_vec()
    }
}

#[test]
fn trees_emit_the_text_that_is_decoded_token_by_token() {
    let mut random = Random::new(17);
    let (mut accepted, mut stopped) = (0, 0);
    for turn in 0..amount(60, 6) {
        let parameters = if turn % 4 == 0 { Parameters::GREEDY } else { PLAIN };
        let vocabulary = [8, 70, 300][turn % 3];
        let mut text = Text { vocabulary, tokens: vec![4], parameters, seed: random.bits() };
        for _ in 0..5 {
            let expected = text.continued(4);
            // A trunk of right tokens with wrong siblings here and there, before and after them.
            let (mut parents, mut drafts, mut trunk) = (vec![-1], Vec::new(), 0);
            for &right in &expected[..3] {
                let wrong = (right + 1 + random.below(4) as i32) % 8;
                let siblings = match random.below(4) {
                    0 => vec![wrong, right],
                    1 => vec![right, wrong],
                    2 => vec![-1, right],
                    _ => vec![right],
                };
                let parent = trunk;
                for token in siblings {
                    drafts.push(token);
                    parents.push(parent);
                    if token == right {
                        trunk = drafts.len() as i32;
                    }
                }
            }
            let request = text.request(parents, drafts);
            let call = Call { stop_tokens: STOPS.to_vec(), ..Call::by(FOLLOW) };
            let decision = decide(backend(), &call, &[request]).remove(0);
            let stop = expected[..3].iter().position(|token| STOPS.contains(token));
            assert_eq!(decision.tokens(), &expected[..stop.map_or(4, |stop| stop + 1)]);
            accepted += decision.accepted;
            if decision.flags & STOPPED != 0 {
                assert!(text.tokens.len() + decision.emitted > 9, "too early");
                stopped += 1;
                break;
            }
            text.tokens.extend(decision.tokens());
        }
    }
    assert!(accepted > 0 && stopped > 0, "{accepted} drafts, {stopped} texts");
}

/// Laws are measured in steps of 2^-53; residuals of residuals are rounded to 2^-62.
const EXACT: f64 = 1e-11;

/// The tokens of a law, and how probable they are.
type Laws = BTreeMap<Vec<i32>, f64>;

impl Text {
    /// The law of the next token after a path, as it is drawn without speculation.
    fn p(&self, path: &[i32]) -> Vec<f64> {
        let steps = self.steps(&[path.to_vec()]);
        let logits = row_after(&self.after(path), 1, self.vocabulary);
        row_law(backend(), &steps.apply(&logits, 0, path, &[]), self.parameters)
    }

    fn q(&self, path: &[i32]) -> Vec<f32> {
        row_after(&self.after(path), 2, self.vocabulary)
    }

    /// All drafts of a tree with their probabilities.
    fn drafts(&self, parents: &[i32], rule: i32) -> Vec<(Vec<i32>, f64)> {
        let mut all = vec![(Vec::new(), 1.0)];
        for node in 1..parents.len() {
            let mut longer = Vec::new();
            for (tokens, probability) in all {
                let known = Request {
                    parents: parents.to_vec(),
                    ..Request::new(Vec::new(), tokens, PLAIN)
                };
                let path = path_of(&known, parents[node] as usize);
                let mut q = row_law(backend(), &self.q(&path), PLAIN);
                for sibling in (1..node).filter(|&other| parents[other] == parents[node]) {
                    if rule == DISTINCT {
                        q[known.drafts[sibling - 1] as usize] = 0.0;
                    }
                }
                let sum: f64 = q.iter().sum();
                for (token, q) in q.iter().enumerate().filter(|(_, q)| **q > 0.0) {
                    let tokens = [&known.drafts[..], &[token as i32]].concat();
                    longer.push((tokens, probability * q / sum));
                }
            }
            all = longer;
        }
        all
    }

    fn extend(&self, path: &[i32], len: usize, probability: f64, laws: &mut Laws) {
        if path.len() >= len {
            *laws.entry(path[..len].to_vec()).or_default() += probability;
            return;
        }
        for (token, p) in self.p(path).into_iter().enumerate().filter(|(_, p)| *p > 0.0) {
            self.extend(&[path, &[token as i32]].concat(), len, probability * p, laws);
        }
    }
}

#[test]
fn lossless_rules_keep_the_law_of_the_processed_target() {
    let backend = backend();
    let tokens = vec![1, 2, 2];
    let (vocabulary, len) = amount((4, 3), (3, 2));
    let text = Text { vocabulary, tokens, parameters: PLAIN, seed: 0 };
    let cases: [(&[i32], i32); 5] = [
        (&[-1, 0, 0], DISTINCT),
        (&[-1, 0, 0, 1], REJECTION),
        (&[-1, 0, 0, 1], DISTINCT),
        (&[-1, 0, 1], BLOCK),
        (&[-1, 0, 1], FOLLOW),
    ];
    for (parents, rule) in cases.into_iter().take(amount(5, 1)) {
        let mut laws = Laws::new();
        for (drafts, drawn) in text.drafts(parents, rule) {
            let mut request = text.request(parents.to_vec(), drafts);
            let nodes = 0..request.drafts.len();
            let call = Call::by(rule);
            let law = if rule == FOLLOW {
                verification::follow_law(backend, &request)
            } else {
                request.draft_logits = nodes.map(|node| text.q(&path_of(&request, node))).collect();
                if rule == BLOCK {
                    request.parents.clear();
                    block_law(backend, &call, &request)
                } else {
                    tree_law(backend, &call, &request)
                }
            };
            for (emitted, probability) in law {
                text.extend(&emitted, len, drawn * probability, &mut laws);
            }
        }
        let mut expected = Laws::new();
        text.extend(&[], len, 1.0, &mut expected);
        // The steps exclude texts, but not all.
        let all = vocabulary.pow(len as u32);
        assert!((2..all).contains(&expected.len()), "{} texts", expected.len());
        for (tokens, p) in &expected {
            let found = laws.get(tokens).copied().unwrap_or(0.0);
            assert!((found - p).abs() < EXACT, "rule {rule}, {tokens:?}: {found}, expected {p}");
        }
        assert!(laws.keys().all(|tokens| expected.contains_key(tokens)), "rule {rule}");
    }
}

/// A request with all steps, which is valid.
fn sound() -> Request {
    let text = Text { vocabulary: 40, tokens: vec![4, 1, 2], parameters: PLAIN, seed: 5 };
    text.request(vec![-1, 0, 0, 2], vec![1, 2, 4])
}

#[test]
fn what_is_out_of_range_ends_one_sequence_only() {
    type Change = fn(&mut Steps);
    let contents: [Change; 14] = [
        |steps| steps.words[1][0] = 40,
        |steps| steps.words[1][2] = -1,
        |steps| steps.words[0] = Vec::new(),
        |steps| steps.words[3][0] = i32::MIN,
        |steps| steps.biases[1].0 = 40,
        |steps| steps.biases[0].0 = -1,
        |steps| steps.biases[0].1 = f32::NAN,
        |steps| steps.repetition = f32::NAN,
        |steps| steps.repetition = 0.0,
        |steps| steps.repetition = -1.0,
        |steps| steps.frequency = f32::NAN,
        |steps| steps.presence = f32::NAN,
        |steps| (steps.presence, steps.repetition) = (f32::NAN, 1.0),
        |steps| steps.words.push(vec![1, 2, i32::MAX]),
    ];
    let mut wrong: Vec<Steps> = Vec::new();
    let steps = || sound().steps.expect("steps");
    for change in contents {
        let mut steps = steps();
        change(&mut steps);
        wrong.push(steps);
    }
    for (entry, values) in [
        (Entry::MaskRow, &[-2, 60, i32::MAX, i32::MIN][..]),
        (Entry::WordsBegin, &[-1, 200, i32::MAX, i32::MIN]),
        (Entry::WordsLength, &[-1, 300, i32::MAX]),
        (Entry::WordBegin, &[-1, 400, i32::MAX]),
        (Entry::WordLength, &[-1, 0, 400, i32::MAX]),
        (Entry::HistoryLength, &[-1, 3, i32::MAX]),
        (Entry::BiasesBegin, &[-1, 400, i32::MAX]),
        (Entry::BiasesLength, &[-1, 400, i32::MAX]),
        (Entry::CountRow, &[-1, 60, i32::MAX, i32::MIN]),
    ] {
        for &value in values {
            wrong.push(Steps { spoilt: vec![(entry, value)], ..steps() });
        }
    }
    let call = Call::by(FOLLOW);
    let alone = decide(backend(), &call, &[sound()]).remove(0);
    assert!(alone.emitted > 0);
    for wrong in wrong {
        let spoilt = Request { steps: Some(wrong.clone()), ..sound() };
        for order in [verification::RowOrder::Forward, verification::RowOrder::Backward] {
            let call = Call { order, ..call.clone() };
            let decisions = decide(backend(), &call, &[sound(), spoilt.clone(), sound()]);
            let found = &decisions[1];
            let what = (&wrong.spoilt, &wrong);
            assert_eq!((found.emitted, found.flags), (0, INVALID), "{what:?}");
            assert_eq!((&decisions[0], &decisions[2]), (&alone, &alone), "{what:?}");
        }
    }
    // What nobody needs may be anything.
    let steps = Steps {
        repetition: 1.0,
        frequency: 0.0,
        presence: 0.0,
        spoilt: vec![(Entry::CountRow, -1)],
        ..steps()
    };
    let request = Request { steps: Some(steps), ..sound() };
    assert_eq!(decide(backend(), &call, &[request])[0].flags & INVALID, 0);
    // A sequence that takes no part is not looked at.
    let steps = Steps { biases: vec![(99, 0.0)], ..NO_STEPS };
    let request = Request { steps: Some(steps), num_drafts: Some(-1), ..sound() };
    assert_eq!(decide(backend(), &call, &[request, sound()])[0].flags, 0);
}

// ---- Through the C interface --------------------------------------------------------------------

const VOCABULARY: usize = 40;

/// Two greedy sequences of one draft each, and every array that processing may have.
struct Host {
    logits: Matrix,
    drafts: Buffer<i32>,
    position: Buffer<i32>,
    allowed: Buffer<u32>,
    mask_row: Buffer<i32>,
    word_tokens: Buffer<i32>,
    word_begin: Buffer<i32>,
    word_length: Buffer<i32>,
    words: [Buffer<i32>; 2],
    history: Buffer<i32>,
    history_length: Buffer<i32>,
    min_tokens: Buffer<i32>,
    stops: Buffer<i32>,
    bias_tokens: Buffer<i32>,
    bias_values: Buffer<f32>,
    biases: [Buffer<i32>; 2],
    penalties: [Buffer<f32>; 3],
    counts: Buffer<i32>,
    prompt: Buffer<u32>,
    count_row: Buffer<i32>,
    decisions: Buffer<i32>,
    workspace: Memory,
}

const STRIDE: i32 = SPEC_DECISION_TOKENS + 4;
const WORKSPACE: u64 = 1 << 20;

impl Host {
    fn new() -> Self {
        let mut logits = vec![0.0; 4 * VOCABULARY];
        for row in logits.chunks_mut(VOCABULARY) {
            row[..5].copy_from_slice(&[9.0, 8.0, 7.0, 6.0, 5.0]);
        }
        let mut counts = vec![0; 2 * VOCABULARY];
        counts[VOCABULARY + 1] = 1;
        Self {
            logits: Matrix::new(4, VOCABULARY, &logits),
            drafts: vec![1, 2].into(),
            position: vec![7, 9].into(),
            // Not token 0.
            allowed: vec![u32::MAX - 1, u32::MAX].into(),
            mask_row: vec![-1, 0, 0, 0].into(),
            word_tokens: vec![6, 1].into(),
            word_begin: vec![0].into(),
            word_length: vec![2].into(),
            words: [vec![0, 0].into(), vec![0, 1].into()],
            history: vec![0, 6].into(),
            history_length: vec![0, 1].into(),
            min_tokens: vec![1, 0].into(),
            stops: vec![0].into(),
            bias_tokens: vec![3].into(),
            bias_values: vec![1.5].into(),
            biases: [vec![0, 0].into(), vec![1, 0].into()],
            penalties: [vec![1.0, 1.0].into(), vec![0.0, 0.0].into(), vec![0.0, 2.5].into()],
            counts: counts.into(),
            prompt: vec![0; 4].into(),
            count_row: vec![0, 1].into(),
            decisions: Buffer::filled(2 * STRIDE as usize, -77),
            workspace: Memory::filled(WORKSPACE, 0),
        }
    }

    fn processing(&self) -> spec_processing {
        spec_processing {
            num_masks: 1,
            allowed: self.allowed.as_ptr(),
            mask_row: self.mask_row.as_ptr(),
            num_bad_words: 1,
            word_tokens: self.word_tokens.as_ptr(),
            word_begin: self.word_begin.as_ptr(),
            word_length: self.word_length.as_ptr(),
            bad_words_begin: self.words[0].as_ptr(),
            bad_words_length: self.words[1].as_ptr(),
            history: self.history.as_ptr(),
            history_length: self.history_length.as_ptr(),
            num_word_tokens: 2,
            history_stride: 1,
            min_tokens: self.min_tokens.as_ptr(),
            bias_tokens: self.bias_tokens.as_ptr(),
            bias_values: self.bias_values.as_ptr(),
            biases_begin: self.biases[0].as_ptr(),
            biases_length: self.biases[1].as_ptr(),
            num_biases: 1,
            num_count_rows: 2,
            repetition: self.penalties[0].as_ptr(),
            frequency: self.penalties[1].as_ptr(),
            presence: self.penalties[2].as_ptr(),
            output_counts: self.counts.as_ptr(),
            prompt_tokens: self.prompt.as_ptr(),
            count_row: self.count_row.as_ptr(),
            ..Versioned::blank()
        }
    }

    fn args(&mut self) -> spec_verify_args {
        spec_verify_args {
            num_sequences: 2,
            max_drafts: 1,
            logits: self.logits.tensor(),
            draft_tokens: self.drafts.as_ptr(),
            position: self.position.as_ptr(),
            stop_tokens: self.stops.as_ptr(),
            num_stop_tokens: 1,
            decision_stride: STRIDE,
            decisions: self.decisions.as_mut_ptr(),
            workspace: self.workspace.address(),
            workspace_size: WORKSPACE,
            ..Versioned::blank()
        }
    }

    /// What the sequences emit.
    fn run(
        &mut self,
        context: &Context,
        processing: *const spec_processing,
    ) -> Result<[Vec<i32>; 2], Failure> {
        let args = spec_verify_args { processing, ..self.args() };
        context.verify(&args)?;
        let emitted = |index: usize| {
            let record = &self.decisions[index * STRIDE as usize..];
            let count = record[SPEC_DECISION_EMITTED as usize] as usize;
            record[SPEC_DECISION_TOKENS as usize..][..count].to_vec()
        };
        Ok([emitted(0), emitted(1)])
    }
}

#[test]
fn hosts_have_their_arrays_looked_at() {
    let context = Context::with_threads(1);
    let mut host = Host::new();
    assert_eq!(host.run(&context, null()).expect("a call"), [vec![0], vec![0]]);
    // Nothing but its size.
    let blank = spec_processing::blank();
    assert_eq!(host.run(&context, &blank).expect("a call"), [vec![0], vec![0]]);
    // The first sequence must not stop at once, and then has no token 0; its bias makes 3 the best
    // but for 1. The second has no token 0, and none that ends the word (6, 1): 2, which is the draft;
    // after it, 1 stands in the text, and so does 2.
    let all = host.processing();
    assert_eq!(host.run(&context, &all).expect("a call"), [vec![1, 1], vec![2, 3]]);
    let without_words = spec_processing { num_bad_words: 0, ..all };
    assert_eq!(host.run(&context, &without_words).expect("a call"), [vec![1, 1], vec![2, 3]]);
    let without_penalties =
        spec_processing { repetition: null(), frequency: null(), presence: null(), ..all };
    assert_eq!(host.run(&context, &without_penalties).expect("a call"), [vec![1, 1], vec![2, 1]]);
    let neither = spec_processing { num_bad_words: 0, ..without_penalties };
    assert_eq!(host.run(&context, &neither).expect("a call"), [vec![1, 1], vec![1]]);
    let (mask_row, min_tokens) = (null(), null());
    // Rows beyond the only mask have one that there is not.
    let by_row = spec_processing { mask_row, min_tokens, ..all };
    assert!(host.run(&context, &by_row).expect("a call").iter().all(Vec::is_empty));
    let no_masks = spec_processing { num_masks: 0, allowed: null(), ..by_row };
    assert_eq!(host.run(&context, &no_masks).expect("a call"), [vec![0], vec![0]]);
}

#[test]
fn wrong_arguments_are_refused_and_change_nothing() {
    type Spoil = (&'static str, fn(&mut spec_processing));
    let spoils: &[Spoil] = &[
        ("num_masks", |args| args.num_masks = -1),
        ("allowed", |args| args.allowed = null()),
        ("allowed", |args| args.allowed = args.allowed.wrapping_byte_add(1)),
        ("mask_row", |args| args.mask_row = args.mask_row.wrapping_byte_add(2)),
        ("mask_stride", |args| args.mask_stride = 1),
        ("mask_stride", |args| args.mask_stride = -2),
        ("num_bad_words", |args| args.num_bad_words = -1),
        ("num_word_tokens", |args| args.num_word_tokens = -1),
        ("word_tokens", |args| args.word_tokens = null()),
        ("word_begin", |args| args.word_begin = null()),
        ("word_length", |args| args.word_length = null()),
        ("bad_words_begin", |args| args.bad_words_begin = null()),
        ("bad_words_length", |args| args.bad_words_length = null()),
        ("history", |args| args.history = args.history.wrapping_byte_add(1)),
        ("history_length", |args| args.history_length = null()),
        ("history_stride", |args| args.history_stride = 0),
        ("history_stride", |args| args.history_stride = -1),
        ("min_tokens", |args| args.min_tokens = args.min_tokens.wrapping_byte_add(1)),
        ("bias_tokens", |args| args.bias_tokens = null()),
        ("bias_values", |args| args.bias_values = null()),
        ("biases_begin", |args| args.biases_begin = null()),
        ("biases_length", |args| args.biases_length = null()),
        ("num_biases", |args| args.num_biases = -1),
        ("num_count_rows", |args| args.num_count_rows = -1),
        ("repetition", |args| args.repetition = args.repetition.wrapping_byte_add(1)),
        ("frequency", |args| args.frequency = args.frequency.wrapping_byte_add(2)),
        ("presence", |args| args.presence = args.presence.wrapping_byte_add(3)),
        ("output_counts", |args| args.output_counts = args.output_counts.wrapping_byte_add(1)),
        ("prompt_tokens", |args| args.prompt_tokens = args.prompt_tokens.wrapping_byte_add(1)),
        ("count_row", |args| args.count_row = args.count_row.wrapping_byte_add(1)),
        ("count_stride", |args| args.count_stride = 39),
        ("prompt_stride", |args| args.prompt_stride = 1),
        ("struct_size", |args| args.struct_size = 8),
    ];
    let context = Context::with_threads(1);
    let mut host = Host::new();
    for (name, spoil) in spoils {
        let mut processing = host.processing();
        spoil(&mut processing);
        let failure = host.run(&context, &processing).expect_err(name);
        assert_eq!(failure.status, SPEC_ERROR_INVALID_ARGUMENT, "{failure:?}");
        assert!(failure.message.contains("processing"), "{failure:?}");
        assert!(failure.message.contains(name), "{name}: {failure:?}");
        assert!(host.decisions.iter().all(|&element| element == -77), "{name}: written");
    }
    let processing = host.processing();
    host.run(&context, &processing).expect("the call as it should be");
}

#[test]
fn the_workspace_has_room_for_processed_rows_before_there_are_any_arrays() {
    let context = Context::with_threads(1);
    let mut host = Host::new();
    let mut args = host.args();
    let size_of = |args: &spec_verify_args| {
        let mut size = 0;
        // SAFETY: a live handle; only sizes are looked at.
        attempt(|error| unsafe {
            spec_verify_workspace_size(context.handle, args, &mut size, error)
        })
        .expect("a size");
        size
    };
    args.logits.data = std::ptr::null_mut();
    let without = size_of(&args);
    // Only whether it is there is looked at.
    args.processing = dangling();
    let with = size_of(&args);
    assert!(with >= without + VOCABULARY as u64 * 4, "{with} and {without}");
    let processing = host.processing();
    let short =
        spec_verify_args { processing: &processing, workspace_size: with - 1, ..host.args() };
    let failure = context.verify(&short).expect_err("too little room");
    assert!(failure.message.contains("workspace"), "{failure:?}");
    let enough = spec_verify_args { workspace_size: with, ..short };
    context.verify(&enough).expect("room enough");
}
