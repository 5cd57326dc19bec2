//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): a random
//! number is a function of a counter and a key, so there is no state to keep or to roll back.

/// What a random number is for. Numbers for different purposes are independent: a draft that used
/// the number of its own test would bias the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Drawing a draft token.
    Draft = 0,
    /// Testing a draft token.
    Accept = 1,
    /// Drawing a token that is emitted.
    Emit = 2,
    /// Testing a prefix of a chain.
    AcceptBlock = 3,
}

/// The number for the token at an absolute position; numbers of different lanes are independent.
/// It stands for the fraction `number / 2^64`.
pub fn uniform(seed: u64, position: u64, purpose: Purpose, lane: u32) -> u64 {
    let counter = [position as u32, (position >> 32) as u32, purpose as u32, lane];
    let [low, high, ..] = philox(counter, [seed as u32, (seed >> 32) as u32]);
    u64::from(low) | u64::from(high) << 32
}

/// The lane of a draft's number: how many drafts of its round stand before it on its path, and how many
/// siblings. A token that is drafted anew at the same position, in another round, has another number, as
/// rules that decide over several drafts at once need it. Siblings below different parents share theirs:
/// those of one parent at most are ever looked at.
pub const fn draft_lane(before: usize, rank: usize) -> u32 {
    (before as u32) << 16 | rank as u32
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const INCREMENTS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for _ in 0..10 {
        let [first, second, third, fourth] = counter;
        let left = MULTIPLIERS[0] * u64::from(first);
        let right = MULTIPLIERS[1] * u64::from(third);
        counter = [
            (right >> 32) as u32 ^ second ^ key[0],
            right as u32,
            (left >> 32) as u32 ^ fourth ^ key[1],
            left as u32,
        ];
        key = [key[0].wrapping_add(INCREMENTS[0]), key[1].wrapping_add(INCREMENTS[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_vectors_come_out() {
        let ones = u32::MAX;
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox(counter, key), expected);
        }
    }

    #[test]
    fn every_part_of_the_key_changes_the_number() {
        let number = uniform(7, 9, Purpose::Emit, 0);
        assert_eq!(number, uniform(7, 9, Purpose::Emit, 0));
        for other in [
            uniform(8, 9, Purpose::Emit, 0),
            uniform(7 | 1 << 32, 9, Purpose::Emit, 0),
            uniform(7, 10, Purpose::Emit, 0),
            uniform(7, 9 | 1 << 32, Purpose::Emit, 0),
            uniform(7, 9, Purpose::Accept, 0),
            uniform(7, 9, Purpose::Emit, 1),
        ] {
            assert_ne!(number, other);
        }
    }
}
