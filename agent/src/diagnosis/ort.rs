//! A signal model that ONNX Runtime runs.

use std::sync::Arc;

use espalier_models::Artifact;
use espalier_runtime::{Budget, OrtModel};

use super::Engine;
use super::engine::signal;
use crate::engine::Ort;
use crate::error::Result;

/// An artifact's exported graph in ONNX Runtime, one window at a time. ONNX Runtime allocates small blocks at every window.
pub struct OrtEngine {
    model: OrtModel,
    window: usize,
    sample_rate_hz: f64,
}

impl OrtEngine {
    /// Opens `artifact` for one window at a time, within `budget`; a first window has been run.
    ///
    /// # Errors
    /// [`AgentError::Usage`](crate::error::AgentError::Usage) where it is no classifier of signals, else what [`OrtModel::open`] says.
    pub fn open(ort: Ort, budget: &Arc<Budget>, artifact: &Arc<Artifact>) -> Result<Self> {
        let (window, sample_rate_hz) = signal(artifact)?;
        let model = OrtModel::open(ort.library, budget, artifact, (1, artifact.manifest().architecture.patches()), ort.options)?;
        Ok(Self { model, window, sample_rate_hz })
    }
}

impl Engine for OrtEngine {
    fn classify(&mut self, window: &[f32]) -> Result<&[f32]> {
        Ok(self.model.classify(window)?)
    }

    fn model_id(&self) -> u64 {
        self.model.artifact().id()
    }

    fn level(&self) -> u32 {
        0
    }

    fn classes(&self) -> &[String] {
        self.model.artifact().manifest().architecture.classes()
    }

    fn window(&self) -> usize {
        self.window
    }

    fn sample_rate_hz(&self) -> f64 {
        self.sample_rate_hz
    }
}
