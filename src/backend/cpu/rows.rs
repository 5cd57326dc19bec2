//! Passes over a row of logits, block by block. All of them give the same bits on every
//! instruction set: lanes are exact, and sums are those of integers.

use super::memory::element;
use super::simd::{LANES, Lanes, dispatched};
use super::vector::widen_in;
use crate::sampling::{
    EXP2, LOWEST_POWER, Scale, WEIGHT_BITS, WEIGHT_ONE, from_order, order, whole,
};
use crate::tensor::Dtype;

/// Elements of a block: what a pass skips or sums as a whole.
pub const BLOCK: usize = 256;

/// Buckets of a histogram.
pub const BUCKETS: usize = 1 << BUCKET_BITS;

/// The binary logarithm of [`BUCKETS`].
pub const BUCKET_BITS: u32 = 11;

/// A row of logits in memory.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The address of the first logit.
    pub address: u64,
    /// The element type.
    pub dtype: Dtype,
    /// The number of logits.
    pub len: usize,
    /// The address of one `i32` per logit; where it is negative, the logit counts as -inf.
    pub token_ids: Option<u64>,
}

impl Row {
    /// The number of blocks.
    pub fn blocks(&self) -> usize {
        self.len.div_ceil(BLOCK)
    }

    /// One logit.
    ///
    /// # Safety
    ///
    /// The row's memory is valid; `index` lies in it.
    pub unsafe fn logit(&self, index: usize) -> f32 {
        // SAFETY: as this function's contract.
        unsafe { element(self.address + (index * self.dtype.size()) as u64, self.dtype) }
    }
}

/// The values of a block.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Block<T>(pub [T; BLOCK]);

/// What a histogram counts, and in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// One per logit, in the order of the logits; the key is their [`order`].
    Count,
    /// The weights, in the order of the relative weights; the key is their bits.
    Weight,
}

/// A histogram over the keys `low ..= high`, with buckets of `1 << shift` keys.
#[derive(Clone, Copy, Debug)]
pub struct Buckets {
    /// What is counted.
    pub measure: Measure,
    /// The lowest key.
    pub low: u32,
    /// The highest key.
    pub high: u32,
    /// The binary logarithm of a bucket's keys.
    pub shift: u32,
    /// The logits that can have such keys: not less than this,
    pub lowest: f32,
    /// and not more than this.
    pub highest: f32,
}

impl Buckets {
    /// The finest buckets for an interval of keys and the logits that can have them.
    pub fn over(measure: Measure, (low, high): (u32, u32), (lowest, highest): (f32, f32)) -> Self {
        let bits = 32 - (high - low).leading_zeros();
        let shift = bits.saturating_sub(BUCKET_BITS);
        Self { measure, low, high, shift, lowest, highest }
    }

    /// The number of buckets in use.
    pub fn len(&self) -> usize {
        ((self.high - self.low) >> self.shift) as usize + 1
    }
}

/// The block's logits: where they are, or converted and padded with -inf in `buffer`.
///
/// # Safety
///
/// As for [`Lanes`]; the row's memory is valid; `index` is one of its blocks.
#[inline(always)]
unsafe fn logits<L: Lanes>(row: &Row, index: usize, buffer: &mut Block<f32>) -> *const f32 {
    let start = index * BLOCK;
    let len = BLOCK.min(row.len - start);
    let from = row.address + (start * row.dtype.size()) as u64;
    if row.dtype == Dtype::F32 && len == BLOCK && row.token_ids.is_none() {
        return from as *const f32;
    }
    // SAFETY: `len` elements from `start` on are in the row.
    unsafe { widen_in::<L>(from, row.dtype, &mut buffer.0[..len]) };
    buffer.0[len..].fill(f32::NEG_INFINITY);
    if let Some(ids) = row.token_ids {
        for lane in 0..len {
            // SAFETY: one id per logit, by the contract of Row.
            if unsafe { (ids as *const i32).add(start + lane).read() } < 0 {
                buffer.0[lane] = f32::NEG_INFINITY;
            }
        }
    }
    buffer.0.as_ptr()
}

/// The powers of two of sixteen logits, not below [`LOWEST_POWER`] if the logits are not below the
/// scale's floor.
///
/// # Safety
///
/// As for [`Lanes`].
#[inline(always)]
unsafe fn powers<L: Lanes>(logits: L, scale: &Scale) -> L {
    // SAFETY: lane arithmetic only. The bound is for +inf, whose peak is a finite number.
    unsafe { logits.sub(L::splat(scale.peak)).mul(L::splat(scale.factor)).min(L::splat(0.0)) }
}

/// The relative weights of sixteen powers.
///
/// # Safety
///
/// As for [`Lanes`].
#[inline(always)]
unsafe fn exp2<L: Lanes>(powers: L) -> L {
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the lowest bits.
    const INTEGER: f32 = 12_582_912.0 + WEIGHT_BITS as f32;
    // SAFETY: lane arithmetic only.
    unsafe {
        let shifted = powers.add(L::splat(INTEGER));
        let fraction = powers.sub(shifted.sub(L::splat(INTEGER)));
        // Multiples of 2^-22: neighbours then lie further apart than the polynomial errs, so that
        // the result never falls when the logit rises.
        let fraction = fraction.add(L::splat(3.0)).sub(L::splat(3.0));
        let mut sum = L::splat(EXP2[5]);
        for &coefficient in EXP2[..5].iter().rev() {
            sum = sum.fma(fraction, L::splat(coefficient));
        }
        sum.fma(fraction, L::splat(1.0)).add_exponent(shifted)
    }
}

/// The relative weights of sixteen logits.
///
/// # Safety
///
/// As for [`Lanes`].
#[inline(always)]
unsafe fn relative<L: Lanes>(logits: L, scale: &Scale) -> L {
    // What lies below the floor, NaN among it, may have a power of any kind: it is left out.
    // SAFETY: lane arithmetic only.
    unsafe { exp2(powers(logits, scale)).where_from(logits, L::splat(scale.floor)) }
}

/// The sum of the weights of a block of logits.
///
/// A weight is taken apart by adding numbers so large that the sum has no place for the rest: the
/// first leaves multiples of 2^21, the second integers, and both stand in the lowest bits.
///
/// # Safety
///
/// As for [`Lanes`]; `logits` points to a block.
#[inline(always)]
unsafe fn total<L: Lanes>(logits: *const f32, scale: &Scale) -> u64 {
    const GROUPS: u32 = (BLOCK / LANES) as u32;
    const HIGH: f32 = 1.5 * (1_u64 << 44) as f32;
    const LOW: f32 = 1.5 * (1_u64 << 23) as f32;
    let (mut highs, mut lows) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    // SAFETY: a block is read, by this function's contract.
    unsafe {
        let (mut high_sum, mut low_sum) = (L::splat(0.0), L::splat(0.0));
        for lane in (0..BLOCK).step_by(LANES) {
            let weights = relative::<L>(L::load(logits.add(lane)), scale);
            let high = weights.add(L::splat(HIGH));
            let low = weights.sub(high.sub(L::splat(HIGH))).add(L::splat(LOW));
            high_sum = high_sum.add_bits(high);
            low_sum = low_sum.add_bits(low);
        }
        high_sum.store(highs.as_mut_ptr());
        low_sum.store(lows.as_mut_ptr());
    }
    let mut sum = 0_i64;
    for (high, low) in highs.iter().zip(&lows) {
        // The parts sum to less than 2^26 in a lane: the wrapping is undone.
        let high = high.to_bits().wrapping_sub(HIGH.to_bits().wrapping_mul(GROUPS));
        let low = low.to_bits().wrapping_sub(LOW.to_bits().wrapping_mul(GROUPS));
        sum += (i64::from(high as i32) << 21) + i64::from(low as i32);
    }
    sum as u64
}

/// The largest of a block that is not NaN, or -inf.
///
/// # Safety
///
/// As for [`Lanes`]; `logits` points to a block.
#[inline(always)]
unsafe fn largest<L: Lanes>(logits: *const f32) -> f32 {
    const CHAINS: usize = 4;
    let mut lanes = [0.0; LANES];
    // SAFETY: a block is read, by this function's contract.
    unsafe {
        let mut most = [L::splat(f32::NEG_INFINITY); CHAINS];
        for group in (0..BLOCK).step_by(LANES * CHAINS) {
            for (chain, most) in most.iter_mut().enumerate() {
                *most = L::load(logits.add(group + chain * LANES)).max(*most);
            }
        }
        most[0].max(most[1]).max(most[2].max(most[3])).store(lanes.as_mut_ptr());
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] =
                if lanes[lane + half] > lanes[lane] { lanes[lane + half] } else { lanes[lane] };
        }
    }
    lanes[0]
}

/// # Safety
///
/// As for [`Lanes`]; the row's memory is valid, its blocks begin .. end have a place at `peaks`.
#[inline(always)]
unsafe fn peaks_generic<L: Lanes>(row: &Row, begin: usize, end: usize, peaks: *mut f32) {
    let mut buffer = Block([0.0; BLOCK]);
    for index in begin..end {
        // SAFETY: as this function's contract.
        unsafe { peaks.add(index).write(largest::<L>(logits::<L>(row, index, &mut buffer))) };
    }
}

/// # Safety
///
/// As for [`Lanes`]; the row's memory is valid, and so are `peaks` and `sums` for its blocks
/// begin .. end, and `histogram` for [`BUCKETS`] elements where there are buckets.
#[inline(always)]
unsafe fn sums_generic<L: Lanes>(
    row: &Row,
    (begin, end): (usize, usize),
    scale: &Scale,
    (peaks, sums): (*const f32, *mut u64),
    buckets: Option<&Buckets>,
    histogram: *mut u64,
) {
    let mut buffer = Block([0.0; BLOCK]);
    for index in begin..end {
        // SAFETY: as this function's contract.
        unsafe {
            let peak = peaks.add(index).read();
            if peak < scale.floor {
                sums.add(index).write(0);
                continue;
            }
            let logits = logits::<L>(row, index, &mut buffer);
            sums.add(index).write(total::<L>(logits, scale));
            if let Some(buckets) = buckets.filter(|buckets| peak >= buckets.lowest) {
                count::<L>(logits, scale, buckets, histogram);
            }
        }
    }
}

/// Adds a block of logits to a histogram.
///
/// # Safety
///
/// As for [`Lanes`]; `logits` points to a block and `histogram` to [`BUCKETS`] elements.
#[inline(always)]
unsafe fn count<L: Lanes>(
    logits: *const f32,
    scale: &Scale,
    buckets: &Buckets,
    histogram: *mut u64,
) {
    let Buckets { measure, low, high, shift, lowest, highest } = *buckets;
    let mut found = Block([0.0_f32; BLOCK]);
    let mut len = 0;
    // SAFETY: a block is read; each group stores sixteen elements from `len` on at most, and `len`
    // grows by sixteen per group at most. Buckets are at most (high - low) >> shift.
    unsafe {
        let to = found.0.as_mut_ptr();
        for lane in (0..BLOCK).step_by(LANES) {
            len += L::load(logits.add(lane)).store_between(lowest, highest, to.add(len));
        }
        if measure == Measure::Weight {
            for lane in (0..len).step_by(LANES) {
                relative::<L>(L::load(to.add(lane)), scale).store(to.add(lane));
            }
        }
        for &value in found.0.get_unchecked(..len) {
            let (key, mass) = match measure {
                Measure::Count => (order(value), 1),
                Measure::Weight => (value.to_bits(), whole(value)),
            };
            // The bounds of logits may let some in whose keys lie beside: hence both comparisons.
            if key >= low && key <= high {
                *histogram.add(((key - low) >> shift) as usize) += mass;
            }
        }
    }
}

/// # Safety
///
/// As for [`Lanes`]; the row's memory is valid, `peaks` is NULL or valid for its blocks
/// begin .. end, and `histogram` for [`BUCKETS`] elements.
#[inline(always)]
unsafe fn histogram_generic<L: Lanes>(
    row: &Row,
    (begin, end): (usize, usize),
    scale: &Scale,
    peaks: *const f32,
    buckets: &Buckets,
    histogram: *mut u64,
) {
    let mut buffer = Block([0.0; BLOCK]);
    for index in begin..end {
        // SAFETY: as this function's contract.
        unsafe {
            if peaks.is_null() || peaks.add(index).read() >= buckets.lowest {
                let logits = logits::<L>(row, index, &mut buffer);
                count::<L>(logits, scale, buckets, histogram);
            }
        }
    }
}

/// # Safety
///
/// As for [`Lanes`]; the row's memory is valid, `peaks` is valid for its blocks begin .. end, and
/// `to` for `room` elements, at least a block.
#[inline(always)]
unsafe fn collect_generic<L: Lanes>(
    row: &Row,
    (begin, end): (usize, usize),
    peaks: *const f32,
    (lowest, highest): (f32, f32),
    to: *mut f32,
    room: usize,
) -> Option<usize> {
    let mut buffer = Block([0.0; BLOCK]);
    let mut len = 0;
    for index in begin..end {
        // SAFETY: as this function's contract; what a block adds fits, as it is checked before.
        unsafe {
            if peaks.add(index).read() < lowest {
                continue;
            }
            if room - len < BLOCK {
                return None;
            }
            let logits = logits::<L>(row, index, &mut buffer);
            for lane in (0..BLOCK).step_by(LANES) {
                len += L::load(logits.add(lane)).store_between(lowest, highest, to.add(len));
            }
        }
    }
    Some(len)
}

/// # Safety
///
/// As for [`Lanes`]; `values` is valid for `len` elements rounded up to whole groups.
#[inline(always)]
unsafe fn relatives_generic<L: Lanes>(values: *mut f32, len: usize, scale: &Scale) {
    for lane in (0..len).step_by(LANES) {
        // SAFETY: as this function's contract.
        unsafe { relative::<L>(L::load(values.add(lane)), scale).store(values.add(lane)) };
    }
}

/// # Safety
///
/// As for [`Lanes`]; the row's memory is valid, `index` is one of its blocks.
#[inline(always)]
unsafe fn weights_generic<L: Lanes>(
    row: &Row,
    index: usize,
    scale: &Scale,
    weights: &mut Block<u64>,
) {
    let mut buffer = Block([0.0; BLOCK]);
    let mut block = Block([0.0_f32; BLOCK]);
    // SAFETY: as this function's contract.
    unsafe {
        let logits = logits::<L>(row, index, &mut buffer);
        for lane in (0..BLOCK).step_by(LANES) {
            let weights = relative::<L>(L::load(logits.add(lane)), scale);
            weights.store(block.0.as_mut_ptr().add(lane));
        }
    }
    for (weight, &relative) in weights.0.iter_mut().zip(&block.0) {
        *weight = whole(relative);
    }
}

/// # Safety
///
/// As for [`Lanes`].
#[inline(always)]
unsafe fn lowest_logit_generic<L: Lanes>(scale: &Scale, least: f32) -> f32 {
    // The peak, or for rows with +inf the largest finite number, reaches every weight. In every
    // turn sixteen logits between the two ends are tried.
    let (mut low, mut high) = (order(f32::NEG_INFINITY), order(scale.peak));
    while low < high {
        let step = (high - low) / LANES as u32 + 1;
        let key = |lane: usize| high.min(low + lane as u32 * step);
        let mut lanes: [f32; LANES] = std::array::from_fn(|lane| from_order(key(lane)));
        // SAFETY: sixteen elements on the stack.
        unsafe {
            let powers = powers(L::load(lanes.as_ptr()), scale).max(L::splat(LOWEST_POWER));
            exp2(powers).store(lanes.as_mut_ptr());
        }
        let reach = lanes.iter().position(|&weight| weight >= least);
        (low, high) = match reach {
            Some(0) => (low, low),
            Some(lane) => (key(lane - 1) + 1, key(lane)),
            None => (key(LANES - 1) + 1, high),
        };
    }
    from_order(high)
}

dispatched! {
    /// Writes the largest logit of each of the blocks begin .. end that is not NaN, or -inf.
    ///
    /// # Safety
    ///
    /// The row's memory is valid; `peaks` has a place for each of its blocks.
    pub unsafe fn peaks(row: &Row, begin: usize, end: usize, peaks: *mut f32) = peaks_generic
}

dispatched! {
    /// Writes the sum of the weights of each of the blocks of a range, and adds the weights to a
    /// histogram if there are buckets.
    ///
    /// # Safety
    ///
    /// The row's memory is valid; `peaks` are its blocks' largest logits, `sums` has a place for
    /// each, and `histogram` has [`BUCKETS`] elements if there are buckets.
    pub unsafe fn sums(
        row: &Row,
        range: (usize, usize),
        scale: &Scale,
        blocks: (*const f32, *mut u64),
        buckets: Option<&Buckets>,
        histogram: *mut u64,
    ) = sums_generic
}

dispatched! {
    /// Adds the blocks of a range to a histogram, leaving out those whose peak is too low.
    ///
    /// # Safety
    ///
    /// The row's memory is valid; `peaks` is NULL or has its blocks' largest logits, and
    /// `histogram` has [`BUCKETS`] elements.
    pub unsafe fn histogram(
        row: &Row,
        range: (usize, usize),
        scale: &Scale,
        peaks: *const f32,
        buckets: &Buckets,
        histogram: *mut u64,
    ) = histogram_generic
}

dispatched! {
    /// Writes the logits of a range of blocks that lie between two bounds, and says how many they
    /// are; `None` when there may be no room for those of another block.
    ///
    /// # Safety
    ///
    /// The row's memory is valid; `peaks` has its blocks' largest logits, and `to` has `room`
    /// elements, at least a block.
    pub unsafe fn collect(
        row: &Row,
        range: (usize, usize),
        peaks: *const f32,
        bounds: (f32, f32),
        to: *mut f32,
        room: usize,
    ) -> Option<usize> = collect_generic
}

dispatched! {
    /// Puts their relative weights in the place of logits.
    ///
    /// # Safety
    ///
    /// `values` is valid for `len` elements, rounded up to a multiple of sixteen.
    pub unsafe fn relatives(values: *mut f32, len: usize, scale: &Scale) = relatives_generic
}

dispatched! {
    /// The weights of a block; beyond the row's end they are 0.
    ///
    /// # Safety
    ///
    /// The row's memory is valid; `index` is one of its blocks.
    pub unsafe fn weights(row: &Row, index: usize, scale: &Scale, weights: &mut Block<u64>) = weights_generic
}

dispatched! {
    /// The lowest logit whose relative weight, the floor aside, is at least `least`, which is at
    /// most the largest there is.
    ///
    /// # Safety
    ///
    /// None beyond that of the instruction set.
    pub unsafe fn lowest_logit(scale: &Scale, least: f32) -> f32 = lowest_logit_generic
}

/// The place of the first logit equal to `value` in a block.
///
/// # Safety
///
/// The row's memory is valid; `index` is one of its blocks.
pub unsafe fn find(row: &Row, index: usize, value: f32) -> Option<usize> {
    let begin = index * BLOCK;
    let is_candidate = |place: usize| {
        // SAFETY: one id per logit, by the contract of Row.
        row.token_ids.is_none_or(|ids| unsafe { (ids as *const i32).add(place).read() } >= 0)
    };
    (begin..row.len.min(begin + BLOCK)).find(|&place| {
        // SAFETY: as this function's contract.
        unsafe { row.logit(place) == value && is_candidate(place) }
    })
}

const _: () = assert!(BLOCK.is_multiple_of(4 * LANES));
// Every sum of weights fits 63 bits for rows below 2^21 logits, with the ones of `total` on top.
const _: () = assert!(WEIGHT_ONE == 1 << 42);
