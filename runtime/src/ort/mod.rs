//! ONNX Runtime as an engine: runs the exported graph of an artifact, its weights where the artifact's own map has them.
//!
//! * [`library`]: finds and loads the shared library, which no build needs; its absence is an error value.
//! * [`allocator`]: what ONNX Runtime allocates is asked of the ledger.
//! * [`session`]: a graph over an artifact's pages.
//! * [`providers`]: what computes a graph's nodes beside the CPU.
//! * [`plan`]: what serving a model will take, before it is loaded.
//! * [`model`]: logits and class probabilities.
//! * [`carried`]: a graph that carries keys and values.
//! * [`foreign`]: graphs of other programs.
//! * [`generator`]: continues token sequences with it.
//! * [`scorer`]: scores and embeds token sequences with it.

mod allocator;
mod carried;
mod foreign;
mod generator;
mod library;
mod model;
mod plan;
mod providers;
mod scorer;
mod session;

pub use foreign::{OrtForeign, foreign_plan};
pub use generator::OrtGenerator;
pub use library::OrtLibrary;
pub use model::OrtModel;
pub use plan::ort_overhead_bytes;
pub use providers::{OrtProvider, OrtProviders};
pub use scorer::{OrtEmbedder, OrtScorer};
pub use session::OrtOptions;
