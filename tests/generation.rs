//! `speculators generate` and `speculators bench`, run as a user runs them, on the trained pair of the
//! examples and what an inference engine recorded of it.

mod program;

use program::{json_of, printed, program, project, run, text};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

const TARGET: &str = "examples/models/tiny-python/target";
const SPECULATOR: &str = "examples/models/tiny-python/eagle3";

/// How far an acceptance rate may lie from the record, which counts drafts past the end of texts, too.
const ALLOWED: f64 = 0.03;

fn reference() -> Value {
    let path = project("examples/models/tiny-python/reference.json");
    serde_json::from_slice(&fs::read(path).expect("the record")).expect("JSON")
}

/// A folder that is removed with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("generation-{name}"));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn write(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, contents).expect("a file");
        path
    }

    /// Copies a model, without its tokenizer.
    fn copy(&self, model: &Path) -> PathBuf {
        let to = self.0.join(model.file_name().expect("a name"));
        fs::create_dir(&to).expect("a folder");
        for name in ["config.json", "model.safetensors"] {
            fs::copy(model.join(name), to.join(name)).expect("a copy");
        }
        to
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The recorded prompts, as a file of JSON strings.
fn recorded_prompts(folder: &Folder) -> PathBuf {
    let lines: Vec<String> =
        reference()["prompts"].as_array().expect("prompts").iter().map(Value::to_string).collect();
    folder.write("prompts.jsonl", &(lines.join("\n") + "\n"))
}

fn generate(arguments: &[&str]) -> std::process::Output {
    let pair = ["generate", "--model", TARGET, "--speculator", SPECULATOR];
    program().args(pair).args(arguments).output().expect("a run")
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

#[test]
fn texts_are_those_that_an_engine_has_recorded() {
    let reference = reference();
    let prompts = reference["prompts"].as_array().expect("prompts").iter();
    let recorded = reference["output_tokens"].as_array().expect("outputs");
    let mut same = 0;
    for (prompt, recorded) in prompts.zip(recorded) {
        let prompt = prompt.as_str().expect("a prompt");
        let output = generate(&["--prompt", prompt, "--tokens", "60", "--json", "--bos"]);
        printed(&output, 0);
        let found = json_of(&output);
        assert_eq!(found["identical"], true, "{prompt}");
        let tokens = found["tokens"].as_array().expect("tokens");
        same += usize::from(recorded.as_array().expect("tokens").starts_with(tokens));
    }
    // Where two tokens are nearly as probable, single precision may differ from the engine's.
    assert!(same + 1 >= recorded.len(), "{same} of {} texts", recorded.len());
}

#[test]
fn figures_are_those_that_an_engine_has_recorded() {
    let folder = Folder::new("figures");
    let prompts = recorded_prompts(&folder);
    let pair = ["bench", "--model", TARGET, "--speculator", SPECULATOR, "--json"];
    let options = ["--drafts", "5,1,3", "--ignore-eos", "--bos", "--tokens", "128", "--prompts"];
    let output = program().args(pair).args(options).arg(&prompts).output().expect("a run");
    printed(&output, 0);
    let found = json_of(&output);
    assert_eq!(found["without_speculation"]["tokens_per_target_pass"], 1.0);
    let ways = found["with_speculation"].as_array().expect("ways");
    let drafts: Vec<_> = ways.iter().map(|way| way["proposes"].clone()).collect();
    let expected = [1, 3, 5].map(|k| json!({"kind": "chain", "drafts": k}));
    assert_eq!(drafts, expected);
    for (way, k) in ways.iter().zip([1, 3, 5]) {
        let recorded = &reference()["speculators"]["eagle3"][format!("K{k}")];
        let figures = &way["figures"];
        let close = |found: &Value, recorded: &Value, what: &str| {
            let (found, recorded) = (number(found), number(recorded));
            assert!((found - recorded).abs() <= ALLOWED, "K={k}, {what}: {found}, {recorded}");
        };
        // What the record counts of passes that go past the end is not emitted here.
        let (passes, rounds) = (number(&figures["target_passes"]), number(&recorded["drafts"]));
        assert!((passes / rounds - 1.0).abs() <= 0.01, "K={k}: {passes} passes, {rounds}");
        let unconditional = recorded["acceptance_rate_per_position"].as_array().expect("rates");
        let rates = figures["acceptance_by_position"].as_array().expect("rates");
        assert_eq!(rates.len(), k);
        for (found, recorded) in rates.iter().zip(unconditional) {
            close(found, recorded, "acceptance");
        }
        assert_eq!(way["identical_texts"], found["prompts"], "K={k}");
    }
}

/// A model that drafts for itself is always right.
#[test]
fn a_target_accepts_all_that_it_would_say_itself() {
    let folder = Folder::new("itself");
    let prompts = folder.write("prompts", "def main():\\n    \nimport os\n");
    let pair = ["bench", "--model", TARGET, "--speculator", TARGET, "--json", "--ignore-eos"];
    let options = ["--drafts", "3", "--tokens", "61", "--prompts"];
    let output = program().args(pair).args(options).arg(&prompts).output().expect("a run");
    printed(&output, 0);
    let way = &json_of(&output)["with_speculation"][0];
    assert_eq!(way["figures"]["acceptance_by_position"], json!([1.0, 1.0, 1.0]));
    // 60 tokens behind those of the prompts' passes, 4 of a pass.
    assert_eq!(way["figures"]["target_passes"], 30);
    assert_eq!(way["figures"]["tokens"], 120);
}

/// The reference target of this name, with a tokenizer whose words are the numbers of its tokens.
fn numbered_target(folder: &Folder, name: &str) -> PathBuf {
    let to = folder.copy(&project("tests/golden/targets").join(name));
    let config = fs::read(to.join("config.json")).expect("a config");
    let config: Value = serde_json::from_slice(&config).expect("JSON");
    let tokens = 0..config["vocab_size"].as_u64().expect("a size");
    let words: serde_json::Map<String, Value> =
        tokens.map(|token| (token.to_string(), token.into())).collect();
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "0"},
    });
    fs::write(to.join("tokenizer.json"), tokenizer.to_string()).expect("a file");
    to
}

/// The reference speculators of a target.
fn speculators_of(target: &str) -> Vec<PathBuf> {
    let below = |path: &Path| {
        let entries = fs::read_dir(path).expect("the reference data");
        let mut all: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        all.retain(|path| path.is_dir());
        all.sort();
        all
    };
    let kinds = below(&project("tests/golden/speculators"));
    let mut all: Vec<PathBuf> = kinds.iter().flat_map(|kind| below(kind)).collect();
    all.retain(|path| {
        let about = fs::read(path.join("about.json")).expect("a description");
        let about: Value = serde_json::from_slice(&about).expect("JSON");
        about["target"] == target
    });
    all
}

/// What is drafted at random is hardly ever accepted, and must not change the text all the same.
#[test]
fn speculators_of_all_kinds_leave_texts_as_they_are() {
    let folder = Folder::new("kinds");
    let prompts = folder.write("prompts", "5 17 33 8 100 201\n3\n");
    for name in ["llama_untied", "qwen3_tied"] {
        let target = numbered_target(&folder, name);
        let speculators = speculators_of(name);
        assert!(speculators.len() > 10, "{} speculators", speculators.len());
        for sampling in ["--temperature=0", "--temperature=1"] {
            let mut command = program();
            command.args(["bench", "--json", "--ignore-eos", "--tokens=20", "--drafts=1,4"]);
            command.args(["--tree=static:7,dynamic:9:3:3,stochastic:6", sampling]);
            command.arg("--model").arg(&target).arg("--prompts").arg(&prompts);
            for speculator in &speculators {
                command.arg("--speculator").arg(speculator);
            }
            // It ends so where any text differs that must not.
            let output = command.output().expect("a run");
            printed(&output, 0);
            let told = text(&output.stderr);
            let ways = json_of(&output)["with_speculation"].as_array().expect("ways").clone();
            let refused = told.matches("trees are not drafted").count();
            assert_eq!(ways.len() + refused, 5 * speculators.len(), "{told}");
            assert_eq!(refused, 3, "those of XPress: {told}");
            let accepts = |way: &&Value| number(&way["figures"]["tokens_per_target_pass"]) > 1.0;
            assert!(ways.iter().filter(accepts).count() > ways.len() / 4, "some are accepted");
        }
    }
}

#[test]
fn what_people_read_is_the_text_and_then_the_figures() {
    let prompt = "class Stack:\n    \"\"\"Stapel für alles.\"\"\"\n";
    let arguments = ["--prompt", prompt, "--drafts", "2", "--tokens", "30"];
    let out = printed(&generate(&arguments), 0);
    let json = json_of(&generate(&[&arguments[..], &["--json"]].concat()));
    let (told, figures) = out.split_once("\n----\n").expect("figures behind the text");
    assert_eq!(told, format!("{prompt}{}", json["text"].as_str().expect("a text")));
    let per_pass = number(&json["with_speculation"]["tokens_per_target_pass"]);
    let first = format!(
        "tokens per target pass: {per_pass:.3} with a chain of 2, 1.000 without\n\
         acceptance by position, in {} passes:\n",
        json["with_speculation"]["target_passes"]
    );
    assert!(figures.starts_with(&first), "{figures}");
    assert!(figures.ends_with("texts: identical\n"), "{figures}");
    let alone = printed(&generate(&[&arguments[..], &["--no-comparison"]].concat()), 0);
    assert!(alone.starts_with(told) && !alone.contains("without"), "{alone}");
}

/// A copy of the trained target with another tokenizer.
fn with_tokenizer(folder: &Folder, change: impl Fn(&mut Value)) -> PathBuf {
    let target = folder.copy(&project(TARGET));
    let tokenizer = fs::read(project(TARGET).join("tokenizer.json")).expect("a tokenizer");
    let mut tokenizer = serde_json::from_slice(&tokenizer).expect("JSON");
    change(&mut tokenizer);
    fs::write(target.join("tokenizer.json"), tokenizer.to_string()).expect("a file");
    target
}

fn generate_with(target: &Path, arguments: &[&str]) -> Value {
    let mut command = program();
    command.args(["generate", "--speculator", SPECULATOR, "--json", "--model"]).arg(target);
    let output = command.args(arguments).output().expect("a run");
    printed(&output, 0);
    json_of(&output)
}

#[test]
fn prompts_are_neither_cut_nor_filled_as_tokenizers_were_in_training() {
    let folder = Folder::new("truncation");
    let target = with_tokenizer(&folder, |tokenizer| {
        tokenizer["truncation"] = json!({
            "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0,
        });
        tokenizer["padding"] = json!({
            "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "x",
        });
    });
    let prompt = ["--prompt", "import os\nimport sys\n\nclass Node:\n", "--tokens", "12"];
    let expected = json_of(&generate(&[&prompt[..], &["--json"]].concat()));
    assert_eq!(generate_with(&target, &prompt)["tokens"], expected["tokens"]);
}

/// What stands at the beginning of a text loses its space; what goes on behind a prompt must not.
#[test]
fn texts_go_on_with_the_space_that_their_first_token_has() {
    let folder = Folder::new("space");
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let target = with_tokenizer(&folder, |tokenizer| {
        let own = tokenizer["decoder"].clone();
        tokenizer["decoder"] = json!({"type": "Sequence", "decoders": [own, strip]});
    });
    let request =
        ["--prompt", "class A:\n    def __init__(self, x):\n        self.x =", "--tokens", "4"];
    let expected = json_of(&generate(&[&request[..], &["--json"]].concat()))["text"].clone();
    assert!(expected.as_str().is_some_and(|text| text.starts_with(' ')), "{expected}");
    assert_eq!(generate_with(&target, &request)["text"], expected);
}

#[test]
fn trees_may_be_as_wide_and_deep_as_anyone_asks_for() {
    let prompt = ["--prompt", "import os\n", "--tokens", "12", "--tree"];
    for (tree, drafts) in
        [("dynamic:600:2:300", 599), ("dynamic:16:1000:1000", 15), ("dynamic:64:1:4", 4)]
    {
        let output = generate(&[&prompt[..], &[tree, "--json"]].concat());
        printed(&output, 0);
        let found = json_of(&output);
        assert_eq!(
            (&found["identical"], &found["proposes"]["drafts"]),
            (&true.into(), &drafts.into())
        );
    }
}

#[test]
fn results_that_cannot_be_written_are_refused_before_all_the_work() {
    let folder = Folder::new("unwritable");
    let prompts = folder.write("prompts", "import os\n");
    let bench = ["bench", "--model", TARGET, "--speculator", SPECULATOR, "--prompts"];
    for option in ["--results", "--chart"] {
        let output = program()
            .args(bench)
            .arg(&prompts)
            .args([option, "nowhere/file"])
            .output()
            .expect("a run");
        assert_eq!(printed(&output, 2), "");
        assert!(text(&output.stderr).contains("nowhere/file"), "{}", text(&output.stderr));
    }
}

#[test]
fn a_text_of_one_token_has_nothing_to_draft() {
    let out = printed(&generate(&["--prompt", "import os\n", "--tokens", "1"]), 0);
    assert!(out.contains("\n----\nno pass behind the prompt's"), "{out}");
    let folder = Folder::new("one-token");
    let prompts = folder.write("prompts", "import os\n");
    let bench = ["bench", "--model", TARGET, "--speculator", SPECULATOR, "--tokens", "1"];
    let table = program().args(bench).arg("--prompts").arg(&prompts).output().expect("a run");
    assert!(!printed(&table, 0).contains("NaN"));
}

#[test]
fn speculators_of_one_name_are_told_apart() {
    let folder = Folder::new("names");
    let prompts = folder.write("prompts", "import os\n");
    let other = folder.0.join("eagle3");
    std::os::unix::fs::symlink(project(SPECULATOR), &other).expect("a link");
    let bench = ["bench", "--model", TARGET, "--speculator", SPECULATOR, "--tokens", "8"];
    let output = program()
        .args(bench)
        .args(["--drafts", "2", "--prompts"])
        .arg(&prompts)
        .arg("--speculator")
        .arg(&other)
        .output()
        .expect("a run");
    let table = printed(&output, 0);
    for path in [SPECULATOR, other.to_str().expect("UTF-8")] {
        assert!(table.contains(&format!("\n{path}, chain of 2 ")), "{table}");
    }
}

#[test]
fn a_prompt_may_come_from_a_file() {
    let folder = Folder::new("file");
    let file = folder.write("prompt", "def f(x):\n");
    let from_file = generate(&["--prompt-file", file.to_str().expect("UTF-8"), "--json"]);
    let given = generate(&["--prompt", "def f(x):\n", "--json"]);
    printed(&from_file, 0);
    assert_eq!(json_of(&from_file)["tokens"], json_of(&given)["tokens"]);
}

#[test]
fn texts_end_where_the_target_ends_them() {
    let folder = Folder::new("ends");
    let target = folder.copy(&project(TARGET));
    let tokenizer = project(TARGET).join("tokenizer.json");
    fs::copy(tokenizer, target.join("tokenizer.json")).expect("a copy");
    let request = ["--prompt", "import os\n", "--json", "--tokens", "40", "--temperature", "1"];
    let whole = json_of(&generate(&request));
    let tokens = whole["tokens"].as_array().expect("tokens");
    // The first token that comes somewhere in the middle for the first time.
    let at = (10..40).find(|&at| !tokens[..at].contains(&tokens[at])).expect("a new token");
    let ends = json!({"eos_token_id": [tokens[at], 1999]});
    fs::write(target.join("generation_config.json"), ends.to_string()).expect("a file");
    let output = program()
        .args(["generate", "--speculator", SPECULATOR, "--model"])
        .arg(&target)
        .args(request)
        .output()
        .expect("a run");
    printed(&output, 0);
    assert_eq!(json_of(&output)["tokens"].as_array().expect("tokens")[..], tokens[..=at]);
}

#[test]
fn sampled_texts_depend_on_the_seed_and_trees_of_likely_tokens_change_none() {
    let sampled = |arguments: &[&str]| {
        let all = ["--prompt", "import ", "--json", "--temperature", "0.9", "--top-k", "40"];
        let output = generate(&[&all[..], &["--tokens", "40"], arguments].concat());
        printed(&output, 0);
        json_of(&output)
    };
    for tree in ["static:12", "dynamic:12:5:3"] {
        let found = sampled(&["--tree", tree, "--seed", "7"]);
        assert_eq!(found["identical"], true, "{tree}");
        assert_eq!(found["proposes"]["drafts"], 11);
    }
    for tree in [&["--tree", "stochastic:12"][..], &["--drafts", "4"]] {
        let seeded = |seed| sampled(&[tree, &["--seed", seed]].concat())["tokens"].clone();
        assert_eq!(seeded("7"), seeded("7"));
        assert_ne!(seeded("7"), seeded("8"));
    }
}

#[test]
fn results_and_chart_tell_of_every_way() {
    let folder = Folder::new("chart");
    let prompts = folder.write(
        "prompts",
        "def main():\\n\n\n\"import os\\n\"\n{\"prompt\": \"class A:\\n\"}\n{\"turns\": [\"for i in\", \"no\"]}\n",
    );
    let (results, chart) = (folder.0.join("results.json"), folder.0.join("chart.svg"));
    let output = program()
        .args(["bench", "--model", TARGET, "--speculator", SPECULATOR, "--speculator", TARGET])
        .args(["--tokens", "24", "--drafts", "1,2", "--tree", "static:6,dynamic:8", "--prompts"])
        .arg(&prompts)
        .arg("--results")
        .arg(&results)
        .arg("--chart")
        .arg(&chart)
        .output()
        .expect("a run");
    let table = printed(&output, 0);
    let results: Value = serde_json::from_slice(&fs::read(results).expect("a file")).expect("JSON");
    assert_eq!(results["prompts"], 4);
    let ways = results["with_speculation"].as_array().expect("ways");
    assert_eq!(ways.len(), 8);
    assert_eq!(table.lines().count(), 2 + 8, "{table}");
    let chart = fs::read_to_string(chart).expect("a chart");
    assert!(chart.starts_with("<svg") && chart.trim_end().ends_with("</svg>"));
    for name in [
        "eagle3, chains",
        "target, static tree of 6",
        "eagle3, dynamic tree of 8",
        "target, greedy",
    ] {
        assert!(chart.contains(name), "{name}");
    }
    // A dot for every acceptance rate of the six lines, one for every way in both other panels, one for every
    // name.
    let rate_counts = [1, 2, 3, 5, 6, 7]
        .map(|way| ways[way]["figures"]["acceptance_by_position"].as_array().expect("rates").len());
    let dots = rate_counts.iter().sum::<usize>() + 2 * 8 + 6;
    assert_eq!(chart.matches("<circle").count(), dots);
}

#[test]
fn what_cannot_be_decoded_is_refused_with_the_reason() {
    let folder = Folder::new("refusals");
    let empty = folder.write("empty", "\n\n");
    let wrong = folder.write("wrong", "good\n{\"text\": 1}\n");
    let (empty, wrong) = (empty.to_str().expect("UTF-8"), wrong.to_str().expect("UTF-8"));
    let golden = "tests/golden/speculators/eagle3/llama_base";
    let generate = ["generate", "--model", TARGET, "--speculator", SPECULATOR];
    let bench = ["bench", "--model", TARGET, "--speculator", SPECULATOR, "--prompts"];
    let long = "def ".repeat(3000);
    let cases: [(Vec<&str>, i32, &str); 13] = [
        ([&generate[..], &["--prompt", ""]].concat(), 2, "one token at least"),
        ([&generate[..], &["--prompt", &long]].concat(), 2, "expected at most"),
        ([&generate[..], &["--prompt-file", "nowhere"]].concat(), 2, "nowhere: "),
        ([&generate[..], &[]].concat(), 64, "--prompt"),
        ([&generate[..], &["--prompt", "a", "--tree", "tall:3"]].concat(), 64, "static:NODES"),
        ([&generate[..], &["--prompt", "a", "--tree", "static:1"]].concat(), 64, "2 nodes"),
        ([&generate[..], &["--prompt", "a", "--tree", "static:9999"]].concat(), 64, "1024"),
        ([&generate[..], &["--prompt", "a", "--temperature=-1"]].concat(), 64, "--temperature"),
        (
            vec!["generate", "--model", SPECULATOR, "--speculator", SPECULATOR, "--prompt", "a"],
            2,
            "tokenizer.json: ",
        ),
        (
            vec!["generate", "--model", TARGET, "--speculator", golden, "--prompt", "a"],
            2,
            "features of width 80",
        ),
        ([&bench[..], &[empty]].concat(), 2, "expected a prompt on each line, found none"),
        ([&bench[..], &[wrong]].concat(), 2, "line 2: expected a string"),
        ([&bench[..], &[TARGET, "--drafts", "0"]].concat(), 64, "--drafts"),
    ];
    for (arguments, code, expected) in cases {
        let output = program().args(&arguments).output().expect("a run");
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        assert!(told.contains(expected), "{arguments:?}: {told}");
    }
    let output =
        run(&[&"bench", &"--model", &TARGET, &"--speculator", &SPECULATOR, &"--prompts", &wrong]);
    assert!(output.stdout.is_empty(), "nothing is printed before all prompts are read");
}
