// Products of quantised weights on tensor cores where the blocks run across the sum, f32 sums: the backward of those of
// products_quantized_rows.cu and products_quantized_units.cu.
//
// What they must equal (kernels/src/cpu/matmul.rs), for f32 activations and a weight W [rows, columns] of quantized.cuh read as f32:
//
//   unit-row form, plain q8 and q4:       y [m, columns]: y[i][c] = sum over r of a[i][r] * W[r][c]    (+ y[i][c])
//   row-dot form, interleaved q8 and q4:  y [m, rows]:    y[i][r] = sum over c of x[i][c] * W[r][c]    (+ y[i][r])
//
// Changed against it:
// * The scale changes with k, but the 32 outputs of a warp are one block, so that each k has one scale: the activations are multiplied by
//   it, and the quants alone are the other factor. A minimum adds minimum * activation to all outputs of the warp alike.
// * Scaled activations are written as the sum of three bf16, in registers: they have the exponents of f32, so that no scale and no gradient
//   is out of range. bf16 holds the quants exactly. The steps of k = 16 start from zero each, for the reason given in products_half.cu.
//   There is no faster one that rounds activations once: gradients come this way, and the images have to stay small.
// * Activations (f32) and quants stay as stored, three slices of k deep in shared memory, filled by cp.async. A lane has k = 8t + 4 * step
//   to + 3 of a slice in a step's fragments, so that its activations are one load of 16 bytes. Quants are stored by the other dimension:
//   four words, one a k, are taken apart and put together by k in registers.
// * Tiles, splitting of k and the way of the results to memory are those of products_half.cu.
#include "prelude.cuh"
#include "quantized.cuh"

namespace products_quantized_backward {

using quantized::BLOCK;
using quantized::Q4;
using quantized::Q8;

constexpr u32 SLICE = 32, STEPS = 2, STAGES = 3, NI = 4, COLUMNS = 128, BLOCKS = COLUMNS / BLOCK;

// Each weight: the tile of COLUMNS outputs by SLICE of k; where it and its scales begin in the stored matrix; the fragments of 32 outputs
// from `column` on; and which of the 32 is column g of fragment j.

// A tile of plain blocks by k: the rows 8t of a fragment lie in different banks.
template <u32 BLOCK_CHUNKS> struct PlainTile {
    static constexpr u32 ROWS = SLICE, CHUNKS = BLOCKS * BLOCK_CHUNKS, BYTES = ROWS * CHUNKS * 16;
    DEVICE u32 at(u32 row, u32 chunk) { return row * CHUNKS + (chunk ^ (row >> 3 & 3) * BLOCK_CHUNKS); }
};
// The fragment of a step from four words of four bytes, one a k: byte j is of fragment j.
DEVICE void fragment_of_bytes(u32 (&b)[NI][2], const u32 (&words)[4]) {
#pragma unroll
    for (u32 j = 0; j < NI; j++) {
        b[j][0] = quantized::q8_bf16(words[0], words[1], j);
        b[j][1] = quantized::q8_bf16(words[2], words[3], j);
    }
}
// The same of four halves of words of four times four bits.
DEVICE void fragment_of_nibbles(u32 (&b)[NI][2], const u32 (&halves)[4]) {
    const u32 low = __byte_perm(halves[0], halves[1], 0x5410), high = __byte_perm(halves[2], halves[3], 0x5410);
#pragma unroll
    for (u32 j = 0; j < NI; j++) b[j][0] = quantized::q4_bf16(low, j), b[j][1] = quantized::q4_bf16(high, j);
}

struct Plain {
    // Scale i of a tile: its block among the tile's, and k.
    DEVICE u32 block_of(u32 i) { return i % BLOCKS; }
    DEVICE u32 k_of(u32 i) { return i / BLOCKS; }
    DEVICE u64 scale_at(u32 block, u32 k0, u32 n, u32) { return u64(k0) * ceil_div(n, BLOCK) + block; }
};
struct PlainQ8 : Plain {
    using Quants = Q8;
    using Shape = PlainTile<2>;
    template <u32 THREADS> DEVICE void load(u32* tile, const u32* w, u32 column0, u32 k0, u32 n, u32 k, bool) {
        load_tile<Shape, THREADS>(tile, w, k0, column0 / 4, k, ceil_div(n, BLOCK) * 8, true);
    }
    DEVICE void take(u32 (&b)[NI][2], const u32* tile, u32 column, u32 step) {
        const u32 g = lane_index() / 4, t = lane_index() % 4;
        u32 words[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) words[i] = tile[Shape::at(t * 8 + step * 4 + i, column / 16 + g / 4) * 4 + g % 4];
        fragment_of_bytes(b, words);
    }
    DEVICE u32 column_of(u32 j, u32 g) { return g * 4 + j; }
};
struct PlainQ4 : Plain {
    using Quants = Q4;
    using Shape = PlainTile<1>;
    template <u32 THREADS> DEVICE void load(u32* tile, const u32* w, u32 column0, u32 k0, u32 n, u32 k, bool) {
        load_tile<Shape, THREADS>(tile, w, k0, column0 / 8, k, ceil_div(n, BLOCK) * 4, true);
    }
    DEVICE void take(u32 (&b)[NI][2], const u32* tile, u32 column, u32 step) {
        const u32 g = lane_index() / 4, t = lane_index() % 4;
        u32 halves[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            halves[i] = reinterpret_cast<const u16*>(tile)[Shape::at(t * 8 + step * 4 + i, column / 32) * 8 + g];
        }
        fragment_of_nibbles(b, halves);
    }
    // Bytes 2g and 2g + 1 of the block: the lower four bits of byte i are column i, the upper ones column 16 + i.
    DEVICE u32 column_of(u32 j, u32 g) { return g * 2 + j / 2 + j % 2 * 16; }
};

struct Interleaved {
    DEVICE u32 block_of(u32 i) { return i / SLICE; }
    DEVICE u32 k_of(u32 i) { return i % SLICE; }
    DEVICE u64 scale_at(u32 block, u32 k0, u32, u32 k) { return u64(block) * k + k0; }
    DEVICE u32 column_of(u32 j, u32 g) { return g * 4 + j; }
};
struct InterleavedQ8 : Interleaved {
    using Quants = Q8;
    using Shape = Tile<COLUMNS / 4, SLICE / 4, true>;
    template <u32 THREADS> DEVICE void load(u32* tile, const u32* w, u32 column0, u32 k0, u32 n, u32 k, bool vector) {
        load_tile<Shape, THREADS>(tile, w, column0 / 4, k0, ceil_div(n, BLOCK) * 8, k, vector);
    }
    DEVICE void take(u32 (&b)[NI][2], const u32* tile, u32 column, u32 step) {
        const u32 g = lane_index() / 4, t = lane_index() % 4;
        const uint4_ v = *reinterpret_cast<const uint4_*>(tile + Shape::at(column / 4 + g, t * 2 + step) * 4);
        const u32 words[4] = {v.x, v.y, v.z, v.w};
        fragment_of_bytes(b, words);
    }
};
struct InterleavedQ4 : Interleaved {
    using Quants = Q4;
    using Shape = Tile<COLUMNS / 8, SLICE / 4, true>;
    template <u32 THREADS> DEVICE void load(u32* tile, const u32* w, u32 column0, u32 k0, u32 n, u32 k, bool vector) {
        load_tile<Shape, THREADS>(tile, w, column0 / 8, k0, ceil_div(n, BLOCK) * 4, k, vector);
    }
    DEVICE void take(u32 (&b)[NI][2], const u32* tile, u32 column, u32 step) {
        const u32 g = lane_index() / 4, t = lane_index() % 4;
        const uint4_ v = *reinterpret_cast<const uint4_*>(tile + Shape::at(column / 8 + g / 2, t * 2 + step) * 4);
        const u32 shift = g % 2 * 16, halves[4] = {v.x >> shift, v.y >> shift, v.z >> shift, v.w >> shift};
        fragment_of_nibbles(b, halves);
    }
};

// The scales and minima of a slice, [BLOCKS, SLICE] each, which a thread each fetches and keeps as f32.
template <class W> struct Scales {
    static constexpr u32 COUNT = BLOCKS * SLICE, NUMBERS = W::Quants::HAS_MINIMUM ? 2 * COUNT : COUNT;
    u16 scale = 0, least = 0;

    __device__ __forceinline__ void fetch(const u16* scales, const u16* minima, u32 column0, u32 k0, u32 n, u32 k) {
        scale = least = 0;
        const u32 block = column0 / BLOCK + W::block_of(threadIdx.x), at_k = k0 + W::k_of(threadIdx.x);
        if (threadIdx.x >= COUNT || block >= ceil_div(n, BLOCK) || at_k >= k) return;
        const u64 at = W::scale_at(block, at_k, n, k);
        scale = scales[at];
        if constexpr (W::Quants::HAS_MINIMUM) least = minima[at];
    }
    __device__ __forceinline__ void keep(float* tile) {
        if (threadIdx.x >= COUNT) return;
        float* to = tile + W::block_of(threadIdx.x) * SLICE + W::k_of(threadIdx.x);
        to[0] = f16_to_f32(scale);
        if constexpr (W::Quants::HAS_MINIMUM) to[COUNT] = f16_to_f32(least);
    }
};

// The multiplications of a slice: MI x NI fragments of a warp. `rest` takes what minima add to all columns, by lanes t.
template <class W, class A, u32 PARTS, u32 MI>
DEVICE void multiply(float (&sums)[MI][NI][4], float (&rest)[MI][2], const float* a_tile, const u32* b_tile, const float* scales, u32 row,
                     u32 column) {
    const u32 g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (u32 step = 0; step < STEPS; step++) {
        u32 b[NI][2];
        W::take(b, b_tile, column, step);
        const float* at = scales + column + t * 8 + step * 4;
        const float4_ scale = *reinterpret_cast<const float4_*>(at);
        float4_ least = {};
        if constexpr (W::Quants::HAS_MINIMUM) least = *reinterpret_cast<const float4_*>(at + Scales<W>::COUNT);
#pragma unroll
        for (u32 i = 0; i < MI; i++) {
            u32 a[PARTS][4];
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                const float4_ x = *reinterpret_cast<const float4_*>(a_tile + A::at(row + i * 16 + h * 8 + g, t * 2 + step) * 4);
                if constexpr (W::Quants::HAS_MINIMUM) {
                    rest[i][h] = fmaf(x.x, least.x, fmaf(x.y, least.y, fmaf(x.z, least.z, fmaf(x.w, least.w, rest[i][h]))));
                }
                float v[4] = {x.x * scale.x, x.y * scale.y, x.z * scale.z, x.w * scale.w};
#pragma unroll
                for (u32 part = 0; part < PARTS; part++) {
                    // Rows g and g + 8 take turns among the four registers of a fragment.
#pragma unroll
                    for (u32 p = 0; p < 2; p++) {
                        const u32 bits = pack_bf16(v[2 * p], v[2 * p + 1]);
                        a[part][p * 2 + h] = bits;
                        v[2 * p] -= bits_float(bits << 16), v[2 * p + 1] -= bits_float(bits & 0xffff0000u);
                    }
                }
            }
#pragma unroll
            for (u32 j = 0; j < NI; j++) {
                if constexpr (PARTS == 1) {
                    mma_bf16(sums[i][j], a[0], b[j]);
                } else {
                    float fresh[4] = {};
#pragma unroll
                    for (u32 part = PARTS; part-- > 0;) mma_bf16(fresh, a[part], b[j]);
#pragma unroll
                    for (u32 q = 0; q < 4; q++) sums[i][j][q] += fresh[q];
                }
            }
        }
    }
}

template <class W, u32 PARTS, u32 ROWS, u32 WARPS_M>
DEVICE void gemm(float* y, const float* x, const u8* quants, const u16* scales, const u16* minima, u32 m, u32 n, u32 k, u32 k_split,
                 u32 flags) {
    constexpr u32 WARPS_N = COLUMNS / 32, THREADS = WARPS_M * WARPS_N * WARP, MI = ROWS / WARPS_M / 16;
    using A = Tile<ROWS, SLICE / 4, true>;
    static_assert(Scales<W>::COUNT <= THREADS, "a thread fetches a scale");
    DYNAMIC_SHARED(u8, shared);
    // As gemm_quantized of products_quantized.rs counts it; the results pass where all were.
    u8 *a_tiles = shared, *b_tiles = a_tiles + STAGES * A::BYTES;
    float* scale_tiles = reinterpret_cast<float*>(b_tiles + STAGES * W::Shape::BYTES);
    const u32 row0 = blockIdx.x * ROWS, column0 = blockIdx.y * COLUMNS, first = blockIdx.z * k_split, last = minimum(k, first + k_split);
    const u32 slices = ceil_div(last - first, SLICE);
    const u32 warp_row = warp_index() % WARPS_M * (MI * 16), warp_column = warp_index() / WARPS_M * 32;
    auto a_tile = [&](u32 slice) { return reinterpret_cast<float*>(a_tiles + slice % STAGES * A::BYTES); };
    auto b_tile = [&](u32 slice) { return reinterpret_cast<u32*>(b_tiles + slice % STAGES * W::Shape::BYTES); };
    Scales<W> next_scales;
    float sums[MI][NI][4] = {}, rest[MI][2] = {};
    // Turn by turn: slice `turn` is asked for, the scales of slice `next` are stored, and the slice before that, which has come, is
    // multiplied.
#pragma unroll 1
    for (u32 turn = 0; turn < slices + STAGES - 1; turn++) {
        if (turn >= STAGES - 1) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();
        }
        if (turn < slices) {
            const u32 k0 = first + turn * SLICE;
            load_tile<A, THREADS>(a_tile(turn), x, row0, k0, m, k, flags & VECTOR_A);
            W::template load<THREADS>(b_tile(turn), reinterpret_cast<const u32*>(quants), column0, k0, n, k, flags & VECTOR_B);
        }
        cp_async_commit();
        const u32 next = turn - (STAGES - 2);
        const bool more = turn >= STAGES - 2 && next < slices;
        if (more) next_scales.fetch(scales, minima, column0, first + next * SLICE, n, k);
        if (turn >= STAGES - 1) {
            const u32 slice = turn - (STAGES - 1);
            const float* scale_tile = scale_tiles + slice % 2 * Scales<W>::NUMBERS;
            multiply<W, A, PARTS, MI>(sums, rest, a_tile(slice), b_tile(slice), scale_tile, warp_row, warp_column);
        }
        if (more) next_scales.keep(scale_tiles + next % 2 * Scales<W>::NUMBERS);
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
            float added = 0.0f;
            if constexpr (W::Quants::HAS_MINIMUM) {
                added = rest[i + r / 2][r % 2];
                added += __shfl_xor_sync(ALL_LANES, added, 1);
                added += __shfl_xor_sync(ALL_LANES, added, 2);
            }
#pragma unroll
            for (u32 j = 0; j < NI; j++) {
#pragma unroll
                for (u32 h = 0; h < 2; h++) {
                    block[(r * 8 + g) * BLOCK_PITCH + W::column_of(j, t * 2 + h)] = sums[i + r / 2][j][r % 2 * 2 + h] + added;
                }
            }
        }
        store_block(y, block, row0 + warp_row + i * 16, column0 + warp_column, m, n, flags);
    }
}

}  // namespace products_quantized_backward

KERNEL(128) gemm_q8_units_32(
    float* y,           // [splits, m, n]
    const float* x,     // [m, k]
    const u8* quants,   // [k, n blocks, 32]
    const u16* scales,  // [k, n blocks]
    u32 m, u32 n, u32 k, u32 k_split, u32 flags) {
    products_quantized_backward::gemm<products_quantized_backward::PlainQ8, 3, 32, 1>(
        y, x, quants, scales, nullptr, m, n, k, k_split, flags);
}
EXPORT(gemm_q8_units_32)

KERNEL(256) gemm_q8_units_128(
    float* y,           // [splits, m, n]
    const float* x,     // [m, k]
    const u8* quants,   // [k, n blocks, 32]
    const u16* scales,  // [k, n blocks]
    u32 m, u32 n, u32 k, u32 k_split, u32 flags) {
    products_quantized_backward::gemm<products_quantized_backward::PlainQ8, 3, 128, 2>(
        y, x, quants, scales, nullptr, m, n, k, k_split, flags);
}
EXPORT(gemm_q8_units_128)

// Without a word about it the compiler spills to fit one more block.
#undef LEAST_BLOCKS
#define LEAST_BLOCKS , 3

KERNEL(128) gemm_q4_units_32(
    float* y,           // [splits, m, n]
    const float* x,     // [m, k]
    const u8* quants,   // [k, n blocks, 16]
    const u16* scales,  // [k, n blocks]
    const u16* minima,  // [k, n blocks]
    u32 m, u32 n, u32 k, u32 k_split, u32 flags) {
    products_quantized_backward::gemm<products_quantized_backward::PlainQ4, 3, 32, 1>(
        y, x, quants, scales, minima, m, n, k, k_split, flags);
}
EXPORT(gemm_q4_units_32)

#undef LEAST_BLOCKS
#define LEAST_BLOCKS

KERNEL(256) gemm_q4_units_128(
    float* y,           // [splits, m, n]
    const float* x,     // [m, k]
    const u8* quants,   // [k, n blocks, 16]
    const u16* scales,  // [k, n blocks]
    const u16* minima,  // [k, n blocks]
    u32 m, u32 n, u32 k, u32 k_split, u32 flags) {
    products_quantized_backward::gemm<products_quantized_backward::PlainQ4, 3, 128, 2>(
        y, x, quants, scales, minima, m, n, k, k_split, flags);
}
EXPORT(gemm_q4_units_128)

KERNEL(128) gemm_q8_rows_interleaved_32(
    float* y,           // [splits, m, n]
    const float* x,     // [m, k]
    const u8* quants,   // [n/4, k, 4]
    const u16* scales,  // [n/32, k]
    u32 m, u32 n, u32 k, u32 k_split, u32 flags) {
    products_quantized_backward::gemm<products_quantized_backward::InterleavedQ8, 3, 32, 1>(
        y, x, quants, scales, nullptr, m, n, k, k_split, flags);
}
EXPORT(gemm_q8_rows_interleaved_32)

// Without a word about it the compiler spills to fit one more block.
#undef LEAST_BLOCKS
#define LEAST_BLOCKS , 1

KERNEL(256) gemm_q8_rows_interleaved_128(
    float* y,           // [splits, m, n]
    const float* x,     // [m, k]
    const u8* quants,   // [n/4, k, 4]
    const u16* scales,  // [n/32, k]
    u32 m, u32 n, u32 k, u32 k_split, u32 flags) {
    products_quantized_backward::gemm<products_quantized_backward::InterleavedQ8, 3, 128, 2>(
        y, x, quants, scales, nullptr, m, n, k, k_split, flags);
}
EXPORT(gemm_q8_rows_interleaved_128)

#undef LEAST_BLOCKS
#define LEAST_BLOCKS

KERNEL(128) gemm_q4_rows_interleaved_32(
    float* y,           // [splits, m, n]
    const float* x,     // [m, k]
    const u8* quants,   // [n/8, k, 4]
    const u16* scales,  // [n/32, k]
    const u16* minima,  // [n/32, k]
    u32 m, u32 n, u32 k, u32 k_split, u32 flags) {
    products_quantized_backward::gemm<products_quantized_backward::InterleavedQ4, 3, 32, 1>(
        y, x, quants, scales, minima, m, n, k, k_split, flags);
}
EXPORT(gemm_q4_rows_interleaved_32)

KERNEL(256) gemm_q4_rows_interleaved_128(
    float* y,           // [splits, m, n]
    const float* x,     // [m, k]
    const u8* quants,   // [n/8, k, 4]
    const u16* scales,  // [n/32, k]
    const u16* minima,  // [n/32, k]
    u32 m, u32 n, u32 k, u32 k_split, u32 flags) {
    products_quantized_backward::gemm<products_quantized_backward::InterleavedQ4, 3, 128, 2>(
        y, x, quants, scales, minima, m, n, k, k_split, flags);
}
EXPORT(gemm_q4_rows_interleaved_128)
