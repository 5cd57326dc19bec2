//! `speculators check`.

use crate::output::Output;
use crate::{Exit, Outcome};
use clap::Args;
use speculators::checkpoint::{self, Severity};
use std::path::PathBuf;

/// Say what is wrong with a checkpoint, or looks wrong, and what to do about it.
///
/// All tensors are read: values that cannot be (NaN, infinities), or that nothing has trained
/// (zeros, constants); missing and unused ones; the maps between vocabularies; settings that
/// converters are known to have lost; and whether the speculator fits its verifier.
///
///   speculators check ./eagle3-llama --verifier ./Llama-3.1-8B-Instruct
#[derive(Args)]
#[command(verbatim_doc_comment, after_help = crate::EXIT_CODES)]
pub struct Check {
    /// The checkpoint.
    directory: PathBuf,
    /// The model that it drafts for. Without it: the one that the checkpoint names, if it is there.
    #[arg(long, value_name = "DIR")]
    verifier: Option<PathBuf>,
}

impl Check {
    pub fn run(&self, output: &mut Output) -> Outcome {
        let found = checkpoint::check(&self.directory, self.verifier.as_deref())?;
        if output.is_json() {
            output.json(&found.to_json())?;
        } else {
            let kind = found.kind.as_deref().unwrap_or("no known kind");
            let directory = found.directory.display();
            output.line(format_args!(
                "{directory}: {}, {kind}, {} tensors",
                found.verdict(),
                found.tensors
            ))?;
            for finding in &found.findings {
                output.line("")?;
                output.line(format_args!(
                    "{}: {}: {}",
                    finding.severity.name(),
                    finding.subject,
                    finding.found
                ))?;
                output.line(format_args!("    {}", finding.advice))?;
            }
        }
        Ok(match found.worst() {
            None | Some(Severity::Note) => Exit::Sound,
            Some(Severity::Suspicious) => Exit::Suspicious,
            Some(Severity::Broken) => Exit::Broken,
        })
    }
}
