//! Times the operations of the CUDA device by name and shape, as JSON lines: what the device is, its ceilings, and every case of
//! benches/cuda_cases.txt with the kernels that it launched.
//!
//! `cargo bench -p espalier-kernels --features cuda --bench cuda_kernels -- [--ceilings | --passes] [--only WORD] [--small] [--iterations N] [--seconds N]`
//!
//! | file | concern |
//! |--|--|
//! | `cases` | the cases, read and made small |
//! | `operations` | the call of each operation |
//! | `buffers` | buffers and matrices of noise |
//! | `ceilings` | copy and read bandwidth, the cost of a launch |
//! | `passes` | a window and a token, launch by launch and as a graph |
//!
//! A kernel is timed alone, between two events; before each run a buffer larger than any second-level cache is read, so that weights come
//! from memory as they do in a pass over a model. The medians of all runs count.

mod buffers;
mod cases;
mod ceilings;
mod operations;
mod passes;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use espalier_kernels::cuda::Buffer;
use espalier_kernels::{CudaDevice, Device, Result, Unlimited};

use cases::Case;

/// What is read before every run, 256 MiB: twice the 128 MB of second-level cache that the largest device has.
const FLUSH_NUMBERS: usize = 64 << 20;

/// The command line.
struct Args {
    ceilings: bool,
    passes: bool,
    only: String,
    small: bool,
    iterations: usize,
    limit: Duration,
}

impl Args {
    fn parse() -> std::result::Result<Self, String> {
        let mut args =
            Self { ceilings: false, passes: false, only: String::new(), small: false, iterations: 20, limit: Duration::from_secs(600) };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            let number = |text: String| text.parse::<usize>().ok().filter(|n| *n > 0).ok_or_else(|| format!("`{text}` is not a count"));
            match word.as_str() {
                // What cargo bench passes.
                "--bench" => {}
                "--ceilings" => args.ceilings = true,
                "--passes" => args.passes = true,
                "--small" => args.small = true,
                "--only" => args.only = value()?,
                "--iterations" => args.iterations = value().and_then(number)?,
                "--seconds" => args.limit = Duration::from_secs(value().and_then(number)? as u64),
                _ => return Err(format!("unexpected argument `{word}`")),
            }
        }
        Ok(args)
    }
}

fn main() -> ExitCode {
    let result = Args::parse().and_then(|args| {
        let device = CudaDevice::open(0, Arc::new(Unlimited)).map_err(|reason| reason.to_string())?;
        run(&device, &args).map_err(|error| error.to_string())
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("cuda_kernels: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn run(device: &CudaDevice, args: &Args) -> Result<()> {
    let attributes = device.attributes();
    let (major, minor) = attributes.capability;
    let (free, total) = device.memory_bytes()?;
    println!(
        "{{\"what\":\"device\",\"name\":{:?},\"image\":{:?},\"driver\":{},\"capability\":[{major},{minor}],\"multiprocessors\":{},\
         \"integrated\":{},\"free_bytes\":{free},\"total_bytes\":{total}}}",
        attributes.name,
        device.image(),
        attributes.driver,
        attributes.multiprocessors,
        attributes.integrated
    );
    if args.ceilings {
        return ceilings::measure(device, args.small);
    }
    if args.passes {
        return passes::measure(device, args.small);
    }
    let flush = device.zeros(if args.small { 1 } else { FLUSH_NUMBERS })?;
    let started = Instant::now();
    for case in cases::all().into_iter().filter(|case| case.to_string().contains(&args.only)) {
        let case = if args.small { case.small() } else { case };
        if started.elapsed() > args.limit {
            println!("{{\"what\":\"cut\",\"before\":\"{case}\",\"seconds\":{}}}", args.limit.as_secs());
            break;
        }
        match time_case(device, &flush, &case, args.iterations) {
            Ok(line) => println!("{line}"),
            // The others may still fit, or work.
            Err(error) if !device.is_lost() => println!("{{\"what\":\"failed\",\"case\":\"{case}\",\"reason\":{:?}}}", error.to_string()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What the launches of one kernel in one run came to.
#[derive(Clone, Copy, Default)]
struct Total {
    launches: u64,
    bytes: u64,
    flops: u64,
    ns: u64,
}

fn totals(device: &CudaDevice) -> BTreeMap<&'static str, Total> {
    let total = |count: &espalier_kernels::cuda::KernelCount| Total {
        launches: count.launches,
        bytes: count.bytes,
        flops: count.flops,
        ns: count.timed_ns,
    };
    device.kernel_counts().iter().map(|count| (count.name, total(count))).collect()
}

/// What each kernel did between two readings.
fn since(before: &BTreeMap<&'static str, Total>, after: BTreeMap<&'static str, Total>) -> BTreeMap<&'static str, Total> {
    let difference = |(name, now): (&'static str, Total)| {
        let then = before.get(name).copied().unwrap_or_default();
        let (launches, bytes, flops, ns) = (now.launches - then.launches, now.bytes - then.bytes, now.flops - then.flops, now.ns - then.ns);
        (launches > 0).then_some((name, Total { launches, bytes, flops, ns }))
    };
    after.into_iter().filter_map(difference).collect()
}

fn median(numbers: &mut [u64]) -> u64 {
    numbers.sort_unstable();
    numbers.get(numbers.len() / 2).copied().unwrap_or(0)
}

/// Runs a case and says in a line of JSON what its kernels did.
fn time_case(device: &CudaDevice, flush: &Buffer, case: &Case, iterations: usize) -> Result<String> {
    let mut work = operations::prepare(device, case)?;
    // Once untimed: the first launch of a kernel loads it, and scratch memory is taken.
    work()?;
    let mut runs: Vec<BTreeMap<&'static str, Total>> = Vec::new();
    for _ in 0..iterations {
        device.sum_of_squares(flush, device.len(flush))?;
        let before = totals(device);
        device.time_kernels(true);
        let done = work();
        device.time_kernels(false);
        done?;
        runs.push(since(&before, totals(device)));
    }
    let Some(first) = runs.first() else { return Ok(String::new()) };
    let mut kernels = Vec::new();
    for (name, total) in first {
        let mut ns: Vec<u64> = runs.iter().filter_map(|run| run.get(name)).map(|total| total.ns).collect();
        let ns = median(&mut ns);
        let Total { launches, bytes, flops, .. } = total;
        let (gb_per_s, tflop_per_s) = (*bytes as f64 / ns.max(1) as f64, *flops as f64 / ns.max(1) as f64 / 1e3);
        kernels.push(format!(
            "{{\"name\":\"{name}\",\"launches\":{launches},\"bytes\":{bytes},\"flops\":{flops},\"median_us\":{:.3},\
             \"gb_per_s\":{gb_per_s:.2},\"tflop_per_s\":{tflop_per_s:.3}}}",
            ns as f64 / 1e3
        ));
    }
    let mut all: Vec<u64> = runs.iter().map(|run| run.values().map(|total| total.ns).sum()).collect();
    let attributes = device.attributes();
    let (major, minor) = attributes.capability;
    Ok(format!(
        "{{\"what\":\"case\",\"case\":\"{case}\",\"capability\":[{major},{minor}],\"multiprocessors\":{},\"runs\":{iterations},\
         \"total_us\":{:.3},\"kernels\":[{}]}}",
        attributes.multiprocessors,
        median(&mut all) as f64 / 1e3,
        kernels.join(",")
    ))
}
