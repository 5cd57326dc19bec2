//! What is tried: rules with the ways of drafting that they are for.

use crate::backend::verify::Leniency;
use crate::sampling::Parameters;
use crate::verify::{
    BLOCK, DEFAULT, DISTINCT, FOLLOW, REJECTION, RELAXED, SYNTHETIC, THRESHOLD, TYPICAL,
};

/// How the siblings below a node come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drafting {
    /// The most probable ones by q, taken as given.
    Best,
    /// Any, taken as given.
    Any,
    /// Each drawn from all of q.
    Independent,
    /// Each drawn from what its earlier siblings leave of q.
    Distinct,
    /// The most probable ones, said to be drawn from q.
    BestAsDrawn,
}

/// What ends a chain of drafts early.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cut {
    /// Nothing.
    Never,
    /// No token is as probable by q as this, before one is drawn.
    Unsure(f64),
    /// The drawn token is less probable by q than this; it is removed.
    Improbable(f64),
}

/// The drafts below the root.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// A chain of so many.
    Chain(usize),
    /// The parent of each node.
    Tree(&'static [i32]),
}

/// One way to draft and to verify.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is special about it.
    pub name: &'static str,
    /// The rule's number.
    pub rule: i32,
    /// The drafts below the root.
    pub shape: Shape,
    /// V.
    pub vocabulary: usize,
    /// How drafts come about.
    pub drafting: Drafting,
    /// How the target's tokens are drawn.
    pub parameters: Parameters,
    /// How drafts are drawn.
    pub draft_parameters: Parameters,
    /// Whether tokens are forbidden, and drafts struck out that are.
    pub has_masks: bool,
    /// What ends a chain early.
    pub cut: Cut,
    /// What lossy rules go by.
    pub leniency: Leniency,
    /// How often drafts of each depth are to be accepted.
    pub acceptance: &'static [f32],
    /// Whether it is tried where time is short.
    pub is_quick: bool,
}

/// With all filters, each of which takes something away.
const FILTERED: Parameters = Parameters { temperature: 0.8, top_k: 3, top_p: 0.9, min_p: 0.05 };

/// Drafts of another temperature, without the least probable ones.
const DRAFT_FILTERED: Parameters = Parameters { temperature: 1.4, top_k: 3, ..Parameters::PLAIN };

/// Two and three siblings, in three depths.
const TREE: Shape = Shape::Tree(&[-1, 0, 0, 0, 1, 1, 2, 2, 4, 4]);

/// The smallest tree with siblings and a depth.
const SMALL_TREE: Shape = Shape::Tree(&[-1, 0, 0, 1]);

/// Siblings, and nothing below them.
const SIBLINGS: Shape = Shape::Tree(&[-1, 0, 0, 0]);

impl Case {
    /// Plain sampling from a small vocabulary.
    pub fn new(name: &'static str, rule: i32, shape: Shape, drafting: Drafting) -> Self {
        let vocabulary = if matches!(shape, Shape::Tree(_)) { 4 } else { 3 };
        Self {
            name,
            rule,
            shape,
            vocabulary,
            drafting,
            parameters: Parameters::PLAIN,
            draft_parameters: Parameters::PLAIN,
            has_masks: false,
            cut: Cut::Never,
            leniency: Leniency::NONE,
            acceptance: &[],
            is_quick: false,
        }
    }

    /// Also tried where time is short.
    fn quick(self) -> Self {
        Self { is_quick: true, ..self }
    }

    /// With filters, which take from a vocabulary of four.
    fn filtered(self) -> Self {
        let (parameters, draft_parameters) = (FILTERED, DRAFT_FILTERED);
        Self { parameters, draft_parameters, vocabulary: 4, ..self }
    }

    /// With masks, which take from a vocabulary of four.
    fn masked(self) -> Self {
        Self { has_masks: true, vocabulary: 4, ..self }
    }

    /// Cut short.
    pub fn cut(self, cut: Cut) -> Self {
        Self { cut, ..self }
    }

    /// With what a lossy rule goes by.
    fn with(self, leniency: Leniency) -> Self {
        Self { leniency, vocabulary: 3, ..self }
    }

    /// The parent of each node.
    pub fn parents(&self) -> Vec<i32> {
        match self.shape {
            Shape::Chain(drafts) => (-1..drafts as i32).collect(),
            Shape::Tree(parents) => parents.to_vec(),
        }
    }

    /// The ways of so many siblings below a node, each with its probability, by q and by the tokens
    /// that the target's row allows. A token that is not allowed is struck out.
    pub fn siblings(&self, q: &[f64], allowed: u32, count: usize) -> Vec<(Vec<i32>, f64)> {
        let mut ways = vec![(Vec::new(), 1.0)];
        for rank in 0..count {
            let step = |(tokens, probability): (Vec<i32>, f64)| {
                let law = self.next_law(q, rank, &tokens);
                let drawn = law.into_iter().enumerate().filter(|(_, law)| *law > 0.0);
                drawn
                    .map(|(token, law)| {
                        ([&tokens[..], &[token as i32]].concat(), probability * law)
                    })
                    .collect::<Vec<_>>()
            };
            ways = ways.into_iter().flat_map(step).collect();
        }
        for token in ways.iter_mut().flat_map(|(tokens, _)| tokens) {
            if allowed >> *token & 1 == 0 {
                *token = -1;
            }
        }
        ways
    }

    /// The law of a sibling after others.
    fn next_law(&self, q: &[f64], rank: usize, earlier: &[i32]) -> Vec<f64> {
        match self.drafting {
            Drafting::Any => vec![1.0 / q.len() as f64; q.len()],
            Drafting::Independent => q.to_vec(),
            Drafting::Distinct => {
                let is_left = |token: usize| !earlier.contains(&(token as i32));
                let left = |(token, q): (usize, &f64)| if is_left(token) { *q } else { 0.0 };
                let left: Vec<f64> = q.iter().enumerate().map(left).collect();
                let sum: f64 = left.iter().sum();
                left.iter().map(|left| left / sum).collect()
            }
            Drafting::Best | Drafting::BestAsDrawn => {
                let mut order: Vec<usize> = (0..q.len()).collect();
                order.sort_by(|&left, &right| q[right].total_cmp(&q[left]));
                (0..q.len()).map(|token| f64::from(token == order[rank])).collect()
            }
        }
    }

    /// Whether verification is told of q.
    pub fn has_distribution(&self) -> bool {
        !matches!(self.drafting, Drafting::Best | Drafting::Any)
    }
}

/// All that is tried.
pub fn all() -> Vec<Case> {
    let mut cases = lossless_chains();
    cases.extend(lossless_trees());
    cases.extend(lossy());
    cases
}

fn lossless_chains() -> Vec<Case> {
    use Drafting::{Best, Independent};
    let chain = |name, rule, drafting| Case::new(name, rule, Shape::Chain(3), drafting);
    let short = |name, rule, drafting| Case::new(name, rule, Shape::Chain(2), drafting);
    let greedy = |case: Case| Case { parameters: Parameters::GREEDY, ..case };
    vec![
        short("chain", DEFAULT, Independent),
        short("chain, given drafts", DEFAULT, Best),
        short("chain, given drafts", FOLLOW, Best).quick(),
        short("chain, filters and masks", FOLLOW, Best).filtered().masked(),
        short("chain", REJECTION, Independent).quick(),
        short("chain, given drafts", REJECTION, Best),
        short("chain, filters", REJECTION, Independent).filtered(),
        short("chain, masks", REJECTION, Independent).masked(),
        chain("chain, cut where the drafter is not sure", REJECTION, Independent)
            .cut(Cut::Unsure(0.5)),
        greedy(short("chain, greedy target", REJECTION, Independent)),
        short("chain", DISTINCT, Independent),
        chain("chain", BLOCK, Independent),
        short("short chain", BLOCK, Independent).quick(),
        short("chain, given drafts", BLOCK, Best),
        short("chain, filters", BLOCK, Independent).filtered(),
        short("chain, masks", BLOCK, Independent).masked(),
        chain("chain, cut where the drafter is not sure", BLOCK, Independent).cut(Cut::Unsure(0.5)),
        greedy(short("chain, greedy target", BLOCK, Independent)),
    ]
}

fn lossless_trees() -> Vec<Case> {
    use Drafting::{Best, Distinct, Independent};
    let tree = |name, rule, drafting| Case::new(name, rule, TREE, drafting);
    let small = |name, rule, drafting| Case::new(name, rule, SMALL_TREE, drafting);
    vec![
        small("tree, filters and masks", DEFAULT, Distinct).filtered().masked(),
        tree("tree, given drafts", FOLLOW, Best),
        tree("tree, given drafts, masks", FOLLOW, Best).masked(),
        Case { vocabulary: 3, ..tree("tree", REJECTION, Independent) },
        Case { vocabulary: 3, ..small("small tree", REJECTION, Independent) }.quick(),
        small("tree, filters and masks", REJECTION, Independent).filtered().masked(),
        tree("tree, given drafts", REJECTION, Best),
        tree("tree", DISTINCT, Distinct),
        Case { vocabulary: 3, ..small("small tree", DISTINCT, Distinct) }.quick(),
        tree("tree, filters", DISTINCT, Distinct).filtered(),
        tree("tree, masks", DISTINCT, Distinct).masked(),
    ]
}

fn lossy() -> Vec<Case> {
    let none = Leniency::NONE;
    // The factor 0.8.
    let log2_alpha = (0.8_f64.log2() * 2.0_f64.powi(32)) as i64;
    let typical = Leniency { epsilon: 0.35, log2_alpha, ..none };
    let certain = Leniency { epsilon: 0.35, log2_alpha: 0, ..none };
    let halved = Leniency { threshold_single: 0.6, threshold_accumulated: 0.5, ..none };
    let near = Leniency { top_n: 2, tolerance: 1.0, ..none };
    let any = |name, rule, shape| Case::new(name, rule, shape, Drafting::Any);
    let wanted: &[f32] = &[0.75, 0.25];
    vec![
        any("siblings", TYPICAL, SIBLINGS).with(typical),
        any("chain", TYPICAL, Shape::Chain(2)).with(certain).quick(),
        any("siblings", THRESHOLD, SIBLINGS).with(halved),
        any("chain", THRESHOLD, Shape::Chain(2)).with(halved).quick(),
        any("siblings", RELAXED, SIBLINGS).with(near),
        any("chain", RELAXED, Shape::Chain(2)).with(near).quick(),
        Case { acceptance: wanted, ..any("chain", SYNTHETIC, Shape::Chain(2)) }.quick(),
        Case { acceptance: wanted, ..any("small tree", SYNTHETIC, SMALL_TREE).with(none) },
    ]
}
