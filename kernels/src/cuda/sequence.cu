// Windows to patches, sequences to their means, and the gradients of tables.
//
// The plain code that the kernels equal (cpu/pooling.rs, cpu/embedding.rs):
//
//   patches:            out[b][p][i] = windows[b][p * stride + i]
//   mean_pool:          out[b][j] = sum_t x[b][t][j] / sequence
//   mean_pool_backward: dx[b][t][j] = dy[b][j] / sequence
//   embed_backward:     for token in order: d_table[ids[token]] += dy[token]
//   positions_backward: d_table[start + t] += sum_b dy[b][t]
//
// Ids repeat, and atomic additions would make a run unrepeatable: a block that finds its token's id among the tokens before it leaves; the
// others walk the tokens behind theirs and add up those of their id, in order. The ids are compared 256 at a time, a ballot a warp.

#include "prelude.cuh"

namespace sequence {

constexpr u32 THREADS = 256;

}  // namespace sequence

// A thread a number of `out`.
KERNEL(256) patches(
    float* out,            // [batch, count, patch]
    const float* windows,  // [batch, window]
    u64 len, u32 window, u32 count, u32 patch, u32 stride) {
    const u64 i = u64(blockIdx.x) * sequence::THREADS + threadIdx.x;
    if (i >= len) return;
    out[i] = windows[i / patch / count * window + i / patch % count * stride + i % patch];
}
EXPORT(patches)

// A block: 32 columns of one sequence, 8 positions at a time. Blocks: ceil(d / 32) * batch.
KERNEL(256) mean_pool(
    float* out,      // [batch, d]
    const float* x,  // [batch, positions, d]
    u32 positions, u32 d) {
    SHARED(float, sums, sequence::THREADS);
    const u32 stripes = ceil_div(d, WARP), column = blockIdx.x % stripes * WARP + lane_index();
    const u64 b = blockIdx.x / stripes;
    float sum = 0.0f;
    if (column < d) {
#pragma unroll 4
        for (u32 t = warp_index(); t < positions; t += 8) sum += x[(b * positions + t) * d + column];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp_index() != 0 || column >= d) return;
    for (u32 i = 1; i < 8; i++) sum += sums[i * WARP + lane_index()];
    out[b * d + column] = sum * (1.0f / float(positions));
}
EXPORT(mean_pool)

// A thread a number of `dx`.
KERNEL(256) mean_pool_backward(
    float* dx,        // [batch, positions, d]
    const float* dy,  // [batch, d]
    u64 len, u32 positions, u32 d) {
    const u64 i = u64(blockIdx.x) * sequence::THREADS + threadIdx.x;
    if (i >= len) return;
    dx[i] = dy[i / d / positions * d + i % d] * (1.0f / float(positions));
}
EXPORT(mean_pool_backward)

// A block: token blockIdx.x, 256 columns. Blocks: [count, ceil(columns / 256)].
KERNEL(256) embed_backward(
    float* d_table,   // [rows, columns]
    const float* dy,  // [count, columns]
    const u32* ids,   // [count], all below rows
    u32 count, u32 columns) {
    SHARED(u32, matches, sequence::THREADS / WARP);
    const u32 token = blockIdx.x, id = ids[token], column = blockIdx.y * sequence::THREADS + threadIdx.x;
    float sum = 0.0f;
    for (u32 base = 0; base < count; base += sequence::THREADS) {
        const u32 other = base + threadIdx.x;
        const u32 ballot = __ballot_sync(ALL_LANES, other < count && ids[other] == id);
        if (lane_index() == 0) matches[warp_index()] = ballot;
        __syncthreads();
        for (u32 w = 0; w < sequence::THREADS / WARP; w++) {
            const u32 word = matches[w], first = base + w * WARP;
            if (word == 0) continue;
            for (u32 bit = 0; bit < WARP; bit++) {
                if ((word >> bit & 1) == 0) continue;
                // Every thread reads the same words, so a block leaves as a whole.
                if (first + bit < token) return;
                if (column < columns) sum += dy[u64(first + bit) * columns + column];
            }
        }
        __syncthreads();
    }
    if (column < columns) d_table[u64(id) * columns + column] += sum;
}
EXPORT(embed_backward)

// A thread a number of the table's rows from `start` on.
KERNEL(256) positions_backward(
    float* d_table,   // [start + positions, columns]
    const float* dy,  // [batch, positions, columns]
    u32 batch, u64 positions_columns, u64 offset) {
    const u64 i = u64(blockIdx.x) * sequence::THREADS + threadIdx.x;
    if (i >= positions_columns) return;
    float sum = d_table[offset + i];
#pragma unroll 4
    for (u32 b = 0; b < batch; b++) sum += dy[b * positions_columns + i];
    d_table[offset + i] = sum;
}
EXPORT(positions_backward)
