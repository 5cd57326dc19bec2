//! The CPU: phases composed of products, norms, rotations and attention on parked threads.

mod attention;
mod block_heads;
mod compact;
mod contest;
mod distribution;
mod draft_trees;
mod drafting;
mod draw;
mod experts;
mod matmul;
mod memory;
mod plan;
mod remainder;
mod rows;
mod simd;
mod threads;
mod tree;
mod vector;
mod verify;

pub use memory::OperatingSystemMemory;
pub use simd::Isa;
pub use threads::{ParallelFor, Pool, Threads};

use super::block_heads::{
    Convolve, RateDrafts, Refine, ScoreCandidates, SelectCandidates, StepMarkov, WalkCandidates,
};
use super::draft_trees::{
    BranchRows, DescribeTree, DrawSiblings, ExpandBest, RankCandidates, ScoreChildren, TellLogits,
};
use super::experts::MixExperts;
use super::phases::{
    AddProjection, Attend, AttentionHeads, DraftBatch, EmbedTokens, Fault, FuseFeatures, FuseToken,
    GateRows, GateUp, Gather, KvPool, Limits, MapRows, Plan, Project, Propose, StartBlock, StepMlp,
};
use super::verify::{Rule, VerifyBatch};
use super::{Backend, Description, DeviceType, FaultWords, Scope, Stream};
use crate::error::{Error, Result};
use crate::tensor::{Dtype, Matrix, Span};
use crate::tree::{CompactRows, MaskTrees};
use std::sync::atomic::AtomicI32;

/// Rows that are committed at a time: their intermediate rows stay in cache.
const COMMIT_ROWS: usize = 128;

/// The phases on the CPU.
pub struct CpuBackend {
    pool: Pool,
    isa: Isa,
}

impl CpuBackend {
    /// A backend on these threads with the best instructions that the processor has.
    pub fn new(threads: Threads) -> Result<Self> {
        Ok(Self { pool: Pool::new(threads)?, isa: Isa::detect() })
    }

    /// The same backend with other instructions, which [`Isa::available`] must list.
    pub fn with_instructions(mut self, isa: Isa) -> Self {
        assert!(Isa::available().contains(&isa), "the processor lacks {isa:?}");
        self.isa = isa;
        self
    }
}

impl std::fmt::Debug for CpuBackend {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "CpuBackend({:?}, {} threads)", self.isa, self.pool.threads())
    }
}

impl Backend for CpuBackend {
    fn description(&self) -> Description {
        Description {
            device_type: DeviceType::Cpu,
            device_id: 0,
            threads: self.pool.threads(),
            instruction_set: self.isa.name(),
            commit_rows: COMMIT_ROWS,
            kv_dtype: Dtype::F32,
            reads_mapped_files: true,
            max_row_segments: usize::MAX,
        }
    }

    fn enter(&self) -> Result<Scope> {
        Ok(Scope::NONE)
    }

    fn check_stream(&self, stream: Stream) -> Result<()> {
        if stream != Stream::NONE {
            return Err(Error::invalid(format!(
                "stream: expected NULL on the CPU, found {:#x}",
                stream.0
            )));
        }
        Ok(())
    }

    fn is_capturing(&self, _: Stream) -> Result<bool> {
        Ok(false)
    }

    fn fill(
        &self,
        destination: Span<u8>,
        _: usize,
        source: &mut dyn FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        // SAFETY: the contract of Backend: the destination belongs to the call alone.
        source(0, unsafe { memory::elements_mut(destination) })
    }

    fn fetch(&self, _: Stream, source: Span<u8>, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: the contract of Backend.
        bytes.copy_from_slice(unsafe { memory::elements(source) });
        Ok(())
    }

    fn prepare_scratch(&self, _: Span<u8>) -> Result<()> {
        Ok(())
    }

    fn fault_words(&self) -> Result<FaultWords> {
        let words = Box::new([const { AtomicI32::new(0) }; 2]);
        Ok(FaultWords { span: Span::new(words.as_ptr() as u64, words.len()), owner: words })
    }

    fn touch(&self, _: Stream, memory: Span<u8>, clear: bool) -> Result<()> {
        const PAGE: usize = 4096;
        if clear {
            // SAFETY: the contract of Backend: the memory belongs to the call alone.
            unsafe { memory::elements_mut(memory) }.fill(0);
            return Ok(());
        }
        // SAFETY: the contract of Backend.
        let bytes = unsafe { memory::elements(memory) };
        // The last byte too: the first page may be used from its middle on.
        let touched = bytes.iter().step_by(PAGE).chain(bytes.last());
        let sum = touched.fold(0_u8, |sum, &byte| sum ^ byte);
        std::hint::black_box(sum);
        Ok(())
    }

    fn projection_scratch(&self, _: usize, _: AttentionHeads) -> usize {
        0
    }

    fn attention_scratch(&self, rows: usize, heads: AttentionHeads, positions: usize) -> usize {
        attention::scratch_bytes(rows, &heads, positions)
    }

    fn proposal_scratch(&self, rows: usize, columns: usize) -> usize {
        draw::draft_scratch(columns).saturating_mul(rows)
    }

    fn plan_rows(
        &self,
        _: Stream,
        batch: &DraftBatch<'_>,
        limits: &Limits,
        pool: &KvPool,
        plan: &Plan,
    ) -> Result<usize> {
        // SAFETY: the contract of Backend, here and below.
        Ok(unsafe { plan::plan_rows(batch, limits, pool, plan) })
    }

    fn fuse_features(&self, _: Stream, phase: &FuseFeatures<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.fuse(phase) };
        Ok(())
    }

    fn fuse_token(&self, _: Stream, phase: &FuseToken<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.fuse_token_rows(phase) };
        Ok(())
    }

    fn embed_tokens(&self, _: Stream, phase: &EmbedTokens<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.embed_rows(phase) };
        Ok(())
    }

    fn project(&self, _: Stream, phase: &Project<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.project_rows(phase) };
        Ok(())
    }

    fn attend(&self, _: Stream, phase: &Attend) -> Result<()> {
        // SAFETY: as above.
        unsafe { attention::attend(&self.pool, self.isa, phase, drafting::active(&phase.rows)) };
        Ok(())
    }

    fn gate_rows(&self, _: Stream, phase: &GateRows) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.gate_each(phase) };
        Ok(())
    }

    fn add_projection(&self, _: Stream, phase: &AddProjection) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.add(phase) };
        Ok(())
    }

    fn gate_up(&self, _: Stream, phase: &GateUp) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.gate(phase) };
        Ok(())
    }

    fn mix_experts(&self, _: Stream, phase: &MixExperts) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.mix_expert_rows(phase) };
        Ok(())
    }

    fn start_block(&self, _: Stream, phase: &StartBlock<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.start_blocks(phase) };
        Ok(())
    }

    fn gather(&self, _: Stream, phase: &Gather) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.gather_rows(phase) };
        Ok(())
    }

    fn map_rows(&self, _: Stream, phase: &MapRows<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.map(phase) };
        Ok(())
    }

    fn convolve(&self, _: Stream, phase: &Convolve) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.convolve_rows(phase) };
        Ok(())
    }

    fn step_markov(&self, _: Stream, phase: &StepMarkov) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.step_markov_rows(phase) };
        Ok(())
    }

    fn step_mlp(&self, _: Stream, phase: &StepMlp) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.step_mlp_rows(phase) };
        Ok(())
    }

    fn rate_drafts(&self, _: Stream, phase: &RateDrafts<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.rate_rows(phase) };
        Ok(())
    }

    fn select_candidates(&self, _: Stream, phase: &SelectCandidates) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.select_rows(phase) };
        Ok(())
    }

    fn walk_candidates(&self, _: Stream, phase: &WalkCandidates<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.walk_rows(phase) };
        Ok(())
    }

    fn score_candidates(&self, _: Stream, phase: &ScoreCandidates) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.score_candidate_rows(phase) };
        Ok(())
    }

    fn refine(&self, _: Stream, phase: &Refine<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.refine_rows(phase) };
        Ok(())
    }

    fn propose(&self, _: Stream, phase: &Propose<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.propose_rows(phase) };
        Ok(())
    }

    fn tell_logits(&self, _: Stream, phase: &TellLogits<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.tell_rows(phase) };
        Ok(())
    }

    fn draw_siblings(&self, _: Stream, phase: &DrawSiblings<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.draw_sibling_rows(phase) };
        Ok(())
    }

    fn branch_rows(&self, _: Stream, phase: &BranchRows<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.branch(phase) };
        Ok(())
    }

    fn score_children(&self, _: Stream, phase: &ScoreChildren<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.score_rows(phase) };
        Ok(())
    }

    fn expand_best(&self, _: Stream, phase: &ExpandBest<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.expand(phase) };
        Ok(())
    }

    fn rank_candidates(&self, _: Stream, phase: &RankCandidates<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.rank(phase) };
        Ok(())
    }

    fn describe_tree(&self, _: Stream, phase: &DescribeTree<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.describe_trees(phase) };
        Ok(())
    }

    fn take_fault(&self, words: &FaultWords) -> Option<(Fault, usize)> {
        // SAFETY: as above.
        let word = unsafe { memory::elements_mut(words.span) };
        let taken = Fault::from_number(word[0]).map(|fault| (fault, word[1] as usize));
        word.fill(0);
        taken
    }

    fn verify_workspace(&self, batch: &VerifyBatch, rule: &dyn Rule) -> usize {
        verify::workspace_bytes(&self.pool, batch, rule)
    }

    fn verify(
        &self,
        _: Stream,
        batch: &VerifyBatch,
        rule: &dyn Rule,
        workspace: Span<u8>,
    ) -> Result<()> {
        // SAFETY: as above.
        unsafe { verify::verify(&self.pool, self.isa, batch, rule, workspace) };
        Ok(())
    }

    fn mask_trees(&self, _: Stream, phase: &MaskTrees) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.mask_all_trees(phase) };
        Ok(())
    }

    fn compact_rows(&self, _: Stream, phase: &CompactRows<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.compact_all_rows(phase) };
        Ok(())
    }

    fn copy_rows(&self, from: &Matrix, ids: &[i32], to: &Matrix) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.copy(from, ids, to) };
        Ok(())
    }
}
