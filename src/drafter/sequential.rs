//! Sequential drafting: the network runs once per proposed token, each step continuing from the
//! token that the last one proposed and from the network's own hidden state.

use super::Call;
use crate::error::Result;
use crate::model::sequential::Sequential;

/// Commits the call's rows, then proposes up to `max_drafts` tokens per sequence.
///
/// In a commit all layers run on all rows but for the last layer, which only has to append its keys and
/// values: beyond them, nothing of a row is needed unless a draft continues from it.
pub fn draft(call: &Call<'_>, network: &Sequential) -> Result<()> {
    call.commit(|step| network.commit(step))?;
    if call.batch.max_drafts == 0 {
        return Ok(());
    }
    let first_step = call.step_of(0);
    network.continue_from_commit(&first_step)?;
    network.propose(&first_step, 0)?;
    for index in 1..call.batch.max_drafts {
        let step = call.step_of(index);
        network.forward(&step, step.scratch.draft_hidden())?;
        network.propose(&step, index)?;
    }
    Ok(())
}
