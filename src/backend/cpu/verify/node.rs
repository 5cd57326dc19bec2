//! A node of a sequence, as the rules see it.

use super::super::contest::{Contest, DraftLaw, TokenIds};
use super::super::distribution::{Law, Reader};
use super::super::memory::read;
use super::super::remainder::Remainder;
use super::super::rows::Row;
use super::Bench;
use super::processing::processed_row;
use super::sequence::Sequence;
use crate::backend::verify::{Child, DraftDistribution, Leniency, Siblings, TargetRow};
use crate::sampling::{Purpose, log2};

/// What is computed for one question is kept for the next.
pub struct Node<'a> {
    bench: Bench<'a>,
    sequence: &'a Sequence<'a>,
    node: usize,
    depth: usize,
    /// Whether the row had one wherever it was looked at.
    pub has_candidate: bool,
    /// The target's, once it was looked at.
    row: Option<Row>,
    p: Option<Law>,
    /// The law of the row that the children were drawn from, once it was looked at.
    q: Option<Option<(DraftLaw<'a>, TokenIds)>>,
    left: Left<'a>,
}

/// What is left of p.
enum Left<'a> {
    /// All of it.
    All,
    /// What one rejected draft leaves.
    AfterOne { token: Option<usize>, siblings: Siblings },
    /// What several leave.
    Remainder(Remainder<'a>),
}

impl<'a> Node<'a> {
    /// A node of this depth.
    pub fn new(bench: Bench<'a>, sequence: &'a Sequence<'a>, node: usize, depth: usize) -> Self {
        Self {
            bench,
            sequence,
            node,
            depth,
            has_candidate: true,
            row: None,
            p: None,
            q: None,
            left: Left::All,
        }
    }

    fn target(&mut self) -> Reader<'a> {
        let Bench { isa, split, scratch } = self.bench;
        // SAFETY: the contract of `decide`; the sequence's rows were checked, and of its nodes one
        // is looked at at a time.
        unsafe {
            let (bench, sequence, node) = (self.bench, self.sequence, self.node);
            let row = self.row.get_or_insert_with(|| processed_row(bench, sequence, node));
            Reader::new(isa, split, *row, scratch.target)
        }
    }

    /// p; a row without a candidate is certain of its lowest id.
    fn law(&mut self) -> Law {
        if let Some(law) = self.p {
            return law;
        }
        let law = self.target().law(&self.sequence.parameters);
        self.has_candidate &= law.is_some();
        *self.p.insert(law.unwrap_or(Law::Certain(0)))
    }

    /// The law that the children were drawn from, which for drafts that were taken as given is
    /// certain of the token; `None` where it is not known, or its row has no candidate.
    fn draft_law(&mut self, token: Option<usize>) -> Option<(DraftLaw<'a>, TokenIds)> {
        let Some(draft) = self.sequence.batch.draft else {
            return token.map(|token| (DraftLaw::Token(token), TokenIds::Identity));
        };
        if self.q.is_none() {
            self.q = Some(self.row_law(&draft));
        }
        self.q.flatten()
    }

    /// The law of the row that the children were drawn from.
    fn row_law(&self, draft: &DraftDistribution) -> Option<(DraftLaw<'a>, TokenIds)> {
        let Bench { isa, split, scratch } = self.bench;
        // SAFETY: the contract of `decide`.
        let (first, parameters) =
            unsafe { (self.sequence.draft_row(draft)?, self.sequence.draft_parameters(draft)) };
        let index = first + self.node;
        let ids = draft
            .token_ids
            .map(|ids| ids.address() + (index * draft.token_ids_stride * size_of::<i32>()) as u64);
        let row = Row {
            address: draft.logits.row_address(index),
            dtype: draft.logits.dtype,
            len: draft.logits.columns,
            token_ids: ids,
        };
        // SAFETY: as above; the draft's rows were checked, and nodes with children have one.
        let reader = unsafe { Reader::new(isa, split, row, scratch.draft?) };
        let law = reader.law(&parameters)?;
        Some((DraftLaw::Row(reader, law), ids.map_or(TokenIds::Identity, TokenIds::At)))
    }

    fn contest(&mut self, token: Option<usize>) -> Option<Contest<'a>> {
        let (target, p) = (self.target(), self.law());
        let (q, ids) = self.draft_law(token)?;
        Some(Contest { target, p, q, ids, overlap: self.bench.scratch.overlap })
    }

    /// The weights of a token by p and by q, each with its sum; `None` where q is not known.
    pub fn weights(&mut self, token: usize) -> Option<((u64, u64), (u64, u64))> {
        let Contest { target, p, q, ids, .. } = self.contest(Some(token))?;
        let theirs = (q.weight(ids, token), q.sum() as u64);
        Some(((target.weight(&p, token), p.sum()), theirs))
    }

    /// All weights of p, and of q if a token or a distribution says it.
    pub fn remainder(&mut self, token: Option<usize>) -> Option<Remainder<'a>> {
        // A batch that needs no such scratch has no rule that asks.
        let scratch = self.bench.scratch.remainder?;
        let (target, p, q) = (self.target(), self.law(), self.draft_law(token));
        let ours = |weights: &mut [u64]| target.write_weights(&p, weights);
        let their_sum = q.as_ref().map_or(0, |(q, _)| q.sum() as u64);
        let theirs = |weights: &mut [u64]| match &q {
            Some((q, ids)) => q.write_weights(*ids, weights),
            None => weights.fill(0),
        };
        // SAFETY: scratch of this worker, whose last remainder is gone: a node has one at a time.
        Some(unsafe { Remainder::new(scratch, (p.sum(), ours), (their_sum, theirs)) })
    }

    /// What is left of p, token by token, with what has been rejected so far.
    fn left(&mut self) -> Option<&mut Remainder<'a>> {
        if !matches!(self.left, Left::Remainder(_)) {
            let rejected = std::mem::replace(&mut self.left, Left::All);
            let mut remainder = self.remainder(None)?;
            if let Left::AfterOne { token, siblings } = rejected {
                take(&mut remainder, self.sequence.batch.draft.is_some(), token, siblings);
            }
            self.left = Left::Remainder(remainder);
        }
        match &mut self.left {
            Left::Remainder(remainder) => Some(remainder),
            _ => None,
        }
    }

    /// The number of the token that is emitted here.
    pub fn emission_number(&self) -> u64 {
        // SAFETY: the contract of `decide`.
        unsafe { self.sequence.emission_number(self.node, self.depth) }
    }

    fn number(&self, child: &Child) -> u64 {
        let place = (child.node, self.depth + 1);
        // SAFETY: the contract of `decide`; children are drafts.
        unsafe { self.sequence.test_number(place, Purpose::Accept, child.rank) }
    }
}

impl TargetRow for Node<'_> {
    fn is_greedy(&self) -> bool {
        self.sequence.parameters.is_greedy()
    }

    fn argmax(&mut self) -> usize {
        let token = self.target().argmax();
        self.has_candidate &= token.is_some();
        token.unwrap_or(0)
    }

    fn draw(&mut self) -> usize {
        let law = self.law();
        self.target().draw(&law, self.emission_number())
    }

    fn accepts(&mut self, child: &Child) -> bool {
        let Some(token) = child.token else { return false };
        let number = self.number(child);
        if matches!(self.left, Left::All) {
            return self.contest(Some(token)).is_some_and(|contest| contest.accepts(token, number));
        }
        let has_distribution = self.sequence.batch.draft.is_some();
        self.left().is_some_and(|left| match has_distribution {
            true => left.accepts(token, number),
            false => left.is_drawn(token, number),
        })
    }

    fn reject(&mut self, child: &Child, siblings: Siblings) {
        let token = child.token;
        if matches!(self.left, Left::All) {
            self.left = Left::AfterOne { token, siblings };
            return;
        }
        let has_distribution = self.sequence.batch.draft.is_some();
        if let Some(left) = self.left() {
            take(left, has_distribution, token, siblings);
        }
    }

    fn draw_left(&mut self) -> usize {
        let number = self.emission_number();
        let drawn = match &self.left {
            Left::All => None,
            Left::AfterOne { token, .. } => {
                let token = *token;
                self.contest(token).and_then(|contest| contest.draw_residual(number))
            }
            Left::Remainder(remainder) => remainder.draw(number),
        };
        drawn.unwrap_or_else(|| self.draw())
    }

    fn remove(&mut self, token: usize) {
        if let Some(left) = self.left() {
            left.remove(token);
        }
    }

    fn test_number(&self, child: &Child) -> u64 {
        self.number(child)
    }

    fn weight(&mut self, token: usize) -> u64 {
        let law = self.law();
        self.target().weight(&law, token)
    }

    fn sum(&mut self) -> u64 {
        self.law().sum()
    }

    fn entropy(&mut self) -> i64 {
        let law = self.law();
        let mean = match law {
            Law::Certain(_) => return 0,
            Law::Scaled { sum, .. } => self.target().sum_of_logarithms(&law) / u128::from(sum),
        };
        log2(law.sum()) - ((mean as i64) << 16)
    }

    fn bounds_near_best(&mut self, top_n: i32, tolerance: f32) -> Option<[f32; 2]> {
        let (last, largest) = self.target().largest_from(top_n.max(1) as usize)?;
        Some([last, largest - tolerance])
    }

    fn logit(&mut self, token: usize) -> f32 {
        self.target().logit(token)
    }

    fn leniency(&self) -> Leniency {
        self.sequence.batch.leniency
    }

    fn wanted_acceptance(&self) -> f32 {
        let wanted = self.sequence.batch.leniency.acceptance;
        // SAFETY: the contract of `decide`; a node with a child is above the last depth.
        wanted.map_or(0.0, |wanted| unsafe { read(wanted, self.depth) })
    }
}

/// Takes a rejected draft from what is left.
fn take(
    left: &mut Remainder<'_>,
    has_distribution: bool,
    token: Option<usize>,
    siblings: Siblings,
) {
    match (has_distribution, token) {
        (true, _) => left.reject(token, siblings),
        // A draft that was taken as given was certain.
        (false, Some(token)) => left.remove(token),
        (false, None) => {}
    }
}
