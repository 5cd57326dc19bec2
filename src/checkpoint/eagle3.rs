//! EAGLE-3: from settings and tensors to a description that can be run.

use super::RowSource;
use super::config::{Settings, as_integer};
use super::report::Report;
use super::rope::{self, Rope};
use super::verifier::Verifier;
use super::vocabulary;
use super::weights::{Linear, Tensor, Weights};
use crate::error::{Error, Result};
use serde_json::Value;

/// Token ids are 32-bit.
const MOST_TOKENS: usize = i32::MAX as usize;

/// Bounds of the widths; far above any model, far below what overflows.
const WIDEST: usize = 1 << 20;

/// The layer of a feature in an inspection, where only the verifier can tell it.
pub(super) const UNKNOWN_LAYER: i32 = -1;

/// An EAGLE-3 speculator.
#[derive(Clone, Debug)]
pub struct Eagle3 {
    /// Tokens of the target.
    pub vocabulary: usize,
    /// Tokens that can be drafted.
    pub draft_vocabulary: usize,
    /// The width of the drafter's residual stream.
    pub hidden_size: usize,
    /// The width between the two halves of an MLP.
    pub intermediate_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, which divide the query heads.
    pub kv_heads: usize,
    /// Elements of a head; `heads * head_dim` need not be `hidden_size`.
    pub head_dim: usize,
    /// What RMS norms add to the mean square.
    pub epsilon: f32,
    /// The gate's activation.
    pub activation: Activation,
    /// The target's hidden states that are read, in the order of their columns in `fc`.
    pub features: Vec<Feature>,
    /// What is done to the features before `fc`.
    pub feature_norm: FeatureNorm,
    /// From all features side by side to `hidden_size`.
    pub fc: Tensor,
    /// The token embedding, a row for each target token.
    pub embedding: RowSource,
    /// The output head, a row for each drafted token.
    pub head: RowSource,
    /// The target id of each draft id, ascending; `None` where all tokens are drafted.
    pub draft_token_ids: Option<Vec<i32>>,
    /// The decoder layers, at least one.
    pub layers: Vec<DecoderLayer>,
    /// The norm before the head.
    pub norm: Tensor,
    /// Whether the residual stream of layer 0 starts from the normed hidden state.
    pub norm_before_residual: bool,
    /// Whether the next step is fed what comes after `norm`, not before.
    pub norm_output: bool,
    /// How positions rotate queries and keys.
    pub rope: Rope,
    /// Positions lie below this.
    pub max_position: usize,
}

/// A hidden state of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The residual stream that enters this decoder layer of the target; the number of layers
    /// stands for what leaves the last one, before the final norm.
    pub layer: i32,
    /// The number of elements.
    pub width: usize,
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

/// The function between the halves of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// GELU by the error function.
    Gelu,
    /// `max(x, 0)`.
    Relu,
}

/// A decoder layer. Layer 0 attends to the normed embedding and the normed hidden state side by
/// side, the embedding first; the others to their normed input.
#[derive(Clone, Debug)]
pub struct DecoderLayer {
    /// The norm of the embedding in layer 0, of the residual stream in the others.
    pub input_norm: Tensor,
    /// The norm of the hidden state: in layer 0 only.
    pub hidden_norm: Option<Tensor>,
    /// The projection to queries.
    pub query: Linear,
    /// The projection to keys.
    pub key: Linear,
    /// The projection to values.
    pub value: Linear,
    /// The projection of all heads back to the residual stream.
    pub output: Linear,
    /// The norm of each query head, before the rotation.
    pub query_norm: Option<Tensor>,
    /// The norm of each key head, before the rotation.
    pub key_norm: Option<Tensor>,
    /// The norm before the MLP.
    pub post_attention_norm: Tensor,
    /// The half of the MLP that is activated.
    pub gate: Linear,
    /// The half of the MLP that is multiplied with the activated one.
    pub up: Linear,
    /// The way back to the residual stream.
    pub down: Linear,
    /// A query sees this many positions, itself included; `None`: all before it.
    pub window: Option<usize>,
}

/// The two decoder layers that drafters are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Llama,
    /// Norms each query and key head.
    Qwen3,
}

/// The class defaults of a family, for settings that a file leaves out.
struct Defaults {
    vocabulary: usize,
    intermediate_size: usize,
    max_position: usize,
}

impl Family {
    fn defaults(self) -> Defaults {
        match self {
            Self::Llama => {
                Defaults { vocabulary: 32_000, intermediate_size: 11_008, max_position: 2048 }
            }
            Self::Qwen3 => {
                Defaults { vocabulary: 151_936, intermediate_size: 22_016, max_position: 32_768 }
            }
        }
    }
}

/// Reads the speculator whose configuration is `top`.
pub(super) fn read(
    top: &mut Settings,
    mut weights: Weights,
    verifier: &Verifier,
    report: &mut Report,
) -> Result<Eagle3> {
    let mut layer = top
        .section("transformer_layer_config")?
        .ok_or_else(|| top.unexpected("transformer_layer_config", "an object"))?;
    refuse_quantized(top)?;
    refuse_quantized(&mut layer)?;
    weights.rename_prefix("midlayer.", "layers.0.", report)?;
    warn_of_lost_layer(top, report)?;

    let family = family(&mut layer, &weights)?;
    let sizes = Sizes::read(top, &mut layer, family, &weights)?;
    let max_position = layer.integer_or(
        "max_position_embeddings",
        1..=MOST_TOKENS,
        family.defaults().max_position,
    )?;
    let rope = rope::read(&mut layer, sizes.head_dim, max_position, report)?;
    let layers = {
        let windows = windows(&mut layer, family, sizes.layers, report)?;
        let mut reader = LayerReader::new(&mut layer, &mut weights, &sizes, family, report)?;
        let layers = windows.into_iter().enumerate();
        layers.map(|(index, window)| reader.read(index, window)).collect::<Result<_>>()?
    };
    let (features, fc) = features(top, &mut weights, &sizes, verifier, report)?;
    let feature_norm = feature_norm(top, &mut weights, &features, report)?;
    let (embedding, head) = tables(&mut weights, &sizes, verifier, report)?;
    let (draft, full) = (sizes.draft_vocabulary, sizes.vocabulary);
    let eagle3 = Eagle3 {
        vocabulary: full,
        draft_vocabulary: draft,
        hidden_size: sizes.hidden,
        intermediate_size: sizes.intermediate,
        heads: sizes.heads,
        kv_heads: sizes.kv_heads,
        head_dim: sizes.head_dim,
        epsilon: layer.positive_or("rms_norm_eps", 1e-6)? as f32,
        activation: activation(&mut layer)?,
        features,
        feature_norm,
        fc,
        embedding,
        head,
        draft_token_ids: vocabulary::read(&mut weights, draft, full, report)?,
        layers,
        norm: weights.required("norm.weight", &[sizes.hidden], report)?,
        norm_before_residual: norm_before_residual(top, report)?,
        norm_output: top.flag_or("norm_output", false)?,
        rope,
        max_position,
    };
    layer.finish(report);
    weights.finish(report, why_unneeded)?;
    Ok(eagle3)
}

/// Tensors that files hold and drafting does not need.
fn why_unneeded(name: &str) -> Option<&'static str> {
    match name {
        "d2t" | "t2d" => Some("all tokens are drafted"),
        "verifier_lm_head.weight" | "verifier_norm.weight" => Some("used in training only"),
        _ if name.ends_with("rotary_emb.inv_freq") => Some("computed from the configuration"),
        _ => None,
    }
}

fn refuse_quantized(settings: &mut Settings) -> Result<()> {
    let key = "quantization_config";
    if !settings.has(key) {
        return Ok(());
    }
    let (file, path) = (settings.file().display(), settings.path_of(key));
    Err(Error::unsupported(format!("{file}: {path}: expected unquantized weights, found it set")))
}

/// Some versions of the converter dropped layer 0 and left random weights in its place.
fn warn_of_lost_layer(top: &mut Settings, report: &mut Report) -> Result<()> {
    let version = top.text("speculators_version")?.unwrap_or("");
    let affected = ["0.2.", "0.3.", "0.4."].iter().any(|start| version.starts_with(start));
    let classes = top.list("architectures")?.unwrap_or_default();
    if affected && classes.iter().any(|class| class == "Eagle3Speculator") {
        report.warn(format!(
            "speculators_version {version}: converters of this version lost the weights of \
             layer 0; if drafts are never accepted, convert the original again"
        ));
    }
    Ok(())
}

fn family(layer: &mut Settings, weights: &Weights) -> Result<Family> {
    match layer.text("model_type")? {
        Some("llama") => Ok(Family::Llama),
        Some("qwen3") => Ok(Family::Qwen3),
        Some(other) => {
            let (file, path) = (layer.file().display(), layer.path_of("model_type"));
            let text = format!("{path}: expected \"llama\" or \"qwen3\", found {other:?}");
            Err(Error::unsupported(format!("{file}: {text}")))
        }
        None if weights.peek("layers.0.self_attn.q_norm.weight").is_some() => {
            layer.assume("model_type", "qwen3");
            Ok(Family::Qwen3)
        }
        None => {
            layer.assume("model_type", "llama");
            Ok(Family::Llama)
        }
    }
}

/// The file of a missing flag means true to the engine that runs most of these checkpoints, and
/// false to the code that trains them; what runs is followed.
fn norm_before_residual(top: &mut Settings, report: &mut Report) -> Result<bool> {
    let flag = top.flag("norm_before_residual")?;
    Ok(flag.unwrap_or_else(|| {
        report.warn("norm_before_residual is not set: taken as true; override it if that is wrong");
        top.assume("norm_before_residual", true)
    }))
}

fn activation(layer: &mut Settings) -> Result<Activation> {
    Ok(match layer.text("hidden_act")? {
        None => {
            layer.assume("hidden_act", "silu");
            Activation::Silu
        }
        Some("silu" | "swish") => Activation::Silu,
        Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Activation::GeluTanh,
        Some("gelu") => Activation::Gelu,
        Some("relu") => Activation::Relu,
        Some(other) => {
            let (file, path) = (layer.file().display(), layer.path_of("hidden_act"));
            let text = "expected silu, gelu, gelu_pytorch_tanh or relu";
            return Err(Error::unsupported(format!("{file}: {path}: {text}, found {other:?}")));
        }
    })
}

/// The shape of the drafter.
struct Sizes {
    vocabulary: usize,
    draft_vocabulary: usize,
    hidden: usize,
    intermediate: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    layers: usize,
}

impl Sizes {
    fn read(
        top: &mut Settings,
        layer: &mut Settings,
        family: Family,
        weights: &Weights,
    ) -> Result<Self> {
        let defaults = family.defaults();
        let vocabulary = layer.integer_or("vocab_size", 1..=MOST_TOKENS, defaults.vocabulary)?;
        let rows_of = |name: &str| weights.peek(name)?.shape().first().copied();
        let draft_vocabulary = match top.integer("draft_vocab_size", 1..=vocabulary)? {
            Some(draft) => draft,
            None => {
                let stored = rows_of("lm_head.weight").unwrap_or(32_000);
                top.assume("draft_vocab_size", stored.clamp(1, vocabulary))
            }
        };
        let heads = layer.integer_or("num_attention_heads", 1..=WIDEST, 32)?;
        let hidden = layer.integer_or("hidden_size", 1..=WIDEST, 4096)?;
        let kv_heads = match layer.integer("num_key_value_heads", 1..=heads)? {
            Some(kv_heads) => kv_heads,
            None => layer.assume("num_key_value_heads", heads),
        };
        if !heads.is_multiple_of(kv_heads) {
            return Err(layer.unexpected("num_key_value_heads", &format!("a divisor of {heads}")));
        }
        let head_dim = match layer.integer("head_dim", 1..=WIDEST)? {
            Some(head_dim) => head_dim,
            // The stored projection knows better than the ratio of the sizes.
            None => {
                let rows = rows_of("layers.0.self_attn.q_proj.weight").unwrap_or(hidden);
                layer.assume("head_dim", rows / heads)
            }
        };
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            let text = format_args!("expected an even number, found {head_dim}");
            return Err(layer.wrong("head_dim", text));
        }
        let intermediate =
            layer.integer_or("intermediate_size", 1..=16 * WIDEST, defaults.intermediate_size)?;
        let layers = match layer.integer("num_hidden_layers", 1..=1024)? {
            Some(layers) => layers,
            None => layer.assume("num_hidden_layers", 1),
        };
        Ok(Self {
            vocabulary,
            draft_vocabulary,
            hidden,
            intermediate,
            heads,
            kv_heads,
            head_dim,
            layers,
        })
    }
}

/// The window of each layer.
fn windows(
    layer: &mut Settings,
    family: Family,
    layers: usize,
    report: &mut Report,
) -> Result<Vec<Option<usize>>> {
    let enabled = layer.flag("use_sliding_window")?;
    let stored = layer.integer("sliding_window", 1..=MOST_TOKENS)?;
    let first_sliding = layer.integer("max_window_layers", 0..=MOST_TOKENS)?;
    let kinds = layer.list("layer_types")?;
    // Configurations of the Qwen3 class forget the window unless it is switched on; the Llama
    // class keeps it as it stands.
    let window = match (family, enabled) {
        (Family::Llama, _) => stored,
        (Family::Qwen3, Some(true)) => {
            Some(stored.unwrap_or_else(|| layer.assume("sliding_window", 4096)))
        }
        (Family::Qwen3, _) => None,
    };
    let Some(kinds) = kinds else {
        let first = match family {
            Family::Llama => layers,
            Family::Qwen3 => first_sliding.unwrap_or(28),
        };
        return Ok((0..layers).map(|index| window.filter(|_| index >= first)).collect());
    };
    if kinds.len() != layers {
        return Err(layer.unexpected("layer_types", &format!("a list of {layers}")));
    }
    let mut windows = Vec::with_capacity(layers);
    for kind in kinds {
        windows.push(match kind.as_str() {
            Some("full_attention") => None,
            Some("sliding_attention") => {
                if window.is_none() {
                    let path = layer.path_of("layer_types");
                    report.correct(format!(
                        "{path}: sliding layers have no effective sliding_window: full attention"
                    ));
                }
                window
            }
            _ => {
                let expected = "\"full_attention\" or \"sliding_attention\" for each layer";
                return Err(layer.unexpected("layer_types", expected));
            }
        });
    }
    Ok(windows)
}

/// Reads decoder layers.
struct LayerReader<'r> {
    weights: &'r mut Weights,
    report: &'r mut Report,
    sizes: &'r Sizes,
    family: Family,
    attention_bias: bool,
    mlp_bias: bool,
}

impl<'r> LayerReader<'r> {
    fn new(
        layer: &mut Settings,
        weights: &'r mut Weights,
        sizes: &'r Sizes,
        family: Family,
        report: &'r mut Report,
    ) -> Result<Self> {
        let mut bias = |key: &str, part: &str| -> Result<bool> {
            let stored = weights.any(|name| name.contains(part) && name.ends_with(".bias"));
            let wanted = flag_or_stored(layer, key, stored, report)?;
            if wanted && !stored {
                report.correct(format!("{key} is set, but no bias is stored: none is added"));
            }
            Ok(wanted && stored)
        };
        let attention_bias = bias("attention_bias", ".self_attn.")?;
        // The Qwen3 class has no such biases.
        let mlp_bias = family == Family::Llama && bias("mlp_bias", ".mlp.")?;
        Ok(Self { weights, report, sizes, family, attention_bias, mlp_bias })
    }

    fn read(&mut self, index: usize, window: Option<usize>) -> Result<DecoderLayer> {
        let Sizes { hidden, intermediate, heads, kv_heads, head_dim, .. } = *self.sizes;
        let (input, queries, keys) =
            (if index == 0 { 2 * hidden } else { hidden }, heads * head_dim, kv_heads * head_dim);
        let part = |name: &str| format!("layers.{index}.{name}");
        let norms_heads = self.family == Family::Qwen3;
        Ok(DecoderLayer {
            input_norm: self.vector(&part("input_layernorm"), hidden)?,
            hidden_norm: match index {
                0 => Some(self.vector(&part("hidden_norm"), hidden)?),
                _ => None,
            },
            query: self.linear(&part("self_attn.q_proj"), queries, input, self.attention_bias)?,
            key: self.linear(&part("self_attn.k_proj"), keys, input, self.attention_bias)?,
            value: self.linear(&part("self_attn.v_proj"), keys, input, self.attention_bias)?,
            output: self.output(&part("self_attn.o_proj"), hidden, queries)?,
            query_norm: self.head_norm(norms_heads, &part("self_attn.q_norm"))?,
            key_norm: self.head_norm(norms_heads, &part("self_attn.k_norm"))?,
            post_attention_norm: self.vector(&part("post_attention_layernorm"), hidden)?,
            gate: self.linear(&part("mlp.gate_proj"), intermediate, hidden, self.mlp_bias)?,
            up: self.linear(&part("mlp.up_proj"), intermediate, hidden, self.mlp_bias)?,
            down: self.linear(&part("mlp.down_proj"), hidden, intermediate, self.mlp_bias)?,
            window,
        })
    }

    fn vector(&mut self, module: &str, len: usize) -> Result<Tensor> {
        self.weights.required(&format!("{module}.weight"), &[len], self.report)
    }

    fn head_norm(&mut self, present: bool, module: &str) -> Result<Option<Tensor>> {
        present.then(|| self.vector(module, self.sizes.head_dim)).transpose()
    }

    fn linear(
        &mut self,
        module: &str,
        outputs: usize,
        inputs: usize,
        bias: bool,
    ) -> Result<Linear> {
        let shape = [outputs, inputs];
        let weight = self.weights.required(&format!("{module}.weight"), &shape, self.report)?;
        let bias_name = format!("{module}.bias");
        let bias = bias.then(|| self.weights.required(&bias_name, &[outputs], self.report));
        Ok(Linear { weight, bias: bias.transpose()? })
    }

    /// The output projection, which some layers leave without a bias though the others have one.
    fn output(&mut self, module: &str, outputs: usize, inputs: usize) -> Result<Linear> {
        let name = format!("{module}.bias");
        let mut output = self.linear(module, outputs, inputs, false)?;
        if self.attention_bias {
            output.bias = self.weights.optional(&name, &[outputs], self.report)?;
            if output.bias.is_none() {
                self.report.absent.push((name.clone(), "nothing is added".into()));
                self.report.correct(format!("{name} is not stored: nothing is added"));
            }
        }
        Ok(output)
    }
}

/// A flag whose tensors may tell otherwise. What the file says decides; where it says nothing,
/// the tensors do.
fn flag_or_stored(
    settings: &mut Settings,
    key: &str,
    stored: bool,
    report: &mut Report,
) -> Result<bool> {
    let flag = settings.flag(key)?;
    let path = settings.path_of(key);
    match flag {
        None if stored => report.correct(format!("{path} is not set, its tensors are: used")),
        Some(false) if stored => {
            report.correct(format!("{path} is false: its tensors are not used"))
        }
        _ => {}
    }
    Ok(flag.unwrap_or_else(|| settings.assume(key, stored)))
}

/// The features that are read, and the matrix that projects them.
fn features(
    top: &mut Settings,
    weights: &mut Weights,
    sizes: &Sizes,
    verifier: &Verifier,
    report: &mut Report,
) -> Result<(Vec<Feature>, Tensor)> {
    let Some(stored) = weights.peek("fc.weight") else {
        return Err(Error::unsupported(format!(
            "{}: tensor \"fc.weight\": expected a projection of the target's features, found no \
             such tensor; drafters that take the target's last hidden state are not supported",
            weights.directory.display()
        )));
    };
    let columns = stored.shape().get(1).copied().unwrap_or(0);
    let layers = feature_layers(top, verifier)?;
    let count = layers.len();
    let wanted = top.integer("target_hidden_size", 1..=WIDEST)?;
    // Training code ignores target_hidden_size; the stored matrix tells who is right.
    let widths = [wanted, Some(sizes.hidden), verifier.hidden_size()];
    let fits = |width: &usize| width.checked_mul(count) == Some(columns);
    let first = wanted.unwrap_or(sizes.hidden);
    let width = widths.into_iter().flatten().find(fits).unwrap_or(first);
    let fc = weights.required("fc.weight", &[sizes.hidden, count * width], report)?;
    if width != first {
        report.correct(format!(
            "target_hidden_size: {width}, because fc.weight has {columns} columns"
        ));
    }
    if let Some(target) = verifier.hidden_size().filter(|&target| target != width) {
        let text =
            format!("features of width {width} are read, the verifier's have width {target}");
        return Err(Error::format(top.file(), format!("target_hidden_size: {text}")));
    }
    let feature = |layer| Feature { layer, width };
    Ok((layers.into_iter().map(feature).collect(), fc))
}

/// The layers whose input is read; [`UNKNOWN_LAYER`] if only the verifier, which is to come later,
/// can tell.
fn feature_layers(top: &mut Settings, verifier: &Verifier) -> Result<Vec<i32>> {
    const KEY: &str = "eagle_aux_hidden_state_layer_ids";
    let last = verifier.layers();
    let listed = top.list(KEY)?.filter(|list| !list.is_empty());
    let ids = match (listed, last) {
        (Some(list), _) => list.iter().map(as_integer).collect(),
        (None, Some(n)) => {
            let n = n as i64;
            let default = vec![2, n / 2, n - 3];
            let values: Vec<Value> = default.iter().map(|&id| Value::from(id)).collect();
            top.assume(KEY, values);
            Some(default)
        }
        (None, None) if verifier.is_promised() => return Ok(vec![UNKNOWN_LAYER; 3]),
        (None, None) => {
            return Err(Error::invalid(format!(
                "{}: {KEY}: expected a list of layers, or the verifier's directory to count its \
                 layers, found neither",
                top.file().display()
            )));
        }
    };
    let most = last.unwrap_or(100_000) as i64;
    let in_range =
        |ids: &Vec<i64>| ids.len() <= 1024 && ids.iter().all(|id| (0..=most).contains(id));
    let Some(ids) = ids.filter(in_range) else {
        return Err(top.unexpected(KEY, &format!("a list of layers from 0 to {most}")));
    };
    if let Some(twice) = (1..ids.len()).find(|&later| ids[..later].contains(&ids[later])) {
        let text = format!("expected distinct layers, found {} twice in {ids:?}", ids[twice]);
        return Err(top.wrong(KEY, text));
    }
    Ok(ids.into_iter().map(|id| id as i32).collect())
}

fn feature_norm(
    top: &mut Settings,
    weights: &mut Weights,
    features: &[Feature],
    report: &mut Report,
) -> Result<FeatureNorm> {
    let stored_joint = weights.peek("input_norm.weight").is_some();
    let stored_each = weights.any(|name| name.starts_with("fc_norm."));
    let joint = flag_or_stored(top, "norm_before_fc", stored_joint, report)?;
    let each = flag_or_stored(top, "fc_norm", stored_each, report)?;
    let file = top.file();
    let mut norm = |name: &str, len: usize| -> Result<Tensor> {
        if let Some(tensor) = weights.optional(name, &[len], report)? {
            return Ok(tensor);
        }
        // Converters kept the flag and dropped the tensor; engines then run with ones.
        report.absent.push((name.into(), "ones".into()));
        report.correct(format!("{name} is not stored: ones are used"));
        Ok(Tensor::ones(name, len, file))
    };
    match (joint, each) {
        (false, false) => Ok(FeatureNorm::None),
        (true, true) => Err(top.wrong("fc_norm", "expected norm_before_fc or fc_norm, found both")),
        (true, false) => {
            let width = features.iter().map(|feature| feature.width).sum();
            Ok(FeatureNorm::Joint(norm("input_norm.weight", width)?))
        }
        (false, true) => {
            let norms = features.iter().enumerate();
            let norms = norms.map(|(index, f)| norm(&format!("fc_norm.{index}.weight"), f.width));
            Ok(FeatureNorm::Each(norms.collect::<Result<_>>()?))
        }
    }
}

/// The embedding and the head: the checkpoint's own, or else the verifier's.
fn tables(
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
