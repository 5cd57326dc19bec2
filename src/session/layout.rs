//! How a session's memory is cut: the one place that knows its sizes, run once to count and once
//! to carve.

use super::CallLimits;
use crate::backend::draft_trees::SHAPE_TABLES;
use crate::backend::phases::{KvPool, Limits, Plan, Rows};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::decoder::{RowLimits, Scratch};
use crate::model::trees::TreeLimits;
use crate::tensor::{ALIGNMENT, Carver, Dtype, Matrix, Span};

/// What a session is created for.
#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    /// The most sequences of a call, and the number of slots.
    pub max_sequences: usize,
    /// The most rows that a call commits.
    pub max_rows: usize,
    /// The most tokens proposed for a sequence.
    pub max_drafts: usize,
    /// Trees, if it drafts any.
    pub tree: Option<TreeLimits>,
    /// Positions lie below this.
    pub max_position: usize,
    /// Positions of a page.
    pub page_size: usize,
    /// Pages; 0 is what all slots need.
    pub max_pages: usize,
    /// The element type of keys and values; `None` is what suits the device.
    pub kv_dtype: Option<Dtype>,
    /// The host's memory for the pages.
    pub kv_pool: Option<Span<u8>>,
    /// The host's memory for the workspace.
    pub workspace: Option<Span<u8>>,
}

/// The memory that a session takes.
#[derive(Clone, Copy, Debug)]
pub struct Requirements {
    /// Bytes of workspace.
    pub workspace_bytes: usize,
    /// Bytes of all pages.
    pub kv_pool_bytes: usize,
    /// Bytes of a page.
    pub page_bytes: usize,
    /// Bytes of keys and values of one position.
    pub kv_bytes_per_token: usize,
    /// Pages of the pool.
    pub num_pages: usize,
    /// Positions of a page.
    pub page_size: usize,
}

/// The sizes of a session's memory, checked.
pub struct Layout<'a> {
    model: &'a Model,
    options: SessionOptions,
    kv_dtype: Dtype,
    pages_per_sequence: usize,
    needs: Requirements,
}

/// A session's workspace, cut.
pub struct Workspace {
    pub plan: Plan,
    pub scratch: Scratch,
    pub slot_pages: Span<i32>,
}

impl<'a> Layout<'a> {
    pub fn new(model: &'a Model, options: &SessionOptions) -> Result<Self> {
        let too_large = || Error::invalid("expected sizes that fit the address space");
        let pages_per_sequence = options.max_position.div_ceil(options.page_size);
        let num_pages = match options.max_pages {
            0 => pages_per_sequence.checked_mul(options.max_sequences).ok_or_else(too_large)?,
            pages => pages,
        };
        if num_pages > i32::MAX as usize {
            return Err(Error::invalid(format!(
                "max_pages: expected fewer than 2^31 pages, found {num_pages}"
            )));
        }
        if let Some(tree) = &options.tree {
            check_trees(model, tree, options.max_sequences)?;
        }
        let (kv_heads, head_dim) = model.kv_shape();
        let kv_dtype = options.kv_dtype.unwrap_or(model.context().description().kv_dtype);
        let kv_bytes_per_token = 2 * model.num_layers() * kv_heads * head_dim * kv_dtype.size();
        let page_bytes = kv_bytes_per_token.checked_mul(options.page_size).ok_or_else(too_large)?;
        let kv_pool_bytes = page_bytes
            .checked_mul(num_pages)
            .and_then(|bytes| bytes.checked_next_multiple_of(ALIGNMENT))
            .filter(|&bytes| isize::try_from(bytes).is_ok())
            .ok_or_else(too_large)?;
        let needs = Requirements {
            workspace_bytes: 0,
            kv_pool_bytes,
            page_bytes,
            kv_bytes_per_token,
            num_pages,
            page_size: options.page_size,
        };
        let mut layout = Self { model, options: *options, kv_dtype, pages_per_sequence, needs };
        let mut counting = Carver::counting();
        layout.carve(&mut counting, 0, Span::new(0, 2));
        if isize::try_from(counting.used()).is_err() {
            return Err(too_large());
        }
        layout.needs.workspace_bytes = counting.used();
        Ok(layout)
    }

    pub fn requirements(&self) -> Requirements {
        self.needs
    }

    pub fn call_limits(&self) -> CallLimits {
        CallLimits {
            max_sequences: self.options.max_sequences,
            max_drafts: self.options.max_drafts,
            tree: self.options.tree,
            pages_per_sequence: self.pages_per_sequence,
            slots: self.slots(),
        }
    }

    pub fn bounds(&self) -> Limits {
        Limits {
            max_rows: self.options.max_rows,
            max_position: self.options.max_position,
            vocabulary: self.model.vocabulary(),
            num_slots: self.slots(),
            most_drafts: self.model.most_drafts(),
            drafts_in_pages: self.model.network().drafts_in_pages(),
            reads_own_tokens: self.model.network().reads_own_tokens(),
        }
    }

    /// The most rows that pass the network before the first proposals: those to commit, and that of the
    /// next token of each sequence where it needs one.
    fn rows(&self) -> usize {
        let SessionOptions { max_rows, max_sequences, .. } = self.options;
        match self.model.network().reads_own_tokens() {
            true => max_rows.saturating_add(max_sequences),
            false => max_rows,
        }
    }

    fn slots(&self) -> usize {
        (self.needs.num_pages / self.pages_per_sequence).min(self.options.max_sequences)
    }

    /// The most positions that a sequence has keys for. (One that names a page twice may have more;
    /// it only loses some sharing of work.)
    fn positions(&self) -> usize {
        let pooled = self.needs.num_pages.saturating_mul(self.options.page_size);
        self.options.max_position.min(pooled)
    }

    /// Cuts the workspace; in counting mode the addresses mean nothing.
    pub fn carve(&self, carver: &mut Carver, kv_address: u64, fault: Span<i32>) -> Workspace {
        let sequences = self.options.max_sequences;
        let plan = Plan {
            commit: Rows::carve(carver, self.rows()),
            draft: Rows::carve(carver, sequences),
            drafting: carver.span(self.options.max_drafts),
            num_drafts: carver.span(sequences),
            depth: carver.span(if self.options.tree.is_some() { sequences } else { 0 }),
            shape: carver.span(match self.options.tree {
                Some(_) => SHAPE_TABLES * (self.options.max_drafts + 1),
                None => 0,
            }),
            page_row: carver.span(sequences),
            fault,
        };
        let slot_pages = carver.span(self.slots() * self.pages_per_sequence);
        let (num_kv_heads, head_dim) = self.model.kv_shape();
        let columns = self.needs.page_bytes / self.kv_dtype.size();
        let pages = Matrix {
            address: kv_address,
            dtype: self.kv_dtype,
            rows: self.needs.num_pages,
            columns,
            row_stride: columns,
        };
        let pool = KvPool {
            pages,
            page_size: self.options.page_size,
            num_kv_heads,
            head_dim,
            slot_pages,
            pages_per_slot: self.pages_per_sequence,
        };
        let limits = RowLimits {
            commit: self.rows(),
            sequences,
            drafts: self.options.max_drafts,
            positions: self.positions(),
            tree: self.options.tree,
        };
        let backend = self.model.context().backend();
        let scratch = self.model.network().carve(carver, backend, pool, &limits);
        Workspace { plan, scratch, slot_pages }
    }
}

/// Refuses trees that the model does not draft, or whose rows could not be numbered.
fn check_trees(model: &Model, tree: &TreeLimits, max_sequences: usize) -> Result<()> {
    if let Err(obstacle) = model.network().branching() {
        return Err(Error::unsupported(format!(
            "max_tree_width: expected 0, as trees are not drafted with {}: {obstacle}; found {}",
            model.kind(),
            tree.width
        )));
    }
    let most = max_sequences.saturating_mul(tree.candidates());
    if most > i32::MAX as usize {
        return Err(Error::invalid(format!(
            "max_tree_width, max_tree_depth: expected fewer than 2^31 candidates in all trees, found {most}"
        )));
    }
    Ok(())
}
