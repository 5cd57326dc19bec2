// The law of a row of logits, and draws from it. On equal logits it is bit for bit the law of the CPU (src/sampling,
// src/backend/cpu/distribution.rs): weights are integers, every filter keeps what lies above a uniquely defined
// boundary, and sums do not depend on an order. The ways there differ: here a boundary is found by histograms over
// keys, and where few keys are left, among those.
//
// Drafting needs three names of this file: Row, Parameters and draw_column, with the number that `uniform` gives for
// (seed, position, FOR_DRAFT).
#pragma once
#include "device.cuh"

// A row of logits.
struct Row {
    const u8* logits;      // the logit of column `first`; global or shared memory
    const i32* token_ids;  // one per column, or NULL; where it is negative, the logit counts as -inf
    u32 dtype;
    u32 first;
    u32 columns;
};

// How tokens are drawn from logits; as in src/sampling/law.rs.
struct Parameters {
    f32 temperature;
    i32 top_k;
    f32 top_p;
    f32 min_p;
};

// What a number is for; as in src/sampling/philox.rs.
enum Purpose : u32 { FOR_DRAFT = 0, FOR_ACCEPTANCE = 1, FOR_EMISSION = 2 };

// The random number for the token at an absolute position.
DEVICE u64 uniform(u64 seed, u64 position, Purpose purpose);

// Logits that are skipped or summed as a whole.
constexpr u32 TILE = 256;

// Shared memory of a block that works on laws.
template <u32 THREADS> struct LawScratch;

// The column that a number stands for, told to all threads of a block that works alone on the row; column 0 where
// there is no candidate. `peaks` and `sums` have an element per tile, in global or shared memory. The block may use
// `scratch`, `peaks` and `sums` again after a barrier.
template <u32 THREADS>
DEVICE u32 draw_column(const Row& row, const Parameters& parameters, u64 number, f32* peaks, u64* sums,
                       LawScratch<THREADS>& scratch);
