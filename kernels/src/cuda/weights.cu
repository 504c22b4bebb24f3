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
#include "quantized.cuh"

namespace weights {

// The formats, as weights.rs numbers them.
enum Format : u32 { F32, F16, BF16, F16_PAIRS, BF16_PAIRS, Q8, Q4, Q8_INTERLEAVED, Q4_INTERLEAVED };

// A stored matrix: its numbers or quants, scales and minima where its format has them, columns.
struct Table {
    const u8* numbers;
    const u16 *scales, *minima;
    u32 columns, format;

    DEVICE float quantized(const Table& table, u64 row, u32 column) {
        const u32 columns = table.columns, blocks = ceil_div(columns, quantized::BLOCK);
        const bool interleaved = table.format == Q8_INTERLEAVED || table.format == Q4_INTERLEAVED;
        const u64 block = interleaved ? row / quantized::BLOCK * columns + column : row * blocks + column / quantized::BLOCK;
        const float scale = f16_to_f32(table.scales[block]);
        if (table.format == Q8) return scale * float(i8(table.numbers[block * 32 + column % 32]));
        if (table.format == Q8_INTERLEAVED) return scale * float(i8(table.numbers[(row / 4 * columns + column) * 4 + row % 4]));
        const u64 at = interleaved ? (row / 8 * columns + column) * 4 + row % 8 / 2 : block * 16 + column % 16;
        const bool high = interleaved ? row % 2 == 1 : column % 32 >= 16;
        const u32 quant = high ? table.numbers[at] >> 4 : table.numbers[at] & 15u;
        return fmaf(scale, float(quant), f16_to_f32(table.minima[block]));
    }
    DEVICE float number(const Table& table, u64 row, u32 column) {
        const u32 columns = table.columns, format = table.format;
        if (format == F32) return reinterpret_cast<const float*>(table.numbers)[row * columns + column];
        if (format >= Q8) return quantized(table, row, column);
        const bool pairs = format == F16_PAIRS || format == BF16_PAIRS;
        const u64 at = pairs ? (row / 2 * columns + column) * 2 + row % 2 : row * columns + column;
        const u16 bits = reinterpret_cast<const u16*>(table.numbers)[at];
        return format == F16 || format == F16_PAIRS ? f16_to_f32(bits) : bf16_to_f32(bits);
    }
};

}  // namespace weights

KERNEL(256) embed(
    float* out,           // [count, columns]
    const u8* numbers,    // [rows, columns], or quants
    const u16* scales,    // of the blocks of quants
    const u16* minima,    // of the blocks of 4-bit quants
    const u32* ids,       // [count]
    u32 count, u32 columns, u32 format) {
    const u64 i = u64(blockIdx.x) * 256 + threadIdx.x;
    if (i >= u64(count) * columns) return;
    out[i] = weights::Table::number({numbers, scales, minima, columns, format}, ids[i / columns], u32(i % columns));
}
EXPORT(embed)

KERNEL(256) add_positions(
    float* x,             // [batch, sequence, columns]
    const u8* numbers,    // [rows, columns], or quants
    const u16* scales,    // of the blocks of quants
    const u16* minima,    // of the blocks of 4-bit quants
    const u32* stored,    // [1], what `start` is added to, or null
    u32 batch, u32 sequence, u32 columns, u32 start, u32 format) {
    const u64 i = u64(blockIdx.x) * 256 + threadIdx.x;
    if (i >= u64(batch) * sequence * columns) return;
    if (stored != nullptr) start += stored[0];
    x[i] += weights::Table::number({numbers, scales, minima, columns, format}, start + i / columns % sequence, u32(i % columns));
}
EXPORT(add_positions)

KERNEL(256) row_l1(
    float* out,           // [rows]
    const u8* numbers,    // [rows, columns], or quants
    const u16* scales,    // of the blocks of quants
    const u16* minima,    // of the blocks of 4-bit quants
    u32 rows, u32 columns, u32 format) {
    const u32 row = blockIdx.x * 8 + warp_index();
    if (row >= rows) return;
    const weights::Table table = {numbers, scales, minima, columns, format};
    float sum = 0.0f;
    for (u32 c = lane_index(); c < columns; c += WARP) sum += fabsf(weights::Table::number(table, row, c));
    sum = warp_sum(sum);
    if (lane_index() == 0) out[row] = sum;
}
EXPORT(row_l1)
