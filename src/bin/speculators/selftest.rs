//! `speculators selftest`.

use crate::output::{Output, plain};
use crate::{Exit, Failure, Outcome};
use clap::Args;
use serde_json::{Value, json};
use speculators::context::{Context, CudaOptions, KernelCache, KernelSources, Threads};
use speculators::error::Error;
use speculators::{capi, verify};

/// Prove that verification keeps its promises on this machine, and say what this build can do.
///
/// All rules are run on small models that are made up, in all the ways that random numbers can go,
/// and the law of the text is compared with the model's.
///
///   speculators selftest
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Selftest {
    /// Fewer cases.
    #[arg(long)]
    quick: bool,
    /// On the CUDA device with this number instead of the CPU.
    #[arg(long, value_name = "N")]
    cuda: Option<i32>,
}

impl Selftest {
    pub fn run(&self, output: &mut Output) -> Outcome {
        let machine = machine()?;
        let context = match self.cuda {
            None => Context::cpu(Threads::Own(0), None, None)?,
            Some(ordinal) => cuda(ordinal)?,
        };
        let found = verify::selftest(&context, verify::Stream(0), self.quick)?;
        let report: Value = serde_json::from_str(&found.json())
            .map_err(|error| Error::internal(format!("the report: {error}")))?;
        if output.is_json() {
            output.json(&json!({"machine": machine, "selftest": report}))?;
        } else {
            tell(output, &machine, &report)?;
        }
        match found.outcome() {
            Ok(()) => Ok(Exit::Sound),
            Err(error) => Err(Failure::Library(error)),
        }
    }
}

fn cuda(ordinal: i32) -> Result<Context, Error> {
    let options = CudaOptions { ordinal, context: 0, images: None, cache: KernelCache::Default };
    Context::cuda(&options, None, None)
}

/// What this build and this machine can do.
fn machine() -> Result<Value, Error> {
    let cpu = Context::cpu(Threads::Own(0), None, None)?.description();
    let cuda = cuda(0);
    let kernels = KernelSources::find();
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "abi": capi::SPEC_ABI_VERSION,
        "cpu": {
            "instruction_set": cpu.instruction_set.to_string_lossy(),
            "threads": cpu.threads,
        },
        "cuda": {
            "available": cuda.is_ok(),
            "instruction_set": cuda.as_ref().ok().map(|context| context.description().instruction_set.to_string_lossy()),
            "reason": cuda.as_ref().err().map(Error::to_string),
            "kernels": {
                "embedded": kernels.embedded,
                "modules": kernels.modules,
                "embedded_by": kernels.embedded_by,
                "compiler": kernels.compiler.as_ref().ok(),
                "reason": kernels.compiler.as_ref().err().map(Error::to_string),
            },
        },
        "kinds": speculators::checkpoint::kinds().collect::<Vec<_>>(),
    }))
}

fn tell(output: &mut Output, machine: &Value, report: &Value) -> std::io::Result<()> {
    output
        .entry("version", format_args!("{}, ABI {}", plain(&machine["version"]), machine["abi"]))?;
    let cpu = &machine["cpu"];
    output.entry(
        "CPU",
        format_args!("{}, {} threads", plain(&cpu["instruction_set"]), cpu["threads"]),
    )?;
    let cuda = &machine["cuda"];
    match cuda["reason"].as_str() {
        None => output.entry("CUDA", plain(&cuda["instruction_set"]))?,
        Some(reason) => output.entry("CUDA", format_args!("not here: {reason}"))?,
    }
    let kernels = &cuda["kernels"];
    let (embedded, modules) = (&kernels["embedded"], &kernels["modules"]);
    match kernels["embedded"].as_u64() {
        Some(0) => output.entry("CUDA kernels", "none embedded in this build")?,
        _ => {
            let by = plain(&kernels["embedded_by"]);
            let text = format_args!("{embedded} of {modules} modules embedded, compiled by {by}");
            output.entry("CUDA kernels", text)?;
        }
    }
    match kernels["reason"].as_str() {
        None => output.entry("kernel compiler", plain(&kernels["compiler"]))?,
        Some(reason) => output.entry("kernel compiler", format_args!("not here: {reason}"))?,
    }
    output.entry("kinds", plain(&machine["kinds"]))?;
    output.line("")?;
    for rule in report["rules"].as_array().into_iter().flatten() {
        let holds = if rule["holds"] == true { "holds" } else { "BROKEN" };
        let law = if rule["lossy"] == true { "as defined" } else { "the target's law" };
        let branches = &rule["branches"];
        output.entry(&plain(&rule["name"]), format_args!("{holds}: {law}, {branches} branches"))?;
        for case in rule["cases"].as_array().into_iter().flatten() {
            if let Some(defect) = case["defect"].as_str() {
                output.entry("  defect", format_args!("{}: {defect}", plain(&case["name"])))?;
            }
        }
    }
    Ok(())
}
