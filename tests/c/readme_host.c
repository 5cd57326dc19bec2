/* What the README's decode loop leaves to the host: an engine, and something to decode. Linked with
 * the README's C block; the text that it emits must be the target's own. */
#include <speculators.h>

#include "check.h"
#include "toy_target.h"

enum { PROMPT = 9, TOKENS = 40 };

spec_status decode(spec_context *context, spec_session *session, const spec_model_info *info,
                   int32_t *tokens, int32_t count, int32_t max_tokens, int32_t stop_token);
void target_run(const int32_t *tokens, int32_t count, int32_t position, float *logits,
                spec_tensor *features);
void emit(const int32_t *tokens, int32_t count);

static spec_model_info info = {.struct_size = sizeof info};
static int32_t text[PROMPT + TOKENS];
static int32_t text_length;

void target_run(const int32_t *tokens, int32_t count, int32_t position, float *logits,
                spec_tensor *features) {
  toy_run(&info, tokens, count, position, 0, logits, features);
}

void emit(const int32_t *tokens, int32_t count) {
  for (int32_t i = 0; i < count; i++) {
    CHECK(text_length < PROMPT + TOKENS);
    if (text_length < PROMPT + TOKENS) {
      text[text_length++] = tokens[i];
    }
  }
}

static void decodes_what_the_target_would(spec_context *context, spec_session *session,
                                          int32_t stop_index) {
  int32_t tokens[512] = {0}, expected[PROMPT + TOKENS] = {0};
  int32_t length = stop_index < 0 ? PROMPT + TOKENS : stop_index + 1;
  for (int32_t i = 1; i < PROMPT + TOKENS; i++) {
    expected[i] = toy_next(expected[i - 1], i - 1, info.vocabulary);
  }
  for (text_length = 0; text_length < PROMPT; text_length++) {
    tokens[text_length] = text[text_length] = expected[text_length];
  }
  CHECK(decode(context, session, &info, tokens, PROMPT, TOKENS,
               stop_index < 0 ? -1 : expected[stop_index]) == SPEC_OK);
  CHECK(text_length == length);
  for (int32_t i = 0; i < text_length; i++) {
    CHECK(text[i] == expected[i]);
  }
}

int main(int count, char **arguments) {
  spec_model_options model_options = {.struct_size = sizeof model_options};
  spec_session_options options = {.struct_size = sizeof options};
  spec_context *context = NULL;
  spec_model *model = NULL;
  spec_session *session = NULL;
  if (count != 3) {
    return 2;
  }
  model_options.verifier_directory = arguments[2];
  options.max_sequences = 1;
  options.max_rows = 512;
  options.max_drafts = 8;
  options.max_position = 2048;
  REQUIRE(spec_context_create(NULL, &context, NULL) == SPEC_OK);
  REQUIRE(spec_model_load(context, arguments[1], &model_options, &model, NULL) == SPEC_OK);
  REQUIRE(spec_model_get_info(model, &info, NULL) == SPEC_OK);
  REQUIRE(spec_session_create(model, &options, &session, NULL) == SPEC_OK);
  decodes_what_the_target_would(context, session, -1);
  decodes_what_the_target_would(context, session, PROMPT + 11);
  spec_session_release(session);
  spec_model_release(model);
  spec_context_release(context);
  return check_result();
}
