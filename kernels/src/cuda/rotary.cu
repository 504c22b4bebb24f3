// Rotary position embedding.
//
// The plain code that the kernel equals (cpu/rotary.rs):
//
//   for b, position, h, i < half:
//       angle = (start + position) * frequencies[i]     (negative to rotate back);  c = cos(angle), s = sin(angle)
//       x[i], x[i + half] = x[i] * c - x[i + half] * s, x[i + half] * c + x[i] * s          of that head
//
//   cache_tokens: the same for q and k of tokens of one sequence, and
//       keys[start + t] = k[t];  values[start + t] = v[t]
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

// Few tokens: all that becomes of queries, keys and values on their way to attention. A thread: a pair of dimensions of a query head, a
// pair or an unturned dimension of a key, or a number of a value, in this order. Blocks: tokens * slots / 128.
KERNEL(128) cache_tokens(
    float* keys,               // [capacity, groups * head_dim]
    float* values,             // [capacity, groups * head_dim]
    float* q,                  // [tokens, heads * head_dim]
    const float* k,            // [tokens, groups * head_dim]
    const float* v,            // [tokens, groups * head_dim]
    const float* frequencies,  // [half]
    const u32* stored,         // [1], what `start` is added to, or null
    u64 start, u32 tokens, u32 heads, u32 groups, u32 head_dim, u32 half) {
    const u32 key_slots = head_dim - half, width = groups * head_dim;
    const u64 of_queries = u64(heads) * half, slots = of_queries + u64(groups) * key_slots + width;
    const u64 index = u64(blockIdx.x) * rotary::THREADS + threadIdx.x, token = index / slots;
    if (token >= tokens) return;
    if (stored != nullptr) start += stored[0];
    u64 slot = index % slots;
    const u64 from = token * width, to = (start + token) * width;
    if (slot >= slots - width) {
        slot -= slots - width;
        values[to + slot] = v[from + slot];
        return;
    }
    const bool is_key = slot >= of_queries;
    if (is_key) slot -= of_queries;
    const u32 each = is_key ? key_slots : half, head = u32(slot / each), i = u32(slot % each);
    if (i >= half) {
        keys[to + head * head_dim + half + i] = k[from + head * head_dim + half + i];
        return;
    }
    const rotary::Turn turn = rotary::turn_by(double(start + token) * double(frequencies[i]));
    const u64 query = token * heads * head_dim + head * head_dim + i, key = u64(head) * head_dim + i;
    const float* read = is_key ? k + from + key : q + query;
    float* write = is_key ? keys + to + key : q + query;
    const float low = read[0], high = read[half];
    write[0] = low * turn.cosine - high * turn.sine;
    write[half] = high * turn.cosine + low * turn.sine;
}
EXPORT(cache_tokens)
