// How proposals are drawn, as the host's arrays say.
#pragma once
#include "law.cuh"

// One element for each sequence; an array that is not there is 0.
struct Sampling {
  u64 temperature;  // 0: all are greedy
  u64 top_k;
  u64 top_p;
  u64 min_p;
  u64 seed;
};

template <class Element>
DEVICE Element element_of(u64 array, u32 index, Element otherwise) {
  return array != 0 ? reinterpret_cast<const Element *>(array)[index] : otherwise;
}

DEVICE Parameters parameters_of(const Sampling &sampling, u32 sequence) {
  return Parameters{element_of(sampling.temperature, sequence, 0.0f),
                    element_of(sampling.top_k, sequence, 0),
                    element_of(sampling.top_p, sequence, 1.0f),
                    element_of(sampling.min_p, sequence, 0.0f)};
}

// The random number of the proposal for a position; `draft_lane` of src/sampling/philox.rs says why it
// depends on the proposals before it in its round and on its siblings.
DEVICE u64 number_of(const Sampling &sampling, u32 sequence, i64 position, u32 before, u32 rank) {
  const u64 seed = element_of(sampling.seed, sequence, u64(0));
  return uniform(seed, u64(position), for_draft, before << 16 | rank);
}
