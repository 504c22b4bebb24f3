// Row-dot products with up to eight tokens: the weights' bytes are all that counts.
//
// What they must equal (kernels/src/cpu/gemv.rs), for a weight W [rows, columns] of any format read as f32, y [m, rows]:
//
//   y[i][r] = alpha * sum over c of x[i][c] * W[r][c]    (+ y[i][r])
//
// Changed against it:
// * A lane loads 16 bytes of weights at a time, past L1, and four such loads are under way at once. That, and enough warps, is what it takes
//   to keep memory busy; everything else hides behind it.
// * A warp takes four rows, so that an activation that was loaded (from L1) serves four rows, and sums them over its lanes at the end. Where
//   there are few rows, 2 or 4 warps share the columns of the same rows and add up in shared memory.
// * Behind an odd number of rows of pairs stands another unit's number, perhaps a NaN: it makes a row that is not stored.
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

constexpr u32 ROW_WARPS = 4, ROWS_EACH = 4;

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
