//! Predictions of a model on a set of windows.

use std::sync::Arc;
use std::time::Instant;

use espalier_kernels::Device;
use espalier_models::Artifact;
use espalier_models::manifest::TextDiagnosis;
use espalier_runtime::{Budget, Classifier};

use crate::diagnosis::Engine;
use crate::diagnosis_text::TextEngine;
use crate::error::{AgentError, Result};
use crate::metrics::Predictions;
use crate::signals::{WindowSet, normalise};
use crate::train::{Examples, Stop};

/// Windows at once: enough for the matrix products, little memory.
pub const BATCH: usize = 32;

/// Probabilities of every usable window of `set`. A constant window, which has no verdict, is left out.
pub fn predict<D: Device>(device: &D, budget: &Arc<Budget>, artifact: &Arc<Artifact>, set: &WindowSet, stop: &Stop) -> Result<Predictions> {
    Evaluator::open(device, budget, artifact, None)?.predict(set, stop)
}

/// What judges windows, several at once.
pub trait Batches {
    /// Probabilities `[windows, classes]` of normalised windows, one after the other; at most [`BATCH`].
    fn classify(&mut self, windows: &[f32]) -> Result<&[f32]>;
}

impl<D: Device> Batches for Classifier<D> {
    fn classify(&mut self, windows: &[f32]) -> Result<&[f32]> {
        Ok(self.classify(windows)?)
    }
}

#[cfg(feature = "ort")]
impl Batches for espalier_runtime::OrtModel {
    fn classify(&mut self, windows: &[f32]) -> Result<&[f32]> {
        Ok(self.classify(windows)?)
    }
}

#[cfg(feature = "ort")]
impl Batches for espalier_runtime::OrtForeign {
    fn classify(&mut self, windows: &[f32]) -> Result<&[f32]> {
        Ok(self.classify(windows)?)
    }
}

/// A model that is open to judge one set of windows after the other.
pub struct Evaluator {
    artifact: Arc<Artifact>,
    judge: Judge,
}

enum Judge {
    Signal(Box<dyn Batches>),
    Text(Box<TextEngine>),
}

impl Evaluator {
    /// Opens a model on a device of ours. `asked` says how a language model is asked that was not trained to make a diagnosis; none for a
    /// model that was.
    pub fn open<D: Device>(device: &D, budget: &Arc<Budget>, artifact: &Arc<Artifact>, asked: Option<TextDiagnosis>) -> Result<Self> {
        let judge = match asked.is_some() || artifact.manifest().diagnosis.is_some() {
            true => Judge::Text(Box::new(TextEngine::open(device, budget, artifact, asked)?)),
            false => Judge::Signal(Box::new(Classifier::open(device, budget, artifact, BATCH)?)),
        };
        Ok(Self { artifact: artifact.clone(), judge })
    }

    /// As [`open`](Self::open), in ONNX Runtime.
    #[cfg(feature = "ort")]
    pub fn open_in_ort(
        ort: crate::engine::Ort,
        budget: &Arc<Budget>,
        artifact: &Arc<Artifact>,
        asked: Option<TextDiagnosis>,
    ) -> Result<Self> {
        let judge = match asked.is_some() || artifact.manifest().diagnosis.is_some() {
            true => Judge::Text(Box::new(TextEngine::open_in_ort(ort, budget, artifact, asked)?)),
            false => {
                check_signal_model(artifact)?;
                let size = (BATCH, artifact.manifest().architecture.patches());
                Judge::Signal(Box::new(espalier_runtime::OrtModel::open(ort.library, budget, artifact, size, ort.options)?))
            }
        };
        Ok(Self { artifact: artifact.clone(), judge })
    }

    /// Probabilities of every usable window of `set`. A constant window, which has no verdict, is left out.
    pub fn predict(&mut self, set: &WindowSet, stop: &Stop) -> Result<Predictions> {
        if self.artifact.manifest().window().is_some() {
            check_window(&self.artifact, set.length())?;
        }
        match &mut self.judge {
            Judge::Signal(classifier) => predict_by_signal(classifier.as_mut(), self.artifact.manifest().architecture.classes(), set, stop),
            Judge::Text(engine) => predict_by_text(engine, set, stop),
        }
    }
}

/// Probabilities of every usable window of `set`, which `judge` gives in the order of `classes`.
pub fn predict_by_signal(judge: &mut dyn Batches, classes: &[String], set: &WindowSet, stop: &Stop) -> Result<Predictions> {
    let mut predictions = Predictions::new(classes)?;
    let length = set.length();
    let (mut windows, mut labels) = (Vec::new(), Vec::new());
    for index in 0..set.len() {
        stop.check()?;
        let start = windows.len();
        windows.resize(start + length, 0.0);
        match set.load(index, &mut windows[start..])? {
            Some(class) => labels.push((class as usize, set.place(index).recording as u32)),
            None => windows.truncate(start),
        }
        if labels.len() == BATCH || (index + 1 == set.len() && !labels.is_empty()) {
            let probabilities = judge.classify(&windows)?;
            for ((class, recording), row) in labels.drain(..).zip(probabilities.chunks_exact(classes.len())) {
                predictions.push(class, recording, row)?;
            }
            windows.clear();
        }
    }
    Ok(predictions)
}

fn predict_by_text(engine: &mut TextEngine, set: &WindowSet, stop: &Stop) -> Result<Predictions> {
    let mut predictions = Predictions::new(engine.classes())?;
    let mut window = vec![0.0; set.length()];
    for index in 0..set.len() {
        stop.check()?;
        if let Some(class) = set.load(index, &mut window)? {
            predictions.push(class as usize, set.place(index).recording as u32, engine.judge(&window)?)?;
        }
    }
    Ok(predictions)
}

/// The samples of a window that a model judges, by its input or by text; an error where it judges none.
pub fn check_signal_model(artifact: &Artifact) -> Result<usize> {
    match artifact.manifest().window() {
        Some((window, _)) => Ok(window),
        None => {
            let path = artifact.path().display();
            Err(AgentError::Usage(format!(
                "{path} is a language model; it has no verdict on signals (see `espalier generate`, or train it with `espalier train --lora`)"
            )))
        }
    }
}

/// An error where windows of a split are not what the model reads.
pub fn check_window(artifact: &Artifact, length: usize) -> Result<()> {
    let window = check_signal_model(artifact)?;
    if window == length {
        return Ok(());
    }
    let path = artifact.path().display();
    Err(AgentError::Usage(format!("{path} reads windows of {window} samples, but the split has windows of {length}")))
}

/// An error where the classes of a split are not those of the model.
pub fn check_classes(artifact: &Artifact, classes: &[String]) -> Result<()> {
    check_signal_model(artifact)?;
    let known = artifact.manifest().classes();
    if known == classes {
        return Ok(());
    }
    let (path, known, classes) = (artifact.path().display(), known.join(", "), classes.join(", "));
    Err(AgentError::Usage(format!(
        "{path} tells the classes {known} apart, but the split has the classes {classes}; choose the split it was trained for"
    )))
}

/// Latency of one window at a time.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Latency {
    /// Median, in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile, in milliseconds.
    pub p99_ms: f64,
    /// Windows that were timed.
    pub windows: usize,
}

/// Times `count` single windows of `length` samples after a warm-up of a tenth as many.
pub fn latency(judge: &mut dyn Batches, length: usize, count: usize) -> Result<Latency> {
    // The numbers do not matter for the time; a ramp is as good as a signal.
    let mut window: Vec<f32> = (0..length).map(|index| ((index * 37) % 101) as f32).collect();
    let _ = normalise(&mut window);
    for _ in 0..count.div_ceil(10) {
        judge.classify(&window)?;
    }
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let started = Instant::now();
        judge.classify(&window)?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get(((times.len() - 1) as f64 * share).round() as usize).copied().unwrap_or(f64::NAN);
    Ok(Latency { p50_ms: at(0.5), p99_ms: at(0.99), windows: count })
}
