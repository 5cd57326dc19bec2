// Lays out the rows of blocks, and what enters the first layer with them.
#include "embedding.cuh"

struct StartArguments {
  RowCount draft_rows;
  RowArrays draft;
  RowArrays rows;
  RowArrays slots;
  Embedding embedding;  // without segments, rows begin with the hidden states below
  Matrix first;         // of the first row of each block
  Matrix others;        // of the other rows, one
  Matrix hidden;        // written
  u32 len;              // rows of a block
  u32 distance;         // positions from the drafting row to the first row of its block
  i32 mask_token;
  u32 first_slot;
  u32 num_slots;
  u32 padding;
};
static_assert(sizeof(StartArguments) == 872, "as in src/backend/cuda/block.rs");

// Places a row `distance` positions behind the drafting row of a block.
DEVICE void place_row(const RowArrays &to, u32 row, const RowArrays &draft, u32 block, u32 distance) {
  to.sequence[row] = draft.sequence[block];
  to.position[row] = draft.position[block] + i32(distance);
  // The host's rope positions are any numbers.
  to.rope_position[row] = i32(u32(draft.rope_position[block]) + distance);
}

// Each CUDA block has one row: `blockIdx.y` is its place in its block.
KERNEL(256, start_block, StartArguments) {
  const u32 block = blockIdx.x, place = blockIdx.y;
  const u32 blocks = count_rows(arguments.draft_rows);
  if (block == 0 && place == 0 && threadIdx.x == 0) {
    *arguments.rows.count = i32(blocks * arguments.len);
    *arguments.slots.count = i32(blocks * arguments.num_slots);
  }
  if (block >= blocks) return;
  const u32 row = block * arguments.len + place, slot = place - arguments.first_slot;
  const i32 token = place == 0 ? arguments.draft.token[block] : arguments.mask_token;
  if (threadIdx.x == 0) {
    place_row(arguments.rows, row, arguments.draft, block, arguments.distance + place);
    arguments.rows.token[row] = token;
    // Slots stand at the positions of the rows that sequential drafting would propose them from.
    if (place >= arguments.first_slot && slot < arguments.num_slots) {
      const u32 slot_row = block * arguments.num_slots + slot;
      place_row(arguments.slots, slot_row, arguments.draft, block, slot);
      arguments.slots.source[slot_row] = i32(row);
    }
  }
  const u32 columns = arguments.hidden.columns;
  f32 *to = f32_row(arguments.hidden, row);
  const Norm &norm = arguments.embedding.norm;
  if (arguments.embedding.num_segments != 0) {
    const InputRow input = embedded_row(arguments.embedding, token, columns);
    widen_normed(input.address, input.dtype, input.vectors, columns, norm, to);
  } else {
    const bool is_first = place == 0;
    const u64 from = is_first ? row_address(arguments.first, block) : arguments.others.address;
    const u32 dtype = is_first ? arguments.first.dtype : arguments.others.dtype;
    widen_normed(from, dtype, has_vectors(from, columns), columns, norm, to);
  }
}
