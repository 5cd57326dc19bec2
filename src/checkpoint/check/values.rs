//! What the values of a tensor tell.

use super::Severity::{self, Broken, Note, Suspicious};
use crate::checkpoint::files::StoredTensor;
use crate::checkpoint::header::ElementType;
use crate::error::Result;
use crate::tensor::Dtype;
use half::{bf16, f16};

/// A tensor of floats, counted.
#[derive(Clone, Debug)]
pub(super) struct Values {
    count: usize,
    nan: usize,
    infinite: usize,
    /// Of the finite values.
    least: f32,
    /// Of the finite values.
    most: f32,
}

/// What is known of a tensor besides its values.
pub(super) struct Place<'a> {
    pub(super) name: &'a str,
    /// Dimensions.
    pub(super) rank: usize,
    /// Whether the speculator reads it, or may read it.
    pub(super) is_used: bool,
    /// Whether the checkpoint loads, so that it is known what is used.
    pub(super) is_loaded: bool,
    /// Whether gains of norms are stored as their distance from 1.
    pub(super) norms_are_centred: bool,
}

/// Tensors without which every draft would be the same.
const ESSENTIAL: [&str; 3] = ["embed_tokens.weight", "lm_head.weight", "fc.weight"];

const REREAD: &str = "copy or download the file again, and compare its checksum; if it is whole, the \
                      speculator was damaged when it was trained or saved";
const UNTRAINED: &str =
    "compare with the original; if it is so there, too, training never reached it";

impl Values {
    /// Reads all of `tensor`; `None` if its elements are no floats that weights can have.
    pub(super) fn of(tensor: &StoredTensor) -> Result<Option<Self>> {
        let ElementType::Float(dtype) = *tensor.element() else { return Ok(None) };
        let (least, most) = (f32::INFINITY, f32::NEG_INFINITY);
        let mut values = Self { count: 0, nan: 0, infinite: 0, least, most };
        // Pieces end between elements: they are as long as a power of two, and the tensor is whole.
        tensor.scan(|piece| {
            match dtype {
                Dtype::F32 => values.count_all(piece, f32::from_le_bytes),
                Dtype::F16 => values.count_all(piece, |two| f16::from_le_bytes(two).to_f32()),
                Dtype::Bf16 => values.count_all(piece, |two| bf16::from_le_bytes(two).to_f32()),
            }
            true
        })?;
        Ok(Some(values))
    }

    fn count_all<const SIZE: usize>(&mut self, piece: &[u8], decode: impl Fn([u8; SIZE]) -> f32) {
        for &bytes in piece.as_chunks().0 {
            let value = decode(bytes);
            self.count += 1;
            if value.is_finite() {
                self.least = self.least.min(value);
                self.most = self.most.max(value);
            } else if value.is_nan() {
                self.nan += 1;
            } else {
                self.infinite += 1;
            }
        }
    }

    /// The one value that all elements have.
    fn constant(&self) -> Option<f32> {
        let is_finite = self.nan + self.infinite == 0;
        (self.count > 0 && is_finite && self.least == self.most).then_some(self.least)
    }

    /// Whether all values are 1.
    pub(super) fn are_ones(&self) -> bool {
        self.constant() == Some(1.0)
    }

    /// What is wrong with these values of the tensor at `place`: how bad it is, what it is, what to do.
    pub(super) fn judge(&self, place: &Place<'_>) -> Option<(Severity, String, &'static str)> {
        if self.count > 0 && self.nan == self.count {
            return Some(self.judge_never_filled(place));
        }
        let count = self.count;
        for (wrong, what) in [(self.nan, "are NaN"), (self.infinite, "are infinite")] {
            if wrong > 0 {
                let found = format!("{wrong} of {count} values {what}");
                return Some(match place.is_used {
                    true => (Broken, found, REREAD),
                    false => (Note, found, "nothing to do: the speculator does not read it"),
                });
            }
        }
        let value = self.constant().filter(|_| place.is_used && self.count > 1)?;
        judge_constant(value, count, place)
    }

    /// All NaN is how writers of the format mark what was never filled.
    fn judge_never_filled(&self, place: &Place<'_>) -> (Severity, String, &'static str) {
        let found = format!("all {} values are NaN: never filled", self.count);
        let advice = "nothing to do: it is read as if it were not stored, and can be left out";
        match place.is_used && !place.is_loaded {
            true => (Suspicious, found, "save the speculator again with this tensor"),
            false => (Note, found, advice),
        }
    }
}

/// What is wrong if all `count` values are `value`.
fn judge_constant(
    value: f32,
    count: usize,
    place: &Place<'_>,
) -> Option<(Severity, String, &'static str)> {
    let name = place.name;
    // Biases start as zeros, and often stay so.
    if name.ends_with(".bias") && value == 0.0 {
        return None;
    }
    let found = match value {
        0.0 => format!("all {count} values are zero"),
        value => format!("all {count} values are {value}"),
    };
    let is_norm = place.rank == 1 && name.contains("norm");
    let untrained_gain = if place.norms_are_centred { 0.0 } else { 1.0 };
    if is_norm && value == untrained_gain {
        let advice = "nothing to do, unless the original has trained gains here";
        return Some((Note, found, advice));
    }
    let is_essential = ESSENTIAL.contains(&name);
    Some((if is_essential { Broken } else { Suspicious }, found, UNTRAINED))
}
