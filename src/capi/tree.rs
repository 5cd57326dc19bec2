//! Trees: their topology from paths, and what is told of them.

use super::boundary::{self, borrow, call, reserved, within};
use super::context::spec_context;
use super::tensors::{self, column, optional_span, span};
use super::types::{
    SPEC_MASK_ADDITIVE, SPEC_MASK_BITS, SPEC_MASK_BOOL, SPEC_TREE_FLAG_PARENTS,
    SPEC_TREE_FLAG_PATHS, SPEC_TREE_FLAG_SIZE, SPEC_TREE_MASK_PREFIX, SPEC_TREE_MASK_RAGGED,
    spec_error, spec_status, spec_tree, spec_tree_mask_args,
};
use crate::context::Stream;
use crate::error::{Error, Result};
use crate::tensor::{Column, Span};
use crate::tree::{
    FLAG_PARENTS, FLAG_PATHS, FLAG_SIZE, LeafPaths, Limits, Links, Mask, MaskForm, MaskLayout,
    MaskTrees, NODES_MAX, Topology,
};
use std::ffi::c_void;

/// Makes the parents of a tree's nodes out of a list of paths, as static trees are published: those
/// of Medusa (Cai et al., 2024, "Medusa: Simple LLM Inference Acceleration Framework with Multiple
/// Decoding Heads"), EAGLE (Li et al., 2024, "EAGLE: Speculative Sampling Requires Rethinking
/// Feature Uncertainty") and HASS (Zhang et al., 2024, "Learning Harmonized Representations for
/// Speculative Sampling").
///
/// `paths` is `[num_paths, max_length]` int32 in host memory, NULL only if that is 0: each row has
/// the rank of a node among its siblings at each level below the root, from 0 on, padded with -1.
/// `[1, 0]` is the most probable token below the second most probable one below the root. What a
/// path begins with is in the tree, too; order and repetition do not matter. Nodes are numbered
/// from the root, 0, level by level, and in a level by parent, then by rank.
///
/// `parents` and `ranks`, in host memory, have room for `capacity` elements. `parents[n]` is the
/// parent of node n, -1 for the root. `ranks[n]` is the last element of its path, 0 for the root:
/// which of the tokens below its parent it is. `ranks` NULL means that they are not wanted: they
/// have to be 0, 1, ... among siblings then, as parents do not tell of gaps. `parents` NULL with a
/// `capacity` of 0: only the nodes are counted. `num_nodes`, not NULL, takes the number of nodes
/// with the root, also if the capacity is too small. Errors: INVALID_ARGUMENT (an entry below -1
/// or behind padding, gaps without `ranks`, more than 1024 nodes, too small a capacity); then
/// `parents` and `ranks` have not changed.
///
/// Contract: any thread; does not block; allocates nothing unless it fails; no stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_tree_from_paths(
    paths: *const i32,
    num_paths: i32,
    max_length: i32,
    parents: *mut i32,
    ranks: *mut i32,
    capacity: i32,
    num_nodes: *mut i32,
    error: *mut spec_error,
) -> spec_status {
    call("spec_tree_from_paths", error, || {
        let count = within("num_paths", num_paths.into(), 0, i32::MAX.into())?;
        let length = within("max_length", max_length.into(), 0, i32::MAX.into())?;
        let capacity = within("capacity", capacity.into(), 0, i32::MAX.into())?;
        span("paths", paths, count * length)?;
        if num_nodes.is_null() || !num_nodes.is_aligned() {
            return Err(Error::invalid(format!(
                "num_nodes: expected a place for it, found {num_nodes:p}"
            )));
        }
        let (has_parents, has_ranks) = (!parents.is_null(), !ranks.is_null());
        if !has_parents && (capacity > 0 || has_ranks) {
            return Err(Error::invalid("parents: expected a place for them, found NULL"));
        }
        for (what, place) in [("parents", parents), ("ranks", ranks)] {
            optional_span(what, place.cast_const(), capacity)?;
        }
        // SAFETY: the documented contract of the paths, which are there and aligned.
        let path = |index| unsafe { row(paths, index, length) };
        let tree = Topology::from_paths((0..count).map(path), &Limits::LARGEST)?;
        // SAFETY: not NULL, aligned, and writable by the documented contract.
        unsafe { num_nodes.write(tree.num_nodes() as i32) };
        if !has_parents {
            return Ok(());
        }
        if capacity < tree.num_nodes() {
            return Err(Error::invalid(format!(
                "capacity: expected at least {} nodes, found {capacity}",
                tree.num_nodes()
            )));
        }
        if !has_ranks && !tree.ranks_are_places() {
            return Err(Error::invalid(
                "ranks: expected a place for them, as siblings do not have the ranks 0, 1, ..., found NULL",
            ));
        }
        for (to, from) in [(parents, tree.parents()), (ranks, tree.ranks())] {
            if !to.is_null() {
                // SAFETY: `capacity` elements, by the documented contract; not part of the tree.
                unsafe { from.as_ptr().copy_to_nonoverlapping(to, from.len()) };
            }
        }
        Ok(())
    })
}

/// # Safety
///
/// Either `length` is 0, or there are more than `index` rows of that many elements.
unsafe fn row<'a>(rows: *const i32, index: usize, length: usize) -> &'a [i32] {
    if length == 0 {
        return &[];
    }
    // SAFETY: as this function's contract.
    unsafe { std::slice::from_raw_parts(rows.add(index * length), length) }
}

/// Tells a host that verifies trees of its own what it needs to run its target over them: the
/// links of each tree, depths and positions, the paths to the leaves, and the mask of its
/// attention.
///
/// Whatever output is not NULL is written, all of them from the parents. In a mask a node sees its
/// ancestors and itself, and, with `SPEC_TREE_MASK_PREFIX`, all columns of the prefix. In SGLang's
/// terms, `SPEC_MASK_BOOL` is QLEN_ONLY, with the flags PREFIX and RAGGED it is FULL_MASK, and
/// `SPEC_MASK_BITS` is QLEN_ONLY_BITPACKING; `SPEC_MASK_BITS` in words of 32 is the packed mask of
/// TensorRT-LLM; in words of 8 with both flags, with `mask_begin`, it is that of FlashInfer.
///
/// What is out of range in the contents of the arrays makes that sequence's outputs padding, says
/// why in `sequence_flags` and does not affect the others.
///
/// `stream` is NULL on the CPU. Errors: INVALID_ARGUMENT, UNSUPPORTED (a flag or field that this
/// version does not know); then nothing has changed. DEVICE: the device or its driver failed.
///
/// Contract: any thread; the work is done when the call returns (CPU) or enqueued (CUDA); does not
/// block; allocates nothing unless it fails; on `stream`, which may be capturing (CUDA).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_tree_mask(
    context: *const spec_context,
    args: *const spec_tree_mask_args,
    stream: *mut c_void,
    error: *mut spec_error,
) -> spec_status {
    call("spec_tree_mask", error, || {
        // SAFETY: the documented contract of the arguments.
        let (context, args) = unsafe { (borrow(context)?, boundary::read(args)?) };
        // SAFETY: as above.
        let links = unsafe { boundary::read_optional(args.tree)? };
        let phase = phase(&args, links.as_ref())?;
        let stream = Stream(stream as u64);
        context.context.enqueue(stream, |backend, stream| backend.mask_trees(stream, &phase))
    })
}

fn phase(args: &spec_tree_mask_args, links: Option<&spec_tree>) -> Result<MaskTrees> {
    let known = SPEC_TREE_MASK_PREFIX | SPEC_TREE_MASK_RAGGED;
    if args.flags & !known != 0 {
        return Err(Error::unsupported(format!("flags: found {:#x}", args.flags)));
    }
    reserved("reserved", args.reserved.into())?;
    let sequences = within("num_sequences", args.num_sequences.into(), 0, i32::MAX.into())?;
    let nodes = within("max_nodes", args.max_nodes.into(), 1, NODES_MAX as i64)?;
    let sizes = Sizes { sequences, nodes };
    let phase = MaskTrees {
        num_sequences: sequences,
        max_nodes: nodes,
        parents: sizes.parents(args)?,
        num_nodes: optional_span("num_nodes", args.num_nodes, sequences)?,
        position: sizes.position(args)?,
        prefix_length: optional_span("prefix_length", args.prefix_length, sequences)?,
        links: links.map_or(Ok(Links::default()), |links| sizes.links(links))?,
        wide_position: sizes.wide_position(args)?,
        paths: sizes.paths(args)?,
        num_paths: optional_span("num_paths", args.num_paths.cast_const(), sequences)?,
        mask: sizes.mask(args)?,
        flags: optional_span("sequence_flags", args.sequence_flags.cast_const(), sequences)?,
    };
    let needs_prefix =
        phase.mask.is_some_and(|mask| mask.has_prefix) && phase.prefix_length.is_none();
    let needs_position = phase.links.position.is_some() || phase.wide_position.is_some();
    if phase.position.is_none() && (needs_prefix || needs_position) && sequences > 0 {
        return Err(Error::invalid(format!(
            "position: expected {sequences} elements, from which positions or prefixes follow, found NULL"
        )));
    }
    Ok(phase)
}

/// Where the host wants to know its trees of so many nodes.
pub(super) fn links(links: &spec_tree, sequences: usize, nodes: usize) -> Result<Links> {
    Sizes { sequences, nodes }.links(links)
}

/// The sizes of a call.
#[derive(Clone, Copy)]
struct Sizes {
    sequences: usize,
    nodes: usize,
}

impl Sizes {
    fn parents(self, args: &spec_tree_mask_args) -> Result<Column> {
        let Self { sequences, nodes } = self;
        if args.parents_stride != 0 {
            return column("parents", args.parents, sequences, args.parents_stride, nodes);
        }
        let shared = if sequences == 0 { 0 } else { nodes };
        Ok(Column { span: span("parents", args.parents, shared)?, stride: 0 })
    }

    fn position(self, args: &spec_tree_mask_args) -> Result<Option<Column>> {
        if args.position.is_null() {
            return Ok(None);
        }
        column("position", args.position, self.sequences, args.position_stride, 1).map(Some)
    }

    /// All elements of `[B, stride]`, which must fit the address space.
    fn rows<T>(self, what: &str, place: *mut T, stride: usize) -> Result<Option<Span<T>>> {
        if self.sequences.saturating_mul(stride) > isize::MAX as usize / size_of::<T>() {
            return Err(Error::invalid(format!(
                "{what}: {} rows of stride {stride} do not fit the address space",
                self.sequences
            )));
        }
        optional_span(what, place.cast_const(), self.sequences * stride)
    }

    /// `found`, at least N; 0 is N.
    fn stride(self, what: &str, found: i32) -> Result<usize> {
        match found {
            0 => Ok(self.nodes),
            found => within(what, found.into(), self.nodes as i64, i32::MAX.into()),
        }
    }

    fn links(self, links: &spec_tree) -> Result<Links> {
        let stride =
            within("tree.stride", links.stride.into(), self.nodes as i64, i32::MAX.into())?;
        let rows = |what, place| self.rows(what, place, stride);
        Ok(Links {
            stride,
            parents: rows("tree.parents", links.parents)?,
            first_child: rows("tree.first_child", links.first_child)?,
            next_sibling: rows("tree.next_sibling", links.next_sibling)?,
            depth: rows("tree.depth", links.depth)?,
            position: rows("tree.position", links.position)?,
        })
    }

    fn wide_position(self, args: &spec_tree_mask_args) -> Result<Option<(Span<i64>, usize)>> {
        let stride = self.stride("position64_stride", args.position64_stride)?;
        let span = self.rows("position64", args.position64, stride)?;
        Ok(span.map(|span| (span, stride)))
    }

    fn paths(self, args: &spec_tree_mask_args) -> Result<Option<LeafPaths>> {
        let most = |what, found| match found {
            0 => Ok(self.nodes),
            found => within(what, i64::from(found), 1, self.nodes as i64),
        };
        let rows = most("max_paths", args.max_paths)?;
        let length = most("path_length", args.path_length)?;
        let nodes = self.rows("paths", args.paths, rows * length)?;
        Ok(nodes.map(|nodes| LeafPaths { nodes, rows, length }))
    }

    fn mask(self, args: &spec_tree_mask_args) -> Result<Option<Mask>> {
        if args.mask.is_null() {
            within("flags without mask", args.flags.into(), 0, 0)?;
            within("mask_form without mask", args.mask_form.into(), 0, 0)?;
            within("mask_begin without mask", i64::from(!args.mask_begin.is_null()), 0, 0)?;
            return Ok(None);
        }
        let form = mask_form(args)?;
        let address = args.mask as u64;
        if !address.is_multiple_of(form.element_bytes() as u64) {
            return Err(Error::invalid(format!(
                "mask: expected elements of {} bytes, aligned, found {address:#x}",
                form.element_bytes()
            )));
        }
        let has_prefix = args.flags & SPEC_TREE_MASK_PREFIX != 0;
        let layout = match args.flags & SPEC_TREE_MASK_RAGGED {
            0 => self.fixed_rows(args, form, has_prefix)?,
            _ => self.ragged_rows(args)?,
        };
        Ok(Some(Mask { address, form, layout, has_prefix }))
    }

    fn fixed_rows(
        self,
        args: &spec_tree_mask_args,
        form: MaskForm,
        has_prefix: bool,
    ) -> Result<MaskLayout> {
        const MOST: i64 = 1 << 40;
        within("mask_size without SPEC_TREE_MASK_RAGGED", args.mask_size, 0, 0)?;
        if !args.mask_begin.is_null() {
            return Err(Error::invalid("mask_begin: expected NULL without SPEC_TREE_MASK_RAGGED"));
        }
        let columns = match args.mask_columns {
            0 if !has_prefix => self.nodes,
            found => within("mask_columns", found.into(), self.nodes as i64, i32::MAX.into())?,
        };
        let row = form.elements(columns);
        let row_stride = match args.mask_row_stride {
            0 => row,
            found => within("mask_row_stride", found, row as i64, MOST)?,
        };
        let rows = (self.nodes - 1) * row_stride + row;
        let sequence_stride = match args.mask_sequence_stride {
            0 => self.nodes * row_stride,
            found => within("mask_sequence_stride", found, rows as i64, MOST << 10)?,
        };
        let elements = self.sequences.saturating_mul(sequence_stride);
        if elements > isize::MAX as usize / form.element_bytes() {
            return Err(Error::invalid(format!(
                "mask: {} sequences of stride {sequence_stride} do not fit the address space",
                self.sequences
            )));
        }
        Ok(MaskLayout::Fixed { columns, row_stride, sequence_stride })
    }

    fn ragged_rows(self, args: &spec_tree_mask_args) -> Result<MaskLayout> {
        for (what, found) in [
            ("mask_columns with SPEC_TREE_MASK_RAGGED", args.mask_columns.into()),
            ("mask_row_stride with SPEC_TREE_MASK_RAGGED", args.mask_row_stride),
            ("mask_sequence_stride with SPEC_TREE_MASK_RAGGED", args.mask_sequence_stride),
        ] {
            within(what, found, 0, 0)?;
        }
        let capacity = within("mask_size", args.mask_size, 0, i32::MAX.into())?;
        let begin = optional_span("mask_begin", args.mask_begin.cast_const(), self.sequences + 1)?;
        Ok(MaskLayout::Ragged { capacity, begin })
    }
}

fn mask_form(args: &spec_tree_mask_args) -> Result<MaskForm> {
    let (code, bits) = (args.mask_dtype_code, args.mask_dtype_bits);
    match (args.mask_form, code, bits) {
        (SPEC_MASK_BOOL, 0, 0) => Ok(MaskForm::Bool),
        (SPEC_MASK_BITS, 0, 8 | 16 | 32 | 64) => Ok(MaskForm::Bits(bits.into())),
        (SPEC_MASK_ADDITIVE, ..) => tensors::dtype(&"mask", code, bits, 1).map(MaskForm::Additive),
        (SPEC_MASK_BOOL | SPEC_MASK_BITS, ..) => Err(Error::invalid(format!(
            "mask: expected the dtype code 0 and, of words of bits, 8, 16, 32 or 64 bits, found code {code}, {bits} bits"
        ))),
        (found, ..) => Err(Error::unsupported(format!(
            "mask_form: expected {SPEC_MASK_BOOL} (bool), {SPEC_MASK_ADDITIVE} (additive) or {SPEC_MASK_BITS} (bits), found {found}"
        ))),
    }
}

// The flags of the library are those of the header.
const _: () = {
    assert!(SPEC_TREE_FLAG_SIZE == FLAG_SIZE);
    assert!(SPEC_TREE_FLAG_PARENTS == FLAG_PARENTS);
    assert!(SPEC_TREE_FLAG_PATHS == FLAG_PATHS);
};
