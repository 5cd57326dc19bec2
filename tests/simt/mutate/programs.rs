//! The test programs that run kernels, and their tests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// What `timeout` exits with when the time is over.
const TIME_IS_OVER: i32 = 124;

/// Characters of what is printed of a reason: a test's may tell of all its arrays.
const LONGEST_REASON: usize = 120;

/// A test of a test program.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Test {
    program: PathBuf,
    pub name: String,
}

/// How a run of a test ended.
#[derive(Clone, Debug)]
pub struct Run {
    /// Why the test failed, if it did.
    pub failure: Option<String>,
    /// Whether it was ended because its time was over, which is a failure too.
    pub took_too_long: bool,
    /// The kernels that it launched, if it was asked to trace them.
    pub kernels: BTreeSet<String>,
    pub time: Duration,
}

/// Builds the programs and hands out their tests.
pub fn tests(root: &Path, programs: &[&str]) -> Result<Vec<Test>, String> {
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    cargo.current_dir(root).args(["test", "--quiet", "--no-run", "--message-format=json"]);
    cargo.args(programs.iter().flat_map(|program| ["--test", program]));
    let mut tests = Vec::new();
    for message in output(&mut cargo)?.lines() {
        let message: serde_json::Value =
            serde_json::from_str(message).map_err(|error| format!("{message}: {error}"))?;
        let name = message["target"]["name"].as_str().unwrap_or_default();
        let Some(program) = message["executable"].as_str() else { continue };
        let list = output(Command::new(program).args(["--list", "--format", "terse"]))?;
        let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
        tests.extend(
            names.map(|test| Test { program: program.into(), name: format!("{name}::{test}") }),
        );
    }
    Ok(tests)
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{command:?}:\n{}", String::from_utf8_lossy(&output.stderr)))
}

impl Test {
    /// Runs the test alone, on a simulator with these twins.
    pub fn run(&self, runtime: &Path, twins: &Path, limit: Duration, traces: bool) -> Run {
        let start = Instant::now();
        let name = self.name.split_once("::").map_or(&*self.name, |(_, test)| test);
        let mut command = Command::new("timeout");
        command.arg("--kill-after=2").arg(format!("{}", limit.as_secs_f64()));
        command.arg(&self.program).args(["--exact", name, "--nocapture", "--test-threads=1"]);
        command.env("SPEC_TEST_DEVICE", "cuda").env("LD_LIBRARY_PATH", runtime);
        command.env("SIMT_KERNELS", twins).env("SIMT_SEED", "1");
        if traces {
            command.env("SIMT_TRACE", "1");
        }
        match command.output() {
            Ok(output) => {
                let kernels = launched(&String::from_utf8_lossy(&output.stderr));
                let took_too_long = output.status.code() == Some(TIME_IS_OVER);
                Run { failure: failure(&output), took_too_long, kernels, time: start.elapsed() }
            }
            Err(error) => panic!("{command:?}: {error}"),
        }
    }
}

/// The kernels in a trace of the simulator, such as `simulator: stream 1: name on (1,1,1) blocks`.
fn launched(trace: &str) -> BTreeSet<String> {
    let kernels = trace.lines().filter_map(|line| {
        let (_, operation) = line.strip_prefix("simulator: stream ")?.split_once(": ")?;
        let (kernel, _) = operation.split_once(" on (")?;
        Some(kernel.to_owned())
    });
    kernels.collect()
}

/// Why a test failed: what the simulator says first, or else the test.
fn failure(output: &Output) -> Option<String> {
    let printed = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    if output.status.success() {
        return None;
    }
    if output.status.code() == Some(TIME_IS_OVER) {
        return Some("it took too long".to_owned());
    }
    let lines = || printed.iter().flat_map(|text| text.lines());
    let report = lines().filter(|line| !line.starts_with("simulator: stream "));
    let simulator = report.filter_map(|line| line.strip_prefix("simulator: ")).next();
    let panic = lines().skip_while(|line| !line.contains("panicked at")).nth(1);
    let reason = simulator.or(panic).map(|reason| reason.chars().take(LONGEST_REASON).collect());
    Some(reason.unwrap_or_else(|| output.status.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_names_the_kernels() {
        let trace = "a\nsimulator: stream 2: copy_rows on (8,1,1) blocks of (256,1,1)\n\
                     simulator: stream 1: copy of 8 bytes\n";
        assert_eq!(launched(trace).into_iter().collect::<Vec<_>>(), ["copy_rows"]);
    }
}
