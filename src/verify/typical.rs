//! Typical acceptance (Medusa, Cai et al., 2024): not lossless.

use super::greedy::{Greedy, follow_where};
use crate::backend::verify::{Child, Decision, Rule, RuleKind, TargetRow};
use crate::sampling::{log2, top_p_limit};

/// Follows drafts whose probability by p is at least min(epsilon, alpha * exp(-H)), where H is the
/// entropy of p: where the target is not sure, less probable drafts will do. The token after them is
/// drawn from p.
#[derive(Debug)]
pub struct Typical;

impl Rule for Typical {
    fn kind(&self) -> RuleKind {
        RuleKind::Typical
    }

    fn decide(&self, children: &mut [Child], row: &mut dyn TargetRow) -> Decision {
        if row.is_greedy() {
            return Greedy.decide(children, row);
        }
        if children.is_empty() {
            return Decision::Emit(row.draw());
        }
        let (leniency, sum, entropy) = (row.leniency(), row.sum(), row.entropy());
        let least = top_p_limit(leniency.epsilon, sum);
        // log2 p >= log2 alpha - H, with the entropy in bits.
        let least_log = log2(sum) + leniency.log2_alpha - entropy;
        let passes = |token| {
            let weight = row.weight(token);
            weight >= least || (weight > 0 && log2(weight) >= least_log)
        };
        follow_where(children, passes).unwrap_or_else(|| Decision::Emit(row.draw()))
    }
}
