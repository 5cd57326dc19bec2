//! The device that a test program runs on, and memory that it can work on.
//!
//! `SPEC_TEST_DEVICE` names it: `cpu`, the default, or `cuda`, the first CUDA device. On the CPU,
//! memory is the test's own and there are no streams. On CUDA, arrays are page-locked, so that the
//! test and the device read and write them where they are.
//!
//! A test program that uses this module has it at its root: `mod device;`.
#![allow(dead_code)] // Each test program uses its own part.

pub mod backend;
pub mod buffer;
pub mod child;
pub mod driver;
pub mod memory;
pub mod simulator;
pub mod stream;

use speculators::capi::{
    SPEC_DEVICE_CPU, SPEC_DEVICE_CUDA, SPEC_DEVICE_CUDA_HOST, spec_context_options,
};
use std::path::PathBuf;
use std::sync::OnceLock;

/// The kinds of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
    Cuda,
}

static CHOSEN: OnceLock<Device> = OnceLock::new();

impl Device {
    /// What the tests of this process run on.
    pub fn chosen() -> Self {
        *CHOSEN.get_or_init(|| Self::named().unwrap_or(Self::Cpu))
    }

    /// What the environment names.
    fn named() -> Option<Self> {
        let name = std::env::var("SPEC_TEST_DEVICE").ok()?;
        match name.as_str() {
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda),
            other => panic!("SPEC_TEST_DEVICE: expected cpu or cuda, found {other:?}"),
        }
    }

    /// The code of a context of this device.
    pub fn context_type(self) -> i32 {
        match self {
            Self::Cpu => SPEC_DEVICE_CPU,
            Self::Cuda => SPEC_DEVICE_CUDA,
        }
    }

    /// The code of a tensor in a [`Buffer`].
    pub fn buffer_type(self) -> i32 {
        match self {
            Self::Cpu => SPEC_DEVICE_CPU,
            Self::Cuda => SPEC_DEVICE_CUDA_HOST,
        }
    }

    /// What a context with these options works on.
    pub fn of(options: &spec_context_options) -> Self {
        if options.device_type == SPEC_DEVICE_CUDA { Self::Cuda } else { Self::Cpu }
    }
}

/// Whether the tests of this process run on CUDA.
pub fn is_cuda() -> bool {
    Device::chosen() == Device::Cuda
}

/// For tests of CUDA alone: makes CUDA the device of this process. False, after saying so, where
/// there is no driver, unless the environment asks for CUDA: then the test has to run.
pub fn is_cuda_or_skipped() -> bool {
    let named = Device::named();
    if named == Some(Device::Cpu) || named.is_none() && !driver::is_present() {
        println!("skipped: a test of CUDA devices, and there is none");
        return false;
    }
    *CHOSEN.get_or_init(|| Device::Cuda) == Device::Cuda
}

/// For tests that only make sense on the CPU: false, after saying why, on other devices.
pub fn is_cpu_or_skipped(why: &str) -> bool {
    let is_cpu = Device::chosen() == Device::Cpu;
    if !is_cpu {
        println!("skipped: {why}");
    }
    is_cpu
}

/// Whether the device is a simulated one, on which a test takes a hundred times as long as on the CPU.
pub fn is_simulated() -> bool {
    is_cuda() && simulator::is_present()
}

/// Whether tests do less than they could: on a simulated device, unless `SPEC_TEST_FULL` is set.
pub fn is_shortened() -> bool {
    is_simulated() && std::env::var_os("SPEC_TEST_FULL").is_none()
}

/// How much a test does: `full` of it, or `simulated` where tests are shortened.
pub fn amount<Amount>(full: Amount, simulated: Amount) -> Amount {
    if is_shortened() { simulated } else { full }
}

/// Waits for all work of the device; on the CPU there is none to wait for.
pub fn synchronize() {
    if is_cuda() {
        driver::synchronize();
    }
}

/// Images of kernels to test in place of the library's own, if `SPEC_TEST_KERNELS` names a
/// directory.
pub fn kernel_directory() -> Option<PathBuf> {
    std::env::var_os("SPEC_TEST_KERNELS").map(PathBuf::from)
}
