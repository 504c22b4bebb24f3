// Products with f16 and bf16 weights on tensor cores, f32 sums: what the kernels of products_half_rows.cu and products_half_units.cu are
// made of, and scale_rows.
//
// What they must equal (kernels/src/cpu/matmul.rs), for f32 activations and a weight W [rows, columns] read as f32:
//
//   row-dot form:  y [m, rows]:    y[i][r] = sum over c of x[i][c] * W[r][c]    (+ y[i][r])
//   unit-row form: y [m, columns]: y[i][c] = sum over r of a[i][r] * W[r][c]    (+ y[i][c])
//
// Changed against it:
// * Tensor cores want 16-bit activations. The exact kernels write one as a sum: of two f16, high and low (22 bits), or of three bf16
//   (24 bits), one product each, smallest first, and each step of k = 16 starts from zero and is added in f32, to nearest, because tensor
//   cores round every addition towards zero. The fast kernels round it once. Either is done on the way into shared memory, once a block.
// * f16 has few exponents: gradients would vanish and outliers overflow. So a row of activations is first multiplied by the power of two
//   that brings its largest number to 2^14 (scale_rows), and the result divided by it, both without error. bf16 needs none.
// * Weights stay as stored, three slices of k deep in shared memory, filled by cp.async. How a fragment is read depends on the form and
//   layout, see the four Weight structs: ldmatrix for rows, transposed for the unit-row form; pairs [rows/2, columns, 2] are a fragment's
//   register as stored in the unit-row form (4 columns by one 16-byte load), and in the row-dot form become two by swapping halves.
// * Large tiles are 128 x 128 in 8 warps of 64 x 32, small ones 32 x 128 in 4 warps of 32 x 32: with few tokens the weights' bytes count.
// Behind an odd number of rows of pairs stands another unit's number, perhaps a NaN: in the unit-row form it is cleared, since 0 * NaN would
// be added up; in the row-dot form it makes a column that is not stored. Block z takes k_split of the k, as in products_f32.cu.
#include "prelude.cuh"

namespace products_half {

constexpr u32 SLICE = 32, STEP = 16, STAGES = 3, NI = 4, COLUMNS = 128;

struct F16 {
    static constexpr u32 EXACT = 2;
    static constexpr bool SCALED = true;
    DEVICE u32 pack(float low, float high) { return pack_f16(low, high); }
    DEVICE float low(u32 bits) { return f16_to_f32(u16(bits)); }
    DEVICE float high(u32 bits) { return f16_to_f32(u16(bits >> 16)); }
    DEVICE void mma(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_f16(c, a, b); }
};
struct Bf16 {
    static constexpr u32 EXACT = 3;
    static constexpr bool SCALED = false;
    DEVICE u32 pack(float low, float high) { return pack_bf16(low, high); }
    DEVICE float low(u32 bits) { return bits_float(bits << 16); }
    DEVICE float high(u32 bits) { return bits_float(bits & 0xffff0000u); }
    DEVICE void mma(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_bf16(c, a, b); }
};

// The activations' tile, one for each part, and a thread's share of the next one.
template <class H, u32 PARTS, u32 ROWS, u32 THREADS> struct Activations {
    using Shape = Tile<ROWS, SLICE / 8, true>;
    static constexpr u32 NUMBERS = Shape::BYTES / 2, SHARE = ROWS * (SLICE / 8) / THREADS;
    float4_ next[SHARE][2];

    __device__ __forceinline__ void fetch(const float* x, u32 row0, u32 k0, u32 m, u32 k, bool vector) {
#pragma unroll
        for (u32 i = 0; i < SHARE; i++) {
            const u32 index = threadIdx.x + i * THREADS, row = row0 + index / 4, at = k0 + index % 4 * 8;
            next[i][0] = load_4(x, row, at, m, k, vector);
            next[i][1] = load_4(x, row, at + 4, m, k, vector);
        }
    }
    __device__ __forceinline__ void keep(u16* tiles, const float* scales, u32 row0, u32 m) {
#pragma unroll
        for (u32 i = 0; i < SHARE; i++) {
            const u32 index = threadIdx.x + i * THREADS, row = row0 + index / 4;
            float v[8] = {next[i][0].x, next[i][0].y, next[i][0].z, next[i][0].w, next[i][1].x, next[i][1].y, next[i][1].z, next[i][1].w};
            if constexpr (H::SCALED) {
                const float scale = row < m ? scales[row] : 1.0f;
#pragma unroll
                for (u32 j = 0; j < 8; j++) v[j] *= scale;
            }
#pragma unroll
            for (u32 part = 0; part < PARTS; part++) {
                u32 bits[4];
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    bits[j] = H::pack(v[2 * j], v[2 * j + 1]);
                    v[2 * j] -= H::low(bits[j]);
                    v[2 * j + 1] -= H::high(bits[j]);
                }
                *reinterpret_cast<uint4_*>(tiles + part * NUMBERS + Shape::at(index / 4, index % 4) * 8) = {bits[0], bits[1], bits[2], bits[3]};
            }
        }
    }
    // The 16 x 16 fragment of `part` at row `row`, step `step`.
    DEVICE void take(u32 (&a)[4], const u16* tiles, u32 part, u32 row, u32 step) {
        const u32 lane = lane_index();
        ldmatrix_x4(a, tiles + part * NUMBERS + Shape::at(row + lane % 16, step * 2 + lane / 16) * 8);
    }
};

// Each Weight: the tile of COLUMNS outputs by SLICE of k; where it begins in the stored matrix; the fragments of 32 outputs from `column` on;
// and which of the 32 is column g of fragment j.

// Row-dot form of rows: W [n, k].
struct RowsOfRows {
    using Shape = Tile<COLUMNS, SLICE / 8, true>;
    template <u32 THREADS> DEVICE void load(u16* tile, const u16* w, u32 column0, u32 k0, u32 n, u32 k, bool vector) {
        load_tile<Shape, THREADS>(tile, w, column0, k0, n, k, vector);
    }
    DEVICE void take(u32 (&b)[NI][2], const u16* tile, u32 column, u32 step) {
        const u32 lane = lane_index();
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            u32 r[4];
            ldmatrix_x4(r, tile + Shape::at(column + h * 16 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2) * 8);
            b[h * 2][0] = r[0], b[h * 2][1] = r[1], b[h * 2 + 1][0] = r[2], b[h * 2 + 1][1] = r[3];
        }
    }
    DEVICE u32 column_of(u32 j, u32 g) { return j * 8 + g; }
};

// Unit-row form of rows: W [k, n].
struct UnitsOfRows {
    using Shape = Tile<SLICE, COLUMNS / 8, true>;
    template <u32 THREADS> DEVICE void load(u16* tile, const u16* w, u32 column0, u32 k0, u32 n, u32 k, bool vector) {
        load_tile<Shape, THREADS>(tile, w, k0, column0, k, n, vector);
    }
    DEVICE void take(u32 (&b)[NI][2], const u16* tile, u32 column, u32 step) {
        const u32 lane = lane_index();
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            u32 r[4];
            ldmatrix_x4_trans(r, tile + Shape::at(step * STEP + lane % 16, column / 8 + h * 2 + lane / 16) * 8);
            b[h * 2][0] = r[0], b[h * 2][1] = r[1], b[h * 2 + 1][0] = r[2], b[h * 2 + 1][1] = r[3];
        }
    }
    DEVICE u32 column_of(u32 j, u32 g) { return j * 8 + g; }
};

// Unit-row form of pairs: W [k/2, n, 2]. Column 4g + j is column g of fragment j.
struct UnitsOfPairs {
    using Shape = Tile<SLICE / 2, COLUMNS / 4, false>;
    template <u32 THREADS> DEVICE void load(u16* tile, const u16* w, u32 column0, u32 k0, u32 n, u32 k, bool vector) {
        load_tile<Shape, THREADS>(tile, w, k0 / 2, column0 * 2, (k + 1) / 2, n * 2, vector);
    }
    DEVICE void take(u32 (&b)[NI][2], const u16* tile, u32 column, u32 step) {
        const u32 lane = lane_index();
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            const u16* from = tile + Shape::at(step * 8 + h * 4 + lane % 4, column / 4 + lane / 4) * 8;
            const uint4_ v = *reinterpret_cast<const uint4_*>(from);
            b[0][h] = v.x, b[1][h] = v.y, b[2][h] = v.z, b[3][h] = v.w;
        }
    }
    DEVICE u32 column_of(u32 j, u32 g) { return g * 4 + j; }
};

// Row-dot form of pairs: W [n/2, k, 2]. Column 2g + j of 16 is column g of fragment j.
struct RowsOfPairs {
    using Shape = Tile<COLUMNS / 2, SLICE / 4, false>;
    template <u32 THREADS> DEVICE void load(u16* tile, const u16* w, u32 column0, u32 k0, u32 n, u32 k, bool vector) {
        load_tile<Shape, THREADS>(tile, w, column0 / 2, k0 * 2, (n + 1) / 2, k * 2, vector);
    }
    DEVICE void take(u32 (&b)[NI][2], const u16* tile, u32 column, u32 step) {
        const u32 lane = lane_index(), g = lane / 4, t = lane % 4;
#pragma unroll
        for (u32 p = 0; p < 2; p++) {
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                const u16* from = tile + Shape::at(column / 2 + p * 8 + g, step * 4 + h * 2 + t / 2) * 8 + t % 2 * 4;
                const uint2_ v = *reinterpret_cast<const uint2_*>(from);
                b[p * 2][h] = (v.x & 0xffffu) | v.y << 16;
                b[p * 2 + 1][h] = v.x >> 16 | (v.y & 0xffff0000u);
            }
        }
    }
    DEVICE u32 column_of(u32 j, u32 g) { return j / 2 * 16 + g * 2 + j % 2; }
};

template <class A, class B> struct Same {
    static constexpr bool value = false;
};
template <class A> struct Same<A, A> {
    static constexpr bool value = true;
};

// Clears the upper halves of the last pair of a tile that begins at k0, whose second row is not one of the matrix.
template <u32 THREADS> DEVICE void clear_beyond(u16* tile, u32 k0, u32 k) {
    for (u32 i = threadIdx.x; i < COLUMNS; i += THREADS) tile[UnitsOfPairs::Shape::at(k / 2 - k0 / 2, i / 4) * 8 + i % 4 * 2 + 1] = 0;
    __syncthreads();
}

// The multiplications of a slice: MI x NI fragments of a warp.
template <class H, class W, class A, u32 PARTS, u32 MI>
DEVICE void multiply(float (&sums)[MI][NI][4], const u16* a_tile, const u16* b_tile, u32 row, u32 column) {
#pragma unroll
    for (u32 step = 0; step < SLICE / STEP; step++) {
        u32 b[NI][2];
        W::take(b, b_tile, column, step);
#pragma unroll
        for (u32 i = 0; i < MI; i++) {
            u32 a[PARTS][4];
#pragma unroll
            for (u32 part = 0; part < PARTS; part++) A::take(a[part], a_tile, part, row + i * 16, step);
#pragma unroll
            for (u32 j = 0; j < NI; j++) {
                if constexpr (PARTS == 1) {
                    H::mma(sums[i][j], a[0], b[j]);
                } else {
                    float fresh[4] = {};
#pragma unroll
                    for (u32 part = PARTS; part-- > 0;) H::mma(fresh, a[part], b[j]);
#pragma unroll
                    for (u32 q = 0; q < 4; q++) sums[i][j][q] += fresh[q];
                }
            }
        }
    }
}

template <class H, class W, u32 PARTS, u32 ROWS, u32 WARPS_M>
DEVICE void gemm(float* y, const float* x, const u16* w, const float* scales, u32 m, u32 n, u32 k, u32 k_split, u32 flags,
                 const epilogue::Terms& terms) {
    constexpr u32 WARPS_N = COLUMNS / 32, THREADS = WARPS_M * WARPS_N * WARP, MI = ROWS / WARPS_M / 16;
    using A = Activations<H, PARTS, ROWS, THREADS>;
    constexpr u32 B_NUMBERS = W::Shape::BYTES / 2, A_NUMBERS = PARTS * A::NUMBERS;
    static_assert(2 * A_NUMBERS + STAGES * B_NUMBERS >= WARPS_M * WARPS_N * BLOCK_NUMBERS * 2, "the results pass where the tiles were");
    DYNAMIC_SHARED(u16, tiles);
    u16 *a_tiles = tiles, *b_tiles = tiles + 2 * A_NUMBERS;
    const u32 row0 = blockIdx.x * ROWS, column0 = blockIdx.y * COLUMNS, first = blockIdx.z * k_split, last = minimum(k, first + k_split);
    const u32 slices = ceil_div(last - first, SLICE);
    const u32 warp_row = warp_index() % WARPS_M * (MI * 16), warp_column = warp_index() / WARPS_M * 32;
    auto load = [&](u32 slice) {
        if (slice < slices) {
            W::template load<THREADS>(b_tiles + slice % STAGES * B_NUMBERS, w, column0, first + slice * SLICE, n, k, flags & VECTOR_B);
        }
        cp_async_commit();
    };
    A activations;
    float sums[MI][NI][4] = {};
    // Turn by turn: the weights of slice `turn` are asked for, the activations of the slice before are stored, and the one before that, the
    // weights of which have come, is multiplied. One loop, so that there is one copy of each in the instruction cache.
#pragma unroll 1
    for (u32 turn = 0; turn < slices + STAGES - 1; turn++) {
        if (turn >= STAGES - 1) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();
        }
        load(turn);
        const u32 next = turn - 1;
        const bool more = turn > 0 && next < slices;
        if (more) activations.fetch(x, row0, first + next * SLICE, m, k, flags & VECTOR_A);
        if (turn >= STAGES - 1) {
            const u32 slice = turn - (STAGES - 1), k0 = first + slice * SLICE;
            u16* b_tile = b_tiles + slice % STAGES * B_NUMBERS;
            if constexpr (Same<W, UnitsOfPairs>::value) {
                if (k % 2 == 1 && k0 + SLICE > k) clear_beyond<THREADS>(b_tile, k0, k);
            }
            multiply<H, W, A, PARTS, MI>(sums, a_tiles + slice % 2 * A_NUMBERS, b_tile, warp_row, warp_column);
        }
        if (more) activations.keep(a_tiles + next % 2 * A_NUMBERS, scales, row0, m);
    }
    cp_async_wait<0>();
    __syncthreads();
    y += u64(blockIdx.z) * m * n;
    const u32 g = lane_index() / 4, t = lane_index() % 4;
    float* block = reinterpret_cast<float*>(tiles) + warp_index() * BLOCK_NUMBERS;
#pragma unroll
    for (u32 i = 0; i < MI; i += 2) {
#pragma unroll
        for (u32 r = 0; r < 4; r++) {
            const u32 row = row0 + warp_row + i * 16 + r * 8 + g;
            // The reciprocal of a power of two, by its exponent.
            const float unscale = H::SCALED && row < m ? bits_float(0x7f000000u - float_bits(scales[row])) : 1.0f;
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

template <class H, class W, bool EXACT>
DEVICE void gemm_128(float* y, const float* x, const u16* w, const float* scales, u32 m, u32 n, u32 k, u32 k_split, u32 flags,
                     const epilogue::Terms& terms) {
    gemm<H, W, EXACT ? H::EXACT : 1, 128, 2>(y, x, w, scales, m, n, k, k_split, flags, terms);
}
template <class H, class W, bool EXACT>
DEVICE void gemm_32(float* y, const float* x, const u16* w, const float* scales, u32 m, u32 n, u32 k, u32 k_split, u32 flags,
                    const epilogue::Terms& terms) {
    gemm<H, W, EXACT ? H::EXACT : 1, 32, 1>(y, x, w, scales, m, n, k, k_split, flags, terms);
}

}  // namespace products_half

// scales [m] = the power of two that brings the largest of x [m, k]'s row into [2^14, 2^15); 1 for a row of zeros, NaNs or infinities.
KERNEL(256) scale_rows(
    float* scales,   // [m]
    const float* x,  // [m, k]
    u32 m, u32 k, u32 flags) {
    const u32 row = blockIdx.x * 8 + warp_index();
    if (row >= m) return;
    const u32 group = flags & VECTOR_A ? 4 : 1;
    const float* from = x + u64(row) * k;
    u32 largest = 0;
    for (u32 i = lane_index() * group; i < k; i += WARP * group) {
        if (flags & VECTOR_A) {
            const uint4_ v = *reinterpret_cast<const uint4_*>(from + i);
            const u32 xy = maximum(v.x & 0x7fffffffu, v.y & 0x7fffffffu), zw = maximum(v.z & 0x7fffffffu, v.w & 0x7fffffffu);
            largest = maximum(largest, maximum(xy, zw));
        } else {
            largest = maximum(largest, float_bits(from[i]) & 0x7fffffffu);
        }
    }
    // Magnitudes are ordered as their bits are.
    largest = warp_max(largest);
    if (lane_index() == 0) {
        const u32 exponent = largest >> 23;
        const bool plain = largest > 0 && exponent < 255;
        // 14 - (exponent - 127) + 127, of which the reciprocal must be a normal number too.
        scales[row] = plain ? bits_float(minimum(268 - exponent, 253u) << 23) : 1.0f;
    }
}
EXPORT(scale_rows)
