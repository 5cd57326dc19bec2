//! MLP speculators, held to a plain computation of their formula in double precision.

mod device;
mod host;

use host::checkpoint::MlpShape;
use host::draft::{DraftCall, Drafts, Place, Sampling, Text, Turn, distance, margin};
use host::golden::{Tensors, read_json};
use host::matrix::{Dtype, Matrix};
use host::random::Random;
use host::{Context, Model, Session, Versioned, c_path, inspect, session_options};
use serde_json::json;
use speculators::capi::*;
use std::path::Path;

/// How far logits may lie from those of double precision.
const TOLERANCE: f32 = 1e-4;

const ROWS: usize = 9;

fn load(context: &Context, directory: &Path) -> Model {
    Model::load(context, directory, None).expect("a model")
}

fn session(model: &Model) -> Session {
    let options = spec_session_options {
        max_sequences: 3,
        max_rows: 3 * ROWS as i32,
        max_drafts: 8,
        max_position: 64,
        page_size: 8,
        ..session_options()
    };
    Session::create(model, &options).expect("a session")
}

/// The formula, from the tensors as they are stored.
struct Plain<'s> {
    shape: &'s MlpShape,
    tensors: Tensors,
}

impl Plain<'_> {
    fn matrix(&self, module: &str, step: usize) -> Matrix {
        let step = match (self.shape.is_tied, module) {
            (false, _) => step,
            (true, "proj") => step.min(1),
            (true, _) => 0,
        };
        let name = format!("{}{module}.{step}.weight", self.shape.prefix);
        self.tensors.matrix(&name).unwrap_or_else(|| panic!("{name}: expected a tensor"))
    }

    fn vector(&self, part: &str, step: usize) -> &[f32] {
        let step = if self.shape.is_tied { 0 } else { step };
        self.tensors.get(&format!("{}ln.{step}.{part}", self.shape.prefix)).expect("a vector")
    }

    /// The state behind the step, and its logits.
    fn step(&self, step: usize, state: &[f64], token: i32) -> (Vec<f64>, Vec<f32>) {
        let mut state = state.to_vec();
        if step == 0 && self.shape.scales_input {
            state = normed(&state).iter().map(|x| x / 2.0_f64.sqrt()).collect();
        }
        let projected = apply(&self.matrix("proj", step), &state);
        let inner = projected.len() as f64;
        let state_weight = 0.5_f64.powf(0.5 / self.shape.steps as f64);
        let weight = ((1.0 - state_weight * state_weight) * inner / 2.0).sqrt() / state_weight;
        let embedded = self.matrix("emb", step).row(token as usize);
        let sum: Vec<f64> =
            projected.iter().zip(&embedded).map(|(x, &e)| x + weight * f64::from(e)).collect();
        let parts = self.vector("weight", step).iter().zip(self.vector("bias", step));
        let state: Vec<f64> = normed(&sum)
            .iter()
            .zip(parts)
            .map(|(x, (&gain, &bias))| gelu(x * f64::from(gain) + f64::from(bias)))
            .collect();
        let logits = apply(&self.matrix("head", step), &state);
        (state, logits.into_iter().map(|logit| logit as f32).collect())
    }

    #[track_caller]
    fn check(&self, what: &str, text: &Text, rows: usize, drafts: &Drafts, is_greedy: bool) {
        let feature = text.features[0].row(rows - 1);
        let mut state: Vec<f64> = feature.iter().map(|&x| f64::from(x)).collect();
        let mut token = text.tokens[rows];
        for (step, (&draft, logits)) in drafts.tokens.iter().zip(&drafts.logits).enumerate() {
            let (next, expected) = self.step(step, &state, token);
            let apart = distance(logits, &expected);
            assert!(apart <= TOLERANCE, "{what}, step {step}: logits are {apart} apart");
            let is_largest = expected.iter().all(|&other| other <= expected[draft as usize]);
            let is_near = margin(&expected) <= 2.0 * TOLERANCE;
            assert!(!is_greedy || is_largest || is_near, "{what}, step {step}: {draft}");
            (state, token) = (next, draft);
        }
    }
}

fn apply(matrix: &Matrix, input: &[f64]) -> Vec<f64> {
    let product = |row: usize| {
        matrix.row(row).iter().zip(input).map(|(&weight, x)| f64::from(weight) * x).sum()
    };
    (0..matrix.rows).map(product).collect()
}

fn normed(values: &[f64]) -> Vec<f64> {
    let squares: f64 = values.iter().map(|x| x * x).sum();
    let scale = (squares / values.len() as f64 + 1e-6).sqrt().recip();
    values.iter().map(|x| x * scale).collect()
}

/// By the series of the error function.
fn gelu(x: f64) -> f64 {
    let z = x / 2.0_f64.sqrt();
    let (mut term, mut sum) = (z, z);
    for n in 1..80 {
        term *= -z * z / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    let erf = if z.abs() > 4.0 { z.signum() } else { sum * 2.0 / std::f64::consts::PI.sqrt() };
    0.5 * x * (1.0 + erf)
}

fn shapes() -> [(&'static str, MlpShape); 7] {
    let blank = MlpShape::default();
    [
        ("untied", blank.clone()),
        ("tied", MlpShape { is_tied: true, ..blank.clone() }),
        ("scaled", MlpShape { scales_input: true, ..blank.clone() }),
        ("no-inner", MlpShape { inner: 0, is_tied: true, ..blank.clone() }),
        ("prefixed", MlpShape { prefix: "speculator.", scales_input: true, ..blank.clone() }),
        ("one-step", MlpShape { steps: 1, is_tied: true, ..blank.clone() }),
        ("bf16", MlpShape { dtype: Dtype::Bf16, inner: 33, is_tied: true, ..blank }),
    ]
}

#[test]
fn heads_draft_what_their_formula_says() {
    for (name, shape) in shapes() {
        let directory = shape.write(name, 61);
        let context = Context::with_threads(2);
        let model = load(&context, &directory);
        let plain =
            Plain { shape: &shape, tensors: Tensors::read(&directory.join("model.safetensors")) };
        let session = session(&model);
        let mut random = Random::new(62);
        let texts: Vec<Text> = (0..3)
            .map(|_| Text::random(&mut random, ROWS + 1, shape.vocabulary as i32, &model.widths()))
            .collect();
        // Prompts of several lengths at once, greedy and sampled, some with fewer proposals.
        let turn = |slot: usize| Turn {
            sampling: Sampling {
                temperature: [0.0, 0.8, 1.2][slot],
                seed: 3,
                ..Sampling::default()
            },
            ..Turn::new(
                &texts[slot],
                0..ROWS - slot,
                8 - 7 * (slot as i32 / 2),
                Place::Slot(slot as i32),
            )
        };
        let turns: Vec<Turn<'_>> = (0..3).map(turn).collect();
        let drafts = DraftCall::of(&turns).run(&session).expect("a call");
        session.poll().expect("no fault");
        for (slot, drafts) in drafts.iter().enumerate() {
            let wanted = if slot == 2 { 1 } else { shape.steps };
            assert_eq!(drafts.tokens.len(), wanted, "{name}: no more than one for each head");
            plain.check(name, &texts[slot], ROWS - slot, drafts, slot == 0);
        }
    }
}

#[test]
fn nothing_of_a_text_but_its_end_is_read_and_nothing_is_kept() {
    let shape = MlpShape::default();
    let context = Context::with_threads(1);
    let model = load(&context, &shape.write("stateless", 63));
    let info = model.info();
    assert_eq!((info.num_features, info.prefix_margin, info.num_layers), (1, 0, 0));
    assert_eq!((info.most_drafts, info.default_num_drafts), (3, 3));
    assert_eq!(model.features()[0].stage, SPEC_STAGE_FINAL_NORM);
    let needs = Session::requirements(
        &model,
        &spec_session_options {
            max_sequences: 1,
            max_rows: 8,
            max_drafts: 3,
            max_position: 64,
            ..session_options()
        },
    );
    assert_eq!(needs.expect("the requirements").kv_bytes_per_token, 0);
    let session = session(&model);
    let mut text = Text::random(&mut Random::new(64), ROWS + 1, 96, &model.widths());
    let draft = |text: &Text, rows| {
        let turn = Turn::new(text, rows, 3, Place::Slot(0));
        DraftCall::of(&[turn]).run(&session).expect("a call").remove(0)
    };
    let whole = draft(&text, 0..ROWS);
    text.tokens[..ROWS].fill(7);
    (0..ROWS - 1).for_each(|row| text.features[0].set_row(row, &vec![f32::NAN; shape.width]));
    assert_eq!(draft(&text, 0..ROWS), whole);
    assert_eq!(draft(&text, ROWS - 1..ROWS), whole);
}

#[test]
fn settings_of_the_original_and_of_the_speculators_format_are_read() {
    let shape = MlpShape { is_tied: true, ..MlpShape::default() };
    let directory = shape.write("names", 65);
    let described = inspect(&directory).expect("a description");
    assert_eq!((&described["kind"], &described["default_num_drafts"]), (&json!("mlp"), &json!(3)));
    let mut config = read_json(&directory.join("config.json"));
    let settings = config.as_object_mut().expect("settings");
    settings.remove("model_type");
    settings.insert("speculators_model_type".into(), json!("mlp"));
    for (old, new) in [
        ("emb_dim", "hidden_size"),
        ("inner_dim", "intermediate_size"),
        ("n_predict", "num_layers"),
    ] {
        let value = settings.remove(old).expect("a setting");
        settings.insert(new.into(), value);
    }
    settings.remove("tie_weights");
    std::fs::write(directory.join("config.json"), config.to_string()).expect("a config");
    let described = inspect(&directory).expect("a description");
    assert_eq!((&described["kind"], &described["supported"]), (&json!("mlp"), &json!(true)));
    assert_eq!(described["default_num_drafts"], 3);
    let feature = json!({"layer": 0, "stage": "final_norm", "width": shape.width});
    assert_eq!(described["features"], json!([feature]));
}

#[test]
fn wrong_settings_and_tensors_are_refused_by_name() {
    let directory = MlpShape::default().write("wrong", 66);
    let context = Context::on(device::Device::Cpu);
    for (overrides, expected) in [
        (json!({"n_predict": null}), "n_predict: expected"),
        (json!({"n_predict": 0}), "n_predict: expected"),
        (json!({"n_predict": 4}), "emb.3.weight"),
        (json!({"vocab_size": null}), "vocab_size: expected"),
        (json!({"inner_dim": 39}), "emb.0.weight"),
        (json!({"emb_dim": 47}), "proj.0.weight"),
    ] {
        let overrides = c_path(Path::new(&overrides.to_string()));
        let options =
            spec_model_options { config_overrides: overrides.as_ptr(), ..Versioned::blank() };
        let failure = Model::load_with(&context, &directory, &options).expect_err("a refusal");
        assert!(failure.message.contains(expected), "{}", failure.message);
    }
}
