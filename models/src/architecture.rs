//! What all layers of a model share.
//!
//! An [`Architecture`] and a [`ModelShape`](crate::ModelShape) are everything that a consumer needs to run, train, prune or write a
//! model. Nothing outside the importers and exporters asks for the name of a model's family.

use serde::{Deserialize, Serialize};

pub use crate::rotary::{Rotary, RotaryScaling};

/// What all layers of a model share, whatever the size of each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Architecture {
    /// What the model reads.
    pub input: Input,
    /// What the rows of the token table are multiplied by where they enter the residual stream; none for 1.
    pub embedding_scale: Option<f32>,
    /// What the model says.
    pub output: Output,
    /// Width of the residual stream.
    pub d_model: usize,
    /// The norm before attention, before the FFN and before the output.
    pub norm: Norm,
    /// Whether the output of attention and of the FFN is normalised too, before it is added to the residual stream.
    pub post_norms: bool,
    /// How a position is made known to the model.
    pub positions: Positions,
    /// The kinds of attention that layers have; a layer names its own by index ([`Units::span`](crate::Units)). At least one.
    pub spans: Vec<AttentionSpan>,
    /// What all attention blocks share.
    pub attention: Attention,
    /// What all feed-forward blocks share.
    pub ffn: Ffn,
    /// How the blocks of a layer are added to the residual stream.
    pub residual: Residual,
}

/// What the model reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Input {
    /// Token ids below `vocabulary`, looked up in a table `[vocabulary, d_model]`.
    Tokens {
        /// Number of token ids.
        vocabulary: usize,
    },
    /// One window of one sensor, cut into patches, each mapped linearly (with bias) to `d_model`.
    Patches {
        /// Samples in a window.
        window: usize,
        /// Samples in a patch.
        patch: usize,
        /// Samples between the starts of neighbouring patches.
        stride: usize,
        /// The rate at which the training signals were sampled, in hertz.
        sample_rate_hz: f64,
    },
}

/// What the model says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Output {
    /// Logits over the vocabulary at every position. Tied: the token table is the output matrix too.
    NextToken {
        /// Whether the token table is also the output matrix.
        tied: bool,
        /// Whether the logits have a bias.
        bias: bool,
    },
    /// Logits over classes, from the mean of the final hidden states over all positions; a linear map with bias.
    Classes {
        /// The classes' names, in the order of the logits.
        names: Vec<String>,
    },
}

/// The kind of normalisation and its epsilon.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Norm {
    /// Which normalisation.
    pub kind: NormKind,
    /// Added to the variance (or mean square) before the root.
    pub epsilon: f32,
}

/// Which normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NormKind {
    /// Subtract the mean, divide by the standard deviation, scale and shift (Ba et al., 2016).
    LayerNorm,
    /// Divide by the root mean square, scale (Zhang and Sennrich, 2019).
    RmsNorm,
}

/// How a position is made known to the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Positions {
    /// A learned table `[count, d_model]` added to the embeddings; position `p` reads row `p + offset`.
    Learned {
        /// Rows of the table.
        count: usize,
        /// Added to a position before the table is read.
        offset: usize,
    },
    /// Rotary embedding (Su et al., 2021) of the first `dims` dimensions of every query and key head, halves rotated against each other.
    /// Wavelengths are the layer's [`AttentionSpan::rotary`].
    Rotary {
        /// Rotated dimensions of a head; even, at most the head size.
        dims: usize,
        /// The longest sequence that the model was made for.
        context: usize,
    },
}

/// How far a layer's attention reaches and how it tells positions apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AttentionSpan {
    /// How many keys a query sees, its own position the last of them; none where it sees all before it (sliding window; Beltagy et al.,
    /// 2020).
    pub window: Option<usize>,
    /// The wavelengths of rotary positions; none for other positions.
    pub rotary: Option<Rotary>,
}

/// What all attention blocks share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attention {
    /// Dimensions of a head.
    pub head_dim: usize,
    /// What scores are multiplied by; none for `1 / √head_dim`.
    pub scale: Option<f32>,
    /// Whether every query and key head is normalised (RMSNorm over `head_dim`, before rotary positions).
    pub qk_norm: bool,
    /// Whether the query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// Whether the source stores q, k and v as one matrix, so that an adapter has one model side for all three.
    pub fused_qkv: bool,
}

/// What all feed-forward blocks share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ffn {
    /// Whether a gate projection multiplies the up projection (SwiGLU and its kin).
    pub gated: bool,
    /// Applied to the gate projection where there is one, else to the up projection.
    pub activation: Activation,
    /// Whether the projections have biases.
    pub bias: bool,
}

/// An FFN activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `x · Φ(x)` with the error function.
    GeluExact,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// `x · sigmoid(x)`.
    Silu,
    /// `max(x, 0)`.
    Relu,
}

/// How the blocks of a layer are added to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Residual {
    /// The FFN reads what attention has added.
    Sequential,
    /// Attention and FFN read the same input, and both outputs are added to it.
    Parallel {
        /// Whether both read it through the attention norm; else the FFN has a norm of its own.
        shared_norm: bool,
    },
}

impl AttentionSpan {
    /// Every key before a query is seen, and positions are not rotary.
    pub const FULL: Self = Self { window: None, rotary: None };
}

impl Attention {
    /// What scores are multiplied by.
    pub fn score_scale(&self) -> f32 {
        self.scale.unwrap_or((1.0 / (self.head_dim.max(1) as f64).sqrt()) as f32)
    }
}

impl Architecture {
    /// Whether the FFN has a norm of its own.
    pub fn has_ffn_norm(&self) -> bool {
        self.residual != Residual::Parallel { shared_norm: true }
    }

    /// Width of the output: vocabulary or number of classes.
    pub fn output_width(&self) -> usize {
        match (&self.output, &self.input) {
            (Output::Classes { names }, _) => names.len(),
            (Output::NextToken { .. }, Input::Tokens { vocabulary }) => *vocabulary,
            (Output::NextToken { .. }, Input::Patches { .. }) => 0,
        }
    }

    /// The longest sequence, in tokens or patches, that the model can read.
    pub fn context(&self) -> usize {
        let by_positions = match self.positions {
            Positions::Learned { count, offset } => count.saturating_sub(offset),
            Positions::Rotary { context, .. } => context,
        };
        match self.input {
            Input::Patches { .. } => self.patches().min(by_positions),
            Input::Tokens { .. } => by_positions,
        }
    }

    /// Patches in a window; 0 for a model of tokens.
    pub fn patches(&self) -> usize {
        match self.input {
            Input::Patches { window, patch, stride, .. } if patch > 0 && stride > 0 && window >= patch => (window - patch) / stride + 1,
            _ => 0,
        }
    }

    /// Class names; empty for a language model.
    pub fn classes(&self) -> &[String] {
        match &self.output {
            Output::Classes { names } => names,
            Output::NextToken { .. } => &[],
        }
    }
}
