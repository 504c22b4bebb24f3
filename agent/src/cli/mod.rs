//! The command line: one file a command.

use std::cell::Cell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use clap::{Parser, Subcommand};
#[cfg(feature = "ort")]
use espalier_runtime::OrtProviders;
use espalier_runtime::{Budget, PROCESS_BYTES};

use crate::engine::{Asked, AskedOrt, EngineChoice, Engines, OpenDevice, Precision, is_device_failure};
use crate::error::{AgentError, Result};
use crate::lost_pages::{check_pages, replace_lost_pages};
use crate::train::Stop;

mod bar;
mod bench;
#[cfg(feature = "cuda")]
mod bench_kernels;
mod check;
mod data;
mod demo;
mod demo_report;
mod embed;
mod eval;
mod eval_language;
mod export;
mod foreign;
mod generate;
mod import;
mod inspect;
mod prune;
mod run;
mod train;
mod train_lora;

/// Espalier runs a transformer on an edge node and, when memory runs short, prunes it there: layers, then heads, then FFN channels, each
/// cut recovered with LoRA on local data and checked on a holdout before it serves.
#[derive(Debug, Parser)]
#[command(name = "espalier", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Threads for computing [default: all cores].
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Say more: once what is decided, twice every detail (or set RUST_LOG).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the whole story: train, serve, run short of memory, prune, recover, swap. Needs nothing, or real recordings with --data.
    Demo(demo::Args),
    /// Train a signal transformer on recordings, or a language model with LoRA to judge them by text, and write it as an artifact.
    Train(train::Args),
    /// Make an artifact of a checkpoint: a folder with safetensors or PyTorch files, a PyTorch file, or a GGUF file.
    Import(import::Args),
    /// Show what an artifact or an ONNX graph is, and what serving it will hold.
    Inspect(inspect::Args),
    /// Measure a model: a signal model on the test windows of a split, a language model on a text or on questions.
    Eval(eval::Args),
    /// Say which pruning methods are sound for a model's architecture (static SIA check).
    Check(check::Args),
    /// Prune a model and recover it.
    Prune(prune::Args),
    /// Diagnose a stream of samples: verdicts as JSON lines; under a memory budget, prune and swap the model while it serves.
    Run(run::Args),
    /// Continue a prompt with a language model.
    Generate(generate::Args),
    /// Print what texts mean to a language model (the mean of its final hidden states) or an ONNX encoder, as JSON lines.
    Embed(embed::Args),
    /// Write a model as a checkpoint folder, a GGUF file or an ONNX graph that other programs read.
    Export(export::Args),
    /// Time a model on this machine.
    Bench(bench::Args),
}

/// What every command has.
pub(crate) struct Context {
    /// Threads for computing.
    pub threads: usize,
    /// Set by Ctrl-C.
    pub stop: Stop,
    engines: OnceLock<Engines>,
}

/// Options of every command that computes.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct EngineArgs {
    /// What computes: the GPU where there is one that can be used, else the CPU, and ONNX Runtime (ort) for ONNX graphs of other programs; or one of them by name, which nothing then replaces.
    #[arg(long, value_enum, default_value_t = EngineChoice::Auto)]
    pub engine: EngineChoice,
    /// How exactly the GPU multiplies with weights that are stored in 16 bits; the CPU always computes in f32 [default: exact].
    #[arg(long, value_enum, value_name = "PRECISION")]
    precision: Option<Precision>,
    /// ONNX Runtime's library [default: ORT_DYLIB_PATH, else beside the program, target/onnxruntime, the system's].
    #[arg(long, value_name = "FILE", value_parser = forever)]
    ort_lib: Option<&'static Path>,
    /// Let ONNX Runtime copy f32 matrices into an order that it multiplies with faster, for up to as much memory again.
    #[arg(long)]
    ort_prepack: bool,
    /// Execution providers of ONNX Runtime, in the order in which they are tried, such as tensorrt,cuda; what they leave the CPU computes. What a GPU holds for them is not counted [default: cpu].
    #[cfg(feature = "ort")]
    #[arg(long, value_name = "NAME,..", value_parser = <OrtProviders as std::str::FromStr>::from_str)]
    ort_provider: Option<OrtProviders>,
}

/// A path for the whole run of the program, of which there is one.
fn forever(text: &str) -> std::result::Result<&'static Path, std::convert::Infallible> {
    Ok(Box::leak(PathBuf::from(text).into_boxed_path()))
}

impl EngineArgs {
    /// Refuses ONNX Runtime, for work that only our own engines do.
    pub fn check_ours(self) -> Result<()> {
        if self.engine == EngineChoice::Ort {
            let why = "engine ort runs models (run, eval, generate, embed, bench), it trains and prunes none";
            return Err(AgentError::Usage(format!("{why}; give --engine cpu or cuda")));
        }
        Ok(())
    }

    /// What is asked of the engines.
    pub fn asked(self) -> Result<Asked> {
        let engine = self.engine;
        if matches!(engine, EngineChoice::Cpu | EngineChoice::Ort) && self.precision.is_some() {
            let name = engine.name();
            return Err(AgentError::Usage(format!("--precision is of the GPU, but --engine {name} was given; leave one of them out")));
        }
        #[cfg(feature = "ort")]
        let has_provider = self.ort_provider.is_some();
        #[cfg(not(feature = "ort"))]
        let has_provider = false;
        if matches!(engine, EngineChoice::Cpu | EngineChoice::Cuda) && (self.ort_lib.is_some() || self.ort_prepack || has_provider) {
            let (what, name) = ("--ort-lib, --ort-prepack and --ort-provider are of ONNX Runtime", engine.name());
            return Err(AgentError::Usage(format!("{what}, but --engine {name} was given; give --engine ort or auto")));
        }
        let ort = AskedOrt {
            library: self.ort_lib,
            prepack: self.ort_prepack,
            #[cfg(feature = "ort")]
            providers: self.ort_provider.unwrap_or_default(),
        };
        Ok(Asked { engine, precision: self.precision.unwrap_or_default(), ort })
    }
}

impl Context {
    /// A device of the engine that was asked for, within `limit` bytes, for work that only our own engines do.
    pub fn device(&self, args: EngineArgs, limit: Option<u64>) -> Result<(OpenDevice, Arc<Budget>)> {
        args.check_ours()?;
        self.any_device(args, limit)
    }

    /// As [`device`](Context::device), for work that ONNX Runtime does too.
    pub fn any_device(&self, args: EngineArgs, limit: Option<u64>) -> Result<(OpenDevice, Arc<Budget>)> {
        self.opened(args, limit, |engines, budget| engines.open(self.threads, budget))
    }

    /// As [`device`](Context::device), for the model at `path`, which only ONNX Runtime runs because of `what` it is.
    #[cfg(feature = "ort")]
    pub fn foreign_device(&self, args: EngineArgs, limit: Option<u64>, model: (&str, &Path)) -> Result<(OpenDevice, Arc<Budget>)> {
        self.opened(args, limit, |engines, budget| engines.open_for(model, self.threads, budget))
    }

    fn opened(
        &self,
        args: EngineArgs,
        limit: Option<u64>,
        open: impl FnOnce(&Engines, &Arc<Budget>) -> Result<OpenDevice>,
    ) -> Result<(OpenDevice, Arc<Budget>)> {
        let budget = Arc::new(Budget::new(limit.unwrap_or(u64::MAX), PROCESS_BYTES));
        let asked = args.asked()?;
        let device = open(self.engines.get_or_init(|| Engines::new(asked)), &budget)?;
        Ok((device, budget))
    }

    /// Does `work` on a device that [`Context::device`] or [`Context::any_device`] has opened; where it has no room or fails, from the
    /// start on the next, unless `work` has said that it has shown something already.
    pub fn compute<T>(
        &self,
        (device, budget): (OpenDevice, Arc<Budget>),
        mut work: impl FnMut(&OpenDevice, &Arc<Budget>, &Cell<bool>) -> Result<T>,
    ) -> Result<T> {
        let shown = Cell::new(false);
        let error = match work(&device, &budget, &shown) {
            Err(error) if is_device_failure(&error) && !shown.get() => error,
            done => return done,
        };
        let engines = self.engines.get_or_init(Engines::default);
        let Some(next) = engines.after(&device, self.threads, &budget, &error)? else { return Err(error) };
        engines.close(device, &budget);
        work(&next, &budget, &shown)
    }
}

/// Runs the command line.
pub fn run(cli: Cli) -> Result<()> {
    let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let context = Context { threads: cli.threads.map_or(available, usize::from), stop: stop_on_signals()?, engines: OnceLock::new() };
    replace_lost_pages()?;
    // The loop goes on with another artifact.
    let goes_on = matches!(cli.command, Command::Run(_));
    perform(&context, cli.command)?;
    if goes_on { Ok(()) } else { check_pages() }
}

fn perform(context: &Context, command: Command) -> Result<()> {
    match command {
        Command::Demo(args) => demo::run(context, &args),
        Command::Train(args) => train::run(context, &args),
        Command::Import(args) => import::run(context, &args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Eval(args) => eval::run(context, &args),
        Command::Check(args) => check::run(&args),
        Command::Prune(args) => prune::run(context, &args),
        Command::Run(args) => run::run(context, &args),
        Command::Generate(args) => generate::run(context, &args),
        Command::Embed(args) => embed::run(context, &args),
        Command::Export(args) => export::run(&args),
        Command::Bench(args) => bench::run(context, &args),
    }
}

/// A stop that SIGINT and SIGTERM ask for; a second one ends the program at once.
fn stop_on_signals() -> Result<Stop> {
    let flag = Arc::new(std::sync::atomic::AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let registered = signal_hook::flag::register_conditional_shutdown(signal, 1, flag.clone())
            .and_then(|_| signal_hook::flag::register(signal, flag.clone()));
        registered.map_err(|error| AgentError::Usage(format!("signal {signal} cannot be handled: {error}")))?;
    }
    Ok(Stop::by_flag(flag))
}

/// Prints to standard output; a reader that has gone away is no failure.
pub(crate) fn print(text: &str) -> Result<()> {
    print_while_read(text).map(|_| ())
}

/// Prints to standard output; false where the reader has gone away.
pub(crate) fn print_while_read(text: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(crate::error::file_error("cannot write to", &PathBuf::from("standard output"), &error)),
    }
}

/// Says a line on standard error; a reader that has gone away is no failure.
pub(crate) fn tell(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints a value as JSON.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| AgentError::Usage(format!("the result cannot be written as JSON: {error}")))?;
    print(&(text + "\n"))
}

/// A count on the command line, 1 to `most`: more than anyone wants, and few enough that no length made of it overflows.
pub(crate) fn count(most: u32) -> clap::builder::RangedU64ValueParser<usize> {
    clap::builder::RangedU64ValueParser::new().range(1..=u64::from(most))
}

/// The largest batch on the command line.
pub(crate) const MAX_BATCH: u32 = 65_536;

/// A finite number on the command line.
pub(crate) fn finite(text: &str) -> std::result::Result<f64, String> {
    text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or_else(|| format!("`{text}` is no finite number"))
}

/// A finite number of at least 0 on the command line.
pub(crate) fn non_negative<T: std::str::FromStr + Copy + Into<f64>>(text: &str) -> std::result::Result<T, String> {
    let number = text.parse::<T>().map_err(|_| format!("`{text}` is no number"))?;
    let value: f64 = number.into();
    if value.is_finite() && value >= 0.0 { Ok(number) } else { Err(format!("{text} is not possible; give 0 or more")) }
}

/// A size on the command line.
pub(crate) fn size(text: &str) -> std::result::Result<u64, String> {
    crate::table::parse_size(text).map_err(|error| error.to_string())
}
