//! The C interface: the only `extern "C"` functions of the crate. Each one turns pointers into
//! checked plain data, calls one function of the library and turns the result into a status. The
//! documentation of this module is what `include/speculators.h` says.

// The documentation becomes the C header, whose words for these duties are its own.
#![allow(clippy::missing_safety_doc)]

mod boundary;
mod checkpoint;
mod compact;
mod context;
mod convert;
mod draft;
mod model;
mod processing;
mod selftest;
mod session;
mod tensors;
mod tree;
mod tree_shape;
mod types;
mod verify;
mod version;

pub use checkpoint::*;
pub use compact::*;
pub use context::*;
pub use convert::*;
pub use draft::*;
pub use model::*;
pub use selftest::*;
pub use session::*;
pub use tree::*;
pub use types::*;
pub use verify::*;
pub use version::*;
