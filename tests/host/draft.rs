//! Drafting calls with all their arrays.

use super::matrix::{Dtype, Matrix};
use super::random::Random;
use super::{Outcome, Session, Versioned};
use crate::device::Device;
use crate::device::buffer::{Buffer, Loan};
use speculators::capi::*;
use std::ops::Range;
use std::ptr::{null, null_mut};

/// What the target knows of one request: its tokens, and the hidden states of their positions.
#[derive(Clone, Debug)]
pub struct Text {
    pub tokens: Vec<i32>,
    /// One matrix `[tokens, width]` for each feature of the model.
    pub features: Vec<Matrix>,
}

impl Text {
    /// Random tokens and hidden states.
    pub fn random(random: &mut Random, len: usize, vocabulary: i32, widths: &[usize]) -> Self {
        let tokens = (0..len).map(|_| random.below(vocabulary as usize) as i32).collect();
        let features = widths.iter().map(|&width| {
            let elements = random.normals(len * width);
            Matrix::new(len, width, &elements)
        });
        Self { tokens, features: features.collect() }
    }
}

/// Where a sequence's keys and values are.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    Slot(i32),
    Pages(&'a [i32]),
}

/// What one sequence does in a call: commits the rows of a range of positions, then drafts below
/// the token that follows them.
#[derive(Clone, Debug)]
pub struct Turn<'a> {
    pub text: &'a Text,
    pub rows: Range<usize>,
    pub drafts: i32,
    pub place: Place<'a>,
    pub context_begin: i32,
    pub sampling: Sampling,
}

impl<'a> Turn<'a> {
    /// A greedy turn with the whole context.
    pub fn new(text: &'a Text, rows: Range<usize>, drafts: i32, place: Place<'a>) -> Self {
        Self { text, rows, drafts, place, context_begin: 0, sampling: Sampling::default() }
    }
}

/// How one sequence samples; the default is greedy.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    pub temperature: f32,
    pub top_k: i32,
    pub top_p: f32,
    pub min_p: f32,
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 }
    }
}

/// The sampling arrays of a call.
#[derive(Clone, Debug, Default)]
pub struct SamplingColumns {
    pub temperature: Buffer<f32>,
    pub top_k: Buffer<i32>,
    pub top_p: Buffer<f32>,
    pub min_p: Buffer<f32>,
    pub seed: Buffer<u64>,
}

impl SamplingColumns {
    pub fn of(sequences: impl IntoIterator<Item = Sampling>) -> Self {
        let sequences: Vec<Sampling> = sequences.into_iter().collect();
        Self {
            temperature: sequences.iter().map(|sampling| sampling.temperature).collect(),
            top_k: sequences.iter().map(|sampling| sampling.top_k).collect(),
            top_p: sequences.iter().map(|sampling| sampling.top_p).collect(),
            min_p: sequences.iter().map(|sampling| sampling.min_p).collect(),
            seed: sequences.iter().map(|sampling| sampling.seed).collect(),
        }
    }

    pub fn view(&self) -> spec_sampling {
        spec_sampling {
            temperature: self.temperature.as_ptr(),
            top_k: self.top_k.as_ptr(),
            top_p: self.top_p.as_ptr(),
            min_p: self.min_p.as_ptr(),
            seed: self.seed.as_ptr(),
            ..Versioned::blank()
        }
    }
}

/// Rows of integers, one per sequence.
#[derive(Clone, Debug)]
pub struct Table {
    pub elements: Vec<i32>,
    pub stride: usize,
}

impl Table {
    /// Rows of their own lengths; what lies beyond is filled with -1, which no call may look at.
    pub fn ragged(rows: &[&[i32]]) -> Self {
        let stride = rows.iter().map(|row| row.len()).max().unwrap_or(0).max(1);
        let padded = |row: &&[i32]| {
            let gap = std::iter::repeat_n(-1, stride - row.len());
            row.iter().copied().chain(gap).collect::<Vec<i32>>()
        };
        Self { elements: rows.iter().flat_map(padded).collect(), stride }
    }
}

/// What trees a call drafts.
#[derive(Clone, Debug)]
pub enum TreeShape {
    Static(Vec<i32>),
    Dynamic { nodes: i32, depth: i32, width: i32 },
    Stochastic(Vec<i32>),
}

impl TreeShape {
    /// The struct for the call, which points into this shape.
    pub fn view(&self) -> spec_tree_shape {
        let of = |kind: i32, parents: &[i32]| spec_tree_shape {
            kind,
            num_nodes: parents.len() as i32,
            parents: parents.as_ptr(),
            ..Versioned::blank()
        };
        match self {
            Self::Static(parents) => of(SPEC_TREE_STATIC, parents),
            Self::Stochastic(parents) => of(SPEC_TREE_STOCHASTIC, parents),
            &Self::Dynamic { nodes, depth, width } => spec_tree_shape {
                kind: SPEC_TREE_DYNAMIC,
                num_nodes: nodes,
                depth,
                width,
                ..Versioned::blank()
            },
        }
    }
}

/// The arrays of one drafting call. A test changes them before it makes the call.
#[derive(Clone, Debug)]
pub struct DraftCall {
    pub max_drafts: i32,
    pub position: Vec<i32>,
    pub row_count: Vec<i32>,
    pub next_token: Vec<i32>,
    pub row_begin: Option<Vec<i32>>,
    pub row_index: Option<Table>,
    pub num_drafts: Option<Vec<i32>>,
    pub limit: Option<Vec<i32>>,
    pub context_begin: Option<Vec<i32>>,
    pub block_table: Option<Table>,
    pub slot: Option<Vec<i32>>,
    pub tokens: Vec<i32>,
    pub rope_position: Option<Vec<i32>>,
    pub features: Vec<Matrix>,
    pub embeddings: Option<Matrix>,
    pub sampling: Option<SamplingColumns>,
    /// The type of the draft logits; the call gets a place for them if there is one.
    pub logits: Option<Dtype>,
    pub draft_stride: usize,
    pub padding: Option<i32>,
    pub min_confidence: f32,
    pub shape: Option<TreeShape>,
    /// Elements from one sequence's tree to the next, if the call tells the trees.
    pub tree_stride: Option<usize>,
}

impl DraftCall {
    /// The call in which all these sequences take their turns, in this order.
    pub fn of(turns: &[Turn<'_>]) -> Self {
        let column = |element: &dyn Fn(&Turn<'_>) -> i32| turns.iter().map(element).collect();
        let max_drafts = turns.iter().map(|turn| turn.drafts).max().unwrap_or(0);
        let mut rows = 0;
        let row_begin = turns.iter().map(|turn| {
            rows += turn.rows.len() as i32;
            rows - turn.rows.len() as i32
        });
        let row_begin = row_begin.collect();
        let (mut slots, mut tables): (Vec<i32>, Vec<&[i32]>) = (Vec::new(), Vec::new());
        for turn in turns {
            match turn.place {
                Place::Slot(slot) => slots.push(slot),
                Place::Pages(pages) => tables.push(pages),
            }
        }
        assert!(slots.is_empty() || tables.is_empty(), "a call has slots or tables");
        Self {
            max_drafts,
            position: column(&|turn| turn.rows.end as i32),
            row_count: column(&|turn| turn.rows.len() as i32),
            next_token: column(&|turn| turn.text.tokens[turn.rows.end]),
            row_begin: Some(row_begin),
            row_index: None,
            num_drafts: Some(column(&|turn| turn.drafts)),
            limit: None,
            context_begin: Some(column(&|turn| turn.context_begin)),
            block_table: (!tables.is_empty()).then(|| Table::ragged(&tables)),
            slot: (!slots.is_empty()).then_some(slots),
            tokens: turns
                .iter()
                .flat_map(|turn| &turn.text.tokens[turn.rows.clone()])
                .copied()
                .collect(),
            rope_position: None,
            features: gather_features(turns),
            embeddings: None,
            sampling: Some(SamplingColumns::of(turns.iter().map(|turn| turn.sampling))),
            logits: Some(Dtype::F32),
            draft_stride: max_drafts as usize,
            padding: None,
            min_confidence: 0.0,
            shape: None,
            tree_stride: None,
        }
    }

    /// The same call for trees, which it tells.
    pub fn with_trees(mut self, shape: &TreeShape) -> Self {
        self.shape = Some(shape.clone());
        self.tree_stride = Some(self.max_drafts as usize + 1);
        self
    }

    /// The structs for the call on the device of this process, with places for what it writes.
    pub fn prepare(&self, outputs: impl Into<Outputs>) -> Prepared<'_> {
        Prepared::new(self, Device::chosen(), outputs.into())
    }

    /// Makes the call.
    pub fn run(&self, session: &Session) -> Outcome<Vec<Drafts>> {
        let prepared = Prepared::new(self, session.device, session.outputs);
        session.draft(&prepared.args)?;
        Ok(prepared.drafts())
    }
}

/// All rows of all turns, feature by feature.
fn gather_features(turns: &[Turn<'_>]) -> Vec<Matrix> {
    let Some(first) = turns.first() else { return Vec::new() };
    let gather = |feature: usize| {
        let rows = turns.iter().flat_map(|turn| {
            turn.rows.clone().flat_map(|row| turn.text.features[feature].row(row))
        });
        let elements: Vec<f32> = rows.collect();
        let columns = first.text.features[feature].columns;
        Matrix::new(elements.len() / columns, columns, &elements)
    };
    (0..first.text.features.len()).map(gather).collect()
}

/// What stands in the outputs before a call, so that untouched places can be told.
const MARK: i32 = -77_777;
const LOGIT_MARK: f32 = -54_321.0;

/// What a model says that a call gives besides tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outputs {
    /// Columns of draft logits.
    pub columns: usize,
    /// Whether each row of logits has candidates of its own.
    pub has_row_candidates: bool,
    /// Whether proposals come with their confidence.
    pub has_confidence: bool,
}

impl From<usize> for Outputs {
    fn from(columns: usize) -> Self {
        Self { columns, ..Self::default() }
    }
}

/// The structs of one call and the places for its results.
pub struct Prepared<'a> {
    call: &'a DraftCall,
    pub args: spec_draft_args,
    drafts: Buffer<i32>,
    proposed: Buffer<i32>,
    logits: Option<Matrix>,
    candidates: Option<Buffer<i32>>,
    confidence: Option<Buffer<f32>>,
    /// Parents, first children, next siblings, depths and positions.
    trees: Vec<Buffer<i32>>,
    /// What `args` points to; boxed, so that it stays where it is.
    _records: Box<Records>,
    _arrays: Loan,
}

struct Records {
    features: Vec<spec_tensor>,
    embeddings: Option<spec_tensor>,
    sampling: Option<spec_sampling>,
    logits: Option<spec_tensor>,
    tree: Option<spec_tree>,
    shape: Option<spec_tree_shape>,
}

fn record<T>(record: Option<&T>) -> *const T {
    record.map_or(null(), std::ptr::from_ref)
}

impl<'a> Prepared<'a> {
    fn new(call: &'a DraftCall, device: Device, outputs: Outputs) -> Self {
        let sequences = call.position.len();
        let rows = sequences * call.max_drafts as usize;
        let columns = outputs.columns;
        let mut logits = call.logits.map(|dtype| Matrix::filled(rows, columns, dtype, LOGIT_MARK));
        let has_candidates = outputs.has_row_candidates && logits.is_some();
        let mut candidates = has_candidates.then(|| Buffer::filled(rows * columns, MARK));
        // Proposals of trees are not rated.
        let is_rated = outputs.has_confidence && call.shape.is_none();
        let mut confidence = is_rated.then(|| Buffer::filled(rows, LOGIT_MARK));
        let stride = call.tree_stride.unwrap_or(0);
        let array = |_| Buffer::filled(sequences * stride, MARK);
        let mut trees: Vec<Buffer<i32>> =
            (0..if call.tree_stride.is_some() { 5 } else { 0 }).map(array).collect();
        let tree = match &mut trees[..] {
            [parents, first_child, next_sibling, depth, position] => Some(spec_tree {
                stride: stride as i32,
                parents: parents.as_mut_ptr(),
                first_child: first_child.as_mut_ptr(),
                next_sibling: next_sibling.as_mut_ptr(),
                depth: depth.as_mut_ptr(),
                position: position.as_mut_ptr(),
                ..Versioned::blank()
            }),
            _ => None,
        };
        let records = Box::new(Records {
            features: call.features.iter().map(|feature| feature.tensor_for(device)).collect(),
            embeddings: call.embeddings.as_ref().map(|matrix| matrix.tensor_for(device)),
            sampling: call.sampling.as_ref().map(SamplingColumns::view),
            logits: logits.as_mut().map(|logits| logits.output_tensor(device)),
            tree,
            shape: call.shape.as_ref().map(TreeShape::view),
        });
        let mut drafts = Buffer::filled(sequences * call.draft_stride, MARK);
        let mut proposed = Buffer::filled(sequences, MARK);
        let mut arrays = Loan::to(device);
        let mut optional =
            |array: Option<&Vec<i32>>| array.map_or(null(), |array| arrays.array(array));
        let elements = |table: &'a Table| &table.elements;
        let args = spec_draft_args {
            flags: if call.padding.is_some() { SPEC_PADDING } else { 0 },
            num_sequences: sequences as i32,
            num_rows: call.tokens.len() as i32,
            max_drafts: call.max_drafts,
            padding: call.padding.unwrap_or(0),
            row_index_stride: call.row_index.as_ref().map_or(0, |table| table.stride as i32),
            position: optional(Some(&call.position)),
            row_count: optional(Some(&call.row_count)),
            next_token: optional(Some(&call.next_token)),
            row_begin: optional(call.row_begin.as_ref()),
            row_index: optional(call.row_index.as_ref().map(elements)),
            num_drafts: optional(call.num_drafts.as_ref()),
            limit: optional(call.limit.as_ref()),
            context_begin: optional(call.context_begin.as_ref()),
            block_table: optional(call.block_table.as_ref().map(elements)),
            block_table_stride: call.block_table.as_ref().map_or(0, |table| table.stride as i32),
            num_features: records.features.len() as i32,
            slot: optional(call.slot.as_ref()),
            tokens: optional(Some(&call.tokens)),
            rope_position: optional(call.rope_position.as_ref()),
            features: records.features.as_ptr(),
            embeddings: record(records.embeddings.as_ref()),
            sampling: record(records.sampling.as_ref()),
            tree: record(records.tree.as_ref()),
            tree_shape: record(records.shape.as_ref()),
            draft_tokens: drafts.as_mut_ptr(),
            num_proposed: proposed.as_mut_ptr(),
            draft_logits: record(records.logits.as_ref()),
            draft_stride: call.draft_stride as i32,
            min_confidence: call.min_confidence,
            draft_candidates: candidates.as_mut().map_or(null_mut(), |all| all.as_mut_ptr()),
            confidence: confidence.as_mut().map_or(null_mut(), |all| all.as_mut_ptr()),
            ..Versioned::blank()
        };
        Self {
            call,
            args,
            drafts,
            proposed,
            logits,
            candidates,
            confidence,
            trees,
            _records: records,
            _arrays: arrays,
        }
    }

    /// Whether a refused call has left all outputs alone.
    pub fn is_untouched(&self) -> bool {
        let logits = self.logits.as_ref();
        let mut rows =
            logits.into_iter().flat_map(|logits| (0..logits.rows).map(|row| logits.row(row)));
        let mark = logits.map_or(0.0, |logits| logits.dtype.round(LOGIT_MARK));
        let numbers = self.drafts.iter().chain(&self.proposed).chain(self.trees.iter().flatten());
        let numbers = numbers.chain(self.candidates.iter().flatten());
        numbers.copied().all(|element| element == MARK)
            && rows.all(|row| row.iter().all(|&logit| logit == mark))
    }

    /// What was proposed. Whatever is no proposal must be padded or untouched.
    pub fn drafts(&self) -> Vec<Drafts> {
        (0..self.proposed.len()).map(|sequence| self.drafts_of(sequence)).collect()
    }

    fn drafts_of(&self, sequence: usize) -> Drafts {
        let (stride, width) = (self.call.draft_stride, self.call.max_drafts as usize);
        let row = &self.drafts[sequence * stride..][..stride];
        let proposed = self.proposed[sequence];
        assert!((0..=width as i32).contains(&proposed), "proposed {proposed} of {width}");
        let (tokens, rest) = row.split_at(proposed as usize);
        let (padded, beyond) = rest.split_at(width - tokens.len());
        let padding = self.call.padding.unwrap_or(-1);
        assert!(padded.iter().all(|&token| token == padding), "padding: {row:?}");
        assert!(beyond.iter().all(|&token| token == MARK), "written between rows: {row:?}");
        if self.call.shape.is_some() {
            return self.tree_drafts(sequence, tokens);
        }
        let logits = self.logits.as_ref().map(|logits| {
            let mark = logits.dtype.round(LOGIT_MARK);
            let mut rows = (0..width).map(|step| logits.row(sequence * width + step));
            let used: Vec<Vec<f32>> = rows.by_ref().take(tokens.len()).collect();
            let is_whole = self.call.min_confidence == 0.0;
            let mut unmarked = rows.filter(|row| row.iter().any(|&logit| logit != mark));
            assert!(!is_whole || unmarked.next().is_none(), "a row too many");
            used
        });
        let first = sequence * width;
        let candidates = self.candidates.iter().flat_map(|candidates| {
            let columns = candidates.len() / (self.proposed.len() * width).max(1);
            let rows = candidates[first * columns..].chunks_exact(columns.max(1));
            rows.take(tokens.len()).map(<[i32]>::to_vec)
        });
        let confidence = self.confidence.iter().flat_map(|all| &all[first..][..tokens.len()]);
        Drafts {
            tokens: tokens.to_vec(),
            logits: logits.unwrap_or_default(),
            candidates: candidates.collect(),
            confidence: confidence.copied().collect(),
            tree: self.tree(sequence, tokens.len()),
        }
    }

    /// The proposals of a sequence whose tree the call tells. Rows of logits that belong to no node with
    /// children must be untouched.
    fn tree_drafts(&self, sequence: usize, tokens: &[i32]) -> Drafts {
        let tree = self.tree(sequence, tokens.len());
        let width = self.call.max_drafts as usize;
        let logits = self.logits.iter().flat_map(|logits| {
            let mark = logits.dtype.round(LOGIT_MARK);
            let row = |node: usize| {
                let row = logits.row(sequence * width + node);
                let is_untouched = row.iter().all(|&logit| logit == mark);
                let has_children = tree.first_child.get(node).is_some_and(|&child| child != -1);
                let is_there = node == 0 || tokens.get(node - 1).is_some_and(|&token| token >= 0);
                assert_eq!(is_untouched, !(has_children && is_there), "row of node {node}");
                if is_untouched { Vec::new() } else { row }
            };
            (0..width).map(row).collect::<Vec<_>>()
        });
        let logits: Vec<Vec<f32>> = logits.collect();
        let candidates = self.candidates.iter().flat_map(|candidates| {
            let columns = candidates.len() / (self.proposed.len() * width).max(1);
            let rows = candidates[sequence * width * columns..].chunks_exact(columns.max(1));
            rows.zip(&logits).map(|(row, logits)| {
                let is_untouched = row.iter().all(|&id| id == MARK);
                assert_eq!(is_untouched, logits.is_empty(), "candidates without logits: {row:?}");
                if is_untouched { Vec::new() } else { row.to_vec() }
            })
        });
        Drafts {
            tokens: tokens.to_vec(),
            candidates: candidates.collect(),
            logits: logits.clone(),
            tree: tree.clone(),
            ..Drafts::default()
        }
    }

    /// What the call tells of a sequence's tree, of which so many drafts are proposed.
    fn tree(&self, sequence: usize, drafts: usize) -> Tree {
        let Some(stride) = self.call.tree_stride else { return Tree::default() };
        let nodes = self.call.max_drafts as usize + 1;
        let mut arrays = self.trees.iter().zip([-1, -1, -1, 0, 0]).map(|(array, none)| {
            let row = &array[sequence * stride..][..stride];
            assert!(row[drafts + 1..nodes].iter().all(|&element| element == none), "{row:?}");
            assert!(row[nodes..].iter().all(|&element| element == MARK), "written between rows");
            row[..=drafts].to_vec()
        });
        let mut next = || arrays.next().expect("five arrays");
        Tree {
            parents: next(),
            first_child: next(),
            next_sibling: next(),
            depth: next(),
            position: next(),
        }
    }
}

/// What a call tells of a tree, for as many nodes as there are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tree {
    pub parents: Vec<i32>,
    pub first_child: Vec<i32>,
    pub next_sibling: Vec<i32>,
    pub depth: Vec<i32>,
    pub position: Vec<i32>,
}

impl Tree {
    /// What these parents say of a tree whose root has this position.
    pub fn of(parents: &[i32], position: i32) -> Self {
        let children =
            |node: usize| (0..parents.len()).filter(move |&child| parents[child] == node as i32);
        let number = |node: Option<usize>| node.map_or(-1, |node| node as i32);
        let mut depth = vec![0; parents.len()];
        for node in 1..parents.len() {
            depth[node] = depth[parents[node] as usize] + 1;
        }
        let sibling = |node: usize| {
            (node + 1..parents.len()).find(|&other| node > 0 && parents[other] == parents[node])
        };
        let nodes = 0..parents.len();
        Self {
            parents: parents.to_vec(),
            first_child: nodes.clone().map(|node| number(children(node).next())).collect(),
            next_sibling: nodes.map(|node| number(sibling(node))).collect(),
            position: depth.iter().map(|depth| position + depth).collect(),
            depth,
        }
    }

    /// The tree of its first nodes.
    pub fn first(&self, nodes: usize) -> Self {
        Self::of(&self.parents[..nodes], self.position[0])
    }

    /// The nodes from below the root to a node.
    pub fn path(&self, node: usize) -> Vec<usize> {
        let above = |&node: &usize| usize::try_from(self.parents[node]).ok();
        let mut path: Vec<usize> = std::iter::successors(Some(node), above).collect();
        path.pop();
        path.reverse();
        path
    }
}

/// What a call proposed for one sequence.
#[derive(Clone, Debug, Default)]
pub struct Drafts {
    pub tokens: Vec<i32>,
    /// The logits of each proposal, where they were asked for.
    pub logits: Vec<Vec<f32>>,
    /// The ids of their columns, where these differ from row to row; as many rows as logits.
    pub candidates: Vec<Vec<i32>>,
    /// How probably each is accepted, where the drafter tells.
    pub confidence: Vec<f32>,
    /// The tree, where the call tells it. The logits are then those below each node, empty for a node
    /// without children.
    pub tree: Tree,
}

impl PartialEq for Drafts {
    /// Equal bit for bit.
    fn eq(&self, other: &Self) -> bool {
        let bits = |logits: &[Vec<f32>]| -> Vec<Vec<u32>> {
            logits.iter().map(|row| row.iter().map(|logit| logit.to_bits()).collect()).collect()
        };
        self.tokens == other.tokens
            && bits(&self.logits) == bits(&other.logits)
            && self.candidates == other.candidates
            && self.tree == other.tree
            && bits(std::slice::from_ref(&self.confidence))
                == bits(std::slice::from_ref(&other.confidence))
    }
}

impl Drafts {
    /// The largest difference of two proposals' logits, which must have the same shape.
    pub fn distance(&self, other: &Self) -> f32 {
        assert_eq!(self.logits.len(), other.logits.len());
        let rows = self.logits.iter().zip(&other.logits);
        rows.map(|(ours, theirs)| distance(ours, theirs)).fold(0.0, f32::max)
    }
}

/// The largest difference of two rows; NaN counts as infinite.
pub fn distance(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let differences = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs());
    differences.map(|d| if d.is_nan() { f32::INFINITY } else { d }).fold(0.0, f32::max)
}

/// The lead of the largest element of a row over the second largest.
pub fn margin(row: &[f32]) -> f32 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &element in row {
        if element > first {
            (first, second) = (element, first);
        } else {
            second = second.max(element);
        }
    }
    first - second
}
