//! Language models as drafters: what they draft is what they would say, held to recorded logits of other
//! implementations and to a plain computation in double precision.

mod device;
mod host;

use host::checkpoint::Shape;
use host::draft::{DraftCall, Drafts, Place, Text, Turn, distance, margin};
use host::golden::{self, Tensors};
use host::matrix::Dtype;
use host::random::Random;
use host::target::Target;
use host::{Context, Model, Session, Versioned, inspect, session_options};
use speculators::capi::*;
use std::path::{Path, PathBuf};
use std::ptr::null;

/// How far logits may lie from those of double precision.
const TOLERANCE: f32 = 2e-4;

const DRAFTS: usize = 4;

fn session(model: &Model, max_position: usize) -> Session {
    let options = spec_session_options {
        max_sequences: 2,
        max_rows: max_position as i32,
        max_drafts: DRAFTS as i32,
        max_position: max_position as i32,
        page_size: 8,
        ..session_options()
    };
    Session::create(model, &options).expect("a session")
}

/// What the model proposes behind each of the ends, which rise; all rows up to there are committed, in
/// chunks of random sizes, over whatever the proposals before left in the pages.
fn drafts_behind(session: &Session, tokens: &[i32], ends: &[usize]) -> Vec<Drafts> {
    let mut random = Random::new(2);
    let text = Text { tokens: tokens.to_vec(), features: Vec::new() };
    let mut committed = 0;
    let propose = |&end: &usize| loop {
        let rows = committed..committed + (1 + random.below(30)).min(end - committed);
        committed = rows.end;
        let drafts = if committed == end { DRAFTS as i32 } else { 0 };
        let turn = Turn::new(&text, rows, drafts, Place::Slot(1));
        let mut proposed = DraftCall::of(&[turn]).run(session).expect("a call");
        if committed == end {
            break proposed.remove(0);
        }
    };
    let proposals = ends.iter().map(propose).collect();
    session.poll().expect("no fault");
    proposals
}

#[track_caller]
fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    let apart = distance(found, expected);
    assert!(apart <= TOLERANCE, "{what}: logits are {apart} apart");
}

/// Holds what the model in `directory` drafts to the computation in double precision.
fn compare_with_plain(name: &str, directory: &Path, target: Option<&Path>) {
    let context = Context::with_threads(2);
    let model = Model::load(&context, directory, target).expect("a model");
    let info = model.info();
    let columns = info.draft_columns as usize;
    let len = device::amount(70, 30);
    let session = session(&model, len + DRAFTS);
    let mut random = Random::new(8);
    let tokens: Vec<i32> = (0..len).map(|_| random.below(columns) as i32).collect();
    let ends = [1, 2, 7, 8, 9, 19, 23, 24, 55, 69];
    let ends: Vec<usize> = ends.into_iter().filter(|&end| end < len).collect();
    let mut plain = Target::load(directory);
    let mut known = 0;
    for (end, drafts) in ends.iter().zip(drafts_behind(&session, &tokens, &ends)) {
        tokens[known..*end].iter().for_each(|&token| drop(plain.advance(token)));
        known = *end;
        let mut ahead = plain.clone();
        let mut token = tokens[known];
        assert_eq!(drafts.tokens.len(), DRAFTS);
        for (step, (&draft, logits)) in drafts.tokens.iter().zip(&drafts.logits).enumerate() {
            let what = format!("{name}, {known} rows, step {step}");
            let expected = &ahead.advance(token).logits[..columns];
            assert_close(&what, logits, expected);
            let is_largest = expected.iter().all(|&other| other <= expected[draft as usize]);
            assert!(is_largest || margin(expected) <= 2.0 * TOLERANCE, "{what}: {draft}");
            token = draft;
        }
    }
}

/// The models of all families, with what is particular to them.
fn shapes() -> [(&'static str, Shape); 6] {
    let of = Shape::language_model;
    [
        ("llama", Shape { kv_heads: 4, ..of("llama") }),
        ("llama-tied", Shape { layers: 1, stores_head: false, ..of("llama") }),
        ("qwen2", Shape { stores_head: false, ..of("qwen2") }),
        ("qwen2-sliding", Shape { layers: 3, window: Some(5), ..of("qwen2") }),
        ("qwen3", Shape { head_dim: 10, dtype: Dtype::Bf16, ..of("qwen3") }),
        ("mistral", Shape { window: Some(9), dtype: Dtype::F16, ..of("mistral") }),
    ]
}

#[test]
fn models_of_all_families_draft_what_double_precision_says() {
    for (name, shape) in shapes() {
        compare_with_plain(name, &shape.write(name, 31), None);
    }
}

#[test]
fn a_model_reads_no_features_and_brings_its_own_tables() {
    let shape = Shape { stores_head: false, ..Shape::language_model("qwen2") };
    let directory = shape.write("info", 32);
    let context = Context::with_threads(1);
    let model = Model::load(&context, &directory, None).expect("a model");
    let info = model.info();
    assert_eq!((info.num_features, info.prefix_margin, info.num_layers), (0, 0, 2));
    assert_eq!((info.vocabulary, info.draft_vocabulary), (96, 96));
    assert!(info.draft_token_ids.is_null());
    let described = inspect(&directory).expect("a description");
    assert_eq!(described["kind"], "independent");
    assert_eq!(described["needed_from_verifier"], serde_json::json!([]));
    assert_eq!(described["features"], serde_json::json!([]));
    // A tied head is no second copy of the embedding.
    let untied = Shape { stores_head: true, ..shape };
    let untied = Model::load(&context, &untied.write("untied", 32), None).expect("a model");
    let table = (96 * untied.info().hidden_size * 4) as u64;
    assert_eq!(untied.info().weight_bytes, info.weight_bytes + table);
    // Nor does a call need an array of no features.
    let text = Text { tokens: vec![1, 2, 3], features: Vec::new() };
    let session = session(&model, 16);
    let call = DraftCall::of(&[Turn::new(&text, 0..2, DRAFTS as i32, Place::Slot(0))]);
    let mut prepared = call.prepare(session.outputs);
    prepared.args.features = null();
    session.draft(&prepared.args).expect("a call");
    assert_eq!(prepared.drafts()[0].tokens.len(), DRAFTS);
}

/// Models of one family have tables of several lengths.
#[test]
fn tokens_that_only_the_target_knows_are_zeros_and_never_drafted() {
    let shape = Shape::language_model("qwen3");
    let larger = Shape { vocabulary: 131, draft_vocabulary: 131, ..shape.clone() };
    let (directory, target) = (shape.write("smaller", 33), larger.write("larger", 34));
    compare_with_plain("smaller", &directory, Some(&target));
    let context = Context::with_threads(1);
    let model = Model::load(&context, &directory, Some(&target)).expect("a model");
    let info = model.info();
    assert_eq!((info.vocabulary, info.draft_vocabulary, info.draft_columns), (131, 96, 96));
    assert_eq!(model.draft_token_ids(), (0..96).collect::<Vec<i32>>());
    let report = model.report();
    assert!(report["warnings"].to_string().contains("131 tokens, the drafter 96"), "{report}");
    // A token without a row, before, at and behind others: as a row of zeros.
    let mut text = Text { tokens: vec![96, 5, 130, 7, 100], features: Vec::new() };
    let session = session(&model, 32);
    let draft = |text: &Text, embeddings: Option<host::matrix::Matrix>| {
        let turn = Turn::new(text, 0..4, DRAFTS as i32, Place::Slot(0));
        let call = DraftCall { embeddings, ..DraftCall::of(&[turn]) };
        let drafts = call.run(&session).expect("a call").remove(0);
        session.poll().expect("no fault");
        drafts
    };
    let unknown = draft(&text, None);
    assert!(unknown.tokens.iter().all(|&token| token < 96));
    let zeros = host::matrix::Matrix::filled(4, info.hidden_size as usize, Dtype::F32, 0.0);
    text.tokens = vec![-1, 5, -1, 7, 100];
    assert_eq!(draft(&text, Some(zeros)).logits, unknown.logits);
}

#[test]
fn tokens_that_only_the_drafter_knows_are_never_drafted() {
    let shape = Shape { vocabulary: 131, draft_vocabulary: 131, ..Shape::language_model("llama") };
    let target = Shape::language_model("llama").write("short-target", 36);
    for (name, stores_head) in [("long", true), ("long-tied", false)] {
        let directory = Shape { stores_head, ..shape.clone() }.write(name, 35);
        compare_with_plain(name, &directory, Some(&target));
        let context = Context::with_threads(1);
        let info = Model::load(&context, &directory, Some(&target)).expect("a model").info();
        assert_eq!((info.vocabulary, info.draft_vocabulary), (96, 96));
        assert!(info.draft_token_ids.is_null());
    }
}

/// The targets of the reference data.
fn recorded_targets() -> Vec<PathBuf> {
    let folder = golden::root().join("targets");
    let entries = std::fs::read_dir(&folder).expect("the reference data");
    let mut targets: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    targets.retain(|path| path.join("config.json").exists());
    targets.sort();
    assert!(!targets.is_empty());
    targets
}

#[test]
fn a_target_that_drafts_for_itself_has_its_recorded_logits() {
    for directory in recorded_targets() {
        let recorded = Tensors::read(&directory.join("golden/activations.safetensors"));
        let tokens = recorded.get("p1.tokens").expect("the second prompt");
        let tokens: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
        let logits = recorded.matrix("p1.logits").expect("its logits");
        let context = Context::with_threads(1);
        let model = Model::load(&context, &directory, Some(&directory)).expect("a model");
        let session = session(&model, tokens.len() + DRAFTS);
        // The prompt has seven tokens, all others are the target's own.
        let ends: Vec<usize> = (7..tokens.len() - DRAFTS).step_by(device::amount(1, 20)).collect();
        for (end, drafts) in ends.iter().zip(drafts_behind(&session, &tokens, &ends)) {
            let what = format!("{}, {end} rows", directory.display());
            assert_eq!(drafts.tokens, tokens[end + 1..][..DRAFTS], "{what}");
            for (step, found) in drafts.logits.iter().enumerate() {
                assert_close(&what, found, &logits.row(end + step));
            }
        }
    }
}

#[test]
fn the_trained_target_proposes_its_own_text() {
    let root = host::files::project("examples/models/tiny-python");
    let reference = golden::read_json(&root.join("reference.json"));
    let texts = |key: &str| -> Vec<Vec<i32>> {
        serde_json::from_value(reference[key].clone()).expect("lists of tokens")
    };
    let context = Context::with_threads(2);
    let model = Model::load(&context, &root.join("target"), None).expect("a model");
    let (mut rounds, mut complete) = (0, 0);
    let prompts = texts("prompt_tokens").into_iter().zip(texts("output_tokens"));
    for (prompt, output) in prompts.take(device::amount(usize::MAX, 1)) {
        let tokens = [prompt.clone(), output].concat();
        let session = session(&model, tokens.len() + DRAFTS);
        let last = tokens.len() - DRAFTS;
        let ends: Vec<usize> =
            (prompt.len()..last).step_by(device::amount(DRAFTS + 1, 40)).collect();
        for (&end, drafts) in ends.iter().zip(drafts_behind(&session, &tokens, &ends)) {
            rounds += 1;
            let expected = &tokens[end + 1..][..DRAFTS];
            let wrong = (0..DRAFTS).find(|&step| drafts.tokens[step] != expected[step]);
            match wrong {
                None => complete += 1,
                Some(step) => assert!(margin(&drafts.logits[step]) < 1e-3, "{end} rows, {step}"),
            }
        }
    }
    assert!(complete * 100 >= rounds * 98, "{complete} of {rounds} rounds");
}

#[test]
fn proposals_stop_where_positions_end_and_need_no_page_behind() {
    let directory = Shape::language_model("llama").write("end", 37);
    let context = Context::with_threads(1);
    let model = Model::load(&context, &directory, None).expect("a model");
    let mut random = Random::new(4);
    let text = Text::random(&mut random, 24, 96, &[]);
    let session = session(&model, 24);
    for position in 18..24 {
        let turn = Turn::new(&text, 0..position, DRAFTS as i32, Place::Slot(0));
        let drafts = DraftCall::of(&[turn]).run(&session).expect("a call").remove(0);
        assert_eq!(drafts.tokens.len(), DRAFTS.min(24 - position), "{position}");
    }
    session.poll().expect("no fault");
    // 16 rows fill two pages. Only a proposal needs a third one, for the row of the next token.
    for (rows, drafts, has_room) in [(16, 0, true), (16, 1, false), (15, 1, true), (14, 3, false)] {
        let turn = Turn::new(&text, 0..rows, drafts, Place::Pages(&[2, 0]));
        let proposed = DraftCall::of(&[turn]).run(&session).expect("a call").remove(0);
        assert_eq!(session.poll().is_ok(), has_room, "{rows} rows, {drafts} drafts");
        let expected = if has_room { drafts as usize } else { 0 };
        assert_eq!(proposed.tokens.len(), expected, "{rows} rows, {drafts} drafts");
    }
}

#[test]
fn a_quantized_model_and_one_of_another_type_are_refused_by_name() {
    let directory = Shape::language_model("qwen2").write("refused", 38);
    let context = Context::with_threads(1);
    let load = |overrides: &std::ffi::CStr| {
        let options =
            spec_model_options { config_overrides: overrides.as_ptr(), ..Versioned::blank() };
        Model::load_with(&context, &directory, &options).expect_err("a refusal").message
    };
    let message = load(c"{\"model_type\": \"gemma3\"}");
    assert!(message.contains("causal language model"), "{message}");
    let named = c"{\"model_type\": \"gemma3\", \"speculators_model_type\": \"independent\"}";
    let message = load(named);
    assert!(message.contains("model_type: expected one of"), "{message}");
    assert!(message.contains("found \"gemma3\""), "{message}");
    let message = load(c"{\"quantization_config\": {\"bits\": 4}}");
    assert!(message.contains("quantization_config"), "{message}");
}
