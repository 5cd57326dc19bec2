/* Reads a safetensors file into memory and trusts nothing in it. */
#ifndef ENGINE_SAFETENSORS_H
#define ENGINE_SAFETENSORS_H

#include "json.h"

enum { SAFETENSORS_MAX_DIMENSIONS = 8 };

typedef struct safetensors_tensor {
    const char *name; /* not terminated */
    size_t name_length;
    const char *dtype; /* as the file spells it: F32, F16, BF16, I64, ... */
    int dimensions;
    int64_t shape[SAFETENSORS_MAX_DIMENSIONS];
    const void *data; /* aligned to its element */
    size_t begin;     /* bytes from the first tensor on */
    size_t size;      /* bytes */
    bool used;        /* for the caller's account of what it has read */
} safetensors_tensor;

typedef struct safetensors_file {
    safetensors_tensor *tensors; /* in the order of their data */
    size_t num_tensors;
    unsigned char *data;
    json_document header;
} safetensors_file;

bool safetensors_load(safetensors_file *file, const char *path, engine_error *error);
void safetensors_free(safetensors_file *file);
safetensors_tensor *safetensors_find(const safetensors_file *file, const char *name);

#endif
