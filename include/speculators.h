/*
 * libspeculators: speculative decoding for inference engines.
 *
 * The host is an inference engine: it owns the target model, its KV cache, its scheduler and its
 * buffers. The library owns the speculator: it loads a speculator checkpoint, drafts tokens with
 * it, and verifies drafts against the target's logits. Every step takes pointers to buffers of the
 * host.
 *
 * THE ROUND
 *
 * The target has run on the tokens up to position p - 1. The token at position p, the root, is
 * decided, but the target has not run on it. Drafts are guesses of the tokens from p + 1 on. One
 * round is:
 *
 * 1. The host runs its target over the root and its drafts. It keeps the logits, one row for each
 *    of these tokens, and the hidden states that `spec_model_info.features` lists.
 * 2. `spec_verify` compares the drafts with the logits and writes a decision record per sequence:
 *    which drafts are accepted, which tokens are emitted, the next root and its position. It needs
 *    a context, but no speculator: a host that drafts by itself may use it alone.
 * 3. `spec_draft` commits the rows that are verified (their tokens and hidden states) to the
 *    drafter's KV, and proposes tokens below the next root. The decision records of step 2 are its
 *    inputs as they are.
 *
 * A prompt is committed like accepted rows, at once or in chunks, and sequences with a prompt may
 * share a call with others: `row_count` is then an array of the host's. Sampling the first token
 * after a prompt is a verification without drafts, whose root is the last token of the prompt. A
 * drafting call with `num_drafts` of 0 only commits. In the loop below, a finished sequence has a
 * limit of 0: it emits nothing, so nothing is committed or proposed for it.
 *
 *     verify.position = decisions + SPEC_DECISION_NEXT_POSITION;
 *     verify.position_stride = verify.decision_stride;
 *     verify.num_drafts = draft.num_proposed;
 *     draft.position = decisions + SPEC_DECISION_NEXT_POSITION;
 *     draft.row_count = decisions + SPEC_DECISION_EMITTED;
 *     draft.next_token = decisions + SPEC_DECISION_NEXT_TOKEN;
 *     draft.decision_stride = verify.decision_stride;
 *     while (running) {
 *       run_target(tokens, positions, logits, features);
 *       if (spec_verify(context, &verify, NULL, &error) != SPEC_OK) break;
 *       emit_tokens(decisions);
 *       if (spec_draft(session, &draft, NULL, &error) != SPEC_OK) break;
 *     }
 *
 * THERE IS NO HIDDEN STATE
 *
 * What lives from call to call is the drafter's KV, in pages, and nothing else. No sequence is
 * created or removed: each call names positions, rows, limits, sampling parameters and pages in
 * arrays. A smaller position is a rollback. A sequence that is not mentioned costs nothing. Forks,
 * preemption and prefix caches are block tables: the library follows the host's. A fork or a cached
 * prefix that goes on with another token commits its last `prefix_margin` positions again, in pages
 * of its own. Without a block table, each sequence has a slot of the pool.
 *
 * TOKENS AND ROWS
 *
 * Token ids are the target's everywhere. Tokens are given unshifted: row r has the token and the
 * hidden states of one position; the library shifts as the kind of speculator needs. A chain of K
 * drafts has K + 1 rows of logits: the root's row, which the first draft is tested against, and one
 * row per draft. Rows are ragged: `row_begin` says where a sequence's rows begin.
 *
 * -1 among drafts has two meanings. Beyond `num_drafts[b]` it is mere padding: nothing was proposed
 * there, and the next token is drawn from the target's distribution p. Before `num_drafts[b]` it is
 * a draft that the host struck out after it had been drawn (by a grammar, say): it is tested as
 * rejected. By rejection sampling its replacement is drawn from what remains of p, max(p - q, 0)
 * normalised, as the law of the output requires, or from p where q is not known; by following it is
 * the target's own draw, of a greedy sequence the target's argmax. Among the rows' tokens of
 * `spec_draft`, -1 stands for a row of `embeddings`.
 *
 * Greedy output is the argmax of the given logits. Sampled output has exactly the distribution that
 * the request's parameters make of the target's logits, where probabilities are multiples of 2^-42
 * of the largest. Random numbers are those of Philox4x32-10 (Salmon et al., 2011), a function of
 * the seed, the absolute position of the token and the purpose (a draft, its test, an emitted
 * token): decisions on equal logits are equal in any batch, with any number of threads.
 *
 * OWNERSHIP
 *
 * The host owns every buffer, struct and string that it passes. A call reads and writes them until
 * its work is done and keeps no pointer to them; what is kept longer (lent weights, a session's KV
 * pool and workspace, callbacks with their user pointers) says so. Inputs do not change meanwhile.
 * The handles `spec_context`, `spec_model` and `spec_session` are the library's: the host gives
 * each one up with its release function, in any order, as a session keeps its model and a model its
 * context. Pointers in info structs live as long as the handle they were asked of.
 *
 * THREADS
 *
 * A context and a model may be used by any number of threads at the same time. A session is used by
 * one thread at a time; a call on a session that is in use returns `SPEC_ERROR_BUSY`. Sessions do
 * not depend on each other. The library's threads work on one call at a time: of concurrent calls
 * on a context, one has them and the others run on their calling threads, with the same results. A
 * handle is released when no call uses it any more, and is not used in a child that fork() made.
 * Functions without a handle may be called at any time.
 *
 * STREAMS
 *
 * `spec_draft`, `spec_verify` and `spec_session_warm_up` take the stream of the device on which
 * their work goes on. On the CPU there is none: it is NULL, anything else is refused, the work is
 * done when the call returns, and there is nothing that could be captured. On a CUDA device it is
 * the host's CUstream (cudaStream_t), NULL being the legacy default stream: the work is enqueued
 * there and the call returns. Calls on a session, and a verification and the drafting that reads
 * its records, are ordered by the host: on one stream, or with events.
 *
 * The calls of every step, `spec_verify` and `spec_draft`, allocate nothing unless they fail, and
 * never wait for the device. The library creates no stream and no graph. While the host captures
 * `stream`, they become part of its graph, which may be launched again and again: the sizes, the
 * flags and the pointers in the arguments are those of the capture, the contents of all arrays are
 * read anew by every launch. Calls whose contract does not allow it are not made during a capture.
 *
 * A call on a CUDA context makes the device's CUcontext current on the calling thread and puts back
 * what was current before. Arrays and tensors are memory of the device or page-locked host memory
 * (cuMemHostAlloc, cuMemHostRegister), which is read and written where it is, each row at the time
 * that the work runs. What the device finds wrong in a CUDA fault, such as an address that is not
 * valid, shows as `SPEC_ERROR_DEVICE` in later calls, as it does in all of the host's own.
 *
 * The end of each function's comment, its contract, says on which threads it may be called, whether
 * it blocks, whether it allocates, and whether its work goes on a stream.
 *
 * ERRORS
 *
 * A call that can fail returns a `spec_status` and describes the failure in a `spec_error` of the
 * host, which may be NULL. Bad arguments are refused before anything has changed. Any function may
 * return `SPEC_ERROR_INVALID_ARGUMENT` (a handle, struct or place that is NULL or not aligned, a
 * `struct_size` below that of the first version), `SPEC_ERROR_UNSUPPORTED` (a field that it does
 * not know is set) and `SPEC_ERROR_INTERNAL`. What is wrong in the contents of arrays (a row, a
 * page or a token out of range) concerns one sequence: it takes no part in the step, the other
 * sequences do. `spec_verify` says so in the flags of the decision record, `spec_draft` in what
 * `spec_session_poll` returns later. That arrays are as large as their shape says cannot be
 * checked. The library prints nothing, raises no signal and lets no exception or panic out.
 *
 * VERSIONS
 *
 * A struct that may grow begins with `struct_size`, its size as the host was compiled. All other
 * bytes zero are the defaults: begin with `= {0}` and name what differs. A library that is newer
 * than the host takes absent fields as zero. A library that is older than the host refuses fields
 * that it does not know if they are set, and leaves those that it would write as they were. New
 * fields are added at the end; reserved fields are 0. Integers stand where C has enums: values are
 * only added, never changed. `spec_abi_version()` is compared with `SPEC_ABI_VERSION`; equal
 * thousands are compatible if the library's number is not the smaller one. Thousands are the number
 * in the name of the library (the SONAME). `spec_feature()` asks for what a build can do.
 *
 * In the comments below, `[B, K]` is the shape of an array in elements, last dimension contiguous.
 * Arrays of `int32_t *` and the like are as large as their shape says, aligned to their elements;
 * pointers to const are read, others written. NULL is allowed where the comment says what it means,
 * and nowhere else. Strides count elements, sizes of memory bytes. B counts sequences, R rows, K
 * drafts; V and Vd are the sizes of the target's and the drafter's vocabulary, H is the drafter's
 * hidden size.
 */
#ifndef SPECULATORS_H
#define SPECULATORS_H

#include <stdint.h>

/** A device with its threads, allocator and log. Models, sessions and verifications refer to it. */
typedef struct spec_context spec_context;

/**
 * A loaded speculator: its weights and what it needs. Never changes, so any number of sessions
 * share it.
 */
typedef struct spec_model spec_model;

/** A model at work: its workspace and its KV pages. Used by one thread at a time. */
typedef struct spec_session spec_session;

/**
 * The ABI that this header describes. A library of the same major number (`abi / 1000`) and at
 * least this minor number can be used with it.
 */
#define SPEC_ABI_VERSION 1000

/** Host memory: the device type of CPU contexts, as in DLPack. */
#define SPEC_DEVICE_CPU 1

/** Memory of a CUDA device: the device type of CUDA contexts, as in DLPack. */
#define SPEC_DEVICE_CUDA 2

/**
 * Page-locked host memory that CUDA devices can address, as in DLPack. Tensors of CUDA contexts
 * may lie there.
 */
#define SPEC_DEVICE_CUDA_HOST 3

/** Signed integers, as in DLPack. No tensor of this version has them; for conversions. */
#define SPEC_DTYPE_INT 0

/** IEEE floating point (16 or 32 bits), as in DLPack. */
#define SPEC_DTYPE_FLOAT 2

/** bfloat16 (16 bits), as in DLPack. */
#define SPEC_DTYPE_BFLOAT 4

/** What memory is for: weights of a model, written once and read in every step. */
#define SPEC_MEMORY_WEIGHTS 0

/** What memory is for: the KV pages of a session. */
#define SPEC_MEMORY_KV 1

/** What memory is for: the workspace of a session. */
#define SPEC_MEMORY_WORKSPACE 2

/** A log line about something that was assumed or corrected. */
#define SPEC_LOG_WARNING 1

/** A log line about what was loaded or created. */
#define SPEC_LOG_INFO 2

/**
 * `spec_model_options.flags`: use the weights where the files are mapped instead of copying them
 * into memory of the allocator. What has to be arranged anew (rows picked out of a head, tables,
 * tensors that are not aligned in their file) is copied all the same. The files must not change
 * while the model lives; cutting them short ends the process with SIGBUS.
 */
#define SPEC_MODEL_MAP_FILES 1

/**
 * `spec_feature_layer.stage`: the residual stream that enters decoder layer `layer`, before any
 * norm; the number of layers stands for the stream that leaves the last one, before the final
 * norm.
 */
#define SPEC_STAGE_LAYER_INPUT 0

/**
 * `spec_feature_layer.stage`: the output of the target's final norm, which its head reads;
 * `layer` is 0.
 */
#define SPEC_STAGE_FINAL_NORM 1

/**
 * `spec_tree_shape.kind`: the tree that `parents` says. The r-th child of a node is the r-th most
 * probable token below it, as in Medusa and EAGLE (Li et al., 2024, "EAGLE: Speculative Sampling
 * Requires Rethinking Feature Uncertainty"); of equally probable ones that of the first column of
 * `draft_logits` comes first, which is the lowest id but where rows have candidates of their own.
 */
#define SPEC_TREE_STATIC 1

/**
 * `spec_tree_shape.kind`: EAGLE-2 (Li et al., 2024, "EAGLE-2: Faster Inference of Language Models
 * with Dynamic Draft Trees"). On each level the `width` nodes that are reached with the largest
 * probability, as the drafter sees it, are expanded; the `width` most probable tokens below each
 * are candidates. Of all candidates the best are proposed, as many as `num_drafts` allows, in the
 * order of their levels; of equal ones parents first. Fewer where there are not so many.
 */
#define SPEC_TREE_DYNAMIC 2

/**
 * `spec_tree_shape.kind`: as STATIC, but the children of a node are drawn as `sampling` says, one
 * after the other without replacement: each with the earlier siblings' weights taken as 0. Where
 * no token with a weight is left, the other siblings and what is below them are -1: nothing was
 * proposed there. Sequences that sample greedily have the tree of STATIC.
 */
#define SPEC_TREE_STOCHASTIC 3

/**
 * `flags` of `spec_draft_args` and `spec_verify_args`: `padding` instead of -1 fills unused
 * places among tokens. Paths are always padded with -1.
 */
#define SPEC_PADDING 1

/** `flags` of `spec_verify_args`: rules are allowed that are not lossless. */
#define SPEC_LOSSY 2

/**
 * `spec_verify_args.rule`: lossless. `SPEC_RULE_REJECTION_DISTINCT` where `draft` gives q, which
 * for chains is `SPEC_RULE_REJECTION`; `SPEC_RULE_FOLLOW` otherwise. Under any rule that is
 * lossless, a greedy sequence follows drafts while they are the target's argmax.
 */
#define SPEC_RULE_DEFAULT 0

/**
 * `spec_verify_args.rule`: lossless, for drafts taken as given; `draft` is not used. The target's
 * token is drawn at each position and the drafts are followed while they are equal to it, so that
 * the text is the one that sampling without speculation gives for the same seed. For trees also
 * known as target-only sampling.
 */
#define SPEC_RULE_FOLLOW 1

/**
 * `spec_verify_args.rule`: lossless rejection sampling (Leviathan et al., 2023; Chen et al.,
 * 2023): draft d is accepted with probability min(1, p(d) / q(d)), otherwise its replacement is
 * drawn from max(p - q, 0) normalised. Without `draft`, q is one at d. In a tree, what a rejected
 * sibling leaves takes the place of p for the next one (SpecInfer; Miao et al., 2024): siblings
 * were drawn from q independently of each other.
 */
#define SPEC_RULE_REJECTION 2

/**
 * `spec_verify_args.rule`: the same for siblings that were drawn without replacement: q is that
 * without the earlier siblings, normalised (Sequoia; Chen et al., 2024). Siblings after one that
 * was struck out are not tested.
 */
#define SPEC_RULE_REJECTION_DISTINCT 3

/**
 * `spec_verify_args.rule`: lossless block verification (Sun et al., 2024), for chains: the longest
 * prefix that passes its test is accepted, though a shorter one may have failed. On average no
 * fewer drafts are accepted than by `SPEC_RULE_REJECTION`. Drafts must have been drawn with numbers
 * of their round, as `spec_draft` draws them.
 */
#define SPEC_RULE_BLOCK 4

/**
 * `spec_verify_args.rule`: typical acceptance (Medusa; Cai et al., 2024), not lossless: drafts are
 * followed whose probability p is at least min(epsilon, alpha exp(-H)), H being the entropy of p.
 * Of several paths the longest is taken, of equally long ones that of the first sibling.
 */
#define SPEC_RULE_TYPICAL 16

/**
 * `spec_verify_args.rule`: thresholds, not lossless unless both are 1: with one number for all
 * siblings, a draft is followed if p is at least `threshold_single`, or if the number is below the
 * sum of p over it and its earlier siblings, divided by `threshold_accumulated`; otherwise the
 * token is drawn from p without the siblings.
 */
#define SPEC_RULE_THRESHOLD 17

/**
 * `spec_verify_args.rule`: not lossless: drafts are followed that are among the `top_n` largest
 * logits and at most `tolerance` below the largest, also for greedy sequences; the token after
 * them is the request's own. What a speculator's `verifier_accept_k` and `accept_tolerance` mean.
 */
#define SPEC_RULE_RELAXED 18

/**
 * `spec_verify_args.rule`: not lossless: the first child of a node is followed as often as
 * `acceptance` says, whatever the logits, also for greedy sequences: for planning of capacity.
 */
#define SPEC_RULE_SYNTHETIC 19

/** Index in a decision record: drafts accepted, 0 to K. */
#define SPEC_DECISION_ACCEPTED 0

/**
 * Index in a decision record: tokens emitted: 0 (the sequence took no part, was invalid, or had
 * no limit left), ACCEPTED (an accepted draft was a stop token or used the limit up) or ACCEPTED
 * + 1.
 */
#define SPEC_DECISION_EMITTED 1

/**
 * Index in a decision record: the last emitted token, the next root. Untouched where nothing was
 * emitted.
 */
#define SPEC_DECISION_NEXT_TOKEN 2

/**
 * Index in a decision record: position + EMITTED, the position of the next root. Written for all
 * sequences.
 */
#define SPEC_DECISION_NEXT_POSITION 3

/** Index in a decision record: `SPEC_DECISION_FLAG_*`, combined. */
#define SPEC_DECISION_FLAGS 4

/**
 * Index in a decision record: the drafts below the last accepted one, if that was a stop token or
 * used the limit up: they were dropped without a look. Otherwise 0.
 */
#define SPEC_DECISION_DROPPED 5

/**
 * Index in a decision record: the emitted tokens, K + 1 elements, padded. The accepted path
 * follows them, at `SPEC_DECISION_TOKENS + K + 1`, K + 1 elements: the nodes of the rows that are
 * committed next, EMITTED of them from 0 (the root) on, padded with -1. K is `max_drafts` of the
 * call.
 */
#define SPEC_DECISION_TOKENS 8

/**
 * `SPEC_DECISION_FLAGS`: a row that was read had only -inf and NaN, in `logits` or after
 * `processing`; token 0 was taken for it.
 * Where logits are +inf, those alone are candidates.
 */
#define SPEC_DECISION_FLAG_NO_CANDIDATE 1

/**
 * `SPEC_DECISION_FLAGS`: the last emitted token is a stop token, be it an accepted draft, a
 * replacement or the bonus token.
 */
#define SPEC_DECISION_FLAG_STOPPED 2

/**
 * `SPEC_DECISION_FLAGS`: as many tokens were emitted as `limit` allows, also where the last is
 * the bonus token, or `limit` was 0 or less.
 */
#define SPEC_DECISION_FLAG_LIMIT 4

/**
 * `SPEC_DECISION_FLAGS`: the sequence's entries are out of range, and nothing was emitted: the
 * rows of the root and its drafts are not in `logits`; `num_drafts` is above K; a draft is below
 * -1 or not below V; `position` is negative, or position + num_drafts + 1 is above 2^31 - 1; a
 * temperature, top_p or min_p is NaN, here or in `draft`; the drafts' rows are not in `draft`; the
 * parent of a draft is not a node before it; one of its `uniforms` is not in [0, 1) and the
 * sequence is not greedy (or the rule is SYNTHETIC); or what `spec_processing` says.
 */
#define SPEC_DECISION_FLAG_INVALID 8

/** `SPEC_DECISION_FLAGS`: the rule does not keep the target's distribution. */
#define SPEC_DECISION_FLAG_LOSSY 16

/**
 * `spec_tree_mask_args.flags`: the columns of a mask are those of a prefix, which every node sees,
 * and behind them the nodes. Without it they are the nodes alone.
 */
#define SPEC_TREE_MASK_PREFIX 1

/**
 * `spec_tree_mask_args.flags`: each sequence has as many rows in the mask as nodes, and each row as
 * many columns as prefix and nodes; rows follow each other without a gap, bits too.
 */
#define SPEC_TREE_MASK_RAGGED 2

/** `spec_tree_mask_args.mask_form`: a byte for each column, 1 where it is seen, otherwise 0. */
#define SPEC_MASK_BOOL 1

/**
 * `spec_tree_mask_args.mask_form`: a number for each column, to be added to its score: 0 where it
 * is seen, otherwise -inf.
 */
#define SPEC_MASK_ADDITIVE 2

/**
 * `spec_tree_mask_args.mask_form`: a bit for each column, 1 where it is seen, in words of the
 * processor's byte order: column c of a row is bit c % bits of word c / bits, counted from the
 * lowest. Bits behind the last column are 0.
 */
#define SPEC_MASK_BITS 3

/**
 * `spec_tree_mask_args.sequence_flags`: `num_nodes` is above N; the root's position is negative,
 * or the last node's could be above 2^31 - 1; the prefix is negative; or prefix and N are above
 * `mask_columns`, or the rows end behind `mask_size`. All else is as if the sequence had no nodes.
 */
#define SPEC_TREE_FLAG_SIZE 1

/**
 * `spec_tree_mask_args.sequence_flags`: the parent of node 0 is not -1, or that of another node is
 * not a node before it. Its rows in the mask see themselves alone, and neither a prefix nor each
 * other; all else is as if the sequence had no nodes.
 */
#define SPEC_TREE_FLAG_PARENTS 2

/**
 * `spec_tree_mask_args.sequence_flags`: there are more leaves than `max_paths`, or one of them is
 * deeper than `path_length` - 1. Its paths are padding, their number is 0; all else is written.
 */
#define SPEC_TREE_FLAG_PATHS 4

/** `spec_kv_compact_args.layout`: a page is `[page_size, num_heads, head]`. */
#define SPEC_KV_NHD 0

/** `spec_kv_compact_args.layout`: a page is `[num_heads, page_size, head]`. */
#define SPEC_KV_HND 1

/**
 * `spec_kv_compact_args.sequence_flags`: nothing of the sequence was moved or listed, as something
 * is out of range: `row_count` is not 0 to N, or above `position`; the path does not begin with
 * node 0, or does not ascend, or has a node that is not below N; or the row of a node is in no page
 * of the sequence, or in one that is not below `num_pages`.
 */
#define SPEC_KV_COMPACT_FLAG_INVALID 1

/** `flags` of `spec_selftest`: fewer cases, for devices that are slow or in use. */
#define SPEC_SELFTEST_QUICK 1

/**
 * The result of a call: `SPEC_OK` or one of the `SPEC_ERROR_*` codes. Codes are never reused; a
 * host treats a code that it does not know as a failure.
 */
typedef int32_t spec_status;

/**
 * Calls `task(argument, i)` for every i in 0 .. `tasks`, on as many threads as it likes, and
 * returns when all calls have returned. `user` is what the options gave. `tasks` is at most the
 * `threads` of the options; tasks do not wait for each other, so that one thread may run them
 * all, one after the other.
 *
 * Contract: the library may call it from several threads at once, on the threads of the host's
 * own calls; must not unwind; should not allocate.
 */
typedef void (*spec_parallel_for)(void *user,
                                  int32_t tasks,
                                  void (*task)(void *argument, int32_t index),
                                  void *argument);

/**
 * Where the library takes weights, KV pools and workspaces from. Parsing a checkpoint, the small
 * records behind the handles and the library's threads use the C library's allocator instead.
 * Calls of every step use neither.
 */
typedef struct spec_allocator {
  /** sizeof(spec_allocator). */
  uint32_t struct_size;
  /** 0. */
  uint32_t reserved;
  /** Handed to both functions. NULL is allowed. */
  void *user;
  /**
   * Returns at least `size` bytes of memory of the context's device at a multiple of
   * `alignment` (64), with any contents, or NULL: the call then fails with OUT_OF_MEMORY.
   * `kind` is one of `SPEC_MEMORY_*`. Must not unwind; may be called from any thread. Never
   * NULL itself.
   */
  void *(*allocate)(void *user, uint64_t size, uint64_t alignment, int32_t kind);
  /**
   * Takes back what `allocate` returned, with the same size and kind, once. Must not
   * unwind; may be called from any thread, and until the last handle that uses the memory
   * is released. Never NULL itself.
   */
  void (*release)(void *user, void *memory, uint64_t size, int32_t kind);
} spec_allocator;

/**
 * What `spec_context_create` makes. All zero but `struct_size`: the CPU, one thread per core
 * that the process may use, the library's own allocator, no log.
 */
typedef struct spec_context_options {
  /** sizeof(spec_context_options). */
  uint32_t struct_size;
  /** 0 or `SPEC_DEVICE_CPU`, or `SPEC_DEVICE_CUDA`. */
  int32_t device_type;
  /** Which of the devices of that type, as the CUDA driver numbers them; 0 on the CPU. */
  int32_t device_id;
  /**
   * Threads that work on a call, the calling one among them, 0 to 1024; 0 is one per core
   * that the process may use. With `parallel_for`, the number of threads that it uses; 0 is
   * then 1. Neither is used on CUDA devices.
   */
  int32_t threads;
  /**
   * The host's own threads, instead of threads of the library; called until the last handle
   * that refers to the context is released. NULL: the library keeps `threads - 1` threads
   * of its own, with all signals blocked, which sleep between calls.
   */
  spec_parallel_for parallel_for;
  /** Handed to `parallel_for`. NULL is allowed. */
  void *parallel_for_user;
  /**
   * NULL: memory from the operating system, in huge pages where it is large, or from the
   * driver (CUDA). Copied, the struct itself need not be kept.
   */
  const spec_allocator *allocator;
  /**
   * Takes log lines (UTF-8, ends with NUL, no line end, valid during the call); NULL:
   * nothing is logged. `level` is one of `SPEC_LOG_*`. Must not unwind; may be called from
   * any thread, never from calls of every step.
   */
  void (*log)(void *user, int32_t level, const char *line);
  /** Handed to `log`. NULL is allowed. */
  void *log_user;
  /**
   * CUDA: the host's CUcontext of the device, which outlives the spec_context and all that
   * refers to it. NULL: the device's primary context, which is the one of all hosts that use
   * the CUDA runtime. NULL on the CPU.
   */
  void *cuda_context;
  /**
   * CUDA: a directory (UTF-8) with images of the library's kernels, `NAME.fatbin`,
   * `NAME.cubin` or `NAME.ptx`, which are loaded in place of those that the library has.
   * NULL: none.
   */
  const char *kernel_directory;
  /**
   * CUDA: where compiled kernels are kept (UTF-8) if the library was built without nvcc and
   * compiles them itself, with NVRTC, when a context is created; made if it is not there,
   * shared by any number of processes. Empty: nowhere. NULL: `libspeculators` in
   * `$XDG_CACHE_HOME`, or in `~/.cache`.
   */
  const char *kernel_cache;
} spec_context_options;

/**
 * Why a call failed. The host owns it, sets `struct_size` and passes it as the last argument of
 * any call, or passes NULL. A call that succeeds sets `status` to `SPEC_OK` and empties
 * `message`. One struct serves one thread at a time.
 */
typedef struct spec_error {
  /** sizeof(spec_error). A value below the size of this version leaves the struct untouched. */
  uint32_t struct_size;
  /** The status that the call returned. */
  spec_status status;
  /**
   * `function: what was wrong`, with what was expected and what was found where there is
   * such; UTF-8, ends with NUL, cut if it is longer. Empty after a success.
   */
  char message[1016];
} spec_error;

/** What a context is. */
typedef struct spec_context_info {
  /** sizeof(spec_context_info), set by the host. */
  uint32_t struct_size;
  /** `SPEC_DEVICE_CPU` or `SPEC_DEVICE_CUDA`. */
  int32_t device_type;
  /** Which of the devices of that type. */
  int32_t device_id;
  /** Threads of the host that work on a call, at least 1. */
  int32_t threads;
  /**
   * The instructions in use: `avx512`, `avx2` or `portable`, or a CUDA device's architecture,
   * such as `sm_90`. Lives as long as the process, never NULL.
   */
  const char *instruction_set;
} spec_context_info;

/**
 * How `spec_checkpoint_convert` and `spec_checkpoint_stitch` work. All zero but `struct_size` is
 * right for a source that tells all there is to know. The strings are read during the call.
 */
typedef struct spec_convert_options {
  /** sizeof(spec_convert_options). */
  uint32_t struct_size;
  /** 0. */
  uint32_t flags;
  /**
   * The directory of the verifier (the target model), UTF-8. Its config.json tells what the
   * source does not, and its path goes into the result. NULL: none.
   */
  const char *verifier_directory;
  /**
   * What the source is, instead of what its layout shows: `dflash`, `dflash2`, `dspark`, `eagle`,
   * `eagle3`, `mtp`, `peagle` or `xpress`. NULL: as it is recognised.
   */
  const char *algorithm;
  /**
   * A JSON object, UTF-8, of settings that hold instead of the source's: those of its layout, or
   * `norm_before_residual`, `norm_before_fc`, `fc_norm`, `norm_output` and
   * `eagle_aux_hidden_state_layer_ids` of `eagle3`, `aux_hidden_state_layer_ids` of `dflash` and
   * the kinds that are made of it, `num_speculative_steps` of `mtp`, `layernorms` and
   * `fusion_bias` of `eagle`, `speculative_tokens` of all others. NULL: nothing.
   */
  const char *arguments;
  /**
   * Called again and again while files are written, from the thread of the call, with the bytes
   * that are written and all that will be: 0 goes on, anything else calls the work off. Must not
   * unwind. NULL: not called.
   */
  int32_t (*progress)(void *user, uint64_t done, uint64_t total);
  /** Handed to `progress`. NULL is allowed. */
  void *progress_user;
} spec_convert_options;

/**
 * A view of memory that the host owns. The codes are those of DLPack; `spec_tensor_from_dlpack`
 * below converts a DLTensor. All tensors of this version have two dimensions. A tensor may have
 * more rows than its use says, which are not looked at. The struct never grows.
 */
typedef struct spec_tensor {
  /**
   * The first element, aligned to the size of an element. NULL only where the tensor has no
   * elements.
   */
  void *data;
  /**
   * Where the memory is: `SPEC_DEVICE_CPU` in calls of CPU contexts, `SPEC_DEVICE_CUDA` or
   * `SPEC_DEVICE_CUDA_HOST` in those of CUDA contexts.
   */
  int32_t device_type;
  /** Which of the devices of that type: that of the context; 0 for host memory. */
  int32_t device_id;
  /** The element type: `SPEC_DTYPE_FLOAT` (16 or 32 bits) or `SPEC_DTYPE_BFLOAT` (16 bits). */
  uint8_t dtype_code;
  /** Bits of an element: 16 or 32. */
  uint8_t dtype_bits;
  /** 1. */
  uint16_t dtype_lanes;
  /** The number of dimensions in use: 2. */
  int32_t ndim;
  /** Elements along each dimension; those beyond `ndim` are not looked at. */
  int64_t shape[4];
  /**
   * Elements from one index to the next, along each dimension. All zero means that the
   * tensor is compact; otherwise that of the last dimension is 1, and that of a row is any
   * number from the row length on.
   */
  int64_t strides[4];
} spec_tensor;

/** Rows of a tensor that the host lends. The struct never grows. */
typedef struct spec_row_range {
  /**
   * `[rows, hidden]` with at least one row, F32, F16 or BF16, all ranges of a tensor alike,
   * on the context's device.
   */
  spec_tensor tensor;
  /**
   * The row of the whole tensor that is row 0 here: the sum of the rows of all ranges
   * before.
   */
  int64_t first_row;
} spec_row_range;

/**
 * How `spec_model_load` loads. All zero but `struct_size` is right for a checkpoint that stores
 * all its tensors, or whose verifier lies where its config says. The strings and ranges are read
 * during the call; the memory of lent tensors is kept.
 */
typedef struct spec_model_options {
  /** sizeof(spec_model_options). */
  uint32_t struct_size;
  /** `SPEC_MODEL_*` flags. */
  uint32_t flags;
  /**
   * The directory of the verifier (the target model), UTF-8. Its config.json tells the
   * number of layers and their width; its embedding and head are read where the checkpoint
   * lacks them and they are not lent. NULL: the path that the checkpoint names, seen from
   * the checkpoint or from the working directory, if there is a config.json.
   */
  const char *verifier_directory;
  /**
   * A JSON object, UTF-8, that is merged over the checkpoint's config.json, member by
   * member where both are objects. NULL: nothing. Of `mtp` it may hold `hidden_input`, the
   * hidden state that the speculator was trained on, which its files do not tell:
   * `post_norm`, the default, after the target's final norm, as the heads that come with
   * models are; or `pre_norm`, before it, as those that the speculators library trains are. Of
   * `dflash` and the kinds that are made of it it may hold `block_semantics`: `library`, the
   * default, runs blocks as the speculators library trains them, at their full length however
   * few tokens are drafted, each layer with its own mask and windows that end before the
   * block; `vllm` as that engine runs them, as long as the drafts take (but for `xpress`),
   * with one mask for all layers and windows that move with the row.
   */
  const char *config_overrides;
  /**
   * `[num_embedding]`: the verifier's token embedding, `[V, hidden]`, lent by the host as
   * ranges that cover all rows in order. Rows from V on are padding and not used. Used in
   * place, never written; it goes before the verifier's files. Where the checkpoint stores
   * its own, that is used and the report has a warning. NULL: read from files where needed.
   */
  const spec_row_range *embedding;
  /**
   * `[num_head]`: the verifier's LM head, lent likewise. Either `[V, hidden]`, padded or
   * not, used in place if the draft vocabulary is the whole one, otherwise the rows of the
   * drafted tokens are copied at load. Or exactly `[Vd, hidden]`, where Vd is below V: the
   * rows of the drafted tokens alone, in the order of `draft_token_ids`, used in place.
   * NULL: read from files where needed.
   */
  const spec_row_range *head;
  /** Elements of `embedding`; 0 where it is NULL, at least 1 otherwise. */
  int32_t num_embedding;
  /** Elements of `head`; 0 where it is NULL, at least 1 otherwise. */
  int32_t num_head;
  /**
   * Called once, from the thread that releases the last of the model and its sessions, when
   * nothing uses the lent tensors any more; also if none was needed. Not called if the load
   * fails. Must not unwind. NULL: the host keeps the tensors until the model and all its
   * sessions are released.
   */
  void (*lent_release)(void *user);
  /** Handed to `lent_release`. NULL is allowed. */
  void *lent_user;
} spec_model_options;

/** A hidden state of the target that a speculator reads. The struct never grows. */
typedef struct spec_feature_layer {
  /** The decoder layer of the target, from 0 to the number of layers. */
  int32_t layer;
  /** One of `SPEC_STAGE_*`. */
  int32_t stage;
  /** Elements of a row. */
  int32_t width;
  /** 0. */
  int32_t reserved;
} spec_feature_layer;

/** What a loaded speculator is and needs. The pointers are owned by the model and live as long. */
typedef struct spec_model_info {
  /** sizeof(spec_model_info), set by the host. */
  uint32_t struct_size;
  /** Elements of `features`, 0 to 64; 0 where the drafter reads tokens alone. */
  int32_t num_features;
  /**
   * `[num_features]`, never NULL: the hidden states that `spec_draft` wants, one tensor
   * each, in this order.
   */
  const spec_feature_layer *features;
  /**
   * The kind of speculator: `dflash`, `dflash2`, `dspark`, `eagle`, `eagle3`, `independent`,
   * `mlp`, `mtp`, `peagle` or `xpress`. Never NULL, ends with NUL.
   */
  const char *kind;
  /** V: tokens of the target's vocabulary. */
  int32_t vocabulary;
  /** Vd: tokens that can be proposed. */
  int32_t draft_vocabulary;
  /**
   * `[Vd]`: the target's id of each column of draft logits, rising, in host memory; NULL:
   * the identity, or, if `has_row_candidates`, what `spec_draft_args.draft_candidates` says.
   * Fits `spec_distribution.token_ids`.
   */
  const int32_t *draft_token_ids;
  /** H: the drafter's hidden size. */
  int32_t hidden_size;
  /** Decoder layers of the drafter; 0 for `mlp`, whose sessions keep no keys and values. */
  int32_t num_layers;
  /**
   * Trailing positions of a cached prefix whose rows must be committed again when another
   * token follows than before: 1 where the drafter's row t reads token t + 1, 0 for `dflash`
   * and the kinds that are made of it, whose rows read features alone, for `independent`,
   * whose row t reads token t, and for `mlp`, which keeps nothing of rows.
   */
  int32_t prefix_margin;
  /**
   * Tokens per round that the checkpoint says it was made for, 1 to 1024; 5 if it does not
   * say, which the report lists as assumed.
   */
  int32_t default_num_drafts;
  /**
   * Positions that the drafter was made for; sessions may have more, larger ones are
   * computed all the same.
   */
  int64_t max_position;
  /** Bytes of weights in memory of the allocator. Mapped and lent weights do not count. */
  uint64_t weight_bytes;
  /** C: columns of draft logits: Vd, or how many candidates each proposal is chosen from. */
  int32_t draft_columns;
  /**
   * 1 if each row of draft logits has candidates of its own, whose ids
   * `spec_draft_args.draft_candidates` takes; 0 if all have the same columns.
   */
  int32_t has_row_candidates;
  /**
   * 1 if drafting tells how probably each proposal is accepted, see
   * `spec_draft_args.confidence`; otherwise 0.
   */
  int32_t has_confidence;
  /**
   * The most tokens that are proposed for a sequence in one call, whatever it asks for; 1023
   * if the kind has no limit of its own.
   */
  int32_t most_drafts;
  /**
   * Rows of the blocks that are drafted in one pass, as in training; 0 where a call's drafts
   * say how many rows there are, or tokens are drafted one after the other.
   */
  int32_t block_size;
  /** The token that stands for those to be drafted, 0 to V - 1; -1: there is none. */
  int32_t mask_token;
} spec_model_info;

/** How `spec_session_create` sizes a session. */
typedef struct spec_session_options {
  /** sizeof(spec_session_options). */
  uint32_t struct_size;
  /** The most sequences in one call, 1 to 65536. Without a block table also the most slots. */
  int32_t max_sequences;
  /** The most rows committed in one call, over all sequences, 1 to 2^22. */
  int32_t max_rows;
  /** The most tokens proposed for a sequence in one call, 1 to 1023. */
  int32_t max_drafts;
  /** Positions lie below this; 1 to 2^31 - 2. */
  int32_t max_position;
  /** Positions per KV page; 0 is 16. */
  int32_t page_size;
  /**
   * Pages of the pool; 0 is what `max_sequences` slots need. A slot is ceil(max_position /
   * page_size) pages, slot i the i-th such piece of the pool; there are as many as fit, at
   * most `max_sequences`.
   */
  int32_t max_pages;
  /**
   * The element type of keys and values, a DLPack code (F32, F16 or BF16); 0 together with
   * 0 bits: the default of the device (F32 on the CPU, BF16 on CUDA devices).
   */
  uint8_t kv_dtype_code;
  /** Its bits. */
  uint8_t kv_dtype_bits;
  /** 0. */
  uint16_t reserved;
  /**
   * The host's memory for the pages, `kv_pool_size` bytes, aligned to 64, with any
   * contents, used by this session alone as long as it lives. NULL: from the allocator.
   */
  void *kv_pool;
  /**
   * Bytes at `kv_pool`; at least what the requirements say. Not looked at where that is
   * NULL.
   */
  uint64_t kv_pool_size;
  /**
   * The host's memory for the workspace, `workspace_size` bytes, aligned to 64, with any
   * contents, used by this session alone as long as it lives. NULL: from the allocator.
   */
  void *workspace;
  /**
   * Bytes at `workspace`; at least what the requirements say. Not looked at where that is
   * NULL.
   */
  uint64_t workspace_size;
  /**
   * Trees: the most nodes of a level, of one sequence, that have children, 0 to 256; so many
   * rows of each sequence pass the drafter at a time. 0: the session drafts chains only. More
   * only if the kind drafts trees, see `spec_draft_args.tree_shape`.
   */
  int32_t max_tree_width;
  /**
   * Trees: the most levels below the root, 1 to max_drafts. The workspace has keys and values
   * of max_tree_width nodes on each level but the last, unless the kind drafts blocks. 0: the
   * smaller of max_drafts and 8; 0 also if max_tree_width is 0.
   */
  int32_t max_tree_depth;
} spec_session_options;

/** What a session with given options takes. */
typedef struct spec_session_requirements {
  /** sizeof(spec_session_requirements), set by the host. */
  uint32_t struct_size;
  /** The alignment of both blocks, in bytes. */
  uint32_t alignment;
  /** Bytes of workspace. */
  uint64_t workspace_size;
  /** Bytes of the KV pool. */
  uint64_t kv_pool_size;
  /**
   * Bytes of one page. Page i lies at `i * page_bytes`. How a page is laid out is private,
   * but pages of `kv_pool` may be copied whole while no call runs.
   */
  uint64_t page_bytes;
  /** Bytes of keys and values of one position, in all layers. */
  uint64_t kv_bytes_per_token;
  /** Pages of the pool. */
  int32_t num_pages;
  /** Positions of a page. */
  int32_t page_size;
} spec_session_requirements;

/**
 * How tokens are drawn, one value per sequence. A NULL array means its default for all. A
 * temperature below 1e-5 is greedy: the largest logit, of equal ones the lowest id; the other
 * parameters then mean nothing. Filters are applied after the temperature, in the order min-p,
 * top-k, top-p. NaN: `spec_verify` flags the sequence as INVALID, `spec_draft` takes the default.
 */
typedef struct spec_sampling {
  /** sizeof(spec_sampling). */
  uint32_t struct_size;
  /** 0. */
  uint32_t reserved;
  /** `[B]` float, divides the logits. NULL: 0, greedy. */
  const float *temperature;
  /**
   * `[B]` int32: only the k largest logits, with all that equal the k-th; 0 or less: all.
   * NULL: all.
   */
  const int32_t *top_k;
  /**
   * `[B]` float: of what min-p and top-k keep, only the most probable tokens that reach this
   * share of its mass, with all that equal the last; 1 or more: all; 0 or less: the most
   * probable. NULL: all.
   */
  const float *top_p;
  /**
   * `[B]` float: only tokens at least this fraction as probable as the most probable; 0 or
   * less: all; above 1 counts as 1. NULL: all.
   */
  const float *min_p;
  /**
   * `[B]` uint64: the seed of the sequence's random numbers, any value. NULL: 0. A number
   * depends on the seed, the absolute position of the token and its purpose; that of a draft
   * also on how many drafts of its round lie before it and on its place among its siblings;
   * on nothing else.
   */
  const uint64_t *seed;
} spec_sampling;

/** The distribution that draft tokens were drawn from, as narrow as the drafter has it. */
typedef struct spec_distribution {
  /** sizeof(spec_distribution). */
  uint32_t struct_size;
  /**
   * Rows of `logits` per sequence if `row_begin` is NULL, 0 to 2^30; 0 is `max_drafts` of
   * the call.
   */
  int32_t rows_per_sequence;
  /**
   * `[Q, C]` F32, F16 or BF16: logits over C candidates, C at least 1 and below 2^21. NaN
   * counts as -inf.
   */
  spec_tensor logits;
  /**
   * The target's ids of the candidates: NULL (the identity, C is V), `[C]`, or `[Q, C]`
   * with `token_ids_stride` elements from one row to the next. A negative id is no
   * candidate; all others are below V, and none stands twice in a row.
   */
  const int32_t *token_ids;
  /** 0: `token_ids` is `[C]`, the same for all rows. Otherwise at least C. */
  int64_t token_ids_stride;
  /**
   * `[B]` int32: the row of the first draft; draft i of sequence b, counted from 0, was
   * drawn from row `row_begin[b] + i`. NULL: `b * rows_per_sequence`.
   */
  const int32_t *row_begin;
  /**
   * How the drafts were drawn from it; the seeds are not looked at. NULL: as the request's
   * own sampling says.
   */
  const spec_sampling *sampling;
} spec_distribution;

/**
 * The topology of draft trees, `[B, stride]` int32 each. Node 0 is the root, the known token, and
 * draft i, counted from 0, is node i + 1; parents come before their children, and siblings stand in
 * the order in which they are tested. A chain of K drafts has K + 1 nodes whose parents are -1, 0,
 * 1, ... `spec_draft` and `spec_tree_mask` fill one in; `spec_verify` reads `parents` alone.
 */
typedef struct spec_tree {
  /** sizeof(spec_tree). */
  uint32_t struct_size;
  /**
   * Elements from one sequence to the next in each array. 0: all sequences have the tree of the
   * first row (inputs only).
   */
  int32_t stride;
  /** The parent of each node; -1 for the root. */
  int32_t *parents;
  /** The first child of each node; -1 for none. */
  int32_t *first_child;
  /** The next node with the same parent; -1 for none. */
  int32_t *next_sibling;
  /** Edges from the root. */
  int32_t *depth;
  /** The position of each node: that of the root and the depth. */
  int32_t *position;
} spec_tree;

/** What rules go by that are not lossless; each looks at its own. */
typedef struct spec_leniency {
  /** sizeof(spec_leniency). */
  uint32_t struct_size;
  /** RELAXED: how many of the largest logits will do, with all that equal the last; 0 is 1. */
  int32_t top_n;
  /** RELAXED: how far below the largest logit they may lie, from 0 on. */
  float tolerance;
  /** TYPICAL: the probability that is always enough, above 0 and at most 1; 0 is 0.09. */
  float epsilon;
  /** TYPICAL: the factor of exp(-entropy), above 0 and at most 1; 0 is 0.3. */
  float alpha;
  /**
   * THRESHOLD: the probability with which a draft stands on its own, above 0 and at most 1; 0
   * is 1.
   */
  float threshold_single;
  /** THRESHOLD: what probabilities are divided by, above 0 and at most 1; 0 is 1. */
  float threshold_accumulated;
  /** 0. */
  uint32_t reserved;
  /**
   * SYNTHETIC: `[K]` in memory of the context's device: the probability that the first child
   * of a node is accepted, for the children of the root first, then by depth. NULL: 0.
   */
  const float *acceptance;
} spec_leniency;

/**
 * What is done to the target's logits at a node before a token is drawn there, under every rule
 * and for greedy sequences, too: what decoding without speculation would do after the same text.
 * The *text* at a node is what the sequence has emitted, the root included, then the tokens of the
 * path below the root down to the node, its own included.
 *
 * The steps are those of vLLM, in its order, each an operation in F32: masks, bad words, stop
 * tokens, biases, penalties. The temperature and the filters of `spec_sampling` follow. A token
 * that one of the first three excludes has the logit -inf whatever is added to it.
 *
 * The struct is in host memory, the arrays are in memory of the context's device; none is written.
 * B, K, V and R are those of `spec_verify_args`. A sequence is INVALID, with no effect on others,
 * if a mask of its rows is below -1 or not below M; if a range of its words or biases, or of the
 * tokens of one of its words, does not lie in its list, or one of its words has no token; if a
 * token of these is not from 0 to V - 1; if a bias, `frequency` or `presence` is NaN or
 * `repetition` is not above 0; if it has words and its `history_length` is below 0 or above
 * `history_stride`; or if it has penalties and its row of counts is not from 0 to S - 1.
 */
typedef struct spec_processing {
  /** sizeof(spec_processing). */
  uint32_t struct_size;
  /** M: masks, from 0 on. */
  int32_t num_masks;
  /**
   * `[M, mask_stride]` uint32: token t is allowed where bit t % 32, counted from the lowest, of
   * element t / 32 is 1: what xgrammar and llguidance write. Bits from V on are not looked at.
   * NULL only if M is 0.
   */
  const uint32_t *allowed;
  /**
   * `[R]`: the mask of each row of `logits`, which is that of a node; -1: all tokens are allowed.
   * NULL: row r has mask r; if M is 0, none.
   */
  const int32_t *mask_row;
  /** Elements from one mask to the next, at least (V + 31) / 32; 0 is that. */
  int32_t mask_stride;
  /** W: bad words, from 0 on. With 0 the arrays of words are not looked at. */
  int32_t num_bad_words;
  /**
   * `[num_word_tokens]`: the tokens of the words. The last token of a word is excluded where those
   * before it end the text; a word of one token always. NULL only if there are none.
   */
  const int32_t *word_tokens;
  /** `[W]`: where the tokens of each word begin in `word_tokens`. NULL only if W is 0. */
  const int32_t *word_begin;
  /** `[W]`: how many they are, at least 1. NULL only if W is 0. */
  const int32_t *word_length;
  /**
   * `[B]`: the first word of each sequence. Sequences may share words. NULL only if B or W is
   * 0.
   */
  const int32_t *bad_words_begin;
  /** `[B]`: how many words it has, from 0 on. NULL only if B or W is 0. */
  const int32_t *bad_words_length;
  /**
   * `[B, history_stride]`: the last tokens of the text at the root, in order, the root being the
   * last: one less than the longest word has will do. What is not there matches no word. NULL:
   * nothing is there.
   */
  const int32_t *history;
  /** `[B]`: how many tokens each sequence has in `history`. NULL only if that is NULL or B is 0. */
  const int32_t *history_length;
  /** Elements of `word_tokens`. */
  int32_t num_word_tokens;
  /** Elements from one sequence to the next in `history`, at least 1 if that is not NULL. */
  int32_t history_stride;
  /**
   * `[B]`: how many of the tokens to come are no stop tokens: those of `stop_tokens` are excluded
   * below a node whose depth is less than this (below the root the first token is emitted, below
   * its children the second). NULL or 0 or less: none.
   */
  const int32_t *min_tokens;
  /**
   * `[num_biases]`: the tokens of biases, none twice in the range of a sequence. NULL only if
   * there are none.
   */
  const int32_t *bias_tokens;
  /** `[num_biases]` float: what is added to the logit of each. */
  const float *bias_values;
  /** `[B]`: the first bias of each sequence. NULL only if B or `num_biases` is 0. */
  const int32_t *biases_begin;
  /** `[B]`: how many it has, from 0 on. NULL only if B or `num_biases` is 0. */
  const int32_t *biases_length;
  /** Elements of `bias_tokens` and `bias_values`. With 0 the arrays of biases are not looked at. */
  int32_t num_biases;
  /** S: rows of counts, from 0 on. */
  int32_t num_count_rows;
  /**
   * `[B]` float, above 0: a logit above 0 of a token that stands in the prompt or the text is
   * divided by it, any other one multiplied. NULL: 1 for all, which is none.
   */
  const float *repetition;
  /**
   * `[B]` float: taken from the logit of a token as many times as it stands in the text. NULL: 0
   * for all.
   */
  const float *frequency;
  /** `[B]` float: taken from the logit of a token that stands in the text. NULL: 0 for all. */
  const float *presence;
  /**
   * `[S, count_stride]`: how often each token stands in the text at the root. What the path adds
   * is counted by the library, so that only emitted tokens are to be added between calls. Numbers
   * below 0 count as 0. NULL: 0 for all.
   */
  const int32_t *output_counts;
  /**
   * `[S, prompt_stride]` uint32, bits as in `allowed`: 1 where the token stands in the prompt.
   * NULL: 0 for all.
   */
  const uint32_t *prompt_tokens;
  /** `[B]`: the row of each sequence in `output_counts` and `prompt_tokens`. NULL: b. */
  const int32_t *count_row;
  /** Elements from one row to the next in `output_counts`, at least V; 0 is that. */
  int32_t count_stride;
  /** Elements from one row to the next in `prompt_tokens`, at least (V + 31) / 32; 0 is that. */
  int32_t prompt_stride;
} spec_processing;

/**
 * What `spec_verify` tells of how probable the tokens were that it emits. Each place of a record's
 * tokens has n + 1 elements: of the emitted token, then of the n most probable tokens, the most
 * probable first and of equal ones that with the lowest id; the emitted token may be among them.
 * Values are natural logarithms of probabilities, -inf for what a filter or mask leaves out or what
 * is NaN; no token (-1) is named for the alternatives that there are not. Places that nothing was
 * emitted for have NaN, -1 and rank 0. Equal logits give equal values on every device.
 *
 * The struct is in host memory, the arrays are in memory of the context's device, the host's, and
 * written; none overlaps another array of the call.
 */
typedef struct spec_logprobs {
  /** sizeof(spec_logprobs). */
  uint32_t struct_size;
  /** n: the alternatives of each emitted token, 0 to 256. */
  int32_t num_alternatives;
  /** `[B, K + 1, n + 1]` F32, written, never NULL if B is not 0. */
  float *values;
  /** `[B, K + 1, n + 1]`, written: the tokens that the values are of. NULL only if n is 0. */
  int32_t *token_ids;
  /**
   * `[B, K + 1]`, written: one more than there are tokens more probable than the emitted one.
   * NULL: not wanted.
   */
  int32_t *ranks;
} spec_logprobs;

/**
 * The arguments of `spec_verify`. B is `num_sequences`, K is `max_drafts`, V is the target's
 * vocabulary, R is the number of rows of `logits`. Arrays are memory of the context's device (with
 * CUDA, page-locked host memory will do) unless they say otherwise; the host owns them, and none
 * is kept after the call's work is done. No output overlaps an input, but for `position`, or
 * another output.
 */
typedef struct spec_verify_args {
  /** sizeof(spec_verify_args). */
  uint32_t struct_size;
  /** `SPEC_PADDING`, `SPEC_LOSSY`, combined, or 0. */
  uint32_t flags;
  /** B, from 0 on. With 0 nothing is read or written. */
  int32_t num_sequences;
  /** K: the most drafts of a sequence, 0 to 1023: of a tree, the nodes beside the root. */
  int32_t max_drafts;
  /** One of `SPEC_RULE_*`. */
  int32_t rule;
  /** What stands beyond the emitted tokens of a record, with `SPEC_PADDING`; -1 otherwise. */
  int32_t padding;
  /**
   * `[R, V]` F32, F16 or BF16, V at least 1 and below 2^21: the target's raw logits. Row
   * `row_begin[b]` is the root's, row `row_begin[b] + i` that of draft i, counted from 1, which
   * is node i of a tree.
   * NaN counts as -inf.
   */
  spec_tensor logits;
  /** `[B]`: the root's row. NULL: `b * (K + 1)`. */
  const int32_t *row_begin;
  /**
   * `[B]`: drafts of each sequence, 0 to K; negative: the sequence takes no part. NULL: K for
   * all.
   */
  const int32_t *num_drafts;
  /**
   * `[B, draft_stride]`: the drafts, in the target's ids. What lies beyond num_drafts is
   * not looked at: nothing was proposed there. A -1 before it was struck out by the host
   * after it had been drawn: it is tested as rejected. NULL only if B or K is 0.
   */
  const int32_t *draft_tokens;
  /**
   * `[B]`, never NULL if B is not 0: the root's position, `position_stride` elements apart.
   * May be NEXT_POSITION in `decisions`, with their stride: each is read before its record
   * is written.
   */
  const int32_t *position;
  /** `[B]`: tokens that the sequence may still emit; 0 or less: none. NULL: no limit. */
  const int32_t *limit;
  /** Elements from one sequence to the next in `draft_tokens`, at least K; 0 is K. */
  int32_t draft_stride;
  /** Elements from one sequence to the next in `position`; 0 is 1. */
  int32_t position_stride;
  /** How the request samples. NULL: greedily. */
  const spec_sampling *sampling;
  /** The distribution that the drafts were drawn from. NULL: the drafts are taken as given. */
  const spec_distribution *draft;
  /**
   * The trees that the drafts are, of which `parents` is not NULL and in memory of the context's
   * device, its stride 0 or at least K + 1; the struct in host memory. NULL: chains.
   */
  const spec_tree *tree;
  /**
   * `[B, 2 * (K + 1)]` in [0, 1): the random numbers to use instead of the seeded ones;
   * element 2 i tests draft i, counted from 0, element 2 i + 1 draws the token that is emitted
   * below node i, which in a chain is the one after i accepted drafts. Elements beyond `2 *
   * (num_drafts + 1)` and those of greedy sequences are not looked at. NULL: seeded.
   */
  const double *uniforms;
  /**
   * `[num_stop_tokens]`: emission ends after any of these, which is emitted itself. NULL
   * only if there are none.
   */
  const int32_t *stop_tokens;
  /** Elements of `stop_tokens`. */
  int32_t num_stop_tokens;
  /**
   * Elements from one decision record to the next, at least `SPEC_DECISION_TOKENS + 2 * (K
   * + 1)`.
   */
  int32_t decision_stride;
  /**
   * `[B, decision_stride]`, written, never NULL if B is not 0: one record per sequence,
   * laid out by `SPEC_DECISION_*`. NEXT_TOKEN is left as it was for a sequence that emits
   * nothing, as is what lies beyond the path; the elements between FLAGS and TOKENS are set
   * to 0.
   */
  int32_t *decisions;
  /**
   * `[3 + K]` uint64, added to: rounds, drafts, emitted tokens, then for i
   * from 1 to K the rounds in which i drafts or more were accepted. Sequences that emitted nothing
   * do not count; of the others, all of `num_drafts` do. Calls with another K may add to the
   * same array. NULL: not wanted. Not shared between concurrent calls.
   */
  uint64_t *counters;
  /**
   * Scratch of at least the bytes that `spec_verify_workspace_size` says, aligned to 64,
   * for this call alone; what is in it before and after means nothing. NULL only if that is
   * 0.
   */
  void *workspace;
  /** Bytes at `workspace`. */
  uint64_t workspace_size;
  /** What the rule goes by if it is not lossless; the struct in host memory. NULL: the defaults. */
  const spec_leniency *leniency;
  /** What is done to the target's logits before tokens are drawn from them. NULL: nothing. */
  const spec_processing *processing;
  /**
   * How probable the emitted tokens were by `logits` as they are, at temperature 1; the struct in
   * host memory. NULL: not wanted.
   */
  const spec_logprobs *raw_logprobs;
  /**
   * The same by what they were drawn from: after `processing`, the temperature and the filters of
   * `sampling`; for greedy sequences after `processing`, at temperature 1. NULL: not wanted.
   */
  const spec_logprobs *processed_logprobs;
} spec_verify_args;

/** What trees `spec_draft` makes, alike for all sequences; in host memory, read in the call. */
typedef struct spec_tree_shape {
  /** sizeof(spec_tree_shape). */
  uint32_t struct_size;
  /** One of `SPEC_TREE_*`. */
  int32_t kind;
  /** N: nodes of a tree, the root among them, 1 to max_drafts of the call + 1. */
  int32_t num_nodes;
  /**
   * DYNAMIC: levels below the root, 1 to the session's max_tree_depth, and no more than the
   * model's `most_drafts` if the kind drafts blocks. 0 otherwise.
   */
  int32_t depth;
  /**
   * DYNAMIC: children of a node that are looked at, and nodes of a level that are expanded, 1 to
   * the session's max_tree_width. 0 otherwise.
   */
  int32_t width;
  /** 0. */
  int32_t reserved;
  /**
   * `[num_nodes]`: -1, then the parent of each node, which comes before it. Nodes are in the
   * order of their depths, so that the first of them are always a tree. At most max_tree_depth
   * levels below the root (of kinds that draft blocks no more than the model's `most_drafts`),
   * 256 children of a node, and max_tree_width nodes with children on a level. NULL for DYNAMIC.
   */
  const int32_t *parents;
} spec_tree_shape;

/**
 * The arguments of `spec_draft`. B is `num_sequences`, R is `num_rows`, H is the drafter's hidden
 * size, V and Vd are the vocabularies of the target and the drafter. Arrays are memory of the
 * session's device (with CUDA, page-locked host memory will do) unless they say otherwise; the
 * host owns them, and none is kept after the call's work is done. No output overlaps an input or
 * another output.
 */
typedef struct spec_draft_args {
  /** sizeof(spec_draft_args). */
  uint32_t struct_size;
  /** `SPEC_PADDING` or 0. */
  uint32_t flags;
  /** B, 0 to the session's max_sequences. */
  int32_t num_sequences;
  /**
   * R: rows of `tokens`, `rope_position`, `embeddings` and the features, 0 to 2^31 - 2.
   * More than the session's max_rows are fine as long as not more are committed. Sequences
   * with which more would be committed in all than max_rows or R are left out of the step.
   */
  int32_t num_rows;
  /** The most tokens to propose for a sequence in this call, 0 to the session's max_drafts. */
  int32_t max_drafts;
  /** What stands in `draft_tokens` beyond the proposals, with `SPEC_PADDING`. */
  int32_t padding;
  /**
   * Elements from one sequence to the next in `position`, `row_count` and `next_token`
   * alike, so that they may point into the decision records of `spec_verify`; 0 is 1.
   */
  int32_t decision_stride;
  /** Elements from one sequence to the next in `row_index`, at least 1 if that is not NULL. */
  int32_t row_index_stride;
  /**
   * `[B]`, never NULL if B is not 0: the position of `next_token`, below the session's
   * max_position. The committed rows are those of the positions `position - row_count` to
   * `position - 1`.
   */
  const int32_t *position;
  /**
   * `[B]`, never NULL if B is not 0: rows to commit, at most `position`. 0: the sequence
   * takes no part, and nothing is proposed for it.
   */
  const int32_t *row_count;
  /**
   * `[B]`, never NULL if B is not 0: the token after the last committed row, 0 to V - 1:
   * the new root, known but not yet run through the target; after a chunk of a prompt, the
   * prompt's next token.
   */
  const int32_t *next_token;
  /** `[B]`: the first row of each sequence. NULL: `b * (max_drafts + 1)`. */
  const int32_t *row_begin;
  /**
   * `[B, row_index_stride]`: the rows to commit where they are not contiguous, counted from
   * `row_begin[b]`; a negative first entry means contiguous. NULL: contiguous. Fits the path of
   * a decision record, with the stride of the records: no more than `row_count[b]` entries of a
   * row are looked at.
   */
  const int32_t *row_index;
  /**
   * `[B]`: tokens to propose, capped by `max_drafts`; 0 or less only commits. NULL:
   * `max_drafts` for all.
   */
  const int32_t *num_drafts;
  /**
   * `[B]`: tokens that the sequence may still emit; at most one less is proposed. NULL: no
   * limit.
   */
  const int32_t *limit;
  /**
   * `[B]`: the first position that has drafter rows, at most `position - row_count`;
   * earlier ones are not looked at, nor are pages that hold nothing else. NULL: 0.
   */
  const int32_t *context_begin;
  /**
   * `[B, block_table_stride]`: the pages of each sequence, page j for positions from `j *
   * page_size` on, each below the number of pages. They must reach max(position - 1,
   * position + n - 2), where n is the number of tokens that are proposed: the last row that
   * is written; for `independent`, position + n - 1. Pages that one sequence writes are in no
   * other table of the call. NULL: slots.
   */
  const int32_t *block_table;
  /**
   * Elements from one sequence to the next in `block_table`, at least 1 if that is not
   * NULL.
   */
  int32_t block_table_stride;
  /** Elements of `features`: those of the model. */
  int32_t num_features;
  /**
   * `[B]`: the slot of each sequence where `block_table` is NULL, below the number of slots
   * (see `max_pages`), no slot twice among sequences that take part, which is not checked.
   * NULL: b.
   */
  const int32_t *slot;
  /**
   * `[R]`, NULL only if R is 0: the token of each row, unshifted: row r carries the token
   * and the features of one position. 0 to V - 1, or -1: the row of `embeddings` instead.
   */
  const int32_t *tokens;
  /**
   * `[R]`: the positions that the rotary embedding turns by, any numbers; proposals count
   * on from the last committed row. NULL: the positions.
   */
  const int32_t *rope_position;
  /**
   * `[num_features]` in host memory, NULL only if that is 0: one `[R, width]` tensor (F32,
   * F16 or BF16) for each entry of the model's `features`, read at the rows that are
   * committed.
   */
  const spec_tensor *features;
  /**
   * `[R, H]` F32, F16 or BF16, the struct in host memory, its data on the device: the
   * embeddings of rows whose token is -1, before the drafter's norm. NULL: there are none.
   */
  const spec_tensor *embeddings;
  /** How proposals are drawn, each with a number of its own purpose. NULL: greedily. */
  const spec_sampling *sampling;
  /**
   * The struct in host memory; its arrays, with a stride of at least max_drafts + 1, are
   * written up to there: what trees the proposals are. Beyond them there is -1, 0 in `depth`
   * and `position`. Of a sequence that takes no part it is the root alone. Without
   * `tree_shape` it describes chains. NULL: not wanted.
   */
  const spec_tree *tree;
  /**
   * `[B, draft_stride]`, written: the proposals, in the target's ids, padded to
   * `max_drafts`; what lies beyond is left as it was. NULL only if B or `max_drafts` is 0.
   */
  int32_t *draft_tokens;
  /**
   * `[B]`, written: how many tokens were proposed, 0 for sequences that took no part. Fits
   * `spec_verify_args.num_drafts`. NULL: not wanted.
   */
  int32_t *num_proposed;
  /**
   * `[B * max_drafts, C]` (F32, F16 or BF16), the struct in host memory, where C is the
   * model's `draft_columns`; its data are written: row `b * max_drafts + i` has the logits
   * that proposal i, counted from 0, was drawn from, before temperature and filters; rows
   * without proposal are left as they were (those that `min_confidence` drops are written).
   * The draw uses the values as rounded to this type, so that they are the true distribution
   * for `spec_distribution`. NULL: not wanted.
   */
  const spec_tensor *draft_logits;
  /**
   * Elements from one sequence to the next in `draft_tokens`, at least `max_drafts`; 0 is
   * that.
   */
  int32_t draft_stride;
  /**
   * Proposals of a sequence end before the first one whose confidence, times that of all
   * before it, is below this, 0 to 1. A proposal's confidence depends on the proposals before
   * it alone, so that verification stays lossless. 0: they do not. Above 0 only if the model
   * `has_confidence`.
   */
  float min_confidence;
  /**
   * `[B * max_drafts, C]`, written: the target's ids of the columns of `draft_logits`, row by
   * row. Fits `spec_distribution.token_ids` with a stride of C. NULL: not wanted; NULL also
   * if the model has no `has_row_candidates`, and never if it has and `draft_logits` is given.
   */
  int32_t *draft_candidates;
  /**
   * `[B * max_drafts]`, written: how probably each proposal is accepted if all before it are,
   * 0 to 1, as the drafter sees it; elements without proposal are left as they were, but for
   * the first that `min_confidence` drops. NULL: not wanted; NULL also if the model has no
   * `has_confidence`.
   */
  float *confidence;
  /**
   * Trees instead of chains, in a session with max_tree_width, for kinds that draft one token
   * after the other: `eagle`, `eagle3`, `mtp`, `independent` and `mlp`, and of those that draft
   * blocks for `peagle`, `dflash`, `dflash2` and `dspark`; UNSUPPORTED for others. Draft i of a
   * sequence is then node i + 1 of its tree. `num_drafts` cuts the tree to as many drafts, those
   * of the first nodes (DYNAMIC: the best ones); what else bounds chains (`limit`, max_position,
   * `most_drafts`) bounds its depth. Row `b * max_drafts + n` of `draft_logits` has the logits
   * that the children of node n were chosen from, that of `draft_candidates` their ids; rows of
   * nodes without children are left as they were; DYNAMIC does not give them (UNSUPPORTED), as
   * its tokens are not drawn. All rows of a level are one run of the drafter; each sees the
   * context and its own path. Their keys and values are kept in the workspace, so that the pages
   * need reach no further than position - 1, or position for `independent` if anything is
   * proposed. A block is run once. Where its tokens do not depend on each other (`peagle`,
   * `dflash`, `dspark` without a Markov head), all nodes of a depth have the logits of its slot,
   * and those of one tree the same children, as far as each has any; a Markov head is stepped
   * for each node. The nodes of a depth of `dflash2` have the candidates of its slot, scored for
   * each node; children beyond them are -1, and so is what is below these. Proposals of trees
   * are not rated: `confidence` is NULL and `min_confidence` 0 (UNSUPPORTED). NULL: chains.
   */
  const spec_tree_shape *tree_shape;
} spec_draft_args;

/**
 * The arguments of `spec_tree_mask`. B is `num_sequences`, N is `max_nodes`. Arrays are memory of
 * the context's device (with CUDA, page-locked host memory will do) unless they say otherwise; the
 * host owns them, and none is kept after the call's work is done. No output overlaps an input or
 * another output. All outputs may be NULL, which means that they are not wanted.
 */
typedef struct spec_tree_mask_args {
  /** sizeof(spec_tree_mask_args). */
  uint32_t struct_size;
  /** `SPEC_TREE_MASK_*` flags; 0 without `mask`. */
  uint32_t flags;
  /** B, from 0 on. With 0 nothing is read or written. */
  int32_t num_sequences;
  /** N: the most nodes of a tree with its root, 1 to 1024. */
  int32_t max_nodes;
  /**
   * `[B, parents_stride]`, never NULL if B is not 0: the parent of each node, -1 for the root, a
   * node before it for every other. What lies beyond num_nodes is not looked at.
   */
  const int32_t *parents;
  /** `[B]`: nodes of each tree, 1 to N; 0 or less: the sequence takes no part. NULL: N for all. */
  const int32_t *num_nodes;
  /**
   * `[B]`: the root's position, `position_stride` elements apart, so that it may be NEXT_POSITION
   * in decision records. NULL only if neither positions nor a prefix without `prefix_length` are
   * wanted.
   */
  const int32_t *position;
  /**
   * `[B]`: columns of the prefix, from 0 on, with `SPEC_TREE_MASK_PREFIX`; otherwise not looked
   * at. NULL: the root's position, that is, all tokens before the root.
   */
  const int32_t *prefix_length;
  /**
   * Elements from one sequence to the next in `parents`, at least N; 0: all sequences have the
   * tree of the first row.
   */
  int32_t parents_stride;
  /** Elements from one sequence to the next in `position`; 0 is 1. */
  int32_t position_stride;
  /**
   * The struct in host memory; its arrays, with a stride of at least N, are written up to N.
   * Beyond num_nodes there is -1, 0 in `depth` and `position`. NULL: not wanted.
   */
  const spec_tree *tree;
  /**
   * `[B, position64_stride]` int64, written: the same as `tree.position`, for hosts whose
   * positions are as wide.
   */
  int64_t *position64;
  /** Elements from one sequence to the next in `position64`, at least N; 0 is N. */
  int32_t position64_stride;
  /** Paths of a sequence that `paths` has room for, 1 to N; 0 is N. */
  int32_t max_paths;
  /**
   * `[B, max_paths, path_length]`, written: the nodes from the root to each leaf, leaves in
   * ascending order, padded with -1.
   */
  int32_t *paths;
  /** `[B]`, written: leaves, and so paths. */
  int32_t *num_paths;
  /** Nodes of a path that `paths` has room for, 1 to N; 0 is N. */
  int32_t path_length;
  /** One of `SPEC_MASK_*`; 0 without `mask`. */
  int32_t mask_form;
  /**
   * Written, elements of `mask_form`, aligned to their size: which rows see which columns. A node
   * sees its ancestors and itself. Without `SPEC_TREE_MASK_RAGGED` each sequence has N rows, row
   * n begins at element `b * mask_sequence_stride + n * mask_row_stride`, and rows beyond
   * num_nodes see themselves alone (column n, or prefix + n; n if the sequence takes no part).
   */
  void *mask;
  /** `SPEC_MASK_ADDITIVE`: `SPEC_DTYPE_FLOAT` or `SPEC_DTYPE_BFLOAT`; otherwise 0. */
  uint8_t mask_dtype_code;
  /**
   * `SPEC_MASK_ADDITIVE`: bits of a number, 16 or 32; `SPEC_MASK_BITS`: bits of a word, 8, 16, 32
   * or 64; otherwise 0.
   */
  uint8_t mask_dtype_bits;
  /** 0. */
  uint16_t reserved;
  /**
   * Columns of a row, at least N, all of which are written: those behind the nodes are not seen.
   * With `SPEC_TREE_MASK_PREFIX`, at least the longest prefix and N together; otherwise 0 is N. 0
   * with `SPEC_TREE_MASK_RAGGED`.
   */
  int32_t mask_columns;
  /**
   * Elements from one row to the next, at least those of a row; 0 is that. 0 with
   * `SPEC_TREE_MASK_RAGGED`.
   */
  int64_t mask_row_stride;
  /**
   * Elements from one sequence to the next, at least those of N rows; 0 is `N *
   * mask_row_stride`. 0 with `SPEC_TREE_MASK_RAGGED`.
   */
  int64_t mask_sequence_stride;
  /** Elements at `mask` with `SPEC_TREE_MASK_RAGGED`, 0 to 2^31 - 1; otherwise 0. */
  int64_t mask_size;
  /**
   * `[B + 1]`, written with `SPEC_TREE_MASK_RAGGED`, otherwise NULL: the element with which the
   * rows of each sequence begin, and where the last ones end, none above `mask_size`. Sequences
   * follow each other; each begins with an element of its own.
   */
  int32_t *mask_begin;
  /** `[B]`, written: `SPEC_TREE_FLAG_*`, combined; 0 where all is well. */
  int32_t *sequence_flags;
} spec_tree_mask_args;

/**
 * The arguments of `spec_kv_compact`. B is `num_sequences`, N is `max_nodes`, L is `num_layers`.
 * Arrays are memory of the context's device (with CUDA, page-locked host memory will do) unless
 * they say otherwise; the host owns them, and none is kept after the call's work is done. No output
 * overlaps an input or another output.
 */
typedef struct spec_kv_compact_args {
  /** sizeof(spec_kv_compact_args). */
  uint32_t struct_size;
  /** 0. */
  uint32_t flags;
  /** B, from 0 on. With 0 nothing is read or written. */
  int32_t num_sequences;
  /** N: the most nodes of a tree, and of a path, 1 to 1024: K + 1 for decision records. */
  int32_t max_nodes;
  /**
   * `[B]`, never NULL if B is not 0: the position of the next root, `decision_stride` elements
   * apart: NEXT_POSITION of a decision record. With p for `position - row_count`, the root that
   * the path begins with is at position p, and node n of its tree was run in the row of p + n.
   */
  const int32_t *position;
  /**
   * `[B]`, never NULL if B is not 0: nodes of the path with its root, `decision_stride` elements
   * apart: EMITTED of a decision record. 0: the sequence takes no part.
   */
  const int32_t *row_count;
  /**
   * `[B, path_stride]`, never NULL if B is not 0: the nodes of the path, ascending from 0, the
   * root: the path of a decision record. No more than `row_count[b]` entries of a row are looked
   * at.
   */
  const int32_t *path;
  /** Elements from one sequence to the next in `position` and `row_count` alike; 0 is 1. */
  int32_t decision_stride;
  /** Elements from one sequence to the next in `path`, at least 1 if B is not 0. */
  int32_t path_stride;
  /**
   * `[B, block_table_stride]`: the pages of each sequence, page j for positions from `j *
   * page_size` on. Those of the rows of a tree are different ones, and in no other table of the
   * call. NULL: sequence b has page b alone, so that `page_size` is the length of its contiguous
   * rows; with a stride of 1, the table holds the slot of each sequence.
   */
  const int32_t *block_table;
  /** Elements from one sequence to the next in `block_table`, at least 1 if that is not NULL. */
  int32_t block_table_stride;
  /** Rows of a page, at least 1. */
  int32_t page_size;
  /**
   * Pages that there are, at least 1, and at least B if `block_table` is NULL. Pages times rows
   * are at most 2^31 - 1.
   */
  int32_t num_pages;
  /** One of `SPEC_KV_*`: what strides of 0 stand for, and which strides are sound. */
  int32_t layout;
  /**
   * L: elements of `keys` and `values`, 0 to 4096. 0: nothing is moved, only listed; what follows
   * up to `head_stride` is not looked at.
   */
  int32_t num_layers;
  /** Heads of a row, at least 1. */
  int32_t num_heads;
  /**
   * Bytes of a head in a row, at least 1: any type of element, any width. Those of all heads of a
   * row are at most 2^31 - 1.
   */
  int64_t head_bytes;
  /**
   * `[L]` in host memory, never NULL, nor its elements: where the pages of keys of each layer
   * begin, on the device.
   */
  void *const *keys;
  /**
   * `[L]` in host memory: where the pages of values begin, laid out as those of the keys. NULL:
   * there are only keys; a host whose values are wider than its keys makes a call for each.
   */
  void *const *values;
  /** Bytes from one page to the next; 0: pages follow each other. */
  int64_t page_stride;
  /**
   * Bytes from one row of a page to the next; 0: rows (NHD), or those of a head (HND), follow
   * each other.
   */
  int64_t row_stride;
  /** Bytes from one head to the next; 0: heads follow each other. */
  int64_t head_stride;
  /**
   * `[B, row_list_stride]`, written: for each node of the path the row that held it, `page *
   * page_size` and its place in the page, padded with -1 to N. NULL: not wanted.
   */
  int32_t *source_rows;
  /** `[B, row_list_stride]`, written: the row that holds it now, likewise. NULL: not wanted. */
  int32_t *destination_rows;
  /** Elements from one sequence to the next in both lists, at least N; 0 is N. */
  int32_t row_list_stride;
  /** 0. */
  int32_t reserved;
  /** `[B]`, written: `SPEC_KV_COMPACT_FLAG_*`; 0 where all is well. NULL: not wanted. */
  int32_t *sequence_flags;
} spec_kv_compact_args;

/** The call did what it says. */
#define SPEC_OK 0

/** An argument is missing, out of range or inconsistent with another one. */
#define SPEC_ERROR_INVALID_ARGUMENT 1

/**
 * Well-formed, but not something that this version or build can do; 0 was expected in a field
 * that is not in use yet.
 */
#define SPEC_ERROR_UNSUPPORTED 2

/** A file could not be opened or read. */
#define SPEC_ERROR_IO 3

/** A file was read, and its contents are not a sound checkpoint. */
#define SPEC_ERROR_FORMAT 4

/** An allocation was refused, or a thread could not be started. */
#define SPEC_ERROR_OUT_OF_MEMORY 5

/** The session is in use by another thread. */
#define SPEC_ERROR_BUSY 6

/** The device or its driver failed, or is missing. CPU contexts never return it. */
#define SPEC_ERROR_DEVICE 7

/** A defect of the library; the message says where. Report it. */
#define SPEC_ERROR_INTERNAL 8

/** The host called the work off, by what its progress callback returned. Nothing has changed. */
#define SPEC_ERROR_CANCELLED 9

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The ABI version of the library that is linked: `SPEC_ABI_VERSION` of its own header.
 *
 * Contract: any thread; does not block; allocates nothing; no stream.
 */
int32_t spec_abi_version(void);

/**
 * The version of the library, such as `0.1.0`; static storage, never NULL.
 *
 * Contract: any thread; does not block; allocates nothing; no stream.
 */
const char *spec_version(void);

/**
 * Says whether the library has a feature: 1 if so, 0 if not or if it does not know the name.
 *
 * Names so far: `cpu` (CPU contexts), `cuda` (CUDA contexts, where there is a driver), `dflash`,
 * `dflash2`, `dspark`, `eagle`, `eagle3`, `independent`, `mlp`, `mtp`, `peagle` and `xpress` (the
 * kinds of speculator), `verify.chain` (verification of chains), `verify.processing`
 * (`spec_processing`), `draft.sampling` (sampled drafts), `tree.mask` (`spec_tree_from_paths` and
 * `spec_tree_mask`), `kv.compact` (`spec_kv_compact`). `name` ends with NUL; NULL gives 0.
 *
 * Contract: any thread; does not block; allocates nothing; no stream.
 */
int32_t spec_feature(const char *name);

/**
 * The name of a status in the header, such as `SPEC_ERROR_FORMAT`, or `unknown status`; static
 * storage, never NULL.
 *
 * Contract: any thread; does not block; allocates nothing; no stream.
 */
const char *spec_status_name(spec_status status);

/**
 * Creates a context.
 *
 * `options` NULL means all defaults; it is read during the call only. `context` is not NULL;
 * `*context`, owned by the host until `spec_context_release`, is NULL if the call fails. Errors:
 * INVALID_ARGUMENT (a thread count outside 0 to 1024, a device that is not there, a CUcontext of
 * another device, an allocator without both functions), UNSUPPORTED (a device type that this build
 * does not have, a field that it does not know), OUT_OF_MEMORY (threads could not be started),
 * DEVICE (CUDA: there is no driver, it is too old or fails, there is no NVRTC where kernels have
 * to be compiled; the message says what is missing), IO (images of `kernel_directory`).
 *
 * Contract: any thread, on a CUDA device not while a stream is being captured; blocks while
 * threads start, or while kernels are loaded, which takes seconds if they have to be compiled;
 * allocates; no stream.
 */
spec_status spec_context_create(const spec_context_options *options,
                                spec_context **context,
                                spec_error *error);

/**
 * Gives a context up. Its models and sessions keep what they need of it. NULL is ignored.
 *
 * Contract: any thread, not while another call uses the handle; blocks while the threads end, if
 * nothing else keeps the context; allocates nothing; no stream.
 */
void spec_context_release(spec_context *context);

/**
 * Says what a context is.
 *
 * `info.struct_size` is set by the host; as much as that is written. Errors: INVALID_ARGUMENT.
 *
 * Contract: any thread; does not block; allocates nothing; no stream.
 */
spec_status spec_context_get_info(const spec_context *context,
                                  spec_context_info *info,
                                  spec_error *error);

/**
 * Describes a checkpoint directory as JSON, without loading it.
 *
 * The members are `kind`, `directory`, `supported` (whether this library can load it), `reason`
 * (why not), `needed_from_verifier`, `default_num_drafts`, `features`, `config`, `tensors` and
 * `warnings`; later versions may add some. A kind that cannot be loaded is described too.
 *
 * `directory` is a UTF-8 path that ends with NUL. `json`, `[capacity]` bytes, receives UTF-8 that
 * ends with NUL; `length`, nullable, the number of its bytes without the NUL. With `json` NULL and
 * `capacity` 0 only `length` is written. Errors: IO, FORMAT (not a checkpoint, or damaged),
 * INVALID_ARGUMENT (`capacity` too small: `length` is written all the same).
 *
 * Contract: any thread; blocks (reads files); allocates; no stream.
 */
spec_status spec_checkpoint_inspect(const char *directory,
                                    char *json,
                                    uint64_t capacity,
                                    uint64_t *length,
                                    spec_error *error);

/**
 * Checks a checkpoint: everything that is wrong with it, or looks wrong, each with advice.
 *
 * All tensors are read, without a device: values that are NaN, infinite, all zero or all the same;
 * missing and unused tensors; maps between vocabularies; settings that converters are known to have
 * lost, or that were assumed; and whether the speculator fits its verifier. The report is JSON with
 * the members `verdict` (`sound`, `suspicious` or `broken`), `kind`, `directory`, `verifier`,
 * `tensors` (how many were read) and `findings`, the worst first: `severity` (`note`, `suspicious`
 * or `broken`), `subject`, `found` and `advice`. Later versions may add some.
 *
 * `directory` is a UTF-8 path that ends with NUL; so is `verifier_directory`, or NULL: then it is
 * the verifier that the checkpoint names, if that is there. `json`, `capacity` and `length` are as
 * in `spec_checkpoint_inspect`; to ask for the length alone reads the tensors, too. What is found
 * is no error of the call. Errors: IO (no such directory), FORMAT (the verifier's configuration is
 * damaged), INVALID_ARGUMENT (`capacity` too small: `length` is written all the same).
 *
 * Contract: any thread; blocks (reads all files); allocates, little whatever the size of the
 * checkpoint; no stream.
 */
spec_status spec_checkpoint_check(const char *directory,
                                  const char *verifier_directory,
                                  char *json,
                                  uint64_t capacity,
                                  uint64_t *length,
                                  spec_error *error);

/**
 * Converts a checkpoint in the layout of a research repository, or the MTP layer that a model
 * carries, to the speculators format.
 *
 * The layouts are those of `spec_model_load`. The result is what the library that defines the
 * format makes of the source, with these differences: tensors keep the types and bytes that they
 * have; all layers, and the norms of queries, keys and features, are kept; nothing is written that
 * was never filled; no Python files are written. It loads in this library: that is made sure of
 * before anything is written.
 *
 * `source` and `output` are UTF-8 paths that end with NUL. `output` must not be there yet, or be
 * an empty directory; it appears whole, when all of it is on the disk, or not at all, whatever
 * happens; directories above it are made. NULL: nothing is written, and the report tells what would
 * be. `options` NULL means all defaults. The report is JSON with the members `source`, `layout`,
 * `kind`, `renamed` (`from`, `to`), `dropped` (`name`, `reason`), `notes`, `config`, `tensors`,
 * `assumed_defaults` and `warnings`; later versions may add some. `json`, `capacity` and `length`
 * are as in `spec_checkpoint_inspect`, and all three may be zero: no report. The same source and
 * options give the same report, so that a call with `output` NULL can ask for its length.
 *
 * Errors: IO (also what is written: no room, no permission), FORMAT (damaged, or not what its
 * layout says), UNSUPPORTED (no layout that is known, or a variant of one that could not be run),
 * INVALID_ARGUMENT (the options; a checkpoint in the speculators format; an output that is not
 * empty; a `capacity` too small: `length` is written all the same, and no output), CANCELLED,
 * OUT_OF_MEMORY.
 *
 * Contract: any thread; blocks (reads and writes files); allocates, a few megabytes whatever the
 * size of the checkpoint; no stream.
 */
spec_status spec_checkpoint_convert(const char *source,
                                    const char *output,
                                    const spec_convert_options *options,
                                    char *json,
                                    uint64_t capacity,
                                    uint64_t *length,
                                    spec_error *error);

/**
 * Puts the weights of an MTP checkpoint in the speculators format back into a copy of the model
 * that they belong to, under the names that engines read there.
 *
 * `finetuned` and `output` are as `source` and `output` of `spec_checkpoint_convert`; of
 * `options`, which is not NULL, `verifier_directory` is the model, and `algorithm` and `arguments`
 * are NULL. All files of the model are copied; those with weights that are replaced are written
 * anew, with the tensors in their places. Experts are taken apart where the model stores them one
 * by one. Of a model with an index each tensor must be there already; the shapes must be the same.
 * The report has the members `finetuned`, `verifier`, `replaced` (`name`, `file`),
 * `rewritten_files` and `copied_files`. Errors: as for `spec_checkpoint_convert`.
 *
 * Contract: as `spec_checkpoint_convert`.
 */
spec_status spec_checkpoint_stitch(const char *finetuned,
                                   const char *output,
                                   const spec_convert_options *options,
                                   char *json,
                                   uint64_t capacity,
                                   uint64_t *length,
                                   spec_error *error);

/**
 * Loads a speculator.
 *
 * `directory` is a UTF-8 path, ending with NUL, of a checkpoint in the speculators format, or of a
 * language model as transformers saves it, which is an `independent` drafter. Or of a checkpoint in
 * the layout of those who publish it: EAGLE-3, EAGLE and HASS of their authors, EAGLE-3 and P-EAGLE
 * of SpecForge, DFlash and DFlash2 of z-lab (also under the names of transformers' assistants),
 * DSpark of DeepSpec, XPress as it is released, or a model that carries an MTP layer, which is then
 * its own verifier. Those are read as `spec_checkpoint_convert` would write them; `translation` in
 * the report says what that came to: `layout`, `renamed`, `dropped`, and `notes`, such as on layers
 * that are counted otherwise.
 * `options` NULL means all defaults. `model` is not NULL; `*model`, owned by the host until
 * `spec_model_release`, is NULL if the call fails. Errors: IO, FORMAT (damaged, or a tensor or
 * setting is missing or wrong), UNSUPPORTED (a kind, or a variant of one, that this version cannot
 * run), OUT_OF_MEMORY, INVALID_ARGUMENT (the options; lent tensors of another shape; or neither
 * the checkpoint nor the host has the embedding, the head or the layers of the features).
 *
 * Contract: any thread; blocks (reads files); allocates, the weights from the context's allocator;
 * no stream.
 */
spec_status spec_model_load(const spec_context *context,
                            const char *directory,
                            const spec_model_options *options,
                            spec_model **model,
                            spec_error *error);

/**
 * Gives a model up. Its sessions keep it until they are released. NULL is ignored.
 *
 * Contract: any thread, not while another call uses the handle; may release memory, call
 * `lent_release` and, with the last handle of its context, wait for threads to end; allocates
 * nothing; no stream.
 */
void spec_model_release(spec_model *model);

/**
 * Says what a model is and needs.
 *
 * `info.struct_size` is set by the host; as much as that is written. The pointers live as long as
 * the handle. Errors: INVALID_ARGUMENT.
 *
 * Contract: any thread; does not block; allocates nothing; no stream.
 */
spec_status spec_model_get_info(const spec_model *model,
                                spec_model_info *info,
                                spec_error *error);

/**
 * Hands out the load report as JSON.
 *
 * The members are `kind`, `directory`, `files`, `tensors` (`used`, `unused` with a reason,
 * `absent` with what is used instead), `assumed_defaults`, `corrected` (quirks),
 * `unused_settings` (those that say nothing about how the speculator runs), `unknown_settings`,
 * `overrides`, `verifier` (its directory and the tensors read from it) and `warnings`; later
 * versions may add some. `json`, `capacity`, `length` and errors as in
 * `spec_checkpoint_inspect`.
 *
 * Contract: any thread; does not block; allocates nothing; no stream.
 */
spec_status spec_model_get_report(const spec_model *model,
                                  char *json,
                                  uint64_t capacity,
                                  uint64_t *length,
                                  spec_error *error);

/**
 * Says how much memory a session with these options takes.
 *
 * `options` is not NULL; its `kv_pool` and `workspace` may be NULL, their sizes are not compared.
 * `requirements.struct_size` is set by the host; as much as that is written. Errors:
 * INVALID_ARGUMENT (a size out of range, or so large that the total does not fit the address
 * space), UNSUPPORTED (a field that this version does not know).
 *
 * Contract: any thread; does not block; allocates nothing; no stream.
 */
spec_status spec_session_get_requirements(const spec_model *model,
                                          const spec_session_options *options,
                                          spec_session_requirements *requirements,
                                          spec_error *error);

/**
 * Creates a session.
 *
 * `options` is not NULL. `session` is not NULL; `*session`, owned by the host until
 * `spec_session_release`, is NULL if the call fails. Errors: INVALID_ARGUMENT (sizes, memory too
 * small or not aligned), UNSUPPORTED (a field that this version does not know), OUT_OF_MEMORY,
 * DEVICE.
 *
 * Contract: any thread, on a CUDA device not while a stream is being captured; does not block
 * (CPU), waits for the device (CUDA); allocates its record, and from the context's allocator what
 * the host does not give; no stream.
 */
spec_status spec_session_create(const spec_model *model,
                                const spec_session_options *options,
                                spec_session **session,
                                spec_error *error);

/**
 * Prepares a session for its first step.
 *
 * Clears the KV pool, so call it before anything is committed, and reads the workspace and the
 * weights once, mapped ones too; lent tensors are not touched. On a CUDA device only the pool is
 * cleared, as everything is resident. May be left out. `stream` is NULL on the CPU. Errors: BUSY,
 * INVALID_ARGUMENT (also a stream that is being captured), DEVICE.
 *
 * Contract: one thread at a time per session; blocks until all is resident (CPU), or enqueues
 * (CUDA); allocates nothing; on `stream`, not in a capture.
 */
spec_status spec_session_warm_up(spec_session *session, void *stream, spec_error *error);

/**
 * Reports what went wrong inside of calls of `spec_draft` since the last poll.
 *
 * A sequence whose rows, positions, pages or tokens were out of range took no part in its step and
 * proposed nothing. Returns SPEC_OK if there was none, otherwise INVALID_ARGUMENT with the index
 * of the first one in its call and what was expected; then the slate is clean. On a CUDA device it
 * tells what the work that is done has found, and does not wait for the rest. Errors: BUSY.
 *
 * Contract: one thread at a time per session; does not block; allocates nothing if all is well; no
 * stream, allowed while any stream is being captured.
 */
spec_status spec_session_poll(spec_session *session, spec_error *error);

/**
 * Gives a session up; its KV pool and workspace of the host are not used any more. NULL is
 * ignored.
 *
 * Contract: any thread, not while another call uses the handle, nor before its work on a CUDA
 * device is done, that of graphs which replay it included; releases memory, and with the last
 * handle of a model does what `spec_model_release` does; allocates nothing; no stream.
 */
void spec_session_release(spec_session *session);

/**
 * Says how many bytes of workspace `spec_verify` needs.
 *
 * Of `args` only the flags, the rule, `num_sequences`, `max_drafts`, whether there are a `tree`,
 * `processing` and log-probabilities, and the shapes of `logits` and `draft` are looked at: the
 * data and the arrays may be NULL. `size` is not NULL. The answer is 0 for 0 sequences. It
 * depends on the rule, on V, on C where there is a `draft`, on K, and on how many threads (CPU)
 * or blocks (CUDA) work at a time; on CUDA on the number of sequences, too, and for short rows or
 * few of them it is far less than for many long ones. With `processing` it is larger: on the CPU
 * by a row of V floats for each thread, on CUDA by one for each of B * (K + 1) nodes. It depends
 * neither on the rows that there are nor on the type of the logits, and is enough for any batch
 * on this context with as many sequences, K, V and C or fewer by the same rule; with `draft`,
 * `processing` or log-probabilities it is enough without, and with a `tree` for chains, too.
 * Errors: INVALID_ARGUMENT, UNSUPPORTED.
 *
 * Contract: any thread; does not block; allocates nothing; no stream.
 */
spec_status spec_verify_workspace_size(const spec_context *context,
                                       const spec_verify_args *args,
                                       uint64_t *size,
                                       spec_error *error);

/**
 * Decides which drafts the target accepts, and which token follows them.
 *
 * For each sequence one decision record is written: drafts accepted, tokens emitted, the next
 * root and its position, the tokens, and the path that `spec_draft` commits. Drafts are accepted
 * from the root on while the rule keeps them; then one more token is emitted, the replacement of
 * rejected drafts or, after the last one of a path, the bonus token. In a `tree` drafts are
 * accepted along one path; where siblings are equal, the longest one. Logits are taken as they
 * are, or as `processing` makes them; `sampling` says how tokens are drawn from them. Only the rows
 * that a decision needs are read (CPU), or all rows of the sequences that take part (CUDA). Where
 * log-probabilities are wanted, the rows of the path are read once more for each kind of them.
 *
 * Every draw is one number through the inverse of the cumulative distribution in the order of
 * the ids, and weights are integers: equal logits and numbers give equal decisions for any number
 * of threads, any instruction set and beside any other sequences.
 *
 * The emission of a sequence ends early after a draft that is a stop token and after `limit`
 * tokens. The flag STOPPED is set whenever the last emitted token is a stop token, LIMIT whenever
 * `limit` tokens were emitted, also if that is the bonus token. A limit of 0 or less emits
 * nothing. What is out of range in the contents of the arrays makes that sequence emit nothing,
 * with the flag INVALID; the others are not affected.
 *
 * `stream` is NULL on the CPU. Errors: INVALID_ARGUMENT, UNSUPPORTED (a vocabulary of 2^21 tokens
 * or more, a rule or flag that this version does not know, a tree with a rule for chains); then
 * nothing has changed.
 * DEVICE: the device or its driver failed.
 *
 * Contract: any thread; the work is done when the call returns (CPU) or enqueued (CUDA); does not
 * block; allocates nothing unless it fails; on `stream`, which may be capturing (CUDA).
 */
spec_status spec_verify(const spec_context *context,
                        const spec_verify_args *args,
                        void *stream,
                        spec_error *error);

/**
 * Commits verified rows to the drafter's context, then proposes tokens below the new root of
 * each sequence.
 *
 * For each sequence the rows of positions `position - row_count` to `position - 1` are
 * committed: prompt chunks and accepted rows alike, mixed in one batch. All earlier positions from
 * `context_begin` on were committed before, in the pages that the call names. Then
 * min(`num_drafts`, `max_drafts`, `limit` - 1, max_position - position + 1) tokens are proposed,
 * where max_position is the session's (one less where the drafter is `independent`), and no more
 * than the model's `most_drafts`. Keys and values
 * that drafting itself makes are overwritten by the next commit; nothing else is kept, so a
 * smaller `position` is a rollback, and a sequence that is not mentioned costs nothing.
 *
 * For EAGLE-3 (Li et al., 2025, "EAGLE-3: Scaling up Inference Acceleration of Large Language
 * Models via Training-Time Test") row t fuses the features of position t with the embedding of
 * token t + 1; each further step continues from the drafter's own hidden state. So it is for
 * EAGLE (Li et al., 2024, "EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty")
 * and MTP (DeepSeek-AI, 2024, "DeepSeek-V3 Technical Report"), whose one feature is the last
 * hidden state of the target. An independent drafter (Leviathan et al., 2023, "Fast Inference from
 * Transformers via Speculative Decoding") is a language model of its own and reads no features:
 * row t has token t, and the row of `next_token` runs with those that are committed if anything
 * is proposed. An MLP speculator (Wertheimer et al., 2024, "Accelerating Production LLMs with
 * Combined Token/Embedding Speculators") reads `next_token` and the one feature of the last
 * committed row, and keeps nothing. P-EAGLE and DFlash, as the speculators format has them, draft
 * all tokens in one pass, over the last known token and rows with a mask token behind it; sampled
 * tokens are drawn independently. The pass leaves nothing in the pages, which need have room for
 * the committed rows alone. Three kinds of that format add to DFlash what makes the tokens of a
 * pass depend on each other: DSpark draws them one after the other, each from logits that the one
 * before has changed; so does DFlash2, out of a few candidates for each; XPress chooses all
 * greedily, then all again from logits that the choice before has changed, a fixed number of
 * times, and draws those of the last. In all of them the logits that a token was drawn from are
 * those given the tokens drawn before it, so that verification with them is lossless.
 *
 * `stream` is NULL on the CPU. Errors: INVALID_ARGUMENT (also more sequences than slots where
 * `block_table` is NULL), UNSUPPORTED (a flag or field that this version does not know, trees
 * of a kind or on a device that this version does not draft them with),
 * BUSY; then nothing has changed. DEVICE: the device or its driver failed; what the call had
 * enqueued by then is done or not. What is wrong in the contents of the arrays (rows outside of
 * the call's or more than max_rows or R in all, positions, pages or slots, tokens) takes the
 * sequence out of the step: nothing of it is committed or proposed, its outputs are padded, and
 * `spec_session_poll` reports it.
 *
 * Contract: one thread at a time per session; the work is done when the call returns (CPU) or
 * enqueued (CUDA); does not block; allocates nothing unless it fails; on `stream`, which may be
 * capturing (CUDA).
 */
spec_status spec_draft(spec_session *session,
                       const spec_draft_args *args,
                       void *stream,
                       spec_error *error);

/**
 * Makes the parents of a tree's nodes out of a list of paths, as static trees are published: those
 * of Medusa (Cai et al., 2024, "Medusa: Simple LLM Inference Acceleration Framework with Multiple
 * Decoding Heads"), EAGLE (Li et al., 2024, "EAGLE: Speculative Sampling Requires Rethinking
 * Feature Uncertainty") and HASS (Zhang et al., 2024, "Learning Harmonized Representations for
 * Speculative Sampling").
 *
 * `paths` is `[num_paths, max_length]` int32 in host memory, NULL only if that is 0: each row has
 * the rank of a node among its siblings at each level below the root, from 0 on, padded with -1.
 * `[1, 0]` is the most probable token below the second most probable one below the root. What a
 * path begins with is in the tree, too; order and repetition do not matter. Nodes are numbered
 * from the root, 0, level by level, and in a level by parent, then by rank.
 *
 * `parents` and `ranks`, in host memory, have room for `capacity` elements. `parents[n]` is the
 * parent of node n, -1 for the root. `ranks[n]` is the last element of its path, 0 for the root:
 * which of the tokens below its parent it is. `ranks` NULL means that they are not wanted: they
 * have to be 0, 1, ... among siblings then, as parents do not tell of gaps. `parents` NULL with a
 * `capacity` of 0: only the nodes are counted. `num_nodes`, not NULL, takes the number of nodes
 * with the root, also if the capacity is too small. Errors: INVALID_ARGUMENT (an entry below -1
 * or behind padding, gaps without `ranks`, more than 1024 nodes, too small a capacity); then
 * `parents` and `ranks` have not changed.
 *
 * Contract: any thread; does not block; allocates nothing unless it fails; no stream.
 */
spec_status spec_tree_from_paths(const int32_t *paths,
                                 int32_t num_paths,
                                 int32_t max_length,
                                 int32_t *parents,
                                 int32_t *ranks,
                                 int32_t capacity,
                                 int32_t *num_nodes,
                                 spec_error *error);

/**
 * Tells a host that verifies trees of its own what it needs to run its target over them: the
 * links of each tree, depths and positions, the paths to the leaves, and the mask of its
 * attention.
 *
 * Whatever output is not NULL is written, all of them from the parents. In a mask a node sees its
 * ancestors and itself, and, with `SPEC_TREE_MASK_PREFIX`, all columns of the prefix. In SGLang's
 * terms, `SPEC_MASK_BOOL` is QLEN_ONLY, with the flags PREFIX and RAGGED it is FULL_MASK, and
 * `SPEC_MASK_BITS` is QLEN_ONLY_BITPACKING; `SPEC_MASK_BITS` in words of 32 is the packed mask of
 * TensorRT-LLM; in words of 8 with both flags, with `mask_begin`, it is that of FlashInfer.
 *
 * What is out of range in the contents of the arrays makes that sequence's outputs padding, says
 * why in `sequence_flags` and does not affect the others.
 *
 * `stream` is NULL on the CPU. Errors: INVALID_ARGUMENT, UNSUPPORTED (a flag or field that this
 * version does not know); then nothing has changed. DEVICE: the device or its driver failed.
 *
 * Contract: any thread; the work is done when the call returns (CPU) or enqueued (CUDA); does not
 * block; allocates nothing unless it fails; on `stream`, which may be capturing (CUDA).
 */
spec_status spec_tree_mask(const spec_context *context,
                           const spec_tree_mask_args *args,
                           void *stream,
                           spec_error *error);

/**
 * Moves the keys and values of accepted nodes, in the host's own KV, to the rows behind their
 * root, so that the next round finds them where it expects the tokens of a text.
 *
 * A host that verifies trees runs its target over all nodes, node n in the row of position root +
 * n. The accepted path leads through some of them: node `path[i]` is the token of position root +
 * i, and its row moves there, of each layer and each head, for keys and values alike. Rows that
 * are in their place are not touched, so that chains cost nothing but the look at their paths.
 * Arrays are those of decision records: `position`, `row_count` and `path` as `spec_draft` takes
 * them after `spec_verify` has written them. Rows move in place and in the order of the path,
 * which ascends.
 *
 * A host whose target has recurrent state mirrors what happens here. If it keeps the state behind
 * each node, that of node `path[row_count - 1]` is the one to go on from, and windows over
 * tokens, as of convolutions, are those of the last nodes of the path. If it keeps a state and
 * the inputs of each node in rows, `source_rows` and `destination_rows` say which rows the text
 * is in, before and after: with an L of 0 nothing moves, and the lists are all that is asked for.
 *
 * What is out of range in the contents of the arrays leaves that sequence's rows as they are,
 * says so in `sequence_flags` and does not affect the others.
 *
 * `stream` is NULL on the CPU. Errors: INVALID_ARGUMENT, UNSUPPORTED (a flag, layout or field
 * that this version does not know); then nothing has changed. DEVICE: the device or its driver
 * failed.
 *
 * Contract: any thread; the work is done when the call returns (CPU) or enqueued (CUDA); does not
 * block; allocates nothing unless it fails; on `stream`, which may be capturing (CUDA).
 */
spec_status spec_kv_compact(const spec_context *context,
                            const spec_kv_compact_args *args,
                            void *stream,
                            spec_error *error);

/**
 * Proves on the context's device that every rule of `spec_verify` keeps its promise.
 *
 * Small language models are made up, and chains and trees of drafts are verified by the same code
 * as in `spec_verify`, in all the branches that random numbers can take: so the law of the text is
 * computed, not estimated. Rules that are lossless have to emit the target's law, after one round
 * and after two, with filters and masks; the others have to decide as they are defined.
 *
 * `flags` is `SPEC_SELFTEST_QUICK` or 0. The report is JSON with the members `holds`, `device`,
 * `instruction_set`, `quick` and `rules`. A rule has `rule` (its number), `name`, `holds`, `lossy`,
 * `exact` (whether it is lossless and holds), `branches`, `decisions`, `largest_deviation`,
 * `tolerance` and `cases`; a case has `name`, `holds`, `branches`, `decisions`,
 * `largest_deviation` and `defect`, a text or null. Later versions may add some. No chance is in
 * the test: the report is the same in every call. `json`, `capacity` and `length` are as in
 * `spec_checkpoint_inspect`; to ask for the length alone takes as long as the test, and 64 KiB
 * are enough.
 *
 * `stream` is NULL on the CPU. Errors: INTERNAL (a rule does not keep its promise: the message
 * names rule, case and deviation, and the report is written), INVALID_ARGUMENT (also a stream that
 * is being captured, or a `capacity` too small: `length` is written all the same), UNSUPPORTED (a
 * flag that this version does not know), OUT_OF_MEMORY, DEVICE.
 *
 * Contract: any thread, on a CUDA device not while any stream is being captured; blocks until the
 * test is done, less than a second on a CPU; allocates, memory of the device from the context's
 * allocator, and gives it back; on `stream`.
 */
spec_status spec_selftest(const spec_context *context,
                          uint32_t flags,
                          char *json,
                          uint64_t capacity,
                          uint64_t *length,
                          void *stream,
                          spec_error *error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#if defined(DLPACK_VERSION) || defined(DLPACK_MAJOR_VERSION)

/**
 * Describes a DLTensor as a spec_tensor, which refers to the same memory. Declared only where
 * dlpack.h has been included before this header.
 *
 * Errors: INVALID_ARGUMENT (an argument is NULL, the last dimension is not contiguous, the byte
 * offset is no multiple of the element size or set without data), UNSUPPORTED (not 1 to 4
 * dimensions, several lanes, elements that are not whole bytes). `*tensor` is then left as it was.
 *
 * Contract: any thread; does not block; allocates nothing.
 */
static inline spec_status spec_tensor_from_dlpack(const DLTensor *source, spec_tensor *tensor) {
  spec_tensor result = {0, 0, 0, 0, 0, 0, 0, {0, 0, 0, 0}, {0, 0, 0, 0}};
  int32_t last, i;

  if (source == 0 || tensor == 0) {
    return SPEC_ERROR_INVALID_ARGUMENT;
  }
  if (source->ndim < 1 || source->ndim > 4 || source->dtype.lanes != 1 ||
      source->dtype.bits == 0 || source->dtype.bits % 8 != 0) {
    return SPEC_ERROR_UNSUPPORTED;
  }
  last = source->ndim - 1;
  if (source->shape == 0 || source->byte_offset % (source->dtype.bits / 8u) != 0 ||
      (source->data == 0 && source->byte_offset != 0) ||
      (source->strides != 0 && source->strides[last] != 1 && source->shape[last] > 1)) {
    return SPEC_ERROR_INVALID_ARGUMENT;
  }
  if (source->data != 0) {
    result.data = (char *)source->data + source->byte_offset;
  }
  result.device_type = (int32_t)source->device.device_type;
  result.device_id = source->device.device_id;
  result.dtype_code = source->dtype.code;
  result.dtype_bits = source->dtype.bits;
  result.dtype_lanes = source->dtype.lanes;
  result.ndim = source->ndim;
  for (i = 0; i <= last; i++) {
    result.shape[i] = source->shape[i];
    result.strides[i] = source->strides == 0 ? 0 : source->strides[i];
  }
  if (source->strides != 0) {
    result.strides[last] = 1;
  }
  *tensor = result;
  return SPEC_OK;
}

#endif

#endif  /* SPECULATORS_H */
