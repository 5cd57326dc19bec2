//! The CUDA driver as the library uses it: every function is looked up before the first call, since
//! a missing one would be a panic, and every failure is an error that names the function. Only
//! functions that drivers of CUDA 12.0 have, under the names that they had then.

use crate::error::{Error, Result, Status};
use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction,
    CUfunction_attribute, CUmodule, CUresult, CUstream, CUstreamCaptureStatus,
};
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_void};
use std::sync::OnceLock;

/// The version that the functions are from, as `cuDriverGetVersion` counts.
const OLDEST_VERSION: i32 = 12_000;

/// A call of the driver that failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure {
    function: &'static str,
    result: CUresult,
}

impl Failure {
    /// The number of the error. The bindings know the errors of their day, a driver may have newer
    /// ones: nothing here branches on the enumeration itself.
    pub(super) fn code(self) -> u32 {
        self.result as u32
    }
}

/// The errors that mean that a device cannot take an image, as opposed to a broken device.
pub(super) const INVALID_IMAGE: u32 = 200;
pub(super) const NO_BINARY_FOR_DEVICE: u32 = 209;
pub(super) const INVALID_PTX: u32 = 218;
pub(super) const NO_PTX_COMPILER: u32 = 221;
pub(super) const UNSUPPORTED_PTX_VERSION: u32 = 222;

const OUT_OF_MEMORY: u32 = 2;

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        type Describe = unsafe fn(CUresult, *mut *const c_char) -> CUresult;
        let describe = |function: Describe| {
            let mut text: *const c_char = std::ptr::null();
            // SAFETY: a failure comes from a driver that has been loaded; `text` is writable.
            let known = unsafe { function(self.result, &raw mut text) } as u32 == 0;
            // SAFETY: the driver's strings are constants.
            (known && !text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy())
        };
        let function = self.function.trim_end_matches("_v2");
        match (describe(sys::cuGetErrorName), describe(sys::cuGetErrorString)) {
            (Some(name), Some(text)) => write!(formatter, "{function}: {name}: {text}"),
            _ => write!(formatter, "{function}: CUDA error {}", self.code()),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let status = match failure.code() {
            OUT_OF_MEMORY => Status::OutOfMemory,
            _ => Status::Device,
        };
        Self::new(status, failure.to_string())
    }
}

macro_rules! functions {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {
        /// What [`load`] looks up.
        const FUNCTIONS: &[&str] =
            &["cuGetErrorName", "cuGetErrorString", $(stringify!($name)),*];

        $(
            /// The driver's function of this name; only after [`load`], and as its documentation
            /// asks for.
            #[allow(non_snake_case, clippy::too_many_arguments)]
            pub(super) unsafe fn $name($($argument: $kind),*) -> std::result::Result<(), Failure> {
                // SAFETY: this function's own contract.
                let result = unsafe { sys::$name($($argument),*) };
                match result as u32 {
                    0 => Ok(()),
                    _ => Err(Failure { function: stringify!($name), result }),
                }
            }
        )*
    };
}

functions! {
    cuInit(flags: c_uint);
    cuDriverGetVersion(version: *mut c_int);
    cuDeviceGetCount(count: *mut c_int);
    cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
    cuDeviceGetName(name: *mut c_char, len: c_int, device: CUdevice);
    cuDeviceGetAttribute(value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice);
    cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    cuDevicePrimaryCtxRelease_v2(device: CUdevice);
    cuCtxGetCurrent(context: *mut CUcontext);
    cuCtxPushCurrent_v2(context: CUcontext);
    cuCtxPopCurrent_v2(context: *mut CUcontext);
    cuCtxGetDevice(device: *mut CUdevice);
    cuStreamGetCtx(stream: CUstream, context: *mut CUcontext);
    cuStreamIsCapturing(stream: CUstream, status: *mut CUstreamCaptureStatus);
    cuStreamSynchronize(stream: CUstream);
    cuEventCreate(event: *mut CUevent, flags: c_uint);
    cuEventRecord(event: CUevent, stream: CUstream);
    cuEventSynchronize(event: CUevent);
    cuEventDestroy_v2(event: CUevent);
    cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize);
    cuMemFree_v2(address: CUdeviceptr);
    cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, flags: c_uint);
    cuMemFreeHost(address: *mut c_void);
    cuMemHostGetDevicePointer_v2(address: *mut CUdeviceptr, host: *mut c_void, flags: c_uint);
    cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemsetD8Async(to: CUdeviceptr, value: c_uchar, bytes: usize, stream: CUstream);
    cuModuleLoadData(module: *mut CUmodule, image: *const c_void);
    cuModuleUnload(module: CUmodule);
    cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    cuFuncGetAttribute(value: *mut c_int, attribute: CUfunction_attribute, function: CUfunction);
    cuFuncSetAttribute(function: CUfunction, attribute: CUfunction_attribute, value: c_int);
    cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut c_int, function: CUfunction, threads: c_int, dynamic_shared: usize
    );
    cuLaunchKernel(
        function: CUfunction, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint,
        block_y: c_uint, block_z: c_uint, dynamic_shared: c_uint, stream: CUstream,
        arguments: *mut *mut c_void, extra: *mut *mut c_void
    );
    cuLaunchCooperativeKernel(
        function: CUfunction, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint,
        block_y: c_uint, block_z: c_uint, dynamic_shared: c_uint, stream: CUstream,
        arguments: *mut *mut c_void
    );
}

/// Finds the driver and its functions, and initialises it. Returns its version, as
/// `cuDriverGetVersion` counts.
pub(super) fn load() -> Result<i32> {
    static FOUND: OnceLock<()> = OnceLock::new();
    if FOUND.get().is_none() {
        find()?;
        FOUND.get_or_init(|| ());
    }
    let mut version = 0;
    // SAFETY: the functions are there; `version` is writable.
    unsafe { cuDriverGetVersion(&raw mut version)? };
    if version < OLDEST_VERSION {
        return Err(Error::new(
            Status::Device,
            format!(
                "CUDA driver: expected one for CUDA {} or newer, found one for {}",
                version_text(OLDEST_VERSION),
                version_text(version)
            ),
        ));
    }
    // SAFETY: as above.
    unsafe { cuInit(0)? };
    Ok(version)
}

/// The size of a kernel's argument, which it takes one of; `None` where the driver cannot tell.
pub(super) fn argument_bytes(function: CUfunction) -> Option<usize> {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    // SAFETY: a function has been loaded, and so the library is there.
    let known = *KNOWN.get_or_init(|| has(unsafe { sys::culib() }, "cuFuncGetParamInfo"));
    let (mut offset, mut bytes) = (0, 0);
    // SAFETY: the function is there, as of CUDA 12.4; both places are writable.
    let told = known
        && unsafe { sys::cuFuncGetParamInfo(function, 0, &raw mut offset, &raw mut bytes) } as u32
            == 0;
    told.then_some(bytes)
}

/// `major.minor` of a version as the driver and NVRTC count.
pub(super) fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn find() -> Result<()> {
    // SAFETY: the only effect is that of loading the library.
    if !unsafe { sys::is_culib_present() } {
        let names = ["cuda", "nvcuda"].map(cudarc::get_lib_name_candidates).concat();
        return Err(not_found("CUDA driver", &names));
    }
    // SAFETY: the library is there.
    let library = unsafe { sys::culib() };
    missing("CUDA driver", library, FUNCTIONS)
}

/// Says which names of a library were tried.
pub(super) fn not_found(what: &str, names: &[String]) -> Error {
    // Half of them are those of other systems.
    let is_foreign =
        |name: &&String| !cfg!(windows) && (name.contains("64") || name.contains("nvcuda"));
    let names: Vec<&str> =
        names.iter().filter(|name| !is_foreign(name)).map(String::as_str).collect();
    let names = names.join(", ");
    let text = format!("{what}: expected a library, found none by the names {names}");
    Error::new(Status::Device, text)
}

/// Refuses a library without one of the functions.
pub(super) fn missing(what: &str, library: &Library, functions: &[&str]) -> Result<()> {
    let missing: Vec<&str> =
        functions.iter().copied().filter(|function| !has(library, function)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Status::Device,
        format!(
            "{what}: expected the functions of CUDA {}, found no {}",
            version_text(OLDEST_VERSION),
            missing.join(", ")
        ),
    ))
}

fn has(library: &Library, function: &str) -> bool {
    // SAFETY: the symbol is looked up as an address, and not used.
    unsafe { library.get::<*const c_void>(function.as_bytes()) }.is_ok()
}
