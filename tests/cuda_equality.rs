//! The CUDA backend against the CPU backend, on the same checkpoints, batches and logits: draft
//! logits agree within a tolerance, verification decisions bit for bit.

mod device;
mod host;

use device::Device;
use host::checkpoint::Shape;
use host::draft::{DraftCall, Drafts, Place, Sampling, Table, Text, Turn, distance, margin};
use host::golden;
use host::matrix::{Dtype, Matrix};
use host::random::Random;
use host::verify::{Distribution, VerifyCall};
use host::{Context, Model, Session, session_options};
use speculators::capi::*;
use std::ops::Range;
use std::path::Path;

/// How far draft logits of the two devices may lie apart.
const TOLERANCE: f32 = 1e-3;

const DRAFTS: usize = 4;
const MAX_POSITION: usize = 96;
const PAGE_SIZE: usize = 8;
const SEQUENCES: usize = 4;
/// Rows of a prompt that one call commits at most.
const CHUNK: usize = 24;

/// A checkpoint on one of the devices.
struct Side {
    _context: Context,
    model: Model,
    session: Session,
}

impl Side {
    fn open(device: Device, directory: &Path, verifier: Option<&Path>) -> Self {
        let context = Context::on(device);
        let model = Model::load(&context, directory, verifier).expect("a model");
        let options = spec_session_options {
            max_sequences: SEQUENCES as i32,
            max_rows: (SEQUENCES * CHUNK) as i32,
            max_drafts: DRAFTS as i32,
            max_position: MAX_POSITION as i32,
            page_size: PAGE_SIZE as i32,
            ..session_options()
        };
        let session = Session::create(&model, &options).expect("a session");
        Self { _context: context, model, session }
    }

    fn run(&self, call: &DraftCall) -> Vec<Drafts> {
        let drafts = call.run(&self.session).expect("a drafting call");
        self.session.poll().expect("no fault");
        drafts
    }
}

fn sampling(random: &mut Random) -> Sampling {
    if random.chance(0.4) {
        return Sampling::default();
    }
    Sampling {
        temperature: [0.3, 0.8, 1.0, 1.7][random.below(4)],
        top_k: [0, 5, 40][random.below(3)],
        top_p: [1.0, 0.9, 0.5][random.below(3)],
        min_p: [0.0, 0.05][random.below(2)],
        seed: random.bits(),
    }
}

/// What was compared.
#[derive(Debug, Default)]
struct Coverage {
    rows: usize,
    tokens: usize,
    equal_tokens: usize,
    largest: f32,
}

impl Coverage {
    /// Steps are compared as long as the tokens before them are the same.
    fn compare(&mut self, what: &str, cpu: &Drafts, cuda: &Drafts, greedy: bool) {
        assert_eq!(cpu.tokens.len(), cuda.tokens.len(), "{what}: proposals");
        for step in 0..cpu.tokens.len() {
            let (expected, found) = (&cpu.logits[step], &cuda.logits[step]);
            let apart = distance(expected, found);
            assert!(apart <= TOLERANCE, "{what}, step {step}: logits are {apart} apart");
            self.largest = self.largest.max(apart);
            self.rows += 1;
            self.tokens += 1;
            if cpu.tokens[step] == cuda.tokens[step] {
                self.equal_tokens += 1;
                continue;
            }
            let lead = margin(expected);
            assert!(!greedy || lead <= 2.0 * TOLERANCE, "{what}, step {step}: a lead of {lead}");
            return;
        }
    }
}

/// Takes random requests through prompts in chunks, rounds and rollbacks, on both devices at once.
fn compare_drafts(name: &str, directory: &Path, verifier: Option<&Path>, calls: usize) {
    let [cpu, cuda] =
        [Device::Cpu, Device::Cuda].map(|device| Side::open(device, directory, verifier));
    let info = cpu.model.info();
    assert_eq!(cuda.model.info().weight_bytes, info.weight_bytes, "{name}");
    assert_eq!(cuda.model.report(), cpu.model.report(), "{name}");
    let mut random = Random::new(51);
    let widths = cpu.model.widths();
    let texts: Vec<Text> = (0..SEQUENCES)
        .map(|_| Text::random(&mut random, MAX_POSITION, info.vocabulary, &widths))
        .collect();
    let samplings: Vec<Sampling> = texts.iter().map(|_| sampling(&mut random)).collect();
    let tables = tables(&mut random);
    let mut ends = [0; SEQUENCES];
    let mut coverage = Coverage::default();
    for index in 0..calls {
        let rows: Vec<Range<usize>> =
            ends.iter_mut().map(|end| next_rows(end, &mut random)).collect();
        let paged = index % 3 != 2;
        let mut order: Vec<usize> = (0..SEQUENCES).collect();
        random.shuffle(&mut order);
        order.truncate(1 + random.below(SEQUENCES));
        let turns: Vec<Turn<'_>> = order
            .iter()
            .map(|&text| {
                // Without a table everything is committed again, as slots hold nothing of pages.
                let rows = if paged { rows[text].clone() } else { 0..rows[text].len() };
                let drafts = random.below(DRAFTS + 1) as i32;
                let place =
                    if paged { Place::Pages(&tables[text]) } else { Place::Slot(text as i32) };
                let turn = Turn::new(&texts[text], rows, drafts, place);
                Turn { sampling: samplings[text], ..turn }
            })
            .collect();
        // Those that take no part now continue from where they were.
        for text in (0..SEQUENCES).filter(|text| !paged || !order.contains(text)) {
            ends[text] = rows[text].start;
        }
        let mut call = DraftCall::of(&turns);
        let dtype = Dtype::ALL[random.below(3)];
        for feature in &mut call.features {
            *feature = feature.converted(dtype, feature.columns + random.below(4));
        }
        let drafts = [&cpu, &cuda].map(|side| side.run(&call));
        for (place, &text) in order.iter().enumerate() {
            let what = format!("{name}, call {index}, sequence {place}");
            let greedy = samplings[text].temperature == 0.0;
            coverage.compare(&what, &drafts[0][place], &drafts[1][place], greedy);
        }
    }
    println!("{name}: {coverage:?}");
    assert!(coverage.rows > 0, "{name}: nothing was compared");
    let different = coverage.tokens - coverage.equal_tokens;
    assert!(different * 20 <= coverage.tokens, "{name}: {different} tokens differ");
}

/// Pages for whole texts, in random order; the pool keeps what slots need.
fn tables(random: &mut Random) -> Vec<Vec<i32>> {
    let per_text = MAX_POSITION / PAGE_SIZE;
    let mut pages: Vec<i32> = (0..(SEQUENCES * per_text) as i32).collect();
    random.shuffle(&mut pages);
    pages.chunks(per_text).map(<[i32]>::to_vec).collect()
}

/// A chunk of a prompt, the rows of a round, or some of them again after a rollback.
fn next_rows(end: &mut usize, random: &mut Random) -> Range<usize> {
    if *end + CHUNK + DRAFTS + 1 >= MAX_POSITION {
        *end = 0;
    }
    let back = if random.chance(0.2) { random.below(*end + 1).min(3) } else { 0 };
    let start = *end - back;
    let most = if *end < 40 { CHUNK } else { DRAFTS + 1 };
    *end = start + 1 + random.below(most);
    start..*end
}

#[test]
fn recorded_checkpoints_draft_the_same_on_both_devices() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    for case in golden::supported_cases() {
        compare_drafts(&case.name, &case.directory, Some(&case.target), 12);
    }
}

/// Sizes that no kernel is made for.
fn odd_shapes() -> [(&'static str, Shape); 6] {
    let blank = Shape::default();
    let odd = Shape { hidden: 40, target_hidden: 72, intermediate: 88, head_dim: 24, ..blank };
    let narrow =
        Shape { heads: 6, kv_heads: 1, vocabulary: 131, draft_vocabulary: 77, ..odd.clone() };
    [
        ("f16", Shape { dtype: Dtype::F16, ..Shape::default() }),
        ("bf16-sliding", Shape { dtype: Dtype::Bf16, ..Shape::sliding() }),
        ("odd", Shape { dtype: Dtype::Bf16, ..odd }),
        ("narrow", narrow),
        ("qwen2", Shape { hidden: 40, stores_head: false, ..Shape::language_model("qwen2") }),
        (
            "mistral",
            Shape { window: Some(9), dtype: Dtype::Bf16, ..Shape::language_model("mistral") },
        ),
    ]
}

#[test]
fn random_checkpoints_of_odd_sizes_draft_the_same_on_both_devices() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    for (name, shape) in odd_shapes() {
        compare_drafts(name, &shape.write(name, 52), None, 12);
    }
}

/// A verification of random chains over random logits.
fn random_verification(random: &mut Random) -> VerifyCall {
    let vocabulary = [1, 2, 33, 96, 500, 1031][random.below(6)];
    let sequences = 1 + random.below(6);
    let drafts = random.below(6);
    let rows = sequences * (drafts + 1);
    let mut logits = Matrix::new(rows, vocabulary, &random.normals(rows * vocabulary));
    let mut chains = Vec::new();
    for sequence in 0..sequences {
        for step in 0..drafts {
            let draft = if random.chance(0.05) { -1 } else { random.below(vocabulary) as i32 };
            chains.push(draft);
            if draft >= 0 && random.chance(0.7) {
                let row = sequence * (drafts + 1) + step;
                let mut elements = logits.row(row);
                elements[draft as usize] += 6.0;
                logits.set_row(row, &elements);
            }
        }
    }
    // Equal ones, and what counts for nothing.
    for _ in 0..random.below(3) {
        let row = random.below(rows);
        let mut elements = logits.row(row);
        let strange = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, -0.0, elements[0]];
        let place = random.below(vocabulary);
        elements[place] = strange[random.below(strange.len())];
        logits.set_row(row, &elements);
    }
    let dtype = Dtype::ALL[random.below(3)];
    let count = |random: &mut Random| random.below(drafts + 2) as i32 - 1;
    let num_drafts = (0..sequences).map(|_| count(random)).collect();
    let position = (0..sequences).map(|_| random.below(1 << 20) as i32).collect();
    let samplings: Vec<Sampling> = (0..sequences).map(|_| sampling(random)).collect();
    let distribution = (drafts > 0 && random.chance(0.6)).then(|| {
        let rows = sequences * drafts;
        let reduced = vocabulary > 40 && random.chance(0.5);
        let columns = if reduced { 37 } else { vocabulary };
        let token_ids = if reduced { (0..37).map(|id| id * 2 + 1).collect() } else { Vec::new() };
        let logits = Matrix::new(rows, columns, &random.normals(rows * columns));
        Distribution {
            logits: logits.converted(Dtype::ALL[random.below(3)], columns + 3),
            token_ids,
            has_row_ids: false,
        }
    });
    let rule = match random.below(3) {
        0 => SPEC_RULE_FOLLOW,
        1 if distribution.is_some() => SPEC_RULE_REJECTION,
        _ => SPEC_RULE_DEFAULT,
    };
    let limit = random
        .chance(0.5)
        .then(|| (0..sequences).map(|_| random.below(drafts + 3) as i32).collect());
    let stop_tokens = (0..random.below(4)).map(|_| random.below(vocabulary) as i32).collect();
    let chains = Table { elements: chains, stride: drafts.max(1) };
    let chains = Table {
        elements: if drafts == 0 { vec![0; sequences] } else { chains.elements },
        ..chains
    };
    VerifyCall {
        rule,
        draft: distribution,
        limit,
        stop_tokens,
        ..VerifyCall::new(
            logits.converted(dtype, vocabulary + random.below(5)),
            chains,
            num_drafts,
            position,
            &samplings,
        )
    }
}

#[test]
fn decisions_on_equal_logits_are_equal_bit_for_bit() {
    if !device::is_cuda_or_skipped() {
        return;
    }
    let [cpu, cuda] = [Device::Cpu, Device::Cuda].map(Context::on);
    let mut random = Random::new(53);
    let (mut rounds, mut accepted) = (0, 0);
    for index in 0..200 {
        let call = random_verification(&mut random);
        let expected = call.run(&cpu).expect("a verification on the CPU");
        let found = call.run(&cuda).expect("a verification on the CUDA device");
        assert_eq!(found, expected, "call {index}: {call:?}");
        rounds += expected.counters[0];
        accepted += expected.counters[3..].iter().sum::<u64>();
    }
    println!("{rounds} rounds, {accepted} drafts accepted");
    assert!(rounds > 200 && accepted > 100);
}
