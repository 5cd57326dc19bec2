//! What a host that verifies trees of its own is told of them: their links, depths and positions, the
//! paths to their leaves, and which rows of its attention see which. Trees and counts are in the
//! device's memory and are not trusted.

use super::topology::NODES_MAX;
use crate::tensor::{Column, Dtype, Span};

/// How a mask says that a row sees a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskForm {
    /// A byte for each column: 1 where it is seen, otherwise 0.
    Bool,
    /// What is added to a score: 0 where the column is seen, otherwise -inf.
    Additive(Dtype),
    /// A bit for each column, the lowest bit of a word first, in words of so many bits.
    Bits(usize),
}

impl MaskForm {
    /// Bytes of an element: of what stands for a column, or of a word.
    pub const fn element_bytes(self) -> usize {
        match self {
            Self::Bool => 1,
            Self::Additive(dtype) => dtype.size(),
            Self::Bits(bits) => bits / 8,
        }
    }

    /// The elements that so many columns take.
    pub const fn elements(self, columns: usize) -> usize {
        match self {
            Self::Bool | Self::Additive(_) => columns,
            Self::Bits(bits) => columns.div_ceil(bits),
        }
    }
}

/// Where the rows of a mask are. Strides are in elements.
#[derive(Clone, Copy, Debug)]
pub enum MaskLayout {
    /// As many rows for each sequence as a tree may have nodes.
    Fixed {
        /// Columns of each row, all of which are written.
        columns: usize,
        /// From one row to the next.
        row_stride: usize,
        /// From one sequence to the next.
        sequence_stride: usize,
    },
    /// A row for each node, as long as what it could see, one after the other without a gap; each
    /// sequence begins with an element of its own.
    Ragged {
        /// Elements that there are.
        capacity: usize,
        /// Where each sequence begins, and where the last one ends: `[B + 1]`, written.
        begin: Option<Span<i32>>,
    },
}

/// The masks of a batch, written.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    /// The first element.
    pub address: u64,
    /// What its elements are.
    pub form: MaskForm,
    /// Where they are.
    pub layout: MaskLayout,
    /// Whether the columns of the nodes stand behind those of a prefix, which sound rows see whole.
    pub has_prefix: bool,
}

/// The links of all trees, `[B, stride]` each; those that are there are written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Links {
    /// Elements from one sequence to the next.
    pub stride: usize,
    /// The parent of each node.
    pub parents: Option<Span<i32>>,
    /// The first child of each node.
    pub first_child: Option<Span<i32>>,
    /// The next node with the same parent.
    pub next_sibling: Option<Span<i32>>,
    /// Edges from the root.
    pub depth: Option<Span<i32>>,
    /// The root's position and the depth.
    pub position: Option<Span<i32>>,
}

/// The nodes on the way to each leaf, `[B, rows, length]`, written.
#[derive(Clone, Copy, Debug)]
pub struct LeafPaths {
    /// The paths.
    pub nodes: Span<i32>,
    /// Paths of a sequence.
    pub rows: usize,
    /// Nodes of a path.
    pub length: usize,
}

/// The phase that tells of trees.
#[derive(Clone, Copy, Debug)]
pub struct MaskTrees {
    /// B.
    pub num_sequences: usize,
    /// N: the most nodes of a tree, 1 to [`NODES_MAX`].
    pub max_nodes: usize,
    /// The parents of all nodes; a stride of 0 is one tree for all sequences.
    pub parents: Column,
    /// Nodes of each sequence; `None` is N for all.
    pub num_nodes: Option<Span<i32>>,
    /// The root's position.
    pub position: Option<Column>,
    /// Columns of the prefix; `None` is the root's position.
    pub prefix_length: Option<Span<i32>>,
    /// The links, written.
    pub links: Links,
    /// Positions once more as wider numbers, `[B, stride]`, written.
    pub wide_position: Option<(Span<i64>, usize)>,
    /// The paths to the leaves.
    pub paths: Option<LeafPaths>,
    /// How many leaves there are, written.
    pub num_paths: Option<Span<i32>>,
    /// The mask.
    pub mask: Option<Mask>,
    /// What was wrong with each sequence, written.
    pub flags: Option<Span<i32>>,
}

/// Counts, position or prefix of a sequence are out of range; the numbers are part of the ABI.
pub const FLAG_SIZE: i32 = 1;
/// Its parents are not those of a tree.
pub const FLAG_PARENTS: i32 = 2;
/// Its leaves do not fit the paths.
pub const FLAG_PATHS: i32 = 4;

/// What the arrays say of one sequence, before its parents are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Nodes; 0 where the sequence takes no part.
    pub nodes: usize,
    /// The root's position.
    pub position: i32,
    /// Columns of the prefix.
    pub prefix: usize,
    /// Whether something is out of range; then all else is 0.
    pub is_wrong: bool,
}

impl Extent {
    /// That of a sequence with something out of range.
    pub const WRONG: Self = Self { nodes: 0, position: 0, prefix: 0, is_wrong: true };
}

impl MaskTrees {
    /// The extent of a sequence for which the arrays have these values.
    pub fn extent(&self, nodes: i32, position: Option<i32>, prefix: Option<i32>) -> Extent {
        let Some(nodes) = usize::try_from(nodes).ok().filter(|&nodes| nodes > 0) else {
            return Extent::default();
        };
        let position = position.unwrap_or(0);
        if nodes > self.max_nodes || position < 0 || position > i32::MAX - (nodes as i32 - 1) {
            return Extent::WRONG;
        }
        let Some(mask) = self.mask.as_ref().filter(|mask| mask.has_prefix) else {
            return Extent { nodes, position, prefix: 0, is_wrong: false };
        };
        let Ok(prefix) = usize::try_from(prefix.unwrap_or(position)) else {
            return Extent::WRONG;
        };
        match mask.layout {
            MaskLayout::Fixed { columns, .. } if prefix + self.max_nodes > columns => Extent::WRONG,
            _ => Extent { nodes, position, prefix, is_wrong: false },
        }
    }
}

impl Mask {
    /// The elements that a sequence takes where rows are ragged: no more than 2^31, as those do not
    /// fit anywhere.
    pub fn ragged_elements(&self, extent: &Extent) -> usize {
        let columns = extent.nodes * (extent.prefix + extent.nodes);
        self.form.elements(columns).min(1 << 31)
    }
}

const _: () = assert!(NODES_MAX <= 1 << 10, "a ragged sequence has fewer than 2^42 columns");
