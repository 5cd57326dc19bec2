//! The way of a sequence down its tree.

use super::super::memory::{elements_mut, read};
use super::Bench;
use super::chain::Chain;
use super::node::Node;
use super::sequence::Sequence;
use crate::backend::verify::{Child, Decision, Rule, record};

/// What was emitted for a sequence.
#[derive(Default)]
pub struct Emission {
    /// Drafts accepted.
    pub accepted: usize,
    /// Tokens emitted.
    pub emitted: usize,
    /// Drafts that were not looked at.
    pub dropped: usize,
    /// Flags of the record.
    pub flags: i32,
}

/// What is known of a node.
#[derive(Clone, Copy)]
pub struct Visit {
    parent: u32,
    depth: u32,
    /// The node's own token.
    token: i32,
    /// Whether the path may lead here.
    is_reached: bool,
    /// What follows, if the path ends here and a token follows at all.
    emitted: Option<i32>,
    has_candidate: bool,
}

/// A sequence on its way.
struct Walk<'a> {
    bench: Bench<'a>,
    sequence: &'a Sequence<'a>,
    rule: &'a dyn Rule,
    limit: usize,
    visits: &'a mut [Visit],
}

/// Goes down the tree where drafts are accepted, and writes the tokens and the path: the longest one,
/// of equally long ones the one that takes the first sibling where they part.
///
/// # Safety
///
/// As for [`super::decide`].
pub unsafe fn walk(
    bench: Bench<'_>,
    sequence: &Sequence<'_>,
    rule: &dyn Rule,
    tokens: &mut [i32],
    path: &mut [i32],
) -> Emission {
    let batch = sequence.batch;
    let lossy = if rule.kind().is_lossy() { record::LOSSY } else { 0 };
    // SAFETY: as this function's contract.
    let limit = batch.limit.map_or(i32::MAX, |limits| unsafe { read(limits, sequence.index) });
    if limit <= 0 {
        return Emission { flags: record::LIMIT | lossy, ..Emission::default() };
    }
    // SAFETY: scratch of this worker.
    let visits = unsafe { elements_mut(bench.scratch.visits.slice(0, sequence.num_drafts + 1)) };
    let mut walk = Walk { bench, sequence, rule, limit: limit as usize, visits };
    // SAFETY: as this function's contract.
    let last = unsafe {
        walk.begin();
        match rule.chain_rule() {
            Some(rule) if !sequence.parameters.is_greedy() => {
                let mut chain = Chain::new(bench, sequence);
                let (accepted, token) = rule.decide(&mut chain);
                walk.follow_chain(accepted, token as i32, chain.has_candidate)
            }
            _ => walk.visit_all(),
        }
    };
    let mut emission = walk.write(last, tokens, path);
    emission.flags |= lossy;
    emission
}

impl Walk<'_> {
    /// Writes down what the host says of the nodes.
    ///
    /// # Safety
    ///
    /// As for [`walk`].
    unsafe fn begin(&mut self) {
        for node in 0..self.visits.len() {
            let (parent, token) = match node {
                0 => (0, -1),
                // SAFETY: as this function's contract.
                _ => unsafe { (self.sequence.parent(node), self.sequence.draft(node)) },
            };
            let depth = if node == 0 { 0 } else { self.visits[parent].depth + 1 };
            self.visits[node] = Visit {
                parent: parent as u32,
                depth,
                token,
                is_reached: node == 0,
                emitted: None,
                has_candidate: true,
            };
        }
    }

    /// Whether nothing is emitted after a node: it is a stop token, or uses the limit up.
    fn is_end(&self, node: usize) -> bool {
        let Visit { depth, token, .. } = self.visits[node];
        depth > 0 && (depth as usize == self.limit || self.is_stop(token))
    }

    fn is_stop(&self, token: i32) -> bool {
        let stops = self.sequence.batch.stop_tokens;
        // SAFETY: the contract of `walk`.
        (0..stops.len()).any(|stop| unsafe { read(stops, stop) } == token)
    }

    /// Decides at every node that is reached, and finds the last node of the path.
    ///
    /// # Safety
    ///
    /// As for [`walk`].
    unsafe fn visit_all(&mut self) -> usize {
        let mut last = 0;
        for node in 0..self.visits.len() {
            let visit = self.visits[node];
            if !visit.is_reached {
                continue;
            }
            if self.is_better(node, last) {
                last = node;
            }
            if !self.is_end(node) {
                // SAFETY: as this function's contract.
                unsafe { self.visit(node) };
            }
        }
        last
    }

    /// Whether a node's path is longer than another's, or equally long and takes the earlier sibling
    /// where they part.
    fn is_better(&self, node: usize, other: usize) -> bool {
        let depth = |node: usize| self.visits[node].depth;
        let parent = |node: usize| self.visits[node].parent;
        if depth(node) != depth(other) || node == other {
            return depth(node) > depth(other);
        }
        let (mut node, mut other) = (node, other);
        while parent(node) != parent(other) {
            (node, other) = (parent(node) as usize, parent(other) as usize);
        }
        node < other
    }

    /// Decides at a node.
    ///
    /// # Safety
    ///
    /// As for [`walk`].
    unsafe fn visit(&mut self, node: usize) {
        let depth = self.visits[node].depth as usize;
        let mut row = Node::new(self.bench, self.sequence, node, depth);
        // SAFETY: scratch of this worker, which no other node uses now.
        let children = unsafe { elements_mut(self.bench.scratch.children) };
        let mut len = 0;
        // A chain's child is the next node; in a tree it may be any later one.
        let candidates = match self.sequence.batch.parents {
            None => node + 1..self.visits.len().min(node + 2),
            Some(_) => node + 1..self.visits.len(),
        };
        for child in candidates {
            if self.visits[child].parent as usize == node {
                let token = usize::try_from(self.visits[child].token).ok();
                children[len] = Child { node: child, rank: len, token, is_followed: false };
                len += 1;
            }
        }
        let children = &mut children[..len];
        match self.rule.decide(children, &mut row) {
            Decision::Emit(token) => self.visits[node].emitted = Some(token as i32),
            Decision::Follow => {
                for child in children.iter().filter(|child| child.is_followed) {
                    self.visits[child.node].is_reached = true;
                }
            }
        }
        self.visits[node].has_candidate = row.has_candidate;
    }

    /// Accepts so many drafts of a chain, as far as emission goes, and finds the last node.
    fn follow_chain(&mut self, accepted: usize, token: i32, has_candidate: bool) -> usize {
        let last = (1..=accepted).find(|&node| self.is_end(node)).unwrap_or(accepted);
        if !self.is_end(last) {
            self.visits[last].emitted = Some(token);
        }
        self.visits[last].has_candidate = has_candidate;
        last
    }

    /// Writes the path that ends at a node.
    fn write(&self, last: usize, tokens: &mut [i32], path: &mut [i32]) -> Emission {
        let visit = self.visits[last];
        let accepted = visit.depth as usize;
        let mut emission = Emission { accepted, emitted: accepted, dropped: 0, flags: 0 };
        match visit.emitted {
            Some(token) => {
                tokens[accepted] = token;
                emission.emitted += 1;
            }
            None => emission.dropped = self.descendants(last),
        }
        let mut node = last;
        for depth in (0..=accepted).rev() {
            let visit = self.visits[node];
            // The row of the last token is not committed: it is the next root.
            if depth < emission.emitted {
                path[depth] = node as i32;
            }
            if depth > 0 {
                tokens[depth - 1] = visit.token;
            }
            if !visit.has_candidate {
                emission.flags |= record::NO_CANDIDATE;
            }
            node = visit.parent as usize;
        }
        if self.is_stop(tokens[emission.emitted - 1]) {
            emission.flags |= record::STOPPED;
        }
        if emission.emitted == self.limit {
            emission.flags |= record::LIMIT;
        }
        emission
    }

    /// How many nodes lie below a node.
    fn descendants(&self, of: usize) -> usize {
        let is_below = |mut node: usize| {
            while node > of {
                node = self.visits[node].parent as usize;
            }
            node == of
        };
        (of + 1..self.visits.len()).filter(|&node| is_below(node)).count()
    }
}
