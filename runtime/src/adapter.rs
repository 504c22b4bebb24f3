//! Low-rank adapters (LoRA; Hu et al., 2021), written for the artifact's unit-major matrices.
//!
//! Every matrix `W [units, d_model]` lies with units as rows, so one form fits all: `ΔW = scale · U · V` with the unit side
//! `U [units, rank]` and the model side `V [rank, d_model]`. In the row-dot form (query, key, value, gate, up) `V` is LoRA's A and `U` its
//! B; in the unit-row form (attention output, down) `U` is Aᵀ and `V` is Bᵀ. Where the source fuses q, k and v, one `V` serves all three.

use espalier_kernels::{Device, Product, Purpose};
use espalier_models::Part;

use crate::error::Result;
use crate::network::Network;

/// One adapter of one layer.
pub struct Adapter<D: Device> {
    /// The layer, in stored order.
    pub layer: usize,
    /// The matrices it adds to, which share the model side.
    pub parts: Vec<Part>,
    /// Columns of the unit sides, rows of the model side.
    pub rank: usize,
    /// The factor, α / rank.
    pub scale: f32,
    /// `V [rank, d_model]`.
    pub model_side: D::Buffer,
    /// One `U [units, rank]` a part.
    pub unit_sides: Vec<D::Buffer>,
}

/// Gradients of one adapter, or its optimizer moments: the same shapes.
pub struct AdapterLike<D: Device> {
    /// Of `V`.
    pub model_side: D::Buffer,
    /// Of each `U`.
    pub unit_sides: Vec<D::Buffer>,
}

/// Which adapters a network gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdapterOptions {
    /// Columns of the unit sides.
    pub rank: usize,
    /// α; the factor is α / rank.
    pub alpha: f32,
    /// Whether the attention projections get adapters.
    pub attention: bool,
    /// Whether the FFN projections get adapters.
    pub ffn: bool,
}

impl Default for AdapterOptions {
    /// What the cascade was published with: rank 4, α 16, on the attention projections.
    fn default() -> Self {
        Self { rank: 4, alpha: 16.0, attention: true, ffn: false }
    }
}

impl AdapterOptions {
    /// The groups of matrices of one layer that share an adapter.
    pub fn groups(&self, fused_qkv: bool, gated: bool) -> Vec<Vec<Part>> {
        let mut groups = Vec::new();
        if self.attention {
            let qkv = [Part::Query, Part::Key, Part::Value];
            groups.extend(if fused_qkv { vec![qkv.to_vec()] } else { qkv.map(|part| vec![part]).to_vec() });
            groups.push(vec![Part::AttentionOutput]);
        }
        if self.ffn {
            groups.extend(gated.then(|| vec![Part::Gate]));
            groups.extend([vec![Part::Up], vec![Part::Down]]);
        }
        groups
    }
}

impl<D: Device> Adapter<D> {
    /// Adapters for every layer that is there. They change nothing at first: in each pair the side that LoRA calls A is uniform in
    /// `±1/√(inputs)` (the default of the reference implementation), the other is zero. `uniform` yields numbers in [−1, 1).
    pub fn for_network(network: &Network<D>, options: AdapterOptions, uniform: &mut dyn FnMut() -> f32) -> Result<Vec<Self>> {
        let device = network.device.for_purpose(Purpose::Adapters);
        let architecture = &network.architecture;
        let mut adapters = Vec::new();
        for layer in network.kept_layers() {
            for parts in options.groups(architecture.attention.fused_qkv, architecture.ffn.gated) {
                let adapter = Self::zeros(&device, network, layer, parts, options.rank, options.alpha / options.rank.max(1) as f32)?;
                // A block that lost all its units has nothing to adapt.
                if adapter.unit_sides.iter().all(|side| device.len(side) > 0) {
                    adapters.push(adapter.randomised(&device, architecture.d_model, uniform)?);
                }
            }
        }
        Ok(adapters)
    }

    /// An adapter of zeros.
    pub fn zeros(device: &D, network: &Network<D>, layer: usize, parts: Vec<Part>, rank: usize, scale: f32) -> Result<Self> {
        let mut unit_sides = Vec::with_capacity(parts.len());
        for part in &parts {
            let (units, _) = device.weight_shape(network.weight(espalier_models::TensorKey::of_layer(layer, *part))?);
            unit_sides.push(device.zeros(units * rank)?);
        }
        let model_side = device.zeros(rank * network.architecture.d_model)?;
        Ok(Self { layer, parts, rank, scale, model_side, unit_sides })
    }

    fn randomised(mut self, device: &D, d_model: usize, uniform: &mut dyn FnMut() -> f32) -> Result<Self> {
        let unit_row = self.parts.iter().all(|part| part.is_unit_reduction());
        let side = if unit_row { &mut self.unit_sides[0] } else { &mut self.model_side };
        let inputs = if unit_row { device.len(side) / self.rank.max(1) } else { d_model };
        let bound = 1.0 / (inputs.max(1) as f32).sqrt();
        let numbers: Vec<f32> = (0..device.len(side)).map(|_| bound * uniform()).collect();
        device.write(side, 0, &numbers)?;
        Ok(self)
    }

    /// Zeros in the shape of this adapter: gradients or moments.
    pub fn like(&self, device: &D) -> Result<AdapterLike<D>> {
        let unit_sides = self.unit_sides.iter().map(|side| device.zeros(device.len(side))).collect::<espalier_kernels::Result<_>>()?;
        Ok(AdapterLike { model_side: device.zeros(device.len(&self.model_side))?, unit_sides })
    }

    /// Bytes of its numbers.
    pub fn bytes(&self, device: &D) -> u64 {
        let sides = self.unit_sides.iter().map(|side| device.len(side)).sum::<usize>();
        4 * (sides + device.len(&self.model_side)) as u64
    }

    /// The unit side of `part` in `layer`, where this adapter adds to it.
    pub(crate) fn unit_side_of(&self, layer: usize, part: Part) -> Option<usize> {
        if self.layer == layer { self.parts.iter().position(|candidate| *candidate == part) } else { None }
    }
}

/// Sizes of one adapted product.
#[derive(Clone, Copy)]
pub(crate) struct AdapterSizes {
    pub m: usize,
    pub units: usize,
    pub d: usize,
    pub rank: usize,
}

const PLAIN: Product = Product { m: 0, n: 0, k: 0, transpose_a: false, transpose_b: false, alpha: 1.0, accumulate: false };

impl AdapterSizes {
    /// `t [m, rank] = x [m, d] · Vᵀ`.
    pub fn by_model_side<D: Device>(self, device: &D, t: &mut D::Buffer, x: &D::Buffer, v: &D::Buffer, alpha: f32) -> Result<()> {
        Ok(device.matmul(t, x, v, Product { m: self.m, n: self.rank, k: self.d, transpose_b: true, alpha, ..PLAIN })?)
    }

    /// `t [m, rank] = a [m, units] · U`.
    pub fn by_unit_side<D: Device>(self, device: &D, t: &mut D::Buffer, a: &D::Buffer, u: &D::Buffer, alpha: f32) -> Result<()> {
        Ok(device.matmul(t, a, u, Product { m: self.m, n: self.rank, k: self.units, alpha, ..PLAIN })?)
    }

    /// `y [m, units] += alpha · t · Uᵀ`.
    pub fn to_units<D: Device>(self, device: &D, y: &mut D::Buffer, t: &D::Buffer, u: &D::Buffer, alpha: f32) -> Result<()> {
        Ok(device.matmul(
            y,
            t,
            u,
            Product { m: self.m, n: self.units, k: self.rank, transpose_b: true, alpha, accumulate: true, ..PLAIN },
        )?)
    }

    /// `y [m, d] += alpha · t · V`.
    pub fn to_model<D: Device>(self, device: &D, y: &mut D::Buffer, t: &D::Buffer, v: &D::Buffer, alpha: f32) -> Result<()> {
        Ok(device.matmul(y, t, v, Product { m: self.m, n: self.d, k: self.rank, alpha, accumulate: true, ..PLAIN })?)
    }

    /// `dU [units, rank] += aᵀ · t`.
    pub fn unit_gradient<D: Device>(self, device: &D, du: &mut D::Buffer, a: &D::Buffer, t: &D::Buffer) -> Result<()> {
        Ok(device.matmul(du, a, t, Product { m: self.units, n: self.rank, k: self.m, transpose_a: true, accumulate: true, ..PLAIN })?)
    }

    /// `dV [rank, d] += tᵀ · x`.
    pub fn model_gradient<D: Device>(self, device: &D, dv: &mut D::Buffer, t: &D::Buffer, x: &D::Buffer) -> Result<()> {
        Ok(device.matmul(dv, t, x, Product { m: self.rank, n: self.d, k: self.m, transpose_a: true, accumulate: true, ..PLAIN })?)
    }
}
