//! Measuring on a CUDA device: its clock, its bandwidth in the same run, and the host's time to
//! enqueue.

use super::median;
use super::report::Figures;
use crate::device::memory::Memory;
use crate::device::stream::Stream;
use crate::device::{Device, driver};
use cudarc::driver::sys;
use speculators::capi::*;
use std::ffi::{CStr, c_void};
use std::ptr::null_mut;
use std::time::{Duration, Instant};

/// What the driver calls the device.
pub fn device_name() -> String {
    driver::enter();
    let mut name = [0; 256];
    // SAFETY: a place for that many bytes.
    driver::check("cuDeviceGetName", unsafe {
        sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as i32, 0)
    });
    // SAFETY: the driver ends the name with NUL.
    unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned()
}

/// A mark in a stream that remembers when the device came by.
struct Event(sys::CUevent);

impl Event {
    fn record(stream: &Stream) -> Self {
        driver::enter();
        let mut event = null_mut();
        // SAFETY: `event` is a place for a handle; the stream is live.
        unsafe {
            driver::check("cuEventCreate", sys::cuEventCreate(&mut event, 0));
            driver::check("cuEventRecord", sys::cuEventRecord(event, stream.handle().cast()));
        }
        Self(event)
    }

    /// Seconds from this one to another, when the device has passed both.
    fn seconds_to(&self, later: &Self) -> f64 {
        /// The second version of the function needs a newer driver.
        type ElapsedTime =
            unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;
        let mut milliseconds = 0.0_f32;
        // SAFETY: the driver is loaded, as there are events of it, and the type is that of its
        // function of this name; the events are live.
        let result = unsafe {
            let elapsed = sys::culib().get::<ElapsedTime>(b"cuEventElapsedTime\0");
            elapsed.expect("a function of every driver")(&mut milliseconds, self.0, later.0)
        };
        driver::check("cuEventElapsedTime", result);
        1e-3 * f64::from(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        driver::enter();
        // SAFETY: the handle is given up here and nowhere else.
        unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Work that comes before the first time that counts, so that clocks have risen.
    pub warm_up: Duration,
    /// Times of which the median is taken.
    pub samples: usize,
}

impl Effort {
    pub fn new(quick: bool) -> Self {
        if quick {
            Self { warm_up: Duration::ZERO, samples: 1 }
        } else {
            Self { warm_up: Duration::from_millis(60), samples: 41 }
        }
    }

    /// Seconds of the device from one end of this work to the next, while the host keeps it busy.
    pub fn on_device(self, stream: &Stream, mut enqueue: impl FnMut()) -> f64 {
        let start = Instant::now();
        loop {
            enqueue();
            stream.synchronize();
            if start.elapsed() >= self.warm_up {
                break;
            }
        }
        // The first one runs while the host enqueues the others.
        enqueue();
        let mut events = vec![Event::record(stream)];
        for _ in 0..self.samples {
            enqueue();
            events.push(Event::record(stream));
        }
        stream.synchronize();
        let mut times: Vec<f64> =
            events.windows(2).map(|pair| pair[0].seconds_to(&pair[1])).collect();
        median(&mut times)
    }

    /// Seconds of the host for enqueueing this work, when the device has nothing else to do.
    pub fn on_host(self, stream: &Stream, mut enqueue: impl FnMut()) -> f64 {
        let mut times: Vec<f64> = (0..self.samples)
            .map(|_| {
                let start = Instant::now();
                enqueue();
                let time = start.elapsed().as_secs_f64();
                stream.synchronize();
                time
            })
            .collect();
        median(&mut times)
    }
}

/// Bytes per second of the device's memory.
#[derive(Clone, Copy, Debug)]
pub struct Bandwidth {
    /// Of a large copy, which reads and writes each byte.
    pub copy: f64,
    /// Of a kernel that only reads; `None` where the driver does not compile one, as a simulator's.
    pub read: Option<f64>,
}

impl Bandwidth {
    pub fn measure(effort: Effort, stream: &Stream, quick: bool) -> Self {
        let bytes = if quick { 1 << 20 } else { 2 << 30 };
        let (from, to) = (random_memory(bytes), Memory::filled_on(Device::Cuda, bytes as u64, 0));
        let copy = effort.on_device(stream, || copy(stream, address(&to), address(&from), bytes));
        let read = Reader::compile().map(|reader| {
            bytes as f64 / effort.on_device(stream, || reader.read(stream, address(&from), bytes))
        });
        Self { copy: 2.0 * bytes as f64 / copy, read }
    }

    /// Says which device was measured, and how fast its memory is.
    pub fn report(self, figures: &mut Figures, quick: bool) {
        let name = device_name();
        let read = self
            .read
            .map_or_else(|| "not measured".to_owned(), |read| format!("{:.0} GB/s", 1e-9 * read));
        println!("{name}: copy (read and written) {:.0} GB/s, read only {read}", 1e-9 * self.copy);
        if quick {
            println!("Quick sizes: the programs are tried out, the times mean nothing.");
        }
        figures.add(&serde_json::json!({
            "bench": "bandwidth", "device": name, "quick": quick,
            "copy_gb_per_s": 1e-9 * self.copy, "read_gb_per_s": self.read.map(|read| 1e-9 * read),
        }));
    }
}

/// A kernel that reads memory once.
struct Reader {
    module: sys::CUmodule,
    function: sys::CUfunction,
    sink: Memory,
}

impl Reader {
    const BLOCKS: u32 = 2048;
    const THREADS: u32 = 512;
    /// Bytes that all threads read in one pass.
    const PASS: usize = 64 * (Self::BLOCKS * Self::THREADS) as usize;

    fn compile() -> Option<Self> {
        driver::enter();
        let text = concat!(include_str!("read.ptx"), "\0");
        let (mut module, mut function) = (null_mut(), null_mut());
        // SAFETY: text that ends with NUL, names that do, and places for handles.
        unsafe {
            let loaded = sys::cuModuleLoadData(&mut module, text.as_ptr().cast());
            let found = loaded == sys::CUresult::CUDA_SUCCESS
                && sys::cuModuleGetFunction(&mut function, module, c"read_once".as_ptr())
                    == sys::CUresult::CUDA_SUCCESS;
            found.then(|| Self { module, function, sink: Memory::filled_on(Device::Cuda, 4, 0) })
        }
    }

    /// Reads `bytes` bytes, a multiple of what a pass reads.
    fn read(&self, stream: &Stream, memory: u64, bytes: usize) {
        assert!(bytes.is_multiple_of(Self::PASS) && bytes > 0);
        let mut arguments = [memory, (bytes / Self::PASS) as u64, address(&self.sink)];
        let mut pointers = arguments.each_mut().map(|argument| (&raw mut *argument).cast());
        driver::enter();
        // SAFETY: the kernel has three arguments of 64 bits and reads that many bytes from the
        // first one on.
        driver::check("cuLaunchKernel", unsafe {
            sys::cuLaunchKernel(
                self.function,
                Self::BLOCKS,
                1,
                1,
                Self::THREADS,
                1,
                1,
                0,
                stream.handle().cast(),
                pointers.as_mut_ptr(),
                null_mut(),
            )
        });
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        driver::enter();
        // SAFETY: the handle is given up here and nowhere else.
        unsafe { sys::cuModuleUnload(self.module) };
    }
}

pub fn address(memory: &Memory) -> u64 {
    memory.address() as u64
}

/// Enqueues a copy within the device's memory.
pub fn copy(stream: &Stream, to: u64, from: u64, bytes: usize) {
    driver::enter();
    // SAFETY: both places have that many bytes, as the callers allocate them.
    driver::check("cuMemcpyDtoDAsync", unsafe {
        sys::cuMemcpyDtoDAsync_v2(to, from, bytes, stream.handle().cast())
    });
}

/// Memory of the device that begins with `pattern` and repeats it.
pub fn repeated(pattern: &[u8], bytes: usize) -> Memory {
    let memory = Memory::filled_on(Device::Cuda, bytes as u64, 0);
    let stream = Stream::on(Device::Cuda);
    let mut done = pattern.len().min(bytes);
    memory.write(0, &pattern[..done]);
    while done < bytes {
        let more = done.min(bytes - done);
        copy(&stream, address(&memory) + done as u64, address(&memory), more);
        done += more;
    }
    stream.synchronize();
    memory
}

/// Memory of the device full of small numbers in bf16, as weights, keys and values are.
pub fn random_memory(bytes: usize) -> Memory {
    repeated(&super::checkpoint::random_weights(), bytes)
}

/// A tensor in the device's memory.
pub fn tensor(data: u64, rows: usize, columns: usize, code: u8, bits: u8) -> spec_tensor {
    spec_tensor {
        data: data as *mut c_void,
        device_type: SPEC_DEVICE_CUDA,
        device_id: 0,
        dtype_code: code,
        dtype_bits: bits,
        dtype_lanes: 1,
        ndim: 2,
        shape: [rows as i64, columns as i64, 0, 0],
        strides: [0; 4],
    }
}
