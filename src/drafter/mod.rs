//! How each method of speculation turns a committed context into draft tokens.

pub mod block;
pub mod heads;
pub mod sequential;
pub mod tree;

use crate::backend::phases::{DraftBatch, Limits, Plan, Rows};
use crate::backend::{Backend, Stream};
use crate::error::Result;
use crate::model::decoder::{Scratch, Step};

/// One call of a session.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// The device.
    pub backend: &'a dyn Backend,
    /// Where its work is enqueued.
    pub stream: Stream,
    /// What the host asks for.
    pub batch: &'a DraftBatch<'a>,
    /// What the session was created for.
    pub limits: &'a Limits,
    /// The session's rows.
    pub plan: &'a Plan,
    /// The session's memory.
    pub scratch: &'a Scratch,
}

impl<'a> Call<'a> {
    /// Lays out the call's rows and commits those that are to be committed, in chunks of the scratch's
    /// size.
    fn commit(&self, commit: impl Fn(&Step<'a>) -> Result<()>) -> Result<()> {
        let Self { backend, stream, batch, limits, plan, scratch } = *self;
        let committed = backend.plan_rows(stream, batch, limits, &scratch.pool, plan)?;
        for (first, len) in scratch.chunks(committed) {
            commit(&self.step(plan.commit.slice(first, len)))?;
        }
        Ok(())
    }

    /// A run of the network on some of the call's rows.
    fn step(&self, rows: Rows) -> Step<'a> {
        let Self { backend, stream, batch, plan, scratch, .. } = *self;
        Step { backend, stream, batch, plan, scratch, rows, own: None }
    }
    /// A run of the network on the rows of the sequences that propose more tokens than this.
    fn step_of(&self, drafted: usize) -> Step<'a> {
        let step = self.step(self.plan.draft);
        Step { rows: step.drafting_rows(drafted), ..step }
    }
}
