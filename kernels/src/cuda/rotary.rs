//! Rotary positions: launches `rotary.cu`.

use super::elementwise::work;
use super::launch::{Args, Grid};
use super::memory::{Buffer, Indices, Pointer};
use super::{CudaDevice, elements, input, output, require, size32};
use crate::error::Result;
use crate::fused::{self, KeyValues, Start, TokenShape};

const THREADS: u32 = 128;
/// Heads that a thread turns by one angle, where there are enough threads.
const HEADS_TOGETHER: usize = 8;
/// Threads that are enough.
const ENOUGH: usize = 64 * 1024;
/// Tokens up to which queries, keys and values go to their places in one launch; with more, each launch has work enough for itself.
const FEW_TOKENS: usize = 8;

#[allow(clippy::too_many_arguments)]
pub(super) fn rotate(
    device: &CudaDevice,
    x: &mut Buffer,
    frequencies: &Buffer,
    batch: usize,
    sequence: usize,
    heads: usize,
    head_dim: usize,
    start: usize,
    inverse: bool,
) -> Result<()> {
    const NAME: &str = "rotate";
    let x = output(NAME, "x", x, &[batch, sequence, heads, head_dim])?;
    let half = frequencies.len();
    let turned = elements(NAME, &[2, half])?;
    require(NAME, turned <= head_dim, || format!("{half} frequencies turn {turned} dimensions, but a head has {head_dim}"))?;
    require(NAME, start.checked_add(sequence).is_some(), || format!("position {start} + {sequence} is out of range"))?;
    let frequencies = input(NAME, "frequencies", frequencies, &[half])?;
    let rows = batch * sequence;
    if rows == 0 || heads == 0 || half == 0 {
        return Ok(());
    }
    let together = if rows * half * heads.div_ceil(HEADS_TOGETHER) >= ENOUGH { HEADS_TOGETHER } else { 1 };
    let threads = rows * half * heads.div_ceil(together);
    let args = Args::new().pointer(x).pointer(frequencies).u64(rows as u64).u32(size32(NAME, "sequence", sequence)?);
    let args = args.u32(size32(NAME, "heads", heads)?).u32(size32(NAME, "head_dim", head_dim)?).u32(size32(NAME, "frequencies", half)?);
    let args = args.u32(together as u32).u64(start as u64).u32(u32::from(inverse));
    let pairs = rows * heads * half;
    device.launch(NAME, Grid::linear(threads, THREADS)?, args, work(4 * pairs + half, 6 * pairs))
}

/// See [`Device::cache_tokens`](crate::Device::cache_tokens).
#[allow(clippy::too_many_arguments)]
pub(super) fn cache_tokens(
    device: &CudaDevice,
    cache: KeyValues<'_, Buffer>,
    q: &mut Buffer,
    k: &mut Buffer,
    v: &Buffer,
    frequencies: Option<&Buffer>,
    shape: TokenShape,
    start: Start<'_, Indices>,
) -> Result<()> {
    const NAME: &str = "cache_tokens";
    let TokenShape { sequence, heads, groups, head_dim } = shape;
    if sequence > FEW_TOKENS {
        if matches!(start, Start::Stored(_)) {
            // The host reads the position, which a recording would keep.
            device.core.refuse_while_capturing(NAME)?;
        }
        return fused::cache_tokens(device, cache, q, k, v, frequencies, shape, start);
    }
    shape.check(start.position(device)?, cache.capacity)?;
    let half = frequencies.map_or(0, Buffer::len);
    let turned = elements(NAME, &[2, half])?;
    require(NAME, turned <= head_dim, || format!("{half} frequencies turn {turned} dimensions, but a head has {head_dim}"))?;
    let keys = output(NAME, "keys", cache.keys, &[cache.capacity, groups, head_dim])?;
    let values = output(NAME, "values", cache.values, &[cache.capacity, groups, head_dim])?;
    let q = output(NAME, "q", q, &[sequence, heads, head_dim])?;
    let (k, v) = (input(NAME, "k", k, &[sequence, groups, head_dim])?, input(NAME, "v", v, &[sequence, groups, head_dim])?);
    let frequencies = frequencies.map_or(Ok(Pointer::NULL), |frequencies| input(NAME, "frequencies", frequencies, &[half]))?;
    let (start, stored) = match start {
        Start::At(start) => (start, Pointer::NULL),
        Start::Stored(stored) => {
            stored.note_limit((cache.capacity - sequence).saturating_add(1));
            (0, input(NAME, "start", stored, &[1])?)
        }
    };
    let width = groups * head_dim;
    let threads = sequence * (heads * half + groups * (head_dim - half) + width);
    if threads == 0 {
        return Ok(());
    }
    let args = Args::new().pointer(keys).pointer(values).pointer(q).pointer(k).pointer(v).pointer(frequencies).pointer(stored);
    let args = args.u64(start as u64).u32(size32(NAME, "sequence", sequence)?).u32(size32(NAME, "heads", heads)?);
    let args = args.u32(size32(NAME, "groups", groups)?).u32(size32(NAME, "head_dim", head_dim)?).u32(size32(NAME, "frequencies", half)?);
    let pairs = sequence * (heads + groups) * half;
    let numbers = sequence * (4 * heads * half + 4 * width) + half;
    device.launch(NAME, Grid::linear(threads, THREADS)?, args, work(numbers, 6 * pairs))
}
