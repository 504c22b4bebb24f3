//! Rotary positions: launches `rotary.cu`.

use super::elementwise::work;
use super::launch::{Args, Grid};
use super::memory::Buffer;
use super::{CudaDevice, elements, input, output, require, size32};
use crate::error::Result;

const THREADS: u32 = 128;
/// Heads that a thread turns by one angle, where there are enough threads.
const HEADS_TOGETHER: usize = 8;
/// Threads that are enough.
const ENOUGH: usize = 64 * 1024;

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
