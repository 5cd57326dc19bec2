//! The reference cases: found from their manifests, read into plain vectors.

use super::matrix::Matrix;
use super::{Context, Model, Outcome, Versioned, c_path, inspect};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use speculators::capi::{spec_feature, spec_model_options};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::ptr::null;

/// The folder of the reference data.
pub fn root() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    std::env::var_os("SPECULATORS_GOLDEN").map_or_else(own, PathBuf::from)
}

/// A speculator checkpoint with recorded drafts.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub kind: String,
    pub directory: PathBuf,
    pub target: PathBuf,
    /// Settings that its files do not tell.
    overrides: Option<Value>,
    /// Which of its records it matches.
    stem: &'static str,
}

/// All checkpoints that the manifest lists or that lie under `speculators`, in order of their names.
pub fn cases() -> Vec<Case> {
    let root = root();
    let mut names = BTreeSet::new();
    if let Some(manifest) = read_json_if_there(&root.join("MANIFEST.json")) {
        let listed = manifest["checkpoints"].as_array().expect("a list of checkpoints");
        names.extend(listed.iter().map(|entry| text(&entry["path"])));
    }
    for kind in folders(&root.join("speculators")) {
        for variant in folders(&root.join("speculators").join(&kind)) {
            names.insert(format!("speculators/{kind}/{variant}"));
        }
    }
    names.into_iter().map(|name| Case::read(&root, name)).collect()
}

/// The cases of kinds that the library supports.
pub fn supported_cases() -> Vec<Case> {
    let cases = cases();
    assert!(!cases.is_empty(), "no case under {}", root().display());
    let supported: Vec<Case> = cases.into_iter().filter(is_supported).collect();
    assert!(!supported.is_empty(), "the library supports none of the cases");
    supported
}

/// The cases of kinds that are recorded as another engine runs them, too.
pub fn other_semantics() -> Vec<Case> {
    supported_cases().into_iter().filter_map(Case::in_vllm).collect()
}

/// Whether the library has the kind and the family of its layers; then it must be able to load the
/// checkpoint.
fn is_supported(case: &Case) -> bool {
    let kind = CString::new(case.kind.as_str()).expect("a kind");
    // SAFETY: a string that ends with NUL.
    if unsafe { spec_feature(kind.as_ptr()) } == 0 {
        return false;
    }
    let description = inspect(&case.directory).expect("a description");
    assert_eq!(description["kind"], case.kind.as_str(), "{}", case.name);
    // Some kinds are made of layers of several families.
    let reason = description["reason"].as_str().unwrap_or_default();
    let is_supported = description["supported"] == true;
    assert!(is_supported || reason.contains("model_type: expected"), "{}: {reason}", case.name);
    is_supported
}

fn folders(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let entries = entries.map(|entry| entry.expect("a folder's entry"));
    let folders = entries.filter(|entry| entry.path().is_dir());
    folders.map(|entry| entry.file_name().into_string().expect("a UTF-8 name")).collect()
}

impl Case {
    fn read(root: &Path, name: String) -> Self {
        let directory = root.join(&name);
        let about = read_json(&directory.join("about.json"));
        let target = root.join("targets").join(text(&about["target"]));
        let kind = text(&about["kind"]);
        // The hidden state that it was trained for.
        let overrides =
            (kind == "mtp").then(|| json!({"hidden_input": text(&about["hidden_input"])}));
        // What a library matches which does what the files say: `ref` where it exists, as it was made
        // where the other one deviates.
        let stem = if directory.join("golden/ref.json").exists() { "ref" } else { "vllm" };
        Self { name, kind, directory, target, overrides, stem }
    }

    /// The same checkpoint as the other engine runs it, if there is a record of that.
    fn in_vllm(self) -> Option<Self> {
        let is_recorded = self.directory.join("golden/vllm.json").exists();
        let differs = ["dflash", "dflash2"].contains(&self.kind.as_str());
        (is_recorded && differs).then(|| Self {
            name: format!("{} (vllm)", self.name),
            overrides: Some(json!({"block_semantics": "vllm"})),
            stem: "vllm",
            ..self
        })
    }

    /// Whether its layers are of a hybrid family.
    pub fn is_hybrid(&self) -> bool {
        let config = read_json(&self.directory.join("config.json"));
        let family = &config["transformer_layer_config"]["model_type"];
        ["qwen3_5_text", "qwen3_next", "qwen3_5_moe_text"].iter().any(|hybrid| family == hybrid)
    }

    /// Loads the speculator as it was trained.
    pub fn load(&self, context: &Context) -> Outcome<Model> {
        self.load_from(context, &self.directory)
    }

    /// Loads it from another directory.
    pub fn load_from(&self, context: &Context, directory: &Path) -> Outcome<Model> {
        let verifier = c_path(&self.target);
        let overrides = self.overrides.as_ref();
        let overrides = overrides.map(|json| CString::new(json.to_string()).expect("no NUL"));
        let options = spec_model_options {
            verifier_directory: verifier.as_ptr(),
            config_overrides: overrides.as_ref().map_or(null(), |text| text.as_ptr()),
            ..Versioned::blank()
        };
        Model::load_with(context, directory, &options)
    }

    /// What it drafted.
    pub fn record(&self) -> Record {
        let golden = self.directory.join("golden");
        let description = read_json(&golden.join(self.stem).with_extension("json"));
        let tensors = Tensors::read(&golden.join(self.stem).with_extension("safetensors"));
        let runs = description["runs"].as_object().expect("the runs");
        let runs = runs.values().map(Run::parse).collect();
        Record { runs, tensors, counts_past_the_end: self.stem == "vllm" }
    }
}

/// What was recorded of one checkpoint.
#[derive(Debug)]
pub struct Record {
    pub runs: Vec<Run>,
    pub tensors: Tensors,
    /// Whether drafts that the target accepts past the end of the output are counted: an engine
    /// verifies whole rounds, a recomputation of the recorded text does not know what follows it.
    pub counts_past_the_end: bool,
}

/// The generations with one number of drafts per round.
#[derive(Clone, Debug)]
pub struct Run {
    pub drafts: usize,
    pub generations: Vec<Generation>,
}

/// One generation.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The name of the prompt among the target's activations.
    pub prompt: String,
    pub prompt_len: usize,
    pub output: Vec<i32>,
    pub rounds: u64,
    pub accepted_per_position: Vec<u64>,
    pub trace: Vec<Proposal>,
}

/// One row of a trace.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// Tokens known; the last of them has no hidden state yet.
    pub known: usize,
    pub tokens: Vec<i32>,
    /// `none`, `some`, `all` or `prefill`: how much of the round before was accepted, where named.
    pub moment: Option<String>,
    /// The prefix of the tensors of this proposal.
    pub key: Option<String>,
}

impl Run {
    fn parse(run: &Value) -> Self {
        let prompts = run["prompts"].as_object().expect("the prompts");
        let generations = prompts.iter().map(|(prompt, value)| Generation::parse(prompt, value));
        Self { drafts: number(&run["K"]) as usize, generations: generations.collect() }
    }
}

impl Generation {
    fn parse(prompt: &str, value: &Value) -> Self {
        let metrics = &value["metrics"];
        let trace = value["trace"].as_array().expect("a trace");
        let accepted = metrics["num_accepted_tokens_per_pos"].as_array().expect("the counts");
        Self {
            prompt: prompt.to_owned(),
            prompt_len: number(&value["prompt_len"]) as usize,
            output: tokens(&value["output"]),
            rounds: number(&metrics["num_drafts"]),
            accepted_per_position: accepted.iter().map(number).collect(),
            trace: trace.iter().map(Proposal::parse).collect(),
        }
    }
}

impl Proposal {
    fn parse(row: &Value) -> Self {
        Self {
            known: number(&row[0]) as usize,
            tokens: tokens(&row[2]),
            moment: row[3].as_str().map(str::to_owned),
            key: row[4].as_str().map(str::to_owned),
        }
    }
}

/// The tensors of a file, numbers as F32.
#[derive(Debug, Default)]
pub struct Tensors(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Tensors {
    pub fn read(path: &Path) -> Self {
        let bytes =
            std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let tensors = file.tensors().into_iter().map(|(name, view)| {
            let numbers = numbers(view.dtype(), view.data());
            (name, (view.shape().to_vec(), numbers))
        });
        Self(tensors.collect())
    }

    /// A tensor's numbers in row order.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.0.get(name).map(|(_, numbers)| numbers.as_slice())
    }

    /// A tensor of two dimensions.
    pub fn matrix(&self, name: &str) -> Option<Matrix> {
        let (shape, numbers) = self.0.get(name)?;
        let [rows, columns] = shape[..] else { panic!("{name}: shape {shape:?}") };
        Some(Matrix::new(rows, columns, numbers))
    }
}

fn numbers(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    use super::matrix::Dtype as Element;
    let floats = |element: Element| {
        bytes.chunks_exact(element.size()).map(|bytes| element.decode(bytes)).collect()
    };
    match dtype {
        Dtype::F32 => floats(Element::F32),
        Dtype::F16 => floats(Element::F16),
        Dtype::BF16 => floats(Element::Bf16),
        Dtype::BOOL | Dtype::U8 => bytes.iter().map(|&byte| f32::from(byte)).collect(),
        Dtype::I32 => integers(bytes, |four| i64::from(i32::from_le_bytes(four))),
        Dtype::I64 => integers(bytes, i64::from_le_bytes),
        other => panic!("the dtype {other:?} is not used by reference data"),
    }
}

/// Integers that F32 holds exactly.
fn integers<const SIZE: usize>(bytes: &[u8], decode: impl Fn([u8; SIZE]) -> i64) -> Vec<f32> {
    let values = bytes.chunks_exact(SIZE).map(|bytes| decode(bytes.try_into().expect("a chunk")));
    let exact = values.map(|value| {
        assert!(value.abs() < 1 << 24, "{value} is too large for an index");
        value as f32
    });
    exact.collect()
}

pub fn read_json(path: &Path) -> Value {
    read_json_if_there(path).unwrap_or_else(|| panic!("{}: expected a file", path.display()))
}

fn read_json_if_there(path: &Path) -> Option<Value> {
    let text = std::fs::read(path).ok()?;
    Some(
        serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
    )
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a number")
}

fn tokens(value: &Value) -> Vec<i32> {
    value.as_array().expect("tokens").iter().map(|token| number(token) as i32).collect()
}
