//! Drafting.

use super::boundary::{self, borrow, call, within};
use super::session::spec_session;
use super::tensors::{self, Home, column, matrix, optional_column, optional_span, span};
use super::tree;
use super::tree_shape::{Shape, read_shape};
use super::types::{SPEC_PADDING, spec_draft_args, spec_error, spec_status, spec_tensor};
use crate::error::{Error, Result};
use crate::session::{DraftBatch, FEATURES_MAX, Session, Stream};
use crate::tensor::{Dtype, Matrix};
use std::ffi::c_void;
use std::fmt::{Display, Formatter};

/// Commits verified rows to the drafter's context, then proposes tokens below the new root of
/// each sequence.
///
/// For each sequence the rows of positions `position - row_count` to `position - 1` are
/// committed: prompt chunks and accepted rows alike, mixed in one batch. All earlier positions from
/// `context_begin` on were committed before, in the pages that the call names. Then
/// min(`num_drafts`, `max_drafts`, `limit` - 1, max_position - position + 1) tokens are proposed,
/// where max_position is the session's (one less where the drafter is `independent`), and no more
/// than the model's `most_drafts`. Keys and values
/// that drafting itself makes are overwritten by the next commit; nothing else is kept, so a
/// smaller `position` is a rollback, and a sequence that is not mentioned costs nothing.
///
/// For EAGLE-3 (Li et al., 2025, "EAGLE-3: Scaling up Inference Acceleration of Large Language
/// Models via Training-Time Test") row t fuses the features of position t with the embedding of
/// token t + 1; each further step continues from the drafter's own hidden state. So it is for
/// EAGLE (Li et al., 2024, "EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty")
/// and MTP (DeepSeek-AI, 2024, "DeepSeek-V3 Technical Report"), whose one feature is the last
/// hidden state of the target. An independent drafter (Leviathan et al., 2023, "Fast Inference from
/// Transformers via Speculative Decoding") is a language model of its own and reads no features:
/// row t has token t, and the row of `next_token` runs with those that are committed if anything
/// is proposed. An MLP speculator (Wertheimer et al., 2024, "Accelerating Production LLMs with
/// Combined Token/Embedding Speculators") reads `next_token` and the one feature of the last
/// committed row, and keeps nothing. P-EAGLE and DFlash, as the speculators format has them, draft
/// all tokens in one pass, over the last known token and rows with a mask token behind it; sampled
/// tokens are drawn independently. The pass leaves nothing in the pages, which need have room for
/// the committed rows alone. Three kinds of that format add to DFlash what makes the tokens of a
/// pass depend on each other: DSpark draws them one after the other, each from logits that the one
/// before has changed; so does DFlash2, out of a few candidates for each; XPress chooses all
/// greedily, then all again from logits that the choice before has changed, a fixed number of
/// times, and draws those of the last. In all of them the logits that a token was drawn from are
/// those given the tokens drawn before it, so that verification with them is lossless.
///
/// `stream` is NULL on the CPU. Errors: INVALID_ARGUMENT (also more sequences than slots where
/// `block_table` is NULL), UNSUPPORTED (a flag or field that this version does not know, trees
/// of a kind or on a device that this version does not draft them with),
/// BUSY; then nothing has changed. DEVICE: the device or its driver failed; what the call had
/// enqueued by then is done or not. What is wrong in the contents of the arrays (rows outside of
/// the call's or more than max_rows or R in all, positions, pages or slots, tokens) takes the
/// sequence out of the step: nothing of it is committed or proposed, its outputs are padded, and
/// `spec_session_poll` reports it.
///
/// Contract: one thread at a time per session; the work is done when the call returns (CPU) or
/// enqueued (CUDA); does not block; allocates nothing unless it fails; on `stream`, which may be
/// capturing (CUDA).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_draft(
    session: *mut spec_session,
    args: *const spec_draft_args,
    stream: *mut c_void,
    error: *mut spec_error,
) -> spec_status {
    call("spec_draft", error, || {
        // SAFETY: the documented contract of the arguments.
        let (session, args) = unsafe { (borrow(session)?, boundary::read(args)?) };
        // SAFETY: the documented contract of the arrays in the arguments.
        unsafe { draft(&session.session, &args, Stream(stream as u64)) }
    })
}

/// The name of an element of an array, made only when it is needed.
struct Element(&'static str, usize);

impl Display for Element {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}[{}]", self.0, self.1)
    }
}

/// # Safety
///
/// The pointers in `args` are as documented.
unsafe fn draft(session: &Session, args: &spec_draft_args, stream: Stream) -> Result<()> {
    let home = Home::of(session.model().context());
    let limits = session.limits();
    if args.flags & !SPEC_PADDING != 0 {
        return Err(Error::unsupported(format!("flags: found {:#x}", args.flags)));
    }
    check_extras(session, args)?;
    let sequences =
        within("num_sequences", args.num_sequences.into(), 0, limits.max_sequences as i64)?;
    let rows = within("num_rows", args.num_rows.into(), 0, i64::from(i32::MAX - 1))?;
    let drafts = within("max_drafts", args.max_drafts.into(), 0, limits.max_drafts as i64)?;
    let decision = |what, pointer| column(what, pointer, sequences, args.decision_stride, 1);
    let table_width = limits.pages_per_sequence;
    let mut features =
        [Matrix { address: 0, dtype: Dtype::F32, rows: 0, columns: 0, row_stride: 0 };
            FEATURES_MAX];
    // SAFETY: as this function's contract.
    let features = unsafe { read_features(session, args, rows, &mut features)? };
    // SAFETY: as this function's contract.
    let (embeddings, draft_logits, sampling, shape, links) = unsafe {
        (
            tensor("embeddings", home, args.embeddings, rows, session.model().hidden_size())?,
            tensor(
                "draft_logits",
                home,
                args.draft_logits,
                sequences * drafts,
                session.model().draft_columns(),
            )?,
            boundary::read_optional(args.sampling)?,
            read_shape(session, args.tree_shape, drafts)?,
            boundary::read_optional(args.tree)?,
        )
    };
    if matches!(shape, Some(Shape::Dynamic { .. })) && draft_logits.is_some() {
        return Err(Error::unsupported(
            "draft_logits: expected NULL with SPEC_TREE_DYNAMIC, whose tokens are not drawn",
        ));
    }
    if matches!(shape, Some(Shape::Dynamic { .. })) && !args.draft_candidates.is_null() {
        return Err(Error::unsupported(
            "draft_candidates: expected NULL with SPEC_TREE_DYNAMIC, whose tokens are not drawn",
        ));
    }
    if shape.is_some() && (!args.confidence.is_null() || args.min_confidence > 0.0) {
        return Err(Error::unsupported(
            "confidence, min_confidence: expected NULL and 0 with tree_shape, as proposals of trees are not rated",
        ));
    }
    let batch = DraftBatch {
        num_sequences: sequences,
        num_rows: rows,
        max_drafts: drafts,
        position: decision("position", args.position)?,
        row_count: decision("row_count", args.row_count)?,
        next_token: decision("next_token", args.next_token)?,
        row_begin: optional_span("row_begin", args.row_begin, sequences)?,
        row_index: optional_column("row_index", args.row_index, sequences, args.row_index_stride)?,
        num_drafts: optional_span("num_drafts", args.num_drafts, sequences)?,
        limit: optional_span("limit", args.limit, sequences)?,
        context_begin: optional_span("context_begin", args.context_begin, sequences)?,
        block_table: optional_column(
            "block_table",
            args.block_table,
            sequences,
            args.block_table_stride,
        )?,
        slot: optional_span("slot", args.slot, sequences)?,
        tokens: span("tokens", args.tokens, rows)?,
        rope_position: optional_span("rope_position", args.rope_position, rows)?,
        features,
        embeddings,
        sampling: tensors::sampling(sampling.as_ref(), sequences)?,
        shape: shape.as_ref().map(Shape::view),
        links: links.map(|links| tree::links(&links, sequences, drafts + 1)).transpose()?,
        draft_tokens: column(
            "draft_tokens",
            args.draft_tokens.cast_const(),
            sequences,
            args.draft_stride,
            drafts,
        )?,
        num_proposed: optional_span("num_proposed", args.num_proposed.cast_const(), sequences)?,
        draft_logits,
        draft_candidates: optional_span(
            "draft_candidates",
            args.draft_candidates.cast_const(),
            sequences * drafts * session.model().draft_columns(),
        )?,
        confidence: optional_span("confidence", args.confidence.cast_const(), sequences * drafts)?,
        min_confidence: args.min_confidence,
        padding: if args.flags & SPEC_PADDING != 0 { args.padding } else { -1 },
    };
    if batch.block_table.is_none() && limits.slots < sequences {
        return Err(Error::invalid(format!(
            "block_table: expected one of stride {table_width}, as the pool has only {} slots, found NULL",
            limits.slots
        )));
    }
    session.draft(stream, &batch)
}

/// Refuses outputs that the model does not have, and logits whose columns nothing would tell.
fn check_extras(session: &Session, args: &spec_draft_args) -> Result<()> {
    let model = session.model();
    let unexpected = |what: &str, why: &str, found: &dyn Display| {
        Err(Error::invalid(format!("{what}: expected {why}, found {found}")))
    };
    if !(0.0..=1.0).contains(&args.min_confidence) {
        return unexpected("min_confidence", "a number from 0 to 1", &args.min_confidence);
    }
    if !model.has_confidence() && args.min_confidence > 0.0 {
        let why = "0, as the model has no has_confidence";
        return unexpected("min_confidence", why, &args.min_confidence);
    }
    if !model.has_confidence() && !args.confidence.is_null() {
        let why = "NULL, as the model has no has_confidence";
        return unexpected("confidence", why, &format_args!("{:p}", args.confidence));
    }
    match (model.candidates(), args.draft_candidates.is_null()) {
        (None, false) => {
            let why = "NULL, as the model has no has_row_candidates";
            unexpected("draft_candidates", why, &format_args!("{:p}", args.draft_candidates))
        }
        (Some(_), true) if !args.draft_logits.is_null() => {
            unexpected("draft_candidates", "a place for the ids of draft_logits", &"NULL")
        }
        _ => Ok(()),
    }
}

/// # Safety
///
/// The pointers in `args` are as documented.
unsafe fn read_features<'a>(
    session: &Session,
    args: &spec_draft_args,
    rows: usize,
    matrices: &'a mut [Matrix; FEATURES_MAX],
) -> Result<&'a [Matrix]> {
    let expected = session.model().features();
    if args.num_features != expected.len() as i32 {
        return Err(Error::invalid(format!(
            "num_features: expected {}, found {}",
            expected.len(),
            args.num_features
        )));
    }
    if expected.is_empty() {
        return Ok(&[]);
    }
    if args.features.is_null() || !args.features.is_aligned() {
        return Err(Error::invalid(format!(
            "features: expected {} tensors, found {:p}",
            expected.len(),
            args.features
        )));
    }
    // SAFETY: num_features tensors, by the documented contract; the pointer is aligned.
    let tensors = unsafe { std::slice::from_raw_parts(args.features, expected.len()) };
    let home = Home::of(session.model().context());
    let matrices = &mut matrices[..expected.len()];
    for (index, (tensor, feature)) in tensors.iter().zip(expected).enumerate() {
        let what = Element("features", index);
        matrices[index] = matrix(&what, home, tensor, rows, Some(feature.width))?;
    }
    Ok(matrices)
}

/// # Safety
///
/// `tensor` is NULL or points to a tensor.
unsafe fn tensor(
    what: &'static str,
    home: Home,
    tensor: *const spec_tensor,
    rows: usize,
    columns: usize,
) -> Result<Option<Matrix>> {
    if !tensor.is_null() && !tensor.is_aligned() {
        return Err(Error::invalid(format!(
            "{what}: expected an aligned struct, found {tensor:p}"
        )));
    }
    // SAFETY: as this function's contract; the pointer is aligned.
    let tensor = unsafe { tensor.as_ref() };
    tensor.map(|tensor| matrix(&what, home, tensor, rows, Some(columns))).transpose()
}
