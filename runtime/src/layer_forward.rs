//! The forward pass of one layer: attention and FFN, after one another or side by side, each read through a norm and added to the
//! residual stream, through a norm of its own where the model has post norms.

use espalier_kernels::{AttentionShape, Device, Epilogue, KeyValues, LowRank, NormKind, Projection, Start, TokenShape};
use espalier_models::Part;

use crate::adapter::{Adapter, AdapterSizes};
use crate::error::Result;
use crate::forward::{Extent, Pass};
use crate::gates::LayerGates;
use crate::kv_cache::LayerCache;
use crate::network::{Layer, Linear, Norm};
use crate::workspace::{LayerBuffers, Scratch};

/// One layer of a pass.
pub(crate) struct LayerPass<'a, 'p, D: Device> {
    pub pass: &'a Pass<'p, D>,
    pub index: usize,
    pub layer: &'a Layer<D>,
    pub gates: Option<&'a LayerGates<D>>,
    pub extent: Extent,
}

impl<D: Device> Pass<'_, D> {
    /// Runs one layer on the residual stream `x [m, d]` in place, leaving its activations in `buffers`.
    pub(crate) fn layer_forward(
        &self,
        index: usize,
        x: &mut D::Buffer,
        buffers: &mut LayerBuffers<D>,
        scratch: &mut Scratch<D>,
        extent: Extent,
        cache: Option<LayerCache<'_, D>>,
    ) -> Result<()> {
        let gates = self.gates.and_then(|gates| gates.layers.get(index));
        if gates.is_some_and(|gates| gates.skip) {
            return Ok(());
        }
        let layer = LayerPass { pass: self, index, layer: self.network.layer(index)?, gates, extent };
        layer.forward(x, buffers, scratch, cache)
    }

    /// The model's norm, `[m, d]`.
    pub(crate) fn norm(&self, norm: &Norm<D>, y: &mut D::Buffer, x: &D::Buffer, m: usize) -> Result<()> {
        self.norm_of_kind(self.network.norm_kind(), norm, y, x, m)
    }

    fn norm_of_kind(&self, kind: NormKind, norm: &Norm<D>, y: &mut D::Buffer, x: &D::Buffer, m: usize) -> Result<()> {
        let network = self.network;
        Ok(network.device.norm(kind, y, x, &norm.weight, norm.bias.as_ref(), network.architecture.norm.epsilon, m)?)
    }

    pub(crate) fn low_rank(&self, adapter: &Adapter<D>, m: usize, units: usize) -> AdapterSizes {
        AdapterSizes { m, units, d: self.network.architecture.d_model, rank: adapter.rank }
    }
}

impl<'a, D: Device> LayerPass<'a, '_, D> {
    pub fn device(&self) -> &D {
        &self.pass.network.device
    }

    pub fn head_dim(&self) -> usize {
        self.pass.network.architecture.attention.head_dim
    }

    pub fn d_model(&self) -> usize {
        self.pass.network.architecture.d_model
    }

    /// Whether attention and FFN read the same input.
    pub fn parallel(&self) -> bool {
        self.pass.network.architecture.residual != espalier_models::architecture::Residual::Sequential
    }

    fn forward(
        &self,
        x: &mut D::Buffer,
        buffers: &mut LayerBuffers<D>,
        scratch: &mut Scratch<D>,
        cache: Option<LayerCache<'_, D>>,
    ) -> Result<()> {
        let m = self.extent.tokens();
        let (has_heads, has_channels) = (!self.layer.units.heads.is_empty(), self.layer.units.channels > 0);
        if has_heads || has_channels && self.layer.ffn_norm.is_none() {
            self.pass.norm(&self.layer.attention_norm, &mut buffers.normed_attention, x, m)?;
        }
        let ffn_norm = self.layer.ffn_norm.as_ref().filter(|_| has_channels);
        if let Some(norm) = ffn_norm.filter(|_| self.parallel()) {
            self.pass.norm(norm, &mut buffers.normed_ffn, x, m)?;
        }
        self.attention(x, buffers, scratch, cache)?;
        if let Some(norm) = ffn_norm.filter(|_| !self.parallel()) {
            let device = self.device();
            if device.len(&buffers.middle) > 0 {
                device.copy(&mut buffers.middle, 0, x, 0, m * self.d_model())?;
            }
            let own = device.len(&buffers.normed_ffn) > 0;
            self.pass.norm(norm, if own { &mut buffers.normed_ffn } else { &mut buffers.normed_attention }, x, m)?;
        }
        self.ffn(x, buffers, scratch)
    }

    /// Adds what attention makes of `normed_attention` to `x`.
    fn attention(
        &self,
        x: &mut D::Buffer,
        buffers: &mut LayerBuffers<D>,
        scratch: &mut Scratch<D>,
        cache: Option<LayerCache<'_, D>>,
    ) -> Result<()> {
        let (device, layer, extent) = (self.device(), self.layer, self.extent);
        let m = extent.tokens();
        let empty = layer.units.heads.is_empty();
        if !empty {
            self.queries_and_keys(buffers, scratch)?;
            let LayerBuffers { q, k, v, attended, attended_gated, .. } = &mut *buffers;
            match cache {
                None => {
                    self.rotate(q, k, false)?;
                    device.attention(self.attention_shape(extent.sequence), attended, q, k, v, &layer.groups)?;
                }
                Some(cache) => self.cached_attention(cache, attended, [q, k, v])?,
            }
            if let Some(heads) = self.head_gates() {
                let width = self.head_dim();
                device.copy(attended_gated, 0, attended, 0, m * layer.units.heads.len() * width)?;
                device.gate_columns(attended_gated, heads, m, width)?;
            }
        }
        let LayerBuffers { attended, attended_gated, attention_out, .. } = buffers;
        let attended = if self.head_gates().is_some() { attended_gated } else { attended };
        let block = Block { part: Part::AttentionOutput, linear: &layer.output, post_norm: layer.attention_post_norm.as_ref(), empty };
        self.add_block(block, x, attended, attention_out, scratch)
    }

    /// Attention to the tokens of the cache and to those of the pass, whose keys and values are added to it.
    fn cached_attention(&self, cache: LayerCache<'_, D>, attended: &mut D::Buffer, [q, k, v]: [&mut D::Buffer; 3]) -> Result<()> {
        let (device, layer) = (self.device(), self.layer);
        let LayerCache { cache: KeyValues { keys: cached_keys, values: cached_values, capacity }, start, keys } = cache;
        let (sequence, heads, groups) = (self.extent.tokens(), layer.units.heads.len(), layer.units.groups);
        let tokens = TokenShape { sequence, heads, groups, head_dim: self.head_dim() };
        let frequencies = self.pass.network.frequencies.get(layer.units.span);
        let room = KeyValues { keys: &mut *cached_keys, values: &mut *cached_values, capacity };
        device.cache_tokens(room, q, k, v, frequencies, tokens, start)?;
        let shape = AttentionShape { keys, ..self.attention_shape(capacity) };
        match start {
            Start::At(_) => device.attention(shape, attended, q, cached_keys, cached_values, &layer.groups)?,
            Start::Stored(position) => device.attention_at(shape, attended, q, cached_keys, cached_values, &layer.groups, position)?,
        }
        Ok(())
    }

    /// Queries, keys and values of `normed_attention`, normalised.
    fn queries_and_keys(&self, buffers: &mut LayerBuffers<D>, scratch: &mut Scratch<D>) -> Result<()> {
        let LayerBuffers { normed_attention: normed, q_raw, k_raw, q, k, v, .. } = buffers;
        let (layer, m) = (self.layer, self.extent.tokens());
        let normalised = layer.qk_norms.is_some();
        let (to_q, to_k) = if normalised { (&mut *q_raw, &mut *k_raw) } else { (&mut *q, &mut *k) };
        let parts = [Part::Query, Part::Key, Part::Value];
        if parts.iter().any(|part| self.is_adapted(*part)) {
            self.project(Part::Query, &layer.query, to_q, normed, scratch)?;
            self.project(Part::Key, &layer.key, to_k, normed, scratch)?;
            self.project(Part::Value, &layer.value, v, normed, scratch)?;
        } else {
            let mut all = [plain(&layer.query, to_q), plain(&layer.key, to_k), plain(&layer.value, v)];
            self.device().project_rows(&mut all, normed, m)?;
        }
        if let Some([query_norm, key_norm]) = &layer.qk_norms {
            self.pass.norm_of_kind(NormKind::RmsNorm, query_norm, q, q_raw, m * layer.units.heads.len())?;
            self.pass.norm_of_kind(NormKind::RmsNorm, key_norm, k, k_raw, m * layer.units.groups)?;
        }
        Ok(())
    }

    /// Adds what the FFN makes of its normed input to `x`.
    fn ffn(&self, x: &mut D::Buffer, buffers: &mut LayerBuffers<D>, scratch: &mut Scratch<D>) -> Result<()> {
        let (device, layer) = (self.device(), self.layer);
        let (m, channels) = (self.extent.tokens(), layer.units.channels);
        let LayerBuffers { kept, normed_attention, normed_ffn, gate, up, active, active_gated, attention_out, ffn_out, .. } = buffers;
        if channels > 0 {
            let normed = if device.len(normed_ffn) > 0 { normed_ffn } else { normed_attention };
            let kind = self.pass.network.activation();
            if *kept || self.is_adapted(Part::Up) || self.is_adapted(Part::Gate) {
                self.project(Part::Up, &layer.up, up, normed, scratch)?;
                if let Some(linear) = &layer.gate {
                    self.project(Part::Gate, linear, gate, normed, scratch)?;
                }
                device.activate(kind, active, up, layer.gate.as_ref().map(|_| &*gate), m * channels)?;
            } else {
                let gate = layer.gate.as_ref().map(|linear| plain(linear, gate));
                device.project_activated(kind, active, normed, m, plain(&layer.up, up), gate)?;
            }
            if let Some(factors) = self.channel_gates() {
                device.copy(active_gated, 0, active, 0, m * channels)?;
                device.gate_columns(active_gated, factors, m, 1)?;
            }
        }
        let active = if self.channel_gates().is_some() { active_gated } else { active };
        let out = if device.len(ffn_out) > 0 { ffn_out } else { attention_out };
        let block = Block { part: Part::Down, linear: &layer.down, post_norm: layer.ffn_post_norm.as_ref(), empty: channels == 0 };
        self.add_block(block, x, active, out, scratch)
    }

    pub fn head_gates(&self) -> Option<&'a D::Buffer> {
        self.gates.and_then(|gates| gates.heads.as_ref())
    }

    pub fn channel_gates(&self) -> Option<&'a D::Buffer> {
        self.gates.and_then(|gates| gates.channels.as_ref())
    }

    /// Adds a block's output to the residual stream `x`: the product of its units `a` and its bias, which stays when all units are gone.
    /// With a post norm it is left in `out` before the norm.
    fn add_block(
        &self,
        block: Block<'_, D>,
        x: &mut D::Buffer,
        a: &D::Buffer,
        out: &mut D::Buffer,
        scratch: &mut Scratch<D>,
    ) -> Result<()> {
        let (device, m, d) = (self.device(), self.extent.tokens(), self.d_model());
        let Block { part, linear, post_norm, empty } = block;
        let bias_alone = linear.bias.as_ref().filter(|_| empty);
        let Some(norm) = post_norm else {
            return match bias_alone {
                Some(bias) => Ok(device.add_bias(x, bias, m, d)?),
                None if empty => Ok(()),
                None => self.project_units(part, linear, x, a, scratch, true),
            };
        };
        if empty {
            device.fill(out, m * d, 0.0)?;
        } else {
            self.project_units(part, linear, out, a, scratch, false)?;
        }
        if let Some(bias) = bias_alone {
            device.add_bias(out, bias, m, d)?;
        }
        self.pass.norm(norm, &mut scratch.post, out, m)?;
        Ok(device.add(x, &scratch.post, m * d, 1.0)?)
    }

    /// The adapters of `part`, each with its unit side.
    fn adapters_of(&self, part: Part) -> impl Iterator<Item = (&'a Adapter<D>, &'a D::Buffer)> {
        let (adapters, index) = (self.pass.adapters, self.index);
        adapters.iter().filter_map(move |adapter| Some((adapter, &adapter.unit_sides[adapter.unit_side_of(index, part)?])))
    }

    fn is_adapted(&self, part: Part) -> bool {
        self.adapters_of(part).next().is_some()
    }

    /// `y = x Wᵀ + bias` for a matrix whose rows make outputs, and the adapters of `part`.
    fn project(&self, part: Part, linear: &Linear<D>, y: &mut D::Buffer, x: &D::Buffer, scratch: &mut Scratch<D>) -> Result<()> {
        let (device, m, low) = (self.device(), self.extent.tokens(), &mut scratch.low);
        let (units, _) = device.weight_shape(&linear.weight);
        let mut adapters = self.adapters_of(part);
        let mut projection = plain(linear, y);
        if let Some((adapter, u)) = adapters.next() {
            self.pass.low_rank(adapter, m, units).by_model_side(device, low, x, &adapter.model_side, 1.0)?;
            projection.epilogue.low_rank = Some(LowRank { low: &*low, side: u, rank: adapter.rank, scale: adapter.scale });
        }
        device.project_rows(std::slice::from_mut(&mut projection), x, m)?;
        for (adapter, u) in adapters {
            let sizes = self.pass.low_rank(adapter, m, units);
            sizes.by_model_side(device, low, x, &adapter.model_side, 1.0)?;
            sizes.to_units(device, y, low, u, adapter.scale)?;
        }
        Ok(())
    }

    /// `y (+)= a W + bias` for a matrix whose rows are units, and the adapters of `part`.
    fn project_units(
        &self,
        part: Part,
        linear: &Linear<D>,
        y: &mut D::Buffer,
        a: &D::Buffer,
        scratch: &mut Scratch<D>,
        accumulate: bool,
    ) -> Result<()> {
        let (device, m, low) = (self.device(), self.extent.tokens(), &mut scratch.low);
        let (units, _) = device.weight_shape(&linear.weight);
        let mut adapters = self.adapters_of(part);
        let mut epilogue = Epilogue { bias: linear.bias.as_ref(), low_rank: None };
        if let Some((adapter, u)) = adapters.next() {
            self.pass.low_rank(adapter, m, units).by_unit_side(device, low, a, u, 1.0)?;
            epilogue.low_rank = Some(LowRank { low: &*low, side: &adapter.model_side, rank: adapter.rank, scale: adapter.scale });
        }
        device.project_units(y, a, &linear.weight, m, accumulate, epilogue)?;
        for (adapter, u) in adapters {
            let sizes = self.pass.low_rank(adapter, m, units);
            sizes.by_unit_side(device, low, a, u, 1.0)?;
            sizes.to_model(device, y, low, &adapter.model_side, adapter.scale)?;
        }
        Ok(())
    }

    /// Turns queries and keys by their positions; `inverse` turns back.
    pub fn rotate(&self, q: &mut D::Buffer, k: &mut D::Buffer, inverse: bool) -> Result<()> {
        let Extent { batch, sequence, start } = self.extent;
        let (units, head_dim) = (&self.layer.units, self.head_dim());
        let Some(frequencies) = self.pass.network.frequencies.get(units.span) else { return Ok(()) };
        self.device().rotate(q, frequencies, batch, sequence, units.heads.len(), head_dim, start, inverse)?;
        Ok(self.device().rotate(k, frequencies, batch, sequence, units.groups, head_dim, start, inverse)?)
    }

    pub fn attention_shape(&self, key_capacity: usize) -> AttentionShape {
        let Extent { batch, sequence, start } = self.extent;
        let (units, architecture) = (&self.layer.units, &self.pass.network.architecture);
        AttentionShape {
            batch,
            queries: sequence,
            keys: start + sequence,
            key_capacity,
            heads: units.heads.len(),
            groups: units.groups,
            head_dim: architecture.attention.head_dim,
            scale: architecture.attention.score_scale(),
            window: architecture.spans.get(units.span).and_then(|span| span.window),
        }
    }
}

/// A projection with its bias alone.
fn plain<'a, D: Device>(linear: &'a Linear<D>, y: &'a mut D::Buffer) -> Projection<'a, D> {
    Projection { y, weight: &linear.weight, epilogue: Epilogue { bias: linear.bias.as_ref(), low_rank: None } }
}

/// What writes to the residual stream.
struct Block<'a, D: Device> {
    part: Part,
    linear: &'a Linear<D>,
    post_norm: Option<&'a Norm<D>>,
    /// All its units are gone.
    empty: bool,
}
