//! The distribution that a row of logits stands for: its filters, and draws from it.

use super::block_heads::select_largest_of;
use super::memory::elements;
use super::rows::{self, BLOCK, BUCKETS, Block, Buckets, Measure, Row};
use super::simd::Isa;
use super::threads::Pool;
use crate::sampling::{
    Parameters, Scale, WEIGHT_ONE, fraction, from_order, log2_digits, order, scaled, top_p_limit,
    whole,
};
use crate::tensor::{Carver, Dtype, Span};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most pieces that are made of a row.
pub const MOST_PARTS: usize = 64;

/// How the blocks of a row are shared out.
#[derive(Clone, Copy, Debug)]
pub struct Split<'a> {
    /// Who works on them.
    pub pool: Option<&'a Pool>,
    /// How many pieces are made of a row, at most [`MOST_PARTS`].
    pub parts: usize,
}

impl Split<'_> {
    /// Everything on the calling thread.
    pub const NONE: Self = Self { pool: None, parts: 1 };

    /// Pieces of fewer blocks than this are not worth handing out.
    const LEAST_BLOCKS: usize = 32;

    pub(super) fn run(&self, blocks: usize, task: &(dyn Fn(usize, (usize, usize)) + Sync)) {
        let parts = self.parts.min(blocks / Self::LEAST_BLOCKS).max(1);
        match self.pool {
            Some(pool) if parts > 1 => {
                let piece = |part| (part * blocks / parts, (part + 1) * blocks / parts);
                pool.run(parts, &|part| task(part, piece(part)));
            }
            _ => task(0, (0, blocks)),
        }
    }
}

/// Scratch for one row: per block its largest logit and its sum of weights, per part a histogram.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    peaks: Span<f32>,
    sums: Span<u64>,
    histograms: Span<u64>,
}

impl Scratch {
    /// Scratch for rows of `columns` logits in at most `parts` parts.
    pub fn carve(carver: &mut Carver, columns: usize, parts: usize) -> Self {
        let blocks = columns.div_ceil(BLOCK);
        Self {
            peaks: carver.span(blocks),
            sums: carver.span(blocks),
            histograms: carver.span(parts.saturating_mul(BUCKETS)),
        }
    }
}

/// What the weights of a row are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Law {
    /// All of it lies on one token.
    Certain(usize),
    /// Weights of the logits.
    Scaled {
        /// How logits become weights.
        scale: Scale,
        /// The sum of the weights.
        sum: u64,
    },
}

impl Law {
    /// The sum of the weights, at least [`WEIGHT_ONE`].
    pub const fn sum(&self) -> u64 {
        match *self {
            Self::Certain(_) => WEIGHT_ONE,
            Self::Scaled { sum, .. } => sum,
        }
    }
}

/// A row of logits with the means to read it.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    isa: Isa,
    pub(super) split: Split<'a>,
    pub(super) row: Row,
    scratch: Scratch,
}

impl<'a> Reader<'a> {
    /// A reader of `row`, which must not be empty.
    ///
    /// # Safety
    ///
    /// The row's memory is valid, and not written, as long as the reader is used; the scratch was
    /// carved for rows at least as long and for the parts of the split, and is used by nothing
    /// else meanwhile.
    pub unsafe fn new(isa: Isa, split: Split<'a>, row: Row, scratch: Scratch) -> Self {
        Self { isa, split, row, scratch }
    }

    /// The peak of each block, once [`Reader::scan`] has run.
    fn peaks(&self) -> &[f32] {
        // SAFETY: scratch of this reader, by the contract of `new`.
        unsafe { elements(self.scratch.peaks.slice(0, self.row.blocks())) }
    }

    /// The sum of each block, once [`Reader::law`] has run.
    fn sums(&self) -> &[u64] {
        // SAFETY: as above.
        unsafe { elements(self.scratch.sums.slice(0, self.row.blocks())) }
    }

    /// The histogram of a part; parts use theirs one after the other or on a thread each.
    fn histogram(&self, part: usize) -> *mut u64 {
        self.scratch.histograms.slice(part * BUCKETS, BUCKETS).address() as *mut u64
    }

    fn clear_histograms(&self) {
        for part in 0..self.split.parts {
            // SAFETY: scratch of this reader, and no pass is running.
            unsafe { self.histogram(part).write_bytes(0, BUCKETS) };
        }
    }

    /// Finds the peak of each block, and of the row; `None` where there is no candidate.
    fn scan(&self) -> Option<f32> {
        let peaks = self.scratch.peaks;
        self.split.run(self.row.blocks(), &|_, (begin, end)| {
            // SAFETY: the contract of `new`; each part writes the peaks of its own blocks.
            unsafe { rows::peaks(self.isa, &self.row, begin, end, peaks.address() as *mut f32) };
        });
        let largest = self.peaks().iter().copied().fold(f32::NEG_INFINITY, f32::max);
        (largest > f32::NEG_INFINITY).then_some(largest)
    }

    /// The place of the first logit equal to `largest`, the largest of all.
    fn first(&self, largest: f32) -> Option<usize> {
        let block = self.peaks().iter().position(|&peak| peak == largest)?;
        // SAFETY: the contract of `new`; the block is one of the row's.
        unsafe { rows::find(&self.row, block, largest) }
    }

    /// The place of the largest logit, of equal ones the first; `None` where there is no candidate.
    pub fn argmax(&self) -> Option<usize> {
        self.first(self.scan()?)
    }

    /// The law of the row; `None` where there is no candidate.
    pub fn law(&self, parameters: &Parameters) -> Option<Law> {
        let largest = self.scan()?;
        if parameters.is_greedy() {
            return self.first(largest).map(Law::Certain);
        }
        let mut scale = Scale::new(largest, parameters.temperature);
        // Relative weights up to one half round to 0. Blocks of nothing else need no look.
        // What is -inf is no candidate at any temperature, not even where all others weigh the same.
        scale.floor = scale.floor.max(self.lowest_logit(&scale, 0.5)).max(f32::MIN);
        if parameters.min_p > 0.0 {
            let floor = self.lowest_logit(&scale, fraction(parameters.min_p));
            scale.floor = scale.floor.max(floor);
        }
        if parameters.top_k > 0
            && (parameters.top_k as usize) < self.row.len
            && let Some(kth) = self.kth_largest(parameters.top_k as usize, largest)
        {
            scale.floor = scale.floor.max(kth);
        }
        // Top-p takes its share of what the other filters have left.
        if let Some(floor) = self.nucleus(&scale, parameters.top_p) {
            scale.floor = scale.floor.max(floor);
        }
        Some(Law::Scaled { scale, sum: self.weigh(&scale, None) })
    }

    /// Sums the weights block by block, and into histograms if there are buckets.
    fn weigh(&self, scale: &Scale, buckets: Option<&Buckets>) -> u64 {
        let (peaks, sums) = (self.scratch.peaks, self.scratch.sums);
        self.split.run(self.row.blocks(), &|part, range| {
            let blocks = (peaks.address() as *const f32, sums.address() as *mut u64);
            // SAFETY: the contract of `new`; the peaks are there, and each part writes the sums of
            // its own blocks and its own histogram.
            unsafe {
                let histogram = self.histogram(part);
                rows::sums(self.isa, &self.row, range, scale, blocks, buckets, histogram);
            }
        });
        self.sums().iter().sum()
    }

    fn lowest_logit(&self, scale: &Scale, least: f32) -> f32 {
        // SAFETY: nothing but arithmetic.
        unsafe { rows::lowest_logit(self.isa, scale, least) }
    }

    /// The k-th largest logit; `None` where there are not so many.
    fn kth_largest(&self, k: usize, largest: f32) -> Option<f32> {
        let any = Scale { peak: largest, factor: 0.0, floor: f32::NEG_INFINITY };
        let from = |low| {
            let keys = (order(low), order(largest));
            Buckets::over(Measure::Count, keys, (low, largest))
        };
        // The k-th largest of the peaks is not above that of all: most blocks need no look.
        let candidates = self.peaks().iter().filter(|&&peak| peak > f32::NEG_INFINITY);
        let lowest_peak = candidates.copied().fold(largest, f32::min);
        let buckets = from(lowest_peak);
        self.clear_histograms();
        let range = (0, self.peak_row().blocks());
        // SAFETY: the peaks are there, and no other pass is running.
        unsafe {
            let none = std::ptr::null();
            let histogram = self.histogram(0);
            rows::histogram(self.isa, &self.peak_row(), range, &any, none, &buckets, histogram);
        }
        let low = self.boundary(buckets.len(), k as u64).map_or(f32::MIN, |(bucket, _)| {
            from_order(buckets.low + ((bucket as u32) << buckets.shift))
        });
        self.narrow(&any, from(low), k as u64, false).map(from_order)
    }

    /// The peaks as a row.
    fn peak_row(&self) -> Row {
        Row {
            address: self.scratch.peaks.address(),
            dtype: Dtype::F32,
            len: self.row.blocks(),
            token_ids: None,
        }
    }

    /// The lowest logit that top-p keeps; `None` where it keeps all.
    fn nucleus(&self, scale: &Scale, top_p: f32) -> Option<f32> {
        if top_p >= 1.0 || top_p.is_nan() {
            return None;
        }
        // The weights up to `cut` cannot sum to more than what top-p leaves out, as the peaks
        // alone weigh this much; a margin covers the rounding of these few operations.
        let peaks = self.weigh_peaks(scale);
        let left_out = (1.0 - f64::from(top_p.max(0.0))) * peaks as f64;
        let cut = (left_out / self.row.len as f64 * 0.999 - 1.0).max(0.25) as f32;
        let highest = WEIGHT_ONE as f32;
        let lowest = self.lowest_logit(scale, cut).max(scale.floor);
        let keys = (cut.to_bits(), highest.to_bits());
        let buckets = Buckets::over(Measure::Weight, keys, (lowest, f32::INFINITY));
        self.clear_histograms();
        let sum = self.weigh(scale, Some(&buckets));
        let limit = top_p_limit(top_p, sum);
        let least = self.narrow(scale, buckets, limit, true)?;
        Some(self.lowest_logit(scale, f32::from_bits(least)))
    }

    /// The weights of the peaks: at most those of the row.
    fn weigh_peaks(&self, scale: &Scale) -> u64 {
        let row = self.peak_row();
        let mut weights = Block([0; BLOCK]);
        let mut sum = 0;
        for index in 0..row.blocks() {
            // SAFETY: the peaks are there; the block is one of theirs.
            unsafe { rows::weights(self.isa, &row, index, scale, &mut weights) };
            sum += weights.0.iter().sum::<u64>();
        }
        sum
    }

    /// The lowest key that is kept if a key is kept where the mass strictly above it is less than
    /// `limit`; `None` where the mass of all keys does not reach the limit. With `is_counted` the
    /// histograms are there for the first turn.
    fn narrow(
        &self,
        scale: &Scale,
        mut buckets: Buckets,
        limit: u64,
        mut is_counted: bool,
    ) -> Option<u32> {
        let mut above = 0;
        loop {
            if !is_counted {
                if let Some(len) = self.collect(&buckets) {
                    return self.settle(scale, &buckets, len, limit - above);
                }
                self.clear_histograms();
                self.count(scale, &buckets);
            }
            is_counted = false;
            let (bucket, mass) = self.boundary(buckets.len(), limit - above)?;
            above += mass;
            let low = buckets.low + ((bucket as u32) << buckets.shift);
            if buckets.shift == 0 {
                return Some(low);
            }
            let high = buckets.high.min(low + ((1 << buckets.shift) - 1));
            let logits = match buckets.measure {
                Measure::Count => (from_order(low), from_order(high)),
                Measure::Weight => self.logits_between(scale, (low, high), buckets.highest),
            };
            buckets = Buckets::over(buckets.measure, (low, high), logits);
        }
    }

    /// The logits whose relative weights have bits from `low` to `high`.
    fn logits_between(&self, scale: &Scale, (low, high): (u32, u32), highest: f32) -> (f32, f32) {
        let lowest = self.lowest_logit(scale, f32::from_bits(low)).max(scale.floor);
        if f32::from_bits(high) >= WEIGHT_ONE as f32 {
            return (lowest, highest);
        }
        // What lies above belongs to the next bits; it does no harm that it is one logit more.
        (lowest, self.lowest_logit(scale, f32::from_bits(high + 1)))
    }

    fn count(&self, scale: &Scale, buckets: &Buckets) {
        let peaks = self.scratch.peaks;
        self.split.run(self.row.blocks(), &|part, range| {
            let (peaks, histogram) = (peaks.address() as *const f32, self.histogram(part));
            // SAFETY: the contract of `new`; the peaks are there, and each part has its own
            // histogram.
            unsafe {
                rows::histogram(self.isa, &self.row, range, scale, peaks, buckets, histogram);
            }
        });
    }

    /// Puts the logits that the buckets are for in the place of the histograms, if they are few,
    /// and says how many they are.
    fn collect(&self, buckets: &Buckets) -> Option<usize> {
        let peaks = self.scratch.peaks;
        let counts = [const { AtomicUsize::new(0) }; MOST_PARTS];
        self.split.run(self.row.blocks(), &|part, range| {
            let (peaks, to) = (peaks.address() as *const f32, self.histogram(part).cast::<f32>());
            let bounds = (buckets.lowest, buckets.highest);
            // SAFETY: the contract of `new`; the peaks are there, and each part has the room of
            // its own histogram, of which less is asked for.
            let count =
                unsafe { rows::collect(self.isa, &self.row, range, peaks, bounds, to, FEW) };
            counts[part].store(count.unwrap_or(usize::MAX), Ordering::Relaxed);
        });
        let mut len = 0;
        for (part, count) in counts.iter().enumerate().take(self.split.parts) {
            let count = count.load(Ordering::Relaxed);
            if count > FEW - len {
                return None;
            }
            // SAFETY: parts are behind one another, and no pass is running; `len` never passes
            // the first part's room.
            unsafe {
                let to = self.histogram(0).cast::<f32>().add(len);
                to.copy_from(self.histogram(part).cast::<f32>(), count);
            }
            len += count;
        }
        Some(len)
    }

    /// What [`Reader::narrow`] looks for, among the `len` logits that [`Reader::collect`] has put
    /// where the histograms are.
    fn settle(&self, scale: &Scale, buckets: &Buckets, len: usize, limit: u64) -> Option<u32> {
        // SAFETY: scratch of this reader, written so far, which nothing else uses meanwhile.
        let values =
            unsafe { std::slice::from_raw_parts_mut(self.histogram(0).cast::<f32>(), len) };
        if buckets.measure == Measure::Weight {
            // SAFETY: the values begin a histogram, which is longer than they are by a group.
            unsafe { rows::relatives(self.isa, values.as_mut_ptr(), values.len(), scale) };
        }
        values.sort_unstable_by(|left, right| right.total_cmp(left));
        let mut above = 0;
        for equals in values.chunk_by(|left, right| left == right) {
            let (key, mass) = match buckets.measure {
                Measure::Count => (order(equals[0]), 1),
                Measure::Weight => (equals[0].to_bits(), whole(equals[0])),
            };
            // The upper bound of the logits may let some in that belong above.
            if key <= buckets.high {
                above += mass * equals.len() as u64;
                if above >= limit {
                    return Some(key);
                }
            }
        }
        None
    }

    /// The highest of the buckets with which the mass from above reaches `limit`, and the mass
    /// above it.
    fn boundary(&self, buckets: usize, limit: u64) -> Option<(usize, u64)> {
        // SAFETY: scratch of this reader, and no pass is running; parts do not overlap.
        let part = |part| unsafe { std::slice::from_raw_parts_mut(self.histogram(part), buckets) };
        let merged = part(0);
        for other in 1..self.split.parts {
            for (mass, other) in merged.iter_mut().zip(part(other).iter()) {
                *mass += other;
            }
        }
        let mut above = 0;
        for (index, group) in merged.chunks(GROUP).enumerate().rev() {
            let mass: u64 = group.iter().sum();
            if above + mass < limit {
                above += mass;
                continue;
            }
            for (bucket, mass) in group.iter().enumerate().rev() {
                if above + mass >= limit {
                    return Some((index * GROUP + bucket, above));
                }
                above += mass;
            }
        }
        None
    }

    /// The weights of a block by a law.
    pub(super) fn weights(&self, law: &Law, block: usize, weights: &mut Block<u64>) {
        match law {
            Law::Certain(place) => {
                weights.0.fill(0);
                if place / BLOCK == block {
                    weights.0[place % BLOCK] = WEIGHT_ONE;
                }
            }
            // SAFETY: the contract of `new`; callers name blocks of the row.
            Law::Scaled { scale, .. } => unsafe {
                rows::weights(self.isa, &self.row, block, scale, weights);
            },
        }
    }

    /// The sum of a block's weights, if the law is the last one that was asked for.
    pub(super) fn block_sum(&self, law: &Law, block: usize) -> u64 {
        match law {
            Law::Certain(place) if place / BLOCK == block => WEIGHT_ONE,
            Law::Certain(_) => 0,
            Law::Scaled { .. } => self.sums()[block],
        }
    }

    /// The weight of one place.
    pub fn weight(&self, law: &Law, place: usize) -> u64 {
        let mut weights = Block([0; BLOCK]);
        self.weights(law, place / BLOCK, &mut weights);
        weights.0[place % BLOCK]
    }

    /// Writes the weight of each place of the row.
    pub(super) fn write_weights(&self, law: &Law, weights: &mut [u64]) {
        let mut block = Block([0; BLOCK]);
        for (index, weights) in weights.chunks_mut(BLOCK).enumerate() {
            if self.block_sum(law, index) == 0 {
                weights.fill(0);
                continue;
            }
            self.weights(law, index, &mut block);
            weights.copy_from_slice(&block.0[..weights.len()]);
        }
    }

    /// The last of the `k` largest logits, of fewer candidates the least, and the largest; `None`
    /// where there is no candidate.
    pub fn largest_from(&self, k: usize) -> Option<(f32, f32)> {
        let largest = self.scan()?;
        let kth = if k < self.row.len { self.kth_largest(k, largest) } else { None };
        Some((kth.unwrap_or(f32::MIN), largest))
    }

    /// The largest logit, if the row has been scanned since it was last written.
    pub fn largest(&self) -> f32 {
        self.peaks().iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }

    /// One logit; NaN counts as -inf.
    pub fn logit(&self, place: usize) -> f32 {
        // SAFETY: the contract of `new`; callers name places of the row.
        let logit = unsafe { self.row.logit(place) };
        if logit.is_nan() { f32::NEG_INFINITY } else { logit }
    }

    /// How many logits are larger than this one, in a row that has been scanned.
    pub fn count_above(&self, logit: f32) -> usize {
        self.places_in_blocks(move |peak| peak > logit)
            .filter(|&place| self.logit(place) > logit)
            .count()
    }

    /// The largest logits of a row that has been scanned and where they are, in falling order; of
    /// equal ones the first is first. Returns how many there are.
    pub fn select(&self, places: &mut [i32], logits: &mut [f32]) -> usize {
        let k = logits.len();
        if k == 0 {
            return 0;
        }
        let kth = if k < self.row.len { self.kth_largest(k, self.largest()) } else { None };
        let kth = kth.unwrap_or(f32::NEG_INFINITY);
        let elements = self.places_in_blocks(move |peak| peak >= kth);
        select_largest_of(elements.map(|place| (place, self.logit(place))), places, logits)
    }

    /// The places of the blocks whose peaks are wanted.
    fn places_in_blocks(&self, is_wanted: impl Fn(f32) -> bool) -> impl Iterator<Item = usize> {
        let len = self.row.len;
        let blocks = self.peaks().iter().enumerate().filter(move |(_, peak)| is_wanted(**peak));
        blocks.flat_map(move |(block, _)| block * BLOCK..len.min((block + 1) * BLOCK))
    }

    /// The sum of `weight * log2(weight)`, with [`log2_digits`] of 16 digits in units of 2^-16.
    pub fn sum_of_logarithms(&self, law: &Law) -> u128 {
        let mut weights = Block([0; BLOCK]);
        let mut sum = 0;
        for block in (0..self.row.blocks()).filter(|&block| self.block_sum(law, block) > 0) {
            self.weights(law, block, &mut weights);
            for &weight in weights.0.iter().filter(|&&weight| weight > 0) {
                sum += u128::from(weight) * (log2_digits(weight, 16) as u128 >> 16);
            }
        }
        sum
    }

    /// The weights of up to a block of places of this row.
    pub(super) fn gather(&self, law: &Law, places: &[Option<usize>], weights: &mut Block<u64>) {
        weights.0.fill(0);
        match law {
            Law::Certain(only) => {
                for (weight, place) in weights.0.iter_mut().zip(places) {
                    *weight = if *place == Some(*only) { WEIGHT_ONE } else { 0 };
                }
            }
            Law::Scaled { scale, .. } => {
                let mut logits = Block([f32::NEG_INFINITY; BLOCK]);
                for (logit, place) in logits.0.iter_mut().zip(places) {
                    // SAFETY: the contract of `new`; the places lie in the row.
                    *logit =
                        place.map_or(f32::NEG_INFINITY, |place| unsafe { self.row.logit(place) });
                }
                let address = logits.0.as_ptr() as u64;
                let dtype = Dtype::F32;
                let row = Row { address, dtype, len: BLOCK, token_ids: None };
                // SAFETY: the row of the block above.
                unsafe { rows::weights(self.isa, &row, 0, scale, weights) };
            }
        }
    }

    /// The place that a number stands for: the first one in order with which the weights exceed
    /// the number's share of their sum. The law is the last one that was asked for.
    pub fn draw(&self, law: &Law, number: u64) -> usize {
        self.draw_apart(law, number, &[]).unwrap_or_else(|| unreachable!("the sum is not 0"))
    }

    /// The same if the weights of some places, given with these, were 0; `None` where no other has
    /// a weight.
    pub fn draw_apart(&self, law: &Law, number: u64, apart: &[(usize, u64)]) -> Option<usize> {
        let left = law.sum() - apart.iter().map(|&(_, weight)| weight).sum::<u64>();
        if left == 0 {
            return None;
        }
        let mut target = scaled(number, u128::from(left)) as u64;
        let mut weights = Block([0; BLOCK]);
        for block in 0..self.row.blocks() {
            let apart = apart.iter().filter(|(place, _)| place / BLOCK == block);
            let sum =
                self.block_sum(law, block) - apart.clone().map(|(_, weight)| weight).sum::<u64>();
            if target >= sum {
                target -= sum;
                continue;
            }
            self.weights(law, block, &mut weights);
            apart.for_each(|(place, _)| weights.0[place % BLOCK] = 0);
            for (place, &weight) in weights.0.iter().enumerate() {
                if target < weight {
                    return Some(block * BLOCK + place);
                }
                target -= weight;
            }
        }
        unreachable!("the share of a sum is less than the sum")
    }
}

/// Buckets or ids that are passed over as a whole where what is looked for is not among them.
pub(super) const GROUP: usize = 32;

/// As many logits are sorted rather than counted.
const FEW: usize = 1024;

// They lie where a histogram does, with a group behind them.
const _: () = assert!(FEW * size_of::<f32>() < BUCKETS * size_of::<u64>());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::threads::Threads;
    use crate::sampling::{EXP2, LOWEST_POWER, WEIGHT_BITS};
    use proptest::prelude::*;

    /// The relative weight of a logit, one operation after the other as the definition has them.
    fn relative(logit: f32, scale: &Scale) -> f32 {
        let power = (logit - scale.peak) * scale.factor;
        let power = if power > LOWEST_POWER { power.min(0.0) } else { LOWEST_POWER };
        let whole_power = power.round_ties_even();
        let fraction = ((power - whole_power) + 3.0) - 3.0;
        let sum = EXP2.iter().rev().fold(0.0_f32, |sum, &term| sum.mul_add(fraction, term));
        sum.mul_add(fraction, 1.0) * (whole_power + WEIGHT_BITS as f32).exp2()
    }

    /// The weights by the definition of the filters, over all logits at once.
    fn expected_weights(logits: &[f32], parameters: &Parameters) -> Option<Vec<u64>> {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if largest == f32::NEG_INFINITY {
            return None;
        }
        if parameters.is_greedy() {
            let first = logits.iter().position(|&logit| logit == largest)?;
            let certain = |place| if place == first { WEIGHT_ONE } else { 0 };
            return Some((0..logits.len()).map(certain).collect());
        }
        let scale = Scale::new(largest, parameters.temperature);
        let mut candidates: Vec<f32> =
            logits.iter().copied().filter(|&logit| logit > f32::NEG_INFINITY).collect();
        candidates.sort_by(|left, right| right.total_cmp(left));
        let mut floor = scale.floor;
        if let Some(&kth) = candidates.get((parameters.top_k as usize).wrapping_sub(1)) {
            floor = floor.max(kth);
        }
        let keep = |least: f32, floor: f32| {
            logits.iter().map(move |&logit| {
                let weight = relative(logit, &scale);
                if logit >= floor && weight >= least { whole(weight) } else { 0 }
            })
        };
        let mut least = fraction(parameters.min_p);
        let sum: u64 = keep(least, floor).sum();
        let limit = top_p_limit(parameters.top_p, sum);
        if parameters.top_p < 1.0 {
            // The relative weights from the largest down; each is kept if those above it, without
            // its equals, weigh less than the limit.
            candidates.retain(|&logit| logit >= floor && relative(logit, &scale) >= least);
            let weights: Vec<f32> = candidates.iter().map(|&l| relative(l, &scale)).collect();
            let above = |weight: f32| -> u64 {
                weights.iter().filter(|&&other| other > weight).map(|&other| whole(other)).sum()
            };
            let kept = weights.iter().copied().filter(|&weight| above(weight) < limit);
            least = kept.fold(f32::INFINITY, f32::min);
        }
        Some(keep(least, floor).collect())
    }

    fn encode(logits: &[f32], dtype: Dtype) -> (Vec<u8>, Vec<f32>) {
        let rounded = |logit: f32| match dtype {
            Dtype::F32 => (logit.to_ne_bytes().to_vec(), logit),
            Dtype::F16 => {
                let half = half::f16::from_f32(logit);
                (half.to_ne_bytes().to_vec(), half.to_f32())
            }
            Dtype::Bf16 => {
                let half = half::bf16::from_f32(logit);
                (half.to_ne_bytes().to_vec(), half.to_f32())
            }
        };
        let (bytes, values): (Vec<_>, Vec<_>) = logits.iter().map(|&l| rounded(l)).unzip();
        (bytes.concat(), values)
    }

    /// Calls `body` with a reader of the logits for every instruction set and several splits.
    fn with_readers(
        bytes: &[u8],
        dtype: Dtype,
        len: usize,
        ids: Option<&[i32]>,
        mut body: impl FnMut(Reader<'_>),
    ) {
        let pool = Pool::new(Threads::Own(2)).unwrap();
        let token_ids = ids.map(|ids| ids.as_ptr() as u64);
        let row = Row { address: bytes.as_ptr() as u64, dtype, len, token_ids };
        for isa in Isa::available() {
            for parts in [1, 3] {
                let mut counting = Carver::counting();
                Scratch::carve(&mut counting, len, parts);
                let mut memory = vec![Block([u64::MAX; BLOCK]); counting.used().div_ceil(2048)];
                let scratch =
                    Scratch::carve(&mut Carver::of_block(memory.as_mut_ptr() as u64), len, parts);
                let split = Split { pool: Some(&pool), parts };
                // SAFETY: all memory outlives the reader.
                body(unsafe { Reader::new(isa, split, row, scratch) });
            }
        }
    }

    fn check(logits: &[f32], dtype: Dtype, parameters: &Parameters) {
        let (bytes, values) = encode(logits, dtype);
        let expected = expected_weights(&values, parameters);
        with_readers(&bytes, dtype, values.len(), None, |reader| {
            let law = reader.law(parameters);
            assert_eq!(law.is_some(), expected.is_some());
            let (Some(law), Some(expected)) = (law, &expected) else { return };
            let context = format!("{parameters:?} of {} logits, {dtype:?}", values.len());
            assert_eq!(law.sum(), expected.iter().sum::<u64>(), "sum by {context}");
            let mut weights = Block([0; BLOCK]);
            for (block, expected) in expected.chunks(BLOCK).enumerate() {
                reader.weights(&law, block, &mut weights);
                assert_eq!(&weights.0[..expected.len()], expected, "block {block} by {context}");
                assert!(weights.0[expected.len()..].iter().all(|&weight| weight == 0));
            }
            for number in [0, 1 << 40, u64::MAX / 3, u64::MAX / 2, u64::MAX - 1, u64::MAX] {
                let target = scaled(number, law.sum().into()) as u64;
                let mut sum = 0;
                let drawn = expected.iter().position(|weight| {
                    sum += weight;
                    target < sum
                });
                assert_eq!(Some(reader.draw(&law, number)), drawn, "draw by {context}");
            }
        });
    }

    fn logit() -> impl Strategy<Value = f32> {
        prop_oneof![
            20 => -20.0_f32..20.0,
            // Ties.
            4 => (-3_i32..4).prop_map(|value| value as f32),
            1 => Just(f32::NAN),
            1 => Just(f32::NEG_INFINITY),
            1 => prop_oneof![Just(0.0_f32), Just(-0.0), Just(f32::MAX), Just(f32::MIN), Just(1e-40)],
        ]
    }

    fn any_parameters() -> impl Strategy<Value = Parameters> {
        let temperature =
            prop_oneof![Just(0.0_f32), Just(1.0), 0.05_f32..3.0, Just(1e6), Just(1e-4)];
        let top_k = prop_oneof![Just(0), 1..8, 1..2000];
        let top_p = prop_oneof![Just(1.0_f32), Just(0.0), 0.0_f32..1.0, Just(0.999_999)];
        let min_p = prop_oneof![Just(0.0_f32), Just(1.0), 0.0_f32..0.3];
        (temperature, top_k, top_p, min_p).prop_map(|(temperature, top_k, top_p, min_p)| {
            Parameters { temperature, top_k, top_p, min_p }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..<_>::default() })]

        #[test]
        fn laws_and_draws_are_those_of_the_definition(
            logits in prop_oneof![
                prop::collection::vec(logit(), 1..40),
                prop::collection::vec(logit(), 250..700),
                prop::collection::vec((-8_f32..8.0).prop_map(|logit| logit * logit.abs()), 9000..9600),
            ],
            dtype in prop_oneof![Just(Dtype::F32), Just(Dtype::F16), Just(Dtype::Bf16)],
            parameters in any_parameters(),
        ) {
            check(&logits, dtype, &parameters);
        }
    }

    #[test]
    fn the_relative_weight_never_falls_when_the_logit_rises() {
        // With peak 0 and factor 1 the logit is the power. Fractions are taken in multiples of
        // 2^-22: these steps meet each of them, from both sides, on both sides of 0.
        let scale = Scale { peak: 0.0, factor: 1.0, floor: f32::NEG_INFINITY };
        let step = (-24_f32).exp2();
        let powers: Vec<f32> = (0..3 << 23).map(|index| index as f32 * -step).collect();
        let row = Row {
            address: powers.as_ptr() as u64,
            dtype: Dtype::F32,
            len: powers.len(),
            token_ids: None,
        };
        let (mut last, mut worst) = (WEIGHT_ONE, 0.0_f64);
        let mut weights = Block([0; BLOCK]);
        for block in 0..row.blocks() {
            // SAFETY: the row of the powers above.
            unsafe { rows::weights(Isa::detect(), &row, block, &scale, &mut weights) };
            for (weight, power) in weights.0.iter().zip(&powers[block * BLOCK..]) {
                assert!(*weight <= last, "{power}");
                last = *weight;
                let exact = f64::from(*power).exp2() * WEIGHT_ONE as f64;
                worst = worst.max((*weight as f64 / exact - 1.0).abs());
            }
        }
        assert!(worst < 2e-7, "relative error {worst:e}");
    }

    #[test]
    fn the_law_is_the_softmax() {
        let logits: Vec<f32> = (0..1000).map(|place| ((place * 37 % 1000) as f32).sqrt()).collect();
        let (bytes, _) = encode(&logits, Dtype::F32);
        for temperature in [0.3_f32, 1.0, 2.5] {
            let exact: Vec<f64> =
                logits.iter().map(|&l| (f64::from(l) / f64::from(temperature)).exp()).collect();
            let sum: f64 = exact.iter().sum();
            let parameters = Parameters { temperature, ..Parameters::GREEDY };
            with_readers(&bytes, Dtype::F32, logits.len(), None, |reader| {
                let law = reader.law(&parameters).unwrap();
                for (place, exact) in exact.iter().enumerate() {
                    let probability = reader.weight(&law, place) as f64 / law.sum() as f64;
                    // The power carries the rounding of its own product, up to 80 here.
                    assert!(
                        (probability / (exact / sum) - 1.0).abs() < 1e-5 || *exact / sum < 1e-9
                    );
                }
            });
        }
    }

    #[test]
    fn infinite_logits_share_everything_and_nothing_else_counts() {
        let mut logits = vec![1.0_f32; 600];
        logits[7] = f32::INFINITY;
        logits[8] = f32::MAX;
        logits[300] = f32::INFINITY;
        logits[301] = f32::NAN;
        let (bytes, _) = encode(&logits, Dtype::F32);
        for parameters in
            [Parameters::PLAIN, Parameters { temperature: 1e6, top_k: 5, top_p: 0.9, min_p: 0.1 }]
        {
            with_readers(&bytes, Dtype::F32, logits.len(), None, |reader| {
                let law = reader.law(&parameters).unwrap();
                assert_eq!(law.sum(), 2 * WEIGHT_ONE);
                assert_eq!(reader.draw(&law, u64::MAX / 2), 7);
                assert_eq!(reader.draw(&law, u64::MAX / 2 + 1), 300);
            });
        }
    }

    #[test]
    fn zeros_of_both_signs_are_equal_logits() {
        // Few logits are sorted, many are counted; zeros are the largest, or some lie above them.
        for (len, above) in [(6, 0), (6, 2), (700, 0), (700, 3), (6000, 0), (6000, 700)] {
            for first_sign in [0.0_f32, -0.0] {
                let logit = |place: usize| match place * 7 % len {
                    turn if turn < above => 0.5,
                    turn if turn % 5 == 3 => -1.0,
                    turn if turn % 2 == 0 => first_sign,
                    _ => -first_sign,
                };
                let logits: Vec<f32> = (0..len).map(logit).collect();
                for top_k in [1, 2, 3, above + 1, len / 4, len * 3 / 5, len - 1] {
                    let top_k = top_k as i32;
                    for (top_p, min_p) in [(1.0, 0.0), (0.6, 0.0), (1.0, 0.9)] {
                        let parameters = Parameters { temperature: 1.0, top_k, top_p, min_p };
                        check(&logits, Dtype::F32, &parameters);
                    }
                }
                check(&logits, Dtype::F16, &Parameters::GREEDY);
            }
        }
    }

    #[test]
    fn negative_ids_are_no_candidates() {
        let logits = [9.0_f32, 1.0, 2.0, 8.0, 1.0];
        let ids = [-1, 4, 0, -7, 2];
        let (bytes, _) = encode(&logits, Dtype::F32);
        with_readers(&bytes, Dtype::F32, logits.len(), Some(&ids), |reader| {
            assert_eq!(reader.argmax(), Some(2));
            let law = reader.law(&Parameters::PLAIN).unwrap();
            assert_eq!([reader.weight(&law, 0), reader.weight(&law, 3)], [0, 0]);
            assert_eq!(reader.weight(&law, 2), WEIGHT_ONE);
        });
        with_readers(&bytes, Dtype::F32, logits.len(), Some(&[-1; 5]), |reader| {
            assert_eq!(reader.argmax(), None);
        });
    }

    #[test]
    fn the_first_of_equal_logits_is_the_largest() {
        for len in [3, 255, 256, 257, 20_000] {
            let mut logits = vec![-1.0_f32; len];
            logits[0] = f32::NAN;
            logits[len / 2] = 5.0;
            logits[len - 1] = 5.0;
            let (bytes, _) = encode(&logits, Dtype::F16);
            with_readers(&bytes, Dtype::F16, len, None, |reader| {
                assert_eq!(reader.argmax(), Some(len / 2));
            });
        }
    }
}
