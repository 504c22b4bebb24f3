//! What judges a window by text.

use std::any::Any;
use std::sync::Arc;

use espalier_kernels::{CpuDevice, Device};
use espalier_models::Artifact;
use espalier_models::manifest::TextDiagnosis;
#[cfg(feature = "ort")]
use espalier_runtime::OrtScorer;
use espalier_runtime::{Budget, Scorer, Scores};

use super::prompts::Prompts;
use crate::diagnosis::engine::{Engine, Host, host_on};
#[cfg(feature = "ort")]
use crate::engine::Ort;
use crate::error::{AgentError, Result};

/// A language model that judges windows: the class whose label is likeliest after the window's prompt.
pub struct TextEngine {
    scorer: Box<dyn Scores + Send>,
    /// Where the loop is best run, where the scorer computes on the CPU.
    cpu: Option<CpuDevice>,
    prompts: Prompts,
    model_id: u64,
    /// The labels' first tokens.
    firsts: Vec<u32>,
    losses: Vec<f64>,
    probabilities: Vec<f32>,
}

impl TextEngine {
    /// Opens a language model on a device of ours: to make the diagnosis that is asked, whether it was trained to or not, or the one that it
    /// was trained to make.
    ///
    /// # Errors
    /// [`AgentError::Usage`] where none is asked of a model that was not trained to make one, or it reads no prompt; what
    /// [`Scorer::open`] says.
    pub fn open<D: Device>(device: &D, budget: &Arc<Budget>, artifact: &Arc<Artifact>, asked: Option<TextDiagnosis>) -> Result<Self> {
        let cpu = (device as &dyn Any).downcast_ref::<CpuDevice>().cloned();
        let scorer = |capacity| Ok(Box::new(Scorer::open(device, budget, artifact, capacity)?) as _);
        Self::with(budget, artifact, asked, cpu, scorer)
    }

    /// As [`open`](Self::open), in ONNX Runtime.
    #[cfg(feature = "ort")]
    pub fn open_in_ort(ort: Ort, budget: &Arc<Budget>, artifact: &Arc<Artifact>, asked: Option<TextDiagnosis>) -> Result<Self> {
        let scorer = |capacity| Ok(Box::new(OrtScorer::open(ort.library, budget, artifact, capacity, ort.options)?) as _);
        Self::with(budget, artifact, asked, None, scorer)
    }

    fn with(
        budget: &Arc<Budget>,
        artifact: &Arc<Artifact>,
        asked: Option<TextDiagnosis>,
        cpu: Option<CpuDevice>,
        scorer: impl FnOnce(usize) -> Result<Box<dyn Scores + Send>>,
    ) -> Result<Self> {
        let missing = || {
            let path = artifact.path().display();
            AgentError::Usage(format!(
                "{path} is a language model that was not trained to make a diagnosis; train it with `espalier train --lora {path} --data DIR`"
            ))
        };
        let diagnosis = asked.or_else(|| artifact.manifest().diagnosis.clone()).ok_or_else(missing)?;
        let prompts = Prompts::open(budget, artifact, diagnosis)?;
        let scorer = scorer(prompts.token_limit())?;
        let firsts = prompts.labels().iter().filter_map(|label| label.first().copied()).collect();
        Ok(Self { scorer, cpu, prompts, model_id: artifact.id(), firsts, losses: Vec::new(), probabilities: Vec::new() })
    }

    /// Probabilities `[classes]` of a normalised window: the likelihoods of the labels, divided by their sum.
    pub fn judge(&mut self, window: &[f32]) -> Result<&[f32]> {
        let mut ids = self.prompts.prompt(window)?;
        let (before, labels) = (ids.len(), self.prompts.labels());
        self.scorer.next_losses(&ids, &self.firsts, &mut self.losses)?;
        for (label, loss) in labels.iter().zip(&mut self.losses).filter(|(label, _)| label.len() > 1) {
            ids.truncate(before);
            ids.extend_from_slice(label);
            *loss += self.scorer.loss(&ids, before + 1)?;
        }
        let least = self.losses.iter().copied().fold(f64::INFINITY, f64::min);
        let sum: f64 = self.losses.iter().map(|loss| (least - loss).exp()).sum();
        self.probabilities.clear();
        self.probabilities.extend(self.losses.iter().map(|loss| ((least - loss).exp() / sum) as f32));
        Ok(&self.probabilities)
    }
}

impl Engine for TextEngine {
    fn classify(&mut self, window: &[f32]) -> Result<&[f32]> {
        self.judge(window)
    }

    fn model_id(&self) -> u64 {
        self.model_id
    }

    fn level(&self) -> u32 {
        0
    }

    fn classes(&self) -> &[String] {
        &self.prompts.diagnosis().classes
    }

    fn window(&self) -> usize {
        self.prompts.diagnosis().window
    }

    fn sample_rate_hz(&self) -> f64 {
        self.prompts.diagnosis().sample_rate_hz
    }

    /// On a thread of the device, as the signal way does.
    fn host(&self) -> Host {
        self.cpu.as_ref().map_or_else(|| -> Host { Box::new(|work| work()) }, host_on)
    }
}
