#include "trees.h"

#include <stdio.h>

enum { MAX_LAYERS = 256, PATHS = 25, LENGTH = 5 };

/* The tree of EAGLE (Li et al., 2024): for each node the ranks on the way from the root. Here they
 * are in the order of how likely they are, so that the first of them are always a tree. */
static const int32_t paths[PATHS][LENGTH] = {
    {0, -1, -1, -1, -1}, {0, 0, -1, -1, -1}, {0, 0, 0, -1, -1}, {0, 0, 0, 0, -1},
    {1, -1, -1, -1, -1}, {0, 0, 0, 0, 0},    {0, 1, -1, -1, -1}, {1, 0, -1, -1, -1},
    {0, 0, 1, -1, -1},   {2, -1, -1, -1, -1}, {0, 1, 0, -1, -1}, {1, 0, 0, -1, -1},
    {0, 0, 0, 1, -1},    {0, 2, -1, -1, -1}, {2, 0, -1, -1, -1}, {3, -1, -1, -1, -1},
    {0, 0, 0, 0, 1},     {0, 0, 2, -1, -1},  {0, 2, 0, -1, -1},  {1, 1, -1, -1, -1},
    {3, 0, -1, -1, -1},  {0, 0, 0, 2, -1},   {0, 1, 1, -1, -1},  {2, 1, -1, -1, -1},
    {0, 2, 1, -1, -1},
};

static spec_error error = {.struct_size = sizeof(spec_error)};

static bool fail(void) {
    fprintf(stderr, "%s\n", error.message);
    return false;
}

bool trees_shape(const demo_options *options, spec_tree_shape *shape) {
    static int32_t parents[PATHS + 1];
    *shape = (spec_tree_shape){
        .struct_size = sizeof *shape, .kind = options->tree, .num_nodes = options->nodes};
    if (options->tree == SPEC_TREE_DYNAMIC) {
        shape->depth = options->depth < options->nodes - 1 ? options->depth : options->nodes - 1;
        shape->width = options->width;
        return true;
    }
    if (options->nodes > PATHS + 1) {
        fprintf(stderr, "trees: expected at most %d nodes, found %d\n", PATHS + 1,
                (int)options->nodes);
        return false;
    }
    shape->parents = parents;
    return spec_tree_from_paths(paths[0], options->nodes - 1, LENGTH, parents, NULL, PATHS + 1,
                                &shape->num_nodes, &error) == SPEC_OK || fail();
}

bool trees_compact(const spec_context *cpu, const host *h, int32_t n, int32_t k,
                   const int32_t *decisions, int32_t stride) {
    const engine_cache_info cache = engine_cache_describe(h->cache);
    void *keys[MAX_LAYERS], *values[MAX_LAYERS];
    int32_t flags[HOST_MAX_SEQUENCES];
    for (int32_t i = 0; i < cache.num_layers && i < MAX_LAYERS; i++) {
        keys[i] = engine_cache_keys(h->cache, i);
        values[i] = engine_cache_values(h->cache, i);
    }
    const spec_kv_compact_args args = {
        .struct_size = sizeof args, .num_sequences = n, .max_nodes = k + 1,
        .position = decisions + SPEC_DECISION_NEXT_POSITION,
        .row_count = decisions + SPEC_DECISION_EMITTED,
        .path = decisions + SPEC_DECISION_TOKENS + k + 1, .decision_stride = stride,
        .path_stride = stride, .block_table = h->block_table, .block_table_stride = HOST_PAGES,
        .page_size = cache.page_size, .num_pages = cache.num_pages, .layout = SPEC_KV_HND,
        .num_layers = cache.num_layers, .num_heads = cache.num_heads,
        .head_bytes = (int64_t)cache.head_bytes, .keys = keys, .values = values,
        .page_stride = (int64_t)cache.page_bytes, .sequence_flags = flags};
    if (cache.num_layers > MAX_LAYERS || spec_kv_compact(cpu, &args, NULL, &error)) {
        return fail();
    }
    for (int32_t b = 0; b < n; b++) {
        if (flags[b] != 0) {
            fprintf(stderr, "sequence %d: its accepted rows could not be moved\n", (int)b);
            return false;
        }
    }
    return true;
}
