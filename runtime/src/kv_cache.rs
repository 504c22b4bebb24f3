//! Keys and values of the tokens that a session has read.

use espalier_kernels::{Device, KeyValues, Purpose, Start};

use crate::decoding::StepPosition;
use crate::error::Result;
use crate::network::Network;

/// Keys and values of every kept layer, for one sequence of up to `capacity` tokens.
pub struct KvCache<D: Device> {
    layers: Vec<(D::Buffer, D::Buffer)>,
    capacity: usize,
    len: usize,
}

/// The cache of one layer, and where the tokens of a pass stand in it.
pub(crate) struct LayerCache<'a, D: Device> {
    pub cache: KeyValues<'a, D::Buffer>,
    pub start: Start<'a, D::Indices>,
    /// Keys with those of the pass; at most so many where the start is the device's to read.
    pub keys: usize,
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

    /// The cache of the `position`-th kept layer for `tokens` tokens more, which are those of `step` where there is one.
    pub(crate) fn layer<'a>(&'a mut self, position: usize, tokens: usize, step: Option<StepPosition<'a, D>>) -> LayerCache<'a, D> {
        let (keys, values) = &mut self.layers[position];
        let cache = KeyValues { keys, values, capacity: self.capacity };
        match step {
            Some(step) => LayerCache { cache, start: Start::Stored(step.index), keys: step.most_keys },
            None => LayerCache { cache, start: Start::At(self.len), keys: self.len + tokens },
        }
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}
