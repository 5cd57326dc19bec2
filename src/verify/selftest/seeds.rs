//! Which of the random numbers of two rounds are the same one, where they come from a seed: seen
//! in what they decide for many seeds.

use super::cases::Case;
use super::procedure::{Draws, Procedure, Proposal, Scene};
use crate::backend::verify::{Leniency, record};
use crate::error::Result;
use crate::sampling::Parameters;

/// Seeds: as many as a name has bits.
pub const SEEDS: u64 = 32;

/// The position of the first round's root.
const POSITION: i32 = 7;

/// The rows of the target: of a draft that is certain, of one that has a half, and of one that has
/// nothing, where two other tokens have a half each. Drafts are token 0.
const CERTAIN: usize = 0;
const HALF: usize = 1;
const NOTHING: usize = 2;

/// The names of the numbers of a chain's rounds, by the tokens between the roots and by place: what
/// each decided for every seed. Two numbers that are not the same have another name but for one case
/// in 2^32; one that decides nothing has a name of its own.
pub fn names(procedure: &dyn Procedure, case: &Case, drafts: usize) -> Result<Vec<Vec<u64>>> {
    let nothing = f32::NEG_INFINITY;
    let plain = Parameters::PLAIN;
    let certain = vec![0.0, nothing, nothing];
    let scene = Scene {
        rule: case.rule,
        max_drafts: drafts,
        draft: case.has_distribution().then(|| vec![certain.clone(); 3]),
        target: vec![certain, vec![0.0, 0.0, nothing], vec![nothing, 0.0, 0.0]],
        parameters: plain,
        draft_parameters: plain,
        masks: None,
        parents: None,
        leniency: Leniency::NONE,
        acceptance: Vec::new(),
    };
    let places = scene.numbers();
    let proposals: Vec<Proposal> = (0..places).map(|place| proposal(place, drafts)).collect();
    let (mut of, mut seeded) = (Vec::new(), Vec::new());
    for after in 0..=drafts as i32 + 1 {
        for place in 0..places {
            of.extend((0..SEEDS).map(|_| place));
            seeded.extend((0..SEEDS).map(|seed| (seed * 0x5851_F42D + 1, POSITION + after)));
        }
    }
    let records = procedure.decide(&scene, &proposals, &of, &Draws::Seeded(seeded))?;
    let records: Vec<&[i32]> = records.chunks(record::len(drafts)).collect();
    let mut found: Vec<u64> = records
        .chunks(SEEDS as usize)
        .zip((0..places).cycle())
        .map(|(records, place)| {
            records.iter().fold(0, |name, record| name << 1 | bit(record, place))
        })
        .collect();
    for (index, name) in found.iter_mut().enumerate() {
        if *name == 0 || *name == (1 << SEEDS) - 1 {
            *name = (1 << SEEDS) + index as u64;
        }
    }
    Ok(found.chunks(places).map(<[u64]>::to_vec).collect())
}

/// A chain in which the number of a place decides: the test of the draft behind it, or the token.
fn proposal(place: usize, drafts: usize) -> Proposal {
    let (node, row) = (place / 2, if place.is_multiple_of(2) { HALF } else { NOTHING });
    let rows = (0..=drafts).map(|other| match other.cmp(&node) {
        std::cmp::Ordering::Less => CERTAIN,
        std::cmp::Ordering::Equal => row,
        std::cmp::Ordering::Greater => NOTHING,
    });
    Proposal { drafts: vec![0; drafts], num_drafts: drafts, rows: rows.collect() }
}

/// What the number of a place decided.
fn bit(record: &[i32], place: usize) -> u64 {
    let node = place / 2;
    let is_one = match place.is_multiple_of(2) {
        true => record[record::ACCEPTED] as usize > node,
        false => record[record::TOKENS + node] == 1,
    };
    u64::from(is_one)
}
