//! Memory of a device and of the host next to it, and how bytes get there at load.

use super::device::{Device, raw};
use super::driver;
use crate::backend::Stream;
use crate::error::{Error, Result};
use crate::tensor::Span;
use cudarc::driver::sys::{
    CU_MEMHOSTALLOC_DEVICEMAP, CU_MEMHOSTALLOC_PORTABLE, CUevent, CUevent_flags, CUstream,
};
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// The stream of copies at load: the context's own, ordered with all of the host's streams that are
/// not created to be independent of it.
const DEFAULT_STREAM: CUstream = std::ptr::null_mut();

/// Bytes of a piece of the staging memory, of which there are two.
const PIECE_BYTES: usize = 8 << 20;

/// Takes memory from the driver, outside of step calls.
#[derive(Clone, Debug)]
pub struct DeviceMemory {
    device: Arc<Device>,
}

impl DeviceMemory {
    /// The memory of a device.
    pub fn new(device: Arc<Device>) -> Self {
        Self { device }
    }

    /// The address of `bytes` bytes, at a multiple of 256; `None` if there is no room. Blocks.
    pub fn allocate(&self, bytes: usize) -> Option<u64> {
        let _entered = self.device.enter().ok()?;
        let mut address = 0;
        // SAFETY: the context is current; `address` is writable.
        unsafe { driver::cuMemAlloc_v2(&raw mut address, bytes).ok()? };
        Some(address)
    }

    /// Gives back what [`DeviceMemory::allocate`] gave. Blocks until the device is done with it.
    pub fn release(&self, address: u64) {
        // There is nobody to tell of a failure: the memory goes with its context.
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: allocated in this context, and given back once by the contract of allocators.
            let _ = unsafe { driver::cuMemFree_v2(address) };
        }
    }
}

/// Page-locked memory of the host that the device reads and writes while the host does; zero at
/// first.
#[derive(Debug)]
pub struct PinnedMemory {
    device: Arc<Device>,
    host: *mut u8,
    address: u64,
    bytes: usize,
}

// SAFETY: the memory is owned; what is in it is reached through `&mut`, atomics or the device.
unsafe impl Send for PinnedMemory {}
// SAFETY: as above.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    /// `bytes` bytes, at least one.
    pub fn allocate(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        let _entered = device.enter()?;
        let mut host: *mut c_void = std::ptr::null_mut();
        let flags = CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: the context is current; `host` is writable.
        unsafe { driver::cuMemHostAlloc(&raw mut host, bytes, flags) }
            .map_err(|failure| Error::from(failure).within(format!("{bytes} page-locked bytes")))?;
        let device = Arc::clone(device);
        let mut memory = Self { device, host: host.cast(), address: 0, bytes };
        // SAFETY: allocated above with this size; `address` is writable.
        unsafe {
            host.cast::<u8>().write_bytes(0, bytes);
            driver::cuMemHostGetDevicePointer_v2(&raw mut memory.address, host, 0)?;
        }
        Ok(memory)
    }

    /// Where the memory is, for the device.
    pub fn span(&self) -> Span<u8> {
        Span::new(self.address, self.bytes)
    }

    /// The memory, for the host. The device must be done with it.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: allocated with this size, initialised, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.host, self.bytes) }
    }

    /// The memory as words that the device may write at any time, each at once.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: page-aligned, of this size and initialised; shared with the device by atomics.
        unsafe { std::slice::from_raw_parts(self.host.cast(), self.bytes / size_of::<u64>()) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: allocated by the driver, given back once.
            let _ = unsafe { driver::cuMemFreeHost(self.host.cast()) };
        }
    }
}

/// A point in a stream that the host waits for.
#[derive(Debug)]
struct Event {
    device: Arc<Device>,
    handle: CUevent,
}

// SAFETY: the handle is the name of an object of the driver, which any thread may use.
unsafe impl Send for Event {}

impl Event {
    fn new(device: &Arc<Device>) -> Result<Self> {
        let _entered = device.enter()?;
        let mut handle = std::ptr::null_mut();
        let flags = CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the context is current; `handle` is writable.
        unsafe { driver::cuEventCreate(&raw mut handle, flags)? };
        Ok(Self { device: Arc::clone(device), handle })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: created by the driver, destroyed once.
            let _ = unsafe { driver::cuEventDestroy_v2(self.handle) };
        }
    }
}

/// Page-locked memory through which bytes go to the device: while one piece is copied, the other one
/// is written.
#[derive(Debug)]
pub struct Staging {
    device: Arc<Device>,
    pieces: [Piece; 2],
}

#[derive(Debug)]
struct Piece {
    memory: PinnedMemory,
    /// Recorded after each copy out of the memory.
    copied: Event,
}

impl Staging {
    /// Staging memory whose pieces hold at least `granule` bytes.
    pub fn new(device: &Arc<Device>, granule: usize) -> Result<Self> {
        let piece = || -> Result<Piece> {
            let memory = PinnedMemory::allocate(device, granule.max(PIECE_BYTES))?;
            Ok(Piece { memory, copied: Event::new(device)? })
        };
        Ok(Self { device: Arc::clone(device), pieces: [piece()?, piece()?] })
    }

    /// Whether the pieces hold `granule` bytes.
    pub fn holds(&self, granule: usize) -> bool {
        self.pieces[0].memory.bytes >= granule
    }

    /// Fills the memory at `destination` in order with pieces that `source` writes, given where in
    /// the whole they begin. Pieces are multiples of `granule` bytes, of which the staging memory
    /// holds one. Blocks until the bytes are there.
    pub fn upload(
        &mut self,
        destination: Span<u8>,
        granule: usize,
        source: &mut dyn FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let _entered = self.device.enter()?;
        let enqueued = self.enqueue(destination, granule.max(1), source);
        // After an error too: nothing may read the pieces, or write the destination, any more.
        let done = self.pieces.iter().try_for_each(Piece::wait);
        enqueued.and(done)
    }

    /// The numbers as the device reads them from the staging memory, while `work` runs, and which it
    /// has to wait for.
    pub fn lend(
        &mut self,
        numbers: &[i32],
        work: &mut dyn FnMut(usize, Span<i32>) -> Result<()>,
    ) -> Result<()> {
        let memory = &mut self.pieces[0].memory;
        let most = memory.bytes / size_of::<i32>();
        for (index, numbers) in numbers.chunks(most).enumerate() {
            let bytes: &[u8] = bytemuck::cast_slice(numbers);
            memory.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
            work(index * most, Span::new(memory.address, numbers.len()))?;
        }
        Ok(())
    }

    fn enqueue(
        &mut self,
        destination: Span<u8>,
        granule: usize,
        source: &mut dyn FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let len = self.pieces[0].memory.bytes / granule * granule;
        let offsets = (0..destination.len()).step_by(len);
        for (index, offset) in offsets.enumerate() {
            let piece = &mut self.pieces[index % 2];
            piece.wait()?;
            let len = len.min(destination.len() - offset);
            source(offset, &mut piece.memory.bytes_mut()[..len])?;
            piece.copy(destination.slice(offset, len))?;
        }
        Ok(())
    }
}

impl Piece {
    /// Waits until what was enqueued has read the memory.
    fn wait(&self) -> Result<()> {
        // SAFETY: an event of the current context; one that was never recorded is over.
        unsafe { driver::cuEventSynchronize(self.copied.handle) }.map_err(Error::from)
    }

    fn copy(&self, to: Span<u8>) -> Result<()> {
        let from = self.memory.host.cast_const().cast();
        // SAFETY: the destination is valid by the contract of Backend; the memory is neither written
        // nor given back before the event is over.
        unsafe {
            driver::cuMemcpyHtoDAsync_v2(to.address(), from, to.len(), DEFAULT_STREAM)?;
            driver::cuEventRecord(self.copied.handle, DEFAULT_STREAM)?;
        }
        Ok(())
    }
}

/// Sets the memory to zero, in the order of the stream.
///
/// # Safety
///
/// The memory is valid and belongs to the stream until then; the context is current.
pub unsafe fn clear(memory: Span<u8>, stream: Stream) -> Result<()> {
    if memory.is_empty() {
        return Ok(());
    }
    // SAFETY: this function's contract.
    unsafe { driver::cuMemsetD8Async(memory.address(), 0, memory.len(), raw(stream)) }
        .map_err(Error::from)
}

/// Copies memory to as many bytes of the host, after the work of the stream. Blocks.
///
/// # Safety
///
/// The memory is valid, and not written but by the stream; the context is current.
pub unsafe fn fetch(memory: Span<u8>, bytes: &mut [u8], stream: Stream) -> Result<()> {
    assert_eq!(memory.len(), bytes.len(), "as many bytes on both sides");
    if bytes.is_empty() {
        return synchronise(stream);
    }
    let to = bytes.as_mut_ptr().cast();
    // SAFETY: this function's contract; the bytes are borrowed until the copy is done, below.
    let enqueued =
        unsafe { driver::cuMemcpyDtoHAsync_v2(to, memory.address(), memory.len(), raw(stream)) };
    // After an error too: nothing may write the bytes any more.
    let done = synchronise(stream);
    enqueued.map_err(Error::from).and(done)
}

/// Waits for the work of a stream; the context is current.
pub fn synchronise(stream: Stream) -> Result<()> {
    // SAFETY: a default stream or one that the host vouches for.
    unsafe { driver::cuStreamSynchronize(raw(stream)) }.map_err(Error::from)
}

/// The two 32-bit words that a device wrote as one of 64 bits, the one at the lower address first.
pub fn halves(word: u64) -> [i32; 2] {
    bytemuck::cast(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::device::tests::device;
    use cudarc::driver::sys;
    use std::sync::atomic::Ordering;

    /// What is in memory of the device.
    fn read(device: &Device, memory: Span<u8>) -> Vec<u8> {
        let _entered = device.enter().unwrap();
        let mut bytes = vec![0; memory.len()];
        let to = bytes.as_mut_ptr().cast();
        // SAFETY: the memory is valid, and as many bytes are writable.
        let result = unsafe { sys::cuMemcpyDtoH_v2(to, memory.address(), memory.len()) };
        assert_eq!(result as u32, 0);
        bytes
    }

    fn pattern(place: usize) -> u8 {
        (place % 251) as u8
    }

    #[test]
    fn uploads_arrive_whole_in_pieces_of_whole_granules() {
        let Some(device) = device() else { return };
        let memory = DeviceMemory::new(Arc::clone(&device));
        let mut staging = Staging::new(&device, 0).unwrap();
        let sizes =
            [(0, 1), (1, 1), (PIECE_BYTES, 4), (PIECE_BYTES + 3, 3), (3 * PIECE_BYTES / 7 * 7, 7)];
        for (bytes, granule) in sizes {
            let address = memory.allocate(bytes.max(1)).unwrap();
            let destination = Span::new(address, bytes);
            let mut next = 0;
            let mut source = |offset: usize, piece: &mut [u8]| {
                assert_eq!((offset, offset % granule), (next, 0));
                next += piece.len();
                piece.iter_mut().zip(offset..).for_each(|(byte, place)| *byte = pattern(place));
                Ok(())
            };
            staging.upload(destination, granule, &mut source).unwrap();
            assert_eq!(next, bytes);
            let arrived = read(&device, destination);
            assert!(
                arrived.iter().zip(0..).all(|(&byte, place)| byte == pattern(place)),
                "{bytes}"
            );
            memory.release(address);
        }
    }

    #[test]
    fn a_source_that_fails_ends_the_upload_and_nothing_else() {
        let Some(device) = device() else { return };
        let memory = DeviceMemory::new(Arc::clone(&device));
        let mut staging = Staging::new(&device, 0).unwrap();
        let bytes = 2 * PIECE_BYTES + 1;
        let destination = Span::new(memory.allocate(bytes).unwrap(), bytes);
        let mut fails = |offset: usize, _: &mut [u8]| match offset {
            0 => Ok(()),
            _ => Err(Error::invalid("no more")),
        };
        let error = staging.upload(destination, 1, &mut fails).unwrap_err();
        assert_eq!(error.to_string(), "no more");
        let mut ones = |_: usize, piece: &mut [u8]| {
            piece.fill(1);
            Ok(())
        };
        staging.upload(destination, 1, &mut ones).unwrap();
        assert!(read(&device, destination).iter().all(|&byte| byte == 1));
        memory.release(destination.address());
    }

    #[test]
    fn a_granule_beyond_the_usual_piece_gets_staging_memory_of_its_size() {
        let Some(device) = device() else { return };
        let staging = Staging::new(&device, PIECE_BYTES + 5).unwrap();
        assert!(staging.holds(PIECE_BYTES + 5));
        assert!(!Staging::new(&device, 0).unwrap().holds(PIECE_BYTES + 5));
    }

    #[test]
    fn pinned_memory_is_zero_at_first_and_seen_by_host_and_device() {
        let Some(device) = device() else { return };
        let pinned = PinnedMemory::allocate(&device, 16).unwrap();
        assert_eq!(pinned.words().len(), 2);
        assert!(pinned.words().iter().all(|word| word.load(Ordering::Acquire) == 0));
        let _entered = device.enter().unwrap();
        let high = Span::new(pinned.span().address() + 8, 8);
        pinned.words().iter().for_each(|word| word.store(u64::MAX, Ordering::Release));
        // SAFETY: the memory is the test's, and the context is current.
        unsafe { clear(high, Stream::NONE).unwrap() };
        synchronise(Stream::NONE).unwrap();
        let found = [0, 1].map(|index| pinned.words()[index].load(Ordering::Acquire));
        assert_eq!(found, [u64::MAX, 0]);
    }

    #[test]
    fn memory_is_aligned_and_too_much_of_it_is_refused() {
        let Some(device) = device() else { return };
        let memory = DeviceMemory::new(device);
        let addresses = [1, 64, 1000].map(|bytes| memory.allocate(bytes).unwrap());
        assert!(addresses.iter().all(|address| address % 256 == 0), "{addresses:?}");
        addresses.iter().for_each(|&address| memory.release(address));
        assert_eq!(memory.allocate(1 << 46), None);
    }

    #[test]
    fn the_first_half_of_a_word_is_the_one_at_the_lower_address() {
        assert_eq!(halves(u64::from_le_bytes([1, 0, 0, 0, 2, 0, 0, 0])), [1, 2]);
    }
}
