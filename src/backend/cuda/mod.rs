//! CUDA devices: the phases as kernels on the host's streams.

mod attention;
mod block;
mod block_heads;
mod cache;
mod compact;
mod compilation;
mod compiler;
mod device;
mod draft_trees;
mod draw;
mod driver;
mod embedding;
mod experts;
mod features;
mod images;
mod launch;
mod layer;
mod memory;
mod mlp;
mod paging;
mod plan;
mod processing;
mod products;
mod project;
mod propose;
mod rows;
mod token;
mod tree;
mod verify;

pub use device::Entered;
pub use memory::DeviceMemory;

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
use crate::error::Result;
use crate::tensor::{Dtype, Matrix, Span};
use crate::tree::{CompactRows, MaskTrees};
use device::Device;
use images::Images;
use launch::Kernels;
use memory::{PinnedMemory, Staging};
use std::ffi::CStr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use verify::Teams;

/// Rows that are committed at a time.
const COMMIT_ROWS: usize = 512;

/// The most pieces of a lent tensor: they are arguments of kernels.
pub const MAX_ROW_SEGMENTS: usize = 16;

/// How a device is opened.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which device.
    pub ordinal: i32,
    /// The host's CUcontext; 0 is the primary one.
    pub context: u64,
    /// A directory of kernel images that go before the library's own.
    pub images: Option<PathBuf>,
    /// Where compiled kernels are kept.
    pub cache: KernelCache,
}

/// Where compiled kernels are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KernelCache {
    /// In the user's cache directory.
    #[default]
    Default,
    /// Nowhere.
    None,
    /// In this directory.
    At(PathBuf),
}

/// What kernels can come from on this machine, whether it has a device or not.
#[derive(Clone, Debug)]
pub struct KernelSources {
    /// Modules that the build has embedded images of.
    pub embedded: usize,
    /// All modules.
    pub modules: usize,
    /// What compiled the images.
    pub embedded_by: &'static str,
    /// The compiler of those without an image, or for devices that the images do not fit: NVRTC, or why it
    /// was not found.
    pub compiler: Result<String>,
}

impl KernelSources {
    /// Looks for them.
    pub fn find() -> Self {
        let (embedded, modules, embedded_by) = images::embedded_images();
        let compiler = compiler::Compiler::find().map(|compiler| compiler.name());
        Self { embedded, modules, embedded_by, compiler }
    }
}

/// The phases on a CUDA device.
pub struct CudaBackend {
    device: Arc<Device>,
    kernels: Kernels,
    teams: Teams,
    /// Made by the first upload.
    staging: Mutex<Option<Staging>>,
}

impl CudaBackend {
    /// Opens a device, and loads the kernels. Blocks.
    pub fn new(options: &Options) -> Result<Self> {
        let images = Images::new(options)?;
        let device = Device::open(options.ordinal, options.context)?;
        let kernels = Kernels::load(&device, &images)
            .map_err(|error| error.within(format!("CUDA device {}", options.ordinal)))?;
        let teams = Teams::new(&kernels)?;
        Ok(Self { device, kernels, teams, staging: Mutex::new(None) })
    }

    /// The same, with so many blocks for each row of a verification, which read the row from where
    /// it is whenever they need it unless they keep a copy. The decisions are the same.
    pub fn with_verify_teams(mut self, blocks: u32, keep_copies: bool) -> Self {
        self.teams = self.teams.of(blocks, keep_copies);
        self
    }

    /// The device's memory.
    pub fn memory(&self) -> DeviceMemory {
        DeviceMemory::new(Arc::clone(&self.device))
    }

    /// Does something with staging memory whose pieces hold `granule` bytes.
    fn with_staging<T>(
        &self,
        granule: usize,
        work: impl FnOnce(&mut Staging) -> Result<T>,
    ) -> Result<T> {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = staging.take().filter(|staging| staging.holds(granule));
        let staging = staging.insert(match kept {
            Some(kept) => kept,
            None => Staging::new(&self.device, granule)?,
        });
        work(staging)
    }
}

impl std::fmt::Debug for CudaBackend {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let facts = self.device.facts();
        write!(
            formatter,
            "CUDA device {} ({}, compute capability {}.{}, {} multiprocessors), driver for CUDA {}; kernels {}",
            facts.ordinal,
            facts.name,
            facts.capability.0,
            facts.capability.1,
            facts.multiprocessors,
            driver::version_text(facts.driver_version),
            self.kernels.origin()
        )
    }
}

/// The name of the instructions of a compute capability.
fn instruction_set((major, minor): (i32, i32)) -> &'static CStr {
    match major * 10 + minor {
        80 => c"sm_80",
        86 => c"sm_86",
        87 => c"sm_87",
        88 => c"sm_88",
        89 => c"sm_89",
        90 => c"sm_90",
        100 => c"sm_100",
        103 => c"sm_103",
        110 => c"sm_110",
        120 => c"sm_120",
        121 => c"sm_121",
        _ => c"newer than sm_121",
    }
}

impl Backend for CudaBackend {
    fn description(&self) -> Description {
        Description {
            device_type: DeviceType::Cuda,
            device_id: self.device.facts().ordinal,
            threads: 1,
            instruction_set: instruction_set(self.device.facts().capability),
            commit_rows: COMMIT_ROWS,
            kv_dtype: Dtype::Bf16,
            reads_mapped_files: false,
            max_row_segments: MAX_ROW_SEGMENTS,
        }
    }

    fn enter(&self) -> Result<Scope> {
        Ok(Scope { _current: Some(self.device.enter()?) })
    }

    fn check_stream(&self, stream: Stream) -> Result<()> {
        self.device.check_stream(stream)
    }

    fn is_capturing(&self, stream: Stream) -> Result<bool> {
        self.device.is_capturing(stream)
    }

    fn fill(
        &self,
        destination: Span<u8>,
        granule: usize,
        source: &mut dyn FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        self.with_staging(granule, |staging| staging.upload(destination, granule, source))
    }

    fn fetch(&self, stream: Stream, source: Span<u8>, bytes: &mut [u8]) -> Result<()> {
        let _entered = self.device.enter()?;
        // SAFETY: the contract of Backend.
        unsafe { memory::fetch(source, bytes, stream) }
    }

    fn prepare_scratch(&self, scratch: Span<u8>) -> Result<()> {
        let _entered = self.device.enter()?;
        // SAFETY: the contract of Backend.
        unsafe { memory::clear(scratch, Stream::NONE)? };
        memory::synchronise(Stream::NONE)
    }

    fn fault_words(&self) -> Result<FaultWords> {
        let words = PinnedMemory::allocate(&self.device, size_of::<u64>())?;
        Ok(FaultWords { span: Span::new(words.span().address(), 2), owner: Box::new(words) })
    }

    fn touch(&self, stream: Stream, memory: Span<u8>, clear: bool) -> Result<()> {
        if clear {
            // SAFETY: the contract of Backend.
            unsafe { memory::clear(memory, stream)? };
        }
        Ok(())
    }

    fn projection_scratch(&self, rows: usize, heads: AttentionHeads) -> usize {
        project::scratch_bytes(rows, &heads)
    }

    fn attention_scratch(&self, rows: usize, heads: AttentionHeads, positions: usize) -> usize {
        attention::scratch_bytes(rows, &heads, positions)
    }

    fn proposal_scratch(&self, rows: usize, columns: usize) -> usize {
        propose::scratch_bytes(rows, columns)
    }

    fn plan_rows(
        &self,
        stream: Stream,
        batch: &DraftBatch<'_>,
        limits: &Limits,
        pool: &KvPool,
        plan: &Plan,
    ) -> Result<usize> {
        // SAFETY: the contract of Backend, here and below.
        unsafe { plan::plan_rows(&self.kernels, stream, batch, limits, pool, plan) }
    }

    fn fuse_features(&self, stream: Stream, phase: &FuseFeatures<'_>) -> Result<()> {
        // SAFETY: the contract of Backend, here and below.
        unsafe { features::fuse_features(&self.kernels, stream, phase) }
    }

    fn fuse_token(&self, stream: Stream, phase: &FuseToken<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { token::fuse_token(&self.kernels, stream, phase) }
    }

    fn embed_tokens(&self, stream: Stream, phase: &EmbedTokens<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { token::embed_tokens(&self.kernels, stream, phase) }
    }

    fn project(&self, stream: Stream, phase: &Project<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { project::project(&self.kernels, stream, phase) }
    }

    fn attend(&self, stream: Stream, phase: &Attend) -> Result<()> {
        // SAFETY: as above.
        unsafe { attention::attend(&self.kernels, self.device.facts(), stream, phase) }
    }

    fn gate_rows(&self, stream: Stream, phase: &GateRows) -> Result<()> {
        // SAFETY: as above.
        unsafe { layer::gate_rows(&self.kernels, stream, phase) }
    }

    fn add_projection(&self, stream: Stream, phase: &AddProjection) -> Result<()> {
        // SAFETY: as above.
        unsafe { layer::add_projection(&self.kernels, stream, phase) }
    }

    fn gate_up(&self, stream: Stream, phase: &GateUp) -> Result<()> {
        // SAFETY: as above.
        unsafe { layer::gate_up(&self.kernels, stream, phase) }
    }

    fn mix_experts(&self, stream: Stream, phase: &MixExperts) -> Result<()> {
        // SAFETY: as above.
        unsafe { experts::mix_experts(&self.kernels, stream, phase) }
    }

    fn start_block(&self, stream: Stream, phase: &StartBlock<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { block::start_block(&self.kernels, stream, phase) }
    }

    fn gather(&self, stream: Stream, phase: &Gather) -> Result<()> {
        // SAFETY: as above.
        unsafe { plan::gather(&self.kernels, stream, phase) }
    }

    fn map_rows(&self, stream: Stream, phase: &MapRows<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { layer::map_rows(&self.kernels, stream, phase) }
    }

    fn convolve(&self, stream: Stream, phase: &Convolve) -> Result<()> {
        // SAFETY: as above.
        unsafe { block_heads::convolve(&self.kernels, stream, phase) }
    }

    fn step_markov(&self, stream: Stream, phase: &StepMarkov) -> Result<()> {
        // SAFETY: as above.
        unsafe { block_heads::step_markov(&self.kernels, stream, phase) }
    }

    fn step_mlp(&self, stream: Stream, phase: &StepMlp) -> Result<()> {
        // SAFETY: as above.
        unsafe { mlp::step_mlp(&self.kernels, stream, phase) }
    }

    fn rate_drafts(&self, stream: Stream, phase: &RateDrafts<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { block_heads::rate_drafts(&self.kernels, stream, phase) }
    }

    fn select_candidates(&self, stream: Stream, phase: &SelectCandidates) -> Result<()> {
        // SAFETY: as above.
        unsafe { block_heads::select_candidates(&self.kernels, stream, phase) }
    }

    fn walk_candidates(&self, stream: Stream, phase: &WalkCandidates<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { block_heads::walk_candidates(&self.kernels, stream, phase) }
    }

    fn score_candidates(&self, stream: Stream, phase: &ScoreCandidates) -> Result<()> {
        // SAFETY: as above.
        unsafe { block_heads::score_candidates(&self.kernels, stream, phase) }
    }

    fn refine(&self, stream: Stream, phase: &Refine<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { block_heads::refine(&self.kernels, stream, phase) }
    }

    fn propose(&self, stream: Stream, phase: &Propose<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { propose::propose(&self.kernels, stream, phase) }
    }

    fn tell_logits(&self, stream: Stream, phase: &TellLogits<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { draft_trees::tell_logits(&self.kernels, stream, phase) }
    }

    fn draw_siblings(&self, stream: Stream, phase: &DrawSiblings<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { draft_trees::draw_siblings(&self.kernels, stream, phase) }
    }

    fn branch_rows(&self, stream: Stream, phase: &BranchRows<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { draft_trees::branch_rows(&self.kernels, stream, phase) }
    }

    fn score_children(&self, stream: Stream, phase: &ScoreChildren<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { draft_trees::score_children(&self.kernels, stream, phase) }
    }

    fn expand_best(&self, stream: Stream, phase: &ExpandBest<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { draft_trees::expand_best(&self.kernels, stream, phase) }
    }

    fn rank_candidates(&self, stream: Stream, phase: &RankCandidates<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { draft_trees::rank_candidates(&self.kernels, stream, phase) }
    }

    fn describe_tree(&self, stream: Stream, phase: &DescribeTree<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { draft_trees::describe_tree(&self.kernels, stream, phase) }
    }

    fn take_fault(&self, words: &FaultWords) -> Option<(Fault, usize)> {
        let words: &PinnedMemory = words.owner.downcast_ref()?;
        let [number, sequence] = memory::halves(words.words()[0].swap(0, Ordering::AcqRel));
        Fault::from_number(number).map(|fault| (fault, sequence as usize))
    }

    fn verify_workspace(&self, batch: &VerifyBatch, rule: &dyn Rule) -> usize {
        verify::workspace_bytes(&self.teams, batch, rule.kind())
    }

    fn verify(
        &self,
        stream: Stream,
        batch: &VerifyBatch,
        rule: &dyn Rule,
        workspace: Span<u8>,
    ) -> Result<()> {
        let multiprocessors = self.device.facts().multiprocessors;
        let launcher =
            verify::Launcher { kernels: &self.kernels, teams: &self.teams, multiprocessors };
        // SAFETY: the contract of Backend.
        unsafe { launcher.verify(stream, batch, rule.kind(), workspace) }
    }

    fn mask_trees(&self, stream: Stream, phase: &MaskTrees) -> Result<()> {
        // SAFETY: the contract of Backend, here and below.
        unsafe { tree::mask_trees(&self.kernels, stream, phase) }
    }

    fn compact_rows(&self, stream: Stream, phase: &CompactRows<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { compact::compact_rows(&self.kernels, stream, phase) }
    }

    fn copy_rows(&self, from: &Matrix, ids: &[i32], to: &Matrix) -> Result<()> {
        let _entered = self.device.enter()?;
        self.with_staging(0, |staging| {
            staging.lend(ids, &mut |first, ids| {
                let to = to.row_range(first, ids.len());
                // SAFETY: the contract of Backend; the ids are lent until this returns.
                unsafe { rows::copy_rows(&self.kernels, Stream::NONE, from, ids, &to)? };
                memory::synchronise(Stream::NONE)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    fn backend() -> Option<CudaBackend> {
        device::tests::device()?;
        let options = Options { cache: KernelCache::None, ..Options::default() };
        Some(CudaBackend::new(&options).unwrap())
    }

    /// Memory that the host and the device write.
    fn pinned(backend: &CudaBackend, bytes: impl ExactSizeIterator<Item = u8>) -> PinnedMemory {
        let mut memory = PinnedMemory::allocate(&backend.device, bytes.len()).unwrap();
        memory.bytes_mut().iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        memory
    }

    #[test]
    fn a_fault_is_taken_once() {
        let Some(backend) = backend() else { return };
        let words = backend.fault_words().unwrap();
        assert_eq!(words.span.len(), 2);
        assert_eq!(backend.take_fault(&words), None);
        let fault: [i32; 2] = [Fault::Page as i32, 7];
        let memory: &PinnedMemory = words.owner.downcast_ref().unwrap();
        memory.words()[0].store(bytemuck::cast(fault), Ordering::Release);
        assert_eq!(backend.take_fault(&words), Some((Fault::Page, 7)));
        assert_eq!(backend.take_fault(&words), None);
    }

    #[test]
    fn a_tensor_is_filled_and_scratch_is_prepared() {
        let Some(backend) = backend() else { return };
        let mut memory = pinned(&backend, std::iter::repeat_n(1, 100));
        backend
            .fill(memory.span(), 10, &mut |offset, bytes| {
                bytes.iter_mut().zip(offset..).for_each(|(byte, place)| *byte = place as u8);
                Ok(())
            })
            .unwrap();
        assert!(memory.bytes_mut().iter().zip(0..).all(|(&byte, place)| byte == place));
        backend.prepare_scratch(memory.span()).unwrap();
        assert!(memory.bytes_mut().iter().all(|&byte| byte == 0));
    }

    #[test]
    fn the_log_line_says_what_the_device_is_and_where_the_kernels_came_from() {
        let Some(backend) = backend() else { return };
        let text = format!("{backend:?}");
        assert!(
            text.starts_with("CUDA device 0 (") && text.contains("driver for CUDA 1"),
            "{text}"
        );
        assert!(text.contains("rows"), "{text}");
    }

    #[test]
    fn a_missing_driver_is_an_error_that_says_what_was_looked_for() {
        // SAFETY: the only effect is that of loading the library.
        if unsafe { cudarc::driver::sys::is_culib_present() } {
            return;
        }
        let error = CudaBackend::new(&Options::default()).unwrap_err();
        assert_eq!(error.status(), Status::Device);
        let text = error.to_string();
        assert!(
            text.starts_with("CUDA driver: expected a library, found none by the names"),
            "{text}"
        );
        assert!(cfg!(not(target_os = "linux")) || text.contains("libcuda.so.1"), "{text}");
    }
}
