//! Parts of tests in processes of their own, whose environment differs or whose device they break.

use std::process::Command;

/// Says to a test that it runs in a child, and which part of it.
const PART: &str = "SPEC_TEST_PART";

/// The part of the test that this process is to run; none in the process that was started first.
pub fn part() -> Option<String> {
    std::env::var(PART).ok()
}

/// Runs a part of the test of this name in a child with these changes of the environment, and hands
/// out what it printed. The child has to succeed, within two minutes.
pub fn run(test: &str, part: &str, environment: &[(&str, Option<&str>)]) -> String {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(PART, part);
    for (name, value) in environment {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = output(command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{test}, {part}: {}\n{text}\n{errors}", output.status);
    assert!(text.contains("1 passed"), "{test}: no test of this name\n{text}");
    text
}

/// Waits for a command, but not for ever.
fn output(mut command: Command) -> std::process::Output {
    use std::process::Stdio;
    use std::time::{Duration, Instant};
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("a child");
    let start = Instant::now();
    while child.try_wait().expect("the child's state").is_none() {
        if start.elapsed() > Duration::from_secs(120) {
            child.kill().expect("a child to end");
            panic!("{command:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().expect("what the child printed")
}
