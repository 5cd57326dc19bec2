//! Sessions.

use super::boundary::{self, Handle, borrow, call, hand_out, reserved, within};
use super::model::spec_model;
use super::tensors::{self, optional_span};
use super::types::{spec_error, spec_session_options, spec_session_requirements, spec_status};
use crate::error::{Error, Result};
use crate::session::{CHILDREN_MAX, DRAFTS_MAX, Session, SessionOptions, Stream, TreeLimits};
use crate::tensor::{ALIGNMENT, Span};
use std::ffi::c_void;
use std::sync::Arc;

/// Levels of trees where the host does not say.
const DEFAULT_TREE_DEPTH: usize = 8;

/// A model at work: its workspace and its KV pages. Used by one thread at a time.
#[repr(C)]
pub struct spec_session {
    magic: u64,
    pub(super) session: Session,
}

impl Handle for spec_session {
    const NAME: &'static str = "spec_session";
    const MAGIC: u64 = u64::from_le_bytes(*b"spec_ses");
    fn magic(&mut self) -> &mut u64 {
        &mut self.magic
    }
}

fn session_options(options: &spec_session_options) -> Result<SessionOptions> {
    let size = |what, value: i32, low| within(what, i64::from(value), low, i64::from(i32::MAX - 1));
    reserved("options.reserved", i64::from(options.reserved))?;
    let page_size = match size("page_size", options.page_size, 0)? {
        0 => 16,
        page_size => page_size,
    };
    let kv_dtype = match (options.kv_dtype_code, options.kv_dtype_bits) {
        (0, 0) => None,
        (code, bits) => Some(tensors::dtype(&"kv_dtype", code, bits, 1)?),
    };
    let max_drafts = within("max_drafts", i64::from(options.max_drafts), 1, DRAFTS_MAX as i64)?;
    Ok(SessionOptions {
        tree: tree_limits(options, max_drafts)?,
        max_sequences: within("max_sequences", i64::from(options.max_sequences), 1, 1 << 16)?,
        max_rows: within("max_rows", i64::from(options.max_rows), 1, 1 << 22)?,
        max_drafts,
        max_position: size("max_position", options.max_position, 1)?,
        page_size,
        max_pages: size("max_pages", options.max_pages, 0)?,
        kv_dtype,
        kv_pool: memory("kv_pool", options.kv_pool, options.kv_pool_size)?,
        workspace: memory("workspace", options.workspace, options.workspace_size)?,
    })
}

/// What trees the host wants a session for.
fn tree_limits(options: &spec_session_options, max_drafts: usize) -> Result<Option<TreeLimits>> {
    let width = i64::from(options.max_tree_width);
    let width = within("max_tree_width", width, 0, CHILDREN_MAX as i64)?;
    let deepest = if width == 0 { 0 } else { max_drafts };
    let depth = i64::from(options.max_tree_depth);
    let depth = match within("max_tree_depth", depth, 0, deepest as i64)? {
        0 => max_drafts.min(DEFAULT_TREE_DEPTH),
        depth => depth,
    };
    Ok((width > 0).then_some(TreeLimits { width, depth }))
}

/// A block of the host's memory.
pub(super) fn memory(what: &str, pointer: *mut c_void, size: u64) -> Result<Option<Span<u8>>> {
    if !(pointer as u64).is_multiple_of(ALIGNMENT as u64) {
        return Err(Error::invalid(format!(
            "{what}: expected memory aligned to {ALIGNMENT} bytes, found {pointer:p}"
        )));
    }
    let size = usize::try_from(size).ok().filter(|&size| isize::try_from(size).is_ok());
    let size = size.ok_or_else(|| Error::invalid(format!("{what}: the size is no size")))?;
    optional_span(what, pointer.cast::<u8>().cast_const(), size)
}

/// Says how much memory a session with these options takes.
///
/// `options` is not NULL; its `kv_pool` and `workspace` may be NULL, their sizes are not compared.
/// `requirements.struct_size` is set by the host; as much as that is written. Errors:
/// INVALID_ARGUMENT (a size out of range, or so large that the total does not fit the address
/// space), UNSUPPORTED (a field that this version does not know).
///
/// Contract: any thread; does not block; allocates nothing; no stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_session_get_requirements(
    model: *const spec_model,
    options: *const spec_session_options,
    requirements: *mut spec_session_requirements,
    error: *mut spec_error,
) -> spec_status {
    call("spec_session_get_requirements", error, || {
        // SAFETY: the documented contract of the arguments.
        let (model, options) = unsafe { (borrow(model)?, boundary::read(options)?) };
        let needs = Session::requirements(&model.model, &session_options(&options)?)?;
        let value = spec_session_requirements {
            struct_size: 0,
            alignment: ALIGNMENT as u32,
            workspace_size: needs.workspace_bytes as u64,
            kv_pool_size: needs.kv_pool_bytes as u64,
            page_bytes: needs.page_bytes as u64,
            kv_bytes_per_token: needs.kv_bytes_per_token as u64,
            num_pages: needs.num_pages as i32,
            page_size: needs.page_size as i32,
        };
        // SAFETY: as above.
        unsafe { boundary::write(requirements, &value) }
    })
}

/// Creates a session.
///
/// `options` is not NULL. `session` is not NULL; `*session`, owned by the host until
/// `spec_session_release`, is NULL if the call fails. Errors: INVALID_ARGUMENT (sizes, memory too
/// small or not aligned), UNSUPPORTED (a field that this version does not know), OUT_OF_MEMORY,
/// DEVICE.
///
/// Contract: any thread, on a CUDA device not while a stream is being captured; does not block
/// (CPU), waits for the device (CUDA); allocates its record, and from the context's allocator what
/// the host does not give; no stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_session_create(
    model: *const spec_model,
    options: *const spec_session_options,
    session: *mut *mut spec_session,
    error: *mut spec_error,
) -> spec_status {
    call("spec_session_create", error, || {
        // SAFETY: the documented contract of the arguments.
        unsafe {
            hand_out(session, || {
                let (model, options) = (borrow(model)?, boundary::read(options)?);
                let session = Session::create(&model.model, &session_options(&options)?)?;
                Ok(spec_session { magic: spec_session::MAGIC, session })
            })
        }
    })
}

/// Prepares a session for its first step.
///
/// Clears the KV pool, so call it before anything is committed, and reads the workspace and the
/// weights once, mapped ones too; lent tensors are not touched. On a CUDA device only the pool is
/// cleared, as everything is resident. May be left out. `stream` is NULL on the CPU. Errors: BUSY,
/// INVALID_ARGUMENT (also a stream that is being captured), DEVICE.
///
/// Contract: one thread at a time per session; blocks until all is resident (CPU), or enqueues
/// (CUDA); allocates nothing; on `stream`, not in a capture.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_session_warm_up(
    session: *mut spec_session,
    stream: *mut c_void,
    error: *mut spec_error,
) -> spec_status {
    call("spec_session_warm_up", error, || {
        // SAFETY: the documented contract of the arguments.
        let session = unsafe { borrow(session)? };
        session.session.warm_up(Stream(stream as u64))
    })
}

/// Reports what went wrong inside of calls of `spec_draft` since the last poll.
///
/// A sequence whose rows, positions, pages or tokens were out of range took no part in its step and
/// proposed nothing. Returns SPEC_OK if there was none, otherwise INVALID_ARGUMENT with the index
/// of the first one in its call and what was expected; then the slate is clean. On a CUDA device it
/// tells what the work that is done has found, and does not wait for the rest. Errors: BUSY.
///
/// Contract: one thread at a time per session; does not block; allocates nothing if all is well; no
/// stream, allowed while any stream is being captured.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_session_poll(
    session: *mut spec_session,
    error: *mut spec_error,
) -> spec_status {
    call("spec_session_poll", error, || {
        // SAFETY: the documented contract of the arguments.
        unsafe { borrow(session)? }.session.poll()
    })
}

/// Gives a session up; its KV pool and workspace of the host are not used any more. NULL is
/// ignored.
///
/// Contract: any thread, not while another call uses the handle, nor before its work on a CUDA
/// device is done, that of graphs which replay it included; releases memory, and with the last
/// handle of a model does what `spec_model_release` does; allocates nothing; no stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_session_release(session: *mut spec_session) {
    // SAFETY: the documented contract of the argument.
    unsafe { boundary::release(session) };
}

const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Session>();
    shared::<Arc<crate::model::Model>>();
};
