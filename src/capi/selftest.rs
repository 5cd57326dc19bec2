//! The self-test.

use super::boundary::{borrow, call, check_text_place, write_text};
use super::context::spec_context;
use super::types::{spec_error, spec_status};
use crate::error::Error;
use crate::verify::{self, Stream};
use std::ffi::{c_char, c_void};

/// `flags` of `spec_selftest`: fewer cases, for devices that are slow or in use.
pub const SPEC_SELFTEST_QUICK: u32 = 1;

/// Proves on the context's device that every rule of `spec_verify` keeps its promise.
///
/// Small language models are made up, and chains and trees of drafts are verified by the same code
/// as in `spec_verify`, in all the branches that random numbers can take: so the law of the text is
/// computed, not estimated. Rules that are lossless have to emit the target's law, after one round
/// and after two, with filters and masks; the others have to decide as they are defined.
///
/// `flags` is `SPEC_SELFTEST_QUICK` or 0. The report is JSON with the members `holds`, `device`,
/// `instruction_set`, `quick` and `rules`. A rule has `rule` (its number), `name`, `holds`, `lossy`,
/// `exact` (whether it is lossless and holds), `branches`, `decisions`, `largest_deviation`,
/// `tolerance` and `cases`; a case has `name`, `holds`, `branches`, `decisions`,
/// `largest_deviation` and `defect`, a text or null. Later versions may add some. No chance is in
/// the test: the report is the same in every call. `json`, `capacity` and `length` are as in
/// `spec_checkpoint_inspect`; to ask for the length alone takes as long as the test, and 64 KiB
/// are enough.
///
/// `stream` is NULL on the CPU. Errors: INTERNAL (a rule does not keep its promise: the message
/// names rule, case and deviation, and the report is written), INVALID_ARGUMENT (also a stream that
/// is being captured, or a `capacity` too small: `length` is written all the same), UNSUPPORTED (a
/// flag that this version does not know), OUT_OF_MEMORY, DEVICE.
///
/// Contract: any thread, on a CUDA device not while any stream is being captured; blocks until the
/// test is done, less than a second on a CPU; allocates, memory of the device from the context's
/// allocator, and gives it back; on `stream`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_selftest(
    context: *const spec_context,
    flags: u32,
    json: *mut c_char,
    capacity: u64,
    length: *mut u64,
    stream: *mut c_void,
    error: *mut spec_error,
) -> spec_status {
    call("spec_selftest", error, || {
        // SAFETY: the documented contract of the argument.
        let context = unsafe { borrow(context)? };
        if flags & !SPEC_SELFTEST_QUICK != 0 {
            return Err(Error::unsupported(format!("flags: found {flags:#x}")));
        }
        check_text_place(json, capacity, length)?;
        let is_quick = flags & SPEC_SELFTEST_QUICK != 0;
        let report = verify::selftest(&context.context, Stream(stream as u64), is_quick)?;
        // SAFETY: the documented contract of the arguments.
        let written = unsafe { write_text(&report.json(), json, capacity, length) };
        // What was found matters more than whether there was room to tell it.
        report.outcome().and(written)
    })
}
