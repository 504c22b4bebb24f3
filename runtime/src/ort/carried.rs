//! A graph that carries keys and values from one block of tokens to the next.

use std::borrow::Cow;
use std::sync::Arc;

use espalier_models::Artifact;
use espalier_models::checkpoint::OnnxOutput;
use ort::memory::Allocator;
use ort::value::{DynValue, Tensor, TensorRef};

use super::library::OrtLibrary;
use super::model::{check_context, check_ids, run_bytes};
use super::session::{Inputs, OrtOptions, OrtSession, failed};
use crate::budget::Budget;
use crate::error::{Result, RuntimeError};
use crate::generate::check_language_model;

/// A language model's graph, and the keys and values of the tokens that it has read.
pub(super) struct CarryingSession {
    session: OrtSession,
    /// The graph's inputs for keys and values, the outputs they come from, and what they hold.
    carried: Vec<Carried>,
    /// The graph's first output, and its numbers a token.
    output: &'static str,
    width: usize,
    /// Tokens that are carried.
    len: usize,
    capacity: usize,
    /// Tokens that one run reads at most.
    block: usize,
}

struct Carried {
    past: String,
    present: String,
    /// KV groups.
    groups: usize,
    value: DynValue,
}

impl CarryingSession {
    /// Opens a session for up to `capacity` tokens, of which one run reads at most `block`: the graph makes the output of each. The largest
    /// run, a block behind all others, stays booked, and one has been tried: a session that opens can read.
    ///
    /// # Errors
    /// As [`OrtModel::open`](super::OrtModel::open); [`RuntimeError::Input`] where the artifact is no language model.
    pub(super) fn open(
        library: &OrtLibrary,
        budget: &Arc<Budget>,
        artifact: &Arc<Artifact>,
        (capacity, block): (usize, usize),
        output: OnnxOutput,
        options: OrtOptions,
    ) -> Result<Self> {
        check_language_model(artifact)?;
        let manifest = artifact.manifest();
        let (architecture, shape) = (&manifest.architecture, manifest.shape());
        check_context(architecture, capacity)?;
        let block = block.clamp(1, capacity.max(1));
        let most = run_bytes(architecture, &shape, 1, block, capacity.saturating_sub(block));
        let session = OrtSession::open(library, budget, artifact, (true, output), most, options)?;
        let mut carried = Vec::new();
        for (layer, units) in shape.kept().filter(|(_, units)| !units.heads.is_empty()) {
            for what in ["key", "value"] {
                carried.push(Carried {
                    past: format!("past_key_values.{layer}.{what}"),
                    present: format!("present.{layer}.{what}"),
                    groups: units.groups,
                    value: tensor(artifact, units.groups, Vec::new())?,
                });
            }
        }
        let (output, width) = match output {
            OnnxOutput::Logits => ("logits", architecture.output_width()),
            OnnxOutput::States => ("states", architecture.d_model),
        };
        let mut session = Self { session, carried, output, width, len: 0, capacity, block };
        session.session.book(most)?;
        session.pass(&vec![0; block], |_| {})?;
        session.truncate(0)?;
        Ok(session)
    }

    /// The artifact that is run.
    pub(super) fn artifact(&self) -> &Arc<Artifact> {
        self.session.artifact()
    }

    /// Tokens that fit.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens that one run reads at most.
    pub(super) fn block(&self) -> usize {
        self.block
    }

    /// Reads tokens behind those that are carried, block by block, and hands the output of each block to `rows`, `[tokens, width]`, with the
    /// index in `ids` of its first token.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] where a token is unknown or there are more than fit, which changes nothing; [`RuntimeError::Ort`] and
    /// [`RuntimeError::Kernel`] where a run fails: the blocks before it are carried.
    pub(super) fn read(&mut self, ids: &[u32], mut rows: impl FnMut(usize, &[f32])) -> Result<()> {
        if ids.len() > self.capacity - self.len {
            let (used, capacity) = (self.len, self.capacity);
            return Err(RuntimeError::Input(format!("{} more tokens after {used} do not fit the session's {capacity}", ids.len())));
        }
        check_ids(ids, self.artifact().manifest().architecture.output_width())?;
        let mut first = 0;
        for block in ids.chunks(self.block) {
            let ids: Vec<i64> = block.iter().map(|&id| i64::from(id)).collect();
            self.pass(&ids, |output| rows(first, output))?;
            first += block.len();
        }
        Ok(())
    }

    /// Forgets all tokens but the first `len`, and all where there are no more.
    ///
    /// # Errors
    /// [`RuntimeError::Ort`] where ONNX Runtime makes no tensor of what is kept, which changes nothing.
    pub(super) fn truncate(&mut self, len: usize) -> Result<()> {
        if len >= self.len {
            return Ok(());
        }
        let artifact = self.session.artifact().clone();
        let head_dim = artifact.manifest().architecture.attention.head_dim;
        let mut shorter = Vec::with_capacity(self.carried.len());
        for Carried { groups, value, .. } in &self.carried {
            let all = value.try_extract_tensor::<f32>().map_err(|error| failed(&artifact, "give back what it has read of", &error))?.1;
            // `[1, groups, len, head_dim]`, of which each group keeps its first rows.
            let rows = all.chunks_exact((self.len * head_dim).max(1)).flat_map(|group| &group[..len.min(self.len) * head_dim]);
            shorter.push(tensor(&artifact, *groups, rows.copied().collect())?);
        }
        self.carried.iter_mut().zip(shorter).for_each(|(carried, value)| carried.value = value);
        self.len = self.len.min(len);
        Ok(())
    }

    /// Runs the graph on `ids`, which follow what is carried.
    fn pass(&mut self, ids: &[i64], rows: impl FnOnce(&[f32])) -> Result<()> {
        let Self { session, carried, output, width, .. } = self;
        let artifact = session.artifact().clone();
        let tensor = TensorRef::from_array_view(([1, ids.len()], ids));
        let tensor = tensor.map_err(|error| failed(&artifact, "be given the input of", &error))?;
        let mut inputs: Inputs<'_> = vec![(Cow::Borrowed("input_ids"), tensor.into())];
        inputs.extend(carried.iter().map(|carried| (Cow::Borrowed(carried.past.as_str()), (&carried.value).into())));
        let present = session.run(inputs, |mut outputs| {
            let missing = |name: &str| ort::Error::new(format!("it gave no `{name}`"));
            let found = outputs.get(*output).ok_or_else(|| missing(output))?.try_extract_tensor::<f32>()?.1;
            if found.len() != ids.len() * *width {
                return Err(ort::Error::new(format!("`{output}` has {} numbers, expected {}", found.len(), ids.len() * *width)));
            }
            rows(found);
            let present = carried.iter().map(|carried| outputs.remove(&carried.present).ok_or_else(|| missing(&carried.present)));
            present.collect::<ort::Result<Vec<_>>>()
        })?;
        carried.iter_mut().zip(present).for_each(|(carried, value)| carried.value = value);
        self.len += ids.len();
        Ok(())
    }
}

/// Keys or values `[1, groups, tokens, head_dim]`.
fn tensor(artifact: &Artifact, groups: usize, numbers: Vec<f32>) -> Result<DynValue> {
    let head_dim = artifact.manifest().architecture.attention.head_dim;
    let tokens = numbers.len() / (groups * head_dim).max(1);
    let shape = [1, groups, tokens, head_dim];
    // ONNX Runtime takes no array without numbers, but makes one.
    let made = if numbers.is_empty() { Tensor::new(&Allocator::default(), shape) } else { Tensor::from_array((shape, numbers)) };
    Ok(made.map_err(|error| failed(artifact, "be given the input of", &error))?.into_dyn())
}
