//! The target's own draw at every position.

use super::greedy::{Greedy, follow_token};
use crate::backend::verify::{Child, Decision, Rule, RuleKind, TargetRow};

/// Draws the target's token with the number that belongs to its position, and follows the drafts
/// that are equal to it: the text does not depend on the drafts at all.
#[derive(Debug)]
pub struct Follow;

impl Rule for Follow {
    fn kind(&self) -> RuleKind {
        RuleKind::Follow
    }

    fn decide(&self, children: &mut [Child], row: &mut dyn TargetRow) -> Decision {
        if row.is_greedy() {
            return Greedy.decide(children, row);
        }
        follow_token(children, row.draw())
    }
}
