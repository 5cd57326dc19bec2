//! The one error type of the crate: a status code of the C API and a text that says what was
//! expected and what was found.

use std::fmt::Display;
use std::path::Path;

/// The status codes of the C API that an error can carry. The numbers are part of the ABI: they
/// are never reused, and new ones are only added at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Status {
    /// An argument is missing, out of range or inconsistent with another one.
    InvalidArgument = 1,
    /// Well-formed, but not something that this build or version can do.
    Unsupported = 2,
    /// A file could not be opened or read.
    Io = 3,
    /// A file was read, and its contents are not a sound checkpoint.
    Format = 4,
    /// An allocation was refused.
    OutOfMemory = 5,
    /// The session is in use by another thread.
    Busy = 6,
    /// The device or its driver failed.
    Device = 7,
    /// A defect of the library.
    Internal = 8,
    /// The host called the work off.
    Cancelled = 9,
}

/// Why an operation failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    status: Status,
    message: String,
}

/// The result of every fallible operation of the crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with the given status code and text.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// An argument is missing, out of range or inconsistent with another one.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Status::InvalidArgument, message)
    }

    /// Well-formed, but not something that this build or version can do.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Status::Unsupported, message)
    }

    /// The contents of a file are not a sound checkpoint.
    pub fn format(path: &Path, message: impl Display) -> Self {
        Self::new(Status::Format, format!("{}: {message}", path.display()))
    }

    /// A file could not be opened or read.
    pub fn io(path: &Path, error: &std::io::Error) -> Self {
        Self::new(Status::Io, format!("{}: {error}", path.display()))
    }

    /// An allocation of `bytes` bytes for `what` was refused.
    pub fn out_of_memory(what: &str, bytes: usize) -> Self {
        Self::new(Status::OutOfMemory, format!("{what}: no memory for {bytes} bytes"))
    }

    /// A defect of the library.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Status::Internal, message)
    }

    /// The status code.
    pub fn status(&self) -> Status {
        self.status
    }

    /// The same error with `context: ` before its text.
    pub fn within(self, context: impl Display) -> Self {
        Self { status: self.status, message: format!("{context}: {}", self.message) }
    }
}
