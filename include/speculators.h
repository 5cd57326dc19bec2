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
 * The host has verified tokens up to position p - 1 and knows the token at position p, the root: it
 * is sampled, but the target has not run on it. One round is:
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
 * share a call with others. Sampling the first token after a prompt is a verification without
 * drafts. A drafting call with `num_drafts` of 0 only commits.
 *
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
 * preemption and prefix caches are block tables: the library follows the host's. Without a block
 * table, each sequence has a slot of the pool.
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
 * rejected, and its replacement is drawn from what remains of p, (p - q)+, as the law of the output
 * requires.
 *
 * Greedy output is the argmax of the given logits. Sampled output has exactly the distribution that
 * the request's parameters make of the target's logits. Random numbers are keyed by the seed, the
 * absolute position and their purpose: decisions on equal logits are equal in any batch, with any
 * number of threads.
 *
 * OWNERSHIP
 *
 * The host owns every buffer that it passes. A call reads and writes them until its work is done
 * and keeps no pointer to them; what is kept longer (lent weights, a KV pool, a workspace) says so.
 * The handles `spec_context`, `spec_model` and `spec_session` are the library's: the host gives
 * each one up with its release function, in any order, as a session keeps its model and a model its
 * context. Pointers in info structs live as long as the handle they were asked of.
 *
 * THREADS
 *
 * A context and a model may be used by any number of threads at the same time. A session is used by
 * one thread at a time; a call on a session that is in use returns `SPEC_ERROR_BUSY`. Sessions do
 * not depend on each other. A handle is released when no call uses it any more. Functions without a
 * handle may be called at any time.
 *
 * STREAMS
 *
 * `spec_draft`, `spec_verify` and `spec_session_warm_up` take the stream of the device on which
 * their work goes on. On the CPU there is none: it is NULL, and the work is done when the call
 * returns. Calls that are made in every step allocate nothing. Each function's last line, its
 * contract, says on which threads it may be called, whether it blocks and whether it allocates.
 *
 * ERRORS
 *
 * A call that can fail returns a `spec_status` and describes the failure in a `spec_error` of the
 * host, which may be NULL. Bad arguments are refused before anything has changed. What is wrong in
 * the contents of arrays (a row, a page or a token out of range) concerns one sequence: it takes no
 * part in the step, the other sequences do. `spec_verify` says so in the flags of the decision
 * record, `spec_draft` in what `spec_session_poll` returns later. The library prints nothing,
 * raises no signal and lets no exception or panic out.
 *
 * VERSIONS
 *
 * A struct that may grow begins with `struct_size`, its size as the host was compiled. All other
 * bytes zero are the defaults: begin with `= {0}` and name what differs. A library that is newer
 * than the host takes absent fields as zero. A library that is older than the host refuses fields
 * that it does not know if they are set. Integers stand where C has enums: values are only added,
 * never changed. `spec_abi_version()` is compared with `SPEC_ABI_VERSION`; equal thousands are
 * compatible if the library's number is not the smaller one. `spec_feature()` asks for what a build
 * can do.
 *
 * In the comments below, `[B, K]` is the shape of an array in elements, last dimension contiguous.
 * Arrays of `int32_t *` and the like are as large as their shape says; NULL is allowed where the
 * comment says what it means. B counts sequences, R rows, K drafts; V and Vd are the sizes of the
 * target's and the drafter's vocabulary, H is the drafter's hidden size.
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

/** Signed integers, as in DLPack. */
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
 * into memory of the allocator. The files must not change while the model lives.
 */
#define SPEC_MODEL_MAP_FILES 1

/**
 * `spec_feature_layer.stage`: the residual stream that enters decoder layer `layer`, before any
 * norm; the number of layers stands for the stream that leaves the last one, before the final
 * norm.
 */
#define SPEC_STAGE_LAYER_INPUT 0

/** `spec_feature_layer.stage`: the output of the target's final norm, which its head reads. */
#define SPEC_STAGE_FINAL_NORM 1

/**
 * `flags` of `spec_draft_args` and `spec_verify_args`: `padding` fills unused places instead of
 * -1.
 */
#define SPEC_PADDING 1

/**
 * `spec_verify_args.rule`: lossless. Greedy sequences keep the target's argmax; sampled ones are
 * tested by p / q where `draft` gives q, and by `SPEC_RULE_FOLLOW` otherwise.
 */
#define SPEC_RULE_DEFAULT 0

/**
 * `spec_verify_args.rule`: lossless, for drafts taken as given. The target's token is drawn at
 * each position and the drafts are followed while they are equal to it, so that the text is the
 * one that sampling without speculation gives for the same seed.
 */
#define SPEC_RULE_FOLLOW 1

/**
 * `spec_verify_args.rule`: lossless rejection sampling (Leviathan et al. 2023, Chen et al.
 * 2023): draft d is accepted with probability min(1, p(d) / q(d)), otherwise its replacement is
 * drawn from max(p - q, 0) normalised. Without `draft`, q is one at d.
 */
#define SPEC_RULE_REJECTION 2

/** Index in a decision record: drafts accepted, 0 to K. */
#define SPEC_DECISION_ACCEPTED 0

/**
 * Index in a decision record: tokens emitted: 0 (the sequence took no part), ACCEPTED (ended by
 * a limit or a stop token) or ACCEPTED + 1.
 */
#define SPEC_DECISION_EMITTED 1

/**
 * Index in a decision record: the last emitted token, the next root. Untouched where nothing was
 * emitted.
 */
#define SPEC_DECISION_NEXT_TOKEN 2

/** Index in a decision record: position + EMITTED, the position of the next root. */
#define SPEC_DECISION_NEXT_POSITION 3

/** Index in a decision record: `SPEC_DECISION_FLAG_*`, combined. */
#define SPEC_DECISION_FLAGS 4

/**
 * Index in a decision record: the emitted tokens, `max_drafts + 1` elements, padded. The
 * accepted path follows them, `max_drafts + 1` elements: the nodes of the rows that are
 * committed next, beginning with 0, padded with -1.
 */
#define SPEC_DECISION_TOKENS 8

/** `SPEC_DECISION_FLAGS`: a row had no finite candidate; its lowest id was taken as the token. */
#define SPEC_DECISION_FLAG_NO_CANDIDATE 1

/** `SPEC_DECISION_FLAGS`: the last emitted token is a stop token. */
#define SPEC_DECISION_FLAG_STOPPED 2

/** `SPEC_DECISION_FLAGS`: as many tokens were emitted as `limit` allows. */
#define SPEC_DECISION_FLAG_LIMIT 4

/**
 * `SPEC_DECISION_FLAGS`: something in the arrays is out of range for the sequence: its rows,
 * `num_drafts`, a draft, its position, a parameter that is NaN, a random number outside of
 * [0, 1), or the rows of its distribution. Nothing was emitted.
 */
#define SPEC_DECISION_FLAG_INVALID 8

/**
 * The result of a call: `SPEC_OK` or one of the `SPEC_ERROR_*` codes. Codes are never reused; a
 * host treats a code that it does not know as a failure.
 */
typedef int32_t spec_status;

/**
 * Calls `task(argument, i)` for every i in 0 .. `tasks`, on as many threads as it likes, and
 * returns when all calls have returned. `user` is what the options gave.
 *
 * Contract: may be called from several threads at once; must not unwind.
 */
typedef void (*spec_parallel_for)(void *user,
                                  int32_t tasks,
                                  void (*task)(void *argument, int32_t index),
                                  void *argument);

/**
 * Where the library takes weights, KV pools and workspaces from. Parsing a checkpoint and the
 * small records behind the handles use the C library's allocator. Step calls allocate nothing.
 */
typedef struct spec_allocator {
  /** sizeof(spec_allocator). */
  uint32_t struct_size;
  /** 0. */
  uint32_t reserved;
  /** Handed to both functions. */
  void *user;
  /**
   * Returns at least `size` bytes of the context's device at a multiple of `alignment`, or
   * NULL. `kind` is one of `SPEC_MEMORY_*`. Must not unwind; may be called from any thread.
   */
  void *(*allocate)(void *user, uint64_t size, uint64_t alignment, int32_t kind);
  /** Takes back what `allocate` returned, with the same size and kind. */
  void (*release)(void *user, void *memory, uint64_t size, int32_t kind);
} spec_allocator;

/**
 * What `spec_context_create` makes. All zero but `struct_size`: the CPU, one thread per core
 * that the process may use, the library's own allocator, no log.
 */
typedef struct spec_context_options {
  /** sizeof(spec_context_options). */
  uint32_t struct_size;
  /** 0 or `SPEC_DEVICE_CPU`. */
  int32_t device_type;
  /** 0. */
  int32_t device_id;
  /**
   * Threads that work on a call, the calling one among them; 0 is one per available core. With
   * `parallel_for`, the number of threads that it uses, at least 1.
   */
  int32_t threads;
  /**
   * The host's own threads, instead of threads of the library. NULL: the library keeps
   * `threads - 1` parked threads, with all signals blocked.
   */
  spec_parallel_for parallel_for;
  /** Handed to `parallel_for`. */
  void *parallel_for_user;
  /** NULL: memory from the operating system, in huge pages where it is large. Copied. */
  const spec_allocator *allocator;
  /**
   * Takes log lines (UTF-8, valid during the call); NULL: nothing is logged. `level` is one of
   * `SPEC_LOG_*`. Must not unwind; may be called from any thread, never from step calls.
   */
  void (*log)(void *user, int32_t level, const char *line);
  /** Handed to `log`. */
  void *log_user;
} spec_context_options;

/**
 * Why a call failed. The host owns it, sets `struct_size` and passes it as the last argument of
 * any call, or passes NULL. A call that succeeds sets `status` to `SPEC_OK` and empties
 * `message`.
 */
typedef struct spec_error {
  /** sizeof(spec_error). A value below the size of this version leaves the struct untouched. */
  uint32_t struct_size;
  /** The status that the call returned. */
  spec_status status;
  /**
   * `function: what was expected, what was found`, in UTF-8, ends with NUL, cut if it is
   * longer.
   */
  char message[1016];
} spec_error;

/** What a context is. */
typedef struct spec_context_info {
  /** sizeof(spec_context_info), set by the host. */
  uint32_t struct_size;
  /** `SPEC_DEVICE_CPU`. */
  int32_t device_type;
  /** 0. */
  int32_t device_id;
  /** Threads that work on a call. */
  int32_t threads;
  /** The instructions in use (`avx512`, `avx2`, `portable`); static storage. */
  const char *instruction_set;
} spec_context_info;

/**
 * A view of memory that the host owns. The codes are those of DLPack; `spec_tensor_from_dlpack`
 * below converts a DLTensor. The struct never grows.
 */
typedef struct spec_tensor {
  /** The first element. NULL only where the tensor has no elements. */
  void *data;
  /** Where the memory is: `SPEC_DEVICE_CPU`. */
  int32_t device_type;
  /** Which of the devices of that type; 0 for host memory. */
  int32_t device_id;
  /** The element type: `SPEC_DTYPE_FLOAT` or `SPEC_DTYPE_BFLOAT`. */
  uint8_t dtype_code;
  /** Bits of an element: 16 or 32. */
  uint8_t dtype_bits;
  /** 1. */
  uint16_t dtype_lanes;
  /** The number of dimensions in use, 1 to 4. */
  int32_t ndim;
  /** Elements along each dimension; the unused ones are 0. */
  int64_t shape[4];
  /**
   * Elements from one index to the next, along each dimension. All zero means that the tensor
   * is compact; otherwise that of the last dimension is 1, and that of a row is any number
   * from the row length on.
   */
  int64_t strides[4];
} spec_tensor;

/** Rows of a tensor that the host lends. */
typedef struct spec_row_range {
  /** `[rows, hidden]`, F32, F16 or BF16, on the context's device. */
  spec_tensor tensor;
  /** The row of the whole tensor that is row 0 here. */
  int64_t first_row;
} spec_row_range;

/**
 * How `spec_model_load` loads. All zero but `struct_size` is right for a checkpoint that stores
 * all its tensors, or whose verifier lies where its config says.
 */
typedef struct spec_model_options {
  /** sizeof(spec_model_options). */
  uint32_t struct_size;
  /** `SPEC_MODEL_*` flags. */
  uint32_t flags;
  /**
   * The directory of the verifier (the target model), UTF-8; its config and, unless they are
   * lent, its embedding and head are read where the checkpoint lacks them. NULL: the path that
   * the checkpoint names, if it is a directory.
   */
  const char *verifier_directory;
  /** A JSON object that is merged over the checkpoint's config.json, UTF-8. NULL: nothing. */
  const char *config_overrides;
  /**
   * The verifier's token embedding, `[V, hidden]` (more rows, as padding, are fine), lent by the
   * host as `num_embedding` ranges that cover all rows in order. Used in place, never written.
   * Not used, as the report says, where the checkpoint stores its own. NULL: read from files
   * where needed.
   */
  const spec_row_range *embedding;
  /**
   * The verifier's LM head, `[V, hidden]`, lent likewise as `num_head` ranges. Used in place
   * if the draft vocabulary is the whole one, otherwise its rows are copied at load. A head of
   * exactly Vd rows is taken as one that is reduced to the draft vocabulary already.
   */
  const spec_row_range *head;
  /** Elements of `embedding`. */
  int32_t num_embedding;
  /** Elements of `head`. */
  int32_t num_head;
  /**
   * Called once, from any thread, when nothing uses the lent tensors any more. Not called if
   * the load fails. NULL: the host waits for `spec_model_release` and for the release of all
   * sessions.
   */
  void (*lent_release)(void *user);
  /** Handed to `lent_release`. */
  void *lent_user;
} spec_model_options;

/** A hidden state of the target that a speculator reads. */
typedef struct spec_feature_layer {
  /** The decoder layer of the target. */
  int32_t layer;
  /** One of `SPEC_STAGE_*`. */
  int32_t stage;
  /** Elements of a row. */
  int32_t width;
  /** 0. */
  int32_t reserved;
} spec_feature_layer;

/** What a loaded speculator is and needs. The pointers are owned by the model. */
typedef struct spec_model_info {
  /** sizeof(spec_model_info), set by the host. */
  uint32_t struct_size;
  /** Elements of `features`. */
  int32_t num_features;
  /** The hidden states that `spec_draft` wants, one tensor each, in this order. */
  const spec_feature_layer *features;
  /** The kind of speculator, such as `eagle3`. */
  const char *kind;
  /** V: tokens of the target's vocabulary. */
  int32_t vocabulary;
  /** Vd: columns of draft logits. */
  int32_t draft_vocabulary;
  /**
   * `[Vd]`: the target's id of each column of draft logits, in host memory; NULL: the
   * identity. Fits `spec_distribution.token_ids`.
   */
  const int32_t *draft_token_ids;
  /** H: the drafter's hidden size. */
  int32_t hidden_size;
  /** Decoder layers of the drafter. */
  int32_t num_layers;
  /**
   * Trailing positions of a cached prefix whose rows must be committed again: 1 where the
   * drafter's row t reads token t + 1.
   */
  int32_t prefix_margin;
  /** Tokens per round that the checkpoint was made for; 0 if it does not say. */
  int32_t default_num_drafts;
  /** Positions that the drafter was made for; larger ones are computed all the same. */
  int64_t max_position;
  /** Bytes of weights in memory of the allocator. */
  uint64_t weight_bytes;
} spec_model_info;

/** How `spec_session_create` sizes a session. */
typedef struct spec_session_options {
  /** sizeof(spec_session_options). */
  uint32_t struct_size;
  /**
   * The most sequences in one call, at least 1. Without a block table also the number of
   * slots.
   */
  int32_t max_sequences;
  /** The most rows committed in one call, at least 1. */
  int32_t max_rows;
  /** The most tokens proposed for a sequence in one call, at least 1. */
  int32_t max_drafts;
  /** Positions lie below this; at least 1. */
  int32_t max_position;
  /** Positions per KV page; 0 is 16. */
  int32_t page_size;
  /** Pages of the pool; 0 is what all slots need. */
  int32_t max_pages;
  /**
   * The element type of keys and values, a DLPack code; 0 together with 0 bits: the default of
   * the device (F32 on the CPU).
   */
  uint8_t kv_dtype_code;
  /** Its bits. */
  uint8_t kv_dtype_bits;
  /** 0. */
  uint16_t reserved;
  /**
   * The host's memory for the pages, `kv_pool_size` bytes, aligned to 64, valid as long as the
   * session. NULL: from the allocator.
   */
  void *kv_pool;
  /** Bytes at `kv_pool`; at least what the requirements say. */
  uint64_t kv_pool_size;
  /**
   * The host's memory for the workspace, `workspace_size` bytes, aligned to 64, valid as long
   * as the session. NULL: from the allocator.
   */
  void *workspace;
  /** Bytes at `workspace`; at least what the requirements say. */
  uint64_t workspace_size;
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
   * Bytes of one page. Page i lies at `i * page_bytes`; what is in a page is private, but
   * pages may be copied whole while no call runs.
   */
  uint64_t page_bytes;
  /** Bytes of keys and values of one position. */
  uint64_t kv_bytes_per_token;
  /** Pages of the pool. */
  int32_t num_pages;
  /** Positions of a page. */
  int32_t page_size;
} spec_session_requirements;

/**
 * How tokens are drawn, one value per sequence. A NULL array means its default for all. A
 * temperature below 1e-5 is greedy: the largest logit, of equal ones the lowest id.
 */
typedef struct spec_sampling {
  /** sizeof(spec_sampling). */
  uint32_t struct_size;
  /** 0. */
  uint32_t reserved;
  /** `[B]` float. NULL: 0, greedy. */
  const float *temperature;
  /**
   * `[B]` int32: only the k largest logits, with all that equal the k-th; 0 or less: all.
   * NULL: all.
   */
  const int32_t *top_k;
  /**
   * `[B]` float: only the most probable tokens that reach this mass, with all that equal the
   * last; 1 or more: all. NULL: all.
   */
  const float *top_p;
  /**
   * `[B]` float: only tokens at least this times as probable as the most probable; 0: all.
   * NULL: all.
   */
  const float *min_p;
  /**
   * `[B]` uint64: the seed of the sequence's random numbers, which are those of Philox4x32-10
   * (Salmon et al., 2011). NULL: 0. A draw depends on the
   * seed, the absolute position of the token and its purpose, on nothing else.
   */
  const uint64_t *seed;
} spec_sampling;

/** The distribution that draft tokens were drawn from, as narrow as the drafter has it. */
typedef struct spec_distribution {
  /** sizeof(spec_distribution). */
  uint32_t struct_size;
  /** Rows of `logits` per sequence if `row_begin` is NULL; 0 is `max_drafts` of the call. */
  int32_t rows_per_sequence;
  /** `[Q, C]` F32, F16 or BF16: logits over C candidates. */
  spec_tensor logits;
  /**
   * The target's ids of the candidates: NULL (the identity, C is V), `[C]`, or `[Q, C]` with
   * `token_ids_stride` elements from one row to the next. A negative id is no candidate; no id
   * stands twice in a row.
   */
  const int32_t *token_ids;
  /** 0: `token_ids` is `[C]`, the same for all rows. */
  int64_t token_ids_stride;
  /**
   * `[B]` int32: the row of the first draft; draft i of sequence b was drawn from row
   * `row_begin[b] + i`. NULL: `b * rows_per_sequence`.
   */
  const int32_t *row_begin;
  /** How the drafts were drawn from it. NULL: as the request's own sampling says. */
  const spec_sampling *sampling;
} spec_distribution;

/**
 * The topology of draft trees, `[B, stride]` int32 each. Node 0 is the root; parents come before
 * their children.
 */
typedef struct spec_tree {
  /** sizeof(spec_tree). */
  uint32_t struct_size;
  /** Elements from one sequence to the next. */
  int32_t stride;
  /** The parent of each node; -1 for the root. */
  int32_t *parents;
  /** The first child of each node; -1 for none. */
  int32_t *first_child;
  /** The next node with the same parent; -1 for none. */
  int32_t *next_sibling;
  /** Edges from the root. */
  int32_t *depth;
  /** The position of each node. */
  int32_t *position;
} spec_tree;

/**
 * The arguments of `spec_verify`. B is `num_sequences`, K is `max_drafts`, V is the target's
 * vocabulary, R is the number of rows of `logits`. All arrays are memory of the context's device
 * that the host owns.
 */
typedef struct spec_verify_args {
  /** sizeof(spec_verify_args). */
  uint32_t struct_size;
  /** `SPEC_PADDING` or 0. */
  uint32_t flags;
  /** B, from 0 on. */
  int32_t num_sequences;
  /** K: the most drafts of a sequence, 0 to 1023. */
  int32_t max_drafts;
  /** One of `SPEC_RULE_*`. */
  int32_t rule;
  /** What stands beyond the emitted tokens of a record, with `SPEC_PADDING`. */
  int32_t padding;
  /**
   * `[R, V]` F32, F16 or BF16: the target's raw logits. Row `row_begin[b]` is the root's, row
   * `row_begin[b] + i` that of draft i. NaN counts as -inf.
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
   * `[B, draft_stride]`: the drafts, in the target's ids. What lies beyond num_drafts is not
   * looked at: nothing was proposed there. A -1 before it was struck out by the host after it
   * had been drawn: it is tested as rejected. NULL only if K is 0.
   */
  const int32_t *draft_tokens;
  /** `[B]`: the root's position, `position_stride` elements apart. May lie in `decisions`. */
  const int32_t *position;
  /** `[B]`: tokens that the sequence may still emit. NULL: no limit. */
  const int32_t *limit;
  /** Elements from one sequence to the next in `draft_tokens`; 0 is K. */
  int32_t draft_stride;
  /** Elements from one sequence to the next in `position`; 0 is 1. */
  int32_t position_stride;
  /** How the request samples. NULL: greedily. */
  const spec_sampling *sampling;
  /** The distribution that the drafts were drawn from. NULL: the drafts are taken as given. */
  const spec_distribution *draft;
  /** NULL: trees are not supported yet. */
  const spec_tree *tree;
  /**
   * `[B, 2 * (K + 1)]` in [0, 1): the random numbers to use instead of the seeded ones;
   * element 2 i tests draft i, element 2 i + 1 draws the token that is emitted after i
   * accepted drafts. NULL: seeded.
   */
  const double *uniforms;
  /** `[num_stop_tokens]`: emission ends after any of these. NULL: none. */
  const int32_t *stop_tokens;
  /** Elements of `stop_tokens`. */
  int32_t num_stop_tokens;
  /**
   * Elements from one decision record to the next, at least
   * `SPEC_DECISION_TOKENS + 2 * (K + 1)`.
   */
  int32_t decision_stride;
  /**
   * `[B, decision_stride]`, written: one record per sequence, laid out by `SPEC_DECISION_*`.
   * NEXT_TOKEN is left as it was for a sequence that emits nothing; the elements between FLAGS
   * and TOKENS are set to 0.
   */
  int32_t *decisions;
  /**
   * `[3 + K]` uint64 in host memory, added to for each sequence that emits something: rounds,
   * drafts, emitted tokens, then acceptances of draft 1 to K. NULL: not wanted. Not shared
   * between concurrent calls.
   */
  uint64_t *counters;
  /**
   * Scratch of at least the bytes that `spec_verify_workspace_size` says, aligned to 64, for
   * this call alone.
   */
  void *workspace;
  /** Bytes at `workspace`. */
  uint64_t workspace_size;
} spec_verify_args;

/**
 * The arguments of `spec_draft`. B is `num_sequences`, R is `num_rows`, H is the drafter's
 * hidden size. All arrays are memory of the session's device that the host owns; none is kept
 * after the call's work is done.
 */
typedef struct spec_draft_args {
  /** sizeof(spec_draft_args). */
  uint32_t struct_size;
  /** `SPEC_PADDING` or 0. */
  uint32_t flags;
  /** B, 0 to the session's max_sequences. */
  int32_t num_sequences;
  /**
   * R: rows of `tokens`, `rope_position` and the features, from 0 on. More than the session's
   * max_rows are fine as long as not more are committed.
   */
  int32_t num_rows;
  /** The most tokens to propose for a sequence in this call, 0 to the session's max_drafts. */
  int32_t max_drafts;
  /** What stands in `draft_tokens` beyond the proposals, with `SPEC_PADDING`. */
  int32_t padding;
  /**
   * Elements from one sequence to the next in `position`, `row_count` and `next_token`, so
   * that they may point into the decision records of `spec_verify`; 0 is 1.
   */
  int32_t decision_stride;
  /** Elements from one sequence to the next in `row_index`. */
  int32_t row_index_stride;
  /**
   * `[B]`: the position of `next_token`. The committed rows are those of the positions
   * `position - row_count` to `position - 1`.
   */
  const int32_t *position;
  /** `[B]`: rows to commit. 0: the sequence takes no part, and nothing is proposed for it. */
  const int32_t *row_count;
  /**
   * `[B]`: the new root: the token after the last row, known but not yet run through the
   * target.
   */
  const int32_t *next_token;
  /** `[B]`: the first row of each sequence. NULL: `b * (max_drafts + 1)`. */
  const int32_t *row_begin;
  /**
   * `[B, row_index_stride]`: the rows to commit where they are not contiguous, counted from
   * `row_begin[b]`; a negative first entry means contiguous. NULL: contiguous. Fits the path
   * of a decision record: no more than `row_count[b]` entries of a row are looked at.
   */
  const int32_t *row_index;
  /**
   * `[B]`: tokens to propose, capped by `max_drafts`; 0 only commits. NULL: `max_drafts` for
   * all.
   */
  const int32_t *num_drafts;
  /**
   * `[B]`: tokens that the sequence may still emit; at most one less is proposed. NULL: no
   * limit.
   */
  const int32_t *limit;
  /** `[B]`: the first position that has drafter rows; earlier ones are not looked at. NULL: 0. */
  const int32_t *context_begin;
  /**
   * `[B, block_table_stride]`: the pages of each sequence, page j for positions from
   * `j * page_size` on. They must reach position + num_drafts - 2, the last row that drafting
   * writes. NULL: slots.
   */
  const int32_t *block_table;
  /** Elements from one sequence to the next in `block_table`. */
  int32_t block_table_stride;
  /** Elements of `features`. */
  int32_t num_features;
  /**
   * `[B]`: the slot of each sequence where `block_table` is NULL, below max_sequences, no slot
   * twice. NULL: b.
   */
  const int32_t *slot;
  /**
   * `[R]`: the token of each row, unshifted: row r carries the token and the features of one
   * position. -1: the row of `embeddings` instead.
   */
  const int32_t *tokens;
  /** `[R]`: the positions that the rotary embedding turns by. NULL: the positions. */
  const int32_t *rope_position;
  /**
   * `[num_features]` in host memory, one `[R, width]` tensor (F32, F16 or BF16) for each entry
   * of the model's `features`.
   */
  const spec_tensor *features;
  /**
   * `[R, H]`, in host memory the struct, on the device its data: the embeddings of rows whose
   * token is -1. NULL: there are none.
   */
  const spec_tensor *embeddings;
  /** How proposals are drawn. NULL: greedily. */
  const spec_sampling *sampling;
  /** NULL: trees are not supported yet. */
  const spec_tree *tree;
  /** `[B, draft_stride]`, written: the proposals, in the target's ids, padded to `max_drafts`. */
  int32_t *draft_tokens;
  /** `[B]`, written: how many tokens were proposed. NULL: not wanted. */
  int32_t *num_proposed;
  /**
   * `[B * max_drafts, Vd]` (F32, F16 or BF16), written: row `b * max_drafts + i` has the
   * logits that proposal i was drawn from, before temperature and filters; rows without
   * proposal are left as they were. The draw uses the values as rounded to this type, so that
   * they are the true distribution for `spec_distribution`. NULL: not wanted.
   */
  const spec_tensor *draft_logits;
  /** Elements from one sequence to the next in `draft_tokens`; 0 is `max_drafts`. */
  int32_t draft_stride;
  /** 0. */
  int32_t reserved;
} spec_draft_args;

/** The call did what it says. */
#define SPEC_OK 0

/** An argument is missing, out of range or inconsistent with another one. */
#define SPEC_ERROR_INVALID_ARGUMENT 1

/** Well-formed, but not something that this version or build can do. */
#define SPEC_ERROR_UNSUPPORTED 2

/** A file could not be opened or read. */
#define SPEC_ERROR_IO 3

/** A file was read, and its contents are not a sound checkpoint. */
#define SPEC_ERROR_FORMAT 4

/** An allocation was refused. */
#define SPEC_ERROR_OUT_OF_MEMORY 5

/** The session is in use by another thread. */
#define SPEC_ERROR_BUSY 6

/** The device or its driver failed. */
#define SPEC_ERROR_DEVICE 7

/** A defect of the library. */
#define SPEC_ERROR_INTERNAL 8

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The ABI version of the library that is linked: `SPEC_ABI_VERSION` of its own header.
 *
 * Contract: any thread; does not block; allocates nothing.
 */
int32_t spec_abi_version(void);

/**
 * The version of the library, such as `0.1.0`; static storage.
 *
 * Contract: any thread; does not block; allocates nothing.
 */
const char *spec_version(void);

/**
 * Whether the library has a feature: 1 if so, 0 if not or if it does not know the name.
 *
 * Names so far: `cpu` (CPU contexts), `eagle3` (EAGLE-3 speculators), `verify.chain`
 * (verification of chains), `draft.sampling` (sampled drafts). `name` ends with NUL; NULL gives
 * 0.
 *
 * Contract: any thread; does not block; allocates nothing.
 */
int32_t spec_feature(const char *name);

/**
 * The name of a status in the header, such as `SPEC_ERROR_FORMAT`; static storage, never NULL.
 *
 * Contract: any thread; does not block; allocates nothing.
 */
const char *spec_status_name(spec_status status);

/**
 * Creates a context.
 *
 * `options` NULL means all defaults. `*context`, owned by the host until `spec_context_release`,
 * is NULL if the call fails. Errors: INVALID_ARGUMENT (a thread count outside 0 to 1024, an
 * allocator without both functions), UNSUPPORTED (a device type that this build does not have),
 * OUT_OF_MEMORY (threads could not be started).
 *
 * Contract: any thread; blocks while threads start; allocates.
 */
spec_status spec_context_create(const spec_context_options *options,
                                spec_context **context,
                                spec_error *error);

/**
 * Gives a context up. Its models and sessions keep what they need of it. NULL is ignored.
 *
 * Contract: any thread, not while another call uses the handle; blocks while the threads end, if
 * nothing else keeps the context.
 */
void spec_context_release(spec_context *context);

/**
 * Says what a context is. `info.struct_size` is set by the host.
 *
 * Contract: any thread; does not block; allocates nothing.
 */
spec_status spec_context_get_info(const spec_context *context,
                                  spec_context_info *info,
                                  spec_error *error);

/**
 * Describes a checkpoint directory as JSON, without loading it: kind, configuration, tensors,
 * features, and whether this library can load it (`supported`, with `reason`).
 *
 * `directory` is a UTF-8 path. `json` receives UTF-8 that ends with NUL; `length`, nullable, its
 * bytes without the NUL. With `json` NULL and `capacity` 0 only `length` is written. Errors: IO,
 * FORMAT (not a checkpoint, or damaged), INVALID_ARGUMENT (`capacity` too small; `length` is
 * written all the same).
 *
 * Contract: any thread; blocks (reads files); allocates.
 */
spec_status spec_checkpoint_inspect(const char *directory,
                                    char *json,
                                    uint64_t capacity,
                                    uint64_t *length,
                                    spec_error *error);

/**
 * Loads a speculator.
 *
 * `directory` is a UTF-8 path of a checkpoint in the speculators format. `options` NULL means
 * all defaults. `*model`, owned by the host until `spec_model_release`, is NULL if the call
 * fails. Errors: IO, FORMAT (damaged, or a tensor or setting is missing or wrong), UNSUPPORTED
 * (a kind that this library does not know), OUT_OF_MEMORY, INVALID_ARGUMENT.
 *
 * Contract: any thread; blocks (reads files); allocates from the context's allocator.
 */
spec_status spec_model_load(const spec_context *context,
                            const char *directory,
                            const spec_model_options *options,
                            spec_model **model,
                            spec_error *error);

/**
 * Gives a model up. Its sessions keep it until they are released. NULL is ignored.
 *
 * Contract: any thread, not while another call uses the handle; may release memory and call
 * `lent_release`.
 */
void spec_model_release(spec_model *model);

/**
 * Says what a model is and needs. `info.struct_size` is set by the host; the pointers live as
 * long as the model.
 *
 * Contract: any thread; does not block; allocates nothing.
 */
spec_status spec_model_get_info(const spec_model *model,
                                spec_model_info *info,
                                spec_error *error);

/**
 * The load report as JSON: every tensor (used, unused, absent), every assumed default, every
 * corrected quirk, unknown settings, overrides, and what came from the verifier. `json`,
 * `capacity` and `length` as in `spec_checkpoint_inspect`.
 *
 * Contract: any thread; does not block; allocates nothing.
 */
spec_status spec_model_get_report(const spec_model *model,
                                  char *json,
                                  uint64_t capacity,
                                  uint64_t *length,
                                  spec_error *error);

/**
 * Says how much memory a session with these options takes; `kv_pool` and `workspace` of the
 * options are not looked at.
 *
 * `requirements.struct_size` is set by the host. Errors: INVALID_ARGUMENT (a size out of range,
 * or so large that the total does not fit the address space).
 *
 * Contract: any thread; does not block; allocates nothing.
 */
spec_status spec_session_get_requirements(const spec_model *model,
                                          const spec_session_options *options,
                                          spec_session_requirements *requirements,
                                          spec_error *error);

/**
 * Creates a session.
 *
 * `*session`, owned by the host until `spec_session_release`, is NULL if the call fails. Errors:
 * INVALID_ARGUMENT (sizes, memory too small or not aligned), OUT_OF_MEMORY.
 *
 * Contract: any thread; does not block on other calls; allocates what the host does not give.
 */
spec_status spec_session_create(const spec_model *model,
                                const spec_session_options *options,
                                spec_session **session,
                                spec_error *error);

/**
 * Makes the first step as fast as the others: makes weights, pages and workspace resident. The
 * KV pool is cleared, so call it before the first step.
 *
 * `stream` is NULL on the CPU. Errors: BUSY, INVALID_ARGUMENT.
 *
 * Contract: one thread at a time per session; blocks; allocates nothing.
 */
spec_status spec_session_warm_up(spec_session *session, void *stream, spec_error *error);

/**
 * Reports what went wrong inside of steps since the last poll: a sequence whose rows, positions,
 * pages or tokens were out of range took no part in its step and proposed nothing.
 *
 * Returns SPEC_OK if nothing did, INVALID_ARGUMENT with the first such sequence otherwise.
 * Errors: BUSY.
 *
 * Contract: one thread at a time per session; does not block; allocates nothing if all is well.
 */
spec_status spec_session_poll(spec_session *session, spec_error *error);

/**
 * Gives a session up; memory of the host is not used any more. NULL is ignored.
 *
 * Contract: any thread, not while another call uses the handle; releases memory.
 */
void spec_session_release(spec_session *session);

/**
 * Says how many bytes of workspace `spec_verify` needs.
 *
 * Of `args` only the sizes, the shapes of the tensors and the rule are looked at: the data and
 * the arrays may be NULL. The answer is enough for any batch of at most as many sequences,
 * logits and candidates. Errors: INVALID_ARGUMENT, UNSUPPORTED.
 *
 * Contract: any thread; does not block; allocates nothing.
 */
spec_status spec_verify_workspace_size(const spec_context *context,
                                       const spec_verify_args *args,
                                       uint64_t *size,
                                       spec_error *error);

/**
 * Decides which drafts the target accepts, and which token follows them.
 *
 * For each sequence one decision record is written: drafts accepted, tokens emitted, the next
 * root and its position, the tokens, and the path that `spec_draft` commits. Logits are taken as
 * they are: `sampling` says how tokens are drawn from them, top-k first, then top-p of what is
 * left, then min-p. Only the rows that a decision needs are read.
 *
 * Every draw is one number through the inverse of the cumulative distribution in the order of
 * the ids, and weights are integers: equal logits and numbers give equal decisions on any
 * device, for any number of threads and beside any other sequences.
 *
 * The emission of a sequence ends after a stop token, accepted or not, and after `limit` tokens;
 * the flags say so whenever the last token is a stop token or the limit is used up. A limit of 0
 * or less emits nothing. What is out of range in the contents of the arrays (rows, drafts,
 * positions, NaN parameters, `uniforms` outside of [0, 1)) makes that sequence emit nothing,
 * with the flag INVALID; the others are not affected.
 *
 * `stream` is NULL on the CPU. Errors: INVALID_ARGUMENT, UNSUPPORTED (a vocabulary of 2^21
 * tokens or more, a rule or flag that this version does not know); then nothing has changed.
 *
 * Contract: any thread; the work is done when the call returns (CPU); allocates nothing.
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
 * committed: prompt chunks and accepted rows alike, mixed in one batch. Then up to
 * min(`num_drafts`, `limit` - 1) tokens are proposed, and at most as many as have rows below
 * max_position: max_position - `position` + 1.
 * Keys and values that drafting itself makes are overwritten by the next commit; nothing else is
 * kept, so a smaller `position` is a rollback, and a sequence that is not mentioned costs
 * nothing.
 *
 * For EAGLE-3 (Li et al., 2025) row t fuses the features of position t with the embedding of
 * token t + 1; each further step continues from the drafter's own hidden state.
 *
 * `stream` is NULL on the CPU. Errors: INVALID_ARGUMENT, UNSUPPORTED, BUSY; then nothing has
 * changed. What is wrong in the contents of the arrays takes the sequence out of the step and is
 * reported by `spec_session_poll`.
 *
 * Contract: one thread at a time per session; the work is done when the call returns (CPU);
 * allocates nothing.
 */
spec_status spec_draft(spec_session *session,
                       const spec_draft_args *args,
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
