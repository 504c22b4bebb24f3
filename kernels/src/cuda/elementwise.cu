// Element by element, and sums over rows.
//
// The plain code that the kernels equal (cpu/elementwise.rs):
//
//   fill: x = value    add: y += alpha * x    scale: x *= alpha
//   add_bias: y[i][j] += bias[j]              gate_columns: x[i][j] *= gates[j / width]
//   bias_backward: d_bias[j] += sum_i dy[i][j]
//   gate_backward: d_gates[u] += sum_i sum_j in u dy[i][j] * x[i][j]
//
// All are bound by memory: a thread moves 16 bytes an instruction where rows allow it. Sums over rows are made in two stages, so that a tall
// narrow matrix still fills the machine and no number is added atomically: a warp adds up 32 columns (neighbouring, so that a warp reads 128
// bytes) over a block of rows, then a second kernel adds the blocks in their order.

#include "prelude.cuh"

namespace elementwise {

constexpr u32 THREADS = 256;
constexpr u32 ROWS_AT_ONCE = THREADS / WARP;

// Rows and columns of a thread in a grid [columns / (256 * width), rows].
DEVICE u32 column_of(u32 width) { return (blockIdx.x * THREADS + threadIdx.x) * width; }

// Adds a warp's `sum`, one column a lane, over the block's warps; the first warp has the result.
DEVICE float over_warps(float sum, float* shared) {
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (warp_index() == 0) {
        for (u32 i = 1; i < ROWS_AT_ONCE; i++) sum += shared[i * WARP + lane_index()];
    }
    return sum;
}

}  // namespace elementwise

// x[..len] = value; four numbers a thread.
KERNEL(256) fill(
    float* x,  // [len]
    u64 len, float value) {
    const u64 i = (u64(blockIdx.x) * elementwise::THREADS + threadIdx.x) * 4;
    if (i + 4 <= len) {
        *reinterpret_cast<float4_*>(x + i) = float4_{value, value, value, value};
    } else {
        for (u64 j = i; j < len; j++) x[j] = value;
    }
}
EXPORT(fill)

// y[..len] += alpha * x[..len]; four numbers a thread.
KERNEL(256) add(
    float* y,        // [len]
    const float* x,  // [len]
    u64 len, float alpha) {
    const u64 i = (u64(blockIdx.x) * elementwise::THREADS + threadIdx.x) * 4;
    if (i + 4 <= len) {
        float4_ to = *reinterpret_cast<const float4_*>(y + i);
        const float4_ from = *reinterpret_cast<const float4_*>(x + i);
        to.x = fmaf(alpha, from.x, to.x);
        to.y = fmaf(alpha, from.y, to.y);
        to.z = fmaf(alpha, from.z, to.z);
        to.w = fmaf(alpha, from.w, to.w);
        *reinterpret_cast<float4_*>(y + i) = to;
    } else {
        for (u64 j = i; j < len; j++) y[j] = fmaf(alpha, x[j], y[j]);
    }
}
EXPORT(add)

// x[..len] *= alpha; four numbers a thread.
KERNEL(256) scale(
    float* x,  // [len]
    u64 len, float alpha) {
    const u64 i = (u64(blockIdx.x) * elementwise::THREADS + threadIdx.x) * 4;
    if (i + 4 <= len) {
        const float4_ v = *reinterpret_cast<const float4_*>(x + i);
        *reinterpret_cast<float4_*>(x + i) = float4_{v.x * alpha, v.y * alpha, v.z * alpha, v.w * alpha};
    } else {
        for (u64 j = i; j < len; j++) x[j] *= alpha;
    }
}
EXPORT(scale)

// y[row] += bias. Blocks: [columns / 1024 (256 where n % 4 != 0), rows or fewer].
KERNEL(256) add_bias(
    float* y,           // [m, n]
    const float* bias,  // [n]
    u32 m, u32 n) {
    const bool vector = n % 4 == 0;
    const u32 column = elementwise::column_of(vector ? 4 : 1);
    if (column >= n) return;
    for (u32 row = blockIdx.y; row < m; row += gridDim.y) {
        float* to = y + u64(row) * n + column;
        if (vector) {
            float4_ v = *reinterpret_cast<const float4_*>(to);
            const float4_ b = *reinterpret_cast<const float4_*>(bias + column);
            v.x += b.x, v.y += b.y, v.z += b.z, v.w += b.w;
            *reinterpret_cast<float4_*>(to) = v;
        } else {
            *to += bias[column];
        }
    }
}
EXPORT(add_bias)

// x[row][column] *= gates[column / width]. Blocks as add_bias.
KERNEL(256) gate_columns(
    float* x,            // [m, units * width]
    const float* gates,  // [units]
    u32 m, u32 n, u32 width) {
    const bool vector = n % 4 == 0;
    const u32 column = elementwise::column_of(vector ? 4 : 1);
    if (column >= n) return;
    float g[4];
    for (u32 i = 0; i < 4; i++) g[i] = column + i < n ? gates[(column + i) / width] : 0.0f;
    for (u32 row = blockIdx.y; row < m; row += gridDim.y) {
        float* to = x + u64(row) * n + column;
        if (vector) {
            float4_ v = *reinterpret_cast<const float4_*>(to);
            v.x *= g[0], v.y *= g[1], v.z *= g[2], v.w *= g[3];
            *reinterpret_cast<float4_*>(to) = v;
        } else {
            *to *= g[0];
        }
    }
}
EXPORT(gate_columns)

// partial [block of rows] = sum of its rows. A block: 32 columns, 8 rows at a time, `rows` rows. Blocks: [columns / 32, blocks of rows].
KERNEL(256) column_sums(
    float* partial,   // [blocks of rows, n]
    const float* dy,  // [m, n]
    u32 m, u32 n, u32 rows) {
    SHARED(float, sums, elementwise::THREADS);
    const u32 column = blockIdx.x * WARP + lane_index(), first = blockIdx.y * rows, end = minimum(m, first + rows);
    float sum = 0.0f;
    if (column < n) {
#pragma unroll 4
        for (u32 row = first + warp_index(); row < end; row += elementwise::ROWS_AT_ONCE) sum += dy[u64(row) * n + column];
    }
    sum = elementwise::over_warps(sum, sums);
    if (warp_index() == 0 && column < n) partial[u64(blockIdx.y) * n + column] = sum;
}
EXPORT(column_sums)

// As column_sums, of dy * x.
KERNEL(256) column_products(
    float* partial,   // [blocks of rows, n]
    const float* dy,  // [m, n]
    const float* x,   // [m, n]
    u32 m, u32 n, u32 rows) {
    SHARED(float, sums, elementwise::THREADS);
    const u32 column = blockIdx.x * WARP + lane_index(), first = blockIdx.y * rows, end = minimum(m, first + rows);
    float sum = 0.0f;
    if (column < n) {
#pragma unroll 4
        for (u32 row = first + warp_index(); row < end; row += elementwise::ROWS_AT_ONCE) {
            sum = fmaf(dy[u64(row) * n + column], x[u64(row) * n + column], sum);
        }
    }
    sum = elementwise::over_warps(sum, sums);
    if (warp_index() == 0 && column < n) partial[u64(blockIdx.y) * n + column] = sum;
}
EXPORT(column_products)

// to[unit] += the sum of its `width` columns over all blocks of rows: a warp a unit, in a fixed order.
KERNEL(256) column_finish_units(
    float* to,             // [units]
    const float* partial,  // [parts, units * width]
    u32 parts, u32 units, u32 width) {
    const u32 unit = blockIdx.x * elementwise::ROWS_AT_ONCE + warp_index();
    if (unit >= units) return;
    float sum = 0.0f;
    for (u32 part = 0; part < parts; part++) {
        const float* from = partial + (u64(part) * units + unit) * width;
        for (u32 i = lane_index(); i < width; i += WARP) sum += from[i];
    }
    sum = warp_sum(sum);
    if (lane_index() == 0) to[unit] += sum;
}
EXPORT(column_finish_units)

// to[column] += the sum over all blocks of rows, in their order.
KERNEL(256) column_finish(
    float* to,             // [n]
    const float* partial,  // [parts, n]
    u32 parts, u32 n) {
    const u32 column = blockIdx.x * elementwise::THREADS + threadIdx.x;
    if (column >= n) return;
    float sum = 0.0f;
#pragma unroll 4
    for (u32 part = 0; part < parts; part++) sum += partial[u64(part) * n + column];
    to[column] += sum;
}
EXPORT(column_finish)
