//! A language model as the target of a speculator, on the CPU: it runs over the prompt, the chains and the
//! trees of one text, and tells logits and hidden states, as the engine of a host does.
//!
//! Every position has a page of its own. So a row sees the nodes above it by a list of pages, and what was
//! accepted of a tree becomes a part of the text without moving a key.

use super::decoder::{Decoder, Extent, RowLimits, Scratch, Step};
use super::{Feature, Model, Network};
use crate::backend::phases::{Column, DraftBatch, EmbedTokens, EmbeddingInput, KvPool, Norm, Plan};
use crate::backend::phases::{RowSegments, Rows};
use crate::backend::{DeviceType, Stream};
use crate::checkpoint::FeatureStage;
use crate::context::{Block, MemoryKind};
use crate::error::{Error, Result};
use crate::tensor::{Carver, Dtype, Matrix, Span};
use std::ops::Range;
use std::sync::Arc;

/// What a target has memory for.
#[derive(Clone, Copy, Debug)]
pub struct TargetLimits {
    /// Positions of the text lie below this.
    pub positions: usize,
    /// The most rows of a pass.
    pub rows: usize,
}

/// The rows of a pass. They follow the text.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// Their tokens; -1, where drafting had no token, counts as token 0.
    pub tokens: &'a [i32],
    /// For each the row above it, -1 for the first one, which comes before all others; `None` is a chain.
    pub parents: Option<&'a [i32]>,
    /// The hidden states that are wanted of all rows.
    pub features: &'a [Feature],
    /// The first row whose logits are wanted.
    pub logits_from: usize,
}

/// A language model that runs over one text.
#[derive(Debug)]
pub struct Target {
    model: Arc<Model>,
    limits: TargetLimits,
    scratch: Scratch,
    /// Hidden states whose logits are computed.
    chosen: Matrix,
    /// The pages of the text's positions.
    text: Vec<i32>,
    /// The pages of the last pass' rows, until they are the text's or free.
    pass: Vec<i32>,
    free: Vec<i32>,
    layout: RowLayout,
    features: Vec<Output>,
    logits: Output,
    _memory: [Block; 2],
}

/// Where the rows of a pass are, one element for each in the first three arrays.
#[derive(Debug, Default)]
struct RowLayout {
    tokens: Vec<i32>,
    positions: Vec<i32>,
    /// The path of each row: that of a leaf below it.
    paths: Vec<i32>,
    /// The pages of all positions of each path, one path after the other, and where each begins.
    table: Vec<i32>,
    first_page: Vec<i32>,
    /// 0, 1, 2 and so on.
    numbers: Vec<i32>,
}

/// Rows that a pass has written.
#[derive(Debug, Default)]
pub struct Output {
    elements: Vec<f32>,
    /// Where they are, to be written.
    address: u64,
    columns: usize,
}

impl Output {
    fn resize(&mut self, rows: usize, columns: usize) {
        self.elements.resize(rows * columns, 0.0);
        self.address = self.elements.as_mut_ptr() as u64;
        self.columns = columns;
    }

    /// All elements, row by row.
    pub fn elements(&self) -> &[f32] {
        &self.elements
    }

    /// The rows, where they are until the next pass.
    pub fn matrix(&self) -> Matrix {
        Matrix::contiguous(self.address, self.elements.len() / self.columns.max(1), self.columns)
    }
}

/// The network of a language model.
fn decoder(model: &Model) -> Result<&Decoder> {
    match model.network() {
        Network::Sequential(network) if network.reads_own_tokens() => Ok(&network.decoder),
        _ => Err(Error::unsupported(format!(
            "expected a language model as the target, found a speculator, {}",
            model.kind()
        ))),
    }
}

impl Target {
    /// A target without a text. Refuses speculators, and devices other than the CPU.
    pub fn new(model: &Arc<Model>, limits: TargetLimits) -> Result<Self> {
        let context = model.context();
        if context.description().device_type != DeviceType::Cpu {
            return Err(Error::unsupported("expected a target on the CPU, found another device"));
        }
        // A text may be followed by the rows of one pass.
        let pages = limits.positions.saturating_add(limits.rows);
        if limits.rows == 0 || i32::try_from(pages).is_err() {
            return Err(Error::invalid(format!(
                "expected 1 to 2^31 - 1 rows and positions, found {} and {}",
                limits.rows, limits.positions
            )));
        }
        let mut counting = Carver::counting();
        let (scratch, _) = carve(model, &limits, (&mut counting, 0))?;
        let kv_bytes = scratch.pool.pages.columns.saturating_mul(pages * Dtype::F32.size());
        let kv = context.allocate(MemoryKind::Kv, "the target's keys and values", kv_bytes)?;
        let workspace =
            context.allocate(MemoryKind::Workspace, "the target's rows", counting.used())?;
        let mut carver = Carver::of_block(workspace.address());
        let (scratch, chosen) = carve(model, &limits, (&mut carver, kv.address()))?;
        for memory in scratch.prepared() {
            context.backend().prepare_scratch(memory)?;
        }
        Ok(Self {
            model: Arc::clone(model),
            limits,
            scratch,
            chosen,
            text: Vec::new(),
            pass: Vec::new(),
            free: (0..pages as i32).rev().collect(),
            layout: RowLayout {
                numbers: (0..limits.rows as i32).collect(),
                ..RowLayout::default()
            },
            features: Vec::new(),
            logits: Output::default(),
            _memory: [kv, workspace],
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Positions of the text.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// Whether the text has no position.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Forgets the text.
    pub fn clear(&mut self) {
        self.free.append(&mut self.text);
        self.free.append(&mut self.pass);
    }

    /// Makes rows of the last pass a part of the text: each the row below the one before it. The others are
    /// forgotten.
    pub fn keep(&mut self, rows: impl IntoIterator<Item = usize>) {
        for row in rows {
            let page = std::mem::replace(&mut self.pass[row], -1);
            assert!(page >= 0, "a row of a pass stands once in a text");
            self.text.push(page);
        }
        self.forget_pass();
    }

    /// Runs over rows that follow the text.
    pub fn run(&mut self, pass: &Pass<'_>) -> Result<()> {
        self.check(pass)?;
        self.forget_pass();
        let rows = pass.tokens.len();
        self.pass = self.free.split_off(self.free.len() - rows);
        self.layout.lay_out(pass, &self.text, &self.pass);
        self.features.resize_with(pass.features.len(), Output::default);
        for (output, feature) in self.features.iter_mut().zip(pass.features) {
            output.resize(rows, feature.width);
        }
        self.logits.resize(rows - pass.logits_from, self.model.vocabulary());
        let chunks: Vec<_> = self.scratch.chunks(rows).collect();
        let _scope = self.model.context().backend().enter()?;
        chunks.into_iter().try_for_each(|(first, len)| self.run_rows(pass, first..first + len))
    }

    /// The logits of the last pass, `[rows - logits_from, V]`.
    pub fn logits(&self) -> &Output {
        &self.logits
    }

    /// The hidden states of the last pass, `[rows, width]` each.
    pub fn features(&self) -> &[Output] {
        &self.features
    }

    fn forget_pass(&mut self) {
        let left = self.pass.drain(..).filter(|&page| page >= 0);
        self.free.extend(left);
    }

    fn check(&self, pass: &Pass<'_>) -> Result<()> {
        let (rows, text) = (pass.tokens.len(), self.text.len());
        if rows == 0 || rows > self.limits.rows || rows <= pass.logits_from {
            let most = self.limits.rows;
            return Err(Error::invalid(format!("expected 1 to {most} rows, found {rows}")));
        }
        if text + rows > self.limits.positions + self.limits.rows || text >= self.limits.positions {
            let most = self.limits.positions;
            return Err(Error::invalid(format!("expected at most {most} positions, found more")));
        }
        let vocabulary = self.model.vocabulary();
        let is_token = |token: i32| token < 0 || (token as usize) < vocabulary;
        if let Some(token) = pass.tokens.iter().find(|&&token| !is_token(token)) {
            return Err(Error::invalid(format!(
                "expected tokens below {vocabulary}, found {token}"
            )));
        }
        let layers = self.model.num_layers() as i32;
        let width = self.model.hidden_size();
        let is_told = |feature: &&Feature| match feature.stage {
            FeatureStage::LayerInput => (0..=layers).contains(&feature.layer),
            FeatureStage::FinalNorm => feature.layer == 0,
        };
        let others = |feature: &&Feature| feature.width != width || !is_told(feature);
        if let Some(feature) = pass.features.iter().find(others) {
            return Err(Error::invalid(format!(
                "expected features of layers 0 to {layers}, {width} wide, as the target has them; found \
                 layer {}, {} wide",
                feature.layer, feature.width
            )));
        }
        let Some(parents) = pass.parents else { return Ok(()) };
        let is_tree = parents.len() == rows
            && parents.iter().enumerate().all(|(row, &parent)| {
                (parent == -1) == (row == 0) && parent >= -1 && parent < row as i32
            });
        if is_tree { Ok(()) } else { Err(Error::invalid("expected the parents of a tree")) }
    }

    /// Runs some rows of a pass, those before them having been run.
    fn run_rows(&self, pass: &Pass<'_>, rows: Range<usize>) -> Result<()> {
        let decoder = decoder(&self.model)?;
        let (layout, hidden) = (&self.layout, self.scratch.hidden);
        let count = [rows.len() as i32];
        let table = Column { span: Span::of(&layout.table), stride: 0 };
        let batch = DraftBatch { block_table: Some(table), ..DraftBatch::new(1, 0) };
        let plan = layout.plan();
        let step = Step {
            backend: self.model.context().backend(),
            stream: Stream::NONE,
            batch: &batch,
            plan: &plan,
            scratch: &self.scratch,
            rows: layout.rows(&count, rows.clone()),
            own: None,
        };
        decoder.embed(&step, hidden)?;
        for layer in 0..=decoder.num_layers() {
            self.tell(&step, pass, rows.clone(), (FeatureStage::LayerInput, layer))?;
            if layer < decoder.num_layers() {
                decoder.run(&step, layer..layer + 1, hidden)?;
            }
        }
        self.tell(&step, pass, rows.clone(), (FeatureStage::FinalNorm, 0))?;
        self.map_to_logits(decoder, &step, (rows, pass.logits_from))
    }

    /// Copies the rows' hidden states to the features that are those of this stage.
    fn tell(
        &self,
        step: &Step<'_>,
        pass: &Pass<'_>,
        rows: Range<usize>,
        (stage, layer): (FeatureStage, usize),
    ) -> Result<()> {
        let norm = match stage {
            FeatureStage::LayerInput => None,
            FeatureStage::FinalNorm => decoder(&self.model)?.final_norm(),
        };
        for (output, feature) in self.features.iter().zip(pass.features) {
            if feature.stage == stage && feature.layer == layer as i32 {
                let to = output.matrix().row_range(rows.start, rows.len());
                self.copy(step, 0..rows.len(), norm, to)?;
            }
        }
        Ok(())
    }

    /// The logits of those of the rows from which on they are wanted.
    fn map_to_logits(
        &self,
        decoder: &Decoder,
        step: &Step<'_>,
        (rows, from): (Range<usize>, usize),
    ) -> Result<()> {
        let first = from.max(rows.start);
        if first >= rows.end {
            return Ok(());
        }
        let (count, len) = ([(rows.end - first) as i32], rows.end - first);
        self.copy(step, first - rows.start..rows.len(), None, self.chosen)?;
        let logits = self.logits.matrix().row_range(first - from, len);
        decoder.map_to_logits(step, self.layout.rows(&count, 0..len), self.chosen, logits)
    }

    /// Copies hidden states, normed or as they are: as a table's rows are embedded.
    fn copy(
        &self,
        step: &Step<'_>,
        from: Range<usize>,
        norm: Option<Norm>,
        to: Matrix,
    ) -> Result<()> {
        let count = [from.len() as i32];
        let table = [self.scratch.hidden];
        let rows = Rows {
            token: Span::of(&self.layout.numbers[from.clone()]),
            ..self.layout.rows(&count, 0..from.len())
        };
        let embedding =
            EmbeddingInput { table: RowSegments { segments: &table }, embeddings: None, norm };
        step.backend.embed_tokens(step.stream, &EmbedTokens { rows, embedding, hidden: to })
    }
}

impl RowLayout {
    fn lay_out(&mut self, pass: &Pass<'_>, text: &[i32], pages: &[i32]) {
        let rows = pass.tokens.len();
        let above = |row: usize| match pass.parents {
            None => row.checked_sub(1),
            Some(parents) => usize::try_from(parents[row]).ok(),
        };
        self.tokens.clear();
        self.tokens.extend(pass.tokens.iter().map(|&token| token.max(0)));
        self.positions.clear();
        for row in 0..rows {
            let position = above(row).map_or(text.len() as i32, |above| self.positions[above] + 1);
            self.positions.push(position);
        }
        self.table.clear();
        self.first_page.clear();
        self.paths.clear();
        self.paths.resize(rows, -1);
        // A row that no row below it has given a path is a leaf.
        for leaf in (0..rows).rev() {
            if self.paths[leaf] >= 0 {
                continue;
            }
            let first = self.table.len();
            self.table.extend_from_slice(text);
            self.table.resize(first + self.positions[leaf] as usize + 1, 0);
            let mut next = Some(leaf);
            while let Some(row) = next {
                self.table[first + self.positions[row] as usize] = pages[row];
                self.paths[row] = self.first_page.len() as i32;
                next = above(row);
            }
            self.first_page.push(first as i32);
        }
    }

    /// Some of the rows, as many as `count` says.
    fn rows(&self, count: &[i32; 1], rows: Range<usize>) -> Rows {
        let position = Span::of(&self.positions[rows.clone()]);
        let token = Span::of(&self.tokens[rows.clone()]);
        Rows {
            count: Span::of(count),
            first: 0,
            sequence: Span::of(&self.paths[rows]),
            position,
            rope_position: position,
            token,
            source: token,
        }
    }

    fn plan(&self) -> Plan {
        let none = Span::of(&[]);
        let rows = self.rows(&[0], 0..0);
        Plan {
            commit: rows,
            draft: rows,
            drafting: none,
            num_drafts: none,
            depth: none,
            shape: none,
            page_row: Span::of(&self.first_page),
            fault: none,
        }
    }
}

/// Cuts the memory of a target: that of its layers, and the hidden states that logits are computed of.
fn carve(
    model: &Model,
    limits: &TargetLimits,
    (carver, kv_address): (&mut Carver, u64),
) -> Result<(Scratch, Matrix)> {
    let decoder = decoder(model)?;
    let (num_kv_heads, head_dim) = model.kv_shape();
    let columns = model.num_layers() * 2 * num_kv_heads * head_dim;
    let pool = KvPool {
        pages: Matrix::contiguous(kv_address, limits.positions + limits.rows, columns),
        page_size: 1,
        num_kv_heads,
        head_dim,
        slot_pages: Span::of(&[]),
        pages_per_slot: 0,
    };
    let limits = RowLimits {
        commit: limits.rows,
        sequences: 0,
        drafts: 0,
        positions: limits.positions + limits.rows,
        tree: None,
    };
    let backend = model.context().backend();
    // All rows pass the last layer, as those of drafts do.
    let rows = limits.commit.min(backend.description().commit_rows);
    let extent = Extent { rows, proposals: 0, narrow: (0, 0), width: 0, layers: 1 };
    let scratch = decoder.carve(carver, backend, pool, &limits, extent);
    Ok((scratch, carver.matrix(Dtype::F32, rows, decoder.hidden_size())))
}
