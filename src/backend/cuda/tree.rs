//! The launch code of `kernels/tree.cu`: what is told of trees.

use super::launch::{Arguments, Kernel, Kernels, Launch};
use super::products::address_or_zero;
use crate::backend::Stream;
use crate::error::Result;
use crate::tensor::Dtype;
use crate::tree::{Mask, MaskForm, MaskLayout, MaskTrees};
use bytemuck::{NoUninit, Pod, Zeroable};

/// Threads of a block.
const THREADS: u32 = 256;

/// Elements of a mask or of paths that are worth a block.
const BLOCK_ELEMENTS: usize = 8 * THREADS as usize;

/// The most blocks of a sequence.
const MOST_BLOCKS: usize = 256;

/// `TreeArguments` of the kernel.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct TreeArguments {
    parents: u64,
    num_nodes: u64,
    position: u64,
    prefix_length: u64,
    to_parents: u64,
    first_child: u64,
    next_sibling: u64,
    depth: u64,
    to_position: u64,
    wide_position: u64,
    paths: u64,
    num_paths: u64,
    flags: u64,
    mask_begin: u64,
    mask: u64,
    parents_stride: u64,
    position_stride: u64,
    links_stride: u64,
    wide_stride: u64,
    mask_rows: MaskRows,
    max_nodes: u32,
    path_rows: u32,
    path_length: u32,
    mask_elements: MaskElements,
    is_ragged: u32,
    has_prefix: u32,
    unused: u32,
}

// SAFETY: the struct of kernels/tree.cu.
unsafe impl Arguments for TreeArguments {}

/// Where the rows of a mask are, in bytes, and how much room a ragged one has, in elements.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct MaskRows {
    row_stride: u64,
    sequence_stride: u64,
    columns: u64,
    capacity: u64,
}

/// What stands for a column.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct MaskElements {
    bytes: u32,
    has_bits: u32,
    seen: u32,
    unseen: u32,
}

impl MaskRows {
    fn of(mask: &Mask) -> Self {
        let bytes = mask.form.element_bytes();
        match mask.layout {
            MaskLayout::Fixed { columns, row_stride, sequence_stride } => Self {
                row_stride: (row_stride * bytes) as u64,
                sequence_stride: (sequence_stride * bytes) as u64,
                columns: columns as u64,
                capacity: 0,
            },
            MaskLayout::Ragged { capacity, .. } => {
                Self { capacity: capacity as u64, ..Self::zeroed() }
            }
        }
    }
}

impl MaskElements {
    fn of(form: MaskForm) -> Self {
        let (has_bits, seen, unseen) = match form {
            MaskForm::Bits(_) => (1, 0, 0),
            MaskForm::Bool => (0, 1, 0),
            MaskForm::Additive(Dtype::F32) => (0, 0, f32::NEG_INFINITY.to_bits()),
            MaskForm::Additive(Dtype::F16) => (0, 0, half::f16::NEG_INFINITY.to_bits().into()),
            MaskForm::Additive(Dtype::Bf16) => (0, 0, half::bf16::NEG_INFINITY.to_bits().into()),
        };
        Self { bytes: form.element_bytes() as u32, has_bits, seen, unseen }
    }
}

/// Elements that a sequence has about, so that it gets as many blocks as it can use.
fn elements(phase: &MaskTrees) -> usize {
    let masked = phase.mask.map_or(0, |mask| match mask.layout {
        MaskLayout::Fixed { columns, .. } => phase.max_nodes.saturating_mul(columns),
        MaskLayout::Ragged { capacity, .. } => {
            let columns = if let MaskForm::Bits(bits) = mask.form { bits } else { 1 };
            capacity.saturating_mul(columns) / phase.num_sequences.max(1)
        }
    });
    let columns =
        if let Some(MaskForm::Bits(_)) = phase.mask.map(|mask| mask.form) { 8 } else { 1 };
    (masked / columns).max(phase.paths.map_or(0, |paths| paths.rows * paths.length))
}

/// Enqueues the phase.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
pub unsafe fn mask_trees(kernels: &Kernels, stream: Stream, phase: &MaskTrees) -> Result<()> {
    let links = &phase.links;
    let mask_begin = phase.mask.and_then(|mask| match mask.layout {
        MaskLayout::Fixed { .. } => None,
        MaskLayout::Ragged { begin, .. } => begin,
    });
    let arguments = TreeArguments {
        parents: phase.parents.span.address(),
        num_nodes: address_or_zero(phase.num_nodes),
        position: phase.position.map_or(0, |column| column.span.address()),
        prefix_length: address_or_zero(phase.prefix_length),
        to_parents: address_or_zero(links.parents),
        first_child: address_or_zero(links.first_child),
        next_sibling: address_or_zero(links.next_sibling),
        depth: address_or_zero(links.depth),
        to_position: address_or_zero(links.position),
        wide_position: phase.wide_position.map_or(0, |(span, _)| span.address()),
        paths: phase.paths.map_or(0, |paths| paths.nodes.address()),
        num_paths: address_or_zero(phase.num_paths),
        flags: address_or_zero(phase.flags),
        mask_begin: address_or_zero(mask_begin),
        mask: phase.mask.map_or(0, |mask| mask.address),
        parents_stride: phase.parents.stride as u64,
        position_stride: phase.position.map_or(0, |column| column.stride as u64),
        links_stride: links.stride as u64,
        wide_stride: phase.wide_position.map_or(0, |(_, stride)| stride as u64),
        mask_rows: phase.mask.as_ref().map_or(MaskRows::zeroed(), MaskRows::of),
        max_nodes: phase.max_nodes as u32,
        path_rows: phase.paths.map_or(0, |paths| paths.rows as u32),
        path_length: phase.paths.map_or(0, |paths| paths.length as u32),
        mask_elements: phase
            .mask
            .map_or(MaskElements::zeroed(), |mask| MaskElements::of(mask.form)),
        is_ragged: phase
            .mask
            .is_some_and(|mask| matches!(mask.layout, MaskLayout::Ragged { .. }))
            .into(),
        has_prefix: phase.mask.is_some_and(|mask| mask.has_prefix).into(),
        unused: 0,
    };
    let blocks = elements(phase).div_ceil(BLOCK_ELEMENTS).clamp(1, MOST_BLOCKS);
    let grid = [phase.num_sequences as u32, blocks as u32, 1];
    let shape = Launch { grid, threads: THREADS, shared: 0, cooperative: false };
    // SAFETY: this function's contract.
    unsafe { kernels.launch(Kernel::MaskTrees, stream, &shape, &arguments) }
}
