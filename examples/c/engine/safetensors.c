#include "safetensors.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64 };
static const uint64_t MAX_HEADER = 100 * 1000 * 1000;

static const struct {
    const char *name;
    size_t size;
} dtypes[] = {
    {"F64", 8},     {"F32", 4},     {"F16", 2}, {"BF16", 2}, {"I64", 8}, {"I32", 4},
    {"I16", 2},     {"I8", 1},      {"U64", 8}, {"U32", 4},  {"U16", 2}, {"U8", 1},
    {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"BOOL", 1},
};

/* Reads the shape and checks that its bytes are those from begin to end. */
static bool parse_shape(safetensors_tensor *tensor, const json_value *shape, size_t element,
                        int64_t begin, int64_t end)
{
    uint64_t elements = 1;
    if (!shape || shape->type != JSON_ARRAY || shape->length > SAFETENSORS_MAX_DIMENSIONS) {
        return false;
    }
    for (const json_value *value = shape->first; value; value = value->next) {
        int64_t extent;
        if (!json_integer(value, 0, INT64_MAX, &extent)) return false;
        tensor->shape[tensor->dimensions++] = extent;
        if (__builtin_mul_overflow(elements, (uint64_t)extent, &elements)) return false;
    }
    tensor->begin = (size_t)begin;
    tensor->size = (size_t)(end - begin);
    return !__builtin_mul_overflow(elements, element, &elements) && elements == tensor->size;
}

static bool parse_tensor(safetensors_tensor *tensor, const json_value *entry, int64_t data_size,
                         const char *path, engine_error *error)
{
    tensor->name = entry->key;
    tensor->name_length = entry->key_length;
    int shown = entry->key_length < 200 ? (int)entry->key_length : 200;
    const json_value *dtype = json_member(entry, "dtype");
    const json_value *offsets = json_member(entry, "data_offsets");
    size_t element = 0;
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        if (!json_is(dtype, dtypes[i].name)) continue;
        tensor->dtype = dtypes[i].name;
        element = dtypes[i].size;
    }
    if (!element) {
        return engine_fail(error, "%s: %.*s: unknown dtype", path, shown, entry->key);
    }
    int64_t begin, end;
    if (!offsets || offsets->type != JSON_ARRAY || offsets->length != 2 ||
        !json_integer(offsets->first, 0, data_size, &begin) ||
        !json_integer(offsets->first->next, begin, data_size, &end)) {
        return engine_fail(error, "%s: %.*s: data_offsets lie outside the file's %lld bytes", path,
                           shown, entry->key, (long long)data_size);
    }
    if ((size_t)begin % element != 0) {
        return engine_fail(error, "%s: %.*s: data is not aligned", path, shown, entry->key);
    }
    return parse_shape(tensor, json_member(entry, "shape"), element, begin, end) ||
           engine_fail(error, "%s: %.*s: shape and data_offsets differ", path, shown, entry->key);
}

static int by_place(const void *left, const void *right)
{
    const safetensors_tensor *a = left, *b = right;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    return (a->size > b->size) - (a->size < b->size);
}

static int by_name(const void *left, const void *right)
{
    const safetensors_tensor *a = *(safetensors_tensor *const *)left;
    const safetensors_tensor *b = *(safetensors_tensor *const *)right;
    size_t common = a->name_length < b->name_length ? a->name_length : b->name_length;
    int order = memcmp(a->name, b->name, common);
    return order ? order : (a->name_length > b->name_length) - (a->name_length < b->name_length);
}

/* The data must be covered without gaps or overlaps, and every name must be unique. */
static bool check_layout(const safetensors_file *file, size_t data_size, const char *path,
                         engine_error *error)
{
    size_t end = 0;
    for (size_t i = 0; i < file->num_tensors; i++) {
        if (file->tensors[i].begin != end) {
            return engine_fail(error, "%s: byte %zu of the data is in no tensor or in two", path,
                               end);
        }
        end += file->tensors[i].size;
    }
    if (end != data_size) {
        return engine_fail(error, "%s: expected %zu bytes of data, found %zu", path, end,
                           data_size);
    }
    safetensors_tensor **names = malloc((file->num_tensors + 1) * sizeof *names);
    if (!names) return engine_fail(error, "%s: out of memory", path);
    for (size_t i = 0; i < file->num_tensors; i++) names[i] = &file->tensors[i];
    qsort(names, file->num_tensors, sizeof *names, by_name);
    bool unique = true;
    for (size_t i = 1; i < file->num_tensors; i++) unique &= by_name(&names[i - 1], &names[i]) != 0;
    free(names);
    return unique || engine_fail(error, "%s: two tensors have the same name", path);
}

static bool parse_header(safetensors_file *file, size_t data_size, const char *path,
                         engine_error *error)
{
    const json_value *root = file->header.root;
    if (root->type != JSON_OBJECT) {
        return engine_fail(error, "%s: expected a header with tensors", path);
    }
    file->tensors = calloc(root->length + 1, sizeof *file->tensors);
    if (!file->tensors) return engine_fail(error, "%s: out of memory", path);
    for (const json_value *entry = root->first; entry; entry = entry->next) {
        static const char metadata[] = "__metadata__";
        if (entry->key_length == sizeof metadata - 1 &&
            !memcmp(entry->key, metadata, sizeof metadata - 1)) {
            continue;
        }
        safetensors_tensor *tensor = &file->tensors[file->num_tensors++];
        if (!parse_tensor(tensor, entry, (int64_t)data_size, path, error)) return false;
        tensor->data = file->data + tensor->begin;
    }
    qsort(file->tensors, file->num_tensors, sizeof *file->tensors, by_place);
    return check_layout(file, data_size, path, error);
}

/* The size of the header: the first eight bytes, little-endian. */
static bool read_header_size(FILE *stream, uint64_t file_size, uint64_t *size)
{
    unsigned char bytes[8];
    if (file_size < sizeof bytes || fread(bytes, 1, sizeof bytes, stream) != sizeof bytes) {
        return false;
    }
    *size = 0;
    for (int i = 8; i-- > 0;) *size = *size << 8 | bytes[i];
    return *size <= MAX_HEADER && *size <= file_size - sizeof bytes;
}

static bool load_stream(safetensors_file *file, FILE *stream, const char *path,
                        engine_error *error)
{
    uint64_t header_size;
    if (fseek(stream, 0, SEEK_END) != 0) return engine_fail(error, "%s: %s", path, strerror(errno));
    long end = ftell(stream);
    rewind(stream);
    if (end < 0 || !read_header_size(stream, (uint64_t)end, &header_size)) {
        return engine_fail(error, "%s: the header is longer than the file's %ld bytes", path, end);
    }
    size_t data_size = (size_t)end - 8 - (size_t)header_size;
    char *header = malloc((size_t)header_size + 1);
    /* aligned_alloc wants a multiple of the alignment; never zero bytes. */
    file->data = aligned_alloc(ALIGNMENT, (data_size / ALIGNMENT + 1) * ALIGNMENT);
    if (!header || !file->data) {
        free(header);
        return engine_fail(error, "%s: out of memory", path);
    }
    if (fread(header, 1, (size_t)header_size, stream) != header_size ||
        fread(file->data, 1, data_size, stream) != data_size) {
        free(header);
        return engine_fail(error, "%s: reading failed", path);
    }
    return json_parse(&file->header, header, (size_t)header_size, path, error) &&
           parse_header(file, data_size, path, error);
}

bool safetensors_load(safetensors_file *file, const char *path, engine_error *error)
{
    *file = (safetensors_file){0};
    FILE *stream = fopen(path, "rb");
    if (!stream) return engine_fail(error, "%s: %s", path, strerror(errno));
    bool loaded = load_stream(file, stream, path, error);
    fclose(stream);
    if (!loaded) safetensors_free(file);
    return loaded;
}

void safetensors_free(safetensors_file *file)
{
    json_free(&file->header);
    free(file->tensors);
    free(file->data);
    *file = (safetensors_file){0};
}

safetensors_tensor *safetensors_find(const safetensors_file *file, const char *name)
{
    size_t length = strlen(name);
    for (size_t i = 0; i < file->num_tensors; i++) {
        safetensors_tensor *tensor = &file->tensors[i];
        if (tensor->name_length == length && !memcmp(tensor->name, name, length)) return tensor;
    }
    return NULL;
}
