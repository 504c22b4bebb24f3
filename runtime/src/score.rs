//! A session that says how likely token sequences are, and what they mean to the model.

use std::sync::Arc;

use espalier_kernels::{Device, Purpose, Reservation};
use espalier_models::Manifest;
use espalier_models::artifact::Artifact;

use crate::budget::Budget;
use crate::error::{Result, RuntimeError};
use crate::forward::{Input, Pass};
use crate::generate::check_language_model;
use crate::kv_cache::KvCache;
use crate::mapped::load_resident;
use crate::network::Network;
use crate::workspace::{Keep, LogitRows, Workspace, WorkspaceSize};

/// Tokens that are read at once: enough rows for the matrix products; a longer sequence goes on from the KV cache, so that activations
/// do not grow with it.
const READ_BLOCK: usize = 256;

/// Bytes of the logits that are held at once: 32 rows of a vocabulary of 262 144, where a whole window of 2048 would take 2 GiB. Above
/// this, more rows no longer make the product with the output matrix faster.
pub(crate) const LOGIT_BLOCK_BYTES: usize = 32 << 20;

/// Rows of logits that a diagnosis by text holds: a label has a token or a few, and a node must not book what it does not use.
const LABEL_ROWS: usize = 8;

/// A session that says how likely token sequences are.
pub trait Scores {
    /// The most tokens of a sequence.
    fn capacity(&self) -> usize;

    /// `−Σ ln p(ids[t] | ids[..t])` over `t ≥ first`, in nats. The first token has nothing before it, so `first` is at least 1.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] where nothing is to be scored, a token is unknown or there are more than the session's capacity; any other
    /// where the pass fails.
    fn loss(&mut self, ids: &[u32], first: usize) -> Result<f64>;

    /// `−ln p(candidate | ids)` of each of `candidates` as the token after `ids`, in nats, into `out`.
    ///
    /// # Errors
    /// As [`loss`](Self::loss).
    fn next_losses(&mut self, ids: &[u32], candidates: &[u32], out: &mut Vec<f64>) -> Result<()>;
}

/// A session that says what token sequences mean to the model.
pub trait Embeds {
    /// Numbers of an embedding.
    fn width(&self) -> usize;

    /// The mean over all tokens of the final hidden states, after the final norm, into `out [width]`.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] where there are no tokens, one is unknown or there are more than the session's capacity, or `out` is of
    /// another length; any other where the pass fails.
    fn mean_state(&mut self, ids: &[u32], out: &mut [f32]) -> Result<()>;
}

/// An error where no token of `ids` from `first` on has one before it.
pub(crate) fn check_first(ids: &[u32], first: usize) -> Result<()> {
    if first > 0 && first < ids.len() {
        return Ok(());
    }
    let tokens = ids.len();
    Err(RuntimeError::Input(format!("tokens {first} to {tokens} of a sequence cannot be scored: each needs one before it")))
}

/// An error where `ids` have no embedding of `width` numbers in `out`.
pub(crate) fn check_embedding(ids: &[u32], out: &[f32], width: usize) -> Result<()> {
    if out.len() != width {
        return Err(RuntimeError::Input(format!("an embedding has {width} numbers, but room for {} was given", out.len())));
    }
    match ids.is_empty() {
        true => Err(RuntimeError::Input("a text without tokens has no embedding".into())),
        false => Ok(()),
    }
}

/// A language model that scores sequences. It keeps the keys and values of the last one: what the next has in common with it, from the
/// first token on, is not computed again.
pub struct Scorer<D: Device> {
    network: Network<D>,
    workspace: Workspace<D>,
    cache: KvCache<D>,
    /// The tokens in the cache.
    cached: Vec<u32>,
    targets: D::Indices,
    logit_rows: usize,
    tokens_read: u64,
    _mapped: Option<Reservation>,
}

impl<D: Device> Scorer<D> {
    /// Opens a session for sequences of up to `capacity` tokens.
    pub fn open(device: &D, budget: &Arc<Budget>, artifact: &Arc<Artifact>, capacity: usize) -> Result<Self> {
        check_language_model(artifact)?;
        let manifest = artifact.manifest();
        let architecture = &manifest.architecture;
        let context = architecture.context();
        if capacity > context {
            return Err(RuntimeError::Input(format!(
                "a sequence of {capacity} tokens is more than the model's context of {context}; give shorter sequences"
            )));
        }
        let (network, mapped) = load_resident(device, budget, artifact)?;
        let size = scoring_size(manifest, capacity);
        let logit_rows = logit_rows(manifest, size.sequence);
        Ok(Self {
            workspace: Workspace::new(device, architecture, &manifest.shape(), size)?,
            cache: KvCache::new(&network, capacity)?,
            cached: Vec::with_capacity(capacity),
            targets: device.for_purpose(Purpose::Activations).indices(&vec![0; logit_rows])?,
            logit_rows,
            tokens_read: 0,
            network,
            _mapped: mapped,
        })
    }

    /// Tokens that went through the network so far; what was in the cache is not counted again.
    pub fn tokens_read(&self) -> u64 {
        self.tokens_read
    }

    fn loss_inside(&mut self, ids: &[u32], first: usize) -> Result<f64> {
        let common = self.keep_common(ids, first - 1);
        let mut loss = 0.0;
        let mut start = common;
        for block in ids[common..ids.len() - 1].chunks(self.workspace.size().sequence) {
            self.read_block(block)?;
            // Position p says token p + 1; the rows before the first that is wanted have no target.
            let mut row = (first - 1).saturating_sub(start).min(block.len());
            while row < block.len() {
                let rows = self.logit_rows.min(block.len() - row);
                let targets = &ids[start + row + 1..][..rows];
                loss += self.block_loss(row, targets)?;
                row += rows;
            }
            start += block.len();
        }
        Ok(loss)
    }

    fn next_losses_inside(&mut self, ids: &[u32], candidates: &[u32], out: &mut Vec<f64>) -> Result<()> {
        let Some(&first) = candidates.first() else { return Ok(()) };
        let common = self.keep_common(ids, ids.len() - 1);
        let mut row = 0;
        for block in ids[common..].chunks(self.workspace.size().sequence) {
            self.read_block(block)?;
            row = block.len() - 1;
        }
        // The device normalises over the vocabulary for the first candidate; the others differ from it by their logits.
        let loss = self.block_loss(row, &[first])?;
        let logit = |id: u32| {
            let mut one = [0.0];
            self.network.device.read(&self.workspace.logits, id as usize, &mut one).map(|()| f64::from(one[0]))
        };
        let base = loss + logit(first)?;
        for id in candidates {
            out.push(base - logit(*id)?);
        }
        Ok(())
    }

    /// Shortens the cache to what it has in common with `ids`, at most `most` tokens; how many those are.
    fn keep_common(&mut self, ids: &[u32], most: usize) -> usize {
        let common = self.cached.iter().zip(ids).take_while(|(cached, id)| cached == id).count().min(most);
        self.cache.truncate(common);
        self.cached.truncate(common);
        common
    }

    /// The network that is scored with.
    pub fn network(&self) -> &Network<D> {
        &self.network
    }

    fn forget(&mut self) {
        self.cache.clear();
        self.cached.clear();
    }

    fn check_length(&self, ids: &[u32]) -> Result<()> {
        if ids.len() <= self.capacity() {
            return Ok(());
        }
        Err(RuntimeError::Input(format!("a sequence of {} tokens does not fit the session's {}", ids.len(), self.capacity())))
    }

    /// Reads a block of tokens after those that are cached; the normed states are then in the workspace.
    fn read_block(&mut self, block: &[u32]) -> Result<()> {
        let Self { network, workspace, cache, .. } = self;
        Pass::of(network).forward(workspace, Input::Tokens { ids: block, sequence: block.len() }, Some(cache))?;
        self.cached.extend_from_slice(block);
        self.tokens_read += block.len() as u64;
        Ok(())
    }

    /// The loss of the rows from `row` on, one a target.
    fn block_loss(&mut self, row: usize, targets: &[u32]) -> Result<f64> {
        let vocabulary = self.network.architecture.output_width();
        if let Some(id) = targets.iter().find(|id| **id as usize >= vocabulary) {
            return Err(RuntimeError::Input(format!("token {id} is not in the vocabulary of {vocabulary}")));
        }
        let Self { network, workspace, .. } = self;
        Pass::of(network).logit_block(workspace, row, targets.len())?;
        network.device.write_indices(&mut self.targets, targets)?;
        let mean = network.device.cross_entropy(None, &workspace.logits, &self.targets, targets.len(), vocabulary)?;
        Ok(mean * targets.len() as f64)
    }
}

impl<D: Device> Scores for Scorer<D> {
    fn capacity(&self) -> usize {
        self.cache.capacity()
    }

    fn loss(&mut self, ids: &[u32], first: usize) -> Result<f64> {
        check_first(ids, first)?;
        self.check_length(ids)?;
        let device = self.network.device.clone();
        let result = device.enter(|| self.loss_inside(ids, first));
        if result.is_err() {
            self.forget();
        }
        result
    }

    fn next_losses(&mut self, ids: &[u32], candidates: &[u32], out: &mut Vec<f64>) -> Result<()> {
        let vocabulary = self.network.architecture.output_width();
        if ids.is_empty() {
            return Err(RuntimeError::Input("a token needs one before it to be scored".into()));
        }
        if let Some(id) = candidates.iter().find(|id| **id as usize >= vocabulary) {
            return Err(RuntimeError::Input(format!("token {id} is not in the vocabulary of {vocabulary}")));
        }
        self.check_length(ids)?;
        out.clear();
        let device = self.network.device.clone();
        let result = device.enter(|| self.next_losses_inside(ids, candidates, out));
        if result.is_err() {
            self.forget();
        }
        result
    }
}

impl<D: Device> Embeds for Scorer<D> {
    fn width(&self) -> usize {
        self.network.architecture.d_model
    }

    fn mean_state(&mut self, ids: &[u32], out: &mut [f32]) -> Result<()> {
        let d = self.network.architecture.d_model;
        check_embedding(ids, out, d)?;
        self.check_length(ids)?;
        self.forget();
        let mut sums = vec![0.0_f64; d];
        let device = self.network.device.clone();
        for block in ids.chunks(self.workspace.size().sequence) {
            device.enter(|| {
                self.read_block(block)?;
                let Workspace { pooled, normed, .. } = &mut self.workspace;
                Ok::<_, RuntimeError>(device.mean_pool(pooled, normed, 1, block.len(), d)?)
            })?;
            device.read(&self.workspace.pooled, 0, out)?;
            sums.iter_mut().zip(&*out).for_each(|(sum, mean)| *sum += f64::from(*mean) * block.len() as f64);
        }
        out.iter_mut().zip(&sums).for_each(|(out, sum)| *out = (sum / ids.len() as f64) as f32);
        Ok(())
    }
}

/// The workspace that scores sequences of `capacity` tokens.
pub(crate) fn scoring_size(manifest: &Manifest, capacity: usize) -> WorkspaceSize {
    let sequence = capacity.clamp(1, READ_BLOCK);
    let logits = LogitRows::Blocks(logit_rows(manifest, sequence));
    WorkspaceSize { batch: 1, sequence, keep: Keep::Nothing, logits, rank: 0, gates: false }
}

/// Rows of logits that are held at once.
fn logit_rows(manifest: &Manifest, sequence: usize) -> usize {
    let most = if manifest.diagnosis.is_some() { LABEL_ROWS } else { sequence };
    (LOGIT_BLOCK_BYTES / 4 / manifest.architecture.output_width().max(1)).clamp(1, sequence.min(most))
}
