//! The native CPU engine and ONNX Runtime beside each other, on the signal network of the cascade's paper: the table of
//! `docs/results/ort.md`.
//!
//! `cargo bench --bench ort -- [--windows N] [--threads N] [--out FILE]`
//!
//! Each engine runs in a process of its own, so that what it holds is its own; the processes take turns, a burst of windows each, so that
//! what else the machine does meets them alike.
//!
//! | file | concern |
//! |--|--|
//! | `models` | the dense network and two pruned ones |
//! | `worker` | one engine in its process |
//! | `report` | the page |

mod models;
mod report;
mod worker;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Parser;
use espalier_runtime::{PageAllocator, tune_system_allocator};

use models::{Model, models};
use worker::{Contender, Memory, Worker, work};

/// As in the program: what a process holds is what it is judged by.
#[global_allocator]
static ALLOCATOR: PageAllocator = PageAllocator;

/// Times the native CPU engine and ONNX Runtime in turns, and writes the table.
#[derive(Debug, Parser)]
#[command(name = "ort")]
struct Args {
    /// Windows that each engine judges of each model.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(20..=100_000))]
    windows: u32,
    /// Threads of each engine; the diagnosis loop has one.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// The page.
    #[arg(long, default_value = "docs/results/ort.md")]
    out: PathBuf,
    /// Where the models are kept.
    #[arg(long, default_value = "target/ort-bench")]
    models: PathBuf,
    /// Be the process of this engine for the model `--model`.
    #[arg(long, hide = true, requires = "model")]
    worker: Option<Contender>,
    #[arg(long, hide = true)]
    model: Option<PathBuf>,
    /// What cargo bench passes.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Windows of a burst: enough that the caches are an engine's own again for most of it.
const BURST: u32 = 10;

/// What was measured of one engine on one model.
struct Measured {
    contender: Contender,
    /// Every window, in milliseconds.
    times_ms: Vec<f64>,
    /// The median of every burst.
    bursts_ms: Vec<f64>,
    memory: Memory,
}

fn main() -> Result<()> {
    tune_system_allocator();
    let args = Args::parse();
    if let (Some(contender), Some(model)) = (args.worker, &args.model) {
        return work(contender, model, args.threads.into());
    }
    if !args.bench {
        println!("ort takes minutes; it runs with `cargo bench --bench ort`");
        return Ok(());
    }
    let models = models(&args.models)?;
    let load = load_average()?;
    let mut results = Vec::new();
    for model in &models {
        eprintln!("{}", model.name);
        results.push((model, measure(model, &args)?));
    }
    let page = report::page(&results, args.threads, args.windows, [&load, &load_average()?])?;
    std::fs::write(&args.out, page).with_context(|| format!("cannot write {}", args.out.display()))?;
    println!("wrote {}", args.out.display());
    Ok(())
}

/// Has the engines judge windows of a model in turns.
fn measure(model: &Model, args: &Args) -> Result<Vec<Measured>> {
    let mut workers = Vec::new();
    let mut measured = Vec::new();
    for contender in Contender::ALL {
        workers.push(Worker::start(contender, &model.path, args.threads)?);
        measured.push(Measured { contender, times_ms: Vec::new(), bursts_ms: Vec::new(), memory: Memory::default() });
    }
    for round in 0..args.windows.div_ceil(BURST) {
        // Each is the first of a round as often as the others.
        for turn in 0..workers.len() {
            let index = (turn + round as usize) % workers.len();
            let times = workers[index].burst(BURST)?;
            measured[index].bursts_ms.push(report::quantile(&times, 0.5));
            measured[index].times_ms.extend(times);
        }
    }
    for (worker, measured) in workers.into_iter().zip(&mut measured) {
        let (memory, class) = worker.end()?;
        measured.memory = memory;
        if class.is_empty() {
            bail!("{} gave no probabilities", measured.contender.name());
        }
    }
    Ok(measured)
}

/// The system's load averages, as it writes them.
fn load_average() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg").context("/proc/loadavg cannot be read")?;
    Ok(text.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
}
