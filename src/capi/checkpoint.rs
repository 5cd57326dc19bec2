//! Looking at checkpoints.

use super::boundary::{call, path, write_text};
use super::types::{spec_error, spec_status};
use std::ffi::c_char;

/// Describes a checkpoint directory as JSON, without loading it.
///
/// The members are `kind`, `directory`, `supported` (whether this library can load it), `reason`
/// (why not), `needed_from_verifier`, `default_num_drafts`, `features`, `config`, `tensors` and
/// `warnings`; later versions may add some. A kind that cannot be loaded is described too.
///
/// `directory` is a UTF-8 path that ends with NUL. `json`, `[capacity]` bytes, receives UTF-8 that
/// ends with NUL; `length`, nullable, the number of its bytes without the NUL. With `json` NULL and
/// `capacity` 0 only `length` is written. Errors: IO, FORMAT (not a checkpoint, or damaged),
/// INVALID_ARGUMENT (`capacity` too small: `length` is written all the same).
///
/// Contract: any thread; blocks (reads files); allocates; no stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_checkpoint_inspect(
    directory: *const c_char,
    json: *mut c_char,
    capacity: u64,
    length: *mut u64,
    error: *mut spec_error,
) -> spec_status {
    call("spec_checkpoint_inspect", error, || {
        // SAFETY: the documented contract of the arguments.
        let directory = unsafe { path(directory, "directory")? };
        let text = crate::checkpoint::inspect(directory)?.to_string();
        // SAFETY: as above.
        unsafe { write_text(&text, json, capacity, length) }
    })
}
