//! What rejected drafts leave of p and q, token by token, where one test is not enough to know it.

use super::memory::elements_mut;
use crate::backend::verify::{PrefixWeight, Siblings};
use crate::sampling::scaled;
use crate::tensor::{Carver, Span};

/// Scratch for the weights of a vocabulary by both laws.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    ours: Span<u64>,
    theirs: Span<u64>,
}

impl Scratch {
    /// Scratch for so many tokens.
    pub fn carve(carver: &mut Carver, vocabulary: usize) -> Self {
        Self { ours: carver.span(vocabulary), theirs: carver.span(vocabulary) }
    }
}

/// Weights of p and of q over the vocabulary, each with what they are fractions of.
#[derive(Debug)]
pub struct Remainder<'a> {
    ours: &'a mut [u64],
    theirs: &'a mut [u64],
    our_sum: u64,
    their_sum: u64,
}

/// A residual weighs less than 2 to this power in all.
const RESIDUAL_BITS: u32 = 62;

impl Remainder<'_> {
    /// The weights that `write_ours` and `write_theirs` write, with their sums.
    ///
    /// # Safety
    ///
    /// The scratch is valid and used by nothing else as long as the remainder is.
    pub unsafe fn new(
        scratch: Scratch,
        (our_sum, write_ours): (u64, impl FnOnce(&mut [u64])),
        (their_sum, write_theirs): (u64, impl FnOnce(&mut [u64])),
    ) -> Self {
        // SAFETY: as this function's contract.
        let (ours, theirs) = unsafe { (elements_mut(scratch.ours), elements_mut(scratch.theirs)) };
        write_ours(ours);
        write_theirs(theirs);
        Self { ours, theirs, our_sum, their_sum }
    }

    /// Whether `number` is below r / q at the token; not where q is 0, as it was not drawn then.
    pub fn accepts(&self, token: usize, number: u64) -> bool {
        let (ours, theirs) = (u128::from(self.ours[token]), u128::from(self.theirs[token]));
        let (our_sum, their_sum) = (u128::from(self.our_sum), u128::from(self.their_sum));
        theirs > 0 && scaled(number, theirs * our_sum) < ours * their_sum
    }

    /// Whether `number` is below r at the token, with which a draft passes that was taken as given.
    pub fn is_drawn(&self, token: usize, number: u64) -> bool {
        scaled(number, self.our_sum.into()) < self.ours[token].into()
    }

    /// Whether there is a q.
    pub fn knows_theirs(&self) -> bool {
        self.their_sum > 0
    }

    /// Takes q from r, normalised, and the token from q if its siblings are distinct. The residual
    /// is rounded down to integers below 2^62 in all, which changes no probability by more than
    /// V / 2^62.
    pub fn reject(&mut self, token: Option<usize>, siblings: Siblings) {
        let (our_sum, their_sum) = (u128::from(self.our_sum), u128::from(self.their_sum));
        if our_sum > 0 && their_sum > 0 {
            let bits = u128::BITS - (our_sum * their_sum).leading_zeros();
            let shift = bits.saturating_sub(RESIDUAL_BITS);
            self.our_sum = 0;
            for (ours, &theirs) in self.ours.iter_mut().zip(self.theirs.iter()) {
                if *ours > 0 {
                    let rest = excess((*ours, our_sum), (theirs, their_sum));
                    *ours = (rest >> shift) as u64;
                    self.our_sum += *ours;
                }
            }
        }
        if let (Some(token), Siblings::Distinct) = (token, siblings) {
            self.their_sum -= self.theirs[token];
            self.theirs[token] = 0;
        }
    }

    /// Takes a token from r as it is.
    pub fn remove(&mut self, token: usize) {
        self.our_sum -= self.ours[token];
        self.ours[token] = 0;
    }

    /// The token that a number stands for in r; `None` where nothing is left.
    pub fn draw(&self, number: u64) -> Option<usize> {
        let mut target = scaled(number, self.our_sum.into()) as u64;
        self.ours.iter().position(|&ours| {
            let is_here = target < ours;
            target = target.wrapping_sub(ours);
            is_here
        })
    }

    /// max(w p - q, 0) summed over the vocabulary, in units of one over both sums, and that unit's
    /// number in 1.
    pub fn excess(&self, weight: PrefixWeight) -> (u128, u128) {
        let (our_sum, their_sum) = (u128::from(self.our_sum), u128::from(self.their_sum));
        let pairs = self.ours.iter().zip(self.theirs.iter());
        let excess = pairs
            .map(|(&ours, &theirs)| excess((weighted(ours, weight), our_sum), (theirs, their_sum)));
        (excess.sum(), our_sum * their_sum)
    }

    /// The token that a number stands for in max(w p - q, 0); `None` where that is nothing.
    pub fn draw_excess(&self, weight: PrefixWeight, number: u64) -> Option<usize> {
        let (our_sum, their_sum) = (u128::from(self.our_sum), u128::from(self.their_sum));
        let mut target = scaled(number, self.excess(weight).0);
        self.ours.iter().zip(self.theirs.iter()).position(|(&ours, &theirs)| {
            let excess = excess((weighted(ours, weight), our_sum), (theirs, their_sum));
            let is_here = target < excess;
            target = target.wrapping_sub(excess);
            is_here
        })
    }
}

/// max(p - q, 0) at a token, in units of one over both sums. Weights are below 2^62 and sums below
/// 2^63, so that nothing overflows.
fn excess((ours, our_sum): (u64, u128), (theirs, their_sum): (u64, u128)) -> u128 {
    (u128::from(ours) * their_sum).saturating_sub(u128::from(theirs) * our_sum)
}

/// A weight of p times that of the prefix, rounded down.
fn weighted(ours: u64, weight: PrefixWeight) -> u64 {
    match weight {
        PrefixWeight::One => ours,
        PrefixWeight::Fraction(fraction) => scaled(fraction, ours.into()) as u64,
    }
}

/// The weight of a prefix with one more draft, which weighs `ours` of `our_sum` by p and `theirs` of
/// `their_sum` by q.
pub fn extend(
    weight: PrefixWeight,
    (ours, our_sum): (u64, u64),
    (theirs, their_sum): (u64, u64),
) -> PrefixWeight {
    let ours = u128::from(ours) * u128::from(their_sum);
    let theirs = u128::from(theirs) * u128::from(our_sum);
    if theirs == 0 {
        // The draft cannot have been drawn.
        return PrefixWeight::Fraction(0);
    }
    let ours = match weight {
        PrefixWeight::One => ours,
        PrefixWeight::Fraction(fraction) => scaled(fraction, ours),
    };
    if ours >= theirs {
        return PrefixWeight::One;
    }
    // A quotient of numbers below 2^64 leaves room for the 64 digits of the fraction.
    let shift = (u128::BITS - theirs.leading_zeros()).saturating_sub(64);
    let (ours, theirs) = (ours >> shift, theirs >> shift);
    PrefixWeight::Fraction(u64::try_from((ours << 64) / theirs).unwrap_or(u64::MAX))
}

/// Whether a number is below a prefix's weight.
pub fn is_below(number: u64, weight: PrefixWeight) -> bool {
    match weight {
        PrefixWeight::One => true,
        PrefixWeight::Fraction(fraction) => number < fraction,
    }
}

/// Whether a number is below s / (s + 1 - w), where s is `excess` of `one` and w the prefix's
/// weight; always where both are nothing.
pub fn is_below_chance(number: u64, (excess, one): (u128, u128), weight: PrefixWeight) -> bool {
    let missing = match weight {
        PrefixWeight::One => 0,
        PrefixWeight::Fraction(fraction) => one - scaled(fraction, one),
    };
    let all = excess + missing;
    all == 0 || scaled(number, all) < excess
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_remainder(ours: &[u64], theirs: &[u64], body: impl FnOnce(Remainder<'_>)) {
        let (mut ours, mut theirs) = (ours.to_vec(), theirs.to_vec());
        let (our_sum, their_sum) = (ours.iter().sum(), theirs.iter().sum());
        body(Remainder { ours: &mut ours, theirs: &mut theirs, our_sum, their_sum });
    }

    #[test]
    fn residuals_are_those_of_fractions() {
        let (ours, theirs) = ([2 << 40, 5 << 40, 3 << 40], [6 << 40, 3 << 40, 1 << 40]);
        with_remainder(&ours, &theirs, |mut left| {
            left.reject(Some(1), Siblings::Distinct);
            // p - q is (-.4, .2, .2): half and half; q without its second token is (6/7, 0, 1/7).
            assert_eq!(left.ours[0], 0);
            assert_eq!(left.ours[1], left.ours[2]);
            assert_eq!((left.theirs[1], left.their_sum), (0, 7 << 40));
            assert!(left.accepts(2, u64::MAX), "1/2 is above 1/7");
            left.reject(Some(2), Siblings::Distinct);
            let share = left.ours[1] as f64 / left.our_sum as f64;
            assert!((share - 0.5 / (0.5 + 0.5 - 1.0 / 7.0)).abs() < 1e-15);
            assert_eq!(left.draw(0), Some(1));
            assert_eq!(left.draw(u64::MAX), Some(2));
        });
    }

    #[test]
    fn nothing_overflows_where_all_weights_are_as_large_as_they_can_be() {
        let largest = vec![1_u64 << 42; (1 << 21) - 1];
        let mut one = vec![0; largest.len()];
        one[7] = 1 << 42;
        with_remainder(&largest, &one, |mut left| {
            left.reject(Some(7), Siblings::Independent);
            left.reject(Some(7), Siblings::Independent);
            assert_eq!(left.ours[7], 0);
            assert!(left.our_sum >> RESIDUAL_BITS == 0 && left.our_sum >> 60 != 0);
            assert_eq!(left.draw(u64::MAX), Some(largest.len() - 1));
        });
        with_remainder(&largest, &one, |left| {
            let (excess, unit) = left.excess(PrefixWeight::Fraction(u64::MAX));
            assert!(excess < unit);
            assert!(is_below_chance(0, (excess, unit), PrefixWeight::Fraction(u64::MAX)));
        });
    }

    #[test]
    fn the_weight_of_a_prefix_is_the_product_that_never_was_above_one() {
        let one = 1_u64 << 50;
        let step = |weight, ours, theirs| extend(weight, (ours, one), (theirs, one));
        assert_eq!(step(PrefixWeight::One, one, one / 2), PrefixWeight::One);
        let half = step(PrefixWeight::One, one / 4, one / 2);
        assert_eq!(half, PrefixWeight::Fraction(1 << 63));
        assert_eq!(step(half, one / 2, one / 4), PrefixWeight::One);
        assert_eq!(step(half, one / 4, one / 2), PrefixWeight::Fraction(1 << 62));
        assert_eq!(step(half, one / 4, 0), PrefixWeight::Fraction(0));
        assert!(is_below(u64::MAX, PrefixWeight::One));
        assert!(!is_below(0, PrefixWeight::Fraction(0)));
        assert!(is_below_chance(u64::MAX, (0, 1 << 100), PrefixWeight::One), "0 / 0 is 1");
        assert!(!is_below_chance(0, (0, 1 << 100), half));
    }
}
