/*
 * The forward pass, batch-invariant by construction: every number of a row is computed by one
 * expression whose order of operations depends on the model and the row's position alone. Dot
 * products sum in ENGINE_LANES lanes, attention in blocks of positions, along its path in a tree;
 * tiles of rows, pages and threads only decide when and where that happens.
 */
#include "model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifdef __FAST_MATH__
#error "the promise of equal bits needs strict floating point: compile without -ffast-math"
#endif

struct engine_cache {
    int32_t num_pages, page_size;
    int32_t num_layers, num_kv_heads, head_dim;
    size_t page_floats; /* keys, then values of a page in one layer */
    float *pages;       /* [layer][page][keys or values][head][position in page][head_dim] */
    float *workspace;   /* what one forward needs, kept and grown */
    int32_t *rows;
    int32_t capacity; /* rows that the workspace is for */
};

/* One forward. Everything with R rows lies in the cache's workspace. */
typedef struct step {
    const engine_model *model;
    engine_cache *cache;
    const engine_batch *batch;
    const layer *layer;
    int32_t layer_index;
    int32_t num_rows;   /* R */
    int32_t *sequence;  /* [R] */
    int32_t *position;  /* [R] */
    int32_t *slot;      /* [R]: the position whose place in the pages a row has */
    float *stream;      /* [R, H] the residual stream */
    float *normed;      /* [R, H] */
    float *query;       /* [R, heads * head_dim] */
    float *attended;    /* likewise */
    float *gate, *up;   /* [R, I] */
    float *rotation;    /* [R, head_dim]: cosines, then sines */
    float *head_output; /* [R, (heads + 2 kv heads) * head_dim], before it goes to query and pages */
    int32_t logit_rows;
} step;

/* ---- Products ---- */

typedef float lanes __attribute__((vector_size(ENGINE_LANES * sizeof(float))));
typedef uint32_t lane_bits __attribute__((vector_size(ENGINE_LANES * sizeof(float))));
typedef uint16_t half_bits __attribute__((vector_size(ENGINE_LANES * sizeof(uint16_t))));

enum { MAX_TILE = 8, CHUNK = 32 };

#define INLINE static inline __attribute__((always_inline))

INLINE lanes load(const float *from)
{
    lanes result;
    memcpy(&result, from, sizeof result);
    return result;
}

/* Eight weights from index `at` on; a bfloat16 is the upper half of a float. */
INLINE lanes load_weights(const void *row, size_t at, bool bfloat16)
{
    if (!bfloat16) return load((const float *)row + at);
    half_bits half;
    memcpy(&half, (const uint16_t *)row + at, sizeof half);
    return (lanes)(__builtin_convertvector(half, lane_bits) << 16);
}

/* The sum of all lanes, halves first. */
INLINE float fold(lanes sum)
{
    float values[ENGINE_LANES];
    memcpy(values, &sum, sizeof values);
    for (int half = ENGINE_LANES / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; lane++) values[lane] += values[lane + half];
    }
    return values[0];
}

/*
 * One row of weights times `rows` rows of x. `rows` and `bfloat16` are constants where this is
 * called, so that the sums stay in registers; each sum is the same for every number of rows.
 */
INLINE void multiply_tile(const void *weights, bool bfloat16, const float *x, int32_t columns,
                          int rows, float *sums)
{
    lanes sum[MAX_TILE];
    for (int row = 0; row < rows; row++) sum[row] = (lanes){0};
    for (int32_t at = 0; at < columns; at += ENGINE_LANES) {
        lanes weight = load_weights(weights, (size_t)at, bfloat16);
        for (int row = 0; row < rows; row++) {
            sum[row] += weight * load(x + (size_t)row * (size_t)columns + at);
        }
    }
    for (int row = 0; row < rows; row++) sums[row] = fold(sum[row]);
}

INLINE void multiply_rows(const void *weights, bool bfloat16, const float *x, int32_t columns,
                          int rows, float *sums)
{
    switch (rows) {
    case 1: multiply_tile(weights, bfloat16, x, columns, 1, sums); break;
    case 2: multiply_tile(weights, bfloat16, x, columns, 2, sums); break;
    case 3: multiply_tile(weights, bfloat16, x, columns, 3, sums); break;
    case 4: multiply_tile(weights, bfloat16, x, columns, 4, sums); break;
    case 5: multiply_tile(weights, bfloat16, x, columns, 5, sums); break;
    case 6: multiply_tile(weights, bfloat16, x, columns, 6, sums); break;
    case 7: multiply_tile(weights, bfloat16, x, columns, 7, sums); break;
    default: multiply_tile(weights, bfloat16, x, columns, 8, sums); break;
    }
}

/* Columns of an output, which may be added to what is there. */
typedef struct destination {
    float *data;
    size_t stride;
    bool add;
} destination;

/* Outputs first .. first + count - 1 of a linear layer for all rows of x. */
static void multiply(const engine_tensor *weight, const float *bias, int32_t first, int32_t count,
                     const float *x, int32_t num_rows, destination to)
{
    int32_t columns = weight->columns;
    size_t row_bytes = (size_t)columns * (weight->bfloat16 ? 2 : 4);
    float sums[MAX_TILE];
    for (int32_t begin = 0; begin < num_rows; begin += MAX_TILE) {
        int rows = num_rows - begin < MAX_TILE ? num_rows - begin : MAX_TILE;
        const float *tile = x + (size_t)begin * (size_t)columns;
        for (int32_t output = first; output < first + count; output++) {
            const char *weights = (const char *)weight->data + (size_t)output * row_bytes;
            if (weight->bfloat16) {
                multiply_rows(weights, true, tile, columns, rows, sums);
            } else {
                multiply_rows(weights, false, tile, columns, rows, sums);
            }
            for (int row = 0; row < rows; row++) {
                float *result = to.data + (size_t)(begin + row) * to.stride + output;
                float sum = bias ? sums[row] + bias[output] : sums[row];
                *result = to.add ? *result + sum : sum;
            }
        }
    }
}

static void normalize(const float *x, const float *weight, int32_t size, float epsilon, float *out)
{
    lanes squares = {0};
    for (int32_t i = 0; i < size; i += ENGINE_LANES) {
        lanes values = load(x + i);
        squares += values * values;
    }
    float scale = 1.0f / sqrtf(fold(squares) / (float)size + epsilon);
    for (int32_t i = 0; i < size; i++) out[i] = x[i] * scale * weight[i];
}

static void normalize_stream(const step *s, const float *weight)
{
    size_t size = (size_t)s->model->info.hidden_size;
    for (size_t row = 0; row < (size_t)s->num_rows; row++) {
        normalize(s->stream + row * size, weight, (int32_t)size, s->model->norm_epsilon,
                  s->normed + row * size);
    }
}

/* ---- Attention ---- */

/* Keys (part 0) or values (part 1) of a head in the slot of a position of a sequence. */
static float *cached(const step *s, int32_t part, int32_t head, int32_t sequence, int32_t position)
{
    const engine_cache *cache = s->cache;
    const int32_t *table = s->batch->block_table + (ptrdiff_t)sequence * s->batch->block_table_stride;
    size_t page = (size_t)table[position / cache->page_size];
    size_t head_index = (size_t)part * (size_t)cache->num_kv_heads + (size_t)head;
    size_t slot = head_index * (size_t)cache->page_size + (size_t)(position % cache->page_size);
    return cache->pages +
           ((size_t)s->layer_index * (size_t)cache->num_pages + page) * cache->page_floats +
           slot * (size_t)cache->head_dim;
}

/* Rotates the first half of a head against the second. */
static void rotate(float *head, const float *rotation, int32_t head_dim)
{
    int32_t half = head_dim / 2;
    for (int32_t i = 0; i < half; i++) {
        float cosine = rotation[i], sine = rotation[half + i];
        float first = head[i], second = head[half + i];
        head[i] = first * cosine - second * sine;
        head[half + i] = second * cosine + first * sine;
    }
}

/* Task: one head of the queries, keys or values of all rows; keys and values go to their pages. */
static void project_head(void *argument, int32_t index)
{
    const step *s = argument;
    const engine_model *model = s->model;
    int32_t size = model->head_dim, heads = model->num_heads, kv_heads = model->num_kv_heads;
    bool is_query = index < heads, is_key = !is_query && index < heads + kv_heads;
    const linear *projection = is_query ? &s->layer->query : is_key ? &s->layer->key : &s->layer->value;
    const float *norm = is_query ? s->layer->query_norm : is_key ? s->layer->key_norm : NULL;
    int32_t head = is_query ? index : (index - heads) % kv_heads;
    size_t stride = (size_t)(heads + 2 * kv_heads) * (size_t)size;
    float *output = s->head_output + (size_t)index * (size_t)size;
    destination to = {output - (size_t)head * (size_t)size, stride, false};
    multiply(&projection->weight, projection->bias, head * size, size, s->normed, s->num_rows, to);
    for (int32_t row = 0; row < s->num_rows; row++, output += stride) {
        if (norm) normalize(output, norm, size, model->norm_epsilon, output);
        if (is_query || is_key) rotate(output, s->rotation + (size_t)row * (size_t)size, size);
        float *place = is_query
                           ? s->query + ((size_t)row * (size_t)heads + (size_t)head) * (size_t)size
                           : cached(s, is_key ? 0 : 1, head, s->sequence[row], s->slot[row]);
        memcpy(place, output, (size_t)size * sizeof *place);
    }
}

INLINE float dot(const float *left, const float *right, int32_t size)
{
    lanes sum = {0};
    for (int32_t i = 0; i < size; i += ENGINE_LANES) sum += load(left + i) * load(right + i);
    return fold(sum);
}

/* The running state of a softmax over the positions seen so far. */
typedef struct softmax {
    float largest;
    float sum;
} softmax;

enum { BLOCK = 64 };

/* The slots of the positions that a row attends to: its own and those of its ancestors in a tree. */
static void find_slots(const step *s, int32_t row, int32_t begin, int32_t count, int32_t *slots)
{
    for (int32_t i = 0; i < count; i++) slots[i] = begin + i;
    if (!s->batch->parents) return;
    const int32_t *parents = s->batch->parents + s->batch->row_begin[s->sequence[row]];
    int32_t node = row - s->batch->row_begin[s->sequence[row]];
    int32_t root = s->slot[row] - node;
    for (int32_t i = s->position[row] - begin; node >= 0 && i >= 0; i--, node = parents[node]) {
        if (i < count) slots[i] = root + node;
    }
}

/* Adds the next positions, in the given slots, to the weighted sum of values in `out`. */
static void attend_block(const step *s, int32_t head, int32_t sequence, const int32_t *slots,
                         int32_t count, const float *query, softmax *state, float *restrict out)
{
    int32_t size = s->model->head_dim;
    float scale = 1.0f / sqrtf((float)size), scores[BLOCK], largest = state->largest;
    for (int32_t i = 0; i < count; i++) {
        scores[i] = dot(query, cached(s, 0, head, sequence, slots[i]), size) * scale;
        if (scores[i] > largest) largest = scores[i];
    }
    float rescale = expf(state->largest - largest);
    state->sum *= rescale;
    for (int32_t d = 0; d < size; d++) out[d] *= rescale;
    for (int32_t i = 0; i < count; i++) {
        float weight = expf(scores[i] - largest);
        const float *value = cached(s, 1, head, sequence, slots[i]);
        state->sum += weight;
        for (int32_t d = 0; d < size; d++) out[d] += weight * value[d];
    }
    state->largest = largest;
}

/* Task: one head of one row over all positions up to its own, in blocks of fixed positions. */
static void attend(void *argument, int32_t index)
{
    const step *s = argument;
    int32_t heads = s->model->num_heads, size = s->model->head_dim;
    int32_t row = index / heads, kv_head = index % heads / (heads / s->model->num_kv_heads);
    const float *query = s->query + (size_t)index * (size_t)size;
    float *out = s->attended + (size_t)index * (size_t)size;
    softmax state = {-INFINITY, 0};
    memset(out, 0, (size_t)size * sizeof *out);
    int32_t end = s->position[row] + 1, slots[BLOCK];
    for (int32_t begin = 0; begin < end; begin += BLOCK) {
        int32_t count = end - begin < BLOCK ? end - begin : BLOCK;
        find_slots(s, row, begin, count, slots);
        attend_block(s, kv_head, s->sequence[row], slots, count, query, &state, out);
    }
    for (int32_t d = 0; d < size; d++) out[d] /= state.sum;
}

/* ---- The layers ---- */

static int32_t chunks(int32_t outputs)
{
    return (outputs - 1) / CHUNK + 1;
}

static int32_t chunk_size(int32_t index, int32_t outputs)
{
    int32_t left = outputs - index * CHUNK;
    return left < CHUNK ? left : CHUNK;
}

/* A chunk of a layer's outputs, added to the stream. */
static void add_to_stream(const step *s, const linear *layer, const float *input, int32_t index)
{
    int32_t hidden = s->model->info.hidden_size;
    destination to = {s->stream, (size_t)hidden, true};
    multiply(&layer->weight, layer->bias, index * CHUNK, chunk_size(index, hidden), input,
             s->num_rows, to);
}

/* Task: a chunk of the attention's output, onto the stream. */
static void project_output(void *argument, int32_t index)
{
    const step *s = argument;
    add_to_stream(s, &s->layer->output, s->attended, index);
}

/* Task: a chunk of silu(gate) * up. */
static void project_gate(void *argument, int32_t index)
{
    const step *s = argument;
    int32_t inner = s->model->intermediate_size;
    int32_t first = index * CHUNK, count = chunk_size(index, inner);
    destination gate = {s->gate, (size_t)inner, false}, up = {s->up, (size_t)inner, false};
    multiply(&s->layer->gate.weight, s->layer->gate.bias, first, count, s->normed, s->num_rows, gate);
    multiply(&s->layer->up.weight, s->layer->up.bias, first, count, s->normed, s->num_rows, up);
    for (int32_t row = 0; row < s->num_rows; row++) {
        size_t at = (size_t)row * (size_t)inner + (size_t)first;
        for (size_t i = at; i < at + (size_t)count; i++) {
            s->gate[i] = s->gate[i] / (1.0f + expf(-s->gate[i])) * s->up[i];
        }
    }
}

/* Task: a chunk of the feed-forward's output, onto the stream. */
static void project_down(void *argument, int32_t index)
{
    const step *s = argument;
    add_to_stream(s, &s->layer->down, s->gate, index);
}

/* Task: a chunk of the logits. */
static void project_logits(void *argument, int32_t index)
{
    const step *s = argument;
    int32_t vocabulary = s->model->info.vocabulary;
    destination to = {s->batch->logits, (size_t)vocabulary, false};
    multiply(&s->model->head, NULL, index * CHUNK, chunk_size(index, vocabulary), s->normed,
             s->logit_rows, to);
}

static void run_layer(step *s)
{
    const engine_model *model = s->model;
    engine_threads *threads = model->threads;
    int32_t heads = model->num_heads + 2 * model->num_kv_heads;
    normalize_stream(s, s->layer->attention_norm);
    engine_parallel_for(threads, heads, project_head, s);
    engine_parallel_for(threads, s->num_rows * model->num_heads, attend, s);
    engine_parallel_for(threads, chunks(model->info.hidden_size), project_output, s);
    normalize_stream(s, s->layer->feed_norm);
    engine_parallel_for(threads, chunks(model->intermediate_size), project_gate, s);
    engine_parallel_for(threads, chunks(model->info.hidden_size), project_down, s);
}

static void embed(const step *s)
{
    const engine_tensor *table = &s->model->embedding;
    int32_t hidden = table->columns;
    for (int32_t row = 0; row < s->num_rows; row++) {
        size_t at = (size_t)s->batch->tokens[row] * (size_t)hidden;
        float *out = s->stream + (size_t)row * (size_t)hidden;
        for (int32_t i = 0; i < hidden; i += ENGINE_LANES) {
            lanes values = load_weights(table->data, at + (size_t)i, table->bfloat16);
            memcpy(out + i, &values, sizeof values);
        }
    }
}

static void compute_rotations(const step *s)
{
    int32_t half = s->model->head_dim / 2;
    for (int32_t row = 0; row < s->num_rows; row++) {
        float *rotation = s->rotation + (size_t)row * (size_t)s->model->head_dim;
        for (int32_t i = 0; i < half; i++) {
            float angle = (float)s->position[row] * s->model->rope_frequency[i];
            rotation[i] = cosf(angle);
            rotation[half + i] = sinf(angle);
        }
    }
}

static void copy_features(const step *s)
{
    size_t bytes = (size_t)s->num_rows * (size_t)s->model->info.hidden_size * sizeof(float);
    for (int32_t i = 0; i < s->batch->num_features; i++) {
        const engine_feature *feature = &s->batch->features[i];
        if (feature->final_norm || feature->layer != s->layer_index) continue;
        memcpy(feature->output, s->stream, bytes);
    }
}

static void finish(step *s)
{
    const engine_batch *batch = s->batch;
    size_t hidden = (size_t)s->model->info.hidden_size;
    normalize_stream(s, s->model->final_norm);
    for (int32_t i = 0; i < batch->num_features; i++) {
        const engine_feature *feature = &batch->features[i];
        if (!feature->final_norm) continue;
        memcpy(feature->output, s->normed, (size_t)s->num_rows * hidden * sizeof(float));
    }
    if (!batch->logits) return;
    s->logit_rows = batch->logit_rows ? batch->num_logit_rows : s->num_rows;
    if (batch->logit_rows) {
        /* The head reads consecutive rows; the stream is free by now. */
        for (int32_t i = 0; i < s->logit_rows; i++) {
            memcpy(s->stream + (size_t)i * hidden, s->normed + (size_t)batch->logit_rows[i] * hidden,
                   hidden * sizeof(float));
        }
        s->normed = s->stream;
    }
    engine_parallel_for(s->model->threads, chunks(s->model->info.vocabulary), project_logits, s);
}

/* ---- The call ---- */

/* Hands out the next `count` floats; with NULL it only counts. */
static float *carve(float *base, size_t *used, size_t count)
{
    float *result = base ? base + *used : NULL;
    *used += (count + 15) / 16 * 16;
    return result;
}

static size_t lay_out(step *s, float *base, size_t rows)
{
    const engine_model *model = s->model;
    size_t hidden = (size_t)model->info.hidden_size, head_dim = (size_t)model->head_dim;
    size_t inner = (size_t)model->intermediate_size, query = (size_t)model->num_heads * head_dim;
    size_t used = 0;
    s->stream = carve(base, &used, rows * hidden);
    s->normed = carve(base, &used, rows * hidden);
    s->query = carve(base, &used, rows * query);
    s->attended = carve(base, &used, rows * query);
    s->gate = carve(base, &used, rows * inner);
    s->up = carve(base, &used, rows * inner);
    s->rotation = carve(base, &used, rows * head_dim);
    s->head_output = carve(base, &used, rows * (query + 2 * (size_t)model->num_kv_heads * head_dim));
    return used;
}

static bool reserve(step *s, engine_error *error)
{
    engine_cache *cache = s->cache;
    size_t rows = (size_t)s->num_rows;
    if (s->num_rows > cache->capacity) {
        float *workspace = malloc(lay_out(s, NULL, rows) * sizeof *workspace);
        int32_t *indices = malloc(3 * rows * sizeof *indices);
        if (!workspace || !indices) {
            free(workspace);
            free(indices);
            return engine_fail(error, "forward: out of memory for %d rows", s->num_rows);
        }
        free(cache->workspace);
        free(cache->rows);
        cache->workspace = workspace;
        cache->rows = indices;
        cache->capacity = s->num_rows;
    }
    lay_out(s, cache->workspace, rows);
    s->sequence = cache->rows;
    s->position = cache->rows + rows;
    s->slot = cache->rows + 2 * rows;
    return true;
}

/* Notes to whom row i of sequence b belongs, and where it stands. */
static bool place_row(const step *s, int32_t b, int32_t i, engine_error *error)
{
    int32_t begin = s->batch->row_begin[b], first = s->batch->position[b], row = begin + i;
    int32_t parent = s->batch->parents ? s->batch->parents[row] : i - 1;
    if (s->sequence[row] >= 0) {
        return engine_fail(error, "forward: row %d belongs to two sequences", row);
    }
    if (parent < -1 || parent >= i) {
        return engine_fail(error, "forward: row %d: expected a parent from -1 to %d, found %d", row,
                           i - 1, parent);
    }
    s->sequence[row] = b;
    s->slot[row] = first + i;
    s->position[row] = parent < 0 ? first : s->position[begin + parent] + 1;
    if (s->position[row] < s->model->info.max_position) return true;
    return engine_fail(error, "forward: sequence %d: expected positions below %d, found %d", b,
                       s->model->info.max_position, s->position[row]);
}

/* Checks sequence b and places its rows. */
static bool place_sequence(const step *s, int32_t b, engine_error *error)
{
    const engine_batch *batch = s->batch;
    int32_t begin = batch->row_begin[b], count = batch->row_count[b], position = batch->position[b];
    if (count == 0) return true;
    if (begin < 0 || count < 0 || begin > s->num_rows - count) {
        return engine_fail(error, "forward: sequence %d: expected rows within %d, found %d from %d on",
                           b, s->num_rows, count, begin);
    }
    int32_t last = s->model->info.max_position;
    if (position < 0 || position >= last || position > INT32_MAX - count) {
        return engine_fail(error, "forward: sequence %d: expected positions below %d, found %d from %d on",
                           b, last, count, position);
    }
    int32_t blocks = (position + count - 1) / s->cache->page_size + 1;
    if (blocks > batch->block_table_stride) {
        return engine_fail(error, "forward: sequence %d: expected %d pages, found %d", b, blocks,
                           batch->block_table_stride);
    }
    const int32_t *table = batch->block_table + (ptrdiff_t)b * batch->block_table_stride;
    for (int32_t i = 0; i < blocks; i++) {
        if (table[i] >= 0 && table[i] < s->cache->num_pages) continue;
        return engine_fail(error, "forward: sequence %d: expected pages below %d, found %d", b,
                           s->cache->num_pages, table[i]);
    }
    for (int32_t i = 0; i < count; i++) {
        if (!place_row(s, b, i, error)) return false;
    }
    return true;
}

static bool check_rows(const step *s, engine_error *error)
{
    const engine_batch *batch = s->batch;
    int32_t vocabulary = s->model->info.vocabulary;
    for (int32_t row = 0; row < s->num_rows; row++) s->sequence[row] = -1;
    for (int32_t b = 0; b < batch->num_sequences; b++) {
        if (!place_sequence(s, b, error)) return false;
    }
    for (int32_t row = 0; row < s->num_rows; row++) {
        if (s->sequence[row] < 0) {
            return engine_fail(error, "forward: row %d belongs to no sequence", row);
        }
        if (batch->tokens[row] < 0 || batch->tokens[row] >= vocabulary) {
            return engine_fail(error, "forward: row %d: expected a token below %d, found %d", row,
                               vocabulary, batch->tokens[row]);
        }
    }
    return true;
}

static bool check_outputs(const step *s, engine_error *error)
{
    const engine_batch *batch = s->batch;
    for (int32_t i = 0; i < batch->num_features; i++) {
        const engine_feature *feature = &batch->features[i];
        bool known = feature->layer >= 0 && feature->layer <= s->model->info.num_layers;
        if (!feature->output || (!known && !feature->final_norm)) {
            return engine_fail(error, "forward: feature %d: expected a layer from 0 to %d and an output",
                               i, s->model->info.num_layers);
        }
    }
    if (!batch->logit_rows) return true;
    if (batch->num_logit_rows < 0 || batch->num_logit_rows > s->num_rows) {
        return engine_fail(error, "forward: expected at most %d rows with logits, found %d",
                           s->num_rows, batch->num_logit_rows);
    }
    for (int32_t i = 0; i < batch->num_logit_rows; i++) {
        int32_t row = batch->logit_rows[i];
        if (row >= 0 && row < s->num_rows) continue;
        return engine_fail(error, "forward: logit_rows: expected rows below %d, found %d",
                           s->num_rows, row);
    }
    return true;
}

bool engine_forward(const engine_model *model, engine_cache *cache, const engine_batch *batch,
                    engine_error *error)
{
    step s = {.model = model, .cache = cache, .batch = batch, .num_rows = batch->num_rows};
    if (cache->num_layers != model->info.num_layers || cache->head_dim != model->head_dim ||
        cache->num_kv_heads != model->num_kv_heads) {
        return engine_fail(error, "forward: the cache was made for another model");
    }
    if (s.num_rows < 0 || s.num_rows > INT32_MAX / model->num_heads || batch->num_sequences < 0) {
        return engine_fail(error, "forward: %d rows are too many", s.num_rows);
    }
    if (s.num_rows == 0) return true;
    if (!reserve(&s, error) || !check_rows(&s, error) || !check_outputs(&s, error)) return false;
    embed(&s);
    compute_rotations(&s);
    for (; s.layer_index < model->info.num_layers; s.layer_index++) {
        s.layer = &model->layers[s.layer_index];
        copy_features(&s);
        run_layer(&s);
    }
    copy_features(&s);
    finish(&s);
    return true;
}

engine_cache *engine_cache_create(const engine_model *model, int32_t num_pages, int32_t page_size,
                                  engine_error *error)
{
    if (num_pages < 1 || page_size < 1) {
        engine_fail(error, "cache: expected pages of positions, found %d of %d", num_pages, page_size);
        return NULL;
    }
    size_t position = 2 * (size_t)model->num_kv_heads * (size_t)model->head_dim, floats;
    bool too_large = __builtin_mul_overflow(position, (size_t)page_size, &position) ||
                     __builtin_mul_overflow(position, (size_t)num_pages, &floats) ||
                     __builtin_mul_overflow(floats, (size_t)model->info.num_layers, &floats);
    engine_cache *cache = too_large ? NULL : calloc(1, sizeof *cache);
    float *pages = cache ? calloc(floats, sizeof *pages) : NULL;
    if (!pages) {
        free(cache);
        engine_fail(error, "cache: out of memory for %d pages of %d positions", num_pages, page_size);
        return NULL;
    }
    *cache = (engine_cache){num_pages, page_size, model->info.num_layers, model->num_kv_heads,
                            model->head_dim, position, pages, NULL, NULL, 0};
    return cache;
}

void engine_cache_free(engine_cache *cache)
{
    if (!cache) return;
    free(cache->pages);
    free(cache->workspace);
    free(cache->rows);
    free(cache);
}

engine_cache_info engine_cache_describe(const engine_cache *cache)
{
    return (engine_cache_info){cache->num_layers, cache->num_pages, cache->page_size,
                               cache->num_kv_heads, (size_t)cache->head_dim * sizeof(float),
                               cache->page_floats * sizeof(float)};
}

void *engine_cache_keys(const engine_cache *cache, int32_t layer)
{
    return cache->pages + (size_t)layer * (size_t)cache->num_pages * cache->page_floats;
}

void *engine_cache_values(const engine_cache *cache, int32_t layer)
{
    return (float *)engine_cache_keys(cache, layer) + cache->page_floats / 2;
}
