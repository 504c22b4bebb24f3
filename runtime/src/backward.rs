//! The backward pass: the forward's mirror, block by block, adding to the [`Gradients`] that are wanted.

use espalier_kernels::{Device, Product};
use espalier_models::architecture::{Input as InputKind, Output};
use espalier_models::{Part, TensorKey};

use crate::error::{Result, RuntimeError};
use crate::forward::{Extent, Input, Pass};
use crate::gates::LayerGates;
use crate::gradients::Gradients;
use crate::network::{InputTable, Layer, Norm};
use crate::workspace::{BackwardBuffers, Keep, LayerBuffers, LogitRows, Workspace};

impl<D: Device> Pass<'_, D> {
    /// Forward, loss and backward: the mean cross entropy in nats over all targets that are not
    /// [`NO_TARGET`](espalier_kernels::NO_TARGET), one target a row of the logits. Gradients are added.
    pub fn loss_and_gradients(
        &self,
        workspace: &mut Workspace<D>,
        input: Input<'_>,
        targets: &D::Indices,
        gradients: &mut Gradients<D>,
    ) -> Result<f64> {
        self.forward(workspace, input, None)?;
        let extent = self.extent_of(input)?;
        let network = self.network;
        let rows = self.logit_rows(workspace, extent);
        let width = network.architecture.output_width();
        let Some(mut backward) = workspace.backward.take() else {
            return Err(RuntimeError::Input("a backward pass needs a workspace that keeps layer inputs".into()));
        };
        let loss = network.device.cross_entropy(Some(&mut backward.d_logits), &workspace.logits, targets, rows, width);
        let done = loss.map_err(RuntimeError::from).and_then(|loss| {
            self.backward(workspace, &mut backward, extent, gradients)?;
            self.embedding_backward(workspace, &backward, extent, gradients)?;
            Ok(loss)
        });
        workspace.backward = Some(backward);
        done
    }

    /// Forward and loss.
    pub fn loss(&self, workspace: &mut Workspace<D>, input: Input<'_>, targets: &D::Indices) -> Result<f64> {
        self.forward(workspace, input, None)?;
        let rows = self.logit_rows(workspace, self.extent_of(input)?);
        Ok(self.network.device.cross_entropy(None, &workspace.logits, targets, rows, self.network.architecture.output_width())?)
    }

    fn extent_of(&self, input: Input<'_>) -> Result<Extent> {
        match (input, &self.network.architecture.input) {
            (Input::Windows(samples), InputKind::Patches { window, .. }) => {
                Ok(Extent { batch: samples.len() / window, sequence: self.network.architecture.patches(), start: 0 })
            }
            (Input::Tokens { ids, sequence }, InputKind::Tokens { .. }) => Ok(Extent { batch: ids.len() / sequence, sequence, start: 0 }),
            _ => Err(RuntimeError::Input("the model reads another kind of input".into())),
        }
    }

    fn logit_rows(&self, workspace: &Workspace<D>, extent: Extent) -> usize {
        let by_sequence = matches!(self.network.architecture.output, Output::Classes { .. }) || workspace.size.logits == LogitRows::Last;
        if by_sequence { extent.batch } else { extent.tokens() }
    }

    fn backward(
        &self,
        workspace: &mut Workspace<D>,
        backward: &mut BackwardBuffers<D>,
        extent: Extent,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        self.output_backward(workspace, backward, extent, gradients)?;
        let network = self.network;
        let kept = network.kept_layers();
        let Workspace { hidden, layers, low, size, .. } = workspace;
        for (position, index) in kept.into_iter().enumerate().rev() {
            let gates = self.gates.and_then(|gates| gates.layers.get(index));
            if gates.is_some_and(|gates| gates.skip) {
                continue;
            }
            let last = layers.len() - 1;
            let buffers = &mut layers[position.min(last)];
            if size.keep == Keep::LayerInputs {
                network.device.copy(&mut backward.again, 0, &hidden[position], 0, extent.tokens() * network.architecture.d_model)?;
                self.layer_forward(index, &mut backward.again, buffers, low, extent, None)?;
            }
            let layer = network.layer(index)?;
            let mut step = LayerStep { pass: self, index, layer, gates, m: extent.tokens(), gradients };
            step.ffn(buffers, backward, low)?;
            step.attention(&hidden[position], buffers, backward, low, extent)?;
            network.layer_done(index)?;
        }
        Ok(())
    }

    fn output_backward(
        &self,
        workspace: &mut Workspace<D>,
        backward: &mut BackwardBuffers<D>,
        extent: Extent,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let network = self.network;
        let (device, d, m) = (&network.device, network.architecture.d_model, extent.tokens());
        let BackwardBuffers { d_hidden, d_normed, d_logits, d_pooled, .. } = backward;
        let rows = self.logit_rows(workspace, extent);
        let width = network.architecture.output_width();
        let classes = matches!(network.architecture.output, Output::Classes { .. });
        let states = if classes { &workspace.pooled } else { &workspace.normed };
        if !classes && rows != m {
            return Err(RuntimeError::Input("a language model is trained on the logits of every position".into()));
        }
        let key = if network.head.is_some() { Part::Head } else { Part::TokenTable };
        if let Some(gradient) = gradients.parameter(TensorKey::global(key)) {
            let product = Product { m: width, n: d, k: rows, transpose_a: true, transpose_b: false, alpha: 1.0, accumulate: true };
            device.matmul(gradient, d_logits, states, product)?;
        }
        if let Some(gradient) = gradients.parameter(TensorKey::global(Part::HeadBias)) {
            device.bias_backward(gradient, d_logits, rows, width)?;
        }
        let d_states = if classes { &mut *d_pooled } else { &mut *d_normed };
        device.matmul_units(d_states, d_logits, self.head_weight()?, rows, false)?;
        if classes {
            device.mean_pool_backward(d_normed, d_pooled, extent.batch, extent.sequence, d)?;
        }
        device.fill(d_hidden, m * d, 0.0)?;
        let last = &workspace.hidden[network.shape.kept().count()];
        self.norm_backward(None, [Part::FinalNorm, Part::FinalNormBias], &network.final_norm, d_hidden, d_normed, last, m, gradients)
    }

    #[allow(clippy::too_many_arguments)]
    fn norm_backward(
        &self,
        layer: Option<u32>,
        parts: [Part; 2],
        norm: &Norm<D>,
        dx: &mut D::Buffer,
        dy: &D::Buffer,
        x: &D::Buffer,
        m: usize,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let network = self.network;
        let epsilon = network.architecture.norm.epsilon;
        let [weight_key, bias_key] = parts.map(|part| TensorKey { layer, part });
        // Two entries of one map at a time: the bias is taken out and put back.
        let mut bias = gradients.parameters.remove(&bias_key);
        let weight = gradients.parameters.get_mut(&weight_key);
        let done = network.device.norm_backward(network.norm_kind(), dx, weight, bias.as_mut(), dy, x, &norm.weight, epsilon, m);
        if let Some(bias) = bias {
            gradients.parameters.insert(bias_key, bias);
        }
        Ok(done?)
    }

    fn embedding_backward(
        &self,
        workspace: &Workspace<D>,
        backward: &BackwardBuffers<D>,
        extent: Extent,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let network = self.network;
        let (device, d, m) = (&network.device, network.architecture.d_model, extent.tokens());
        let d_hidden = &backward.d_hidden;
        if let Some(gradient) = gradients.parameter(TensorKey::global(Part::PositionTable)) {
            device.positions_backward(gradient, d_hidden, extent.batch, extent.sequence, d, self.position_row(extent.start))?;
        }
        match &network.input {
            InputTable::Tokens(_) => {
                if let Some(gradient) = gradients.parameter(TensorKey::global(Part::TokenTable)) {
                    device.embed_backward(gradient, d_hidden, &workspace.ids, m, d)?;
                }
            }
            InputTable::Patches(linear) => {
                let (_, patch) = device.weight_shape(&linear.weight);
                if let Some(gradient) = gradients.parameter(TensorKey::global(Part::Patch)) {
                    let product = Product { m: d, n: patch, k: m, transpose_a: true, transpose_b: false, alpha: 1.0, accumulate: true };
                    device.matmul(gradient, d_hidden, &workspace.patches, product)?;
                }
                if let Some(gradient) = gradients.parameter(TensorKey::global(Part::PatchBias)) {
                    device.bias_backward(gradient, d_hidden, m, d)?;
                }
            }
        }
        Ok(())
    }
}

/// The backward pass of one layer.
struct LayerStep<'a, 'p, D: Device> {
    pass: &'a Pass<'p, D>,
    index: usize,
    layer: &'a Layer<D>,
    gates: Option<&'a LayerGates<D>>,
    m: usize,
    gradients: &'a mut Gradients<D>,
}

impl<D: Device> LayerStep<'_, '_, D> {
    fn device(&self) -> &D {
        &self.pass.network.device
    }

    /// `d_hidden` comes in as the gradient of the layer's output and leaves as that of the stream between attention and FFN.
    fn ffn(&mut self, buffers: &mut LayerBuffers<D>, backward: &mut BackwardBuffers<D>, low: &mut D::Buffer) -> Result<()> {
        let device = self.device().clone();
        let (layer, m) = (self.layer, self.m);
        let channels = layer.units.channels;
        let BackwardBuffers { d_hidden, d_normed, d_block, d_up, d_gate, d_low, .. } = backward;
        self.bias_gradient(Part::DownBias, d_hidden, self.pass.network.architecture.d_model)?;
        if channels == 0 {
            return Ok(());
        }
        let gated = self.gates.and_then(|gates| gates.channels.as_ref());
        let active = if gated.is_some() { &buffers.active_gated } else { &buffers.active };
        self.units_backward(Part::Down, &layer.down.weight, d_block, d_hidden, active, low, d_low)?;
        if let Some(gates) = self.gates_gradient() {
            device.gate_backward(&mut gates.channels, d_block, &buffers.active, m, 1)?;
        }
        if let Some(factors) = gated {
            device.gate_columns(d_block, factors, m, 1)?;
        }
        let kind = self.pass.network.activation();
        let gate = layer.gate.as_ref().map(|_| &buffers.gate);
        device.activate_backward(kind, d_up, layer.gate.as_ref().map(|_| &mut *d_gate), d_block, &buffers.up, gate, m * channels)?;
        self.rows_backward(Part::Up, Part::UpBias, &layer.up.weight, d_normed, d_up, &buffers.normed_ffn, low, d_low, false)?;
        if let Some(linear) = &layer.gate {
            self.rows_backward(Part::Gate, Part::GateBias, &linear.weight, d_normed, d_gate, &buffers.normed_ffn, low, d_low, true)?;
        }
        let at = Some(self.index as u32);
        self.pass.norm_backward(
            at,
            [Part::FfnNorm, Part::FfnNormBias],
            &layer.ffn_norm,
            d_hidden,
            d_normed,
            &buffers.middle,
            m,
            self.gradients,
        )
    }

    /// `d_hidden` leaves as the gradient of the layer's input `x`.
    fn attention(
        &mut self,
        x: &D::Buffer,
        buffers: &mut LayerBuffers<D>,
        backward: &mut BackwardBuffers<D>,
        low: &mut D::Buffer,
        extent: Extent,
    ) -> Result<()> {
        let device = self.device().clone();
        let (layer, m) = (self.layer, self.m);
        let width = self.pass.network.architecture.attention.head_dim;
        let BackwardBuffers { d_hidden, d_normed, d_block, dq, dk, dv, d_low, .. } = backward;
        self.bias_gradient(Part::AttentionOutputBias, d_hidden, self.pass.network.architecture.d_model)?;
        if layer.units.heads.is_empty() {
            return Ok(());
        }
        let gated = self.gates.and_then(|gates| gates.heads.as_ref());
        let attended = if gated.is_some() { &buffers.attended_gated } else { &buffers.attended };
        self.units_backward(Part::AttentionOutput, &layer.output.weight, d_block, d_hidden, attended, low, d_low)?;
        if let Some(gates) = self.gates_gradient() {
            device.gate_backward(&mut gates.heads, d_block, &buffers.attended, m, width)?;
        }
        if let Some(factors) = gated {
            device.gate_columns(d_block, factors, m, width)?;
        }
        let shape = self.pass.attention_shape(layer, extent, extent.sequence);
        device.attention_backward(shape, dq, dk, dv, d_block, &buffers.q, &buffers.k, &buffers.v, &layer.groups)?;
        self.pass.rotate(layer, dq, dk, extent, true)?;
        let normed = &buffers.normed_attention;
        self.rows_backward(Part::Query, Part::QueryBias, &layer.query.weight, d_normed, dq, normed, low, d_low, false)?;
        self.rows_backward(Part::Key, Part::KeyBias, &layer.key.weight, d_normed, dk, normed, low, d_low, true)?;
        self.rows_backward(Part::Value, Part::ValueBias, &layer.value.weight, d_normed, dv, normed, low, d_low, true)?;
        let at = Some(self.index as u32);
        self.pass.norm_backward(
            at,
            [Part::AttentionNorm, Part::AttentionNormBias],
            &layer.attention_norm,
            d_hidden,
            d_normed,
            x,
            m,
            self.gradients,
        )
    }

    fn gates_gradient(&mut self) -> Option<&mut crate::gates::LayerGateGradients<D>> {
        self.gradients.gates.as_mut()?.layers.get_mut(self.index)?.as_mut()
    }

    fn bias_gradient(&mut self, part: Part, dy: &D::Buffer, n: usize) -> Result<()> {
        let device = self.device().clone();
        if let Some(gradient) = self.gradients.parameter(TensorKey::of_layer(self.index, part)) {
            device.bias_backward(gradient, dy, self.m, n)?;
        }
        Ok(())
    }

    /// Backward of `y = a W`: `da [m, units] = dy Wᵀ`, and the gradients of `W` and of its adapters.
    #[allow(clippy::too_many_arguments)]
    fn units_backward(
        &mut self,
        part: Part,
        w: &D::Weight,
        da: &mut D::Buffer,
        dy: &D::Buffer,
        a: &D::Buffer,
        low: &mut D::Buffer,
        d_low: &mut D::Buffer,
    ) -> Result<()> {
        let device = self.device().clone();
        let (units, d) = device.weight_shape(w);
        let m = self.m;
        device.matmul_rows(da, dy, w, m, false)?;
        if let Some(gradient) = self.gradients.parameter(TensorKey::of_layer(self.index, part)) {
            let product = Product { m: units, n: d, k: m, transpose_a: true, transpose_b: false, alpha: 1.0, accumulate: true };
            device.matmul(gradient, a, dy, product)?;
        }
        for (position, adapter) in self.pass.adapters.iter().enumerate() {
            let Some(side) = adapter.unit_side_of(self.index, part) else { continue };
            let sizes = self.pass.low_rank(adapter, m, units);
            let u = &adapter.unit_sides[side];
            sizes.by_model_side(&device, d_low, dy, &adapter.model_side, adapter.scale)?;
            if let Some(gradient) = self.gradients.adapters.get_mut(position) {
                sizes.by_unit_side(&device, low, a, u, adapter.scale)?;
                sizes.model_gradient(&device, &mut gradient.model_side, low, dy)?;
                sizes.unit_gradient(&device, &mut gradient.unit_sides[side], a, d_low)?;
            }
            sizes.to_units(&device, da, d_low, u, 1.0)?;
        }
        Ok(())
    }

    /// Backward of `y = x Wᵀ + b`: `dx [m, d] (+)= dy W`, and the gradients of `W`, `b` and of the adapters.
    #[allow(clippy::too_many_arguments)]
    fn rows_backward(
        &mut self,
        part: Part,
        bias: Part,
        w: &D::Weight,
        dx: &mut D::Buffer,
        dy: &D::Buffer,
        x: &D::Buffer,
        low: &mut D::Buffer,
        d_low: &mut D::Buffer,
        accumulate: bool,
    ) -> Result<()> {
        let device = self.device().clone();
        let (units, d) = device.weight_shape(w);
        let m = self.m;
        device.matmul_units(dx, dy, w, m, accumulate)?;
        self.bias_gradient(bias, dy, units)?;
        if let Some(gradient) = self.gradients.parameter(TensorKey::of_layer(self.index, part)) {
            let product = Product { m: units, n: d, k: m, transpose_a: true, transpose_b: false, alpha: 1.0, accumulate: true };
            device.matmul(gradient, dy, x, product)?;
        }
        for (position, adapter) in self.pass.adapters.iter().enumerate() {
            let Some(side) = adapter.unit_side_of(self.index, part) else { continue };
            let sizes = self.pass.low_rank(adapter, m, units);
            let u = &adapter.unit_sides[side];
            sizes.by_unit_side(&device, d_low, dy, u, adapter.scale)?;
            if let Some(gradient) = self.gradients.adapters.get_mut(position) {
                sizes.by_model_side(&device, low, x, &adapter.model_side, adapter.scale)?;
                sizes.unit_gradient(&device, &mut gradient.unit_sides[side], dy, low)?;
                sizes.model_gradient(&device, &mut gradient.model_side, d_low, x)?;
            }
            sizes.to_model(&device, dx, d_low, &adapter.model_side, 1.0)?;
        }
        Ok(())
    }
}
