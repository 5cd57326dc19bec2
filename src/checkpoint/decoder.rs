//! The decoder layers that drafters are made of: their shape, their windows, their weights.

use super::config::Settings;
use super::experts::{ExpertSizes, Experts};
use super::report::Report;
use super::rope::{self, Rope};
use super::speculator::Convolution;
use super::weights::{Linear, Tensor, Weights};
use crate::error::{Error, Result};
use serde_json::Value;

/// Token ids are 32-bit.
pub(super) const MOST_TOKENS: usize = i32::MAX as usize;

/// Bounds of the widths; far above any model, far below what overflows.
pub(super) const WIDEST: usize = 1 << 20;

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

/// A decoder layer. It attends to its normed input; layer 0 of EAGLE-3 to the normed embedding and the
/// normed hidden state side by side, the embedding first.
#[derive(Clone, Debug)]
pub struct DecoderLayer {
    /// The norm of what it attends to, if there is one: where that is two, of the embedding.
    pub input_norm: Option<Tensor>,
    /// The norm of the hidden state, where the layer attends to an embedding, too.
    pub hidden_norm: Option<Tensor>,
    /// The projection to queries.
    pub query: Linear,
    /// The projection whose sigmoid the attention of each head is multiplied by.
    pub attention_gate: Option<Linear>,
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
    /// The MLP, or what stands in its place.
    pub mlp: Mlp,
    /// A query sees this many positions, itself included; `None`: all before it.
    pub window: Option<usize>,
    /// Whether the window is instead this many positions before the query's block, which it leaves whole.
    pub window_from_block: bool,
    /// Whether a query sees all of its block, and not only what stands before it there.
    pub sees_block: bool,
    /// The convolution of DFlash2 around the attention.
    pub attention_convolution: Option<Convolution>,
    /// The convolution of DFlash2 around the MLP.
    pub mlp_convolution: Option<Convolution>,
}

/// What a layer does after its attention.
#[expect(clippy::large_enum_variant, reason = "there are few of each model")]
#[derive(Clone, Debug)]
pub enum Mlp {
    /// One MLP.
    Gated(GatedMlp),
    /// A mixture of many.
    Experts(Experts),
}

/// An MLP of two halves, one of which gates the other.
#[derive(Clone, Debug)]
pub struct GatedMlp {
    /// The half that is activated.
    pub gate: Linear,
    /// The half that is multiplied with the activated one.
    pub up: Linear,
    /// The way back to the residual stream.
    pub down: Linear,
}

/// The decoder layers that drafters are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    /// Slides in all layers.
    Mistral,
    /// Adds biases to queries, keys and values.
    Qwen2,
    /// Norms each query and key head.
    Qwen3,
    /// The same with gated attention, norms whose gains are stored as their distance from 1, and, as a
    /// rule, experts.
    Qwen3Next,
    /// As the one before, without experts.
    Qwen35,
    /// As the one before, with experts.
    Qwen35Moe,
}

/// The class defaults of a family, for settings that a file leaves out.
pub(super) struct Defaults {
    pub(super) vocabulary: usize,
    pub(super) hidden_size: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    /// `None`: as many as query heads.
    pub(super) kv_heads: Option<usize>,
    pub(super) intermediate_size: usize,
    pub(super) max_position: usize,
    /// The part of a head that rotates.
    pub(super) rotated: f64,
}

impl Family {
    /// Whether the attention is gated, and the gains of norms are stored as their distance from 1.
    fn is_hybrid(self) -> bool {
        matches!(self, Self::Qwen3Next | Self::Qwen35 | Self::Qwen35Moe)
    }

    pub(super) fn defaults(self) -> Defaults {
        let old = Defaults {
            vocabulary: 32_000,
            hidden_size: 4096,
            layers: 1,
            heads: 32,
            kv_heads: None,
            intermediate_size: 11_008,
            max_position: 2048,
            rotated: 1.0,
        };
        let hybrid = Defaults { heads: 16, max_position: 32_768, rotated: 0.25, ..old };
        match self {
            Self::Llama => old,
            Self::Mistral => Defaults {
                kv_heads: Some(8),
                intermediate_size: 14_336,
                max_position: 131_072,
                ..old
            },
            Self::Qwen2 | Self::Qwen3 => Defaults {
                vocabulary: 151_936,
                intermediate_size: 22_016,
                max_position: 32_768,
                ..old
            },
            Self::Qwen3Next => Defaults {
                vocabulary: 151_936,
                hidden_size: 2048,
                layers: 48,
                kv_heads: Some(2),
                intermediate_size: 5632,
                ..hybrid
            },
            Self::Qwen35 => Defaults {
                vocabulary: 248_320,
                layers: 32,
                kv_heads: Some(4),
                intermediate_size: 12_288,
                ..hybrid
            },
            Self::Qwen35Moe => Defaults {
                vocabulary: 248_320,
                hidden_size: 2048,
                layers: 40,
                kv_heads: Some(2),
                ..hybrid
            },
        }
    }

    /// The gain of a norm, from what is stored.
    pub(super) fn gain(self, stored: Tensor) -> Tensor {
        if self.is_hybrid() { stored.one_plus() } else { stored }
    }
}

/// The family that a drafter's settings, or else its tensors, tell.
pub(super) fn family(layer: &mut Settings, weights: &Weights, prefix: &str) -> Result<Family> {
    match layer.text("model_type")? {
        Some("llama") => Ok(Family::Llama),
        Some("qwen3") => Ok(Family::Qwen3),
        Some(other) => {
            let (file, path) = (layer.file().display(), layer.path_of("model_type"));
            let text = format!("{path}: expected \"llama\" or \"qwen3\", found {other:?}");
            Err(Error::unsupported(format!("{file}: {text}")))
        }
        None if weights.peek(&format!("{prefix}self_attn.q_norm.weight")).is_some() => {
            layer.assume("model_type", "qwen3");
            Ok(Family::Qwen3)
        }
        None => {
            layer.assume("model_type", "llama");
            Ok(Family::Llama)
        }
    }
}

/// What the layers of a drafter share.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// Its shape.
    pub sizes: Sizes,
    /// What RMS norms add to the mean square.
    pub epsilon: f32,
    /// The gate's activation.
    pub activation: Activation,
    /// How positions rotate queries and keys.
    pub rope: Rope,
    /// Positions lie below this.
    pub max_position: usize,
}

impl Decoder {
    /// Reads what the layers of a drafter with these sizes share.
    pub(super) fn read(
        layer: &mut Settings,
        sizes: Sizes,
        family: Family,
        report: &mut Report,
    ) -> Result<Self> {
        let default = family.defaults();
        let positions = 1..=MOST_TOKENS;
        let max_position =
            layer.integer_or("max_position_embeddings", positions, default.max_position)?;
        let head = rope::Head { dim: sizes.head_dim, rotated: default.rotated };
        Ok(Self {
            sizes,
            epsilon: epsilon(layer)?,
            activation: activation(layer)?,
            rope: rope::read(layer, head, max_position, report)?,
            max_position,
        })
    }
}

/// What RMS norms add to the mean square.
fn epsilon(layer: &mut Settings) -> Result<f32> {
    let epsilon = layer.positive_or("rms_norm_eps", 1e-6)? as f32;
    if !(f32::MIN_POSITIVE..=1.0).contains(&epsilon) {
        return Err(layer.unexpected("rms_norm_eps", "a small number above 0"));
    }
    Ok(epsilon)
}

/// The shape of a drafter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Tokens of the target.
    pub vocabulary: usize,
    /// Tokens that can be drafted.
    pub draft_vocabulary: usize,
    /// The width of the residual stream.
    pub hidden: usize,
    /// The width between the two halves of an MLP: where there are experts, of the shared one.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, which divide the query heads.
    pub kv_heads: usize,
    /// Elements of a head; `heads * head_dim` need not be `hidden`.
    pub head_dim: usize,
    /// Decoder layers.
    pub layers: usize,
}

impl Sizes {
    /// The sizes of a drafter whose first layer's tensors begin with `prefix`, and which drafts all tokens.
    pub(super) fn read(
        layer: &mut Settings,
        family: Family,
        (weights, prefix): (&Weights, &str),
        report: &mut Report,
    ) -> Result<Self> {
        let default = family.defaults().intermediate_size;
        let intermediate = layer.integer_or("intermediate_size", 1..=16 * WIDEST, default)?;
        Self::with_intermediate(intermediate, layer, family, (weights, prefix), report)
    }

    /// The same, with an MLP whose width is known.
    pub(super) fn with_intermediate(
        intermediate: usize,
        layer: &mut Settings,
        family: Family,
        (weights, prefix): (&Weights, &str),
        report: &mut Report,
    ) -> Result<Self> {
        let defaults = family.defaults();
        let vocabulary = layer.integer_or("vocab_size", 1..=MOST_TOKENS, defaults.vocabulary)?;
        let heads = layer.integer_or("num_attention_heads", 1..=WIDEST, defaults.heads)?;
        let hidden = layer.integer_or("hidden_size", 1..=WIDEST, defaults.hidden_size)?;
        let kv_heads = match layer.integer("num_key_value_heads", 1..=heads)? {
            Some(kv_heads) => kv_heads,
            None => layer.assume("num_key_value_heads", defaults.kv_heads.unwrap_or(heads)),
        };
        if !heads.is_multiple_of(kv_heads) {
            return Err(layer.unexpected("num_key_value_heads", &format!("a divisor of {heads}")));
        }
        let head_dim = {
            let rows = |map: &str| rows_of(weights, &format!("{prefix}self_attn.{map}.weight"));
            let gated = if family.is_hybrid() { 2 } else { 1 };
            let stored = rows("q_proj").map(|rows| rows / gated / heads);
            let stored = stored.filter(|&stored| rows("k_proj") == Some(stored * kv_heads));
            head_dim(layer, hidden / heads, stored, report)?
        };
        let layers = layer.integer_or("num_hidden_layers", 1..=1024, defaults.layers)?;
        Ok(Self {
            vocabulary,
            draft_vocabulary: vocabulary,
            hidden,
            intermediate,
            heads,
            kv_heads,
            head_dim,
            layers,
        })
    }

    /// These sizes with the number of tokens that can be drafted, as settings or the stored head tell.
    pub(super) fn of_reduced_vocabulary(
        self,
        top: &mut Settings,
        weights: &Weights,
    ) -> Result<Self> {
        let draft_vocabulary = match top.integer("draft_vocab_size", 1..=self.vocabulary)? {
            Some(draft) => draft,
            None => {
                let stored = rows_of(weights, "lm_head.weight").unwrap_or(32_000);
                top.assume("draft_vocab_size", stored.clamp(1, self.vocabulary))
            }
        };
        Ok(Self { draft_vocabulary, ..self })
    }
}

/// The elements of a head: what the settings say, or else what the stored projection to queries has.
fn head_dim(
    layer: &mut Settings,
    ratio: usize,
    stored: Option<usize>,
    report: &mut Report,
) -> Result<usize> {
    const KEY: &str = "head_dim";
    let head_dim = match (layer.integer(KEY, 1..=WIDEST)?, stored) {
        // The first converter knew only heads that divide the hidden size, and wrote that.
        (Some(stated), Some(stored)) if stated == ratio && stored != stated && stored > 0 => {
            let path = layer.path_of(KEY);
            report.correct(format!("{path}: {stored}, as stored, instead of {stated}"));
            stored
        }
        (Some(stated), _) => stated,
        (None, stored) => layer.assume(KEY, stored.unwrap_or(ratio)),
    };
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        let text = format_args!("expected an even number, found {head_dim}");
        return Err(layer.wrong(KEY, text));
    }
    Ok(head_dim)
}

fn rows_of(weights: &Weights, name: &str) -> Option<usize> {
    weights.peek(name)?.shape().first().copied()
}

/// The activation of the MLPs.
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

/// The window of each layer.
pub(super) fn windows(
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
        // The Mistral class has a window unless it is said to have none.
        (Family::Mistral, _) if !layer.mentions("sliding_window") => {
            Some(layer.assume("sliding_window", 4096))
        }
        (Family::Llama | Family::Mistral, _) => stored,
        (_, Some(true)) => Some(stored.unwrap_or_else(|| layer.assume("sliding_window", 4096))),
        (_, _) => None,
    };
    let Some(kinds) = kinds else {
        let first = match family {
            Family::Llama => layers,
            Family::Mistral => 0,
            _ => first_sliding.unwrap_or(28),
        };
        return Ok((0..layers).map(|index| window.filter(|_| index >= first)).collect());
    };
    if kinds.len() != layers {
        return Err(layer.unexpected("layer_types", &format!("a list of {layers}")));
    }
    if window.is_none() && kinds.iter().any(|kind| kind == "sliding_attention") {
        // The library trains such layers with full attention, too.
        let path = layer.path_of("layer_types");
        report.correct(format!(
            "{path}: sliding layers have no effective sliding_window: full attention"
        ));
    }
    let window_of = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Ok(None),
        Some("sliding_attention") => Ok(window),
        _ => {
            let expected = "\"full_attention\" or \"sliding_attention\" for each layer";
            Err(layer.unexpected("layer_types", expected))
        }
    };
    kinds.iter().map(window_of).collect()
}

/// How a decoder layer differs from others of a drafter.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerForm<'n> {
    /// What the names of its tensors begin with.
    pub(super) prefix: &'n str,
    /// Whether it attends to the embedding beside the hidden state.
    pub(super) reads_embedding: bool,
    /// Whether it norms what it attends to.
    pub(super) norms_input: bool,
    /// A query sees this many positions.
    pub(super) window: Option<usize>,
    /// The experts that it has in the place of an MLP.
    pub(super) experts: Option<ExpertSizes>,
}

impl<'n> LayerForm<'n> {
    /// An ordinary layer whose queries see all positions before them.
    pub(super) fn ordinary(prefix: &'n str) -> Self {
        Self { prefix, reads_embedding: false, norms_input: true, window: None, experts: None }
    }
}

/// Reads decoder layers.
pub(super) struct LayerReader<'r> {
    weights: &'r mut Weights,
    report: &'r mut Report,
    sizes: &'r Sizes,
    family: Family,
    attention_bias: bool,
    output_bias: bool,
    mlp_bias: bool,
}

impl<'r> LayerReader<'r> {
    pub(super) fn new(
        layer: &mut Settings,
        weights: &'r mut Weights,
        sizes: &'r Sizes,
        family: Family,
        report: &'r mut Report,
    ) -> Result<Self> {
        let mut bias = |key: &str, part: &str| -> Result<bool> {
            let stored = weights.any(|name| name.contains(part) && name.ends_with(".bias"));
            let wanted = layer.flag_or_stored(key, stored, report)?;
            if wanted && !stored {
                report.correct(format!("{key} is set, but no bias is stored: none is added"));
            }
            Ok(wanted && stored)
        };
        // Whatever is set or stored, the Qwen2 class has the biases of its three projections and no others.
        let output_bias = family != Family::Qwen2 && bias("attention_bias", ".self_attn.")?;
        let attention_bias = family == Family::Qwen2 || output_bias;
        // Only the Llama class has such biases.
        let mlp_bias = family == Family::Llama && bias("mlp_bias", ".mlp.")?;
        Ok(Self { weights, report, sizes, family, attention_bias, output_bias, mlp_bias })
    }

    /// Reads a layer.
    pub(super) fn read(&mut self, form: LayerForm<'_>) -> Result<DecoderLayer> {
        let Sizes { hidden, intermediate, heads, kv_heads, head_dim, .. } = *self.sizes;
        let input = if form.reads_embedding { 2 * hidden } else { hidden };
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let part = |name: &str| format!("{}{name}", form.prefix);
        let norms_heads = !matches!(self.family, Family::Llama | Family::Mistral | Family::Qwen2);
        let mut norm = |name: &str, present: bool| {
            present.then(|| self.vector(&part(name), hidden)).transpose()
        };
        let input_norm = norm("input_layernorm", form.norms_input)?;
        let hidden_norm = norm("hidden_norm", form.reads_embedding)?;
        let (query, attention_gate) = self.query(&part("self_attn.q_proj"), queries, input)?;
        Ok(DecoderLayer {
            input_norm,
            hidden_norm,
            query,
            attention_gate,
            key: self.linear(&part("self_attn.k_proj"), keys, input, self.attention_bias)?,
            value: self.linear(&part("self_attn.v_proj"), keys, input, self.attention_bias)?,
            output: self.output(&part("self_attn.o_proj"), hidden, queries)?,
            query_norm: self.head_norm(norms_heads, &part("self_attn.q_norm"))?,
            key_norm: self.head_norm(norms_heads, &part("self_attn.k_norm"))?,
            post_attention_norm: self.vector(&part("post_attention_layernorm"), hidden)?,
            mlp: match form.experts {
                None => Mlp::Gated(self.gated_mlp(&part("mlp."), intermediate)?),
                Some(sizes) => Mlp::Experts(self.experts(&part("mlp."), &sizes)?),
            },
            window: form.window,
            window_from_block: false,
            sees_block: false,
            attention_convolution: None,
            mlp_convolution: None,
        })
    }

    fn vector(&mut self, module: &str, len: usize) -> Result<Tensor> {
        let stored = self.weights.required(&format!("{module}.weight"), &[len], self.report)?;
        Ok(self.family.gain(stored))
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

    /// The projection to queries, and the one to the gate of the attention, whose outputs alternate with
    /// those of the queries, head by head.
    fn query(
        &mut self,
        module: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<(Linear, Option<Linear>)> {
        if !self.family.is_hybrid() {
            return Ok((self.linear(module, outputs, inputs, self.attention_bias)?, None));
        }
        let both = self.linear(module, 2 * outputs, inputs, self.attention_bias)?;
        let [query, gate] = both.alternating(self.sizes.head_dim);
        Ok((query, Some(gate)))
    }

    fn gated_mlp(&mut self, prefix: &str, inner: usize) -> Result<GatedMlp> {
        let (hidden, bias) = (self.sizes.hidden, self.mlp_bias);
        Ok(GatedMlp {
            gate: self.linear(&format!("{prefix}gate_proj"), inner, hidden, bias)?,
            up: self.linear(&format!("{prefix}up_proj"), inner, hidden, bias)?,
            down: self.linear(&format!("{prefix}down_proj"), hidden, inner, bias)?,
        })
    }

    fn experts(&mut self, prefix: &str, sizes: &ExpertSizes) -> Result<Experts> {
        let (hidden, ExpertSizes { count, inner, .. }) = (self.sizes.hidden, *sizes);
        let mut tensor = |name: &str, shape: &[usize]| {
            self.weights.required(&format!("{prefix}{name}"), shape, self.report)
        };
        Ok(Experts {
            router: tensor("gate.weight", &[count, hidden])?,
            gate_up: tensor("experts.gate_up_proj", &[count, 2 * inner, hidden])?,
            down: tensor("experts.down_proj", &[count, hidden, inner])?,
            shared_gate: tensor("shared_expert_gate.weight", &[1, hidden])?,
            shared: self.gated_mlp(&format!("{prefix}shared_expert."), sizes.shared)?,
            chosen: sizes.chosen,
            renormalizes: sizes.renormalizes,
        })
    }

    /// The output projection, which some layers leave without a bias though the others have one.
    fn output(&mut self, module: &str, outputs: usize, inputs: usize) -> Result<Linear> {
        let name = format!("{module}.bias");
        let mut output = self.linear(module, outputs, inputs, false)?;
        if self.output_bias {
            output.bias = self.weights.optional(&name, &[outputs], self.report)?;
            if output.bias.is_none() {
                self.report.absent.push((name.clone(), "nothing is added".into()));
                self.report.correct(format!("{name} is not stored: nothing is added"));
            }
        }
        Ok(output)
    }
}
