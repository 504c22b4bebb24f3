//! Logits and class probabilities of an artifact's graph.

use std::borrow::Cow;
use std::sync::Arc;

use espalier_kernels::{Purpose, Reservation};
use espalier_models::architecture::{Architecture, Input as InputKind, Output};
use espalier_models::checkpoint::OnnxOutput;
use espalier_models::{Artifact, ModelShape};
use ort::value::TensorRef;

use super::library::OrtLibrary;
use super::session::{Inputs, OrtOptions, OrtSession, failed};
use crate::budget::Budget;
use crate::error::{Result, RuntimeError};
use crate::forward::Input;

/// An artifact that ONNX Runtime runs: windows to class probabilities, or tokens to logits.
pub struct OrtModel {
    session: OrtSession,
    /// Sequences, and tokens or patches of one, that were booked.
    batch: usize,
    sequence: usize,
    /// `[batch, patches, patch]`; empty for a model of tokens.
    patches: Vec<f32>,
    /// `[batch, sequence]`; empty for a model of patches.
    ids: Vec<i64>,
    /// Logits or probabilities of the last run.
    out: Vec<f32>,
    _buffers: Reservation,
}

impl OrtModel {
    /// Opens a session for up to `batch` sequences of up to `sequence` tokens; a window has its own number of patches. Within `budget`: the
    /// artifact's mapping, what ONNX Runtime copies, and what the largest run takes, which is run once.
    ///
    /// # Errors
    /// [`RuntimeError::Kernel`] where memory is refused, [`RuntimeError::Model`] where the artifact has no graph or is damaged,
    /// [`RuntimeError::Ort`] where ONNX Runtime refuses the graph, and [`RuntimeError::Input`] where `sequence` is beyond the context.
    pub fn open(
        library: &OrtLibrary,
        budget: &Arc<Budget>,
        artifact: &Arc<Artifact>,
        (batch, sequence): (usize, usize),
        options: OrtOptions,
    ) -> Result<Self> {
        let architecture = &artifact.manifest().architecture;
        let (sequence, samples, ids) = match architecture.input {
            InputKind::Patches { patch, .. } => (architecture.patches(), batch * architecture.patches() * patch, 0),
            InputKind::Tokens { .. } => (sequence, 0, batch * sequence),
        };
        check_context(architecture, sequence)?;
        let rows = if matches!(architecture.output, Output::Classes { .. }) { batch } else { batch * sequence };
        let outputs = rows * architecture.output_width();
        let bytes = 4 * (samples + outputs) as u64 + 8 * ids as u64;
        let buffers = Reservation::new(budget.clone(), Purpose::Activations, bytes)?;
        let most = run_bytes(architecture, &artifact.manifest().shape(), batch, sequence, 0);
        let mut session = OrtSession::open(library, budget, artifact, (false, OnnxOutput::Logits), most, options)?;
        let (patches, ids, mut out) = (vec![0.0; samples], vec![0; ids], Vec::with_capacity(outputs));
        session.try_out(most, |session| run(session, (batch, sequence), &patches, &ids, &mut out))?;
        Ok(Self { session, batch, sequence, patches, ids, out, _buffers: buffers })
    }

    /// The artifact that is run.
    pub fn artifact(&self) -> &Arc<Artifact> {
        self.session.artifact()
    }

    /// Logits of every row: `[batch, sequence, vocabulary]` of tokens, `[batch, classes]` of normalised windows.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] where the input does not fit the model or what was booked, [`RuntimeError::Ort`] where the graph fails.
    pub fn logits(&mut self, input: Input<'_>) -> Result<&[f32]> {
        let extent = self.take(input)?;
        run(&mut self.session, extent, &self.patches, &self.ids, &mut self.out)?;
        Ok(&self.out)
    }

    /// Probabilities `[windows, classes]` of normalised windows, one after the other.
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub fn classify(&mut self, windows: &[f32]) -> Result<&[f32]> {
        self.logits(Input::Windows(windows))?;
        let classes = self.artifact().manifest().architecture.output_width();
        self.out.chunks_exact_mut(classes.max(1)).for_each(softmax);
        Ok(&self.out)
    }

    /// Puts the input where a run reads it; returns its sequences and their length.
    fn take(&mut self, input: Input<'_>) -> Result<(usize, usize)> {
        let refuse = |text: String| Err(RuntimeError::Input(text));
        let artifact = self.session.artifact().clone();
        let architecture = &artifact.manifest().architecture;
        match (input, &architecture.input) {
            (Input::Windows(samples), &InputKind::Patches { window, patch, stride, .. }) => {
                let count = samples.len() / window;
                if count == 0 || !samples.len().is_multiple_of(window) || count > self.batch {
                    return refuse(format!("{} samples; expected 1 to {} windows of {window}", samples.len(), self.batch));
                }
                let patches = architecture.patches();
                for (index, row) in self.patches.chunks_exact_mut(patch).take(count * patches).enumerate() {
                    row.copy_from_slice(&samples[index / patches * window + index % patches * stride..][..patch]);
                }
                Ok((count, patches))
            }
            (Input::Tokens { ids, sequence }, &InputKind::Tokens { vocabulary }) => {
                let count = ids.len().checked_div(sequence).unwrap_or(0);
                if count == 0 || !ids.len().is_multiple_of(sequence) || count > self.batch || sequence > self.sequence {
                    let (batch, most) = (self.batch, self.sequence);
                    return refuse(format!("{} tokens; expected 1 to {batch} sequences of 1 to {most} tokens", ids.len()));
                }
                check_ids(ids, vocabulary)?;
                self.ids.iter_mut().zip(ids).for_each(|(to, &id)| *to = i64::from(id));
                Ok((count, sequence))
            }
            (Input::Windows(_), _) => refuse("the model reads token ids; windows of samples need a signal model".to_string()),
            (Input::Tokens { .. }, _) => refuse("the model reads windows of samples; token ids need a language model".to_string()),
        }
    }
}

/// Runs the graph on the first `batch` sequences and leaves the logits in `out`.
fn run(session: &mut OrtSession, (batch, sequence): (usize, usize), patches: &[f32], ids: &[i64], out: &mut Vec<f32>) -> Result<()> {
    let artifact = session.artifact().clone();
    let input = match artifact.manifest().architecture.input {
        InputKind::Patches { patch, .. } => {
            let tensor = TensorRef::from_array_view(([batch, sequence, patch], &patches[..batch * sequence * patch]));
            ("patches", tensor.map(Into::into))
        }
        InputKind::Tokens { .. } => {
            let tensor = TensorRef::from_array_view(([batch, sequence], &ids[..batch * sequence]));
            ("input_ids", tensor.map(Into::into))
        }
    };
    let inputs: Inputs<'_> = vec![(Cow::Borrowed(input.0), input.1.map_err(|error| failed(&artifact, "be given the input of", &error))?)];
    session.run(inputs, |outputs| {
        let logits = outputs.get("logits").ok_or_else(|| ort::Error::new("it gave no `logits`"))?;
        out.clear();
        out.extend_from_slice(logits.try_extract_tensor::<f32>()?.1);
        Ok(())
    })
}

/// An error where a token is not in the vocabulary: ONNX Runtime would count a negative one from the end.
pub(super) fn check_ids(ids: &[u32], vocabulary: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocabulary) {
        Some(id) => Err(RuntimeError::Input(format!("token {id} is not in the vocabulary of {vocabulary}"))),
        None => Ok(()),
    }
}

/// An error where positions are more than the model was made for: a rotary model's graph would go on beyond them.
pub(super) fn check_context(architecture: &Architecture, positions: usize) -> Result<()> {
    let context = architecture.context();
    if positions <= context {
        return Ok(());
    }
    Err(RuntimeError::Input(format!("{positions} positions are more than the model's context of {context}")))
}

/// Bytes that a run takes at most: the residual stream, the activations of the layer that has most, each as often as its graph names it,
/// scores, masks, logits, keys and values.
pub(super) fn run_bytes(architecture: &Architecture, shape: &ModelShape, batch: usize, sequence: usize, past: usize) -> u64 {
    // A manifest may name any size: what passes the largest number is refused as that number of bytes.
    let product = |factors: &[usize]| factors.iter().fold(1, |product: u64, &factor| product.saturating_mul(factor as u64));
    let sum = |terms: &[u64]| terms.iter().fold(0, |sum: u64, &term| sum.saturating_add(term));
    let (head_dim, width) = (architecture.attention.head_dim, architecture.output_width());
    let keys = past.saturating_add(sequence);
    let layer = |heads: usize, groups: usize, channels: usize| {
        sum(&[
            product(&[6, batch, sequence, head_dim, heads.saturating_add(groups)]),
            product(&[3, batch, keys, head_dim, groups]),
            product(&[2, batch, keys, head_dim, heads]),
            product(&[4, batch, heads, sequence, keys]),
            product(&[6, batch, sequence, channels]),
        ])
    };
    let largest = shape.kept().map(|(_, units)| layer(units.heads.len(), units.groups, units.channels)).max().unwrap_or(0);
    let carried = shape.kept().map(|(_, units)| product(&[4, batch, keys, units.groups, head_dim])).fold(0, u64::saturating_add);
    let numbers = sum(&[
        product(&[10, batch, sequence, architecture.d_model]),
        largest,
        if past > 0 { carried } else { 0 },
        product(&[2, batch, sequence, width]),
        product(&[12, sequence, keys]),
    ]);
    // Small blocks are rounded up, and a head stands before each.
    numbers.saturating_mul(4).saturating_add(1 << 20)
}

pub(super) fn softmax(row: &mut [f32]) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|value| *value = (*value - largest).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|value| *value /= sum);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use espalier_models::checkpoint::import;

    use super::*;

    #[test]
    fn runs_of_impossible_sizes_take_the_largest_number_of_bytes() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("model.esp");
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/gpt2");
        import(&fixture, &path, None, &mut |_, _| {}).unwrap();
        let artifact = Artifact::open(&path).unwrap();
        let (architecture, shape) = (&artifact.manifest().architecture, artifact.manifest().shape());
        let bytes = |batch, sequence, past| run_bytes(architecture, &shape, batch, sequence, past);
        for most in [bytes(usize::MAX, 1, 0), bytes(1, usize::MAX, 0), bytes(1, 1, usize::MAX), bytes(usize::MAX, usize::MAX, usize::MAX)] {
            assert_eq!(most, u64::MAX);
        }
        assert!(bytes(1, 8, 0) < bytes(2, 8, 0) && bytes(2, 8, 0) < bytes(2, 8, 8) && bytes(2, 8, 8) < 16 << 20);
    }
}
