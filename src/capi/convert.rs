//! Converting checkpoints, and the way back.

use super::boundary::{
    self, call, check_text_place, optional_path, path, read_optional, string, write_text,
};
use super::types::{spec_convert_options, spec_error, spec_status};
use crate::checkpoint::{Conversion, Converted, Stitched};
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::ffi::c_char;
use std::path::Path;

/// Converts a checkpoint in the layout of a research repository, or the MTP layer that a model
/// carries, to the speculators format.
///
/// The layouts are those of `spec_model_load`. The result is what the library that defines the
/// format makes of the source, with these differences: tensors keep the types and bytes that they
/// have; all layers, and the norms of queries, keys and features, are kept; nothing is written that
/// was never filled; no Python files are written. It loads in this library: that is made sure of
/// before anything is written.
///
/// `source` and `output` are UTF-8 paths that end with NUL. `output` must not be there yet, or be
/// an empty directory; it appears whole, when all of it is on the disk, or not at all, whatever
/// happens; directories above it are made. NULL: nothing is written, and the report tells what would
/// be. `options` NULL means all defaults. The report is JSON with the members `source`, `layout`,
/// `kind`, `renamed` (`from`, `to`), `dropped` (`name`, `reason`), `notes`, `config`, `tensors`,
/// `assumed_defaults` and `warnings`; later versions may add some. `json`, `capacity` and `length`
/// are as in `spec_checkpoint_inspect`, and all three may be zero: no report. The same source and
/// options give the same report, so that a call with `output` NULL can ask for its length.
///
/// Errors: IO (also what is written: no room, no permission), FORMAT (damaged, or not what its
/// layout says), UNSUPPORTED (no layout that is known, or a variant of one that could not be run),
/// INVALID_ARGUMENT (the options; a checkpoint in the speculators format; an output that is not
/// empty; a `capacity` too small: `length` is written all the same, and no output), CANCELLED,
/// OUT_OF_MEMORY.
///
/// Contract: any thread; blocks (reads and writes files); allocates, a few megabytes whatever the
/// size of the checkpoint; no stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_checkpoint_convert(
    source: *const c_char,
    output: *const c_char,
    options: *const spec_convert_options,
    json: *mut c_char,
    capacity: u64,
    length: *mut u64,
    error: *mut spec_error,
) -> spec_status {
    call("spec_checkpoint_convert", error, || {
        // SAFETY: the documented contract of the arguments.
        let (source, output, options) = unsafe {
            (path(source, "source")?, optional_path(output, "output")?, read_optional(options)?)
        };
        let wanted = match &options {
            None => Conversion::default(),
            // SAFETY: as above.
            Some(options) => unsafe { conversion(options)? },
        };
        check_report_place(json, capacity, length)?;
        let ready = Converted::prepare(source, &wanted)?;
        // SAFETY: as above.
        unsafe { tell(ready.report(), json, capacity, length)? };
        write(output.as_deref(), options.as_ref(), |output, progress| ready.write(output, progress))
    })
}

/// Puts the weights of an MTP checkpoint in the speculators format back into a copy of the model
/// that they belong to, under the names that engines read there.
///
/// `finetuned` and `output` are as `source` and `output` of `spec_checkpoint_convert`; of
/// `options`, which is not NULL, `verifier_directory` is the model, and `algorithm` and `arguments`
/// are NULL. All files of the model are copied; those with weights that are replaced are written
/// anew, with the tensors in their places. Experts are taken apart where the model stores them one
/// by one. Of a model with an index each tensor must be there already; the shapes must be the same.
/// The report has the members `finetuned`, `verifier`, `replaced` (`name`, `file`),
/// `rewritten_files` and `copied_files`. Errors: as for `spec_checkpoint_convert`.
///
/// Contract: as `spec_checkpoint_convert`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_checkpoint_stitch(
    finetuned: *const c_char,
    output: *const c_char,
    options: *const spec_convert_options,
    json: *mut c_char,
    capacity: u64,
    length: *mut u64,
    error: *mut spec_error,
) -> spec_status {
    call("spec_checkpoint_stitch", error, || {
        // SAFETY: the documented contract of the arguments.
        let (finetuned, output, options) = unsafe {
            (
                path(finetuned, "finetuned")?,
                optional_path(output, "output")?,
                boundary::read(options)?,
            )
        };
        if !options.algorithm.is_null() || !options.arguments.is_null() {
            return Err(Error::invalid("algorithm, arguments: expected NULL"));
        }
        boundary::reserved("flags", options.flags.into())?;
        // SAFETY: as above.
        let verifier = unsafe { path(options.verifier_directory, "verifier_directory")? };
        check_report_place(json, capacity, length)?;
        let ready = Stitched::prepare(finetuned, verifier)?;
        // SAFETY: as above.
        unsafe { tell(ready.report(), json, capacity, length)? };
        write(output.as_deref(), Some(&options), |output, progress| ready.write(output, progress))
    })
}

/// # Safety
///
/// The strings in `options` are as documented.
unsafe fn conversion(options: &spec_convert_options) -> Result<Conversion> {
    boundary::reserved("flags", options.flags.into())?;
    // SAFETY: this function's contract.
    let (verifier_directory, algorithm, arguments) = unsafe {
        (
            optional_path(options.verifier_directory, "verifier_directory")?,
            string(options.algorithm, "algorithm")?,
            string(options.arguments, "arguments")?,
        )
    };
    let arguments = match arguments {
        None => Map::new(),
        Some(text) => match serde_json::from_str(text) {
            Ok(Value::Object(arguments)) => arguments,
            Ok(_) => return Err(Error::invalid("arguments: expected a JSON object")),
            Err(error) => return Err(Error::invalid(format!("arguments: {error}"))),
        },
    };
    Ok(Conversion { verifier_directory, algorithm: algorithm.map(str::to_owned), arguments })
}

/// Whether a report is wanted, where it can be written.
fn check_report_place(json: *const c_char, capacity: u64, length: *const u64) -> Result<()> {
    if json.is_null() && capacity == 0 && length.is_null() {
        return Ok(());
    }
    check_text_place(json, capacity, length)
}

/// # Safety
///
/// As for [`write_text`].
unsafe fn tell(report: &Value, json: *mut c_char, capacity: u64, length: *mut u64) -> Result<()> {
    if json.is_null() && length.is_null() {
        return Ok(());
    }
    // SAFETY: this function's contract.
    unsafe { write_text(&report.to_string(), json, capacity, length) }
}

fn write(
    output: Option<&Path>,
    options: Option<&spec_convert_options>,
    write: impl FnOnce(&Path, &mut dyn FnMut(u64, u64) -> bool) -> Result<()>,
) -> Result<()> {
    let Some(output) = output else { return Ok(()) };
    let callback = options.and_then(|options| Some((options.progress?, options.progress_user)));
    let mut progress = |done, total| match callback {
        None => true,
        // SAFETY: called as documented, with the host's own user pointer.
        Some((callback, user)) => unsafe { callback(user, done, total) == 0 },
    };
    write(output, &mut progress)
}
