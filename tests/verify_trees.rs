//! Trees: every rule keeps its promise about the law of the text, finds its way down, and agrees with
//! itself on chains. Laws are measured as in `tests/verify_law.rs`, which takes many thousands of calls:
//! a simulated device measures the smallest ones.

mod device;
mod verification;

use device::amount;
use proptest::prelude::*;
use speculators::backend::Backend;
use speculators::backend::verify::Leniency;
use speculators::backend::verify::record::{INVALID, LIMIT, LOSSY, STOPPED};
use speculators::sampling::{Parameters, Purpose, uniform};
use std::collections::BTreeMap;
use verification::{
    BLOCK, Call, DEFAULT, DISTINCT, FOLLOW, Ids, PLAIN, REJECTION, RELAXED, Request, SYNTHETIC,
    THRESHOLD, TYPICAL, almost_one, backend_with, block_law, decide, decide_counted, law,
    round_law, row_law, tree_law,
};

/// Residuals of residuals are rounded to 2^-62, all else is exact but for the steps of 2^-53 in which
/// laws are measured.
const EXACT: f64 = 1e-11;

fn backend() -> &'static dyn Backend {
    backend_with(1)
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

/// What a tree's drafts are drawn from, and how they are verified.
#[derive(Clone, Debug)]
struct World {
    parents: Vec<i32>,
    vocabulary: usize,
    target: Parameters,
    drafter: Parameters,
    /// Tokens that the drafter knows, if not all.
    ids: Ids,
    rule: i32,
}

/// What measures the law of a round.
type RoundLaw = fn(&dyn Backend, &Call, &Request) -> Vec<(Vec<i32>, f64)>;

const TARGET: u64 = 1;
const DRAFTER: u64 = 2;

impl World {
    fn q(&self, text: &[i32]) -> Vec<f64> {
        let (logits, ids) = self.draft_row(text);
        let mut q = vec![0.0; self.vocabulary];
        for (id, probability) in ids.iter().zip(row_law(backend(), &logits, self.drafter)) {
            q[*id as usize] = probability;
        }
        q
    }

    fn draft_row(&self, text: &[i32]) -> (Vec<f32>, Vec<i32>) {
        let ids: Vec<i32> = match &self.ids {
            Ids::Shared(ids) => ids.clone(),
            _ => (0..self.vocabulary as i32).collect(),
        };
        (row_after(text, DRAFTER, ids.len()), ids)
    }

    fn p(&self, text: &[i32]) -> Vec<f64> {
        row_law(backend(), &row_after(text, TARGET, self.vocabulary), self.target)
    }

    /// All drafts of the tree with their probabilities: siblings are drawn as the rule says.
    fn drafts(&self) -> Vec<(Vec<i32>, f64)> {
        let mut all = vec![(Vec::new(), 1.0)];
        for node in 1..self.parents.len() {
            all = all
                .into_iter()
                .flat_map(|(tokens, probability): (Vec<i32>, f64)| {
                    let text = self.text(&tokens, self.parents[node] as usize);
                    let mut q = self.q(&text);
                    if self.rule == DISTINCT {
                        for sibling in 1..node {
                            if self.parents[sibling] == self.parents[node] {
                                q[tokens[sibling - 1] as usize] = 0.0;
                            }
                        }
                        let sum: f64 = q.iter().sum();
                        q.iter_mut().for_each(|q| *q /= sum);
                    }
                    let extend = move |(token, q): (usize, f64)| {
                        let tokens = [&tokens[..], &[token as i32]].concat();
                        (q > 0.0).then_some((tokens, probability * q))
                    };
                    q.into_iter().enumerate().filter_map(extend).collect::<Vec<_>>()
                })
                .collect();
        }
        all
    }

    /// The tokens from below the root to a node.
    fn text(&self, tokens: &[i32], mut node: usize) -> Vec<i32> {
        let mut text = Vec::new();
        while node > 0 {
            text.push(tokens[node - 1]);
            node = self.parents[node] as usize;
        }
        text.reverse();
        text
    }

    fn request(&self, tokens: Vec<i32>) -> Request {
        let nodes = 0..self.parents.len();
        let texts: Vec<_> = nodes.map(|node| self.text(&tokens, node)).collect();
        let rows = texts.iter().map(|text| row_after(text, TARGET, self.vocabulary)).collect();
        let draft_rows = texts[..tokens.len()].iter().map(|text| self.draft_row(text).0).collect();
        let mut request = Request::new(rows, tokens, self.target);
        request.parents = self.parents.clone();
        if self.rule != FOLLOW {
            request.draft_logits = draft_rows;
        }
        request.draft_parameters = self.drafter;
        request
    }

    fn call(&self) -> Call {
        Call { ids: self.ids.clone(), ..Call::by(self.rule) }
    }

    /// The law of `len` tokens: those of one round, then the target's own.
    fn text_law(
        &self,
        len: usize,
        round: impl Fn(&dyn Backend, &Call, &Request) -> Vec<(Vec<i32>, f64)>,
    ) -> (BTreeMap<Vec<i32>, f64>, f64) {
        let mut laws = BTreeMap::new();
        let mut mean = 0.0;
        for (tokens, drawn) in self.drafts() {
            for (text, probability) in round(backend(), &self.call(), &self.request(tokens)) {
                mean += drawn * probability * text.len() as f64;
                self.extend(&text, len, drawn * probability, &mut laws);
            }
        }
        (laws, mean)
    }

    fn extend(
        &self,
        text: &[i32],
        len: usize,
        probability: f64,
        laws: &mut BTreeMap<Vec<i32>, f64>,
    ) {
        if text.len() >= len {
            *laws.entry(text[..len].to_vec()).or_default() += probability;
            return;
        }
        for (token, p) in self.p(text).into_iter().enumerate().filter(|(_, p)| *p > 0.0) {
            self.extend(&[text, &[token as i32]].concat(), len, probability * p, laws);
        }
    }

    fn assert_law(&self, laws: &BTreeMap<Vec<i32>, f64>) {
        let mut expected = BTreeMap::new();
        let len = laws.keys().next().unwrap().len();
        self.extend(&[], len, 1.0, &mut expected);
        for (text, p) in &expected {
            let found = laws.get(text).copied().unwrap_or(0.0);
            assert!((found - p).abs() < EXACT, "{text:?}: {found}, expected {p}; {self:?}");
        }
        assert!(laws.keys().all(|text| expected.contains_key(text)), "{self:?}");
    }
}

fn worlds() -> Vec<World> {
    let filtered = Parameters { temperature: 0.8, top_k: 2, top_p: 0.95, min_p: 0.05 };
    let warm = Parameters { temperature: 1.4, ..PLAIN };
    let world = |parents: &[i32], vocabulary| World {
        parents: parents.to_vec(),
        vocabulary,
        target: PLAIN,
        drafter: PLAIN,
        ids: Ids::Identity,
        rule: REJECTION,
    };
    vec![
        world(&[-1, 0, 0, 0], 4),
        World { target: filtered, drafter: warm, ..world(&[-1, 0, 0, 1, 2], 3) },
        World { ids: Ids::Shared(vec![3, 0, 2]), ..world(&[-1, 0, 0, 1], 4) },
        World { target: warm, drafter: filtered, ..world(&[-1, 0, 1, 1], 3) },
    ]
}

#[test]
fn every_lossless_rule_emits_the_targets_distribution_from_trees() {
    for world in worlds().into_iter().take(amount(4, 1)) {
        for rule in [REJECTION, DISTINCT] {
            let mut world = World { rule, ..world.clone() };
            if device::is_simulated() {
                (world.parents, world.vocabulary) = (vec![-1, 0, 0], 2);
            }
            let depth = if world.parents.iter().all(|&parent| parent <= 0) { 1 } else { 2 };
            let (laws, mean) = world.text_law(depth + 1, tree_law);
            world.assert_law(&laws);
            assert!(mean > 1.0);
        }
    }
}

/// Draws siblings from a law as their own numbers say, one after the other.
fn draw_siblings(seed: u64, q: &[f64], count: usize, are_distinct: bool) -> Vec<i32> {
    let mut left = q.to_vec();
    let mut drawn = Vec::new();
    for rank in 0..count {
        let number = uniform(seed, 1, Purpose::Draft, rank as u32) as f64 / 2.0_f64.powi(64);
        let mut share = number * left.iter().sum::<f64>();
        let token = left.iter().position(|q| {
            share -= q;
            share < 0.0
        });
        let token = token.unwrap_or(left.len() - 1);
        drawn.push(token as i32);
        if are_distinct {
            left[token] = 0.0;
        }
    }
    drawn
}

#[test]
fn a_million_seeded_draws_follow_the_targets_table() {
    let backend = backend();
    let (target, drafter) = (row_after(&[], TARGET, 5), row_after(&[], DRAFTER, 5));
    let parameters = Parameters { temperature: 0.7, ..PLAIN };
    let (p, q) = (row_law(backend, &target, parameters), row_law(backend, &drafter, PLAIN));
    let draws = amount(250_000, 1_000);
    for rule in [FOLLOW, REJECTION, DISTINCT, BLOCK] {
        let mut counts = [0_usize; 5];
        for batch in 0..draws / 1000 {
            let request = |index: usize| {
                let seed = (batch * 1000 + index) as u64;
                let siblings = if rule == BLOCK { 1 } else { 3 };
                let drafts = draw_siblings(seed, &q, siblings, rule == DISTINCT);
                let rows = vec![target.clone(); siblings + 1];
                let mut request = Request::new(rows, drafts, parameters);
                if rule != BLOCK {
                    request.parents = vec![-1, 0, 0, 0];
                }
                if rule != FOLLOW {
                    request.draft_logits = vec![drafter.clone(); siblings];
                }
                (request.draft_parameters, request.seed) = (PLAIN, seed);
                request
            };
            let requests: Vec<Request> = (0..1000).map(request).collect();
            for decision in decide(backend, &Call::by(rule), &requests) {
                counts[decision.places[0] as usize] += 1;
            }
        }
        let drawn = counts.iter().sum::<usize>() as f64;
        let chi_square: f64 = (counts.iter().zip(&p))
            .map(|(&count, p)| (count as f64 - p * drawn).powi(2) / (p * drawn))
            .sum();
        // With four degrees of freedom, one of a million tables is further off.
        assert!(chi_square < 33.4, "rule {rule}: {counts:?} of {p:?}, chi-square {chi_square}");
    }
}

#[test]
fn a_second_sibling_raises_acceptance() {
    if device::is_simulated() {
        return;
    }
    let mean = |parents: &[i32], rule| {
        let world = World { parents: parents.to_vec(), rule, ..worlds().remove(0) };
        world.text_law(1, tree_law).1
    };
    let one = mean(&[-1, 0], REJECTION);
    let (independent, distinct) = (mean(&[-1, 0, 0], REJECTION), mean(&[-1, 0, 0], DISTINCT));
    assert!(one < independent && independent < distinct, "{one}, {independent}, {distinct}");
}

#[test]
fn block_verification_emits_the_targets_distribution_and_accepts_no_fewer_drafts() {
    let filtered = Parameters { temperature: 0.9, top_k: 2, ..PLAIN };
    for (drafts, target, drafter) in [(2, PLAIN, PLAIN), (3, filtered, PLAIN), (2, PLAIN, filtered)]
    {
        let parents: Vec<i32> = (-1..drafts).collect();
        let world =
            World { parents, vocabulary: 3, target, drafter, ids: Ids::Identity, rule: BLOCK };
        let chain = |round: RoundLaw| {
            move |backend: &dyn Backend, call: &Call, request: &Request| {
                let request = Request { parents: Vec::new(), ..request.clone() };
                round(backend, call, &request)
            }
        };
        let (laws, mean) = world.text_law(drafts as usize + 1, chain(block_law));
        world.assert_law(&laws);
        let one_by_one = World { rule: REJECTION, ..world }.text_law(1, chain(round_law)).1;
        assert!(mean > one_by_one - EXACT, "{mean} and {one_by_one}");
    }
}

#[test]
fn a_block_of_given_drafts_has_the_targets_distribution() {
    let backend = backend();
    let drafts = vec![2, 0];
    let world = World { rule: BLOCK, vocabulary: 3, ..worlds().remove(0) };
    let rows = (0..=2).map(|len| row_after(&drafts[..len], TARGET, 3)).collect();
    let request = Request::new(rows, drafts, PLAIN);
    let mut laws = BTreeMap::new();
    for (text, probability) in block_law(backend, &Call::by(BLOCK), &request) {
        world.extend(&text, 3, probability, &mut laws);
    }
    world.assert_law(&laws);
}

#[test]
fn a_given_tree_is_rejected_without_a_bias() {
    let backend = backend();
    let world = World { vocabulary: 4, ..worlds().remove(0) };
    let (tokens, parents) = match device::is_simulated() {
        true => (vec![2, 0], vec![-1, 0, 0]),
        false => (vec![2, 0, 1, 3], vec![-1, 0, 0, 2, 2]),
    };
    let world = World { parents: parents.clone(), ..world };
    let mut request = world.request(tokens);
    request.draft_logits.clear();
    for rule in [REJECTION, THRESHOLD, DISTINCT].into_iter().take(amount(3, 2)) {
        let mut laws = BTreeMap::new();
        let outcomes = match rule {
            // One number decides between siblings: as if they were followed.
            THRESHOLD => threshold_law(backend, &request),
            rule => tree_law(backend, &Call::by(rule), &request),
        };
        for (text, probability) in outcomes {
            world.extend(&text, 3, probability, &mut laws);
        }
        world.assert_law(&laws);
    }
}

/// The law of a tree whose siblings share the number of the first.
fn threshold_law(backend: &dyn Backend, request: &Request) -> Vec<(Vec<i32>, f64)> {
    fn at(
        backend: &dyn Backend,
        request: &Request,
        (node, tokens, reached): (usize, &[i32], f64),
        numbers: &[f64],
        outcomes: &mut Vec<(Vec<i32>, f64)>,
    ) {
        let with = |index: usize, number: f64| {
            let mut uniforms = numbers.to_vec();
            uniforms[index] = number;
            let request = Request { uniforms, ..request.clone() };
            decide(backend, &Call::by(THRESHOLD), &[request]).remove(0)
        };
        let children: Vec<usize> = (1..request.parents.len())
            .filter(|&child| request.parents[child] == node as i32)
            .collect();
        let mut left = reached;
        if let Some(first) = children.first() {
            let test = 2 * (first - 1);
            let rank = |number| {
                let path = with(test, number).path;
                let rank = children.iter().position(|&child| path.contains(&(child as i32)));
                rank.unwrap_or(children.len()) as i32
            };
            let mut below = 0.0;
            for (rank, probability) in law(rank) {
                if let Some(&child) = children.get(rank as usize) {
                    let mut numbers = numbers.to_vec();
                    numbers[test] = below + probability / 2.0;
                    let tokens = [tokens, &[request.drafts[child - 1]]].concat();
                    let place = (child, &tokens[..], reached * probability);
                    at(backend, request, place, &numbers, outcomes);
                    left -= reached * probability;
                }
                below += probability;
            }
        }
        let emitted = law(|number| with(2 * node + 1, number).places[tokens.len()]);
        for (token, probability) in emitted {
            outcomes.push(([tokens, &[token]].concat(), left * probability));
        }
    }
    let mut outcomes = Vec::new();
    let numbers = vec![almost_one(); 2 * request.parents.len()];
    at(backend, request, (0, &[], 1.0), &numbers, &mut outcomes);
    outcomes
}

fn logits(len: usize) -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![
        12 => -4.0_f32..4.0,
        2 => (-2_i32..3).prop_map(|value| value as f32),
        1 => Just(f32::NEG_INFINITY),
        1 => Just(f32::NAN),
    ];
    prop::collection::vec(logit, len)
        .prop_filter("a candidate", |row| row.iter().any(|&logit| logit > -10.0))
}

fn parameters() -> impl Strategy<Value = Parameters> {
    let temperature = prop_oneof![1 => Just(0.0_f32), 4 => 0.3_f32..2.0];
    let top_k = prop_oneof![Just(0), 1..6];
    let top_p = prop_oneof![Just(1.0_f32), 0.2_f32..1.0];
    (temperature, top_k, top_p).prop_map(|(temperature, top_k, top_p)| Parameters {
        temperature,
        top_k,
        top_p,
        min_p: 0.0,
    })
}

/// A tree of some nodes with its rows, its drafts, and what they were drawn from.
fn requests(vocabulary: usize) -> impl Strategy<Value = Request> {
    (1_usize..9).prop_flat_map(move |nodes| {
        let parents: Vec<_> =
            (1..nodes).map(|node| (0..node).prop_map(|parent| parent as i32)).collect();
        let rows = prop::collection::vec(logits(vocabulary), nodes);
        let draft_rows = prop::collection::vec(logits(vocabulary), nodes - 1);
        let drafts = prop::collection::vec(-1..vocabulary as i32, nodes - 1);
        let random = (any::<u64>(), 0_i32..100_000, parameters(), parameters());
        (parents, rows, draft_rows, drafts, random).prop_map(
            |(parents, rows, draft_rows, drafts, (seed, position, target, drafter))| {
                let mut request = Request::new(rows, drafts, target);
                request.parents = [vec![-1], parents].concat();
                request.draft_logits = draft_rows;
                request.draft_parameters = drafter;
                (request.seed, request.position) = (seed, position);
                request
            },
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: amount(300, 20), failure_persistence: None, ..<_>::default() })]

    #[test]
    fn a_chain_is_a_tree(
        request in requests(5),
        rule in prop::sample::select(vec![
            DEFAULT, FOLLOW, REJECTION, DISTINCT, TYPICAL, THRESHOLD, RELAXED, SYNTHETIC,
        ]),
    ) {
        let nodes = request.parents.len() as i32;
        let leniency = Leniency { top_n: 2, tolerance: 0.7, epsilon: 0.2, ..Leniency::default() };
        let acceptance = vec![0.6; nodes as usize];
        let call = Call { leniency, acceptance, ..Call::by(rule) };
        let chain = Request { parents: Vec::new(), ..request.clone() };
        let tree = Request { parents: (-1..nodes - 1).collect(), ..request };
        prop_assert_eq!(decide(backend(), &call, &[chain]), decide(backend(), &call, &[tree]));
    }

    #[test]
    fn following_gives_the_text_of_sampling_without_speculation_for_any_tree(
        request in requests(3),
    ) {
        // The row after a text is the same wherever the text stands in the tree.
        let text_of = |mut node: usize| {
            let mut text = Vec::new();
            while node > 0 {
                text.push(request.drafts[node - 1]);
                node = request.parents[node] as usize;
            }
            text.reverse();
            text
        };
        let mut request = request.clone();
        request.draft_logits.clear();
        request.logits = (0..request.parents.len())
            .map(|node| row_after(&text_of(node), request.seed, 3))
            .collect();
        let decision = decide(backend(), &Call::by(FOLLOW), &[request.clone()]).remove(0);
        let mut text = Vec::new();
        for index in 0..=decision.accepted {
            let row = row_after(&text, request.seed, 3);
            let mut alone = Request::new(vec![row], Vec::new(), request.parameters);
            (alone.seed, alone.position) = (request.seed, request.position + index as i32);
            text.push(decide(backend(), &Call::by(FOLLOW), &[alone])[0].places[0]);
        }
        prop_assert_eq!(decision.tokens(), &text[..]);
        // No longer path of the tree is the text.
        let longer = (1..request.parents.len()).any(|node| text_of(node) == text);
        prop_assert!(!longer, "{text:?} is in the tree");
    }

    #[test]
    fn a_tree_decides_alone_as_in_any_batch(
        batch in prop::collection::vec(requests(5), 1..4),
        rule in prop::sample::select(vec![FOLLOW, REJECTION, DISTINCT, TYPICAL, THRESHOLD]),
        threads in 1_usize..3,
    ) {
        // A tree of the root alone has no distribution of drafts.
        let batch: Vec<Request> =
            batch.into_iter().filter(|request| request.parents.len() > 1).collect();
        prop_assume!(!batch.is_empty());
        let together = decide(backend_with(threads), &Call::by(rule), &batch);
        for (request, together) in batch.iter().zip(together) {
            let alone = decide(backend(), &Call::by(rule), std::slice::from_ref(request)).remove(0);
            prop_assert_eq!(alone.tokens(), together.tokens());
            prop_assert_eq!(alone.flags, together.flags);
            let len = alone.path.len();
            prop_assert_eq!(&alone.path[..], &together.path[..len]);
        }
    }

    #[test]
    fn a_draft_is_typical_by_the_definition(
        row in logits(7),
        draft in 0_i32..7,
        temperature in 0.4_f32..2.0,
        (epsilon, alpha) in (0.01_f32..0.6, 0.05_f32..1.0),
    ) {
        let parameters = Parameters { temperature, ..PLAIN };
        let p = row_law(backend(), &row, parameters);
        let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
        let least = f64::from(epsilon).min(f64::from(alpha) * (-entropy).exp());
        let found = p[draft as usize];
        prop_assume!((found / least - 1.0).abs() > 1e-3);
        let log2_alpha = (f64::from(alpha).log2() * 2.0_f64.powi(32)) as i64;
        let leniency = Leniency { epsilon, log2_alpha, ..Leniency::default() };
        let call = Call { leniency, ..Call::by(TYPICAL) };
        let request = Request::new(vec![row, vec![0.0; 7]], vec![draft], parameters);
        let decision = &decide(backend(), &call, &[request])[0];
        prop_assert_eq!(decision.accepted, usize::from(found > least));
        prop_assert_eq!(decision.flags, LOSSY);
    }

    #[test]
    fn a_draft_is_near_the_best_by_the_definition(
        row in logits(7),
        draft in 0_i32..7,
        top_n in 1_i32..5,
        tolerance in prop_oneof![Just(0.0_f32), 0.0_f32..3.0],
        temperature in prop_oneof![Just(0.0_f32), Just(1.0)],
    ) {
        let leniency = Leniency { top_n, tolerance, ..Leniency::default() };
        let call = Call { leniency, ..Call::by(RELAXED) };
        let logit = row[draft as usize];
        let larger = row.iter().filter(|&&other| other > logit).count() as i32;
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let is_near = larger < top_n && logit > f32::NEG_INFINITY && logit >= largest - tolerance;
        let parameters = Parameters { temperature, ..PLAIN };
        let request = Request::new(vec![row, vec![0.0; 7]], vec![draft], parameters);
        prop_assert_eq!(decide(backend(), &call, &[request])[0].accepted, usize::from(is_near));
    }
}

/// A row whose argmax is `token`.
fn row(token: usize) -> Vec<f32> {
    (0..8).map(|place| if place == token { 5.0 } else { 0.0 }).collect()
}

/// A greedy sequence whose text is 1, 2, 3, 4: nodes 2, 4 and 6 are right.
fn greedy() -> Request {
    //          0      1      2      3      4      5      6      7
    let rows = [row(1), row(7), row(2), row(7), row(3), row(7), row(4), row(7)];
    let mut request = Request::new(rows.to_vec(), vec![5, 1, 6, 2, 5, 3, 0], Parameters::GREEDY);
    request.parents = vec![-1, 0, 0, 1, 2, 2, 4, 6];
    request.position = 10;
    request
}

#[test]
fn the_path_of_a_tree_is_recorded() {
    let (decisions, counters) = decide_counted(backend(), &Call::by(DEFAULT), &[greedy()]);
    let decision = &decisions[0];
    assert_eq!((decision.accepted, decision.emitted, decision.flags), (3, 4, 0));
    assert_eq!(decision.tokens(), [1, 2, 3, 4]);
    assert_eq!(decision.path, [0, 2, 4, 6, -1, -1, -1, -1]);
    assert_eq!((decision.next_token, decision.next_position), (4, 14));
    assert_eq!(counters[..7], [1, 7, 4, 1, 1, 1, 0]);
}

#[test]
fn a_stop_token_ends_the_path_and_says_how_many_drafts_it_dropped() {
    for (stop, accepted, emitted, dropped, flags) in [
        (1, 1, 1, 4, STOPPED),
        (2, 2, 2, 2, STOPPED),
        (3, 3, 3, 1, STOPPED),
        (4, 3, 4, 0, STOPPED),
        (5, 3, 4, 0, 0),
    ] {
        let call = Call { stop_tokens: vec![stop], ..Call::by(DEFAULT) };
        let decision = decide(backend(), &call, &[greedy()]).remove(0);
        assert_eq!((decision.accepted, decision.emitted), (accepted, emitted), "stop {stop}");
        assert_eq!((decision.dropped, decision.flags), (dropped, flags), "stop {stop}");
    }
    for (limit, accepted, dropped) in [(1, 1, 4), (2, 2, 2), (3, 3, 1), (4, 3, 0)] {
        let request = Request { limit, ..greedy() };
        let decision = decide(backend(), &Call::by(DEFAULT), &[request]).remove(0);
        assert_eq!((decision.accepted, decision.emitted), (accepted, limit as usize));
        assert_eq!((decision.dropped, decision.flags), (dropped, LIMIT), "limit {limit}");
        assert_eq!(decision.path.iter().filter(|&&node| node >= 0).count(), limit as usize);
    }
}

#[test]
fn of_equal_siblings_the_longest_path_is_taken() {
    let mut request = greedy();
    // Nodes 1 and 2 are both right, and the text goes on below the second alone.
    request.drafts[0] = 1;
    for rule in [DEFAULT, FOLLOW, REJECTION, DISTINCT] {
        let decision = decide(backend(), &Call::by(rule), &[request.clone()]).remove(0);
        assert_eq!(decision.tokens(), [1, 2, 3, 4], "rule {rule}");
    }
    // Both go on equally far: the one that takes the first sibling.
    let rows = vec![row(1), row(2), row(2), row(3), row(3)];
    let mut request = Request::new(rows, vec![1, 1, 2, 2], Parameters::GREEDY);
    request.parents = vec![-1, 0, 0, 2, 1];
    let decision = decide(backend(), &Call::by(DEFAULT), &[request]).remove(0);
    assert_eq!(decision.path[..3], [0, 1, 4]);
}

#[test]
fn a_malformed_tree_makes_its_own_sequence_invalid_and_no_other() {
    let expected = decide(backend(), &Call::by(DEFAULT), &[greedy()]).remove(0);
    for (node, parent) in
        [(1, -1), (1, 1), (3, 3), (3, 4), (7, 8), (2, i32::MAX), (2, i32::MIN), (7, 7)]
    {
        let mut request = greedy();
        request.parents[node] = parent;
        let batch = [greedy(), request, greedy()];
        let decisions = decide(backend(), &Call::by(DEFAULT), &batch);
        assert_eq!((&decisions[0], &decisions[2]), (&expected, &expected));
        assert_eq!((decisions[1].emitted, decisions[1].flags), (0, INVALID), "{node}: {parent}");
        assert!(decisions[1].path.iter().all(|&node| node == -1));
    }
    // The root's own entry says nothing.
    let mut request = greedy();
    request.parents[0] = 99;
    assert_eq!(decide(backend(), &Call::by(DEFAULT), &[request]).remove(0), expected);
}

#[test]
fn rules_for_chains_refuse_trees() {
    use speculators::verify::{Stream, verify, workspace_bytes};
    let none =
        speculators::verify::Column { span: speculators::tensor::Span::new(0, 0), stride: 0 };
    let logits = speculators::tensor::Matrix {
        address: 0,
        dtype: speculators::tensor::Dtype::F32,
        rows: 0,
        columns: 8,
        row_stride: 8,
    };
    let batch = speculators::verify::VerifyBatch {
        parents: Some(none),
        ..speculators::verify::VerifyBatch::new((0, 3), logits, none, none, none)
    };
    let workspace = speculators::tensor::Span::new(0, 0);
    for refused in [
        verify((backend(), Stream::NONE), &batch, (BLOCK, false), workspace),
        workspace_bytes(backend(), &batch, BLOCK).map(|_| ()),
    ] {
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("rule 4 is one for chains"), "{refused}");
    }
}

#[test]
fn drafts_are_accepted_as_often_as_the_host_wants() {
    let call = Call { acceptance: vec![0.75, 0.25, 1.0], ..Call::by(SYNTHETIC) };
    for (parameters, last) in [(PLAIN, None), (Parameters::GREEDY, Some(4))] {
        // Rows say something else than the drafts: that does not matter.
        let rows = vec![row(4); 4];
        let request = Request { position: 3, ..Request::new(rows, vec![0, 1, 2], parameters) };
        let accepted = |numbers: [f64; 3]| {
            let [first, second, third] = numbers;
            let uniforms = vec![first, 0.5, second, 0.5, third, 0.5, 0.0, 0.5];
            let request = Request { uniforms, ..request.clone() };
            decide(backend(), &call, &[request]).remove(0)
        };
        let below = |value: f64| value - 1e-9;
        for (numbers, expected) in [
            ([0.75, 0.0, 0.0], 0),
            ([below(0.75), 0.25, 0.0], 1),
            ([below(0.75), below(0.25), almost_one()], 3),
        ] {
            let decision = accepted(numbers);
            assert_eq!((decision.accepted, decision.flags), (expected, LOSSY), "{numbers:?}");
            if let Some(last) = last {
                assert_eq!(decision.next_token, last);
            }
        }
    }
}

#[test]
fn thresholds_below_one_keep_what_they_let_through() {
    // The case of the literature: a target of (.2, .5, .3), children 0 and 1, and one half.
    let target: Vec<f32> = [0.2_f32, 0.5, 0.3].iter().map(|p| p.ln()).collect();
    let mut request = Request::new(vec![target; 3], vec![0, 1], PLAIN);
    request.parents = vec![-1, 0, 0];
    let leniency = Leniency { threshold_accumulated: 0.5, ..Leniency::default() };
    let call = Call { leniency, ..Call::by(THRESHOLD) };
    let first = law(|number| {
        let uniforms = vec![number, 0.5, 0.5, 0.5, 0.5, 0.5];
        let request = Request { uniforms, ..request.clone() };
        decide(backend(), &call, &[request])[0].places[0]
    });
    let share = |token| first.iter().filter(|one| one.0 == token).map(|one| one.1).sum::<f64>();
    assert!((share(0) - 0.4).abs() < 1e-6 && (share(1) - 0.6).abs() < 1e-6, "{first:?}");
    let single = Leniency { threshold_single: 0.45, ..Leniency::default() };
    let call = Call { leniency: single, ..Call::by(THRESHOLD) };
    let uniforms = vec![almost_one(), 0.5, 0.5, 0.5, 0.5, 0.5];
    let request = Request { uniforms, ..request };
    assert_eq!(decide(backend(), &call, &[request])[0].path[..2], [0, 2], "0.5 stands on its own");
}

#[test]
fn siblings_after_one_that_was_struck_out_are_not_tested_if_they_are_distinct() {
    let uniform = vec![0.0; 4];
    let mut request = Request::new(vec![uniform.clone(); 3], vec![-1, 2], PLAIN);
    request.parents = vec![-1, 0, 0];
    request.draft_logits = vec![uniform; 2];
    request.uniforms = vec![0.0; 6];
    // Two equal laws leave nothing: the second draft passes any test, and p is drawn from.
    let decide = |rule| decide(backend(), &Call::by(rule), &[request.clone()]).remove(0);
    assert_eq!(decide(DISTINCT).accepted, 0);
    assert_eq!(decide(DISTINCT).tokens(), [0]);
}

#[test]
fn numbers_of_a_block_belong_to_its_round() {
    // A draft that is tested in two rounds meets another number each time.
    let flat = vec![0.0_f32; 2];
    let mut outcomes = Vec::new();
    for position in 0..200 {
        let request = |root: i32, drafts: usize| {
            let target: Vec<f32> = [0.4_f32, 0.6].iter().map(|p| p.ln()).collect();
            let mut request = Request::new(vec![target; drafts + 1], vec![0; drafts], PLAIN);
            request.draft_logits = vec![flat.clone(); drafts];
            (request.seed, request.position) = (5, root);
            decide(backend(), &Call::by(BLOCK), &[request]).remove(0).accepted
        };
        outcomes.push((request(position, 1) == 1, request(position - 1, 2) == 2));
    }
    let differs = outcomes.iter().skip(1).filter(|(one, two)| one != two).count();
    assert!(differs > 20, "{differs}");
}
