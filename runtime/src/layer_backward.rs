//! The backward pass of one layer: the mirror of its forward pass, block by block.

use espalier_kernels::{Device, NormKind, Product};
use espalier_models::{Part, TensorKey};

use crate::error::Result;
use crate::forward::Pass;
use crate::gradients::Gradients;
use crate::layer_forward::LayerPass;
use crate::network::{Linear, Norm};
use crate::workspace::{BackwardBuffers, LayerBuffers, Scratch};

/// The backward pass of one norm.
pub(crate) struct NormStep<'a, D: Device> {
    device: &'a D,
    kind: NormKind,
    epsilon: f32,
    norm: &'a Norm<D>,
    weight: TensorKey,
    bias: Option<TensorKey>,
}

impl<'a, D: Device> NormStep<'a, D> {
    /// Of a norm of the model's kind, whose parts are `weight` and, where it has one, `bias`.
    pub fn of(pass: &'a Pass<'_, D>, norm: &'a Norm<D>, layer: Option<u32>, weight: Part, bias: Option<Part>) -> Self {
        let network = pass.network;
        let key = |part| TensorKey { layer, part };
        let (kind, epsilon) = (network.norm_kind(), network.architecture.norm.epsilon);
        Self { device: &network.device, kind, epsilon, norm, weight: key(weight), bias: bias.map(key) }
    }

    /// Adds to `dx [m, norm]`, and to the gradients of the norm that are wanted.
    pub fn run(self, dx: &mut D::Buffer, dy: &D::Buffer, x: &D::Buffer, m: usize, gradients: &mut Gradients<D>) -> Result<()> {
        // Two entries of one map at a time: the bias is taken out and put back.
        let mut bias = self.bias.and_then(|key| Some((key, gradients.parameters.remove(&key)?)));
        let weight = gradients.parameters.get_mut(&self.weight);
        let d_bias = bias.as_mut().map(|(_, gradient)| gradient);
        let done = self.device.norm_backward(self.kind, dx, weight, d_bias, dy, x, &self.norm.weight, self.epsilon, m);
        gradients.parameters.extend(bias);
        Ok(done?)
    }
}

/// The backward pass of one layer.
pub(crate) struct LayerStep<'a, 'p, D: Device> {
    pub layer: LayerPass<'a, 'p, D>,
    pub gradients: &'a mut Gradients<D>,
}

/// A projection and the gradients on its two ends.
struct Projection<'a, D: Device> {
    part: Part,
    /// The bias of its rows; none for a matrix whose rows are units.
    bias: Option<Part>,
    linear: &'a Linear<D>,
    /// What it read.
    x: &'a D::Buffer,
    /// Gradient of what it made.
    dy: &'a D::Buffer,
}

impl<'a, D: Device> LayerStep<'a, '_, D> {
    /// `d_hidden` comes in as the gradient of the layer's output and leaves as that of its input `x`.
    pub fn run(
        &mut self,
        x: &D::Buffer,
        buffers: &LayerBuffers<D>,
        backward: &mut BackwardBuffers<D>,
        scratch: &mut Scratch<D>,
    ) -> Result<()> {
        let (m, parallel, layer) = (self.layer.extent.tokens(), self.layer.parallel(), self.layer.layer);
        let ffn_norm = layer.ffn_norm.as_ref().map(|norm| (norm, Part::FfnNorm, Some(Part::FfnNormBias)));
        let through_ffn = self.ffn(buffers, backward, scratch)?;
        let own_norm = ffn_norm.filter(|_| through_ffn);
        if let Some((norm, weight, bias)) = own_norm.filter(|_| !parallel) {
            let step = self.norm_step(norm, weight, bias);
            step.run(&mut backward.d_hidden, &backward.d_normed, &buffers.middle, m, self.gradients)?;
        }
        // Through a shared norm go the gradients of both blocks together.
        let shared = through_ffn && ffn_norm.is_none();
        let through_attention = self.attention(buffers, backward, scratch, shared)?;
        if let Some((norm, weight, bias)) = own_norm.filter(|_| parallel) {
            let step = self.norm_step(norm, weight, bias);
            step.run(&mut backward.d_hidden, &backward.d_normed_ffn, x, m, self.gradients)?;
        }
        if !through_attention && !shared {
            return Ok(());
        }
        let step = self.norm_step(&layer.attention_norm, Part::AttentionNorm, Some(Part::AttentionNormBias));
        step.run(&mut backward.d_hidden, &backward.d_normed, x, m, self.gradients)
    }

    fn norm_step(&self, norm: &'a Norm<D>, weight: Part, bias: Option<Part>) -> NormStep<'a, D> {
        NormStep::of(self.layer.pass, norm, Some(self.layer.index as u32), weight, bias)
    }

    /// Leaves the gradient of the FFN's normed input in `d_normed_ffn`, or in `d_normed` where that is empty; false where the FFN has no
    /// channels and so no such gradient.
    fn ffn(&mut self, buffers: &LayerBuffers<D>, backward: &mut BackwardBuffers<D>, scratch: &mut Scratch<D>) -> Result<bool> {
        let device = self.layer.device().clone();
        let (layer, m) = (self.layer.layer, self.layer.extent.tokens());
        let BackwardBuffers { d_hidden, d_normed, d_normed_ffn, d_out, d_block, d_up, d_gate, d_low, .. } = backward;
        let dy = self.block_gradient(layer.ffn_post_norm.as_ref(), Part::FfnPostNorm, &buffers.ffn_out, d_hidden, d_out)?;
        self.bias_gradient(Part::DownBias, dy, self.layer.d_model())?;
        if layer.units.channels == 0 {
            return Ok(false);
        }
        let gates = self.layer.channel_gates();
        let active = if gates.is_some() { &buffers.active_gated } else { &buffers.active };
        let down = Projection { part: Part::Down, bias: None, linear: &layer.down, x: active, dy };
        self.projection(down, d_block, scratch, d_low, false)?;
        if let Some(gradient) = self.gates_gradient() {
            device.gate_backward(&mut gradient.channels, d_block, &buffers.active, m, 1)?;
        }
        if let Some(factors) = gates {
            device.gate_columns(d_block, factors, m, 1)?;
        }
        let (kind, len) = (self.layer.pass.network.activation(), m * layer.units.channels);
        let gate = layer.gate.as_ref().map(|_| &buffers.gate);
        device.activate_backward(kind, d_up, layer.gate.as_ref().map(|_| &mut *d_gate), d_block, &buffers.up, gate, len)?;
        let d_normed = if device.len(d_normed_ffn) > 0 { d_normed_ffn } else { d_normed };
        let x = if device.len(&buffers.normed_ffn) > 0 { &buffers.normed_ffn } else { &buffers.normed_attention };
        let up = Projection { part: Part::Up, bias: Some(Part::UpBias), linear: &layer.up, x, dy: d_up };
        self.projection(up, d_normed, scratch, d_low, false)?;
        if let Some(linear) = &layer.gate {
            let gate = Projection { part: Part::Gate, bias: Some(Part::GateBias), linear, x, dy: d_gate };
            self.projection(gate, d_normed, scratch, d_low, true)?;
        }
        Ok(true)
    }

    /// Leaves the gradient of attention's normed input in `d_normed`, added to what is there with `accumulate`; false where attention has
    /// no heads and so no such gradient.
    fn attention(
        &mut self,
        buffers: &LayerBuffers<D>,
        backward: &mut BackwardBuffers<D>,
        scratch: &mut Scratch<D>,
        accumulate: bool,
    ) -> Result<bool> {
        let device = self.layer.device().clone();
        let (layer, m, width) = (self.layer.layer, self.layer.extent.tokens(), self.layer.head_dim());
        let BackwardBuffers { d_hidden, d_normed, d_out, d_block, dq, dk, dv, d_low, .. } = backward;
        let out = &buffers.attention_out;
        let dy = self.block_gradient(layer.attention_post_norm.as_ref(), Part::AttentionPostNorm, out, d_hidden, d_out)?;
        self.bias_gradient(Part::AttentionOutputBias, dy, self.layer.d_model())?;
        if layer.units.heads.is_empty() {
            return Ok(false);
        }
        let gates = self.layer.head_gates();
        let attended = if gates.is_some() { &buffers.attended_gated } else { &buffers.attended };
        let output = Projection { part: Part::AttentionOutput, bias: None, linear: &layer.output, x: attended, dy };
        self.projection(output, d_block, scratch, d_low, false)?;
        if let Some(gradient) = self.gates_gradient() {
            device.gate_backward(&mut gradient.heads, d_block, &buffers.attended, m, width)?;
        }
        if let Some(factors) = gates {
            device.gate_columns(d_block, factors, m, width)?;
        }
        let shape = self.layer.attention_shape(self.layer.extent.sequence);
        device.attention_backward(shape, dq, dk, dv, d_block, &buffers.q, &buffers.k, &buffers.v, &layer.groups)?;
        self.layer.rotate(dq, dk, true)?;
        let x = &buffers.normed_attention;
        let query = Projection { part: Part::Query, bias: Some(Part::QueryBias), linear: &layer.query, x, dy: dq };
        let key = Projection { part: Part::Key, bias: Some(Part::KeyBias), linear: &layer.key, x, dy: dk };
        match &layer.qk_norms {
            None => {
                self.projection(query, d_normed, scratch, d_low, accumulate)?;
                self.projection(key, d_normed, scratch, d_low, true)?;
            }
            // The block's gradient is used up: its buffer takes those before the norms.
            Some([query_norm, key_norm]) => {
                let raw = (&buffers.q_raw, m * layer.units.heads.len());
                self.head_norm(query_norm, Part::QueryNorm, d_block, dq, raw)?;
                self.projection(Projection { dy: d_block, ..query }, d_normed, scratch, d_low, accumulate)?;
                let raw = (&buffers.k_raw, m * layer.units.groups);
                self.head_norm(key_norm, Part::KeyNorm, d_block, dk, raw)?;
                self.projection(Projection { dy: d_block, ..key }, d_normed, scratch, d_low, true)?;
            }
        }
        let value = Projection { part: Part::Value, bias: Some(Part::ValueBias), linear: &layer.value, x, dy: dv };
        self.projection(value, d_normed, scratch, d_low, true)?;
        Ok(true)
    }

    /// Backward of the norm of heads, `raw` before it as `rows` heads: replaces `dx`.
    fn head_norm(
        &mut self,
        norm: &'a Norm<D>,
        part: Part,
        dx: &mut D::Buffer,
        dy: &D::Buffer,
        (raw, rows): (&D::Buffer, usize),
    ) -> Result<()> {
        self.layer.device().fill(dx, rows * self.layer.head_dim(), 0.0)?;
        let step = NormStep { kind: NormKind::RmsNorm, ..self.norm_step(norm, part, None) };
        step.run(dx, dy, raw, rows, self.gradients)
    }

    /// The gradient of a block's output `out` where `d_hidden` is that of what it adds to the stream: itself, or through the post norm.
    fn block_gradient<'b>(
        &mut self,
        post_norm: Option<&'a Norm<D>>,
        part: Part,
        out: &D::Buffer,
        d_hidden: &'b D::Buffer,
        d_out: &'b mut D::Buffer,
    ) -> Result<&'b D::Buffer> {
        let Some(norm) = post_norm else { return Ok(d_hidden) };
        let m = self.layer.extent.tokens();
        self.layer.device().fill(d_out, m * self.layer.d_model(), 0.0)?;
        self.norm_step(norm, part, None).run(d_out, d_hidden, out, m, self.gradients)?;
        Ok(d_out)
    }

    fn gates_gradient(&mut self) -> Option<&mut crate::gates::LayerGateGradients<D>> {
        self.gradients.gates.as_mut()?.layers.get_mut(self.layer.index)?.as_mut()
    }

    fn bias_gradient(&mut self, part: Part, dy: &D::Buffer, n: usize) -> Result<()> {
        if let Some(gradient) = self.gradients.parameter(TensorKey::of_layer(self.layer.index, part)) {
            self.layer.device().bias_backward(gradient, dy, self.layer.extent.tokens(), n)?;
        }
        Ok(())
    }

    /// Backward of a projection: `dx (+)=` the gradient of what it read, and the gradients of its matrix `W [units, d]`, its bias and its
    /// adapters. One of its ends is `[m, units]`, the other `[m, d]`.
    fn projection(
        &mut self,
        projection: Projection<'_, D>,
        dx: &mut D::Buffer,
        scratch: &mut Scratch<D>,
        d_low: &mut D::Buffer,
        accumulate: bool,
    ) -> Result<()> {
        let Projection { part, bias, linear, x, dy } = projection;
        let device = self.layer.device();
        let ((units, d), m) = (device.weight_shape(&linear.weight), self.layer.extent.tokens());
        let by_units = part.is_unit_reduction();
        let (unit_end, model_end) = if by_units { (x, dy) } else { (dy, x) };
        if by_units {
            device.matmul_rows(dx, dy, &linear.weight, m, accumulate)?;
        } else {
            device.matmul_units(dx, dy, &linear.weight, m, accumulate)?;
        }
        if let Some(gradient) = self.gradients.parameter(TensorKey::of_layer(self.layer.index, part)) {
            let product = Product { m: units, n: d, k: m, transpose_a: true, transpose_b: false, alpha: 1.0, accumulate: true };
            device.matmul(gradient, unit_end, model_end, product)?;
        }
        for (position, adapter) in self.layer.pass.adapters.iter().enumerate() {
            let Some(side) = adapter.unit_side_of(self.layer.index, part) else { continue };
            let (u, v, scale) = (&adapter.unit_sides[side], &adapter.model_side, adapter.scale);
            let sizes = self.layer.pass.low_rank(adapter, m, units);
            let gradient = self.gradients.adapters.get_mut(position);
            // Of `x` and `dy`, the low-rank image of the one is needed for `dx`, that of the other for the adapter's own gradients only.
            let (of_model_end, of_unit_end) = if by_units { (&mut *d_low, &mut scratch.low) } else { (&mut scratch.low, &mut *d_low) };
            if by_units || gradient.is_some() {
                sizes.by_model_side(device, of_model_end, model_end, v, scale)?;
            }
            if !by_units || gradient.is_some() {
                sizes.by_unit_side(device, of_unit_end, unit_end, u, scale)?;
            }
            if let Some(gradient) = gradient {
                sizes.unit_gradient(device, &mut gradient.unit_sides[side], unit_end, of_model_end)?;
                sizes.model_gradient(device, &mut gradient.model_side, of_unit_end, model_end)?;
            }
            if by_units {
                sizes.to_units(device, dx, of_model_end, u, 1.0)?;
            } else {
                sizes.to_model(device, dx, of_unit_end, v, 1.0)?;
            }
        }
        match bias {
            Some(bias) => self.bias_gradient(bias, dy, units),
            None => Ok(()),
        }
    }
}
