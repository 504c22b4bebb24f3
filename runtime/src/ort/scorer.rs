//! How likely token sequences are, and what they mean to a language model, by a graph that carries keys and values.

use std::sync::Arc;

use espalier_kernels::{Purpose, Reservation};
use espalier_models::Artifact;
use espalier_models::checkpoint::OnnxOutput;

use super::carried::CarryingSession;
use super::library::OrtLibrary;
use super::model::check_ids;
use super::session::OrtOptions;
use crate::budget::Budget;
use crate::error::{Result, RuntimeError};
use crate::score::{Embeds, LOGIT_BLOCK_BYTES, Scores, check_embedding, check_first};

/// Tokens that one run reads at most: a graph makes the logits of each, so a diagnosis, which needs those of a label, reads few.
const READ_BLOCK: usize = 64;

/// A language model that ONNX Runtime runs to score sequences. It keeps the keys and values of the last one: what the next has in common
/// with it, from the first token on, is not computed again.
pub struct OrtScorer {
    session: CarryingSession,
    /// The tokens that the session carries.
    cached: Vec<u32>,
    /// Logits after the last token `[vocabulary]`.
    logits: Vec<f32>,
    _logits: Reservation,
}

impl OrtScorer {
    /// Opens a session for sequences of up to `capacity` tokens.
    ///
    /// # Errors
    /// As [`OrtModel::open`](super::OrtModel::open); [`RuntimeError::Input`] where the artifact is no language model.
    pub fn open(
        library: &OrtLibrary,
        budget: &Arc<Budget>,
        artifact: &Arc<Artifact>,
        capacity: usize,
        options: OrtOptions,
    ) -> Result<Self> {
        let width = artifact.manifest().architecture.output_width();
        let buffer = Reservation::new(budget.clone(), Purpose::Activations, 4 * width as u64)?;
        let session = CarryingSession::open(library, budget, artifact, (capacity, scoring_block(width)), OnnxOutput::Logits, options)?;
        Ok(Self { session, cached: Vec::with_capacity(capacity), logits: Vec::with_capacity(width), _logits: buffer })
    }

    /// Has the session carry what it has in common with `ids`, at most `most` tokens, and nothing else; how many those are.
    fn keep_common(&mut self, ids: &[u32], most: usize) -> Result<usize> {
        let common = self.cached.iter().zip(ids).take_while(|(cached, id)| cached == id).count().min(most);
        self.session.truncate(common)?;
        self.cached.truncate(common);
        Ok(common)
    }

    /// Reads `ids` behind what is carried; what the session makes of a failure is forgotten with the next sequence.
    fn read(&mut self, ids: &[u32], rows: impl FnMut(usize, &[f32])) -> Result<()> {
        let result = self.session.read(ids, rows);
        match &result {
            Ok(()) => self.cached.extend_from_slice(ids),
            Err(_) => {
                self.cached.clear();
                self.session.truncate(0)?;
            }
        }
        result
    }

    fn check(&self, ids: &[u32]) -> Result<()> {
        check_ids(ids, self.session.artifact().manifest().architecture.output_width())?;
        match ids.len() <= self.session.capacity() {
            true => Ok(()),
            false => {
                let (tokens, capacity) = (ids.len(), self.session.capacity());
                Err(RuntimeError::Input(format!("a sequence of {tokens} tokens does not fit the session's {capacity}")))
            }
        }
    }
}

impl Scores for OrtScorer {
    fn capacity(&self) -> usize {
        self.session.capacity()
    }

    fn loss(&mut self, ids: &[u32], first: usize) -> Result<f64> {
        check_first(ids, first)?;
        self.check(ids)?;
        let common = self.keep_common(ids, first - 1)?;
        let width = self.session.artifact().manifest().architecture.output_width();
        let mut loss = 0.0;
        self.read(&ids[common..ids.len() - 1], |start, rows| {
            // Position p says token p + 1; the rows before the first that is wanted have no target.
            let targets = &ids[common + start + 1..];
            let skipped = first.saturating_sub(common + start + 1);
            let wanted = rows.chunks_exact(width).zip(targets).skip(skipped);
            loss += wanted.map(|(row, &target)| log_sum(row) - f64::from(row[target as usize])).sum::<f64>();
        })?;
        Ok(loss)
    }

    fn next_losses(&mut self, ids: &[u32], candidates: &[u32], out: &mut Vec<f64>) -> Result<()> {
        let width = self.session.artifact().manifest().architecture.output_width();
        if ids.is_empty() {
            return Err(RuntimeError::Input("a token needs one before it to be scored".into()));
        }
        check_ids(candidates, width)?;
        self.check(ids)?;
        out.clear();
        let common = self.keep_common(ids, ids.len() - 1)?;
        let mut logits = std::mem::take(&mut self.logits);
        let read = self.read(&ids[common..], |_, rows| {
            logits.clear();
            logits.extend_from_slice(&rows[rows.len().saturating_sub(width)..]);
        });
        self.logits = logits;
        read?;
        let all = log_sum(&self.logits);
        out.extend(candidates.iter().map(|&id| all - f64::from(self.logits[id as usize])));
        Ok(())
    }
}

/// A language model that ONNX Runtime runs to embed sequences.
pub struct OrtEmbedder {
    session: CarryingSession,
}

impl OrtEmbedder {
    /// Opens a session for sequences of up to `capacity` tokens.
    ///
    /// # Errors
    /// As [`OrtScorer::open`].
    pub fn open(
        library: &OrtLibrary,
        budget: &Arc<Budget>,
        artifact: &Arc<Artifact>,
        capacity: usize,
        options: OrtOptions,
    ) -> Result<Self> {
        Ok(Self { session: CarryingSession::open(library, budget, artifact, (capacity, READ_BLOCK), OnnxOutput::States, options)? })
    }
}

impl Embeds for OrtEmbedder {
    fn width(&self) -> usize {
        self.session.artifact().manifest().architecture.d_model
    }

    fn mean_state(&mut self, ids: &[u32], out: &mut [f32]) -> Result<()> {
        let d = self.width();
        check_embedding(ids, out, d)?;
        self.session.truncate(0)?;
        let mut sums = vec![0.0_f64; d];
        self.session.read(ids, |_, rows| {
            for row in rows.chunks_exact(d) {
                sums.iter_mut().zip(row).for_each(|(sum, state)| *sum += f64::from(*state));
            }
        })?;
        out.iter_mut().zip(&sums).for_each(|(out, sum)| *out = (sum / ids.len() as f64) as f32);
        Ok(())
    }
}

/// Tokens of a run whose logits take no more than the native engine holds at once.
pub(super) fn scoring_block(width: usize) -> usize {
    (LOGIT_BLOCK_BYTES / 4 / width.max(1)).clamp(1, READ_BLOCK)
}

/// `ln Σ exp(x)`.
fn log_sum(row: &[f32]) -> f64 {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f64::from(largest) + row.iter().map(|x| f64::from(x - largest).exp()).sum::<f64>().ln()
}
