// Products of quantised weights with one token, in the directions of the forward pass: the weights' bytes are all that counts.
//
// What they must equal (kernels/src/cpu/gemv.rs), for a weight W [rows, columns] of one of the formats of quantized.cuh read as f32:
//
//   row-dot form:  y [rows]:    y[r] = sum over c of x[c] * W[r][c]    (+ y[r])
//                  the same for each of up to three matrices, or y[r] = f(g) * u with u and g such sums of up and gate (kernels/src/fused.rs)
//   unit-row form: y [columns]: y[c] = sum over r of a[r] * W[r][c]    (+ y[c])
//
// Changed against it:
// * A lane loads 16 bytes of quants at a time, past L1, and several such loads are under way at once; quants become f32 in registers.
// * The blocks run along the sum, so the quants alone are multiplied, and scale and minimum enter once a block:
//   sum of x * (scale * q + minimum) = scale * (sum of x * q) + minimum * (sum of x).
// * Plain rows: a lane's 16 or 32 columns lie apart from its neighbour's, so that each load of activations would touch 32 places. So
//   only 8 lanes share a row and the others take other rows, which read the same activations.
// * Interleaved units: a lane owns four columns and goes down the blocks of 32 rows, all quants of a block loaded at once.
// * The products end with an epilogue, see epilogue.cu.
// * Products in row-dot form of the same x start together, as in gemv_fused.cu: a block works on one matrix, or its warps by turns on the same
//   rows of up and gate.
// * Few rows are shared by 2 or 4 warps of a block, which add up in shared memory; sums down rows are cut by block y, and the last block of
//   some columns adds the parts up.
#include "prelude.cuh"
#include "quantized.cuh"

namespace gemv_quantized {

using quantized::BLOCK;
using quantized::Q4;
using quantized::Q8;

constexpr u32 ROW_WARPS = 4, ROWS_EACH = 4, UNIT_WARPS = 8;
// A flag: the matrices are up and gate.
constexpr u32 GATED = 128;

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

// A matrix of a launch in row-dot form, and its result. The blocks of the first come first.
struct Matrix {
    float* y;            // [rows]
    const u8* quants;    // [rows, blocks, 32 or 16]
    const u16* scales;   // [rows, blocks]
    const u16* minima;   // [rows, blocks], or null
    const float* bias;   // [rows], or null
    u32 rows, blocks;
};

// Field by field, so that none of them goes through memory.
DEVICE Matrix pick(u32 number, const Matrix& a, const Matrix& b, const Matrix& c) {
    const bool is_a = number == 0, is_b = number == 1;
    return {is_a ? a.y : is_b ? b.y : c.y,
            is_a ? a.quants : is_b ? b.quants : c.quants,
            is_a ? a.scales : is_b ? b.scales : c.scales,
            is_a ? a.minima : is_b ? b.minima : c.minima,
            is_a ? a.bias : is_b ? b.bias : c.bias,
            is_a ? a.rows : is_b ? b.rows : c.rows,
            is_a ? a.blocks : is_b ? b.blocks : c.blocks};
}

// Row-dot of plain quants: ROWS_EACH rows a lane, GROUPS of them a warp.
template <class Q> struct PlainRows {
    static constexpr u32 LANES = 8, GROUPS = WARP / LANES, ROWS = ROWS_EACH * GROUPS, SHARED_NUMBERS = ROW_WARPS * ROWS;

    // The sums of this lane's columns, part `part` of `split`, of rows row0, row0 + GROUPS...
    DEVICE void dots(float (&sums)[ROWS_EACH], const float* x, const u8* quants, const u16* scales, const u16* minima, u32 row0, u32 rows,
                     u32 columns, u32 part, u32 split, u32 flags) {
        constexpr u32 COLUMNS = Chunk<Q>::COLUMNS;
        const u32 blocks = ceil_div(columns, BLOCK), chunks = blocks * (BLOCK / COLUMNS);
#pragma unroll 1
        for (u32 c = part * LANES + lane_index() % LANES; c < chunks; c += LANES * split) {
            u32 words[ROWS_EACH][4];
            float scale[ROWS_EACH], least[ROWS_EACH], partial[ROWS_EACH] = {}, total = 0.0f;
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
                    const float4_ four = load_4(x, 0, c * COLUMNS + h * 16 + word * 4, 1, columns, flags & VECTOR_A);
                    if constexpr (Q::HAS_MINIMUM) total += (four.x + four.y) + (four.z + four.w);
#pragma unroll
                    for (u32 r = 0; r < ROWS_EACH; r++) {
                        partial[r] = fmaf(w[r][0], four.x, fmaf(w[r][1], four.y, partial[r]));
                        partial[r] = fmaf(w[r][2], four.z, fmaf(w[r][3], four.w, partial[r]));
                    }
                }
#pragma unroll
                for (u32 r = 0; r < ROWS_EACH; r++) words[r][0] = words[r][1], words[r][1] = words[r][2], words[r][2] = words[r][3];
            }
#pragma unroll
            for (u32 r = 0; r < ROWS_EACH; r++) {
                sums[r] = fmaf(scale[r], partial[r], sums[r]);
                if constexpr (Q::HAS_MINIMUM) sums[r] = fmaf(least[r], total, sums[r]);
            }
        }
    }

    // The sum that `split` neighbouring warps from `warp` on have parts of.
    DEVICE float whole(const float* shared, u32 warp, u32 split, u32 row) {
        float sum = 0.0f;
#pragma unroll 1
        for (u32 part = 0; part < split; part++) sum += shared[(warp + part) * ROWS + row];
        return sum;
    }

    // `split` neighbouring warps have parts of the same rows. With GATED the first matrix is up and the second the gate, which say where
    // the result goes; the terms' bias is not used.
    DEVICE void run(const Matrix& first, const Matrix& second, const Matrix& third, const float* x, u32 columns, u32 split, u32 flags,
                    epilogue::Terms terms, float* shared /* [ROW_WARPS, ROWS] */) {
        const bool gated = flags & GATED;
        const u32 warp = warp_index(), turns = gated ? 2 : 1, groups = ROW_WARPS / split / turns, own = warp / split;
        const u32 number = gated ? own % 2 : (blockIdx.x >= first.blocks) + (blockIdx.x >= first.blocks + second.blocks);
        const u32 before = gated || number == 0 ? 0 : first.blocks + (number == 1 ? 0 : second.blocks), block = blockIdx.x - before;
        const Matrix w = pick(number, first, second, third);
        const u32 row0 = (block * groups + own / turns) * ROWS, place = lane_index() % LANES, group = lane_index() / LANES;
        float sums[ROWS_EACH] = {};
        if (row0 < w.rows) dots(sums, x, w.quants, w.scales, w.minima, row0 + group, w.rows, columns, warp % split, split, flags);
#pragma unroll
        for (u32 r = 0; r < ROWS_EACH; r++) {
            float sum = sums[r];
#pragma unroll
            for (u32 offset = LANES / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, offset);
            if (r == place) shared[warp * ROWS + r * GROUPS + group] = sum;
        }
        __syncthreads();
        const Matrix out = pick(gated ? 1 : number, first, second, third);
        terms.bias = out.bias;
#pragma unroll 1
        for (u32 i = threadIdx.x; i < groups * ROWS; i += ROW_WARPS * WARP) {
            const u32 row = block * groups * ROWS + i, from = i / ROWS * turns * split;
            if (row >= out.rows) continue;
            // The last of the turns ends with the epilogue.
            float v = epilogue::finish(whole(shared, from + (turns - 1) * split, split, i % ROWS), 0, row, out.rows, terms);
            if (gated) v *= whole(shared, from, split, i % ROWS) + (first.bias != nullptr ? first.bias[row] : 0.0f);
            out.y[row] = v + (flags & ACCUMULATE ? out.y[row] : 0.0f);
        }
    }
};

// Unit-row of interleaved quants: four columns a lane, a block of 32 rows at a time, every UNIT_WARPS-th.
template <class Q> struct InterleavedUnits {
    static constexpr u32 COLUMNS = 4, WIDTH = COLUMNS * WARP, SHARED_NUMBERS = UNIT_WARPS * WIDTH, OUTERS = BLOCK / Q::NUMBERS;

    DEVICE void block_sums(float (&partial)[COLUMNS], float& total, const u32 (&words)[OUTERS][4], const float* a, u32 row0, u32 rows,
                           u32 flags) {
#pragma unroll
        for (u32 r = 0; r < BLOCK; r += 4) {
            float w[COLUMNS][4];
#pragma unroll
            for (u32 i = 0; i < COLUMNS * 4; i++) w[i / 4][i % 4] = Q::number(words[r / Q::NUMBERS][i / 4], r % Q::NUMBERS + i % 4);
            const float4_ four = load_4(a, 0, row0 + r, 1, rows, flags & VECTOR_A);
            if constexpr (Q::HAS_MINIMUM) total += (four.x + four.y) + (four.z + four.w);
#pragma unroll
            for (u32 j = 0; j < COLUMNS; j++) {
                partial[j] = fmaf(w[j][0], four.x, fmaf(w[j][1], four.y, partial[j]));
                partial[j] = fmaf(w[j][2], four.z, fmaf(w[j][3], four.w, partial[j]));
            }
        }
    }

    // The blocks from blockIdx.y * split below the next part.
    DEVICE void run(float* y, const epilogue::Parts& parts, const float* a, const u8* quants, const u16* scales, const u16* minima, u32 rows,
                    u32 columns, u32 split, u32 flags, const epilogue::Terms& terms, float* shared /* [UNIT_WARPS, COLUMNS, WARP] */) {
        const u32 first = blockIdx.y * split, last = minimum(ceil_div(rows, BLOCK), first + split), column0 = blockIdx.x * WIDTH;
        const bool vector = flags & VECTOR_B;
        const u32 own = column0 + lane_index() * COLUMNS, column = vector ? minimum(own, columns - COLUMNS) : own;
        const u32 valid = column < columns ? columns - column : 0;
        float sums[COLUMNS] = {};
#pragma unroll 1
        for (u32 block = first + warp_index(); block < last; block += UNIT_WARPS) {
            u32 words[OUTERS][4];
            float scale[COLUMNS], least[COLUMNS], partial[COLUMNS] = {}, total = 0.0f;
            const u64 at = u64(block) * columns + column;
#pragma unroll
            for (u32 o = 0; o < OUTERS; o++) {
                const u32* from = reinterpret_cast<const u32*>(quants) + (u64(block) * OUTERS + o) * columns + column;
                words_of(words[o], quantized::load_words(from, valid, vector));
            }
            floats_of(scale, quantized::load_halves(scales + at, valid, vector));
            if constexpr (Q::HAS_MINIMUM) floats_of(least, quantized::load_halves(minima + at, valid, vector));
            block_sums(partial, total, words, a, block * BLOCK, rows, flags);
#pragma unroll
            for (u32 j = 0; j < COLUMNS; j++) {
                sums[j] = fmaf(scale[j], partial[j], sums[j]);
                if constexpr (Q::HAS_MINIMUM) sums[j] = fmaf(least[j], total, sums[j]);
            }
        }
#pragma unroll
        for (u32 j = 0; j < COLUMNS; j++) shared[warp_index() * WIDTH + j * WARP + lane_index()] = sums[j];
        __syncthreads();
        const u32 i = threadIdx.x, count = gridDim.y;
        if (i < WIDTH && column0 + i < columns) {
            float sum = 0.0f;
#pragma unroll
            for (u32 w = 0; w < UNIT_WARPS; w++) sum += shared[w * WIDTH + i % COLUMNS * WARP + i / COLUMNS];
            if (count > 1) {
                parts.sums[u64(blockIdx.y) * columns + column0 + i] = sum;
            } else {
                epilogue::store(y, sum, 0, column0 + i, 1, columns, flags, terms);
            }
        }
        epilogue::join(y, parts, count, column0, WIDTH, 1, columns, 1.0f, flags, terms, shared);
    }
};

}  // namespace gemv_quantized

KERNEL(128) gemv_rows_q8(
    float* y0,           // [rows0]
    float* y1,           // [rows1]
    float* y2,           // [rows2]
    const float* x,      // [columns]
    const u8* quants0,   // [rows0, blocks, 32]
    const u8* quants1,   // [rows1, blocks, 32]
    const u8* quants2,   // [rows2, blocks, 32]
    const u16* scales0,  // [rows0, blocks]
    const u16* scales1,  // [rows1, blocks]
    const u16* scales2,  // [rows2, blocks]
    const float* bias1,  // [rows1], or null
    const float* bias2,  // [rows2], or null
    const float* bias0,  // [rows0], or null
    const float* low,    // [rank]
    const float* side,   // [rows0, rank]
    const float* up,     // [rows0], or null
    u32 rows0, u32 rows1, u32 rows2, u32 blocks0, u32 blocks1, u32 columns, u32 split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {nullptr, low, side, up, rank, low_scale, kind, flags};
    using Product = gemv_quantized::PlainRows<gemv_quantized::Q8>;
    SHARED(float, shared, Product::SHARED_NUMBERS);
    Product::run({y0, quants0, scales0, nullptr, bias0, rows0, blocks0}, {y1, quants1, scales1, nullptr, bias1, rows1, blocks1},
                 {y2, quants2, scales2, nullptr, bias2, rows2, 0}, x, columns, split, flags, terms, shared);
}
EXPORT(gemv_rows_q8)

KERNEL(128) gemv_rows_q4(
    float* y0,           // [rows0]
    float* y1,           // [rows1]
    float* y2,           // [rows2]
    const float* x,      // [columns]
    const u8* quants0,   // [rows0, blocks, 16]
    const u8* quants1,   // [rows1, blocks, 16]
    const u8* quants2,   // [rows2, blocks, 16]
    const u16* scales0,  // [rows0, blocks]
    const u16* scales1,  // [rows1, blocks]
    const u16* scales2,  // [rows2, blocks]
    const u16* minima0,  // [rows0, blocks]
    const u16* minima1,  // [rows1, blocks]
    const u16* minima2,  // [rows2, blocks]
    const float* bias1,  // [rows1], or null
    const float* bias2,  // [rows2], or null
    const float* bias0,  // [rows0], or null
    const float* low,    // [rank]
    const float* side,   // [rows0, rank]
    const float* up,     // [rows0], or null
    u32 rows0, u32 rows1, u32 rows2, u32 blocks0, u32 blocks1, u32 columns, u32 split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {nullptr, low, side, up, rank, low_scale, kind, flags};
    using Product = gemv_quantized::PlainRows<gemv_quantized::Q4>;
    SHARED(float, shared, Product::SHARED_NUMBERS);
    Product::run({y0, quants0, scales0, minima0, bias0, rows0, blocks0}, {y1, quants1, scales1, minima1, bias1, rows1, blocks1},
                 {y2, quants2, scales2, minima2, bias2, rows2, 0}, x, columns, split, flags, terms, shared);
}
EXPORT(gemv_rows_q4)

// Two blocks are not enough to keep memory busy.
#undef LEAST_BLOCKS
#define LEAST_BLOCKS , 3

KERNEL(256) gemv_units_q8_interleaved(
    float* y,           // [columns]
    float* sums,        // [splits, columns], or null for one
    u32* counters,      // [blocks of columns], 0
    const float* a,     // [rows]
    const u8* quants,   // [units/4, columns, 4]
    const u16* scales,  // [units/32, columns]
    const float* bias,  // [columns], or null
    const float* low,   // [rank]
    const float* side,  // [rank, columns]
    u32 rows, u32 columns, u32 split, u32 flags, u32 rank, float low_scale) {
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    using Product = gemv_quantized::InterleavedUnits<gemv_quantized::Q8>;
    SHARED(float, shared, Product::SHARED_NUMBERS);
    Product::run(y, {sums, counters}, a, quants, scales, nullptr, rows, columns, split, flags, terms, shared);
}
EXPORT(gemv_units_q8_interleaved)

#undef LEAST_BLOCKS
#define LEAST_BLOCKS

KERNEL(256) gemv_units_q4_interleaved(
    float* y,           // [columns]
    float* sums,        // [splits, columns], or null for one
    u32* counters,      // [blocks of columns], 0
    const float* a,     // [rows]
    const u8* quants,   // [units/8, columns, 4]
    const u16* scales,  // [units/32, columns]
    const u16* minima,  // [units/32, columns]
    const float* bias,  // [columns], or null
    const float* low,   // [rank]
    const float* side,  // [rank, columns]
    u32 rows, u32 columns, u32 split, u32 flags, u32 rank, float low_scale) {
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    using Product = gemv_quantized::InterleavedUnits<gemv_quantized::Q4>;
    SHARED(float, shared, Product::SHARED_NUMBERS);
    Product::run(y, {sums, counters}, a, quants, scales, minima, rows, columns, split, flags, terms, shared);
}
EXPORT(gemv_units_q4_interleaved)
