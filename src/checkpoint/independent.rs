//! Independent drafters: ordinary causal language models, as transformers saves them, from settings and
//! tensors to a description that can be run.

use super::RowSource;
use super::config::Settings;
use super::decoder::{self, Decoder, Family, LayerForm, LayerReader, Sizes};
use super::report::Report;
use super::speculator::{Entry, Method, Speculator, refuse_quantized, why_unneeded};
use super::verifier::Verifier;
use super::weights::{Tensor, Weights};
use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// The model types that can be run, and the classes that have them.
const MODELS: [(&str, &str, Family); 4] = [
    ("llama", "LlamaForCausalLM", Family::Llama),
    ("mistral", "MistralForCausalLM", Family::Mistral),
    ("qwen2", "Qwen2ForCausalLM", Family::Qwen2),
    ("qwen3", "Qwen3ForCausalLM", Family::Qwen3),
];

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Whether a configuration that names no kind of speculator is that of a model that drafts as it is.
pub(super) fn is_language_model(config: &Map<String, Value>) -> bool {
    let model_type = config.get("model_type").and_then(Value::as_str);
    let Some((_, class, _)) = MODELS.iter().find(|(name, ..)| Some(*name) == model_type) else {
        return false;
    };
    match config.get("architectures") {
        None | Some(Value::Null) => true,
        Some(Value::Array(classes)) => classes.iter().all(|name| name == class),
        Some(_) => false,
    }
}

/// Reads the language model whose configuration is `top`.
pub(super) fn read(
    top: &mut Settings,
    mut weights: Weights,
    verifier: &Verifier,
    report: &mut Report,
) -> Result<Speculator> {
    refuse_quantized(top)?;
    let family = family(top)?;
    // A wrong number would leave layers out, which nothing else notices.
    if !top.has("num_hidden_layers") {
        return Err(top.unexpected("num_hidden_layers", "the number of layers"));
    }
    let own = Sizes::read(top, family, (&weights, "model.layers.0."), report)?;
    let sizes = beside_target(own, verifier, report);
    let decoder = Decoder::read(top, sizes, family, report)?;
    let layers = {
        let windows = decoder::windows(top, family, sizes.layers, report)?;
        let mut reader = LayerReader::new(top, &mut weights, &sizes, family, report)?;
        let mut read = |(index, window)| {
            let prefix = format!("model.layers.{index}.");
            reader.read(LayerForm { window, ..LayerForm::ordinary(&prefix) })
        };
        windows.into_iter().enumerate().map(&mut read).collect::<Result<_>>()?
    };
    let norm = weights.required("model.norm.weight", &[sizes.hidden], report)?;
    let embedding = table(EMBEDDING, &mut weights, (&own, &sizes), report)?;
    let is_tied = is_tied(top, &weights)?;
    let head = match is_tied {
        true => RowSource::Embedding,
        false => RowSource::Tensor(table(HEAD, &mut weights, (&own, &sizes), report)?),
    };
    verifier.report_unneeded(false, false, report);
    weights.finish(report, |name| match name {
        HEAD if is_tied => Some("the head is tied to the embedding"),
        _ => why_unneeded(name),
    })?;
    let is_reduced = sizes.draft_vocabulary < sizes.vocabulary;
    Ok(Speculator {
        kind: "independent",
        decoder,
        features: Vec::new(),
        embedding: RowSource::Tensor(embedding),
        head,
        draft_token_ids: is_reduced.then(|| (0..sizes.draft_vocabulary as i32).collect()),
        layers,
        norm: Some(norm),
        method: Method::Sequential { entry: Entry::Embedding, norm_output: false },
    })
}

fn family(top: &mut Settings) -> Result<Family> {
    let model_type = top.text("model_type")?;
    if let Some((.., family)) = MODELS.iter().find(|(name, ..)| Some(*name) == model_type) {
        return Ok(*family);
    }
    let names: Vec<_> = MODELS.iter().map(|(name, ..)| format!("{name:?}")).collect();
    let expected = format!("one of {}", names.join(", "));
    Err(Error::unsupported(top.unexpected("model_type", &expected).to_string()))
}

/// The sizes of a model with these of its own beside a target. Models of one family have common tokens
/// and padded tables of several lengths: only tokens that both have are drafted.
fn beside_target(own: Sizes, verifier: &Verifier, report: &mut Report) -> Sizes {
    let vocabulary = verifier.vocabulary().unwrap_or(own.vocabulary);
    if vocabulary != own.vocabulary {
        report.warn(format!(
            "vocab_size: the target has {vocabulary} tokens, the drafter {}: those that both have are \
             drafted",
            own.vocabulary
        ));
    }
    Sizes { vocabulary, draft_vocabulary: own.vocabulary.min(vocabulary), ..own }
}

/// A table with a row for each of the model's tokens, of which those of the drafted ones are kept. It may
/// be padded with rows that stand for no token.
fn table(
    name: &str,
    weights: &mut Weights,
    (own, sizes): (&Sizes, &Sizes),
    report: &mut Report,
) -> Result<Tensor> {
    let stored = weights.peek(name).and_then(|tensor| tensor.shape().first().copied());
    let rows = stored.unwrap_or(0).max(own.vocabulary);
    let tensor = weights.required(name, &[rows, sizes.hidden], report)?;
    Ok(tensor.first_rows(sizes.draft_vocabulary))
}

/// Whether the head is the embedding. Files leave out a tied head, and some the setting as well.
fn is_tied(top: &mut Settings, weights: &Weights) -> Result<bool> {
    const KEY: &str = "tie_word_embeddings";
    let tied = top.flag(KEY)?;
    Ok(tied.unwrap_or_else(|| top.assume(KEY, weights.peek(HEAD).is_none())))
}
