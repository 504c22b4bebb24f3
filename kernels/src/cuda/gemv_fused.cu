// Row-dot products of one token that share its activations, in one launch: query, key and value; up and gate with their activation.
//
// What they must equal (kernels/src/fused.rs), for weights W [rows, columns] and x [columns]:
//
//   gemv_each:   y[r] = sum over c of x[c] * W[r][c] (+ bias[r])       for each of up to three matrices
//   gemv_gated:  out[r] = f(g) * u, with u and g such sums of up and gate, and f an activation of activation.cu
//
// Changed against it: a token's products wait for memory alone, and a small one is over before the next has started. So the blocks of all
// matrices are started together; a block works on one of them as gemv_rows does. A warp of gemv_gated has the same rows of both, one after
// the other, with as many loads under way as gemv_rows has.
//
// Comes after gemv_rows.cu, whose parts it is made of.
#include "prelude.cuh"

namespace gemv_fused {

// One of up to three matrices. The blocks of the first come first.
template <class T> struct Product {
    float* y;           // [rows]
    const T* w;         // [rows, columns]
    const float* bias;  // [rows], or null
    u32 rows, blocks;
};

template <class S>
DEVICE void each(const Product<typename S::Number>& first, const Product<typename S::Number>& second,
                 const Product<typename S::Number>& third, const float* x, u32 columns, u32 split, u32 flags,
                 float* shared /* [ROW_WARPS, WARP] */) {
    const bool is_first = blockIdx.x < first.blocks, is_second = blockIdx.x < first.blocks + second.blocks;
    const u32 before = is_first ? 0 : is_second ? first.blocks : first.blocks + second.blocks;
    const epilogue::Terms terms = {is_first ? first.bias : is_second ? second.bias : third.bias, nullptr, nullptr, nullptr, 0, 0.0f, 0, 0};
    gemv::rows_of_block<S, 1>(is_first ? first.y : is_second ? second.y : third.y, x, is_first ? first.w : is_second ? second.w : third.w, 1,
                              is_first ? first.rows : is_second ? second.rows : third.rows, columns, split, 1.0f, flags, terms,
                              blockIdx.x - before, shared);
}

template <class S>
DEVICE void gated(float* out, const float* x, const typename S::Number* up, const typename S::Number* gate, const float* up_bias,
                  const float* gate_bias, u32 rows, u32 columns, u32 split, u32 flags, u32 kind, float* shared /* [ROW_WARPS, WARP] */) {
    constexpr u32 EACH = gemv::ROWS_EACH;
    const u32 warp = warp_index(), part = warp % split, lane = lane_index();
    const u32 row0 = (blockIdx.x * (gemv::ROW_WARPS / split) + warp / split) * EACH;
    float ups[EACH][1] = {}, gates[EACH][1] = {}, mine = 0.0f;
    if (row0 < rows) {
        gemv::row_dots<S, 1>(ups, x, up, row0, 1, rows, columns, part, split, flags);
        gemv::row_dots<S, 1>(gates, x, gate, row0, 1, rows, columns, part, split, flags);
    }
    // Lane i has the sum of row i of up, lane EACH + i that of gate.
#pragma unroll
    for (u32 i = 0; i < 2 * EACH; i++) {
        const float sum = warp_sum(i < EACH ? ups[i % EACH][0] : gates[i % EACH][0]);
        if (lane == i) mine = sum;
    }
    if (split > 1) {
        shared[threadIdx.x] = mine;
        __syncthreads();
#pragma unroll 1
        for (u32 i = 1; i < split; i++) mine += shared[(warp - part + i) * WARP + lane];
    }
    const float of_gate = __shfl_xor_sync(ALL_LANES, mine, EACH);
    const u32 row = row0 + lane;
    if (part != 0 || lane >= EACH || row >= rows) return;
    const float u = mine + (up_bias != nullptr ? up_bias[row] : 0.0f), g = of_gate + (gate_bias != nullptr ? gate_bias[row] : 0.0f);
    out[row] = activation::both(kind, g).value * u;
}

}  // namespace gemv_fused

KERNEL(128) gemv_each_f32(
    float* y0,           // [rows0]
    float* y1,           // [rows1]
    float* y2,           // [rows2]
    const float* x,      // [columns]
    const float* w0,     // [rows0, columns]
    const float* w1,     // [rows1, columns]
    const float* w2,     // [rows2, columns]
    const float* bias0,  // [rows0], or null
    const float* bias1,  // [rows1], or null
    const float* bias2,  // [rows2], or null
    u32 rows0, u32 rows1, u32 rows2, u32 blocks0, u32 blocks1, u32 columns, u32 split, u32 flags) {
    SHARED(float, shared, 128);
    gemv_fused::each<gemv::F32>(
        {y0, w0, bias0, rows0, blocks0}, {y1, w1, bias1, rows1, blocks1}, {y2, w2, bias2, rows2, 0}, x, columns, split, flags, shared);
}
EXPORT(gemv_each_f32)

KERNEL(128) gemv_each_f16(
    float* y0,           // [rows0]
    float* y1,           // [rows1]
    float* y2,           // [rows2]
    const float* x,      // [columns]
    const u16* w0,       // [rows0, columns]
    const u16* w1,       // [rows1, columns]
    const u16* w2,       // [rows2, columns]
    const float* bias0,  // [rows0], or null
    const float* bias1,  // [rows1], or null
    const float* bias2,  // [rows2], or null
    u32 rows0, u32 rows1, u32 rows2, u32 blocks0, u32 blocks1, u32 columns, u32 split, u32 flags) {
    SHARED(float, shared, 128);
    gemv_fused::each<gemv::Rows<gemv::F16>>(
        {y0, w0, bias0, rows0, blocks0}, {y1, w1, bias1, rows1, blocks1}, {y2, w2, bias2, rows2, 0}, x, columns, split, flags, shared);
}
EXPORT(gemv_each_f16)

KERNEL(128) gemv_each_bf16(
    float* y0,           // [rows0]
    float* y1,           // [rows1]
    float* y2,           // [rows2]
    const float* x,      // [columns]
    const u16* w0,       // [rows0, columns]
    const u16* w1,       // [rows1, columns]
    const u16* w2,       // [rows2, columns]
    const float* bias0,  // [rows0], or null
    const float* bias1,  // [rows1], or null
    const float* bias2,  // [rows2], or null
    u32 rows0, u32 rows1, u32 rows2, u32 blocks0, u32 blocks1, u32 columns, u32 split, u32 flags) {
    SHARED(float, shared, 128);
    gemv_fused::each<gemv::Rows<gemv::Bf16>>(
        {y0, w0, bias0, rows0, blocks0}, {y1, w1, bias1, rows1, blocks1}, {y2, w2, bias2, rows2, 0}, x, columns, split, flags, shared);
}
EXPORT(gemv_each_bf16)

KERNEL(128) gemv_gated_f32(
    float* out,              // [rows]
    const float* x,          // [columns]
    const float* up,         // [rows, columns]
    const float* gate,       // [rows, columns]
    const float* up_bias,    // [rows], or null
    const float* gate_bias,  // [rows], or null
    u32 rows, u32 columns, u32 split, u32 flags, u32 kind) {
    SHARED(float, shared, 128);
    gemv_fused::gated<gemv::F32>(out, x, up, gate, up_bias, gate_bias, rows, columns, split, flags, kind, shared);
}
EXPORT(gemv_gated_f32)

KERNEL(128) gemv_gated_f16(
    float* out,              // [rows]
    const float* x,          // [columns]
    const u16* up,           // [rows, columns]
    const u16* gate,         // [rows, columns]
    const float* up_bias,    // [rows], or null
    const float* gate_bias,  // [rows], or null
    u32 rows, u32 columns, u32 split, u32 flags, u32 kind) {
    SHARED(float, shared, 128);
    gemv_fused::gated<gemv::Rows<gemv::F16>>(out, x, up, gate, up_bias, gate_bias, rows, columns, split, flags, kind, shared);
}
EXPORT(gemv_gated_f16)

KERNEL(128) gemv_gated_bf16(
    float* out,              // [rows]
    const float* x,          // [columns]
    const u16* up,           // [rows, columns]
    const u16* gate,         // [rows, columns]
    const float* up_bias,    // [rows], or null
    const float* gate_bias,  // [rows], or null
    u32 rows, u32 columns, u32 split, u32 flags, u32 kind) {
    SHARED(float, shared, 128);
    gemv_fused::gated<gemv::Rows<gemv::Bf16>>(out, x, up, gate, up_bias, gate_bias, rows, columns, split, flags, kind, shared);
}
EXPORT(gemv_gated_bf16)
