/*
 * Tests of the engine: engine_test MODEL_FOLDER [TARGET_FOLDER...]
 *
 * MODEL_FOLDER holds target/ and reference.json. Each TARGET_FOLDER holds a model and
 * golden/activations.safetensors, the hidden states and logits that another implementation found.
 * Ends with "N passed" and 0, or tells what failed and exits with 1.
 */
#include "engine.h"
#include "safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MAX_TOKENS = 512, PAGE = 16, MAX_PAGES = 128 };

static int passed, failed;

#define CHECK(condition, ...)                                  \
    do {                                                       \
        if (!(condition)) {                                    \
            printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            printf(__VA_ARGS__);                               \
            printf("\n");                                      \
            return false;                                      \
        }                                                      \
    } while (0)

static void run(const char *promise, bool kept)
{
    printf("%s: %s\n", kept ? "ok" : "FAILED", promise);
    *(kept ? &passed : &failed) += 1;
}

/* Without memory or input files there is nothing to test. */
static void *required(void *pointer, const char *what)
{
    if (!pointer) {
        printf("%s\n", what);
        exit(1);
    }
    return pointer;
}

/* What the tests share. */
typedef struct fixture {
    const char *folder;
    char target[1024];
    engine_model *model;
    const engine_info *info;
    const json_value *prompts, *prompt_tokens, *output_tokens;
} fixture;

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static int32_t read_ids(const json_value *array, int32_t *ids)
{
    int32_t count = 0;
    for (const json_value *entry = array->first; entry && count < MAX_TOKENS; entry = entry->next) {
        ids[count++] = (int32_t)entry->number;
    }
    return count;
}

static char *copy_text(const json_value *string)
{
    char *text = required(malloc(string->length + 1), "out of memory");
    memcpy(text, string->string, string->length);
    text[string->length] = '\0';
    return text;
}

/* ---- Tokenizer ---- */

static bool prompts_encode_as_recorded(const fixture *f)
{
    const json_value *expected = f->prompt_tokens->first;
    for (const json_value *prompt = f->prompts->first; prompt; prompt = prompt->next) {
        int32_t ids[MAX_TOKENS], wanted[MAX_TOKENS];
        char *text = copy_text(prompt);
        int32_t count = engine_encode(f->model, text, true, ids, MAX_TOKENS);
        int32_t wanted_count = read_ids(expected, wanted);
        bool equal = count == wanted_count && !memcmp(ids, wanted, (size_t)count * sizeof *ids);
        CHECK(equal, "%s", text);
        free(text);
        expected = expected->next;
    }
    return true;
}

static bool round_trip(const engine_model *model, const char *text)
{
    int32_t ids[4 * MAX_TOKENS], count;
    char decoded[8 * MAX_TOKENS];
    size_t length = 0;
    count = engine_encode(model, text, false, ids, 4 * MAX_TOKENS);
    CHECK(count >= 0 && count <= 4 * MAX_TOKENS, "%d ids", count);
    for (int32_t i = 0; i < count; i++) {
        int32_t room = (int32_t)(sizeof decoded - length);
        int32_t bytes = engine_decode(model, ids[i], decoded + length, room);
        CHECK(bytes > 0 && bytes <= room, "id %d has %d bytes", ids[i], bytes);
        length += (size_t)bytes;
    }
    CHECK(length == strlen(text) && !memcmp(decoded, text, length), "\"%s\"", text);
    return true;
}

static bool text_survives_encoding(const fixture *f)
{
    static const char *const texts[] = {
        "", " ", "  ", "\n", "\t\t x", "a", "it's we're I'll they've I'd I'm can't 'tis '",
        "def f(x):\n    return x ** 2  # square\n\n\n", "trailing   ", "\r\n\r\n mixed \t \v\f ends",
        "12345 007 3.14e-10 0xFF", "!!!???...;;;:::'''\"\"\"", "CamelCase snake_case SCREAMING_CASE",
        "a<|endoftext|>b<|endoftext|>", "<|endoftext|", "caf\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x90\x8D",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (!round_trip(f->model, texts[i])) return false;
    }
    uint32_t random = 1;
    for (int i = 0; i < 500; i++) {
        char text[200];
        size_t length = next_random(&random) % (sizeof text - 1);
        for (size_t j = 0; j < length; j++) {
            static const char frequent[] = "    \n\n\t'sdrel0Aa(\\";
            uint32_t draw = next_random(&random);
            text[j] = draw & 1 ? frequent[(draw >> 1) % (sizeof frequent - 1)]
                               : (char)(1 + (draw >> 1) % 127);
        }
        text[length] = '\0';
        if (!round_trip(f->model, text)) return false;
    }
    return true;
}

/* Where the words end decides the ids: each text against those of its words by themselves. */
static bool words_are_cut_as_the_expression_says(const fixture *f)
{
    static const char *const cases[][8] = {
        {"hello world", "hello", " world"},
        {"it's", "it", "'s"},
        {"we'll've", "we", "'ll", "'ve"},
        {"x='s'", "x", "='", "s", "'"},
        {" 's", " '", "s"},
        {"IT'S", "IT", "'", "S"},
        {"a1b22", "a", "1", "b", "22"},
        {"a   b", "a", "  ", " b"},
        {"a\n\n    b", "a", "\n\n   ", " b"},
        {"a\n\tb", "a", "\n", "\t", "b"},
        {"a  ", "a", "  "},
        {"f(x):\n    pass", "f", "(", "x", "):", "\n   ", " pass"},
        {"!'s", "!'", "s"},
        {"x <|endoftext|>  y", "x", " ", "<|endoftext|>", " ", " y"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int32_t whole[64], parts[64], count = engine_encode(f->model, cases[i][0], false, whole, 64);
        int32_t sum = 0;
        for (int j = 1; j < 8 && cases[i][j]; j++) {
            sum += engine_encode(f->model, cases[i][j], false, parts + sum, 64 - sum);
        }
        bool equal = count == sum && !memcmp(whole, parts, (size_t)count * sizeof *whole);
        CHECK(equal, "\"%s\"", cases[i][0]);
    }
    return true;
}

static bool encoding_respects_the_capacity(const fixture *f)
{
    int32_t ids[3] = {-7, -7, -7};
    char bytes[2] = {'?', '?'};
    int32_t all = engine_encode(f->model, "import os, sys", true, ids, 2);
    CHECK(all > 3 && ids[0] == f->info->bos && ids[1] >= 0 && ids[2] == -7, "%d ids", all);
    CHECK(engine_decode(f->model, ids[1], bytes, 1) > 1 && bytes[0] == 'i' && bytes[1] == '?',
          "%.2s", bytes);
    CHECK(engine_decode(f->model, -1, bytes, 1) == -1, "a negative id");
    CHECK(engine_decode(f->model, f->info->vocabulary, bytes, 1) == -1, "an id too large");
    return true;
}

/* ---- Forward ---- */

static const char *complain(const engine_error *error)
{
    return error->message[0] ? error->message : "no message";
}

/* One sequence by itself: rows of consecutive positions, pages in order. */
static bool forward_alone(const engine_model *model, engine_cache *cache, const int32_t *tokens,
                          int32_t position, int32_t count, const engine_feature *features,
                          int32_t num_features, float *logits)
{
    int32_t zero = 0, table[MAX_PAGES];
    for (int32_t i = 0; i < MAX_PAGES; i++) table[i] = i;
    engine_error error = {""};
    engine_batch batch = {
        .num_sequences = 1, .num_rows = count, .tokens = tokens, .row_begin = &zero,
        .row_count = &count, .position = &position, .block_table = table,
        .block_table_stride = MAX_PAGES, .features = features, .num_features = num_features,
        .logits = logits,
    };
    CHECK(engine_forward(model, cache, &batch, &error), "%s", complain(&error));
    return true;
}

static int32_t largest(const float *logits, int32_t size)
{
    int32_t best = 0;
    for (int32_t i = 1; i < size; i++) {
        if (logits[i] > logits[best]) best = i;
    }
    return best;
}

static engine_cache *fresh_cache(const engine_model *model)
{
    return required(engine_cache_create(model, MAX_PAGES, PAGE, NULL), "no cache");
}

static bool continues_as_recorded(const fixture *f, engine_cache *cache, const int32_t *prompt,
                                  int32_t length, const int32_t *output, int32_t output_length)
{
    int32_t vocabulary = f->info->vocabulary;
    float *logits = required(malloc((size_t)length * (size_t)vocabulary * 4), "out of memory");
    bool alike = forward_alone(f->model, cache, prompt, 0, length, NULL, 0, logits);
    const float *row = logits + (size_t)(length - 1) * (size_t)vocabulary;
    for (int32_t i = 0; alike && i < output_length; i++) {
        int32_t token = largest(row, vocabulary);
        if (token != output[i]) {
            printf("token %d: expected %d, found %d, whose logit is %g larger\n", i, output[i],
                   token, (double)(row[token] - row[output[i]]));
        }
        alike = token == output[i] &&
                forward_alone(f->model, cache, &token, length + i, 1, NULL, 0, logits);
        row = logits;
    }
    free(logits);
    return alike;
}

static bool greedy_texts_are_the_recorded_ones(const fixture *f)
{
    engine_cache *cache = fresh_cache(f->model);
    const json_value *output = f->output_tokens->first;
    for (const json_value *prompt = f->prompt_tokens->first; prompt; prompt = prompt->next) {
        int32_t ids[MAX_TOKENS], outputs[MAX_TOKENS];
        int32_t length = read_ids(prompt, ids), count = read_ids(output, outputs);
        CHECK(count > 100, "%d recorded tokens", count);
        if (!continues_as_recorded(f, cache, ids, length, outputs, count)) return false;
        output = output->next;
    }
    engine_cache_free(cache);
    return true;
}

/* Logits, and every hidden state that can be asked for, of sequences cut into random calls. */
enum { SEQUENCES = 5, LENGTH = 90 };

typedef struct record {
    int32_t columns; /* of a row: the logits, then all features */
    float *rows;     /* [SEQUENCES, LENGTH, columns] */
} record;

static record new_record(const engine_info *info)
{
    record r = {.columns = info->vocabulary + (info->num_layers + 2) * info->hidden_size};
    r.rows = required(calloc((size_t)r.columns * SEQUENCES * LENGTH, sizeof(float)), "out of memory");
    return r;
}

typedef struct call {
    int32_t tokens[SEQUENCES * LENGTH], logit_rows[SEQUENCES * LENGTH];
    int32_t begin[SEQUENCES], count[SEQUENCES], position[SEQUENCES];
    int32_t table[SEQUENCES * MAX_PAGES];
} call;

/* Runs one call and files each row under its sequence and position. */
static bool run_call(const engine_model *model, engine_cache *cache, const call *c, int32_t rows,
                     int32_t stride, record *r)
{
    const engine_info *info = engine_describe(model);
    int32_t states = info->num_layers + 2, hidden = info->hidden_size;
    size_t logit_floats = (size_t)rows * (size_t)info->vocabulary;
    size_t state_floats = (size_t)rows * (size_t)hidden;
    float *output = required(malloc((logit_floats + state_floats * (size_t)states) * 4), "out of memory");
    engine_feature features[64];
    for (int32_t i = 0; i < states; i++) {
        features[i] = (engine_feature){i, i == states - 1, output + logit_floats + state_floats * (size_t)i};
    }
    engine_batch batch = {
        .num_sequences = SEQUENCES, .num_rows = rows, .tokens = c->tokens, .row_begin = c->begin,
        .row_count = c->count, .position = c->position, .block_table = c->table,
        .block_table_stride = stride, .features = features, .num_features = states,
        .logit_rows = c->logit_rows, .num_logit_rows = rows, .logits = output,
    };
    engine_error error = {""};
    CHECK(engine_forward(model, cache, &batch, &error), "%s", complain(&error));
    for (int32_t b = 0; b < SEQUENCES; b++) {
        for (int32_t i = 0; i < c->count[b]; i++) {
            int32_t row = c->begin[b] + i, slot = 0;
            while (c->logit_rows[slot] != row) slot++;
            float *to = r->rows + ((size_t)b * LENGTH + (size_t)(c->position[b] + i)) * (size_t)r->columns;
            memcpy(to, output + (size_t)slot * (size_t)info->vocabulary, (size_t)info->vocabulary * 4);
            to += info->vocabulary;
            for (int32_t j = 0; j < states; j++, to += hidden) {
                memcpy(to, features[j].output + (size_t)row * (size_t)hidden, (size_t)hidden * 4);
            }
        }
    }
    free(output);
    return true;
}

static void shuffle(int32_t *values, int32_t count, uint32_t *random)
{
    for (int32_t i = count - 1; i > 0; i--) {
        int32_t j = (int32_t)(next_random(random) % (uint32_t)(i + 1)), kept = values[i];
        values[i] = values[j];
        values[j] = kept;
    }
}

/* All sequences in steps of random sizes, some of them wrong drafts that are dropped again. */
static bool run_batched(const engine_model *model, const int32_t *texts, int32_t page_size,
                        uint32_t seed, record *r)
{
    static call c;
    int32_t stride = (LENGTH - 1) / page_size + 1, pages = SEQUENCES * stride, done[SEQUENCES] = {0};
    engine_cache *cache = required(engine_cache_create(model, pages, page_size, NULL), "no cache");
    uint32_t random = seed;
    for (int32_t i = 0; i < pages; i++) c.table[i] = i;
    shuffle(c.table, pages, &random);
    for (int32_t left = SEQUENCES; left > 0;) {
        int32_t rows = 0, order[SEQUENCES];
        for (int32_t b = 0; b < SEQUENCES; b++) order[b] = b;
        shuffle(order, SEQUENCES, &random);
        for (int32_t i = 0; i < SEQUENCES; i++) {
            int32_t b = order[i], count = (int32_t)(next_random(&random) % 12);
            if (count > LENGTH - done[b]) count = LENGTH - done[b];
            int32_t right = count - (int32_t)(next_random(&random) % 4);
            if (right < 0) right = 0;
            c.begin[b] = rows;
            c.count[b] = count;
            c.position[b] = done[b];
            for (int32_t j = 0; j < count; j++, rows++) {
                int32_t wrong = (int32_t)(next_random(&random) % 256);
                c.tokens[rows] = j < right ? texts[b * LENGTH + done[b] + j] : wrong;
                c.logit_rows[rows] = rows;
            }
            done[b] += right;
        }
        shuffle(c.logit_rows, rows, &random);
        if (rows > 0 && !run_call(model, cache, &c, rows, stride, r)) return false;
        left = 0;
        for (int32_t b = 0; b < SEQUENCES; b++) left += done[b] < LENGTH;
    }
    engine_cache_free(cache);
    return true;
}

static bool run_one_by_one(const engine_model *model, const int32_t *texts, record *r)
{
    static call c;
    engine_cache *cache = fresh_cache(model);
    for (int32_t i = 0; i < MAX_PAGES; i++) c.table[i] = i;
    for (int32_t b = 0; b < SEQUENCES; b++) {
        for (int32_t i = 0; i < LENGTH; i++) {
            memset(c.count, 0, sizeof c.count);
            c.count[b] = 1;
            c.begin[b] = 0;
            c.position[b] = i;
            c.tokens[0] = texts[b * LENGTH + i];
            c.logit_rows[0] = 0;
            for (int32_t j = 0; j < 16; j++) c.table[b * 16 + j] = j;
            if (!run_call(model, cache, &c, 1, 16, r)) return false;
        }
    }
    engine_cache_free(cache);
    return true;
}

static bool rows_do_not_depend_on_their_company(const fixture *f)
{
    int32_t texts[SEQUENCES * LENGTH];
    uint32_t random = 3;
    for (int32_t i = 0; i < SEQUENCES * LENGTH; i++) {
        texts[i] = (int32_t)(next_random(&random) % (uint32_t)f->info->vocabulary);
    }
    record alone = new_record(f->info), batched = new_record(f->info);
    size_t bytes = (size_t)alone.columns * SEQUENCES * LENGTH * sizeof(float);
    if (!run_one_by_one(f->model, texts, &alone)) return false;
    static const int32_t page_sizes[] = {16, 5, 1, 64};
    for (int i = 0; i < 8; i++) {
        engine_threads *threads = required(engine_threads_create(i % 2 ? 3 : 1, NULL), "no threads");
        engine_model *model = required(engine_load(f->target, threads, NULL), "no model");
        memset(batched.rows, 0, bytes);
        if (!run_batched(model, texts, page_sizes[i / 2], 10 + (uint32_t)i, &batched)) return false;
        CHECK(!memcmp(alone.rows, batched.rows, bytes), "run %d", i);
        engine_free(model);
        engine_threads_free(threads);
    }
    free(alone.rows);
    free(batched.rows);
    return true;
}

enum { TREES = 2, NODES = 24, TREE_PAGES = MAX_PAGES / TREES, MAX_STATES = 64 };

/* Texts, each with a tree behind it, whose nodes are rows of one call. */
typedef struct forest {
    int32_t prefix, texts[TREES * LENGTH], tokens[TREES * NODES], parents[TREES * NODES];
    int32_t num_features;
    float *outputs; /* of all rows: logits, then all features, one after the other */
    engine_feature features[MAX_STATES];
} forest;

static forest new_forest(const engine_info *info, int32_t prefix, uint32_t seed)
{
    forest f = {.prefix = prefix, .num_features = info->num_layers + 2};
    size_t rows = TREES * NODES, hidden = rows * (size_t)info->hidden_size;
    size_t logits = rows * (size_t)info->vocabulary;
    f.outputs = required(malloc((logits + hidden * (size_t)f.num_features) * 4), "out of memory");
    for (int32_t i = 0; i < f.num_features; i++) {
        float *output = f.outputs + logits + hidden * (size_t)i;
        f.features[i] = (engine_feature){i, i == f.num_features - 1, output};
    }
    uint32_t vocabulary = (uint32_t)info->vocabulary;
    for (int32_t i = 0; i < TREES * LENGTH; i++) f.texts[i] = (int32_t)(next_random(&seed) % vocabulary);
    for (int32_t i = 0; i < TREES * NODES; i++) {
        int32_t node = i % NODES, span = node < 4 ? node : 4; /* near parents, so that paths are long */
        f.tokens[i] = (int32_t)(next_random(&seed) % vocabulary);
        f.parents[i] = node == 0 ? -1 : node - 1 - (int32_t)(next_random(&seed) % (uint32_t)span);
    }
    return f;
}

/* The texts, then all trees in one call. */
static bool run_forest(const engine_model *model, engine_cache *cache, const forest *f)
{
    int32_t table[MAX_PAGES], begin[TREES], count[TREES], zero[TREES] = {0}, prefix[TREES];
    for (int32_t i = 0; i < MAX_PAGES; i++) table[i] = i;
    for (int32_t b = 0; b < TREES; b++) {
        begin[b] = b * LENGTH;
        count[b] = LENGTH;
        prefix[b] = f->prefix;
    }
    engine_error error = {""};
    engine_batch batch = {.num_sequences = TREES, .num_rows = TREES * LENGTH, .tokens = f->texts,
                          .row_begin = begin, .row_count = count, .position = zero,
                          .block_table = table, .block_table_stride = TREE_PAGES};
    CHECK(engine_forward(model, cache, &batch, &error), "%s", complain(&error));
    for (int32_t b = 0; b < TREES; b++) {
        begin[b] = b * NODES;
        count[b] = NODES;
    }
    batch.num_rows = TREES * NODES;
    batch.tokens = f->tokens;
    batch.parents = f->parents;
    batch.position = prefix;
    batch.features = f->features;
    batch.num_features = f->num_features;
    batch.logits = f->outputs;
    CHECK(engine_forward(model, cache, &batch, &error), "%s", complain(&error));
    return true;
}

/* The nodes from the root to node n of tree b, and how many they are. */
static int32_t path_to(const forest *f, int32_t b, int32_t n, int32_t *nodes)
{
    int32_t length = 0;
    for (int32_t node = n; node >= 0; node = f->parents[b * NODES + node]) length++;
    for (int32_t node = n, i = length; node >= 0; node = f->parents[b * NODES + node]) nodes[--i] = node;
    return length;
}

/* Runs the path to node n as a chain behind the text and compares its last row with the node's. */
static bool path_agrees(const engine_model *model, engine_cache *cache, const forest *f,
                        const forest *chain, int32_t b, int32_t n)
{
    const engine_info *info = engine_describe(model);
    int32_t nodes[NODES], tokens[NODES], length = path_to(f, b, n, nodes);
    for (int32_t i = 0; i < length; i++) tokens[i] = f->tokens[b * NODES + nodes[i]];
    if (!forward_alone(model, cache, tokens, f->prefix, length, chain->features,
                       chain->num_features, chain->outputs)) {
        return false;
    }
    size_t row = (size_t)(b * NODES + n), last = (size_t)length - 1;
    size_t vocabulary = (size_t)info->vocabulary, hidden = (size_t)info->hidden_size;
    bool equal = !memcmp(f->outputs + row * vocabulary, chain->outputs + last * vocabulary, vocabulary * 4);
    for (int32_t i = 0; i < f->num_features; i++) {
        equal &= !memcmp(f->features[i].output + row * hidden, chain->features[i].output + last * hidden,
                         hidden * 4);
    }
    CHECK(equal, "prefix %d, tree %d, node %d at depth %d", f->prefix, b, n, length - 1);
    return true;
}

/* Moves the path to the last node of the first tree to where the rows of a chain would be. */
static int32_t keep_path(engine_cache *cache, const forest *f)
{
    engine_cache_info info = engine_cache_describe(cache);
    size_t page_size = (size_t)info.page_size;
    int32_t nodes[NODES], length = path_to(f, 0, NODES - 1, nodes);
    for (int32_t i = 0; i < length; i++) {
        size_t from = (size_t)(f->prefix + nodes[i]), to = (size_t)(f->prefix + i);
        for (int32_t part = 0; part < 2 * info.num_layers; part++) {
            char *base = part % 2 ? engine_cache_values(cache, part / 2) : engine_cache_keys(cache, part / 2);
            for (size_t head = 0; head < (size_t)info.num_heads; head++) {
                char *rows = base + head * page_size * info.head_bytes;
                memmove(rows + to / page_size * info.page_bytes + to % page_size * info.head_bytes,
                        rows + from / page_size * info.page_bytes + from % page_size * info.head_bytes,
                        info.head_bytes);
            }
        }
    }
    return length;
}

static bool rows_of_trees_are_those_of_their_paths(const fixture *f)
{
    static const int32_t prefixes[] = {0, 1, 50, 63, 64};
    size_t vocabulary = (size_t)f->info->vocabulary;
    float *next = required(malloc(2 * vocabulary * 4), "out of memory");
    for (uint32_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        engine_cache *trees = fresh_cache(f->model), *chains = fresh_cache(f->model);
        forest tree = new_forest(f->info, prefixes[i], 20 + i), chain = new_forest(f->info, 0, 1);
        if (!run_forest(f->model, trees, &tree)) return false;
        for (int32_t b = TREES - 1; b >= 0; b--) {
            const int32_t *text = tree.texts + b * LENGTH;
            if (!forward_alone(f->model, chains, text, 0, LENGTH, NULL, 0, NULL)) return false;
            for (int32_t n = 0; n < NODES; n++) {
                if (!path_agrees(f->model, chains, &tree, &chain, b, n)) return false;
            }
        }
        /* Both caches now end with the path to the last node of the first tree. */
        int32_t position = prefixes[i] + keep_path(trees, &tree), token = 7;
        bool ran = forward_alone(f->model, trees, &token, position, 1, NULL, 0, next) &&
                   forward_alone(f->model, chains, &token, position, 1, NULL, 0, next + vocabulary);
        CHECK(ran && !memcmp(next, next + vocabulary, vocabulary * 4), "after the path of prefix %d",
              prefixes[i]);
        engine_cache_free(trees);
        engine_cache_free(chains);
        free(tree.outputs);
        free(chain.outputs);
    }
    free(next);
    return true;
}

static bool refused(const engine_model *model, engine_cache *cache, engine_batch batch,
                    const char *expected)
{
    engine_error error = {""};
    CHECK(!engine_forward(model, cache, &batch, &error), "expected \"%s\"", expected);
    CHECK(strstr(error.message, expected), "expected \"%s\", found \"%s\"", expected, error.message);
    return true;
}

static bool wrong_batches_are_refused(const fixture *f)
{
    int32_t tokens[] = {1, 2, 3}, begin[] = {0, 2}, count[] = {2, 1}, position[] = {0, 0};
    int32_t table[] = {0, 1}, vocabulary = f->info->vocabulary, last = f->info->max_position;
    engine_cache *cache = fresh_cache(f->model);
    engine_batch good = {.num_sequences = 2, .num_rows = 3, .tokens = tokens, .row_begin = begin,
                         .row_count = count, .position = position, .block_table = table,
                         .block_table_stride = 1};
    CHECK(engine_forward(f->model, cache, &good, NULL), "the batch that the others are made of");
    engine_batch bad = good;
    float unused;
    bad.tokens = (int32_t[]){1, vocabulary, 3};
    bool kept = refused(f->model, cache, bad, "row 1: expected a token");
    bad.tokens = (int32_t[]){1, 2, -1};
    kept &= refused(f->model, cache, bad, "row 2: expected a token");
    bad = good;
    bad.row_begin = (int32_t[]){0, 1};
    kept &= refused(f->model, cache, bad, "row 1 belongs to two");
    bad.row_begin = (int32_t[]){0, 3};
    kept &= refused(f->model, cache, bad, "sequence 1: expected rows");
    bad.row_begin = begin;
    bad.row_count = (int32_t[]){1, 1};
    kept &= refused(f->model, cache, bad, "row 1 belongs to no");
    bad = good;
    bad.position = (int32_t[]){0, last};
    kept &= refused(f->model, cache, bad, "sequence 1: expected positions");
    bad.position = (int32_t[]){-1, 0};
    kept &= refused(f->model, cache, bad, "sequence 0: expected positions");
    bad.position = (int32_t[]){0, PAGE};
    kept &= refused(f->model, cache, bad, "sequence 1: expected 2 pages");
    bad = good;
    bad.parents = (int32_t[]){-1, 1, -1};
    kept &= refused(f->model, cache, bad, "row 1: expected a parent from -1 to 0, found 1");
    bad.parents = (int32_t[]){-1, 0, -2};
    kept &= refused(f->model, cache, bad, "row 2: expected a parent from -1 to -1, found -2");
    bad = good;
    bad.block_table = (int32_t[]){0, MAX_PAGES};
    kept &= refused(f->model, cache, bad, "sequence 1: expected pages below");
    bad = good;
    bad.logit_rows = (int32_t[]){3};
    bad.num_logit_rows = 1;
    bad.logits = &unused;
    kept &= refused(f->model, cache, bad, "logit_rows: expected rows below 3, found 3");
    bad = good;
    bad.features = &(engine_feature){f->info->num_layers + 1, false, &unused};
    bad.num_features = 1;
    kept &= refused(f->model, cache, bad, "feature 0: expected a layer");
    CHECK(!engine_cache_create(f->model, INT32_MAX, INT32_MAX, NULL), "a cache of that size");
    engine_cache_free(cache);
    return kept;
}

/* ---- Threads ---- */

enum { TASKS = 100 };

static void count_task(void *argument, int32_t index)
{
    ((int *)argument)[index]++;
}

typedef struct nested {
    engine_threads *threads;
    int counts[TASKS][TASKS];
} nested;

static void nested_task(void *argument, int32_t index)
{
    nested *n = argument;
    engine_parallel_for(n->threads, TASKS, count_task, n->counts[index]);
}

static bool every_task_runs_once(void)
{
    static nested n;
    n.threads = required(engine_threads_create(3, NULL), "no threads");
    for (int round = 0; round < 200; round++) engine_parallel_for(n.threads, TASKS, nested_task, &n);
    /* Long enough for the workers to park. */
    nanosleep(&(struct timespec){0, 20000000}, NULL);
    engine_parallel_for(n.threads, TASKS, nested_task, &n);
    engine_threads_free(n.threads);
    for (int i = 0; i < TASKS * TASKS; i++) {
        CHECK(n.counts[i / TASKS][i % TASKS] == 201, "task %d ran %d times", i, n.counts[i / TASKS][i % TASKS]);
    }
    CHECK(!engine_threads_create(0, NULL), "a pool of no threads");
    return true;
}

/* ---- Recorded activations ---- */

static bool compare_rows(const safetensors_file *golden, const char *name, const float *found,
                         size_t count, int *compared)
{
    const safetensors_tensor *tensor = safetensors_find(golden, name);
    if (!tensor) return true;
    CHECK(!strcmp(tensor->dtype, "F32") && tensor->size == count * 4, "%s has another size", name);
    const float *expected = tensor->data;
    for (size_t i = 0; i < count; i++) {
        double difference = fabs((double)found[i] - (double)expected[i]);
        CHECK(difference <= 1e-4 + 1e-4 * fabs((double)expected[i]),
              "%s[%zu]: expected %g, found %g", name, i, (double)expected[i], (double)found[i]);
    }
    ++*compared;
    return true;
}

/* One recorded text, computed in two calls. */
static bool compare_text(const engine_model *model, const safetensors_file *golden, int text,
                         int *compared)
{
    const engine_info *info = engine_describe(model);
    char name[64];
    snprintf(name, sizeof name, "p%d.tokens", text);
    const safetensors_tensor *tokens = safetensors_find(golden, name);
    if (!tokens) return true;
    int32_t ids[MAX_TOKENS], count = (int32_t)tokens->shape[0], states = info->num_layers + 2;
    CHECK(count <= MAX_TOKENS && !strcmp(tokens->dtype, "I64"), "%d tokens", count);
    for (int32_t i = 0; i < count; i++) ids[i] = (int32_t)((const int64_t *)tokens->data)[i];
    size_t hidden = (size_t)info->hidden_size, vocabulary = (size_t)info->vocabulary;
    float *logits = required(malloc((size_t)count * vocabulary * 4), "out of memory");
    float *rows = required(malloc((size_t)count * hidden * (size_t)states * 4), "out of memory");
    engine_cache *cache = fresh_cache(model);
    for (int32_t begin = 0; begin < count;) {
        int32_t length = begin == 0 ? count / 2 : count - begin;
        engine_feature features[64];
        for (int32_t i = 0; i < states; i++) {
            float *output = rows + ((size_t)i * (size_t)count + (size_t)begin) * hidden;
            features[i] = (engine_feature){i, i == states - 1, output};
        }
        if (!forward_alone(model, cache, ids + begin, begin, length, features, states,
                           logits + (size_t)begin * vocabulary)) {
            return false;
        }
        begin += length;
    }
    bool alike = true;
    for (int32_t i = 0; i < states; i++) {
        snprintf(name, sizeof name, i == states - 1 ? "p%d.final_norm" : "p%d.hidden.%d", text, i);
        alike &= compare_rows(golden, name, rows + (size_t)i * (size_t)count * hidden,
                              (size_t)count * hidden, compared);
    }
    snprintf(name, sizeof name, "p%d.logits", text);
    alike &= compare_rows(golden, name, logits, (size_t)count * vocabulary, compared);
    engine_cache_free(cache);
    free(logits);
    free(rows);
    return alike;
}

static bool activations_are_the_recorded_ones(const char *folder)
{
    char path[1024];
    engine_error error = {""};
    safetensors_file golden;
    snprintf(path, sizeof path, "%s/golden/activations.safetensors", folder);
    CHECK(safetensors_load(&golden, path, &error), "%s", complain(&error));
    engine_model *model = engine_load(folder, NULL, &error);
    CHECK(model, "%s", complain(&error));
    int32_t id;
    CHECK(engine_encode(model, "a", false, &id, 1) == -1, "it has no tokenizer");
    int compared = 0;
    for (int text = 0; text < 16; text++) {
        if (!compare_text(model, &golden, text, &compared)) return false;
    }
    CHECK(compared >= 10, "only %d tensors", compared);
    engine_free(model);
    safetensors_free(&golden);
    return true;
}

/* ---- Broken files ---- */

typedef struct bytes {
    unsigned char *data;
    size_t length;
} bytes;

static bytes read_bytes(const char *folder, const char *name)
{
    char path[2048];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = required(fopen(path, "rb"), path);
    fseek(file, 0, SEEK_END);
    bytes b = {NULL, (size_t)ftell(file)};
    rewind(file);
    b.data = required(malloc(b.length + 1), "out of memory");
    if (fread(b.data, 1, b.length, file) != b.length) required(NULL, path);
    fclose(file);
    return b;
}

static void write_bytes(const char *folder, const char *name, const void *data, size_t length)
{
    char path[2048];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = required(fopen(path, "wb"), path);
    if (length > 0 && fwrite(data, 1, length, file) != length) required(NULL, path);
    fclose(file);
}

/* Loads the folder: it must either be refused with a message or give a model that can be freed. */
static bool answers(const char *folder, bool must_refuse, const char *what)
{
    engine_error error = {""};
    engine_model *model = engine_load(folder, NULL, &error);
    CHECK(!(model && must_refuse), "%s was loaded", what);
    CHECK(model || error.message[0], "%s was refused without a message", what);
    engine_free(model);
    return true;
}

/* Truncations must be refused; changed bytes must not crash. */
static bool survives_damage(const char *folder, const char *name, size_t head)
{
    bytes whole = read_bytes(folder, name);
    unsigned char *changed = required(malloc(whole.length), "out of memory");
    uint32_t random = 5;
    bool kept = true;
    for (int i = 0; kept && i < 60; i++) {
        size_t length = i < 12 ? (size_t)i : (size_t)next_random(&random) % (i % 2 ? head : whole.length);
        write_bytes(folder, name, whole.data, length);
        kept = answers(folder, true, "a truncated file");
    }
    for (int i = 0; kept && i < 200; i++) {
        memcpy(changed, whole.data, whole.length);
        for (uint32_t j = next_random(&random) % 4 + 1; j > 0; j--) {
            changed[next_random(&random) % head] = (unsigned char)next_random(&random);
        }
        write_bytes(folder, name, changed, whole.length);
        kept = answers(folder, false, "a changed file");
    }
    write_bytes(folder, name, whole.data, whole.length);
    free(changed);
    free(whole.data);
    return kept;
}

/* A file whose text has one part replaced by another must be refused with these words. */
static bool refuses_edit(const char *folder, const char *name, const char *from, const char *to,
                         const char *words)
{
    bytes whole = read_bytes(folder, name);
    unsigned char *at = whole.data;
    size_t from_length = strlen(from), to_length = strlen(to);
    while (at + from_length <= whole.data + whole.length && memcmp(at, from, from_length)) at++;
    size_t before = (size_t)(at - whole.data);
    CHECK(before + from_length <= whole.length, "%s lacks %s", name, from);
    char *edited = required(malloc(whole.length + to_length), "out of memory");
    memcpy(edited, whole.data, before);
    memcpy(edited + before, to, to_length);
    size_t rest = whole.length - before - from_length;
    memcpy(edited + before + to_length, at + from_length, rest);
    write_bytes(folder, name, edited, before + to_length + rest);
    engine_error error = {""};
    engine_model *model = engine_load(folder, NULL, &error);
    write_bytes(folder, name, whole.data, whole.length);
    free(whole.data);
    free(edited);
    CHECK(!model, "%s with %s was loaded", name, to);
    CHECK(strstr(error.message, words), "expected \"%s\", found \"%s\"", words, error.message);
    return true;
}

static bool refuses_lies(const char *folder)
{
    static const struct {
        const char *name, *from, *to, *words;
    } lies[] = {
        {"config.json", "\"llama\"", "\"gpt2\"", "model_type: expected llama"},
        {"config.json", "\"hidden_size\": 192", "\"hidden_size\": 1e300", "hidden_size: expected"},
        {"config.json", "\"hidden_size\": 192", "\"hidden_size\": 184", "expected the shape"},
        {"config.json", "\"hidden_size\": 192", "\"hidden_size\": \"x\"", "hidden_size: expected"},
        {"config.json", "\"num_hidden_layers\": 4", "\"num_hidden_layers\": 5", "expected this tensor"},
        {"config.json", "\"num_hidden_layers\": 4", "\"num_hidden_layers\": 3", "no place in the model"},
        {"config.json", "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4", "a multiple of num_key"},
        {"config.json", "\"default\"", "\"yarn\"", "rope_type: expected"},
        {"config.json", "\"vocab_size\": 2048", "\"vocab_size\": 0", "vocab_size: expected"},
        {"config.json", "{", "[", "byte"},
        {"model.safetensors", "\"BF16\"", "\"BF17\"", "unknown dtype"},
        {"model.safetensors", "[2048,192]", "[2049,192]", "shape and data_offsets differ"},
        {"model.safetensors", "[0,786432]", "[2,786432]", "shape and data_offsets differ"},
        {"model.safetensors", "[786432,786816]", "[786048,786432]", "in no tensor or in two"},
        {"model.safetensors", "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.down_proj", "the same name"},
        {"tokenizer.json", "\"!\": 1,", "\"!\": 2,", "two tokens have the id"},
        {"tokenizer.json", "\"!\": 1,", "\"!\": -1,", "expected ids"},
        {"tokenizer.json", "\"!\": 1,", "\"!\": 1e9,", "expected ids"},
        {"tokenizer.json", "\"!\": 1,", "\"!!!!!\": 1,", "no token for byte 33"},
        {"tokenizer.json", "\"BPE\"", "\"WordPiece\"", "expected a plain BPE"},
        {"tokenizer.json", "\"Python\"", "\"Python\\ud800\"", "surrogate"},
    };
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        if (!refuses_edit(folder, lies[i].name, lies[i].from, lies[i].to, lies[i].words)) return false;
    }
    return true;
}

static bool refuses_deep_nesting(const char *folder)
{
    enum { DEPTH = 100000 };
    bytes config = read_bytes(folder, "config.json");
    char *deep = required(malloc(DEPTH), "out of memory");
    memset(deep, '[', DEPTH);
    write_bytes(folder, "config.json", deep, DEPTH);
    bool kept = answers(folder, true, "a deep config");
    write_bytes(folder, "config.json", config.data, config.length);
    free(config.data);
    free(deep);
    return kept;
}

static bool broken_files_are_refused(const fixture *f)
{
    static const char *const names[] = {"config.json", "model.safetensors", "tokenizer.json"};
    char folder[] = "/tmp/engine_test.XXXXXX", path[1024];
    required(mkdtemp(folder), "no folder for broken files");
    for (int i = 0; i < 3; i++) {
        bytes whole = read_bytes(f->target, names[i]);
        write_bytes(folder, names[i], whole.data, whole.length);
        free(whole.data);
    }
    engine_error error = {""};
    engine_model *model = engine_load(folder, NULL, &error);
    bool kept = model != NULL;
    engine_free(model);
    kept = kept && refuses_lies(folder) && refuses_deep_nesting(folder) &&
           survives_damage(folder, "config.json", 700) &&
           survives_damage(folder, "model.safetensors", 3000) &&
           survives_damage(folder, "tokenizer.json", 2000);
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        remove(path);
    }
    kept = kept && answers(folder, true, "an empty folder");
    rmdir(folder);
    return kept;
}

/* ---- Stored forms ---- */

/* Half precision, rounded towards zero; exact for what it returns. */
static uint16_t to_half(float value)
{
    int exponent;
    double fraction = frexp(fabs((double)value), &exponent); /* in [0.5, 1), or 0 */
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    if (fraction == 0 || exponent < -24) return sign;
    if (exponent < -13) return (uint16_t)(sign | (uint16_t)ldexp(fraction, exponent + 24));
    return (uint16_t)(sign | (exponent + 14) << 10 | ((uint16_t)ldexp(fraction, 11) & 1023));
}

static float of_half(uint16_t half)
{
    int exponent = half >> 10 & 31, fraction = half & 1023;
    double magnitude = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return (float)(half & 0x8000 ? -magnitude : magnitude);
}

/* Element i of a BF16 tensor as `dtype` stores it. With `rounded`, its value in half precision. */
static size_t put_element(const safetensors_tensor *tensor, size_t i, const char *dtype,
                          bool rounded, unsigned char *out)
{
    uint16_t bfloat = ((const uint16_t *)tensor->data)[i];
    uint32_t bits = (uint32_t)bfloat << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    uint16_t half = to_half(value);
    if (rounded) value = of_half(half);
    if (!strcmp(dtype, "F32")) {
        memcpy(out, &value, 4);
        return 4;
    }
    memcpy(out, !strcmp(dtype, "F16") ? &half : &bfloat, 2);
    return 2;
}

/* Writes tensors first .. end - 1 of a BF16 file into another one. */
static void write_tensors(const safetensors_file *file, size_t first, size_t end, const char *dtype,
                          bool rounded, const char *folder, const char *name)
{
    enum { HEADER = 16000 };
    size_t capacity = HEADER, at = HEADER, used;
    for (size_t i = first; i < end; i++) capacity += file->tensors[i].size * 2;
    unsigned char *out = required(malloc(capacity), "out of memory");
    memset(out, ' ', HEADER);
    out[8] = '{';
    for (int i = 0; i < 8; i++) out[i] = (unsigned char)((uint64_t)(HEADER - 8) >> (8 * i));
    used = 9;
    for (size_t i = first; i < end; i++) {
        const safetensors_tensor *t = &file->tensors[i];
        size_t begin = at - HEADER;
        for (size_t j = 0; j < t->size / 2; j++) at += put_element(t, j, dtype, rounded, out + at);
        char shape[64], entry[512];
        snprintf(shape, sizeof shape, t->dimensions == 2 ? "%d,%d" : "%d", (int)t->shape[0], (int)t->shape[1]);
        int length = snprintf(entry, sizeof entry,
                              "%s\"%.*s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                              i > first ? "," : "", (int)t->name_length, t->name, dtype, shape, begin,
                              at - HEADER);
        memcpy(out + used, entry, (size_t)length);
        used += (size_t)length;
    }
    out[used] = '}';
    write_bytes(folder, name, out, at);
    free(out);
}

static bool logits_of_folder(const char *folder, float *logits)
{
    static const int32_t tokens[] = {0, 516, 980, 63, 430, 8, 446, 286, 260};
    engine_error error = {""};
    engine_model *model = engine_load(folder, NULL, &error);
    CHECK(model, "%s", complain(&error));
    engine_cache *cache = fresh_cache(model);
    bool done = forward_alone(model, cache, tokens, 0, 9, NULL, 0, logits);
    engine_cache_free(cache);
    engine_free(model);
    return done;
}

static void remove_file(const char *folder, const char *name)
{
    char path[2048];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    remove(path);
}

/* The same values, whatever dtype and however many files hold them, must give the same bits. */
static bool stored_forms_agree(const fixture *f)
{
    char folder[] = "/tmp/engine_test.XXXXXX", path[2048];
    required(mkdtemp(folder), "no folder for stored forms");
    bytes config = read_bytes(f->target, "config.json");
    write_bytes(folder, "config.json", config.data, config.length);
    free(config.data);
    safetensors_file file;
    snprintf(path, sizeof path, "%s/model.safetensors", f->target);
    CHECK(safetensors_load(&file, path, NULL), "%s", path);
    size_t count = 9 * (size_t)f->info->vocabulary, all = file.num_tensors;
    float *logits = required(malloc(3 * count * sizeof *logits), "out of memory");
    float *other = logits + count, *wide = other + count;
    CHECK(logits_of_folder(f->target, logits), "the model as it is");

    write_tensors(&file, 0, all, "F32", false, folder, "model.safetensors");
    CHECK(logits_of_folder(folder, other) && !memcmp(logits, other, count * 4), "F32");
    remove_file(folder, "model.safetensors");
    write_tensors(&file, 0, all / 2, "BF16", false, folder, "model-00001-of-00002.safetensors");
    CHECK(answers(folder, true, "half of the files"), "half of the files");
    write_tensors(&file, all / 2, all, "F32", false, folder, "model-00002-of-00002.safetensors");
    CHECK(logits_of_folder(folder, other) && !memcmp(logits, other, count * 4), "two files");
    write_tensors(&file, all / 2 - 1, all, "BF16", false, folder, "model-00002-of-00002.safetensors");
    CHECK(answers(folder, true, "a tensor in two files"), "a tensor in two files");
    remove_file(folder, "model-00001-of-00002.safetensors");
    remove_file(folder, "model-00002-of-00002.safetensors");
    write_tensors(&file, 0, all, "F16", true, folder, "model.safetensors");
    CHECK(logits_of_folder(folder, other), "F16");
    write_tensors(&file, 0, all, "F32", true, folder, "model.safetensors");
    CHECK(logits_of_folder(folder, wide) && !memcmp(wide, other, count * 4), "F16 against F32");
    remove_file(folder, "model.safetensors");
    remove_file(folder, "config.json");
    rmdir(folder);
    safetensors_free(&file);
    free(logits);
    return true;
}

/* ---- Speed, for information ---- */

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void report_speed(const fixture *f)
{
    for (int count = 1; count <= 2; count++) {
        engine_threads *threads = required(engine_threads_create(count, NULL), "no threads");
        engine_model *model = required(engine_load(f->target, threads, NULL), "no model");
        engine_cache *cache = fresh_cache(model);
        float *logits = required(malloc(128 * (size_t)f->info->vocabulary * 4), "out of memory");
        int32_t tokens[128];
        for (int i = 0; i < 128; i++) tokens[i] = i;
        forward_alone(model, cache, tokens, 0, 128, NULL, 0, logits);
        for (int rows = 1; rows <= 6; rows += 5) {
            double best = 1;
            for (int i = 0; i < 300; i++) {
                double begin = seconds();
                forward_alone(model, cache, tokens, 128, rows, NULL, 0, logits);
                double taken = seconds() - begin;
                if (taken < best) best = taken;
            }
            printf("%d rows at position 128, %d threads: %.3f ms\n", rows, count, best * 1e3);
        }
        free(logits);
        engine_cache_free(cache);
        engine_free(model);
        engine_threads_free(threads);
    }
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        printf("usage: %s MODEL_FOLDER [TARGET_FOLDER...]\n", argv[0]);
        return 2;
    }
    fixture f = {.folder = argv[1]};
    engine_error error = {""};
    char path[1024];
    json_document reference;
    snprintf(f.target, sizeof f.target, "%s/target", argv[1]);
    snprintf(path, sizeof path, "%s/reference.json", argv[1]);
    f.model = engine_load(f.target, NULL, &error);
    if (!f.model || !json_load(&reference, path, &error)) required(NULL, error.message);
    f.info = engine_describe(f.model);
    f.prompts = required((void *)json_member(reference.root, "prompts"), "reference.json lacks prompts");
    f.prompt_tokens = required((void *)json_member(reference.root, "prompt_tokens"), "reference.json lacks prompt_tokens");
    f.output_tokens = required((void *)json_member(reference.root, "output_tokens"), "reference.json lacks output_tokens");

    run("prompts encode as recorded", prompts_encode_as_recorded(&f));
    run("text survives encoding", text_survives_encoding(&f));
    run("words are cut as the expression says", words_are_cut_as_the_expression_says(&f));
    run("encoding respects the capacity", encoding_respects_the_capacity(&f));
    run("every task runs once", every_task_runs_once());
    run("greedy texts are the recorded ones", greedy_texts_are_the_recorded_ones(&f));
    run("rows do not depend on batch, calls, pages or threads", rows_do_not_depend_on_their_company(&f));
    run("rows of trees are those of their paths", rows_of_trees_are_those_of_their_paths(&f));
    run("wrong batches are refused", wrong_batches_are_refused(&f));
    run("stored forms give the same bits", stored_forms_agree(&f));
    run("broken files are refused", broken_files_are_refused(&f));
    for (int i = 2; i < argc; i++) {
        printf("%s\n", argv[i]);
        run("activations are the recorded ones", activations_are_the_recorded_ones(argv[i]));
    }
    report_speed(&f);
    json_free(&reference);
    engine_free(f.model);
    printf("%d passed%s\n", passed, failed ? ", some FAILED" : "");
    return failed ? 1 : 0;
}
