//! The phases that draft trees.

use super::CpuBackend;
use super::block_heads::select_largest;
use super::drafting::{active, row_scratch};
use super::draw::{Siblings, row_sum};
use super::memory::{elements, elements_mut, place, read, row, row_mut, store};
use super::tree::write_links;
use crate::backend::draft_trees::{
    BranchRows, CandidatePool, ChildTokens, ColumnTokens, DescribeTree, DrawSiblings, ExpandBest,
    FixedLevel, RankCandidates, ScoreChildren, TellLogits, TreeLevel, TreeShape,
};
use crate::backend::phases::DraftBatch;
use crate::sampling::{WEIGHT_BITS, log2};
use crate::tree::{Limits, NODES_MAX, Topology};
use std::cmp::Ordering;
use std::ops::Range;

/// The rows of a law.
fn rows_of(level: &TreeLevel, law: usize) -> Range<usize> {
    law * level.shared..(law + 1) * level.shared
}

/// A row's place in a level: its sequence's tree, and its number there.
fn place_in(level: &TreeLevel, row: usize) -> (usize, usize) {
    (row / level.width, row % level.width)
}

/// A row of a level with its sequence, its node, and how many tokens the sequence proposes.
struct Parent {
    row: usize,
    sequence: usize,
    node: usize,
    drafts: usize,
}

impl Parent {
    /// # Safety
    ///
    /// The contract of [`crate::backend::Backend`], here and for the other functions.
    unsafe fn of(level: &FixedLevel<'_>, row: usize) -> Self {
        // SAFETY: as this function's contract.
        unsafe {
            let sequence = read(level.level.rows.sequence, row) as usize;
            let drafts = read(level.plan.num_drafts, sequence) as usize;
            Self { row, sequence, node: level.node(row), drafts }
        }
    }

    /// The children that are proposed.
    fn children<'a>(&self, level: &FixedLevel<'a>) -> impl Iterator<Item = usize> + use<'a> {
        let drafts = self.drafts;
        level.inner.topology().children(self.node).take_while(move |&child| child <= drafts)
    }

    /// Whether there is a token for the node.
    unsafe fn is_there(&self, level: &FixedLevel<'_>) -> bool {
        let tokens = level.batch.draft_tokens;
        // SAFETY: as for `of`; the node's token was written with the level above.
        self.node == 0
            || unsafe { read(tokens.span, self.sequence * tokens.stride + self.node - 1) } >= 0
    }
}

/// The token of a child of a law's rows, if there is a candidate for its rank.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
unsafe fn child_token(children: &ChildTokens, law: usize, rank: usize) -> Option<i32> {
    let count = children.count();
    if rank >= count {
        return None;
    }
    // SAFETY: as this function's contract.
    unsafe {
        let is_candidate = row(&children.values, law)[rank] > f32::NEG_INFINITY;
        if rank > 0 && !is_candidate {
            return None;
        }
        let column = read(children.ids, law * count + rank) as usize;
        let token = |of: ColumnTokens| read(of.ids, of.table(law) + column);
        Some(children.tokens.map_or(column as i32, token))
    }
}

/// Lays out a row of the next level.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`]; no other task writes the row.
unsafe fn continue_row(level: &TreeLevel, parent: usize, next: &TreeLevel, to: usize, token: i32) {
    let (tree, number) = place_in(next, to);
    // SAFETY: as this function's contract.
    unsafe {
        let (from, rows) = (&level.rows, &next.rows);
        *place(rows.sequence, to) = read(from.sequence, parent);
        *place(rows.position, to) = read(from.position, parent) + 1;
        // The host's rope positions are any numbers.
        *place(rows.rope_position, to) = read(from.rope_position, parent).wrapping_add(1);
        *place(rows.token, to) = token;
        *place(rows.source, to) = parent as i32;
        if next.stride == 0 {
            return;
        }
        let path = elements_mut(next.paths.slice(to * next.stride, next.depth));
        path[..level.depth]
            .copy_from_slice(elements(level.paths.slice(parent * level.stride, level.depth)));
        path[level.depth] = next.slot(tree, number) as i32;
    }
}

/// All of these: the contract of [`crate::backend::Backend`].
impl CpuBackend {
    pub(super) unsafe fn tell_rows(&self, phase: &TellLogits<'_>) {
        let (level, columns) = (&phase.level, phase.logits.columns);
        let batch = &level.batch;
        // SAFETY: the contract of Backend.
        let laws = level.level.law(unsafe { active(&level.level.rows) });
        self.pool.run(laws, &|law| {
            // SAFETY: the law's own memory and that of its rows, as the contract of Backend says.
            unsafe {
                let logits = row_mut(&phase.logits, law);
                for index in rows_of(&level.level, law) {
                    let parent = Parent::of(level, index);
                    if parent.children(level).next().is_none() || !parent.is_there(level) {
                        continue;
                    }
                    let wanted_row = parent.sequence * batch.max_drafts + parent.node;
                    if let Some(wanted) = &batch.draft_logits {
                        let address = wanted.row_address(wanted_row);
                        store(logits, address, wanted.dtype);
                        super::vector::widen(self.isa, address, wanted.dtype, logits);
                    }
                    if let Some((wanted, of)) = batch.draft_candidates.zip(phase.candidates) {
                        let ids = elements(of.ids.slice(of.table(law), columns));
                        elements_mut(wanted.slice(wanted_row * columns, columns))
                            .copy_from_slice(ids);
                    }
                }
            }
        });
    }

    pub(super) unsafe fn draw_sibling_rows(&self, phase: &DrawSiblings<'_>) {
        let level = &phase.level;
        // SAFETY: the contract of Backend.
        let laws = level.level.law(unsafe { active(&level.level.rows) });
        self.pool.run(laws, &|law| {
            // SAFETY: the law's own memory, as the contract of Backend says.
            unsafe {
                let (children, count) = (&phase.children, phase.children.count());
                let rows = rows_of(&level.level, law);
                let of_row = |row: usize| Parent::of(level, row).children(level).count();
                let wanted = rows.clone().map(of_row).max().unwrap_or(0).min(count);
                let scratch = row_scratch(phase.scratch, phase.logits.rows, law);
                let siblings = Siblings {
                    logits: phase.logits.row_range(law, 1),
                    sampling: level.batch.sampling,
                    sequence: Parent::of(level, rows.start).sequence,
                    position: read(level.level.rows.position, rows.start) + phase.distance as i32,
                    before: level.level.depth,
                };
                let ids = elements_mut(children.ids.slice(law * count, wanted));
                siblings.draw(self.isa, ids, row_mut(&children.values, law), scratch);
            }
        });
    }

    pub(super) unsafe fn branch(&self, phase: &BranchRows<'_>) {
        // SAFETY: the contract of Backend.
        unsafe {
            let rows = active(&phase.level.level.rows);
            let trees = self.next_trees(phase);
            if let Some(next) = &phase.next {
                *place(next.rows.count, 0) = (trees * next.width) as i32;
            }
            self.pool.run(rows, &|index| self.branch_row(phase, trees, index));
        }
    }

    /// How many trees have a next level with children.
    unsafe fn next_trees(&self, phase: &BranchRows<'_>) -> usize {
        if phase.next.is_none() {
            return 0;
        }
        // A node is there if more drafts are proposed than stand before it.
        let topology = phase.level.inner.topology();
        let first_grandchild = topology.level(phase.level.level.depth + 2).start;
        // SAFETY: the contract of Backend; no more nodes than drafts of the call and the root.
        unsafe { read(phase.level.plan.drafting, first_grandchild - 1) as usize }
    }

    unsafe fn branch_row(&self, phase: &BranchRows<'_>, trees: usize, index: usize) {
        let BranchRows { level, children, next } = phase;
        let tokens = level.batch.draft_tokens;
        // SAFETY: the row's own children, as the contract of Backend says.
        unsafe {
            let parent = Parent::of(level, index);
            let is_there = parent.is_there(level);
            let (tree, _) = place_in(&level.level, index);
            let law = level.level.law(index);
            for (rank, child) in parent.children(level).enumerate() {
                let token = child_token(children, law, rank).filter(|_| is_there);
                *place(tokens.span, parent.sequence * tokens.stride + child - 1) =
                    token.unwrap_or(-1);
                let Some((next, number)) = next.as_ref().zip(level.inner.number(child)) else {
                    continue;
                };
                if tree < trees {
                    let to = tree * next.width + number - level.inner.level(next.depth).start;
                    continue_row(&level.level, parent.row, next, to, token.unwrap_or(0));
                }
            }
        }
    }

    pub(super) unsafe fn score_rows(&self, phase: &ScoreChildren<'_>) {
        let level = &phase.level.level;
        // SAFETY: the contract of Backend.
        let laws = level.law(unsafe { active(&level.rows) });
        self.pool.run(laws, &|law| {
            // SAFETY: the law's own memory and that of its rows, as the contract of Backend says.
            unsafe {
                let scratch = row_scratch(phase.scratch, phase.logits.rows, law);
                let sum = row_sum(self.isa, &phase.logits.row_range(law, 1), scratch);
                rows_of(level, law).for_each(|index| score_row(phase, index, sum));
            }
        });
    }

    pub(super) unsafe fn expand(&self, phase: &ExpandBest<'_>) {
        let (level, next) = (&phase.level.level, &phase.next);
        // SAFETY: the contract of Backend.
        unsafe {
            let trees = active(&level.rows) / level.width;
            *place(next.rows.count, 0) = (trees * next.width) as i32;
            self.pool.run(trees, &|tree| self.expand_tree(phase, tree));
        }
    }

    unsafe fn expand_tree(&self, phase: &ExpandBest<'_>, tree: usize) {
        let (level, pool, next) = (&phase.level.level, &phase.level.pool, &phase.next);
        let first = pool.first(next.depth);
        let of_tree = tree * pool.stride;
        // SAFETY: the tree's own memory, as the contract of Backend says.
        unsafe {
            let scores = elements(pool.scores.slice(of_tree + first, pool.len(next.depth)));
            let best = elements_mut(pool.expanded.slice(next.slot(tree, 0), next.width));
            select_largest(scores, best, row_mut(&pool.best, tree));
            for (number, candidate) in best.iter_mut().enumerate() {
                let parent = tree * level.width + *candidate as usize / pool.width;
                *candidate += first as i32;
                let token = read(pool.tokens, of_tree + *candidate as usize);
                continue_row(level, parent, next, tree * next.width + number, token);
            }
        }
    }

    pub(super) unsafe fn rank(&self, phase: &RankCandidates<'_>) {
        let level = &phase.level.level;
        // SAFETY: the contract of Backend.
        let trees = unsafe { active(&level.rows) } / level.width;
        self.pool.run(trees, &|tree| {
            // SAFETY: the tree's own memory, as the contract of Backend says.
            unsafe { self.rank_tree(phase, tree) };
        });
    }

    unsafe fn rank_tree(&self, phase: &RankCandidates<'_>, tree: usize) {
        let (level, pool) = (&phase.level.level, &phase.level.pool);
        let (batch, plan) = (&phase.level.batch, &phase.level.plan);
        let last = level.depth + 1;
        let candidates = pool.first(last) + pool.len(last);
        // SAFETY: the tree's own memory, as the contract of Backend says.
        unsafe {
            let sequence = read(level.rows.sequence, tree * level.width) as usize;
            let scores = elements(pool.scores.slice(tree * pool.stride, candidates));
            let order = elements_mut(pool.order.slice(tree * pool.stride, candidates));
            let wanted = read(plan.num_drafts, sequence) as usize;
            let chosen = choose(scores, order, wanted);
            let mut parents = [-1; NODES_MAX];
            let tokens = batch.draft_tokens;
            for (index, &candidate) in chosen.iter().enumerate() {
                let token = read(pool.tokens, tree * pool.stride + candidate as usize);
                *place(tokens.span, sequence * tokens.stride + index) = token;
                let above = parent_candidate(pool, level.slots, tree, candidate as usize);
                parents[index + 1] = match above {
                    None => 0,
                    // A candidate's parent is at least as good and stands before it.
                    Some(above) => 1 + chosen.partition_point(|&other| other < above) as i32,
                };
            }
            *place(plan.num_drafts, sequence) = chosen.len() as i32;
            if let Some(proposed) = batch.num_proposed {
                *place(proposed, sequence) = chosen.len() as i32;
            }
            describe(batch, sequence, &parents[..=chosen.len()]);
        }
    }

    pub(super) unsafe fn describe_trees(&self, phase: &DescribeTree<'_>) {
        let DescribeTree { batch, plan } = phase;
        if batch.links.is_none() {
            return;
        }
        let chain;
        let topology = match &batch.shape {
            Some(TreeShape::Fixed { topology, .. }) => *topology,
            Some(TreeShape::Dynamic { .. }) => &Topology::ROOT,
            None => {
                chain = Topology::chain(batch.max_drafts);
                &chain
            }
        };
        self.pool.run(batch.num_sequences, &|sequence| {
            // SAFETY: the sequence's own rows, as the contract of Backend says.
            unsafe {
                let nodes = read(plan.num_drafts, sequence) as usize + 1;
                let nodes = nodes.min(topology.num_nodes());
                describe(batch, sequence, &topology.parents()[..nodes]);
            }
        });
    }
}

/// Scores the children of a row, whose weights have a sum if there are any.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
unsafe fn score_row(phase: &ScoreChildren<'_>, index: usize, sum: Option<u64>) {
    let (level, pool) = (&phase.level.level, &phase.level.pool);
    let (tree, number) = place_in(level, index);
    let (law, depth) = (level.law(index), level.depth + 1);
    let first = tree * pool.stride + pool.first(depth) + number * pool.width;
    // SAFETY: the row's own candidates, as this function's contract says.
    unsafe {
        let sequence = read(level.rows.sequence, index) as usize;
        let is_too_deep = depth > read(phase.level.plan.depth, sequence) as usize;
        let parent = match level.depth {
            0 => 0.0,
            _ => read(pool.scores, tree * pool.stride + expanded(pool, level, index)),
        };
        let scores = elements_mut(pool.scores.slice(first, pool.width));
        let tokens = elements_mut(pool.tokens.slice(first, pool.width));
        let values = row(&phase.children.values, law);
        for (rank, (score, token)) in scores.iter_mut().zip(tokens).enumerate() {
            let value = values.get(rank).copied().unwrap_or(f32::NEG_INFINITY);
            *token = child_token(&phase.children, law, rank).unwrap_or(0);
            *score = match sum {
                Some(sum) if !is_too_deep => score_below(parent, (value, values[0]), sum),
                _ => f32::NEG_INFINITY,
            };
        }
    }
}

/// Which candidate of its tree a row's node is.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
unsafe fn expanded(pool: &CandidatePool, level: &TreeLevel, row: usize) -> usize {
    let (tree, number) = place_in(level, row);
    // SAFETY: as this function's contract.
    unsafe { read(pool.expanded, level.slot(tree, number)) as usize }
}

/// The candidate whose child this one is; `None` is the root.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
unsafe fn parent_candidate(
    pool: &CandidatePool,
    slots: usize,
    tree: usize,
    candidate: usize,
) -> Option<i32> {
    // Slots are in the order of the expanded nodes, and so are their children.
    let slot = (candidate.checked_sub(pool.width)?) / pool.width;
    // SAFETY: as this function's contract.
    Some(unsafe { read(pool.expanded, tree * slots + slot) })
}

/// The score of a child with a logit, of which the largest in its row is `largest`.
fn score_below(parent: f32, (logit, largest): (f32, f32), sum: u64) -> f32 {
    // Where the largest is +inf, all that are it are equal.
    let behind = if logit == largest { 0.0 } else { logit - largest };
    let logarithm = (log2(sum) - (i64::from(WEIGHT_BITS) << 32)) as f32 * 2.0_f32.powi(-32);
    parent + (behind * std::f32::consts::LOG2_E - logarithm)
}

/// As many as are wanted of the candidates with the largest scores, ascending.
fn choose<'a>(scores: &[f32], order: &'a mut [i32], wanted: usize) -> &'a [i32] {
    for (place, candidate) in order.iter_mut().zip(0..) {
        *place = candidate;
    }
    let score = |candidate: &i32| scores[*candidate as usize];
    order.sort_unstable_by(|left, right| {
        let by_score = score(right).partial_cmp(&score(left)).unwrap_or(Ordering::Equal);
        by_score.then(left.cmp(right))
    });
    let there = order.partition_point(|candidate| score(candidate) > f32::NEG_INFINITY);
    let chosen = &mut order[..there.min(wanted)];
    chosen.sort_unstable();
    chosen
}

/// Tells the host a tree.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
unsafe fn describe(batch: &DraftBatch<'_>, sequence: usize, parents: &[i32]) {
    let Some(links) = &batch.links else { return };
    let tree = Topology::from_parents(parents, &Limits::LARGEST);
    let tree = tree.unwrap_or_else(|_| unreachable!("parents stand before their children"));
    // SAFETY: as this function's contract.
    unsafe {
        let position = read(batch.position.span, sequence * batch.position.stride);
        write_links(links, (sequence, batch.max_drafts + 1), Some(&tree), position);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_candidates_are_chosen_and_of_equal_ones_the_first() {
        let infinite = f32::NEG_INFINITY;
        let scores = [-1.0, -3.0, -1.0, infinite, -0.5, -3.0, -1.0];
        let mut order = [0; 7];
        assert_eq!(choose(&scores, &mut order, 3), [0, 2, 4]);
        assert_eq!(choose(&scores, &mut order, 5), [0, 1, 2, 4, 6]);
        assert_eq!(choose(&scores, &mut order, 7), [0, 1, 2, 4, 5, 6]);
        assert_eq!(choose(&scores, &mut order, 0), [0; 0]);
    }

    #[test]
    fn scores_are_logarithms_of_probabilities_to_base_2() {
        let logits = [0.5_f32, 2.0, -3.0, f32::NEG_INFINITY];
        let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let sum = (total / 2.0_f64.exp() * 2.0_f64.powi(WEIGHT_BITS as i32)).round() as u64;
        for logit in logits {
            let expected = (f64::from(logit).exp() / total).log2() - 1.5;
            let found = f64::from(score_below(-1.5, (logit, 2.0), sum));
            assert!(found == expected || (found - expected).abs() < 1e-6, "{found} {expected}");
        }
        let infinite = f32::INFINITY;
        assert_eq!(score_below(-1.0, (infinite, infinite), 2 << WEIGHT_BITS), -2.0);
        assert_eq!(score_below(-1.0, (5.0, infinite), 2 << WEIGHT_BITS), f32::NEG_INFINITY);
    }
}
