//! The nodes with children: those whose rows a drafter runs.

use super::topology::{NODES_MAX, Topology};
use std::ops::Range;

/// The nodes of a tree that have children, numbered in their order. Of a tree by level those of a
/// level are a range of numbers. Like a [`Topology`] it holds no memory of its own.
#[derive(Clone, Debug)]
pub struct Inner<'a> {
    topology: &'a Topology,
    len: usize,
    nodes: [u16; NODES_MAX],
    /// The numbers of the nodes; of a leaf that of the next node with children.
    numbers: [u16; NODES_MAX],
}

impl<'a> Inner<'a> {
    /// The nodes with children of a tree.
    pub fn of(topology: &'a Topology) -> Self {
        let mut inner = Self { topology, len: 0, nodes: [0; NODES_MAX], numbers: [0; NODES_MAX] };
        for node in 0..topology.num_nodes() {
            inner.numbers[node] = inner.len as u16;
            if topology.first_child()[node] != -1 {
                inner.nodes[inner.len] = node as u16;
                inner.len += 1;
            }
        }
        inner
    }

    /// The tree.
    pub fn topology(&self) -> &'a Topology {
        self.topology
    }

    /// The node with a number.
    pub fn node(&self, number: usize) -> usize {
        self.nodes[..self.len][number].into()
    }

    /// The number of a node, if it has children.
    pub fn number(&self, node: usize) -> Option<usize> {
        let has_children = self.topology.first_child()[node] != -1;
        has_children.then_some(self.numbers[node].into())
    }

    /// The numbers of those of a depth, in a tree by level.
    pub fn level(&self, depth: usize) -> Range<usize> {
        let nodes = self.topology.level(depth);
        let before = |end| self.nodes[..self.len].partition_point(|&node| usize::from(node) < end);
        before(nodes.start)..before(nodes.end)
    }

    /// The most of them on a level below the root, in a tree by level.
    pub fn widest(&self) -> usize {
        (1..self.topology.levels()).map(|depth| self.level(depth).len()).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::topology::Limits;
    use super::*;

    #[test]
    fn the_nodes_with_children_of_a_level_are_a_range_of_numbers() {
        let parents = [-1, 0, 0, 0, 3, 1, 3, 5, 6, 6];
        let tree = Topology::from_parents(&parents, &Limits::LARGEST).unwrap();
        let inner = Inner::of(&tree);
        let nodes = |depth: usize| inner.level(depth).map(|n| inner.node(n)).collect::<Vec<_>>();
        assert_eq!([nodes(0), nodes(1), nodes(2)], [vec![0], vec![1, 3], vec![5, 6]]);
        assert!(nodes(3).is_empty() && nodes(4).is_empty());
        assert_eq!(inner.widest(), 2);
        let numbers: Vec<_> = (0..parents.len()).map(|node| inner.number(node)).collect();
        let of = |node: usize| [0, 1, 3, 5, 6].iter().position(|&other| other == node);
        assert_eq!(numbers, (0..parents.len()).map(of).collect::<Vec<_>>());
    }

    #[test]
    fn a_root_alone_has_no_children_and_a_chain_one_of_them_on_each_level() {
        assert_eq!(Inner::of(&Topology::ROOT).level(0), 0..0);
        assert_eq!(Inner::of(&Topology::ROOT).widest(), 0);
        let chain = Topology::chain(3);
        let inner = Inner::of(&chain);
        assert_eq!([inner.level(0), inner.level(2), inner.level(3)], [0..1, 2..3, 3..3]);
        assert_eq!(inner.widest(), 1);
    }
}
