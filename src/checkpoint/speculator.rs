//! The description of a speculator, and what the kinds read alike.

use super::RowSource;
use super::config::Settings;
use super::decoder::{Decoder, DecoderLayer, Sizes};
use super::report::Report;
use super::verifier::Verifier;
use super::weights::{Linear, Tensor, Weights};
use crate::error::{Error, Result};

/// The layer of a feature in an inspection, where only the verifier can tell it.
pub(super) const UNKNOWN_LAYER: i32 = -1;

/// A speculator: a small decoder that reads hidden states of the target and proposes tokens.
#[derive(Clone, Debug)]
pub struct Speculator {
    /// What the format calls it.
    pub kind: &'static str,
    /// What all decoder layers share.
    pub decoder: Decoder,
    /// The target's hidden states that are read, in the order in which they stand side by side.
    pub features: Vec<Feature>,
    /// The token embedding, a row for each target token.
    pub embedding: RowSource,
    /// The output head, a row for each drafted token.
    pub head: RowSource,
    /// The target id of each draft id, ascending; `None` where all tokens are drafted.
    pub draft_token_ids: Option<Vec<i32>>,
    /// The decoder layers, at least one.
    pub layers: Vec<DecoderLayer>,
    /// The norm before the head, if there is one.
    pub norm: Option<Tensor>,
    /// How it drafts.
    pub method: Method,
}

impl Speculator {
    /// Whether the residual stream goes on from the normed hidden state of a layer that reads the
    /// embedding.
    pub fn norms_residual(&self) -> bool {
        match &self.method {
            Method::Sequential { entry: Entry::Features(fusion), .. } => {
                fusion.norm_before_residual
            }
            Method::Block(block) => block.fusion.norm_before_residual,
            Method::Sequential { entry: Entry::Token { .. } | Entry::Embedding, .. }
            | Method::Heads(_) => false,
        }
    }
}

/// The ways to draft.
#[expect(clippy::large_enum_variant, reason = "there is one for each model")]
#[derive(Clone, Debug)]
pub enum Method {
    /// One token after the other: the decoder goes on with its own hidden state and the token that it
    /// drafted.
    Sequential {
        /// How the hidden state and the token come in.
        entry: Entry,
        /// Whether the next step is fed what comes after the last norm, not before.
        norm_output: bool,
    },
    /// All tokens in one pass.
    Block(Block),
    /// Each token by a head of its own, which reads the state of the one before.
    Heads(Heads),
}

/// An MLP speculator. Where there are fewer tensors than steps, the later steps share the last one.
#[derive(Clone, Debug)]
pub struct Heads {
    /// Tokens that it drafts.
    pub steps: usize,
    /// Whether what is read of the target is scaled to a mean square of one half.
    pub scales_input: bool,
    /// `[V, D]` each, of the token before.
    pub embeddings: Vec<Tensor>,
    /// `[D, D]` each, the first one `[D, Ht]`: of the state before.
    pub projections: Vec<Tensor>,
    /// The gains of the norms of their sums.
    pub gains: Vec<Tensor>,
    /// What is added to the normed sums.
    pub biases: Vec<Tensor>,
    /// `[V, D]` each, from the state to logits.
    pub readouts: Vec<Tensor>,
}

/// A speculator that runs once over a block: the last known token and rows with a mask token behind it.
#[derive(Clone, Debug)]
pub struct Block {
    /// How features become a hidden state.
    pub fusion: FeatureFusion,
    /// What a block begins with.
    pub entry: BlockEntry,
    /// The token of the rows behind the first.
    pub mask_token: i32,
    /// Rows of a block.
    pub length: BlockLength,
    /// The most tokens that can be drafted.
    pub most_drafts: usize,
    /// The first row that drafts a token.
    pub first_slot: usize,
    /// How a row's token comes from it.
    pub head: BlockHead,
    /// What tells how probably each draft is accepted.
    pub confidence: Option<Confidence>,
}

/// How the tokens of a block come from its rows.
#[expect(clippy::large_enum_variant, reason = "there is one for each model")]
#[derive(Clone, Debug)]
pub enum BlockHead {
    /// Each from the logits of its row alone.
    Independent,
    /// DSpark: one after the other; what the token before tells is added to a row's logits.
    Markov(Markov),
    /// DFlash2: one after the other out of a row's candidates, whose logits the token before changes.
    Candidates(Candidates),
    /// XPress: all at once, again and again; what all rows and the tokens of the last pass tell is added
    /// to the logits.
    Refined(Refiner),
}

/// A Markov head. It maps the token before, embedded, and its own state to a vector of `rank` elements,
/// from which the readout makes what is added to the logits.
#[derive(Clone, Debug)]
pub struct Markov {
    /// `[V, rank]`.
    pub embedding: Tensor,
    /// `[Vd, rank]`.
    pub readout: Tensor,
    /// What is done to the embedded token.
    pub cell: MarkovCell,
}

/// What a Markov head makes of the token before.
#[derive(Clone, Debug)]
pub enum MarkovCell {
    /// The embedded token as it is.
    Vanilla,
    /// The embedded token times the sigmoid of this map of the row's hidden state and it,
    /// `[rank, H + rank]`.
    Gated(Linear),
    /// A gated recurrent cell: forget gate, candidate and output from this map of its state, the embedded
    /// token and the row's hidden state, `[3 * rank, 2 * rank + H]`.
    Recurrent(Linear),
}

/// How probably a draft is accepted: the sigmoid of a map.
#[derive(Clone, Debug)]
pub struct Confidence {
    /// Of the row's hidden state, and the embedded token before it if it reads that, to one number.
    pub linear: Linear,
    /// Whether it reads the Markov head's embedding of the token before.
    pub reads_token: bool,
}

/// A walk through candidates. A candidate's score is its logit plus the sum over `rank` elements of the
/// predecessor's, the row's and its own.
#[derive(Clone, Debug)]
pub struct Candidates {
    /// Candidates of each row: those with the largest logits.
    pub count: usize,
    /// `[V, rank]`, for the token before.
    pub predecessors: Tensor,
    /// `[V, rank]`, for the candidate.
    pub successors: Tensor,
    /// `[rank, H]`, for the row.
    pub projection: Tensor,
}

/// A refiner of all tokens of a block.
#[derive(Clone, Debug)]
pub struct Refiner {
    /// `[V, rank]`.
    pub embedding: Tensor,
    /// `[rank, H]`, of a row's hidden state.
    pub down_row: Tensor,
    /// `[rank, H]`, of the mean of all rows' hidden states.
    pub down_mean: Tensor,
    /// `[rank, 3 * rank]`: of both and the embedded token before.
    pub input: Tensor,
    /// `[rank * rows, rows]`: for each element and row, the weights of the rows up to it.
    pub mix: Tensor,
    /// `[inner, rank]`.
    pub gate: Tensor,
    /// `[inner, rank]`.
    pub up: Tensor,
    /// `[rank, inner]`.
    pub down: Tensor,
    /// `[Vd, rank]`.
    pub readout: Tensor,
    /// How often all tokens are chosen anew.
    pub passes: usize,
}

/// A convolution over the rows of a block, before and behind the half of a layer. Each row makes its own
/// coefficients: these plus what the projection makes of its hidden state.
#[derive(Clone, Debug)]
pub struct Convolution {
    /// Rows that come into one, itself and those before it.
    pub taps: usize,
    /// Elements that share what the projection makes.
    pub group_size: usize,
    /// `[2 * taps, H]`: first those before, then those behind.
    pub base: Tensor,
    /// `[2 * taps * groups, H]`.
    pub projection: Tensor,
}

/// What a block begins with.
#[derive(Clone, Debug)]
pub enum BlockEntry {
    /// P-EAGLE: the last verified row. What is fused from features stands in it; in the rows behind it
    /// stands what is fused from learnt features.
    Continued {
        /// The learnt features.
        mask_features: Tensor,
    },
    /// DFlash: the token that has no features yet. The layers attend to what is fused from features as
    /// it is, behind this norm.
    Anchored {
        /// The norm of the context.
        context_norm: Tensor,
    },
}

/// How many rows a block has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockLength {
    /// As many as in training, however few tokens are drafted.
    Trained(usize),
    /// No more than the tokens to draft take.
    Drafts,
}

/// How what the target knows and the next token come into the first layer.
#[derive(Clone, Debug)]
pub enum Entry {
    /// EAGLE-3: features are fused once, for the rows that are committed. In each step layer 0 attends to
    /// the embedding beside the hidden state.
    Features(FeatureFusion),
    /// EAGLE and MTP: in each step the embedding and the hidden state side by side, in this order, are
    /// mapped to what enters layer 0, an ordinary layer.
    Token {
        /// The norm of the embedding.
        embedding_norm: Option<Tensor>,
        /// The norm of the hidden state.
        hidden_norm: Option<Tensor>,
        /// From both to the hidden size.
        fusion: Linear,
    },
    /// An ordinary language model: the embedding of a row's own token, not that of the next, and nothing
    /// of the target. Layer 0 is an ordinary layer.
    Embedding,
}

/// How features become the hidden state of EAGLE-3 and P-EAGLE.
#[derive(Clone, Debug)]
pub struct FeatureFusion {
    /// What is done to the features before `fc`.
    pub norm: FeatureNorm,
    /// From all features side by side to the hidden size.
    pub fc: Tensor,
    /// Whether the residual stream of layer 0 starts from the normed hidden state.
    pub norm_before_residual: bool,
}

/// A hidden state of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The decoder layer of the target.
    pub layer: i32,
    /// Where in it.
    pub stage: FeatureStage,
    /// The number of elements.
    pub width: usize,
}

/// Where in the target a feature is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureStage {
    /// The residual stream that enters the layer; the number of layers stands for what leaves the last
    /// one, before the final norm.
    LayerInput,
    /// What the target's final norm makes of the residual stream that leaves the last layer; the layer
    /// is 0.
    FinalNorm,
}

/// What is done to the features before they are projected.
#[derive(Clone, Debug)]
pub enum FeatureNorm {
    /// Nothing.
    None,
    /// One RMS norm over all features side by side.
    Joint(Tensor),
    /// An RMS norm for each feature.
    Each(Vec<Tensor>),
}

/// The settings of the decoder. Weights that are stored in another form than they are used in are not
/// loaded.
pub(super) fn decoder_settings<'a>(top: &mut Settings<'a>) -> Result<Settings<'a>> {
    let mut layer = top
        .section("transformer_layer_config")?
        .ok_or_else(|| top.unexpected("transformer_layer_config", "an object"))?;
    refuse_quantized(top)?;
    refuse_quantized(&mut layer)?;
    Ok(layer)
}

pub(super) fn refuse_quantized(settings: &mut Settings) -> Result<()> {
    let key = "quantization_config";
    if !settings.has(key) {
        return Ok(());
    }
    let (file, path) = (settings.file().display(), settings.path_of(key));
    Err(Error::unsupported(format!("{file}: {path}: expected unquantized weights, found it set")))
}

/// The embedding and the head: the checkpoint's own, or else the verifier's.
pub(super) fn tables(
    weights: &mut Weights,
    sizes: &Sizes,
    verifier: &Verifier,
    report: &mut Report,
) -> Result<(RowSource, RowSource)> {
    const EMBEDDING: &str = "embed_tokens.weight";
    let Sizes { vocabulary, draft_vocabulary: draft, hidden, .. } = *sizes;
    // A table may be padded with rows that stand for no token.
    let stored = weights.peek(EMBEDDING).and_then(|tensor| tensor.shape().first().copied());
    let rows = stored.unwrap_or(0).max(vocabulary);
    let own_embedding = weights.optional(EMBEDDING, &[rows, hidden], report)?;
    let own_head = weights.optional("lm_head.weight", &[draft, hidden], report)?;
    verifier.report_unneeded(own_embedding.is_none(), own_head.is_none(), report);
    let embedding = match own_embedding {
        Some(tensor) => RowSource::Tensor(tensor.first_rows(vocabulary)),
        None => verifier.embedding(vocabulary, hidden, report)?,
    };
    let head = match own_head {
        Some(tensor) => RowSource::Tensor(tensor),
        None => verifier.head(draft, vocabulary, hidden, report)?,
    };
    Ok((embedding, head))
}

/// Tensors that files hold and drafting does not need.
pub(super) fn why_unneeded(name: &str) -> Option<&'static str> {
    let is_part = |part: &str| name.ends_with(part);
    match name {
        "d2t" | "t2d" => Some("all tokens are drafted"),
        // Converters of MTP heads write the first of these filled with NaN.
        _ if is_part("verifier_lm_head.weight") || is_part("verifier_norm.weight") => {
            Some("used in training only")
        }
        _ if is_part("rotary_emb.inv_freq") || is_part("refiner_head.causal_tril") => {
            Some("computed from the configuration")
        }
        _ => None,
    }
}

/// The token of rows that wait for one, which has to be known.
pub(super) fn mask_token(top: &mut Settings, vocabulary: usize) -> Result<i32> {
    const KEY: &str = "mask_token_id";
    match top.integer(KEY, 0..=vocabulary - 1)? {
        Some(token) => Ok(token as i32),
        None => Err(top.unexpected(KEY, &format!("a token from 0 to {}", vocabulary - 1))),
    }
}

/// The output of the target's final norm.
pub(super) fn final_norm(width: usize, verifier: &Verifier, top: &Settings) -> Result<Feature> {
    check_width(width, verifier, top)?;
    Ok(Feature { layer: 0, stage: FeatureStage::FinalNorm, width })
}

/// The residual stream that leaves the target's last layer.
pub(super) fn last_residual(width: usize, verifier: &Verifier, top: &Settings) -> Result<Feature> {
    check_width(width, verifier, top)?;
    let layer = match verifier.layers() {
        Some(layers) => layers as i32,
        None if verifier.is_promised() => UNKNOWN_LAYER,
        None => {
            return Err(Error::invalid(format!(
                "{}: expected the verifier's directory to count its layers, found none",
                top.file().display()
            )));
        }
    };
    Ok(Feature { layer, stage: FeatureStage::LayerInput, width })
}

fn check_width(width: usize, verifier: &Verifier, top: &Settings) -> Result<()> {
    match verifier.hidden_size().filter(|&target| target != width) {
        None => Ok(()),
        Some(target) => {
            let text = format!("expected the verifier's {target}, found {width}");
            Err(Error::format(top.file(), format!("transformer_layer_config.hidden_size: {text}")))
        }
    }
}
