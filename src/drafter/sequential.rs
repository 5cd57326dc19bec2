//! Sequential drafting: the network runs once per proposed token, each step continuing from the
//! token that the last one proposed and from the network's own hidden state.

use crate::backend::Backend;
use crate::backend::phases::{DraftBatch, Limits, Plan};
use crate::model::eagle3::{Eagle3, Scratch, Step};
use crate::tensor::Span;

/// Commits the call's rows, then proposes up to `batch.max_drafts` tokens per sequence.
///
/// Rows are committed in chunks of the scratch's size. In a chunk all layers run on all rows but
/// for the last layer, which only has to append its keys and values: beyond them, nothing of a row
/// is needed unless a draft continues from it.
pub fn draft(
    backend: &dyn Backend,
    network: &Eagle3,
    batch: &DraftBatch<'_>,
    limits: &Limits,
    plan: &Plan,
    scratch: &Scratch,
) {
    let committed = backend.plan_rows(batch, limits, &scratch.pool, plan);
    let step = |rows| Step { backend, batch, plan, scratch, rows };
    let mut first = 0;
    while first < committed {
        let len = scratch.chunk_rows().min(committed - first);
        network.commit(&step(plan.commit.slice(first, len)));
        first += len;
    }
    if batch.max_drafts == 0 {
        return;
    }
    network.continue_from_commit(&step(drafting_rows(plan, 0)));
    network.propose(&step(drafting_rows(plan, 0)), 0);
    for index in 1..batch.max_drafts {
        let step = step(drafting_rows(plan, index));
        network.forward(&step);
        network.propose(&step, index);
    }
}

/// The rows of the sequences that still draft at a step.
fn drafting_rows(plan: &Plan, step: usize) -> crate::backend::phases::Rows {
    let count: Span<i32> = plan.drafting.slice(step, 1);
    crate::backend::phases::Rows { count, ..plan.draft }
}
