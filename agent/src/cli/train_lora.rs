//! `espalier train --lora`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use espalier_kernels::{Device, Purpose, Reservation};
use espalier_models::Artifact;
use espalier_models::manifest::{Measured, TextDiagnosis};
use espalier_runtime::{AdapterOptions, Budget, Network, Residency};

use super::train::Trained;
use crate::data::Data;
use crate::diagnosis_text::{Prompts, TextExamples, for_classes};
use crate::error::{Result, file_error};
use crate::evaluate::predict;
use crate::files::{check_output, folder_of};
use crate::language::check_language_model;
use crate::prune::pack::{HostAdapter, PackNote, pack_for};
use crate::prune::selection::Selection;
use crate::signals::Augment;
use crate::train::{Length, Progress, RecoveryOptions, Stop, recover};

/// Options of the training from scratch. Clap takes a requirement for met where something stands that conflicts with what is required, so
/// every option of the adapters names these.
const DENSE_OPTIONS: [&str; 8] = ["size", "layers", "width", "heads", "channels", "patch", "stride", "weight_decay"];

/// LoRA on a language model.
#[derive(Debug, clap::Args)]
pub struct LoraArgs {
    /// Train this language model to judge windows by text: statistics of a window are its prompt, the class is what follows. LoRA adapters are
    /// trained and merged.
    #[arg(long, value_name = "FILE.esp", conflicts_with_all = DENSE_OPTIONS)]
    pub lora: Option<PathBuf>,
    /// Rank of the adapters.
    #[arg(long, requires = "lora", conflicts_with_all = DENSE_OPTIONS, default_value_t = 8, value_parser = super::count(1024))]
    rank: usize,
    /// Factor of the adapters times their rank.
    #[arg(long, requires = "lora", conflicts_with_all = DENSE_OPTIONS, default_value_t = 16.0, value_parser = super::non_negative::<f32>)]
    alpha: f32,
    /// Adapters on the FFN projections too, not on the attention projections alone.
    #[arg(long, requires = "lora", conflicts_with_all = DENSE_OPTIONS)]
    ffn: bool,
}

/// What a training was given.
pub struct Given<'a> {
    pub base: &'a Path,
    pub output: &'a Path,
    pub lora: &'a LoraArgs,
    pub length: Length,
    pub batch: usize,
    pub learning_rate: f32,
    pub noise: f64,
    pub seed: u64,
}

/// Trains adapters on a language model, merges them, and measures the result on the holdout. Nothing is at the output before all is done.
pub fn train<D: Device>(
    device: &D,
    budget: &Arc<Budget>,
    data: &Data,
    given: &Given<'_>,
    progress: &mut dyn Progress,
    stop: &Stop,
) -> Result<Trained> {
    check_output(given.output)?;
    data.check()?;
    let base = Arc::new(Artifact::open(given.base)?);
    check_language_model(&base)?;
    let diagnosis = for_classes(&data.split.classes, data.split.window, data.sample_rate_hz()?);
    let options = RecoveryOptions {
        adapters: AdapterOptions { rank: given.lora.rank, alpha: given.lora.alpha, attention: true, ffn: given.lora.ffn },
        batch: given.batch,
        learning_rate: given.learning_rate,
        augment: Augment { noise: given.noise, ..Augment::default() },
        seed: given.seed,
    };
    let (adapters, steps, seconds) = adapters(device, budget, &base, data, &diagnosis, given.length, options, progress, stop)?;
    let history =
        format!("trained on {} by text with LoRA rank {} for {steps} steps, seed {}", data.split.name, given.lora.rank, given.seed);
    let selection = Selection::all(&base.manifest().shape());
    let write = |path: &Path, measured| {
        let note = PackNote { history: history.clone(), measured };
        pack_for(&base, &selection, &adapters, path, note, Some(diagnosis.clone()))
    };
    // The holdout is measured on a first version, so that the second can carry the result.
    let folder = folder_of(given.output);
    let scratch = tempfile::tempdir_in(folder).map_err(|error| file_error("cannot make a folder in", folder, &error))?;
    let first = scratch.path().join("first.esp");
    write(&first, None)?;
    let predictions = predict(device, budget, &Arc::new(Artifact::open(&first)?), &data.sets.holdout, stop)?;
    let holdout = predictions.evaluate(None, None, given.seed)?;
    stop.check()?;
    write(given.output, Some(Measured { accuracy: Some(holdout.accuracy), loss: holdout.cross_entropy_nats, latency_ms: None }))?;
    let artifact = Artifact::open(given.output)?;
    Ok(Trained {
        artifact: given.output.to_path_buf(),
        parameters: artifact.manifest().parameters(),
        artifact_bytes: artifact.file_bytes(),
        steps,
        seconds,
        holdout,
    })
}

/// Trained adapters on the host, the steps and the seconds that they took.
#[allow(clippy::too_many_arguments)]
fn adapters<D: Device>(
    device: &D,
    budget: &Arc<Budget>,
    base: &Arc<Artifact>,
    data: &Data,
    diagnosis: &TextDiagnosis,
    length: Length,
    options: RecoveryOptions,
    progress: &mut dyn Progress,
    stop: &Stop,
) -> Result<(Vec<HostAdapter>, usize, f64)> {
    let _mapped = Reservation::new(budget.clone(), Purpose::Weights, base.file_bytes())?;
    let network = Network::load(device.for_purpose(Purpose::Weights), base, Residency::Resident)?;
    let examples = TextExamples::new(&data.sets.train, Prompts::open(budget, base, diagnosis.clone())?.shared())?;
    let (adapters, report) = recover(&network, &examples, length, options, budget.available(), progress, stop)?;
    Ok((HostAdapter::download(device, &adapters)?, report.steps, report.seconds))
}
