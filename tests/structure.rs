//! The structure of the crate: which module may use which, where `unsafe` and exported functions
//! may stand. Read from the source text, so that a violation is a failed test and not a matter of
//! review.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module and the modules that it may use. What is missing in a row is forbidden.
const MAY_USE: [(&str, &[&str]); 12] = [
    ("capi", &["checkpoint", "context", "error", "model", "session", "tensor", "tree", "verify"]),
    ("session", &["backend", "context", "drafter", "error", "model", "tensor", "tree"]),
    ("drafter", &["backend", "error", "model", "sampling", "tensor", "tree"]),
    ("model", &["backend", "checkpoint", "context", "error", "tensor"]),
    ("verify", &["backend", "context", "error", "sampling", "tensor", "tree"]),
    ("checkpoint", &["error", "tensor"]),
    ("context", &["backend", "error", "tensor"]),
    ("backend", &["error", "sampling", "tensor", "tree"]),
    ("sampling", &["error", "tensor"]),
    ("tree", &["error", "tensor"]),
    ("tensor", &["error"]),
    ("error", &[]),
];

/// Where memory is touched that the compiler cannot vouch for.
const UNSAFE: [&str; 3] = ["src/capi/", "src/backend/", "src/checkpoint/mapped.rs"];

/// Signs of work that is not finished, and of output that a library does not make.
const FORBIDDEN: [&str; 11] = [
    "TODO",
    "FIXME",
    "XXX",
    "HACK",
    "todo!",
    "unimplemented!",
    "dbg!",
    "println!",
    "eprintln!",
    "print!",
    "process::exit",
];

struct Source {
    /// Relative to the project.
    path: String,
    text: String,
    /// The text without comments and without the contents of strings.
    code: String,
}

impl Source {
    /// The path of the module that the file is: `backend`, `cpu`, `simd`.
    fn module(&self) -> Vec<&str> {
        let path = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        path.trim_end_matches("/mod").split('/').collect()
    }
}

/// Where the command is: a program that uses the library as others do.
const COMMAND: &str = "src/bin/";

/// The sources of the library.
fn sources() -> Vec<Source> {
    all_sources().into_iter().filter(|source| !source.path.starts_with(COMMAND)).collect()
}

fn all_sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut directories: Vec<PathBuf> = vec![root.join("src")];
    let mut sources = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                sources.push(Source { path, code: code(&text), text });
            }
        }
    }
    assert!(sources.len() > 20, "only {} source files found", sources.len());
    sources.sort_by(|left, right| left.path.cmp(&right.path));
    sources
}

/// `text` without comments, string contents and character literals.
fn code(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            'r' if rest.starts_with("r#\"") => 3 + rest[3..].find("\"#").unwrap() + 2,
            '"' => string_length(rest),
            '\'' => character_length(rest),
            _ => 0,
        };
        if skipped == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.push(' ');
            rest = &rest[skipped..];
        }
    }
    code
}

fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (index, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return index + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a character literal, or 0 for a lifetime.
fn character_length(text: &str) -> usize {
    let mut characters = text.char_indices().skip(1);
    match characters.next() {
        Some((_, '\\')) => {
            text[2..].find('\'').map_or(0, |end| end + 3 + usize::from(&text[2..3] == "'"))
        }
        Some(_) => {
            characters.next().filter(|&(_, next)| next == '\'').map_or(0, |(end, _)| end + 1)
        }
        None => 0,
    }
}

/// The word at the beginning of `text`.
fn word(text: &str) -> &str {
    let end = text.find(|character: char| !character.is_alphanumeric() && character != '_');
    &text[..end.unwrap_or(text.len())]
}

/// Where `wanted` stands in `code` as a word of its own.
fn words<'a>(code: &'a str, wanted: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(wanted).map(|(index, _)| index).filter(move |&index| {
        let before = code[..index].chars().next_back();
        let joined = |character: char| character.is_alphanumeric() || character == '_';
        !before.is_some_and(joined) && !code[index + wanted.len()..].starts_with(joined)
    })
}

/// The first names in `{a::b, c, d::{e, f}}`, or the one name where there are no braces.
fn first_names(path: &str) -> Vec<&str> {
    let Some(list) = path.strip_prefix('{') else { return vec![word(path)] };
    let (mut names, mut depth, mut begins) = (Vec::new(), 0, true);
    for (index, character) in list.char_indices() {
        match character {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            _ if begins && !character.is_whitespace() => {
                names.push(word(&list[index..]));
                begins = false;
            }
            _ => {}
        }
    }
    names
}

/// How many `mod name {` are open at `index`.
fn inline_modules(code: &str, index: usize) -> usize {
    let opens_module = |open: usize| {
        let before = code[..open].trim_end();
        let name = before.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("");
        let before = before[..before.len() - name.len()].trim_end();
        before == "mod" || before.ends_with(" mod") || before.ends_with("\nmod")
    };
    let mut open = Vec::new();
    for (place, byte) in code.bytes().enumerate().take(index) {
        match byte {
            b'{' => open.push(opens_module(place)),
            b'}' => drop(open.pop()),
            _ => {}
        }
    }
    open.into_iter().filter(|&is_module| is_module).count()
}

/// The top-level modules that a file names, by `crate::` and by chains of `super::`.
fn used_modules(source: &Source) -> BTreeSet<&str> {
    let code = &source.code;
    let mut used: BTreeSet<&str> = words(code, "crate")
        .filter_map(|index| code[index..].strip_prefix("crate::"))
        .flat_map(first_names)
        .collect();
    for index in words(code, "super") {
        if code[..index].ends_with("super::") {
            continue;
        }
        let tail = code[index..].trim_start_matches("super::");
        let levels = (code[index..].len() - tail.len()) / "super::".len();
        if levels == source.module().len() + inline_modules(code, index) {
            used.extend(first_names(tail));
        }
    }
    used
}

#[test]
fn modules_use_only_what_the_table_allows() {
    let mut violations = Vec::new();
    for source in sources().iter().filter(|source| source.path != "src/lib.rs") {
        let module = source.module()[0].to_owned();
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
            violations.push(format!("{}: the module {module} is not in the table", source.path));
            continue;
        };
        for used in used_modules(source) {
            if used != module && !allowed.contains(&used) {
                violations.push(format!("{}: {module} may not use {used}", source.path));
            }
        }
    }
    assert!(violations.is_empty(), "{violations:#?}");
}

#[test]
fn every_module_of_the_table_exists_and_uses_form_no_circle() {
    let files = sources();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    while done.len() < MAY_USE.len() {
        let free = MAY_USE.iter().find(|(name, allowed)| {
            !done.contains(name) && allowed.iter().all(|used| done.contains(used))
        });
        let (name, _) = free.expect("the table has a circle, or a row names an unknown module");
        assert!(files.iter().any(|source| source.module()[0] == *name), "{name}: no such module");
        done.insert(name);
    }
}

#[test]
fn the_command_is_safe_and_prints_in_one_place() {
    let all = all_sources();
    let command: Vec<_> = all.iter().filter(|source| source.path.starts_with(COMMAND)).collect();
    assert!(command.len() > 5, "only {} files of the command", command.len());
    for source in command {
        assert_eq!(words(&source.code, "unsafe").next(), None, "{}: unsafe code", source.path);
        for forbidden in FORBIDDEN.iter().chain(&["unwrap()", "expect("]) {
            assert!(!source.code.contains(forbidden), "{}: {forbidden}", source.path);
        }
        let prints =
            ["io::stdout", "io::stderr", "Stdout"].iter().any(|name| source.code.contains(name));
        let may_print = ["/output.rs", "/progress.rs"].iter().any(|end| source.path.ends_with(end));
        assert!(!prints || may_print, "{}: prints", source.path);
    }
}

#[test]
fn unsafe_code_stays_where_memory_is_touched() {
    for source in sources() {
        let allowed = UNSAFE.iter().any(|place| source.path.starts_with(place));
        let found = words(&source.code, "unsafe").next();
        assert!(allowed || found.is_none(), "{}: `unsafe` is not allowed here", source.path);
    }
}

#[test]
fn only_the_interface_exports_functions() {
    let mut exported = 0;
    for source in sources() {
        let count =
            words(&source.code, "no_mangle").count() + words(&source.code, "export_name").count();
        let allowed = source.path.starts_with("src/capi/");
        assert!(allowed || count == 0, "{}: exports a function", source.path);
        exported += count;
    }
    assert!(exported >= 18, "only {exported} exported functions found");
}

#[test]
fn no_file_only_renames_what_others_hold() {
    for source in sources() {
        let holds = |keyword| words(&source.code, keyword).next().is_some();
        let reexports = source.code.contains("pub use ");
        let items = ["mod", "fn", "struct", "enum", "trait", "const", "type", "macro_rules"];
        assert!(!reexports || items.into_iter().any(holds), "{}: only re-exports", source.path);
    }
}

#[test]
fn no_file_has_words_of_unfinished_work() {
    for source in sources() {
        for forbidden in FORBIDDEN {
            let found = source.text.lines().position(|line| {
                line.contains(forbidden) && !(forbidden == "print!" && line.contains("println!"))
            });
            let line = found.map(|line| line + 1);
            assert!(line.is_none(), "{}:{line:?}: found {forbidden}", source.path);
        }
    }
}

#[test]
fn the_reader_of_source_text_sees_paths_and_no_comments() {
    let read = |path: &str, text: &str| Source {
        path: path.to_owned(),
        code: code(text),
        text: text.to_owned(),
    };
    let source = read(
        "src/verify/chain.rs",
        "// crate::capi\n/* crate::session */ use crate::{error::Result, tensor::{Span, model}};\n\
         use super::Rule; use super::super::sampling; const A: &str = \"crate::drafter \\\" \";\n\
         fn f<'a>(x: &'a u8) -> char { crate::backend::g(x); '\"' }\n\
         mod tests { use super::super::Rule; use super::super::super::context::Context; }",
    );
    let used = used_modules(&source);
    let expected = ["backend", "context", "error", "sampling", "tensor"];
    assert_eq!(used.into_iter().collect::<Vec<_>>(), expected);
}
