//! The CPU: phases composed of products, norms, rotations and attention on parked threads.

mod attention;
mod distribution;
mod drafting;
mod matmul;
mod memory;
mod plan;
mod rows;
mod simd;
mod threads;
mod vector;
mod verify;

pub use memory::OperatingSystemMemory;
pub use simd::Isa;
pub use threads::{ParallelFor, Pool, Threads};

use super::phases::{
    AddProjection, Attend, AttentionHeads, DraftBatch, Fault, FuseFeatures, GateUp, Gather, KvPool,
    Limits, Plan, Project, Propose,
};
use super::verify::{Rule, VerifyBatch};
use super::{Backend, Description, DeviceType};
use crate::error::Result;
use crate::tensor::{Matrix, Span};

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
            threads: self.pool.threads(),
            instruction_set: self.isa.name(),
        }
    }

    fn fill(
        &self,
        destination: Span<u8>,
        source: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        // SAFETY: the contract of Backend: the destination belongs to the call alone.
        source(unsafe { memory::elements_mut(destination) })
    }

    fn touch(&self, memory: Span<u8>, clear: bool) {
        const PAGE: usize = 4096;
        if clear {
            // SAFETY: the contract of Backend: the memory belongs to the call alone.
            unsafe { memory::elements_mut(memory) }.fill(0);
            return;
        }
        // SAFETY: the contract of Backend.
        let bytes = unsafe { memory::elements(memory) };
        // The last byte too: the first page may be used from its middle on.
        let touched = bytes.iter().step_by(PAGE).chain(bytes.last());
        let sum = touched.fold(0_u8, |sum, &byte| sum ^ byte);
        std::hint::black_box(sum);
    }

    fn attention_scratch(&self, rows: usize, heads: AttentionHeads, positions: usize) -> usize {
        attention::scratch_bytes(rows, &heads, positions)
    }

    fn sampling_scratch(&self, rows: usize, columns: usize) -> usize {
        verify::draft_scratch(columns).saturating_mul(rows)
    }

    fn plan_rows(
        &self,
        batch: &DraftBatch<'_>,
        limits: &Limits,
        pool: &KvPool,
        plan: &Plan,
    ) -> usize {
        // SAFETY: the contract of Backend, here and below.
        unsafe { plan::plan_rows(batch, limits, pool, plan) }
    }

    fn fuse_features(&self, phase: &FuseFeatures<'_>) {
        // SAFETY: as above.
        unsafe { self.fuse(phase) }
    }

    fn project(&self, phase: &Project<'_>) {
        // SAFETY: as above.
        unsafe { self.project_rows(phase) }
    }

    fn attend(&self, phase: &Attend) {
        // SAFETY: as above.
        unsafe { attention::attend(&self.pool, self.isa, phase, drafting::active(&phase.rows)) }
    }

    fn add_projection(&self, phase: &AddProjection) {
        // SAFETY: as above.
        unsafe { self.add(phase) }
    }

    fn gate_up(&self, phase: &GateUp) {
        // SAFETY: as above.
        unsafe { self.gate(phase) }
    }

    fn gather(&self, phase: &Gather) {
        // SAFETY: as above.
        unsafe { self.gather_rows(phase) }
    }

    fn propose(&self, phase: &Propose<'_>) {
        // SAFETY: as above.
        unsafe { self.propose_rows(phase) }
    }

    fn take_fault(&self, fault: Span<i32>) -> Option<(Fault, usize)> {
        // SAFETY: as above.
        let word = unsafe { memory::elements_mut(fault) };
        let taken = Fault::from_number(word[0]).map(|fault| (fault, word[1] as usize));
        word.fill(0);
        taken
    }

    fn verify_workspace(&self, batch: &VerifyBatch, rule: &dyn Rule) -> usize {
        verify::workspace_bytes(&self.pool, batch, rule)
    }

    fn verify(&self, batch: &VerifyBatch, rule: &dyn Rule, workspace: Span<u8>) {
        // SAFETY: as above.
        unsafe { verify::verify(&self.pool, self.isa, batch, rule, workspace) }
    }

    fn copy_rows(&self, from: &Matrix, ids: &[i32], to: &Matrix) {
        // SAFETY: as above.
        unsafe { self.copy(from, ids, to) }
    }
}
