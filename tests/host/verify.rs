//! Verification calls with all their arrays.

use super::draft::{Sampling, SamplingColumns, Table};
use super::matrix::Matrix;
use super::{AlignedMemory, Context, Outcome, Versioned, attempt};
use speculators::capi::*;
use std::ptr::{null, null_mut};

/// The arrays of one verification.
#[derive(Clone, Debug)]
pub struct VerifyCall {
    pub max_drafts: i32,
    pub rule: i32,
    pub logits: Matrix,
    pub row_begin: Option<Vec<i32>>,
    pub num_drafts: Vec<i32>,
    pub drafts: Table,
    pub position: Vec<i32>,
    pub limit: Option<Vec<i32>>,
    pub sampling: Option<SamplingColumns>,
    pub draft: Option<Distribution>,
    pub stop_tokens: Vec<i32>,
}

/// What drafts were drawn from: `max_drafts` rows per sequence.
#[derive(Clone, Debug)]
pub struct Distribution {
    pub logits: Matrix,
    /// The target's id of each column; empty is the identity.
    pub token_ids: Vec<i32>,
}

impl Distribution {
    fn view(&self) -> spec_distribution {
        let ids = &self.token_ids;
        spec_distribution {
            logits: self.logits.tensor(),
            token_ids: if ids.is_empty() { null() } else { ids.as_ptr() },
            ..Versioned::blank()
        }
    }
}

impl VerifyCall {
    /// A call with `max_drafts + 1` rows of logits per sequence, for these samplings.
    pub fn new(
        logits: Matrix,
        drafts: Table,
        num_drafts: Vec<i32>,
        position: Vec<i32>,
        samplings: &[Sampling],
    ) -> Self {
        Self {
            max_drafts: (logits.rows / position.len()) as i32 - 1,
            rule: SPEC_RULE_DEFAULT,
            logits,
            row_begin: None,
            num_drafts,
            drafts,
            position,
            limit: None,
            sampling: Some(SamplingColumns::of(samplings.iter().copied())),
            draft: None,
            stop_tokens: Vec::new(),
        }
    }

    /// Makes the call.
    pub fn run(&self, context: &Context) -> Outcome<Decisions> {
        let width = SPEC_DECISION_TOKENS + 2 * (self.max_drafts + 1);
        let stride = width as usize + 3;
        let mut records = vec![0; stride * self.position.len()];
        let mut counters = vec![0; 3 + self.max_drafts as usize];
        let sampling = self.sampling.as_ref().map(SamplingColumns::view);
        let draft = self.draft.as_ref().map(Distribution::view);
        let mut args = spec_verify_args {
            num_sequences: self.position.len() as i32,
            max_drafts: self.max_drafts,
            rule: self.rule,
            logits: self.logits.tensor(),
            row_begin: self.row_begin.as_ref().map_or(null(), |rows| rows.as_ptr()),
            num_drafts: self.num_drafts.as_ptr(),
            draft_tokens: self.drafts.elements.as_ptr(),
            draft_stride: self.drafts.stride as i32,
            position: self.position.as_ptr(),
            limit: self.limit.as_ref().map_or(null(), |limit| limit.as_ptr()),
            sampling: sampling.as_ref().map_or(null(), std::ptr::from_ref),
            draft: draft.as_ref().map_or(null(), std::ptr::from_ref),
            stop_tokens: self.stop_tokens.as_ptr(),
            num_stop_tokens: self.stop_tokens.len() as i32,
            decision_stride: stride as i32,
            decisions: records.as_mut_ptr(),
            counters: counters.as_mut_ptr(),
            ..Versioned::blank()
        };
        let mut size = 0;
        // SAFETY: a live handle; all arrays have the documented sizes and outlive the calls.
        attempt(|error| unsafe {
            spec_verify_workspace_size(context.handle, &args, &mut size, error)
        })?;
        let mut workspace = AlignedMemory::filled(size, 0xA5);
        (args.workspace, args.workspace_size) = (workspace.address(), size);
        // SAFETY: as above.
        attempt(|error| unsafe { spec_verify(context.handle, &args, null_mut(), error) })?;
        Ok(Decisions { records, stride, max_drafts: self.max_drafts as usize, counters })
    }
}

/// The decision records of a call, which the next drafting call reads where they lie.
#[derive(Clone, Debug, PartialEq)]
pub struct Decisions {
    pub records: Vec<i32>,
    pub stride: usize,
    pub max_drafts: usize,
    pub counters: Vec<u64>,
}

impl Decisions {
    /// One field of all records, to be read with `stride`.
    pub fn column(&self, field: i32) -> &[i32] {
        &self.records[field as usize..]
    }

    pub fn field(&self, sequence: usize, field: i32) -> i32 {
        self.column(field)[sequence * self.stride]
    }

    /// The accepted paths, to be read with `stride`.
    pub fn path(&self) -> &[i32] {
        self.column(SPEC_DECISION_TOKENS + self.max_drafts as i32 + 1)
    }

    pub fn emitted(&self, sequence: usize) -> &[i32] {
        let count = self.field(sequence, SPEC_DECISION_EMITTED) as usize;
        &self.column(SPEC_DECISION_TOKENS)[sequence * self.stride..][..count]
    }
}
