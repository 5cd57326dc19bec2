/*
 * A small inference engine for Llama-type models on the CPU, in C11 and POSIX.
 *
 * It stands for the host of a speculative decoder: it owns the weights, the tokenizer, the paged
 * KV cache and the threads, and it knows nothing about drafting. Its one unusual promise is what
 * speculation rests on: it is batch-invariant. The logits and features of a row are the same bits
 * whatever else is in the batch, however a sequence is cut into calls, wherever its pages lie and
 * however many threads work. Hence a text that was verified in batches of drafts is bit for bit
 * the text that one row at a time would have given.
 *
 * Functions that can fail take an `engine_error`, which may be NULL, and say what was wrong with
 * which file or argument. Nothing here prints, exits or keeps global state. A model may be shared
 * by threads; a cache and the forwards on it belong to one thread at a time.
 */
#ifndef ENGINE_H
#define ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct engine_error {
    char message[512];
} engine_error;

/* ---- Threads ---- */

typedef struct engine_threads engine_threads;

/* Starts a pool in which `count` threads work on a task, the calling one among them. */
engine_threads *engine_threads_create(int count, engine_error *error);
void engine_threads_free(engine_threads *threads);

/*
 * Calls task(argument, i) for every i in 0 .. tasks-1 and returns when all have returned.
 * `threads` is an engine_threads or NULL, which means the calling thread alone; it is void so that
 * the function can be handed to libraries that borrow the host's threads. May be called from any
 * thread and from within a task: whoever finds the pool busy does its tasks alone.
 */
void engine_parallel_for(void *threads, int32_t tasks, void (*task)(void *argument, int32_t index),
                         void *argument);

/* ---- Model ---- */

typedef struct engine_model engine_model;

enum { ENGINE_MAX_EOS = 8 };

typedef struct engine_info {
    int32_t vocabulary;   /* V: columns of the logits */
    int32_t hidden_size;  /* H: columns of a feature */
    int32_t num_layers;
    int32_t max_position; /* positions lie below this */
    int32_t bos;          /* the token that begins a text, -1 if there is none */
    int32_t eos[ENGINE_MAX_EOS];
    int32_t num_eos;
} engine_info;

/* A weight in memory of the model, row-major, F32 or BF16. */
typedef struct engine_tensor {
    const void *data;
    int32_t rows;
    int32_t columns;
    bool bfloat16;
} engine_tensor;

/*
 * Loads config.json, generation_config.json, model.safetensors or model-*.safetensors, and
 * tokenizer.json from a directory. Without tokenizer.json the model works on token ids alone.
 * `threads` (or NULL) must outlive the model.
 */
engine_model *engine_load(const char *directory, engine_threads *threads, engine_error *error);
void engine_free(engine_model *model);

const engine_info *engine_describe(const engine_model *model);
engine_tensor engine_embedding(const engine_model *model); /* [V, H] */
engine_tensor engine_head(const engine_model *model);      /* [V, H], the embedding if tied */

/* ---- Text ---- */

/*
 * Turns text (UTF-8, NUL-terminated) into token ids, exact for ASCII. Returns how many ids the
 * text has, of which the first `capacity` are written, or -1 without a tokenizer or memory.
 * `add_bos` puts the model's first token in front, if it has one.
 */
int32_t engine_encode(const engine_model *model, const char *text, bool add_bos, int32_t *ids,
                      int32_t capacity);

/*
 * Returns how many bytes a token stands for, of which the first `capacity` are written (no NUL),
 * or -1 if it is no token of the tokenizer. A token may end within a UTF-8 character.
 */
int32_t engine_decode(const engine_model *model, int32_t id, char *bytes, int32_t capacity);

/* ---- Forward ---- */

typedef struct engine_cache engine_cache;

/* A pool of `num_pages` pages that hold keys and values of `page_size` positions each. */
engine_cache *engine_cache_create(const engine_model *model, int32_t num_pages, int32_t page_size,
                                  engine_error *error);
void engine_cache_free(engine_cache *cache);

/*
 * Where keys and values lie, for whoever moves rows of them: F32, [page][keys or values][head]
 * [position in page][element] in each layer. The memory is the cache's.
 */
typedef struct engine_cache_info {
    int32_t num_layers, num_pages, page_size, num_heads;
    size_t head_bytes; /* of a head at one position */
    size_t page_bytes; /* from one page to the next */
} engine_cache_info;

engine_cache_info engine_cache_describe(const engine_cache *cache);
void *engine_cache_keys(const engine_cache *cache, int32_t layer);
void *engine_cache_values(const engine_cache *cache, int32_t layer);

/*
 * A hidden state that the host wants: the residual stream that enters decoder layer `layer`, where
 * num_layers stands for the stream that leaves the last one; or, with `final_norm`, the output of
 * the final norm, which the head reads (`layer` is not looked at then).
 */
typedef struct engine_feature {
    int32_t layer;
    bool final_norm;
    float *output; /* [R, H] */
} engine_feature;

/*
 * One step over B sequences and R rows. Sequence b has the rows row_begin[b] .. row_begin[b] +
 * row_count[b] - 1, which are the tokens of the consecutive positions from position[b] on; every
 * row belongs to exactly one sequence. A row attends to all positions of its sequence up to its
 * own, so the ones below position[b] must have been computed by earlier calls. Computing a
 * position again overwrites it: to drop rejected drafts, go back to a smaller position.
 *
 * With `parents`, the rows of a sequence are a tree: those of a chain are -1, 0, 1, ... Row i of the
 * sequence is then a token of position[b] + its depth, and attends to the positions below
 * position[b], to its ancestors and to itself, with the bits that the path alone would give as a
 * chain. Its keys and values are kept as those of position[b] + i, where a chain has its i-th row:
 * before a later call, those of the path that stays are moved to where they belong.
 */
typedef struct engine_batch {
    int32_t num_sequences;         /* B */
    int32_t num_rows;              /* R */
    const int32_t *tokens;         /* [R] */
    const int32_t *row_begin;      /* [B] */
    const int32_t *row_count;      /* [B], 0 leaves the sequence out */
    const int32_t *position;       /* [B] */
    const int32_t *parents;        /* [R]: an earlier row of the sequence, counted from its first,
                                      or -1: what comes before position[b]; NULL: chains */
    const int32_t *block_table;    /* [B, stride]: position p lies in page p / page_size */
    int32_t block_table_stride;
    const engine_feature *features;
    int32_t num_features;
    const int32_t *logit_rows;     /* [num_logit_rows]: rows that need logits; NULL: all rows */
    int32_t num_logit_rows;
    float *logits;                 /* [num_logit_rows or R, V]; NULL: none */
} engine_batch;

/*
 * Runs the model. A batch that is wrong is refused before anything is written. Two sequences of a
 * call must not write to the same page.
 */
bool engine_forward(const engine_model *model, engine_cache *cache, const engine_batch *batch,
                    engine_error *error);

#endif
