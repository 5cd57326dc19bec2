//! MTP as verifiers carry it: tensors named `mtp.…` among their own.

use super::super::files::{CARRIED_LAYER, StoredTensor};
use super::settings::drafts;
use super::{Evidence, Source};
use crate::error::Result;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const LAYER: &str = "mtp_layers.0.";

/// What stands around the layer, and what the format calls it.
pub(in crate::checkpoint) const NAMES: [(&str, &str); 5] = [
    ("mtp.fc.", "mtp_layers.0.input_proj."),
    ("mtp.norm.", "mtp_layers.0.final_layernorm."),
    ("mtp.pre_fc_norm_hidden.", "mtp_layers.0.hidden_layernorm."),
    ("mtp.pre_fc_norm_embedding.", "mtp_layers.0.token_layernorm."),
    ("mtp.layers.0.", LAYER),
];

pub(super) fn is_one(evidence: &mut Evidence<'_>) -> bool {
    evidence.has_tensor("mtp.fc.") || evidence.has_tensor("mtp.layers.0.")
}

pub(super) fn translate(source: &mut Source<'_>) -> Result<Map<String, Value>> {
    source.holds_verifier = true;
    let layer = match source.top.section("text_config")? {
        Some(_) => source.top.object("text_config").cloned(),
        None => Some(source.top.all().clone()),
    };
    let drafts = drafts(source, "num_speculative_steps", 3)?;
    let mut layer = layer.unwrap_or_default();
    layer.remove("num_speculative_steps");
    layer.remove("transformers_version");
    // It is the verifier's: a layer that is stored without quantization is not meant, and one with it is refused
    // by its tensors.
    layer.remove("quantization_config");
    let others = source.names(|name| !name.starts_with(CARRIED_LAYER));
    source.note(format!("{} tensors are the verifier's own", others.len()));
    for name in others {
        source.tensors.remove(&name);
    }
    join_experts(source)?;
    for (old, new) in NAMES {
        source.rename_prefix(old, new)?;
    }
    let own = json!({"num_nextn_predict_layers": 1});
    Ok(source.config(("mtp", "MTPDraftModel"), drafts, own, Some(layer)))
}

/// The format stores the experts of a layer as two tensors: of each expert the half that is activated
/// before the one that is multiplied with it, and the ways back.
fn join_experts(source: &mut Source<'_>) -> Result<()> {
    const EXPERTS: &str = "mtp.layers.0.mlp.experts.";
    let mut experts: BTreeMap<usize, [Option<StoredTensor>; 3]> = BTreeMap::new();
    for name in source.names(|name| name.starts_with(EXPERTS)) {
        let Some((index, map)) = name[EXPERTS.len()..].split_once('.') else { continue };
        let maps = ["gate_proj.weight", "up_proj.weight", "down_proj.weight"];
        let (Ok(index), Some(map)) = (index.parse(), maps.iter().position(|&other| other == map))
        else {
            continue;
        };
        experts.entry(index).or_default()[map] = source.tensors.remove(&name);
    }
    if experts.is_empty() {
        return Ok(());
    }
    let mut complete = Vec::new();
    for (expected, (index, maps)) in experts.into_iter().enumerate() {
        let [Some(gate), Some(up), Some(down)] = maps else {
            return Err(source.wrong(format_args!(
                "{EXPERTS}{index}: expected gate_proj, up_proj and down_proj, found less"
            )));
        };
        if index != expected {
            return Err(source.wrong(format_args!(
                "{EXPERTS}{expected}: expected it, as there is expert {index}, found nothing"
            )));
        }
        complete.push([gate, up, down]);
    }
    let ([inner, hidden], count) = (expert_shape(&complete)?, complete.len());
    let gate_up = complete.iter().flat_map(|[gate, up, _]| [gate, up]).collect::<Vec<_>>();
    let down = complete.iter().map(|[.., down]| down).collect::<Vec<_>>();
    let gate_up_name = format!("{LAYER}mlp.experts.gate_up_proj");
    let gate_up = StoredTensor::joined(&gate_up_name, &[count, 2 * inner, hidden], &gate_up);
    let down_name = format!("{LAYER}mlp.experts.down_proj");
    let down = StoredTensor::joined(&down_name, &[count, hidden, inner], &down);
    source.put(&format!("{EXPERTS}*.gate_proj.weight, {EXPERTS}*.up_proj.weight"), gate_up)?;
    source.put(&format!("{EXPERTS}*.down_proj.weight"), down)
}

/// The sizes of each expert, which must be the same, as must be the types.
fn expert_shape(experts: &[[StoredTensor; 3]]) -> Result<[usize; 2]> {
    let first = &experts[0][0];
    let [inner, hidden] = *first.shape() else {
        return Err(first.wrong(format_args!("expected a matrix, found shape {:?}", first.shape())));
    };
    for [gate, up, down] in experts {
        for (tensor, expected) in
            [(gate, [inner, hidden]), (up, [inner, hidden]), (down, [hidden, inner])]
        {
            if tensor.shape() != expected || tensor.element() != first.element() {
                let (dtype, found) = (tensor.element().name(), tensor.shape());
                let wanted = first.element().name();
                return Err(tensor.wrong(format_args!(
                    "expected {wanted} of shape {expected:?}, found {dtype} of {found:?}"
                )));
            }
        }
    }
    Ok([inner, hidden])
}
