//! The rows of a chain, as rules that look at all of them see it.

use super::super::remainder::{Remainder, extend, is_below, is_below_chance};
use super::Bench;
use super::node::Node;
use super::sequence::Sequence;
use crate::backend::verify::{PrefixWeight, TargetChain, TargetRow};
use crate::sampling::Purpose;

/// A chain, with the row that was looked at last.
pub struct Chain<'a> {
    bench: Bench<'a>,
    sequence: &'a Sequence<'a>,
    row: Option<(usize, Node<'a>)>,
    /// Whether every row had a candidate that was looked at.
    pub has_candidate: bool,
}

impl<'a> Chain<'a> {
    /// The chain of a sequence.
    pub fn new(bench: Bench<'a>, sequence: &'a Sequence<'a>) -> Self {
        Self { bench, sequence, row: None, has_candidate: true }
    }

    /// Does something with the row of a node.
    fn at<T>(&mut self, node: usize, body: impl FnOnce(&mut Node<'a>) -> T) -> T {
        let (_, row) = match self.row.take() {
            Some((known, row)) if known == node => self.row.insert((known, row)),
            _ => {
                let row = Node::new(self.bench, self.sequence, node, node);
                self.row.insert((node, row))
            }
        };
        let result = body(row);
        self.has_candidate &= row.has_candidate;
        result
    }

    /// The draft below a node, if there is one that was not struck out.
    fn draft(&self, node: usize) -> Option<usize> {
        if node == self.sequence.num_drafts {
            return None;
        }
        // SAFETY: the contract of `decide`; the draft is one of the sequence's.
        usize::try_from(unsafe { self.sequence.draft(node + 1) }).ok()
    }

    /// All weights at a node, if q is known there.
    fn remainder(&mut self, node: usize) -> Option<Remainder<'a>> {
        let draft = self.draft(node);
        let is_known = draft.is_some() || self.sequence.batch.draft.is_some();
        let remainder = self.at(node, |row| if is_known { row.remainder(draft) } else { None });
        remainder.filter(Remainder::knows_theirs)
    }

    fn number(&self, draft: usize) -> u64 {
        // SAFETY: the contract of `decide`; the draft is one of the sequence's.
        unsafe { self.sequence.test_number((draft, draft), Purpose::AcceptBlock, draft - 1) }
    }
}

impl TargetChain for Chain<'_> {
    fn num_drafts(&self) -> usize {
        self.sequence.num_drafts
    }

    fn extend(&mut self, node: usize, weight: PrefixWeight) -> PrefixWeight {
        let nothing = PrefixWeight::Fraction(0);
        let Some(token) = self.draft(node) else { return nothing };
        let weights = self.at(node, |row| row.weights(token));
        weights.map_or(nothing, |(ours, theirs)| extend(weight, ours, theirs))
    }

    fn passes(&mut self, node: usize, weight: PrefixWeight) -> bool {
        let number = self.number(node);
        // Whether there is a candidate is told of each row on the way.
        self.at(node, |row| row.sum());
        match self.remainder(node) {
            Some(all) => is_below_chance(number, all.excess(weight), weight),
            // As if the chain ended here.
            None => is_below(number, weight),
        }
    }

    fn passes_whole(&mut self, weight: PrefixWeight) -> bool {
        is_below(self.number(self.sequence.num_drafts), weight)
    }

    fn draw_above(&mut self, node: usize, weight: PrefixWeight) -> usize {
        if node < self.sequence.num_drafts
            && let Some(all) = self.remainder(node)
        {
            let number = self.at(node, |row| row.emission_number());
            if let Some(token) = all.draw_excess(weight, number) {
                return token;
            }
        }
        self.at(node, |row| row.draw())
    }
}
