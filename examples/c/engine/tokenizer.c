/*
 * Text is cut at special tokens, then into words, and each word's bytes are merged pair by pair,
 * the pair of lowest rank first. tokenizer.json spells tokens in an alphabet that gives every byte
 * a printable character; here tokens are the bytes themselves.
 */
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

typedef struct token {
    char *bytes; /* NULL: no token has this id */
    size_t length;
} token;

typedef struct merge {
    int32_t left, right;
    int32_t rank;
    int32_t result; /* -1: an empty slot */
} merge;

struct tokenizer {
    token *tokens;
    int32_t size;
    int32_t *ids; /* hash table from bytes to ids, -1 for empty slots */
    merge *merges; /* hash table from pairs */
    size_t id_mask, merge_mask;
    int32_t *specials;
    size_t num_specials;
    int32_t byte_ids[256];
};

enum { MAX_TOKENS = 1 << 22 };

/* ---- Tables ---- */

static size_t hash_bytes(const char *bytes, size_t length)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)bytes[i]) * 0x100000001b3u;
    return (size_t)(hash ^ hash >> 29);
}

/* The slot that holds these bytes, or the empty one where they belong. */
static int32_t *id_slot(const tokenizer *t, const char *bytes, size_t length)
{
    for (size_t at = hash_bytes(bytes, length);; at++) {
        int32_t *slot = &t->ids[at & t->id_mask];
        if (*slot < 0) return slot;
        const token *found = &t->tokens[*slot];
        if (found->length == length && !memcmp(found->bytes, bytes, length)) return slot;
    }
}

static merge *merge_slot(const tokenizer *t, int32_t left, int32_t right)
{
    uint64_t hash = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    for (size_t at = (size_t)(hash >> 20);; at++) {
        merge *slot = &t->merges[at & t->merge_mask];
        if (slot->result < 0 || (slot->left == left && slot->right == right)) return slot;
    }
}

/* A power of two, at least twice the elements, so that probing ends. */
static size_t table_size(size_t elements)
{
    size_t size = 16;
    while (size < elements * 2) size *= 2;
    return size;
}

/* ---- The file ---- */

/* Bytes that are printable in Latin-1 stand for themselves, the others for 256, 257, ... */
static int byte_of_character(uint32_t character)
{
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; byte++) {
        bool printable = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
        if (character == (printable ? byte : next)) return (int)byte;
        next += !printable;
    }
    return -1;
}

/* Turns the file's spelling of a token into its bytes. Returns how many, or 0 if it has none. */
static size_t spelled_bytes(const char *spelling, size_t length, char *bytes)
{
    size_t count = 0;
    for (size_t i = 0; i < length;) {
        uint32_t character = (unsigned char)spelling[i++];
        if (character >= 0xC0 && character < 0xE0 && i < length) {
            character = (character & 0x1F) << 6 | ((unsigned char)spelling[i++] & 0x3F);
        }
        int byte = byte_of_character(character);
        if (byte < 0) return 0;
        bytes[count++] = (char)byte;
    }
    return count;
}

static bool reserve_tokens(tokenizer *t, const json_value *vocabulary, const json_value *added,
                           const char *path, engine_error *error)
{
    int64_t id, largest = -1;
    for (const json_value *entry = vocabulary->first; entry; entry = entry->next) {
        if (!json_integer(entry, 0, MAX_TOKENS - 1, &id)) {
            return engine_fail(error, "%s: model.vocab: expected ids from 0 to %d", path,
                               MAX_TOKENS - 1);
        }
        if (id > largest) largest = id;
    }
    for (const json_value *entry = added ? added->first : NULL; entry; entry = entry->next) {
        if (!json_integer(json_member(entry, "id"), 0, MAX_TOKENS - 1, &id)) {
            return engine_fail(error, "%s: added_tokens: expected ids from 0 to %d", path,
                               MAX_TOKENS - 1);
        }
        if (id > largest) largest = id;
    }
    t->size = (int32_t)largest + 1;
    size_t slots = table_size(vocabulary->length);
    t->id_mask = slots - 1;
    t->tokens = calloc((size_t)t->size + 1, sizeof *t->tokens);
    t->ids = malloc(slots * sizeof *t->ids);
    t->specials = malloc((added ? added->length + 1 : 1) * sizeof *t->specials);
    if (!t->tokens || !t->ids || !t->specials) return engine_fail(error, "%s: out of memory", path);
    memset(t->ids, -1, slots * sizeof *t->ids);
    return true;
}

static bool read_vocabulary(tokenizer *t, const json_value *vocabulary, const char *path,
                            engine_error *error)
{
    for (const json_value *entry = vocabulary->first; entry; entry = entry->next) {
        token *fresh = &t->tokens[(int32_t)entry->number];
        int shown = entry->key_length < 100 ? (int)entry->key_length : 100;
        if (fresh->bytes) {
            return engine_fail(error, "%s: model.vocab: two tokens have the id of \"%.*s\"", path,
                               shown, entry->key);
        }
        fresh->bytes = malloc(entry->key_length + 1);
        if (!fresh->bytes) return engine_fail(error, "%s: out of memory", path);
        fresh->length = spelled_bytes(entry->key, entry->key_length, fresh->bytes);
        if (fresh->length == 0) {
            return engine_fail(error, "%s: model.vocab: \"%.*s\" is not byte-level", path, shown,
                               entry->key);
        }
        int32_t *slot = id_slot(t, fresh->bytes, fresh->length);
        if (*slot >= 0) {
            return engine_fail(error, "%s: model.vocab: \"%.*s\" stands twice", path, shown,
                               entry->key);
        }
        *slot = (int32_t)entry->number;
    }
    for (int byte = 0; byte < 256; byte++) {
        char bytes[1] = {(char)byte};
        t->byte_ids[byte] = *id_slot(t, bytes, 1);
        if (t->byte_ids[byte] < 0) {
            return engine_fail(error, "%s: model.vocab: no token for byte %d", path, byte);
        }
    }
    return true;
}

/* Finds both halves of a merge, written as ["a", "b"] or as "a b". */
static bool split_merge(const json_value *entry, const char **left, size_t *left_length,
                        const char **right, size_t *right_length)
{
    if (entry->type == JSON_ARRAY && entry->length == 2 && entry->first->type == JSON_STRING &&
        entry->first->next->type == JSON_STRING) {
        *left = entry->first->string;
        *left_length = entry->first->length;
        *right = entry->first->next->string;
        *right_length = entry->first->next->length;
        return true;
    }
    const char *space = entry->type == JSON_STRING ? memchr(entry->string, ' ', entry->length) : NULL;
    if (!space) return false;
    *left = entry->string;
    *left_length = (size_t)(space - entry->string);
    *right = space + 1;
    *right_length = entry->length - *left_length - 1;
    return true;
}

static bool read_merge(tokenizer *t, const json_value *entry, int32_t rank)
{
    const char *left, *right;
    size_t left_length, right_length;
    if (!split_merge(entry, &left, &left_length, &right, &right_length)) return false;
    char *bytes = malloc(left_length + right_length + 1);
    if (!bytes) return false;
    size_t first = spelled_bytes(left, left_length, bytes);
    size_t second = spelled_bytes(right, right_length, bytes + first);
    int32_t left_id = *id_slot(t, bytes, first);
    int32_t right_id = *id_slot(t, bytes + first, second);
    int32_t result = *id_slot(t, bytes, first + second);
    free(bytes);
    if (!first || !second || left_id < 0 || right_id < 0 || result < 0) return false;
    merge *slot = merge_slot(t, left_id, right_id);
    /* Of two rules for a pair the last one counts, as in a dictionary. */
    *slot = (merge){left_id, right_id, rank, result};
    return true;
}

static bool read_merges(tokenizer *t, const json_value *merges, const char *path,
                        engine_error *error)
{
    size_t slots = table_size(merges->length);
    t->merge_mask = slots - 1;
    t->merges = malloc(slots * sizeof *t->merges);
    if (!t->merges) return engine_fail(error, "%s: out of memory", path);
    for (size_t i = 0; i < slots; i++) t->merges[i].result = -1;
    int32_t rank = 0;
    for (const json_value *entry = merges->first; entry; entry = entry->next, rank++) {
        if (!read_merge(t, entry, rank)) {
            return engine_fail(error, "%s: model.merges: entry %d does not join tokens of the vocabulary",
                               path, rank);
        }
    }
    return true;
}

static bool is_true(const json_value *value)
{
    return value && value->type == JSON_BOOLEAN && value->number != 0;
}

static bool read_added(tokenizer *t, const json_value *added, const char *path,
                       engine_error *error)
{
    for (const json_value *entry = added ? added->first : NULL; entry; entry = entry->next) {
        const json_value *content = json_member(entry, "content");
        if (!content || content->type != JSON_STRING || content->length == 0) {
            return engine_fail(error, "%s: added_tokens: expected a content", path);
        }
        if (is_true(json_member(entry, "single_word")) || is_true(json_member(entry, "lstrip")) ||
            is_true(json_member(entry, "rstrip"))) {
            return engine_fail(error, "%s: added_tokens: single_word, lstrip and rstrip are not supported",
                               path);
        }
        int32_t id = (int32_t)json_member(entry, "id")->number;
        char *bytes = malloc(content->length);
        if (!bytes) return engine_fail(error, "%s: out of memory", path);
        memcpy(bytes, content->string, content->length);
        free(t->tokens[id].bytes);
        t->tokens[id] = (token){bytes, content->length};
        t->specials[t->num_specials++] = id;
    }
    return true;
}

/* Refuses what would change the ids of a text in ways that the code below does not know. */
static bool check_kind(const json_value *root, const char *path, engine_error *error)
{
    const json_value *model = json_member(root, "model");
    const json_value *split = json_member(root, "pre_tokenizer");
    const json_value *regex = json_member(split, "use_regex");
    if (!json_is(json_member(model, "type"), "BPE") || is_true(json_member(model, "byte_fallback")) ||
        is_true(json_member(model, "ignore_merges"))) {
        return engine_fail(error, "%s: expected a plain BPE model", path);
    }
    if (!json_is_null(json_member(root, "normalizer"))) {
        return engine_fail(error, "%s: expected no normalizer", path);
    }
    if (!json_is(json_member(split, "type"), "ByteLevel") || (regex && !is_true(regex)) ||
        is_true(json_member(split, "add_prefix_space"))) {
        return engine_fail(error, "%s: expected a ByteLevel pre_tokenizer with its own expression "
                                  "and without a prefix space", path);
    }
    return true;
}

static bool read_tokenizer(tokenizer *t, const json_value *root, const char *path,
                           engine_error *error)
{
    if (!check_kind(root, path, error)) return false;
    const json_value *vocabulary = json_member(json_member(root, "model"), "vocab");
    const json_value *merges = json_member(json_member(root, "model"), "merges");
    const json_value *added = json_member(root, "added_tokens");
    if (!vocabulary || vocabulary->type != JSON_OBJECT || !merges || merges->type != JSON_ARRAY ||
        (added && added->type != JSON_ARRAY)) {
        return engine_fail(error, "%s: expected model.vocab, model.merges and added_tokens", path);
    }
    return reserve_tokens(t, vocabulary, added, path, error) &&
           read_vocabulary(t, vocabulary, path, error) && read_merges(t, merges, path, error) &&
           read_added(t, added, path, error);
}

tokenizer *tokenizer_load(const char *path, engine_error *error)
{
    json_document document;
    if (!json_load(&document, path, error)) return NULL;
    tokenizer *t = calloc(1, sizeof *t);
    if (!t) {
        engine_fail(error, "%s: out of memory", path);
    } else if (!read_tokenizer(t, document.root, path, error)) {
        tokenizer_free(t);
        t = NULL;
    }
    json_free(&document);
    return t;
}

void tokenizer_free(tokenizer *t)
{
    if (!t) return;
    for (int32_t id = 0; t->tokens && id < t->size; id++) free(t->tokens[id].bytes);
    free(t->tokens);
    free(t->ids);
    free(t->merges);
    free(t->specials);
    free(t);
}

int32_t tokenizer_size(const tokenizer *t)
{
    return t->size;
}

/* ---- Words ---- */

typedef enum character { LETTER, DIGIT, SPACE, OTHER } character;

/* Bytes beyond ASCII count as letters, which most of them belong to. */
static character kind_of(char c)
{
    unsigned char byte = (unsigned char)c;
    if (byte >= 0x80 || (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z')) return LETTER;
    if (byte >= '0' && byte <= '9') return DIGIT;
    return byte == ' ' || (byte >= '\t' && byte <= '\r') ? SPACE : OTHER;
}

static size_t contraction(const char *text, size_t length)
{
    static const char *const endings[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        size_t size = strlen(endings[i]);
        if (size <= length && !memcmp(text, endings[i], size)) return size;
    }
    return 0;
}

/*
 * The length of the first word of a text that is not empty, which is the first match of
 *   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * The last space of a run is left to the word that follows.
 */
static size_t first_word(const char *text, size_t length)
{
    size_t size = contraction(text, length);
    if (size > 0) return size;
    size_t start = text[0] == ' ' && length > 1 ? 1 : 0;
    character kind = kind_of(text[start]);
    if (kind == SPACE) start = 0;
    for (size = start + 1; size < length && kind_of(text[size]) == kind; size++) continue;
    return kind == SPACE && size < length && size > 1 ? size - 1 : size;
}

/* ---- Text to ids ---- */

typedef struct symbol {
    int32_t id;
    int32_t rank; /* of the merge with the next symbol, INT32_MAX if there is none */
} symbol;

static void rank_pair(const tokenizer *t, symbol *symbols, size_t index, size_t count)
{
    symbols[index].rank = INT32_MAX;
    if (index + 1 == count) return;
    const merge *found = merge_slot(t, symbols[index].id, symbols[index + 1].id);
    if (found->result >= 0) symbols[index].rank = found->rank;
}

/* Merges the symbols of a word; of equal ranks the leftmost first. Returns how many are left. */
static size_t merge_word(const tokenizer *t, symbol *symbols, size_t count)
{
    for (size_t i = 0; i < count; i++) rank_pair(t, symbols, i, count);
    for (;;) {
        size_t best = 0;
        for (size_t i = 1; i < count; i++) {
            if (symbols[i].rank < symbols[best].rank) best = i;
        }
        if (symbols[best].rank == INT32_MAX) return count;
        symbols[best].id = merge_slot(t, symbols[best].id, symbols[best + 1].id)->result;
        count--;
        memmove(&symbols[best + 1], &symbols[best + 2], (count - best - 1) * sizeof *symbols);
        rank_pair(t, symbols, best, count);
        if (best > 0) rank_pair(t, symbols, best - 1, count);
    }
}

static void append(int32_t id, int32_t *ids, int32_t capacity, int32_t *count)
{
    if (*count < capacity) ids[*count] = id;
    ++*count;
}

/* The longest special token that the text begins with, or -1. */
static int32_t special_at(const tokenizer *t, const char *text, size_t length)
{
    int32_t best = -1;
    for (size_t i = 0; i < t->num_specials; i++) {
        const token *special = &t->tokens[t->specials[i]];
        if (special->length <= length && !memcmp(special->bytes, text, special->length) &&
            (best < 0 || special->length > t->tokens[best].length)) {
            best = t->specials[i];
        }
    }
    return best;
}

bool tokenizer_encode(const tokenizer *t, const char *text, int32_t *ids, int32_t capacity,
                      int32_t *count)
{
    size_t length = strlen(text);
    symbol *symbols = length < INT32_MAX ? malloc((length + 1) * sizeof *symbols) : NULL;
    if (!symbols) return false;
    for (size_t at = 0; at < length;) {
        size_t end = at;
        int32_t special = -1;
        while (end < length && (special = special_at(t, text + end, length - end)) < 0) end++;
        while (at < end) {
            size_t word = first_word(text + at, end - at);
            for (size_t i = 0; i < word; i++) {
                symbols[i].id = t->byte_ids[(unsigned char)text[at + i]];
            }
            size_t left = merge_word(t, symbols, word);
            for (size_t i = 0; i < left; i++) append(symbols[i].id, ids, capacity, count);
            at += word;
        }
        if (special >= 0) {
            append(special, ids, capacity, count);
            at += t->tokens[special].length;
        }
    }
    free(symbols);
    return true;
}

int32_t tokenizer_decode(const tokenizer *t, int32_t id, char *bytes, int32_t capacity)
{
    if (id < 0 || id >= t->size || !t->tokens[id].bytes) return -1;
    const token *found = &t->tokens[id];
    size_t copied = found->length;
    if (capacity < 0) capacity = 0;
    if (copied > (size_t)capacity) copied = (size_t)capacity;
    if (copied > 0) memcpy(bytes, found->bytes, copied);
    return (int32_t)found->length;
}
