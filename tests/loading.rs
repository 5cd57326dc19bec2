//! Where weights come from: copied, mapped, lent by the host or read from the verifier, they draft
//! the same.

mod device;
mod host;

use device::Device;
use host::checkpoint::Shape;
use host::draft::{DraftCall, Drafts, Place, Sampling, Text, Turn};
use host::golden::{self, Tensors};
use host::matrix::{DeviceMatrix, Dtype, Matrix};
use host::random::Random;
use host::{Context, Model, Outcome, Session, Versioned, c_path, session_options};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as FileDtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use speculators::capi::*;
use std::ffi::{CString, c_void};
use std::path::{Path, PathBuf};
use std::ptr::null;
use std::sync::atomic::{AtomicUsize, Ordering};

const DRAFTS: i32 = 4;

/// A reduced and a full vocabulary, with one and with two layers.
fn shapes(dtype: Dtype) -> [(String, Shape); 2] {
    let sliding = Shape { target_hidden: 48, ..Shape::sliding() };
    [("reduced", Shape::default()), ("full", sliding)]
        .map(|(name, shape)| (format!("{name}-{dtype:?}"), Shape { dtype, ..shape }))
}

/// The same shape without the tables that a verifier has too.
fn lacking(shape: &Shape) -> Shape {
    Shape { stores_embedding: false, stores_head: false, ..shape.clone() }
}

fn session(model: &Model) -> Session {
    let options = spec_session_options {
        max_sequences: 3,
        max_rows: 64,
        max_drafts: DRAFTS,
        max_position: 100,
        ..session_options()
    };
    Session::create(model, &options).expect("a session")
}

/// A prompt for each of three sequences, one of them sampled, and a round on top.
fn drafts(session: &Session, widths: &[usize]) -> Vec<Drafts> {
    let mut random = Random::new(11);
    let texts: Vec<Text> = (0..3).map(|_| Text::random(&mut random, 40, 96, widths)).collect();
    let sampled = Sampling { temperature: 0.9, seed: 3, ..Sampling::default() };
    let turns = |rows: [std::ops::Range<usize>; 3]| -> Vec<Turn<'_>> {
        let turns = texts.iter().zip(rows).enumerate().map(|(slot, (text, rows))| Turn {
            sampling: if slot == 1 { sampled } else { Sampling::default() },
            ..Turn::new(text, rows, DRAFTS, Place::Slot(slot as i32))
        });
        turns.collect()
    };
    let mut all = Vec::new();
    for rows in [[0..20, 0..7, 0..31], [20..21, 7..12, 31..33]] {
        all.extend(DraftCall::of(&turns(rows)).run(session).expect("a drafting call"));
    }
    session.poll().expect("no fault");
    assert!(all.iter().all(|drafts| drafts.tokens.len() == DRAFTS as usize));
    all
}

fn drafts_of(model: &Model) -> Vec<Drafts> {
    drafts(&session(model), &model.widths())
}

/// The first converter copied its target's embedding in F32 beside weights of 16 bits.
#[test]
fn an_embedding_of_another_type_than_the_other_weights_drafts_like_one_of_the_same() {
    let context = Context::with_threads(2);
    let directory = Shape { dtype: Dtype::Bf16, ..Shape::default() }.write("one-type", 3);
    let expected = drafts_of(&Model::load(&context, &directory, None).expect("a model"));
    let path = directory.join("model.safetensors");
    let bytes = std::fs::read(&path).expect("weights");
    let stored = SafeTensors::deserialize(&bytes).expect("tensors");
    let table = stored.tensor("embed_tokens.weight").expect("an embedding");
    assert_eq!(table.dtype(), FileDtype::BF16);
    let wide: Vec<u8> = table.data().chunks(2).flat_map(|two| [0, 0, two[0], two[1]]).collect();
    let wide = TensorView::new(FileDtype::F32, table.shape().to_vec(), &wide).expect("a table");
    let tensors = stored.tensors().into_iter().map(|(name, view)| match &*name {
        "embed_tokens.weight" => (name, wide.clone()),
        _ => (name, view),
    });
    serialize_to_file(tensors, None, &path).expect("weights");
    let model = Model::load(&context, &directory, None).expect("a model");
    let used = &model.report()["tensors"]["used"];
    let types = used.as_array().expect("a list").iter().map(|tensor| tensor["dtype"].to_string());
    assert_eq!(types.filter(|dtype| dtype == "\"F32\"").count(), 1);
    assert!(drafts_of(&model) == expected);
}

#[test]
fn settings_of_training_and_of_tokenizers_change_no_draft() {
    let context = Context::with_threads(2);
    let directory = Shape::default().write("without-effect", 4);
    let expected = drafts_of(&Model::load(&context, &directory, None).expect("a model"));
    let settings = json!({"torch_dtype": "float16", "embed_requires_grad": true,
        "transformer_layer_config": {"pad_token_id": 5, "tie_word_embeddings": true}});
    let overrides = CString::new(settings.to_string()).expect("no NUL");
    let options = spec_model_options { config_overrides: overrides.as_ptr(), ..Versioned::blank() };
    let model = Model::load_with(&context, &directory, &options).expect("a model");
    assert!(drafts_of(&model) == expected);
    let unused = &model.report()["unused_settings"];
    assert_eq!(unused["torch_dtype"], "float16");
    assert_eq!(unused["transformer_layer_config.pad_token_id"], 5);
}

fn load_mapped(context: &Context, directory: &Path, verifier: Option<&Path>) -> Model {
    let verifier = verifier.map(c_path);
    let options = spec_model_options {
        flags: SPEC_MODEL_MAP_FILES,
        verifier_directory: verifier.as_ref().map_or(null(), |path| path.as_ptr()),
        ..Versioned::blank()
    };
    Model::load_with(context, directory, &options).expect("a model")
}

#[test]
fn mapped_files_draft_like_copied_weights() {
    if !device::is_cpu_or_skipped("CUDA devices do not read mapped files") {
        return;
    }
    let context = Context::with_threads(2);
    for dtype in Dtype::ALL {
        for (name, shape) in shapes(dtype) {
            let directory = shape.write(&format!("mapped-{name}"), 1);
            let verifier = shape.write_verifier(&format!("mapped-{name}-target"), 2, 0);
            let lacking = lacking(&shape).write(&format!("mapped-{name}-lacking"), 1);
            for (directory, verifier) in [(directory, None), (lacking, Some(&*verifier))] {
                let copied = Model::load(&context, &directory, verifier).expect("a model");
                let mapped = load_mapped(&context, &directory, verifier);
                assert_eq!(mapped.report(), copied.report());
                assert!(
                    mapped.info().weight_bytes < copied.info().weight_bytes / 2,
                    "{name}: {} bytes are copied of {}",
                    mapped.info().weight_bytes,
                    copied.info().weight_bytes
                );
                assert!(drafts_of(&mapped) == drafts_of(&copied), "{name}");
            }
        }
    }
}

/// Of these layers, gains and the halves of the query map are copied in another form than they are stored.
#[test]
fn mapped_files_of_hybrid_layers_draft_like_copied_weights() {
    if !device::is_cpu_or_skipped("CUDA devices do not read mapped files") {
        return;
    }
    let context = Context::with_threads(2);
    let mut compared = 0;
    for case in golden::cases().into_iter().filter(|case| case.is_hybrid()) {
        let copied = Model::load(&context, &case.directory, Some(&case.target)).expect("a model");
        let mapped = load_mapped(&context, &case.directory, Some(&case.target));
        assert_eq!(mapped.report(), copied.report());
        assert!(mapped.info().weight_bytes < copied.info().weight_bytes / 3, "{}", case.name);
        assert!(drafts_of(&mapped) == drafts_of(&copied), "{}", case.name);
        compared += 1;
    }
    assert!(compared > 1, "{compared} cases");
}

#[test]
fn mapped_weights_outlive_the_names_of_their_files_and_all_other_handles() {
    if !device::is_cpu_or_skipped("CUDA devices do not read mapped files") {
        return;
    }
    let context = Context::with_threads(1);
    let directory = Shape::default().write("unlinked", 5);
    let copied = drafts_of(&Model::load(&context, &directory, None).expect("a model"));
    let model = load_mapped(&context, &directory, None);
    let (session, widths) = (session(&model), model.widths());
    std::fs::remove_dir_all(&directory).expect("files to remove");
    drop(model);
    drop(context);
    assert!(drafts(&session, &widths) == copied);
}

/// A table of the target in the host's memory, in pieces.
struct Table {
    pieces: Vec<Piece>,
}

struct Piece {
    first_row: usize,
    rows: Matrix,
    /// What is lent instead, where it is to lie in memory of the device itself.
    copy: Option<DeviceMatrix>,
}

impl Table {
    /// Cuts a stored table before these rows. Rows lie further apart than they are wide.
    fn read(verifier: &Path, name: &str, dtype: Dtype, cuts: &[usize]) -> Self {
        let stored = Tensors::read(&verifier.join("model.safetensors"));
        let table = stored.matrix(name).expect("a table");
        let ends = cuts.iter().copied().chain([table.rows]);
        let mut first = 0;
        let pieces = ends.map(|end| {
            let rows: Vec<f32> = (first..end).flat_map(|row| table.row(row)).collect();
            let rows = Matrix::new(end - first, table.columns, &rows);
            let rows = rows.converted(dtype, table.columns + 8);
            let piece = Piece { first_row: first, rows, copy: None };
            first = end;
            piece
        });
        Self { pieces: pieces.collect() }
    }

    fn ranges(&self) -> Vec<spec_row_range> {
        let range = |piece: &Piece| spec_row_range {
            tensor: piece.copy.as_ref().map_or_else(|| piece.rows.tensor(), DeviceMatrix::tensor),
            first_row: piece.first_row as i64,
        };
        self.pieces.iter().map(range).collect()
    }
}

/// Both tables of the target, and how often the library gave them back.
struct Loan {
    embedding: Table,
    head: Table,
    returns: Box<AtomicUsize>,
}

impl Loan {
    fn of(verifier: &Path, dtype: Dtype, cuts: &[usize]) -> Self {
        Self {
            embedding: Table::read(verifier, "model.embed_tokens.weight", dtype, cuts),
            head: Table::read(verifier, "lm_head.weight", dtype, cuts),
            returns: Box::default(),
        }
    }

    /// The same tables in memory of the device itself.
    fn in_device_memory(mut self) -> Self {
        for piece in self.embedding.pieces.iter_mut().chain(&mut self.head.pieces) {
            piece.copy = Some(piece.rows.on_device());
        }
        self
    }

    fn returns(&self) -> usize {
        self.returns.load(Ordering::Relaxed)
    }

    fn load(&self, context: &Context, directory: &Path, overrides: Option<&str>) -> Outcome<Model> {
        unsafe extern "C" fn returned(count: *mut c_void) {
            // SAFETY: a loan's counter, which lives as long as the loan.
            unsafe { &*count.cast::<AtomicUsize>() }.fetch_add(1, Ordering::Relaxed);
        }
        let overrides = overrides.map(|text| CString::new(text).expect("no NUL"));
        let (embedding, head) = (self.embedding.ranges(), self.head.ranges());
        let options = spec_model_options {
            config_overrides: overrides.as_ref().map_or(null(), |text| text.as_ptr()),
            embedding: embedding.as_ptr(),
            num_embedding: embedding.len() as i32,
            head: head.as_ptr(),
            num_head: head.len() as i32,
            lent_release: Some(returned),
            lent_user: (&raw const *self.returns).cast_mut().cast(),
            ..Versioned::blank()
        };
        Model::load_with(context, directory, &options)
    }
}

/// Loads a checkpoint without tables once from its verifier's directory and lent in many ways.
fn assert_lent_tables_draft_like_read_ones(padding: usize) {
    let context = Context::with_threads(2);
    for dtype in Dtype::ALL {
        for (name, shape) in shapes(dtype) {
            let name = format!("lent-{padding}-{name}");
            let verifier = shape.write_verifier(&format!("{name}-target"), 7, padding);
            let directory = lacking(&shape).write(&name, 8);
            let read = Model::load(&context, &directory, Some(&verifier)).expect("a model");
            let expected = drafts_of(&read);
            for cuts in [&[][..], &[1], &[95], &[17, 18, 64]] {
                let loan = || Loan::of(&verifier, dtype, cuts);
                for loan in [loan(), loan().in_device_memory()] {
                    let lent = loan.load(&context, &directory, None).expect("a model");
                    assert!(drafts_of(&lent) == expected, "{name}, cut at {cuts:?}");
                    drop(lent);
                    assert_eq!(loan.returns(), 1, "{name}");
                }
            }
        }
    }
}

#[test]
fn lent_tables_draft_like_those_of_the_verifiers_directory() {
    assert_lent_tables_draft_like_read_ones(0);
}

/// Engines pad vocabularies to round sizes; the rows beyond are no tokens and make no logits.
#[test]
fn rows_of_lent_tables_beyond_the_vocabulary_are_not_looked_at() {
    assert_lent_tables_draft_like_read_ones(32);
}

/// A checkpoint without tables, and both tables of its target.
fn borrower(name: &str) -> (PathBuf, Loan) {
    let shape = Shape { draft_vocabulary: 96, ..Shape::default() };
    let verifier = shape.write_verifier(&format!("{name}-target"), 9, 0);
    (lacking(&shape).write(name, 10), Loan::of(&verifier, Dtype::F32, &[40]))
}

#[test]
fn lent_tables_are_given_back_once_after_the_last_handle_whichever_it_is() {
    let context = Context::with_threads(1);
    let (directory, loan) = borrower("order");
    let load = || loan.load(&context, &directory, None).expect("a model");

    let model = load();
    let sessions = [session(&model), session(&model)];
    let expected = drafts(&sessions[0], &model.widths());
    let widths = model.widths();
    drop(model);
    assert_eq!(loan.returns(), 0, "two sessions are left");
    let [first, second] = sessions;
    drop(first);
    assert_eq!(loan.returns(), 0, "a session is left");
    assert!(drafts(&second, &widths) == expected);
    drop(second);
    assert_eq!(loan.returns(), 1, "nothing is left");

    let model = load();
    drop(session(&model));
    assert_eq!(loan.returns(), 1, "the model is left");
    assert!(drafts_of(&model) == expected);
    drop(model);
    assert_eq!(loan.returns(), 2, "nothing is left of the second model either");
}

#[test]
fn lent_tables_are_not_given_back_by_a_load_that_fails() {
    /// Has no memory for weights.
    unsafe extern "C" fn refuse(_: *mut c_void, _: u64, _: u64, _: i32) -> *mut c_void {
        std::ptr::null_mut()
    }
    unsafe extern "C" fn release(_: *mut c_void, _: *mut c_void, _: u64, _: i32) {
        unreachable!("nothing was allocated");
    }
    let (directory, loan) = borrower("refused");
    let poor =
        spec_allocator { allocate: Some(refuse), release: Some(release), ..Versioned::blank() };
    let poor =
        spec_context_options { threads: 1, allocator: &poor, ..Context::options(Device::chosen()) };
    let (poor, context) = (Context::create(&poor).expect("a context"), Context::with_threads(1));
    let status = |outcome: Outcome<Model>| outcome.map(|_| ()).expect_err("a failure").status;
    let refused = [
        (SPEC_ERROR_OUT_OF_MEMORY, loan.load(&poor, &directory, None)),
        (SPEC_ERROR_INVALID_ARGUMENT, loan.load(&context, &directory, Some("{"))),
        (SPEC_ERROR_FORMAT, loan.load(&context, &directory, Some(r#"{"draft_vocab_size": -1}"#))),
        (SPEC_ERROR_IO, loan.load(&context, &directory.join("nowhere"), None)),
    ];
    for (expected, outcome) in refused {
        assert_eq!(status(outcome), expected);
    }
    assert_eq!(loan.returns(), 0);
}

/// Names in a list of the report's objects.
fn names(objects: &Value) -> Vec<&str> {
    let objects = objects.as_array().expect("a list");
    objects.iter().map(|object| object["name"].as_str().expect("a name")).collect()
}

#[test]
fn the_load_report_accounts_for_tensors_defaults_corrections_and_settings() {
    let context = Context::with_threads(1);
    let shape = Shape { layers: 2, draft_vocabulary: 96, ..Shape::default() };
    let verifier = shape.write_verifier("report-target", 12, 0);
    let directory = lacking(&shape).write("report", 13);
    let config = directory.join("config.json");
    let mut settings = host::golden::read_json(&config);
    settings["made_up"] = json!({"by": "nobody"});
    settings["transformer_layer_config"].as_object_mut().expect("settings").remove("hidden_act");
    std::fs::write(&config, settings.to_string()).expect("a config");

    let overrides =
        json!({"transformer_layer_config": {"num_hidden_layers": 1}, "target_hidden_size": 47});
    let (text, path) = (CString::new(overrides.to_string()).expect("no NUL"), c_path(&verifier));
    let options = spec_model_options {
        verifier_directory: path.as_ptr(),
        config_overrides: text.as_ptr(),
        ..Versioned::blank()
    };
    let model = Model::load_with(&context, &directory, &options).expect("a model");
    let report = model.report();
    assert_eq!(report["kind"], "eagle3");
    assert_eq!(report["directory"], directory.to_str().expect("a UTF-8 path"));
    assert_eq!(report["files"], json!(["model.safetensors"]));
    let tensors = &report["tensors"];
    let used = tensors["used"].as_array().expect("a list");
    let fc = used.iter().find(|tensor| tensor["name"] == "fc.weight").expect("fc");
    assert_eq!((&fc["dtype"], &fc["shape"]), (&json!("F32"), &json!([48, 144])));
    let unused = names(&tensors["unused"]);
    assert!(!unused.is_empty() && unused.iter().all(|name| name.starts_with("layers.1.")));
    assert!(!names(&tensors["used"]).iter().any(|name| name.starts_with("layers.1.")));
    assert_eq!(names(&tensors["absent"]), ["embed_tokens.weight", "lm_head.weight"]);
    assert_eq!(tensors["absent"][0]["instead"], "read from the verifier");
    let read = names(&report["verifier"]["tensors"]);
    assert_eq!(read, ["model.embed_tokens.weight", "lm_head.weight"]);
    assert_eq!(report["verifier"]["directory"], verifier.to_str().expect("a UTF-8 path"));
    let assumed = report["assumed_defaults"].as_object().expect("settings");
    assert!(assumed.iter().any(|(name, value)| name.contains("hidden_act") && value == "silu"));
    assert_eq!(report["unknown_settings"]["made_up"], json!({"by": "nobody"}));
    assert_eq!(report["overrides"], overrides);
    let lines = |section: &str| -> Vec<String> {
        serde_json::from_value(report[section].clone()).expect("lines")
    };
    let corrected = lines("corrected");
    assert!(corrected.iter().any(|line| line.contains("target_hidden_size: 48")), "{corrected:?}");
    let warnings = lines("warnings");
    assert!(corrected.iter().all(|line| warnings.contains(line)), "{warnings:?}");
    assert!(warnings.iter().any(|line| line.contains("layers.1.")), "{warnings:?}");
}
