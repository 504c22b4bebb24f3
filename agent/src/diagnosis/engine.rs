//! What judges a window.

use std::any::Any;
use std::sync::Arc;

use espalier_kernels::{CpuDevice, Device};
use espalier_models::Artifact;
use espalier_models::architecture::Input;
use espalier_models::foreign::Normalisation;
use espalier_runtime::{Budget, Classifier};

use crate::error::{AgentError, Result};

/// Most classes that a verdict can hold.
pub const MAX_CLASSES: usize = 32;

/// Runs the work that it is given, once, on a thread where an engine's computing starts fastest.
pub type Host = Box<dyn FnOnce(&mut (dyn FnMut() + Send)) + Send>;

/// Turns one normalised window at a time into class probabilities.
pub trait Engine: Send {
    /// Probabilities `[classes]` of a window `[window]`, normalised as [`normalisation`](Self::normalisation) says.
    ///
    /// # Errors
    /// [`AgentError::Usage`] where this window cannot be judged, after which the engine serves on; any other error is the engine's own, and
    /// the engine is replaced.
    fn classify(&mut self, window: &[f32]) -> Result<&[f32]>;
    /// Identifies the model's contents.
    fn model_id(&self) -> u64;
    /// The level of the model that is run: 0 is all that the artifact stores.
    fn level(&self) -> u32;
    /// The classes' names.
    fn classes(&self) -> &[String];
    /// Samples of a window.
    fn window(&self) -> usize;
    /// Samples a second at which the model was trained.
    fn sample_rate_hz(&self) -> f64;
    /// What is done to a window before the engine judges it.
    fn normalisation(&self) -> Normalisation {
        Normalisation::Window
    }
    /// Where the loop is best run when it starts with this engine; on the loop's own thread unless the engine knows better.
    fn host(&self) -> Host {
        Box::new(|work| work())
    }
}

/// Where a loop starts that begins with an engine on `device`. Only a CPU has threads to enter, and only it is kept for the whole run: a GPU
/// must be closed when its engine has failed.
pub fn host_on<D: Device>(device: &D) -> Host {
    match (device as &dyn Any).downcast_ref::<CpuDevice>().cloned() {
        Some(cpu) => Box::new(move |work| cpu.enter(work)),
        None => Box::new(|work| work()),
    }
}

/// Window and sample rate of a signal model.
///
/// # Errors
/// [`AgentError::Usage`] where it reads text.
pub(super) fn signal(artifact: &Artifact) -> Result<(usize, f64)> {
    match artifact.manifest().architecture.input {
        Input::Patches { window, sample_rate_hz, .. } => Ok((window, sample_rate_hz)),
        Input::Tokens { .. } => {
            let path = artifact.path().display();
            Err(AgentError::Usage(format!("{path} is a language model; give an artifact that classifies signals")))
        }
    }
}

/// An artifact on a device of ours. After its second window, of which a device may have recorded the pass, it allocates nothing.
pub struct NativeEngine<D: Device> {
    classifier: Classifier<D>,
    model_id: u64,
    sample_rate_hz: f64,
}

impl<D: Device> NativeEngine<D> {
    /// Opens `artifact` for one window at a time, within `budget`, and has it judge windows of nothing until it is as fast as it gets.
    ///
    /// # Errors
    /// [`AgentError::Usage`] where it is no classifier of signals, [`AgentError::Runtime`] where memory is refused.
    pub fn open(device: &D, budget: &Arc<Budget>, artifact: &Arc<Artifact>) -> Result<Self> {
        let (_, sample_rate_hz) = signal(artifact)?;
        let mut classifier = Classifier::open(device, budget, artifact, 1)?;
        // Whoever opens it waits, not the loop: a device that records a pass has done so after the second window.
        let window = vec![0.0; classifier.window()];
        for _ in 0..2 {
            classifier.classify(&window)?;
        }
        Ok(Self { classifier, model_id: artifact.id(), sample_rate_hz })
    }
}

impl<D: Device> Engine for NativeEngine<D>
where
    Classifier<D>: Send,
{
    fn classify(&mut self, window: &[f32]) -> Result<&[f32]> {
        Ok(self.classifier.classify(window)?)
    }

    fn model_id(&self) -> u64 {
        self.model_id
    }

    fn level(&self) -> u32 {
        0
    }

    fn classes(&self) -> &[String] {
        self.classifier.network().architecture.classes()
    }

    fn window(&self) -> usize {
        self.classifier.window()
    }

    fn sample_rate_hz(&self) -> f64 {
        self.sample_rate_hz
    }

    /// On a thread of the device: entering a pool from outside hands the work over through a queue, which takes time and, every few dozen
    /// windows, an allocation. While the loop waits for a window it keeps one of the device's threads, so a device that trains should be
    /// another one.
    fn host(&self) -> Host {
        host_on(&self.classifier.network().device)
    }
}
