//! Block drafting: the network runs once over the blocks of all sequences and proposes all tokens of each.

use crate::backend::phases::{DraftBatch, Limits, Plan};
use crate::backend::{Backend, Stream};
use crate::error::Result;
use crate::model::block::Block;
use crate::model::decoder::{Scratch, Step};

/// Commits the call's rows, then proposes up to `batch.max_drafts` tokens per sequence.
pub fn draft(
    (backend, stream): (&dyn Backend, Stream),
    network: &Block,
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
    network.draft(&step(plan.draft.slice(0, batch.num_sequences)))
}
