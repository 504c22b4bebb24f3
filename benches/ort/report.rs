//! The page `ort.md`.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::Result;

use crate::Measured;
use crate::models::Model;

/// The page, from what was measured and the load averages at the start and at the end.
pub fn page(results: &[(&Model, Vec<Measured>)], threads: u16, windows: u32, load: [&str; 2]) -> Result<String> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let bandwidth = bandwidth_gb_per_s();
    let mut page = String::new();
    writeln!(page, "# The native CPU engine and ONNX Runtime\n")?;
    writeln!(
        page,
        "Written by `cargo bench --bench ort -- --threads {threads} --windows {windows}`, after `scripts/onnxruntime.sh`, which brings ONNX \
         Runtime. The signal network of the cascade's paper, f32, random numbers, one window of 2048 samples (32 patches) at a time, \
         {threads} thread{}. Each engine has a process of its own; the processes take turns in bursts of {} windows, {windows} windows \
         each. *Ratio* is the median over the turns of a burst's median divided by that of the native engine's burst in the same turn, so \
         that load meets both; below 1 is faster than native. Machine: {}, {cores} cores; load averages (1, 5, 15 minutes) {} at the \
         start, {} at the end: where they are above {cores}, others computed too, the milliseconds are too high, and the ratios are what \
         counts.\n",
        if threads == 1 { "" } else { "s" },
        crate::BURST,
        processor(),
        load[0],
        load[1],
    )?;
    writeln!(
        page,
        "*GFLOP/s* is twice the parameters times the patches of a window by the median; *GB/s* the file's bytes by the median, and *of \
         bandwidth* its share of {bandwidth:.1} GB/s, at which one thread adds up memory here: were a window bound by reading weights, \
         that would be near 100 %. *Anonymous*, *file* and *peak* are `RssAnon`, `RssFile` and `VmHWM` of the process in the end, file \
         pages of the program and of ONNX Runtime's library included.\n"
    )?;
    let head = "| model | engine | p50 ms | p99 ms | ratio | GFLOP/s | GB/s | of bandwidth | anonymous MiB | file MiB | peak MiB |";
    writeln!(page, "{head}\n|{}", "--|".repeat(head.matches('|').count() - 1))?;
    for (model, measured) in results {
        let [layers, heads, channels] = model.split;
        let name =
            format!("{}: {:.1} M parameters, {:.1}×, {layers}/{heads}/{channels}", model.name, model.parameters as f64 / 1e6, model.ratio);
        for (index, one) in measured.iter().enumerate() {
            let p50 = quantile(&one.times_ms, 0.5);
            let ratios: Vec<f64> = one.bursts_ms.iter().zip(&measured[0].bursts_ms).map(|(own, native)| own / native).collect();
            let gb_per_s = model.file_bytes as f64 / p50 / 1e6;
            writeln!(
                page,
                "| {} | {} | {p50:.2} | {:.2} | {:.2} | {:.1} | {gb_per_s:.2} | {:.0} % | {:.1} | {:.1} | {:.1} |",
                if index == 0 { name.as_str() } else { "" },
                one.contender.name(),
                quantile(&one.times_ms, 0.99),
                quantile(&ratios, 0.5),
                model.window_flops / p50 / 1e6,
                100.0 * gb_per_s / bandwidth,
                mib(one.memory.anonymous),
                mib(one.memory.file),
                mib(one.memory.peak),
            )?;
        }
    }
    writeln!(page, "\n{}", efficiency(results))?;
    Ok(page)
}

/// How much of a ratio of parameters comes back as time, engine by engine.
fn efficiency(results: &[(&Model, Vec<Measured>)]) -> String {
    let Some(((_, dense), pruned)) = results.split_first() else { return String::new() };
    let mut lines = Vec::new();
    for (index, engine) in dense.iter().enumerate() {
        let of = |(model, measured): &(&Model, Vec<Measured>)| {
            let faster = quantile(&engine.times_ms, 0.5) / quantile(&measured[index].times_ms, 0.5);
            format!("{faster:.1}× at {:.1}× ({:.2})", model.ratio, faster / model.ratio)
        };
        lines.push(format!("{} {}", engine.contender.name(), pruned.iter().map(of).collect::<Vec<_>>().join(", ")));
    }
    format!(
        "Faster than dense, and in brackets the share of the parameters' ratio that this is (compression efficiency): {}.",
        lines.join("; ")
    )
}

/// A quantile, the nearest number; NaN of none.
pub fn quantile(numbers: &[f64], share: f64) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The processor by its name, or what kind it is.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")).and_then(|line| line.split_once(':'));
    name.map_or(std::env::consts::ARCH.to_string(), |(_, name)| name.trim().to_string())
}

/// Gigabytes a second at which one thread adds up a quarter gibibyte, the best of several times.
fn bandwidth_gb_per_s() -> f64 {
    let numbers: Vec<f32> = (0..64 << 20).map(|index| (index % 7) as f32).collect();
    let mut best = f64::INFINITY;
    for _ in 0..8 {
        let started = Instant::now();
        let mut sums = [0.0_f32; 64];
        for block in numbers.chunks_exact(64) {
            sums.iter_mut().zip(block).for_each(|(sum, number)| *sum += number);
        }
        std::hint::black_box(sums);
        best = best.min(started.elapsed().as_secs_f64());
    }
    4.0 * numbers.len() as f64 / best / 1e9
}
