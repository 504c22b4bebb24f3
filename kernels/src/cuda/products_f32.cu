// Products of f32 matrices on the ordinary cores, and the sum of the parts of a product that was split over k.
//
// What gemm_f32_* must equal (kernels/src/cpu/matmul.rs), for C [m, n], op(A) [m, k], op(B) [k, n]:
//
//   for i in 0..m { for j in 0..n {
//       let sum = (0..k).map(|p| op(A)[i][p] * op(B)[p][j]).sum();
//       C[i][j] = alpha * sum + if accumulate { C[i][j] } else { 0 };
//   } }
//
// Changed against it: a block makes a 64 x 64 or 128 x 128 tile of C, a thread 4 x 4 or 8 x 8 numbers of it in registers, so that a number
// that was loaded from shared memory enters 4 or 8 multiplications: shared memory gives a warp 128 bytes a cycle, which 2 x 2 could not live
// on. Both operands stand in shared memory with k outside, whichever way they are stored, so that a thread reads its 4 neighbours by one
// 16-byte load. The next slice of k is on its way into registers while this one is multiplied. Block z takes k_split of the k and writes the
// z-th matrix of C, for sum_splits to add up in a fixed order: a small C would leave most of the device idle. Small tiles have
// an epilogue (epilogue.cu), applied to what was stored; large ones have no registers for it, and sum_splits finishes what they make.
#include "prelude.cuh"

namespace products_f32 {

constexpr u32 SLICE = 16;  // of k
constexpr u32 SIDE = 16;   // threads of a block each way

// Of an operand `p`, numbers [i0.., k0..] of its B x SLICE tile: thread by thread four neighbours in the order they are stored.
template <u32 B>
DEVICE void fetch(float4_ (&r)[B / 64], const float* p, bool k_inside, u32 i0, u32 k0, u32 size_i, u32 size_k, bool vector) {
#pragma unroll
    for (u32 c = 0; c < B / 64; c++) {
        const u32 index = threadIdx.x + c * SIDE * SIDE;
        if (k_inside) {
            r[c] = load_4(p, i0 + index / 4, k0 + index % 4 * 4, size_i, size_k, vector);
        } else {
            r[c] = load_4(p, k0 + index / (B / 4), i0 + index % (B / 4) * 4, size_k, size_i, vector);
        }
    }
}

template <u32 B> DEVICE void keep(float* tile /* [SLICE][B + 4] */, const float4_ (&r)[B / 64], bool k_inside) {
#pragma unroll
    for (u32 c = 0; c < B / 64; c++) {
        const u32 index = threadIdx.x + c * SIDE * SIDE;
        if (k_inside) {
            float* to = tile + index % 4 * 4 * (B + 4) + index / 4;
            to[0] = r[c].x;
            to[B + 4] = r[c].y;
            to[2 * (B + 4)] = r[c].z;
            to[3 * (B + 4)] = r[c].w;
        } else {
            *reinterpret_cast<float4_*>(tile + index / (B / 4) * (B + 4) + index % (B / 4) * 4) = r[c];
        }
    }
}

// A thread's numbers of row p of a tile: groups of 4 that are 64 apart, so that a warp's loads lie side by side.
template <u32 B> DEVICE void take(float (&v)[B / SIDE], const float* tile, u32 p, u32 at) {
#pragma unroll
    for (u32 group = 0; group < B / 64; group++) {
        const float4_ w = *reinterpret_cast<const float4_*>(tile + p * (B + 4) + group * 64 + at * 4);
        v[group * 4] = w.x, v[group * 4 + 1] = w.y, v[group * 4 + 2] = w.z, v[group * 4 + 3] = w.w;
    }
}

// Finishes the numbers that this thread has stored, one by one: they are in cache, and the sums have left their registers to the epilogue.
template <u32 B> DEVICE void finish(float* c, u32 i0, u32 j0, u32 m, u32 n, const epilogue::Terms& terms) {
    constexpr u32 EACH = B / SIDE;
    const u32 tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
#pragma unroll 1
    for (u32 at = 0; at < EACH * EACH; at++) {
        const u32 i = at / EACH, j = at % EACH;
        const u32 row = i0 + i / 4 * 64 + ty * 4 + i % 4, column = j0 + j / 4 * 64 + tx * 4 + j % 4;
        if (row < m && column < n) c[u64(row) * n + column] = epilogue::finish(c[u64(row) * n + column], row, column, n, terms);
    }
}

template <u32 B>
DEVICE void gemm(float* c, const float* a, const float* b, u32 m, u32 n, u32 k, u32 k_split, float alpha, u32 flags,
                 const epilogue::Terms& terms, float* a_tiles, float* b_tiles) {
    constexpr u32 EACH = B / SIDE, TILE = SLICE * (B + 4);
    const u32 i0 = blockIdx.x * B, j0 = blockIdx.y * B, first = blockIdx.z * k_split, last = minimum(k, first + k_split);
    const u32 tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    const bool a_k_inside = !(flags & TRANSPOSE_A), b_k_inside = flags & TRANSPOSE_B;
    float sums[EACH][EACH] = {};
    float4_ next_a[B / 64], next_b[B / 64];
    fetch<B>(next_a, a, a_k_inside, i0, first, m, k, flags & VECTOR_A);
    fetch<B>(next_b, b, b_k_inside, j0, first, n, k, flags & VECTOR_B);
    keep<B>(a_tiles, next_a, a_k_inside);
    keep<B>(b_tiles, next_b, b_k_inside);
    __syncthreads();
    u32 now = 0;
    for (u32 k0 = first; k0 < last; k0 += SLICE) {
        const bool more = k0 + SLICE < last;
        if (more) {
            fetch<B>(next_a, a, a_k_inside, i0, k0 + SLICE, m, k, flags & VECTOR_A);
            fetch<B>(next_b, b, b_k_inside, j0, k0 + SLICE, n, k, flags & VECTOR_B);
        }
#pragma unroll 8
        for (u32 p = 0; p < SLICE; p++) {
            float x[EACH], y[EACH];
            take<B>(x, a_tiles + now * TILE, p, ty);
            take<B>(y, b_tiles + now * TILE, p, tx);
#pragma unroll
            for (u32 i = 0; i < EACH; i++) {
#pragma unroll
                for (u32 j = 0; j < EACH; j++) sums[i][j] = fmaf(x[i], y[j], sums[i][j]);
            }
        }
        now ^= 1;
        if (more) {
            keep<B>(a_tiles + now * TILE, next_a, a_k_inside);
            keep<B>(b_tiles + now * TILE, next_b, b_k_inside);
        }
        __syncthreads();
    }
    c += u64(blockIdx.z) * m * n;
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
#pragma unroll
        for (u32 group = 0; group < B / 64; group++) {
            const u32 row = i0 + i / 4 * 64 + ty * 4 + i % 4, column = j0 + group * 64 + tx * 4;
            const float4_ v = {alpha * sums[i][group * 4], alpha * sums[i][group * 4 + 1], alpha * sums[i][group * 4 + 2],
                               alpha * sums[i][group * 4 + 3]};
            store_4(c, v, row, column, m, n, flags);
        }
    }
    if (terms.any()) finish<B>(c, i0, j0, m, n, terms);
}

}  // namespace products_f32

// The epilogue would take the registers of a fifth block.
#undef LEAST_BLOCKS
#define LEAST_BLOCKS , 5

KERNEL(256) gemm_f32_64(
    float* c,           // [splits, m, n]
    const float* a,     // [m, k] or [k, m]
    const float* b,     // [k, n] or [n, k]
    const float* bias,  // [n], or null
    const float* low,   // [m, rank]
    const float* side,  // [rank, n] or [n, rank]
    const float* up,    // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, float alpha, u32 flags, u32 rank, float low_scale, u32 kind) {
    SHARED(float, a_tiles, 2 * 16 * 68);
    SHARED(float, b_tiles, 2 * 16 * 68);
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_f32::gemm<64>(c, a, b, m, n, k, k_split, alpha, flags, terms, a_tiles, b_tiles);
}
EXPORT(gemm_f32_64)

#undef LEAST_BLOCKS
#define LEAST_BLOCKS

KERNEL(256) gemm_f32_128(
    float* c,        // [splits, m, n]
    const float* a,  // [m, k] or [k, m]
    const float* b,  // [k, n] or [n, k]
    u32 m, u32 n, u32 k, u32 k_split, float alpha, u32 flags) {
    SHARED(float, a_tiles, 2 * 16 * 132);
    SHARED(float, b_tiles, 2 * 16 * 132);
    products_f32::gemm<128>(c, a, b, m, n, k, k_split, alpha, flags, epilogue::Terms{}, a_tiles, b_tiles);
}
EXPORT(gemm_f32_128)

// y [m, n] (+)= the sum over the splits of parts [splits, m, n], in their order, finished; count = m n.
KERNEL(256) sum_splits(
    float* y,            // [m, n]
    const float* parts,  // [splits, m, n]
    const float* bias,   // [n], or null
    const float* low,    // [m, rank]
    const float* side,   // [rank, n] or [n, rank]
    const float* up,     // [m, n], or null
    u64 count, u32 n, u32 splits, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    const u64 i = u64(blockIdx.x) * 256 + threadIdx.x;
    if (i >= count) return;
    float sum = flags & ACCUMULATE ? y[i] : 0.0f;
    for (u32 s = 0; s < splits; s++) sum += parts[s * count + i];
    y[i] = terms.any() ? epilogue::finish(sum, u32(i / n), u32(i % n), n, terms) : sum;
}
EXPORT(sum_splits)
