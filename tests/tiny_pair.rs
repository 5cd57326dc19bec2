//! The trained pair of the examples: whole generations in which the target runs on every draft,
//! held to what an inference engine recorded of the same files.

mod device;
mod host;

use host::draft::{DraftCall, Drafts, Sampling, SamplingColumns, Table, margin};
use host::golden::read_json;
use host::matrix::{Dtype, Matrix};
use host::target::{Position, Target};
use host::verify::{Decisions, Distribution, VerifyCall};
use host::{Context, Model, Session, session_options};
use serde_json::Value;
use speculators::capi::*;
use std::ops::Range;

/// Below this lead of the best logit, an engine in single precision may choose another token.
const NEAR_TIE: f32 = 1e-3;

/// How far an acceptance rate, or the tokens per pass, may lie from the record.
const ALLOWED: f64 = 0.02;

/// The speculator, its target, and the record.
struct Pair {
    context: Context,
    model: Model,
    engine: Engine,
    prompts: Vec<Vec<i32>>,
    reference: Value,
}

impl Pair {
    fn load() -> Self {
        let root = host::files::project("examples/models/tiny-python");
        let context = Context::with_threads(1);
        let model = Model::load(&context, &root.join("eagle3"), Some(&root.join("target")));
        let reference = read_json(&root.join("reference.json"));
        let target = Target::load(&root.join("target"));
        Self {
            context,
            model: model.expect("the speculator"),
            engine: Engine { target, tokens: Vec::new(), positions: Vec::new() },
            prompts: texts(&reference["prompt_tokens"]),
            reference,
        }
    }

    /// A request for each prompt, with a sampling of its own.
    fn requests(&self, wanted: usize, sampling: impl Fn(usize) -> Sampling) -> Vec<Request> {
        let prompts = self.prompts.iter().enumerate();
        let request = |(index, prompt): (usize, &Vec<i32>)| Request {
            engine: self.engine.clone(),
            tokens: prompt.clone(),
            prompt: prompt.len(),
            wanted,
            sampling: sampling(index),
            committed: 0,
            drafts: Drafts::default(),
            accepted: Vec::new(),
        };
        prompts.map(request).collect()
    }
}

fn texts(texts: &Value) -> Vec<Vec<i32>> {
    serde_json::from_value(texts.clone()).expect("texts of token ids")
}

/// The target on one text. What it computed stays as long as texts go on from there.
#[derive(Clone)]
struct Engine {
    target: Target,
    tokens: Vec<i32>,
    positions: Vec<Position>,
}

impl Engine {
    /// What the target computes at all positions of a text.
    fn run(&mut self, text: &[i32]) -> &[Position] {
        let shared = self.tokens.iter().zip(text).take_while(|(old, new)| old == new).count();
        if shared < text.len() {
            self.tokens.truncate(shared);
            self.positions.truncate(shared);
            self.target.rewind(shared);
            self.tokens.extend(&text[shared..]);
            self.positions.extend(text[shared..].iter().map(|&token| self.target.advance(token)));
        }
        &self.positions[..text.len()]
    }
}

/// One text that grows.
struct Request {
    engine: Engine,
    /// All tokens that are decided; the last one is the root.
    tokens: Vec<i32>,
    /// Tokens of the prompt.
    prompt: usize,
    /// Tokens to be emitted.
    wanted: usize,
    sampling: Sampling,
    /// Rows that the drafter has.
    committed: usize,
    /// What was proposed below the root.
    drafts: Drafts,
    /// Drafts accepted in each round that had any.
    accepted: Vec<usize>,
}

impl Request {
    fn is_running(&self) -> bool {
        self.tokens.len() < self.prompt + self.wanted
    }

    /// What was emitted. The last round may have gone past what is wanted.
    fn output(&self) -> &[i32] {
        &self.tokens[self.prompt..][..self.wanted]
    }

    /// The position of the root.
    fn root(&self) -> usize {
        self.tokens.len() - 1
    }

    /// Lets the target run on root and drafts; its logits there.
    fn run_target(&mut self) -> Vec<&[f32]> {
        let root = self.root();
        let text: Vec<i32> = self.tokens.iter().chain(&self.drafts.tokens).copied().collect();
        let positions = &self.engine.run(&text)[root..];
        positions.iter().map(|position| &position.logits[..]).collect()
    }

    /// Takes a decision over; the rows of the target that can be committed now are returned.
    fn accept(&mut self, accepted: usize, emitted: &[i32]) -> Range<usize> {
        if !self.drafts.tokens.is_empty() {
            self.accepted.push(accepted);
        }
        self.tokens.extend(emitted);
        let rows = self.committed..self.root();
        self.committed = rows.end;
        rows
    }
}

/// Requests side by side: in every round all that are not finished yet.
struct Batch<'a> {
    pair: &'a Pair,
    session: Session,
    drafts: usize,
    rule: i32,
    requests: &'a mut [Request],
}

impl<'a> Batch<'a> {
    fn new(pair: &'a Pair, requests: &'a mut [Request], drafts: usize, rule: i32) -> Self {
        let reach = |request: &Request| request.prompt + request.wanted + 2 * (drafts + 1);
        let rows: usize = requests.iter().map(|request| request.prompt.max(drafts + 1)).sum();
        let options = spec_session_options {
            max_sequences: requests.len() as i32,
            max_rows: rows as i32,
            max_drafts: drafts.max(1) as i32,
            max_position: requests.iter().map(reach).max().expect("a request") as i32,
            ..session_options()
        };
        let session = Session::create(&pair.model, &options).expect("a session");
        Self { pair, session, drafts, rule, requests }
    }

    /// Runs until every request has what it wants.
    fn finish(mut self) {
        loop {
            let running = 0..self.requests.len();
            let running: Vec<_> =
                running.filter(|&index| self.requests[index].is_running()).collect();
            if running.is_empty() {
                return;
            }
            let decisions = self.verify(&running);
            let rows = running.iter().enumerate().map(|(row, &index)| {
                let accepted = decisions.field(row, SPEC_DECISION_ACCEPTED) as usize;
                self.requests[index].accept(accepted, decisions.emitted(row))
            });
            let rows: Vec<_> = rows.collect();
            if self.drafts > 0 {
                self.draft(&running, &rows);
            }
        }
    }

    /// Decides on the drafts; the first token after a prompt is decided without any.
    fn verify(&mut self, running: &[usize]) -> Decisions {
        let (mut logits, mut width) = (Vec::new(), 0);
        let mut row_begin = Vec::new();
        for &index in running {
            row_begin.push(logits.len().checked_div(width).unwrap_or(0) as i32);
            for row in self.requests[index].run_target() {
                logits.extend_from_slice(row);
                width = row.len();
            }
        }
        let requests: Vec<&Request> = running.iter().map(|&index| &self.requests[index]).collect();
        let mut chains = Table { elements: Vec::new(), stride: self.drafts };
        for request in &requests {
            let chain = request.drafts.tokens.iter().copied();
            chains.elements.extend(chain.chain(std::iter::repeat(-1)).take(self.drafts));
        }
        let samplings: Vec<Sampling> = requests.iter().map(|request| request.sampling).collect();
        let call = VerifyCall {
            max_drafts: self.drafts as i32,
            rule: self.rule,
            row_begin: Some(row_begin),
            draft: (self.rule == SPEC_RULE_REJECTION).then(|| self.distribution(&requests)),
            ..VerifyCall::new(
                Matrix::new(logits.len() / width, width, &logits),
                chains,
                requests.iter().map(|request| request.drafts.tokens.len() as i32).collect(),
                requests.iter().map(|request| request.root() as i32).collect(),
                &samplings,
            )
        };
        let decisions = call.run(&self.pair.context).expect("a verification");
        assert!((0..running.len()).all(|row| decisions.field(row, SPEC_DECISION_FLAGS) == 0));
        decisions
    }

    /// What the drafts were drawn from; rows of no draft are NaN, as nothing may read them.
    fn distribution(&self, requests: &[&Request]) -> Distribution {
        let (rows, width) = (requests.len() * self.drafts, self.session.draft_vocabulary);
        let mut logits = Matrix::filled(rows, width, Dtype::F32, f32::NAN);
        for (sequence, request) in requests.iter().enumerate() {
            for (step, row) in request.drafts.logits.iter().enumerate() {
                logits.set_row(sequence * self.drafts + step, row);
            }
        }
        Distribution { logits, token_ids: self.pair.model.draft_token_ids(), has_row_ids: false }
    }

    /// Commits these rows of each request and proposes what may follow.
    fn draft(&mut self, running: &[usize], rows: &[Range<usize>]) {
        let requests: Vec<&Request> = running.iter().map(|&index| &self.requests[index]).collect();
        let mut call = DraftCall::of(&[]);
        call.max_drafts = self.drafts as i32;
        call.draft_stride = self.drafts;
        (call.row_begin, call.num_drafts, call.context_begin) = (Some(Vec::new()), None, None);
        call.slot = Some(running.iter().map(|&index| index as i32).collect());
        call.sampling = Some(SamplingColumns::of(requests.iter().map(|request| request.sampling)));
        for (request, rows) in requests.iter().zip(rows) {
            call.row_begin.as_mut().expect("a column").push(call.tokens.len() as i32);
            call.row_count.push(rows.len() as i32);
            call.position.push(rows.end as i32);
            call.next_token.push(request.tokens[rows.end]);
            call.tokens.extend(&request.tokens[rows.clone()]);
        }
        call.features = self.features(&requests, rows);
        let proposed = call.run(&self.session).expect("a drafting call");
        self.session.poll().expect("no fault");
        for (&index, drafts) in running.iter().zip(proposed) {
            assert_eq!(drafts.tokens.len(), self.drafts, "there is room for all drafts");
            self.requests[index].drafts = drafts;
        }
    }

    /// The hidden states of these rows, feature by feature.
    fn features(&self, requests: &[&Request], rows: &[Range<usize>]) -> Vec<Matrix> {
        let features = self.pair.model.features().into_iter().map(|feature| {
            assert_eq!(feature.stage, SPEC_STAGE_LAYER_INPUT);
            let positions = requests
                .iter()
                .zip(rows)
                .flat_map(|(request, rows)| request.engine.positions[rows.clone()].iter());
            let elements: Vec<f32> = positions
                .flat_map(|position| &position.hidden[feature.layer as usize])
                .copied()
                .collect();
            let width = feature.width as usize;
            Matrix::new(elements.len() / width, width, &elements)
        });
        features.collect()
    }
}

/// How many rounds there were, and in how many each of the drafts was accepted.
fn acceptance(requests: &[Request], drafts: usize) -> (usize, Vec<usize>) {
    let rounds: Vec<usize> =
        requests.iter().flat_map(|request| &request.accepted).copied().collect();
    let at_least = |position| rounds.iter().filter(|&&accepted| accepted > position).count();
    (rounds.len(), (0..drafts).map(at_least).collect())
}

/// A text may leave the recorded one only where the target itself hardly prefers a token.
fn assert_follows(request: &mut Request, recorded: &[i32], what: &str) {
    let output = request.output().to_vec();
    let Some(step) = output.iter().zip(recorded).position(|(ours, theirs)| ours != theirs) else {
        return assert_eq!(output.len(), recorded.len(), "{what}");
    };
    let text = request.tokens[..request.prompt + step].to_vec();
    let lead = margin(&request.engine.run(&text).last().expect("a position").logits);
    assert!(
        lead < NEAR_TIE,
        "{what}: token {step} is {}, recorded {}, at a lead of {lead}",
        output[step],
        recorded[step]
    );
    println!("{what}: leaves the record at token {step}, where the lead is {lead}");
}

/// Generates as the recording engine did: a round counts whole, what it accepts past the end of
/// the output too.
fn assert_generates_as_recorded(drafts: usize) {
    let pair = Pair::load();
    let recorded = texts(&pair.reference["output_tokens"]);
    let mut requests = pair.requests(recorded[0].len(), |_| Sampling::default());
    Batch::new(&pair, &mut requests, drafts, SPEC_RULE_DEFAULT).finish();
    for (index, (request, recorded)) in requests.iter_mut().zip(&recorded).enumerate() {
        assert_follows(request, recorded, &format!("K={drafts}, prompt {index}"));
    }
    let (rounds, accepted) = acceptance(&requests, drafts);
    println!("K={drafts}: {rounds} rounds, accepted {accepted:?}");
    let record = &pair.reference["speculators"]["eagle3"][format!("K{drafts}")];
    let number = |value: &Value| value.as_f64().expect("a number");
    let rates = record["acceptance_rate_per_position"].as_array().expect("rates");
    assert_eq!(rates.len(), drafts);
    for (position, (&accepted, recorded)) in accepted.iter().zip(rates).enumerate() {
        let (rate, recorded) = (accepted as f64 / rounds as f64, number(recorded));
        assert!(
            (rate - recorded).abs() <= ALLOWED,
            "K={drafts}: draft {position} is accepted at {rate:.4}, recorded {recorded}"
        );
    }
    let tokens = 1.0 + accepted.iter().sum::<usize>() as f64 / rounds as f64;
    let recorded = number(&record["tokens_per_target_pass"]);
    assert!(
        (tokens - recorded).abs() <= ALLOWED,
        "K={drafts}: {tokens:.3} tokens per pass, recorded {recorded}"
    );
}

#[test]
fn greedy_text_and_acceptance_are_the_recorded_ones_with_one_draft() {
    assert_generates_as_recorded(1);
}

#[test]
fn greedy_text_and_acceptance_are_the_recorded_ones_with_three_drafts() {
    assert_generates_as_recorded(3);
}

#[test]
fn greedy_text_and_acceptance_are_the_recorded_ones_with_five_drafts() {
    assert_generates_as_recorded(5);
}

/// The tokens of a sampled text.
const SAMPLED: usize = 40;

fn sampling(index: usize) -> Sampling {
    Sampling { temperature: 0.8, seed: 1000 + index as u64, ..Sampling::default() }
}

fn generate(pair: &Pair, mut requests: Vec<Request>, drafts: usize, rule: i32) -> Vec<Request> {
    Batch::new(pair, &mut requests, drafts, rule).finish();
    requests
}

fn outputs(requests: &[Request]) -> Vec<Vec<i32>> {
    requests.iter().map(|request| request.output().to_vec()).collect()
}

#[test]
fn following_drafts_leaves_a_sampled_text_as_it_is_without_them() {
    let pair = Pair::load();
    let requests = || pair.requests(SAMPLED, sampling);
    let plain = generate(&pair, requests(), 0, SPEC_RULE_FOLLOW);
    let followed = generate(&pair, requests(), 3, SPEC_RULE_FOLLOW);
    assert_eq!(outputs(&followed), outputs(&plain));
    let (rounds, accepted) = acceptance(&followed, 3);
    assert!(accepted[0] > rounds / 4, "accepted {accepted:?} in {rounds} rounds");
    let greedy = texts(&pair.reference["output_tokens"]);
    let differ =
        outputs(&plain).iter().zip(&greedy).all(|(text, greedy)| !greedy.starts_with(text));
    assert!(differ, "the texts are sampled");
}

#[test]
fn rejection_with_the_drafters_law_depends_on_the_seed_alone() {
    let pair = Pair::load();
    let requests = || pair.requests(SAMPLED, sampling);
    let rejecting = |requests| generate(&pair, requests, 3, SPEC_RULE_REJECTION);
    let first = rejecting(requests());
    let text = outputs(&first);
    assert_eq!(outputs(&rejecting(requests())), text, "the same requests again");

    // Other neighbours, in another order, in other slots.
    let mut part: Vec<Request> = requests().into_iter().step_by(2).collect();
    part.reverse();
    let mut part = outputs(&rejecting(part));
    part.reverse();
    assert_eq!(part, text.iter().step_by(2).cloned().collect::<Vec<_>>(), "every second request");
    let alone = requests().split_off(9);
    assert_eq!(outputs(&rejecting(alone)), text[9..], "one request alone");

    let plain = generate(&pair, requests(), 0, SPEC_RULE_FOLLOW);
    let differs = outputs(&plain).iter().zip(&text).all(|(plain, text)| plain != text);
    assert!(differs, "a draft that passes its test stands in the place of the token drawn without");
    let reseeded = |index: usize| Sampling { seed: sampling(index).seed + 1, ..sampling(index) };
    let other = rejecting(pair.requests(SAMPLED, reseeded));
    assert!(outputs(&other).iter().zip(&text).all(|(other, text)| other != text), "another seed");
}

/// A draft passes with probability min(1, p / q) where the drafter's law is known; without it,
/// only by being the token that the target draws.
#[test]
fn the_drafters_law_gets_more_drafts_accepted() {
    let pair = Pair::load();
    let shares = [SPEC_RULE_FOLLOW, SPEC_RULE_REJECTION].map(|rule| {
        let requests = generate(&pair, pair.requests(SAMPLED, sampling), 3, rule);
        let (rounds, accepted) = acceptance(&requests, 3);
        println!("rule {rule}: {rounds} rounds, accepted {accepted:?}");
        accepted[0] as f64 / rounds as f64
    });
    assert!(shares[1] > shares[0] + 0.05, "accepted first drafts: {shares:?}");
}
