//! A model at work: workspace, KV pages, and the call that commits rows and drafts.

mod layout;

pub use crate::backend::Stream;
pub use crate::backend::draft_trees::{CHILDREN_MAX, TreeShape};
pub use crate::backend::phases::{Column, DraftBatch};
pub use crate::backend::verify::SamplingArrays;
pub use crate::model::trees::TreeLimits;
pub use layout::{Requirements, SessionOptions};

use crate::backend::phases::{Limits, Plan};
use crate::backend::{Backend, FaultWords};
use crate::context::{Block, MemoryKind};
use crate::drafter::{Call, block, heads, sequential, tree};
use crate::error::{Error, Result, Status};
use crate::model::decoder::Scratch;
use crate::model::{Model, Network};
use crate::tensor::{Carver, Span};
use layout::Layout;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The most features that a speculator reads; more are refused at load.
pub const FEATURES_MAX: usize = crate::model::FEATURES_MAX;

/// The most tokens that a session proposes for a sequence.
pub const DRAFTS_MAX: usize = 1023;

/// The bounds of a session's calls.
#[derive(Clone, Copy, Debug)]
pub struct CallLimits {
    /// The most sequences of a call.
    pub max_sequences: usize,
    /// The most tokens proposed for a sequence.
    pub max_drafts: usize,
    /// Its trees, if it drafts any.
    pub tree: Option<TreeLimits>,
    /// The pages that positions below max_position take.
    pub pages_per_sequence: usize,
    /// Contiguous ranges that the pool has room for.
    pub slots: usize,
}

/// A workspace and KV pages for one model. One call at a time; a second one is refused.
#[derive(Debug)]
pub struct Session {
    model: Arc<Model>,
    busy: AtomicBool,
    limits: CallLimits,
    bounds: Limits,
    plan: Plan,
    scratch: Scratch,
    faults: FaultWords,
    kv_memory: Span<u8>,
    workspace_memory: Span<u8>,
    /// Memory of the allocator, where the host gave none; released with the session.
    _owned: [Option<Block>; 2],
}

impl Session {
    /// The memory that a session with these options takes.
    pub fn requirements(model: &Model, options: &SessionOptions) -> Result<Requirements> {
        Ok(Layout::new(model, options)?.requirements())
    }

    /// A session whose memory the host gives in the options or the allocator gives.
    pub fn create(model: &Arc<Model>, options: &SessionOptions) -> Result<Self> {
        let backend = model.context().backend();
        let _scope = backend.enter()?;
        let layout = Layout::new(model, options)?;
        let needs = layout.requirements();
        let (kv_memory, kv_block) =
            memory(model, MemoryKind::Kv, "kv_pool", options.kv_pool, needs.kv_pool_bytes)?;
        let (workspace_memory, workspace_block) = memory(
            model,
            MemoryKind::Workspace,
            "workspace",
            options.workspace,
            needs.workspace_bytes,
        )?;
        let mut carver = Carver::of_block(workspace_memory.address());
        let faults = backend.fault_words()?;
        let workspace = layout.carve(&mut carver, kv_memory.address(), faults.span);
        fill_with_numbers(backend, workspace.slot_pages)?;
        for scratch in workspace.scratch.prepared() {
            backend.prepare_scratch(scratch)?;
        }
        Ok(Self {
            model: Arc::clone(model),
            busy: AtomicBool::new(false),
            limits: layout.call_limits(),
            bounds: layout.bounds(),
            plan: workspace.plan,
            scratch: workspace.scratch,
            faults,
            kv_memory,
            workspace_memory,
            _owned: [kv_block, workspace_block],
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The bounds of calls.
    pub fn limits(&self) -> CallLimits {
        self.limits
    }

    /// Commits rows and proposes tokens; the batch keeps to [`Session::limits`].
    pub fn draft(&self, stream: Stream, batch: &DraftBatch<'_>) -> Result<()> {
        let _turn = self.turn()?;
        let backend = self.model.context().backend();
        backend.check_stream(stream)?;
        if batch.num_sequences == 0 {
            return Ok(());
        }
        let _scope = backend.enter()?;
        let call = Call {
            backend,
            stream,
            batch,
            limits: &self.bounds,
            plan: &self.plan,
            scratch: &self.scratch,
        };
        let network = self.model.network();
        if let Some((shape, network)) = batch.shape.as_ref().zip(network.branching().ok()) {
            return tree::draft(&call, &network, shape);
        }
        match network {
            Network::Sequential(network) => sequential::draft(&call, network)?,
            Network::Block(network) => block::draft(&call, network)?,
            Network::Heads(network) => heads::draft(&call, network)?,
        }
        tree::describe(&call)
    }

    /// Makes weights, pages and workspace resident; clears the pages.
    pub fn warm_up(&self, stream: Stream) -> Result<()> {
        let _turn = self.turn()?;
        let backend = self.model.context().backend();
        backend.check_stream(stream)?;
        let _scope = backend.enter()?;
        if backend.is_capturing(stream)? {
            return Err(Error::invalid(
                "stream: expected one whose work is done, found one that is being captured",
            ));
        }
        for weights in self.model.weight_memory() {
            backend.touch(stream, weights, false)?;
        }
        backend.touch(stream, self.kv_memory, true)?;
        backend.touch(stream, self.workspace_memory, false)
    }

    /// The first fault since the last poll.
    pub fn poll(&self) -> Result<()> {
        let _turn = self.turn()?;
        match self.model.context().backend().take_fault(&self.faults) {
            None => Ok(()),
            Some((fault, sequence)) => Err(Error::invalid(format!(
                "sequence {sequence} took no part in a step: expected {}",
                fault.expectation()
            ))),
        }
    }

    fn turn(&self) -> Result<Turn<'_>> {
        if self.busy.swap(true, Ordering::Acquire) {
            return Err(Error::new(
                Status::Busy,
                "expected one call at a time on a session, found another thread in it",
            ));
        }
        Ok(Turn(&self.busy))
    }
}

/// The right to use the session, given back when dropped.
struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn memory(
    model: &Model,
    kind: MemoryKind,
    what: &str,
    given: Option<Span<u8>>,
    needed: usize,
) -> Result<(Span<u8>, Option<Block>)> {
    match given {
        Some(memory) if memory.len() >= needed => Ok((memory.slice(0, needed), None)),
        Some(memory) => Err(Error::invalid(format!(
            "{what}_size: expected at least {needed} bytes, found {}",
            memory.len()
        ))),
        None => {
            let block = model.context().allocate(kind, what, needed)?;
            Ok((Span::new(block.address(), needed), Some(block)))
        }
    }
}

/// Fills memory of the device with 0, 1, 2 and so on.
fn fill_with_numbers(backend: &dyn Backend, memory: Span<i32>) -> Result<()> {
    const SIZE: usize = size_of::<i32>();
    let bytes = Span::new(memory.address(), memory.len() * SIZE);
    backend.fill(bytes, SIZE, &mut |offset, bytes| {
        let numbers = (offset / SIZE) as i32..;
        for (number, four) in numbers.zip(bytes.chunks_exact_mut(SIZE)) {
            four.copy_from_slice(&number.to_ne_bytes());
        }
        Ok(())
    })
}
