//! Acceptance by thresholds, as SGLang has it for trees: not lossless unless both are 1.

use super::greedy::Greedy;
use crate::backend::verify::{Child, Decision, Rule, RuleKind, TargetRow};
use crate::sampling::{scaled, top_p_limit};

/// Goes through the siblings with one number: a draft is followed if its probability by p reaches
/// the single threshold, or if the number is below the probability of it and its earlier siblings
/// divided by the other one. Otherwise the token is drawn from p without the siblings.
#[derive(Debug)]
pub struct Threshold;

impl Rule for Threshold {
    fn kind(&self) -> RuleKind {
        RuleKind::Threshold
    }

    fn decide(&self, children: &mut [Child], row: &mut dyn TargetRow) -> Decision {
        if row.is_greedy() {
            return Greedy.decide(children, row);
        }
        let Some(first) = children.first() else {
            return Decision::Emit(row.draw());
        };
        let (leniency, sum, number) = (row.leniency(), row.sum(), row.test_number(first));
        let single = top_p_limit(leniency.threshold_single, sum);
        let share = scaled(number, top_p_limit(leniency.threshold_accumulated, sum).into());
        let mut reached = 0;
        for child in children {
            let Some(token) = child.token else { continue };
            let weight = row.weight(token);
            reached += u128::from(weight);
            if weight > 0 && (share < reached || weight >= single) {
                child.is_followed = true;
                return Decision::Follow;
            }
            row.remove(token);
        }
        Decision::Emit(row.draw_left())
    }
}
