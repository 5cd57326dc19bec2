//! Verification: which drafts stand, and which token follows them. Each rule has a file of its own.

mod block;
mod follow;
mod greedy;
mod rejection;
mod relaxed;
mod synthetic;
mod threshold;
mod typical;

pub use crate::backend::Stream;
pub use crate::backend::phases::Column;
pub use crate::backend::processing::{
    BadWords, Biases, Bits, History, Masks, Penalties, Processing, Ranges,
};
pub use crate::backend::verify::{
    ALTERNATIVES_MAX, DraftDistribution, Leniency, Logprobs, VerifyBatch, record,
};
pub use block::Block;
pub use follow::Follow;
pub use greedy::Greedy;
pub use rejection::Rejection;
pub use relaxed::Relaxed;
pub use synthetic::Synthetic;
pub use threshold::Threshold;
pub use typical::Typical;

use crate::backend::Backend;
use crate::backend::verify::{Rule, Siblings};
use crate::error::{Error, Result};
use crate::tensor::Span;

/// The rules by their numbers in the C API. Number 0 is the default.
const RULES: [(i32, &dyn Rule); 8] = [
    (1, &Follow),
    (2, &Rejection(Siblings::Independent)),
    (3, &Rejection(Siblings::Distinct)),
    (4, &Block),
    (16, &Typical),
    (17, &Threshold),
    (18, &Relaxed),
    (19, &Synthetic),
];

/// The rule with this number, for a batch as it is.
fn rule(number: i32, batch: &VerifyBatch) -> Result<&'static dyn Rule> {
    let rule: &dyn Rule = match (number, batch.draft.is_some()) {
        (0, true) => &Rejection(Siblings::Distinct),
        (0, false) => &Follow,
        _ => RULES.iter().find(|(known, _)| *known == number).map(|(_, rule)| *rule).ok_or_else(
            || {
                let known: Vec<String> = RULES.iter().map(|(known, _)| known.to_string()).collect();
                let known = known.join(", ");
                Error::unsupported(format!("rule: expected one of 0, {known}, found {number}"))
            },
        )?,
    };
    if rule.chain_rule().is_some() && batch.parents.is_some() {
        return Err(Error::unsupported(format!(
            "tree: expected NULL, as rule {number} is one for chains"
        )));
    }
    Ok(rule)
}

/// Bytes of workspace that [`verify`] needs for the batch.
pub fn workspace_bytes(backend: &dyn Backend, batch: &VerifyBatch, number: i32) -> Result<usize> {
    Ok(backend.verify_workspace(batch, rule(number, batch)?))
}

/// Decides all sequences of a batch by the rule with this number. A rule that is not lossless has
/// to be allowed.
pub fn verify(
    (backend, stream): (&dyn Backend, Stream),
    batch: &VerifyBatch,
    (number, allows_loss): (i32, bool),
    workspace: Span<u8>,
) -> Result<()> {
    let rule = rule(number, batch)?;
    if rule.kind().is_lossy() && !allows_loss {
        return Err(Error::invalid(format!(
            "flags: expected SPEC_LOSSY, as rule {number} does not keep the target's distribution"
        )));
    }
    backend.check_stream(stream)?;
    let needed = backend.verify_workspace(batch, rule);
    if workspace.len() < needed {
        return Err(Error::invalid(format!(
            "workspace: expected at least {needed} bytes, found {}",
            workspace.len()
        )));
    }
    let _scope = backend.enter()?;
    backend.verify(stream, batch, rule, workspace)
}
