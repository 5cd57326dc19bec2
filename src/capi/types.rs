//! The structs and constants of the C API. Their documentation is the specification: it becomes
//! the header.
#![allow(non_camel_case_types)]

use std::ffi::{c_char, c_void};

/// The result of a call: `SPEC_OK` or one of the `SPEC_ERROR_*` codes. Codes are never reused; a
/// host treats a code that it does not know as a failure.
pub type spec_status = i32;

/// The call did what it says.
pub const SPEC_OK: spec_status = 0;
/// An argument is missing, out of range or inconsistent with another one.
pub const SPEC_ERROR_INVALID_ARGUMENT: spec_status = 1;
/// Well-formed, but not something that this version or build can do; 0 was expected in a field
/// that is not in use yet.
pub const SPEC_ERROR_UNSUPPORTED: spec_status = 2;
/// A file could not be opened or read.
pub const SPEC_ERROR_IO: spec_status = 3;
/// A file was read, and its contents are not a sound checkpoint.
pub const SPEC_ERROR_FORMAT: spec_status = 4;
/// An allocation was refused, or a thread could not be started.
pub const SPEC_ERROR_OUT_OF_MEMORY: spec_status = 5;
/// The session is in use by another thread.
pub const SPEC_ERROR_BUSY: spec_status = 6;
/// The device or its driver failed, or is missing. CPU contexts never return it.
pub const SPEC_ERROR_DEVICE: spec_status = 7;
/// A defect of the library; the message says where. Report it.
pub const SPEC_ERROR_INTERNAL: spec_status = 8;
/// The host called the work off, by what its progress callback returned. Nothing has changed.
pub const SPEC_ERROR_CANCELLED: spec_status = 9;

/// Why a call failed. The host owns it, sets `struct_size` and passes it as the last argument of
/// any call, or passes NULL. A call that succeeds sets `status` to `SPEC_OK` and empties
/// `message`. One struct serves one thread at a time.
#[repr(C)]
pub struct spec_error {
    /// sizeof(spec_error). A value below the size of this version leaves the struct untouched.
    pub struct_size: u32,
    /// The status that the call returned.
    pub status: spec_status,
    /// `function: what was wrong`, with what was expected and what was found where there is
    /// such; UTF-8, ends with NUL, cut if it is longer. Empty after a success.
    pub message: [c_char; 1016],
}

/// Host memory: the device type of CPU contexts, as in DLPack.
pub const SPEC_DEVICE_CPU: i32 = 1;
/// Memory of a CUDA device: the device type of CUDA contexts, as in DLPack.
pub const SPEC_DEVICE_CUDA: i32 = 2;
/// Page-locked host memory that CUDA devices can address, as in DLPack. Tensors of CUDA contexts
/// may lie there.
pub const SPEC_DEVICE_CUDA_HOST: i32 = 3;

/// Signed integers, as in DLPack. No tensor of this version has them; for conversions.
pub const SPEC_DTYPE_INT: u8 = 0;
/// IEEE floating point (16 or 32 bits), as in DLPack.
pub const SPEC_DTYPE_FLOAT: u8 = 2;
/// bfloat16 (16 bits), as in DLPack.
pub const SPEC_DTYPE_BFLOAT: u8 = 4;

/// A view of memory that the host owns. The codes are those of DLPack; `spec_tensor_from_dlpack`
/// below converts a DLTensor. All tensors of this version have two dimensions. A tensor may have
/// more rows than its use says, which are not looked at. The struct never grows.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_tensor {
    /// The first element, aligned to the size of an element. NULL only where the tensor has no
    /// elements.
    pub data: *mut c_void,
    /// Where the memory is: `SPEC_DEVICE_CPU` in calls of CPU contexts, `SPEC_DEVICE_CUDA` or
    /// `SPEC_DEVICE_CUDA_HOST` in those of CUDA contexts.
    pub device_type: i32,
    /// Which of the devices of that type: that of the context; 0 for host memory.
    pub device_id: i32,
    /// The element type: `SPEC_DTYPE_FLOAT` (16 or 32 bits) or `SPEC_DTYPE_BFLOAT` (16 bits).
    pub dtype_code: u8,
    /// Bits of an element: 16 or 32.
    pub dtype_bits: u8,
    /// 1.
    pub dtype_lanes: u16,
    /// The number of dimensions in use: 2.
    pub ndim: i32,
    /// Elements along each dimension; those beyond `ndim` are not looked at.
    pub shape: [i64; 4],
    /// Elements from one index to the next, along each dimension. All zero means that the
    /// tensor is compact; otherwise that of the last dimension is 1, and that of a row is any
    /// number from the row length on.
    pub strides: [i64; 4],
}

/// Calls `task(argument, i)` for every i in 0 .. `tasks`, on as many threads as it likes, and
/// returns when all calls have returned. `user` is what the options gave. `tasks` is at most the
/// `threads` of the options; tasks do not wait for each other, so that one thread may run them
/// all, one after the other.
///
/// Contract: the library may call it from several threads at once, on the threads of the host's
/// own calls; must not unwind; should not allocate.
pub type spec_parallel_for = Option<
    unsafe extern "C" fn(
        user: *mut c_void,
        tasks: i32,
        task: Option<unsafe extern "C" fn(argument: *mut c_void, index: i32)>,
        argument: *mut c_void,
    ),
>;

/// What memory is for: weights of a model, written once and read in every step.
pub const SPEC_MEMORY_WEIGHTS: i32 = 0;
/// What memory is for: the KV pages of a session.
pub const SPEC_MEMORY_KV: i32 = 1;
/// What memory is for: the workspace of a session.
pub const SPEC_MEMORY_WORKSPACE: i32 = 2;

/// Where the library takes weights, KV pools and workspaces from. Parsing a checkpoint, the small
/// records behind the handles and the library's threads use the C library's allocator instead.
/// Calls of every step use neither.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_allocator {
    /// sizeof(spec_allocator).
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// Handed to both functions. NULL is allowed.
    pub user: *mut c_void,
    /// Returns at least `size` bytes of memory of the context's device at a multiple of
    /// `alignment` (64), with any contents, or NULL: the call then fails with OUT_OF_MEMORY.
    /// `kind` is one of `SPEC_MEMORY_*`. Must not unwind; may be called from any thread. Never
    /// NULL itself.
    pub allocate: Option<
        unsafe extern "C" fn(
            user: *mut c_void,
            size: u64,
            alignment: u64,
            kind: i32,
        ) -> *mut c_void,
    >,
    /// Takes back what `allocate` returned, with the same size and kind, once. Must not
    /// unwind; may be called from any thread, and until the last handle that uses the memory
    /// is released. Never NULL itself.
    pub release:
        Option<unsafe extern "C" fn(user: *mut c_void, memory: *mut c_void, size: u64, kind: i32)>,
}

/// A log line about something that was assumed or corrected.
pub const SPEC_LOG_WARNING: i32 = 1;
/// A log line about what was loaded or created.
pub const SPEC_LOG_INFO: i32 = 2;

/// What `spec_context_create` makes. All zero but `struct_size`: the CPU, one thread per core
/// that the process may use, the library's own allocator, no log.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_context_options {
    /// sizeof(spec_context_options).
    pub struct_size: u32,
    /// 0 or `SPEC_DEVICE_CPU`, or `SPEC_DEVICE_CUDA`.
    pub device_type: i32,
    /// Which of the devices of that type, as the CUDA driver numbers them; 0 on the CPU.
    pub device_id: i32,
    /// Threads that work on a call, the calling one among them, 0 to 1024; 0 is one per core
    /// that the process may use. With `parallel_for`, the number of threads that it uses; 0 is
    /// then 1. Neither is used on CUDA devices.
    pub threads: i32,
    /// The host's own threads, instead of threads of the library; called until the last handle
    /// that refers to the context is released. NULL: the library keeps `threads - 1` threads
    /// of its own, with all signals blocked, which sleep between calls.
    pub parallel_for: spec_parallel_for,
    /// Handed to `parallel_for`. NULL is allowed.
    pub parallel_for_user: *mut c_void,
    /// NULL: memory from the operating system, in huge pages where it is large, or from the
    /// driver (CUDA). Copied, the struct itself need not be kept.
    pub allocator: *const spec_allocator,
    /// Takes log lines (UTF-8, ends with NUL, no line end, valid during the call); NULL:
    /// nothing is logged. `level` is one of `SPEC_LOG_*`. Must not unwind; may be called from
    /// any thread, never from calls of every step.
    pub log: Option<unsafe extern "C" fn(user: *mut c_void, level: i32, line: *const c_char)>,
    /// Handed to `log`. NULL is allowed.
    pub log_user: *mut c_void,
    /// CUDA: the host's CUcontext of the device, which outlives the spec_context and all that
    /// refers to it. NULL: the device's primary context, which is the one of all hosts that use
    /// the CUDA runtime. NULL on the CPU.
    pub cuda_context: *mut c_void,
    /// CUDA: a directory (UTF-8) with images of the library's kernels, `NAME.fatbin`,
    /// `NAME.cubin` or `NAME.ptx`, which are loaded in place of those that the library has.
    /// NULL: none.
    pub kernel_directory: *const c_char,
    /// CUDA: where compiled kernels are kept (UTF-8) if the library was built without nvcc and
    /// compiles them itself, with NVRTC, when a context is created; made if it is not there,
    /// shared by any number of processes. Empty: nowhere. NULL: `libspeculators` in
    /// `$XDG_CACHE_HOME`, or in `~/.cache`.
    pub kernel_cache: *const c_char,
}

/// What a context is.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_context_info {
    /// sizeof(spec_context_info), set by the host.
    pub struct_size: u32,
    /// `SPEC_DEVICE_CPU` or `SPEC_DEVICE_CUDA`.
    pub device_type: i32,
    /// Which of the devices of that type.
    pub device_id: i32,
    /// Threads of the host that work on a call, at least 1.
    pub threads: i32,
    /// The instructions in use: `avx512`, `avx2` or `portable`, or a CUDA device's architecture,
    /// such as `sm_90`. Lives as long as the process, never NULL.
    pub instruction_set: *const c_char,
}

/// Rows of a tensor that the host lends. The struct never grows.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_row_range {
    /// `[rows, hidden]` with at least one row, F32, F16 or BF16, all ranges of a tensor alike,
    /// on the context's device.
    pub tensor: spec_tensor,
    /// The row of the whole tensor that is row 0 here: the sum of the rows of all ranges
    /// before.
    pub first_row: i64,
}

/// `spec_model_options.flags`: use the weights where the files are mapped instead of copying them
/// into memory of the allocator. What has to be arranged anew (rows picked out of a head, tables,
/// tensors that are not aligned in their file) is copied all the same. The files must not change
/// while the model lives; cutting them short ends the process with SIGBUS.
pub const SPEC_MODEL_MAP_FILES: u32 = 1;

/// How `spec_model_load` loads. All zero but `struct_size` is right for a checkpoint that stores
/// all its tensors, or whose verifier lies where its config says. The strings and ranges are read
/// during the call; the memory of lent tensors is kept.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_model_options {
    /// sizeof(spec_model_options).
    pub struct_size: u32,
    /// `SPEC_MODEL_*` flags.
    pub flags: u32,
    /// The directory of the verifier (the target model), UTF-8. Its config.json tells the
    /// number of layers and their width; its embedding and head are read where the checkpoint
    /// lacks them and they are not lent. NULL: the path that the checkpoint names, seen from
    /// the checkpoint or from the working directory, if there is a config.json.
    pub verifier_directory: *const c_char,
    /// A JSON object, UTF-8, that is merged over the checkpoint's config.json, member by
    /// member where both are objects. NULL: nothing. Of `mtp` it may hold `hidden_input`, the
    /// hidden state that the speculator was trained on, which its files do not tell:
    /// `post_norm`, the default, after the target's final norm, as the heads that come with
    /// models are; or `pre_norm`, before it, as those that the speculators library trains are. Of
    /// `dflash` and the kinds that are made of it it may hold `block_semantics`: `library`, the
    /// default, runs blocks as the speculators library trains them, at their full length however
    /// few tokens are drafted, each layer with its own mask and windows that end before the
    /// block; `vllm` as that engine runs them, as long as the drafts take (but for `xpress`),
    /// with one mask for all layers and windows that move with the row.
    pub config_overrides: *const c_char,
    /// `[num_embedding]`: the verifier's token embedding, `[V, hidden]`, lent by the host as
    /// ranges that cover all rows in order. Rows from V on are padding and not used. Used in
    /// place, never written; it goes before the verifier's files. Where the checkpoint stores
    /// its own, that is used and the report has a warning. NULL: read from files where needed.
    pub embedding: *const spec_row_range,
    /// `[num_head]`: the verifier's LM head, lent likewise. Either `[V, hidden]`, padded or
    /// not, used in place if the draft vocabulary is the whole one, otherwise the rows of the
    /// drafted tokens are copied at load. Or exactly `[Vd, hidden]`, where Vd is below V: the
    /// rows of the drafted tokens alone, in the order of `draft_token_ids`, used in place.
    /// NULL: read from files where needed.
    pub head: *const spec_row_range,
    /// Elements of `embedding`; 0 where it is NULL, at least 1 otherwise.
    pub num_embedding: i32,
    /// Elements of `head`; 0 where it is NULL, at least 1 otherwise.
    pub num_head: i32,
    /// Called once, from the thread that releases the last of the model and its sessions, when
    /// nothing uses the lent tensors any more; also if none was needed. Not called if the load
    /// fails. Must not unwind. NULL: the host keeps the tensors until the model and all its
    /// sessions are released.
    pub lent_release: Option<unsafe extern "C" fn(user: *mut c_void)>,
    /// Handed to `lent_release`. NULL is allowed.
    pub lent_user: *mut c_void,
}

/// How `spec_checkpoint_convert` and `spec_checkpoint_stitch` work. All zero but `struct_size` is
/// right for a source that tells all there is to know. The strings are read during the call.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_convert_options {
    /// sizeof(spec_convert_options).
    pub struct_size: u32,
    /// 0.
    pub flags: u32,
    /// The directory of the verifier (the target model), UTF-8. Its config.json tells what the
    /// source does not, and its path goes into the result. NULL: none.
    pub verifier_directory: *const c_char,
    /// What the source is, instead of what its layout shows: `dflash`, `dflash2`, `dspark`, `eagle`,
    /// `eagle3`, `mtp`, `peagle` or `xpress`. NULL: as it is recognised.
    pub algorithm: *const c_char,
    /// A JSON object, UTF-8, of settings that hold instead of the source's: those of its layout, or
    /// `norm_before_residual`, `norm_before_fc`, `fc_norm`, `norm_output` and
    /// `eagle_aux_hidden_state_layer_ids` of `eagle3`, `aux_hidden_state_layer_ids` of `dflash` and
    /// the kinds that are made of it, `num_speculative_steps` of `mtp`, `layernorms` and
    /// `fusion_bias` of `eagle`, `speculative_tokens` of all others. NULL: nothing.
    pub arguments: *const c_char,
    /// Called again and again while files are written, from the thread of the call, with the bytes
    /// that are written and all that will be: 0 goes on, anything else calls the work off. Must not
    /// unwind. NULL: not called.
    pub progress: Option<unsafe extern "C" fn(user: *mut c_void, done: u64, total: u64) -> i32>,
    /// Handed to `progress`. NULL is allowed.
    pub progress_user: *mut c_void,
}

/// `spec_feature_layer.stage`: the residual stream that enters decoder layer `layer`, before any
/// norm; the number of layers stands for the stream that leaves the last one, before the final
/// norm.
pub const SPEC_STAGE_LAYER_INPUT: i32 = 0;
/// `spec_feature_layer.stage`: the output of the target's final norm, which its head reads;
/// `layer` is 0.
pub const SPEC_STAGE_FINAL_NORM: i32 = 1;

/// A hidden state of the target that a speculator reads. The struct never grows.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_feature_layer {
    /// The decoder layer of the target, from 0 to the number of layers.
    pub layer: i32,
    /// One of `SPEC_STAGE_*`.
    pub stage: i32,
    /// Elements of a row.
    pub width: i32,
    /// 0.
    pub reserved: i32,
}

/// What a loaded speculator is and needs. The pointers are owned by the model and live as long.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_model_info {
    /// sizeof(spec_model_info), set by the host.
    pub struct_size: u32,
    /// Elements of `features`, 0 to 64; 0 where the drafter reads tokens alone.
    pub num_features: i32,
    /// `[num_features]`, never NULL: the hidden states that `spec_draft` wants, one tensor
    /// each, in this order.
    pub features: *const spec_feature_layer,
    /// The kind of speculator: `dflash`, `dflash2`, `dspark`, `eagle`, `eagle3`, `independent`,
    /// `mlp`, `mtp`, `peagle` or `xpress`. Never NULL, ends with NUL.
    pub kind: *const c_char,
    /// V: tokens of the target's vocabulary.
    pub vocabulary: i32,
    /// Vd: tokens that can be proposed.
    pub draft_vocabulary: i32,
    /// `[Vd]`: the target's id of each column of draft logits, rising, in host memory; NULL:
    /// the identity, or, if `has_row_candidates`, what `spec_draft_args.draft_candidates` says.
    /// Fits `spec_distribution.token_ids`.
    pub draft_token_ids: *const i32,
    /// H: the drafter's hidden size.
    pub hidden_size: i32,
    /// Decoder layers of the drafter; 0 for `mlp`, whose sessions keep no keys and values.
    pub num_layers: i32,
    /// Trailing positions of a cached prefix whose rows must be committed again when another
    /// token follows than before: 1 where the drafter's row t reads token t + 1, 0 for `dflash`
    /// and the kinds that are made of it, whose rows read features alone, for `independent`,
    /// whose row t reads token t, and for `mlp`, which keeps nothing of rows.
    pub prefix_margin: i32,
    /// Tokens per round that the checkpoint says it was made for, 1 to 1024; 5 if it does not
    /// say, which the report lists as assumed.
    pub default_num_drafts: i32,
    /// Positions that the drafter was made for; sessions may have more, larger ones are
    /// computed all the same.
    pub max_position: i64,
    /// Bytes of weights in memory of the allocator. Mapped and lent weights do not count.
    pub weight_bytes: u64,
    /// C: columns of draft logits: Vd, or how many candidates each proposal is chosen from.
    pub draft_columns: i32,
    /// 1 if each row of draft logits has candidates of its own, whose ids
    /// `spec_draft_args.draft_candidates` takes; 0 if all have the same columns.
    pub has_row_candidates: i32,
    /// 1 if drafting tells how probably each proposal is accepted, see
    /// `spec_draft_args.confidence`; otherwise 0.
    pub has_confidence: i32,
    /// The most tokens that are proposed for a sequence in one call, whatever it asks for; 1023
    /// if the kind has no limit of its own.
    pub most_drafts: i32,
    /// Rows of the blocks that are drafted in one pass, as in training; 0 where a call's drafts
    /// say how many rows there are, or tokens are drafted one after the other.
    pub block_size: i32,
    /// The token that stands for those to be drafted, 0 to V - 1; -1: there is none.
    pub mask_token: i32,
}

/// How `spec_session_create` sizes a session.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_session_options {
    /// sizeof(spec_session_options).
    pub struct_size: u32,
    /// The most sequences in one call, 1 to 65536. Without a block table also the most slots.
    pub max_sequences: i32,
    /// The most rows committed in one call, over all sequences, 1 to 2^22.
    pub max_rows: i32,
    /// The most tokens proposed for a sequence in one call, 1 to 1023.
    pub max_drafts: i32,
    /// Positions lie below this; 1 to 2^31 - 2.
    pub max_position: i32,
    /// Positions per KV page; 0 is 16.
    pub page_size: i32,
    /// Pages of the pool; 0 is what `max_sequences` slots need. A slot is ceil(max_position /
    /// page_size) pages, slot i the i-th such piece of the pool; there are as many as fit, at
    /// most `max_sequences`.
    pub max_pages: i32,
    /// The element type of keys and values, a DLPack code (F32, F16 or BF16); 0 together with
    /// 0 bits: the default of the device (F32 on the CPU, BF16 on CUDA devices).
    pub kv_dtype_code: u8,
    /// Its bits.
    pub kv_dtype_bits: u8,
    /// 0.
    pub reserved: u16,
    /// The host's memory for the pages, `kv_pool_size` bytes, aligned to 64, with any
    /// contents, used by this session alone as long as it lives. NULL: from the allocator.
    pub kv_pool: *mut c_void,
    /// Bytes at `kv_pool`; at least what the requirements say. Not looked at where that is
    /// NULL.
    pub kv_pool_size: u64,
    /// The host's memory for the workspace, `workspace_size` bytes, aligned to 64, with any
    /// contents, used by this session alone as long as it lives. NULL: from the allocator.
    pub workspace: *mut c_void,
    /// Bytes at `workspace`; at least what the requirements say. Not looked at where that is
    /// NULL.
    pub workspace_size: u64,
    /// Trees: the most nodes of a level, of one sequence, that have children, 0 to 256; so many
    /// rows of each sequence pass the drafter at a time. 0: the session drafts chains only. More
    /// only if the kind drafts trees, see `spec_draft_args.tree_shape`.
    pub max_tree_width: i32,
    /// Trees: the most levels below the root, 1 to max_drafts. The workspace has keys and values
    /// of max_tree_width nodes on each level but the last, unless the kind drafts blocks. 0: the
    /// smaller of max_drafts and 8; 0 also if max_tree_width is 0.
    pub max_tree_depth: i32,
}

/// What a session with given options takes.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_session_requirements {
    /// sizeof(spec_session_requirements), set by the host.
    pub struct_size: u32,
    /// The alignment of both blocks, in bytes.
    pub alignment: u32,
    /// Bytes of workspace.
    pub workspace_size: u64,
    /// Bytes of the KV pool.
    pub kv_pool_size: u64,
    /// Bytes of one page. Page i lies at `i * page_bytes`. How a page is laid out is private,
    /// but pages of `kv_pool` may be copied whole while no call runs.
    pub page_bytes: u64,
    /// Bytes of keys and values of one position, in all layers.
    pub kv_bytes_per_token: u64,
    /// Pages of the pool.
    pub num_pages: i32,
    /// Positions of a page.
    pub page_size: i32,
}

/// How tokens are drawn, one value per sequence. A NULL array means its default for all. A
/// temperature below 1e-5 is greedy: the largest logit, of equal ones the lowest id; the other
/// parameters then mean nothing. Filters are applied after the temperature, in the order min-p,
/// top-k, top-p. NaN: `spec_verify` flags the sequence as INVALID, `spec_draft` takes the default.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_sampling {
    /// sizeof(spec_sampling).
    pub struct_size: u32,
    /// 0.
    pub reserved: u32,
    /// `[B]` float, divides the logits. NULL: 0, greedy.
    pub temperature: *const f32,
    /// `[B]` int32: only the k largest logits, with all that equal the k-th; 0 or less: all.
    /// NULL: all.
    pub top_k: *const i32,
    /// `[B]` float: of what min-p and top-k keep, only the most probable tokens that reach this
    /// share of its mass, with all that equal the last; 1 or more: all; 0 or less: the most
    /// probable. NULL: all.
    pub top_p: *const f32,
    /// `[B]` float: only tokens at least this fraction as probable as the most probable; 0 or
    /// less: all; above 1 counts as 1. NULL: all.
    pub min_p: *const f32,
    /// `[B]` uint64: the seed of the sequence's random numbers, any value. NULL: 0. A number
    /// depends on the seed, the absolute position of the token and its purpose; that of a draft
    /// also on how many drafts of its round lie before it and on its place among its siblings;
    /// on nothing else.
    pub seed: *const u64,
}

/// The distribution that draft tokens were drawn from, as narrow as the drafter has it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_distribution {
    /// sizeof(spec_distribution).
    pub struct_size: u32,
    /// Rows of `logits` per sequence if `row_begin` is NULL, 0 to 2^30; 0 is `max_drafts` of
    /// the call.
    pub rows_per_sequence: i32,
    /// `[Q, C]` F32, F16 or BF16: logits over C candidates, C at least 1 and below 2^21. NaN
    /// counts as -inf.
    pub logits: spec_tensor,
    /// The target's ids of the candidates: NULL (the identity, C is V), `[C]`, or `[Q, C]`
    /// with `token_ids_stride` elements from one row to the next. A negative id is no
    /// candidate; all others are below V, and none stands twice in a row.
    pub token_ids: *const i32,
    /// 0: `token_ids` is `[C]`, the same for all rows. Otherwise at least C.
    pub token_ids_stride: i64,
    /// `[B]` int32: the row of the first draft; draft i of sequence b, counted from 0, was
    /// drawn from row `row_begin[b] + i`. NULL: `b * rows_per_sequence`.
    pub row_begin: *const i32,
    /// How the drafts were drawn from it; the seeds are not looked at. NULL: as the request's
    /// own sampling says.
    pub sampling: *const spec_sampling,
}

/// The topology of draft trees, `[B, stride]` int32 each. Node 0 is the root, the known token, and
/// draft i, counted from 0, is node i + 1; parents come before their children, and siblings stand in
/// the order in which they are tested. A chain of K drafts has K + 1 nodes whose parents are -1, 0,
/// 1, ... `spec_draft` and `spec_tree_mask` fill one in; `spec_verify` reads `parents` alone.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_tree {
    /// sizeof(spec_tree).
    pub struct_size: u32,
    /// Elements from one sequence to the next in each array. 0: all sequences have the tree of the
    /// first row (inputs only).
    pub stride: i32,
    /// The parent of each node; -1 for the root.
    pub parents: *mut i32,
    /// The first child of each node; -1 for none.
    pub first_child: *mut i32,
    /// The next node with the same parent; -1 for none.
    pub next_sibling: *mut i32,
    /// Edges from the root.
    pub depth: *mut i32,
    /// The position of each node: that of the root and the depth.
    pub position: *mut i32,
}

/// `spec_tree_shape.kind`: the tree that `parents` says. The r-th child of a node is the r-th most
/// probable token below it, as in Medusa and EAGLE (Li et al., 2024, "EAGLE: Speculative Sampling
/// Requires Rethinking Feature Uncertainty"); of equally probable ones that of the first column of
/// `draft_logits` comes first, which is the lowest id but where rows have candidates of their own.
pub const SPEC_TREE_STATIC: i32 = 1;
/// `spec_tree_shape.kind`: EAGLE-2 (Li et al., 2024, "EAGLE-2: Faster Inference of Language Models
/// with Dynamic Draft Trees"). On each level the `width` nodes that are reached with the largest
/// probability, as the drafter sees it, are expanded; the `width` most probable tokens below each
/// are candidates. Of all candidates the best are proposed, as many as `num_drafts` allows, in the
/// order of their levels; of equal ones parents first. Fewer where there are not so many.
pub const SPEC_TREE_DYNAMIC: i32 = 2;
/// `spec_tree_shape.kind`: as STATIC, but the children of a node are drawn as `sampling` says, one
/// after the other without replacement: each with the earlier siblings' weights taken as 0. Where
/// no token with a weight is left, the other siblings and what is below them are -1: nothing was
/// proposed there. Sequences that sample greedily have the tree of STATIC.
pub const SPEC_TREE_STOCHASTIC: i32 = 3;

/// What trees `spec_draft` makes, alike for all sequences; in host memory, read in the call.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_tree_shape {
    /// sizeof(spec_tree_shape).
    pub struct_size: u32,
    /// One of `SPEC_TREE_*`.
    pub kind: i32,
    /// N: nodes of a tree, the root among them, 1 to max_drafts of the call + 1.
    pub num_nodes: i32,
    /// DYNAMIC: levels below the root, 1 to the session's max_tree_depth, and no more than the
    /// model's `most_drafts` if the kind drafts blocks. 0 otherwise.
    pub depth: i32,
    /// DYNAMIC: children of a node that are looked at, and nodes of a level that are expanded, 1 to
    /// the session's max_tree_width. 0 otherwise.
    pub width: i32,
    /// 0.
    pub reserved: i32,
    /// `[num_nodes]`: -1, then the parent of each node, which comes before it. Nodes are in the
    /// order of their depths, so that the first of them are always a tree. At most max_tree_depth
    /// levels below the root (of kinds that draft blocks no more than the model's `most_drafts`),
    /// 256 children of a node, and max_tree_width nodes with children on a level. NULL for DYNAMIC.
    pub parents: *const i32,
}

/// `flags` of `spec_draft_args` and `spec_verify_args`: `padding` instead of -1 fills unused
/// places among tokens. Paths are always padded with -1.
pub const SPEC_PADDING: u32 = 1;

/// The arguments of `spec_draft`. B is `num_sequences`, R is `num_rows`, H is the drafter's hidden
/// size, V and Vd are the vocabularies of the target and the drafter. Arrays are memory of the
/// session's device (with CUDA, page-locked host memory will do) unless they say otherwise; the
/// host owns them, and none is kept after the call's work is done. No output overlaps an input or
/// another output.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_draft_args {
    /// sizeof(spec_draft_args).
    pub struct_size: u32,
    /// `SPEC_PADDING` or 0.
    pub flags: u32,
    /// B, 0 to the session's max_sequences.
    pub num_sequences: i32,
    /// R: rows of `tokens`, `rope_position`, `embeddings` and the features, 0 to 2^31 - 2.
    /// More than the session's max_rows are fine as long as not more are committed. Sequences
    /// with which more would be committed in all than max_rows or R are left out of the step.
    pub num_rows: i32,
    /// The most tokens to propose for a sequence in this call, 0 to the session's max_drafts.
    pub max_drafts: i32,
    /// What stands in `draft_tokens` beyond the proposals, with `SPEC_PADDING`.
    pub padding: i32,
    /// Elements from one sequence to the next in `position`, `row_count` and `next_token`
    /// alike, so that they may point into the decision records of `spec_verify`; 0 is 1.
    pub decision_stride: i32,
    /// Elements from one sequence to the next in `row_index`, at least 1 if that is not NULL.
    pub row_index_stride: i32,
    /// `[B]`, never NULL if B is not 0: the position of `next_token`, below the session's
    /// max_position. The committed rows are those of the positions `position - row_count` to
    /// `position - 1`.
    pub position: *const i32,
    /// `[B]`, never NULL if B is not 0: rows to commit, at most `position`. 0: the sequence
    /// takes no part, and nothing is proposed for it.
    pub row_count: *const i32,
    /// `[B]`, never NULL if B is not 0: the token after the last committed row, 0 to V - 1:
    /// the new root, known but not yet run through the target; after a chunk of a prompt, the
    /// prompt's next token.
    pub next_token: *const i32,
    /// `[B]`: the first row of each sequence. NULL: `b * (max_drafts + 1)`.
    pub row_begin: *const i32,
    /// `[B, row_index_stride]`: the rows to commit where they are not contiguous, counted from
    /// `row_begin[b]`; a negative first entry means contiguous. NULL: contiguous. Fits the path of
    /// a decision record, with the stride of the records: no more than `row_count[b]` entries of a
    /// row are looked at.
    pub row_index: *const i32,
    /// `[B]`: tokens to propose, capped by `max_drafts`; 0 or less only commits. NULL:
    /// `max_drafts` for all.
    pub num_drafts: *const i32,
    /// `[B]`: tokens that the sequence may still emit; at most one less is proposed. NULL: no
    /// limit.
    pub limit: *const i32,
    /// `[B]`: the first position that has drafter rows, at most `position - row_count`;
    /// earlier ones are not looked at, nor are pages that hold nothing else. NULL: 0.
    pub context_begin: *const i32,
    /// `[B, block_table_stride]`: the pages of each sequence, page j for positions from `j *
    /// page_size` on, each below the number of pages. They must reach max(position - 1,
    /// position + n - 2), where n is the number of tokens that are proposed: the last row that
    /// is written; for `independent`, position + n - 1. Pages that one sequence writes are in no
    /// other table of the call. NULL: slots.
    pub block_table: *const i32,
    /// Elements from one sequence to the next in `block_table`, at least 1 if that is not
    /// NULL.
    pub block_table_stride: i32,
    /// Elements of `features`: those of the model.
    pub num_features: i32,
    /// `[B]`: the slot of each sequence where `block_table` is NULL, below the number of slots
    /// (see `max_pages`), no slot twice among sequences that take part, which is not checked.
    /// NULL: b.
    pub slot: *const i32,
    /// `[R]`, NULL only if R is 0: the token of each row, unshifted: row r carries the token
    /// and the features of one position. 0 to V - 1, or -1: the row of `embeddings` instead.
    pub tokens: *const i32,
    /// `[R]`: the positions that the rotary embedding turns by, any numbers; proposals count
    /// on from the last committed row. NULL: the positions.
    pub rope_position: *const i32,
    /// `[num_features]` in host memory, NULL only if that is 0: one `[R, width]` tensor (F32,
    /// F16 or BF16) for each entry of the model's `features`, read at the rows that are
    /// committed.
    pub features: *const spec_tensor,
    /// `[R, H]` F32, F16 or BF16, the struct in host memory, its data on the device: the
    /// embeddings of rows whose token is -1, before the drafter's norm. NULL: there are none.
    pub embeddings: *const spec_tensor,
    /// How proposals are drawn, each with a number of its own purpose. NULL: greedily.
    pub sampling: *const spec_sampling,
    /// The struct in host memory; its arrays, with a stride of at least max_drafts + 1, are
    /// written up to there: what trees the proposals are. Beyond them there is -1, 0 in `depth`
    /// and `position`. Of a sequence that takes no part it is the root alone. Without
    /// `tree_shape` it describes chains. NULL: not wanted.
    pub tree: *const spec_tree,
    /// `[B, draft_stride]`, written: the proposals, in the target's ids, padded to
    /// `max_drafts`; what lies beyond is left as it was. NULL only if B or `max_drafts` is 0.
    pub draft_tokens: *mut i32,
    /// `[B]`, written: how many tokens were proposed, 0 for sequences that took no part. Fits
    /// `spec_verify_args.num_drafts`. NULL: not wanted.
    pub num_proposed: *mut i32,
    /// `[B * max_drafts, C]` (F32, F16 or BF16), the struct in host memory, where C is the
    /// model's `draft_columns`; its data are written: row `b * max_drafts + i` has the logits
    /// that proposal i, counted from 0, was drawn from, before temperature and filters; rows
    /// without proposal are left as they were (those that `min_confidence` drops are written).
    /// The draw uses the values as rounded to this type, so that they are the true distribution
    /// for `spec_distribution`. NULL: not wanted.
    pub draft_logits: *const spec_tensor,
    /// Elements from one sequence to the next in `draft_tokens`, at least `max_drafts`; 0 is
    /// that.
    pub draft_stride: i32,
    /// Proposals of a sequence end before the first one whose confidence, times that of all
    /// before it, is below this, 0 to 1. A proposal's confidence depends on the proposals before
    /// it alone, so that verification stays lossless. 0: they do not. Above 0 only if the model
    /// `has_confidence`.
    pub min_confidence: f32,
    /// `[B * max_drafts, C]`, written: the target's ids of the columns of `draft_logits`, row by
    /// row. Fits `spec_distribution.token_ids` with a stride of C. NULL: not wanted; NULL also
    /// if the model has no `has_row_candidates`, and never if it has and `draft_logits` is given.
    pub draft_candidates: *mut i32,
    /// `[B * max_drafts]`, written: how probably each proposal is accepted if all before it are,
    /// 0 to 1, as the drafter sees it; elements without proposal are left as they were, but for
    /// the first that `min_confidence` drops. NULL: not wanted; NULL also if the model has no
    /// `has_confidence`.
    pub confidence: *mut f32,
    /// Trees instead of chains, in a session with max_tree_width, for kinds that draft one token
    /// after the other: `eagle`, `eagle3`, `mtp`, `independent` and `mlp`, and of those that draft
    /// blocks for `peagle`, `dflash`, `dflash2` and `dspark`; UNSUPPORTED for others. Draft i of a
    /// sequence is then node i + 1 of its tree. `num_drafts` cuts the tree to as many drafts, those
    /// of the first nodes (DYNAMIC: the best ones); what else bounds chains (`limit`, max_position,
    /// `most_drafts`) bounds its depth. Row `b * max_drafts + n` of `draft_logits` has the logits
    /// that the children of node n were chosen from, that of `draft_candidates` their ids; rows of
    /// nodes without children are left as they were; DYNAMIC does not give them (UNSUPPORTED), as
    /// its tokens are not drawn. All rows of a level are one run of the drafter; each sees the
    /// context and its own path. Their keys and values are kept in the workspace, so that the pages
    /// need reach no further than position - 1, or position for `independent` if anything is
    /// proposed. A block is run once. Where its tokens do not depend on each other (`peagle`,
    /// `dflash`, `dspark` without a Markov head), all nodes of a depth have the logits of its slot,
    /// and those of one tree the same children, as far as each has any; a Markov head is stepped
    /// for each node. The nodes of a depth of `dflash2` have the candidates of its slot, scored for
    /// each node; children beyond them are -1, and so is what is below these. Proposals of trees
    /// are not rated: `confidence` is NULL and `min_confidence` 0 (UNSUPPORTED). NULL: chains.
    pub tree_shape: *const spec_tree_shape,
}

/// `flags` of `spec_verify_args`: rules are allowed that are not lossless.
pub const SPEC_LOSSY: u32 = 2;

/// `spec_verify_args.rule`: lossless. `SPEC_RULE_REJECTION_DISTINCT` where `draft` gives q, which
/// for chains is `SPEC_RULE_REJECTION`; `SPEC_RULE_FOLLOW` otherwise. Under any rule that is
/// lossless, a greedy sequence follows drafts while they are the target's argmax.
pub const SPEC_RULE_DEFAULT: i32 = 0;
/// `spec_verify_args.rule`: lossless, for drafts taken as given; `draft` is not used. The target's
/// token is drawn at each position and the drafts are followed while they are equal to it, so that
/// the text is the one that sampling without speculation gives for the same seed. For trees also
/// known as target-only sampling.
pub const SPEC_RULE_FOLLOW: i32 = 1;
/// `spec_verify_args.rule`: lossless rejection sampling (Leviathan et al., 2023; Chen et al.,
/// 2023): draft d is accepted with probability min(1, p(d) / q(d)), otherwise its replacement is
/// drawn from max(p - q, 0) normalised. Without `draft`, q is one at d. In a tree, what a rejected
/// sibling leaves takes the place of p for the next one (SpecInfer; Miao et al., 2024): siblings
/// were drawn from q independently of each other.
pub const SPEC_RULE_REJECTION: i32 = 2;
/// `spec_verify_args.rule`: the same for siblings that were drawn without replacement: q is that
/// without the earlier siblings, normalised (Sequoia; Chen et al., 2024). Siblings after one that
/// was struck out are not tested.
pub const SPEC_RULE_REJECTION_DISTINCT: i32 = 3;
/// `spec_verify_args.rule`: lossless block verification (Sun et al., 2024), for chains: the longest
/// prefix that passes its test is accepted, though a shorter one may have failed. On average no
/// fewer drafts are accepted than by `SPEC_RULE_REJECTION`. Drafts must have been drawn with numbers
/// of their round, as `spec_draft` draws them.
pub const SPEC_RULE_BLOCK: i32 = 4;
/// `spec_verify_args.rule`: typical acceptance (Medusa; Cai et al., 2024), not lossless: drafts are
/// followed whose probability p is at least min(epsilon, alpha exp(-H)), H being the entropy of p.
/// Of several paths the longest is taken, of equally long ones that of the first sibling.
pub const SPEC_RULE_TYPICAL: i32 = 16;
/// `spec_verify_args.rule`: thresholds, not lossless unless both are 1: with one number for all
/// siblings, a draft is followed if p is at least `threshold_single`, or if the number is below the
/// sum of p over it and its earlier siblings, divided by `threshold_accumulated`; otherwise the
/// token is drawn from p without the siblings.
pub const SPEC_RULE_THRESHOLD: i32 = 17;
/// `spec_verify_args.rule`: not lossless: drafts are followed that are among the `top_n` largest
/// logits and at most `tolerance` below the largest, also for greedy sequences; the token after
/// them is the request's own. What a speculator's `verifier_accept_k` and `accept_tolerance` mean.
pub const SPEC_RULE_RELAXED: i32 = 18;
/// `spec_verify_args.rule`: not lossless: the first child of a node is followed as often as
/// `acceptance` says, whatever the logits, also for greedy sequences: for planning of capacity.
pub const SPEC_RULE_SYNTHETIC: i32 = 19;

/// What rules go by that are not lossless; each looks at its own.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_leniency {
    /// sizeof(spec_leniency).
    pub struct_size: u32,
    /// RELAXED: how many of the largest logits will do, with all that equal the last; 0 is 1.
    pub top_n: i32,
    /// RELAXED: how far below the largest logit they may lie, from 0 on.
    pub tolerance: f32,
    /// TYPICAL: the probability that is always enough, above 0 and at most 1; 0 is 0.09.
    pub epsilon: f32,
    /// TYPICAL: the factor of exp(-entropy), above 0 and at most 1; 0 is 0.3.
    pub alpha: f32,
    /// THRESHOLD: the probability with which a draft stands on its own, above 0 and at most 1; 0
    /// is 1.
    pub threshold_single: f32,
    /// THRESHOLD: what probabilities are divided by, above 0 and at most 1; 0 is 1.
    pub threshold_accumulated: f32,
    /// 0.
    pub reserved: u32,
    /// SYNTHETIC: `[K]` in memory of the context's device: the probability that the first child
    /// of a node is accepted, for the children of the root first, then by depth. NULL: 0.
    pub acceptance: *const f32,
}

/// What is done to the target's logits at a node before a token is drawn there, under every rule
/// and for greedy sequences, too: what decoding without speculation would do after the same text.
/// The *text* at a node is what the sequence has emitted, the root included, then the tokens of the
/// path below the root down to the node, its own included.
///
/// The steps are those of vLLM, in its order, each an operation in F32: masks, bad words, stop
/// tokens, biases, penalties. The temperature and the filters of `spec_sampling` follow. A token
/// that one of the first three excludes has the logit -inf whatever is added to it.
///
/// The struct is in host memory, the arrays are in memory of the context's device; none is written.
/// B, K, V and R are those of `spec_verify_args`. A sequence is INVALID, with no effect on others,
/// if a mask of its rows is below -1 or not below M; if a range of its words or biases, or of the
/// tokens of one of its words, does not lie in its list, or one of its words has no token; if a
/// token of these is not from 0 to V - 1; if a bias, `frequency` or `presence` is NaN or
/// `repetition` is not above 0; if it has words and its `history_length` is below 0 or above
/// `history_stride`; or if it has penalties and its row of counts is not from 0 to S - 1.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_processing {
    /// sizeof(spec_processing).
    pub struct_size: u32,
    /// M: masks, from 0 on.
    pub num_masks: i32,
    /// `[M, mask_stride]` uint32: token t is allowed where bit t % 32, counted from the lowest, of
    /// element t / 32 is 1: what xgrammar and llguidance write. Bits from V on are not looked at.
    /// NULL only if M is 0.
    pub allowed: *const u32,
    /// `[R]`: the mask of each row of `logits`, which is that of a node; -1: all tokens are allowed.
    /// NULL: row r has mask r; if M is 0, none.
    pub mask_row: *const i32,
    /// Elements from one mask to the next, at least (V + 31) / 32; 0 is that.
    pub mask_stride: i32,
    /// W: bad words, from 0 on. With 0 the arrays of words are not looked at.
    pub num_bad_words: i32,
    /// `[num_word_tokens]`: the tokens of the words. The last token of a word is excluded where those
    /// before it end the text; a word of one token always. NULL only if there are none.
    pub word_tokens: *const i32,
    /// `[W]`: where the tokens of each word begin in `word_tokens`. NULL only if W is 0.
    pub word_begin: *const i32,
    /// `[W]`: how many they are, at least 1. NULL only if W is 0.
    pub word_length: *const i32,
    /// `[B]`: the first word of each sequence. Sequences may share words. NULL only if B or W is
    /// 0.
    pub bad_words_begin: *const i32,
    /// `[B]`: how many words it has, from 0 on. NULL only if B or W is 0.
    pub bad_words_length: *const i32,
    /// `[B, history_stride]`: the last tokens of the text at the root, in order, the root being the
    /// last: one less than the longest word has will do. What is not there matches no word. NULL:
    /// nothing is there.
    pub history: *const i32,
    /// `[B]`: how many tokens each sequence has in `history`. NULL only if that is NULL or B is 0.
    pub history_length: *const i32,
    /// Elements of `word_tokens`.
    pub num_word_tokens: i32,
    /// Elements from one sequence to the next in `history`, at least 1 if that is not NULL.
    pub history_stride: i32,
    /// `[B]`: how many of the tokens to come are no stop tokens: those of `stop_tokens` are excluded
    /// below a node whose depth is less than this (below the root the first token is emitted, below
    /// its children the second). NULL or 0 or less: none.
    pub min_tokens: *const i32,
    /// `[num_biases]`: the tokens of biases, none twice in the range of a sequence. NULL only if
    /// there are none.
    pub bias_tokens: *const i32,
    /// `[num_biases]` float: what is added to the logit of each.
    pub bias_values: *const f32,
    /// `[B]`: the first bias of each sequence. NULL only if B or `num_biases` is 0.
    pub biases_begin: *const i32,
    /// `[B]`: how many it has, from 0 on. NULL only if B or `num_biases` is 0.
    pub biases_length: *const i32,
    /// Elements of `bias_tokens` and `bias_values`. With 0 the arrays of biases are not looked at.
    pub num_biases: i32,
    /// S: rows of counts, from 0 on.
    pub num_count_rows: i32,
    /// `[B]` float, above 0: a logit above 0 of a token that stands in the prompt or the text is
    /// divided by it, any other one multiplied. NULL: 1 for all, which is none.
    pub repetition: *const f32,
    /// `[B]` float: taken from the logit of a token as many times as it stands in the text. NULL: 0
    /// for all.
    pub frequency: *const f32,
    /// `[B]` float: taken from the logit of a token that stands in the text. NULL: 0 for all.
    pub presence: *const f32,
    /// `[S, count_stride]`: how often each token stands in the text at the root. What the path adds
    /// is counted by the library, so that only emitted tokens are to be added between calls. Numbers
    /// below 0 count as 0. NULL: 0 for all.
    pub output_counts: *const i32,
    /// `[S, prompt_stride]` uint32, bits as in `allowed`: 1 where the token stands in the prompt.
    /// NULL: 0 for all.
    pub prompt_tokens: *const u32,
    /// `[B]`: the row of each sequence in `output_counts` and `prompt_tokens`. NULL: b.
    pub count_row: *const i32,
    /// Elements from one row to the next in `output_counts`, at least V; 0 is that.
    pub count_stride: i32,
    /// Elements from one row to the next in `prompt_tokens`, at least (V + 31) / 32; 0 is that.
    pub prompt_stride: i32,
}

/// Index in a decision record: drafts accepted, 0 to K.
pub const SPEC_DECISION_ACCEPTED: i32 = 0;
/// Index in a decision record: tokens emitted: 0 (the sequence took no part, was invalid, or had
/// no limit left), ACCEPTED (an accepted draft was a stop token or used the limit up) or ACCEPTED
/// + 1.
pub const SPEC_DECISION_EMITTED: i32 = 1;
/// Index in a decision record: the last emitted token, the next root. Untouched where nothing was
/// emitted.
pub const SPEC_DECISION_NEXT_TOKEN: i32 = 2;
/// Index in a decision record: position + EMITTED, the position of the next root. Written for all
/// sequences.
pub const SPEC_DECISION_NEXT_POSITION: i32 = 3;
/// Index in a decision record: `SPEC_DECISION_FLAG_*`, combined.
pub const SPEC_DECISION_FLAGS: i32 = 4;
/// Index in a decision record: the drafts below the last accepted one, if that was a stop token or
/// used the limit up: they were dropped without a look. Otherwise 0.
pub const SPEC_DECISION_DROPPED: i32 = 5;
/// Index in a decision record: the emitted tokens, K + 1 elements, padded. The accepted path
/// follows them, at `SPEC_DECISION_TOKENS + K + 1`, K + 1 elements: the nodes of the rows that are
/// committed next, EMITTED of them from 0 (the root) on, padded with -1. K is `max_drafts` of the
/// call.
pub const SPEC_DECISION_TOKENS: i32 = 8;

/// `SPEC_DECISION_FLAGS`: a row that was read had only -inf and NaN, in `logits` or after
/// `processing`; token 0 was taken for it.
/// Where logits are +inf, those alone are candidates.
pub const SPEC_DECISION_FLAG_NO_CANDIDATE: i32 = 1;
/// `SPEC_DECISION_FLAGS`: the last emitted token is a stop token, be it an accepted draft, a
/// replacement or the bonus token.
pub const SPEC_DECISION_FLAG_STOPPED: i32 = 2;
/// `SPEC_DECISION_FLAGS`: as many tokens were emitted as `limit` allows, also where the last is
/// the bonus token, or `limit` was 0 or less.
pub const SPEC_DECISION_FLAG_LIMIT: i32 = 4;
/// `SPEC_DECISION_FLAGS`: the sequence's entries are out of range, and nothing was emitted: the
/// rows of the root and its drafts are not in `logits`; `num_drafts` is above K; a draft is below
/// -1 or not below V; `position` is negative, or position + num_drafts + 1 is above 2^31 - 1; a
/// temperature, top_p or min_p is NaN, here or in `draft`; the drafts' rows are not in `draft`; the
/// parent of a draft is not a node before it; one of its `uniforms` is not in [0, 1) and the
/// sequence is not greedy (or the rule is SYNTHETIC); or what `spec_processing` says.
pub const SPEC_DECISION_FLAG_INVALID: i32 = 8;
/// `SPEC_DECISION_FLAGS`: the rule does not keep the target's distribution.
pub const SPEC_DECISION_FLAG_LOSSY: i32 = 16;

/// What `spec_verify` tells of how probable the tokens were that it emits. Each place of a record's
/// tokens has n + 1 elements: of the emitted token, then of the n most probable tokens, the most
/// probable first and of equal ones that with the lowest id; the emitted token may be among them.
/// Values are natural logarithms of probabilities, -inf for what a filter or mask leaves out or what
/// is NaN; no token (-1) is named for the alternatives that there are not. Places that nothing was
/// emitted for have NaN, -1 and rank 0. Equal logits give equal values on every device.
///
/// The struct is in host memory, the arrays are in memory of the context's device, the host's, and
/// written; none overlaps another array of the call.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_logprobs {
    /// sizeof(spec_logprobs).
    pub struct_size: u32,
    /// n: the alternatives of each emitted token, 0 to 256.
    pub num_alternatives: i32,
    /// `[B, K + 1, n + 1]` F32, written, never NULL if B is not 0.
    pub values: *mut f32,
    /// `[B, K + 1, n + 1]`, written: the tokens that the values are of. NULL only if n is 0.
    pub token_ids: *mut i32,
    /// `[B, K + 1]`, written: one more than there are tokens more probable than the emitted one.
    /// NULL: not wanted.
    pub ranks: *mut i32,
}

/// The arguments of `spec_verify`. B is `num_sequences`, K is `max_drafts`, V is the target's
/// vocabulary, R is the number of rows of `logits`. Arrays are memory of the context's device (with
/// CUDA, page-locked host memory will do) unless they say otherwise; the host owns them, and none
/// is kept after the call's work is done. No output overlaps an input, but for `position`, or
/// another output.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_verify_args {
    /// sizeof(spec_verify_args).
    pub struct_size: u32,
    /// `SPEC_PADDING`, `SPEC_LOSSY`, combined, or 0.
    pub flags: u32,
    /// B, from 0 on. With 0 nothing is read or written.
    pub num_sequences: i32,
    /// K: the most drafts of a sequence, 0 to 1023: of a tree, the nodes beside the root.
    pub max_drafts: i32,
    /// One of `SPEC_RULE_*`.
    pub rule: i32,
    /// What stands beyond the emitted tokens of a record, with `SPEC_PADDING`; -1 otherwise.
    pub padding: i32,
    /// `[R, V]` F32, F16 or BF16, V at least 1 and below 2^21: the target's raw logits. Row
    /// `row_begin[b]` is the root's, row `row_begin[b] + i` that of draft i, counted from 1, which
    /// is node i of a tree.
    /// NaN counts as -inf.
    pub logits: spec_tensor,
    /// `[B]`: the root's row. NULL: `b * (K + 1)`.
    pub row_begin: *const i32,
    /// `[B]`: drafts of each sequence, 0 to K; negative: the sequence takes no part. NULL: K for
    /// all.
    pub num_drafts: *const i32,
    /// `[B, draft_stride]`: the drafts, in the target's ids. What lies beyond num_drafts is
    /// not looked at: nothing was proposed there. A -1 before it was struck out by the host
    /// after it had been drawn: it is tested as rejected. NULL only if B or K is 0.
    pub draft_tokens: *const i32,
    /// `[B]`, never NULL if B is not 0: the root's position, `position_stride` elements apart.
    /// May be NEXT_POSITION in `decisions`, with their stride: each is read before its record
    /// is written.
    pub position: *const i32,
    /// `[B]`: tokens that the sequence may still emit; 0 or less: none. NULL: no limit.
    pub limit: *const i32,
    /// Elements from one sequence to the next in `draft_tokens`, at least K; 0 is K.
    pub draft_stride: i32,
    /// Elements from one sequence to the next in `position`; 0 is 1.
    pub position_stride: i32,
    /// How the request samples. NULL: greedily.
    pub sampling: *const spec_sampling,
    /// The distribution that the drafts were drawn from. NULL: the drafts are taken as given.
    pub draft: *const spec_distribution,
    /// The trees that the drafts are, of which `parents` is not NULL and in memory of the context's
    /// device, its stride 0 or at least K + 1; the struct in host memory. NULL: chains.
    pub tree: *const spec_tree,
    /// `[B, 2 * (K + 1)]` in [0, 1): the random numbers to use instead of the seeded ones;
    /// element 2 i tests draft i, counted from 0, element 2 i + 1 draws the token that is emitted
    /// below node i, which in a chain is the one after i accepted drafts. Elements beyond `2 *
    /// (num_drafts + 1)` and those of greedy sequences are not looked at. NULL: seeded.
    pub uniforms: *const f64,
    /// `[num_stop_tokens]`: emission ends after any of these, which is emitted itself. NULL
    /// only if there are none.
    pub stop_tokens: *const i32,
    /// Elements of `stop_tokens`.
    pub num_stop_tokens: i32,
    /// Elements from one decision record to the next, at least `SPEC_DECISION_TOKENS + 2 * (K
    /// + 1)`.
    pub decision_stride: i32,
    /// `[B, decision_stride]`, written, never NULL if B is not 0: one record per sequence,
    /// laid out by `SPEC_DECISION_*`. NEXT_TOKEN is left as it was for a sequence that emits
    /// nothing, as is what lies beyond the path; the elements between FLAGS and TOKENS are set
    /// to 0.
    pub decisions: *mut i32,
    /// `[3 + K]` uint64, added to: rounds, drafts, emitted tokens, then for i
    /// from 1 to K the rounds in which i drafts or more were accepted. Sequences that emitted nothing
    /// do not count; of the others, all of `num_drafts` do. Calls with another K may add to the
    /// same array. NULL: not wanted. Not shared between concurrent calls.
    pub counters: *mut u64,
    /// Scratch of at least the bytes that `spec_verify_workspace_size` says, aligned to 64,
    /// for this call alone; what is in it before and after means nothing. NULL only if that is
    /// 0.
    pub workspace: *mut c_void,
    /// Bytes at `workspace`.
    pub workspace_size: u64,
    /// What the rule goes by if it is not lossless; the struct in host memory. NULL: the defaults.
    pub leniency: *const spec_leniency,
    /// What is done to the target's logits before tokens are drawn from them. NULL: nothing.
    pub processing: *const spec_processing,
    /// How probable the emitted tokens were by `logits` as they are, at temperature 1; the struct in
    /// host memory. NULL: not wanted.
    pub raw_logprobs: *const spec_logprobs,
    /// The same by what they were drawn from: after `processing`, the temperature and the filters of
    /// `sampling`; for greedy sequences after `processing`, at temperature 1. NULL: not wanted.
    pub processed_logprobs: *const spec_logprobs,
}

/// `spec_tree_mask_args.flags`: the columns of a mask are those of a prefix, which every node sees,
/// and behind them the nodes. Without it they are the nodes alone.
pub const SPEC_TREE_MASK_PREFIX: u32 = 1;
/// `spec_tree_mask_args.flags`: each sequence has as many rows in the mask as nodes, and each row as
/// many columns as prefix and nodes; rows follow each other without a gap, bits too.
pub const SPEC_TREE_MASK_RAGGED: u32 = 2;

/// `spec_tree_mask_args.mask_form`: a byte for each column, 1 where it is seen, otherwise 0.
pub const SPEC_MASK_BOOL: i32 = 1;
/// `spec_tree_mask_args.mask_form`: a number for each column, to be added to its score: 0 where it
/// is seen, otherwise -inf.
pub const SPEC_MASK_ADDITIVE: i32 = 2;
/// `spec_tree_mask_args.mask_form`: a bit for each column, 1 where it is seen, in words of the
/// processor's byte order: column c of a row is bit c % bits of word c / bits, counted from the
/// lowest. Bits behind the last column are 0.
pub const SPEC_MASK_BITS: i32 = 3;

/// `spec_tree_mask_args.sequence_flags`: `num_nodes` is above N; the root's position is negative,
/// or the last node's could be above 2^31 - 1; the prefix is negative; or prefix and N are above
/// `mask_columns`, or the rows end behind `mask_size`. All else is as if the sequence had no nodes.
pub const SPEC_TREE_FLAG_SIZE: i32 = 1;
/// `spec_tree_mask_args.sequence_flags`: the parent of node 0 is not -1, or that of another node is
/// not a node before it. Its rows in the mask see themselves alone, and neither a prefix nor each
/// other; all else is as if the sequence had no nodes.
pub const SPEC_TREE_FLAG_PARENTS: i32 = 2;
/// `spec_tree_mask_args.sequence_flags`: there are more leaves than `max_paths`, or one of them is
/// deeper than `path_length` - 1. Its paths are padding, their number is 0; all else is written.
pub const SPEC_TREE_FLAG_PATHS: i32 = 4;

/// The arguments of `spec_tree_mask`. B is `num_sequences`, N is `max_nodes`. Arrays are memory of
/// the context's device (with CUDA, page-locked host memory will do) unless they say otherwise; the
/// host owns them, and none is kept after the call's work is done. No output overlaps an input or
/// another output. All outputs may be NULL, which means that they are not wanted.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_tree_mask_args {
    /// sizeof(spec_tree_mask_args).
    pub struct_size: u32,
    /// `SPEC_TREE_MASK_*` flags; 0 without `mask`.
    pub flags: u32,
    /// B, from 0 on. With 0 nothing is read or written.
    pub num_sequences: i32,
    /// N: the most nodes of a tree with its root, 1 to 1024.
    pub max_nodes: i32,
    /// `[B, parents_stride]`, never NULL if B is not 0: the parent of each node, -1 for the root, a
    /// node before it for every other. What lies beyond num_nodes is not looked at.
    pub parents: *const i32,
    /// `[B]`: nodes of each tree, 1 to N; 0 or less: the sequence takes no part. NULL: N for all.
    pub num_nodes: *const i32,
    /// `[B]`: the root's position, `position_stride` elements apart, so that it may be NEXT_POSITION
    /// in decision records. NULL only if neither positions nor a prefix without `prefix_length` are
    /// wanted.
    pub position: *const i32,
    /// `[B]`: columns of the prefix, from 0 on, with `SPEC_TREE_MASK_PREFIX`; otherwise not looked
    /// at. NULL: the root's position, that is, all tokens before the root.
    pub prefix_length: *const i32,
    /// Elements from one sequence to the next in `parents`, at least N; 0: all sequences have the
    /// tree of the first row.
    pub parents_stride: i32,
    /// Elements from one sequence to the next in `position`; 0 is 1.
    pub position_stride: i32,
    /// The struct in host memory; its arrays, with a stride of at least N, are written up to N.
    /// Beyond num_nodes there is -1, 0 in `depth` and `position`. NULL: not wanted.
    pub tree: *const spec_tree,
    /// `[B, position64_stride]` int64, written: the same as `tree.position`, for hosts whose
    /// positions are as wide.
    pub position64: *mut i64,
    /// Elements from one sequence to the next in `position64`, at least N; 0 is N.
    pub position64_stride: i32,
    /// Paths of a sequence that `paths` has room for, 1 to N; 0 is N.
    pub max_paths: i32,
    /// `[B, max_paths, path_length]`, written: the nodes from the root to each leaf, leaves in
    /// ascending order, padded with -1.
    pub paths: *mut i32,
    /// `[B]`, written: leaves, and so paths.
    pub num_paths: *mut i32,
    /// Nodes of a path that `paths` has room for, 1 to N; 0 is N.
    pub path_length: i32,
    /// One of `SPEC_MASK_*`; 0 without `mask`.
    pub mask_form: i32,
    /// Written, elements of `mask_form`, aligned to their size: which rows see which columns. A node
    /// sees its ancestors and itself. Without `SPEC_TREE_MASK_RAGGED` each sequence has N rows, row
    /// n begins at element `b * mask_sequence_stride + n * mask_row_stride`, and rows beyond
    /// num_nodes see themselves alone (column n, or prefix + n; n if the sequence takes no part).
    pub mask: *mut c_void,
    /// `SPEC_MASK_ADDITIVE`: `SPEC_DTYPE_FLOAT` or `SPEC_DTYPE_BFLOAT`; otherwise 0.
    pub mask_dtype_code: u8,
    /// `SPEC_MASK_ADDITIVE`: bits of a number, 16 or 32; `SPEC_MASK_BITS`: bits of a word, 8, 16, 32
    /// or 64; otherwise 0.
    pub mask_dtype_bits: u8,
    /// 0.
    pub reserved: u16,
    /// Columns of a row, at least N, all of which are written: those behind the nodes are not seen.
    /// With `SPEC_TREE_MASK_PREFIX`, at least the longest prefix and N together; otherwise 0 is N. 0
    /// with `SPEC_TREE_MASK_RAGGED`.
    pub mask_columns: i32,
    /// Elements from one row to the next, at least those of a row; 0 is that. 0 with
    /// `SPEC_TREE_MASK_RAGGED`.
    pub mask_row_stride: i64,
    /// Elements from one sequence to the next, at least those of N rows; 0 is `N *
    /// mask_row_stride`. 0 with `SPEC_TREE_MASK_RAGGED`.
    pub mask_sequence_stride: i64,
    /// Elements at `mask` with `SPEC_TREE_MASK_RAGGED`, 0 to 2^31 - 1; otherwise 0.
    pub mask_size: i64,
    /// `[B + 1]`, written with `SPEC_TREE_MASK_RAGGED`, otherwise NULL: the element with which the
    /// rows of each sequence begin, and where the last ones end, none above `mask_size`. Sequences
    /// follow each other; each begins with an element of its own.
    pub mask_begin: *mut i32,
    /// `[B]`, written: `SPEC_TREE_FLAG_*`, combined; 0 where all is well.
    pub sequence_flags: *mut i32,
}

/// `spec_kv_compact_args.layout`: a page is `[page_size, num_heads, head]`.
pub const SPEC_KV_NHD: i32 = 0;
/// `spec_kv_compact_args.layout`: a page is `[num_heads, page_size, head]`.
pub const SPEC_KV_HND: i32 = 1;

/// `spec_kv_compact_args.sequence_flags`: nothing of the sequence was moved or listed, as something
/// is out of range: `row_count` is not 0 to N, or above `position`; the path does not begin with
/// node 0, or does not ascend, or has a node that is not below N; or the row of a node is in no page
/// of the sequence, or in one that is not below `num_pages`.
pub const SPEC_KV_COMPACT_FLAG_INVALID: i32 = 1;

/// The arguments of `spec_kv_compact`. B is `num_sequences`, N is `max_nodes`, L is `num_layers`.
/// Arrays are memory of the context's device (with CUDA, page-locked host memory will do) unless
/// they say otherwise; the host owns them, and none is kept after the call's work is done. No output
/// overlaps an input or another output.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct spec_kv_compact_args {
    /// sizeof(spec_kv_compact_args).
    pub struct_size: u32,
    /// 0.
    pub flags: u32,
    /// B, from 0 on. With 0 nothing is read or written.
    pub num_sequences: i32,
    /// N: the most nodes of a tree, and of a path, 1 to 1024: K + 1 for decision records.
    pub max_nodes: i32,
    /// `[B]`, never NULL if B is not 0: the position of the next root, `decision_stride` elements
    /// apart: NEXT_POSITION of a decision record. With p for `position - row_count`, the root that
    /// the path begins with is at position p, and node n of its tree was run in the row of p + n.
    pub position: *const i32,
    /// `[B]`, never NULL if B is not 0: nodes of the path with its root, `decision_stride` elements
    /// apart: EMITTED of a decision record. 0: the sequence takes no part.
    pub row_count: *const i32,
    /// `[B, path_stride]`, never NULL if B is not 0: the nodes of the path, ascending from 0, the
    /// root: the path of a decision record. No more than `row_count[b]` entries of a row are looked
    /// at.
    pub path: *const i32,
    /// Elements from one sequence to the next in `position` and `row_count` alike; 0 is 1.
    pub decision_stride: i32,
    /// Elements from one sequence to the next in `path`, at least 1 if B is not 0.
    pub path_stride: i32,
    /// `[B, block_table_stride]`: the pages of each sequence, page j for positions from `j *
    /// page_size` on. Those of the rows of a tree are different ones, and in no other table of the
    /// call. NULL: sequence b has page b alone, so that `page_size` is the length of its contiguous
    /// rows; with a stride of 1, the table holds the slot of each sequence.
    pub block_table: *const i32,
    /// Elements from one sequence to the next in `block_table`, at least 1 if that is not NULL.
    pub block_table_stride: i32,
    /// Rows of a page, at least 1.
    pub page_size: i32,
    /// Pages that there are, at least 1, and at least B if `block_table` is NULL. Pages times rows
    /// are at most 2^31 - 1.
    pub num_pages: i32,
    /// One of `SPEC_KV_*`: what strides of 0 stand for, and which strides are sound.
    pub layout: i32,
    /// L: elements of `keys` and `values`, 0 to 4096. 0: nothing is moved, only listed; what follows
    /// up to `head_stride` is not looked at.
    pub num_layers: i32,
    /// Heads of a row, at least 1.
    pub num_heads: i32,
    /// Bytes of a head in a row, at least 1: any type of element, any width. Those of all heads of a
    /// row are at most 2^31 - 1.
    pub head_bytes: i64,
    /// `[L]` in host memory, never NULL, nor its elements: where the pages of keys of each layer
    /// begin, on the device.
    pub keys: *const *mut c_void,
    /// `[L]` in host memory: where the pages of values begin, laid out as those of the keys. NULL:
    /// there are only keys; a host whose values are wider than its keys makes a call for each.
    pub values: *const *mut c_void,
    /// Bytes from one page to the next; 0: pages follow each other.
    pub page_stride: i64,
    /// Bytes from one row of a page to the next; 0: rows (NHD), or those of a head (HND), follow
    /// each other.
    pub row_stride: i64,
    /// Bytes from one head to the next; 0: heads follow each other.
    pub head_stride: i64,
    /// `[B, row_list_stride]`, written: for each node of the path the row that held it, `page *
    /// page_size` and its place in the page, padded with -1 to N. NULL: not wanted.
    pub source_rows: *mut i32,
    /// `[B, row_list_stride]`, written: the row that holds it now, likewise. NULL: not wanted.
    pub destination_rows: *mut i32,
    /// Elements from one sequence to the next in both lists, at least N; 0 is N.
    pub row_list_stride: i32,
    /// 0.
    pub reserved: i32,
    /// `[B]`, written: `SPEC_KV_COMPACT_FLAG_*`; 0 where all is well. NULL: not wanted.
    pub sequence_flags: *mut i32,
}
