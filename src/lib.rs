//! Speculative decoding for inference engines, behind a C ABI: drafting and verification on
//! buffers that the host owns. The public interface is `include/speculators.h`; the Rust items
//! are visible for the crate's own tests and benchmarks and promise nothing.

pub mod backend;
pub mod capi;
pub mod checkpoint;
pub mod context;
pub mod drafter;
pub mod error;
pub mod model;
pub mod sampling;
pub mod session;
pub mod tensor;
pub mod tree;
pub mod verify;
