//! The target's largest logit at every position.

use crate::backend::verify::{Decision, Proposal, Rule, RuleKind, TargetRow};

/// Keeps drafts while they are the target's argmax.
#[derive(Debug)]
pub struct Greedy;

impl Rule for Greedy {
    fn kind(&self) -> RuleKind {
        RuleKind::Greedy
    }

    fn decide(&self, proposal: Proposal, row: &mut dyn TargetRow) -> Decision {
        match row.argmax() {
            token if proposal == Proposal::Token(token) => Decision::Accept(token),
            token => Decision::Emit(token),
        }
    }
}
