// Kernels without mistakes give the right results, whatever the order in which threads run.
#include <cmath>
#include <cstring>
#include <numeric>

#include "host.h"

namespace {

struct SumArguments {
  const float *input;
  float *partial_sums;
  float *result;
  uint32_t *counter;
  uint32_t count, padding;
};

std::vector<float> small_integers(size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; i++) values[i] = float(i * 7 % 11);
  return values;  // whose sums are exact
}

float sum(const std::vector<float> &values) {
  return std::accumulate(values.begin(), values.end(), 0.0f);
}

void sums_blocks() {
  constexpr unsigned blocks = 9;
  const std::vector<float> values = small_integers(5000);
  const Buffer input(values), partial(blocks * sizeof(float));
  launch("sum_blocks", {blocks, 256},
         SumArguments{input.as<float>(), partial.as<float>(), nullptr, nullptr, 5000, 0});
  EXPECT(sum(partial.read<float>()) == sum(values));
}

void sums_in_the_last_block(const char *kernel) {
  constexpr unsigned blocks = 13;
  const std::vector<float> values = small_integers(5000);
  const Buffer input(values), partial(blocks * sizeof(float)), result(sizeof(float));
  const Buffer counter(std::vector<uint32_t>{0});
  for (int repetition = 0; repetition < 3; repetition++) {
    launch(kernel, {blocks, 256},
           SumArguments{input.as<float>(), partial.as<float>(), result.as<float>(),
                        counter.as<uint32_t>(), 5000, 0});
    EXPECT(result.read<float>()[0] == sum(values));
    EXPECT(counter.read<uint32_t>()[0] == 0);
  }
}
void sums_with_acquire_release() { sums_in_the_last_block("sum_last_block"); }
void sums_with_fences() { sums_in_the_last_block("sum_last_block_fenced"); }

void grid_barrier_holds() {
  constexpr unsigned blocks = 20;
  const std::vector<float> values = small_integers(20000);
  const Buffer input(values), partial(blocks * sizeof(float)), result(values.size() * sizeof(float));
  const Buffer counter(std::vector<uint32_t>{0});
  Shape shape{blocks, 256};
  shape.cooperative = true;
  for (int repetition = 0; repetition < 2; repetition++) {
    launch("normalise", shape,
           SumArguments{input.as<float>(), partial.as<float>(), result.as<float>(),
                        counter.as<uint32_t>(), 20000, 0});
    const std::vector<float> found = result.read<float>();
    for (size_t i = 0; i < values.size(); i++) EXPECT(found[i] == values[i] / sum(values));
  }
}

void sums_twice() {
  constexpr unsigned blocks = 5;
  const std::vector<float> values(blocks * 256, 1.0f);
  const Buffer input(values), partial(blocks * 256 * sizeof(float)), result(256 * sizeof(float));
  const Buffer counter(std::vector<uint32_t>{0});
  launch("sum_twice", {blocks, 256},
         SumArguments{input.as<float>(), partial.as<float>(), result.as<float>(),
                      counter.as<uint32_t>(), blocks * 256, 0});
  for (float total : result.read<float>()) EXPECT(total == blocks * 256.0f * 256.0f);
}

void grid_barrier_holds_for_all_threads() {
  constexpr unsigned blocks = 6;
  const Buffer partial(blocks * 256 * sizeof(float)), result(blocks * 256 * sizeof(float));
  const Buffer counter(std::vector<uint32_t>{0});
  Shape shape{blocks, 256};
  shape.cooperative = true;
  launch("shift_by_a_block", shape,
         SumArguments{nullptr, partial.as<float>(), result.as<float>(), counter.as<uint32_t>(), 0, 0});
  const std::vector<float> found = result.read<float>();
  for (size_t i = 0; i < found.size(); i++) EXPECT(found[i] == float((i / 256 + 1) % blocks));
}

uint16_t bf16_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return uint16_t(bits >> 16);  // exact for the values used here
}

struct ProductArguments {
  const uint16_t *left, *right;
  float *result;
  uint32_t rows, columns, inner, padding;
};

void matrix_product_is_right() {
  constexpr uint32_t rows = 11, columns = 24, inner = 96;
  std::vector<uint16_t> left(rows * inner), right(columns * inner);
  auto left_at = [](uint32_t i) { return float(int(i * 5 % 17) - 8); };
  auto right_at = [](uint32_t i) { return float(int(i * 3 % 13) - 6); };
  for (uint32_t i = 0; i < left.size(); i++) left[i] = bf16_bits(left_at(i));
  for (uint32_t i = 0; i < right.size(); i++) right[i] = bf16_bits(right_at(i));
  const Buffer on_left(left), on_right(right), result(rows * columns * sizeof(float));
  constexpr unsigned stages_bytes = 2 * (16 + 8) * 40 * 2;
  launch("multiply_matrices", {columns / 8, 32, stages_bytes},
         ProductArguments{on_left.as<uint16_t>(), on_right.as<uint16_t>(), result.as<float>(), rows,
                          columns, inner, 0});
  const std::vector<float> found = result.read<float>();
  for (uint32_t row = 0; row < rows; row++) {
    for (uint32_t column = 0; column < columns; column++) {
      float expected = 0.0f;
      for (uint32_t i = 0; i < inner; i++) {
        expected += left_at(row * inner + i) * right_at(column * inner + i);
      }
      EXPECT(found[row * columns + column] == expected);
    }
  }
}

struct WordsArguments {
  const uint32_t *input;
  uint32_t *output;
  uint32_t threads, padding;
};

void lanes_exchange_words() {
  constexpr uint32_t threads = 64;
  std::vector<uint32_t> values(threads);
  for (uint32_t i = 0; i < threads; i++) values[i] = i * 2654435761u >> 20;
  const Buffer input(values), output(8 * threads * sizeof(uint32_t));
  launch("exchange", {1, threads},
         WordsArguments{input.as<uint32_t>(), output.as<uint32_t>(), threads, 0});
  const std::vector<uint32_t> found = output.read<uint32_t>();
  uint32_t odd = 0;
  for (uint32_t value : values) odd += value & 1;
  for (uint32_t i = 0; i < threads; i++) {
    const uint32_t lane = i % 32, warp = i - lane;
    uint32_t ballot = 0, equal = 0, greatest = 0;
    for (uint32_t other = 0; other < 32; other++) {
      ballot |= (values[warp + other] & 1) << other;
      equal |= uint32_t((values[warp + other] & 3) == (values[i] & 3)) << other;
      greatest = std::max(greatest, values[warp + other]);
    }
    EXPECT(found[i] == values[i / 8 * 8 + 3]);
    EXPECT(found[threads + i] == values[lane < 5 ? i : i - 5]);
    EXPECT(found[2 * threads + i] == values[lane % 16 + 5 > 15 ? i : i + 5]);
    EXPECT(found[3 * threads + i] == ballot);
    EXPECT(found[4 * threads + i] == equal);
    EXPECT(found[5 * threads + i] == greatest);
    EXPECT(found[6 * threads + i] == odd);
    EXPECT(found[7 * threads + i] == (lane < 7 ? 21u : 0u));
  }
}

struct ConvertArguments {
  const float *input;
  uint16_t *as_bf16, *as_f16;
  uint32_t count, padding;
};

void conversions_round_to_nearest_even() {
  struct Case {
    float value;
    uint16_t bf16, f16;
  };
  const std::vector<Case> cases = {
      {1.0f, 0x3f80, 0x3c00},
      {-0.0f, 0x8000, 0x8000},
      {1.00390625f, 0x3f80, 0x3c04},     // half of the last bit of bf16: to even
      {1.01171875f, 0x3f82, 0x3c0c},     // three halves: to even
      {1.00390637f, 0x3f81, 0x3c04},     // a little more than half
      {65520.0f, 0x4780, 0x7c00},        // beyond the largest f16
      {5.9604645e-8f, 0x3380, 0x0001},   // the least f16
      {3.4028235e38f, 0x7f80, 0x7c00},   // the largest float rounds up to infinity
      {INFINITY, 0x7f80, 0x7c00},
  };
  std::vector<float> values;
  for (const Case &entry : cases) values.push_back(entry.value);
  values.push_back(NAN);
  const uint32_t count = uint32_t(values.size());
  const Buffer input(values), as_bf16(count * 2), as_f16(count * 2);
  launch("convert", {1, 128},
         ConvertArguments{input.as<float>(), as_bf16.as<uint16_t>(), as_f16.as<uint16_t>(), count, 0});
  const auto bf16 = as_bf16.read<uint16_t>(), f16 = as_f16.read<uint16_t>();
  for (size_t i = 0; i < cases.size(); i++) {
    EXPECT(bf16[i] == cases[i].bf16);
    EXPECT(f16[i] == cases[i].f16);
  }
  EXPECT((bf16.back() & 0x7fff) > 0x7f80);
  EXPECT((f16.back() & 0x7fff) > 0x7c00);
}

void blocks_wait_for_earlier_blocks() {
  constexpr uint32_t blocks = 40;
  const Buffer input(std::vector<uint32_t>(blocks, 3));
  const Buffer output(std::vector<uint32_t>(2 * blocks, 0));
  Shape shape{blocks, 32};
  shape.cooperative = true;  // all blocks are alive, in whatever order they start
  launch("pass_along", shape, WordsArguments{input.as<uint32_t>(), output.as<uint32_t>(), 0, 0});
  EXPECT(output.read<uint32_t>()[blocks - 1] == 3 * blocks);
}

struct SmallArguments {
  uint8_t *bytes;
  uint32_t *words;
};

// What `kernel` leaves in words that were zero.
std::vector<uint32_t> words_of(const char *kernel, unsigned blocks, unsigned threads) {
  const Buffer bytes(std::vector<uint8_t>(1024, 0)), words(std::vector<uint32_t>(256, 0));
  launch(kernel, {blocks, threads}, SmallArguments{bytes.as<uint8_t>(), words.as<uint32_t>()});
  return words.read<uint32_t>();
}

void neighbours_write_bytes() {
  const auto words = words_of("neighbouring_bytes", 3, 64);
  for (uint32_t i = 0; i < 3 * 64; i++) EXPECT(words[i] == 3 * (63 - i % 64) + (i % 64 ^ 1));
}

void lanes_synchronise_in_groups() {
  const auto words = words_of("partial_warps", 1, 32);
  for (uint32_t i = 0; i < 32; i++) {
    const uint32_t lane = 31 - i;
    EXPECT(words[i] == (lane < 8 ? (lane ^ 7) + 1 : lane));
  }
}

void warps_pass_stages() {
  const auto words = words_of("pipe_between_warps", 1, 96);
  for (uint32_t lane = 0; lane < 32; lane++) EXPECT(words[lane] == 1500 + 6 * (31 - lane));
}

void warps_pass_words() {
  const auto words = words_of("word_between_warps", 1, 64);
  for (uint32_t lane = 0; lane < 32; lane++) EXPECT(words[lane] == (31 - lane) * (31 - lane));
}

void shared_memory_counts() {
  const auto words = words_of("shared_counters", 1, 64);
  EXPECT(words[0] == 22 && words[1] == 21 && words[2] == 21 && words[3] == 0);
}

void a_lock_guards() {
  const auto words = words_of("guarded_by_a_lock", 6, 64);
  EXPECT(words[0] == 0 && words[1] == 12);
}

const Tests tests{
    {"sums blocks", sums_blocks, "", false},
    {"sums in the last block, acquire and release", sums_with_acquire_release, "", false},
    {"sums in the last block, fences", sums_with_fences, "", false},
    {"grid barrier", grid_barrier_holds, "", false},
    {"sums, twice", sums_twice, "", false},
    {"grid barrier, all threads", grid_barrier_holds_for_all_threads, "", false},
    {"matrix product", matrix_product_is_right, "", false},
    {"exchange of lanes", lanes_exchange_words, "", false},
    {"conversions", conversions_round_to_nearest_even, "", false},
    {"neighbouring bytes", neighbours_write_bytes, "", false},
    {"groups of lanes", lanes_synchronise_in_groups, "", false},
    {"stages between warps", warps_pass_stages, "", false},
    {"words between warps", warps_pass_words, "", false},
    {"shared counters", shared_memory_counts, "", false},
    {"lock", a_lock_guards, "", false},
    {"chain of blocks", blocks_wait_for_earlier_blocks, "", false},
};

}  // namespace
