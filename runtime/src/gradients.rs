//! What a backward pass adds to: gradients of chosen parameters, of adapters and of gates.

use std::collections::BTreeMap;

use espalier_kernels::{Device, Purpose};
use espalier_models::TensorKey;

use crate::adapter::{Adapter, AdapterLike};
use crate::error::Result;
use crate::gates::GateGradients;
use crate::network::Network;

/// Gradients, by what they belong to. A backward pass computes those that are there and leaves out the rest.
pub struct Gradients<D: Device> {
    /// Of parameters.
    pub parameters: BTreeMap<TensorKey, D::Buffer>,
    /// Of adapters, in their order; empty where they are not wanted.
    pub adapters: Vec<AdapterLike<D>>,
    /// Of gates.
    pub gates: Option<GateGradients<D>>,
}

impl<D: Device> Gradients<D> {
    /// No gradients.
    pub fn none() -> Self {
        Self { parameters: BTreeMap::new(), adapters: Vec::new(), gates: None }
    }

    /// Of every trainable parameter.
    pub fn of_parameters(network: &mut Network<D>) -> Result<Self> {
        let device = network.device.for_purpose(Purpose::Gradients);
        let lengths: Vec<_> = network.trainable().into_iter().map(|(key, buffer)| (key, device.len(buffer))).collect();
        Self::of_tensors(&device, &lengths)
    }

    /// Of the given tensors, each with its length.
    pub fn of_tensors(device: &D, lengths: &[(TensorKey, usize)]) -> Result<Self> {
        let device = device.for_purpose(Purpose::Gradients);
        let parameters = lengths.iter().map(|(key, len)| Ok((*key, device.zeros(*len)?))).collect::<Result<_>>()?;
        Ok(Self { parameters, ..Self::none() })
    }

    /// Of adapters.
    pub fn of_adapters(device: &D, adapters: &[Adapter<D>]) -> Result<Self> {
        let device = device.for_purpose(Purpose::Gradients);
        Ok(Self { adapters: adapters.iter().map(|adapter| adapter.like(&device)).collect::<Result<_>>()?, ..Self::none() })
    }

    /// All buffers: parameters, then adapters. Gates are not among them: nothing trains them.
    pub fn buffers(&self) -> impl Iterator<Item = &D::Buffer> {
        let adapters = self.adapters.iter().flat_map(|adapter| std::iter::once(&adapter.model_side).chain(&adapter.unit_sides));
        self.parameters.values().chain(adapters)
    }

    /// All buffers, to be changed.
    pub fn buffers_mut(&mut self) -> impl Iterator<Item = &mut D::Buffer> {
        let adapters = self.adapters.iter_mut().flat_map(|adapter| std::iter::once(&mut adapter.model_side).chain(&mut adapter.unit_sides));
        self.parameters.values_mut().chain(adapters)
    }

    /// Sets all gradients to zero.
    pub fn clear(&mut self, device: &D) -> Result<()> {
        for buffer in self.buffers_mut() {
            let len = device.len(buffer);
            device.fill(buffer, len, 0.0)?;
        }
        for layer in self.gates.iter_mut().flat_map(|gates| gates.layers.iter_mut().flatten()) {
            let (heads, channels) = (device.len(&layer.heads), device.len(&layer.channels));
            device.fill(&mut layer.heads, heads, 0.0)?;
            device.fill(&mut layer.channels, channels, 0.0)?;
        }
        Ok(())
    }

    /// Euclidean norm of parameters' and adapters' gradients together.
    pub fn norm(&self, device: &D) -> Result<f64> {
        let mut sum = 0.0;
        for buffer in self.buffers() {
            sum += device.sum_of_squares(buffer, device.len(buffer))?;
        }
        Ok(sum.sqrt())
    }

    /// Scales all so that the norm is at most `bound`; returns the norm before.
    pub fn clip(&mut self, device: &D, bound: f64) -> Result<f64> {
        let norm = self.norm(device)?;
        if norm > bound {
            self.scale(device, (bound / norm) as f32)?;
        }
        Ok(norm)
    }

    /// Multiplies parameters' and adapters' gradients.
    pub fn scale(&mut self, device: &D, factor: f32) -> Result<()> {
        for buffer in self.buffers_mut() {
            let len = device.len(buffer);
            device.scale(buffer, len, factor)?;
        }
        Ok(())
    }

    pub(crate) fn parameter(&mut self, key: TensorKey) -> Option<&mut D::Buffer> {
        self.parameters.get_mut(&key)
    }
}
