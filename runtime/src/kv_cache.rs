//! Keys and values of the tokens that a session has read.

use espalier_kernels::{Device, Purpose};

use crate::error::Result;
use crate::network::Network;

/// Keys and values of every kept layer, for one sequence of up to `capacity` tokens.
pub struct KvCache<D: Device> {
    layers: Vec<(D::Buffer, D::Buffer)>,
    capacity: usize,
    len: usize,
}

/// The cache of one layer.
pub(crate) struct LayerCache<'a, D: Device> {
    /// `[capacity, groups · head_dim]`.
    pub keys: &'a mut D::Buffer,
    /// `[capacity, groups · head_dim]`.
    pub values: &'a mut D::Buffer,
    pub capacity: usize,
}

impl<D: Device> KvCache<D> {
    /// An empty cache for `capacity` tokens.
    pub fn new(network: &Network<D>, capacity: usize) -> Result<Self> {
        let device = network.device.for_purpose(Purpose::KvCache);
        let head_dim = network.architecture.attention.head_dim;
        let mut layers = Vec::new();
        for (_, units) in network.shape.kept() {
            let len = capacity * units.groups * head_dim;
            layers.push((device.zeros(len)?, device.zeros(len)?));
        }
        Ok(Self { layers, capacity, len: 0 })
    }

    /// Tokens that are cached.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is cached.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The most tokens it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn layer(&mut self, position: usize) -> LayerCache<'_, D> {
        let (keys, values) = &mut self.layers[position];
        LayerCache { keys, values, capacity: self.capacity }
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}
