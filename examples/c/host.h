/* The part of the example host that knows nothing of speculation: a target model with its KV
 * pages, and steps of it over several texts. The target runs on the CPU. All that a step reads and
 * writes lies in memory that is shared with the device of the options, this struct included. */
#ifndef HOST_H
#define HOST_H

#include "demo.h"
#include "device.h"

/* The nodes of a tree that ends a text lie beyond the text's own positions. */
enum { HOST_PAGE = 16, HOST_PAGES = (DEMO_MAX_TEXT + DEMO_MAX_NODES) / HOST_PAGE };
enum { HOST_MAX_FEATURES = 8 };
enum { HOST_MAX_SEQUENCES = DEMO_MAX_PROMPTS };

typedef struct host {
    device device;
    engine_threads *threads;
    engine_model *model;
    engine_cache *cache;
    int32_t num_pages;
    int32_t block_table[HOST_MAX_SEQUENCES * HOST_PAGES];
    engine_feature features[HOST_MAX_FEATURES]; /* wanted of every step */
    int32_t num_features;

    /* The rows of the last step. */
    int32_t num_rows;
    int32_t tokens[HOST_MAX_SEQUENCES * DEMO_MAX_TEXT];
    int32_t parents[HOST_MAX_SEQUENCES * DEMO_MAX_TEXT];
    int32_t row_begin[HOST_MAX_SEQUENCES];
    int32_t row_count[HOST_MAX_SEQUENCES];
    /* Its logits: for each sequence those of the root and of the drafts below it. */
    int32_t num_logit_rows;
    int32_t logit_rows[HOST_MAX_SEQUENCES * DEMO_MAX_NODES];
    int32_t logit_begin[HOST_MAX_SEQUENCES];
    int32_t root_position[HOST_MAX_SEQUENCES];
    float *logits;
} host;

/* Opens the device, loads the target and makes room for the batch; NULL (and a message) if that
 * fails. */
host *host_open(const demo_options *options);
/* Makes room for the features; the layers are set by the caller. */
bool host_keep_features(host *h, const demo_options *options);
/* Gives everything back, when the library's handles have been released. NULL is ignored. */
void host_close(host *h);

/*
 * Runs the target over n texts: a text without emitted tokens over its prompt, any other over its
 * last token, the root, and num_drafts[b] drafts. A negative number leaves the text out. `parents`
 * are those of the nodes of trees, [n, stride + 1]; NULL: the drafts are chains.
 */
bool host_step(host *h, const demo_text *text, int32_t n, const int32_t *drafts, int32_t stride,
               const int32_t *num_drafts, const int32_t *parents);

#endif
