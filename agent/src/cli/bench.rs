//! `espalier bench`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use espalier_models::Artifact;
use espalier_runtime::{Generator, Plan, gauges};

use super::{Context, print, print_json};
use crate::error::Result;
use crate::evaluate::latency;
use crate::table::{self, Table};

/// Options of `bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The artifact.
    model: PathBuf,
    /// Windows (or tokens) to time.
    #[arg(long, default_value_t = 300, value_parser = super::count(1_000_000))]
    count: usize,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Timing {
    open_ms: f64,
    first_ms: f64,
    p50_ms: f64,
    p99_ms: f64,
    per_second: f64,
    gflops: f64,
    weight_gb_per_s: f64,
    held_bytes: u64,
    planned_bytes: u64,
}

pub fn run(context: &Context, args: &Args) -> Result<()> {
    let started = Instant::now();
    let artifact = Arc::new(Artifact::open(&args.model)?);
    let open_ms = started.elapsed().as_secs_f64() * 1e3;
    let (device, budget) = context.device(None)?;
    let manifest = artifact.manifest();
    let patches = manifest.architecture.patches();
    let count = args.count.max(1);
    let (first_ms, p50_ms, p99_ms) = if patches > 0 {
        let first = latency(&device, &budget, &artifact, 1)?.p50_ms;
        let timed = latency(&device, &budget, &artifact, count)?;
        (first, timed.p50_ms, timed.p99_ms)
    } else {
        tokens(context, &artifact, count)?
    };
    let held = gauges::held()?.total();
    let positions = patches.max(1) as f64;
    let timing = Timing {
        open_ms,
        first_ms,
        p50_ms,
        p99_ms,
        per_second: 1e3 / p50_ms,
        gflops: 2.0 * manifest.parameters() as f64 * positions / p50_ms / 1e6,
        weight_gb_per_s: artifact.file_bytes() as f64 / p50_ms / 1e6,
        held_bytes: held,
        planned_bytes: Plan::serving(manifest, artifact.file_bytes()).total(),
    };
    if args.json {
        return print_json(&timing);
    }
    let what = if patches > 0 { "window" } else { "token" };
    let mut table = Table::new(["bench", ""]);
    table
        .row(["open".into(), format!("{open_ms:.2} ms")])
        .row([format!("first {what}"), format!("{first_ms:.3} ms")])
        .row([format!("{what}, median"), format!("{p50_ms:.3} ms")])
        .row([format!("{what}, 99 %"), format!("{p99_ms:.3} ms")])
        .row([format!("{what}s a second"), format!("{:.0}", timing.per_second)])
        .row(["arithmetic".into(), format!("{:.1} GFLOP/s on {} threads", timing.gflops, context.threads)])
        .row(["weights read".into(), format!("{:.1} GB/s", timing.weight_gb_per_s)])
        .row(["held now".into(), table::bytes(held)])
        .row(["planned".into(), table::bytes(timing.planned_bytes)]);
    print(&format!("{table}\n"))
}

fn tokens(context: &Context, artifact: &Arc<Artifact>, count: usize) -> Result<(f64, f64, f64)> {
    let (device, budget) = context.device(None)?;
    let capacity = artifact.manifest().architecture.context().min(count + 1);
    let mut generator = Generator::open(&device, &budget, artifact, capacity)?;
    let mut times = Vec::new();
    for _ in 0..capacity {
        let started = Instant::now();
        generator.read(&[0])?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    let first = times[0];
    times.sort_by(f64::total_cmp);
    Ok((first, times[times.len() / 2], times[(times.len() - 1) * 99 / 100]))
}
