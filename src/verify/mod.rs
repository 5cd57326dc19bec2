//! Verification: which drafts stand, and which token follows them. Each rule has a file of its own.

mod follow;
mod greedy;
mod rejection;

pub use crate::backend::Stream;
pub use crate::backend::phases::Column;
pub use crate::backend::verify::{DraftDistribution, VerifyBatch, record};
pub use follow::Follow;
pub use greedy::Greedy;
pub use rejection::Rejection;

use crate::backend::Backend;
use crate::backend::verify::Rule;
use crate::error::{Error, Result};
use crate::tensor::Span;

/// The numbers of the rules in the C API.
const DEFAULT: i32 = 0;
const FOLLOW: i32 = 1;
const REJECTION: i32 = 2;

/// The rule with this number, for a batch with or without a draft distribution.
fn rule(number: i32, has_distribution: bool) -> Result<&'static dyn Rule> {
    match number {
        DEFAULT if has_distribution => Ok(&Rejection),
        DEFAULT | FOLLOW => Ok(&Follow),
        REJECTION => Ok(&Rejection),
        _ => Err(Error::unsupported(format!(
            "rule: expected {DEFAULT} (default), {FOLLOW} (follow) or {REJECTION} (rejection), found {number}"
        ))),
    }
}

/// Bytes of workspace that [`verify`] needs for the batch.
pub fn workspace_bytes(backend: &dyn Backend, batch: &VerifyBatch, number: i32) -> Result<usize> {
    Ok(backend.verify_workspace(batch, rule(number, batch.draft.is_some())?))
}

/// Decides all sequences of a batch by the rule with this number.
pub fn verify(
    (backend, stream): (&dyn Backend, Stream),
    batch: &VerifyBatch,
    number: i32,
    workspace: Span<u8>,
) -> Result<()> {
    let rule = rule(number, batch.draft.is_some())?;
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
