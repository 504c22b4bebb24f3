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

}  // namespace epilogue
