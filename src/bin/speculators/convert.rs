//! `speculators convert` and `speculators stitch-mtp`.

use crate::output::{Output, plain};
use crate::progress::{Bar, Unit};
use crate::{Exit, Failure, Outcome};
use clap::Args;
use serde_json::{Map, Value};
use speculators::checkpoint::{Conversion, Converted, Progress, Stitched, algorithms};
use speculators::error::Error;
use std::path::{Path, PathBuf};

/// Convert a checkpoint of a research repository to the speculators format.
///
/// What the source is shows in its files; --algorithm says it where they do not. Nothing of the
/// source is lost, and every tensor that is renamed or left out is listed. The output appears whole
/// or not at all.
///
///   speculators convert ./EAGLE3-LLaMA3.1-Instruct-8B --verifier ./Llama-3.1-8B-Instruct \
///       --output-path ./eagle3-llama
///   speculators convert ./Qwen3-8B-DFlash --algorithm dflash --verifier ./Qwen3-8B
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Convert {
    /// The checkpoint to convert.
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The model that it drafts for: what the source does not tell is taken from its config.json.
    #[arg(long, value_name = "DIR")]
    verifier: Option<PathBuf>,
    /// What the source is, instead of what is recognised.
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(algorithms()))]
    algorithm: Option<String>,
    /// Where the result goes: a directory that is not there yet, or is empty.
    #[arg(long, value_name = "DIR", default_value = "converted")]
    output_path: PathBuf,
    /// Settings that hold instead of the source's, such as '{"norm_before_residual": true}'.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    algorithm_kwargs: String,
    /// Say what would be done, and write nothing.
    #[arg(long)]
    dry_run: bool,
}

impl Convert {
    pub fn run(&self, output: &mut Output) -> Outcome {
        let wanted = Conversion {
            verifier_directory: self.verifier.clone(),
            algorithm: self.algorithm.clone(),
            arguments: arguments(&self.algorithm_kwargs)?,
        };
        let ready = Converted::prepare(&self.source, &wanted)?;
        write(self.dry_run, &self.output_path, |to, progress| ready.write(to, progress))?;
        let report = ready.report();
        if output.is_json() {
            output.json(report)?;
            return Ok(Exit::Sound);
        }
        tell_conversion(output, report)?;
        tell_place(output, self.dry_run, &self.output_path)
    }
}

fn tell_conversion(output: &mut Output, report: &Value) -> Result<(), Failure> {
    output.entry("source", plain(&report["source"]))?;
    output.entry("layout", plain(&report["layout"]))?;
    output.entry("kind", plain(&report["kind"]))?;
    let list = |name: &str| report[name].as_array().map(Vec::as_slice).unwrap_or_default();
    output.entry("tensors", list("tensors").len())?;
    for renamed in list("renamed") {
        output.entry(
            "  renamed",
            format_args!("{} -> {}", plain(&renamed["from"]), plain(&renamed["to"])),
        )?;
    }
    for dropped in list("dropped") {
        output.entry(
            "  left out",
            format_args!("{}: {}", plain(&dropped["name"]), plain(&dropped["reason"])),
        )?;
    }
    for (name, texts) in [("note", list("notes")), ("warning", list("warnings"))] {
        for text in texts {
            output.entry(name, plain(text))?;
        }
    }
    Ok(())
}

/// Put the weights of an MTP checkpoint back into a copy of its verifier.
///
/// Engines that know no MTP checkpoints read the layer inside of the model: all files of the
/// verifier are copied, those with the layer's tensors with the new ones in their places.
///
///   speculators stitch-mtp ./mtp-finetuned ./Qwen3-Next-80B --output-path ./stitched
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct StitchMtp {
    /// The MTP checkpoint, in the speculators format.
    finetuned: PathBuf,
    /// The model that it belongs to.
    verifier: PathBuf,
    /// Where the result goes. Default: the verifier's name with -stitched, in the working directory.
    #[arg(long, value_name = "DIR")]
    output_path: Option<PathBuf>,
    /// Say what would be done, and write nothing.
    #[arg(long)]
    dry_run: bool,
}

impl StitchMtp {
    pub fn run(&self, output: &mut Output) -> Outcome {
        let to = self.output_path.clone().unwrap_or_else(|| stitched_name(&self.verifier));
        let ready = Stitched::prepare(&self.finetuned, &self.verifier)?;
        write(self.dry_run, &to, |to, progress| ready.write(to, progress))?;
        let report = ready.report();
        if output.is_json() {
            output.json(report)?;
            return Ok(Exit::Sound);
        }
        for tensor in report["replaced"].as_array().into_iter().flatten() {
            output.entry("replaced", plain(&tensor["name"]))?;
        }
        output.entry("written anew", plain(&report["rewritten_files"]))?;
        output.entry("copied", plain(&report["copied_files"]))?;
        tell_place(output, self.dry_run, &to)
    }
}

fn stitched_name(verifier: &Path) -> PathBuf {
    let absolute = std::path::absolute(verifier).unwrap_or_else(|_| verifier.to_owned());
    let mut name = absolute.file_name().unwrap_or_default().to_owned();
    name.push("-stitched");
    name.into()
}

fn tell_place(output: &mut Output, is_dry: bool, to: &Path) -> Outcome {
    let what = if is_dry { "would be written to" } else { "written to" };
    output.entry(what, to.display())?;
    Ok(Exit::Sound)
}

fn arguments(text: &str) -> Result<Map<String, Value>, Failure> {
    let wrong = |found: String| {
        Failure::Usage(format!("--algorithm-kwargs: expected a JSON object, found {found}"))
    };
    match serde_json::from_str(text) {
        Ok(Value::Object(arguments)) => Ok(arguments),
        Ok(other) => Err(wrong(other.to_string())),
        Err(error) => Err(wrong(format!("{text:?} ({error})"))),
    }
}

fn write(
    is_dry: bool,
    to: &Path,
    write: impl FnOnce(&Path, Progress<'_>) -> Result<(), Error>,
) -> Result<(), Failure> {
    if is_dry {
        return Ok(());
    }
    let mut bar = Bar::new(Unit::Bytes);
    write(to, &mut |done, total| {
        bar.show(done, total);
        true
    })?;
    Ok(())
}
