//! Softmax and cross entropy: launches `loss.cu`.

use super::elementwise::{blocks, work};
use super::launch::Args;
use super::memory::{Buffer, Indices};
use super::training::read_doubles;
use super::{CudaDevice, input, output, require, size32};
use crate::device::NO_TARGET;
use crate::error::{KernelError, Result};

const THREADS: u32 = 256;
/// Additions and multiplications that an exponential and what is around it are counted as.
const FLOPS: usize = 10;

pub(super) fn softmax(device: &CudaDevice, x: &mut Buffer, m: usize, n: usize) -> Result<()> {
    const NAME: &str = "softmax";
    let x = output(NAME, "x", x, &[m, n])?;
    if n == 0 {
        return Ok(());
    }
    let args = Args::new().pointer(x).u32(size32(NAME, "n", n)?);
    device.launch(NAME, blocks(m, THREADS)?, args, work(2 * m * n, 2 * FLOPS * m * n))
}

pub(super) fn cross_entropy(
    device: &CudaDevice,
    d_logits: Option<&mut Buffer>,
    logits: &Buffer,
    targets: &Indices,
    m: usize,
    n: usize,
) -> Result<f64> {
    const NAME: &str = "cross_entropy";
    let logits = input(NAME, "logits", logits, &[m, n])?;
    let at = input(NAME, "targets", targets, &[m])?;
    let d_logits = d_logits.map(|d_logits| output(NAME, "d_logits", d_logits, &[m, n])).transpose()?;
    let host = targets.host(m);
    if let Some((row, target)) = host.iter().enumerate().find(|(_, t)| **t != NO_TARGET && **t as usize >= n) {
        let detail = format!("target {target} of row {row} is not below the {n} logits");
        return Err(KernelError::Shape { operation: NAME, detail });
    }
    let count = host.iter().filter(|target| **target != NO_TARGET).count();
    require(NAME, count > 0, || format!("none of the {m} rows has a target"))?;
    let (m32, n32) = (size32(NAME, "m", m)?, size32(NAME, "n", n)?);
    // A number a row, and one for their sum, all f64.
    let sums = device.scratch(2 * (m + 1))?;
    let (total, losses) = (sums.pointer(), sums.pointer().plus_bytes(8));
    match d_logits {
        None => {
            let args = Args::new().pointer(losses).pointer(logits).pointer(at).u32(n32);
            device.launch(NAME, blocks(m, THREADS)?, args, work(m * n + 3 * m, FLOPS * m * n))?;
        }
        Some(d_logits) => {
            let args = Args::new().pointer(losses).pointer(d_logits).pointer(logits).pointer(at).u32(n32).f32(1.0 / count as f32);
            device.launch("cross_entropy_gradient", blocks(m, THREADS)?, args, work(2 * m * n + 3 * m, 2 * FLOPS * m * n))?;
        }
    }
    device.launch("cross_entropy_sum", blocks(1, THREADS)?, Args::new().pointer(total).pointer(losses).u32(m32), work(2 * m, m))?;
    let [total] = read_doubles(device, &sums)?;
    Ok(total / count as f64)
}
