//! Measuring one thing against another in the same run: machines are shared, so that a time alone
//! says little, while a ratio of neighbouring times says much.
#![allow(dead_code)] // Each program uses its own part.

pub mod checkpoint;
pub mod cuda;
pub mod kinds;
pub mod report;
pub mod round;

use speculators::backend::cpu::{OperatingSystemMemory, Pool, Threads};
use std::hint::black_box;
use std::time::Instant;

/// Median times of two things in seconds, and the median of their ratios.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    pub ours: f64,
    pub reference: f64,
    pub ratio: f64,
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs both by turns, after one round that does not count.
pub fn compare(
    rounds: usize,
    mut ours: impl FnMut() -> f64,
    mut reference: impl FnMut() -> f64,
) -> Comparison {
    let _warm = (ours(), reference());
    let pairs: Vec<(f64, f64)> = (0..rounds).map(|_| (ours(), reference())).collect();
    Comparison {
        ours: median(&mut pairs.iter().map(|pair| pair.0).collect::<Vec<_>>()),
        reference: median(&mut pairs.iter().map(|pair| pair.1).collect::<Vec<_>>()),
        ratio: median(&mut pairs.iter().map(|pair| pair.0 / pair.1).collect::<Vec<_>>()),
    }
}

/// Seconds of one run.
pub fn seconds(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

/// Seconds of one of `times` runs.
pub fn seconds_of(times: usize, mut run: impl FnMut()) -> f64 {
    seconds(|| (0..times).for_each(|_| run())) / times as f64
}

/// Memory in huge pages, as weights lie in.
pub struct Memory {
    address: u64,
    bytes: usize,
}

impl Memory {
    /// `bytes` bytes, all resident.
    pub fn new(bytes: usize) -> Self {
        let address = OperatingSystemMemory::allocate(bytes, 64).expect("memory");
        let mut memory = Self { address, bytes };
        memory.as_mut_slice().fill(1);
        memory
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the block of this value, zeroed by the system.
        unsafe { std::slice::from_raw_parts_mut(self.address as *mut u8, self.bytes) }
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.bytes) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        OperatingSystemMemory::release(self.address, self.bytes);
    }
}

/// The threads of a context, for reading memory as fast as they can.
pub struct Reader(Pool);

impl Reader {
    pub fn new(threads: usize) -> Self {
        Self(Pool::new(Threads::Own(threads)).expect("threads"))
    }

    /// Reads all bytes once.
    pub fn read(&self, bytes: &[u8]) {
        let part = bytes.len().div_ceil(self.0.threads() * 8).next_multiple_of(4096);
        self.0.run(bytes.len().div_ceil(part), &|index| {
            black_box(fold(&bytes[index * part..bytes.len().min((index + 1) * part)]));
        });
    }
}

/// Every byte goes into the result; eight words at a time, so that loads are the only cost.
fn fold(bytes: &[u8]) -> u64 {
    let mut words = [0_u64; 16];
    for line in bytes.as_chunks::<128>().0 {
        for (word, eight) in words.iter_mut().zip(line.as_chunks::<8>().0) {
            *word ^= u64::from_ne_bytes(*eight);
        }
    }
    words.iter().fold(0, |all, word| all ^ word)
}

/// Threads of this machine.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
