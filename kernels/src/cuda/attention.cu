// Causal attention softmax(scale q kT) v, forward, with grouped keys and a sliding window.
//
// The plain code that the kernels equal (cpu/attention.rs); query i of a sequence stands at position keys - queries + i:
//
//   for b, i, h:
//       position = keys - queries + i;  first = max(0, position + 1 - window);  g = groups[h]
//       s[j] = scale * dot(q[b][i][h], k[b][j][g])                  for j in first..=position
//       p[j] = exp(s[j] - max(s)) / sum(exp(s - max(s)))
//       out[b][i][h] = sum_j p[j] * v[b][j][g]
//
// attention_prefill never writes scores to memory: keys pass in tiles, and the row maximum and sum are kept up to date
// (online softmax, Milakov and Gimelshein, arXiv 1805.02867; tiling as in FlashAttention, Dao et al., arXiv 2205.14135). A block has 64
// queries of one head; a thread keeps 4 x 4 scores and 4 rows of the output in registers, so that two 16-byte loads from shared memory
// feed 16 multiply-adds. Operands pass through shared memory 32 dimensions at a time, so a head may have any size: an output wider than
// 128 columns is cut into slices, whose blocks compute the scores again. All in f32: no rounding beyond that of the sums.
//
// Few queries take the kernels of attention_decode.cu.

#include "prelude.cuh"

namespace attention {

constexpr u32 THREADS = 256;
constexpr u32 TILE = 64;   // queries, and keys, of a tile
constexpr u32 CHUNK = 32;  // dimensions, or keys, that pass through shared memory at a time
// Numbers between the rows of a transposed tile: a multiple of 4 for 16-byte loads, and 4 banks on from row to row.
constexpr u32 PITCH = TILE + 4;
constexpr u32 STAGE = 2 * CHUNK * PITCH;  // numbers of two chunks; also holds [CHUNK, 128] of the second product

// The numbers of a call. Strides count numbers between positions.
struct Shape {
    u32 queries, keys, heads, dims, window;
    u64 query_stride, key_stride;
    float scale;
    bool vector;  // rows start at multiples of 16 bytes
};

DEVICE Shape shape_of(u32 queries, u32 keys, u32 heads, u32 groups, u32 dims, u32 window, float scale) {
    return Shape{queries, keys, heads, dims, window, u64(heads) * dims, u64(groups) * dims, scale, dims % 4 == 0};
}

// Does query i see key j?
DEVICE bool sees(const Shape& s, u32 i, u32 j) {
    const u32 position = s.keys - s.queries + i;
    return j <= position && position - j < s.window;
}
// The first key that query i sees.
DEVICE u32 first_key(const Shape& s, u32 i) {
    const u32 end = s.keys - s.queries + i + 1;
    return end > s.window ? end - s.window : 0;
}

// Columns from..from+4 of a row; zero from `columns` on.
DEVICE float4_ load_4(const float* row, u32 from, u32 columns, bool vector) {
    if (vector && from + 4 <= columns) return *reinterpret_cast<const float4_*>(row + from);
    return float4_{from < columns ? row[from] : 0.0f, from + 1 < columns ? row[from + 1] : 0.0f, from + 2 < columns ? row[from + 2] : 0.0f,
                   from + 3 < columns ? row[from + 3] : 0.0f};
}

// to [CHUNK, PITCH] = columns from..from+CHUNK of the TILE rows at `rows`, transposed; zero beyond count rows. A warp takes 16 rows of 8
// numbers, so that its writes hit every bank once.
DEVICE void load_transposed(float* to, const float* rows, u64 stride, u32 count, u32 from, u32 columns, bool vector) {
#pragma unroll
    for (u32 step = 0; step < TILE * CHUNK / 4 / THREADS; step++) {
        const u32 part = warp_index() + step * (THREADS / WARP), lane = lane_index();
        const u32 row = lane / 2 + part % 4 * 16, column = (lane % 2 + part / 4 * 2) * 4;
        const float4_ x = row < count ? load_4(rows + row * stride, from + column, columns, vector) : float4_{0, 0, 0, 0};
        to[(column + 0) * PITCH + row] = x.x;
        to[(column + 1) * PITCH + row] = x.y;
        to[(column + 2) * PITCH + row] = x.z;
        to[(column + 3) * PITCH + row] = x.w;
    }
}

DEVICE void multiply_add(float (&c)[4][4], const float4_& a, const float4_& b) {
    const float x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) c[i][j] = fmaf(x[i], y[j], c[i][j]);
    }
}

// Rows and columns of a tile that a thread holds: 4 from row_of(), 4 from column_of().
DEVICE u32 row_of() { return threadIdx.x / 16 * 4; }
DEVICE u32 column_of() { return threadIdx.x % 16 * 4; }

// c = A BT of the TILE rows of dims numbers at a and at b. `stage [STAGE]` is shared memory that nobody reads afterwards without a barrier.
DEVICE void row_products(float (&c)[4][4], float* stage, const float* a, u64 a_stride, u32 a_count, const float* b, u64 b_stride,
                         u32 b_count, u32 dims, bool vector) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) c[i][j] = 0.0f;
    }
    float *left = stage, *right = stage + CHUNK * PITCH;
    for (u32 from = 0; from < dims; from += CHUNK) {
        __syncthreads();
        load_transposed(left, a, a_stride, a_count, from, dims, vector);
        load_transposed(right, b, b_stride, b_count, from, dims, vector);
        __syncthreads();
#pragma unroll 8
        for (u32 d = 0; d < CHUNK; d++) {
            multiply_add(c, *reinterpret_cast<const float4_*>(left + d * PITCH + row_of()),
                         *reinterpret_cast<const float4_*>(right + d * PITCH + column_of()));
        }
    }
}

// to [row_of() + i][column_of() + j] transposed: `to [TILE, PITCH]` has the columns of c as rows.
DEVICE void store_transposed(float* to, const float (&c)[4][4]) {
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        *reinterpret_cast<float4_*>(to + (column_of() + j) * PITCH + row_of()) = float4_{c[0][j], c[1][j], c[2][j], c[3][j]};
    }
}

// acc [TILE, WIDTH] += PT B: P as store_transposed left it, [TILE, PITCH] with the summed side as rows; b: its `count` rows in global memory,
// columns from..from+WIDTH of `columns`. A thread has 4 rows from row_of() and, for every 64 columns, 4 from column_of().
template <u32 WIDTH>
DEVICE void accumulate(float (&acc)[WIDTH / 64][4][4], float* stage, const float* p, const float* b, u64 stride, u32 count, u32 from,
                       u32 columns, bool vector) {
    for (u32 first = 0; first < TILE; first += CHUNK) {
        __syncthreads();
#pragma unroll
        for (u32 step = 0; step < CHUNK * WIDTH / 4 / THREADS; step++) {
            const u32 part = threadIdx.x + step * THREADS, row = part / (WIDTH / 4), column = part % (WIDTH / 4) * 4;
            const bool inside = first + row < count;
            const float4_ x = inside ? load_4(b + (first + row) * stride, from + column, columns, vector) : float4_{0, 0, 0, 0};
            *reinterpret_cast<float4_*>(stage + row * WIDTH + column) = x;
        }
        __syncthreads();
#pragma unroll 8
        for (u32 j = 0; j < CHUNK; j++) {
            const float4_ left = *reinterpret_cast<const float4_*>(p + (first + j) * PITCH + row_of());
#pragma unroll
            for (u32 part = 0; part < WIDTH / 64; part++) {
                multiply_add(acc[part], left, *reinterpret_cast<const float4_*>(stage + j * WIDTH + part * 64 + column_of()));
            }
        }
    }
}

// Writes columns from..from+WIDTH of the first `count` rows of acc, every row times its factor.
template <u32 WIDTH>
DEVICE void store_rows(float* to, u64 stride, u32 count, u32 from, u32 columns, bool vector, const float (&acc)[WIDTH / 64][4][4],
                       const float (&factor)[4]) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        if (row_of() + i >= count) continue;
        float* row = to + (row_of() + i) * stride;
#pragma unroll
        for (u32 part = 0; part < WIDTH / 64; part++) {
            const u32 column = from + part * 64 + column_of();
            const float f = factor[i];
            const float4_ x = {acc[part][i][0] * f, acc[part][i][1] * f, acc[part][i][2] * f, acc[part][i][3] * f};
            if (vector && column + 4 <= columns) {
                *reinterpret_cast<float4_*>(row + column) = x;
            } else {
                if (column < columns) row[column] = x.x;
                if (column + 1 < columns) row[column + 1] = x.y;
                if (column + 2 < columns) row[column + 2] = x.z;
                if (column + 3 < columns) row[column + 3] = x.w;
            }
        }
    }
}

// The sum (the largest) over the 16 threads that share a row of a tile, in each of them.
DEVICE float row_sum(float x) {
#pragma unroll
    for (u32 offset = 8; offset > 0; offset /= 2) x += __shfl_xor_sync(ALL_LANES, x, offset);
    return x;
}
DEVICE float row_max(float x) {
#pragma unroll
    for (u32 offset = 8; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, offset));
    return x;
}

// exp(x - largest), where a row that has seen nothing yet has no largest.
DEVICE float exp_below(float x, float largest) { return expf(x - (largest == -infinity() ? 0.0f : largest)); }

// Takes a tile of scores into the online softmax: scales and masks c, raises `largest`, turns c into exponentials, and returns for every
// row the factor of what was summed before. `sum` is this thread's share of the row.
DEVICE void softmax_step(float (&c)[4][4], float (&largest)[4], float (&sum)[4], float (&decay)[4], const Shape& s, u32 query, u32 key) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        float top = largest[i];
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            c[i][j] = sees(s, query + i, key + j) ? c[i][j] * s.scale : -infinity();
            top = fmaxf(top, c[i][j]);
        }
        top = row_max(top);
        decay[i] = exp_below(largest[i], top);
        largest[i] = top;
        sum[i] *= decay[i];
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            // A hidden key is exactly nothing, whatever the largest is.
            c[i][j] = sees(s, query + i, key + j) ? exp_below(c[i][j], top) : 0.0f;
            sum[i] += c[i][j];
        }
    }
}

// Which tile of queries, head, sequence and slice of columns a block has. Later tiles see more keys: they start first.
struct Place {
    u32 slice, head, sequence, tile;
};
DEVICE Place place_of(u32 block, u32 slices, u32 heads, u32 batch, u32 tiles) {
    Place p;
    p.slice = block % slices;
    block /= slices;
    p.head = block % heads;
    block /= heads;
    p.sequence = block % batch;
    p.tile = tiles - 1 - block / batch;
    return p;
}

template <u32 WIDTH>
DEVICE void prefill(float* out, const float* q, const float* k, const float* v, const u32* groups, u32 batch, u32 key_capacity,
                    const Shape& s, float* stage, float* probabilities) {
    const u32 slices = ceil_div(s.dims, WIDTH), tiles = ceil_div(s.queries, TILE);
    const Place at = place_of(blockIdx.x, slices, s.heads, batch, tiles);
    const u32 query = at.tile * TILE, count = minimum(TILE, s.queries - query);
    const u64 query_at = (u64(at.sequence) * s.queries + query) * s.query_stride + u64(at.head) * s.dims;
    const u64 key_at = u64(at.sequence) * key_capacity * s.key_stride + u64(groups[at.head]) * s.dims;
    float acc[WIDTH / 64][4][4] = {}, largest[4], sum[4] = {};
#pragma unroll
    for (u32 i = 0; i < 4; i++) largest[i] = -infinity();
    const u32 end = s.keys - s.queries + query + count;
    for (u32 key = first_key(s, query); key < end; key += TILE) {
        const u32 seen = minimum(TILE, end - key);
        const u64 from = key_at + key * s.key_stride;
        float c[4][4], decay[4];
        row_products(c, stage, q + query_at, s.query_stride, count, k + from, s.key_stride, seen, s.dims, s.vector);
        softmax_step(c, largest, sum, decay, s, query + row_of(), key + column_of());
#pragma unroll
        for (u32 part = 0; part < WIDTH / 64; part++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
#pragma unroll
                for (u32 j = 0; j < 4; j++) acc[part][i][j] *= decay[i];
            }
        }
        // The barriers of row_products stand between the last tile's reads of the probabilities and these writes.
        store_transposed(probabilities, c);
        accumulate<WIDTH>(acc, stage, probabilities, v + from, s.key_stride, seen, at.slice * WIDTH, s.dims, s.vector);
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) sum[i] = 1.0f / row_sum(sum[i]);
    store_rows<WIDTH>(out + query_at, s.query_stride, count, at.slice * WIDTH, s.dims, s.vector, acc, sum);
}

}  // namespace attention

// A block: 64 queries of one head of one sequence, 64 columns of the output. Blocks: slices * heads * batch * tiles.
KERNEL(256) attention_prefill_64(
    float* out,         // [batch, queries, heads * head_dim]
    const float* q,     // [batch, queries, heads * head_dim]
    const float* k,     // [batch, key_capacity, group_count * head_dim]
    const float* v,     // [batch, key_capacity, group_count * head_dim]
    const u32* groups,  // [heads]
    u32 batch, u32 queries, u32 keys, u32 key_capacity, u32 heads, u32 group_count, u32 head_dim, u32 window, float scale) {
    SHARED(float, stage, attention::STAGE);
    SHARED(float, probabilities, attention::TILE* attention::PITCH);
    const attention::Shape s = attention::shape_of(queries, keys, heads, group_count, head_dim, window, scale);
    attention::prefill<64>(out, q, k, v, groups, batch, key_capacity, s, stage, probabilities);
}
EXPORT(attention_prefill_64)

// As attention_prefill_64, 128 columns of the output.
KERNEL(256) attention_prefill_128(
    float* out,         // [batch, queries, heads * head_dim]
    const float* q,     // [batch, queries, heads * head_dim]
    const float* k,     // [batch, key_capacity, group_count * head_dim]
    const float* v,     // [batch, key_capacity, group_count * head_dim]
    const u32* groups,  // [heads]
    u32 batch, u32 queries, u32 keys, u32 key_capacity, u32 heads, u32 group_count, u32 head_dim, u32 window, float scale) {
    SHARED(float, stage, attention::STAGE);
    SHARED(float, probabilities, attention::TILE* attention::PITCH);
    const attention::Shape s = attention::shape_of(queries, keys, heads, group_count, head_dim, window, scale);
    attention::prefill<128>(out, q, k, v, groups, batch, key_capacity, s, stage, probabilities);
}
EXPORT(attention_prefill_128)
