//! Acceptance as often as the host wants, whatever the logits, for planning of capacity: not
//! lossless.

use crate::backend::verify::{Child, Decision, Rule, RuleKind, TargetRow};
use crate::sampling::probability;

/// Follows the first child if its number is below the wanted probability of its depth, whatever the
/// target says of it; the token after the accepted ones is the request's own.
#[derive(Debug)]
pub struct Synthetic;

impl Rule for Synthetic {
    fn kind(&self) -> RuleKind {
        RuleKind::Synthetic
    }

    fn decide(&self, children: &mut [Child], row: &mut dyn TargetRow) -> Decision {
        if let Some(child) = children.first_mut()
            && child.token.is_some()
            && probability(row.wanted_acceptance())
                .is_none_or(|wanted| row.test_number(child) < wanted)
        {
            child.is_followed = true;
            return Decision::Follow;
        }
        Decision::Emit(if row.is_greedy() { row.argmax() } else { row.draw() })
    }
}
