//! Arrays that the test and the device both read and write.

use super::{Device, driver};
use std::any::Any;
use std::fmt::{Debug, Formatter};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// An array of the host that calls on a device may get: a `Vec` on the CPU, page-locked memory of
/// exactly its size on CUDA.
pub struct Buffer<T: Copy>(Storage<T>);

enum Storage<T: Copy> {
    Own(Vec<T>),
    PageLocked(PageLocked<T>),
}

struct PageLocked<T: Copy> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: plain data that the buffer owns.
unsafe impl<T: Copy + Send> Send for PageLocked<T> {}
// SAFETY: as above.
unsafe impl<T: Copy + Sync> Sync for PageLocked<T> {}

impl<T: Copy> PageLocked<T> {
    fn new(elements: &[T]) -> Self {
        let mut start = NonNull::<T>::dangling();
        if !elements.is_empty() {
            start = NonNull::new(driver::lock_pages(size_of_val(elements)).cast()).expect("memory");
            // SAFETY: new memory of the size of the elements, aligned to a page.
            unsafe { start.as_ptr().copy_from_nonoverlapping(elements.as_ptr(), elements.len()) };
        }
        Self { start, len: elements.len() }
    }
}

impl<T: Copy> Drop for PageLocked<T> {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the memory is given up here and nowhere else; tests synchronise before.
            unsafe { driver::unlock_pages(self.start.as_ptr().cast()) };
        }
    }
}

impl<T: Copy> Buffer<T> {
    /// For calls on `device`.
    pub fn on(device: Device, elements: Vec<T>) -> Self {
        Self(match device {
            Device::Cpu => Storage::Own(elements),
            Device::Cuda => Storage::PageLocked(PageLocked::new(&elements)),
        })
    }

    /// All elements alike.
    pub fn filled(len: usize, value: T) -> Self {
        vec![value; len].into()
    }
}

impl<T: Copy> From<Vec<T>> for Buffer<T> {
    /// For calls on the device of this process.
    fn from(elements: Vec<T>) -> Self {
        Self::on(Device::chosen(), elements)
    }
}

impl<T: Copy> FromIterator<T> for Buffer<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        Vec::from_iter(elements).into()
    }
}

impl<T: Copy> Default for Buffer<T> {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl<T: Copy> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Storage::Own(elements) => elements,
            // SAFETY: that many initialised elements, borrowed with `self`.
            Storage::PageLocked(memory) => unsafe {
                std::slice::from_raw_parts(memory.start.as_ptr(), memory.len)
            },
        }
    }
}

impl<T: Copy> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.0 {
            Storage::Own(elements) => elements,
            // SAFETY: as above.
            Storage::PageLocked(memory) => unsafe {
                std::slice::from_raw_parts_mut(memory.start.as_ptr(), memory.len)
            },
        }
    }
}

impl<T: Copy> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        Self(match &self.0 {
            Storage::Own(elements) => Storage::Own(elements.clone()),
            Storage::PageLocked(_) => Storage::PageLocked(PageLocked::new(self)),
        })
    }
}

impl<T: Copy + Debug> Debug for Buffer<T> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(formatter)
    }
}

impl<T: Copy + PartialEq> PartialEq for Buffer<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<'a, T: Copy> IntoIterator for &'a Buffer<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Lends plain arrays of a test to calls: as they are on the CPU, as copies on CUDA, which last as
/// long as the loan.
pub struct Loan {
    device: Device,
    copies: Vec<Box<dyn Any>>,
}

impl Loan {
    pub fn to(device: Device) -> Self {
        Self { device, copies: Vec::new() }
    }

    /// Where the device reads the elements, which must neither move nor change during the loan.
    pub fn array<T: Copy + 'static>(&mut self, elements: &[T]) -> *const T {
        if self.device == Device::Cpu {
            return elements.as_ptr();
        }
        let copy = Buffer::on(self.device, elements.to_vec());
        let start = copy.as_ptr();
        self.copies.push(Box::new(copy));
        start
    }
}
