//! Random numbers and token weights that are the same on every device: numbers come from a counter
//! and weights are integers, so that neither the order of a sum nor the number of threads can
//! change a draw, and the law of every decision is an exact fraction.

mod law;
mod philox;

pub use law::{
    EXP2, LOWEST_POWER, Parameters, Scale, WEIGHT_BITS, WEIGHT_ONE, fraction, from_order,
    log_probability, log2, log2_digits, order, probability, top_p_limit, whole,
};
pub use philox::{Purpose, draft_lane, uniform};

/// `number * total / 2^64`, rounded down: the point of `0 .. total` that a uniform number stands
/// for, exact for any total below 2^127.
pub fn scaled(number: u64, total: u128) -> u128 {
    let (number, low) = (u128::from(number), total & u128::from(u64::MAX));
    number * (total >> 64) + ((number * low) >> 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling_is_exact_at_the_ends_and_between() {
        assert_eq!(scaled(0, u128::MAX >> 1), 0);
        assert_eq!(scaled(1 << 63, (1 << 100) + 2), (1 << 99) + 1);
        assert_eq!(scaled(u64::MAX, 1), 0);
        assert_eq!(scaled(u64::MAX, 1 << 64), u128::from(u64::MAX));
        let total = (1_u128 << 127) - 1;
        // (2^64 - 1) * (2^127 - 1) / 2^64 = 2^127 - 1 - 2^63 + 2^-64, rounded down.
        assert_eq!(scaled(u64::MAX, total), total - (1 << 63));
    }
}
