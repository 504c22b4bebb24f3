// The optimizer, and the sums that rank units and layers.
//
// The plain code that the kernels equal (cpu/adamw.rs, cpu/importance.rs):
//
//   adamw:  m = beta1 * m + (1 - beta1) * g;  v = beta2 * v + (1 - beta2) * g * g
//           p = (1 - rate * decay) * p - rate / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + epsilon)
//   sum_of_squares:   sum x^2
//   residual_change:  for rows b (before), a (after) with c = sum (a - b)^2 not 0:
//                     change += sqrt(c / sum b^2);  turn += sum (a / |a| - b / |b|)^2 / 2, which is 1 - cos without cancellation, and 1
//                     where a or b is zero
//
// The constants of a step are powers close to 1, made on the host in f64. The sums add up millions of numbers: a thread adds 32 in f32
// before it goes to f64, of which most devices have few units. How they are split depends on the length alone, and a second kernel, one
// block, adds the parts in a fixed order: a run is repeatable on any device.

#include "prelude.cuh"

namespace training {

constexpr u32 THREADS = 256;
constexpr u32 PER_THREAD = 32;

// Sums of f(i) over a row of d by one warp, in f32 in each lane and in f64 between them.
template <class F> DEVICE double row_sum(u32 d, F f) {
    double sum = 0.0;
    for (u32 base = 0; base < d; base += WARP * PER_THREAD) {
        float part = 0.0f;
#pragma unroll 8
        for (u32 i = base + lane_index(); i < minimum(d, base + WARP * PER_THREAD); i += WARP) part += f(i);
        sum += double(part);
    }
    return warp_sum(sum);
}

}  // namespace training

// One step on [len]; `keep` is 1 - rate * decay, step_size and inverse_root have the bias corrections. Four numbers a thread.
KERNEL(256) adamw(
    float* parameter,       // [len]
    float* first,           // [len]
    float* second,          // [len]
    const float* gradient,  // [len]
    u64 len, float beta1, float rest1, float beta2, float rest2, float keep, float step_size, float inverse_root, float epsilon) {
    const u64 i = (u64(blockIdx.x) * training::THREADS + threadIdx.x) * 4;
    const u32 count = i < len ? u32(minimum<u64>(4, len - i)) : 0;
    float p[4], m[4], v[4], g[4];
    if (count == 4) {
        const float4_ p4 = *reinterpret_cast<const float4_*>(parameter + i), m4 = *reinterpret_cast<const float4_*>(first + i);
        const float4_ v4 = *reinterpret_cast<const float4_*>(second + i), g4 = *reinterpret_cast<const float4_*>(gradient + i);
        p[0] = p4.x, p[1] = p4.y, p[2] = p4.z, p[3] = p4.w;
        m[0] = m4.x, m[1] = m4.y, m[2] = m4.z, m[3] = m4.w;
        v[0] = v4.x, v[1] = v4.y, v[2] = v4.z, v[3] = v4.w;
        g[0] = g4.x, g[1] = g4.y, g[2] = g4.z, g[3] = g4.w;
    } else {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            p[j] = j < count ? parameter[i + j] : 0.0f;
            m[j] = j < count ? first[i + j] : 0.0f;
            v[j] = j < count ? second[i + j] : 0.0f;
            g[j] = j < count ? gradient[i + j] : 0.0f;
        }
    }
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        m[j] = beta1 * m[j] + rest1 * g[j];
        v[j] = beta2 * v[j] + rest2 * g[j] * g[j];
        p[j] = keep * p[j] - step_size * m[j] / (sqrtf(v[j]) * inverse_root + epsilon);
    }
    if (count == 4) {
        *reinterpret_cast<float4_*>(parameter + i) = float4_{p[0], p[1], p[2], p[3]};
        *reinterpret_cast<float4_*>(first + i) = float4_{m[0], m[1], m[2], m[3]};
        *reinterpret_cast<float4_*>(second + i) = float4_{v[0], v[1], v[2], v[3]};
    } else {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            if (j >= count) continue;
            parameter[i + j] = p[j];
            first[i + j] = m[j];
            second[i + j] = v[j];
        }
    }
}
EXPORT(adamw)

// partial [block] = the block's share of sum x^2: it takes every gridDim.x-th run of 8192 numbers.
KERNEL(256) sum_of_squares(
    double* partial,  // [blocks]
    const float* x,   // [len]
    u64 len) {
    SHARED(double, shared, WARP);
    constexpr u64 RUN = u64(training::THREADS) * training::PER_THREAD;
    double sum = 0.0;
    for (u64 base = blockIdx.x * RUN; base < len; base += gridDim.x * RUN) {
        float part = 0.0f;
        for (u64 i = base + threadIdx.x * 4; i < minimum(len, base + RUN); i += training::THREADS * 4) {
            if (i + 4 <= len) {
                const float4_ v = *reinterpret_cast<const float4_*>(x + i);
                part = fmaf(v.x, v.x, fmaf(v.y, v.y, fmaf(v.z, v.z, fmaf(v.w, v.w, part))));
            } else {
                for (u64 j = i; j < len; j++) part = fmaf(x[j], x[j], part);
            }
        }
        sum += double(part);
    }
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
EXPORT(sum_of_squares)

// to [2] = the sums of the two columns. One block.
KERNEL(256) sum_pairs(
    double* to,          // [2]
    const double* from,  // [count, 2]
    u32 count) {
    SHARED(double, shared, WARP);
    double left = 0.0, right = 0.0;
    for (u32 i = threadIdx.x; i < count; i += training::THREADS) {
        left += from[u64(i) * 2];
        right += from[u64(i) * 2 + 1];
    }
    left = block_sum(left, shared);
    right = block_sum(right, shared);
    if (threadIdx.x == 0) {
        to[0] = left;
        to[1] = right;
    }
}
EXPORT(sum_pairs)

// rows [row] = the row's change and turn. A warp a row, 8 rows a block.
KERNEL(256) residual_change(
    double* rows,         // [m, 2]
    const float* before,  // [m, d]
    const float* after,   // [m, d]
    u32 m, u32 d) {
    const u64 row = u64(blockIdx.x) * (training::THREADS / WARP) + warp_index();
    if (row >= m) return;
    const float *x = before + row * d, *y = after + row * d;
    const double changed = training::row_sum(d, [=](u32 i) { return (y[i] - x[i]) * (y[i] - x[i]); });
    double change = 0.0, turn = 0.0;
    if (changed != 0.0) {
        const double b = training::row_sum(d, [=](u32 i) { return x[i] * x[i]; });
        const double a = training::row_sum(d, [=](u32 i) { return y[i] * y[i]; });
        change = sqrt(changed / b);
        turn = 1.0;
        if (b > 0.0 && a > 0.0) {
            const float p = float(1.0 / sqrt(b)), q = float(1.0 / sqrt(a));
            turn = 0.5 * training::row_sum(d, [=](u32 i) { return (y[i] * q - x[i] * p) * (y[i] * q - x[i] * p); });
        }
    }
    if (lane_index() == 0) {
        rows[row * 2] = change;
        rows[row * 2 + 1] = turn;
    }
}
EXPORT(residual_change)
