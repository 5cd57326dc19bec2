#define _POSIX_C_SOURCE 200809L
#include "demo.h"
#include "speculators.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const default_prompts[] = {
    "def read_file(path):\n    ",
    "import os\nimport sys\n\nclass Node:\n    def __init__(self, ",
    "class Stack:\n    \"\"\"A stack.\"\"\"\n\n    def push(self, item):\n",
    "try:\n    import json\nexcept ImportError:\n",
};

static const char usage[] =
    "usage: %s [options]\n"
    "  --target DIRECTORY       the target model\n"
    "  --speculator DIRECTORY   its speculator\n"
    "  --prompt TEXT            may be given several times; \\n is a line end\n"
    "  --drafts K               tokens proposed per round, 1 to 16 (5)\n"
    "  --tree KIND              static, dynamic or stochastic: drafts are trees (generate)\n"
    "  --nodes N                nodes of a tree, with its root, 2 to 64 (16)\n"
    "  --depth N                levels of a dynamic tree, 1 to 16 (8)\n"
    "  --width N                nodes that a dynamic tree expands per level, 1 to 16 (4)\n"
    "  --tokens N               tokens to emit per prompt (96)\n"
    "  --temperature T          0 is greedy (0)\n"
    "  --seed S                 (0)\n"
    "  --threads N              0 is one per core (0)\n"
    "  --batch B                sequences decoded together, 1 to 64 (1)\n"
    "  --backend cpu|cuda       where the library works (cpu)\n"
    "  --device N               which of the CUDA devices (0)\n"
    "  --kernels DIRECTORY      CUDA kernels to use in place of the library's own\n";

static bool number(const char *text, double low, double high, double *value) {
    char *end = NULL;
    errno = 0;
    *value = strtod(text, &end);
    return errno == 0 && end != text && *end == '\0' && *value >= low && *value <= high;
}

/* Turns \n of a command line into line ends, in place. */
static char *unescape(char *text) {
    char *to = text;
    for (const char *from = text; *from != '\0'; from++) {
        if (from[0] == '\\' && from[1] == 'n') {
            *to++ = '\n';
            from++;
        } else {
            *to++ = *from;
        }
    }
    *to = '\0';
    return text;
}

/* The number of a kind of trees, 0 if there is none of that name. */
static int32_t tree_kind(const char *name) {
    return strcmp(name, "static") == 0       ? SPEC_TREE_STATIC
           : strcmp(name, "dynamic") == 0    ? SPEC_TREE_DYNAMIC
           : strcmp(name, "stochastic") == 0 ? SPEC_TREE_STOCHASTIC
                                             : 0;
}

static bool set(demo_options *options, const char *name, char *value) {
    double x;
    if (strcmp(name, "--target") == 0) {
        options->target = value;
    } else if (strcmp(name, "--speculator") == 0) {
        options->speculator = value;
    } else if (strcmp(name, "--prompt") == 0 && options->num_prompts < DEMO_MAX_PROMPTS) {
        options->prompts[options->num_prompts++] = unescape(value);
    } else if (strcmp(name, "--drafts") == 0 && number(value, 1, DEMO_MAX_DRAFTS, &x)) {
        options->drafts = (int32_t)x;
    } else if (strcmp(name, "--tree") == 0 && tree_kind(value) != 0) {
        options->tree = tree_kind(value);
    } else if (strcmp(name, "--nodes") == 0 && number(value, 2, DEMO_MAX_NODES, &x)) {
        options->nodes = (int32_t)x;
    } else if (strcmp(name, "--depth") == 0 && number(value, 1, 16, &x)) {
        options->depth = (int32_t)x;
    } else if (strcmp(name, "--width") == 0 && number(value, 1, 16, &x)) {
        options->width = (int32_t)x;
    } else if (strcmp(name, "--tokens") == 0 && number(value, 1, 1024, &x)) {
        options->tokens = (int32_t)x;
    } else if (strcmp(name, "--temperature") == 0 && number(value, 0, 100, &x)) {
        options->temperature = (float)x;
    } else if (strcmp(name, "--seed") == 0 && number(value, 0, 9007199254740992.0, &x)) {
        options->seed = (uint64_t)x;
    } else if (strcmp(name, "--threads") == 0 && number(value, 0, 256, &x)) {
        options->threads = (int32_t)x;
    } else if (strcmp(name, "--batch") == 0 && number(value, 1, DEMO_MAX_PROMPTS, &x)) {
        options->batch = (int32_t)x;
    } else if (strcmp(name, "--backend") == 0 &&
               (strcmp(value, "cpu") == 0 || strcmp(value, "cuda") == 0)) {
        options->cuda = strcmp(value, "cuda") == 0;
    } else if (strcmp(name, "--device") == 0 && number(value, 0, 1023, &x)) {
        options->device = (int32_t)x;
    } else if (strcmp(name, "--kernels") == 0) {
        options->kernels = value;
    } else {
        return false;
    }
    return true;
}

bool demo_parse(int argc, char **argv, demo_options *options) {
    *options = (demo_options){
        .target = "examples/models/tiny-python/target",
        .speculator = "examples/models/tiny-python/eagle3",
        .drafts = 5,
        .nodes = 16,
        .depth = 8,
        .width = 4,
        .tokens = 96,
        .batch = 1,
    };
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc || !set(options, argv[i], argv[i + 1])) {
            fprintf(stderr, "%s: %s: no such option, or not with that value\n", argv[0], argv[i]);
            fprintf(stderr, usage, argv[0]);
            return false;
        }
    }
    if (options->threads == 0) {
        const long cores = sysconf(_SC_NPROCESSORS_ONLN);
        options->threads = cores < 1 ? 1 : (int32_t)cores;
    }
    if (options->num_prompts == 0) {
        options->num_prompts = (int32_t)(sizeof default_prompts / sizeof *default_prompts);
        memcpy(options->prompts, default_prompts, sizeof default_prompts);
    }
    return true;
}

int32_t demo_most_drafts(const demo_options *options) {
    const int32_t nodes = options->tree != 0 ? options->nodes : 0;
    return nodes > options->drafts ? nodes - 1 : options->drafts;
}

bool demo_encode(const engine_model *model, const demo_options *options, demo_text *texts) {
    const int32_t room = DEMO_MAX_TEXT - options->tokens;
    for (int32_t i = 0; i < options->num_prompts; i++) {
        texts[i].prompt = engine_encode(model, options->prompts[i], true, texts[i].ids, room);
        texts[i].len = texts[i].prompt;
        const int32_t positions = engine_describe(model)->max_position;
        if (texts[i].prompt < 1 || texts[i].prompt > room ||
            texts[i].prompt + options->tokens > positions) {
            fprintf(stderr, "prompt %d: expected 1 to %d tokens, found %d\n", (int)i,
                    (int)(room < positions - options->tokens ? room : positions - options->tokens),
                    (int)texts[i].prompt);
            return false;
        }
    }
    return true;
}

double demo_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void demo_stream(const engine_model *model, const int32_t *ids, int32_t count) {
    for (int32_t i = 0; i < count; i++) {
        char bytes[256];
        if (ids[i] == engine_describe(model)->bos) {
            continue;
        }
        const int32_t len = engine_decode(model, ids[i], bytes, (int32_t)sizeof bytes);
        if (len > 0) {
            fwrite(bytes, 1, (size_t)(len < (int32_t)sizeof bytes ? len : (int32_t)sizeof bytes),
                   stdout);
        }
    }
    fflush(stdout);
}

void demo_lap(double *clock, double *sum) {
    const double now = demo_clock();
    *sum += now - *clock;
    *clock = now;
}

void demo_begin(const engine_model *model, const demo_text *texts, int32_t n) {
    if (n == 1) {
        printf("----\n");
        demo_stream(model, texts[0].ids, texts[0].len);
    }
}

void demo_end(const engine_model *model, const demo_text *texts, int32_t n) {
    for (int32_t b = 0; n > 1 && b < n; b++) {
        printf("----\n");
        demo_stream(model, texts[b].ids, texts[b].len);
        printf("\n");
    }
    if (n == 1) {
        printf("\n");
    }
}

void demo_count_tested(demo_run *run, int32_t levels, int32_t accepted, int32_t emitted) {
    /* The last token of a text that ends with a draft is that draft, and not one behind it. */
    const int32_t tested = emitted > accepted ? levels : accepted;
    for (int32_t i = 0; i < tested; i++) {
        run->tested[i]++;
    }
}

static double total_of(const demo_run *run) {
    return run->target + run->verify + run->draft + run->host;
}

static void print_acceptance(const demo_run *run) {
    enum { WIDTH = 40 };
    printf("acceptance by position, in %llu rounds:\n", (unsigned long long)run->counters[0]);
    for (int32_t i = 0; i < DEMO_MAX_NODES && run->tested[i] > 0; i++) {
        const uint64_t tested = run->tested[i];
        const double share = (double)run->counters[3 + i] / (double)tested;
        const int filled = (int)(share * WIDTH + 0.5);
        printf("  %2d  ", (int)i + 1);
        for (int column = 0; column < WIDTH; column++) {
            putchar(column < filled ? '#' : '.');
        }
        printf("  %5.1f %%\n", 100.0 * share);
    }
}

static double tokens_per_pass(const demo_run *run) {
    return (double)run->emitted / (double)run->passes;
}

void demo_report(const demo_options *options, const demo_run *plain, const demo_run *speculative,
                 const demo_run *chains) {
    static const char *const kinds[] = {"", "static", "dynamic", "stochastic"};
    const double total = total_of(speculative);
    const double slow = (double)plain->emitted / total_of(plain);
    const double fast = (double)speculative->emitted / total;
    printf("----\ntokens per target pass: %.3f with ", tokens_per_pass(speculative));
    if (chains != NULL) {
        printf("%s trees of %d nodes, %.3f with chains of as many", kinds[options->tree],
               (int)options->nodes, tokens_per_pass(chains));
    } else {
        printf("%d drafts", (int)options->drafts);
    }
    printf(", %.3f without\n", tokens_per_pass(plain));
    print_acceptance(speculative);
    printf("time: %.1f %% target, %.1f %% verify, %.1f %% draft\n",
           100.0 * speculative->target / total, 100.0 * speculative->verify / total,
           100.0 * speculative->draft / total);
    printf("tokens per second: %.0f with speculation, %.0f without: ratio %.2f\n", fast, slow,
           fast / slow);
    printf("(A target of 2 million parameters stays in cache, so its passes cost what they\n"
           "compute: a batch of rows is not nearly as cheap as one. Speculation pays where\n"
           "reading the weights is the cost; this ratio says nothing about such targets.)\n");
}

bool demo_identical(const demo_options *options, const demo_text *a, const demo_text *b) {
    for (int32_t i = 0; i < options->num_prompts; i++) {
        for (int32_t j = 0; j < a[i].len || j < b[i].len; j++) {
            if (j >= a[i].len || j >= b[i].len || a[i].ids[j] != b[i].ids[j]) {
                printf("texts: prompt %d differs at token %d\n", (int)i, (int)(j - a[i].prompt));
                return false;
            }
        }
    }
    printf("texts: identical\n");
    return true;
}
