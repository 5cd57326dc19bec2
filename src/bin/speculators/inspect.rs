//! `speculators inspect`.

use crate::output::{Output, bytes, count, plain};
use crate::{Exit, Outcome};
use clap::Args;
use serde_json::{Map, Value, json};
use speculators::checkpoint::{self, BlockLength, Checkpoint, Linear, Method, Mlp, Tensor};
use std::path::PathBuf;

/// Say what a checkpoint is: its kind, its sizes, what a host has to provide, and what it costs.
///
///   speculators inspect ./eagle3-llama --tensors
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Inspect {
    /// The checkpoint.
    directory: PathBuf,
    /// List the tensors, too.
    #[arg(long)]
    tensors: bool,
}

impl Inspect {
    pub fn run(&self, output: &mut Output) -> Outcome {
        let mut found = checkpoint::inspect(&self.directory)?;
        let loaded = checkpoint::open_without_verifier(&self.directory).ok();
        if let (Some(members), Some(loaded)) = (found.as_object_mut(), &loaded) {
            describe(members, loaded);
        }
        if output.is_json() {
            output.json(&found)?;
        } else {
            self.tell(output, &found)?;
        }
        Ok(Exit::Sound)
    }

    fn tell(&self, output: &mut Output, found: &Value) -> std::io::Result<()> {
        let text = |name: &str| plain(&found[name]);
        output.entry("directory", text("directory"))?;
        output.entry("kind", text("kind"))?;
        output.entry("layout", text("layout"))?;
        output.entry("written by release", plain(&found["config"]["speculators_version"]))?;
        if found["supported"] != true {
            output.entry("cannot be loaded", text("reason"))?;
        }
        let sizes = &found["sizes"];
        for (name, key) in [
            ("layers", "layers"),
            ("hidden size", "hidden"),
            ("vocabulary", "vocabulary"),
            ("draft vocabulary", "draft_vocabulary"),
        ] {
            output.entry(name, plain(&sizes[key]))?;
        }
        let number = |name: &str| found["cost"][name].as_u64();
        output.entry("parameters", number("parameters").map(count).unwrap_or_default())?;
        output.entry("weights", number("weight_bytes").map(bytes).unwrap_or_default())?;
        output.entry("drafts a round", text("default_num_drafts"))?;
        let products = number("multiply_adds_per_draft").map(count);
        output.entry("products a draft", products.unwrap_or_default())?;
        output.entry(
            "KV a token, F16",
            number("kv_bytes_per_token").map(bytes).unwrap_or_default(),
        )?;
        for feature in found["features"].as_array().into_iter().flatten() {
            output.entry("reads", feature_text(feature))?;
        }
        output.entry("needs of the verifier", text("needed_from_verifier"))?;
        for (name, value) in found["assumed_defaults"].as_object().into_iter().flatten() {
            output.entry("assumed", format_args!("{name} = {value}"))?;
        }
        for note in found["translation"]["notes"].as_array().into_iter().flatten() {
            output.entry("note", plain(note))?;
        }
        for warning in found["warnings"].as_array().into_iter().flatten() {
            output.entry("warning", plain(warning))?;
        }
        if self.tensors {
            output.line("")?;
            for tensor in found["tensors"].as_array().into_iter().flatten() {
                let (dtype, shape) = (plain(&tensor["dtype"]), &tensor["shape"]);
                let (name, file) = (plain(&tensor["name"]), plain(&tensor["file"]));
                output
                    .line(format_args!("{dtype:<5} {:<18} {name} ({file})", shape.to_string()))?;
            }
        }
        Ok(())
    }
}

fn feature_text(feature: &Value) -> String {
    let width = match feature["width"].as_u64() {
        Some(width) => format!(", {width} wide"),
        None => String::new(),
    };
    if feature["stage"] == "final_norm" {
        return format!("the target's final norm{width}");
    }
    match feature["layer"].as_i64() {
        Some(layer) if layer >= 0 => format!("what enters layer {layer} of the target{width}"),
        _ => format!("a layer that only the verifier can tell{width}"),
    }
}

/// Adds what the description of a checkpoint that can be loaded says.
fn describe(members: &mut Map<String, Value>, loaded: &Checkpoint) {
    let speculator = &loaded.speculator;
    let sizes = &speculator.decoder.sizes;
    let report = loaded.report.to_json();
    let layout = report["translation"]["layout"].as_str().unwrap_or("speculators");
    members.insert("layout".into(), layout.into());
    members.insert("translation".into(), report["translation"].clone());
    members.insert("assumed_defaults".into(), report["assumed_defaults"].clone());
    members.insert(
        "sizes".into(),
        json!({
            "layers": speculator.layers.len(),
            "hidden": sizes.hidden,
            "intermediate": sizes.intermediate,
            "heads": sizes.heads,
            "kv_heads": sizes.kv_heads,
            "head_dim": sizes.head_dim,
            "vocabulary": sizes.vocabulary,
            "draft_vocabulary": sizes.draft_vocabulary,
        }),
    );
    let (parameters, weight_bytes) = stored(&report);
    let kv = 2 * sizes.kv_heads * sizes.head_dim * speculator.layers.len();
    members.insert(
        "cost".into(),
        json!({
            "parameters": parameters,
            "weight_bytes": weight_bytes,
            "kv_bytes_per_token": 2 * kv,
            "multiply_adds_per_draft": products_per_draft(loaded),
        }),
    );
}

/// Elements and bytes of the tensors that are loaded.
fn stored(report: &Value) -> (u64, u64) {
    let tensors = report["tensors"]["used"].as_array().into_iter().flatten();
    tensors.fold((0, 0), |(elements, bytes), tensor| {
        let shape = tensor["shape"].as_array().into_iter().flatten();
        let own: u64 = shape.filter_map(Value::as_u64).product();
        let width = match tensor["dtype"].as_str() {
            Some("F32" | "I32") => 4,
            Some("F16" | "BF16") => 2,
            Some("I64") => 8,
            _ => 1,
        };
        (elements + own, bytes + own * width)
    })
}

/// Products of weights and inputs for a drafted token, those of attention apart: the layers and the head, once
/// for each token, or for all rows of a block shared among its tokens.
fn products_per_draft(loaded: &Checkpoint) -> u64 {
    let speculator = &loaded.speculator;
    let sizes = &speculator.decoder.sizes;
    let layers: usize = speculator
        .layers
        .iter()
        .map(|layer| {
            let maps = [&layer.query, &layer.key, &layer.value, &layer.output];
            maps.iter().map(|map| linear(map)).sum::<usize>()
                + layer.attention_gate.as_ref().map_or(0, linear)
                + mlp(&layer.mlp)
        })
        .sum();
    let head = sizes.hidden * sizes.draft_vocabulary;
    match &speculator.method {
        Method::Sequential { .. } | Method::Heads(_) => (layers + head) as u64,
        Method::Block(block) => {
            let drafts = loaded.default_num_drafts.min(block.most_drafts).max(1);
            let rows = match block.length {
                BlockLength::Trained(rows) => rows,
                BlockLength::Drafts => drafts + block.first_slot,
            };
            ((layers * rows).div_ceil(drafts) + head) as u64
        }
    }
}

fn elements(tensor: &Tensor) -> usize {
    tensor.rows * tensor.columns
}

fn linear(map: &Linear) -> usize {
    elements(&map.weight)
}

fn mlp(mlp: &Mlp) -> usize {
    match mlp {
        Mlp::Gated(mlp) => linear(&mlp.gate) + linear(&mlp.up) + linear(&mlp.down),
        Mlp::Experts(experts) => {
            let all = elements(&experts.gate_up) + elements(&experts.down);
            let shared = &experts.shared;
            all / experts.router.rows.max(1) * experts.chosen
                + elements(&experts.router)
                + linear(&shared.gate)
                + linear(&shared.up)
                + linear(&shared.down)
        }
    }
}
