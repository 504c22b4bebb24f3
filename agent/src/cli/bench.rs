//! `espalier bench`

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use espalier_models::Artifact;
use espalier_runtime::{Budget, Plan, gauges};

#[cfg(feature = "cuda")]
use super::bench_kernels::{self, Kernels};
use super::foreign::{self, SidecarArgs};
use super::{Context, EngineArgs, print, print_json};
use crate::engine::{EngineKind, OpenDevice};
use crate::error::Result;
use crate::evaluate::{check_signal_model, latency};
use crate::sessions;
use crate::table::{self, Table};

/// Options of `bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The artifact, or an ONNX graph of another program.
    pub(super) model: PathBuf,
    /// Windows (or tokens) to time.
    #[arg(long, default_value_t = 300, value_parser = super::count(1_000_000))]
    pub(super) count: usize,
    #[command(flatten)]
    pub(super) engine: EngineArgs,
    #[command(flatten)]
    pub(super) sidecar: SidecarArgs,
    /// Print as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// From nothing to the first verdict or token.
#[derive(Clone, Copy, serde::Serialize)]
struct Start {
    /// Mapping the file and checking all but its data.
    open_ms: f64,
    /// What opening added to the program's own memory.
    open_anonymous_bytes: u64,
    /// Opening, checking every chunk that is used, allocating, and judging one window or token.
    first_ms: f64,
    chunks_checked: usize,
    chunks: usize,
}

#[derive(serde::Serialize)]
struct Timing {
    /// The file's pages were given back to the system before.
    cold: Start,
    /// The file was in the page cache.
    warm: Start,
    p50_ms: f64,
    p99_ms: f64,
    per_second: f64,
    gflops: f64,
    weight_gb_per_s: f64,
    held_bytes: u64,
    planned_bytes: u64,
    /// What computed.
    device: String,
    /// Every kernel over some of the windows or tokens, on a GPU.
    #[cfg(feature = "cuda")]
    #[serde(flatten)]
    kernels: Option<Kernels>,
}

/// Windows or tokens over which kernels are timed one by one: a launch takes some µs then, and the figures of a kernel vary little.
#[cfg(feature = "cuda")]
const KERNEL_COUNT: usize = 20;

/// Every kernel of the device, on a GPU.
#[cfg(feature = "cuda")]
fn kernels(device: &OpenDevice, budget: &Arc<Budget>, artifact: &Arc<Artifact>, count: usize) -> Result<Option<Kernels>> {
    let OpenDevice::Cuda(gpu, _) = device else { return Ok(None) };
    let count = count.min(KERNEL_COUNT);
    bench_kernels::timed(gpu, || median_and_99(device, budget, artifact, count).map(drop)).map(Some)
}

pub fn run(context: &Context, args: &Args) -> Result<()> {
    if foreign::is_onnx(&args.model) {
        return foreign::bench(context, args);
    }
    args.sidecar.check_none(&args.model)?;
    let artifact = Arc::new(Artifact::open(&args.model)?);
    let open = || context.any_device(args.engine, None);
    let started = |cold| context.compute(open()?, |device, budget, _| start(device, budget, &args.model, cold));
    let starts = [started(true)?, started(false)?];
    let count = args.count.max(1);
    let timing = context.compute(open()?, |device, budget, _| timed(device, budget, &artifact, count, starts))?;
    if args.json {
        return print_json(&timing);
    }
    let what = if artifact.manifest().architecture.patches() > 0 { "window" } else { "token" };
    print(&format!("{}\n", table_of(&timing, what)))?;
    #[cfg(feature = "cuda")]
    if let Some(kernels) = &timing.kernels {
        print(&format!("\n{}\n{}\n", kernels.table(), kernels.roofline()))?;
    }
    Ok(())
}

/// Times `count` windows or tokens.
fn timed(device: &OpenDevice, budget: &Arc<Budget>, artifact: &Arc<Artifact>, count: usize, [cold, warm]: [Start; 2]) -> Result<Timing> {
    let manifest = artifact.manifest();
    let patches = manifest.architecture.patches();
    let (p50_ms, p99_ms) = median_and_99(device, budget, artifact, count)?;
    let held = gauges::held()?.total();
    let ort_bytes = if device.kind() == EngineKind::Ort { device.overhead_bytes(artifact)? } else { 0 };
    let positions = patches.max(1) as f64;
    Ok(Timing {
        cold,
        warm,
        p50_ms,
        p99_ms,
        per_second: 1e3 / p50_ms,
        gflops: 2.0 * manifest.parameters() as f64 * positions / p50_ms / 1e6,
        weight_gb_per_s: artifact.file_bytes() as f64 / p50_ms / 1e6,
        held_bytes: held,
        planned_bytes: Plan::serving(manifest, artifact.file_bytes()).total().saturating_add(ort_bytes),
        device: device.name(),
        #[cfg(feature = "cuda")]
        kernels: kernels(device, budget, artifact, count)?,
    })
}

fn table_of(timing: &Timing, what: &str) -> Table {
    let mut table = Table::new(["bench", ""]);
    for (name, start) in [("not in the page cache", &timing.cold), ("in the page cache", &timing.warm)] {
        let Start { open_ms, open_anonymous_bytes, first_ms, chunks_checked, chunks } = start;
        table.row([format!("open, {name}"), format!("{open_ms:.2} ms, {} of own memory", table::bytes(*open_anonymous_bytes))]);
        table.row([format!("first {what}, {name}"), format!("{first_ms:.1} ms, {chunks_checked} of {chunks} chunks checked")]);
    }
    table
        .row([format!("{what}, median"), format!("{:.3} ms", timing.p50_ms)])
        .row([format!("{what}, 99 %"), format!("{:.3} ms", timing.p99_ms)])
        .row([format!("{what}s a second"), format!("{:.0}", timing.per_second)])
        .row(["arithmetic".into(), format!("{:.1} GFLOP/s on {}", timing.gflops, timing.device)])
        .row(["weights read".into(), format!("{:.1} GB/s", timing.weight_gb_per_s)])
        .row(["held now".into(), table::bytes(timing.held_bytes)])
        .row(["planned".into(), table::bytes(timing.planned_bytes)]);
    table
}

/// Opens the artifact and judges one window or token; with `cold`, after its pages have been given back.
fn start(device: &OpenDevice, budget: &Arc<Budget>, path: &Path, cold: bool) -> Result<Start> {
    if cold {
        let artifact = Artifact::open(path)?;
        artifact.release(0..usize::try_from(artifact.file_bytes()).unwrap_or(usize::MAX))?;
    }
    let before = gauges::anonymous_bytes()?;
    let started = Instant::now();
    let artifact = Arc::new(Artifact::open(path)?);
    let open_ms = started.elapsed().as_secs_f64() * 1e3;
    let open_anonymous_bytes = gauges::anonymous_bytes()?.saturating_sub(before);
    if artifact.manifest().architecture.patches() > 0 {
        let window: Vec<f32> = (0..check_signal_model(&artifact)?).map(|index| if index % 2 == 0 { 1.0 } else { -1.0 }).collect();
        sessions::classifier(device, budget, &artifact, 1)?.classify(&window)?;
    } else {
        sessions::generator(device, budget, &artifact, 1)?.read(&[0])?;
    }
    let first_ms = started.elapsed().as_secs_f64() * 1e3;
    let (chunks_checked, chunks) = artifact.chunks_checked();
    Ok(Start { open_ms, open_anonymous_bytes, first_ms, chunks_checked, chunks })
}

/// Median and 99th percentile of a window or token, in milliseconds.
fn median_and_99(device: &OpenDevice, budget: &Arc<Budget>, artifact: &Arc<Artifact>, count: usize) -> Result<(f64, f64)> {
    if artifact.manifest().architecture.patches() == 0 {
        return tokens(device, budget, artifact, count);
    }
    let timed = latency(sessions::classifier(device, budget, artifact, 1)?.as_mut(), check_signal_model(artifact)?, count)?;
    Ok((timed.p50_ms, timed.p99_ms))
}

/// Median and 99th percentile of a token, in milliseconds.
fn tokens(device: &OpenDevice, budget: &Arc<Budget>, artifact: &Arc<Artifact>, count: usize) -> Result<(f64, f64)> {
    let capacity = artifact.manifest().architecture.context().min(count + 1);
    let mut generator = sessions::generator(device, budget, artifact, capacity)?;
    let mut times = Vec::new();
    for _ in 0..capacity {
        let started = Instant::now();
        generator.read(&[0])?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok((times[times.len() / 2], times[(times.len() - 1) * 99 / 100]))
}
