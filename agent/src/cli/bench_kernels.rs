//! `espalier bench --engine cuda`: what every kernel does.

use espalier_kernels::CudaDevice;
use espalier_kernels::cuda::{KernelCount, Roofline};

use crate::error::AgentError;

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
    /// Of the time that it took, what the device needs at its best: the larger of bytes by memory's speed and operations by that of the cores
    /// that the kernel uses. None where neither is known.
    roofline_percent: Option<f64>,
}

/// What every kernel does, and the device at its best.
#[derive(serde::Serialize)]
pub struct Kernels {
    kernels: Vec<KernelLine>,
    memory_gb_per_s: Option<f64>,
    memory_is_measured: bool,
    gflops: Option<f64>,
    matrix_gflops: Option<f64>,
}

impl KernelLine {
    fn of(count: &KernelCount, roofline: &Roofline) -> Option<Self> {
        let bytes_per_s = count.bytes_per_s()?;
        Some(Self {
            kernel: count.name,
            launches: count.timed_launches,
            bytes: count.timed_bytes,
            flops: count.timed_flops,
            total_us: count.timed_ns as f64 / 1e3,
            gb_per_s: bytes_per_s / 1e9,
            gflops: count.timed_flops as f64 / count.timed_ns as f64,
            roofline_percent: roofline.share(count).map(|share| share * 100.0),
        })
    }
}

/// Has `work` run with every launch timed by itself; the kernels, slowest first.
pub fn timed(device: &CudaDevice, work: impl FnOnce() -> Result<(), AgentError>) -> Result<Kernels, AgentError> {
    device.time_kernels(true);
    let result = work();
    let counts = device.kernel_counts();
    device.time_kernels(false);
    result?;
    let roofline = Roofline::of(device)?;
    let mut kernels: Vec<KernelLine> = counts.iter().filter_map(|count| KernelLine::of(count, &roofline)).collect();
    kernels.sort_by(|a, b| b.total_us.total_cmp(&a.total_us));
    let giga = |per_s: Option<f64>| per_s.map(|per_s| per_s / 1e9);
    Ok(Kernels {
        kernels,
        memory_gb_per_s: giga(roofline.memory_bytes_per_s),
        memory_is_measured: roofline.is_measured,
        gflops: giga(roofline.flops_per_s),
        matrix_gflops: giga(roofline.matrix_flops_per_s),
    })
}

impl Kernels {
    /// What the device does at its best, in a line.
    pub fn roofline(&self) -> String {
        let known = |number: Option<f64>, unit: &str| number.map_or("unknown".to_string(), |number| format!("{number:.0} {unit}"));
        format!(
            "roofline: memory {}{}, {} in f32, {} of 16-bit tensor cores",
            known(self.memory_gb_per_s, "GB/s"),
            if self.memory_is_measured && self.memory_gb_per_s.is_some() { " (measured)" } else { "" },
            known(self.gflops, "GFLOP/s"),
            known(self.matrix_gflops, "GFLOP/s"),
        )
    }

    /// The kernels as a table.
    pub fn table(&self) -> Table {
        let mut table = Table::new(["kernel", "launches", "bytes", "time", "GB/s", "GFLOP/s", "of roofline"]);
        for line in &self.kernels {
            table.row([
                line.kernel.to_string(),
                line.launches.to_string(),
                table::bytes(line.bytes),
                format!("{:.1} µs", line.total_us),
                format!("{:.1}", line.gb_per_s),
                format!("{:.1}", line.gflops),
                line.roofline_percent.map_or("unknown".into(), |percent| format!("{percent:.0} %")),
            ]);
        }
        table
    }
}
