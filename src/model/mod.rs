//! Loaded speculators: the networks, each written once as a sequence of phases, and the loading of
//! their weights.

pub mod block;
mod candidates;
pub mod decoder;
pub mod experts;
mod fusion;
pub mod heads;
mod markov;
mod placement;
mod refiner;
pub mod sequential;
pub mod target;
pub mod trees;

use crate::backend::Backend;
use crate::backend::phases::KvPool;
pub use crate::checkpoint::FeatureStage;
use crate::checkpoint::{self, LentShape, Method, Speculator};
use crate::context::{Block, Context, LogLevel, MemoryKind};
use crate::error::{Error, Result};
use crate::tensor::{Carver, Matrix, Span};
use block::Block as BlockNetwork;
use decoder::{Decoder, RowLimits, Scratch};
use heads::Heads;
use placement::{Mapped, Placement};
use sequential::Sequential;
use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use trees::Branching;

/// The most features that a speculator may read.
pub const FEATURES_MAX: usize = 64;

/// Tensors of the verifier that the host lends, in pieces that cover all rows in order.
#[derive(Clone, Debug, Default)]
pub struct Lent {
    /// `[V, hidden]`.
    pub embedding: Option<Vec<Matrix>>,
    /// `[V, hidden]`.
    pub head: Option<Vec<Matrix>>,
}

/// How a model is loaded.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Whether weights are used where their files are mapped.
    pub map_files: bool,
    /// The verifier's directory; `None` is what the checkpoint says.
    pub verifier_directory: Option<PathBuf>,
    /// Merged over the checkpoint's configuration.
    pub config_overrides: Option<serde_json::Value>,
    /// Tensors that the host lends.
    pub lent: Lent,
}

/// A hidden state of the target that the speculator reads.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// The layer.
    pub layer: i32,
    /// Where in it.
    pub stage: FeatureStage,
    /// Elements of a row.
    pub width: usize,
}

/// The network of each kind.
#[expect(clippy::large_enum_variant, reason = "there is one for each model")]
#[derive(Debug)]
pub enum Network {
    /// One token after the other.
    Sequential(Sequential),
    /// All tokens in one pass.
    Block(BlockNetwork),
    /// Each token by a head of its own.
    Heads(Heads),
}

impl Network {
    fn place(description: &Speculator, placement: &mut Placement<'_>) -> Result<Self> {
        Ok(match &description.method {
            Method::Sequential { entry, norm_output } => {
                Self::Sequential(Sequential::place(description, (entry, *norm_output), placement)?)
            }
            Method::Block(block) => {
                Self::Block(BlockNetwork::place(description, block, placement)?)
            }
            Method::Heads(heads) => Self::Heads(Heads::place(description, heads, placement)?),
        })
    }

    fn decoder(&self) -> &Decoder {
        match self {
            Self::Sequential(network) => &network.decoder,
            Self::Block(network) => &network.decoder,
            Self::Heads(network) => &network.decoder,
        }
    }

    /// Cuts the memory for the intermediate rows of a session.
    pub fn carve(
        &self,
        carver: &mut Carver,
        backend: &dyn Backend,
        pool: KvPool,
        limits: &RowLimits,
    ) -> Scratch {
        match self {
            Self::Sequential(network) => network.carve(carver, backend, pool, limits),
            Self::Block(network) => network.carve(carver, backend, pool, limits),
            Self::Heads(network) => network.carve(carver, backend, pool, limits),
        }
    }

    /// Whether rows read their own token, and not the one after it.
    pub fn reads_own_tokens(&self) -> bool {
        match self {
            Self::Sequential(network) => network.reads_own_tokens(),
            Self::Block(_) | Self::Heads(_) => false,
        }
    }

    /// The network, if it can draft trees; otherwise why it cannot.
    pub fn branching(&self) -> std::result::Result<Branching<'_>, &'static str> {
        match self {
            Self::Sequential(network) => Ok(Branching::Sequential(network)),
            Self::Heads(network) => Ok(Branching::Heads(network)),
            Self::Block(network) => match network.tree_obstacle() {
                None => Ok(Branching::Block(network)),
                Some(obstacle) => Err(obstacle),
            },
        }
    }

    /// Whether drafts take pages of the pool, behind those of the committed rows.
    pub fn drafts_in_pages(&self) -> bool {
        matches!(self, Self::Sequential(_))
    }
}

/// What a model says about itself.
#[derive(Debug)]
struct Facts {
    kind: &'static str,
    features: Vec<Feature>,
    vocabulary: usize,
    draft_vocabulary: usize,
    draft_token_ids: Option<Vec<i32>>,
    max_position: usize,
    default_num_drafts: usize,
}

/// A loaded speculator. Never changes.
pub struct Model {
    network: Network,
    facts: Facts,
    report: String,
    weights: Block,
    mapped: Mapped,
    context: Arc<Context>,
    /// Dropped last, when nothing uses the lent tensors any more.
    kept: Option<Box<dyn Any + Send + Sync>>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Model").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl Model {
    /// Loads the checkpoint in `directory`.
    pub fn load(context: &Arc<Context>, directory: &Path, options: LoadOptions) -> Result<Self> {
        let LoadOptions { map_files, verifier_directory, config_overrides, lent } = options;
        let device = context.description();
        if map_files && !device.reads_mapped_files {
            return Err(Error::unsupported(
                "flags: expected weights to be copied, as the device does not read mapped files",
            ));
        }
        for (what, pieces) in [("embedding", &lent.embedding), ("head", &lent.head)] {
            let pieces = pieces.as_ref().map_or(0, Vec::len);
            if pieces > device.max_row_segments {
                return Err(Error::unsupported(format!(
                    "{what}: expected at most {} ranges on this device, found {pieces}",
                    device.max_row_segments
                )));
            }
        }
        let lent_shape = |pieces: &Option<Vec<Matrix>>| {
            pieces.as_ref().and_then(|pieces| {
                let first = pieces.first()?;
                let rows = pieces.iter().map(|piece| piece.rows).sum();
                Some(LentShape { rows, columns: first.columns, dtype: first.dtype })
            })
        };
        let checkpoint = checkpoint::open(
            directory,
            &checkpoint::Options {
                verifier_directory,
                overrides: config_overrides,
                map_files,
                lent_embedding: lent_shape(&lent.embedding),
                lent_head: lent_shape(&lent.head),
            },
        )?;
        for warning in checkpoint.report.warnings() {
            context.log(LogLevel::Warning, &format!("{}: {warning}", directory.display()));
        }
        let description = &checkpoint.speculator;
        let facts = facts(directory, description, checkpoint.default_num_drafts)?;
        let mut counting = Placement::counting(&lent);
        Network::place(description, &mut counting)?;
        let _scope = context.backend().enter()?;
        let weights = context.allocate(MemoryKind::Weights, "weights", counting.bytes())?;
        let mut filling = Placement::filling(&lent, weights.address(), context.backend());
        let network = Network::place(description, &mut filling)?;
        context.log(
            LogLevel::Info,
            &format!("{}: loaded {}, {} bytes", directory.display(), facts.kind, weights.bytes()),
        );
        Ok(Self {
            network,
            facts,
            report: checkpoint.report.to_json().to_string(),
            mapped: filling.into_mapped(),
            weights,
            context: Arc::clone(context),
            kept: None,
        })
    }

    /// Keeps a value as long as the model; dropping it tells that the model is gone.
    pub fn keep(&mut self, value: Box<dyn Any + Send + Sync>) {
        self.kept = Some(value);
    }

    /// The hidden states that drafting reads.
    pub fn features(&self) -> &[Feature] {
        &self.facts.features
    }

    /// The kind of speculator.
    pub fn kind(&self) -> &'static str {
        self.facts.kind
    }

    /// Tokens of the target's vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.facts.vocabulary
    }

    /// Tokens that can be proposed.
    pub fn draft_vocabulary(&self) -> usize {
        self.facts.draft_vocabulary
    }

    /// Columns of draft logits.
    pub fn draft_columns(&self) -> usize {
        self.candidates().unwrap_or(self.facts.draft_vocabulary)
    }

    /// The target's id of each column; `None` is the identity.
    pub fn draft_token_ids(&self) -> Option<&[i32]> {
        self.facts.draft_token_ids.as_deref()
    }

    /// The drafter's hidden size.
    pub fn hidden_size(&self) -> usize {
        self.network.decoder().hidden_size()
    }

    /// Decoder layers.
    pub fn num_layers(&self) -> usize {
        self.network.decoder().num_layers()
    }

    /// Key and value heads, and elements of a head.
    pub fn kv_shape(&self) -> (usize, usize) {
        let heads = self.network.decoder().heads();
        (heads.num_kv_heads, heads.head_dim)
    }

    /// Trailing positions of a cached prefix to commit again: where a row reads the token after its own,
    /// the row of a prefix's last position did not know it.
    pub fn prefix_margin(&self) -> usize {
        match &self.network {
            Network::Sequential(network) => usize::from(!network.reads_own_tokens()),
            Network::Block(network) => network.prefix_margin(),
            Network::Heads(_) => 0,
        }
    }

    /// The most tokens that are proposed for a sequence; more are not wanted of the kind.
    pub fn most_drafts(&self) -> usize {
        match &self.network {
            Network::Sequential(_) => usize::MAX,
            Network::Block(network) => network.most_drafts(),
            Network::Heads(network) => network.most_drafts(),
        }
    }

    /// The most levels of a tree below the root, where there is a bound: the slots of a block.
    pub fn most_levels(&self) -> Option<usize> {
        match &self.network {
            Network::Sequential(_) | Network::Heads(_) => None,
            Network::Block(network) => Some(network.most_drafts()),
        }
    }

    /// Candidates of each proposal, where it is chosen out of candidates: the columns of draft logits.
    pub fn candidates(&self) -> Option<usize> {
        match &self.network {
            Network::Sequential(_) | Network::Heads(_) => None,
            Network::Block(network) => network.candidates(),
        }
    }

    /// Rows of a block, if they are always as many as in training.
    pub fn block_size(&self) -> Option<usize> {
        match &self.network {
            Network::Sequential(_) | Network::Heads(_) => None,
            Network::Block(network) => network.trained_length(),
        }
    }

    /// The token that stands for those to be drafted.
    pub fn mask_token(&self) -> Option<i32> {
        match &self.network {
            Network::Sequential(_) | Network::Heads(_) => None,
            Network::Block(network) => Some(network.mask_token()),
        }
    }

    /// Whether it tells how probably proposals are accepted.
    pub fn has_confidence(&self) -> bool {
        match &self.network {
            Network::Sequential(_) | Network::Heads(_) => false,
            Network::Block(network) => network.has_confidence(),
        }
    }

    /// Tokens per round that the checkpoint was made for.
    pub fn default_num_drafts(&self) -> usize {
        self.facts.default_num_drafts
    }

    /// Positions that the drafter was made for.
    pub fn max_position(&self) -> usize {
        self.facts.max_position
    }

    /// Bytes of weights in the context's memory.
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// The load report, as JSON.
    pub fn report(&self) -> &str {
        &self.report
    }

    /// The context.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// All memory that the weights lie in, but for what the host lends.
    pub fn weight_memory(&self) -> impl Iterator<Item = Span<u8>> {
        let copied = Span::new(self.weights.address(), self.weights.bytes());
        std::iter::once(copied).chain(self.mapped.memory.iter().copied())
    }
}

fn facts(directory: &Path, description: &Speculator, default_num_drafts: usize) -> Result<Facts> {
    let features = description.features.iter();
    let features: Vec<_> = features
        .map(|feature| Feature { layer: feature.layer, stage: feature.stage, width: feature.width })
        .collect();
    if features.len() > FEATURES_MAX {
        return Err(Error::unsupported(format!(
            "{}: expected at most {FEATURES_MAX} features, found {}",
            directory.display(),
            features.len()
        )));
    }
    Ok(Facts {
        kind: description.kind,
        features,
        vocabulary: description.decoder.sizes.vocabulary,
        draft_vocabulary: description.decoder.sizes.draft_vocabulary,
        draft_token_ids: description.draft_token_ids.clone(),
        max_position: description.decoder.max_position,
        default_num_drafts,
    })
}
