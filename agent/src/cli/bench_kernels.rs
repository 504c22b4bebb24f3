//! `espalier bench --engine cuda`: what every kernel does.

use espalier_kernels::CudaDevice;
use espalier_kernels::cuda::KernelCount;

use crate::table::{self, Table};

/// A kernel over the timed windows or tokens.
#[derive(serde::Serialize)]
pub struct KernelLine {
    kernel: &'static str,
    launches: u64,
    /// Bytes that it has to move at least.
    bytes: u64,
    flops: u64,
    total_us: f64,
    gb_per_s: f64,
    gflops: f64,
    /// Of the bytes that the memory can move in a second; none where the driver does not say how many.
    memory_percent: Option<f64>,
}

impl KernelLine {
    fn of(count: &KernelCount, memory_bytes_per_s: Option<f64>) -> Option<Self> {
        let bytes_per_s = count.bytes_per_s()?;
        Some(Self {
            kernel: count.name,
            launches: count.timed_launches,
            bytes: count.timed_bytes,
            flops: count.timed_flops,
            total_us: count.timed_ns as f64 / 1e3,
            gb_per_s: bytes_per_s / 1e9,
            gflops: count.timed_flops as f64 / count.timed_ns as f64,
            memory_percent: memory_bytes_per_s.map(|peak| bytes_per_s / peak * 100.0),
        })
    }
}

/// Has `work` run with every launch timed by itself; the kernels, slowest first.
pub fn timed<E>(device: &CudaDevice, work: impl FnOnce() -> Result<(), E>) -> Result<Vec<KernelLine>, E> {
    device.time_kernels(true);
    let result = work();
    let counts = device.kernel_counts();
    device.time_kernels(false);
    result?;
    let peak = device.attributes().memory_bytes_per_s;
    let mut lines: Vec<KernelLine> = counts.iter().filter_map(|count| KernelLine::of(count, peak)).collect();
    lines.sort_by(|a, b| b.total_us.total_cmp(&a.total_us));
    Ok(lines)
}

/// The kernels as a table.
pub fn table_of(lines: &[KernelLine]) -> Table {
    let mut table = Table::new(["kernel", "launches", "bytes", "time", "GB/s", "of memory", "GFLOP/s"]);
    for line in lines {
        table.row([
            line.kernel.to_string(),
            line.launches.to_string(),
            table::bytes(line.bytes),
            format!("{:.1} µs", line.total_us),
            format!("{:.1}", line.gb_per_s),
            line.memory_percent.map_or("unknown".into(), |percent| format!("{percent:.0} %")),
            format!("{:.1}", line.gflops),
        ]);
    }
    table
}
