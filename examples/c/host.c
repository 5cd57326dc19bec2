#include "host.h"

#include <stdio.h>

static engine_error failure;

static bool fail(void) {
    fprintf(stderr, "%s\n", failure.message);
    return false;
}

static bool load_target(host *h, const demo_options *options) {
    h->num_pages = options->batch * HOST_PAGES;
    for (int32_t i = 0; i < h->num_pages; i++) {
        h->block_table[i] = i;
    }
    h->threads = engine_threads_create(options->threads, &failure);
    h->model = h->threads ? engine_load(options->target, h->threads, &failure) : NULL;
    h->cache = h->model ? engine_cache_create(h->model, h->num_pages, HOST_PAGE, &failure) : NULL;
    if (h->cache == NULL) {
        return fail();
    }
    const size_t rows = (size_t)(options->batch * (demo_most_drafts(options) + 1));
    const size_t vocabulary = (size_t)engine_describe(h->model)->vocabulary;
    h->logits = device_share(&h->device, rows * vocabulary * sizeof *h->logits);
    return h->logits != NULL;
}

host *host_open(const demo_options *options) {
    device shared;
    const bool open = device_open(&shared, options->cuda, options->device);
    host *h = open ? device_share(&shared, sizeof *h) : NULL;
    if (h == NULL) {
        device_close(&shared);
        return NULL;
    }
    h->device = shared;
    if (!load_target(h, options)) {
        host_close(h);
        return NULL;
    }
    return h;
}

bool host_keep_features(host *h, const demo_options *options) {
    const size_t rows = (size_t)options->batch * DEMO_MAX_TEXT;
    const size_t width = (size_t)engine_describe(h->model)->hidden_size;
    for (int32_t i = 0; i < h->num_features; i++) {
        h->features[i].output = device_share(&h->device, rows * width * sizeof(float));
        if (h->features[i].output == NULL) {
            return false;
        }
    }
    return true;
}

void host_close(host *h) {
    if (h != NULL) {
        engine_cache_free(h->cache);
        engine_free(h->model);
        engine_threads_free(h->threads);
        device shared = h->device; /* which the struct itself belongs to */
        device_close(&shared);
    }
}

bool host_step(host *h, const demo_text *text, int32_t n, const int32_t *drafts, int32_t stride,
               const int32_t *num_drafts, const int32_t *parents) {
    int32_t first_position[HOST_MAX_SEQUENCES];
    h->num_rows = 0;
    h->num_logit_rows = 0;
    for (int32_t b = 0; b < n; b++) {
        const bool prompt = text[b].len == text[b].prompt;
        h->row_begin[b] = h->num_rows;
        h->row_count[b] = num_drafts[b] < 0 ? 0 : prompt ? text[b].prompt : num_drafts[b] + 1;
        h->logit_begin[b] = h->num_logit_rows;
        h->root_position[b] = text[b].len - 1;
        first_position[b] = prompt ? 0 : h->root_position[b];
        for (int32_t i = 0; i < h->row_count[b]; i++) {
            const int32_t position = first_position[b] + i;
            const int32_t draft = position - text[b].len;
            if (position >= h->root_position[b]) {
                h->logit_rows[h->num_logit_rows++] = h->num_rows;
            }
            h->parents[h->num_rows] =
                prompt || parents == NULL ? i - 1 : parents[b * (stride + 1) + i];
            h->tokens[h->num_rows++] =
                draft < 0 ? text[b].ids[position] : drafts[b * stride + draft];
        }
    }
    const engine_batch batch = {
        .num_sequences = n,
        .num_rows = h->num_rows,
        .tokens = h->tokens,
        .row_begin = h->row_begin,
        .row_count = h->row_count,
        .position = first_position,
        .parents = h->parents,
        .block_table = h->block_table,
        .block_table_stride = HOST_PAGES,
        .features = h->features,
        .num_features = h->num_features,
        .logit_rows = h->logit_rows,
        .num_logit_rows = h->num_logit_rows,
        .logits = h->logits,
    };
    return engine_forward(h->model, h->cache, &batch, &failure) || fail();
}
