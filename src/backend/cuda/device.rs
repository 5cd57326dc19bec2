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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use cudarc::driver::sys;
    use std::ffi::c_uint;

    /// The first device, for a test that cannot do without. `None` where there is no driver, unless
    /// `SPEC_TEST_DEVICE` asks for CUDA, and where it asks for the CPU.
    pub(in crate::backend::cuda) fn device() -> Option<Arc<Device>> {
        let named = std::env::var("SPEC_TEST_DEVICE").ok();
        match (named.as_deref(), Device::open(0, 0)) {
            (Some("cuda"), device) => Some(device.unwrap()),
            (None, device) => device.ok(),
            _ => None,
        }
    }

    fn current() -> u64 {
        let mut context = std::ptr::null_mut();
        // SAFETY: the driver is loaded.
        unsafe { driver::cuCtxGetCurrent(&raw mut context).unwrap() };
        context as u64
    }

    /// A context of a host's own, which is current.
    fn foreign() -> u64 {
        type Create = unsafe extern "C" fn(*mut CUcontext, c_uint, CUdevice) -> u32;
        let mut context = std::ptr::null_mut();
        // SAFETY: the driver is loaded, has this function (the bindings only have a newer one) and the
        // first device.
        unsafe {
            let create = sys::culib().get::<Create>(b"cuCtxCreate_v2").unwrap();
            assert_eq!(create(&raw mut context, 0, 0), 0);
        }
        context as u64
    }

    fn destroy(context: u64) {
        // SAFETY: created by the test.
        assert_eq!(unsafe { sys::cuCtxDestroy_v2(context as CUcontext) } as u32, 0);
    }

    #[test]
    fn what_was_current_before_is_current_again() {
        let Some(device) = device() else { return };
        let before = current();
        let entered = device.enter().unwrap();
        let own = current();
        assert_eq!(own, device.context as u64);
        drop(device.enter().unwrap());
        assert_eq!(current(), own);
        drop(entered);
        assert_eq!(current(), before);

        let foreign = foreign();
        drop(device.enter().unwrap());
        assert_eq!(current(), foreign);
        destroy(foreign);
    }

    #[test]
    fn a_context_of_the_host_is_used_and_left_alive() {
        let Some(primary) = device() else { return };
        let foreign = foreign();
        let device = Device::open(0, foreign).unwrap();
        {
            let _primary = primary.enter().unwrap();
            let _entered = device.enter().unwrap();
            assert_eq!(current(), foreign);
        }
        assert_eq!(current(), foreign);
        drop(device);
        // It can still be opened, and is destroyed once.
        drop(Device::open(0, foreign).unwrap());
        destroy(foreign);
    }

    #[test]
    fn a_device_that_is_not_there_is_refused_by_number() {
        if device().is_none() {
            return;
        }
        for ordinal in [-1, 1000] {
            let error = Device::open(ordinal, 0).unwrap_err();
            assert_eq!(error.status(), Status::InvalidArgument);
            let text = error.to_string();
            assert!(text.starts_with("device_id: expected 0 to "), "{text}");
            assert!(text.ends_with(&format!("found {ordinal}")), "{text}");
        }
    }

    #[test]
    fn streams_of_another_context_are_refused() {
        let Some(device) = device() else { return };
        [0, 1, 2].into_iter().for_each(|stream| device.check_stream(Stream(stream)).unwrap());
        let foreign = foreign();
        let mut stream = std::ptr::null_mut();
        // SAFETY: a context is current; `stream` is writable.
        assert_eq!(unsafe { sys::cuStreamCreate(&raw mut stream, 1) } as u32, 0);
        let error = device.check_stream(Stream(stream as u64)).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument, "{error}");
        assert!(error.to_string().ends_with("found one of another context"), "{error}");
        Device::open(0, foreign).unwrap().check_stream(Stream(stream as u64)).unwrap();
        // SAFETY: created by the test.
        assert_eq!(unsafe { sys::cuStreamDestroy_v2(stream) } as u32, 0);
        destroy(foreign);
    }

    #[test]
    fn a_capture_is_seen() {
        use sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let Some(device) = device() else { return };
        let _entered = device.enter().unwrap();
        let (mut stream, mut graph) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: a context is current; what is written is writable.
        unsafe {
            assert_eq!(sys::cuStreamCreate(&raw mut stream, 1) as u32, 0);
            let queue = Stream(stream as u64);
            assert!(!device.is_capturing(queue).unwrap());
            let mode = CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            assert_eq!(sys::cuStreamBeginCapture_v2(stream, mode) as u32, 0);
            assert!(device.is_capturing(queue).unwrap());
            device.check_stream(queue).unwrap();
            assert_eq!(sys::cuStreamEndCapture(stream, &raw mut graph) as u32, 0);
            assert!(!device.is_capturing(queue).unwrap());
            assert_eq!(sys::cuGraphDestroy(graph) as u32, 0);
            assert_eq!(sys::cuStreamDestroy_v2(stream) as u32, 0);
        }
    }

    #[test]
    fn the_facts_are_those_of_a_device_that_the_kernels_run_on() {
        let Some(device) = device() else { return };
        let facts = device.facts();
        assert!(
            facts.capability >= OLDEST_CAPABILITY && facts.driver_version >= 12_000,
            "{facts:?}"
        );
        assert!(facts.multiprocessors > 0 && facts.shared_per_block >= 48 << 10, "{facts:?}");
        assert!(!facts.name.is_empty() && facts.l2_bytes > 0, "{facts:?}");
    }
}
