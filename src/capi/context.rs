//! Contexts.

use super::boundary::{self, Handle, borrow, call, hand_out, reserved, within};
use super::types::{
    SPEC_DEVICE_CPU, SPEC_DEVICE_CUDA, spec_allocator, spec_context_info, spec_context_options,
    spec_error, spec_status,
};
use crate::context::{
    Allocator, Context, CudaOptions, KernelCache, Log, LogLevel, MemoryKind, Threads,
};
use crate::error::{Error, Result};
use std::ffi::{CString, c_char, c_void};
use std::sync::Arc;

/// A device with its threads, allocator and log. Models, sessions and verifications refer to it.
#[repr(C)]
pub struct spec_context {
    magic: u64,
    pub(super) context: Arc<Context>,
}

impl Handle for spec_context {
    const NAME: &'static str = "spec_context";
    const MAGIC: u64 = u64::from_le_bytes(*b"spec_ctx");
    fn magic(&mut self) -> &mut u64 {
        &mut self.magic
    }
}

/// The host's allocator.
struct HostAllocator(spec_allocator);

// SAFETY: the documented contract of spec_allocator allows calls from any thread.
unsafe impl Send for HostAllocator {}
// SAFETY: as above.
unsafe impl Sync for HostAllocator {}

impl Allocator for HostAllocator {
    fn allocate(&self, kind: MemoryKind, bytes: usize, alignment: usize) -> Option<u64> {
        let allocate = self.0.allocate?;
        // SAFETY: called as documented, with the host's own user pointer.
        let memory = unsafe { allocate(self.0.user, bytes as u64, alignment as u64, kind as i32) };
        (!memory.is_null()).then_some(memory as u64)
    }

    fn release(&self, kind: MemoryKind, address: u64, bytes: usize) {
        if let Some(release) = self.0.release {
            // SAFETY: what allocate returned, with the same size and kind, once.
            unsafe { release(self.0.user, address as *mut c_void, bytes as u64, kind as i32) };
        }
    }
}

/// The host's log.
struct HostLog {
    line: unsafe extern "C" fn(*mut c_void, i32, *const c_char),
    user: *mut c_void,
}

// SAFETY: the documented contract of spec_context_options.log allows calls from any thread.
unsafe impl Send for HostLog {}
// SAFETY: as above.
unsafe impl Sync for HostLog {}

impl Log for HostLog {
    fn line(&self, level: LogLevel, text: &str) {
        let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
        // SAFETY: called as documented; the string outlives the call.
        unsafe { (self.line)(self.user, level as i32, text.as_ptr()) };
    }
}

/// Creates a context.
///
/// `options` NULL means all defaults; it is read during the call only. `context` is not NULL;
/// `*context`, owned by the host until `spec_context_release`, is NULL if the call fails. Errors:
/// INVALID_ARGUMENT (a thread count outside 0 to 1024, a device that is not there, a CUcontext of
/// another device, an allocator without both functions), UNSUPPORTED (a device type that this build
/// does not have, a field that it does not know), OUT_OF_MEMORY (threads could not be started),
/// DEVICE (CUDA: there is no driver, it is too old or fails, there is no NVRTC where kernels have
/// to be compiled; the message says what is missing), IO (images of `kernel_directory`).
///
/// Contract: any thread, on a CUDA device not while a stream is being captured; blocks while
/// threads start, or while kernels are loaded, which takes seconds if they have to be compiled;
/// allocates; no stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_context_create(
    options: *const spec_context_options,
    context: *mut *mut spec_context,
    error: *mut spec_error,
) -> spec_status {
    call("spec_context_create", error, || {
        // SAFETY: the documented contract of the arguments.
        unsafe {
            hand_out(context, || {
                let options = boundary::read_optional(options)?;
                let context = Arc::new(create(options.as_ref())?);
                Ok(spec_context { magic: spec_context::MAGIC, context })
            })
        }
    })
}

/// # Safety
///
/// The pointers in `options` are as documented.
unsafe fn create(options: Option<&spec_context_options>) -> Result<Context> {
    let Some(options) = options else {
        return Context::cpu(Threads::Own(0), None, None);
    };
    // SAFETY: NULL or a spec_allocator, by the documented contract.
    let allocator = match unsafe { boundary::read_optional(options.allocator)? } {
        None => None,
        Some(allocator) => {
            reserved("allocator.reserved", i64::from(allocator.reserved))?;
            if allocator.allocate.is_none() || allocator.release.is_none() {
                return Err(Error::invalid("allocator: expected both functions, found NULL"));
            }
            Some(Arc::new(HostAllocator(allocator)) as Arc<dyn Allocator>)
        }
    };
    let user = options.log_user;
    let log = options.log.map(|line| Box::new(HostLog { line, user }) as Box<dyn Log>);
    match options.device_type {
        0 | SPEC_DEVICE_CPU => Context::cpu(threads(options)?, allocator, log),
        SPEC_DEVICE_CUDA => {
            // SAFETY: as this function's contract.
            let options = unsafe { cuda_options(options)? };
            Context::cuda(&options, allocator, log)
        }
        found => Err(Error::unsupported(format!(
            "device_type: expected {SPEC_DEVICE_CPU} (CPU) or {SPEC_DEVICE_CUDA} (CUDA), found {found}"
        ))),
    }
}

/// The threads of a CPU context.
fn threads(options: &spec_context_options) -> Result<Threads> {
    within("device_id", i64::from(options.device_id), 0, 0)?;
    if !options.cuda_context.is_null() {
        return Err(Error::invalid("cuda_context: expected NULL on the CPU"));
    }
    let count = within("threads", i64::from(options.threads), 0, 1024)?;
    Ok(match options.parallel_for {
        None => Threads::Own(count),
        Some(parallel_for) => {
            Threads::Host { parallel_for, user: options.parallel_for_user, count: count.max(1) }
        }
    })
}

/// # Safety
///
/// The strings in `options` are as documented.
unsafe fn cuda_options(options: &spec_context_options) -> Result<CudaOptions> {
    within("device_id", i64::from(options.device_id), 0, i64::from(i32::MAX))?;
    within("threads", i64::from(options.threads), 0, 1024)?;
    // SAFETY: as this function's contract.
    let (images, cache) = unsafe {
        (
            boundary::optional_path(options.kernel_directory, "kernel_directory")?,
            boundary::optional_path(options.kernel_cache, "kernel_cache")?,
        )
    };
    Ok(CudaOptions {
        ordinal: options.device_id,
        context: options.cuda_context as u64,
        images,
        cache: match cache {
            None => KernelCache::Default,
            Some(path) if path.as_os_str().is_empty() => KernelCache::None,
            Some(path) => KernelCache::At(path),
        },
    })
}

/// Gives a context up. Its models and sessions keep what they need of it. NULL is ignored.
///
/// Contract: any thread, not while another call uses the handle; blocks while the threads end, if
/// nothing else keeps the context; allocates nothing; no stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_context_release(context: *mut spec_context) {
    // SAFETY: the documented contract of the argument.
    unsafe { boundary::release(context) };
}

/// Says what a context is.
///
/// `info.struct_size` is set by the host; as much as that is written. Errors: INVALID_ARGUMENT.
///
/// Contract: any thread; does not block; allocates nothing; no stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_context_get_info(
    context: *const spec_context,
    info: *mut spec_context_info,
    error: *mut spec_error,
) -> spec_status {
    call("spec_context_get_info", error, || {
        // SAFETY: the documented contract of the arguments.
        let context = unsafe { borrow(context)? };
        let description = context.context.description();
        let value = spec_context_info {
            struct_size: 0,
            device_type: description.device_type as i32,
            device_id: description.device_id,
            threads: description.threads as i32,
            instruction_set: description.instruction_set.as_ptr(),
        };
        // SAFETY: as above.
        unsafe { boundary::write(info, &value) }
    })
}
