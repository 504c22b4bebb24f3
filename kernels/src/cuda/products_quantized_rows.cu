// Row-dot products of plain q8 and q4 weights on tensor cores, f32 sums: the blocks run along the sum.
//
// What they must equal (kernels/src/cpu/matmul.rs), for f32 activations and a weight W [rows, columns] of quantized.cuh read as f32,
// y [m, rows]:
//
//   y[i][r] = sum over c of x[i][c] * W[r][c]    (+ y[i][r])
//
// What is changed against it is at the top of products_quantized.cu; n is the rows, k the columns. There is a kernel for each format, exact
// and fast, tiles of 32 and of 128 rows of y. They end with an epilogue, see epilogue.cu, that of up and gate with its activation.
//
// Comes after products_quantized.cu, whose parts they are made of.
#include "prelude.cuh"

KERNEL(128) gemm_q8_rows_exact_32(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u8* quants,     // [n, k blocks, 32]
    const u16* scales,    // [n, k blocks]
    const float* powers,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [n, rank]
    const float* up,      // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_quantized::gemm<products_quantized::RowsQ8, 2, 32, 1>(
        y, x, quants, scales, nullptr, powers, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_q8_rows_exact_32)

KERNEL(256) gemm_q8_rows_exact_128(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u8* quants,     // [n, k blocks, 32]
    const u16* scales,    // [n, k blocks]
    const float* powers,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [n, rank]
    const float* up,      // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_quantized::gemm<products_quantized::RowsQ8, 2, 128, 2>(
        y, x, quants, scales, nullptr, powers, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_q8_rows_exact_128)

KERNEL(128) gemm_q8_rows_fast_32(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u8* quants,     // [n, k blocks, 32]
    const u16* scales,    // [n, k blocks]
    const float* powers,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [n, rank]
    const float* up,      // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_quantized::gemm<products_quantized::RowsQ8, 1, 32, 1>(
        y, x, quants, scales, nullptr, powers, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_q8_rows_fast_32)

KERNEL(256) gemm_q8_rows_fast_128(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u8* quants,     // [n, k blocks, 32]
    const u16* scales,    // [n, k blocks]
    const float* powers,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [n, rank]
    const float* up,      // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_quantized::gemm<products_quantized::RowsQ8, 1, 128, 2>(
        y, x, quants, scales, nullptr, powers, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_q8_rows_fast_128)

KERNEL(128) gemm_q4_rows_exact_32(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u8* quants,     // [n, k blocks, 16]
    const u16* scales,    // [n, k blocks]
    const u16* minima,    // [n, k blocks]
    const float* powers,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [n, rank]
    const float* up,      // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_quantized::gemm<products_quantized::RowsQ4, 2, 32, 1>(
        y, x, quants, scales, minima, powers, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_q4_rows_exact_32)

KERNEL(256) gemm_q4_rows_exact_128(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u8* quants,     // [n, k blocks, 16]
    const u16* scales,    // [n, k blocks]
    const u16* minima,    // [n, k blocks]
    const float* powers,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [n, rank]
    const float* up,      // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_quantized::gemm<products_quantized::RowsQ4, 2, 128, 2>(
        y, x, quants, scales, minima, powers, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_q4_rows_exact_128)

KERNEL(128) gemm_q4_rows_fast_32(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u8* quants,     // [n, k blocks, 16]
    const u16* scales,    // [n, k blocks]
    const u16* minima,    // [n, k blocks]
    const float* powers,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [n, rank]
    const float* up,      // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_quantized::gemm<products_quantized::RowsQ4, 1, 32, 1>(
        y, x, quants, scales, minima, powers, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_q4_rows_fast_32)

KERNEL(256) gemm_q4_rows_fast_128(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u8* quants,     // [n, k blocks, 16]
    const u16* scales,    // [n, k blocks]
    const u16* minima,    // [n, k blocks]
    const float* powers,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [n, rank]
    const float* up,      // [m, n], or null
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale, u32 kind) {
    const epilogue::Terms terms = {bias, low, side, up, rank, low_scale, kind, flags};
    products_quantized::gemm<products_quantized::RowsQ4, 1, 128, 2>(
        y, x, quants, scales, minima, powers, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_q4_rows_fast_128)
