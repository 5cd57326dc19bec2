//! What this library is.

use super::types::spec_status;
use crate::checkpoint;
use std::ffi::{CStr, c_char};

/// The ABI that this header describes. A library of the same major number (`abi / 1000`) and at
/// least this minor number can be used with it.
pub const SPEC_ABI_VERSION: i32 = 1000;

/// The ABI version of the library that is linked: `SPEC_ABI_VERSION` of its own header.
///
/// Contract: any thread; does not block; allocates nothing; no stream.
#[unsafe(no_mangle)]
pub extern "C" fn spec_abi_version() -> i32 {
    SPEC_ABI_VERSION
}

/// The version of the library, such as `0.1.0`; static storage, never NULL.
///
/// Contract: any thread; does not block; allocates nothing; no stream.
#[unsafe(no_mangle)]
pub extern "C" fn spec_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// The features of this build that hosts can ask for by name, besides the kinds of speculator.
const FEATURES: [&str; 7] = [
    "cpu",
    "cuda",
    "verify.chain",
    "verify.processing",
    "draft.sampling",
    "tree.mask",
    "kv.compact",
];

/// Says whether the library has a feature: 1 if so, 0 if not or if it does not know the name.
///
/// Names so far: `cpu` (CPU contexts), `cuda` (CUDA contexts, where there is a driver), `dflash`,
/// `dflash2`, `dspark`, `eagle`, `eagle3`, `independent`, `mlp`, `mtp`, `peagle` and `xpress` (the
/// kinds of speculator), `verify.chain` (verification of chains), `verify.processing`
/// (`spec_processing`), `draft.sampling` (sampled drafts), `tree.mask` (`spec_tree_from_paths` and
/// `spec_tree_mask`), `kv.compact` (`spec_kv_compact`). `name` ends with NUL; NULL gives 0.
///
/// Contract: any thread; does not block; allocates nothing; no stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_feature(name: *const c_char) -> i32 {
    if name.is_null() {
        return 0;
    }
    // SAFETY: a string that ends with NUL, by the documented contract.
    let name = unsafe { CStr::from_ptr(name) };
    let mut features = FEATURES.iter().copied().chain(checkpoint::kinds());
    i32::from(features.any(|feature| feature.as_bytes() == name.to_bytes()))
}

/// The name of a status in the header, such as `SPEC_ERROR_FORMAT`, or `unknown status`; static
/// storage, never NULL.
///
/// Contract: any thread; does not block; allocates nothing; no stream.
#[unsafe(no_mangle)]
pub extern "C" fn spec_status_name(status: spec_status) -> *const c_char {
    let name = match status {
        0 => c"SPEC_OK",
        1 => c"SPEC_ERROR_INVALID_ARGUMENT",
        2 => c"SPEC_ERROR_UNSUPPORTED",
        3 => c"SPEC_ERROR_IO",
        4 => c"SPEC_ERROR_FORMAT",
        5 => c"SPEC_ERROR_OUT_OF_MEMORY",
        6 => c"SPEC_ERROR_BUSY",
        7 => c"SPEC_ERROR_DEVICE",
        8 => c"SPEC_ERROR_INTERNAL",
        9 => c"SPEC_ERROR_CANCELLED",
        _ => c"unknown status",
    };
    name.as_ptr()
}
