//! Contexts.

use super::boundary::{self, Handle, borrow, call, hand_out, reserved, within};
use super::types::{
    SPEC_DEVICE_CPU, spec_allocator, spec_context_info, spec_context_options, spec_error,
    spec_status,
};
use crate::context::{Allocator, Context, Log, LogLevel, MemoryKind, Threads};
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
/// INVALID_ARGUMENT (a thread count outside 0 to 1024, another device than 0, an allocator without
/// both functions), UNSUPPORTED (a device type that this build does not have, a field that it does
/// not know), OUT_OF_MEMORY (threads could not be started).
///
/// Contract: any thread; blocks while threads start; allocates; no stream.
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
    if ![0, SPEC_DEVICE_CPU].contains(&options.device_type) {
        return Err(Error::unsupported(format!(
            "device_type: expected {SPEC_DEVICE_CPU} (CPU), found {}",
            options.device_type
        )));
    }
    within("device_id", i64::from(options.device_id), 0, 0)?;
    let count = within("threads", i64::from(options.threads), 0, 1024)?;
    let threads = match options.parallel_for {
        None => Threads::Own(count),
        Some(parallel_for) => {
            Threads::Host { parallel_for, user: options.parallel_for_user, count: count.max(1) }
        }
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
    Context::cpu(threads, allocator, log)
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
            device_id: 0,
            threads: description.threads as i32,
            instruction_set: description.instruction_set.as_ptr(),
        };
        // SAFETY: as above.
        unsafe { boundary::write(info, &value) }
    })
}
