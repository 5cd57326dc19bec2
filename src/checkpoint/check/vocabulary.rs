//! Vocabulary maps that the loader cannot doubt, because it does not read them or has nothing to compare
//! them with.

use super::{Check, Severity};
use crate::checkpoint::files::StoredTensor;
use crate::checkpoint::header::ElementType;
use crate::checkpoint::{Method, Speculator};
use std::collections::BTreeMap;

/// Below this many draft ids, offsets may look like ids by chance.
const TELLING: usize = 16;

impl Check {
    /// Looks at `d2t` and `t2d` of a speculator that the loader accepts.
    pub(super) fn check_maps(
        &mut self,
        stored: &BTreeMap<String, StoredTensor>,
        speculator: &Speculator,
    ) {
        if matches!(speculator.method, Method::Heads(_)) {
            return;
        }
        let (d2t, t2d) = (stored.get("d2t"), stored.get("t2d"));
        if speculator.draft_token_ids.is_none() {
            self.check_ignored_map("d2t", d2t, 0);
            self.check_ignored_map("t2d", t2d, 1);
        } else if let (Some(d2t), None) = (d2t, t2d) {
            self.check_unconfirmed_offsets(d2t);
        }
    }

    /// Maps that are ignored since all tokens are drafted have to say so, too.
    fn check_ignored_map(&mut self, name: &str, map: Option<&StoredTensor>, identity: i64) {
        let Some(map) = map else { return };
        let mut is_identity = true;
        let scanned = each(map, |value| is_identity &= value == identity);
        if let Err(error) = scanned {
            return self.refuse(&error);
        }
        if is_identity {
            let advice = "nothing to do: it can be left out";
            self.add(Severity::Note, name, "stored, though all tokens are drafted", advice);
        } else {
            let found =
                "chooses among the tokens, but by config.json all of them are drafted: not read";
            let advice = "set draft_vocab_size to the number of rows of lm_head.weight, if that is \
                          smaller than vocab_size; the wrong tokens are drafted otherwise";
            self.add(Severity::Suspicious, name, found, advice);
        }
    }

    /// Without a mask, target ids that are stored in the place of offsets are not found out.
    fn check_unconfirmed_offsets(&mut self, d2t: &StoredTensor) {
        let (mut count, mut rises, mut last) = (0, true, i64::MIN);
        let scanned = each(d2t, |value| {
            rises &= value > last;
            (count, last) = (count + 1, value);
        });
        if let Err(error) = scanned {
            return self.refuse(&error);
        }
        if rises && count >= TELLING {
            let found = "every value is larger than the one before, as target ids are and offsets hardly \
                         ever; it is read as offsets, since there is no t2d to tell";
            let advice = "store offsets (target id less draft id), or t2d beside it";
            self.add(Severity::Suspicious, "d2t", found, advice);
        }
    }
}

/// Hands on each element of a tensor of integers; of other tensors, none.
fn each(tensor: &StoredTensor, mut take: impl FnMut(i64)) -> crate::error::Result<()> {
    let element = tensor.element().clone();
    tensor.scan(|piece| {
        match element {
            ElementType::Bool | ElementType::U8 => piece.iter().for_each(|&b| take(b.into())),
            ElementType::I32 => {
                piece.as_chunks().0.iter().for_each(|&four| take(i32::from_le_bytes(four).into()));
            }
            ElementType::I64 => {
                piece.as_chunks().0.iter().for_each(|&eight| take(i64::from_le_bytes(eight)));
            }
            ElementType::Float(_) | ElementType::Other(_) => {}
        }
        true
    })
}
