// What reads a stored matrix row by row: embeddings, learned positions, L1 norms. All are a pass over memory.
//
// What they must equal (kernels/src/cpu/embedding.rs, importance.rs), for a table [rows, columns] of any format read as f32:
//
//   embed:          out[t][c] = table[ids[t]][c]
//   add_positions:  x[b][s][c] += table[start + s][c], where there is a stored position, from that one on
//   row_l1:         out[r] = sum over c of |table[r][c]|
//
// Changed against it: a thread a number, neighbours beside each other, since a row of a table is read as it is stored; a warp a row for the
// norms, lanes summing every 32nd number and then each other. The format is an argument: such a kernel waits for memory, not for a branch
// that all threads take alike.
#include "prelude.cuh"

namespace weights {

// The formats, as weights.rs numbers them.
enum Format : u32 { F32, F16, BF16, F16_PAIRS, BF16_PAIRS };

DEVICE float number(const u8* table, u32 format, u64 row, u32 column, u32 columns) {
    if (format == F32) return reinterpret_cast<const float*>(table)[row * columns + column];
    const bool pairs = format == F16_PAIRS || format == BF16_PAIRS;
    const u64 at = pairs ? (row / 2 * columns + column) * 2 + row % 2 : row * columns + column;
    const u16 bits = reinterpret_cast<const u16*>(table)[at];
    return format == F16 || format == F16_PAIRS ? f16_to_f32(bits) : bf16_to_f32(bits);
}

}  // namespace weights

KERNEL(256) embed(
    float* out,       // [count, columns]
    const u8* table,  // [rows, columns]
    const u32* ids,   // [count]
    u32 count, u32 columns, u32 format) {
    const u64 i = u64(blockIdx.x) * 256 + threadIdx.x;
    if (i >= u64(count) * columns) return;
    out[i] = weights::number(table, format, ids[i / columns], u32(i % columns), columns);
}
EXPORT(embed)

KERNEL(256) add_positions(
    float* x,           // [batch, sequence, columns]
    const u8* table,    // [rows, columns]
    const u32* stored,  // [1], what `start` is added to, or null
    u32 batch, u32 sequence, u32 columns, u32 start, u32 format) {
    const u64 i = u64(blockIdx.x) * 256 + threadIdx.x;
    if (i >= u64(batch) * sequence * columns) return;
    if (stored != nullptr) start += stored[0];
    x[i] += weights::number(table, format, start + i / columns % sequence, u32(i % columns), columns);
}
EXPORT(add_positions)

KERNEL(256) row_l1(
    float* out,       // [rows]
    const u8* table,  // [rows, columns]
    u32 rows, u32 columns, u32 format) {
    const u32 row = blockIdx.x * 8 + warp_index();
    if (row >= rows) return;
    float sum = 0.0f;
    for (u32 c = lane_index(); c < columns; c += WARP) sum += fabsf(weights::number(table, format, row, c, columns));
    sum = warp_sum(sum);
    if (lane_index() == 0) out[row] = sum;
}
EXPORT(row_l1)
