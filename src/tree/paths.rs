//! Trees from lists of paths, as Medusa, EAGLE and HASS publish their static trees: `[1, 0]` is the
//! most probable token below the second most probable token below the root.

use super::topology::{Flaw, Limits, NODES_MAX, Topology};

impl Topology {
    /// The tree in which each of these paths leads to a node. A path has the rank of a node among its
    /// siblings at each level, and may be padded with -1; what a path begins with is in the tree
    /// whether or not it stands in the list, and what stands twice counts once. Nodes are ordered by
    /// level, then by parent, then by rank. Ranks may have gaps.
    pub fn from_paths<'a>(
        paths: impl IntoIterator<Item = &'a [i32]>,
        limits: &Limits,
    ) -> Result<Self, Flaw> {
        let mut sketch = Sketch::ROOT;
        for (index, path) in paths.into_iter().enumerate() {
            let padding = path.iter().position(|&entry| entry < 0).unwrap_or(path.len());
            if let Some(wrong) = path[padding..].iter().position(|&entry| entry != -1) {
                let place = padding + wrong;
                return Err(Flaw::Path { path: index, place, entry: path[place] });
            }
            let mut node = 0;
            for (depth, &rank) in path[..padding].iter().enumerate() {
                if depth == limits.depth {
                    return Err(Flaw::Depth { most: limits.depth });
                }
                node = sketch.child(node, rank, limits)?;
            }
        }
        sketch.in_order(limits)
    }
}

/// A tree whose nodes are in the order in which paths name them.
struct Sketch {
    len: usize,
    first_child: [i32; NODES_MAX],
    next_sibling: [i32; NODES_MAX],
    ranks: [i32; NODES_MAX],
}

impl Sketch {
    const ROOT: Self = Self {
        len: 1,
        first_child: [-1; NODES_MAX],
        next_sibling: [-1; NODES_MAX],
        ranks: [0; NODES_MAX],
    };

    /// The child of this rank, added among its siblings, which are ordered by rank, if it is new.
    fn child(&mut self, parent: usize, rank: i32, limits: &Limits) -> Result<usize, Flaw> {
        let (mut before, mut next) = (None, self.first_child[parent]);
        while let Some(sibling) = usize::try_from(next).ok().filter(|&at| self.ranks[at] <= rank) {
            if self.ranks[sibling] == rank {
                return Ok(sibling);
            }
            (before, next) = (Some(sibling), self.next_sibling[sibling]);
        }
        let (node, most) = (self.len, limits.nodes.min(NODES_MAX));
        if node >= most {
            return Err(Flaw::Nodes { most });
        }
        self.ranks[node] = rank;
        self.next_sibling[node] = next;
        match before {
            None => self.first_child[parent] = node as i32,
            Some(before) => self.next_sibling[before] = node as i32,
        }
        self.len += 1;
        Ok(node)
    }

    /// The tree with its nodes level by level: the children of each node in turn.
    fn in_order(&self, limits: &Limits) -> Result<Topology, Flaw> {
        let mut order = [0_usize; NODES_MAX];
        let (mut parents, mut ranks) = ([-1; NODES_MAX], [0; NODES_MAX]);
        let mut placed = 1;
        for place in 0..self.len {
            // All levels above are placed, and so is this node.
            let mut next = self.first_child[order[place]];
            while let Ok(child) = usize::try_from(next) {
                order[placed] = child;
                (parents[placed], ranks[placed]) = (place as i32, self.ranks[child]);
                placed += 1;
                next = self.next_sibling[child];
            }
        }
        let tree = Topology::from_parents(&parents[..placed], limits)?;
        Ok(tree.with_ranks(&ranks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn tree(paths: &[Vec<i32>]) -> Result<Topology, Flaw> {
        Topology::from_paths(paths.iter().map(Vec::as_slice), &Limits::LARGEST)
    }

    fn paths() -> impl Strategy<Value = Vec<Vec<i32>>> {
        prop::collection::vec(prop::collection::vec(0..4, 0..6), 0..20)
    }

    /// All that the paths name and imply, without the root: by length, then in the order of the ranks.
    fn nodes_of(paths: &[Vec<i32>]) -> Vec<Vec<i32>> {
        let all = paths.iter().flat_map(|path| (1..=path.len()).map(|len| path[..len].to_vec()));
        let mut nodes: Vec<Vec<i32>> = all.collect::<BTreeSet<_>>().into_iter().collect();
        nodes.sort_by_key(Vec::len);
        nodes
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..<_>::default() })]

        #[test]
        fn every_prefix_of_a_path_is_a_node_and_nothing_else_is(paths in paths()) {
            let tree = tree(&paths).unwrap();
            let nodes = nodes_of(&paths);
            prop_assert_eq!(tree.num_nodes(), nodes.len() + 1);
            prop_assert!(tree.is_by_level());
            for (index, path) in nodes.iter().enumerate() {
                let node = index + 1;
                let mut ranks: Vec<i32> = tree
                    .ancestors(node)
                    .filter(|&above| above != 0)
                    .map(|above| tree.ranks()[above])
                    .collect();
                ranks.reverse();
                prop_assert_eq!(&ranks, path);
            }
            let dense = nodes.iter().all(|path| {
                let mut before = path.clone();
                let last = before.last_mut().unwrap();
                *last -= 1;
                *last < 0 || nodes.contains(&before)
            });
            prop_assert_eq!(tree.ranks_are_places(), dense);
        }

        #[test]
        fn order_repetition_prefixes_and_padding_make_no_difference(
            paths in paths(),
            seed in any::<u64>(),
        ) {
            let mut others = nodes_of(&paths);
            others.extend(paths.iter().cloned());
            // Shuffled by a key that depends on the seed.
            others.sort_by_key(|path| {
                path.iter().fold(seed, |key, &rank| (key ^ rank as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15))
            });
            others.iter_mut().for_each(|path| path.resize(7, -1));
            prop_assert_eq!(tree(&others).unwrap(), tree(&paths).unwrap());
        }

        #[test]
        fn paths_are_refused_by_exactly_the_limits_that_their_tree_exceeds(
            paths in paths(),
            nodes in 1..40_usize,
            depth in 0..6_usize,
            children in 0..5_usize,
        ) {
            let limits = Limits { nodes, depth, children };
            let all = nodes_of(&paths);
            let widest = std::iter::once(&Vec::new())
                .chain(&all)
                .map(|node| all.iter().filter(|path| path[..path.len() - 1] == node[..]).count())
                .max()
                .unwrap();
            let deepest = all.last().map_or(0, Vec::len);
            let exceeded = [all.len() + 1 > nodes, deepest > depth, widest > children];
            match Topology::from_paths(paths.iter().map(Vec::as_slice), &limits) {
                Ok(_) => prop_assert_eq!(exceeded, [false; 3]),
                Err(Flaw::Nodes { .. }) => prop_assert!(exceeded[0]),
                Err(Flaw::Depth { .. }) => prop_assert!(exceeded[1]),
                Err(Flaw::Children { .. }) => prop_assert!(exceeded[2]),
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
    }

    #[test]
    fn the_order_is_that_of_published_trees() {
        // The beginning of a Medusa tree, as it is published: neither sorted nor level by level.
        let published = [&[0][..], &[0, 0], &[1], &[0, 1], &[0, 0, 0], &[1, 0], &[2], &[0, 0, 1]];
        let tree = Topology::from_paths(published, &Limits::LARGEST).unwrap();
        assert_eq!(tree.parents(), [-1, 0, 0, 0, 1, 1, 2, 4, 4]);
        assert_eq!(tree.ranks(), [0, 0, 1, 2, 0, 1, 0, 0, 1]);
    }

    #[test]
    fn entries_that_are_neither_ranks_nor_padding_are_named() {
        for (path, place, entry) in [
            (vec![0, -2, -1], 1, -2),
            (vec![-1, 3], 1, 3),
            (vec![1, -1, -1, i32::MIN], 3, i32::MIN),
        ] {
            let found = tree(&[vec![0], path]).unwrap_err();
            assert_eq!(found, Flaw::Path { path: 1, place, entry });
        }
    }

    #[test]
    fn as_many_paths_as_there_can_be_nodes_are_a_tree_and_one_more_is_not() {
        let mut paths: Vec<Vec<i32>> = (0..NODES_MAX as i32 - 1).map(|rank| vec![rank]).collect();
        assert_eq!(tree(&paths).unwrap().num_nodes(), NODES_MAX);
        paths.push(vec![0, i32::MAX]);
        assert_eq!(tree(&paths).unwrap_err(), Flaw::Nodes { most: NODES_MAX });
        let deep = vec![i32::MAX; NODES_MAX];
        assert_eq!(tree(&[deep]).unwrap_err(), Flaw::Depth { most: NODES_MAX - 1 });
    }
}
