//! The signal transformer: which shapes it comes in.

use espalier_models::architecture::{
    Activation, Architecture, Attention, AttentionSpan, Ffn, Input, Norm, NormKind, Output, Positions, Residual,
};
use espalier_models::manifest::{Measured, Origin, StoredLayer};
use espalier_models::{LayerShape, Manifest, ModelShape, Units};

use crate::error::{AgentError, Result};

/// The size of a signal transformer (METHODS: windows cut into patches, linear embedding and learned positions, causal blocks, mean over
/// positions, classifier; multi-head attention, LayerNorm, GELU).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SignalSize {
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Heads of a layer.
    pub heads: usize,
    /// FFN channels of a layer.
    pub channels: usize,
    /// Samples in a window.
    pub window: usize,
    /// Samples in a patch.
    pub patch: usize,
    /// Samples between the starts of neighbouring patches.
    pub stride: usize,
}

impl SignalSize {
    /// 2.7 million parameters: what a small board serves with ease and a few minutes train.
    pub const SMALL: Self = Self { layers: 6, width: 192, heads: 6, channels: 768, window: 2048, patch: 64, stride: 64 };
    /// The 85 million parameters of the cascade's paper: GPT-2's blocks.
    pub const PAPER: Self = Self { layers: 12, width: 768, heads: 12, channels: 3072, window: 2048, patch: 64, stride: 64 };

    /// The architecture for these classes.
    pub fn architecture(&self, classes: &[String], sample_rate_hz: f64) -> Result<Architecture> {
        let Self { layers, width, heads, channels, window, patch, stride } = *self;
        let sizes = [
            ("layers", layers, 1024),
            ("width", width, 65_536),
            ("heads", heads, 4096),
            ("channels", channels, 1 << 20),
            ("patch", patch, window),
            ("stride", stride, window),
        ];
        for (name, value, most) in sizes {
            if value == 0 || value > most {
                return Err(AgentError::Usage(format!("{value} {name} are not possible; give 1 to {most}")));
            }
        }
        if width % heads != 0 {
            return Err(AgentError::Usage(format!("a width of {width} cannot be shared by {heads} heads; give a multiple of {heads}")));
        }
        Ok(Architecture {
            input: Input::Patches { window, patch, stride, sample_rate_hz },
            embedding_scale: None,
            output: Output::Classes { names: classes.to_vec() },
            d_model: width,
            norm: Norm { kind: NormKind::LayerNorm, epsilon: 1e-5 },
            post_norms: false,
            positions: Positions::Learned { count: (window - patch) / stride + 1, offset: 0 },
            spans: vec![AttentionSpan::FULL],
            attention: Attention {
                head_dim: width / heads,
                scale: None,
                qk_norm: false,
                qkv_bias: true,
                output_bias: true,
                fused_qkv: false,
            },
            ffn: Ffn { gated: false, activation: Activation::GeluTanh, bias: true },
            residual: Residual::Sequential,
        })
    }

    /// The dense shape.
    pub fn shape(&self) -> ModelShape {
        ModelShape::uniform(self.layers, Units::dense(self.heads, self.heads, self.channels))
    }
}

/// The manifest of a network that was made here, dense.
pub fn dense_manifest(name: &str, architecture: Architecture, shape: &ModelShape, history: String, measured: Option<Measured>) -> Manifest {
    let stored = |(index, layer): (usize, &LayerShape)| {
        let units = layer.units();
        let count = |of: fn(&Units) -> usize| (0..units.map_or(0, of) as u32).collect();
        StoredLayer {
            original: index as u32,
            shape: layer.clone(),
            original_heads: count(|units| units.heads.len()),
            original_groups: count(|units| units.groups),
            original_channels: count(|units| units.channels),
        }
    };
    let dense_parameters = shape.parameters(&architecture) as u64;
    Manifest {
        name: name.to_string(),
        layers: shape.layers.iter().enumerate().map(stored).collect(),
        architecture,
        tensors: Vec::new(),
        levels: Vec::new(),
        origin: Origin { dialect: "espalier".into(), config: String::new(), dense_parameters, history: vec![history] },
        tokenizer: None,
        measured,
        diagnosis: None,
    }
}
