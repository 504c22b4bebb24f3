// What a product does to its numbers before they are stored. The plain code (kernels/src/fused.rs), for a number v of row i, column j of
// [m, n], in this order (the plain code of a row-dot product adds the bias first):
//
//   v += sum over r of scale * low[i][r] * S[r][j]      an adapter: S [rank, n], or [n, rank] with TRANSPOSE_SIDE; rank 0: none
//   v += bias[j]                                        where there is one
//   v = f(v), or f(v) * up[i][j]                        f the activation whose number in activation.cu is `kind - 1`; kind 0: none
//
// A number goes through it alone, one a thread at a time: a product has at most a few thousand to a thread, and one copy of the activations
// in every kernel is enough. Neighbouring lanes take neighbouring columns where the layout of the sums allows it.
//
// Comes after activation.cu, whose functions it uses.
#include "prelude.cuh"

namespace epilogue {

struct Terms {
    const float* bias;  // [n], or null
    const float* low;   // [m, rank]
    const float* side;  // S
    const float* up;    // [m, n], or null
    u32 rank;
    float scale;
    u32 kind;
    u32 flags;

    __device__ __forceinline__ bool any() const { return rank > 0 || bias != nullptr || kind != 0; }
};

// The number at [row][column] of the sum `v`.
DEVICE float finish(float v, u32 row, u32 column, u32 n, const Terms& t) {
    if (t.rank > 0) {
        const float *low = t.low + u64(row) * t.rank, *side = t.side + u64(column) * (t.flags & TRANSPOSE_SIDE ? t.rank : 1);
        const u32 step = t.flags & TRANSPOSE_SIDE ? 1 : n;
#pragma unroll 1
        for (u32 r = t.rank; r > 0; r--, low++, side += step) v = fmaf(t.scale * *low, *side, v);
    }
    if (t.bias != nullptr) v += t.bias[column];
    if (t.kind != 0) {
        v = activation::both(t.kind - 1, v).value;
        if (t.up != nullptr) v *= t.up[u64(row) * n + column];
    }
    return v;
}

// Stores `v`, the sum at [row][column] of C [m, n], finished.
DEVICE void store(float* c, float v, u32 row, u32 column, u32 m, u32 n, u32 flags, const Terms& t) {
    if (row >= m || column >= n) return;
    float* to = c + u64(row) * n + column;
    v = finish(v, row, column, n, t);
    *to = v + (flags & ACCUMULATE ? *to : 0.0f);
}

// As store_block in prelude.cuh, finished: a lane a column.
DEVICE void store_block(float* c, const float* block /* [32][BLOCK_PITCH] */, u32 row, u32 column, u32 m, u32 n, u32 flags,
                        const Terms& t) {
    if (!t.any()) return ::store_block(c, block, row, column, m, n, flags);
    __syncwarp();
#pragma unroll 1
    for (u32 r = 0; r < 32; r++) store(c, block[r * BLOCK_PITCH + lane_index()], row + r, column + lane_index(), m, n, flags, t);
    __syncwarp();
}

// The parts of a sum that is cut: [parts, m, n], and a counter, 0, for every block of columns; null where it is in one part.
struct Parts {
    float* sums;
    u32* counters;
};

// Where there are several parts, and the block is the last of those that share its columns: adds up column0..column0 + width of all parts
// and stores them, finished. Every thread of the block calls it.
DEVICE void join(float* c, const Parts& parts, u32 count, u32 column0, u32 width, u32 m, u32 n, float alpha, u32 flags, const Terms& t,
                 float* shared /* [1] */) {
    if (count == 1 || !is_last_block(parts.counters + blockIdx.x, count, reinterpret_cast<u32*>(shared))) return;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < m * width; i += blockDim.x) {
        const u32 row = i / width, column = column0 + i % width;
        if (column >= n) continue;
        const float* from = parts.sums + u64(row) * n + column;
        float sum = 0.0f;
#pragma unroll 8
        for (u32 p = 0; p < count; p++) sum += load_stored(from + u64(p) * m * n);
        store(c, alpha * sum, row, column, m, n, flags, t);
    }
}

}  // namespace epilogue
