/* Loading a model: its config, its weights and its tokenizer. */
#include "model.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_CAPACITY = 4096, NAME_CAPACITY = 128, MAX_FILES = 999 };

static bool join(char *path, const char *directory, const char *name, engine_error *error)
{
    int length = snprintf(path, PATH_CAPACITY, "%s/%s", directory, name);
    return (length > 0 && length < PATH_CAPACITY) || engine_fail(error, "the path is too long");
}

/* ---- Config ---- */

static bool read_integer(const json_value *config, const char *key, int64_t fallback, int64_t most,
                         int32_t *result, const char *path, engine_error *error)
{
    const json_value *value = json_member(config, key);
    int64_t integer = fallback;
    if ((!json_is_null(value) && !json_integer(value, 1, most, &integer)) || integer < 1) {
        return engine_fail(error, "%s: %s: expected an integer from 1 to %lld", path, key,
                           (long long)most);
    }
    *result = (int32_t)integer;
    return true;
}

static double read_number(const json_value *object, const char *key, double fallback)
{
    const json_value *value = json_member(object, key);
    return value && value->type == JSON_NUMBER ? value->number : fallback;
}

static bool is_false(const json_value *value)
{
    return value && value->type == JSON_BOOLEAN && value->number == 0;
}

/* Architectures that this forward computes, and what it must not meet in them. */
static bool check_architecture(const json_value *config, const char *path, engine_error *error)
{
    static const char *const types[] = {"llama", "mistral", "qwen2", "qwen3"};
    const json_value *type = json_member(config, "model_type");
    bool known = false;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) known |= json_is(type, types[i]);
    if (!known) {
        bool named = type && type->type == JSON_STRING && type->length < 100;
        return engine_fail(error, "%s: model_type: expected llama, mistral, qwen2 or qwen3, found %.*s",
                           path, named ? (int)type->length : 7, named ? type->string : "nothing");
    }
    const json_value *activation = json_member(config, "hidden_act");
    if (activation && !json_is(activation, "silu")) {
        return engine_fail(error, "%s: hidden_act: expected silu", path);
    }
    bool sliding = !json_is_null(json_member(config, "sliding_window")) &&
                   !is_false(json_member(config, "use_sliding_window"));
    const json_value *types_of_layers = json_member(config, "layer_types");
    for (const json_value *entry = types_of_layers ? types_of_layers->first : NULL; entry;
         entry = entry->next) {
        sliding |= !json_is(entry, "full_attention");
    }
    return !sliding || engine_fail(error, "%s: sliding windows are not supported", path);
}

static bool read_sizes(engine_model *model, const json_value *config, const char *path,
                       engine_error *error)
{
    engine_info *info = &model->info;
    const int64_t most = 1 << 24; /* keeps products of two sizes within 64 bits */
    if (!read_integer(config, "vocab_size", 0, most, &info->vocabulary, path, error) ||
        !read_integer(config, "hidden_size", 0, most, &info->hidden_size, path, error) ||
        !read_integer(config, "num_hidden_layers", 0, 10000, &info->num_layers, path, error) ||
        !read_integer(config, "max_position_embeddings", 2048, most, &info->max_position, path, error) ||
        !read_integer(config, "intermediate_size", 0, most, &model->intermediate_size, path, error) ||
        !read_integer(config, "num_attention_heads", 0, 10000, &model->num_heads, path, error) ||
        !read_integer(config, "num_key_value_heads", model->num_heads, 10000, &model->num_kv_heads, path, error) ||
        !read_integer(config, "head_dim", info->hidden_size / model->num_heads, 1024, &model->head_dim, path, error)) {
        return false;
    }
    if (info->hidden_size % ENGINE_LANES || model->head_dim % ENGINE_LANES ||
        model->intermediate_size % ENGINE_LANES) {
        return engine_fail(error, "%s: hidden_size, head_dim and intermediate_size: expected multiples of %d",
                           path, ENGINE_LANES);
    }
    if (model->num_heads % model->num_kv_heads != 0) {
        return engine_fail(error, "%s: num_attention_heads: expected a multiple of num_key_value_heads",
                           path);
    }
    model->norm_epsilon = (float)read_number(config, "rms_norm_eps", 1e-6);
    return true;
}

/* Llama 3 keeps short wavelengths, stretches long ones and interpolates between them. */
static double llama3_frequency(const json_value *rope, double frequency)
{
    double factor = read_number(rope, "factor", 8);
    double low = read_number(rope, "low_freq_factor", 1);
    double high = read_number(rope, "high_freq_factor", 4);
    double context = read_number(rope, "original_max_position_embeddings", 8192);
    double turns = context * frequency / (2 * acos(-1.0));
    if (turns < low) return frequency / factor;
    if (turns > high) return frequency;
    double smooth = (turns - low) / (high - low);
    return (1 - smooth) * frequency / factor + smooth * frequency;
}

static bool read_rope(engine_model *model, const json_value *config, const char *path,
                      engine_error *error)
{
    const json_value *rope = json_member(config, "rope_parameters");
    if (json_is_null(rope)) rope = json_member(config, "rope_scaling");
    const json_value *type = json_member(rope, "rope_type");
    if (!type) type = json_member(rope, "type");
    bool llama3 = json_is(type, "llama3"), linear = json_is(type, "linear");
    if (type && !llama3 && !linear && !json_is(type, "default")) {
        return engine_fail(error, "%s: rope_type: expected default, linear or llama3", path);
    }
    if (read_number(config, "partial_rotary_factor", 1) != 1 ||
        read_number(rope, "partial_rotary_factor", 1) != 1) {
        return engine_fail(error, "%s: partial_rotary_factor: expected 1", path);
    }
    double theta = read_number(rope, "rope_theta", read_number(config, "rope_theta", 10000));
    int32_t half = model->head_dim / 2;
    model->rope_frequency = malloc((size_t)half * sizeof *model->rope_frequency);
    if (!model->rope_frequency) return engine_fail(error, "%s: out of memory", path);
    for (int32_t i = 0; i < half; i++) {
        double frequency = pow(theta, -(double)i / half);
        if (linear) frequency /= read_number(rope, "factor", 1);
        if (llama3) frequency = llama3_frequency(rope, frequency);
        if (!isfinite(frequency)) return engine_fail(error, "%s: rope_theta is out of range", path);
        model->rope_frequency[i] = (float)frequency;
    }
    return true;
}

static bool read_special_tokens(engine_info *info, const json_value *config, const char *path,
                                engine_error *error)
{
    int64_t id;
    const json_value *bos = json_member(config, "bos_token_id");
    if (!json_is_null(bos)) {
        if (!json_integer(bos, 0, info->vocabulary - 1, &id)) {
            return engine_fail(error, "%s: bos_token_id: expected a token", path);
        }
        info->bos = (int32_t)id;
    }
    const json_value *eos = json_member(config, "eos_token_id");
    if (json_is_null(eos)) return true;
    info->num_eos = 0;
    const json_value *entry = eos->type == JSON_ARRAY ? eos->first : eos;
    for (; entry; entry = eos->type == JSON_ARRAY ? entry->next : NULL) {
        if (info->num_eos == ENGINE_MAX_EOS || !json_integer(entry, 0, info->vocabulary - 1, &id)) {
            return engine_fail(error, "%s: eos_token_id: expected at most %d tokens", path,
                               ENGINE_MAX_EOS);
        }
        info->eos[info->num_eos++] = (int32_t)id;
    }
    return true;
}

static bool file_exists(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file) fclose(file);
    return file != NULL;
}

/* The tokens that begin and end a text: generation_config.json overrides config.json. */
static bool read_generation_config(engine_model *model, const char *directory, engine_error *error)
{
    char path[PATH_CAPACITY];
    if (!join(path, directory, "generation_config.json", error)) return false;
    if (!file_exists(path)) return true;
    json_document document;
    if (!json_load(&document, path, error)) return false;
    bool sound = read_special_tokens(&model->info, document.root, path, error);
    json_free(&document);
    return sound;
}

/* ---- Weights ---- */

static float from_half(uint16_t half)
{
    int exponent = half >> 10 & 31, fraction = half & 1023;
    float magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                      : exponent     ? ldexpf((float)(1024 + fraction), exponent - 25)
                                     : ldexpf((float)fraction, -24);
    return half & 0x8000 ? -magnitude : magnitude;
}

static float from_bfloat(uint16_t bfloat)
{
    uint32_t bits = (uint32_t)bfloat << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* A copy of a 16-bit tensor in F32, owned by the model. */
static const float *widen(engine_model *model, const safetensors_tensor *tensor, bool bfloat16)
{
    size_t elements = tensor->size / 2;
    const uint16_t *narrow = tensor->data;
    float **grown = realloc(model->widened, (model->num_widened + 1) * sizeof *grown);
    if (!grown) return NULL;
    model->widened = grown;
    float *wide = malloc(elements * sizeof *wide + 1);
    if (!wide) return NULL;
    model->widened[model->num_widened++] = wide;
    for (size_t i = 0; i < elements; i++) {
        wide[i] = bfloat16 ? from_bfloat(narrow[i]) : from_half(narrow[i]);
    }
    return wide;
}

static safetensors_tensor *find_tensor(const engine_model *model, const char *name)
{
    for (size_t i = 0; i < model->num_files; i++) {
        safetensors_tensor *tensor = safetensors_find(&model->files[i], name);
        if (tensor) return tensor;
    }
    return NULL;
}

/* What the loader of weights passes around. The first error stops it. */
typedef struct loader {
    engine_model *model;
    const char *directory;
    engine_error *error;
    bool failed;
} loader;

static void fail_tensor(loader *l, const char *name, const char *what)
{
    if (!l->failed) engine_fail(l->error, "%s: %s: %s", l->directory, name, what);
    l->failed = true;
}

/*
 * Fetches [rows, columns], or [rows] if `columns` is 0. Matrices in F32 and BF16 are used where
 * they lie; all else is widened to F32.
 */
static engine_tensor fetch(loader *l, const char *name, int32_t rows, int32_t columns)
{
    engine_tensor none = {0};
    safetensors_tensor *tensor = l->failed ? NULL : find_tensor(l->model, name);
    if (!tensor) {
        fail_tensor(l, name, "expected this tensor, found none");
        return none;
    }
    tensor->used = true;
    if (tensor->dimensions != (columns ? 2 : 1) || tensor->shape[0] != rows ||
        (columns && tensor->shape[1] != columns)) {
        char what[100];
        snprintf(what, sizeof what, "expected the shape [%d, %d], found another", rows, columns);
        fail_tensor(l, name, what);
        return none;
    }
    bool bfloat16 = !strcmp(tensor->dtype, "BF16"), half = !strcmp(tensor->dtype, "F16");
    if (!bfloat16 && !half && strcmp(tensor->dtype, "F32") != 0) {
        fail_tensor(l, name, "expected F32, F16 or BF16");
        return none;
    }
    bool stored = !half && !(bfloat16 && columns == 0);
    const void *data = stored ? tensor->data : widen(l->model, tensor, bfloat16);
    if (!data) fail_tensor(l, name, "out of memory");
    return (engine_tensor){data, rows, columns, stored && bfloat16};
}

static const float *fetch_vector(loader *l, int layer, const char *part, const char *kind,
                                 int32_t rows, bool required)
{
    char name[NAME_CAPACITY];
    snprintf(name, sizeof name, "model.layers.%d.%s.%s", layer, part, kind);
    if (!required && !find_tensor(l->model, name)) return NULL;
    return fetch(l, name, rows, 0).data;
}

static linear fetch_linear(loader *l, int layer, const char *part, int32_t rows, int32_t columns,
                           bool bias)
{
    char name[NAME_CAPACITY];
    snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, part);
    linear result = {.weight = fetch(l, name, rows, columns)};
    result.bias = fetch_vector(l, layer, part, "bias", rows, bias);
    return result;
}

static void fetch_layer(loader *l, int index, const json_value *config)
{
    const engine_model *model = l->model;
    layer *layer = &model->layers[index];
    int32_t hidden = model->info.hidden_size, inner = model->intermediate_size;
    int32_t query = model->num_heads * model->head_dim, kv = model->num_kv_heads * model->head_dim;
    const json_value *flag = json_member(config, "attention_bias");
    bool qwen3 = json_is(json_member(config, "model_type"), "qwen3");
    bool bias = flag && flag->number != 0;
    bool input_bias = bias || json_is(json_member(config, "model_type"), "qwen2");
    flag = json_member(config, "mlp_bias");
    bool mlp_bias = flag && flag->number != 0;
    layer->attention_norm = fetch_vector(l, index, "input_layernorm", "weight", hidden, true);
    layer->query = fetch_linear(l, index, "self_attn.q_proj", query, hidden, input_bias);
    layer->key = fetch_linear(l, index, "self_attn.k_proj", kv, hidden, input_bias);
    layer->value = fetch_linear(l, index, "self_attn.v_proj", kv, hidden, input_bias);
    layer->output = fetch_linear(l, index, "self_attn.o_proj", hidden, query, bias);
    layer->query_norm = fetch_vector(l, index, "self_attn.q_norm", "weight", model->head_dim, qwen3);
    layer->key_norm = fetch_vector(l, index, "self_attn.k_norm", "weight", model->head_dim, qwen3);
    layer->feed_norm = fetch_vector(l, index, "post_attention_layernorm", "weight", hidden, true);
    layer->gate = fetch_linear(l, index, "mlp.gate_proj", inner, hidden, mlp_bias);
    layer->up = fetch_linear(l, index, "mlp.up_proj", inner, hidden, mlp_bias);
    layer->down = fetch_linear(l, index, "mlp.down_proj", hidden, inner, mlp_bias);
}

/* A tensor that nobody read would be a part of the model that the forward leaves out. */
static void check_unused(loader *l)
{
    const engine_model *model = l->model;
    for (size_t i = 0; i < model->num_files; i++) {
        for (size_t j = 0; j < model->files[i].num_tensors; j++) {
            const safetensors_tensor *tensor = &model->files[i].tensors[j];
            char name[NAME_CAPACITY];
            snprintf(name, sizeof name, "%.*s", (int)tensor->name_length, tensor->name);
            bool derived = strstr(name, "rotary_emb.inv_freq") != NULL;
            if (!tensor->used && !derived) fail_tensor(l, name, "this tensor has no place in the model");
        }
    }
}

static bool fetch_weights(engine_model *model, const char *directory, const json_value *config,
                          engine_error *error)
{
    loader l = {model, directory, error, false};
    int32_t rows = model->info.vocabulary, columns = model->info.hidden_size;
    const json_value *flag = json_member(config, "tie_word_embeddings");
    bool tied = flag && flag->number != 0;
    model->layers = calloc((size_t)model->info.num_layers, sizeof *model->layers);
    if (!model->layers) return engine_fail(error, "%s: out of memory", directory);
    model->embedding = fetch(&l, "model.embed_tokens.weight", rows, columns);
    for (int i = 0; i < model->info.num_layers && !l.failed; i++) fetch_layer(&l, i, config);
    model->final_norm = fetch(&l, "model.norm.weight", columns, 0).data;
    bool stored = find_tensor(model, "lm_head.weight") != NULL;
    model->head = model->embedding;
    if (stored || !tied) model->head = fetch(&l, "lm_head.weight", rows, columns);
    if (tied) model->head = model->embedding;
    check_unused(&l);
    return !l.failed;
}

static bool load_file(engine_model *model, const char *path, engine_error *error)
{
    size_t count = model->num_files;
    safetensors_file *grown = realloc(model->files, (count + 1) * sizeof *grown);
    if (!grown) return engine_fail(error, "%s: out of memory", path);
    model->files = grown;
    if (!safetensors_load(&grown[count], path, error)) return false;
    for (size_t j = 0; j < grown[count].num_tensors && count > 0; j++) {
        const safetensors_tensor *tensor = &grown[count].tensors[j];
        char name[NAME_CAPACITY];
        snprintf(name, sizeof name, "%.*s", (int)tensor->name_length, tensor->name);
        if (find_tensor(model, name)) {
            safetensors_free(&grown[count]);
            return engine_fail(error, "%s: %s stands in another file too", path, name);
        }
    }
    model->num_files++;
    return true;
}

/* model.safetensors, or else all parts model-*.safetensors. */
static bool load_files(engine_model *model, const char *directory, engine_error *error)
{
    char path[PATH_CAPACITY];
    if (!join(path, directory, "model.safetensors", error)) return false;
    if (file_exists(path)) return load_file(model, path, error);
    DIR *listing = opendir(directory);
    if (!listing) return engine_fail(error, "%s: %s", directory, strerror(errno));
    bool sound = true;
    for (struct dirent *entry; sound && (entry = readdir(listing));) {
        size_t length = strlen(entry->d_name), ending = strlen(".safetensors");
        if (strncmp(entry->d_name, "model-", 6) != 0 || length < ending ||
            strcmp(entry->d_name + length - ending, ".safetensors") != 0) {
            continue;
        }
        sound = join(path, directory, entry->d_name, error) && load_file(model, path, error);
    }
    closedir(listing);
    if (sound && model->num_files == 0) {
        return engine_fail(error, "%s: expected model.safetensors or model-*.safetensors, found none",
                           directory);
    }
    return sound;
}

/* ---- Model ---- */

static bool load_config(engine_model *model, const char *directory, const json_value *config,
                        const char *path, engine_error *error)
{
    model->info.bos = -1;
    return check_architecture(config, path, error) && read_sizes(model, config, path, error) &&
           read_rope(model, config, path, error) &&
           read_special_tokens(&model->info, config, path, error) &&
           read_generation_config(model, directory, error) &&
           load_files(model, directory, error) && fetch_weights(model, directory, config, error);
}

static bool load_tokenizer(engine_model *model, const char *directory, engine_error *error)
{
    char path[PATH_CAPACITY];
    if (!join(path, directory, "tokenizer.json", error)) return false;
    if (!file_exists(path)) return true;
    model->tokenizer = tokenizer_load(path, error);
    if (!model->tokenizer) return false;
    if (tokenizer_size(model->tokenizer) > model->info.vocabulary) {
        return engine_fail(error, "%s: expected ids below vocab_size %d, found %d", path,
                           model->info.vocabulary, tokenizer_size(model->tokenizer) - 1);
    }
    return true;
}

engine_model *engine_load(const char *directory, engine_threads *threads, engine_error *error)
{
    char path[PATH_CAPACITY];
    json_document config;
    if (!join(path, directory, "config.json", error) || !json_load(&config, path, error)) return NULL;
    engine_model *model = calloc(1, sizeof *model);
    bool loaded = model ? load_config(model, directory, config.root, path, error) &&
                              load_tokenizer(model, directory, error)
                        : engine_fail(error, "%s: out of memory", path);
    json_free(&config);
    if (!loaded) {
        engine_free(model);
        return NULL;
    }
    model->threads = threads;
    return model;
}

void engine_free(engine_model *model)
{
    if (!model) return;
    for (size_t i = 0; i < model->num_widened; i++) free(model->widened[i]);
    for (size_t i = 0; i < model->num_files; i++) safetensors_free(&model->files[i]);
    free(model->widened);
    free(model->files);
    free(model->layers);
    free(model->rope_frequency);
    tokenizer_free(model->tokenizer);
    free(model);
}

const engine_info *engine_describe(const engine_model *model)
{
    return &model->info;
}

engine_tensor engine_embedding(const engine_model *model)
{
    return model->embedding;
}

engine_tensor engine_head(const engine_model *model)
{
    return model->head;
}

int32_t engine_encode(const engine_model *model, const char *text, bool add_bos, int32_t *ids,
                      int32_t capacity)
{
    int32_t count = 0;
    if (!model->tokenizer) return -1;
    if (add_bos && model->info.bos >= 0) {
        if (capacity > 0) ids[0] = model->info.bos;
        count = 1;
    }
    return tokenizer_encode(model->tokenizer, text, ids, capacity, &count) ? count : -1;
}

int32_t engine_decode(const engine_model *model, int32_t id, char *bytes, int32_t capacity)
{
    return model->tokenizer ? tokenizer_decode(model->tokenizer, id, bytes, capacity) : -1;
}
