//! The command `speculators`: what the library does with checkpoints, without a program around it.

mod bench;
mod chart;
mod check;
mod convert;
mod decoding;
mod generate;
mod inspect;
mod output;
mod pages;
mod progress;
mod selftest;

use clap::{Args, CommandFactory, Parser, Subcommand};
use output::Output;
use speculators::error::Error;
use std::process::ExitCode;

/// What a run comes to, besides the errors of the library.
#[derive(Debug)]
enum Failure {
    /// What the library said.
    Library(Error),
    /// Nobody reads the output any more.
    Closed,
    /// The output could not be written.
    Output(std::io::Error),
    /// What was asked for does not go together.
    Usage(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Library(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Output(error),
        }
    }
}

/// What commands return: how the process ends.
type Outcome = Result<Exit, Failure>;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    /// All is well.
    Sound = 0,
    /// `check` found something suspicious, and nothing worse.
    Suspicious = 1,
    /// It failed, or what was checked is broken.
    Broken = 2,
    /// The command line is wrong.
    Usage = 64,
}

const EXIT_CODES: &str = "\
Exit codes:
  0   done; what was checked is sound
  1   what was checked is suspicious
  2   failed; what was checked is broken
  64  the command line is wrong";

/// Speculators for language models: look at them, check them, convert them.
///
/// A speculator is a small model that proposes tokens, which a large one, its verifier, accepts or rejects
/// in one pass. Directories are those of checkpoints: a config.json, and safetensors files. They may be in
/// the speculators format or in the layouts in which research repositories publish.
#[derive(Parser)]
#[command(name = "speculators", version, after_help = EXIT_CODES, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Common {
    /// Print one JSON document instead of text for people.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    Inspect(inspect::Inspect),
    Check(check::Check),
    Convert(convert::Convert),
    StitchMtp(convert::StitchMtp),
    Generate(generate::Generate),
    Bench(bench::Bench),
    Selftest(selftest::Selftest),
    Completions(pages::Completions),
    Man(pages::Man),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and versions are what was asked for. Nothing can be done if nobody reads them.
            let _ = error.print();
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Sound };
            return ExitCode::from(exit as u8);
        }
    };
    let mut output = Output::new(cli.common.json);
    let outcome = match cli.command {
        Command::Inspect(command) => command.run(&mut output),
        Command::Check(command) => command.run(&mut output),
        Command::Convert(command) => command.run(&mut output),
        Command::StitchMtp(command) => command.run(&mut output),
        Command::Generate(command) => command.run(&mut output),
        Command::Bench(command) => command.run(&mut output),
        Command::Selftest(command) => command.run(&mut output),
        Command::Completions(command) => command.run(&mut output, Cli::command()),
        Command::Man(command) => command.run(Cli::command()),
    };
    let outcome = outcome.and_then(|exit| output.finish().map(|()| exit).map_err(Failure::from));
    let (exit, text) = match outcome {
        Ok(exit) => (exit, None),
        Err(Failure::Closed) => (Exit::Sound, None),
        Err(Failure::Library(error)) => (Exit::Broken, Some(error.to_string())),
        Err(Failure::Output(error)) => (Exit::Broken, Some(format!("output: {error}"))),
        Err(Failure::Usage(text)) => (Exit::Usage, Some(text)),
    };
    if let Some(text) = text {
        output::tell_error(&text);
    }
    ExitCode::from(exit as u8)
}
