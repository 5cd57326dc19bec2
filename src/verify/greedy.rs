//! The target's largest logit at every position.

use crate::backend::verify::{Child, Decision, Rule, RuleKind, TargetRow};

/// Follows drafts while they are the target's argmax.
#[derive(Debug)]
pub struct Greedy;

impl Rule for Greedy {
    fn kind(&self) -> RuleKind {
        RuleKind::Greedy
    }

    fn decide(&self, children: &mut [Child], row: &mut dyn TargetRow) -> Decision {
        follow_token(children, row.argmax())
    }
}

/// Emits the target's token, and follows the children that are it.
pub(super) fn follow_token(children: &mut [Child], token: usize) -> Decision {
    follow_where(children, |child| child == token).unwrap_or(Decision::Emit(token))
}

/// Follows the children whose tokens pass; `None` where none does.
pub(super) fn follow_where(
    children: &mut [Child],
    mut passes: impl FnMut(usize) -> bool,
) -> Option<Decision> {
    for child in children.iter_mut() {
        child.is_followed = child.token.is_some_and(&mut passes);
    }
    children.iter().any(|child| child.is_followed).then_some(Decision::Follow)
}
