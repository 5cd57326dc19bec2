//! Verification.

use super::boundary::{self, borrow, call, within};
use super::context::spec_context;
use super::processing::processing;
use super::tensors::{self, Home, column, matrix, optional_span, span};
use super::types::{
    SPEC_DECISION_ACCEPTED, SPEC_DECISION_DROPPED, SPEC_DECISION_EMITTED,
    SPEC_DECISION_FLAG_INVALID, SPEC_DECISION_FLAG_LIMIT, SPEC_DECISION_FLAG_LOSSY,
    SPEC_DECISION_FLAG_NO_CANDIDATE, SPEC_DECISION_FLAG_STOPPED, SPEC_DECISION_FLAGS,
    SPEC_DECISION_NEXT_POSITION, SPEC_DECISION_NEXT_TOKEN, SPEC_DECISION_TOKENS, SPEC_LOSSY,
    SPEC_PADDING, spec_distribution, spec_error, spec_leniency, spec_logprobs, spec_status,
    spec_tensor, spec_tree, spec_verify_args,
};
use crate::error::{Error, Result};
use crate::tensor::{ALIGNMENT, Matrix, Span};
use crate::verify::{
    self, ALTERNATIVES_MAX, Column, DraftDistribution, Leniency, Logprobs, Processing, Stream,
    VerifyBatch, record,
};
use std::ffi::c_void;

/// Sums of weights fit 63 bits below this.
const VOCABULARY_END: usize = 1 << 21;

/// Says how many bytes of workspace `spec_verify` needs.
///
/// Of `args` only the flags, the rule, `num_sequences`, `max_drafts`, whether there are a `tree`,
/// `processing` and log-probabilities, and the shapes of `logits` and `draft` are looked at: the
/// data and the arrays may be NULL. `size` is not NULL. The answer is 0 for 0 sequences. It
/// depends on the rule, on V, on C where there is a `draft`, on K, and on how many threads (CPU)
/// or blocks (CUDA) work at a time; on CUDA on the number of sequences, too, and for short rows or
/// few of them it is far less than for many long ones. With `processing` it is larger: on the CPU
/// by a row of V floats for each thread, on CUDA by one for each of B * (K + 1) nodes. It depends
/// neither on the rows that there are nor on the type of the logits, and is enough for any batch
/// on this context with as many sequences, K, V and C or fewer by the same rule; with `draft`,
/// `processing` or log-probabilities it is enough without, and with a `tree` for chains, too.
/// Errors: INVALID_ARGUMENT, UNSUPPORTED.
///
/// Contract: any thread; does not block; allocates nothing; no stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_verify_workspace_size(
    context: *const spec_context,
    args: *const spec_verify_args,
    size: *mut u64,
    error: *mut spec_error,
) -> spec_status {
    call("spec_verify_workspace_size", error, || {
        // SAFETY: the documented contract of the arguments.
        let (context, args) = unsafe { (borrow(context)?, boundary::read(args)?) };
        if size.is_null() || !size.is_aligned() {
            return Err(Error::invalid(format!("size: expected a place for it, found {size:p}")));
        }
        // SAFETY: the documented contract of the distribution.
        let draft = unsafe { boundary::read_optional(args.draft)? };
        let sizes = sizes(&args, draft.as_ref(), Home::of(&context.context))?;
        let bytes = verify::workspace_bytes(context.context.backend(), &sizes, args.rule)?;
        // SAFETY: not NULL, aligned, and writable by the documented contract.
        unsafe { size.write(bytes as u64) };
        Ok(())
    })
}

/// Decides which drafts the target accepts, and which token follows them.
///
/// For each sequence one decision record is written: drafts accepted, tokens emitted, the next
/// root and its position, the tokens, and the path that `spec_draft` commits. Drafts are accepted
/// from the root on while the rule keeps them; then one more token is emitted, the replacement of
/// rejected drafts or, after the last one of a path, the bonus token. In a `tree` drafts are
/// accepted along one path; where siblings are equal, the longest one. Logits are taken as they
/// are, or as `processing` makes them; `sampling` says how tokens are drawn from them. Only the rows
/// that a decision needs are read (CPU), or all rows of the sequences that take part (CUDA). Where
/// log-probabilities are wanted, the rows of the path are read once more for each kind of them.
///
/// Every draw is one number through the inverse of the cumulative distribution in the order of
/// the ids, and weights are integers: equal logits and numbers give equal decisions for any number
/// of threads, any instruction set and beside any other sequences.
///
/// The emission of a sequence ends early after a draft that is a stop token and after `limit`
/// tokens. The flag STOPPED is set whenever the last emitted token is a stop token, LIMIT whenever
/// `limit` tokens were emitted, also if that is the bonus token. A limit of 0 or less emits
/// nothing. What is out of range in the contents of the arrays makes that sequence emit nothing,
/// with the flag INVALID; the others are not affected.
///
/// `stream` is NULL on the CPU. Errors: INVALID_ARGUMENT, UNSUPPORTED (a vocabulary of 2^21 tokens
/// or more, a rule or flag that this version does not know, a tree with a rule for chains); then
/// nothing has changed.
/// DEVICE: the device or its driver failed.
///
/// Contract: any thread; the work is done when the call returns (CPU) or enqueued (CUDA); does not
/// block; allocates nothing unless it fails; on `stream`, which may be capturing (CUDA).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn spec_verify(
    context: *const spec_context,
    args: *const spec_verify_args,
    stream: *mut c_void,
    error: *mut spec_error,
) -> spec_status {
    call("spec_verify", error, || {
        // SAFETY: the documented contract of the arguments.
        let (context, args) = unsafe { (borrow(context)?, boundary::read(args)?) };
        // SAFETY: the documented contract of the arguments.
        let batch = unsafe { batch(&args, Home::of(&context.context))? };
        let workspace = workspace(&args)?;
        let queue = (context.context.backend(), Stream(stream as u64));
        let rule = (args.rule, args.flags & SPEC_LOSSY != 0);
        verify::verify(queue, &batch, rule, workspace)
    })
}

fn workspace(args: &spec_verify_args) -> Result<Span<u8>> {
    let (address, bytes) = (args.workspace as u64, args.workspace_size);
    if address == 0 && bytes > 0 || !address.is_multiple_of(ALIGNMENT as u64) {
        return Err(Error::invalid(format!(
            "workspace: expected memory aligned to {ALIGNMENT}, found {:p} of {bytes} bytes",
            args.workspace
        )));
    }
    Ok(Span::new(address, usize::try_from(bytes).unwrap_or(usize::MAX)))
}

/// The batch as far as its sizes go, with no memory behind it.
fn sizes(
    args: &spec_verify_args,
    draft: Option<&spec_distribution>,
    home: Home,
) -> Result<VerifyBatch> {
    if args.flags & !(SPEC_PADDING | SPEC_LOSSY) != 0 {
        return Err(Error::unsupported(format!("flags: found {:#x}", args.flags)));
    }
    let logits = shape("logits", home, &args.logits)?;
    let draft = draft.map(|draft| candidates(args, home, draft)).transpose()?;
    let none = Column { span: Span::new(0, 0), stride: 1 };
    let sequences = within("num_sequences", args.num_sequences.into(), 0, i32::MAX.into())?;
    let drafts = within("max_drafts", args.max_drafts.into(), 0, 1023)?;
    Ok(VerifyBatch {
        parents: (!args.tree.is_null()).then_some(none),
        processing: (!args.processing.is_null()).then(Processing::default),
        draft,
        padding: if args.flags & SPEC_PADDING != 0 { args.padding } else { -1 },
        raw_logprobs: wanted_logprobs(args.raw_logprobs),
        processed_logprobs: wanted_logprobs(args.processed_logprobs),
        ..VerifyBatch::new((sequences, drafts), logits, none, none, none)
    })
}

/// Whether log-probabilities are wanted, with no memory behind them.
fn wanted_logprobs(given: *const spec_logprobs) -> Option<Logprobs> {
    let values = Span::new(0, 0);
    let none = Logprobs { alternatives: 0, values, token_ids: None, ranks: None };
    (!given.is_null()).then_some(none)
}

/// The shape of a tensor of logits, whatever its data.
fn shape(what: &str, home: Home, tensor: &spec_tensor) -> Result<Matrix> {
    let data = std::ptr::without_provenance_mut(ALIGNMENT);
    let matrix = matrix(&what, home, &spec_tensor { data, ..*tensor }, 0, None)?;
    match matrix.columns {
        0 => Err(Error::invalid(format!("{what}: expected at least 1 column, found 0"))),
        1..VOCABULARY_END => Ok(matrix),
        columns => Err(Error::unsupported(format!(
            "{what}: expected fewer than {VOCABULARY_END} columns, found {columns}"
        ))),
    }
}

/// The sizes of a distribution.
fn candidates(
    args: &spec_verify_args,
    home: Home,
    draft: &spec_distribution,
) -> Result<DraftDistribution> {
    let logits = shape("draft.logits", home, &draft.logits)?;
    let stride = match draft.token_ids_stride {
        0 => 0,
        stride => within("draft.token_ids_stride", stride, logits.columns as i64, 1 << 40)?,
    };
    let rows = within("draft.rows_per_sequence", draft.rows_per_sequence.into(), 0, 1 << 30)?;
    let rows = if rows == 0 { args.max_drafts.max(0) as usize } else { rows };
    Ok(DraftDistribution {
        logits,
        token_ids: None,
        token_ids_stride: stride,
        row_begin: None,
        rows_per_sequence: rows,
        sampling: None,
    })
}

/// # Safety
///
/// The pointers in `args` are as documented.
unsafe fn batch(args: &spec_verify_args, home: Home) -> Result<VerifyBatch> {
    // SAFETY: as this function's contract.
    let (given, processed, sampling, tree, lenience, raw_logprobs, processed_logprobs) = unsafe {
        (
            boundary::read_optional(args.draft)?,
            boundary::read_optional(args.processing)?,
            boundary::read_optional(args.sampling)?,
            boundary::read_optional(args.tree)?,
            boundary::read_optional(args.leniency)?,
            boundary::read_optional(args.raw_logprobs)?,
            boundary::read_optional(args.processed_logprobs)?,
        )
    };
    let sizes = sizes(args, given.as_ref(), home)?;
    let (sequences, drafts) = (sizes.num_sequences, sizes.max_drafts);
    let vocabulary = sizes.logits.columns;
    let draft = match (&given, sizes.draft) {
        (Some(given), Some(sizes)) => {
            // SAFETY: as this function's contract.
            Some(unsafe { distribution(given, home, sizes, (sequences, vocabulary))? })
        }
        _ => None,
    };
    let record = record::len(drafts);
    within("decision_stride", args.decision_stride.into(), record as i64, i32::MAX.into())?;
    let decisions = args.decisions.cast_const();
    let stops = within("num_stop_tokens", args.num_stop_tokens.into(), 0, i32::MAX.into())?;
    Ok(VerifyBatch {
        logits: matrix(&"logits", home, &args.logits, 0, None)?,
        row_begin: optional_span("row_begin", args.row_begin, sequences)?,
        num_drafts: optional_span("num_drafts", args.num_drafts, sequences)?,
        draft_tokens: column(
            "draft_tokens",
            args.draft_tokens,
            sequences,
            args.draft_stride,
            drafts,
        )?,
        parents: tree.map(|tree| parents(&tree, sequences, drafts)).transpose()?,
        position: column("position", args.position, sequences, args.position_stride, 1)?,
        limit: optional_span("limit", args.limit, sequences)?,
        processing: processed
            .map(|given| processing(&given, sequences, &sizes.logits))
            .transpose()
            .map_err(|failure| failure.within("processing"))?,
        sampling: tensors::sampling(sampling.as_ref(), sequences)?,
        draft,
        uniforms: optional_span("uniforms", args.uniforms, sequences * 2 * (drafts + 1))?,
        leniency: lenience.map_or(Ok(Leniency::default()), |given| leniency(&given, drafts))?,
        stop_tokens: span("stop_tokens", args.stop_tokens, stops)?,
        decisions: column("decisions", decisions, sequences, args.decision_stride, record)?,
        counters: optional_span("counters", args.counters.cast_const(), 3 + drafts)?,
        raw_logprobs: raw_logprobs
            .map(|given| logprobs(&given, sequences, drafts + 1))
            .transpose()
            .map_err(|failure| failure.within("raw_logprobs"))?,
        processed_logprobs: processed_logprobs
            .map(|given| logprobs(&given, sequences, drafts + 1))
            .transpose()
            .map_err(|failure| failure.within("processed_logprobs"))?,
        ..sizes
    })
}

/// # Safety
///
/// The pointers in `given` are as documented.
unsafe fn distribution(
    given: &spec_distribution,
    home: Home,
    sizes: DraftDistribution,
    (sequences, vocabulary): (usize, usize),
) -> Result<DraftDistribution> {
    let logits = matrix(&"draft.logits", home, &given.logits, 0, None)?;
    if given.token_ids.is_null() && logits.columns != vocabulary {
        return Err(Error::invalid(format!(
            "draft.token_ids: expected ids for the {} columns of draft.logits, as the vocabulary has {vocabulary}, found NULL",
            logits.columns
        )));
    }
    let rows = if sizes.token_ids_stride == 0 { 1 } else { logits.rows };
    let ids = rows.saturating_sub(1).saturating_mul(sizes.token_ids_stride);
    let ids = ids.saturating_add(logits.columns);
    if ids > isize::MAX as usize / size_of::<i32>() {
        return Err(Error::invalid(format!(
            "draft.token_ids: {rows} rows of stride {} do not fit the address space",
            sizes.token_ids_stride
        )));
    }
    // SAFETY: as this function's contract.
    let sampling = unsafe { boundary::read_optional(given.sampling)? };
    let sampling = sampling
        .map(|sampling| tensors::sampling(Some(&sampling), sequences))
        .transpose()
        .map_err(|failure| failure.within("draft"))?;
    Ok(DraftDistribution {
        logits,
        token_ids: optional_span("draft.token_ids", given.token_ids, ids)?,
        row_begin: optional_span("draft.row_begin", given.row_begin, sequences)?,
        sampling,
        ..sizes
    })
}

/// The parents of the nodes of all trees.
fn parents(tree: &spec_tree, sequences: usize, drafts: usize) -> Result<Column> {
    let (parents, nodes) = (tree.parents.cast_const(), drafts + 1);
    if tree.stride == 0 {
        let span = span("tree.parents", parents, if sequences == 0 { 0 } else { nodes })?;
        return Ok(Column { span, stride: 0 });
    }
    column("tree.parents", parents, sequences, tree.stride, nodes)
}

/// Where log-probabilities are written.
fn logprobs(given: &spec_logprobs, sequences: usize, nodes: usize) -> Result<Logprobs> {
    let most = ALTERNATIVES_MAX as i64;
    let alternatives = within("num_alternatives", given.num_alternatives.into(), 0, most)?;
    let len = sequences * nodes * (alternatives + 1);
    let ids = given.token_ids.cast_const();
    Ok(Logprobs {
        alternatives,
        values: span("values", given.values.cast_const(), len)?,
        token_ids: match alternatives {
            0 => optional_span("token_ids", ids, len)?,
            _ => Some(span("token_ids", ids, len)?),
        },
        ranks: optional_span("ranks", given.ranks.cast_const(), sequences * nodes)?,
    })
}

/// What lossy rules go by, with the defaults for what is 0.
fn leniency(given: &spec_leniency, drafts: usize) -> Result<Leniency> {
    let share = |what: &str, value: f32, default: f32| match value {
        0.0 => Ok(default),
        value if value > 0.0 && value <= 1.0 => Ok(value),
        found => Err(Error::invalid(format!(
            "leniency.{what}: expected more than 0 and at most 1, or 0 for {default}, found {found}"
        ))),
    };
    if given.tolerance.is_nan() || given.tolerance < 0.0 {
        return Err(Error::invalid(format!(
            "leniency.tolerance: expected 0 or more, found {}",
            given.tolerance
        )));
    }
    let alpha = share("alpha", given.alpha, 0.3)?;
    Ok(Leniency {
        top_n: within("leniency.top_n", given.top_n.into(), 0, i32::MAX.into())?.max(1) as i32,
        tolerance: given.tolerance,
        epsilon: share("epsilon", given.epsilon, 0.09)?,
        log2_alpha: (f64::from(alpha).log2() * 2.0_f64.powi(32)) as i64,
        threshold_single: share("threshold_single", given.threshold_single, 1.0)?,
        threshold_accumulated: share("threshold_accumulated", given.threshold_accumulated, 1.0)?,
        acceptance: optional_span("leniency.acceptance", given.acceptance, drafts)?,
    })
}

// The records of the library are those of the header.
const _: () = {
    assert!(SPEC_DECISION_ACCEPTED as usize == record::ACCEPTED);
    assert!(SPEC_DECISION_EMITTED as usize == record::EMITTED);
    assert!(SPEC_DECISION_NEXT_TOKEN as usize == record::NEXT_TOKEN);
    assert!(SPEC_DECISION_NEXT_POSITION as usize == record::NEXT_POSITION);
    assert!(SPEC_DECISION_FLAGS as usize == record::FLAGS);
    assert!(SPEC_DECISION_DROPPED as usize == record::DROPPED);
    assert!(SPEC_DECISION_TOKENS as usize == record::TOKENS);
    assert!(SPEC_DECISION_FLAG_NO_CANDIDATE == record::NO_CANDIDATE);
    assert!(SPEC_DECISION_FLAG_STOPPED == record::STOPPED);
    assert!(SPEC_DECISION_FLAG_LIMIT == record::LIMIT);
    assert!(SPEC_DECISION_FLAG_INVALID == record::INVALID);
    assert!(SPEC_DECISION_FLAG_LOSSY == record::LOSSY);
};
