//! Moving accepted rows in the host's KV.

use super::boundary::{self, borrow, call, reserved, within};
use super::context::spec_context;
use super::tensors::{column, optional_column, optional_span};
use super::types::{
    SPEC_KV_COMPACT_FLAG_INVALID, SPEC_KV_HND, SPEC_KV_NHD, spec_error, spec_kv_compact_args,
    spec_status,
};
use crate::context::Stream;
use crate::error::{Error, Result};
use crate::tensor::{Column, Span};
use crate::tree::{CompactRows, FLAG_INVALID, NODES_MAX, Placement, Planes, RowLists};
use std::ffi::c_void;

/// Moves the keys and values of accepted nodes, in the host's own KV, to the rows behind their
/// root, so that the next round finds them where it expects the tokens of a text.
///
/// A host that verifies trees runs its target over all nodes, node n in the row of position root +
/// n. The accepted path leads through some of them: node `path[i]` is the token of position root +
/// i, and its row moves there, of each layer and each head, for keys and values alike. Rows that
/// are in their place are not touched, so that chains cost nothing but the look at their paths.
/// Arrays are those of decision records: `position`, `row_count` and `path` as `spec_draft` takes
/// them after `spec_verify` has written them. Rows move in place and in the order of the path,
/// which ascends.
///
/// A host whose target has recurrent state mirrors what happens here. If it keeps the state behind
/// each node, that of node `path[row_count - 1]` is the one to go on from, and windows over
/// tokens, as of convolutions, are those of the last nodes of the path. If it keeps a state and
/// the inputs of each node in rows, `source_rows` and `destination_rows` say which rows the text
/// is in, before and after: with an L of 0 nothing moves, and the lists are all that is asked for.
///
/// What is out of range in the contents of the arrays leaves that sequence's rows as they are,
/// says so in `sequence_flags` and does not affect the others.
///
/// `stream` is NULL on the CPU. Errors: INVALID_ARGUMENT, UNSUPPORTED (a flag, layout or field
/// that this version does not know); then nothing has changed. DEVICE: the device or its driver
/// failed.
///
/// Contract: any thread; the work is done when the call returns (CPU) or enqueued (CUDA); does not
/// block; allocates nothing unless it fails; on `stream`, which may be capturing (CUDA).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_kv_compact(
    context: *const spec_context,
    args: *const spec_kv_compact_args,
    stream: *mut c_void,
    error: *mut spec_error,
) -> spec_status {
    call("spec_kv_compact", error, || {
        // SAFETY: the documented contract of the arguments.
        let (context, args) = unsafe { (borrow(context)?, boundary::read(args)?) };
        // SAFETY: as above.
        let phase = unsafe { phase(&args)? };
        let stream = Stream(stream as u64);
        context.context.enqueue(stream, |backend, stream| backend.compact_rows(stream, &phase))
    })
}

/// # Safety
///
/// The pointers in `args` are as documented; the result lives as long as they do.
unsafe fn phase<'a>(args: &spec_kv_compact_args) -> Result<CompactRows<'a>> {
    if args.flags != 0 {
        return Err(Error::unsupported(format!("flags: found {:#x}", args.flags)));
    }
    reserved("reserved", args.reserved.into())?;
    let sequences = within("num_sequences", args.num_sequences.into(), 0, i32::MAX.into())?;
    let nodes = within("max_nodes", args.max_nodes.into(), 1, NODES_MAX as i64)?;
    let decision = |what, pointer| column(what, pointer, sequences, args.decision_stride, 1);
    let placement = placement(args, sequences)?;
    // SAFETY: as this function's contract.
    let planes = unsafe { planes(args, &placement)? };
    Ok(CompactRows {
        num_sequences: sequences,
        max_nodes: nodes,
        position: decision("position", args.position)?,
        row_count: decision("row_count", args.row_count)?,
        path: path(args, sequences)?,
        placement,
        planes,
        lists: lists(args, sequences, nodes)?,
        flags: optional_span("sequence_flags", args.sequence_flags.cast_const(), sequences)?,
    })
}

fn path(args: &spec_kv_compact_args, sequences: usize) -> Result<Column> {
    if sequences == 0 {
        return Ok(Column { span: Span::new(0, 0), stride: 1 });
    }
    optional_column("path", args.path, sequences, args.path_stride)?.ok_or_else(|| {
        Error::invalid(format!("path: expected the paths of {sequences} sequences, found NULL"))
    })
}

fn placement(args: &spec_kv_compact_args, sequences: usize) -> Result<Placement> {
    let rows = within("page_size", args.page_size.into(), 1, i32::MAX.into())?;
    let most = i64::from(i32::MAX) / rows as i64;
    let pages = within("num_pages", args.num_pages.into(), 1, most)?;
    let table =
        optional_column("block_table", args.block_table, sequences, args.block_table_stride)?;
    if table.is_none() && pages < sequences {
        return Err(Error::invalid(format!(
            "block_table: expected one, as {sequences} sequences do not have a page each of {pages}, found NULL"
        )));
    }
    Ok(Placement { table, page_rows: rows, num_pages: pages })
}

fn lists(args: &spec_kv_compact_args, sequences: usize, nodes: usize) -> Result<RowLists> {
    let stride = match args.row_list_stride {
        0 => nodes,
        found => within("row_list_stride", found.into(), nodes as i64, i32::MAX.into())?,
    };
    let rows = |what, place: *mut i32| optional_span(what, place.cast_const(), sequences * stride);
    Ok(RowLists {
        source: rows("source_rows", args.source_rows)?,
        destination: rows("destination_rows", args.destination_rows)?,
        stride,
    })
}

/// # Safety
///
/// As for [`phase`].
unsafe fn planes<'a>(args: &spec_kv_compact_args, placement: &Placement) -> Result<Planes<'a>> {
    let layers = within("num_layers", args.num_layers.into(), 0, 4096)?;
    let (keys, values): (&[u64], &[u64]) = match layers {
        0 => (&[], &[]),
        // SAFETY: as this function's contract.
        _ => unsafe {
            let keys = bases("keys", args.keys, layers)?;
            let keys = keys.ok_or_else(|| {
                Error::invalid(format!("keys: expected {layers} addresses, found NULL"))
            })?;
            (keys, bases("values", args.values, layers)?.unwrap_or(&[]))
        },
    };
    let none = Planes {
        keys,
        values,
        heads: 0,
        head_bytes: 0,
        page_stride: 0,
        row_stride: 0,
        head_stride: 0,
    };
    if layers == 0 { Ok(none) } else { sized(args, placement, none).map(Planes::joined) }
}

/// The addresses of planes, none of which is NULL.
///
/// # Safety
///
/// `addresses` is NULL or points to `count` addresses, which do not change while the result lives.
unsafe fn bases<'a>(
    what: &str,
    addresses: *const *mut c_void,
    count: usize,
) -> Result<Option<&'a [u64]>> {
    const { assert!(size_of::<*mut c_void>() == size_of::<u64>()) };
    if optional_span(what, addresses, count)?.is_none() {
        return Ok(None);
    }
    // SAFETY: as this function's contract; the pointer is aligned, and addresses have 64 bits.
    let addresses = unsafe { std::slice::from_raw_parts(addresses.cast::<u64>(), count) };
    match addresses.iter().position(|&address| address == 0) {
        Some(layer) => Err(Error::invalid(format!("{what}[{layer}]: expected memory, found NULL"))),
        None => Ok(Some(addresses)),
    }
}

/// The planes with their sizes and strides: no two heads, rows or pages of one overlap.
fn sized<'a>(
    args: &spec_kv_compact_args,
    placement: &Placement,
    planes: Planes<'a>,
) -> Result<Planes<'a>> {
    let heads = within("num_heads", args.num_heads.into(), 1, i32::MAX.into())?;
    let most = i64::from(i32::MAX) / heads as i64;
    let head_bytes = within("head_bytes", args.head_bytes, 1, most)?;
    let rows = placement.page_rows;
    // Of pieces that lie inside of each other: how many, their stride as given, its name.
    let row = (rows, args.row_stride, "row_stride");
    let head = (heads, args.head_stride, "head_stride");
    let order = match args.layout {
        SPEC_KV_NHD => [head, row],
        SPEC_KV_HND => [row, head],
        found => {
            return Err(Error::unsupported(format!(
                "layout: expected {SPEC_KV_NHD} (NHD) or {SPEC_KV_HND} (HND), found {found}"
            )));
        }
    };
    let mut extent = head_bytes;
    let mut strides = [0; 3];
    let page = (placement.num_pages, args.page_stride, "page_stride");
    for (stride, (count, given, what)) in strides.iter_mut().zip([order[0], order[1], page]) {
        *stride = match given {
            0 => extent,
            given => within(what, given, extent as i64, i64::MAX)?,
        };
        extent = (count - 1)
            .checked_mul(*stride)
            .and_then(|last| last.checked_add(extent))
            .filter(|&extent| extent <= isize::MAX as usize)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "{what}: {count} of {stride} bytes do not fit the address space"
                ))
            })?;
    }
    let [inner, outer, page_stride] = strides;
    let (row_stride, head_stride) =
        if args.layout == SPEC_KV_NHD { (outer, inner) } else { (inner, outer) };
    Ok(Planes { heads, head_bytes, page_stride, row_stride, head_stride, ..planes })
}

// The flags of the library are those of the header.
const _: () = assert!(SPEC_KV_COMPACT_FLAG_INVALID == FLAG_INVALID);
