//! `espalier prune`

use std::path::PathBuf;
use std::sync::Arc;

use espalier_kernels::{Purpose, Reservation};
use espalier_models::Artifact;
use espalier_runtime::{AdapterOptions, Budget, gauges};

use super::bar::Bar;
use super::data::DataArgs;
use super::{Context, EngineArgs, foreign, print, print_json};
use crate::diagnosis_text::{Prompts, TextExamples};
use crate::error::{AgentError, Result, file_error};
use crate::evaluate::check_classes;
use crate::files::{check_output, folder_of, publish};
use crate::on_device;
use crate::prune::{Cascade, CascadeOptions, CascadeResult, Split, Target};
use crate::sampler::Sampler;
use crate::signals::WindowSet;
use crate::table::{self, Table};
use crate::train::{Examples, Length, RecoveryOptions};

/// Options of `prune`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("target").required(true).args(["ratio", "fit"])))]
pub struct Args {
    /// The artifact to prune; it is only read.
    model: PathBuf,
    /// Where the pruned artifact is written.
    #[arg(short, long, value_name = "FILE.esp")]
    output: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// How.
    #[arg(long, value_enum, default_value_t = Method::Cascade)]
    method: Method,
    /// How much smaller, dense parameters over kept ones.
    #[arg(long)]
    ratio: Option<f64>,
    /// The bytes that serving the result may hold (see `inspect`), such as 2MiB.
    #[arg(long, value_parser = super::size, value_name = "BYTES")]
    fit: Option<u64>,
    #[command(flatten)]
    recovery: RecoveryArgs,
    /// What to keep, LAYERS,HEADS,CHANNELS, in place of measuring it.
    #[arg(long, value_parser = split, value_name = "L,H,C")]
    keep: Option<Split>,
    #[command(flatten)]
    engine: EngineArgs,
    /// Memory limit for everything, the mapped model included, such as 512MiB.
    #[arg(long, value_parser = super::size, value_name = "BYTES")]
    limit: Option<u64>,
    /// Also leave each stage's artifact in this folder.
    #[arg(long, value_name = "DIR")]
    stages: Option<PathBuf>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

/// How a cut is recovered.
#[derive(Debug, Clone, clap::Args)]
pub struct RecoveryArgs {
    /// Recovery in optimizer steps after layers, heads and channels.
    #[arg(long, value_parser = steps, value_name = "N,N,N", conflicts_with = "epochs")]
    steps: Option<Lengths>,
    /// Recovery in epochs after layers, heads and channels.
    #[arg(long, value_parser = epochs, value_name = "N,N,N", default_value = "2,2,4")]
    epochs: Lengths,
    /// Rank of the adapters.
    #[arg(long, default_value_t = 4)]
    rank: usize,
    /// α of the adapters; their factor is α / rank.
    #[arg(long, default_value_t = 16.0, value_parser = super::non_negative::<f32>)]
    alpha: f32,
    /// Which matrices get adapters.
    #[arg(long, value_enum, default_value_t = Adapt::Attention)]
    adapt: Adapt,
    /// Peak learning rate of the recovery.
    #[arg(long, default_value_t = 3e-3, value_parser = super::non_negative::<f32>)]
    learning_rate: f32,
    /// Windows in a step, fewer where memory is short.
    #[arg(long, default_value_t = 32, value_parser = super::count(super::MAX_BATCH))]
    batch: usize,
    /// Windows on which layers are scored and cuts are tried.
    #[arg(long, default_value_t = 256)]
    windows: usize,
    /// Seed of adapters, order and augmentation.
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Method {
    /// Layers by change ratio, heads and channels by L1, each stage recovered (arXiv 2606.26861).
    Cascade,
}

#[derive(Debug, Clone, Copy, PartialEq, clap::ValueEnum)]
enum Adapt {
    /// The attention projections, as the cascade was published.
    Attention,
    /// Attention and FFN.
    All,
}

impl RecoveryArgs {
    /// The options of a cascade to `target`.
    pub fn options(&self, target: Target, split: Option<Split>) -> Result<CascadeOptions> {
        if self.rank == 0 || self.rank > 1024 {
            return Err(AgentError::Usage(format!("adapters of rank {} are not possible; give 1 to 1024", self.rank)));
        }
        let Lengths(lengths) = self.steps.unwrap_or(self.epochs);
        let adapters = AdapterOptions { rank: self.rank, alpha: self.alpha, attention: true, ffn: self.adapt == Adapt::All };
        Ok(CascadeOptions {
            target: target.checked()?,
            split,
            lengths,
            recovery: RecoveryOptions {
                adapters,
                batch: self.batch.max(1),
                learning_rate: self.learning_rate,
                seed: self.seed,
                ..RecoveryOptions::default()
            },
            trial_windows: self.windows.max(1),
            calibration_windows: self.windows.max(1),
        })
    }
}

/// Recovery after layers, heads and channels.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Lengths([Length; 3]);

fn steps(text: &str) -> std::result::Result<Lengths, String> {
    three(text, &|number| number.parse().ok().map(Length::Steps))
}

fn epochs(text: &str) -> std::result::Result<Lengths, String> {
    three(text, &|number| number.parse().ok().filter(|epochs: &f64| (0.0..1e6).contains(epochs)).map(Length::Epochs))
}

fn three(text: &str, parse: &dyn Fn(&str) -> Option<Length>) -> std::result::Result<Lengths, String> {
    let lengths: Vec<Length> = text
        .split(',')
        .map(|number| parse(number.trim()).ok_or_else(|| format!("`{number}` is no length")))
        .collect::<std::result::Result<_, _>>()?;
    let given = lengths.len();
    <[Length; 3]>::try_from(lengths)
        .map(Lengths)
        .map_err(|_| format!("{given} lengths; give three, for layers, heads and channels, such as 2,2,4"))
}

fn split(text: &str) -> std::result::Result<Split, String> {
    let numbers: Vec<usize> = text
        .split(',')
        .map(|number| number.trim().parse().map_err(|_| format!("{number} is no count")))
        .collect::<std::result::Result<_, _>>()?;
    match numbers[..] {
        [layers, heads, channels] => Ok(Split { layers, heads, channels }),
        _ => Err(format!("{} numbers; give layers, heads and channels, such as 2,2,96", numbers.len())),
    }
}

#[derive(serde::Serialize)]
struct Pruned {
    artifact: PathBuf,
    parameters: usize,
    compression_ratio: f64,
    artifact_bytes: u64,
    peak_held_bytes: u64,
    limit_bytes: Option<u64>,
    #[serde(flatten)]
    result: CascadeResult,
}

pub fn run(context: &Context, args: &Args) -> Result<()> {
    foreign::refuse(&args.model, "pruned")?;
    check_output(&args.output)?;
    let Method::Cascade = args.method;
    let source = Arc::new(Artifact::open(&args.model)?);
    let target = match (args.ratio, args.fit) {
        (Some(ratio), _) => Target::Ratio(ratio),
        (None, Some(bytes)) => Target::Serving(bytes),
        (None, None) => return Err(AgentError::Usage("give --ratio or --fit".into())),
    };
    let options = args.recovery.options(target, args.keep)?;
    let data = args.data.open()?;
    check_classes(&source, &data.split.classes)?;
    data.check()?;
    let (device, budget) = context.device(args.engine, args.limit)?;
    let by_text = by_text(&budget, &source, [&data.sets.train, &data.sets.holdout])?;
    let sampler = Sampler::start()?;
    let scratch = tempfile::tempdir_in(folder_of(&args.output))
        .map_err(|error| file_error("cannot make a folder in", folder_of(&args.output), &error))?;
    let folder = args.stages.as_deref().unwrap_or(scratch.path());
    let calibration = by_text.as_ref().map_or(&data.sets.train as &dyn Examples, |[calibration, _]| calibration);
    let holdout = by_text.as_ref().map_or(&data.sets.holdout as &dyn Examples, |[_, holdout]| holdout);
    let result = context.compute((device, budget), |device, budget, _| {
        let needed = budget.used() + source.file_bytes() + options.needed_bytes(source.manifest());
        if needed > budget.limit() {
            return Err(AgentError::LimitTooSmall { what: format!("pruning {}", args.model.display()), needed, limit: budget.limit() });
        }
        // The whole map is booked: a device that prunes serves this model at the same time.
        let _mapped = Reservation::new(budget.clone(), Purpose::Weights, source.file_bytes())?;
        std::fs::create_dir_all(folder).map_err(|error| file_error("cannot make the folder", folder, &error))?;
        let (options, progress, stop) = (options.clone(), &mut Bar::new(), &context.stop);
        on_device!(device.clone(), device => {
            Cascade { device, budget, calibration, holdout, options, folder, progress, stop }.run(&source)
        })
    })?;
    let last = result.stages.last().ok_or_else(|| AgentError::Training("the cascade had no stages".into()))?;
    publish(&last.path, &args.output)?;
    let artifact = Artifact::open(&args.output)?;
    let pruned = Pruned {
        artifact: args.output.clone(),
        parameters: artifact.manifest().parameters(),
        compression_ratio: artifact.manifest().compression_ratio(),
        artifact_bytes: artifact.file_bytes(),
        peak_held_bytes: sampler.stop().peak.total().max(gauges::held()?.total()),
        limit_bytes: args.limit,
        result,
    };
    if args.json { print_json(&pruned) } else { print(&render(&pruned)) }
}

fn render(pruned: &Pruned) -> String {
    let result = &pruned.result;
    let mut table = Table::new(["stage", "left", "parameters", "artifact", "holdout cut", "holdout", "cross entropy", "steps", "seconds"]);
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    table.row([
        "dense".to_string(),
        String::new(),
        String::new(),
        String::new(),
        String::new(),
        percent(result.dense_accuracy),
        format!("{:.3}", result.dense_loss),
    ]);
    for stage in &result.stages {
        table.row([
            stage.stage.to_string(),
            stage.left.clone(),
            table::count(stage.parameters as u64),
            table::bytes(stage.artifact_bytes),
            percent(stage.cut_accuracy),
            percent(stage.accuracy),
            format!("{:.3}", stage.loss),
            stage.steps.to_string(),
            format!("{:.1}", stage.seconds),
        ]);
    }
    let limit = pruned.limit_bytes.map_or(String::new(), |limit| format!(" of {}", table::bytes(limit)));
    format!(
        "{table}\n{}: {:.2}× smaller, {}; held at most {}{limit}\n",
        pruned.artifact.display(),
        pruned.compression_ratio,
        table::bytes(pruned.artifact_bytes),
        table::bytes(pruned.peak_held_bytes)
    )
}

/// Sets of windows as prompts, for a model that judges them by text.
fn by_text<'a>(budget: &Arc<Budget>, source: &Artifact, sets: [&'a WindowSet; 2]) -> Result<Option<[TextExamples<'a>; 2]>> {
    let Some(diagnosis) = source.manifest().diagnosis.clone() else { return Ok(None) };
    let prompts = Prompts::open(budget, source, diagnosis)?.shared();
    let [calibration, holdout] = sets.map(|windows| TextExamples::new(windows, prompts.clone()));
    Ok(Some([calibration?, holdout?]))
}
