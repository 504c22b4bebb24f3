//! Continues token sequences with a graph that carries keys and values.

use std::borrow::Cow;
use std::sync::Arc;

use espalier_kernels::{Purpose, Reservation};
use espalier_models::Artifact;
use ort::value::{DynValue, Tensor, TensorRef};

use super::library::OrtLibrary;
use super::model::{check_context, check_ids, run_bytes};
use super::session::{Inputs, OrtOptions, OrtSession, failed};
use crate::budget::Budget;
use crate::error::{Result, RuntimeError};
use crate::generate::{Continues, check_language_model, choosing_bytes, pass_bytes};

/// Prompt tokens that are read at once: the graph makes logits of each.
const PROMPT_BLOCK: usize = 32;

/// A language model that ONNX Runtime runs, and the keys and values of what it has read.
pub struct OrtGenerator {
    session: OrtSession,
    /// The graph's inputs for keys and values, the outputs they come from, and what they hold.
    carried: Vec<Carried>,
    /// Tokens that are carried.
    len: usize,
    capacity: usize,
    /// Logits after the last token `[vocabulary]`.
    logits: Vec<f32>,
    _choosing: Reservation,
}

struct Carried {
    past: String,
    present: String,
    /// KV groups.
    groups: usize,
    value: DynValue,
}

impl OrtGenerator {
    /// Opens a session for up to `capacity` tokens, prompt and continuation together.
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
        check_language_model(artifact)?;
        let manifest = artifact.manifest();
        let (architecture, shape) = (&manifest.architecture, manifest.shape());
        check_context(architecture, capacity)?;
        let choosing = Reservation::new(budget.clone(), Purpose::Activations, choosing_bytes(architecture))?;
        let session = OrtSession::open(library, budget, artifact, true, options)?;
        let mut carried = Vec::new();
        for (layer, units) in shape.kept().filter(|(_, units)| !units.heads.is_empty()) {
            for what in ["key", "value"] {
                carried.push(Carried {
                    past: format!("past_key_values.{layer}.{what}"),
                    present: format!("present.{layer}.{what}"),
                    groups: units.groups,
                    value: nothing(artifact, units.groups)?,
                });
            }
        }
        let logits = Vec::with_capacity(architecture.output_width());
        let mut generator = Self { session, carried, len: 0, capacity, logits, _choosing: choosing };
        generator.try_out()?;
        Ok(generator)
    }

    /// Books the largest pass, a block of the prompt behind all others, for good, and runs the graph once: a session that opens can read.
    fn try_out(&mut self) -> Result<()> {
        let artifact = self.session.artifact().clone();
        let manifest = artifact.manifest();
        let block = self.capacity.clamp(1, PROMPT_BLOCK);
        let most = run_bytes(&manifest.architecture, &manifest.shape(), 1, block, self.capacity.saturating_sub(block));
        // What the trial takes is less than what the longest sequence will: the bound stays booked.
        self.session.book(most)?;
        pass(&mut self.session, &mut self.carried, &vec![0; block], &mut self.logits)?;
        self.clear()
    }

    /// Forgets all tokens, for another sequence.
    ///
    /// # Errors
    /// [`RuntimeError::Ort`] where ONNX Runtime makes no empty tensor.
    pub fn clear(&mut self) -> Result<()> {
        self.len = 0;
        for carried in &mut self.carried {
            carried.value = nothing(self.session.artifact(), carried.groups)?;
        }
        Ok(())
    }
}

impl Continues for OrtGenerator {
    fn read(&mut self, ids: &[u32]) -> Result<&[f32]> {
        if ids.len() > self.capacity - self.len {
            let (used, capacity) = (self.len, self.capacity);
            return Err(RuntimeError::Input(format!("{} more tokens after {used} do not fit the session's {capacity}", ids.len())));
        }
        check_ids(ids, self.session.artifact().manifest().architecture.output_width())?;
        for block in ids.chunks(PROMPT_BLOCK) {
            let ids: Vec<i64> = block.iter().map(|&id| i64::from(id)).collect();
            pass(&mut self.session, &mut self.carried, &ids, &mut self.logits)?;
            self.len += block.len();
        }
        Ok(&self.logits)
    }

    fn vocabulary(&self) -> usize {
        self.session.artifact().manifest().architecture.output_width()
    }

    fn block(&self) -> usize {
        PROMPT_BLOCK
    }

    fn pass_bytes(&self) -> u64 {
        pass_bytes(self.session.artifact())
    }
}

/// Keys or values of no tokens `[1, groups, 0, head_dim]`.
fn nothing(artifact: &Artifact, groups: usize) -> Result<DynValue> {
    let head_dim = artifact.manifest().architecture.attention.head_dim;
    let empty = Tensor::<f32>::new(&ort::memory::Allocator::default(), [1, groups, 0, head_dim]);
    Ok(empty.map_err(|error| failed(artifact, "be given the input of", &error))?.into_dyn())
}

/// Runs the graph on `ids`, which follow what is carried; leaves the logits after the last one.
fn pass(session: &mut OrtSession, carried: &mut [Carried], ids: &[i64], logits: &mut Vec<f32>) -> Result<()> {
    let artifact = session.artifact().clone();
    let tensor = TensorRef::from_array_view(([1, ids.len()], ids)).map_err(|error| failed(&artifact, "be given the input of", &error))?;
    let mut inputs: Inputs<'_> = vec![(Cow::Borrowed("input_ids"), tensor.into())];
    inputs.extend(carried.iter().map(|carried| (Cow::Borrowed(carried.past.as_str()), (&carried.value).into())));
    let width = artifact.manifest().architecture.output_width();
    let present = session.run(inputs, |mut outputs| {
        let missing = |name: &str| ort::Error::new(format!("it gave no `{name}`"));
        let found = outputs.get("logits").ok_or_else(|| missing("logits"))?;
        let rows = found.try_extract_tensor::<f32>()?.1;
        logits.clear();
        logits.extend_from_slice(&rows[rows.len().saturating_sub(width)..]);
        carried
            .iter()
            .map(|carried| outputs.remove(&carried.present).ok_or_else(|| missing(&carried.present)))
            .collect::<ort::Result<Vec<_>>>()
    })?;
    carried.iter_mut().zip(present).for_each(|(carried, value)| carried.value = value);
    Ok(())
}
