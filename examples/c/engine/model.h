/* What a loaded model is made of; shared by model.c and forward.c. */
#ifndef ENGINE_MODEL_H
#define ENGINE_MODEL_H

#include "safetensors.h"
#include "tokenizer.h"

/* Dot products run in this many lanes, so the columns of all weights are a multiple of it. */
enum { ENGINE_LANES = 8 };

typedef struct linear {
    engine_tensor weight;
    const float *bias; /* [rows], NULL if there is none */
} linear;

typedef struct layer {
    const float *attention_norm; /* [H] */
    linear query, key, value, output;
    const float *query_norm, *key_norm; /* [head_dim], NULL if there are none */
    const float *feed_norm;             /* [H] */
    linear gate, up, down;
} layer;

struct engine_model {
    engine_info info;
    engine_threads *threads;
    tokenizer *tokenizer;
    int32_t num_heads, num_kv_heads, head_dim;
    int32_t intermediate_size;
    float norm_epsilon;
    float *rope_frequency; /* [head_dim / 2] */
    layer *layers;
    engine_tensor embedding, head;
    const float *final_norm;
    safetensors_file *files; /* hold the weights that are used as they are stored */
    size_t num_files;
    float **widened; /* the weights that are not */
    size_t num_widened;
};

#endif
