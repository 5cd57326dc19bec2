//! The command `speculators`, run as a user runs it.

use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The program, in the project's directory, so that paths in its output are the same everywhere.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_speculators"));
    command.current_dir(project("")).env_remove("COLUMNS").stdin(Stdio::null());
    command
}

pub fn run(arguments: &[&dyn AsRef<OsStr>]) -> Output {
    program()
        .args(arguments.iter().map(|argument| argument.as_ref()))
        .output()
        .expect("the program runs")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// What a run printed, which must have ended so.
#[track_caller]
pub fn printed(output: &Output, code: i32) -> String {
    let (out, errors) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}{errors}");
    out
}

pub fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text(&output.stdout)))
}
