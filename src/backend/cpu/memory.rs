//! Memory of the CPU: addresses as slices, and blocks of the operating system.

use crate::tensor::{Dtype, Matrix, Span};
use half::{bf16, f16};

/// The elements of a span.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`]: the memory is valid, initialised and not written
/// while the slice lives.
pub unsafe fn elements<'a, T>(span: Span<T>) -> &'a [T] {
    if span.is_empty() {
        return &[];
    }
    // SAFETY: as this function's contract.
    unsafe { std::slice::from_raw_parts(span.address() as *const T, span.len()) }
}

/// The elements of a span, to be written.
///
/// # Safety
///
/// As for [`elements`], and nobody else uses the memory while the slice lives.
pub unsafe fn elements_mut<'a, T>(span: Span<T>) -> &'a mut [T] {
    if span.is_empty() {
        return &mut [];
    }
    // SAFETY: as this function's contract.
    unsafe { std::slice::from_raw_parts_mut(span.address() as *mut T, span.len()) }
}

/// One element of a span. Only this element has to be there.
///
/// # Safety
///
/// As for [`elements`], for this element alone.
pub unsafe fn read<T: Copy>(span: Span<T>, index: usize) -> T {
    debug_assert!(index < span.len());
    // SAFETY: as this function's contract.
    unsafe { (span.address() as *const T).add(index).read() }
}

/// One element of a span, to be written.
///
/// # Safety
///
/// As for [`elements_mut`], for this element alone.
pub unsafe fn place<'a, T>(span: Span<T>, index: usize) -> &'a mut T {
    debug_assert!(index < span.len());
    // SAFETY: as this function's contract.
    unsafe { &mut *(span.address() as *mut T).add(index) }
}

/// A row of an F32 matrix.
///
/// # Safety
///
/// As for [`elements`]; the matrix is F32 and has the row.
pub unsafe fn row<'a>(matrix: &Matrix, row: usize) -> &'a [f32] {
    debug_assert!(matrix.dtype == Dtype::F32 && row < matrix.rows);
    // SAFETY: as this function's contract.
    unsafe { elements(Span::new(matrix.row_address(row), matrix.columns)) }
}

/// A row of an F32 matrix, to be written.
///
/// # Safety
///
/// As for [`row`], and nobody else uses the row while the slice lives.
pub unsafe fn row_mut<'a>(matrix: &Matrix, row: usize) -> &'a mut [f32] {
    debug_assert!(matrix.dtype == Dtype::F32 && row < matrix.rows);
    // SAFETY: as this function's contract.
    unsafe { elements_mut(Span::new(matrix.row_address(row), matrix.columns)) }
}

/// The element at `address`, which needs no alignment.
///
/// # Safety
///
/// One element of the type is readable there.
pub unsafe fn element(address: u64, dtype: Dtype) -> f32 {
    // SAFETY: as this function's contract.
    unsafe {
        match dtype {
            Dtype::F32 => (address as *const f32).read_unaligned(),
            Dtype::F16 => f16::from_bits((address as *const u16).read_unaligned()).to_f32(),
            Dtype::Bf16 => bf16::from_bits((address as *const u16).read_unaligned()).to_f32(),
        }
    }
}

/// Writes values in another element type, rounded to nearest even.
///
/// # Safety
///
/// `values.len()` elements of the type are writable at `address`, aligned to their size.
pub unsafe fn store(values: &[f32], address: u64, dtype: Dtype) {
    use half::slice::HalfFloatSliceExt;
    let len = values.len();
    // SAFETY: as this function's contract.
    unsafe {
        match dtype {
            Dtype::F32 => elements_mut(Span::new(address, len)).copy_from_slice(values),
            Dtype::F16 => {
                elements_mut::<f16>(Span::new(address, len)).convert_from_f32_slice(values);
            }
            Dtype::Bf16 => {
                elements_mut::<bf16>(Span::new(address, len)).convert_from_f32_slice(values);
            }
        }
    }
}

/// Blocks straight from the operating system: zero pages, in huge pages where the system grants
/// them.
#[derive(Debug)]
pub struct OperatingSystemMemory;

/// Blocks of at least this size are aligned to it, so that huge pages can back them.
const HUGE_PAGE: usize = 2 << 20;

impl OperatingSystemMemory {
    /// The address of at least `bytes` zero bytes at a multiple of `alignment`, or `None`.
    pub fn allocate(bytes: usize, alignment: usize) -> Option<u64> {
        let alignment = alignment.max(if bytes >= HUGE_PAGE { HUGE_PAGE } else { 1 });
        if alignment <= page_size() {
            return map(bytes);
        }
        let padded = bytes.checked_next_multiple_of(page_size())?.checked_add(alignment)?;
        let start = map(padded)?;
        let address = start.next_multiple_of(alignment as u64);
        let kept = (bytes as u64).next_multiple_of(page_size() as u64);
        unmap(start, (address - start) as usize);
        unmap(address + kept, (start + padded as u64 - address - kept) as usize);
        #[cfg(target_os = "linux")]
        // SAFETY: advice about a mapping made above; a refusal changes nothing.
        unsafe {
            libc::madvise(address as *mut libc::c_void, kept as usize, libc::MADV_HUGEPAGE);
        }
        Some(address)
    }

    /// Gives back what [`OperatingSystemMemory::allocate`] gave for the same size.
    pub fn release(address: u64, bytes: usize) {
        unmap(address, bytes.next_multiple_of(page_size()));
    }
}

fn page_size() -> usize {
    // SAFETY: sysconf has no preconditions.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

fn map(bytes: usize) -> Option<u64> {
    // SAFETY: a new private mapping at an address of the system's choice.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANON,
            -1,
            0,
        )
    };
    (address != libc::MAP_FAILED).then_some(address as u64)
}

fn unmap(address: u64, bytes: usize) {
    if bytes > 0 {
        // SAFETY: part of a mapping made by `map` that nothing uses any more.
        unsafe { libc::munmap(address as *mut libc::c_void, bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_the_system_is_aligned_zero_and_writable_to_its_end() {
        for bytes in [1, 4096, 5000, HUGE_PAGE - 1, HUGE_PAGE, 3 * HUGE_PAGE + 12345] {
            let address = OperatingSystemMemory::allocate(bytes, 64).unwrap();
            assert!(address.is_multiple_of(if bytes >= HUGE_PAGE { HUGE_PAGE as u64 } else { 64 }));
            // SAFETY: the block was just made, of this size.
            let memory = unsafe { elements_mut::<u8>(Span::new(address, bytes)) };
            assert!(memory.iter().all(|&byte| byte == 0));
            memory.fill(7);
            OperatingSystemMemory::release(address, bytes);
        }
    }

    #[test]
    fn absurd_sizes_are_refused() {
        assert_eq!(OperatingSystemMemory::allocate(usize::MAX, 64), None);
        assert_eq!(OperatingSystemMemory::allocate(isize::MAX as usize, 64), None);
    }
}
