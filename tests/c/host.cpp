// A host in C++17: its own threads do the library's work, and sampled decisions do not depend on
// how many there are. Arguments: the directory of the speculator and that of its verifier.
#include <speculators.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "check.h"
#include "toy_target.h"

namespace {

template <auto release>
struct Release {
  template <typename Handle>
  void operator()(Handle *handle) const {
    release(handle);
  }
};
using Context = std::unique_ptr<spec_context, Release<spec_context_release>>;
using Model = std::unique_ptr<spec_model, Release<spec_model_release>>;
using Session = std::unique_ptr<spec_session, Release<spec_session_release>>;

template <typename Struct>
Struct sized() {
  static_assert(std::is_trivial_v<Struct> && std::is_standard_layout_v<Struct>);
  Struct value{};
  value.struct_size = sizeof value;
  return value;
}

// Runs the tasks on `*user` threads.
void parallel_for(void *user, std::int32_t tasks, void (*task)(void *, std::int32_t),
                  void *argument) {
  std::atomic<std::int32_t> next{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < *static_cast<const int *>(user); i++) {
    threads.emplace_back([&] {
      for (auto index = next++; index < tasks; index = next++) task(argument, index);
    });
  }
  for (auto &thread : threads) thread.join();
}

Context create_context(const int *threads) {
  auto options = sized<spec_context_options>();
  options.parallel_for = parallel_for;
  options.parallel_for_user = const_cast<int *>(threads);
  options.threads = *threads;
  spec_context *context = nullptr;
  REQUIRE(spec_context_create(&options, &context, nullptr) == SPEC_OK);
  return Context(context);
}

constexpr std::int32_t drafts_max = 3, rows = 12;
constexpr std::size_t stride = SPEC_DECISION_TOKENS + 2 * (drafts_max + 1);

spec_tensor matrix(std::vector<float> &values, std::int64_t height, std::int64_t width) {
  values.assign(static_cast<std::size_t>(height * width), 0.0f);
  spec_tensor tensor{};
  tensor.data = values.data();
  tensor.device_type = SPEC_DEVICE_CPU;
  tensor.dtype_code = SPEC_DTYPE_FLOAT;
  tensor.dtype_bits = 32;
  tensor.dtype_lanes = 1;
  tensor.ndim = 2;
  tensor.shape[0] = height;
  tensor.shape[1] = width;
  return tensor;
}

// Drafts by sampling below a prompt, then verifies with the distribution that the drafts were
// drawn from. Returns the drafts, followed by the decision record.
std::vector<std::int32_t> sampled_round(int threads, const std::string &directory,
                                        const std::string &verifier, std::uint64_t seed) {
  auto context = create_context(&threads);
  auto model_options = sized<spec_model_options>();
  model_options.verifier_directory = verifier.c_str();
  spec_model *loaded = nullptr;
  REQUIRE(spec_model_load(context.get(), directory.c_str(), &model_options, &loaded, nullptr) ==
        SPEC_OK);
  Model model(loaded);
  auto info = sized<spec_model_info>();
  REQUIRE(spec_model_get_info(model.get(), &info, nullptr) == SPEC_OK);
  auto session_options = sized<spec_session_options>();
  session_options.max_sequences = 1;
  session_options.max_rows = rows;
  session_options.max_drafts = drafts_max;
  session_options.max_position = 64;
  spec_session *created = nullptr;
  REQUIRE(spec_session_create(model.get(), &session_options, &created, nullptr) == SPEC_OK);
  Session session(created);

  std::array<std::int32_t, rows> tokens{};
  for (std::int32_t i = 1; i < rows; i++) {
    tokens[static_cast<std::size_t>(i)] =
        toy_next(tokens[static_cast<std::size_t>(i - 1)], i - 1, info.vocabulary);
  }
  std::vector<std::vector<float>> feature_values(static_cast<std::size_t>(info.num_features));
  std::vector<spec_tensor> features;
  for (std::size_t i = 0; i < feature_values.size(); i++) {
    features.push_back(matrix(feature_values[i], rows, info.features[i].width));
  }
  std::vector<float> logit_values, draft_values;
  auto logits = matrix(logit_values, rows, info.vocabulary);
  auto draft_logits = matrix(draft_values, drafts_max, info.draft_vocabulary);
  toy_run(&info, tokens.data(), rows, 0, 0, logit_values.data(), features.data());

  const float temperature = 0.9f, top_p = 0.95f;
  auto sampling = sized<spec_sampling>();
  sampling.temperature = &temperature;
  sampling.top_p = &top_p;
  sampling.seed = &seed;
  const std::int32_t position = rows, next_token = 1, first_row = 0, row_count = rows;
  std::int32_t proposed = -1;
  std::vector<std::int32_t> drafts(drafts_max, -7);
  auto draft = sized<spec_draft_args>();
  draft.num_sequences = 1;
  draft.num_rows = rows;
  draft.max_drafts = drafts_max;
  draft.position = &position;
  draft.row_count = &row_count;
  draft.next_token = &next_token;
  draft.row_begin = &first_row;
  draft.tokens = tokens.data();
  draft.features = features.data();
  draft.num_features = info.num_features;
  draft.sampling = &sampling;
  draft.draft_tokens = drafts.data();
  draft.num_proposed = &proposed;
  draft.draft_logits = &draft_logits;
  auto error = sized<spec_error>();
  CHECK(spec_draft(session.get(), &draft, nullptr, &error) == SPEC_OK);
  CHECK(spec_session_poll(session.get(), &error) == SPEC_OK);
  CHECK(proposed == drafts_max);

  auto distribution = sized<spec_distribution>();
  distribution.logits = draft_logits;
  distribution.token_ids = info.draft_token_ids;
  std::array<std::int32_t, stride> decision{};
  auto verify = sized<spec_verify_args>();
  verify.num_sequences = 1;
  verify.max_drafts = drafts_max;
  verify.logits = logits;
  verify.draft_tokens = drafts.data();
  verify.position = &position;
  verify.sampling = &sampling;
  verify.draft = &distribution;
  verify.decisions = decision.data();
  verify.decision_stride = static_cast<std::int32_t>(stride);
  REQUIRE(spec_verify_workspace_size(context.get(), &verify, &verify.workspace_size, &error) ==
        SPEC_OK);
  const auto alignment = std::align_val_t(64);
  verify.workspace = ::operator new(verify.workspace_size, alignment);
  CHECK(spec_verify(context.get(), &verify, nullptr, &error) == SPEC_OK);
  ::operator delete(verify.workspace, alignment);

  CHECK(decision[SPEC_DECISION_FLAGS] == 0);
  CHECK(decision[SPEC_DECISION_EMITTED] == decision[SPEC_DECISION_ACCEPTED] + 1);
  CHECK(decision[SPEC_DECISION_NEXT_POSITION] == position + decision[SPEC_DECISION_EMITTED]);
  for (int i = 0; i < decision[SPEC_DECISION_ACCEPTED]; i++) {
    CHECK(decision[static_cast<std::size_t>(SPEC_DECISION_TOKENS + i)] ==
          drafts[static_cast<std::size_t>(i)]);
  }
  drafts.insert(drafts.end(), decision.begin(), decision.end());
  return drafts;
}

}  // namespace

int main(int count, char **arguments) {
  if (count != 3) {
    std::fprintf(stderr, "usage: host SPECULATOR VERIFIER\n");
    return 2;
  }
  bool differs = false;
  const auto first = sampled_round(1, arguments[1], arguments[2], 0);
  for (std::uint64_t seed = 0; seed < 6; seed++) {
    const auto serial = sampled_round(1, arguments[1], arguments[2], seed);
    CHECK(serial == sampled_round(3, arguments[1], arguments[2], seed));
    differs = differs || serial != first;
  }
  CHECK(differs);
  return check_result();
}
