//! Reduced draft vocabularies: which target token each draft id stands for.
//!
//! Files hold it twice: `d2t`, for each draft id the distance to its target id, and `t2d`, for
//! each target id whether it is drafted. Either is enough; both must agree.

use super::files::StoredTensor;
use super::header::ElementType;
use super::report::Report;
use super::weights::Weights;
use crate::error::{Error, Result};

/// The target id of each of `draft` draft ids, strictly increasing; `None` where the draft
/// vocabulary is the whole one of `full` tokens.
pub(super) fn read(
    weights: &mut Weights,
    draft: usize,
    full: usize,
    report: &mut Report,
) -> Result<Option<Vec<i32>>> {
    if draft == full {
        return Ok(None);
    }
    let offsets = weights.take("d2t", report);
    let mask = weights.take("t2d", report);
    let drafted = mask.as_ref().map(|mask| drafted(mask, draft, full)).transpose()?;
    let ids = match (offsets, drafted) {
        (Some(offsets), drafted) => {
            if drafted.is_none() {
                report.absent.push(("t2d".into(), "derived from d2t".into()));
            }
            from_offsets(&offsets, draft, full, drafted, report)?
        }
        (None, Some(drafted)) => {
            report.absent.push(("d2t".into(), "derived from t2d".into()));
            drafted
        }
        (None, None) => {
            let text = format!(
                "tensor \"d2t\": expected {draft} offsets, because {draft} of {full} tokens are \
                 drafted, found no such tensor"
            );
            return Err(Error::format(&weights.directory, text));
        }
    };
    Ok(Some(ids))
}

/// The target ids that the mask `mask` has set, of which there must be `draft`.
fn drafted(mask: &StoredTensor, draft: usize, full: usize) -> Result<Vec<i32>> {
    let flags = integers(mask, full)?;
    if let Some((id, flag)) = flags.iter().enumerate().find(|&(_, &flag)| flag != 0 && flag != 1) {
        return Err(mask.wrong(format_args!("expected 0 or 1, found {flag} at {id}")));
    }
    let ids: Vec<_> = (0..).zip(flags).filter(|&(_, flag)| flag == 1).map(|(id, _)| id).collect();
    if ids.len() != draft {
        let found = ids.len();
        return Err(mask.wrong(format_args!("expected {draft} drafted tokens, found {found}")));
    }
    Ok(ids)
}

fn from_offsets(
    tensor: &StoredTensor,
    draft: usize,
    full: usize,
    drafted: Option<Vec<i32>>,
    report: &mut Report,
) -> Result<Vec<i32>> {
    let stored = integers(tensor, draft)?;
    if let Some(drafted) = &drafted {
        // Some exporters store the target ids themselves; only the mask can tell. For a single
        // draft id the two forms are one.
        let ids = drafted.iter().map(|&id| i64::from(id));
        if draft > 1 && stored.iter().copied().eq(ids) {
            report.correct("d2t holds target ids, not offsets: read as such, as t2d says");
            return Ok(drafted.clone());
        }
    }
    let mut ids = Vec::with_capacity(draft);
    let mut least = 0;
    for (id, offset) in (0_i64..).zip(&stored) {
        let target = id.checked_add(*offset).filter(|target| (0..full as i64).contains(target));
        let target = target.ok_or_else(|| {
            let text = format!("expected target ids from 0 to {}", full - 1);
            tensor.wrong(format_args!("{text}, found offset {offset} at draft id {id}"))
        })?;
        if target < least {
            let text = format!("expected target ids in ascending order, at least {least}");
            return Err(tensor.wrong(format_args!("{text}, found {target} at draft id {id}")));
        }
        least = target + 1;
        ids.push(target as i32);
    }
    if let Some(drafted) = drafted
        && let Some(id) = (0..draft).find(|&id| ids[id] != drafted[id])
    {
        let (expected, found) = (drafted[id], ids[id]);
        let text = format!("expected target id {expected} at draft id {id}, as t2d says");
        return Err(tensor.wrong(format_args!("{text}, found {found}")));
    }
    Ok(ids)
}

/// The elements of a vector of `len` integers.
fn integers(tensor: &StoredTensor, len: usize) -> Result<Vec<i64>> {
    if tensor.shape() != [len] {
        let found = tensor.shape();
        return Err(tensor.wrong(format_args!("expected shape [{len}], found {found:?}")));
    }
    let bytes = tensor.read_all()?;
    Ok(match tensor.element() {
        ElementType::Bool | ElementType::U8 => bytes.into_iter().map(i64::from).collect(),
        ElementType::I32 => {
            bytes.as_chunks().0.iter().map(|&bytes| i32::from_le_bytes(bytes).into()).collect()
        }
        ElementType::I64 => {
            bytes.as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect()
        }
        other => {
            let text = format!("expected BOOL, U8, I32 or I64 elements, found {}", other.name());
            return Err(tensor.wrong(text));
        }
    })
}
