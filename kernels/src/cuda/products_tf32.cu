// Products of f32 matrices on tensor cores, as exact as f32: three tf32 products for one (Ootomo and Yokota, "Recovering single precision
// accuracy from Tensor Cores while surpassing the FP32 theoretical peak performance", 2022).
//
// What they must equal is at the top of products_f32.cu. Changed against it:
// * A number is big + small, both of 11 bits: big rounded to nearest, so that small, of either sign, needs 12 and loses at most one. The
//   product is big*big + big*small + small*big; small*small is below the last bit.
// * Tensor cores round every addition towards zero. So each step of k = 8 starts from zero, and its sum is added in f32, to nearest.
// * Tiles stand in shared memory the way they are stored, three slices of k deep, filled by cp.async. Where k is inside, ldmatrix reads
//   fragments (four f32 of a row are eight 16-bit numbers of it); where k is outside, a lane takes 4 neighbouring rows (columns) by one
//   16-byte load and they count as the rows g and g + 8 of two fragments (the columns g of four): only the place of a result changes.
// Infinite operands, and finite ones that round to infinity in 11 bits, give NaN. Block z takes k_split of the k, as in products_f32.cu.
#include "prelude.cuh"

namespace products_tf32 {

constexpr u32 SLICE = 16, STEP = 8, STAGES = 3;

DEVICE void split(u32 bits, u32& big, u32& small) {
    // By integers: the conversion instruction runs at a quarter of their speed. The small part is cut, not rounded: a carry would turn the
    // NaN of all ones into a zero.
    big = (bits + 0x1000u) & ~0x1fffu;
    small = float_bits(bits_float(bits) - bits_float(big)) & ~0x1fffu;
}

// One side of the product: a tile of B rows (columns) of C by SLICE of k.
template <bool K_INSIDE_, u32 B_> struct Side {
    static constexpr bool K_INSIDE = K_INSIDE_;
    static constexpr u32 B = B_;
    using Shape = Tile<K_INSIDE ? B : SLICE, K_INSIDE ? 4 : B / 4, K_INSIDE>;
    static constexpr u32 NUMBERS = Shape::BYTES / 4;

    template <u32 THREADS> DEVICE void load(float* tile, const float* p, u32 i0, u32 k0, u32 size_i, u32 size_k, bool vector) {
        if (K_INSIDE) {
            load_tile<Shape, THREADS>(tile, p, i0, k0, size_i, size_k, vector);
        } else {
            load_tile<Shape, THREADS>(tile, p, k0, i0, size_k, size_i, vector);
        }
    }

    // 8 x 4 blocks of 32 rows from `row` on, of step `step`: r[i][h] is lane's number of rows 8i.. and k 4h...
    DEVICE void take_32(u32 (&r)[4][2], const float* tile, u32 row, u32 step) {
        const u32 lane = lane_index();
        if (K_INSIDE) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                u32 v[4];
                ldmatrix_x4(v, tile + Shape::at(row + half * 16 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2) * 4);
                r[half * 2][0] = v[0], r[half * 2][1] = v[1], r[half * 2 + 1][0] = v[2], r[half * 2 + 1][1] = v[3];
            }
        } else {
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                const u32 at = Shape::at(step * STEP + h * 4 + lane % 4, row / 4 + lane / 4) * 4;
                const uint4_ v = *reinterpret_cast<const uint4_*>(tile + at);
                r[0][h] = v.x, r[1][h] = v.y, r[2][h] = v.z, r[3][h] = v.w;
            }
        }
    }
    // Which of the 32 rows is row g of block i.
    DEVICE u32 row_of(u32 i, u32 g) { return K_INSIDE ? i * 8 + g : g * 4 + i; }
};

template <class A, class B, u32 WARPS_M, u32 WARPS_N>
DEVICE void gemm(float* c, const float* a, const float* b, u32 m, u32 n, u32 k, u32 k_split, float alpha, u32 flags,
                 const epilogue::Terms& terms) {
    // A warp makes 32 or 64 rows by 32 columns.
    constexpr u32 THREADS = WARPS_M * WARPS_N * WARP, ROWS = A::B / WARPS_M, MI = ROWS / 16, NI = 4;
    static_assert(B::B == WARPS_N * 32 && ROWS % 32 == 0, "a warp makes 32 columns");
    static_assert(STAGES * (A::NUMBERS + B::NUMBERS) >= WARPS_M * WARPS_N * BLOCK_NUMBERS, "the results pass where the tiles were");
    DYNAMIC_SHARED(float, tiles);
    float *a_tiles = tiles, *b_tiles = tiles + STAGES * A::NUMBERS;
    const u32 i0 = blockIdx.x * A::B, j0 = blockIdx.y * B::B, first = blockIdx.z * k_split, last = minimum(k, first + k_split);
    const u32 slices = ceil_div(last - first, SLICE), warp_row = warp_index() % WARPS_M * ROWS, warp_column = warp_index() / WARPS_M * 32;
    auto load = [&](u32 slice) {
        if (slice < slices) {
            const u32 k0 = first + slice * SLICE, stage = slice % STAGES;
            A::template load<THREADS>(a_tiles + stage * A::NUMBERS, a, i0, k0, m, k, flags & VECTOR_A);
            B::template load<THREADS>(b_tiles + stage * B::NUMBERS, b, j0, k0, n, k, flags & VECTOR_B);
        }
        cp_async_commit();
    };
    float sums[MI][NI][4] = {};
    // The first turns only load: one loop, so that there is one copy of the loads in the instruction cache.
#pragma unroll 1
    for (u32 turn = 0; turn < slices + STAGES - 1; turn++) {
        if (turn >= STAGES - 1) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();
        }
        load(turn);
        if (turn < STAGES - 1) continue;
        const u32 slice = turn - (STAGES - 1);
        const float *a_tile = a_tiles + slice % STAGES * A::NUMBERS, *b_tile = b_tiles + slice % STAGES * B::NUMBERS;
#pragma unroll
        for (u32 step = 0; step < SLICE / STEP; step++) {
            u32 r[4][2], b_big[NI][2], b_small[NI][2];
            B::take_32(r, b_tile, warp_column, step);
#pragma unroll
            for (u32 j = 0; j < NI; j++) {
                split(r[j][0], b_big[j][0], b_small[j][0]);
                split(r[j][1], b_big[j][1], b_small[j][1]);
            }
#pragma unroll
            for (u32 i = 0; i < MI; i++) {
                if (i % 2 == 0) A::take_32(r, a_tile, warp_row + i * 16, step);
                u32 a_big[4], a_small[4];
#pragma unroll
                for (u32 q = 0; q < 4; q++) split(r[i % 2 * 2 + q % 2][q / 2], a_big[q], a_small[q]);
#pragma unroll
                for (u32 j = 0; j < NI; j++) {
                    float fresh[4] = {};
                    mma_tf32(fresh, a_small, b_big[j]);
                    mma_tf32(fresh, a_big, b_small[j]);
                    mma_tf32(fresh, a_big, b_big[j]);
#pragma unroll
                    for (u32 q = 0; q < 4; q++) sums[i][j][q] += fresh[q];
                }
            }
        }
    }
    cp_async_wait<0>();
    __syncthreads();
    c += u64(blockIdx.z) * m * n;
    const u32 g = lane_index() / 4, t = lane_index() % 4;
    float* block = tiles + warp_index() * BLOCK_NUMBERS;
#pragma unroll
    for (u32 i = 0; i < MI; i += 2) {
#pragma unroll
        for (u32 r = 0; r < 4; r++) {
#pragma unroll
            for (u32 j = 0; j < NI; j++) {
#pragma unroll
                for (u32 h = 0; h < 2; h++) {
                    block[A::row_of(r, g) * BLOCK_PITCH + B::row_of(j, t * 2 + h)] = alpha * sums[i + r / 2][j][r % 2 * 2 + h];
                }
            }
        }
        epilogue::store_block(c, block, i0 + warp_row + i * 16, j0 + warp_column, m, n, flags, terms);
    }
}

template <bool A_K_INSIDE, bool B_K_INSIDE>
DEVICE void gemm_128(float* c, const float* a, const float* b, u32 m, u32 n, u32 k, u32 k_split, float alpha, u32 flags,
                     const epilogue::Terms& terms = {}) {
    gemm<Side<A_K_INSIDE, 128>, Side<B_K_INSIDE, 128>, 2, 4>(c, a, b, m, n, k, k_split, alpha, flags, terms);
}
template <bool A_K_INSIDE, bool B_K_INSIDE>
DEVICE void gemm_64(float* c, const float* a, const float* b, u32 m, u32 n, u32 k, u32 k_split, float alpha, u32 flags,
                    const epilogue::Terms& terms = {}) {
    gemm<Side<A_K_INSIDE, 64>, Side<B_K_INSIDE, 64>, 2, 2>(c, a, b, m, n, k, k_split, alpha, flags, terms);
}

}  // namespace products_tf32

// Without a word about it the compiler spills to fit one more block.
#undef LEAST_BLOCKS
#define LEAST_BLOCKS , 4

KERNEL(128) gemm_tf32_64_nn(
    float* c,           // [splits, m, n]
    const float* a,     // [m, k]
    const float* b,     // [k, n]
    const float* bias,  // [n], or null
    const float* low,   // [m, rank]
    const float* side,  // [rank, n]
    u32 m, u32 n, u32 k, u32 k_split, float alpha, u32 flags, u32 rank, float low_scale) {
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    products_tf32::gemm_64<true, false>(c, a, b, m, n, k, k_split, alpha, flags, terms);
}
EXPORT(gemm_tf32_64_nn)

#undef LEAST_BLOCKS
#define LEAST_BLOCKS

KERNEL(128) gemm_tf32_64_nt(
    float* c,           // [splits, m, n]
    const float* a,     // [m, k]
    const float* b,     // [n, k]
    const float* bias,  // [n], or null
    const float* low,   // [m, rank]
    const float* side,  // [n, rank]
    const float* up,    // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, float alpha, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_tf32::gemm_64<true, true>(c, a, b, m, n, k, k_split, alpha, flags, terms);
}
EXPORT(gemm_tf32_64_nt)

// For six blocks of this one some compilers spill; four leave a thread more registers than it needs.
#undef LEAST_BLOCKS
#define LEAST_BLOCKS , 4

KERNEL(128) gemm_tf32_64_tn(
    float* c,        // [splits, m, n]
    const float* a,  // [k, m]
    const float* b,  // [k, n]
    u32 m, u32 n, u32 k, u32 k_split, float alpha, u32 flags) {
    products_tf32::gemm_64<false, false>(c, a, b, m, n, k, k_split, alpha, flags);
}
EXPORT(gemm_tf32_64_tn)

#undef LEAST_BLOCKS
#define LEAST_BLOCKS

KERNEL(128) gemm_tf32_64_tt(
    float* c,        // [splits, m, n]
    const float* a,  // [k, m]
    const float* b,  // [n, k]
    u32 m, u32 n, u32 k, u32 k_split, float alpha, u32 flags) {
    products_tf32::gemm_64<false, true>(c, a, b, m, n, k, k_split, alpha, flags);
}
EXPORT(gemm_tf32_64_tt)

// Large tiles: the sums of a thread alone are 64 registers, and a second block would not fit without spilling.
#undef LEAST_BLOCKS
#define LEAST_BLOCKS , 1

KERNEL(256) gemm_tf32_128_nn(
    float* c,           // [splits, m, n]
    const float* a,     // [m, k]
    const float* b,     // [k, n]
    const float* bias,  // [n], or null
    const float* low,   // [m, rank]
    const float* side,  // [rank, n]
    u32 m, u32 n, u32 k, u32 k_split, float alpha, u32 flags, u32 rank, float low_scale) {
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    products_tf32::gemm_128<true, false>(c, a, b, m, n, k, k_split, alpha, flags, terms);
}
EXPORT(gemm_tf32_128_nn)

KERNEL(256) gemm_tf32_128_nt(
    float* c,           // [splits, m, n]
    const float* a,     // [m, k]
    const float* b,     // [n, k]
    const float* bias,  // [n], or null
    const float* low,   // [m, rank]
    const float* side,  // [n, rank]
    const float* up,    // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, float alpha, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_tf32::gemm_128<true, true>(c, a, b, m, n, k, k_split, alpha, flags, terms);
}
EXPORT(gemm_tf32_128_nt)

KERNEL(256) gemm_tf32_128_tn(
    float* c,        // [splits, m, n]
    const float* a,  // [k, m]
    const float* b,  // [k, n]
    u32 m, u32 n, u32 k, u32 k_split, float alpha, u32 flags) {
    products_tf32::gemm_128<false, false>(c, a, b, m, n, k, k_split, alpha, flags);
}
EXPORT(gemm_tf32_128_tn)

KERNEL(256) gemm_tf32_128_tt(
    float* c,        // [splits, m, n]
    const float* a,  // [k, m]
    const float* b,  // [n, k]
    u32 m, u32 n, u32 k, u32 k_split, float alpha, u32 flags) {
    products_tf32::gemm_128<false, true>(c, a, b, m, n, k, k_split, alpha, flags);
}
EXPORT(gemm_tf32_128_tt)

#undef LEAST_BLOCKS
#define LEAST_BLOCKS
