//! What rules promise that do not keep the target's law.

use super::cases::Case;
use super::world::World;
use crate::verify::{RELAXED, SYNTHETIC, THRESHOLD, TYPICAL};

/// How probable it is that the path goes on at each child of a node, and that each token is emitted.
#[derive(Clone, Debug)]
pub struct Promise {
    /// By rank.
    pub children: Vec<f64>,
    /// By token.
    pub tokens: Vec<f64>,
}

/// What the rule of a case promises at a node, by the definition of the rule in real numbers.
pub fn promise(case: &Case, world: &World, row: usize, siblings: &[i32], depth: usize) -> Promise {
    let p = &world.p[row];
    let tokens: Vec<usize> = siblings.iter().map(|&token| token as usize).collect();
    match case.rule {
        TYPICAL => {
            let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p * p.log2()).sum();
            let alpha = (case.leniency.log2_alpha as f64 / 2.0_f64.powi(32)).exp2();
            let least = f64::from(case.leniency.epsilon).min(alpha * (-entropy).exp2());
            first_that(&tokens, p, |token| p[token] >= least)
        }
        RELAXED => {
            let logits = &world.scene.target[row];
            let largest = logits.iter().copied().fold(f32::MIN, f32::max);
            let is_near = |token: usize| {
                let above = logits.iter().filter(|&&logit| logit > logits[token]).count();
                above < case.leniency.top_n as usize
                    && logits[token] >= largest - case.leniency.tolerance
            };
            first_that(&tokens, p, is_near)
        }
        THRESHOLD => by_thresholds(case, p, &tokens),
        SYNTHETIC => {
            let wanted = case.acceptance.get(depth).map_or(0.0, |&wanted| f64::from(wanted));
            let wanted = if tokens.is_empty() { 0.0 } else { wanted };
            let mut children = vec![0.0; tokens.len()];
            if let Some(first) = children.first_mut() {
                *first = wanted;
            }
            Promise { children, tokens: p.iter().map(|p| (1.0 - wanted) * p).collect() }
        }
        // A rule that keeps the law promises no more.
        _ => Promise { children: Vec::new(), tokens: Vec::new() },
    }
}

/// The path goes on at the first child that passes; without one a token is drawn from p.
fn first_that(tokens: &[usize], p: &[f64], passes: impl Fn(usize) -> bool) -> Promise {
    let first = tokens.iter().position(|&token| passes(token));
    let children = (0..tokens.len()).map(|rank| f64::from(Some(rank) == first)).collect();
    let tokens = p.iter().map(|p| if first.is_some() { 0.0 } else { *p }).collect();
    Promise { children, tokens }
}

/// A child is followed if it reaches the single threshold, or if the number of the siblings is
/// below the probability of it and those before over the other threshold.
fn by_thresholds(case: &Case, p: &[f64], tokens: &[usize]) -> Promise {
    let (single, accumulated) =
        (f64::from(case.leniency.threshold_single), f64::from(case.leniency.threshold_accumulated));
    let (mut children, mut left) = (Vec::new(), p.to_vec());
    let (mut passed, mut reached) = (0.0_f64, 0.0);
    for &token in tokens {
        reached += p[token];
        let until = if p[token] >= single { 1.0 } else { (reached / accumulated).min(1.0) };
        let chance = if p[token] > 0.0 { (until - passed).max(0.0) } else { 0.0 };
        children.push(chance);
        passed += chance;
        left[token] = 0.0;
    }
    let sum: f64 = left.iter().sum();
    // Where the siblings are all that there is, what is drawn is p.
    let left = if sum > 0.0 { left.iter().map(|left| left / sum).collect() } else { p.to_vec() };
    Promise { children, tokens: left.iter().map(|left| (1.0 - passed) * left).collect() }
}
