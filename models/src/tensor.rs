//! Which tensors a model has, their shapes and how they are stored.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::architecture::{Architecture, Input, NormKind, Output, Positions};
use crate::shape::{ModelShape, Units};

/// The number format of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a single.
    Bf16,
    /// Symmetric 8-bit blocks of 32 with an f16 scale; quants and scales are separate planes.
    Q8,
    /// 4-bit blocks of 32 with an f16 scale and an f16 minimum; quants, scales and minima are separate planes.
    Q4,
}

/// How the rows of a stored matrix lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Layout {
    /// Row after row.
    Rows,
    /// `n` neighbouring rows element by element: `[rows / n, columns, n]`, the last block padded with zeros. `n` is 2 for 16-bit
    /// numbers, 4 for 8-bit and 8 for 4-bit.
    Interleaved,
}

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Part {
    /// Token table `[vocabulary, d_model]`.
    TokenTable,
    /// Patch embedding `[d_model, patch]`.
    Patch,
    /// Patch embedding bias `[d_model]`.
    PatchBias,
    /// Learned positions `[count, d_model]`.
    PositionTable,
    /// Norm before attention `[d_model]`.
    AttentionNorm,
    /// Its bias `[d_model]`.
    AttentionNormBias,
    /// Norm of every query head `[head_dim]`.
    QueryNorm,
    /// Norm of every key head `[head_dim]`.
    KeyNorm,
    /// Query projection `[heads · head_dim, d_model]`.
    Query,
    /// Its bias.
    QueryBias,
    /// Key projection `[groups · head_dim, d_model]`.
    Key,
    /// Its bias.
    KeyBias,
    /// Value projection `[groups · head_dim, d_model]`.
    Value,
    /// Its bias.
    ValueBias,
    /// Output projection, units as rows: `[heads · head_dim, d_model]`.
    AttentionOutput,
    /// Its bias `[d_model]`.
    AttentionOutputBias,
    /// Norm of what attention adds to the residual stream `[d_model]`.
    AttentionPostNorm,
    /// Norm before the FFN `[d_model]`.
    FfnNorm,
    /// Its bias `[d_model]`.
    FfnNormBias,
    /// Gate projection `[channels, d_model]`.
    Gate,
    /// Its bias.
    GateBias,
    /// Up projection `[channels, d_model]`.
    Up,
    /// Its bias.
    UpBias,
    /// Down projection, units as rows: `[channels, d_model]`.
    Down,
    /// Its bias `[d_model]`.
    DownBias,
    /// Norm of what the FFN adds to the residual stream `[d_model]`.
    FfnPostNorm,
    /// Norm before the output `[d_model]`.
    FinalNorm,
    /// Its bias `[d_model]`.
    FinalNormBias,
    /// Output matrix `[vocabulary or classes, d_model]`.
    Head,
    /// Its bias.
    HeadBias,
}

/// One tensor of a model: its part and, for a part of a layer, the layer's position in the stored order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TensorKey {
    /// The layer, counted in the artifact's own order; none for what no layer owns.
    pub layer: Option<u32>,
    /// What the tensor is for.
    pub part: Part,
}

impl TensorKey {
    /// A tensor that no layer owns.
    pub fn global(part: Part) -> Self {
        Self { layer: None, part }
    }

    /// A tensor of the layer at `layer`.
    pub fn of_layer(layer: usize, part: Part) -> Self {
        Self { layer: Some(layer as u32), part }
    }
}

impl fmt::Display for TensorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "layer {layer} {:?}", self.part),
            None => write!(f, "{:?}", self.part),
        }
    }
}

/// A tensor that a model of some shape must have: its key, rows and columns (vectors have one row).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorSpec {
    /// Which tensor.
    pub key: TensorKey,
    /// Rows; 1 for a vector.
    pub rows: usize,
    /// Columns; the length of a vector.
    pub columns: usize,
}

impl TensorSpec {
    /// Whether the tensor is a vector (norm or bias), which is always stored as f32.
    pub fn is_vector(&self) -> bool {
        self.key.part.is_vector()
    }
}

impl Part {
    /// Whether the part is a vector (norm or bias), which is always stored as f32.
    pub fn is_vector(self) -> bool {
        use Part::*;
        !matches!(self, TokenTable | Patch | PositionTable | Query | Key | Value | AttentionOutput | Gate | Up | Down | Head)
    }

    /// Whether the part scales a norm.
    pub fn is_norm(self) -> bool {
        use Part::*;
        matches!(self, AttentionNorm | QueryNorm | KeyNorm | AttentionPostNorm | FfnNorm | FfnPostNorm | FinalNorm)
    }

    /// Whether rows are interleaved in formats below 32 bits: the projections that reduce over units.
    pub fn is_unit_reduction(self) -> bool {
        matches!(self, Part::AttentionOutput | Part::Down)
    }
}

/// The tensors of one layer with `units`, in the order in which they are stored.
pub fn layer_tensors(architecture: &Architecture, layer: usize, units: &Units) -> Vec<TensorSpec> {
    use Part::*;
    let d = architecture.d_model;
    let (attention, ffn) = (&architecture.attention, &architecture.ffn);
    let (query, kv) = (units.heads.len() * attention.head_dim, units.groups * attention.head_dim);
    let norm_bias = architecture.norm.kind == NormKind::LayerNorm;
    let mut specs = Vec::with_capacity(16);
    let mut add = |present: bool, part, rows, columns| {
        if present {
            specs.push(TensorSpec { key: TensorKey::of_layer(layer, part), rows, columns });
        }
    };
    add(true, AttentionNorm, 1, d);
    add(norm_bias, AttentionNormBias, 1, d);
    add(true, Query, query, d);
    add(attention.qkv_bias, QueryBias, 1, query);
    add(true, Key, kv, d);
    add(attention.qkv_bias, KeyBias, 1, kv);
    add(true, Value, kv, d);
    add(attention.qkv_bias, ValueBias, 1, kv);
    add(attention.qk_norm, QueryNorm, 1, attention.head_dim);
    add(attention.qk_norm, KeyNorm, 1, attention.head_dim);
    add(true, AttentionOutput, query, d);
    add(attention.output_bias, AttentionOutputBias, 1, d);
    add(architecture.post_norms, AttentionPostNorm, 1, d);
    add(architecture.has_ffn_norm(), FfnNorm, 1, d);
    add(architecture.has_ffn_norm() && norm_bias, FfnNormBias, 1, d);
    add(ffn.gated, Gate, units.channels, d);
    add(ffn.gated && ffn.bias, GateBias, 1, units.channels);
    add(true, Up, units.channels, d);
    add(ffn.bias, UpBias, 1, units.channels);
    add(true, Down, units.channels, d);
    add(ffn.bias, DownBias, 1, d);
    add(architecture.post_norms, FfnPostNorm, 1, d);
    specs
}

/// All tensors of a model of `shape`, in the order in which they are stored: input, the layers that are there, output.
pub fn model_tensors(architecture: &Architecture, shape: &ModelShape) -> Vec<TensorSpec> {
    let d = architecture.d_model;
    let global = |part, rows, columns| TensorSpec { key: TensorKey::global(part), rows, columns };
    let mut specs = Vec::new();
    match architecture.input {
        Input::Tokens { vocabulary } => specs.push(global(Part::TokenTable, vocabulary, d)),
        Input::Patches { patch, .. } => {
            specs.push(global(Part::Patch, d, patch));
            specs.push(global(Part::PatchBias, 1, d));
        }
    }
    if let Positions::Learned { count, .. } = architecture.positions {
        specs.push(global(Part::PositionTable, count, d));
    }
    for (index, units) in shape.kept() {
        specs.extend(layer_tensors(architecture, index, units));
    }
    specs.push(global(Part::FinalNorm, 1, d));
    if architecture.norm.kind == NormKind::LayerNorm {
        specs.push(global(Part::FinalNormBias, 1, d));
    }
    match &architecture.output {
        Output::NextToken { tied, bias } => {
            let width = architecture.output_width();
            specs.extend((!tied).then(|| global(Part::Head, width, d)));
            specs.extend(bias.then(|| global(Part::HeadBias, 1, width)));
        }
        Output::Classes { names } => {
            specs.push(global(Part::Head, names.len(), d));
            specs.push(global(Part::HeadBias, 1, names.len()));
        }
    }
    specs
}
