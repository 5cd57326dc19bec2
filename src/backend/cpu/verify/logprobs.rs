//! How probable the emitted tokens were.

use super::super::distribution::Reader;
use super::super::memory::elements_mut;
use super::super::rows::Row;
use super::Bench;
use super::processing::processed_row;
use super::sequence::Sequence;
use crate::backend::verify::{Logprobs, VerifyBatch};
use crate::sampling::{Parameters, log_probability};

/// Says of all places of a sequence that nothing was emitted there.
///
/// # Safety
///
/// The outputs are valid and used by nothing else; `index` is below B.
pub unsafe fn clear(batch: &VerifyBatch, index: usize) {
    for wanted in [batch.raw_logprobs, batch.processed_logprobs].iter().flatten() {
        let nodes = batch.max_drafts + 1;
        let len = nodes * (wanted.alternatives + 1);
        // SAFETY: as this function's contract.
        unsafe {
            elements_mut(wanted.values.slice(index * len, len)).fill(f32::NAN);
            if let Some(ids) = wanted.token_ids {
                elements_mut(ids.slice(index * len, len)).fill(-1);
            }
            if let Some(ranks) = wanted.ranks {
                elements_mut(ranks.slice(index * nodes, nodes)).fill(0);
            }
        }
    }
}

/// Writes what the host wants to know of the emitted tokens, each emitted below the node of the path
/// that stands beside it.
///
/// # Safety
///
/// As for [`super::decide`]; the rows of the sequence are not looked at any more.
pub unsafe fn write(bench: Bench<'_>, sequence: &Sequence<'_>, tokens: &[i32], path: &[i32]) {
    let batch = sequence.batch;
    let place_of = |place| sequence.index * (batch.max_drafts + 1) + place;
    for (place, (&token, &node)) in tokens.iter().zip(path).enumerate() {
        let (place, token, node) = (place_of(place), token as usize, node as usize);
        // SAFETY: as this function's contract.
        unsafe {
            if let Some(wanted) = &batch.raw_logprobs {
                tell(bench, wanted, &(sequence.row(node), Parameters::PLAIN), (place, token), true);
            }
            if let Some(wanted) = &batch.processed_logprobs {
                let row = processed_row(bench, sequence, node);
                let is_greedy = sequence.parameters.is_greedy();
                let parameters = if is_greedy { Parameters::PLAIN } else { sequence.parameters };
                tell(bench, wanted, &(row, parameters), (place, token), false);
            }
        }
    }
}

/// Writes what is wanted of one token of a row. What the law leaves out has the logarithm -inf; raw,
/// all candidates are in, however little they weigh.
///
/// # Safety
///
/// As for [`write`].
unsafe fn tell(
    bench: Bench<'_>,
    wanted: &Logprobs,
    (row, parameters): &(Row, Parameters),
    (place, token): (usize, usize),
    is_raw: bool,
) {
    let len = wanted.alternatives + 1;
    // SAFETY: as this function's contract.
    let reader = unsafe { Reader::new(bench.isa, bench.split, *row, bench.scratch.target) };
    let law = reader.law(parameters);
    let largest = reader.largest();
    let logarithm = |place: usize| {
        let (Some(law), logit) = (&law, reader.logit(place)) else { return f32::NEG_INFINITY };
        match is_raw && logit > f32::NEG_INFINITY || reader.weight(law, place) > 0 {
            true => log_probability(logit, largest, parameters.temperature, law.sum()),
            false => f32::NEG_INFINITY,
        }
    };
    // SAFETY: as this function's contract.
    let values = unsafe { elements_mut(wanted.values.slice(place * len, len)) };
    values[0] = logarithm(token);
    if let Some(ranks) = wanted.ranks {
        let rank = 1 + reader.count_above(reader.logit(token));
        // SAFETY: as this function's contract.
        unsafe { elements_mut(ranks.slice(place, 1))[0] = rank as i32 };
    }
    let Some(ids) = wanted.token_ids else { return };
    // SAFETY: as this function's contract.
    let ids = unsafe { elements_mut(ids.slice(place * len, len)) };
    ids[0] = token as i32;
    let found = reader.select(&mut ids[1..], &mut values[1..]);
    for (id, value) in ids[1..].iter_mut().zip(&mut values[1..]).take(found) {
        *value = logarithm(*id as usize);
        if *value == f32::NEG_INFINITY {
            *id = -1;
        }
    }
    // There are no more tokens.
    ids[1 + found..].fill(-1);
    values[1 + found..].fill(f32::NEG_INFINITY);
}
