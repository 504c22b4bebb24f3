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
    let stored_rows = if matches!(format, Format::F16Pairs | Format::Bf16Pairs) { rows.next_multiple_of(2) } else { rows };
    let numbers: Vec<u8> = match format {
        Format::Q8 | Format::Q4 | Format::Q8Units | Format::Q4Units => {
            let detail = format!("this measurement makes no {format:?} matrices");
            return Err(KernelError::Shape { operation: "stored", detail });
        }
        Format::F32 => noise().flat_map(f32::to_le_bytes).collect(),
        Format::F16 | Format::F16Pairs => noise().flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
        Format::Bf16 | Format::Bf16Pairs => noise().flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
    };
    let bytes = stored_rows * columns * numbers.len() / NOISE;
    let mut stored = numbers.repeat(bytes.div_ceil(numbers.len()));
    stored.truncate(bytes);
    device.map_weight(HostBytes { owner: Arc::new(stored), range: 0..bytes }, format, rows, columns)
}
