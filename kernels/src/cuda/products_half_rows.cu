// Row-dot products with f16 and bf16 weights on tensor cores, f32 sums.
//
// What they must equal (kernels/src/cpu/matmul.rs), for f32 activations and a weight W [rows, columns] read as f32, y [m, rows]:
//
//   y[i][r] = sum over c of x[i][c] * W[r][c]    (+ y[i][r])
//
// What is changed against it is at the top of products_half.cu; n is the rows, k the columns. There is a kernel for each format and layout,
// exact and fast, tiles of 32 and of 128 rows of y. They end with an epilogue, see epilogue.cu, that of up and gate with its activation.
//
// Comes after products_half.cu, whose parts they are made of.
#include "prelude.cuh"

KERNEL(128) gemm_f16_rows_exact_32(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u16* w,         // [n, k]
    const float* scales,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [n, rank]
    const float* up,      // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_half::gemm_32<products_half::F16, products_half::RowsOfRows, true>(
        y, x, w, scales, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_f16_rows_exact_32)

KERNEL(256) gemm_f16_rows_exact_128(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u16* w,         // [n, k]
    const float* scales,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [n, rank]
    const float* up,      // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_half::gemm_128<products_half::F16, products_half::RowsOfRows, true>(
        y, x, w, scales, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_f16_rows_exact_128)

KERNEL(256) gemm_f16_rows_fast_128(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u16* w,         // [n, k]
    const float* scales,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [n, rank]
    const float* up,      // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_half::gemm_128<products_half::F16, products_half::RowsOfRows, false>(
        y, x, w, scales, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_f16_rows_fast_128)

KERNEL(128) gemm_f16_rows_pairs_exact_32(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u16* w,         // [n/2, k, 2]
    const float* scales,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [n, rank]
    const float* up,      // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_half::gemm_32<products_half::F16, products_half::RowsOfPairs, true>(
        y, x, w, scales, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_f16_rows_pairs_exact_32)

KERNEL(256) gemm_f16_rows_pairs_exact_128(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u16* w,         // [n/2, k, 2]
    const float* scales,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [n, rank]
    const float* up,      // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_half::gemm_128<products_half::F16, products_half::RowsOfPairs, true>(
        y, x, w, scales, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_f16_rows_pairs_exact_128)

KERNEL(256) gemm_f16_rows_pairs_fast_128(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u16* w,         // [n/2, k, 2]
    const float* scales,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [n, rank]
    const float* up,      // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_half::gemm_128<products_half::F16, products_half::RowsOfPairs, false>(
        y, x, w, scales, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_f16_rows_pairs_fast_128)

KERNEL(128) gemm_bf16_rows_exact_32(
    float* y,           // [splits, m, n]
    const float* x,     // [m, k]
    const u16* w,       // [n, k]
    const float* bias,  // [n], or null
    const float* low,   // [m, rank]
    const float* side,  // [n, rank]
    const float* up,    // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_half::gemm_32<products_half::Bf16, products_half::RowsOfRows, true>(
        y, x, w, nullptr, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_bf16_rows_exact_32)

KERNEL(256) gemm_bf16_rows_exact_128(
    float* y,           // [splits, m, n]
    const float* x,     // [m, k]
    const u16* w,       // [n, k]
    const float* bias,  // [n], or null
    const float* low,   // [m, rank]
    const float* side,  // [n, rank]
    const float* up,    // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_half::gemm_128<products_half::Bf16, products_half::RowsOfRows, true>(
        y, x, w, nullptr, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_bf16_rows_exact_128)

KERNEL(256) gemm_bf16_rows_fast_128(
    float* y,           // [splits, m, n]
    const float* x,     // [m, k]
    const u16* w,       // [n, k]
    const float* bias,  // [n], or null
    const float* low,   // [m, rank]
    const float* side,  // [n, rank]
    const float* up,    // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_half::gemm_128<products_half::Bf16, products_half::RowsOfRows, false>(
        y, x, w, nullptr, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_bf16_rows_fast_128)

KERNEL(128) gemm_bf16_rows_pairs_exact_32(
    float* y,           // [splits, m, n]
    const float* x,     // [m, k]
    const u16* w,       // [n/2, k, 2]
    const float* bias,  // [n], or null
    const float* low,   // [m, rank]
    const float* side,  // [n, rank]
    const float* up,    // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_half::gemm_32<products_half::Bf16, products_half::RowsOfPairs, true>(
        y, x, w, nullptr, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_bf16_rows_pairs_exact_32)

KERNEL(256) gemm_bf16_rows_pairs_exact_128(
    float* y,           // [splits, m, n]
    const float* x,     // [m, k]
    const u16* w,       // [n/2, k, 2]
    const float* bias,  // [n], or null
    const float* low,   // [m, rank]
    const float* side,  // [n, rank]
    const float* up,    // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_half::gemm_128<products_half::Bf16, products_half::RowsOfPairs, true>(
        y, x, w, nullptr, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_bf16_rows_pairs_exact_128)

KERNEL(256) gemm_bf16_rows_pairs_fast_128(
    float* y,           // [splits, m, n]
    const float* x,     // [m, k]
    const u16* w,       // [n/2, k, 2]
    const float* bias,  // [n], or null
    const float* low,   // [m, rank]
    const float* side,  // [n, rank]
    const float* up,    // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_half::gemm_128<products_half::Bf16, products_half::RowsOfPairs, false>(
        y, x, w, nullptr, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_bf16_rows_pairs_fast_128)

// Small tiles, fast: shared memory has room for four or five blocks.
#undef LEAST_BLOCKS
#define LEAST_BLOCKS , 4

KERNEL(128) gemm_f16_rows_fast_32(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u16* w,         // [n, k]
    const float* scales,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [n, rank]
    const float* up,      // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_half::gemm_32<products_half::F16, products_half::RowsOfRows, false>(
        y, x, w, scales, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_f16_rows_fast_32)

KERNEL(128) gemm_f16_rows_pairs_fast_32(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u16* w,         // [n/2, k, 2]
    const float* scales,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [n, rank]
    const float* up,      // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_half::gemm_32<products_half::F16, products_half::RowsOfPairs, false>(
        y, x, w, scales, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_f16_rows_pairs_fast_32)

KERNEL(128) gemm_bf16_rows_fast_32(
    float* y,           // [splits, m, n]
    const float* x,     // [m, k]
    const u16* w,       // [n, k]
    const float* bias,  // [n], or null
    const float* low,   // [m, rank]
    const float* side,  // [n, rank]
    const float* up,    // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_half::gemm_32<products_half::Bf16, products_half::RowsOfRows, false>(
        y, x, w, nullptr, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_bf16_rows_fast_32)

KERNEL(128) gemm_bf16_rows_pairs_fast_32(
    float* y,           // [splits, m, n]
    const float* x,     // [m, k]
    const u16* w,       // [n/2, k, 2]
    const float* bias,  // [n], or null
    const float* low,   // [m, rank]
    const float* side,  // [n, rank]
    const float* up,    // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_half::gemm_32<products_half::Bf16, products_half::RowsOfPairs, false>(
        y, x, w, nullptr, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_bf16_rows_pairs_fast_32)

#undef LEAST_BLOCKS
#define LEAST_BLOCKS
