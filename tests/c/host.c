/* A host in C: loads a checkpoint, decodes two sequences with drafts and verification, and misuses
 * the interface. Arguments: the directory of the speculator and that of its verifier. */
#include <speculators.h>

#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "toy_target.h"

enum {
  SEQUENCES = 2,
  DRAFTS = 4,
  ROWS = 24, /* of one sequence in one call */
  LENGTH = 70,
  PAGE = 8,
  PAGES = 12, /* of one sequence */
  STRIDE = SPEC_DECISION_TOKENS + 2 * (DRAFTS + 1)
};

static const int32_t prompt_length[SEQUENCES] = {1, 19};

/* ---- the host's services ---- */

struct memory {
  long blocks;
  long budget; /* allocations until one fails; negative: none does */
};

static void *host_allocate(void *user, uint64_t size, uint64_t alignment, int32_t kind) {
  struct memory *memory = user;
  (void)kind;
  if (memory->budget == 0) {
    return NULL;
  }
  memory->budget -= memory->budget > 0;
  memory->blocks++;
  return aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}

static void host_release(void *user, void *block, uint64_t size, int32_t kind) {
  struct memory *memory = user;
  (void)size;
  (void)kind;
  memory->blocks--;
  free(block);
}

static void host_parallel_for(void *user, int32_t tasks, void (*task)(void *argument, int32_t index),
                              void *argument) {
  ++*(long *)user;
  for (int32_t index = tasks - 1; index >= 0; index--) {
    task(argument, index);
  }
}

static void host_log(void *user, int32_t level, const char *line) {
  *(size_t *)user += (level == SPEC_LOG_WARNING || level == SPEC_LOG_INFO) && strlen(line) > 0;
}

static void host_lent_release(void *user) { ++*(int *)user; }

/* ---- decoding ---- */

/* What one run of the loop leaves behind, to be compared with other runs. */
struct text {
  int32_t tokens[SEQUENCES][LENGTH];
  int32_t drafted[LENGTH * SEQUENCES * DRAFTS];
  uint64_t counters[3 + DRAFTS];
  int rounds;
};

/* The target's own greedy text. */
static void expected_text(const spec_model_info *info, struct text *text) {
  memset(text, 0, sizeof *text);
  for (int32_t b = 0; b < SEQUENCES; b++) {
    for (int32_t i = 0; i < LENGTH; i++) {
      text->tokens[b][i] = i < prompt_length[b]
                               ? (int32_t)(toy_hash((uint32_t)b, (uint32_t)i, 7) %
                                           (uint32_t)info->vocabulary)
                               : toy_next(text->tokens[b][i - 1], i - 1, info->vocabulary);
    }
  }
}

static void *zeroed(size_t count, size_t size) {
  void *memory = calloc(count, size);
  if (memory == NULL) {
    abort();
  }
  return memory;
}

static spec_tensor float_matrix(int64_t rows, int64_t columns) {
  spec_tensor tensor = {0};
  tensor.data = zeroed((size_t)(rows * columns), sizeof(float));
  tensor.device_type = SPEC_DEVICE_CPU;
  tensor.dtype_code = SPEC_DTYPE_FLOAT;
  tensor.dtype_bits = 32;
  tensor.dtype_lanes = 1;
  tensor.ndim = 2;
  tensor.shape[0] = rows;
  tensor.shape[1] = columns;
  return tensor;
}

/* The first `round % (DRAFTS + 1)` drafts are replaced by the target's own tokens, so that chains
 * of every length are accepted whatever the speculator thinks. */
static void improve(const struct text *expected, int round, int32_t b, int32_t position,
                    int32_t proposed, int32_t *drafts) {
  for (int32_t i = 0; i < proposed && i < round % (DRAFTS + 1); i++) {
    drafts[i] = expected->tokens[b][position + 1 + i];
  }
}

/* Decodes both sequences to LENGTH tokens. `paged`: with block tables instead of slots. */
static void decode(const spec_context *context, spec_session *session, const spec_model_info *info,
                   const struct text *expected, int paged, struct text *text) {
  int32_t decisions[SEQUENCES * STRIDE] = {0}, drafts[SEQUENCES * DRAFTS] = {0};
  int32_t tokens[SEQUENCES * ROWS] = {0}, blocks[SEQUENCES * PAGES];
  int32_t root_row[SEQUENCES], row_count[SEQUENCES], first_row[SEQUENCES];
  int32_t proposed[SEQUENCES] = {0}, num_drafts[SEQUENCES] = {0}, limit[SEQUENCES];
  spec_tensor *features = zeroed((size_t)info->num_features, sizeof *features);
  spec_verify_args verify = {.struct_size = sizeof verify};
  spec_draft_args draft = {.struct_size = sizeof draft};
  spec_error error = {.struct_size = sizeof error};

  memset(text, 0, sizeof *text);
  for (int32_t i = 0; i < info->num_features; i++) {
    features[i] = float_matrix(SEQUENCES * ROWS, info->features[i].width);
  }
  for (int32_t i = 0; i < SEQUENCES * PAGES; i++) {
    blocks[i] = (i * 7 + 5) % (SEQUENCES * PAGES);
  }
  verify.num_sequences = SEQUENCES;
  verify.max_drafts = DRAFTS;
  verify.logits = float_matrix(SEQUENCES * ROWS, info->vocabulary);
  verify.row_begin = root_row;
  verify.num_drafts = num_drafts;
  verify.draft_tokens = drafts;
  verify.position = decisions + SPEC_DECISION_NEXT_POSITION;
  verify.position_stride = STRIDE;
  verify.limit = limit;
  verify.decisions = decisions;
  verify.decision_stride = STRIDE;
  verify.counters = text->counters;
  REQUIRE(spec_verify_workspace_size(context, &verify, &verify.workspace_size, &error) == SPEC_OK);
  verify.workspace = aligned_alloc(64, (verify.workspace_size / 64 + 1) * 64);

  draft.num_sequences = SEQUENCES;
  draft.num_rows = SEQUENCES * ROWS;
  draft.max_drafts = DRAFTS;
  draft.decision_stride = STRIDE;
  draft.position = decisions + SPEC_DECISION_NEXT_POSITION;
  draft.next_token = decisions + SPEC_DECISION_NEXT_TOKEN;
  draft.row_begin = first_row;
  draft.limit = limit;
  draft.tokens = tokens;
  draft.features = features;
  draft.num_features = info->num_features;
  draft.draft_tokens = drafts;
  draft.num_proposed = proposed;
  if (paged) {
    draft.block_table = blocks;
    draft.block_table_stride = PAGES;
  }

  for (int32_t b = 0; b < SEQUENCES; b++) {
    memcpy(text->tokens[b], expected->tokens[b], sizeof(int32_t) * (size_t)prompt_length[b]);
    memcpy(tokens + b * ROWS, expected->tokens[b], sizeof(int32_t) * (size_t)prompt_length[b]);
    decisions[b * STRIDE + SPEC_DECISION_NEXT_POSITION] = prompt_length[b] - 1;
    limit[b] = LENGTH - prompt_length[b];
    first_row[b] = b * ROWS;
    row_count[b] = prompt_length[b];
  }
  for (int running = SEQUENCES; running > 0 && text->rounds < LENGTH; text->rounds++) {
    for (int32_t b = 0; b < SEQUENCES; b++) {
      int32_t *row = tokens + b * ROWS, *decision = decisions + b * STRIDE;
      int32_t position = decision[SPEC_DECISION_NEXT_POSITION];
      num_drafts[b] = limit[b] > 0 ? proposed[b] : -1;
      if (num_drafts[b] >= 0 && text->rounds > 0) {
        improve(expected, text->rounds, b, position, proposed[b], drafts + b * DRAFTS);
        row[0] = decision[SPEC_DECISION_NEXT_TOKEN];
        memcpy(row + 1, drafts + b * DRAFTS, sizeof(int32_t) * (size_t)proposed[b]);
        row_count[b] = 1 + proposed[b];
      }
      root_row[b] = b * ROWS + row_count[b] - 1 - proposed[b];
      toy_run(info, row, row_count[b], position - (root_row[b] - b * ROWS), b * ROWS,
              (float *)verify.logits.data + (int64_t)b * ROWS * info->vocabulary, features);
    }
    CHECK(spec_verify(context, &verify, NULL, &error) == SPEC_OK);

    for (int32_t b = 0; b < SEQUENCES; b++) {
      const int32_t *decision = decisions + b * STRIDE;
      int32_t emitted = decision[SPEC_DECISION_EMITTED];
      int32_t end = decision[SPEC_DECISION_NEXT_POSITION] + 1;
      CHECK(emitted <= limit[b] && (emitted > 0) == (num_drafts[b] >= 0));
      CHECK(decision[SPEC_DECISION_ACCEPTED] <= proposed[b] || num_drafts[b] < 0);
      if (emitted < 0 || emitted > limit[b] || end > LENGTH) {
        break;
      }
      memcpy(text->tokens[b] + end - emitted, decision + SPEC_DECISION_TOKENS,
             sizeof(int32_t) * (size_t)emitted);
      limit[b] -= emitted;
      running -= emitted > 0 && limit[b] == 0;
      row_count[b] = emitted > 0 ? root_row[b] - b * ROWS + emitted : 0;
    }
    /* row_count is dense, position and next_token lie in the records: one stride serves all three
     * arrays, so the counts go into the records too. */
    for (int32_t b = 0; b < SEQUENCES; b++) {
      decisions[b * STRIDE + SPEC_DECISION_EMITTED] = row_count[b];
    }
    draft.row_count = decisions + SPEC_DECISION_EMITTED;
    CHECK(spec_draft(session, &draft, NULL, &error) == SPEC_OK);
    CHECK(spec_session_poll(session, &error) == SPEC_OK);
    memcpy(text->drafted + text->rounds * SEQUENCES * DRAFTS, drafts, sizeof drafts);
  }
  CHECK(text->rounds < LENGTH);
  for (int32_t i = 0; i < info->num_features; i++) {
    free(features[i].data);
  }
  free(features);
  free(verify.logits.data);
  free(verify.workspace);
}

static spec_session_options session_options(void) {
  spec_session_options options = {.struct_size = sizeof options};
  options.max_sequences = SEQUENCES;
  options.max_rows = SEQUENCES * ROWS;
  options.max_drafts = DRAFTS;
  options.max_position = PAGE * PAGES;
  options.page_size = PAGE;
  return options;
}

static void emits_what_the_target_would(const spec_model_info *info, const struct text *text,
                                        const struct text *expected) {
  uint64_t emitted = 0;
  for (int b = 0; b < SEQUENCES; b++) {
    emitted += (uint64_t)(LENGTH - prompt_length[b]);
  }
  CHECK(memcmp(text->tokens, expected->tokens, sizeof text->tokens) == 0);
  CHECK(text->counters[2] == emitted);
  CHECK(text->counters[1] >= text->counters[3] && text->counters[3] >= text->counters[4]);
  CHECK(text->counters[3] > 0);
  for (int i = 0; i < text->rounds * SEQUENCES * DRAFTS; i++) {
    CHECK(text->drafted[i] >= -1 && text->drafted[i] < info->vocabulary);
  }
}

static void decodes_alike_in_every_setting(const char *directory, const char *verifier) {
  struct memory memory = {0, -1};
  long parallel_calls = 0;
  size_t log_lines = 0;
  spec_allocator allocator = {.struct_size = sizeof allocator};
  spec_context_options options = {.struct_size = sizeof options};
  spec_model_options model_options = {.struct_size = sizeof model_options};
  spec_session_options with_memory = session_options();
  spec_session_requirements needs = {.struct_size = sizeof needs};
  spec_error error = {.struct_size = sizeof error};
  spec_model_info info = {.struct_size = sizeof info};
  spec_context *own = NULL, *hosted = NULL;
  spec_model *model = NULL, *second_model = NULL;
  spec_session *session = NULL, *second = NULL;
  static struct text expected, text, other;

  allocator.user = &memory;
  allocator.allocate = host_allocate;
  allocator.release = host_release;
  options.allocator = &allocator;
  options.log = host_log;
  options.log_user = &log_lines;
  options.threads = 2;
  model_options.verifier_directory = verifier;

  REQUIRE(spec_context_create(&options, &own, &error) == SPEC_OK);
  REQUIRE(spec_model_load(own, directory, &model_options, &model, &error) == SPEC_OK);
  REQUIRE(spec_model_get_info(model, &info, &error) == SPEC_OK);
  CHECK(strcmp(info.kind, "eagle3") == 0 && info.num_features > 0 && info.vocabulary > 0);
  CHECK(log_lines > 0 && memory.blocks > 0);
  REQUIRE(spec_session_create(model, &with_memory, &session, &error) == SPEC_OK);
  CHECK(spec_session_warm_up(session, NULL, &error) == SPEC_OK);
  expected_text(&info, &expected);
  decode(own, session, &info, &expected, 0, &text);
  emits_what_the_target_would(&info, &text, &expected);

  /* The host's own threads, memory and pages change nothing. */
  options.parallel_for = host_parallel_for;
  options.parallel_for_user = &parallel_calls;
  options.threads = 3;
  REQUIRE(spec_context_create(&options, &hosted, &error) == SPEC_OK);
  REQUIRE(spec_model_load(hosted, directory, &model_options, &second_model, &error) == SPEC_OK);
  CHECK(spec_session_get_requirements(second_model, &with_memory, &needs, &error) == SPEC_OK);
  CHECK(needs.num_pages == SEQUENCES * PAGES && needs.page_size == PAGE);
  CHECK(needs.kv_pool_size >= needs.page_bytes * (uint64_t)needs.num_pages);
  with_memory.kv_pool = aligned_alloc(64, (needs.kv_pool_size + 63) / 64 * 64);
  with_memory.kv_pool_size = needs.kv_pool_size;
  with_memory.workspace = aligned_alloc(64, (needs.workspace_size + 63) / 64 * 64);
  with_memory.workspace_size = needs.workspace_size;
  REQUIRE(spec_session_create(second_model, &with_memory, &second, &error) == SPEC_OK);
  decode(hosted, second, &info, &expected, 1, &other);
  CHECK(parallel_calls > 0);
  CHECK(memcmp(&text, &other, sizeof text) == 0);

  /* Parents may be given up first; what they own goes with the last child. What an info struct
   * points to goes with its handle, so it is asked of the other model. */
  CHECK(spec_model_get_info(second_model, &info, &error) == SPEC_OK);
  spec_context_release(own);
  spec_model_release(model);
  CHECK(memory.blocks > 0);
  decode(hosted, session, &info, &expected, 0, &other);
  CHECK(memcmp(&text, &other, sizeof text) == 0);
  spec_session_release(session);
  spec_session_release(second);
  spec_model_release(second_model);
  spec_context_release(hosted);
  CHECK(memory.blocks == 0);
  free(with_memory.kv_pool);
  free(with_memory.workspace);
}

/* ---- texts, failures, misuse ---- */

static void texts_are_queried_in_two_calls(const spec_model *model, const char *directory) {
  spec_error error = {.struct_size = sizeof error};
  uint64_t length = 0, again = 0;
  CHECK(spec_checkpoint_inspect(directory, NULL, 0, &length, &error) == SPEC_OK && length > 2);
  char *json = zeroed((size_t)length + 1, 1);
  CHECK(spec_checkpoint_inspect(directory, json, length, &again, &error) ==
        SPEC_ERROR_INVALID_ARGUMENT);
  CHECK(again == length && json[0] == 0);
  CHECK(spec_checkpoint_inspect(directory, json, length + 1, &again, &error) == SPEC_OK);
  CHECK(json[0] == '{' && strlen(json) == length && strstr(json, "eagle3") != NULL);
  free(json);

  CHECK(spec_model_get_report(model, NULL, 0, &length, &error) == SPEC_OK && length > 2);
  json = zeroed((size_t)length + 1, 1);
  CHECK(spec_model_get_report(model, json, length + 1, NULL, &error) == SPEC_OK);
  CHECK(json[0] == '{' && strlen(json) == length);
  free(json);
}

static void failures_say_what_was_expected(const spec_context *context, const char *directory,
                                           const char *verifier) {
  spec_error error = {.struct_size = sizeof error};
  spec_model_options options = {.struct_size = sizeof options};
  spec_model *model = (spec_model *)&error;
  int released = 0;
  options.verifier_directory = verifier;
  options.lent_release = host_lent_release;
  options.lent_user = &released;
  CHECK(spec_model_load(context, "/nowhere/at/all", &options, &model, &error) == SPEC_ERROR_IO);
  CHECK(model == NULL && error.status == SPEC_ERROR_IO && released == 0);
  CHECK(strncmp(error.message, "spec_model_load: /nowhere/at/all", 32) == 0);
  CHECK(spec_model_load(context, "/nowhere/at/all", &options, &model, NULL) == SPEC_ERROR_IO);

  options.config_overrides = "{\"speculators_model_type\": \"telepathy\"}";
  CHECK(spec_model_load(context, directory, &options, &model, &error) == SPEC_ERROR_UNSUPPORTED);
  CHECK(strstr(error.message, "telepathy") != NULL);
  options.config_overrides = "{";
  CHECK(spec_model_load(context, directory, &options, &model, &error) ==
        SPEC_ERROR_INVALID_ARGUMENT);

  options.config_overrides = NULL;
  CHECK(spec_model_load(context, directory, &options, &model, &error) == SPEC_OK);
  CHECK(error.status == SPEC_OK && error.message[0] == 0 && released == 0);
  spec_model_release(model);
  CHECK(released == 1);
}

static void refused_memory_leaves_nothing_behind(const char *directory, const char *verifier) {
  struct memory memory = {0, -1};
  spec_allocator allocator = {.struct_size = sizeof allocator};
  spec_context_options options = {.struct_size = sizeof options, .threads = 1};
  spec_model_options model_options = {.struct_size = sizeof model_options};
  spec_session_options wanted = session_options();
  spec_status status = SPEC_ERROR_OUT_OF_MEMORY;
  spec_context *context = NULL;
  long budget = 0;
  allocator.user = &memory;
  allocator.allocate = host_allocate;
  allocator.release = host_release;
  options.allocator = &allocator;
  model_options.verifier_directory = verifier;
  REQUIRE(spec_context_create(&options, &context, NULL) == SPEC_OK);
  for (; status == SPEC_ERROR_OUT_OF_MEMORY && budget < 1000; budget++) {
    spec_model *model = NULL;
    spec_session *session = NULL;
    memory.budget = budget;
    status = spec_model_load(context, directory, &model_options, &model, NULL);
    if (status == SPEC_OK) {
      status = spec_session_create(model, &wanted, &session, NULL);
    }
    CHECK((status == SPEC_OK) == (session != NULL));
    spec_session_release(session);
    spec_model_release(model);
    CHECK(memory.blocks == 0);
  }
  CHECK(status == SPEC_OK && budget >= 3);
  spec_context_release(context);
}

static void misuse_is_refused(spec_context *context, spec_model *model, spec_session *session) {
  spec_error error = {.struct_size = sizeof error};
  spec_context_options options = {.struct_size = 3};
  spec_session_options wanted = session_options();
  spec_draft_args draft = {.struct_size = sizeof draft};
  spec_verify_args verify = {.struct_size = sizeof verify};
  spec_model_info info = {.struct_size = sizeof info};
  spec_context *no_context = NULL;
  spec_session *no_session = NULL;
  uint64_t size = 0;
  struct {
    spec_context_options options;
    uint64_t later;
  } newer = {{.struct_size = sizeof newer, .threads = 1}, 1};

  CHECK(spec_context_create(NULL, NULL, &error) == SPEC_ERROR_INVALID_ARGUMENT);
  CHECK(spec_context_create(&options, &no_context, &error) == SPEC_ERROR_INVALID_ARGUMENT);
  CHECK(spec_context_create(&newer.options, &no_context, &error) == SPEC_ERROR_UNSUPPORTED);
  newer.later = 0;
  CHECK(spec_context_create(&newer.options, &no_context, &error) == SPEC_OK);
  spec_context_release(no_context);

  CHECK(spec_model_get_info(NULL, &info, &error) == SPEC_ERROR_INVALID_ARGUMENT);
  CHECK(spec_model_get_info((spec_model *)session, &info, &error) == SPEC_ERROR_INVALID_ARGUMENT);
  CHECK(spec_model_get_info((spec_model *)context, &info, NULL) == SPEC_ERROR_INVALID_ARGUMENT);
  CHECK(spec_model_get_info(model, NULL, &error) == SPEC_ERROR_INVALID_ARGUMENT);

  wanted.max_sequences = 0;
  CHECK(spec_session_create(model, &wanted, &no_session, &error) == SPEC_ERROR_INVALID_ARGUMENT);
  CHECK(no_session == NULL && strstr(error.message, "max_sequences") != NULL);

  CHECK(spec_draft(session, NULL, NULL, &error) == SPEC_ERROR_INVALID_ARGUMENT);
  draft.num_sequences = SEQUENCES + 1;
  CHECK(spec_draft(session, &draft, NULL, &error) == SPEC_ERROR_INVALID_ARGUMENT);
  draft.num_sequences = 0;
  CHECK(spec_draft(session, &draft, &size, &error) == SPEC_ERROR_INVALID_ARGUMENT);
  CHECK(spec_verify(context, NULL, NULL, &error) == SPEC_ERROR_INVALID_ARGUMENT);
  verify.max_drafts = -1;
  CHECK(spec_verify_workspace_size(context, &verify, &size, &error) ==
        SPEC_ERROR_INVALID_ARGUMENT);

  spec_session_release(NULL);
  spec_model_release(NULL);
  spec_context_release(NULL);
}

/* A fault in one sequence's arrays takes that sequence out, is reported once, and harms no other. */
static void faults_stay_with_their_sequence(spec_session *session, const spec_model_info *info) {
  int32_t position[SEQUENCES] = {3, 3}, count[SEQUENCES] = {3, 3}, next[SEQUENCES] = {1, 1};
  int32_t tokens[SEQUENCES * (DRAFTS + 1)] = {0}, drafts[SEQUENCES * DRAFTS];
  int32_t proposed[SEQUENCES] = {-7, -7};
  spec_tensor *features = zeroed((size_t)info->num_features, sizeof *features);
  spec_draft_args draft = {.struct_size = sizeof draft};
  spec_error error = {.struct_size = sizeof error};
  for (int32_t i = 0; i < info->num_features; i++) {
    features[i] = float_matrix(SEQUENCES * (DRAFTS + 1), info->features[i].width);
  }
  draft.num_sequences = SEQUENCES;
  draft.num_rows = SEQUENCES * (DRAFTS + 1);
  draft.max_drafts = DRAFTS;
  draft.position = position;
  draft.row_count = count;
  draft.next_token = next;
  draft.tokens = tokens;
  draft.features = features;
  draft.num_features = info->num_features;
  draft.draft_tokens = drafts;
  draft.num_proposed = proposed;
  tokens[1] = info->vocabulary;
  CHECK(spec_draft(session, &draft, NULL, &error) == SPEC_OK);
  CHECK(proposed[0] == 0 && proposed[1] == DRAFTS && drafts[0] == -1 && drafts[DRAFTS] >= 0);
  CHECK(spec_session_poll(session, &error) == SPEC_ERROR_INVALID_ARGUMENT);
  CHECK(strncmp(error.message, "spec_session_poll: ", 19) == 0);
  CHECK(spec_session_poll(session, &error) == SPEC_OK);
  for (int32_t i = 0; i < info->num_features; i++) {
    free(features[i].data);
  }
  free(features);
}

int main(int count, char **arguments) {
  spec_context_options options = {.struct_size = sizeof options, .threads = 2};
  spec_model_options model_options = {.struct_size = sizeof model_options};
  spec_session_options wanted = session_options();
  spec_context_info context_info = {.struct_size = sizeof context_info};
  spec_model_info info = {.struct_size = sizeof info};
  spec_context *context = NULL;
  spec_model *model = NULL;
  spec_session *session = NULL;
  if (count != 3) {
    fprintf(stderr, "usage: host SPECULATOR VERIFIER\n");
    return 2;
  }
  CHECK(spec_abi_version() == SPEC_ABI_VERSION && strlen(spec_version()) >= 5);
  CHECK(spec_feature("eagle3") == 1 && spec_feature("telepathy") == 0 && spec_feature(NULL) == 0);
  CHECK(strcmp(spec_status_name(SPEC_ERROR_FORMAT), "SPEC_ERROR_FORMAT") == 0);
  CHECK(spec_status_name(-1) != NULL);

  model_options.verifier_directory = arguments[2];
  REQUIRE(spec_context_create(&options, &context, NULL) == SPEC_OK);
  CHECK(spec_context_get_info(context, &context_info, NULL) == SPEC_OK);
  CHECK(context_info.threads == 2 && context_info.device_type == SPEC_DEVICE_CPU);
  CHECK(strlen(context_info.instruction_set) > 0);
  REQUIRE(spec_model_load(context, arguments[1], &model_options, &model, NULL) == SPEC_OK);
  REQUIRE(spec_session_create(model, &wanted, &session, NULL) == SPEC_OK);
  REQUIRE(spec_model_get_info(model, &info, NULL) == SPEC_OK);
  texts_are_queried_in_two_calls(model, arguments[1]);
  misuse_is_refused(context, model, session);
  faults_stay_with_their_sequence(session, &info);
  failures_say_what_was_expected(context, arguments[1], arguments[2]);
  spec_session_release(session);
  spec_model_release(model);
  spec_context_release(context);
  decodes_alike_in_every_setting(arguments[1], arguments[2]);
  refused_memory_leaves_nothing_behind(arguments[1], arguments[2]);
  return check_result();
}
