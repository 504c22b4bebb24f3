// Quants as numbers: what the kernels for blocks of quants share. Of the four formats of kernels/src/format.rs these kernels call those
// whose blocks run along a row plain, and those whose blocks run along 32 rows interleaved:
//
//   plain q8, q4:        quants [rows, blocks, 32 or 16] bytes,       scales and minima [rows, blocks]
//   interleaved q8, q4:  quants [units / 4 or 8, columns, 4] bytes,   scales and minima [units / 32, columns]
//
// with blocks = columns / 32 and units = rows, both rounded up. A number is scale * quant (q8) or scale * quant + minimum (q4).
//
// Integers become floating-point numbers without the slow conversion: their bits are put behind the exponent of a power of two whose last
// place is 1, which is then subtracted. All of it is exact.
#pragma once
#include "prelude.cuh"

namespace quantized {

constexpr u32 BLOCK = 32;

struct Q8 {
    static constexpr bool HAS_MINIMUM = false;
    // Quants in a word.
    static constexpr u32 NUMBERS = 4;
    // Quant i of a word in f32, in the order of an interleaved word and of a plain block.
    DEVICE float number(u32 word, u32 i) {
        // 2^23 + 128 + quant.
        return bits_float(__byte_perm(word ^ 0x80808080u, 0x4b000000u, 0x7650 + i)) - 8388736.0f;
    }
};
struct Q4 {
    static constexpr bool HAS_MINIMUM = true;
    static constexpr u32 NUMBERS = 8;
    // The i-th four bits of a word in f32: row i of an interleaved word.
    DEVICE float number(u32 word, u32 i) {
        const u32 half = i < 4 ? word : word >> 16, at = i % 4 * 4;
        // 2^23 + quant * 2^at.
        return fmaf(bits_float((half & 15u << at) | 0x4b000000u), 1.0f / float(1u << at), -8388608.0f / float(1u << at));
    }
};

// The four bytes of a word as f16, two by two.
DEVICE void q8_pairs(u32 (&pairs)[2], u32 word) {
    const u32 biased = word ^ 0x80808080u;
    // 1024 + 128 + quant, times 1, less 1152.
    pairs[0] = fma_f16x2(__byte_perm(biased, 0x64646464u, 0x4140), 0x3c003c00u, 0xe480e480u);
    pairs[1] = fma_f16x2(__byte_perm(biased, 0x64646464u, 0x4342), 0x3c003c00u, 0xe480e480u);
}
// The eight quants of a word as f16: pair i has the i-th and the i + 4-th four bits.
DEVICE void q4_pairs(u32 (&pairs)[4], u32 word) {
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        const u32 bits = word >> 8 * i;
        // 1024 + quant, times 1, less 1024; and 1024 + 16 * quant, times 1/16, less 64.
        pairs[2 * i] = fma_f16x2((bits & 0x000f000fu) | 0x64006400u, 0x3c003c00u, 0xe400e400u);
        pairs[2 * i + 1] = fma_f16x2((bits & 0x00f000f0u) | 0x64006400u, 0x2c002c00u, 0xd400d400u);
    }
}
// Byte i of two words as bf16: 7 bits and a sign fit.
DEVICE u32 q8_bf16(u32 low, u32 high, u32 i) {
    return __byte_perm(float_bits(Q8::number(low, i)), float_bits(Q8::number(high, i)), 0x7632);
}
// The i-th four bits of two halves of a word as bf16.
DEVICE u32 q4_bf16(u32 halves, u32 i) {
    // 128 + quant, times 1, less 128.
    return fma_bf16x2((halves >> 4 * i & 0x000f000fu) | 0x43004300u, 0x3f803f80u, 0xc300c300u);
}

// Four words from `from` on, of which `valid` are there; the others are zero. `vector`: the address is a multiple of 16 and all are there.
DEVICE uint4_ load_words(const u32* from, u32 valid, bool vector) {
    if (vector) return load_once_16(from);
    uint4_ v = {0, 0, 0, 0};
    if (valid > 0) v.x = from[0];
    if (valid > 1) v.y = from[1];
    if (valid > 2) v.z = from[2];
    if (valid > 3) v.w = from[3];
    return v;
}
// Four scales or minima from `from` on, as load_words. `vector`: the address is a multiple of 8.
DEVICE float4_ load_halves(const u16* from, u32 valid, bool vector) {
    float4_ v = {0.0f, 0.0f, 0.0f, 0.0f};
    if (vector) {
        const uint2_ bits = *reinterpret_cast<const uint2_*>(from);
        v.x = f16_to_f32(u16(bits.x)), v.y = f16_to_f32(u16(bits.x >> 16));
        v.z = f16_to_f32(u16(bits.y)), v.w = f16_to_f32(u16(bits.y >> 16));
        return v;
    }
    if (valid > 0) v.x = f16_to_f32(from[0]);
    if (valid > 1) v.y = f16_to_f32(from[1]);
    if (valid > 2) v.z = f16_to_f32(from[2]);
    if (valid > 3) v.w = f16_to_f32(from[3]);
    return v;
}

}  // namespace quantized
