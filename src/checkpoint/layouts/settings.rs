//! The settings of decoders as transformers writes them: flat ones of research repositories, with the
//! defaults of the format's converters where they say nothing.

use super::super::config::{as_integer, merge};
use super::super::header::ElementType;
use super::Source;
use crate::error::Result;
use crate::tensor::Dtype;
use serde_json::{Map, Value, json};

/// The versions of the format, and of the library whose settings it has, that are written.
pub(super) const SPECULATORS_VERSION: &str = "0.9.0";
pub(super) const TRANSFORMERS_VERSION: &str = "5.17.0";

/// What the format calls a type of weights.
pub(super) fn torch_dtype(element: &ElementType) -> Option<&'static str> {
    match element {
        ElementType::Float(Dtype::F32) => Some("float32"),
        ElementType::Float(Dtype::F16) => Some("float16"),
        ElementType::Float(Dtype::Bf16) => Some("bfloat16"),
        _ => None,
    }
}

/// What converters of the format take a missing setting for.
pub(super) struct Defaults {
    pub(super) kv_heads: Option<usize>,
    pub(super) max_position: usize,
    pub(super) bos: i64,
    pub(super) eos: i64,
}

/// The decoder of a source in the style of Llama, or of Qwen3 where it norms its query and key heads.
pub(super) fn llama(
    source: &mut Source<'_>,
    defaults: &Defaults,
    (layers, first): (usize, &str),
) -> Result<Map<String, Value>> {
    let top = &mut source.top;
    let mut size = |key: &str, default: usize| -> Result<usize> {
        Ok(top.integer(key, 1..=1 << 31)?.unwrap_or(default))
    };
    let hidden = size("hidden_size", 4096)?;
    let heads = size("num_attention_heads", 32)?;
    let kv_heads = size("num_key_value_heads", defaults.kv_heads.unwrap_or(heads))?;
    let intermediate = size("intermediate_size", 11_008)?;
    let own_positions = size("max_position_embeddings", defaults.max_position)?;
    let head_dim = head_dim(source, first, (hidden, heads))?;
    let max_position = own_positions.max(source.verifier.max_position().unwrap_or(0));
    // Biases that are stored are meant, unless the settings say otherwise.
    let has_attention_bias = has_biases(source, &format!("{first}self_attn."));
    let has_mlp_bias = has_biases(source, &format!("{first}mlp."));
    let top = &mut source.top;
    let attention_bias = top.flag("attention_bias")?.or(top.flag("qkv_bias")?);
    let mut layer = json!({
        "attention_bias": attention_bias.unwrap_or(has_attention_bias),
        "attention_dropout": 0.0,
        "bos_token_id": defaults.bos,
        "dtype": Value::Null,
        "eos_token_id": defaults.eos,
        "head_dim": head_dim,
        "hidden_act": top.text("hidden_act")?.unwrap_or("silu"),
        "hidden_size": hidden,
        "initializer_range": top.positive("initializer_range")?.unwrap_or(0.02),
        "intermediate_size": intermediate,
        "max_position_embeddings": max_position,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "pad_token_id": Value::Null,
        "rms_norm_eps": top.positive("rms_norm_eps")?.unwrap_or(1e-6),
        "tie_word_embeddings": false,
        "use_cache": true,
    });
    let mut layer = layer.as_object_mut().map(std::mem::take).unwrap_or_default();
    layer.insert("rope_parameters".into(), rope(source)?);
    layer.insert("dtype".into(), source.dtype());
    let family = if source.peek(&format!("{first}self_attn.q_norm.weight")).is_some() {
        let types = vec![Value::from("full_attention"); layers];
        json!({"model_type": "qwen3", "layer_types": types, "max_window_layers": layers,
               "sliding_window": Value::Null, "use_sliding_window": false})
    } else {
        let has_bias = source.top.flag("mlp_bias")?.unwrap_or(has_mlp_bias);
        json!({"mlp_bias": has_bias, "pretraining_tp": 1})
    };
    layer.extend(family.as_object().cloned().unwrap_or_default());
    for key in COPIED {
        if let Some(value) = source.top.all().get(key) {
            layer.insert(key.into(), value.clone());
        }
    }
    source.top.unneeded(&COPIED);
    source.top.unneeded(&["model_type", "num_hidden_layers"]);
    Ok(layer)
}

/// Whether one of the maps below a module has a bias.
fn has_biases(source: &Source<'_>, module: &str) -> bool {
    let is_bias = |name: &str| name.starts_with(module) && name.ends_with("_proj.bias");
    !source.names(is_bias).is_empty()
}

/// Settings that say the same in the format.
const COPIED: [&str; 4] =
    ["layer_types", "max_window_layers", "sliding_window", "use_sliding_window"];

/// The width of a head: as the settings say, or else as the projections of queries are.
fn head_dim(
    source: &mut Source<'_>,
    first: &str,
    (hidden, heads): (usize, usize),
) -> Result<usize> {
    if let Some(head_dim) = source.top.integer("head_dim", 1..=1 << 20)? {
        return Ok(head_dim);
    }
    let stored = source.matrix(&format!("{first}self_attn.q_proj.weight"));
    let stored = stored.map(|[rows, _]| rows).filter(|rows| rows.is_multiple_of(heads));
    let stored = stored.map_or(hidden / heads, |rows| rows / heads);
    if stored != hidden / heads {
        source.note(format!("head_dim is not set: {stored}, as the query projection is stored"));
    }
    Ok(stored)
}

/// How positions rotate, as one object: older configurations have a base and a scaling apart.
fn rope(source: &mut Source<'_>) -> Result<Value> {
    let top = &mut source.top;
    let theta = top.positive("rope_theta")?;
    let mut rope = Map::new();
    for key in ["rope_scaling", "rope_parameters"] {
        if top.section(key)?.is_some()
            && let Some(section) = top.object(key)
        {
            merge(&mut rope, section);
        }
    }
    // The name of the kind has changed.
    if let Some(kind) = rope.remove("type") {
        rope.entry("rope_type").or_insert(kind);
    }
    rope.entry("rope_type").or_insert("default".into());
    rope.entry("rope_theta").or_insert(theta.unwrap_or(10_000.0).into());
    Ok(rope.into())
}

/// The decoder of a source whose configuration is already that of one, without what is not of the decoder.
pub(super) fn decoder_of(source: &mut Source<'_>, others: &[&str]) -> Result<Map<String, Value>> {
    let all = source.top.all().clone();
    let is_own =
        |key: &String| !others.contains(&key.as_str()) && !NOT_OF_DECODERS.contains(&key.as_str());
    let mut layer: Map<_, _> = all.into_iter().filter(|(key, _)| is_own(key)).collect();
    let rope = rope(source)?;
    for key in ["rope_theta", "rope_scaling"] {
        layer.remove(key);
    }
    layer.insert("rope_parameters".into(), rope);
    let stated = layer.remove("torch_dtype").or_else(|| layer.remove("dtype"));
    let dtype = stated.filter(|dtype| dtype.is_string()).unwrap_or_else(|| source.dtype());
    layer.insert("dtype".into(), dtype);
    layer.entry("tie_word_embeddings").or_insert(false.into());
    Ok(layer)
}

/// Settings of a flat configuration that say nothing of its decoder.
const NOT_OF_DECODERS: [&str; 5] =
    ["architectures", "auto_map", "transformers_version", "speculators_version", "_name_or_path"];

/// The number of drafts that a host wants, or what the format's converter writes.
pub(super) fn drafts(source: &mut Source<'_>, key: &str, default: usize) -> Result<usize> {
    Ok(source.top.integer(key, 1..=1024)?.unwrap_or(default))
}

/// Refuses a setting of the network that this library does not have, unless it has no effect.
pub(super) fn neutral(source: &mut Source<'_>, inner: &Map<String, Value>) -> Result<()> {
    const ALL: [(&str, &str); 4] = [
        ("output_multiplier", "1"),
        ("input_embedding_scale", "1"),
        ("final_logit_softcapping", "null"),
        ("attention_sink_bias", "false"),
    ];
    for (key, expected) in ALL {
        let outer = source.top.all().get(key);
        for value in outer.into_iter().chain(inner.get(key)) {
            let is_neutral = match value {
                Value::Null | Value::Bool(false) => true,
                number if expected == "1" => as_integer(number).is_some_and(|number| number == 1),
                _ => false,
            };
            if !is_neutral {
                let found = super::super::config::found(value);
                let text = format!("{key}: expected {expected}, found {found}");
                let file = source.file.display();
                return Err(crate::error::Error::unsupported(format!("{file}: {text}")));
            }
        }
    }
    Ok(())
}
