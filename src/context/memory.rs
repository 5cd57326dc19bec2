//! Memory that the library asks for outside of step calls: weights, KV pools, workspaces.

use crate::backend::cpu::OperatingSystemMemory;
use crate::backend::cuda::DeviceMemory;
use crate::error::{Error, Result};
use crate::tensor::ALIGNMENT;
use std::sync::Arc;

/// What a block of memory is for. The numbers are part of the ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum MemoryKind {
    /// Weights of a model: written once, then read in every step.
    Weights = 0,
    /// The KV pages of a session.
    Kv = 1,
    /// The workspace of a session.
    Workspace = 2,
}

/// Gives and takes back memory of the context's device.
pub trait Allocator: Send + Sync {
    /// The address of at least `bytes` bytes at a multiple of `alignment`, or `None`.
    fn allocate(&self, kind: MemoryKind, bytes: usize, alignment: usize) -> Option<u64>;

    /// Takes back what [`Allocator::allocate`] gave for the same kind and size.
    fn release(&self, kind: MemoryKind, address: u64, bytes: usize);
}

impl Allocator for OperatingSystemMemory {
    fn allocate(&self, _: MemoryKind, bytes: usize, alignment: usize) -> Option<u64> {
        Self::allocate(bytes, alignment)
    }

    fn release(&self, _: MemoryKind, address: u64, bytes: usize) {
        Self::release(address, bytes);
    }
}

impl Allocator for DeviceMemory {
    fn allocate(&self, _: MemoryKind, bytes: usize, _: usize) -> Option<u64> {
        // What the driver gives is aligned to 256 bytes.
        Self::allocate(self, bytes)
    }

    fn release(&self, _: MemoryKind, address: u64, _: usize) {
        Self::release(self, address);
    }
}

/// One allocation, given back when dropped.
pub struct Block {
    allocator: Arc<dyn Allocator>,
    kind: MemoryKind,
    address: u64,
    bytes: usize,
}

impl Block {
    pub(super) fn allocate(
        allocator: &Arc<dyn Allocator>,
        kind: MemoryKind,
        what: &str,
        bytes: usize,
    ) -> Result<Self> {
        let bytes = bytes.max(ALIGNMENT);
        let address = allocator
            .allocate(kind, bytes, ALIGNMENT)
            .ok_or_else(|| Error::out_of_memory(what, bytes))?;
        let block = Self { allocator: Arc::clone(allocator), kind, address, bytes };
        if !address.is_multiple_of(ALIGNMENT as u64) {
            return Err(Error::invalid(format!(
                "{what}: expected memory aligned to {ALIGNMENT} bytes from the allocator, found address {address:#x}"
            )));
        }
        Ok(block)
    }

    /// The address of the first byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The number of bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.allocator.release(self.kind, self.address, self.bytes);
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Block({:?}, {:#x}, {} bytes)", self.kind, self.address, self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Counting {
        live: Mutex<Vec<(u64, usize)>>,
        address: u64,
    }

    impl Allocator for Counting {
        fn allocate(&self, _: MemoryKind, bytes: usize, _: usize) -> Option<u64> {
            if bytes > 1000 {
                return None;
            }
            self.live.lock().unwrap().push((self.address, bytes));
            Some(self.address)
        }

        fn release(&self, _: MemoryKind, address: u64, bytes: usize) {
            self.live.lock().unwrap().retain(|&entry| entry != (address, bytes));
        }
    }

    fn allocate(counting: &Arc<Counting>, bytes: usize) -> Result<Block> {
        let allocator: Arc<dyn Allocator> = counting.clone();
        Block::allocate(&allocator, MemoryKind::Kv, "KV pool", bytes)
    }

    #[test]
    fn a_block_goes_back_to_the_allocator_that_gave_it() {
        let counting = Arc::new(Counting { address: 640, ..Counting::default() });
        let block = allocate(&counting, 10).unwrap();
        assert_eq!((block.address(), block.bytes()), (640, 64));
        assert_eq!(counting.live.lock().unwrap().len(), 1);
        drop(block);
        assert!(counting.live.lock().unwrap().is_empty());
    }

    #[test]
    fn refused_and_misaligned_memory_are_errors_and_nothing_leaks() {
        let counting = Arc::new(Counting { address: 8, ..Counting::default() });
        let refused = allocate(&counting, 5000).unwrap_err();
        assert_eq!(refused.to_string(), "KV pool: no memory for 5000 bytes");
        let misaligned = allocate(&counting, 64).unwrap_err();
        assert!(misaligned.to_string().contains("aligned to 64"), "{misaligned}");
        assert!(counting.live.lock().unwrap().is_empty());
    }
}
