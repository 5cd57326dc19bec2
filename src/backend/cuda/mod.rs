//! CUDA devices: the phases as kernels on the host's streams.

use super::phases::{
    AddProjection, Attend, AttentionHeads, DraftBatch, Fault, FuseFeatures, GateUp, Gather, KvPool,
    Limits, Plan, Project, Propose,
};
use super::verify::{Rule, VerifyBatch};
use super::{Backend, Description, DeviceType, FaultWords, Scope, Stream};
use crate::error::{Error, Result};
use crate::tensor::{Dtype, Matrix, Span};
use std::path::PathBuf;

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
/// The time during which a device's context is current.
#[derive(Debug)]
pub struct Entered;

/// Memory of a device.
#[derive(Debug)]
pub struct DeviceMemory;

impl DeviceMemory {
    /// The address of `bytes` bytes.
    pub fn allocate(&self, _: usize) -> Option<u64> {
        None
    }

    /// Gives them back.
    pub fn release(&self, _: u64) {}
}

/// The phases on a CUDA device.
#[derive(Debug)]
pub struct CudaBackend;

impl CudaBackend {
    /// Opens a device.
    pub fn new(_: &Options) -> Result<Self> {
        Err(Error::unsupported("device_type: CUDA is not there yet"))
    }

    /// The device's memory.
    pub fn memory(&self) -> DeviceMemory {
        DeviceMemory
    }
}

fn unready() -> Error {
    Error::internal("not there yet")
}

impl Backend for CudaBackend {
    fn description(&self) -> Description {
        Description {
            device_type: DeviceType::Cuda,
            device_id: 0,
            threads: 1,
            instruction_set: c"sm_90",
            commit_rows: COMMIT_ROWS,
            kv_dtype: Dtype::Bf16,
            reads_mapped_files: false,
            max_row_segments: MAX_ROW_SEGMENTS,
        }
    }

    fn enter(&self) -> Result<Scope> {
        Err(unready())
    }

    fn check_stream(&self, _: Stream) -> Result<()> {
        Ok(())
    }

    fn is_capturing(&self, _: Stream) -> Result<bool> {
        Err(unready())
    }

    fn fill(
        &self,
        _: Span<u8>,
        _: usize,
        _: &mut dyn FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        Err(unready())
    }

    fn prepare_scratch(&self, _: Span<u8>) -> Result<()> {
        Err(unready())
    }

    fn fault_words(&self) -> Result<FaultWords> {
        Err(unready())
    }

    fn touch(&self, _: Stream, _: Span<u8>, _: bool) -> Result<()> {
        Err(unready())
    }

    fn projection_scratch(&self, _: usize, _: AttentionHeads) -> usize {
        0
    }

    fn attention_scratch(&self, _: usize, _: AttentionHeads, _: usize) -> usize {
        0
    }

    fn proposal_scratch(&self, _: usize, _: usize) -> usize {
        0
    }

    fn plan_rows(
        &self,
        _: Stream,
        _: &DraftBatch<'_>,
        _: &Limits,
        _: &KvPool,
        _: &Plan,
    ) -> Result<usize> {
        Err(unready())
    }

    fn fuse_features(&self, _: Stream, _: &FuseFeatures<'_>) -> Result<()> {
        Err(unready())
    }

    fn project(&self, _: Stream, _: &Project<'_>) -> Result<()> {
        Err(unready())
    }

    fn attend(&self, _: Stream, _: &Attend) -> Result<()> {
        Err(unready())
    }

    fn add_projection(&self, _: Stream, _: &AddProjection) -> Result<()> {
        Err(unready())
    }

    fn gate_up(&self, _: Stream, _: &GateUp) -> Result<()> {
        Err(unready())
    }

    fn gather(&self, _: Stream, _: &Gather) -> Result<()> {
        Err(unready())
    }

    fn propose(&self, _: Stream, _: &Propose<'_>) -> Result<()> {
        Err(unready())
    }

    fn take_fault(&self, _: &FaultWords) -> Option<(Fault, usize)> {
        None
    }

    fn verify_workspace(&self, _: &VerifyBatch, _: &dyn Rule) -> usize {
        0
    }

    fn verify(&self, _: Stream, _: &VerifyBatch, _: &dyn Rule, _: Span<u8>) -> Result<()> {
        Err(unready())
    }

    fn copy_rows(&self, _: &Matrix, _: &[i32], _: &Matrix) -> Result<()> {
        Err(unready())
    }
}
