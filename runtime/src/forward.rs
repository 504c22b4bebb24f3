//! The forward pass, written once for tokens and patches, for inference and training, for every device.

use espalier_kernels::{Device, Epilogue, Projection};
use espalier_models::architecture::{Input as InputKind, Output};

use crate::adapter::Adapter;
use crate::decoding::StepPosition;
use crate::error::{Result, RuntimeError};
use crate::gates::Gates;
use crate::kv_cache::KvCache;
use crate::network::{InputTable, Network};
use crate::workspace::{Keep, LogitRows, Workspace};

/// What a pass reads.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// `batch` windows of normalised samples, one after the other.
    Windows(&'a [f32]),
    /// Token ids, `[batch, sequence]`.
    Tokens {
        /// The ids.
        ids: &'a [u32],
        /// Tokens of each sequence.
        sequence: usize,
    },
}

/// A network with its adapters and gates: what a pass runs.
pub struct Pass<'a, D: Device> {
    /// The parameters.
    pub network: &'a Network<D>,
    /// Low-rank additions.
    pub adapters: &'a [Adapter<D>],
    /// Factors on units.
    pub gates: Option<&'a Gates<D>>,
}

/// The tokens of a pass: `batch` sequences of `sequence` positions, the first at `start`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    pub batch: usize,
    pub sequence: usize,
    pub start: usize,
}

impl Extent {
    pub fn tokens(self) -> usize {
        self.batch * self.sequence
    }
}

impl<'a, D: Device> Pass<'a, D> {
    /// A pass of the network alone.
    pub fn of(network: &'a Network<D>) -> Self {
        Self { network, adapters: &[], gates: None }
    }

    /// Runs the model; the logits are then in [`Workspace::logits`]. With a cache, the tokens follow those that are cached.
    pub fn forward(&self, workspace: &mut Workspace<D>, input: Input<'_>, cache: Option<&mut KvCache<D>>) -> Result<()> {
        let start = cache.as_ref().map_or(0, |cache| cache.len());
        let extent = self.extent(workspace, input, start)?;
        self.write_input(workspace, input)?;
        let Some(cache) = cache else { return self.run(workspace, extent, None, None) };
        self.run(workspace, extent, Some(&mut *cache), None)?;
        cache.advance(extent.sequence);
        Ok(())
    }

    /// Checks a token that follows those that are cached, and puts it where [`forward_token`](Pass::forward_token) reads it.
    pub(crate) fn place_token(&self, workspace: &mut Workspace<D>, id: u32, start: usize, position: &mut D::Indices) -> Result<()> {
        let input = Input::Tokens { ids: &[id], sequence: 1 };
        self.extent(workspace, input, start)?;
        self.write_input(workspace, input)?;
        Ok(self.network.device.write_indices(position, &[start as u32])?)
    }

    /// As [`forward`](Pass::forward) of the token that was [placed](Pass::place_token), but for [`KvCache::advance`]: nothing passes between
    /// device and host, and nothing depends on the position but what the device reads at `step`, so that the work can be recorded.
    pub(crate) fn forward_token(&self, workspace: &mut Workspace<D>, cache: &mut KvCache<D>, step: StepPosition<'_, D>) -> Result<()> {
        self.run(workspace, Extent { batch: 1, sequence: 1, start: cache.len() }, Some(cache), Some(step))
    }

    /// Checks windows and puts them where [`forward_placed`](Pass::forward_placed) reads them.
    pub(crate) fn place(&self, workspace: &mut Workspace<D>, windows: &[f32]) -> Result<()> {
        let input = Input::Windows(windows);
        self.extent(workspace, input, 0)?;
        self.write_input(workspace, input)
    }

    /// As [`forward`](Pass::forward) of the `count` windows that were [placed](Pass::place): nothing passes between device and host, so that
    /// the work can be recorded.
    pub(crate) fn forward_placed(&self, workspace: &mut Workspace<D>, count: usize) -> Result<()> {
        self.run(workspace, Extent { batch: count, sequence: self.network.architecture.patches(), start: 0 }, None, None)
    }

    /// Writes the input to the device.
    fn write_input(&self, workspace: &mut Workspace<D>, input: Input<'_>) -> Result<()> {
        let device = &self.network.device;
        match input {
            Input::Windows(samples) => device.write(&mut workspace.windows, 0, samples)?,
            Input::Tokens { ids, .. } => device.write_indices(&mut workspace.ids, ids)?,
        }
        Ok(())
    }

    fn run(
        &self,
        workspace: &mut Workspace<D>,
        extent: Extent,
        mut cache: Option<&mut KvCache<D>>,
        step: Option<StepPosition<'_, D>>,
    ) -> Result<()> {
        self.embed(workspace, extent, step)?;
        let network = self.network;
        let m = extent.tokens();
        let kept = workspace.size.keep != Keep::Nothing;
        for (position, (index, _)) in network.shape.kept().enumerate() {
            if kept {
                let (before, after) = workspace.hidden.split_at_mut(position + 1);
                network.device.copy(&mut after[0], 0, &before[position], 0, m * network.architecture.d_model)?;
            }
            let hidden = &mut workspace.hidden[if kept { position + 1 } else { 0 }];
            let last = workspace.layers.len() - 1;
            let buffers = &mut workspace.layers[position.min(last)];
            let layer_cache = cache.as_deref_mut().map(|cache| cache.layer(position, extent.sequence, step));
            self.layer_forward(index, hidden, buffers, &mut workspace.scratch, extent, layer_cache)?;
            network.layer_done(index)?;
        }
        self.output(workspace, extent)
    }

    fn embed(&self, workspace: &mut Workspace<D>, extent: Extent, step: Option<StepPosition<'_, D>>) -> Result<()> {
        let network = self.network;
        let device = &network.device;
        let hidden = &mut workspace.hidden[0];
        match &network.input {
            InputTable::Patches(linear) => {
                let InputKind::Patches { window, patch, stride, .. } = network.architecture.input else { return Err(wrong_input()) };
                device.patches(&mut workspace.patches, &workspace.windows, extent.batch, window, patch, stride)?;
                let epilogue = Epilogue { bias: linear.bias.as_ref(), low_rank: None };
                let projection = Projection { y: hidden, weight: &linear.weight, epilogue };
                device.project_rows(&mut [projection], &workspace.patches, extent.tokens())?;
            }
            InputTable::Tokens(table) => {
                device.embed(hidden, table, &workspace.ids, extent.tokens())?;
                if let Some(scale) = network.architecture.embedding_scale {
                    device.scale(hidden, extent.tokens() * network.architecture.d_model, scale)?;
                }
            }
        }
        if let Some(table) = &network.positions {
            match step {
                Some(step) => device.add_positions_at(hidden, table, extent.sequence, self.position_row(0), step.index)?,
                None => device.add_positions(hidden, table, extent.batch, extent.sequence, self.position_row(extent.start))?,
            }
        }
        Ok(())
    }

    /// The row of the position table for position `start`.
    pub(crate) fn position_row(&self, start: usize) -> usize {
        match self.network.architecture.positions {
            espalier_models::architecture::Positions::Learned { offset, .. } => start + offset,
            espalier_models::architecture::Positions::Rotary { .. } => start,
        }
    }

    fn extent(&self, workspace: &Workspace<D>, input: Input<'_>, start: usize) -> Result<Extent> {
        let architecture = &self.network.architecture;
        let (batch, sequence) = match (input, &architecture.input) {
            (Input::Windows(samples), InputKind::Patches { window, .. }) => {
                if samples.is_empty() || !samples.len().is_multiple_of(*window) {
                    return Err(RuntimeError::Input(format!("{} samples are not a whole number of windows of {window}", samples.len())));
                }
                (samples.len() / window, architecture.patches())
            }
            (Input::Tokens { ids, sequence }, InputKind::Tokens { vocabulary }) => {
                if sequence == 0 || ids.is_empty() || !ids.len().is_multiple_of(sequence) {
                    return Err(RuntimeError::Input(format!("{} tokens are not a whole number of sequences of {sequence}", ids.len())));
                }
                if let Some(id) = ids.iter().find(|id| **id as usize >= *vocabulary) {
                    return Err(RuntimeError::Input(format!("token {id} is not in the vocabulary of {vocabulary}")));
                }
                (ids.len() / sequence, sequence)
            }
            _ => return Err(wrong_input()),
        };
        if start + sequence > architecture.context() {
            return Err(RuntimeError::Input(format!(
                "{} positions are more than the model's context of {}",
                start + sequence,
                architecture.context()
            )));
        }
        let size = workspace.size;
        if batch * sequence > size.batch * size.sequence || batch > size.batch {
            return Err(RuntimeError::Input(format!(
                "{batch} × {sequence} positions do not fit a workspace of {} × {}",
                size.batch, size.sequence
            )));
        }
        Ok(Extent { batch, sequence, start })
    }

    fn output(&self, workspace: &mut Workspace<D>, extent: Extent) -> Result<()> {
        let network = self.network;
        let (device, d) = (&network.device, network.architecture.d_model);
        let kept = network.shape.kept().count();
        let Workspace { hidden, normed, pooled, logits, size, .. } = workspace;
        let last = &hidden[if size.keep == Keep::Nothing { 0 } else { kept }];
        self.norm(&network.final_norm, normed, last, extent.tokens())?;
        let (states, rows): (&D::Buffer, usize) = match (&network.architecture.output, size.logits) {
            (Output::Classes { .. }, _) => {
                device.mean_pool(pooled, normed, extent.batch, extent.sequence, d)?;
                (pooled, extent.batch)
            }
            (Output::NextToken { .. }, LogitRows::Blocks(_)) => return Ok(()),
            (Output::NextToken { .. }, LogitRows::All) => (normed, extent.tokens()),
            // The only position is the last.
            (Output::NextToken { .. }, LogitRows::Last) if extent.sequence == 1 => (normed, extent.batch),
            (Output::NextToken { .. }, LogitRows::Last) => {
                for sequence in 0..extent.batch {
                    let from = (sequence * extent.sequence + extent.sequence - 1) * d;
                    device.copy(pooled, sequence * d, normed, from, d)?;
                }
                (pooled, extent.batch)
            }
        };
        self.head(logits, states, rows)
    }

    /// The logits of `rows` rows of the last pass, from row `first` of `[m]` on, into the first rows of [`Workspace::logits`]. The
    /// workspace was made with [`LogitRows::Blocks`] of at least as many rows.
    pub fn logit_block(&self, workspace: &mut Workspace<D>, first: usize, rows: usize) -> Result<()> {
        let d = self.network.architecture.d_model;
        let Workspace { normed, pooled, logits, .. } = workspace;
        self.network.device.copy(pooled, 0, normed, first * d, rows * d)?;
        self.head(logits, pooled, rows)
    }

    /// `logits [rows, output width]` of `states [rows, d]`.
    fn head(&self, logits: &mut D::Buffer, states: &D::Buffer, rows: usize) -> Result<()> {
        let network = self.network;
        let epilogue = Epilogue { bias: network.head_bias.as_ref(), low_rank: None };
        let projection = Projection { y: logits, weight: self.head_weight()?, epilogue };
        network.device.project_rows(&mut [projection], states, rows)?;
        network.check_pages()
    }

    /// The output matrix: the head, or the token table it is tied to.
    pub(crate) fn head_weight(&self) -> Result<&'a D::Weight> {
        match (&self.network.head, &self.network.input) {
            (Some(head), _) => Ok(head),
            (None, InputTable::Tokens(table)) => Ok(table),
            (None, InputTable::Patches(_)) => Err(RuntimeError::Input("the model has no output matrix".into())),
        }
    }
}

fn wrong_input() -> RuntimeError {
    RuntimeError::Input("the model reads another kind of input: windows of samples need a signal model, token ids a language model".into())
}
