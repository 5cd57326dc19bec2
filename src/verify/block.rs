//! Block verification (Sun et al., "Block verification accelerates speculative decoding", 2024).

use super::greedy::Greedy;
use crate::backend::verify::{
    ChainRule, Child, Decision, PrefixWeight, Rule, RuleKind, TargetChain, TargetRow,
};

/// Tests prefixes of the chain rather than drafts: the longest one that passes is accepted, though
/// a shorter one may have failed. Never accepts fewer drafts, on average, than testing them one by
/// one.
///
/// Numbers of tests, and of drafts, belong to a round as well as to a position: drafts beyond the
/// accepted ones have a say in where the text goes on, so they must not be drawn again, nor tested
/// again, with the same numbers.
#[derive(Debug)]
pub struct Block;

impl Rule for Block {
    fn kind(&self) -> RuleKind {
        RuleKind::Block
    }

    fn decide(&self, children: &mut [Child], row: &mut dyn TargetRow) -> Decision {
        Greedy.decide(children, row)
    }

    fn chain_rule(&self) -> Option<&dyn ChainRule> {
        Some(self)
    }
}

impl ChainRule for Block {
    fn decide(&self, chain: &mut dyn TargetChain) -> (usize, usize) {
        let drafts = chain.num_drafts();
        let (mut accepted, mut kept) = (0, PrefixWeight::One);
        let mut weight = PrefixWeight::One;
        for draft in 1..=drafts {
            weight = chain.extend(draft - 1, weight);
            if weight == PrefixWeight::Fraction(0) {
                break;
            }
            let passes = if draft == drafts {
                chain.passes_whole(weight)
            } else {
                chain.passes(draft, weight)
            };
            if passes {
                (accepted, kept) = (draft, weight);
            }
        }
        (accepted, chain.draw_above(accepted, kept))
    }
}
