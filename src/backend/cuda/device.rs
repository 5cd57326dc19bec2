//! A device with the context that the host uses on it.

use super::driver;
use crate::backend::Stream;
use crate::error::{Error, Result, Status};
use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdevice_attribute, CUstream, CUstreamCaptureStatus,
};
use std::ffi::{CStr, c_char};
use std::marker::PhantomData;
use std::sync::Arc;

/// The oldest devices that the kernels run on.
const OLDEST_CAPABILITY: (i32, i32) = (8, 0);

/// The stream handles that are not objects: the default streams, which every context has.
const LAST_DEFAULT_STREAM: u64 = 2;

/// A device and a context on it.
#[derive(Debug)]
pub struct Device {
    handle: CUdevice,
    context: CUcontext,
    /// Whether the context is the primary one, which is kept alive; a foreign one is the host's.
    is_primary: bool,
    facts: Facts,
}

/// What kernels are chosen and sized by.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The number of the device.
    pub ordinal: i32,
    /// Its name.
    pub name: String,
    /// Major and minor number of its compute capability.
    pub capability: (i32, i32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that a block can have if it asks for them.
    pub shared_per_block: u32,
    /// Bytes of the second-level cache.
    pub l2_bytes: usize,
    /// The driver's CUDA version, 12040 for 12.4.
    pub driver_version: i32,
}

// SAFETY: the handles are names of objects of the driver, which any thread may use.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    /// Opens the device of this number with its primary context, or with the host's own if
    /// `context`, a CUcontext, is not 0. The host keeps its context alive.
    pub fn open(ordinal: i32, context: u64) -> Result<Arc<Self>> {
        let driver_version = driver::load()?;
        let handle = find(ordinal)?;
        let facts = facts(handle, ordinal, driver_version)?;
        if facts.capability < OLDEST_CAPABILITY {
            return Err(Error::unsupported(format!(
                "CUDA device {ordinal} ({}): expected compute capability {}.{} or newer, found {}.{}",
                facts.name,
                OLDEST_CAPABILITY.0,
                OLDEST_CAPABILITY.1,
                facts.capability.0,
                facts.capability.1
            )));
        }
        let device = match context {
            0 => {
                let mut context = std::ptr::null_mut();
                // SAFETY: a device of the driver.
                unsafe { driver::cuDevicePrimaryCtxRetain(&raw mut context, handle)? };
                Self { handle, context, is_primary: true, facts }
            }
            foreign => {
                let context = foreign as CUcontext;
                let device = Self { handle, context, is_primary: false, facts };
                device.check_context()?;
                device
            }
        };
        Ok(Arc::new(device))
    }

    /// What the device is.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Makes the context current to this thread, until the result is dropped.
    pub fn enter(&self) -> Result<Entered> {
        let mut current = std::ptr::null_mut();
        // SAFETY: the driver is loaded.
        unsafe { driver::cuCtxGetCurrent(&raw mut current)? };
        let pushed = current != self.context;
        if pushed {
            // SAFETY: the context is alive: the primary one is retained, and the host keeps its own.
            unsafe { driver::cuCtxPushCurrent_v2(self.context)? };
        }
        Ok(Entered { pushed, of_thread: PhantomData })
    }

    /// Refuses a stream of another context.
    pub fn check_stream(&self, stream: Stream) -> Result<()> {
        if stream.0 <= LAST_DEFAULT_STREAM {
            return Ok(());
        }
        let _entered = self.enter()?;
        let mut context = std::ptr::null_mut();
        // SAFETY: the host vouches for the handle.
        unsafe { driver::cuStreamGetCtx(raw(stream), &raw mut context) }
            .map_err(|failure| Error::from(failure).within("stream"))?;
        if context != self.context {
            return Err(Error::invalid(format!(
                "stream: expected a stream of the context of CUDA device {}, found one of another context",
                self.facts.ordinal
            )));
        }
        Ok(())
    }

    /// Whether what is enqueued on the stream becomes part of a graph.
    pub fn is_capturing(&self, stream: Stream) -> Result<bool> {
        let _entered = self.enter()?;
        let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: the host vouches for the handle.
        unsafe { driver::cuStreamIsCapturing(raw(stream), &raw mut status)? };
        Ok(status as u32 != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE as u32)
    }

    /// Refuses a foreign context that is not one of this device.
    fn check_context(&self) -> Result<()> {
        let mut found = 0;
        let entered = self.enter().map_err(|error| {
            Error::invalid(format!(
                "cuda_context: expected a CUcontext, found another address: {error}"
            ))
        })?;
        // SAFETY: the driver is loaded.
        unsafe { driver::cuCtxGetDevice(&raw mut found)? };
        drop(entered);
        if found != self.handle {
            return Err(Error::invalid(format!(
                "cuda_context: expected a context of device {}, found one of device {found}",
                self.facts.ordinal
            )));
        }
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.is_primary {
            // SAFETY: retained once when the device was opened. There is nobody to tell of a failure,
            // which is what a driver answers when the process is about to end.
            let _ = unsafe { driver::cuDevicePrimaryCtxRelease_v2(self.handle) };
        }
    }
}

/// The time during which a device's context is current to a thread. What was current before is
/// again when it is dropped, on the same thread.
#[derive(Debug)]
pub struct Entered {
    pushed: bool,
    /// Contexts are current to threads.
    of_thread: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if self.pushed {
            let mut popped = std::ptr::null_mut();
            // SAFETY: pushed by this thread when it entered.
            let _ = unsafe { driver::cuCtxPopCurrent_v2(&raw mut popped) };
        }
    }
}

/// The driver's name for a stream.
pub(super) fn raw(stream: Stream) -> CUstream {
    stream.0 as CUstream
}

fn find(ordinal: i32) -> Result<CUdevice> {
    let (mut count, mut handle) = (0, 0);
    // SAFETY: the driver is loaded, here and below.
    unsafe { driver::cuDeviceGetCount(&raw mut count)? };
    if count == 0 {
        return Err(Error::new(Status::Device, "CUDA driver: expected a device, found none"));
    }
    if !(0..count).contains(&ordinal) {
        return Err(Error::invalid(format!(
            "device_id: expected 0 to {}, as there are {count} CUDA devices, found {ordinal}",
            count - 1
        )));
    }
    // SAFETY: as above.
    unsafe { driver::cuDeviceGet(&raw mut handle, ordinal)? };
    Ok(handle)
}

fn facts(handle: CUdevice, ordinal: i32, driver_version: i32) -> Result<Facts> {
    use CUdevice_attribute as Attribute;
    let attribute = |attribute: Attribute| -> Result<i32> {
        let mut value = 0;
        // SAFETY: a device of the driver.
        unsafe { driver::cuDeviceGetAttribute(&raw mut value, attribute, handle)? };
        Ok(value)
    };
    Ok(Facts {
        ordinal,
        name: name(handle)?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
        shared_per_block: attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )? as u32,
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
        driver_version,
    })
}

fn name(handle: CUdevice) -> Result<String> {
    let mut bytes = [0_u8; 256];
    let len = bytes.len() as i32 - 1;
    // SAFETY: `len` bytes are writable; the last one stays 0.
    unsafe { driver::cuDeviceGetName(bytes.as_mut_ptr().cast::<c_char>(), len, handle)? };
    let name = CStr::from_bytes_until_nul(&bytes).unwrap_or_default();
    Ok(name.to_string_lossy().into_owned())
}
