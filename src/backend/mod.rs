//! The seam to a device: a trait whose unit is the fused phase, one kernel launch on a GPU. The
//! networks and the verification are written once, as sequences of these phases.

pub mod cpu;
pub mod phases;
pub mod verify;

use crate::error::Result;
use crate::tensor::{Matrix, Span};
use phases::{
    AddProjection, Attend, AttentionHeads, DraftBatch, Fault, FuseFeatures, GateUp, Gather, KvPool,
    Limits, Plan, Project, Propose,
};
use std::ffi::CStr;
use verify::{Rule, VerifyBatch};

/// The kinds of device; the numbers are those of DLPack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum DeviceType {
    /// Host memory.
    Cpu = 1,
}

/// A device and how it is used.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// The kind of device.
    pub device_type: DeviceType,
    /// Threads that work on a call, the caller among them.
    pub threads: usize,
    /// The instructions that the phases use.
    pub instruction_set: &'static CStr,
}

/// The phases of drafting and verification on one device.
///
/// # Safety
///
/// The phases are safe to call because of one contract, which the callers of a step state at the
/// boundary: every address in a phase's data is valid on the device for the sizes given, scratch
/// and outputs belong to the call alone, and inputs do not change until the phase is done.
/// Indices that are read from memory of the device (rows, pages, tokens) are not trusted; they are
/// checked by [`Backend::plan_rows`] and by the phases of verification.
pub trait Backend: Send + Sync + std::fmt::Debug {
    /// What the device is.
    fn description(&self) -> Description;

    /// Fills the memory at `destination` with what `source` writes. Blocks.
    fn fill(
        &self,
        destination: Span<u8>,
        source: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()>;

    /// Reads the memory so that it is resident, and clears it first if asked to. Blocks.
    fn touch(&self, memory: Span<u8>, clear: bool);

    /// Bytes of scratch of [`Backend::attend`] for at most `rows` rows that see `positions` positions.
    fn attention_scratch(&self, rows: usize, heads: AttentionHeads, positions: usize) -> usize;

    /// Bytes of scratch of [`Backend::propose`] for at most `rows` rows of `columns` logits.
    fn sampling_scratch(&self, rows: usize, columns: usize) -> usize;

    /// Checks a call's arrays and lays out its rows; pads the outputs of all sequences. Returns how
    /// many rows there can be to commit, as far as that is known without waiting for the device.
    fn plan_rows(
        &self,
        batch: &DraftBatch<'_>,
        limits: &Limits,
        pool: &KvPool,
        plan: &Plan,
    ) -> usize;

    /// Features to hidden state.
    fn fuse_features(&self, phase: &FuseFeatures<'_>);

    /// Norm, query / key / value maps, rotary embedding, append.
    fn project(&self, phase: &Project<'_>);

    /// Attention over the pages.
    fn attend(&self, phase: &Attend);

    /// A linear map added to the residual stream.
    fn add_projection(&self, phase: &AddProjection);

    /// The first half of a gated MLP.
    fn gate_up(&self, phase: &GateUp);

    /// The residual stream of the rows that go on drafting.
    fn gather(&self, phase: &Gather);

    /// Norm, head and choice of a draft token.
    fn propose(&self, phase: &Propose<'_>);

    /// The first fault since the last call of this function, with its sequence.
    fn take_fault(&self, fault: Span<i32>) -> Option<(Fault, usize)>;

    /// Bytes of workspace that [`Backend::verify`] needs.
    fn verify_workspace(&self, batch: &VerifyBatch, rule: &dyn Rule) -> usize;

    /// Decides all sequences of a batch by a rule.
    fn verify(&self, batch: &VerifyBatch, rule: &dyn Rule, workspace: Span<u8>);

    /// Copies rows of `from`, in the order of `ids`, to `to` (same type and width). Blocks.
    fn copy_rows(&self, from: &Matrix, ids: &[i32], to: &Matrix);
}
