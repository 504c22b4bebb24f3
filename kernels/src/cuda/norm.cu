// LayerNorm and RMSNorm, forward and backward.
//
// The plain code that the kernels equal (cpu/norm.rs), for every row x [d]; for RMSNorm mean and mean_g are 0:
//
//   mean = sum(x) / d;  rstd = 1 / sqrt(sum((x - mean)^2) / d + epsilon)
//   y = (x - mean) * rstd * weight + bias
//   g = dy * weight;  mean_g = sum(g) / d;  mean_gx = sum(g * (x - mean) * rstd) / d
//   dx += rstd * (g - mean_g - (x - mean) * rstd * mean_gx)
//   d_weight += sum over rows of dy * (x - mean) * rstd;  d_bias += sum over rows of dy
//
// A short row belongs to a warp, whose sums need no barrier; a long row, or one of few, belongs to a block, so that a single token is not
// left to 32 lanes. A row is read again for each sum: by then it is in L1. Two passes for the variance, since a difference of squares
// cancels. The sums over rows are made in two stages: norm_weight_columns adds up blocks of rows, column_finish (elementwise.cu) the blocks.

#include "prelude.cuh"

namespace norms {

constexpr u32 THREADS = 256;

// The threads that share a row: a warp, or a block where there is shared memory [32].
struct Lanes {
    u32 index, count;
    float* shared;
};

DEVICE Lanes warp_lanes() { return Lanes{lane_index(), WARP, nullptr}; }
DEVICE Lanes block_lanes(float* shared) { return Lanes{threadIdx.x, THREADS, shared}; }
DEVICE float sum_of(const Lanes& lanes, float x) { return lanes.shared == nullptr ? warp_sum(x) : block_sum(x, lanes.shared); }

template <u32 W> DEVICE void load(float (&x)[W], const float* from) {
    if constexpr (W == 4) {
        const float4_ four = *reinterpret_cast<const float4_*>(from);
        x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
    } else {
        x[0] = *from;
    }
}
template <u32 W> DEVICE void store(float* to, const float (&x)[W]) {
    if constexpr (W == 4) {
        *reinterpret_cast<float4_*>(to) = float4_{x[0], x[1], x[2], x[3]};
    } else {
        *to = x[0];
    }
}

struct Moments {
    float mean, rstd;
};

template <u32 W> DEVICE Moments moments(const Lanes& lanes, const float* x, u32 d, bool centred, float epsilon) {
    const float inverse = 1.0f / float(d);
    float mean = 0.0f, variance = 0.0f, v[W];
    if (centred) {
        for (u32 i = lanes.index * W; i < d; i += lanes.count * W) {
            load<W>(v, x + i);
#pragma unroll
            for (u32 c = 0; c < W; c++) mean += v[c];
        }
        mean = sum_of(lanes, mean) * inverse;
    }
    for (u32 i = lanes.index * W; i < d; i += lanes.count * W) {
        load<W>(v, x + i);
#pragma unroll
        for (u32 c = 0; c < W; c++) variance = fmaf(v[c] - mean, v[c] - mean, variance);
    }
    return Moments{mean, 1.0f / sqrtf(sum_of(lanes, variance) * inverse + epsilon)};
}

template <u32 W>
DEVICE void forward(const Lanes& lanes, float* y, const float* x, const float* weight, const float* bias, u32 d, bool centred,
                    bool biased, float epsilon) {
    const Moments m = moments<W>(lanes, x, d, centred, epsilon);
    for (u32 i = lanes.index * W; i < d; i += lanes.count * W) {
        float v[W], w[W], b[W] = {};
        load<W>(v, x + i);
        load<W>(w, weight + i);
        if (biased) load<W>(b, bias + i);
#pragma unroll
        for (u32 c = 0; c < W; c++) v[c] = fmaf((v[c] - m.mean) * m.rstd, w[c], b[c]);
        store<W>(y + i, v);
    }
}

template <u32 W>
DEVICE void backward(const Lanes& lanes, float* dx, float* statistics, const float* dy, const float* x, const float* weight, u32 d,
                     bool centred, float epsilon) {
    const Moments m = moments<W>(lanes, x, d, centred, epsilon);
    float mean_g = 0.0f, mean_gx = 0.0f, v[W], g[W], w[W];
    for (u32 i = lanes.index * W; i < d; i += lanes.count * W) {
        load<W>(v, x + i);
        load<W>(g, dy + i);
        load<W>(w, weight + i);
#pragma unroll
        for (u32 c = 0; c < W; c++) {
            mean_g = fmaf(g[c], w[c], mean_g);
            mean_gx = fmaf(g[c] * w[c], (v[c] - m.mean) * m.rstd, mean_gx);
        }
    }
    const float inverse = 1.0f / float(d);
    mean_g = centred ? sum_of(lanes, mean_g) * inverse : 0.0f;
    mean_gx = sum_of(lanes, mean_gx) * inverse;
    for (u32 i = lanes.index * W; i < d; i += lanes.count * W) {
        float to[W];
        load<W>(to, dx + i);
        load<W>(v, x + i);
        load<W>(g, dy + i);
        load<W>(w, weight + i);
#pragma unroll
        for (u32 c = 0; c < W; c++) to[c] += m.rstd * (g[c] * w[c] - mean_g - (v[c] - m.mean) * m.rstd * mean_gx);
        store<W>(dx + i, to);
    }
    if (lanes.index == 0) {
        statistics[0] = m.mean;
        statistics[1] = m.rstd;
    }
}

}  // namespace norms

// A warp a row, 8 rows a block.
KERNEL(256) norm_warp(
    float* y,             // [m, d]
    const float* x,       // [m, d]
    const float* weight,  // [d]
    const float* bias,    // [d], not read where !biased
    u32 m, u32 d, u32 centred, u32 biased, float epsilon) {
    const u64 row = u64(blockIdx.x) * (norms::THREADS / WARP) + warp_index();
    if (row >= m) return;
    if (d % 4 == 0) {
        norms::forward<4>(norms::warp_lanes(), y + row * d, x + row * d, weight, bias, d, centred != 0, biased != 0, epsilon);
    } else {
        norms::forward<1>(norms::warp_lanes(), y + row * d, x + row * d, weight, bias, d, centred != 0, biased != 0, epsilon);
    }
}
EXPORT(norm_warp)

// A block a row.
KERNEL(256) norm_block(
    float* y,             // [m, d]
    const float* x,       // [m, d]
    const float* weight,  // [d]
    const float* bias,    // [d], not read where !biased
    u32 m, u32 d, u32 centred, u32 biased, float epsilon) {
    SHARED(float, shared, WARP);
    const u64 row = blockIdx.x;
    if (row >= m) return;
    if (d % 4 == 0) {
        norms::forward<4>(norms::block_lanes(shared), y + row * d, x + row * d, weight, bias, d, centred != 0, biased != 0, epsilon);
    } else {
        norms::forward<1>(norms::block_lanes(shared), y + row * d, x + row * d, weight, bias, d, centred != 0, biased != 0, epsilon);
    }
}
EXPORT(norm_block)

// A warp a row, 8 rows a block.
KERNEL(256) norm_backward_warp(
    float* dx,            // [m, d], added to
    float* statistics,    // [m, 2]: mean and 1 / deviation
    const float* dy,      // [m, d]
    const float* x,       // [m, d]
    const float* weight,  // [d]
    u32 m, u32 d, u32 centred, float epsilon) {
    const u64 row = u64(blockIdx.x) * (norms::THREADS / WARP) + warp_index(), at = row * d;
    if (row >= m) return;
    if (d % 4 == 0) {
        norms::backward<4>(norms::warp_lanes(), dx + at, statistics + row * 2, dy + at, x + at, weight, d, centred != 0, epsilon);
    } else {
        norms::backward<1>(norms::warp_lanes(), dx + at, statistics + row * 2, dy + at, x + at, weight, d, centred != 0, epsilon);
    }
}
EXPORT(norm_backward_warp)

// A block a row.
KERNEL(256) norm_backward_block(
    float* dx,            // [m, d], added to
    float* statistics,    // [m, 2]: mean and 1 / deviation
    const float* dy,      // [m, d]
    const float* x,       // [m, d]
    const float* weight,  // [d]
    u32 m, u32 d, u32 centred, float epsilon) {
    SHARED(float, shared, WARP);
    const u64 row = blockIdx.x, at = row * d;
    if (row >= m) return;
    if (d % 4 == 0) {
        norms::backward<4>(norms::block_lanes(shared), dx + at, statistics + row * 2, dy + at, x + at, weight, d, centred != 0, epsilon);
    } else {
        norms::backward<1>(norms::block_lanes(shared), dx + at, statistics + row * 2, dy + at, x + at, weight, d, centred != 0, epsilon);
    }
}
EXPORT(norm_backward_block)

// partial [block of rows] = sum over its rows of dy * (x - mean) * rstd. A block: 32 columns, 8 rows at a time, `rows` rows.
// Blocks: [columns / 32, blocks of rows].
KERNEL(256) norm_weight_columns(
    float* partial,           // [blocks of rows, d]
    const float* dy,          // [m, d]
    const float* x,           // [m, d]
    const float* statistics,  // [m, 2]
    u32 m, u32 d, u32 rows) {
    SHARED(float, sums, 256);
    const u32 column = blockIdx.x * WARP + lane_index(), first = blockIdx.y * rows, end = minimum(m, first + rows);
    float sum = 0.0f;
    if (column < d) {
#pragma unroll 4
        for (u32 row = first + warp_index(); row < end; row += 8) {
            const u64 at = u64(row) * d + column;
            sum = fmaf(dy[at], (x[at] - statistics[u64(row) * 2]) * statistics[u64(row) * 2 + 1], sum);
        }
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp_index() != 0 || column >= d) return;
    for (u32 i = 1; i < 8; i++) sum += sums[i * WARP + lane_index()];
    partial[u64(blockIdx.y) * d + column] = sum;
}
EXPORT(norm_weight_columns)
