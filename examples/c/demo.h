/* What the example programs share beside the engine: options, texts, a clock, printing. */
#ifndef DEMO_H
#define DEMO_H

#include "engine/engine.h"

enum { DEMO_MAX_PROMPTS = 64, DEMO_MAX_DRAFTS = 16, DEMO_MAX_NODES = 64, DEMO_MAX_TEXT = 2048 };

typedef struct demo_options {
    const char *target;     /* directory of the target model */
    const char *speculator; /* directory of the speculator */
    const char *prompts[DEMO_MAX_PROMPTS];
    int32_t num_prompts;
    int32_t drafts;      /* K: tokens proposed per round in a chain */
    int32_t tree;        /* one of SPEC_TREE_*; 0: chains only */
    int32_t nodes;       /* N: those of a tree, with its root */
    int32_t depth;       /* levels below the root of a dynamic tree */
    int32_t width;       /* nodes that a dynamic tree expands per level */
    int32_t tokens;      /* tokens to emit per prompt */
    int32_t threads;     /* 0: one per core */
    int32_t batch;       /* sequences decoded together */
    float temperature;   /* 0: greedy */
    uint64_t seed;
    bool cuda;           /* the library works on a CUDA device; the target always on the CPU */
    int32_t device;      /* which one */
    const char *kernels; /* directory of kernels in place of the library's own, or NULL */
} demo_options;

/* A prompt and what was emitted after it. */
typedef struct demo_text {
    int32_t ids[DEMO_MAX_TEXT];
    int32_t prompt; /* ids of the prompt */
    int32_t len;    /* all ids */
} demo_text;

/* What one way of decoding took, over all prompts. */
typedef struct demo_run {
    bool shown;                          /* a single text is printed as it comes */
    double target, verify, draft, host; /* seconds */
    int64_t passes;                      /* target passes of sequences, prompts not counted */
    int64_t emitted;                     /* tokens of those passes */
    uint64_t counters[3 + DEMO_MAX_NODES];
    uint64_t tested[DEMO_MAX_NODES]; /* passes in which i + 1 drafts could be accepted */
} demo_run;

/* Reads the command line; false (and a message) if it is wrong or asks for help. */
bool demo_parse(int argc, char **argv, demo_options *options);

/* The most drafts of a round, in chains or in trees. */
int32_t demo_most_drafts(const demo_options *options);

/* Encodes the prompts; false (and a message) if one is empty or too long. */
bool demo_encode(const engine_model *model, const demo_options *options, demo_text *texts);

/* Seconds of a clock that only goes forward. */
double demo_clock(void);

/* Adds the time since *clock to *sum and sets *clock to now. */
void demo_lap(double *clock, double *sum);

/* Prints the prompts before decoding, if there is one text; all texts after it, if there are more.
 */
void demo_begin(const engine_model *model, const demo_text *texts, int32_t n);
void demo_end(const engine_model *model, const demo_text *texts, int32_t n);

/* Prints the text of some ids as it comes. */
void demo_stream(const engine_model *model, const int32_t *ids, int32_t count);

/* Counts how many drafts of a pass could be accepted, all of a chain, or the levels of a tree. Near
 * the end of a text fewer are drafted, and those behind a token that ends it are not looked at. */
void demo_count_tested(demo_run *run, int32_t levels, int32_t accepted, int32_t emitted);

/* Prints the figures of two runs, and the tokens per pass of chains with as many nodes as the trees
 * of the second one, or NULL if that had chains. */
void demo_report(const demo_options *options, const demo_run *plain, const demo_run *speculative,
                 const demo_run *chains);

/* Compares the texts of two runs; prints the first difference. */
bool demo_identical(const demo_options *options, const demo_text *a, const demo_text *b);

#endif
