//! A plain language model of Llama, Mistral, Qwen2 or Qwen3 layers, in double precision: what a host's
//! engine computes. It fills in what the reference data leaves out, and continues texts past their end.

use super::golden::{Tensors, read_json};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// A target with the keys and values of one text. Clones share the weights and go on with texts of
/// their own.
#[derive(Clone, Debug)]
pub struct Target {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    epsilon: f64,
    theta: f64,
    embedding: Arc<Map>,
    layers: Arc<[Layer]>,
    norm: Vec<f64>,
    head: Arc<Map>,
    /// Keys and values, per layer, one row per position.
    cache: Vec<Vec<(Vec<f64>, Vec<f64>)>>,
}

/// What the target computes at one position.
#[derive(Clone, Debug)]
pub struct Position {
    /// The residual stream after 0, 1, … layers.
    pub hidden: Vec<Vec<f32>>,
    pub final_norm: Vec<f32>,
    pub logits: Vec<f32>,
}

#[derive(Debug)]
struct Map {
    inputs: usize,
    weight: Vec<f64>,
    bias: Option<Vec<f64>>,
}

#[derive(Debug)]
struct Layer {
    input_norm: Vec<f64>,
    query: Map,
    key: Map,
    value: Map,
    output: Map,
    query_norm: Option<Vec<f64>>,
    key_norm: Option<Vec<f64>>,
    mlp_norm: Vec<f64>,
    gate: Map,
    up: Map,
    down: Map,
    /// How many positions a row sees, itself the last.
    window: usize,
}

impl Target {
    pub fn load(directory: &Path) -> Self {
        let config = read_json(&directory.join("config.json"));
        let tensors = Tensors::read(&directory.join("model.safetensors"));
        let size = |name: &str| config[name].as_u64().expect("a size") as usize;
        let hidden = size("hidden_size");
        let rope = &config["rope_parameters"];
        let theta =
            [&rope["rope_theta"], &config["rope_theta"]].into_iter().find_map(Value::as_f64);
        let rope_type = rope["rope_type"].as_str().unwrap_or("default");
        assert_eq!((rope_type, &config["rope_scaling"]), ("default", &Value::Null), "plain turns");
        let embedding = Map::read(&tensors, "model.embed_tokens", hidden);
        let tied = config["tie_word_embeddings"].as_bool().unwrap_or(false);
        let head = if tied { "model.embed_tokens" } else { "lm_head" };
        let layers = (0..size("num_hidden_layers"))
            .map(|index| Layer::read(&tensors, index, hidden, window(&config, index)));
        let layers: Arc<[Layer]> = layers.collect();
        Self {
            heads: size("num_attention_heads"),
            kv_heads: size("num_key_value_heads"),
            head_dim: size("head_dim"),
            epsilon: config["rms_norm_eps"].as_f64().expect("an epsilon"),
            theta: theta.unwrap_or(10_000.0),
            cache: layers.iter().map(|_| Vec::new()).collect(),
            norm: vector(&tensors, "model.norm.weight").expect("the final norm"),
            head: Arc::new(Map::read(&tensors, head, hidden)),
            embedding: Arc::new(embedding),
            layers,
        }
    }

    /// Runs the next token of the text.
    pub fn advance(&mut self, token: i32) -> Position {
        let width = self.embedding.inputs;
        let mut stream = self.embedding.weight[token as usize * width..][..width].to_vec();
        let mut hidden = vec![rounded(&stream)];
        for index in 0..self.layers.len() {
            self.attend(index, &mut stream);
            let layer = &self.layers[index];
            let normed = norm(&stream, &layer.mlp_norm, self.epsilon);
            let gated = layer.gate.apply(&normed).into_iter().zip(layer.up.apply(&normed));
            let gated: Vec<f64> =
                gated.map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
            add(&mut stream, &layer.down.apply(&gated));
            hidden.push(rounded(&stream));
        }
        let normed = norm(&stream, &self.norm, self.epsilon);
        let logits = rounded(&self.head.apply(&normed));
        Position { hidden, final_norm: rounded(&normed), logits }
    }

    /// Forgets the positions from `positions` on.
    pub fn rewind(&mut self, positions: usize) {
        self.cache.iter_mut().for_each(|rows| rows.truncate(positions));
    }

    /// Adds a layer's attention to the residual stream of the newest position.
    fn attend(&mut self, index: usize, stream: &mut [f64]) {
        let layer = &self.layers[index];
        let input = norm(stream, &layer.input_norm, self.epsilon);
        let position = self.cache[index].len();
        let query = self.turned(layer.query.apply(&input), layer.query_norm.as_deref(), position);
        let key = self.turned(layer.key.apply(&input), layer.key_norm.as_deref(), position);
        let value = layer.value.apply(&input);
        self.cache[index].push((key, value));
        let mut mixed = vec![0.0; query.len()];
        for head in 0..self.heads {
            let range = head * self.head_dim..(head + 1) * self.head_dim;
            let shared = head / (self.heads / self.kv_heads) * self.head_dim;
            let scale = (self.head_dim as f64).sqrt().recip();
            let rows = &self.cache[index];
            let rows = &rows[rows.len().saturating_sub(self.layers[index].window)..];
            let scores: Vec<f64> = rows
                .iter()
                .map(|(key, _)| dot(&query[range.clone()], &key[shared..][..self.head_dim]) * scale)
                .collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
            let total: f64 = weights.iter().sum();
            for ((_, value), weight) in rows.iter().zip(&weights) {
                for (sum, element) in mixed[range.clone()].iter_mut().zip(&value[shared..]) {
                    *sum += weight / total * element;
                }
            }
        }
        add(stream, &self.layers[index].output.apply(&mixed));
    }

    /// Norms each head where the layer does, then applies the rotary embedding.
    fn turned(&self, mut rows: Vec<f64>, weight: Option<&[f64]>, position: usize) -> Vec<f64> {
        let half = self.head_dim / 2;
        for head in rows.chunks_exact_mut(self.head_dim) {
            if let Some(weight) = weight {
                head.copy_from_slice(&norm(head, weight, self.epsilon));
            }
            for index in 0..half {
                let turns = self.theta.powf(-(index as f64) / half as f64);
                let (sine, cosine) = (position as f64 * turns).sin_cos();
                let (low, high) = (head[index], head[index + half]);
                head[index] = low * cosine - high * sine;
                head[index + half] = high * cosine + low * sine;
            }
        }
        rows
    }
}

impl Layer {
    fn read(tensors: &Tensors, index: usize, hidden: usize, window: usize) -> Self {
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let map = |part: &str, inputs| Map::read(tensors, &name(part), inputs);
        let optional = |part: &str| vector(tensors, &format!("{}.weight", name(part)));
        let needed = |part: &str| optional(part).expect("a norm");
        let map_to_hidden = |part: &str| {
            let elements = tensors.get(&format!("{}.weight", name(part))).expect("a map").len();
            map(part, elements / hidden)
        };
        Self {
            input_norm: needed("input_layernorm"),
            query: map("self_attn.q_proj", hidden),
            key: map("self_attn.k_proj", hidden),
            value: map("self_attn.v_proj", hidden),
            output: map_to_hidden("self_attn.o_proj"),
            query_norm: optional("self_attn.q_norm"),
            key_norm: optional("self_attn.k_norm"),
            mlp_norm: needed("post_attention_layernorm"),
            gate: map("mlp.gate_proj", hidden),
            up: map("mlp.up_proj", hidden),
            down: map_to_hidden("mlp.down_proj"),
            window,
        }
    }
}

impl Map {
    fn read(tensors: &Tensors, name: &str, inputs: usize) -> Self {
        let weight = vector(tensors, &format!("{name}.weight"));
        Self {
            inputs,
            weight: weight.unwrap_or_else(|| panic!("{name}: expected a weight")),
            bias: vector(tensors, &format!("{name}.bias")),
        }
    }

    fn apply(&self, input: &[f64]) -> Vec<f64> {
        assert_eq!(input.len(), self.inputs);
        let products = self.weight.chunks_exact(self.inputs).map(|row| dot(row, input));
        match &self.bias {
            None => products.collect(),
            Some(bias) => products.zip(bias).map(|(product, bias)| product + bias).collect(),
        }
    }
}

/// The window of a layer, as the classes of transformers have it.
fn window(config: &Value, layer: usize) -> usize {
    let slides = match config["model_type"].as_str().expect("a model type") {
        "mistral" => true,
        "qwen2" | "qwen3" => {
            config["use_sliding_window"] == true
                && layer as u64 >= config["max_window_layers"].as_u64().expect("a layer")
        }
        _ => false,
    };
    let window = config["sliding_window"].as_u64().filter(|_| slides);
    window.map_or(usize::MAX, |window| window as usize)
}

fn vector(tensors: &Tensors, name: &str) -> Option<Vec<f64>> {
    tensors.get(name).map(|numbers| numbers.iter().map(|&number| f64::from(number)).collect())
}

fn norm(input: &[f64], weight: &[f64], epsilon: f64) -> Vec<f64> {
    let scale = (dot(input, input) / input.len() as f64 + epsilon).sqrt().recip();
    input.iter().zip(weight).map(|(element, weight)| element * scale * weight).collect()
}

/// Eight sums side by side, as one alone would wait for each addition.
fn dot(left: &[f64], right: &[f64]) -> f64 {
    let ((left, left_rest), (right, right_rest)) = (left.as_chunks::<8>(), right.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (left, right) in left.iter().zip(right) {
        for (sum, (left, right)) in sums.iter_mut().zip(left.iter().zip(right)) {
            *sum += left * right;
        }
    }
    let rest: f64 = left_rest.iter().zip(right_rest).map(|(left, right)| left * right).sum();
    sums.iter().sum::<f64>() + rest
}

fn add(sum: &mut [f64], terms: &[f64]) {
    sum.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
}

fn rounded(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}
