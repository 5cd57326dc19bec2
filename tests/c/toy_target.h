/* A target model that is a formula: the next token is a hash of the last token and its position,
 * so its greedy text is known without running anything. Its hidden states are hashes too. */
#ifndef TOY_TARGET_H
#define TOY_TARGET_H

#include <speculators.h>

static inline uint32_t toy_hash(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t x = a * 2654435761u + b * 2246822519u + c * 3266489917u + 374761393u;
  x = (x ^ (x >> 15)) * 2246822519u;
  x = (x ^ (x >> 13)) * 3266489917u;
  return x ^ (x >> 16);
}

/* The token after `token` at `position`. */
static inline int32_t toy_next(int32_t token, int32_t position, int32_t vocabulary) {
  return (int32_t)(toy_hash((uint32_t)token, (uint32_t)position, 0) % (uint32_t)vocabulary);
}

/* Runs the target over `count` tokens from `position` on: logits are `[count, vocabulary]`, and
 * `features` has a compact float tensor of at least `first_row + count` rows for each entry of the
 * model's list. */
static inline void toy_run(const spec_model_info *info, const int32_t *tokens, int32_t count,
                           int32_t position, int32_t first_row, float *logits,
                           const spec_tensor *features) {
  int32_t row, column, feature;
  for (row = 0; row < count; row++) {
    float *row_logits = logits + (int64_t)row * info->vocabulary;
    for (column = 0; column < info->vocabulary; column++) {
      row_logits[column] = (float)(toy_hash((uint32_t)tokens[row], (uint32_t)column, 1) % 64) / 16;
    }
    row_logits[toy_next(tokens[row], position + row, info->vocabulary)] = 8;
    for (feature = 0; feature < info->num_features; feature++) {
      int32_t width = info->features[feature].width;
      float *values = (float *)features[feature].data + (int64_t)(first_row + row) * width;
      for (column = 0; column < width; column++) {
        uint32_t hash = toy_hash((uint32_t)tokens[row], (uint32_t)(position + row),
                                 (uint32_t)(column + 1 + feature * width));
        values[column] = (float)(hash % 2001) / 1000 - 1;
      }
    }
  }
}

#endif
