//! Moving the keys and values of accepted nodes behind their root, where the next round expects them.

use crate::tensor::{Column, Span};

/// Where the rows of each sequence are: in pages of the host's KV, which name them by number. A KV
/// without pages is one whose sequences have a page each.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// The pages of each sequence; `None`: sequence b has page b alone.
    pub table: Option<Column>,
    /// Rows of a page.
    pub page_rows: usize,
    /// Pages that there are. All their rows have numbers below 2^31.
    pub num_pages: usize,
}

impl Placement {
    /// Pages of a sequence.
    pub fn pages_per_sequence(&self) -> usize {
        self.table.map_or(1, |table| table.stride)
    }
}

/// The host's keys and values, each in as many pages as the placement has. Strides are in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Planes<'a> {
    /// Where the keys of each layer begin.
    pub keys: &'a [u64],
    /// Where the values of each layer begin; none where they lie with the keys.
    pub values: &'a [u64],
    /// Pieces of a row.
    pub heads: usize,
    /// Bytes of a piece.
    pub head_bytes: usize,
    /// From one page to the next.
    pub page_stride: usize,
    /// From one row of a page to the next.
    pub row_stride: usize,
    /// From one piece of a row to the next.
    pub head_stride: usize,
}

impl Planes<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len() + self.values.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where one of them begins: keys first, then values.
    pub fn base(&self, index: usize) -> u64 {
        match index.checked_sub(self.keys.len()) {
            None => self.keys[index],
            Some(index) => self.values[index],
        }
    }

    /// The same planes, pieces that follow each other taken for one.
    pub fn joined(self) -> Self {
        if self.heads > 1 && self.head_stride == self.head_bytes {
            let head_bytes = self.heads * self.head_bytes;
            return Self { heads: 1, head_bytes, head_stride: head_bytes, ..self };
        }
        self
    }
}

/// Which row each node of a path came from and where it went, `[B, stride]` each, written.
#[derive(Clone, Copy, Debug, Default)]
pub struct RowLists {
    /// The number of the row that held the node.
    pub source: Option<Span<i32>>,
    /// The number of the row that holds it now.
    pub destination: Option<Span<i32>>,
    /// Elements from one sequence to the next.
    pub stride: usize,
}

/// The phase that moves the rows of accepted nodes.
#[derive(Clone, Copy, Debug)]
pub struct CompactRows<'a> {
    /// B.
    pub num_sequences: usize,
    /// N: the most nodes of a tree, and of a path.
    pub max_nodes: usize,
    /// The position behind the path: that of the next root.
    pub position: Column,
    /// Nodes of the path, the root among them.
    pub row_count: Column,
    /// The nodes of the path, of which no more than `row_count` are looked at.
    pub path: Column,
    /// Where rows are.
    pub placement: Placement,
    /// What rows consist of.
    pub planes: Planes<'a>,
    /// What moved, written.
    pub lists: RowLists,
    /// What was wrong with each sequence, written.
    pub flags: Option<Span<i32>>,
}

/// A sequence's path or pages are out of range, and nothing of it was moved; part of the ABI.
pub const FLAG_INVALID: i32 = 1;
