//! `include/speculators.h` is what the documented items of `src/capi` say. With `UPDATE_HEADER=1`
//! in the environment the file is written instead of compared.

use std::fs;
use std::path::{Path, PathBuf};

/// The files of `src/capi` with items for hosts, in the order in which a reader wants them.
const SOURCES: [&str; 12] = [
    "version",
    "types",
    "context",
    "checkpoint",
    "convert",
    "model",
    "session",
    "verify",
    "draft",
    "tree",
    "compact",
    "selftest",
];

/// The files of `src/capi` that only serve the others.
const PRIVATE_SOURCES: [&str; 5] = ["boundary", "mod", "processing", "tensors", "tree_shape"];

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn generate() -> String {
    let config = cbindgen::Config::from_file(project("cbindgen.toml")).unwrap();
    let builder = SOURCES.iter().fold(cbindgen::Builder::new().with_config(config), |all, name| {
        all.with_src(project(&format!("src/capi/{name}.rs")))
    });
    let mut raw = Vec::new();
    builder.generate().unwrap().write(&mut raw);
    finish(&String::from_utf8(raw).unwrap())
}

/// What cbindgen has no setting for: structs have tags, but are named without `struct` where they
/// are used; a comment of one line stands on one line; there is one blank line between items.
fn finish(raw: &str) -> String {
    let lines: Vec<&str> = raw.lines().map(str::trim_end).collect();
    let mut header = String::new();
    let mut index = 0;
    while index < lines.len() {
        let comment = match lines[index..] {
            [open, text, close, ..] if open.trim() == "/**" && close.trim() == "*/" => {
                Some(format!("{open}{} */", text.trim_start().trim_start_matches('*')))
            }
            _ => None,
        };
        index += if comment.is_some() { 3 } else { 1 };
        let line = comment.unwrap_or_else(|| lines[index - 1].to_owned());
        let line = match line.strip_prefix("typedef struct ") {
            Some(definition) => format!("typedef struct {definition}"),
            None => line.replace("struct spec_", "spec_"),
        };
        if !(line.is_empty() && header.ends_with("\n\n")) {
            header += &line;
            header.push('\n');
        }
    }
    align_arguments(&header)
}

/// Arguments that stand below each other stay aligned with the first one after the tags are gone.
fn align_arguments(header: &str) -> String {
    let mut aligned = String::new();
    let mut column = None;
    for line in header.lines() {
        let begins = line.starts_with(char::is_alphabetic) && line.ends_with(',');
        column = match column {
            None if begins => line.rfind('(').map(|opening| opening + 1),
            column => column,
        };
        match column.filter(|_| !begins) {
            Some(column) => aligned += &format!("{:column$}{}\n", "", line.trim_start()),
            None => aligned += &format!("{line}\n"),
        }
        if line.ends_with(';') {
            column = None;
        }
    }
    aligned
}

#[test]
fn the_committed_header_is_the_generated_one() {
    let (path, generated) = (project("include/speculators.h"), generate());
    if std::env::var_os("UPDATE_HEADER").is_some() {
        fs::write(&path, &generated).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    let difference = generated.lines().zip(committed.lines()).position(|(new, old)| new != old);
    assert!(
        generated == committed,
        "{}: differs from src/capi, first at line {}; `make header` writes it anew",
        path.display(),
        difference.unwrap_or(0) + 1
    );
}

#[test]
fn every_file_of_the_interface_is_known_to_the_header() {
    let entries = fs::read_dir(project("src/capi")).unwrap();
    let mut found: Vec<String> = entries
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    found.sort();
    let mut known = [&SOURCES[..], &PRIVATE_SOURCES[..]].concat();
    known.sort_unstable();
    assert_eq!(found, known);
}

#[test]
fn every_item_of_the_header_is_documented_and_fits_100_columns() {
    let header = generate();
    let lines: Vec<&str> = header.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        assert!(line.chars().count() <= 100, "line {}: wider than 100 columns: {line}", index + 1);
        let item = line.starts_with("#define SPEC_")
            || line.starts_with("typedef ")
            || line.starts_with("spec_status ")
            || line.starts_with("void ");
        assert!(
            !item || lines[index - 1].ends_with("*/"),
            "line {}: expected a comment above: {line}",
            index + 1
        );
    }
}

#[test]
fn every_function_says_its_contract() {
    let header = generate();
    let functions = header.split("*/\n").zip(header.split("*/\n").skip(1));
    let mut count = 0;
    for (comment, item) in functions {
        let declaration = item.lines().next().unwrap_or("");
        let function = declaration.contains(" spec_") || declaration.contains(" *spec_");
        if function && declaration.contains('(') && !declaration.starts_with("typedef") {
            count += 1;
            assert!(comment.contains("Contract: "), "no contract line: {declaration}");
        }
    }
    assert!(count >= 18, "only {count} functions found");
}
