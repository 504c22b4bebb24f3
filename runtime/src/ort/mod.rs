//! ONNX Runtime as an engine: runs the exported graph of an artifact, its weights where the artifact's own map has them.
//!
//! * [`library`]: finds and loads the shared library, which no build needs; its absence is an error value.
//! * [`allocator`]: what ONNX Runtime allocates is asked of the ledger.
//! * [`session`]: a graph over an artifact's pages.
//! * [`model`]: logits and class probabilities.
//! * [`foreign`]: graphs of other programs.
//! * [`generator`]: continues token sequences with keys and values that the graph carries.

mod allocator;
mod foreign;
mod generator;
mod library;
mod model;
mod session;

pub use foreign::{OrtForeign, foreign_plan};
pub use generator::OrtGenerator;
pub use library::OrtLibrary;
pub use model::OrtModel;
pub use session::OrtOptions;
