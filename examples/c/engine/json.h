/* A reader for JSON files that may be broken: every text gives a tree or an error. */
#ifndef ENGINE_JSON_H
#define ENGINE_JSON_H

#include "engine.h"

typedef enum json_type {
    JSON_NULL,
    JSON_BOOLEAN,
    JSON_NUMBER,
    JSON_STRING,
    JSON_ARRAY,
    JSON_OBJECT,
} json_type;

typedef struct json_value json_value;

struct json_value {
    json_type type;
    double number;           /* of a number; 0 or 1 of a boolean */
    const char *string;      /* of a string, UTF-8, not terminated */
    size_t length;           /* bytes of a string, elements of an array or object */
    const char *key;         /* of a member of an object, not terminated */
    size_t key_length;
    const json_value *first; /* element of an array or object */
    const json_value *next;  /* element after this one */
};

typedef struct json_document {
    const json_value *root;
    json_value *values;
    char *text;
} json_document;

/* Parses `length` bytes at `text`, which it takes over from malloc even if it fails. `path` is for errors. */
bool json_parse(json_document *document, char *text, size_t length, const char *path,
                engine_error *error);
bool json_load(json_document *document, const char *path, engine_error *error);
void json_free(json_document *document);

/* The member of an object, or NULL if `object` is NULL, something else or lacks it. */
const json_value *json_member(const json_value *object, const char *key);
bool json_is_null(const json_value *value); /* NULL or null */
bool json_is(const json_value *value, const char *string);
/* Whether the value is an integer of the range; if so, sets *result. */
bool json_integer(const json_value *value, int64_t minimum, int64_t maximum, int64_t *result);

/* Writes why something failed and returns false. */
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
bool engine_fail(engine_error *error, const char *format, ...);

#endif
