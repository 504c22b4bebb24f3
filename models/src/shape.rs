//! What each layer of a model still has.

use serde::{Deserialize, Serialize};

use crate::architecture::{Architecture, Input, NormKind, Output, Positions};

/// What one layer still has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerShape {
    /// The whole layer is gone: its input is its output.
    Removed,
    /// The layer is there, with these units.
    Kept(Units),
}

/// The units of a layer that is there. Zero heads or zero channels are legal: that block then adds its output bias only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Units {
    /// The KV group of every query head, in the order in which the heads are stored.
    pub heads: Vec<u32>,
    /// KV groups.
    pub groups: usize,
    /// FFN channels.
    pub channels: usize,
    /// Which of the architecture's [`spans`](Architecture::spans) the attention has, by index.
    pub span: usize,
}

/// What every layer of a model still has, in the order of the layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelShape {
    /// One entry a layer.
    pub layers: Vec<LayerShape>,
}

impl Units {
    /// `heads` query heads that share `groups` KV groups evenly and in order, and `channels` FFN channels, with the first attention span.
    pub fn dense(heads: usize, groups: usize, channels: usize) -> Self {
        let share = heads.checked_div(groups).unwrap_or(1).max(1);
        Self { heads: (0..heads).map(|head| (head / share) as u32).collect(), groups, channels, span: 0 }
    }

    /// Parameters of a layer with these units, biases and norms included.
    pub fn parameters(&self, architecture: &Architecture) -> usize {
        let d = architecture.d_model;
        let attention = &architecture.attention;
        let (query, kv) = (self.heads.len() * attention.head_dim, self.groups * attention.head_dim);
        let qkv = (query + 2 * kv) * (d + usize::from(attention.qkv_bias));
        let output = query * d + if attention.output_bias { d } else { 0 };
        let inner = if architecture.ffn.gated { 2 } else { 1 };
        let ffn_bias = if architecture.ffn.bias { inner * self.channels + d } else { 0 };
        let ffn = (inner + 1) * self.channels * d + ffn_bias;
        let norms = 1 + usize::from(architecture.has_ffn_norm()) + if architecture.post_norms { 2 } else { 0 };
        let qk_norms = if attention.qk_norm { 2 * attention.head_dim } else { 0 };
        qkv + output + ffn + norms * norm_parameters(architecture) + qk_norms
    }
}

impl LayerShape {
    /// The layer's units, or none where it is removed.
    pub fn units(&self) -> Option<&Units> {
        match self {
            LayerShape::Removed => None,
            LayerShape::Kept(units) => Some(units),
        }
    }
}

impl ModelShape {
    /// `layers` equal layers.
    pub fn uniform(layers: usize, units: Units) -> Self {
        Self { layers: vec![LayerShape::Kept(units); layers] }
    }

    /// The layers that are there, with their positions.
    pub fn kept(&self) -> impl Iterator<Item = (usize, &Units)> {
        self.layers.iter().enumerate().filter_map(|(index, layer)| layer.units().map(|units| (index, units)))
    }

    /// All stored parameters of a model of this shape, without adapters.
    pub fn parameters(&self, architecture: &Architecture) -> usize {
        let layers: usize = self.kept().map(|(_, units)| units.parameters(architecture)).sum();
        layers + fixed_parameters(architecture)
    }
}

/// Parameters of one norm.
pub fn norm_parameters(architecture: &Architecture) -> usize {
    match architecture.norm.kind {
        NormKind::LayerNorm => 2 * architecture.d_model,
        NormKind::RmsNorm => architecture.d_model,
    }
}

/// Parameters that no pruning removes: embedding, positions, final norm and output.
pub fn fixed_parameters(architecture: &Architecture) -> usize {
    let d = architecture.d_model;
    let input = match architecture.input {
        Input::Tokens { vocabulary } => vocabulary * d,
        Input::Patches { patch, .. } => (patch + 1) * d,
    };
    let positions = match architecture.positions {
        Positions::Learned { count, .. } => count * d,
        Positions::Rotary { .. } => 0,
    };
    let output = match &architecture.output {
        Output::NextToken { tied, bias } => {
            let width = architecture.output_width();
            (if *tied { 0 } else { width * d }) + (if *bias { width } else { 0 })
        }
        Output::Classes { names } => names.len() * (d + 1),
    };
    input + positions + norm_parameters(architecture) + output
}
