//! Where the files of the tests are. The environment says so to a program that runs on another
//! machine than the one that built it.

use std::path::{Path, PathBuf};

/// A file of the project: in `SPEC_TEST_ROOT`, or where the program was built.
pub fn project(path: &str) -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).to_owned();
    std::env::var_os("SPEC_TEST_ROOT").map_or_else(built, PathBuf::from).join(path)
}

/// A folder for files that a test writes: `SPEC_TEST_SCRATCH`, or the build's own.
pub fn scratch() -> PathBuf {
    let built = || Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned();
    std::env::var_os("SPEC_TEST_SCRATCH").map_or_else(built, PathBuf::from)
}
