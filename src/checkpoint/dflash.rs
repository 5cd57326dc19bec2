//! DFlash, and what the kinds have in common that are made of it: from settings and tensors to a
//! description that can be run.

use super::config::Settings;
use super::decoder::{self, Decoder, DecoderLayer, Family, LayerForm, LayerReader, Sizes};
use super::features::{listed_layers, projected};
use super::report::Report;
use super::speculator::{
    Block, BlockEntry, BlockHead, BlockLength, Confidence, FeatureFusion, FeatureNorm, Method,
    Speculator, decoder_settings, mask_token, tables, why_unneeded,
};
use super::verifier::Verifier;
use super::vocabulary;
use super::weights::{Linear, Tensor, Weights};
use crate::error::Result;

/// Whose reading of the format is followed where the library that trains these drafters and the engine
/// that runs most of them differ.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Semantics {
    /// Blocks are as long as in training, each layer has its own mask, windows end before the block.
    Library,
    /// Blocks are as long as the drafts take, one mask holds for all layers, windows move with the row.
    Vllm,
}

/// Reads the speculator whose configuration is `top`.
pub(super) fn read(
    top: &mut Settings,
    weights: Weights,
    verifier: &Verifier,
    report: &mut Report,
) -> Result<Speculator> {
    let description = Description {
        kind: "dflash",
        default_sample_from_anchor: second_row_drafts,
        default_non_causal: None,
    };
    description.read(top, weights, verifier, report, |_| Ok((BlockHead::Independent, None)))
}

/// What DFlash and the kinds that are made of it have in common.
pub(super) struct Description {
    /// What the format calls the kind.
    pub(super) kind: &'static str,
    /// What a missing `sample_from_anchor` means, for blocks of so many rows.
    pub(super) default_sample_from_anchor: fn(&mut Settings, usize, &mut Report) -> Result<bool>,
    /// What a missing `sliding_window_non_causal` means; `None` where that depends on the semantics.
    pub(super) default_non_causal: Option<bool>,
}

/// The most that the rank of a head may be: far above any, far below what overflows.
pub(super) const MOST_RANK: usize = 1 << 14;

/// What the head of a kind is read from.
pub(super) struct HeadSource<'r, 's> {
    pub(super) top: &'r mut Settings<'s>,
    pub(super) weights: &'r mut Weights,
    /// The layers, which a kind may add to.
    pub(super) layers: &'r mut [DecoderLayer],
    pub(super) sizes: &'r Sizes,
    pub(super) block_size: usize,
    pub(super) report: &'r mut Report,
}

impl HeadSource<'_, '_> {
    /// Takes the weights called `name`, which must be there with the shape `shape`.
    pub(super) fn required(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.weights.required(name, shape, self.report)
    }

    /// Takes a linear map that has a bias.
    pub(super) fn linear(&mut self, module: &str, outputs: usize, inputs: usize) -> Result<Linear> {
        let weight = self.required(&format!("{module}.weight"), &[outputs, inputs])?;
        let bias = self.required(&format!("{module}.bias"), &[outputs])?;
        Ok(Linear { weight, bias: Some(bias) })
    }
}

impl Description {
    /// Reads a speculator; `head` reads how tokens come from its rows.
    pub(super) fn read(
        &self,
        top: &mut Settings,
        mut weights: Weights,
        verifier: &Verifier,
        report: &mut Report,
        head: impl FnOnce(HeadSource<'_, '_>) -> Result<(BlockHead, Option<Confidence>)>,
    ) -> Result<Speculator> {
        let mut layer = decoder_settings(top)?;
        top.unneeded(&["max_anchors"]);
        let family = decoder::family(&mut layer, &weights, "layers.0.")?;
        let sizes = Sizes::read(&mut layer, family, (&weights, "layers.0."), report)?;
        let sizes = sizes.of_reduced_vocabulary(top, &weights)?;
        let decoder = Decoder::read(&mut layer, sizes, family, report)?;
        let semantics = semantics(top)?;
        let mut layers = {
            let sees_block = top.flag("sliding_window_non_causal")?.or(self.default_non_causal);
            let windows = decoder::windows(&mut layer, family, sizes.layers, report)?;
            // Whatever the settings are a copy of, the layers are those of Qwen3.
            let family = Family::Qwen3;
            let mut reader = LayerReader::new(&mut layer, &mut weights, &sizes, family, report)?;
            let mut read = |(index, window)| {
                let prefix = format!("layers.{index}.");
                let read = reader.read(LayerForm { window, ..LayerForm::ordinary(&prefix) })?;
                Ok(masked(read, semantics, sees_block))
            };
            windows.into_iter().enumerate().map(&mut read).collect::<Result<Vec<_>>>()?
        };
        const LAYERS: &str = "aux_hidden_state_layer_ids";
        let Some(ids) = listed_layers(LAYERS, top, verifier)? else {
            return Err(top.unexpected(LAYERS, "a list of layers"));
        };
        let (features, fc) = projected(ids, top, &mut weights, (&sizes, verifier), report)?;
        let (embedding, tokens_head) = tables(&mut weights, &sizes, verifier, report)?;
        let (draft, full) = (sizes.draft_vocabulary, sizes.vocabulary);
        let block_size = top.integer_or("block_size", 2..=1024, 8)?;
        const ANCHOR: &str = "sample_from_anchor";
        let samples_anchor = match top.flag(ANCHOR)? {
            Some(flag) => flag,
            None => {
                let default = (self.default_sample_from_anchor)(top, block_size, report)?;
                top.assume(ANCHOR, default)
            }
        };
        let first_slot = usize::from(!samples_anchor);
        let (head, confidence) = head(HeadSource {
            top,
            weights: &mut weights,
            layers: &mut layers,
            sizes: &sizes,
            block_size,
            report,
        })?;
        let block = Block {
            fusion: FeatureFusion { norm: FeatureNorm::None, fc, norm_before_residual: false },
            entry: BlockEntry::Anchored {
                context_norm: weights.required("hidden_norm.weight", &[sizes.hidden], report)?,
            },
            mask_token: mask_token(top, full)?,
            length: length(semantics, block_size, &head),
            most_drafts: block_size - first_slot,
            first_slot,
            head,
            confidence,
        };
        let speculator = Speculator {
            kind: self.kind,
            decoder,
            features,
            embedding,
            head: tokens_head,
            draft_token_ids: vocabulary::read(&mut weights, draft, full, report)?,
            layers,
            norm: Some(weights.required("norm.weight", &[sizes.hidden], report)?),
            method: Method::Block(block),
        };
        layer.finish(report);
        weights.finish(report, why_unneeded)?;
        Ok(speculator)
    }
}

/// The default of most kinds: the first row of a block, which knows its token, drafts nothing.
pub(super) fn second_row_drafts(_: &mut Settings, _: usize, _: &mut Report) -> Result<bool> {
    Ok(false)
}

fn length(semantics: Semantics, block_size: usize, head: &BlockHead) -> BlockLength {
    match (semantics, head) {
        // A refiner has weights for each pair of the rows that it was trained with.
        (Semantics::Library, _) | (_, BlockHead::Refined(_)) => BlockLength::Trained(block_size),
        (Semantics::Vllm, _) => BlockLength::Drafts,
    }
}

/// Which reading is asked for: not a setting of files, but one that a host may override.
fn semantics(top: &mut Settings) -> Result<Semantics> {
    const KEY: &str = "block_semantics";
    match top.text(KEY)? {
        None => {
            top.assume(KEY, "library");
            Ok(Semantics::Library)
        }
        Some("library") => Ok(Semantics::Library),
        Some("vllm") => Ok(Semantics::Vllm),
        Some(_) => Err(top.unexpected(KEY, "\"library\" or \"vllm\"")),
    }
}

/// A layer with the mask that its rows see their block through.
fn masked(layer: DecoderLayer, semantics: Semantics, non_causal: Option<bool>) -> DecoderLayer {
    match semantics {
        Semantics::Library => {
            let sees_block = layer.window.is_none() || non_causal == Some(true);
            DecoderLayer { window_from_block: true, sees_block, ..layer }
        }
        Semantics::Vllm => DecoderLayer { sees_block: non_causal != Some(false), ..layer },
    }
}
