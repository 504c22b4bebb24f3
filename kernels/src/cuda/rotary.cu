// Rotary position embedding.
//
// The plain code that the kernel equals (cpu/rotary.rs):
//
//   for b, position, h, i < half:
//       angle = (start + position) * frequencies[i]     (negative to rotate back);  c = cos(angle), s = sin(angle)
//       x[i], x[i + half] = x[i] * c - x[i + half] * s, x[i + half] * c + x[i] * s          of that head
//
// A thread computes one angle and turns that pair in several heads with it. An angle grows to the length of the context, where f32 has lost
// the digits behind the point: it is reduced to quarter turns in f64, three operations a thread, and sine and cosine of what is left, at
// most an eighth of a turn, are their Taylor series, within an f32's rounding. The library's sinf would bring a path for large arguments
// that uses local memory.

#include "prelude.cuh"

namespace rotary {

constexpr u32 THREADS = 128;

struct Turn {
    float cosine, sine;
};

// The turn by `angle` radians, |angle| < 2^50.
DEVICE Turn turn_by(double angle) {
    // Adding 1.5 * 2^52 rounds to an integer, whose lowest bits then are the sum's.
    const double round = 6755399441055744.0, quarters = angle * 0.63661977236758134308;
    const double shifted = quarters + round, whole = shifted - round;
    const float a = float((quarters - whole) * 1.57079632679489661923), b = a * a;
    const float sine = a * (1.0f + b * (-1.0f / 6 + b * (1.0f / 120 + b * (-1.0f / 5040 + b * (1.0f / 362880)))));
    const float cosine = 1.0f + b * (-0.5f + b * (1.0f / 24 + b * (-1.0f / 720 + b * (1.0f / 40320 + b * (-1.0f / 3628800)))));
    const i32 quadrant = i32(static_cast<long long>(whole) & 3);
    const float c = quadrant % 2 == 0 ? cosine : sine, s = quadrant % 2 == 0 ? sine : cosine;
    return Turn{quadrant == 1 || quadrant == 2 ? -c : c, quadrant >= 2 ? -s : s};
}

}  // namespace rotary

// A thread: dimension i of `together` heads of one position. Blocks: batch * sequence * half * ceil(heads / together) / 128.
KERNEL(128) rotate(
    float* x,                  // [batch, sequence, heads * head_dim]
    const float* frequencies,  // [half]
    u64 rows, u32 sequence, u32 heads, u32 head_dim, u32 half, u32 together, u64 start, u32 inverse) {
    const u32 chunks = ceil_div(heads, together);
    const u64 index = u64(blockIdx.x) * rotary::THREADS + threadIdx.x;
    const u32 i = u32(index % half), first = u32(index / half % chunks) * together;
    const u64 row = index / half / chunks;
    if (row >= rows) return;
    const double angle = double(start + row % sequence) * double(frequencies[i]);
    const rotary::Turn turn = rotary::turn_by(inverse != 0 ? -angle : angle);
    float* at = x + (row * heads + first) * head_dim + i;
    const u32 count = minimum(together, heads - first);
#pragma unroll 4
    for (u32 h = 0; h < count; h++, at += head_dim) {
        const float low = at[0], high = at[half];
        at[0] = low * turn.cosine - high * turn.sine;
        at[half] = high * turn.cosine + low * turn.sine;
    }
}
EXPORT(rotate)
