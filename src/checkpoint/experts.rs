//! The mixture of experts that some decoder layers have in the place of an MLP.

use super::config::{Settings, as_integer};
use super::decoder::{Family, GatedMlp, WIDEST};
use super::weights::Tensor;
use crate::error::Result;

/// Far above any model, far below what overflows.
const MOST_EXPERTS: usize = 1 << 16;

/// A mixture of experts, which are MLPs: each row goes through those that score highest for it, and
/// through one that all rows share. Nothing has a bias.
#[derive(Clone, Debug)]
pub struct Experts {
    /// `[experts, H]`: from a row to its scores, whose softmax is what the experts weigh.
    pub router: Tensor,
    /// Experts that a row goes through.
    pub chosen: usize,
    /// Whether the weights of those are divided by their sum.
    pub renormalizes: bool,
    /// `[experts * 2 * inner, H]`: of each expert the half that is activated, then the one that is
    /// multiplied with it.
    pub gate_up: Tensor,
    /// `[experts * H, inner]`.
    pub down: Tensor,
    /// The expert that all rows go through.
    pub shared: GatedMlp,
    /// `[1, H]`: the sigmoid of this map of a row is what the shared expert weighs.
    pub shared_gate: Tensor,
}

/// What the settings say of a mixture.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpertSizes {
    pub(super) count: usize,
    pub(super) chosen: usize,
    pub(super) renormalizes: bool,
    /// The width between the halves of an expert.
    pub(super) inner: usize,
    /// The same of the shared one.
    pub(super) shared: usize,
}

/// The settings that a layer without experts does not need, and those that only training reads.
const UNUSED: [&str; 9] = [
    "decoder_sparse_step",
    "mlp_only_layers",
    "moe_intermediate_size",
    "norm_topk_prob",
    "num_experts",
    "num_experts_per_tok",
    "output_router_logits",
    "router_aux_loss_coef",
    "shared_expert_intermediate_size",
];

impl ExpertSizes {
    /// The experts of the layer that stands at `index` among its model's, if that has any.
    pub(super) fn read(layer: &mut Settings, family: Family, index: usize) -> Result<Option<Self>> {
        layer.unneeded(&UNUSED);
        let (experts, chosen) = match family {
            Family::Qwen3Next if is_sparse(layer, index)? => (512, 10),
            Family::Qwen35Moe => (256, 8),
            _ => return Ok(None),
        };
        let count = layer.integer_or("num_experts", 0..=MOST_EXPERTS, experts)?;
        if count == 0 && family == Family::Qwen3Next {
            return Ok(None);
        }
        if count == 0 {
            return Err(layer.unexpected("num_experts", "at least 1"));
        }
        let mut width = |key| layer.integer_or(key, 1..=16 * WIDEST, 512);
        let inner = width("moe_intermediate_size")?;
        let shared = width("shared_expert_intermediate_size")?;
        // The later family always divides.
        let renormalizes = family == Family::Qwen35Moe || layer.flag_or("norm_topk_prob", true)?;
        let chosen = match layer.integer("num_experts_per_tok", 1..=count)? {
            Some(chosen) => chosen,
            None => layer.assume("num_experts_per_tok", chosen.min(count)),
        };
        Ok(Some(Self { count, chosen, renormalizes, inner, shared }))
    }
}

/// Whether the settings give experts to the layer at `index`.
fn is_sparse(layer: &mut Settings, index: usize) -> Result<bool> {
    const DENSE: &str = "mlp_only_layers";
    let step = layer.integer("decoder_sparse_step", 1..=MOST_EXPERTS)?.unwrap_or(1);
    let mut is_dense = false;
    for listed in layer.list(DENSE)?.unwrap_or_default() {
        let listed = as_integer(listed).and_then(|listed| usize::try_from(listed).ok());
        let listed = listed.ok_or_else(|| layer.unexpected(DENSE, "a list of layers"))?;
        is_dense |= listed == index;
    }
    Ok(!is_dense && (index + 1).is_multiple_of(step))
}
