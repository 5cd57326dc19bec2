//! What all models, sessions and verifications of one device share: the backend with its threads,
//! the allocator and the log.

mod memory;

pub use memory::{Allocator, Block, MemoryKind};

pub use crate::backend::cpu::{ParallelFor, Threads};
pub use crate::backend::cuda::{KernelCache, KernelSources, Options as CudaOptions};
pub use crate::backend::{Description, DeviceType, Stream};

use crate::backend::Backend;
use crate::backend::cpu::{CpuBackend, OperatingSystemMemory};
use crate::backend::cuda::CudaBackend;
use crate::error::Result;
use std::sync::Arc;

/// How much a log line matters. The numbers are part of the ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum LogLevel {
    /// Something was assumed or corrected that the host may want to know.
    Warning = 1,
    /// What was loaded or created.
    Info = 2,
}

/// Where log lines go.
pub trait Log: Send + Sync {
    /// Takes one line, without a line end.
    fn line(&self, level: LogLevel, text: &str);
}

/// A device with everything that work on it needs.
pub struct Context {
    backend: Box<dyn Backend>,
    allocator: Arc<dyn Allocator>,
    log: Option<Box<dyn Log>>,
}

impl Context {
    /// A context of the CPU. Without an allocator, memory comes from the operating system; without
    /// a log, nothing is logged anywhere.
    pub fn cpu(
        threads: Threads,
        allocator: Option<Arc<dyn Allocator>>,
        log: Option<Box<dyn Log>>,
    ) -> Result<Self> {
        Ok(Self::on(Box::new(CpuBackend::new(threads)?), allocator, log))
    }

    /// A context of a CUDA device. Without an allocator, memory comes from the driver.
    pub fn cuda(
        options: &CudaOptions,
        allocator: Option<Arc<dyn Allocator>>,
        log: Option<Box<dyn Log>>,
    ) -> Result<Self> {
        let backend = CudaBackend::new(options)?;
        let allocator = allocator.unwrap_or_else(|| Arc::new(backend.memory()));
        let context = Self::on(Box::new(backend) as Box<dyn Backend>, Some(allocator), log);
        context.log(LogLevel::Info, &format!("{:?}", context.backend));
        Ok(context)
    }

    /// A context of a backend that computes in the memory of the CPU; see [`Context::cpu`].
    pub fn on(
        backend: Box<dyn Backend>,
        allocator: Option<Arc<dyn Allocator>>,
        log: Option<Box<dyn Log>>,
    ) -> Self {
        let allocator = allocator.unwrap_or_else(|| Arc::new(OperatingSystemMemory));
        Self { backend, allocator, log }
    }

    /// What the device is.
    pub fn description(&self) -> Description {
        self.backend.description()
    }

    /// The device's phases.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// Enqueues phases on a stream of the host, which must be one of the device.
    pub fn enqueue(
        &self,
        stream: Stream,
        phases: impl FnOnce(&dyn Backend, Stream) -> Result<()>,
    ) -> Result<()> {
        self.backend.check_stream(stream)?;
        let _scope = self.backend.enter()?;
        phases(&*self.backend, stream)
    }

    /// `bytes` bytes of memory of the device, a multiple of [`crate::tensor::ALIGNMENT`] aligned.
    pub fn allocate(&self, kind: MemoryKind, what: &str, bytes: usize) -> Result<Block> {
        Block::allocate(&self.allocator, kind, what, bytes)
    }

    /// Hands one line to the host's log.
    pub fn log(&self, level: LogLevel, text: &str) {
        if let Some(log) = &self.log {
            log.line(level, text);
        }
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Context").field("backend", &self.backend).finish_non_exhaustive()
    }
}
