//! Continues token sequences with a graph that carries keys and values.

use std::sync::Arc;

use espalier_kernels::{Purpose, Reservation};
use espalier_models::Artifact;
use espalier_models::checkpoint::OnnxOutput;

use super::carried::CarryingSession;
use super::library::OrtLibrary;
use super::session::OrtOptions;
use crate::budget::Budget;
use crate::error::Result;
use crate::generate::{Continues, check_language_model, choosing_bytes, pass_bytes};

/// Prompt tokens that are read at once: the graph makes logits of each.
const PROMPT_BLOCK: usize = 32;

/// A language model that ONNX Runtime runs, and the keys and values of what it has read.
pub struct OrtGenerator {
    session: CarryingSession,
    /// Logits after the last token `[vocabulary]`.
    logits: Vec<f32>,
    _choosing: Reservation,
}

impl OrtGenerator {
    /// Opens a session for up to `capacity` tokens, prompt and continuation together.
    ///
    /// # Errors
    /// As [`OrtModel::open`](super::OrtModel::open); [`RuntimeError::Input`](crate::RuntimeError::Input) where the artifact is no language
    /// model.
    pub fn open(
        library: &OrtLibrary,
        budget: &Arc<Budget>,
        artifact: &Arc<Artifact>,
        capacity: usize,
        options: OrtOptions,
    ) -> Result<Self> {
        check_language_model(artifact)?;
        let architecture = &artifact.manifest().architecture;
        let choosing = Reservation::new(budget.clone(), Purpose::Activations, choosing_bytes(architecture))?;
        let session = CarryingSession::open(library, budget, artifact, (capacity, PROMPT_BLOCK), OnnxOutput::Logits, options)?;
        Ok(Self { session, logits: Vec::with_capacity(architecture.output_width()), _choosing: choosing })
    }
}

impl Continues for OrtGenerator {
    fn read(&mut self, ids: &[u32]) -> Result<&[f32]> {
        let Self { session, logits, .. } = self;
        let width = session.artifact().manifest().architecture.output_width();
        session.read(ids, |_, rows| {
            logits.clear();
            logits.extend_from_slice(&rows[rows.len().saturating_sub(width)..]);
        })?;
        Ok(logits)
    }

    fn clear(&mut self) -> Result<()> {
        self.session.truncate(0)
    }

    fn vocabulary(&self) -> usize {
        self.session.artifact().manifest().architecture.output_width()
    }

    fn block(&self) -> usize {
        self.session.block()
    }

    fn pass_bytes(&self) -> u64 {
        pass_bytes(self.session.artifact())
    }
}
