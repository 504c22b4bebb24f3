//! What judges a window by text.

use std::sync::Arc;

use espalier_kernels::Device;
use espalier_models::Artifact;
use espalier_models::manifest::TextDiagnosis;
use espalier_runtime::{Budget, Scorer};

use super::prompts::Prompts;
use crate::diagnosis::engine::{Engine, Host, host_on};
use crate::error::{AgentError, Result};

/// A language model that judges windows: the class whose label is likeliest after the window's prompt.
pub struct TextEngine<D: Device> {
    scorer: Scorer<D>,
    prompts: Prompts,
    model_id: u64,
    /// The labels' first tokens.
    firsts: Vec<u32>,
    losses: Vec<f64>,
    probabilities: Vec<f32>,
}

impl<D: Device> TextEngine<D> {
    /// Opens `artifact`, which says how it makes its diagnosis.
    pub fn open(device: &D, budget: &Arc<Budget>, artifact: &Arc<Artifact>) -> Result<Self> {
        let missing = || {
            let path = artifact.path().display();
            AgentError::Usage(format!(
                "{path} is a language model that was not trained to make a diagnosis; train it with `espalier train --lora {path} --data DIR`"
            ))
        };
        let diagnosis = artifact.manifest().diagnosis.clone().ok_or_else(missing)?;
        Self::with(device, budget, artifact, diagnosis)
    }

    /// Opens a language model to make this diagnosis, whether it was trained to or not.
    pub fn with(device: &D, budget: &Arc<Budget>, artifact: &Arc<Artifact>, diagnosis: TextDiagnosis) -> Result<Self> {
        let prompts = Prompts::open(budget, artifact, diagnosis)?;
        let scorer = Scorer::open(device, budget, artifact, prompts.token_limit())?;
        let firsts = prompts.labels().iter().filter_map(|label| label.first().copied()).collect();
        Ok(Self { scorer, prompts, model_id: artifact.id(), firsts, losses: Vec::new(), probabilities: Vec::new() })
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

impl<D: Device> Engine for TextEngine<D> {
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
        host_on(&self.scorer.network().device)
    }
}
