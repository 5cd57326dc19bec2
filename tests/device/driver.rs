//! The host's own side of CUDA: the few driver functions that an engine needs beside the library.

use cudarc::driver::sys::{self, CUresult};
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::OnceLock;

pub use cudarc::driver::sys::CUcontext;

/// Whether there are a driver and a device.
pub fn is_present() -> bool {
    let mut count = 0;
    // SAFETY: the functions are there once the library is; `count` is a place for a number.
    unsafe {
        sys::is_culib_present()
            && sys::cuInit(0) == CUresult::CUDA_SUCCESS
            && sys::cuDeviceGetCount(&mut count) == CUresult::CUDA_SUCCESS
            && count > 0
    }
}

/// Ends the test unless the call succeeded.
#[track_caller]
pub fn check(what: &str, result: CUresult) {
    assert_eq!(result, CUresult::CUDA_SUCCESS, "{what}");
}

/// The primary context of the first device, which lives as long as the process.
pub fn primary() -> CUcontext {
    static PRIMARY: OnceLock<usize> = OnceLock::new();
    let address = PRIMARY.get_or_init(|| {
        assert!(is_present(), "expected a CUDA driver with a device");
        let mut context = null_mut();
        // SAFETY: the driver is initialised; `context` is a place for a handle.
        check("cuDevicePrimaryCtxRetain", unsafe {
            sys::cuDevicePrimaryCtxRetain(&mut context, 0)
        });
        context as usize
    });
    *address as CUcontext
}

/// What is current on the calling thread; NULL is nothing.
pub fn current() -> CUcontext {
    primary();
    let mut context = null_mut();
    // SAFETY: the driver is initialised; `context` is a place for a handle.
    check("cuCtxGetCurrent", unsafe { sys::cuCtxGetCurrent(&mut context) });
    context
}

/// Makes a context current on the calling thread; NULL is none.
pub fn set_current(context: CUcontext) {
    primary();
    // SAFETY: NULL or a live context of this process.
    check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(context) });
}

/// Sees to it that the calling thread has a current context: the primary one, if the test has not
/// chosen another.
pub fn enter() {
    if current().is_null() {
        set_current(primary());
    }
}

/// Waits for all work of the current context.
pub fn synchronize() {
    enter();
    // SAFETY: a context is current.
    check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() });
}

/// How many devices there are.
pub fn devices() -> i32 {
    primary();
    let mut count = 0;
    // SAFETY: the driver is initialised; `count` is a place for a number.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) });
    count
}

/// Bytes of the device's memory that nobody has.
pub fn free_bytes() -> usize {
    enter();
    let (mut free, mut total) = (0, 0);
    // SAFETY: a context is current; places for numbers.
    check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) });
    free
}

/// A context of the test's own, as hosts have that do not use the primary one.
#[derive(Debug)]
pub struct OwnContext(CUcontext);

impl OwnContext {
    /// Created on a device; what was current stays so.
    pub fn create(device: i32) -> Self {
        let before = current();
        let mut context = null_mut();
        // SAFETY: the driver is initialised; `context` is a place for a handle; NULL are the defaults.
        check("cuCtxCreate", unsafe { sys::cuCtxCreate_v4(&mut context, null_mut(), 0, device) });
        set_current(before);
        Self(context)
    }

    pub fn handle(&self) -> CUcontext {
        self.0
    }

    /// Whether the context can still be used.
    pub fn is_alive(&self) -> bool {
        let before = current();
        set_current(self.0);
        // SAFETY: a context is current.
        let result = unsafe { sys::cuCtxSynchronize() };
        set_current(before);
        result == CUresult::CUDA_SUCCESS
    }
}

impl Drop for OwnContext {
    fn drop(&mut self) {
        // SAFETY: the handle is given up here and nowhere else.
        unsafe { sys::cuCtxDestroy_v2(self.0) };
    }
}

/// At least `bytes` bytes of page-locked host memory, which every context can use where it is.
pub fn lock_pages(bytes: usize) -> *mut c_void {
    enter();
    let mut memory = null_mut();
    let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
    // SAFETY: a context is current; `memory` is a place for an address.
    check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut memory, bytes, flags) });
    memory
}

/// Gives page-locked memory back.
///
/// # Safety
///
/// It came from [`lock_pages`], and neither the host nor the device uses it any more.
pub unsafe fn unlock_pages(memory: *mut c_void) {
    enter();
    // SAFETY: as this function's contract. After a fault of the device every call fails, this one too.
    unsafe { sys::cuMemFreeHost(memory) };
}
