//! Speculative decoding for inference engines, behind a C ABI: drafting and verification on
//! buffers that the host owns. The public interface is `include/speculators.h`; the Rust items
//! are visible for the crate's own tests and benchmarks and promise nothing.

pub mod checkpoint;
pub mod error;
pub mod tensor;
