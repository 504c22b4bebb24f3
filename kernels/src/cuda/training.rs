//! The optimizer and the sums that rank units: launches `training.cu`.

use super::elementwise::{blocks, fours, work};
use super::launch::{Args, Grid};
use super::memory::Buffer;
use super::{CudaDevice, input, output, require, size32};
use crate::device::{AdamW, Device};
use crate::error::Result;

const THREADS: u32 = 256;

/// The `COUNT` f64 numbers at the start of a buffer.
pub(super) fn read_doubles<const COUNT: usize>(device: &CudaDevice, from: &Buffer) -> Result<[f64; COUNT]> {
    let mut halves = [[0.0_f32; 2]; COUNT];
    device.read(from, 0, halves.as_flattened_mut())?;
    Ok(halves.map(|[low, high]| f64::from_bits(u64::from(low.to_bits()) | u64::from(high.to_bits()) << 32)))
}

pub(super) fn adamw(
    device: &CudaDevice,
    parameter: &mut Buffer,
    gradient: &Buffer,
    first: &mut Buffer,
    second: &mut Buffer,
    len: usize,
    constants: AdamW,
) -> Result<()> {
    const NAME: &str = "adamw";
    let AdamW { learning_rate, beta1, beta2, epsilon, weight_decay, step } = constants;
    require(NAME, step > 0, || "step 0 was given; steps count from 1".to_string())?;
    let gradient = input(NAME, "gradient", gradient, &[len])?;
    let parameter = output(NAME, "parameter", parameter, &[len])?;
    let (first, second) = (output(NAME, "first moment", first, &[len])?, output(NAME, "second moment", second, &[len])?);
    let [rate, b1, b2, decay] = [learning_rate, beta1, beta2, weight_decay].map(f64::from);
    // The corrections are powers close to 1, whose complements f32 would lose.
    let step = f64::from(step);
    let (step_size, inverse_root) = (rate / (1.0 - b1.powf(step)), 1.0 / (1.0 - b2.powf(step)).sqrt());
    let args = Args::new().pointer(parameter).pointer(first).pointer(second).pointer(gradient).u64(len as u64);
    let args = args.f32(beta1).f32((1.0 - b1) as f32).f32(beta2).f32((1.0 - b2) as f32).f32((1.0 - rate * decay) as f32);
    device.launch(NAME, fours(len)?, args.f32(step_size as f32).f32(inverse_root as f32).f32(epsilon), work(7 * len, 14 * len))
}

pub(super) fn sum_of_squares(device: &CudaDevice, x: &Buffer, len: usize) -> Result<f64> {
    const NAME: &str = "sum_of_squares";
    /// Numbers that a block takes in one go, and the most blocks.
    const RUN: usize = 8192;
    const MOST_BLOCKS: usize = 1024;
    let x = input(NAME, "x", x, &[len])?;
    if len == 0 {
        return Ok(0.0);
    }
    // As many as are summed in pairs.
    let parts = len.div_ceil(RUN).min(MOST_BLOCKS).next_multiple_of(2);
    let sums = device.scratch(2 * (parts + 2))?;
    let partial = sums.pointer().plus_bytes(16);
    let args = Args::new().pointer(partial).pointer(x).u64(len as u64);
    device.launch(NAME, blocks(parts, THREADS)?, args, work(len + 2 * parts, 2 * len))?;
    let args = Args::new().pointer(sums.pointer()).pointer(partial).u32((parts / 2) as u32);
    device.launch("sum_pairs", blocks(1, THREADS)?, args, work(2 * parts, parts))?;
    let [even, odd] = read_doubles(device, &sums)?;
    Ok(even + odd)
}

pub(super) fn residual_change(device: &CudaDevice, before: &Buffer, after: &Buffer, m: usize, d: usize) -> Result<(f64, f64)> {
    const NAME: &str = "residual_change";
    let before = input(NAME, "before", before, &[m, d])?;
    let after = input(NAME, "after", after, &[m, d])?;
    if m == 0 || d == 0 {
        return Ok((0.0, 0.0));
    }
    let (m32, d32) = (size32(NAME, "m", m)?, size32(NAME, "d", d)?);
    let sums = device.scratch(2 * (2 * m + 2))?;
    let rows = sums.pointer().plus_bytes(16);
    let args = Args::new().pointer(rows).pointer(before).pointer(after).u32(m32).u32(d32);
    device.launch(NAME, Grid::linear(m.saturating_mul(32), THREADS)?, args, work(2 * m * d + 4 * m, 12 * m * d))?;
    let args = Args::new().pointer(sums.pointer()).pointer(rows).u32(m32);
    device.launch("sum_pairs", blocks(1, THREADS)?, args, work(4 * m, 2 * m))?;
    let [change, turn] = read_doubles(device, &sums)?;
    Ok((change, turn))
}
