// Unit-row products of interleaved q8 and q4 weights on tensor cores, f32 sums: the blocks run along the sum.
//
// What they must equal (kernels/src/cpu/matmul.rs), for f32 activations and a weight W [rows, columns] of quantized.cuh read as f32,
// y [m, columns]:
//
//   y[i][c] = sum over r of a[i][r] * W[r][c]    (+ y[i][c])
//
// What is changed against it is at the top of products_quantized.cu; n is the columns, k the rows. There is a kernel for each format, exact
// and fast, tiles of 32 and of 128 rows of y. They end with an epilogue, see epilogue.cu, that has no activation.
//
// Comes after products_quantized.cu, whose parts they are made of.
#include "prelude.cuh"

KERNEL(128) gemm_q8_units_interleaved_exact_32(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u8* quants,     // [k/4, n, 4]
    const u16* scales,    // [k/32, n]
    const float* powers,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [rank, n]
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale) {
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    products_quantized::gemm<products_quantized::UnitsQ8, 2, 32, 1>(
        y, x, quants, scales, nullptr, powers, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_q8_units_interleaved_exact_32)

KERNEL(256) gemm_q8_units_interleaved_exact_128(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u8* quants,     // [k/4, n, 4]
    const u16* scales,    // [k/32, n]
    const float* powers,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [rank, n]
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale) {
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    products_quantized::gemm<products_quantized::UnitsQ8, 2, 128, 2>(
        y, x, quants, scales, nullptr, powers, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_q8_units_interleaved_exact_128)

KERNEL(128) gemm_q8_units_interleaved_fast_32(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u8* quants,     // [k/4, n, 4]
    const u16* scales,    // [k/32, n]
    const float* powers,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [rank, n]
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale) {
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    products_quantized::gemm<products_quantized::UnitsQ8, 1, 32, 1>(
        y, x, quants, scales, nullptr, powers, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_q8_units_interleaved_fast_32)

// Without a word about it the compiler spills to fit one more block.
#undef LEAST_BLOCKS
#define LEAST_BLOCKS , 3

KERNEL(128) gemm_q4_units_interleaved_exact_32(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u8* quants,     // [k/8, n, 4]
    const u16* scales,    // [k/32, n]
    const u16* minima,    // [k/32, n]
    const float* powers,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [rank, n]
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale) {
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    products_quantized::gemm<products_quantized::UnitsQ4, 2, 32, 1>(
        y, x, quants, scales, minima, powers, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_q4_units_interleaved_exact_32)

#undef LEAST_BLOCKS
#define LEAST_BLOCKS

KERNEL(256) gemm_q4_units_interleaved_exact_128(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u8* quants,     // [k/8, n, 4]
    const u16* scales,    // [k/32, n]
    const u16* minima,    // [k/32, n]
    const float* powers,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [rank, n]
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale) {
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    products_quantized::gemm<products_quantized::UnitsQ4, 2, 128, 2>(
        y, x, quants, scales, minima, powers, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_q4_units_interleaved_exact_128)

KERNEL(128) gemm_q4_units_interleaved_fast_32(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u8* quants,     // [k/8, n, 4]
    const u16* scales,    // [k/32, n]
    const u16* minima,    // [k/32, n]
    const float* powers,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [rank, n]
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale) {
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    products_quantized::gemm<products_quantized::UnitsQ4, 1, 32, 1>(
        y, x, quants, scales, minima, powers, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_q4_units_interleaved_fast_32)

KERNEL(256) gemm_q4_units_interleaved_fast_128(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u8* quants,     // [k/8, n, 4]
    const u16* scales,    // [k/32, n]
    const u16* minima,    // [k/32, n]
    const float* powers,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [rank, n]
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale) {
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    products_quantized::gemm<products_quantized::UnitsQ4, 1, 128, 2>(
        y, x, quants, scales, minima, powers, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_q4_units_interleaved_fast_128)

// Without a word about it the compiler spills to fit a second block.
#undef LEAST_BLOCKS
#define LEAST_BLOCKS , 1

KERNEL(256) gemm_q8_units_interleaved_fast_128(
    float* y,             // [splits, m, n]
    const float* x,       // [m, k]
    const u8* quants,     // [k/4, n, 4]
    const u16* scales,    // [k/32, n]
    const float* powers,  // [m]
    const float* bias,    // [n], or null
    const float* low,     // [m, rank]
    const float* side,    // [rank, n]
    u32 m, u32 n, u32 k, u32 k_split, u32 flags, u32 rank, float low_scale) {
    const epilogue::Terms terms = {bias, low, side, nullptr, rank, low_scale, 0, flags};
    products_quantized::gemm<products_quantized::UnitsQ8, 1, 128, 2>(
        y, x, quants, scales, nullptr, powers, m, n, k, k_split, flags, terms);
}
EXPORT(gemm_q8_units_interleaved_fast_128)

#undef LEAST_BLOCKS
#define LEAST_BLOCKS
