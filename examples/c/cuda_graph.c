/*
 * Captures rounds in CUDA graphs and replays them, as an engine on a GPU does.
 *
 * Requests come and go, so the batch changes from round to round. There is a graph for each of a
 * few batch sizes, the buckets; a round launches the smallest one that holds all running requests.
 * The arguments of a graph are those of its capture, so everything has a fixed place:
 *
 *   device memory    what a target on the device would leave there (logits, features), and what
 *                    verification and drafting hand to each other (decision records, drafts). No
 *                    step waits for another one on the host.
 *   page-locked      the arrays that the scheduler of the host rewrites between launches (tokens,
 *   host memory      limits, block table) and copies of the results for its own use.
 *
 * The target of this example runs on the CPU. Its rows are uploaded, and it has to know the drafts,
 * which is the only reason to wait once per round. All requests are served twice, with a launch of
 * each kernel and with graphs, and the texts are compared; greedy ones also with what the target
 * says by itself.
 */
#include "host.h"
#include "speculators.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { B = HOST_MAX_SEQUENCES, K = DEMO_MAX_DRAFTS, RECORD = SPEC_DECISION_TOKENS + 2 * (K + 1) };
enum { MAX_BUCKETS = 7, ROUNDS_BETWEEN_ARRIVALS = 3 };
enum { LAUNCHES, GRAPHS, WAYS };

/* Page-locked. Sequence b has the rows b * (k + 1) to b * (k + 1) + k. */
typedef struct host_arrays {
    int32_t tokens[B * (K + 1)], limit[B], stop_tokens[ENGINE_MAX_EOS];
    float temperature[B];
    uint64_t seed[B];
    int32_t decisions[B * RECORD], drafts[B * K], num_drafts[B]; /* copies of results */
} host_arrays;

/* Addresses in memory of the device. */
typedef struct device_arrays {
    float *logits, *features[HOST_MAX_FEATURES], *draft_logits;
    int32_t *decisions, *drafts, *num_drafts, *token_ids;
    void *workspace;
} device_arrays;

typedef struct bucket {
    int32_t size;
    CUgraphExec graph;
    int64_t rounds[WAYS], tokens;
    double enqueueing[WAYS]; /* seconds of the host */
    double running[WAYS];    /* seconds of the device */
} bucket;

typedef struct server {
    host *host;
    spec_context *context;
    spec_model *model;
    spec_session *session;
    spec_model_info info;
    int32_t k, capacity; /* drafts of a round, and the size of the largest bucket */
    bool samples;
    host_arrays *on_host;
    device_arrays on_device;
    uint64_t workspace_size;
    CUevent begin, end; /* of a round's work */
    bucket buckets[MAX_BUCKETS];
    int32_t num_buckets;
} server;

static spec_error error = {.struct_size = sizeof(spec_error)};

static bool fail(void) {
    fprintf(stderr, "%s\n", error.message);
    return false;
}

static spec_tensor matrix(const server *s, float *data, int64_t rows, int64_t columns) {
    return (spec_tensor){.data = data, .device_type = SPEC_DEVICE_CUDA,
                         .device_id = s->host->device.id, .dtype_code = SPEC_DTYPE_FLOAT,
                         .dtype_bits = 32, .dtype_lanes = 1, .ndim = 2, .shape = {rows, columns}};
}

/* ---- The round ---- */

/* The structs that a round's arguments point to. They are read by the calls, not by the work. */
typedef struct round_arguments {
    spec_verify_args verify;
    spec_draft_args draft;
    spec_sampling sampling;
    spec_distribution q;
    spec_tensor draft_logits, features[HOST_MAX_FEATURES];
} round_arguments;

/* Describes a round of n sequences from the first-th on. */
static void describe(const server *s, int32_t first, int32_t n, round_arguments *r) {
    const host_arrays *h = s->on_host;
    const device_arrays *d = &s->on_device;
    const engine_info *target = engine_describe(s->host->model);
    const int64_t rows = (int64_t)n * (s->k + 1), width = s->info.draft_vocabulary;
    int32_t *decisions = d->decisions + first * RECORD;
    r->sampling = (spec_sampling){.struct_size = sizeof r->sampling, .seed = h->seed + first,
                                  .temperature = h->temperature + first};
    r->draft_logits =
        matrix(s, d->draft_logits + first * s->k * width, (int64_t)n * s->k, width);
    r->q = (spec_distribution){.struct_size = sizeof r->q, .rows_per_sequence = s->k,
                               .logits = r->draft_logits, .token_ids = d->token_ids};
    for (int32_t i = 0; i < s->info.num_features; i++) {
        r->features[i] = matrix(s, d->features[i], rows, s->info.features[i].width);
    }
    float *logits = d->logits + (int64_t)first * (s->k + 1) * target->vocabulary;
    r->verify = (spec_verify_args){
        .struct_size = sizeof r->verify, .num_sequences = n, .max_drafts = s->k,
        .logits = matrix(s, logits, rows, target->vocabulary),
        .num_drafts = d->num_drafts + first, .draft_tokens = d->drafts + first * s->k,
        .position = decisions + SPEC_DECISION_NEXT_POSITION, .position_stride = RECORD,
        .limit = h->limit + first, .sampling = &r->sampling, .draft = s->samples ? &r->q : NULL,
        .stop_tokens = h->stop_tokens, .num_stop_tokens = target->num_eos,
        .decisions = decisions, .decision_stride = RECORD, .workspace = d->workspace,
        .workspace_size = s->workspace_size};
    /* A sequence that emits nothing has no rows to commit: it takes no part. */
    r->draft = (spec_draft_args){
        .struct_size = sizeof r->draft, .num_sequences = n, .num_rows = (int32_t)rows,
        .max_drafts = s->k, .position = decisions + SPEC_DECISION_NEXT_POSITION,
        .row_count = decisions + SPEC_DECISION_EMITTED,
        .next_token = decisions + SPEC_DECISION_NEXT_TOKEN, .decision_stride = RECORD,
        .block_table = s->host->block_table + first * HOST_PAGES,
        .block_table_stride = HOST_PAGES, .num_features = s->info.num_features,
        .features = r->features, .tokens = h->tokens, .sampling = &r->sampling,
        .draft_tokens = d->drafts + first * s->k, .num_proposed = d->num_drafts + first,
        .draft_logits = s->samples ? &r->draft_logits : NULL};
}

/* Enqueues a round: the same two calls, whether the stream is being captured or not. */
static bool enqueue(const server *s, const round_arguments *r) {
    CUstream stream = s->host->device.stream;
    return (spec_verify(s->context, &r->verify, stream, &error) == SPEC_OK &&
            spec_draft(s->session, &r->draft, stream, &error) == SPEC_OK) || fail();
}

static bool capture(const server *s, bucket *u) {
    const device *d = &s->host->device;
    round_arguments r;
    CUgraph graph;
    describe(s, 0, u->size, &r);
    return CUDA(&d->cuda, cuStreamBeginCapture(d->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)) &&
           enqueue(s, &r) && CUDA(&d->cuda, cuStreamEndCapture(d->stream, &graph)) &&
           CUDA(&d->cuda, cuGraphInstantiate(&u->graph, graph, 0)) &&
           CUDA(&d->cuda, cuGraphDestroy(graph));
}

/* Launches a round and measures what that takes the host. */
static bool launch(const server *s, bucket *u, int way) {
    const device *d = &s->host->device;
    round_arguments r;
    describe(s, 0, u->size, &r);
    if (!CUDA(&d->cuda, cuEventRecord(s->begin, d->stream))) {
        return false;
    }
    double clock = demo_clock();
    const bool ok = way == GRAPHS ? CUDA(&d->cuda, cuGraphLaunch(u->graph, d->stream))
                                  : enqueue(s, &r);
    demo_lap(&clock, &u->enqueueing[way]);
    return ok && CUDA(&d->cuda, cuEventRecord(s->end, d->stream));
}

/* ---- What goes to the device and comes back ---- */

static bool upload(const server *s, float *to, const float *from, int64_t elements) {
    const device *d = &s->host->device;
    return CUDA(&d->cuda, cuMemcpyHtoDAsync((CUdeviceptr)to, from,
                                            (size_t)elements * sizeof *from, d->stream));
}

/* Uploads the rows of sequence b: the last logit_rows ones' logits to where verification looks, the
 * features of all from row `first` on. */
static bool upload_rows(const server *s, int32_t b, int32_t logit_rows, int32_t first) {
    const host *h = s->host;
    const int64_t vocabulary = engine_describe(h->model)->vocabulary;
    bool ok = upload(s, s->on_device.logits + (int64_t)b * (s->k + 1) * vocabulary,
                     h->logits + h->logit_begin[b] * vocabulary, logit_rows * vocabulary);
    for (int32_t i = 0; ok && i < s->info.num_features; i++) {
        const int64_t width = s->info.features[i].width;
        ok = upload(s, s->on_device.features[i] + first * width,
                    h->features[i].output + h->row_begin[b] * width, h->row_count[b] * width);
    }
    return ok;
}

/* Copies the results of n sequences from the first-th on for the host, and waits for them. */
static bool download(const server *s, int32_t first, int32_t n) {
    const device *d = &s->host->device;
    const struct {
        int32_t *to, *from;
        int32_t width;
    } results[] = {{s->on_host->decisions, s->on_device.decisions, RECORD},
                   {s->on_host->drafts, s->on_device.drafts, s->k},
                   {s->on_host->num_drafts, s->on_device.num_drafts, 1}};
    for (size_t i = 0; i < sizeof results / sizeof *results; i++) {
        const int32_t place = first * results[i].width;
        if (!CUDA(&d->cuda, cuMemcpyDtoHAsync(
                                results[i].to + place, (CUdeviceptr)(results[i].from + place),
                                (size_t)(n * results[i].width) * sizeof(int32_t), d->stream))) {
            return false;
        }
    }
    return device_wait(d) && (spec_session_poll(s->session, &error) == SPEC_OK || fail());
}

/* Takes the emitted tokens of sequence b; 0 when it has ended. */
static int32_t take(const server *s, demo_text *text, int32_t b) {
    const int32_t *decision = &s->on_host->decisions[b * RECORD];
    const int32_t emitted = decision[SPEC_DECISION_EMITTED];
    const bool stopped = decision[SPEC_DECISION_FLAGS] & SPEC_DECISION_FLAG_STOPPED;
    memcpy(&text[b].ids[text[b].len], &decision[SPEC_DECISION_TOKENS],
           (size_t)emitted * sizeof(int32_t));
    text[b].len += emitted;
    s->on_host->limit[b] = stopped ? 0 : s->on_host->limit[b] - emitted;
    return emitted;
}

/* ---- Serving ---- */

/* Runs the prompt of sequence b: the first token, and the first drafts below it. */
static bool admit(server *s, demo_text *text, int32_t b, const demo_options *options) {
    host *h = s->host;
    int32_t num_drafts[B];
    for (int32_t i = 0; i < b; i++) {
        num_drafts[i] = -1; /* not this time */
    }
    num_drafts[b] = 0;
    s->on_host->limit[b] = options->tokens;
    if (!host_step(h, text, b + 1, s->on_host->drafts, s->k, num_drafts, NULL) ||
        !upload_rows(s, b, 1, 0)) {
        return false;
    }
    round_arguments r;
    describe(s, b, 1, &r);
    r.verify.max_drafts = 0;
    r.verify.num_drafts = NULL;
    r.verify.draft = NULL;
    r.verify.position = &h->root_position[b];
    r.draft.row_count = &h->row_count[b]; /* all of the prompt */
    r.draft.tokens = h->tokens;
    r.draft.num_rows = h->num_rows;
    for (int32_t i = 0; i < s->info.num_features; i++) {
        r.features[i].shape[0] = h->num_rows;
    }
    if (!enqueue(s, &r) || !download(s, b, 1)) {
        return false;
    }
    take(s, text, b);
    return true;
}

/* Runs the target over n sequences and lays its rows out as the graphs expect them. Drafts that
 * the limit does not leave room for need no rows: whatever stands in their place is not emitted. */
static bool run_target(server *s, const demo_text *text, int32_t n) {
    host_arrays *a = s->on_host;
    for (int32_t b = 0; b < n; b++) {
        const int32_t room = a->limit[b] - 1;
        a->num_drafts[b] = a->num_drafts[b] < room ? a->num_drafts[b] : room; /* -1: none at all */
    }
    bool ok = host_step(s->host, text, n, a->drafts, s->k, a->num_drafts, NULL);
    for (int32_t b = 0; ok && b < n; b++) {
        const int32_t rows = s->host->row_count[b], first = b * (s->k + 1);
        memcpy(&a->tokens[first], &s->host->tokens[s->host->row_begin[b]],
               (size_t)rows * sizeof *a->tokens);
        ok = rows == 0 || upload_rows(s, b, rows, first);
    }
    return ok;
}

static bool serve_round(server *s, demo_text *text, int32_t n, int way) {
    const cuda_driver *cuda = &s->host->device.cuda;
    bucket *u = s->buckets;
    while (u->size < n) {
        u++;
    }
    float milliseconds;
    if (!run_target(s, text, n) || !launch(s, u, way) || !download(s, 0, n) ||
        !CUDA(cuda, cuEventElapsedTime(&milliseconds, s->begin, s->end))) {
        return false;
    }
    u->running[way] += 1e-3 * (double)milliseconds;
    u->rounds[way]++;
    for (int32_t b = 0; b < n; b++) {
        const int32_t emitted = take(s, text, b);
        u->tokens += way == GRAPHS ? emitted : 0;
    }
    return true;
}

/* Serves n requests, which arrive one after the other. */
static bool serve(server *s, demo_text *text, int32_t n, int way, const demo_options *options) {
    const device *d = &s->host->device;
    const device_arrays *on_device = &s->on_device;
    const size_t size = sizeof(int32_t) * (size_t)s->capacity;
    memset(s->on_host->limit, 0, sizeof s->on_host->limit); /* who has not arrived emits nothing */
    if (!CUDA(&d->cuda, cuMemsetD8Async((CUdeviceptr)on_device->decisions, 0, size * RECORD,
                                        d->stream)) ||
        !CUDA(&d->cuda, cuMemsetD8Async((CUdeviceptr)on_device->num_drafts, 0, size, d->stream))) {
        return false;
    }
    int32_t arrived = 0, running = 0;
    for (int64_t round = 0; arrived < n || running > 0; round++) {
        if (arrived < n && round % ROUNDS_BETWEEN_ARRIVALS == 0 &&
            !admit(s, text, arrived++, options)) {
            return false;
        }
        /* Sequences keep their places; those from the last running one on are left out. */
        for (running = arrived; running > 0 && s->on_host->limit[running - 1] <= 0; running--) {
        }
        if (running > 0 && !serve_round(s, text, running, way)) {
            return false;
        }
    }
    return true;
}

static int32_t argmax(const float *row, int32_t columns) {
    int32_t best = 0;
    for (int32_t i = 1; i < columns; i++) {
        best = row[i] > row[best] ? i : best;
    }
    return best;
}

/* Decodes the target's own texts greedily, without the library. */
static bool decode_alone(host *h, demo_text *text, int32_t n, const demo_options *options) {
    const engine_info *target = engine_describe(h->model);
    int32_t num_drafts[B] = {0};
    h->num_features = 0;
    for (int32_t running = n; running > 0;) {
        if (!host_step(h, text, n, NULL, 0, num_drafts, NULL)) {
            return false;
        }
        for (int32_t b = 0; b < n; b++) {
            if (num_drafts[b] < 0) {
                continue;
            }
            const float *row = &h->logits[(int64_t)h->logit_begin[b] * target->vocabulary];
            const int32_t token = argmax(row, target->vocabulary);
            bool ends = text[b].len + 1 == text[b].prompt + options->tokens;
            for (int32_t i = 0; i < target->num_eos; i++) {
                ends = ends || token == target->eos[i];
            }
            text[b].ids[text[b].len++] = token;
            num_drafts[b] = ends ? -1 : 0;
            running -= ends;
        }
    }
    return true;
}

/* ---- Set-up ---- */

static bool open_speculator(server *s, const demo_options *options) {
    host *h = s->host;
    const spec_context_options context = {
        .struct_size = sizeof context, .device_type = SPEC_DEVICE_CUDA, .device_id = h->device.id,
        .kernel_directory = options->kernels};
    const spec_model_options model = {
        .struct_size = sizeof model, .verifier_directory = options->target};
    const int32_t rows = s->capacity * (s->k + 1);
    const spec_session_options session = {
        .struct_size = sizeof session, .max_sequences = s->capacity,
        .max_rows = rows > DEMO_MAX_TEXT ? rows : DEMO_MAX_TEXT, .max_drafts = s->k,
        .max_position = DEMO_MAX_TEXT, .page_size = HOST_PAGE, .max_pages = h->num_pages};
    s->info.struct_size = sizeof s->info;
    if (spec_context_create(&context, &s->context, &error) ||
        spec_model_load(s->context, options->speculator, &model, &s->model, &error) ||
        spec_model_get_info(s->model, &s->info, &error) ||
        spec_session_create(s->model, &session, &s->session, &error) ||
        spec_session_warm_up(s->session, h->device.stream, &error)) {
        return fail();
    }
    h->num_features = s->info.num_features;
    for (int32_t i = 0; i < h->num_features && i < HOST_MAX_FEATURES; i++) {
        const spec_feature_layer *layer = &s->info.features[i];
        h->features[i] = (engine_feature){layer->layer, layer->stage == SPEC_STAGE_FINAL_NORM, NULL};
    }
    return h->num_features <= HOST_MAX_FEATURES && host_keep_features(h, options);
}

static void *allocate(const server *s, int64_t bytes, bool *ok) {
    CUdeviceptr address = 0;
    *ok = *ok && CUDA(&s->host->device.cuda, cuMemAlloc(&address, (size_t)bytes));
    return (void *)address;
}

static bool allocate_arrays(server *s, const demo_options *options) {
    const engine_info *target = engine_describe(s->host->model);
    const int64_t n = s->capacity, word = sizeof(int32_t), width = s->info.draft_vocabulary;
    const int64_t rows = n * (s->k + 1) > DEMO_MAX_TEXT ? n * (s->k + 1) : DEMO_MAX_TEXT;
    host_arrays *h = s->on_host = device_share(&s->host->device, sizeof *h);
    device_arrays *d = &s->on_device;
    bool ok = h != NULL;
    d->logits = allocate(s, n * (s->k + 1) * target->vocabulary * word, &ok);
    for (int32_t i = 0; i < s->info.num_features; i++) {
        d->features[i] = allocate(s, rows * s->info.features[i].width * word, &ok);
    }
    d->draft_logits = allocate(s, n * s->k * width * word, &ok);
    d->decisions = allocate(s, n * RECORD * word, &ok);
    d->drafts = allocate(s, n * s->k * word, &ok);
    d->num_drafts = allocate(s, n * word, &ok);
    if (s->info.draft_token_ids != NULL) {
        const CUstream stream = s->host->device.stream;
        d->token_ids = allocate(s, width * word, &ok);
        ok = ok && CUDA(&s->host->device.cuda,
                        cuMemcpyHtoDAsync((CUdeviceptr)d->token_ids, s->info.draft_token_ids,
                                          (size_t)(width * word), stream));
    }
    if (!ok) {
        return false;
    }
    const size_t logit_bytes = (size_t)(n * (s->k + 1) * target->vocabulary * word);
    if (!CUDA(&s->host->device.cuda,
              cuMemsetD8Async((CUdeviceptr)d->logits, 0, logit_bytes, s->host->device.stream))) {
        return false;
    }
    memcpy(h->stop_tokens, target->eos, sizeof h->stop_tokens);
    for (int32_t b = 0; b < B; b++) {
        h->temperature[b] = options->temperature;
        h->seed[b] = options->seed + (uint64_t)b;
    }
    /* Enough for the largest bucket is enough for all. */
    round_arguments r;
    describe(s, 0, s->capacity, &r);
    if (spec_verify_workspace_size(s->context, &r.verify, &s->workspace_size, &error)) {
        return fail();
    }
    d->workspace = allocate(s, (int64_t)s->workspace_size + 1, &ok);
    return ok && CUDA(&s->host->device.cuda, cuEventCreate(&s->begin, 0)) &&
           CUDA(&s->host->device.cuda, cuEventCreate(&s->end, 0));
}

static void close_server(server *s) {
    if (s->host == NULL) {
        return;
    }
    const cuda_driver *cuda = &s->host->device.cuda;
    const device_arrays *d = &s->on_device;
    device_wait(&s->host->device);
    for (int32_t i = 0; i < s->num_buckets; i++) {
        if (s->buckets[i].graph != NULL) {
            CUDA(cuda, cuGraphExecDestroy(s->buckets[i].graph));
        }
    }
    if (s->end != NULL) {
        CUDA(cuda, cuEventDestroy(s->begin));
        CUDA(cuda, cuEventDestroy(s->end));
    }
    void *const blocks[] = {d->logits, d->draft_logits, d->decisions, d->drafts,
                            d->num_drafts, d->token_ids, d->workspace};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) {
        CUDA(cuda, cuMemFree((CUdeviceptr)blocks[i])); /* 0 is ignored */
    }
    for (int32_t i = 0; i < HOST_MAX_FEATURES; i++) {
        CUDA(cuda, cuMemFree((CUdeviceptr)d->features[i]));
    }
    spec_session_release(s->session);
    spec_model_release(s->model);
    spec_context_release(s->context);
    host_close(s->host);
}

static void report(const server *s) {
    char name[256] = "";
    CUDA(&s->host->device.cuda, cuDeviceGetName(name, sizeof name, s->host->device.handle));
    printf("%s, %d drafts\n\n", name, (int)s->k);
    printf("                          host, us per round     device, us per round\n");
    printf("bucket  rounds  tokens    launches     graph      launches     graph\n");
    for (int32_t i = 0; i < s->num_buckets; i++) {
        const bucket *u = &s->buckets[i];
        double microseconds[2][WAYS];
        for (int way = 0; way < WAYS && u->rounds[way] > 0; way++) {
            microseconds[0][way] = 1e6 * u->enqueueing[way] / (double)u->rounds[way];
            microseconds[1][way] = 1e6 * u->running[way] / (double)u->rounds[way];
        }
        if (u->rounds[GRAPHS] > 0 && u->rounds[LAUNCHES] > 0) {
            printf("%6d  %6d  %6d  %10.1f%10.1f    %10.1f%10.1f\n", (int)u->size,
                   (int)u->rounds[GRAPHS], (int)u->tokens, microseconds[0][LAUNCHES],
                   microseconds[0][GRAPHS], microseconds[1][LAUNCHES], microseconds[1][GRAPHS]);
        }
    }
    printf("\n");
}

static demo_text launched[B], replayed[B], alone[B];

/* Encodes the prompts, again and again if the batch is larger. */
static bool make_requests(const engine_model *model, const demo_options *options, int32_t n) {
    if (!demo_encode(model, options, launched)) {
        return false;
    }
    for (int32_t b = 0; b < n; b++) {
        launched[b] = launched[b % options->num_prompts];
        replayed[b] = launched[b];
        alone[b] = launched[b];
    }
    return true;
}

int main(int argc, char **argv) {
    demo_options options;
    server s = {0};
    if (!demo_parse(argc, argv, &options)) {
        return EXIT_FAILURE;
    }
    const int32_t n = options.batch > options.num_prompts ? options.batch : options.num_prompts;
    for (s.capacity = 1; s.num_buckets == 0 || s.capacity < n; s.num_buckets++) {
        s.capacity = 1 << s.num_buckets;
        s.buckets[s.num_buckets].size = s.capacity;
    }
    options.cuda = true;
    options.batch = s.capacity;
    s.k = options.drafts;
    s.samples = options.temperature >= 1e-5f;
    s.host = host_open(&options);
    bool ok = s.host != NULL && make_requests(s.host->model, &options, n) &&
              open_speculator(&s, &options) && allocate_arrays(&s, &options);
    for (int32_t i = 0; ok && i < s.num_buckets; i++) {
        ok = capture(&s, &s.buckets[i]);
    }
    ok = ok && serve(&s, launched, n, LAUNCHES, &options) &&
         serve(&s, replayed, n, GRAPHS, &options);
    if (ok) {
        report(&s);
        options.num_prompts = n;
        printf("launches and graphs, ");
        ok = demo_identical(&options, launched, replayed);
    }
    if (ok && !s.samples) {
        printf("graphs and the target alone, ");
        ok = decode_alone(s.host, alone, n, &options) && demo_identical(&options, replayed, alone);
    }
    close_server(&s);
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
