//! Drafting and whole generations against what other implementations computed for the same files.

mod device;
mod host;

use host::draft::{DraftCall, Drafts, Place, Sampling, Table, Text, Turn, margin};
use host::golden::{self, Case, Generation, Proposal, Record, Run, Tensors};
use host::matrix::{Dtype, Matrix};
use host::random::Random;
use host::target::{Position, Target};
use host::verify::{Decisions, VerifyCall};
use host::{Context, Model, Session, session_options};
use speculators::capi::*;
use std::path::Path;

/// Below this lead of the best logit, another order of summation may choose another token.
const NEAR_TIE: f32 = 1e-3;

/// A prompt of a target with everything that the target computes for it.
struct Script {
    text: Text,
    logits: Vec<Vec<f32>>,
}

/// A case that the library says it can load, ready to draft.
struct Stage {
    case: Case,
    context: Context,
    model: Model,
    record: Record,
    /// The scripts of the record's prompts, by name.
    scripts: Vec<(String, Script)>,
}

impl Stage {
    fn new(case: Case) -> Self {
        let context = Context::with_threads(1);
        let model =
            case.load(&context).unwrap_or_else(|failure| panic!("{}: {failure:?}", case.name));
        let record = case.record();
        let prompts = record.runs.iter().flat_map(|run| &run.generations);
        let mut names: Vec<&str> = prompts.map(|generation| generation.prompt.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let most = record.runs.iter().map(|run| run.drafts).max().expect("a run");
        let script = |&name: &&str| (name.to_owned(), script(&case.target, name, &model, most));
        let scripts = names.iter().map(script).collect();
        Self { case, context, model, record, scripts }
    }

    fn script(&self, generation: &Generation) -> &Script {
        let found = self.scripts.iter().find(|(name, _)| *name == generation.prompt);
        &found.expect("a script for every prompt").1
    }

    fn longest(&self) -> usize {
        self.scripts.iter().map(|(_, script)| script.text.tokens.len()).max().expect("a script")
    }

    fn session(&self, options: spec_session_options) -> Session {
        Session::create(&self.model, &options).expect("a session")
    }
}

/// The recorded text, continued greedily as far as the round after the one that passes its end can
/// reach; recorded rows where there are any, our own elsewhere.
fn script(target: &Path, prompt: &str, model: &Model, drafts: usize) -> Script {
    let recorded = Tensors::read(&target.join("golden/activations.safetensors"));
    let tokens = recorded.get(&format!("{prompt}.tokens")).expect("the prompt's tokens");
    let mut tokens: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
    let length = tokens.len() + 2 * (drafts + 1);
    let mut engine = Target::load(target);
    let mut positions: Vec<Position> = Vec::new();
    while positions.len() < length {
        positions.push(engine.advance(tokens[positions.len()]));
        if positions.len() == tokens.len() {
            tokens.push(argmax(&positions.last().expect("a position").logits));
        }
    }
    let features = model.features().into_iter().map(|feature| {
        let hidden = |position: &Position| match feature.stage {
            SPEC_STAGE_LAYER_INPUT => position.hidden[feature.layer as usize].clone(),
            SPEC_STAGE_FINAL_NORM => position.final_norm.clone(),
            stage => panic!("unknown stage {stage}"),
        };
        let computed: Vec<f32> = positions.iter().flat_map(hidden).collect();
        let mut matrix = Matrix::new(length, feature.width as usize, &computed);
        let name = match feature.stage {
            SPEC_STAGE_FINAL_NORM => format!("{prompt}.final_norm"),
            _ => format!("{prompt}.hidden.{}", feature.layer),
        };
        if let Some(recorded) = recorded.matrix(&name) {
            (0..recorded.rows).for_each(|row| matrix.set_row(row, &recorded.row(row)));
        }
        matrix
    });
    let features = features.collect();
    let logits = positions.into_iter().map(|position| position.logits).collect();
    Script { text: Text { tokens, features }, logits }
}

fn argmax(row: &[f32]) -> i32 {
    let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter().position(|&element| element == best).expect("a largest element") as i32
}

/// How much of the reference data was compared.
#[derive(Clone, Copy, Debug, Default)]
struct Coverage {
    tokens: usize,
    compared: usize,
    logit_rows: usize,
}

impl Coverage {
    fn add(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.compared += other.compared;
        self.logit_rows += other.logit_rows;
    }

    /// Compares one proposal with its record: tokens up to the first near-tie that was decided
    /// otherwise, and the logits of the steps that had the same input.
    fn compare(&mut self, what: &str, drafts: &Drafts, proposal: &Proposal, tensors: &Tensors) {
        let recorded = proposal.key.as_ref().map(|key| Recorded::of(tensors, key, drafts));
        assert_eq!(drafts.tokens.len(), proposal.tokens.len(), "{what}");
        self.tokens += proposal.tokens.len();
        for (step, (&token, &expected)) in drafts.tokens.iter().zip(&proposal.tokens).enumerate() {
            let logits = &drafts.logits[step];
            if let Some(recorded) = &recorded {
                let what = format!("{what}, step {step}");
                assert_close(&what, logits, &recorded.logits[step]);
                if let Some(confidence) = &recorded.confidence {
                    let confidence = &confidence[step..=step];
                    assert_close(&what, &drafts.confidence[step..=step], confidence);
                }
                self.logit_rows += 1;
            }
            let margin =
                recorded.as_ref().map_or_else(|| margin(logits), |all| margin(&all.logits[step]));
            if margin > NEAR_TIE {
                assert_eq!(token, expected, "{what}, step {step}, margin {margin}");
                self.compared += 1;
            } else if token != expected {
                return;
            }
        }
    }

    fn assert_enough(&self, what: &str) {
        assert!(self.tokens > 0, "{what}: nothing was compared");
        let share = self.compared as f64 / self.tokens as f64;
        assert!(share >= 0.95, "{what}: only {share:.3} of the tokens could be compared");
    }
}

/// What is recorded of a proposal, with the logits in the order of our columns.
struct Recorded {
    logits: Vec<Vec<f32>>,
    confidence: Option<Vec<f32>>,
}

impl Recorded {
    fn of(tensors: &Tensors, key: &str, drafts: &Drafts) -> Self {
        let get = |name: &str| tensors.matrix(&format!("{key}.{name}"));
        let logits = match (get("candidate_ids"), get("candidate_scores")) {
            (Some(ids), Some(scores)) => {
                let rows = drafts.candidates.iter().enumerate();
                let row = |(row, ours): (usize, &Vec<i32>)| {
                    let (ids, scores) = (ids.row(row), scores.row(row));
                    let score = |&ours: &i32| {
                        let place = ids.iter().position(|&id| id as i32 == ours);
                        scores[place.unwrap_or_else(|| panic!("{key}: no candidate {ours}"))]
                    };
                    ours.iter().map(score).collect()
                };
                rows.map(row).collect()
            }
            _ => {
                let all = get("draft_logits").expect("the recorded logits");
                (0..all.rows).map(|row| all.row(row)).collect()
            }
        };
        let confidence = tensors.get(&format!("{key}.confidence")).map(<[f32]>::to_vec);
        Self { logits, confidence }
    }
}

fn assert_close(what: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        let allowed = 1e-4 + 1e-4 * theirs.abs();
        assert!(
            (ours - theirs).abs() <= allowed,
            "{what}, element {index}: {ours}, recorded {theirs}"
        );
    }
}

/// Runs a comparison of each supported case and sees to it that every one of them counts.
fn for_each_case(compare: impl Fn(&Stage) -> Coverage) -> Coverage {
    let mut all = Coverage::default();
    for case in golden::supported_cases().into_iter().chain(golden::other_semantics()) {
        let stage = Stage::new(case);
        let coverage = compare(&stage);
        assert!(coverage.compared > 0, "{}: nothing was compared", stage.case.name);
        println!("{}: {coverage:?}", stage.case.name);
        all.add(coverage);
    }
    all.assert_enough("all cases");
    all
}

/// So many of a run's generations, those with the shortest prompts.
fn shortest_of(run: &Run, generations: usize) -> Run {
    let mut part = run.clone();
    part.generations.sort_by_key(|generation| generation.prompt_len);
    part.generations.truncate(generations);
    part
}

/// The run with the most drafts in a round.
fn longest_run(stage: &Stage) -> &Run {
    stage.record.runs.iter().max_by_key(|run| run.drafts).expect("a run")
}

/// Pages of a pool, handed out in random order.
struct Pages {
    free: Vec<i32>,
    page_size: usize,
}

impl Pages {
    fn new(count: i32, page_size: usize, random: &mut Random) -> Self {
        let mut free: Vec<i32> = (0..count).collect();
        random.shuffle(&mut free);
        Self { free, page_size }
    }

    /// Makes a table reach `positions`.
    fn extend(&mut self, table: &mut Vec<i32>, positions: usize) {
        while table.len() * self.page_size < positions {
            table.push(self.free.pop().expect("a free page"));
        }
    }
}

/// Takes the prompts of a run through their rounds side by side: the prompt first, then only the
/// rows that each round accepted.
fn follow_rounds(stage: &Stage, run: &Run) -> Coverage {
    const PAGE_SIZE: usize = 8;
    let sequences = run.generations.len();
    let reach = stage.longest() + run.drafts;
    let max_pages = (sequences * reach.div_ceil(PAGE_SIZE) + 3) as i32;
    let session = stage.session(spec_session_options {
        max_sequences: sequences as i32,
        max_rows: (sequences * stage.longest()) as i32,
        max_drafts: run.drafts as i32,
        max_position: reach as i32,
        page_size: PAGE_SIZE as i32,
        max_pages,
        ..session_options()
    });
    let mut pages = Pages::new(max_pages, PAGE_SIZE, &mut Random::new(run.drafts as u64));
    let mut tables = vec![Vec::new(); sequences];
    let mut coverage = Coverage::default();
    let rounds = run.generations.iter().map(|generation| generation.trace.len()).max().unwrap_or(0);
    for round in 0..rounds {
        let mut turns = Vec::new();
        let mut proposals = Vec::new();
        for (generation, table) in run.generations.iter().zip(&mut tables) {
            let Some(proposal) = generation.trace.get(round) else { continue };
            let committed = round.checked_sub(1).map_or(0, |last| generation.trace[last].known - 1);
            pages.extend(table, proposal.known - 1 + run.drafts);
            let text = &stage.script(generation).text;
            let rows = committed..proposal.known - 1;
            turns.push(Turn::new(text, rows, run.drafts as i32, Place::Pages(table)));
            proposals.push((generation, proposal));
        }
        let drafts = DraftCall::of(&turns).run(&session).expect("a round");
        for ((generation, proposal), drafts) in proposals.into_iter().zip(drafts) {
            let what = name(stage, run, generation, proposal);
            coverage.compare(&what, &drafts, proposal, &stage.record.tensors);
        }
    }
    session.poll().expect("no fault");
    coverage
}

fn name(stage: &Stage, run: &Run, generation: &Generation, proposal: &Proposal) -> String {
    format!("{} K={} {} n={}", stage.case.name, run.drafts, generation.prompt, proposal.known)
}

#[test]
fn drafts_equal_the_reference_round_by_round() {
    let coverage = for_each_case(|stage| {
        let mut coverage = Coverage::default();
        for run in &stage.record.runs {
            let mut run = shortest_of(run, device::amount(usize::MAX, 3));
            for generation in &mut run.generations {
                generation.trace.truncate(device::amount(usize::MAX, 5));
            }
            coverage.add(follow_rounds(stage, &run));
        }
        coverage
    });
    assert!(coverage.logit_rows > 0, "no recorded logits were compared");
}

/// A short form of the test above.
#[test]
fn the_first_drafts_of_one_prompt_equal_the_reference() {
    for_each_case(|stage| {
        let mut run = shortest_of(longest_run(stage), 1);
        run.generations[0].trace.truncate(2);
        follow_rounds(stage, &run)
    });
}

/// Commits the whole text anew before each proposal, in chunks of random sizes, over whatever the
/// proposal before left in the pages.
fn commit_anew(stage: &Stage, run: &Run) -> Coverage {
    let mut random = Random::new(7);
    let session = stage.session(spec_session_options {
        max_sequences: 1,
        max_rows: 50,
        max_drafts: run.drafts as i32,
        max_position: (stage.longest() + run.drafts) as i32,
        ..session_options()
    });
    let mut coverage = Coverage::default();
    for generation in &run.generations {
        let text = &stage.script(generation).text;
        for proposal in &generation.trace {
            let mut committed = 0;
            let drafts = loop {
                let left = proposal.known - 1 - committed;
                let rows = committed..committed + (1 + random.below(50)).min(left);
                committed = rows.end;
                let drafts = if rows.len() == left { run.drafts as i32 } else { 0 };
                let turn = Turn::new(text, rows, drafts, Place::Slot(0));
                let mut proposed = DraftCall::of(&[turn]).run(&session).expect("a commit");
                if drafts > 0 {
                    break proposed.remove(0);
                }
            };
            let what = name(stage, run, generation, proposal);
            coverage.compare(&what, &drafts, proposal, &stage.record.tensors);
        }
    }
    session.poll().expect("no fault");
    coverage
}

#[test]
fn drafts_equal_the_reference_after_a_commit_in_chunks() {
    let coverage = for_each_case(|stage| {
        let mut run = shortest_of(longest_run(stage), device::amount(usize::MAX, 2));
        for generation in &mut run.generations {
            // Rounds from all of the text, and none twice.
            let step = device::amount(1, generation.trace.len().div_ceil(4));
            generation.trace = generation.trace.iter().step_by(step).cloned().collect();
        }
        commit_anew(stage, &run)
    });
    assert!(coverage.logit_rows > 0, "no recorded logits were compared");
}

#[test]
fn drafts_are_compared_after_prefill_and_after_no_some_and_full_acceptance() {
    if !device::is_cpu_or_skipped("this looks at the reference data alone") {
        return;
    }
    let mut seen = std::collections::BTreeSet::new();
    for case in golden::supported_cases() {
        let record = case.record();
        let generations = record.runs.iter().flat_map(|run| &run.generations);
        let proposals = generations.flat_map(|generation| &generation.trace);
        let with_logits = proposals.filter(|proposal| proposal.key.is_some());
        seen.extend(with_logits.filter_map(|proposal| proposal.moment.clone()));
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["all", "none", "prefill", "some"]);
}

/// The loop of a host for all prompts of a run: verify, then draft from the decision records
/// where they lie.
struct Loop<'a> {
    stage: &'a Stage,
    run: &'a Run,
    session: Session,
    scripts: Vec<&'a Script>,
    outputs: Vec<Vec<i32>>,
    rounds: Vec<u64>,
    /// Accepted drafts per position, of the text that the record counts.
    accepted: Vec<Vec<u64>>,
    proposed: Vec<Drafts>,
    positions: Vec<i32>,
    /// Whether a near-tie was decided otherwise than in the record.
    diverged: Vec<bool>,
}

impl<'a> Loop<'a> {
    fn new(stage: &'a Stage, run: &'a Run) -> Self {
        let sequences = run.generations.len();
        let session = stage.session(spec_session_options {
            max_sequences: sequences as i32,
            max_rows: (sequences * stage.longest()) as i32,
            max_drafts: run.drafts as i32,
            max_position: (stage.longest() + run.drafts) as i32,
            ..session_options()
        });
        Self {
            stage,
            run,
            session,
            scripts: run.generations.iter().map(|generation| stage.script(generation)).collect(),
            outputs: Vec::new(),
            rounds: vec![0; sequences],
            accepted: vec![vec![0; run.drafts]; sequences],
            proposed: Vec::new(),
            positions: Vec::new(),
            diverged: vec![false; sequences],
        }
    }

    /// Commits the prompts and drafts below the first token that the target chose.
    fn prefill(&mut self) {
        let turn = |(slot, generation): (usize, &Generation)| {
            let rows = 0..generation.prompt_len;
            let text = &self.scripts[slot].text;
            Turn::new(text, rows, self.run.drafts as i32, Place::Slot(slot as i32))
        };
        let turns: Vec<Turn<'_>> = self.run.generations.iter().enumerate().map(turn).collect();
        self.proposed = DraftCall::of(&turns).run(&self.session).expect("the prefill");
        self.positions = turns.iter().map(|turn| turn.rows.end as i32).collect();
        self.outputs = turns.iter().map(|turn| vec![turn.text.tokens[turn.rows.end]]).collect();
    }

    fn is_running(&self, sequence: usize) -> bool {
        self.outputs[sequence].len() < self.run.generations[sequence].output.len()
    }

    /// The target's logits for root and drafts. Rows after a rejected draft are never looked at
    /// by a greedy decision, so those of the true text stand for them.
    fn logits(&self) -> Matrix {
        let width = self.scripts[0].logits[0].len();
        let rows = self.scripts.iter().zip(&self.positions).flat_map(|(script, &position)| {
            (0..=self.run.drafts).flat_map(move |step| &script.logits[position as usize + step])
        });
        let elements: Vec<f32> = rows.copied().collect();
        Matrix::new(elements.len() / width, width, &elements)
    }

    fn verify(&self) -> Decisions {
        let running =
            |sequence| if self.is_running(sequence) { self.run.drafts as i32 } else { -1 };
        let num_drafts: Vec<i32> = (0..self.outputs.len()).map(running).collect();
        let chains: Vec<&[i32]> = self.proposed.iter().map(|drafts| &drafts.tokens[..]).collect();
        let samplings = vec![Sampling::default(); num_drafts.len()];
        let drafts = Table::ragged(&chains);
        VerifyCall::new(self.logits(), drafts, num_drafts, self.positions.clone(), &samplings)
            .run(&self.stage.context)
            .expect("a verification")
    }

    /// One round of all sequences that still run.
    fn round(&mut self) {
        self.note_divergence();
        let decisions = self.verify();
        let mut drafted = 0;
        for sequence in 0..self.outputs.len() {
            let emitted = decisions.emitted(sequence);
            if !self.is_running(sequence) {
                assert!(emitted.is_empty(), "a finished sequence emitted {emitted:?}");
                continue;
            }
            drafted += 1;
            self.rounds[sequence] += 1;
            let accepted = decisions.field(sequence, SPEC_DECISION_ACCEPTED) as usize;
            let left = self.run.generations[sequence].output.len() - self.outputs[sequence].len();
            let counted = if self.stage.record.counts_past_the_end { accepted } else { left };
            for index in 0..accepted.min(counted) {
                self.accepted[sequence][index] += 1;
            }
            self.outputs[sequence].extend(emitted);
        }
        assert_eq!(decisions.counters[0], drafted, "the rounds counted");
        assert_eq!(decisions.counters[1], drafted * self.run.drafts as u64, "the drafts counted");
        self.draft(&decisions);
    }

    /// Commits what the decisions accepted and drafts on: the records are read where they lie.
    fn draft(&mut self, decisions: &Decisions) {
        let rows = self.step_rows();
        let mut call = DraftCall::of(&[]);
        call.max_drafts = self.run.drafts as i32;
        call.draft_stride = self.run.drafts;
        (call.row_begin, call.num_drafts, call.context_begin) = (None, None, None);
        call.sampling = None;
        (call.tokens, call.features) = (rows.tokens, rows.features);
        call.position = vec![0; self.outputs.len()];
        let mut prepared = call.prepare(self.session.outputs);
        prepared.args.position = decisions.column(SPEC_DECISION_NEXT_POSITION).as_ptr();
        prepared.args.row_count = decisions.column(SPEC_DECISION_EMITTED).as_ptr();
        prepared.args.next_token = decisions.column(SPEC_DECISION_NEXT_TOKEN).as_ptr();
        prepared.args.row_index = decisions.path().as_ptr();
        prepared.args.row_index_stride = decisions.stride as i32;
        prepared.args.decision_stride = decisions.stride as i32;
        self.session.draft(&prepared.args).expect("a drafting round");
        let proposed = prepared.drafts();
        for (sequence, drafts) in proposed.into_iter().enumerate() {
            if drafts.tokens.is_empty() {
                continue;
            }
            self.positions[sequence] = decisions.field(sequence, SPEC_DECISION_NEXT_POSITION);
            self.proposed[sequence] = drafts;
        }
    }

    /// What the target saw in the round: root and drafts. Hidden states of drafts that the text
    /// does not go on with are NaN, as nothing may read them.
    fn step_rows(&self) -> Text {
        let step = 1 + self.run.drafts;
        let widths = self.stage.model.widths();
        let count = self.outputs.len() * step;
        let nothing = |&width: &usize| Matrix::filled(count, width, Dtype::F32, f32::NAN);
        let mut features: Vec<Matrix> = widths.iter().map(nothing).collect();
        let mut tokens = Vec::new();
        for (sequence, script) in self.scripts.iter().enumerate() {
            let position = self.positions[sequence] as usize;
            let drafts = &self.proposed[sequence].tokens;
            tokens.push(script.text.tokens[position]);
            tokens.extend(drafts);
            let follows = drafts.iter().zip(&script.text.tokens[position + 1..]);
            let kept = follows.take_while(|(draft, token)| draft == token).count();
            for row in 0..=kept {
                for (matrix, feature) in features.iter_mut().zip(&script.text.features) {
                    matrix.set_row(sequence * step + row, &feature.row(position + row));
                }
            }
        }
        Text { tokens, features }
    }

    fn note_divergence(&mut self) {
        for (sequence, generation) in self.run.generations.iter().enumerate() {
            let known = self.positions[sequence] as usize + 1;
            let proposal = generation.trace.iter().find(|proposal| proposal.known == known);
            let drafts = &self.proposed[sequence];
            let Some(proposal) = proposal else { continue };
            let pairs = drafts.tokens.iter().zip(&proposal.tokens);
            let Some(step) = pairs.into_iter().position(|(ours, theirs)| ours != theirs) else {
                continue;
            };
            let margin = margin(&drafts.logits[step]);
            assert!(margin <= NEAR_TIE, "{}: margin {margin}", generation.prompt);
            self.diverged[sequence] = true;
        }
    }

    /// Runs to the end; the outputs are the target's own, and as many drafts were accepted at each
    /// position as recorded.
    fn finish(mut self) -> Coverage {
        self.prefill();
        while (0..self.outputs.len()).any(|sequence| self.is_running(sequence)) {
            self.round();
        }
        let mut coverage = Coverage::default();
        for (sequence, generation) in self.run.generations.iter().enumerate() {
            let what =
                format!("{} K={} {}", self.stage.case.name, self.run.drafts, generation.prompt);
            let output = &self.outputs[sequence][..generation.output.len()];
            assert_eq!(output, generation.output, "{what}");
            coverage.tokens += generation.output.len();
            if self.diverged[sequence] {
                continue;
            }
            assert_eq!(self.rounds[sequence], generation.rounds, "{what}: rounds");
            assert_eq!(
                self.accepted[sequence], generation.accepted_per_position,
                "{what}: accepted"
            );
            coverage.compared += generation.output.len();
        }
        coverage
    }
}

#[test]
fn whole_generations_equal_the_target_with_the_recorded_acceptance() {
    for_each_case(|stage| {
        if device::is_shortened() {
            return Loop::new(stage, &shortest_of(longest_run(stage), 1)).finish();
        }
        let mut coverage = Coverage::default();
        let runs = stage.record.runs.iter();
        runs.for_each(|run| coverage.add(Loop::new(stage, run).finish()));
        coverage
    });
}

/// The engine of these tests is itself held to the recorded activations.
#[test]
fn the_target_of_the_tests_computes_the_recorded_activations() {
    if !device::is_cpu_or_skipped("the target is always on the CPU") {
        return;
    }
    let mut targets: Vec<_> =
        golden::supported_cases().into_iter().map(|case| case.target).collect();
    targets.sort();
    targets.dedup();
    for directory in targets {
        let recorded = Tensors::read(&directory.join("golden/activations.safetensors"));
        let mut engine = Target::load(&directory);
        let mut compared = 0;
        let logits = recorded.matrix("p1.logits").expect("the logits of the second prompt");
        for (row, &token) in recorded.get("p1.tokens").expect("tokens").iter().enumerate() {
            let position = engine.advance(token as i32);
            assert_close(&format!("row {row}"), &position.logits, &logits.row(row));
            for (depth, hidden) in position.hidden.iter().enumerate() {
                let expected = recorded.matrix(&format!("p1.hidden.{depth}"));
                let expected = expected.expect("a hidden state").row(row);
                assert_close(&format!("row {row}, depth {depth}"), hidden, &expected);
                compared += 1;
            }
        }
        assert!(compared > 64, "{compared} hidden states compared");
    }
}
