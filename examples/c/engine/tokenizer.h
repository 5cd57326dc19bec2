/* Byte-level byte pair encoding, as tokenizer.json describes it. */
#ifndef ENGINE_TOKENIZER_H
#define ENGINE_TOKENIZER_H

#include "json.h"

typedef struct tokenizer tokenizer;

tokenizer *tokenizer_load(const char *path, engine_error *error);
void tokenizer_free(tokenizer *tokenizer);

/* Appends to the ids that are already counted in *count; ids beyond `capacity` are only counted. */
bool tokenizer_encode(const tokenizer *tokenizer, const char *text, int32_t *ids, int32_t capacity,
                      int32_t *count);
int32_t tokenizer_decode(const tokenizer *tokenizer, int32_t id, char *bytes, int32_t capacity);

/* One more than the largest token id. */
int32_t tokenizer_size(const tokenizer *tokenizer);

#endif
