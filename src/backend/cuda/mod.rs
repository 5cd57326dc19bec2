//! CUDA devices: the phases as kernels on the host's streams.

mod attention;
mod cache;
mod compiler;
mod device;
mod driver;
mod features;
mod images;
mod launch;
mod layer;
mod memory;
mod paging;
mod plan;
mod products;
mod project;
mod propose;
mod rows;

pub use device::Entered;
pub use memory::DeviceMemory;

use super::phases::{
    AddProjection, Attend, AttentionHeads, DraftBatch, Fault, FuseFeatures, GateUp, Gather, KvPool,
    Limits, Plan, Project, Propose,
};
use super::verify::{Rule, VerifyBatch};
use super::{Backend, Description, DeviceType, FaultWords, Scope, Stream};
use crate::error::{Error, Result};
use crate::tensor::{Dtype, Matrix, Span};
use device::Device;
use images::Images;
use launch::Kernels;
use memory::{PinnedMemory, Staging};
use std::ffi::CStr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

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

/// The phases on a CUDA device.
pub struct CudaBackend {
    device: Arc<Device>,
    kernels: Kernels,
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
        Ok(Self { device, kernels, staging: Mutex::new(None) })
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

fn unready() -> Error {
    Error::internal("not there yet")
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

    fn project(&self, stream: Stream, phase: &Project<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { project::project(&self.kernels, stream, phase) }
    }

    fn attend(&self, stream: Stream, phase: &Attend) -> Result<()> {
        // SAFETY: as above.
        unsafe { attention::attend(&self.kernels, self.device.facts(), stream, phase) }
    }

    fn add_projection(&self, stream: Stream, phase: &AddProjection) -> Result<()> {
        // SAFETY: as above.
        unsafe { layer::add_projection(&self.kernels, stream, phase) }
    }

    fn gate_up(&self, stream: Stream, phase: &GateUp) -> Result<()> {
        // SAFETY: as above.
        unsafe { layer::gate_up(&self.kernels, stream, phase) }
    }

    fn gather(&self, stream: Stream, phase: &Gather) -> Result<()> {
        // SAFETY: as above.
        unsafe { plan::gather(&self.kernels, stream, phase) }
    }

    fn propose(&self, stream: Stream, phase: &Propose<'_>) -> Result<()> {
        // SAFETY: as above.
        unsafe { propose::propose(&self.kernels, stream, phase) }
    }

    fn take_fault(&self, words: &FaultWords) -> Option<(Fault, usize)> {
        let words: &PinnedMemory = words.owner.downcast_ref()?;
        let [number, sequence] = memory::halves(words.words()[0].swap(0, Ordering::AcqRel));
        Fault::from_number(number).map(|fault| (fault, sequence as usize))
    }

    fn verify_workspace(&self, _: &VerifyBatch, _: &dyn Rule) -> usize {
        0
    }

    fn verify(&self, _: Stream, _: &VerifyBatch, _: &dyn Rule, _: Span<u8>) -> Result<()> {
        Err(unready())
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
