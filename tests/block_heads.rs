//! What is particular to the heads that let the tokens of a block depend on each other, shown on the
//! reference checkpoints with random text.

mod device;
mod host;

use host::draft::{DraftCall, Drafts, Place, Sampling, Table, Text, Turn};
use host::golden::{self, Case, Tensors};
use host::matrix::Matrix;
use host::random::Random;
use host::verify::{Decisions, Distribution, VerifyCall};
use host::{Context, Model, Session, session_options};
use speculators::capi::*;

const ROWS: usize = 12;

/// The case with this name, if the device drafts with its kind.
fn case(name: &str) -> Option<Case> {
    golden::supported_cases().into_iter().find(|case| case.name == format!("speculators/{name}"))
}

struct World {
    context: Context,
    model: Model,
    session: Session,
    text: Text,
    drafts: i32,
}

impl World {
    fn of(case: &Case) -> Self {
        Self::with_sequences(case, 2)
    }

    fn with_sequences(case: &Case, sequences: usize) -> Self {
        let context = Context::with_threads(1);
        let model = case.load(&context).expect("a model");
        let info = model.info();
        let options = spec_session_options {
            max_sequences: sequences as i32,
            max_rows: (sequences * ROWS) as i32,
            max_drafts: info.most_drafts,
            max_position: 64,
            ..session_options()
        };
        let session = Session::create(&model, &options).expect("a session");
        let text = Text::random(&mut Random::new(5), ROWS + 1, info.vocabulary, &model.widths());
        Self { context, model, session, text, drafts: info.most_drafts }
    }

    fn draft(&self, sampling: Sampling, min_confidence: f32) -> Drafts {
        self.draft_all(&[sampling], min_confidence).remove(0)
    }

    /// What follows the text, once for each sampling.
    fn draft_all(&self, samplings: &[Sampling], min_confidence: f32) -> Vec<Drafts> {
        let turn = |(slot, &sampling): (usize, &Sampling)| {
            let place = Place::Slot(slot as i32);
            Turn { sampling, ..Turn::new(&self.text, 0..ROWS, self.drafts, place) }
        };
        let turns: Vec<Turn<'_>> = samplings.iter().enumerate().map(turn).collect();
        let mut call = DraftCall::of(&turns);
        call.min_confidence = min_confidence;
        call.run(&self.session).expect("a call")
    }
}

fn sampled(seed: u64) -> Sampling {
    Sampling { temperature: 1.0, seed, ..Sampling::default() }
}

#[test]
fn proposals_end_before_the_first_that_is_reached_with_too_little_confidence() {
    for name in ["dspark/vanilla", "dspark/rnn_fillin", "dspark/nomarkov_sliding"] {
        let Some(case) = case(name) else { continue };
        let world = World::of(&case);
        for sampling in [Sampling::default(), sampled(3)] {
            let whole = world.draft(sampling, 0.0);
            assert_eq!(whole.confidence.len(), world.drafts as usize, "{name}");
            assert!(whole.confidence.iter().all(|c| (0.0..=1.0).contains(c)), "{whole:?}");
            let mut reached: Vec<f32> = Vec::new();
            for &confidence in &whole.confidence {
                reached.push(reached.last().unwrap_or(&1.0) * confidence);
            }
            // Each of them, just reached and just not.
            let just_above = |&number: &f32| f32::from_bits(number.to_bits() + 1);
            for threshold in reached.iter().copied().chain(reached.iter().map(just_above)) {
                let kept = reached.iter().position(|&product| product < threshold);
                let kept = kept.unwrap_or(reached.len());
                let part = world.draft(sampling, threshold);
                assert_eq!(part.tokens, whole.tokens[..kept], "{name}, {threshold}");
                assert_eq!(part.logits, whole.logits[..kept], "{name}, {threshold}");
                assert_eq!(part.confidence, whole.confidence[..kept], "{name}, {threshold}");
            }
        }
    }
}

#[test]
fn a_markov_head_adds_what_the_token_before_says_whatever_was_drawn() {
    let Some(case) = case("dspark/vanilla") else { return };
    let world = World::of(&case);
    let weights = Tensors::read(&case.directory.join("model.safetensors"));
    let embedding = weights.matrix("markov_head.markov_w1.weight").expect("an embedding");
    let readout = weights.matrix("markov_head.markov_w2.weight").expect("a readout");
    let anchor = world.text.tokens[ROWS];
    let base = |seed: u64| -> Vec<Vec<f32>> {
        let drafts = world.draft(sampled(seed), 0.0);
        let before = std::iter::once(&anchor).chain(&drafts.tokens);
        let rows = drafts.logits.iter().zip(before).map(|(logits, &before)| {
            let embedded = embedding.row(before as usize);
            let added = (0..readout.rows).map(|column| -> f32 {
                readout.row(column).iter().zip(&embedded).map(|(a, b)| a * b).sum()
            });
            logits.iter().zip(added).map(|(logit, added)| logit - added).collect()
        });
        rows.collect()
    };
    let first = base(0);
    let mut different = std::collections::BTreeSet::new();
    for seed in 0..8 {
        different.insert(world.draft(sampled(seed), 0.0).tokens);
        for (ours, theirs) in base(seed).iter().zip(&first) {
            assert!(host::draft::distance(ours, theirs) < 1e-4, "seed {seed}");
        }
    }
    assert!(different.len() > 4, "the drafts depend on the seed");
}

#[test]
fn candidates_are_drawn_from_by_their_scores_and_each_stands_once() {
    for name in ["dflash2/fillin", "dflash2/anchor_sliding"] {
        let Some(case) = case(name) else { continue };
        let world = World::of(&case);
        let info = world.model.info();
        assert_eq!(info.has_row_candidates, 1);
        assert!(info.draft_columns < info.draft_vocabulary);
        for sampling in [Sampling::default(), sampled(1), sampled(2)] {
            let drafts = world.draft(sampling, 0.0);
            for ((ids, logits), token) in
                drafts.candidates.iter().zip(&drafts.logits).zip(&drafts.tokens)
            {
                let mut distinct = ids.clone();
                distinct.sort_unstable();
                distinct.dedup();
                assert_eq!(distinct.len(), info.draft_columns as usize);
                assert!(distinct.iter().all(|id| (0..info.vocabulary).contains(id)), "{ids:?}");
                let place = ids.iter().position(|id| id == token).expect("a candidate");
                if sampling.temperature == 0.0 {
                    assert!(logits.iter().all(|&logit| logit <= logits[place]), "{name}");
                }
            }
        }
    }
}

#[test]
fn sampled_candidates_follow_the_softmax_of_their_scores() {
    let Some(case) = case("dflash2/fillin") else { return };
    let world = World::of(&case);
    let draws = device::amount(2000, 300);
    let first = world.draft(sampled(0), 0.0);
    let (ids, logits) = (&first.candidates[0], &first.logits[0]);
    let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut counts = vec![0.0; ids.len()];
    for seed in 0..draws {
        let drafts = world.draft(sampled(seed as u64), 0.0);
        assert_eq!((&drafts.candidates[0], &drafts.logits[0]), (ids, logits));
        counts[ids.iter().position(|&id| id == drafts.tokens[0]).expect("a candidate")] += 1.0;
    }
    for (count, weight) in counts.iter().zip(&weights) {
        let share = weight / total;
        let spread = (share * (1.0 - share) / draws as f64).sqrt();
        assert!((count / draws as f64 - share).abs() < 5.0 * spread, "{counts:?} {weights:?}");
    }
}

/// A target whose law of each position is the same whatever stands before, on what the drafter likes and
/// on what it does not.
fn target_row(drafts: &Drafts, ids: &[i32], vocabulary: usize, random: &mut Random) -> Vec<f32> {
    let mut row = vec![f32::NEG_INFINITY; vocabulary];
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by(|&a, &b| drafts.logits[0][b].total_cmp(&drafts.logits[0][a]));
    for &column in order.iter().take(4) {
        row[ids[column] as usize] = random.normal();
    }
    (0..3).for_each(|_| row[random.below(vocabulary)] = random.normal());
    row
}

#[test]
fn verified_drafts_of_heads_have_the_targets_law_at_every_position() {
    const SEQUENCES: usize = 50;
    let mut accepted = 0;
    for name in ["dspark/vanilla", "dspark/rnn_fillin", "dflash2/fillin"] {
        let Some(case) = case(name) else { continue };
        let world = World::with_sequences(&case, SEQUENCES);
        let shared_ids = world.model.draft_token_ids();
        let (vocabulary, width) = (world.model.info().vocabulary as usize, world.drafts as usize);
        let mut random = Random::new(8);
        let first = world.draft(sampled(0), 0.0);
        let ids = first.candidates.first().unwrap_or(&shared_ids);
        let rows: Vec<Vec<f32>> =
            (0..=width).map(|_| target_row(&first, ids, vocabulary, &mut random)).collect();
        let mut counts = vec![vec![0.0; vocabulary]; width + 1];
        for batch in 0..device::amount(40, 2) {
            let seed = |sequence| (batch * SEQUENCES + sequence) as u64;
            let samplings: Vec<Sampling> = (0..SEQUENCES).map(|s| sampled(seed(s))).collect();
            let drafts = world.draft_all(&samplings, 0.0);
            let decisions = verified(&world, &drafts, &samplings, (&rows, &shared_ids));
            for sequence in 0..SEQUENCES {
                let emitted = decisions.emitted(sequence);
                accepted += emitted.len() - 1;
                for (counts, &token) in counts.iter_mut().zip(emitted) {
                    counts[token as usize] += 1.0;
                }
            }
        }
        for (position, (counts, row)) in counts.iter().zip(&rows).enumerate() {
            let total: f64 = counts.iter().sum();
            let weights: Vec<f64> = row.iter().map(|&logit| f64::from(logit).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for (token, (count, weight)) in counts.iter().zip(&weights).enumerate() {
                let share = weight / sum;
                let spread = (share * (1.0 - share) * total).sqrt();
                let is_lawful = (count - share * total).abs() <= 5.0 * spread + 1e-9;
                assert!(is_lawful, "{name}, {position}, {token}: {count} of {total} for {share}");
            }
        }
    }
    assert!(accepted > 0, "no draft was accepted");
}

/// The decisions of a target with these rows for every sequence, by rejection.
fn verified(
    world: &World,
    drafts: &[Drafts],
    samplings: &[Sampling],
    (rows, shared_ids): (&[Vec<f32>], &[i32]),
) -> Decisions {
    let (sequences, width) = (drafts.len(), world.drafts as usize);
    let all_rows: Vec<f32> = (0..sequences).flat_map(|_| rows.concat()).collect();
    let logits = Matrix::new(sequences * rows.len(), rows[0].len(), &all_rows);
    let tokens: Vec<&[i32]> = drafts.iter().map(|drafts| &drafts.tokens[..]).collect();
    let counts = drafts.iter().map(|drafts| drafts.tokens.len() as i32).collect();
    let positions = vec![ROWS as i32 + 1; sequences];
    let mut call = VerifyCall::new(logits, Table::ragged(&tokens), counts, positions, samplings);
    let q: Vec<f32> = drafts.iter().flat_map(|drafts| drafts.logits.concat()).collect();
    let row_ids: Vec<i32> = drafts.iter().flat_map(|drafts| drafts.candidates.concat()).collect();
    call.rule = SPEC_RULE_REJECTION;
    call.draft = Some(Distribution {
        logits: Matrix::new(sequences * width, q.len() / (sequences * width), &q),
        has_row_ids: !row_ids.is_empty(),
        token_ids: if row_ids.is_empty() { shared_ids.to_vec() } else { row_ids },
    });
    call.run(&world.context).expect("a verification")
}

#[test]
fn what_a_model_says_is_what_a_call_of_its_kind_takes() {
    let mut seen = 0;
    for case in golden::supported_cases() {
        let info = case.load(&Context::with_threads(1)).expect("a model").info();
        let is_block = !["eagle", "eagle3", "mtp", "peagle"].contains(&case.kind.as_str());
        assert_eq!(info.block_size > 0, is_block, "{}", case.name);
        assert_eq!(info.mask_token >= 0, is_block || case.kind == "peagle", "{}", case.name);
        assert_eq!(info.has_row_candidates == 1, case.kind == "dflash2", "{}", case.name);
        assert_eq!(info.has_confidence == 1, case.kind == "dspark", "{}", case.name);
        assert!(info.default_num_drafts <= info.most_drafts, "{}", case.name);
        assert!(info.draft_columns <= info.draft_vocabulary, "{}", case.name);
        if is_block {
            assert!(info.most_drafts <= info.block_size, "{}", case.name);
        }
        seen += 1;
    }
    assert!(seen > 0, "no case");
}
