//! Gates: factors on units, to try a removal without making it and to see how much the loss depends on a unit.

use espalier_kernels::{Device, Purpose};
use espalier_models::ModelShape;

use crate::error::{Result, RuntimeError};
use crate::load::upload;

/// Gates of a whole model; a unit without a gate counts in full.
pub struct Gates<D: Device> {
    pub(crate) layers: Vec<LayerGates<D>>,
}

/// Gates of one layer.
pub(crate) struct LayerGates<D: Device> {
    /// The layer does not run.
    pub skip: bool,
    /// A factor on every head's output, at the input of the output projection, `[heads]`.
    pub heads: Option<D::Buffer>,
    /// A factor on every channel, at the input of the down projection, `[channels]`.
    pub channels: Option<D::Buffer>,
}

/// Gradients of the loss with respect to gates.
pub struct GateGradients<D: Device> {
    /// One entry a layer of the model; none for a layer that is not there.
    pub layers: Vec<Option<LayerGateGradients<D>>>,
}

/// Gradients of one layer's gates.
pub struct LayerGateGradients<D: Device> {
    /// `[heads]`.
    pub heads: D::Buffer,
    /// `[channels]`.
    pub channels: D::Buffer,
}

impl<D: Device> Gates<D> {
    /// All units of `layers` layers count in full.
    pub fn open(layers: usize) -> Self {
        Self { layers: (0..layers).map(|_| LayerGates { skip: false, heads: None, channels: None }).collect() }
    }

    fn layer(&mut self, layer: usize) -> Result<&mut LayerGates<D>> {
        let count = self.layers.len();
        self.layers.get_mut(layer).ok_or_else(|| RuntimeError::Input(format!("gates for layer {layer} of {count}")))
    }

    /// Lets a layer run or not.
    pub fn skip_layer(&mut self, layer: usize, skip: bool) -> Result<()> {
        self.layer(layer)?.skip = skip;
        Ok(())
    }

    /// Sets the factor of every head of a layer, `[heads]`.
    pub fn set_heads(&mut self, device: &D, layer: usize, factors: &[f32]) -> Result<()> {
        self.layer(layer)?.heads = Some(upload(&device.for_purpose(Purpose::Activations), factors)?);
        Ok(())
    }

    /// Sets the factor of every channel of a layer, `[channels]`.
    pub fn set_channels(&mut self, device: &D, layer: usize, factors: &[f32]) -> Result<()> {
        self.layer(layer)?.channels = Some(upload(&device.for_purpose(Purpose::Activations), factors)?);
        Ok(())
    }
}

impl<D: Device> GateGradients<D> {
    /// Zeros for every unit of `shape`.
    pub fn zeros(device: &D, shape: &ModelShape) -> Result<Self> {
        let device = device.for_purpose(Purpose::Gradients);
        let mut layers = Vec::with_capacity(shape.layers.len());
        for layer in &shape.layers {
            layers.push(match layer.units() {
                Some(units) => {
                    Some(LayerGateGradients { heads: device.zeros(units.heads.len())?, channels: device.zeros(units.channels)? })
                }
                None => None,
            });
        }
        Ok(Self { layers })
    }
}
