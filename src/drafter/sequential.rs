//! Sequential drafting: the network runs once per proposed token, each step continuing from the
//! token that the last one proposed and from the network's own hidden state.

use crate::backend::phases::{DraftBatch, Limits, Plan, Rows};
use crate::backend::{Backend, Stream};
use crate::error::Result;
use crate::model::decoder::{Scratch, Step};
use crate::model::sequential::Sequential;

/// Commits the call's rows, then proposes up to `batch.max_drafts` tokens per sequence.
///
/// Rows are committed in chunks of the scratch's size. In a chunk all layers run on all rows but
/// for the last layer, which only has to append its keys and values: beyond them, nothing of a row
/// is needed unless a draft continues from it.
pub fn draft(
    (backend, stream): (&dyn Backend, Stream),
    network: &Sequential,
    batch: &DraftBatch<'_>,
    limits: &Limits,
    plan: &Plan,
    scratch: &Scratch,
) -> Result<()> {
    let committed = backend.plan_rows(stream, batch, limits, &scratch.pool, plan)?;
    let step = |rows| Step { backend, stream, batch, plan, scratch, rows, block: None };
    for (first, len) in scratch.chunks(committed) {
        network.commit(&step(plan.commit.slice(first, len)))?;
    }
    if batch.max_drafts == 0 {
        return Ok(());
    }
    let first_step = step(drafting_rows(batch, plan, 0));
    network.continue_from_commit(&first_step)?;
    network.propose(&first_step, 0)?;
    for index in 1..batch.max_drafts {
        let step = step(drafting_rows(batch, plan, index));
        network.forward(&step)?;
        network.propose(&step, index)?;
    }
    Ok(())
}

/// The rows of the sequences that still draft at a step.
fn drafting_rows(batch: &DraftBatch<'_>, plan: &Plan, step: usize) -> Rows {
    let rows = plan.draft.slice(0, batch.num_sequences);
    Rows { count: plan.drafting.slice(step, 1), ..rows }
}
