// Backward of causal attention, probabilities computed again.
//
// The plain code that the kernels equal (cpu/attention.rs; Dao et al., arXiv 2205.14135, Appendix B), with s and p as in attention.cu:
//
//   for b, i, h:
//       dp[j] = dot(d_out[b][i][h], v[b][j][g]);  delta = sum_j p[j] * dp[j];  ds[j] = p[j] * (dp[j] - delta)
//       dq[b][i][h] = scale * sum_j ds[j] * k[b][j][g]
//       dk[b][j][g] += scale * ds[j] * q[b][i][h];  dv[b][j][g] += p[j] * d_out[b][i][h]
//
// Three kernels over the tiles of attention.cu. The forward pass keeps nothing, so attention_statistics first computes every row's largest
// score, the inverse of its sum and delta, in one pass over its keys (delta is rescaled with the sum). attention_dq then has a block for
// every tile of queries, attention_dkv one for every tile of keys and KV group, which walks the group's heads and the queries that see the
// tile: no two blocks write one number, nothing is added atomically, and a run is repeatable. Scores are computed once a kernel instead of
// being stored: [queries, keys] would not fit.
//
// Comes after attention.cu.

#include "prelude.cuh"

namespace attention {

// Of every row [batch, queries, heads]: largest score, 1 / sum of exponentials, delta.
struct Statistics {
    float *largest, *inverse, *delta;
};

DEVICE Statistics statistics_of(float* statistics, u64 rows) { return Statistics{statistics, statistics + rows, statistics + 2 * rows}; }

DEVICE void row_statistics(float* statistics, const float* d_out, const float* q, const float* k, const float* v, const u32* groups,
                           u32 batch, u32 key_capacity, const Shape& s, float* stage) {
    const Place at = place_of(blockIdx.x, 1, s.heads, batch, ceil_div(s.queries, TILE));
    const u32 query = at.tile * TILE, count = minimum(TILE, s.queries - query);
    const u64 query_at = (u64(at.sequence) * s.queries + query) * s.query_stride + u64(at.head) * s.dims;
    const u64 key_at = u64(at.sequence) * key_capacity * s.key_stride + u64(groups[at.head]) * s.dims;
    float largest[4], sum[4] = {}, delta[4] = {};
#pragma unroll
    for (u32 i = 0; i < 4; i++) largest[i] = -infinity();
    const u32 end = s.keys - s.queries + query + count;
    for (u32 key = first_key(s, query); key < end; key += TILE) {
        const u32 seen = minimum(TILE, end - key);
        const u64 from = key_at + key * s.key_stride;
        float c[4][4], dp[4][4], decay[4];
        row_products(c, stage, q + query_at, s.query_stride, count, k + from, s.key_stride, seen, s.dims, s.vector);
        row_products(dp, stage, d_out + query_at, s.query_stride, count, v + from, s.key_stride, seen, s.dims, s.vector);
        softmax_step(c, largest, sum, decay, s, query + row_of(), key + column_of());
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            delta[i] *= decay[i];
#pragma unroll
            for (u32 j = 0; j < 4; j++) delta[i] = fmaf(c[i][j], dp[i][j], delta[i]);
        }
    }
    const Statistics to = statistics_of(statistics, u64(batch) * s.queries * s.heads);
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const float inverse = 1.0f / row_sum(sum[i]), mean = row_sum(delta[i]) * inverse;
        if (column_of() != 0 || row_of() + i >= count) continue;
        const u64 row = (u64(at.sequence) * s.queries + query + row_of() + i) * s.heads + at.head;
        to.largest[row] = largest[i];
        to.inverse[row] = inverse;
        to.delta[row] = mean;
    }
}

// A row's numbers in registers; a row that is not there has no probability.
DEVICE void load_statistics(float& largest, float& inverse, float& delta, const Statistics& from, u64 row, bool inside) {
    largest = inside ? from.largest[row] : 0.0f;
    inverse = inside ? from.inverse[row] : 0.0f;
    delta = inside ? from.delta[row] : 0.0f;
}

template <u32 WIDTH>
DEVICE void gradient_of_queries(float* dq, const float* statistics, const float* d_out, const float* q, const float* k, const float* v,
                                const u32* groups, u32 batch, u32 key_capacity, const Shape& s, float* stage, float* shared) {
    const Place at = place_of(blockIdx.x, ceil_div(s.dims, WIDTH), s.heads, batch, ceil_div(s.queries, TILE));
    const u32 query = at.tile * TILE, count = minimum(TILE, s.queries - query);
    const u64 query_at = (u64(at.sequence) * s.queries + query) * s.query_stride + u64(at.head) * s.dims;
    const u64 key_at = u64(at.sequence) * key_capacity * s.key_stride + u64(groups[at.head]) * s.dims;
    const Statistics known = statistics_of(const_cast<float*>(statistics), u64(batch) * s.queries * s.heads);
    float acc[WIDTH / 64][4][4] = {}, largest[4], inverse[4], delta[4], factor[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u64 row = (u64(at.sequence) * s.queries + query + row_of() + i) * s.heads + at.head;
        load_statistics(largest[i], inverse[i], delta[i], known, row, row_of() + i < count);
        factor[i] = s.scale;
    }
    const u32 end = s.keys - s.queries + query + count;
    for (u32 key = first_key(s, query); key < end; key += TILE) {
        const u32 seen = minimum(TILE, end - key);
        const u64 from = key_at + key * s.key_stride;
        float c[4][4], dp[4][4];
        row_products(c, stage, q + query_at, s.query_stride, count, k + from, s.key_stride, seen, s.dims, s.vector);
        row_products(dp, stage, d_out + query_at, s.query_stride, count, v + from, s.key_stride, seen, s.dims, s.vector);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                const bool seen_key = sees(s, query + row_of() + i, key + column_of() + j);
                const float p = seen_key ? expf(c[i][j] * s.scale - largest[i]) * inverse[i] : 0.0f;
                c[i][j] = seen_key ? p * (dp[i][j] - delta[i]) : 0.0f;
            }
        }
        store_transposed(shared, c);
        accumulate<WIDTH>(acc, stage, shared, k + from, s.key_stride, seen, at.slice * WIDTH, s.dims, s.vector);
    }
    store_rows<WIDTH>(dq + query_at, s.query_stride, count, at.slice * WIDTH, s.dims, s.vector, acc, factor);
}

// Adds what the queries query..query+count of one head contribute to a tile of keys. Rows of the tile are keys, columns queries.
template <u32 WIDTH>
DEVICE void add_queries(float (&d_key)[WIDTH / 64][4][4], float (&d_value)[WIDTH / 64][4][4], const Statistics& known, const float* d_out,
                        const float* q, const float* k, const float* v, u64 first_row, u32 query, u32 count, u32 key, u32 seen, u32 from,
                        const Shape& s, float* stage, float* shared) {
    float c[4][4], dp[4][4];
    row_products(c, stage, k, s.key_stride, seen, q, s.query_stride, count, s.dims, s.vector);
    row_products(dp, stage, v, s.key_stride, seen, d_out, s.query_stride, count, s.dims, s.vector);
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        const u32 i = query + column_of() + j;
        const bool inside = column_of() + j < count;
        float largest, inverse, delta;
        load_statistics(largest, inverse, delta, known, first_row + u64(column_of() + j) * s.heads, inside);
#pragma unroll
        for (u32 r = 0; r < 4; r++) {
            const bool visible = inside && sees(s, i, key + row_of() + r);
            const float p = visible ? expf(c[r][j] * s.scale - largest) * inverse : 0.0f;
            c[r][j] = p;
            dp[r][j] = visible ? p * (dp[r][j] - delta) : 0.0f;
        }
    }
    // The barriers of row_products stand between the last reads of `shared` and these writes, those of accumulate between the two uses.
    store_transposed(shared, c);
    accumulate<WIDTH>(d_value, stage, shared, d_out, s.query_stride, count, from, s.dims, s.vector);
    __syncthreads();
    store_transposed(shared, dp);
    accumulate<WIDTH>(d_key, stage, shared, q, s.query_stride, count, from, s.dims, s.vector);
}

template <u32 WIDTH>
DEVICE void gradients_of_keys(float* dk, float* dv, const float* statistics, const float* d_out, const float* q, const float* k,
                              const float* v, const u32* groups, u32 batch, u32 key_capacity, u32 group_count, const Shape& s,
                              float* stage, float* shared) {
    const u32 tiles = ceil_div(s.keys, TILE);
    Place at = place_of(blockIdx.x, ceil_div(s.dims, WIDTH), group_count, batch, tiles);
    const u32 group = at.head;
    at.tile = tiles - 1 - at.tile;  // here the first tiles have the most to do
    const u32 key = at.tile * TILE, seen = minimum(TILE, s.keys - key), from = at.slice * WIDTH;
    const u64 key_at = (u64(at.sequence) * key_capacity + key) * s.key_stride + u64(group) * s.dims;
    const Statistics known = statistics_of(const_cast<float*>(statistics), u64(batch) * s.queries * s.heads);
    float d_key[WIDTH / 64][4][4] = {}, d_value[WIDTH / 64][4][4] = {};
    const float scaled[4] = {s.scale, s.scale, s.scale, s.scale}, one[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    // Queries key..=key+seen-1+window-1 see a key of this tile; there are as many queries as keys.
    const u32 end = s.queries - key - seen < s.window ? s.queries : key + seen + s.window - 1;
    for (u32 head = 0; head < s.heads; head++) {
        if (groups[head] != group) continue;
        for (u32 query = key; query < end; query += TILE) {
            const u64 row = u64(at.sequence) * s.queries + query;
            const u64 query_at = row * s.query_stride + u64(head) * s.dims;
            add_queries<WIDTH>(d_key, d_value, known, d_out + query_at, q + query_at, k + key_at, v + key_at, row * s.heads + head, query,
                               minimum(TILE, s.queries - query), key, seen, from, s, stage, shared);
        }
    }
    store_rows<WIDTH>(dk + key_at, s.key_stride, seen, from, s.dims, s.vector, d_key, scaled);
    store_rows<WIDTH>(dv + key_at, s.key_stride, seen, from, s.dims, s.vector, d_value, one);
}

}  // namespace attention

// A block: 64 queries of one head of one sequence. Blocks: heads * batch * tiles.
KERNEL(256) attention_statistics(
    float* statistics,   // [3, batch, queries, heads]: largest score, 1 / sum of exponentials, sum of p * dp
    const float* d_out,  // [batch, queries, heads * head_dim]
    const float* q,      // [batch, queries, heads * head_dim]
    const float* k,      // [batch, key_capacity, group_count * head_dim]
    const float* v,      // [batch, key_capacity, group_count * head_dim]
    const u32* groups,   // [heads]
    u32 batch, u32 queries, u32 keys, u32 key_capacity, u32 heads, u32 group_count, u32 head_dim, u32 window, float scale) {
    SHARED(float, stage, attention::STAGE);
    const attention::Shape s = attention::shape_of(queries, keys, heads, group_count, head_dim, window, scale);
    attention::row_statistics(statistics, d_out, q, k, v, groups, batch, key_capacity, s, stage);
}
EXPORT(attention_statistics)

// A block: 64 queries of one head of one sequence, 64 columns of dq. Blocks: slices * heads * batch * tiles.
KERNEL(256) attention_dq_64(
    float* dq,                // [batch, queries, heads * head_dim]
    const float* statistics,  // [3, batch, queries, heads]
    const float* d_out,       // [batch, queries, heads * head_dim]
    const float* q,           // [batch, queries, heads * head_dim]
    const float* k,           // [batch, key_capacity, group_count * head_dim]
    const float* v,           // [batch, key_capacity, group_count * head_dim]
    const u32* groups,        // [heads]
    u32 batch, u32 queries, u32 keys, u32 key_capacity, u32 heads, u32 group_count, u32 head_dim, u32 window, float scale) {
    SHARED(float, stage, attention::STAGE);
    SHARED(float, scores, attention::TILE* attention::PITCH);
    const attention::Shape s = attention::shape_of(queries, keys, heads, group_count, head_dim, window, scale);
    attention::gradient_of_queries<64>(dq, statistics, d_out, q, k, v, groups, batch, key_capacity, s, stage, scores);
}
EXPORT(attention_dq_64)

// As attention_dq_64, 128 columns of dq.
KERNEL(256) attention_dq_128(
    float* dq,                // [batch, queries, heads * head_dim]
    const float* statistics,  // [3, batch, queries, heads]
    const float* d_out,       // [batch, queries, heads * head_dim]
    const float* q,           // [batch, queries, heads * head_dim]
    const float* k,           // [batch, key_capacity, group_count * head_dim]
    const float* v,           // [batch, key_capacity, group_count * head_dim]
    const u32* groups,        // [heads]
    u32 batch, u32 queries, u32 keys, u32 key_capacity, u32 heads, u32 group_count, u32 head_dim, u32 window, float scale) {
    SHARED(float, stage, attention::STAGE);
    SHARED(float, scores, attention::TILE* attention::PITCH);
    const attention::Shape s = attention::shape_of(queries, keys, heads, group_count, head_dim, window, scale);
    attention::gradient_of_queries<128>(dq, statistics, d_out, q, k, v, groups, batch, key_capacity, s, stage, scores);
}
EXPORT(attention_dq_128)

// A block: 64 keys of one KV group of one sequence, 64 columns of dk and dv. Blocks: slices * groups * batch * tiles.
KERNEL(256) attention_dkv_64(
    float* dk,                // [batch, key_capacity, group_count * head_dim]
    float* dv,                // [batch, key_capacity, group_count * head_dim]
    const float* statistics,  // [3, batch, queries, heads]
    const float* d_out,       // [batch, queries, heads * head_dim]
    const float* q,           // [batch, queries, heads * head_dim]
    const float* k,           // [batch, key_capacity, group_count * head_dim]
    const float* v,           // [batch, key_capacity, group_count * head_dim]
    const u32* groups,        // [heads]
    u32 batch, u32 queries, u32 keys, u32 key_capacity, u32 heads, u32 group_count, u32 head_dim, u32 window, float scale) {
    SHARED(float, stage, attention::STAGE);
    SHARED(float, scores, attention::TILE* attention::PITCH);
    const attention::Shape s = attention::shape_of(queries, keys, heads, group_count, head_dim, window, scale);
    attention::gradients_of_keys<64>(dk, dv, statistics, d_out, q, k, v, groups, batch, key_capacity, group_count, s, stage, scores);
}
EXPORT(attention_dkv_64)

// As attention_dkv_64, 128 columns of dk and dv.
KERNEL(256) attention_dkv_128(
    float* dk,                // [batch, key_capacity, group_count * head_dim]
    float* dv,                // [batch, key_capacity, group_count * head_dim]
    const float* statistics,  // [3, batch, queries, heads]
    const float* d_out,       // [batch, queries, heads * head_dim]
    const float* q,           // [batch, queries, heads * head_dim]
    const float* k,           // [batch, key_capacity, group_count * head_dim]
    const float* v,           // [batch, key_capacity, group_count * head_dim]
    const u32* groups,        // [heads]
    u32 batch, u32 queries, u32 keys, u32 key_capacity, u32 heads, u32 group_count, u32 head_dim, u32 window, float scale) {
    SHARED(float, stage, attention::STAGE);
    SHARED(float, scores, attention::TILE* attention::PITCH);
    const attention::Shape s = attention::shape_of(queries, keys, heads, group_count, head_dim, window, scale);
    attention::gradients_of_keys<128>(dk, dv, statistics, d_out, q, k, v, groups, batch, key_capacity, group_count, s, stage, scores);
}
EXPORT(attention_dkv_128)
