//! The target's own draw at every position.

use super::greedy::Greedy;
use crate::backend::verify::{Decision, Proposal, Rule, RuleKind, TargetRow};

/// Draws the target's token with the number that belongs to its position, and keeps drafts while
/// they are equal to it: the text does not depend on the drafts at all.
#[derive(Debug)]
pub struct Follow;

impl Rule for Follow {
    fn kind(&self) -> RuleKind {
        RuleKind::Follow
    }

    fn decide(&self, proposal: Proposal, row: &mut dyn TargetRow) -> Decision {
        if row.is_greedy() {
            return Greedy.decide(proposal, row);
        }
        match row.draw() {
            token if proposal == Proposal::Token(token) => Decision::Accept(token),
            token => Decision::Emit(token),
        }
    }
}
