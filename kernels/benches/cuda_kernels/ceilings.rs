//! What the device can do at best: bytes copied and read in a second, and what a launch costs.

use std::time::Instant;

use espalier_kernels::cuda::Graph;
use espalier_kernels::{CudaDevice, Device, Result};

/// Numbers of a buffer: 256 MiB, of which a second-level cache holds little.
const NUMBERS: usize = 64 << 20;
const RUNS: usize = 10;

fn wait(device: &CudaDevice, buffer: &<CudaDevice as Device>::Buffer) -> Result<()> {
    device.read(buffer, 0, &mut [0.0])
}

/// Prints a line of JSON for every ceiling.
pub fn measure(device: &CudaDevice, small: bool) -> Result<()> {
    let len = if small { 1 << 16 } else { NUMBERS };
    let (from, mut to) = (device.zeros(len)?, device.zeros(len)?);
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        wait(device, &to)?;
        let started = Instant::now();
        device.copy(&mut to, 0, &from, 0, len)?;
        wait(device, &to)?;
        best = best.min(started.elapsed().as_secs_f64());
    }
    println!("{{\"what\":\"ceiling\",\"name\":\"copy\",\"gb_per_s\":{:.2}}}", 8.0 * len as f64 / best / 1e9);
    println!("{{\"what\":\"ceiling\",\"name\":\"read\",\"gb_per_s\":{:.2}}}", read(device, &from, len)?);
    drop(from);
    let launches = if small { 50 } else { 5000 };
    println!("{{\"what\":\"ceiling\",\"name\":\"launch\",\"us\":{:.3}}}", launch_us(device, &mut to, launches)?);
    let nodes = if small { 10 } else { 500 };
    let (one, many) = (graph_us(device, &mut to, 1)?, graph_us(device, &mut to, nodes)?);
    println!("{{\"what\":\"ceiling\",\"name\":\"graph of one kernel\",\"us\":{one:.3}}}");
    println!("{{\"what\":\"ceiling\",\"name\":\"kernel in a graph\",\"us\":{:.3}}}", (many - one) / (nodes - 1) as f64);
    Ok(())
}

/// GB/s at which the fastest of a few passes of `sum_of_squares` reads.
fn read(device: &CudaDevice, from: &<CudaDevice as Device>::Buffer, len: usize) -> Result<f64> {
    let time = || device.kernel_counts().iter().find(|count| count.name == "sum_of_squares").map_or(0, |count| count.timed_ns);
    device.sum_of_squares(from, len)?;
    device.time_kernels(true);
    let mut best = u64::MAX;
    for _ in 0..RUNS {
        let before = time();
        device.sum_of_squares(from, len)?;
        best = best.min(time() - before);
    }
    device.time_kernels(false);
    Ok(4.0 * len as f64 / best.max(1) as f64)
}

/// Microseconds from one launch of the smallest kernel to the next on the stream.
fn launch_us(device: &CudaDevice, buffer: &mut <CudaDevice as Device>::Buffer, launches: usize) -> Result<f64> {
    device.scale(buffer, 1, 1.0)?;
    wait(device, buffer)?;
    let started = Instant::now();
    for _ in 0..launches {
        device.scale(buffer, 1, 1.0)?;
    }
    wait(device, buffer)?;
    Ok(started.elapsed().as_secs_f64() * 1e6 / launches as f64)
}

/// Microseconds of a graph of the smallest kernels, each waiting for the one before, and of waiting for it.
fn graph_us(device: &CudaDevice, buffer: &mut <CudaDevice as Device>::Buffer, nodes: usize) -> Result<f64> {
    let mut graph = Graph::default();
    let mut best = f64::INFINITY;
    // The first run is not recorded, the second records.
    for run in 0..RUNS + 2 {
        wait(device, buffer)?;
        let started = Instant::now();
        device.replay(&mut graph, || (0..nodes).try_for_each(|_| device.scale(buffer, 1, 1.0)))?;
        wait(device, buffer)?;
        if run >= 2 {
            best = best.min(started.elapsed().as_secs_f64() * 1e6);
        }
    }
    Ok(best)
}
