//! The law that tokens are drawn from: parameters, and the integer weight of a logit.
//!
//! The *relative weight* of a logit `l` in a row whose largest is `m` is the `f32`
//! `y = 2^((l - m) log2(e) / T) * 2^42`, by the polynomial below; its weight is `y` rounded to an
//! integer. `y` never falls when `l` rises, which is why every filter comes down to a lowest logit.

/// The weight of the largest logit is 2 to this power.
pub const WEIGHT_BITS: u32 = 42;

/// The weight of the largest logit.
pub const WEIGHT_ONE: u64 = 1 << WEIGHT_BITS;

/// Powers of two are taken from here on; what lies below, NaN among it, has weight 0 like this one.
pub const LOWEST_POWER: f32 = -64.0;

/// `2^f` is `1 + f * (EXP2[0] + f * (EXP2[1] + ...))` for f in [-1/2, 1/2], to 1.5 units in the
/// last place: interpolation of `(2^f - 1) / f` at the Chebyshev nodes.
pub const EXP2: [f32; 6] = [
    std::f32::consts::LN_2,
    0.240_226_5,
    0.055_503_57,
    0.009_618_083,
    0.001_339_086_3,
    0.000_154_531_63,
];

/// How a sequence's tokens are drawn from logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parameters {
    /// Divides the logits; below 1e-5 the largest logit is taken.
    pub temperature: f32,
    /// Only the k largest logits and their equals; 0 or less is all.
    pub top_k: i32,
    /// Of what the other filters keep, only the most probable tokens that reach this mass, and the
    /// equals of the last; 1 or more is all.
    pub top_p: f32,
    /// Only tokens this many times as probable as the most probable.
    pub min_p: f32,
}

impl Parameters {
    /// The largest logit.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

    /// Temperature 1, and no filter.
    pub const PLAIN: Self = Self { temperature: 1.0, ..Self::GREEDY };

    /// Whether the largest logit is taken; so it is for a temperature that is NaN.
    pub fn is_greedy(&self) -> bool {
        self.temperature < 1e-5 || self.temperature.is_nan()
    }

    /// Whether all are numbers.
    pub fn are_numbers(&self) -> bool {
        !(self.temperature.is_nan() || self.top_p.is_nan() || self.min_p.is_nan())
    }
}

/// What turns the logits of a row into relative weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// The largest logit, if that is finite.
    pub peak: f32,
    /// `log2(e) / T`.
    pub factor: f32,
    /// Smaller logits have weight 0.
    pub floor: f32,
}

impl Scale {
    /// The scale of a row without filters. Where a logit is +inf, all that are it weigh the same
    /// and all others nothing.
    pub fn new(largest: f32, temperature: f32) -> Self {
        let factor = (std::f64::consts::LOG2_E / f64::from(temperature)) as f32;
        if largest == f32::INFINITY {
            Self { peak: f32::MAX, factor, floor: f32::INFINITY }
        } else {
            Self { peak: largest, factor, floor: f32::NEG_INFINITY }
        }
    }
}

/// The relative weight that a fraction of the largest one is.
pub fn fraction(of_largest: f32) -> f32 {
    of_largest.clamp(0.0, 1.0) * WEIGHT_ONE as f32
}

/// A relative weight as an integer, halves to even.
pub fn whole(relative: f32) -> u64 {
    // Adding 2^52 leaves no place for a fraction, and the integer in the lowest bits.
    const ONES: f64 = (1_u64 << 52) as f64;
    (f64::from(relative) + ONES).to_bits() - ONES.to_bits()
}

/// A number whose order is that of the floats, from -inf to +inf; both zeros have the same.
pub const fn order(value: f32) -> u32 {
    // The sum of zeros of both signs has none.
    let bits = (value + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

/// The float with this [`order`]. The number that no float has, below that of the zeros, is -0.
pub const fn from_order(order: u32) -> f32 {
    f32::from_bits(if order >> 31 == 1 { order & !(1 << 31) } else { !order })
}

/// A token is kept by top-p if the weights above it sum to less than this: `top_p * sum`, rounded
/// up, which changes nothing for sums that are integers. At least 1, so that the largest is kept.
pub fn top_p_limit(top_p: f32, sum: u64) -> u64 {
    if top_p >= 1.0 || top_p.is_nan() {
        return sum;
    }
    if top_p <= 0.0 {
        return 1;
    }
    let bits = top_p.to_bits();
    let (significand, halvings) = match bits >> 23 {
        0 => (bits, 149),
        exponent => (bits & 0x7f_ffff | 0x80_0000, 150 - exponent),
    };
    let product = u128::from(significand) * u128::from(sum);
    let limit = if halvings < 128 { (product + ((1 << halvings) - 1)) >> halvings } else { 1 };
    (limit as u64).max(1)
}

/// The binary logarithm of a number that is not 0, in units of 2^-32, rounded down but for an
/// error of a few units: by squaring the significand, digit after digit.
pub fn log2(value: u64) -> i64 {
    log2_digits(value, 32)
}

/// The same with fewer binary digits after the point; the others are 0.
pub fn log2_digits(value: u64, digits: u32) -> i64 {
    let power = value.ilog2();
    // From 1 to 2, in units of 2^-63.
    let mut significand = value << (63 - power);
    let mut logarithm = i64::from(power) << 32;
    for digit in 0..digits {
        let square = u128::from(significand) * u128::from(significand);
        let is_two = square >> 127 != 0;
        significand = (square >> if is_two { 64 } else { 63 }) as u64;
        logarithm |= i64::from(is_two) << (31 - digit);
    }
    logarithm
}

/// The numbers below this pass with the probability; `None` is all. No number is 0.
pub fn probability(value: f32) -> Option<u64> {
    // Exact, and below 2^64 for what is below 1.
    (value < 1.0 || value.is_nan()).then(|| (f64::from(value) * 2.0_f64.powi(64)) as u64)
}

/// The natural logarithm of the probability of a logit among weights of this sum, of which the one
/// of the largest logit is [`WEIGHT_ONE`]. Weights are integers, so that little is left of small
/// ones: only their sum is looked at. In double precision, step by step: so equal logits have equal
/// logarithms everywhere.
pub fn log_probability(logit: f32, largest: f32, temperature: f32, sum: u64) -> f32 {
    const UNIT: f64 = std::f64::consts::LN_2 / (1_u64 << 32) as f64;
    // Where the largest is +inf, all that are it are equal.
    let behind = match logit == largest {
        true => 0.0,
        false => (f64::from(logit) - f64::from(largest)) / f64::from(temperature),
    };
    let of_sum = (log2(sum) - (i64::from(WEIGHT_BITS) << 32)) as f64 * UNIT;
    (behind - of_sum) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_rounds_halves_to_even_and_keeps_large_weights() {
        for (relative, weight) in
            [(0.0, 0), (0.5, 0), (0.75, 1), (1.5, 2), (2.5, 2), (WEIGHT_ONE as f32, WEIGHT_ONE)]
        {
            assert_eq!(whole(relative), weight);
        }
    }

    #[test]
    fn order_is_that_of_the_floats_and_goes_back() {
        let values = [f32::NEG_INFINITY, f32::MIN, -1.0, -1e-40, 0.0, 1e-40, 2.0, f32::INFINITY];
        assert!(values.windows(2).all(|pair| order(pair[0]) < order(pair[1])));
        assert!(values.iter().all(|&value| from_order(order(value)) == value));
        assert_eq!(order(-0.0), order(0.0));
    }

    #[test]
    fn the_limit_of_top_p_is_the_exact_product_rounded_up() {
        assert_eq!(top_p_limit(0.5, 10), 5);
        assert_eq!(top_p_limit(0.5, 11), 6);
        // 0.9 as f32 is 15099494 / 2^24.
        assert_eq!(top_p_limit(0.9, 1 << 24), 15_099_494);
        assert_eq!(top_p_limit(0.9, (1 << 24) + 1), 15_099_495);
        assert_eq!(top_p_limit(1.0, 77), 77);
        assert_eq!(top_p_limit(f32::NAN, 77), 77);
        for tiny in [0.0, -1.0, 1e-45, 1e-38, f32::MIN_POSITIVE] {
            assert_eq!(top_p_limit(tiny, u64::MAX >> 1), 1);
        }
    }

    #[test]
    fn logarithms_of_probabilities_are_those_of_real_numbers() {
        let one = WEIGHT_ONE;
        for (logit, largest, temperature, sum) in [
            (3.0, 3.0, 1.0, one),
            (3.0, 3.0, 1.0, one * 5 / 2),
            (-40.5, 12.25, 0.7, one * 1000),
            (0.0, 1e-3, 100.0, one + 1),
            (-1e38, 1e38, 1.0, one),
        ] {
            let share = (sum as f64 / one as f64).ln();
            let exact = (f64::from(logit) - f64::from(largest)) / f64::from(temperature) - share;
            let found = log_probability(logit, largest, temperature, sum);
            let error = (f64::from(found) - exact).abs();
            assert!(error <= 1e-7 * exact.abs().max(1e-2), "{found}, exactly {exact}");
        }
        assert_eq!(log_probability(f32::INFINITY, f32::INFINITY, 0.5, one), 0.0);
        assert_eq!(log_probability(7.0, f32::INFINITY, 0.5, one), f32::NEG_INFINITY);
        assert_eq!(log_probability(f32::NEG_INFINITY, 1.0, 0.5, one), f32::NEG_INFINITY);
    }

    #[test]
    fn logarithms_are_those_of_real_numbers() {
        for value in [1, 2, 3, 7, 1000, WEIGHT_ONE - 1, WEIGHT_ONE, 0x7fff_1234_5678, u64::MAX] {
            let exact = (value as f64).log2();
            let error = log2(value) as f64 / 2.0_f64.powi(32) - exact;
            assert!(error.abs() < 1e-8, "log2 {value} is {exact}, error {error}");
            let error = log2_digits(value, 16) as f64 / 2.0_f64.powi(32) - exact;
            assert!((-2e-5..1e-8).contains(&error), "log2 {value} is {exact}, error {error}");
        }
    }

    #[test]
    fn probabilities_are_shares_of_all_numbers() {
        assert_eq!([probability(0.0), probability(-1.0), probability(f32::NAN)], [Some(0); 3]);
        assert_eq!(probability(0.5), Some(1 << 63));
        assert_eq!([probability(1.0), probability(7.0)], [None; 2]);
    }

    #[test]
    fn no_number_and_small_temperatures_are_greedy() {
        let at = |temperature| Parameters { temperature, ..Parameters::GREEDY };
        assert!([0.0, -1.0, 9e-6, f32::NAN].iter().all(|&value| at(value).is_greedy()));
        assert!([1e-5, 1.0, f32::INFINITY].iter().all(|&value| !at(value).is_greedy()));
        assert!(!at(f32::NAN).are_numbers());
    }
}
