//! The launch code of `kernels/verify.cu`, `kernels/verify_path.cu` and `kernels/logprobs.cu`: two
//! launches for each verification, one that reads the host's arrays and one that decides; between them
//! one more where something is done to the logits, and after them one where log-probabilities are
//! wanted.

use super::launch::{Arguments, Kernel, Kernels, Launch};
use super::processing::{self, ProcessingArguments};
use crate::backend::Stream;
use crate::backend::phases::Column;
use crate::backend::verify::{Logprobs, RuleKind, SamplingArrays, Siblings, VerifyBatch};
use crate::error::{Error, Result};
use crate::tensor::{Carver, Dtype, Matrix, Span};
use bytemuck::NoUninit;

/// Logits that are looked at as a whole, as in the kernels.
pub const TILE: usize = 256;

/// The most blocks of a team, as in the kernels.
const MOST_MEMBERS: usize = 32;

/// A block of fewer tiles is not worth a place at the meetings.
const LEAST_TILES: usize = 8;

/// Threads of a block that decides sequences of all kinds, of both kernels.
const ROWS_THREADS: u32 = 512;

/// Threads of a block that decides greedy sequences; each warp has a tile at a time.
const ARGMAX_THREADS: u32 = 256;

/// Blocks of greedy sequences for each multiprocessor, so that the last ones are short.
const ARGMAX_BLOCKS: usize = 32;

/// Threads of a block that plans; each warp has a sequence.
const PLAN_THREADS: u32 = 256;

/// Bytes of the kernels' `Board`, `Sequence` and `Emission`.
const BOARD_BYTES: usize = 64 + 1024 * 4 + 1024 * 8;
const SEQUENCE_BYTES: usize = 80;
const EMISSION_BYTES: usize = 8;
/// Bytes of the kernels' `Family`.
const FAMILY_BYTES: usize = 12;
/// Bytes of the weights of a tile by p and by q.
const TILE_WEIGHTS: usize = TILE * 2 * size_of::<u64>();

/// Blocks that run at the same time if each has so much shared memory.
#[derive(Clone, Copy, Debug)]
struct Residence {
    blocks: usize,
    shared: usize,
}

/// How rows are shared out between the blocks of a device.
#[derive(Clone, Debug)]
pub struct Teams {
    rows: KernelTeams,
    path: KernelTeams,
}

impl Teams {
    /// What the device has. Not for steps.
    pub fn new(kernels: &Kernels) -> Result<Self> {
        Ok(Self {
            rows: KernelTeams::new(kernels, Kernel::VerifyRows)?,
            path: KernelTeams::new(kernels, Kernel::VerifyPath)?,
        })
    }

    /// The same with so many blocks for each row. Copies are, for a kernel that keeps weights, these
    /// in shared memory.
    pub fn of(self, blocks: u32, slice_is_copied: bool) -> Self {
        Self {
            rows: self.rows.of(blocks, slice_is_copied),
            path: self.path.of(blocks, slice_is_copied),
        }
    }
}

/// How rows are shared out between the blocks of a kernel.
#[derive(Clone, Debug)]
struct KernelTeams {
    /// With more blocks and less shared memory first.
    residences: Vec<Residence>,
    /// Blocks for each row and whether they copy it, instead of what suits.
    fixed: Option<(usize, bool)>,
}

/// How a batch is shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    teams: usize,
    team_size: usize,
    /// Bytes of dynamic shared memory.
    shared: usize,
    slice_is_copied: bool,
}

impl KernelTeams {
    /// What the device has. Not for steps.
    fn new(kernels: &Kernels, kernel: Kernel) -> Result<Self> {
        let most = kernels.dynamic_shared(kernel);
        let blocks = |shared| kernels.resident_blocks(kernel, ROWS_THREADS, shared);
        let (one, many) = (blocks(most)?, blocks(0)?);
        let mut residences = Vec::new();
        if many > one {
            // The most shared memory with which more blocks fit.
            let (mut fits, mut does_not) = (0, most);
            while does_not - fits > 256 {
                let middle = fits + (does_not - fits) / 2;
                *(if blocks(middle)? > one { &mut fits } else { &mut does_not }) = middle;
            }
            let shared = fits / 16 * 16;
            residences
                .push(Residence { blocks: blocks(shared)? as usize, shared: shared as usize });
        }
        residences.push(Residence { blocks: one as usize, shared: most as usize });
        if one == 0 {
            return Err(Error::unsupported(format!(
                "expected a device with room for a block of {ROWS_THREADS} threads"
            )));
        }
        Ok(Self { residences, fixed: None })
    }

    /// The same with so many blocks for each row.
    fn of(self, blocks: u32, slice_is_copied: bool) -> Self {
        let most = self.most_blocks().min(MOST_MEMBERS);
        let blocks = (blocks as usize).clamp(1, most);
        Self { fixed: Some((blocks, slice_is_copied)), ..self }
    }

    fn most_blocks(&self) -> usize {
        self.residences.iter().map(|residence| residence.blocks).max().unwrap_or(0)
    }

    /// Teams for as many rows as the batch has at most.
    fn shape(&self, sizes: &Sizes) -> Result<Shape> {
        if let Some((team_size, copies)) = self.fixed {
            let fits = |residence: &&Residence| {
                sizes.shared(team_size, copies) <= residence.shared && team_size <= residence.blocks
            };
            if let Some(residence) = self.residences.iter().find(fits) {
                return Ok(sizes.shape(residence, team_size, copies));
            }
        }
        // Copies that fit are worth more than blocks.
        for copies in [true, false] {
            for residence in &self.residences {
                let Some(least) = sizes.least_members(residence, copies) else {
                    continue;
                };
                let team_size =
                    (residence.blocks / sizes.rows).clamp(least, sizes.most_members(least));
                return Ok(sizes.shape(residence, team_size, copies));
            }
        }
        Err(Error::unsupported("logits: their rows are too long for so small a device"))
    }

    /// Room for the shape of any batch of at most such sizes and logits of any type: it does not
    /// grow when a size shrinks.
    fn room(&self, sizes: &Sizes) -> Room {
        let sizes = sizes.of_any_dtype();
        // The first way that fits is taken. With larger sizes the first of all needs more blocks, up
        // to where it fits no more and others may need as many as there can be.
        let first = self.residences.first();
        let least = first.and_then(|residence| sizes.least_members(residence, true));
        let most = sizes.most_members(least.unwrap_or(MOST_MEMBERS));
        let members = most.max(self.fixed.map_or(1, |(team_size, _)| team_size));
        let (rows, blocks) = (sizes.rows, self.most_blocks());
        let teams = rows.min(blocks);
        // Weights lie in the workspace where no team has the shared memory for them.
        let fits = |residence| sizes.least_members(residence, true).is_some();
        let is_fixed = self.fixed.is_some_and(|(_, copies)| !copies);
        let fits = self.residences.iter().any(fits) && !is_fixed;
        let weight_teams = if fits { 0 } else { teams };
        if members == 1 {
            return Room { teams, boards: 0, meeting_teams: 0, weight_teams };
        }
        let boards = rows.saturating_mul(members).min(blocks);
        Room { teams, boards, meeting_teams: rows.min(blocks / 2), weight_teams }
    }
}

/// What shapes need at most.
#[derive(Clone, Copy, Debug)]
struct Room {
    teams: usize,
    /// Pairs of boards: one for each block of a team of several.
    boards: usize,
    /// Teams of several.
    meeting_teams: usize,
    /// Teams whose weights or copies have no place in shared memory.
    weight_teams: usize,
}

impl Room {
    /// No room at all.
    const NONE: Self = Self { teams: 0, boards: 0, meeting_teams: 0, weight_teams: 0 };
}

/// What shapes depend on.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// Rows at most, at least 1.
    rows: usize,
    tiles: usize,
    draft_tiles: usize,
    tile_bytes: TileBytes,
}

/// The widest type of the rows that are looked at: those that something is done to are F32.
fn widest(batch: &VerifyBatch) -> Dtype {
    if batch.processing.is_some() { Dtype::F32 } else { batch.logits.dtype }
}

/// What is kept of a tile in shared memory, if all of it is.
#[derive(Clone, Copy, Debug)]
enum TileBytes {
    /// A copy of its logits, of so many bytes.
    Copy(usize),
    /// The weights by p and by q.
    Weights,
}

impl Sizes {
    /// For `verify_rows`.
    fn of_rows(batch: &VerifyBatch) -> Self {
        Self {
            rows: batch.num_sequences.saturating_mul(batch.max_drafts + 1).max(1),
            tiles: batch.logits.columns.div_ceil(TILE),
            draft_tiles: batch.draft.map_or(0, |draft| draft.logits.columns.div_ceil(TILE)),
            tile_bytes: TileBytes::Copy(TILE * widest(batch).size()),
        }
    }

    /// For `verify_path`.
    fn of_path(batch: &VerifyBatch, rule: RuleKind) -> Self {
        let sizes = Self { tile_bytes: TileBytes::Weights, ..Self::of_rows(batch) };
        if rule == RuleKind::Block {
            return Self { rows: batch.num_sequences.max(1), ..sizes };
        }
        sizes
    }

    /// As if logits had the largest type.
    fn of_any_dtype(&self) -> Self {
        let tile_bytes = match self.tile_bytes {
            TileBytes::Copy(_) => TileBytes::Copy(TILE * size_of::<f32>()),
            TileBytes::Weights => TileBytes::Weights,
        };
        Self { tile_bytes, ..*self }
    }

    /// Bytes of shared memory of a block, as the kernel carves it: what is kept of each tile, and a
    /// copy of the slice with room for what precedes it in 16 bytes.
    fn shared(&self, team_size: usize, copies: bool) -> usize {
        let (tiles, draft_tiles) =
            (self.tiles.div_ceil(team_size), self.draft_tiles.div_ceil(team_size));
        match self.tile_bytes {
            TileBytes::Copy(bytes) => {
                let kept = (tiles * 28 + draft_tiles * 4).next_multiple_of(16);
                kept + if copies { tiles * bytes + 16 } else { 0 }
            }
            TileBytes::Weights => {
                let kept = (tiles * 28 + draft_tiles * 12).next_multiple_of(16);
                kept + if copies { tiles * TILE_WEIGHTS } else { 0 }
            }
        }
    }

    /// The smallest team whose blocks have room for their shares, if there is one.
    fn least_members(&self, residence: &Residence, copies: bool) -> Option<usize> {
        let fits = |&size: &usize| self.shared(size, copies) <= residence.shared;
        (1..=MOST_MEMBERS.min(residence.blocks)).find(fits)
    }

    /// The largest team that is worth it, at least of `least` blocks.
    fn most_members(&self, least: usize) -> usize {
        MOST_MEMBERS.min(self.tiles / LEAST_TILES).max(least)
    }

    fn shape(&self, residence: &Residence, team_size: usize, slice_is_copied: bool) -> Shape {
        Shape {
            teams: self.rows.min(residence.blocks / team_size),
            team_size,
            shared: self.shared(team_size, slice_is_copied),
            slice_is_copied,
        }
    }
}

/// The pieces of a workspace, as the kernels name them.
#[derive(Clone, Copy, Debug)]
struct Workspace {
    sequences: u64,
    drafts: u64,
    families: u64,
    followed: u64,
    numbers: u64,
    outcomes: u64,
    emissions: u64,
    arrivals: u64,
    records: u64,
    meetings: u64,
    boards: u64,
    peaks: u64,
    draft_sums: u64,
    overlaps: u64,
    weights: u64,
    processed: u64,
    logprob_peaks: u64,
    logprob_sums: u64,
}

/// Blocks that look at emitted tokens at a time, of which there are so many at most.
fn logprob_blocks(teams: &Teams, batch: &VerifyBatch) -> usize {
    let kinds = [batch.raw_logprobs, batch.processed_logprobs].iter().flatten().count();
    let tokens = batch.num_sequences.saturating_mul(batch.max_drafts + 1);
    tokens.saturating_mul(kinds).min(teams.rows.most_blocks())
}

/// Whether the rule tests more at a row than `verify_rows` does.
fn takes_path(batch: &VerifyBatch, rule: RuleKind) -> bool {
    match rule {
        RuleKind::Greedy | RuleKind::Follow => false,
        RuleKind::Rejection(_) => batch.parents.is_some(),
        _ => true,
    }
}

/// Whether the largest logits are all that matters.
fn is_all_greedy(batch: &VerifyBatch, rule: RuleKind) -> bool {
    let asks_more = matches!(rule, RuleKind::Relaxed | RuleKind::Synthetic);
    rule == RuleKind::Greedy || batch.sampling.temperature.is_none() && !asks_more
}

impl Workspace {
    /// For any batch of at most such sizes by this rule, however its rows are shared out: the pieces
    /// must not grow when a size shrinks, or a tree is a chain.
    fn carve(carver: &mut Carver, teams: &Teams, batch: &VerifyBatch, rule: RuleKind) -> Self {
        let sizes = Sizes::of_rows(batch);
        let (sequences, rows) = (batch.num_sequences, sizes.rows);
        let by_rows = teams.rows.room(&sizes);
        let by_path = match takes_path(batch, rule) {
            true => teams.path.room(&Sizes::of_path(batch, rule)),
            false => Room::NONE,
        };
        // Without a distribution nothing is added up over the tiles.
        let overlaps = if sizes.draft_tiles == 0 { 0 } else { by_rows.teams };
        let families = if batch.parents.is_some() || takes_path(batch, rule) { rows } else { 0 };
        let meetings = by_rows.teams.max(by_path.teams);
        let boards = by_rows.boards.max(by_path.boards);
        let meeting_teams = by_rows.meeting_teams.max(by_path.meeting_teams);
        let logprob_tiles = logprob_blocks(teams, batch).saturating_mul(sizes.tiles);
        let mut piece =
            |count: usize, bytes: usize| carver.span::<u8>(count.saturating_mul(bytes)).address();
        Self {
            sequences: piece(sequences, SEQUENCE_BYTES),
            drafts: piece(sequences.saturating_mul(batch.max_drafts), size_of::<i32>()),
            families: piece(families, FAMILY_BYTES),
            followed: piece(families, size_of::<u32>()),
            numbers: piece(rows, 2 * size_of::<u64>()),
            outcomes: piece(rows, size_of::<u64>()),
            emissions: piece(sequences, EMISSION_BYTES),
            arrivals: piece(sequences, size_of::<u32>()),
            records: piece(1, size_of::<u32>()),
            meetings: piece(meetings, size_of::<u32>()),
            boards: piece(boards, 2 * BOARD_BYTES),
            peaks: piece(meeting_teams, 2 * size_of::<f32>() * sizes.tiles.max(sizes.draft_tiles)),
            draft_sums: piece(by_rows.teams, size_of::<u64>() * sizes.draft_tiles),
            overlaps: piece(overlaps, size_of::<u128>() * sizes.tiles),
            weights: piece(by_path.weight_teams, TILE_WEIGHTS.saturating_mul(sizes.tiles)),
            processed: piece(processing::logits(batch), size_of::<f32>()),
            logprob_peaks: piece(logprob_tiles, size_of::<f32>()),
            logprob_sums: piece(logprob_tiles, size_of::<u64>()),
        }
    }
}

/// Bytes of workspace that a verification needs.
pub fn workspace_bytes(teams: &Teams, batch: &VerifyBatch, rule: RuleKind) -> usize {
    if batch.num_sequences == 0 {
        return 0;
    }
    let mut carver = Carver::counting();
    Workspace::carve(&mut carver, teams, batch, rule);
    carver.used()
}

/// `VerifyArguments` of the kernels.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct VerifyArguments {
    logits: u64,
    draft_logits: u64,
    token_ids: u64,
    row_begin: u64,
    draft_row_begin: u64,
    num_drafts: u64,
    draft_tokens: u64,
    position: u64,
    limit: u64,
    sampling: SamplingAddresses,
    seed: u64,
    draft_sampling: SamplingAddresses,
    uniforms: u64,
    stop_tokens: u64,
    parents: u64,
    acceptance: u64,
    decisions: u64,
    counters: u64,
    sequences: u64,
    drafts: u64,
    families: u64,
    followed: u64,
    numbers: u64,
    outcomes: u64,
    emissions: u64,
    arrivals: u64,
    records: u64,
    meetings: u64,
    boards: u64,
    peaks: u64,
    draft_sums: u64,
    overlaps: u64,
    weights: u64,
    processing: ProcessingArguments,
    rows: u64,
    row_stride: u64,
    draft_rows: u64,
    draft_row_stride: u64,
    token_ids_stride: u64,
    draft_tokens_stride: u64,
    position_stride: u64,
    decision_stride: u64,
    parents_stride: u64,
    log2_alpha: i64,
    num_sequences: u32,
    max_drafts: u32,
    vocabulary: u32,
    candidates: u32,
    dtype: u32,
    draft_dtype: u32,
    draft_rows_per_sequence: u32,
    num_stop_tokens: u32,
    padding: i32,
    rule: u32,
    teams: u32,
    team_size: u32,
    has_distribution: u32,
    slice_is_copied: u32,
    splits: u32,
    is_lossy: u32,
    top_n: i32,
    tolerance: f32,
    epsilon: f32,
    threshold_single: f32,
    threshold_accumulated: f32,
    unused: u32,
}

// SAFETY: the struct of kernels/verify.cuh.
unsafe impl Arguments for VerifyArguments {}

/// `LogprobArguments` of the kernel.
#[derive(Clone, Copy, Debug, NoUninit)]
#[repr(C)]
struct LogprobArguments {
    verify: VerifyArguments,
    raw: LogprobAddresses,
    processed: LogprobAddresses,
    peaks: u64,
    sums: u64,
}

// SAFETY: the struct of kernels/logprobs.cu.
unsafe impl Arguments for LogprobArguments {}

/// Where log-probabilities of a kind are written; 0 is not wanted.
#[derive(Clone, Copy, Debug, Default, NoUninit)]
#[repr(C)]
struct LogprobAddresses {
    values: u64,
    token_ids: u64,
    ranks: u64,
    alternatives: u64,
}

impl LogprobAddresses {
    fn of(wanted: Option<&Logprobs>) -> Self {
        wanted.map_or(Self::default(), |wanted| Self {
            values: wanted.values.address(),
            token_ids: address(wanted.token_ids),
            ranks: address(wanted.ranks),
            alternatives: wanted.alternatives as u64,
        })
    }
}

/// The arrays of parameters; 0 is absent.
#[derive(Clone, Copy, Debug, Default, NoUninit)]
#[repr(C)]
struct SamplingAddresses {
    temperature: u64,
    top_k: u64,
    top_p: u64,
    min_p: u64,
}

impl SamplingAddresses {
    fn of(arrays: &SamplingArrays) -> Self {
        Self {
            temperature: address(arrays.temperature),
            top_k: address(arrays.top_k),
            top_p: address(arrays.top_p),
            min_p: address(arrays.min_p),
        }
    }
}

fn address<T>(array: Option<Span<T>>) -> u64 {
    array.map_or(0, |array| array.address())
}

fn dtype_number(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Bf16 => 2,
    }
}

fn rule_number(rule: RuleKind) -> u32 {
    match rule {
        RuleKind::Greedy => 0,
        RuleKind::Follow => 1,
        RuleKind::Rejection(Siblings::Independent) => 2,
        RuleKind::Rejection(Siblings::Distinct) => 3,
        RuleKind::Block => 4,
        RuleKind::Typical => 5,
        RuleKind::Threshold => 6,
        RuleKind::Relaxed => 7,
        RuleKind::Synthetic => 8,
    }
}

fn row_bytes(matrix: &Matrix) -> u64 {
    (matrix.row_stride * matrix.dtype.size()) as u64
}

/// What a verification is launched with.
pub struct Launcher<'a> {
    /// The kernels.
    pub kernels: &'a Kernels,
    /// How rows are shared out.
    pub teams: &'a Teams,
    /// Multiprocessors of the device.
    pub multiprocessors: u32,
}

impl Launcher<'_> {
    /// Enqueues the decisions of a batch.
    ///
    /// # Safety
    ///
    /// The contract of [`crate::backend::Backend`]; the workspace has [`workspace_bytes`] bytes.
    pub unsafe fn verify(
        &self,
        stream: Stream,
        batch: &VerifyBatch,
        rule: RuleKind,
        workspace: Span<u8>,
    ) -> Result<()> {
        if batch.num_sequences == 0 {
            return Ok(());
        }
        let mut carver = Carver::of_block(workspace.address());
        let pieces = Workspace::carve(&mut carver, self.teams, batch, rule);
        let mut arguments = arguments(batch, rule, &pieces);
        let (kernel, shape) = if is_all_greedy(batch, rule) {
            (Kernel::VerifyArgmax, self.argmax(batch, &mut arguments)?)
        } else if takes_path(batch, rule) {
            (Kernel::VerifyPath, self.path(batch, rule, &mut arguments)?)
        } else {
            (Kernel::VerifyRows, self.rows(batch, &mut arguments)?)
        };
        let process = batch.processing.map(|_| processing::launch(batch)).transpose()?;
        let sequences_per_block = (PLAN_THREADS / 32) as usize;
        let plan = Launch {
            grid: [batch.num_sequences.div_ceil(sequences_per_block) as u32, 1, 1],
            threads: PLAN_THREADS,
            shared: 0,
            cooperative: false,
        };
        // SAFETY: this function's contract.
        unsafe {
            self.kernels.launch(Kernel::VerifyPlan, stream, &plan, &arguments)?;
            if let Some(process) = process {
                self.kernels.launch(Kernel::ProcessRows, stream, &process, &arguments)?;
            }
            self.kernels.launch(kernel, stream, &shape, &arguments)?;
            self.logprobs(stream, batch, arguments, &pieces)
        }
    }

    /// Tells how probable the emitted tokens were, if the host wants to know.
    ///
    /// # Safety
    ///
    /// As for [`Launcher::verify`]; the decisions are enqueued.
    unsafe fn logprobs(
        &self,
        stream: Stream,
        batch: &VerifyBatch,
        verify: VerifyArguments,
        pieces: &Workspace,
    ) -> Result<()> {
        let blocks = logprob_blocks(self.teams, batch);
        if blocks == 0 {
            return Ok(());
        }
        let arguments = LogprobArguments {
            verify,
            raw: LogprobAddresses::of(batch.raw_logprobs.as_ref()),
            processed: LogprobAddresses::of(batch.processed_logprobs.as_ref()),
            peaks: pieces.logprob_peaks,
            sums: pieces.logprob_sums,
        };
        let threads = ROWS_THREADS;
        let shape = Launch { grid: [blocks as u32, 1, 1], threads, shared: 0, cooperative: false };
        // SAFETY: this function's contract.
        unsafe { self.kernels.launch(Kernel::TellLogprobs, stream, &shape, &arguments) }
    }

    /// Several blocks for each row, one after the other.
    fn argmax(&self, batch: &VerifyBatch, arguments: &mut VerifyArguments) -> Result<Launch> {
        let sizes = Sizes::of_rows(batch);
        let tiles_at_a_time = (ARGMAX_THREADS / 32) as usize;
        let wanted = (self.multiprocessors as usize * ARGMAX_BLOCKS).div_ceil(sizes.rows);
        let splits = wanted.min(sizes.tiles.div_ceil(tiles_at_a_time));
        arguments.splits = splits as u32;
        let grid = [row_blocks(sizes.rows, splits)?, 1, 1];
        Ok(Launch { grid, threads: ARGMAX_THREADS, shared: 0, cooperative: false })
    }

    /// Teams of blocks, which have one row after the other.
    fn rows(&self, batch: &VerifyBatch, arguments: &mut VerifyArguments) -> Result<Launch> {
        let shape = self.teams.rows.shape(&Sizes::of_rows(batch))?;
        arguments.slice_is_copied = shape.slice_is_copied.into();
        Ok(launch(&shape, arguments))
    }

    /// Teams of blocks, which have one row or chain after the other.
    fn path(
        &self,
        batch: &VerifyBatch,
        rule: RuleKind,
        arguments: &mut VerifyArguments,
    ) -> Result<Launch> {
        let shape = self.teams.path.shape(&Sizes::of_path(batch, rule))?;
        if shape.slice_is_copied {
            arguments.weights = 0;
        }
        Ok(launch(&shape, arguments))
    }
}

/// So many blocks for each row of a batch, if a grid has room for them.
pub fn row_blocks(rows: usize, each: usize) -> Result<u32> {
    let blocks = i32::try_from(rows.saturating_mul(each)).map_err(|_| {
        Error::unsupported(format!(
            "num_sequences, max_drafts: expected fewer rows than 2^31, found {rows}"
        ))
    })?;
    Ok(blocks as u32)
}

/// The launch of so many teams.
fn launch(shape: &Shape, arguments: &mut VerifyArguments) -> Launch {
    arguments.teams = shape.teams as u32;
    arguments.team_size = shape.team_size as u32;
    Launch {
        grid: [(shape.teams * shape.team_size) as u32, 1, 1],
        threads: ROWS_THREADS,
        shared: shape.shared as u32,
        cooperative: shape.team_size > 1,
    }
}

/// The arguments but for how rows are shared out.
fn arguments(batch: &VerifyBatch, rule: RuleKind, pieces: &Workspace) -> VerifyArguments {
    let Column { span: draft_tokens, stride: draft_tokens_stride } = batch.draft_tokens;
    let Column { span: position, stride: position_stride } = batch.position;
    let Column { span: decisions, stride: decision_stride } = batch.decisions;
    let draft = batch.draft.as_ref();
    // Without a distribution its sizes are not looked at.
    let candidates = draft.map_or(&batch.logits, |draft| &draft.logits);
    let draft_sampling = draft.and_then(|draft| draft.sampling).unwrap_or(batch.sampling);
    let marks = takes_path(batch, rule) && !is_all_greedy(batch, rule) && rule != RuleKind::Block;
    let has_families = batch.parents.is_some() || marks;
    // Of a chain's one draft at a row it does not matter how siblings were drawn.
    let is_chain = batch.parents.is_none() && matches!(rule, RuleKind::Rejection(_));
    let number = if is_chain { 2 } else { rule_number(rule) };
    VerifyArguments {
        logits: batch.logits.address,
        draft_logits: candidates.address,
        token_ids: address(draft.and_then(|draft| draft.token_ids)),
        row_begin: address(batch.row_begin),
        draft_row_begin: address(draft.and_then(|draft| draft.row_begin)),
        num_drafts: address(batch.num_drafts),
        draft_tokens: draft_tokens.address(),
        position: position.address(),
        limit: address(batch.limit),
        sampling: SamplingAddresses::of(&batch.sampling),
        seed: address(batch.sampling.seed),
        draft_sampling: SamplingAddresses::of(&draft_sampling),
        uniforms: address(batch.uniforms),
        stop_tokens: batch.stop_tokens.address(),
        parents: batch.parents.map_or(0, |parents| parents.span.address()),
        acceptance: address(batch.leniency.acceptance),
        decisions: decisions.address(),
        counters: address(batch.counters),
        sequences: pieces.sequences,
        drafts: pieces.drafts,
        families: if has_families { pieces.families } else { 0 },
        followed: if marks { pieces.followed } else { 0 },
        numbers: pieces.numbers,
        outcomes: pieces.outcomes,
        emissions: pieces.emissions,
        arrivals: pieces.arrivals,
        records: pieces.records,
        meetings: pieces.meetings,
        boards: pieces.boards,
        peaks: pieces.peaks,
        draft_sums: pieces.draft_sums,
        overlaps: pieces.overlaps,
        weights: pieces.weights,
        processing: ProcessingArguments::of(
            batch.processing.as_ref(),
            batch.logits.columns,
            pieces.processed,
        ),
        rows: batch.logits.rows as u64,
        row_stride: row_bytes(&batch.logits),
        draft_rows: candidates.rows as u64,
        draft_row_stride: row_bytes(candidates),
        token_ids_stride: draft.map_or(0, |draft| draft.token_ids_stride) as u64,
        draft_tokens_stride: draft_tokens_stride as u64,
        position_stride: position_stride as u64,
        decision_stride: decision_stride as u64,
        parents_stride: batch.parents.map_or(0, |parents| parents.stride) as u64,
        log2_alpha: batch.leniency.log2_alpha,
        num_sequences: batch.num_sequences as u32,
        max_drafts: batch.max_drafts as u32,
        vocabulary: batch.logits.columns as u32,
        candidates: candidates.columns as u32,
        dtype: dtype_number(batch.logits.dtype),
        draft_dtype: dtype_number(candidates.dtype),
        draft_rows_per_sequence: draft.map_or(0, |draft| draft.rows_per_sequence) as u32,
        num_stop_tokens: batch.stop_tokens.len() as u32,
        padding: batch.padding,
        rule: number,
        teams: 0,
        team_size: 1,
        has_distribution: draft.is_some().into(),
        slice_is_copied: 0,
        splits: 1,
        is_lossy: rule.is_lossy().into(),
        top_n: batch.leniency.top_n,
        tolerance: batch.leniency.tolerance,
        epsilon: batch.leniency.epsilon,
        threshold_single: batch.leniency.threshold_single,
        threshold_accumulated: batch.leniency.threshold_accumulated,
        unused: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn teams() -> impl Strategy<Value = KernelTeams> {
        let residence = |blocks, shared| Residence { blocks, shared };
        let residences = (1_usize..300, 1_usize..300, 4096_usize..200_000, 0_usize..200_000)
            .prop_map(move |(one, more, most, less)| {
                let largest = residence(one, most);
                match less < most {
                    true => vec![residence(one + more, less), largest],
                    false => vec![largest],
                }
            });
        let fixed = prop::option::weighted(0.3, (1_usize..=MOST_MEMBERS, any::<bool>()));
        (residences, fixed).prop_map(|(residences, fixed)| {
            let teams = KernelTeams { residences, fixed: None };
            match fixed {
                Some((blocks, copies)) => teams.of(blocks as u32, copies),
                None => teams,
            }
        })
    }

    fn sizes() -> impl Strategy<Value = Sizes> {
        let tiles = || prop_oneof![1_usize..40, 1_usize..1000];
        let copy = prop_oneof![Just(2 * TILE), Just(4 * TILE)].prop_map(TileBytes::Copy);
        let bytes = prop_oneof![3 => copy, 1 => Just(TileBytes::Weights)];
        let rows = prop_oneof![1_usize..20, 1_usize..2000];
        (rows, tiles(), prop_oneof![Just(0), tiles()], bytes).prop_map(
            |(rows, tiles, draft_tiles, tile_bytes)| Sizes { rows, tiles, draft_tiles, tile_bytes },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..<_>::default() })]

        #[test]
        fn the_room_for_a_batch_is_enough_for_smaller_ones(
            teams in teams(),
            large in sizes(),
            small in sizes(),
        ) {
            let small = Sizes {
                rows: small.rows.min(large.rows),
                tiles: small.tiles.min(large.tiles),
                draft_tiles: small.draft_tiles.min(large.draft_tiles),
                tile_bytes: match (small.tile_bytes, large.tile_bytes) {
                    (TileBytes::Copy(bytes), TileBytes::Copy(_)) => TileBytes::Copy(bytes),
                    _ => large.tile_bytes,
                },
            };
            let room = teams.room(&large);
            for sizes in [small, large] {
                let Ok(shape) = teams.shape(&sizes) else { continue };
                prop_assert!(shape.teams <= room.teams);
                if !shape.slice_is_copied && matches!(sizes.tile_bytes, TileBytes::Weights) {
                    prop_assert!(shape.teams <= room.weight_teams, "{shape:?} in {room:?}");
                }
                if shape.team_size > 1 {
                    prop_assert!(shape.teams <= room.meeting_teams, "{shape:?} in {room:?}");
                    prop_assert!(shape.teams * shape.team_size <= room.boards, "{shape:?} in {room:?}");
                }
            }
        }
    }

    #[test]
    fn blocks_that_work_alone_need_no_boards() {
        let residences = vec![Residence { blocks: 264, shared: 100_000 }];
        let teams = KernelTeams { residences, fixed: None };
        let sizes =
            Sizes { rows: 20, tiles: 4, draft_tiles: 4, tile_bytes: TileBytes::Copy(2 * TILE) };
        assert_eq!(teams.room(&sizes).boards, 0);
    }
}
