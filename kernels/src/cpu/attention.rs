//! Causal attention of one head of one sequence, forward and backward.
//!
//! Queries are taken in blocks. A block's scores are kept transposed, `[keys, queries of the block]`, so that the softmax runs over whole
//! registers of queries, and both products read keys and values where they lie. Scratch is one block's scores, not `[queries, keys]`. Of a
//! sliding window only the keys that some query of the block sees are touched.

use std::ops::Range;

use super::parallel::Shared;
use super::real::Real;
use super::tile::{self, Operand, Sizes, Target};
use super::vector::vectorized;
use super::{Buffer, CpuDevice, Indices, gemv, input, output, require};
use crate::device::AttentionShape;
use crate::error::{KernelError, Result};

/// Queries of a block: two AVX-512 registers.
pub const BLOCK: usize = 32;
/// Queries for which each by itself, as a matrix times a vector, is faster.
const FEW: usize = 3;

/// One head of one sequence.
#[derive(Clone, Copy)]
pub struct Head<'a, T> {
    /// From the first query of the head on; queries are `query_stride` apart.
    pub q: &'a [T],
    /// From the first key of the group on; keys are `key_stride` apart.
    pub k: &'a [T],
    /// As `k`.
    pub v: &'a [T],
    pub query_stride: usize,
    pub key_stride: usize,
    pub queries: usize,
    pub keys: usize,
    pub head_dim: usize,
    /// What scores are multiplied by.
    pub scale: T,
    /// The most keys that a query sees: 1 to `keys`.
    pub window: usize,
}

impl<T: Real> Head<'_, T> {
    /// Keys at the position of query `i` and before.
    fn visible(&self, i: usize) -> usize {
        self.keys - self.queries + i + 1
    }
    /// The keys that some of the queries `block` sees.
    fn seen(&self, block: &Range<usize>) -> Range<usize> {
        self.visible(block.start).saturating_sub(self.window)..self.visible(block.end - 1)
    }
}

/// Queries `block` of a head: `out[i]` is at `offset + i · query_stride` of `out`.
///
/// # Safety
/// No one else uses those parts of `out` meanwhile.
pub unsafe fn forward<T: Real>(out: &Shared<T>, offset: usize, head: Head<T>, block: Range<usize>) {
    let small = block.len() <= FEW;
    // SAFETY: the caller's promise.
    unsafe {
        match block.len() {
            _ if small => block.for_each(|i| forward_one(out, offset, head, i)),
            1..=16 => forward_block::<T, 16>(out, offset, head, block),
            _ => forward_block::<T, BLOCK>(out, offset, head, block),
        }
    }
}

/// # Safety
/// As [`forward`].
unsafe fn forward_one<T: Real>(out: &Shared<T>, offset: usize, head: Head<T>, i: usize) {
    let seen = head.seen(&(i..i + 1));
    let first = seen.start * head.key_stride;
    let start = offset + i * head.query_stride;
    // SAFETY: query `i`'s part, the caller's promise.
    let out = unsafe { out.part(start..start + head.head_dim) };
    T::with_scratch(seen.len(), |scores| {
        let q = &head.q[i * head.query_stride..][..head.head_dim];
        gemv::dots(scores, &head.k[first..], head.key_stride, q, head.scale, false);
        super::loss::softmax(scores, seen.len());
        out.fill(T::ZERO);
        gemv::axpys(out, &head.v[first..], head.key_stride, scores);
    });
}

/// # Safety
/// As [`forward`]; the block has at most W queries.
unsafe fn forward_block<T: Real, const W: usize>(out: &Shared<T>, offset: usize, head: Head<T>, block: Range<usize>) {
    let (count, seen, dim) = (block.len(), head.seen(&block), head.head_dim);
    let (first, seen) = (seen.start * head.key_stride, seen.len());
    T::with_scratch((seen + dim) * W, |scratch| {
        let (scores, packed) = scratch.split_at_mut(seen * W);
        let sums = block_scores::<T, W>(scores, packed, head, block.clone());
        let to = Target { pointer: out.at(offset + block.start * head.query_stride), row_stride: head.query_stride, column_stride: 1 };
        // SAFETY: the head's queries of `out` are this call's; scores are [seen, W ≥ count], values [seen, dim].
        unsafe {
            let (probabilities, values) = (Operand::columns(scores, W), Operand::rows(&head.v[first..], head.key_stride));
            tile::product(Sizes { m: count, n: dim, k: seen }, to, probabilities, values, T::ONE, false);
        }
        for (i, sum) in block.zip(sums) {
            let start = offset + i * head.query_stride;
            // SAFETY: as above.
            super::elementwise::scale(unsafe { out.part(start..start + dim) }, T::ONE / sum);
        }
    });
}

/// Scores of a block, transposed, as exponentials that still have to be divided by the sums that are returned.
fn block_scores<T: Real, const W: usize>(scores: &mut [T], packed: &mut [T], head: Head<T>, block: Range<usize>) -> [T; W] {
    let (count, seen, dim) = (block.len(), scores.len() / W, head.head_dim);
    let first = head.seen(&block).start;
    tile::pack_columns(packed, W, &head.q[block.start * head.query_stride..], head.query_stride, count, dim, head.scale);
    let to = Target { pointer: scores.as_mut_ptr(), row_stride: W, column_stride: 1 };
    // SAFETY: scores are [seen, W] and borrowed alone; keys are [seen, dim], the packed queries [dim, W].
    unsafe {
        tile::product(
            Sizes { m: seen, n: W, k: dim },
            to,
            Operand::rows(&head.k[first * head.key_stride..], head.key_stride),
            Operand::rows(packed, W),
            T::ONE,
            false,
        )
    };
    softmax_columns(scores.as_chunks_mut::<W>().0, head.visible(block.start) - first, head.window)
}

vectorized! {
    /// Column `i` of `scores [keys, W]` sees the keys before key `seen + i`, the last `window` of them (`window ≥ seen`): exponentials of
    /// their difference to the column's largest, 0 for the others; returns the columns' sums. Columns beyond the block go on with the mask
    /// and are never read.
    fn softmax_columns<T: Real; const W>(rows: &mut [[T; W]], seen: usize, window: usize) -> [T; W] {
        let mut largest = [T::NEG_INFINITY; W];
        for (j, row) in rows.iter().enumerate() {
            let (first, end) = ((j + 1).saturating_sub(seen), j + 1 + (window - seen));
            for i in 0..W {
                let score = if i < first || i >= end { T::NEG_INFINITY } else { row[i] };
                largest[i] = largest[i].maximum(score);
            }
        }
        let mut sums = [T::ZERO; W];
        for (j, row) in rows.iter_mut().enumerate() {
            let (first, end) = ((j + 1).saturating_sub(seen), j + 1 + (window - seen));
            for i in 0..W {
                let e = (row[i] - largest[i]).exp();
                row[i] = if i < first || i >= end { T::ZERO } else { e };
                sums[i] += row[i];
            }
        }
        sums
    }
}

/// Where the gradients of one sequence go. Offsets and strides are those of `q`, `k` and `v`.
pub struct Gradients<'a, T> {
    pub dq: &'a Shared<T>,
    pub dk: &'a Shared<T>,
    pub dv: &'a Shared<T>,
    /// Of the head's first query in `dq`.
    pub query_offset: usize,
    /// Of the group's first key in `dk` and `dv`.
    pub key_offset: usize,
}

/// Writes `dq` of a head and adds to `dk` and `dv` of its group, probabilities computed again. `d_out` is laid out as `q`.
///
/// With P the probabilities and `dP = d_out · vᵀ`: `dS = P ∘ (dP − rowsum(P ∘ dP))`, `dq = scale · dS · k`, `dk = scale · dSᵀ · q`,
/// `dv = Pᵀ · d_out` (Dao et al., arXiv 2205.14135, Appendix B).
///
/// # Safety
/// No one else uses the head's part of `dq` or the group's parts of `dk` and `dv` meanwhile.
pub unsafe fn backward<T: Real>(to: &Gradients<T>, head: Head<T>, d_out: &[T]) {
    for start in (0..head.queries).step_by(BLOCK) {
        let block = start..head.queries.min(start + BLOCK);
        // SAFETY: the caller's promise.
        unsafe {
            if block.len() <= 16 {
                backward_block::<T, 16>(to, head, d_out, block);
            } else {
                backward_block::<T, BLOCK>(to, head, d_out, block);
            }
        }
    }
}

/// # Safety
/// As [`backward`]; the block has at most W queries.
unsafe fn backward_block<T: Real, const W: usize>(to: &Gradients<T>, head: Head<T>, d_out: &[T], block: Range<usize>) {
    let (count, seen, dim) = (block.len(), head.seen(&block), head.head_dim);
    let (first, first_key, seen) = (block.start * head.query_stride, seen.start * head.key_stride, seen.len());
    T::with_scratch((2 * seen + dim) * W, |scratch| {
        let (p, rest) = scratch.split_at_mut(seen * W);
        let (ds, packed) = rest.split_at_mut(seen * W);
        let sums = block_scores::<T, W>(p, packed, head, block.clone());
        tile::pack_columns(packed, W, &d_out[first..], head.query_stride, count, dim, T::ONE);
        let into = Target { pointer: ds.as_mut_ptr(), row_stride: W, column_stride: 1 };
        let keys = Operand::rows(&head.k[first_key..], head.key_stride);
        let values = Operand::rows(&head.v[first_key..], head.key_stride);
        // SAFETY: ds is [seen, W] and borrowed alone; values are [seen, dim], the packed gradients [dim, W].
        unsafe { tile::product(Sizes { m: seen, n: W, k: dim }, into, values, Operand::rows(packed, W), T::ONE, false) };
        softmax_backward_columns(p.as_chunks_mut::<W>().0, ds.as_chunks_mut::<W>().0, sums);

        let of_queries =
            |slice: &Shared<T>| Target { pointer: slice.at(to.query_offset + first), row_stride: head.query_stride, column_stride: 1 };
        let of_keys =
            |slice: &Shared<T>| Target { pointer: slice.at(to.key_offset + first_key), row_stride: head.key_stride, column_stride: 1 };
        let (queries, d_outs) = (Operand::rows(&head.q[first..], head.query_stride), Operand::rows(&d_out[first..], head.query_stride));
        let (by_query, by_key) = (Sizes { m: count, n: dim, k: seen }, Sizes { m: seen, n: dim, k: count });
        // SAFETY: the head's and group's parts of the gradients are this call's; p and ds are [seen, W ≥ count], keys [seen, dim],
        // queries and output gradients [count, dim].
        unsafe {
            tile::product(by_query, of_queries(to.dq), Operand::columns(ds, W), keys, head.scale, false);
            tile::product(by_key, of_keys(to.dk), Operand::rows(ds, W), queries, head.scale, true);
            tile::product(by_key, of_keys(to.dv), Operand::rows(p, W), d_outs, T::ONE, true);
        }
    });
}

vectorized! {
    /// Divides the columns of `p` by their sums, and turns `ds`, which holds dP, into dS.
    fn softmax_backward_columns<T: Real; const W>(p: &mut [[T; W]], ds: &mut [[T; W]], sums: [T; W]) {
        let mut inverse = sums;
        for inverse in &mut inverse {
            *inverse = T::ONE / *inverse;
        }
        let mut dots = [T::ZERO; W];
        for (p, ds) in p.iter_mut().zip(&*ds) {
            for i in 0..W {
                p[i] *= inverse[i];
                dots[i] += p[i] * ds[i];
            }
        }
        for (p, ds) in p.iter().zip(ds) {
            for i in 0..W {
                ds[i] = p[i] * (ds[i] - dots[i]);
            }
        }
    }
}

impl CpuDevice {
    /// Checks an attention and returns the group of every head.
    fn check_attention<'a>(operation: &'static str, shape: AttentionShape, groups: &'a Indices) -> Result<&'a [u32]> {
        let AttentionShape { queries, keys, key_capacity, heads, groups: group_count, head_dim, window, .. } = shape;
        require(operation, queries <= keys && keys <= key_capacity, || {
            format!("{queries} queries, {keys} keys and room for {key_capacity} keys were given; each may not exceed the next")
        })?;
        require(operation, window != Some(0), || "a window of no keys was given; a query sees at least its own".to_string())?;
        require(operation, head_dim > 0 || heads == 0, || "a head has no dimensions".to_string())?;
        let group_of = input(operation, "groups", groups, &[heads])?;
        match group_of.iter().enumerate().find(|(_, group)| **group as usize >= group_count) {
            Some((head, group)) => {
                let detail = format!("head {head} names KV group {group}, but there are {group_count} groups");
                Err(KernelError::Shape { operation, detail })
            }
            None => Ok(group_of),
        }
    }

    /// [`attention`](crate::Device::attention).
    pub(super) fn attend(
        &self,
        shape: AttentionShape,
        out: &mut Buffer,
        q: &Buffer,
        k: &Buffer,
        v: &Buffer,
        groups: &Indices,
    ) -> Result<()> {
        const NAME: &str = "attention";
        let AttentionShape { batch, queries, keys, key_capacity, heads, groups: group_count, head_dim, scale, window } = shape;
        let window = window.unwrap_or(keys).min(keys);
        let group_of = Self::check_attention(NAME, shape, groups)?;
        let out = output(NAME, "out", out, &[batch, queries, heads, head_dim])?;
        let q = input(NAME, "q", q, &[batch, queries, heads, head_dim])?;
        let k = input(NAME, "k", k, &[batch, key_capacity, group_count, head_dim])?;
        let v = input(NAME, "v", v, &[batch, key_capacity, group_count, head_dim])?;
        let (query_stride, key_stride) = (heads * head_dim, group_count * head_dim);
        let blocks = queries.div_ceil(BLOCK);
        let ns = attention_ns(shape);
        let shared = Shared::new(out);
        self.team.ranges(batch * heads * blocks, 1, ns, |tasks| {
            for task in tasks {
                let (sequence, h, block) = (task / blocks / heads, task / blocks % heads, task % blocks * BLOCK);
                let offset = sequence * queries * query_stride + h * head_dim;
                let key_offset = sequence * key_capacity * key_stride + group_of[h] as usize * head_dim;
                let (q, k, v) = (&q[offset..], &k[key_offset..], &v[key_offset..]);
                let head = Head { q, k, v, query_stride, key_stride, queries, keys, head_dim, scale, window };
                // SAFETY: `ranges` gives every head's block of queries to one thread.
                unsafe { forward(&shared, offset, head, block..queries.min(block + BLOCK)) }
            }
        });
        Ok(())
    }

    /// [`attention_backward`](crate::Device::attention_backward).
    pub(super) fn attend_backward(
        &self,
        shape: AttentionShape,
        [dq, dk, dv]: [&mut Buffer; 3],
        d_out: &Buffer,
        [q, k, v]: [&Buffer; 3],
        groups: &Indices,
    ) -> Result<()> {
        const NAME: &str = "attention_backward";
        let AttentionShape { batch, queries, keys, key_capacity, heads, groups: group_count, head_dim, scale, window } = shape;
        let window = window.unwrap_or(keys).min(keys);
        let group_of = Self::check_attention(NAME, shape, groups)?;
        require(NAME, queries == keys, || {
            format!("{queries} queries and {keys} keys were given; the backward pass needs as many of both")
        })?;
        let of_queries = [batch, queries, heads, head_dim];
        let of_keys = [batch, key_capacity, group_count, head_dim];
        let (dq, dk, dv) = (output(NAME, "dq", dq, &of_queries)?, output(NAME, "dk", dk, &of_keys)?, output(NAME, "dv", dv, &of_keys)?);
        let (d_out, q) = (input(NAME, "d_out", d_out, &of_queries)?, input(NAME, "q", q, &of_queries)?);
        let (k, v) = (input(NAME, "k", k, &of_keys)?, input(NAME, "v", v, &of_keys)?);
        let (query_stride, key_stride) = (heads * head_dim, group_count * head_dim);
        for sequence in
            dk.chunks_exact_mut((key_capacity * key_stride).max(1)).chain(dv.chunks_exact_mut((key_capacity * key_stride).max(1)))
        {
            sequence[..keys * key_stride].fill(0.0);
        }
        let (dq, dk, dv) = (Shared::new(dq), Shared::new(dk), Shared::new(dv));
        self.team.ranges(batch * group_count, 1, attention_ns(shape).saturating_mul(3), |tasks| {
            for task in tasks {
                let (sequence, group) = (task / group_count, task % group_count);
                let key_offset = sequence * key_capacity * key_stride + group * head_dim;
                for (h, _) in group_of.iter().enumerate().filter(|(_, g)| **g as usize == group) {
                    let query_offset = sequence * queries * query_stride + h * head_dim;
                    let (q, k, v) = (&q[query_offset..], &k[key_offset..], &v[key_offset..]);
                    let head = Head { q, k, v, query_stride, key_stride, queries, keys, head_dim, scale, window };
                    let to = Gradients { dq: &dq, dk: &dk, dv: &dv, query_offset, key_offset };
                    // SAFETY: `ranges` gives every sequence's group, with all its heads, to one thread.
                    unsafe { backward(&to, head, &d_out[query_offset..]) }
                }
            }
        });
        Ok(())
    }
}

/// Nanoseconds of a forward attention on one thread.
fn attention_ns(shape: AttentionShape) -> usize {
    /// Multiplications a nanosecond; a fourth for single queries, which run at the speed of memory.
    const BLOCKS: usize = 32;
    const SINGLE: usize = 8;
    let AttentionShape { batch, queries, keys, heads, head_dim, window, .. } = shape;
    let keys = window.map_or(keys, |window| keys.min(window.saturating_add(BLOCK.min(queries))));
    // Two products, and an exponential that weighs as much as 16 dimensions.
    let work = [batch, heads, queries, keys, 2 * head_dim + 16].into_iter().fold(1, usize::saturating_mul);
    work / if queries > 3 { BLOCKS } else { SINGLE }
}
