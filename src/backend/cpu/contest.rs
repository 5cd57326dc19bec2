//! The target's law p of a row against the law q that its drafts were drawn from: the test of one
//! draft, and draws from what p has above q.

use super::distribution::{GROUP, Law, Reader};
use super::memory::elements;
use super::rows::{BLOCK, Block};
use crate::sampling::{WEIGHT_ONE, scaled};
use crate::tensor::Span;

/// What a proposal was drawn from, over the target's vocabulary.
#[derive(Clone, Copy, Debug)]
pub enum DraftLaw<'a> {
    /// The weights of a row of candidates.
    Row(Reader<'a>, Law),
    /// Certainty of a token.
    Token(usize),
}

impl DraftLaw<'_> {
    /// The sum of the weights.
    pub fn sum(&self) -> u128 {
        match self {
            Self::Row(_, law) => law.sum().into(),
            Self::Token(_) => WEIGHT_ONE.into(),
        }
    }

    /// The weight of a token.
    pub fn weight(&self, ids: TokenIds, token: usize) -> u64 {
        match self {
            Self::Token(only) => {
                if *only == token {
                    WEIGHT_ONE
                } else {
                    0
                }
            }
            Self::Row(reader, law) => {
                ids.place(reader.row.len, token).map_or(0, |place| reader.weight(law, place))
            }
        }
    }
}

/// The target's ids of a row of candidates.
#[derive(Clone, Copy, Debug)]
pub enum TokenIds {
    /// The candidates are the vocabulary.
    Identity,
    /// The address of one id per candidate.
    At(u64),
}

impl TokenIds {
    fn of(self, place: usize) -> Option<usize> {
        let Self::At(address) = self else { return Some(place) };
        // SAFETY: one id per candidate, by the contract of `Contest`.
        let id = unsafe { (address as *const i32).add(place).read() };
        usize::try_from(id).ok()
    }

    /// The candidate that is a token.
    fn place(self, candidates: usize, token: usize) -> Option<usize> {
        let Self::At(address) = self else { return (token < candidates).then_some(token) };
        // SAFETY: as above.
        let ids: &[i32] = unsafe { elements(Span::new(address, candidates)) };
        // Whole groups are compared before one is looked through, which leaves room for vectors.
        let is_token = |id: &i32| *id == token as i32;
        let mut groups = ids.chunks(GROUP).enumerate();
        groups.find_map(|(index, group)| {
            let is_here = group.iter().fold(false, |found, id| found | is_token(id));
            let place = if is_here { group.iter().position(is_token) } else { None };
            place.map(|place| index * GROUP + place)
        })
    }
}

impl DraftLaw<'_> {
    /// Writes the weight of each token of the vocabulary.
    pub fn write_weights(&self, ids: TokenIds, weights: &mut [u64]) {
        match self {
            Self::Token(token) => {
                weights.fill(0);
                weights[*token] = WEIGHT_ONE;
            }
            Self::Row(reader, law) => match ids {
                TokenIds::Identity => reader.write_weights(law, weights),
                TokenIds::At(_) => {
                    weights.fill(0);
                    scatter_weights(reader, law, ids, weights);
                }
            },
        }
    }
}

/// Writes the weights of candidates where their tokens are.
fn scatter_weights(reader: &Reader<'_>, law: &Law, ids: TokenIds, weights: &mut [u64]) {
    let mut theirs = Block([0; BLOCK]);
    for block in 0..reader.row.blocks() {
        if reader.block_sum(law, block) == 0 {
            continue;
        }
        reader.weights(law, block, &mut theirs);
        let first = block * BLOCK;
        for (place, &weight) in theirs.0.iter().enumerate().filter(|(_, weight)| **weight > 0) {
            // Beyond the row's end there is no weight, and no id.
            if let Some(weights) = ids.of(first + place).and_then(|token| weights.get_mut(token)) {
                *weights = weight;
            }
        }
    }
}

/// The target's law p of a row against the law q that its proposal was drawn from.
#[derive(Clone, Copy, Debug)]
pub struct Contest<'a> {
    /// The target's row.
    pub target: Reader<'a>,
    /// p, the last law that the row was asked for.
    pub p: Law,
    /// q.
    pub q: DraftLaw<'a>,
    /// The tokens of q's candidates: valid for all of them.
    pub ids: TokenIds,
    /// Scratch, one element per block of the target's row.
    pub overlap: Span<u128>,
}

impl Contest<'_> {
    /// Whether `number` is below p / q at the token; not where q is 0, as it was not drawn then.
    pub fn accepts(&self, token: usize, number: u64) -> bool {
        let p = u128::from(self.target.weight(&self.p, token));
        let q = u128::from(self.q.weight(self.ids, token));
        q > 0 && scaled(number, q * u128::from(self.p.sum())) < p * self.q.sum()
    }

    /// The token that a number stands for in max(p - q, 0); `None` where that is nothing.
    pub fn draw_residual(&self, number: u64) -> Option<usize> {
        let common = self.measure_overlap();
        let (p_sum, q_sum) = (u128::from(self.p.sum()), self.q.sum());
        // Ids that stand twice against the documented contract could make the overlap too large:
        // then a wrong token is drawn, but nothing breaks.
        let residual = (p_sum * q_sum).saturating_sub(common);
        let mut target = scaled(number, residual);
        let mut last = None;
        for block in 0..self.target.row.blocks() {
            let p = u128::from(self.target.block_sum(&self.p, block)) * q_sum;
            let rest = p.saturating_sub(self.overlaps()[block]);
            if target >= rest {
                target -= rest;
                continue;
            }
            let (mut ours, mut theirs) = (Block([0; BLOCK]), Block([0; BLOCK]));
            self.target.weights(&self.p, block, &mut ours);
            self.draft_weights(block, &mut theirs);
            for (place, (&ours, &theirs)) in ours.0.iter().zip(&theirs.0).enumerate() {
                let rest = (u128::from(ours) * q_sum).saturating_sub(u128::from(theirs) * p_sum);
                if rest > 0 {
                    last = Some(block * BLOCK + place);
                }
                if target < rest {
                    return last;
                }
                target -= rest;
            }
        }
        last
    }

    fn overlaps(&self) -> &[u128] {
        // SAFETY: scratch of this contest; nothing writes it while the slice is used.
        unsafe { elements(self.overlap.slice(0, self.target.row.blocks())) }
    }

    /// Adds up min(p, q) in units of one over both sums, by blocks of the target's row and in all.
    fn measure_overlap(&self) -> u128 {
        let blocks = self.target.row.blocks();
        let overlap = self.overlap.address();
        // SAFETY: scratch of this contest.
        unsafe { (overlap as *mut u128).write_bytes(0, blocks) };
        match self.q {
            DraftLaw::Token(token) => {
                let p = u128::from(self.target.weight(&self.p, token));
                let common =
                    (p * self.q.sum()).min(u128::from(WEIGHT_ONE) * u128::from(self.p.sum()));
                // SAFETY: the token's block is one of the row's.
                unsafe { (overlap as *mut u128).add(token / BLOCK).write(common) };
            }
            DraftLaw::Row(reader, law) => match self.ids {
                TokenIds::Identity => self.target.split.run(blocks, &|_, (begin, end)| {
                    for block in begin..end {
                        let common = self.block_overlap(&reader, &law, block);
                        // SAFETY: scratch of this contest; each part writes its own blocks.
                        unsafe { (overlap as *mut u128).add(block).write(common) };
                    }
                }),
                TokenIds::At(_) => self.scatter_overlap(&reader, &law),
            },
        }
        self.overlaps().iter().sum()
    }

    /// min(p, q) summed over a block of the vocabulary that is the same block of q's row.
    fn block_overlap(&self, reader: &Reader<'_>, law: &Law, block: usize) -> u128 {
        if self.target.block_sum(&self.p, block) == 0 || reader.block_sum(law, block) == 0 {
            return 0;
        }
        let (mut ours, mut theirs) = (Block([0; BLOCK]), Block([0; BLOCK]));
        self.target.weights(&self.p, block, &mut ours);
        reader.weights(law, block, &mut theirs);
        self.common(&ours, &theirs, |_, _| {})
    }

    /// Sums min(p, q) over two blocks of weights, telling each that is not 0.
    fn common(
        &self,
        ours: &Block<u64>,
        theirs: &Block<u64>,
        mut tell: impl FnMut(usize, u128),
    ) -> u128 {
        let (p_sum, q_sum) = (u128::from(self.p.sum()), self.q.sum());
        let mut sum = 0;
        for (place, (&ours, &theirs)) in ours.0.iter().zip(&theirs.0).enumerate() {
            if ours != 0 && theirs != 0 {
                let common = (u128::from(ours) * q_sum).min(u128::from(theirs) * p_sum);
                tell(place, common);
                sum += common;
            }
        }
        sum
    }

    /// Adds min(p, q) of all candidates to the blocks that their tokens lie in.
    fn scatter_overlap(&self, reader: &Reader<'_>, law: &Law) {
        let vocabulary = self.target.row.len;
        let (mut ours, mut theirs) = (Block([0; BLOCK]), Block([0; BLOCK]));
        for block in 0..reader.row.blocks() {
            if reader.block_sum(law, block) == 0 {
                continue;
            }
            reader.weights(law, block, &mut theirs);
            let mut tokens = [None; BLOCK];
            let first = block * BLOCK;
            for (place, (token, &weight)) in tokens.iter_mut().zip(&theirs.0).enumerate() {
                // Beyond the row's end there is no weight, and no id.
                if weight > 0 {
                    *token = self.ids.of(first + place).filter(|&token| token < vocabulary);
                }
            }
            self.target.gather(&self.p, &tokens, &mut ours);
            self.common(&ours, &theirs, |place, common| {
                if let Some(token) = tokens[place] {
                    // SAFETY: scratch of this contest; the token lies in the vocabulary.
                    unsafe {
                        let at = (self.overlap.address() as *mut u128).add(token / BLOCK);
                        *at = (*at).saturating_add(common);
                    }
                }
            });
        }
    }

    /// The weights of q on a block of the vocabulary.
    fn draft_weights(&self, block: usize, weights: &mut Block<u64>) {
        weights.0.fill(0);
        match self.q {
            DraftLaw::Token(token) => {
                if token / BLOCK == block {
                    weights.0[token % BLOCK] = WEIGHT_ONE;
                }
            }
            DraftLaw::Row(reader, law) => match self.ids {
                TokenIds::Identity => reader.weights(&law, block, weights),
                TokenIds::At(_) => self.collect(&reader, &law, block, weights),
            },
        }
    }

    /// The weights of the candidates whose tokens lie in a block of the vocabulary.
    fn collect(&self, reader: &Reader<'_>, law: &Law, block: usize, weights: &mut Block<u64>) {
        let mut theirs = Block([0; BLOCK]);
        for candidates in 0..reader.row.blocks() {
            if reader.block_sum(law, candidates) == 0 {
                continue;
            }
            let first = candidates * BLOCK;
            let mut are_known = false;
            for place in first..reader.row.len.min(first + BLOCK) {
                let Some(token) = self.ids.of(place).filter(|token| token / BLOCK == block) else {
                    continue;
                };
                if !are_known {
                    reader.weights(law, candidates, &mut theirs);
                    are_known = true;
                }
                weights.0[token % BLOCK] = theirs.0[place - first];
            }
        }
    }
}
