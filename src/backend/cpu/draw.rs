//! Draft tokens, drawn from logits as verification would draw from them.

use super::distribution::{Reader, Scratch, Split};
use super::memory::read;
use super::rows::Row;
use super::simd::Isa;
use crate::backend::draft_trees::CHILDREN_MAX;
use crate::backend::verify::SamplingArrays;
use crate::sampling::{Parameters, Purpose, draft_lane, uniform};
use crate::tensor::{Carver, Matrix, Span};

/// Bytes of scratch that [`draw_draft`] needs for rows of `columns` logits.
pub fn draft_scratch(columns: usize) -> usize {
    let mut carver = Carver::counting();
    Scratch::carve(&mut carver, columns, 1);
    carver.used()
}

/// The column that a sequence's next draft is drawn from, given the logits' row 0: the one that
/// verification would draw from the same logits, but with a number for drafts at its position and behind
/// so many drafts. The first one where there is no candidate.
///
/// # Safety
///
/// The matrix is valid, not written meanwhile, and has a row that is not empty; the sampling
/// arrays reach the sequence; `scratch` has [`draft_scratch`] bytes, aligned as [`Carver`] says,
/// used by nothing else.
pub unsafe fn draw_draft(
    isa: Isa,
    logits: &Matrix,
    sampling: &SamplingArrays,
    sequence: usize,
    (position, before): (i32, usize),
    scratch: Span<u8>,
) -> usize {
    // SAFETY: as this function's contract.
    unsafe {
        let reader = reader(isa, logits, scratch);
        let (seed, lane) = (seed(sampling, sequence), draft_lane(before, 0));
        let number = uniform(seed, position as u64, Purpose::Draft, lane);
        let law = reader.law(&parameters(sampling, sequence));
        law.map_or(0, |law| reader.draw(&law, number))
    }
}

/// The sum of the weights of the logits' row 0 at temperature 1; `None` where there is no candidate.
///
/// # Safety
///
/// As for [`draw_draft`].
pub(super) unsafe fn row_sum(isa: Isa, logits: &Matrix, scratch: Span<u8>) -> Option<u64> {
    let plain = Parameters::PLAIN;
    // SAFETY: as this function's contract.
    unsafe { reader(isa, logits, scratch) }.law(&plain).map(|law| law.sum())
}

/// The children of a node, which are drawn one after the other without replacement.
pub(super) struct Siblings {
    /// One row.
    pub(super) logits: Matrix,
    pub(super) sampling: SamplingArrays,
    pub(super) sequence: usize,
    /// Their position.
    pub(super) position: i32,
    /// Drafts before them on their path.
    pub(super) before: usize,
}

impl Siblings {
    /// Draws a column for each id; the value becomes -inf where nothing is left to draw. Where
    /// tokens are not drawn, or there is no candidate at all, ids and values stay what they are. There are
    /// at most [`CHILDREN_MAX`] ids.
    ///
    /// # Safety
    ///
    /// As for [`draw_draft`].
    pub(super) unsafe fn draw(
        &self,
        isa: Isa,
        ids: &mut [i32],
        values: &mut [f32],
        scratch: Span<u8>,
    ) {
        let mut taken = [(0, 0); CHILDREN_MAX];
        // SAFETY: as this function's contract.
        unsafe {
            let parameters = parameters(&self.sampling, self.sequence);
            if parameters.is_greedy() {
                return;
            }
            let reader = reader(isa, &self.logits, scratch);
            let Some(law) = reader.law(&parameters) else { return };
            let seed = seed(&self.sampling, self.sequence);
            for (rank, (id, value)) in ids.iter_mut().zip(values).enumerate() {
                let lane = draft_lane(self.before, rank);
                let number = uniform(seed, self.position as u64, Purpose::Draft, lane);
                let column = reader.draw_apart(&law, number, &taken[..rank]);
                *value = f32::NEG_INFINITY;
                let Some(column) = column else { continue };
                taken[rank] = (column, reader.weight(&law, column));
                *id = column as i32;
                *value = 0.0;
            }
        }
    }
}

/// A reader of the logits' row 0.
///
/// # Safety
///
/// As for [`draw_draft`].
unsafe fn reader(isa: Isa, logits: &Matrix, scratch: Span<u8>) -> Reader<'static> {
    let scratch = Scratch::carve(&mut Carver::of_block(scratch.address()), logits.columns, 1);
    let row = Row {
        address: logits.row_address(0),
        dtype: logits.dtype,
        len: logits.columns,
        token_ids: None,
    };
    // SAFETY: as this function's contract.
    unsafe { Reader::new(isa, Split::NONE, row, scratch) }
}

/// How a sequence's tokens are drawn.
///
/// # Safety
///
/// The arrays are valid and reach the sequence.
pub(super) unsafe fn parameters(arrays: &SamplingArrays, sequence: usize) -> Parameters {
    // SAFETY: as this function's contract.
    unsafe {
        Parameters {
            temperature: arrays.temperature.map_or(0.0, |values| read(values, sequence)),
            top_k: arrays.top_k.map_or(0, |values| read(values, sequence)),
            top_p: arrays.top_p.map_or(1.0, |values| read(values, sequence)),
            min_p: arrays.min_p.map_or(0.0, |values| read(values, sequence)),
        }
    }
}

/// The seed of a sequence.
///
/// # Safety
///
/// As for [`parameters`].
pub(super) unsafe fn seed(arrays: &SamplingArrays, sequence: usize) -> u64 {
    // SAFETY: as this function's contract.
    arrays.seed.map_or(0, |seeds| unsafe { read(seeds, sequence) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    #[repr(align(64))]
    struct Memory([u8; 20_000]);

    fn draw(isa: Isa, logits: &[f32], temperature: f32, seed: u64, place: (i32, usize)) -> usize {
        let mut memory = Memory([0xA5; 20_000]);
        assert!(draft_scratch(logits.len()) <= memory.0.len());
        let scratch = Span::new(memory.0.as_mut_ptr() as u64, memory.0.len());
        let logits = Matrix {
            address: logits.as_ptr() as u64,
            dtype: Dtype::F32,
            rows: 1,
            columns: logits.len(),
            row_stride: logits.len(),
        };
        let (temperatures, seeds) = ([9.0, temperature], [0, seed]);
        let sampling = SamplingArrays {
            temperature: Some(Span::new(temperatures.as_ptr() as u64, 2)),
            seed: Some(Span::new(seeds.as_ptr() as u64, 2)),
            ..SamplingArrays::default()
        };
        // SAFETY: all memory outlives the call.
        unsafe { draw_draft(isa, &logits, &sampling, 1, place, scratch) }
    }

    #[test]
    fn drafts_are_drawn_by_their_own_numbers_in_the_order_of_the_columns() {
        let logits: Vec<f32> = (0..300).map(|place| ((place * 7 % 31) as f32).sqrt()).collect();
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        for position in 0..200_u32 {
            let number = uniform(77, position as u64, Purpose::Draft, (position % 3) << 16);
            let target = number as f64 / 2.0_f64.powi(64) * sum;
            let mut reached = 0.0;
            let ends: Vec<f64> = logits
                .iter()
                .map(|&logit| {
                    reached += f64::from(logit).exp();
                    reached
                })
                .collect();
            let expected = ends.iter().position(|&end| target < end).unwrap();
            // Real numbers decide nothing that rounding could turn.
            if ends.iter().any(|end| (end - target).abs() < 1e-5 * sum) {
                continue;
            }
            let place = (position as i32, position as usize % 3);
            for isa in Isa::available() {
                assert_eq!(draw(isa, &logits, 1.0, 77, place), expected);
            }
        }
    }

    #[test]
    fn greedy_drafts_are_the_first_of_the_largest_logits() {
        for isa in Isa::available() {
            assert_eq!(draw(isa, &[1.0, f32::NAN, 3.0, 3.0], 0.0, 5, (9, 0)), 2);
            assert_eq!(draw(isa, &[f32::NAN; 3], 0.0, 5, (9, 0)), 0);
            assert_eq!(draw(isa, &[f32::NEG_INFINITY; 3], 1.0, 5, (9, 0)), 0);
        }
    }
}
