// Causal attention of few queries, as in decoding: the plain code at the top of attention.cu.
//
// The work is reading keys and values once, so the keys are split over blocks (flash-decoding, Dao et al., 2023): a block has one part of
// the keys of one sequence and KV group, and serves all heads of the group with them, 8 rows (a head's query each) at a time. Eight lanes
// share a key, 128 neighbouring bytes a step. The block that comes last of a group then merges its parts, always in the same order, so that
// a run is repeatable.
//
// Where the position of the queries is read from device memory, the blocks are those of the most keys that there may be: a part whose keys
// are not there yet ends at once, and is not merged.
//
// Comes after attention.cu, whose Shape it uses.

#include "prelude.cuh"

namespace decode {

using attention::Shape;

constexpr u32 THREADS = 128;
constexpr u32 WARPS = THREADS / WARP;
constexpr u32 ROWS = 8;         // rows that a key is read for at once
constexpr u32 PART = 256;       // the most keys of a part
constexpr u32 DIMS = 256;       // dimensions of the queries that are in shared memory at a time
constexpr u32 KEY_LANES = 8;    // lanes that share a key
constexpr u32 COLUMNS = 128;    // the most columns of the output that are summed at a time

// Shared memory of a block.
struct Scratch {
    float* queries;  // [ROWS, DIMS]
    float* scores;   // [ROWS, PART], then the probabilities' numerators
    float* sums;     // [WARPS, ROWS, COLUMNS]
    float* largest;  // [ROWS]
    float* total;    // [ROWS]
    u32* heads;      // [ROWS], a number that is no head where there is no row
};

// What a block works on.
struct Part {
    u32 group, sequence, number, first, count;  // keys first..first+count
};

// The head of every row: row n is query n % queries of the group's head number n / queries.
DEVICE void find_heads(u32* heads, const u32* groups, u32 first_row, u32 group, const Shape& s) {
    if (threadIdx.x >= ROWS) return;
    const u32 wanted = (first_row + threadIdx.x) / s.queries;
    u32 found = s.heads, seen = 0;
    for (u32 h = 0; h < s.heads; h++) {
        if (groups[h] != group) continue;
        if (seen == wanted) found = h;
        seen++;
    }
    heads[threadIdx.x] = found;
}

// Calls `work` with the first of every ROWS rows of a KV group, whose heads are in shared.heads then. Every thread of the block calls it.
template <class Work> DEVICE void each_rows(const Scratch& shared, const u32* groups, u32 group, const Shape& s, Work work) {
    for (u32 row = 0; row < s.heads * s.queries; row += ROWS) {
        __syncthreads();
        find_heads(shared.heads, groups, row, group, s);
        __syncthreads();
        if (shared.heads[0] >= s.heads) break;
        work(row);
    }
}

// The four numbers of a vector; with fewer, nothing asks for it.
template <u32 VECTOR_WIDTH> DEVICE void spread(float (&numbers)[VECTOR_WIDTH], float4_ four) {
    numbers[0] = four.x;
    numbers[VECTOR_WIDTH / 4] = four.y;
    numbers[VECTOR_WIDTH / 2] = four.z;
    numbers[VECTOR_WIDTH - 1] = four.w;
}

// scores [ROWS, count] = the rows' products with the part's keys, dimensions from..from+dims (added to those before).
template <u32 VECTOR_WIDTH>
DEVICE void score(const Scratch& shared, const float* keys, u32 from, u32 dims, const Part& part, const Shape& s) {
    const u32 lane = lane_index() % KEY_LANES;
    for (u32 base = warp_index() * (WARP / KEY_LANES); base < part.count; base += WARPS * (WARP / KEY_LANES)) {
        const u32 j = base + lane_index() / KEY_LANES;
        const bool inside = j < part.count;
        const float* key = keys + (inside ? j : 0) * s.key_stride + from;
        float dots[ROWS] = {};
#pragma unroll 4
        for (u32 d = lane * VECTOR_WIDTH; d < dims; d += KEY_LANES * VECTOR_WIDTH) {
            if (VECTOR_WIDTH == 4) {
                const float4_ x = *reinterpret_cast<const float4_*>(key + d);
#pragma unroll
                for (u32 r = 0; r < ROWS; r++) {
                    const float4_ y = *reinterpret_cast<const float4_*>(shared.queries + r * DIMS + d);
                    dots[r] = fmaf(x.x, y.x, fmaf(x.y, y.y, fmaf(x.z, y.z, fmaf(x.w, y.w, dots[r]))));
                }
            } else {
#pragma unroll
                for (u32 r = 0; r < ROWS; r++) dots[r] = fmaf(key[d], shared.queries[r * DIMS + d], dots[r]);
            }
        }
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
#pragma unroll
            for (u32 offset = KEY_LANES / 2; offset > 0; offset /= 2) dots[r] += __shfl_xor_sync(ALL_LANES, dots[r], offset);
            if (inside && lane == r) {
                float* to = shared.scores + r * PART + j;
                *to = from == 0 ? dots[r] : *to + dots[r];
            }
        }
    }
}

// Turns every row's scores into exp(scale * score - largest), 0 for keys that its query does not see.
DEVICE void soften(const Scratch& shared, u32 first_row, const Part& part, const Shape& s) {
    for (u32 r = warp_index(); r < ROWS; r += WARPS) {
        const u32 query = (first_row + r) % s.queries;
        float* scores = shared.scores + r * PART;
        float top = -infinity(), sum = 0.0f;
        for (u32 j = lane_index(); j < part.count; j += WARP) {
            scores[j] = attention::sees(s, query, part.first + j) ? scores[j] * s.scale : -infinity();
            top = fmaxf(top, scores[j]);
        }
        top = warp_max(top);
        for (u32 j = lane_index(); j < part.count; j += WARP) {
            scores[j] = attention::sees(s, query, part.first + j) ? attention::exp_below(scores[j], top) : 0.0f;
            sum += scores[j];
        }
        sum = warp_sum(sum);
        if (lane_index() == 0) {
            shared.largest[r] = top;
            shared.total[r] = sum;
        }
    }
}

// Lanes side by side on one row of values: the least power of two that covers it, at most a warp.
DEVICE u32 lanes_of(u32 vectors) {
    u32 lanes = WARP;
    while (lanes > 1 && lanes / 2 >= vectors) lanes /= 2;
    return lanes;
}

// sums [warp, ROWS, columns] = each warp's keys' share of columns from..: lanes of a warp take neighbouring columns of one or more keys.
template <u32 VECTOR_WIDTH>
DEVICE void mix(const Scratch& shared, const float* values, u32 from, u32 lanes, const Part& part, const Shape& s) {
    const u32 column = lane_index() % lanes * VECTOR_WIDTH, together = WARP / lanes;
    const bool inside = from + column < s.dims;
    float sums[ROWS][VECTOR_WIDTH] = {};
    if (inside) {
#pragma unroll 4
        for (u32 j = warp_index() * together + lane_index() / lanes; j < part.count; j += WARPS * together) {
            const float* value = values + j * s.key_stride + from + column;
            float x[VECTOR_WIDTH];
            if (VECTOR_WIDTH == 4) {
                spread(x, *reinterpret_cast<const float4_*>(value));
            } else {
                x[0] = *value;
            }
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                const float p = shared.scores[r * PART + j];
#pragma unroll
                for (u32 c = 0; c < VECTOR_WIDTH; c++) sums[r][c] = fmaf(p, x[c], sums[r][c]);
            }
        }
    }
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
#pragma unroll
        for (u32 c = 0; c < VECTOR_WIDTH; c++) {
            for (u32 offset = lanes; offset < WARP; offset *= 2) sums[r][c] += __shfl_xor_sync(ALL_LANES, sums[r][c], offset);
            if (lane_index() < lanes) shared.sums[(warp_index() * ROWS + r) * COLUMNS + column + c] = sums[r][c];
        }
    }
}

// Where a row's numbers stand: its index in [batch, queries, heads].
DEVICE u64 row_index(const Part& part, u32 row, u32 head, const Shape& s) {
    return (u64(part.sequence) * s.queries + row % s.queries) * s.heads + head;
}

// One group of rows: scores, softmax over the part, values.
template <u32 VECTOR_WIDTH>
DEVICE void rows(float* out, float* statistics, const float* q, const float* keys, const float* values, u32 first_row, const Part& part,
                 bool only, const Shape& s, const Scratch& shared) {
    for (u32 from = 0; from < s.dims; from += DIMS) {
        const u32 dims = minimum(DIMS, s.dims - from);
        __syncthreads();
        for (u32 i = threadIdx.x; i < ROWS * dims; i += THREADS) {
            const u32 r = i / dims, head = shared.heads[r];
            const float* row = q + row_index(part, first_row + r, head < s.heads ? head : 0, s) * s.dims;
            shared.queries[r * DIMS + i % dims] = head < s.heads ? row[from + i % dims] : 0.0f;
        }
        __syncthreads();
        score<VECTOR_WIDTH>(shared, keys, from, dims, part, s);
    }
    __syncthreads();
    soften(shared, first_row, part, s);
    const u32 lanes = lanes_of(ceil_div(s.dims, VECTOR_WIDTH)), width = lanes * VECTOR_WIDTH;
    for (u32 from = 0; from < s.dims; from += width) {
        __syncthreads();
        mix<VECTOR_WIDTH>(shared, values, from, lanes, part, s);
        __syncthreads();
        for (u32 i = threadIdx.x; i < ROWS * width; i += THREADS) {
            const u32 r = i / width, column = i % width, head = shared.heads[r];
            if (head >= s.heads || from + column >= s.dims) continue;
            float sum = 0.0f;
            for (u32 w = 0; w < WARPS; w++) sum += shared.sums[(w * ROWS + r) * COLUMNS + column];
            const u64 row = row_index(part, first_row + r, head, s);
            out[row * s.dims + from + column] = only ? sum / shared.total[r] : sum;
            if (!only && from + column == 0) {
                statistics[row * 2] = shared.largest[r];
                statistics[row * 2 + 1] = shared.total[r];
            }
        }
    }
}

// The keys there are, and the first that any query sees.
struct Extent {
    u32 keys, first;
};
DEVICE Extent extent_of(u32 keys, u32 queries, u32 window, const u32* position) {
    if (position != nullptr) keys = position[0] + queries;
    const u32 end = keys - queries + 1;
    return Extent{keys, end > window ? end - window : 0};
}

// Each part's share of every row, for parts from..from + some: exp(its largest - the row's) over the row's total. A warp a row.
DEVICE void weigh(const Scratch& shared, const float* statistics, u32 first_row, const Part& part, u32 from, u32 count, u64 rows,
                  const Shape& s) {
    for (u32 r = warp_index(); r < ROWS && shared.heads[r] < s.heads; r += WARPS) {
        const float* of_row = statistics + row_index(part, first_row + r, shared.heads[r], s) * 2;
        if (from == 0) {
            float top = -infinity(), total = 0.0f;
            for (u32 p = lane_index(); p < count; p += WARP) top = fmaxf(top, load_stored(of_row + p * rows * 2));
            top = warp_max(top);
            for (u32 p = lane_index(); p < count; p += WARP) {
                const float* at = of_row + p * rows * 2;
                total = fmaf(load_stored(at + 1), attention::exp_below(load_stored(at), top), total);
            }
            total = warp_sum(total);
            if (lane_index() == 0) {
                shared.largest[r] = top;
                shared.total[r] = total;
            }
            __syncwarp();
        }
        for (u32 p = from + lane_index(); p < minimum(count, from + PART); p += WARP) {
            shared.scores[r * PART + p - from] = attention::exp_below(load_stored(of_row + p * rows * 2), shared.largest[r]) / shared.total[r];
        }
    }
}

// The result of one group of rows: the sum of its parts, each times its share. Part p of `count` begins p * rows rows behind the first.
template <u32 VECTOR_WIDTH>
DEVICE void merge(float* out, const float* sums, const float* statistics, u32 first_row, const Part& part, u32 count, u64 rows,
                  const Shape& s, const Scratch& shared) {
    const u32 vectors = s.dims / VECTOR_WIDTH;
    for (u32 from = 0; from < count; from += PART) {
        __syncthreads();
        weigh(shared, statistics, first_row, part, from, count, rows, s);
        __syncthreads();
        const u32 there = minimum(PART, count - from);
        for (u32 i = threadIdx.x; i < ROWS * vectors && shared.heads[i / vectors] < s.heads; i += THREADS) {
            const u32 r = i / vectors;
            const u64 at = row_index(part, first_row + r, shared.heads[r], s) * s.dims + i % vectors * VECTOR_WIDTH;
            float total[VECTOR_WIDTH] = {};
#pragma unroll 4
            for (u32 p = 0; p < there; p++) {
                const float* stored = sums + (from + p) * rows * s.dims + at;
                float x[VECTOR_WIDTH];
                if (VECTOR_WIDTH == 4) {
                    spread(x, load_stored_4(stored));
                } else {
                    x[0] = load_stored(stored);
                }
#pragma unroll
                for (u32 c = 0; c < VECTOR_WIDTH; c++) total[c] = fmaf(x[c], shared.scores[r * PART + p], total[c]);
            }
#pragma unroll
            for (u32 c = 0; c < VECTOR_WIDTH; c++) out[at + c] = total[c] + (from > 0 ? out[at + c] : 0.0f);
        }
    }
}

}  // namespace decode

// For five blocks some compilers spill.
#undef LEAST_BLOCKS
#define LEAST_BLOCKS , 4

// A block: one part of `part_keys` (at most 256) keys from the first on, of one KV group of one sequence. Blocks: parts * groups * batch.
// With one part `sums`, `statistics` and `counters` are not used.
KERNEL(128) attention_decode(
    float* out,         // [batch, queries, heads * head_dim]
    float* sums,        // [parts, batch, queries, heads * head_dim]
    float* statistics,  // [parts, batch, queries, heads, 2]: largest score and sum of a part
    u32* counters,      // [batch, group_count], 0
    const float* q,     // [batch, queries, heads * head_dim]
    const float* k,     // [batch, key_capacity, group_count * head_dim]
    const float* v,     // [batch, key_capacity, group_count * head_dim]
    const u32* groups,  // [heads]
    u32 batch, u32 queries, u32 keys, u32 key_capacity, u32 heads, u32 group_count, u32 head_dim, u32 window, float scale,
    const u32* position,  // [1], that of the first query, or null: keys - queries
    u32 parts, u32 part_keys) {
    SHARED(float, query_rows, decode::ROWS* decode::DIMS);
    SHARED(float, scores, decode::ROWS* decode::PART);
    SHARED(float, warp_sums, decode::WARPS* decode::ROWS* decode::COLUMNS);
    SHARED(float, largest, decode::ROWS);
    SHARED(float, total, decode::ROWS);
    SHARED(u32, head_rows, decode::ROWS);
    const decode::Scratch shared = {query_rows, scores, warp_sums, largest, total, head_rows};
    const decode::Extent extent = decode::extent_of(keys, queries, window, position);
    const attention::Shape s = attention::shape_of(queries, extent.keys, heads, group_count, head_dim, window, scale);
    decode::Part part;
    part.number = blockIdx.x % parts;
    part.group = blockIdx.x / parts % group_count;
    part.sequence = blockIdx.x / parts / group_count;
    part.first = extent.first + part.number * part_keys;
    if (part.first >= extent.keys) return;
    part.count = minimum(part_keys, extent.keys - part.first);
    const u64 from = (u64(part.sequence) * key_capacity + part.first) * s.key_stride + u64(part.group) * head_dim;
    const u64 rows = u64(batch) * queries * heads;
    float* own = parts == 1 ? out : sums + part.number * rows * head_dim;
    decode::each_rows(shared, groups, part.group, s, [&](u32 row) {
        if (s.vector) {
            decode::rows<4>(own, statistics + part.number * rows * 2, q, k + from, v + from, row, part, parts == 1, s, shared);
        } else {
            decode::rows<1>(own, statistics + part.number * rows * 2, q, k + from, v + from, row, part, parts == 1, s, shared);
        }
    });
    if (parts == 1) return;
    // Those whose keys are there.
    const u32 count = ceil_div(extent.keys - extent.first, part_keys);
    if (!is_last_block(counters + blockIdx.x / parts, count, head_rows)) return;
    decode::each_rows(shared, groups, part.group, s, [&](u32 row) {
        if (s.vector) {
            decode::merge<4>(out, sums, statistics, row, part, count, rows, s, shared);
        } else {
            decode::merge<1>(out, sums, statistics, row, part, count, rows, s, shared);
        }
    });
}
EXPORT(attention_decode)

#undef LEAST_BLOCKS
#define LEAST_BLOCKS
