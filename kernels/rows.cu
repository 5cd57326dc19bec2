// Rows of a matrix by their ids, into another matrix: what a drafter with a vocabulary of its own
// takes from the head that the host lends.
#include "device.cuh"

struct CopyRowsArguments {
  const u8 *from;
  u8 *to;
  const i32 *ids;    // [to_rows]
  u64 from_stride;   // bytes from one row to the next
  u64 to_stride;
  u64 row_bytes;     // a multiple of 2
  u32 from_rows;
  u32 to_rows;
};
static_assert(sizeof(CopyRowsArguments) == 56, "as the host lays it out");

// The units of a row, one after the other, by all threads of the block.
template <class Unit>
DEVICE void copy_row(const u8 *from, u8 *to, u64 bytes) {
  const Unit *source = reinterpret_cast<const Unit *>(from);
  Unit *target = reinterpret_cast<Unit *>(to);
  for (u64 unit = threadIdx.x; unit < bytes / sizeof(Unit); unit += blockDim.x) {
    target[unit] = source[unit];
  }
}

KERNEL(256, copy_rows, CopyRowsArguments) {
  // The host's matrices begin anywhere: the widest units that all rows are made of.
  const u64 offsets = reinterpret_cast<u64>(arguments.from) | reinterpret_cast<u64>(arguments.to) |
                      arguments.from_stride | arguments.to_stride | arguments.row_bytes;
  for (u64 row = blockIdx.x; row < arguments.to_rows; row += gridDim.x) {
    const i32 id = arguments.ids[row];
    if (id < 0 || u32(id) >= arguments.from_rows) continue;
    const u8 *from = arguments.from + u64(id) * arguments.from_stride;
    u8 *to = arguments.to + row * arguments.to_stride;
    if (offsets % sizeof(uint4) == 0) {
      copy_row<uint4>(from, to, arguments.row_bytes);
    } else if (offsets % sizeof(u32) == 0) {
      copy_row<u32>(from, to, arguments.row_bytes);
    } else {
      copy_row<u16>(from, to, arguments.row_bytes);
    }
  }
}
