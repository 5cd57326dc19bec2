//! Looking at checkpoints.

use super::boundary::{call, optional_path, path, write_text};
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

/// Checks a checkpoint: everything that is wrong with it, or looks wrong, each with advice.
///
/// All tensors are read, without a device: values that are NaN, infinite, all zero or all the same;
/// missing and unused tensors; maps between vocabularies; settings that converters are known to have
/// lost, or that were assumed; and whether the speculator fits its verifier. The report is JSON with
/// the members `verdict` (`sound`, `suspicious` or `broken`), `kind`, `directory`, `verifier`,
/// `tensors` (how many were read) and `findings`, the worst first: `severity` (`note`, `suspicious`
/// or `broken`), `subject`, `found` and `advice`. Later versions may add some.
///
/// `directory` is a UTF-8 path that ends with NUL; so is `verifier_directory`, or NULL: then it is
/// the verifier that the checkpoint names, if that is there. `json`, `capacity` and `length` are as
/// in `spec_checkpoint_inspect`; to ask for the length alone reads the tensors, too. What is found
/// is no error of the call. Errors: IO (no such directory), FORMAT (the verifier's configuration is
/// damaged), INVALID_ARGUMENT (`capacity` too small: `length` is written all the same).
///
/// Contract: any thread; blocks (reads all files); allocates, little whatever the size of the
/// checkpoint; no stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_checkpoint_check(
    directory: *const c_char,
    verifier_directory: *const c_char,
    json: *mut c_char,
    capacity: u64,
    length: *mut u64,
    error: *mut spec_error,
) -> spec_status {
    call("spec_checkpoint_check", error, || {
        // SAFETY: the documented contract of the arguments.
        let (directory, verifier) = unsafe {
            (
                path(directory, "directory")?,
                optional_path(verifier_directory, "verifier_directory")?,
            )
        };
        let found = crate::checkpoint::check(directory, verifier.as_deref())?;
        // SAFETY: as above.
        unsafe { write_text(&found.to_json().to_string(), json, capacity, length) }
    })
}
