//! Drafting by heads: each reads the state of the one before and the token that it proposed.

use super::Call;
use crate::error::Result;
use crate::model::heads::Heads;

/// Proposes up to `max_drafts` tokens per sequence; there is nothing to commit.
pub fn draft(call: &Call<'_>, network: &Heads) -> Result<()> {
    call.commit(|_| Ok(()))?;
    for index in 0..call.batch.max_drafts.min(network.most_drafts()) {
        let step = call.step_of(index);
        network.advance(&step, index, step.scratch.draft_hidden())?;
        network.propose(&step, index)?;
    }
    Ok(())
}
