//! Verification calls with all their arrays.

use super::draft::{Sampling, SamplingColumns, Table};
use super::matrix::Matrix;
use super::{Context, Outcome, Versioned, attempt};
use crate::device::Device;
use crate::device::buffer::{Buffer, Loan};
use crate::device::memory::Memory;
use speculators::capi::*;
use std::ptr::null;

/// The arrays of one verification.
#[derive(Clone, Debug)]
pub struct VerifyCall {
    pub max_drafts: i32,
    pub rule: i32,
    pub logits: Matrix,
    pub row_begin: Option<Vec<i32>>,
    pub num_drafts: Vec<i32>,
    pub drafts: Table,
    /// Of the nodes of every sequence, if the drafts are trees.
    pub parents: Option<Vec<i32>>,
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
    /// Whether each row has ids of its own.
    pub has_row_ids: bool,
}

impl Distribution {
    fn view(&self, device: Device, arrays: &mut Loan) -> spec_distribution {
        let ids = &self.token_ids;
        spec_distribution {
            logits: self.logits.tensor_for(device),
            token_ids: if ids.is_empty() { null() } else { arrays.array(ids) },
            token_ids_stride: if self.has_row_ids { self.logits.columns as i64 } else { 0 },
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
            parents: None,
            position,
            limit: None,
            sampling: Some(SamplingColumns::of(samplings.iter().copied())),
            draft: None,
            stop_tokens: Vec::new(),
        }
    }

    /// Makes the call and waits for its work.
    pub fn run(&self, context: &Context) -> Outcome<Decisions> {
        let width = SPEC_DECISION_TOKENS + 2 * (self.max_drafts + 1);
        let stride = width as usize + 3;
        let mut records = Buffer::filled(stride * self.position.len(), 0);
        let mut counters = Buffer::filled(3 + self.max_drafts as usize, 0);
        let mut arrays = Loan::to(context.device);
        let sampling = self.sampling.as_ref().map(SamplingColumns::view);
        let draft = self.draft.as_ref().map(|draft| draft.view(context.device, &mut arrays));
        let tree = self.parents.as_ref().map(|parents| spec_tree {
            parents: arrays.array(parents).cast_mut(),
            ..Versioned::blank()
        });
        let mut args = spec_verify_args {
            num_sequences: self.position.len() as i32,
            max_drafts: self.max_drafts,
            rule: self.rule,
            logits: self.logits.tensor_for(context.device),
            row_begin: self.row_begin.as_ref().map_or(null(), |rows| arrays.array(rows)),
            num_drafts: arrays.array(&self.num_drafts),
            draft_tokens: arrays.array(&self.drafts.elements),
            draft_stride: self.drafts.stride as i32,
            position: arrays.array(&self.position),
            limit: self.limit.as_ref().map_or(null(), |limit| arrays.array(limit)),
            sampling: sampling.as_ref().map_or(null(), std::ptr::from_ref),
            draft: draft.as_ref().map_or(null(), std::ptr::from_ref),
            tree: tree.as_ref().map_or(null(), std::ptr::from_ref),
            stop_tokens: arrays.array(&self.stop_tokens),
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
        let workspace = Memory::filled_on(context.device, size, 0xA5);
        (args.workspace, args.workspace_size) = (workspace.address(), size);
        context.verify(&args)?;
        Ok(Decisions { records, stride, max_drafts: self.max_drafts as usize, counters })
    }
}

/// The decision records of a call, which the next drafting call reads where they lie.
#[derive(Clone, Debug, PartialEq)]
pub struct Decisions {
    pub records: Buffer<i32>,
    pub stride: usize,
    pub max_drafts: usize,
    pub counters: Buffer<u64>,
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
