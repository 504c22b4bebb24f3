//! The forward pass, written once for tokens and patches, for inference and training, for every device.

use espalier_kernels::{AttentionShape, Device};
use espalier_models::Part;
use espalier_models::architecture::{Input as InputKind, Output};

use crate::adapter::{Adapter, LowRank};
use crate::error::{Result, RuntimeError};
use crate::gates::{Gates, LayerGates};
use crate::kv_cache::{KvCache, LayerCache};
use crate::network::{InputTable, Layer, Linear, Network, Norm};
use crate::workspace::{Keep, LayerBuffers, LogitRows, Workspace};

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
    pub fn forward(&self, workspace: &mut Workspace<D>, input: Input<'_>, mut cache: Option<&mut KvCache<D>>) -> Result<()> {
        let start = cache.as_ref().map_or(0, |cache| cache.len());
        let extent = self.embed(workspace, input, start)?;
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
            let layer_cache = cache.as_deref_mut().map(|cache| cache.layer(position));
            self.layer_forward(index, hidden, buffers, &mut workspace.low, extent, layer_cache)?;
            network.layer_done(index)?;
        }
        if let Some(cache) = cache {
            cache.advance(extent.sequence);
        }
        self.output(workspace, extent)
    }

    fn embed(&self, workspace: &mut Workspace<D>, input: Input<'_>, start: usize) -> Result<Extent> {
        let network = self.network;
        let device = &network.device;
        let extent = self.extent(workspace, input, start)?;
        let hidden = &mut workspace.hidden[0];
        match (input, &network.input) {
            (Input::Windows(samples), InputTable::Patches(linear)) => {
                let InputKind::Patches { window, patch, stride, .. } = network.architecture.input else { return Err(wrong_input()) };
                device.write(&mut workspace.windows, 0, samples)?;
                device.patches(&mut workspace.patches, &workspace.windows, extent.batch, window, patch, stride)?;
                device.matmul_rows(hidden, &workspace.patches, &linear.weight, extent.tokens(), false)?;
                if let Some(bias) = &linear.bias {
                    device.add_bias(hidden, bias, extent.tokens(), network.architecture.d_model)?;
                }
            }
            (Input::Tokens { ids, .. }, InputTable::Tokens(table)) => {
                device.write_indices(&mut workspace.ids, ids)?;
                device.embed(hidden, table, &workspace.ids, extent.tokens())?;
            }
            _ => return Err(wrong_input()),
        }
        if let Some(table) = &network.positions {
            device.add_positions(hidden, table, extent.batch, extent.sequence, self.position_row(start))?;
        }
        Ok(extent)
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

    /// Runs one layer on the residual stream `x [m, d]` in place, leaving its activations in `buffers`.
    pub(crate) fn layer_forward(
        &self,
        index: usize,
        x: &mut D::Buffer,
        buffers: &mut LayerBuffers<D>,
        low: &mut D::Buffer,
        extent: Extent,
        cache: Option<LayerCache<'_, D>>,
    ) -> Result<()> {
        let gates = self.gates.and_then(|gates| gates.layers.get(index));
        if gates.is_some_and(|gates| gates.skip) {
            return Ok(());
        }
        let layer = self.network.layer(index)?;
        self.attention_forward(index, layer, x, buffers, low, extent, gates, cache)?;
        let d = self.network.architecture.d_model;
        let device = &self.network.device;
        if device.len(&buffers.middle) > 0 {
            device.copy(&mut buffers.middle, 0, x, 0, extent.tokens() * d)?;
        }
        self.ffn_forward(index, layer, x, buffers, low, extent, gates)
    }

    #[allow(clippy::too_many_arguments)]
    fn attention_forward(
        &self,
        index: usize,
        layer: &Layer<D>,
        x: &mut D::Buffer,
        buffers: &mut LayerBuffers<D>,
        low: &mut D::Buffer,
        extent: Extent,
        gates: Option<&LayerGates<D>>,
        cache: Option<LayerCache<'_, D>>,
    ) -> Result<()> {
        let device = &self.network.device;
        let m = extent.tokens();
        if !layer.units.heads.is_empty() {
            let LayerBuffers { normed_attention: normed, q, k, v, attended, attended_gated, .. } = buffers;
            self.norm(&layer.attention_norm, normed, x, m)?;
            self.project_rows(index, Part::Query, &layer.query, q, normed, low, m)?;
            self.project_rows(index, Part::Key, &layer.key, k, normed, low, m)?;
            self.project_rows(index, Part::Value, &layer.value, v, normed, low, m)?;
            self.rotate(layer, q, k, extent, false)?;
            match cache {
                None => device.attention(self.attention_shape(layer, extent, extent.sequence), attended, q, k, v, &layer.groups)?,
                Some(cache) => {
                    let width = layer.units.groups * self.network.architecture.attention.head_dim;
                    device.copy(cache.keys, extent.start * width, k, 0, m * width)?;
                    device.copy(cache.values, extent.start * width, v, 0, m * width)?;
                    let shape = self.attention_shape(layer, extent, cache.capacity);
                    device.attention(shape, attended, q, cache.keys, cache.values, &layer.groups)?;
                }
            }
            let attended = match gates.and_then(|gates| gates.heads.as_ref()) {
                None => attended,
                Some(heads) => {
                    let width = self.network.architecture.attention.head_dim;
                    device.copy(attended_gated, 0, attended, 0, m * layer.units.heads.len() * width)?;
                    device.gate_columns(attended_gated, heads, m, width)?;
                    attended_gated
                }
            };
            self.project_units(index, Part::AttentionOutput, &layer.output, x, attended, low, m)?;
        }
        self.add_residual_bias(&layer.output, x, m)
    }

    #[allow(clippy::too_many_arguments)]
    fn ffn_forward(
        &self,
        index: usize,
        layer: &Layer<D>,
        x: &mut D::Buffer,
        buffers: &mut LayerBuffers<D>,
        low: &mut D::Buffer,
        extent: Extent,
        gates: Option<&LayerGates<D>>,
    ) -> Result<()> {
        let device = &self.network.device;
        let (m, channels) = (extent.tokens(), layer.units.channels);
        if channels > 0 {
            let LayerBuffers { normed_attention, normed_ffn, gate, up, active, active_gated, .. } = buffers;
            let normed = if device.len(normed_ffn) > 0 { normed_ffn } else { normed_attention };
            self.norm(&layer.ffn_norm, normed, x, m)?;
            self.project_rows(index, Part::Up, &layer.up, up, normed, low, m)?;
            if let Some(linear) = &layer.gate {
                self.project_rows(index, Part::Gate, linear, gate, normed, low, m)?;
            }
            let gate = layer.gate.as_ref().map(|_| &*gate);
            device.activate(self.network.activation(), active, up, gate, m * channels)?;
            let active = match gates.and_then(|gates| gates.channels.as_ref()) {
                None => active,
                Some(factors) => {
                    device.copy(active_gated, 0, active, 0, m * channels)?;
                    device.gate_columns(active_gated, factors, m, 1)?;
                    active_gated
                }
            };
            self.project_units(index, Part::Down, &layer.down, x, active, low, m)?;
        }
        self.add_residual_bias(&layer.down, x, m)
    }

    pub(crate) fn norm(&self, norm: &Norm<D>, y: &mut D::Buffer, x: &D::Buffer, m: usize) -> Result<()> {
        let network = self.network;
        Ok(network.device.norm(network.norm_kind(), y, x, &norm.weight, norm.bias.as_ref(), network.architecture.norm.epsilon, m)?)
    }

    /// `y = x Wᵀ + bias`, and the adapters of `part`.
    #[allow(clippy::too_many_arguments)]
    fn project_rows(
        &self,
        layer: usize,
        part: Part,
        linear: &Linear<D>,
        y: &mut D::Buffer,
        x: &D::Buffer,
        low: &mut D::Buffer,
        m: usize,
    ) -> Result<()> {
        let device = &self.network.device;
        device.matmul_rows(y, x, &linear.weight, m, false)?;
        let (units, _) = device.weight_shape(&linear.weight);
        if let Some(bias) = &linear.bias {
            device.add_bias(y, bias, m, units)?;
        }
        for (adapter, side) in self.adapters_of(layer, part) {
            let sizes = self.low_rank(adapter, m, units);
            sizes.by_model_side(device, low, x, &adapter.model_side, 1.0)?;
            sizes.to_units(device, y, low, &adapter.unit_sides[side], adapter.scale)?;
        }
        Ok(())
    }

    /// `x += a W`, and the adapters of `part`; not the bias.
    #[allow(clippy::too_many_arguments)]
    fn project_units(
        &self,
        layer: usize,
        part: Part,
        linear: &Linear<D>,
        x: &mut D::Buffer,
        a: &D::Buffer,
        low: &mut D::Buffer,
        m: usize,
    ) -> Result<()> {
        let device = &self.network.device;
        device.matmul_units(x, a, &linear.weight, m, true)?;
        let (units, _) = device.weight_shape(&linear.weight);
        for (adapter, side) in self.adapters_of(layer, part) {
            let sizes = self.low_rank(adapter, m, units);
            sizes.by_unit_side(device, low, a, &adapter.unit_sides[side], 1.0)?;
            sizes.to_model(device, x, low, &adapter.model_side, adapter.scale)?;
        }
        Ok(())
    }

    /// The bias of a block that writes to the residual stream; it stays when all of the block's units are gone.
    fn add_residual_bias(&self, linear: &Linear<D>, x: &mut D::Buffer, m: usize) -> Result<()> {
        match &linear.bias {
            Some(bias) => Ok(self.network.device.add_bias(x, bias, m, self.network.architecture.d_model)?),
            None => Ok(()),
        }
    }

    pub(crate) fn adapters_of(&self, layer: usize, part: Part) -> impl Iterator<Item = (&'a Adapter<D>, usize)> {
        self.adapters.iter().filter_map(move |adapter| adapter.unit_side_of(layer, part).map(|side| (adapter, side)))
    }

    pub(crate) fn low_rank(&self, adapter: &Adapter<D>, m: usize, units: usize) -> LowRank {
        LowRank { m, units, d: self.network.architecture.d_model, rank: adapter.rank }
    }

    pub(crate) fn rotate(&self, layer: &Layer<D>, q: &mut D::Buffer, k: &mut D::Buffer, extent: Extent, inverse: bool) -> Result<()> {
        let network = self.network;
        let Some(frequencies) = &network.frequencies else { return Ok(()) };
        let Extent { batch, sequence, start } = extent;
        let head_dim = network.architecture.attention.head_dim;
        network.device.rotate(q, frequencies, batch, sequence, layer.units.heads.len(), head_dim, start, inverse)?;
        Ok(network.device.rotate(k, frequencies, batch, sequence, layer.units.groups, head_dim, start, inverse)?)
    }

    pub(crate) fn attention_shape(&self, layer: &Layer<D>, extent: Extent, key_capacity: usize) -> AttentionShape {
        AttentionShape {
            batch: extent.batch,
            queries: extent.sequence,
            keys: extent.start + extent.sequence,
            key_capacity,
            heads: layer.units.heads.len(),
            groups: layer.units.groups,
            head_dim: self.network.architecture.attention.head_dim,
        }
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
        network.device.matmul_rows(logits, states, self.head_weight()?, rows, false)?;
        if let Some(bias) = network.head.as_ref().and_then(|head| head.bias.as_ref()) {
            network.device.add_bias(logits, bias, rows, network.architecture.output_width())?;
        }
        Ok(())
    }

    /// The output matrix: the head, or the token table it is tied to.
    pub(crate) fn head_weight(&self) -> Result<&'a D::Weight> {
        match (&self.network.head, &self.network.input) {
            (Some(head), _) => Ok(&head.weight),
            (None, InputTable::Tokens(table)) => Ok(table),
            (None, InputTable::Patches(_)) => Err(RuntimeError::Input("the model has no output matrix".into())),
        }
    }
}

fn wrong_input() -> RuntimeError {
    RuntimeError::Input("the model reads another kind of input: windows of samples need a signal model, token ids a language model".into())
}
