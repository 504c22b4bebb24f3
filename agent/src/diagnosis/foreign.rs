//! A graph of another program, in ONNX Runtime.

use std::sync::Arc;

use espalier_models::foreign::{ForeignModel, Normalisation, SignalInput};
use espalier_runtime::{Budget, OrtForeign};

use super::Engine;
use crate::engine::Ort;
use crate::error::{AgentError, Result};

/// A foreign classifier of signals, one window at a time. ONNX Runtime allocates small blocks at every window.
pub struct ForeignEngine {
    runner: OrtForeign,
    model_id: u64,
    window: usize,
    sample_rate_hz: f64,
    normalisation: Normalisation,
}

impl ForeignEngine {
    /// Opens `model` within `budget`; a first window has been run.
    ///
    /// # Errors
    /// [`AgentError::Usage`] where it is no classifier of signals, else what [`OrtForeign::open`] says.
    pub fn open(ort: Ort, budget: &Arc<Budget>, model: &Arc<ForeignModel>) -> Result<Self> {
        let signal = signal(model)?;
        let (window, sample_rate_hz, normalisation) = (signal.window, signal.sample_rate_hz, signal.normalisation);
        // It reads every page of the graph, which opening it gives back where they are copied.
        let model_id = model.id();
        let runner = OrtForeign::open(ort.library, budget, model.clone(), 1, ort.options)?;
        Ok(Self { runner, model_id, window, sample_rate_hz, normalisation })
    }
}

/// What a foreign classifier of signals reads.
///
/// # Errors
/// [`AgentError::Usage`] where it reads text.
pub fn signal(model: &ForeignModel) -> Result<&SignalInput> {
    model.sidecar.signal().ok_or_else(|| {
        let path = model.graph.path().display();
        AgentError::Usage(format!("{path} is an encoder of text by its sidecar; it has no verdict on signals (see `espalier embed`)"))
    })
}

impl Engine for ForeignEngine {
    fn classify(&mut self, window: &[f32]) -> Result<&[f32]> {
        Ok(self.runner.classify(window)?)
    }

    fn model_id(&self) -> u64 {
        self.model_id
    }

    fn level(&self) -> u32 {
        0
    }

    fn classes(&self) -> &[String] {
        self.runner.model().classes()
    }

    fn window(&self) -> usize {
        self.window
    }

    fn sample_rate_hz(&self) -> f64 {
        self.sample_rate_hz
    }

    fn normalisation(&self) -> Normalisation {
        self.normalisation
    }
}
