// Products of quantised weights with one token, in the directions of the forward pass: the weights' bytes are all that counts.
//
// What they must equal (kernels/src/cpu/gemv.rs), for a weight W [rows, columns] of one of the formats of quantized.cuh read as f32:
//
//   row-dot form:  y [m, rows]:    y[i][r] = sum over c of x[i][c] * W[r][c]    (+ y[i][r])
//   unit-row form: y [m, columns]: y[i][c] = sum over r of a[i][r] * W[r][c]    (+ y[i][c])
//
// Changed against it:
// * A lane loads 16 bytes of quants at a time, past L1, and several such loads are under way at once; quants become f32 in registers.
// * The blocks run along the sum, so the quants alone are multiplied, and scale and minimum enter once a block:
//   sum of x * (scale * q + minimum) = scale * (sum of x * q) + minimum * (sum of x).
// * Plain rows: a lane's 16 or 32 columns lie apart from its neighbour's, so that each load of activations would touch 32 places. So
//   only 8 lanes share a row and the others take other rows, which read the same activations.
// * Interleaved units: a lane owns four columns and goes down the blocks of 32 rows, all quants of a block loaded at once.
// * The products end with an epilogue, see epilogue.cu.
// * Few rows are shared by 2 or 4 warps of a block, which add up in shared memory; sums down rows are cut by block y, for sum_splits.
#include "prelude.cuh"
#include "quantized.cuh"

namespace gemv_quantized {

using quantized::BLOCK;
using quantized::Q4;
using quantized::Q8;

constexpr u32 ROW_WARPS = 4, ROWS_EACH = 4, UNIT_WARPS = 8;

// 16 bytes of a plain block: columns of it, and the number at one of them.
template <class Q> struct Chunk {
    static constexpr u32 COLUMNS = 4 * Q::NUMBERS;
    DEVICE float number(const u32 (&words)[4], u32 column) {
        if constexpr (Q::NUMBERS == 4) return Q::number(words[column / 4], column % 4);
        return Q::number(words[column % 16 / 4], column % 4 * 2 + column / 16);
    }
};

DEVICE void words_of(u32 (&words)[4], uint4_ v) { words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w; }
DEVICE void floats_of(float (&numbers)[4], float4_ v) { numbers[0] = v.x, numbers[1] = v.y, numbers[2] = v.z, numbers[3] = v.w; }

// Stores the results of row-dot: `shared` [ROW_WARPS, ROWS, M] has those of every warp, `split` neighbours of which have parts of the same.
template <u32 ROWS, u32 M>
DEVICE void store_rows(float* y, const float* shared, u32 m, u32 rows, u32 split, u32 flags, const epilogue::Terms& terms) {
    __syncthreads();
    const u32 groups = ROW_WARPS / split;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < groups * ROWS * M; i += ROW_WARPS * WARP) {
        const u32 group = i / (ROWS * M), at = i % (ROWS * M), row = (blockIdx.x * groups + group) * ROWS + at / M, token = at % M;
        float sum = 0.0f;
#pragma unroll 1
        for (u32 part = 0; part < split; part++) sum += shared[(group * split + part) * ROWS * M + at];
        epilogue::store(y, sum, token, row, m, rows, flags, terms);
    }
}

// Stores the results of unit-row: lane l of every warp has sums of columns l * COLUMNS... of the block's.
template <u32 COLUMNS, u32 M>
DEVICE void store_columns(float* y, const float (&sums)[COLUMNS][M], u32 m, u32 columns, u32 flags, const epilogue::Terms& terms,
                          float* shared /* [UNIT_WARPS, COLUMNS, WARP] */) {
    constexpr u32 WIDTH = COLUMNS * WARP;
#pragma unroll
    for (u32 t = 0; t < M; t++) {
        if (t >= m) break;
#pragma unroll
        for (u32 j = 0; j < COLUMNS; j++) shared[warp_index() * WIDTH + j * WARP + lane_index()] = sums[j][t];
        __syncthreads();
#pragma unroll 1
        for (u32 i = threadIdx.x; i < WIDTH; i += UNIT_WARPS * WARP) {
            const u32 column = blockIdx.x * WIDTH + i;
            float sum = 0.0f;
#pragma unroll
            for (u32 w = 0; w < UNIT_WARPS; w++) sum += shared[w * WIDTH + i % COLUMNS * WARP + i / COLUMNS];
            epilogue::store(y, sum, t, column, m, columns, flags, terms);
        }
        __syncthreads();
    }
}

// Row-dot of plain quants: ROWS_EACH rows a lane, GROUPS of them a warp.
template <class Q, u32 M> struct PlainRows {
    static constexpr u32 LANES = M == 1 ? 8 : 4, GROUPS = WARP / LANES, ROWS = ROWS_EACH * GROUPS, SHARED_NUMBERS = ROW_WARPS * ROWS * M;

    // The sums of this lane's columns, part `part` of `split`, of rows row0, row0 + GROUPS...
    DEVICE void dots(float (&sums)[ROWS_EACH][M], const float* x, const u8* quants, const u16* scales, const u16* minima, u32 row0, u32 m,
                     u32 rows, u32 columns, u32 part, u32 split, u32 flags) {
        constexpr u32 COLUMNS = Chunk<Q>::COLUMNS;
        const u32 blocks = ceil_div(columns, BLOCK), chunks = blocks * (BLOCK / COLUMNS);
#pragma unroll 1
        for (u32 c = part * LANES + lane_index() % LANES; c < chunks; c += LANES * split) {
            u32 words[ROWS_EACH][4];
            float scale[ROWS_EACH], least[ROWS_EACH], partial[ROWS_EACH][M] = {}, total[M] = {};
#pragma unroll
            for (u32 r = 0; r < ROWS_EACH; r++) {
                const u64 row = minimum(row0 + r * GROUPS, rows - 1), block = row * blocks + c / (BLOCK / COLUMNS);
                words_of(words[r], load_once_16(quants + (row * chunks + c) * 16));
                scale[r] = f16_to_f32(scales[block]);
                if constexpr (Q::HAS_MINIMUM) least[r] = f16_to_f32(minima[block]);
            }
            // A word at a time, the next one moving up.
#pragma unroll
            for (u32 word = 0; word < 4; word++) {
#pragma unroll
                for (u32 h = 0; h < COLUMNS / 16; h++) {
                    float w[ROWS_EACH][4];
#pragma unroll
                    for (u32 i = 0; i < ROWS_EACH * 4; i++) w[i / 4][i % 4] = Q::number(words[i / 4][0], COLUMNS / 16 * (i % 4) + h);
#pragma unroll
                    for (u32 t = 0; t < M; t++) {
                        const u32 column = c * COLUMNS + h * 16 + word * 4;
                        const float4_ four = load_4(x, minimum(t, m - 1), column, m, columns, flags & VECTOR_A);
                        if constexpr (Q::HAS_MINIMUM) total[t] += (four.x + four.y) + (four.z + four.w);
#pragma unroll
                        for (u32 r = 0; r < ROWS_EACH; r++) {
                            partial[r][t] = fmaf(w[r][0], four.x, fmaf(w[r][1], four.y, partial[r][t]));
                            partial[r][t] = fmaf(w[r][2], four.z, fmaf(w[r][3], four.w, partial[r][t]));
                        }
                    }
                }
#pragma unroll
                for (u32 r = 0; r < ROWS_EACH; r++) words[r][0] = words[r][1], words[r][1] = words[r][2], words[r][2] = words[r][3];
            }
#pragma unroll
            for (u32 r = 0; r < ROWS_EACH; r++) {
#pragma unroll
                for (u32 t = 0; t < M; t++) {
                    sums[r][t] = fmaf(scale[r], partial[r][t], sums[r][t]);
                    if constexpr (Q::HAS_MINIMUM) sums[r][t] = fmaf(least[r], total[t], sums[r][t]);
                }
            }
        }
    }

    DEVICE void run(float* y, const float* x, const u8* quants, const u16* scales, const u16* minima, u32 m, u32 rows, u32 columns,
                    u32 split, u32 flags, const epilogue::Terms& terms, float* shared /* [ROW_WARPS, ROWS, M] */) {
        const u32 warp = warp_index(), first = (blockIdx.x * (ROW_WARPS / split) + warp / split) * ROWS;
        const u32 place = lane_index() % LANES, group = lane_index() / LANES;
        float sums[ROWS_EACH][M] = {};
        if (first < rows) dots(sums, x, quants, scales, minima, first + group, m, rows, columns, warp % split, split, flags);
#pragma unroll
        for (u32 i = 0; i < ROWS_EACH * M; i++) {
            float sum = sums[i / M][i % M];
#pragma unroll
            for (u32 offset = LANES / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, offset);
            if (i % LANES == place) shared[(warp * ROWS + i / M * GROUPS + group) * M + i % M] = sum;
        }
        store_rows<ROWS, M>(y, shared, m, rows, split, flags, terms);
    }
};

// Unit-row of interleaved quants: four columns a lane, a block of 32 rows at a time, every UNIT_WARPS-th.
template <class Q, u32 M> struct InterleavedUnits {
    static constexpr u32 COLUMNS = 4, SHARED_NUMBERS = UNIT_WARPS * COLUMNS * WARP, OUTERS = BLOCK / Q::NUMBERS;

    DEVICE void block_sums(float (&partial)[COLUMNS][M], float (&total)[M], const u32 (&words)[OUTERS][4], const float* a, u32 row0, u32 m,
                           u32 rows, u32 flags) {
#pragma unroll
        for (u32 r = 0; r < BLOCK; r += 4) {
            float w[COLUMNS][4];
#pragma unroll
            for (u32 i = 0; i < COLUMNS * 4; i++) w[i / 4][i % 4] = Q::number(words[r / Q::NUMBERS][i / 4], r % Q::NUMBERS + i % 4);
#pragma unroll
            for (u32 t = 0; t < M; t++) {
                const float4_ four = load_4(a, minimum(t, m - 1), row0 + r, m, rows, flags & VECTOR_A);
                if constexpr (Q::HAS_MINIMUM) total[t] += (four.x + four.y) + (four.z + four.w);
#pragma unroll
                for (u32 j = 0; j < COLUMNS; j++) {
                    partial[j][t] = fmaf(w[j][0], four.x, fmaf(w[j][1], four.y, partial[j][t]));
                    partial[j][t] = fmaf(w[j][2], four.z, fmaf(w[j][3], four.w, partial[j][t]));
                }
            }
        }
    }

    // The blocks from blockIdx.y * split below the next part.
    DEVICE void run(float* y, const float* a, const u8* quants, const u16* scales, const u16* minima, u32 m, u32 rows, u32 columns,
                    u32 split, u32 flags, const epilogue::Terms& terms, float* shared /* [UNIT_WARPS, COLUMNS, WARP] */) {
        const u32 first = blockIdx.y * split, last = minimum(ceil_div(rows, BLOCK), first + split);
        const bool vector = flags & VECTOR_B;
        const u32 own = (blockIdx.x * WARP + lane_index()) * COLUMNS, column = vector ? minimum(own, columns - COLUMNS) : own;
        const u32 valid = column < columns ? columns - column : 0;
        float sums[COLUMNS][M] = {};
#pragma unroll 1
        for (u32 block = first + warp_index(); block < last; block += UNIT_WARPS) {
            u32 words[OUTERS][4];
            float scale[COLUMNS], least[COLUMNS], partial[COLUMNS][M] = {}, total[M] = {};
            const u64 at = u64(block) * columns + column;
#pragma unroll
            for (u32 o = 0; o < OUTERS; o++) {
                const u32* from = reinterpret_cast<const u32*>(quants) + (u64(block) * OUTERS + o) * columns + column;
                words_of(words[o], quantized::load_words(from, valid, vector));
            }
            floats_of(scale, quantized::load_halves(scales + at, valid, vector));
            if constexpr (Q::HAS_MINIMUM) floats_of(least, quantized::load_halves(minima + at, valid, vector));
            block_sums(partial, total, words, a, block * BLOCK, m, rows, flags);
#pragma unroll
            for (u32 j = 0; j < COLUMNS; j++) {
#pragma unroll
                for (u32 t = 0; t < M; t++) {
                    sums[j][t] = fmaf(scale[j], partial[j][t], sums[j][t]);
                    if constexpr (Q::HAS_MINIMUM) sums[j][t] = fmaf(least[j], total[t], sums[j][t]);
                }
            }
        }
        store_columns<COLUMNS, M>(y + u64(blockIdx.y) * m * columns, sums, m, columns, flags, terms, shared);
    }
};

}  // namespace gemv_quantized

KERNEL(128) gemv_rows_q8(
    float* y,           // [m, rows]
    const float* x,     // [m, columns]
    const u8* quants,   // [rows, blocks, 32]
    const u16* scales,  // [rows, blocks]
    const float* bias,  // [rows], or null
    const float* low,   // [m, rank]
    const float* side,  // [rows, rank]
    const float* up,    // [m, rows], or null
    u32 m, u32 rows, u32 columns, u32 split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    using Product = gemv_quantized::PlainRows<gemv_quantized::Q8, 1>;
    SHARED(float, shared, Product::SHARED_NUMBERS);
    Product::run(y, x, quants, scales, nullptr, m, rows, columns, split, flags, terms, shared);
}
EXPORT(gemv_rows_q8)

KERNEL(128) gemv_rows_q4(
    float* y,           // [m, rows]
    const float* x,     // [m, columns]
    const u8* quants,   // [rows, blocks, 16]
    const u16* scales,  // [rows, blocks]
    const u16* minima,  // [rows, blocks]
    const float* bias,  // [rows], or null
    const float* low,   // [m, rank]
    const float* side,  // [rows, rank]
    const float* up,    // [m, rows], or null
    u32 m, u32 rows, u32 columns, u32 split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    using Product = gemv_quantized::PlainRows<gemv_quantized::Q4, 1>;
    SHARED(float, shared, Product::SHARED_NUMBERS);
    Product::run(y, x, quants, scales, minima, m, rows, columns, split, flags, terms, shared);
}
EXPORT(gemv_rows_q4)

KERNEL(256) gemv_units_q8_interleaved(
    float* y,           // [splits, m, columns]
    const float* a,     // [m, rows]
    const u8* quants,   // [units/4, columns, 4]
    const u16* scales,  // [units/32, columns]
    const float* bias,  // [columns], or null
    const float* low,   // [m, rank]
    const float* side,  // [rank, columns]
    u32 m, u32 rows, u32 columns, u32 split, u32 flags, u32 rank, float low_scale) {
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    using Product = gemv_quantized::InterleavedUnits<gemv_quantized::Q8, 1>;
    SHARED(float, shared, Product::SHARED_NUMBERS);
    Product::run(y, a, quants, scales, nullptr, m, rows, columns, split, flags, terms, shared);
}
EXPORT(gemv_units_q8_interleaved)

KERNEL(256) gemv_units_q4_interleaved(
    float* y,           // [splits, m, columns]
    const float* a,     // [m, rows]
    const u8* quants,   // [units/8, columns, 4]
    const u16* scales,  // [units/32, columns]
    const u16* minima,  // [units/32, columns]
    const float* bias,  // [columns], or null
    const float* low,   // [m, rank]
    const float* side,  // [rank, columns]
    u32 m, u32 rows, u32 columns, u32 split, u32 flags, u32 rank, float low_scale) {
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    using Product = gemv_quantized::InterleavedUnits<gemv_quantized::Q4, 1>;
    SHARED(float, shared, Product::SHARED_NUMBERS);
    Product::run(y, a, quants, scales, minima, m, rows, columns, split, flags, terms, shared);
}
EXPORT(gemv_units_q4_interleaved)
