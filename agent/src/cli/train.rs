//! `espalier train`

use std::path::{Path, PathBuf};

use espalier_kernels::Device;
use espalier_models::Artifact;
use espalier_models::manifest::Measured;

use super::bar::Bar;
use super::data::DataArgs;
use super::train_lora::{self, LoraArgs};
use super::{Context, EngineArgs, print, print_json};
use crate::data::Data;
use crate::error::{Result, file_error};
use crate::evaluate::predict;
use crate::files::{check_output, folder_of};
use crate::metrics::Evaluation;
use crate::on_device;
use crate::prune::pack::write_trained;
use crate::signal_model::{SignalSize, dense_manifest};
use crate::signals::Augment;
use crate::table;
use crate::train::{DenseOptions, DenseReport, Length, Progress, Stop, train_dense};

/// Options of `train`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    data: DataArgs,
    /// Where the artifact is written.
    #[arg(short, long, value_name = "FILE.esp")]
    output: PathBuf,
    #[command(flatten)]
    size: SizeArgs,
    #[command(flatten)]
    lora: LoraArgs,
    /// Passes over the training windows [default: 12, with --lora 1].
    #[arg(long, conflicts_with = "steps", value_parser = super::non_negative::<f64>)]
    epochs: Option<f64>,
    /// Optimizer steps, in place of epochs.
    #[arg(long)]
    steps: Option<usize>,
    /// Windows in a step.
    #[arg(long, default_value_t = 32, value_parser = super::count(super::MAX_BATCH))]
    batch: usize,
    /// Peak learning rate.
    #[arg(long, default_value_t = 1e-3, value_parser = super::non_negative::<f32>)]
    learning_rate: f32,
    /// Decoupled weight decay.
    #[arg(long, default_value_t = 0.05, value_parser = super::non_negative::<f32>)]
    weight_decay: f32,
    /// Standard deviation of the noise that every training window gets.
    #[arg(long, default_value_t = 0.1, value_parser = super::non_negative::<f64>)]
    noise: f64,
    /// Seed of weights, order and augmentation.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    #[command(flatten)]
    engine: EngineArgs,
    /// Memory limit, such as 2GiB.
    #[arg(long, value_parser = super::size, value_name = "BYTES")]
    limit: Option<u64>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// The size of a signal transformer.
#[derive(Debug, Clone, clap::Args)]
pub struct SizeArgs {
    /// A named size: `small` (2.7 million parameters) or `paper` (85 million, GPT-2's blocks).
    #[arg(long, value_enum, default_value_t = Preset::Small)]
    size: Preset,
    /// Layers.
    #[arg(long)]
    layers: Option<usize>,
    /// Width of the residual stream.
    #[arg(long)]
    width: Option<usize>,
    /// Heads of a layer.
    #[arg(long)]
    heads: Option<usize>,
    /// FFN channels of a layer.
    #[arg(long)]
    channels: Option<usize>,
    /// Samples in a patch.
    #[arg(long)]
    patch: Option<usize>,
    /// Samples between the starts of neighbouring patches.
    #[arg(long)]
    stride: Option<usize>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Preset {
    Small,
    Paper,
}

impl SizeArgs {
    fn size(&self) -> SignalSize {
        let preset = match self.size {
            Preset::Small => SignalSize::SMALL,
            Preset::Paper => SignalSize::PAPER,
        };
        SignalSize {
            layers: self.layers.unwrap_or(preset.layers),
            width: self.width.unwrap_or(preset.width),
            heads: self.heads.unwrap_or(preset.heads),
            channels: self.channels.unwrap_or(preset.channels),
            patch: self.patch.unwrap_or(preset.patch),
            stride: self.stride.unwrap_or(preset.stride),
            ..preset
        }
    }
}

/// A model that was trained and written.
#[derive(Debug, serde::Serialize)]
pub struct Trained {
    /// Where.
    pub artifact: PathBuf,
    /// Its parameters.
    pub parameters: usize,
    /// Its bytes.
    pub artifact_bytes: u64,
    /// Optimizer steps.
    pub steps: usize,
    /// Seconds of training.
    pub seconds: f64,
    /// On the holdout.
    pub holdout: Evaluation,
}

impl Args {
    /// How long the training is, `epochs` where nothing was said.
    fn length(&self, epochs: f64) -> Length {
        self.steps.map_or(Length::Epochs(self.epochs.unwrap_or(epochs)), Length::Steps)
    }
}

pub fn run(context: &Context, args: &Args) -> Result<()> {
    let data = args.data.open()?;
    let opened = context.device(args.engine, args.limit)?;
    if let Some(base) = &args.lora.lora {
        let given = train_lora::Given {
            base,
            output: &args.output,
            lora: &args.lora,
            length: args.length(LORA_EPOCHS),
            batch: args.batch,
            learning_rate: args.learning_rate,
            noise: args.noise,
            seed: args.seed,
        };
        let trained = context.compute(opened, |device, budget, _| {
            on_device!(device, device => train_lora::train(device, budget, &data, &given, &mut Bar::new(), &context.stop))
        })?;
        return report(args, &data, &trained);
    }
    let per_epoch = data.sets.train.len().div_ceil(args.batch.max(1)) as f64;
    let options = DenseOptions {
        batch: args.batch.max(1),
        steps: args.length(DENSE_EPOCHS).steps(per_epoch),
        learning_rate: args.learning_rate,
        weight_decay: args.weight_decay,
        augment: Augment { noise: args.noise, ..Augment::default() },
        seed: args.seed,
    };
    let (size, output) = (args.size.size(), &args.output);
    let trained = context.compute(opened, |device, budget, _| {
        on_device!(device, device => {
            train_artifact(device, budget, &data, size, options, output, &mut Bar::new(), &context.stop)
        })
    })?;
    report(args, &data, &trained)
}

/// Passes over the training windows from scratch; fewer leave the loss falling.
const DENSE_EPOCHS: f64 = 12.0;

/// Passes with adapters on a language model, of which one takes as long as hundreds of a signal model's.
const LORA_EPOCHS: f64 = 1.0;

fn report(args: &Args, data: &Data, trained: &Trained) -> Result<()> {
    if args.json {
        return print_json(trained);
    }
    print(&format!(
        "{}: {} parameters, {}, trained on {} windows in {:.0} s\nholdout\n{}",
        trained.artifact.display(),
        table::count(trained.parameters as u64),
        table::bytes(trained.artifact_bytes),
        data.sets.train.len(),
        trained.seconds,
        trained.holdout
    ))
}

/// Trains, writes, and measures on the holdout. Nothing is at `output` before all is done.
#[allow(clippy::too_many_arguments)]
pub fn train_artifact<D: Device>(
    device: &D,
    budget: &std::sync::Arc<espalier_runtime::Budget>,
    data: &Data,
    size: SignalSize,
    options: DenseOptions,
    output: &Path,
    progress: &mut dyn Progress,
    stop: &Stop,
) -> Result<Trained> {
    check_output(output)?;
    data.check()?;
    let architecture = size.architecture(&data.split.classes, data.sample_rate_hz()?)?;
    let shape = size.shape();
    let (mut network, report) = train_dense(device, architecture.clone(), shape.clone(), &data.sets.train, options, progress, stop)?;
    let history = format!("trained on {} for {} steps, seed {}", data.split.name, report.steps, options.seed);
    let name = output.file_stem().map_or("model".into(), |stem| stem.to_string_lossy().into_owned());
    // The holdout is measured on a first version, so that the second can carry the result.
    let scratch =
        tempfile::tempdir_in(folder_of(output)).map_err(|error| file_error("cannot make a folder in", folder_of(output), &error))?;
    let first = scratch.path().join("first.esp");
    write_trained(device, &mut network, dense_manifest(&name, architecture.clone(), &shape, history.clone(), None), &first)?;
    let holdout = predict(device, budget, &std::sync::Arc::new(Artifact::open(&first)?), &data.sets.holdout, stop)?.evaluate(
        None,
        None,
        options.seed,
    )?;
    stop.check()?;
    let measured = Measured { accuracy: Some(holdout.accuracy), loss: holdout.cross_entropy_nats, latency_ms: None };
    write_trained(device, &mut network, dense_manifest(&name, architecture, &shape, history, Some(measured)), output)?;
    let artifact = Artifact::open(output)?;
    let DenseReport { steps, seconds, .. } = report;
    Ok(Trained {
        artifact: output.to_path_buf(),
        parameters: artifact.manifest().parameters(),
        artifact_bytes: artifact.file_bytes(),
        steps,
        seconds,
        holdout,
    })
}
