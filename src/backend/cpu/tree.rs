//! What is told of trees: links, paths and masks. Sequences and rows are shared out over threads, which
//! never share a byte.

use super::CpuBackend;
use super::memory::{elements, elements_mut, place, read};
use crate::tensor::{Dtype, Span};
use crate::tree::{
    Extent, FLAG_PARENTS, FLAG_PATHS, FLAG_SIZE, LeafPaths, Limits, Links, Mask, MaskForm,
    MaskLayout, MaskTrees, Topology,
};
use std::ops::Range;

impl CpuBackend {
    /// # Safety
    ///
    /// The contract of [`crate::backend::Backend`].
    pub(super) unsafe fn mask_all_trees(&self, phase: &MaskTrees) {
        let shares = match phase.mask.map(|mask| (mask.layout, mask.form)) {
            None => 1,
            // The bits of a row begin amid the byte in which those of the row before end.
            Some((MaskLayout::Ragged { .. }, MaskForm::Bits(_))) => 1,
            Some(_) => self.pool.threads().min(phase.max_nodes),
        };
        self.pool.run(phase.num_sequences * shares, &|task| {
            // SAFETY: the contract of Backend; tasks write different sequences or rows.
            unsafe { Sequence::read(phase, task / shares).tell(task % shares, shares) };
        });
        if let Some(Mask { layout: MaskLayout::Ragged { begin: Some(begin), .. }, .. }) = phase.mask
            && phase.num_sequences == 0
        {
            // SAFETY: as above.
            unsafe { *place(begin, 0) = 0 };
        }
    }
}

/// Tells the tree of a sequence whose root has this position, in rows of `nodes` elements; `None` where it
/// has none.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub(super) unsafe fn write_links(
    links: &Links,
    (sequence, nodes): (usize, usize),
    tree: Option<&Topology>,
    position: i32,
) {
    let write = |to: Option<Span<i32>>, of: fn(&Topology) -> &[i32], none: i32, more: i32| {
        let Some(to) = to else { return };
        // SAFETY: as this function's contract.
        let to = unsafe { elements_mut(to.slice(sequence * links.stride, nodes)) };
        to.fill(none);
        let from = tree.map_or(&[][..], of);
        to.iter_mut().zip(from).for_each(|(to, &from)| *to = from.wrapping_add(more));
    };
    write(links.parents, Topology::parents, -1, 0);
    write(links.first_child, Topology::first_child, -1, 0);
    write(links.next_sibling, Topology::next_sibling, -1, 0);
    write(links.depth, Topology::depth, 0, 0);
    write(links.position, Topology::depth, 0, position);
}

/// What the arrays say of a sequence. Functions that take one are unsafe for the contract of
/// [`crate::backend::Backend`] alone.
struct Sequence<'a> {
    phase: &'a MaskTrees,
    index: usize,
    extent: Extent,
    /// Where its elements of a ragged mask are.
    ragged: Range<usize>,
    /// Where the parents are those of a tree.
    tree: Option<Topology>,
}

impl<'a> Sequence<'a> {
    unsafe fn read(phase: &'a MaskTrees, index: usize) -> Self {
        // SAFETY: the contract of Backend, here and below.
        let mut extent = unsafe { extent(phase, index) };
        let mut ragged = 0..0;
        if let Some(mask) = &phase.mask
            && let MaskLayout::Ragged { capacity, .. } = mask.layout
        {
            // SAFETY: as above.
            let begin = unsafe { begin_of(phase, mask, index) };
            ragged = begin..begin + mask.ragged_elements(&extent);
            if ragged.end > capacity && !ragged.is_empty() {
                extent = Extent::WRONG;
            }
        }
        let first = index * phase.parents.stride;
        let parents = phase.parents.span.slice(first, extent.nodes);
        // SAFETY: as above.
        let tree = Topology::from_parents(unsafe { elements(parents) }, &Limits::LARGEST).ok();
        Self { phase, index, extent, ragged, tree }
    }

    /// Writes one of `shares` shares of what is told of this sequence.
    unsafe fn tell(&self, share: usize, shares: usize) {
        let mut flags = if self.extent.is_wrong { FLAG_SIZE } else { 0 };
        if self.extent.nodes > 0 && self.tree.is_none() {
            flags |= FLAG_PARENTS;
        }
        // SAFETY: the contract of Backend; only the first share writes what is not a row of the mask.
        unsafe {
            if let Some(mask) = &self.phase.mask {
                self.write_mask(mask, share, shares);
            }
            if share > 0 {
                return;
            }
            self.write_links();
            let fits = self.write_paths();
            flags |= if fits { 0 } else { FLAG_PATHS };
            if let Some(all) = self.phase.flags {
                *place(all, self.index) = flags;
            }
        }
    }

    /// The nodes of a sound tree; otherwise none.
    fn nodes(&self) -> usize {
        self.tree.as_ref().map_or(0, Topology::num_nodes)
    }

    unsafe fn write_links(&self) {
        let tree = self.tree.as_ref();
        let row = (self.index, self.phase.max_nodes);
        // SAFETY: the contract of Backend; this sequence's own row.
        unsafe { write_links(&self.phase.links, row, tree, self.extent.position) };
        if let Some((to, stride)) = self.phase.wide_position {
            // SAFETY: as above.
            let to = unsafe { elements_mut(to.slice(self.index * stride, self.phase.max_nodes)) };
            to.fill(0);
            let depth = tree.map_or(&[][..], Topology::depth);
            let position = i64::from(self.extent.position);
            to.iter_mut().zip(depth).for_each(|(to, &depth)| *to = position + i64::from(depth));
        }
    }

    /// Whether the leaves fit.
    unsafe fn write_paths(&self) -> bool {
        let leaves = self.tree.as_ref().map_or(0, |tree| tree.leaves().count());
        let fits = self.phase.paths.is_none_or(|paths| {
            let deepest = self.tree.as_ref().map_or(0, Topology::levels);
            leaves <= paths.rows && deepest < paths.length
        });
        // SAFETY: the contract of Backend; this sequence's own elements.
        unsafe {
            if let Some(to) = self.phase.num_paths {
                *place(to, self.index) = if fits { leaves as i32 } else { 0 };
            }
            if let Some(LeafPaths { nodes, rows, length }) = self.phase.paths {
                let all = elements_mut(nodes.slice(self.index * rows * length, rows * length));
                all.fill(-1);
                if let Some(tree) = self.tree.as_ref().filter(|_| fits) {
                    for (leaf, row) in tree.leaves().zip(all.chunks_mut(length)) {
                        let row = &mut row[..=tree.depth()[leaf] as usize];
                        let places = row.iter_mut().rev();
                        tree.ancestors(leaf).zip(places).for_each(|(node, to)| *to = node as i32);
                    }
                }
            }
        }
        fits
    }

    unsafe fn write_mask(&self, mask: &Mask, share: usize, shares: usize) {
        // SAFETY: the contract of Backend, here and below; no other share has these rows.
        let cleared = |first: usize, elements: usize| unsafe {
            let size = mask.form.element_bytes();
            let address = mask.address + (first * size) as u64;
            Columns::cleared(mask.form, elements_mut(Span::new(address, elements * size)))
        };
        match mask.layout {
            MaskLayout::Fixed { columns, row_stride, sequence_stride } => {
                for row in share_of(self.phase.max_nodes, share, shares) {
                    let first = self.index * sequence_stride + row * row_stride;
                    self.write_row(&mut cleared(first, mask.form.elements(columns)), 0, row);
                }
            }
            MaskLayout::Ragged { capacity, begin } => {
                if let Some(begin) = begin.filter(|_| share == 0) {
                    // SAFETY: as above. The end of the last sequence is written with its begin.
                    unsafe {
                        *place(begin, self.index) = self.ragged.start.min(capacity) as i32;
                        if self.index + 1 == self.phase.num_sequences {
                            *place(begin, self.index + 1) = self.ragged.end.min(capacity) as i32;
                        }
                    }
                }
                if self.extent.nodes == 0 {
                    return;
                }
                let width = self.extent.prefix + self.extent.nodes;
                let rows = share_of(self.extent.nodes, share, shares);
                let elements = match mask.form {
                    MaskForm::Bits(_) => 0..self.ragged.len(),
                    _ => rows.start * width..rows.end * width,
                };
                let mut all = cleared(self.ragged.start + elements.start, elements.len());
                for (place, row) in rows.enumerate() {
                    self.write_row(&mut all, place * width, row);
                }
            }
        }
    }

    /// Shows what a row sees, whose columns begin with `first`.
    fn write_row(&self, columns: &mut Columns<'_>, first: usize, row: usize) {
        let nodes = first + self.extent.prefix;
        match self.tree.as_ref().filter(|_| row < self.nodes()) {
            None => columns.show(nodes + row..nodes + row + 1),
            Some(tree) => {
                columns.show(first..nodes);
                tree.ancestors(row).for_each(|node| columns.show(nodes + node..nodes + node + 1));
            }
        }
    }
}

/// # Safety
///
/// The contract of [`crate::backend::Backend`].
unsafe fn extent(phase: &MaskTrees, index: usize) -> Extent {
    // SAFETY: as this function's contract.
    unsafe {
        let nodes = phase.num_nodes.map_or(phase.max_nodes as i32, |nodes| read(nodes, index));
        let position = phase.position.map(|column| read(column.span, index * column.stride));
        let prefix = phase.prefix_length.map(|prefix| read(prefix, index));
        phase.extent(nodes, position, prefix)
    }
}

/// Where a sequence begins among ragged ones.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
unsafe fn begin_of(phase: &MaskTrees, mask: &Mask, index: usize) -> usize {
    // SAFETY: as this function's contract.
    (0..index).map(|before| mask.ragged_elements(&unsafe { extent(phase, before) })).sum()
}

/// One of `shares` parts of `0 .. count`.
fn share_of(count: usize, share: usize, shares: usize) -> Range<usize> {
    let at = |share| count * share / shares;
    at(share)..at(share + 1)
}

/// Columns in which nothing is seen until it is shown.
struct Columns<'a> {
    form: MaskForm,
    bytes: &'a mut [u8],
}

impl<'a> Columns<'a> {
    fn cleared(form: MaskForm, bytes: &'a mut [u8]) -> Self {
        match form {
            MaskForm::Bool | MaskForm::Bits(_) => bytes.fill(0),
            MaskForm::Additive(Dtype::F32) => fill(bytes, f32::NEG_INFINITY.to_ne_bytes()),
            MaskForm::Additive(Dtype::F16) => fill(bytes, half::f16::NEG_INFINITY.to_ne_bytes()),
            MaskForm::Additive(Dtype::Bf16) => fill(bytes, half::bf16::NEG_INFINITY.to_ne_bytes()),
        }
        Self { form, bytes }
    }

    fn show(&mut self, columns: Range<usize>) {
        match self.form {
            MaskForm::Bool => self.bytes[columns].fill(1),
            // Both zeros are 0 in all their bits.
            MaskForm::Additive(dtype) => {
                let size = dtype.size();
                self.bytes[columns.start * size..columns.end * size].fill(0);
            }
            MaskForm::Bits(word) => self.show_bits(word, columns),
        }
    }

    /// Columns of whole bytes at once, the others one by one.
    fn show_bits(&mut self, word: usize, columns: Range<usize>) {
        let whole = columns.start.next_multiple_of(8)..columns.end / 8 * 8;
        let (before, behind) = match whole.is_empty() {
            true => (columns.clone(), columns.end..columns.end),
            false => (columns.start..whole.start, whole.end..columns.end),
        };
        for column in before.chain(behind) {
            self.bytes[byte_of(word, column)] |= 1 << (column % 8);
        }
        for column in whole.step_by(8) {
            self.bytes[byte_of(word, column)] = 0xff;
        }
    }
}

/// The byte of a column in words of so many bits, in the order of the processor's bytes.
fn byte_of(word: usize, column: usize) -> usize {
    let byte = column / 8;
    if cfg!(target_endian = "little") { byte } else { byte ^ (word / 8 - 1) }
}

fn fill<const SIZE: usize>(bytes: &mut [u8], element: [u8; SIZE]) {
    bytes.chunks_exact_mut(SIZE).for_each(|place| place.copy_from_slice(&element));
}
