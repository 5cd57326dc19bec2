//! One of the target's best tokens is good enough: not lossless.

use super::greedy::follow_where;
use crate::backend::verify::{Child, Decision, Rule, RuleKind, TargetRow};

/// Follows drafts that are among the target's `top_n` largest logits and at most `tolerance` below
/// the largest, whatever the filters of the request; the token after them is the request's own. So
/// TensorRT-LLM relaxes MTP, and so a speculator's `verifier_accept_k` and `accept_tolerance` are
/// meant. With a tolerance of 0 a draft must equal the largest.
#[derive(Debug)]
pub struct Relaxed;

impl Rule for Relaxed {
    fn kind(&self) -> RuleKind {
        RuleKind::Relaxed
    }

    fn decide(&self, children: &mut [Child], row: &mut dyn TargetRow) -> Decision {
        let leniency = row.leniency();
        // A row is looked through once, however many children there are.
        let bounds = match children.is_empty() {
            true => None,
            false => row.bounds_near_best(leniency.top_n, leniency.tolerance),
        };
        let passes = |token| {
            bounds.is_some_and(|[last, least]| {
                let logit = row.logit(token);
                logit >= last && logit >= least
            })
        };
        follow_where(children, passes).unwrap_or_else(|| {
            Decision::Emit(if row.is_greedy() { row.argmax() } else { row.draw() })
        })
    }
}
