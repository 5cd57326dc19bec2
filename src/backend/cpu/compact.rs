//! Moving the rows of accepted nodes. Sequences, keys, values and layers are shared out over threads;
//! the rows of a path move one after the other.

use super::CpuBackend;
use super::memory::{elements, elements_mut, place, read};
use crate::tensor::Span;
use crate::tree::{CompactRows, FLAG_INVALID, NODES_MAX};

impl CpuBackend {
    /// # Safety
    ///
    /// The contract of [`crate::backend::Backend`].
    pub(super) unsafe fn compact_all_rows(&self, phase: &CompactRows<'_>) {
        let shares = phase.planes.len().max(1);
        self.pool.run(phase.num_sequences * shares, &|task| {
            let (index, share) = (task / shares, task % shares);
            // SAFETY: the contract of Backend; tasks write different sequences or planes.
            unsafe {
                let moves = Moves::read(phase, index);
                if share == 0 {
                    moves.write_lists(phase, index);
                }
                if share < phase.planes.len() {
                    moves.follow(phase, share);
                }
            }
        });
    }
}

/// The rows of one path, where they come from and where they go. Functions are unsafe for the contract
/// of [`crate::backend::Backend`] alone.
struct Moves {
    count: usize,
    source: [i32; NODES_MAX],
    destination: [i32; NODES_MAX],
    is_wrong: bool,
}

impl Moves {
    unsafe fn read(phase: &CompactRows<'_>, index: usize) -> Self {
        let mut moves = Self {
            count: 0,
            source: [-1; NODES_MAX],
            destination: [-1; NODES_MAX],
            is_wrong: false,
        };
        // SAFETY: the contract of Backend.
        let (count, position) = unsafe {
            (
                read(phase.row_count.span, index * phase.row_count.stride),
                read(phase.position.span, index * phase.position.stride),
            )
        };
        // SAFETY: as above.
        match unsafe { moves.lay_out(phase, index, count, position) } {
            Some(count) => moves.count = count,
            None => moves.is_wrong = true,
        }
        moves
    }

    /// The nodes of the path, if all of them are well.
    unsafe fn lay_out(
        &mut self,
        phase: &CompactRows<'_>,
        index: usize,
        count: i32,
        position: i32,
    ) -> Option<usize> {
        let count = usize::try_from(count).ok().filter(|&count| count <= phase.max_nodes)?;
        if count == 0 {
            return Some(0);
        }
        let root = usize::try_from(position).ok()?.checked_sub(count)?;
        let mut least = 0;
        for step in 0..count {
            // SAFETY: the contract of Backend, here and below.
            let node = unsafe { read(phase.path.span, index * phase.path.stride + step) };
            let node = usize::try_from(node).ok().filter(|&node| node >= least)?;
            if node >= phase.max_nodes || step == 0 && node != 0 {
                return None;
            }
            least = node + 1;
            // SAFETY: as above.
            unsafe {
                self.source[step] = row(phase, index, root + node)?;
                self.destination[step] = row(phase, index, root + step)?;
            }
        }
        Some(count)
    }

    unsafe fn write_lists(&self, phase: &CompactRows<'_>, index: usize) {
        let lists = &phase.lists;
        for (to, from) in [(lists.source, &self.source), (lists.destination, &self.destination)] {
            let Some(to) = to else { continue };
            // SAFETY: the contract of Backend; this sequence's own row.
            let to = unsafe { elements_mut(to.slice(index * lists.stride, phase.max_nodes)) };
            to.fill(-1);
            to[..self.count].copy_from_slice(&from[..self.count]);
        }
        if let Some(flags) = phase.flags {
            // SAFETY: as above.
            unsafe { *place(flags, index) = if self.is_wrong { FLAG_INVALID } else { 0 } };
        }
    }

    /// Moves the rows of a plane.
    unsafe fn follow(&self, phase: &CompactRows<'_>, plane: usize) {
        let planes = &phase.planes;
        let base = planes.base(plane);
        let address = |row: i32| {
            let (page, row) = (
                row as usize / phase.placement.page_rows,
                row as usize % phase.placement.page_rows,
            );
            base + (page * planes.page_stride + row * planes.row_stride) as u64
        };
        let rows = self.source[..self.count].iter().zip(&self.destination[..self.count]);
        // Nodes ascend, so that a row is overwritten only after it has moved itself.
        for (from, to) in rows.filter(|(from, to)| from != to) {
            for head in 0..planes.heads {
                let offset = (head * planes.head_stride) as u64;
                let bytes = |row| Span::new(address(row) + offset, planes.head_bytes);
                // SAFETY: the contract of Backend; different rows do not overlap.
                unsafe {
                    let from = elements(bytes(*from));
                    elements_mut::<u8>(bytes(*to)).copy_from_slice(from);
                }
            }
        }
    }
}

/// The number of a row of a sequence, if it has one.
///
/// # Safety
///
/// The contract of [`crate::backend::Backend`].
unsafe fn row(phase: &CompactRows<'_>, index: usize, row: usize) -> Option<i32> {
    let placement = &phase.placement;
    let entry = row / placement.page_rows;
    if entry >= placement.pages_per_sequence() {
        return None;
    }
    let page = match placement.table {
        None => index as i32,
        // SAFETY: as this function's contract.
        Some(table) => unsafe { read(table.span, index * table.stride + entry) },
    };
    let page = usize::try_from(page).ok().filter(|&page| page < placement.num_pages)?;
    Some((page * placement.page_rows + row % placement.page_rows) as i32)
}
