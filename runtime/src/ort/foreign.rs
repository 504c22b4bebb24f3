//! A graph of another program: windows to class probabilities, or token ids to an embedding.
//!
//! ONNX Runtime is given the graph without the bytes of its weights, and these where the program's own map of the file has them; such that
//! start between two numbers are copied first. What else the load takes (weights that stay in the graph, matrices that ONNX Runtime computes
//! from others) is measured when it is done, and booked or refused.
//!
//! Nothing says before a run how much a foreign graph takes. The first run is of one window or a few tokens, and is refused afterwards where
//! it took too much; every larger one is at most twice as large, so that it takes at most four times as much, which is booked before it.

use std::borrow::Cow;
use std::ptr;
use std::sync::Arc;

use espalier_kernels::{Purpose, Reservation};
use espalier_models::foreign::{ForeignGraph, ForeignModel, ForeignWeight, Layout, Pooling, SidecarInput, SidecarOutput};
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::value::TensorRef;

use super::allocator::Account;
use super::library::OrtLibrary;
use super::model::softmax;
use super::session::{Inputs, NODE_BYTES, OrtOptions, builder, failed_at, folder, with_initializer};
use crate::budget::Budget;
use crate::error::{Result, RuntimeError};
use crate::gauges;
use crate::page_allocator::release_free_memory;
use crate::plan::{PROCESS_BYTES, Plan, PlanLine};

/// Bytes of small blocks that runs of different lengths may take beyond what grows with them.
const SLACK_BYTES: u64 = 1 << 20;

/// Bytes that a weight which is handed over leaves in a copy of its graph, besides its name and shape: where it is.
const LIGHT_BYTES: u64 = 256;

/// Tokens of the first run.
const FIRST_TOKENS: usize = 8;

/// How far probabilities may be from 0 to 1 each and 1 together: exporters compute them in single precision.
const PROBABILITY_TOLERANCE: f32 = 1e-3;

/// A foreign model that ONNX Runtime runs.
pub struct OrtForeign {
    session: Session,
    activations: Arc<Account>,
    /// Windows at once, or tokens of a text, that were tried out.
    tried: usize,
    /// `[batch, window]` as the layout has it; empty for a model of tokens.
    samples: Vec<f32>,
    /// Token ids, mask and segment numbers `[sequence]`; empty for a model of windows.
    tokens: [Vec<i64>; 3],
    /// The output of the last run.
    out: Vec<f32>,
    /// After the session, which reads the copies and the maps: fields are dropped in this order.
    _copies: Vec<Vec<u64>>,
    model: Arc<ForeignModel>,
    held: Vec<Reservation>,
}

/// Bytes of a graph's weights by where they are when it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct WeightBytes {
    /// Of files whose map ONNX Runtime reads.
    mapped: u64,
    /// Copied by us or by ONNX Runtime.
    copied: u64,
}

fn weight_bytes(graph: &ForeignGraph) -> WeightBytes {
    let (mut mapped, mut copied) = (0u64, graph.inline_bytes());
    let files = std::iter::once(graph.bytes()).chain(graph.external().iter().map(|file| file.bytes()));
    let files: Vec<_> = files.map(<[u8]>::as_ptr_range).collect();
    let mut read = vec![false; files.len()];
    for weight in graph.weights() {
        match weight.is_aligned {
            true => files.iter().zip(&mut read).for_each(|(file, read)| *read |= file.contains(&weight.bytes.as_ptr())),
            false => copied = copied.saturating_add(weight.bytes.len() as u64),
        }
    }
    for (file, read) in files.iter().zip(read) {
        mapped += if read { (file.end as u64).saturating_sub(file.start as u64) } else { 0 };
    }
    WeightBytes { mapped, copied }
}

/// What serving a foreign graph will hold, before anything is loaded; what a run takes shows with the first one only.
pub fn foreign_plan(graph: &ForeignGraph) -> Plan {
    let line = |purpose: &str, bytes| PlanLine { purpose: purpose.to_string(), bytes };
    let WeightBytes { mapped, copied } = weight_bytes(graph);
    let lines = vec![
        line("process", PROCESS_BYTES),
        line("ONNX Runtime", OrtLibrary::BYTES),
        line("graph", node_bytes(graph)),
        line("weights (mapped)", mapped),
        line("weights (copied)", copied),
    ];
    Plan { lines }
}

fn node_bytes(graph: &ForeignGraph) -> u64 {
    NODE_BYTES.saturating_mul(graph.nodes as u64)
}

impl OrtForeign {
    /// Loads `model` for up to `most` windows at once, or texts of up to `most` tokens, within `budget`; it has been run once.
    ///
    /// # Errors
    /// [`RuntimeError::Kernel`] where memory is refused: weights before they are loaded; [`RuntimeError::Ort`] where ONNX Runtime refuses
    /// the graph or its first run; [`RuntimeError::Input`] where the output is not what the sidecar says.
    pub fn open(library: &OrtLibrary, budget: &Arc<Budget>, model: Arc<ForeignModel>, most: usize, options: OrtOptions) -> Result<Self> {
        let graph = &model.graph;
        let reserve = |purpose, bytes| Reservation::new(budget.clone(), purpose, bytes);
        let (nodes, weights) = (node_bytes(graph), weight_bytes(graph));
        let mut held = vec![
            reserve(Purpose::Weights, weights.mapped)?,
            reserve(Purpose::Weights, weights.copied)?,
            reserve(Purpose::Activations, OrtLibrary::BYTES.saturating_add(nodes))?,
        ];
        let most = if model.binding.batches || model.binding.layout == Layout::Tokens { most.max(1) } else { 1 };
        let samples = model.sidecar.signal().map_or(0, |signal| match model.binding.layout {
            Layout::Patches { patches, patch, .. } => patches.saturating_mul(patch),
            _ => signal.window,
        });
        let samples = samples.saturating_mul(most);
        held.push(reserve(Purpose::Activations, 4 * samples as u64 + if samples == 0 { 24 * most as u64 } else { 0 })?);
        let mut copies = Vec::new();
        let session = load(library, budget, graph, options, &mut copies, &mut held)?;
        if weights.mapped == 0 {
            graph.unmap_pages()?;
        }
        let activations = Account::new(budget.clone(), Purpose::Activations);
        let tokens = std::array::from_fn(|_| Vec::with_capacity(if samples == 0 { most } else { 0 }));
        let (samples, out) = (vec![0.0; samples], Vec::new());
        let mut opened = Self { session, activations, tried: 0, samples, tokens, out, _copies: copies, model, held };
        opened.try_out(most)?;
        Ok(opened)
    }

    /// The model that is run.
    pub fn model(&self) -> &Arc<ForeignModel> {
        &self.model
    }

    /// Runs of ever more windows or tokens, up to `most`, of nothing: what they take is booked.
    fn try_out(&mut self, most: usize) -> Result<()> {
        let is_text = self.model.binding.layout == Layout::Tokens;
        let mut size = if is_text { FIRST_TOKENS.min(most) } else { 1 };
        loop {
            if self.tried > 0 {
                let factor = if is_text { 4 } else { 2 };
                self.activations.book(factor * self.activations.peak() + SLACK_BYTES)?;
            }
            // Twice, since some blocks stay after the first run.
            for _ in 0..2 {
                if is_text {
                    self.run_tokens(&vec![0; size])?;
                } else {
                    self.run_windows(size)?;
                }
            }
            // Whoever starts a node hears of a wrong sidecar, not its windows. Nothing may be made of windows of nothing: some graphs divide
            // by their deviation.
            if self.out.iter().all(|value| value.is_finite()) {
                self.check_probabilities()?;
            }
            self.activations.keep_peak();
            self.tried = size;
            if size == most {
                // Its buffer is as large as it gets.
                let bytes = 4 * self.out.capacity() as u64;
                self.held.push(Reservation::new(self.activations.ledger(), Purpose::Activations, bytes)?);
                return Ok(());
            }
            size = size.saturating_mul(2).min(most);
        }
    }

    /// The output `[windows, classes]` as the graph gives it, of windows that are normalised as the sidecar says, one after the other.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] where these are no windows or more than were asked for, [`RuntimeError::Ort`] where the graph fails.
    pub fn outputs(&mut self, windows: &[f32]) -> Result<&[f32]> {
        let model = self.model.clone();
        let window = model.sidecar.signal().map_or(0, |signal| signal.window);
        let count = windows.len().checked_div(window).unwrap_or(0);
        let one_by_one = !model.binding.batches;
        if count == 0 || !windows.len().is_multiple_of(window) || (count > self.tried && !one_by_one) {
            let found = windows.len();
            return Err(RuntimeError::Input(format!("{found} samples; expected 1 to {} windows of {window}", self.tried)));
        }
        if !one_by_one || count == 1 {
            self.place(windows, window);
            self.run_windows(count)?;
            return Ok(&self.out);
        }
        let mut all = Vec::with_capacity(count * model.classes().len());
        for window in windows.chunks_exact(window) {
            self.place(window, window.len());
            self.run_windows(1)?;
            all.extend_from_slice(&self.out);
        }
        self.out = all;
        Ok(&self.out)
    }

    /// Probabilities `[windows, classes]`.
    ///
    /// # Errors
    /// As [`outputs`](Self::outputs); [`RuntimeError::Input`] where the sidecar promises probabilities and the graph gives none.
    pub fn classify(&mut self, windows: &[f32]) -> Result<&[f32]> {
        self.outputs(windows)?;
        self.check_probabilities()?;
        if !matches!(self.model.sidecar.output, SidecarOutput::Probabilities { .. }) {
            self.out.chunks_exact_mut(self.model.classes().len().max(1)).for_each(softmax);
        }
        Ok(&self.out)
    }

    /// An error where the sidecar promises probabilities and the last run gave none.
    fn check_probabilities(&self) -> Result<()> {
        const SHOWN: usize = 8;
        let SidecarOutput::Probabilities { name, .. } = &self.model.sidecar.output else { return Ok(()) };
        let classes = self.model.classes().len().max(1);
        for row in self.out.chunks_exact(classes) {
            let inside = row.iter().all(|value| (-PROBABILITY_TOLERANCE..=1.0 + PROBABILITY_TOLERANCE).contains(value));
            if !inside || (row.iter().sum::<f32>() - 1.0).abs() > PROBABILITY_TOLERANCE * classes as f32 {
                let (path, first) = (self.model.sidecar_path().display(), &row[..SHOWN.min(row.len())]);
                return Err(RuntimeError::Input(format!(
                    "{path}: the output `{name}` gave {first:?}, which are no probabilities; is its kind logits?"
                )));
            }
        }
        Ok(())
    }

    /// The embedding `[d_model]` of a text's token ids.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] where there is no token or more than were asked for, [`RuntimeError::Ort`] where the graph fails.
    pub fn embed(&mut self, ids: &[u32]) -> Result<&[f32]> {
        let model = self.model.clone();
        let SidecarOutput::Embedding(embedding) = &model.sidecar.output else {
            return Err(RuntimeError::Input(format!("{} is no encoder", model.graph.path().display())));
        };
        if ids.is_empty() || ids.len() > self.tried {
            return Err(RuntimeError::Input(format!("{} tokens; expected 1 to {}", ids.len(), self.tried)));
        }
        let width = self.run_tokens(ids)?;
        if embedding.pooling == Pooling::Mean {
            for column in 0..width {
                let sum: f64 = self.out.iter().skip(column).step_by(width).map(|&state| f64::from(state)).sum();
                self.out[column] = (sum / ids.len() as f64) as f32;
            }
        }
        self.out.truncate(width);
        if embedding.normalise {
            normalise(&mut self.out);
        }
        Ok(&self.out)
    }

    /// Puts windows where a run reads them.
    fn place(&mut self, windows: &[f32], window: usize) {
        match self.model.binding.layout {
            Layout::Patches { patches, patch, stride } => {
                for (index, row) in self.samples.chunks_exact_mut(patch).take(windows.len() / window * patches).enumerate() {
                    row.copy_from_slice(&windows[index / patches * window + index % patches * stride..][..patch]);
                }
            }
            _ => self.samples[..windows.len()].copy_from_slice(windows),
        }
    }

    /// Runs the first `count` windows.
    fn run_windows(&mut self, count: usize) -> Result<()> {
        let Self { session, activations, model, samples, out, .. } = self;
        let (Some(signal), classes) = (model.sidecar.signal(), model.classes().len()) else { return Ok(()) };
        let tensor = match model.binding.layout {
            Layout::Patches { patches, patch, .. } => {
                TensorRef::from_array_view(([count, patches, patch], &samples[..count * patches * patch])).map(Into::into)
            }
            Layout::Channel => TensorRef::from_array_view(([count, 1, signal.window], &samples[..count * signal.window])).map(Into::into),
            _ => TensorRef::from_array_view(([count, signal.window], &samples[..count * signal.window])).map(Into::into),
        };
        let tensor = tensor.map_err(|error| failed_at(model.graph.path(), "be given the input of", &error))?;
        let shape = run(session, activations, model, vec![(Cow::Borrowed(signal.name.as_str()), tensor)], out)?;
        if shape != [count as i64, classes as i64] {
            let (sidecar, name) = (model.sidecar_path().display(), output_name(model));
            return Err(RuntimeError::Input(format!(
                "{sidecar}: the output `{name}` of {count} windows has the shape {shape:?}; with {classes} classes it would be \
                 [{count}, {classes}]"
            )));
        }
        Ok(())
    }

    /// Runs a text; the output's width.
    fn run_tokens(&mut self, ids: &[u32]) -> Result<usize> {
        let Self { session, activations, model, tokens, out, .. } = self;
        let SidecarInput::Tokens(names) = &model.sidecar.input else { return Ok(0) };
        tokens.iter_mut().for_each(Vec::clear);
        tokens[0].extend(ids.iter().map(|&id| i64::from(id)));
        tokens[1].resize(ids.len(), 1);
        tokens[2].resize(ids.len(), 0);
        let mut inputs: Inputs<'_> = Vec::new();
        for (name, values) in [Some(&names.ids), names.mask.as_ref(), names.types.as_ref()].into_iter().zip(tokens.iter()) {
            let Some(name) = name else { continue };
            let tensor = TensorRef::from_array_view(([1, ids.len()], values.as_slice()));
            let tensor = tensor.map_err(|error| failed_at(model.graph.path(), "be given the input of", &error))?;
            inputs.push((Cow::Borrowed(name.as_str()), tensor.into()));
        }
        let shape = run(session, activations, model, inputs, out)?;
        let pooled = matches!(&model.sidecar.output, SidecarOutput::Embedding(embedding) if embedding.pooling == Pooling::None);
        let expected = if pooled { vec![1] } else { vec![1, ids.len() as i64] };
        match shape.split_last() {
            Some((&width, before)) if before == expected && width > 0 => Ok(width as usize),
            _ => {
                let (sidecar, name, count) = (model.sidecar_path().display(), output_name(model), ids.len());
                Err(RuntimeError::Input(format!(
                    "{sidecar}: the output `{name}` of {count} tokens has the shape {shape:?}; expected {expected:?} and a width"
                )))
            }
        }
    }
}

fn output_name(model: &ForeignModel) -> &str {
    match &model.sidecar.output {
        SidecarOutput::Logits { name, .. } | SidecarOutput::Probabilities { name, .. } => name,
        SidecarOutput::Embedding(embedding) => &embedding.name,
    }
}

/// Runs the graph; its output goes to `out`, and its shape is returned.
fn run(session: &mut Session, account: &Arc<Account>, model: &ForeignModel, inputs: Inputs<'_>, out: &mut Vec<f32>) -> Result<Vec<i64>> {
    let name = output_name(model);
    let read = |outputs: ort::session::SessionOutputs<'_>| {
        let output = outputs.get(name).ok_or_else(|| ort::Error::new(format!("it gave no `{name}`")))?;
        let (shape, numbers) = output.try_extract_tensor::<f32>()?;
        out.clear();
        out.extend_from_slice(numbers);
        Ok(shape.to_vec())
    };
    let (result, refusal) = account.enter(false, || session.run(inputs).and_then(read));
    match refusal {
        Some(refusal) => Err(refusal.into()),
        None => result.map_err(|error| failed_at(model.graph.path(), "run", &error)),
    }
}

/// Divides by the Euclidean length, where there is one.
fn normalise(embedding: &mut [f32]) {
    let length = embedding.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        embedding.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
}

/// Loads the graph, and books in `held` what that took beyond its weights.
fn load(
    library: &OrtLibrary,
    budget: &Arc<Budget>,
    graph: &ForeignGraph,
    options: OrtOptions,
    copies: &mut Vec<Vec<u64>>,
    held: &mut Vec<Reservation>,
) -> Result<Session> {
    let path = graph.path();
    // The graph without the weights that are handed over is copied; ONNX Runtime reads that into structures of its own, and what stays in
    // it into tensors.
    let file = graph.bytes().as_ptr_range();
    let moved: u64 = graph.weights().filter(|weight| file.contains(&weight.bytes.as_ptr())).map(|weight| weight.bytes.len() as u64).sum();
    let left = (graph.bytes().len() as u64).saturating_sub(moved).saturating_add(LIGHT_BYTES * graph.weights().count() as u64);
    let loading = Reservation::new(budget.clone(), Purpose::Weights, left.saturating_mul(3))?;
    let light = graph.light()?;
    let copied: u64 = copy_weights(graph, copies);
    release_free_memory();
    let before = gauges::anonymous_bytes()?;
    let account = Account::new(budget.clone(), Purpose::Weights);
    let (session, refusal) = account.enter(true, || session(library, graph, &light, copies, options));
    let session = match (session, refusal) {
        (_, Some(refusal)) => return Err(refusal.into()),
        (session, None) => session.map_err(|error| failed_at(path, "load", &error))?,
    };
    account.keep_used();
    drop((loading, light));
    release_free_memory();
    let grown = gauges::anonymous_bytes()?.saturating_sub(before);
    let booked = account.used() + node_bytes(graph) + weight_bytes(graph).copied.saturating_sub(copied);
    held.push(Reservation::new(budget.clone(), Purpose::Weights, grown.saturating_sub(booked))?);
    Ok(session)
}

/// Copies the weights that cannot be read where they lie; returns the bytes.
fn copy_weights(graph: &ForeignGraph, copies: &mut Vec<Vec<u64>>) -> u64 {
    let mut total = 0;
    for weight in graph.weights().filter(|weight| !weight.is_aligned) {
        let words = weight.bytes.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        });
        copies.push(words.collect());
        total += weight.bytes.len() as u64;
    }
    total
}

fn session(library: &OrtLibrary, graph: &ForeignGraph, light: &[u8], copies: &[Vec<u64>], options: OrtOptions) -> ort::Result<Session> {
    let folder = folder(graph.path()).map_err(|error| ort::Error::new(error.to_string()))?;
    let mut builder = builder(library, folder, options)?;
    let mut copies = copies.iter();
    for weight in graph.weights() {
        let start = match weight.is_aligned {
            true => weight.bytes.as_ptr(),
            false => copies.next().map_or(ptr::null(), |copy| copy.as_ptr().cast()),
        };
        builder = with_weight(builder, &weight, start)?;
    }
    builder.commit_from_memory(light)
}

/// Gives the builder a weight whose numbers begin at `start`.
fn with_weight(builder: SessionBuilder, weight: &ForeignWeight<'_>, start: *const u8) -> ort::Result<SessionBuilder> {
    let dims: Vec<i64> = weight.dims.iter().map(|&dim| dim as i64).collect();
    // SAFETY: the bytes are `dims` numbers of the weight's type, aligned for them, in a map or copy that the session's owner keeps longer than the
    // session.
    unsafe { with_initializer(builder, weight.name, weight.element.0, &dims, start, weight.bytes.len()) }
}
