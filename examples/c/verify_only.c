/*
 * A host that drafts by itself and uses libspeculators for verification alone.
 *
 * Its drafter looks the last tokens up in the text so far and proposes what followed them the last
 * time (prompt lookup). That costs nothing and needs no model; on text that repeats itself, as
 * code does, it is often right. Verification needs a context and nothing else.
 */
#include "host.h"
#include "speculators.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { K = DEMO_MAX_DRAFTS, RECORD = SPEC_DECISION_TOKENS + 2 * (K + 1), LOOKUP = 3 };

/* What verification reads and writes beside the logits, in memory that both reach. */
typedef struct arrays {
    int32_t drafts[K], num_drafts, decision[RECORD], limit, stop_tokens[ENGINE_MAX_EOS];
    float temperature;
    uint64_t seed, counters[3 + K];
    _Alignas(64) char workspace[1 << 20];
} arrays;

static spec_error error = {.struct_size = sizeof(spec_error)};

/* Proposes at most k tokens: what followed the latest earlier place of the last LOOKUP tokens. */
static int32_t look_up(const demo_text *text, int32_t k, int32_t *drafts) {
    const int32_t *end = &text->ids[text->len];
    for (int32_t first = text->len - LOOKUP - 1; k > 0 && first >= 0; first--) {
        const int32_t *place = &text->ids[first];
        if (memcmp(place, end - LOOKUP, LOOKUP * sizeof *place) == 0) {
            const int32_t known = (int32_t)(end - (place + LOOKUP));
            const int32_t count = known < k ? known : k;
            memcpy(drafts, place + LOOKUP, (size_t)count * sizeof *drafts);
            return count;
        }
    }
    return 0;
}

static bool fail(void) {
    fprintf(stderr, "%s\n", error.message);
    return false;
}

static bool decode(spec_context *context, host *h, arrays *a, const demo_options *options,
                   demo_text *text, int32_t k, demo_run *run) {
    const engine_info *target = engine_describe(h->model);
    const spec_sampling sampling = {.struct_size = sizeof sampling,
                                    .temperature = &a->temperature, .seed = &a->seed};
    memset(a, 0, sizeof *a);
    memcpy(a->stop_tokens, target->eos, sizeof a->stop_tokens);
    a->temperature = options->temperature;
    a->seed = options->seed;
    a->limit = options->tokens;
    bool prompt = true;
    do {
        double clock = demo_clock();
        if (!host_step(h, text, 1, a->drafts, k, &a->num_drafts, NULL)) {
            return false;
        }
        demo_lap(&clock, &run->target);

        /* The drafts come from no distribution: by default the target's token is drawn at each
         * place and drafts are followed while they are equal to it, so the text is the one that
         * decoding without speculation gives for the same seed. */
        spec_verify_args args = {
            .struct_size = sizeof args, .num_sequences = 1, .max_drafts = k,
            .logits = {.data = h->logits, .device_type = h->device.memory_type,
                       .dtype_code = SPEC_DTYPE_FLOAT, .dtype_bits = 32, .dtype_lanes = 1,
                       .ndim = 2, .shape = {h->num_logit_rows, target->vocabulary}},
            .num_drafts = &a->num_drafts, .draft_tokens = a->drafts,
            .position = h->root_position, .limit = &a->limit, .sampling = &sampling,
            .stop_tokens = a->stop_tokens, .num_stop_tokens = target->num_eos,
            .decisions = a->decision, .decision_stride = RECORD,
            .counters = prompt ? NULL : a->counters, .workspace = a->workspace};
        if (spec_verify_workspace_size(context, &args, &args.workspace_size, &error) ||
            args.workspace_size > sizeof a->workspace ||
            spec_verify(context, &args, h->device.stream, &error)) {
            return fail();
        }
        if (!device_wait(&h->device)) {
            return false;
        }
        demo_lap(&clock, &run->verify);

        const int32_t emitted = a->decision[SPEC_DECISION_EMITTED];
        memcpy(&text->ids[text->len], &a->decision[SPEC_DECISION_TOKENS],
               (size_t)emitted * sizeof *text->ids);
        text->len += emitted;
        a->limit -= emitted;
        run->passes += !prompt;
        run->emitted += prompt ? 0 : emitted;
        demo_count_tested(run, a->num_drafts, a->decision[SPEC_DECISION_ACCEPTED], emitted);
        prompt = false;
        demo_lap(&clock, &run->host);
        a->num_drafts = look_up(text, k < a->limit - 1 ? k : a->limit - 1, a->drafts);
        demo_lap(&clock, &run->draft);
    } while (a->limit > 0 && !(a->decision[SPEC_DECISION_FLAGS] & SPEC_DECISION_FLAG_STOPPED));
    for (int32_t i = 0; i < 3 + K; i++) {
        run->counters[i] += a->counters[i];
    }
    return true;
}

static demo_text plain[DEMO_MAX_PROMPTS], speculative[DEMO_MAX_PROMPTS];

int main(int argc, char **argv) {
    demo_options options;
    demo_run without = {0}, with = {0};
    spec_context *context = NULL;
    host *h = demo_parse(argc, argv, &options) ? host_open(&options) : NULL;
    arrays *a = h != NULL ? device_share(&h->device, sizeof *a) : NULL;
    bool ok = a != NULL && demo_encode(h->model, &options, plain) &&
              demo_encode(h->model, &options, speculative);
    if (ok) {
        const spec_context_options device = {.struct_size = sizeof device,
                                             .device_type = h->device.type,
                                             .device_id = h->device.id,
                                             .kernel_directory = options.kernels};
        ok = spec_context_create(&device, &context, &error) == SPEC_OK || fail();
    }
    for (int32_t i = 0; ok && i < options.num_prompts; i++) {
        ok = decode(context, h, a, &options, &speculative[i], options.drafts, &with) &&
             decode(context, h, a, &options, &plain[i], 0, &without);
        demo_begin(h->model, &speculative[i], 1);
        demo_end(h->model, &speculative[i], 1);
    }
    if (ok) {
        demo_report(&options, &without, &with, NULL);
        ok = demo_identical(&options, plain, speculative); /* sampled ones too: the same draws */
    }
    spec_context_release(context);
    host_close(h);
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
