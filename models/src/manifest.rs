//! What an artifact says about itself.

use serde::{Deserialize, Serialize};

use crate::architecture::{Architecture, Input};
use crate::shape::{LayerShape, ModelShape};
use crate::tensor::{DType, Layout, Part, TensorKey};

/// Everything about a model but its numbers: the first section of an artifact, encoded with postcard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// A name for people.
    pub name: String,
    /// What all layers share.
    pub architecture: Architecture,
    /// One entry a stored layer, in running order.
    pub layers: Vec<StoredLayer>,
    /// Where every tensor lies, ordered by offset.
    pub tensors: Vec<StoredTensor>,
    /// Smaller networks inside this one, largest first; empty for an artifact of one level.
    pub levels: Vec<Level>,
    /// Where the model came from.
    pub origin: Origin,
    /// Where the raw `tokenizer.json` lies, for a model of tokens that was imported with one.
    pub tokenizer: Option<Span>,
    /// What was measured on the holdout when the model was accepted; none for an import.
    pub measured: Option<Measured>,
    /// What a language model that diagnoses machines by text must know beside its weights; none for any other model.
    pub diagnosis: Option<TextDiagnosis>,
}

/// How a language model diagnoses a machine: statistics of a window are its prompt, and one of the labels follows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextDiagnosis {
    /// The classes' names, in the order of the verdict's probabilities.
    pub classes: Vec<String>,
    /// What the model says for each class, without the space before it.
    pub labels: Vec<String>,
    /// Samples in a window.
    pub window: usize,
    /// The rate at which the training signals were sampled, in hertz.
    pub sample_rate_hz: f64,
}

/// One stored layer: its shape and the index that each unit had in the network that was first imported or trained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredLayer {
    /// The layer's index in the first network.
    pub original: u32,
    /// What the layer has.
    pub shape: LayerShape,
    /// Original index of each stored head.
    pub original_heads: Vec<u32>,
    /// Original index of each stored KV group.
    pub original_groups: Vec<u32>,
    /// Original index of each stored channel.
    pub original_channels: Vec<u32>,
}

/// Where a tensor lies and how it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredTensor {
    /// Which tensor.
    pub key: TensorKey,
    /// Its number format.
    pub dtype: DType,
    /// How its rows lie.
    pub layout: Layout,
    /// Rows; 1 for a vector.
    pub rows: u64,
    /// Columns.
    pub columns: u64,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// A nested network: a prefix of every layer's units, with what recovers its accuracy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// What each stored layer has at this level.
    pub layers: Vec<LayerShape>,
    /// The adapters of this level, concatenated over its stages.
    pub adapters: Vec<StoredAdapter>,
    /// Norms and biases that replace those of the base at this level.
    pub overrides: Vec<StoredTensor>,
    /// Bytes that this level reads, adapters and overrides included.
    pub bytes: u64,
    /// What was measured on the holdout.
    pub measured: Option<Measured>,
}

/// A low-rank addition `ΔW = scale · U · V` to a stored matrix `W [units, d_model]`: `U [units, rank]` is in unit order, so a prefix of
/// it belongs to a prefix of the units; `V [rank, d_model]` may be shared by the matrices that the source had fused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredAdapter {
    /// The layer in stored order.
    pub layer: u32,
    /// The matrices that share `V`, each with its own `U`.
    pub parts: Vec<Part>,
    /// Columns of `U`, rows of `V`.
    pub rank: u32,
    /// The factor.
    pub scale: f32,
    /// `V [rank, d_model]`, f32.
    pub model_side: Span,
    /// One `U [units, rank]` a part, f32.
    pub unit_sides: Vec<Span>,
}

/// A range of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// Where a model came from: what the exporters need to write it back, and what a person wants to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// The dialect of names and layouts to write back (`gpt2`, `llama`, `espalier`).
    pub dialect: String,
    /// The source's `config.json`, for the exporters; empty for a model trained here.
    pub config: String,
    /// The parameters of the first network, before any pruning.
    pub dense_parameters: u64,
    /// One sentence an event: imported from, trained on, pruned by.
    pub history: Vec<String>,
}

/// What was measured on the holdout when a model was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Share of holdout windows that were right; none for a language model.
    pub accuracy: Option<f64>,
    /// Mean cross entropy on the holdout, in nats.
    pub loss: f64,
    /// Median latency of one window or token, in milliseconds; none where it was not measured.
    pub latency_ms: Option<f64>,
}

impl Manifest {
    /// The shape of the stored network, all layers that the artifact stores.
    pub fn shape(&self) -> ModelShape {
        ModelShape { layers: self.layers.iter().map(|layer| layer.shape.clone()).collect() }
    }

    /// All stored parameters of the network, without the adapters of levels.
    pub fn parameters(&self) -> usize {
        self.shape().parameters(&self.architecture)
    }

    /// Names of the classes that the model tells apart, by its output or by text; empty for a language model that makes no diagnosis.
    pub fn classes(&self) -> &[String] {
        self.diagnosis.as_ref().map_or_else(|| self.architecture.classes(), |diagnosis| &diagnosis.classes)
    }

    /// Samples of a window, and their rate in hertz, of a model that diagnoses machines, by its input or by text.
    pub fn window(&self) -> Option<(usize, f64)> {
        match (&self.diagnosis, &self.architecture.input) {
            (Some(diagnosis), _) => Some((diagnosis.window, diagnosis.sample_rate_hz)),
            (None, Input::Patches { window, sample_rate_hz, .. }) => Some((*window, *sample_rate_hz)),
            (None, Input::Tokens { .. }) => None,
        }
    }

    /// Dense parameters divided by kept parameters.
    pub fn compression_ratio(&self) -> f64 {
        self.origin.dense_parameters as f64 / self.parameters().max(1) as f64
    }
}
