//! The topology of one tree, checked.

use crate::error::Error;
use std::ops::Range;

/// The most nodes of a tree, the root among them.
pub const NODES_MAX: usize = 1024;

/// How large a tree may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Nodes, the root among them.
    pub nodes: usize,
    /// Levels below the root.
    pub depth: usize,
    /// Children of a node.
    pub children: usize,
}

impl Limits {
    /// What no tree exceeds.
    pub const LARGEST: Self =
        Self { nodes: NODES_MAX, depth: NODES_MAX - 1, children: NODES_MAX - 1 };
}

/// What keeps parents or paths from being a tree within its limits. Finding one allocates nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// There is no root.
    #[error("expected a root, found no node")]
    Empty,
    /// Node 0 has a parent.
    #[error("node 0: expected the root, whose parent is -1, found the parent {parent}")]
    Root {
        /// What stands in place of -1.
        parent: i32,
    },
    /// A parent that does not come before its child: every cycle has one.
    #[error("node {node}: expected a parent from 0 to {}, found {parent}", node - 1)]
    Parent {
        /// The child.
        node: usize,
        /// What stands for its parent.
        parent: i32,
    },
    /// Too many nodes.
    #[error("expected at most {most} nodes with the root, found more")]
    Nodes {
        /// As many as there may be.
        most: usize,
    },
    /// A node that is too far from the root.
    #[error("expected at most {most} levels below the root, found more")]
    Depth {
        /// As many as there may be.
        most: usize,
    },
    /// Too many nodes with one parent.
    #[error("expected at most {most} children of a node, found more")]
    Children {
        /// As many as there may be.
        most: usize,
    },
    /// An entry of a path that is neither a rank nor padding.
    #[error("path {path}: expected ranks from 0 on, then only -1, found {entry} at place {place}")]
    Path {
        /// Which path.
        path: usize,
        /// Which of its entries.
        place: usize,
        /// What stands there.
        entry: i32,
    },
}

impl From<Flaw> for Error {
    fn from(flaw: Flaw) -> Self {
        Self::invalid(flaw.to_string())
    }
}

/// A tree of up to [`NODES_MAX`] nodes. It holds no memory of its own, so that steps can make one.
#[derive(Clone)]
pub struct Topology {
    len: usize,
    parents: [i32; NODES_MAX],
    first_child: [i32; NODES_MAX],
    next_sibling: [i32; NODES_MAX],
    depth: [i32; NODES_MAX],
    ranks: [i32; NODES_MAX],
}

impl Topology {
    /// The root alone.
    pub const ROOT: Self = Self {
        len: 1,
        parents: [-1; NODES_MAX],
        first_child: [-1; NODES_MAX],
        next_sibling: [-1; NODES_MAX],
        depth: [0; NODES_MAX],
        ranks: [0; NODES_MAX],
    };

    /// A chain of so many drafts, fewer than [`NODES_MAX`].
    pub fn chain(drafts: usize) -> Self {
        assert!(drafts < NODES_MAX, "a chain longer than any tree");
        let mut chain = Self::ROOT;
        for node in 1..=drafts {
            chain.append(node - 1);
        }
        chain
    }

    /// The tree whose nodes have these parents: -1 for the root, a node before for every other.
    pub fn from_parents(parents: &[i32], limits: &Limits) -> Result<Self, Flaw> {
        let most = limits.nodes.min(NODES_MAX);
        let (&root, others) = parents.split_first().ok_or(Flaw::Empty)?;
        if root != -1 {
            return Err(Flaw::Root { parent: root });
        }
        if parents.len() > most {
            return Err(Flaw::Nodes { most });
        }
        let mut tree = Self::ROOT;
        // The last child so far, and how many there are.
        let (mut last, mut children) = ([-1; NODES_MAX], [0; NODES_MAX]);
        for (index, &parent) in others.iter().enumerate() {
            let node = index + 1;
            let above = usize::try_from(parent).ok().filter(|&above| above < node);
            let above = above.ok_or(Flaw::Parent { node, parent })?;
            if children[above] == limits.children {
                return Err(Flaw::Children { most: limits.children });
            }
            if tree.depth[above] as usize == limits.depth {
                return Err(Flaw::Depth { most: limits.depth });
            }
            tree.append_behind(above, last[above]);
            tree.ranks[node] = children[above] as i32;
            (last[above], children[above]) = (node as i32, children[above] + 1);
        }
        Ok(tree)
    }

    /// Adds the first child of a node.
    fn append(&mut self, parent: usize) {
        self.append_behind(parent, -1);
    }

    /// Adds a child of a node, behind the last one that it has; -1 if it has none.
    fn append_behind(&mut self, parent: usize, last: i32) {
        let node = self.len;
        self.parents[node] = parent as i32;
        self.depth[node] = self.depth[parent] + 1;
        match usize::try_from(last) {
            Ok(last) => self.next_sibling[last] = node as i32,
            Err(_) => self.first_child[parent] = node as i32,
        }
        self.len += 1;
    }

    /// The same tree, with these ranks of its nodes.
    pub(super) fn with_ranks(mut self, ranks: &[i32]) -> Self {
        self.ranks[..self.len].copy_from_slice(&ranks[..self.len]);
        self
    }

    /// Nodes, the root among them: at least 1.
    pub fn num_nodes(&self) -> usize {
        self.len
    }

    /// The parent of each node; -1 for the root.
    pub fn parents(&self) -> &[i32] {
        &self.parents[..self.len]
    }

    /// The first child of each node; -1 for none.
    pub fn first_child(&self) -> &[i32] {
        &self.first_child[..self.len]
    }

    /// The next node with the same parent; -1 for none.
    pub fn next_sibling(&self) -> &[i32] {
        &self.next_sibling[..self.len]
    }

    /// Edges from the root to each node.
    pub fn depth(&self) -> &[i32] {
        &self.depth[..self.len]
    }

    /// Which of the tokens below its parent each node is: its place among its siblings, or the number
    /// that it has in the paths which the tree was made of. 0 for the root.
    pub fn ranks(&self) -> &[i32] {
        &self.ranks[..self.len]
    }

    /// Whether the rank of every node is its place among its siblings, so that the parents say all.
    pub fn ranks_are_places(&self) -> bool {
        (0..self.len).all(|node| (0..).zip(self.children(node)).all(|(r, c)| self.ranks[c] == r))
    }

    /// The children of a node, ascending.
    pub fn children(&self, node: usize) -> impl Iterator<Item = usize> {
        let index = |node: i32| usize::try_from(node).ok();
        let first = index(self.first_child()[node]);
        std::iter::successors(first, move |&child| index(self.next_sibling[child]))
    }

    /// A node and all above it, up to the root.
    pub fn ancestors(&self, node: usize) -> impl Iterator<Item = usize> {
        assert!(node < self.len, "a node of another tree");
        std::iter::successors(Some(node), |&node| usize::try_from(self.parents[node]).ok())
    }

    /// The nodes without children, ascending.
    pub fn leaves(&self) -> impl Iterator<Item = usize> {
        (0..self.len).filter(|&node| self.first_child[node] == -1)
    }

    /// Levels below the root.
    pub fn levels(&self) -> usize {
        self.depth().iter().max().map_or(0, |&depth| depth as usize)
    }

    /// Whether the nodes are in the order of their depth, so that every level is a range and the first
    /// nodes are a tree, however many.
    pub fn is_by_level(&self) -> bool {
        self.depth().is_sorted()
    }

    /// The nodes of a depth, where they are in the order of their depth. Level 0 is the root.
    pub fn level(&self, depth: usize) -> Range<usize> {
        let before = |depth| self.depth().partition_point(|&other| (other as usize) < depth);
        before(depth)..before(depth + 1)
    }
}

impl PartialEq for Topology {
    fn eq(&self, other: &Self) -> bool {
        self.parents() == other.parents() && self.ranks() == other.ranks()
    }
}

impl Eq for Topology {}

impl std::fmt::Debug for Topology {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Topology({:?})", self.parents())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Parents of up to 64 nodes: each comes before its child, not necessarily level by level.
    fn parents() -> impl Strategy<Value = Vec<i32>> {
        let nodes = prop_oneof![1..8_usize, 1..64_usize];
        nodes.prop_flat_map(|nodes| {
            (1..nodes).map(|node| (0..node as i32).boxed()).collect::<Vec<_>>().prop_map(|others| {
                let mut parents = vec![-1];
                parents.extend(others);
                parents
            })
        })
    }

    /// The children of a node, by looking at all nodes.
    fn children_of(parents: &[i32], node: usize) -> Vec<usize> {
        (0..parents.len()).filter(|&child| parents[child] == node as i32).collect()
    }

    /// The depth of a node, by going up.
    fn depth_of(parents: &[i32], node: usize) -> usize {
        match parents[node] {
            -1 => 0,
            parent => 1 + depth_of(parents, parent as usize),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..<_>::default() })]

        #[test]
        fn everything_that_a_tree_says_of_its_nodes_follows_from_their_parents(parents in parents()) {
            let tree = Topology::from_parents(&parents, &Limits::LARGEST).unwrap();
            prop_assert_eq!(tree.parents(), &parents[..]);
            prop_assert_eq!(tree.num_nodes(), parents.len());
            let mut leaves = Vec::new();
            for node in 0..parents.len() {
                let children = children_of(&parents, node);
                prop_assert_eq!(tree.children(node).collect::<Vec<_>>(), children.clone());
                let first = children.first().map_or(-1, |&child| child as i32);
                prop_assert_eq!(tree.first_child()[node], first);
                for (rank, &child) in children.iter().enumerate() {
                    prop_assert_eq!(tree.ranks()[child], rank as i32);
                    let next = children.get(rank + 1).map_or(-1, |&next| next as i32);
                    prop_assert_eq!(tree.next_sibling()[child], next);
                }
                if children.is_empty() {
                    leaves.push(node);
                }
                let depth = depth_of(&parents, node);
                prop_assert_eq!(tree.depth()[node] as usize, depth);
                let ancestors: Vec<usize> = tree.ancestors(node).collect();
                prop_assert_eq!(ancestors.len(), depth + 1);
                prop_assert_eq!(ancestors[depth], 0);
                for pair in ancestors.windows(2) {
                    prop_assert_eq!(parents[pair[0]], pair[1] as i32);
                }
            }
            prop_assert_eq!(tree.next_sibling()[0], -1);
            prop_assert_eq!(tree.leaves().collect::<Vec<_>>(), leaves);
            prop_assert!(tree.ranks_are_places());
        }

        #[test]
        fn the_levels_of_a_tree_in_the_order_of_depths_are_its_nodes_by_depth(parents in parents()) {
            let depths: Vec<usize> = (0..parents.len()).map(|node| depth_of(&parents, node)).collect();
            let tree = Topology::from_parents(&parents, &Limits::LARGEST).unwrap();
            prop_assert_eq!(tree.is_by_level(), depths.windows(2).all(|pair| pair[0] <= pair[1]));
            prop_assert_eq!(tree.levels(), depths.iter().copied().max().unwrap());
            // The same tree, sorted.
            let mut order: Vec<usize> = (0..parents.len()).collect();
            order.sort_by_key(|&node| depths[node]);
            let place = |node: i32| order.iter().position(|&other| other as i32 == node);
            let sorted: Vec<i32> =
                order.iter().map(|&node| place(parents[node]).map_or(-1, |at| at as i32)).collect();
            let tree = Topology::from_parents(&sorted, &Limits::LARGEST).unwrap();
            prop_assert!(tree.is_by_level());
            for depth in 0..tree.levels() + 2 {
                let level: Vec<usize> =
                    (0..sorted.len()).filter(|&node| depth_of(&sorted, node) == depth).collect();
                prop_assert_eq!(tree.level(depth).collect::<Vec<_>>(), level);
            }
        }

        #[test]
        fn a_tree_is_refused_by_exactly_the_limits_that_it_exceeds(
            parents in parents(),
            nodes in 1..64_usize,
            depth in 0..6_usize,
            children in 0..6_usize,
        ) {
            let limits = Limits { nodes, depth, children };
            let deepest = (0..parents.len()).map(|node| depth_of(&parents, node)).max().unwrap();
            let widest =
                (0..parents.len()).map(|node| children_of(&parents, node).len()).max().unwrap();
            let exceeded = [parents.len() > nodes, deepest > depth, widest > children];
            match Topology::from_parents(&parents, &limits) {
                Ok(_) => prop_assert_eq!(exceeded, [false; 3]),
                Err(Flaw::Nodes { most }) => prop_assert!(exceeded[0] && most == nodes),
                Err(Flaw::Depth { most }) => prop_assert!(exceeded[1] && most == depth),
                Err(Flaw::Children { most }) => prop_assert!(exceeded[2] && most == children),
                Err(other) => prop_assert!(false, "{}", other),
            }
        }

        #[test]
        fn one_parent_that_does_not_come_before_its_child_is_named(
            parents in parents(),
            place in any::<prop::sample::Index>(),
            wrong in prop_oneof![-3..0, 0..70, Just(i32::MIN), Just(i32::MAX)],
        ) {
            let mut parents = parents;
            let node = place.index(parents.len());
            parents[node] = wrong;
            let found = Topology::from_parents(&parents, &Limits::LARGEST);
            let flaw = match node {
                0 if wrong != -1 => Some(Flaw::Root { parent: wrong }),
                1.. if wrong < 0 || wrong >= node as i32 => Some(Flaw::Parent { node, parent: wrong }),
                _ => None,
            };
            prop_assert_eq!(found.err(), flaw);
        }
    }

    #[test]
    fn the_longest_chain_and_the_widest_star_are_trees_and_more_is_not() {
        let chain: Vec<i32> = (-1..NODES_MAX as i32 - 1).collect();
        let star: Vec<i32> = (0..NODES_MAX).map(|node| if node == 0 { -1 } else { 0 }).collect();
        let tree = Topology::from_parents(&chain, &Limits::LARGEST).unwrap();
        assert_eq!(tree, Topology::chain(NODES_MAX - 1));
        assert_eq!((tree.levels(), tree.leaves().count()), (NODES_MAX - 1, 1));
        let tree = Topology::from_parents(&star, &Limits::LARGEST).unwrap();
        assert_eq!((tree.levels(), tree.leaves().count()), (1, NODES_MAX - 1));
        for mut parents in [chain, star] {
            parents.push(0);
            let limits = Limits { nodes: usize::MAX, ..Limits::LARGEST };
            let flaw = Topology::from_parents(&parents, &limits).unwrap_err();
            assert_eq!(flaw, Flaw::Nodes { most: NODES_MAX });
        }
        assert_eq!(Topology::from_parents(&[], &Limits::LARGEST).unwrap_err(), Flaw::Empty);
    }

    #[test]
    fn a_flaw_says_what_was_expected_and_what_was_found() {
        let error = Error::from(Topology::from_parents(&[-1, 0, 2], &Limits::LARGEST).unwrap_err());
        assert_eq!(error.to_string(), "node 2: expected a parent from 0 to 1, found 2");
        assert_eq!(error.status(), crate::error::Status::InvalidArgument);
    }
}
