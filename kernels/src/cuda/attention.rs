//! Attention: launches `attention.cu`, `attention_decode.cu` and `attention_backward.cu`.

use super::elementwise::{blocks, work};
use super::launch::{Args, Work};
use super::memory::{Buffer, Indices, Pointer, ScratchParts};
use super::{CudaDevice, input, output, require, size32};
use crate::device::{AttentionShape, Device};
use crate::error::{KernelError, Result};
use crate::fused;

/// Queries, and keys, of a tile.
const TILE: usize = 64;
/// Queries up to which reading keys is the work, so that they are split over blocks.
const FEW_QUERIES: usize = 8;

/// A checked shape as the kernels take it.
struct Sizes {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    groups: usize,
    head_dim: usize,
    /// 1 to `keys`.
    window: usize,
    numbers: [u32; 8],
    scale: f32,
}

impl Sizes {
    /// Checks a shape and the group of every head.
    fn new(operation: &'static str, shape: AttentionShape, groups: &Indices) -> Result<Self> {
        let AttentionShape { batch, queries, keys, key_capacity, heads, groups: group_count, head_dim, scale, window } = shape;
        require(operation, queries <= keys && keys <= key_capacity, || {
            format!("{queries} queries, {keys} keys and room for {key_capacity} keys were given; each may not exceed the next")
        })?;
        require(operation, window != Some(0), || "a window of no keys was given; a query sees at least its own".to_string())?;
        require(operation, head_dim > 0 || heads == 0, || "a head has no dimensions".to_string())?;
        input(operation, "groups", groups, &[heads])?;
        groups.note_limit(group_count);
        if let Some((head, group)) = groups.host(heads).iter().enumerate().find(|(_, group)| **group as usize >= group_count) {
            let detail = format!("head {head} names KV group {group}, but there are {group_count} groups");
            return Err(KernelError::Shape { operation, detail });
        }
        let window = window.unwrap_or(keys).min(keys);
        let number = |name: &str, n: usize| size32(operation, name, n);
        let numbers = [
            number("batch", batch)?,
            number("queries", queries)?,
            number("keys", keys)?,
            number("key capacity", key_capacity)?,
            number("heads", heads)?,
            number("groups", group_count)?,
            number("head_dim", head_dim)?,
            number("window", window)?,
        ];
        Ok(Self { batch, queries, keys, heads, groups: group_count, head_dim, window, numbers, scale })
    }

    /// The arguments that every kernel ends in.
    fn args(&self, args: Args) -> Args {
        self.numbers.iter().fold(args, |args, number| args.u32(*number)).f32(self.scale)
    }

    /// Columns of the output that a block makes, and how many blocks that takes for a head.
    fn slices(&self) -> (usize, usize) {
        let width = if self.head_dim <= TILE { TILE } else { 2 * TILE };
        (width, self.head_dim.div_ceil(width))
    }

    /// Rows `[batch, queries, heads]`.
    fn rows(&self) -> usize {
        self.batch * self.queries * self.heads
    }

    /// The first key that any query sees.
    fn first_key(&self) -> usize {
        (self.keys - self.queries + 1).saturating_sub(self.window)
    }

    /// Pairs of a query and a key that it sees, over all heads and sequences.
    fn pairs(&self) -> u64 {
        let [queries, keys, window] = [self.queries, self.keys, self.window].map(|n| n as u64);
        // Query i sees keys − queries + 1 + i keys, the window at most.
        let first = keys - queries + 1;
        let growing = window.saturating_sub(first).min(queries);
        let one = growing * first + growing * growing.saturating_sub(1) / 2 + (queries - growing) * window.min(keys);
        one.saturating_mul(self.batch as u64).saturating_mul(self.heads as u64)
    }

    /// What `products` products of every pair, and reading and writing queries and keys as often as said, come to.
    fn work(&self, products: u64, query_passes: usize, key_passes: usize) -> Work {
        let keys = self.batch * (self.keys - self.first_key()) * self.groups * self.head_dim;
        let bytes = work(query_passes * self.rows() * self.head_dim + key_passes * keys, 0).bytes;
        Work { bytes, flops: self.pairs().saturating_mul(2 * products).saturating_mul(self.head_dim as u64) }
    }
}

/// With `position`, `shape.keys` is the most keys: see [`Device::attention_at`](crate::Device::attention_at).
#[allow(clippy::too_many_arguments)]
pub(super) fn attention(
    device: &CudaDevice,
    shape: AttentionShape,
    out: &mut Buffer,
    q: &Buffer,
    k: &Buffer,
    v: &Buffer,
    groups: &Indices,
    position: Option<&Indices>,
) -> Result<()> {
    const NAME: &str = "attention";
    if shape.queries > FEW_QUERIES
        && let Some(position) = position
    {
        // The host reads the position, which a recording would keep.
        device.core.refuse_while_capturing("attention_at")?;
        return device.attention(fused::attended(device, shape, position)?, out, q, k, v, groups);
    }
    let AttentionShape { batch, queries, key_capacity, heads, groups: group_count, head_dim, .. } = shape;
    let sizes = Sizes::new(NAME, shape, groups)?;
    // The keys that are there now; a recording counts them for every run.
    let there = position.map(|position| fused::attended(device, shape, position)).transpose()?;
    let there = there.map(|shape| Sizes::new(NAME, shape, groups)).transpose()?;
    let out = output(NAME, "out", out, &[batch, queries, heads, head_dim])?;
    let q = input(NAME, "q", q, &[batch, queries, heads, head_dim])?;
    let k = input(NAME, "k", k, &[batch, key_capacity, group_count, head_dim])?;
    let v = input(NAME, "v", v, &[batch, key_capacity, group_count, head_dim])?;
    let groups = input(NAME, "groups", groups, &[heads])?;
    if batch == 0 || queries == 0 || heads == 0 {
        return Ok(());
    }
    if queries <= FEW_QUERIES {
        let position = position.map(|position| stored_position(shape, position)).transpose()?.unwrap_or(Pointer::NULL);
        return decode(device, (&sizes, there.as_ref().unwrap_or(&sizes)), out, [q, k, v], groups, position);
    }
    let (width, slices) = sizes.slices();
    let kernel = if width == TILE { "attention_prefill_64" } else { "attention_prefill_128" };
    let args = sizes.args(Args::new().pointer(out).pointer(q).pointer(k).pointer(v).pointer(groups));
    device.launch(kernel, blocks(slices * heads * batch * queries.div_ceil(TILE), 256)?, args, sizes.work(2, 2, 2))
}

/// Where the position of the first query stands, which has to leave the keys fewer than the shape has.
fn stored_position(shape: AttentionShape, position: &Indices) -> Result<Pointer> {
    position.note_limit((shape.keys - shape.queries).saturating_add(1));
    input("attention_at", "position", position, &[1])
}

/// Few queries: keys split over blocks, which merge their parts where there are several; by the most keys, and those that are there.
fn decode(
    device: &CudaDevice,
    (sizes, there): (&Sizes, &Sizes),
    out: Pointer,
    [q, k, v]: [Pointer; 3],
    groups: Pointer,
    position: Pointer,
) -> Result<()> {
    const NAME: &str = "attention";
    const THREADS: u32 = 128;
    /// Keys of a part: as many as fit into shared memory, and so many that a part is worth its merging.
    const MOST_KEYS: usize = 256;
    const LEAST_KEYS: usize = 64;
    /// Blocks that are wanted.
    const BLOCKS: usize = 256;
    let seen = sizes.keys - sizes.first_key();
    let each = sizes.batch * sizes.groups;
    let wanted = BLOCKS.div_ceil(each);
    let part_keys = seen.div_ceil(wanted).next_multiple_of(32).clamp(LEAST_KEYS, MOST_KEYS);
    let parts = seen.div_ceil(part_keys);
    let rows = sizes.rows();
    let kept = if parts == 1 { None } else { Some(device.scratch_parts(parts * rows * (sizes.head_dim + 2), each)?) };
    let (sums, counters) = kept.as_ref().map_or((Pointer::NULL, Pointer::NULL), ScratchParts::pointers);
    let statistics = if parts == 1 { sums } else { sums.plus_bytes(4 * (parts * rows * sizes.head_dim) as u64) };
    let args = Args::new().pointer(out).pointer(sums).pointer(statistics).pointer(counters);
    let args = sizes.args(args.pointer(q).pointer(k).pointer(v).pointer(groups)).pointer(position);
    let args = args.u32(size32(NAME, "parts", parts)?).u32(part_keys as u32);
    // Parts are written, read and merged.
    let made = (there.keys - there.first_key()).div_ceil(part_keys);
    let merged = if parts == 1 { 0 } else { made * rows * (sizes.head_dim + 2) };
    let work = there.work(2, 2, 2).plus(work(2 * merged, 2 * merged));
    device.launch("attention_decode", blocks(parts * each, THREADS)?, args, work)
}

pub(super) fn attention_backward(
    device: &CudaDevice,
    shape: AttentionShape,
    [dq, dk, dv]: [&mut Buffer; 3],
    d_out: &Buffer,
    [q, k, v]: [&Buffer; 3],
    groups: &Indices,
) -> Result<()> {
    const NAME: &str = "attention_backward";
    const THREADS: u32 = 256;
    let AttentionShape { batch, queries, keys, key_capacity, heads, groups: group_count, head_dim, .. } = shape;
    let sizes = Sizes::new(NAME, shape, groups)?;
    require(NAME, queries == keys, || format!("{queries} queries and {keys} keys were given; the backward pass needs as many of both"))?;
    let (of_queries, of_keys) = ([batch, queries, heads, head_dim], [batch, key_capacity, group_count, head_dim]);
    let (dq, dk, dv) = (output(NAME, "dq", dq, &of_queries)?, output(NAME, "dk", dk, &of_keys)?, output(NAME, "dv", dv, &of_keys)?);
    let (d_out, q) = (input(NAME, "d_out", d_out, &of_queries)?, input(NAME, "q", q, &of_queries)?);
    let (k, v) = (input(NAME, "k", k, &of_keys)?, input(NAME, "v", v, &of_keys)?);
    let groups = input(NAME, "groups", groups, &[heads])?;
    if batch == 0 || keys == 0 || head_dim == 0 {
        return Ok(());
    }
    let statistics = device.scratch(3 * sizes.rows())?;
    let known = statistics.pointer();
    let tiles = batch * queries.div_ceil(TILE);
    let inputs = |args: Args| sizes.args(args.pointer(d_out).pointer(q).pointer(k).pointer(v).pointer(groups));
    device.launch("attention_statistics", blocks(heads * tiles, THREADS)?, inputs(Args::new().pointer(known)), sizes.work(2, 2, 2))?;
    let (width, slices) = sizes.slices();
    let dq_kernel = if width == TILE { "attention_dq_64" } else { "attention_dq_128" };
    let args = inputs(Args::new().pointer(dq).pointer(known));
    device.launch(dq_kernel, blocks(slices * heads * tiles, THREADS)?, args, sizes.work(3, 3, 2))?;
    let args = inputs(Args::new().pointer(dk).pointer(dv).pointer(known));
    let slices = head_dim.div_ceil(TILE);
    device.launch("attention_dkv", blocks(slices * group_count * tiles, THREADS)?, args, sizes.work(4, 2, 4))
}
