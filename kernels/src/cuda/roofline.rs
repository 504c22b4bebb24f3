//! What a device could do at best: the roofline that kernels are held against (Williams et al., 2009).

use super::CudaDevice;
use super::counters::KernelCount;
use super::probe::Attributes;
use crate::device::Device;
use crate::error::{KernelError, Result};

/// Bytes that are read and written to measure memory: more than the second-level cache of any integrated device holds.
const MEASURED_BYTES: usize = 64 << 20;

/// The most bytes and operations a second, as far as they are known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Roofline {
    /// Bytes that memory moves in a second.
    pub memory_bytes_per_s: Option<f64>,
    /// Whether that was measured, since the driver does not say it: then it is what a plain kernel reaches.
    pub is_measured: bool,
    /// f32 operations a second of the ordinary cores; a multiplication and an addition are two.
    pub flops_per_s: Option<f64>,
    /// 16-bit operations a second of the tensor cores, with f32 sums.
    pub matrix_flops_per_s: Option<f64>,
}

impl Roofline {
    /// That of a device; its memory is measured where the driver does not say how fast it is, and left out where there is no room for that.
    ///
    /// # Errors
    /// Those of a device that fails.
    pub fn of(device: &CudaDevice) -> Result<Self> {
        let attributes = device.attributes();
        let (is_measured, memory_bytes_per_s) = match attributes.memory_bytes_per_s {
            None => (true, measured(device)?),
            known => (false, known),
        };
        let per_s = |each: u32| {
            let each = f64::from(each) * f64::from(attributes.multiprocessors) * attributes.clock_hz;
            (each > 0.0).then_some(2.0 * each)
        };
        let (lanes, matrix) = multiplications(attributes);
        Ok(Self { memory_bytes_per_s, is_measured, flops_per_s: per_s(lanes), matrix_flops_per_s: per_s(matrix) })
    }

    /// The share of the time of the launches that were timed in which the device could have done them: as fast as memory moves their bytes, or
    /// as the cores that they use do their operations. None where nothing was timed or neither is known.
    pub fn share(&self, count: &KernelCount) -> Option<f64> {
        let matrix = |share: f64| self.matrix_flops_per_s.map(|flops| flops * share);
        let peak = match count.name {
            name if name.starts_with("gemm_f32_") => self.flops_per_s,
            // Half as many as of 16 bits.
            name if name.starts_with("gemm_tf32_") => matrix(0.5),
            name if name.starts_with("gemm_") => matrix(1.0),
            _ => self.flops_per_s,
        };
        let least = |amount: u64, per_s: Option<f64>| per_s.map(|per_s| amount as f64 / per_s);
        let floor = match (least(count.timed_bytes, self.memory_bytes_per_s), least(count.timed_flops, peak)) {
            (Some(bytes), Some(flops)) => bytes.max(flops),
            (bytes, flops) => bytes.or(flops)?,
        };
        (count.timed_ns > 0).then(|| floor * 1e9 / count.timed_ns as f64)
    }
}

/// Multiplications of a multiprocessor in a clock: of the ordinary cores in f32 (CUDA C++ Programming Guide, arithmetic instructions), and of
/// the tensor cores in 16 bits with f32 sums, dense (NVIDIA's architecture papers; docs/cuda.md). 0 where it is not known.
fn multiplications(attributes: &Attributes) -> (u32, u32) {
    match attributes.capability {
        (8, 0) => (64, 1024),
        (8, 7) => (128, 1024),
        (8, _) | (12, _) => (128, 256),
        (9, _) => (128, 2048),
        (10, _) => (128, 4096),
        _ => (128, 0),
    }
}

/// Bytes a second of a kernel that reads and writes, the best of three; none where there is no room for its numbers.
fn measured(device: &CudaDevice) -> Result<Option<f64>> {
    let len = MEASURED_BYTES / size_of::<f32>();
    let mut numbers = match device.zeros(len) {
        Err(KernelError::OutOfMemory { .. } | KernelError::OutOfBudget { .. }) => return Ok(None),
        numbers => numbers?,
    };
    let so_far = || {
        let scale = device.kernel_counts().into_iter().find(|count| count.name == "scale");
        scale.map_or((0, 0), |count| (count.timed_bytes, count.timed_ns))
    };
    let mut run = || {
        let (bytes, ns) = so_far();
        device.scale(&mut numbers, len, 1.0)?;
        let (all_bytes, all_ns) = so_far();
        Ok((all_bytes - bytes) as f64 * 1e9 / (all_ns - ns).max(1) as f64)
    };
    device.time_kernels(true);
    let speeds: Result<Vec<f64>> = (0..3).map(|_| run()).collect();
    device.time_kernels(false);
    Ok(speeds?.into_iter().reduce(f64::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_held_against_what_bounds_it() {
        let known =
            Roofline { memory_bytes_per_s: Some(100e9), is_measured: false, flops_per_s: Some(1e12), matrix_flops_per_s: Some(8e12) };
        let count = |name, timed_bytes, timed_flops, timed_ns| {
            let (launches, timed_launches) = (1, 1);
            KernelCount { name, launches, bytes: 0, flops: 0, timed_launches, timed_bytes, timed_flops, timed_ns }
        };
        let cases = [
            // 1 MB in 20 µs, where memory takes 10.
            (known, count("gemv_rows_f32_1", 1_000_000, 500_000, 20_000), Some(0.5)),
            // 40 Mflop in 80 µs: 40 µs of the ordinary cores, 5 and 10 of the tensor cores.
            (known, count("gemm_f32_64", 1, 40_000_000, 80_000), Some(0.5)),
            (known, count("gemm_f16_rows_exact_32", 1, 40_000_000, 80_000), Some(0.0625)),
            (known, count("gemm_tf32_64_nn", 1, 40_000_000, 80_000), Some(0.125)),
            (Roofline { memory_bytes_per_s: None, ..known }, count("scale", 1_000_000, 1_000_000, 2_000), Some(0.5)),
            (Roofline { memory_bytes_per_s: None, flops_per_s: None, ..known }, count("scale", 1_000_000, 1_000_000, 2_000), None),
            (known, count("scale", 1_000_000, 1_000_000, 0), None),
        ];
        for (roofline, count, expected) in cases {
            let found = roofline.share(&count);
            assert!(
                found.zip(expected).map_or(found == expected, |(a, b)| (a - b).abs() < 1e-9),
                "{}: {found:?}, expected {expected:?}",
                count.name
            );
        }
    }
}
