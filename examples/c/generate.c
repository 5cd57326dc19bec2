/* Completes prompts with and without speculation and compares both. This file is the integration
 * of libspeculators into a host engine and nothing else: the engine is in engine/, its batches in
 * host.c, what is printed in demo.c, what trees ask of the host in trees.c. Read `decode`: it is
 * the round. */
#include "host.h"
#include "speculators.h"
#include "trees.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { B = HOST_MAX_SEQUENCES, N = DEMO_MAX_NODES, K = N - 1 };
enum { RECORD = SPEC_DECISION_TOKENS + 2 * N };

/* What the library reads and writes beside the host's rows, in memory that both reach. */
typedef struct arrays {
    int32_t drafts[B * K], num_drafts[B], limit[B], position[B], next_token[B], commit[B];
    int32_t parents[B * N], depth[B * N];
    float temperature[B];
    uint64_t seed[B], counters[3 + K];
    int32_t stop_tokens[ENGINE_MAX_EOS], decisions[B * RECORD];
} arrays;

typedef struct drafter {
    spec_context *context;
    spec_context *cpu; /* where the target's keys and values lie, which trees move */
    spec_model *model;
    spec_session *session;
    spec_model_info info;
    spec_tree_shape shape; /* if the options want trees */
    arrays *arrays;
    float *logits;      /* [B * K, C]: what the drafts were drawn from */
    int32_t *token_ids; /* the target's ids of its columns: [C], [B * K, C] or NULL */
    void *workspace;    /* of verification */
    uint64_t workspace_size;
} drafter;

static spec_error error = {.struct_size = sizeof(spec_error)};

static bool fail(void) {
    fprintf(stderr, "%s\n", error.message);
    return false;
}

static spec_tensor matrix(const host *h, float *data, int64_t rows, int64_t columns) {
    return (spec_tensor){.data = data, .device_type = h->device.memory_type,
                         .dtype_code = SPEC_DTYPE_FLOAT, .dtype_bits = 32, .dtype_lanes = 1,
                         .ndim = 2, .shape = {rows, columns}};
}

static bool open_drafter(drafter *d, host *h, const demo_options *options) {
    /* On the CPU, the library works on the engine's own threads. */
    const spec_context_options context = {
        .struct_size = sizeof context, .device_type = h->device.type, .device_id = h->device.id,
        .threads = options->threads, .parallel_for = engine_parallel_for,
        .parallel_for_user = h->threads, .kernel_directory = options->kernels};
    const spec_context_options cpu = {
        .struct_size = sizeof cpu, .device_type = SPEC_DEVICE_CPU, .threads = options->threads,
        .parallel_for = engine_parallel_for, .parallel_for_user = h->threads};
    /* Where the speculator lacks the embedding or the head, the target's is read. */
    const spec_model_options model = {
        .struct_size = sizeof model, .verifier_directory = options->target};
    if (options->tree != 0 && !trees_shape(options, &d->shape))
        return false;
    /* The same page numbers as in the target's cache, so that one block table serves both. */
    const spec_session_options session = {
        .struct_size = sizeof session, .max_sequences = options->batch,
        .max_rows = options->batch * DEMO_MAX_TEXT, .max_drafts = demo_most_drafts(options),
        .max_position = DEMO_MAX_TEXT, .page_size = HOST_PAGE, .max_pages = h->num_pages,
        .max_tree_width = d->shape.width > 0 ? d->shape.width : d->shape.num_nodes,
        .max_tree_depth = d->shape.depth};
    d->info.struct_size = sizeof d->info;
    if (spec_context_create(&context, &d->context, &error) ||
        spec_context_create(&cpu, &d->cpu, &error) ||
        spec_model_load(d->context, options->speculator, &model, &d->model, &error) ||
        spec_model_get_info(d->model, &d->info, &error) ||
        spec_session_create(d->model, &session, &d->session, &error) ||
        spec_session_warm_up(d->session, h->device.stream, &error))
        return fail();
    /* A block has slots for so many levels. */
    if (d->shape.depth > d->info.most_drafts)
        d->shape.depth = d->info.most_drafts;
    /* The hidden states that the speculator reads. */
    for (int32_t i = 0; i < d->info.num_features && i < HOST_MAX_FEATURES; i++) {
        const spec_feature_layer *layer = &d->info.features[i];
        h->features[i] = (engine_feature){layer->layer, layer->stage == SPEC_STAGE_FINAL_NORM, NULL};
    }
    h->num_features = d->info.num_features;
    const size_t rows = (size_t)(options->batch * demo_most_drafts(options));
    const size_t columns = (size_t)d->info.draft_columns;
    d->arrays = device_share(&h->device, sizeof *d->arrays);
    d->logits = device_share(&h->device, rows * columns * sizeof *d->logits);
    const bool has_ids = d->info.has_row_candidates || d->info.draft_token_ids != NULL;
    if (has_ids)
        d->token_ids = device_share(&h->device, rows * columns * sizeof *d->token_ids);
    if (d->token_ids != NULL && d->info.draft_token_ids != NULL)
        memcpy(d->token_ids, d->info.draft_token_ids, columns * sizeof *d->token_ids);
    return h->num_features <= HOST_MAX_FEATURES && d->arrays && d->logits &&
           has_ids == (d->token_ids != NULL) && host_keep_features(h, options);
}

/* The workspace grows when a call needs more. */
static bool verify(drafter *d, host *h, spec_verify_args *args) {
    if (spec_verify_workspace_size(d->context, args, &args->workspace_size, &error)) {
        return false;
    } else if (args->workspace_size > d->workspace_size) {
        d->workspace_size = args->workspace_size;
        d->workspace = device_share(&h->device, d->workspace_size);
    }
    args->workspace = d->workspace;
    return spec_verify(d->context, args, h->device.stream, &error) == SPEC_OK;
}

/* Decodes n texts together, proposing k tokens per round, in trees of a shape or, where that is
 * NULL, in chains; k = 0 is decoding without speculation. */
static bool decode(drafter *d, host *h, const demo_options *options, demo_text *text, int32_t n,
                   int32_t k, const spec_tree_shape *shape, demo_run *run) {
    spec_tensor features[HOST_MAX_FEATURES];
    const engine_info *target = engine_describe(h->model);
    arrays *a = d->arrays;
    memset(a, 0, sizeof *a);
    memcpy(a->stop_tokens, target->eos, sizeof a->stop_tokens);
    for (int32_t b = 0; b < n; b++) {
        a->limit[b] = options->tokens;
        a->temperature[b] = options->temperature;
        a->seed[b] = options->seed + (uint64_t)b;
    }
    const spec_sampling sampling = {.struct_size = sizeof sampling,
                                    .temperature = a->temperature, .seed = a->seed};
    const int32_t columns = d->info.draft_columns;
    const bool by_row = d->info.has_row_candidates;
    const spec_tensor draft_logits = matrix(h, d->logits, (int64_t)n * k, columns);
    const spec_distribution q = {.struct_size = sizeof q, .rows_per_sequence = k,
                                 .logits = draft_logits, .token_ids = d->token_ids,
                                 .token_ids_stride = by_row ? columns : 0};
    /* The most probable tokens of a tree were not drawn: they are followed, not tested by q. */
    const bool drawn = shape == NULL || shape->kind == SPEC_TREE_STOCHASTIC;
    const spec_tree tree = {.struct_size = sizeof tree, .stride = k + 1, .parents = a->parents,
                            .depth = a->depth};
    h->num_features = k > 0 ? d->info.num_features : 0;

    for (bool prompt = true, alive = true; alive; prompt = false) {
        /* 1. The target runs over the prompts, later over each root and its drafts. */
        double clock = demo_clock();
        if (!host_step(h, text, n, a->drafts, k, a->num_drafts, shape ? a->parents : NULL))
            return false;
        demo_lap(&clock, &run->target);

        /* 2. Verify: how many drafts the target agrees with, and its own token after them. */
        spec_verify_args verify_args = {
            .struct_size = sizeof verify_args, .num_sequences = n, .max_drafts = prompt ? 0 : k,
            .logits = matrix(h, h->logits, h->num_logit_rows, target->vocabulary),
            .row_begin = h->logit_begin, .num_drafts = a->num_drafts, .draft_tokens = a->drafts,
            .draft_stride = k, .position = h->root_position, .limit = a->limit,
            .sampling = &sampling, .draft = prompt || k == 0 || !drawn ? NULL : &q,
            .tree = prompt || shape == NULL ? NULL : &tree,
            .stop_tokens = a->stop_tokens, .num_stop_tokens = target->num_eos,
            .decisions = a->decisions, .decision_stride = RECORD,
            .counters = prompt ? NULL : a->counters};
        if (!verify(d, h, &verify_args))
            return fail();
        if (!device_wait(&h->device))
            return false;
        demo_lap(&clock, &run->verify);

        /* 3. The host takes the emitted tokens and sees which texts go on. */
        alive = false;
        for (int32_t b = 0; b < n; b++) {
            const int32_t *decision = &a->decisions[b * RECORD];
            const int32_t emitted = decision[SPEC_DECISION_EMITTED];
            memcpy(&text[b].ids[text[b].len], &decision[SPEC_DECISION_TOKENS],
                   (size_t)emitted * sizeof(int32_t));
            text[b].len += emitted;
            a->limit[b] -= emitted;
            run->passes += !prompt && a->num_drafts[b] >= 0;
            run->emitted += prompt ? 0 : emitted;
            /* Nodes come level by level, so that the last one is on the deepest. */
            const int32_t last = a->num_drafts[b] > 0 ? a->num_drafts[b] : 0;
            demo_count_tested(run, a->depth[b * (k + 1) + last], decision[SPEC_DECISION_ACCEPTED], emitted);
            const bool ends = emitted == 0 || a->limit[b] <= 0 ||
                              (decision[SPEC_DECISION_FLAGS] & SPEC_DECISION_FLAG_STOPPED);
            a->position[b] = text[b].len - 1;
            a->next_token[b] = text[b].ids[a->position[b]];
            /* The rows to commit: all of a prompt, later the root and the accepted drafts, which
             * are the path of the decision record. */
            a->commit[b] = ends ? 0 : prompt ? text[b].prompt : emitted;
            alive = alive || !ends;
            if (n == 1 && run->shown) {
                demo_stream(h->model, &decision[SPEC_DECISION_TOKENS], emitted);
            }
        }
        if (shape && !prompt && !trees_compact(d->cpu, h, n, k, a->decisions, RECORD))
            return false;
        demo_lap(&clock, &run->host);

        /* 4. Draft: commit the verified rows with their features, propose below the new roots. */
        for (int32_t i = 0; i < h->num_features; i++) {
            features[i] = matrix(h, h->features[i].output, h->num_rows, d->info.features[i].width);
        }
        const spec_draft_args draft_args = {
            .struct_size = sizeof draft_args, .num_sequences = n, .num_rows = h->num_rows,
            .max_drafts = k, .position = a->position, .row_count = a->commit,
            .next_token = a->next_token, .row_begin = h->row_begin, .limit = a->limit,
            .row_index = prompt ? NULL : &a->decisions[SPEC_DECISION_TOKENS + k + 1],
            .row_index_stride = RECORD, .tree = &tree, .tree_shape = shape,
            .block_table = h->block_table, .block_table_stride = HOST_PAGES,
            .num_features = h->num_features, .tokens = h->tokens, .features = features,
            .sampling = &sampling, .draft_tokens = a->drafts, .num_proposed = a->num_drafts,
            .draft_logits = drawn ? &draft_logits : NULL,
            .draft_candidates = drawn && by_row ? d->token_ids : NULL};
        if (k > 0 && spec_draft(d->session, &draft_args, h->device.stream, &error))
            return fail();
        if (!device_wait(&h->device))
            return false;
        if (k > 0 && spec_session_poll(d->session, &error))
            return fail();
        for (int32_t b = 0; b < n; b++)
            a->num_drafts[b] = a->commit[b] == 0 ? -1 : a->num_drafts[b]; /* -1: takes no part */
        demo_lap(&clock, &run->draft);
    }
    for (int32_t i = 0; i < 3 + K; i++)
        run->counters[i] += a->counters[i];
    return true;
}

static demo_text plain[DEMO_MAX_PROMPTS], speculative[DEMO_MAX_PROMPTS], chains[DEMO_MAX_PROMPTS];

/* Decodes some texts in each way: with trees also with chains of as many nodes. */
static bool compare(drafter *d, host *h, const demo_options *options, int32_t first, int32_t n,
                    demo_run *without, demo_run *with, demo_run *chain) {
    const bool trees = options->tree != 0;
    const int32_t k = trees ? d->shape.num_nodes - 1 : options->drafts;
    const spec_tree_shape *shape = trees ? &d->shape : NULL;
    demo_begin(h->model, &speculative[first], n);
    const bool ok = decode(d, h, options, &speculative[first], n, k, shape, with);
    demo_end(h->model, &speculative[first], n);
    return ok && decode(d, h, options, &plain[first], n, 0, NULL, without) &&
           (!trees || decode(d, h, options, &chains[first], n, k, NULL, chain));
}

int main(int argc, char **argv) {
    demo_options options;
    drafter d = {0};
    demo_run without = {0}, with = {.shown = true}, chain = {0};
    host *h = demo_parse(argc, argv, &options) ? host_open(&options) : NULL;
    bool ok = h != NULL && open_drafter(&d, h, &options) &&
              demo_encode(h->model, &options, plain) &&
              demo_encode(h->model, &options, speculative) &&
              demo_encode(h->model, &options, chains);
    for (int32_t first = 0; ok && first < options.num_prompts; first += options.batch) {
        const int32_t left = options.num_prompts - first;
        const int32_t n = left < options.batch ? left : options.batch;
        ok = compare(&d, h, &options, first, n, &without, &with, &chain);
    }
    if (ok) {
        demo_report(&options, &without, &with, options.tree != 0 ? &chain : NULL);
        /* Sampled texts have the same law, but the same draws only where the target's own are
         * followed. */
        const bool greedy = options.temperature < 1e-5f, trees = options.tree != 0;
        const bool followed = trees && options.tree != SPEC_TREE_STOCHASTIC;
        ok = (!greedy && !followed) || demo_identical(&options, plain, speculative);
        ok = ok && (!greedy || !trees || demo_identical(&options, plain, chains));
    }
    spec_session_release(d.session);
    spec_model_release(d.model);
    spec_context_release(d.cpu);
    spec_context_release(d.context);
    host_close(h);
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
