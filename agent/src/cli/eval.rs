//! `espalier eval`

use std::path::{Path, PathBuf};
use std::sync::Arc;

use espalier_models::Artifact;
#[cfg(feature = "ort")]
use espalier_models::foreign::ForeignModel;
use espalier_models::manifest::TextDiagnosis;

use super::data::DataArgs;
use super::eval_language::{self, Computing, LanguageArgs};
use super::foreign::{self, SidecarArgs};
use super::{Context, EngineArgs, print, print_json};
use crate::data::Data;
use crate::diagnosis_text::for_classes;
#[cfg(feature = "ort")]
use crate::engine::OpenDevice;
use crate::error::Result;
use crate::evaluate::{Evaluator, check_classes};
use crate::metrics::{Evaluation, Predictions};
use crate::on_device;
use crate::signals::{Noise, WindowSet};

/// Options of `eval`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The artifact, or an ONNX graph of another program.
    model: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    language: LanguageArgs,
    /// White noise at this signal-to-noise ratio, in dB, added to every test window before normalisation.
    #[arg(long, allow_negative_numbers = true, value_parser = super::finite, conflicts_with = "language")]
    snr: Option<f64>,
    /// Measure the holdout instead of the test windows: for choices, which test data must not make.
    #[arg(long, conflicts_with = "language")]
    holdout: bool,
    /// A model to compare with: the share of windows on which both say the same.
    #[arg(long, value_name = "FILE", conflicts_with = "language")]
    reference: Option<PathBuf>,
    /// Also the accuracy without this class.
    #[arg(long, value_name = "CLASS", conflicts_with = "language")]
    without: Option<String>,
    /// Seed of noise and bootstrap.
    #[arg(long, default_value_t = 42, conflicts_with = "language")]
    seed: u64,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    sidecar: SidecarArgs,
    /// Memory limit, such as 2GiB.
    #[arg(long, value_parser = super::size, value_name = "BYTES")]
    limit: Option<u64>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Named {
    set: String,
    #[serde(flatten)]
    evaluation: Evaluation,
}

/// How a language model that was not trained to make a diagnosis is asked for one: by the split's classes. None for a model that knows.
fn diagnosis_by_text(artifact: &Artifact, data: &Data) -> Result<Option<TextDiagnosis>> {
    if artifact.manifest().window().is_some() {
        check_classes(artifact, &data.split.classes)?;
        return Ok(None);
    }
    Ok(Some(for_classes(&data.split.classes, data.split.window, data.sample_rate_hz()?)))
}

/// What is measured, or compared with.
enum Model {
    Artifact(Arc<Artifact>),
    #[cfg(feature = "ort")]
    Foreign(Arc<ForeignModel>),
}

impl Model {
    fn open(path: &Path, sidecar: Option<&Path>) -> Result<Self> {
        if !foreign::is_onnx(path) {
            return Ok(Self::Artifact(Arc::new(Artifact::open(path)?)));
        }
        #[cfg(feature = "ort")]
        return Ok(Self::Foreign(foreign::read(path, sidecar)?));
        #[cfg(not(feature = "ort"))]
        foreign::eval(path, sidecar)
    }

    /// The artifact that it is, if it is one.
    fn artifact(&self) -> Option<&Arc<Artifact>> {
        match self {
            Self::Artifact(artifact) => Some(artifact),
            #[cfg(feature = "ort")]
            Self::Foreign(_) => None,
        }
    }

    /// Predictions on every set.
    fn predict(&self, context: &Context, args: &Args, data: &Data, sets: &[(String, WindowSet)]) -> Result<Vec<Predictions>> {
        match self {
            Self::Artifact(artifact) => predict(context, args, artifact, diagnosis_by_text(artifact, data)?, sets),
            #[cfg(feature = "ort")]
            Self::Foreign(model) => foreign::predictions(context, (args.engine, args.limit), model, (sets, &data.split.classes)),
        }
    }
}

/// Predictions of an artifact on every set.
fn predict(
    context: &Context,
    args: &Args,
    model: &Arc<Artifact>,
    asked: Option<TextDiagnosis>,
    sets: &[(String, WindowSet)],
) -> Result<Vec<Predictions>> {
    context.compute(context.any_device(args.engine, args.limit)?, |device, budget, _| {
        let mut evaluator = match device {
            #[cfg(feature = "ort")]
            OpenDevice::Ort(_, ort) => Evaluator::open_in_ort(*ort, budget, model, asked.clone())?,
            device => on_device!(device, device => Evaluator::open(device, budget, model, asked.clone()))?,
        };
        sets.iter().map(|(_, windows)| evaluator.predict(windows, &context.stop)).collect()
    })
}

pub fn run(context: &Context, args: &Args) -> Result<()> {
    if args.language.is_asked() {
        foreign::refuse(&args.model, "asked about texts")?;
        let computing = Computing { engine: args.engine, limit: args.limit, json: args.json };
        let artifact = Arc::new(Artifact::open(&args.model)?);
        return eval_language::run(context, &artifact, &args.language, args.data.data.as_deref(), computing);
    }
    if !foreign::is_onnx(&args.model) {
        args.sidecar.check_none(&args.model)?;
    }
    let model = Model::open(&args.model, args.sidecar.sidecar.as_deref())?;
    let reference = args.reference.as_ref().map(|path| Model::open(path, None)).transpose()?;
    let data = args.data.open()?;
    if let Some(artifact) = model.artifact() {
        diagnosis_by_text(artifact, &data)?;
    }
    if let Some(other) = reference.as_ref().and_then(Model::artifact) {
        check_classes(other, &data.split.classes)?;
    }
    let noise = args.snr.map(|snr_db| Noise { snr_db, seed: args.seed });
    let sets: Vec<(String, WindowSet)> = if args.holdout {
        vec![("holdout".to_string(), data.sets.holdout.clone().with_noise(noise))]
    } else {
        data.split.test.iter().zip(&data.sets.tests).map(|(test, set)| (test.name.clone(), set.clone().with_noise(noise))).collect()
    };
    let measured = model.predict(context, args, &data, &sets)?;
    let others = reference.as_ref().map(|other| other.predict(context, args, &data, &sets)).transpose()?;
    let mut results = Vec::with_capacity(sets.len());
    for (index, ((set, _), predictions)) in sets.iter().zip(&measured).enumerate() {
        let other = others.as_ref().and_then(|others| others.get(index));
        let evaluation = predictions.evaluate(args.without.as_deref(), other, args.seed)?;
        results.push(Named { set: set.clone(), evaluation });
    }
    if args.json {
        return print_json(&results);
    }
    let noise = args.snr.map_or(String::new(), |snr| format!(", {snr} dB"));
    let text: Vec<String> =
        results.iter().map(|named| format!("{}: {}{noise}\n{}", data.split.name, named.set, named.evaluation)).collect();
    print(&(text.join("\n") + "\n"))
}
