// Unit-row products with up to eight tokens: the weights' bytes are all that counts.
//
// What they must equal (kernels/src/cpu/gemv.rs), for a weight W [rows, columns] of any format read as f32, y [m, columns]:
//
//   y[i][c] = alpha * sum over r of a[i][r] * W[r][c]    (+ y[i][c])
//
// Changed against it:
// * A lane loads 16 bytes of weights at a time, past L1, and several such loads, of as many steps down the rows, are under way at once.
// * A lane owns neighbouring columns and goes down the rows, the eight warps of a block taking turns; they add up in shared memory. Where
//   there are few columns, the rows are split over blocks too, and the last block of some columns adds up what all have made.
// * Behind an odd number of rows of pairs stands another unit's number, perhaps a NaN: it is not multiplied.
//
// Comes after gemv_rows.cu, whose formats it uses.
#include "prelude.cuh"

namespace gemv {

constexpr u32 UNIT_WARPS = 8;

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
