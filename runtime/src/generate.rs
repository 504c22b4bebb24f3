//! A session that continues token sequences.

use std::sync::Arc;

use espalier_kernels::{Device, Purpose, Reservation};
use espalier_models::artifact::Artifact;

use crate::budget::Budget;
use crate::error::{Result, RuntimeError};
use crate::forward::{Input, Pass};
use crate::kv_cache::KvCache;
use crate::network::Network;
use crate::pages::Residency;
use crate::workspace::{Keep, LogitRows, Workspace, WorkspaceSize};

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0: the most likely token; else logits are divided by it before sampling.
    pub temperature: f32,
}

/// A language model that is ready: network, KV cache and buffers.
pub struct Generator<D: Device> {
    network: Network<D>,
    workspace: Workspace<D>,
    cache: KvCache<D>,
    logits: Vec<f32>,
    _mapped: Reservation,
}

/// Prompt tokens that are read at once: bounds the activations of a long prompt.
const PROMPT_BLOCK: usize = 128;

impl<D: Device> Generator<D> {
    /// Opens a session for up to `capacity` tokens, prompt and continuation together.
    pub fn open(device: &D, budget: &Arc<Budget>, artifact: &Arc<Artifact>, capacity: usize) -> Result<Self> {
        let manifest = artifact.manifest();
        let architecture = &manifest.architecture;
        if !matches!(architecture.input, espalier_models::architecture::Input::Tokens { .. }) {
            let path = artifact.path().display();
            return Err(RuntimeError::Input(format!("{path} reads signals; it does not generate text (see `espalier run`)")));
        }
        if capacity > architecture.context() {
            let context = architecture.context();
            return Err(RuntimeError::Input(format!(
                "{capacity} tokens are more than the model's context of {context}; shorten the prompt or --max-tokens"
            )));
        }
        let mapped = Reservation::new(budget.clone(), Purpose::Weights, artifact.file_bytes())?;
        let network = Network::load(device.for_purpose(Purpose::Weights), artifact, Residency::Resident)?;
        let size = WorkspaceSize {
            batch: 1,
            sequence: capacity.clamp(1, PROMPT_BLOCK),
            keep: Keep::Nothing,
            logits: LogitRows::Last,
            rank: 0,
            gates: false,
        };
        let workspace = Workspace::new(device, architecture, &manifest.shape(), size)?;
        let cache = KvCache::new(&network, capacity)?;
        let logits = vec![0.0; architecture.output_width()];
        Ok(Self { network, workspace, cache, logits, _mapped: mapped })
    }

    /// Reads tokens and returns the logits `[vocabulary]` after the last one.
    pub fn read(&mut self, ids: &[u32]) -> Result<&[f32]> {
        if self.cache.len() + ids.len() > self.cache.capacity() {
            let (used, capacity) = (self.cache.len(), self.cache.capacity());
            return Err(RuntimeError::Input(format!("{} more tokens after {used} do not fit the session's {capacity}", ids.len())));
        }
        let Self { network, workspace, cache, .. } = self;
        let device = network.device.clone();
        device.enter(|| {
            for block in ids.chunks(workspace.size().sequence) {
                Pass::of(network).forward(workspace, Input::Tokens { ids: block, sequence: block.len() }, Some(&mut *cache))?;
            }
            Ok::<_, RuntimeError>(())
        })?;
        self.network.device.read(&self.workspace.logits, 0, &mut self.logits)?;
        Ok(&self.logits)
    }

    /// Continues `prompt` by up to `max_tokens` tokens and hands each to `emit`, which ends the continuation by returning false.
    /// `uniform` yields numbers in [0, 1) and is only asked when the temperature is not 0.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        max_tokens: usize,
        sampling: Sampling,
        uniform: &mut dyn FnMut() -> f64,
        emit: &mut dyn FnMut(u32) -> bool,
    ) -> Result<()> {
        if prompt.is_empty() {
            return Err(RuntimeError::Input("the prompt has no tokens".into()));
        }
        let mut next = sample(self.read(prompt)?, sampling, uniform);
        for generated in 1..=max_tokens {
            if !emit(next) || generated == max_tokens {
                break;
            }
            next = sample(self.read(&[next])?, sampling, uniform);
        }
        Ok(())
    }
}

/// Chooses a token: the first of the largest logits, or by its probability at a temperature.
fn sample(logits: &[f32], sampling: Sampling, uniform: &mut dyn FnMut() -> f64) -> u32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let greedy = logits.iter().position(|logit| *logit == largest).unwrap_or(0) as u32;
    if sampling.temperature <= 0.0 {
        return greedy;
    }
    let weight = |logit: f32| (f64::from(logit - largest) / f64::from(sampling.temperature)).exp();
    let mut left = uniform() * logits.iter().map(|logit| weight(*logit)).sum::<f64>();
    for (id, logit) in logits.iter().enumerate() {
        left -= weight(*logit);
        if left < 0.0 {
            return id as u32;
        }
    }
    greedy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling_follows_the_probabilities() {
        let logits = [0.0, 2.0_f32.ln(), f32::NEG_INFINITY];
        let at = |point: f64, temperature: f32| sample(&logits, Sampling { temperature }, &mut || point);
        assert_eq!(at(0.99, 0.0), 1);
        assert_eq!(at(0.32, 1.0), 0);
        assert_eq!(at(0.34, 1.0), 1);
        assert_eq!(at(0.999, 1.0), 1);
        assert_eq!(at(0.2, 0.5), 1, "a temperature below 1 sharpens: 1/5 against 4/5");
    }
}
