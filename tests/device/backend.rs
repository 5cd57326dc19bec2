//! The backends of the devices, for tests that call them without the C interface.

use super::{Device, is_cuda_or_skipped, kernel_directory};
use speculators::backend::Backend;
use speculators::backend::cpu::{CpuBackend, Threads};
use speculators::backend::cuda::{CudaBackend, KernelCache, Options};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// The CPU, of which one thread works.
pub fn cpu() -> &'static dyn Backend {
    static CPU: OnceLock<CpuBackend> = OnceLock::new();
    CPU.get_or_init(|| CpuBackend::new(Threads::Own(1)).unwrap())
}

/// The first CUDA device.
pub fn cuda() -> &'static dyn Backend {
    static CUDA: OnceLock<CudaBackend> = OnceLock::new();
    CUDA.get_or_init(open_cuda)
}

/// The same in a backend of the test's own.
pub fn open_cuda() -> CudaBackend {
    let images = kernel_directory();
    let options = Options { images, cache: KernelCache::None, ..Options::default() };
    CudaBackend::new(&options).unwrap()
}

pub fn backend(device: Device) -> &'static dyn Backend {
    match device {
        Device::Cpu => cpu(),
        Device::Cuda => cuda(),
    }
}

/// One test at a time has the device. `None` where there is none.
pub fn cuda_test() -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    is_cuda_or_skipped().then(|| TURN.lock().unwrap_or_else(PoisonError::into_inner))
}
