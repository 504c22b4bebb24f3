// Products with up to eight tokens: the weights' bytes are all that counts.
//
// What they must equal (kernels/src/cpu/gemv.rs), for a weight W [rows, columns] of any format read as f32:
//
//   row-dot form:  y [m, rows]:    y[i][r] = alpha * sum over c of x[i][c] * W[r][c]    (+ y[i][r])
//   unit-row form: y [m, columns]: y[i][c] = alpha * sum over r of a[i][r] * W[r][c]    (+ y[i][c])
//
// Changed against it:
// * A lane loads 16 bytes of weights at a time, past L1, and several such loads are under way at once: four rows, or four steps down the
//   rows. That, and enough warps, is what it takes to keep memory busy; everything else hides behind it.
// * Row-dot: a warp takes four rows, so that an activation that was loaded (from L1) serves four rows, and sums them over its lanes at the
//   end. Where there are few rows, 2 or 4 warps share the columns of the same rows and add up in shared memory.
// * Unit-row: a lane owns neighbouring columns and goes down the rows, the eight warps of a block taking turns; they add up in shared
//   memory. Where there are few columns, the rows are split over blocks too, and the last block of some columns adds up what all have made.
// * Behind an odd number of rows of pairs stands another unit's number, perhaps a NaN: it is not multiplied (unit-row), or makes a row that
//   is not stored (row-dot).
#include "prelude.cuh"

namespace gemv {

// Each format: the numbers of 16 bytes, ROWS rows of COLUMNS columns; how to widen them; and one number, for unaligned matrices.
struct F32 {
    using Number = float;
    static constexpr u32 ROWS = 1, COLUMNS = 4;
    DEVICE void widen(float (&w)[ROWS][COLUMNS], uint4_ v) {
        w[0][0] = bits_float(v.x), w[0][1] = bits_float(v.y), w[0][2] = bits_float(v.z), w[0][3] = bits_float(v.w);
    }
    DEVICE float at(const float* w, u32 row, u32 column, u32 columns) { return w[u64(row) * columns + column]; }
};
struct F16 {
    DEVICE float low(u32 bits) { return f16_to_f32(u16(bits)); }
    DEVICE float high(u32 bits) { return f16_to_f32(u16(bits >> 16)); }
};
struct Bf16 {
    DEVICE float low(u32 bits) { return bits_float(bits << 16); }
    DEVICE float high(u32 bits) { return bits_float(bits & 0xffff0000u); }
};
template <class H> struct Rows {
    using Number = u16;
    static constexpr u32 ROWS = 1, COLUMNS = 8;
    DEVICE void widen(float (&w)[ROWS][COLUMNS], uint4_ v) {
        const u32 bits[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) w[0][2 * i] = H::low(bits[i]), w[0][2 * i + 1] = H::high(bits[i]);
    }
    DEVICE float at(const u16* w, u32 row, u32 column, u32 columns) { return H::low(w[u64(row) * columns + column]); }
};
template <class H> struct Pairs {
    using Number = u16;
    static constexpr u32 ROWS = 2, COLUMNS = 4;
    DEVICE void widen(float (&w)[ROWS][COLUMNS], uint4_ v) {
        const u32 bits[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (u32 i = 0; i < 4; i++) w[0][i] = H::low(bits[i]), w[1][i] = H::high(bits[i]);
    }
    DEVICE float at(const u16* w, u32 row, u32 column, u32 columns) { return H::low(w[(u64(row / 2) * columns + column) * 2 + row % 2]); }
};

constexpr u32 ROW_WARPS = 4, ROWS_EACH = 4, UNIT_WARPS = 8;

// The sums of this lane's columns: part `part` of `split` of the columns of rows row0...
template <class S, u32 M>
DEVICE void row_dots(float (&sums)[ROWS_EACH][M], const float* x, const typename S::Number* w, u32 row0, u32 m, u32 rows, u32 columns,
                     u32 part, u32 split, u32 flags) {
    constexpr u32 NUMBERS = S::ROWS * S::COLUMNS, OUTERS = ROWS_EACH / S::ROWS;
    if (flags & VECTOR_B) {
        const u32 last = (rows - 1) / S::ROWS;
#pragma unroll 1
        for (u32 c = part * WARP + lane_index(); c < columns / S::COLUMNS; c += WARP * split) {
            float v[OUTERS][S::ROWS][S::COLUMNS];
            uint4_ loaded[OUTERS];
#pragma unroll
            for (u32 o = 0; o < OUTERS; o++) {
                const u32 outer = minimum(row0 / S::ROWS + o, last);
                loaded[o] = load_once_16(w + (u64(outer) * (columns / S::COLUMNS) + c) * NUMBERS);
            }
#pragma unroll
            for (u32 o = 0; o < OUTERS; o++) S::widen(v[o], loaded[o]);
#pragma unroll
            for (u32 j = 0; j < S::COLUMNS; j += 4) {
#pragma unroll
                for (u32 t = 0; t < M; t++) {
                    const float* from = x + u64(minimum(t, m - 1)) * columns + c * S::COLUMNS + j;
                    const float4_ four = *reinterpret_cast<const float4_*>(from);
#pragma unroll
                    for (u32 r = 0; r < ROWS_EACH; r++) {
                        const auto& row = v[r / S::ROWS][r % S::ROWS];
                        sums[r][t] = fmaf(row[j], four.x, fmaf(row[j + 1], four.y, sums[r][t]));
                        sums[r][t] = fmaf(row[j + 2], four.z, fmaf(row[j + 3], four.w, sums[r][t]));
                    }
                }
            }
        }
    } else {
#pragma unroll 1
        for (u32 c = part * WARP + lane_index(); c < columns; c += WARP * split) {
#pragma unroll
            for (u32 r = 0; r < ROWS_EACH; r++) {
                const float v = S::at(w, minimum(row0 + r, rows - 1), c, columns);
#pragma unroll
                for (u32 t = 0; t < M; t++) sums[r][t] = fmaf(v, x[u64(minimum(t, m - 1)) * columns + c], sums[r][t]);
            }
        }
    }
}

// Block `block` of those that share the rows of w.
template <class S, u32 M>
DEVICE void rows_of_block(float* y, const float* x, const typename S::Number* w, u32 m, u32 rows, u32 columns, u32 split, float alpha,
                          u32 flags, const epilogue::Terms& terms, u32 block, float* shared /* [ROW_WARPS, WARP] */) {
    const u32 warp = warp_index(), part = warp % split, lane = lane_index();
    const u32 row0 = (block * (ROW_WARPS / split) + warp / split) * ROWS_EACH;
    float sums[ROWS_EACH][M] = {}, mine = 0.0f;
    if (row0 < rows) row_dots<S, M>(sums, x, w, row0, m, rows, columns, part, split, flags);
#pragma unroll
    for (u32 i = 0; i < ROWS_EACH * M; i++) {
        const float sum = warp_sum(sums[i / M][i % M]);
        if (lane == i) mine = sum;
    }
    if (split > 1) {
        shared[threadIdx.x] = mine;
        __syncthreads();
#pragma unroll 1
        for (u32 i = 1; i < split; i++) mine += shared[(warp - part + i) * WARP + lane];
    }
    const u32 row = row0 + lane / M, token = lane % M;
    if (part == 0 && lane < ROWS_EACH * M) epilogue::store(y, alpha * mine, token, row, m, rows, flags, terms);
}

template <class S, u32 M>
DEVICE void rows_form(float* y, const float* x, const typename S::Number* w, u32 m, u32 rows, u32 columns, u32 split, float alpha, u32 flags,
                      const epilogue::Terms& terms, float* shared /* [ROW_WARPS, WARP] */) {
    rows_of_block<S, M>(y, x, w, m, rows, columns, split, alpha, flags, terms, blockIdx.x, shared);
}

// The sums of this lane's columns over the outer rows (rows or pairs) from `first` below `last`, every UNIT_WARPS-th. Number j is column
// column0 + lane * COLUMNS + j, or, where numbers are loaded one by one, column0 + j * WARP + lane.
template <class S, u32 M>
DEVICE void unit_sums(float (&sums)[S::COLUMNS][M], const float* a, const typename S::Number* w, u32 column0, u32 first, u32 last, u32 m,
                      u32 rows, u32 columns, u32 flags) {
    constexpr u32 NUMBERS = S::ROWS * S::COLUMNS, AT_ONCE = M == 1 ? 4 : 2;
    const u32 chunk = minimum(column0 / S::COLUMNS + lane_index(), columns / S::COLUMNS - 1);
#pragma unroll 1
    for (u32 outer0 = first; outer0 < last; outer0 += UNIT_WARPS * AT_ONCE) {
        uint4_ loaded[AT_ONCE];
        float factors[AT_ONCE][S::ROWS][M];
#pragma unroll
        for (u32 o = 0; o < AT_ONCE; o++) {
            const u32 outer = minimum(outer0 + o * UNIT_WARPS, last - 1);
            if (flags & VECTOR_B) loaded[o] = load_once_16(w + (u64(outer) * (columns / S::COLUMNS) + chunk) * NUMBERS);
#pragma unroll
            for (u32 r = 0; r < S::ROWS; r++) {
                const u32 row = minimum(outer * S::ROWS + r, rows - 1);
#pragma unroll
                for (u32 t = 0; t < M; t++) factors[o][r][t] = a[u64(minimum(t, m - 1)) * rows + row];
            }
        }
#pragma unroll
        for (u32 o = 0; o < AT_ONCE; o++) {
            const u32 outer = outer0 + o * UNIT_WARPS;
            if (outer >= last) break;
            float v[S::ROWS][S::COLUMNS];
            if (flags & VECTOR_B) {
                S::widen(v, loaded[o]);
            } else {
#pragma unroll
                for (u32 i = 0; i < NUMBERS; i++) {
                    const u32 row = minimum(outer * S::ROWS + i / S::COLUMNS, rows - 1), column = column0 + i % S::COLUMNS * WARP + lane_index();
                    v[i / S::COLUMNS][i % S::COLUMNS] = S::at(w, row, minimum(column, columns - 1), columns);
                }
            }
#pragma unroll
            for (u32 r = 0; r < S::ROWS; r++) {
                const u32 row = outer * S::ROWS + r;
                if (row >= rows) break;
#pragma unroll
                for (u32 t = 0; t < M; t++) {
#pragma unroll
                    for (u32 j = 0; j < S::COLUMNS; j++) sums[j][t] = fmaf(factors[o][r][t], v[r][j], sums[j][t]);
                }
            }
        }
    }
}

template <class S, u32 M>
DEVICE void units_form(float* y, const epilogue::Parts& parts, const float* a, const typename S::Number* w, u32 m, u32 rows, u32 columns,
                       u32 outers_split, float alpha, u32 flags, const epilogue::Terms& terms,
                       float* shared /* [UNIT_WARPS, WARP * COLUMNS] */) {
    constexpr u32 WIDTH = WARP * S::COLUMNS;
    const u32 column0 = blockIdx.x * WIDTH, first = blockIdx.y * outers_split, count = gridDim.y;
    const u32 last = minimum(ceil_div(rows, S::ROWS), first + outers_split);
    float sums[S::COLUMNS][M] = {};
    unit_sums<S, M>(sums, a, w, column0, first + warp_index(), last, m, rows, columns, flags);
#pragma unroll
    for (u32 t = 0; t < M; t++) {
        if (t >= m) break;
#pragma unroll
        for (u32 j = 0; j < S::COLUMNS; j++) {
            shared[warp_index() * WIDTH + (flags & VECTOR_B ? lane_index() * S::COLUMNS + j : j * WARP + lane_index())] = sums[j][t];
        }
        __syncthreads();
        const u32 column = column0 + threadIdx.x;
        if (threadIdx.x < WIDTH && column < columns) {
            float sum = 0.0f;
#pragma unroll
            for (u32 i = 0; i < UNIT_WARPS; i++) sum += shared[i * WIDTH + threadIdx.x];
            if (count > 1) {
                parts.sums[(u64(blockIdx.y) * m + t) * columns + column] = sum;
            } else {
                epilogue::store(y, alpha * sum, t, column, m, columns, flags, terms);
            }
        }
        __syncthreads();
    }
    epilogue::join(y, parts, count, column0, WIDTH, m, columns, alpha, flags, terms, shared);
}

}  // namespace gemv

KERNEL(128) gemv_rows_f32_1(
    float* y,           // [m, rows]
    const float* x,     // [m, columns]
    const float* w,     // [rows, columns]
    const float* bias,  // [rows], or null
    const float* low,   // [m, rank]
    const float* side,  // [rows, rank]
    const float* up,    // [m, rows], or null
    u32 m, u32 rows, u32 columns, u32 split, float alpha, u32 flags, u32 rank, float low_scale, u32 kind) {
    SHARED(float, shared, 128);
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    gemv::rows_form<gemv::F32, 1>(y, x, w, m, rows, columns, split, alpha, flags, terms, shared);
}
EXPORT(gemv_rows_f32_1)

KERNEL(128) gemv_rows_f32_4(
    float* y,           // [m, rows]
    const float* x,     // [m, columns]
    const float* w,     // [rows, columns]
    const float* bias,  // [rows], or null
    const float* low,   // [m, rank]
    const float* side,  // [rows, rank]
    const float* up,    // [m, rows], or null
    u32 m, u32 rows, u32 columns, u32 split, float alpha, u32 flags, u32 rank, float low_scale, u32 kind) {
    SHARED(float, shared, 128);
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    gemv::rows_form<gemv::F32, 4>(y, x, w, m, rows, columns, split, alpha, flags, terms, shared);
}
EXPORT(gemv_rows_f32_4)

KERNEL(128) gemv_rows_f32_8(
    float* y,           // [m, rows]
    const float* x,     // [m, columns]
    const float* w,     // [rows, columns]
    const float* bias,  // [rows], or null
    const float* low,   // [m, rank]
    const float* side,  // [rows, rank]
    const float* up,    // [m, rows], or null
    u32 m, u32 rows, u32 columns, u32 split, float alpha, u32 flags, u32 rank, float low_scale, u32 kind) {
    SHARED(float, shared, 128);
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    gemv::rows_form<gemv::F32, 8>(y, x, w, m, rows, columns, split, alpha, flags, terms, shared);
}
EXPORT(gemv_rows_f32_8)

KERNEL(128) gemv_rows_f16_1(
    float* y,           // [m, rows]
    const float* x,     // [m, columns]
    const u16* w,       // [rows, columns]
    const float* bias,  // [rows], or null
    const float* low,   // [m, rank]
    const float* side,  // [rows, rank]
    const float* up,    // [m, rows], or null
    u32 m, u32 rows, u32 columns, u32 split, float alpha, u32 flags, u32 rank, float low_scale, u32 kind) {
    SHARED(float, shared, 128);
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    gemv::rows_form<gemv::Rows<gemv::F16>, 1>(y, x, w, m, rows, columns, split, alpha, flags, terms, shared);
}
EXPORT(gemv_rows_f16_1)

// For four blocks some compilers spill.
#undef LEAST_BLOCKS
#define LEAST_BLOCKS , 3

KERNEL(128) gemv_rows_f16_8(
    float* y,           // [m, rows]
    const float* x,     // [m, columns]
    const u16* w,       // [rows, columns]
    const float* bias,  // [rows], or null
    const float* low,   // [m, rank]
    const float* side,  // [rows, rank]
    const float* up,    // [m, rows], or null
    u32 m, u32 rows, u32 columns, u32 split, float alpha, u32 flags, u32 rank, float low_scale, u32 kind) {
    SHARED(float, shared, 128);
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    gemv::rows_form<gemv::Rows<gemv::F16>, 8>(y, x, w, m, rows, columns, split, alpha, flags, terms, shared);
}
EXPORT(gemv_rows_f16_8)

#undef LEAST_BLOCKS
#define LEAST_BLOCKS

KERNEL(128) gemv_rows_bf16_1(
    float* y,           // [m, rows]
    const float* x,     // [m, columns]
    const u16* w,       // [rows, columns]
    const float* bias,  // [rows], or null
    const float* low,   // [m, rank]
    const float* side,  // [rows, rank]
    const float* up,    // [m, rows], or null
    u32 m, u32 rows, u32 columns, u32 split, float alpha, u32 flags, u32 rank, float low_scale, u32 kind) {
    SHARED(float, shared, 128);
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    gemv::rows_form<gemv::Rows<gemv::Bf16>, 1>(y, x, w, m, rows, columns, split, alpha, flags, terms, shared);
}
EXPORT(gemv_rows_bf16_1)

// For four blocks some compilers spill.
#undef LEAST_BLOCKS
#define LEAST_BLOCKS , 3

KERNEL(128) gemv_rows_bf16_8(
    float* y,           // [m, rows]
    const float* x,     // [m, columns]
    const u16* w,       // [rows, columns]
    const float* bias,  // [rows], or null
    const float* low,   // [m, rank]
    const float* side,  // [rows, rank]
    const float* up,    // [m, rows], or null
    u32 m, u32 rows, u32 columns, u32 split, float alpha, u32 flags, u32 rank, float low_scale, u32 kind) {
    SHARED(float, shared, 128);
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    gemv::rows_form<gemv::Rows<gemv::Bf16>, 8>(y, x, w, m, rows, columns, split, alpha, flags, terms, shared);
}
EXPORT(gemv_rows_bf16_8)

#undef LEAST_BLOCKS
#define LEAST_BLOCKS

KERNEL(128) gemv_rows_f16_pairs_1(
    float* y,           // [m, rows]
    const float* x,     // [m, columns]
    const u16* w,       // [rows/2, columns, 2]
    const float* bias,  // [rows], or null
    const float* low,   // [m, rank]
    const float* side,  // [rows, rank]
    const float* up,    // [m, rows], or null
    u32 m, u32 rows, u32 columns, u32 split, float alpha, u32 flags, u32 rank, float low_scale, u32 kind) {
    SHARED(float, shared, 128);
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    gemv::rows_form<gemv::Pairs<gemv::F16>, 1>(y, x, w, m, rows, columns, split, alpha, flags, terms, shared);
}
EXPORT(gemv_rows_f16_pairs_1)

KERNEL(128) gemv_rows_f16_pairs_4(
    float* y,           // [m, rows]
    const float* x,     // [m, columns]
    const u16* w,       // [rows/2, columns, 2]
    const float* bias,  // [rows], or null
    const float* low,   // [m, rank]
    const float* side,  // [rows, rank]
    const float* up,    // [m, rows], or null
    u32 m, u32 rows, u32 columns, u32 split, float alpha, u32 flags, u32 rank, float low_scale, u32 kind) {
    SHARED(float, shared, 128);
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    gemv::rows_form<gemv::Pairs<gemv::F16>, 4>(y, x, w, m, rows, columns, split, alpha, flags, terms, shared);
}
EXPORT(gemv_rows_f16_pairs_4)

KERNEL(128) gemv_rows_f16_pairs_8(
    float* y,           // [m, rows]
    const float* x,     // [m, columns]
    const u16* w,       // [rows/2, columns, 2]
    const float* bias,  // [rows], or null
    const float* low,   // [m, rank]
    const float* side,  // [rows, rank]
    const float* up,    // [m, rows], or null
    u32 m, u32 rows, u32 columns, u32 split, float alpha, u32 flags, u32 rank, float low_scale, u32 kind) {
    SHARED(float, shared, 128);
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    gemv::rows_form<gemv::Pairs<gemv::F16>, 8>(y, x, w, m, rows, columns, split, alpha, flags, terms, shared);
}
EXPORT(gemv_rows_f16_pairs_8)

KERNEL(128) gemv_rows_bf16_pairs_1(
    float* y,           // [m, rows]
    const float* x,     // [m, columns]
    const u16* w,       // [rows/2, columns, 2]
    const float* bias,  // [rows], or null
    const float* low,   // [m, rank]
    const float* side,  // [rows, rank]
    const float* up,    // [m, rows], or null
    u32 m, u32 rows, u32 columns, u32 split, float alpha, u32 flags, u32 rank, float low_scale, u32 kind) {
    SHARED(float, shared, 128);
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    gemv::rows_form<gemv::Pairs<gemv::Bf16>, 1>(y, x, w, m, rows, columns, split, alpha, flags, terms, shared);
}
EXPORT(gemv_rows_bf16_pairs_1)

KERNEL(128) gemv_rows_bf16_pairs_4(
    float* y,           // [m, rows]
    const float* x,     // [m, columns]
    const u16* w,       // [rows/2, columns, 2]
    const float* bias,  // [rows], or null
    const float* low,   // [m, rank]
    const float* side,  // [rows, rank]
    const float* up,    // [m, rows], or null
    u32 m, u32 rows, u32 columns, u32 split, float alpha, u32 flags, u32 rank, float low_scale, u32 kind) {
    SHARED(float, shared, 128);
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    gemv::rows_form<gemv::Pairs<gemv::Bf16>, 4>(y, x, w, m, rows, columns, split, alpha, flags, terms, shared);
}
EXPORT(gemv_rows_bf16_pairs_4)

KERNEL(128) gemv_rows_bf16_pairs_8(
    float* y,           // [m, rows]
    const float* x,     // [m, columns]
    const u16* w,       // [rows/2, columns, 2]
    const float* bias,  // [rows], or null
    const float* low,   // [m, rank]
    const float* side,  // [rows, rank]
    const float* up,    // [m, rows], or null
    u32 m, u32 rows, u32 columns, u32 split, float alpha, u32 flags, u32 rank, float low_scale, u32 kind) {
    SHARED(float, shared, 128);
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    gemv::rows_form<gemv::Pairs<gemv::Bf16>, 8>(y, x, w, m, rows, columns, split, alpha, flags, terms, shared);
}
EXPORT(gemv_rows_bf16_pairs_8)

KERNEL(256) gemv_units_f32_1(
    float* y,           // [m, columns]
    float* sums,        // [splits, m, columns], or null for one
    u32* counters,      // [blocks of columns], 0
    const float* a,     // [m, rows]
    const float* w,     // [rows, columns]
    const float* bias,  // [columns], or null
    const float* low,   // [m, rank]
    const float* side,  // [rank, columns]
    u32 m, u32 rows, u32 columns, u32 outers_split, float alpha, u32 flags, u32 rank, float low_scale) {
    SHARED(float, shared, 1024);
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    gemv::units_form<gemv::F32, 1>(y, {sums, counters}, a, w, m, rows, columns, outers_split, alpha, flags, terms, shared);
}
EXPORT(gemv_units_f32_1)

KERNEL(256) gemv_units_f32_4(
    float* y,           // [m, columns]
    float* sums,        // [splits, m, columns], or null for one
    u32* counters,      // [blocks of columns], 0
    const float* a,     // [m, rows]
    const float* w,     // [rows, columns]
    const float* bias,  // [columns], or null
    const float* low,   // [m, rank]
    const float* side,  // [rank, columns]
    u32 m, u32 rows, u32 columns, u32 outers_split, float alpha, u32 flags, u32 rank, float low_scale) {
    SHARED(float, shared, 1024);
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    gemv::units_form<gemv::F32, 4>(y, {sums, counters}, a, w, m, rows, columns, outers_split, alpha, flags, terms, shared);
}
EXPORT(gemv_units_f32_4)

KERNEL(256) gemv_units_f32_8(
    float* y,           // [m, columns]
    float* sums,        // [splits, m, columns], or null for one
    u32* counters,      // [blocks of columns], 0
    const float* a,     // [m, rows]
    const float* w,     // [rows, columns]
    const float* bias,  // [columns], or null
    const float* low,   // [m, rank]
    const float* side,  // [rank, columns]
    u32 m, u32 rows, u32 columns, u32 outers_split, float alpha, u32 flags, u32 rank, float low_scale) {
    SHARED(float, shared, 1024);
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    gemv::units_form<gemv::F32, 8>(y, {sums, counters}, a, w, m, rows, columns, outers_split, alpha, flags, terms, shared);
}
EXPORT(gemv_units_f32_8)

// For one block more some compilers spill.
#undef LEAST_BLOCKS
#define LEAST_BLOCKS , 4

KERNEL(256) gemv_units_f16_1(
    float* y,           // [m, columns]
    float* sums,        // [splits, m, columns], or null for one
    u32* counters,      // [blocks of columns], 0
    const float* a,     // [m, rows]
    const u16* w,       // [rows, columns]
    const float* bias,  // [columns], or null
    const float* low,   // [m, rank]
    const float* side,  // [rank, columns]
    u32 m, u32 rows, u32 columns, u32 outers_split, float alpha, u32 flags, u32 rank, float low_scale) {
    SHARED(float, shared, 2048);
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    gemv::units_form<gemv::Rows<gemv::F16>, 1>(y, {sums, counters}, a, w, m, rows, columns, outers_split, alpha, flags, terms, shared);
}
EXPORT(gemv_units_f16_1)

#undef LEAST_BLOCKS
#define LEAST_BLOCKS

KERNEL(256) gemv_units_f16_4(
    float* y,           // [m, columns]
    float* sums,        // [splits, m, columns], or null for one
    u32* counters,      // [blocks of columns], 0
    const float* a,     // [m, rows]
    const u16* w,       // [rows, columns]
    const float* bias,  // [columns], or null
    const float* low,   // [m, rank]
    const float* side,  // [rank, columns]
    u32 m, u32 rows, u32 columns, u32 outers_split, float alpha, u32 flags, u32 rank, float low_scale) {
    SHARED(float, shared, 2048);
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    gemv::units_form<gemv::Rows<gemv::F16>, 4>(y, {sums, counters}, a, w, m, rows, columns, outers_split, alpha, flags, terms, shared);
}
EXPORT(gemv_units_f16_4)

KERNEL(256) gemv_units_f16_8(
    float* y,           // [m, columns]
    float* sums,        // [splits, m, columns], or null for one
    u32* counters,      // [blocks of columns], 0
    const float* a,     // [m, rows]
    const u16* w,       // [rows, columns]
    const float* bias,  // [columns], or null
    const float* low,   // [m, rank]
    const float* side,  // [rank, columns]
    u32 m, u32 rows, u32 columns, u32 outers_split, float alpha, u32 flags, u32 rank, float low_scale) {
    SHARED(float, shared, 2048);
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    gemv::units_form<gemv::Rows<gemv::F16>, 8>(y, {sums, counters}, a, w, m, rows, columns, outers_split, alpha, flags, terms, shared);
}
EXPORT(gemv_units_f16_8)

// For one block more some compilers spill.
#undef LEAST_BLOCKS
#define LEAST_BLOCKS , 4

KERNEL(256) gemv_units_bf16_1(
    float* y,           // [m, columns]
    float* sums,        // [splits, m, columns], or null for one
    u32* counters,      // [blocks of columns], 0
    const float* a,     // [m, rows]
    const u16* w,       // [rows, columns]
    const float* bias,  // [columns], or null
    const float* low,   // [m, rank]
    const float* side,  // [rank, columns]
    u32 m, u32 rows, u32 columns, u32 outers_split, float alpha, u32 flags, u32 rank, float low_scale) {
    SHARED(float, shared, 2048);
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    gemv::units_form<gemv::Rows<gemv::Bf16>, 1>(y, {sums, counters}, a, w, m, rows, columns, outers_split, alpha, flags, terms, shared);
}
EXPORT(gemv_units_bf16_1)

#undef LEAST_BLOCKS
#define LEAST_BLOCKS

KERNEL(256) gemv_units_bf16_4(
    float* y,           // [m, columns]
    float* sums,        // [splits, m, columns], or null for one
    u32* counters,      // [blocks of columns], 0
    const float* a,     // [m, rows]
    const u16* w,       // [rows, columns]
    const float* bias,  // [columns], or null
    const float* low,   // [m, rank]
    const float* side,  // [rank, columns]
    u32 m, u32 rows, u32 columns, u32 outers_split, float alpha, u32 flags, u32 rank, float low_scale) {
    SHARED(float, shared, 2048);
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    gemv::units_form<gemv::Rows<gemv::Bf16>, 4>(y, {sums, counters}, a, w, m, rows, columns, outers_split, alpha, flags, terms, shared);
}
EXPORT(gemv_units_bf16_4)

KERNEL(256) gemv_units_bf16_8(
    float* y,           // [m, columns]
    float* sums,        // [splits, m, columns], or null for one
    u32* counters,      // [blocks of columns], 0
    const float* a,     // [m, rows]
    const u16* w,       // [rows, columns]
    const float* bias,  // [columns], or null
    const float* low,   // [m, rank]
    const float* side,  // [rank, columns]
    u32 m, u32 rows, u32 columns, u32 outers_split, float alpha, u32 flags, u32 rank, float low_scale) {
    SHARED(float, shared, 2048);
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    gemv::units_form<gemv::Rows<gemv::Bf16>, 8>(y, {sums, counters}, a, w, m, rows, columns, outers_split, alpha, flags, terms, shared);
}
EXPORT(gemv_units_bf16_8)

// For one block more some compilers spill.
#undef LEAST_BLOCKS
#define LEAST_BLOCKS , 3

KERNEL(256) gemv_units_f16_pairs_1(
    float* y,           // [m, columns]
    float* sums,        // [splits, m, columns], or null for one
    u32* counters,      // [blocks of columns], 0
    const float* a,     // [m, rows]
    const u16* w,       // [rows/2, columns, 2]
    const float* bias,  // [columns], or null
    const float* low,   // [m, rank]
    const float* side,  // [rank, columns]
    u32 m, u32 rows, u32 columns, u32 outers_split, float alpha, u32 flags, u32 rank, float low_scale) {
    SHARED(float, shared, 1024);
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    gemv::units_form<gemv::Pairs<gemv::F16>, 1>(y, {sums, counters}, a, w, m, rows, columns, outers_split, alpha, flags, terms, shared);
}
EXPORT(gemv_units_f16_pairs_1)

#undef LEAST_BLOCKS
#define LEAST_BLOCKS

KERNEL(256) gemv_units_f16_pairs_4(
    float* y,           // [m, columns]
    float* sums,        // [splits, m, columns], or null for one
    u32* counters,      // [blocks of columns], 0
    const float* a,     // [m, rows]
    const u16* w,       // [rows/2, columns, 2]
    const float* bias,  // [columns], or null
    const float* low,   // [m, rank]
    const float* side,  // [rank, columns]
    u32 m, u32 rows, u32 columns, u32 outers_split, float alpha, u32 flags, u32 rank, float low_scale) {
    SHARED(float, shared, 1024);
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    gemv::units_form<gemv::Pairs<gemv::F16>, 4>(y, {sums, counters}, a, w, m, rows, columns, outers_split, alpha, flags, terms, shared);
}
EXPORT(gemv_units_f16_pairs_4)

KERNEL(256) gemv_units_f16_pairs_8(
    float* y,           // [m, columns]
    float* sums,        // [splits, m, columns], or null for one
    u32* counters,      // [blocks of columns], 0
    const float* a,     // [m, rows]
    const u16* w,       // [rows/2, columns, 2]
    const float* bias,  // [columns], or null
    const float* low,   // [m, rank]
    const float* side,  // [rank, columns]
    u32 m, u32 rows, u32 columns, u32 outers_split, float alpha, u32 flags, u32 rank, float low_scale) {
    SHARED(float, shared, 1024);
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    gemv::units_form<gemv::Pairs<gemv::F16>, 8>(y, {sums, counters}, a, w, m, rows, columns, outers_split, alpha, flags, terms, shared);
}
EXPORT(gemv_units_f16_pairs_8)

KERNEL(256) gemv_units_bf16_pairs_1(
    float* y,           // [m, columns]
    float* sums,        // [splits, m, columns], or null for one
    u32* counters,      // [blocks of columns], 0
    const float* a,     // [m, rows]
    const u16* w,       // [rows/2, columns, 2]
    const float* bias,  // [columns], or null
    const float* low,   // [m, rank]
    const float* side,  // [rank, columns]
    u32 m, u32 rows, u32 columns, u32 outers_split, float alpha, u32 flags, u32 rank, float low_scale) {
    SHARED(float, shared, 1024);
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    gemv::units_form<gemv::Pairs<gemv::Bf16>, 1>(y, {sums, counters}, a, w, m, rows, columns, outers_split, alpha, flags, terms, shared);
}
EXPORT(gemv_units_bf16_pairs_1)

KERNEL(256) gemv_units_bf16_pairs_4(
    float* y,           // [m, columns]
    float* sums,        // [splits, m, columns], or null for one
    u32* counters,      // [blocks of columns], 0
    const float* a,     // [m, rows]
    const u16* w,       // [rows/2, columns, 2]
    const float* bias,  // [columns], or null
    const float* low,   // [m, rank]
    const float* side,  // [rank, columns]
    u32 m, u32 rows, u32 columns, u32 outers_split, float alpha, u32 flags, u32 rank, float low_scale) {
    SHARED(float, shared, 1024);
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    gemv::units_form<gemv::Pairs<gemv::Bf16>, 4>(y, {sums, counters}, a, w, m, rows, columns, outers_split, alpha, flags, terms, shared);
}
EXPORT(gemv_units_bf16_pairs_4)

KERNEL(256) gemv_units_bf16_pairs_8(
    float* y,           // [m, columns]
    float* sums,        // [splits, m, columns], or null for one
    u32* counters,      // [blocks of columns], 0
    const float* a,     // [m, rows]
    const u16* w,       // [rows/2, columns, 2]
    const float* bias,  // [columns], or null
    const float* low,   // [m, rank]
    const float* side,  // [rank, columns]
    u32 m, u32 rows, u32 columns, u32 outers_split, float alpha, u32 flags, u32 rank, float low_scale) {
    SHARED(float, shared, 1024);
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    gemv::units_form<gemv::Pairs<gemv::Bf16>, 8>(y, {sums, counters}, a, w, m, rows, columns, outers_split, alpha, flags, terms, shared);
}
EXPORT(gemv_units_bf16_pairs_8)

// Four rows of eight weights by four tokens: 20 warps, each with 2 KiB of weights under way, keep memory busy.
#undef LEAST_BLOCKS
#define LEAST_BLOCKS , 5

KERNEL(128) gemv_rows_f16_4(
    float* y,           // [m, rows]
    const float* x,     // [m, columns]
    const u16* w,       // [rows, columns]
    const float* bias,  // [rows], or null
    const float* low,   // [m, rank]
    const float* side,  // [rows, rank]
    const float* up,    // [m, rows], or null
    u32 m, u32 rows, u32 columns, u32 split, float alpha, u32 flags, u32 rank, float low_scale, u32 kind) {
    SHARED(float, shared, 128);
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    gemv::rows_form<gemv::Rows<gemv::F16>, 4>(y, x, w, m, rows, columns, split, alpha, flags, terms, shared);
}
EXPORT(gemv_rows_f16_4)

KERNEL(128) gemv_rows_bf16_4(
    float* y,           // [m, rows]
    const float* x,     // [m, columns]
    const u16* w,       // [rows, columns]
    const float* bias,  // [rows], or null
    const float* low,   // [m, rank]
    const float* side,  // [rows, rank]
    const float* up,    // [m, rows], or null
    u32 m, u32 rows, u32 columns, u32 split, float alpha, u32 flags, u32 rank, float low_scale, u32 kind) {
    SHARED(float, shared, 128);
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    gemv::rows_form<gemv::Rows<gemv::Bf16>, 4>(y, x, w, m, rows, columns, split, alpha, flags, terms, shared);
}
EXPORT(gemv_rows_bf16_4)

#undef LEAST_BLOCKS
#define LEAST_BLOCKS
