// Activations of a feed-forward network, plain and gated, forward and backward.
//
// The plain code that the kernels equal (cpu/activation.rs), f one of
//
//   0 GELU         f(x) = x * Phi(x)
//   1 GELU (tanh)  f(x) = x * sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3): 0.5 x (1 + tanh u) without cancellation in the negative tail
//   2 SiLU         f(x) = x * sigmoid(x)
//   3 ReLU         f(x) = x <= 0 ? 0 : x, so that a NaN stays one
//
//   out = f(up)                 d_up = dy * f'(up)
//   out = f(gate) * up          d_up = dy * f(gate), d_gate = dy * up * f'(gate)
//
// Bound by memory: a thread takes four numbers, 16 bytes an instruction. The kind is the same for a whole launch, so its branch is uniform.

#include "prelude.cuh"

namespace activation {

constexpr u32 THREADS = 256;

struct Both {
    float value, slope;
};

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

DEVICE Both both(u32 kind, float x) {
    if (kind == 0) {
        const float cumulative = 0.5f * erfcf(-0.70710678118654752440f * x);
        return Both{x * cumulative, cumulative + x * 0.39894228040143267794f * expf(-0.5f * x * x)};
    }
    if (kind == 1) {
        const float root = 1.59576912160573071176f, cubic = 0.044715f, square = x * x;  // 2 sqrt(2/pi)
        const float s = sigmoid(root * x * (1.0f + cubic * square)), inner = root * (1.0f + 3.0f * cubic * square);
        return Both{x * s, s + x * s * (1.0f - s) * inner};
    }
    if (kind == 2) {
        const float s = sigmoid(x);
        return Both{x * s, s + x * s * (1.0f - s)};
    }
    return x <= 0.0f ? Both{0.0f, 0.0f} : Both{x, 1.0f};
}

DEVICE u64 first_number() { return (u64(blockIdx.x) * THREADS + threadIdx.x) * 4; }

// Numbers i..i+4 of [len]; zero beyond the end.
DEVICE void load(float (&x)[4], const float* from, u64 i, u64 len) {
    if (i + 4 <= len) {
        const float4_ v = *reinterpret_cast<const float4_*>(from + i);
        x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    } else {
#pragma unroll
        for (u32 j = 0; j < 4; j++) x[j] = i + j < len ? from[i + j] : 0.0f;
    }
}
DEVICE void store(float* to, const float (&x)[4], u64 i, u64 len) {
    if (i + 4 <= len) {
        *reinterpret_cast<float4_*>(to + i) = float4_{x[0], x[1], x[2], x[3]};
    } else {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            if (i + j < len) to[i + j] = x[j];
        }
    }
}

}  // namespace activation

KERNEL(256) activate_plain(
    float* out,       // [len]
    const float* up,  // [len]
    u64 len, u32 kind) {
    const u64 i = activation::first_number();
    float x[4];
    activation::load(x, up, i, len);
#pragma unroll
    for (u32 j = 0; j < 4; j++) x[j] = activation::both(kind, x[j]).value;
    activation::store(out, x, i, len);
}
EXPORT(activate_plain)

KERNEL(256) activate_gated(
    float* out,         // [len]
    const float* up,    // [len]
    const float* gate,  // [len]
    u64 len, u32 kind) {
    const u64 i = activation::first_number();
    float x[4], g[4];
    activation::load(x, up, i, len);
    activation::load(g, gate, i, len);
#pragma unroll
    for (u32 j = 0; j < 4; j++) x[j] *= activation::both(kind, g[j]).value;
    activation::store(out, x, i, len);
}
EXPORT(activate_gated)

KERNEL(256) activate_plain_backward(
    float* d_up,      // [len]
    const float* dy,  // [len]
    const float* up,  // [len]
    u64 len, u32 kind) {
    const u64 i = activation::first_number();
    float d[4], x[4];
    activation::load(d, dy, i, len);
    activation::load(x, up, i, len);
#pragma unroll
    for (u32 j = 0; j < 4; j++) d[j] *= activation::both(kind, x[j]).slope;
    activation::store(d_up, d, i, len);
}
EXPORT(activate_plain_backward)

KERNEL(256) activate_gated_backward(
    float* d_up,        // [len]
    float* d_gate,      // [len]
    const float* dy,    // [len]
    const float* up,    // [len]
    const float* gate,  // [len]
    u64 len, u32 kind) {
    const u64 i = activation::first_number();
    float d[4], x[4], g[4];
    activation::load(d, dy, i, len);
    activation::load(x, up, i, len);
    activation::load(g, gate, i, len);
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        const activation::Both f = activation::both(kind, g[j]);
        g[j] = d[j] * x[j] * f.slope;
        d[j] *= f.value;
    }
    activation::store(d_up, d, i, len);
    activation::store(d_gate, g, i, len);
}
EXPORT(activate_gated_backward)
