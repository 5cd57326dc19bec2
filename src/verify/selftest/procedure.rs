//! Decisions by way of the library itself: what a test wants to know, as plain vectors, goes to
//! memory of the device, through verification and back.

use crate::backend::phases::Column;
use crate::backend::processing::{Bits, Masks, Processing};
use crate::backend::verify::{DraftDistribution, Leniency, SamplingArrays, VerifyBatch, record};
use crate::backend::{Backend, Stream};
use crate::context::{Block, Context, MemoryKind};
use crate::error::Result;
use crate::sampling::Parameters;
use crate::tensor::{ALIGNMENT, Dtype, Matrix, Span};
use bytemuck::NoUninit;
use std::cell::RefCell;

/// Random numbers are given in so many steps, each of which an `f64` holds exactly.
pub const STEPS: u64 = 1 << 53;

/// The highest number.
pub const LAST: u64 = STEPS - 1;

/// What the sequences of a call have in common.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The number of the rule.
    pub rule: i32,
    /// K.
    pub max_drafts: usize,
    /// The target's rows, of which sequences name theirs.
    pub target: Vec<Vec<f32>>,
    /// The rows that drafts are drawn from, by the same names; absent: drafts are taken as given.
    pub draft: Option<Vec<Vec<f32>>>,
    /// How the target's tokens are drawn.
    pub parameters: Parameters,
    /// How drafts are drawn.
    pub draft_parameters: Parameters,
    /// The tokens that each of the target's rows allows, as bits.
    pub masks: Option<Vec<u32>>,
    /// The parent of each node; absent: a chain.
    pub parents: Option<Vec<i32>>,
    /// What lossy rules go by, but for the wanted acceptance.
    pub leniency: Leniency,
    /// How often drafts of each depth are to be accepted.
    pub acceptance: Vec<f32>,
}

impl Scene {
    /// The size of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.target[0].len()
    }

    /// Random numbers of a sequence.
    pub fn numbers(&self) -> usize {
        2 * (self.max_drafts + 1)
    }
}

/// What is proposed to a sequence.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The draft of each node but the root; -1 was struck out.
    pub drafts: Vec<i32>,
    /// How many of them there are.
    pub num_drafts: usize,
    /// The name of each node's rows.
    pub rows: Vec<usize>,
}

/// Where random numbers come from.
#[derive(Clone, Debug)]
pub enum Draws {
    /// Given, in steps, for each sequence in the order of the interface.
    Given(Vec<u64>),
    /// By a seed and a position of the root for each sequence.
    Seeded(Vec<(u64, i32)>),
}

/// A way to decide.
pub trait Procedure {
    /// The records of as many sequences as `of` has elements, each with the proposal of that index.
    fn decide(
        &self,
        scene: &Scene,
        proposals: &[Proposal],
        of: &[usize],
        draws: &Draws,
    ) -> Result<Vec<i32>>;
}

/// How a batch that lies on a device is decided, and what workspace that takes.
pub trait Verify {
    /// Bytes of workspace.
    fn workspace_bytes(
        &self,
        backend: &dyn Backend,
        scene: &Scene,
        batch: &VerifyBatch,
    ) -> Result<usize>;

    /// Decides, or enqueues that.
    fn verify(
        &self,
        queue: (&dyn Backend, Stream),
        scene: &Scene,
        batch: &VerifyBatch,
        workspace: Span<u8>,
    ) -> Result<()>;
}

/// As hosts do.
#[derive(Debug)]
pub struct ByNumber;

impl Verify for ByNumber {
    fn workspace_bytes(
        &self,
        backend: &dyn Backend,
        scene: &Scene,
        batch: &VerifyBatch,
    ) -> Result<usize> {
        crate::verify::workspace_bytes(backend, batch, scene.rule)
    }

    fn verify(
        &self,
        queue: (&dyn Backend, Stream),
        scene: &Scene,
        batch: &VerifyBatch,
        workspace: Span<u8>,
    ) -> Result<()> {
        crate::verify::verify(queue, batch, (scene.rule, true), workspace)
    }
}

/// Decisions on the device of a context.
pub struct OnDevice<'a> {
    context: &'a Context,
    stream: Stream,
    by: &'a dyn Verify,
    /// Grows when a batch needs more.
    memory: RefCell<Option<Block>>,
}

impl<'a> OnDevice<'a> {
    /// On a stream of the context.
    pub fn new(context: &'a Context, stream: Stream, by: &'a dyn Verify) -> Self {
        Self { context, stream, by, memory: RefCell::new(None) }
    }
}

impl Procedure for OnDevice<'_> {
    fn decide(
        &self,
        scene: &Scene,
        proposals: &[Proposal],
        of: &[usize],
        draws: &Draws,
    ) -> Result<Vec<i32>> {
        let backend = self.context.backend();
        let mut memory = self.memory.borrow_mut();
        let records = of.len() * record::len(scene.max_drafts);
        loop {
            let (base, room) =
                memory.as_ref().map_or((0, 0), |block| (block.address(), block.bytes()));
            let mut image = Image { base, bytes: Vec::new() };
            let batch = image.batch(scene, proposals, of, draws);
            let needed = self.by.workspace_bytes(backend, scene, &batch)?;
            let places = image.reserve(records * size_of::<i32>());
            let workspace = image.reserve(needed);
            if image.bytes.len() > room {
                // Given back before more is asked for.
                memory.take();
                let bytes = image.bytes.len().next_power_of_two();
                *memory = Some(self.context.allocate(MemoryKind::Workspace, "self-test", bytes)?);
                continue;
            }
            let batch = VerifyBatch {
                decisions: Column {
                    span: Span::new(places.address(), records),
                    stride: record::len(scene.max_drafts),
                },
                ..batch
            };
            image.upload(backend, places)?;
            self.by.verify((backend, self.stream), scene, &batch, workspace)?;
            let mut decisions = vec![0; records];
            backend.fetch(self.stream, places, bytemuck::cast_slice_mut(&mut decisions))?;
            return Ok(decisions);
        }
    }
}

/// What a block of memory is to hold, with the addresses that its parts will have.
struct Image {
    base: u64,
    bytes: Vec<u8>,
}

impl Image {
    /// The next part, whatever is in it.
    fn reserve(&mut self, len: usize) -> Span<u8> {
        let start = self.bytes.len();
        self.bytes.resize((start + len).next_multiple_of(ALIGNMENT), 0);
        Span::new(self.base + start as u64, len)
    }

    /// The next part.
    fn push<T: NoUninit>(&mut self, elements: impl IntoIterator<Item = T>) -> Span<T> {
        let start = self.bytes.len();
        let mut len = 0;
        for element in elements {
            self.bytes.extend_from_slice(bytemuck::bytes_of(&element));
            len += 1;
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        Span::new(self.base + start as u64, len)
    }

    fn column(&mut self, elements: impl IntoIterator<Item = i32>, stride: usize) -> Column {
        Column { span: self.push(elements), stride }
    }

    /// The rows of all nodes of all proposals.
    fn matrix(&mut self, table: &[Vec<f32>], proposals: &[Proposal]) -> Matrix {
        let columns = table[0].len();
        let rows = proposals.iter().flat_map(|proposal| &proposal.rows);
        let elements = rows.flat_map(|&row| table[row].iter().copied());
        let span = self.push(elements);
        let address = span.address();
        let rows = span.len() / columns;
        Matrix { address, dtype: Dtype::F32, rows, columns, row_stride: columns }
    }

    fn sampling(&mut self, parameters: &Parameters, count: usize) -> SamplingArrays {
        let Parameters { temperature, top_k, top_p, min_p } = *parameters;
        SamplingArrays {
            temperature: Some(self.push(vec![temperature; count])),
            top_k: Some(self.push(vec![top_k; count])),
            top_p: Some(self.push(vec![top_p; count])),
            min_p: Some(self.push(vec![min_p; count])),
            seed: None,
        }
    }

    /// All that a call reads; its records are nowhere yet.
    fn batch(
        &mut self,
        scene: &Scene,
        proposals: &[Proposal],
        of: &[usize],
        draws: &Draws,
    ) -> VerifyBatch {
        let (count, nodes) = (of.len(), scene.max_drafts + 1);
        let logits = self.matrix(&scene.target, proposals);
        let first_rows = self.push(of.iter().map(|&index| (index * nodes) as i32));
        let drafts = of.iter().flat_map(|&index| proposals[index].drafts.iter().copied());
        let drafts = self.column(drafts, scene.max_drafts);
        let mut sampling = self.sampling(&scene.parameters, count);
        let (mut positions, mut uniforms) = (vec![0; count], None);
        match draws {
            Draws::Given(steps) => {
                let numbers = steps.iter().map(|&step| step as f64 / STEPS as f64);
                uniforms = Some(self.push(numbers));
            }
            Draws::Seeded(seeds) => {
                positions = seeds.iter().map(|&(_, position)| position).collect();
                sampling.seed = Some(self.push(seeds.iter().map(|&(seed, _)| seed)));
            }
        }
        let positions = self.column(positions, 1);
        let nowhere = Column { span: Span::new(0, 0), stride: record::len(scene.max_drafts) };
        let sizes = (count, scene.max_drafts);
        VerifyBatch {
            row_begin: Some(first_rows),
            num_drafts: Some(self.push(of.iter().map(|&index| proposals[index].num_drafts as i32))),
            parents: scene.parents.as_ref().map(|parents| self.column(parents.clone(), 0)),
            processing: scene.masks.as_ref().map(|masks| self.masks(masks, proposals)),
            draft: scene.draft.as_ref().map(|table| DraftDistribution {
                logits: self.matrix(table, proposals),
                token_ids: None,
                token_ids_stride: 0,
                row_begin: Some(first_rows),
                rows_per_sequence: nodes,
                sampling: Some(self.sampling(&scene.draft_parameters, count)),
            }),
            leniency: Leniency {
                acceptance: (!scene.acceptance.is_empty())
                    .then(|| self.push(scene.acceptance.iter().copied())),
                ..scene.leniency
            },
            sampling,
            uniforms,
            ..VerifyBatch::new(sizes, logits, drafts, positions, nowhere)
        }
    }

    fn masks(&mut self, masks: &[u32], proposals: &[Proposal]) -> Processing {
        let rows = proposals.iter().flat_map(|proposal| &proposal.rows);
        let words = self.push(rows.map(|&row| masks[row]));
        let bits = Bits { words, stride: 1 };
        Processing {
            masks: Some(Masks { bits, count: words.len(), mask_row: None }),
            ..Processing::default()
        }
    }

    /// Writes the parts before `end` to the device.
    fn upload(&self, backend: &dyn Backend, end: Span<u8>) -> Result<()> {
        let used = (end.address() - self.base) as usize;
        backend.fill(Span::new(self.base, used), 1, &mut |offset, piece| {
            piece.copy_from_slice(&self.bytes[offset..offset + piece.len()]);
            Ok(())
        })
    }
}
