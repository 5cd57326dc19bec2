//! The seam to a device: a trait whose unit is the fused phase, one kernel launch on a GPU. The
//! networks and the verification are written once, as sequences of these phases.

pub mod block_heads;
pub mod cpu;
pub mod cuda;
pub mod draft_trees;
pub mod experts;
pub mod phases;
pub mod processing;
pub mod verify;

use crate::error::Result;
use crate::tensor::{Dtype, Matrix, Span};
use crate::tree::{CompactRows, MaskTrees};
use block_heads::{
    Convolve, RateDrafts, Refine, ScoreCandidates, SelectCandidates, StepMarkov, WalkCandidates,
};
use draft_trees::{
    BranchRows, DescribeTree, DrawSiblings, ExpandBest, RankCandidates, ScoreChildren, TellLogits,
};
use experts::MixExperts;
use phases::{
    AddProjection, Attend, AttentionHeads, DraftBatch, EmbedTokens, Fault, FuseFeatures, FuseToken,
    GateRows, GateUp, Gather, KvPool, Limits, MapRows, Plan, Project, Propose, StartBlock, StepMlp,
};
use std::any::Any;
use std::ffi::CStr;
use verify::{Rule, VerifyBatch};

/// The kinds of device; the numbers are those of DLPack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum DeviceType {
    /// Host memory.
    Cpu = 1,
    /// A CUDA device.
    Cuda = 2,
}

/// A device and how it is used.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// The kind of device.
    pub device_type: DeviceType,
    /// Which of them.
    pub device_id: i32,
    /// Threads of the host that work on a call, the caller among them.
    pub threads: usize,
    /// The instructions that the phases use.
    pub instruction_set: &'static CStr,
    /// The rows to commit at a time: enough to read the weights rarely, few enough that the
    /// intermediate rows do not take much memory.
    pub commit_rows: usize,
    /// The element type of keys and values where the host does not say.
    pub kv_dtype: Dtype,
    /// Whether the device reads the memory that files are mapped into.
    pub reads_mapped_files: bool,
    /// The most pieces that a lent tensor may come in.
    pub max_row_segments: usize,
}

/// The host's queue of a device's work: a `CUstream`, or nothing on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(pub u64);

impl Stream {
    /// The queue of a device that has none.
    pub const NONE: Self = Self(0);
}

/// The time during which a thread works with a device. What the thread had before comes back when
/// it is dropped.
#[derive(Debug)]
pub struct Scope {
    _current: Option<cuda::Entered>,
}

impl Scope {
    /// The scope of a device that threads need not prepare for.
    pub const NONE: Self = Self { _current: None };
}

/// Two words that a device writes and the host reads while the device works on: the first fault
/// since they were last taken, its number and its sequence.
#[derive(Debug)]
pub struct FaultWords {
    /// Where they are, for the device.
    pub span: Span<i32>,
    /// What keeps them.
    pub owner: Box<dyn Any + Send + Sync>,
}

/// The phases of drafting and verification on one device.
///
/// Each phase takes a stream, enqueues its work there and returns; the CPU does the work at once.
/// A phase neither allocates nor waits, unless its comment says that it blocks. It fails only if
/// the device does.
///
/// # Safety
///
/// The phases are safe to call because of one contract, which the callers of a step state at the
/// boundary: every address in a phase's data is valid on the device for the sizes given, scratch
/// and outputs belong to the call alone, and inputs do not change until the phase is done. The
/// calling thread is in a [`Scope`] of the backend.
/// Indices that are read from memory of the device (rows, pages, tokens) are not trusted; they are
/// checked by [`Backend::plan_rows`] and by the phases of verification.
pub trait Backend: Send + Sync + std::fmt::Debug {
    /// What the device is.
    fn description(&self) -> Description;

    /// Prepares the calling thread for work with the device.
    fn enter(&self) -> Result<Scope>;

    /// Refuses a stream that the device does not have.
    fn check_stream(&self, stream: Stream) -> Result<()>;

    /// Whether work on the stream is recorded instead of done, so that nothing may wait for it.
    fn is_capturing(&self, stream: Stream) -> Result<bool>;

    /// Fills the memory at `destination`, piece by piece in order: `source` writes the bytes of a
    /// piece, given where in the whole it begins. Pieces are multiples of `granule` bytes. Blocks.
    fn fill(
        &self,
        destination: Span<u8>,
        granule: usize,
        source: &mut dyn FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<()>;

    /// Copies what the work on the stream has left at `source` to the host, to as many bytes. Blocks.
    fn fetch(&self, stream: Stream, source: Span<u8>, bytes: &mut [u8]) -> Result<()>;

    /// Makes scratch that a session keeps ready for its phases, which expect it as the one before
    /// left it. Blocks.
    fn prepare_scratch(&self, scratch: Span<u8>) -> Result<()>;

    /// Words for the faults of a session. Blocks.
    fn fault_words(&self) -> Result<FaultWords>;

    /// Reads the memory so that it is resident, and clears it first if asked to. The CPU blocks.
    fn touch(&self, stream: Stream, memory: Span<u8>, clear: bool) -> Result<()>;

    /// Bytes of scratch of [`Backend::project`] for at most `rows` rows.
    fn projection_scratch(&self, rows: usize, heads: AttentionHeads) -> usize;

    /// Bytes of scratch of [`Backend::attend`] for at most `rows` rows that see `positions` positions.
    fn attention_scratch(&self, rows: usize, heads: AttentionHeads, positions: usize) -> usize;

    /// Bytes of scratch of [`Backend::propose`] for at most `rows` rows of `columns` logits.
    fn proposal_scratch(&self, rows: usize, columns: usize) -> usize;

    /// Checks a call's arrays and lays out its rows; pads the outputs of all sequences. Returns how
    /// many rows there can be in [`Plan::commit`], as far as that is known without waiting for the device.
    fn plan_rows(
        &self,
        stream: Stream,
        batch: &DraftBatch<'_>,
        limits: &Limits,
        pool: &KvPool,
        plan: &Plan,
    ) -> Result<usize>;

    /// Features to hidden state.
    fn fuse_features(&self, stream: Stream, phase: &FuseFeatures<'_>) -> Result<()>;

    /// Token and hidden state to hidden state.
    fn fuse_token(&self, stream: Stream, phase: &FuseToken<'_>) -> Result<()>;

    /// Token to hidden state.
    fn embed_tokens(&self, stream: Stream, phase: &EmbedTokens<'_>) -> Result<()>;

    /// Norm, query / key / value maps, rotary embedding, append.
    fn project(&self, stream: Stream, phase: &Project<'_>) -> Result<()>;

    /// Attention over the pages.
    fn attend(&self, stream: Stream, phase: &Attend) -> Result<()>;

    /// The gate of an attention.
    fn gate_rows(&self, stream: Stream, phase: &GateRows) -> Result<()>;

    /// A linear map added to the residual stream.
    fn add_projection(&self, stream: Stream, phase: &AddProjection) -> Result<()>;

    /// The first half of a gated MLP.
    fn gate_up(&self, stream: Stream, phase: &GateUp) -> Result<()>;

    /// A mixture of experts.
    fn mix_experts(&self, stream: Stream, phase: &MixExperts) -> Result<()>;

    /// The rows of blocks, and what enters the first layer with them.
    fn start_block(&self, stream: Stream, phase: &StartBlock<'_>) -> Result<()>;

    /// The residual stream of the rows that go on drafting.
    fn gather(&self, stream: Stream, phase: &Gather) -> Result<()>;

    /// Norm and linear map of rows.
    fn map_rows(&self, stream: Stream, phase: &MapRows<'_>) -> Result<()>;

    /// A convolution over the rows of each block.
    fn convolve(&self, stream: Stream, phase: &Convolve) -> Result<()>;

    /// A step of a Markov head.
    fn step_markov(&self, stream: Stream, phase: &StepMarkov) -> Result<()>;

    /// A step of an MLP speculator.
    fn step_mlp(&self, stream: Stream, phase: &StepMlp) -> Result<()>;

    /// Confidence in the proposals, and their truncation by it.
    fn rate_drafts(&self, stream: Stream, phase: &RateDrafts<'_>) -> Result<()>;

    /// The tokens with the largest logits of each row.
    fn select_candidates(&self, stream: Stream, phase: &SelectCandidates) -> Result<()>;

    /// A walk through the candidates of each block.
    fn walk_candidates(&self, stream: Stream, phase: &WalkCandidates<'_>) -> Result<()>;

    /// The scores of candidates below the rows of a level of trees.
    fn score_candidates(&self, stream: Stream, phase: &ScoreCandidates) -> Result<()>;

    /// One pass of a refiner.
    fn refine(&self, stream: Stream, phase: &Refine<'_>) -> Result<()>;

    /// Norm, head and choice of a draft token.
    fn propose(&self, stream: Stream, phase: &Propose<'_>) -> Result<()>;

    /// The logits of a level of given trees, for the host.
    fn tell_logits(&self, stream: Stream, phase: &TellLogits<'_>) -> Result<()>;

    /// Draws of siblings without replacement.
    fn draw_siblings(&self, stream: Stream, phase: &DrawSiblings<'_>) -> Result<()>;

    /// The children of a level of given trees, and the rows of the next.
    fn branch_rows(&self, stream: Stream, phase: &BranchRows<'_>) -> Result<()>;

    /// The candidates below a level of dynamic trees.
    fn score_children(&self, stream: Stream, phase: &ScoreChildren<'_>) -> Result<()>;

    /// The rows of the next level of dynamic trees.
    fn expand_best(&self, stream: Stream, phase: &ExpandBest<'_>) -> Result<()>;

    /// The best candidates of dynamic trees.
    fn rank_candidates(&self, stream: Stream, phase: &RankCandidates<'_>) -> Result<()>;

    /// What the host wants to know of the trees.
    fn describe_tree(&self, stream: Stream, phase: &DescribeTree<'_>) -> Result<()>;

    /// The first fault since the last call of this function, with its sequence. Does not wait for
    /// the device.
    fn take_fault(&self, words: &FaultWords) -> Option<(Fault, usize)>;

    /// Bytes of workspace that [`Backend::verify`] needs.
    fn verify_workspace(&self, batch: &VerifyBatch, rule: &dyn Rule) -> usize;

    /// Decides all sequences of a batch by a rule.
    fn verify(
        &self,
        stream: Stream,
        batch: &VerifyBatch,
        rule: &dyn Rule,
        workspace: Span<u8>,
    ) -> Result<()>;

    /// Tells of trees: links, positions, paths, masks.
    fn mask_trees(&self, stream: Stream, phase: &MaskTrees) -> Result<()>;

    /// Moves the rows of accepted nodes behind their root.
    fn compact_rows(&self, stream: Stream, phase: &CompactRows<'_>) -> Result<()>;

    /// Copies rows of `from`, in the order of `ids`, to `to` (same type and width). Blocks.
    fn copy_rows(&self, from: &Matrix, ids: &[i32], to: &Matrix) -> Result<()>;
}
