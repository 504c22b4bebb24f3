// Products of quantised weights on tensor cores where the blocks run along the sum, f32 sums: what the kernels of
// products_quantized_rows.cu and products_quantized_units.cu are made of.
//
// What they must equal (kernels/src/cpu/matmul.rs), for f32 activations and a weight W [rows, columns] of quantized.cuh read as f32:
//
//   row-dot form, plain q8 and q4:         y [m, rows]:    y[i][r] = sum over c of x[i][c] * W[r][c]    (+ y[i][r])
//   unit-row form, interleaved q8 and q4:  y [m, columns]: y[i][c] = sum over r of a[i][r] * W[r][c]    (+ y[i][c])
//
// Changed against it:
// * The quants alone are multiplied, as f16, which holds them exactly. A slice of k is one block of 32: its sums, which start from zero,
//   are multiplied by the scale of the block in each column and added up in f32. A minimum adds minimum * (sum of the block's
//   activations), which a row of activations has ready.
// * Activations are written as the sum of two f16 (exact) or rounded once (fast), behind the power of two that scale_rows finds for the
//   row, as in products_half.cu; and the steps of k = 16 of an exact product start from zero each, for the reason given there.
// * Quants stay as stored, four slices deep in shared memory, filled by cp.async. A lane reads the words that it needs of a block and makes
//   fragments of them in registers. Which k a lane has in a fragment is free as long as both factors agree: it is what makes a lane's
//   quants whole words. The activations are stored in shared memory in that order (the Order of a weight), so that a lane reads its share
//   of a row by one load of 16 bytes.
// * Tiles, splitting of k, epilogue and the way of the results to memory are those of products_half.cu.
//
// Comes after products_half.cu, whose tile of activations it uses.
#include "prelude.cuh"
#include "quantized.cuh"

namespace products_quantized {

using quantized::BLOCK;
using quantized::Q4;
using quantized::Q8;

constexpr u32 STEPS = 2, STAGES = 4, NI = 4, COLUMNS = 128;

// A tile whose rows of CHUNKS chunks of 16 bytes stand PITCH chunks apart.
template <u32 ROWS_, u32 CHUNKS_, u32 PITCH> struct PaddedTile {
    static constexpr u32 ROWS = ROWS_, CHUNKS = CHUNKS_, BYTES = ROWS * PITCH * 16;
    DEVICE u32 at(u32 row, u32 chunk) { return row * PITCH + chunk; }
};

// The order of k inside a block. Eight neighbours, chunk c of the block's four, become the pairs (first(i), second(i)). A row of the
// activations' tile has a chunk for each lane t = lane % 4: its pairs for the two halves of the first step's fragment, then of the
// second's.

// Lane t has quants 8t.. of the block; two neighbours make a pair.
struct OrderOfBytes {
    DEVICE u32 first(u32 i) { return 2 * i; }
    DEVICE u32 second(u32 i) { return 2 * i + 1; }
    template <class TILE> DEVICE void store(u16* tile, u32 row, u32 c, const u32 (&pairs)[4]) {
        *reinterpret_cast<uint4_*>(tile + TILE::at(row, c) * 8) = {pairs[0], pairs[1], pairs[2], pairs[3]};
    }
};
// As before; those four apart make a pair.
struct OrderOfInterleavedNibbles : OrderOfBytes {
    DEVICE u32 first(u32 i) { return i; }
    DEVICE u32 second(u32 i) { return i + 4; }
};
// Lane t has quants 4t.. and 16 + 4t.., the lower and the upper four bits of a word; those two apart make a pair.
struct OrderOfPlainNibbles {
    DEVICE u32 first(u32 i) { return i / 2 * 4 + i % 2; }
    DEVICE u32 second(u32 i) { return first(i) + 2; }
    template <class TILE> DEVICE void store(u16* tile, u32 row, u32 c, const u32 (&pairs)[4]) {
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            const uint2_ two = {pairs[2 * h], pairs[2 * h + 1]};
            *reinterpret_cast<uint2_*>(tile + TILE::at(row, c % 2 * 2 + h) * 8 + c / 2 * 4) = two;
        }
    }
};

// Each weight: the tile of COLUMNS outputs by one block; where it and its scales begin in the stored matrix; the fragments [step][j] of 32
// outputs from `column` on; and which of the 32 is column g of fragment j.

struct Rows {
    DEVICE u64 scale_at(u32 column, u32 block, u32, u32 k) { return u64(column) * ceil_div(k, BLOCK) + block; }
    DEVICE u32 column_of(u32 j, u32 g) { return j * 8 + g; }
};
struct RowsQ8 : Rows {
    using Quants = Q8;
    using Order = OrderOfBytes;
    using Shape = PaddedTile<COLUMNS, 2, 2>;
    template <u32 THREADS> DEVICE void load(u32* tile, const u32* w, u32 column0, u32 block, u32 n, u32 k, bool) {
        load_tile<Shape, THREADS>(tile, w, column0, block * 8, n, ceil_div(k, BLOCK) * 8, true);
    }
    DEVICE void take(u32 (&b)[STEPS][NI][2], const u32* tile, u32 column) {
        const u32 g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
        for (u32 j = 0; j < NI; j++) {
            const uint2_ v = *reinterpret_cast<const uint2_*>(tile + Shape::at(column + j * 8 + g, 0) * 4 + t * 2);
            quantized::q8_pairs(b[0][j], v.x), quantized::q8_pairs(b[1][j], v.y);
        }
    }
};
struct RowsQ4 : Rows {
    using Quants = Q4;
    using Order = OrderOfPlainNibbles;
    using Shape = PaddedTile<COLUMNS, 1, 1>;
    template <u32 THREADS> DEVICE void load(u32* tile, const u32* w, u32 column0, u32 block, u32 n, u32 k, bool) {
        load_tile<Shape, THREADS>(tile, w, column0, block * 4, n, ceil_div(k, BLOCK) * 4, true);
    }
    DEVICE void take(u32 (&b)[STEPS][NI][2], const u32* tile, u32 column) {
        const u32 g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
        for (u32 j = 0; j < NI; j++) {
            u32 pairs[4];
            quantized::q4_pairs(pairs, tile[Shape::at(column + j * 8 + g, 0) * 4 + t]);
            b[0][j][0] = pairs[0], b[1][j][0] = pairs[1], b[0][j][1] = pairs[2], b[1][j][1] = pairs[3];
        }
    }
};

// Four neighbouring columns are a chunk, whose words are read at once: column 4g + j is column g of fragment j.
struct Units {
    DEVICE u64 scale_at(u32 column, u32 block, u32 n, u32) { return u64(block) * n + column; }
    DEVICE u32 column_of(u32 j, u32 g) { return g * 4 + j; }
};
struct UnitsQ8 : Units {
    using Quants = Q8;
    using Order = OrderOfBytes;
    // The rows 2t that a quarter of a warp reads lie in different banks.
    using Shape = PaddedTile<8, COLUMNS / 4, COLUMNS / 4 + 1>;
    template <u32 THREADS> DEVICE void load(u32* tile, const u32* w, u32 column0, u32 block, u32 n, u32 k, bool vector) {
        load_tile<Shape, THREADS>(tile, w, block * 8, column0, ceil_div(k, BLOCK) * 8, n, vector);
    }
    DEVICE void take(u32 (&b)[STEPS][NI][2], const u32* tile, u32 column) {
        const u32 g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
        for (u32 step = 0; step < STEPS; step++) {
            const uint4_ v = *reinterpret_cast<const uint4_*>(tile + Shape::at(t * 2 + step, column / 4 + g) * 4);
            quantized::q8_pairs(b[step][0], v.x), quantized::q8_pairs(b[step][1], v.y);
            quantized::q8_pairs(b[step][2], v.z), quantized::q8_pairs(b[step][3], v.w);
        }
    }
};
struct UnitsQ4 : Units {
    using Quants = Q4;
    using Order = OrderOfInterleavedNibbles;
    // The rows t that a quarter of a warp reads lie in different banks.
    using Shape = PaddedTile<4, COLUMNS / 4, COLUMNS / 4 + 2>;
    template <u32 THREADS> DEVICE void load(u32* tile, const u32* w, u32 column0, u32 block, u32 n, u32 k, bool vector) {
        load_tile<Shape, THREADS>(tile, w, block * 4, column0, ceil_div(k, BLOCK) * 4, n, vector);
    }
    DEVICE void take(u32 (&b)[STEPS][NI][2], const u32* tile, u32 column) {
        const u32 g = lane_index() / 4, t = lane_index() % 4;
        const uint4_ v = *reinterpret_cast<const uint4_*>(tile + Shape::at(t, column / 4 + g) * 4);
        const u32 words[NI] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (u32 j = 0; j < NI; j++) {
            u32 pairs[4];
            quantized::q4_pairs(pairs, words[j]);
            b[0][j][0] = pairs[0], b[0][j][1] = pairs[1], b[1][j][0] = pairs[2], b[1][j][1] = pairs[3];
        }
    }
};

// The activations' tile of a block, one for each part, and a thread's share of the next one, which products_half.cu fetches.
template <class W, u32 PARTS, u32 ROWS, u32 THREADS>
struct Activations : products_half::Activations<products_half::F16, PARTS, ROWS, THREADS> {
    using Base = products_half::Activations<products_half::F16, PARTS, ROWS, THREADS>;

    // Stores the parts, and, where there are minima, the sums [ROWS] of the rows.
    __device__ __forceinline__ void keep(u16* tiles, float* sums, const float* powers, u32 row0, u32 m) {
#pragma unroll
        for (u32 i = 0; i < Base::SHARE; i++) {
            const u32 index = threadIdx.x + i * THREADS, row = row0 + index / 4;
            const float4_ low = this->next[i][0], high = this->next[i][1];
            float v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
            const float power = row < m ? powers[row] : 1.0f;
#pragma unroll
            for (u32 j = 0; j < 8; j++) v[j] *= power;
            if constexpr (W::Quants::HAS_MINIMUM) {
                float sum = ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
                sum += __shfl_xor_sync(ALL_LANES, sum, 1);
                sum += __shfl_xor_sync(ALL_LANES, sum, 2);
                if (index % 4 == 0) sums[index / 4] = sum;
            }
#pragma unroll
            for (u32 part = 0; part < PARTS; part++) {
                u32 pairs[4];
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    float &a = v[W::Order::first(j)], &b = v[W::Order::second(j)];
                    pairs[j] = pack_f16(a, b);
                    a -= f16_to_f32(u16(pairs[j]));
                    b -= f16_to_f32(u16(pairs[j] >> 16));
                }
                W::Order::template store<typename Base::Shape>(tiles + part * Base::NUMBERS, index / 4, index % 4, pairs);
            }
        }
    }
    // The 16 x 16 fragments of `part` at row `row`, for both steps.
    DEVICE void take(u32 (&a)[STEPS][PARTS][4], const u16* tiles, u32 part, u32 row) {
        const u32 g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            const u16* from = tiles + part * Base::NUMBERS + Base::Shape::at(row + h * 8 + g, t) * 8;
            const uint4_ v = *reinterpret_cast<const uint4_*>(from);
            a[0][part][h] = v.x, a[0][part][2 + h] = v.y, a[1][part][h] = v.z, a[1][part][2 + h] = v.w;
        }
    }
};

// The scale and minimum of a block for COLUMNS columns, which a thread each fetches and keeps as f32.
template <class W> struct Scales {
    static constexpr u32 NUMBERS = W::Quants::HAS_MINIMUM ? 2 * COLUMNS : COLUMNS;
    u16 scale = 0, least = 0;

    __device__ __forceinline__ void fetch(const u16* scales, const u16* minima, u32 column0, u32 block, u32 n, u32 k) {
        scale = least = 0;
        const u32 column = column0 + threadIdx.x;
        if (threadIdx.x >= COLUMNS || column >= n) return;
        const u64 at = W::scale_at(column, block, n, k);
        scale = scales[at];
        if constexpr (W::Quants::HAS_MINIMUM) least = minima[at];
    }
    __device__ __forceinline__ void keep(float* tile) {
        if (threadIdx.x >= COLUMNS) return;
        tile[threadIdx.x] = f16_to_f32(scale);
        if constexpr (W::Quants::HAS_MINIMUM) tile[COLUMNS + threadIdx.x] = f16_to_f32(least);
    }
};

// The multiplications of a block: MI x NI fragments of a warp.
template <class W, class A, u32 PARTS, u32 MI>
DEVICE void multiply(float (&sums)[MI][NI][4], const u16* a_tile, const float* a_sums, const u32* b_tile, const float* scales, u32 row,
                     u32 column) {
    const u32 g = lane_index() / 4, t = lane_index() % 4;
    u32 b[STEPS][NI][2];
    W::take(b, b_tile, column);
    float scale[NI][2], least[NI][2];
#pragma unroll
    for (u32 j = 0; j < NI; j++) {
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            scale[j][h] = scales[column + W::column_of(j, t * 2 + h)];
            if constexpr (W::Quants::HAS_MINIMUM) least[j][h] = scales[COLUMNS + column + W::column_of(j, t * 2 + h)];
        }
    }
#pragma unroll
    for (u32 i = 0; i < MI; i++) {
        u32 a[STEPS][PARTS][4];
        float total[2];
#pragma unroll
        for (u32 part = 0; part < PARTS; part++) A::take(a, a_tile, part, row + i * 16);
        if constexpr (W::Quants::HAS_MINIMUM) total[0] = a_sums[row + i * 16 + g], total[1] = a_sums[row + i * 16 + 8 + g];
#pragma unroll
        for (u32 j = 0; j < NI; j++) {
            float block[4] = {};
#pragma unroll
            for (u32 step = 0; step < STEPS; step++) {
                if constexpr (PARTS == 1) {
                    mma_f16(block, a[step][0], b[step][j]);
                } else {
                    float fresh[4] = {};
#pragma unroll
                    for (u32 part = PARTS; part-- > 0;) mma_f16(fresh, a[step][part], b[step][j]);
#pragma unroll
                    for (u32 q = 0; q < 4; q++) block[q] += fresh[q];
                }
            }
#pragma unroll
            for (u32 q = 0; q < 4; q++) {
                sums[i][j][q] = fmaf(scale[j][q % 2], block[q], sums[i][j][q]);
                if constexpr (W::Quants::HAS_MINIMUM) sums[i][j][q] = fmaf(least[j][q % 2], total[q / 2], sums[i][j][q]);
            }
        }
    }
}

template <class W, u32 PARTS, u32 ROWS, u32 WARPS_M>
DEVICE void gemm(float* y, const float* x, const u8* quants, const u16* scales, const u16* minima, const float* powers, u32 m, u32 n, u32 k,
                 u32 k_split, u32 flags, const epilogue::Terms& terms) {
    constexpr u32 WARPS_N = COLUMNS / 32, THREADS = WARPS_M * WARPS_N * WARP, MI = ROWS / WARPS_M / 16;
    using A = Activations<W, PARTS, ROWS, THREADS>;
    constexpr u32 A_BYTES = PARTS * A::NUMBERS * 2, A_SUMS = W::Quants::HAS_MINIMUM ? ROWS : 0;
    DYNAMIC_SHARED(u8, shared);
    // As gemm_quantized of products_quantized.rs counts it: two of each but the quants; the results pass where all were.
    u8 *a_tiles = shared, *b_tiles = a_tiles + 2 * A_BYTES;
    float* scale_tiles = reinterpret_cast<float*>(b_tiles + STAGES * W::Shape::BYTES);
    float* a_sums = scale_tiles + 2 * Scales<W>::NUMBERS;
    const u32 row0 = blockIdx.x * ROWS, column0 = blockIdx.y * COLUMNS, first = blockIdx.z * k_split, last = minimum(k, first + k_split);
    const u32 slices = ceil_div(last - first, BLOCK);
    const u32 warp_row = warp_index() % WARPS_M * (MI * 16), warp_column = warp_index() / WARPS_M * 32;
    auto a_tile = [&](u32 slice) { return reinterpret_cast<u16*>(a_tiles + slice % 2 * A_BYTES); };
    auto b_tile = [&](u32 slice) { return reinterpret_cast<u32*>(b_tiles + slice % STAGES * W::Shape::BYTES); };
    A activations = {};
    Scales<W> next_scales;
    float sums[MI][NI][4] = {};
    // Turn by turn: the quants of slice `turn` are asked for, the activations and scales of slice `next` are stored, and the slice before
    // that, the quants of which have come, is multiplied.
#pragma unroll 1
    for (u32 turn = 0; turn < slices + STAGES - 1; turn++) {
        if (turn >= STAGES - 1) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();
        }
        if (turn < slices) {
            const u32* w = reinterpret_cast<const u32*>(quants);
            W::template load<THREADS>(b_tile(turn), w, column0, first / BLOCK + turn, n, k, flags & VECTOR_B);
        }
        cp_async_commit();
        const u32 next = turn - (STAGES - 2);
        const bool more = turn >= STAGES - 2 && next < slices;
        if (more) {
            activations.fetch(x, row0, first + next * BLOCK, m, k, flags & VECTOR_A);
            next_scales.fetch(scales, minima, column0, first / BLOCK + next, n, k);
        }
        if (turn >= STAGES - 1) {
            const u32 slice = turn - (STAGES - 1), odd = slice % 2;
            multiply<W, A, PARTS, MI>(sums, a_tile(slice), a_sums + odd * A_SUMS, b_tile(slice), scale_tiles + odd * Scales<W>::NUMBERS,
                                      warp_row, warp_column);
        }
        if (more) {
            activations.keep(a_tile(next), a_sums + next % 2 * A_SUMS, powers, row0, m);
            next_scales.keep(scale_tiles + next % 2 * Scales<W>::NUMBERS);
        }
    }
    cp_async_wait<0>();
    __syncthreads();
    y += u64(blockIdx.z) * m * n;
    const u32 g = lane_index() / 4, t = lane_index() % 4;
    float* block = reinterpret_cast<float*>(shared) + warp_index() * BLOCK_NUMBERS;
#pragma unroll
    for (u32 i = 0; i < MI; i += 2) {
#pragma unroll
        for (u32 r = 0; r < 4; r++) {
            const u32 row = row0 + warp_row + i * 16 + r * 8 + g;
            // The reciprocal of a power of two, by its exponent.
            const float unscale = row < m ? bits_float(0x7f000000u - float_bits(powers[row])) : 1.0f;
#pragma unroll
            for (u32 j = 0; j < NI; j++) {
#pragma unroll
                for (u32 h = 0; h < 2; h++) {
                    block[(r * 8 + g) * BLOCK_PITCH + W::column_of(j, t * 2 + h)] = unscale * sums[i + r / 2][j][r % 2 * 2 + h];
                }
            }
        }
        epilogue::store_block(y, block, row0 + warp_row + i * 16, column0 + warp_column, m, n, flags, terms);
    }
}

}  // namespace products_quantized
