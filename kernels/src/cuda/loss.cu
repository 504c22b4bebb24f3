// Softmax and cross entropy.
//
// The plain code that the kernels equal (cpu/loss.rs), for every row x [n]:
//
//   largest = max(x);  sum = sum(exp(x - largest));  softmax: x = exp(x - largest) / sum
//   cross entropy, for the rows whose target is not NO_TARGET, count of them:
//   loss += ln(sum) + largest - x[target];  d[j] = (exp(x[j] - largest) / sum - (j == target)) / count;  the result is loss / count
//   rows without a target: d = 0
//
// A block a row. Maximum and sum are made in one pass (online softmax, Milakov and Gimelshein, arXiv 1805.02867): a vocabulary's row is
// half a megabyte, and many rows are under way at once, so that a second reading would come from memory. Losses go to memory as f64, one
// a row, and one block adds them up in a fixed order, so that a call reads back one number.

#include "prelude.cuh"

namespace loss {

constexpr u32 THREADS = 256;
constexpr u32 NO_TARGET = 0xffffffffu;

struct Softmax {
    float largest, sum;
};

DEVICE float decay(float from, float to) { return from == to ? 1.0f : expf(from - to); }

DEVICE void add(Softmax& s, float x) {
    // -inf adds nothing; were it taken, a row that begins with it would be lost to inf - inf.
    if (x == -infinity()) return;
    const float top = fmaxf(s.largest, x);
    s.sum = s.sum * decay(s.largest, top) + expf(x - top);
    s.largest = top;
}

// Largest and sum of exponentials of a row, in every thread. `shared [32]`.
DEVICE Softmax row(const float* x, u32 n, float* shared) {
    Softmax s = {-infinity(), 0.0f};
    if (n % 4 == 0) {
        for (u32 i = threadIdx.x * 4; i < n; i += THREADS * 4) {
            const float4_ v = *reinterpret_cast<const float4_*>(x + i);
            const float top = fmaxf(fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)), s.largest);
            if (top == -infinity() || top != top) {
                add(s, v.x), add(s, v.y), add(s, v.z), add(s, v.w);
                continue;
            }
            s.sum = s.sum * decay(s.largest, top) + (expf(v.x - top) + expf(v.y - top)) + (expf(v.z - top) + expf(v.w - top));
            s.largest = top;
        }
    } else {
        for (u32 i = threadIdx.x; i < n; i += THREADS) add(s, x[i]);
    }
    const float largest = block_max(s.largest, shared);
    return Softmax{largest, block_sum(s.sum * decay(s.largest, largest), shared)};
}

}  // namespace loss

// A block a row.
KERNEL(256) softmax(
    float* x,  // [m, n]
    u32 n) {
    SHARED(float, shared, WARP);
    float* row = x + u64(blockIdx.x) * n;
    const loss::Softmax s = loss::row(row, n, shared);
    const float inverse = 1.0f / s.sum;
    for (u32 i = threadIdx.x; i < n; i += loss::THREADS) row[i] = expf(row[i] - s.largest) * inverse;
}
EXPORT(softmax)

// losses [row] = the row's cross entropy, 0 without a target. A block a row.
KERNEL(256) cross_entropy(
    double* losses,       // [m]
    const float* logits,  // [m, n]
    const u32* targets,   // [m]
    u32 n) {
    SHARED(float, shared, WARP);
    const u32 target = targets[blockIdx.x];
    const float* row = logits + u64(blockIdx.x) * n;
    double value = 0.0;
    if (target != loss::NO_TARGET) {
        const loss::Softmax s = loss::row(row, n, shared);
        value = log(double(s.sum)) + double(s.largest) - double(row[target]);
    }
    if (threadIdx.x == 0) losses[blockIdx.x] = value;
}
EXPORT(cross_entropy)

// As cross_entropy, and d_logits = the gradient of the mean; `weight` is 1 / rows with a target. A block a row.
KERNEL(256) cross_entropy_gradient(
    double* losses,       // [m]
    float* d_logits,      // [m, n]
    const float* logits,  // [m, n]
    const u32* targets,   // [m]
    u32 n, float weight) {
    SHARED(float, shared, WARP);
    const u32 target = targets[blockIdx.x];
    const float* row = logits + u64(blockIdx.x) * n;
    float* d = d_logits + u64(blockIdx.x) * n;
    double value = 0.0;
    if (target == loss::NO_TARGET) {
        for (u32 i = threadIdx.x; i < n; i += loss::THREADS) d[i] = 0.0f;
    } else {
        const loss::Softmax s = loss::row(row, n, shared);
        const float factor = weight / s.sum;
        for (u32 i = threadIdx.x; i < n; i += loss::THREADS) d[i] = expf(row[i] - s.largest) * factor - (i == target ? weight : 0.0f);
        value = log(double(s.sum)) + double(s.largest) - double(row[target]);
    }
    if (threadIdx.x == 0) losses[blockIdx.x] = value;
}
EXPORT(cross_entropy_gradient)

// total [1] = sum of losses. One block.
KERNEL(256) cross_entropy_sum(
    double* total,         // [1]
    const double* losses,  // [m]
    u32 m) {
    SHARED(double, shared, WARP);
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < m; i += loss::THREADS) sum += losses[i];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) *total = sum;
}
EXPORT(cross_entropy_sum)
