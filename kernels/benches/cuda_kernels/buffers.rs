//! Buffers and matrices with numbers in them.

use std::sync::Arc;

use espalier_kernels::cuda::{Buffer, Weight};
use espalier_kernels::{CudaDevice, Device, Format, HostBytes, KernelError, Result};

/// Numbers that are written at a time, and repeated: noise, since the power that a multiplication takes, and so the clock, depends on it.
const NOISE: usize = 1 << 16;

/// Uniform in [-1, 1), the same in every run (xorshift, Marsaglia 2003).
fn noise() -> Vec<f32> {
    let mut state = 0x2545_f491_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / 2_f32.powi(31) - 1.0
    };
    (0..NOISE).map(|_| next()).collect()
}

/// A buffer of noise.
pub fn buffer(device: &CudaDevice, len: usize) -> Result<Buffer> {
    let (mut buffer, noise) = (device.zeros(len)?, noise());
    for start in (0..len).step_by(NOISE) {
        device.write(&mut buffer, start, &noise[..NOISE.min(len - start)])?;
    }
    Ok(buffer)
}

/// A stored matrix of noise, shrunk so that a pass through many layers stays finite.
pub fn stored(device: &CudaDevice, format: Format, rows: usize, columns: usize) -> Result<Weight> {
    let noise = || noise().into_iter().map(|x| x / 32.0);
    let halves = || noise().flat_map(|x| half::f16::from_f32(x).to_le_bytes());
    let overflow = || KernelError::Shape { operation: "stored", detail: format!("[{rows}, {columns}] does not fit in memory") };
    let mut stored = vec![0_u8; format.stored_bytes(rows, columns).ok_or_else(overflow)?];
    match format.planes(rows, columns) {
        Some(planes) => {
            // Quants of all sizes; a block's scale is what brings its largest to the largest number of noise.
            let steps = if matches!(format, Format::Q8 | Format::Q8Units) { 127.0 } else { 15.0 };
            let scales = || noise().flat_map(move |x| half::f16::from_f32(x.abs() / steps).to_le_bytes());
            repeat(&mut stored[planes.quants], noise().map(|x| (x * 32.0 * 127.0) as i8 as u8).collect());
            repeat(&mut stored[planes.scales], scales().collect());
            repeat(&mut stored[planes.minima], halves().collect());
        }
        None => match format {
            Format::F16 | Format::F16Pairs => repeat(&mut stored, halves().collect()),
            Format::Bf16 | Format::Bf16Pairs => repeat(&mut stored, noise().flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect()),
            _ => repeat(&mut stored, noise().flat_map(f32::to_le_bytes).collect()),
        },
    }
    let range = 0..stored.len();
    device.map_weight(HostBytes { owner: Arc::new(stored), range }, format, rows, columns)
}

/// Fills `to` with `bytes` again and again.
fn repeat(to: &mut [u8], bytes: Vec<u8>) {
    to.chunks_mut(bytes.len()).for_each(|part| part.copy_from_slice(&bytes[..part.len()]));
}
