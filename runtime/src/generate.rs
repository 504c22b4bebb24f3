//! A session that continues token sequences.

use std::sync::Arc;
use std::time::{Duration, Instant};

use espalier_kernels::{Device, Purpose, Reservation};
use espalier_models::architecture::{Input as InputKind, Output};
use espalier_models::artifact::Artifact;
use espalier_models::{Architecture, Part};

use crate::budget::Budget;
use crate::decoding::{Step, StepPosition, Steps};
use crate::error::{Result, RuntimeError};
use crate::forward::{Input, Pass};
use crate::kv_cache::KvCache;
use crate::mapped::load_resident;
use crate::network::Network;
use crate::sampling::{Sampler, Sampling};
use crate::workspace::{Keep, LogitRows, Workspace, WorkspaceSize};

/// A language model that is ready: network, KV cache and buffers. A device that can record a pass reads single tokens by a recording, which
/// it makes at the second token and whenever the keys outgrow it.
pub struct Generator<D: Device> {
    network: Network<D>,
    workspace: Workspace<D>,
    cache: KvCache<D>,
    steps: Steps<D>,
    logits: Vec<f32>,
    pass_bytes: u64,
    _mapped: Option<Reservation>,
    /// Logits and the sampler's buffers on the host.
    _choosing: Reservation,
}

/// A session that reads tokens and says what may come next.
pub trait Continues {
    /// Reads tokens and returns the logits `[vocabulary]` after the last one.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] where a token is unknown or there are more than the session's capacity; any other where the pass fails.
    fn read(&mut self, ids: &[u32]) -> Result<&[f32]>;

    /// Logits after a token.
    fn vocabulary(&self) -> usize;

    /// Tokens that one pass reads at most.
    fn block(&self) -> usize;

    /// Bytes of weights that one pass over the network reads.
    fn pass_bytes(&self) -> u64;

    /// Continues `prompt` by up to `max_tokens` tokens and hands each to `emit`, which ends the continuation by returning false.
    /// `uniform` yields numbers in [0, 1) and is only asked when the temperature is not 0.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] where the prompt is empty or the settings of the sampling are impossible; else as [`read`](Self::read).
    fn generate(
        &mut self,
        prompt: &[u32],
        max_tokens: usize,
        sampling: Sampling,
        uniform: &mut dyn FnMut() -> f64,
        emit: &mut dyn FnMut(u32) -> bool,
    ) -> Result<GenerationSpeed> {
        if prompt.is_empty() {
            return Err(RuntimeError::Input("the prompt has no tokens".into()));
        }
        let mut sampler = Sampler::new(sampling, self.vocabulary())?;
        sampler.observe(prompt);
        let mut speed = GenerationSpeed { prompt_tokens: prompt.len(), ..GenerationSpeed::default() };
        speed.prompt_passes = prompt.len().div_ceil(self.block());
        let started = Instant::now();
        let mut logits = self.read(prompt)?;
        speed.prompt_time = started.elapsed();
        let started = Instant::now();
        while speed.generated_tokens < max_tokens {
            let next = sampler.choose(logits, uniform)?;
            speed.generated_tokens += 1;
            if !emit(next) || speed.generated_tokens == max_tokens {
                break;
            }
            logits = self.read(&[next])?;
            speed.generated_passes += 1;
        }
        speed.generated_time = started.elapsed();
        Ok(speed)
    }
}

/// How long a continuation took, reading the prompt and writing apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GenerationSpeed {
    /// Tokens of the prompt, read in blocks.
    pub prompt_tokens: usize,
    /// Passes over the weights for the prompt.
    pub prompt_passes: usize,
    /// From the first token of the prompt to the first logits.
    pub prompt_time: Duration,
    /// Tokens that were generated; the first comes out of the prompt's last pass.
    pub generated_tokens: usize,
    /// Passes over the weights for generated tokens, one a token but the last.
    pub generated_passes: usize,
    /// From the first logits to the end.
    pub generated_time: Duration,
}

/// Prompt tokens that are read at once: bounds the activations of a long prompt.
const PROMPT_BLOCK: usize = 128;

/// An error where the artifact does not read tokens and say the next one.
pub(crate) fn check_language_model(artifact: &Artifact) -> Result<()> {
    let architecture = &artifact.manifest().architecture;
    match (&architecture.input, &architecture.output) {
        (InputKind::Tokens { .. }, Output::NextToken { .. }) => Ok(()),
        _ => {
            let path = artifact.path().display();
            Err(RuntimeError::Input(format!("{path} reads signals; it is no language model (see `espalier run`)")))
        }
    }
}

/// Bytes of weights that one pass reads: all but tables of which it looks up single rows.
pub(crate) fn pass_bytes(artifact: &Artifact) -> u64 {
    let manifest = artifact.manifest();
    let tied = matches!(manifest.architecture.output, Output::NextToken { tied: true, .. });
    let looked_up = |part| part == Part::PositionTable || (part == Part::TokenTable && !tied);
    manifest.tensors.iter().filter(|tensor| !looked_up(tensor.key.part)).map(|tensor| tensor.bytes).sum()
}

/// The workspace that continues sequences of up to `capacity` tokens.
pub(crate) fn generating_size(capacity: usize) -> WorkspaceSize {
    let sequence = capacity.clamp(1, PROMPT_BLOCK);
    WorkspaceSize { batch: 1, sequence, keep: Keep::Nothing, logits: LogitRows::Last, rank: 0, gates: false }
}

/// Bytes on the host that choosing a token takes: the logits and what a sampler keeps of the vocabulary.
pub(crate) fn choosing_bytes(architecture: &Architecture) -> u64 {
    (size_of::<f32>() + Sampler::BYTES_A_TOKEN) as u64 * architecture.output_width() as u64
}

impl<D: Device> Generator<D> {
    /// Opens a session for up to `capacity` tokens, prompt and continuation together.
    pub fn open(device: &D, budget: &Arc<Budget>, artifact: &Arc<Artifact>, capacity: usize) -> Result<Self> {
        check_language_model(artifact)?;
        let manifest = artifact.manifest();
        let architecture = &manifest.architecture;
        if capacity > architecture.context() {
            let context = architecture.context();
            return Err(RuntimeError::Input(format!(
                "{capacity} tokens are more than the model's context of {context}; shorten the prompt or --max-tokens"
            )));
        }
        let (network, mapped) = load_resident(device, budget, artifact)?;
        let workspace = Workspace::new(device, architecture, &manifest.shape(), generating_size(capacity))?;
        let choosing = Reservation::new(budget.clone(), Purpose::Activations, choosing_bytes(architecture))?;
        let (cache, steps) = (KvCache::new(&network, capacity)?, Steps::new(device, capacity)?);
        let logits = vec![0.0; architecture.output_width()];
        Ok(Self { network, workspace, cache, steps, logits, pass_bytes: pass_bytes(artifact), _mapped: mapped, _choosing: choosing })
    }

    /// Forgets all tokens, for another sequence.
    pub fn clear(&mut self) {
        self.cache.clear();
    }
}

/// Reads the token `id`.
fn read_one<D: Device>(
    network: &Network<D>,
    workspace: &mut Workspace<D>,
    cache: &mut KvCache<D>,
    step: &mut Step<D>,
    id: u32,
) -> Result<()> {
    let (pass, Step { most_keys, position, graph }) = (Pass::of(network), step);
    pass.place_token(workspace, id, cache.len(), position)?;
    let at = StepPosition { index: &*position, most_keys: *most_keys };
    network.device.replay(graph, || pass.forward_token(workspace, cache, at))?;
    cache.advance(1);
    Ok(())
}

impl<D: Device> Continues for Generator<D> {
    fn read(&mut self, ids: &[u32]) -> Result<&[f32]> {
        if self.cache.len() + ids.len() > self.cache.capacity() {
            let (used, capacity) = (self.cache.len(), self.cache.capacity());
            return Err(RuntimeError::Input(format!("{} more tokens after {used} do not fit the session's {capacity}", ids.len())));
        }
        let Self { network, workspace, cache, steps, .. } = self;
        let device = network.device.clone();
        device.enter(|| {
            if let ([id], Some(step)) = (ids, steps.for_keys(cache.len() + 1)) {
                return read_one(network, workspace, cache, step, *id);
            }
            for block in ids.chunks(workspace.size().sequence) {
                Pass::of(network).forward(workspace, Input::Tokens { ids: block, sequence: block.len() }, Some(&mut *cache))?;
            }
            Ok::<_, RuntimeError>(())
        })?;
        self.network.device.read(&self.workspace.logits, 0, &mut self.logits)?;
        Ok(&self.logits)
    }

    fn vocabulary(&self) -> usize {
        self.logits.len()
    }

    fn block(&self) -> usize {
        self.workspace.size().sequence
    }

    fn pass_bytes(&self) -> u64 {
        self.pass_bytes
    }
}
