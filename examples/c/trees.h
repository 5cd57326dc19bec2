/* What trees ask of a host beside chains: a shape, and moving the accepted rows in its own KV. */
#ifndef TREES_H
#define TREES_H

#include "host.h"
#include "speculators.h"

/* Describes the trees of the options; false (and a message) if there are none of that size. */
bool trees_shape(const demo_options *options, spec_tree_shape *shape);

/* Moves the keys and values of the accepted nodes behind their root, in the target's pages, as
 * decision records of trees with k drafts say. The pages are memory of the engine, on the CPU, and
 * so is the context. */
bool trees_compact(const spec_context *cpu, const host *h, int32_t n, int32_t k,
                   const int32_t *decisions, int32_t stride);

#endif
