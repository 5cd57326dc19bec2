#include "json.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bounds the recursion, so that a hostile file cannot exhaust the stack. */
enum { MAX_DEPTH = 100 };

typedef struct parser {
    char *text;
    size_t at;
    size_t length;
    json_value *values;
    size_t used;
    const char *path;
    engine_error *error;
} parser;

bool engine_fail(engine_error *error, const char *format, ...)
{
    if (error) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(error->message, sizeof error->message, format, arguments);
        va_end(arguments);
    }
    return false;
}

static bool expected(parser *p, const char *what)
{
    return engine_fail(p->error, "%s: byte %zu: expected %s", p->path, p->at, what);
}

static int peek(const parser *p)
{
    return p->at < p->length ? (unsigned char)p->text[p->at] : -1;
}

static void skip_space(parser *p)
{
    while (p->at < p->length && strchr(" \t\r\n", p->text[p->at]) && p->text[p->at]) p->at++;
}

static bool take(parser *p, char c)
{
    skip_space(p);
    if (peek(p) != c) return false;
    p->at++;
    return true;
}

static bool parse_hex(parser *p, uint32_t *code)
{
    *code = 0;
    for (int i = 0; i < 4; i++, p->at++) {
        int c = peek(p);
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0) return expected(p, "four hexadecimal digits");
        *code = *code * 16 + (uint32_t)digit;
    }
    return true;
}

static size_t put_utf8(char *out, uint32_t code)
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    size_t bytes = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const unsigned char lead[] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (size_t i = bytes; --i > 0; code >>= 6) out[i] = (char)(0x80 | (code & 0x3F));
    out[0] = (char)(lead[bytes] | code);
    return bytes;
}

/* The part of an escape after its backslash. It never yields more bytes than it has. */
static bool parse_escape(parser *p, char *out, size_t *written)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    int c = peek(p);
    const char *simple = c > 0 ? strchr(from, c) : NULL;
    p->at++;
    if (simple) {
        out[(*written)++] = to[simple - from];
        return true;
    }
    uint32_t code, low;
    if (c != 'u') return expected(p, "an escape");
    if (!parse_hex(p, &code)) return false;
    if (code >= 0xD800 && code < 0xE000) {
        if (code >= 0xDC00 || peek(p) != '\\') return expected(p, "a surrogate pair");
        p->at++;
        if (peek(p) != 'u') return expected(p, "a surrogate pair");
        p->at++;
        if (!parse_hex(p, &low)) return false;
        if (low < 0xDC00 || low >= 0xE000) return expected(p, "a surrogate pair");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    *written += put_utf8(out + *written, code);
    return true;
}

/* Unescapes in place: the text only gets shorter. */
static bool parse_string(parser *p, const char **string, size_t *length)
{
    if (!take(p, '"')) return expected(p, "a string");
    char *out = p->text + p->at;
    size_t written = 0;
    for (;;) {
        int c = peek(p);
        if (c < 0x20) return expected(p, "the end of a string");
        p->at++;
        if (c == '"') break;
        if (c != '\\') {
            out[written++] = (char)c;
        } else if (!parse_escape(p, out, &written)) {
            return false;
        }
    }
    *string = out;
    *length = written;
    return true;
}

static bool parse_number(parser *p, json_value *value)
{
    char digits[64];
    size_t length = 0;
    while (peek(p) > 0 && strchr("+-.0123456789eE", peek(p))) {
        if (length + 1 >= sizeof digits) return expected(p, "a shorter number");
        digits[length++] = p->text[p->at++];
    }
    digits[length] = '\0';
    char *end;
    value->type = JSON_NUMBER;
    value->number = strtod(digits, &end);
    bool sound = length > 0 && *end == '\0' && digits[0] != '+' && isfinite(value->number);
    return sound || expected(p, "a value");
}

static bool parse_word(parser *p, json_value *value)
{
    static const struct {
        const char *word;
        json_type type;
        double number;
    } words[] = {{"null", JSON_NULL, 0}, {"true", JSON_BOOLEAN, 1}, {"false", JSON_BOOLEAN, 0}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t length = strlen(words[i].word);
        if (p->length - p->at >= length && !memcmp(p->text + p->at, words[i].word, length)) {
            p->at += length;
            value->type = words[i].type;
            value->number = words[i].number;
            return true;
        }
    }
    return parse_number(p, value);
}

static bool parse_value(parser *p, json_value *value, int depth);

static bool parse_elements(parser *p, json_value *parent, char close, int depth)
{
    if (depth >= MAX_DEPTH) return expected(p, "less nesting");
    if (take(p, close)) return true;
    const json_value **link = &parent->first;
    do {
        json_value *value = &p->values[p->used++];
        if (parent->type == JSON_OBJECT) {
            skip_space(p);
            if (!parse_string(p, &value->key, &value->key_length)) return false;
            if (!take(p, ':')) return expected(p, "a colon");
        }
        if (!parse_value(p, value, depth + 1)) return false;
        *link = value;
        link = &value->next;
        parent->length++;
    } while (take(p, ','));
    return take(p, close) || expected(p, close == '}' ? "a comma or }" : "a comma or ]");
}

static bool parse_value(parser *p, json_value *value, int depth)
{
    skip_space(p);
    switch (peek(p)) {
    case '{':
        p->at++;
        value->type = JSON_OBJECT;
        return parse_elements(p, value, '}', depth);
    case '[':
        p->at++;
        value->type = JSON_ARRAY;
        return parse_elements(p, value, ']', depth);
    case '"':
        value->type = JSON_STRING;
        return parse_string(p, &value->string, &value->length);
    default:
        return parse_word(p, value);
    }
}

bool json_parse(json_document *document, char *text, size_t length, const char *path,
                engine_error *error)
{
    /* Every value but the root follows a comma or an opening bracket, so this many suffice and
     * no value ever moves. */
    size_t most = 1;
    for (size_t i = 0; i < length; i++) most += text[i] == ',' || text[i] == '[' || text[i] == '{';
    document->text = text;
    document->values = calloc(most, sizeof *document->values);
    document->root = document->values;
    parser p = {text, 0, length, document->values, 1, path, error};
    bool sound = document->values ? parse_value(&p, document->values, 0)
                                  : engine_fail(error, "%s: out of memory", path);
    if (sound) {
        skip_space(&p);
        sound = p.at == length || expected(&p, "the end of the file");
    }
    if (!sound) json_free(document);
    return sound;
}

bool json_load(json_document *document, const char *path, engine_error *error)
{
    *document = (json_document){0};
    FILE *file = fopen(path, "rb");
    if (!file) return engine_fail(error, "%s: %s", path, strerror(errno));
    char *text = NULL;
    size_t length = 0, capacity = 0;
    do {
        if (length == capacity) {
            capacity = capacity ? capacity * 2 : 1 << 16;
            char *grown = realloc(text, capacity);
            if (!grown) {
                free(text);
                fclose(file);
                return engine_fail(error, "%s: out of memory", path);
            }
            text = grown;
        }
        length += fread(text + length, 1, capacity - length, file);
    } while (!feof(file) && !ferror(file));
    bool failed = ferror(file) != 0;
    fclose(file);
    if (failed) {
        free(text);
        return engine_fail(error, "%s: reading failed", path);
    }
    return json_parse(document, text, length, path, error);
}

void json_free(json_document *document)
{
    free(document->values);
    free(document->text);
    *document = (json_document){0};
}

const json_value *json_member(const json_value *object, const char *key)
{
    if (!object || object->type != JSON_OBJECT) return NULL;
    size_t length = strlen(key);
    for (const json_value *member = object->first; member; member = member->next) {
        if (member->key_length == length && !memcmp(member->key, key, length)) return member;
    }
    return NULL;
}

bool json_is_null(const json_value *value)
{
    return !value || value->type == JSON_NULL;
}

bool json_is(const json_value *value, const char *string)
{
    return value && value->type == JSON_STRING && value->length == strlen(string) &&
           !memcmp(value->string, string, value->length);
}

bool json_integer(const json_value *value, int64_t minimum, int64_t maximum, int64_t *result)
{
    if (!value || value->type != JSON_NUMBER || value->number != floor(value->number)) return false;
    /* Beyond 2^53 a double no longer tells neighbours apart. */
    if (fabs(value->number) > 9007199254740992.0) return false;
    int64_t integer = (int64_t)value->number;
    if (integer < minimum || integer > maximum) return false;
    *result = integer;
    return true;
}
