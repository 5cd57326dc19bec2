//! Rejection sampling (Leviathan et al., 2023; Chen et al., 2023), for the siblings of a tree
//! recursively (SpecInfer, Miao et al., 2024; without replacement: Jeon et al., 2024, and Yang et
//! al., 2024).

use super::greedy::Greedy;
use crate::backend::verify::{Child, Decision, Rule, RuleKind, Siblings, TargetRow};

/// Tests siblings one after the other. A draft is accepted with probability min(1, r / q), where r
/// is p at first; when it fails, max(r - q, 0), normalised, takes the place of r, and what replaces
/// the last one is drawn from that: together the emitted token has the distribution p. A draft that
/// was struck out had been drawn, so it counts as one that failed its test.
///
/// Siblings that were drawn without replacement leave less of q for those after them. What a
/// sibling leaves that was struck out is not known: those after it are not tested.
#[derive(Debug)]
pub struct Rejection(pub Siblings);

impl Rule for Rejection {
    fn kind(&self) -> RuleKind {
        RuleKind::Rejection(self.0)
    }

    fn decide(&self, children: &mut [Child], row: &mut dyn TargetRow) -> Decision {
        if row.is_greedy() {
            return Greedy.decide(children, row);
        }
        if children.is_empty() {
            return Decision::Emit(row.draw());
        }
        for child in children {
            if child.token.is_some() && row.accepts(child) {
                child.is_followed = true;
                return Decision::Follow;
            }
            row.reject(child, self.0);
            if child.token.is_none() && self.0 == Siblings::Distinct {
                break;
            }
        }
        Decision::Emit(row.draw_left())
    }
}
