//! The backward pass: the forward's mirror, block by block, adding to the [`Gradients`] that are wanted.

use espalier_kernels::{Device, Product};
use espalier_models::architecture::{Input as InputKind, Output};
use espalier_models::{Part, TensorKey};

use crate::error::{Result, RuntimeError};
use crate::forward::{Extent, Input, Pass};
use crate::gradients::Gradients;
use crate::layer_backward::{LayerStep, NormStep};
use crate::layer_forward::LayerPass;
use crate::network::InputTable;
use crate::workspace::{BackwardBuffers, Keep, LogitRows, Workspace};

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
        let rows = self.logit_rows(workspace, extent)?;
        let width = network.architecture.output_width();
        let Some(mut backward) = workspace.backward.take() else {
            return Err(RuntimeError::Input("a backward pass needs a workspace that keeps layer inputs".into()));
        };
        let loss = network.device.cross_entropy(Some(&mut backward.d_logits), &workspace.logits, targets, rows, width);
        let done = loss.map_err(RuntimeError::from).and_then(|loss| {
            self.backward(workspace, &mut backward, extent, gradients)?;
            self.embedding_backward(workspace, &mut backward, extent, gradients)?;
            Ok(loss)
        });
        workspace.backward = Some(backward);
        done
    }

    /// Forward and loss.
    pub fn loss(&self, workspace: &mut Workspace<D>, input: Input<'_>, targets: &D::Indices) -> Result<f64> {
        self.forward(workspace, input, None)?;
        let rows = self.logit_rows(workspace, self.extent_of(input)?)?;
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

    /// Rows of logits that the last pass has computed.
    fn logit_rows(&self, workspace: &Workspace<D>, extent: Extent) -> Result<usize> {
        match (&self.network.architecture.output, workspace.size.logits) {
            (Output::Classes { .. }, _) | (Output::NextToken { .. }, LogitRows::Last) => Ok(extent.batch),
            (Output::NextToken { .. }, LogitRows::All) => Ok(extent.tokens()),
            (Output::NextToken { .. }, LogitRows::Blocks(_)) => {
                Err(RuntimeError::Input("this workspace computes logits block by block; ask for a block".into()))
            }
        }
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
        let Workspace { hidden, layers, scratch, size, .. } = workspace;
        for (position, index) in kept.into_iter().enumerate().rev() {
            let gates = self.gates.and_then(|gates| gates.layers.get(index));
            if gates.is_some_and(|gates| gates.skip) {
                continue;
            }
            let last = layers.len() - 1;
            let buffers = &mut layers[position.min(last)];
            if size.keep == Keep::LayerInputs {
                network.device.copy(&mut backward.again, 0, &hidden[position], 0, extent.tokens() * network.architecture.d_model)?;
                self.layer_forward(index, &mut backward.again, buffers, scratch, extent, None)?;
            }
            let layer = LayerPass { pass: self, index, layer: network.layer(index)?, gates, extent };
            LayerStep { layer, gradients }.run(&hidden[position], buffers, backward, scratch)?;
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
        let rows = self.logit_rows(workspace, extent)?;
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
        let norm = NormStep::of(self, &network.final_norm, None, Part::FinalNorm, Some(Part::FinalNormBias));
        norm.run(d_hidden, d_normed, last, m, gradients)
    }

    fn embedding_backward(
        &self,
        workspace: &Workspace<D>,
        backward: &mut BackwardBuffers<D>,
        extent: Extent,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let network = self.network;
        let (device, d, m) = (&network.device, network.architecture.d_model, extent.tokens());
        let d_hidden = &mut backward.d_hidden;
        if let Some(gradient) = gradients.parameter(TensorKey::global(Part::PositionTable)) {
            device.positions_backward(gradient, d_hidden, extent.batch, extent.sequence, d, self.position_row(extent.start))?;
        }
        match &network.input {
            InputTable::Tokens(_) => {
                if let Some(gradient) = gradients.parameter(TensorKey::global(Part::TokenTable)) {
                    if let Some(scale) = network.architecture.embedding_scale {
                        device.scale(d_hidden, m * d, scale)?;
                    }
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
