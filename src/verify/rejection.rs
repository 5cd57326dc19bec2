//! Rejection sampling (Leviathan et al., 2023; Chen et al., 2023).

use super::greedy::Greedy;
use crate::backend::verify::{Decision, Proposal, Rule, RuleKind, TargetRow};

/// Accepts a draft with probability min(1, p / q), and otherwise draws its replacement from
/// max(p - q, 0): together the emitted token has the distribution p. A draft that was struck out
/// had been drawn, so it counts as one that failed its test.
#[derive(Debug)]
pub struct Rejection;

impl Rule for Rejection {
    fn kind(&self) -> RuleKind {
        RuleKind::Rejection
    }

    fn decide(&self, proposal: Proposal, row: &mut dyn TargetRow) -> Decision {
        if row.is_greedy() {
            return Greedy.decide(proposal, row);
        }
        match proposal {
            Proposal::None => Decision::Emit(row.draw()),
            Proposal::StruckOut => Decision::Emit(row.draw_residual(None)),
            Proposal::Token(token) if row.accepts(token) => Decision::Accept(token),
            Proposal::Token(token) => Decision::Emit(row.draw_residual(Some(token))),
        }
    }
}
