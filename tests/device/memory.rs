//! Memory of the device itself, which the test reads and writes by copies.

use super::{Device, driver};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::ops::Range;

/// Memory of a device, aligned to 64 bytes as pools and workspaces must be.
#[derive(Debug)]
pub struct Memory {
    storage: Storage,
    bytes: usize,
}

#[derive(Debug)]
enum Storage {
    Host(Vec<Line>),
    Cuda(u64),
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl Memory {
    /// On the device of this process, all bytes `filling`.
    pub fn filled(bytes: u64, filling: u8) -> Self {
        Self::filled_on(Device::chosen(), bytes, filling)
    }

    pub fn filled_on(device: Device, bytes: u64, filling: u8) -> Self {
        let bytes = bytes.max(1) as usize;
        match device {
            Device::Cpu => {
                let lines = vec![Line([filling; 64]); bytes.div_ceil(64)];
                Self { storage: Storage::Host(lines), bytes }
            }
            Device::Cuda => {
                let memory = Self { storage: Storage::Cuda(allocate(bytes)), bytes };
                memory.fill(0..bytes, filling);
                memory
            }
        }
    }

    /// On the device of this process, with these contents.
    pub fn of(bytes: &[u8]) -> Self {
        let memory = Self::filled(bytes.len() as u64, 0);
        memory.write(0, bytes);
        memory
    }

    pub fn address(&self) -> *mut c_void {
        match &self.storage {
            Storage::Host(lines) => lines.as_ptr().cast_mut().cast(),
            Storage::Cuda(address) => *address as *mut c_void,
        }
    }

    fn at(&self, range: &Range<usize>) -> u64 {
        assert!(range.start <= range.end && range.end <= self.bytes, "{range:?} of {}", self.bytes);
        self.address() as u64 + range.start as u64
    }

    /// The bytes of a range, when no call works on them.
    pub fn read(&self, range: Range<usize>) -> Vec<u8> {
        let mut bytes = vec![0; range.len()];
        let (from, to) = (self.at(&range), bytes.as_mut_ptr());
        match self.storage {
            // SAFETY: both places have as many bytes as the range.
            Storage::Host(_) => unsafe { to.copy_from(from as *const u8, range.len()) },
            Storage::Cuda(_) => {
                driver::enter();
                // SAFETY: as above; a context is current.
                let result = unsafe { sys::cuMemcpyDtoH_v2(to.cast(), from, range.len()) };
                driver::check("cuMemcpyDtoH", result);
            }
        }
        bytes
    }

    /// All of it as an array, when no call works on it.
    pub fn elements<T: bytemuck::Pod>(&self) -> Vec<T> {
        let bytes = self.read(0..self.bytes);
        bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }

    /// Writes bytes from `offset` on, when no call works on them.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let (to, from) = (self.at(&(offset..offset + bytes.len())), bytes.as_ptr());
        match self.storage {
            // SAFETY: both places have as many bytes as the slice.
            Storage::Host(_) => unsafe { (to as *mut u8).copy_from(from, bytes.len()) },
            Storage::Cuda(_) => {
                driver::enter();
                // SAFETY: as above; a context is current.
                let result = unsafe { sys::cuMemcpyHtoD_v2(to, from.cast(), bytes.len()) };
                driver::check("cuMemcpyHtoD", result);
            }
        }
    }

    /// Makes all bytes of a range `filling`, when no call works on them.
    pub fn fill(&self, range: Range<usize>, filling: u8) {
        let to = self.at(&range);
        match self.storage {
            // SAFETY: the range lies inside of the memory.
            Storage::Host(_) => unsafe { (to as *mut u8).write_bytes(filling, range.len()) },
            Storage::Cuda(_) => {
                driver::enter();
                // SAFETY: as above; a context is current.
                let result = unsafe { sys::cuMemsetD8_v2(to, filling, range.len()) };
                driver::check("cuMemsetD8", result);
                driver::synchronize();
            }
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Storage::Cuda(address) = self.storage {
            driver::enter();
            // SAFETY: the memory is given up here and nowhere else; tests synchronise before. After
            // a fault of the device every call fails, this one too.
            unsafe { sys::cuMemFree_v2(address) };
        }
    }
}

fn allocate(bytes: usize) -> u64 {
    driver::enter();
    let mut address = 0;
    // SAFETY: a context is current; `address` is a place for an address.
    driver::check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&mut address, bytes) });
    address
}
