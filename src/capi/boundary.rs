//! What every call across the C boundary shares: panics and errors become codes, structs of other
//! versions are read safely, handles and strings are checked before use.

use super::types::{SPEC_OK, spec_error, spec_status};
use crate::error::{Error, Result, Status};
use std::ffi::{CStr, c_char};
use std::mem::offset_of;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Runs the body of a call: neither a panic nor an error leaves it, only a status.
pub fn call(
    function: &'static str,
    error: *mut spec_error,
    body: impl FnOnce() -> Result<()>,
) -> spec_status {
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(Error::internal(format!("defect: {}", text.unwrap_or("panic"))))
    });
    let status =
        result.as_ref().map_or_else(|failure| failure.status() as spec_status, |()| SPEC_OK);
    match result {
        Ok(()) => report(error, SPEC_OK, "", ""),
        Err(failure) => report(error, status, function, &failure.to_string()),
    }
    status
}

/// Fills the host's error struct, cutting the text at a character boundary.
fn report(error: *mut spec_error, status: spec_status, function: &str, text: &str) {
    if error.is_null() || !error.is_aligned() {
        return;
    }
    // SAFETY: a spec_error, or a smaller struct that begins with its size; aligned.
    if (unsafe { error.cast::<u32>().read() } as usize) < size_of::<spec_error>() {
        return;
    }
    // SAFETY: a whole spec_error, which the host does not use meanwhile.
    let error = unsafe { &mut *error };
    error.status = status;
    let separator = if text.is_empty() { "" } else { ": " };
    let room = error.message.len() - 1;
    let mut used = 0;
    'parts: for part in [function, separator, text] {
        for character in part.chars() {
            let mut bytes = [0; 4];
            let encoded = character.encode_utf8(&mut bytes).as_bytes();
            if encoded.len() > room - used {
                break 'parts;
            }
            for &byte in encoded {
                error.message[used] = byte as c_char;
                used += 1;
            }
        }
    }
    error.message[used] = 0;
}

/// A struct of the API that begins with its size, so that it can grow.
///
/// # Safety
///
/// The implementor is `repr(C)`, begins with a `u32` that holds its size, and all-zero bytes are
/// a value of it.
pub unsafe trait Sized32: Copy {
    /// The name in the header.
    const NAME: &'static str;
    /// The size that the first version had.
    const FIRST_SIZE: usize;
}

macro_rules! sized {
    ($($name:ident: $first:expr),* $(,)?) => {$(
        // SAFETY: repr(C), begins with struct_size, made of numbers, raw pointers and nullable
        // function pointers only.
        unsafe impl Sized32 for super::types::$name {
            const NAME: &'static str = stringify!($name);
            const FIRST_SIZE: usize = $first;
        }
        const _: () = assert!(offset_of!(super::types::$name, struct_size) == 0);
        const _: () = assert!(size_of::<super::types::$name>() >= $first);
    )*};
}

// First sizes are literals: they stay when a struct grows.
sized! {
    spec_allocator: 32,
    spec_context_options: 56,
    spec_context_info: 24,
    spec_model_options: 64,
    spec_convert_options: 48,
    spec_model_info: 72,
    spec_session_options: 64,
    spec_session_requirements: 48,
    spec_sampling: 48,
    spec_distribution: 128,
    spec_tree: 48,
    spec_tree_shape: 32,
    spec_draft_args: 200,
    spec_verify_args: 240,
    spec_leniency: 40,
    spec_logprobs: 32,
    spec_tree_mask_args: 160,
    spec_kv_compact_args: 160,
    spec_processing: 200,
}

/// Reads a struct that the host built against this or another version of the header.
///
/// # Safety
///
/// `pointer` is NULL or points to as many readable bytes as its first four say.
pub unsafe fn read<T: Sized32>(pointer: *const T) -> Result<T> {
    // SAFETY: as this function's contract.
    unsafe { read_optional(pointer)? }
        .ok_or_else(|| Error::invalid(format!("expected a {}, found NULL", T::NAME)))
}

/// [`read`], where NULL is allowed.
///
/// # Safety
///
/// As for [`read`].
pub unsafe fn read_optional<T: Sized32>(pointer: *const T) -> Result<Option<T>> {
    if pointer.is_null() {
        return Ok(None);
    }
    if !pointer.is_aligned() {
        return Err(Error::invalid(format!("expected an aligned {}, found {pointer:p}", T::NAME)));
    }
    let bytes = pointer.cast::<u8>();
    // SAFETY: Sized32 says that the struct begins with its size; the pointer is aligned.
    let size = unsafe { pointer.cast::<u32>().read() } as usize;
    if size < T::FIRST_SIZE {
        return Err(Error::invalid(format!(
            "{}.struct_size: expected at least {}, found {size}",
            T::NAME,
            T::FIRST_SIZE
        )));
    }
    let known = size_of::<T>();
    for index in known..size {
        // SAFETY: the host says that `size` bytes are there.
        if unsafe { bytes.add(index).read() } != 0 {
            return Err(Error::unsupported(format!(
                "{}: a field at byte {index} is set, which this version (of {known} bytes) does not know",
                T::NAME
            )));
        }
    }
    // SAFETY: all-zero bytes are a value of T, by Sized32.
    let mut value = unsafe { std::mem::zeroed::<T>() };
    // SAFETY: both sides have min(size, known) bytes, and do not overlap.
    unsafe {
        bytes.copy_to_nonoverlapping((&raw mut value).cast::<u8>(), size.min(known));
    }
    Ok(Some(value))
}

/// Writes a struct for the host to read, as much of it as the host's version has.
///
/// # Safety
///
/// `pointer` is NULL or points to as many writable bytes as its first four say.
pub unsafe fn write<T: Sized32>(pointer: *mut T, value: &T) -> Result<()> {
    // SAFETY: as this function's contract.
    let found = unsafe { read_size(pointer)? };
    let from = (&raw const *value).cast::<u8>();
    let header = size_of::<u32>();
    let len = found.min(size_of::<T>()) - header;
    // SAFETY: the host says that `found` bytes are writable; the size itself is left as it was.
    unsafe {
        from.add(header).copy_to_nonoverlapping(pointer.cast::<u8>().add(header), len);
    }
    Ok(())
}

/// # Safety
///
/// As for [`write`].
unsafe fn read_size<T: Sized32>(pointer: *const T) -> Result<usize> {
    if pointer.is_null() || !pointer.is_aligned() {
        return Err(Error::invalid(format!("expected a {}, found {pointer:p}", T::NAME)));
    }
    // SAFETY: Sized32 says that the struct begins with its size; the pointer is aligned.
    let size = unsafe { pointer.cast::<u32>().read() } as usize;
    if size < T::FIRST_SIZE {
        return Err(Error::invalid(format!(
            "{}.struct_size: expected at least {}, found {size}",
            T::NAME,
            T::FIRST_SIZE
        )));
    }
    Ok(size)
}

/// A handle's record: begins with a word that tells a live handle of its kind from anything else.
pub trait Handle {
    /// The name in the header.
    const NAME: &'static str;
    /// The word of live handles of this kind.
    const MAGIC: u64;
    /// The record's word.
    fn magic(&mut self) -> &mut u64;
}

/// The record behind a handle.
///
/// # Safety
///
/// `handle` is NULL or a handle that has not been released, or at least readable memory.
pub unsafe fn borrow<'a, H: Handle>(handle: *const H) -> Result<&'a H> {
    if handle.is_null() || !handle.is_aligned() {
        return Err(Error::invalid(format!("expected a {}, found {handle:p}", H::NAME)));
    }
    // SAFETY: the records are repr(C) with the word first; reading it needs only readable memory.
    if unsafe { handle.cast::<u64>().read() } != H::MAGIC {
        return Err(Error::invalid(format!(
            "expected a live {}, found another object or a released one at {handle:p}",
            H::NAME
        )));
    }
    // SAFETY: the word says that this is a live record of this kind.
    Ok(unsafe { &*handle })
}

/// Hands a new record to the host.
///
/// # Safety
///
/// `place` is NULL or points to a writable pointer.
pub unsafe fn hand_out<H: Handle>(
    place: *mut *mut H,
    create: impl FnOnce() -> Result<H>,
) -> Result<()> {
    if place.is_null() || !place.is_aligned() {
        return Err(Error::invalid(format!("expected a place for a {}, found {place:p}", H::NAME)));
    }
    // SAFETY: writable, by this function's contract. A failed call leaves NULL behind.
    unsafe { place.write(std::ptr::null_mut()) };
    let record = Box::new(create()?);
    // SAFETY: as above.
    unsafe { place.write(Box::into_raw(record)) };
    Ok(())
}

/// Ends a handle; NULL and handles that are not live are let be.
///
/// # Safety
///
/// As for [`borrow`], and no other call uses the handle any more.
pub unsafe fn release<H: Handle>(handle: *mut H) {
    // SAFETY: as this function's contract.
    if unsafe { borrow(handle.cast_const()) }.is_err() {
        return;
    }
    // SAFETY: a live record was made by Box::into_raw, and the host gives it up.
    let mut record = unsafe { Box::from_raw(handle) };
    // SAFETY: a word of the record. Volatile, as a plain write just before the memory is given back
    // would be left out.
    unsafe { (&raw mut *record.magic()).write_volatile(0) };
    // A panic while dropping is a defect; it must not cross the boundary.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(record)));
}

/// A string of the host.
///
/// # Safety
///
/// `text` is NULL or a string that ends with NUL and does not change during the call.
pub unsafe fn string<'a>(text: *const c_char, what: &str) -> Result<Option<&'a str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: as this function's contract.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str()
        .map(Some)
        .map_err(|_| Error::invalid(format!("{what}: expected UTF-8, found {text:?}")))
}

/// A path of the host, which must be there.
///
/// # Safety
///
/// As for [`string`].
pub unsafe fn path<'a>(text: *const c_char, what: &str) -> Result<&'a Path> {
    // SAFETY: as this function's contract.
    match unsafe { string(text, what)? } {
        Some(text) if !text.is_empty() => Ok(Path::new(text)),
        _ => Err(Error::invalid(format!("{what}: expected a path, found nothing"))),
    }
}

/// A path of the host, or nothing.
///
/// # Safety
///
/// As for [`string`].
pub unsafe fn optional_path(text: *const c_char, what: &str) -> Result<Option<PathBuf>> {
    // SAFETY: as this function's contract.
    Ok(unsafe { string(text, what)? }.map(PathBuf::from))
}

/// Refuses what [`write_text`] cannot write to, whatever the text.
pub fn check_text_place(buffer: *const c_char, capacity: u64, length: *const u64) -> Result<()> {
    if !length.is_aligned() {
        return Err(Error::invalid(format!("length: expected an aligned place, found {length:p}")));
    }
    if buffer.is_null() && (capacity > 0 || length.is_null()) {
        return Err(Error::invalid(
            "expected a buffer, or a place for the length alone, found NULL",
        ));
    }
    Ok(())
}

/// Writes a text with its NUL into the host's buffer and its length without NUL to `length`; with
/// neither buffer nor capacity, only the length.
///
/// # Safety
///
/// `buffer` is NULL or has `capacity` writable bytes; `length` is NULL or writable.
pub unsafe fn write_text(
    text: &str,
    buffer: *mut c_char,
    capacity: u64,
    length: *mut u64,
) -> Result<()> {
    check_text_place(buffer, capacity, length)?;
    if !length.is_null() {
        // SAFETY: writable, by this function's contract.
        unsafe { length.write(text.len() as u64) };
    }
    if buffer.is_null() {
        return Ok(());
    }
    if capacity <= text.len() as u64 {
        return Err(Error::invalid(format!(
            "capacity: expected at least {} bytes, found {capacity}",
            text.len() + 1
        )));
    }
    // SAFETY: the buffer has more bytes than the text, and is not part of it.
    unsafe {
        text.as_ptr().copy_to_nonoverlapping(buffer.cast::<u8>(), text.len());
        buffer.add(text.len()).write(0);
    }
    Ok(())
}

/// `value`, which must be in `low ..= high`.
pub fn within(what: &str, value: i64, low: i64, high: i64) -> Result<usize> {
    if value < low || value > high {
        return Err(Error::invalid(format!("{what}: expected {low} to {high}, found {value}")));
    }
    Ok(value as usize)
}

/// `value` must be 0.
pub fn reserved(what: &str, value: i64) -> Result<()> {
    if value != 0 {
        return Err(Error::unsupported(format!("{what}: expected 0, found {value}")));
    }
    Ok(())
}

const _: () = assert!(Status::Internal as i32 == super::types::SPEC_ERROR_INTERNAL);
const _: () = assert!(Status::Cancelled as i32 == super::types::SPEC_ERROR_CANCELLED);
