//! Verification: which drafts stand, and which token follows them. Each rule has a file of its own.

mod block;
mod follow;
mod greedy;
mod rejection;
mod relaxed;
mod selftest;
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
pub use selftest::{Report, selftest};
pub use synthetic::Synthetic;
pub use threshold::Threshold;
pub use typical::Typical;

use crate::backend::Backend;
use crate::backend::verify::{Rule, Siblings};
use crate::error::{Error, Result};
use crate::tensor::Span;

/// The numbers of the rules in the C API. The default is one of the others.
const DEFAULT: i32 = 0;
const FOLLOW: i32 = 1;
const REJECTION: i32 = 2;
const DISTINCT: i32 = 3;
const BLOCK: i32 = 4;
const TYPICAL: i32 = 16;
const THRESHOLD: i32 = 17;
const RELAXED: i32 = 18;
const SYNTHETIC: i32 = 19;

/// The rules by their numbers.
const RULES: [(i32, &dyn Rule); 8] = [
    (FOLLOW, &Follow),
    (REJECTION, &Rejection(Siblings::Independent)),
    (DISTINCT, &Rejection(Siblings::Distinct)),
    (BLOCK, &Block),
    (TYPICAL, &Typical),
    (THRESHOLD, &Threshold),
    (RELAXED, &Relaxed),
    (SYNTHETIC, &Synthetic),
];

/// The rule with this number, for a batch as it is.
fn rule(number: i32, batch: &VerifyBatch) -> Result<&'static dyn Rule> {
    let rule: &dyn Rule = match (number, batch.draft.is_some()) {
        (DEFAULT, true) => &Rejection(Siblings::Distinct),
        (DEFAULT, false) => &Follow,
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
