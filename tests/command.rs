//! The command `speculators`, run as a user runs it.

#[path = "checkpoint/fixture.rs"]
#[allow(dead_code)]
mod fixture;
#[path = "checkpoint/original.rs"]
#[allow(dead_code)]
mod original;
mod program;

use fixture::{Directory, Fixture, Stored, Tensors, only_nan, write_index, write_tensors};
use original::Original;
use program::{json_of, printed, program, project, run, text};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The reference checkpoints.
fn references() -> Vec<String> {
    let below = |folder: &str| {
        let entries = fs::read_dir(project(folder)).expect("the reference data");
        let names = entries
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"));
        let mut paths: Vec<_> = names.map(|name| format!("{folder}/{name}")).collect();
        paths.retain(|path| project(path).is_dir());
        paths.sort();
        paths
    };
    below("tests/golden/speculators").iter().flat_map(|kind| below(kind)).collect()
}

/// What `inspect` and `check` say of a checkpoint, beside a verifier if there is one.
fn described(directory: &dyn AsRef<OsStr>, verifier: Option<&str>) -> String {
    let inspected = printed(&run(&[&"inspect", directory, &"--tensors"]), 0);
    let mut check = program();
    check.arg("check").arg(directory.as_ref());
    if let Some(verifier) = verifier {
        check.args(["--verifier", verifier]);
    }
    let check = check.output().expect("a run");
    let code = check.status.code();
    format!("{inspected}\n==== check: exit code {code:?}\n\n{}", text(&check.stdout))
}

/// Compares a text with the one that a reader has approved; `UPDATE_REPORTS` writes it anew.
fn approve(name: &str, found: &str) {
    let path = project("tests/command").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_REPORTS").is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, found).expect("a snapshot");
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, expected, "{}: approve it with UPDATE_REPORTS=1", path.display());
}

// ---- What people read ------------------------------------------------------------------------------

#[test]
fn help_is_what_a_reader_has_approved() {
    let mut all = printed(&run(&[&"--help"]), 0);
    for command in [
        "inspect",
        "check",
        "convert",
        "stitch-mtp",
        "generate",
        "bench",
        "selftest",
        "completions",
    ] {
        let output = run(&[&command, &"--help"]);
        all.push_str(&format!("\n==== {command}\n\n{}", printed(&output, 0)));
        // Each shows how it is used.
        assert!(
            text(&output.stdout).contains(&format!("  speculators {command} "))
                || command == "selftest"
        );
    }
    approve("help", &all);
}

#[test]
fn descriptions_and_checks_are_what_a_reader_has_approved() {
    for directory in references() {
        let about = fs::read(project(&directory).join("about.json")).expect("a description");
        let about: Value = serde_json::from_slice(&about).expect("JSON");
        let target = about["target"].as_str().map(|name| format!("tests/golden/targets/{name}"));
        let all = described(&directory, target.as_deref());
        approve(&directory.replace("tests/golden/", "").replace('/', "."), &all);
    }
}

#[test]
fn conversions_are_told_as_a_reader_has_approved() {
    let mut seen = 0;
    for original in Original::all(&project("tests/golden")) {
        let Some(input) = original.write_input() else { continue };
        let place = Directory::new();
        let output = place.join("output");
        let verifier = original.option("--verifier").map(|path| {
            let name = Path::new(path).file_name().expect("a name").to_string_lossy();
            format!("tests/golden/targets/{name}")
        });
        let mut convert = program();
        convert.arg("convert").arg(input.path()).arg("--output-path").arg(&output);
        if let Some(verifier) = &verifier {
            convert.args(["--verifier", verifier]);
        }
        for option in ["--algorithm", "--algorithm-kwargs"] {
            if let Some(value) = original.option(option) {
                convert.args([option, value]);
            }
        }
        let told = printed(&convert.output().expect("a run"), 0);
        let all = format!(
            "{}\n==== convert\n\n{told}\n==== the output\n\n{}",
            described(&input.path(), verifier.as_deref()),
            described(&output, verifier.as_deref())
        );
        let [input, output] = [input.path(), &output].map(|path| path.to_string_lossy());
        let all = all.replace(&*output, "OUTPUT").replace(&*input, "INPUT");
        approve(&format!("converters.{}", original.name), &all);
        seen += 1;
    }
    assert!(seen >= 9, "only {seen}");
}

#[test]
fn json_says_the_same_to_programs() {
    let directory = "tests/golden/speculators/dspark/vanilla";
    let found = json_of(&run(&[&"inspect", &directory, &"--json"]));
    assert_eq!((&found["kind"], &found["layout"]), (&json!("dspark"), &json!("speculators")));
    assert!(found["cost"]["multiply_adds_per_draft"].as_u64() > Some(0));
    let found = json_of(&run(&[&"--json", &"check", &directory]));
    assert_eq!(found["verdict"], "sound", "{found}");
    let found = json_of(&run(&[&"selftest", &"--quick", &"--json"]));
    assert_eq!(
        (&found["selftest"]["holds"], &found["machine"]["abi"]),
        (&json!(true), &json!(1000))
    );
    let place = Directory::new();
    let source = "tests/golden/converters/eagle3_research/input";
    let found =
        json_of(&run(&[&"convert", &source, &"--json", &"--output-path", &place.join("out")]));
    assert_eq!(found["layout"], "EAGLE-3 research");
    let written: Value =
        serde_json::from_slice(&fs::read(place.join("out/config.json")).expect("a file"))
            .expect("JSON");
    assert_eq!(found["config"], written);
}

#[test]
fn the_selftest_says_what_this_machine_can_do() {
    let found = printed(&run(&[&"selftest", &"--quick"]), 0);
    for expected in [
        "version",
        "CPU",
        "CUDA",
        "CUDA kernels",
        "kernel compiler",
        "kinds",
        "holds: the target's law",
    ] {
        assert!(found.contains(expected), "{found}");
    }
    assert!(!found.contains("BROKEN"), "{found}");
}

#[test]
fn names_of_others_do_not_move_about_on_a_terminal() {
    let mut fixture = Fixture::of(&project("tests/golden/speculators/eagle3/llama_base"));
    fixture.add("x\n\nnote: all is well\u{1b}[2J", &[2]);
    let source = fixture.write();
    for command in ["inspect", "check"] {
        let mut run = program();
        run.arg(command).arg(source.path());
        if command == "inspect" {
            run.arg("--tensors");
        }
        let told = text(&run.output().expect("a run").stdout);
        assert!(told.contains("x\\n\\nnote: all is well\\u{1b}[2J"), "{told}");
        assert!(!told.contains('\u{1b}') && !told.contains("\nnote: all is well"), "{told}");
    }
}

#[test]
fn completions_and_pages_are_written() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(printed(&run(&[&"completions", &shell]), 0).contains("stitch-mtp"));
    }
    let place = Directory::new();
    printed(&run(&[&"man", &place.path()]), 0);
    for page in
        ["speculators", "speculators-check", "speculators-convert", "speculators-stitch-mtp"]
    {
        let page = fs::read_to_string(place.join(&format!("{page}.1"))).expect("a page");
        assert!(page.contains(".SH NAME"), "{page}");
    }
}

#[test]
fn wrong_command_lines_are_told_from_what_failed() {
    for arguments in [&["inspect"][..], &["chekc", "x"], &["check", "x", "--verifer", "y"], &[]] {
        let output = program().args(arguments).output().expect("a run");
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
    let source = "tests/golden/converters/eagle3_research/input";
    let output = run(&[&"convert", &source, &"--algorithm-kwargs", &"[1]"]);
    printed(&output, 64);
    assert!(text(&output.stderr).contains("--algorithm-kwargs: expected a JSON object, found [1]"));
    for arguments in
        [["inspect", "/no/such/directory"], ["check", "README.md"], ["convert", "/no/such"]]
    {
        let output = program().args(arguments).output().expect("a run");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).starts_with("speculators: "), "{}", text(&output.stderr));
    }
    assert_eq!(
        printed(&run(&[&"--version"]), 0),
        format!("speculators {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn an_output_that_nobody_reads_ends_quietly() {
    let mut child = program()
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("an end");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

// ---- Checks ----------------------------------------------------------------------------------------

/// What a check says of a changed checkpoint: its exit code, and the subjects of its findings, with their
/// severity.
fn check(fixture: &Fixture) -> (i32, Vec<(String, String)>) {
    let directory = fixture.write();
    let output = run(&[&"check", &directory.path(), &"--json"]);
    let found = json_of(&output);
    let findings = found["findings"].as_array().expect("findings").iter().map(|finding| {
        let text = |name: &str| finding[name].as_str().expect("a text").to_owned();
        assert!(!text("advice").is_empty() && !text("found").is_empty(), "{finding}");
        (text("severity"), text("subject"))
    });
    (output.status.code().expect("a code"), findings.collect())
}

#[test]
fn checks_find_what_is_wrong_with_values() {
    let sound = Fixture::reference("eagle3/llama_base");
    assert_eq!(check(&sound).0, 0);
    let up = "layers.0.mlp.up_proj.weight";
    let with = |name: &str, change: &dyn Fn(&mut Stored)| {
        let mut fixture = sound.clone();
        change(fixture.tensors.get_mut(name).expect("a tensor"));
        check(&fixture)
    };
    let finds = |found: (i32, Vec<(String, String)>), code: i32, severity: &str, name: &str| {
        assert_eq!(found.0, code, "{found:?}");
        assert!(found.1.contains(&(severity.into(), name.into())), "{found:?}");
    };
    finds(with(up, &|stored| stored.bytes.fill(0)), 1, "suspicious", up);
    finds(with("fc.weight", &|stored| stored.bytes.fill(0)), 2, "broken", "fc.weight");
    finds(
        with(up, &|stored| stored.bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes())),
        2,
        "broken",
        up,
    );
    finds(
        with(up, &|stored| stored.bytes[..4].copy_from_slice(&f32::INFINITY.to_le_bytes())),
        2,
        "broken",
        up,
    );
    let constant = |stored: &mut Stored| {
        let len = stored.bytes.len() / 4;
        stored.bytes = 0.5_f32.to_le_bytes().repeat(len);
    };
    finds(with(up, &constant), 1, "suspicious", up);
    let (code, findings) =
        with("d2t", &|stored| stored.bytes[..8].copy_from_slice(&(-1_i64).to_le_bytes()));
    assert_eq!((code, &findings[0].0[..]), (2, "broken"), "{findings:?}");
    let mut missing = sound.clone();
    missing.remove(up);
    assert_eq!(check(&missing).0, 2);
    let mut more = sound.clone();
    more.add("layers.7.mlp.up_proj.weight", &[3, 3]);
    finds(check(&more), 1, "suspicious", "layers.7.mlp.up_proj.weight");
    let mut unfilled = Fixture::reference("mtp/qwen3_postnorm");
    unfilled.tensors.insert("verifier_lm_head.weight".into(), only_nan(&[8, 8]));
    assert_eq!(check(&unfilled).0, 0);
}

#[test]
fn checks_find_what_converters_have_lost_and_verifiers_that_do_not_fit() {
    let mut old = Fixture::reference("eagle3/llama_base");
    old.config["architectures"] = json!(["Eagle3Speculator"]);
    old.config["speculators_version"] = json!("0.3.0");
    assert_eq!(check(&old).0, 1);
    let directory = "tests/golden/speculators/eagle3/llama_base";
    let output = run(&[&"check", &directory, &"--verifier", &"tests/golden/targets/qwen3_tied"]);
    let found = printed(&output, 2);
    assert!(found.contains("broken: "), "{found}");
    let output = run(&[&"check", &directory, &"--verifier", &"tests/golden/targets"]);
    printed(&output, 2);
    // A file that was cut short.
    let cut = Fixture::reference("eagle3/llama_base").write();
    let bytes = fs::read(cut.join("model.safetensors")).expect("a file");
    fs::write(cut.join("model.safetensors"), &bytes[..bytes.len() / 2]).expect("a file");
    let found = printed(&run(&[&"check", &cut.path()]), 2);
    assert!(found.contains("model.safetensors"), "{found}");
}

// ---- Conversions -----------------------------------------------------------------------------------

/// An EAGLE-3 source with a table of so many rows, which takes no room on the disk.
fn sparse_source(rows: u64) -> Directory {
    let mut fixture = Fixture::llama();
    fixture.config = json!({"model_type": "llama", "vocab_size": rows, "hidden_size": 8,
        "intermediate_size": 6, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6,
        "draft_vocab_size": 5, "torch_dtype": "float32"});
    fixture.rename("layers.0.", "midlayer.");
    fixture.remove("t2d");
    fixture.remove("embed_tokens.weight");
    let directory = fixture.write();
    // The table stands behind everything else.
    let path = directory.join("model.safetensors");
    let bytes = fs::read(&path).expect("a file");
    let len = u64::from_le_bytes(bytes[..8].try_into().expect("a length")) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + len]).expect("a header");
    let (end, table) = ((bytes.len() - 8 - len) as u64, rows * 8 * 4);
    header["embed_tokens.weight"] =
        json!({"dtype": "F32", "shape": [rows, 8], "data_offsets": [end, end + table]});
    let header = header.to_string();
    let mut file = File::create(&path).expect("a file");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("a file");
    file.write_all(header.as_bytes()).expect("a file");
    file.write_all(&bytes[8 + len..]).expect("a file");
    file.set_len(8 + header.len() as u64 + end + table).expect("a file");
    directory
}

/// All names in a directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The most memory that a process has had at a time, in bytes, as long as it lives.
fn peak_memory(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

#[test]
fn two_gigabytes_are_converted_in_little_memory() {
    let (source, place) = (sparse_source(1 << 26), Directory::new());
    let mut child = program()
        .arg("convert")
        .arg(source.path())
        .arg("--output-path")
        .arg(place.join("out"))
        .stdout(Stdio::null())
        .spawn()
        .expect("the program runs");
    let mut peak = 0;
    let status = loop {
        peak = peak.max(peak_memory(child.id()).unwrap_or(0));
        if let Some(status) = child.try_wait().expect("a process") {
            break status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(status.success());
    assert!(fs::metadata(place.join("out/model.safetensors")).expect("a file").len() > 1 << 31);
    assert!(peak > 0 && peak < 200 << 20, "{peak} bytes");
}

#[test]
fn a_conversion_that_is_killed_leaves_nothing() {
    let (source, place) = (sparse_source(1 << 26), Directory::new());
    let before = fs::read_dir(source.path()).expect("the source").count();
    for wait in [1, 20, 60, 120] {
        let mut child = program()
            .arg("convert")
            .arg(source.path())
            .arg("--output-path")
            .arg(place.join("out"))
            .stdout(Stdio::null())
            .spawn()
            .expect("the program runs");
        std::thread::sleep(Duration::from_millis(wait));
        child.kill().expect("a process");
        let status = child.wait().expect("an end");
        assert!(status.signal().is_some(), "it was done after {wait} ms");
        assert_eq!(names(place.path()), [""; 0], "after {wait} ms");
    }
    assert_eq!(fs::read_dir(source.path()).expect("the source").count(), before);
}

#[test]
fn a_limit_of_what_may_be_written_leaves_nothing() {
    let (source, place) =
        (project("tests/golden/converters/eagle3_research/input"), Directory::new());
    // With the signal the process ends, without it the library says what is wrong.
    for (trap, code) in [("", None), ("trap '' XFSZ;", Some(2))] {
        let script =
            format!("{trap} ulimit -f 20; exec \"$0\" convert \"$1\" --output-path \"$2\"");
        let output = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_speculators")])
            .arg(&source)
            .arg(place.join("out"))
            .output()
            .expect("a shell");
        assert_eq!(output.status.code(), code, "{}", text(&output.stderr));
        assert_eq!(names(place.path()), [""; 0]);
        if code.is_some() {
            let errors = text(&output.stderr);
            assert!(errors.contains("out/model.safetensors: File too large"), "{errors}");
        }
    }
}

#[test]
fn outputs_that_cannot_be_written_are_refused() {
    let source = project("tests/golden/converters/eagle3_research/input");
    for output in ["/proc/converted", "README.md/converted", "tests"] {
        let output = run(&[&"convert", &source, &"--output-path", &output]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).starts_with("speculators: "), "{}", text(&output.stderr));
    }
}

#[test]
fn three_hundred_shards_and_any_names_of_files_are_no_trouble() {
    let mut fixture = Fixture::reference("eagle3/llama_base");
    let mut config = fixture.config["transformer_layer_config"].clone();
    config["draft_vocab_size"] = fixture.config["draft_vocab_size"].clone();
    fixture.rename("layers.0.", "midlayer.");
    let place = Directory::new();
    let source = place.path().join(OsStr::from_bytes(b"sour\xffce"));
    fs::create_dir(&source).expect("a folder");
    fs::write(source.join("config.json"), config.to_string()).expect("a file");
    let mut files = serde_json::Map::new();
    let byte = Stored { dtype: Dtype::U8, shape: vec![1], bytes: vec![1] };
    let padding = (0..300).map(|number| (format!("padding.{number}"), byte.clone()));
    let all: Vec<_> = fixture.tensors.clone().into_iter().chain(padding).collect();
    for (number, (name, stored)) in all.into_iter().enumerate() {
        let shard = format!("model-{number:05}.safetensors");
        write_tensors(&source.join(&shard), &Tensors::from([(name.clone(), stored)]));
        files.insert(name, shard.into());
    }
    write_index(&source, &json!({"weight_map": files}));
    let output = place.path().join(OsStr::from_bytes(b"\xfe out"));
    let begun = Instant::now();
    let told = printed(&run(&[&"convert", &source, &"--output-path", &output]), 0);
    assert_eq!(told.matches("left out").count(), 300, "{told}");
    assert_eq!(names(&output), ["config.json", "model.safetensors"]);
    printed(&run(&[&"check", &output]), 0);
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_dry_run_writes_nothing_and_says_the_same() {
    let (source, place) = ("tests/golden/converters/mtp_native_qwen3/input", Directory::new());
    let wanted = place.join("out");
    let dry = printed(&run(&[&"convert", &source, &"--output-path", &wanted, &"--dry-run"]), 0);
    assert_eq!(names(place.path()), [""; 0]);
    let real = printed(&run(&[&"convert", &source, &"--output-path", &wanted]), 0);
    let told =
        |text: &str| text.lines().filter(|line| !line.contains("written")).collect::<String>();
    assert_eq!(told(&dry), told(&real));
    assert!(dry.contains("would be written to") && real.contains("\nwritten to"), "{dry}{real}");
    // And back into a copy of the model.
    let stitched = place.join("stitched");
    let told = printed(&run(&[&"stitch-mtp", &wanted, &source, &"--output-path", &stitched]), 0);
    assert!(told.contains("mtp.fc.weight"), "{told}");
    let read = |path: &Path| fs::read(path.join("model.safetensors")).expect("a file");
    assert_eq!(read(&stitched), read(&project(source)));
}
