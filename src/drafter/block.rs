//! Block drafting: the network runs once over the blocks of all sequences and proposes all tokens of each.

use super::Call;
use crate::error::Result;
use crate::model::block::Block;

/// Commits the call's rows, then proposes up to `max_drafts` tokens per sequence.
pub fn draft(call: &Call<'_>, network: &Block) -> Result<()> {
    call.commit(|step| network.commit(step))?;
    if call.batch.max_drafts == 0 {
        return Ok(());
    }
    network.draft(&call.step(call.plan.draft.slice(0, call.batch.num_sequences)))
}
