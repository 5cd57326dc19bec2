//! The decoder layers that drafters are made of: their shape, their windows, their weights.

use super::config::Settings;
use super::report::Report;
use super::rope::{self, Rope};
use super::speculator::Convolution;
use super::weights::{Linear, Tensor, Weights};
use crate::error::{Error, Result};

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
    /// Whether the window is instead this many positions before the query's block, which it leaves whole.
    pub window_from_block: bool,
    /// Whether a query sees all of its block, and not only what stands before it there.
    pub sees_block: bool,
    /// The convolution of DFlash2 around the attention.
    pub attention_convolution: Option<Convolution>,
    /// The convolution of DFlash2 around the MLP.
    pub mlp_convolution: Option<Convolution>,
}

/// The two decoder layers that drafters are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    /// Norms each query and key head.
    Qwen3,
}

/// The class defaults of a family, for settings that a file leaves out.
pub(super) struct Defaults {
    pub(super) vocabulary: usize,
    pub(super) intermediate_size: usize,
    pub(super) max_position: usize,
}

impl Family {
    pub(super) fn defaults(self) -> Defaults {
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
        let default = family.defaults().max_position;
        let max_position = layer.integer_or("max_position_embeddings", 1..=MOST_TOKENS, default)?;
        Ok(Self {
            sizes,
            epsilon: epsilon(layer)?,
            activation: activation(layer)?,
            rope: rope::read(layer, sizes.head_dim, max_position, report)?,
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
    /// The width between the two halves of an MLP.
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
        weights: &Weights,
        prefix: &str,
    ) -> Result<Self> {
        let defaults = family.defaults();
        let vocabulary = layer.integer_or("vocab_size", 1..=MOST_TOKENS, defaults.vocabulary)?;
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
                let stored = rows_of(weights, &format!("{prefix}self_attn.q_proj.weight"));
                let rows = stored.unwrap_or(hidden);
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
}

impl<'n> LayerForm<'n> {
    /// An ordinary layer whose queries see all positions before them.
    pub(super) fn ordinary(prefix: &'n str) -> Self {
        Self { prefix, reads_embedding: false, norms_input: true, window: None }
    }
}

/// Reads decoder layers.
pub(super) struct LayerReader<'r> {
    weights: &'r mut Weights,
    report: &'r mut Report,
    sizes: &'r Sizes,
    family: Family,
    attention_bias: bool,
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
        let attention_bias = bias("attention_bias", ".self_attn.")?;
        // The Qwen3 class has no such biases.
        let mlp_bias = family == Family::Llama && bias("mlp_bias", ".mlp.")?;
        Ok(Self { weights, report, sizes, family, attention_bias, mlp_bias })
    }

    /// Reads a layer.
    pub(super) fn read(&mut self, form: LayerForm<'_>) -> Result<DecoderLayer> {
        let Sizes { hidden, intermediate, heads, kv_heads, head_dim, .. } = *self.sizes;
        let input = if form.reads_embedding { 2 * hidden } else { hidden };
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let part = |name: &str| format!("{}{name}", form.prefix);
        let norms_heads = self.family == Family::Qwen3;
        let mut norm = |name: &str, present: bool| {
            present.then(|| self.vector(&part(name), hidden)).transpose()
        };
        Ok(DecoderLayer {
            input_norm: norm("input_layernorm", form.norms_input)?,
            hidden_norm: norm("hidden_norm", form.reads_embedding)?,
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
            window: form.window,
            window_from_block: false,
            sees_block: false,
            attention_convolution: None,
            mlp_convolution: None,
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
